use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use carillon_domain::{
    RoomId, Sequence, UserId,
    account::Identity,
    event::EventBody,
    presence::PresenceState,
    room::Role,
    services::{MessageService, PeopleService},
    signal::{Activity, Signal, Topic},
};
use serde_json::Value;

use super::{CloseCode, Connection, Hub, Socket};
use crate::{
    GatewayOptions,
    testing::{SOON, Town, options, somebody},
};

async fn hub(town: &Arc<Town>, options: &GatewayOptions) -> Hub {
    Hub::start(options, &town.services()).await.unwrap()
}

/// A connected, following socket.
async fn follow(hub: &Hub, who: Identity, resume: &[(RoomId, u64)]) -> Connection {
    let resume: HashMap<RoomId, Sequence> = resume.iter().map(|&(r, s)| (r, Sequence(s))).collect();
    let mut connection = hub.connect(who, &resume).await.unwrap();
    connection.follow();
    connection
}

/// Takes the next frame, as the writing task does.
async fn next(socket: &Socket) -> Value {
    let take = std::future::poll_fn(|cx| {
        socket.set_writer(cx.waker());
        match socket.pop() {
            Some(frame) => {
                socket.frames_taken();
                std::task::Poll::Ready(Some(frame))
            }
            None if socket.is_closed() => std::task::Poll::Ready(None),
            None => std::task::Poll::Pending,
        }
    });
    let frame = tokio::time::timeout(SOON, take).await.expect("a frame");
    serde_json::from_str(&frame.expect("the socket is open")).unwrap()
}

fn sequence(frame: &Value) -> u64 {
    frame["payload"]["sequence"].as_u64().unwrap_or(0)
}

/// The sequence numbers of the next events up to `last`.
async fn sequences_to(socket: &Socket, last: u64) -> Vec<u64> {
    let mut seen = Vec::new();
    while seen.last() != Some(&last) {
        seen.push(sequence(&next(socket).await));
    }
    seen
}

/// Waits until a signal that comes after everything else has arrived: what was published before it has been worked on.
async fn settled(town: &Town, room: RoomId, socket: &Socket) {
    let signal = Signal::Read {
        room,
        user: UserId(uuid::Uuid::nil()),
        sequence: Sequence(1),
        time: carillon_domain::Timestamp(0),
    };
    town.publish(Topic::of_room(room), &signal);
    while next(socket).await["type"] != "messages_read" {}
}

/// MSG-20, RT-08: what the bus lost in the middle is read from the log, and everybody gets it in order.
#[tokio::test]
async fn a_gap_is_filled_from_the_log() {
    let town = Town::new();
    let (ann, bob) = (somebody(), somebody());
    let room = town.room(&[ann.user, bob.user]);
    let hub = hub(&town, &options()).await;
    let a = follow(&hub, ann, &[]).await;
    let b = follow(&hub, bob, &[]).await;
    town.say(room, ann.user, "3");
    for lost in ["4", "5", "6"] {
        town.store(room, ann.user, lost);
    }
    town.say(room, ann.user, "7");
    for socket in [a.socket(), b.socket()] {
        assert_eq!(sequences_to(socket, 7).await, [3, 4, 5, 6, 7]);
    }
}

/// MSG-20: events that come again, or late, are not delivered again.
#[tokio::test]
async fn repeats_are_dropped() {
    let town = Town::new();
    let ann = somebody();
    let room = town.room(&[ann.user]);
    let hub = hub(&town, &options()).await;
    let a = follow(&hub, ann, &[]).await;
    let second = town.say(room, ann.user, "2");
    town.tell(&second);
    let third = town.say(room, ann.user, "3");
    town.tell(&second);
    town.tell(&third);
    let fourth = town.say(room, ann.user, "4");
    town.tell(&fourth);
    town.say(room, ann.user, "5");
    assert_eq!(sequences_to(a.socket(), 5).await, [2, 3, 4, 5]);
    assert_eq!(town.tails.load(std::sync::atomic::Ordering::Relaxed), 0);
}

/// RT-06, promise 7: a socket that takes nothing is closed when its queue is full, and the others get everything.
#[tokio::test]
async fn a_slow_reader_is_cut_off_alone() {
    let town = Town::new();
    let (ann, bob) = (somebody(), somebody());
    let room = town.room(&[ann.user, bob.user]);
    let options = GatewayOptions {
        send_buffer: 8,
        ..options()
    };
    let hub = hub(&town, &options).await;
    let quick = follow(&hub, ann, &[]).await;
    let slow = follow(&hub, bob, &[]).await;
    for n in 3..=50 {
        town.say(room, ann.user, "hi");
        assert_eq!(sequence(&next(quick.socket()).await), n);
    }
    assert_eq!(slow.socket().close_code(), Some(CloseCode::TooSlow));
    assert_eq!(quick.socket().close_code(), None);
    let kept = std::iter::from_fn(|| slow.socket().pop()).count();
    assert_eq!(kept, 8, "its queue never grew beyond the limit");
}

/// RT-06: many events at once, as a partition commits them together, cut nobody off who reads.
#[tokio::test]
async fn a_burst_cuts_off_nobody_who_reads() {
    let town = Town::new();
    let (ann, bob) = (somebody(), somebody());
    let room = town.room(&[ann.user, bob.user]);
    let options = GatewayOptions {
        send_buffer: 16,
        ..options()
    };
    let hub = hub(&town, &options).await;
    let a = follow(&hub, ann, &[]).await;
    let b = follow(&hub, bob, &[]).await;
    let events = (3..=202)
        .map(|_| town.store(room, ann.user, "hi"))
        .collect();
    town.publish(Topic::of_room(room), &Signal::Events { events });
    let (seen_by_a, seen_by_b) =
        tokio::join!(sequences_to(a.socket(), 202), sequences_to(b.socket(), 202));
    let all: Vec<u64> = (3..=202).collect();
    assert_eq!(seen_by_a, all);
    assert_eq!(seen_by_b, all);
    assert_eq!(
        town.tails.load(Ordering::Relaxed),
        0,
        "nothing had to be read again"
    );
}

/// Promise 7: typing is dropped when a socket is behind, messages are not.
#[tokio::test]
async fn typing_is_shed_first() {
    let town = Town::new();
    let (ann, bob) = (somebody(), somebody());
    let room = town.room(&[ann.user, bob.user]);
    let options = GatewayOptions {
        send_buffer: 8,
        ..options()
    };
    let hub = hub(&town, &options).await;
    let quick = follow(&hub, ann, &[]).await;
    let behind = follow(&hub, ann, &[]).await;
    let typing = Signal::Activity {
        room,
        user: bob.user,
        activity: Activity::Typing,
        active: true,
    };
    for _ in 0..5 {
        town.say(room, bob.user, "hi");
        next(quick.socket()).await;
    }
    town.publish(Topic::of_room(room), &typing);
    assert_eq!(next(quick.socket()).await["type"], "typing");
    town.say(room, bob.user, "last");
    next(quick.socket()).await;
    let types: Vec<Value> = std::iter::from_fn(|| behind.socket().pop())
        .map(|frame| serde_json::from_str::<Value>(&frame).unwrap()["type"].take())
        .collect();
    assert_eq!(types, vec!["new_message"; 6]);
}

/// PRES-02: nobody is told of their own typing.
#[tokio::test]
async fn typing_is_told_to_others_only() {
    let town = Town::new();
    let (ann, bob) = (somebody(), somebody());
    let room = town.room(&[ann.user, bob.user]);
    let hub = hub(&town, &options()).await;
    let a = follow(&hub, ann, &[]).await;
    let b = follow(&hub, bob, &[]).await;
    let typing = Signal::Activity {
        room,
        user: bob.user,
        activity: Activity::Recording,
        active: true,
    };
    town.publish(Topic::of_room(room), &typing);
    town.say(room, bob.user, "3");
    let told = next(a.socket()).await;
    assert_eq!(told["type"], "typing");
    assert_eq!(told["payload"]["activity"], "recording");
    assert_eq!(next(b.socket()).await["type"], "new_message");
}

/// MSG-18, promise 4: what was missed comes first, in order, then live events, nothing twice and nothing left out, while the
/// room goes on talking.
#[tokio::test]
async fn resuming_has_no_gap_and_no_repeat() {
    let town = Town::new();
    let (ann, bob) = (somebody(), somebody());
    let room = town.room(&[ann.user, bob.user]);
    let hub = hub(&town, &options()).await;
    let b = follow(&hub, bob, &[]).await;
    for _ in 3..=400 {
        town.say(room, bob.user, "while away");
        next(b.socket()).await;
    }
    let a = hub
        .connect(ann, &HashMap::from([(room, Sequence(4))]))
        .await
        .unwrap();
    assert_eq!(a.start()[&room], Sequence(4));
    let mut a = a;
    a.follow();
    let speaker = {
        let town = town.clone();
        tokio::spawn(async move {
            for _ in 401..=600 {
                town.say(room, bob.user, "live");
                tokio::task::yield_now().await;
            }
        })
    };
    let reader = async {
        let expected: Vec<u64> = (5..=600).collect();
        assert_eq!(sequences_to(a.socket(), 600).await, expected);
    };
    let other = async { sequences_to(b.socket(), 600).await };
    tokio::join!(reader, other);
    speaker.await.unwrap();
}

/// Promise 7, MSG-18: whoever asks again and again to go on from elsewhere and takes nothing is worked for by a few tasks, and gets
/// in the end what they asked for last, in order.
#[tokio::test]
async fn asking_again_replaces_what_was_asked_before() {
    let town = Town::new();
    let (ann, bob) = (somebody(), somebody());
    let rooms: Vec<RoomId> = (0..6).map(|_| town.room(&[ann.user, bob.user])).collect();
    for &room in &rooms {
        for _ in 3..=100 {
            town.store(room, bob.user, "x");
        }
    }
    let options = GatewayOptions {
        send_buffer: 8,
        ..options()
    };
    let hub = hub(&town, &options).await;
    let a = follow(&hub, ann, &[]).await;
    for n in 0..50 {
        let places = rooms.iter().map(|&room| (room, Sequence(n))).collect();
        a.resume(places).await.unwrap();
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }
    let tails = town.tails.load(Ordering::Relaxed);
    assert!(tails <= 4, "{tails} reads for a client that takes nothing");
    let mut seen: HashMap<String, Vec<u64>> = HashMap::new();
    let done = |seen: &HashMap<String, Vec<u64>>| {
        seen.len() == rooms.len() && seen.values().all(|places| places.last() == Some(&100))
    };
    while !done(&seen) {
        let frame = next(a.socket()).await;
        let room = frame["payload"]["room_id"].as_str().unwrap().to_owned();
        seen.entry(room).or_default().push(sequence(&frame));
    }
    for places in seen.values() {
        let expected: Vec<u64> = (50..=100).collect();
        // Before that, at most what was queued when the last request came.
        assert!(places.ends_with(&expected), "{places:?}");
        assert!(places.len() <= expected.len() + 8, "{places:?}");
    }
    for &room in &rooms {
        town.say(room, bob.user, "live");
        assert_eq!(sequence(&next(a.socket()).await), 101);
    }
}

/// Another user's room: who was removed while catching up sees their leaving and nothing after it, though no signal told of it.
#[tokio::test]
async fn catching_up_ends_with_the_membership() {
    let town = Town::new();
    let (ann, bob) = (somebody(), somebody());
    let room = town.room(&[ann.user, bob.user]);
    for _ in 3..=10 {
        town.store(room, ann.user, "x");
    }
    let hub = hub(&town, &options()).await;
    let _a = follow(&hub, ann, &[]).await;
    let mut b = hub
        .connect(bob, &HashMap::from([(room, Sequence(2))]))
        .await
        .unwrap();
    let user = bob.user;
    let left = town.append(room, ann.user, EventBody::left(user));
    town.tell(&left);
    town.say(room, ann.user, "among us");
    while hub.0.rooms_of(room).last(room) != Some(Sequence(12)) {
        tokio::task::yield_now().await;
    }
    b.follow();
    let expected: Vec<u64> = (3..=11).collect();
    assert_eq!(sequences_to(b.socket(), 11).await, expected);
    while b.socket().wants(room) {
        tokio::task::yield_now().await;
    }
    town.say(room, ann.user, "among us again");
    tokio::task::yield_now().await;
    assert!(b.socket().pop().is_none());
}

/// The same room left and joined again: the catch-up goes on.
#[tokio::test]
async fn catching_up_goes_on_for_who_came_back() {
    let town = Town::new();
    let (ann, bob) = (somebody(), somebody());
    let room = town.room(&[ann.user, bob.user]);
    let user = bob.user;
    town.append(room, ann.user, EventBody::left(user));
    for _ in 4..=80 {
        town.store(room, ann.user, "x");
    }
    let role = Role::Member;
    town.append(room, ann.user, EventBody::Joined { user, role });
    let hub = hub(&town, &options()).await;
    let b = follow(&hub, bob, &[(room, 2)]).await;
    let expected: Vec<u64> = (3..=81).collect();
    assert_eq!(sequences_to(b.socket(), 81).await, expected);
}

/// Promise 7: a device that takes nothing does not keep the person's others waiting.
#[tokio::test]
async fn a_stuck_device_delays_nobody() {
    let town = Town::new();
    let (ann, bob) = (somebody(), somebody());
    let (old, new) = (town.room(&[ann.user, bob.user]), town.room(&[ann.user]));
    let options = GatewayOptions {
        send_buffer: 8,
        ..options()
    };
    let hub = hub(&town, &options).await;
    let stuck = follow(&hub, bob, &[]).await;
    for _ in 0..6 {
        town.say(old, ann.user, "x");
    }
    let laptop = follow(&hub, bob, &[]).await;
    town.join(bob.user, new).await.unwrap();
    let mut fresh = Vec::new();
    while fresh.last().map(String::as_str) != Some("user_joined") {
        let frame = next(laptop.socket()).await;
        fresh.push(frame["type"].as_str().unwrap().to_owned());
    }
    assert!(!stuck.socket().is_closed());
}

/// A room that its last follower left is forgotten, whichever signal comes first.
#[tokio::test]
async fn a_room_without_followers_is_forgotten() {
    for _ in 0..10 {
        let town = Town::new();
        let ann = somebody();
        let room = town.room(&[ann.user]);
        let hub = hub(&town, &options()).await;
        let a = follow(&hub, ann, &[]).await;
        assert!(hub.0.rooms_of(room).last(room).is_some());
        // The event comes before the signal to the user.
        town.leave(ann.user, room).await.unwrap();
        assert_eq!(next(a.socket()).await["type"], "user_left");
        tokio::time::timeout(SOON, async {
            while hub.0.rooms_of(room).last(room).is_some() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the room is forgotten");
    }
}

/// Promise 7: read marks of others are dropped when a socket is behind; the reader's own devices get them.
#[tokio::test]
async fn read_marks_are_shed_first() {
    let town = Town::new();
    let (ann, bob) = (somebody(), somebody());
    let room = town.room(&[ann.user, bob.user]);
    let options = GatewayOptions {
        send_buffer: 8,
        ..options()
    };
    let hub = hub(&town, &options).await;
    let quick = follow(&hub, ann, &[]).await;
    let behind = follow(&hub, ann, &[]).await;
    let own = follow(&hub, bob, &[]).await;
    for _ in 0..5 {
        town.say(room, bob.user, "hi");
        next(quick.socket()).await;
    }
    for n in 3..=4 {
        let read = Signal::Read {
            room,
            user: bob.user,
            sequence: Sequence(n),
            time: carillon_domain::Timestamp(0),
        };
        town.publish(Topic::of_room(room), &read);
        assert_eq!(next(quick.socket()).await["type"], "messages_read");
    }
    let reads = |socket: &Socket| {
        std::iter::from_fn(|| socket.pop())
            .filter(|frame| frame.contains("messages_read"))
            .count()
    };
    assert_eq!(reads(behind.socket()), 0);
    assert_eq!(reads(own.socket()), 2);
    assert!(!behind.socket().is_closed());
}

/// Promise 4: too far behind to be told everything: a typed answer that says where to read from, then live events.
#[tokio::test]
async fn too_far_behind_is_told_to_read_by_itself() {
    let town = Town::new();
    let ann = somebody();
    let room = town.room(&[ann.user]);
    for _ in 2..=1500 {
        town.store(room, ann.user, "x");
    }
    let hub = hub(&town, &options()).await;
    let a = follow(&hub, ann, &[(room, 100)]).await;
    let frame = next(a.socket()).await;
    assert_eq!(frame["type"], "resync");
    assert_eq!(frame["payload"]["from_sequence"], 100);
    town.say(room, ann.user, "live");
    assert_eq!(sequence(&next(a.socket()).await), 1501);
}

/// Promise 4: events that retention removed are an explicit answer, not a silent gap.
#[tokio::test]
async fn events_that_are_gone_are_an_explicit_answer() {
    let town = Town::new();
    let ann = somebody();
    let room = town.room(&[ann.user]);
    for _ in 2..=20 {
        town.store(room, ann.user, "x");
    }
    town.forget_before(room, 10);
    let hub = hub(&town, &options()).await;
    let a = follow(&hub, ann, &[(room, 5)]).await;
    let frame = next(a.socket()).await;
    assert_eq!(frame["type"], "resync");
    assert_eq!(frame["payload"]["from_sequence"], 5);
}

/// A client that claims to have seen more than there is gets live events all the same.
#[tokio::test]
async fn a_place_beyond_the_head_does_not_mute_a_room() {
    let town = Town::new();
    let ann = somebody();
    let room = town.room(&[ann.user]);
    let hub = hub(&town, &options()).await;
    let a = follow(&hub, ann, &[(room, 1_000_000)]).await;
    let frame = next(a.socket()).await;
    assert_eq!(frame["type"], "resync");
    assert_eq!(frame["payload"]["from_sequence"], 1);
    settled(&town, room, a.socket()).await;
    town.say(room, ann.user, "2");
    assert_eq!(sequence(&next(a.socket()).await), 2);
}

/// A client may have seen an event, over another gateway, that the bus has not brought here yet: it doesn't get it again.
#[tokio::test]
async fn a_place_that_the_bus_has_not_brought_yet_is_believed() {
    let town = Town::new();
    let (ann, bob) = (somebody(), somebody());
    let room = town.room(&[ann.user, bob.user]);
    let hub = hub(&town, &options()).await;
    let b = follow(&hub, bob, &[]).await;
    let late = town.store(room, bob.user, "3");
    let a = follow(&hub, ann, &[(room, 3)]).await;
    // The log is asked in the background; its answer attaches the socket.
    while town.tails.load(std::sync::atomic::Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    settled(&town, room, a.socket()).await;
    town.tell(&late);
    town.say(room, bob.user, "4");
    assert_eq!(sequences_to(b.socket(), 4).await.last(), Some(&4));
    assert_eq!(sequence(&next(a.socket()).await), 4);
}

/// The event that is committed between the subscription and the reading of heads is not lost.
#[tokio::test]
async fn an_event_during_opening_is_delivered() {
    let town = Town::new();
    let ann = somebody();
    let room = town.room(&[ann.user]);
    let hub = hub(&town, &options()).await;
    // After the heads were read, before they are answered.
    *town.during_heads.lock() = Some(Box::new(move |town: &Town| {
        town.say(room, ann.user, "2");
    }));
    let a = follow(&hub, ann, &[]).await;
    assert_eq!(sequence(&next(a.socket()).await), 2);
}

/// Promise 4: the last event of a room has no successor that would show its loss; the sweep finds it.
#[tokio::test]
async fn a_lost_last_event_is_found_by_the_sweep() {
    let town = Town::new();
    let ann = somebody();
    let room = town.room(&[ann.user]);
    let options = GatewayOptions {
        sweep: Duration::from_millis(50),
        ..options()
    };
    let hub = hub(&town, &options).await;
    let a = follow(&hub, ann, &[]).await;
    town.store(room, ann.user, "2");
    assert_eq!(sequence(&next(a.socket()).await), 2);
}

/// Promise 4: also when the new connection could not be subscribed to at first, and nobody says anything any more.
#[tokio::test]
async fn a_subscription_that_failed_is_made_later() {
    let town = Town::new();
    let ann = somebody();
    let room = town.room(&[ann.user]);
    let options = GatewayOptions {
        sweep: Duration::from_millis(50),
        ..options()
    };
    let hub = hub(&town, &options).await;
    let a = follow(&hub, ann, &[]).await;
    town.bus.refuse_subscriptions(true);
    town.bus.end_streams();
    while town.bus.receivers() == 0 {
        tokio::task::yield_now().await;
    }
    town.store(room, ann.user, "2");
    assert_eq!(sequence(&next(a.socket()).await), 2);
    town.bus.refuse_subscriptions(false);
    tokio::time::timeout(SOON, async {
        while town.bus.topics() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("both topics are subscribed");
}

/// Promise 7: a bus that says again and again that it lost something is answered by one comparison at a time.
#[tokio::test]
async fn a_storm_of_losses_is_one_comparison() {
    let town = Town::new();
    let ann = somebody();
    let room = town.room(&[ann.user]);
    let hub = hub(&town, &options()).await;
    let a = follow(&hub, ann, &[]).await;
    let before = town.listings.load(Ordering::Relaxed);
    town.store(room, ann.user, "2");
    for _ in 0..200 {
        town.bus.lose();
    }
    assert_eq!(sequence(&next(a.socket()).await), 2);
    settled(&town, room, a.socket()).await;
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    let listings = town.listings.load(Ordering::Relaxed) - before;
    assert!((1..=2).contains(&listings), "{listings}");
}

/// Promise 8: after the bus said that it lost something, and while the store is away for a while, everything arrives in the end.
#[tokio::test]
async fn a_loss_is_repaired_after_the_store_is_back() {
    let town = Town::new();
    let ann = somebody();
    let room = town.room(&[ann.user]);
    let hub = hub(&town, &options()).await;
    let a = follow(&hub, ann, &[]).await;
    town.store(room, ann.user, "2");
    town.bus.lose();
    assert_eq!(sequence(&next(a.socket()).await), 2);

    town.store(room, ann.user, "3");
    town.store_down
        .store(true, std::sync::atomic::Ordering::Relaxed);
    town.say(room, ann.user, "4");
    tokio::task::yield_now().await;
    town.store_down
        .store(false, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(sequences_to(a.socket(), 4).await, [3, 4]);
}

/// A receiver whose stream ends is replaced, and everything needed is subscribed again.
#[tokio::test]
async fn an_ended_stream_is_replaced() {
    let town = Town::new();
    let ann = somebody();
    let room = town.room(&[ann.user]);
    let hub = hub(&town, &options()).await;
    let a = follow(&hub, ann, &[]).await;
    town.bus.end_streams();
    town.store(room, ann.user, "2");
    assert_eq!(sequence(&next(a.socket()).await), 2);
    while town.bus.topics() < 2 {
        tokio::task::yield_now().await;
    }
    town.say(room, ann.user, "3");
    assert_eq!(sequence(&next(a.socket()).await), 3);
}

/// MSG-01: who is added to a room follows it at once, from their own joining on.
#[tokio::test]
async fn a_new_member_sees_their_joining_and_what_follows() {
    let town = Town::new();
    let (ann, bob) = (somebody(), somebody());
    let room = town.room(&[ann.user]);
    town.store(room, ann.user, "before bob");
    let hub = hub(&town, &options()).await;
    let b = follow(&hub, bob, &[]).await;
    let (user, role) = (bob.user, Role::Member);
    let joined = town.append(room, ann.user, EventBody::Joined { user, role });
    town.tell(&joined);
    // Said before the gateway knows of the room: the joining is the place to start from, not the head.
    town.say(room, ann.user, "welcome");
    let added = Signal::RoomAdded {
        user,
        room,
        direct_with: Some(ann.user),
    };
    town.publish(Topic::of_user(user), &added);
    town.publish(Topic::of_user(user), &added);
    let made = next(b.socket()).await;
    assert_eq!(made["type"], "dm_created");
    assert_eq!(made["payload"]["user_id"], ann.user.to_string());
    let first = next(b.socket()).await;
    assert_eq!(
        (first["type"].as_str(), sequence(&first)),
        (Some("user_joined"), 3)
    );
    assert_eq!(sequence(&next(b.socket()).await), 4);
    settled(&town, room, b.socket()).await;
    town.say(room, ann.user, "live");
    assert_eq!(sequence(&next(b.socket()).await), 5);
}

/// MSG-03, another user's room: who is removed gets their leaving as the last event, whichever signal comes first.
#[tokio::test]
async fn a_removed_member_gets_nothing_more() {
    for signal_first in [true, false] {
        let town = Town::new();
        let (ann, bob) = (somebody(), somebody());
        let room = town.room(&[ann.user, bob.user]);
        let hub = hub(&town, &options()).await;
        let a = follow(&hub, ann, &[]).await;
        let b = follow(&hub, bob, &[]).await;
        let user = bob.user;
        let left = town.append(room, ann.user, EventBody::left(user));
        let removed = Signal::RoomRemoved { user, room };
        if signal_first {
            town.publish(Topic::of_user(user), &removed);
            let last = next(b.socket()).await;
            assert_eq!(last["type"], "user_left");
            town.tell(&left);
        } else {
            town.tell(&left);
            let last = next(b.socket()).await;
            assert_eq!(last["type"], "user_left");
            town.publish(Topic::of_user(user), &removed);
        }
        town.say(room, ann.user, "among us");
        assert_eq!(sequences_to(a.socket(), 4).await, [3, 4]);
        assert!(b.socket().pop().is_none(), "signal first: {signal_first}");
        assert!(!b.socket().is_closed());
    }
}

/// A removal that comes while the rooms are being listed counts, although the list is older.
#[tokio::test]
async fn a_removal_during_connecting_counts() {
    let town = Town::new();
    let ann = somebody();
    let room = town.room(&[ann.user]);
    let socket = Socket::new(1, ann, 8);
    socket.want_not(room);
    let listing = socket.finish_listing(vec![room]);
    assert!(listing.now.is_empty());
    assert!(!socket.wants(room));
    assert!(socket.want(room), "a later invitation counts again");
}

/// AUTH-07: the sockets of a device whose session ended are closed, the person's others are not.
#[tokio::test]
async fn an_ended_session_closes_its_sockets() {
    let town = Town::new();
    let phone = somebody();
    let laptop = Identity {
        device: carillon_domain::DeviceId::new(),
        token_id: uuid::Uuid::now_v7(),
        ..phone
    };
    let room = town.room(&[phone.user]);
    let hub = hub(&town, &options()).await;
    let p = follow(&hub, phone, &[]).await;
    let l = follow(&hub, laptop, &[]).await;
    let signal = Signal::SessionRevoked {
        user: phone.user,
        device: Some(phone.device),
        token_id: None,
    };
    town.publish(Topic::of_user(phone.user), &signal);
    settled(&town, room, l.socket()).await;
    while !p.socket().is_closed() {
        tokio::task::yield_now().await;
    }
    assert_eq!(p.socket().close_code(), Some(CloseCode::SessionRevoked));
    assert!(!l.socket().is_closed());
}

/// AUTH-07: even when the signal is lost, after the bus says so.
#[tokio::test]
async fn a_lost_revocation_is_found() {
    use carillon_domain::services::AuthService;
    let town = Town::new();
    let ann = somebody();
    let hub = hub(&town, &options()).await;
    let a = follow(&hub, ann, &[]).await;
    let other = Identity {
        user: UserId::new(),
        ..ann
    };
    // Told to somebody else's topic: the signal never reaches this socket.
    town.end_session(&other, ann.device).await.unwrap();
    assert!(!a.socket().is_closed());
    town.bus.lose();
    while !a.socket().is_closed() {
        tokio::time::timeout(SOON, tokio::task::yield_now())
            .await
            .unwrap();
    }
    assert_eq!(a.socket().close_code(), Some(CloseCode::SessionRevoked));
}

/// AUTH-07: a revocation between the check of the token and the subscription, told before anybody here listened.
#[tokio::test]
async fn a_revocation_during_connecting_is_found() {
    use carillon_domain::services::{AuthService, TokenVerifier};
    let town = Town::new();
    let ann = somebody();
    let hub = hub(&town, &options()).await;
    let verified = town.verify_access(&crate::testing::token(&ann)).await;
    town.end_session(&ann, ann.device).await.unwrap();
    let refused = hub.connect(verified.unwrap(), &HashMap::new()).await;
    let error = refused.err().expect("must be refused");
    assert_eq!(error.code, carillon_domain::ErrorCode::Unauthenticated);
}

/// AUTH-07: a revocation that was lost while the deny-list is away is found once it is back.
#[tokio::test]
async fn a_lost_revocation_is_found_after_the_store_is_back() {
    use carillon_domain::services::AuthService;
    let town = Town::new();
    let ann = somebody();
    let hub = hub(&town, &options()).await;
    let a = follow(&hub, ann, &[]).await;
    let other = Identity {
        user: UserId::new(),
        ..ann
    };
    let down = |is_down| {
        town.store_down
            .store(is_down, std::sync::atomic::Ordering::Relaxed);
    };
    down(true);
    town.end_session(&other, ann.device).await.unwrap();
    let asked = town.refusals();
    town.bus.lose();
    let found = async {
        // The comparison was tried, and failed.
        while town.refusals() == asked {
            tokio::task::yield_now().await;
        }
        assert!(!a.socket().is_closed());
        down(false);
        while !a.socket().is_closed() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, found).await.unwrap();
    assert_eq!(a.socket().close_code(), Some(CloseCode::SessionRevoked));
}

/// PRES-01: a lease per connected device: granted on connect, released when the device's last socket ended cleanly.
#[tokio::test]
async fn leases_follow_devices() {
    let town = Town::new();
    let ann = somebody();
    let hub = hub(&town, &options()).await;
    let mut first = follow(&hub, ann, &[]).await;
    let mut second = follow(&hub, ann, &[]).await;
    while town.leases.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    first.leave_for_good();
    drop(first);
    let silent = follow(&hub, somebody(), &[]).await;
    drop(silent);
    assert!(town.released.lock().is_empty());
    second.leave_for_good();
    drop(second);
    while town.released.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(*town.released.lock(), [town.lease_of(&ann).device]);
}

/// PRES-01: a device that is connected to two gateways has a lease at each: when one of them ends, the other stands.
#[tokio::test]
async fn a_gateway_releases_its_own_lease_only() {
    let town = Town::new();
    let ann = somebody();
    let here = hub(&town, &options()).await;
    let there = hub(&town, &options()).await;
    let mut tab = follow(&here, ann, &[]).await;
    let _other = follow(&there, ann, &[]).await;
    let held = || -> std::collections::HashSet<_> {
        town.leases.lock().iter().map(|l| l.device).collect()
    };
    while held().len() < 2 {
        tokio::task::yield_now().await;
    }
    tab.leave_for_good();
    drop(tab);
    while town.released.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    let released = town.released.lock().clone();
    assert_eq!(released.len(), 1);
    assert_eq!(
        held().difference(&released.into_iter().collect()).count(),
        1
    );
}

/// PRES-01: what a person chose for a device shows at once, on the gateway that holds its socket.
#[tokio::test]
async fn a_chosen_state_is_renewed_at_once() {
    let town = Town::new();
    let ann = somebody();
    let hub = hub(&town, &options()).await;
    let _a = follow(&hub, ann, &[]).await;
    let chosen = Signal::PresenceChosen {
        user: ann.user,
        device: ann.device,
        state: PresenceState::Away,
    };
    town.publish(Topic::of_user(ann.user), &chosen);
    let is_away = || town.leases.lock().last().map(|l| l.state) == Some(PresenceState::Away);
    while !is_away() {
        tokio::task::yield_now().await;
    }
}

/// Topics that nobody needs are unsubscribed after a while, and come back when somebody needs them.
#[tokio::test]
async fn unused_topics_are_retired() {
    let town = Town::new();
    let ann = somebody();
    let room = town.room(&[ann.user]);
    let options = GatewayOptions {
        sweep: Duration::from_millis(50),
        ..options()
    };
    let hub = hub(&town, &options).await;
    let a = follow(&hub, ann, &[]).await;
    assert_eq!(town.bus.topics(), 2);
    drop(a);
    while town.bus.topics() > 0 {
        tokio::task::yield_now().await;
    }
    let a = follow(&hub, ann, &[]).await;
    town.say(room, ann.user, "2");
    assert_eq!(sequence(&next(a.socket()).await), 2);
}

/// OPS-02: draining tells every socket to resume elsewhere.
#[tokio::test]
async fn draining_reaches_every_socket() {
    let town = Town::new();
    let hub = hub(&town, &options()).await;
    let mut connections = Vec::new();
    for _ in 0..20 {
        connections.push(follow(&hub, somebody(), &[]).await);
    }
    hub.drain(Duration::from_millis(50)).await;
    for connection in &connections {
        assert_eq!(connection.socket().close_code(), Some(CloseCode::Drain));
    }
    drop(connections);
    tokio::time::timeout(SOON, hub.all_closed()).await.unwrap();
}

/// Promises 2 and 4 under a bus that loses, repeats and reorders, with sockets that come and go: every socket sees every event
/// from its place on, once, in order. The seed of a failure is in its message.
#[tokio::test]
async fn a_bad_bus_never_shows() {
    use rand::{Rng, SeedableRng, rngs::StdRng};
    for seed in 0..30u64 {
        let mut random = StdRng::seed_from_u64(seed);
        let town = Town::new();
        let people: Vec<Identity> = (0..4).map(|_| somebody()).collect();
        let users: Vec<UserId> = people.iter().map(|who| who.user).collect();
        let room = town.room(&users);
        let options = GatewayOptions {
            sweep: Duration::from_millis(50),
            ..options()
        };
        let hub = hub(&town, &options).await;
        let mut held = Vec::new();
        let mut places: Vec<u64> = vec![4; people.len()];
        let mut open: Vec<Option<Connection>> = Vec::new();
        open.resize_with(people.len(), || None);
        let mut total = 4;
        for _ in 0..300 {
            let who = random.random_range(0..people.len());
            match random.random_range(0..12) {
                0..=4 => {
                    let event = town.store(room, users[who], "x");
                    total = event.sequence.0;
                    match random.random_range(0..4) {
                        0 => {}
                        1 => held.push(event),
                        2 => {
                            town.tell(&event);
                            town.tell(&event);
                        }
                        _ => town.tell(&event),
                    }
                }
                5 if !held.is_empty() => {
                    let late = held.swap_remove(random.random_range(0..held.len()));
                    town.tell(&late);
                }
                6 => {
                    if open[who].take().is_none() {
                        open[who] = Some(follow(&hub, people[who], &[(room, places[who])]).await);
                    }
                }
                7 => town.bus.lose(),
                8 => tokio::task::yield_now().await,
                _ => {
                    if let Some(connection) = &open[who] {
                        while let Some(frame) = connection.socket().pop() {
                            connection.socket().frames_taken();
                            let frame: Value = serde_json::from_str(&frame).unwrap();
                            places[who] += 1;
                            assert_eq!(sequence(&frame), places[who], "seed {seed}");
                        }
                    }
                }
            }
        }
        for (who, connection) in open.iter_mut().enumerate() {
            if connection.is_none() {
                *connection = Some(follow(&hub, people[who], &[(room, places[who])]).await);
            }
            let connection = connection.as_ref().unwrap();
            while places[who] < total {
                places[who] += 1;
                let frame = next(connection.socket()).await;
                assert_eq!(sequence(&frame), places[who], "seed {seed}");
            }
        }
        hub.stop();
    }
}

// === contacts and blocks ===

/// Waits for what happens in the background.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(SOON, wait).await.expect(what);
}

fn typing(room: RoomId, user: UserId) -> Signal {
    Signal::Activity {
        room,
        user,
        activity: Activity::Typing,
        active: true,
    }
}

fn online(room: RoomId, user: UserId) -> Signal {
    Signal::Presence {
        room,
        user,
        state: PresenceState::Online,
        last_seen: None,
    }
}

/// The types of frames that came up to now, without the marks that this makes to know.
async fn heard(town: &Town, room: RoomId, socket: &Socket) -> Vec<String> {
    static MARKS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    let last = MARKS.fetch_add(1, Ordering::Relaxed);
    let nobody = UserId(uuid::Uuid::nil());
    let mark = Signal::Read {
        room,
        user: nobody,
        sequence: Sequence(last),
        time: carillon_domain::Timestamp(0),
    };
    town.publish(Topic::of_room(room), &mark);
    let mut heard = Vec::new();
    loop {
        let frame = next(socket).await;
        if frame["payload"]["user_id"] != nobody.to_string() {
            heard.push(frame["type"].as_str().unwrap().to_owned());
        } else if sequence(&frame) == last {
            return heard;
        }
    }
}

/// PRES-03, USER-05: in a shared room neither gets the other's presence and typing while there is a block; others do, and what is
/// written is the room's.
#[tokio::test]
async fn a_block_hides_presence_and_typing() {
    let town = Town::new();
    let (ann, bob, zoe) = (somebody(), somebody(), somebody());
    let room = town.room(&[ann.user, bob.user, zoe.user]);
    town.block(bob.user, ann.user).await.unwrap();
    let hub = hub(&town, &options()).await;
    let a = follow(&hub, ann, &[]).await;
    let b = follow(&hub, bob, &[]).await;
    let z = follow(&hub, zoe, &[]).await;
    let tell = |user: UserId| {
        for signal in [typing(room, user), online(room, user)] {
            town.publish(Topic::of_room(room), &signal);
        }
        let (sequence, time) = (Sequence(1), carillon_domain::Timestamp(0));
        let read = Signal::Read {
            room,
            user,
            sequence,
            time,
        };
        town.publish(Topic::of_room(room), &read);
    };
    let all = ["typing", "user_online", "messages_read"];
    for (person, peer) in [(&ann, &b), (&bob, &a)] {
        tell(person.user);
        assert_eq!(heard(&town, room, peer.socket()).await, all[2..]);
        assert_eq!(heard(&town, room, z.socket()).await, all);
        let own = if person.user == ann.user { &a } else { &b };
        let own = heard(&town, room, own.socket()).await;
        assert_eq!(own, all[1..], "one's own frames are never hidden");
    }

    town.unblock(bob.user, ann.user).await.unwrap();
    until("the block has ended", || {
        !b.socket().hides(ann.user) && !a.socket().hides(bob.user)
    })
    .await;
    for (person, peer) in [(&ann, &b), (&bob, &a)] {
        heard(&town, room, peer.socket()).await;
        tell(person.user);
        assert_eq!(heard(&town, room, peer.socket()).await, all);
        let own = if person.user == ann.user { &a } else { &b };
        heard(&town, room, own.socket()).await;
    }

    town.block(ann.user, bob.user).await.unwrap();
    until("the block is known on every socket", || {
        b.socket().hides(ann.user) && a.socket().hides(bob.user)
    })
    .await;
    assert!(!z.socket().hides(ann.user));
}

/// PRES-03: a contact's presence comes without a room, encoded once for all who are told, and not to whom it is hidden from.
#[tokio::test]
async fn contacts_are_told_without_a_room() {
    let town = Town::new();
    let (ann, bob, eve) = (somebody(), somebody(), somebody());
    let rooms = [bob, eve].map(|person| town.room(&[person.user]));
    town.block(ann.user, eve.user).await.unwrap();
    let hub = hub(&town, &options()).await;
    let phone = follow(&hub, bob, &[]).await;
    let tab = follow(&hub, bob, &[]).await;
    let e = follow(&hub, eve, &[]).await;
    for contact in [bob.user, eve.user] {
        let signal = Signal::ContactPresence {
            to: vec![UserId::new(), contact],
            user: ann.user,
            state: PresenceState::Away,
            last_seen: None,
        };
        town.publish(Topic::of_user(contact), &signal);
    }
    for socket in [phone.socket(), tab.socket()] {
        let frame = next(socket).await;
        assert_eq!(frame["type"], "user_online");
        let expected = serde_json::json!({
            "user_id": ann.user, "state": "away", "last_seen": null,
        });
        assert_eq!(frame["payload"], expected);
    }
    // Another block of hers comes over the same topic, and later.
    town.block(eve.user, bob.user).await.unwrap();
    until("a later signal", || e.socket().hides(bob.user)).await;
    assert_eq!(heard(&town, rooms[1], e.socket()).await, [""; 0]);
}

/// USER-05: a change whose end nobody told is noticed all the same, since it was announced.
#[tokio::test]
async fn a_block_that_was_only_announced_is_noticed() {
    let town = Town::new();
    let (ann, bob) = (somebody(), somebody());
    let options = GatewayOptions {
        blocks_settle: Duration::from_millis(50),
        ..options()
    };
    let hub = hub(&town, &options).await;
    let b = follow(&hub, bob, &[]).await;
    assert_eq!(town.hidden_reads.load(Ordering::Relaxed), 1);
    town.tell_blocks(&[bob.user]);
    until("it is read at once", || {
        town.hidden_reads.load(Ordering::Relaxed) > 1
    })
    .await;
    town.blocks.lock().insert((ann.user, bob.user));
    until("it is read again", || b.socket().hides(ann.user)).await;
}

/// USER-05: what the bus lost is looked up, and so is what is told to somebody else's sockets only.
#[tokio::test]
async fn a_lost_signal_about_a_block_is_made_up_for() {
    let town = Town::new();
    let (ann, bob) = (somebody(), somebody());
    let hub = hub(&town, &options()).await;
    let b = follow(&hub, bob, &[]).await;
    assert!(!b.socket().hides(ann.user));
    town.blocks.lock().insert((ann.user, bob.user));
    town.bus.lose();
    until("the block is known", || b.socket().hides(ann.user)).await;
}

/// USER-05, promise 8: while nobody can say what is hidden, nobody's presence is shown; the socket works, and it heals.
#[tokio::test]
async fn until_blocks_are_known_nobody_is_shown() {
    let town = Town::new();
    let (ann, bob) = (somebody(), somebody());
    let room = town.room(&[ann.user, bob.user]);
    town.people_down.store(true, Ordering::Relaxed);
    let hub = hub(&town, &options()).await;
    let b = follow(&hub, bob, &[]).await;
    town.publish(Topic::of_room(room), &typing(room, ann.user));
    town.say(room, ann.user, "3");
    assert_eq!(next(b.socket()).await["type"], "new_message");
    town.people_down.store(false, Ordering::Relaxed);
    until("it heals", || !b.socket().hides(ann.user)).await;

    town.people_down.store(true, Ordering::Relaxed);
    town.tell_blocks(&[bob.user]);
    until("a change that can't be read hides everybody", || {
        b.socket().hides(UserId::new())
    })
    .await;
    assert!(!b.socket().hides(bob.user), "except oneself");
    town.people_down.store(false, Ordering::Relaxed);
    until("it heals again", || !b.socket().hides(ann.user)).await;
}
