//! History, lockout, and changes of names and passwords.

use carillon_domain::{
    account::ProfileChange,
    people::Relation,
    ports::{ErasurePart, KeyState},
    push::{PushProvider, PushTarget},
    security::{History, SecurityEvent, SecurityEventKind as Kind, Trail},
    services::AccountService,
};

use super::*;

const OTHER: &str = "another horse battery";

impl World {
    async fn history(&self, tokens: &Tokens, history: History) -> Vec<SecurityEvent> {
        let who = self.who(tokens).await.unwrap();
        self.auth.history(&who, history, None, 100).await.unwrap()
    }

    /// Waits until so many events are there; what nobody waits for is noted a moment later.
    async fn kinds(&self, tokens: &Tokens, history: History, count: usize) -> Vec<Kind> {
        let until = async {
            loop {
                let events = self.history(tokens, history).await;
                if events.len() >= count {
                    break events.iter().map(|event| event.kind).collect();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let patience = Duration::from_secs(30);
        tokio::time::timeout(patience, until).await.unwrap()
    }

    async fn rename(&self, tokens: &Tokens, name: &str, password: Option<&str>) -> Result<User> {
        let who = self.who(tokens).await.unwrap();
        let password = password.map(str::to_owned);
        self.auth.change_username(&who, name, password).await
    }

    async fn move_to(&self, tokens: &Tokens, email: &str, password: Option<&str>) -> Result<()> {
        let who = self.who(tokens).await.unwrap();
        let password = password.map(str::to_owned);
        self.auth.change_email(&who, email, password).await
    }

    async fn set_password(&self, tokens: &Tokens, old: Option<&str>, new: &str) -> Result<()> {
        let who = self.who(tokens).await.unwrap();
        let old = old.map(str::to_owned);
        self.auth.change_password(&who, old, new.to_owned()).await
    }

    /// A new account with its first login.
    async fn joined(&self, name: &str) -> Tokens {
        self.register(name).await.unwrap();
        self.login(name).await
    }

    /// An account that has a phone number and nothing else.
    async fn by_phone(&self) -> Tokens {
        self.auth.send_otp(PHONE).await.unwrap();
        let client = ClientInfo::default();
        let code = DevOtp::CODE;
        self.auth.verify_otp(PHONE, code, client).await.unwrap()
    }
}

fn field(result: Result<impl std::fmt::Debug>) -> (ErrorCode, String) {
    let error = result.unwrap_err();
    (error.code, error.fields[0].field.clone())
}

/// AUTH-12: logins and failed ones, newest first, each with who it was; of nobody else.
#[tokio::test]
async fn logins_are_remembered() {
    let world = World::new();
    world.register("ann").await.unwrap();
    world.register("bob").await.unwrap();
    let first = world.login("ann").await;
    let wrong = world.login_from("192.0.2.9", "ann@example.com", "wrong");
    wrong.await.unwrap_err();
    let nobody = world.login_from("192.0.2.9", "nobody", "wrong");
    nobody.await.unwrap_err();
    world.kinds(&first, History::Logins, 2).await;
    let second = world.login("ann").await;
    world
        .auth
        .logout(&world.who(&first).await.unwrap())
        .await
        .unwrap();

    let events = world.history(&second, History::Logins).await;
    let kinds: Vec<_> = events.iter().map(|event| event.kind).collect();
    let expected = [
        Kind::LoggedOut,
        Kind::LoggedIn,
        Kind::LoginFailed,
        Kind::LoggedIn,
    ];
    assert_eq!(kinds, expected);
    assert_eq!(events[2].client.ip.as_deref(), Some("192.0.2.9"));
    assert_eq!(events[2].client.user_agent.as_ref().unwrap().len(), 256);
    assert_eq!(events[3].device, Some(first.device));
    assert!(world.history(&second, History::Security).await.is_empty());
    let who = world.who(&second).await.unwrap();
    let page = |before, limit| world.auth.history(&who, History::Logins, before, limit);
    assert_eq!(page(Some(events[1].id), 1).await.unwrap(), events[2..3]);
    for limit in [0, 101] {
        assert_eq!(code(page(None, limit).await), ErrorCode::InvalidRequest);
    }
    let bob = world.login("bob").await;
    assert_eq!(world.history(&bob, History::Logins).await.len(), 1);
}

/// AUTH-05, AUTH-12: the owner of a stolen refresh token is told, and finds it in the log with the thief's address.
#[tokio::test]
async fn reuse_is_told() {
    let world = World::new();
    let ann = world.register("ann").await.unwrap();
    let stolen = world.login("ann").await;
    let other = world.login("ann").await;
    let (subscriptions, mut items) = world.ports.bus.receiver().await.unwrap();
    subscriptions
        .subscribe(Topic::of_user(ann.id))
        .await
        .unwrap();
    world.refresh(&stolen.refresh_token).await.unwrap();
    let thief = ClientInfo {
        ip: Some("198.51.100.7".to_owned()),
        ..ClientInfo::default()
    };
    let reused = world.auth.refresh(&stolen.refresh_token, thief).await;
    assert_eq!(code(reused), ErrorCode::Unauthenticated);

    let events = world.history(&other, History::Security).await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].kind, Kind::TokenReused);
    assert_eq!(events[0].device, Some(stolen.device));
    assert_eq!(events[0].client.ip.as_deref(), Some("198.51.100.7"));
    let told = async {
        loop {
            if let Some(BusItem::Message { payload, .. }) = items.next().await
                && let Signal::Security {
                    user,
                    kind,
                    device,
                    id,
                    ..
                } = Signal::decode(&payload).unwrap()
            {
                break (user, kind, device, id);
            }
        }
    };
    let told = tokio::time::timeout(Duration::from_secs(30), told).await;
    let expected = (ann.id, Kind::TokenReused, Some(stolen.device), events[0].id);
    assert_eq!(told.unwrap(), expected);
}

/// AUTH-08: which devices get pushes is told; a device that is ended by another one is an event.
#[tokio::test]
async fn devices_are_listed_and_ended() {
    let world = World::new();
    let ann = world.register("ann").await.unwrap();
    let (phone, laptop) = (world.login("ann").await, world.login("ann").await);
    let target = PushTarget {
        user: ann.id,
        device: phone.device,
        provider: PushProvider::Fcm,
        token: "token".to_owned(),
        p256dh: None,
        auth: None,
    };
    world.ports.push_targets.put(&target).await.unwrap();
    let who = world.who(&laptop).await.unwrap();
    let sessions = world.auth.sessions(&who).await.unwrap();
    assert_eq!(sessions.len(), 2);
    for view in sessions {
        assert_eq!(view.has_push, view.session.device == phone.device);
    }
    world.auth.end_session(&who, phone.device).await.unwrap();
    assert!(world.is_refused(&phone).await);
    let again = world.auth.end_session(&who, phone.device).await;
    assert_eq!(code(again), ErrorCode::NotFound);
    let events = world.history(&laptop, History::Security).await;
    assert_eq!(events.len(), 1);
    assert_eq!(
        (events[0].kind, events[0].device),
        (Kind::SessionEnded, Some(phone.device))
    );
    let bob = world.register("bob").await.unwrap();
    assert_ne!(bob.id, ann.id);
    let stranger = world.who(&world.login("bob").await).await.unwrap();
    let other = world.auth.end_session(&stranger, laptop.device).await;
    assert_eq!(code(other), ErrorCode::NotFound);
}

/// AUTH-08: a refresh tells where the device is now, and keeps what isn't said anew.
#[tokio::test]
async fn a_refresh_updates_the_device() {
    let world = World::new();
    world.register("ann").await.unwrap();
    let first = world.login("ann").await;
    let moved = ClientInfo {
        ip: Some("203.0.113.5".to_owned()),
        ..ClientInfo::default()
    };
    let second = world
        .auth
        .refresh(&first.refresh_token, moved)
        .await
        .unwrap();
    let who = world.who(&second).await.unwrap();
    let client = world
        .auth
        .sessions(&who)
        .await
        .unwrap()
        .remove(0)
        .session
        .client;
    assert_eq!(client.ip.as_deref(), Some("203.0.113.5"));
    assert_eq!(client.device_name.as_deref(), Some("Ann'sphone"));
    assert_eq!(client.device_type, Some(DeviceType::Phone));
}

/// AUTH-12: a stranger with many addresses locks an account for strangers; its owner, where they were before, gets in.
#[tokio::test]
async fn a_stranger_locks_nobody_out() {
    let world = World::new();
    world.register("ann").await.unwrap();
    let home = world.login("ann").await;
    for host in 0..100 {
        let ip = format!("198.51.100.{host}");
        let outcome = world.login_from(&ip, "ann", "wrong").await;
        assert_eq!(code(outcome), ErrorCode::Unauthenticated, "{host}");
    }
    for name in ["ann", "ann@example.com"] {
        let outcome = world.login_from("203.0.113.1", name, PASSWORD).await;
        assert_eq!(code(outcome), ErrorCode::RateLimited);
        assert!(world.login_from("192.0.2.1", name, PASSWORD).await.is_ok());
    }
    // Where the owner was before, guesses have their own limit.
    for _ in 0..3 {
        let outcome = world.login_from("192.0.2.1", "ann", "wrong").await;
        assert_eq!(code(outcome), ErrorCode::Unauthenticated);
    }
    let outcome = world.login_from("192.0.2.1", "ann", PASSWORD).await;
    assert_eq!(code(outcome), ErrorCode::RateLimited);
    let kinds = world.kinds(&home, History::Security, 1).await;
    assert_eq!(kinds, [Kind::Locked], "noted once");
    // Names that nobody has answer alike.
    for host in 0..100 {
        let ip = format!("198.51.100.{host}");
        let outcome = world.login_from(&ip, "nobody", "wrong").await;
        assert_eq!(code(outcome), ErrorCode::Unauthenticated);
    }
    let outcome = world.login_from("203.0.113.1", "nobody", "wrong").await;
    assert_eq!(code(outcome), ErrorCode::RateLimited);
}

/// AUTH-12: failed logins push nothing else out of the log, and stay bounded themselves.
#[tokio::test]
async fn a_stranger_fills_no_log() {
    let world = World::new();
    world.register("ann").await.unwrap();
    let tokens = world.login("ann").await;
    let who = world.who(&tokens).await.unwrap();
    for _ in 0..130 {
        let client = ClientInfo::default();
        world
            .auth
            .notes
            .note(who.user, Kind::LoginFailed, None, client)
            .await;
    }
    let log = &world.ports.security;
    let failures = log.list(
        carillon_domain::security::Trail::Failures,
        who.user,
        None,
        1_000,
    );
    assert_eq!(failures.await.unwrap().len(), 100);
    let logins = log.list(
        carillon_domain::security::Trail::Logins,
        who.user,
        None,
        1_000,
    );
    assert_eq!(logins.await.unwrap().len(), 1);
}

/// AUTH-09: the new name logs in, the old one doesn't, and everybody else may have it.
#[tokio::test]
async fn usernames_are_changed() {
    let world = World::new();
    world.register("ann").await.unwrap();
    world.register("bob").await.unwrap();
    let tokens = world.login("ann").await;
    let wrong = world.rename(&tokens, "anna", Some("wrong")).await;
    assert_eq!(
        field(wrong),
        (ErrorCode::PermissionDenied, "password".to_owned())
    );
    let missing = world.rename(&tokens, "anna", None).await;
    assert_eq!(
        field(missing),
        (ErrorCode::InvalidRequest, "password".to_owned())
    );
    for bad in ["a", "änna", "an na", "admin\u{200d}"] {
        let refused = world.rename(&tokens, bad, Some(PASSWORD)).await;
        assert_eq!(
            field(refused),
            (ErrorCode::InvalidRequest, "username".to_owned())
        );
    }
    let taken = world.rename(&tokens, "BOB", Some(PASSWORD)).await;
    assert_eq!(
        field(taken),
        (ErrorCode::AlreadyExists, "username".to_owned())
    );

    let user = world.rename(&tokens, "Anna", Some(PASSWORD)).await.unwrap();
    assert_eq!(
        (user.username.as_str(), user.display_name.as_str()),
        ("Anna", "Anna")
    );
    world.login("anna").await;
    let old = world.login_from("192.0.2.1", "ann", PASSWORD).await;
    assert_eq!(code(old), ErrorCode::Unauthenticated);
    let found = world.auth.user_by_name(None, "anna").await.unwrap();
    assert_eq!(found, Some(user));
    assert!(!world.is_refused(&tokens).await, "a name ends no session");
    let security = world.history(&tokens, History::Security).await;
    let kinds: Vec<_> = security.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [Kind::UsernameChanged]);
    let account = NewAccount {
        username: "ann".to_owned(),
        email: "heir@example.com".to_owned(),
        password: PASSWORD.to_owned(),
    };
    world.auth.register(account).await.unwrap();
}

/// AUTH-09: addresses that are written differently are one; other devices are logged out.
#[tokio::test]
async fn addresses_are_changed() {
    let world = World::new();
    world.register("ann").await.unwrap();
    world.register("bob").await.unwrap();
    let (other, tokens) = (world.login("ann").await, world.login("ann").await);
    let taken = world
        .move_to(&tokens, " BOB@Example.com ", Some(PASSWORD))
        .await;
    assert_eq!(field(taken), (ErrorCode::AlreadyExists, "email".to_owned()));
    let bad = world.move_to(&tokens, "no address", Some(PASSWORD)).await;
    assert_eq!(field(bad), (ErrorCode::InvalidRequest, "email".to_owned()));
    assert!(!world.is_refused(&other).await);

    let new = "Ann@Bücher.example";
    world.move_to(&tokens, new, Some(PASSWORD)).await.unwrap();
    assert!(world.is_refused(&other).await);
    assert!(!world.is_refused(&tokens).await);
    for name in [
        new,
        "ann@xn--bcher-kva.example",
        "ann@bu\u{308}cher.example",
    ] {
        world.login(name).await;
    }
    let old = world
        .login_from("192.0.2.1", "ann@example.com", PASSWORD)
        .await;
    assert_eq!(code(old), ErrorCode::Unauthenticated);
}

/// AUTH-09: the new password logs in and the old one doesn't; other devices are logged out.
#[tokio::test]
async fn passwords_are_changed() {
    let world = World::new();
    world.register("ann").await.unwrap();
    let (other, tokens) = (world.login("ann").await, world.login("ann").await);
    let wrong = world.set_password(&tokens, Some("wrong"), OTHER).await;
    let expected = (ErrorCode::PermissionDenied, "current_password".to_owned());
    assert_eq!(field(wrong), expected);
    let short = world.set_password(&tokens, Some(PASSWORD), "short").await;
    assert_eq!(
        field(short),
        (ErrorCode::InvalidRequest, "new_password".to_owned())
    );
    assert!(!world.is_refused(&other).await, "nothing happened yet");

    world
        .set_password(&tokens, Some(PASSWORD), OTHER)
        .await
        .unwrap();
    assert!(world.is_refused(&other).await);
    assert!(world.refresh(&other.refresh_token).await.is_err());
    assert!(!world.is_refused(&tokens).await);
    let old = world.login_from("192.0.2.1", "ann", PASSWORD).await;
    assert_eq!(code(old), ErrorCode::Unauthenticated);
    world.login_from("192.0.2.1", "ann", OTHER).await.unwrap();
    let kinds = world.kinds(&tokens, History::Security, 1).await;
    assert_eq!(kinds, [Kind::PasswordChanged]);
    let failed = world.history(&tokens, History::Logins).await;
    let by_device: Vec<_> = failed
        .iter()
        .filter(|event| event.kind == Kind::LoginFailed && event.device == Some(tokens.device))
        .collect();
    assert_eq!(by_device.len(), 1, "a wrong password of a device is told");
}

/// AUTH-09: whoever stole a token can't try passwords by it for ever, and doing so locks no login.
#[tokio::test]
async fn tries_of_the_current_password_are_bounded() {
    let world = World::new();
    world.register("ann").await.unwrap();
    let tokens = world.login("ann").await;
    for _ in 0..3 {
        let wrong = world.rename(&tokens, "anna", Some("wrong")).await;
        assert_eq!(code(wrong), ErrorCode::PermissionDenied);
    }
    let right = world.rename(&tokens, "anna", Some(PASSWORD)).await;
    assert_eq!(code(right), ErrorCode::RateLimited);
    world.login("ann").await;
    world.clock.advance(Duration::from_secs(14 * 60));
    let still = world.set_password(&tokens, Some(PASSWORD), OTHER).await;
    assert_eq!(code(still), ErrorCode::RateLimited);
}

/// AUTH-03, AUTH-09: an account without a password gets its first one shortly after a login, and not with an old token.
#[tokio::test]
async fn a_recent_login_stands_for_a_password() {
    let world = World::new();
    let tokens = world.by_phone().await;
    world.clock.advance(Duration::from_secs(11 * 60));
    let late = world.set_password(&tokens, None, PASSWORD).await;
    assert_eq!(code(late), ErrorCode::FailedPrecondition);
    let tokens = world.by_phone().await;
    let user = world.rename(&tokens, "ann", None).await.unwrap();
    assert_eq!(user.username, "ann");
    world
        .move_to(&tokens, "ann@example.com", None)
        .await
        .unwrap();
    world.set_password(&tokens, None, PASSWORD).await.unwrap();
    world.login("ann@example.com").await;
    let needs_it = world.rename(&tokens, "anna", None).await;
    assert_eq!(code(needs_it), ErrorCode::InvalidRequest);
}

/// AUTH-09: changes at the same time: one of them wins, and the others are told to try again.
#[tokio::test]
async fn concurrent_changes_of_a_password() {
    let world = World::new();
    world.register("ann").await.unwrap();
    let tokens = world.login("ann").await;
    let new = |n| format!("{OTHER} {n}");
    let tries = (0..2).map(|n| {
        let (world, tokens) = (&world, &tokens);
        async move { world.set_password(tokens, Some(PASSWORD), &new(n)).await }
    });
    let outcomes = futures::future::join_all(tries).await;
    let won: Vec<usize> = (0..2).filter(|n| outcomes[*n].is_ok()).collect();
    for outcome in outcomes.into_iter().filter(Result::is_err) {
        let code = outcome.unwrap_err().code;
        assert!(matches!(
            code,
            ErrorCode::Unavailable | ErrorCode::PermissionDenied
        ));
    }
    assert_eq!(won.len(), 1);
    world
        .login_from("192.0.2.1", "ann", &new(won[0]))
        .await
        .unwrap();
}

impl World {
    async fn found(&self, tokens: &Tokens, query: &str) -> Vec<String> {
        let who = self.who(tokens).await.unwrap();
        let found = self.auth.search(&who, query, None, 50).await.unwrap();
        assert_eq!(found.next, None);
        found.users.into_iter().map(|user| user.username).collect()
    }

    async fn show(&self, tokens: &Tokens, change: ProfileChange) -> Result<User> {
        let who = self.who(tokens).await.unwrap();
        self.auth.change_profile(&who, change).await
    }

    async fn call_oneself(&self, tokens: &Tokens, name: &str) -> User {
        let change = ProfileChange {
            display_name: Some(name.to_owned()),
            ..ProfileChange::default()
        };
        self.show(tokens, change).await.unwrap()
    }
}

/// USER-01, AUTH-15: what somebody writes of themselves is shown to others, trimmed; each field that doesn't fit is named.
#[tokio::test]
async fn profiles_are_changed() {
    let world = World::new();
    let ann = world.register("ann").await.unwrap();
    let tokens = world.login("ann").await;
    let text = |text: &str| Some(text.to_owned());
    let change = ProfileChange {
        display_name: text(" A\u{308}nn "),
        bio: text("one\ntwo"),
        status: text("away"),
    };
    let changed = world.show(&tokens, change).await.unwrap();
    assert_eq!(changed.display_name, "Änn");
    assert_eq!(
        (changed.about.bio.as_str(), changed.about.status.as_str()),
        ("one\ntwo", "away")
    );
    let seen = world
        .auth
        .users(Some(UserId::new()), &[ann.id])
        .await
        .unwrap();
    assert_eq!(seen.first(), Some(&changed));
    let only_status = ProfileChange {
        status: text(""),
        ..ProfileChange::default()
    };
    let changed = world.show(&tokens, only_status).await.unwrap();
    assert_eq!(
        (changed.about.bio.as_str(), changed.about.status.as_str()),
        ("one\ntwo", "")
    );
    assert_eq!(world.call_oneself(&tokens, " ").await.display_name, "ann");

    let wrong = ProfileChange {
        display_name: text("\u{202e}nna"),
        bio: text(&"x".repeat(501)),
        status: text("two\nlines"),
    };
    let error = world.show(&tokens, wrong).await.unwrap_err();
    let fields: Vec<_> = error
        .fields
        .iter()
        .map(|field| field.field.as_str())
        .collect();
    assert_eq!(fields, ["display_name", "bio", "status"]);
}

/// USER-03: by the beginning of either name, however it is written, and never by a name that somebody no longer has.
#[tokio::test]
async fn people_are_found() {
    let world = World::new();
    for name in ["anna", "Annika", "bob", "zoe"] {
        world.register(name).await.unwrap();
    }
    let [anna, bob, zoe] = ["anna", "bob", "zoe"].map(|name| world.login(name));
    let (anna, bob, zoe) = (anna.await, bob.await, zoe.await);
    assert_eq!(world.found(&bob, "AN").await, ["anna", "Annika"]);
    assert_eq!(world.found(&bob, "anni").await, ["Annika"]);
    assert!(world.found(&bob, "nn").await.is_empty());
    world.call_oneself(&zoe, "Ännchen  von Tharau").await;
    for query in ["änn", "A\u{308}nnchen VON", "zo"] {
        assert_eq!(world.found(&bob, query).await, ["zoe"], "{query}");
    }
    // Both names begin so: once.
    world.call_oneself(&anna, "Anna Blume").await;
    assert_eq!(world.found(&bob, "anna").await, ["anna"]);
    world.call_oneself(&zoe, "Zoe").await;
    assert!(world.found(&bob, "änn").await.is_empty());
    world.rename(&anna, "hannah", Some(PASSWORD)).await.unwrap();
    assert_eq!(
        world.found(&bob, "anna").await,
        ["hannah"],
        "by the shown name"
    );
    world.call_oneself(&anna, "").await;
    assert!(world.found(&bob, "anna").await.is_empty());
    assert_eq!(world.found(&bob, "hannah").await, ["hannah"]);
    let taken = world.rename(&anna, "bob", Some(PASSWORD)).await;
    assert_eq!(code(taken), ErrorCode::AlreadyExists);
    assert_eq!(world.found(&bob, "bob").await, ["bob"]);
    assert!(world.register("bob").await.is_err());
    assert_eq!(world.found(&bob, "bob").await, ["bob"]);

    let who = world.who(&bob).await.unwrap();
    for (query, after, limit, field) in [
        ("b", None, 10, "q"),
        (" b ", None, 10, "q"),
        (&*"x".repeat(81), None, 10, "q"),
        ("bob", None, 0, "limit"),
        ("bob", None, 51, "limit"),
        ("bob", Some("nonsense"), 10, "cursor"),
    ] {
        let error = world
            .auth
            .search(&who, query, after, limit)
            .await
            .unwrap_err();
        assert_eq!(error.fields[0].field, field, "{query}");
    }
}

/// USER-03, USER-05: pages have everybody once; who blocked the caller isn't found.
#[tokio::test]
async fn found_people_come_in_pages() {
    let world = World::new();
    world.register("zoe").await.unwrap();
    let tokens = world.login("zoe").await;
    let who = world.who(&tokens).await.unwrap();
    let mut expected = Vec::new();
    for n in 0..7 {
        let user = world.register(&format!("person{n}")).await.unwrap();
        if n % 3 == 1 {
            let now = world.clock.now();
            let people = &world.ports.people;
            people
                .put(Relation::Block, user.id, who.user, now, 10)
                .await
                .unwrap();
        } else {
            expected.push(user.username);
        }
    }
    for limit in 1..5 {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = world.auth.search(&who, "pers", after.as_deref(), limit);
            let page = page.await.unwrap();
            assert!(page.users.len() <= limit);
            found.extend(page.users.into_iter().map(|user| user.username));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(found, expected, "{limit}");
    }
}

/// AUTH-15: with the password, everything that the role holds goes at once, the names are free, and the other parts are told.
#[tokio::test(flavor = "multi_thread")]
async fn an_erased_account_is_gone() {
    let world = World::new();
    let ann = world.joined("ann").await;
    let bob = world.joined("bob").await;
    let who = world.who(&ann).await.unwrap();
    let people = &world.ports.people;
    for (user, other) in [(ann.user.id, bob.user.id), (bob.user.id, ann.user.id)] {
        let put = people.put(Relation::Contact, user, other, Timestamp(1), 10);
        assert!(put.await.unwrap());
    }
    let push = PushTarget {
        user: ann.user.id,
        device: ann.device,
        provider: PushProvider::Fcm,
        token: "token".into(),
        p256dh: None,
        auth: None,
    };
    world.ports.push_targets.put(&push).await.unwrap();

    for (password, field) in [(None, "is required"), (Some("wrong"), "is wrong")] {
        let password = password.map(str::to_owned);
        let refused = world.auth.erase(&who, password).await.unwrap_err();
        assert_eq!(refused.fields[0].field, "password");
        assert!(refused.fields[0].detail.contains(field));
    }
    assert!(world.who(&ann).await.is_ok());
    world.auth.erase(&who, Some(PASSWORD.into())).await.unwrap();

    assert!(world.who(&ann).await.is_err());
    let id = ann.user.id;
    assert!(world.auth.users(None, &[id]).await.unwrap().is_empty());
    let named = world.auth.user_by_name(None, &ann.user.username).await;
    assert_eq!(named.unwrap(), None);
    let found = world.ports.people_index.find("an", None, 10).await.unwrap();
    assert!(found.iter().all(|(_, user)| *user != id));
    assert!(world.ports.sessions.list(id).await.unwrap().is_empty());
    assert!(
        world
            .ports
            .push_targets
            .of_users(&[id])
            .await
            .unwrap()
            .is_empty()
    );
    for user in [id, bob.user.id] {
        let contacts = people.list(Relation::Contact, user, None, 10).await;
        assert!(contacts.unwrap().is_empty());
    }
    for trail in Trail::ALL {
        let events = world.ports.security.list(trail, id, None, 10).await;
        assert!(events.unwrap().is_empty());
    }
    let keys = &world.ports.person_keys;
    let state = keys.of(&[id]).await.unwrap();
    assert!(matches!(state[..], [(_, KeyState::Destroyed(_))]));
    assert!(
        keys.erasing(ErasurePart::Account, 10)
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(keys.erasing(ErasurePart::Rooms, 10).await.unwrap(), [id]);
    let again = world.joined("ann").await;
    assert_ne!(again.user.id, id);
}

/// AUTH-15: what was cut off right after it was noted is done by whoever finds the note.
#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_that_was_cut_off_goes_on() {
    let world = World::new();
    let ann = world.joined("ann").await;
    let keys = &world.ports.person_keys;
    keys.begin_erasing(ann.user.id, Timestamp(1)).await.unwrap();
    world.auth.erase_those_waiting().await.unwrap();
    assert!(world.who(&ann).await.is_err());
    let users = world.auth.users(None, &[ann.user.id]).await.unwrap();
    assert!(users.is_empty());
    assert!(
        keys.erasing(ErasurePart::Account, 10)
            .await
            .unwrap()
            .is_empty()
    );
}
