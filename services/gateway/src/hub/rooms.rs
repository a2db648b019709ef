//! Followers and places of rooms. Nothing here waits: every lock is held for one short piece of work.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use carillon_domain::{
    Clock, RoomId, Sequence, UserId,
    event::RoomEvent,
    privacy::{Audience, Fact},
    signal::Topic,
    time::SystemClock,
};
use indexmap::IndexMap;
use parking_lot::Mutex;

use super::{Inner, socket::Socket, writers::Writers};
use crate::{
    metrics,
    wire::{self, Frame},
};

/// The rooms of a lane that somebody follows or is about to follow.
#[derive(Default)]
pub struct RoomTable(Mutex<HashMap<RoomId, Room>>);

struct Room {
    state: State,
    /// The last event that was delivered.
    last: Sequence,
    /// The highest event that is known to exist.
    known: Sequence,
    /// A task reads what is missing.
    pulling: bool,
    /// Users of the entry other than followers.
    holds: usize,
    followers: IndexMap<u64, Follower, SocketIdHasher>,
}

#[derive(PartialEq, Eq)]
enum State {
    /// The subscription and the head are not certain yet: `known` collects what arrives.
    Opening,
    Live,
}

struct Follower {
    socket: Arc<Socket>,
    /// It has seen events up to here by other means.
    after: Sequence,
}

type SocketIdHasher = std::hash::BuildHasherDefault<IdHasher>;

/// Socket ids are counted up by us: they need spreading, not protection against chosen keys.
#[derive(Default)]
pub struct IdHasher(u64);

impl std::hash::Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0 ^ u64::from(*byte));
        }
    }

    fn write_u64(&mut self, id: u64) {
        // Fibonacci hashing: the golden ratio's multiples are spread evenly.
        self.0 = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 32;
    }
}

/// What came of attaching a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attach {
    /// It gets every event after its place.
    Attached,
    /// Its place is before the room's last delivered event, which is this.
    Behind(Sequence),
    /// Its place is after it: right if the bus is late, wrong if the client is.
    Ahead(Sequence),
    /// The socket does not want the room (any more) or begins with it anew, or the room is not live.
    Refused,
}

/// What a frame tells, of whom, and to whom that person shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct About {
    pub fact: Fact,
    pub person: UserId,
    pub audience: Audience,
}

/// What a person's own sockets get of a frame about them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Own {
    /// The same as everybody; others don't get it if the person is hidden from them.
    Same,
    /// Nothing; others as with `Same`.
    Left,
    /// The frame, also when they are behind; others as with `Same`.
    Sure,
}

impl RoomTable {
    /// An event from the bus or from a pull; who writes it is left in `writers`. True if a pull must be started.
    pub fn offer(&self, event: &RoomEvent, writers: &mut Writers) -> bool {
        let mut rooms = self.0.lock();
        let Some(room) = rooms.get_mut(&event.room) else {
            return false;
        };
        room.known = room.known.max(event.sequence);
        if room.state == State::Opening || event.sequence <= room.last {
            return false;
        }
        if event.sequence == room.last.next() {
            room.last = event.sequence;
            room.deliver(event, writers);
            // The last follower may have left by this event.
            forget_if_unused(&mut rooms, event.room);
            // What is known beyond this is either about to arrive or being pulled already.
            return false;
        }
        !std::mem::replace(&mut room.pulling, true)
    }

    /// A head that was read. True if a pull must be started.
    pub fn reached(&self, room: RoomId, head: Sequence) -> bool {
        let mut rooms = self.0.lock();
        let Some(room) = rooms.get_mut(&room) else {
            return false;
        };
        room.known = room.known.max(head);
        room.state == State::Live
            && room.known > room.last
            && !std::mem::replace(&mut room.pulling, true)
    }

    /// A room's subscription stands and its head was read after that. True if a pull must be started.
    pub fn opened(&self, id: RoomId, head: Sequence) -> bool {
        let mut rooms = self.0.lock();
        let Some(room) = rooms.get_mut(&id) else {
            return false;
        };
        if room.state == State::Opening {
            room.state = State::Live;
            room.last = head;
        }
        drop(rooms);
        self.reached(id, head)
    }

    /// Where a pull goes on: after the last delivered event; `None` if nobody follows any more.
    pub fn last(&self, room: RoomId) -> Option<Sequence> {
        let rooms = self.0.lock();
        let room = rooms.get(&room)?;
        (room.state == State::Live).then_some(room.last)
    }

    /// Ends a pull if nothing is missing; whether it ended.
    pub fn pull_finished(&self, room: RoomId) -> bool {
        let mut rooms = self.0.lock();
        let Some(room) = rooms.get_mut(&room) else {
            return true;
        };
        let finished = room.last >= room.known;
        if finished {
            room.pulling = false;
        }
        finished
    }

    /// Ends a pull that failed; the next event or sweep starts another.
    pub fn pull_failed(&self, room: RoomId) {
        if let Some(room) = self.0.lock().get_mut(&room) {
            room.pulling = false;
        }
    }

    /// Events up to `to` are no longer kept: followers are told to look for themselves.
    pub fn skip_to(&self, id: RoomId, to: Sequence) {
        let mut rooms = self.0.lock();
        if let Some(room) = rooms.get_mut(&id)
            && room.last < to
        {
            let frame = wire::resync(id, room.last);
            room.last = to;
            for follower in room.followers.values() {
                follower.socket.push(frame.clone());
            }
        }
    }

    /// Who follows a room, each once.
    pub fn followers_of(&self, room: RoomId) -> HashSet<UserId> {
        let rooms = self.0.lock();
        let room = rooms.get(&room);
        room.iter()
            .flat_map(|room| room.followers.values())
            .map(|follower| follower.socket.user())
            .collect()
    }

    /// A frame about a person for every follower who may see it, shed first by those who are behind. What it means to the person's own
    /// sockets is another question.
    pub fn broadcast(&self, room: RoomId, frame: &Frame, about: About, own: Own) {
        let rooms = self.0.lock();
        let Some(room) = rooms.get(&room) else {
            return;
        };
        for follower in room.followers.values() {
            let is_own = follower.socket.user() == about.person;
            let is_shown = || {
                let socket = &follower.socket;
                socket.shows(about.fact, about.person, about.audience)
            };
            match own {
                Own::Left if is_own => {}
                Own::Sure if is_own => follower.socket.push(frame.clone()),
                _ if is_shown() => follower.socket.push_ephemeral(frame.clone()),
                _ => {}
            }
        }
    }

    /// Whether a frame for the room would reach anybody, to save encoding it.
    pub fn has_followers(&self, room: RoomId) -> bool {
        self.0
            .lock()
            .get(&room)
            .is_some_and(|room| !room.followers.is_empty())
    }

    /// Makes a socket a follower if it is level with the room, or ahead and `trusted`: its place was seen in the log, and the
    /// bus is late.
    pub fn attach(
        &self,
        room: RoomId,
        socket: &Arc<Socket>,
        at: Sequence,
        trusted: bool,
    ) -> Attach {
        let mut rooms = self.0.lock();
        match rooms.get_mut(&room) {
            Some(entry) if entry.state == State::Live && socket.may_follow(room) => {
                if entry.followers.contains_key(&socket.id()) {
                    Attach::Attached
                } else if at < entry.last {
                    Attach::Behind(entry.last)
                } else if at > entry.last && !trusted {
                    Attach::Ahead(entry.last)
                } else {
                    entry.add(socket, at);
                    Attach::Attached
                }
            }
            _ => Attach::Refused,
        }
    }

    /// Makes a socket a follower wherever the room is: it gets what comes from now on.
    pub fn attach_now(&self, room: RoomId, socket: &Arc<Socket>) {
        let mut rooms = self.0.lock();
        if let Some(entry) = rooms.get_mut(&room)
            && entry.state == State::Live
            && socket.may_follow(room)
        {
            let last = entry.last;
            entry.add(socket, last);
        }
    }

    /// Stops deliveries to a socket at once; the last event before that, if it was a follower.
    pub fn detach(&self, id: RoomId, socket: u64) -> Option<Sequence> {
        let mut rooms = self.0.lock();
        let room = rooms.get_mut(&id)?;
        let follower = room.followers.swap_remove(&socket);
        let seen = follower.map(|follower| room.last.max(follower.after));
        forget_if_unused(&mut rooms, id);
        seen
    }

    /// Rooms that are followed.
    pub fn live(&self) -> Vec<RoomId> {
        let rooms = self.0.lock();
        rooms
            .iter()
            .filter(|(_, room)| room.state == State::Live && !room.followers.is_empty())
            .map(|(id, _)| *id)
            .collect()
    }

    /// Topics that are needed.
    pub fn topics(&self) -> Vec<Topic> {
        self.0
            .lock()
            .keys()
            .map(|&room| Topic::of_room(room))
            .collect()
    }

    /// Keeps an entry; whether the room must be opened.
    fn hold(&self, room: RoomId) -> bool {
        let mut rooms = self.0.lock();
        let room = rooms.entry(room).or_insert_with(|| Room {
            state: State::Opening,
            last: Sequence::ZERO,
            known: Sequence::ZERO,
            pulling: false,
            holds: 0,
            followers: IndexMap::default(),
        });
        room.holds += 1;
        room.state == State::Opening
    }

    fn release(&self, id: RoomId) {
        let mut rooms = self.0.lock();
        if let Some(room) = rooms.get_mut(&id) {
            room.holds -= 1;
        }
        forget_if_unused(&mut rooms, id);
    }
}

fn forget_if_unused(rooms: &mut HashMap<RoomId, Room>, id: RoomId) {
    if rooms
        .get(&id)
        .is_some_and(|room| room.holds == 0 && room.followers.is_empty())
    {
        rooms.remove(&id);
        // A gateway that lost most of its sockets should not keep the table of its busiest hour.
        if rooms.capacity() > 1024 && rooms.len() * 8 < rooms.capacity() {
            rooms.shrink_to(rooms.len() * 2);
        }
    }
}

impl Room {
    fn add(&mut self, socket: &Arc<Socket>, after: Sequence) {
        let socket = socket.clone();
        self.followers
            .insert(socket.id(), Follower { socket, after });
    }

    /// Hands an event to every follower: encoded once, a clone of a reference each.
    fn deliver(&mut self, event: &RoomEvent, writers: &mut Writers) {
        if self.followers.is_empty() {
            return;
        }
        let frame = wire::event_frame(event);
        let mut delivered = 0;
        for follower in self.followers.values() {
            if event.sequence > follower.after {
                writers.extend(follower.socket.push_quietly(frame.clone()));
                delivered += 1;
            }
        }
        metrics::EVENTS_DELIVERED
            .with_label_values(&[] as &[&str])
            .inc_by(delivered);
        if delivered > 0 {
            let age = SystemClock.now().since(event.time);
            metrics::DELIVERY_LATENCY.observe(age.as_secs_f64());
        }
        if let Some(user) = event.body.removes() {
            // Their leaving is the last that they see. Somebody who joined again is after this event.
            self.followers.retain(|_, follower| {
                let leaves = event.sequence > follower.after && follower.socket.user() == user;
                if leaves {
                    follower.socket.want_not(event.room);
                }
                !leaves
            });
        }
    }
}

/// Keeps a room in the table while a socket is about to follow it.
pub struct Hold {
    hub: Arc<Inner>,
    room: RoomId,
}

impl Hold {
    /// Holds a room; whether it must be opened.
    pub fn new(hub: Arc<Inner>, room: RoomId) -> (Self, bool) {
        let opening = hub.rooms_of(room).hold(room);
        (Self { hub, room }, opening)
    }

    pub fn room(&self) -> RoomId {
        self.room
    }
}

impl Clone for Hold {
    fn clone(&self) -> Self {
        Self::new(self.hub.clone(), self.room).0
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.hub.rooms_of(self.room).release(self.room);
    }
}
