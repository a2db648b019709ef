//! [`PersonKeys`] (AUTH-15).

use std::sync::Arc;

use carillon_domain::{
    Timestamp, UserId,
    ports::{ErasurePart, KeyState, PersonKey, PersonKeys},
};

/// Every clause.
pub async fn all(store: Arc<dyn PersonKeys>) {
    a_key_is_given_once(&*store).await;
    concurrent_callers_get_one_key(store.clone()).await;
    a_destroyed_key_never_comes_back(&*store).await;
    each_part_erases_for_itself(&*store).await;
    every_key_is_listed(&*store).await;
}

fn key(byte: u8) -> PersonKey {
    PersonKey([byte; 32])
}

async fn state(store: &dyn PersonKeys, user: UserId) -> Option<KeyState> {
    let found = store.of(&[user, UserId::new()]).await.unwrap();
    assert!(found.iter().all(|(other, _)| *other == user));
    found.into_iter().next().map(|(_, state)| state)
}

/// The first stays.
pub async fn a_key_is_given_once(store: &dyn PersonKeys) {
    let ann = UserId::new();
    assert_eq!(state(store, ann).await, None);
    for offered in [key(1), key(2)] {
        let stands = store.put_if_absent(ann, &offered).await.unwrap();
        assert_eq!(stands, KeyState::Held(key(1)));
    }
    assert_eq!(state(store, ann).await, Some(KeyState::Held(key(1))));
}

/// What two processes seal at the same moment is opened by both.
pub async fn concurrent_callers_get_one_key(store: Arc<dyn PersonKeys>) {
    let ann = UserId::new();
    let calls = (0..8).map(|byte| {
        let store = store.clone();
        tokio::spawn(async move { store.put_if_absent(ann, &key(byte)).await.unwrap() })
    });
    let stands: Vec<KeyState> = futures::future::join_all(calls)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let now = state(&*store, ann).await.unwrap();
    assert!(stands.iter().all(|each| *each == now));
}

/// Neither the key nor another one, whoever asks.
pub async fn a_destroyed_key_never_comes_back(store: &dyn PersonKeys) {
    let (ann, bob) = (UserId::new(), UserId::new());
    store.put_if_absent(ann, &key(1)).await.unwrap();
    for user in [ann, bob] {
        let gone = KeyState::Destroyed(Timestamp(1_700_000_000_000));
        for at in [1_700_000_000_000, 1_800_000_000_000] {
            store.destroy(user, Timestamp(at)).await.unwrap();
            assert_eq!(state(store, user).await.as_ref(), Some(&gone));
        }
        let offered = store.put_if_absent(user, &key(3)).await.unwrap();
        assert_eq!(offered, gone);
    }
}

/// Whoever is told of last is told of by all.
pub async fn each_part_erases_for_itself(store: &dyn PersonKeys) {
    let (ann, bob) = (UserId::new(), UserId::new());
    let at = Timestamp(1_700_000_000_000);
    for user in [ann, bob, ann] {
        store.begin_erasing(user, at).await.unwrap();
    }
    store.erased(ErasurePart::Rooms, ann).await.unwrap();
    store.erased(ErasurePart::Rooms, ann).await.unwrap();
    for part in ErasurePart::ALL {
        let waiting = store.erasing(part, 1_000).await.unwrap();
        assert_eq!(waiting.contains(&ann), part != ErasurePart::Rooms);
        assert!(waiting.contains(&bob));
        assert_eq!(store.erasing(part, 1).await.unwrap().len(), 1);
    }
}

/// Page by page.
pub async fn every_key_is_listed(store: &dyn PersonKeys) {
    let mut expected = Vec::new();
    for byte in 0..5 {
        let user = UserId::new();
        expected.push((user, store.put_if_absent(user, &key(byte)).await.unwrap()));
    }
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = store.all(after, 2).await.unwrap();
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        found.extend(page);
    }
    for entry in expected {
        assert_eq!(found.iter().filter(|each| **each == entry).count(), 1);
    }
}
