//! Lower bounds of the rooms' heads, written behind: they save the next owner from reading whole rooms.

use std::{collections::HashMap, time::Duration};

use carillon_domain::{RoomId, Sequence};
use futures::{StreamExt, stream};
use scylla::statement::prepared::PreparedStatement;
use tokio::sync::mpsc;

use super::{Database, signed};

/// Notes that may wait. When it is full, notes are dropped: the next event of the room brings another one.
const QUEUE: usize = 8192;
/// How long notes are gathered, so that a busy room costs one write.
const GATHER: Duration = Duration::from_millis(500);
/// Writes under way at once: they are to delay nothing.
const WRITERS: usize = 8;

pub(super) struct Heads(mpsc::Sender<(RoomId, Sequence)>);

impl Heads {
    /// Starts the writer; it ends with the last sender.
    pub(super) fn start(database: Database, put_head: PreparedStatement) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(write_behind(database, put_head, receiver));
        Self(sender)
    }

    /// Everything of the room up to here is acknowledged, indexed and projected.
    pub(super) fn note(&self, room: RoomId, sequence: Sequence) {
        // A full queue or a stopped runtime only makes the next opening slower.
        let _ = self.0.try_send((room, sequence));
    }
}

async fn write_behind(
    database: Database,
    put_head: PreparedStatement,
    mut notes: mpsc::Receiver<(RoomId, Sequence)>,
) {
    let mut batch = Vec::new();
    while notes.recv_many(&mut batch, QUEUE).await > 0 {
        // Gathers what comes in the meantime; when the queue is full, later notes are dropped.
        tokio::time::sleep(GATHER).await;
        while let Ok(note) = notes.try_recv() {
            batch.push(note);
        }
        let mut newest: HashMap<RoomId, Sequence> = HashMap::new();
        for (room, sequence) in batch.drain(..) {
            let known = newest.entry(room).or_default();
            *known = sequence.max(*known);
        }
        stream::iter(newest)
            .for_each_concurrent(WRITERS, |(room, sequence)| {
                let sequence = signed(sequence.0);
                let values = (room.0, sequence, sequence);
                let write = database.write("write_head", &put_head, values);
                async move {
                    if let Err(error) = write.await {
                        tracing::debug!(%error, "a head was not noted");
                    }
                }
            })
            .await;
    }
}
