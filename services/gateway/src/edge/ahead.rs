//! A limit that nobody waits for: what a socket sends goes ahead of the shared store's answer, and is booked there at once.
//!
//! The first use of a subject passes, and the store is asked in the background. Uses that come before it answers pass too, at most
//! as many as the limit, and one only while the last answer was that nothing is left; all of them are booked with the next
//! question, so that what was too much is missing later. Whoever sends steadily gets a few permits with each answer, no more than
//! were used in the last second, and for a second: then most uses cost no question.
//!
//! So over a time T a subject passes the limit, and what comes back within T and a second; and ahead of an answer, once until the
//! debt is paid, at most the limit again at each gateway. When the limiter has its answers at hand (one process, or the store is
//! away) it is asked for every use, and nothing goes ahead.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::{Duration, Instant},
};

use carillon_domain::{
    Error, Result,
    limit::{Grant, Policy, Subject},
    ports::RateLimiter,
};
use parking_lot::Mutex;

use super::limits::refused;

/// How long permits at hand may be used, and over which time uses are counted to tell how many are wanted.
const FRESH: Duration = Duration::from_secs(1);
/// At most this part of the limit is taken ahead of its use.
const PART_AT_HAND: u32 = 4;
/// When to try again, if the answer isn't in yet.
const SOON: Duration = Duration::from_millis(100);
/// Accounts, at most. Beyond it new subjects wait until idle ones were forgotten; there are no more sockets than this.
const MOST_ACCOUNTS: usize = 200_000;
/// Parts of the accounts, each with a lock.
const PARTS: usize = 16;
/// Uses between two looks for idle accounts in one part, at least.
const LOOK_EVERY: usize = 256;

const DETAIL: &str = "too many requests, slow down";

/// See the module's documentation.
pub struct Ahead(Option<Arc<Inner>>);

struct Inner {
    policy: Policy,
    limiter: Arc<dyn RateLimiter>,
    most: usize,
    parts: [Mutex<Part>; PARTS],
    hasher: RandomState,
}

#[derive(Default)]
struct Part {
    accounts: HashMap<Subject, Account>,
    /// Uses until idle ones are looked for again.
    uses_left: usize,
}

/// What this gateway knows of a subject.
struct Account {
    /// Permits at hand, until `fresh_until`.
    permits: u32,
    fresh_until: Instant,
    /// Uses that went ahead, not yet in a question.
    owed: u32,
    /// Uses in the question under way.
    asked: u32,
    asking: bool,
    /// Uses since `counting_since`.
    used: u32,
    counting_since: Instant,
    refused_until: Instant,
    /// The last answer was that nothing is left.
    strained: bool,
    /// The last answer: from a limiter that lets nothing pass uncounted. Then nothing goes ahead.
    failed: Option<Error>,
    last_used: Instant,
}

impl Ahead {
    /// A limit; `None` is none.
    pub fn new(policy: Option<Policy>, limiter: Arc<dyn RateLimiter>) -> Self {
        Self::with_most(policy, limiter, MOST_ACCOUNTS)
    }

    fn with_most(policy: Option<Policy>, limiter: Arc<dyn RateLimiter>, most: usize) -> Self {
        Self(policy.map(|policy| {
            Arc::new(Inner {
                policy,
                limiter,
                most,
                parts: Default::default(),
                hasher: RandomState::new(),
            })
        }))
    }

    /// Takes one, without waiting. `RateLimited`, or the error of a limiter that lets nothing pass uncounted. Within a runtime.
    pub fn take(&self, subject: Subject) -> Result<()> {
        let Some(inner) = &self.0 else {
            return Ok(());
        };
        if let Some(grant) = inner.limiter.take_now(&inner.policy, subject, 1) {
            return match grant.granted {
                0 => Err(inner.refused(grant.retry_after)),
                _ => Ok(()),
            };
        }
        let passed = match inner.pass(subject)? {
            Pass::Yes => return Ok(()),
            Pass::Ahead => Ok(()),
            Pass::No(error) => Err(error),
        };
        let inner = inner.clone();
        tokio::spawn(async move { inner.ask(subject).await });
        passed
    }
}

/// What becomes of a use; but for [`Pass::Yes`] somebody has to ask now.
enum Pass {
    Yes,
    Ahead,
    No(Error),
}

impl Inner {
    fn refused(&self, retry_after: Duration) -> Error {
        refused(&self.policy, DETAIL, retry_after)
    }

    fn part(&self, subject: Subject) -> &Mutex<Part> {
        let hash = self.hasher.hash_one(subject);
        &self.parts[(hash % PARTS as u64) as usize]
    }

    /// Lets a use pass, or not.
    fn pass(&self, subject: Subject) -> Result<Pass> {
        let now = Instant::now();
        let mut part = self.part(subject).lock();
        part.forget_idle(now, self.policy.window);
        let is_full = part.accounts.len() >= self.most / PARTS;
        if is_full && !part.accounts.contains_key(&subject) {
            return Err(self.refused(SOON));
        }
        let account = part
            .accounts
            .entry(subject)
            .or_insert_with(|| Account::new(now));
        account.last_used = now;
        let left = account.refused_until.saturating_duration_since(now);
        if let Some(error) = account.failed.clone() {
            if !left.is_zero() || std::mem::replace(&mut account.asking, true) {
                return Err(error);
            }
            return Ok(Pass::No(error));
        }
        if !left.is_zero() {
            return Err(self.refused(left));
        }
        if account.permits > 0 && now < account.fresh_until {
            account.permits -= 1;
            account.count(now);
            return Ok(Pass::Yes);
        }
        let most = if account.strained {
            1
        } else {
            self.policy.limit.get()
        };
        if account.owed + account.asked >= most {
            return Err(self.refused(SOON));
        }
        account.owed += 1;
        account.count(now);
        Ok(match std::mem::replace(&mut account.asking, true) {
            true => Pass::Yes,
            false => Pass::Ahead,
        })
    }

    /// Asks until nothing is owed, or the limiter fails.
    async fn ask(&self, subject: Subject) {
        while let Some((wanted, owed)) = self.question(subject) {
            let answer = self.limiter.take(&self.policy, subject, wanted, owed).await;
            if !self.answered(subject, answer) {
                return;
            }
        }
    }

    /// What to ask: permits wanted, and uses to book. `None` when there is nothing; then nobody asks any more.
    fn question(&self, subject: Subject) -> Option<(u32, u32)> {
        let mut part = self.part(subject).lock();
        let account = part.accounts.get_mut(&subject)?;
        if account.owed == 0 && account.failed.is_none() {
            account.asking = false;
            return None;
        }
        account.asked = std::mem::take(&mut account.owed);
        let most = self.policy.limit.get() / PART_AT_HAND;
        // The uses that are booked are no sign of more to come. After a failure one was turned away.
        let wanted = account.used.saturating_sub(account.asked).min(most);
        Some((
            wanted.max(u32::from(account.failed.is_some())),
            account.asked,
        ))
    }

    /// Whether to go on.
    fn answered(&self, subject: Subject, answer: Result<Grant>) -> bool {
        let now = Instant::now();
        let mut part = self.part(subject).lock();
        let Some(account) = part.accounts.get_mut(&subject) else {
            return false;
        };
        let asked = std::mem::take(&mut account.asked);
        match answer {
            Ok(grant) => {
                // What went ahead meanwhile comes first.
                let covered = account.owed.min(grant.granted);
                account.owed -= covered;
                account.permits = grant.granted - covered;
                account.fresh_until = now + FRESH;
                account.failed = None;
                account.strained = grant.granted == 0 && grant.remaining == 0;
                account.refused_until = match account.strained {
                    true => now + grant.retry_after,
                    false => now,
                };
                true
            }
            Err(error) => {
                account.owed = account.owed.saturating_add(asked);
                account.refused_until = now + error.retry_after.unwrap_or(SOON);
                account.failed = Some(error);
                account.asking = false;
                false
            }
        }
    }
}

impl Account {
    fn new(now: Instant) -> Self {
        Self {
            permits: 0,
            fresh_until: now,
            owed: 0,
            asked: 0,
            asking: false,
            used: 0,
            counting_since: now,
            refused_until: now,
            strained: false,
            failed: None,
            last_used: now,
        }
    }

    fn count(&mut self, now: Instant) {
        if now.saturating_duration_since(self.counting_since) > FRESH {
            (self.counting_since, self.used) = (now, 0);
        }
        self.used = self.used.saturating_add(1);
    }
}

impl Part {
    /// Accounts without a use for two windows: the limit is there again, as long as nothing was overdrawn, and whoever overdrew it
    /// is refused until the store says otherwise.
    fn forget_idle(&mut self, now: Instant, window: Duration) {
        if self.uses_left > 0 {
            self.uses_left -= 1;
            return;
        }
        let idle = (window * 2).max(FRESH);
        self.accounts.retain(|_, account| {
            account.asking
                || account.refused_until > now
                || now.saturating_duration_since(account.last_used) < idle
        });
        self.uses_left = LOOK_EVERY.max(self.accounts.len());
        if self.accounts.capacity() > 4 * self.accounts.len().max(LOOK_EVERY) {
            self.accounts.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use carillon_domain::{ErrorCode, UserId, limit::Usage};
    use tokio::sync::{Semaphore, mpsc};

    use super::*;

    const LIMIT: u32 = 8;

    /// A store whose clock stands still, that answers when it is told to.
    struct Store {
        usage: Mutex<Usage>,
        answers: Semaphore,
        questions: mpsc::UnboundedSender<(u32, u32)>,
        fails: Mutex<bool>,
    }

    #[async_trait::async_trait]
    impl RateLimiter for Store {
        async fn take(&self, policy: &Policy, _: Subject, wanted: u32, owed: u32) -> Result<Grant> {
            let _ = self.questions.send((wanted, owed));
            self.answers.acquire().await.unwrap().forget();
            if *self.fails.lock() {
                return Err(Error::new(ErrorCode::Unavailable, "away").retry_after(Duration::ZERO));
            }
            Ok(self.usage.lock().take(policy, 0, wanted, owed))
        }

        fn take_now(&self, _: &Policy, _: Subject, _: u32) -> Option<Grant> {
            None
        }
    }

    struct Scene {
        store: Arc<Store>,
        questions: mpsc::UnboundedReceiver<(u32, u32)>,
        user: Subject,
    }

    impl Scene {
        fn new() -> Self {
            let (questions, asked) = mpsc::unbounded_channel();
            let store = Store {
                usage: Mutex::default(),
                answers: Semaphore::new(0),
                questions,
                fails: Mutex::new(false),
            };
            Self {
                store: Arc::new(store),
                questions: asked,
                user: Subject::User(UserId::new()),
            }
        }

        fn gateway(&self) -> Ahead {
            // Long: nothing comes back while a test looks at it.
            let window = Duration::from_secs(3600);
            let policy = Policy::new("test", Default::default(), LIMIT, window);
            Ahead::new(policy, self.store.clone())
        }

        /// What was asked, once it is.
        async fn asked(&mut self) -> (u32, u32) {
            self.questions.recv().await.unwrap()
        }

        /// Lets the store answer, and waits until the gateway knows.
        async fn answer(&self, gateway: &Ahead) {
            self.store.answers.add_permits(1);
            let inner = gateway.0.as_ref().unwrap();
            while inner.part(self.user).lock().accounts[&self.user].asked > 0 {
                tokio::task::yield_now().await;
            }
        }

        fn passed(&self, gateway: &Ahead, of: u32) -> u32 {
            (0..of)
                .map(|_| u32::from(gateway.take(self.user).is_ok()))
                .sum()
        }
    }

    /// RT-09: nobody waits for the store, and what passed meanwhile is bounded, booked, and missing afterwards.
    #[tokio::test]
    async fn uses_go_ahead_of_the_answer_and_are_booked() {
        let mut scene = Scene::new();
        let gateway = scene.gateway();
        assert_eq!(scene.passed(&gateway, 1), 1);
        assert_eq!(scene.asked().await, (0, 1));
        // The answer takes long: the limit is what may go ahead.
        assert_eq!(scene.passed(&gateway, 100), LIMIT - 1);
        scene.store.answers.add_permits(1);
        let (_, owed) = scene.asked().await;
        assert_eq!(owed, LIMIT - 1);
        scene.answer(&gateway).await;
        let error = gateway.take(scene.user).unwrap_err();
        assert_eq!(error.code, ErrorCode::RateLimited);
        assert!(error.retry_after.unwrap() > Duration::from_secs(60));
    }

    /// RT-09: two gateways let pass as much as one, and what went ahead of the store's answers.
    #[tokio::test]
    async fn gateways_share_a_limit() {
        let mut scene = Scene::new();
        let (one, two) = (scene.gateway(), scene.gateway());
        let mut passed = 0;
        for gateway in [&one, &two].into_iter().cycle().take(40) {
            // As a person who waits for each answer.
            passed += scene.passed(gateway, 1);
            tokio::task::yield_now().await;
            while scene.questions.try_recv().is_ok() {
                scene.answer(gateway).await;
            }
        }
        assert!(passed <= LIMIT + 2, "each may be ahead by one: {passed}");
        for gateway in [&one, &two] {
            assert_eq!(scene.passed(gateway, 10), 0);
        }
    }

    /// RT-09: whoever sends steadily has permits at hand, and the store is asked less often than there are uses.
    #[tokio::test]
    async fn steady_senders_cost_few_questions() {
        let mut scene = Scene::new();
        scene.store.answers.add_permits(1000);
        let window = Duration::from_secs(3600);
        let policy = Policy::new("test", Default::default(), 100_000, window);
        let gateway = Ahead::new(policy, scene.store.clone());
        const USES: u32 = 3000;
        for _ in 0..USES {
            gateway.take(scene.user).unwrap();
            tokio::task::yield_now().await;
        }
        let (mut questions, mut most) = (0, 0);
        while let Ok((wanted, owed)) = scene.questions.try_recv() {
            questions += 1;
            most = most.max(wanted);
            assert!(wanted + owed <= USES, "no more than was used");
        }
        assert!(most > 0 && questions < USES / 4, "{questions}, {most}");
    }

    /// RT-09: when nothing may pass uncounted, nothing goes ahead until the store answers again.
    #[tokio::test]
    async fn a_limiter_that_is_closed_lets_nothing_pass() {
        let mut scene = Scene::new();
        let gateway = scene.gateway();
        *scene.store.fails.lock() = true;
        assert_eq!(scene.passed(&gateway, 1), 1);
        scene.asked().await;
        scene.answer(&gateway).await;
        for _ in 0..3 {
            let error = gateway.take(scene.user).unwrap_err();
            assert_eq!(error.code, ErrorCode::Unavailable);
            // Somebody asks, for the use that is owed and the one that was turned away.
            let (wanted, owed) = scene.asked().await;
            assert_eq!((wanted.min(1), owed), (1, 1));
            scene.answer(&gateway).await;
        }
        *scene.store.fails.lock() = false;
        assert_eq!(scene.passed(&gateway, 1), 0);
        scene.asked().await;
        scene.answer(&gateway).await;
        assert_eq!(scene.passed(&gateway, 1), 1);
    }

    /// RT-09: whoever doesn't send any more is forgotten, unless a debt is to be paid.
    #[test]
    fn idle_accounts_are_forgotten() {
        let (began, second) = (Instant::now(), Duration::from_secs(1));
        let mut part = Part::default();
        let debtor = Subject::User(UserId::new());
        let mut account = Account::new(began);
        account.refused_until = began + second * 3_000;
        part.accounts.insert(debtor, account);
        for n in 0..4_000 {
            let now = began + second * n;
            part.forget_idle(now, second);
            let user = Subject::User(UserId::new());
            part.accounts.insert(user, Account::new(now));
            assert!(part.accounts.len() <= 2 * LOOK_EVERY);
            assert!(n >= 3_000 || part.accounts.contains_key(&debtor));
        }
        assert!(!part.accounts.contains_key(&debtor));
    }

    /// RT-09: strangers can't grow the accounts without end.
    #[tokio::test]
    async fn accounts_are_bounded() {
        let scene = Scene::new();
        scene.store.answers.add_permits(10_000);
        let policy = Policy::new("test", Default::default(), LIMIT, Duration::from_secs(3600));
        let gateway = Ahead::with_most(policy, scene.store.clone(), 2 * PARTS);
        let passed = (0..1000).filter(|_| gateway.take(Subject::User(UserId::new())).is_ok());
        assert!(passed.count() <= 2 * PARTS);
        assert!(
            Ahead::new(None, scene.store.clone())
                .take(scene.user)
                .is_ok()
        );
    }
}
