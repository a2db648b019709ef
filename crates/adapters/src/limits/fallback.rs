//! What becomes of limits while the store that counts for all is away.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use carillon_domain::{
    Error, ErrorCode, Result,
    limit::{Grant, Policy, Subject},
    ports::RateLimiter,
};
use carillon_telemetry::metrics::{self, IntCounterVec};

/// How long the store may take: whoever asks has a person waiting.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long it is left alone after it failed. Then one taker tries it.
const PAUSE: Duration = Duration::from_secs(1);

static UNSHARED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    metrics::int_counter(
        "carillon_limits_unshared_total",
        "Takes from rate limits while their store was away, by what was done: counted in this process only (local), or refused.",
        &["done"],
    )
});

/// A shared limiter; while it fails, one of this process, or refusals with `Unavailable`.
pub struct Fallback {
    shared: Arc<dyn RateLimiter>,
    /// `None`: nothing is let through uncounted.
    local: Option<Arc<dyn RateLimiter>>,
    began: Instant,
    /// Milliseconds since `began` until which the store is left alone; 0 while it works.
    away_until: AtomicU64,
}

impl Fallback {
    /// `local` counts while `shared` fails; without it takes are refused then.
    pub fn new(shared: Arc<dyn RateLimiter>, local: Option<Arc<dyn RateLimiter>>) -> Self {
        for done in ["local", "refused"] {
            UNSHARED.with_label_values(&[done]);
        }
        Self {
            shared,
            local,
            began: Instant::now(),
            away_until: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn next_try(&self) -> u64 {
        self.now().saturating_add(PAUSE.as_millis() as u64).max(1)
    }

    fn is_away(&self) -> bool {
        self.away_until.load(Ordering::Relaxed) > self.now()
    }

    /// Whether this taker may ask the store: always while it works, and one at a time after a pause.
    fn may_ask(&self) -> bool {
        let until = self.away_until.load(Ordering::Relaxed);
        until == 0
            || until <= self.now()
                && self
                    .away_until
                    .compare_exchange(until, self.next_try(), Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok()
    }

    fn failed(&self, error: &Error) {
        let before = self.away_until.swap(self.next_try(), Ordering::Relaxed);
        if before == 0 {
            let then = match self.local {
                Some(_) => "each process counts by itself",
                None => "what is limited is refused",
            };
            tracing::warn!(%error, cause = error.cause_chain(), "rate limits are not shared: {then}");
        }
    }

    fn works(&self) {
        if self.away_until.load(Ordering::Relaxed) != 0
            && self.away_until.swap(0, Ordering::Relaxed) != 0
        {
            tracing::info!("rate limits are shared again");
        }
    }

    async fn alone(
        &self,
        policy: &Policy,
        subject: Subject,
        wanted: u32,
        owed: u32,
    ) -> Result<Grant> {
        match &self.local {
            Some(local) => {
                UNSHARED.with_label_values(&["local"]).inc();
                local.take(policy, subject, wanted, owed).await
            }
            None => {
                UNSHARED.with_label_values(&["refused"]).inc();
                Err(Error::new(
                    ErrorCode::Unavailable,
                    "requests can't be counted, try again",
                )
                .retry_after(PAUSE))
            }
        }
    }
}

#[async_trait]
impl RateLimiter for Fallback {
    async fn take(
        &self,
        policy: &Policy,
        subject: Subject,
        wanted: u32,
        owed: u32,
    ) -> Result<Grant> {
        if self.may_ask() {
            let take = self.shared.take(policy, subject, wanted, owed);
            match tokio::time::timeout(PATIENCE, take).await {
                Ok(Ok(grant)) => {
                    self.works();
                    return Ok(grant);
                }
                Ok(Err(error)) => self.failed(&error),
                Err(late) => self.failed(&Error::unavailable("the store of limits", late)),
            }
        }
        self.alone(policy, subject, wanted, owed).await
    }

    fn take_now(&self, policy: &Policy, subject: Subject, wanted: u32) -> Option<Grant> {
        let local = self.local.as_ref().filter(|_| self.is_away())?;
        let grant = local.take_now(policy, subject, wanted)?;
        UNSHARED.with_label_values(&["local"]).inc();
        Some(grant)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    use carillon_domain::{UserId, limit::Algorithm};

    use super::*;
    use crate::limits::MemoryLimiter;

    /// A store that fails, or says nothing, on command.
    #[derive(Default)]
    struct Store {
        counts: MemoryLimiter,
        fails: AtomicBool,
        silent: AtomicBool,
        asked: AtomicUsize,
    }

    #[async_trait]
    impl RateLimiter for Store {
        async fn take(
            &self,
            policy: &Policy,
            subject: Subject,
            wanted: u32,
            owed: u32,
        ) -> Result<Grant> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            if self.silent.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            if self.fails.load(Ordering::Relaxed) {
                return Err(Error::new(ErrorCode::Unavailable, "away"));
            }
            self.counts.take(policy, subject, wanted, owed).await
        }

        fn take_now(&self, _: &Policy, _: Subject, _: u32) -> Option<Grant> {
            None
        }
    }

    fn policy() -> Policy {
        let hour = Duration::from_secs(3600);
        Policy::new("test", Algorithm::default(), 2, hour).unwrap()
    }

    /// EDGE-03: without the store each process counts by itself, asks rarely, and goes back to the store by itself.
    #[tokio::test]
    async fn without_the_store_this_process_counts() {
        let store = Arc::new(Store::default());
        let limiter = Fallback::new(store.clone(), Some(Arc::new(MemoryLimiter::new())));
        let (policy, user) = (policy(), Subject::User(UserId::new()));
        assert_eq!(
            limiter.take(&policy, user, 1, 0).await.unwrap().remaining,
            1
        );
        assert_eq!(limiter.take_now(&policy, user, 1), None);
        store.fails.store(true, Ordering::Relaxed);
        let granted = [1, 1, 0];
        for expected in granted {
            let grant = limiter.take(&policy, user, 1, 0).await.unwrap();
            assert_eq!(grant.granted, expected);
        }
        let asked = store.asked.load(Ordering::Relaxed);
        assert!(asked < 1 + granted.len(), "it is left alone: {asked}");

        store.fails.store(false, Ordering::Relaxed);
        // The store knows of one permit that is left.
        while limiter.take(&policy, user, 1, 0).await.unwrap().granted == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(limiter.take_now(&policy, user, 1), None);
        assert_eq!(limiter.take(&policy, user, 1, 0).await.unwrap().granted, 0);
    }

    /// EDGE-03: a store that says nothing is as one that fails.
    #[tokio::test]
    async fn a_silent_store_is_away() {
        let store = Arc::new(Store::default());
        store.silent.store(true, Ordering::Relaxed);
        let limiter = Fallback::new(store, Some(Arc::new(MemoryLimiter::new())));
        let user = Subject::User(UserId::new());
        let grant = limiter.take(&policy(), user, 1, 0).await.unwrap();
        assert_eq!(grant.granted, 1);
    }

    /// EDGE-03: closed means that nothing passes uncounted.
    #[tokio::test]
    async fn closed_means_refused() {
        let store = Arc::new(Store::default());
        store.fails.store(true, Ordering::Relaxed);
        let limiter = Fallback::new(store, None);
        let user = Subject::User(UserId::new());
        for _ in 0..2 {
            let error = limiter.take(&policy(), user, 1, 0).await.unwrap_err();
            assert_eq!(error.code, ErrorCode::Unavailable);
            assert!(error.retry_after.is_some());
            assert_eq!(limiter.take_now(&policy(), user, 1), None);
        }
    }
}
