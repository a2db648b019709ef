//! Backups of embedded stores: under writes, damaged, repeated.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use carillon_adapters::{
    backups,
    conformance::{
        archive::{Ports, assert_same, fill, seen},
        room_log::Writer as LogWriter,
    },
    embedded, object,
    sealed::Sealed,
};
use carillon_domain::{
    ClientMessageId, ErrorCode, MediaId, RoomId, Sequence, Timestamp, UserId,
    event::{Draft, EventBody, Mentions, MessageType},
    media::Media,
    ports::{BackupStore, BlobStore, ErasurePart},
    room::{Role, Room, RoomKind, RoomRules},
    time::SystemClock,
};

use crate::{
    Manifest, Options, Source, Target, Writer, find, forget, list, manifest::sha256, restore, save,
    verify,
};

struct Store {
    stores: embedded::Stores,
    blobs: Arc<dyn BlobStore>,
    folder: tempfile::TempDir,
}

impl Store {
    fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap())
    }

    fn at(folder: tempfile::TempDir) -> Self {
        let options = embedded::Options::default();
        Self {
            stores: embedded::open_to_load(&folder.path().join("data"), options).unwrap(),
            blobs: object::directory(&folder.path().join("blobs")).unwrap(),
            folder,
        }
    }

    fn ports(&self) -> Ports {
        let stores = &self.stores;
        Ports {
            archive: stores.archive.clone(),
            accounts: stores.accounts.clone(),
            people_index: stores.people_index.clone(),
            person_keys: stores.person_keys.clone(),
            people: stores.people.clone(),
            rooms: stores.rooms.clone(),
            log: stores.log.clone(),
            push_targets: stores.push_targets.clone(),
            media: stores.media_index.clone(),
        }
    }

    fn source(&self) -> Source {
        let ports = self.ports();
        Source {
            archive: ports.archive,
            accounts: ports.accounts,
            person_keys: ports.person_keys,
            people: ports.people,
            rooms: ports.rooms,
            log: ports.log,
            push_targets: ports.push_targets,
            media: ports.media,
        }
    }

    fn target(&self) -> Target {
        let ports = self.ports();
        Target {
            archive: ports.archive,
            accounts: ports.accounts,
            people_index: ports.people_index,
            person_keys: ports.person_keys,
            people: ports.people,
            push_targets: ports.push_targets,
            media: ports.media,
            blobs: Some(self.blobs.clone()),
        }
    }

    async fn save(&self, place: &Path) -> Manifest {
        let options = Options {
            cluster: "town".into(),
            version: "0".into(),
            blobs: Some(self.blobs.clone()),
        };
        let store = at(place);
        let mut writer = Writer::begin(store, Arc::new(SystemClock), options, |_| {}).unwrap();
        save(&self.source(), &mut writer).await.unwrap();
        writer.end().await.unwrap()
    }

    async fn upload(&self, room: RoomId, owner: UserId, bytes: &'static [u8]) -> MediaId {
        let media = Media {
            id: MediaId::new(),
            room,
            owner,
            file_name: "a.bin".into(),
            content_type: "application/octet-stream".into(),
            size: bytes.len() as u64,
            sha256: sha256(bytes),
            created_at: Timestamp(1),
        };
        self.blobs.put(media.id, bytes.into()).await.unwrap();
        self.stores.media_index.put(&media).await.unwrap();
        media.id
    }
}

fn at(place: &Path) -> Arc<dyn BackupStore> {
    backups::directory(place, true).unwrap()
}

fn message(text: &str, client_id: String) -> EventBody {
    EventBody::Message {
        id: carillon_domain::MessageId::new(),
        draft: Draft {
            client_message_id: ClientMessageId(client_id),
            message_type: MessageType::Text,
            content: text.to_owned(),
            reply_to: None,
        },
        mentions: Mentions::default(),
    }
}

fn room(by: UserId) -> Room {
    Room {
        id: RoomId::new(),
        kind: RoomKind::Public,
        name: "r".into(),
        description: String::new(),
        created_by: by,
        created_at: Timestamp(1),
        pair: None,
        deleted_at: None,
        rules: RoomRules::default(),
    }
}

/// The bytes of uploads come with their entries.
#[tokio::test(flavor = "multi_thread")]
async fn uploads_are_carried() {
    let (from, to) = (Store::new(), Store::new());
    let place = tempfile::tempdir().unwrap();
    let (owner, in_room) = (UserId::new(), RoomId::new());
    let id = from.upload(in_room, owner, b"some bytes").await;
    let lost = from.upload(in_room, owner, b"lost").await;
    from.blobs.delete(lost).await.unwrap();
    let manifest = from.save(place.path()).await;
    assert_eq!(
        (manifest.counts.media, manifest.counts.media_missing),
        (2, 1)
    );
    let store = at(place.path());
    restore(&*store, &manifest, &to.target(), |_, _, _| {})
        .await
        .unwrap();
    assert_eq!(&*to.blobs.get(id, None).await.unwrap(), b"some bytes");
    assert!(to.stores.media_index.get(lost).await.unwrap().is_some());
}

/// What was acknowledged before a backup began is in it, and each room has its beginning, whatever is written meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_beside_writes_holds_a_beginning_of_each_room() {
    let from = Store::new();
    let users: Vec<UserId> = (0..4).map(|_| UserId::new()).collect();
    let rooms: Vec<Room> = users.iter().map(|user| room(*user)).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let (begun, mut beginnings) = tokio::sync::mpsc::channel(4);
    let mut writers = Vec::new();
    for (user, room) in users.iter().zip(&rooms) {
        from.stores.rooms.create(room).await.unwrap();
        let (log, stop, begun) = (from.stores.log.clone(), stop.clone(), begun.clone());
        let (user, room) = (*user, room.id);
        writers.push(tokio::spawn(async move {
            let mut writer = LogWriter::open(&*log, room).await;
            let role = Role::Owner;
            writer.append(user, EventBody::Joined { user, role }).await;
            let mut sent = 0;
            while !stop.load(Ordering::SeqCst) {
                let body = message(&format!("m {sent}"), format!("c-{sent}"));
                writer.append(user, body).await;
                sent += 1;
                if sent == 600 {
                    begun.send(()).await.unwrap();
                }
            }
            writer.history().await
        }));
    }
    for _ in &rooms {
        beginnings.recv().await.unwrap();
    }
    let mut acknowledged = Vec::new();
    for room in &rooms {
        acknowledged.push(from.stores.archive.peek(room.id).await.unwrap().head);
    }
    let place = tempfile::tempdir().unwrap();
    let manifest = from.save(place.path()).await;
    stop.store(true, Ordering::SeqCst);

    let to = Store::new();
    let store = at(place.path());
    restore(&*store, &manifest, &to.target(), |_, _, _| {})
        .await
        .unwrap();
    for ((writer, room), acknowledged) in writers.into_iter().zip(&rooms).zip(acknowledged) {
        let history = writer.await.unwrap();
        let restored = LogWriter::open(&*to.stores.log, room.id).await;
        assert!(
            restored.head >= acknowledged,
            "an acknowledged event is gone"
        );
        let events = restored.history().await;
        assert_eq!(events, history[..events.len()]);
        // A retry after the restore finds the first result, and one of a later send finds nothing.
        for event in &history {
            let EventBody::Message { draft, .. } = &event.body else {
                continue;
            };
            let id = &draft.client_message_id;
            let found = to.stores.log.find_sent(event.actor, id).await.unwrap();
            let expected = (event.sequence <= restored.head).then_some((room.id, event.sequence));
            assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
        }
    }
}

/// Each object that is missing or was changed is named, and nothing is written.
#[tokio::test(flavor = "multi_thread")]
async fn damage_is_named_and_nothing_is_restored() {
    let from = Store::new();
    let filled = fill(&from.ports()).await;
    // The suite's upload has no bytes; this one has.
    let id = from
        .upload(filled.rooms[0], filled.users[0], b"bytes")
        .await;
    let place = tempfile::tempdir().unwrap();
    let manifest = from.save(place.path()).await;
    let folder = place.path().join(&manifest.backup);
    let store = at(place.path());
    verify(&*store, &manifest, |_| {}).await.unwrap();
    let mut objects: Vec<String> = manifest
        .chunks
        .iter()
        .map(|chunk| chunk.name.clone())
        .collect();
    objects.push(format!("media/{id}"));
    objects.push(manifest.keys[0].name.clone());
    for object in objects {
        let file = folder.join(&object);
        let whole = std::fs::read(&file).unwrap();
        let mut changed = whole.clone();
        changed[whole.len() / 2] ^= 1;
        for damage in [Some(changed), Some(whole[1..].to_vec()), None] {
            match damage {
                Some(bytes) => std::fs::write(&file, bytes).unwrap(),
                None => std::fs::remove_file(&file).unwrap(),
            }
            let to = Store::new();
            let refused = restore(&*store, &manifest, &to.target(), |_, _, _| {})
                .await
                .unwrap_err();
            assert_eq!(refused.code, ErrorCode::FailedPrecondition);
            assert!(
                refused.detail.contains(&object),
                "{object}: {}",
                refused.detail
            );
            assert!(to.stores.archive.users(None, 1).await.unwrap().is_empty());
            assert!(to.stores.archive.rooms(None, 1).await.unwrap().is_empty());
            std::fs::write(&file, &whole).unwrap();
        }
    }
    // The manifest itself, field by field.
    let file = folder.join("manifest.json");
    let whole = std::fs::read_to_string(&file).unwrap();
    for (from, to) in [
        ("\"messages\": ", "\"messages\": 1"),
        ("\"cluster\": \"town\"", "\"cluster\": \"city\""),
        ("\"format\": 2", "\"format\": 3"),
    ] {
        std::fs::write(&file, whole.replacen(from, to, 1)).unwrap();
        let refused = find(&*store, Some(&manifest.backup)).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::FailedPrecondition, "{to}");
        assert!(refused.detail.contains(&manifest.backup));
    }
    std::fs::remove_file(&file).unwrap();
    assert!(list(&*store).await.unwrap().is_empty());
    let missing = find(&*store, Some(&manifest.backup)).await.unwrap_err();
    assert_eq!(missing.code, ErrorCode::NotFound);
    for outside in ["..", "a/../b", ""] {
        let missing = find(&*store, Some(outside)).await.unwrap_err();
        assert_eq!(missing.code, ErrorCode::NotFound);
    }
}

/// A store with anything in it takes no backup; one in which the restore was cut off, or that has it already, takes it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_may_be_repeated_and_mixes_nothing() {
    let from = Store::new();
    let filled = fill(&from.ports()).await;
    let place = tempfile::tempdir().unwrap();
    let manifest = from.save(place.path()).await;
    let store = at(place.path());
    let refused = restore(&*store, &manifest, &from.target(), |_, _, _| {})
        .await
        .unwrap_err();
    assert_eq!(refused.code, ErrorCode::FailedPrecondition);

    // Cut off halfway: another process begins anew.
    let mut to = Store::new();
    to.stores
        .archive
        .begin_load(&manifest.backup)
        .await
        .unwrap();
    fill(&to.ports()).await;
    to.stores.close().await.unwrap();
    let Store {
        stores,
        blobs,
        folder,
    } = to;
    drop((stores, blobs));
    to = Store::at(folder);
    for _ in 0..2 {
        restore(&*store, &manifest, &to.target(), |_, _, _| {})
            .await
            .unwrap();
    }
    let before = seen(&from.ports(), &filled).await;
    assert_same(&before, &seen(&to.ports(), &filled).await);
    assert!(to.folder.path().join("data/store").is_dir());
    let open = from.stores.archive.peek(filled.rooms[0]).await.unwrap();
    assert!(open.head > Sequence(1_000));
}

/// AUTH-15: who is erased after a backup was made is gone from it at the next one: nothing that belongs to them comes back by it, and
/// everybody else does, with their places.
#[tokio::test(flavor = "multi_thread")]
async fn the_erased_stay_away() {
    let (from, place) = (Store::new(), tempfile::tempdir().unwrap());
    let filled = fill(&from.ports()).await;
    let [ann, bob] = [filled.users[0], filled.users[1]];
    let room = filled.rooms[0];
    let anns = from.upload(room, ann, b"of ann").await;
    let bobs = from.upload(room, bob, b"of bob").await;
    let first = from.save(place.path()).await;

    let keys = from.stores.person_keys.clone();
    keys.begin_erasing(bob, Timestamp(5)).await.unwrap();
    keys.destroy(bob, Timestamp(5)).await.unwrap();
    let store = at(place.path());
    let options = Options {
        cluster: "town".into(),
        version: "0".into(),
        blobs: Some(from.blobs.clone()),
    };
    let clock = Arc::new(SystemClock);
    let mut writer = Writer::begin(store.clone(), clock, options, |_| {}).unwrap();
    save(&from.source(), &mut writer).await.unwrap();
    let erased = writer.erased();
    assert_eq!(erased.keys().collect::<Vec<_>>(), [&bob]);
    let second = writer.end().await.unwrap();
    assert_eq!(forget(&*store, "elsewhere", &erased).await.unwrap(), 0);
    assert_eq!(forget(&*store, "town", &erased).await.unwrap(), 1);
    assert_eq!(forget(&*store, "town", &erased).await.unwrap(), 0);

    for manifest in [&first, &second] {
        verify(&*store, manifest, |_| {}).await.unwrap();
        let to = Store::new();
        restore(&*store, manifest, &to.target(), |_, _, _| {})
            .await
            .unwrap();
        let accounts = to.stores.accounts.by_ids(&filled.users).await.unwrap();
        assert_eq!(accounts.len(), filled.users.len() - 1);
        assert!(accounts.iter().all(|account| account.user.id != bob));
        let media = &to.stores.media_index;
        assert!(media.get(anns).await.unwrap().is_some());
        assert!(media.get(bobs).await.unwrap().is_none());
        assert!(to.blobs.get(bobs, None).await.is_err());
        assert_eq!(&to.blobs.get(anns, None).await.unwrap()[..], b"of ann");
        // What is left to do once it runs.
        let waiting = to.stores.person_keys.erasing(ErasurePart::Rooms, 10).await;
        assert_eq!(waiting.unwrap(), [bob]);
        let open = to.stores.archive.peek(room).await.unwrap();
        let before = from.stores.archive.peek(room).await.unwrap();
        assert_eq!(open.head, before.head);
    }
}

/// AUTH-15: without its key a backup holds nothing readable of a person, content of messages included.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_holds_nothing_plain() {
    let (from, place) = (Store::new(), tempfile::tempdir().unwrap());
    let ann = UserId::new();
    let room = room(ann);
    from.stores.rooms.create(&room).await.unwrap();
    let sealed = Sealed::new(from.stores.log.clone(), from.stores.person_keys.clone());
    let mut log = LogWriter::open(&sealed, room.id).await;
    log.append(ann, message("a secret of hers", "c1".into()))
        .await;
    let upload = from.upload(room.id, ann, b"a secret of hers").await;
    let manifest = from.save(place.path()).await;
    let store = at(place.path());
    let mut plain = Vec::new();
    for chunk in &manifest.chunks {
        let path = format!("{}/{}", manifest.backup, chunk.name);
        let bytes = store.get(&path).await.unwrap();
        plain.extend(zstd::bulk::decompress(&bytes, chunk.raw_bytes as usize).unwrap());
    }
    let path = format!("{}/media/{upload}", manifest.backup);
    plain.extend(store.get(&path).await.unwrap());
    let plain = String::from_utf8_lossy(&plain);
    assert!(plain.contains(&room.id.to_string()));
    for secret in ["a secret of hers", "a.bin"] {
        assert!(!plain.contains(secret), "{secret}");
    }
}
