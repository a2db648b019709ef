//! [`AccountStore`] (AUTH-01).

use std::sync::Arc;

use carillon_domain::{
    ErrorCode, Timestamp, UserId,
    account::{About, Account, NameKind, ProfileChange, User},
    ports::AccountStore,
};

/// Every clause.
pub async fn all(store: Arc<dyn AccountStore>) {
    what_was_created_is_found_by_every_name(&*store).await;
    usernames_are_compared_without_case(&*store).await;
    a_taken_name_is_refused_by_its_field(&*store).await;
    a_refused_account_leaves_its_other_names_free(&*store).await;
    one_of_concurrent_creations_wins(store.clone()).await;
    unknown_accounts_are_left_out(&*store).await;
    a_thousand_ids_are_read_at_once(&*store).await;
    a_password_hash_is_replaced_if_it_is_the_old_one(&*store).await;
    one_of_concurrent_replacements_wins(store.clone()).await;
    a_first_password_hash_is_set_once(&*store).await;
    a_changed_name_replaces_the_old_one(&*store).await;
    a_name_can_be_written_differently(&*store).await;
    a_name_is_changed_only_from_what_it_is(&*store).await;
    a_name_of_somebody_else_is_refused(&*store).await;
    a_name_can_be_taken_back(&*store).await;
    one_of_concurrent_changes_and_creations_wins(store.clone()).await;
    two_may_trade_names(store.clone()).await;
    a_profile_is_changed_in_part(&*store).await;
    an_erased_account_leaves_nothing(&*store).await;
    a_change_loses_against_erasing(store).await;
}

/// An account with fresh names.
fn account() -> Account {
    let id = UserId::new();
    let unique = id.0.simple().to_string();
    Account {
        user: User {
            id,
            username: format!("Ann-{}", &unique[6..]),
            display_name: "Ann 👋".into(),
            created_at: Timestamp(1_700_000_000_123),
            about: About {
                bio: "Über\nmich".into(),
                status: "🎣".into(),
            },
        },
        email: Some(format!("{unique}@example.com")),
        phone: Some(format!("+49{}", id.0.as_u128() % 10_000_000_000_000)),
        password_hash: Some(format!("$argon2id${unique}")),
    }
}

/// AUTH-01: an account is found by id, username, address and number, with everything it has.
pub async fn what_was_created_is_found_by_every_name(store: &dyn AccountStore) {
    let mut bare = account();
    bare.email = None;
    bare.phone = None;
    bare.password_hash = None;
    for account in [account(), bare] {
        store.create(&account).await.unwrap();
        let found = store.by_ids(&[account.user.id]).await.unwrap();
        assert!(found == [account.clone()], "found by id as it was stored");
        let found = store.by_username(&account.user.username).await.unwrap();
        assert!(found.as_ref() == Some(&account), "found by username");
        if let Some(email) = &account.email {
            let found = store.by_email(email).await.unwrap();
            assert!(found.as_ref() == Some(&account), "found by address");
        }
        if let Some(phone) = &account.phone {
            let found = store.by_phone(phone).await.unwrap();
            assert!(found.as_ref() == Some(&account), "found by number");
        }
    }
}

/// AUTH-01: `Ann` and `ann` are one name.
pub async fn usernames_are_compared_without_case(store: &dyn AccountStore) {
    let first = account();
    store.create(&first).await.unwrap();
    for name in [
        first.user.username.to_uppercase(),
        first.user.username.to_lowercase(),
    ] {
        let found = store.by_username(&name).await.unwrap();
        assert_eq!(
            found.map(|found| found.user.username).as_ref(),
            Some(&first.user.username),
            "{name} finds the account, written as it was registered"
        );
        let mut second = account();
        second.user.username = name;
        let error = store.create(&second).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::AlreadyExists);
    }
}

/// AUTH-01: a duplicate is `AlreadyExists`, and says of which field.
pub async fn a_taken_name_is_refused_by_its_field(store: &dyn AccountStore) {
    let first = account();
    store.create(&first).await.unwrap();
    for field in ["username", "email", "phone_number"] {
        let mut second = account();
        match field {
            "username" => second.user.username.clone_from(&first.user.username),
            "email" => second.email.clone_from(&first.email),
            _ => second.phone.clone_from(&first.phone),
        }
        let error = store.create(&second).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::AlreadyExists, "{field} is taken");
        let fields: Vec<_> = error.fields.iter().map(|f| f.field.as_str()).collect();
        assert_eq!(fields, [field], "the error names the field");
        let found = store.by_ids(&[second.user.id]).await.unwrap();
        assert!(found.is_empty(), "nothing is stored when {field} is taken");
    }
}

/// AUTH-01: whoever was refused for one name doesn't occupy the others.
pub async fn a_refused_account_leaves_its_other_names_free(store: &dyn AccountStore) {
    let first = account();
    store.create(&first).await.unwrap();
    // The name that is taken is checked last, or first, or in between: each must leave the others free.
    for taken in 0..3 {
        let refused = account();
        let mut attempt = refused.clone();
        match taken {
            0 => attempt.user.username.clone_from(&first.user.username),
            1 => attempt.email.clone_from(&first.email),
            _ => attempt.phone.clone_from(&first.phone),
        }
        store.create(&attempt).await.unwrap_err();
        store
            .create(&refused)
            .await
            .expect("the names of a refused account are free");
    }
}

/// AUTH-01: of many concurrent creations with one name, exactly one succeeds.
pub async fn one_of_concurrent_creations_wins(store: Arc<dyn AccountStore>) {
    for field in ["username", "email", "phone_number"] {
        let model = account();
        let attempts = (0..16).map(|_| {
            let mut attempt = account();
            match field {
                "username" => attempt.user.username.clone_from(&model.user.username),
                "email" => attempt.email.clone_from(&model.email),
                _ => attempt.phone.clone_from(&model.phone),
            }
            let store = store.clone();
            tokio::spawn(async move { (attempt.user.id, store.create(&attempt).await) })
        });
        let mut winners = Vec::new();
        for attempt in attempts.collect::<Vec<_>>() {
            match attempt.await.unwrap() {
                (id, Ok(())) => winners.push(id),
                (_, Err(error)) => assert_eq!(error.code, ErrorCode::AlreadyExists),
            }
        }
        assert_eq!(winners.len(), 1, "exactly one creation with one {field}");
        let found = match field {
            "username" => store.by_username(&model.user.username).await,
            "email" => store.by_email(model.email.as_ref().unwrap()).await,
            _ => store.by_phone(model.phone.as_ref().unwrap()).await,
        };
        assert_eq!(
            found.unwrap().map(|found| found.user.id),
            Some(winners[0]),
            "the name is the winner's"
        );
    }
}

/// AUTH-02: unknown ids and names are no error.
pub async fn unknown_accounts_are_left_out(store: &dyn AccountStore) {
    let known = account();
    store.create(&known).await.unwrap();
    let ids = [UserId::new(), known.user.id, UserId::new()];
    let found = store.by_ids(&ids).await.unwrap();
    assert!(found == [known], "unknown ids are left out");
    assert!(store.by_ids(&[]).await.unwrap().is_empty());
    let nobody = account();
    let found = store.by_username(&nobody.user.username).await.unwrap();
    assert!(found.is_none());
    let found = store.by_email(nobody.email.as_ref().unwrap()).await;
    assert!(found.unwrap().is_none());
    let found = store.by_phone(nobody.phone.as_ref().unwrap()).await;
    assert!(found.unwrap().is_none());
}

/// AUTH-02: the largest read that the port allows.
pub async fn a_thousand_ids_are_read_at_once(store: &dyn AccountStore) {
    let known = [account(), account()];
    for account in &known {
        store.create(account).await.unwrap();
    }
    let mut ids: Vec<_> = (0..998).map(|_| UserId::new()).collect();
    ids.extend(known.iter().map(|account| account.user.id));
    let found = store.by_ids(&ids).await.unwrap();
    assert_eq!(found.len(), 2, "1,000 ids are allowed");
}

/// AUTH-11: a hash is upgraded only if nobody changed the password meanwhile.
pub async fn a_password_hash_is_replaced_if_it_is_the_old_one(store: &dyn AccountStore) {
    let account = account();
    store.create(&account).await.unwrap();
    let (id, old) = (account.user.id, account.password_hash.unwrap());
    let replace = async |old: &str, new: &str| {
        store
            .replace_password_hash(id, Some(old), new)
            .await
            .unwrap()
    };
    assert!(
        !replace("another", "new").await,
        "not with another old hash"
    );
    assert!(replace(&old, "new").await, "with the old hash");
    assert!(!replace(&old, "newer").await, "not a second time");
    let found = store.by_ids(&[id]).await.unwrap();
    assert_eq!(found[0].password_hash.as_deref(), Some("new"));
    assert!(found[0].email == account.email, "nothing else changes");
    let unknown = store.replace_password_hash(UserId::new(), Some(&old), "new");
    assert!(!unknown.await.unwrap(), "not of an unknown account");
}

/// AUTH-11: of concurrent replacements of one hash, exactly one succeeds.
pub async fn one_of_concurrent_replacements_wins(store: Arc<dyn AccountStore>) {
    let account = account();
    store.create(&account).await.unwrap();
    let attempts: Vec<_> = (0..8)
        .map(|n| {
            let (store, account) = (store.clone(), account.clone());
            tokio::spawn(async move {
                let old = account.password_hash.unwrap();
                store
                    .replace_password_hash(account.user.id, Some(&old), &format!("new-{n}"))
                    .await
                    .unwrap()
            })
        })
        .collect();
    let mut winners = 0;
    for attempt in attempts {
        winners += u32::from(attempt.await.unwrap());
    }
    assert_eq!(winners, 1, "exactly one replacement of one hash");
}

/// AUTH-09: an account without a password gets one, once, and an unknown one doesn't come to be.
pub async fn a_first_password_hash_is_set_once(store: &dyn AccountStore) {
    let mut account = account();
    account.password_hash = None;
    store.create(&account).await.unwrap();
    let id = account.user.id;
    let set = async |id, new: &str| store.replace_password_hash(id, None, new).await.unwrap();
    assert!(set(id, "first").await);
    assert!(!set(id, "second").await);
    let unknown = UserId::new();
    assert!(!set(unknown, "first").await);
    let found = store.by_ids(&[id, unknown]).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].password_hash.as_deref(), Some("first"));
}

fn new_name(kind: NameKind) -> String {
    let fresh = account();
    fresh.name(kind).unwrap().to_owned()
}

async fn by(store: &dyn AccountStore, kind: NameKind, name: &str) -> Option<Account> {
    match kind {
        NameKind::Username => store.by_username(name).await.unwrap(),
        NameKind::Email => store.by_email(name).await.unwrap(),
    }
}

async fn rename(store: &dyn AccountStore, account: &mut Account, kind: NameKind, new: &str) {
    let old = account.name(kind).map(str::to_owned);
    let renamed = store.rename(account.user.id, kind, old.as_deref(), new);
    assert!(renamed.await.unwrap());
    account.set_name(kind, new);
}

/// AUTH-09: the account is found under the new name, and the old one is free at once.
pub async fn a_changed_name_replaces_the_old_one(store: &dyn AccountStore) {
    for kind in NameKind::ALL {
        let mut account = self::account();
        account.user.display_name.clone_from(&account.user.username);
        if kind == NameKind::Email {
            account.email = None;
        }
        store.create(&account).await.unwrap();
        for _ in 0..3 {
            let old = account.name(kind).map(str::to_owned);
            let new = new_name(kind);
            rename(store, &mut account, kind, &new).await;
            let found = store.by_ids(&[account.user.id]).await.unwrap();
            assert!(found == [account.clone()], "nothing else changed: {kind:?}");
            assert!(by(store, kind, &new).await.as_ref() == Some(&account));
            let Some(old) = old else { continue };
            assert!(by(store, kind, &old).await.is_none());
            let mut heir = self::account();
            heir.set_name(kind, &old);
            store.create(&heir).await.expect("the old name is free");
        }
    }
}

/// AUTH-09: only its case changes, and the name stays taken.
pub async fn a_name_can_be_written_differently(store: &dyn AccountStore) {
    let mut account = account();
    store.create(&account).await.unwrap();
    let upper = account.user.username.to_uppercase();
    for new in [upper.clone(), upper] {
        rename(store, &mut account, NameKind::Username, &new).await;
        let lower = account.user.username.to_lowercase();
        let found = store.by_username(&lower).await.unwrap();
        assert!(found.as_ref() == Some(&account));
        let mut other = self::account();
        other.user.username = lower;
        let refused = store.create(&other).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::AlreadyExists);
    }
}

/// AUTH-09: whoever saw the account before another change changes nothing, and leaves the name that they wanted free.
pub async fn a_name_is_changed_only_from_what_it_is(store: &dyn AccountStore) {
    for kind in NameKind::ALL {
        let account = account();
        store.create(&account).await.unwrap();
        let (wanted, wrong) = (new_name(kind), new_name(kind));
        for (id, old) in [
            (account.user.id, Some(wrong.as_str())),
            (account.user.id, None),
            (UserId::new(), account.name(kind)),
        ] {
            if old.is_none() && kind == NameKind::Username {
                continue;
            }
            assert!(!store.rename(id, kind, old, &wanted).await.unwrap());
        }
        let found = store.by_ids(&[account.user.id]).await.unwrap();
        assert!(found == [account]);
        let mut other = self::account();
        other.set_name(kind, &wanted);
        store.create(&other).await.unwrap();
    }
}

/// AUTH-09: a taken name is `AlreadyExists` with its field, and nothing changes.
pub async fn a_name_of_somebody_else_is_refused(store: &dyn AccountStore) {
    for kind in NameKind::ALL {
        let (account, other) = (account(), account());
        store.create(&account).await.unwrap();
        store.create(&other).await.unwrap();
        let taken = other.name(kind).unwrap();
        let refused = store.rename(account.user.id, kind, account.name(kind), taken);
        let error = refused.await.unwrap_err();
        assert_eq!(error.code, ErrorCode::AlreadyExists);
        assert_eq!(error.fields[0].field, kind.field());
        for account in [&account, &other] {
            let found = by(store, kind, account.name(kind).unwrap()).await;
            assert!(found.as_ref() == Some(account));
        }
    }
}

/// AUTH-09: back to the old name, again and again.
pub async fn a_name_can_be_taken_back(store: &dyn AccountStore) {
    for kind in NameKind::ALL {
        let mut account = account();
        store.create(&account).await.unwrap();
        let (first, second) = (account.name(kind).unwrap().to_owned(), new_name(kind));
        for new in [&second, &first, &second, &first] {
            rename(store, &mut account, kind, new).await;
        }
        assert!(by(store, kind, &first).await.as_ref() == Some(&account));
        assert!(by(store, kind, &second).await.is_none());
    }
}

/// AUTH-09: of many who want one name, by changing theirs or by a new account, exactly one gets it.
pub async fn one_of_concurrent_changes_and_creations_wins(store: Arc<dyn AccountStore>) {
    for kind in NameKind::ALL {
        let wanted = new_name(kind);
        let mut attempts = Vec::new();
        for n in 0..8 {
            let (store, wanted, mut account) = (store.clone(), wanted.clone(), account());
            let is_change = n % 2 == 0;
            if is_change {
                store.create(&account).await.unwrap();
            }
            attempts.push(tokio::spawn(async move {
                let id = account.user.id;
                if is_change {
                    let changed = store.rename(id, kind, account.name(kind), &wanted);
                    return (id, changed.await.map(|done| assert!(done)));
                }
                account.set_name(kind, &wanted);
                (id, store.create(&account).await)
            }));
        }
        let mut winners = Vec::new();
        for attempt in attempts {
            match attempt.await.unwrap() {
                (id, Ok(())) => winners.push(id),
                (_, Err(error)) => assert_eq!(error.code, ErrorCode::AlreadyExists, "{error}"),
            }
        }
        assert_eq!(winners.len(), 1, "exactly one has the {}", kind.field());
        let found = by(&*store, kind, &wanted).await;
        assert_eq!(found.map(|found| found.user.id), Some(winners[0]));
    }
}

/// AUTH-09: two who want each other's name at once: each has one name in the end, by which they are found, and no name has two.
pub async fn two_may_trade_names(store: Arc<dyn AccountStore>) {
    for kind in NameKind::ALL {
        let (ann, bob) = (account(), account());
        store.create(&ann).await.unwrap();
        store.create(&bob).await.unwrap();
        let attempts = [(&ann, &bob), (&bob, &ann)].map(|(who, of)| {
            let (store, who) = (store.clone(), who.clone());
            let new = of.name(kind).unwrap().to_owned();
            tokio::spawn(async move {
                let old = who.name(kind);
                store.rename(who.user.id, kind, old, &new).await
            })
        });
        for attempt in attempts {
            if let Err(error) = attempt.await.unwrap() {
                assert_eq!(error.code, ErrorCode::AlreadyExists, "{error}");
            }
        }
        let ids = [ann.user.id, bob.user.id];
        let now = store.by_ids(&ids).await.unwrap();
        assert_eq!(now.len(), 2);
        for account in &now {
            let found = by(&*store, kind, account.name(kind).unwrap()).await;
            assert!(found.as_ref() == Some(account));
        }
    }
}

/// USER-01: what isn't named stays, and nobody comes to be by it.
pub async fn a_profile_is_changed_in_part(store: &dyn AccountStore) {
    let mut account = account();
    store.create(&account).await.unwrap();
    let text = |text: &str| Some(text.to_owned());
    for change in [
        ProfileChange {
            display_name: text("Änn 🦊"),
            ..ProfileChange::default()
        },
        ProfileChange {
            bio: text("line\nline"),
            status: text(""),
            ..ProfileChange::default()
        },
        ProfileChange {
            display_name: text("x"),
            bio: text(""),
            status: text("away"),
        },
        ProfileChange::default(),
    ] {
        assert!(
            store
                .change_profile(account.user.id, &change)
                .await
                .unwrap()
        );
        change.apply(&mut account.user);
        let found = store.by_ids(&[account.user.id]).await.unwrap();
        assert!(found == [account.clone()], "{change:?}");
        let unknown = UserId::new();
        assert!(!store.change_profile(unknown, &change).await.unwrap());
        assert!(store.by_ids(&[unknown]).await.unwrap().is_empty());
    }
    // The name is still there to be changed.
    rename(
        store,
        &mut account,
        NameKind::Username,
        &new_name(NameKind::Username),
    )
    .await;
}

/// AUTH-15: it is found by nothing any more, nothing of it can be changed, and its names are free.
pub async fn an_erased_account_leaves_nothing(store: &dyn AccountStore) {
    let account = account();
    let id = account.user.id;
    store.create(&account).await.unwrap();
    assert!(store.erase(id).await.unwrap());
    assert!(!store.erase(id).await.unwrap());
    assert!(!store.erase(UserId::new()).await.unwrap());
    assert!(store.by_ids(&[id]).await.unwrap().is_empty());
    let username = &account.user.username;
    assert_eq!(store.by_username(username).await.unwrap(), None);
    let email = account.email.as_deref().unwrap();
    assert_eq!(store.by_email(email).await.unwrap(), None);
    let phone = account.phone.as_deref().unwrap();
    assert_eq!(store.by_phone(phone).await.unwrap(), None);
    let hash = account.password_hash.as_deref();
    assert!(
        !store
            .replace_password_hash(id, hash, "other")
            .await
            .unwrap()
    );
    assert!(
        !store
            .replace_password_hash(id, None, "other")
            .await
            .unwrap()
    );
    let change = ProfileChange {
        bio: Some("again".into()),
        ..ProfileChange::default()
    };
    assert!(!store.change_profile(id, &change).await.unwrap());
    let kind = NameKind::Username;
    let renamed = store.rename(id, kind, Some(username), "other-name").await;
    assert!(!renamed.unwrap());
    assert!(store.by_ids(&[id]).await.unwrap().is_empty());

    let mut next = account.clone();
    next.user.id = UserId::new();
    store.create(&next).await.unwrap();
    assert_eq!(store.by_username(username).await.unwrap(), Some(next));
}

/// AUTH-15: whichever comes first, at the end nobody has a name of it.
pub async fn a_change_loses_against_erasing(store: Arc<dyn AccountStore>) {
    for _ in 0..5 {
        let account = account();
        let (id, old) = (account.user.id, account.user.username.clone());
        store.create(&account).await.unwrap();
        let new = new_name(NameKind::Username);
        let (renaming, erasing) = (store.clone(), store.clone());
        let wanted = new.clone();
        let rename = tokio::spawn(async move {
            let kind = NameKind::Username;
            renaming.rename(id, kind, Some(&old), &wanted).await
        });
        let erase = tokio::spawn(async move { erasing.erase(id).await });
        let _ = rename.await.unwrap();
        assert!(erase.await.unwrap().unwrap());
        assert!(store.by_ids(&[id]).await.unwrap().is_empty());
        for name in [&account.user.username, &new] {
            assert_eq!(store.by_username(name).await.unwrap(), None);
        }
    }
}
