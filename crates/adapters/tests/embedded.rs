//! The embedded store: every suite, what it promises beyond the ports, and what it says when it can't be opened.

use std::{path::Path, sync::Arc, time::Duration};

use carillon_adapters::{
    conformance::{self, room_log::Writer},
    embedded::{self, Options, Stores},
    limits::MemoryLimiter,
    object,
    sealed::Sealed,
};
use carillon_domain::{
    Clock, ErrorCode, RoomId, Sequence, Timestamp, UserId,
    event::EventBody,
    partition::Partition,
    ports::{JobHandler, JobOutcome},
};

/// A store in a directory of its own. The directory is dropped last.
fn fresh() -> (Stores, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (open(folder.path()), folder)
}

fn open(path: &Path) -> Stores {
    embedded::open(path).unwrap()
}

// === suites ===

#[tokio::test(flavor = "multi_thread")]
async fn accounts() {
    let (stores, _folder) = fresh();
    conformance::accounts::all(stores.accounts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rooms() {
    let (stores, _folder) = fresh();
    conformance::rooms::all(stores.rooms, stores.log).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn moderation() {
    let (stores, _folder) = fresh();
    conformance::moderation::all(stores.rooms, stores.log).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn room_log() {
    let (stores, _folder) = fresh();
    conformance::room_log::all(stores.log).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sealed_room_log() {
    let (stores, _folder) = fresh();
    let sealed = Sealed::new(stores.log, stores.person_keys);
    conformance::room_log::all(Arc::new(sealed)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn push_queue() {
    let (stores, _folder) = fresh();
    conformance::push_queue::all(stores.push_queue).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn push_targets() {
    let (stores, _folder) = fresh();
    conformance::push_targets::all(stores.push_targets).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn security() {
    let (stores, _folder) = fresh();
    conformance::security::all(stores.security).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn person_keys() {
    let (stores, _folder) = fresh();
    conformance::person_keys::all(stores.person_keys).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn people_index() {
    let (stores, _folder) = fresh();
    conformance::people_index::all(stores.people_index).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn people() {
    let (stores, _folder) = fresh();
    conformance::people::all(stores.people).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn media() {
    let (stores, _folder) = fresh();
    conformance::media::all(stores.media_index).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_in_a_directory() {
    let folder = tempfile::tempdir().unwrap();
    let blobs = object::directory(&folder.path().join("media")).unwrap();
    conformance::blobs::all(blobs.clone()).await;
    carillon_domain::ports::Probe::check(&*blobs).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions() {
    let (stores, _folder) = fresh();
    conformance::sessions::all(stores.sessions).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limiter() {
    conformance::limiter::all(Arc::new(MemoryLimiter::new())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ephemeral() {
    let (stores, _folder) = fresh();
    conformance::ephemeral::all(stores.ephemeral).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bus() {
    let (stores, _folder) = fresh();
    conformance::bus::all(stores.bus).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn registry() {
    let (stores, _folder) = fresh();
    conformance::registry::all(stores.registry).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn presence() {
    let (stores, _folder) = fresh();
    conformance::presence::all(stores.presence).await;
}

// === beyond the ports ===

/// Promise 1: everything acknowledged is there after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_everything() {
    let (stores, folder) = fresh();
    let user = UserId::new();
    let mut writer = Writer::open(&*stores.log, RoomId::new()).await;
    let room = writer.room;
    let joined = EventBody::Joined {
        user,
        role: carillon_domain::room::Role::Owner,
    };
    let mut expected = vec![writer.append(user, joined).await];
    for n in 0..50 {
        expected.push(writer.send(user, &n.to_string()).await);
    }
    let epoch = writer.epoch;
    drop(writer);
    stores
        .ephemeral
        .put("code", b"123456", Duration::from_secs(60))
        .await
        .unwrap();
    stores.close().await.unwrap();
    let late = stores.ephemeral.remove("code").await.unwrap_err();
    assert_eq!(late.code, ErrorCode::Unavailable, "closed is closed");
    stores.close().await.unwrap();
    drop(stores);

    let stores = open(folder.path());
    let writer = Writer::open(&*stores.log, room).await;
    assert!(writer.epoch > epoch, "epochs survive");
    assert_eq!(writer.history().await, expected);
    assert_eq!(stores.rooms.rooms_of(user, None, 9).await.unwrap(), [room]);
    let value = stores.ephemeral.get("code").await.unwrap();
    assert_eq!(value.as_deref(), Some(&b"123456"[..]));
}

/// NOTIF-02: jobs survive, those that were under way too, and so do their tries.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_jobs_and_their_tries() {
    struct Failing(tokio::sync::mpsc::UnboundedSender<()>);
    #[async_trait::async_trait]
    impl JobHandler for Failing {
        async fn handle(&self, _job: carillon_domain::push::PushJob) -> JobOutcome {
            let _ = self.0.send(());
            JobOutcome::Retry(Duration::ZERO)
        }
    }
    let (stores, folder) = fresh();
    let job = carillon_domain::push::PushJob {
        id: "1/0".into(),
        room: RoomId::new(),
        message: carillon_domain::MessageId::new(),
        sequence: Sequence(1),
        sender: UserId::new(),
        title: String::new(),
        body: String::new(),
        recipients: vec![],
        traceparent: None,
    };
    stores.push_queue.publish(&job).await.unwrap();
    stores.close().await.unwrap();
    drop(stores);
    let mut tries = 0;
    for _ in 0..embedded::MAX_TRIES {
        let stores = open(folder.path());
        let (sender, mut handled) = tokio::sync::mpsc::unbounded_channel();
        let stop = Box::pin(async move {
            // Stopped in its first try: the try is finished, and counts.
            handled.recv().await;
        });
        assert_eq!(stores.push_queue.depth().await.unwrap(), (1, 0));
        stores
            .push_queue
            .consume(Arc::new(Failing(sender)), 1, stop)
            .await
            .unwrap();
        tries += 1;
        stores.close().await.unwrap();
    }
    let stores = open(folder.path());
    assert_eq!(tries, embedded::MAX_TRIES);
    assert_eq!(stores.push_queue.depth().await.unwrap(), (0, 1));
}

/// MSG-20: the reference adapter refuses an append that would leave a gap, repeat a place, or count wrongly, as a whole.
#[tokio::test(flavor = "multi_thread")]
async fn appends_that_break_the_contract_are_refused() {
    let (stores, _folder) = fresh();
    let mut writer = Writer::open(&*stores.log, RoomId::new()).await;
    let user = UserId::new();
    let first = writer.send(user, "first").await;
    let text = || conformance::room_log::text("x");
    let good = writer.event(user, text());
    let with = |change: &dyn Fn(&mut carillon_domain::event::RoomEvent)| {
        let mut event = good.clone();
        change(&mut event);
        event
    };
    let target = |target| EventBody::Deleted {
        id: carillon_domain::MessageId::new(),
        target: Sequence(target),
    };
    let other_room = loop {
        let room = RoomId::new();
        if Partition::of_room(room) != Partition::of_room(writer.room) {
            break room;
        }
    };
    let bad = [
        vec![with(&|event| event.sequence = Sequence(3))],
        vec![first.clone()],
        vec![good.clone(), good.clone()],
        vec![good.clone(), with(&|event| event.sequence = Sequence(4))],
        vec![with(&|event| event.messages_before = 0)],
        vec![with(&|event| event.body = target(2))],
        vec![with(&|event| event.body = target(0))],
        vec![with(&|event| event.body = target(9))],
        vec![good.clone(), with(&|event| event.room = other_room)],
    ];
    for events in bad {
        let error = writer.try_append(&events).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Internal, "{events:?}");
        let open = stores.log.open(writer.room, writer.epoch).await.unwrap();
        assert_eq!((open.head, open.messages), (Sequence(1), 1));
    }
    let found = stores
        .log
        .events(writer.room, &[], Sequence(1), Sequence(9));
    assert_eq!(found.await.unwrap(), [first]);
    writer.try_append(&[good]).await.unwrap();
}

/// MSG-20: an epoch that is over opens nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_superseded_epoch_opens_nothing() {
    let (stores, _folder) = fresh();
    let old = Writer::open(&*stores.log, RoomId::new()).await;
    Writer::open(&*stores.log, old.room).await;
    let error = stores.log.open(old.room, old.epoch).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotOwner);
}

/// A clock that tests move.
struct Hand(std::sync::atomic::AtomicI64);

impl Clock for Hand {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(std::sync::atomic::Ordering::SeqCst))
    }
}

/// PRES-01: when somebody was last seen survives a restart; their leases don't.
#[tokio::test(flavor = "multi_thread")]
async fn last_seen_survives_a_restart() {
    use carillon_domain::{
        DeviceId,
        presence::{Lease, PresenceState},
    };
    let (stores, folder) = fresh();
    let lease = Lease {
        user: UserId::new(),
        device: DeviceId::new(),
        state: PresenceState::Online,
    };
    let now = Timestamp(1_000_000);
    let ttl = Duration::from_secs(30);
    stores.presence.renew(&[lease], now, ttl).await.unwrap();
    stores.close().await.unwrap();
    drop(stores);
    let stores = open(folder.path());
    let found = stores.presence.get(&[lease.user], now).await.unwrap();
    assert_eq!(found[0].state, PresenceState::Offline);
    assert_eq!(found[0].last_seen, Some(now));
}

/// AUTH-05: what ended is gone for readers at once, without anybody removing it.
#[tokio::test(flavor = "multi_thread")]
async fn ended_rows_are_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(Hand(1_000_000.into()));
    let options = Options {
        clock: clock.clone(),
        ..Options::default()
    };
    let stores = embedded::open_with(folder.path(), options).unwrap();
    let token = uuid::Uuid::now_v7();
    stores
        .sessions
        .revoke_token(token, Timestamp(1_000_500))
        .await
        .unwrap();
    let ttl = Duration::from_millis(500);
    assert!(stores.ephemeral.claim("claim", ttl).await.unwrap());
    assert_eq!(stores.ephemeral.increment("count", ttl).await.unwrap(), 1);
    assert_eq!(stores.ephemeral.increment("count", ttl).await.unwrap(), 2);
    assert!(stores.sessions.is_revoked(token).await.unwrap());
    assert!(!stores.ephemeral.claim("claim", ttl).await.unwrap());
    clock
        .0
        .store(1_000_500, std::sync::atomic::Ordering::SeqCst);
    assert!(!stores.sessions.is_revoked(token).await.unwrap());
    assert_eq!(stores.ephemeral.increment("count", ttl).await.unwrap(), 1);
    assert!(stores.ephemeral.claim("claim", ttl).await.unwrap());
}

/// OPS-01: the probe writes, and fails once the store is closed.
#[tokio::test(flavor = "multi_thread")]
async fn the_probe_tells_whether_writes_work() {
    let (stores, _folder) = fresh();
    assert_eq!(stores.probe.name(), "embedded");
    stores.probe.check().await.unwrap();
    stores.close().await.unwrap();
    let error = stores.probe.check().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
}

// === opening ===

fn refusal(path: &Path) -> String {
    let error = embedded::open(path).err().expect("it can't be opened");
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
    let detail = error.detail.to_string();
    assert!(
        detail.contains(&path.display().to_string()),
        "names the directory: {detail}"
    );
    detail
}

/// OPS-06: a second opener is told who has the directory.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_in_use_is_refused() {
    let (stores, folder) = fresh();
    let detail = refusal(folder.path());
    assert!(detail.contains("in use"), "{detail}");
    assert!(detail.contains(&std::process::id().to_string()), "{detail}");
    drop(stores);
    open(folder.path());
}

/// A path that is no directory, or lies below one, is refused with what to do.
#[test]
fn a_path_that_cant_be_a_directory_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("below")] {
        let detail = refusal(&path);
        assert!(detail.contains("name another directory"), "{detail}");
    }
}

/// A directory without the right to write is refused with what to do. (The superuser may write anywhere, except where the
/// kernel says no.)
#[test]
fn an_unwritable_directory_is_refused() {
    let path = Path::new("/proc/self");
    if path.is_dir() {
        let detail = refusal(path);
        assert!(detail.contains("right to write"), "{detail}");
    }
}

/// A store that was being made when the process died is made anew.
#[test]
fn a_half_made_store_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let half = folder.path().join("store.new");
    std::fs::create_dir_all(half.join("keyspaces")).unwrap();
    std::fs::write(half.join("0.jnl"), [0; 100]).unwrap();
    open(folder.path());
    open(folder.path());
    assert!(!half.exists());
}

/// A damaged store is refused with what to do, and without a panic.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_is_refused() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 4] = [
        ("no version marker", |store| {
            std::fs::remove_file(store.join("version")).unwrap();
        }),
        ("another program's version marker", |store| {
            std::fs::write(store.join("version"), "XYZ9").unwrap();
        }),
        ("no list of tables", |store| {
            std::fs::remove_dir_all(store.join("keyspaces/0")).unwrap();
        }),
        ("an empty folder", |store| {
            std::fs::remove_dir_all(store).unwrap();
            std::fs::create_dir(store).unwrap();
        }),
    ];
    for (what, damage) in damages {
        let (stores, folder) = fresh();
        let mut writer = Writer::open(&*stores.log, RoomId::new()).await;
        writer.send(UserId::new(), "x").await;
        stores.close().await.unwrap();
        drop(stores);
        damage(&folder.path().join("store"));
        let detail = refusal(folder.path());
        assert!(detail.contains("restore"), "{what}: {detail}");
    }
}
