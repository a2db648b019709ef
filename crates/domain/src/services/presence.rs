use async_trait::async_trait;

use crate::{
    DeviceId, Result, UserId,
    presence::{Lease, Presence},
};

/// Who is online (PRES-01, PRES-03). Changes are told to the rooms that the person shares with others, and to those who have them as
/// a contact.
#[async_trait]
pub trait PresenceService: Send + Sync {
    /// Grants or renews leases of connected devices; called by gateways in batches of at most 1,000, well before they end.
    async fn renew(&self, leases: &[Lease]) -> Result<()>;

    /// Ends a lease: the device disconnected.
    async fn release(&self, user: UserId, device: DeviceId) -> Result<()>;

    /// States of these people, in the order asked, for the roles' own use: it is told to nobody. At most 1,000.
    async fn get(&self, users: &[UserId]) -> Result<Vec<Presence>>;

    /// States of those of these people that the viewer may know about: the viewer, their contacts, and who shares a room with the
    /// viewer that isn't listed; but nobody whom they blocked or who blocked them, and nobody who hides it from them or from whom they
    /// hide theirs (USER-06). The others are left out, like people that don't
    /// exist. At most 100.
    async fn visible(&self, viewer: UserId, users: &[UserId]) -> Result<Vec<Presence>>;
}
