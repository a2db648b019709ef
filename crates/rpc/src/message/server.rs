//! The server's side.

use std::sync::Arc;

use carillon_domain::{
    Result, Sequence,
    services::{EventPage, HistoryQuery, MessageService, NewRoom, RoomChange},
};
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::values::{
    activity, checked_draft, head_to_proto, kind, mark_to_proto, member_to_proto, message_to_proto,
    outcome_to_proto, overview_to_proto, page_to_proto, reached_to_proto, receipt_to_proto,
    restricted_to_proto, restriction, revision_to_proto, role, room_to_proto, rules,
    summary_to_proto, view_to_proto,
};
use crate::{
    gate::{Caller, handle},
    proto::message::{self as pb, message_service_server as server},
    values::{id, ids, limit, optional_id},
};

/// Most rooms in a page of rooms, and most messages in a page of history.
const MAX_PAGE: usize = 100;
/// Most members or events in a page, and most rooms in one question for heads.
const MAX_LONG_PAGE: usize = 1000;
/// Page sizes of callers that don't say.
const PAGE: usize = 50;
const LONG_PAGE: usize = 100;
/// Bytes of events that integrators get at once: below the 4 MiB that gRPC clients take by default.
const MAX_EXTERNAL_PAGE_BYTES: usize = 3 * 1024 * 1024;

/// Offers a `MessageService` over gRPC; mount it with [`crate::serve`].
#[derive(Clone)]
pub struct MessageServer {
    local: Arc<dyn MessageService>,
    for_integrators: Arc<dyn MessageService>,
}

impl MessageServer {
    /// Makes a server of the service. It answers integrators about rooms of other owners that they should try again.
    pub fn new(service: Arc<dyn MessageService>) -> Self {
        Self {
            local: service.clone(),
            for_integrators: service,
        }
    }

    /// Sends integrators' calls through `router` (a [`crate::RoutedMessages`]), so that they may call any replica.
    #[must_use]
    pub fn routing_integrators(mut self, router: Arc<dyn MessageService>) -> Self {
        self.for_integrators = router;
        self
    }

    pub(crate) fn into_tonic(self) -> server::MessageServiceServer<Self> {
        server::MessageServiceServer::new(self)
    }

    /// Roles know where a room lives and are answered here; integrators don't.
    fn service(&self, caller: Caller) -> &dyn MessageService {
        if caller.is_external() {
            &*self.for_integrators
        } else {
            &*self.local
        }
    }
}

#[tonic::async_trait]
impl server::MessageService for MessageServer {
    async fn create_room(
        &self,
        request: Request<pb::CreateRoomRequest>,
    ) -> Result<Response<pb::CreateRoomResponse>, Status> {
        handle(request, |caller, create| async move {
            let new = NewRoom {
                kind: kind("kind", create.kind)?,
                name: create.name,
                description: create.description,
                rules: create.rules.map(rules).unwrap_or_default(),
            };
            let made = self
                .service(caller)
                .create_room(caller.actor()?, new)
                .await?;
            Ok(pb::CreateRoomResponse {
                room: Some(view_to_proto(made)),
            })
        })
        .await
    }

    async fn open_direct(
        &self,
        request: Request<pb::OpenDirectRequest>,
    ) -> Result<Response<pb::OpenDirectResponse>, Status> {
        handle(request, |caller, open| async move {
            let peer = id("peer_id", &open.peer_id)?;
            let (room, created) = self
                .service(caller)
                .open_direct(caller.actor()?, peer)
                .await?;
            Ok(pb::OpenDirectResponse {
                room: Some(view_to_proto(room)),
                created,
            })
        })
        .await
    }

    async fn list_public_rooms(
        &self,
        request: Request<pb::ListPublicRoomsRequest>,
    ) -> Result<Response<pb::ListPublicRoomsResponse>, Status> {
        handle(request, |caller, list| async move {
            let after = optional_id("after", list.after.as_deref())?;
            let limit = limit(list.limit, PAGE, MAX_PAGE)?;
            let rooms = self.service(caller).public_rooms(after, limit).await?;
            Ok(pb::ListPublicRoomsResponse {
                rooms: rooms.into_iter().map(room_to_proto).collect(),
            })
        })
        .await
    }

    async fn list_my_rooms(
        &self,
        request: Request<pb::ListMyRoomsRequest>,
    ) -> Result<Response<pb::ListMyRoomsResponse>, Status> {
        handle(request, |caller, list| async move {
            let after = optional_id("after", list.after.as_deref())?;
            let limit = limit(list.limit, PAGE, MAX_PAGE)?;
            let rooms = self
                .service(caller)
                .my_rooms(caller.actor()?, after, limit)
                .await?;
            Ok(pb::ListMyRoomsResponse {
                rooms: rooms.into_iter().map(summary_to_proto).collect(),
            })
        })
        .await
    }

    async fn list_my_room_ids(
        &self,
        request: Request<pb::ListMyRoomIdsRequest>,
    ) -> Result<Response<pb::ListMyRoomIdsResponse>, Status> {
        handle(request, |caller, _| async move {
            let rooms = self.service(caller).room_ids(caller.actor()?).await?;
            Ok(pb::ListMyRoomIdsResponse {
                room_ids: crate::values::texts(&rooms),
            })
        })
        .await
    }

    async fn get_room(
        &self,
        request: Request<pb::GetRoomRequest>,
    ) -> Result<Response<pb::GetRoomResponse>, Status> {
        handle(request, |caller, get| async move {
            let room = id("room_id", &get.room_id)?;
            let view = self.service(caller).room(caller.actor()?, room).await?;
            Ok(pb::GetRoomResponse {
                room: Some(view_to_proto(view)),
            })
        })
        .await
    }

    async fn delete_room(
        &self,
        request: Request<pb::DeleteRoomRequest>,
    ) -> Result<Response<pb::DeleteRoomResponse>, Status> {
        handle(request, |caller, delete| async move {
            let room = id("room_id", &delete.room_id)?;
            self.service(caller)
                .delete_room(caller.actor()?, room)
                .await?;
            Ok(pb::DeleteRoomResponse {})
        })
        .await
    }

    async fn join(
        &self,
        request: Request<pb::JoinRequest>,
    ) -> Result<Response<pb::JoinResponse>, Status> {
        handle(request, |caller, join| async move {
            let room = id("room_id", &join.room_id)?;
            let sequence = self.service(caller).join(caller.actor()?, room).await?;
            Ok(pb::JoinResponse {
                sequence: sequence.0,
            })
        })
        .await
    }

    async fn leave(
        &self,
        request: Request<pb::LeaveRequest>,
    ) -> Result<Response<pb::LeaveResponse>, Status> {
        handle(request, |caller, leave| async move {
            let room = id("room_id", &leave.room_id)?;
            self.service(caller).leave(caller.actor()?, room).await?;
            Ok(pb::LeaveResponse {})
        })
        .await
    }

    async fn list_members(
        &self,
        request: Request<pb::ListMembersRequest>,
    ) -> Result<Response<pb::ListMembersResponse>, Status> {
        handle(request, |caller, list| async move {
            let room = id("room_id", &list.room_id)?;
            let after = optional_id("after", list.after.as_deref())?;
            let limit = limit(list.limit, LONG_PAGE, MAX_LONG_PAGE)?;
            let members = self
                .service(caller)
                .members(caller.actor()?, room, after, limit)
                .await?;
            Ok(pb::ListMembersResponse {
                members: members.into_iter().map(member_to_proto).collect(),
            })
        })
        .await
    }

    async fn put_member(
        &self,
        request: Request<pb::PutMemberRequest>,
    ) -> Result<Response<pb::PutMemberResponse>, Status> {
        handle(request, |caller, put| async move {
            let room = id("room_id", &put.room_id)?;
            let user = id("user_id", &put.user_id)?;
            let role = role("role", put.role)?;
            let member = self
                .service(caller)
                .put_member(caller.actor()?, room, user, role)
                .await?;
            Ok(pb::PutMemberResponse {
                member: Some(member_to_proto(member)),
            })
        })
        .await
    }

    async fn remove_member(
        &self,
        request: Request<pb::RemoveMemberRequest>,
    ) -> Result<Response<pb::RemoveMemberResponse>, Status> {
        handle(request, |caller, remove| async move {
            let room = id("room_id", &remove.room_id)?;
            let user = id("user_id", &remove.user_id)?;
            self.service(caller)
                .remove_member(caller.actor()?, room, user)
                .await?;
            Ok(pb::RemoveMemberResponse {})
        })
        .await
    }

    async fn invite(
        &self,
        request: Request<pb::InviteRequest>,
    ) -> Result<Response<pb::InviteResponse>, Status> {
        handle(request, |caller, invite| async move {
            let room = id("room_id", &invite.room_id)?;
            let user = id("user_id", &invite.user_id)?;
            self.service(caller)
                .invite(caller.actor()?, room, user)
                .await?;
            Ok(pb::InviteResponse {})
        })
        .await
    }

    async fn list_invites(
        &self,
        request: Request<pb::ListInvitesRequest>,
    ) -> Result<Response<pb::ListInvitesResponse>, Status> {
        handle(request, |caller, list| async move {
            let after = optional_id("after", list.after.as_deref())?;
            let limit = limit(list.limit, PAGE, MAX_PAGE)?;
            let rooms = self
                .service(caller)
                .invites(caller.actor()?, after, limit)
                .await?;
            Ok(pb::ListInvitesResponse {
                rooms: rooms.into_iter().map(room_to_proto).collect(),
            })
        })
        .await
    }

    async fn restrict(
        &self,
        request: Request<pb::RestrictRequest>,
    ) -> Result<Response<pb::RestrictResponse>, Status> {
        handle(request, |caller, restrict| async move {
            let room = id("room_id", &restrict.room_id)?;
            let user = id("user_id", &restrict.user_id)?;
            let restriction = restriction(restrict.restriction)?;
            self.service(caller)
                .restrict(caller.actor()?, room, user, restriction)
                .await?;
            Ok(pb::RestrictResponse {})
        })
        .await
    }

    async fn list_restrictions(
        &self,
        request: Request<pb::ListRestrictionsRequest>,
    ) -> Result<Response<pb::ListRestrictionsResponse>, Status> {
        handle(request, |caller, list| async move {
            let room = id("room_id", &list.room_id)?;
            let after = optional_id("after", list.after.as_deref())?;
            let limit = limit(list.limit, LONG_PAGE, MAX_LONG_PAGE)?;
            let restricted = self
                .service(caller)
                .restrictions(caller.actor()?, room, after, limit)
                .await?;
            Ok(pb::ListRestrictionsResponse {
                restricted: restricted.into_iter().map(restricted_to_proto).collect(),
            })
        })
        .await
    }

    async fn change_room(
        &self,
        request: Request<pb::ChangeRoomRequest>,
    ) -> Result<Response<pb::ChangeRoomResponse>, Status> {
        handle(request, |caller, change| async move {
            let room = id("room_id", &change.room_id)?;
            let change = RoomChange {
                name: change.name,
                description: change.description,
                rules: change.rules.map(rules),
            };
            let changed = self
                .service(caller)
                .change_room(caller.actor()?, room, change)
                .await?;
            Ok(pb::ChangeRoomResponse {
                room: Some(view_to_proto(changed)),
            })
        })
        .await
    }

    async fn mark_delivered(
        &self,
        request: Request<pb::MarkDeliveredRequest>,
    ) -> Result<Response<pb::MarkDeliveredResponse>, Status> {
        handle(request, |caller, mark| async move {
            let room = id("room_id", &mark.room_id)?;
            let delivered = self
                .service(caller)
                .mark_delivered(caller.actor()?, room, Sequence(mark.sequence))
                .await?;
            Ok(pb::MarkDeliveredResponse {
                delivered: Some(reached_to_proto(delivered)),
            })
        })
        .await
    }

    async fn list_receipts(
        &self,
        request: Request<pb::ListReceiptsRequest>,
    ) -> Result<Response<pb::ListReceiptsResponse>, Status> {
        handle(request, |caller, list| async move {
            let room = id("room_id", &list.room_id)?;
            let after = optional_id("after", list.after.as_deref())?;
            let limit = limit(list.limit, LONG_PAGE, MAX_LONG_PAGE)?;
            let receipts = self
                .service(caller)
                .receipts(caller.actor()?, room, after, limit)
                .await?;
            Ok(pb::ListReceiptsResponse {
                receipts: receipts.into_iter().map(receipt_to_proto).collect(),
            })
        })
        .await
    }

    async fn send(
        &self,
        request: Request<pb::SendRequest>,
    ) -> Result<Response<pb::SendResponse>, Status> {
        handle(request, |caller, send| async move {
            let room = id("room_id", &send.room_id)?;
            let draft = checked_draft(send.draft)?;
            self.service(caller)
                .send(caller.actor()?, room, draft)
                .await
                .map(outcome_to_proto)
        })
        .await
    }

    async fn locate(
        &self,
        request: Request<pb::LocateRequest>,
    ) -> Result<Response<pb::LocateResponse>, Status> {
        handle(request, |caller, locate| async move {
            let message = id("message_id", &locate.message_id)?;
            let found = self.service(caller).locate(message).await?;
            Ok(pb::LocateResponse {
                room_id: found.room.to_string(),
                sequence: found.sequence.0,
            })
        })
        .await
    }

    async fn get_message(
        &self,
        request: Request<pb::GetMessageRequest>,
    ) -> Result<Response<pb::GetMessageResponse>, Status> {
        handle(request, |caller, get| async move {
            let room = id("room_id", &get.room_id)?;
            let message = id("message_id", &get.message_id)?;
            let found = self
                .service(caller)
                .message(caller.actor()?, room, message)
                .await?;
            Ok(pb::GetMessageResponse {
                message: Some(message_to_proto(found)),
            })
        })
        .await
    }

    async fn list_revisions(
        &self,
        request: Request<pb::ListRevisionsRequest>,
    ) -> Result<Response<pb::ListRevisionsResponse>, Status> {
        handle(request, |caller, list| async move {
            let room = id("room_id", &list.room_id)?;
            let message = id("message_id", &list.message_id)?;
            let revisions = self
                .service(caller)
                .revisions(caller.actor()?, room, message)
                .await?;
            Ok(pb::ListRevisionsResponse {
                revisions: revisions.into_iter().map(revision_to_proto).collect(),
            })
        })
        .await
    }

    async fn edit(
        &self,
        request: Request<pb::EditRequest>,
    ) -> Result<Response<pb::EditResponse>, Status> {
        handle(request, |caller, edit| async move {
            let room = id("room_id", &edit.room_id)?;
            let message = id("message_id", &edit.message_id)?;
            let edited = self
                .service(caller)
                .edit(caller.actor()?, room, message, edit.content)
                .await?;
            Ok(pb::EditResponse {
                message: Some(message_to_proto(edited)),
            })
        })
        .await
    }

    async fn delete(
        &self,
        request: Request<pb::DeleteRequest>,
    ) -> Result<Response<pb::DeleteResponse>, Status> {
        handle(request, |caller, delete| async move {
            let room = id("room_id", &delete.room_id)?;
            let message = id("message_id", &delete.message_id)?;
            let deleted = self
                .service(caller)
                .delete(caller.actor()?, room, message)
                .await?;
            Ok(pb::DeleteResponse {
                message: Some(message_to_proto(deleted)),
            })
        })
        .await
    }

    async fn get_history(
        &self,
        request: Request<pb::GetHistoryRequest>,
    ) -> Result<Response<pb::GetHistoryResponse>, Status> {
        handle(request, |caller, get| async move {
            let room = id("room_id", &get.room_id)?;
            let query = HistoryQuery {
                limit: limit(get.limit, PAGE, MAX_PAGE)?,
                before: get.before.map(Sequence),
                after: get.after.map(Sequence),
            };
            let messages = self
                .service(caller)
                .history(caller.actor()?, room, query)
                .await?;
            Ok(pb::GetHistoryResponse {
                messages: messages.into_iter().map(message_to_proto).collect(),
            })
        })
        .await
    }

    async fn get_events(
        &self,
        request: Request<pb::GetEventsRequest>,
    ) -> Result<Response<pb::GetEventsResponse>, Status> {
        handle(request, |caller, get| async move {
            let room = id("room_id", &get.room_id)?;
            let limit = limit(get.limit, LONG_PAGE, MAX_LONG_PAGE)?;
            let page = self
                .service(caller)
                .events(caller.actor()?, room, Sequence(get.after), limit)
                .await?;
            Ok(pb::GetEventsResponse {
                page: Some(page_for(caller, page)),
            })
        })
        .await
    }

    async fn get_heads(
        &self,
        request: Request<pb::GetHeadsRequest>,
    ) -> Result<Response<pb::GetHeadsResponse>, Status> {
        handle(request, |caller, get| async move {
            let rooms = ids("room_ids", &get.room_ids, MAX_LONG_PAGE)?;
            let heads = self.service(caller).heads(&rooms).await?;
            Ok(pb::GetHeadsResponse {
                heads: heads.into_iter().map(head_to_proto).collect(),
            })
        })
        .await
    }

    async fn get_overviews(
        &self,
        request: Request<pb::GetOverviewsRequest>,
    ) -> Result<Response<pb::GetOverviewsResponse>, Status> {
        handle(request, |caller, get| async move {
            let rooms = ids("room_ids", &get.room_ids, MAX_PAGE)?;
            let reader = id("reader_id", &get.reader_id)?;
            let overviews = self.service(caller).overviews(reader, &rooms).await?;
            Ok(pb::GetOverviewsResponse {
                overviews: overviews.into_iter().map(overview_to_proto).collect(),
            })
        })
        .await
    }

    async fn get_tail(
        &self,
        request: Request<pb::GetTailRequest>,
    ) -> Result<Response<pb::GetTailResponse>, Status> {
        handle(request, |caller, get| async move {
            let room = id("room_id", &get.room_id)?;
            let limit = limit(get.limit, LONG_PAGE, MAX_LONG_PAGE)?;
            let page = self
                .service(caller)
                .tail(room, Sequence(get.after), limit)
                .await?;
            Ok(pb::GetTailResponse {
                page: Some(page_to_proto(page)),
            })
        })
        .await
    }

    async fn mark_read(
        &self,
        request: Request<pb::MarkReadRequest>,
    ) -> Result<Response<pb::MarkReadResponse>, Status> {
        handle(request, |caller, mark| async move {
            let room = id("room_id", &mark.room_id)?;
            let read = self
                .service(caller)
                .mark_read(caller.actor()?, room, Sequence(mark.sequence))
                .await?;
            Ok(pb::MarkReadResponse {
                read: Some(mark_to_proto(read)),
            })
        })
        .await
    }

    async fn set_activity(
        &self,
        request: Request<pb::SetActivityRequest>,
    ) -> Result<Response<pb::SetActivityResponse>, Status> {
        handle(request, |caller, set| async move {
            let room = id("room_id", &set.room_id)?;
            let activity = activity("activity", set.activity)?;
            self.service(caller)
                .activity(caller.actor()?, room, activity, set.active)
                .await?;
            Ok(pb::SetActivityResponse {})
        })
        .await
    }
}

/// Roles take a page of any size; integrators' clients refuse messages above 4 MiB, so theirs is cut. It stays gapless, and the
/// head says that there is more.
fn page_for(caller: Caller, page: EventPage) -> pb::EventPage {
    let mut page = page_to_proto(page);
    if caller.is_external() {
        let mut bytes = 0;
        let fitting = page.events.iter().take_while(|event| {
            bytes += event.encoded_len();
            bytes <= MAX_EXTERNAL_PAGE_BYTES
        });
        let fitting = fitting.count();
        page.events.truncate(fitting);
    }
    page
}
