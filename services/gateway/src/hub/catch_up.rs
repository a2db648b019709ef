//! Reading from rooms' logs: gaps of a room for all of its followers, and what one socket missed.

use std::{collections::BTreeMap, sync::Arc};

use carillon_domain::{
    ErrorCode, Result, RoomId, Sequence, UserId,
    event::{EventBody, RoomEvent},
    services::EventPage,
};
use parking_lot::Mutex;

use super::{
    Inner, back_off,
    rooms::{Attach, Hold},
    socket::{CloseCode, Socket},
    writers::Writers,
};
use crate::{metrics, wire};

/// Events of one room that a resuming socket gets pushed; beyond that it is told to read them itself.
const MAX_ROOM_EVENTS: u64 = 1_000;
/// The same over all rooms of a socket, until it is level with all of them.
const MAX_SOCKET_EVENTS: usize = 10_000;
/// Events read at once for all followers of a room.
const PAGE: usize = 250;
/// Events read at once for one socket. They wait in memory while a slow client takes them.
const SOCKET_PAGE: usize = 50;
/// Rooms of one socket caught up with at once.
const ROOMS_AT_ONCE: usize = 4;
/// Tries of a read before giving up: about six seconds of pauses.
const TRIES: u32 = 8;
/// How far back a new member's joining is looked for.
const JOIN_WINDOW: u64 = 200;

/// Reads a page; tries again while the room's owner or store is away.
async fn read(inner: &Inner, room: RoomId, after: Sequence, limit: usize) -> Result<EventPage> {
    let mut attempt = 0;
    loop {
        let page = {
            let _permit = inner.pulls.acquire().await.map_err(|_| super::gone())?;
            metrics::ROOM_PULLS.with_label_values(&[] as &[&str]).inc();
            inner.messages.tail(room, after, limit).await
        };
        match page {
            Err(error) if error.code.is_retryable() && attempt < TRIES => {
                tracing::debug!(%error, "reading a room's log again");
                back_off(attempt).await;
                attempt += 1;
            }
            outcome => return outcome,
        }
    }
}

/// Fills a room's gap: reads from the last delivered event on and offers what comes, until nothing known is missing.
pub async fn room(inner: Arc<Inner>, id: RoomId) {
    let mut fruitless = 0;
    let mut writers = Writers::default();
    loop {
        let rooms = inner.rooms_of(id);
        let Some(after) = rooms.last(id) else {
            return;
        };
        let page = match read(&inner, id, after, PAGE).await {
            Ok(page) => page,
            Err(error) => {
                if error.code != ErrorCode::NotFound {
                    tracing::warn!(%error, "could not fill a room's gap; the next sweep will");
                }
                return rooms.pull_failed(id);
            }
        };
        if page.first_available > after.next() {
            rooms.skip_to(id, Sequence(page.first_available.0 - 1));
            // Somebody's removal may be among what is no longer kept.
            let followers = rooms.followers_of(id);
            let inner = inner.clone();
            tokio::spawn(async move { inner.recheck_users(followers).await });
        }
        for events in page.events.chunks(inner.events_at_once()) {
            for event in events {
                rooms.offer(event, &mut writers);
            }
            writers.wake().await;
        }
        if rooms.pull_finished(id) {
            return;
        }
        // The log ends before what was announced: a read that is not quite up to date, or an announcement that was void.
        fruitless = if rooms.last(id) == Some(after) {
            fruitless + 1
        } else {
            0
        };
        if fruitless > TRIES {
            tracing::warn!("a room's log ends before what was announced");
            return rooms.pull_failed(id);
        }
        if fruitless > 0 {
            back_off(fruitless).await;
        }
    }
}

/// Where a socket begins with a room.
#[derive(Clone, Copy, Debug)]
pub enum Start {
    /// After this place, unless it follows already.
    After(Sequence),
    /// After this place, also if it is elsewhere: the client said so.
    Again(Sequence),
    /// With what comes; the client reads everything before by itself.
    Anew,
}

/// What a socket has yet to be brought level with: a few rooms at once, and each by one task at a time, however often the client
/// asks. Of a room that is asked for again only the last place counts, and what is under way for it stops.
#[derive(Default)]
pub struct CatchUps(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    rooms: BTreeMap<RoomId, (Start, Hold)>,
    /// Rooms that tasks work on; not more than tasks.
    under_way: Vec<RoomId>,
    tasks: usize,
    /// Events that may yet be pushed.
    left: u64,
}

impl CatchUps {
    /// Notes where to begin; how many tasks must be started.
    fn add(&self, starts: Vec<(Start, Hold)>) -> usize {
        // Giving up a hold takes the lock of a room table, which is never taken after ours.
        let mut replaced = Vec::new();
        let mut waiting = self.0.lock();
        if waiting.tasks == 0 {
            waiting.left = MAX_SOCKET_EVENTS as u64;
        }
        for (start, hold) in starts {
            let room = hold.room();
            let asked = matches!(start, Start::Again(_));
            if !asked && waiting.rooms.contains_key(&room) {
                // What the client said stands: it knows best.
                replaced.push((start, hold));
            } else {
                replaced.extend(waiting.rooms.insert(room, (start, hold)));
            }
        }
        let more = (ROOMS_AT_ONCE - waiting.tasks).min(waiting.rooms.len());
        waiting.tasks += more;
        drop(waiting);
        more
    }

    /// A task has done with a room and wants the next one. `None` ends the task.
    fn next(&self, done: Option<RoomId>) -> Option<(Start, Hold)> {
        let mut waiting = self.0.lock();
        waiting.under_way.retain(|room| Some(*room) != done);
        // The task that works on a room takes the place that waits for it.
        let next = waiting
            .rooms
            .keys()
            .find(|room| !waiting.under_way.contains(room))
            .copied();
        let Some((room, next)) = next.and_then(|room| waiting.rooms.remove_entry(&room)) else {
            waiting.tasks -= 1;
            if waiting.tasks == 0 {
                waiting.under_way = Vec::new();
            }
            return None;
        };
        waiting.under_way.push(room);
        Some(next)
    }

    /// Whether another place to begin from waits for the room.
    pub fn waits(&self, room: RoomId) -> bool {
        self.0.lock().rooms.contains_key(&room)
    }

    /// Whether so many events more may be pushed.
    fn take(&self, count: u64) -> bool {
        let mut waiting = self.0.lock();
        let left = waiting.left.checked_sub(count);
        waiting.left = left.unwrap_or(waiting.left);
        left.is_some()
    }
}

/// Brings a socket level with rooms in the background: what it missed first, then live events, without a gap or a repeat.
pub fn start(inner: &Arc<Inner>, socket: &Arc<Socket>, starts: Vec<(Start, Hold)>) {
    for _ in 0..socket.catch_ups().add(starts) {
        tokio::spawn(work(inner.clone(), socket.clone()));
    }
}

async fn work(inner: Arc<Inner>, socket: Arc<Socket>) {
    let mut done = None;
    while let Some((start, hold)) = socket.catch_ups().next(done) {
        let room = hold.room();
        match start {
            Start::After(from) => level(&inner, &socket, room, from).await,
            Start::Again(from) => {
                inner.rooms_of(room).detach(room, socket.id());
                level(&inner, &socket, room, from).await;
            }
            Start::Anew => resync(&inner, &socket, room, Sequence::ZERO).await,
        }
        done = Some(room);
    }
}

/// Brings a socket level with one room.
async fn level(inner: &Inner, socket: &Arc<Socket>, room: RoomId, from: Sequence) {
    let rooms = inner.rooms_of(room);
    let mut at = from;
    // Whether the log has shown that the place exists.
    let mut trusted = false;
    loop {
        match rooms.attach(room, socket, at, trusted) {
            Attach::Attached | Attach::Refused => return,
            Attach::Ahead(last) => match read(inner, room, last, 1).await {
                Ok(page) if page.head >= at => trusted = true,
                Ok(page) => return resync(inner, socket, room, page.head).await,
                Err(_) => return resync(inner, socket, room, last).await,
            },
            Attach::Behind(last) => {
                let missed = last.0 - at.0;
                if at.0 - from.0 + missed > MAX_ROOM_EVENTS
                    || !socket.catch_ups().take(missed.min(SOCKET_PAGE as u64))
                {
                    return resync(inner, socket, room, at).await;
                }
                let Ok(page) = read(inner, room, at, SOCKET_PAGE).await else {
                    return resync(inner, socket, room, at).await;
                };
                if page.events.is_empty() || page.first_available > at.next() {
                    return resync(inner, socket, room, at).await;
                }
                let leaving = leaving(&page.events, socket.user());
                for event in &page.events {
                    // What is newer than the hub's place reaches it in a moment; sending it here is right too, for the
                    // socket is attached after what it was sent.
                    if !socket.push_when_free(room, wire::event_frame(event)).await {
                        return;
                    }
                    at = event.sequence;
                    trusted = true;
                    if leaving == Some(at) && !is_member(inner, socket, room).await {
                        return socket.want_not(room);
                    }
                }
            }
        }
    }
}

/// The place of a user's leaving, if they don't join again in the same events.
fn leaving(events: &[RoomEvent], user: UserId) -> Option<Sequence> {
    let last = events.iter().rev().find(|event| {
        event.body.removes() == Some(user)
            || matches!(event.body, EventBody::Joined { user: who, .. } if who == user)
    })?;
    last.body.removes().map(|_| last.sequence)
}

/// Whether somebody of whom the log said that they left has come back since. The signal that tells of the leaving may be lost, so
/// it isn't waited for.
async fn is_member(inner: &Inner, socket: &Socket, room: RoomId) -> bool {
    match inner.messages.room(socket.user(), room).await {
        Ok(view) => view.role.is_some(),
        Err(error)
            if matches!(
                error.code,
                ErrorCode::NotFound | ErrorCode::PermissionDenied
            ) =>
        {
            false
        }
        Err(error) => {
            tracing::debug!(%error, "could not ask who is a member: the client shall connect again");
            socket.close(CloseCode::Drain);
            false
        }
    }
}

/// Tells the client to read from `at` on by itself. Live events come from before that frame on: what the client reads after it
/// joins them without a gap.
async fn resync(inner: &Inner, socket: &Arc<Socket>, room: RoomId, at: Sequence) {
    inner.rooms_of(room).attach_now(room, socket);
    socket.push_when_free(room, wire::resync(room, at)).await;
}

/// A user is a new member of a room: their sockets get its events from their own joining on.
pub async fn added(inner: Arc<Inner>, user: UserId, room: RoomId, sockets: Vec<Arc<Socket>>) {
    let mut attempt = 0;
    let holds = loop {
        match inner.open(vec![room]).await {
            Ok(holds) => break holds,
            Err(error) if attempt < TRIES => {
                tracing::debug!(%error, "could not follow a new room yet");
                back_off(attempt).await;
                attempt += 1;
            }
            Err(error) => {
                tracing::warn!(%error, "could not follow a new room: sockets shall resume");
                for socket in &sockets {
                    socket.close(CloseCode::Drain);
                }
                return;
            }
        }
    };
    let last = inner.rooms_of(room).last(room).unwrap_or_default();
    let window = Sequence(last.0.saturating_sub(JOIN_WINDOW));
    let joined = match read(&inner, room, window, JOIN_WINDOW as usize * 2).await {
        Ok(page) => joining(&page.events, user),
        Err(_) => None,
    };
    let from = joined.map_or(Start::Anew, Start::After);
    // Each by itself: one that takes nothing must not keep the others waiting.
    for socket in &sockets {
        let starts = holds.iter().map(|hold| (from, hold.clone())).collect();
        start(&inner, socket, starts);
    }
}

/// The place before the user's last joining.
fn joining(events: &[RoomEvent], user: UserId) -> Option<Sequence> {
    events
        .iter()
        .rev()
        .find(|event| matches!(event.body, EventBody::Joined { user: who, .. } if who == user))
        .map(|event| Sequence(event.sequence.0 - 1))
}

/// A user is no longer a member. Deliveries have stopped after `last`; what is left to see is what happened up to their leaving.
pub async fn removed(
    inner: Arc<Inner>,
    user: UserId,
    room: RoomId,
    last: Sequence,
    sockets: Vec<Arc<Socket>>,
) {
    let Ok(page) = read(&inner, room, last, PAGE).await else {
        return;
    };
    let Some(end) = page.events.iter().position(|event| {
        event.body.removes() == Some(user) || matches!(event.body, EventBody::RoomDeleted)
    }) else {
        return;
    };
    for event in &page.events[..=end] {
        let frame = wire::event_frame(event);
        for socket in &sockets {
            socket.push(frame.clone());
        }
    }
}
