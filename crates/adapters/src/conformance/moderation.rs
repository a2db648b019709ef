//! What [`RoomStore`] keeps of a room's log besides its members: restrictions, invitations, name and rules (MSG-03, MSG-08),
//! receipts (MSG-05), what counts are made of (MSG-09, MSG-11), and retention (MSG-21).

use std::{sync::Arc, time::Duration};

use carillon_domain::{
    ErrorCode, RoomId, Sequence, Timestamp, UserId,
    event::{EventBody, Mentions},
    ports::{Floor, Reached, ReadMark, RoomLog, RoomStore},
    room::{Restrictions, Role, Room, RoomKind, RoomRules},
};

use super::room_log::{Writer, text};

/// Every clause.
pub async fn all(store: Arc<dyn RoomStore>, log: Arc<dyn RoomLog>) {
    restrictions_follow_the_log(&*store, &*log).await;
    restricted_people_are_paged_by_id(&*store, &*log).await;
    invitations_follow_the_log(&*store, &*log).await;
    a_room_is_as_it_was_changed_last(&*store, &*log).await;
    receipts_only_grow(&*store, &*log).await;
    receipts_are_paged_by_id(&*store).await;
    who_writes_has_read(&*store, &*log).await;
    deleted_messages_and_mentions_are_found(&*store, &*log).await;
    a_floor_only_rises(&*log).await;
    what_is_purged_is_gone(&*store, &*log).await;
}

fn joined(user: UserId) -> EventBody {
    EventBody::Joined {
        user,
        role: Role::Member,
    }
}

/// MSG-03: the last event of each kind counts, whether or not somebody is a member.
pub async fn restrictions_follow_the_log(store: &dyn RoomStore, log: &dyn RoomLog) {
    let mut writer = Writer::open(log, RoomId::new()).await;
    let room = writer.room;
    let (ann, bob) = (UserId::new(), UserId::new());
    let until = Timestamp(1_800_000_000_000);
    let none = Restrictions::default();
    let muted = Restrictions {
        muted_until: Some(until),
        ..none
    };
    let banned = Restrictions {
        banned: true,
        ..none
    };
    let both = Restrictions {
        banned: true,
        ..muted
    };
    let invited = Restrictions {
        invited: true,
        ..none
    };
    let steps = [
        (joined(bob), true, none),
        (EventBody::Muted { user: bob, until }, true, muted),
        (EventBody::left(bob), false, muted),
        (joined(bob), true, muted),
        (EventBody::Banned { user: bob }, false, both),
        (EventBody::Unmuted { user: bob }, false, banned),
        (EventBody::Unbanned { user: bob }, false, none),
        (EventBody::Invited { user: bob }, false, invited),
        (joined(bob), true, none),
    ];
    for (n, (body, is_member, restrictions)) in steps.into_iter().enumerate() {
        writer.append(ann, body).await;
        let standing = store.standing(room, bob).await.unwrap();
        assert_eq!(standing.member.is_some(), is_member, "step {n}");
        assert_eq!(standing.restrictions, restrictions, "step {n}");
        let listed = store.restricted(room, None, 10).await.unwrap();
        let expected = restrictions.banned || restrictions.muted_until.is_some();
        assert_eq!(!listed.is_empty(), expected, "step {n}");
        assert_eq!(
            store.rooms_of(bob, None, 10).await.unwrap().len(),
            usize::from(is_member)
        );
    }
    // Several in one append, and a later owner's repair.
    let batch = [
        writer.event(ann, EventBody::Banned { user: bob }),
        writer.event(ann, EventBody::Unbanned { user: bob }),
        writer.event(ann, EventBody::Muted { user: bob, until }),
    ];
    writer.try_append(&batch).await.unwrap();
    for _ in 0..2 {
        let standing = store.standing(room, bob).await.unwrap();
        assert!(standing.member.is_none());
        assert_eq!(standing.restrictions, muted);
        Writer::open(log, room).await;
    }
    let stranger = store.standing(room, UserId::new()).await.unwrap();
    assert_eq!(stranger, carillon_domain::room::Standing::default());
}

/// MSG-03: ascending by id, in pages, past people who are free again.
pub async fn restricted_people_are_paged_by_id(store: &dyn RoomStore, log: &dyn RoomLog) {
    let mut writer = Writer::open(log, RoomId::new()).await;
    let ann = UserId::new();
    let mut users: Vec<_> = (0..12).map(|_| UserId::new()).collect();
    users.sort();
    for user in &users {
        writer.append(ann, EventBody::Banned { user: *user }).await;
    }
    for user in users.iter().step_by(2) {
        writer
            .append(ann, EventBody::Unbanned { user: *user })
            .await;
    }
    let expected: Vec<_> = users.iter().skip(1).step_by(2).copied().collect();
    for limit in [1, 2, 4, 100] {
        let mut found: Vec<UserId> = Vec::new();
        loop {
            let after = found.last().copied();
            let page = store.restricted(writer.room, after, limit).await.unwrap();
            assert!(page.len() <= limit);
            if page.is_empty() {
                break;
            }
            found.extend(page.iter().map(|restricted| restricted.user));
        }
        assert_eq!(found, expected, "in pages of {limit}");
    }
}

/// MSG-03: asked is who was asked and neither came nor declined.
pub async fn invitations_follow_the_log(store: &dyn RoomStore, log: &dyn RoomLog) {
    let (ann, bob) = (UserId::new(), UserId::new());
    let mut rooms = Vec::new();
    let ends = [
        None,
        Some(joined(bob)),
        Some(EventBody::left(bob)),
        Some(EventBody::Banned { user: bob }),
        None,
    ];
    for end in ends {
        let mut writer = Writer::open(log, RoomId::new()).await;
        writer.append(ann, EventBody::Invited { user: bob }).await;
        let asked = store.invites_of(bob, None, 100).await.unwrap();
        assert!(asked.contains(&writer.room));
        match end {
            Some(end) => drop(writer.append(bob, end).await),
            None => rooms.push(writer.room),
        }
        Writer::open(log, writer.room).await;
    }
    rooms.sort();
    assert_eq!(store.invites_of(bob, None, 100).await.unwrap(), rooms);
    let first = store.invites_of(bob, None, 1).await.unwrap();
    assert_eq!(first, rooms[..1]);
    let rest = store.invites_of(bob, Some(rooms[0]), 100).await.unwrap();
    assert_eq!(rest, rooms[1..]);
}

/// MSG-03, MSG-08: name, description and rules are those of the last change; rooms with a retention are listed.
pub async fn a_room_is_as_it_was_changed_last(store: &dyn RoomStore, log: &dyn RoomLog) {
    let room = Room {
        id: RoomId::new(),
        kind: RoomKind::Group,
        name: "first".into(),
        description: String::new(),
        created_by: UserId::new(),
        created_at: Timestamp(1),
        pair: None,
        deleted_at: None,
        rules: RoomRules::default(),
    };
    store.create(&room).await.unwrap();
    let mut writer = Writer::open(log, room.id).await;
    let rules = RoomRules {
        edit_window_seconds: Some(0),
        edit_unread_only: true,
        retention_seconds: Some(60),
    };
    for (name, rules) in [("second", rules), ("third 👋", RoomRules::default())] {
        let change = EventBody::Changed {
            name: name.into(),
            description: "d".into(),
            rules,
        };
        writer.append(room.created_by, change).await;
        let expected = Room {
            name: name.into(),
            description: "d".into(),
            rules,
            ..room.clone()
        };
        // Creating it again changes nothing, nor does a later owner's repair.
        store.create(&room).await.unwrap();
        writer = Writer::open(log, room.id).await;
        assert_eq!(store.get(room.id).await.unwrap(), Some(expected.clone()));
        assert_eq!(store.get_many(&[room.id]).await.unwrap(), [expected]);
        let mut before = None;
        loop {
            let page = store.retained(before, 100).await.unwrap();
            if page.contains(&room.id) {
                break;
            }
            before = page.last().copied();
            assert!(before.is_some(), "the room isn't listed");
        }
    }
}

/// MSG-05: the largest marks stand, on whatever device they were made; reading implies delivery; a new membership begins anew.
pub async fn receipts_only_grow(store: &dyn RoomStore, log: &dyn RoomLog) {
    let mut writer = Writer::open(log, RoomId::new()).await;
    let room = writer.room;
    let (ann, bob) = (UserId::new(), UserId::new());
    writer.append(bob, joined(bob)).await;
    for n in 0..8 {
        writer.send(ann, &n.to_string()).await;
    }
    let reached = |sequence: u64| Reached {
        sequence: Sequence(sequence),
        time: Timestamp(1_700_000_100_000 + sequence.cast_signed()),
    };
    let of_bob = async || {
        let receipts = store.receipts(room, None, 100).await.unwrap();
        receipts.into_iter().find(|receipt| receipt.user == bob)
    };
    assert_eq!(of_bob().await, None, "joining is no receipt");
    for (given, stands) in [(3, 3), (2, 3), (5, 5), (5, 5)] {
        let answered = store.mark_delivered(bob, room, reached(given)).await;
        assert_eq!(answered.unwrap(), reached(stands));
        let receipt = of_bob().await.unwrap();
        assert_eq!(
            (receipt.delivered, receipt.read),
            (Some(reached(stands)), None)
        );
    }
    for (given, delivered) in [(4, 5), (7, 7)] {
        let mark = ReadMark {
            sequence: Sequence(given),
            messages: given - 1,
            time: reached(given).time,
        };
        store.mark_read(bob, room, mark).await.unwrap();
        let receipt = of_bob().await.unwrap();
        assert_eq!(receipt.delivered, Some(reached(delivered)));
        assert_eq!(receipt.read, Some(reached(given)));
    }
    let answered = store.mark_delivered(bob, room, reached(6)).await.unwrap();
    assert_eq!(answered, reached(7), "who has read it has it");
    writer.append(bob, EventBody::left(bob)).await;
    assert_eq!(of_bob().await, None);
    writer.append(bob, joined(bob)).await;
    assert_eq!(of_bob().await, None, "a new membership begins anew");
    let place = writer.send(ann, "more").await.sequence.0;
    store
        .mark_delivered(bob, room, reached(place))
        .await
        .unwrap();
    assert_eq!(of_bob().await.unwrap().delivered, Some(reached(place)));
}

/// MSG-05: ascending by id, in pages.
pub async fn receipts_are_paged_by_id(store: &dyn RoomStore) {
    let room = RoomId::new();
    let mut users: Vec<_> = (0..9).map(|_| UserId::new()).collect();
    users.sort();
    for (n, user) in users.iter().enumerate() {
        let reached = Reached {
            sequence: Sequence(1 + n as u64),
            time: Timestamp(5),
        };
        store.mark_delivered(*user, room, reached).await.unwrap();
        if n % 2 == 0 {
            let mark = ReadMark {
                sequence: Sequence(1),
                messages: 1,
                time: Timestamp(6),
            };
            store.mark_read(*user, room, mark).await.unwrap();
        }
    }
    for limit in [1, 2, 4, 100] {
        let mut found: Vec<UserId> = Vec::new();
        loop {
            let after = found.last().copied();
            let page = store.receipts(room, after, limit).await.unwrap();
            assert!(page.len() <= limit);
            if page.is_empty() {
                break;
            }
            found.extend(page.iter().map(|receipt| receipt.user));
        }
        assert_eq!(found, users, "in pages of {limit}");
    }
}

/// MSG-09: a message marks the room read by its sender, at the latest for the next owner.
pub async fn who_writes_has_read(store: &dyn RoomStore, log: &dyn RoomLog) {
    let mut writer = Writer::open(log, RoomId::new()).await;
    let room = writer.room;
    let (ann, bob) = (UserId::new(), UserId::new());
    let batch = [
        writer.event(ann, joined(ann)),
        writer.event(ann, text("1")),
        writer.event(bob, text("2")),
        writer.event(ann, text("3")),
        writer.event(bob, text("4")),
    ];
    writer.try_append(&batch).await.unwrap();
    Writer::open(log, room).await;
    for (user, sequence, messages) in [(ann, 4, 3), (bob, 5, 4)] {
        let marks = store.read_marks(user, &[room]).await.unwrap();
        let expected = ReadMark {
            sequence: Sequence(sequence),
            messages,
            time: batch[sequence as usize - 1].time,
        };
        assert_eq!(marks, [(room, expected)]);
    }
    assert_eq!(store.receipts(room, None, 10).await.unwrap().len(), 2);
}

fn calling(users: &[UserId], room: bool) -> EventBody {
    match text("calls") {
        EventBody::Message { id, draft, .. } => EventBody::Message {
            id,
            draft,
            mentions: Mentions {
                users: users.to_vec(),
                room,
            },
        },
        other => other,
    }
}

/// MSG-09, MSG-11: the places of deleted messages, and of those that call somebody, ascending after a place, in pages.
pub async fn deleted_messages_and_mentions_are_found(store: &dyn RoomStore, log: &dyn RoomLog) {
    let mut writer = Writer::open(log, RoomId::new()).await;
    let room = writer.room;
    let (ann, bob) = (UserId::new(), UserId::new());
    let mut sent = Vec::new();
    for n in 0..6 {
        let body = match n {
            1 => calling(&[bob], false),
            2 => calling(&[], true),
            3 => calling(&[ann, bob], true),
            4 => calling(&[ann], false),
            _ => text("quiet"),
        };
        sent.push(writer.append(ann, body).await);
    }
    for n in [4, 1] {
        let EventBody::Message { id, .. } = sent[n].body else {
            panic!()
        };
        let target = sent[n].sequence;
        writer.append(ann, EventBody::Deleted { id, target }).await;
    }
    Writer::open(log, room).await;
    let place = |n: usize| sent[n].sequence;
    let deleted = store.deleted_after(room, Sequence::ZERO, 10).await;
    assert_eq!(deleted.unwrap(), [place(1), place(4)]);
    let deleted = store.deleted_after(room, place(1), 10).await;
    assert_eq!(deleted.unwrap(), [place(4)]);
    let deleted = store.deleted_after(room, Sequence::ZERO, 1).await;
    assert_eq!(deleted.unwrap(), [place(1)]);
    let calls = async |user, after, limit| {
        store
            .mentions_after(room, user, after, limit)
            .await
            .unwrap()
    };
    let of_bob = [place(1), place(2), place(3)];
    assert_eq!(calls(bob, Sequence::ZERO, 10).await, of_bob);
    assert_eq!(calls(bob, Sequence::ZERO, 2).await, of_bob[..2]);
    assert_eq!(calls(bob, place(2), 10).await, of_bob[2..]);
    assert_eq!(calls(ann, place(2), 10).await, [place(3), place(4)]);
    assert_eq!(calls(UserId::new(), place(2), 10).await, [place(3)]);
}

/// MSG-21: whoever opens the room next finds the highest floor.
pub async fn a_floor_only_rises(log: &dyn RoomLog) {
    let mut writer = Writer::open(log, RoomId::new()).await;
    for n in 0..6 {
        writer.send(UserId::new(), &n.to_string()).await;
    }
    let floor = |first| Floor {
        first: Sequence(first),
        messages: first - 1,
    };
    for (given, stands) in [(1, 1), (4, 4), (2, 4), (7, 7)] {
        log.raise_floor(writer.room, floor(given)).await.unwrap();
        let epoch = Writer::open(log, writer.room).await.epoch;
        let open = log.open(writer.room, epoch).await.unwrap();
        assert_eq!(open.floor, floor(stands));
        assert_eq!((open.head, open.messages), (Sequence(6), 6));
    }
}

/// MSG-21: what is before the floor is removed with all that leads to it; the room goes on, under later owners too.
pub async fn what_is_purged_is_gone(store: &dyn RoomStore, log: &dyn RoomLog) {
    let mut writer = Writer::open(log, RoomId::new()).await;
    let room = writer.room;
    let (ann, bob) = (UserId::new(), UserId::new());
    writer.append(ann, joined(ann)).await;
    let mut sent = Vec::new();
    for _ in 0..5 {
        let batch: Vec<_> = (0..500)
            .map(|_| writer.event(ann, calling(&[bob], false)))
            .collect();
        writer.try_append(&batch).await.unwrap();
        sent.extend(batch);
    }
    let EventBody::Message { id, .. } = sent[7].body else {
        panic!()
    };
    let target = sent[7].sequence;
    writer.append(ann, EventBody::Deleted { id, target }).await;
    let all = Sequence(u64::MAX);
    let more = log.purge(room, &writer.fences, all).await.unwrap();
    assert!(!more, "there is no floor");
    let first = sent[2_400].sequence;
    let floor = Floor {
        first,
        messages: 2_400,
    };
    log.raise_floor(room, floor).await.unwrap();
    let more = log.purge(room, &writer.fences, Sequence(1)).await.unwrap();
    assert!(!more, "nothing below was asked for");
    // The end of the log must be noted before what is before it goes; that happens in the background.
    let mut tries = 0;
    let kept = loop {
        while log.purge(room, &writer.fences, all).await.unwrap() {}
        let kept = store
            .mentions_after(room, bob, Sequence::ZERO, 1000)
            .await
            .unwrap();
        if kept.first() == Some(&first) || tries == 100 {
            break kept;
        }
        tries += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(kept.first(), Some(&first));
    assert_eq!(
        store.deleted_after(room, Sequence::ZERO, 9).await.unwrap(),
        []
    );
    for (event, found) in [
        (&sent[0], false),
        (&sent[2_399], false),
        (&sent[2_400], true),
    ] {
        let EventBody::Message { id, draft, .. } = &event.body else {
            panic!()
        };
        assert_eq!(log.find_message(*id).await.unwrap().is_some(), found);
        let places = log.find_sent(ann, &draft.client_message_id).await.unwrap();
        assert_eq!(!places.is_empty(), found);
    }
    for _ in 0..2 {
        writer = Writer::open(log, room).await;
        assert_eq!(writer.head, Sequence(2_502));
        let events = log.events(room, &writer.fences, first, writer.head).await;
        assert_eq!(events.unwrap().len(), 101);
        let gone = log
            .events(room, &writer.fences, Sequence(1), Sequence(9))
            .await;
        assert!(
            gone.as_ref().map_or_else(
                |error| error.code == ErrorCode::Internal,
                |events| events.is_empty()
            ),
            "{gone:?}"
        );
    }
    let next = writer.send(ann, "on it goes").await;
    assert_eq!(
        (next.sequence, next.messages_before),
        (Sequence(2_503), 2_500)
    );
}
