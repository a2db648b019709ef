//! The client's side.

use std::time::Duration;

use async_trait::async_trait;
use carillon_domain::{
    MessageId, Result, RoomId, Sequence, UserId,
    event::{Draft, Message, Revision},
    ports::{Reached, ReadMark, Receipt, Restricted},
    room::{Member, Role, Room},
    services::{
        EventPage, HistoryQuery, MessageService, NewRoom, ResolvedRoom, Restriction, RoomChange,
        RoomHead, RoomOverview, RoomSummary, RoomView, SendOutcome,
    },
    signal::Activity,
};
use tonic::transport::Channel;

use super::values::{
    activity_to_proto, draft_to_proto, head, kind_to_proto, mark, member, message, outcome,
    overview, page, reached, receipt, restricted, restriction_to_proto, revision, role_to_proto,
    room, rules_to_proto, summary, view,
};
use crate::{
    PeerRole,
    connection::{self, Connection, Credentials, For},
    proto::message::{
        self as pb, message_service_client::MessageServiceClient, message_service_server,
    },
    values::{self, answer, id, limit_to_proto, texts},
};

/// The largest answer that is taken: a page of 1,000 events of 16 KiB, with room to spare. Requests stay below tonic's 4 MiB.
const MAX_ANSWER_BYTES: usize = 32 * 1024 * 1024;

/// A `MessageService` that runs in another process, at one address. [`crate::RoutedMessages`] finds a room's owner among many.
#[derive(Clone)]
pub struct MessageClient {
    rpc: Connection<MessageServiceClient<Channel>>,
}

impl MessageClient {
    /// Connects to `endpoint` (such as `http://10.1.2.3:50051`) on first use. Must be called within a runtime.
    pub fn connect_lazy(endpoint: &str, credentials: Credentials) -> Result<Self> {
        Self::with_deadline(endpoint, credentials, values::CALL_DEADLINE)
    }

    pub(crate) fn with_deadline(
        endpoint: &str,
        credentials: Credentials,
        deadline: Duration,
    ) -> Result<Self> {
        let client = MessageServiceClient::new(connection::channel(
            endpoint,
            PeerRole::Message,
            &credentials,
        )?)
        .max_decoding_message_size(MAX_ANSWER_BYTES);
        Ok(Self {
            rpc: Connection::new(
                message_service_server::SERVICE_NAME,
                client,
                credentials,
                deadline,
            ),
        })
    }
}

#[async_trait]
impl MessageService for MessageClient {
    async fn create_room(&self, actor: UserId, room: NewRoom) -> Result<RoomView> {
        let request = pb::CreateRoomRequest {
            kind: kind_to_proto(room.kind),
            name: room.name,
            description: room.description,
            rules: Some(rules_to_proto(room.rules)),
        };
        let made = self
            .rpc
            .call(
                "CreateRoom",
                For::User(actor),
                request,
                |mut c, r| async move { c.create_room(r).await },
            )
            .await?;
        answer(view(made.room))
    }

    async fn open_direct(&self, actor: UserId, peer: UserId) -> Result<(RoomView, bool)> {
        let request = pb::OpenDirectRequest {
            peer_id: peer.to_string(),
        };
        let opened = self
            .rpc
            .call(
                "OpenDirect",
                For::User(actor),
                request,
                |mut c, r| async move { c.open_direct(r).await },
            )
            .await?;
        Ok((answer(view(opened.room))?, opened.created))
    }

    async fn public_rooms(&self, after: Option<RoomId>, limit: usize) -> Result<Vec<Room>> {
        let request = pb::ListPublicRoomsRequest {
            after: after.map(|id| id.to_string()),
            limit: limit_to_proto(limit),
        };
        let list = self
            .rpc
            .call(
                "ListPublicRooms",
                For::Nobody,
                request,
                |mut c, r| async move { c.list_public_rooms(r).await },
            )
            .await?;
        list.rooms
            .into_iter()
            .map(|one| answer(room(one)))
            .collect()
    }

    async fn my_rooms(
        &self,
        actor: UserId,
        after: Option<RoomId>,
        limit: usize,
    ) -> Result<Vec<RoomSummary>> {
        let request = pb::ListMyRoomsRequest {
            after: after.map(|id| id.to_string()),
            limit: limit_to_proto(limit),
        };
        let list = self
            .rpc
            .call(
                "ListMyRooms",
                For::User(actor),
                request,
                |mut c, r| async move { c.list_my_rooms(r).await },
            )
            .await?;
        list.rooms
            .into_iter()
            .map(|one| answer(summary(one)))
            .collect()
    }

    async fn room_ids(&self, actor: UserId) -> Result<Vec<RoomId>> {
        let request = pb::ListMyRoomIdsRequest {};
        let list = self
            .rpc
            .call(
                "ListMyRoomIds",
                For::User(actor),
                request,
                |mut c, r| async move { c.list_my_room_ids(r).await },
            )
            .await?;
        list.room_ids
            .iter()
            .map(|one| answer(id("room_ids", one)))
            .collect()
    }

    async fn room(&self, actor: UserId, room: RoomId) -> Result<RoomView> {
        let request = pb::GetRoomRequest {
            room_id: room.to_string(),
        };
        let got = self
            .rpc
            .call(
                "GetRoom",
                For::User(actor),
                request,
                |mut c, r| async move { c.get_room(r).await },
            )
            .await?;
        answer(view(got.room))
    }

    async fn delete_room(&self, actor: UserId, room: RoomId) -> Result<()> {
        let request = pb::DeleteRoomRequest {
            room_id: room.to_string(),
        };
        self.rpc
            .call(
                "DeleteRoom",
                For::User(actor),
                request,
                |mut c, r| async move { c.delete_room(r).await },
            )
            .await?;
        Ok(())
    }

    async fn join(&self, actor: UserId, room: RoomId) -> Result<Sequence> {
        let request = pb::JoinRequest {
            room_id: room.to_string(),
        };
        let joined = self
            .rpc
            .call("Join", For::User(actor), request, |mut c, r| async move {
                c.join(r).await
            })
            .await?;
        Ok(Sequence(joined.sequence))
    }

    async fn leave(&self, actor: UserId, room: RoomId) -> Result<()> {
        let request = pb::LeaveRequest {
            room_id: room.to_string(),
        };
        self.rpc
            .call("Leave", For::User(actor), request, |mut c, r| async move {
                c.leave(r).await
            })
            .await?;
        Ok(())
    }

    async fn members(
        &self,
        actor: UserId,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Member>> {
        let request = pb::ListMembersRequest {
            room_id: room.to_string(),
            after: after.map(|id| id.to_string()),
            limit: limit_to_proto(limit),
        };
        let list = self
            .rpc
            .call(
                "ListMembers",
                For::User(actor),
                request,
                |mut c, r| async move { c.list_members(r).await },
            )
            .await?;
        list.members
            .into_iter()
            .map(|one| answer(member(one)))
            .collect()
    }

    async fn put_member(
        &self,
        actor: UserId,
        room: RoomId,
        user: UserId,
        role: Role,
    ) -> Result<Member> {
        let request = pb::PutMemberRequest {
            room_id: room.to_string(),
            user_id: user.to_string(),
            role: role_to_proto(role),
        };
        let put = self
            .rpc
            .call(
                "PutMember",
                For::User(actor),
                request,
                |mut c, r| async move { c.put_member(r).await },
            )
            .await?;
        answer(values::required("member", put.member).and_then(member))
    }

    async fn remove_member(&self, actor: UserId, room: RoomId, user: UserId) -> Result<()> {
        let request = pb::RemoveMemberRequest {
            room_id: room.to_string(),
            user_id: user.to_string(),
        };
        self.rpc
            .call(
                "RemoveMember",
                For::User(actor),
                request,
                |mut c, r| async move { c.remove_member(r).await },
            )
            .await?;
        Ok(())
    }

    async fn invite(&self, actor: UserId, room: RoomId, user: UserId) -> Result<()> {
        let request = pb::InviteRequest {
            room_id: room.to_string(),
            user_id: user.to_string(),
        };
        self.rpc
            .call("Invite", For::User(actor), request, |mut c, r| async move {
                c.invite(r).await
            })
            .await?;
        Ok(())
    }

    async fn invites(
        &self,
        actor: UserId,
        after: Option<RoomId>,
        limit: usize,
    ) -> Result<Vec<Room>> {
        let request = pb::ListInvitesRequest {
            after: after.map(|id| id.to_string()),
            limit: limit_to_proto(limit),
        };
        let list = self
            .rpc
            .call(
                "ListInvites",
                For::User(actor),
                request,
                |mut c, r| async move { c.list_invites(r).await },
            )
            .await?;
        answer(list.rooms.into_iter().map(room).collect())
    }

    async fn restrict(
        &self,
        actor: UserId,
        room: RoomId,
        user: UserId,
        restriction: Restriction,
    ) -> Result<()> {
        let request = pb::RestrictRequest {
            room_id: room.to_string(),
            user_id: user.to_string(),
            restriction: Some(restriction_to_proto(restriction)),
        };
        self.rpc
            .call(
                "Restrict",
                For::User(actor),
                request,
                |mut c, r| async move { c.restrict(r).await },
            )
            .await?;
        Ok(())
    }

    async fn restrictions(
        &self,
        actor: UserId,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Restricted>> {
        let request = pb::ListRestrictionsRequest {
            room_id: room.to_string(),
            after: after.map(|id| id.to_string()),
            limit: limit_to_proto(limit),
        };
        let list = self
            .rpc
            .call(
                "ListRestrictions",
                For::User(actor),
                request,
                |mut c, r| async move { c.list_restrictions(r).await },
            )
            .await?;
        answer(list.restricted.into_iter().map(restricted).collect())
    }

    async fn change_room(
        &self,
        actor: UserId,
        room: RoomId,
        change: RoomChange,
    ) -> Result<RoomView> {
        let request = pb::ChangeRoomRequest {
            room_id: room.to_string(),
            name: change.name,
            description: change.description,
            rules: change.rules.map(rules_to_proto),
        };
        let changed = self
            .rpc
            .call(
                "ChangeRoom",
                For::User(actor),
                request,
                |mut c, r| async move { c.change_room(r).await },
            )
            .await?;
        answer(view(changed.room))
    }

    async fn mark_delivered(
        &self,
        actor: UserId,
        room: RoomId,
        sequence: Sequence,
    ) -> Result<Reached> {
        let request = pb::MarkDeliveredRequest {
            room_id: room.to_string(),
            sequence: sequence.0,
        };
        let marked = self
            .rpc
            .call(
                "MarkDelivered",
                For::User(actor),
                request,
                |mut c, r| async move { c.mark_delivered(r).await },
            )
            .await?;
        answer(reached("delivered", marked.delivered))
    }

    async fn receipts(
        &self,
        actor: UserId,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Receipt>> {
        let request = pb::ListReceiptsRequest {
            room_id: room.to_string(),
            after: after.map(|id| id.to_string()),
            limit: limit_to_proto(limit),
        };
        let list = self
            .rpc
            .call(
                "ListReceipts",
                For::User(actor),
                request,
                |mut c, r| async move { c.list_receipts(r).await },
            )
            .await?;
        answer(list.receipts.into_iter().map(receipt).collect())
    }

    async fn send(&self, actor: UserId, room: RoomId, draft: Draft) -> Result<SendOutcome> {
        let request = pb::SendRequest {
            room_id: room.to_string(),
            draft: Some(draft_to_proto(draft)),
        };
        let sent = self
            .rpc
            .call("Send", For::User(actor), request, |mut c, r| async move {
                c.send(r).await
            })
            .await?;
        answer(outcome(sent))
    }

    async fn locate(&self, message: MessageId) -> Result<ResolvedRoom> {
        let request = pb::LocateRequest {
            message_id: message.to_string(),
        };
        let found = self
            .rpc
            .call("Locate", For::Nobody, request, |mut c, r| async move {
                c.locate(r).await
            })
            .await?;
        Ok(ResolvedRoom {
            room: answer(id("room_id", &found.room_id))?,
            sequence: Sequence(found.sequence),
        })
    }

    async fn message(&self, actor: UserId, room: RoomId, message: MessageId) -> Result<Message> {
        let request = pb::GetMessageRequest {
            room_id: room.to_string(),
            message_id: message.to_string(),
        };
        let got = self
            .rpc
            .call(
                "GetMessage",
                For::User(actor),
                request,
                |mut c, r| async move { c.get_message(r).await },
            )
            .await?;
        answer(self::message(got.message))
    }

    async fn revisions(
        &self,
        actor: UserId,
        room: RoomId,
        message: MessageId,
    ) -> Result<Vec<Revision>> {
        let request = pb::ListRevisionsRequest {
            room_id: room.to_string(),
            message_id: message.to_string(),
        };
        let list = self
            .rpc
            .call(
                "ListRevisions",
                For::User(actor),
                request,
                |mut c, r| async move { c.list_revisions(r).await },
            )
            .await?;
        list.revisions
            .into_iter()
            .map(|one| answer(revision(one)))
            .collect()
    }

    async fn edit(
        &self,
        actor: UserId,
        room: RoomId,
        message: MessageId,
        content: String,
    ) -> Result<Message> {
        let request = pb::EditRequest {
            room_id: room.to_string(),
            message_id: message.to_string(),
            content,
        };
        let edited = self
            .rpc
            .call("Edit", For::User(actor), request, |mut c, r| async move {
                c.edit(r).await
            })
            .await?;
        answer(self::message(edited.message))
    }

    async fn delete(&self, actor: UserId, room: RoomId, message: MessageId) -> Result<Message> {
        let request = pb::DeleteRequest {
            room_id: room.to_string(),
            message_id: message.to_string(),
        };
        let deleted = self
            .rpc
            .call("Delete", For::User(actor), request, |mut c, r| async move {
                c.delete(r).await
            })
            .await?;
        answer(self::message(deleted.message))
    }

    async fn history(
        &self,
        actor: UserId,
        room: RoomId,
        query: HistoryQuery,
    ) -> Result<Vec<Message>> {
        let request = pb::GetHistoryRequest {
            room_id: room.to_string(),
            limit: limit_to_proto(query.limit),
            before: query.before.map(|place| place.0),
            after: query.after.map(|place| place.0),
        };
        let list = self
            .rpc
            .call(
                "GetHistory",
                For::User(actor),
                request,
                |mut c, r| async move { c.get_history(r).await },
            )
            .await?;
        list.messages
            .into_iter()
            .map(|one| answer(message(Some(one))))
            .collect()
    }

    async fn events(
        &self,
        actor: UserId,
        room: RoomId,
        after: Sequence,
        limit: usize,
    ) -> Result<EventPage> {
        let request = pb::GetEventsRequest {
            room_id: room.to_string(),
            after: after.0,
            limit: limit_to_proto(limit),
        };
        let got = self
            .rpc
            .call(
                "GetEvents",
                For::User(actor),
                request,
                |mut c, r| async move { c.get_events(r).await },
            )
            .await?;
        answer(page(got.page))
    }

    async fn heads(&self, rooms: &[RoomId]) -> Result<Vec<RoomHead>> {
        let request = pb::GetHeadsRequest {
            room_ids: texts(rooms),
        };
        let got = self
            .rpc
            .call("GetHeads", For::Nobody, request, |mut c, r| async move {
                c.get_heads(r).await
            })
            .await?;
        got.heads.into_iter().map(|one| answer(head(one))).collect()
    }

    async fn overviews(&self, reader: UserId, rooms: &[RoomId]) -> Result<Vec<RoomOverview>> {
        let request = pb::GetOverviewsRequest {
            room_ids: texts(rooms),
            reader_id: reader.to_string(),
        };
        let got = self
            .rpc
            .call(
                "GetOverviews",
                For::Nobody,
                request,
                |mut c, r| async move { c.get_overviews(r).await },
            )
            .await?;
        got.overviews
            .into_iter()
            .map(|one| answer(overview(one)))
            .collect()
    }

    async fn tail(&self, room: RoomId, after: Sequence, limit: usize) -> Result<EventPage> {
        let request = pb::GetTailRequest {
            room_id: room.to_string(),
            after: after.0,
            limit: limit_to_proto(limit),
        };
        let got = self
            .rpc
            .call("GetTail", For::Nobody, request, |mut c, r| async move {
                c.get_tail(r).await
            })
            .await?;
        answer(page(got.page))
    }

    async fn mark_read(&self, actor: UserId, room: RoomId, sequence: Sequence) -> Result<ReadMark> {
        let request = pb::MarkReadRequest {
            room_id: room.to_string(),
            sequence: sequence.0,
        };
        let marked = self
            .rpc
            .call(
                "MarkRead",
                For::User(actor),
                request,
                |mut c, r| async move { c.mark_read(r).await },
            )
            .await?;
        answer(mark(marked.read))
    }

    async fn activity(
        &self,
        actor: UserId,
        room: RoomId,
        activity: Activity,
        active: bool,
    ) -> Result<()> {
        let request = pb::SetActivityRequest {
            room_id: room.to_string(),
            activity: activity_to_proto(activity),
            active,
        };
        self.rpc
            .call(
                "SetActivity",
                For::User(actor),
                request,
                |mut c, r| async move { c.set_activity(r).await },
            )
            .await?;
        Ok(())
    }
}
