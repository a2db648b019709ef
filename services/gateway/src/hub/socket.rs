//! A socket as the hub sees it: a bounded queue of frames, and the rooms it wants.

use std::{
    collections::{HashSet, VecDeque},
    sync::atomic::{AtomicBool, AtomicU16, Ordering},
    task::Waker,
};

use bytes::Bytes;
use carillon_domain::{
    RoomId, UserId,
    account::Identity,
    presence::PresenceState,
    privacy::{Audience, Fact},
};
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{catch_up::CatchUps, hidden::HiddenPeople};
use crate::{metrics, wire::Frame};

/// Why a socket is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum CloseCode {
    /// The client went, or said goodbye.
    Normal = 1000,
    /// The gateway stops or can't serve now: resume elsewhere.
    Drain = 4000,
    /// No valid token, or it ended.
    Unauthenticated = 4001,
    /// The session of the device was ended.
    SessionRevoked = 4002,
    /// The client does not speak the protocol.
    Protocol = 4003,
    /// The client reads more slowly than its rooms talk.
    TooSlow = 4008,
    /// The client goes on after its limit was used up.
    RateLimited = 4009,
}

impl CloseCode {
    pub const ALL: [Self; 7] = [
        Self::Normal,
        Self::Drain,
        Self::Unauthenticated,
        Self::SessionRevoked,
        Self::Protocol,
        Self::TooSlow,
        Self::RateLimited,
    ];

    /// What the close frame says.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Normal => "",
            Self::Drain => "resume on another connection",
            Self::Unauthenticated => "not authenticated",
            Self::SessionRevoked => "the session was ended",
            Self::Protocol => "protocol error",
            Self::TooSlow => "too slow, resume",
            Self::RateLimited => "too many requests",
        }
    }
}

/// How many times its capacity a queue may hold while the connection takes what it is given.
const WITH_PATIENCE: usize = 8;

/// See the module's documentation.
pub struct Socket {
    id: u64,
    /// Never changes, unlike the rest of the identity.
    user: UserId,
    identity: Mutex<Identity>,
    presence: Mutex<PresenceState>,
    capacity: usize,
    queue: Mutex<VecDeque<Frame>>,
    /// The connection took everything that it was given last: what waits then waits for our own task.
    takes: AtomicBool,
    /// The code it shall be closed with; 0 while open. The first one stands.
    close: AtomicU16,
    /// The task that writes.
    writer: AtomicWaker,
    /// Told after frames were taken out, for catch-up that waits for room.
    drained: Notify,
    rooms: Mutex<Rooms>,
    catch_ups: CatchUps,
    hidden: HiddenPeople,
}

struct Rooms {
    /// Ascending.
    wanted: Vec<RoomId>,
    /// The first listing is not finished: rooms are noted, not followed.
    connecting: bool,
    /// While the user's rooms are being listed: what changed meanwhile, since the list may be older than that.
    meanwhile: Option<Meanwhile>,
}

#[derive(Default)]
struct Meanwhile {
    added: HashSet<RoomId>,
    removed: HashSet<RoomId>,
    /// Somebody else wanted a listing too, maybe because of something later than this one.
    again: bool,
}

/// What a listing changed.
pub struct Listing {
    /// Every room that is wanted now.
    pub now: Vec<RoomId>,
    pub added: Vec<RoomId>,
    pub removed: Vec<RoomId>,
    /// Another listing was asked for meanwhile.
    pub again: bool,
}

impl Socket {
    /// A socket whose rooms are being listed.
    pub fn new(id: u64, identity: Identity, capacity: usize) -> Self {
        Self {
            id,
            user: identity.user,
            identity: Mutex::new(identity),
            presence: Mutex::new(PresenceState::Online),
            capacity,
            queue: Mutex::default(),
            takes: AtomicBool::new(false),
            close: AtomicU16::new(0),
            writer: AtomicWaker::new(),
            drained: Notify::new(),
            rooms: Mutex::new(Rooms {
                wanted: Vec::new(),
                connecting: true,
                meanwhile: Some(Meanwhile::default()),
            }),
            catch_ups: CatchUps::default(),
            hidden: HiddenPeople::default(),
        }
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn user(&self) -> UserId {
        self.user
    }

    pub fn identity(&self) -> Identity {
        *self.identity.lock()
    }

    pub fn set_identity(&self, identity: Identity) {
        *self.identity.lock() = identity;
    }

    pub fn presence(&self) -> PresenceState {
        *self.presence.lock()
    }

    pub fn set_presence(&self, state: PresenceState) {
        *self.presence.lock() = state;
    }

    /// What decides what it gets of others.
    pub fn hidden(&self) -> &HiddenPeople {
        &self.hidden
    }

    /// Whether it is told a fact of a person who shows it to this audience.
    pub fn shows(&self, fact: Fact, person: UserId, audience: Audience) -> bool {
        person == self.user || self.hidden.shows(fact, person, audience)
    }

    // === the queue ===

    /// Queues a frame that must arrive. A full queue means that the client is too slow: it is closed, and resumes later.
    pub fn push(&self, frame: Frame) {
        if let Some(writer) = self.push_quietly(frame) {
            writer.wake();
        }
    }

    /// The same, but leaves it to the caller to wake the task that writes; soon, for nobody else will. `None` if it is awake, or
    /// about to be woken.
    pub fn push_quietly(&self, frame: Frame) -> Option<Waker> {
        let mut queue = self.queue.lock();
        if self.is_closed() {
            return None;
        }
        if queue.len() >= self.longest() {
            drop(queue);
            self.close(CloseCode::TooSlow);
            return None;
        }
        queue.push_back(frame);
        drop(queue);
        self.writer.take()
    }

    /// How many frames may wait. A client isn't slow because its socket's task didn't get its turn yet: while the connection takes
    /// whatever it is given, more may wait; references to what other sockets hold too, and bounded all the same.
    fn longest(&self) -> usize {
        if self.takes.load(Ordering::Relaxed) {
            self.capacity.saturating_mul(WITH_PATIENCE)
        } else {
            self.capacity
        }
    }

    /// Queues a frame that may be lost: dropped when the queue is more than half full.
    pub fn push_ephemeral(&self, frame: Frame) {
        let mut queue = self.queue.lock();
        if self.is_closed() {
            return;
        }
        if queue.len() * 2 > self.capacity {
            drop(queue);
            metrics::EVENTS_SHED.with_label_values(&[] as &[&str]).inc();
            return;
        }
        queue.push_back(frame);
        drop(queue);
        self.writer.wake();
    }

    /// Queues the answer to a request. Bounded by the requests under way, and by [`Socket::is_full`], which stops reading.
    pub fn push_reply(&self, frame: Frame) {
        self.queue.lock().push_back(frame);
        self.writer.wake();
    }

    /// Queues a frame of a catch-up with a room once half of the queue is free, which leaves the other half for live events. False
    /// when the socket was closed or may not follow the room any more.
    pub async fn push_when_free(&self, room: RoomId, frame: Frame) -> bool {
        loop {
            let drained = self.drained.notified();
            tokio::pin!(drained);
            // Registered before looking: otherwise a wake-up between looking and waiting would be missed.
            drained.as_mut().enable();
            if !self.may_follow(room) {
                return false;
            }
            {
                let mut queue = self.queue.lock();
                if self.is_closed() {
                    return false;
                }
                if queue.len() * 2 < self.capacity {
                    queue.push_back(frame);
                    break;
                }
            }
            drained.await;
        }
        self.writer.wake();
        true
    }

    /// Takes up to `most` frames; how many.
    pub fn take(&self, frames: &mut VecDeque<Bytes>, most: usize) -> usize {
        let mut queue = self.queue.lock();
        let taken = queue.len().min(most);
        frames.extend(queue.drain(..taken).map(Frame::into_bytes));
        // A burst must not leave its memory with an idle socket.
        if queue.is_empty() && queue.capacity() > 32 {
            *queue = VecDeque::new();
        }
        taken
    }

    /// Forgets what waits.
    pub fn clear(&self) {
        *self.queue.lock() = VecDeque::new();
    }

    /// Takes the next frame.
    #[cfg(test)]
    pub fn pop(&self) -> Option<Frame> {
        self.queue.lock().pop_front()
    }

    /// Says whether the connection took everything that it was given.
    pub fn set_takes(&self, takes: bool) {
        self.takes.store(takes, Ordering::Relaxed);
    }

    /// Call after taking frames.
    pub fn frames_taken(&self) {
        self.drained.notify_waiters();
    }

    /// Whether no more requests should be read until frames were written.
    pub fn is_full(&self) -> bool {
        self.queue.lock().len() >= self.capacity
    }

    /// The task that is woken by new frames and by closing.
    pub fn set_writer(&self, waker: &Waker) {
        self.writer.register(waker);
    }

    /// Asks the socket's task to close it. The first reason stands.
    pub fn close(&self, code: CloseCode) {
        let first = self
            .close
            .compare_exchange(0, code as u16, Ordering::AcqRel, Ordering::Acquire)
            .is_ok();
        if first {
            self.writer.wake();
            self.drained.notify_waiters();
        }
    }

    pub fn is_closed(&self) -> bool {
        self.close.load(Ordering::Acquire) != 0
    }

    pub fn close_code(&self) -> Option<CloseCode> {
        let code = self.close.load(Ordering::Acquire);
        CloseCode::ALL
            .into_iter()
            .find(|known| *known as u16 == code)
    }

    // === rooms ===

    pub fn wants(&self, room: RoomId) -> bool {
        self.rooms.lock().wanted.binary_search(&room).is_ok()
    }

    /// Whether events of the room may go on from where they are: it is wanted, and no other place to begin from waits.
    pub fn may_follow(&self, room: RoomId) -> bool {
        self.wants(room) && !self.catch_ups.waits(room)
    }

    /// What the socket has yet to be brought level with.
    pub fn catch_ups(&self) -> &CatchUps {
        &self.catch_ups
    }

    /// True if it is new and must be followed now; false if it was wanted already, or will be followed when connecting is done.
    pub fn want(&self, room: RoomId) -> bool {
        let mut rooms = self.rooms.lock();
        if let Some(meanwhile) = &mut rooms.meanwhile {
            meanwhile.removed.remove(&room);
            meanwhile.added.insert(room);
        }
        if rooms.connecting {
            return false;
        }
        match rooms.wanted.binary_search(&room) {
            Ok(_) => false,
            Err(place) => {
                rooms.wanted.insert(place, room);
                true
            }
        }
    }

    pub fn want_not(&self, room: RoomId) {
        let mut rooms = self.rooms.lock();
        if let Some(meanwhile) = &mut rooms.meanwhile {
            meanwhile.added.remove(&room);
            meanwhile.removed.insert(room);
        }
        if let Ok(place) = rooms.wanted.binary_search(&room) {
            rooms.wanted.remove(place);
        }
    }

    /// Forgets all rooms; which they were.
    pub fn want_none(&self) -> Vec<RoomId> {
        std::mem::take(&mut self.rooms.lock().wanted)
    }

    /// The user's rooms are about to be listed. False if they are being listed already: then that listing says `again`.
    pub fn begin_listing(&self) -> bool {
        let mut rooms = self.rooms.lock();
        if let Some(meanwhile) = &mut rooms.meanwhile {
            meanwhile.again = true;
            return false;
        }
        rooms.meanwhile = Some(Meanwhile::default());
        true
    }

    pub fn abandon_listing(&self) {
        self.rooms.lock().meanwhile = None;
    }

    /// Takes over the list, except for what changed since it began.
    pub fn finish_listing(&self, listed: Vec<RoomId>) -> Listing {
        let mut rooms = self.rooms.lock();
        rooms.connecting = false;
        let meanwhile = rooms.meanwhile.take().unwrap_or_default();
        let mut next: HashSet<RoomId> = listed
            .into_iter()
            .filter(|room| !meanwhile.removed.contains(room))
            .collect();
        next.extend(meanwhile.added);
        let before: HashSet<RoomId> = rooms.wanted.iter().copied().collect();
        let mut now: Vec<RoomId> = next.iter().copied().collect();
        now.sort_unstable();
        rooms.wanted = now.clone();
        Listing {
            added: next.difference(&before).copied().collect(),
            removed: before.difference(&next).copied().collect(),
            again: meanwhile.again,
            now,
        }
    }
}
