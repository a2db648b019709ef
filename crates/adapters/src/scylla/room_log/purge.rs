//! Where a room's log begins, and removing what is before it (MSG-21).
//!
//! The event at the noted head stays, whatever the floor is: the next owner finds the end of the log from there.

use std::time::Duration;

use carillon_domain::{
    Clock as _, Result, RoomId, Sequence,
    event::EventBody,
    event::StoredMessage,
    ports::{Fence, Floor},
    time::SystemClock,
};
use futures::future::BoxFuture;

use super::{Inner, bucket, signed, some_at_a_time, unsigned};
use crate::scylla::rooms::EVERYBODY;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Places that are removed at once.
const PLACES: u64 = 1000;

/// The timestamp of what is removed: later than that of a writer whose clock is up to a day ahead, since nothing is ever written
/// at these places again. (ScyllaDB takes no timestamps that are more than three days ahead.)
fn after_every_writer() -> i64 {
    SystemClock.now().plus(DAY).0.saturating_mul(1000)
}

impl Inner {
    /// The floor, and the first place that isn't removed yet.
    pub(super) async fn floor(&self, room: RoomId) -> Result<(Floor, Sequence)> {
        type Columns = (Option<i64>, Option<i64>, Option<i64>);
        let row = self
            .database
            .row::<Columns>("read_floor", &self.statements.floor, (room.0,))
            .await?;
        let (first, messages, purged) = row.unwrap_or_default();
        let floor = Floor {
            first: first.map_or(Ok(1), unsigned).map(Sequence)?,
            messages: messages.map_or(Ok(0), unsigned)?,
        };
        Ok((floor, purged.map_or(Ok(1), unsigned).map(Sequence)?))
    }

    pub(super) async fn raise_floor(&self, room: RoomId, floor: Floor) -> Result<()> {
        let first = signed(floor.first.0);
        let values = (first, first, signed(floor.messages), room.0);
        self.database
            .write("raise_floor", &self.statements.raise_floor, values)
            .await
    }

    pub(super) async fn purge(
        &self,
        room: RoomId,
        fences: &[Fence],
        below: Sequence,
    ) -> Result<bool> {
        let ((floor, from), noted) = tokio::try_join!(self.floor(room), self.noted_head(room))?;
        let end = floor.first.min(noted).min(below);
        let to = end.min(Sequence(from.0.saturating_add(PLACES)));
        if from >= to {
            return Ok(false);
        }
        let last = Sequence(to.0 - 1);
        // The entries that lead to the events first, so that what was cut off is found again by the events that are left.
        let messages = self.messages(room, fences, from, last).await?;
        let at = after_every_writer();
        let mut writes = Vec::new();
        for message in &messages {
            self.drop_index(room, message, at, &mut writes);
        }
        some_at_a_time(writes).await?;
        for bucket in bucket(from)..=bucket(last) {
            let values = (at, room.0, signed(bucket), signed(from.0), signed(to.0));
            self.database
                .write("purge_events", &self.statements.drop_slots, values)
                .await?;
        }
        let purged = signed(to.0);
        self.database
            .write(
                "note_purged",
                &self.statements.put_purged,
                (purged, purged, room.0),
            )
            .await?;
        Ok(to < end)
    }

    fn drop_index<'a>(
        &'a self,
        room: RoomId,
        message: &'a StoredMessage,
        at: i64,
        writes: &mut Vec<BoxFuture<'a, Result<()>>>,
    ) {
        let EventBody::Message {
            id,
            draft,
            mentions,
        } = &message.sent.body
        else {
            return;
        };
        let place = signed(message.sent.sequence.0);
        let (database, statements) = (&self.database, &self.statements);
        let sender = message.sent.actor.0;
        writes.push(Box::pin(async move {
            let values = (at, sender, &draft.client_message_id.0, room.0, place);
            database
                .write("purge_sent", &statements.drop_sent, values)
                .await
        }));
        writes.push(Box::pin(database.write(
            "purge_message",
            &statements.drop_message,
            (id.0,),
        )));
        if !message.changes.is_empty() {
            writes.push(Box::pin(database.write(
                "purge_deleted",
                &statements.drop_deleted,
                (at, room.0, place),
            )));
        }
        let users = mentions.users.iter().map(|user| user.0);
        for user in users.chain(mentions.room.then_some(EVERYBODY)) {
            writes.push(Box::pin(database.write(
                "purge_mention",
                &statements.drop_mention,
                (at, room.0, user, place),
            )));
        }
    }
}
