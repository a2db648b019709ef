//! Reading from rooms' logs: gaps of a room for all of its followers, and what one socket missed.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use carillon_domain::{
    ErrorCode, Result, RoomId, Sequence, UserId,
    event::{EventBody, RoomEvent},
    services::EventPage,
};
use futures::{StreamExt, stream};

use super::{
    Inner, back_off,
    rooms::{Attach, Holds},
    socket::{CloseCode, Socket},
};
use crate::{metrics, wire};

/// Events of one room that a resuming socket gets pushed; beyond that it is told to read them itself.
const MAX_ROOM_EVENTS: u64 = 1_000;
/// The same over all rooms of a socket.
const MAX_SOCKET_EVENTS: usize = 10_000;
/// Events read at once.
const PAGE: usize = 250;
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
        }
        for event in &page.events {
            rooms.offer(event);
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

/// Brings a socket level with its rooms: what it missed first, then live events, without a gap or a repeat.
pub async fn socket(
    inner: Arc<Inner>,
    socket: Arc<Socket>,
    behind: Vec<(RoomId, Sequence)>,
    _holds: Holds,
) {
    let left = AtomicUsize::new(MAX_SOCKET_EVENTS);
    stream::iter(behind)
        .for_each_concurrent(ROOMS_AT_ONCE, |(room, from)| {
            level(&inner, &socket, room, from, &left)
        })
        .await;
}

/// The same for one room.
async fn level(
    inner: &Inner,
    socket: &Arc<Socket>,
    room: RoomId,
    from: Sequence,
    left: &AtomicUsize,
) {
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
                if at.0 - from.0 + missed > MAX_ROOM_EVENTS || !take(left, missed.min(PAGE as u64))
                {
                    return resync(inner, socket, room, at).await;
                }
                let Ok(page) = read(inner, room, at, PAGE).await else {
                    return resync(inner, socket, room, at).await;
                };
                if page.events.is_empty() || page.first_available > at.next() {
                    return resync(inner, socket, room, at).await;
                }
                for event in &page.events {
                    // What is newer than the hub's place reaches it in a moment; sending it here is right too, for the
                    // socket is attached after what it was sent.
                    if !socket.push_when_free(wire::event_frame(event)).await {
                        return;
                    }
                    at = event.sequence;
                    trusted = true;
                }
            }
        }
    }
}

fn take(left: &AtomicUsize, count: u64) -> bool {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
        left.checked_sub(count)
    })
    .is_ok()
}

/// Tells the client to read from `at` on by itself. Live events come from before that frame on: what the client reads after it
/// joins them without a gap.
async fn resync(inner: &Inner, socket: &Arc<Socket>, room: RoomId, at: Sequence) {
    inner.rooms_of(room).attach_now(room, socket);
    socket.push_when_free(wire::resync(room, at)).await;
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
    let from: HashMap<u64, Sequence> = match joined {
        Some(place) => sockets.iter().map(|s| (s.id(), place)).collect(),
        None => HashMap::new(),
    };
    let left = AtomicUsize::new(MAX_SOCKET_EVENTS);
    for socket in &sockets {
        match from.get(&socket.id()) {
            Some(&place) => level(&inner, socket, room, place, &left).await,
            None => resync(&inner, socket, room, Sequence::ZERO).await,
        }
    }
    drop(holds);
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
    let Some(end) = page.events.iter().position(|event| match event.body {
        EventBody::Left { user: who } => who == user,
        EventBody::RoomDeleted => true,
        _ => false,
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
