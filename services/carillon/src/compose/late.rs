//! A dependency that isn't reached yet: the process is alive, says why it isn't ready, and goes on trying (promise 8).

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use carillon_domain::{
    Error, ErrorCode, Result,
    ports::{JobHandler, Probe, PushQueue},
    push::PushJob,
};
use carillon_runtime::ready::Connecting;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The probe of a dependency before and after it was reached.
pub struct LateProbe {
    name: &'static str,
    reached: OnceLock<Arc<dyn Probe>>,
    /// Of the last attempt; `None` until the first has ended.
    problem: Mutex<Option<String>>,
}

impl LateProbe {
    /// Not reached yet.
    pub fn new(name: &'static str) -> Arc<Self> {
        Arc::new(Self {
            name,
            reached: OnceLock::new(),
            problem: Mutex::new(None),
        })
    }

    /// Tries to connect until it works, or `None` when `stop` comes first. Each failure is logged once per kind.
    pub async fn reach<T, F>(
        &self,
        stop: &CancellationToken,
        mut connect: impl FnMut() -> F,
        probe: impl Fn(&T) -> Arc<dyn Probe>,
    ) -> Option<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut pause = FIRST_PAUSE;
        loop {
            let attempt = tokio::select! {
                () = stop.cancelled() => return None,
                attempt = connect() => attempt,
            };
            match attempt {
                Ok(connected) => {
                    let _ = self.reached.set(probe(&connected));
                    tracing::info!(dependency = self.name, "connected");
                    return Some(connected);
                }
                Err(error) => {
                    let before = self.problem.lock().replace(error.detail.to_string());
                    if before.as_deref() != Some(&error.detail) {
                        tracing::warn!(dependency = self.name, %error, cause = error.cause_chain(), "not reached yet; trying again");
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

#[async_trait]
impl Probe for LateProbe {
    fn name(&self) -> &'static str {
        self.name
    }

    async fn check(&self) -> Result<()> {
        match self.reached.get() {
            Some(probe) => probe.check().await,
            None => Err(match self.problem.lock().clone() {
                Some(problem) => Error::new(ErrorCode::Unavailable, problem),
                None => Error::new(ErrorCode::Unavailable, "connecting").caused_by(Connecting),
            }),
        }
    }
}

/// A push queue that is connected to behind its users' back: until then publishing is
/// `Unavailable` after a moment, and consumers wait.
pub struct LateQueue {
    /// How long a publish waits for the first connection.
    patience: Duration,
    reached: watch::Receiver<Option<Arc<dyn PushQueue>>>,
}

impl LateQueue {
    /// Waits for `connecting` in a task of its own; `None` from it means that it was stopped.
    pub fn new(
        patience: Duration,
        connecting: impl Future<Output = Option<Arc<dyn PushQueue>>> + Send + 'static,
    ) -> Arc<Self> {
        let (sender, reached) = watch::channel(None);
        tokio::spawn(async move {
            sender.send_replace(connecting.await);
        });
        Arc::new(Self { patience, reached })
    }

    /// The queue, when it is reached soon.
    async fn soon(&self) -> Result<Arc<dyn PushQueue>> {
        let mut reached = self.reached.clone();
        let queue = tokio::time::timeout(self.patience, reached.wait_for(Option::is_some)).await;
        let queue = queue.ok().and_then(|queue| queue.ok()?.clone());
        queue.ok_or_else(|| {
            Error::new(
                ErrorCode::Unavailable,
                "the push queue has not been reached yet",
            )
        })
    }
}

#[async_trait]
impl PushQueue for LateQueue {
    async fn publish(&self, job: &PushJob) -> Result<()> {
        self.soon().await?.publish(job).await
    }

    async fn consume(
        &self,
        handler: Arc<dyn JobHandler>,
        concurrency: usize,
        mut stop: Pin<Box<dyn Future<Output = ()> + Send>>,
    ) -> Result<()> {
        let mut reached = self.reached.clone();
        let queue = tokio::select! {
            () = &mut stop => return Ok(()),
            queue = reached.wait_for(Option::is_some) => queue.ok().and_then(|queue| queue.clone()),
        };
        match queue {
            Some(queue) => queue.consume(handler, concurrency, stop).await,
            // Connecting was stopped, and so is everything.
            None => Ok(()),
        }
    }

    async fn depth(&self) -> Result<(u64, u64)> {
        self.soon().await?.depth().await
    }
}

#[cfg(test)]
mod tests {
    use carillon_domain::{MessageId, RoomId, Sequence, UserId, ports::JobOutcome};

    use super::*;

    struct Fine;

    #[async_trait]
    impl Probe for Fine {
        fn name(&self) -> &'static str {
            "store"
        }
        async fn check(&self) -> Result<()> {
            Ok(())
        }
    }

    /// OPS-01: a store that comes late is waited for, and its problem is shown meanwhile.
    #[tokio::test]
    async fn a_late_store_is_waited_for() {
        let probe = LateProbe::new("store");
        let first = probe.check().await.unwrap_err();
        assert!(std::error::Error::source(&first).is_some_and(|cause| cause.is::<Connecting>()));
        let attempts = std::sync::atomic::AtomicU32::new(0);
        let connect = || async {
            match attempts.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                0..2 => Err(Error::new(ErrorCode::Unavailable, "nobody at store:1")),
                _ => Ok(()),
            }
        };
        let reached = probe
            .reach(&CancellationToken::new(), connect, |()| Arc::new(Fine))
            .await;
        assert!(reached.is_some());
        assert!(probe.check().await.is_ok());
    }

    struct Handled(tokio::sync::mpsc::UnboundedSender<String>);

    #[async_trait]
    impl JobHandler for Handled {
        async fn handle(&self, job: PushJob) -> JobOutcome {
            let _ = self.0.send(job.id);
            JobOutcome::Done
        }
    }

    /// Gives every consumer one job.
    struct OneJob;

    #[async_trait]
    impl PushQueue for OneJob {
        async fn publish(&self, _: &PushJob) -> Result<()> {
            Ok(())
        }
        async fn consume(
            &self,
            handler: Arc<dyn JobHandler>,
            _: usize,
            stop: Pin<Box<dyn Future<Output = ()> + Send>>,
        ) -> Result<()> {
            handler.handle(job()).await;
            stop.await;
            Ok(())
        }
        async fn depth(&self) -> Result<(u64, u64)> {
            Ok((0, 0))
        }
    }

    fn job() -> PushJob {
        PushJob {
            id: "m/0".into(),
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
        }
    }

    /// Promise 8: a role starts without the queue, publishes in vain until it is there, and consumes from then on.
    #[tokio::test]
    async fn a_late_queue_gates_nothing() {
        let (reach, reached) = tokio::sync::oneshot::channel::<()>();
        let queue = LateQueue::new(Duration::ZERO, async move {
            reached.await.ok()?;
            Some(Arc::new(OneJob) as Arc<dyn PushQueue>)
        });
        let (handled, mut jobs) = tokio::sync::mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let consuming = {
            let (queue, stop) = (queue.clone(), stop.clone());
            tokio::spawn(async move {
                let stop = Box::pin(stop.cancelled_owned());
                queue.consume(Arc::new(Handled(handled)), 1, stop).await
            })
        };
        let refused = queue.publish(&job()).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Unavailable);
        assert!(jobs.try_recv().is_err());

        reach.send(()).unwrap();
        assert_eq!(jobs.recv().await.as_deref(), Some("m/0"));
        queue.publish(&job()).await.unwrap();
        stop.cancel();
        consuming.await.unwrap().unwrap();
    }

    /// OPS-02: what was never reached keeps nobody from stopping.
    #[tokio::test]
    async fn a_consumer_of_a_queue_that_never_comes_is_stopped() {
        let queue = LateQueue::new(Duration::ZERO, std::future::pending());
        let (handled, _jobs) = tokio::sync::mpsc::unbounded_channel();
        let stopped = Box::pin(std::future::ready(()));
        queue
            .consume(Arc::new(Handled(handled)), 1, stopped)
            .await
            .unwrap();
    }
}
