//! Reading an open room: history pages and catch-up, never past the last event that its owner knows committed.

use std::collections::{HashMap, HashSet};

use carillon_domain::{
    Error, MessageId, Result, Sequence, UserId,
    event::{EventBody, Message, RoomEvent, StoredMessage},
    ports::{ReadMark, RoomLog},
    services::{EventPage, HistoryQuery, RoomOverview},
};

use crate::state::OpenedRoom;

/// Places that one read of the log covers.
const CHUNK: u64 = 200;
/// Events that are read at once in search of a message.
const PROBES: u64 = 16;

/// Messages of a page, ascending (MSG-07).
pub async fn history(
    log: &dyn RoomLog,
    room: &OpenedRoom,
    query: HistoryQuery,
) -> Result<Vec<Message>> {
    let (head, total) = {
        let now = room.now.lock();
        (now.head, now.messages)
    };
    let first = query.after.map_or(Sequence(1), Sequence::next);
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
            if before == 0 || from == low {
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

/// The first place in `low..=high` up to which the room has `n` messages; `high` if there is none before it. Reads a number of
/// events that grows with the logarithm of the distance.
async fn nth_message(
    log: &dyn RoomLog,
    room: &OpenedRoom,
    n: u64,
    low: Sequence,
    high: Sequence,
) -> Result<Sequence> {
    let (mut low, mut high) = (low.0, high.0);
    while low < high {
        let step = (high - low).div_ceil(PROBES);
        let places = (low..high).step_by(usize::try_from(step).unwrap_or(usize::MAX));
        let probes = places.map(|place| event_at(log, room, Sequence(place)));
        for event in futures::future::try_join_all(probes).await? {
            if event.messages_after() >= n {
                high = event.sequence.0;
                break;
            }
            low = event.sequence.0 + 1;
        }
    }
    Ok(Sequence(high))
}

/// Messages of others that a reader hasn't read and that weren't deleted: see [`RoomOverview::unread`].
pub async fn unread(
    log: &dyn RoomLog,
    room: &OpenedRoom,
    reader: UserId,
    mark: ReadMark,
) -> Result<u64> {
    let (head, messages, until) = {
        let now = room.now.lock();
        if let Some(unread) = now.unread(reader, mark.sequence) {
            return Ok(unread);
        }
        (now.head, now.messages, now.recent_from())
    };
    let difference = messages.saturating_sub(mark.messages);
    if difference == 0 || head.0.saturating_sub(mark.sequence.0) > RoomOverview::EXACT {
        return Ok(difference);
    }
    let from = mark.sequence.next();
    let mut found = Vec::new();
    let mut low = from;
    while low < until {
        let to = Sequence((low.0 + CHUNK).min(until.0) - 1);
        let page = log.messages(room.id(), &room.fences, low, to).await?;
        let messages = page
            .into_iter()
            .filter_map(|stored| stored.up_to(head).fold())
            .filter(|message| message.deleted_at.is_none());
        found.extend(messages.map(|message| (message.sequence, message.sender)));
        low = to.next();
    }
    let mut now = room.now.lock();
    now.learn_recent(head, from, until, &found);
    if let Some(unread) = now.unread(reader, mark.sequence) {
        return Ok(unread);
    }
    // The room went on meanwhile: the answer is as of then, and the next one will be remembered.
    let older = found.iter().filter(|(_, sender)| *sender != reader).count() as u64;
    let newer = if until > head {
        Some(0)
    } else {
        now.unread(reader, Sequence(until.0 - 1))
    };
    Ok(newer.map_or(difference, |newer| older + newer))
}

/// Events after a place (promise 4), without content that was deleted since.
pub async fn events(
    log: &dyn RoomLog,
    room: &OpenedRoom,
    after: Sequence,
    limit: usize,
) -> Result<EventPage> {
    let head = room.now.lock().head;
    let first_available = Sequence(1);
    let from = after.next();
    let to = Sequence(after.0.saturating_add(limit as u64)).min(head);
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
    for place in earlier.into_keys() {
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
