//! Members by room and rooms by user, as the log's joins and leaves say; restrictions and invitations; a room's name and rules, and
//! that it was deleted; deleted messages and mentions, for counts; and for who joined, a read mark at that place, since what was
//! said before they came isn't unread.
//!
//! Only for events that stand: a projection of a void event could never be taken back.

use std::collections::BTreeMap;

use carillon_domain::{
    Error, Result, RoomId, Sequence, Timestamp, UserId,
    event::{EventBody, Mentions, RoomEvent},
    ports::ReadMark,
    room::{Role, RoomRules},
};
use futures::future::BoxFuture;
use scylla::value::CqlTimestamp;

use super::{
    super::rooms::{EVERYBODY, mark_values, public_shard},
    Inner, cql_time, signed, some_at_a_time, unsigned,
};

/// A membership after some events.
#[derive(Clone, Copy)]
struct Membership {
    /// The event that made it so.
    at: Sequence,
    /// Role and time of joining; `None` when they left.
    member: Option<(Role, Timestamp)>,
    /// Where they joined, if that is among the events.
    joined: Option<ReadMark>,
}

impl Inner {
    /// Projects events, ascending per room. Doing it again changes nothing.
    pub(super) async fn project(&self, events: &[&RoomEvent]) -> Result<()> {
        let mut writes: Vec<BoxFuture<'_, Result<()>>> = Vec::new();
        let mut by_member: BTreeMap<(RoomId, UserId), Vec<&RoomEvent>> = BTreeMap::new();
        for event in events {
            match &event.body {
                EventBody::Joined { user, .. }
                | EventBody::Left { user, .. }
                | EventBody::Banned { user } => {
                    by_member
                        .entry((event.room, *user))
                        .or_default()
                        .push(event);
                }
                EventBody::RoomDeleted => {
                    writes.push(Box::pin(self.project_deletion(event.room, event.time)));
                }
                EventBody::Changed {
                    name,
                    description,
                    rules,
                } => {
                    writes.push(Box::pin(self.project_profile(
                        event,
                        name,
                        description,
                        *rules,
                    )));
                }
                EventBody::Message { mentions, .. } => {
                    self.project_mentions(event, mentions, &mut writes);
                }
                EventBody::Deleted { target, .. } => {
                    writes.push(Box::pin(self.database.write(
                        "put_deleted",
                        &self.statements.put_deleted,
                        (event.room.0, signed(target.0)),
                    )));
                }
                EventBody::Edited { .. }
                | EventBody::Invited { .. }
                | EventBody::Unbanned { .. }
                | EventBody::Muted { .. }
                | EventBody::Unmuted { .. } => {}
            }
            if let Some(user) = event.body.concerns() {
                self.project_restrictions(event, user, &mut writes);
            }
        }
        for ((room, user), events) in by_member {
            writes.push(Box::pin(self.project_member(room, user, events)));
        }
        some_at_a_time(writes).await.map(drop)
    }

    /// Each in whatever order and again: every column has the timestamp of the event that set it.
    fn project_restrictions<'a>(
        &'a self,
        event: &RoomEvent,
        user: UserId,
        writes: &mut Vec<BoxFuture<'a, Result<()>>>,
    ) {
        let (room, at) = (event.room.0, signed(event.sequence.0));
        let (database, statements) = (&self.database, &self.statements);
        let banned = match event.body {
            EventBody::Banned { .. } => Some(Some(true)),
            EventBody::Unbanned { .. } => Some(None),
            _ => None,
        };
        if let Some(banned) = banned {
            let values = (at, banned, room, user.0);
            writes.push(Box::pin(database.write(
                "set_banned",
                &statements.set_banned,
                values,
            )));
        }
        let muted = match event.body {
            EventBody::Muted { until, .. } => Some(Some(cql_time(until))),
            EventBody::Unmuted { .. } => Some(None),
            _ => None,
        };
        if let Some(until) = muted {
            let values = (at, until, room, user.0);
            writes.push(Box::pin(database.write(
                "set_muted",
                &statements.set_muted,
                values,
            )));
        }
        let invited = match event.body {
            EventBody::Invited { .. } => true,
            EventBody::Joined { .. } | EventBody::Left { .. } | EventBody::Banned { .. } => false,
            _ => return,
        };
        // Nothing instead of "no", so that a row without any restriction isn't there.
        let values = (at, invited.then_some(true), room, user.0);
        writes.push(Box::pin(database.write(
            "set_invited",
            &statements.set_invited,
            values,
        )));
        writes.push(if invited {
            let values = (user.0, room, at);
            Box::pin(database.write("put_invite", &statements.put_invite, values))
        } else {
            let values = (at, user.0, room);
            Box::pin(database.write("drop_invite", &statements.drop_invite, values))
        });
    }

    fn project_mentions<'a>(
        &'a self,
        event: &RoomEvent,
        mentions: &Mentions,
        writes: &mut Vec<BoxFuture<'a, Result<()>>>,
    ) {
        let users = mentions.users.iter().map(|user| user.0);
        for user in users.chain(mentions.room.then_some(EVERYBODY)) {
            let values = (event.room.0, user, signed(event.sequence.0));
            writes.push(Box::pin(self.database.write(
                "put_mention",
                &self.statements.put_mention,
                values,
            )));
        }
    }

    async fn project_profile(
        &self,
        event: &RoomEvent,
        name: &str,
        description: &str,
        rules: RoomRules,
    ) -> Result<()> {
        // First, so that a room with a retention is always found by who removes what is over.
        if rules.retention_seconds.is_some() {
            let values = (public_shard(event.room), event.room.0);
            self.database
                .write("put_retained", &self.statements.put_retained, values)
                .await?;
        }
        let rules = serde_json::to_string(&rules).map_err(Error::internal)?;
        let at = signed(event.sequence.0);
        let values = (event.room.0, name, description, rules, at);
        self.database
            .write("put_profile", &self.statements.put_profile, values)
            .await
    }

    /// A room is deleted once, by its last event, so that these may run in any order and again.
    async fn project_deletion(&self, room: RoomId, at: Timestamp) -> Result<()> {
        tokio::try_join!(
            self.database.write(
                "mark_room_deleted",
                &self.statements.mark_deleted,
                (cql_time(at), room.0)
            ),
            self.database.write(
                "unlist_room",
                &self.statements.unlist,
                (public_shard(room), room.0)
            ),
        )
        .map(drop)
    }

    async fn project_member(
        &self,
        room: RoomId,
        user: UserId,
        events: Vec<&RoomEvent>,
    ) -> Result<()> {
        let stored = self
            .database
            .row::<(i64, CqlTimestamp)>("read_member", &self.statements.member, (room.0, user.0))
            .await?;
        let (stored_at, joined) = match stored {
            Some((since, joined_at)) => (Sequence(unsigned(since)?), Some(Timestamp(joined_at.0))),
            None => (Sequence::ZERO, None),
        };
        let Some(now) = fold(stored_at, joined, &events) else {
            return Ok(());
        };
        // Before the membership, so that who is a member always has it, whenever this is cut off.
        if let Some(mark) = now.joined {
            self.database
                .write(
                    "mark_joined",
                    &self.statements.mark_read,
                    mark_values(user, room, mark),
                )
                .await?;
        }
        let timestamp = signed(now.at.0);
        match now.member {
            Some((role, joined_at)) => {
                let member = (
                    room.0,
                    user.0,
                    role.as_str(),
                    timestamp,
                    cql_time(joined_at),
                    timestamp,
                );
                let room_of_user = (user.0, room.0, timestamp, timestamp);
                tokio::try_join!(
                    self.database
                        .write("put_member", &self.statements.put_member, member),
                    self.database.write(
                        "put_room_of_user",
                        &self.statements.put_room_of_user,
                        room_of_user
                    ),
                )?;
            }
            None => {
                let member = (timestamp, room.0, user.0);
                let room_of_user = (timestamp, user.0, room.0);
                tokio::try_join!(
                    self.database
                        .write("drop_receipt", &self.statements.drop_receipt, member),
                    self.database
                        .write("drop_member", &self.statements.drop_member, member),
                    self.database.write(
                        "drop_room_of_user",
                        &self.statements.drop_room_of_user,
                        room_of_user
                    ),
                )?;
            }
        }
        Ok(())
    }
}

/// The membership after the events, given the row that is stored (of event `stored_at`, of somebody who joined at `joined`).
/// `None` when the events say nothing new.
fn fold(
    stored_at: Sequence,
    joined: Option<Timestamp>,
    events: &[&RoomEvent],
) -> Option<Membership> {
    let mut joined = joined;
    let mut mark = None;
    let mut now = None;
    // The event of the stored row itself is projected again: its second table may be missing.
    for event in events.iter().filter(|event| event.sequence >= stored_at) {
        let member = match event.body {
            // A change of the role doesn't change when they joined.
            EventBody::Joined { role, .. } => {
                if joined.is_none() {
                    mark = Some(ReadMark {
                        sequence: event.sequence,
                        messages: event.messages_before,
                        time: event.time,
                    });
                }
                Some((role, *joined.get_or_insert(event.time)))
            }
            _ => {
                (joined, mark) = (None, None);
                None
            }
        };
        now = Some(Membership {
            at: event.sequence,
            member,
            joined: mark,
        });
    }
    now
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(sequence: u64, body: EventBody) -> RoomEvent {
        RoomEvent {
            room: RoomId::new(),
            sequence: Sequence(sequence),
            messages_before: 0,
            time: Timestamp(sequence as i64 * 10),
            actor: UserId::new(),
            body,
        }
    }

    fn joined(sequence: u64, role: Role) -> RoomEvent {
        let user = UserId::new();
        event(sequence, EventBody::Joined { user, role })
    }

    fn left(sequence: u64) -> RoomEvent {
        event(sequence, EventBody::left(UserId::new()))
    }

    #[test]
    fn a_new_role_keeps_the_time_of_joining_and_a_leave_forgets_it() {
        let (a, b, c, d) = (
            joined(1, Role::Member),
            joined(2, Role::Admin),
            left(3),
            joined(4, Role::Member),
        );
        let after =
            |events: &[&RoomEvent]| fold(Sequence::ZERO, None, events).and_then(|now| now.member);
        assert_eq!(after(&[&a, &b]), Some((Role::Admin, Timestamp(10))));
        assert_eq!(after(&[&a, &b, &c]), None);
        assert_eq!(
            after(&[&a, &b, &c, &d]),
            Some((Role::Member, Timestamp(40)))
        );
    }

    #[test]
    fn projecting_again_changes_nothing() {
        let (a, b) = (joined(1, Role::Member), joined(2, Role::Admin));
        let again = fold(Sequence(2), Some(Timestamp(10)), &[&a, &b]).unwrap();
        assert_eq!(again.member, Some((Role::Admin, Timestamp(10))));
        assert!(fold(Sequence(3), Some(Timestamp(30)), &[&a, &b]).is_none());
    }
}
