use async_trait::async_trait;

use crate::{
    Result, UserId,
    account::{Account, NameKind, ProfileChange},
};

/// Accounts, with unique names. Linearizable per name: of two concurrent creations with one username, e-mail or phone number,
/// exactly one succeeds.
#[async_trait]
pub trait AccountStore: Send + Sync {
    /// Stores a new account. `AlreadyExists` with the field (`username`, `email` or `phone_number`) when a name is taken; then
    /// nothing is stored and the account's other names stay free.
    async fn create(&self, account: &Account) -> Result<()>;

    /// The accounts with these ids, in any order; unknown ids are left out. At most 1,000 ids.
    async fn by_ids(&self, ids: &[UserId]) -> Result<Vec<Account>>;

    /// By username, compared without case.
    async fn by_username(&self, username: &str) -> Result<Option<Account>>;

    /// By lower-cased e-mail address.
    async fn by_email(&self, email: &str) -> Result<Option<Account>>;

    /// By E.164 number.
    async fn by_phone(&self, phone: &str) -> Result<Option<Account>>;

    /// Replaces the password hash if it is still `old` (`None`: there is none yet); whether it did.
    async fn replace_password_hash(
        &self,
        user: UserId,
        old: Option<&str>,
        new: &str,
    ) -> Result<bool>;

    /// Changes what is shown of an account; `false` if there is none.
    async fn change_profile(&self, user: UserId, change: &ProfileChange) -> Result<bool>;

    /// Gives an account another name if its name is still `old`, as it is written; whether it did. `AlreadyExists` with the field
    /// when the new name is somebody else's: of concurrent changes and creations with one name, exactly one succeeds. From then
    /// on the old name is free. After an error, or a crash in between, the account has one of the two; the other one is free at
    /// the latest a minute later. See [`Account::set_name`] for the shown name.
    async fn rename(
        &self,
        user: UserId,
        kind: NameKind,
        old: Option<&str>,
        new: &str,
    ) -> Result<bool>;

    /// Removes everything of an account but its id, which nobody gets again; its names are free, at the latest a minute later.
    /// Whether it was there. Again: fine.
    async fn erase(&self, user: UserId) -> Result<bool>;
}
