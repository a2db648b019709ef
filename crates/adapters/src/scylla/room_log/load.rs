//! Logs put back as they were, and read by who doesn't own them.
//!
//! Loaded rows are of epoch 0, which no owner ever has: they were before every owner, so that no fence takes them away and the first
//! owner of a partition finds them as it finds those of an earlier one.

use std::collections::HashMap;

use carillon_domain::{
    Error, Result, RoomId, Sequence, Timestamp, UserId,
    event::{EventBody, RoomEvent},
    ports::{Bounds, Epoch, Fence, Floor, OpenRoom, ReadMark, RoomLog as _},
    room::{Room, Standing},
};
use futures::future::BoxFuture;
use scylla::value::CqlTimestamp;

use super::{
    super::rooms::{mark_values, public_shard},
    Inner, Log,
    append::note_sender,
    cql_time,
    heads::Wrote,
    signed, some_at_a_time,
};

/// Who wrote what was loaded.
const LOADED: Epoch = Epoch(0);

impl Log {
    /// [`carillon_domain::ports::Archive::peek`].
    pub(in crate::scylla) async fn peek(&self, room: RoomId) -> Result<OpenRoom> {
        self.0.peek(room).await
    }

    /// The log's part of [`carillon_domain::ports::Archive::load_room`].
    pub(in crate::scylla) async fn load_bounds(&self, room: &Room, bounds: Bounds) -> Result<()> {
        if bounds.floor.first > Sequence(1) {
            self.raise_floor(room.id, bounds.floor).await?;
        }
        self.0.load_profile(room, bounds.floor).await?;
        if bounds.head == Sequence::ZERO || bounds.head >= bounds.floor.first {
            return Ok(());
        }
        // Nothing is kept, but places go on where they were: an owner finds them by the last event. It isn't shown to anybody, being
        // before the floor; what it says is true.
        let last = RoomEvent {
            room: room.id,
            sequence: bounds.head,
            messages_before: bounds.messages,
            time: room.created_at,
            actor: room.created_by,
            body: EventBody::Changed {
                name: room.name.clone(),
                description: room.description.clone(),
                rules: room.rules,
            },
        };
        let mut writes = Vec::new();
        self.0.write_rows(&last, LOADED, &mut writes)?;
        some_at_a_time(writes).await?;
        self.0.heads.put(room.id, bounds.head).await
    }

    /// [`carillon_domain::ports::Archive::load_standings`].
    pub(in crate::scylla) async fn load_standings(
        &self,
        room: RoomId,
        standings: &[(UserId, Standing)],
    ) -> Result<()> {
        let mut writes: Vec<BoxFuture<'_, Result<()>>> = Vec::new();
        for (user, standing) in standings {
            writes.push(Box::pin(self.0.load_standing(room, *user, standing)));
        }
        some_at_a_time(writes).await.map(drop)
    }

    /// [`carillon_domain::ports::Archive::load_events`].
    pub(in crate::scylla) async fn load_events(
        &self,
        room: RoomId,
        floor: Floor,
        events: &[RoomEvent],
    ) -> Result<()> {
        if floor.first > Sequence(1) {
            self.raise_floor(room, floor).await?;
        }
        self.0.load_events(room, floor, events).await
    }

    /// [`carillon_domain::ports::Archive::load_marks`].
    pub(in crate::scylla) async fn load_marks(
        &self,
        user: UserId,
        marks: &[(RoomId, ReadMark)],
    ) -> Result<()> {
        let mut writes: Vec<BoxFuture<'_, Result<()>>> = Vec::new();
        for (room, mark) in marks {
            writes.push(Box::pin(self.0.mark_joined(user, *room, *mark)));
        }
        some_at_a_time(writes).await.map(drop)
    }
}

impl Inner {
    async fn peek(&self, room: RoomId) -> Result<OpenRoom> {
        // The fences first: whoever fences later has found what is acknowledged by now.
        let (noted, mut fences, (floor, _)) =
            tokio::try_join!(self.noted_head(room), self.fences(room), self.floor(room))?;
        // A loaded room that nobody has opened has none, and its rows are to be seen.
        fences.insert(
            0,
            Fence {
                epoch: LOADED,
                first: Sequence(1),
            },
        );
        let newest = fences.iter().map(|fence| fence.epoch).max();
        let (_, tail) = self
            .whole_tail(room, noted, &fences, newest.unwrap_or(LOADED))
            .await?;
        Ok(OpenRoom {
            room,
            head: tail.head,
            messages: tail.messages,
            deleted: tail
                .rows
                .back()
                .is_some_and(|row| row.event.body == EventBody::RoomDeleted),
            floor,
            fences,
        })
    }

    /// A room's name and rules as the events say that retention removed; those that follow are later.
    async fn load_profile(&self, room: &Room, floor: Floor) -> Result<()> {
        if room.rules.retention_seconds.is_some() || floor.first > Sequence(1) {
            let values = (public_shard(room.id), room.id.0);
            self.database
                .write("put_retained", &self.statements.put_retained, values)
                .await?;
        }
        let rules = serde_json::to_string(&room.rules).map_err(Error::internal)?;
        let values = (room.id.0, &room.name, &room.description, rules, 0i64);
        self.database
            .write("put_profile", &self.statements.put_profile, values)
            .await
    }

    async fn load_standing(&self, room: RoomId, user: UserId, standing: &Standing) -> Result<()> {
        let (database, statements) = (&self.database, &self.statements);
        if let Some(member) = standing.member {
            let since = signed(member.since.0);
            let values = (
                room.0,
                user.0,
                member.role.as_str(),
                since,
                cql_time(member.joined_at),
                since,
            );
            let room_of_user = (user.0, room.0, since, since);
            tokio::try_join!(
                database.write("put_member", &statements.put_member, values),
                database.write(
                    "put_room_of_user",
                    &statements.put_room_of_user,
                    room_of_user
                ),
            )?;
        }
        // Before every event.
        let at = 0i64;
        let bound = standing.restrictions;
        if bound.banned {
            let values = (at, Some(true), room.0, user.0);
            database
                .write("set_banned", &statements.set_banned, values)
                .await?;
        }
        if let Some(until) = bound.muted_until {
            let values = (at, Some(cql_time(until)), room.0, user.0);
            database
                .write("set_muted", &statements.set_muted, values)
                .await?;
        }
        if bound.invited {
            let values = (at, Some(true), room.0, user.0);
            tokio::try_join!(
                database.write("set_invited", &statements.set_invited, values),
                database.write("put_invite", &statements.put_invite, (user.0, room.0, at)),
            )?;
        }
        Ok(())
    }

    async fn load_events(&self, room: RoomId, floor: Floor, events: &[RoomEvent]) -> Result<()> {
        let Some(last) = events.last() else {
            return Ok(());
        };
        let mut writes = Vec::with_capacity(events.len() * 3);
        let mut projected = Vec::with_capacity(events.len());
        let mut wrote = Wrote::new();
        for event in events {
            if event.room != room {
                return Err(Error::defect("an event of another room was loaded"));
            }
            // What an event changes may be gone, and so is everything that is told of it.
            if event.target().is_some_and(|target| target < floor.first) {
                self.write_own_row(event, LOADED, &mut writes)?;
                continue;
            }
            self.write_rows(event, LOADED, &mut writes)?;
            self.write_index(event, LOADED, &mut writes);
            projected.push(event);
            note_sender(&mut wrote, event);
        }
        some_at_a_time(writes).await?;
        self.mark_loaded_members(room, events).await?;
        self.project(&projected).await?;
        self.marks.write_all(room, &wrote).await?;
        // Everything up to here is there, so that the first owner begins to look here.
        self.heads.put(room, last.sequence).await
    }

    /// Marks where those joined whose membership was loaded before the event that made it.
    async fn mark_loaded_members(&self, room: RoomId, events: &[RoomEvent]) -> Result<()> {
        let joins: HashMap<UserId, &RoomEvent> = events
            .iter()
            .filter_map(|event| match event.body {
                EventBody::Joined { user, .. } => Some((user, event)),
                _ => None,
            })
            .collect();
        let mut writes: Vec<BoxFuture<'_, Result<()>>> = Vec::new();
        for (user, event) in joins {
            writes.push(Box::pin(async move {
                let stored = self
                    .database
                    .row::<(i64, CqlTimestamp)>(
                        "read_member",
                        &self.statements.member,
                        (room.0, user.0),
                    )
                    .await?;
                if stored.is_none_or(|(_, joined_at)| Timestamp(joined_at.0) != event.time) {
                    return Ok(());
                }
                let mark = ReadMark {
                    sequence: event.sequence,
                    messages: event.messages_before,
                    time: event.time,
                };
                self.mark_joined(user, room, mark).await
            }));
        }
        some_at_a_time(writes).await.map(drop)
    }

    async fn mark_joined(&self, user: UserId, room: RoomId, mark: ReadMark) -> Result<()> {
        self.database
            .write(
                "mark_joined",
                &self.statements.mark_read,
                mark_values(user, room, mark),
            )
            .await
    }
}
