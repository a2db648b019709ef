//! What [`Ephemeral`] promises.

use std::{sync::Arc, time::Duration};

use carillon_domain::{RoomId, ports::Ephemeral};

/// Long enough that nothing ends while a test looks at it.
const LONG: Duration = Duration::from_secs(600);
/// Short enough to wait for.
const SHORT: Duration = Duration::from_millis(300);
/// How long an end may take to show. Waiting ends as soon as it did.
const PATIENCE: Duration = Duration::from_secs(20);

/// Every clause.
pub async fn all(store: Arc<dyn Ephemeral>) {
    a_value_is_read_back(&*store).await;
    a_value_is_replaced_with_its_end(&*store).await;
    a_value_ends(&*store).await;
    a_value_is_taken_once(&*store).await;
    one_of_concurrent_takers_gets_it(store.clone()).await;
    counts_go_up_by_one(&*store).await;
    concurrent_counts_are_all_different(store.clone()).await;
    a_count_ends_after_its_first_increment(&*store).await;
    a_count_is_taken_back(&*store).await;
    a_count_that_was_taken_back_still_ends(&*store).await;
    the_first_claims(&*store).await;
    one_of_concurrent_claimers_wins(store.clone()).await;
    a_claim_ends(&*store).await;
    what_is_removed_is_gone(&*store).await;
    the_largest_keys_and_values_fit(&*store).await;
}

fn key(what: &str) -> String {
    format!("{what}:{}", RoomId::new())
}

async fn eventually<F: Future<Output = bool>>(what: &str, mut so: impl FnMut() -> F) {
    let wait = async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "{what}");
}

/// AUTH-03: any bytes come back, none too; what was never stored isn't there.
pub async fn a_value_is_read_back(store: &dyn Ephemeral) {
    for value in [&b"123456"[..], b"", &[0, 255, 13, 10, 195]] {
        let key = key("value");
        assert_eq!(store.get(&key).await.unwrap(), None);
        store.put(&key, value, LONG).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap().as_deref(), Some(value));
    }
}

/// AUTH-03: a new value comes with a new end.
pub async fn a_value_is_replaced_with_its_end(store: &dyn Ephemeral) {
    let (longer, shorter) = (key("longer"), key("shorter"));
    store.put(&longer, b"first", SHORT).await.unwrap();
    store.put(&longer, b"second", LONG).await.unwrap();
    store.put(&shorter, b"first", LONG).await.unwrap();
    store.put(&shorter, b"second", SHORT).await.unwrap();
    eventually("the shorter end counts", || async {
        store.get(&shorter).await.unwrap().is_none()
    })
    .await;
    assert_eq!(
        store.get(&longer).await.unwrap().as_deref(),
        Some(&b"second"[..])
    );
}

/// AUTH-03: a value ends, and not at once.
pub async fn a_value_ends(store: &dyn Ephemeral) {
    let key = key("ends");
    let began = std::time::Instant::now();
    store.put(&key, b"x", SHORT).await.unwrap();
    eventually("the value ends", || async {
        store.get(&key).await.unwrap().is_none()
    })
    .await;
    // Clocks of milliseconds may cut one.
    assert!(
        began.elapsed() + Duration::from_millis(5) >= SHORT,
        "not before its time"
    );
    assert_eq!(store.take(&key).await.unwrap(), None);
}

/// AUTH-03: a code is used once.
pub async fn a_value_is_taken_once(store: &dyn Ephemeral) {
    let key = key("taken");
    store.put(&key, b"code", LONG).await.unwrap();
    assert_eq!(
        store.take(&key).await.unwrap().as_deref(),
        Some(&b"code"[..])
    );
    assert_eq!(store.take(&key).await.unwrap(), None);
    assert_eq!(store.get(&key).await.unwrap(), None);
}

/// AUTH-03: also when it is presented twice at once.
pub async fn one_of_concurrent_takers_gets_it(store: Arc<dyn Ephemeral>) {
    let key = key("race");
    store.put(&key, b"code", LONG).await.unwrap();
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let (store, key) = (store.clone(), key.clone());
            tokio::spawn(async move { store.take(&key).await.unwrap() })
        })
        .collect();
    let mut taken = 0;
    for task in tasks {
        taken += usize::from(task.await.unwrap().is_some());
    }
    assert_eq!(taken, 1, "exactly one takes it");
}

/// AUTH-12: limits are counted exactly.
pub async fn counts_go_up_by_one(store: &dyn Ephemeral) {
    let (one, other) = (key("count"), key("count"));
    for expected in 1..=5 {
        assert_eq!(store.increment(&one, LONG).await.unwrap(), expected);
    }
    assert_eq!(store.increment(&other, LONG).await.unwrap(), 1);
}

/// AUTH-12: no increment is lost.
pub async fn concurrent_counts_are_all_different(store: Arc<dyn Ephemeral>) {
    let key = key("count");
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let (store, key) = (store.clone(), key.clone());
            tokio::spawn(async move { store.increment(&key, LONG).await.unwrap() })
        })
        .collect();
    let mut counts = Vec::new();
    for task in tasks {
        counts.push(task.await.unwrap());
    }
    counts.sort_unstable();
    assert_eq!(counts, (1..=50).collect::<Vec<u64>>());
}

/// AUTH-12: the window begins with the first increment; later ones don't make it longer.
pub async fn a_count_ends_after_its_first_increment(store: &dyn Ephemeral) {
    let key = key("window");
    let began = std::time::Instant::now();
    assert_eq!(store.increment(&key, SHORT).await.unwrap(), 1);
    // Counting without a pause would keep a count alive for ever if an increment made it longer.
    let mut last = 1;
    let wait = async {
        loop {
            let count = store.increment(&key, SHORT).await.unwrap();
            if count == 1 {
                break;
            }
            assert_eq!(count, last + 1);
            last = count;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let ended = tokio::time::timeout(PATIENCE, wait).await;
    assert!(ended.is_ok(), "the count begins again");
    assert!(
        began.elapsed() + Duration::from_millis(5) >= SHORT,
        "not before the window is over"
    );
}

/// AUTH-12: what turned out not to count is taken back, never below nothing.
pub async fn a_count_is_taken_back(store: &dyn Ephemeral) {
    let (one, absent) = (key("count"), key("count"));
    for expected in 1..=3 {
        assert_eq!(store.increment(&one, LONG).await.unwrap(), expected);
    }
    store.decrement(&one).await.unwrap();
    assert_eq!(store.increment(&one, LONG).await.unwrap(), 3);
    for _ in 0..5 {
        store.decrement(&one).await.unwrap();
        store.decrement(&absent).await.unwrap();
    }
    assert_eq!(store.increment(&one, LONG).await.unwrap(), 1);
    assert_eq!(store.increment(&absent, LONG).await.unwrap(), 1);
}

/// AUTH-12: taking back doesn't make a count longer, nor one that never ends.
pub async fn a_count_that_was_taken_back_still_ends(store: &dyn Ephemeral) {
    let key = key("window");
    assert_eq!(store.increment(&key, SHORT).await.unwrap(), 1);
    store.decrement(&key).await.unwrap();
    for expected in 1..=3 {
        let count = store.increment(&key, SHORT).await.unwrap();
        // It may end in between.
        assert!(count <= expected, "{count}");
    }
    eventually("the count begins again", || async {
        let count = store.increment(&key, SHORT).await.unwrap();
        store.decrement(&key).await.unwrap();
        count == 1
    })
    .await;
}

/// NOTIF-02: of several callers one claims, until it is given back.
pub async fn the_first_claims(store: &dyn Ephemeral) {
    let key = key("claim");
    assert!(store.claim(&key, LONG).await.unwrap());
    assert!(!store.claim(&key, LONG).await.unwrap());
    store.remove(&key).await.unwrap();
    assert!(store.claim(&key, LONG).await.unwrap());
}

/// NOTIF-02: also at once.
pub async fn one_of_concurrent_claimers_wins(store: Arc<dyn Ephemeral>) {
    let key = key("claim");
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let (store, key) = (store.clone(), key.clone());
            tokio::spawn(async move { store.claim(&key, LONG).await.unwrap() })
        })
        .collect();
    let mut claims = 0;
    for task in tasks {
        claims += usize::from(task.await.unwrap());
    }
    assert_eq!(claims, 1, "exactly one claims");
}

/// NOTIF-02: a claim that nobody gives back ends; a failed one doesn't make it longer.
pub async fn a_claim_ends(store: &dyn Ephemeral) {
    let key = key("claim");
    assert!(store.claim(&key, SHORT).await.unwrap());
    assert!(!store.claim(&key, LONG).await.unwrap());
    eventually("the claim ends", || async {
        store.claim(&key, LONG).await.unwrap()
    })
    .await;
}

/// AUTH-12: removing is for values, counts and claims, and for what isn't there.
pub async fn what_is_removed_is_gone(store: &dyn Ephemeral) {
    let (value, count, absent) = (key("value"), key("count"), key("absent"));
    store.put(&value, b"x", LONG).await.unwrap();
    store.increment(&count, LONG).await.unwrap();
    store.increment(&count, LONG).await.unwrap();
    for key in [&value, &count, &absent] {
        store.remove(key).await.unwrap();
    }
    assert_eq!(store.get(&value).await.unwrap(), None);
    assert_eq!(store.increment(&count, LONG).await.unwrap(), 1);
}

/// The bounds that the port names are usable.
pub async fn the_largest_keys_and_values_fit(store: &dyn Ephemeral) {
    let key = format!("{:x<256}", key("large"));
    let value = vec![7; 4096];
    store.put(&key, &value, LONG).await.unwrap();
    assert_eq!(store.get(&key).await.unwrap(), Some(value));
}
