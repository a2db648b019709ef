//! [`RoomStore`]: rooms, the public list, direct pairs, read marks, and the projections that [`super::room_log`] keeps.

use std::sync::Arc;

use async_trait::async_trait;
use carillon_domain::{
    Error, Result, RoomId, Timestamp, UserId,
    ports::{ReadMark, RoomStore},
    room::{Member, Room},
};
use uuid::Uuid;

use super::{
    at_most,
    codec::{
        json, pair, read_json, read_mark, read_member, read_read_mark, second_of_pair, tagged,
    },
    engine::{Durability, Engine, Transaction, View},
    tables::Table,
};

const ROOM: u8 = b'r';
const LISTED: u8 = b'l';
const DIRECT: u8 = b'd';

/// Rooms.
pub(super) struct Rooms(pub(super) Arc<Engine>);

#[async_trait]
impl RoomStore for Rooms {
    async fn create(&self, room: &Room) -> Result<()> {
        let row = json(room)?;
        let key = tagged(ROOM, room.id.0.as_bytes());
        let listed = (room.kind.is_listed() && room.deleted_at.is_none())
            .then(|| tagged(LISTED, room.id.0.as_bytes()));
        self.0
            .commit(Durability::Synced, move |transaction| {
                if transaction.get(Table::Rooms, key.as_slice())?.is_some() {
                    return Ok(());
                }
                transaction.put(Table::Rooms, key, row);
                if let Some(listed) = listed {
                    transaction.put(Table::Rooms, listed, *b"");
                }
                Ok(())
            })
            .await
    }

    async fn get(&self, room: RoomId) -> Result<Option<Room>> {
        load(&self.0.view(), room)
    }

    async fn get_many(&self, rooms: &[RoomId]) -> Result<Vec<Room>> {
        at_most(rooms.len(), 1_000)?;
        let rooms = rooms.to_vec();
        self.0
            .read(rooms.len(), move |view| {
                rooms
                    .into_iter()
                    .filter_map(|room| load(view, room).transpose())
                    .collect()
            })
            .await
    }

    async fn list_public(&self, after: Option<RoomId>, limit: usize) -> Result<Vec<Room>> {
        at_most(limit, 100)?;
        let view = self.0.view();
        view.after(
            Table::Rooms,
            &[LISTED],
            after.as_ref().map(|room| &room.0.as_bytes()[..]),
        )
        .take(limit)
        .map(|row| {
            let id = Uuid::from_slice(&row?.0[1..]).map_err(Error::internal)?;
            load(&view, RoomId(id))?.ok_or_else(|| Error::defect("a listed room isn't there"))
        })
        .collect()
    }

    async fn direct_room(&self, a: UserId, b: UserId, candidate: RoomId) -> Result<RoomId> {
        let key = tagged(DIRECT, &pair(a.min(b).0, a.max(b).0));
        let read = |row: &[u8]| Uuid::from_slice(row).map(RoomId).map_err(Error::internal);
        if let Some(row) = self.0.view().get(Table::Rooms, &key)? {
            return read(&row);
        }
        self.0
            .commit(Durability::Synced, move |transaction| {
                if let Some(row) = transaction.get(Table::Rooms, key.as_slice())? {
                    return read(&row);
                }
                transaction.put(Table::Rooms, key, *candidate.0.as_bytes());
                Ok(candidate)
            })
            .await
    }

    async fn member(&self, room: RoomId, user: UserId) -> Result<Option<Member>> {
        self.0
            .view()
            .get(Table::Members, pair(room.0, user.0))?
            .map(|row| read_member(user, &row))
            .transpose()
    }

    async fn members(
        &self,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Member>> {
        at_most(limit, 1_000)?;
        self.0
            .read(limit, move |view| {
                let after = after.as_ref().map(|user| &user.0.as_bytes()[..]);
                view.after(Table::Members, room.0.as_bytes(), after)
                    .take(limit)
                    .map(|row| {
                        let (key, row) = row?;
                        read_member(UserId(second_of_pair(&key)?), &row)
                    })
                    .collect()
            })
            .await
    }

    async fn rooms_of(
        &self,
        user: UserId,
        after: Option<RoomId>,
        limit: usize,
    ) -> Result<Vec<RoomId>> {
        at_most(limit, 5_000)?;
        let list = move |view: &View<'_>, limit| -> Result<Vec<RoomId>> {
            let after = after.as_ref().map(|room| &room.0.as_bytes()[..]);
            view.after(Table::RoomsOfUser, user.0.as_bytes(), after)
                .take(limit)
                .map(|row| second_of_pair(&row?.0).map(RoomId))
                .collect()
        };
        // Most people are in few rooms, whatever the caller's limit is.
        const FEW: usize = 200;
        let few = list(&self.0.view(), limit.min(FEW))?;
        if limit <= FEW || few.len() < FEW {
            return Ok(few);
        }
        self.0.read(limit, move |view| list(view, limit)).await
    }

    async fn forget_deleted(&self, user: UserId, rooms: &[RoomId]) -> Result<()> {
        at_most(rooms.len(), 1_000)?;
        let rooms = rooms.to_vec();
        self.0
            .commit(Durability::Synced, move |transaction| {
                for room in rooms {
                    let row = transaction.get(Table::Rooms, tagged(ROOM, room.0.as_bytes()))?;
                    let stored = row.map(|row| read_json::<Room>(&row)).transpose()?;
                    if stored.is_some_and(|room| room.deleted_at.is_some()) {
                        transaction.remove(Table::RoomsOfUser, pair(user.0, room.0));
                    }
                }
                Ok(())
            })
            .await
    }

    async fn mark_read(&self, user: UserId, room: RoomId, mark: ReadMark) -> Result<ReadMark> {
        let key = pair(user.0, room.0);
        if let Some(row) = self.0.view().get(Table::ReadMarks, key)? {
            let stored = read_read_mark(&row)?;
            if stored.sequence >= mark.sequence {
                return Ok(stored);
            }
        }
        self.0
            .commit(Durability::Synced, move |transaction| {
                raise_mark(transaction, user, room, mark)
            })
            .await
    }

    async fn read_marks(&self, user: UserId, rooms: &[RoomId]) -> Result<Vec<(RoomId, ReadMark)>> {
        at_most(rooms.len(), 5_000)?;
        let rooms = rooms.to_vec();
        self.0
            .read(rooms.len(), move |view| {
                rooms
                    .into_iter()
                    .filter_map(|room| {
                        let row = view
                            .get(Table::ReadMarks, pair(user.0, room.0))
                            .transpose()?;
                        Some(row.and_then(|row| Ok((room, read_read_mark(&row)?))))
                    })
                    .collect()
            })
            .await
    }
}

/// Raises a read mark unless it is as far already; answers the one that stands.
pub(super) fn raise_mark(
    transaction: &mut Transaction<'_>,
    user: UserId,
    room: RoomId,
    mark: ReadMark,
) -> Result<ReadMark> {
    let key = pair(user.0, room.0);
    if let Some(row) = transaction.get(Table::ReadMarks, key)? {
        let stored = read_read_mark(&row)?;
        if stored.sequence >= mark.sequence {
            return Ok(stored);
        }
    }
    transaction.put(Table::ReadMarks, key, read_mark(mark));
    Ok(mark)
}

/// Marks a room deleted and takes it from the public list. A log may be without a room: then there is nothing to mark.
pub(super) fn mark_deleted(
    transaction: &mut Transaction<'_>,
    room: RoomId,
    at: Timestamp,
) -> Result<()> {
    let key = tagged(ROOM, room.0.as_bytes());
    if let Some(row) = transaction.get(Table::Rooms, key.as_slice())? {
        let mut stored: Room = read_json(&row)?;
        stored.deleted_at.get_or_insert(at);
        transaction.put(Table::Rooms, key, json(&stored)?);
        transaction.remove(Table::Rooms, tagged(LISTED, room.0.as_bytes()));
    }
    Ok(())
}

fn load(view: &View<'_>, room: RoomId) -> Result<Option<Room>> {
    view.get(Table::Rooms, tagged(ROOM, room.0.as_bytes()))?
        .map(|row| read_json(&row))
        .transpose()
}
