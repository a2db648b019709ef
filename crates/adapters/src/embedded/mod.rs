//! Every port on a durable store in one data directory: the reference adapter, and a real way to run a community on one machine.
//!
//! A write is answered once it is synced to the disk (except ephemeral values and when somebody was last seen), together with
//! others that wait: see [`engine`]. What concerns only this process (the bus, leases of replicas and devices) is in memory.
//!
//! It does not replicate: a second process can't open the directory, and a lost disk is a lost store unless there is a backup.

mod accounts;
mod archive;
mod bus;
mod codec;
mod directory;
mod engine;
mod entries;
mod ephemeral;
mod expiry;
mod format;
mod format2;
mod journal;
mod people;
mod people_index;
mod person_keys;
mod presence;
mod push_queue;
mod registry;
mod room_log;
mod rooms;
mod security;
mod sessions;
mod tables;

use std::{path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use carillon_domain::{
    Clock, Error, ErrorCode, Result,
    ports::{
        AccountStore, Archive, Bus, Ephemeral, MediaIndex, PeopleIndex, PeopleStore, PersonKeys,
        PresenceStore, Probe, PushQueue, PushTargetStore, ReplicaRegistry, RoomLog, RoomStore,
        SecurityLog, SessionStore,
    },
    time::SystemClock,
};

use directory::Directory;
use engine::{Durability, Engine};
use fjall::Database;
pub use push_queue::MAX_TRIES;
use tables::Tables;

/// Every port that lives in the data directory. Cheap to clone; all clones are one store.
#[derive(Clone)]
pub struct Stores {
    /// Accounts.
    pub accounts: Arc<dyn AccountStore>,
    /// What happened to accounts.
    pub security: Arc<dyn SecurityLog>,
    /// Sessions of devices, revoked tokens.
    pub sessions: Arc<dyn SessionStore>,
    /// Codes, tickets, counters, claims.
    pub ephemeral: Arc<dyn Ephemeral>,
    /// Contacts and blocks.
    pub people: Arc<dyn PeopleStore>,
    /// People by the beginnings of their names.
    pub people_index: Arc<dyn PeopleIndex>,
    /// Keys of people, and who is being erased.
    pub person_keys: Arc<dyn PersonKeys>,
    /// Rooms, members, read marks.
    pub rooms: Arc<dyn RoomStore>,
    /// The logs of all rooms.
    pub log: Arc<dyn RoomLog>,
    /// Publish and subscribe within this process.
    pub bus: Arc<dyn Bus>,
    /// The replicas within this process.
    pub registry: Arc<dyn ReplicaRegistry>,
    /// Who is connected.
    pub presence: Arc<dyn PresenceStore>,
    /// Push jobs.
    pub push_queue: Arc<dyn PushQueue>,
    /// Where pushes go.
    pub push_targets: Arc<dyn PushTargetStore>,
    /// What is known of uploads; their bytes are in a [`crate::object`] store.
    pub media_index: Arc<dyn MediaIndex>,
    /// Saving and loading all of it.
    pub archive: Arc<dyn Archive>,
    /// Whether the store still takes writes, as `embedded`.
    pub probe: Arc<dyn Probe>,
    engine: Arc<Engine>,
}

/// How to open a store.
#[derive(Clone)]
pub struct Options {
    /// Tells when rows end; tests move it.
    pub clock: Arc<dyn Clock>,
    /// Memory for blocks read from disk.
    pub cache_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            cache_bytes: 128 * 1024 * 1024,
        }
    }
}

/// Opens the store in a directory, making both if they aren't there. Blocks on the disk: call it before the runtime is busy.
///
/// `FailedPrecondition`, with a sentence that names the directory and what to do, when another process has it open, it can't
/// be written, it is of a newer format, or it is damaged. What a crash left unfinished is repaired without a word.
pub fn open(directory: &Path) -> Result<Stores> {
    open_with(directory, Options::default())
}

/// [`open`] with options.
pub fn open_with(directory: &Path, options: Options) -> Result<Stores> {
    let (database, tables, held) = directory::open(directory, options.cache_bytes)?;
    archive::check_loaded(&tables, directory)?;
    start(database, tables, held, options)
}

/// Opens the store in a directory to load a backup into it. What an earlier attempt left unfinished there is thrown away.
pub fn open_to_load(directory: &Path, options: Options) -> Result<Stores> {
    let opened = directory::open(directory, options.cache_bytes)?;
    let (database, tables, held) = match archive::check_loaded(&opened.1, directory) {
        Ok(()) => opened,
        Err(_) => {
            let (database, tables, held) = opened;
            drop((tables, database));
            held.start_anew()?
        }
    };
    start(database, tables, held, options)
}

fn start(
    database: Database,
    tables: Tables,
    directory: Directory,
    options: Options,
) -> Result<Stores> {
    let has_sent_ranges = format::has_sent_ranges(&tables).map_err(engine::failed)?;
    let engine = Engine::start(database, tables, directory, options.clock)?;
    Ok(Stores {
        accounts: Arc::new(accounts::Accounts(engine.clone())),
        security: Arc::new(security::Security(engine.clone())),
        sessions: Arc::new(sessions::Sessions(engine.clone())),
        ephemeral: Arc::new(ephemeral::EphemeralValues(engine.clone())),
        people: Arc::new(people::People(engine.clone())),
        people_index: Arc::new(people_index::Index(engine.clone())),
        person_keys: Arc::new(person_keys::Keys(engine.clone())),
        rooms: Arc::new(rooms::Rooms(engine.clone())),
        log: Arc::new(room_log::Logs {
            engine: engine.clone(),
            has_sent_ranges,
        }),
        bus: Arc::new(bus::LocalBus::default()),
        registry: Arc::new(registry::LocalRegistry::default()),
        presence: Arc::new(presence::LocalPresence::new(engine.clone())),
        push_queue: Arc::new(push_queue::LocalPushQueue::new(engine.clone())),
        push_targets: Arc::new(entries::PushTargets(engine.clone())),
        media_index: Arc::new(entries::MediaEntries(engine.clone())),
        archive: Arc::new(archive::Whole(engine.clone())),
        probe: Arc::new(EngineProbe(engine.clone())),
        engine,
    })
}

impl Stores {
    /// Finishes every write that was asked for, syncs, and refuses later ones with `Unavailable` (OPS-02). The directory is free
    /// for another process once every clone is dropped.
    pub async fn close(&self) -> Result<()> {
        self.engine.close().await
    }
}

struct EngineProbe(Arc<Engine>);

#[async_trait]
impl Probe for EngineProbe {
    fn name(&self) -> &'static str {
        "embedded"
    }

    async fn check(&self) -> Result<()> {
        let now = self.0.clock.now();
        // A write, since a store whose disk failed still reads.
        let write = self.0.commit(Durability::Buffered, move |transaction| {
            transaction.put(tables::Table::Meta, *b"probe", now.0.to_be_bytes());
            Ok(())
        });
        tokio::time::timeout(Duration::from_secs(2), write)
            .await
            .map_err(|_| {
                Error::new(
                    ErrorCode::Unavailable,
                    "the embedded store doesn't answer: the disk is full, slow or broken",
                )
            })?
    }
}

/// Checks a bound that the port's contract names; callers keep it.
fn at_most(count: usize, limit: usize) -> Result<()> {
    if count > limit {
        return Err(Error::defect(format!(
            "{count} were asked for where {limit} are allowed"
        )));
    }
    Ok(())
}
