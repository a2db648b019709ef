//! [`SecurityLog`] (AUTH-12).

use std::{sync::Arc, time::Duration};

use carillon_domain::{
    DeviceId, Timestamp, UserId,
    account::{ClientInfo, DeviceType},
    ports::SecurityLog,
    security::{SecurityEvent, SecurityEventKind, Trail},
    time::{Clock, SystemClock},
};
use uuid::Uuid;

/// How long to wait for what must happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// Every clause.
pub async fn all(store: Arc<dyn SecurityLog>) {
    events_come_back_newest_first(&*store).await;
    pages_continue_before_an_event(&*store).await;
    a_trail_keeps_its_newest(&*store).await;
    an_event_ends(&*store).await;
    a_repeated_append_changes_nothing(&*store).await;
    a_person_is_forgotten(&*store).await;
}

fn event(kind: SecurityEventKind) -> SecurityEvent {
    SecurityEvent {
        id: Uuid::now_v7(),
        time: Timestamp(1_700_000_000_123),
        kind,
        device: Some(DeviceId::new()),
        client: ClientInfo {
            device_name: Some("Ann's phone".into()),
            user_agent: Some("tests".into()),
            ip: Some("2001:db8::1".into()),
            device_type: Some(DeviceType::Phone),
            platform: Some("Android 16".into()),
        },
    }
}

fn in_an_hour() -> Timestamp {
    SystemClock.now().plus(Duration::from_secs(3600))
}

async fn append(store: &dyn SecurityLog, user: UserId, count: usize) -> Vec<SecurityEvent> {
    let mut newest_first = Vec::new();
    for _ in 0..count {
        let event = event(SecurityEventKind::LoggedIn);
        store
            .append(Trail::Logins, user, &event, in_an_hour(), 1_000)
            .await
            .unwrap();
        newest_first.insert(0, event);
    }
    newest_first
}

async fn list(store: &dyn SecurityLog, trail: Trail, user: UserId) -> Vec<SecurityEvent> {
    store.list(trail, user, None, 1_000).await.unwrap()
}

/// AUTH-12: with all that they say, by person and trail.
pub async fn events_come_back_newest_first(store: &dyn SecurityLog) {
    let (ann, bob) = (UserId::new(), UserId::new());
    for kind in SecurityEventKind::ALL {
        let mut bare = event(kind);
        bare.device = None;
        bare.client = ClientInfo::default();
        let mut expected = vec![bare, event(kind)];
        for event in &expected {
            store
                .append(kind.trail(), ann, event, in_an_hour(), 1_000)
                .await
                .unwrap();
        }
        expected.reverse();
        let found = list(store, kind.trail(), ann).await;
        assert_eq!(found[..2], expected, "{kind:?}");
        assert!(list(store, kind.trail(), bob).await.is_empty());
    }
    for trail in Trail::ALL {
        let found = list(store, trail, ann).await;
        assert!(found.iter().all(|event| event.kind.trail() == trail));
        assert!(found.is_sorted_by(|a, b| a.id > b.id));
    }
}

/// AUTH-12: a page ends where the next one begins.
pub async fn pages_continue_before_an_event(store: &dyn SecurityLog) {
    let ann = UserId::new();
    let expected = append(store, ann, 7).await;
    let mut found: Vec<SecurityEvent> = Vec::new();
    loop {
        let before = found.last().map(|event| event.id);
        let page = store.list(Trail::Logins, ann, before, 3).await.unwrap();
        assert!(page.len() <= 3);
        if page.is_empty() {
            break;
        }
        found.extend(page);
    }
    assert_eq!(found, expected);
}

/// AUTH-12: a stranger who tries for ever fills nothing, and a trail doesn't touch another one.
pub async fn a_trail_keeps_its_newest(store: &dyn SecurityLog) {
    let ann = UserId::new();
    let logins = append(store, ann, 3).await;
    let mut newest = Vec::new();
    for _ in 0..12 {
        let event = event(SecurityEventKind::LoginFailed);
        store
            .append(Trail::Failures, ann, &event, in_an_hour(), 5)
            .await
            .unwrap();
        newest.insert(0, event);
        newest.truncate(5);
        assert_eq!(list(store, Trail::Failures, ann).await, newest);
    }
    assert_eq!(list(store, Trail::Logins, ann).await, logins);
}

/// AUTH-12: what has ended isn't shown.
pub async fn an_event_ends(store: &dyn SecurityLog) {
    let ann = UserId::new();
    let [short, over] = [0; 2].map(|_| event(SecurityEventKind::LoggedIn));
    let now = SystemClock.now();
    for (event, until) in [
        (&short, now.plus(Duration::from_millis(1_500))),
        (&over, Timestamp(now.0 - 1_000)),
    ] {
        store
            .append(Trail::Logins, ann, event, until, 10)
            .await
            .unwrap();
    }
    let long = append(store, ann, 1).await;
    let ended = async {
        while list(store, Trail::Logins, ann).await != long {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, ended).await;
    assert!(waited.is_ok(), "the short event ends");
}

/// AUTH-12: a retry of a write whose outcome wasn't known makes no second event.
pub async fn a_repeated_append_changes_nothing(store: &dyn SecurityLog) {
    let (ann, event) = (UserId::new(), event(SecurityEventKind::PasswordChanged));
    for _ in 0..2 {
        store
            .append(Trail::Changes, ann, &event, in_an_hour(), 10)
            .await
            .unwrap();
    }
    assert_eq!(list(store, Trail::Changes, ann).await, [event]);
}

/// AUTH-15: nothing of a person stays, everything of others does.
pub async fn a_person_is_forgotten(store: &dyn SecurityLog) {
    let (ann, bob) = (UserId::new(), UserId::new());
    append(store, ann, 120).await;
    let kept = append(store, bob, 2).await;
    for kind in [
        SecurityEventKind::LoginFailed,
        SecurityEventKind::EmailChanged,
    ] {
        store
            .append(kind.trail(), ann, &event(kind), in_an_hour(), 10)
            .await
            .unwrap();
    }
    store.forget(ann).await.unwrap();
    store.forget(UserId::new()).await.unwrap();
    for trail in Trail::ALL {
        assert!(list(store, trail, ann).await.is_empty(), "{trail:?}");
    }
    assert_eq!(list(store, Trail::Logins, bob).await, kept);
}
