use async_trait::async_trait;

use crate::{
    Result, RoomId, Sequence, Timestamp, UserId,
    room::{Member, Room},
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

/// Rooms, and the projections of their logs: members by room, rooms by user, whether a room was deleted, and as the floor of a
/// read mark the place where somebody joined. [`super::RoomLog::append`] keeps the projections; this port reads them. Reads see
/// every acknowledged append.
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

    /// Takes deleted rooms from a user's list, so that they don't fill it for ever: nobody can leave a deleted room. Rooms that
    /// aren't deleted stay. At most 1,000 rooms.
    async fn forget_deleted(&self, user: UserId, rooms: &[RoomId]) -> Result<()>;

    /// Raises a read mark; a smaller or equal sequence changes nothing. Answers the mark that stands.
    async fn mark_read(&self, user: UserId, room: RoomId, mark: ReadMark) -> Result<ReadMark>;

    /// Read marks of one user; rooms without one are left out. At most 5,000 rooms.
    async fn read_marks(&self, user: UserId, rooms: &[RoomId]) -> Result<Vec<(RoomId, ReadMark)>>;
}
