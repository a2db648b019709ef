//! The auth role's use cases.

use std::{
    collections::HashSet,
    sync::{Arc, LazyLock},
    time::Duration,
};

use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use carillon_domain::{
    Clock, DeviceId, Error, ErrorCode, Result, Timestamp, UserId,
    account::{Account, ClientInfo, Identity, Session, SessionView, Tokens, User},
    network_of,
    ports::{
        AccountStore, Bus, Ephemeral, PeopleIndex, PeopleStore, PersonKeys, PushTargetStore,
        Rotation, SecurityLog, SessionStore, SettingsStore,
    },
    privacy::Fact,
    security::SecurityEventKind,
    services::{AuthService, Login, NewAccount},
    signal::{Signal, Topic},
    validate,
    view::View,
};
use carillon_telemetry::metrics::{IntCounterVec, int_counter};
use parking_lot::RwLock;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{
    history::Notes,
    keys::{SigningKeys, VerifyingKeys},
    limits::{self, Limit},
    mail::MailOptions,
    names,
    otp::OtpProvider,
    password::{PasswordOptions, Passwords, Verdict},
    people::is_hidden_from,
    post::{Errand, Post},
    token::{Claims, TokenKind},
    verifier::refuse_revoked,
};

static LOGINS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    int_counter(
        "carillon_auth_logins_total",
        "Logins by password or one-time code, by outcome: success, wrong, limited, overloaded, error.",
        &["outcome"],
    )
});

/// Added to the deny-list's times, so that clocks of two machines may differ.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// Pauses before the store is asked what became of a refresh. Together with its own times within a caller's patience.
const UNKNOWN_PAUSES: [Duration; 3] = [
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_millis(600),
];

/// What the auth role can be told.
#[derive(Clone, Debug)]
pub struct AuthOptions {
    /// `iss` of every token: the cluster's name or address. Every verifier must be given the same.
    pub issuer: String,
    /// How long an access token lives.
    pub access_ttl: Duration,
    /// How long a refresh token lives.
    pub refresh_ttl: Duration,
    /// What hashing a password may cost.
    pub passwords: PasswordOptions,
    /// Failed logins per name and address (of IPv6: network of 64 bits) within `failed_login_window`.
    pub max_failed_logins: u64,
    /// Failed logins per account, from all addresses and under all of its names, within `failed_login_window`. After that only
    /// networks from which somebody logged in within `known_network_for` may try: else a stranger could lock the owner out for ever.
    pub max_failed_logins_of_account: u64,
    /// See `max_failed_logins_of_account`.
    pub known_network_for: Duration,
    /// See `max_failed_logins`.
    pub failed_login_window: Duration,
    /// Devices that may be logged in at once; a further login ends the session that was used least lately.
    pub max_devices: usize,
    /// How long a WebSocket ticket may wait to be used.
    pub ticket_ttl: Duration,
    /// Shortest time between two codes to one number.
    pub otp_resend_after: Duration,
    /// Codes to one number per hour.
    pub otp_sends_per_hour: u64,
    /// Attempts per code.
    pub otp_attempts: u64,
    /// How long a code may be used.
    pub otp_ttl: Duration,
}

impl Default for AuthOptions {
    fn default() -> Self {
        Self {
            issuer: "carillon".to_owned(),
            access_ttl: Duration::from_secs(15 * 60),
            refresh_ttl: Duration::from_secs(7 * 24 * 3600),
            passwords: PasswordOptions::default(),
            max_failed_logins: 10,
            max_failed_logins_of_account: 100,
            known_network_for: Duration::from_secs(30 * 24 * 3600),
            failed_login_window: Duration::from_secs(15 * 60),
            max_devices: 100,
            ticket_ttl: Duration::from_secs(30),
            otp_resend_after: Duration::from_secs(30),
            otp_sends_per_hour: 5,
            otp_attempts: 5,
            otp_ttl: Duration::from_secs(10 * 60),
        }
    }
}

/// Options that contradict each other or are out of range.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct AuthOptionsError(String);

/// What the auth role needs of the outside world.
#[derive(Clone)]
pub struct Ports {
    /// Accounts.
    pub accounts: Arc<dyn AccountStore>,
    /// Who blocked whom.
    pub people: Arc<dyn PeopleStore>,
    /// What people set: an erasure removes it.
    pub settings: Arc<dyn SettingsStore>,
    /// People by the beginnings of their names.
    pub people_index: Arc<dyn PeopleIndex>,
    /// What happened to accounts.
    pub security: Arc<dyn SecurityLog>,
    /// Keys of people, and who is being erased.
    pub person_keys: Arc<dyn PersonKeys>,
    /// Which devices get pushes.
    pub push_targets: Arc<dyn PushTargetStore>,
    /// Sessions and the deny-list.
    pub sessions: Arc<dyn SessionStore>,
    /// Counters, tickets, pending codes.
    pub ephemeral: Arc<dyn Ephemeral>,
    /// Tells gateways of ended sessions.
    pub bus: Arc<dyn Bus>,
    /// The present.
    pub clock: Arc<dyn Clock>,
}

/// The auth role.
pub struct Auth {
    pub(crate) options: AuthOptions,
    pub(crate) ports: Ports,
    keys: RwLock<Arc<Keys>>,
    pub(crate) passwords: Passwords,
    pub(crate) notes: Notes,
    otp: Option<Arc<dyn OtpProvider>>,
    pub(crate) post: Option<Post>,
}

/// Keys that sign, and what they verify: replaced as one.
struct Keys {
    signing: SigningKeys,
    public: VerifyingKeys,
}

impl Keys {
    fn new(signing: SigningKeys) -> Arc<Self> {
        Arc::new(Self {
            public: signing.verifying_keys(),
            signing,
        })
    }
}

/// A device's tokens as they are issued, with what the session remembers of them.
struct Issued {
    access: Claims,
    tokens: Tokens,
    refresh_hash: [u8; 32],
    refresh_ends: Timestamp,
}

// === impl Auth ===

impl Auth {
    /// `otp: None` means that one-time passwords are not configured: their calls answer `FailedPrecondition`.
    pub fn new(
        options: AuthOptions,
        ports: Ports,
        keys: SigningKeys,
        otp: Option<Arc<dyn OtpProvider>>,
    ) -> std::result::Result<Self, AuthOptionsError> {
        let problem = |text: &str| Err(AuthOptionsError(text.to_owned()));
        if options.issuer.is_empty() || options.issuer.len() > 256 {
            return problem("the issuer must have 1 to 256 bytes");
        }
        if options.access_ttl.as_secs() == 0 || options.refresh_ttl <= options.access_ttl {
            return problem(
                "access tokens must live 1 s or longer, and refresh tokens longer than they",
            );
        }
        if options.max_failed_logins == 0
            || options.max_failed_logins_of_account == 0
            || options.otp_attempts == 0
            || options.max_devices == 0
        {
            return problem("limits of logins, attempts and devices must be at least 1");
        }
        for outcome in ["success", "wrong", "limited", "overloaded", "error"] {
            LOGINS.with_label_values(&[outcome]);
        }
        Ok(Self {
            notes: Notes::new(
                ports.security.clone(),
                ports.bus.clone(),
                ports.clock.clone(),
            ),
            passwords: Passwords::new(&options.passwords).map_err(AuthOptionsError)?,
            keys: RwLock::new(Keys::new(keys)),
            options,
            ports,
            otp,
            post: None,
        })
    }

    /// Writes to people: addresses are confirmed before they are an account's, and forgotten passwords can be set anew. Must be called
    /// within a runtime.
    #[must_use]
    pub fn with_mail(mut self, mail: MailOptions) -> Self {
        let (accounts, ephemeral) = (self.ports.accounts.clone(), self.ports.ephemeral.clone());
        self.post = Some(Post::open(accounts, ephemeral, mail));
        self
    }

    /// The JWK set of this role's keys, for `/.well-known/jwks.json`.
    pub fn jwks(&self) -> String {
        crate::jwks(&self.keys().signing)
    }

    /// Signs with these keys from now on, and takes refresh tokens that they signed, and no others (rotation).
    pub fn replace_keys(&self, keys: SigningKeys) {
        *self.keys.write() = Keys::new(keys);
    }

    fn keys(&self) -> Arc<Keys> {
        self.keys.read().clone()
    }

    #[cfg(test)]
    pub(crate) fn passwords_for_tests(&self) -> &Passwords {
        &self.passwords
    }

    async fn try_login(&self, login: Login, client: ClientInfo) -> Result<Tokens> {
        let password = Zeroizing::new(login.password);
        let name = match login.login.contains('@') {
            true => names::email(&login.login),
            false => login.login.trim().to_lowercase(),
        };
        if name.is_empty() || name.len() > 254 || password.len() > validate::MAX_PASSWORD_BYTES {
            return Err(wrong_login());
        }
        let ephemeral = self.ports.ephemeral.as_ref();
        let network = network(client.ip.as_deref());
        let mut tries = limits::Tries::new(ephemeral, self.options.failed_login_window);
        let by_address = limits::key("failed-logins", &[&name, &network]);
        tries
            .count(by_address.clone(), self.options.max_failed_logins)
            .await?;
        let checked = self.check_password(&name, password.clone(), &mut tries, &client);
        let checked = match checked.await {
            // A wrong password is what is counted.
            Ok(None) => return Err(wrong_login()),
            Ok(Some(checked)) => Ok(checked),
            Err(error) => Err(error),
        };
        // Neither is a right one, nor what was never found out: a storm of logins must not lock out those who knew theirs.
        tries.take_back().await;
        let (account, verdict) = checked?;
        ephemeral.remove(&by_address).await?;
        if let Some(known) = known_network(&account.user.id.to_string(), &network) {
            let ttl = self.options.known_network_for;
            ephemeral.put(&known, b"1", ttl).await?;
        }
        let upgraded = match verdict {
            Verdict::RightButOutdated => self.upgrade_hash(&account, password.clone()).await,
            _ => None,
        };
        let (user, verified) = (account.user.id, account.password_hash);
        let tokens = self.log_in(account.user, client).await?;
        // A change of the password ends the sessions that it finds. It may not have found this one.
        let now = self.ports.accounts.by_ids(&[user]).await?;
        let now = now.first().and_then(|now| now.password_hash.clone());
        let is_same = now.is_some() && (now == verified || now == upgraded);
        // Another login may have upgraded the hash.
        if !is_same && self.passwords.verify(password, now.as_deref()).await? == Verdict::Wrong {
            self.end_other(user, tokens.device).await?;
            return Err(wrong_login());
        }
        Ok(tokens)
    }

    /// The account whose password this is. `None`: there is no such account, or it is another password.
    async fn check_password(
        &self,
        name: &str,
        password: Zeroizing<String>,
        tries: &mut limits::Tries<'_>,
        client: &ClientInfo,
    ) -> Result<Option<(Account, Verdict)>> {
        let account = if name.contains('@') {
            self.ports.accounts.by_email(name).await?
        } else {
            self.ports.accounts.by_username(name).await?
        };
        // From all addresses and under both of its names. Names that nobody has are counted alike, so that a limit tells nothing.
        let subject = account
            .as_ref()
            .map_or_else(|| name.to_owned(), |account| account.user.id.to_string());
        let by_account = limits::key("failed-logins-of", &[&subject]);
        let is_known = match known_network(&subject, &network(client.ip.as_deref())) {
            Some(known) => self.ports.ephemeral.get(&known).await?.is_some(),
            None => false,
        };
        let counted = tries
            .count(by_account, self.options.max_failed_logins_of_account)
            .await;
        if let Err(error) = counted
            && !(is_known && error.code == ErrorCode::RateLimited)
        {
            if error.code == ErrorCode::RateLimited {
                self.note_lock(&subject, account.as_ref(), client).await?;
            }
            return Err(error);
        }
        let stored = account.as_ref().and_then(|a| a.password_hash.as_deref());
        let verdict = self.passwords.verify(password, stored).await?;
        Ok(match verdict {
            Verdict::Wrong => {
                if let Some(account) = account {
                    let client = bounded(client.clone());
                    let kind = SecurityEventKind::LoginFailed;
                    self.notes.note_later(account.user.id, kind, client);
                }
                None
            }
            Verdict::Right | Verdict::RightButOutdated => account.map(|account| (account, verdict)),
        })
    }

    /// Notes that an account is locked, once for as long as it may be.
    async fn note_lock(
        &self,
        subject: &str,
        account: Option<&Account>,
        client: &ClientInfo,
    ) -> Result<()> {
        let noted = limits::key("locked", &[subject]);
        let window = self.options.failed_login_window;
        let is_new = self.ports.ephemeral.claim(&noted, window).await?;
        if is_new && let Some(account) = account {
            let (kind, client) = (SecurityEventKind::Locked, bounded(client.clone()));
            self.notes.note_later(account.user.id, kind, client);
        }
        Ok(())
    }

    /// What is known of the caller's device.
    pub(crate) async fn client_of(&self, who: &Identity) -> Result<ClientInfo> {
        let session = self.ports.sessions.get(who.user, who.device).await?;
        Ok(session.map(|session| session.client).unwrap_or_default())
    }

    /// Replaces an imported or outdated hash; by which one. A failure changes nothing for the login: the next one tries again.
    async fn upgrade_hash(&self, account: &Account, password: Zeroizing<String>) -> Option<String> {
        let old = account.password_hash.as_deref()?;
        let accounts = &self.ports.accounts;
        let replaced = async {
            let new = self.passwords.hash(password).await?;
            accounts
                .replace_password_hash(account.user.id, Some(old), &new)
                .await?;
            Ok::<_, Error>(new)
        };
        match replaced.await {
            Ok(new) => Some(new),
            Err(error) => {
                tracing::warn!(%error, cause = error.cause_chain(), "password hash not upgraded");
                None
            }
        }
    }

    async fn try_verify_otp(&self, phone: &str, code: &str, client: ClientInfo) -> Result<Tokens> {
        let provider = self.otp_provider()?;
        check_phone(phone)?;
        let plausible = (4..=10).contains(&code.len()) && code.bytes().all(|b| b.is_ascii_digit());
        if !plausible {
            return Err(Error::invalid("otp_code", "4 to 10 digits"));
        }
        let ephemeral = self.ports.ephemeral.as_ref();
        let pending = limits::key("otp-pending", &[phone]);
        if ephemeral.get(&pending).await?.is_none() {
            return Err(wrong_code());
        }
        limits::count(
            ephemeral,
            &limits::key("otp-attempts", &[phone]),
            Limit {
                count: self.options.otp_attempts,
                window: self.options.otp_ttl,
            },
            "too many attempts, ask for a new code",
        )
        .await?;
        if !provider.check(phone, code).await? {
            return Err(wrong_code());
        }
        // Taking the mark makes the code single-use, also when it is presented twice at once.
        if ephemeral.take(&pending).await?.is_none() {
            return Err(wrong_code());
        }
        let user = self.account_of_phone(phone).await?;
        self.log_in(user, client).await
    }

    async fn account_of_phone(&self, phone: &str) -> Result<User> {
        if let Some(account) = self.ports.accounts.by_phone(phone).await? {
            return Ok(account.user);
        }
        let username = format!("user-{}", hex::encode(rand::random::<[u8; 8]>()));
        let account = Account {
            user: User {
                id: UserId::new(),
                display_name: username.clone(),
                username,
                created_at: self.ports.clock.now(),
                about: Default::default(),
            },
            email: None,
            phone: Some(phone.to_owned()),
            password_hash: None,
        };
        match self.create(&account).await {
            Ok(()) => Ok(account.user),
            // Another login with this number was faster.
            Err(error) if error.code == ErrorCode::AlreadyExists => self
                .ports
                .accounts
                .by_phone(phone)
                .await?
                .map(|account| account.user)
                .ok_or(error),
            Err(error) => Err(error),
        }
    }

    /// Those of these people of whom the viewer is shown a fact that nobody chooses an audience of.
    pub(crate) async fn visible(
        &self,
        fact: Fact,
        viewer: Option<UserId>,
        ids: &[UserId],
    ) -> Result<Vec<User>> {
        if ids.len() > 1000 {
            return Err(Error::invalid("ids", "at most 1000"));
        }
        let view = async {
            let Some(viewer) = viewer else {
                return Ok(None);
            };
            let people = self.ports.people.as_ref();
            View::read_blocks(people, viewer, ids).await.map(Some)
        };
        let (accounts, view) = futures::try_join!(self.ports.accounts.by_ids(ids), view)?;
        let is_shown = |user: &User| view.as_ref().is_none_or(|view| view.shows(fact, user.id));
        let users = accounts.into_iter().map(|account| account.user);
        Ok(users.filter(is_shown).collect())
    }

    /// Stores a new account, and files it under its names.
    async fn create(&self, account: &Account) -> Result<()> {
        self.file(&account.user).await?;
        let created = self.ports.accounts.create(account).await;
        if created.is_err() {
            self.unfile(&account.user).await;
        }
        created
    }

    fn otp_provider(&self) -> Result<&dyn OtpProvider> {
        self.otp.as_deref().ok_or_else(|| {
            Error::new(
                ErrorCode::FailedPrecondition,
                "one-time passwords are not configured",
            )
        })
    }

    async fn log_in(&self, user: User, client: ClientInfo) -> Result<Tokens> {
        let now = self.ports.clock.now();
        let user_id = user.id;
        let issued = self.issue(user, DeviceId::new(), now)?;
        let session = Session {
            user: user_id,
            device: issued.tokens.device,
            refresh_hash: issued.refresh_hash,
            access_token_id: issued.access.jti,
            access_expires_at: issued.access.expires_at(),
            expires_at: issued.refresh_ends,
            created_at: now,
            last_seen_at: now,
            client: bounded(client),
        };
        self.ports.sessions.put(&session).await?;
        self.end_surplus_sessions(user_id, session.device).await?;
        let kind = SecurityEventKind::LoggedIn;
        self.notes
            .note(user_id, kind, Some(session.device), session.client)
            .await;
        Ok(issued.tokens)
    }

    async fn end_surplus_sessions(&self, user: UserId, newest: DeviceId) -> Result<()> {
        let mut sessions = self.ports.sessions.list(user).await?;
        sessions.retain(|session| session.device != newest);
        sessions.sort_by_key(|session| std::cmp::Reverse(session.last_seen_at));
        for session in sessions.iter().skip(self.options.max_devices - 1) {
            self.end_other(user, session.device).await?;
        }
        Ok(())
    }

    fn issue(&self, user: User, device: DeviceId, now: Timestamp) -> Result<Issued> {
        let claims = |kind, ttl| Claims::new(kind, &self.options.issuer, user.id, device, now, ttl);
        let access = claims(TokenKind::Access, self.options.access_ttl);
        let refresh = claims(TokenKind::Refresh, self.options.refresh_ttl);
        let keys = self.keys();
        let refresh_token = refresh.sign(&keys.signing)?;
        Ok(Issued {
            refresh_hash: Sha256::digest(&refresh_token).into(),
            refresh_ends: refresh.expires_at(),
            tokens: Tokens {
                access_token: access.sign(&keys.signing)?,
                refresh_token,
                expires_in: self.options.access_ttl.as_secs(),
                user,
                device,
            },
            access,
        })
    }

    /// Ends the session of the caller's own device; what it was. The session goes first: until all is done the caller's
    /// token still works, so that a failed call can be made again.
    pub(crate) async fn end_own(&self, who: &Identity) -> Result<Option<Session>> {
        let sessions = self.ports.sessions.as_ref();
        let session = sessions.remove(who.user, who.device).await?;
        self.deny(who.device, session.as_ref()).await?;
        let ends = who.expires_at.plus(CLOCK_SKEW);
        sessions.revoke_token(who.token_id, ends).await?;
        self.tell_revoked(who.user, who.device, Some(who.token_id))
            .await?;
        Ok(session)
    }

    /// Ends the session of the caller's own device and notes it; whether there was one.
    async fn leave(&self, who: &Identity) -> Result<bool> {
        let Some(session) = self.end_own(who).await? else {
            return Ok(false);
        };
        let kind = SecurityEventKind::LoggedOut;
        self.notes
            .note(who.user, kind, Some(who.device), session.client)
            .await;
        Ok(true)
    }

    /// Ends the sessions of all devices but the caller's; how many there were.
    pub(crate) async fn end_others(&self, who: &Identity) -> Result<u64> {
        let mut ended = 0;
        for session in self.ports.sessions.list(who.user).await? {
            if session.device != who.device {
                ended += u64::from(self.end_other(who.user, session.device).await?);
            }
        }
        Ok(ended)
    }

    /// Ends the session of any other device; whether there was one. The session goes last: until all is done it is still found,
    /// so that a failed call can be made again.
    pub(crate) async fn end_other(&self, user: UserId, device: DeviceId) -> Result<bool> {
        let sessions = self.ports.sessions.as_ref();
        let Some(session) = sessions.get(user, device).await? else {
            return Ok(false);
        };
        self.deny(device, Some(&session)).await?;
        let removed = sessions.remove(user, device).await?;
        self.tell_revoked(user, device, Some(session.access_token_id))
            .await?;
        Ok(removed.is_some())
    }

    /// Refuses every access token of a device from now on: the one given last by its id, and the device as a whole, because
    /// tokens from before the last refresh may live, and a refresh that runs at this moment may be giving another.
    async fn deny(&self, device: DeviceId, session: Option<&Session>) -> Result<()> {
        let sessions = self.ports.sessions.as_ref();
        let now = self.ports.clock.now();
        let until = now.plus(self.options.access_ttl + CLOCK_SKEW);
        sessions.revoke_token(device.0, until).await?;
        if let Some(session) = session {
            let ends = session.access_expires_at.plus(CLOCK_SKEW);
            sessions.revoke_token(session.access_token_id, ends).await?;
        }
        Ok(())
    }

    /// Tells the gateways. The tokens are refused already; an error says that sockets may still be open.
    async fn tell_revoked(
        &self,
        user: UserId,
        device: DeviceId,
        token_id: Option<Uuid>,
    ) -> Result<()> {
        let signal = Signal::SessionRevoked {
            user,
            device: Some(device),
            token_id,
        }
        .encode()?;
        let topic = Topic::of_user(user);
        for pause in [50, 200] {
            match self.ports.bus.publish(topic, signal.clone()).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    tracing::warn!(%error, cause = error.cause_chain(), "revocation not told yet");
                }
            }
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        self.ports.bus.publish(topic, signal).await
    }

    async fn reused(&self, claims: &Claims, client: ClientInfo) -> Result<Error> {
        tracing::warn!(user = %claims.sub, device = %claims.did, "a refresh token was used again: the session is ended");
        if self.end_other(claims.sub, claims.did).await? {
            let kind = SecurityEventKind::TokenReused;
            self.notes
                .note(claims.sub, kind, Some(claims.did), bounded(client))
                .await;
        }
        Ok(Error::unauthenticated(
            "the refresh token was used before: the session was ended, log in again",
        ))
    }
}

#[async_trait]
impl AuthService for Auth {
    #[tracing::instrument(name = "auth.register", skip_all)]
    async fn register(&self, account: NewAccount) -> Result<User> {
        let password = Zeroizing::new(account.password);
        let (username, email) = (account.username, names::email(&account.email));
        let mut problems = validate::Problems::default();
        check_username(&mut problems, &username);
        check_email(&mut problems, &email);
        check_new_password(&mut problems, "password", &password);
        problems.into_result()?;
        // Where mail is set up, whoever has an address is told of it, and nobody else: it is the account's once it is confirmed.
        let (email, to_confirm) = match &self.post {
            Some(post) => (None, Some((post, email))),
            None => (Some(email), None),
        };
        // The store decides; asking first saves the hashing, and names every field that is taken.
        let by_email = async {
            match &email {
                Some(email) => self.ports.accounts.by_email(email).await,
                None => Ok(None),
            }
        };
        let (by_name, by_email) =
            futures::try_join!(self.ports.accounts.by_username(&username), by_email)?;
        let mut taken = Error::new(ErrorCode::AlreadyExists, "the account exists already");
        for (field, found) in [("username", by_name), ("email", by_email)] {
            if found.is_some() {
                taken = taken.with_field(field, "is taken");
            }
        }
        if !taken.fields.is_empty() {
            return Err(taken);
        }
        let account = Account {
            user: User {
                id: UserId::new(),
                display_name: username.clone(),
                username,
                created_at: self.ports.clock.now(),
                about: Default::default(),
            },
            email,
            phone: None,
            password_hash: Some(self.passwords.hash(password).await?),
        };
        self.create(&account).await?;
        if let Some((post, address)) = to_confirm {
            let user = account.user.id;
            post.ask(Errand::Confirm { user, address });
        }
        Ok(account.user)
    }

    #[tracing::instrument(name = "auth.login", skip_all)]
    async fn login(&self, login: Login, client: ClientInfo) -> Result<Tokens> {
        counted(self.try_login(login, client).await)
    }

    #[tracing::instrument(name = "auth.send_otp", skip_all)]
    async fn send_otp(&self, phone_number: &str) -> Result<()> {
        let provider = self.otp_provider()?;
        check_phone(phone_number)?;
        let ephemeral = self.ports.ephemeral.as_ref();
        let wait = limits::key("otp-wait", &[phone_number]);
        if !ephemeral
            .claim(&wait, self.options.otp_resend_after)
            .await?
        {
            return Err(limits::refused(
                "a code was sent just now, wait before asking for another",
                self.options.otp_resend_after,
            ));
        }
        limits::count(
            ephemeral,
            &limits::key("otp-sends", &[phone_number]),
            Limit {
                count: self.options.otp_sends_per_hour,
                window: Duration::from_secs(3600),
            },
            "too many codes were sent to this number, try again later",
        )
        .await?;
        if let Err(error) = provider.send(phone_number).await {
            ephemeral.remove(&wait).await?;
            return Err(error);
        }
        let attempts = limits::key("otp-attempts", &[phone_number]);
        ephemeral.remove(&attempts).await?;
        let pending = limits::key("otp-pending", &[phone_number]);
        ephemeral.put(&pending, b"1", self.options.otp_ttl).await
    }

    #[tracing::instrument(name = "auth.verify_otp", skip_all)]
    async fn verify_otp(
        &self,
        phone_number: &str,
        otp_code: &str,
        client: ClientInfo,
    ) -> Result<Tokens> {
        counted(self.try_verify_otp(phone_number, otp_code, client).await)
    }

    #[tracing::instrument(name = "auth.refresh", skip_all)]
    async fn refresh(&self, refresh_token: &str, client: ClientInfo) -> Result<Tokens> {
        let claims = Claims::verify(
            refresh_token,
            &self.keys().public,
            TokenKind::Refresh,
            &self.options.issuer,
        )?;
        let now = self.ports.clock.now();
        claims.check_time(now)?;
        let ended = || Error::unauthenticated("the session has ended, log in again");
        let sessions = self.ports.sessions.as_ref();
        let session = sessions
            .get(claims.sub, claims.did)
            .await?
            .ok_or_else(ended)?;
        let old_hash: [u8; 32] = Sha256::digest(refresh_token).into();
        if !bool::from(session.refresh_hash.ct_eq(&old_hash)) {
            return Err(self.reused(&claims, client).await?);
        }
        let accounts = self.ports.accounts.by_ids(&[claims.sub]).await?;
        let user = accounts.into_iter().next().ok_or_else(ended)?.user;
        let issued = self.issue(user, claims.did, now)?;
        let next = Session {
            refresh_hash: issued.refresh_hash,
            access_token_id: issued.access.jti,
            access_expires_at: issued.access.expires_at(),
            expires_at: issued.refresh_ends,
            last_seen_at: now,
            client: renewed(session.client.clone(), client.clone()),
            ..session
        };
        match rotate(sessions, &old_hash, &next).await? {
            Rotation::Rotated => Ok(issued.tokens),
            Rotation::Reused => Err(self.reused(&claims, client).await?),
            Rotation::Unknown => Err(ended()),
        }
    }

    #[tracing::instrument(name = "auth.logout", skip_all)]
    async fn logout(&self, who: &Identity) -> Result<()> {
        self.leave(who).await.map(drop)
    }

    #[tracing::instrument(name = "auth.logout_all", skip_all)]
    async fn logout_all(&self, who: &Identity) -> Result<u64> {
        let mut ended = self.end_others(who).await?;
        // The caller's own comes last: until all is done, a failed call can be made again.
        let own = self.end_own(who).await?;
        ended += u64::from(own.is_some());
        if ended > 0 {
            let kind = SecurityEventKind::AllSessionsEnded;
            let client = own.map(|session| session.client).unwrap_or_default();
            self.notes
                .note(who.user, kind, Some(who.device), client)
                .await;
        }
        Ok(ended)
    }

    async fn sessions(&self, who: &Identity) -> Result<Vec<SessionView>> {
        let users = [who.user];
        let (sessions, targets) = futures::try_join!(
            self.ports.sessions.list(who.user),
            self.ports.push_targets.of_users(&users)
        )?;
        let has_push: HashSet<DeviceId> = targets.iter().map(|target| target.device).collect();
        Ok(sessions
            .into_iter()
            .map(|session| SessionView {
                has_push: has_push.contains(&session.device),
                session,
            })
            .collect())
    }

    #[tracing::instrument(name = "auth.end_session", skip_all)]
    async fn end_session(&self, who: &Identity, device: DeviceId) -> Result<()> {
        if device == who.device {
            return match self.leave(who).await? {
                true => Ok(()),
                false => Err(Error::not_found("session")),
            };
        }
        if !self.end_other(who.user, device).await? {
            return Err(Error::not_found("session"));
        }
        let client = self.client_of(who).await.unwrap_or_default();
        let kind = SecurityEventKind::SessionEnded;
        self.notes.note(who.user, kind, Some(device), client).await;
        Ok(())
    }

    async fn users(&self, viewer: Option<UserId>, ids: &[UserId]) -> Result<Vec<User>> {
        self.visible(Fact::Profile, viewer, ids).await
    }

    async fn user_by_name(&self, viewer: Option<UserId>, username: &str) -> Result<Option<User>> {
        if !validate::is_username(username) {
            return Ok(None);
        }
        let Some(account) = self.ports.accounts.by_username(username).await? else {
            return Ok(None);
        };
        if let Some(viewer) = viewer
            && is_hidden_from(self.ports.people.as_ref(), viewer, account.user.id).await?
        {
            return Ok(None);
        }
        Ok(Some(account.user))
    }

    async fn me(&self, who: &Identity) -> Result<(User, Option<String>)> {
        let accounts = self.ports.accounts.by_ids(&[who.user]).await?;
        let account = accounts.into_iter().next();
        account
            .map(|account| (account.user, account.email))
            .ok_or_else(|| Error::not_found("user"))
    }

    async fn issue_ticket(&self, who: &Identity) -> Result<String> {
        let ticket = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
        let value = serde_json::to_vec(who).map_err(Error::internal)?;
        let ephemeral = &self.ports.ephemeral;
        ephemeral
            .put(
                &limits::key("ticket", &[&ticket]),
                &value,
                self.options.ticket_ttl,
            )
            .await?;
        Ok(ticket)
    }

    async fn redeem_ticket(&self, ticket: &str) -> Result<Identity> {
        let refused = || Error::unauthenticated("the ticket is not valid, or was used before");
        if ticket.len() != 43 {
            return Err(refused());
        }
        let key = limits::key("ticket", &[ticket]);
        let value = self.ports.ephemeral.take(&key).await?.ok_or_else(refused)?;
        let who: Identity = serde_json::from_slice(&value).map_err(Error::internal)?;
        if self.ports.clock.now() >= who.expires_at {
            return Err(refused());
        }
        refuse_revoked(self.ports.sessions.as_ref(), &who).await?;
        Ok(who)
    }
}

/// Rotates a session's refresh token. When the store doesn't say what came of it, it is asked: a client that is told to try again
/// with a token that is spent already would look like a thief, and lose its session.
async fn rotate(
    sessions: &dyn SessionStore,
    old_hash: &[u8; 32],
    next: &Session,
) -> Result<Rotation> {
    let mut outcome = sessions.rotate(old_hash, next).await;
    for pause in UNKNOWN_PAUSES {
        let Err(error) = &outcome else {
            return outcome;
        };
        tracing::warn!(%error, cause = error.cause_chain(), "the outcome of a refresh is not known");
        tokio::time::sleep(pause).await;
        match sessions.get(next.user, next.device).await {
            Ok(Some(now)) if now.refresh_hash == next.refresh_hash => {
                return Ok(Rotation::Rotated);
            }
            Ok(Some(now)) if now.refresh_hash == *old_hash => {
                outcome = sessions.rotate(old_hash, next).await;
            }
            Ok(Some(_)) => return Ok(Rotation::Reused),
            Ok(None) => return Ok(Rotation::Unknown),
            Err(_) => {}
        }
    }
    // A try may have gone through after its answer was given up, and the next one found the new hash.
    if matches!(outcome, Ok(Rotation::Reused))
        && let Ok(Some(now)) = sessions.get(next.user, next.device).await
        && now.refresh_hash == next.refresh_hash
    {
        return Ok(Rotation::Rotated);
    }
    outcome
}

fn counted(result: Result<Tokens>) -> Result<Tokens> {
    let outcome = match result.as_ref().map_err(|error| error.code) {
        Ok(_) => "success",
        Err(ErrorCode::Unauthenticated | ErrorCode::InvalidRequest) => "wrong",
        Err(ErrorCode::RateLimited) => "limited",
        Err(ErrorCode::Unavailable) => "overloaded",
        Err(_) => "error",
    };
    LOGINS.with_label_values(&[outcome]).inc();
    result
}

pub(crate) fn check_username(problems: &mut validate::Problems, username: &str) {
    problems.check(
        validate::is_username(username),
        "username",
        "3 to 32 letters, digits, '_', '.' or '-', beginning with a letter or digit",
    );
}

pub(crate) fn check_email(problems: &mut validate::Problems, email: &str) {
    problems.check(validate::is_email(email), "email", "an e-mail address");
}

pub(crate) fn check_new_password(problems: &mut validate::Problems, field: &str, password: &str) {
    problems.check(
        validate::is_password(password),
        field,
        "at least 8 characters, at most 256 bytes",
    );
}

/// The same for an unknown name and a wrong password.
fn wrong_login() -> Error {
    Error::unauthenticated("the login or the password is wrong")
}

/// The network that counts as one guesser. What is no address (callers are free to leave it out) counts as it is.
fn network(ip: Option<&str>) -> String {
    let text = ip.unwrap_or_default();
    text.parse().map_or_else(
        |_| text.to_owned(),
        |address| network_of(address).to_string(),
    )
}

/// Where it is noted that somebody logged in to an account from a network; `None` when there is no telling the network.
fn known_network(subject: &str, network: &str) -> Option<String> {
    (!network.is_empty()).then(|| limits::key("known-network", &[subject, network]))
}

fn wrong_code() -> Error {
    Error::unauthenticated("the code is wrong, or has ended")
}

fn check_phone(phone: &str) -> Result<()> {
    if validate::is_phone(phone) {
        Ok(())
    } else {
        Err(Error::invalid(
            "phone_number",
            "'+' and 8 to 15 digits (E.164)",
        ))
    }
}

/// What is known of a client after it said more of itself.
fn renewed(before: ClientInfo, now: ClientInfo) -> ClientInfo {
    let now = bounded(now);
    ClientInfo {
        device_name: now.device_name.or(before.device_name),
        user_agent: now.user_agent.or(before.user_agent),
        ip: now.ip.or(before.ip),
        device_type: now.device_type.or(before.device_type),
        platform: now.platform.or(before.platform),
    }
}

/// Cuts what a client says of itself to what the session list shows.
pub(crate) fn bounded(client: ClientInfo) -> ClientInfo {
    let cut = |text: Option<String>, length: usize| {
        let clean = |text: String| -> String {
            let printable = text.chars().filter(|c| !c.is_control());
            printable.take(length).collect::<String>().trim().to_owned()
        };
        text.map(clean).filter(|text| !text.is_empty())
    };
    ClientInfo {
        device_name: cut(client.device_name, 64),
        user_agent: cut(client.user_agent, 256),
        ip: cut(client.ip, 45),
        device_type: client.device_type,
        platform: cut(client.platform, 64),
    }
}
