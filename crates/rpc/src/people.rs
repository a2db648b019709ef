//! `carillon.people.v1.PeopleService`: the server of a `PeopleService`, and the client that is one (USER-04, USER-05).

use std::sync::Arc;

use async_trait::async_trait;
use carillon_domain::{
    Result, UserId,
    people::{Hidden, MAX_BLOCKED_BY, MAX_BLOCKS, Related},
    services::PeopleService,
};
use tonic::{Request, Response, Status, transport::Channel};

use crate::{
    PeerRole,
    connection::{self, Connection, Credentials, For},
    gate::handle,
    proto::people::{
        self as pb, people_service_client::PeopleServiceClient, people_service_server as server,
    },
    values::{
        self, answer, id, limit, limit_to_proto, optional_id, required, timestamp,
        timestamp_to_proto,
    },
};

/// Entries per page, when the caller doesn't say, and at most.
const PAGE: usize = 100;
const MAX_PAGE: usize = 1000;

// === server ===

/// Offers a `PeopleService` over gRPC; mount it with [`crate::serve`].
#[derive(Clone)]
pub struct PeopleServer {
    service: Arc<dyn PeopleService>,
}

impl PeopleServer {
    /// Makes a server of the service.
    pub fn new(service: Arc<dyn PeopleService>) -> Self {
        Self { service }
    }

    pub(crate) fn into_tonic(self) -> server::PeopleServiceServer<Self> {
        server::PeopleServiceServer::new(self)
    }
}

#[tonic::async_trait]
impl server::PeopleService for PeopleServer {
    async fn put_contact(
        &self,
        request: Request<pb::PutContactRequest>,
    ) -> Result<Response<pb::PutContactResponse>, Status> {
        handle(request, |caller, put| async move {
            let other = id("user_id", &put.user_id)?;
            self.service.put_contact(caller.actor()?, other).await?;
            Ok(pb::PutContactResponse {})
        })
        .await
    }

    async fn remove_contact(
        &self,
        request: Request<pb::RemoveContactRequest>,
    ) -> Result<Response<pb::RemoveContactResponse>, Status> {
        handle(request, |caller, remove| async move {
            let other = id("user_id", &remove.user_id)?;
            self.service.remove_contact(caller.actor()?, other).await?;
            Ok(pb::RemoveContactResponse {})
        })
        .await
    }

    async fn get_contact(
        &self,
        request: Request<pb::GetContactRequest>,
    ) -> Result<Response<pb::GetContactResponse>, Status> {
        handle(request, |caller, get| async move {
            let other = id("user_id", &get.user_id)?;
            let contact = self.service.contact(caller.actor()?, other).await?;
            Ok(pb::GetContactResponse {
                contact: Some(related_to_proto(&contact)),
            })
        })
        .await
    }

    async fn list_contacts(
        &self,
        request: Request<pb::ListContactsRequest>,
    ) -> Result<Response<pb::ListContactsResponse>, Status> {
        handle(request, |caller, list| async move {
            let after = optional_id("after", list.after.as_deref())?;
            let limit = limit(list.limit, PAGE, MAX_PAGE)?;
            let contacts = self.service.contacts(caller.actor()?, after, limit).await?;
            Ok(pb::ListContactsResponse {
                contacts: contacts.iter().map(related_to_proto).collect(),
            })
        })
        .await
    }

    async fn block(
        &self,
        request: Request<pb::BlockRequest>,
    ) -> Result<Response<pb::BlockResponse>, Status> {
        handle(request, |caller, block| async move {
            let other = id("user_id", &block.user_id)?;
            self.service.block(caller.actor()?, other).await?;
            Ok(pb::BlockResponse {})
        })
        .await
    }

    async fn unblock(
        &self,
        request: Request<pb::UnblockRequest>,
    ) -> Result<Response<pb::UnblockResponse>, Status> {
        handle(request, |caller, unblock| async move {
            let other = id("user_id", &unblock.user_id)?;
            self.service.unblock(caller.actor()?, other).await?;
            Ok(pb::UnblockResponse {})
        })
        .await
    }

    async fn list_blocks(
        &self,
        request: Request<pb::ListBlocksRequest>,
    ) -> Result<Response<pb::ListBlocksResponse>, Status> {
        handle(request, |caller, list| async move {
            let after = optional_id("after", list.after.as_deref())?;
            let limit = limit(list.limit, PAGE, MAX_PAGE)?;
            let blocks = self.service.blocks(caller.actor()?, after, limit).await?;
            Ok(pb::ListBlocksResponse {
                blocks: blocks.iter().map(related_to_proto).collect(),
            })
        })
        .await
    }

    async fn get_hidden(
        &self,
        request: Request<pb::GetHiddenRequest>,
    ) -> Result<Response<pb::GetHiddenResponse>, Status> {
        handle(request, |caller, _| async move {
            let hidden = self.service.hidden_from(caller.actor()?).await?;
            Ok(hidden_to_proto(&hidden))
        })
        .await
    }
}

// === client ===

/// A `PeopleService` that runs in another process.
#[derive(Clone)]
pub struct PeopleClient {
    rpc: Connection<PeopleServiceClient<Channel>>,
}

impl PeopleClient {
    /// Connects to `endpoint` (such as `http://auth:50051`) on first use. Must be called within a runtime.
    pub fn connect_lazy(endpoint: &str, credentials: Credentials) -> Result<Self> {
        let client =
            PeopleServiceClient::new(connection::channel(endpoint, PeerRole::Auth, &credentials)?);
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
impl PeopleService for PeopleClient {
    async fn put_contact(&self, user: UserId, other: UserId) -> Result<()> {
        let request = pb::PutContactRequest {
            user_id: other.to_string(),
        };
        self.rpc
            .call(
                "PutContact",
                For::User(user),
                request,
                |mut c, r| async move { c.put_contact(r).await },
            )
            .await?;
        Ok(())
    }

    async fn remove_contact(&self, user: UserId, other: UserId) -> Result<()> {
        let request = pb::RemoveContactRequest {
            user_id: other.to_string(),
        };
        self.rpc
            .call(
                "RemoveContact",
                For::User(user),
                request,
                |mut c, r| async move { c.remove_contact(r).await },
            )
            .await?;
        Ok(())
    }

    async fn contact(&self, user: UserId, other: UserId) -> Result<Related> {
        let request = pb::GetContactRequest {
            user_id: other.to_string(),
        };
        let got = self
            .rpc
            .call(
                "GetContact",
                For::User(user),
                request,
                |mut c, r| async move { c.get_contact(r).await },
            )
            .await?;
        answer(required("contact", got.contact).and_then(related))
    }

    async fn contacts(
        &self,
        user: UserId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Related>> {
        let request = pb::ListContactsRequest {
            limit: limit_to_proto(limit),
            after: after.map(|after| after.to_string()),
        };
        let list = self
            .rpc
            .call(
                "ListContacts",
                For::User(user),
                request,
                |mut c, r| async move { c.list_contacts(r).await },
            )
            .await?;
        list.contacts
            .into_iter()
            .map(|one| answer(related(one)))
            .collect()
    }

    async fn block(&self, user: UserId, other: UserId) -> Result<()> {
        let request = pb::BlockRequest {
            user_id: other.to_string(),
        };
        self.rpc
            .call("Block", For::User(user), request, |mut c, r| async move {
                c.block(r).await
            })
            .await?;
        Ok(())
    }

    async fn unblock(&self, user: UserId, other: UserId) -> Result<()> {
        let request = pb::UnblockRequest {
            user_id: other.to_string(),
        };
        self.rpc
            .call("Unblock", For::User(user), request, |mut c, r| async move {
                c.unblock(r).await
            })
            .await?;
        Ok(())
    }

    async fn blocks(
        &self,
        user: UserId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Related>> {
        let request = pb::ListBlocksRequest {
            limit: limit_to_proto(limit),
            after: after.map(|after| after.to_string()),
        };
        let list = self
            .rpc
            .call(
                "ListBlocks",
                For::User(user),
                request,
                |mut c, r| async move { c.list_blocks(r).await },
            )
            .await?;
        list.blocks
            .into_iter()
            .map(|one| answer(related(one)))
            .collect()
    }

    async fn hidden_from(&self, user: UserId) -> Result<Hidden> {
        let request = pb::GetHiddenRequest {};
        let got = self
            .rpc
            .call(
                "GetHidden",
                For::User(user),
                request,
                |mut c, r| async move { c.get_hidden(r).await },
            )
            .await?;
        answer(hidden(&got))
    }
}

// === values ===

fn related_to_proto(related: &Related) -> pb::Related {
    pb::Related {
        user_id: related.user.to_string(),
        since: Some(timestamp_to_proto(related.since)),
    }
}

fn related(related: pb::Related) -> Result<Related> {
    Ok(Related {
        user: id("user_id", &related.user_id)?,
        since: timestamp("since", related.since)?,
    })
}

fn hidden_to_proto(hidden: &Hidden) -> pb::GetHiddenResponse {
    match hidden {
        Hidden::Everybody => pb::GetHiddenResponse {
            everybody: true,
            user_ids: Vec::new(),
        },
        Hidden::People(people) => pb::GetHiddenResponse {
            everybody: false,
            user_ids: values::texts(people),
        },
    }
}

fn hidden(hidden: &pb::GetHiddenResponse) -> Result<Hidden> {
    if hidden.everybody {
        return Ok(Hidden::Everybody);
    }
    values::ids("user_ids", &hidden.user_ids, MAX_BLOCKS + MAX_BLOCKED_BY).map(Hidden::People)
}

#[cfg(test)]
mod tests {
    use carillon_domain::Timestamp;

    use super::*;

    #[test]
    fn what_is_hidden_comes_back_as_it_was() {
        let some = Hidden::People(vec![UserId::new(), UserId::new()]);
        for one in [Hidden::Everybody, Hidden::People(Vec::new()), some] {
            assert_eq!(hidden(&hidden_to_proto(&one)).unwrap(), one);
        }
    }

    #[test]
    fn entries_come_back_as_they_were() {
        let one = Related {
            user: UserId::new(),
            since: Timestamp(1_234_567),
        };
        assert_eq!(related(related_to_proto(&one)).unwrap(), one);
        let without_time = pb::Related {
            since: None,
            ..related_to_proto(&one)
        };
        assert_eq!(related(without_time).unwrap_err().fields[0].field, "since");
    }
}
