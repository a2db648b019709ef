use async_trait::async_trait;

use crate::{Result, UserId, account::Account};

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

    /// Replaces the password hash if it is still `old`; whether it did.
    async fn replace_password_hash(&self, user: UserId, old: &str, new: &str) -> Result<bool>;
}
