//! Decides what a batch of requests does to the rooms of a partition. Pure: everything it needs was read before, and what it
//! decides becomes true only when the log took the events.

use std::{collections::HashMap, time::Duration};

use carillon_domain::{
    ClientMessageId, Error, ErrorCode, MessageId, Result, RoomId, Sequence, Timestamp, UserId,
    event::{Draft, EventBody, Mentions, Message, RoomEvent, StoredMessage},
    policy::{self, Action, Who},
    room::{Member, Restrictions, Role, Room, RoomKind, Standing},
    services::{Restriction, RoomChange, SendOutcome},
    validate,
};

/// What somebody wants.
#[derive(Clone, Debug)]
pub enum Intent {
    /// Send a message.
    Send {
        /// It.
        draft: Draft,
        /// Whom it calls.
        mentions: Mentions,
        /// Places of other rooms that the index names for its client message id, and that were found to hold something else.
        void: Vec<(RoomId, Sequence)>,
    },
    /// Give a message other content.
    Edit {
        /// Which.
        id: MessageId,
        /// The new content.
        content: String,
    },
    /// Delete a message.
    Delete {
        /// Which.
        id: MessageId,
    },
    /// Become a member. The creator of an empty room becomes its owner; in an empty direct room both people join.
    Join,
    /// Stop being a member.
    Leave,
    /// Stop being a member, or invited, because the account was erased.
    Erase,
    /// Add a person or change their role.
    PutMember {
        /// Whom.
        user: UserId,
        /// As what.
        role: Role,
    },
    /// Remove a person.
    RemoveMember {
        /// Whom.
        user: UserId,
    },
    /// Ask a person to join.
    Invite {
        /// Whom.
        user: UserId,
    },
    /// Ban or mute a person, or end that.
    Restrict {
        /// Whom.
        user: UserId,
        /// How.
        restriction: Restriction,
    },
    /// Give the room another name, description or rules.
    Change(RoomChange),
    /// Delete the room.
    DeleteRoom,
}

/// What a request came to.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Of [`Intent::Send`].
    Sent(SendOutcome),
    /// Of [`Intent::Send`], undecided: the client message id may stand at these places of other rooms. Their owners know; the
    /// sender's request asks them and comes again, since a partition's task must not wait for another one.
    Unsettled(Vec<(RoomId, Sequence)>),
    /// Of [`Intent::Edit`] and [`Intent::Delete`]: the message now.
    Message(Message),
    /// Of [`Intent::Join`]: the place of the event that made it so.
    Joined(Sequence),
    /// Of [`Intent::PutMember`].
    Member(Member),
    /// Of the rest.
    Done,
}

/// What the store knew of a client message id before this batch.
#[derive(Clone, Debug)]
pub enum Earlier {
    /// Sent to this room before.
    Here(StoredMessage),
    /// Perhaps sent to other rooms before, at these places.
    Unsettled(Vec<(RoomId, Sequence)>),
}

/// What was read for the batch.
#[derive(Default)]
pub struct Facts {
    /// Earlier sends by client message id, for the room that asks.
    pub sent: HashMap<(RoomId, UserId, ClientMessageId), Earlier>,
    /// Sends that this batch decided: over all of its rooms, since a client message id means one message of its sender.
    pub decided: HashMap<(UserId, ClientMessageId), (RoomId, Draft, Message)>,
    /// Messages to be changed; absent if there are none such in the room.
    pub targets: HashMap<(RoomId, MessageId), StoredMessage>,
    /// How far anybody but the actor has read the room: for rooms whose messages can be changed only until then.
    pub read_by_others: HashMap<(RoomId, UserId), Sequence>,
}

/// A room while a batch is decided: its committed state, and what the batch did so far.
pub struct Work {
    room: Room,
    head: Sequence,
    messages: u64,
    deleted: bool,
    people: HashMap<UserId, Standing>,
    blocked: bool,
}

/// The rules that options set.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How long after sending a message its sender may edit or delete it, in rooms that don't say (MSG-08).
    pub edit_window: Duration,
}

/// What a request does.
#[derive(Debug)]
pub struct Decision {
    /// Its events; none if it changes nothing.
    pub events: Vec<RoomEvent>,
    /// The answer, once the events are committed.
    pub outcome: Outcome,
}

impl Decision {
    fn nothing(outcome: Outcome) -> Self {
        Self {
            events: Vec::new(),
            outcome,
        }
    }
}

impl Work {
    /// From a room's committed state. `people` must hold every person whom a request of the batch names or comes from; `blocked`
    /// says whether one of the two people of a direct room blocked the other.
    pub fn new(
        room: Room,
        head: Sequence,
        messages: u64,
        deleted: bool,
        people: HashMap<UserId, Standing>,
        blocked: bool,
    ) -> Self {
        Self {
            room,
            head,
            messages,
            deleted,
            people,
            blocked,
        }
    }

    fn standing(&self, user: UserId) -> Standing {
        self.people.get(&user).copied().unwrap_or_default()
    }

    fn member(&self, user: UserId) -> Option<Member> {
        self.standing(user).member
    }

    fn role(&self, user: UserId) -> Option<Role> {
        self.member(user).map(|member| member.role)
    }

    fn restrictions(&self, user: UserId) -> Restrictions {
        self.standing(user).restrictions
    }

    fn who(&self, user: UserId, now: Timestamp) -> Who {
        Who {
            blocked: self.blocked,
            ..Who::of(&self.standing(user), now)
        }
    }

    fn require(&self, actor: UserId, now: Timestamp, action: Action) -> Result<()> {
        if self.deleted {
            return Err(Error::not_found("room"));
        }
        policy::require(self.room.kind, self.who(actor, now), action)
    }

    fn event(&mut self, actor: UserId, now: Timestamp, body: EventBody) -> RoomEvent {
        let event = RoomEvent {
            room: self.room.id,
            sequence: self.head.next(),
            messages_before: self.messages,
            time: now,
            actor,
            body,
        };
        self.head = event.sequence;
        self.messages = event.messages_after();
        if let Some(user) = event.body.concerns() {
            let standing = self.people.entry(user).or_default();
            *standing = after(*standing, &event);
        }
        match &event.body {
            EventBody::RoomDeleted => self.deleted = true,
            EventBody::Changed {
                name,
                description,
                rules,
            } => {
                self.room.name.clone_from(name);
                self.room.description.clone_from(description);
                self.room.rules = *rules;
            }
            _ => {}
        }
        event
    }
}

/// A person's standing after an event that concerns them.
pub fn after(before: Standing, event: &RoomEvent) -> Standing {
    let Standing {
        mut member,
        mut restrictions,
    } = before;
    match event.body {
        EventBody::Joined { user, role } => {
            // A change of the role doesn't change when they joined.
            let joined_at = member.map_or(event.time, |member| member.joined_at);
            member = Some(Member {
                user,
                role,
                since: event.sequence,
                joined_at,
            });
            restrictions.invited = false;
        }
        EventBody::Left { .. } => {
            member = None;
            restrictions.invited = false;
        }
        EventBody::Invited { .. } => restrictions.invited = true,
        EventBody::Banned { .. } => {
            member = None;
            restrictions.invited = false;
            restrictions.banned = true;
        }
        EventBody::Unbanned { .. } => restrictions.banned = false,
        EventBody::Muted { until, .. } => restrictions.muted_until = Some(until),
        EventBody::Unmuted { .. } => restrictions.muted_until = None,
        EventBody::Message { .. }
        | EventBody::Edited { .. }
        | EventBody::Deleted { .. }
        | EventBody::Changed { .. }
        | EventBody::RoomDeleted => {}
    }
    Standing {
        member,
        restrictions,
    }
}

/// Decides one request, after those before it in the batch. `new_id` is the id that a new message gets.
pub fn decide(
    work: &mut Work,
    facts: &mut Facts,
    rules: Rules,
    actor: UserId,
    intent: &Intent,
    now: Timestamp,
    new_id: MessageId,
) -> Result<Decision> {
    match intent {
        Intent::Send {
            draft, mentions, ..
        } => send(work, facts, actor, (draft, mentions), now, new_id),
        Intent::Edit { id, content } => edit(work, facts, rules, actor, *id, content, now),
        Intent::Delete { id } => delete(work, facts, rules, actor, *id, now),
        Intent::Join => join(work, actor, now),
        Intent::Leave => leave(work, actor, now),
        Intent::Erase => Ok(erase(work, actor, now)),
        Intent::PutMember { user, role } => put_member(work, actor, *user, *role, now),
        Intent::RemoveMember { user } => remove_member(work, actor, *user, now),
        Intent::Invite { user } => invite(work, actor, *user, now),
        Intent::Restrict { user, restriction } => restrict(work, actor, *user, *restriction, now),
        Intent::Change(change) => change_room(work, actor, change, now),
        Intent::DeleteRoom => {
            // A repeat of a deletion that succeeded: the creator may still ask, everybody else learns nothing.
            if work.deleted && work.role(actor) == Some(Role::Owner) {
                return Ok(Decision::nothing(Outcome::Done));
            }
            work.require(actor, now, Action::DeleteRoom)?;
            let event = work.event(actor, now, EventBody::RoomDeleted);
            Ok(Decision {
                events: vec![event],
                outcome: Outcome::Done,
            })
        }
    }
}

fn send(
    work: &mut Work,
    facts: &mut Facts,
    actor: UserId,
    (draft, mentions): (&Draft, &Mentions),
    now: Timestamp,
    id: MessageId,
) -> Result<Decision> {
    let key = (actor, draft.client_message_id.clone());
    let room = work.room.id;
    // A repeat gets its first result even if the sender may not send any more: the message is there.
    match facts.sent.get(&(room, actor, key.1.clone())) {
        Some(Earlier::Here(stored)) => {
            let EventBody::Message { draft: first, .. } = &stored.sent.body else {
                return Err(Error::defect(
                    "an idempotency entry points at an event that is no message",
                ));
            };
            let message = stored
                .fold()
                .ok_or_else(|| Error::defect("a message does not fold"))?;
            return if first == draft {
                Ok(repeat(message))
            } else {
                Err(other_content())
            };
        }
        Some(Earlier::Unsettled(places)) => {
            return Ok(Decision::nothing(Outcome::Unsettled(places.clone())));
        }
        None => {}
    }
    if let Some((first_room, first, message)) = facts.decided.get(&key) {
        return if *first_room == room && first == draft {
            Ok(repeat(message.clone()))
        } else {
            Err(other_content())
        };
    }
    work.require(actor, now, Action::Send)?;
    let event = work.event(
        actor,
        now,
        EventBody::Message {
            id,
            draft: draft.clone(),
            mentions: mentions.clone(),
        },
    );
    let stored = StoredMessage {
        sent: event.clone(),
        changes: Vec::new(),
    };
    let message = stored
        .fold()
        .ok_or_else(|| Error::defect("a message does not fold"))?;
    facts
        .decided
        .insert(key, (room, draft.clone(), message.clone()));
    Ok(Decision {
        events: vec![event],
        outcome: Outcome::Sent(SendOutcome {
            message,
            duplicate: false,
        }),
    })
}

fn repeat(message: Message) -> Decision {
    Decision::nothing(Outcome::Sent(SendOutcome {
        message,
        duplicate: true,
    }))
}

/// The answer to a client message id that is another message's.
pub fn other_content() -> Error {
    Error::new(
        ErrorCode::IdempotencyConflict,
        "this client message id was used for another message; use a new one",
    )
    .with_field(
        "client_message_id",
        "was used with other content or in another room",
    )
}

/// The message as this batch left it so far.
fn target(work: &Work, facts: &Facts, id: MessageId) -> Result<(StoredMessage, Message)> {
    let stored = facts
        .targets
        .get(&(work.room.id, id))
        .ok_or_else(|| Error::not_found("message"))?;
    let message = stored.fold().ok_or_else(|| Error::not_found("message"))?;
    Ok((stored.clone(), message))
}

/// Whether its sender may still change a message, by the rules of its room (MSG-08).
fn still_open(
    work: &Work,
    facts: &Facts,
    rules: Rules,
    message: &Message,
    now: Timestamp,
) -> Result<()> {
    let window = work
        .room
        .rules
        .edit_window_seconds
        .map_or(rules.edit_window, |seconds| {
            Duration::from_secs(seconds.into())
        });
    if now.since(message.time) > window {
        return Err(Error::new(
            ErrorCode::FailedPrecondition,
            format!(
                "a message can be changed for {} seconds after it was sent",
                window.as_secs()
            ),
        ));
    }
    let read = facts
        .read_by_others
        .get(&(work.room.id, message.sender))
        .is_some_and(|read| *read >= message.sequence);
    if work.room.rules.edit_unread_only && read {
        return Err(Error::new(
            ErrorCode::FailedPrecondition,
            "a message of this room can be changed until somebody has read it",
        ));
    }
    Ok(())
}

fn change(
    work: &mut Work,
    facts: &mut Facts,
    mut stored: StoredMessage,
    actor: UserId,
    now: Timestamp,
    body: EventBody,
) -> Result<Decision> {
    let event = work.event(actor, now, body);
    stored.changes.push(event.clone());
    let message = stored
        .fold()
        .ok_or_else(|| Error::defect("a message does not fold"))?;
    facts.targets.insert((work.room.id, message.id), stored);
    Ok(Decision {
        events: vec![event],
        outcome: Outcome::Message(message),
    })
}

fn edit(
    work: &mut Work,
    facts: &mut Facts,
    rules: Rules,
    actor: UserId,
    id: MessageId,
    content: &str,
    now: Timestamp,
) -> Result<Decision> {
    work.require(actor, now, Action::Read)?;
    let (stored, message) = target(work, facts, id)?;
    work.require(
        actor,
        now,
        Action::EditMessage {
            own: message.sender == actor,
        },
    )?;
    if message.deleted_at.is_some() {
        return Err(Error::new(
            ErrorCode::FailedPrecondition,
            "the message was deleted",
        ));
    }
    let mut problems = validate::Problems::default();
    validate::content(&mut problems, message.message_type, content);
    problems.into_result()?;
    if message.content == content {
        return Ok(Decision::nothing(Outcome::Message(message)));
    }
    still_open(work, facts, rules, &message, now)?;
    let body = EventBody::Edited {
        id,
        target: message.sequence,
        content: content.to_owned(),
    };
    change(work, facts, stored, actor, now, body)
}

fn delete(
    work: &mut Work,
    facts: &mut Facts,
    rules: Rules,
    actor: UserId,
    id: MessageId,
    now: Timestamp,
) -> Result<Decision> {
    work.require(actor, now, Action::Read)?;
    let (stored, message) = target(work, facts, id)?;
    let own = message.sender == actor;
    work.require(actor, now, Action::DeleteMessage { own })?;
    if message.deleted_at.is_some() {
        return Ok(Decision::nothing(Outcome::Message(message)));
    }
    // Moderators may always remove a message; its sender only within the window.
    if !policy::allows(
        work.room.kind,
        work.who(actor, now),
        Action::DeleteMessage { own: false },
    ) {
        still_open(work, facts, rules, &message, now)?;
    }
    change(
        work,
        facts,
        stored,
        actor,
        now,
        EventBody::Deleted {
            id,
            target: message.sequence,
        },
    )
}

fn join(work: &mut Work, actor: UserId, now: Timestamp) -> Result<Decision> {
    if let (Some(member), false) = (work.member(actor), work.deleted) {
        return Ok(Decision::nothing(Outcome::Joined(member.since)));
    }
    let creator = work.room.created_by;
    let opening: Vec<(UserId, UserId, Role)> = match work.room.pair {
        _ if work.deleted => return Err(Error::not_found("room")),
        Some(pair) if pair.contains(&actor) => pair
            .into_iter()
            .filter(|user| work.member(*user).is_none())
            .map(|user| (actor, user, Role::Member))
            .collect(),
        None if work.head == Sequence::ZERO && creator == actor => {
            vec![(actor, actor, Role::Owner)]
        }
        _ => {
            work.require(actor, now, Action::Join)?;
            let mut opening = vec![(actor, actor, Role::Member)];
            // Listed rooms are found before their creator has joined (or never did, in a crash): whoever comes first, the
            // creator owns the room, since in a channel nobody else could ever do anything.
            if work.head == Sequence::ZERO {
                opening.insert(0, (creator, creator, Role::Owner));
            }
            opening
        }
    };
    let events: Vec<_> = opening
        .into_iter()
        .map(|(by, user, role)| work.event(by, now, EventBody::Joined { user, role }))
        .collect();
    let place = work.member(actor).map_or(work.head, |member| member.since);
    Ok(Decision {
        events,
        outcome: Outcome::Joined(place),
    })
}

fn leave(work: &mut Work, actor: UserId, now: Timestamp) -> Result<Decision> {
    let standing = work.standing(actor);
    if standing.member.is_none() && !standing.restrictions.invited && !work.deleted {
        work.require(actor, now, Action::Read)?;
        return Ok(Decision::nothing(Outcome::Done));
    }
    work.require(actor, now, Action::Leave)?;
    Ok(one(
        work.event(actor, now, EventBody::left(actor)),
        Outcome::Done,
    ))
}

/// Nobody has to allow it, and no rule keeps somebody in.
fn erase(work: &mut Work, actor: UserId, now: Timestamp) -> Decision {
    let standing = work.standing(actor);
    let there = standing.member.is_some() || standing.restrictions.invited;
    if work.deleted || !there {
        return Decision::nothing(Outcome::Done);
    }
    let left = EventBody::Left {
        user: actor,
        erased: true,
    };
    one(work.event(actor, now, left), Outcome::Done)
}

fn one(event: RoomEvent, outcome: Outcome) -> Decision {
    Decision {
        events: vec![event],
        outcome,
    }
}

/// Who is banned must be let back first, by whoever may do that.
fn not_banned(work: &Work, user: UserId) -> Result<()> {
    if work.restrictions(user).banned {
        return Err(Error::new(
            ErrorCode::FailedPrecondition,
            "this person is banned from the room: end the ban first",
        ));
    }
    Ok(())
}

fn put_member(
    work: &mut Work,
    actor: UserId,
    user: UserId,
    role: Role,
    now: Timestamp,
) -> Result<Decision> {
    let present = work.member(user);
    match present {
        Some(member) if member.role == role => {
            work.require(actor, now, Action::Read)?;
            return Ok(Decision::nothing(Outcome::Member(member)));
        }
        None if role == Role::Member => work.require(actor, now, Action::AddMember)?,
        _ => {
            let from = present.map(|member| member.role);
            work.require(actor, now, Action::SetRole { from, to: role })?;
        }
    }
    not_banned(work, user)?;
    let event = work.event(actor, now, EventBody::Joined { user, role });
    let member = work
        .member(user)
        .ok_or_else(|| Error::defect("who was added is no member"))?;
    Ok(one(event, Outcome::Member(member)))
}

fn remove_member(work: &mut Work, actor: UserId, user: UserId, now: Timestamp) -> Result<Decision> {
    if user == actor {
        return leave(work, actor, now);
    }
    let standing = work.standing(user);
    let role = standing.member.map(|member| member.role);
    if role.is_none() && !standing.restrictions.invited {
        work.require(actor, now, Action::Read)?;
        return Ok(Decision::nothing(Outcome::Done));
    }
    work.require(actor, now, Action::RemoveMember { role })?;
    Ok(one(
        work.event(actor, now, EventBody::left(user)),
        Outcome::Done,
    ))
}

fn invite(work: &mut Work, actor: UserId, user: UserId, now: Timestamp) -> Result<Decision> {
    work.require(actor, now, Action::AddMember)?;
    not_banned(work, user)?;
    let standing = work.standing(user);
    if standing.member.is_some() || standing.restrictions.invited {
        return Ok(Decision::nothing(Outcome::Done));
    }
    Ok(one(
        work.event(actor, now, EventBody::Invited { user }),
        Outcome::Done,
    ))
}

fn restrict(
    work: &mut Work,
    actor: UserId,
    user: UserId,
    restriction: Restriction,
    now: Timestamp,
) -> Result<Decision> {
    let role = work.role(user);
    work.require(actor, now, Action::Restrict { role })?;
    let present = work.restrictions(user);
    let muted_until = present.muted_until.filter(|_| present.is_muted(now));
    let body = match restriction {
        Restriction::Ban if !present.banned => Some(EventBody::Banned { user }),
        Restriction::Unban if present.banned => Some(EventBody::Unbanned { user }),
        Restriction::Mute { until } => {
            let until = until.map_or(Restrictions::FOR_GOOD, |until| {
                until.min(Restrictions::FOR_GOOD)
            });
            if until <= now {
                return Err(Error::invalid("until", "a time in the future"));
            }
            (muted_until != Some(until)).then_some(EventBody::Muted { user, until })
        }
        Restriction::Unmute if muted_until.is_some() => Some(EventBody::Unmuted { user }),
        Restriction::Ban | Restriction::Unban | Restriction::Unmute => None,
    };
    Ok(match body {
        Some(body) => one(work.event(actor, now, body), Outcome::Done),
        None => Decision::nothing(Outcome::Done),
    })
}

fn change_room(
    work: &mut Work,
    actor: UserId,
    change: &RoomChange,
    now: Timestamp,
) -> Result<Decision> {
    work.require(actor, now, Action::Change)?;
    let room = &work.room;
    if room.kind == RoomKind::Direct && (change.name.is_some() || change.description.is_some()) {
        return Err(Error::invalid(
            "name",
            "direct rooms have no name and no description",
        ));
    }
    let name = change.name.clone().unwrap_or_else(|| room.name.clone());
    let description = change
        .description
        .clone()
        .unwrap_or_else(|| room.description.clone());
    let rules = change.rules.unwrap_or(room.rules);
    if (&name, &description, rules) == (&room.name, &room.description, room.rules) {
        return Ok(Decision::nothing(Outcome::Done));
    }
    let body = EventBody::Changed {
        name,
        description,
        rules,
    };
    Ok(one(work.event(actor, now, body), Outcome::Done))
}

/// The people whom a request is about, besides the actor: their standing must be known before it is decided.
pub fn people(room: &Room, actor: UserId, intent: &Intent) -> Vec<UserId> {
    let mut people = vec![actor];
    match intent {
        Intent::PutMember { user, .. }
        | Intent::RemoveMember { user }
        | Intent::Invite { user }
        | Intent::Restrict { user, .. } => people.push(*user),
        Intent::Join => people.extend(room.pair.into_iter().flatten()),
        _ => {}
    }
    people
}

#[cfg(test)]
mod tests {
    use carillon_domain::{
        event::MessageType,
        room::{RoomKind, RoomRules},
    };

    use super::*;

    const RULES: Rules = Rules {
        edit_window: Duration::from_secs(180),
    };

    fn room(kind: RoomKind, owner: UserId) -> Work {
        let room = Room {
            id: RoomId::new(),
            kind,
            name: "r".into(),
            description: String::new(),
            created_by: owner,
            created_at: Timestamp(0),
            pair: None,
            deleted_at: None,
            rules: RoomRules::default(),
        };
        Work::new(room, Sequence::ZERO, 0, false, HashMap::new(), false)
    }

    fn draft(id: &str, content: &str) -> Intent {
        Intent::Send {
            draft: Draft {
                client_message_id: ClientMessageId(id.into()),
                message_type: MessageType::Text,
                content: content.into(),
                reply_to: None,
            },
            mentions: Mentions::default(),
            void: Vec::new(),
        }
    }

    fn run(
        work: &mut Work,
        facts: &mut Facts,
        actor: UserId,
        intent: &Intent,
        at: i64,
    ) -> Result<Decision> {
        decide(
            work,
            facts,
            RULES,
            actor,
            intent,
            Timestamp(at),
            MessageId::new(),
        )
    }

    fn commit(facts: &mut Facts, work: &Work, decision: &Decision) {
        for event in &decision.events {
            if let EventBody::Message { id, .. } = event.body {
                facts.targets.insert(
                    (work.room.id, id),
                    StoredMessage {
                        sent: event.clone(),
                        changes: vec![],
                    },
                );
            }
        }
    }

    /// MSG-20: sequence numbers are dense from 1, and messages are counted.
    #[test]
    fn places_are_dense_from_one() {
        let ann = UserId::new();
        let (mut work, mut facts) = (room(RoomKind::Private, ann), Facts::default());
        let mut events = run(&mut work, &mut facts, ann, &Intent::Join, 0)
            .unwrap()
            .events;
        for n in 0..5 {
            events.extend(
                run(
                    &mut work,
                    &mut facts,
                    ann,
                    &draft(&format!("c{n}"), "hi"),
                    0,
                )
                .unwrap()
                .events,
            );
        }
        let places: Vec<u64> = events.iter().map(|e| e.sequence.0).collect();
        assert_eq!(places, [1, 2, 3, 4, 5, 6]);
        let before: Vec<u64> = events.iter().map(|e| e.messages_before).collect();
        assert_eq!(before, [0, 0, 1, 2, 3, 4]);
    }

    /// MSG-19: a repeat within one batch has the first result and no event; other content is refused.
    #[test]
    fn repeats_in_a_batch() {
        let ann = UserId::new();
        let (mut work, mut facts) = (room(RoomKind::Public, ann), Facts::default());
        run(&mut work, &mut facts, ann, &Intent::Join, 0).unwrap();
        let first = run(&mut work, &mut facts, ann, &draft("c1", "hi"), 0).unwrap();
        let again = run(&mut work, &mut facts, ann, &draft("c1", "hi"), 5).unwrap();
        assert!(again.events.is_empty());
        let (Outcome::Sent(first), Outcome::Sent(again)) = (first.outcome, again.outcome) else {
            panic!()
        };
        assert_eq!(first.message, again.message);
        assert!(again.duplicate && !first.duplicate);
        let other = run(&mut work, &mut facts, ann, &draft("c1", "ho"), 5).unwrap_err();
        assert_eq!(other.code, ErrorCode::IdempotencyConflict);
    }

    /// MSG-08: only the sender edits, only within the window, never after a delete.
    #[test]
    fn editing() {
        let (ann, bob) = (UserId::new(), UserId::new());
        let (mut work, mut facts) = (room(RoomKind::Public, ann), Facts::default());
        run(&mut work, &mut facts, ann, &Intent::Join, 0).unwrap();
        run(&mut work, &mut facts, bob, &Intent::Join, 0).unwrap();
        let sent = run(&mut work, &mut facts, bob, &draft("c1", "hi"), 1000).unwrap();
        commit(&mut facts, &work, &sent);
        let Outcome::Sent(sent) = sent.outcome else {
            panic!()
        };
        let edit = |content: &str| Intent::Edit {
            id: sent.message.id,
            content: content.into(),
        };
        assert_eq!(
            run(&mut work, &mut facts, ann, &edit("x"), 1000)
                .unwrap_err()
                .code,
            ErrorCode::PermissionDenied
        );
        assert_eq!(
            run(&mut work, &mut facts, bob, &edit(""), 1000)
                .unwrap_err()
                .code,
            ErrorCode::InvalidRequest
        );
        let Outcome::Message(edited) = run(&mut work, &mut facts, bob, &edit("ho"), 2000)
            .unwrap()
            .outcome
        else {
            panic!()
        };
        assert_eq!(
            (edited.content.as_str(), edited.edited_at),
            ("ho", Some(Timestamp(2000)))
        );
        assert_eq!(
            run(&mut work, &mut facts, bob, &edit("late"), 182_000)
                .unwrap_err()
                .code,
            ErrorCode::FailedPrecondition
        );
        let delete = Intent::Delete {
            id: sent.message.id,
        };
        assert_eq!(
            run(&mut work, &mut facts, bob, &delete, 182_000)
                .unwrap_err()
                .code,
            ErrorCode::FailedPrecondition
        );
        // The room's owner moderates at any time.
        let Outcome::Message(gone) = run(&mut work, &mut facts, ann, &delete, 182_000)
            .unwrap()
            .outcome
        else {
            panic!()
        };
        assert_eq!(gone.content, "");
        assert_eq!(
            run(&mut work, &mut facts, bob, &edit("again"), 2000)
                .unwrap_err()
                .code,
            ErrorCode::FailedPrecondition
        );
        assert!(
            run(&mut work, &mut facts, ann, &delete, 182_000)
                .unwrap()
                .events
                .is_empty(),
            "a repeated delete changes nothing"
        );
    }

    /// MSG-02: the first of two people to open a direct room brings both in, once.
    #[test]
    fn a_direct_room_has_both_people_at_once() {
        let mut pair = [UserId::new(), UserId::new()];
        pair.sort();
        let (mut work, mut facts) = (room(RoomKind::Direct, pair[0]), Facts::default());
        work.room.pair = Some(pair);
        assert_eq!(
            run(&mut work, &mut facts, pair[1], &Intent::Join, 0)
                .unwrap()
                .events
                .len(),
            2
        );
        assert_eq!(
            run(&mut work, &mut facts, pair[0], &Intent::Join, 0)
                .unwrap()
                .events
                .len(),
            0
        );
        let stranger = run(&mut work, &mut facts, UserId::new(), &Intent::Join, 0).unwrap_err();
        assert_eq!(
            stranger.code,
            ErrorCode::NotFound,
            "a stranger doesn't learn that the room exists"
        );
    }

    /// MSG-01: a private room can't be joined, written or read by a stranger, and doesn't show that it is there.
    #[test]
    fn strangers_to_a_private_room() {
        let (ann, eve) = (UserId::new(), UserId::new());
        let (mut work, mut facts) = (room(RoomKind::Private, ann), Facts::default());
        run(&mut work, &mut facts, ann, &Intent::Join, 0).unwrap();
        for intent in [
            Intent::Join,
            Intent::Leave,
            draft("c", "hi"),
            Intent::DeleteRoom,
            Intent::RemoveMember { user: ann },
        ] {
            assert_eq!(
                run(&mut work, &mut facts, eve, &intent, 0)
                    .unwrap_err()
                    .code,
                ErrorCode::NotFound,
                "{intent:?}"
            );
        }
        let put = Intent::PutMember {
            user: eve,
            role: Role::Member,
        };
        assert_eq!(
            run(&mut work, &mut facts, eve, &put, 0).unwrap_err().code,
            ErrorCode::NotFound
        );
        run(&mut work, &mut facts, ann, &put, 0).unwrap();
        assert_eq!(
            run(&mut work, &mut facts, eve, &draft("c", "hi"), 0)
                .unwrap()
                .events
                .len(),
            1
        );
    }

    /// MSG-01: nothing happens in a room after it was deleted.
    #[test]
    fn a_deleted_room_is_gone() {
        let ann = UserId::new();
        let (mut work, mut facts) = (room(RoomKind::Public, ann), Facts::default());
        run(&mut work, &mut facts, ann, &Intent::Join, 0).unwrap();
        run(&mut work, &mut facts, ann, &Intent::DeleteRoom, 0).unwrap();
        assert!(
            run(&mut work, &mut facts, ann, &Intent::DeleteRoom, 0)
                .unwrap()
                .events
                .is_empty()
        );
        for intent in [Intent::Join, draft("c", "hi")] {
            assert_eq!(
                run(&mut work, &mut facts, ann, &intent, 0)
                    .unwrap_err()
                    .code,
                ErrorCode::NotFound
            );
        }
    }

    /// Promise 3, MSG-19: in one batch a client message id of one sender means one message, whatever the room.
    #[test]
    fn one_id_in_two_rooms_of_a_batch() {
        let ann = UserId::new();
        let mut facts = Facts::default();
        let (mut here, mut there) = (room(RoomKind::Public, ann), room(RoomKind::Public, ann));
        for work in [&mut here, &mut there] {
            run(work, &mut facts, ann, &Intent::Join, 0).unwrap();
        }
        let first = run(&mut here, &mut facts, ann, &draft("c1", "hi"), 0).unwrap();
        let other = run(&mut there, &mut facts, ann, &draft("c1", "hi"), 0).unwrap_err();
        assert_eq!(other.code, ErrorCode::IdempotencyConflict);
        let again = run(&mut here, &mut facts, ann, &draft("c1", "hi"), 0).unwrap();
        assert!(matches!(again.outcome, Outcome::Sent(sent) if sent.duplicate));

        // Stored in one room before the batch: that one's repeat is a repeat, and only the other one has to ask.
        let stored = StoredMessage {
            sent: first.events[0].clone(),
            changes: vec![],
        };
        let id = ClientMessageId("c1".into());
        let mut facts = Facts::default();
        let place = (here.room.id, stored.sent.sequence);
        let key = |work: &Work| (work.room.id, ann, id.clone());
        facts.sent.insert(key(&here), Earlier::Here(stored));
        facts
            .sent
            .insert(key(&there), Earlier::Unsettled(vec![place]));
        let asked = run(&mut there, &mut facts, ann, &draft("c1", "hi"), 0).unwrap();
        assert!(matches!(asked.outcome, Outcome::Unsettled(places) if places == [place]));
        let again = run(&mut here, &mut facts, ann, &draft("c1", "hi"), 0).unwrap();
        assert!(again.events.is_empty());
        assert!(matches!(again.outcome, Outcome::Sent(sent) if sent.duplicate));
    }

    /// MSG-03: whoever comes into a listed room first, its creator owns it.
    #[test]
    fn a_listed_room_has_its_creator_as_owner() {
        let (ann, bob) = (UserId::new(), UserId::new());
        for kind in [RoomKind::Public, RoomKind::Channel] {
            let (mut work, mut facts) = (room(kind, ann), Facts::default());
            let joined = run(&mut work, &mut facts, bob, &Intent::Join, 0).unwrap();
            let bodies: Vec<_> = joined.events.iter().map(|e| (e.actor, &e.body)).collect();
            let join = |user, role| EventBody::Joined { user, role };
            let expected = [
                (ann, &join(ann, Role::Owner)),
                (bob, &join(bob, Role::Member)),
            ];
            assert_eq!(bodies, expected);
            assert!(matches!(
                joined.outcome,
                Outcome::Joined(place) if place == Sequence(2)
            ));
            let again = run(&mut work, &mut facts, ann, &Intent::Join, 0).unwrap();
            assert!(again.events.is_empty(), "the creator is in already");
            run(&mut work, &mut facts, ann, &Intent::DeleteRoom, 0).unwrap();
        }
    }

    /// MSG-03: another role answers when somebody joined, not when they got it.
    #[test]
    fn another_role_keeps_the_time_of_joining() {
        let (ann, bob) = (UserId::new(), UserId::new());
        let (mut work, mut facts) = (room(RoomKind::Public, ann), Facts::default());
        run(&mut work, &mut facts, ann, &Intent::Join, 0).unwrap();
        run(&mut work, &mut facts, bob, &Intent::Join, 10).unwrap();
        let put = Intent::PutMember {
            user: bob,
            role: Role::Admin,
        };
        let put = run(&mut work, &mut facts, ann, &put, 99).unwrap();
        let Outcome::Member(member) = put.outcome else {
            panic!()
        };
        assert_eq!(member.role, Role::Admin);
        assert_eq!(member.joined_at, Timestamp(10));
        assert_eq!(member.since, put.events[0].sequence);
    }
}
