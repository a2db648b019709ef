//! [`RoomStore`] with the projections that [`RoomLog`] keeps (MSG-01, MSG-02, MSG-03, MSG-06).

use std::sync::Arc;

use carillon_domain::{
    RoomId, Sequence, Timestamp, UserId,
    event::EventBody,
    ports::{ReadMark, RoomLog, RoomStore},
    room::{Member, Role, Room, RoomKind, RoomRules},
};

use super::room_log::{Writer, text};

/// Every clause.
pub async fn all(store: Arc<dyn RoomStore>, log: Arc<dyn RoomLog>) {
    a_room_is_read_back(&*store).await;
    creating_again_changes_nothing(&*store, &*log).await;
    unknown_rooms_are_left_out(&*store).await;
    the_public_list_has_listed_rooms_in_order(&*store).await;
    a_deleted_room_leaves_the_public_list(&*store, &*log).await;
    a_pair_has_one_direct_room(&*store).await;
    racing_pairs_get_one_direct_room(store.clone()).await;
    members_follow_the_log(&*store, &*log).await;
    a_new_role_keeps_the_time_of_joining(&*store, &*log).await;
    members_are_paged_by_id(&*store, &*log).await;
    rooms_of_a_user_are_paged_by_id(&*store, &*log).await;
    deleted_rooms_can_be_forgotten(&*store, &*log).await;
    read_marks_only_grow(&*store).await;
    who_joins_has_read_up_to_there(&*store, &*log).await;
    racing_read_marks_end_at_the_largest(store.clone()).await;
    read_marks_are_read_for_many_rooms(&*store).await;
}

fn room(kind: RoomKind) -> Room {
    let id = RoomId::new();
    let (one, other) = (UserId::new(), UserId::new());
    Room {
        id,
        kind,
        name: format!("room {id} 👋"),
        description: "line\nline".into(),
        created_by: UserId::new(),
        created_at: Timestamp(1_700_000_000_123),
        pair: (kind == RoomKind::Direct).then(|| [one.min(other), one.max(other)]),
        deleted_at: None,
        rules: RoomRules::default(),
    }
}

fn ascending(count: usize) -> Vec<UserId> {
    let mut users: Vec<_> = (0..count).map(|_| UserId::new()).collect();
    users.sort();
    users
}

/// Deletes a room as its owner does; answers when.
async fn delete(log: &dyn RoomLog, room: RoomId) -> Timestamp {
    let mut writer = Writer::open(log, room).await;
    writer
        .append(UserId::new(), EventBody::RoomDeleted)
        .await
        .time
}

fn joined(user: UserId, role: Role) -> EventBody {
    EventBody::Joined { user, role }
}

// === rooms ===

/// MSG-01: every kind of room comes back as it was stored.
pub async fn a_room_is_read_back(store: &dyn RoomStore) {
    for kind in RoomKind::ALL {
        let room = room(kind);
        store.create(&room).await.unwrap();
        assert_eq!(store.get(room.id).await.unwrap().as_ref(), Some(&room));
    }
}

/// MSG-01: a repeated creation is no error, and doesn't revive a deleted room.
pub async fn creating_again_changes_nothing(store: &dyn RoomStore, log: &dyn RoomLog) {
    let mut room = room(RoomKind::Public);
    store.create(&room).await.unwrap();
    store.create(&room).await.unwrap();
    assert_eq!(store.get(room.id).await.unwrap().as_ref(), Some(&room));
    let deleted = delete(log, room.id).await;
    store.create(&room).await.unwrap();
    room.deleted_at = Some(deleted);
    assert_eq!(store.get(room.id).await.unwrap(), Some(room));
}

/// MSG-01: unknown rooms are no error; 1,000 may be asked for.
pub async fn unknown_rooms_are_left_out(store: &dyn RoomStore) {
    assert_eq!(store.get(RoomId::new()).await.unwrap(), None);
    let known = [room(RoomKind::Group), room(RoomKind::Direct)];
    for room in &known {
        store.create(room).await.unwrap();
    }
    let mut ids: Vec<_> = (0..998).map(|_| RoomId::new()).collect();
    ids.extend(known.iter().map(|room| room.id));
    let mut found = store.get_many(&ids).await.unwrap();
    found.sort_by_key(|room| room.id);
    let mut expected = known.to_vec();
    expected.sort_by_key(|room| room.id);
    assert_eq!(found, expected);
    assert_eq!(store.get_many(&[]).await.unwrap(), []);
}

/// The public list from `after` to its end, read in pages of `limit`. Others may be making rooms at the same time.
async fn public_list(store: &dyn RoomStore, mut after: Option<RoomId>, limit: usize) -> Vec<Room> {
    let mut list = Vec::new();
    loop {
        let page = store.list_public(after, limit).await.unwrap();
        assert!(page.len() <= limit, "a page is no longer than asked for");
        let Some(last) = page.last() else {
            return list;
        };
        after = Some(last.id);
        list.extend(page);
    }
}

/// MSG-01: public rooms and channels are listed, ascending by id and once, whatever the size of a page.
pub async fn the_public_list_has_listed_rooms_in_order(store: &dyn RoomStore) {
    let before = RoomId::new();
    let mut listed = Vec::new();
    let mut all = Vec::new();
    for _ in 0..5 {
        for kind in RoomKind::ALL {
            let room = room(kind);
            store.create(&room).await.unwrap();
            if kind.is_listed() {
                listed.push(room.clone());
            }
            all.push(room.id);
        }
    }
    listed.sort_by_key(|room| room.id);
    for limit in [1, 3, 100] {
        let list = public_list(store, Some(before), limit).await;
        assert!(
            list.is_sorted_by(|a, b| a.id < b.id),
            "ascending, each once"
        );
        let ours: Vec<_> = list
            .into_iter()
            .filter(|room| all.contains(&room.id))
            .collect();
        assert_eq!(ours, listed, "listed rooms only, in pages of {limit}");
    }
    let first = store.list_public(None, 1).await.unwrap();
    assert_eq!(first.len(), 1, "without a place: from the beginning");
    assert!(first[0].id <= listed[0].id);
}

/// MSG-01: as soon as a deletion is acknowledged, the room isn't listed, and says when it was deleted.
pub async fn a_deleted_room_leaves_the_public_list(store: &dyn RoomStore, log: &dyn RoomLog) {
    let before = RoomId::new();
    let (mut gone, stays) = (room(RoomKind::Channel), room(RoomKind::Public));
    store.create(&gone).await.unwrap();
    store.create(&stays).await.unwrap();
    let deleted = delete(log, gone.id).await;
    let list = public_list(store, Some(before), 100).await;
    assert!(list.contains(&stays));
    assert!(list.iter().all(|room| room.id != gone.id));
    gone.deleted_at = Some(deleted);
    assert_eq!(store.get(gone.id).await.unwrap(), Some(gone));
    // A log without a stored room can end too, and no room comes of it.
    let unknown = RoomId::new();
    delete(log, unknown).await;
    assert_eq!(store.get(unknown).await.unwrap(), None);
}

// === direct rooms ===

/// MSG-02: one room per unordered pair.
pub async fn a_pair_has_one_direct_room(store: &dyn RoomStore) {
    let (ann, bob, zoe) = (UserId::new(), UserId::new(), UserId::new());
    let (first, second, third) = (RoomId::new(), RoomId::new(), RoomId::new());
    let direct = async |a, b, candidate| store.direct_room(a, b, candidate).await.unwrap();
    assert_eq!(
        direct(ann, bob, first).await,
        first,
        "made when there is none"
    );
    assert_eq!(direct(ann, bob, second).await, first, "the same again");
    assert_eq!(direct(bob, ann, third).await, first, "in either order");
    assert_eq!(direct(ann, zoe, second).await, second, "another pair");
    assert_eq!(direct(ann, ann, third).await, third, "oneself");
}

/// MSG-02: even under a race.
pub async fn racing_pairs_get_one_direct_room(store: Arc<dyn RoomStore>) {
    let (ann, bob) = (UserId::new(), UserId::new());
    let attempts: Vec<_> = (0..16)
        .map(|n| {
            let store = store.clone();
            let (a, b) = if n % 2 == 0 { (ann, bob) } else { (bob, ann) };
            tokio::spawn(async move {
                let candidate = RoomId::new();
                (candidate, store.direct_room(a, b, candidate).await.unwrap())
            })
        })
        .collect();
    let mut candidates = Vec::new();
    let mut answers = Vec::new();
    for attempt in attempts {
        let (candidate, answer) = attempt.await.unwrap();
        candidates.push(candidate);
        answers.push(answer);
    }
    answers.sort();
    answers.dedup();
    assert_eq!(answers.len(), 1, "every caller gets the same room");
    assert!(candidates.contains(&answers[0]), "one that was asked for");
}

// === members ===

/// MSG-03: who joined is a member, who left isn't, as soon as the append is acknowledged.
pub async fn members_follow_the_log(store: &dyn RoomStore, log: &dyn RoomLog) {
    let mut writer = Writer::open(log, RoomId::new()).await;
    let room = writer.room;
    let (ann, bob) = (UserId::new(), UserId::new());
    assert_eq!(store.member(room, ann).await.unwrap(), None);
    assert_eq!(store.members(room, None, 10).await.unwrap(), []);

    let event = writer.append(ann, joined(ann, Role::Owner)).await;
    let of_ann = Member {
        user: ann,
        role: Role::Owner,
        since: event.sequence,
        joined_at: event.time,
    };
    assert_eq!(store.member(room, ann).await.unwrap(), Some(of_ann));
    writer.send(ann, "in between").await;
    let event = writer.append(ann, joined(bob, Role::Member)).await;
    let of_bob = Member {
        user: bob,
        role: Role::Member,
        since: event.sequence,
        joined_at: event.time,
    };
    let mut expected = vec![of_ann, of_bob];
    expected.sort_by_key(|member| member.user);
    assert_eq!(store.members(room, None, 10).await.unwrap(), expected);
    for user in [ann, bob] {
        assert_eq!(store.rooms_of(user, None, 10).await.unwrap(), [room]);
    }

    writer.append(bob, EventBody::left(bob)).await;
    assert_eq!(store.member(room, bob).await.unwrap(), None);
    assert_eq!(store.members(room, None, 10).await.unwrap(), [of_ann]);
    assert_eq!(store.rooms_of(bob, None, 10).await.unwrap(), []);

    // Several changes of one person in one append: the last one counts.
    let batch = [
        writer.event(ann, joined(bob, Role::Member)),
        writer.event(ann, EventBody::left(bob)),
        writer.event(ann, joined(bob, Role::Admin)),
    ];
    writer.try_append(&batch).await.unwrap();
    let member = store.member(room, bob).await.unwrap().unwrap();
    assert_eq!(
        (member.role, member.since),
        (Role::Admin, batch[2].sequence)
    );
    assert_eq!(store.rooms_of(bob, None, 10).await.unwrap(), [room]);
    // A later owner's repair of the last events changes nothing.
    Writer::open(log, room).await;
    assert_eq!(store.member(room, bob).await.unwrap(), Some(member));
    assert_eq!(store.member(room, ann).await.unwrap(), Some(of_ann));
}

/// MSG-03: another role says since when, but somebody joined when they joined.
pub async fn a_new_role_keeps_the_time_of_joining(store: &dyn RoomStore, log: &dyn RoomLog) {
    let mut writer = Writer::open(log, RoomId::new()).await;
    let user = UserId::new();
    let first = writer.append(user, joined(user, Role::Member)).await;
    let second = writer.append(user, joined(user, Role::Admin)).await;
    let expected = Member {
        user,
        role: Role::Admin,
        since: second.sequence,
        joined_at: first.time,
    };
    let member = store.member(writer.room, user).await.unwrap();
    assert_eq!(member, Some(expected));
    writer.append(user, EventBody::left(user)).await;
    let third = writer.append(user, joined(user, Role::Member)).await;
    let member = store.member(writer.room, user).await.unwrap().unwrap();
    assert_eq!(member.joined_at, third.time, "joined anew");
}

/// MSG-03: members ascending by id, in pages.
pub async fn members_are_paged_by_id(store: &dyn RoomStore, log: &dyn RoomLog) {
    let mut writer = Writer::open(log, RoomId::new()).await;
    let users = ascending(25);
    let mut batch = Vec::new();
    for user in users.iter().rev() {
        batch.push(writer.event(*user, joined(*user, Role::Member)));
    }
    writer.try_append(&batch).await.unwrap();
    for limit in [1, 7, 25, 1_000] {
        let mut found = Vec::new();
        loop {
            let after = found.last().copied();
            let page = store.members(writer.room, after, limit).await.unwrap();
            assert!(page.len() <= limit);
            if page.is_empty() {
                break;
            }
            found.extend(page.into_iter().map(|member| member.user));
        }
        assert_eq!(found, users, "in pages of {limit}");
    }
}

/// MSG-09: a user's rooms ascending by id, in pages.
pub async fn rooms_of_a_user_are_paged_by_id(store: &dyn RoomStore, log: &dyn RoomLog) {
    let user = UserId::new();
    let mut rooms = Vec::new();
    for _ in 0..12 {
        let mut writer = Writer::open(log, RoomId::new()).await;
        writer.append(user, joined(user, Role::Member)).await;
        rooms.push(writer.room);
    }
    rooms.sort();
    for limit in [1, 5, 12, 5_000] {
        let mut found: Vec<RoomId> = Vec::new();
        loop {
            let after = found.last().copied();
            let page = store.rooms_of(user, after, limit).await.unwrap();
            assert!(page.len() <= limit);
            if page.is_empty() {
                break;
            }
            found.extend(page);
        }
        assert_eq!(found, rooms, "in pages of {limit}");
    }
}

/// MSG-09: deleted rooms don't stay in a person's list for ever; others do, whatever is asked for.
pub async fn deleted_rooms_can_be_forgotten(store: &dyn RoomStore, log: &dyn RoomLog) {
    let (user, other) = (UserId::new(), UserId::new());
    let mut rooms = Vec::new();
    for _ in 0..3 {
        let room = room(RoomKind::Group);
        store.create(&room).await.unwrap();
        let mut writer = Writer::open(log, room.id).await;
        writer.append(user, joined(user, Role::Owner)).await;
        writer.append(user, joined(other, Role::Member)).await;
        rooms.push(room.id);
    }
    rooms.sort();
    delete(log, rooms[1]).await;
    store.forget_deleted(user, &rooms).await.unwrap();
    let kept = [rooms[0], rooms[2]];
    assert_eq!(store.rooms_of(user, None, 10).await.unwrap(), kept);
    assert_eq!(
        store.rooms_of(other, None, 10).await.unwrap(),
        rooms,
        "of this person only"
    );
    // A later owner's repair of the last events brings nothing back.
    Writer::open(log, rooms[1]).await;
    store.forget_deleted(user, &rooms).await.unwrap();
    assert_eq!(store.rooms_of(user, None, 10).await.unwrap(), kept);
    store.forget_deleted(user, &[]).await.unwrap();
}

// === read marks ===

/// MSG-09: what was said before somebody joined isn't unread to them; another role changes nothing about that.
pub async fn who_joins_has_read_up_to_there(store: &dyn RoomStore, log: &dyn RoomLog) {
    let mut writer = Writer::open(log, RoomId::new()).await;
    let room = writer.room;
    let (ann, bob) = (UserId::new(), UserId::new());
    writer.append(ann, joined(ann, Role::Owner)).await;
    for n in 0..3 {
        writer.send(ann, &n.to_string()).await;
    }
    let at = |event: &carillon_domain::event::RoomEvent, messages| ReadMark {
        sequence: event.sequence,
        messages,
        time: event.time,
    };
    let first = writer.append(ann, joined(bob, Role::Member)).await;
    writer.send(ann, "after").await;
    writer.append(ann, joined(bob, Role::Admin)).await;
    let read = store.read_marks(bob, &[room]).await.unwrap();
    assert_eq!(read, [(room, at(&first, 3))]);
    // Who comes back has read up to there too, also when they left in the same moment.
    let batch = [
        writer.event(bob, EventBody::left(bob)),
        writer.event(ann, text("while bob was away")),
        writer.event(bob, joined(bob, Role::Member)),
    ];
    writer.try_append(&batch).await.unwrap();
    let read = store.read_marks(bob, &[room]).await.unwrap();
    assert_eq!(read, [(room, at(&batch[2], 5))]);
    // What they read themselves stands.
    let ahead = ReadMark {
        sequence: Sequence(900),
        messages: 800,
        time: Timestamp(1),
    };
    store.mark_read(ann, room, ahead).await.unwrap();
    writer.append(ann, EventBody::left(ann)).await;
    writer.append(ann, joined(ann, Role::Member)).await;
    let read = store.read_marks(ann, &[room]).await.unwrap();
    assert_eq!(read, [(room, ahead)]);
}

fn mark(sequence: u64) -> ReadMark {
    ReadMark {
        sequence: Sequence(sequence),
        messages: sequence / 2,
        time: Timestamp(1_700_000_000_000 + sequence.cast_signed()),
    }
}

/// MSG-06: the largest mark stands, on whatever device it was made.
pub async fn read_marks_only_grow(store: &dyn RoomStore) {
    let (user, room) = (UserId::new(), RoomId::new());
    for (given, stands) in [(5, 5), (3, 5), (9, 9), (9, 9), (1, 9)] {
        let answered = store.mark_read(user, room, mark(given)).await.unwrap();
        assert_eq!(answered, mark(stands), "{given} was marked");
        let read = store.read_marks(user, &[room]).await.unwrap();
        assert_eq!(read, [(room, mark(stands))]);
    }
    let mut same = mark(9);
    same.time = Timestamp(1);
    let answered = store.mark_read(user, room, same).await.unwrap();
    assert_eq!(answered, mark(9), "an equal place changes nothing");
}

/// MSG-06: in whatever order marks arrive, the largest one stands.
pub async fn racing_read_marks_end_at_the_largest(store: Arc<dyn RoomStore>) {
    let (user, room) = (UserId::new(), RoomId::new());
    let attempts: Vec<_> = (1..=24u64)
        .map(|n| {
            let store = store.clone();
            let sequence = n * 7 % 25;
            tokio::spawn(async move {
                let stands = store.mark_read(user, room, mark(sequence)).await.unwrap();
                assert!(stands.sequence.0 >= sequence, "one's own mark or more");
            })
        })
        .collect();
    for attempt in attempts {
        attempt.await.unwrap();
    }
    let read = store.read_marks(user, &[room]).await.unwrap();
    assert_eq!(read, [(room, mark(24))]);
}

/// MSG-09: marks of many rooms at once, of one person only; rooms without one are left out.
pub async fn read_marks_are_read_for_many_rooms(store: &dyn RoomStore) {
    let (ann, bob) = (UserId::new(), UserId::new());
    let rooms: Vec<_> = (0..600).map(|_| RoomId::new()).collect();
    let mut expected = Vec::new();
    for (n, room) in rooms.iter().enumerate().step_by(40) {
        store
            .mark_read(ann, *room, mark(n as u64 + 1))
            .await
            .unwrap();
        expected.push((*room, mark(n as u64 + 1)));
    }
    store.mark_read(bob, rooms[1], mark(3)).await.unwrap();
    let mut read = store.read_marks(ann, &rooms).await.unwrap();
    read.sort_by_key(|(room, _)| *room);
    expected.sort_by_key(|(room, _)| *room);
    assert_eq!(read, expected);
    assert_eq!(store.read_marks(ann, &[]).await.unwrap(), []);
}
