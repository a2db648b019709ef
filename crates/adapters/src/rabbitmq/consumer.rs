//! Working on jobs: some at once, acknowledged after their outcome, over connections that come and go.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use carillon_domain::{
    Error, Result,
    ports::{JobHandler, JobOutcome},
    push::PushJob,
};
use carillon_telemetry::propagation;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use lapin::{
    Channel, Connection, Consumer,
    message::Delivery,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions,
        BasicQosOptions, BasicRejectOptions,
    },
    types::{AMQPValue, FieldTable},
};
use tracing::Instrument;

use super::{
    ATTEMPT, MAX_ATTEMPTS, Rabbit, TRACEPARENT,
    link::{Backoff, close, open},
    properties,
};

/// Pause before a job whose handler broke down is tried again.
const AFTER_PANIC: Duration = Duration::from_secs(30);

/// How long a job that is to come later is held when it can't be published yet.
const PUT_OFF_FOR: Duration = Duration::from_secs(60);
/// The longest that such a job is held before it returns to the queue.
const LONGEST_HOLD: Duration = Duration::from_secs(30);

/// An open consumer.
struct Session {
    connection: Connection,
    channel: Channel,
    consumer: Consumer,
}

pub(super) async fn run(
    rabbit: &Rabbit,
    handler: Arc<dyn JobHandler>,
    concurrency: usize,
    stop: BoxFuture<'static, ()>,
) -> Result<()> {
    let mut stop = stop.fuse();
    // Jobs under way outlive a connection: what they come to is lost then, and the job comes again.
    let mut under_way = FuturesUnordered::new();
    loop {
        let opened = async {
            let mut pause = Backoff::default();
            loop {
                match start(rabbit, concurrency).await {
                    Ok(session) => return session,
                    Err(error) => {
                        tracing::warn!(%error, cause = error.cause_chain(), "jobs can't be taken yet")
                    }
                }
                pause.wait().await;
            }
        };
        tokio::pin!(opened);
        let mut session = loop {
            tokio::select! {
                session = &mut opened => break session,
                Some(()) = under_way.next(), if !under_way.is_empty() => {}
                () = &mut stop => {
                    while under_way.next().await.is_some() {}
                    return Ok(());
                }
            }
        };
        loop {
            tokio::select! {
                // Stopping comes first: no further job is begun.
                biased;
                () = &mut stop => {
                    finish(session, under_way).await;
                    return Ok(());
                }
                Some(()) = under_way.next(), if !under_way.is_empty() => {}
                delivery = session.consumer.next(), if under_way.len() < concurrency => match delivery {
                    Some(Ok(delivery)) => under_way.push(process(rabbit, handler.clone(), delivery)),
                    // The connection broke, or the queue was deleted.
                    Some(Err(_)) | None => break,
                },
            }
        }
        tracing::warn!("the connection that takes jobs broke; connecting again");
        close(&session.connection, "renewing").await;
    }
}

async fn start(rabbit: &Rabbit, concurrency: usize) -> Result<Session> {
    let (connection, channel) = open(&rabbit.broker, &rabbit.queues, "consumer").await?;
    let consume = async {
        let prefetch = u16::try_from(concurrency).unwrap_or(u16::MAX);
        channel
            .basic_qos(prefetch, BasicQosOptions::default())
            .await?;
        channel
            .basic_consume(
                rabbit.queues.push.as_str().into(),
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await
    };
    let consumer = consume
        .await
        .map_err(|cause| Error::unavailable("rabbitmq", cause))?;
    Ok(Session {
        connection,
        channel,
        consumer,
    })
}

/// Takes no further jobs and finishes those under way. What was delivered but not begun returns to the queue with the connection's
/// end.
async fn finish<F: Future<Output = ()>>(session: Session, mut under_way: FuturesUnordered<F>) {
    let cancel = session
        .channel
        .basic_cancel(session.consumer.tag(), BasicCancelOptions::default());
    let finish = async { while under_way.next().await.is_some() {} };
    let (cancelled, ()) = futures::join!(cancel, finish);
    if let Err(error) = cancelled {
        tracing::debug!(%error, "the consumer was not cancelled in order");
    }
    close(&session.connection, "done").await;
}

async fn process(rabbit: &Rabbit, handler: Arc<dyn JobHandler>, delivery: Delivery) {
    let job: PushJob = match serde_json::from_slice(&delivery.data) {
        Ok(job) => job,
        Err(error) => {
            // Never to be understood, however often it comes.
            tracing::error!(%error, "a job can't be read and was dead-lettered");
            settle(delivery.reject(BasicRejectOptions { requeue: false }).await);
            return;
        }
    };
    let span = tracing::info_span!(
        "process",
        otel.name = format!("process {}", rabbit.queues.push),
        otel.kind = "consumer",
        messaging.system = "rabbitmq",
        messaging.destination.name = rabbit.queues.push,
        messaging.operation.type = "process",
        messaging.message.id = job.id,
    );
    if let Some(traceparent) = traceparent(&delivery).or_else(|| job.traceparent.clone()) {
        propagation::set_parent(&span, &traceparent);
    }
    handle(rabbit, handler, delivery, job)
        .instrument(span)
        .await;
}

async fn handle(rabbit: &Rabbit, handler: Arc<dyn JobHandler>, delivery: Delivery, job: PushJob) {
    let attempt = attempt(&delivery);
    let id = job.id.clone();
    // A handler that breaks down must not take the other jobs with it, nor keep this one for ever.
    let work = AssertUnwindSafe(handler.handle(job)).catch_unwind();
    let outcome = crate::observe::timed("rabbitmq", "process", work)
        .await
        .unwrap_or_else(|_| {
            tracing::error!(job = id, "the handler of a job broke down");
            JobOutcome::Retry(AFTER_PANIC)
        });
    match outcome {
        JobOutcome::Done => settle(delivery.ack(BasicAckOptions::default()).await),
        JobOutcome::Retry(_) if attempt >= MAX_ATTEMPTS => {
            tracing::warn!(
                job = id,
                attempt,
                "a job was tried too often and was dead-lettered"
            );
            settle(delivery.reject(BasicRejectOptions { requeue: false }).await);
        }
        JobOutcome::Retry(delay) => {
            let queue = rabbit.queues.after(delay);
            let properties = properties(&id, traceparent(&delivery).as_deref(), attempt + 1);
            // First there, then gone from here.
            let send = || rabbit.send(queue, &delivery.data, properties.clone());
            match persistently(PUT_OFF_FOR, || delivery.acker.usable(), send).await {
                Ok(()) => settle(delivery.ack(BasicAckOptions::default()).await),
                Err(error) => {
                    tracing::warn!(%error, "a job could not be put off and returns to the queue");
                    // It comes again as soon as it is given back: not sooner than its provider may be asked again.
                    tokio::time::sleep(delay.min(LONGEST_HOLD)).await;
                    let options = BasicNackOptions {
                        requeue: true,
                        ..BasicNackOptions::default()
                    };
                    settle(delivery.nack(options).await);
                }
            }
        }
    }
}

/// Tries again, with pauses, for about so long, and while the delivery is still ours: when its connection is gone, the broker has
/// given the job to somebody else. Its slot is held meanwhile, which is what keeps further jobs away.
async fn persistently<F: Future<Output = Result<()>>>(
    patience: Duration,
    is_ours: impl Fn() -> bool,
    mut send: impl FnMut() -> F,
) -> Result<()> {
    let deadline = tokio::time::Instant::now() + patience;
    let mut pause = Backoff::default();
    loop {
        match send().await {
            Err(error) if is_ours() && tokio::time::Instant::now() < deadline => {
                tracing::debug!(%error, "a job could not be put off yet");
            }
            outcome => return outcome,
        }
        pause.wait().await;
    }
}

/// An acknowledgement that didn't arrive means that the job comes again.
fn settle(result: lapin::Result<bool>) {
    if let Err(error) = result {
        tracing::debug!(%error, "the outcome of a job was not told to the broker; it comes again");
    }
}

fn header<'a>(delivery: &'a Delivery, name: &str) -> Option<&'a AMQPValue> {
    delivery.properties.headers().as_ref()?.inner().get(name)
}

fn traceparent(delivery: &Delivery) -> Option<String> {
    match header(delivery, TRACEPARENT)? {
        AMQPValue::LongString(text) => String::from_utf8(text.as_bytes().to_vec()).ok(),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

fn attempt(delivery: &Delivery) -> i64 {
    match header(delivery, ATTEMPT) {
        Some(AMQPValue::LongLongInt(attempt)) => *attempt,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use carillon_domain::ErrorCode;

    use super::*;

    /// NOTIF-02: a job that can't be put off yet isn't given back at once, and so its provider isn't asked again at once.
    #[tokio::test]
    async fn putting_off_is_tried_again() {
        let away = || Err(Error::new(ErrorCode::Unavailable, "rabbitmq"));
        let mut tries = 0;
        let outcome = persistently(
            Duration::from_secs(600),
            || true,
            || {
                tries += 1;
                let outcome = if tries < 3 { away() } else { Ok(()) };
                async { outcome }
            },
        );
        outcome.await.unwrap();
        assert_eq!(tries, 3);
        for (patience, is_ours) in [(600, false), (0, true)] {
            let mut tries = 0;
            let patience = Duration::from_secs(patience);
            let outcome = persistently(
                patience,
                || is_ours,
                || {
                    tries += 1;
                    async { away() }
                },
            );
            assert!(outcome.await.is_err());
            assert_eq!(tries, 1);
        }
    }
}
