//! Puts a backup into an empty store, after all of it was checked.

use std::{collections::HashSet, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use carillon_domain::{
    Error, Result, RoomId, UserId,
    media::Media,
    names::search_terms,
    ports::{
        AccountStore, Archive, BackupStore, BlobStore, Floor, KeyState, MediaIndex, PeopleIndex,
        PeopleStore, PersonKeys, PushTargetStore,
    },
    room::{Restrictions, Standing},
    seal::Seal,
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::mpsc;

use crate::{
    keys::{self, Keys, Seals},
    manifest::{Counts, Manifest, refused},
    record::{Record, Section, read_mark},
    repository::{media_bytes, read, verify},
    write::count,
};

/// Records that are written at once, and rooms.
const AT_ONCE: usize = 16;
/// Records that wait for each writer of rooms.
const WAITING: usize = 2;

/// Where to write.
#[derive(Clone)]
pub struct Target {
    /// Rooms, logs and marks.
    pub archive: Arc<dyn Archive>,
    /// Accounts.
    pub accounts: Arc<dyn AccountStore>,
    /// Who is found by which name; made from the accounts.
    pub people_index: Arc<dyn PeopleIndex>,
    /// Keys of people.
    pub person_keys: Arc<dyn PersonKeys>,
    /// Contacts and blocks.
    pub people: Arc<dyn PeopleStore>,
    /// Where pushes go.
    pub push_targets: Arc<dyn PushTargetStore>,
    /// Uploads.
    pub media: Arc<dyn MediaIndex>,
    /// Bytes of uploads; `None` leaves them where they are.
    pub blobs: Option<Arc<dyn BlobStore>>,
}

/// Checks a backup, and writes all of it. `FailedPrecondition` for a store that holds something else, and for a backup that isn't whole,
/// with the object's name; then nothing was written. A restore that was cut off goes on when it is called again; until one ended
/// nobody can open the store, and after that it has nothing to do. `progress` is called with what it does, and how much of that is done.
pub async fn restore(
    store: &dyn BackupStore,
    manifest: &Manifest,
    target: &Target,
    mut progress: impl FnMut(&'static str, usize, usize),
) -> Result<()> {
    let all = manifest.chunks.len();
    verify(store, manifest, |done| progress("checked", done, all)).await?;
    if !target.archive.begin_load(&manifest.backup).await? {
        return Ok(());
    }
    let mut counts = Counts {
        bytes: manifest.counts.bytes,
        media_missing: manifest.counts.media_missing,
        ..Counts::default()
    };
    for object in &manifest.keys {
        target
            .keys(keys::read(store, manifest, object).await?)
            .await?;
    }
    let mut done = 0;
    for section in Section::ALL {
        let mut writers = Writers::start(target, store, manifest, section);
        for chunk in manifest.chunks_of(section) {
            // Checked again: it is another read.
            let records = read(store, manifest, chunk).await?;
            let seals = target.seals_of(&records).await?;
            for record in records {
                count(&mut counts, &record);
                writers.open(record, &seals).await?;
            }
            done += 1;
            progress("restored", done, all);
        }
        writers.end().await?;
    }
    if counts != manifest.counts {
        return Err(refused(format!(
            "backup {} changed while it was restored",
            manifest.backup
        )));
    }
    target.archive.end_load(&manifest.backup).await
}

/// Writers of one section, each record by that which has the room's or the person's others.
struct Writers<'a> {
    target: &'a Target,
    store: &'a dyn BackupStore,
    manifest: &'a Manifest,
    /// Of records whose order matters.
    ordered: Vec<(mpsc::Sender<Record>, tokio::task::JoinHandle<Result<()>>)>,
    /// Of uploads, which are written here.
    media: Vec<(Media, Bytes)>,
}

/// Where the bytes of an upload are.
enum Bytes {
    LeftOut,
    Plain,
    Sealed(Arc<Seal>),
}

impl<'a> Writers<'a> {
    fn start(
        target: &'a Target,
        store: &'a dyn BackupStore,
        manifest: &'a Manifest,
        section: Section,
    ) -> Self {
        let writers = match section {
            Section::Media => 0,
            _ => AT_ONCE,
        };
        let ordered = (0..writers)
            .map(|_| {
                let (sender, mut records) = mpsc::channel(WAITING);
                let target = target.clone();
                let writer = tokio::spawn(async move {
                    while let Some(record) = records.recv().await {
                        target.write(record).await?;
                    }
                    Ok(())
                });
                (sender, writer)
            })
            .collect();
        Self {
            target,
            store,
            manifest,
            ordered,
            media: Vec::new(),
        }
    }

    /// Takes a record, opening it if it is sealed. What can't be opened is of somebody who was erased.
    async fn open(&mut self, record: Record, seals: &Seals) -> Result<()> {
        let Record::Sealed { user, sealed, .. } = record else {
            return self.take(record, None).await;
        };
        let Some(seal) = seals.get(&user) else {
            return Ok(());
        };
        let damaged = || refused("a sealed record doesn't open: the backup can't be used".into());
        let sealed = BASE64.decode(sealed).map_err(|_| damaged())?;
        let plain = seal
            .open(user.0.as_bytes(), sealed)
            .map_err(|_| damaged())?;
        let record = serde_json::from_slice(&plain).map_err(|_| damaged())?;
        self.take(record, Some(seal)).await
    }

    async fn take(&mut self, record: Record, seal: Option<&Arc<Seal>>) -> Result<()> {
        if let Record::Media { media, bytes } = record {
            let bytes = match (bytes, seal) {
                (false, _) => Bytes::LeftOut,
                (true, None) => Bytes::Plain,
                (true, Some(seal)) => Bytes::Sealed(seal.clone()),
            };
            self.media.push((media, bytes));
            if self.media.len() >= AT_ONCE {
                self.write_media().await?;
            }
            return Ok(());
        }
        let place = key(&record) % (self.ordered.len().max(1) as u128);
        let Some((sender, _)) = self.ordered.get(place as usize) else {
            return Err(refused("a chunk has records of another section".to_owned()));
        };
        if sender.send(record).await.is_err() {
            // It failed: its error is told.
            return self.end_all().await;
        }
        Ok(())
    }

    async fn write_media(&mut self) -> Result<()> {
        let media = std::mem::take(&mut self.media);
        let this = &*self;
        // One upload is at most 64 MiB: few at once.
        stream::iter(media)
            .map(|(media, bytes)| this.write_upload(media, bytes))
            .buffer_unordered(2)
            .try_collect()
            .await
    }

    async fn write_upload(&self, media: Media, bytes: Bytes) -> Result<()> {
        let seal = match &bytes {
            Bytes::Sealed(seal) => Some(&**seal),
            _ => None,
        };
        let left_out = matches!(bytes, Bytes::LeftOut);
        if let (Some(blobs), false) = (&self.target.blobs, left_out) {
            let bytes = media_bytes(self.store, self.manifest, &media, seal).await?;
            blobs.put(media.id, bytes).await?;
        }
        self.target.media.put(&media).await
    }

    async fn end(mut self) -> Result<()> {
        self.write_media().await?;
        self.end_all().await
    }

    async fn end_all(&mut self) -> Result<()> {
        for (sender, writer) in self.ordered.drain(..) {
            drop(sender);
            writer.await.map_err(Error::internal)??;
        }
        Ok(())
    }
}

/// Records with the same one are written in their order.
fn key(record: &Record) -> u128 {
    match record {
        Record::Account(account) => account.user.id.0.as_u128(),
        Record::Related { user, .. }
        | Record::Invited { user, .. }
        | Record::Marks { user, .. } => user.0.as_u128(),
        Record::PushTarget(target) => target.user.0.as_u128(),
        Record::Media { media, .. } => media.id.0.as_u128(),
        Record::Sealed { user, .. } => user.0.as_u128(),
        Record::KeysFor(_) | Record::Keys(_) => 0,
        Record::Room { room, .. } => room.id.0.as_u128(),
        Record::Standings { room, .. }
        | Record::Events { room, .. }
        | Record::Receipts { room, .. } => room.0.as_u128(),
    }
}

impl Target {
    /// Stores keys. Who was erased since the backup was made is erased again, once the platform runs.
    async fn keys(&self, keys: Keys) -> Result<()> {
        stream::iter(keys)
            .map(Ok)
            .try_for_each_concurrent(AT_ONCE, |(user, state)| async move {
                match state {
                    KeyState::Held(key) => {
                        self.person_keys.put_if_absent(user, &key).await.map(drop)
                    }
                    KeyState::Destroyed(at) => {
                        self.person_keys.begin_erasing(user, at).await?;
                        self.person_keys.destroy(user, at).await
                    }
                }
            })
            .await
    }

    /// The seals of those whom sealed records are of.
    async fn seals_of(&self, records: &[Record]) -> Result<Seals> {
        let users: HashSet<UserId> = records
            .iter()
            .filter_map(|record| match record {
                Record::Sealed { user, .. } => Some(*user),
                _ => None,
            })
            .collect();
        let users: Vec<UserId> = users.into_iter().collect();
        let mut seals = Seals::new();
        for some in users.chunks(1_000) {
            seals.extend(keys::seals(&self.person_keys.of(some).await?)?);
        }
        Ok(seals)
    }

    async fn write(&self, record: Record) -> Result<()> {
        match record {
            Record::Account(account) => {
                // As when an account is made: filed first, so that nobody is missing.
                for term in search_terms(&account.user) {
                    self.people_index.put(&term, account.user.id).await?;
                }
                self.accounts.create(&account).await
            }
            Record::Related {
                relation,
                user,
                others,
            } => {
                stream::iter(others)
                    .map(Ok)
                    .try_for_each_concurrent(AT_ONCE, |(other, since)| async move {
                        self.people
                            .put(relation.into(), user, other, since, usize::MAX)
                            .await
                            .map(drop)
                    })
                    .await
            }
            Record::PushTarget(target) => self.push_targets.put(&target).await,
            Record::Invited { user, rooms } => {
                let invited = Standing {
                    restrictions: Restrictions {
                        invited: true,
                        ..Restrictions::default()
                    },
                    ..Standing::default()
                };
                for room in rooms {
                    self.standings(room, vec![(user, invited)]).await?;
                }
                Ok(())
            }
            Record::Sealed { .. } | Record::KeysFor(_) | Record::Keys(_) => {
                Err(refused("a chunk has what doesn't belong there".to_owned()))
            }
            Record::Media { .. } => Err(Error::defect("an upload is written with its bytes")),
            Record::Room { room, log } => self.archive.load_room(&room, log.into()).await,
            Record::Standings { room, people } => {
                let people = people.into_iter().map(Into::into).collect();
                self.standings(room, people).await
            }
            Record::Events {
                room,
                first,
                messages,
                events,
            } => {
                let floor = Floor { first, messages };
                self.archive.load_events(room, floor, &events).await
            }
            Record::Marks { user, marks } => {
                let marks: Vec<_> = marks.into_iter().map(read_mark).collect();
                self.archive.load_marks(user, &marks).await
            }
            Record::Receipts { room, receipts } => {
                let receipts: Vec<_> = receipts.into_iter().map(Into::into).collect();
                self.archive.load_receipts(room, &receipts).await
            }
        }
    }

    async fn standings(&self, room: RoomId, people: Vec<(UserId, Standing)>) -> Result<()> {
        self.archive.load_standings(room, &people).await
    }
}
