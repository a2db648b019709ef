//! Reading events and messages with the fences of an owner.

use carillon_domain::{
    Error, Result, RoomId, Sequence,
    event::{EventBody, RoomEvent, StoredMessage},
    ports::Fence,
};

use super::{BUCKET, Columns, Inner, Row, bucket, fences::is_visible, read_row, signed};

/// Places per read.
const MAX_PLACES: u64 = 1000;

impl Inner {
    pub(super) async fn events(
        &self,
        room: RoomId,
        fences: &[Fence],
        from: Sequence,
        to: Sequence,
    ) -> Result<Vec<RoomEvent>> {
        let mut events: Vec<RoomEvent> = Vec::new();
        for row in self.visible(room, fences, from, to).await? {
            if row.slot != row.event.sequence {
                continue;
            }
            if row.slot.0 != from.0 + events.len() as u64 {
                return Err(Error::defect("a room's log has a gap"));
            }
            events.push(row.event);
        }
        Ok(events)
    }

    pub(super) async fn messages(
        &self,
        room: RoomId,
        fences: &[Fence],
        from: Sequence,
        to: Sequence,
    ) -> Result<Vec<StoredMessage>> {
        let mut messages: Vec<StoredMessage> = Vec::new();
        for row in self.visible(room, fences, from, to).await? {
            if row.slot == row.event.sequence {
                if matches!(row.event.body, EventBody::Message { .. }) {
                    messages.push(StoredMessage {
                        sent: row.event,
                        changes: Vec::new(),
                    });
                }
            } else if let Some(message) = messages.last_mut()
                && message.sent.sequence == row.slot
            {
                message.changes.push(row.event);
            }
        }
        Ok(messages)
    }

    /// The visible rows at `from..=to`, ascending by place and sequence.
    async fn visible(
        &self,
        room: RoomId,
        fences: &[Fence],
        from: Sequence,
        to: Sequence,
    ) -> Result<Vec<Row>> {
        if from == Sequence::ZERO {
            return Err(Error::defect("events before the first were asked for"));
        }
        if to < from {
            return Ok(Vec::new());
        }
        if to.0 - from.0 >= MAX_PLACES {
            return Err(Error::defect("too many events were asked for at once"));
        }
        // At most two: a bucket has as many places as a read may have.
        let (first, last) = (bucket(from), bucket(to));
        let mut rows = if first == last {
            self.slots(room, first, from, to).await?
        } else {
            let (mut rows, more) = tokio::try_join!(
                self.slots(room, first, from, to),
                self.slots(room, last, from, to)
            )?;
            rows.extend(more);
            rows
        };
        rows.retain(|row| is_visible(fences, row.event.sequence, row.epoch));
        Ok(rows)
    }

    /// All rows of one bucket at `from..=to`, void ones too, ascending by place, sequence, epoch.
    pub(super) async fn slots(
        &self,
        room: RoomId,
        bucket: u64,
        from: Sequence,
        to: Sequence,
    ) -> Result<Vec<Row>> {
        let from = from.0.max(bucket * BUCKET);
        let to = to.0.min(bucket * BUCKET + BUCKET - 1);
        let values = (room.0, signed(bucket), signed(from), signed(to));
        let rows: Vec<Columns> = self
            .database
            .rows("read_events", &self.statements.slots, values)
            .await?;
        rows.into_iter().map(|row| read_row(room, row)).collect()
    }
}
