//! Whether what people were told fits what the rooms hold.
//!
//! A room is an append-only log that gives out its own order, so no search over interleavings is needed, as a general checker of
//! linearizability would do it: each answer names its place, and what remains is to compare places and times.

use std::{
    collections::{BTreeMap, HashMap},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use reqwest::Method;
use serde_json::Value;

use super::crowd::{Device, History, Looked, Now, Sent};
use crate::world::client::Person;

/// A room's whole log, read by catch-up from its beginning.
pub async fn read_log(person: &Person, base: &str, room: &str) -> Result<BTreeMap<u64, Value>> {
    let mut log = BTreeMap::new();
    loop {
        let after = log.keys().next_back().copied().unwrap_or(0);
        let path = format!("/rooms/{room}/events?after={after}&limit=500");
        let page = person.ask(base, Method::GET, &path, None).await?;
        let items = page["items"].as_array().context("items")?;
        if items.is_empty() {
            break;
        }
        for item in items {
            let place = item["payload"]["sequence"].as_u64().context("sequence")?;
            ensure!(
                log.insert(place, item.clone()).is_none(),
                "place {place} came twice in catch-up"
            );
        }
    }
    ensure!(
        log.keys().copied().eq(1..=log.len() as u64),
        "the places of a room are not dense"
    );
    Ok(log)
}

/// Checks everything; the first thing that doesn't fit is the error.
pub async fn check(
    base: &str,
    rooms: &[String],
    logs: &[BTreeMap<u64, Value>],
    devices: &[Device],
    history: &History,
) -> Result<()> {
    let ids: BTreeMap<usize, &str> = devices
        .iter()
        .map(|device| (device.person, device.me.id.as_str()))
        .collect();
    acknowledged_once(logs, &ids, &history.sent)?;
    for (n, room) in rooms.iter().enumerate() {
        let sent = history.sent.iter().filter(|sent| sent.room == n);
        let looked = history.looked.iter().filter(|looked| looked.room == n);
        reads_never_go_back(sent, looked)?;
        let state = fold(&logs[n]);
        let reader = &devices.first().context("devices")?.me;
        same_as_history(&state, &reader.history(base, room).await?)?;
        for device in devices {
            let seen = device.me.seen.get(room).context("seen")?;
            saw_the_log(seen, &logs[n])
                .and_then(|()| {
                    ensure!(fold(seen) == state, "another state than the log's");
                    Ok(())
                })
                .with_context(|| format!("device {}/{}", device.person, device.index))?;
        }
    }
    changes_hold(logs, &history.changed)?;
    marks_grow(history)?;
    for device in devices {
        counts_are_right(base, rooms, logs, device).await?;
    }
    Ok(())
}

fn payload<'a>(event: &'a Value, field: &str) -> &'a str {
    event["payload"][field].as_str().unwrap_or_default()
}

/// Promises 1 and 3: every acknowledged send is there, once, at its place; and nothing that nobody sent.
fn acknowledged_once(
    logs: &[BTreeMap<u64, Value>],
    ids: &BTreeMap<usize, &str>,
    sent: &[Sent],
) -> Result<()> {
    let mut places: HashMap<(&str, &str), Vec<(usize, u64)>> = HashMap::new();
    for (room, log) in logs.iter().enumerate() {
        for (place, event) in log
            .iter()
            .filter(|(_, event)| event["type"] == "new_message")
        {
            let key = (
                payload(event, "sender_id"),
                payload(event, "client_message_id"),
            );
            places.entry(key).or_default().push((room, *place));
        }
    }
    for ((sender, id), found) in &places {
        ensure!(
            found.len() == 1,
            "message {id} of {sender} is there {} times: {found:?}",
            found.len()
        );
        ensure!(
            ids.values().any(|known| known == sender),
            "nobody is {sender}"
        );
    }
    for one in sent {
        let key = (ids[&one.person], one.client_message_id.as_str());
        let found = places
            .get(&key)
            .with_context(|| format!("lost: {}", one.client_message_id))?;
        ensure!(
            found.as_slice() == [(one.room, one.sequence)],
            "{} was acknowledged at {}, and is at {found:?}",
            one.client_message_id,
            one.sequence
        );
        let stored = payload(&logs[one.room][&one.sequence], "content");
        ensure!(
            stored == one.content || stored.is_empty(),
            "{} holds another content",
            one.client_message_id
        );
    }
    Ok(())
}

/// A page that was asked for after a send was acknowledged, or after another page was there, is not older than either.
fn reads_never_go_back<'a>(
    sent: impl Iterator<Item = &'a Sent>,
    looked: impl Iterator<Item = &'a Looked>,
) -> Result<()> {
    let mut known: Vec<(Instant, u64)> = sent.map(|sent| (sent.answered, sent.sequence)).collect();
    let looked: Vec<&Looked> = looked.collect();
    known.extend(looked.iter().map(|looked| (looked.ended, looked.newest)));
    known.sort();
    let mut largest = 0;
    for known in &mut known {
        largest = largest.max(known.1);
        known.1 = largest;
    }
    for look in looked {
        let before = known.partition_point(|(time, _)| *time < look.started);
        let floor = before.checked_sub(1).map_or(0, |at| known[at].1);
        ensure!(
            look.newest >= floor,
            "a page ended at {}, after {floor} was known",
            look.newest
        );
    }
    Ok(())
}

/// Messages by id: content and place, `None` for a deleted one.
type State = BTreeMap<String, (u64, Option<String>)>;

/// Promise 5: what a client makes of the events.
fn fold(events: &BTreeMap<u64, Value>) -> State {
    let mut state = State::new();
    for (place, event) in events {
        match event["type"].as_str().unwrap_or_default() {
            "new_message" => {
                let content = payload(event, "content").to_owned();
                state.insert(payload(event, "id").to_owned(), (*place, Some(content)));
            }
            "edit_message" => {
                if let Some(message) = state.get_mut(payload(event, "message_id"))
                    && message.1.is_some()
                {
                    message.1 = Some(payload(event, "content").to_owned());
                }
            }
            "delete_message" => {
                if let Some(message) = state.get_mut(payload(event, "message_id")) {
                    message.1 = None;
                }
            }
            _ => {}
        }
    }
    state
}

fn same_as_history(state: &State, history: &[Value]) -> Result<()> {
    ensure!(
        history.len() == state.len(),
        "the history has {} messages, the log {}",
        history.len(),
        state.len()
    );
    for message in history {
        let id = message["id"].as_str().context("id")?;
        let (place, content) = state
            .get(id)
            .with_context(|| format!("{id} has no event"))?;
        ensure!(message["sequence"] == *place, "{message} is at {place}");
        match content {
            Some(content) => ensure!(message["content"] == **content, "{message}, not {content}"),
            None => ensure!(!message["deleted_at"].is_null(), "{message} was deleted"),
        }
    }
    Ok(())
}

/// Promises 2 and 4: a device saw every event, and none other.
fn saw_the_log(seen: &BTreeMap<u64, Value>, log: &BTreeMap<u64, Value>) -> Result<()> {
    ensure!(
        seen.keys().copied().eq(1..=seen.len() as u64),
        "a gap in what was seen"
    );
    for (place, event) in seen {
        // What came after the log was read is not compared.
        let Some(stored) = log.get(place) else { break };
        let same = [
            "id",
            "message_id",
            "user_id",
            "sender_id",
            "client_message_id",
        ]
        .iter()
        .all(|field| event["payload"][field] == stored["payload"][field]);
        let (one, other) = (payload(event, "content"), payload(stored, "content"));
        ensure!(
            event["type"] == stored["type"]
                && same
                && (one == other || one.is_empty() || other.is_empty()),
            "place {place} was seen as {event}, and is {stored}"
        );
    }
    Ok(())
}

fn changes_hold(logs: &[BTreeMap<u64, Value>], changed: &BTreeMap<String, Now>) -> Result<()> {
    let mut state = State::new();
    logs.iter().for_each(|log| state.extend(fold(log)));
    for (id, now) in changed {
        let (_, content) = state.get(id).with_context(|| format!("{id} is gone"))?;
        let holds = match now {
            Now::Deleted => content.is_none(),
            Now::Content(expected) => content.as_ref() == Some(expected),
        };
        ensure!(holds, "{id} should be {now:?}, and is {content:?}");
    }
    Ok(())
}

/// Marks are monotonic per person: what is read is at least what was set or read before.
fn marks_grow(history: &History) -> Result<()> {
    let mut by_place: HashMap<(usize, usize), Vec<_>> = HashMap::new();
    for mark in &history.marked {
        by_place
            .entry((mark.person, mark.room))
            .or_default()
            .push(mark);
    }
    for ((person, room), mut marks) in by_place {
        marks.sort_by_key(|mark| mark.ended);
        for read in marks.iter().filter(|mark| mark.read) {
            let floor = marks
                .iter()
                .take_while(|mark| mark.ended < read.started)
                .map(|mark| mark.sequence)
                .max();
            ensure!(
                floor.is_none_or(|floor| read.sequence >= floor),
                "person {person}'s mark in room {room} went back from {floor:?} to {}",
                read.sequence
            );
        }
    }
    Ok(())
}

/// Promise 6: unread counts are the messages past the mark that are still there, the same on every device; who writes has read.
async fn counts_are_right(
    base: &str,
    rooms: &[String],
    logs: &[BTreeMap<u64, Value>],
    device: &Device,
) -> Result<()> {
    let list = device
        .me
        .ask(base, Method::GET, "/rooms/me?limit=100", None)
        .await?;
    for item in list["items"].as_array().context("items")? {
        let Some(n) = rooms.iter().position(|room| item["id"] == **room) else {
            continue;
        };
        let read = item["read_sequence"].as_u64().context("read_sequence")?;
        let state = fold(&logs[n]);
        let own = logs[n].range(read + 1..).find(|(_, event)| {
            event["type"] == "new_message" && payload(event, "sender_id") == device.me.id
        });
        ensure!(
            own.is_none(),
            "person {} has read up to {read}, and wrote {own:?}",
            device.person
        );
        let unread = logs[n]
            .range(read + 1..)
            .filter(|(_, event)| event["type"] == "new_message")
            .filter(|(_, event)| state[payload(event, "id")].1.is_some())
            .count();
        ensure!(
            item["unread_count"] == unread,
            "person {} has {unread} unread messages past {read}, and is told {}",
            device.person,
            item["unread_count"]
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use serde_json::json;

    fn log(contents: &[&str]) -> BTreeMap<u64, Value> {
        (1..)
            .zip(contents)
            .map(|(place, content)| {
                (place, json!({"type": "new_message", "payload": {"sequence": place, "id": format!("m{place}"),
                    "sender_id": "ann", "client_message_id": content, "content": content}}))
            })
            .collect()
    }

    fn sent(id: &str, sequence: u64, at: Instant) -> Sent {
        Sent {
            person: 0,
            room: 0,
            client_message_id: id.into(),
            content: id.into(),
            sequence,
            started: at,
            answered: at,
            retries: 0,
        }
    }

    #[test]
    fn a_lost_a_doubled_and_a_moved_message_are_found() {
        let ids = BTreeMap::from([(0, "ann")]);
        let now = Instant::now();
        let all = [sent("a", 1, now), sent("b", 2, now)];
        acknowledged_once(&[log(&["a", "b"])], &ids, &all).unwrap();
        for bad in [&["a"][..], &["a", "b", "b"], &["b", "a"]] {
            acknowledged_once(&[log(bad)], &ids, &all).unwrap_err();
        }
    }

    #[test]
    fn a_read_that_goes_back_is_found() {
        let now = Instant::now();
        let look = |started: u64, newest| Looked {
            room: 0,
            started: now + Duration::from_millis(started),
            ended: now + Duration::from_millis(started + 1),
            newest,
        };
        let all = [sent("a", 5, now)];
        reads_never_go_back(all.iter(), [look(1, 5), look(10, 7)].iter()).unwrap();
        reads_never_go_back(all.iter(), [look(1, 4)].iter()).unwrap_err();
        reads_never_go_back(all.iter(), [look(1, 7), look(10, 6)].iter()).unwrap_err();
    }

    #[test]
    fn a_gap_and_another_content_are_found() {
        let whole = log(&["a", "b", "c"]);
        saw_the_log(&whole, &whole).unwrap();
        let mut gap = whole.clone();
        gap.remove(&2);
        saw_the_log(&gap, &whole).unwrap_err();
        saw_the_log(&log(&["a", "x", "c"]), &whole).unwrap_err();
    }
}
