//! [`Bus`]: sharded publish and subscribe, one channel per topic.
//!
//! Each receiver has a connection of its own (one per node of a cluster), so that a slow receiver delays no commands and what it
//! doesn't read is bounded: the buffer drops the oldest, and the receiver is told that something was lost.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use carillon_domain::{
    Result,
    partition::Partition,
    ports::{Bus, BusItem, Subscriptions},
    signal::Topic,
};
use fred::{
    interfaces::{ClientLike, EventInterface, PubsubInterface},
    prelude::{Builder, Client, Error as RedisError, Value},
    types::{ClusterHash, CustomCommand, Message, RespVersion},
    util::redis_keyslot,
};
use futures::{StreamExt, stream, stream::BoxStream};
use parking_lot::RwLock;
use tokio::{
    sync::{Semaphore, broadcast, watch},
    task::JoinHandle,
};

use super::{failed, servers, start};
use crate::observe::timed;

/// Messages that a receiver may leave unread before the oldest are dropped.
const BUFFER: usize = 8192;
/// How often a cluster is asked whether the channels are still where they were: a slot that moves takes its subscriptions with it
/// without a word to this client.
const CLUSTER_CHECK: Duration = Duration::from_secs(20);
/// Subscriptions under way at once: each waits for the ones before it, and must not wait longer than a command may take.
const AT_ONCE: usize = 16;
/// Pause before subscribing again failed channels.
const RETRY: Duration = Duration::from_millis(500);

pub(super) struct RedisBus {
    publisher: Client,
    builder: Builder,
    names: Names,
}

impl RedisBus {
    pub(super) fn new(publisher: Client, mut builder: Builder, prefix: &str) -> Self {
        builder
            .with_performance_config(|performance| performance.broadcast_channel_capacity = BUFFER)
            // With the older protocol a subscribed connection may do nothing else, not even say that it works.
            .with_config(|config| config.version = RespVersion::RESP3);
        Self {
            publisher,
            builder,
            names: Names(prefix.into()),
        }
    }
}

#[async_trait]
impl Bus for RedisBus {
    async fn publish(&self, topic: Topic, payload: Bytes) -> Result<()> {
        let channel = self.names.channel(topic);
        let publish = self
            .publisher
            .spublish::<i64, _, _>(channel, Value::Bytes(payload));
        timed("redis", "publish", publish)
            .await
            .map(drop)
            .map_err(failed)
    }

    async fn receiver(&self) -> Result<(Arc<dyn Subscriptions>, BoxStream<'static, BusItem>)> {
        let client = self.builder.build().map_err(failed)?;
        start(client.init(), &servers(&self.builder)).await?;
        let messages = client.message_rx();
        let connection = Arc::new(Connection::new(client, self.names.clone()));
        let subscriptions = connection.clone();
        Ok((subscriptions, items(connection, messages)))
    }
}

/// How far subscribing a topic has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Asked,
    Done,
}

type Topics = Arc<RwLock<BTreeMap<Topic, Stage>>>;

/// A receiver's connection; closed when neither its topics nor its items are wanted any more.
struct Connection {
    client: Client,
    names: Names,
    topics: Topics,
    turns: Semaphore,
    losses: watch::Receiver<u64>,
    keeper: JoinHandle<()>,
}

impl Connection {
    fn new(client: Client, names: Names) -> Self {
        let topics = Arc::new(RwLock::default());
        let (lost, losses) = watch::channel(0);
        let keeper = Keeper {
            client: client.clone(),
            names: names.clone(),
            topics: topics.clone(),
            lost,
        };
        Self {
            keeper: tokio::spawn(keeper.run()),
            client,
            names,
            topics,
            turns: Semaphore::new(AT_ONCE),
            losses,
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.keeper.abort();
        let client = self.client.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                // It may be gone already.
                let _ = client.quit().await;
            });
        }
    }
}

#[async_trait]
impl Subscriptions for Connection {
    async fn subscribe(&self, topic: Topic) -> Result<()> {
        // Known first, so that a reconnect in the middle subscribes it too. Of two calls at once, each asks the server: the
        // first to return must not leave the other with a promise that the server hasn't kept yet.
        if *self.topics.write().entry(topic).or_insert(Stage::Asked) == Stage::Done {
            return Ok(());
        }
        // Never closed; a permit in any case.
        let _turn = self.turns.acquire().await;
        let result = timed(
            "redis",
            "subscribe",
            subscribe(&self.client, &self.names.channel(topic)),
        )
        .await;
        let mut topics = self.topics.write();
        match result {
            Ok(()) => {
                // Unless it was unsubscribed in the meantime.
                if let Some(stage) = topics.get_mut(&topic) {
                    *stage = Stage::Done;
                }
                Ok(())
            }
            Err(error) => {
                if topics.get(&topic) == Some(&Stage::Asked) {
                    topics.remove(&topic);
                }
                Err(failed(error))
            }
        }
    }

    async fn unsubscribe(&self, topic: Topic) -> Result<()> {
        if self.topics.write().remove(&topic).is_none() {
            return Ok(());
        }
        let unsubscribe = self.client.sunsubscribe(self.names.channel(topic));
        timed("redis", "unsubscribe", unsubscribe)
            .await
            .map_err(failed)
    }
}

/// Subscribes a channel; when it returns, the server has done it: the second command goes over the same connection and is
/// answered after the first was done. One channel at a time, since the driver takes one answer per command.
async fn subscribe(client: &Client, channel: &str) -> Result<(), RedisError> {
    client.ssubscribe(channel).await?;
    let slot = ClusterHash::Custom(redis_keyslot(channel.as_bytes()));
    let ping = CustomCommand::new_static("PING", slot, false);
    client
        .custom::<Value, Value>(ping, Vec::new())
        .await
        .map(drop)
}

/// Subscribes everything again after a reconnect or a change of the cluster, then says that something may be lost.
struct Keeper {
    client: Client,
    names: Names,
    topics: Topics,
    lost: watch::Sender<u64>,
}

impl Keeper {
    async fn run(self) {
        let mut reconnects = self.client.reconnect_rx();
        let mut changes = self.client.cluster_change_rx();
        let mut check = tokio::time::interval(CLUSTER_CHECK);
        check.tick().await;
        loop {
            let lossy = tokio::select! {
                event = reconnects.recv() => match event {
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => true,
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                event = changes.recv() => match event {
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => true,
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                // Where a channel has moved, the driver is told so, follows, and a change of the cluster is noticed above.
                _ = check.tick(), if self.client.is_clustered() => false,
            };
            self.subscribe_all().await;
            if lossy {
                self.lost.send_modify(|count| *count += 1);
            }
        }
    }

    async fn subscribe_all(&self) {
        let mut missing: Vec<Topic> = self.topics.read().keys().copied().collect();
        while let Some(topic) = missing.pop() {
            if !self.topics.read().contains_key(&topic) {
                continue;
            }
            if let Err(error) = subscribe(&self.client, &self.names.channel(topic)).await {
                tracing::warn!(%error, "a channel could not be subscribed again yet");
                missing.push(topic);
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// The messages of the topics, and the losses.
fn items(
    connection: Arc<Connection>,
    messages: broadcast::Receiver<Message>,
) -> BoxStream<'static, BusItem> {
    let losses = connection.losses.clone();
    stream::unfold(
        (connection, messages, losses),
        |(connection, mut messages, mut losses)| async move {
            loop {
                let item = tokio::select! {
                    message = messages.recv() => match message {
                        Ok(message) => match item(&connection, message) {
                            Some(item) => item,
                            None => continue,
                        },
                        Err(broadcast::error::RecvError::Lagged(_)) => BusItem::Lost,
                        Err(broadcast::error::RecvError::Closed) => return None,
                    },
                    changed = losses.changed() => match changed {
                        Ok(()) => BusItem::Lost,
                        Err(_) => return None,
                    },
                };
                return Some((item, (connection, messages, losses)));
            }
        },
    )
    .boxed()
}

/// `None` for what isn't wanted any more.
fn item(connection: &Connection, message: Message) -> Option<BusItem> {
    let topic = connection.names.topic(&message.channel)?;
    if !connection.topics.read().contains_key(&topic) {
        return None;
    }
    let payload = match message.value {
        Value::Bytes(bytes) => bytes,
        Value::String(text) => text.into_inner(),
        _ => return None,
    };
    Some(BusItem::Message { topic, payload })
}

/// How channels are called: `<prefix>{rooms:17}`; the braces spread them over a cluster.
#[derive(Clone)]
struct Names(Arc<str>);

impl Names {
    fn channel(&self, topic: Topic) -> String {
        match topic {
            Topic::Rooms(partition) => format!("{}{{rooms:{}}}", self.0, partition.0),
            Topic::Users(partition) => format!("{}{{users:{}}}", self.0, partition.0),
        }
    }

    fn topic(&self, channel: &str) -> Option<Topic> {
        let name = channel
            .strip_prefix(&*self.0)?
            .strip_prefix('{')?
            .strip_suffix('}')?;
        let (kind, partition) = name.split_once(':')?;
        let partition = Partition(partition.parse().ok()?);
        match kind {
            "rooms" => Some(Topic::Rooms(partition)),
            "users" => Some(Topic::Users(partition)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_read_back() {
        let names = Names("carillon:".into());
        for topic in [Topic::Rooms(Partition(0)), Topic::Users(Partition(1023))] {
            assert_eq!(names.topic(&names.channel(topic)), Some(topic));
        }
        assert_eq!(
            names.channel(Topic::Rooms(Partition(7))),
            "carillon:{rooms:7}"
        );
        assert_eq!(names.topic("other:{rooms:7}"), None);
    }
}
