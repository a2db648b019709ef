//! `carillon.presence.v1.PresenceService`: the server of a `PresenceService`, and the client that is one.

use std::sync::Arc;

use async_trait::async_trait;
use carillon_domain::{
    DeviceId, Error, Result, UserId,
    presence::{Lease, Presence, PresenceState},
    services::PresenceService,
};
use tonic::{Request, Response, Status, transport::Channel};

use crate::{
    PeerRole,
    connection::{self, Connection, Credentials, For},
    gate::{Caller, handle},
    proto::presence::{
        self as pb, presence_service_client::PresenceServiceClient,
        presence_service_server as server,
    },
    values::{self, answer, at_most, id, optional_timestamp, timestamp_to_proto},
};

/// Most leases or people in one call.
const MAX_BATCH: usize = 1000;

// === server ===

/// Offers a `PresenceService` over gRPC; mount it with [`crate::serve`].
#[derive(Clone)]
pub struct PresenceServer {
    service: Arc<dyn PresenceService>,
}

impl PresenceServer {
    /// Makes a server of the service.
    pub fn new(service: Arc<dyn PresenceService>) -> Self {
        Self { service }
    }

    pub(crate) fn into_tonic(self) -> server::PresenceServiceServer<Self> {
        server::PresenceServiceServer::new(self)
    }
}

#[tonic::async_trait]
impl server::PresenceService for PresenceServer {
    async fn renew(
        &self,
        request: Request<pb::RenewRequest>,
    ) -> Result<Response<pb::RenewResponse>, Status> {
        handle(request, |_, renew| async move {
            at_most("leases", renew.leases.len(), MAX_BATCH)?;
            let leases = renew.leases.iter().map(lease).collect::<Result<Vec<_>>>()?;
            self.service.renew(&leases).await?;
            Ok(pb::RenewResponse {})
        })
        .await
    }

    async fn release(
        &self,
        request: Request<pb::ReleaseRequest>,
    ) -> Result<Response<pb::ReleaseResponse>, Status> {
        handle(request, |_, release| async move {
            let user = id("user_id", &release.user_id)?;
            let device = id("device_id", &release.device_id)?;
            self.service.release(user, device).await?;
            Ok(pb::ReleaseResponse {})
        })
        .await
    }

    async fn get(
        &self,
        request: Request<pb::GetRequest>,
    ) -> Result<Response<pb::GetResponse>, Status> {
        handle(request, |caller, get| async move {
            let users = values::ids("user_ids", &get.user_ids, MAX_BATCH)?;
            let presences = match caller {
                // A role's own question, on behalf of nobody.
                Caller::Role { user: None, .. } => self.service.get(&users).await?,
                _ => self.service.visible(caller.actor()?, &users).await?,
            };
            Ok(pb::GetResponse {
                presences: presences.iter().map(presence_to_proto).collect(),
            })
        })
        .await
    }
}

// === client ===

/// A `PresenceService` that runs in another process.
#[derive(Clone)]
pub struct PresenceClient {
    rpc: Connection<PresenceServiceClient<Channel>>,
}

impl PresenceClient {
    /// Connects to `endpoint` (such as `http://presence:50051`) on first use. Must be called within a runtime.
    pub fn connect_lazy(endpoint: &str, credentials: Credentials) -> Result<Self> {
        let client = PresenceServiceClient::new(connection::channel(
            endpoint,
            PeerRole::Presence,
            &credentials,
        )?);
        Ok(Self {
            rpc: Connection::new(
                server::SERVICE_NAME,
                client,
                credentials,
                values::CALL_DEADLINE,
            ),
        })
    }
}

#[async_trait]
impl PresenceService for PresenceClient {
    async fn renew(&self, leases: &[Lease]) -> Result<()> {
        let request = pb::RenewRequest {
            leases: leases.iter().map(lease_to_proto).collect(),
        };
        self.rpc
            .call("Renew", For::Nobody, request, |mut c, r| async move {
                c.renew(r).await
            })
            .await?;
        Ok(())
    }

    async fn release(&self, user: UserId, device: DeviceId) -> Result<()> {
        let request = pb::ReleaseRequest {
            user_id: user.to_string(),
            device_id: device.to_string(),
        };
        self.rpc
            .call("Release", For::Nobody, request, |mut c, r| async move {
                c.release(r).await
            })
            .await?;
        Ok(())
    }

    async fn get(&self, users: &[UserId]) -> Result<Vec<Presence>> {
        let request = pb::GetRequest {
            user_ids: values::texts(users),
        };
        let got = self
            .rpc
            .call("Get", For::Nobody, request, |mut c, r| async move {
                c.get(r).await
            })
            .await?;
        got.presences
            .into_iter()
            .map(|one| answer(presence(one)))
            .collect()
    }

    async fn visible(&self, viewer: UserId, users: &[UserId]) -> Result<Vec<Presence>> {
        let request = pb::GetRequest {
            user_ids: values::texts(users),
        };
        let got = self
            .rpc
            .call("Get", For::User(viewer), request, |mut c, r| async move {
                c.get(r).await
            })
            .await?;
        got.presences
            .into_iter()
            .map(|one| answer(presence(one)))
            .collect()
    }
}

// === values ===

fn state_to_proto(state: PresenceState) -> i32 {
    let state = match state {
        PresenceState::Offline => pb::PresenceState::Offline,
        PresenceState::Away => pb::PresenceState::Away,
        PresenceState::Online => pb::PresenceState::Online,
    };
    state.into()
}

fn state(field: &str, state: i32) -> Result<PresenceState> {
    match pb::PresenceState::try_from(state) {
        Ok(pb::PresenceState::Offline) => Ok(PresenceState::Offline),
        Ok(pb::PresenceState::Away) => Ok(PresenceState::Away),
        Ok(pb::PresenceState::Online) => Ok(PresenceState::Online),
        Ok(pb::PresenceState::Unspecified) | Err(_) => {
            Err(Error::invalid(field, "offline, away or online"))
        }
    }
}

fn lease_to_proto(lease: &Lease) -> pb::Lease {
    pb::Lease {
        user_id: lease.user.to_string(),
        device_id: lease.device.to_string(),
        state: state_to_proto(lease.state),
    }
}

fn lease(lease: &pb::Lease) -> Result<Lease> {
    Ok(Lease {
        user: id("leases.user_id", &lease.user_id)?,
        device: id("leases.device_id", &lease.device_id)?,
        state: state("leases.state", lease.state)?,
    })
}

fn presence_to_proto(presence: &Presence) -> pb::Presence {
    pb::Presence {
        user_id: presence.user.to_string(),
        state: state_to_proto(presence.state),
        last_seen: presence.last_seen.map(timestamp_to_proto),
    }
}

fn presence(presence: pb::Presence) -> Result<Presence> {
    Ok(Presence {
        user: id("user_id", &presence.user_id)?,
        state: state("state", presence.state)?,
        last_seen: optional_timestamp("last_seen", presence.last_seen)?,
    })
}

#[cfg(test)]
mod tests {
    use carillon_domain::Timestamp;

    use super::*;

    #[test]
    fn every_state_comes_back_as_it_was() {
        for given in [
            PresenceState::Offline,
            PresenceState::Away,
            PresenceState::Online,
        ] {
            let one = Lease {
                user: UserId::new(),
                device: DeviceId::new(),
                state: given,
            };
            assert_eq!(lease(&lease_to_proto(&one)).unwrap(), one);
            for last_seen in [None, Some(Timestamp(1_234_567))] {
                let one = Presence {
                    user: one.user,
                    state: given,
                    last_seen,
                };
                assert_eq!(presence(presence_to_proto(&one)).unwrap(), one);
            }
        }
        assert!(state("state", 0).is_err());
        assert!(state("state", 99).is_err());
    }
}
