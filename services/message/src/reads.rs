//! Reading an open room: history pages and catch-up, never past the last event that its owner knows committed.

use std::collections::{HashMap, HashSet};

use carillon_domain::{
    Error, MessageId, Result, Sequence,
    event::{EventBody, Message, RoomEvent, StoredMessage},
    ports::RoomLog,
    services::{EventPage, HistoryQuery},
};

use crate::state::OpenedRoom;

/// Places that one read of the log covers.
const CHUNK: u64 = 200;

/// Messages of a page, ascending (MSG-07).
pub async fn history(
    log: &dyn RoomLog,
    room: &OpenedRoom,
    query: HistoryQuery,
) -> Result<Vec<Message>> {
    let head = room.now.lock().head;
    let first = query.after.map_or(Sequence(1), Sequence::next);
    let last = query.before.map_or(head, |before| {
        Sequence(before.0.saturating_sub(1)).min(head)
    });
    let upwards = query.after.is_some() && query.before.is_none();
    let mut pages: Vec<Vec<StoredMessage>> = Vec::new();
    let (mut low, mut high) = (first.0, last.0);
    let mut found = 0;
    // Most places of a log hold messages, so the first read nearly always suffices; other events make it go on.
    let mut span = (query.limit as u64 + 8).min(CHUNK);
    while found < query.limit && low <= high {
        let (from, to) = if upwards {
            (low, high.min(low + span - 1))
        } else {
            (low.max((high + 1).saturating_sub(span)), high)
        };
        let page = log
            .messages(room.id(), &room.fences, Sequence(from), Sequence(to))
            .await?;
        found += page.len();
        pages.push(page);
        if upwards {
            low = to + 1;
        } else {
            high = from - 1;
        }
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
