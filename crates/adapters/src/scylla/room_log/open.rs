//! Opening a room for a new owner: find the head, fence, finish what a crashed owner left undone.

use std::collections::VecDeque;

use carillon_domain::{
    Error, Result, RoomId, Sequence,
    event::EventBody,
    partition::Partition,
    ports::{Epoch, Fence, OpenRoom},
};

use scylla::value::CqlValue;

use super::{
    BUCKET, Inner, MAX_BATCH, Row,
    append::note_sender,
    bucket,
    fences::{is_void, living, timestamps},
    heads::Wrote,
    signed, some_at_a_time, superseded, unsigned,
};

/// Writes of fences in one batch.
const FENCES_PER_BATCH: usize = 100;

/// The end of a room's log.
#[derive(Default)]
pub(super) struct Tail {
    pub(super) head: Sequence,
    pub(super) messages: u64,
    /// Of every edit and delete among the last events, and of the events themselves: the events, ascending.
    pub(super) rows: VecDeque<Row>,
    /// The last own message of everybody who wrote after the noted head: that they have read it may not be written yet.
    wrote: Wrote,
}

impl Inner {
    pub(super) async fn open(&self, room: RoomId, epoch: Epoch) -> Result<OpenRoom> {
        let partition = Partition::of_room(room);
        let (noted, fences, (floor, _)) =
            tokio::try_join!(self.noted_head(room), self.fences(room), self.floor(room))?;
        if fences.iter().any(|fence| fence.epoch > epoch) {
            return Err(superseded());
        }
        let (noted, tail) = self.whole_tail(room, noted, &fences, epoch).await?;
        let fences = self.fence(room, epoch, tail.head, fences).await?;
        let undone: Vec<&Row> = tail
            .rows
            .iter()
            .filter(|row| row.event.sequence > noted)
            .collect();
        // An event that was found may be on one replica only. Written again, it is found by every later owner; it is the same
        // row, since the epoch is part of its key.
        let mut writes = Vec::new();
        for row in &undone {
            self.write_rows(&row.event, row.epoch, &mut writes)?;
        }
        some_at_a_time(writes).await?;
        // Only now it is certain that what this owner saw is what every later one will see: an owner that was replaced in the
        // meantime may have missed a fence, and must not project what others take for void.
        self.check_owner(partition, epoch).await?;
        let mut writes = Vec::new();
        for row in &undone {
            self.write_index(&row.event, row.epoch, &mut writes);
        }
        some_at_a_time(writes).await?;
        let events: Vec<_> = undone.iter().map(|row| &row.event).collect();
        self.project(&events).await?;
        self.marks.write_all(room, &tail.wrote).await?;
        if tail.head > noted {
            let _ = self.heads.note(room, tail.head, Wrote::new());
        }
        Ok(OpenRoom {
            room,
            head: tail.head,
            messages: tail.messages,
            // A room with a head has its last event in the tail, since the search begins at an event that stands.
            deleted: tail
                .rows
                .back()
                .is_some_and(|row| matches!(row.event.body, EventBody::RoomDeleted)),
            floor,
            fences,
        })
    }

    pub(super) async fn noted_head(&self, room: RoomId) -> Result<Sequence> {
        let noted = self
            .database
            .row::<(i64,)>("read_head", &self.statements.head, (room.0,))
            .await?;
        noted.map_or(Ok(Sequence::ZERO), |(sequence,)| {
            unsigned(sequence).map(Sequence)
        })
    }

    pub(super) async fn fences(&self, room: RoomId) -> Result<Vec<Fence>> {
        let rows: Vec<(i64, i64)> = self
            .database
            .rows("read_fences", &self.statements.fences, (room.0,))
            .await?;
        rows.into_iter()
            .map(|(epoch, first)| {
                Ok(Fence {
                    epoch: Epoch(unsigned(epoch)?),
                    first: Sequence(unsigned(first)?),
                })
            })
            .collect()
    }

    /// [`Self::tail`] from a noted head that nobody has gone past meanwhile: the owner before may remove what is before the head that
    /// it notes while this is being read, and the end of the log would be missed.
    pub(super) async fn whole_tail(
        &self,
        room: RoomId,
        mut noted: Sequence,
        fences: &[Fence],
        epoch: Epoch,
    ) -> Result<(Sequence, Tail)> {
        loop {
            let tail = self.tail(room, noted, fences, epoch).await;
            let noted_since = self.noted_head(room).await?;
            match tail {
                Ok(tail) if noted_since <= tail.head => return Ok((noted, tail)),
                Err(error) if noted_since == noted => return Err(error),
                _ => noted = noted_since,
            }
        }
    }

    /// Follows the log from the noted head, which stands, to the last event without a gap before it.
    async fn tail(
        &self,
        room: RoomId,
        noted: Sequence,
        fences: &[Fence],
        epoch: Epoch,
    ) -> Result<Tail> {
        let mut tail = Tail {
            head: Sequence(noted.0.saturating_sub(1)),
            ..Tail::default()
        };
        loop {
            let from = tail.head.next();
            let last_of_bucket = Sequence(bucket(from) * BUCKET + BUCKET - 1);
            for row in self.slots(room, bucket(from), from, last_of_bucket).await? {
                let counts = row.slot == row.event.sequence
                    && row.epoch <= epoch
                    && !is_void(fences, row.event.sequence, row.epoch);
                if !counts {
                    continue;
                }
                if row.slot != tail.head.next() {
                    break;
                }
                tail.head = row.slot;
                tail.messages = row.event.messages_after();
                if tail.head > noted {
                    note_sender(&mut tail.wrote, &row.event);
                }
                if tail.rows.len() == MAX_BATCH {
                    tail.rows.pop_front();
                }
                tail.rows.push_back(row);
            }
            if tail.head != last_of_bucket {
                break;
            }
        }
        if tail.head < noted {
            return Err(Error::defect("an acknowledged event is missing"));
        }
        Ok(tail)
    }

    /// Sets this owner's fence, and makes the fences that it knows the only ones there are. Answers the living ones.
    async fn fence(
        &self,
        room: RoomId,
        epoch: Epoch,
        head: Sequence,
        mut fences: Vec<Fence>,
    ) -> Result<Vec<Fence>> {
        // A room may be opened again under the same epoch. Its fence must stay where it is: moved, it would no longer void
        // what an earlier owner wrote late at places that this one has filled since.
        if fences.iter().any(|fence| fence.epoch == epoch) {
            return Ok(living(fences));
        }
        fences.push(Fence {
            epoch,
            first: head.next(),
        });
        let living = living(fences);
        let (drop_at, put_at) = timestamps(epoch);
        let mut writes: Vec<_> = living
            .iter()
            .map(|fence| {
                let values = vec![
                    CqlValue::Uuid(room.0),
                    CqlValue::BigInt(signed(fence.epoch.0)),
                    CqlValue::BigInt(signed(fence.first.0)),
                    CqlValue::BigInt(put_at),
                ];
                (&self.statements.put_fence, values)
            })
            .collect();
        writes.push((
            &self.statements.drop_fences,
            vec![
                CqlValue::BigInt(drop_at),
                CqlValue::Uuid(room.0),
                CqlValue::BigInt(signed(epoch.0)),
            ],
        ));
        // One batch, unless a room that was always busy had hundreds of owners: servers refuse large ones. The deletion is in
        // the last, when everything that it must not take away is written.
        while !writes.is_empty() {
            let rest = writes.split_off(writes.len().min(FENCES_PER_BATCH));
            self.database.batch("write_fences", writes).await?;
            writes = rest;
        }
        Ok(living)
    }
}
