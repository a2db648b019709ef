//! [`RoomStore`]: rooms, the public list, direct pairs, read marks, and the projections that [`super::room_log`] keeps.

use std::sync::Arc;

use async_trait::async_trait;
use carillon_domain::{
    Error, Result, RoomId, Sequence, Timestamp, UserId,
    event::Mentions,
    ports::{Reached, ReadMark, Receipt, Restricted, RoomStore},
    room::{Member, Restrictions, Room, RoomRules, Standing},
};
use uuid::Uuid;

use super::{
    at_most,
    codec::{
        self, MarkedBy, indexed, json, last_id, last_place, pair, read_json, read_mark,
        read_member, read_reached, read_read_mark, read_restrictions, second_of_pair, tagged,
    },
    engine::{Durability, Engine, Transaction, View},
    tables::Table,
};

pub(super) const ROOM: u8 = b'r';
pub(super) const LISTED: u8 = b'l';
pub(super) const DIRECT: u8 = b'd';

/// Kinds of rows of [`Table::Marks`], at the end of the key.
const READ: u8 = b'r';
pub(super) const DELIVERED: u8 = b'd';

/// Kinds of rows of [`Table::RoomIndex`], at the beginning of the key.
const RESTRICTIONS: u8 = b'r';
const INVITES: u8 = b'i';
pub(super) const RETAINED: u8 = b'k';
const DELETED: u8 = b'd';
const MENTIONS: u8 = b'm';
/// In the place of a person: everybody.
const EVERYBODY: Uuid = Uuid::nil();

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
                        let invite = indexed(INVITES, &[user.0, room.0], None);
                        transaction.remove(Table::RoomIndex, invite);
                    }
                }
                Ok(())
            })
            .await
    }

    async fn standing(&self, room: RoomId, user: UserId) -> Result<Standing> {
        let view = self.0.view();
        let member = view.get(Table::Members, pair(room.0, user.0))?;
        let bound = view.get(
            Table::RoomIndex,
            indexed(RESTRICTIONS, &[room.0, user.0], None),
        )?;
        Ok(Standing {
            member: member.map(|row| read_member(user, &row)).transpose()?,
            restrictions: bound
                .map(|row| read_restrictions(&row))
                .transpose()?
                .unwrap_or_default(),
        })
    }

    async fn restricted(
        &self,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Restricted>> {
        at_most(limit, 1_000)?;
        let view = self.0.view();
        let prefix = indexed(RESTRICTIONS, &[room.0], None);
        let rows = view.after(
            Table::RoomIndex,
            &prefix,
            after.as_ref().map(|user| &user.0.as_bytes()[..]),
        );
        let restricted = rows.map(|row| {
            let (key, row) = row?;
            Ok(Restricted {
                user: UserId(last_id(&key)?),
                restrictions: read_restrictions(&row)?,
            })
        });
        restricted
            .filter(|restricted| {
                restricted.as_ref().map_or(true, |restricted| {
                    let bound = restricted.restrictions;
                    bound.banned || bound.muted_until.is_some()
                })
            })
            .take(limit)
            .collect()
    }

    async fn invites_of(
        &self,
        user: UserId,
        after: Option<RoomId>,
        limit: usize,
    ) -> Result<Vec<RoomId>> {
        let prefix = indexed(INVITES, &[user.0], None);
        self.room_ids(&prefix, after, limit)
    }

    async fn retained(&self, after: Option<RoomId>, limit: usize) -> Result<Vec<RoomId>> {
        self.room_ids(&[RETAINED], after, limit)
    }

    async fn mark_read(&self, user: UserId, room: RoomId, mark: ReadMark) -> Result<ReadMark> {
        if let Some(row) = self
            .0
            .view()
            .get(Table::Marks, mark_key(room, user, READ))?
        {
            let (stored, _) = read_read_mark(&row)?;
            if stored.sequence >= mark.sequence {
                return Ok(stored);
            }
        }
        self.0
            .commit(Durability::Synced, move |transaction| {
                raise_mark(transaction, user, room, mark, MarkedBy::Reading)
            })
            .await
    }

    async fn mark_delivered(
        &self,
        user: UserId,
        room: RoomId,
        reached: Reached,
    ) -> Result<Reached> {
        let stored = delivered(
            &self.0.view(),
            |view, key| view.get(Table::Marks, key),
            room,
            user,
        )?;
        if let Some(stored) = stored
            && stored.sequence >= reached.sequence
        {
            return Ok(stored);
        }
        self.0
            .commit(Durability::Synced, move |transaction| {
                let stored = delivered(
                    transaction,
                    |transaction, key| transaction.get(Table::Marks, key),
                    room,
                    user,
                )?;
                if let Some(stored) = stored
                    && stored.sequence >= reached.sequence
                {
                    return Ok(stored);
                }
                let key = mark_key(room, user, DELIVERED);
                transaction.put(Table::Marks, key, codec::reached(reached));
                Ok(reached)
            })
            .await
    }

    async fn receipts(
        &self,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Receipt>> {
        at_most(limit, 1_000)?;
        self.0
            .read(limit, move |view| {
                // After both rows of a person.
                let after = after.map(|user| [&user.0.as_bytes()[..], &[u8::MAX]].concat());
                let mut receipts: Vec<Receipt> = Vec::new();
                for row in view.after(Table::Marks, room.0.as_bytes(), after.as_deref()) {
                    let (key, row) = row?;
                    let user = UserId(second_of_pair(&key)?);
                    if receipts.last().is_none_or(|receipt| receipt.user != user) {
                        receipts.retain(|receipt| receipt.delivered.is_some());
                        if receipts.len() == limit {
                            return Ok(receipts);
                        }
                        receipts.push(Receipt {
                            user,
                            delivered: None,
                            read: None,
                        });
                    }
                    let Some(receipt) = receipts.last_mut() else {
                        continue;
                    };
                    if key.ends_with(&[DELIVERED]) {
                        receipt.delivered = Some(read_reached(&row)?);
                    } else if let (mark, MarkedBy::Reading) = read_read_mark(&row)? {
                        let read = Reached {
                            sequence: mark.sequence,
                            time: mark.time,
                        };
                        receipt.read = Some(read);
                        receipt.delivered = further(receipt.delivered, read);
                    }
                }
                receipts.retain(|receipt| receipt.delivered.is_some());
                Ok(receipts)
            })
            .await
    }

    async fn deleted_after(
        &self,
        room: RoomId,
        after: Sequence,
        limit: usize,
    ) -> Result<Vec<Sequence>> {
        let prefix = indexed(DELETED, &[room.0], None);
        places(&self.0.view(), &prefix, after, limit)
    }

    async fn mentions_after(
        &self,
        room: RoomId,
        user: UserId,
        after: Sequence,
        limit: usize,
    ) -> Result<Vec<Sequence>> {
        let view = self.0.view();
        let of = |user| {
            let prefix = indexed(MENTIONS, &[room.0, user], None);
            places(&view, &prefix, after, limit)
        };
        let mut places = of(user.0)?;
        places.extend(of(EVERYBODY)?);
        places.sort_unstable();
        places.dedup();
        places.truncate(limit);
        Ok(places)
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
                            .get(Table::Marks, mark_key(room, user, READ))
                            .transpose()?;
                        Some(row.and_then(|row| Ok((room, read_read_mark(&row)?.0))))
                    })
                    .collect()
            })
            .await
    }
}

impl Rooms {
    /// Rooms at the end of the keys that begin so.
    fn room_ids(&self, prefix: &[u8], after: Option<RoomId>, limit: usize) -> Result<Vec<RoomId>> {
        at_most(limit, 1_000)?;
        let view = self.0.view();
        let after = after.as_ref().map(|room| &room.0.as_bytes()[..]);
        view.after(Table::RoomIndex, prefix, after)
            .take(limit)
            .map(|row| last_id(&row?.0).map(RoomId))
            .collect()
    }
}

/// Places at the end of the keys that begin so.
fn places(view: &View<'_>, prefix: &[u8], after: Sequence, limit: usize) -> Result<Vec<Sequence>> {
    at_most(limit, 1_000)?;
    view.after(Table::RoomIndex, prefix, Some(&after.0.to_be_bytes()))
        .take(limit)
        .map(|row| last_place(&row?.0))
        .collect()
}

pub(super) fn mark_key(room: RoomId, user: UserId, kind: u8) -> Vec<u8> {
    let mut key = pair(room.0, user.0).to_vec();
    key.push(kind);
    key
}

/// Where a read mark lies.
pub(super) fn read_mark_key(room: RoomId, user: UserId) -> Vec<u8> {
    mark_key(room, user, READ)
}

/// The further of two marks.
fn further(one: Option<Reached>, other: Reached) -> Option<Reached> {
    Some(match one {
        Some(one) if one.sequence >= other.sequence => one,
        _ => other,
    })
}

/// How far messages got to somebody: who has read them has them.
fn delivered<S>(
    rows: &S,
    get: impl Fn(&S, Vec<u8>) -> Result<Option<fjall::Slice>>,
    room: RoomId,
    user: UserId,
) -> Result<Option<Reached>> {
    let reached = get(rows, mark_key(room, user, DELIVERED))?;
    let reached = reached.map(|row| read_reached(&row)).transpose()?;
    let Some(row) = get(rows, mark_key(room, user, READ))? else {
        return Ok(reached);
    };
    let (mark, _) = read_read_mark(&row)?;
    let read = Reached {
        sequence: mark.sequence,
        time: mark.time,
    };
    Ok(further(reached, read))
}

/// Raises a read mark unless it is as far already; answers the one that stands.
pub(super) fn raise_mark(
    transaction: &mut Transaction<'_>,
    user: UserId,
    room: RoomId,
    mark: ReadMark,
    by: MarkedBy,
) -> Result<ReadMark> {
    let key = mark_key(room, user, READ);
    if let Some(row) = transaction.get(Table::Marks, key.as_slice())? {
        let (stored, _) = read_read_mark(&row)?;
        if stored.sequence >= mark.sequence {
            return Ok(stored);
        }
    }
    transaction.put(Table::Marks, key, read_mark(mark, by));
    Ok(mark)
}

/// Marks that somebody wrote a room's last message: no mark can be further.
pub(super) fn mark_written(
    transaction: &mut Transaction<'_>,
    user: UserId,
    room: RoomId,
    mark: ReadMark,
) {
    let key = mark_key(room, user, READ);
    transaction.put(Table::Marks, key, read_mark(mark, MarkedBy::Reading));
}

/// Takes somebody who is no member any more from the room's receipts. How far they have read stands.
pub(super) fn drop_receipt(
    transaction: &mut Transaction<'_>,
    user: UserId,
    room: RoomId,
) -> Result<()> {
    transaction.remove(Table::Marks, mark_key(room, user, DELIVERED));
    let key = mark_key(room, user, READ);
    if let Some(row) = transaction.get(Table::Marks, key.as_slice())? {
        let (mark, _) = read_read_mark(&row)?;
        transaction.put(Table::Marks, key, read_mark(mark, MarkedBy::Joining));
    }
    Ok(())
}

/// Changes what binds a person in a room.
pub(super) fn restrict(
    transaction: &mut Transaction<'_>,
    room: RoomId,
    user: UserId,
    change: impl FnOnce(&mut Restrictions),
) -> Result<()> {
    let key = indexed(RESTRICTIONS, &[room.0, user.0], None);
    let stored = transaction.get(Table::RoomIndex, key.as_slice())?;
    let before = stored
        .map(|row| read_restrictions(&row))
        .transpose()?
        .unwrap_or_default();
    let mut now = before;
    change(&mut now);
    if now == before {
        return Ok(());
    }
    let invite = indexed(INVITES, &[user.0, room.0], None);
    if now.invited {
        transaction.put(Table::RoomIndex, invite, *b"");
    } else if before.invited {
        transaction.remove(Table::RoomIndex, invite);
    }
    if now == Restrictions::default() {
        transaction.remove(Table::RoomIndex, key);
    } else {
        transaction.put(Table::RoomIndex, key, codec::restrictions(now));
    }
    Ok(())
}

/// Notes whom a message calls.
pub(super) fn index_mentions(
    transaction: &mut Transaction<'_>,
    room: RoomId,
    place: Sequence,
    mentions: &Mentions,
) {
    for key in mention_keys(room, place, mentions) {
        transaction.put(Table::RoomIndex, key, *b"");
    }
}

/// Keys of the rows that say whom a message calls.
pub(super) fn mention_keys(
    room: RoomId,
    place: Sequence,
    mentions: &Mentions,
) -> impl Iterator<Item = Vec<u8>> {
    let everybody = mentions.room.then_some(EVERYBODY);
    let users = mentions.users.iter().map(|user| user.0);
    users
        .chain(everybody)
        .map(move |user| indexed(MENTIONS, &[room.0, user], Some(place)))
}

/// The key of the row that says that a message was deleted.
pub(super) fn deleted_key(room: RoomId, place: Sequence) -> Vec<u8> {
    indexed(DELETED, &[room.0], Some(place))
}

/// Gives a room another name, description and rules. A log may be without a room: then there is nothing to change.
pub(super) fn change(
    transaction: &mut Transaction<'_>,
    room: RoomId,
    name: &str,
    description: &str,
    rules: RoomRules,
) -> Result<()> {
    let key = tagged(ROOM, room.0.as_bytes());
    if let Some(row) = transaction.get(Table::Rooms, key.as_slice())? {
        let mut stored: Room = read_json(&row)?;
        name.clone_into(&mut stored.name);
        description.clone_into(&mut stored.description);
        stored.rules = rules;
        transaction.put(Table::Rooms, key, json(&stored)?);
    }
    if rules.retention_seconds.is_some() {
        let key = tagged(RETAINED, room.0.as_bytes());
        transaction.put(Table::RoomIndex, key, *b"");
    }
    Ok(())
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
