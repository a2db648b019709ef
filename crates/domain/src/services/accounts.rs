use async_trait::async_trait;
use uuid::Uuid;

use crate::{
    Result,
    account::{Identity, User},
    security::{History, SecurityEvent},
};

/// What people do with their own accounts (AUTH-09, AUTH-12).
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

    /// Changes the username; the account as it is then. `AlreadyExists` when it is somebody else's. The password is needed where the
    /// account has one (`PermissionDenied` naming `password` when it is wrong); else the caller must have logged in in the last ten
    /// minutes (`FailedPrecondition`).
    async fn change_username(
        &self,
        who: &Identity,
        username: &str,
        password: Option<String>,
    ) -> Result<User>;

    /// Changes the e-mail address, as [`AccountService::change_username`], and ends all other sessions.
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
}
