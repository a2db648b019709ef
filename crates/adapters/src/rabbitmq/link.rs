//! A connection that is made anew when it breaks, with one channel that confirms publishes.

use std::{sync::Arc, time::Duration};

use carillon_domain::{Error, ErrorCode, Result};
use futures::StreamExt;
use lapin::{
    Channel, Connection, ConnectionProperties, ErrorKind, Event,
    options::ConfirmSelectOptions,
    protocol::{AMQPErrorKind, AMQPSoftError},
    uri::AMQPUri,
};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};

use super::{CONNECT_TIMEOUT, refused, topology, topology::Queues, unreachable};

/// How long a publish waits for a connection that is being made.
const PATIENCE: Duration = Duration::from_secs(2);

/// The connection for publishing.
pub(super) struct Link {
    channel: watch::Receiver<Option<Channel>>,
    broken: Arc<Notify>,
    keeper: JoinHandle<()>,
}

impl Link {
    /// Connects once; later breaks are repaired behind the caller's back.
    pub(super) async fn connect(uri: AMQPUri, queues: Queues) -> Result<Self> {
        let first = open(&uri, &queues, "publisher").await?;
        let (sender, channel) = watch::channel(Some(first.1.clone()));
        let broken = Arc::new(Notify::new());
        let keeper = tokio::spawn(keep(uri, queues, first, sender, broken.clone()));
        Ok(Self {
            channel,
            broken,
            keeper,
        })
    }

    /// The channel, when there is one soon.
    pub(super) async fn channel(&self) -> Result<Channel> {
        let mut channel = self.channel.clone();
        let wait = channel.wait_for(Option::is_some);
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(Ok(channel)) => match &*channel {
                Some(channel) => Ok(channel.clone()),
                None => Err(refused("there is no connection")),
            },
            Ok(Err(closed)) => Err(Error::unavailable("rabbitmq", closed)),
            Err(late) => Err(Error::unavailable("rabbitmq", late)),
        }
    }

    /// Something went wrong on the channel: look whether it must be made anew.
    pub(super) fn renew(&self) {
        self.broken.notify_one();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

async fn keep(
    uri: AMQPUri,
    queues: Queues,
    first: (Connection, Channel),
    sender: watch::Sender<Option<Channel>>,
    broken: Arc<Notify>,
) {
    let mut current = first;
    loop {
        let events = current.0.events_listener();
        tokio::pin!(events);
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Event::Error(_)) | None => break,
                    Some(_) => {}
                },
                () = broken.notified() => break,
            }
        }
        sender.send_replace(None);
        // It may be broken already, or only its channel.
        let _ = current.0.close(200, "renewing".into()).await;
        let mut pause = Backoff::default();
        current = loop {
            match open(&uri, &queues, "publisher").await {
                Ok(opened) => break opened,
                Err(error) => {
                    tracing::warn!(%error, cause = error.cause_chain(), "no connection to RabbitMQ yet")
                }
            }
            pause.wait().await;
        };
        tracing::info!("connected to RabbitMQ again");
        sender.send_replace(Some(current.1.clone()));
    }
}

/// Connects, opens a channel with confirms, declares the queues.
pub(super) async fn open(
    uri: &AMQPUri,
    queues: &Queues,
    purpose: &str,
) -> Result<(Connection, Channel)> {
    let properties = ConnectionProperties::default()
        .with_connection_name(format!("carillon {purpose}").into_bytes().into());
    let connect = async {
        let connection = Connection::connect_uri(uri.clone(), properties).await?;
        let channel = connection.create_channel().await?;
        topology::declare(&channel, queues).await?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        Ok((connection, channel))
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
        Ok(Ok(opened)) => Ok(opened),
        Ok(Err(cause)) if other_arguments(&cause) => Err(Error::new(
            ErrorCode::FailedPrecondition,
            format!(
                "rabbitmq: a queue {}* exists with other arguments; delete it when it is empty",
                queues.push
            ),
        )
        .caused_by(cause)),
        Ok(Err(cause)) => Err(unreachable(uri).caused_by(cause)),
        Err(late) => Err(unreachable(uri).caused_by(late)),
    }
}

fn other_arguments(error: &lapin::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ProtocolError(error)
            if matches!(error.kind(), AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED))
    )
}

/// Growing pauses with jitter, so that a restarted broker isn't asked by everybody at once.
#[derive(Default)]
pub(super) struct Backoff {
    tries: u32,
}

impl Backoff {
    pub(super) async fn wait(&mut self) {
        let most = Duration::from_millis(200 << self.tries.min(6));
        self.tries += 1;
        tokio::time::sleep(most.mul_f64(rand::random_range(0.5..=1.0))).await;
    }
}
