//! A connection that is made anew when it breaks, with one channel that confirms publishes.

use std::time::Duration;

use carillon_domain::{Error, ErrorCode, Result};
use futures::StreamExt;
use lapin::{
    Channel, Connection, ConnectionProperties, ErrorKind, Event,
    options::ConfirmSelectOptions,
    protocol::{AMQPErrorKind, AMQPSoftError},
};
use tokio::{sync::watch, task::JoinHandle};

use super::{Broker, CONNECT_TIMEOUT, refused, topology, topology::Queues, unreachable};

/// How long a publish waits for a connection that is being made.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long closing a connection may take: a broken one may never answer.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The connection for publishing.
pub(super) struct Link {
    channel: watch::Receiver<Option<Numbered>>,
    broken: watch::Sender<u64>,
    keeper: JoinHandle<()>,
}

/// A channel, and the number of its connection.
#[derive(Clone)]
pub(super) struct Numbered {
    pub(super) channel: Channel,
    number: u64,
}

impl Link {
    /// Connects once; later breaks are repaired behind the caller's back.
    pub(super) async fn connect(broker: Broker, queues: Queues) -> Result<Self> {
        let first = open(&broker, &queues, "publisher").await?;
        let (sender, channel) = watch::channel(None);
        let (broken, breaks) = watch::channel(0);
        sender.send_replace(Some(Numbered {
            channel: first.1.clone(),
            number: FIRST,
        }));
        let keeper = tokio::spawn(keep(broker, queues, first, sender, breaks));
        Ok(Self {
            channel,
            broken,
            keeper,
        })
    }

    /// The channel, when there is one soon.
    pub(super) async fn channel(&self) -> Result<Numbered> {
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

    /// Something went wrong on this channel: its connection is made anew, unless that was done already.
    pub(super) fn renew(&self, failed: &Numbered) {
        report(&self.broken, failed.number);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// The number of the first connection; 0 is none.
const FIRST: u64 = 1;

fn report(broken: &watch::Sender<u64>, number: u64) {
    broken.send_if_modified(|newest| {
        let newer = number > *newest;
        *newest = number.max(*newest);
        newer
    });
}

/// Waits until this connection, or a later one, is said to be broken. What is said about an earlier one, as by publishes that were
/// under way when it broke, doesn't concern it.
async fn reported(breaks: &mut watch::Receiver<u64>, number: u64) {
    // An error means that the link is gone, and with it soon the keeper.
    let _ = breaks.wait_for(|newest| *newest >= number).await;
}

/// Closes a connection that may not answer any more.
pub(super) async fn close(connection: &Connection, why: &'static str) {
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, connection.close(200, why.into())).await;
}

async fn keep(
    broker: Broker,
    queues: Queues,
    first: (Connection, Channel),
    sender: watch::Sender<Option<Numbered>>,
    mut breaks: watch::Receiver<u64>,
) {
    let mut current = first;
    for number in FIRST.. {
        let events = current.0.events_listener();
        tokio::pin!(events);
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Event::Error(_)) | None => break,
                    Some(_) => {}
                },
                () = reported(&mut breaks, number) => break,
            }
        }
        sender.send_replace(None);
        // It may be broken already, or only its channel.
        close(&current.0, "renewing").await;
        let mut pause = Backoff::default();
        current = loop {
            match open(&broker, &queues, "publisher").await {
                Ok(opened) => break opened,
                Err(error) => {
                    tracing::warn!(%error, cause = error.cause_chain(), "no connection to RabbitMQ yet")
                }
            }
            pause.wait().await;
        };
        tracing::info!("connected to RabbitMQ again");
        sender.send_replace(Some(Numbered {
            channel: current.1.clone(),
            number: number + 1,
        }));
    }
}

/// Connects, opens a channel with confirms, declares the queues.
pub(super) async fn open(
    broker: &Broker,
    queues: &Queues,
    purpose: &str,
) -> Result<(Connection, Channel)> {
    let properties = ConnectionProperties::default()
        .with_connection_name(format!("carillon {purpose}").into_bytes().into());
    let uri = broker.uri()?;
    let connect = async {
        let connection = Connection::connect_uri(uri, properties).await?;
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
        Ok(Err(cause)) => Err(unreachable(&broker.uri).caused_by(cause)),
        Err(late) => Err(unreachable(&broker.uri).caused_by(late)),
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

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    /// NOTIF-02: what failed on the connection before doesn't close the one that was made since.
    #[tokio::test]
    async fn a_late_report_concerns_its_own_connection_only() {
        let (broken, mut breaks) = watch::channel(0);
        report(&broken, 1);
        reported(&mut breaks, 1).await;
        // Publishes that were under way on the first connection fail while the second is being made, and after.
        report(&broken, 1);
        assert!(reported(&mut breaks, 2).now_or_never().is_none());
        report(&broken, 1);
        assert!(reported(&mut breaks, 2).now_or_never().is_none());
        report(&broken, 2);
        reported(&mut breaks, 2).await;
    }
}
