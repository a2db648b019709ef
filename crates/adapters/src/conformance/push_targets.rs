//! [`PushTargetStore`] (NOTIF-03).

use std::sync::Arc;

use carillon_domain::{
    DeviceId, UserId,
    ports::PushTargetStore,
    push::{PushProvider, PushTarget},
};

/// Every clause.
pub async fn all(store: Arc<dyn PushTargetStore>) {
    targets_are_found_by_user(&*store).await;
    a_device_has_one_target(&*store).await;
    a_removed_target_is_gone(&*store).await;
    two_hundred_users_are_read_at_once(&*store).await;
}

fn target(user: UserId, provider: PushProvider) -> PushTarget {
    let web = provider == PushProvider::WebPush;
    PushTarget {
        user,
        device: DeviceId::new(),
        provider,
        token: format!("token-{}", DeviceId::new()),
        p256dh: web.then(|| "BNcRdreALRFXTkOOUHK1EtK2wtaz5Ry4YfYCA".into()),
        auth: web.then(|| "tBHItJI5svbpez7KI4CCXg".into()),
    }
}

async fn of_user(store: &dyn PushTargetStore, user: UserId) -> Vec<PushTarget> {
    store.of_users(&[user]).await.unwrap()
}

/// NOTIF-03: every device of every user asked for, and of nobody else.
pub async fn targets_are_found_by_user(store: &dyn PushTargetStore) {
    let (ann, bob, zoe) = (UserId::new(), UserId::new(), UserId::new());
    let mut expected = vec![
        target(ann, PushProvider::Fcm),
        target(ann, PushProvider::WebPush),
        target(bob, PushProvider::Apns),
    ];
    for target in &expected {
        store.put(target).await.unwrap();
    }
    store.put(&target(zoe, PushProvider::Fcm)).await.unwrap();
    let mut found = store.of_users(&[ann, bob, UserId::new()]).await.unwrap();
    found.sort_by_key(|target| target.device);
    expected.sort_by_key(|target| target.device);
    assert!(found == expected, "the targets of the users asked for");
    assert!(store.of_users(&[]).await.unwrap().is_empty());
}

/// NOTIF-03: a device that registers again has its new target only.
pub async fn a_device_has_one_target(store: &dyn PushTargetStore) {
    let user = UserId::new();
    let first = target(user, PushProvider::WebPush);
    store.put(&first).await.unwrap();
    let mut second = target(user, PushProvider::Fcm);
    second.device = first.device;
    store.put(&second).await.unwrap();
    assert!(
        of_user(store, user).await == [second],
        "the later target replaces the earlier one as a whole"
    );
}

/// NOTIF-03: dropped when the provider says so; the user's other devices stay.
pub async fn a_removed_target_is_gone(store: &dyn PushTargetStore) {
    let user = UserId::new();
    let (gone, stays) = (
        target(user, PushProvider::Apns),
        target(user, PushProvider::Fcm),
    );
    store.put(&gone).await.unwrap();
    store.put(&stays).await.unwrap();
    store.remove(user, gone.device).await.unwrap();
    store.remove(user, gone.device).await.unwrap();
    assert!(of_user(store, user).await == [stays]);
}

/// NOTIF-02: the largest read that the port allows.
pub async fn two_hundred_users_are_read_at_once(store: &dyn PushTargetStore) {
    let users: Vec<_> = (0..200).map(|_| UserId::new()).collect();
    for user in users.iter().step_by(10) {
        store.put(&target(*user, PushProvider::Fcm)).await.unwrap();
    }
    assert_eq!(store.of_users(&users).await.unwrap().len(), 20);
}
