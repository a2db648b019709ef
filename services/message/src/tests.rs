//! The role over the embedded stores, with owners that come and go, a log that is counted, and a bus that stalls.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use carillon_adapters::{
    conformance::room_log::{Writer, text},
    embedded,
};
use carillon_domain::{
    ClientMessageId, Clock, DeviceId, Error, ErrorCode, MessageId, ReplicaId, Result, RoomId,
    Sequence, Timestamp, UserId,
    account::{Account, User},
    event::{Draft, EventBody, MessageType, RoomEvent, StoredMessage},
    partition::Partition,
    people::Relation,
    ports::{Bus, BusItem, Epoch, Fence, Floor, OpenRoom, Reached, RoomLog, Subscriptions},
    presence::{Lease, Presence, PresenceState},
    privacy::Audience,
    room::{Role, Room, RoomKind, RoomRules},
    services::{
        HistoryQuery, MessageService, NewRoom, PresenceService, Restriction, RoomChange,
        RoomSummary,
    },
    settings::SettingsChange,
    signal::{Activity, Signal, Topic},
    time::SystemClock,
};
use futures::{StreamExt as _, stream::BoxStream};

use crate::{MessageOptions, MessagePorts, MessageRole, Ownership};

/// How long anything may take on a slow machine. Waiting ends as soon as it happened.
const PATIENCE: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(3600);

/// Says whether a replica thinks that it owns everything.
struct Switch(AtomicBool);

impl Ownership for Switch {
    fn owns(&self, _: Partition) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

struct Nobody;

#[async_trait]
impl PresenceService for Nobody {
    async fn renew(&self, _: &[Lease]) -> Result<()> {
        Ok(())
    }
    async fn release(&self, _: UserId, _: DeviceId) -> Result<()> {
        Ok(())
    }
    async fn get(&self, users: &[UserId]) -> Result<Vec<Presence>> {
        let online = |user: &UserId| Presence {
            user: *user,
            state: PresenceState::Online,
            last_seen: None,
        };
        Ok(users.iter().map(online).collect())
    }
    async fn visible(&self, _: UserId, users: &[UserId]) -> Result<Vec<Presence>> {
        self.get(users).await
    }
}

/// The embedded log, with what tests change about it.
struct Log {
    inner: Arc<dyn RoomLog>,
    /// Reads of events and messages.
    reads: AtomicUsize,
    /// Openings that fail from now on.
    failing_opens: AtomicUsize,
    /// The epochs that rooms were opened under.
    opened: parking_lot::Mutex<Vec<(RoomId, Epoch)>>,
    /// Entries that the index has besides its own.
    void: parking_lot::Mutex<Vec<(RoomId, Sequence)>>,
}

#[async_trait]
impl RoomLog for Log {
    async fn acquire(&self, partition: Partition, owner: &ReplicaId) -> Result<Epoch> {
        self.inner.acquire(partition, owner).await
    }
    async fn open(&self, room: RoomId, epoch: Epoch) -> Result<OpenRoom> {
        self.opened.lock().push((room, epoch));
        let less = |left: usize| left.checked_sub(1);
        if self
            .failing_opens
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
            .is_ok()
        {
            return Err(Error::new(ErrorCode::Unavailable, "no answer"));
        }
        self.inner.open(room, epoch).await
    }
    async fn check(&self, partition: Partition, epoch: Epoch) -> Result<()> {
        self.inner.check(partition, epoch).await
    }
    async fn append(&self, partition: Partition, epoch: Epoch, events: &[RoomEvent]) -> Result<()> {
        self.inner.append(partition, epoch, events).await
    }
    async fn raise_floor(&self, room: RoomId, floor: Floor) -> Result<()> {
        self.inner.raise_floor(room, floor).await
    }
    async fn purge(&self, room: RoomId, fences: &[Fence], below: Sequence) -> Result<bool> {
        self.inner.purge(room, fences, below).await
    }
    async fn events(
        &self,
        room: RoomId,
        fences: &[Fence],
        from: Sequence,
        to: Sequence,
    ) -> Result<Vec<RoomEvent>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.inner.events(room, fences, from, to).await
    }
    async fn messages(
        &self,
        room: RoomId,
        fences: &[Fence],
        from: Sequence,
        to: Sequence,
    ) -> Result<Vec<StoredMessage>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.inner.messages(room, fences, from, to).await
    }
    async fn find_sent(
        &self,
        sender: UserId,
        id: &ClientMessageId,
    ) -> Result<Vec<(RoomId, Sequence)>> {
        let mut found = self.inner.find_sent(sender, id).await?;
        found.extend(self.void.lock().iter());
        Ok(found)
    }
    async fn find_message(&self, id: MessageId) -> Result<Option<(RoomId, Sequence)>> {
        self.inner.find_message(id).await
    }
}

/// A bus that never answers.
struct Stalled;

#[async_trait]
impl Bus for Stalled {
    async fn publish(&self, _: Topic, _: Bytes) -> Result<()> {
        std::future::pending().await
    }
    async fn receiver(&self) -> Result<(Arc<dyn Subscriptions>, BoxStream<'static, BusItem>)> {
        Err(Error::defect("nobody listens"))
    }
}

/// The machine's clock, so many milliseconds ahead.
#[derive(Default)]
struct Ahead(AtomicU64);

impl Ahead {
    fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_millis()).unwrap();
        self.0.fetch_add(by, Ordering::SeqCst);
    }
}

impl Clock for Ahead {
    fn now(&self) -> Timestamp {
        SystemClock
            .now()
            .plus(Duration::from_millis(self.0.load(Ordering::SeqCst)))
    }
}

struct World {
    stores: embedded::Stores,
    log: Arc<Log>,
    clock: Arc<Ahead>,
    _folder: tempfile::TempDir,
}

struct Replica {
    role: Arc<MessageRole>,
    owner: Arc<Switch>,
}

impl std::ops::Deref for Replica {
    type Target = MessageRole;
    fn deref(&self) -> &MessageRole {
        &self.role
    }
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let stores = embedded::open(folder.path()).unwrap();
        let log = Arc::new(Log {
            inner: stores.log.clone(),
            reads: AtomicUsize::new(0),
            failing_opens: AtomicUsize::new(0),
            opened: parking_lot::Mutex::default(),
            void: parking_lot::Mutex::default(),
        });
        Self {
            stores,
            log,
            clock: Arc::default(),
            _folder: folder,
        }
    }

    /// One more replica, or the only one after a restart: it owns everything and remembers nothing.
    fn replica_with(&self, options: MessageOptions, bus: Arc<dyn Bus>) -> Replica {
        let owner = Arc::new(Switch(AtomicBool::new(true)));
        let world_clock = self.clock.clone();
        let ports = MessagePorts {
            log: self.log.clone(),
            rooms: self.stores.rooms.clone(),
            accounts: self.stores.accounts.clone(),
            people: self.stores.people.clone(),
            settings: self.stores.settings.clone(),
            bus,
            presence: Arc::new(Nobody),
            push_queue: self.stores.push_queue.clone(),
            clock: world_clock,
            ownership: owner.clone(),
            person_keys: self.stores.person_keys.clone(),
        };
        let replica = ReplicaId(format!("message-{}", RoomId::new()));
        Replica {
            role: MessageRole::start(options, ports, replica, None),
            owner,
        }
    }

    fn replica(&self) -> Replica {
        self.replica_with(MessageOptions::default(), self.stores.bus.clone())
    }

    /// A replica that proves its ownership this often.
    fn replica_proving(&self, proof_lasts: Duration) -> Replica {
        let options = MessageOptions {
            proof_lasts,
            ..MessageOptions::default()
        };
        self.replica_with(options, self.stores.bus.clone())
    }

    /// A stored room that nobody is in yet.
    async fn empty_room(&self, id: RoomId, kind: RoomKind, created_by: UserId) -> RoomId {
        let room = Room {
            id,
            kind,
            name: "room".into(),
            description: String::new(),
            created_by,
            created_at: Timestamp(1),
            pair: None,
            deleted_at: None,
            rules: RoomRules::default(),
        };
        self.stores.rooms.create(&room).await.unwrap();
        id
    }

    async fn person(&self) -> UserId {
        let user = User {
            id: UserId::new(),
            username: format!("u{}", &UserId::new().0.simple().to_string()[8..]),
            display_name: "somebody".into(),
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
}

/// Another room of the same partition.
fn sibling(of: RoomId) -> RoomId {
    loop {
        let room = RoomId::new();
        if Partition::of_room(room) == Partition::of_room(of) {
            return room;
        }
    }
}

fn draft(id: &str, content: &str) -> Draft {
    Draft {
        client_message_id: ClientMessageId(id.into()),
        message_type: MessageType::Text,
        content: content.into(),
        reply_to: None,
    }
}

/// Ownership moves from one replica to another.
fn hand_over(from: &Replica, to: &Replica) {
    from.owner.0.store(false, Ordering::SeqCst);
    to.owner.0.store(true, Ordering::SeqCst);
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("{what} never came"))
}

async fn line(role: &MessageRole, user: UserId, room: RoomId) -> RoomSummary {
    let lines = role.my_rooms(user, None, 100).await.unwrap();
    lines.into_iter().find(|line| line.room.id == room).unwrap()
}

async fn group(role: &MessageRole, owner: UserId) -> RoomId {
    let new = NewRoom {
        kind: RoomKind::Group,
        name: "group".into(),
        description: String::new(),
        rules: RoomRules::default(),
    };
    role.create_room(owner, new).await.unwrap().room.id
}

// === ownership ===

/// Promise 4: a replica that lost a partition without noticing, and has it back, goes on with every room: those it has open,
/// those that it hasn't, and those that were made meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn ownership_that_comes_back_serves_every_room() {
    for proof_lasts in [LONG, Duration::ZERO] {
        let world = World::new();
        let (ann, bob) = (UserId::new(), UserId::new());
        let (first, second) = (world.replica_proving(proof_lasts), world.replica());
        let open = world.empty_room(RoomId::new(), RoomKind::Public, ann).await;
        let made_meanwhile = sibling(open);
        first.join(ann, open).await.unwrap();
        hand_over(&first, &second);
        world
            .empty_room(made_meanwhile, RoomKind::Public, ann)
            .await;
        second.join(ann, made_meanwhile).await.unwrap();
        hand_over(&second, &first);
        assert_eq!(
            first.join(bob, made_meanwhile).await.unwrap(),
            Sequence(2),
            "proof lasts {proof_lasts:?}"
        );
        assert_eq!(first.join(bob, open).await.unwrap(), Sequence(2));
    }
}

/// Promise 4: what another owner did meanwhile is seen by who asks the first one again, although nothing was written there since.
#[tokio::test(flavor = "multi_thread")]
async fn ownership_that_comes_back_shows_what_was_done_meanwhile() {
    let world = World::new();
    let (ann, bob, eve) = (
        world.person().await,
        world.person().await,
        world.person().await,
    );
    let (first, second) = (world.replica_proving(Duration::ZERO), world.replica());
    let room = group(&first, ann).await;
    first
        .put_member(ann, room, eve, Role::Member)
        .await
        .unwrap();
    first.history(eve, room, newest(10)).await.unwrap();
    hand_over(&first, &second);
    second
        .put_member(ann, room, bob, Role::Member)
        .await
        .unwrap();
    second.remove_member(ann, room, eve).await.unwrap();
    let sent = second.send(bob, room, draft("b1", "hello")).await.unwrap();
    hand_over(&second, &first);

    let place = sent.message.sequence;
    let page = first.events(ann, room, Sequence(2), 10).await.unwrap();
    assert_eq!(page.head, place);
    assert_eq!(first.heads(&[room]).await.unwrap()[0].head, place);
    let history = first.history(bob, room, newest(10)).await.unwrap();
    assert_eq!(history, [sent.message]);
    let removed = first.history(eve, room, newest(10)).await.unwrap_err();
    assert_eq!(removed.code, ErrorCode::NotFound);
    // Nor is a repeat taken for something new.
    let again = first.send(bob, room, draft("b1", "hello")).await.unwrap();
    assert!(again.duplicate);
}

/// Promise 4: an owner that was replaced a moment ago, and doesn't know it yet, refuses nothing that its successor would allow.
#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_owner_refuses_nothing() {
    let world = World::new();
    let (ann, bob) = (world.person().await, world.person().await);
    // Both take themselves for the owner, and the first goes by what it proved long ago.
    let (first, second) = (world.replica_proving(PATIENCE), world.replica());
    let room = group(&first, ann).await;
    let refused = first.send(bob, room, draft("b0", "hello")).await;
    assert_eq!(refused.unwrap_err().code, ErrorCode::NotFound);
    second
        .put_member(ann, room, bob, Role::Member)
        .await
        .unwrap();
    let sent = second.send(bob, room, draft("b1", "hello")).await.unwrap();
    let id = sent.message.id;
    let edited = first.edit(bob, room, id, "hello again".into()).await;
    assert_eq!(edited.unwrap_err().code, ErrorCode::NotOwner);
    // That was the end of its tenure: it looks again.
    let edited = first.edit(bob, room, id, "hello again".into()).await;
    assert_eq!(edited.unwrap().content, "hello again");
}

/// Promise 1: an epoch gets one try to open a room: after a failure the next try has another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_opening_uses_the_epoch_up() {
    let world = World::new();
    let ann = UserId::new();
    let replica = world.replica();
    let room = world.empty_room(RoomId::new(), RoomKind::Public, ann).await;
    world.log.failing_opens.store(1, Ordering::SeqCst);
    let error = replica.join(ann, room).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert_eq!(replica.join(ann, room).await.unwrap(), Sequence(1));
    let opened = world.log.opened.lock().clone();
    assert_eq!(opened.len(), 2);
    assert!(opened[0].1 < opened[1].1, "{opened:?}");
}

// === idempotency over rooms ===

/// Promise 3: an id that its sender used in another room of the same partition is refused, also when that room isn't open: the
/// task doesn't wait for itself, and goes on.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_of_another_room_is_refused_without_waiting() {
    let world = World::new();
    let ann = UserId::new();
    let here = world.empty_room(RoomId::new(), RoomKind::Public, ann).await;
    let there = world.empty_room(sibling(here), RoomKind::Public, ann).await;
    let far = world.empty_room(RoomId::new(), RoomKind::Public, ann).await;
    let replica = world.replica();
    for room in [here, there, far] {
        replica.join(ann, room).await.unwrap();
    }
    let first = replica.send(ann, there, draft("z", "hi")).await.unwrap();

    let restarted = world.replica();
    for room in [here, far] {
        let send = restarted.send(ann, room, draft("z", "hi"));
        let error = soon("an answer", send).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::IdempotencyConflict);
    }
    let others = restarted.send(ann, here, draft("y", "hi"));
    assert!(!soon("another send", others).await.unwrap().duplicate);
    let again = restarted.send(ann, there, draft("z", "hi")).await.unwrap();
    assert_eq!(again.message, first.message);
    assert!(again.duplicate);
}

/// Promise 3: entries of the index that lead nowhere don't keep a message from being sent, once.
#[tokio::test(flavor = "multi_thread")]
async fn void_entries_of_other_rooms_are_no_obstacle() {
    let world = World::new();
    let ann = UserId::new();
    let replica = world.replica();
    let here = world.empty_room(RoomId::new(), RoomKind::Public, ann).await;
    let other = world.empty_room(sibling(here), RoomKind::Public, ann).await;
    replica.join(ann, here).await.unwrap();
    replica.join(ann, other).await.unwrap();
    world.log.void.lock().extend([
        (other, Sequence(1)),
        (other, Sequence(9)),
        (RoomId::new(), Sequence(3)),
    ]);
    let sent = soon("a send", replica.send(ann, here, draft("z", "hi")));
    assert!(!sent.await.unwrap().duplicate);
    let again = soon("a send", replica.send(ann, here, draft("z", "hi")));
    assert!(again.await.unwrap().duplicate);
}

// === deleted rooms ===

/// MSG-01: a deleted room stays deleted under every later owner, and deleting it again is no error.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_room_stays_deleted() {
    let world = World::new();
    let ann = UserId::new();
    let room = world.empty_room(RoomId::new(), RoomKind::Public, ann).await;
    let replica = world.replica();
    replica.join(ann, room).await.unwrap();
    replica.delete_room(ann, room).await.unwrap();
    for replica in [replica, world.replica()] {
        let error = replica.send(ann, room, draft("c", "hi")).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::NotFound);
        let error = replica.history(ann, room, newest(1)).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::NotFound);
        replica.delete_room(ann, room).await.unwrap();
        assert_eq!(replica.public_rooms(None, 100).await.unwrap(), []);
    }
}

/// MSG-09: deleted rooms neither shorten a page of somebody's rooms nor fill their list.
#[tokio::test(flavor = "multi_thread")]
async fn deleted_rooms_leave_a_persons_list() {
    let world = World::new();
    let ann = world.person().await;
    let options = MessageOptions {
        max_rooms: 5,
        ..MessageOptions::default()
    };
    let replica = world.replica_with(options, world.stores.bus.clone());
    let mut rooms = Vec::new();
    for _ in 0..5 {
        rooms.push(group(&replica, ann).await);
    }
    let new = || NewRoom {
        kind: RoomKind::Group,
        name: "one more".into(),
        description: String::new(),
        rules: RoomRules::default(),
    };
    let error = replica.create_room(ann, new()).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
    replica.delete_room(ann, rooms[1]).await.unwrap();
    replica.delete_room(ann, rooms[2]).await.unwrap();
    let ids = async |after, limit| -> Vec<RoomId> {
        let page = replica.my_rooms(ann, after, limit).await.unwrap();
        page.into_iter().map(|line| line.room.id).collect()
    };
    assert_eq!(ids(None, 2).await, [rooms[0], rooms[3]], "a full page");
    assert_eq!(ids(Some(rooms[3]), 2).await, [rooms[4]]);
    let left = [rooms[0], rooms[3], rooms[4]];
    assert_eq!(replica.room_ids(ann).await.unwrap(), left);

    // Those that nobody looked at don't count against the limit either.
    let fourth = group(&replica, ann).await;
    let fifth = group(&replica, ann).await;
    replica.delete_room(ann, fourth).await.unwrap();
    let sixth = group(&replica, ann).await;
    let error = replica.create_room(ann, new()).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
    let expected = [rooms[0], rooms[3], rooms[4], fifth, sixth];
    assert_eq!(ids(None, 100).await, expected);
}

/// MSG-03: the limit of rooms is for who comes into one, not for who is there already.
#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_rooms_refuses_newcomers_only() {
    let world = World::new();
    let (ann, bob, zoe) = (
        world.person().await,
        world.person().await,
        world.person().await,
    );
    let options = MessageOptions {
        max_rooms: 2,
        ..MessageOptions::default()
    };
    let replica = world.replica_with(options, world.stores.bus.clone());
    let room = world.empty_room(RoomId::new(), RoomKind::Public, ann).await;
    replica.join(ann, room).await.unwrap();
    let place = replica.join(bob, room).await.unwrap();
    let (direct, made) = replica.open_direct(bob, ann).await.unwrap();
    assert!(made);

    assert_eq!(replica.join(bob, room).await.unwrap(), place);
    let (again, made) = replica.open_direct(bob, ann).await.unwrap();
    assert_eq!((again.room.id, made), (direct.room.id, false));
    for role in [Role::Admin, Role::Member] {
        let member = replica.put_member(ann, room, bob, role).await.unwrap();
        assert_eq!(member.role, role);
    }
    let more = world.empty_room(RoomId::new(), RoomKind::Public, zoe).await;
    let error = replica.join(bob, more).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
}

// === reading ===

fn newest(limit: usize) -> HistoryQuery {
    HistoryQuery {
        limit,
        before: None,
        after: None,
    }
}

/// MSG-09: unread are the messages after one's mark that weren't deleted: for who wrote some, who joined late, who read a part, and
/// under every owner.
#[tokio::test(flavor = "multi_thread")]
async fn unread_messages_are_those_after_the_mark() {
    let world = World::new();
    let (ann, bob, zoe) = (
        world.person().await,
        world.person().await,
        world.person().await,
    );
    let replica = world.replica();
    let room = group(&replica, ann).await;
    let add = async |user| {
        replica
            .put_member(ann, room, user, Role::Member)
            .await
            .unwrap()
    };
    let mut sent = Vec::new();
    let mut say = async |user, text: &str| {
        let message = replica.send(user, room, draft(text, text)).await.unwrap();
        sent.push(message.message);
    };
    add(bob).await;
    for text in ["a1", "a2", "a3"] {
        say(ann, text).await;
    }
    add(zoe).await;
    let expect = async |role: &MessageRole, expected: [u64; 3], when: &str| {
        let mut unread = Vec::new();
        for user in [ann, bob, zoe] {
            unread.push(line(role, user, room).await.unread);
        }
        assert_eq!(unread, expected, "{when}");
    };
    expect(&replica, [0, 3, 0], "nobody has read anything").await;
    // Another role is no new joining.
    replica
        .put_member(ann, room, zoe, Role::Moderator)
        .await
        .unwrap();
    for text in ["a4", "a5"] {
        say(ann, text).await;
    }
    expect(&replica, [0, 5, 2], "after two more").await;
    replica.delete(ann, room, sent[1].id).await.unwrap();
    replica.delete(zoe, room, sent[4].id).await.unwrap();
    expect(&replica, [0, 3, 1], "after two were deleted").await;
    let read = replica
        .mark_read(bob, room, sent[0].sequence)
        .await
        .unwrap();
    assert_eq!(line(&replica, bob, room).await.read, read);
    expect(&replica, [0, 2, 1], "after bob read the first").await;
    let restarted = world.replica();
    expect(&restarted, [0, 2, 1], "under another owner").await;
    restarted.send(zoe, room, draft("z1", "z1")).await.unwrap();
    expect(&restarted, [1, 3, 0], "after zoe wrote").await;
    restarted
        .mark_read(ann, room, Sequence(u64::MAX))
        .await
        .unwrap();
    expect(&restarted, [0, 3, 0], "after ann read all").await;
}

/// MSG-09: counting costs the same for a room of any length.
#[tokio::test(flavor = "multi_thread")]
async fn counting_unread_messages_is_cheap() {
    let world = World::new();
    let (ann, bob) = (world.person().await, world.person().await);
    let room = world.empty_room(RoomId::new(), RoomKind::Public, ann).await;
    let mut writer = Writer::open(&*world.stores.log, room).await;
    for user in [ann, bob] {
        let role = Role::Member;
        writer.append(ann, EventBody::Joined { user, role }).await;
    }
    for _ in 0..30 {
        let events: Vec<_> = (0..100).map(|_| writer.event(ann, text("x"))).collect();
        writer.try_append(&events).await.unwrap();
    }
    let replica = world.replica();
    let reads = async |user, unread: u64| -> usize {
        let before = world.log.reads.load(Ordering::SeqCst);
        assert_eq!(line(&replica, user, room).await.unread, unread);
        world.log.reads.load(Ordering::SeqCst) - before
    };
    // One read for the last message.
    assert_eq!(reads(bob, 3_000).await, 1);
    let near = Sequence(3_002 - 900);
    let read = replica.mark_read(bob, room, near).await.unwrap();
    assert_eq!(read.messages, 2_100);
    assert_eq!(reads(bob, 900).await, 1);
    assert_eq!(reads(ann, 0).await, 1, "who wrote has read");
}

/// MSG-07: a page of history doesn't cost more because something else than messages fills the log.
#[tokio::test(flavor = "multi_thread")]
async fn history_jumps_over_what_are_no_messages() {
    let world = World::new();
    let ann = UserId::new();
    let room = world.empty_room(RoomId::new(), RoomKind::Public, ann).await;
    let mut writer = Writer::open(&*world.stores.log, room).await;
    let role = Role::Member;
    let mut sent = Vec::new();
    // At 1, and after each of four long stretches.
    for _ in 0..5 {
        sent.push(writer.send(ann, "x").await.sequence);
        for _ in 0..25 {
            let joins: Vec<_> = (0..400)
                .map(|_| writer.event(ann, EventBody::Joined { user: ann, role }))
                .collect();
            writer.try_append(&joins).await.unwrap();
        }
    }
    let replica = world.replica();
    let page = async |limit, before: Option<Sequence>, after: Option<Sequence>| {
        let reads = world.log.reads.load(Ordering::SeqCst);
        let query = HistoryQuery {
            limit,
            before,
            after,
        };
        let page = replica.history(ann, room, query).await.unwrap();
        let reads = world.log.reads.load(Ordering::SeqCst) - reads;
        assert!(
            reads < 400,
            "{reads} reads instead of {}",
            writer.head.0 / 200
        );
        page.into_iter()
            .map(|message| message.sequence)
            .collect::<Vec<_>>()
    };
    let all = sent.as_slice();
    assert_eq!(page(100, None, None).await, all);
    assert_eq!(page(2, None, None).await, all[3..]);
    assert_eq!(page(2, Some(all[4]), None).await, all[2..4]);
    assert_eq!(page(100, Some(all[1].next()), None).await, all[..2]);
    assert_eq!(page(100, Some(all[0]), None).await, []);
    assert_eq!(page(100, None, Some(Sequence::ZERO)).await, all);
    assert_eq!(page(2, None, Some(all[0])).await, all[1..3]);
    assert_eq!(page(100, None, Some(all[4])).await, []);
    let between = page(100, Some(all[4]), Some(all[1])).await;
    assert_eq!(between, all[2..4]);
    assert_eq!(page(100, Some(all[2]), Some(all[1])).await, []);
}

/// MSG-18: a client may name any number.
#[tokio::test(flavor = "multi_thread")]
async fn places_beyond_every_log_are_no_error() {
    let world = World::new();
    let ann = world.person().await;
    let replica = world.replica();
    let room = group(&replica, ann).await;
    replica.send(ann, room, draft("c", "hi")).await.unwrap();
    let beyond = Sequence(u64::MAX);
    let page = replica.events(ann, room, beyond, 10).await.unwrap();
    assert_eq!((page.events.len(), page.head), (0, Sequence(2)));
    for (before, after, found) in [
        (None, Some(beyond), 0),
        (Some(beyond), None, 1),
        (Some(beyond), Some(beyond), 0),
    ] {
        let query = HistoryQuery {
            limit: 10,
            before,
            after,
        };
        let page = replica.history(ann, room, query).await.unwrap();
        assert_eq!(page.len(), found);
    }
}

/// MSG-06: a mark that changes nothing answers the one that stands.
#[tokio::test(flavor = "multi_thread")]
async fn marking_nothing_answers_what_stands() {
    let world = World::new();
    let ann = world.person().await;
    let replica = world.replica();
    let room = group(&replica, ann).await;
    let sent = replica.send(ann, room, draft("c", "hi")).await.unwrap();
    let stands = replica
        .mark_read(ann, room, sent.message.sequence)
        .await
        .unwrap();
    for place in [0, 1, 2] {
        let answered = replica.mark_read(ann, room, Sequence(place)).await.unwrap();
        assert_eq!(answered, stands);
    }
}

/// MSG-05, USER-06: who hides receipts is listed without marks, sees nobody's, and their marks are told with whom they are for; one's own
/// are always there.
#[tokio::test(flavor = "multi_thread")]
async fn receipts_obey_privacy_and_blocks() {
    let world = World::new();
    let [ann, bob, zoe] = [
        world.person().await,
        world.person().await,
        world.person().await,
    ];
    let replica = world.replica();
    let room = group(&replica, ann).await;
    for user in [bob, zoe] {
        let put = replica.put_member(ann, room, user, Role::Member);
        put.await.unwrap();
    }
    let sent = replica.send(ann, room, draft("c", "hi")).await.unwrap();
    let place = sent.message.sequence;
    let shown = async |viewer| {
        let receipts = replica.receipts(viewer, room, None, 100).await.unwrap();
        let mut read: Vec<UserId> = receipts
            .iter()
            .filter(|receipt| receipt.read.is_some())
            .map(|receipt| receipt.user)
            .collect();
        assert_eq!(receipts.len(), read.len(), "who is hidden is left out");
        let mut pages = Vec::new();
        while let Some(next) = replica
            .receipts(viewer, room, pages.last().copied(), 1)
            .await
            .unwrap()
            .first()
        {
            pages.push(next.user);
        }
        assert_eq!(pages.len(), read.len());
        read.sort_unstable();
        read
    };
    let these = |people: &[UserId]| {
        let mut people = people.to_vec();
        people.sort_unstable();
        people
    };
    for user in [ann, bob, zoe] {
        replica.mark_read(user, room, place).await.unwrap();
    }
    assert_eq!(shown(ann).await, these(&[ann, bob, zoe]));
    let hide = |audience| SettingsChange {
        read_receipts: Some(audience),
        ..SettingsChange::default()
    };
    let settings = &world.stores.settings;
    settings.change(bob, &hide(Audience::Nobody)).await.unwrap();
    assert_eq!(shown(ann).await, these(&[ann, zoe]));
    assert_eq!(shown(bob).await, [bob]);
    settings
        .change(bob, &hide(Audience::Contacts))
        .await
        .unwrap();
    let people = &world.stores.people;
    let now = world.clock.now();
    let put = people.put(Relation::Contact, bob, zoe, now, 9);
    put.await.unwrap();
    assert_eq!(shown(ann).await, these(&[ann, zoe]));
    assert_eq!(shown(zoe).await, these(&[ann, bob, zoe]));
    assert_eq!(shown(bob).await, these(&[bob, zoe]));
    let put = people.put(Relation::Block, zoe, ann, now, 9);
    put.await.unwrap();
    assert_eq!(shown(ann).await, [ann]);
    assert_eq!(shown(zoe).await, these(&[bob, zoe]));

    // Another one, which remembers nobody's.
    let replica = world.replica();
    let sent = replica.send(ann, room, draft("d", "ho")).await.unwrap();
    let place = sent.message.sequence;
    settings.change(zoe, &hide(Audience::Nobody)).await.unwrap();
    let (topics, mut items) = world.stores.bus.receiver().await.unwrap();
    topics.subscribe(Topic::of_room(room)).await.unwrap();
    for user in [zoe, bob, ann] {
        replica.mark_delivered(user, room, place).await.unwrap();
        replica.mark_read(user, room, place).await.unwrap();
    }
    let mut told = Vec::new();
    while told.last().is_none_or(|(_, user, _)| *user != bob) || told.len() < 3 {
        let Some(BusItem::Message { payload, .. }) = soon("a signal", items.next()).await else {
            panic!("nothing is lost here")
        };
        match Signal::decode(&payload).unwrap() {
            Signal::Read { user, audience, .. } => told.push(("read", user, audience)),
            Signal::Delivered { user, audience, .. } => {
                told.push(("delivered", user, audience));
            }
            _ => {}
        }
    }
    assert_eq!(
        told,
        [
            ("read", zoe, Audience::Nobody),
            ("delivered", bob, Audience::Contacts),
            ("read", bob, Audience::Contacts),
        ]
    );
}

// === the bus ===

/// Promise 1: a bus that doesn't answer holds nobody up.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_the_bus() {
    let world = World::new();
    let ann = world.person().await;
    let replica = world.replica_with(MessageOptions::default(), Arc::new(Stalled));
    let body = async {
        let room = group(&replica, ann).await;
        // More than wait in the queue: what doesn't fit is dropped.
        for n in 0..600 {
            replica
                .send(ann, room, draft(&n.to_string(), "hi"))
                .await
                .unwrap();
        }
        replica.mark_read(ann, room, Sequence(9)).await.unwrap();
    };
    soon("the last answer", body).await;
}

/// Promise 2: gateways are told of a room's events in their order, and of what else happens there in between.
#[tokio::test(flavor = "multi_thread")]
async fn the_bus_keeps_the_order() {
    let world = World::new();
    let (ann, bob) = (world.person().await, world.person().await);
    let replica = world.replica();
    let room = group(&replica, ann).await;
    replica
        .put_member(ann, room, bob, Role::Member)
        .await
        .unwrap();
    let (topics, mut items) = world.stores.bus.receiver().await.unwrap();
    topics.subscribe(Topic::of_room(room)).await.unwrap();
    for n in 0..50 {
        let sent = replica.send(ann, room, draft(&n.to_string(), "hi")).await;
        let place = sent.unwrap().message.sequence;
        replica.mark_read(bob, room, place).await.unwrap();
    }
    let (mut sent, mut read) = (Sequence(2), Sequence(2));
    while read < Sequence(52) {
        let Some(BusItem::Message { payload, .. }) = soon("a signal", items.next()).await else {
            panic!("nothing is lost here")
        };
        match Signal::decode(&payload).unwrap() {
            Signal::Events { events } => {
                for event in events {
                    // What was published before the subscription may come or not.
                    if event.sequence > Sequence(2) {
                        assert_eq!(event.sequence, sent.next());
                        sent = event.sequence;
                    }
                }
            }
            Signal::Read { sequence, .. } => {
                assert_eq!(sequence, read.next());
                assert_eq!(sequence, sent, "after the event that was read");
                read = sequence;
            }
            other => panic!("{other:?}"),
        }
    }
}

// === who may do what ===

/// MSG-03: an invitation is listed, accepted by joining, declined by leaving, and withdrawn by removing.
#[tokio::test(flavor = "multi_thread")]
async fn invitations_are_accepted_declined_and_withdrawn() {
    let world = World::new();
    let (ann, bob) = (world.person().await, world.person().await);
    let replica = world.replica();
    let room = group(&replica, ann).await;
    let invited = async || {
        let rooms = replica.invites(bob, None, 100).await.unwrap();
        rooms.into_iter().map(|room| room.id).collect::<Vec<_>>()
    };
    let refused = replica.join(bob, room).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::NotFound, "a group is a secret");
    replica.invite(ann, room, bob).await.unwrap();
    replica.invite(ann, room, bob).await.unwrap();
    assert_eq!(invited().await, [room]);
    assert_eq!(replica.room(bob, room).await.unwrap().role, None);
    replica.leave(bob, room).await.unwrap();
    assert_eq!(invited().await, []);
    assert_eq!(
        replica.join(bob, room).await.unwrap_err().code,
        ErrorCode::NotFound
    );
    replica.invite(ann, room, bob).await.unwrap();
    replica.remove_member(ann, room, bob).await.unwrap();
    assert_eq!(invited().await, []);
    replica.invite(ann, room, bob).await.unwrap();
    let restarted = world.replica();
    restarted.join(bob, room).await.unwrap();
    assert_eq!(restarted.invites(bob, None, 100).await.unwrap(), []);
    let page = restarted.events(bob, room, Sequence::ZERO, 100).await;
    let asked = page.unwrap().events;
    let asked = asked
        .iter()
        .filter(|event| matches!(event.body, EventBody::Invited { .. }));
    assert_eq!(asked.count(), 3, "asking again is no event");
}

/// MSG-03: who is banned is out and stays out until somebody ends that, under every owner.
#[tokio::test(flavor = "multi_thread")]
async fn a_ban_keeps_somebody_out() {
    let world = World::new();
    let (ann, bob) = (world.person().await, world.person().await);
    let replica = world.replica();
    let new = NewRoom {
        kind: RoomKind::Public,
        name: "square".into(),
        description: String::new(),
        rules: RoomRules::default(),
    };
    let room = replica.create_room(ann, new).await.unwrap().room.id;
    replica.join(bob, room).await.unwrap();
    let refused = replica
        .restrict(bob, room, ann, Restriction::Ban)
        .await
        .unwrap_err();
    assert_eq!(refused.code, ErrorCode::PermissionDenied);
    replica
        .restrict(ann, room, bob, Restriction::Ban)
        .await
        .unwrap();
    assert_eq!(replica.my_rooms(bob, None, 10).await.unwrap(), []);
    let restarted = world.replica();
    for role in [&replica, &restarted] {
        for refused in [
            role.join(bob, room).await.map(drop),
            role.room(bob, room).await.map(drop),
            role.history(bob, room, newest(10)).await.map(drop),
            role.send(bob, room, draft("c", "hi")).await.map(drop),
        ] {
            assert_eq!(refused.unwrap_err().code, ErrorCode::PermissionDenied);
        }
        for refused in [
            role.invite(ann, room, bob).await,
            role.put_member(ann, room, bob, Role::Member)
                .await
                .map(drop),
        ] {
            assert_eq!(refused.unwrap_err().code, ErrorCode::FailedPrecondition);
        }
        let listed = role.restrictions(ann, room, None, 100).await.unwrap();
        let listed: Vec<_> = listed
            .iter()
            .map(|one| (one.user, one.restrictions.banned))
            .collect();
        assert_eq!(listed, [(bob, true)]);
    }
    restarted
        .restrict(ann, room, bob, Restriction::Unban)
        .await
        .unwrap();
    restarted.join(bob, room).await.unwrap();
    let listed = restarted.restrictions(ann, room, None, 100).await;
    assert_eq!(listed.unwrap(), []);
}

/// MSG-03: who is muted reads but doesn't write, also after leaving and coming back, until the time is over.
#[tokio::test(flavor = "multi_thread")]
async fn a_mute_ends_by_itself() {
    let world = World::new();
    let (ann, bob) = (world.person().await, world.person().await);
    let replica = world.replica();
    let room = group(&replica, ann).await;
    let add = async || {
        replica
            .put_member(ann, room, bob, Role::Member)
            .await
            .unwrap()
    };
    add().await;
    let said = replica.send(bob, room, draft("c1", "hi")).await.unwrap();
    let hour = Duration::from_secs(3600);
    let until = world.clock.now().plus(hour);
    let past = Restriction::Mute {
        until: Some(Timestamp(1)),
    };
    let refused = replica.restrict(ann, room, bob, past).await.unwrap_err();
    assert_eq!(refused.fields[0].field, "until");
    let mute = Restriction::Mute { until: Some(until) };
    replica.restrict(ann, room, bob, mute).await.unwrap();
    replica.leave(bob, room).await.unwrap();
    add().await;
    let id = said.message.id;
    for refused in [
        replica.send(bob, room, draft("c2", "hi")).await.map(drop),
        replica.edit(bob, room, id, "ho".into()).await.map(drop),
        replica.activity(bob, room, Activity::Typing, true).await,
    ] {
        assert_eq!(refused.unwrap_err().code, ErrorCode::PermissionDenied);
    }
    // A repeat of what was sent before is no new message.
    let again = replica.send(bob, room, draft("c1", "hi")).await.unwrap();
    assert!(again.duplicate);
    assert_eq!(
        replica.history(bob, room, newest(10)).await.unwrap().len(),
        1
    );
    world.clock.advance(hour);
    replica.send(bob, room, draft("c2", "hi")).await.unwrap();
    assert_eq!(replica.restrictions(ann, room, None, 9).await.unwrap(), []);
    let mute = Restriction::Mute { until: None };
    replica.restrict(ann, room, bob, mute).await.unwrap();
    world.clock.advance(1000 * hour);
    replica
        .send(bob, room, draft("c3", "hi"))
        .await
        .unwrap_err();
    replica
        .restrict(ann, room, bob, Restriction::Unmute)
        .await
        .unwrap();
    replica.send(bob, room, draft("c3", "hi")).await.unwrap();
}

/// MSG-03, MSG-08: a room's name and rules are as its admins set them, for every owner; and they rule.
#[tokio::test(flavor = "multi_thread")]
async fn rooms_have_rules_of_their_own() {
    let world = World::new();
    let (ann, bob) = (world.person().await, world.person().await);
    let replica = world.replica();
    let room = group(&replica, ann).await;
    replica
        .put_member(ann, room, bob, Role::Member)
        .await
        .unwrap();
    let change = |rules| RoomChange {
        name: Some(" Lobby ".into()),
        description: None,
        rules: Some(rules),
    };
    let rules = RoomRules {
        edit_window_seconds: Some(5),
        edit_unread_only: true,
        retention_seconds: None,
    };
    let refused = replica.change_room(bob, room, change(rules)).await;
    assert_eq!(refused.unwrap_err().code, ErrorCode::PermissionDenied);
    let wrong = RoomRules {
        edit_window_seconds: Some(90_000),
        retention_seconds: Some(1),
        ..rules
    };
    let refused = replica.change_room(ann, room, change(wrong)).await;
    let fields = refused.unwrap_err().fields;
    assert_eq!(fields.len(), 2, "{fields:?}");
    let view = replica.change_room(ann, room, change(rules)).await.unwrap();
    assert_eq!((view.room.name.as_str(), view.room.rules), ("Lobby", rules));
    let head = view.head;
    let view = replica.change_room(ann, room, change(rules)).await.unwrap();
    assert_eq!(view.head, head, "no change is no event");

    let restarted = world.replica();
    let room_now = restarted.room(bob, room).await.unwrap().room;
    assert_eq!((room_now.name.as_str(), room_now.rules), ("Lobby", rules));
    let listed = restarted.my_rooms(bob, None, 10).await.unwrap();
    assert_eq!(listed[0].room.rules, rules);

    let sent = restarted.send(ann, room, draft("c1", "hi")).await.unwrap();
    let id = sent.message.id;
    restarted.edit(ann, room, id, "ho".into()).await.unwrap();
    restarted
        .mark_read(bob, room, sent.message.sequence)
        .await
        .unwrap();
    let refused = restarted
        .edit(ann, room, id, "hu".into())
        .await
        .unwrap_err();
    assert_eq!(
        refused.code,
        ErrorCode::FailedPrecondition,
        "bob has read it"
    );
    let sent = restarted.send(bob, room, draft("c2", "hi")).await.unwrap();
    world.clock.advance(Duration::from_secs(6));
    let refused = restarted.delete(bob, room, sent.message.id).await;
    assert_eq!(
        refused.unwrap_err().code,
        ErrorCode::FailedPrecondition,
        "the window is over"
    );
}

/// USER-05: nobody writes to, or begins to write to, somebody with a block between them; what was said stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_ends_a_conversation() {
    let world = World::new();
    let (ann, bob) = (world.person().await, world.person().await);
    let replica = world.replica();
    let (view, _) = replica.open_direct(ann, bob).await.unwrap();
    let room = view.room.id;
    let sent = replica.send(ann, room, draft("c1", "hi")).await.unwrap();
    let people = &world.stores.people;
    let now = world.clock.now();
    people
        .put(Relation::Block, bob, ann, now, 10)
        .await
        .unwrap();
    // Nothing is remembered after a restart.
    let restarted = world.replica();
    let groups = [group(&restarted, ann).await, group(&restarted, bob).await];
    let group_of = |user| groups[usize::from(user == bob)];
    for (user, other) in [(ann, bob), (bob, ann)] {
        let id = sent.message.id;
        for refused in [
            restarted
                .send(user, room, draft("c2", "hi"))
                .await
                .map(drop),
            restarted.edit(user, room, id, "ho".into()).await.map(drop),
            restarted.activity(user, room, Activity::Typing, true).await,
            restarted.open_direct(user, other).await.map(drop),
            restarted
                .put_member(user, group_of(user), other, Role::Member)
                .await
                .map(drop),
            restarted.invite(user, group_of(user), other).await,
        ] {
            assert_eq!(refused.unwrap_err().code, ErrorCode::PermissionDenied);
        }
        let seen = restarted.history(user, room, newest(10)).await.unwrap();
        assert_eq!(seen.len(), 1);
    }
    people.remove(Relation::Block, bob, ann).await.unwrap();
    let again = world.replica();
    again.send(ann, room, draft("c2", "hi")).await.unwrap();
    // Whoever knows is asked again after a moment.
    people
        .put(Relation::Block, ann, bob, now, 10)
        .await
        .unwrap();
    let mut n = 0;
    while again
        .send(bob, room, draft(&format!("b{n}"), "hi"))
        .await
        .is_ok()
    {
        n += 1;
        assert!(n < 1_000, "the block is never seen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

// === retention ===

/// MSG-21: what is older than a room's retention is seen by nobody, an answer says where the log goes on, and the store loses it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_disappears() {
    let world = World::new();
    let (ann, bob) = (world.person().await, world.person().await);
    let replica = world.replica();
    let room = group(&replica, ann).await;
    replica
        .put_member(ann, room, bob, Role::Member)
        .await
        .unwrap();
    let keep = |seconds| RoomChange {
        rules: Some(RoomRules {
            retention_seconds: seconds,
            ..RoomRules::default()
        }),
        ..RoomChange::default()
    };
    replica
        .change_room(ann, room, keep(Some(60)))
        .await
        .unwrap();
    let mut old = Vec::new();
    for n in 0..30 {
        let text = format!("old {n} @room");
        let id = format!("old-{n}");
        old.push(replica.send(ann, room, draft(&id, &text)).await.unwrap());
    }
    assert_eq!(line(&replica, bob, room).await.mentions, 30);
    world.clock.advance(Duration::from_secs(50));
    let young = replica.send(ann, room, draft("young", "hi")).await.unwrap();
    let young = young.message.sequence;
    world.clock.advance(Duration::from_secs(20));

    let restarted = world.replica();
    for role in [&replica, &restarted, &replica] {
        let seen = role.history(bob, room, newest(100)).await.unwrap();
        let seen: Vec<_> = seen.iter().map(|message| message.sequence).collect();
        assert_eq!(seen, [young]);
        let after = HistoryQuery {
            limit: 10,
            before: None,
            after: Some(Sequence(2)),
        };
        assert_eq!(role.history(bob, room, after).await.unwrap().len(), 1);
        let page = role.events(bob, room, Sequence(3), 100).await.unwrap();
        assert_eq!((page.first_available, page.head), (young, young));
        assert_eq!(page.events.len(), 1);
        let mine = line(role, bob, room).await;
        assert_eq!((mine.unread, mine.mentions), (1, 0));
        let gone = role.message(bob, room, old[3].message.id).await;
        assert_eq!(gone.unwrap_err().code, ErrorCode::NotFound);
        role.mark_read(bob, room, Sequence(4)).await.unwrap();
        assert_eq!(line(role, bob, room).await.unread, 1);
        world.clock.advance(Duration::from_millis(1));
    }
    let found = async || {
        let id = old[3].message.client_message_id.clone();
        let sent = world.stores.log.find_sent(ann, &id).await.unwrap();
        let indexed = world.stores.log.find_message(old[3].message.id).await;
        let mentions = world
            .stores
            .rooms
            .mentions_after(room, bob, Sequence::ZERO, 1000)
            .await
            .unwrap();
        (sent.len(), indexed.unwrap().is_some(), mentions.len())
    };
    assert_eq!(found().await, (1, true, 30));
    restarted.purge().await.unwrap();
    assert_eq!(
        found().await,
        (1, true, 30),
        "somebody may be reading still"
    );
    restarted.purge().await.unwrap();
    assert_eq!(found().await, (0, false, 0));
    // Its id may be used again, and a longer retention brings nothing back.
    let again = restarted
        .send(ann, room, draft("old-3", "another"))
        .await
        .unwrap();
    assert!(!again.duplicate);
    restarted.change_room(ann, room, keep(None)).await.unwrap();
    let last = world.replica();
    let page = last.events(bob, room, Sequence::ZERO, 100).await.unwrap();
    assert_eq!(page.first_available, young);
    assert_eq!(page.events.len(), 3);
}

/// MSG-21: a room of which nothing is left goes on where it was.
#[tokio::test(flavor = "multi_thread")]
async fn an_expired_room_goes_on() {
    let world = World::new();
    let ann = world.person().await;
    let replica = world.replica();
    let new = NewRoom {
        kind: RoomKind::Group,
        name: "gone soon".into(),
        description: String::new(),
        rules: RoomRules {
            retention_seconds: Some(5),
            ..RoomRules::default()
        },
    };
    let view = replica.create_room(ann, new).await.unwrap();
    let room = view.room.id;
    assert_eq!(view.room.rules.retention_seconds, Some(5));
    let sent = replica.send(ann, room, draft("c", "hi")).await.unwrap();
    world.clock.advance(Duration::from_secs(5));
    for _ in 0..2 {
        replica.purge().await.unwrap();
    }
    let restarted = world.replica();
    let head = sent.message.sequence;
    let page = restarted.events(ann, room, Sequence::ZERO, 100).await;
    let page = page.unwrap();
    assert_eq!((page.events.len(), page.head), (0, head));
    assert_eq!(page.first_available, head.next());
    assert_eq!(line(&restarted, ann, room).await.last_message, None);
    let sent = restarted.send(ann, room, draft("c", "ho")).await.unwrap();
    assert_eq!(sent.message.sequence, head.next());
    assert_eq!(sent.message.messages_before, 1);
    let page = restarted.events(ann, room, head, 100).await.unwrap();
    assert_eq!(page.events.len(), 1);
}

// === delivery ===

/// MSG-05: sent, delivered, read: marks only grow, reading implies delivery, and who leaves is forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn marks_of_delivery_only_grow() {
    let world = World::new();
    let (ann, bob) = (world.person().await, world.person().await);
    let replica = world.replica();
    let room = group(&replica, ann).await;
    replica
        .put_member(ann, room, bob, Role::Member)
        .await
        .unwrap();
    let mut places = Vec::new();
    for id in ["c1", "c2", "c3"] {
        let sent = replica.send(ann, room, draft(id, "hi")).await.unwrap();
        places.push(sent.message.sequence);
    }
    let of_bob = async || {
        let receipts = replica.receipts(ann, room, None, 100).await.unwrap();
        let receipt = receipts.into_iter().find(|receipt| receipt.user == bob);
        receipt.map(|receipt| {
            let place = |reached: Option<Reached>| reached.map(|reached| reached.sequence);
            (place(receipt.delivered), place(receipt.read))
        })
    };
    assert_eq!(of_bob().await, None, "nothing was confirmed yet");
    let stranger = world.person().await;
    replica
        .mark_delivered(stranger, room, places[0])
        .await
        .unwrap_err();
    for (given, stands) in [(1, 1), (0, 1), (1, 1)] {
        let marked = replica.mark_delivered(bob, room, places[given]).await;
        assert_eq!(marked.unwrap().sequence, places[stands]);
        assert_eq!(of_bob().await, Some((Some(places[1]), None)));
    }
    replica.mark_read(bob, room, places[0]).await.unwrap();
    assert_eq!(of_bob().await, Some((Some(places[1]), Some(places[0]))));
    replica.mark_read(bob, room, places[2]).await.unwrap();
    assert_eq!(of_bob().await, Some((Some(places[2]), Some(places[2]))));
    let ahead = replica.mark_delivered(bob, room, Sequence(u64::MAX)).await;
    assert_eq!(ahead.unwrap().sequence, places[2], "clamped to the head");
    replica.leave(bob, room).await.unwrap();
    assert_eq!(of_bob().await, None);
}

/// MSG-09, MSG-11: counts are exact however far behind somebody is: mentions of theirs and of everybody, less what was deleted.
#[tokio::test(flavor = "multi_thread")]
async fn counts_are_exact_however_far_behind() {
    let world = World::new();
    let (ann, bob) = (world.person().await, world.person().await);
    let replica = world.replica();
    let room = group(&replica, ann).await;
    for user in [bob, world.person().await] {
        replica
            .put_member(ann, room, user, Role::Member)
            .await
            .unwrap();
    }
    let account = world.stores.accounts.by_ids(&[bob]).await.unwrap();
    let name = &account[0].user.username;
    let mut sent = Vec::new();
    for n in 0..1_200 {
        let text = match n {
            0 => format!("@{} look", name.to_uppercase()),
            1 => "@room look".to_owned(),
            2 => format!("@{name} @room twice"),
            _ => format!("{n} @nobody.at.all"),
        };
        let outcome = replica.send(ann, room, draft(&format!("c{n}"), &text));
        sent.push(outcome.await.unwrap().message);
    }
    assert_eq!(sent[0].mentions.users, [bob]);
    assert!(sent[2].mentions.room && sent[3].mentions.is_empty());
    let counts = async |role: &MessageRole| {
        let line = line(role, bob, room).await;
        (line.unread, line.mentions)
    };
    assert_eq!(counts(&replica).await, (1_200, 3));
    for n in [1, 5, 7] {
        replica.delete(ann, room, sent[n].id).await.unwrap();
        replica.delete(ann, room, sent[n].id).await.unwrap();
    }
    let restarted = world.replica();
    for role in [&replica, &restarted] {
        assert_eq!(counts(role).await, (1_197, 2));
    }
    restarted
        .mark_read(bob, room, sent[0].sequence)
        .await
        .unwrap();
    assert_eq!(counts(&restarted).await, (1_197 - 1, 1));
    // Who writes has read.
    restarted.send(bob, room, draft("b", "back")).await.unwrap();
    assert_eq!(counts(&restarted).await, (0, 0));
    assert_eq!(counts(&world.replica()).await, (0, 0));
}
