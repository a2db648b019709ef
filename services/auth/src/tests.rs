//! The auth role over the embedded stores.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use carillon_adapters::embedded;
use carillon_domain::{
    Clock, DeviceId, Error, ErrorCode, Result, Timestamp, UserId,
    account::{Account, ClientInfo, DeviceType, Identity, Session, Tokens, User},
    people::Relation,
    ports::{BusItem, Rotation, SessionStore},
    security::SecurityEventKind,
    services::{AccountService, AuthService, Login, NewAccount, TokenVerifier},
    signal::{Signal, Topic},
};
use futures::StreamExt;
use uuid::Uuid;

use crate::{
    Auth, AuthOptions, DevOtp, OtpProvider, PasswordOptions, Ports, SigningKeys, Verifier,
};

mod accounts;
mod mail;
mod twilio;

const PASSWORD: &str = "correct horse battery";
const PHONE: &str = "+14155550100";

struct TestClock(AtomicI64);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}

impl TestClock {
    fn advance(&self, by: Duration) {
        let by = i64::try_from(by.as_millis()).unwrap();
        self.0.fetch_add(by, Ordering::SeqCst);
    }
}

/// Sessions that can be cut off, as by a network.
struct CuttableSessions {
    inner: Arc<dyn SessionStore>,
    cut: AtomicBool,
    /// Answers of rotations that are lost, and whether the rotation takes place before that.
    lost: parking_lot::Mutex<Vec<bool>>,
}

impl CuttableSessions {
    fn reach(&self) -> Result<&dyn SessionStore> {
        if self.cut.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorCode::Unavailable, "cut off"));
        }
        Ok(self.inner.as_ref())
    }
}

#[async_trait]
impl SessionStore for CuttableSessions {
    async fn put(&self, session: &Session) -> Result<()> {
        self.reach()?.put(session).await
    }
    async fn get(&self, user: UserId, device: DeviceId) -> Result<Option<Session>> {
        self.reach()?.get(user, device).await
    }
    async fn rotate(&self, old_hash: &[u8; 32], next: &Session) -> Result<Rotation> {
        let lost = self.lost.lock().pop();
        if lost != Some(false) {
            let done = self.reach()?.rotate(old_hash, next).await;
            if lost.is_none() {
                return done;
            }
        }
        Err(Error::new(ErrorCode::Unavailable, "no answer in time"))
    }
    async fn remove(&self, user: UserId, device: DeviceId) -> Result<Option<Session>> {
        self.reach()?.remove(user, device).await
    }
    async fn list(&self, user: UserId) -> Result<Vec<Session>> {
        self.reach()?.list(user).await
    }
    async fn revoke_token(&self, token_id: Uuid, until: Timestamp) -> Result<()> {
        self.reach()?.revoke_token(token_id, until).await
    }
    async fn is_revoked(&self, token_id: Uuid) -> Result<bool> {
        self.reach()?.is_revoked(token_id).await
    }
}

struct World {
    auth: Auth,
    verifier: Verifier,
    sessions: Arc<CuttableSessions>,
    ports: Ports,
    clock: Arc<TestClock>,
    pem: String,
    _directory: tempfile::TempDir,
}

fn options() -> AuthOptions {
    AuthOptions {
        issuer: "town".to_owned(),
        passwords: PasswordOptions {
            memory_kib: 64,
            iterations: 1,
            lanes: 1,
            workers: 2,
            waiting: 64,
        },
        max_failed_logins: 3,
        max_devices: 3,
        ..AuthOptions::default()
    }
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = Arc::new(TestClock(AtomicI64::new(1_700_000_000_000)));
        let stores = embedded::open_with(
            directory.path(),
            embedded::Options {
                clock: clock.clone(),
                ..embedded::Options::default()
            },
        )
        .unwrap();
        let sessions = Arc::new(CuttableSessions {
            inner: stores.sessions.clone(),
            cut: AtomicBool::new(false),
            lost: parking_lot::Mutex::default(),
        });
        let ports = Ports {
            accounts: stores.accounts.clone(),
            people: stores.people.clone(),
            settings: stores.settings.clone(),
            people_index: stores.people_index.clone(),
            security: stores.security.clone(),
            person_keys: stores.person_keys.clone(),
            push_targets: stores.push_targets.clone(),
            sessions: sessions.clone(),
            ephemeral: stores.ephemeral.clone(),
            bus: stores.bus.clone(),
            clock: clock.clone(),
        };
        let (pem, _) = SigningKeys::generate().unwrap();
        let mut world = Self {
            auth: auth_with(&[&pem], &ports),
            verifier: verifier_with(&[&pem], &ports),
            sessions,
            ports,
            clock,
            pem,
            _directory: directory,
        };
        world.rotate_keys(&[&world.pem.clone()]);
        world
    }

    /// Restarts the role with these keys, as an operator does.
    fn rotate_keys(&mut self, pems: &[&str]) {
        self.auth = auth_with(pems, &self.ports);
        self.verifier
            .replace_keys(SigningKeys::from_pem(pems).unwrap().verifying_keys());
    }

    async fn register(&self, name: &str) -> Result<User> {
        self.auth
            .register(NewAccount {
                username: name.to_owned(),
                email: format!("{name}@Example.com"),
                password: PASSWORD.to_owned(),
            })
            .await
    }

    async fn login_from(&self, ip: &str, login: &str, password: &str) -> Result<Tokens> {
        let client = ClientInfo {
            device_name: Some("Ann's\nphone".to_owned()),
            user_agent: Some("x".repeat(1000)),
            ip: Some(ip.to_owned()),
            device_type: Some(DeviceType::Phone),
            platform: Some("p".repeat(1000)),
        };
        let login = Login {
            login: login.to_owned(),
            password: password.to_owned(),
        };
        self.auth.login(login, client).await
    }

    async fn refresh(&self, refresh_token: &str) -> Result<Tokens> {
        let client = ClientInfo::default();
        self.auth.refresh(refresh_token, client).await
    }

    async fn login(&self, login: &str) -> Tokens {
        self.login_from("192.0.2.1", login, PASSWORD).await.unwrap()
    }

    async fn who(&self, tokens: &Tokens) -> Result<Identity> {
        self.verifier.verify_access(&tokens.access_token).await
    }

    async fn is_refused(&self, tokens: &Tokens) -> bool {
        match self.who(tokens).await {
            Ok(_) => false,
            Err(error) => {
                assert_eq!(error.code, ErrorCode::Unauthenticated);
                true
            }
        }
    }
}

fn auth_with(pems: &[&str], ports: &Ports) -> Auth {
    let otp: Arc<dyn OtpProvider> = Arc::new(DevOtp::new(true).unwrap());
    let keys = SigningKeys::from_pem(pems).unwrap();
    Auth::new(options(), ports.clone(), keys, Some(otp)).unwrap()
}

fn verifier_with(pems: &[&str], ports: &Ports) -> Verifier {
    Verifier::new(
        SigningKeys::from_pem(pems).unwrap().verifying_keys(),
        "town",
        ports.sessions.clone(),
        ports.clock.clone(),
    )
}

fn code<T>(result: Result<T>) -> ErrorCode {
    result.err().expect("must be refused").code
}

/// AUTH-01: a new account, then the same names again in another case.
#[tokio::test]
async fn names_are_taken_once() {
    let world = World::new();
    let user = world.register("Ann").await.unwrap();
    assert_eq!(
        (user.username.as_str(), user.display_name.as_str()),
        ("Ann", "Ann")
    );
    let error = world.register("aNN").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::AlreadyExists);
    let fields: Vec<_> = error.fields.iter().map(|f| f.field.as_str()).collect();
    assert_eq!(fields, ["username", "email"]);
    let found = world.auth.user_by_name(None, "ANN").await.unwrap();
    assert_eq!(found, Some(user.clone()));
    assert_eq!(
        world
            .auth
            .users(None, &[UserId::new(), user.id])
            .await
            .unwrap(),
        [user]
    );
}

/// USER-05: who blocked the viewer has no profile for them; the other way round there is one, for a block must be undone somehow.
#[tokio::test]
async fn a_block_hides_the_profile() {
    let world = World::new();
    let ann = world.register("ann").await.unwrap();
    let bob = world.register("bob").await.unwrap();
    let people = &world.ports.people;
    let now = world.clock.now();
    people
        .put(Relation::Block, ann.id, bob.id, now, 10)
        .await
        .unwrap();
    let seen = async |viewer| {
        let both = [ann.id, bob.id];
        let mut seen = world.auth.users(viewer, &both).await.unwrap();
        seen.sort_by_key(|user| user.id);
        seen
    };
    let both = [ann.clone(), bob.clone()];
    assert_eq!(seen(Some(bob.id)).await, both[1..]);
    for viewer in [Some(ann.id), Some(UserId::new()), None] {
        assert_eq!(seen(viewer).await, both);
    }
    let by_name = async |viewer, name| world.auth.user_by_name(viewer, name).await.unwrap();
    assert_eq!(by_name(Some(bob.id), "ann").await, None);
    assert_eq!(by_name(None, "ann").await, Some(ann.clone()));
    assert_eq!(by_name(Some(ann.id), "bob").await, Some(bob.clone()));
    people
        .remove(Relation::Block, ann.id, bob.id)
        .await
        .unwrap();
    assert_eq!(seen(Some(bob.id)).await, both);
    assert_eq!(by_name(Some(bob.id), "ann").await, Some(ann.clone()));
}

/// AUTH-01: every field that is wrong is named.
#[tokio::test]
async fn registrations_are_checked() {
    let world = World::new();
    let account = NewAccount {
        username: "a b".to_owned(),
        email: "nobody".to_owned(),
        password: "short".to_owned(),
    };
    let error = world.auth.register(account).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidRequest);
    let fields: Vec<_> = error.fields.iter().map(|f| f.field.as_str()).collect();
    assert_eq!(fields, ["username", "email", "password"]);
}

/// AUTH-01: of two registrations with one name at once, one succeeds.
#[tokio::test]
async fn two_at_once_get_one_account() {
    let world = World::new();
    let (a, b) = tokio::join!(world.register("ann"), world.register("ann"));
    assert!(a.is_ok() != b.is_ok());
    assert_eq!(
        code(if a.is_ok() { b } else { a }),
        ErrorCode::AlreadyExists
    );
}

/// AUTH-02: by username and by e-mail, without case; the device is recorded, cut to size.
#[tokio::test]
async fn login_by_either_name() {
    let world = World::new();
    let user = world.register("ann").await.unwrap();
    for login in ["ann", "ANN", "ann@example.com", " Ann@EXAMPLE.com "] {
        let tokens = world.login(login).await;
        assert_eq!((tokens.user.id, tokens.expires_in), (user.id, 900));
        let who = world.who(&tokens).await.unwrap();
        assert_eq!((who.user, who.device), (user.id, tokens.device));
        let sessions = world.auth.sessions(&who).await.unwrap();
        let own = sessions
            .iter()
            .map(|view| &view.session)
            .find(|s| s.device == tokens.device)
            .unwrap();
        assert_eq!(own.client.device_type, Some(DeviceType::Phone));
        assert_eq!(own.client.platform.as_ref().unwrap().len(), 64);
        assert_eq!(own.client.device_name.as_deref(), Some("Ann'sphone"));
        assert_eq!(own.client.user_agent.as_ref().unwrap().len(), 256);
        assert_eq!(own.client.ip.as_deref(), Some("192.0.2.1"));
        let me = world.auth.me(&who).await.unwrap();
        assert_eq!(me, (user.clone(), Some("ann@example.com".to_owned())));
    }
}

/// AUTH-02: nobody learns whether a name exists.
#[tokio::test]
async fn an_unknown_name_and_a_wrong_password_answer_alike() {
    let world = World::new();
    world.register("ann").await.unwrap();
    let wrong = world
        .login_from("a", "ann", "wrong password")
        .await
        .unwrap_err();
    for login in ["bob", "bob@example.com", "", &"x".repeat(300)] {
        let unknown = world.login_from("a", login, PASSWORD).await.unwrap_err();
        assert_eq!(wrong.code, ErrorCode::Unauthenticated);
        assert_eq!((unknown.code, &unknown.detail), (wrong.code, &wrong.detail));
    }
}

/// AUTH-02: guesses are bounded per account and address, also many at once; a success starts the count again; the end of the
/// window too.
#[tokio::test]
async fn failed_logins_are_bounded() {
    let world = World::new();
    world.register("ann").await.unwrap();
    for _ in 0..2 {
        assert_eq!(
            code(world.login_from("a", "ann", "wrong").await),
            ErrorCode::Unauthenticated
        );
    }
    world.login_from("a", "ann", PASSWORD).await.unwrap();
    let guesses = (0..10).map(|_| world.login_from("a", "ann", "wrong"));
    let codes: Vec<_> = futures::future::join_all(guesses)
        .await
        .into_iter()
        .map(code)
        .collect();
    let tried = codes
        .iter()
        .filter(|c| **c == ErrorCode::Unauthenticated)
        .count();
    assert_eq!(tried, 3, "{codes:?}");
    let refused = world.login_from("a", "ann", PASSWORD).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::RateLimited);
    assert!(refused.retry_after.is_some());
    assert!(world.login_from("elsewhere", "ann", PASSWORD).await.is_ok());
    world.clock.advance(Duration::from_secs(15 * 60 + 1));
    assert!(world.login_from("a", "ann", PASSWORD).await.is_ok());
}

/// AUTH-02: what was never found out to be wrong isn't counted: a storm of logins locks nobody out who knows their password.
#[tokio::test]
async fn overload_is_no_failed_login() {
    let world = World::new();
    world.register("ann").await.unwrap();
    let keys = SigningKeys::from_pem([&world.pem]).unwrap();
    let full = AuthOptions {
        passwords: PasswordOptions {
            workers: 1,
            waiting: 0,
            ..options().passwords
        },
        ..options()
    };
    let full = Auth::new(full, world.ports.clone(), keys, None).unwrap();
    let _busy = full.passwords_for_tests().occupy();
    for _ in 0..10 {
        let login = Login {
            login: "ann".to_owned(),
            password: PASSWORD.to_owned(),
        };
        let client = ClientInfo {
            ip: Some("192.0.2.1".to_owned()),
            ..ClientInfo::default()
        };
        assert_eq!(
            code(full.login(login, client).await),
            ErrorCode::Unavailable
        );
    }
    world.login("ann").await;
}

/// AUTH-02: addresses of one IPv6 network are one guesser, and an account has a limit over all addresses and both of its names.
#[tokio::test]
async fn guesses_are_bounded_however_they_come() {
    let world = World::new();
    world.register("ann").await.unwrap();
    let wrong = |ip: String, name: &'static str| {
        let world = &world;
        async move { code(world.login_from(&ip, name, "wrong").await) }
    };
    for host in 1..=3 {
        let ip = format!("2001:db8::{host}");
        assert_eq!(wrong(ip, "ann").await, ErrorCode::Unauthenticated);
    }
    let same = wrong("2001:db8::ffff:4".to_owned(), "ann").await;
    assert_eq!(same, ErrorCode::RateLimited);
    assert!(
        world
            .login_from("2001:db8:0:1::1", "ann", PASSWORD)
            .await
            .is_ok()
    );

    for host in 3..100 {
        let name = if host % 2 == 0 {
            "ann"
        } else {
            "ann@example.com"
        };
        let outcome = wrong(format!("192.0.2.{host}"), name).await;
        assert_eq!(outcome, ErrorCode::Unauthenticated, "{host}");
    }
    for name in ["ann", "ann@example.com"] {
        let outcome = world.login_from("198.51.100.1", name, PASSWORD).await;
        assert_eq!(code(outcome), ErrorCode::RateLimited);
    }
    world.clock.advance(Duration::from_secs(15 * 60 + 1));
    world.login("ann").await;
}

/// AUTH-11: an imported account logs in with its old hash, and has a new one afterwards.
#[tokio::test]
async fn imported_hashes_are_upgraded_at_login() {
    let world = World::new();
    let bcrypt = "$2b$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW";
    let user = User {
        id: UserId::new(),
        username: "old".to_owned(),
        display_name: "old".to_owned(),
        created_at: world.clock.now(),
        about: Default::default(),
    };
    let account = Account {
        user,
        email: None,
        phone: None,
        password_hash: Some(bcrypt.to_owned()),
    };
    world.ports.accounts.create(&account).await.unwrap();
    assert!(world.login_from("a", "old", "U*V").await.is_err());
    let hash = |account: Option<Account>| account.unwrap().password_hash.unwrap();
    assert_eq!(
        hash(world.ports.accounts.by_username("old").await.unwrap()),
        bcrypt
    );
    for _ in 0..2 {
        world.login_from("a", "old", "U*U").await.unwrap();
        let now = hash(world.ports.accounts.by_username("old").await.unwrap());
        assert!(now.starts_with("$argon2id$v=19$m=64,t=1,p=1$"), "{now}");
    }
}

/// AUTH-04: tokens end when they say.
#[tokio::test]
async fn access_tokens_expire() {
    let world = World::new();
    world.register("ann").await.unwrap();
    let tokens = world.login("ann").await;
    world.clock.advance(Duration::from_secs(899));
    assert!(world.who(&tokens).await.is_ok());
    world.clock.advance(Duration::from_secs(1));
    let error = world.who(&tokens).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unauthenticated);
    assert_eq!(error.detail, "the token has expired");
    world.clock.advance(Duration::from_secs(7 * 24 * 3600));
    assert_eq!(
        code(world.refresh(&tokens.refresh_token).await),
        ErrorCode::Unauthenticated
    );
}

/// AUTH-04: each token only where it belongs.
#[tokio::test]
async fn tokens_are_not_exchanged_for_each_other() {
    let world = World::new();
    world.register("ann").await.unwrap();
    let tokens = world.login("ann").await;
    assert_eq!(
        code(world.verifier.verify_access(&tokens.refresh_token).await),
        ErrorCode::Unauthenticated
    );
    assert_eq!(
        code(world.refresh(&tokens.access_token).await),
        ErrorCode::Unauthenticated
    );
    // Nobody was logged out by trying.
    assert!(world.refresh(&tokens.refresh_token).await.is_ok());
}

/// AUTH-04: a rotation in steps logs nobody out; once the old key is gone, so are its tokens.
#[tokio::test]
async fn keys_rotate() {
    let mut world = World::new();
    world.register("ann").await.unwrap();
    let before = world.login("ann").await;
    let (old, (new, _)) = (world.pem.clone(), SigningKeys::generate().unwrap());
    world.rotate_keys(&[&old, &new]);
    assert!(world.who(&before).await.is_ok());
    world.rotate_keys(&[&new, &old]);
    assert!(world.who(&before).await.is_ok());
    let after = world.refresh(&before.refresh_token).await.unwrap();
    world.rotate_keys(&[&new]);
    assert!(world.who(&after).await.is_ok());
    assert!(
        world.is_refused(&before).await,
        "also when it was verified before"
    );
    let keys: serde_json::Value = serde_json::from_str(&world.auth.jwks()).unwrap();
    assert_eq!(keys["keys"].as_array().unwrap().len(), 1);
}

/// AUTH-05: a refresh token is good once; what is stored is its hash.
#[tokio::test]
async fn refresh_rotates() {
    let world = World::new();
    world.register("ann").await.unwrap();
    let first = world.login("ann").await;
    world.clock.advance(Duration::from_secs(60));
    let second = world.refresh(&first.refresh_token).await.unwrap();
    assert_eq!(second.device, first.device);
    assert_ne!(second.refresh_token, first.refresh_token);
    let who = world.who(&second).await.unwrap();
    let session = world.auth.sessions(&who).await.unwrap().remove(0).session;
    assert_eq!(
        session.last_seen_at.since(session.created_at),
        Duration::from_secs(60)
    );
    let stored = serde_json::to_string(&session).unwrap();
    assert!(!stored.contains(&second.refresh_token));
    assert!(world.refresh(&second.refresh_token).await.is_ok());
}

/// AUTH-05: a refresh whose outcome the store didn't tell, whether it took place or not, costs nobody their session.
#[tokio::test]
async fn an_unknown_outcome_of_a_refresh_is_found_out() {
    let world = World::new();
    world.register("ann").await.unwrap();
    for lost in [
        vec![true],
        vec![false],
        vec![true, false],
        vec![false, false],
    ] {
        let first = world.login("ann").await;
        *world.sessions.lost.lock() = lost.clone();
        let second = world.refresh(&first.refresh_token).await;
        let second = second.unwrap_or_else(|error| panic!("{lost:?}: {error}"));
        assert!(world.who(&second).await.is_ok());
        assert!(world.refresh(&second.refresh_token).await.is_ok());
        // And a spent one is still a spent one.
        assert!(world.refresh(&first.refresh_token).await.is_err());
        assert!(world.is_refused(&second).await);
    }
}

/// AUTH-05: an old token ends the device's session and every token of it, and no other device's.
#[tokio::test]
async fn a_reused_refresh_token_ends_the_session() {
    let world = World::new();
    world.register("ann").await.unwrap();
    let (first, other) = (world.login("ann").await, world.login("ann").await);
    let second = world.refresh(&first.refresh_token).await.unwrap();
    assert_eq!(
        code(world.refresh(&first.refresh_token).await),
        ErrorCode::Unauthenticated
    );
    for tokens in [&first, &second] {
        assert!(world.is_refused(tokens).await);
    }
    assert_eq!(
        code(world.refresh(&second.refresh_token).await),
        ErrorCode::Unauthenticated
    );
    assert!(world.who(&other).await.is_ok());
    assert!(world.refresh(&other.refresh_token).await.is_ok());
}

/// AUTH-05: of many refreshes with one token at once at most one gets tokens, and the session is ended.
#[tokio::test]
async fn concurrent_refreshes_are_a_reuse() {
    let world = World::new();
    world.register("ann").await.unwrap();
    let tokens = world.login("ann").await;
    let tries = (0..8).map(|_| world.refresh(&tokens.refresh_token));
    let results = futures::future::join_all(tries).await;
    let won: Vec<_> = results.into_iter().filter_map(Result::ok).collect();
    assert!(won.len() <= 1);
    for tokens in won.iter().chain([&tokens]) {
        assert!(world.is_refused(tokens).await);
        assert!(world.refresh(&tokens.refresh_token).await.is_err());
    }
}

/// AUTH-07: a logout is seen at once by every verifier, for every token of the device, and gateways are told.
#[tokio::test]
async fn logout_is_immediate() {
    let world = World::new();
    let user = world.register("ann").await.unwrap();
    let (old, other) = (world.login("ann").await, world.login("ann").await);
    let new = world.refresh(&old.refresh_token).await.unwrap();
    let elsewhere = verifier_with(&[&world.pem], &world.ports);
    for tokens in [&old, &new] {
        assert!(elsewhere.verify_access(&tokens.access_token).await.is_ok());
    }
    let (subscriptions, mut items) = world.ports.bus.receiver().await.unwrap();
    subscriptions
        .subscribe(Topic::of_user(user.id))
        .await
        .unwrap();

    let who = world.who(&new).await.unwrap();
    world.auth.logout(&who).await.unwrap();

    for tokens in [&old, &new] {
        assert!(world.is_refused(tokens).await);
        let error = elsewhere
            .verify_access(&tokens.access_token)
            .await
            .unwrap_err();
        assert_eq!(error.detail, "the token was revoked");
    }
    assert!(world.refresh(&new.refresh_token).await.is_err());
    assert!(world.who(&other).await.is_ok());
    let Some(BusItem::Message { payload, .. }) = items.next().await else {
        panic!("no signal");
    };
    assert_eq!(
        Signal::decode(&payload).unwrap(),
        Signal::SessionRevoked {
            user: user.id,
            device: Some(who.device),
            token_id: Some(who.token_id),
        }
    );
}

/// AUTH-07: while the deny-list can't be asked no token is accepted, and the answer says to try again.
#[tokio::test]
async fn without_the_deny_list_nobody_is_let_in() {
    let world = World::new();
    world.register("ann").await.unwrap();
    let tokens = world.login("ann").await;
    assert!(world.who(&tokens).await.is_ok());
    world.sessions.cut.store(true, Ordering::SeqCst);
    assert_eq!(code(world.who(&tokens).await), ErrorCode::Unavailable);
    world.sessions.cut.store(false, Ordering::SeqCst);
    assert!(world.who(&tokens).await.is_ok());
}

/// AUTH-06: all devices, and how many there were.
#[tokio::test]
async fn logout_of_all_devices() {
    let world = World::new();
    world.register("ann").await.unwrap();
    world.register("bob").await.unwrap();
    let devices = [world.login("ann").await, world.login("ann").await];
    let bob = world.login("bob").await;
    let who = world.who(&devices[0]).await.unwrap();
    assert_eq!(world.auth.logout_all(&who).await.unwrap(), 2);
    for tokens in &devices {
        assert!(world.is_refused(tokens).await);
        assert!(world.refresh(&tokens.refresh_token).await.is_err());
    }
    assert!(world.who(&bob).await.is_ok());
    assert!(world.auth.sessions(&who).await.unwrap().is_empty());
}

/// AUTH-06: one device of one's own; nobody else's.
#[tokio::test]
async fn one_session_is_ended() {
    let world = World::new();
    world.register("ann").await.unwrap();
    world.register("bob").await.unwrap();
    let (a, b) = (world.login("ann").await, world.login("ann").await);
    let bob = world.login("bob").await;
    let who = world.who(&a).await.unwrap();
    for stranger in [bob.device, DeviceId::new()] {
        let result = world.auth.end_session(&who, stranger).await;
        assert_eq!(code(result), ErrorCode::NotFound);
    }
    assert!(world.who(&bob).await.is_ok());
    world.auth.end_session(&who, b.device).await.unwrap();
    assert!(world.is_refused(&b).await);
    assert!(world.who(&a).await.is_ok());
    world.auth.end_session(&who, a.device).await.unwrap();
    assert!(world.is_refused(&a).await);
}

/// AUTH-02: sessions of one account are bounded; the one used least lately goes.
#[tokio::test]
async fn devices_are_bounded() {
    let world = World::new();
    world.register("ann").await.unwrap();
    let mut logins = Vec::new();
    for _ in 0..4 {
        logins.push(world.login("ann").await);
        world.clock.advance(Duration::from_secs(1));
    }
    assert!(world.is_refused(&logins[0]).await);
    for tokens in &logins[1..] {
        assert!(world.who(tokens).await.is_ok());
    }
}

/// RT-01: a ticket opens one socket, soon, for a session that still is.
#[tokio::test]
async fn tickets_are_single_use() {
    let world = World::new();
    world.register("ann").await.unwrap();
    let tokens = world.login("ann").await;
    let who = world.who(&tokens).await.unwrap();
    let ticket = world.auth.issue_ticket(&who).await.unwrap();
    assert_eq!(ticket.len(), 43);
    let (a, b) = tokio::join!(
        world.auth.redeem_ticket(&ticket),
        world.auth.redeem_ticket(&ticket)
    );
    assert!(a.is_ok() != b.is_ok());
    assert_eq!(a.or(b).unwrap(), who);

    let late = world.auth.issue_ticket(&who).await.unwrap();
    world.clock.advance(Duration::from_secs(31));
    let revoked = world.auth.issue_ticket(&who).await.unwrap();
    world.auth.logout(&who).await.unwrap();
    for ticket in [&late, &revoked, "", &"A".repeat(43)] {
        assert_eq!(
            code(world.auth.redeem_ticket(ticket).await),
            ErrorCode::Unauthenticated
        );
    }
}

/// AUTH-03: the development code makes an account at first, and finds it again.
#[tokio::test]
async fn one_time_codes_log_in() {
    let world = World::new();
    let otp = |code: &'static str| world.auth.verify_otp(PHONE, code, ClientInfo::default());
    assert_eq!(
        code(otp(DevOtp::CODE).await),
        ErrorCode::Unauthenticated,
        "none was sent"
    );
    world.auth.send_otp(PHONE).await.unwrap();
    assert_eq!(code(otp("654321").await), ErrorCode::Unauthenticated);
    let first = otp(DevOtp::CODE).await.unwrap();
    assert!(world.who(&first).await.is_ok());
    assert_eq!(
        code(otp(DevOtp::CODE).await),
        ErrorCode::Unauthenticated,
        "used"
    );

    let soon = world.auth.send_otp(PHONE).await.unwrap_err();
    assert_eq!(soon.code, ErrorCode::RateLimited);
    assert_eq!(soon.retry_after, Some(Duration::from_secs(30)));
    world.clock.advance(Duration::from_secs(31));
    world.auth.send_otp(PHONE).await.unwrap();
    let (a, b) = tokio::join!(otp(DevOtp::CODE), otp(DevOtp::CODE));
    assert!(a.is_ok() != b.is_ok(), "a code is good once, also at once");
    assert_eq!(a.or(b).unwrap().user.id, first.user.id);
}

/// AUTH-03: sends per hour and attempts per code are bounded; input is checked.
#[tokio::test]
async fn one_time_codes_are_limited() {
    let world = World::new();
    world.auth.send_otp(PHONE).await.unwrap();
    for _ in 0..5 {
        let wrong = world
            .auth
            .verify_otp(PHONE, "000000", ClientInfo::default());
        assert_eq!(code(wrong.await), ErrorCode::Unauthenticated);
    }
    let right = world
        .auth
        .verify_otp(PHONE, DevOtp::CODE, ClientInfo::default());
    assert_eq!(code(right.await), ErrorCode::RateLimited);
    for _ in 0..4 {
        world.clock.advance(Duration::from_secs(31));
        world.auth.send_otp(PHONE).await.unwrap();
    }
    world.clock.advance(Duration::from_secs(31));
    assert_eq!(
        code(world.auth.send_otp(PHONE).await),
        ErrorCode::RateLimited
    );
    world.clock.advance(Duration::from_secs(3600));
    world.auth.send_otp(PHONE).await.unwrap();
    for bad in ["", "4155550100", "+1", "+1415555010a"] {
        assert_eq!(
            code(world.auth.send_otp(bad).await),
            ErrorCode::InvalidRequest
        );
    }
    for bad in ["", "12a456", "12345678901"] {
        let result = world.auth.verify_otp(PHONE, bad, ClientInfo::default());
        assert_eq!(code(result.await), ErrorCode::InvalidRequest);
    }
}

/// AUTH-03: the development code is refused elsewhere, and without a provider the answer says so.
#[tokio::test]
async fn one_time_codes_need_a_provider() {
    assert_eq!(code(DevOtp::new(false)), ErrorCode::FailedPrecondition);
    let world = World::new();
    let keys = SigningKeys::from_pem([&world.pem]).unwrap();
    let auth = Auth::new(options(), world.ports.clone(), keys, None).unwrap();
    assert_eq!(
        code(auth.send_otp(PHONE).await),
        ErrorCode::FailedPrecondition
    );
    let result = auth
        .verify_otp(PHONE, DevOtp::CODE, ClientInfo::default())
        .await;
    assert_eq!(code(result), ErrorCode::FailedPrecondition);
}

#[tokio::test]
async fn contradictory_options_are_refused() {
    let world = World::new();
    for bad in [
        AuthOptions {
            issuer: String::new(),
            ..options()
        },
        AuthOptions {
            access_ttl: Duration::ZERO,
            ..options()
        },
        AuthOptions {
            refresh_ttl: Duration::from_secs(900),
            ..options()
        },
        AuthOptions {
            max_failed_logins: 0,
            ..options()
        },
    ] {
        let keys = SigningKeys::from_pem([&world.pem]).unwrap();
        assert!(Auth::new(bad, world.ports.clone(), keys, None).is_err());
    }
}
