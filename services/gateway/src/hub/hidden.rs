//! What decides whose presence, typing and receipts each connected person gets: blocks in both directions, contacts, and to whom they
//! show their own (USER-05, USER-06, PRES-03). To whom the other one shows something comes with the signal.
//!
//! A socket gets nobody's until that is known, and again when it may have changed and can't be read. It is read when a socket connects;
//! when the user's blocks, contacts or privacy change or are about to, at once and again after a moment, so that a change is noticed even
//! if whoever made it ended before telling; and when the bus may have lost signals.

use std::{collections::HashMap, sync::Arc, time::Duration};

use carillon_domain::{
    Result, UserId,
    people::{Hidden, Sight},
    privacy::{Audience, Fact, Privacy, Ties, shows},
};
use futures::FutureExt;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Inner, back_off, socket::Socket};

/// How long a socket that connects waits for its sight. Without it, it goes on and gets nobody's presence yet.
const PATIENCE: Duration = Duration::from_secs(2);

/// What decides what one socket gets.
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
    /// Nothing: everybody is hidden.
    Nothing,
    /// That nothing is between the person and anybody, and that they hide nothing.
    Plain,
    /// Shared by the person's sockets.
    Sight(Arc<Seen>),
}

/// [`Sight`] with every list ascending.
struct Seen {
    hidden: Vec<UserId>,
    privacy: Privacy,
    contacts: Vec<UserId>,
    contact_of: Vec<UserId>,
}

impl From<Sight> for Known {
    fn from(sight: Sight) -> Self {
        let Hidden::People(mut hidden) = sight.hidden else {
            return Self::Nothing;
        };
        let (mut contacts, mut contact_of) = (sight.contacts, sight.contact_of);
        let lists = [&mut hidden, &mut contacts, &mut contact_of];
        if sight.privacy == Privacy::default() && lists.iter().all(|list| list.is_empty()) {
            return Self::Plain;
        }
        for list in lists {
            list.sort_unstable();
            list.shrink_to_fit();
        }
        Self::Sight(Arc::new(Seen {
            hidden,
            privacy: sight.privacy,
            contacts,
            contact_of,
        }))
    }
}

impl Seen {
    fn shows(&self, fact: Fact, person: UserId, audience: Audience) -> bool {
        let is_among = |list: &[UserId]| list.binary_search(&person).is_ok();
        let is_blocked = is_among(&self.hidden);
        let ties = Ties {
            same: false,
            viewer_has_person: is_among(&self.contacts),
            person_has_viewer: is_among(&self.contact_of),
            // By whom isn't known, and makes no difference to what is told.
            viewer_blocked: is_blocked,
            person_blocked: is_blocked,
        };
        shows(fact, ties, audience, self.privacy.audience(fact))
    }
}

impl Default for HiddenPeople {
    /// Everybody, since nothing is known yet.
    fn default() -> Self {
        Self(Mutex::new(State {
            known: Known::Nothing,
            begun: 0,
            from: 0,
        }))
    }
}

impl HiddenPeople {
    /// Whether it is shown a fact of somebody else, who shows it to this audience.
    pub fn shows(&self, fact: Fact, person: UserId, audience: Audience) -> bool {
        match &self.0.lock().known {
            Known::Nothing => false,
            Known::Plain => shows(fact, Ties::default(), audience, Audience::Everyone),
            Known::Sight(seen) => seen.shows(fact, person, audience),
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

/// Users whose sight may have changed, each with a task that reads it.
#[derive(Default)]
pub struct Watched(Mutex<HashMap<UserId, Arc<Notify>>>);

impl Inner {
    /// The sight of a socket that connects. When it can't be had soon, it is read on in the background.
    pub(super) async fn first_hidden(self: &Arc<Self>, socket: &Arc<Socket>) {
        let sockets = [socket.clone()];
        let read = self.read_hidden(socket.user(), &sockets);
        let outcome = tokio::time::timeout(PATIENCE, read).await;
        if !matches!(outcome, Ok(Ok(()))) {
            self.blocks_changed(socket.user());
        }
    }

    /// A user's blocks, contacts or privacy changed, or are about to.
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

    /// Reads a user's sight until it is known or nobody needs it; after a failure nobody's presence is shown until then.
    pub(super) async fn recheck_hidden(self: &Arc<Self>, user: UserId) {
        for attempt in 0.. {
            let sockets = self.sockets_of(user);
            if sockets.is_empty() {
                return;
            }
            match self.read_hidden(user, &sockets).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::debug!(%error, "what is shown to a user is not known yet")
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
        let (known, outcome) = match self.people.sight(user).await {
            Ok(sight) => (Known::from(sight), Ok(())),
            Err(error) => (Known::Nothing, Err(error)),
        };
        for (socket, read) in reads {
            socket.hidden().learn(read, known.clone());
        }
        outcome
    }
}

/// Reads a user's sight now and once the change that was told must have happened; again from the start when told of another one.
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

    fn sight(hidden: Vec<UserId>) -> Sight {
        Sight {
            hidden: Hidden::People(hidden),
            privacy: Privacy::default(),
            contacts: Vec::new(),
            contact_of: Vec::new(),
        }
    }

    /// USER-05: an answer that was overtaken by a later one is worth nothing.
    #[test]
    fn a_late_answer_replaces_nothing() {
        let (ann, bob) = (UserId::new(), UserId::new());
        let hidden = HiddenPeople::default();
        let is_hidden = |person| !hidden.shows(Fact::Presence, person, Audience::Everyone);
        assert!(is_hidden(ann), "nothing is known");
        let (first, second) = (hidden.begin(), hidden.begin());
        hidden.learn(second, sight(vec![ann]).into());
        hidden.learn(first, sight(Vec::new()).into());
        assert!(is_hidden(ann));
        assert!(!is_hidden(bob));
        hidden.learn(hidden.begin(), sight(Vec::new()).into());
        assert!(!is_hidden(ann));
    }

    /// USER-06: contacts are who has the person as one; and who hides their own gets nobody's.
    #[test]
    fn audiences_are_kept() {
        let (ann, bob) = (UserId::new(), UserId::new());
        let hidden = HiddenPeople::default();
        let told =
            |person| Audience::ALL.map(|audience| hidden.shows(Fact::Receipts, person, audience));
        hidden.learn(hidden.begin(), sight(Vec::new()).into());
        assert_eq!(told(ann), [true, false, false]);
        let of_ann = Sight {
            contact_of: vec![ann],
            ..sight(Vec::new())
        };
        hidden.learn(hidden.begin(), of_ann.clone().into());
        assert_eq!(told(ann), [true, true, false]);
        assert_eq!(told(bob), [true, false, false]);
        let privacy = Privacy {
            read_receipts: Audience::Contacts,
            ..Privacy::default()
        };
        let private = Sight {
            privacy,
            contacts: vec![bob],
            ..of_ann
        };
        hidden.learn(hidden.begin(), private.into());
        assert_eq!(told(ann), [false, false, false], "Ann doesn't get theirs");
        assert_eq!(told(bob), [true, false, false]);
        assert!(hidden.shows(Fact::Presence, ann, Audience::Contacts));
    }
}
