//! [`Archive`]: what there is, and rows put back as they were.
//!
//! A load is not an append: it takes events as they come, with places of changes whose messages retention removed, and it needs no
//! epoch, since nobody else has the store open.

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use carillon_domain::{
    Error, ErrorCode, MediaId, Result, RoomId, Sequence, UserId,
    event::{EventBody, RoomEvent},
    ports::{Archive, Bounds, Floor, OpenRoom, ReadMark, Receipt},
    room::{Room, Standing},
};
use uuid::Uuid;

use super::{
    accounts::ACCOUNT,
    at_most,
    codec::{
        self, MarkedBy, event_key, json, numbers, pair, read_floor, read_member, read_read_mark,
        tagged,
    },
    engine::{Durability, Engine, Transaction, failed},
    room_log::{self, Head},
    rooms,
    tables::{Table, Tables},
};

/// In [`Table::Meta`] while a backup is being loaded: its name.
const LOADING: &[u8] = b"loading";
/// In [`Table::Meta`] once one was: its name.
const LOADED: &[u8] = b"loaded";

/// The whole store.
pub(super) struct Whole(pub(super) Arc<Engine>);

/// Refuses a store that holds a part of a backup.
pub(super) fn check_loaded(tables: &Tables, directory: &Path) -> Result<()> {
    let meta = tables.keyspace(Table::Meta);
    let Some(backup) = meta.get(LOADING).map_err(failed)? else {
        return Ok(());
    };
    Err(Error::new(
        ErrorCode::FailedPrecondition,
        format!(
            "the data directory {} holds a part of backup {}: a restore began and didn't end; run carillon restore again",
            directory.display(),
            String::from_utf8_lossy(&backup)
        ),
    ))
}

impl Whole {
    /// Whether it holds nothing that somebody wrote.
    fn is_empty(&self) -> Result<bool> {
        let view = self.0.view();
        for table in [
            Table::Accounts,
            Table::Rooms,
            Table::Events,
            Table::PushTargets,
            Table::Media,
            Table::People,
        ] {
            if let Some(row) = view.range(table, [], [u8::MAX; 17]).next() {
                row?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Ids at the end of keys with this tag, or that are the whole key.
    fn ids(
        &self,
        table: Table,
        tag: &[u8],
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<Uuid>> {
        at_most(limit, 1_000)?;
        let after = after.as_ref().map(|id| &id.as_bytes()[..]);
        let view = self.0.view();
        // No prefix: every key of the table, which are ids and so smaller than this.
        let rows: Box<dyn Iterator<Item = _>> = if tag.is_empty() {
            let from = after.map_or_else(Vec::new, |id| [id, &[0]].concat());
            Box::new(view.range(table, from, [u8::MAX; 17]))
        } else {
            Box::new(view.after(table, tag, after))
        };
        rows.take(limit)
            .map(|row| Uuid::from_slice(&row?.0[tag.len()..]).map_err(Error::internal))
            .collect()
    }
}

#[async_trait]
impl Archive for Whole {
    async fn users(&self, after: Option<UserId>, limit: usize) -> Result<Vec<UserId>> {
        let ids = self.ids(Table::Accounts, &[ACCOUNT], after.map(|id| id.0), limit)?;
        Ok(ids.into_iter().map(UserId).collect())
    }

    async fn rooms(&self, after: Option<RoomId>, limit: usize) -> Result<Vec<RoomId>> {
        let ids = self.ids(Table::Rooms, &[rooms::ROOM], after.map(|id| id.0), limit)?;
        Ok(ids.into_iter().map(RoomId).collect())
    }

    async fn media(&self, after: Option<MediaId>, limit: usize) -> Result<Vec<MediaId>> {
        let ids = self.ids(Table::Media, &[], after.map(|id| id.0), limit)?;
        Ok(ids.into_iter().map(MediaId).collect())
    }

    async fn peek(&self, room: RoomId) -> Result<OpenRoom> {
        room_log::end_of(&self.0.view(), room)
    }

    async fn begin_load(&self, backup: &str) -> Result<bool> {
        let backup = backup.as_bytes().to_vec();
        let is = |key| -> Result<bool> {
            let row = self.0.view().get(Table::Meta, key)?;
            Ok(row.is_some_and(|row| *row == *backup))
        };
        if is(LOADED)? {
            return Ok(false);
        }
        if is(LOADING)? {
            return Ok(true);
        }
        if !self.is_empty()? {
            return Err(Error::new(
                ErrorCode::FailedPrecondition,
                "the data directory isn't empty: a backup is only restored into a new one",
            ));
        }
        self.0
            .commit(Durability::Synced, move |transaction| {
                transaction.put(Table::Meta, LOADING, backup);
                Ok(true)
            })
            .await
    }

    async fn end_load(&self, backup: &str) -> Result<()> {
        let backup = backup.as_bytes().to_vec();
        self.0
            .commit(Durability::Synced, move |transaction| {
                transaction.remove(Table::Meta, LOADING);
                transaction.put(Table::Meta, LOADED, backup);
                Ok(())
            })
            .await
    }

    async fn load_room(&self, room: &Room, bounds: Bounds) -> Result<()> {
        let (id, row) = (room.id, json(room)?);
        let listed = room.kind.is_listed() && room.deleted_at.is_none();
        let retained = room.rules.retention_seconds.is_some() || bounds.floor.first > Sequence(1);
        let direct = room.pair.map(|[a, b]| pair(a.min(b).0, a.max(b).0));
        self.0
            .commit(Durability::Buffered, move |transaction| {
                let tag = |tag| tagged(tag, id.0.as_bytes());
                transaction.put(Table::Rooms, tag(rooms::ROOM), row);
                if listed {
                    transaction.put(Table::Rooms, tag(rooms::LISTED), *b"");
                }
                if retained {
                    transaction.put(Table::RoomIndex, tag(rooms::RETAINED), *b"");
                }
                if let Some(direct) = direct {
                    let key = tagged(rooms::DIRECT, &direct);
                    transaction.put(Table::Rooms, key, *id.0.as_bytes());
                }
                let before = before(bounds);
                let row = numbers([before.sequence.0, before.messages]);
                transaction.put(Table::Heads, *id.0.as_bytes(), row);
                raise_floor(transaction, id, bounds.floor)
            })
            .await
    }

    async fn load_standings(&self, room: RoomId, standings: &[(UserId, Standing)]) -> Result<()> {
        let standings = standings.to_vec();
        self.0
            .commit(Durability::Buffered, move |transaction| {
                for (user, standing) in standings {
                    if let Some(member) = standing.member {
                        let row = codec::member(&member);
                        transaction.put(Table::Members, pair(room.0, user.0), row);
                        transaction.put(Table::RoomsOfUser, pair(user.0, room.0), *b"");
                    }
                    let bound = standing.restrictions;
                    rooms::restrict(transaction, room, user, |now| {
                        now.banned |= bound.banned;
                        now.invited |= bound.invited;
                        now.muted_until = bound.muted_until.or(now.muted_until);
                    })?;
                }
                Ok(())
            })
            .await
    }

    async fn load_events(&self, room: RoomId, floor: Floor, events: &[RoomEvent]) -> Result<()> {
        at_most(events.len(), 1_000)?;
        let events = events
            .iter()
            .map(|event| Ok((event.clone(), codec::event(event)?)))
            .collect::<Result<Vec<_>>>()?;
        self.0
            .commit(Durability::Buffered, move |transaction| {
                raise_floor(transaction, room, floor)?;
                for (event, row) in events {
                    load_event(transaction, room, floor, &event, row)?;
                }
                Ok(())
            })
            .await
    }

    async fn load_marks(&self, user: UserId, marks: &[(RoomId, ReadMark)]) -> Result<()> {
        let marks = marks.to_vec();
        self.0
            .commit(Durability::Buffered, move |transaction| {
                for (room, mark) in marks {
                    rooms::raise_mark(transaction, user, room, mark, MarkedBy::Joining)?;
                }
                Ok(())
            })
            .await
    }

    async fn load_receipts(&self, room: RoomId, receipts: &[Receipt]) -> Result<()> {
        let receipts = receipts.to_vec();
        self.0
            .commit(Durability::Buffered, move |transaction| {
                for receipt in receipts {
                    load_receipt(transaction, room, receipt)?;
                }
                Ok(())
            })
            .await
    }
}

/// What is before the first event of a log that is loaded.
fn before(bounds: Bounds) -> Head {
    if bounds.head < bounds.floor.first {
        return Head {
            sequence: bounds.head,
            messages: bounds.messages,
        };
    }
    Head {
        sequence: Sequence(bounds.floor.first.0.saturating_sub(1)),
        messages: bounds.floor.messages,
    }
}

fn raise_floor(transaction: &mut Transaction<'_>, room: RoomId, floor: Floor) -> Result<()> {
    let row = transaction.get(Table::RoomIndex, room_log::floor_key(room))?;
    let (stands, purged) = read_floor(row.as_deref())?;
    if floor.first > stands.first {
        // Nothing was ever written before the first floor of a load.
        let purged = match row {
            Some(_) => purged,
            None => floor.first,
        };
        let row = codec::floor(floor, purged);
        transaction.put(Table::RoomIndex, room_log::floor_key(room), row);
    }
    Ok(())
}

fn load_event(
    transaction: &mut Transaction<'_>,
    room: RoomId,
    floor: Floor,
    event: &RoomEvent,
    row: Vec<u8>,
) -> Result<()> {
    let stored = transaction.get(Table::Heads, *room.0.as_bytes())?;
    let head = room_log::read_head(stored.as_deref())?;
    if event.room != room {
        return Err(Error::defect("an event of another room was loaded"));
    }
    let key = event_key(room, event.sequence, event.sequence);
    if event.sequence <= head.sequence {
        // Loaded before, or the last event of a room of which retention keeps nothing: only that it deleted the room matters.
        if event.body == EventBody::RoomDeleted {
            transaction.put(Table::Events, key, row);
            rooms::mark_deleted(transaction, room, event.time)?;
        }
        return Ok(());
    }
    if event.sequence != head.sequence.next() {
        return Err(Error::defect("the events of a loaded room have a gap"));
    }
    // What an event changes may be gone, and so is everything that is told of it.
    let target = event.target();
    let target_is_gone = target.is_some_and(|target| target < floor.first);
    if let EventBody::Joined { user, .. } = event.body
        && let Some(row) = transaction.get(Table::Members, pair(room.0, user.0))?
        && read_member(user, &row)?.joined_at == event.time
    {
        // Their membership was loaded before the event that made it: what was said before they came isn't unread.
        let mark = ReadMark {
            sequence: event.sequence,
            messages: event.messages_before,
            time: event.time,
        };
        rooms::raise_mark(transaction, user, room, mark, MarkedBy::Joining)?;
    }
    if !target_is_gone {
        room_log::project(transaction, event)?;
        if let Some(target) = target {
            let beside = event_key(room, target, event.sequence);
            transaction.put(Table::Events, beside, row.clone());
        }
    }
    transaction.put(Table::Events, key, row);
    let messages = event.messages_after();
    let head = numbers([event.sequence.0, messages]);
    transaction.put(Table::Heads, *room.0.as_bytes(), head);
    if let EventBody::Message { .. } = event.body {
        let mark = ReadMark {
            sequence: event.sequence,
            messages,
            time: event.time,
        };
        rooms::mark_written(transaction, event.actor, room, mark);
    }
    Ok(())
}

fn load_receipt(transaction: &mut Transaction<'_>, room: RoomId, receipt: Receipt) -> Result<()> {
    let user = receipt.user;
    // Who left since it was read has none.
    if transaction
        .get(Table::Members, pair(room.0, user.0))?
        .is_none()
    {
        return Ok(());
    }
    let key = rooms::read_mark_key(room, user);
    let stored = transaction.get(Table::Marks, key.as_slice())?;
    let stored = stored.map(|row| read_read_mark(&row)).transpose()?;
    if let (Some((mark, _)), Some(read)) = (stored, receipt.read)
        && mark.sequence == read.sequence
    {
        transaction.put(Table::Marks, key, codec::read_mark(mark, MarkedBy::Reading));
    }
    // One that is behind where they joined is of a membership before.
    let joined = stored.map_or(Sequence::ZERO, |(mark, _)| mark.sequence);
    if let Some(delivered) = receipt.delivered
        && delivered.sequence >= joined
        && receipt.read != Some(delivered)
    {
        let key = rooms::mark_key(room, user, rooms::DELIVERED);
        transaction.put(Table::Marks, key, codec::reached(delivered));
    }
    Ok(())
}
