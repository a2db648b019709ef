//! [`ReplicaRegistry`] within one process: leases in memory, since they end with it.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use carillon_domain::{
    ReplicaId, Result,
    ports::{Replica, ReplicaRegistry},
};
use parking_lot::Mutex;

type Leases = BTreeMap<ReplicaId, (String, Instant)>;

/// The replicas of this process: a few per role.
#[derive(Default)]
pub(super) struct LocalRegistry(Mutex<HashMap<String, Leases>>);

#[async_trait]
impl ReplicaRegistry for LocalRegistry {
    async fn announce(&self, role: &str, replica: &Replica, ttl: Duration) -> Result<()> {
        let now = Instant::now();
        let mut roles = self.0.lock();
        let leases = roles.entry(role.to_owned()).or_default();
        leases.retain(|_, (_, end)| *end > now);
        leases.insert(replica.id.clone(), (replica.address.clone(), now + ttl));
        Ok(())
    }

    async fn withdraw(&self, role: &str, replica: &ReplicaId) -> Result<()> {
        if let Some(leases) = self.0.lock().get_mut(role) {
            leases.remove(replica);
        }
        Ok(())
    }

    async fn live(&self, role: &str) -> Result<Vec<Replica>> {
        let now = Instant::now();
        let roles = self.0.lock();
        let leases = roles.get(role).into_iter().flatten();
        Ok(leases
            .filter(|(_, (_, end))| *end > now)
            .map(|(id, (address, _))| Replica {
                id: id.clone(),
                address: address.clone(),
            })
            .collect())
    }
}
