//! The step to format 2: read marks by room, who writes has read, and an index of deleted messages.

use std::collections::HashMap;

use carillon_domain::{
    Result, RoomId, Sequence, Timestamp, UserId, event::EventBody, ports::ReadMark,
};
use fjall::OwnedWriteBatch;
use uuid::Uuid;

use super::{
    codec::{self, MarkedBy, read_event, read_numbers, second_of_pair, slot_and_sequence},
    rooms::{deleted_key, read_mark_key},
    tables::{Table, Tables},
};

/// Reads every mark and every event once.
pub(super) fn marks_by_room(tables: &Tables, batch: &mut OwnedWriteBatch) -> fjall::Result<()> {
    let mut marks: HashMap<(RoomId, UserId), ReadMark> = HashMap::new();
    for row in tables.keyspace(Table::ReadMarks).iter() {
        let (key, row) = row.into_inner()?;
        if let Ok((place, mark)) = old_mark(&key, &row) {
            marks.insert(place, mark);
            batch.remove(tables.keyspace(Table::ReadMarks), key);
        }
    }
    for row in tables.keyspace(Table::Events).iter() {
        let (key, row) = row.into_inner()?;
        // What can't be read is found by who reads the room: it is no business of this step.
        let Ok((room, event)) = own_event(&key, &row) else {
            continue;
        };
        match event.body {
            EventBody::Message { .. } => {
                let mark = marks.entry((room, event.actor)).or_default();
                if event.sequence > mark.sequence {
                    *mark = ReadMark {
                        sequence: event.sequence,
                        messages: event.messages_after(),
                        time: event.time,
                    };
                }
            }
            EventBody::Deleted { target, .. } => {
                let index = tables.keyspace(Table::RoomIndex);
                batch.insert(index, deleted_key(room, target), *b"");
            }
            _ => {}
        }
    }
    for ((room, user), mark) in marks {
        let row = codec::read_mark(mark, MarkedBy::Reading);
        batch.insert(
            tables.keyspace(Table::Marks),
            read_mark_key(room, user),
            row,
        );
    }
    Ok(())
}

/// A row of format 1: user, room → mark.
fn old_mark(key: &[u8], row: &[u8]) -> Result<((RoomId, UserId), ReadMark)> {
    let room = RoomId(second_of_pair(key)?);
    let [sequence, messages, time] = read_numbers(row)?;
    let mark = ReadMark {
        sequence: Sequence(sequence),
        messages,
        time: Timestamp(time.cast_signed()),
    };
    Ok(((room, UserId(first_id(key))), mark))
}

/// An event at its own place; those beside the messages that they change are the same once more.
fn own_event(key: &[u8], row: &[u8]) -> Result<(RoomId, carillon_domain::event::RoomEvent)> {
    let (slot, sequence) = slot_and_sequence(key)?;
    if slot != sequence {
        return Err(carillon_domain::Error::defect("a copy of an event"));
    }
    let room = RoomId(first_id(key));
    Ok((room, read_event(room, sequence, row)?))
}

fn first_id(key: &[u8]) -> Uuid {
    key.first_chunk()
        .map_or(Uuid::nil(), |bytes| Uuid::from_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use carillon_domain::{ClientMessageId, MessageId, event::*};

    use super::*;
    use crate::embedded::{
        codec::{event_key, numbers, pair, read_read_mark},
        directory, format,
    };

    /// OPS-06: a store of format 1 keeps its read marks, and its counts are right.
    #[test]
    fn an_older_store_keeps_what_it_knows() {
        let folder = tempfile::tempdir().unwrap();
        let (database, tables, _directory) = directory::open(folder.path(), 1 << 20).unwrap();
        let (room, ann, bob) = (RoomId::new(), UserId::new(), UserId::new());
        let event = |sequence, body| RoomEvent {
            room,
            sequence: Sequence(sequence),
            messages_before: sequence - 1,
            time: Timestamp(7),
            actor: ann,
            body,
        };
        let id = MessageId::new();
        let draft = Draft {
            client_message_id: ClientMessageId("c".into()),
            message_type: MessageType::Text,
            content: "hi".into(),
            reply_to: None,
        };
        let mentions = Mentions::default();
        let target = Sequence(1);
        let events = [
            event(
                1,
                EventBody::Message {
                    id,
                    draft,
                    mentions,
                },
            ),
            event(2, EventBody::Deleted { id, target }),
        ];
        let mut batch = database.batch();
        for event in events {
            let key = event_key(room, event.sequence, event.sequence);
            batch.insert(
                tables.keyspace(Table::Events),
                key,
                codec::event(&event).unwrap(),
            );
        }
        let old = tables.keyspace(Table::ReadMarks);
        batch.insert(old, pair(bob.0, room.0), numbers([2, 1, 9]));
        batch.commit().unwrap();
        format::write_version(&database, &tables, 1).unwrap();

        let store = folder.path().join("store");
        format::bring_up_to_date(&database, &tables, &store, format::MIGRATIONS).unwrap();
        let mark = |user| {
            let row = tables
                .keyspace(Table::Marks)
                .get(read_mark_key(room, user))
                .unwrap();
            row.map(|row| read_read_mark(&row).unwrap().0.sequence)
        };
        assert_eq!(mark(ann), Some(Sequence(1)));
        assert_eq!(mark(bob), Some(Sequence(2)));
        let index = tables.keyspace(Table::RoomIndex);
        assert!(index.get(deleted_key(room, target)).unwrap().is_some());
        assert_eq!(tables.keyspace(Table::ReadMarks).iter().count(), 0);
    }
}
