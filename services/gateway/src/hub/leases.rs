//! Presence leases of the connected devices: granted on connect, renewed in batches, released on a clean end.
//!
//! A device may be connected to several gateways: two tabs that share a login, or a phone that came back elsewhere before its old
//! connection was noticed to be dead. Each gateway has its own lease for it, so that it releases no more than its own.

use std::{collections::HashMap, sync::Arc, time::Duration};

use carillon_domain::{
    DeviceId, UserId,
    presence::{Lease, PresenceState},
    services::PresenceService,
};
use futures::{StreamExt, stream};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{Inner, socket::Socket};

/// The bound of [`PresenceService::renew`].
const BATCH: usize = 1_000;
/// Releases under way at once.
const RELEASES_AT_ONCE: usize = 16;

pub struct Leases {
    commands: mpsc::Sender<Command>,
    /// What makes our leases different from other gateways'.
    gateway: Uuid,
}

pub enum Command {
    Renew(Lease),
    Release(UserId, DeviceId),
}

impl Leases {
    pub fn new() -> (Self, mpsc::Receiver<Command>) {
        let (sender, receiver) = mpsc::channel(16 * 1024);
        let leases = Self {
            commands: sender,
            gateway: Uuid::new_v4(),
        };
        (leases, receiver)
    }

    /// Grants the lease of a socket's device soon. When the queue is full, the next renewal of all does it.
    pub fn renew(&self, socket: &Socket) {
        let _ = self.commands.try_send(Command::Renew(self.lease(socket)));
    }

    /// Ends a device's lease soon. When the queue is full, it ends by itself.
    pub fn release(&self, user: UserId, device: DeviceId) {
        let command = Command::Release(user, self.holder(device));
        let _ = self.commands.try_send(command);
    }

    fn lease(&self, socket: &Socket) -> Lease {
        let identity = socket.identity();
        Lease {
            user: identity.user,
            device: self.holder(identity.device),
            state: socket.presence(),
        }
    }

    /// The name of our lease of a device: two random ids mixed are as unlike others as each of them.
    fn holder(&self, device: DeviceId) -> DeviceId {
        DeviceId(Uuid::from_u128(device.0.as_u128() ^ self.gateway.as_u128()))
    }
}

pub async fn run(
    inner: Arc<Inner>,
    presence: Arc<dyn PresenceService>,
    mut commands: mpsc::Receiver<Command>,
    every: Duration,
) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => renew(presence.as_ref(), leases(&inner)).await,
            count = commands.recv_many(&mut batch, BATCH) => {
                if count == 0 {
                    return;
                }
                work(presence.as_ref(), std::mem::take(&mut batch)).await;
            }
            () = inner.stop.cancelled() => {
                // Devices that left for good while we drained.
                while let Ok(command) = commands.try_recv() {
                    batch.push(command);
                }
                return work(presence.as_ref(), batch).await;
            }
        }
    }
}

/// Only the last command of a device counts.
async fn work(presence: &dyn PresenceService, commands: Vec<Command>) {
    let mut last: HashMap<(UserId, DeviceId), Option<Lease>> = HashMap::new();
    for command in commands {
        match command {
            Command::Renew(lease) => last.insert((lease.user, lease.device), Some(lease)),
            Command::Release(user, device) => last.insert((user, device), None),
        };
    }
    let granted: Vec<Lease> = last.values().filter_map(|lease| *lease).collect();
    renew(presence, granted).await;
    let released = last
        .into_iter()
        .filter(|(_, lease)| lease.is_none())
        .map(|(key, _)| key);
    stream::iter(released)
        .for_each_concurrent(RELEASES_AT_ONCE, |(user, device)| async move {
            if let Err(error) = presence.release(user, device).await {
                tracing::warn!(%error, "could not release a lease; it ends by itself");
            }
        })
        .await;
}

async fn renew(presence: &dyn PresenceService, leases: Vec<Lease>) {
    for batch in leases.chunks(BATCH) {
        if let Err(error) = presence.renew(batch).await {
            tracing::warn!(%error, leases = batch.len(), "could not renew leases; trying again soon");
        }
    }
}

/// One lease per connected device; with several sockets, online beats away.
fn leases(inner: &Inner) -> Vec<Lease> {
    let mut leases: HashMap<(UserId, DeviceId), PresenceState> = HashMap::new();
    for socket in inner.sockets() {
        let lease = inner.leases.lease(&socket);
        let state = leases
            .entry((lease.user, lease.device))
            .or_insert(lease.state);
        *state = (*state).max(lease.state);
    }
    leases
        .into_iter()
        .map(|((user, device), state)| Lease {
            user,
            device,
            state,
        })
        .collect()
}
