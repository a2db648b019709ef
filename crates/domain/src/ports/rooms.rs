use async_trait::async_trait;

use crate::{
    Result, RoomId, Sequence, Timestamp, UserId,
    room::{Member, Restrictions, Room, Standing},
};

/// How far somebody has read a room.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReadMark {
    /// Up to and including; the largest ever marked.
    pub sequence: Sequence,
    /// Messages of the room up to and including that place.
    pub messages: u64,
    /// When it was marked.
    pub time: Timestamp,
}

/// How far a message got to somebody: up to which place, and when that was marked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reached {
    /// Up to and including; the largest ever marked.
    pub sequence: Sequence,
    /// When it was marked.
    pub time: Timestamp,
}

/// How far a room's messages got to a member (MSG-05).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Receipt {
    /// Who.
    pub user: UserId,
    /// What one of their devices has; `None` if nothing was confirmed. Never behind `read`.
    pub delivered: Option<Reached>,
    /// What they have read, one's own messages included; `None` if nothing was marked since they joined.
    pub read: Option<Reached>,
}

/// A person whom a room's moderators banned or muted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Restricted {
    /// Who.
    pub user: UserId,
    /// How.
    pub restrictions: Restrictions,
}

/// Rooms, and the projections of their logs: members and restrictions by room, rooms and invitations by user, a room's name and
/// rules, whether it was deleted, its deleted messages and its mentions; and as the floor of a read mark the place where somebody
/// joined, or last wrote. [`super::RoomLog::append`] keeps the projections; this port reads them. Reads see every acknowledged
/// append, except that the read mark of a message's sender may come later.
#[async_trait]
pub trait RoomStore: Send + Sync {
    /// Stores a new room, without members. Storing the same room again changes nothing.
    async fn create(&self, room: &Room) -> Result<()>;

    /// A room; deleted ones too.
    async fn get(&self, room: RoomId) -> Result<Option<Room>>;

    /// Rooms by id, in any order; unknown ones are left out. At most 1,000 ids.
    async fn get_many(&self, rooms: &[RoomId]) -> Result<Vec<Room>>;

    /// Listed rooms that aren't deleted, ascending by id, after `after`, at most `limit` (1 to 100).
    async fn list_public(&self, after: Option<RoomId>, limit: usize) -> Result<Vec<Room>>;

    /// The room of an unordered pair: `candidate` becomes it if there was none. Linearizable: under a race every caller gets
    /// the same id (MSG-02).
    async fn direct_room(&self, a: UserId, b: UserId, candidate: RoomId) -> Result<RoomId>;

    /// One membership.
    async fn member(&self, room: RoomId, user: UserId) -> Result<Option<Member>>;

    /// All that the log says about a person.
    async fn standing(&self, room: RoomId, user: UserId) -> Result<Standing>;

    /// People who are banned, or who were muted, ascending by user id, after `after`, at most `limit` (1 to 1,000).
    async fn restricted(
        &self,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Restricted>>;

    /// Rooms that a person was asked to join and hasn't answered, ascending by id, after `after`, at most `limit` (1 to 1,000).
    async fn invites_of(
        &self,
        user: UserId,
        after: Option<RoomId>,
        limit: usize,
    ) -> Result<Vec<RoomId>>;

    /// Rooms with a retention, or that had one, ascending by id, after `after`, at most `limit` (1 to 1,000).
    async fn retained(&self, after: Option<RoomId>, limit: usize) -> Result<Vec<RoomId>>;

    /// Members ascending by user id, after `after`, at most `limit` (1 to 1,000).
    async fn members(
        &self,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Member>>;

    /// The rooms that a user is a member of, ascending by id, after `after`, at most `limit` (1 to 5,000).
    async fn rooms_of(
        &self,
        user: UserId,
        after: Option<RoomId>,
        limit: usize,
    ) -> Result<Vec<RoomId>>;

    /// Takes deleted rooms from a user's list and from their invitations, so that they don't fill them for ever: nobody can leave a
    /// deleted room. Rooms that
    /// aren't deleted stay. At most 1,000 rooms.
    async fn forget_deleted(&self, user: UserId, rooms: &[RoomId]) -> Result<()>;

    /// Raises a read mark; a smaller or equal sequence changes nothing. Answers the mark that stands.
    async fn mark_read(&self, user: UserId, room: RoomId, mark: ReadMark) -> Result<ReadMark>;

    /// Raises how far a room's messages got to one of a person's devices; a smaller or equal sequence changes nothing. Answers what
    /// stands, which is at least their read mark.
    async fn mark_delivered(&self, user: UserId, room: RoomId, reached: Reached)
    -> Result<Reached>;

    /// How far a room's messages got to its members, ascending by user id, after `after`, at most `limit` (1 to 1,000). Who has
    /// no mark since they joined is left out.
    async fn receipts(
        &self,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Receipt>>;

    /// Places after `after` of messages that were deleted, ascending, at most `limit` (1 to 1,000).
    async fn deleted_after(
        &self,
        room: RoomId,
        after: Sequence,
        limit: usize,
    ) -> Result<Vec<Sequence>>;

    /// Places after `after` of messages that call a person or everybody, deleted ones too, ascending, at most `limit` (1 to 1,000).
    async fn mentions_after(
        &self,
        room: RoomId,
        user: UserId,
        after: Sequence,
        limit: usize,
    ) -> Result<Vec<Sequence>>;

    /// Read marks of one user; rooms without one are left out. At most 5,000 rooms.
    async fn read_marks(&self, user: UserId, rooms: &[RoomId]) -> Result<Vec<(RoomId, ReadMark)>>;
}
