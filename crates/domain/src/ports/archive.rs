use async_trait::async_trait;
use bytes::Bytes;

use super::{Floor, OpenRoom, ReadMark, Receipt};
use crate::{
    MediaId, Result, RoomId, Sequence, UserId,
    event::RoomEvent,
    room::{Room, Standing},
};

/// The ends of a room's log when it was saved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// What retention left.
    pub floor: Floor,
    /// The last event; 0 in an empty room.
    pub head: Sequence,
    /// Messages up to and including the head.
    pub messages: u64,
}

/// What saving and loading a whole store needs beside the other ports: what there is, logs as who doesn't own them sees them, and
/// writes that put a room back as it was.
///
/// Saving may go on beside everything else. Loading is for a store that nobody else uses, between `begin_load` and `end_load`:
/// meanwhile nobody can open it for anything else. Each load may be repeated.
#[async_trait]
pub trait Archive: Send + Sync {
    /// Ids of accounts, after `after` in an order of the store's own, at most `limit` (1 to 1,000); fewer only at the end. Has
    /// everyone who was there before the first call.
    async fn users(&self, after: Option<UserId>, limit: usize) -> Result<Vec<UserId>>;

    /// Ids of rooms, deleted ones too; as with `users`.
    async fn rooms(&self, after: Option<RoomId>, limit: usize) -> Result<Vec<RoomId>>;

    /// Ids of uploads; as with `users`.
    async fn media(&self, after: Option<MediaId>, limit: usize) -> Result<Vec<MediaId>>;

    /// A room's log, by somebody who doesn't own it. Everything acknowledged before the call is up to the head, and read with
    /// the fences in the answer; the last events may be of sends whose outcome isn't known yet.
    async fn peek(&self, room: RoomId) -> Result<OpenRoom>;

    /// Says that this backup is being loaded; again, if an earlier attempt was cut off. False when all of it was loaded before: then
    /// there is nothing to do. `FailedPrecondition` when the store holds something else that somebody wrote.
    async fn begin_load(&self, backup: &str) -> Result<bool>;

    /// Says that all of it is there: the store may be opened by everybody.
    async fn end_load(&self, backup: &str) -> Result<()>;

    /// Stores a room with its rules and, for a direct one, as that of its pair; its log begins at the floor, or at the head if
    /// nothing is kept.
    async fn load_room(&self, room: &Room, bounds: Bounds) -> Result<()>;

    /// Stores what can't be told from the events that follow. Before these: what they say is later.
    async fn load_standings(&self, room: RoomId, standings: &[(UserId, Standing)]) -> Result<()>;

    /// Stores the next events of a room, with everything that is derived from them; ascending, dense after those before, the first
    /// at the floor. At most 1,000.
    async fn load_events(&self, room: RoomId, floor: Floor, events: &[RoomEvent]) -> Result<()>;

    /// Raises read marks, as joining does. After the events.
    async fn load_marks(&self, user: UserId, marks: &[(RoomId, ReadMark)]) -> Result<()>;

    /// Raises how far messages got to members. After the read marks.
    async fn load_receipts(&self, room: RoomId, receipts: &[Receipt]) -> Result<()>;
}

/// Where backups are kept: one folder each. Paths are `folder/name`.
#[async_trait]
pub trait BackupStore: Send + Sync {
    /// Stores an object durably, whole or not at all.
    async fn put(&self, path: &str, bytes: Bytes) -> Result<()>;

    /// Reads an object. `NotFound` when there is none.
    async fn get(&self, path: &str) -> Result<Bytes>;

    /// Names of the folders, ascending.
    async fn folders(&self) -> Result<Vec<String>>;

    /// Removes an object; removing what isn't there is fine.
    async fn remove(&self, path: &str) -> Result<()>;

    /// Removes everything in a folder.
    async fn remove_folder(&self, folder: &str) -> Result<()>;
}
