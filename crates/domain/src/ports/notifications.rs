use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{
    DeviceId, Result, UserId,
    push::{PushJob, PushTarget},
};

/// What became of a job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum JobOutcome {
    /// Done, or never to be done: forget it.
    Done,
    /// Try again after a while; after too many tries the queue dead-letters it.
    Retry(Duration),
}

/// Works on jobs. Must tolerate a job that comes again.
#[async_trait]
pub trait JobHandler: Send + Sync {
    /// Works on one job.
    async fn handle(&self, job: PushJob) -> JobOutcome;
}

/// The durable queue of push jobs: at least once, each job to one consumer at a time.
#[async_trait]
pub trait PushQueue: Send + Sync {
    /// `Ok` means that the queue has it durably (a publisher confirm).
    async fn publish(&self, job: &PushJob) -> Result<()>;

    /// Feeds jobs to `handler`, at most `concurrency` at once, until `stop` resolves; then finishes what is under way and
    /// returns. Reconnects by itself. A job is taken off the queue only after its outcome.
    async fn consume(
        &self,
        handler: Arc<dyn JobHandler>,
        concurrency: usize,
        stop: futures::future::BoxFuture<'static, ()>,
    ) -> Result<()>;

    /// Jobs waiting, and jobs dead-lettered.
    async fn depth(&self) -> Result<(u64, u64)>;
}

/// Where pushes go, by user.
#[async_trait]
pub trait PushTargetStore: Send + Sync {
    /// Stores the target of a device, replacing an earlier one.
    async fn put(&self, target: &PushTarget) -> Result<()>;

    /// Forgets the target of a device.
    async fn remove(&self, user: UserId, device: DeviceId) -> Result<()>;

    /// The targets of these users. At most 200 users.
    async fn of_users(&self, users: &[UserId]) -> Result<Vec<PushTarget>>;
}
