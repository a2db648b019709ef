//! [`RoomStore`]: rooms, the projections of their logs, and read marks.

use std::collections::HashMap;

use async_trait::async_trait;
use carillon_domain::{
    Error, Result, RoomId, Sequence, Timestamp, UserId,
    ports::{Reached, ReadMark, Receipt, Restricted, RoomStore},
    room::{Member, Restrictions, Role, Room, RoomKind, RoomRules, Standing},
};
use futures::future::BoxFuture;
use scylla::{
    statement::prepared::PreparedStatement,
    value::{CqlTimestamp, CqlValue, MaybeUnset},
};
use uuid::Uuid;

use super::database::{Conditional, Database, column, cql_time, signed, some_at_a_time, unsigned};

/// Partitions of the public list, so that it is no hot spot. Part of the stored format.
const PUBLIC_SHARDS: i32 = 16;
/// Takes a room from the public list.
pub(super) const UNLIST: &str =
    "DELETE FROM public_rooms USING TIMESTAMP 2 WHERE shard = ? AND room = ?";
/// The sequence is the write's timestamp, so that the largest mark wins without a conditional write.
pub(super) const MARK_READ: &str = "INSERT INTO read_states (user, room, seq, messages, time) VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?";
pub(super) const RECEIPT_READ: &str =
    "INSERT INTO receipts (room, user, read, read_at) VALUES (?, ?, ?, ?) USING TIMESTAMP ?";
pub(super) const RECEIPT_DELIVERED: &str = "INSERT INTO receipts (room, user, delivered, delivered_at) VALUES (?, ?, ?, ?) USING TIMESTAMP ?";
/// In the place of a person whom a message calls: everybody.
pub(super) const EVERYBODY: Uuid = Uuid::nil();
/// Rows of people with or without a restriction per read: invitations are rows too.
const RESTRICTED_PER_READ: usize = 1000;
/// Rooms per read of a user's read marks.
const MARKS_PER_READ: usize = 100;

pub(super) struct Rooms {
    database: Database,
    create: PreparedStatement,
    list: PreparedStatement,
    by_id: PreparedStatement,
    public_first: PreparedStatement,
    public_after: PreparedStatement,
    direct: PreparedStatement,
    make_direct: PreparedStatement,
    member: PreparedStatement,
    members_first: PreparedStatement,
    members_after: PreparedStatement,
    rooms_first: PreparedStatement,
    rooms_after: PreparedStatement,
    forget: PreparedStatement,
    forget_invite: PreparedStatement,
    marks: Marks,
    read_mark: PreparedStatement,
    read_marks: PreparedStatement,
    mark_delivered: PreparedStatement,
    receipt: PreparedStatement,
    receipts_first: PreparedStatement,
    receipts_after: PreparedStatement,
    profile: PreparedStatement,
    restrictions: PreparedStatement,
    restricted_first: PreparedStatement,
    restricted_after: PreparedStatement,
    invites_first: PreparedStatement,
    invites_after: PreparedStatement,
    retained_first: PreparedStatement,
    retained_after: PreparedStatement,
    deleted_after: PreparedStatement,
    mentions_after: PreparedStatement,
}

/// How far people have read: by person, for their lists, and by room, for receipts (MSG-05, MSG-06).
#[derive(Clone)]
pub(super) struct Marks {
    database: Database,
    by_user: PreparedStatement,
    by_room: PreparedStatement,
}

impl Marks {
    pub(super) async fn new(database: &Database) -> Result<Self> {
        Ok(Self {
            by_user: database.prepare(MARK_READ).await?,
            by_room: database.prepare(RECEIPT_READ).await?,
            database: database.clone(),
        })
    }

    /// Raises one mark; a smaller one changes nothing.
    pub(super) async fn write(&self, user: UserId, room: RoomId, mark: ReadMark) -> Result<()> {
        let sequence = signed(mark.sequence.0);
        let receipt = (room.0, user.0, sequence, cql_time(mark.time), sequence);
        tokio::try_join!(
            self.database
                .write("mark_read", &self.by_user, mark_values(user, room, mark)),
            self.database.write("mark_receipt", &self.by_room, receipt),
        )
        .map(drop)
    }

    /// Raises the marks of some people of a room.
    pub(super) async fn write_all(
        &self,
        room: RoomId,
        marks: &HashMap<UserId, ReadMark>,
    ) -> Result<()> {
        let writes = marks
            .iter()
            .map(|(user, mark)| Box::pin(self.write(*user, room, *mark)) as BoxFuture<'_, _>)
            .collect();
        some_at_a_time(writes).await.map(drop)
    }
}

/// A row of `rooms`. Only the id is there when a deletion was marked of a room that was never stored.
type RoomColumns = (
    Uuid,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<Uuid>,
    Option<CqlTimestamp>,
    Option<Uuid>,
    Option<Uuid>,
    Option<CqlTimestamp>,
);
type MemberColumns = (Uuid, String, i64, CqlTimestamp);
type MarkColumns = (Uuid, i64, i64, CqlTimestamp);
type ReceiptColumns = (
    Uuid,
    Option<i64>,
    Option<CqlTimestamp>,
    Option<i64>,
    Option<CqlTimestamp>,
);
type RestrictionColumns = (Uuid, Option<bool>, Option<bool>, Option<CqlTimestamp>);
type ProfileColumns = (Uuid, String, String, String);

impl Rooms {
    pub(super) async fn new(database: &Database) -> Result<Self> {
        Ok(Self {
            create: database
                .prepare("INSERT INTO rooms (id, kind, name, description, created_by, created_at, pair_a, pair_b, deleted_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)")
                .await?,
            // [`UNLIST`] wins over it whenever the two run: a room that was taken from the list doesn't come back when its
            // creation is repeated.
            list: database
                .prepare("INSERT INTO public_rooms (shard, room) VALUES (?, ?) USING TIMESTAMP 1")
                .await?,
            by_id: database
                .prepare("SELECT id, kind, name, description, created_by, created_at, pair_a, pair_b, deleted_at FROM rooms WHERE id = ?")
                .await?,
            public_first: database
                .prepare("SELECT room FROM public_rooms WHERE shard = ? LIMIT ?")
                .await?,
            public_after: database
                .prepare("SELECT room FROM public_rooms WHERE shard = ? AND room > ? LIMIT ?")
                .await?,
            direct: database
                .prepare("SELECT room FROM direct_rooms WHERE a = ? AND b = ?")
                .await?,
            make_direct: database
                .prepare_once("INSERT INTO direct_rooms (a, b, room) VALUES (?, ?, ?) IF NOT EXISTS")
                .await?,
            member: database
                .prepare("SELECT user, role, since, joined_at FROM members WHERE room = ? AND user = ?")
                .await?,
            members_first: database
                .prepare("SELECT user, role, since, joined_at FROM members WHERE room = ? LIMIT ?")
                .await?,
            members_after: database
                .prepare("SELECT user, role, since, joined_at FROM members WHERE room = ? AND user > ? LIMIT ?")
                .await?,
            rooms_first: database
                .prepare("SELECT room FROM rooms_by_user WHERE user = ? LIMIT ?")
                .await?,
            rooms_after: database
                .prepare("SELECT room FROM rooms_by_user WHERE user = ? AND room > ? LIMIT ?")
                .await?,
            // The clock's timestamp is later than that of any projection (an event's sequence), and there are no later events.
            forget: database
                .prepare("DELETE FROM rooms_by_user WHERE user = ? AND room = ?")
                .await?,
            forget_invite: database
                .prepare("DELETE FROM invites WHERE user = ? AND room = ?")
                .await?,
            marks: Marks::new(database).await?,
            mark_delivered: database.prepare(RECEIPT_DELIVERED).await?,
            receipt: database
                .prepare("SELECT user, delivered, delivered_at, read, read_at FROM receipts WHERE room = ? AND user = ?")
                .await?,
            receipts_first: database
                .prepare("SELECT user, delivered, delivered_at, read, read_at FROM receipts WHERE room = ? LIMIT ?")
                .await?,
            receipts_after: database
                .prepare("SELECT user, delivered, delivered_at, read, read_at FROM receipts WHERE room = ? AND user > ? LIMIT ?")
                .await?,
            profile: database
                .prepare("SELECT room, name, description, rules FROM room_profiles WHERE room = ?")
                .await?,
            restrictions: database
                .prepare("SELECT user, banned, invited, muted_until FROM restrictions WHERE room = ? AND user = ?")
                .await?,
            restricted_first: database
                .prepare("SELECT user, banned, invited, muted_until FROM restrictions WHERE room = ? LIMIT ?")
                .await?,
            restricted_after: database
                .prepare("SELECT user, banned, invited, muted_until FROM restrictions WHERE room = ? AND user > ? LIMIT ?")
                .await?,
            invites_first: database
                .prepare("SELECT room FROM invites WHERE user = ? LIMIT ?")
                .await?,
            invites_after: database
                .prepare("SELECT room FROM invites WHERE user = ? AND room > ? LIMIT ?")
                .await?,
            retained_first: database
                .prepare("SELECT room FROM retained_rooms WHERE shard = ? LIMIT ?")
                .await?,
            retained_after: database
                .prepare("SELECT room FROM retained_rooms WHERE shard = ? AND room > ? LIMIT ?")
                .await?,
            deleted_after: database
                .prepare("SELECT seq FROM deleted_messages WHERE room = ? AND seq > ? LIMIT ?")
                .await?,
            mentions_after: database
                .prepare("SELECT seq FROM mentions WHERE room = ? AND user = ? AND seq > ? LIMIT ?")
                .await?,
            read_mark: database
                .prepare("SELECT room, seq, messages, time FROM read_states WHERE user = ? AND room = ?")
                .await?,
            read_marks: database
                .prepare("SELECT room, seq, messages, time FROM read_states WHERE user = ? AND room IN ?")
                .await?,
            database: database.clone(),
        })
    }

    /// The next ids of a list that is spread over shards, from every one.
    async fn listed_ids(
        &self,
        operation: &'static str,
        (first, next): (&PreparedStatement, &PreparedStatement),
        after: Option<RoomId>,
        limit: usize,
    ) -> Result<Vec<RoomId>> {
        let limit_of_shard = row_limit(limit);
        let mut reads: Vec<BoxFuture<'_, Result<Vec<(Uuid,)>>>> = Vec::new();
        for shard in 0..PUBLIC_SHARDS {
            reads.push(match after {
                None => {
                    let values = (shard, limit_of_shard);
                    Box::pin(self.database.rows(operation, first, values))
                }
                Some(after) => {
                    let values = (shard, after.0, limit_of_shard);
                    Box::pin(self.database.rows(operation, next, values))
                }
            });
        }
        let shards = some_at_a_time(reads).await?;
        let mut ids: Vec<RoomId> = shards
            .into_iter()
            .flatten()
            .map(|(id,)| RoomId(id))
            .collect();
        ids.sort_unstable();
        ids.truncate(limit);
        Ok(ids)
    }

    async fn public_ids(&self, after: Option<RoomId>, limit: usize) -> Result<Vec<RoomId>> {
        let statements = (&self.public_first, &self.public_after);
        self.listed_ids("list_public", statements, after, limit)
            .await
    }

    async fn receipt(&self, room: RoomId, user: UserId) -> Result<Option<Receipt>> {
        let row = self
            .database
            .row::<ReceiptColumns>("receipt", &self.receipt, (room.0, user.0))
            .await?;
        row.map_or(Ok(None), read_receipt)
    }
}

#[async_trait]
impl RoomStore for Rooms {
    async fn create(&self, room: &Room) -> Result<()> {
        let values = (
            room.id.0,
            room.kind.as_str(),
            &room.name,
            &room.description,
            room.created_by.0,
            cql_time(room.created_at),
            MaybeUnset::from_option(room.pair.map(|[a, _]| a.0)),
            MaybeUnset::from_option(room.pair.map(|[_, b]| b.0)),
            MaybeUnset::from_option(room.deleted_at.map(cql_time)),
        );
        self.database
            .write("create_room", &self.create, values)
            .await?;
        if room.kind.is_listed() && room.deleted_at.is_none() {
            let values = (public_shard(room.id), room.id.0);
            self.database.write("list_room", &self.list, values).await?;
        }
        Ok(())
    }

    async fn get(&self, room: RoomId) -> Result<Option<Room>> {
        let (row, profile) = tokio::try_join!(
            self.database
                .row::<RoomColumns>("get_room", &self.by_id, (room.0,)),
            self.database
                .row::<ProfileColumns>("get_profile", &self.profile, (room.0,)),
        )?;
        let mut room = row.map_or(Ok(None), read_room)?;
        if let (Some(room), Some(profile)) = (&mut room, profile) {
            take_profile(room, profile)?;
        }
        Ok(room)
    }

    async fn get_many(&self, rooms: &[RoomId]) -> Result<Vec<Room>> {
        let ids = || rooms.iter().map(|room| room.0);
        let (rows, profiles) = tokio::try_join!(
            self.database
                .rows_by_key::<RoomColumns>("get_rooms", &self.by_id, ids()),
            self.database
                .rows_by_key::<ProfileColumns>("get_profiles", &self.profile, ids()),
        )?;
        let mut profiles: HashMap<Uuid, ProfileColumns> = profiles
            .into_iter()
            .map(|profile| (profile.0, profile))
            .collect();
        let mut rooms = Vec::with_capacity(rows.len());
        for row in rows {
            let Some(mut room) = read_room(row)? else {
                continue;
            };
            if let Some(profile) = profiles.remove(&room.id.0) {
                take_profile(&mut room, profile)?;
            }
            rooms.push(room);
        }
        Ok(rooms)
    }

    async fn list_public(&self, after: Option<RoomId>, limit: usize) -> Result<Vec<Room>> {
        let mut listed = Vec::new();
        let mut after = after;
        // More than one round only when a room was marked deleted, but not yet taken from the list.
        while listed.len() < limit {
            let wanted = limit - listed.len();
            let ids = self.public_ids(after, wanted).await?;
            let mut rooms = self.get_many(&ids).await?;
            rooms.retain(|room| room.deleted_at.is_none());
            rooms.sort_unstable_by_key(|room| room.id);
            listed.extend(rooms);
            after = ids.last().copied();
            if ids.len() < wanted {
                break;
            }
        }
        Ok(listed)
    }

    async fn direct_room(&self, a: UserId, b: UserId, candidate: RoomId) -> Result<RoomId> {
        let (a, b) = (a.min(b), a.max(b));
        // Once set it never changes, so that the usual call needs no conditional write.
        let found = self
            .database
            .row::<(Uuid,)>("direct_room", &self.direct, (a.0, b.0))
            .await?;
        if let Some((room,)) = found {
            return Ok(RoomId(room));
        }
        let values = (a.0, b.0, candidate.0);
        match self
            .database
            .conditional("make_direct_room", &self.make_direct, values)
            .await?
        {
            Conditional::Applied => Ok(candidate),
            Conditional::Refused(row) => match column(&row, "room") {
                Some(CqlValue::Uuid(room)) => Ok(RoomId(*room)),
                _ => Err(Error::defect("a direct room has no id")),
            },
        }
    }

    async fn member(&self, room: RoomId, user: UserId) -> Result<Option<Member>> {
        self.database
            .row::<MemberColumns>("member", &self.member, (room.0, user.0))
            .await?
            .map(read_member)
            .transpose()
    }

    async fn members(
        &self,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Member>> {
        let limit = row_limit(limit);
        let rows: Vec<MemberColumns> = match after {
            None => {
                self.database
                    .rows("members", &self.members_first, (room.0, limit))
                    .await?
            }
            Some(after) => {
                let values = (room.0, after.0, limit);
                self.database
                    .rows("members", &self.members_after, values)
                    .await?
            }
        };
        rows.into_iter().map(read_member).collect()
    }

    async fn rooms_of(
        &self,
        user: UserId,
        after: Option<RoomId>,
        limit: usize,
    ) -> Result<Vec<RoomId>> {
        let limit = row_limit(limit);
        let rows: Vec<(Uuid,)> = match after {
            None => {
                self.database
                    .rows("rooms_of", &self.rooms_first, (user.0, limit))
                    .await?
            }
            Some(after) => {
                let values = (user.0, after.0, limit);
                self.database
                    .rows("rooms_of", &self.rooms_after, values)
                    .await?
            }
        };
        Ok(rows.into_iter().map(|(room,)| RoomId(room)).collect())
    }

    async fn forget_deleted(&self, user: UserId, rooms: &[RoomId]) -> Result<()> {
        let rooms = self.get_many(rooms).await?;
        let mut writes: Vec<BoxFuture<'_, Result<()>>> = Vec::new();
        for room in rooms.iter().filter(|room| room.deleted_at.is_some()) {
            let values = (user.0, room.id.0);
            writes.push(Box::pin(self.database.write(
                "forget_invite",
                &self.forget_invite,
                values,
            )));
            writes.push(Box::pin(self.database.write(
                "forget_room",
                &self.forget,
                values,
            )));
        }
        some_at_a_time(writes).await.map(drop)
    }

    async fn mark_read(&self, user: UserId, room: RoomId, mark: ReadMark) -> Result<ReadMark> {
        let stands = self
            .database
            .row::<MarkColumns>("read_mark", &self.read_mark, (user.0, room.0))
            .await?
            .map(read_mark)
            .transpose()?;
        if let Some((_, stands)) = stands
            && stands.sequence >= mark.sequence
        {
            return Ok(stands);
        }
        // A larger mark that came in between stays; then this answer is as if it had been given before that one.
        self.marks.write(user, room, mark).await?;
        Ok(mark)
    }

    async fn standing(&self, room: RoomId, user: UserId) -> Result<Standing> {
        let (member, bound) = tokio::try_join!(
            self.member(room, user),
            self.database.row::<RestrictionColumns>(
                "restrictions",
                &self.restrictions,
                (room.0, user.0)
            ),
        )?;
        Ok(Standing {
            member,
            restrictions: bound.map(read_restrictions).unwrap_or_default(),
        })
    }

    async fn restricted(
        &self,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Restricted>> {
        let mut after = after;
        let mut found = Vec::new();
        let page = limit.max(RESTRICTED_PER_READ);
        let wanted = row_limit(page);
        while found.len() < limit {
            let rows: Vec<RestrictionColumns> = match after {
                None => {
                    let values = (room.0, wanted);
                    self.database
                        .rows("restricted", &self.restricted_first, values)
                        .await?
                }
                Some(after) => {
                    let values = (room.0, after.0, wanted);
                    self.database
                        .rows("restricted", &self.restricted_after, values)
                        .await?
                }
            };
            let full = rows.len() >= page;
            after = rows.last().map(|row| UserId(row.0));
            let bound = rows.into_iter().map(|row| Restricted {
                user: UserId(row.0),
                restrictions: read_restrictions(row),
            });
            // A row stays when its restriction ended, and holds invitations too.
            let bound = bound.filter(|bound| {
                bound.restrictions.banned || bound.restrictions.muted_until.is_some()
            });
            found.extend(bound.take(limit - found.len()));
            if !full {
                break;
            }
        }
        Ok(found)
    }

    async fn invites_of(
        &self,
        user: UserId,
        after: Option<RoomId>,
        limit: usize,
    ) -> Result<Vec<RoomId>> {
        let limit = row_limit(limit);
        let rows: Vec<(Uuid,)> = match after {
            None => {
                self.database
                    .rows("invites_of", &self.invites_first, (user.0, limit))
                    .await?
            }
            Some(after) => {
                let values = (user.0, after.0, limit);
                self.database
                    .rows("invites_of", &self.invites_after, values)
                    .await?
            }
        };
        Ok(rows.into_iter().map(|(room,)| RoomId(room)).collect())
    }

    async fn retained(&self, after: Option<RoomId>, limit: usize) -> Result<Vec<RoomId>> {
        let statements = (&self.retained_first, &self.retained_after);
        self.listed_ids("list_retained", statements, after, limit)
            .await
    }

    async fn mark_delivered(
        &self,
        user: UserId,
        room: RoomId,
        reached: Reached,
    ) -> Result<Reached> {
        let stands = self.receipt(room, user).await?;
        if let Some(stands) = stands.and_then(|receipt| receipt.delivered)
            && stands.sequence >= reached.sequence
        {
            return Ok(stands);
        }
        // A larger mark that came in between stays; then this answer is as if it had been given before that one.
        let sequence = signed(reached.sequence.0);
        let values = (room.0, user.0, sequence, cql_time(reached.time), sequence);
        self.database
            .write("mark_delivered", &self.mark_delivered, values)
            .await?;
        Ok(reached)
    }

    async fn receipts(
        &self,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Receipt>> {
        let limit = row_limit(limit);
        let rows: Vec<ReceiptColumns> = match after {
            None => {
                self.database
                    .rows("receipts", &self.receipts_first, (room.0, limit))
                    .await?
            }
            Some(after) => {
                let values = (room.0, after.0, limit);
                self.database
                    .rows("receipts", &self.receipts_after, values)
                    .await?
            }
        };
        rows.into_iter()
            .filter_map(|row| read_receipt(row).transpose())
            .collect()
    }

    async fn deleted_after(
        &self,
        room: RoomId,
        after: Sequence,
        limit: usize,
    ) -> Result<Vec<Sequence>> {
        let values = (room.0, signed(after.0), row_limit(limit));
        let rows: Vec<(i64,)> = self
            .database
            .rows("deleted_after", &self.deleted_after, values)
            .await?;
        rows.into_iter().map(read_place).collect()
    }

    async fn mentions_after(
        &self,
        room: RoomId,
        user: UserId,
        after: Sequence,
        limit: usize,
    ) -> Result<Vec<Sequence>> {
        let of = |user: Uuid| {
            let values = (room.0, user, signed(after.0), row_limit(limit));
            self.database
                .rows::<(i64,)>("mentions_after", &self.mentions_after, values)
        };
        let (own, everybody) = tokio::try_join!(of(user.0), of(EVERYBODY))?;
        let places = own.into_iter().chain(everybody).map(read_place);
        let mut places = places.collect::<Result<Vec<_>>>()?;
        places.sort_unstable();
        places.dedup();
        places.truncate(limit);
        Ok(places)
    }

    async fn read_marks(&self, user: UserId, rooms: &[RoomId]) -> Result<Vec<(RoomId, ReadMark)>> {
        let mut reads: Vec<BoxFuture<'_, Result<Vec<MarkColumns>>>> = Vec::new();
        for rooms in rooms.chunks(MARKS_PER_READ) {
            let rooms: Vec<Uuid> = rooms.iter().map(|room| room.0).collect();
            reads.push(Box::pin(self.database.rows(
                "read_marks",
                &self.read_marks,
                (user.0, rooms),
            )));
        }
        let found = some_at_a_time(reads).await?;
        found.into_iter().flatten().map(read_mark).collect()
    }
}

/// Values of [`MARK_READ`].
pub(super) fn mark_values(
    user: UserId,
    room: RoomId,
    mark: ReadMark,
) -> (Uuid, Uuid, i64, i64, CqlTimestamp, i64) {
    let sequence = signed(mark.sequence.0);
    (
        user.0,
        room.0,
        sequence,
        signed(mark.messages),
        cql_time(mark.time),
        sequence,
    )
}

/// Where a room is in the public list.
pub(super) fn public_shard(room: RoomId) -> i32 {
    // The low bits of a UUIDv7 are random.
    (room.0.as_u128() % PUBLIC_SHARDS as u128) as i32
}

pub(super) fn row_limit(limit: usize) -> i32 {
    i32::try_from(limit).unwrap_or(i32::MAX).max(1)
}

fn read_room(columns: RoomColumns) -> Result<Option<Room>> {
    let (id, kind, name, description, created_by, created_at, pair_a, pair_b, deleted_at) = columns;
    let (Some(kind), Some(created_by), Some(created_at)) = (kind, created_by, created_at) else {
        return Ok(None);
    };
    Ok(Some(Room {
        id: RoomId(id),
        kind: RoomKind::parse(&kind)
            .ok_or_else(|| Error::defect("a stored kind of room is unknown"))?,
        name: name.unwrap_or_default(),
        description: description.unwrap_or_default(),
        created_by: UserId(created_by),
        created_at: Timestamp(created_at.0),
        pair: pair_a.zip(pair_b).map(|(a, b)| [UserId(a), UserId(b)]),
        deleted_at: deleted_at.map(|at| Timestamp(at.0)),
        rules: RoomRules::default(),
    }))
}

/// What a room's last change made of it.
fn take_profile(room: &mut Room, (_, name, description, rules): ProfileColumns) -> Result<()> {
    room.name = name;
    room.description = description;
    room.rules = serde_json::from_str(&rules).map_err(Error::internal)?;
    Ok(())
}

fn read_restrictions((_, banned, invited, muted_until): RestrictionColumns) -> Restrictions {
    Restrictions {
        banned: banned.unwrap_or(false),
        invited: invited.unwrap_or(false),
        muted_until: muted_until.map(|until| Timestamp(until.0)),
    }
}

/// `None` for a row that holds nothing.
fn read_receipt(
    (user, delivered, delivered_at, read, read_at): ReceiptColumns,
) -> Result<Option<Receipt>> {
    let reached = |sequence: Option<i64>, time: Option<CqlTimestamp>| {
        let Some((sequence, time)) = sequence.zip(time) else {
            return Ok::<_, Error>(None);
        };
        Ok(Some(Reached {
            sequence: Sequence(unsigned(sequence)?),
            time: Timestamp(time.0),
        }))
    };
    let (delivered, read) = (reached(delivered, delivered_at)?, reached(read, read_at)?);
    // Who has read them has them.
    let furthest = [delivered, read]
        .into_iter()
        .flatten()
        .max_by_key(|reached| reached.sequence);
    Ok(furthest.map(|furthest| Receipt {
        user: UserId(user),
        delivered: Some(furthest),
        read,
    }))
}

fn read_place((place,): (i64,)) -> Result<Sequence> {
    unsigned(place).map(Sequence)
}

fn read_member((user, role, since, joined_at): MemberColumns) -> Result<Member> {
    Ok(Member {
        user: UserId(user),
        role: Role::parse(&role).ok_or_else(|| Error::defect("a stored role is unknown"))?,
        since: Sequence(unsigned(since)?),
        joined_at: Timestamp(joined_at.0),
    })
}

fn read_mark((room, sequence, messages, time): MarkColumns) -> Result<(RoomId, ReadMark)> {
    let mark = ReadMark {
        sequence: Sequence(unsigned(sequence)?),
        messages: unsigned(messages)?,
        time: Timestamp(time.0),
    };
    Ok((RoomId(room), mark))
}
