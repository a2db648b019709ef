use async_trait::async_trait;

use crate::{Result, account::Identity, push::PushProvider};

/// Where the caller's device wants its pushes.
#[derive(Clone)]
pub struct NewPushTarget {
    /// Through whom.
    pub provider: PushProvider,
    /// The provider's token, or the Web Push endpoint.
    pub token: String,
    /// Web Push only.
    pub p256dh: Option<String>,
    /// Web Push only.
    pub auth: Option<String>,
}

/// Push targets of devices (NOTIF-01, -03).
#[async_trait]
pub trait NotificationService: Send + Sync {
    /// Registers the caller's device.
    async fn register(&self, who: &Identity, target: NewPushTarget) -> Result<()>;

    /// Forgets the caller's device.
    async fn unregister(&self, who: &Identity) -> Result<()>;
}
