use std::time::Duration;

use async_trait::async_trait;

use crate::{ReplicaId, Result};

/// A live replica of a role.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Replica {
    /// Who.
    pub id: ReplicaId,
    /// Where its gRPC server listens, for example `http://10.1.2.3:50052`.
    pub address: String,
}

/// Which replicas of a role are alive: leases, for speed only. Correctness never depends on it (epochs do that).
#[async_trait]
pub trait ReplicaRegistry: Send + Sync {
    /// Says that a replica is alive for `ttl`.
    async fn announce(&self, role: &str, replica: &Replica, ttl: Duration) -> Result<()>;

    /// Takes a replica back at once, on a clean stop.
    async fn withdraw(&self, role: &str, replica: &ReplicaId) -> Result<()>;

    /// The live replicas of a role, ascending by id.
    async fn live(&self, role: &str) -> Result<Vec<Replica>>;
}
