//! [`PushQueue`] on RabbitMQ: a quorum queue, confirmed publishes, manual acknowledgements.
//!
//! A job that is to be tried again is published to a queue that holds it for a while and then returns it; after
//! [`MAX_ATTEMPTS`] it is dead-lettered. A job is in at least one queue at any time: it may come twice, it never gets lost.

mod consumer;
mod link;
mod topology;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use carillon_domain::{
    Error, ErrorCode, Result,
    ports::{JobHandler, Probe, PushQueue},
    push::PushJob,
};
use carillon_telemetry::propagation;
use futures::future::BoxFuture;
use lapin::{
    BasicProperties, Confirmation,
    options::BasicPublishOptions,
    types::{AMQPValue, FieldTable, LongString},
    uri::AMQPUri,
};
use tracing::Instrument;

use self::{link::Link, topology::Queues};
use crate::Login;

/// How long the broker may take to confirm a publish before its outcome counts as unknown.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Tries of one job, the first among them.
const MAX_ATTEMPTS: i64 = 10;
/// Persistent, in the words of AMQP.
const PERSISTENT: u8 = 2;
const TRACEPARENT: &str = "traceparent";
const ATTEMPT: &str = "x-carillon-attempt";

/// How to reach RabbitMQ.
#[derive(Clone)]
pub struct RabbitOptions {
    /// `amqp://user:password@host:port/vhost`, `amqps://…` for TLS.
    pub url: String,
    /// Who asks, in place of what the URL says.
    pub login: Option<Login>,
    /// Begins every queue's name: `carillon` makes `carillon.push`.
    pub prefix: String,
}

impl RabbitOptions {
    /// The options for a URL, with the usual prefix.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            login: None,
            prefix: "carillon".into(),
        }
    }
}

impl std::fmt::Debug for RabbitOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The URL may hold a password.
        f.debug_struct("RabbitOptions")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// Every port that RabbitMQ serves. Cheap to clone.
#[derive(Clone)]
pub struct Stores {
    /// The queue of push jobs.
    pub push_queue: Arc<dyn PushQueue>,
    /// Whether RabbitMQ works.
    pub probe: Arc<dyn Probe>,
}

/// Connects and declares the queues. `Unavailable` naming the broker when it can't be reached, `InvalidRequest` when the URL is
/// malformed, `FailedPrecondition` when queues of these names exist with other arguments.
pub async fn connect(options: &RabbitOptions) -> Result<Stores> {
    let mut uri: AMQPUri = options.url.parse().map_err(|cause: String| {
        Error::invalid("rabbitmq.url", "amqp://user:password@host:port/vhost")
            .caused_by(std::io::Error::other(cause))
    })?;
    // Without an answer for so long a connection is given up and made anew.
    uri.query.heartbeat.get_or_insert(10);
    let queues = Queues::new(&options.prefix);
    let broker = Broker {
        uri,
        login: options.login.clone(),
    };
    let link = Link::connect(broker.clone(), queues.clone()).await?;
    let rabbit = Arc::new(Rabbit {
        broker,
        queues,
        link,
    });
    Ok(Stores {
        push_queue: rabbit.clone(),
        probe: rabbit,
    })
}

/// Where the broker is, and who asks.
#[derive(Clone)]
struct Broker {
    uri: AMQPUri,
    login: Option<Login>,
}

impl Broker {
    /// With the user and password that count now.
    fn uri(&self) -> Result<AMQPUri> {
        let mut uri = self.uri.clone();
        if let Some(login) = &self.login {
            let login = login.now()?;
            if let Some(user) = login.user {
                uri.authority.userinfo.username = user;
            }
            uri.authority.userinfo.password = login.password;
        }
        Ok(uri)
    }
}

struct Rabbit {
    broker: Broker,
    queues: Queues,
    /// For publishing.
    link: Link,
}

impl Rabbit {
    /// Publishes and waits for the confirmation.
    async fn send(&self, queue: &str, payload: &[u8], properties: BasicProperties) -> Result<()> {
        let link = self.link.channel().await?;
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let publish = async {
            link.channel
                .basic_publish("".into(), queue.into(), options, payload, properties)
                .await?
                .await
        };
        let confirmed = match tokio::time::timeout(CONFIRM_TIMEOUT, publish).await {
            Ok(confirmed) => confirmed,
            Err(late) => return Err(Error::unavailable("rabbitmq", late)),
        };
        match confirmed {
            Ok(Confirmation::Ack(None)) => Ok(()),
            // No queue took it, and yet it is acknowledged. Connecting anew declares the queues again.
            Ok(Confirmation::Ack(Some(_))) => {
                self.link.renew(&link);
                Err(refused("the broker has no such queue"))
            }
            Ok(Confirmation::Nack(_)) => Err(refused("the broker refused a job")),
            Ok(Confirmation::NotRequested) => Err(Error::defect("publishes are not confirmed")),
            Err(cause) => {
                self.link.renew(&link);
                Err(Error::unavailable("rabbitmq", cause))
            }
        }
    }

    async fn publish_job(&self, job: &PushJob) -> Result<()> {
        let payload = serde_json::to_vec(job).map_err(Error::internal)?;
        // The send that the job belongs to, else whatever publishes it.
        let traceparent = propagation::traceparent().or_else(|| job.traceparent.clone());
        self.send(
            &self.queues.push,
            &payload,
            properties(&job.id, traceparent.as_deref(), 1),
        )
        .await
    }
}

#[async_trait]
impl PushQueue for Rabbit {
    async fn publish(&self, job: &PushJob) -> Result<()> {
        let span = tracing::info_span!(
            "publish",
            otel.name = format!("publish {}", self.queues.push),
            otel.kind = "producer",
            messaging.system = "rabbitmq",
            messaging.destination.name = self.queues.push,
            messaging.operation.type = "send",
            messaging.message.id = job.id,
        );
        crate::observe::timed("rabbitmq", "publish", self.publish_job(job))
            .instrument(span)
            .await
    }

    async fn consume(
        &self,
        handler: Arc<dyn JobHandler>,
        concurrency: usize,
        stop: BoxFuture<'static, ()>,
    ) -> Result<()> {
        consumer::run(
            self,
            handler,
            concurrency.clamp(1, usize::from(u16::MAX)),
            stop,
        )
        .await
    }

    async fn depth(&self) -> Result<(u64, u64)> {
        let link = self.link.channel().await?;
        let depth = topology::depth(&link.channel, &self.queues);
        match tokio::time::timeout(CONFIRM_TIMEOUT, depth).await {
            Ok(Ok(depth)) => Ok(depth),
            Ok(Err(cause)) => {
                // Asking for a queue that isn't there closes the channel; connecting anew declares it.
                self.link.renew(&link);
                Err(Error::unavailable("rabbitmq", cause))
            }
            Err(late) => Err(Error::unavailable("rabbitmq", late)),
        }
    }
}

#[async_trait]
impl Probe for Rabbit {
    fn name(&self) -> &'static str {
        "rabbitmq"
    }

    async fn check(&self) -> Result<()> {
        crate::observe::timed("rabbitmq", "probe", self.depth())
            .await
            .map(drop)
    }
}

fn properties(id: &str, traceparent: Option<&str>, attempt: i64) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert(ATTEMPT.into(), AMQPValue::LongLongInt(attempt));
    if let Some(traceparent) = traceparent {
        let value = LongString::from(traceparent.as_bytes().to_vec());
        headers.insert(TRACEPARENT.into(), AMQPValue::LongString(value));
    }
    let mut properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_delivery_mode(PERSISTENT)
        .with_headers(headers);
    // A short string of AMQP has at most 255 bytes.
    if let Ok(id) = lapin::types::ShortString::try_new(id) {
        properties = properties.with_message_id(id);
    }
    properties
}

fn refused(detail: &'static str) -> Error {
    Error::unavailable("rabbitmq", std::io::Error::other(detail))
}

fn unreachable(uri: &AMQPUri) -> Error {
    Error::new(
        ErrorCode::Unavailable,
        format!(
            "rabbitmq: {}:{} can't be used; is the address right, the broker up, the password valid?",
            uri.authority.host, uri.authority.port
        ),
    )
}
