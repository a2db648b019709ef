//! Making events durable: rows, then proof of ownership, then projections.

use std::collections::HashMap;

use carillon_domain::{
    Error, Result, RoomId, Sequence,
    event::{EventBody, RoomEvent},
    partition::Partition,
    ports::{Epoch, ReadMark},
};
use futures::future::BoxFuture;

use super::{Inner, MAX_BATCH, bucket, cql_time, heads::Wrote, signed, some_at_a_time};

impl Inner {
    pub(super) async fn append(
        &self,
        partition: Partition,
        epoch: Epoch,
        events: &[RoomEvent],
    ) -> Result<()> {
        check_batch(partition, events)?;
        let mut writes = Vec::with_capacity(events.len() * 3);
        for event in events {
            self.write_rows(event, epoch, &mut writes)?;
            self.write_index(event, epoch, &mut writes);
        }
        some_at_a_time(writes).await?;
        self.check_owner(partition, epoch).await?;
        // From here on the events stand, whatever happens: every later owner finds them and projects them again. But only what
        // is projected is acknowledged, since readers of members don't ask owners.
        let events: Vec<&RoomEvent> = events.iter().collect();
        self.project(&events).await?;
        let mut notes: HashMap<RoomId, (Sequence, Wrote)> = HashMap::new();
        for event in events {
            let (head, wrote) = notes.entry(event.room).or_default();
            *head = event.sequence;
            note_sender(wrote, event);
        }
        for (room, (head, wrote)) in notes {
            if let Some(wrote) = self.heads.note(room, head, wrote) {
                self.marks.write_all(room, &wrote).await?;
            }
        }
        Ok(())
    }

    /// The event at its own place and, for an edit or delete, at its message's.
    pub(super) fn write_rows<'a>(
        &'a self,
        event: &'a RoomEvent,
        epoch: Epoch,
        writes: &mut Vec<BoxFuture<'a, Result<()>>>,
    ) -> Result<()> {
        let body = serde_json::to_string(&event.body).map_err(Error::internal)?;
        if let Some(target) = event.target() {
            writes.push(self.write_row(event, target, epoch, body.clone()));
        }
        writes.push(self.write_row(event, event.sequence, epoch, body));
        Ok(())
    }

    /// The event at its own place alone.
    pub(super) fn write_own_row<'a>(
        &'a self,
        event: &'a RoomEvent,
        epoch: Epoch,
        writes: &mut Vec<BoxFuture<'a, Result<()>>>,
    ) -> Result<()> {
        let body = serde_json::to_string(&event.body).map_err(Error::internal)?;
        writes.push(self.write_row(event, event.sequence, epoch, body));
        Ok(())
    }

    fn write_row<'a>(
        &'a self,
        event: &'a RoomEvent,
        slot: Sequence,
        epoch: Epoch,
        body: String,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let values = (
                event.room.0,
                signed(bucket(slot)),
                signed(slot.0),
                signed(event.sequence.0),
                signed(epoch.0),
                cql_time(event.time),
                event.actor.0,
                signed(event.messages_before),
                body,
            );
            self.database
                .write("write_event", &self.statements.put_event, values)
                .await
        })
    }

    /// Where to find a message by its own id and by its sender's.
    pub(super) fn write_index<'a>(
        &'a self,
        event: &'a RoomEvent,
        epoch: Epoch,
        writes: &mut Vec<BoxFuture<'a, Result<()>>>,
    ) {
        let EventBody::Message { id, draft, .. } = &event.body else {
            return;
        };
        let (sequence, epoch) = (signed(event.sequence.0), signed(epoch.0));
        writes.push(Box::pin(async move {
            let values = (
                event.actor.0,
                &draft.client_message_id.0,
                event.room.0,
                sequence,
                epoch,
            );
            self.database
                .write("write_sent", &self.statements.put_sent, values)
                .await
        }));
        writes.push(Box::pin(async move {
            let values = (id.0, event.room.0, sequence, epoch);
            self.database
                .write("write_message_index", &self.statements.put_message, values)
                .await
        }));
    }
}

/// Who writes has read.
pub(super) fn note_sender(wrote: &mut Wrote, event: &RoomEvent) {
    if let EventBody::Message { .. } = event.body {
        let mark = ReadMark {
            sequence: event.sequence,
            messages: event.messages_after(),
            time: event.time,
        };
        wrote.insert(event.actor, mark);
    }
}

/// What every caller promises; a batch that breaks it would break the log.
fn check_batch(partition: Partition, events: &[RoomEvent]) -> Result<()> {
    let mut rooms: HashMap<RoomId, (Sequence, usize)> = HashMap::new();
    for event in events {
        if Partition::of_room(event.room) != partition {
            return Err(Error::defect("an event of another partition was appended"));
        }
        let (last, count) = rooms
            .entry(event.room)
            .or_insert((Sequence(event.sequence.0.saturating_sub(1)), 0));
        *count += 1;
        if event.sequence != last.next() || *count > MAX_BATCH {
            return Err(Error::defect(
                "a batch isn't dense, or has too many events of one room",
            ));
        }
        if event
            .target()
            .is_some_and(|target| target >= event.sequence || target == Sequence::ZERO)
        {
            return Err(Error::defect("an event changes one that isn't before it"));
        }
        *last = event.sequence;
    }
    Ok(())
}
