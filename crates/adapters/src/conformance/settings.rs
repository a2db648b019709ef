//! [`SettingsStore`] (USER-06, USER-07).

use std::sync::Arc;

use carillon_domain::{
    Timestamp, UserId,
    ports::SettingsStore,
    privacy::{Audience, Privacy},
    settings::{Notify, Settings, SettingsChange, Theme, settings_of},
};

/// Every clause.
pub async fn all(store: Arc<dyn SettingsStore>) {
    what_was_set_is_found(&*store).await;
    a_change_leaves_the_rest(&*store).await;
    what_was_set_can_be_forgotten(&*store).await;
    changes_at_once_all_count(&store).await;
    a_thousand_people_are_read_at_once(&*store).await;
    nothing_is_left_of_who_is_removed(&*store).await;
}

async fn of(store: &dyn SettingsStore, user: UserId) -> Settings {
    let found = store.of(&[user]).await.unwrap();
    settings_of(&found, user)
}

fn full() -> Settings {
    Settings {
        privacy: Privacy {
            last_seen: Audience::Contacts,
            profile_photo: Audience::Everyone,
            read_receipts: Audience::Nobody,
        },
        notifications: Notify::Mentions,
        muted_until: Some(Timestamp(1_700_000_000_123)),
        theme: Theme::Dark,
        language: Some("de-CH".into()),
    }
}

/// USER-06, USER-07: all of it comes back; who set nothing isn't listed.
pub async fn what_was_set_is_found(store: &dyn SettingsStore) {
    let (ann, bob) = (UserId::new(), UserId::new());
    assert_eq!(store.of(&[ann, bob]).await.unwrap(), []);
    assert_eq!(store.of(&[]).await.unwrap(), []);
    store.change(ann, &full().into()).await.unwrap();
    let found = store.of(&[bob, ann]).await.unwrap();
    assert_eq!(found, [(ann, full())]);
}

/// USER-06: what a change doesn't name stays, also what nobody set.
pub async fn a_change_leaves_the_rest(store: &dyn SettingsStore) {
    let user = UserId::new();
    let change = SettingsChange {
        read_receipts: Some(Audience::Contacts),
        ..SettingsChange::default()
    };
    store.change(user, &change).await.unwrap();
    let mut expected = Settings::default();
    expected.privacy.read_receipts = Audience::Contacts;
    assert_eq!(of(store, user).await, expected);
    let change = SettingsChange {
        theme: Some(Theme::Light),
        last_seen: Some(Audience::Nobody),
        ..SettingsChange::default()
    };
    store.change(user, &change).await.unwrap();
    change.apply(&mut expected);
    assert_eq!(of(store, user).await, expected);
    let nothing = SettingsChange::default();
    store.change(user, &nothing).await.unwrap();
    assert_eq!(of(store, user).await, expected);
}

/// USER-07: an end and a language that were set are gone when they are taken back.
pub async fn what_was_set_can_be_forgotten(store: &dyn SettingsStore) {
    let user = UserId::new();
    store.change(user, &full().into()).await.unwrap();
    let change = SettingsChange {
        muted_until: Some(None),
        language: Some(None),
        ..SettingsChange::default()
    };
    store.change(user, &change).await.unwrap();
    let expected = Settings {
        muted_until: None,
        language: None,
        ..full()
    };
    assert_eq!(of(store, user).await, expected);
    let default = SettingsChange::from(Settings::default());
    store.change(user, &default).await.unwrap();
    assert_eq!(of(store, user).await, Settings::default());
}

/// USER-06: changes of different settings at the same time don't undo each other.
pub async fn changes_at_once_all_count(store: &Arc<dyn SettingsStore>) {
    let user = UserId::new();
    let changes = [
        SettingsChange {
            last_seen: Some(Audience::Contacts),
            ..SettingsChange::default()
        },
        SettingsChange {
            read_receipts: Some(Audience::Nobody),
            ..SettingsChange::default()
        },
        SettingsChange {
            notifications: Some(Notify::Mentions),
            ..SettingsChange::default()
        },
        SettingsChange {
            theme: Some(Theme::Dark),
            muted_until: Some(full().muted_until),
            language: Some(full().language),
            ..SettingsChange::default()
        },
    ];
    let made = changes.into_iter().map(|change| {
        let store = store.clone();
        tokio::spawn(async move { store.change(user, &change).await })
    });
    for change in futures::future::join_all(made).await {
        change.unwrap().unwrap();
    }
    assert_eq!(of(&**store, user).await, full());
}

/// USER-06: the largest question is one call.
pub async fn a_thousand_people_are_read_at_once(store: &dyn SettingsStore) {
    let users: Vec<UserId> = (0..1_000).map(|_| UserId::new()).collect();
    for place in [3, 997] {
        store.change(users[place], &full().into()).await.unwrap();
    }
    let mut found = store.of(&users).await.unwrap();
    found.sort_by_key(|(user, _)| *user);
    assert_eq!(found, [(users[3], full()), (users[997], full())]);
}

/// AUTH-15: who is erased set nothing, and somebody else's stays.
pub async fn nothing_is_left_of_who_is_removed(store: &dyn SettingsStore) {
    let (ann, bob) = (UserId::new(), UserId::new());
    for user in [ann, bob] {
        store.change(user, &full().into()).await.unwrap();
    }
    for _ in 0..2 {
        store.remove(ann).await.unwrap();
    }
    assert_eq!(store.of(&[ann, bob]).await.unwrap(), [(bob, full())]);
}
