//! Mail: confirmation of addresses and forgotten passwords (AUTH-10).

use std::time::Duration;

use parking_lot::Mutex;

use super::*;
use crate::{Mail, MailError, MailOptions, Mailer};

const NEW_PASSWORD: &str = "another horse battery";

/// Keeps what it is given; fails as often as it is told.
#[derive(Default)]
struct Keeper {
    sent: Mutex<Vec<(String, &'static str, String)>>,
    failures: Mutex<Vec<MailError>>,
}

#[async_trait]
impl Mailer for Keeper {
    async fn send(&self, mail: &Mail) -> Result<(), MailError> {
        if let Some(error) = self.failures.lock().pop() {
            return Err(error);
        }
        let kept = (mail.to.clone(), mail.subject, mail.text.clone());
        self.sent.lock().push(kept);
        Ok(())
    }
}

impl Keeper {
    /// Waits until so many mails were sent; the last one.
    async fn nth(&self, count: usize) -> (String, &'static str, String) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(mail) = self.sent.lock().get(count - 1) {
                return mail.clone();
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "mail {count} didn't come"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The token in the mail that came last of so many.
    async fn token(&self, count: usize, what: &str) -> String {
        let (_, _, text) = self.nth(count).await;
        let link = text.lines().find(|line| line.contains('#')).unwrap();
        let token = link.strip_prefix(&format!("https://town.example.com/#{what}="));
        token.unwrap().to_owned()
    }
}

fn with_mail() -> (World, Arc<Keeper>) {
    let keeper = Arc::new(Keeper::default());
    let mut world = World::new();
    let options = MailOptions {
        mailer: keeper.clone(),
        name: "town".into(),
        public_url: "https://town.example.com".parse().unwrap(),
    };
    world.auth = auth_with(&[&world.pem], &world.ports).with_mail(options);
    (world, keeper)
}

impl World {
    async fn confirm(&self, token: &str) -> Result<()> {
        let accounts: &dyn AccountService = &self.auth;
        accounts.verify_email(token, ClientInfo::default()).await
    }

    async fn reset(&self, token: &str, new: &str) -> Result<()> {
        let accounts: &dyn AccountService = &self.auth;
        let client = ClientInfo::default();
        accounts.reset_password(token, new.to_owned(), client).await
    }

    /// Somebody whose address is confirmed by the mail of this number.
    async fn confirmed(&self, keeper: &Keeper, name: &str, mail: usize) -> User {
        let user = self.register(name).await.unwrap();
        let token = keeper.token(mail, "verify").await;
        self.confirm(&token).await.unwrap();
        user
    }

    async fn address_of(&self, user: UserId) -> Option<String> {
        let accounts = self.ports.accounts.by_ids(&[user]).await.unwrap();
        accounts[0].email.clone()
    }
}

fn is_bad_token(result: Result<()>) -> bool {
    result.is_err_and(|error| {
        error.code == ErrorCode::InvalidRequest && error.fields[0].field == "token"
    })
}

/// AUTH-10: an address is an account's once the token that was mailed there came back, once.
#[tokio::test]
async fn an_address_is_confirmed_once() {
    let (world, keeper) = with_mail();
    let user = world.register("ann").await.unwrap();
    assert_eq!(world.address_of(user.id).await, None);
    assert!(world.login_from("192.0.2.1", "ann", PASSWORD).await.is_ok());
    let early = world.login_from("192.0.2.1", "ann@example.com", PASSWORD);
    assert_eq!(early.await.unwrap_err().code, ErrorCode::Unauthenticated);
    let (to, ..) = keeper.nth(1).await;
    assert_eq!(to, "ann@example.com");
    let token = keeper.token(1, "verify").await;
    let mut other = token.clone();
    other.replace_range(40..41, if &token[40..41] == "A" { "B" } else { "A" });
    for wrong in [
        other.as_str(),
        "",
        "AAAA",
        &"A".repeat(64),
        &"A".repeat(10_000),
    ] {
        assert!(is_bad_token(world.confirm(wrong).await), "{wrong}");
    }
    // A token for one thing is none for another.
    assert!(is_bad_token(world.reset(&token, NEW_PASSWORD).await));
    world.confirm(&token).await.unwrap();
    assert_eq!(
        world.address_of(user.id).await.as_deref(),
        Some("ann@example.com")
    );
    assert!(is_bad_token(world.confirm(&token).await));
    let by_mail = world.login_from("192.0.2.1", "ann@example.com", PASSWORD);
    assert!(by_mail.await.is_ok());
}

/// AUTH-10: who asks can't tell from answers whether somebody has an address; its owner is told.
#[tokio::test]
async fn a_known_address_is_told_to_its_owner_only() {
    let (world, keeper) = with_mail();
    world.confirmed(&keeper, "ann", 1).await;
    let account = |username: &str, email: &str| NewAccount {
        username: username.to_owned(),
        email: email.to_owned(),
        password: PASSWORD.to_owned(),
    };
    let eve = world.auth.register(account("eve", "Ann@example.com"));
    let eve = eve.await.unwrap();
    let (to, subject, text) = keeper.nth(2).await;
    assert_eq!(to, "ann@example.com");
    assert_eq!(subject, "You have an account already");
    assert!(!text.contains('#') && !text.contains("eve"), "{text}");
    // The rest of what the caller sees is as with a fresh address.
    let fresh = world.auth.register(account("eva", "fresh@example.com"));
    let fresh = fresh.await.unwrap();
    for user in [&eve, &fresh] {
        assert_eq!(world.address_of(user.id).await, None);
        let login = world.login_from("192.0.2.2", &user.username, PASSWORD);
        assert!(login.await.is_ok());
    }
    // A username is told.
    let taken = world.auth.register(account("ann", "other@example.com"));
    let taken = taken.await.unwrap_err();
    assert_eq!(taken.code, ErrorCode::AlreadyExists);
    assert_eq!(taken.fields.len(), 1);
    assert_eq!(taken.fields[0].field, "username");
    // So it is with a change.
    let tokens = world
        .login_from("192.0.2.2", "eve", PASSWORD)
        .await
        .unwrap();
    let who = world.verifier.verify_access(&tokens.access_token).await;
    let who = who.unwrap();
    for address in ["ann@example.com", "unknown@example.com"] {
        let change = world
            .auth
            .change_email(&who, address, Some(PASSWORD.into()));
        change.await.unwrap();
    }
    assert_eq!(world.address_of(eve.id).await, None);
}

/// AUTH-10: whose address is known and whose isn't are answered alike; a mail goes to the one, with the last token alone.
#[tokio::test]
async fn a_forgotten_password_is_set_anew() {
    let (world, keeper) = with_mail();
    let ann = world.confirmed(&keeper, "ann", 1).await;
    let tokens = world
        .login_from("192.0.2.1", "ann", PASSWORD)
        .await
        .unwrap();
    for address in ["nobody@example.com", "ann@Example.com", "ann@example.com"] {
        world.auth.forgot_password(address).await.unwrap();
    }
    let first = keeper.token(2, "reset").await;
    let last = keeper.token(3, "reset").await;
    // Both were mailed at the same time: either may be the one that counts, and the other one doesn't.
    let short = world.reset(&last, "short").await.unwrap_err();
    assert_eq!(short.fields[0].field, "new_password");
    let outcomes = [
        world.reset(&first, NEW_PASSWORD).await,
        world.reset(&last, NEW_PASSWORD).await,
    ];
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    for token in [&first, &last] {
        assert!(is_bad_token(world.reset(token, PASSWORD).await));
    }
    // Every session has ended, and the old password with them.
    assert!(
        world
            .verifier
            .verify_access(&tokens.access_token)
            .await
            .is_err()
    );
    assert!(world.refresh(&tokens.refresh_token).await.is_err());
    let old = world.login_from("192.0.2.1", "ann", PASSWORD).await;
    assert_eq!(old.unwrap_err().code, ErrorCode::Unauthenticated);
    assert!(
        world
            .login_from("192.0.2.1", "ann", NEW_PASSWORD)
            .await
            .is_ok()
    );
    let log = &world.ports.security;
    let kind = SecurityEventKind::PasswordReset;
    let events = log.list(kind.trail(), ann.id, None, 10).await.unwrap();
    assert_eq!(events[0].kind, kind);
    assert_eq!(keeper.sent.lock().len(), 3);
}

/// AUTH-10: tokens end by themselves, and with the password and address that they were for.
#[tokio::test]
async fn tokens_end() {
    let (world, keeper) = with_mail();
    world.confirmed(&keeper, "ann", 1).await;
    world.auth.forgot_password("ann@example.com").await.unwrap();
    let late = keeper.token(2, "reset").await;
    world.clock.advance(Duration::from_secs(31 * 60));
    assert!(is_bad_token(world.reset(&late, NEW_PASSWORD).await));

    world.auth.forgot_password("ann@example.com").await.unwrap();
    let overtaken = keeper.token(3, "reset").await;
    let tokens = world
        .login_from("192.0.2.1", "ann", PASSWORD)
        .await
        .unwrap();
    let who = world.verifier.verify_access(&tokens.access_token).await;
    let who = who.unwrap();
    let current = Some(PASSWORD.to_owned());
    let changed = world
        .auth
        .change_password(&who, current, NEW_PASSWORD.into());
    changed.await.unwrap();
    assert!(is_bad_token(world.reset(&overtaken, PASSWORD).await));

    let password = Some(NEW_PASSWORD.to_owned());
    let change = world.auth.change_email(&who, "ann@example.org", password);
    change.await.unwrap();
    let stale = keeper.token(4, "verify").await;
    world.clock.advance(Duration::from_secs(25 * 3600));
    assert!(is_bad_token(world.confirm(&stale).await));
}

/// AUTH-10: a changed address is confirmed first, and its former owner is told.
#[tokio::test]
async fn a_changed_address_is_told_to_the_old_one() {
    let (world, keeper) = with_mail();
    let ann = world.confirmed(&keeper, "ann", 1).await;
    let tokens = world
        .login_from("192.0.2.1", "ann", PASSWORD)
        .await
        .unwrap();
    let who = world.verifier.verify_access(&tokens.access_token).await;
    let who = who.unwrap();
    let password = Some(PASSWORD.to_owned());
    let change = world.auth.change_email(&who, "ann@example.org", password);
    change.await.unwrap();
    assert_eq!(
        world.address_of(ann.id).await.as_deref(),
        Some("ann@example.com")
    );
    let token = keeper.token(2, "verify").await;
    world.confirm(&token).await.unwrap();
    assert_eq!(
        world.address_of(ann.id).await.as_deref(),
        Some("ann@example.org")
    );
    let (to, subject, _) = keeper.nth(3).await;
    assert_eq!(to, "ann@example.com");
    assert_eq!(subject, "Your e-mail address was changed");
}

/// AUTH-10: somebody else was faster to confirm.
#[tokio::test]
async fn an_address_belongs_to_who_confirms_it_first() {
    let (world, keeper) = with_mail();
    let account = |username: &str| NewAccount {
        username: username.to_owned(),
        email: "shared@example.com".to_owned(),
        password: PASSWORD.to_owned(),
    };
    let ann = world.auth.register(account("ann")).await.unwrap();
    let first = keeper.token(1, "verify").await;
    world.auth.register(account("bob")).await.unwrap();
    let second = keeper.token(2, "verify").await;
    world.confirm(&second).await.unwrap();
    let late = world.confirm(&first).await.unwrap_err();
    assert_eq!(late.code, ErrorCode::AlreadyExists);
    assert_eq!(world.address_of(ann.id).await, None);
}

/// AUTH-10: an address isn't flooded, whoever asks.
#[tokio::test]
async fn mails_to_an_address_are_bounded() {
    let (world, keeper) = with_mail();
    world.confirmed(&keeper, "ann", 1).await;
    for _ in 0..20 {
        world.auth.forgot_password("ann@example.com").await.unwrap();
    }
    let to_ann = || {
        keeper
            .sent
            .lock()
            .iter()
            .filter(|mail| mail.0.starts_with("ann"))
            .count()
    };
    keeper.nth(5).await;
    // The post begins errands in order: what somebody else causes is done when most of those are.
    world.confirmed(&keeper, "bob", 6).await;
    assert_eq!(to_ann(), 5);
    world.clock.advance(Duration::from_secs(3601));
    world.auth.forgot_password("ann@example.com").await.unwrap();
    keeper.nth(7).await;
    assert!(to_ann() > 5);
}

/// AUTH-10: what may pass is tried again; what won't, isn't.
#[tokio::test]
async fn a_mail_is_tried_again() {
    let (world, keeper) = with_mail();
    let failure = |is_final| MailError {
        reason: "451".into(),
        is_final,
    };
    keeper.failures.lock().push(failure(false));
    world.confirmed(&keeper, "ann", 1).await;
    keeper.failures.lock().push(failure(true));
    world.auth.forgot_password("ann@example.com").await.unwrap();
    world.auth.forgot_password("ann@example.com").await.unwrap();
    keeper.nth(2).await;
    assert_eq!(keeper.sent.lock().len(), 2);
    assert!(keeper.failures.lock().is_empty());
}

/// AUTH-10: without mail nothing of it is offered, and a known address is told.
#[tokio::test]
async fn without_mail() {
    let world = World::new();
    let ann = world.register("ann").await.unwrap();
    assert_eq!(
        world.address_of(ann.id).await.as_deref(),
        Some("ann@example.com")
    );
    let error = world.auth.forgot_password("ann@example.com").await;
    assert_eq!(error.unwrap_err().code, ErrorCode::FailedPrecondition);
    for refused in [
        world.confirm("AAAA").await,
        world.reset("AAAA", PASSWORD).await,
    ] {
        assert_eq!(refused.unwrap_err().code, ErrorCode::FailedPrecondition);
    }
    let again = NewAccount {
        username: "eve".into(),
        email: "ann@example.com".into(),
        password: PASSWORD.into(),
    };
    let taken = world.auth.register(again).await.unwrap_err();
    assert_eq!(taken.fields[0].field, "email");
}
