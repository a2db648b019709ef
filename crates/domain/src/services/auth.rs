use async_trait::async_trait;

use crate::{
    DeviceId, Result, UserId,
    account::{ClientInfo, Identity, SessionView, Tokens, User},
};

/// A registration.
#[derive(Clone)]
pub struct NewAccount {
    /// Unique.
    pub username: String,
    /// Unique.
    pub email: String,
    /// In the clear; never stored or logged.
    pub password: String,
}

/// A login with a password.
#[derive(Clone)]
pub struct Login {
    /// Username or e-mail address.
    pub login: String,
    /// In the clear; never stored or logged.
    pub password: String,
}

/// Checks access tokens. Local to every process that serves requests.
#[async_trait]
pub trait TokenVerifier: Send + Sync {
    /// The token's identity. `Unauthenticated` when it is malformed, forged, expired, revoked, of another audience or type.
    async fn verify_access(&self, token: &str) -> Result<Identity>;

    /// Asks again about a token that was verified before: `Unauthenticated` when it, or its device's session, was revoked since.
    async fn check_revocation(&self, who: &Identity) -> Result<()>;
}

/// Accounts, logins and tokens (AUTH-01 to -07, -11).
#[async_trait]
pub trait AuthService: Send + Sync {
    /// Makes an account.
    async fn register(&self, account: NewAccount) -> Result<User>;

    /// Logs a new device in. The same error for an unknown login and a wrong password.
    async fn login(&self, login: Login, client: ClientInfo) -> Result<Tokens>;

    /// Sends a one-time code to a phone.
    async fn send_otp(&self, phone_number: &str) -> Result<()>;

    /// Checks the code; logs a new device in, making the account first if there was none.
    async fn verify_otp(
        &self,
        phone_number: &str,
        otp_code: &str,
        client: ClientInfo,
    ) -> Result<Tokens>;

    /// Exchanges a refresh token for new tokens. The old one is spent; presenting it again ends the device's session. What the
    /// client says of itself now replaces what it said before.
    async fn refresh(&self, refresh_token: &str, client: ClientInfo) -> Result<Tokens>;

    /// Ends the session of the identity's device: its refresh token is gone, its access token revoked, its sockets closed.
    async fn logout(&self, who: &Identity) -> Result<()>;

    /// The same for every device of the user; how many there were.
    async fn logout_all(&self, who: &Identity) -> Result<u64>;

    /// The user's sessions.
    async fn sessions(&self, who: &Identity) -> Result<Vec<SessionView>>;

    /// Ends one session.
    async fn end_session(&self, who: &Identity, device: DeviceId) -> Result<()>;

    /// Public profiles as the viewer may see them; unknown ids are left out, and people who blocked the viewer (USER-05). Without a
    /// viewer it is a role's own question. At most 1,000.
    async fn users(&self, viewer: Option<UserId>, ids: &[UserId]) -> Result<Vec<User>>;

    /// By username; `None` also when that person blocked the viewer.
    async fn user_by_name(&self, viewer: Option<UserId>, username: &str) -> Result<Option<User>>;

    /// The caller's own e-mail address, if any, with the profile.
    async fn me(&self, who: &Identity) -> Result<(User, Option<String>)>;

    /// A single-use ticket that opens one WebSocket within 30 s (RT-01).
    async fn issue_ticket(&self, who: &Identity) -> Result<String>;

    /// Spends a ticket.
    async fn redeem_ticket(&self, ticket: &str) -> Result<Identity>;
}
