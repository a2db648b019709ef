//! [`RoomLog`]: the events of all rooms, with everything that is derived from them in the same atomic batch.
//!
//! An event lies at (room, its sequence, its sequence). An edit or delete lies also at (room, the message's sequence, its own
//! sequence), so that one scan finds messages with their changes, at a cost that doesn't depend on the length of the room.
//!
//! One process owns everything, and the committer takes one request after the other: an epoch is a counter, an append after a
//! later acquire sees that it is over, and there is nothing to fence or to repair.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use carillon_domain::{
    ClientMessageId, Error, ErrorCode, MessageId, ReplicaId, Result, RoomId, Sequence, UserId,
    event::{EventBody, RoomEvent, StoredMessage},
    partition::Partition,
    ports::{Epoch, Fence, Floor, OpenRoom, ReadMark, RoomLog},
    room::Member,
};
use fjall::Slice;

use super::{
    at_most,
    codec::{
        self, MarkedBy, PLACE_BYTES, event_key, numbers, pair, place, read_event, read_floor,
        read_member, read_numbers, read_place, sent_key, slot_and_sequence, tagged,
    },
    engine::{Durability, Engine, Transaction, View},
    rooms,
    tables::Table,
};

/// Events or places per read.
const PAGE: u64 = 1_000;
/// Rooms in which one client message id of one sender may be found: more can't come of honest retries.
const CANDIDATES: usize = 64;

/// The logs of all rooms.
pub(super) struct Logs {
    pub(super) engine: Arc<Engine>,
    /// [`super::format::has_sent_ranges`].
    pub(super) has_sent_ranges: bool,
}

/// An event, ready to be written.
struct Encoded {
    event: RoomEvent,
    row: Slice,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Head {
    pub(super) sequence: Sequence,
    pub(super) messages: u64,
}

#[async_trait]
impl RoomLog for Logs {
    async fn acquire(&self, partition: Partition, _owner: &ReplicaId) -> Result<Epoch> {
        self.engine
            .commit(Durability::Synced, move |transaction| {
                let row = transaction.get(Table::Meta, epoch_key(partition))?;
                let epoch = read_epoch(row.as_deref())?.0 + 1;
                transaction.put(Table::Meta, epoch_key(partition), epoch.to_be_bytes());
                Ok(Epoch(epoch))
            })
            .await
    }

    async fn open(&self, room: RoomId, epoch: Epoch) -> Result<OpenRoom> {
        let view = self.engine.view();
        let row = view.get(Table::Meta, epoch_key(Partition::of_room(room)))?;
        if read_epoch(row.as_deref())? != epoch {
            return Err(superseded());
        }
        end_of(&view, room)
    }

    async fn check(&self, partition: Partition, epoch: Epoch) -> Result<()> {
        let row = self.engine.view().get(Table::Meta, epoch_key(partition))?;
        if read_epoch(row.as_deref())? != epoch {
            return Err(superseded());
        }
        Ok(())
    }

    async fn append(&self, partition: Partition, epoch: Epoch, events: &[RoomEvent]) -> Result<()> {
        // Encoded here, so that the committer has less to do.
        let events = events
            .iter()
            .map(|event| {
                if Partition::of_room(event.room) != partition {
                    return Err(Error::defect("an event of another partition was appended"));
                }
                Ok(Encoded {
                    event: event.clone(),
                    row: codec::event(event)?.into(),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        self.engine
            .commit(Durability::Synced, move |transaction| {
                let row = transaction.get(Table::Meta, epoch_key(partition))?;
                if read_epoch(row.as_deref())? != epoch {
                    return Err(superseded());
                }
                append(transaction, events)
            })
            .await
    }

    async fn raise_floor(&self, room: RoomId, floor: Floor) -> Result<()> {
        self.engine
            .commit(Durability::Synced, move |transaction| {
                let row = transaction.get(Table::RoomIndex, floor_key(room))?;
                let (stands, purged) = read_floor(row.as_deref())?;
                if floor.first > stands.first {
                    let row = codec::floor(floor, purged);
                    transaction.put(Table::RoomIndex, floor_key(room), row);
                }
                Ok(())
            })
            .await
    }

    async fn purge(&self, room: RoomId, _fences: &[Fence], below: Sequence) -> Result<bool> {
        let row = self.engine.view().get(Table::RoomIndex, floor_key(room))?;
        let (floor, from) = read_floor(row.as_deref())?;
        let end = floor.first.min(below);
        let to = end.min(Sequence(from.0.saturating_add(PAGE)));
        if from >= to {
            return Ok(false);
        }
        let (keys, sent) = self
            .engine
            .read(PAGE as usize, move |view| purged_rows(view, room, from, to))
            .await?;
        self.engine
            .commit(Durability::Synced, move |transaction| {
                for (table, key) in keys {
                    transaction.remove(table, key);
                }
                for (key, place) in sent {
                    forget_sent(transaction, key, place)?;
                }
                let row = transaction.get(Table::RoomIndex, floor_key(room))?;
                let (floor, _) = read_floor(row.as_deref())?;
                let row = codec::floor(floor, to);
                transaction.put(Table::RoomIndex, floor_key(room), row);
                Ok(())
            })
            .await?;
        Ok(to < end)
    }

    async fn events(
        &self,
        room: RoomId,
        _fences: &[Fence],
        from: Sequence,
        to: Sequence,
    ) -> Result<Vec<RoomEvent>> {
        let Some(places) = places(from, to)? else {
            return Ok(Vec::new());
        };
        self.engine
            .read(places, move |view| {
                let mut events: Vec<RoomEvent> = Vec::with_capacity(places);
                for row in view.range(
                    Table::Events,
                    event_key(room, from, Sequence::ZERO),
                    event_key(room, to.next(), Sequence::ZERO),
                ) {
                    let (key, row) = row?;
                    let (slot, sequence) = slot_and_sequence(&key)?;
                    if slot != sequence {
                        continue;
                    }
                    if sequence.0 != from.0 + events.len() as u64 {
                        return Err(Error::defect("a room's log has a gap"));
                    }
                    events.push(read_event(room, sequence, &row)?);
                }
                Ok(events)
            })
            .await
    }

    async fn messages(
        &self,
        room: RoomId,
        _fences: &[Fence],
        from: Sequence,
        to: Sequence,
    ) -> Result<Vec<StoredMessage>> {
        let Some(places) = places(from, to)? else {
            return Ok(Vec::new());
        };
        self.engine
            .read(places, move |view| {
                let mut messages: Vec<StoredMessage> = Vec::new();
                for row in view.range(
                    Table::Events,
                    event_key(room, from, Sequence::ZERO),
                    event_key(room, to.next(), Sequence::ZERO),
                ) {
                    let (key, row) = row?;
                    let (slot, sequence) = slot_and_sequence(&key)?;
                    let event = read_event(room, sequence, &row)?;
                    if slot != sequence {
                        let message = messages
                            .last_mut()
                            .filter(|message| message.sent.sequence == slot)
                            .ok_or_else(|| Error::defect("a change has no message"))?;
                        message.changes.push(event);
                    } else if matches!(event.body, EventBody::Message { .. }) {
                        messages.push(StoredMessage {
                            sent: event,
                            changes: Vec::new(),
                        });
                    }
                }
                Ok(messages)
            })
            .await
    }

    async fn find_sent(
        &self,
        sender: UserId,
        id: &ClientMessageId,
    ) -> Result<Vec<(RoomId, Sequence)>> {
        if id.0.len() > ClientMessageId::MAX_LEN {
            return Ok(Vec::new());
        }
        let key = sent_key(sender, id);
        let view = self.engine.view();
        // One row, so that the filters of the files are asked, which a range would have to open: most ids are new.
        let mut found = match view.get(Table::Sent, &key)? {
            Some(row) => row
                .chunks(PLACE_BYTES)
                .map(read_place)
                .collect::<Result<Vec<_>>>()?,
            None => Vec::new(),
        };
        if self.has_sent_ranges {
            let rows = view.after(Table::Sent, &key, Some(&[]));
            for row in rows.take(CANDIDATES - found.len().min(CANDIDATES)) {
                found.push(read_place(row?.0.get(key.len()..).unwrap_or_default())?);
            }
        }
        Ok(found)
    }

    async fn find_message(&self, id: MessageId) -> Result<Option<(RoomId, Sequence)>> {
        self.engine
            .view()
            .get(Table::Messages, id.0.as_bytes())?
            .map(|row| read_place(&row))
            .transpose()
    }
}

/// A room's log as it is now.
pub(super) fn end_of(view: &View<'_>, room: RoomId) -> Result<OpenRoom> {
    let head = read_head(view.get(Table::Heads, room.0.as_bytes())?.as_deref())?;
    let last = view.get(Table::Events, event_key(room, head.sequence, head.sequence))?;
    let deleted = match last {
        Some(row) => matches!(
            read_event(room, head.sequence, &row)?.body,
            EventBody::RoomDeleted
        ),
        None => false,
    };
    Ok(OpenRoom {
        room,
        head: head.sequence,
        messages: head.messages,
        deleted,
        floor: read_floor(view.get(Table::RoomIndex, floor_key(room))?.as_deref())?.0,
        fences: Vec::new(),
    })
}

/// Rows that go as a whole, and keys of sends with the place that they lose.
type Purged = (Vec<(Table, Slice)>, Vec<(Vec<u8>, [u8; PLACE_BYTES])>);

/// Every row of what lies at `from..to`. The event that deleted its room says so for ever.
fn purged_rows(view: &View<'_>, room: RoomId, from: Sequence, to: Sequence) -> Result<Purged> {
    let mut keys: Vec<(Table, Slice)> = Vec::new();
    let mut all_sent = Vec::new();
    for row in view.range(
        Table::Events,
        event_key(room, from, Sequence::ZERO),
        event_key(room, to, Sequence::ZERO),
    ) {
        let (key, row) = row?;
        let (slot, sequence) = slot_and_sequence(&key)?;
        let event = read_event(room, sequence, &row)?;
        match &event.body {
            EventBody::RoomDeleted => continue,
            EventBody::Message {
                id,
                draft,
                mentions,
            } => {
                let sent = sent_key(event.actor, &draft.client_message_id);
                all_sent.push((sent, place(room, sequence)));
                keys.push((Table::Messages, id.0.as_bytes().into()));
                keys.push((Table::RoomIndex, rooms::deleted_key(room, sequence).into()));
                let mentions = rooms::mention_keys(room, sequence, mentions);
                keys.extend(mentions.map(|key| (Table::RoomIndex, key.into())));
            }
            _ => {}
        }
        // An edit that lies beside its message lies at its own place too, and goes from there in its turn.
        debug_assert!(slot <= sequence);
        keys.push((Table::Events, key));
    }
    Ok((keys, all_sent))
}

/// Takes one place from those of a sender's id; the row goes with the last of them.
fn forget_sent(
    transaction: &mut Transaction<'_>,
    key: Vec<u8>,
    place: [u8; PLACE_BYTES],
) -> Result<()> {
    // As older formats wrote it.
    let of_its_own = [key.as_slice(), &place].concat();
    if transaction
        .get(Table::Sent, of_its_own.as_slice())?
        .is_some()
    {
        transaction.remove(Table::Sent, of_its_own);
    }
    let Some(row) = transaction.get(Table::Sent, key.as_slice())? else {
        return Ok(());
    };
    let others: Vec<u8> = row
        .chunks(PLACE_BYTES)
        .filter(|other| **other != place)
        .flatten()
        .copied()
        .collect();
    if others.is_empty() {
        transaction.remove(Table::Sent, key);
    } else if others.len() < row.len() {
        transaction.put(Table::Sent, key, others);
    }
    Ok(())
}

/// How many places `from..=to` has; `None` if none.
fn places(from: Sequence, to: Sequence) -> Result<Option<usize>> {
    if from == Sequence::ZERO {
        return Err(Error::defect("events before the first were asked for"));
    }
    if to < from {
        return Ok(None);
    }
    let places = usize::try_from(to.0 - from.0)
        .unwrap_or(usize::MAX)
        .saturating_add(1);
    at_most(places, PAGE as usize)?;
    Ok(Some(places))
}

fn append(transaction: &mut Transaction<'_>, events: Vec<Encoded>) -> Result<()> {
    let mut heads: HashMap<RoomId, Head> = HashMap::new();
    let mut wrote: HashMap<(RoomId, UserId), ReadMark> = HashMap::new();
    for Encoded { event, row } in events {
        let head = match heads.get(&event.room) {
            Some(head) => *head,
            None => {
                let row = transaction.get(Table::Heads, *event.room.0.as_bytes())?;
                read_head(row.as_deref())?
            }
        };
        // The contract that every adapter's callers keep; here it is checked.
        if event.sequence != head.sequence.next() {
            return Err(Error::defect(format!(
                "event {} of room {} was appended after {}",
                event.sequence, event.room, head.sequence
            )));
        }
        if event.messages_before != head.messages {
            return Err(Error::defect(format!(
                "event {} of room {} counts {} messages before it instead of {}",
                event.sequence, event.room, event.messages_before, head.messages
            )));
        }
        check_body(transaction, &event)?;
        heads.insert(
            event.room,
            Head {
                sequence: event.sequence,
                messages: event.messages_after(),
            },
        );
        project(transaction, &event)?;
        if let EventBody::Message { .. } = event.body {
            let mark = ReadMark {
                sequence: event.sequence,
                messages: event.messages_after(),
                time: event.time,
            };
            wrote.insert((event.room, event.actor), mark);
        }
        if let Some(target) = event.target() {
            let key = event_key(event.room, target, event.sequence);
            transaction.put(Table::Events, key, row.clone());
        }
        let key = event_key(event.room, event.sequence, event.sequence);
        transaction.put(Table::Events, key, row);
    }
    for (room, head) in heads {
        let row = numbers([head.sequence.0, head.messages]);
        transaction.put(Table::Heads, *room.0.as_bytes(), row);
    }
    for ((room, user), mark) in wrote {
        rooms::mark_written(transaction, user, room, mark);
    }
    Ok(())
}

/// What an event refers to must be there.
fn check_body(transaction: &Transaction<'_>, event: &RoomEvent) -> Result<()> {
    if let EventBody::Message { draft, .. } = &event.body
        && draft.client_message_id.0.len() > ClientMessageId::MAX_LEN
    {
        return Err(Error::defect("a client message id is too long"));
    }
    let Some(target) = event.target() else {
        return Ok(());
    };
    let row = transaction.get(Table::Events, event_key(event.room, target, target))?;
    let row = row.ok_or_else(|| Error::defect("an event changes one that isn't there"))?;
    match read_event(event.room, target, &row)?.body {
        EventBody::Message { .. } => Ok(()),
        _ => Err(Error::defect("an event changes one that is no message")),
    }
}

/// Writes what is derived from an event.
pub(super) fn project(transaction: &mut Transaction<'_>, event: &RoomEvent) -> Result<()> {
    let place = place(event.room, event.sequence);
    match &event.body {
        EventBody::Message {
            id,
            draft,
            mentions,
        } => {
            rooms::index_mentions(transaction, event.room, event.sequence, mentions);
            let key = sent_key(event.actor, &draft.client_message_id);
            let row = transaction.get(Table::Sent, key.as_slice())?;
            let mut places = row.map_or_else(Vec::new, |row| row.to_vec());
            if places.len() < CANDIDATES * PLACE_BYTES {
                places.extend_from_slice(&place);
                transaction.put(Table::Sent, key, places);
            }
            transaction.put(Table::Messages, *id.0.as_bytes(), place);
        }
        EventBody::Joined { user, role } => {
            let key = pair(event.room.0, user.0);
            let before = transaction.get(Table::Members, key)?;
            // A change of the role doesn't change when they joined.
            let joined_at = match before {
                Some(row) => read_member(*user, &row)?.joined_at,
                None => {
                    // What was said before they came isn't unread.
                    let mark = ReadMark {
                        sequence: event.sequence,
                        messages: event.messages_before,
                        time: event.time,
                    };
                    rooms::raise_mark(transaction, *user, event.room, mark, MarkedBy::Joining)?;
                    event.time
                }
            };
            let member = Member {
                user: *user,
                role: *role,
                since: event.sequence,
                joined_at,
            };
            transaction.put(Table::Members, key, codec::member(&member));
            transaction.put(Table::RoomsOfUser, pair(user.0, event.room.0), *b"");
            rooms::restrict(transaction, event.room, *user, |now| now.invited = false)?;
        }
        EventBody::Left { user, .. } => {
            remove_member(transaction, event.room, *user)?;
            rooms::restrict(transaction, event.room, *user, |now| now.invited = false)?;
        }
        EventBody::Banned { user } => {
            remove_member(transaction, event.room, *user)?;
            rooms::restrict(transaction, event.room, *user, |now| {
                now.invited = false;
                now.banned = true;
            })?;
        }
        EventBody::Unbanned { user } => {
            rooms::restrict(transaction, event.room, *user, |now| now.banned = false)?;
        }
        EventBody::Invited { user } => {
            rooms::restrict(transaction, event.room, *user, |now| now.invited = true)?;
        }
        EventBody::Muted { user, until } => {
            rooms::restrict(transaction, event.room, *user, |now| {
                now.muted_until = Some(*until);
            })?;
        }
        EventBody::Unmuted { user } => {
            rooms::restrict(transaction, event.room, *user, |now| now.muted_until = None)?;
        }
        EventBody::Changed {
            name,
            description,
            rules,
        } => rooms::change(transaction, event.room, name, description, *rules)?,
        EventBody::RoomDeleted => rooms::mark_deleted(transaction, event.room, event.time)?,
        EventBody::Deleted { target, .. } => {
            let key = rooms::deleted_key(event.room, *target);
            transaction.put(Table::RoomIndex, key, *b"");
        }
        EventBody::Edited { .. } => {}
    }
    Ok(())
}

fn remove_member(transaction: &mut Transaction<'_>, room: RoomId, user: UserId) -> Result<()> {
    transaction.remove(Table::Members, pair(room.0, user.0));
    transaction.remove(Table::RoomsOfUser, pair(user.0, room.0));
    rooms::drop_receipt(transaction, user, room)
}

pub(super) fn floor_key(room: RoomId) -> Vec<u8> {
    tagged(b'f', room.0.as_bytes())
}

fn epoch_key(partition: Partition) -> [u8; 3] {
    let [high, low] = partition.0.to_be_bytes();
    [b'e', high, low]
}

fn read_epoch(row: Option<&[u8]>) -> Result<Epoch> {
    row.map_or(Ok(Epoch(0)), |row| {
        read_numbers(row).map(|[epoch]| Epoch(epoch))
    })
}

pub(super) fn read_head(row: Option<&[u8]>) -> Result<Head> {
    row.map_or(Ok(Head::default()), |row| {
        read_numbers(row).map(|[sequence, messages]| Head {
            sequence: Sequence(sequence),
            messages,
        })
    })
}

fn superseded() -> Error {
    Error::new(
        ErrorCode::NotOwner,
        "the partition has a later owner, try again",
    )
}
