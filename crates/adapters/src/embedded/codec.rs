//! Keys and values as bytes. Part of the stored format: a change needs a migration (or a new version byte of the row).
//!
//! Rows that are few are JSON after a version byte. Events, of which there are millions, have a compact form; the golden test
//! at the end holds it still.

use carillon_domain::{
    ClientMessageId, Error, MessageId, Result, RoomId, Sequence, Timestamp, UserId,
    event::{Draft, EventBody, Mentions, MessageType, RoomEvent},
    ports::{Floor, Reached, ReadMark},
    room::{Member, Restrictions, Role},
};
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

/// Version byte of every value with one.
const V1: u8 = 1;

// === keys ===

/// Two ids after each other: their pairs sort by the first.
pub(super) fn pair(a: Uuid, b: Uuid) -> [u8; 32] {
    let mut key = [0; 32];
    key[..16].copy_from_slice(a.as_bytes());
    key[16..].copy_from_slice(b.as_bytes());
    key
}

/// The second id of a [`pair`].
pub(super) fn second_of_pair(key: &[u8]) -> Result<Uuid> {
    key.get(16..32)
        .and_then(|bytes| Uuid::from_slice(bytes).ok())
        .ok_or_else(|| unreadable("a key of two ids"))
}

/// A key in a table with several kinds of rows.
pub(super) fn tagged(tag: u8, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + rest.len());
    key.push(tag);
    key.extend_from_slice(rest);
    key
}

/// The place of an event: its slot is its own sequence, or that of the message that it changes.
pub(super) fn event_key(room: RoomId, slot: Sequence, sequence: Sequence) -> [u8; 32] {
    let mut key = [0; 32];
    key[..16].copy_from_slice(room.0.as_bytes());
    key[16..24].copy_from_slice(&slot.0.to_be_bytes());
    key[24..].copy_from_slice(&sequence.0.to_be_bytes());
    key
}

/// Slot and sequence of an [`event_key`].
pub(super) fn slot_and_sequence(key: &[u8]) -> Result<(Sequence, Sequence)> {
    let slot = key.get(16..24).and_then(number);
    let sequence = key.get(24..32).and_then(number);
    match (slot, sequence) {
        (Some(slot), Some(sequence)) => Ok((Sequence(slot), Sequence(sequence))),
        _ => Err(unreadable("a key of an event")),
    }
}

/// The row of a client message id.
pub(super) fn sent_key(sender: UserId, id: &ClientMessageId) -> Vec<u8> {
    let mut key = Vec::with_capacity(17 + id.0.len());
    key.extend_from_slice(sender.0.as_bytes());
    // The length keeps an id apart from one that it begins.
    key.push(id.0.len() as u8);
    key.extend_from_slice(id.0.as_bytes());
    key
}

/// A tag, some ids, and a place.
pub(super) fn indexed(tag: u8, ids: &[Uuid], sequence: Option<Sequence>) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + 16 * ids.len() + 8);
    key.push(tag);
    for id in ids {
        key.extend_from_slice(id.as_bytes());
    }
    if let Some(sequence) = sequence {
        key.extend_from_slice(&sequence.0.to_be_bytes());
    }
    key
}

/// The place that ends a key.
pub(super) fn last_place(key: &[u8]) -> Result<Sequence> {
    key.last_chunk()
        .map(|bytes| Sequence(u64::from_be_bytes(*bytes)))
        .ok_or_else(|| unreadable("a key with a place"))
}

/// The id that ends a key.
pub(super) fn last_id(key: &[u8]) -> Result<Uuid> {
    key.last_chunk()
        .map(|bytes| Uuid::from_bytes(*bytes))
        .ok_or_else(|| unreadable("a key with an id"))
}

/// Length of a [`place`].
pub(super) const PLACE_BYTES: usize = 24;

/// A room and a place in it.
pub(super) fn place(room: RoomId, sequence: Sequence) -> [u8; PLACE_BYTES] {
    let mut bytes = [0; PLACE_BYTES];
    bytes[..16].copy_from_slice(room.0.as_bytes());
    bytes[16..].copy_from_slice(&sequence.0.to_be_bytes());
    bytes
}

/// The reverse of [`place`].
pub(super) fn read_place(bytes: &[u8]) -> Result<(RoomId, Sequence)> {
    let room = bytes
        .get(..16)
        .and_then(|bytes| Uuid::from_slice(bytes).ok());
    let sequence = bytes.get(16..24).and_then(number);
    match (room, sequence) {
        (Some(room), Some(sequence)) => Ok((RoomId(room), Sequence(sequence))),
        _ => Err(unreadable("a place of a message")),
    }
}

fn number(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_be_bytes)
}

// === values ===

/// A row of which there are few.
pub(super) fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes = vec![V1];
    serde_json::to_writer(&mut bytes, value).map_err(Error::internal)?;
    Ok(bytes)
}

/// The reverse of [`json`].
pub(super) fn read_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    match bytes.split_first() {
        Some((&V1, json)) => serde_json::from_slice(json).map_err(Error::internal),
        _ => Err(unreadable("a row")),
    }
}

/// Numbers after each other.
pub(super) fn numbers<const N: usize>(numbers: [u64; N]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_be_bytes()).collect()
}

/// The reverse of [`numbers`].
pub(super) fn read_numbers<const N: usize>(bytes: &[u8]) -> Result<[u64; N]> {
    let mut numbers = [0; N];
    if bytes.len() != 8 * N {
        return Err(unreadable("a row of numbers"));
    }
    for (number, bytes) in numbers.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *number = u64::from_be_bytes(*bytes);
    }
    Ok(numbers)
}

/// How somebody came to a read mark.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum MarkedBy {
    /// They read, or wrote.
    Reading,
    /// They joined: what was before isn't unread.
    Joining,
}

/// A read mark.
pub(super) fn read_mark(mark: ReadMark, by: MarkedBy) -> Vec<u8> {
    numbers([
        mark.sequence.0,
        mark.messages,
        mark.time.0.cast_unsigned(),
        u64::from(by == MarkedBy::Joining),
    ])
}

/// The reverse of [`read_mark`].
pub(super) fn read_read_mark(bytes: &[u8]) -> Result<(ReadMark, MarkedBy)> {
    let [sequence, messages, time, joined] = read_numbers(bytes)?;
    let mark = ReadMark {
        sequence: Sequence(sequence),
        messages,
        time: Timestamp(time.cast_signed()),
    };
    let by = match joined {
        0 => MarkedBy::Reading,
        _ => MarkedBy::Joining,
    };
    Ok((mark, by))
}

/// How far messages got.
pub(super) fn reached(reached: Reached) -> Vec<u8> {
    numbers([reached.sequence.0, reached.time.0.cast_unsigned()])
}

/// The reverse of [`reached`].
pub(super) fn read_reached(bytes: &[u8]) -> Result<Reached> {
    let [sequence, time] = read_numbers(bytes)?;
    Ok(Reached {
        sequence: Sequence(sequence),
        time: Timestamp(time.cast_signed()),
    })
}

const BANNED: u64 = 1;
const INVITED: u64 = 2;
const MUTED: u64 = 4;

/// What binds a person.
pub(super) fn restrictions(restrictions: Restrictions) -> Vec<u8> {
    let flag = |set: bool, flag: u64| if set { flag } else { 0 };
    numbers([
        flag(restrictions.banned, BANNED)
            | flag(restrictions.invited, INVITED)
            | flag(restrictions.muted_until.is_some(), MUTED),
        restrictions
            .muted_until
            .unwrap_or_default()
            .0
            .cast_unsigned(),
    ])
}

/// The reverse of [`restrictions`].
pub(super) fn read_restrictions(bytes: &[u8]) -> Result<Restrictions> {
    let [flags, until] = read_numbers(bytes)?;
    Ok(Restrictions {
        banned: flags & BANNED != 0,
        invited: flags & INVITED != 0,
        muted_until: (flags & MUTED != 0).then_some(Timestamp(until.cast_signed())),
    })
}

/// A floor, and the first place that isn't purged yet.
pub(super) fn floor(floor: Floor, purged: Sequence) -> Vec<u8> {
    numbers([floor.first.0, floor.messages, purged.0])
}

/// The reverse of [`floor`]; nothing was removed from a room without one.
pub(super) fn read_floor(bytes: Option<&[u8]>) -> Result<(Floor, Sequence)> {
    let Some(bytes) = bytes else {
        return Ok((Floor::default(), Sequence(1)));
    };
    let [first, messages, purged] = read_numbers(bytes)?;
    let floor = Floor {
        first: Sequence(first),
        messages,
    };
    Ok((floor, Sequence(purged)))
}

/// A member, without their id, which is in the key.
pub(super) fn member(member: &Member) -> Vec<u8> {
    numbers([
        u64::from(role_number(member.role)),
        member.since.0,
        member.joined_at.0.cast_unsigned(),
    ])
}

/// The reverse of [`member`].
pub(super) fn read_member(user: UserId, bytes: &[u8]) -> Result<Member> {
    let [role, since, joined_at] = read_numbers(bytes)?;
    Ok(Member {
        user,
        role: u8::try_from(role)
            .ok()
            .and_then(role_of_number)
            .ok_or_else(|| unreadable("a role"))?,
        since: Sequence(since),
        joined_at: Timestamp(joined_at.cast_signed()),
    })
}

// === events ===

const OTHER: u8 = 0;
const MESSAGE: u8 = 1;
const EDITED: u8 = 2;
const DELETED: u8 = 3;
/// A message that calls somebody: as a message, and before its content flags and people.
const CALLING: u8 = 4;

/// An event, without room and sequence, which are in the key.
pub(super) fn event(event: &RoomEvent) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(128);
    bytes.push(V1);
    put_varint(&mut bytes, event.messages_before);
    bytes.extend_from_slice(&event.time.0.to_be_bytes());
    bytes.extend_from_slice(event.actor.0.as_bytes());
    match &event.body {
        EventBody::Message {
            id,
            draft:
                Draft {
                    client_message_id,
                    message_type,
                    content,
                    reply_to,
                },
            mentions,
        } => {
            bytes.push(if mentions.is_empty() {
                MESSAGE
            } else {
                CALLING
            });
            bytes.extend_from_slice(id.0.as_bytes());
            bytes.push(type_number(*message_type));
            put_varint(&mut bytes, client_message_id.0.len() as u64);
            bytes.extend_from_slice(client_message_id.0.as_bytes());
            bytes.push(u8::from(reply_to.is_some()));
            if let Some(reply_to) = reply_to {
                bytes.extend_from_slice(reply_to.0.as_bytes());
            }
            if !mentions.is_empty() {
                bytes.push(u8::from(mentions.room));
                put_varint(&mut bytes, mentions.users.len() as u64);
                for user in &mentions.users {
                    bytes.extend_from_slice(user.0.as_bytes());
                }
            }
            bytes.extend_from_slice(content.as_bytes());
        }
        EventBody::Edited {
            id,
            target,
            content,
        } => {
            bytes.push(EDITED);
            bytes.extend_from_slice(id.0.as_bytes());
            put_varint(&mut bytes, target.0);
            bytes.extend_from_slice(content.as_bytes());
        }
        EventBody::Deleted { id, target } => {
            bytes.push(DELETED);
            bytes.extend_from_slice(id.0.as_bytes());
            put_varint(&mut bytes, target.0);
        }
        // Rare ones.
        other => {
            bytes.push(OTHER);
            serde_json::to_writer(&mut bytes, other).map_err(Error::internal)?;
        }
    }
    Ok(bytes)
}

/// The reverse of [`event`].
pub(super) fn read_event(room: RoomId, sequence: Sequence, bytes: &[u8]) -> Result<RoomEvent> {
    let read = |bytes| {
        let mut reader = Reader(bytes);
        if reader.byte()? != V1 {
            return None;
        }
        let messages_before = reader.varint()?;
        let time = Timestamp(i64::from_be_bytes(reader.take()?));
        let actor = UserId(reader.uuid()?);
        let body = match reader.byte()? {
            kind @ (MESSAGE | CALLING) => {
                let id = MessageId(reader.uuid()?);
                let message_type = type_of_number(reader.byte()?)?;
                let length = usize::try_from(reader.varint()?).ok()?;
                let client_message_id = ClientMessageId(reader.text(length)?);
                let reply_to = match reader.byte()? {
                    0 => None,
                    _ => Some(MessageId(reader.uuid()?)),
                };
                let mut mentions = Mentions::default();
                if kind == CALLING {
                    mentions.room = reader.byte()? != 0;
                    for _ in 0..reader.varint()? {
                        mentions.users.push(UserId(reader.uuid()?));
                    }
                }
                EventBody::Message {
                    id,
                    draft: Draft {
                        client_message_id,
                        message_type,
                        content: reader.rest()?,
                        reply_to,
                    },
                    mentions,
                }
            }
            EDITED => EventBody::Edited {
                id: MessageId(reader.uuid()?),
                target: Sequence(reader.varint()?),
                content: reader.rest()?,
            },
            DELETED => EventBody::Deleted {
                id: MessageId(reader.uuid()?),
                target: Sequence(reader.varint()?),
            },
            OTHER => serde_json::from_slice(reader.0).ok()?,
            _ => return None,
        };
        Some(RoomEvent {
            room,
            sequence,
            messages_before,
            time,
            actor,
            body,
        })
    };
    read(bytes).ok_or_else(|| unreadable("an event"))
}

fn put_varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take().map(|[byte]| byte)
    }

    fn uuid(&mut self) -> Option<Uuid> {
        self.take().map(Uuid::from_bytes)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn text(&mut self, length: usize) -> Option<String> {
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).ok()
    }

    fn rest(&mut self) -> Option<String> {
        self.text(self.0.len())
    }
}

fn type_number(message_type: MessageType) -> u8 {
    match message_type {
        MessageType::Text => 1,
        MessageType::Image => 2,
        MessageType::Video => 3,
        MessageType::Audio => 4,
        MessageType::File => 5,
        MessageType::Location => 6,
        MessageType::System => 7,
    }
}

fn type_of_number(number: u8) -> Option<MessageType> {
    MessageType::ALL
        .into_iter()
        .find(|message_type| type_number(*message_type) == number)
}

fn role_number(role: Role) -> u8 {
    match role {
        Role::Member => 1,
        Role::Moderator => 2,
        Role::Admin => 3,
        Role::Owner => 4,
    }
}

fn role_of_number(number: u8) -> Option<Role> {
    Role::ALL
        .into_iter()
        .find(|role| role_number(*role) == number)
}

fn unreadable(what: &str) -> Error {
    Error::defect(format!("{what} in the embedded store is unreadable"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bodies() -> Vec<EventBody> {
        let id = MessageId(Uuid::from_u128(0x0102));
        let message = |message_type, reply_to| EventBody::Message {
            id,
            draft: Draft {
                client_message_id: ClientMessageId("c-1".into()),
                message_type,
                content: "Zoë 👋".into(),
                reply_to,
            },
            mentions: Mentions::default(),
        };
        let calling = |users: &[UserId], room| match message(MessageType::Text, Some(id)) {
            EventBody::Message { id, draft, .. } => EventBody::Message {
                id,
                draft,
                mentions: Mentions {
                    users: users.to_vec(),
                    room,
                },
            },
            other => other,
        };
        let user = UserId(Uuid::from_u128(7));
        MessageType::ALL
            .into_iter()
            .flat_map(|message_type| [message(message_type, None), message(message_type, Some(id))])
            .chain([
                EventBody::Edited {
                    id,
                    target: Sequence(300),
                    content: String::new(),
                },
                EventBody::Deleted {
                    id,
                    target: Sequence(u64::MAX),
                },
                EventBody::left(user),
                EventBody::Muted {
                    user,
                    until: Timestamp(5),
                },
                EventBody::RoomDeleted,
                calling(&[], true),
                calling(&[user, user], false),
            ])
            .chain(Role::ALL.map(|role| EventBody::Joined { user, role }))
            .collect()
    }

    fn with_body(body: EventBody) -> RoomEvent {
        RoomEvent {
            room: RoomId(Uuid::from_u128(1)),
            sequence: Sequence(200),
            messages_before: 129,
            time: Timestamp(-2),
            actor: UserId(Uuid::from_u128(5)),
            body,
        }
    }

    #[test]
    fn events_read_back() {
        for body in bodies() {
            let expected = with_body(body);
            let bytes = event(&expected).unwrap();
            assert_eq!(
                read_event(expected.room, expected.sequence, &bytes).unwrap(),
                expected
            );
            for cut in 0..bytes.len().min(40) {
                // Damage is an error, never a panic. (Content may be cut without notice: the engine has checksums for that.)
                let _ = read_event(expected.room, expected.sequence, &bytes[..cut]);
            }
        }
    }

    /// Stored for ever: if this changes, older stores can't be read.
    #[test]
    fn the_stored_form_of_a_message_is_stable() {
        let bytes = event(&with_body(bodies().remove(0))).unwrap();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "018101fffffffffffffffe0000000000000000000000000000000501000000000000000000000000000001020103632d31005a6fc3ab20f09f918b"
        );
    }

    #[test]
    fn members_and_marks_read_back() {
        let user = UserId::new();
        for role in Role::ALL {
            let expected = Member {
                user,
                role,
                since: Sequence(9),
                joined_at: Timestamp(-5),
            };
            assert_eq!(read_member(user, &member(&expected)).unwrap(), expected);
        }
        let mark = ReadMark {
            sequence: Sequence(4),
            messages: 3,
            time: Timestamp(1),
        };
        for by in [MarkedBy::Reading, MarkedBy::Joining] {
            let row = read_mark(mark, by);
            assert_eq!(read_read_mark(&row).unwrap(), (mark, by));
        }
        for banned in [true, false] {
            let expected = Restrictions {
                banned,
                muted_until: banned.then_some(Timestamp(7)),
                invited: !banned,
            };
            let row = restrictions(expected);
            assert_eq!(read_restrictions(&row).unwrap(), expected);
        }
    }
}
