//! [`RoomLog`] (MSG-08, MSG-18, MSG-19, MSG-20; promises 1 to 4).
//!
//! Rooms of different clauses may share a partition by chance, so the clauses of one server run one after the other.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use carillon_domain::{
    ClientMessageId, ErrorCode, MessageId, ReplicaId, Result, RoomId, Sequence, Timestamp, UserId,
    event::{Draft, EventBody, Mentions, MessageType, RoomEvent},
    partition::Partition,
    ports::{Epoch, Fence, RoomLog},
    room::Role,
};

/// Every clause.
pub async fn all(log: Arc<dyn RoomLog>) {
    later_owners_have_larger_epochs(&*log).await;
    concurrent_owners_have_different_epochs(log.clone()).await;
    a_new_room_is_empty(&*log).await;
    events_come_back_as_they_were_appended(&*log).await;
    a_range_is_read_exactly(&*log).await;
    a_thousand_events_are_read_at_once(&*log).await;
    several_rooms_are_appended_at_once(&*log).await;
    partitions_are_appended_concurrently(log.clone()).await;
    messages_come_with_their_changes(&*log).await;
    changes_are_found_however_late_they_came(&*log).await;
    a_sent_message_is_found_by_its_client_id(&*log).await;
    a_message_is_found_by_its_id(&*log).await;
    a_new_owner_goes_on_where_the_last_one_stopped(&*log).await;
    a_superseded_owner_is_refused(&*log).await;
    an_owner_learns_that_it_was_replaced(&*log).await;
    a_deleted_room_is_known_as_such(&*log).await;
    nothing_of_a_superseded_owner_becomes_visible(&*log).await;
    every_owner_of_many_sees_one_history(&*log).await;
    a_takeover_under_load_loses_nothing_acknowledged(log).await;
}

// === helpers ===

/// An owner of a room that writes as the contract says.
pub struct Writer<'a> {
    /// Under test.
    pub log: &'a dyn RoomLog,
    /// The room.
    pub room: RoomId,
    /// The owner's.
    pub epoch: Epoch,
    /// As opened.
    pub fences: Vec<Fence>,
    /// The last event it knows of.
    pub head: Sequence,
    /// Messages up to there.
    pub messages: u64,
}

impl<'a> Writer<'a> {
    /// Takes the room's partition and opens the room.
    pub async fn open(log: &'a dyn RoomLog, room: RoomId) -> Self {
        let epoch = acquire(log, room).await;
        let open = log.open(room, epoch).await.unwrap();
        assert_eq!(open.room, room);
        Self {
            log,
            room,
            epoch,
            fences: open.fences,
            head: open.head,
            messages: open.messages,
        }
    }

    /// The next event, not yet appended.
    pub fn event(&mut self, actor: UserId, body: EventBody) -> RoomEvent {
        let event = RoomEvent {
            room: self.room,
            sequence: self.head.next(),
            messages_before: self.messages,
            time: Timestamp(1_700_000_000_000 + self.head.0.cast_signed()),
            actor,
            body,
        };
        self.head = event.sequence;
        self.messages = event.messages_after();
        event
    }

    /// Appends one event.
    pub async fn append(&mut self, actor: UserId, body: EventBody) -> RoomEvent {
        let event = self.event(actor, body);
        self.try_append(std::slice::from_ref(&event)).await.unwrap();
        event
    }

    /// Appends one text message.
    pub async fn send(&mut self, actor: UserId, content: &str) -> RoomEvent {
        self.append(actor, text(content)).await
    }

    /// Appends what [`Writer::event`] made.
    pub async fn try_append(&self, events: &[RoomEvent]) -> Result<()> {
        let partition = Partition::of_room(self.room);
        self.log.append(partition, self.epoch, events).await
    }

    /// Everything up to the head.
    pub async fn history(&self) -> Vec<RoomEvent> {
        let mut history = Vec::new();
        let mut from = Sequence(1);
        while from <= self.head {
            let to = Sequence(self.head.0.min(from.0 + 999));
            history.extend(
                self.log
                    .events(self.room, &self.fences, from, to)
                    .await
                    .unwrap(),
            );
            from = to.next();
        }
        history
    }
}

async fn acquire(log: &dyn RoomLog, room: RoomId) -> Epoch {
    let owner = ReplicaId(format!("owner-{}", RoomId::new()));
    log.acquire(Partition::of_room(room), &owner).await.unwrap()
}

/// A text message with fresh ids.
pub fn text(content: &str) -> EventBody {
    let id = MessageId::new();
    EventBody::Message {
        id,
        draft: Draft {
            client_message_id: ClientMessageId(format!("c-{id}")),
            message_type: MessageType::Text,
            content: content.into(),
            reply_to: None,
        },
        mentions: Mentions::default(),
    }
}

fn message_id(event: &RoomEvent) -> MessageId {
    match &event.body {
        EventBody::Message { id, .. } => *id,
        _ => panic!("not a message"),
    }
}

fn client_id(event: &RoomEvent) -> ClientMessageId {
    match &event.body {
        EventBody::Message { draft, .. } => draft.client_message_id.clone(),
        _ => panic!("not a message"),
    }
}

fn edit(of: &RoomEvent, content: &str) -> EventBody {
    EventBody::Edited {
        id: message_id(of),
        target: of.sequence,
        content: content.into(),
    }
}

fn delete(of: &RoomEvent) -> EventBody {
    EventBody::Deleted {
        id: message_id(of),
        target: of.sequence,
    }
}

/// A room of the same partition as another.
fn sibling(of: RoomId) -> RoomId {
    loop {
        let room = RoomId::new();
        if Partition::of_room(room) == Partition::of_room(of) {
            return room;
        }
    }
}

fn sequences(events: &[RoomEvent]) -> Vec<u64> {
    events.iter().map(|event| event.sequence.0).collect()
}

// === ownership ===

/// MSG-20: every new owner of a partition has a larger epoch, whoever it is.
pub async fn later_owners_have_larger_epochs(log: &dyn RoomLog) {
    let room = RoomId::new();
    let partition = Partition::of_room(room);
    let same = ReplicaId("same".into());
    let mut last = Epoch::default();
    for owner in [same.clone(), ReplicaId("other".into()), same.clone(), same] {
        let epoch = log.acquire(partition, &owner).await.unwrap();
        assert!(epoch > last, "{epoch:?} follows {last:?}");
        last = epoch;
    }
}

/// MSG-20: of owners that come at once, each has an epoch of its own.
pub async fn concurrent_owners_have_different_epochs(log: Arc<dyn RoomLog>) {
    let partition = Partition::of_room(RoomId::new());
    let owners: Vec<_> = (0..8)
        .map(|n| {
            let log = log.clone();
            tokio::spawn(async move {
                let owner = ReplicaId(format!("owner-{n}"));
                // Under contention a store may ask to try again.
                loop {
                    match log.acquire(partition, &owner).await {
                        Ok(epoch) => return epoch,
                        Err(error) => assert!(error.code.is_retryable(), "{error}"),
                    }
                }
            })
        })
        .collect();
    let mut epochs = Vec::new();
    for owner in owners {
        epochs.push(owner.await.unwrap());
    }
    epochs.sort();
    epochs.dedup();
    assert_eq!(epochs.len(), 8, "no two owners have the same epoch");
}

/// MSG-20: a room begins with nothing, and its first event is number 1.
pub async fn a_new_room_is_empty(log: &dyn RoomLog) {
    let writer = Writer::open(log, RoomId::new()).await;
    assert_eq!((writer.head, writer.messages), (Sequence::ZERO, 0));
}

// === appending and reading ===

/// MSG-04, MSG-20: every kind of event comes back with everything that was in it.
pub async fn events_come_back_as_they_were_appended(log: &dyn RoomLog) {
    let mut writer = Writer::open(log, RoomId::new()).await;
    let (ann, bob) = (UserId::new(), UserId::new());
    let mut appended = Vec::new();
    for role in Role::ALL {
        let body = EventBody::Joined { user: bob, role };
        appended.push(writer.append(ann, body).await);
    }
    let contents = [
        "Zoë 👋 \u{202e}\u{0}\n\t\"'%_",
        "",
        &"x".repeat(16 * 1024),
        &"ü".repeat(8 * 1024),
    ];
    for content in contents {
        appended.push(writer.send(bob, content).await);
    }
    let answered = message_id(appended.last().unwrap());
    for message_type in MessageType::ALL {
        for reply_to in [None, Some(answered)] {
            let id = MessageId::new();
            let body = EventBody::Message {
                id,
                draft: Draft {
                    client_message_id: ClientMessageId(format!("!~{id:-<62}")),
                    message_type,
                    content: "48.1,11.5".into(),
                    reply_to,
                },
                mentions: Mentions {
                    users: vec![ann, bob],
                    room: reply_to.is_some(),
                },
            };
            appended.push(writer.append(ann, body).await);
        }
    }
    let last = appended.last().unwrap().clone();
    appended.push(writer.append(ann, edit(&last, "another 👋")).await);
    appended.push(writer.append(ann, delete(&last)).await);
    appended.push(writer.append(ann, EventBody::left(bob)).await);
    appended.push(writer.append(ann, EventBody::RoomDeleted).await);

    assert_eq!(writer.history().await, appended, "as seen by their writer");
    let again = Writer::open(log, writer.room).await;
    assert_eq!(
        (again.head, again.messages),
        (writer.head, writer.messages),
        "the head and the count of messages are found again"
    );
    assert_eq!(again.history().await, appended, "as seen by a later owner");
}

/// MSG-07, MSG-18: a read answers the places asked for, no others.
pub async fn a_range_is_read_exactly(log: &dyn RoomLog) {
    let mut writer = Writer::open(log, RoomId::new()).await;
    let user = UserId::new();
    let first = writer.send(user, "1").await;
    for n in 2..=20u64 {
        // Changes in between, which belong to an earlier place too.
        if n % 3 == 0 {
            writer.append(user, edit(&first, "again")).await;
        } else {
            writer.send(user, &n.to_string()).await;
        }
    }
    for (from, to) in [(1, 1), (1, 20), (2, 3), (5, 17), (20, 20)] {
        let events = log
            .events(writer.room, &writer.fences, Sequence(from), Sequence(to))
            .await
            .unwrap();
        let expected: Vec<_> = (from..=to).collect();
        assert_eq!(sequences(&events), expected, "events {from} to {to}");
        let messages = log
            .messages(writer.room, &writer.fences, Sequence(from), Sequence(to))
            .await
            .unwrap();
        let sent: Vec<_> = messages.iter().map(|m| m.sent.sequence.0).collect();
        let expected: Vec<_> = (from..=to).filter(|n| n % 3 != 0).collect();
        assert_eq!(sent, expected, "messages {from} to {to}");
    }
}

/// MSG-18: a page of the largest size, out of a longer room.
pub async fn a_thousand_events_are_read_at_once(log: &dyn RoomLog) {
    let mut writer = Writer::open(log, RoomId::new()).await;
    let user = UserId::new();
    for _ in 0..12 {
        let events: Vec<_> = (0..100).map(|_| writer.event(user, text("x"))).collect();
        writer.try_append(&events).await.unwrap();
    }
    let (from, to) = (Sequence(101), Sequence(1_100));
    let events = log.events(writer.room, &writer.fences, from, to).await;
    let expected: Vec<_> = (101..=1_100).collect();
    assert_eq!(sequences(&events.unwrap()), expected);
    let messages = log.messages(writer.room, &writer.fences, from, to).await;
    assert_eq!(messages.unwrap().len(), 1_000);
}

/// MSG-20: one append may hold events of several rooms of a partition, in any mixture.
pub async fn several_rooms_are_appended_at_once(log: &dyn RoomLog) {
    let first = RoomId::new();
    let second = sibling(first);
    let epoch = acquire(log, first).await;
    let mut writers = Vec::new();
    for room in [first, second] {
        let open = log.open(room, epoch).await.unwrap();
        writers.push(Writer {
            log,
            room,
            epoch,
            fences: open.fences,
            head: open.head,
            messages: open.messages,
        });
    }
    let user = UserId::new();
    let mut batch = Vec::new();
    for n in 0..30 {
        batch.push(writers[usize::from(n % 3 == 0)].event(user, text(&n.to_string())));
    }
    writers[0].try_append(&batch).await.unwrap();
    for writer in writers {
        let expected: Vec<_> = batch
            .iter()
            .filter(|event| event.room == writer.room)
            .cloned()
            .collect();
        assert_eq!(writer.history().await, expected);
    }
}

/// MSG-20: partitions don't disturb each other.
pub async fn partitions_are_appended_concurrently(log: Arc<dyn RoomLog>) {
    let mut rooms: HashMap<Partition, RoomId> = HashMap::new();
    while rooms.len() < 16 {
        let room = RoomId::new();
        rooms.insert(Partition::of_room(room), room);
    }
    let writers: Vec<_> = rooms
        .into_values()
        .map(|room| {
            let log = log.clone();
            tokio::spawn(async move {
                let mut writer = Writer::open(&*log, room).await;
                let mut appended = Vec::new();
                for n in 0..20 {
                    appended.push(writer.send(UserId::new(), &n.to_string()).await);
                }
                assert_eq!(writer.history().await, appended);
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
}

// === changes ===

/// MSG-08: a message is read with its edits and deletes, in their order, and only its own.
pub async fn messages_come_with_their_changes(log: &dyn RoomLog) {
    let mut writer = Writer::open(log, RoomId::new()).await;
    let user = UserId::new();
    let plain = writer.send(user, "plain").await;
    let edited = writer.send(user, "first").await;
    let joined = EventBody::Joined {
        user,
        role: Role::Member,
    };
    writer.append(user, joined).await;
    let deleted = writer.send(user, "secret").await;
    let second = writer.append(user, edit(&edited, "second")).await;
    let gone = writer.append(user, delete(&deleted)).await;
    let third = writer.append(user, edit(&edited, "third")).await;

    let messages = log
        .messages(writer.room, &writer.fences, Sequence(1), writer.head)
        .await
        .unwrap();
    let sent: Vec<_> = messages.iter().map(|message| &message.sent).collect();
    assert_eq!(sent, [&plain, &edited, &deleted], "messages only, in order");
    assert_eq!(messages[0].changes, []);
    assert_eq!(messages[1].changes, [second, third], "edits in their order");
    assert_eq!(messages[2].changes, [gone]);
    let folded: Vec<_> = messages
        .iter()
        .map(|message| message.fold().unwrap().content)
        .collect();
    assert_eq!(folded, ["plain", "third", ""], "what a reader sees");
}

/// MSG-08: a change counts even if it came long after the places that are read.
pub async fn changes_are_found_however_late_they_came(log: &dyn RoomLog) {
    let mut writer = Writer::open(log, RoomId::new()).await;
    let user = UserId::new();
    let old = writer.send(user, "old").await;
    for _ in 0..15 {
        let events: Vec<_> = (0..100).map(|_| writer.event(user, text("x"))).collect();
        writer.try_append(&events).await.unwrap();
    }
    let change = writer.append(user, edit(&old, "new")).await;
    let page = log
        .messages(writer.room, &writer.fences, Sequence(1), Sequence(2))
        .await
        .unwrap();
    assert_eq!(page.len(), 2);
    assert_eq!(page[0].changes, [change]);
    let again = Writer::open(log, writer.room).await;
    let page = log
        .messages(again.room, &again.fences, Sequence(1), Sequence(1))
        .await
        .unwrap();
    assert_eq!(page[0].fold().unwrap().content, "new", "for a later owner");
}

// === finding ===

/// MSG-19: a retry finds the first send by the sender's own id, in whatever room.
pub async fn a_sent_message_is_found_by_its_client_id(log: &dyn RoomLog) {
    let mut writer = Writer::open(log, RoomId::new()).await;
    let (ann, bob) = (UserId::new(), UserId::new());
    let body = text("hello");
    let of_ann = writer.append(ann, body.clone()).await;
    let id = client_id(&of_ann);
    let found = log.find_sent(ann, &id).await.unwrap();
    assert_eq!(found, [(writer.room, of_ann.sequence)]);
    assert_eq!(
        log.find_sent(bob, &id).await.unwrap(),
        [],
        "another sender's id is another id"
    );
    let mut of_bob = text("hello");
    if let EventBody::Message { draft, .. } = &mut of_bob {
        draft.client_message_id = id.clone();
    }
    let of_bob = writer.append(bob, of_bob).await;
    let found = log.find_sent(bob, &id).await.unwrap();
    assert_eq!(found, [(writer.room, of_bob.sequence)]);
    let found = log.find_sent(ann, &id).await.unwrap();
    assert_eq!(found, [(writer.room, of_ann.sequence)]);
    let longer = ClientMessageId(format!("{id}0"));
    assert_eq!(
        log.find_sent(ann, &longer).await.unwrap(),
        [],
        "an id that begins like another is another id"
    );
    Writer::open(log, writer.room).await;
    let found = log.find_sent(ann, &id).await.unwrap();
    assert_eq!(
        found,
        [(writer.room, of_ann.sequence)],
        "under a later owner"
    );
}

/// MSG-08: edits and replies find their message by its id alone.
pub async fn a_message_is_found_by_its_id(log: &dyn RoomLog) {
    let mut writer = Writer::open(log, RoomId::new()).await;
    let sent = writer.send(UserId::new(), "hello").await;
    let found = log.find_message(message_id(&sent)).await.unwrap();
    assert_eq!(found, Some((writer.room, sent.sequence)));
    let found = log.find_message(MessageId::new()).await.unwrap();
    assert_eq!(found, None);
}

// === takeover ===

/// Promise 1, MSG-20: a new owner finds the head and every event, and goes on densely.
pub async fn a_new_owner_goes_on_where_the_last_one_stopped(log: &dyn RoomLog) {
    let room = RoomId::new();
    let mut expected = Vec::new();
    for owner in 0..4 {
        let mut writer = Writer::open(log, room).await;
        assert_eq!(writer.head.0, expected.len() as u64);
        assert_eq!(writer.messages, expected.len() as u64);
        assert_eq!(writer.history().await, expected);
        for n in 0..3 {
            let content = format!("{owner}.{n}");
            expected.push(writer.send(UserId::new(), &content).await);
        }
        assert_eq!(writer.history().await, expected);
    }
}

/// Promise 1: who was replaced gets `NotOwner`, whether or not the new owner has opened the room yet.
pub async fn a_superseded_owner_is_refused(log: &dyn RoomLog) {
    for opened in [false, true] {
        let mut old = Writer::open(log, RoomId::new()).await;
        old.send(UserId::new(), "before").await;
        let epoch = acquire(log, old.room).await;
        if opened {
            log.open(old.room, epoch).await.unwrap();
        }
        let late = old.event(UserId::new(), text("late"));
        let error = old.try_append(&[late]).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::NotOwner, "opened: {opened}");
    }
}

/// Promise 4: an owner that only reads can learn that it was replaced.
pub async fn an_owner_learns_that_it_was_replaced(log: &dyn RoomLog) {
    let room = RoomId::new();
    let partition = Partition::of_room(room);
    let epoch = acquire(log, room).await;
    log.check(partition, epoch).await.unwrap();
    let later = acquire(log, room).await;
    let error = log.check(partition, epoch).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotOwner);
    log.check(partition, later).await.unwrap();
}

/// MSG-01: every later owner knows from the log itself that a room was deleted.
pub async fn a_deleted_room_is_known_as_such(log: &dyn RoomLog) {
    let mut writer = Writer::open(log, RoomId::new()).await;
    let user = UserId::new();
    writer.send(user, "hello").await;
    let before = log.open(writer.room, writer.epoch).await.unwrap();
    assert!(!before.deleted);
    writer.append(user, EventBody::RoomDeleted).await;
    for _ in 0..2 {
        let epoch = acquire(log, writer.room).await;
        let open = log.open(writer.room, epoch).await.unwrap();
        assert_eq!((open.deleted, open.head), (true, Sequence(2)));
    }
}

/// Promises 1 and 2: what a replaced owner wrote late is in nobody's history, and takes no place in it.
pub async fn nothing_of_a_superseded_owner_becomes_visible(log: &dyn RoomLog) {
    let room = RoomId::new();
    let mut old = Writer::open(log, room).await;
    let mut expected = vec![old.send(UserId::new(), "before").await];
    let mut new = Writer::open(log, room).await;
    // Late, at places that the new owner fills before and after.
    let late: Vec<_> = (0..3)
        .map(|_| old.event(UserId::new(), text("late")))
        .collect();
    let edited_late = {
        let mut event = late[0].clone();
        event.body = edit(&expected[0], "edited late");
        event
    };
    expected.push(new.send(UserId::new(), "after").await);
    old.try_append(&late[..1]).await.unwrap_err();
    old.try_append(&late).await.unwrap_err();
    old.try_append(&[edited_late]).await.unwrap_err();
    for n in 0..4 {
        expected.push(new.send(UserId::new(), &n.to_string()).await);
        assert_eq!(new.history().await, expected);
    }
    let messages = log
        .messages(room, &new.fences, Sequence(1), new.head)
        .await
        .unwrap();
    for message in &messages {
        assert_eq!(message.changes, [], "no late edit is seen");
    }
    let newest = Writer::open(log, room).await;
    assert_eq!(newest.head, new.head);
    assert_eq!(newest.messages, new.messages);
    assert_eq!(newest.history().await, expected, "by any later owner");
    // An entry of the index may point to such a write; the event there is another one then.
    for late in &late {
        for (found_room, place) in log.find_sent(late.actor, &client_id(late)).await.unwrap() {
            assert_eq!(found_room, room);
            if place <= newest.head {
                let found = &expected[usize::try_from(place.0).unwrap() - 1];
                assert_ne!(found, late, "a void event isn't found as sent");
            }
        }
    }
}

/// Promise 2: with one owner per event, all readers see one order.
pub async fn every_owner_of_many_sees_one_history(log: &dyn RoomLog) {
    let room = RoomId::new();
    let mut expected: Vec<RoomEvent> = Vec::new();
    for n in 0..12 {
        let mut writer = Writer::open(log, room).await;
        assert_eq!(writer.history().await, expected);
        // Every third owner does nothing, every other edits.
        match (n % 3, expected.first()) {
            (0, Some(first)) => {
                let body = edit(&first.clone(), &n.to_string());
                expected.push(writer.append(UserId::new(), body).await);
            }
            (1, Some(_)) => {}
            _ => expected.push(writer.send(UserId::new(), &n.to_string()).await),
        }
    }
    let reader = Writer::open(log, room).await;
    assert_eq!(reader.history().await, expected);
    let edits = expected.iter().filter(|event| event.target().is_some());
    let messages = log
        .messages(room, &reader.fences, Sequence(1), reader.head)
        .await
        .unwrap();
    assert_eq!(messages[0].changes.len(), edits.count());
}

/// Promises 1, 2 and 3: while owners replace each other in mid-flight, everything acknowledged is in the history once, at its
/// place, and nothing that wasn't found at an opening comes in later.
pub async fn a_takeover_under_load_loses_nothing_acknowledged(log: Arc<dyn RoomLog>) {
    let room = RoomId::new();
    let mut acknowledged: Vec<RoomEvent> = Vec::new();
    let mut seen: Vec<RoomEvent> = Vec::new();
    let mut running: Option<(Arc<AtomicBool>, tokio::task::JoinHandle<Vec<RoomEvent>>)> = None;
    for _ in 0..6 {
        // The last owner still appends while this one takes over.
        let writer = Writer::open(&*log, room).await;
        let history = writer.history().await;
        assert_eq!(
            history[..seen.len()],
            seen[..],
            "what an owner once found stays"
        );
        seen = history;
        let (epoch, fences, head, messages) =
            (writer.epoch, writer.fences, writer.head, writer.messages);
        if let Some((stop, task)) = running.take() {
            stop.store(true, Ordering::SeqCst);
            acknowledged.extend(task.await.unwrap());
        }
        // Known only now, but acknowledged before this owner opened the room, or void.
        for event in &acknowledged {
            let place = usize::try_from(event.sequence.0).unwrap() - 1;
            assert_eq!(
                seen.get(place),
                Some(event),
                "an acknowledged event is in every later owner's history"
            );
        }
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn({
            let (log, stop) = (log.clone(), stop.clone());
            async move {
                let mut writer = Writer {
                    log: &*log,
                    room,
                    epoch,
                    fences,
                    head,
                    messages,
                };
                let mut acknowledged = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let count = 1 + acknowledged.len() % 3;
                    let events: Vec<_> = (0..count)
                        .map(|_| writer.event(UserId::new(), text("x")))
                        .collect();
                    match writer.try_append(&events).await {
                        Ok(()) => acknowledged.extend(events),
                        // The outcome is unknown: an owner stops here.
                        Err(_) => break,
                    }
                    tokio::task::yield_now().await;
                }
                acknowledged
            }
        });
        // Let it get some way: what is checked doesn't depend on how far.
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
        running = Some((stop, task));
    }
    if let Some((stop, task)) = running {
        stop.store(true, Ordering::SeqCst);
        acknowledged.extend(task.await.unwrap());
    }
    let reader = Writer::open(&*log, room).await;
    let history = reader.history().await;
    assert_eq!(history[..seen.len()], seen[..]);
    assert!(!acknowledged.is_empty(), "some appends were acknowledged");
    for event in &acknowledged {
        let place = usize::try_from(event.sequence.0).unwrap() - 1;
        assert_eq!(history.get(place), Some(event));
        let found = log.find_sent(event.actor, &client_id(event)).await.unwrap();
        assert_eq!(found, [(room, event.sequence)], "and in the index");
    }
    let count = history.iter().filter(|event| event.target().is_none());
    assert_eq!(reader.messages, count.count() as u64);
}
