//! Whose presence and typing each connected person doesn't get: of whom they blocked, and of who blocked them (USER-05, PRES-03).
//!
//! A socket gets nobody's until its set is known, and again when it may have changed and can't be read. The set is read when a socket
//! connects; when the user's blocks change or are about to, at once and again after a moment, so that a change is noticed even if
//! whoever made it ended before telling; and when the bus may have lost signals.

use std::{collections::HashMap, sync::Arc, time::Duration};

use carillon_domain::{Result, UserId, people::Hidden};
use futures::FutureExt;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Inner, back_off, socket::Socket};

/// How long a socket that connects waits for its set. Without it, it goes on and gets nobody's presence yet.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is hidden from one socket.
pub struct HiddenPeople(Mutex<State>);

struct State {
    known: Known,
    /// Reads that began.
    begun: u64,
    /// The read that `known` comes from: an earlier one that ends later must not replace it.
    from: u64,
}

#[derive(Clone)]
enum Known {
    Nobody,
    /// Ascending; shared by the person's sockets.
    People(Arc<[UserId]>),
    Everybody,
}

impl From<Hidden> for Known {
    fn from(hidden: Hidden) -> Self {
        match hidden {
            Hidden::Everybody => Self::Everybody,
            Hidden::People(people) if people.is_empty() => Self::Nobody,
            Hidden::People(mut people) => {
                people.sort_unstable();
                Self::People(people.into())
            }
        }
    }
}

impl Default for HiddenPeople {
    /// Everybody, since nothing is known yet.
    fn default() -> Self {
        Self(Mutex::new(State {
            known: Known::Everybody,
            begun: 0,
            from: 0,
        }))
    }
}

impl HiddenPeople {
    /// Whether a person's presence and typing is hidden.
    pub fn contains(&self, person: UserId) -> bool {
        match &self.0.lock().known {
            Known::Nobody => false,
            Known::People(people) => people.binary_search(&person).is_ok(),
            Known::Everybody => true,
        }
    }

    /// A read begins; its number.
    fn begin(&self) -> u64 {
        let mut state = self.0.lock();
        state.begun += 1;
        state.begun
    }

    /// What came of a read.
    fn learn(&self, read: u64, known: Known) {
        let mut state = self.0.lock();
        if read > state.from {
            state.from = read;
            state.known = known;
        }
    }
}

/// Users whose set may have changed, each with a task that reads it.
#[derive(Default)]
pub struct Watched(Mutex<HashMap<UserId, Arc<Notify>>>);

impl Inner {
    /// The set of a socket that connects. When it can't be had soon, it is read on in the background.
    pub(super) async fn first_hidden(self: &Arc<Self>, socket: &Arc<Socket>) {
        let sockets = [socket.clone()];
        let read = self.read_hidden(socket.user(), &sockets);
        let outcome = tokio::time::timeout(PATIENCE, read).await;
        if !matches!(outcome, Ok(Ok(()))) {
            self.blocks_changed(socket.user());
        }
    }

    /// A block of a user was made or ended, or is about to be.
    pub(super) fn blocks_changed(self: &Arc<Self>, user: UserId) {
        if self.sockets_of(user).is_empty() {
            return;
        }
        let mut watched = self.watched.0.lock();
        if let Some(told) = watched.get(&user) {
            told.notify_one();
            return;
        }
        let told = Arc::new(Notify::new());
        watched.insert(user, told.clone());
        tokio::spawn(watch(self.clone(), user, told));
    }

    /// Reads a user's set until it is known or nobody needs it; after a failure nobody's presence is shown until then.
    pub(super) async fn recheck_hidden(self: &Arc<Self>, user: UserId) {
        for attempt in 0.. {
            let sockets = self.sockets_of(user);
            if sockets.is_empty() {
                return;
            }
            match self.read_hidden(user, &sockets).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::debug!(%error, "what is hidden from a user is not known yet")
                }
            }
            tokio::select! {
                () = back_off(attempt) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    async fn read_hidden(&self, user: UserId, sockets: &[Arc<Socket>]) -> Result<()> {
        let reads: Vec<(&Arc<Socket>, u64)> = sockets
            .iter()
            .map(|socket| (socket, socket.hidden().begin()))
            .collect();
        let (known, outcome) = match self.people.hidden_from(user).await {
            Ok(hidden) => (Known::from(hidden), Ok(())),
            Err(error) => (Known::Everybody, Err(error)),
        };
        for (socket, read) in reads {
            socket.hidden().learn(read, known.clone());
        }
        outcome
    }
}

/// Reads a user's set now and once the change that was told must have happened; again from the start when told of another one.
async fn watch(inner: Arc<Inner>, user: UserId, told: Arc<Notify>) {
    loop {
        inner.recheck_hidden(user).await;
        tokio::select! {
            () = told.notified() => continue,
            () = tokio::time::sleep(inner.blocks_settle) => {}
            () = inner.stop.cancelled() => return,
        }
        inner.recheck_hidden(user).await;
        // Whoever tells holds the lock: either we see it here, or they find no task.
        let mut watched = inner.watched.0.lock();
        if told.notified().now_or_never().is_none() {
            watched.remove(&user);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// USER-05: an answer that was overtaken by a later one is worth nothing.
    #[test]
    fn a_late_answer_replaces_nothing() {
        let (ann, bob) = (UserId::new(), UserId::new());
        let hidden = HiddenPeople::default();
        assert!(hidden.contains(ann), "nothing is known");
        let (first, second) = (hidden.begin(), hidden.begin());
        hidden.learn(second, Hidden::People(vec![ann]).into());
        hidden.learn(first, Hidden::People(Vec::new()).into());
        assert!(hidden.contains(ann));
        assert!(!hidden.contains(bob));
        hidden.learn(hidden.begin(), Hidden::People(Vec::new()).into());
        assert!(!hidden.contains(ann));
    }
}
