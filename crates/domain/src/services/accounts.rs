use async_trait::async_trait;
use uuid::Uuid;

use crate::{
    Result,
    account::{ClientInfo, Identity, ProfileChange, User},
    security::{History, SecurityEvent},
};

/// A page of people who were looked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FoundUsers {
    /// Ascending by the name that they were found by.
    pub users: Vec<User>,
    /// Where the next page begins; `None` if this was the last one.
    pub next: Option<String>,
}

/// What people do with their own accounts, and how they look for others (AUTH-09, AUTH-12, AUTH-15, USER-01, USER-03).
#[async_trait]
pub trait AccountService: Send + Sync {
    /// What happened to the caller's account, newest first, before the event `before`, at most `limit` (1 to 100).
    async fn history(
        &self,
        who: &Identity,
        history: History,
        before: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<SecurityEvent>>;

    /// Changes what the caller's profile shows; the profile as it is then. `InvalidRequest` with the field; an empty shown name is the
    /// username.
    async fn change_profile(&self, who: &Identity, change: ProfileChange) -> Result<User>;

    /// People whose username or shown name begins so, without regard to case and width, after the `next` of the page before, at
    /// most `limit` (1 to 50). People who blocked the caller are left out (USER-05). `InvalidRequest` naming `q` for less than two
    /// characters or more than 80.
    async fn search(
        &self,
        who: &Identity,
        query: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<FoundUsers>;

    /// Changes the username; the account as it is then. `AlreadyExists` when it is somebody else's. The password is needed where the
    /// account has one (`PermissionDenied` naming `password` when it is wrong); else the caller must have logged in in the last ten
    /// minutes (`FailedPrecondition`).
    async fn change_username(
        &self,
        who: &Identity,
        username: &str,
        password: Option<String>,
    ) -> Result<User>;

    /// Changes the e-mail address, as [`AccountService::change_username`], and ends all other sessions. Where mail is set up the address is
    /// the account's only once [`AccountService::verify_email`] has its token, which goes there; and `AlreadyExists` isn't answered, but
    /// whoever has the address gets a message.
    async fn change_email(
        &self,
        who: &Identity,
        email: &str,
        password: Option<String>,
    ) -> Result<()>;

    /// Changes the password, or sets the first one, and ends all other sessions. `current` as the password of
    /// [`AccountService::change_username`]; errors name `current_password` and `new_password`.
    async fn change_password(
        &self,
        who: &Identity,
        current: Option<String>,
        new: String,
    ) -> Result<()>;

    /// Gives an account the e-mail address that this token was mailed to (AUTH-10). Works once and for a day, and only the last token of
    /// an account: else `InvalidRequest` naming `token`. `AlreadyExists` when somebody else has the address by now.
    async fn verify_email(&self, token: &str, client: ClientInfo) -> Result<()>;

    /// Mails a token that sets the password anew to this address, if an account has it. Whether one has, neither the answer tells nor its
    /// time. `FailedPrecondition` where mail is not set up.
    async fn forgot_password(&self, email: &str) -> Result<()>;

    /// Sets the password by a mailed token, and ends every session. Works once and for half an hour, only with the last token of an
    /// account, and only while the account has the password and address of when it was sent: else `InvalidRequest` naming `token`. A
    /// password that isn't allowed spends nothing.
    async fn reset_password(&self, token: &str, new: String, client: ClientInfo) -> Result<()>;

    /// Erases the caller's account: nobody can log in to it, its names are free, and within seconds nothing that they wrote, uploaded
    /// or said of themselves can be read by anybody. Events keep their places. It can't be undone. The password as for
    /// [`AccountService::change_username`].
    async fn erase(&self, who: &Identity, password: Option<String>) -> Result<()>;
}
