//! [`Archive`](carillon_domain::ports::Archive): a store filled with one of everything that a backup must keep, and whether another one
//! holds the same. What carries it from one to the other is the caller's.

use std::{collections::BTreeMap, sync::Arc};

use carillon_domain::{
    DeviceId, MediaId, RoomId, Sequence, Timestamp, UserId,
    account::{About, Account, User},
    event::{EventBody, Mentions, RoomEvent},
    media::Media,
    people::Relation,
    ports::{
        AccountStore, Archive, Floor, MediaIndex, PeopleIndex, PeopleStore, PersonKeys,
        PushTargetStore, Reached, ReadMark, RoomLog, RoomStore, SettingsStore,
    },
    privacy::{Audience, Privacy},
    push::{PushProvider, PushTarget},
    room::{Role, Room, RoomKind, RoomRules},
    settings::{Notify, Settings, Theme},
};

use super::room_log::{Writer, text};

/// The ports of a store that a backup reads.
#[derive(Clone)]
pub struct Ports {
    /// Under test.
    pub archive: Arc<dyn Archive>,
    /// Accounts.
    pub accounts: Arc<dyn AccountStore>,
    /// Who is found by which name.
    pub people_index: Arc<dyn PeopleIndex>,
    /// Keys of people.
    pub person_keys: Arc<dyn PersonKeys>,
    /// Contacts and blocks.
    pub people: Arc<dyn PeopleStore>,
    /// What people set.
    pub settings: Arc<dyn SettingsStore>,
    /// Rooms.
    pub rooms: Arc<dyn RoomStore>,
    /// Logs.
    pub log: Arc<dyn RoomLog>,
    /// Where pushes go.
    pub push_targets: Arc<dyn PushTargetStore>,
    /// Uploads.
    pub media: Arc<dyn MediaIndex>,
}

/// What [`fill`] made.
pub struct Filled {
    /// People.
    pub users: Vec<UserId>,
    /// Rooms of every kind.
    pub rooms: Vec<RoomId>,
    /// Uploads.
    pub media: Vec<MediaId>,
}

fn room(kind: RoomKind, by: UserId, pair: Option<[UserId; 2]>) -> Room {
    Room {
        id: RoomId::new(),
        kind,
        name: if pair.is_some() { "" } else { "room" }.to_owned(),
        description: "what it is for".to_owned(),
        created_by: by,
        created_at: Timestamp(1_700_000_000_000),
        pair,
        deleted_at: None,
        rules: RoomRules::default(),
    }
}

/// Puts one of everything into an empty store.
pub async fn fill(ports: &Ports) -> Filled {
    let users: Vec<UserId> = (0..7).map(|_| UserId::new()).collect();
    for (number, user) in users.iter().enumerate() {
        let account = Account {
            user: User {
                id: *user,
                username: format!("Person{number}"),
                display_name: format!("Zoë {number}"),
                created_at: Timestamp(1_700_000_000_000 + number as i64),
                about: About {
                    bio: "tea, not coffee".to_owned(),
                    status: format!("away {number}"),
                },
            },
            email: (number % 2 == 0).then(|| format!("p{number}@example.com")),
            phone: (number % 3 == 0).then(|| format!("+4930000{number}")),
            password_hash: (number != 3).then(|| format!("$argon2id$hash-{number}")),
        };
        ports.accounts.create(&account).await.unwrap();
    }
    let [ann, bob, cid, dan, eve, fay, _] = users[..] else {
        panic!("seven people");
    };
    for (relation, user, other) in [
        (Relation::Contact, ann, bob),
        (Relation::Contact, ann, cid),
        (Relation::Block, bob, eve),
    ] {
        let since = Timestamp(1_700_000_000_123);
        let put = ports.people.put(relation, user, other, since, 10);
        assert!(put.await.unwrap());
    }
    for device in [DeviceId::new(), DeviceId::new()] {
        let target = PushTarget {
            user: ann,
            device,
            provider: PushProvider::WebPush,
            token: format!("https://push.example.com/{device}"),
            p256dh: Some("key".into()),
            auth: Some("secret".into()),
        };
        ports.push_targets.put(&target).await.unwrap();
    }
    let settings = Settings {
        privacy: Privacy {
            last_seen: Audience::Nobody,
            profile_photo: Audience::Contacts,
            read_receipts: Audience::Nobody,
        },
        notifications: Notify::Mentions,
        muted_until: Some(Timestamp(1_700_000_000_000)),
        theme: Theme::Dark,
        language: Some("de-CH".to_owned()),
    };
    ports.settings.change(ann, &settings.into()).await.unwrap();
    let mut rooms = Vec::new();

    // A long room with everything that events say of people.
    let busy = room(RoomKind::Public, ann, None);
    ports.rooms.create(&busy).await.unwrap();
    let mut log = Writer::open(&*ports.log, busy.id).await;
    let join = |user, role| EventBody::Joined { user, role };
    log.append(ann, join(ann, Role::Owner)).await;
    log.append(bob, join(bob, Role::Member)).await;
    let mut events = Vec::new();
    for n in 0..1_200 {
        let actor = if n % 3 == 0 { bob } else { ann };
        let mut body = text(&format!("message {n}"));
        if let (0, EventBody::Message { mentions, .. }) = (n % 100, &mut body) {
            *mentions = Mentions {
                users: vec![bob],
                room: n % 200 == 0,
            };
        }
        events.push(log.event(actor, body));
    }
    for some in events.chunks(400) {
        log.try_append(some).await.unwrap();
    }
    let mut last_sent: Vec<RoomEvent> = events[events.len() - 3..].to_vec();
    let (first, second) = (&events[0], &events[5]);
    let id = |event: &RoomEvent| match &event.body {
        EventBody::Message { id, .. } => *id,
        other => panic!("{other:?}"),
    };
    let edit = EventBody::Edited {
        id: id(first),
        target: first.sequence,
        content: "other words".into(),
    };
    log.append(bob, edit).await;
    let delete = EventBody::Deleted {
        id: id(second),
        target: second.sequence,
    };
    log.append(ann, delete).await;
    for body in [
        EventBody::Invited { user: cid },
        join(cid, Role::Member),
        join(cid, Role::Moderator),
        EventBody::Muted {
            user: cid,
            until: Timestamp(1_900_000_000_000),
        },
        join(dan, Role::Member),
        EventBody::Banned { user: dan },
        join(eve, Role::Member),
        EventBody::left(eve),
        join(eve, Role::Member),
        EventBody::Invited { user: fay },
        EventBody::Changed {
            name: "another name".into(),
            description: String::new(),
            rules: RoomRules {
                edit_window_seconds: Some(60),
                ..RoomRules::default()
            },
        },
    ] {
        log.append(ann, body).await;
    }
    let mark = ReadMark {
        sequence: Sequence(900),
        messages: 898,
        time: Timestamp(1_700_000_001_000),
    };
    ports.rooms.mark_read(eve, busy.id, mark).await.unwrap();
    let late = ReadMark {
        sequence: log.head,
        messages: log.messages,
        time: Timestamp(1_700_000_002_000),
    };
    ports.rooms.mark_read(cid, busy.id, late).await.unwrap();
    let reached = Reached {
        sequence: log.head,
        time: Timestamp(1_700_000_003_000),
    };
    ports
        .rooms
        .mark_delivered(eve, busy.id, reached)
        .await
        .unwrap();
    rooms.push(busy.id);

    // Retention removed most of it, the joins of members too.
    let mut forgetful = room(RoomKind::Group, bob, None);
    forgetful.rules.retention_seconds = None;
    ports.rooms.create(&forgetful).await.unwrap();
    let mut log = Writer::open(&*ports.log, forgetful.id).await;
    log.append(bob, join(bob, Role::Owner)).await;
    log.append(bob, join(ann, Role::Member)).await;
    log.append(bob, join(cid, Role::Member)).await;
    log.append(bob, EventBody::Banned { user: dan }).await;
    log.append(bob, EventBody::Invited { user: eve }).await;
    let rules = RoomRules {
        retention_seconds: Some(60),
        ..RoomRules::default()
    };
    let changed = EventBody::Changed {
        name: "forgetful".into(),
        description: String::new(),
        rules,
    };
    log.append(bob, changed).await;
    let old = log.send(bob, "old").await;
    for n in 0..20 {
        last_sent.push(log.send(ann, &format!("kept {n}")).await);
    }
    last_sent.push(old.clone());
    // A late edit of something that is gone soon.
    let edit = EventBody::Edited {
        id: id(&old),
        target: old.sequence,
        content: "older".into(),
    };
    log.append(bob, edit).await;
    log.append(bob, join(cid, Role::Admin)).await;
    let floor = Floor {
        first: Sequence(12),
        messages: 5,
    };
    ports.log.raise_floor(forgetful.id, floor).await.unwrap();
    while ports
        .log
        .purge(forgetful.id, &log.fences, floor.first)
        .await
        .unwrap()
    {}
    rooms.push(forgetful.id);

    // Nothing is left of this one but its place.
    let empty = room(RoomKind::Private, cid, None);
    ports.rooms.create(&empty).await.unwrap();
    let mut log = Writer::open(&*ports.log, empty.id).await;
    log.append(cid, join(cid, Role::Owner)).await;
    let changed = EventBody::Changed {
        name: "emptied".into(),
        description: String::new(),
        rules,
    };
    log.append(cid, changed).await;
    last_sent.push(log.send(cid, "gone").await);
    let floor = Floor {
        first: log.head.next(),
        messages: 1,
    };
    ports.log.raise_floor(empty.id, floor).await.unwrap();
    while ports
        .log
        .purge(empty.id, &log.fences, floor.first)
        .await
        .unwrap()
    {}
    rooms.push(empty.id);

    // Direct, deleted, and one in which nothing happened.
    let direct = room(RoomKind::Direct, ann, Some([ann.min(bob), ann.max(bob)]));
    let found = ports.rooms.direct_room(bob, ann, direct.id).await.unwrap();
    assert_eq!(found, direct.id);
    ports.rooms.create(&direct).await.unwrap();
    let mut log = Writer::open(&*ports.log, direct.id).await;
    log.append(ann, join(ann, Role::Owner)).await;
    log.append(ann, join(bob, Role::Owner)).await;
    last_sent.push(log.send(ann, "psst").await);
    rooms.push(direct.id);
    let deleted = room(RoomKind::Channel, eve, None);
    ports.rooms.create(&deleted).await.unwrap();
    let mut log = Writer::open(&*ports.log, deleted.id).await;
    log.append(eve, join(eve, Role::Owner)).await;
    last_sent.push(log.send(eve, "farewell").await);
    log.append(eve, EventBody::RoomDeleted).await;
    rooms.push(deleted.id);
    let quiet = room(RoomKind::Public, eve, None);
    ports.rooms.create(&quiet).await.unwrap();
    rooms.push(quiet.id);

    let media = Media {
        id: MediaId::new(),
        room: busy.id,
        owner: ann,
        file_name: "dot.png".into(),
        content_type: "image/png".into(),
        size: 4,
        sha256: "cc".into(),
        created_at: Timestamp(1_700_000_000_000),
    };
    ports.media.put(&media).await.unwrap();
    // Marks of senders may be written behind.
    let written = async {
        for sent in last_sent {
            while !has_read(ports, &sent).await {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), written)
        .await
        .expect("the marks of senders are written");
    Filled {
        users,
        rooms,
        media: vec![media.id],
    }
}

/// Whether the store says, by person and by room, that the sender of a message has read it.
async fn has_read(ports: &Ports, sent: &RoomEvent) -> bool {
    let (room, user) = (sent.room, sent.actor);
    let marks = ports.rooms.read_marks(user, &[room]).await.unwrap();
    let receipts = ports.rooms.receipts(room, None, 100).await.unwrap();
    let by_room = receipts.iter().find(|receipt| receipt.user == user);
    marks.iter().any(|(_, mark)| mark.sequence >= sent.sequence)
        && by_room
            .and_then(|receipt| receipt.read)
            .is_some_and(|read| read.sequence >= sent.sequence)
}

/// Everything that one can see of what [`fill`] made, by what it is about.
pub async fn seen(ports: &Ports, filled: &Filled) -> BTreeMap<String, String> {
    let mut seen = BTreeMap::new();
    let mut note = |what: String, is: String| assert!(seen.insert(what, is).is_none());
    let mut accounts = ports.accounts.by_ids(&filled.users).await.unwrap();
    accounts.sort_by_key(|account| account.user.id);
    for account in accounts {
        let named = ports.accounts.by_username(&account.user.username).await;
        assert_eq!(
            named.unwrap().map(|named| named.user.id),
            Some(account.user.id)
        );
        let user = &account.user;
        let (email, phone) = (&account.email, &account.phone);
        let hash = &account.password_hash;
        note(
            format!("account {}", user.id),
            format!("{user:?} {email:?} {phone:?} {hash:?}"),
        );
    }
    for user in &filled.users {
        for relation in Relation::ALL {
            let list = ports.people.list(relation, *user, None, 100).await;
            let about = ports.people.list_reverse(relation, *user, None, 100).await;
            note(
                format!("{relation:?} {user}"),
                format!("{:?} {:?}", list.unwrap(), about.unwrap()),
            );
        }
        let mut targets = ports.push_targets.of_users(&[*user]).await.unwrap();
        targets.sort_by_key(|target| target.device);
        let targets: Vec<String> = targets
            .iter()
            .map(|target| {
                let (p256dh, auth) = (&target.p256dh, &target.auth);
                format!("{target:?} {} {p256dh:?} {auth:?}", target.token)
            })
            .collect();
        note(format!("targets {user}"), format!("{targets:?}"));
        let settings = ports.settings.of(&[*user]).await.unwrap();
        note(format!("settings {user}"), format!("{settings:?}"));
        let rooms = ports.rooms.rooms_of(*user, None, 100).await.unwrap();
        let mut marks = ports.rooms.read_marks(*user, &rooms).await.unwrap();
        marks.sort_by_key(|(room, _)| *room);
        let invites = ports.rooms.invites_of(*user, None, 100).await.unwrap();
        note(
            format!("rooms {user}"),
            format!("{rooms:?} {marks:?} {invites:?}"),
        );
    }
    let mut public = ports.rooms.list_public(None, 100).await.unwrap();
    public.retain(|room| filled.rooms.contains(&room.id));
    note("public".into(), format!("{public:?}"));
    let mut retained = ports.rooms.retained(None, 100).await.unwrap();
    retained.retain(|room| filled.rooms.contains(room));
    note("retained".into(), format!("{retained:?}"));
    for room in &filled.rooms {
        let stored = ports.rooms.get(*room).await.unwrap().unwrap();
        if let Some([a, b]) = stored.pair {
            let found = ports.rooms.direct_room(a, b, RoomId::new()).await;
            assert_eq!(found.unwrap(), *room, "the pair has another room");
        }
        note(format!("room {room}"), format!("{stored:?}"));
        let members = ports.rooms.members(*room, None, 100).await.unwrap();
        let restricted = ports.rooms.restricted(*room, None, 100).await.unwrap();
        let receipts = ports.rooms.receipts(*room, None, 100).await.unwrap();
        note(
            format!("people of {room}"),
            format!("{members:?} {restricted:?} {receipts:?}"),
        );
        let deleted = ports.rooms.deleted_after(*room, Sequence(0), 1_000).await;
        note(format!("deleted {room}"), format!("{deleted:?}"));
        for user in &filled.users {
            let mentions = ports
                .rooms
                .mentions_after(*room, *user, Sequence(0), 1_000)
                .await;
            note(format!("mentions {room} {user}"), format!("{mentions:?}"));
        }
        log_of(ports, *room, &mut note).await;
    }
    for id in &filled.media {
        let media = ports.media.get(*id).await.unwrap();
        note(format!("media {id}"), format!("{media:?}"));
    }
    seen
}

/// A room's log as its next owner finds it.
async fn log_of(ports: &Ports, room: RoomId, note: &mut impl FnMut(String, String)) {
    let partition = carillon_domain::partition::Partition::of_room(room);
    let owner = carillon_domain::ReplicaId(format!("owner-{}", RoomId::new()));
    let epoch = ports.log.acquire(partition, &owner).await.unwrap();
    let open = ports.log.open(room, epoch).await.unwrap();
    let (head, messages, deleted, floor) = (open.head, open.messages, open.deleted, open.floor);
    note(
        format!("log {room}"),
        format!("{head} {messages} {deleted} {floor:?}"),
    );
    let mut from = floor.first;
    while from <= head {
        let to = Sequence(head.0.min(from.0 + 999));
        let events = ports.log.events(room, &open.fences, from, to).await;
        let messages = ports.log.messages(room, &open.fences, from, to).await;
        for event in events.unwrap() {
            // Some of many: each is two reads.
            let looked_for = event.sequence.0 % 20 == 0 || event.sequence >= head;
            if let (EventBody::Message { id, draft, .. }, true) = (&event.body, looked_for) {
                let place = Some((room, event.sequence));
                let found = ports.log.find_message(*id).await.unwrap();
                assert_eq!(found, place, "a message isn't found by its id");
                let client_id = &draft.client_message_id;
                let sent = ports.log.find_sent(event.actor, client_id).await.unwrap();
                assert!(
                    sent.contains(&(room, event.sequence)),
                    "a retry finds nothing"
                );
            }
            note(
                format!("event {room} {:08}", event.sequence.0),
                format!("{event:?}"),
            );
        }
        note(
            format!("messages {room} {:08}", from.0),
            format!("{:?}", messages.unwrap()),
        );
        from = to.next();
    }
}

/// Panics with the first difference of what two stores show.
pub fn assert_same(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) {
    for (what, is) in before {
        assert_eq!(after.get(what), Some(is), "{what} is another");
    }
    for what in after.keys() {
        assert!(before.contains_key(what), "{what} wasn't there");
    }
}

/// A log that was loaded goes on: the next owner's first event has the next place.
pub async fn goes_on(ports: &Ports, filled: &Filled) {
    for room in &filled.rooms {
        let stored = ports.rooms.get(*room).await.unwrap().unwrap();
        if stored.deleted_at.is_some() {
            continue;
        }
        let mut log = Writer::open(&*ports.log, *room).await;
        let before = log.head;
        let sent = log.send(filled.users[0], "and on").await;
        assert_eq!(sent.sequence, before.next());
        let read = ports
            .log
            .events(*room, &log.fences, sent.sequence, sent.sequence)
            .await;
        assert_eq!(read.unwrap(), [sent]);
    }
}
