//! What [`SessionStore`] promises.

use std::{sync::Arc, time::Duration};

use carillon_domain::{
    Clock, DeviceId, Timestamp, UserId,
    account::{ClientInfo, DeviceType, Session},
    ports::{Rotation, SessionStore},
    time::SystemClock,
};
use uuid::Uuid;

/// How long an end may take to show. Waiting ends as soon as it did.
const PATIENCE: Duration = Duration::from_secs(20);

/// Every clause.
pub async fn all(store: Arc<dyn SessionStore>) {
    a_session_is_read_back(&*store).await;
    a_device_has_one_session(&*store).await;
    sessions_of_others_are_apart(&*store).await;
    a_removed_session_is_gone(&*store).await;
    sessions_are_listed_newest_login_first(&*store).await;
    a_session_ends(&*store).await;
    an_ended_session_is_not_stored(&*store).await;
    a_session_outlives_one_that_ended(&*store).await;
    the_right_hash_rotates(&*store).await;
    an_old_hash_is_reuse(&*store).await;
    an_unknown_session_does_not_rotate(&*store).await;
    one_of_concurrent_rotations_wins(store.clone()).await;
    a_revoked_token_is_refused_until_its_end(&*store).await;
}

fn session(user: UserId, device: DeviceId, hash: u8) -> Session {
    let now = SystemClock.now();
    Session {
        user,
        device,
        refresh_hash: [hash; 32],
        access_token_id: Uuid::now_v7(),
        access_expires_at: now.plus(Duration::from_secs(900)),
        expires_at: now.plus(Duration::from_secs(3600)),
        created_at: now,
        last_seen_at: now,
        client: ClientInfo {
            device_name: Some("Zoë's phone 📱".into()),
            user_agent: Some("agent/1.0 \"quoted\"".into()),
            ip: Some("2001:db8::1".into()),
            device_type: Some(DeviceType::Phone),
            platform: Some("Zoë OS 1".into()),
        },
    }
}

fn fresh(hash: u8) -> Session {
    session(UserId::new(), DeviceId::new(), hash)
}

/// Looks again and again until it is so.
async fn eventually<F: Future<Output = bool>>(what: &str, mut so: impl FnMut() -> F) {
    let wait = async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "{what}");
}

/// AUTH-05, AUTH-08: a session comes back as it was stored.
pub async fn a_session_is_read_back(store: &dyn SessionStore) {
    let stored = fresh(1);
    store.put(&stored).await.unwrap();
    let read = store.get(stored.user, stored.device).await.unwrap();
    assert_eq!(read, Some(stored.clone()));
    let mut bare = fresh(255);
    bare.client = ClientInfo::default();
    store.put(&bare).await.unwrap();
    assert_eq!(store.get(bare.user, bare.device).await.unwrap(), Some(bare));
}

/// AUTH-08: a new login of a device replaces its session.
pub async fn a_device_has_one_session(store: &dyn SessionStore) {
    let first = fresh(1);
    let second = session(first.user, first.device, 2);
    store.put(&first).await.unwrap();
    store.put(&second).await.unwrap();
    let read = store.get(first.user, first.device).await.unwrap();
    assert_eq!(read, Some(second.clone()));
    assert_eq!(store.list(first.user).await.unwrap(), [second]);
}

/// AUTH-08: neither another device nor another person has it.
pub async fn sessions_of_others_are_apart(store: &dyn SessionStore) {
    let one = fresh(1);
    store.put(&one).await.unwrap();
    assert_eq!(store.get(one.user, DeviceId::new()).await.unwrap(), None);
    assert_eq!(store.get(UserId::new(), one.device).await.unwrap(), None);
    assert_eq!(store.list(UserId::new()).await.unwrap(), []);
    // One device id may be used by two people: both sessions stand.
    let other = session(UserId::new(), one.device, 2);
    store.put(&other).await.unwrap();
    assert_eq!(store.get(one.user, one.device).await.unwrap(), Some(one));
    assert_eq!(
        store.get(other.user, other.device).await.unwrap(),
        Some(other)
    );
}

/// AUTH-06: a removed session is answered once and gone.
pub async fn a_removed_session_is_gone(store: &dyn SessionStore) {
    let (kept, removed) = (fresh(1), fresh(2));
    let removed = session(kept.user, removed.device, 2);
    store.put(&kept).await.unwrap();
    store.put(&removed).await.unwrap();
    let answer = store.remove(removed.user, removed.device).await.unwrap();
    assert_eq!(answer, Some(removed.clone()), "what it was");
    assert_eq!(store.get(removed.user, removed.device).await.unwrap(), None);
    let answer = store.remove(removed.user, removed.device).await.unwrap();
    assert_eq!(answer, None, "there is none any more");
    assert_eq!(store.list(kept.user).await.unwrap(), [kept]);
}

/// AUTH-08: the list is complete, and the newest login comes first.
pub async fn sessions_are_listed_newest_login_first(store: &dyn SessionStore) {
    let user = UserId::new();
    let mut expected = Vec::new();
    for (n, age) in [30u64, 10, 50, 20, 40].into_iter().enumerate() {
        let mut session = session(user, DeviceId::new(), n as u8);
        session.created_at = Timestamp(session.created_at.0 - age as i64 * 1000);
        store.put(&session).await.unwrap();
        expected.push((age, session));
    }
    expected.sort_by_key(|(age, _)| *age);
    let expected: Vec<Session> = expected.into_iter().map(|(_, session)| session).collect();
    assert_eq!(store.list(user).await.unwrap(), expected);
}

/// AUTH-04: a session ends with its refresh token, for every operation.
pub async fn a_session_ends(store: &dyn SessionStore) {
    let mut short = fresh(1);
    short.expires_at = SystemClock.now().plus(Duration::from_millis(400));
    store.put(&short).await.unwrap();
    let (user, device) = (short.user, short.device);
    eventually("the session ends", || async {
        store.get(user, device).await.unwrap().is_none()
    })
    .await;
    assert!(SystemClock.now() >= short.expires_at, "not before its time");
    assert_eq!(store.list(user).await.unwrap(), []);
    let rotation = store.rotate(&[1; 32], &session(user, device, 2)).await;
    assert_eq!(rotation.unwrap(), Rotation::Unknown);
    assert_eq!(store.remove(user, device).await.unwrap(), None);
}

/// AUTH-04: what has ended already is not there.
pub async fn an_ended_session_is_not_stored(store: &dyn SessionStore) {
    let mut ended = fresh(1);
    ended.expires_at = Timestamp(SystemClock.now().0 - 1000);
    store.put(&ended).await.unwrap();
    assert_eq!(store.get(ended.user, ended.device).await.unwrap(), None);
    assert_eq!(store.list(ended.user).await.unwrap(), []);
}

/// AUTH-04: each session has an end of its own, whichever was stored last.
pub async fn a_session_outlives_one_that_ended(store: &dyn SessionStore) {
    let long = fresh(1);
    let mut short = session(long.user, DeviceId::new(), 2);
    short.expires_at = SystemClock.now().plus(Duration::from_millis(200));
    store.put(&long).await.unwrap();
    store.put(&short).await.unwrap();
    eventually("the short session ends", || async {
        store.get(short.user, short.device).await.unwrap().is_none()
    })
    .await;
    assert_eq!(
        store.get(long.user, long.device).await.unwrap(),
        Some(long.clone())
    );
    assert_eq!(store.list(long.user).await.unwrap(), [long]);
}

/// AUTH-05: the token that is valid now is replaced by the next one, with all that was said anew.
pub async fn the_right_hash_rotates(store: &dyn SessionStore) {
    let first = fresh(1);
    store.put(&first).await.unwrap();
    let mut current = 1;
    for hash in [2, 3, 4] {
        let mut next = session(first.user, first.device, hash);
        next.client.ip = Some(format!("192.0.2.{hash}"));
        let rotation = store.rotate(&[current; 32], &next).await.unwrap();
        assert_eq!(rotation, Rotation::Rotated);
        assert_eq!(
            store.get(first.user, first.device).await.unwrap(),
            Some(next)
        );
        current = hash;
    }
}

/// AUTH-05: a token that was replaced is recognised, and changes nothing.
pub async fn an_old_hash_is_reuse(store: &dyn SessionStore) {
    let first = fresh(1);
    store.put(&first).await.unwrap();
    let second = session(first.user, first.device, 2);
    store.rotate(&[1; 32], &second).await.unwrap();
    for old in [1, 9] {
        let rotation = store
            .rotate(&[old; 32], &session(first.user, first.device, 3))
            .await;
        assert_eq!(rotation.unwrap(), Rotation::Reused);
    }
    assert_eq!(
        store.get(first.user, first.device).await.unwrap(),
        Some(second)
    );
}

/// AUTH-05: without a session nothing is rotated, and none comes to be.
pub async fn an_unknown_session_does_not_rotate(store: &dyn SessionStore) {
    let next = fresh(2);
    assert_eq!(
        store.rotate(&[1; 32], &next).await.unwrap(),
        Rotation::Unknown
    );
    assert_eq!(store.get(next.user, next.device).await.unwrap(), None);
    store.put(&next).await.unwrap();
    store.remove(next.user, next.device).await.unwrap();
    let again = session(next.user, next.device, 3);
    assert_eq!(
        store.rotate(&[2; 32], &again).await.unwrap(),
        Rotation::Unknown
    );
}

/// AUTH-05: of concurrent uses of one refresh token, one gets new tokens.
pub async fn one_of_concurrent_rotations_wins(store: Arc<dyn SessionStore>) {
    for _ in 0..5 {
        let first = fresh(1);
        store.put(&first).await.unwrap();
        let tasks: Vec<_> = (2..10u8)
            .map(|hash| {
                let (store, next) = (store.clone(), session(first.user, first.device, hash));
                tokio::spawn(async move { (hash, store.rotate(&[1; 32], &next).await.unwrap()) })
            })
            .collect();
        let mut winners = Vec::new();
        for task in tasks {
            match task.await.unwrap() {
                (hash, Rotation::Rotated) => winners.push(hash),
                (_, rotation) => assert_eq!(rotation, Rotation::Reused),
            }
        }
        assert_eq!(winners.len(), 1, "exactly one rotates");
        let stored = store.get(first.user, first.device).await.unwrap().unwrap();
        assert_eq!(
            stored.refresh_hash, [winners[0]; 32],
            "and its hash is stored"
        );
    }
}

/// AUTH-07: a revoked access token is refused, no other is, and it is forgotten after its own end.
pub async fn a_revoked_token_is_refused_until_its_end(store: &dyn SessionStore) {
    let (revoked, other, short) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
    let now = SystemClock.now();
    assert!(!store.is_revoked(revoked).await.unwrap());
    store
        .revoke_token(revoked, now.plus(Duration::from_secs(600)))
        .await
        .unwrap();
    store
        .revoke_token(revoked, now.plus(Duration::from_secs(600)))
        .await
        .unwrap();
    store
        .revoke_token(short, now.plus(Duration::from_millis(150)))
        .await
        .unwrap();
    store
        .revoke_token(Uuid::now_v7(), Timestamp(now.0 - 1000))
        .await
        .unwrap();
    assert!(store.is_revoked(revoked).await.unwrap());
    assert!(!store.is_revoked(other).await.unwrap());
    eventually("a revocation ends with its token", || async {
        !store.is_revoked(short).await.unwrap()
    })
    .await;
    assert!(
        store.is_revoked(revoked).await.unwrap(),
        "the other one stays"
    );
}
