use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    MessageId, Result, RoomId, Sequence, Timestamp, UserId,
    event::{Draft, Message, Revision, RoomEvent},
    ports::{Reached, ReadMark, Receipt, Restricted},
    room::{Member, Role, Room, RoomKind, RoomRules},
    signal::Activity,
};

/// A room to be made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewRoom {
    /// Any but `Direct`.
    pub kind: RoomKind,
    /// Shown name.
    pub name: String,
    /// Description; may be empty.
    pub description: String,
    /// Rules.
    pub rules: RoomRules,
}

/// What to change about a room; what is `None` stays.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RoomChange {
    /// Name; not of direct rooms.
    pub name: Option<String>,
    /// Description; not of direct rooms.
    pub description: Option<String>,
    /// All rules.
    pub rules: Option<RoomRules>,
}

/// What a moderator does to a person.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Restriction {
    /// Remove them, if they are a member, for good.
    Ban,
    /// Let them come back.
    Unban,
    /// Let them read but not write until then; for good if `None`.
    Mute {
        /// The end.
        until: Option<Timestamp>,
    },
    /// Let them write again.
    Unmute,
}

/// A room as one person sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RoomView {
    /// The room.
    pub room: Room,
    /// The caller's role; `None` if no member.
    pub role: Option<Role>,
    /// Its last event.
    pub head: Sequence,
}

/// A line of the conversation list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RoomSummary {
    /// The room.
    pub room: Room,
    /// The other person, in a direct room.
    pub peer: Option<UserId>,
    /// Its last event.
    pub head: Sequence,
    /// Its last message, if there is one among the last 100 events.
    pub last_message: Option<Message>,
    /// How far the caller has read.
    pub read: ReadMark,
    /// Messages after that which weren't deleted.
    pub unread: u64,
    /// Those of them that call the caller by name, or everybody.
    pub mentions: u64,
}

/// A room's last event, for gap detection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RoomHead {
    /// Which room.
    pub room: RoomId,
    /// Its last event.
    pub head: Sequence,
}

/// A room's state as one reader sees it, for conversation lists.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RoomOverview {
    /// Which room.
    pub room: RoomId,
    /// Its last event.
    pub head: Sequence,
    /// Its last message, if there is one among the last 100 events.
    pub last_message: Option<Message>,
    /// How far the reader has read; at least up to where they joined, and to what they wrote last.
    pub read: ReadMark,
    /// Messages after that which weren't deleted and are still kept: all of others, since who writes has read.
    pub unread: u64,
    /// Those of them that call the reader by name, or everybody.
    pub mentions: u64,
}

/// What a send came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SendOutcome {
    /// The message as it was stored by the first such send.
    pub message: Message,
    /// Whether this was a repeat.
    pub duplicate: bool,
}

/// Which messages of the history: those nearest before `before`, or nearest after `after`; neither: the newest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HistoryQuery {
    /// 1 to 100.
    pub limit: usize,
    /// Exclusive upper bound.
    pub before: Option<Sequence>,
    /// Exclusive lower bound.
    pub after: Option<Sequence>,
}

/// A page of a room's events.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventPage {
    /// Ascending, without gaps, right after the place asked for (or from `first_available`, if that is later).
    pub events: Vec<RoomEvent>,
    /// The room's last event when the page was read.
    pub head: Sequence,
    /// The earliest event that is still kept: larger than the place asked for + 1 when retention removed a part.
    pub first_available: Sequence,
}

/// Where a message is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ResolvedRoom {
    /// Its room: route the call that follows by it.
    pub room: RoomId,
    /// Its place.
    pub sequence: Sequence,
}

/// Rooms and messages (MSG-01 to -09, -18 to -21).
///
/// Calls about a room are answered by the replica that owns the room's partition; others answer `NotOwner`, and the routing
/// client tries again. Every call but [`MessageService::create_room`] may be repeated: sends by their client message id, the rest
/// by their nature.
#[async_trait]
pub trait MessageService: Send + Sync {
    /// Makes a room with the caller as owner.
    async fn create_room(&self, actor: UserId, room: NewRoom) -> Result<RoomView>;

    /// The direct room with a peer, made if there was none; whether it was made now (MSG-02).
    async fn open_direct(&self, actor: UserId, peer: UserId) -> Result<(RoomView, bool)>;

    /// Listed rooms after `after`, at most `limit` (1 to 100).
    async fn public_rooms(&self, after: Option<RoomId>, limit: usize) -> Result<Vec<Room>>;

    /// The caller's rooms ascending by id, after `after`, at most `limit` (1 to 100), with last message and unread count.
    async fn my_rooms(
        &self,
        actor: UserId,
        after: Option<RoomId>,
        limit: usize,
    ) -> Result<Vec<RoomSummary>>;

    /// Ids of all rooms of a user (at most 5,000), for following them.
    async fn room_ids(&self, actor: UserId) -> Result<Vec<RoomId>>;

    /// A room.
    async fn room(&self, actor: UserId, room: RoomId) -> Result<RoomView>;

    /// Deletes a room.
    async fn delete_room(&self, actor: UserId, room: RoomId) -> Result<()>;

    /// Becomes a member; the place of the event. Joining again changes nothing and answers the first place.
    async fn join(&self, actor: UserId, room: RoomId) -> Result<Sequence>;

    /// Stops being a member. Leaving again changes nothing.
    async fn leave(&self, actor: UserId, room: RoomId) -> Result<()>;

    /// Members ascending by user id, after `after`, at most `limit` (1 to 1,000).
    async fn members(
        &self,
        actor: UserId,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Member>>;

    /// Adds a person, or gives them another role.
    async fn put_member(
        &self,
        actor: UserId,
        room: RoomId,
        user: UserId,
        role: Role,
    ) -> Result<Member>;

    /// Removes a person.
    async fn remove_member(&self, actor: UserId, room: RoomId, user: UserId) -> Result<()>;

    /// Asks a person to join. Asking a member, or again, changes nothing.
    async fn invite(&self, actor: UserId, room: RoomId, user: UserId) -> Result<()>;

    /// Rooms that the caller was asked to join and hasn't answered, ascending by id, after `after`, at most `limit` (1 to 100).
    /// Joining accepts, leaving declines.
    async fn invites(
        &self,
        actor: UserId,
        after: Option<RoomId>,
        limit: usize,
    ) -> Result<Vec<Room>>;

    /// Bans or mutes a person, member or not, or ends that. What is so already stays so.
    async fn restrict(
        &self,
        actor: UserId,
        room: RoomId,
        user: UserId,
        restriction: Restriction,
    ) -> Result<()>;

    /// People who are banned or muted, ascending by user id, after `after`, at most `limit` (1 to 1,000).
    async fn restrictions(
        &self,
        actor: UserId,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Restricted>>;

    /// Gives a room another name, description or rules.
    async fn change_room(
        &self,
        actor: UserId,
        room: RoomId,
        change: RoomChange,
    ) -> Result<RoomView>;

    /// Sends a message. Answers only once it can't be lost any more (promise 1). A repeat answers the first result (promise 3);
    /// the same client message id with other content, or in another room, is `IdempotencyConflict`.
    async fn send(&self, actor: UserId, room: RoomId, draft: Draft) -> Result<SendOutcome>;

    /// Where a message is; answered by any replica. `NotFound` if nowhere. Tells nothing about its content.
    async fn locate(&self, message: MessageId) -> Result<ResolvedRoom>;

    /// One message.
    async fn message(&self, actor: UserId, room: RoomId, message: MessageId) -> Result<Message>;

    /// Earlier contents of a message.
    async fn revisions(
        &self,
        actor: UserId,
        room: RoomId,
        message: MessageId,
    ) -> Result<Vec<Revision>>;

    /// Gives a message other content (own ones, within the edit window).
    async fn edit(
        &self,
        actor: UserId,
        room: RoomId,
        message: MessageId,
        content: String,
    ) -> Result<Message>;

    /// Deletes a message.
    async fn delete(&self, actor: UserId, room: RoomId, message: MessageId) -> Result<Message>;

    /// A page of messages, ascending (MSG-07).
    async fn history(
        &self,
        actor: UserId,
        room: RoomId,
        query: HistoryQuery,
    ) -> Result<Vec<Message>>;

    /// Events after a place, at most `limit` (1 to 1,000): catch-up (promise 4). Content deleted since is left out of them.
    async fn events(
        &self,
        actor: UserId,
        room: RoomId,
        after: Sequence,
        limit: usize,
    ) -> Result<EventPage>;

    /// Heads of rooms; unknown rooms are left out. Not checked against a user: for gateways. At most 1,000 rooms.
    async fn heads(&self, rooms: &[RoomId]) -> Result<Vec<RoomHead>>;

    /// Overviews of rooms for a reader; unknown and deleted rooms are left out. Whether the reader is a member isn't checked: for
    /// the message role's own peers, which build conversation lists from them. At most 100 rooms, which may span owners: the
    /// routing client splits the call.
    async fn overviews(&self, reader: UserId, rooms: &[RoomId]) -> Result<Vec<RoomOverview>>;

    /// [`MessageService::events`] without a check against a user, for gateways that repair a gap for all followers of a room.
    async fn tail(&self, room: RoomId, after: Sequence, limit: usize) -> Result<EventPage>;

    /// Marks a room read up to a place (clamped to the head) and tells the others.
    async fn mark_read(&self, actor: UserId, room: RoomId, sequence: Sequence) -> Result<ReadMark>;

    /// Marks that a room's messages up to a place (clamped to the head) are on one of the caller's devices, and tells the others
    /// (MSG-05). Reading implies it.
    async fn mark_delivered(
        &self,
        actor: UserId,
        room: RoomId,
        sequence: Sequence,
    ) -> Result<Reached>;

    /// How far the room's messages got to its members, ascending by user id, after `after`, at most `limit` (1 to 1,000). Who has
    /// no mark is left out; who doesn't show theirs to the caller (USER-05, USER-06) is listed without any.
    async fn receipts(
        &self,
        actor: UserId,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Receipt>>;

    /// Tells the room what somebody is doing; may be lost.
    async fn activity(
        &self,
        actor: UserId,
        room: RoomId,
        activity: Activity,
        active: bool,
    ) -> Result<()>;
}
