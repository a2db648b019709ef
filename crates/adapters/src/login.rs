//! Users and passwords of stores.

use std::sync::Arc;

use carillon_domain::Result;

/// How a process identifies itself to a store.
#[derive(Clone, PartialEq, Eq)]
pub struct UserPassword {
    /// The user; none where a password is enough.
    pub user: Option<String>,
    /// The password.
    pub password: String,
}

/// Where a store's user and password come from. They are asked for whenever a connection is made, so that they may change while a process
/// runs: connections that are there stay.
#[derive(Clone)]
pub struct Login(Arc<dyn Fn() -> Result<UserPassword> + Send + Sync>);

impl Login {
    /// From `ask`, which must be quick: it may read a small file.
    pub fn new(ask: impl Fn() -> Result<UserPassword> + Send + Sync + 'static) -> Self {
        Self(Arc::new(ask))
    }

    /// What counts now.
    pub(crate) fn now(&self) -> Result<UserPassword> {
        (self.0)()
    }
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").finish_non_exhaustive()
    }
}
