//! [`PushQueue`]: waiting jobs by the time they are due, dead ones aside.
//!
//! A job that a consumer works on is leased in memory: only this process can have the store open, so a lease ends with the
//! consumer, not by a clock, and after a crash every job that had no outcome is due again.

use std::{collections::HashSet, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use async_trait::async_trait;
use carillon_domain::{
    Error, Result, Timestamp,
    ports::{JobHandler, JobOutcome, PushQueue},
    push::PushJob,
};
use fjall::Slice;
use futures::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, task::JoinSet};

use super::{
    codec::{json, numbers, read_json, read_numbers, tagged},
    engine::{Durability, Engine, Transaction},
    expiry::time_key,
    tables::Table,
};

/// How often a job is tried before it is put aside.
pub const MAX_TRIES: u32 = 5;

const WAITING: u8 = b'w';
const DEAD: u8 = b'x';
const COUNTERS: &[u8] = b"push";
/// After an error of the store, or a handler that panicked.
const PAUSE: Duration = Duration::from_secs(1);

/// The queue of push jobs.
pub(super) struct LocalPushQueue(Arc<Inner>);

struct Inner {
    engine: Arc<Engine>,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    leased: HashSet<Slice>,
    /// Every waiting job without a lease is at or after this key: what was done before isn't walked over again.
    next: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Waiting {
    tries: u32,
    job: PushJob,
}

/// The next job's number, jobs waiting, jobs put aside.
struct Counters {
    next: u64,
    waiting: u64,
    dead: u64,
}

impl LocalPushQueue {
    pub(super) fn new(engine: Arc<Engine>) -> Self {
        Self(Arc::new(Inner {
            engine,
            state: Mutex::default(),
            wake: Notify::new(),
        }))
    }
}

#[async_trait]
impl PushQueue for LocalPushQueue {
    async fn publish(&self, job: &PushJob) -> Result<()> {
        let row = json(&Waiting {
            tries: 0,
            job: job.clone(),
        })?;
        let now = self.0.engine.clock.now();
        let key = self
            .0
            .engine
            .commit(Durability::Synced, move |transaction| {
                let mut counters = Counters::read(transaction)?;
                counters.waiting += 1;
                let key = counters.take_key(now);
                transaction.put(Table::PushJobs, key.as_slice(), row);
                counters.write(transaction);
                Ok(key)
            })
            .await?;
        self.0.offer(&key);
        Ok(())
    }

    async fn consume(
        &self,
        handler: Arc<dyn JobHandler>,
        concurrency: usize,
        stop: BoxFuture<'static, ()>,
    ) -> Result<()> {
        let concurrency = concurrency.max(1);
        // Dropped with this future, it aborts what is under way; the leases end with the tasks.
        let mut tasks = JoinSet::new();
        let mut stop = stop.fuse();
        loop {
            let woken = self.0.wake.notified();
            tokio::pin!(woken);
            // From here on no offer is missed.
            woken.as_mut().enable();
            while tasks.try_join_next().is_some() {}
            let free = concurrency - tasks.len();
            let wait = match self.0.lease(free) {
                Ok(due) => {
                    for (lease, waiting) in due.jobs {
                        tasks.spawn(work(handler.clone(), lease, waiting));
                    }
                    for lease in due.unreadable {
                        tasks.spawn(put_aside(lease));
                    }
                    due.wait
                }
                Err(error) => {
                    tracing::warn!(error = %error, cause = error.cause_chain(), "no push jobs could be read");
                    Some(PAUSE)
                }
            };
            let due = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => futures::future::pending().await,
                }
            };
            let full = tasks.len() >= concurrency;
            tokio::select! {
                // Whoever is asked to stop takes no further job, however many are due.
                biased;
                () = &mut stop => break,
                Some(_) = tasks.join_next() => {}
                () = &mut woken, if !full => {}
                () = due, if !full => {}
            }
        }
        while tasks.join_next().await.is_some() {}
        Ok(())
    }

    async fn depth(&self) -> Result<(u64, u64)> {
        let row = self.0.engine.view().get(Table::Meta, COUNTERS)?;
        let counters = Counters::of_row(row.as_deref())?;
        Ok((counters.waiting, counters.dead))
    }
}

/// Works on one job and stores its outcome.
async fn work(handler: Arc<dyn JobHandler>, lease: Lease, waiting: Waiting) {
    let outcome = AssertUnwindSafe(handler.handle(waiting.job.clone()))
        .catch_unwind()
        .await
        .unwrap_or_else(|_| {
            tracing::error!(job = waiting.job.id, "the handler of a push job panicked");
            JobOutcome::Retry(PAUSE)
        });
    if let Err(error) = lease.settle(waiting, outcome).await {
        // The job is still there and will come again.
        tracing::warn!(error = %error, cause = error.cause_chain(), "the outcome of a push job could not be stored");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Puts a job aside that can't be read.
async fn put_aside(lease: Lease) {
    if let Err(error) = lease.put_aside().await {
        tracing::warn!(error = %error, cause = error.cause_chain(), "a push job could not be put aside");
        tokio::time::sleep(PAUSE).await;
    }
}

// === impl Inner ===

impl Inner {
    /// Says that there is a job at this key which nobody has.
    fn offer(&self, key: &[u8]) {
        {
            let mut state = self.state.lock();
            if state.next.as_slice() > key {
                state.next = key.to_vec();
            }
        }
        self.wake.notify_waiters();
    }

    /// Leases at most `most` jobs that are due.
    fn lease(self: &Arc<Self>, most: usize) -> Result<Due> {
        let mut due = Due::default();
        if most == 0 {
            return Ok(due);
        }
        let now = self.engine.clock.now();
        let mut state = self.state.lock();
        // Under the lock: a job that is settled after an older view was taken would be in it, and no longer leased.
        let view = self.engine.view();
        let from = std::cmp::max(state.next.as_slice(), &[WAITING]).to_vec();
        for row in view.range(Table::PushJobs, from, [WAITING + 1]) {
            let (key, row) = row?;
            if state.leased.contains(&key) {
                continue;
            }
            let at = due_of(&key).unwrap_or(now);
            if at > now {
                state.next = key.to_vec();
                due.wait = Some(at.since(now));
                return Ok(due);
            }
            if due.jobs.len() + due.unreadable.len() == most {
                state.next = key.to_vec();
                due.wait = Some(Duration::ZERO);
                return Ok(due);
            }
            let waiting = read_json(&row);
            state.leased.insert(key.clone());
            state.next = key.to_vec();
            let lease = Lease {
                queue: self.clone(),
                key: Some(key),
            };
            match waiting {
                Ok(waiting) => due.jobs.push((lease, waiting)),
                Err(error) => {
                    tracing::error!(%error, cause = error.cause_chain(), "a push job can't be read and is put aside");
                    due.unreadable.push(lease);
                }
            }
        }
        Ok(due)
    }
}

/// What is due.
#[derive(Default)]
struct Due {
    jobs: Vec<(Lease, Waiting)>,
    /// Never to be understood, however often they come: as after an upgrade was taken back.
    unreadable: Vec<Lease>,
    /// How long until there is one more, if one is waiting.
    wait: Option<Duration>,
}

fn due_of(key: &[u8]) -> Result<Timestamp> {
    super::expiry::end_of(key.get(1..).unwrap_or_default())
}

// === impl Lease ===

/// A job that one consumer works on; dropped without an outcome, it is due again.
struct Lease {
    queue: Arc<Inner>,
    key: Option<Slice>,
}

impl Lease {
    async fn settle(mut self, waiting: Waiting, outcome: JobOutcome) -> Result<()> {
        let Some(key) = self.key.clone() else {
            return Ok(());
        };
        let now = self.queue.engine.clock.now();
        let again = self
            .queue
            .engine
            .commit(Durability::Synced, move |transaction| {
                settle(transaction, key, waiting, outcome, now)
            })
            .await?;
        if let Some(key) = self.key.take() {
            self.queue.state.lock().leased.remove(&key);
        }
        if let Some(key) = again {
            self.queue.offer(&key);
        }
        Ok(())
    }
}

impl Lease {
    async fn put_aside(mut self) -> Result<()> {
        let Some(key) = self.key.clone() else {
            return Ok(());
        };
        self.queue
            .engine
            .commit(Durability::Synced, move |transaction| {
                if let Some(row) = transaction.get(Table::PushJobs, key.clone())? {
                    let mut counters = Counters::read(transaction)?;
                    transaction.remove(Table::PushJobs, key);
                    counters.bury(transaction, row);
                    counters.write(transaction);
                }
                Ok(())
            })
            .await?;
        if let Some(key) = self.key.take() {
            self.queue.state.lock().leased.remove(&key);
        }
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.queue.state.lock().leased.remove(&key);
            self.queue.offer(&key);
        }
    }
}

/// Takes a job from its place; its new key if it is to be tried again.
fn settle(
    transaction: &mut Transaction<'_>,
    key: Slice,
    mut waiting: Waiting,
    outcome: JobOutcome,
    now: Timestamp,
) -> Result<Option<Vec<u8>>> {
    if transaction.get(Table::PushJobs, key.clone())?.is_none() {
        return Err(Error::defect("a leased push job isn't there"));
    }
    let mut counters = Counters::read(transaction)?;
    transaction.remove(Table::PushJobs, key);
    waiting.tries += 1;
    let again = match outcome {
        JobOutcome::Done => {
            counters.waiting = counters.waiting.saturating_sub(1);
            None
        }
        JobOutcome::Retry(_) if waiting.tries >= MAX_TRIES => {
            counters.bury(transaction, json(&waiting)?);
            None
        }
        JobOutcome::Retry(after) => {
            let key = counters.take_key(now.plus(after));
            transaction.put(Table::PushJobs, key.as_slice(), json(&waiting)?);
            Some(key)
        }
    };
    counters.write(transaction);
    Ok(again)
}

// === impl Counters ===

impl Counters {
    fn read(transaction: &Transaction<'_>) -> Result<Self> {
        Self::of_row(transaction.get(Table::Meta, COUNTERS)?.as_deref())
    }

    fn of_row(row: Option<&[u8]>) -> Result<Self> {
        let [next, waiting, dead] = row.map_or(Ok([0; 3]), read_numbers)?;
        Ok(Self {
            next,
            waiting,
            dead,
        })
    }

    fn write(&self, transaction: &mut Transaction<'_>) {
        let row = numbers([self.next, self.waiting, self.dead]);
        transaction.put(Table::Meta, COUNTERS, row);
    }

    /// Puts a row aside that was waiting.
    fn bury(&mut self, transaction: &mut Transaction<'_>, row: impl Into<Slice>) {
        self.waiting = self.waiting.saturating_sub(1);
        self.dead += 1;
        let key = tagged(DEAD, &self.dead.to_be_bytes());
        transaction.put(Table::PushJobs, key, row);
    }

    /// The key of a job that is due then.
    fn take_key(&mut self, due: Timestamp) -> Vec<u8> {
        self.next += 1;
        let mut key = tagged(WAITING, &time_key(due));
        key.extend_from_slice(&self.next.to_be_bytes());
        key
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use carillon_domain::{MessageId, RoomId, Sequence, UserId};

    struct Taker(mpsc::UnboundedSender<String>);

    #[async_trait]
    impl JobHandler for Taker {
        async fn handle(&self, job: PushJob) -> JobOutcome {
            self.0.send(job.id).unwrap();
            JobOutcome::Done
        }
    }

    /// NOTIF-02: one row that can't be read, as from another release, keeps no other job back, and is put aside.
    #[tokio::test]
    async fn an_unreadable_job_is_put_aside() {
        let directory = tempfile::tempdir().unwrap();
        let stores = crate::embedded::open(directory.path()).unwrap();
        let engine = stores.engine.clone();
        let queue = Arc::new(LocalPushQueue::new(engine.clone()));
        let now = engine.clock.now();
        engine
            .commit(Durability::Synced, move |transaction| {
                let mut counters = Counters::read(transaction)?;
                counters.waiting += 1;
                let key = counters.take_key(now);
                transaction.put(Table::PushJobs, key, b"{\"tries\":0,\"job\":7}".to_vec());
                counters.write(transaction);
                Ok(())
            })
            .await
            .unwrap();
        let job = PushJob {
            id: "after".to_owned(),
            room: RoomId::new(),
            message: MessageId::new(),
            sequence: Sequence(1),
            sender: UserId::new(),
            title: String::new(),
            body: String::new(),
            recipients: Vec::new(),
            mentions: Default::default(),
            direct: false,
            traceparent: None,
        };
        queue.publish(&job).await.unwrap();
        let (taken, mut jobs) = mpsc::unbounded_channel();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let consuming = tokio::spawn({
            let queue = queue.clone();
            let stopped = Box::pin(stopped.map(drop));
            async move { queue.consume(Arc::new(Taker(taken)), 2, stopped).await }
        });
        let wait = tokio::time::timeout(Duration::from_secs(10), jobs.recv());
        assert_eq!(wait.await.unwrap().as_deref(), Some("after"));
        drop(stop);
        consuming.await.unwrap().unwrap();
        assert_eq!(queue.depth().await.unwrap(), (0, 1));
    }
}
