//! Which partitions this replica should own: an agreement for speed. The log's epochs keep it safe when views differ.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use carillon_domain::{
    partition::{Partition, preferred_owner},
    ports::{Replica, ReplicaRegistry},
};
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

/// Says whether a partition is this replica's.
pub trait Ownership: Send + Sync {
    /// Whether this replica should own the partition now.
    fn owns(&self, partition: Partition) -> bool;
}

/// The only replica there is, in one process on embedded stores.
pub struct SoleOwner;

impl Ownership for SoleOwner {
    fn owns(&self, _: Partition) -> bool {
        true
    }
}

/// The role's name in the registry.
pub const ROLE: &str = "message";
const ANNOUNCE_EVERY: Duration = Duration::from_millis(500);
const LEASE: Duration = Duration::from_secs(3);

/// A replica among others, found through the registry.
pub struct Roster {
    registry: Arc<dyn ReplicaRegistry>,
    me: Replica,
    view: RwLock<View>,
}

struct View {
    live: Vec<Replica>,
    /// When the registry was last asked, whether or not it answered.
    asked: Instant,
}

impl Roster {
    /// A replica that isn't announced yet.
    pub fn new(registry: Arc<dyn ReplicaRegistry>, me: Replica) -> Self {
        let asked = Instant::now() - 2 * LEASE;
        Self {
            registry,
            me,
            view: RwLock::new(View {
                live: Vec::new(),
                asked,
            }),
        }
    }

    /// Announces this replica and follows the others until `stop`; then withdraws and owns nothing any more, so that whoever still
    /// asks here looks for the next owner at once. While the registry is away the last view stands, since moving nothing is better
    /// than moving everything.
    pub async fn run(&self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(ANNOUNCE_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = tick.tick() => {}
            }
            let announced = self.registry.announce(ROLE, &self.me, LEASE).await;
            let live = match announced {
                Ok(()) => self.registry.live(ROLE).await,
                Err(error) => Err(error),
            };
            match live {
                Ok(live) => {
                    if failing {
                        tracing::info!("the replica registry answers again");
                        failing = false;
                    }
                    let mut view = self.view.write();
                    if view.live.len() != live.len() {
                        tracing::info!(replicas = live.len(), "message replicas changed");
                    }
                    *view = View {
                        live,
                        asked: Instant::now(),
                    };
                }
                Err(error) => {
                    if !failing {
                        tracing::warn!(%error, cause = error.cause_chain(), "the replica registry does not answer; keeping the last view");
                        failing = true;
                    }
                    self.view.write().asked = Instant::now();
                }
            }
        }
        match self.registry.withdraw(ROLE, &self.me.id).await {
            Ok(()) => self.view.write().live.clear(),
            Err(error) => {
                tracing::warn!(%error, "could not withdraw this replica; its lease ends in {LEASE:?}");
            }
        }
    }
}

impl Ownership for Roster {
    fn owns(&self, partition: Partition) -> bool {
        let view = self.view.read();
        // A process that was paused wakes up with an old view: it must look again before it answers for anybody.
        view.asked.elapsed() < LEASE
            && preferred_owner(partition, view.live.iter().map(|replica| &replica.id))
                == Some(&self.me.id)
    }
}
