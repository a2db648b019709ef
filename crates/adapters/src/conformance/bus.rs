//! What [`Bus`] promises.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use carillon_domain::{
    RoomId, UserId,
    ports::{Bus, BusItem, Subscriptions},
    signal::Topic,
};
use futures::{StreamExt, stream::BoxStream};

/// How long a message may take on a slow server. Waiting ends as soon as it came.
const PATIENCE: Duration = Duration::from_secs(20);

/// Every clause.
pub async fn all(bus: Arc<dyn Bus>) {
    what_is_published_after_subscribing_arrives(&*bus).await;
    any_bytes_arrive(&*bus).await;
    messages_arrive_in_order(&*bus).await;
    every_receiver_gets_its_topics_only(&*bus).await;
    subscribing_twice_delivers_once(&*bus).await;
    an_unsubscribed_topic_is_silent(&*bus).await;
    many_topics_are_followed_at_once(bus.clone()).await;
    publishing_without_receivers_is_fine(&*bus).await;
    a_slow_receiver_is_told_what_it_lost(&*bus).await;
    a_dropped_receiver_disturbs_nobody(&*bus).await;
}

struct Receiver {
    subscriptions: Arc<dyn Subscriptions>,
    items: BoxStream<'static, BusItem>,
}

impl Receiver {
    async fn new(bus: &dyn Bus) -> Self {
        let (subscriptions, items) = bus.receiver().await.unwrap();
        Self {
            subscriptions,
            items,
        }
    }

    async fn following(bus: &dyn Bus, topics: &[Topic]) -> Self {
        let receiver = Self::new(bus).await;
        for topic in topics {
            receiver.subscriptions.subscribe(*topic).await.unwrap();
        }
        receiver
    }

    async fn item(&mut self) -> BusItem {
        let next = tokio::time::timeout(PATIENCE, self.items.next()).await;
        next.expect("something arrives")
            .expect("the stream goes on")
    }

    /// The next message; nothing may be lost here.
    async fn message(&mut self) -> (Topic, Bytes) {
        match self.item().await {
            BusItem::Message { topic, payload } => (topic, payload),
            BusItem::Lost => panic!("nothing was to be lost"),
        }
    }
}

fn room_topic() -> Topic {
    Topic::of_room(RoomId::new())
}

fn user_topic() -> Topic {
    Topic::of_user(UserId::new())
}

/// A room's topic other than that one.
fn other_than(topic: Topic) -> Topic {
    loop {
        let other = room_topic();
        if other != topic {
            return other;
        }
    }
}

fn number(n: u32) -> Bytes {
    Bytes::copy_from_slice(&n.to_be_bytes())
}

/// MSG-18: from the return of `subscribe` on, nothing is missed.
pub async fn what_is_published_after_subscribing_arrives(bus: &dyn Bus) {
    // Often, since what is missed is missed in a short moment.
    for n in 0..50 {
        for topic in [room_topic(), user_topic()] {
            let mut receiver = Receiver::following(bus, &[topic]).await;
            bus.publish(topic, number(n)).await.unwrap();
            assert_eq!(receiver.message().await, (topic, number(n)));
        }
    }
}

/// MSG-18: payloads arrive as they were published: empty, not UTF-8, large.
pub async fn any_bytes_arrive(bus: &dyn Bus) {
    let topic = room_topic();
    let mut receiver = Receiver::following(bus, &[topic]).await;
    let payloads = [
        Bytes::new(),
        Bytes::from_static("hé \u{1F44B}\r\n".as_bytes()),
        Bytes::from((0..=255).collect::<Vec<u8>>()),
        Bytes::from(vec![200; 300_000]),
    ];
    for payload in &payloads {
        bus.publish(topic, payload.clone()).await.unwrap();
    }
    for payload in &payloads {
        let (_, received) = receiver.message().await;
        assert!(
            received == payload,
            "{} bytes arrive as they were",
            payload.len()
        );
    }
}

/// MSG-20: one publisher's messages to one topic keep their order.
pub async fn messages_arrive_in_order(bus: &dyn Bus) {
    let topic = room_topic();
    let mut receiver = Receiver::following(bus, &[topic]).await;
    for n in 0..500 {
        bus.publish(topic, number(n)).await.unwrap();
    }
    for n in 0..500 {
        assert_eq!(receiver.message().await, (topic, number(n)));
    }
}

/// MSG-18: all who follow a topic get it, nobody else does.
pub async fn every_receiver_gets_its_topics_only(bus: &dyn Bus) {
    let first = room_topic();
    let second = other_than(first);
    let third = user_topic();
    let mut one = Receiver::following(bus, &[first, third]).await;
    let mut two = Receiver::following(bus, &[second, third]).await;
    bus.publish(first, number(1)).await.unwrap();
    bus.publish(second, number(2)).await.unwrap();
    // Each receiver's own topic comes first or second: across topics there is no order.
    bus.publish(third, number(3)).await.unwrap();
    for (receiver, own) in [
        (&mut one, (first, number(1))),
        (&mut two, (second, number(2))),
    ] {
        let mut received = [receiver.message().await, receiver.message().await];
        received.sort();
        let mut expected = [own, (third, number(3))];
        expected.sort();
        assert_eq!(received, expected);
    }
    // What would have arrived wrongly had its time: topics are in order with themselves.
    bus.publish(first, number(4)).await.unwrap();
    bus.publish(second, number(5)).await.unwrap();
    assert_eq!(one.message().await, (first, number(4)));
    assert_eq!(two.message().await, (second, number(5)));
}

/// MSG-18: at most once.
pub async fn subscribing_twice_delivers_once(bus: &dyn Bus) {
    let topic = room_topic();
    let mut receiver = Receiver::following(bus, &[topic, topic]).await;
    let (again, once_more) = (
        receiver.subscriptions.clone(),
        receiver.subscriptions.clone(),
    );
    let (first, second) = tokio::join!(again.subscribe(topic), once_more.subscribe(topic));
    first.unwrap();
    second.unwrap();
    for n in 0..3 {
        bus.publish(topic, number(n)).await.unwrap();
    }
    for n in 0..3 {
        assert_eq!(receiver.message().await, (topic, number(n)));
    }
}

/// MSG-03: who left hears nothing any more, and may come back.
pub async fn an_unsubscribed_topic_is_silent(bus: &dyn Bus) {
    let topic = room_topic();
    let other = other_than(topic);
    let mut receiver = Receiver::following(bus, &[topic, other]).await;
    bus.publish(topic, number(1)).await.unwrap();
    assert_eq!(receiver.message().await, (topic, number(1)));
    receiver.subscriptions.unsubscribe(topic).await.unwrap();
    receiver.subscriptions.unsubscribe(topic).await.unwrap();
    bus.publish(topic, number(2)).await.unwrap();
    bus.publish(other, number(3)).await.unwrap();
    assert_eq!(
        receiver.message().await,
        (other, number(3)),
        "other topics go on"
    );
    receiver.subscriptions.subscribe(topic).await.unwrap();
    bus.publish(topic, number(4)).await.unwrap();
    assert_eq!(receiver.message().await, (topic, number(4)));
}

/// MSG-18: a gateway follows hundreds of topics over one receiver, subscribed at once.
pub async fn many_topics_are_followed_at_once(bus: Arc<dyn Bus>) {
    let mut topics: Vec<Topic> = (0..300).map(|_| room_topic()).collect();
    topics.sort();
    topics.dedup();
    let mut receiver = Receiver::new(&*bus).await;
    let subscribed: Vec<_> = topics
        .iter()
        .map(|topic| {
            let (bus, subscriptions, topic) = (bus.clone(), receiver.subscriptions.clone(), *topic);
            tokio::spawn(async move {
                subscriptions.subscribe(topic).await.unwrap();
                bus.publish(topic, number(7)).await.unwrap();
            })
        })
        .collect();
    for task in subscribed {
        task.await.unwrap();
    }
    let mut received = Vec::new();
    for _ in &topics {
        received.push(receiver.message().await.0);
    }
    received.sort();
    assert_eq!(received, topics, "each arrives once");
}

/// MSG-18: nobody need listen.
pub async fn publishing_without_receivers_is_fine(bus: &dyn Bus) {
    bus.publish(room_topic(), number(1)).await.unwrap();
    let idle = Receiver::new(bus).await;
    bus.publish(room_topic(), number(2)).await.unwrap();
    drop(idle);
}

/// Promise 7, MSG-18: a receiver that doesn't read costs bounded memory; it gets everything in order, or is told.
pub async fn a_slow_receiver_is_told_what_it_lost(bus: &dyn Bus) {
    const COUNT: u32 = 20_000;
    let topic = room_topic();
    let mut slow = Receiver::following(bus, &[topic]).await;
    for n in 1..=COUNT {
        bus.publish(topic, number(n)).await.unwrap();
    }
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let (mut last, mut lost) = (0, false);
    while last <= COUNT {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the receiver goes on after a loss"
        );
        match tokio::time::timeout(Duration::from_millis(500), slow.items.next()).await {
            Ok(Some(BusItem::Message { payload, .. })) => {
                let n = u32::from_be_bytes(payload[..].try_into().unwrap());
                assert!(n > last, "in order, once");
                assert!(
                    n == last + 1 || lost,
                    "{n} follows {last} and nobody said that some were lost"
                );
                (last, lost) = (n, false);
            }
            Ok(Some(BusItem::Lost)) => lost = true,
            Ok(None) => panic!("the stream goes on"),
            // All that was kept is read; one more shows that the receiver goes on, and what it missed.
            Err(_) => bus.publish(topic, number(COUNT + 1)).await.unwrap(),
        }
    }
}

/// Promise 7: a socket's end is nobody else's business.
pub async fn a_dropped_receiver_disturbs_nobody(bus: &dyn Bus) {
    let topic = room_topic();
    let gone = Receiver::following(bus, &[topic]).await;
    let mut stays = Receiver::following(bus, &[topic]).await;
    drop(gone);
    for n in 0..10 {
        bus.publish(topic, number(n)).await.unwrap();
        assert_eq!(stays.message().await, (topic, number(n)));
    }
}
