//! What an owner remembers of an open room. A cache: everything in it can be read again after a restart.

use std::{collections::HashMap, sync::Arc};

use carillon_domain::{
    RoomId, Sequence, UserId,
    event::{EventBody, RoomEvent},
    ports::{Fence, OpenRoom},
    room::{Member, Room},
};
use parking_lot::Mutex;

/// Rooms with more members than this aren't remembered as a whole; nobody is pushed for every message of such a room.
pub const FEW_MEMBERS: usize = 1000;
/// Single memberships remembered per room.
const MEMBERS_REMEMBERED: usize = 10_000;

/// An open room. Only its partition's task changes it; readers look.
pub struct OpenedRoom {
    /// Its fixed part.
    pub room: Room,
    /// Set at opening, for readers of the log.
    pub fences: Arc<[Fence]>,
    /// The part that changes.
    pub now: Mutex<RoomNow>,
}

/// The changing part of an open room.
pub struct RoomNow {
    /// The last committed event.
    pub head: Sequence,
    /// Messages up to it.
    pub messages: u64,
    /// Whether it was deleted.
    pub deleted: bool,
    members: HashMap<UserId, Option<Member>>,
    /// All members, if they are few and were asked for.
    everybody: Option<Arc<Vec<UserId>>>,
}

/// Shared handle of an open room.
pub type RoomHandle = Arc<OpenedRoom>;

impl OpenedRoom {
    /// From what the log and the store said.
    pub fn new(room: Room, open: OpenRoom) -> Self {
        let now = RoomNow {
            head: open.head,
            messages: open.messages,
            deleted: room.deleted_at.is_some(),
            members: HashMap::new(),
            everybody: None,
        };
        Self {
            room,
            fences: open.fences.into(),
            now: Mutex::new(now),
        }
    }

    /// Its id.
    pub fn id(&self) -> RoomId {
        self.room.id
    }
}

impl RoomNow {
    /// A remembered membership; `None` if nothing is remembered about this person.
    pub fn member(&self, user: UserId) -> Option<Option<Member>> {
        self.members.get(&user).copied()
    }

    /// Remembers what the store said, unless an event told more since.
    pub fn learn_member(&mut self, user: UserId, member: Option<Member>) {
        if self.members.len() >= MEMBERS_REMEMBERED {
            self.members.clear();
        }
        self.members.entry(user).or_insert(member);
    }

    /// All members, if remembered.
    pub fn everybody(&self) -> Option<Arc<Vec<UserId>>> {
        self.everybody.clone()
    }

    /// Remembers all members as of `head`; ignored if the room went on since.
    pub fn learn_everybody(&mut self, at: Sequence, users: Arc<Vec<UserId>>) {
        if self.head == at {
            self.everybody = Some(users);
        }
    }

    /// Takes a committed event in.
    pub fn apply(&mut self, event: &RoomEvent) {
        self.head = event.sequence;
        self.messages = event.messages_after();
        match event.body {
            EventBody::Joined { user, role } => {
                let member = Member {
                    user,
                    role,
                    since: event.sequence,
                    joined_at: event.time,
                };
                self.members.insert(user, Some(member));
                self.everybody = None;
            }
            EventBody::Left { user } => {
                self.members.insert(user, None);
                self.everybody = None;
            }
            EventBody::RoomDeleted => self.deleted = true,
            EventBody::Message { .. } | EventBody::Edited { .. } | EventBody::Deleted { .. } => {}
        }
    }
}
