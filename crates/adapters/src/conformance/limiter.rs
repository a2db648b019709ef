//! What [`RateLimiter`] promises.

use std::{sync::Arc, time::Duration};

use carillon_domain::{
    UserId,
    limit::{Algorithm, Policy, Subject},
    ports::RateLimiter,
};

/// Long enough that nothing comes back while a test looks at it.
const LONG: Duration = Duration::from_secs(24 * 3600);
/// Short enough to wait for.
const SHORT: Duration = Duration::from_millis(300);
/// How long it may take to show that something came back. Waiting ends as soon as it did.
const PATIENCE: Duration = Duration::from_secs(20);

/// Every clause, for every algorithm.
pub async fn all(limiter: Arc<dyn RateLimiter>) {
    for algorithm in Algorithm::ALL {
        as_many_as_the_limit(&*limiter, algorithm).await;
        who_wants_more_gets_what_is_there(&*limiter, algorithm).await;
        subjects_and_policies_are_counted_apart(&*limiter, algorithm).await;
        what_is_owed_is_booked(&*limiter, algorithm).await;
        debts_are_bounded(&*limiter, algorithm).await;
        concurrent_takers_share_the_limit(limiter.clone(), algorithm).await;
        it_comes_back(&*limiter, algorithm).await;
        large_limits_are_exact(&*limiter, algorithm).await;
    }
    what_is_at_hand_counts(&*limiter).await;
}

fn policy(algorithm: Algorithm, limit: u32, window: Duration) -> Policy {
    Policy::new("conformance", algorithm, limit, window).expect("a limit above zero")
}

fn somebody() -> Subject {
    Subject::User(UserId::new())
}

/// EDGE-03: each take counts; the one after the last is refused with the time to wait.
pub async fn as_many_as_the_limit(limiter: &dyn RateLimiter, algorithm: Algorithm) {
    let (policy, user) = (policy(algorithm, 3, LONG), somebody());
    for left in [2, 1, 0] {
        let grant = limiter.take(&policy, user, 1, 0).await.unwrap();
        let told = (grant.granted, grant.limit, grant.remaining);
        assert_eq!(told, (1, 3, left), "{algorithm:?}");
        assert_eq!(grant.retry_after.is_zero(), left > 0, "{algorithm:?}");
        assert!(!grant.reset.is_zero() && grant.reset <= 2 * LONG);
    }
    for _ in 0..3 {
        let grant = limiter.take(&policy, user, 1, 0).await.unwrap();
        assert_eq!((grant.granted, grant.remaining), (0, 0), "{algorithm:?}");
        assert!(
            !grant.retry_after.is_zero() && grant.retry_after <= grant.reset,
            "{algorithm:?}: {grant:?}"
        );
    }
}

/// RT-09: several at once, as far as there are any.
pub async fn who_wants_more_gets_what_is_there(limiter: &dyn RateLimiter, algorithm: Algorithm) {
    let (policy, user) = (policy(algorithm, 5, LONG), somebody());
    let mut granted = Vec::new();
    for wanted in [0, 3, 7, 1] {
        granted.push(
            limiter
                .take(&policy, user, wanted, 0)
                .await
                .unwrap()
                .granted,
        );
    }
    assert_eq!(granted, [0, 3, 2, 0], "{algorithm:?}");
}

/// EDGE-03: nobody pays for another one, nor for another limit; an IPv6 network is one client.
pub async fn subjects_and_policies_are_counted_apart(
    limiter: &dyn RateLimiter,
    algorithm: Algorithm,
) {
    let one = policy(algorithm, 1, LONG);
    let other = Policy {
        name: "conformance2",
        ..one
    };
    let random = u128::from_be_bytes(*UserId::new().0.as_bytes());
    let at = |bits: u128| Subject::at(std::net::IpAddr::from((random ^ bits).to_be_bytes()));
    let (first, neighbour, elsewhere) = (at(0), at(1), at(1 << 64));
    for (policy, subject, granted) in [
        (&one, first, 1),
        (&one, neighbour, 0),
        (&other, first, 1),
        (&one, elsewhere, 1),
        (&one, somebody(), 1),
        (&one, somebody(), 1),
        (&one, first, 0),
    ] {
        let grant = limiter.take(policy, subject, 1, 0).await.unwrap();
        assert_eq!(
            grant.granted, granted,
            "{algorithm:?}: {} {subject:?}",
            policy.name
        );
    }
}

/// RT-09: what went ahead of the answer is booked in any case, before anything is granted.
pub async fn what_is_owed_is_booked(limiter: &dyn RateLimiter, algorithm: Algorithm) {
    let (policy, user) = (policy(algorithm, 4, LONG), somebody());
    let grant = limiter.take(&policy, user, 3, 2).await.unwrap();
    assert_eq!((grant.granted, grant.remaining), (2, 0), "{algorithm:?}");
    let owing = limiter.take(&policy, user, 1, 4).await.unwrap();
    assert_eq!((owing.granted, owing.remaining), (0, 0), "{algorithm:?}");
    if algorithm == Algorithm::TokenBucket {
        // Four permits must come back before the next one.
        let difference = owing.retry_after.saturating_sub(grant.retry_after);
        assert!(
            difference > LONG * 3 / 4,
            "{difference:?} longer than before"
        );
    }
}

/// EDGE-03: nobody is shut out for ever.
pub async fn debts_are_bounded(limiter: &dyn RateLimiter, algorithm: Algorithm) {
    let (policy, user) = (policy(algorithm, 2, LONG), somebody());
    for _ in 0..3 {
        let grant = limiter.take(&policy, user, 0, u32::MAX).await.unwrap();
        let most = LONG * carillon_domain::limit::MOST_OVERDRAWN;
        assert!(grant.reset <= most, "{algorithm:?}: {grant:?}");
    }
}

/// EDGE-03: of takers at once no more get one than there are.
pub async fn concurrent_takers_share_the_limit(
    limiter: Arc<dyn RateLimiter>,
    algorithm: Algorithm,
) {
    let (policy, user) = (policy(algorithm, 20, LONG), somebody());
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let limiter = limiter.clone();
            tokio::spawn(async move { limiter.take(&policy, user, 1, 0).await.unwrap().granted })
        })
        .collect();
    let mut granted = 0;
    for task in tasks {
        granted += task.await.unwrap();
    }
    assert_eq!(granted, 20, "{algorithm:?}");
}

/// EDGE-03: who waited as long as was said is let in, and then everything is there again, as large as before.
pub async fn it_comes_back(limiter: &dyn RateLimiter, algorithm: Algorithm) {
    let (policy, user) = (policy(algorithm, 3, SHORT), somebody());
    let comes_back = async {
        // On a slow machine some of it is back before the last one is taken.
        let refused = loop {
            let grant = limiter.take(&policy, user, 1, 0).await.unwrap();
            if grant.granted == 0 {
                break grant;
            }
        };
        // Clocks of milliseconds may cut one.
        tokio::time::sleep(refused.retry_after + Duration::from_millis(2)).await;
        let grant = limiter.take(&policy, user, 1, 0).await.unwrap();
        assert_eq!(grant.granted, 1, "{algorithm:?}: {refused:?}, {grant:?}");
        loop {
            let grant = limiter.take(&policy, user, 0, 0).await.unwrap();
            assert!(grant.remaining <= 3);
            if grant.remaining == 3 {
                assert!(grant.reset <= 2 * SHORT);
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let ended = tokio::time::timeout(PATIENCE, comes_back).await;
    assert!(ended.is_ok(), "{algorithm:?}: it comes back");
}

/// EDGE-03: numbers aren't rounded away.
pub async fn large_limits_are_exact(limiter: &dyn RateLimiter, algorithm: Algorithm) {
    let (policy, user) = (policy(algorithm, u32::MAX, 365 * LONG), somebody());
    let grant = limiter.take(&policy, user, u32::MAX - 3, 0).await.unwrap();
    assert_eq!(grant.granted, u32::MAX - 3, "{algorithm:?}");
    let one = limiter.take(&policy, user, 1, 0).await.unwrap();
    assert_eq!(one.granted, 1, "{algorithm:?}");
}

/// RT-09: an answer that is at hand counts like any other; one that isn't counts nothing.
pub async fn what_is_at_hand_counts(limiter: &dyn RateLimiter) {
    let (policy, user) = (policy(Algorithm::default(), 2, LONG), somebody());
    let at_hand = limiter.take_now(&policy, user, 1);
    let grant = limiter.take(&policy, user, 2, 0).await.unwrap();
    match at_hand {
        Some(first) => assert_eq!((first.granted, first.remaining, grant.granted), (1, 1, 1)),
        None => assert_eq!(grant.granted, 2),
    }
}
