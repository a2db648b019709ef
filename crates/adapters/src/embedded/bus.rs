//! [`Bus`] within one process: a bounded queue per receiver. Payloads are shared, not copied. Nobody waits for a slow receiver:
//! what doesn't fit is dropped, and the receiver is told where in its stream that happened.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use async_trait::async_trait;
use bytes::Bytes;
use carillon_domain::{
    Error, ErrorCode, Result,
    ports::{Bus, BusItem, Subscriptions},
    signal::Topic,
};
use futures::stream::{BoxStream, Stream};
use parking_lot::{Mutex, RwLock};

/// Items that a receiver may be behind, …
const CAPACITY: usize = 4096;
/// … and bytes of payloads.
const CAPACITY_BYTES: usize = 16 * 1024 * 1024;

/// The bus of a process.
#[derive(Default)]
pub(super) struct LocalBus(Arc<Subscribers>);

/// Who is subscribed to what.
#[derive(Default)]
struct Subscribers(RwLock<HashMap<Topic, Vec<Arc<Receiver>>>>);

struct Receiver(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    items: VecDeque<BusItem>,
    bytes: usize,
    waker: Option<Waker>,
    topics: HashSet<Topic>,
    closed: bool,
}

#[async_trait]
impl Bus for LocalBus {
    async fn publish(&self, topic: Topic, payload: Bytes) -> Result<()> {
        if let Some(receivers) = self.0.0.read().get(&topic) {
            for receiver in receivers {
                receiver.push(topic, &payload);
            }
        }
        Ok(())
    }

    async fn receiver(&self) -> Result<(Arc<dyn Subscriptions>, BoxStream<'static, BusItem>)> {
        let receiver = Arc::new(Receiver(Mutex::default()));
        let items = Items {
            subscribers: self.0.clone(),
            receiver: receiver.clone(),
        };
        let subscriptions = LocalSubscriptions {
            subscribers: self.0.clone(),
            receiver,
        };
        Ok((Arc::new(subscriptions), Box::pin(items)))
    }
}

// === impl Receiver ===

impl Receiver {
    fn push(&self, topic: Topic, payload: &Bytes) {
        let waker = {
            let mut queue = self.0.lock();
            if queue.items.len() >= CAPACITY || queue.bytes >= CAPACITY_BYTES {
                if queue.items.back() != Some(&BusItem::Lost) {
                    queue.items.push_back(BusItem::Lost);
                }
            } else {
                queue.bytes += payload.len();
                queue.items.push_back(BusItem::Message {
                    topic,
                    payload: payload.clone(),
                });
            }
            queue.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

// === the receiving end ===

struct Items {
    subscribers: Arc<Subscribers>,
    receiver: Arc<Receiver>,
}

impl Stream for Items {
    type Item = BusItem;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<BusItem>> {
        let mut queue = self.receiver.0.lock();
        match queue.items.pop_front() {
            Some(item) => {
                if let BusItem::Message { payload, .. } = &item {
                    queue.bytes -= payload.len();
                }
                Poll::Ready(Some(item))
            }
            None => {
                queue.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Items {
    fn drop(&mut self) {
        let mut subscribers = self.subscribers.0.write();
        let topics = {
            let mut queue = self.receiver.0.lock();
            queue.closed = true;
            queue.items = VecDeque::new();
            std::mem::take(&mut queue.topics)
        };
        for topic in topics {
            remove(&mut subscribers, topic, &self.receiver);
        }
    }
}

struct LocalSubscriptions {
    subscribers: Arc<Subscribers>,
    receiver: Arc<Receiver>,
}

#[async_trait]
impl Subscriptions for LocalSubscriptions {
    async fn subscribe(&self, topic: Topic) -> Result<()> {
        let mut subscribers = self.subscribers.0.write();
        let mut queue = self.receiver.0.lock();
        if queue.closed {
            return Err(Error::new(
                ErrorCode::Unavailable,
                "the receiver of the bus is gone",
            ));
        }
        if queue.topics.insert(topic) {
            let receivers = subscribers.entry(topic).or_default();
            receivers.push(self.receiver.clone());
        }
        Ok(())
    }

    async fn unsubscribe(&self, topic: Topic) -> Result<()> {
        let mut subscribers = self.subscribers.0.write();
        if self.receiver.0.lock().topics.remove(&topic) {
            remove(&mut subscribers, topic, &self.receiver);
        }
        Ok(())
    }
}

fn remove(
    subscribers: &mut HashMap<Topic, Vec<Arc<Receiver>>>,
    topic: Topic,
    receiver: &Arc<Receiver>,
) {
    if let Some(receivers) = subscribers.get_mut(&topic) {
        receivers.retain(|other| !Arc::ptr_eq(other, receiver));
        if receivers.is_empty() {
            subscribers.remove(&topic);
        }
    }
}

#[cfg(test)]
mod tests {
    use carillon_domain::partition::Partition;
    use futures::StreamExt;

    use super::*;

    const TOPIC: Topic = Topic::Rooms(Partition(3));

    /// RT-06: a receiver that doesn't read costs bounded memory and is told where it lost something.
    #[tokio::test]
    async fn overflow_is_told_in_its_place() {
        let bus = LocalBus::default();
        let (subscriptions, mut items) = bus.receiver().await.unwrap();
        subscriptions.subscribe(TOPIC).await.unwrap();
        let payload = |n: usize| Bytes::from(n.to_string());
        for n in 0..2 * CAPACITY {
            bus.publish(TOPIC, payload(n)).await.unwrap();
        }
        let message = |n| BusItem::Message {
            topic: TOPIC,
            payload: payload(n),
        };
        for n in 0..CAPACITY {
            assert_eq!(items.next().await, Some(message(n)));
        }
        // Published after the loss, so it comes after the mark of it.
        bus.publish(TOPIC, payload(7)).await.unwrap();
        assert_eq!(items.next().await, Some(BusItem::Lost));
        assert_eq!(items.next().await, Some(message(7)));
    }

    /// RT-06: large payloads count by their size.
    #[tokio::test]
    async fn large_payloads_overflow_earlier() {
        let bus = LocalBus::default();
        let (subscriptions, items) = bus.receiver().await.unwrap();
        subscriptions.subscribe(TOPIC).await.unwrap();
        let payload = Bytes::from(vec![0; CAPACITY_BYTES / 4]);
        for _ in 0..100 {
            bus.publish(TOPIC, payload.clone()).await.unwrap();
        }
        let received: Vec<_> = items.take(5).collect().await;
        assert_eq!(received[4], BusItem::Lost);
    }

    #[tokio::test]
    async fn a_dropped_receiver_leaves_nothing_behind() {
        let bus = LocalBus::default();
        let (subscriptions, items) = bus.receiver().await.unwrap();
        subscriptions.subscribe(TOPIC).await.unwrap();
        drop(items);
        assert!(bus.0.0.read().is_empty());
        assert!(subscriptions.subscribe(TOPIC).await.is_err());
        subscriptions.unsubscribe(TOPIC).await.unwrap();
    }
}
