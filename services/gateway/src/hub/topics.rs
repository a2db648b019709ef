//! Subscriptions of a lane, changed by one task: a subscribe and an unsubscribe of one topic can't overtake each other.

use std::{collections::HashSet, sync::Arc};

use carillon_domain::{Error, Result, ports::Subscriptions, signal::Topic};
use tokio::sync::{mpsc, oneshot};

use super::{Inner, gone};

/// Asks the task.
pub struct Topics(mpsc::Sender<Command>);

pub enum Command {
    /// Answered when every topic is subscribed.
    Subscribe(Vec<Topic>, oneshot::Sender<Result<()>>),
    /// The connection is a new one: everything must be subscribed again.
    Replace(Arc<dyn Subscriptions>),
    /// Subscribe what could not be subscribed again, unsubscribe what was unused twice in a row.
    Tidy,
}

impl Topics {
    pub fn new() -> (Self, mpsc::Receiver<Command>) {
        let (sender, receiver) = mpsc::channel(1024);
        (Self(sender), receiver)
    }

    pub async fn subscribe(&self, topics: Vec<Topic>) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        self.0
            .send(Command::Subscribe(topics, answer))
            .await
            .map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    pub async fn replace(&self, subscriptions: Arc<dyn Subscriptions>) {
        // It fails only when the task has ended, with the gateway.
        let _ = self.0.send(Command::Replace(subscriptions)).await;
    }

    pub fn tidy(&self) {
        // When the queue is full there are more important things to do; the next sweep asks again.
        let _ = self.0.try_send(Command::Tidy);
    }
}

struct State {
    subscriptions: Arc<dyn Subscriptions>,
    subscribed: HashSet<Topic>,
    unused: HashSet<Topic>,
    /// Not everything that is needed could be subscribed on a new connection.
    incomplete: bool,
}

pub async fn run(inner: Arc<Inner>, lane: usize, mut commands: mpsc::Receiver<Command>) {
    let mut state = State {
        subscriptions: inner.lanes[lane].first_subscriptions(),
        subscribed: HashSet::new(),
        unused: HashSet::new(),
        incomplete: false,
    };
    loop {
        let command = tokio::select! {
            command = commands.recv() => command,
            () = inner.stop.cancelled() => None,
        };
        match command {
            Some(Command::Subscribe(topics, answer)) => {
                // The asker may have gone: then the topic is retired later.
                let _ = answer.send(state.subscribe(topics).await);
            }
            Some(Command::Replace(subscriptions)) => {
                state.subscriptions = subscriptions;
                state.subscribed.clear();
                let needed = needed(&inner, lane);
                state.complete(needed).await;
            }
            Some(Command::Tidy) => {
                let needed = needed(&inner, lane);
                if state.incomplete {
                    state.complete(needed.clone()).await;
                    if !state.incomplete {
                        // Nobody has told us of what came before.
                        inner.lanes[lane].lost();
                    }
                }
                state.retire(&needed).await;
            }
            None => return,
        }
    }
}

/// Topics with a room or a user. Whoever needs a topic is in the tables before asking for it, so that what isn't found here
/// can be unsubscribed: later askers are behind us in the queue.
fn needed(inner: &Inner, lane: usize) -> HashSet<Topic> {
    let lane = &inner.lanes[lane];
    let mut needed: HashSet<Topic> = lane.rooms.topics().into_iter().collect();
    needed.extend(lane.users.lock().keys().map(|&user| Topic::of_user(user)));
    needed
}

impl State {
    async fn subscribe(&mut self, topics: Vec<Topic>) -> Result<()> {
        let missing = topics
            .into_iter()
            .filter(|topic| !self.subscribed.contains(topic))
            .collect::<HashSet<Topic>>();
        let results: Vec<(Topic, Result<()>)> =
            futures::future::join_all(missing.into_iter().map(|topic| {
                let subscriptions = self.subscriptions.clone();
                async move { (topic, subscriptions.subscribe(topic).await) }
            }))
            .await;
        let mut outcome: Result<(), Error> = Ok(());
        for (topic, result) in results {
            match result {
                Ok(()) => {
                    self.subscribed.insert(topic);
                }
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }

    /// Subscribes everything that is needed; tried again later if that fails.
    async fn complete(&mut self, needed: HashSet<Topic>) {
        let outcome = self.subscribe(needed.into_iter().collect()).await;
        self.incomplete = outcome.is_err();
        if let Err(error) = outcome {
            tracing::warn!(%error, "could not subscribe again yet; the next sweep tries");
        }
    }

    async fn retire(&mut self, needed: &HashSet<Topic>) {
        let unused: HashSet<Topic> = self.subscribed.difference(needed).copied().collect();
        for topic in unused.intersection(&self.unused) {
            match self.subscriptions.unsubscribe(*topic).await {
                Ok(()) => {
                    self.subscribed.remove(topic);
                }
                Err(error) => tracing::debug!(%error, "could not unsubscribe; trying again later"),
            }
        }
        self.unused = unused;
    }
}
