use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    ClientMessageId, MessageId, ReplicaId, Result, RoomId, Sequence, UserId,
    event::{RoomEvent, StoredMessage},
    partition::Partition,
};

/// The fencing token of a partition's owner: every new owner has a larger one.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// From `first` on, events of epochs smaller than `epoch` are void.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fence {
    /// The owner that set it.
    pub epoch: Epoch,
    /// The first sequence that it may write.
    pub first: Sequence,
}

/// Where a room's log begins after retention removed what was before (MSG-21).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Floor {
    /// The first event that is kept; after the head if none is.
    pub first: Sequence,
    /// Messages of the room before it.
    pub messages: u64,
}

impl Default for Floor {
    /// Nothing was removed.
    fn default() -> Self {
        Self {
            first: Sequence(1),
            messages: 0,
        }
    }
}

/// A room as its owner sees it after opening.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenRoom {
    /// Which room.
    pub room: RoomId,
    /// The last event; 0 in an empty room.
    pub head: Sequence,
    /// Messages up to and including the head.
    pub messages: u64,
    /// Whether the last event deleted the room: nothing may follow it.
    pub deleted: bool,
    /// What retention left.
    pub floor: Floor,
    /// Every fence of the room, ascending, this owner's last. Empty where ownership needs no fences (one process).
    pub fences: Vec<Fence>,
}

/// The logs of all rooms: the truth of the platform (promises 1 to 4).
///
/// Writing: `acquire` the partition, `open` each of its rooms under that epoch, then `append`. After any error of `append` the
/// outcome is unknown: the caller must `acquire` and `open` again before it writes or reads on. The same after an error of `open`
/// other than `Internal`: an epoch gets one try to fence a room. An owner that was replaced can never get `Ok` from `append`, and
/// nothing it wrote unacknowledged is visible under a later owner unless that owner found it when it opened the room.
///
/// Reading: only what an owner has opened or appended, with the fences it got: `to` is at most its head. An owner that hasn't
/// appended for a while doesn't know that it was replaced: `check` tells it.
#[async_trait]
pub trait RoomLog: Send + Sync {
    /// Takes a partition, with an epoch larger than every earlier one.
    async fn acquire(&self, partition: Partition, owner: &ReplicaId) -> Result<Epoch>;

    /// Opens a room for this epoch: finds the last event at quorum, sets the fence after it, and repairs what a crashed owner
    /// may have left undone for the last events (entries of the idempotency index and projections). Opening a room again under
    /// the same epoch keeps the fence that stands. The fences that it answers are all there are from then on, whatever an earlier
    /// epoch still writes.
    async fn open(&self, room: RoomId, epoch: Epoch) -> Result<OpenRoom>;

    /// `NotOwner` when the epoch is over. `Ok`: when the call began, no later owner had acknowledged anything.
    async fn check(&self, partition: Partition, epoch: Epoch) -> Result<()>;

    /// Makes events durable, all of one partition; several rooms may be mixed, each ascending and dense after its head. `Ok`
    /// means: on a quorum (or fsynced), indexed, projected, and the epoch was still the partition's afterwards. `NotOwner` when
    /// the epoch is over.
    async fn append(&self, partition: Partition, epoch: Epoch, events: &[RoomEvent]) -> Result<()>;

    /// Raises a room's floor; a smaller one changes nothing. Readers and later owners see nothing before it from then on.
    async fn raise_floor(&self, room: RoomId, floor: Floor) -> Result<()>;

    /// Removes what is before `below` and before the floor, at most 1,000 places at once: events, the messages' entries in the
    /// index, mentions. Whether there is more. For an owner that opened the room, with a floor that nobody reads below any more:
    /// one that was stored a while ago. May be called again after it was cut off. The room's last event may stay until there is
    /// another one.
    async fn purge(&self, room: RoomId, fences: &[Fence], below: Sequence) -> Result<bool>;

    /// Events `from..=to`, ascending, without gaps; none of them before the floor. At most 1,000.
    async fn events(
        &self,
        room: RoomId,
        fences: &[Fence],
        from: Sequence,
        to: Sequence,
    ) -> Result<Vec<RoomEvent>>;

    /// The messages sent at `from..=to`, ascending, each with its changes; other events are left out. At most 1,000 places.
    async fn messages(
        &self,
        room: RoomId,
        fences: &[Fence],
        from: Sequence,
        to: Sequence,
    ) -> Result<Vec<StoredMessage>>;

    /// Where a message with this client id may have been stored, over all rooms. Candidates: the caller checks each by reading
    /// it, since an entry may belong to a write that never happened.
    async fn find_sent(
        &self,
        sender: UserId,
        id: &ClientMessageId,
    ) -> Result<Vec<(RoomId, Sequence)>>;

    /// Where a message may be stored; a candidate, as with `find_sent`.
    async fn find_message(&self, id: MessageId) -> Result<Option<(RoomId, Sequence)>>;
}
