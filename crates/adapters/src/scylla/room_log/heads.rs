//! What is written some time after an append was acknowledged: that senders have read their rooms, and lower bounds of the rooms'
//! heads, which save the next owner from reading whole rooms.
//!
//! A head is written only after the marks of all events up to it. So nothing is lost with a process: who opens the room next finds
//! the older head, and writes the marks of what follows it.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use carillon_domain::{Result, RoomId, Sequence, UserId, ports::ReadMark};
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use scylla::statement::prepared::PreparedStatement;
use tokio::sync::mpsc;

use super::{Database, signed};
use crate::scylla::rooms::Marks;

/// Rooms whose notes may wait.
const ROOMS: usize = 8192;
/// How long notes are gathered, so that a busy room costs few writes.
const GATHER: Duration = Duration::from_millis(500);
/// Rooms that are written at once: they are to delay nothing.
const WRITERS: usize = 8;

/// What is to be written of a room.
#[derive(Default)]
struct Note {
    head: Sequence,
    wrote: HashMap<UserId, ReadMark>,
}

/// The last own messages of people, by person.
pub(super) type Wrote = HashMap<UserId, ReadMark>;

pub(super) struct Heads {
    database: Database,
    put_head: PreparedStatement,
    notes: Arc<Mutex<HashMap<RoomId, Note>>>,
    /// Holds one word: that there are notes.
    wake: mpsc::Sender<()>,
}

impl Heads {
    /// Starts the writer; it ends with this.
    pub(super) fn start(database: Database, put_head: PreparedStatement, marks: Marks) -> Self {
        let notes = Arc::default();
        let (wake, woken) = mpsc::channel(1);
        let writer = Writer {
            database: database.clone(),
            put_head: put_head.clone(),
            marks,
            notes: Arc::clone(&notes),
        };
        tokio::spawn(writer.run(woken));
        Self {
            database,
            put_head,
            notes,
            wake,
        }
    }

    /// Notes a head at once. As with [`Self::note`]: everything up to it must be there.
    pub(super) async fn put(&self, room: RoomId, head: Sequence) -> Result<()> {
        let head = signed(head.0);
        self.database
            .write("write_head", &self.put_head, (room.0, head, head))
            .await
    }

    /// Everything of the room up to here is acknowledged, indexed and projected; these people wrote in it. Answers `wrote` again
    /// when too much waits already: then the caller has to write it.
    pub(super) fn note(&self, room: RoomId, head: Sequence, wrote: Wrote) -> Option<Wrote> {
        {
            let mut notes = self.notes.lock();
            let full = notes.len() >= ROOMS;
            let note = match notes.entry(room) {
                Entry::Vacant(_) if full => return Some(wrote),
                entry => entry.or_default(),
            };
            note.merge(head, wrote);
        }
        // There is a word waiting already, or the runtime stops.
        let _ = self.wake.try_send(());
        None
    }
}

impl Note {
    fn merge(&mut self, head: Sequence, wrote: Wrote) {
        self.head = self.head.max(head);
        for (user, mark) in wrote {
            let known = self.wrote.entry(user).or_default();
            if mark.sequence > known.sequence {
                *known = mark;
            }
        }
    }
}

struct Writer {
    database: Database,
    put_head: PreparedStatement,
    marks: Marks,
    notes: Arc<Mutex<HashMap<RoomId, Note>>>,
}

impl Writer {
    async fn run(self, mut woken: mpsc::Receiver<()>) {
        loop {
            let waits = !self.notes.lock().is_empty();
            if !waits && woken.recv().await.is_none() {
                return;
            }
            tokio::time::sleep(GATHER).await;
            let notes = std::mem::take(&mut *self.notes.lock());
            let writer = &self;
            stream::iter(notes)
                .for_each_concurrent(WRITERS, |(room, note)| async move {
                    if let Err(error) = writer.write(room, &note).await {
                        tracing::debug!(%error, "a head was not noted; it is tried again");
                        let mut notes = writer.notes.lock();
                        notes.entry(room).or_default().merge(note.head, note.wrote);
                    }
                })
                .await;
            if woken.is_closed() {
                return;
            }
        }
    }

    async fn write(&self, room: RoomId, note: &Note) -> Result<()> {
        self.marks.write_all(room, &note.wrote).await?;
        let head = signed(note.head.0);
        self.database
            .write("write_head", &self.put_head, (room.0, head, head))
            .await
    }
}
