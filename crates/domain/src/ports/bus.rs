use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

use crate::{Result, signal::Topic};

/// What a receiver gets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BusItem {
    /// A payload published to a subscribed topic.
    Message {
        /// Where.
        topic: Topic,
        /// The bytes, shared between receivers.
        payload: Bytes,
    },
    /// Messages may have been lost (reconnect, overflow): compare heads.
    Lost,
}

/// Publish and subscribe, at most once, in order per publisher and topic while the connection lasts.
#[async_trait]
pub trait Bus: Send + Sync {
    /// Sends to whoever is subscribed now.
    async fn publish(&self, topic: Topic, payload: Bytes) -> Result<()>;

    /// A new receiver without topics. It buffers a bounded number of items and then says [`BusItem::Lost`].
    async fn receiver(&self) -> Result<(Arc<dyn Subscriptions>, BoxStream<'static, BusItem>)>;
}

/// The topics of one receiver.
#[async_trait]
pub trait Subscriptions: Send + Sync {
    /// When it returns, everything published from then on is delivered, or a `Lost` says that it may not have been. Subscribing
    /// again changes nothing.
    async fn subscribe(&self, topic: Topic) -> Result<()>;

    /// Stops a topic.
    async fn unsubscribe(&self, topic: Topic) -> Result<()>;
}
