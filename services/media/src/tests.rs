//! The media role over the embedded stores, a directory, and the real message role.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use async_trait::async_trait;
use bytes::Bytes;
use carillon_adapters::{embedded, object};
use carillon_domain::{
    Error, ErrorCode, MediaId, ReplicaId, Result, RoomId, UserId,
    account::{Account, User},
    media::Media,
    ports::{BlobStore, MediaIndex},
    room::{Role, RoomKind},
    services::{MediaService, MessageService, NewMedia, NewRoom},
    time::{Clock, SystemClock},
};
use carillon_message::{MessageOptions, MessagePorts, MessageRole, SoleOwner};
use carillon_presence::{PresenceOptions, PresenceRole};

use crate::{MediaOptions, MediaRole};

const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x06\0\0\0";

struct World {
    media: MediaRole,
    messages: Arc<MessageRole>,
    stores: embedded::Stores,
    directory: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let stores = embedded::open(&directory.path().join("store")).unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let presence = PresenceRole::new(
            stores.presence.clone(),
            stores.rooms.clone(),
            stores.people.clone(),
            stores.bus.clone(),
            clock.clone(),
            PresenceOptions::default(),
        );
        let ports = MessagePorts {
            log: stores.log.clone(),
            rooms: stores.rooms.clone(),
            accounts: stores.accounts.clone(),
            people: stores.people.clone(),
            bus: stores.bus.clone(),
            presence: Arc::new(presence),
            push_queue: stores.push_queue.clone(),
            clock: clock.clone(),
            ownership: Arc::new(SoleOwner),
            person_keys: stores.person_keys.clone(),
        };
        let replica = ReplicaId("message-0".to_owned());
        let messages = MessageRole::start(MessageOptions::default(), ports, replica, None);
        let media = MediaRole::new(
            object::directory(&directory.path().join("media")).unwrap(),
            stores.media_index.clone(),
            messages.clone(),
            clock,
            MediaOptions {
                max_upload_bytes: 1000,
            },
        );
        Self {
            media,
            messages,
            stores,
            directory,
        }
    }

    async fn person(&self, name: &str) -> UserId {
        let user = User {
            id: UserId::new(),
            username: name.to_owned(),
            display_name: name.to_owned(),
            created_at: SystemClock.now(),
            about: Default::default(),
        };
        let account = Account {
            user: user.clone(),
            email: None,
            phone: None,
            password_hash: None,
        };
        self.stores.accounts.create(&account).await.unwrap();
        user.id
    }

    async fn room(&self, owner: UserId, kind: RoomKind) -> RoomId {
        let room = NewRoom {
            kind,
            name: "room".to_owned(),
            description: String::new(),
            rules: carillon_domain::room::RoomRules::default(),
        };
        let view = self.messages.create_room(owner, room).await.unwrap();
        view.room.id
    }

    async fn upload(&self, actor: UserId, room: RoomId, name: &str, bytes: &[u8]) -> Result<Media> {
        let media = NewMedia {
            room,
            file_name: name.to_owned(),
            bytes: Bytes::copy_from_slice(bytes),
        };
        self.media.upload(actor, media).await
    }

    fn stored_blobs(&self) -> usize {
        let folder = self.directory.path().join("media");
        std::fs::read_dir(folder).unwrap().count()
    }
}

fn code<T>(result: Result<T>) -> ErrorCode {
    result.err().expect("must be refused").code
}

/// MEDIA-01: what was uploaded is described and fetched, byte for byte, and in parts (MEDIA-03).
#[tokio::test]
async fn an_upload_comes_back() {
    let world = World::new();
    let ann = world.person("ann").await;
    let room = world.room(ann, RoomKind::Private).await;
    let media = world
        .upload(ann, room, "C:\\pics\\cat.PNG", PNG)
        .await
        .unwrap();
    assert_eq!(media.file_name, "cat.PNG");
    assert_eq!(media.content_type, "image/png");
    assert_eq!(media.size, PNG.len() as u64);
    // By coreutils' sha256sum over the same bytes.
    assert_eq!(
        media.sha256,
        "71fde3856a298a052c6edb5155638d8422114e55bf0e28374d90dea8be99ef6c"
    );
    assert_eq!(world.media.describe(ann, media.id).await.unwrap(), media);
    let fetch = |range| world.media.download(ann, media.id, range);
    assert_eq!(
        fetch(None).await.unwrap(),
        (media.clone(), Bytes::from_static(PNG))
    );
    assert_eq!(fetch(Some(1..4)).await.unwrap().1, "PNG");
    assert_eq!(fetch(Some(0..u64::MAX)).await.unwrap().1, PNG);
    assert_eq!(fetch(Some(12..13)).await.unwrap().1.len(), 1);
    let size = PNG.len() as u64;
    for bad in [size..size + 1, 5..5, u64::MAX - 1..u64::MAX] {
        assert_eq!(code(fetch(Some(bad)).await), ErrorCode::InvalidRequest);
    }
}

/// MEDIA-01: what is refused, each with its code; nothing of it is stored.
#[tokio::test]
async fn refused_uploads_leave_nothing() {
    let world = World::new();
    let ann = world.person("ann").await;
    let room = world.room(ann, RoomKind::Private).await;
    let large = [b'a'; 1001];
    for (name, bytes, expected) in [
        ("a.txt", large.as_slice(), ErrorCode::PayloadTooLarge),
        ("a.txt", b"", ErrorCode::InvalidRequest),
        ("..", b"text", ErrorCode::InvalidRequest),
        ("a.jpg", PNG, ErrorCode::UnsupportedMediaType),
        ("a.svg", b"<svg/>", ErrorCode::UnsupportedMediaType),
        ("a.html", b"<html>", ErrorCode::UnsupportedMediaType),
        ("a.exe", b"MZ\x90\0", ErrorCode::UnsupportedMediaType),
        ("noextension", b"text", ErrorCode::UnsupportedMediaType),
    ] {
        let result = world.upload(ann, room, name, bytes).await;
        assert_eq!(code(result), expected, "{name}");
    }
    assert_eq!(world.stored_blobs(), 0);
    assert!(
        world
            .upload(ann, room, "a.txt", &large[..1000])
            .await
            .is_ok()
    );
}

/// MEDIA-04: only who may read the room may fetch, for as long as they may; for others the file doesn't exist.
#[tokio::test]
async fn fetching_follows_the_room() {
    let world = World::new();
    let (ann, bob, eve) = (
        world.person("ann").await,
        world.person("bob").await,
        world.person("eve").await,
    );
    let room = world.room(ann, RoomKind::Private).await;
    world
        .messages
        .put_member(ann, room, bob, Role::Member)
        .await
        .unwrap();
    let media = world.upload(ann, room, "cat.png", PNG).await.unwrap();
    assert!(world.media.download(bob, media.id, None).await.is_ok());

    let unknown = world.media.describe(eve, MediaId::new()).await.unwrap_err();
    let hidden = world.media.describe(eve, media.id).await.unwrap_err();
    assert_eq!(
        (hidden.code, &hidden.detail),
        (unknown.code, &unknown.detail)
    );
    assert_eq!(hidden.code, ErrorCode::NotFound);
    let stolen = world.media.download(eve, media.id, None).await;
    assert_eq!(code(stolen), ErrorCode::NotFound);
    let smuggled = world.upload(eve, room, "cat.png", PNG).await;
    assert_eq!(code(smuggled), ErrorCode::NotFound);

    world.messages.leave(bob, room).await.unwrap();
    assert_eq!(
        code(world.media.download(bob, media.id, None).await),
        ErrorCode::NotFound
    );
    world.messages.delete_room(ann, room).await.unwrap();
    assert_eq!(
        code(world.media.download(ann, media.id, None).await),
        ErrorCode::NotFound
    );
}

/// MEDIA-04: a listed room is read by everybody; only members upload to it.
#[tokio::test]
async fn listed_rooms_are_read_by_all() {
    let world = World::new();
    let (ann, eve) = (world.person("ann").await, world.person("eve").await);
    let room = world.room(ann, RoomKind::Public).await;
    let media = world.upload(ann, room, "cat.png", PNG).await.unwrap();
    assert!(world.media.download(eve, media.id, None).await.is_ok());
    let result = world.upload(eve, room, "cat.png", PNG).await;
    assert_eq!(code(result), ErrorCode::PermissionDenied);
    world.messages.join(eve, room).await.unwrap();
    assert!(world.upload(eve, room, "cat.png", PNG).await.is_ok());
}

/// A blob store that can't be reached.
struct NoBlobs;

#[async_trait]
impl BlobStore for NoBlobs {
    async fn put(&self, _: MediaId, _: Bytes) -> Result<()> {
        Err(Error::new(ErrorCode::Unavailable, "cut off"))
    }
    async fn get(&self, _: MediaId, _: Option<std::ops::Range<u64>>) -> Result<Bytes> {
        Err(Error::not_found("blob"))
    }
    async fn delete(&self, _: MediaId) -> Result<()> {
        Ok(())
    }
}

struct CountedIndex(Arc<dyn MediaIndex>, AtomicU32);

#[async_trait]
impl MediaIndex for CountedIndex {
    async fn put(&self, media: &Media) -> Result<()> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.put(media).await
    }
    async fn get(&self, id: MediaId) -> Result<Option<Media>> {
        self.0.get(id).await
    }
    async fn remove(&self, owner: UserId, id: MediaId) -> Result<()> {
        self.0.remove(owner, id).await
    }
    async fn of_owner(
        &self,
        owner: UserId,
        after: Option<MediaId>,
        limit: usize,
    ) -> Result<Vec<MediaId>> {
        self.0.of_owner(owner, after, limit).await
    }
}

/// MEDIA-03: without the blob store nothing is indexed; bytes that are gone are a defect, not a missing file.
#[tokio::test]
async fn an_entry_is_never_without_bytes() {
    let world = World::new();
    let ann = world.person("ann").await;
    let room = world.room(ann, RoomKind::Private).await;
    let index = Arc::new(CountedIndex(
        world.stores.media_index.clone(),
        AtomicU32::new(0),
    ));
    let cut_off = MediaRole::new(
        Arc::new(NoBlobs),
        index.clone(),
        world.messages.clone(),
        Arc::new(SystemClock),
        MediaOptions::default(),
    );
    let new = NewMedia {
        room,
        file_name: "cat.png".to_owned(),
        bytes: Bytes::from_static(PNG),
    };
    assert_eq!(code(cut_off.upload(ann, new).await), ErrorCode::Unavailable);
    assert_eq!(index.1.load(Ordering::SeqCst), 0);
    let media = world.upload(ann, room, "cat.png", PNG).await.unwrap();
    assert_eq!(
        code(cut_off.download(ann, media.id, None).await),
        ErrorCode::Internal
    );
}
