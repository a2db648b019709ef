//! Reading an open room: history pages and catch-up, never past the last event that its owner knows committed.

use std::collections::{HashMap, HashSet};

use carillon_domain::{
    Error, MessageId, Result, Sequence, Timestamp, UserId,
    event::{EventBody, Message, RoomEvent, StoredMessage},
    ports::{Floor, ReadMark, RoomLog, RoomStore},
    services::{EventPage, HistoryQuery},
};

use crate::state::{Expiring, OpenedRoom};

/// Places that one read of the log covers.
const CHUNK: u64 = 200;
/// Events that are read at once in search of a place.
const PROBES: u64 = 16;
/// Places that one read of an index covers.
const PLACES: usize = 1000;

/// Messages of a page, ascending (MSG-07).
pub async fn history(
    log: &dyn RoomLog,
    room: &OpenedRoom,
    query: HistoryQuery,
) -> Result<Vec<Message>> {
    let (head, total, floor) = {
        let now = room.now.lock();
        (now.head, now.messages, now.floor)
    };
    let first = query
        .after
        .map_or(floor.first, |after| after.next().max(floor.first));
    let last = query.before.map_or(head, |before| {
        Sequence(before.0.saturating_sub(1)).min(head)
    });
    let upwards = query.after.is_some() && query.before.is_none();
    let mut pages: Vec<Vec<StoredMessage>> = Vec::new();
    let (mut low, mut high) = (first, last);
    let mut found = 0;
    // Most places of a log hold messages, so the first read nearly always suffices; other events make it go on.
    let mut span = (query.limit as u64 + 8).min(CHUNK);
    while found < query.limit && low <= high {
        let (from, to) = if upwards {
            (low, high.min(Sequence(low.0.saturating_add(span - 1))))
        } else {
            (low.max(Sequence((high.0 + 1).saturating_sub(span))), high)
        };
        let page = log.messages(room.id(), &room.fences, from, to).await?;
        found += page.len();
        // Every event tells how many messages were before it: so it is known whether there are more, and a stretch without
        // any, however long, is jumped over.
        if upwards {
            low = to.next();
            let seen = match page.last() {
                Some(message) => message.sent.messages_after(),
                None => event_at(log, room, to).await?.messages_after(),
            };
            if seen >= total {
                high = to;
            } else if page.is_empty() && low <= high {
                low = nth_message(log, room, seen + 1, low, high).await?;
            }
        } else {
            let before = match page.first() {
                Some(message) => message.sent.messages_before,
                None => event_at(log, room, from).await?.messages_before,
            };
            if before <= floor.messages || from == low {
                low = from.next();
            }
            high = Sequence(from.0 - 1);
            if page.is_empty() && low <= high {
                high = nth_message(log, room, before, low, high).await?;
            }
        }
        pages.push(page);
        span = CHUNK;
    }
    if !upwards {
        pages.reverse();
    }
    let mut messages: Vec<Message> = pages
        .into_iter()
        .flatten()
        .filter_map(|stored| stored.up_to(head).fold())
        .collect();
    if messages.len() > query.limit {
        if upwards {
            messages.truncate(query.limit);
        } else {
            messages.drain(..messages.len() - query.limit);
        }
    }
    Ok(messages)
}

async fn event_at(log: &dyn RoomLog, room: &OpenedRoom, place: Sequence) -> Result<RoomEvent> {
    let event = log.events(room.id(), &room.fences, place, place).await?;
    event
        .into_iter()
        .next()
        .ok_or_else(|| Error::defect("the log has a hole"))
}

/// The first place in `low..=high` up to which the room has `n` messages; `high` if there is none before it.
async fn nth_message(
    log: &dyn RoomLog,
    room: &OpenedRoom,
    n: u64,
    low: Sequence,
    high: Sequence,
) -> Result<Sequence> {
    let reached = |event: &RoomEvent| event.messages_after() >= n;
    first_where(log, room, reached, low, high).await
}

/// The first place in `low..high` whose event is so, given that all after it are; `high` if there is none. Reads a number of events
/// that grows with the logarithm of the distance.
async fn first_where(
    log: &dyn RoomLog,
    room: &OpenedRoom,
    is_so: impl Fn(&RoomEvent) -> bool,
    low: Sequence,
    high: Sequence,
) -> Result<Sequence> {
    let (mut low, mut high) = (low.0, high.0);
    while low < high {
        let step = (high - low).div_ceil(PROBES);
        let places = (low..high).step_by(usize::try_from(step).unwrap_or(usize::MAX));
        let probes = places.map(|place| event_at(log, room, Sequence(place)));
        for event in futures::future::try_join_all(probes).await? {
            if is_so(&event) {
                high = event.sequence.0;
                break;
            }
            low = event.sequence.0 + 1;
        }
    }
    Ok(Sequence(high))
}

/// What a reader hasn't read.
pub struct Unread {
    /// How far they have read.
    pub mark: ReadMark,
    /// Messages after that.
    pub messages: u64,
    /// Those of them that call the reader, or everybody.
    pub mentions: u64,
}

/// Counts what a reader whose stored mark is `mark` hasn't read and what wasn't deleted: a difference of counts less the deleted
/// ones. The cost grows with the deleted messages and the mentions after the mark, not with the messages.
pub async fn unread(
    store: &dyn RoomStore,
    room: &OpenedRoom,
    reader: UserId,
    mark: ReadMark,
) -> Result<Unread> {
    let (head, messages, floor, mark) = {
        let now = room.now.lock();
        (now.head, now.messages, now.floor, now.read_by(reader, mark))
    };
    let after = mark.sequence.max(Sequence(floor.first.0 - 1));
    let difference = messages.saturating_sub(mark.messages.max(floor.messages));
    if difference == 0 {
        return Ok(Unread {
            mark,
            messages: 0,
            mentions: 0,
        });
    }
    let calls = async {
        let page = |after| store.mentions_after(room.id(), reader, after, PLACES);
        all_places(page, after).await
    };
    let (deleted, calls) = tokio::try_join!(deleted_after(store, room, after), calls)?;
    let deleted: HashSet<Sequence> = deleted.into_iter().filter(|place| *place <= head).collect();
    let mentions = calls
        .iter()
        .filter(|place| **place <= head && !deleted.contains(place))
        .count();
    Ok(Unread {
        mark,
        messages: difference.saturating_sub(deleted.len() as u64),
        mentions: mentions as u64,
    })
}

async fn deleted_after(
    store: &dyn RoomStore,
    room: &OpenedRoom,
    after: Sequence,
) -> Result<Vec<Sequence>> {
    let head = {
        let now = room.now.lock();
        if let Some(places) = now.deleted_after(after) {
            return Ok(places);
        }
        now.head
    };
    let page = |after| store.deleted_after(room.id(), after, PLACES);
    let places = all_places(page, after).await?;
    room.now.lock().learn_deleted(head, after, &places);
    Ok(places)
}

/// Every page of places after one.
async fn all_places<P, F>(page: P, after: Sequence) -> Result<Vec<Sequence>>
where
    P: Fn(Sequence) -> F,
    F: Future<Output = Result<Vec<Sequence>>>,
{
    let mut places = Vec::new();
    loop {
        let next = page(places.last().copied().unwrap_or(after)).await?;
        let full = next.len() >= PLACES;
        places.extend(next);
        if !full {
            return Ok(places);
        }
    }
}

/// Raises the floor to the first event that isn't older than the room's retention (MSG-21), for good, before anybody is shown less.
/// Times of events nearly ascend: an owner's clock may be behind the one's before it, so that an event may go a little early or
/// late, and only with all that are before it.
pub async fn expire(log: &dyn RoomLog, room: &OpenedRoom, now: Timestamp) -> Result<()> {
    let (retention, floor, head, messages) = {
        let state = room.now.lock();
        let Some(retention) = state.room.rules.retention() else {
            return Ok(());
        };
        if state.floor.first > state.head || state.expires.is_some_and(|expires| now < expires) {
            return Ok(());
        }
        (retention, state.floor, state.head, state.messages)
    };
    // One search at a time: who comes while another one looks sees for that moment longer what has to go.
    let Some(_expiring) = Expiring::begin(room) else {
        return Ok(());
    };
    let kept = |event: &RoomEvent| now.since(event.time) < retention;
    // Mostly little has to go: so it is looked for in ever larger steps.
    let (mut low, mut high, mut step) = (floor.first, floor.first, 1);
    while high <= head && !kept(&event_at(log, room, high).await?) {
        low = high.next();
        high = Sequence(high.0.saturating_add(step));
        step *= PROBES;
    }
    let first = first_where(log, room, kept, low, high.min(head.next())).await?;
    let (floor, expires) = if first > head {
        let floor = Floor { first, messages };
        (floor, None)
    } else {
        let event = event_at(log, room, first).await?;
        let floor = Floor {
            first,
            messages: event.messages_before,
        };
        (floor, Some(event.time.plus(retention)))
    };
    let known = room.now.lock().floor;
    if floor.first > known.first {
        log.raise_floor(room.id(), floor).await?;
    }
    room.now.lock().raise_floor(floor, expires, retention);
    Ok(())
}

/// Events after a place (promise 4), without content that was deleted since.
pub async fn events(
    log: &dyn RoomLog,
    room: &OpenedRoom,
    after: Sequence,
    limit: usize,
) -> Result<EventPage> {
    let (head, first_available) = {
        let now = room.now.lock();
        (now.head, now.floor.first)
    };
    let from = after.next().max(first_available);
    let to = Sequence(from.0.saturating_add(limit as u64 - 1)).min(head);
    if from > to {
        return Ok(EventPage {
            events: Vec::new(),
            head,
            first_available,
        });
    }
    let (events, messages) = futures::try_join!(
        log.events(room.id(), &room.fences, from, to),
        log.messages(room.id(), &room.fences, from, to),
    )?;
    check_dense(&events, from, to)?;
    let mut deleted: HashSet<MessageId> = messages
        .iter()
        .filter_map(|stored| deleted_id(stored, head))
        .collect();
    // An edit's message may lie before this page, and its deletion after it.
    let earlier: HashMap<Sequence, MessageId> = events
        .iter()
        .filter_map(|event| match event.body {
            EventBody::Edited { id, target, .. } if target < from => Some((target, id)),
            _ => None,
        })
        .collect();
    for (place, id) in earlier {
        if place < first_available {
            // Of a message that isn't kept any more nothing is shown.
            deleted.insert(id);
            continue;
        }
        deleted.extend(
            log.messages(room.id(), &room.fences, place, place)
                .await?
                .iter()
                .filter_map(|stored| deleted_id(stored, head)),
        );
    }
    let events = events
        .into_iter()
        .map(|event| match event.body {
            EventBody::Message { id, .. } | EventBody::Edited { id, .. }
                if deleted.contains(&id) =>
            {
                event.redacted()
            }
            _ => event,
        })
        .collect();
    Ok(EventPage {
        events,
        head,
        first_available,
    })
}

fn deleted_id(stored: &StoredMessage, head: Sequence) -> Option<MessageId> {
    stored
        .clone()
        .up_to(head)
        .fold()
        .filter(|message| message.deleted_at.is_some())
        .map(|message| message.id)
}

/// A log with a hole would break every promise: better no answer than a wrong one.
fn check_dense(events: &[RoomEvent], from: Sequence, to: Sequence) -> Result<()> {
    let dense = events
        .iter()
        .zip(from.0..)
        .all(|(event, place)| event.sequence.0 == place);
    if dense && events.len() as u64 == to.0 - from.0 + 1 {
        return Ok(());
    }
    Err(Error::defect(format!(
        "the log has a hole between {from} and {to}"
    )))
}
