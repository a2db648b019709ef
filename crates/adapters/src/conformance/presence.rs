//! What [`PresenceStore`] promises. The present is handed in, so nothing here waits.

use std::{collections::HashMap, sync::Arc, time::Duration};

use carillon_domain::{
    DeviceId, Timestamp, UserId,
    ports::PresenceStore,
    presence::{
        Lease, Presence,
        PresenceState::{self, Away, Offline, Online},
    },
};

/// Where time begins in these tests.
const START: Timestamp = Timestamp(1_800_000_000_000);
const TTL: Duration = Duration::from_secs(60);

/// Every clause.
pub async fn all(store: Arc<dyn PresenceStore>) {
    nobody_is_offline_and_never_seen(&*store).await;
    the_highest_lease_counts(&*store).await;
    only_changes_are_answered(&*store).await;
    a_device_has_one_lease(&*store).await;
    the_last_release_makes_offline(&*store).await;
    an_ended_lease_does_not_count(&*store).await;
    expiring_answers_each_change_once(&*store).await;
    expiring_ends_at_most_as_many_as_allowed(&*store).await;
    a_renewed_lease_does_not_expire(&*store).await;
    many_people_are_renewed_and_read_at_once(&*store).await;
    racing_devices_tell_each_change_once(store.clone()).await;
    racing_expiries_tell_each_change_once(store).await;
}

fn at(seconds: u64) -> Timestamp {
    START.plus(Duration::from_secs(seconds))
}

fn lease(user: UserId, device: DeviceId, state: PresenceState) -> Lease {
    Lease {
        user,
        device,
        state,
    }
}

/// The only answer, without the time.
fn state_of(changes: &[Presence], user: UserId) -> Option<PresenceState> {
    let mut of_user = changes.iter().filter(|change| change.user == user);
    let state = of_user.next().map(|change| change.state);
    assert!(of_user.next().is_none(), "one answer per person");
    state
}

async fn get(store: &dyn PresenceStore, user: UserId, now: Timestamp) -> Presence {
    store.get(&[user], now).await.unwrap()[0]
}

/// Expires all there is, in as many rounds as it takes.
async fn expire_all(store: &dyn PresenceStore, now: Timestamp) -> Vec<Presence> {
    let mut changes = Vec::new();
    for _ in 0..100 {
        let more = store.expire(now, 1000).await.unwrap();
        if more.is_empty() {
            return changes;
        }
        changes.extend(more);
    }
    panic!("expiring never ends");
}

/// PRES-01: who never connected is offline and was never seen.
pub async fn nobody_is_offline_and_never_seen(store: &dyn PresenceStore) {
    let user = UserId::new();
    let expected = Presence {
        user,
        state: Offline,
        last_seen: None,
    };
    assert_eq!(get(store, user, START).await, expected);
    assert_eq!(store.get(&[], START).await.unwrap(), []);
}

/// PRES-01: a person is online when any device is, away when all are.
pub async fn the_highest_lease_counts(store: &dyn PresenceStore) {
    let (user, phone, laptop) = (UserId::new(), DeviceId::new(), DeviceId::new());
    for (device, state, told) in [
        (phone, Away, Some(Away)),
        (laptop, Online, Some(Online)),
        (phone, Online, None),
        (laptop, Away, None),
        (phone, Away, Some(Away)),
    ] {
        let changes = store
            .renew(&[lease(user, device, state)], START, TTL)
            .await
            .unwrap();
        assert_eq!(state_of(&changes, user), told, "{state:?}");
    }
    assert_eq!(get(store, user, START).await.state, Away);
}

/// PRES-01: renewing what stands says nothing.
pub async fn only_changes_are_answered(store: &dyn PresenceStore) {
    let (user, device) = (UserId::new(), DeviceId::new());
    let online = lease(user, device, Online);
    let changes = store.renew(&[online], at(0), TTL).await.unwrap();
    assert_eq!(state_of(&changes, user), Some(Online));
    for second in 1..5 {
        assert_eq!(store.renew(&[online], at(second), TTL).await.unwrap(), []);
    }
    assert!(
        get(store, user, at(5)).await.last_seen >= Some(at(4)),
        "seen when last renewed"
    );
}

/// PRES-01: several leases of a batch are of several devices; the last one of a device stands.
pub async fn a_device_has_one_lease(store: &dyn PresenceStore) {
    let (user, device) = (UserId::new(), DeviceId::new());
    store
        .renew(&[lease(user, device, Online)], START, TTL)
        .await
        .unwrap();
    let changes = store
        .renew(&[lease(user, device, Away)], START, TTL)
        .await
        .unwrap();
    assert_eq!(state_of(&changes, user), Some(Away));
    let change = store.release(user, device, START).await.unwrap();
    assert_eq!(
        change.map(|change| change.state),
        Some(Offline),
        "there was one lease"
    );
}

/// PRES-01: a person goes offline with the last device, at once, and was seen then.
pub async fn the_last_release_makes_offline(store: &dyn PresenceStore) {
    let (user, phone, laptop) = (UserId::new(), DeviceId::new(), DeviceId::new());
    let leases = [lease(user, phone, Away), lease(user, laptop, Online)];
    let changes = store.renew(&leases, at(0), TTL).await.unwrap();
    assert_eq!(state_of(&changes, user), Some(Online));
    let change = store.release(user, laptop, at(1)).await.unwrap();
    assert_eq!(change.map(|change| change.state), Some(Away));
    let change = store.release(user, phone, at(2)).await.unwrap();
    let offline = Presence {
        user,
        state: Offline,
        last_seen: Some(at(2)),
    };
    assert_eq!(change, Some(offline));
    assert_eq!(get(store, user, at(3)).await, offline);
    assert_eq!(
        store.release(user, phone, at(4)).await.unwrap(),
        None,
        "released already"
    );
    let stranger = store.release(UserId::new(), DeviceId::new(), at(4)).await;
    assert_eq!(stranger.unwrap(), None);
    assert_eq!(
        expire_all(store, at(1_000))
            .await
            .iter()
            .find(|change| change.user == user),
        None
    );
    let changes = store
        .renew(&[lease(user, phone, Online)], at(5), TTL)
        .await
        .unwrap();
    assert_eq!(state_of(&changes, user), Some(Online), "and comes back");
}

/// PRES-01: a crashed gateway's people are read as offline as soon as their leases end, told or not.
pub async fn an_ended_lease_does_not_count(store: &dyn PresenceStore) {
    let (user, phone, laptop) = (UserId::new(), DeviceId::new(), DeviceId::new());
    store
        .renew(&[lease(user, phone, Online)], at(0), TTL)
        .await
        .unwrap();
    store
        .renew(&[lease(user, laptop, Away)], at(30), TTL)
        .await
        .unwrap();
    assert_eq!(get(store, user, at(59)).await.state, Online);
    assert_eq!(get(store, user, at(61)).await.state, Away);
    assert_eq!(get(store, user, at(91)).await.state, Offline);
}

/// PRES-01: each change that comes of ending leases is answered, once.
pub async fn expiring_answers_each_change_once(store: &dyn PresenceStore) {
    let (user, phone, laptop) = (UserId::new(), DeviceId::new(), DeviceId::new());
    store
        .renew(&[lease(user, phone, Online)], at(0), TTL)
        .await
        .unwrap();
    store
        .renew(&[lease(user, laptop, Away)], at(30), TTL)
        .await
        .unwrap();
    for (now, told) in [
        (59, None),
        (61, Some(Away)),
        (62, None),
        (91, Some(Offline)),
        (92, None),
    ] {
        let changes = expire_all(store, at(now)).await;
        assert_eq!(state_of(&changes, user), told, "at {now} s");
    }
    let presence = get(store, user, at(92)).await;
    assert_eq!(presence.state, Offline);
    let seen = presence.last_seen.unwrap();
    assert!(
        (at(30)..=at(90)).contains(&seen),
        "seen at the last renewal or the lease's end"
    );
}

/// PRES-01: a limit bounds one call, and loses nothing.
pub async fn expiring_ends_at_most_as_many_as_allowed(store: &dyn PresenceStore) {
    expire_all(store, at(10_000)).await;
    let leases: Vec<Lease> = (0..20)
        .map(|_| lease(UserId::new(), DeviceId::new(), Online))
        .collect();
    store.renew(&leases, at(10_000), TTL).await.unwrap();
    let mut told = HashMap::new();
    for _ in 0..100 {
        let changes = store.expire(at(10_061), 3).await.unwrap();
        if changes.is_empty() {
            break;
        }
        assert!(changes.len() <= 3, "at most as many as allowed");
        for change in changes {
            *told.entry(change.user).or_insert(0) += 1;
        }
    }
    for lease in &leases {
        assert_eq!(told.get(&lease.user), Some(&1), "each is told once");
    }
}

/// PRES-01: who is renewed in time never blinks.
pub async fn a_renewed_lease_does_not_expire(store: &dyn PresenceStore) {
    let (user, device) = (UserId::new(), DeviceId::new());
    for round in 0..5 {
        let now = at(20_000 + round * 40);
        let changes = store
            .renew(&[lease(user, device, Online)], now, TTL)
            .await
            .unwrap();
        let told = (round == 0).then_some(Online);
        assert_eq!(state_of(&changes, user), told);
        let changes = expire_all(store, now.plus(Duration::from_secs(39))).await;
        assert_eq!(state_of(&changes, user), None);
    }
}

/// PRES-01: the largest batches that the port names, answered in the order asked.
pub async fn many_people_are_renewed_and_read_at_once(store: &dyn PresenceStore) {
    let users: Vec<UserId> = (0..1000).map(|_| UserId::new()).collect();
    let leases: Vec<Lease> = users
        .iter()
        .enumerate()
        .filter(|(n, _)| n % 4 != 0)
        .map(|(n, user)| {
            lease(
                *user,
                DeviceId::new(),
                if n % 4 == 1 { Away } else { Online },
            )
        })
        .collect();
    let changes = store.renew(&leases, at(30_000), TTL).await.unwrap();
    assert_eq!(changes.len(), leases.len());
    let read = store.get(&users, at(30_001)).await.unwrap();
    assert_eq!(read.len(), users.len());
    for (n, (presence, user)) in read.iter().zip(&users).enumerate() {
        let state = [Offline, Away, Online, Online][n % 4];
        assert_eq!(
            (presence.user, presence.state),
            (*user, state),
            "person {n}"
        );
    }
}

/// PRES-01: devices that come and go at once: each change of the state is told by one of them.
pub async fn racing_devices_tell_each_change_once(store: Arc<dyn PresenceStore>) {
    for _ in 0..10 {
        let user = UserId::new();
        let devices: Vec<DeviceId> = (0..8).map(|_| DeviceId::new()).collect();
        let mut told = Vec::new();
        let tasks: Vec<_> = devices
            .iter()
            .map(|device| {
                let (store, lease) = (store.clone(), lease(user, *device, Online));
                tokio::spawn(async move { store.renew(&[lease], at(40_000), TTL).await.unwrap() })
            })
            .collect();
        for task in tasks {
            told.extend(task.await.unwrap());
        }
        assert_eq!(state_of(&told, user), Some(Online));
        told.clear();
        let tasks: Vec<_> = devices
            .iter()
            .map(|device| {
                let (store, device) = (store.clone(), *device);
                tokio::spawn(async move { store.release(user, device, at(40_001)).await.unwrap() })
            })
            .collect();
        for task in tasks {
            told.extend(task.await.unwrap());
        }
        assert_eq!(state_of(&told, user), Some(Offline));
    }
}

/// PRES-01: of several replicas that look for ended leases, one tells each change.
pub async fn racing_expiries_tell_each_change_once(store: Arc<dyn PresenceStore>) {
    let leases: Vec<Lease> = (0..100)
        .map(|_| lease(UserId::new(), DeviceId::new(), Online))
        .collect();
    store.renew(&leases, at(50_000), TTL).await.unwrap();
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { expire_all(&*store, at(50_061)).await })
        })
        .collect();
    let mut told = HashMap::new();
    for task in tasks {
        for change in task.await.unwrap() {
            *told.entry(change.user).or_insert(0) += 1;
        }
    }
    for lease in &leases {
        assert_eq!(told.get(&lease.user), Some(&1), "each is told once");
    }
}
