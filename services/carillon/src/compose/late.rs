//! A dependency that isn't reached yet: the process is alive, says why it isn't ready, and goes on trying (promise 8).

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use carillon_domain::{Error, ErrorCode, Result, ports::Probe};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The probe of a dependency before and after it was reached.
pub struct LateProbe {
    name: &'static str,
    reached: OnceLock<Arc<dyn Probe>>,
    problem: Mutex<String>,
}

impl LateProbe {
    /// Not reached yet.
    pub fn new(name: &'static str) -> Arc<Self> {
        Arc::new(Self {
            name,
            reached: OnceLock::new(),
            problem: Mutex::new("connecting".to_owned()),
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
                    let new =
                        std::mem::replace(&mut *self.problem.lock(), error.detail.to_string())
                            != error.detail;
                    if new {
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
            None => Err(Error::new(
                ErrorCode::Unavailable,
                self.problem.lock().clone(),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!(probe.check().await.unwrap_err().detail, "connecting");
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
}
