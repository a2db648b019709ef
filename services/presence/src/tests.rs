//! The presence role over the embedded stores.

use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use carillon_adapters::embedded;
use carillon_domain::{
    ErrorCode, ReplicaId, Sequence, Timestamp,
    event::{EventBody, RoomEvent},
    partition::Partition,
    ports::{BusItem, Subscriptions},
    room::{Role, Room, RoomKind},
    settings::SettingsChange,
};
use futures::stream::BoxStream;

use super::*;

struct TestClock(AtomicI64);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}

struct World {
    stores: embedded::Stores,
    clock: Arc<TestClock>,
    role: Arc<PresenceRole>,
    subscriptions: Arc<dyn Subscriptions>,
    items: BoxStream<'static, BusItem>,
    _directory: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = Arc::new(TestClock(AtomicI64::new(1_700_000_000_000)));
        let stores = embedded::open_with(
            directory.path(),
            embedded::Options {
                clock: clock.clone(),
                ..embedded::Options::default()
            },
        )
        .unwrap();
        let (subscriptions, items) = stores.bus.receiver().await.unwrap();
        Self {
            role: role(&stores, &clock),
            stores,
            clock,
            subscriptions,
            items,
            _directory: directory,
        }
    }

    /// A room with one member, whose topic is listened to.
    async fn room(&self, kind: RoomKind, member: UserId) -> RoomId {
        self.room_of(kind, &[member]).await
    }

    async fn room_of(&self, kind: RoomKind, members: &[UserId]) -> RoomId {
        let room = RoomId::new();
        let now = self.clock.now();
        let made = Room {
            id: room,
            kind,
            name: "room".to_owned(),
            description: String::new(),
            created_by: members[0],
            created_at: now,
            deleted_at: None,
            rules: carillon_domain::room::RoomRules::default(),
            pair: None,
        };
        self.stores.rooms.create(&made).await.unwrap();
        let partition = Partition::of_room(room);
        let owner = ReplicaId("message-0".to_owned());
        let epoch = self.stores.log.acquire(partition, &owner).await.unwrap();
        self.stores.log.open(room, epoch).await.unwrap();
        let joined = |(sequence, user): (u64, &UserId)| RoomEvent {
            room,
            sequence: Sequence(sequence),
            messages_before: 0,
            time: now,
            actor: *user,
            body: EventBody::Joined {
                user: *user,
                role: Role::Owner,
            },
        };
        let joined: Vec<RoomEvent> = (1..).zip(members).map(joined).collect();
        let log = &self.stores.log;
        log.append(partition, epoch, &joined).await.unwrap();
        let topic = Topic::of_room(room);
        self.subscriptions.subscribe(topic).await.unwrap();
        room
    }

    async fn renew(&self, user: UserId, device: DeviceId, state: PresenceState) {
        let lease = Lease {
            user,
            device,
            state,
        };
        self.role.renew(&[lease]).await.unwrap();
    }

    /// Which rooms were told up to now.
    async fn told(&mut self) -> Vec<(RoomId, PresenceState)> {
        let signals = self.signals().await.into_iter();
        signals
            .map(|signal| match signal {
                Signal::Presence { room, state, .. } => (room, state),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    /// Which people were told of somebody up to now, ascending.
    async fn told_contacts(&mut self, of: UserId) -> Vec<(UserId, PresenceState)> {
        let mut told = Vec::new();
        for signal in self.signals().await {
            if let Signal::ContactPresence {
                to, user, state, ..
            } = signal
            {
                assert_eq!(user, of);
                told.extend(to.into_iter().map(|contact| (contact, state)));
            }
        }
        told.sort_by_key(|(contact, _)| *contact);
        told
    }

    async fn relate(&self, relation: Relation, user: UserId, other: UserId) {
        let topic = Topic::of_user(user);
        self.subscriptions.subscribe(topic).await.unwrap();
        let now = self.clock.now();
        let people = &self.stores.people;
        people.put(relation, user, other, now, 9).await.unwrap();
    }

    /// What was told up to now: the role is stopped, which makes it tell what waits, and another takes its place.
    async fn signals(&mut self) -> Vec<Signal> {
        let stop = CancellationToken::new();
        stop.cancel();
        let next = role(&self.stores, &self.clock);
        let role = std::mem::replace(&mut self.role, next);
        role.run(stop).await.unwrap();
        // The bus keeps the order per topic, so whatever was told is before this mark.
        let mark = RoomId::new();
        let topic = Topic::of_room(mark);
        self.subscriptions.subscribe(topic).await.unwrap();
        let bus = &self.stores.bus;
        bus.publish(topic, Bytes::from_static(b"mark"))
            .await
            .unwrap();
        let mut told = Vec::new();
        loop {
            match self.items.next().await.unwrap() {
                BusItem::Message { payload, .. } if payload == "mark" => return told,
                BusItem::Message { payload, .. } => told.push(Signal::decode(&payload).unwrap()),
                BusItem::Lost => panic!("lost"),
            }
        }
    }

    fn advance(&self, seconds: i64) {
        self.clock.0.fetch_add(seconds * 1000, Ordering::SeqCst);
    }

    async fn state(&self, user: UserId) -> PresenceState {
        self.role.get(&[user]).await.unwrap()[0].state
    }
}

fn role(stores: &embedded::Stores, clock: &Arc<TestClock>) -> Arc<PresenceRole> {
    Arc::new(PresenceRole::new(
        stores.presence.clone(),
        stores.rooms.clone(),
        stores.people.clone(),
        stores.settings.clone(),
        stores.bus.clone(),
        clock.clone(),
        PresenceOptions {
            max_rooms_told: 3,
            max_contacts_told: 4,
            sweep_interval: Duration::from_millis(5),
            ..PresenceOptions::default()
        },
    ))
}

/// PRES-01: a change is told to the rooms that are shared with people who were let in, and not to listed ones.
#[tokio::test]
async fn changes_are_told_to_unlisted_rooms() {
    let mut world = World::new().await;
    let (ann, device) = (UserId::new(), DeviceId::new());
    let private = world.room(RoomKind::Private, ann).await;
    let direct = world.room(RoomKind::Direct, ann).await;
    world.room(RoomKind::Public, ann).await;
    world.room(RoomKind::Channel, ann).await;
    world.room(RoomKind::Private, UserId::new()).await;
    for (state, expected) in [
        (PresenceState::Online, true),
        (PresenceState::Online, false),
        (PresenceState::Away, true),
    ] {
        world.renew(ann, device, state).await;
        let mut told = world.told().await;
        told.sort_by_key(|(room, _)| *room);
        let all = [(private, state), (direct, state)];
        assert_eq!(told, if expected { &all[..] } else { &[] }, "{state:?}");
    }
}

/// PRES-01: somebody with many rooms costs a bounded number of signals, to the newest.
#[tokio::test]
async fn a_bounded_number_of_rooms_is_told() {
    let mut world = World::new().await;
    let ann = UserId::new();
    let mut rooms = Vec::new();
    for _ in 0..5 {
        rooms.push(world.room(RoomKind::Group, ann).await);
    }
    rooms.sort();
    world
        .renew(ann, DeviceId::new(), PresenceState::Online)
        .await;
    let mut told: Vec<_> = world
        .told()
        .await
        .into_iter()
        .map(|(room, _)| room)
        .collect();
    told.sort();
    assert_eq!(told, rooms[2..]);
}

/// PRES-01: offline only when the last device is gone; two changes that were not told yet are told as one, the present state.
#[tokio::test]
async fn the_last_device_counts() {
    let mut world = World::new().await;
    let (ann, phone, tab) = (UserId::new(), DeviceId::new(), DeviceId::new());
    let room = world.room(RoomKind::Private, ann).await;
    world.renew(ann, phone, PresenceState::Away).await;
    world.renew(ann, tab, PresenceState::Online).await;
    assert_eq!(world.told().await, [(room, PresenceState::Online)]);
    world.role.release(ann, tab).await.unwrap();
    assert_eq!(world.told().await, [(room, PresenceState::Away)]);
    world.advance(1);
    world.role.release(ann, phone).await.unwrap();
    assert_eq!(world.told().await, [(room, PresenceState::Offline)]);
    world.role.release(ann, phone).await.unwrap();
    assert_eq!(world.told().await, []);
    let presence = world.role.get(&[UserId::new(), ann]).await.unwrap();
    assert_eq!(presence[0].last_seen, None);
    assert_eq!(presence[1].last_seen, Some(world.clock.now()));
}

/// PRES-01: a crashed gateway renews nothing: its people go offline when their leases end, and rooms are told by themselves.
#[tokio::test]
async fn leases_of_a_crashed_gateway_end() {
    let mut world = World::new().await;
    let (ann, bob) = (UserId::new(), UserId::new());
    let room = world.room(RoomKind::Private, ann).await;
    world
        .renew(ann, DeviceId::new(), PresenceState::Online)
        .await;
    world.advance(30);
    world
        .renew(bob, DeviceId::new(), PresenceState::Online)
        .await;
    assert_eq!(world.told().await.len(), 1);
    world.advance(14);
    assert_eq!(world.role.sweep().await.unwrap(), 0);
    assert_eq!(world.state(ann).await, PresenceState::Online);
    world.advance(2);
    assert_eq!(
        world.state(ann).await,
        PresenceState::Offline,
        "even before the sweep"
    );

    let stop = CancellationToken::new();
    let running = tokio::spawn({
        let (role, stop) = (world.role.clone(), stop.clone());
        async move { role.run(stop).await }
    });
    let Some(BusItem::Message { payload, .. }) = world.items.next().await else {
        panic!("no signal");
    };
    let told = Signal::decode(&payload).unwrap();
    assert!(
        matches!(told, Signal::Presence { room: r, user, state: PresenceState::Offline, last_seen: Some(_), .. } if r == room && user == ann),
        "{told:?}"
    );
    assert_eq!(world.state(bob).await, PresenceState::Online);
    stop.cancel();
    running.await.unwrap().unwrap();
}

/// PRES-01: input is bounded.
#[tokio::test]
async fn calls_are_checked() {
    let world = World::new().await;
    let lease = |state| Lease {
        user: UserId::new(),
        device: DeviceId::new(),
        state,
    };
    let many: Vec<_> = (0..1001).map(|_| lease(PresenceState::Online)).collect();
    for bad in [&many[..], &[lease(PresenceState::Offline)]] {
        let error = world.role.renew(bad).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidRequest);
    }
    let users: Vec<_> = many.iter().map(|lease| lease.user).collect();
    let error = world.role.get(&users).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidRequest);
    world.role.renew(&many[..1000]).await.unwrap();
    let states = world.role.get(&users[..1000]).await.unwrap();
    assert!(
        states
            .iter()
            .zip(&users)
            .all(|(p, u)| p.user == *u && p.state == PresenceState::Online)
    );
}

/// PRES-03: presence is shown to those who share a room that isn't listed; to strangers, and in listed rooms, it isn't.
#[tokio::test]
async fn strangers_see_no_presence() {
    let world = World::new().await;
    let [ann, bob, eve] = [(); 3].map(|()| UserId::new());
    for (kind, members) in [
        (RoomKind::Private, [ann, bob]),
        (RoomKind::Public, [ann, eve]),
    ] {
        world.room_of(kind, &members).await;
    }
    let of = async |viewer| {
        let seen = world.role.visible(viewer, &[eve, bob, ann]).await.unwrap();
        seen.into_iter().map(|p| p.user).collect::<Vec<_>>()
    };
    assert_eq!(of(ann).await, [bob, ann]);
    assert_eq!(of(bob).await, [bob, ann]);
    assert_eq!(of(eve).await, [eve]);
    let many = vec![ann; 101];
    assert!(world.role.visible(ann, &many).await.is_err());
}

/// PRES-03: people who have somebody as a contact are told, each once, without sharing a room; contacts of that person aren't.
#[tokio::test]
async fn contacts_are_told() {
    let mut world = World::new().await;
    let [ann, bob, zoe, eve] = [(); 4].map(|()| UserId::new());
    for (user, other) in [(bob, ann), (zoe, ann), (ann, eve)] {
        world.relate(Relation::Contact, user, other).await;
    }
    let device = DeviceId::new();
    let mut expected = [bob, zoe];
    expected.sort_unstable();
    world.renew(ann, device, PresenceState::Online).await;
    let online = expected.map(|contact| (contact, PresenceState::Online));
    assert_eq!(world.told_contacts(ann).await, online);
    world.role.release(ann, device).await.unwrap();
    let offline = expected.map(|contact| (contact, PresenceState::Offline));
    assert_eq!(world.told_contacts(ann).await, offline);
}

/// PRES-03: somebody whom very many have as a contact costs a bounded number of signals.
#[tokio::test]
async fn a_bounded_number_of_contacts_is_told() {
    let mut world = World::new().await;
    let ann = UserId::new();
    for _ in 0..6 {
        world.relate(Relation::Contact, UserId::new(), ann).await;
    }
    world
        .renew(ann, DeviceId::new(), PresenceState::Online)
        .await;
    assert_eq!(world.told_contacts(ann).await.len(), 4);
}

/// PRES-03, USER-05: whichever of the two blocked the other, neither is told of the other, nor sees them when asking.
#[tokio::test]
async fn blocks_hide_presence() {
    let mut world = World::new().await;
    let [ann, bob, zoe] = [(); 3].map(|()| UserId::new());
    world.room_of(RoomKind::Private, &[ann, bob, zoe]).await;
    for contact in [bob, zoe] {
        world.relate(Relation::Contact, contact, ann).await;
        world.relate(Relation::Contact, ann, contact).await;
    }
    world.relate(Relation::Block, ann, bob).await;
    world
        .renew(ann, DeviceId::new(), PresenceState::Online)
        .await;
    let told = world.told_contacts(ann).await;
    assert_eq!(told, [(zoe, PresenceState::Online)]);
    world
        .renew(bob, DeviceId::new(), PresenceState::Online)
        .await;
    assert_eq!(world.told_contacts(bob).await, []);
    let of = async |world: &World, viewer| {
        let seen = world.role.visible(viewer, &[ann, bob, zoe]).await.unwrap();
        seen.into_iter().map(|p| p.user).collect::<Vec<_>>()
    };
    assert_eq!(of(&world, ann).await, [ann, zoe]);
    assert_eq!(of(&world, bob).await, [bob, zoe]);
    assert_eq!(of(&world, zoe).await, [ann, bob, zoe]);
    let people = world.stores.people.clone();
    people.remove(Relation::Block, ann, bob).await.unwrap();
    assert_eq!(of(&world, bob).await, [ann, bob, zoe]);
}

/// PRES-03, USER-06: who hides their presence isn't shown to who isn't among those who may see it, by neither way, and doesn't see theirs;
/// rooms are told for whom it is.
#[tokio::test]
async fn privacy_hides_presence() {
    let mut world = World::new().await;
    let [ann, bob, zoe] = [(); 3].map(|()| UserId::new());
    let room = world.room_of(RoomKind::Private, &[ann, bob, zoe]).await;
    for (user, other) in [(bob, ann), (zoe, ann), (ann, bob)] {
        world.relate(Relation::Contact, user, other).await;
    }
    let of = async |world: &World, viewer| {
        let seen = world.role.visible(viewer, &[ann, bob, zoe]).await.unwrap();
        seen.into_iter().map(|p| p.user).collect::<Vec<_>>()
    };
    let bob_online = vec![(bob, PresenceState::Online)];
    for (audience, told, of_ann, of_bob, of_zoe) in [
        (
            Audience::Contacts,
            bob_online,
            vec![ann, bob],
            vec![ann, bob, zoe],
            vec![bob, zoe],
        ),
        (
            Audience::Nobody,
            vec![],
            vec![ann],
            vec![bob, zoe],
            vec![bob, zoe],
        ),
    ] {
        let change = SettingsChange {
            last_seen: Some(audience),
            ..SettingsChange::default()
        };
        world.stores.settings.change(ann, &change).await.unwrap();
        let device = DeviceId::new();
        world.renew(ann, device, PresenceState::Online).await;
        let mut contacts = Vec::new();
        for signal in world.signals().await {
            match signal {
                Signal::Presence {
                    room: of,
                    audience: shown_to,
                    ..
                } => assert_eq!((of, shown_to), (room, audience)),
                Signal::ContactPresence { to, state, .. } => {
                    contacts.extend(to.into_iter().map(|contact| (contact, state)));
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(contacts, told);
        assert_eq!(of(&world, ann).await, of_ann);
        assert_eq!(of(&world, bob).await, of_bob);
        assert_eq!(of(&world, zoe).await, of_zoe);
        world.role.release(ann, device).await.unwrap();
        world.signals().await;
    }
}

/// PRES-03: a contact's presence is seen by who made them one, and by nobody else.
#[tokio::test]
async fn contacts_are_seen_without_a_room() {
    let world = World::new().await;
    let [ann, bob] = [(); 2].map(|()| UserId::new());
    world.relate(Relation::Contact, bob, ann).await;
    let seen = world.role.visible(bob, &[ann]).await.unwrap();
    assert_eq!(seen.len(), 1);
    assert_eq!(world.role.visible(ann, &[bob]).await.unwrap(), []);
}
