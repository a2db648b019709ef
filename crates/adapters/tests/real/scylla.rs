//! ScyllaDB, or Cassandra in its place.

use std::time::Duration;

use carillon_adapters::{
    Login, UserPassword,
    conformance::{self, room_log::Writer},
    scylla::{
        Replication, ScyllaOptions, Stores, check_schema, connect, migrate, migrate_with,
        open_session,
    },
};
use carillon_domain::{
    ErrorCode, MessageId, RoomId, Sequence, UserId,
    event::{EventBody, RoomEvent},
    ports::{Epoch, Fence},
    room::Role,
};
use scylla::{client::session::Session, statement::unprepared::Statement, value::CqlTimestamp};

use super::{PATIENCE, guarded, proxy::Proxy, server, unique};

const VARIABLE: &str = "CARILLON_TEST_SCYLLA";

/// One change of the schema at a time: servers take several badly.
pub(super) static SCHEMA: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

pub(super) fn options(test: &str) -> Option<ScyllaOptions> {
    let contact_points = server(test, VARIABLE)?;
    let contact_points: Vec<String> = contact_points.split(',').map(str::to_owned).collect();
    Some(ScyllaOptions {
        // As many copies as there are nodes, so that quorums are put to the test where there can be any.
        replication_factor: contact_points.len().min(3) as u8,
        contact_points,
        datacenter: None,
        keyspace: unique("test_"),
        login: None,
    })
}

pub(super) async fn drop_keyspace(options: &ScyllaOptions) {
    let _one = SCHEMA.lock().await;
    let session = open_session(options).await.unwrap();
    let mut drop = Statement::new(format!("DROP KEYSPACE IF EXISTS {}", options.keyspace));
    drop.set_request_timeout(Some(PATIENCE));
    session.query_unpaged(drop, ()).await.unwrap();
}

/// Runs a body on a keyspace of its own, with a session beside the stores for what no port can do.
async fn on_scylla<F>(test: &str, body: impl FnOnce(Stores, Session) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let Some(options) = options(test) else {
        return;
    };
    {
        let _one = SCHEMA.lock().await;
        migrate_with(&options).await.unwrap();
    }
    let stores = connect(&options).await.unwrap();
    let session = open_session(&options).await.unwrap();
    session
        .use_keyspace(&options.keyspace, false)
        .await
        .unwrap();
    guarded(body(stores, session), drop_keyspace(&options)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scylla_accounts() {
    on_scylla("scylla_accounts", |stores, _| {
        conformance::accounts::all(stores.accounts)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scylla_security() {
    on_scylla("scylla_security", |stores, _| {
        conformance::security::all(stores.security)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scylla_person_keys() {
    on_scylla("scylla_person_keys", |stores, _| {
        conformance::person_keys::all(stores.person_keys)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scylla_people_index() {
    on_scylla("scylla_people_index", |stores, _| {
        conformance::people_index::all(stores.people_index)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scylla_rooms() {
    on_scylla("scylla_rooms", |stores, _| {
        conformance::rooms::all(stores.rooms, stores.log)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scylla_moderation() {
    on_scylla("scylla_moderation", |stores, _| {
        conformance::moderation::all(stores.rooms, stores.log)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scylla_room_log() {
    on_scylla("scylla_room_log", |stores, _| {
        conformance::room_log::all(stores.log)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scylla_push_targets() {
    on_scylla("scylla_push_targets", |stores, _| {
        conformance::push_targets::all(stores.push_targets)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scylla_people() {
    on_scylla("scylla_people", |stores, _| {
        conformance::people::all(stores.people)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scylla_media() {
    on_scylla("scylla_media", |stores, _| {
        conformance::media::all(stores.media_index)
    })
    .await;
}

/// OPS-01: the probe works, and says `scylla`.
#[tokio::test(flavor = "multi_thread")]
async fn scylla_probe() {
    on_scylla("scylla_probe", |stores, _| async move {
        assert_eq!(stores.probe.name(), "scylla");
        stores.probe.check().await.unwrap();
    })
    .await;
}

// === owners that stop in the middle ===

/// Writes an event's row as an owner does that is stopped right after.
async fn write_row(session: &Session, event: &RoomEvent, slot: Sequence, epoch: Epoch) {
    let cql = "INSERT INTO messages (room, bucket, slot, seq, epoch, time, actor, before, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)";
    let values = (
        event.room.0,
        (slot.0 / 1000) as i64,
        slot.0 as i64,
        event.sequence.0 as i64,
        epoch.0 as i64,
        CqlTimestamp(event.time.0),
        event.actor.0,
        event.messages_before as i64,
        serde_json::to_string(&event.body).unwrap(),
    );
    session.query_unpaged(cql, values).await.unwrap();
}

async fn write_index(session: &Session, event: &RoomEvent, epoch: Epoch) {
    let EventBody::Message { id, draft, .. } = &event.body else {
        panic!("not a message")
    };
    let (sequence, epoch) = (event.sequence.0 as i64, epoch.0 as i64);
    let cql =
        "INSERT INTO sent (sender, client_message_id, room, seq, epoch) VALUES (?, ?, ?, ?, ?)";
    let values = (
        event.actor.0,
        &draft.client_message_id.0,
        event.room.0,
        sequence,
        epoch,
    );
    session.query_unpaged(cql, values).await.unwrap();
    let cql = "INSERT INTO message_index (id, room, seq) VALUES (?, ?, ?) USING TIMESTAMP ?";
    session
        .query_unpaged(cql, (id.0, event.room.0, sequence, epoch))
        .await
        .unwrap();
}

/// Promises 1 to 3: an owner is paused in the middle of an append, replaced, and goes on: none of its writes, whenever they
/// arrive, is acknowledged, seen, or in the way of what the new owner wrote.
#[tokio::test(flavor = "multi_thread")]
async fn a_paused_owner_can_do_no_harm() {
    on_scylla(
        "a_paused_owner_can_do_no_harm",
        |stores, session| async move {
            let log = &*stores.log;
            let (room, ann) = (RoomId::new(), UserId::new());
            let mut old = Writer::open(log, room).await;
            let first = old.send(ann, "first").await;
            let mut new = Writer::open(log, room).await;
            // The client tried the same message again: the new owner stores it.
            let retried = conformance::room_log::text("retried");
            let stored = new.append(ann, retried.clone()).await;
            // What the old owner had under way arrives now: the same message, and more after it.
            let late = old.event(ann, retried);
            let later = old.event(ann, conformance::room_log::text("later"));
            for event in [&late, &later] {
                write_row(&session, event, event.sequence, old.epoch).await;
                write_index(&session, event, old.epoch).await;
            }
            let mut edit = old.event(ann, conformance::room_log::text(""));
            edit.body = EventBody::Edited {
                id: message_id(&first),
                target: first.sequence,
                content: "edited late".into(),
            };
            write_row(&session, &edit, edit.sequence, old.epoch).await;
            write_row(&session, &edit, first.sequence, old.epoch).await;
            let partition = carillon_domain::partition::Partition::of_room(room);
            let refused = log
                .append(partition, old.epoch, &[late.clone(), later.clone()])
                .await;
            assert_eq!(refused.unwrap_err().code, ErrorCode::NotOwner);
            let refused = log.open(room, old.epoch).await;
            assert_eq!(
                refused.unwrap_err().code,
                ErrorCode::NotOwner,
                "nor may it open rooms"
            );

            let last = new.send(ann, "last").await;
            let expected = vec![first, stored.clone(), last];
            assert_eq!(new.history().await, expected);
            let newest = Writer::open(log, room).await;
            assert_eq!(newest.history().await, expected);
            assert_eq!(newest.messages, 3);
            let messages = log
                .messages(room, &newest.fences, Sequence(1), newest.head)
                .await
                .unwrap();
            assert!(
                messages.iter().all(|message| message.changes.is_empty()),
                "no late edit is seen"
            );
            // The index knows both places of the retried message; one of them holds it.
            let EventBody::Message { id, draft, .. } = &stored.body else {
                unreachable!()
            };
            let found = log.find_sent(ann, &draft.client_message_id).await.unwrap();
            assert!(found.contains(&(room, stored.sequence)), "{found:?}");
            assert_eq!(
                log.find_message(*id).await.unwrap(),
                Some((room, stored.sequence))
            );
            // An entry of a void event leads to an event that is another one, or to none.
            let found = log.find_message(message_id(&later)).await.unwrap();
            assert_eq!(found, Some((room, later.sequence)));
            assert_ne!(expected.get(later.sequence.0 as usize - 1), Some(&later));
        },
    )
    .await;
}

/// Promise 1: an opener that was paused before it fenced, and wakes up when a later owner has adopted what lies behind its fence,
/// takes nothing away, neither from that owner nor from any later one.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_fence_takes_nothing_away() {
    on_scylla(
        "a_late_fence_takes_nothing_away",
        |stores, session| async move {
            let log = &*stores.log;
            let (room, ann) = (RoomId::new(), UserId::new());
            let partition = carillon_domain::partition::Partition::of_room(room);
            let mut first = Writer::open(log, room).await;
            let mut expected = Vec::new();
            for n in 0..5 {
                expected.push(first.send(ann, &n.to_string()).await);
            }
            // Cut off in an append: its row stands, unacknowledged.
            let adopted = first.event(ann, conformance::room_log::text("adopted"));
            // Reads the room up to 5, and is paused.
            let owner = carillon_domain::ReplicaId("paused".into());
            let paused = log.acquire(partition, &owner).await.unwrap();
            write_row(&session, &adopted, adopted.sequence, first.epoch).await;
            let mut third = Writer::open(log, room).await;
            expected.push(adopted.clone());
            assert_eq!(third.history().await, expected);
            expected.push(third.send(ann, "acknowledged").await);
            // What the paused opener had under way, with the timestamps that its epoch gives: see `fences::timestamps`.
            let cql =
                "INSERT INTO room_fences (room, epoch, first) VALUES (?, ?, 6) USING TIMESTAMP ?";
            let epoch = paused.0 as i64;
            session
                .query_unpaged(cql, (room.0, epoch, 2 * epoch + 1))
                .await
                .unwrap();
            let cql = "DELETE FROM room_fences USING TIMESTAMP ? WHERE room = ? AND epoch < ?";
            session
                .query_unpaged(cql, (2 * epoch, room.0, epoch))
                .await
                .unwrap();
            let mut fourth = Writer::open(log, room).await;
            assert_eq!(fourth.history().await, expected);
            expected.push(fourth.send(ann, "on").await);
            assert_eq!(Writer::open(log, room).await.history().await, expected);
        },
    )
    .await;
}

/// MSG-20: a room that had very many owners with something to say still opens: its fences don't fit into one batch.
#[tokio::test(flavor = "multi_thread")]
async fn a_room_of_many_owners_opens() {
    on_scylla("a_room_of_many_owners_opens", |stores, _| async move {
        let log = &*stores.log;
        let (room, ann) = (RoomId::new(), UserId::new());
        let mut expected = Vec::new();
        for n in 0..230 {
            let mut writer = Writer::open(log, room).await;
            expected.push(writer.send(ann, &n.to_string()).await);
            assert_eq!(writer.fences.len(), n + 1);
        }
        assert_eq!(Writer::open(log, room).await.history().await, expected);
    })
    .await;
}

/// MSG-01: a deletion that its owner didn't get to project is projected by the next one.
#[tokio::test(flavor = "multi_thread")]
async fn a_half_done_deletion_is_finished() {
    on_scylla(
        "a_half_done_deletion_is_finished",
        |stores, session| async move {
            let ann = UserId::new();
            let room = carillon_domain::room::Room {
                id: RoomId::new(),
                kind: carillon_domain::room::RoomKind::Public,
                name: "gone".into(),
                description: String::new(),
                created_by: ann,
                created_at: carillon_domain::Timestamp(1),
                pair: None,
                deleted_at: None,
                rules: carillon_domain::room::RoomRules::default(),
            };
            stores.rooms.create(&room).await.unwrap();
            let mut crashed = Writer::open(&*stores.log, room.id).await;
            crashed.send(ann, "first").await;
            let deletion = crashed.event(ann, EventBody::RoomDeleted);
            write_row(&session, &deletion, deletion.sequence, crashed.epoch).await;
            Writer::open(&*stores.log, room.id).await;
            let stored = stores.rooms.get(room.id).await.unwrap().unwrap();
            assert_eq!(stored.deleted_at, Some(deletion.time));
            let listed = stores.rooms.list_public(None, 100).await.unwrap();
            assert_eq!(listed, []);
        },
    )
    .await;
}

/// Promises 1 and 3: what a crashed owner left half done is finished by the next one: index, overlays, members.
#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_owner_is_tidied_up_after() {
    on_scylla(
        "a_crashed_owner_is_tidied_up_after",
        |stores, session| async move {
            let log = &*stores.log;
            let (room, ann, bob) = (RoomId::new(), UserId::new(), UserId::new());
            let mut crashed = Writer::open(log, room).await;
            let first = crashed.send(ann, "first").await;
            let message = crashed.event(ann, conformance::room_log::text("half done"));
            let edit = crashed.event(
                ann,
                EventBody::Edited {
                    id: message_id(&first),
                    target: first.sequence,
                    content: "edited".into(),
                },
            );
            let joined = crashed.event(
                ann,
                EventBody::Joined {
                    user: bob,
                    role: Role::Member,
                },
            );
            // Only the events' own rows were written; after a hole there is one more.
            let hole = crashed.event(ann, conformance::room_log::text("never written"));
            let beyond = crashed.event(ann, conformance::room_log::text("beyond"));
            for event in [&message, &edit, &joined, &beyond] {
                write_row(&session, event, event.sequence, crashed.epoch).await;
            }
            assert!(
                log.find_message(message_id(&message))
                    .await
                    .unwrap()
                    .is_none()
            );

            let mut next = Writer::open(log, room).await;
            let mut expected = vec![first, message.clone(), edit.clone(), joined.clone()];
            assert_eq!(next.history().await, expected);
            assert_eq!(next.messages, 2);
            let found = log.find_message(message_id(&message)).await.unwrap();
            assert_eq!(found, Some((room, message.sequence)));
            let EventBody::Message { draft, .. } = &message.body else {
                unreachable!()
            };
            let found = log.find_sent(ann, &draft.client_message_id).await.unwrap();
            assert_eq!(found, [(room, message.sequence)]);
            let messages = log
                .messages(room, &next.fences, Sequence(1), next.head)
                .await
                .unwrap();
            assert_eq!(messages[0].changes, [edit]);
            let member = stores.rooms.member(room, bob).await.unwrap().unwrap();
            assert_eq!(
                (member.since, member.joined_at),
                (joined.sequence, joined.time)
            );
            assert_eq!(stores.rooms.rooms_of(bob, None, 10).await.unwrap(), [room]);
            // The place of the hole is taken anew; what lay beyond it stays void.
            expected.push(next.send(ann, "after").await);
            expected.push(next.send(ann, "and after").await);
            assert_ne!(expected[4], hole);
            let newest = Writer::open(log, room).await;
            assert_eq!(newest.history().await, expected);
        },
    )
    .await;
}

/// Promise 2: opening a room again under one epoch moves no fence, and a quiet room keeps one fence.
#[tokio::test(flavor = "multi_thread")]
async fn fences_stay_few_and_where_they_are() {
    on_scylla(
        "fences_stay_few_and_where_they_are",
        |stores, session| async move {
            let log = &*stores.log;
            let (room, ann) = (RoomId::new(), UserId::new());
            let mut old = Writer::open(log, room).await;
            old.send(ann, "one").await;
            let mut owner = Writer::open(log, room).await;
            owner.send(ann, "two").await;
            let late = old.event(ann, conformance::room_log::text("late"));
            let again = log.open(room, owner.epoch).await.unwrap();
            assert_eq!(again.fences, owner.fences);
            assert_eq!(again.head, owner.head);
            write_row(&session, &late, late.sequence, old.epoch).await;
            let again = log.open(room, owner.epoch).await.unwrap();
            let events = log
                .events(room, &again.fences, Sequence(1), again.head)
                .await
                .unwrap();
            assert_eq!(events.len(), 2);
            assert_ne!(events[1], late);
            for _ in 0..5 {
                let quiet = Writer::open(log, room).await;
                let last = Fence {
                    epoch: quiet.epoch,
                    first: quiet.head.next(),
                };
                assert_eq!(quiet.fences.len(), 3, "{:?}", quiet.fences);
                assert_eq!(quiet.fences.last(), Some(&last));
            }
        },
    )
    .await;
}

fn message_id(event: &RoomEvent) -> MessageId {
    match &event.body {
        EventBody::Message { id, .. } => *id,
        _ => panic!("not a message"),
    }
}

/// Promises 1 and 8: while the database stalls, appends fail soon; afterwards, without a new connection by hand, a new owner finds
/// everything that was acknowledged, and whatever it finds stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_scylla_is_unavailable() {
    let test = "a_stalled_scylla_is_unavailable";
    let Some(options) = options(test) else {
        return;
    };
    let [node] = options.contact_points.as_slice() else {
        println!(
            "CARILLON-SKIPPED {test}: it stalls the way to a single node, and there are several"
        );
        return;
    };
    let proxy = Proxy::start(node.clone()).await;
    let through = ScyllaOptions {
        contact_points: vec![proxy.address().to_string()],
        ..options.clone()
    };
    {
        let _one = SCHEMA.lock().await;
        migrate_with(&options).await.unwrap();
    }
    let stores = connect(&through).await.unwrap();
    let body = async move {
        let log = &*stores.log;
        let (room, ann) = (RoomId::new(), UserId::new());
        let mut owner = Writer::open(log, room).await;
        let mut acknowledged = Vec::new();
        for n in 0..5 {
            acknowledged.push(owner.send(ann, &n.to_string()).await);
        }
        proxy.freeze();
        let unknown = owner.event(ann, conformance::room_log::text("unknown"));
        let began = std::time::Instant::now();
        let error = owner.try_append(&[unknown]).await.unwrap_err();
        assert_eq!(
            error.code,
            ErrorCode::Unavailable,
            "{}",
            error.cause_chain()
        );
        assert!(
            began.elapsed() < Duration::from_secs(15),
            "soon, not after {:?}",
            began.elapsed()
        );
        assert_eq!(
            stores.probe.check().await.unwrap_err().code,
            ErrorCode::Unavailable
        );
        proxy.thaw();
        let healed = async { while stores.probe.check().await.is_err() {} };
        tokio::time::timeout(PATIENCE, healed)
            .await
            .expect("it heals by itself");
        let mut next = Writer::open(log, room).await;
        let found = next.history().await;
        assert_eq!(found[..5], acknowledged);
        assert!(
            found.len() <= 6,
            "one more at most: its outcome was unknown"
        );
        next.send(ann, "after").await;
        let newest = Writer::open(log, room).await.history().await;
        assert_eq!(newest[..found.len()], found);
        assert_eq!(newest.len(), found.len() + 1);
    };
    guarded(body, drop_keyspace(&options)).await;
}

// === accounts ===

/// AUTH-01: a creation that crashed after claiming names doesn't keep them, and can't come back to life.
#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_creation_gives_its_names_back() {
    on_scylla("a_crashed_creation_gives_its_names_back", |stores, session| async move {
        let crashed = UserId::new();
        let long_ago = CqlTimestamp(1_000_000_000_000);
        for (kind, name) in [("username", "zoe"), ("email", "zoe@example.com")] {
            let cql = "INSERT INTO account_names (kind, name, user, claimed_at) VALUES (?, ?, ?, ?) IF NOT EXISTS";
            session.query_unpaged(cql, (kind, name, crashed.0, long_ago)).await.unwrap();
        }
        assert!(stores.accounts.by_username("zoe").await.unwrap().is_none());
        let account = |id: UserId| carillon_domain::account::Account {
            user: carillon_domain::account::User {
                id,
                username: "Zoe".into(),
                display_name: "Zoe".into(),
                created_at: carillon_domain::Timestamp(1_700_000_000_000),
                about: Default::default(),
            },
            email: Some("zoe@example.com".into()),
            phone: None,
            password_hash: Some("hash".into()),
        };
        let created = account(UserId::new());
        stores.accounts.create(&created).await.unwrap();
        assert_eq!(stores.accounts.by_email("zoe@example.com").await.unwrap(), Some(created.clone()));
        assert_eq!(stores.accounts.by_username("ZOE").await.unwrap(), Some(created.clone()));
        // The crashed creation goes on after all.
        let error = stores.accounts.create(&account(crashed)).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::AlreadyExists);
        assert_eq!(stores.accounts.by_ids(&[crashed, created.user.id]).await.unwrap(), [created]);
    })
    .await;
}

/// AUTH-09: a change of a name that crashed at any step leaves the account with one name that works, and nothing taken for good;
/// and it can't come back to life.
#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_change_gives_its_names_back() {
    on_scylla("a_crashed_change_gives_its_names_back", |stores, session| async move {
        use carillon_domain::account::{Account, NameKind, User};
        let account = |name: &str| Account {
            user: User {
                id: UserId::new(),
                username: name.into(),
                display_name: name.into(),
                created_at: carillon_domain::Timestamp(1_700_000_000_000),
                about: Default::default(),
            },
            email: None,
            phone: None,
            password_hash: None,
        };
        let rename = async |id, old: &str, new: &str| {
            stores.accounts.rename(id, NameKind::Username, Some(old), new).await
        };
        let found = async |name: &str| {
            let found = stores.accounts.by_username(name).await.unwrap();
            found.map(|account| account.user.id)
        };
        let claim = async |name: &str, user: UserId| {
            let cql = "INSERT INTO account_names (kind, name, user, claimed_at) VALUES ('username', ?, ?, ?) IF NOT EXISTS";
            let long_ago = CqlTimestamp(1_000_000_000_000);
            session.query_unpaged(cql, (name, user.0, long_ago)).await.unwrap();
        };
        // After claiming the new name.
        let (ann, zoe) = (account("ann"), account("zoe"));
        stores.accounts.create(&ann).await.unwrap();
        stores.accounts.create(&zoe).await.unwrap();
        claim("wanted", ann.user.id).await;
        assert_eq!(found("wanted").await, None);
        assert!(rename(zoe.user.id, "zoe", "wanted").await.unwrap());
        assert_eq!(found("wanted").await, Some(zoe.user.id));
        assert_eq!(found("ann").await, Some(ann.user.id));
        // The crashed change goes on after all: its last step, with the fence that it had read.
        let late = "UPDATE users SET username = 'wanted', display_name = 'wanted' WHERE id = ? IF username = 'ann' AND display_name = 'ann' AND name_fence = null";
        session.query_unpaged(late, (ann.user.id.0,)).await.unwrap();
        let stored = stores.accounts.by_ids(&[ann.user.id]).await.unwrap();
        assert_eq!(stored, std::slice::from_ref(&ann));
        let refused = rename(ann.user.id, "ann", "wanted").await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::AlreadyExists);
        // After writing the row, before releasing the old name.
        claim("later", ann.user.id).await;
        session.query_unpaged("UPDATE users SET username = 'later' WHERE id = ?", (ann.user.id.0,)).await.unwrap();
        assert_eq!(found("later").await, Some(ann.user.id));
        assert_eq!(found("ann").await, None);
        session
            .query_unpaged("UPDATE account_names SET claimed_at = ? WHERE kind = 'username' AND name = 'ann'", (CqlTimestamp(1_000_000_000_000),))
            .await
            .unwrap();
        let heir = account("ann");
        stores.accounts.create(&heir).await.unwrap();
        assert_eq!(found("ann").await, Some(heir.user.id));
        // Its owner finds their own crashed claim and goes on from there.
        claim("latest", ann.user.id).await;
        assert!(rename(ann.user.id, "later", "latest").await.unwrap());
        assert_eq!(found("latest").await, Some(ann.user.id));
        assert_eq!(found("later").await, None);
    })
    .await;
}

// === schema ===

/// OPS-06: migrations run once, also when several processes run them at once; a role refuses another schema.
#[tokio::test(flavor = "multi_thread")]
async fn migrations_run_once() {
    let Some(options) = options("migrations_run_once") else {
        return;
    };
    let session = open_session(&options).await.unwrap();
    let keyspace = options.keyspace.clone();
    let body = {
        let options = options.clone();
        async move {
            let error = check_schema(&session, &keyspace).await.unwrap_err();
            assert_eq!(
                error.code,
                ErrorCode::FailedPrecondition,
                "there is no keyspace yet"
            );
            let Err(error) = connect(&options).await else {
                panic!("there is no schema yet")
            };
            assert!(error.detail.contains("version 0"), "{}", error.detail);
            let runs: Vec<_> = {
                let _one = SCHEMA.lock().await;
                let runs = (0..3).map(|_| {
                    let options = options.clone();
                    tokio::spawn(async move { migrate_with(&options).await.unwrap() })
                });
                futures::future::join_all(runs).await
            };
            let applied: Vec<_> = runs.into_iter().flat_map(Result::unwrap).collect();
            let mut versions: Vec<i32> = applied.iter().map(|applied| applied.version).collect();
            versions.sort_unstable();
            let once: Vec<i32> = (1..).take(versions.len()).collect();
            assert_eq!(versions, once, "each migration was applied by one of them");
            assert!(!versions.is_empty());
            check_schema(&session, &keyspace).await.unwrap();
            let datacenter = session.get_cluster_state().get_nodes_info()[0]
                .datacenter
                .clone();
            let replication = Replication {
                datacenter: datacenter.unwrap(),
                factor: 1,
            };
            let again = migrate(&session, &keyspace, &replication).await.unwrap();
            assert_eq!(again, [], "the second time there is nothing to do");

            let newer = versions.len() as i32 + 1;
            let cql = format!(
                "INSERT INTO {keyspace}.schema_migrations (component, version, checksum) VALUES ('carillon', ?, 'x')"
            );
            session.query_unpaged(cql, (newer,)).await.unwrap();
            // OPS-06: a pod of the release before may restart while a newer release is rolled out.
            check_schema(&session, &keyspace).await.unwrap();
            let cql = format!(
                "UPDATE {keyspace}.schema_migrations SET checksum = 'other' WHERE component = 'carillon' AND version = 1"
            );
            session.query_unpaged(cql, ()).await.unwrap();
            let error = check_schema(&session, &keyspace).await.unwrap_err();
            assert!(
                error.detail.contains("other statements"),
                "{}",
                error.detail
            );
        }
    };
    guarded(body, drop_keyspace(&options)).await;
}

/// Promise 8: servers that aren't there are named; so is a data centre that doesn't exist.
#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_scylla_is_named() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let unreachable = ScyllaOptions {
        contact_points: vec![nobody.to_string()],
        datacenter: None,
        keyspace: "nowhere".into(),
        replication_factor: 1,
        login: Some(Login::new(|| {
            Ok(UserPassword {
                user: Some("user".into()),
                password: "secret".into(),
            })
        })),
    };
    let Err(error) = connect(&unreachable).await else {
        panic!("nobody listens there")
    };
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert!(
        error.detail.contains(&nobody.to_string()),
        "{}",
        error.detail
    );
    assert!(!format!("{error} {error:?} {unreachable:?}").contains("secret"));
    let Some(mut options) = options("an_unreachable_scylla_is_named") else {
        return;
    };
    options.datacenter = Some("atlantis".into());
    let error = open_session(&options).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
    assert!(error.detail.contains("atlantis"), "{}", error.detail);
}
