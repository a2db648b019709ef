use async_trait::async_trait;

use crate::Result;

/// A dependency that can be asked whether it works.
#[async_trait]
pub trait Probe: Send + Sync {
    /// Its name in `/ready`, for example `scylla`.
    fn name(&self) -> &'static str;

    /// Does the cheapest real operation.
    async fn check(&self) -> Result<()>;
}
