//! RabbitMQ.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use carillon_adapters::{
    conformance,
    rabbitmq::{RabbitOptions, connect},
};
use carillon_domain::{
    ErrorCode, MessageId, RoomId, Sequence, UserId,
    ports::{JobHandler, JobOutcome},
    push::PushJob,
};
use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{BasicPublishOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::FieldTable,
};
use tokio::sync::{mpsc, oneshot};

use super::{PATIENCE, guarded, proxy::Proxy, server, unique};

const VARIABLE: &str = "CARILLON_TEST_RABBITMQ";

async fn delete_queues(url: &str, prefix: &str) {
    let connection = Connection::connect(url, ConnectionProperties::default())
        .await
        .unwrap();
    let channel = connection.create_channel().await.unwrap();
    for name in [
        "",
        ".dead",
        ".retry.1s",
        ".retry.5s",
        ".retry.30s",
        ".retry.120s",
        ".retry.600s",
    ] {
        let queue = format!("{prefix}.push{name}");
        channel
            .queue_delete(queue.into(), QueueDeleteOptions::default())
            .await
            .unwrap();
    }
    connection.close(200, "done".into()).await.unwrap();
}

fn job() -> PushJob {
    let message = MessageId::new();
    PushJob {
        id: format!("{message}/0"),
        room: RoomId::new(),
        message,
        sequence: Sequence(1),
        sender: UserId::new(),
        title: "Zoë".into(),
        body: "hello".into(),
        recipients: vec![UserId::new()],
        mentions: Default::default(),
        direct: false,
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
    }
}

/// Hands jobs to the test and does them.
struct Forward(mpsc::UnboundedSender<PushJob>);

#[async_trait]
impl JobHandler for Forward {
    async fn handle(&self, job: PushJob) -> JobOutcome {
        let _ = self.0.send(job);
        JobOutcome::Done
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_push_queue() {
    let Some(url) = server("rabbitmq_push_queue", VARIABLE) else {
        return;
    };
    let prefix = unique("test-");
    let options = RabbitOptions {
        login: None,
        url: url.clone(),
        prefix: prefix.clone(),
    };
    let stores = connect(&options).await.unwrap();
    let body = async move {
        assert_eq!(stores.probe.name(), "rabbitmq");
        stores.probe.check().await.unwrap();
        conformance::push_queue::all(stores.push_queue).await;
    };
    guarded(body, delete_queues(&url, &prefix)).await;
}

/// NOTIF-02, promise 8: after cuts jobs are published and taken again, and none that was confirmed is lost.
#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_survives_cuts() {
    let Some(url) = server("rabbitmq_survives_cuts", VARIABLE) else {
        return;
    };
    let prefix = unique("test-");
    let (proxy, through) = Proxy::before(&url).await;
    let options = RabbitOptions {
        login: None,
        url: through,
        prefix: prefix.clone(),
    };
    let stores = connect(&options).await.unwrap();
    let body = async move {
        let (sender, mut handled) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let consuming = tokio::spawn({
            let queue = stores.push_queue.clone();
            async move {
                let stopped = Box::pin(async {
                    let _ = stopped.await;
                });
                queue.consume(Arc::new(Forward(sender)), 4, stopped).await
            }
        });
        for _ in 0..3 {
            proxy.cut();
            let mut waiting: std::collections::BTreeSet<String> = Default::default();
            for _ in 0..10 {
                let job = job();
                let publish = async { while stores.push_queue.publish(&job).await.is_err() {} };
                tokio::time::timeout(PATIENCE, publish)
                    .await
                    .expect("publishing works again");
                waiting.insert(job.id);
            }
            let all = async {
                while !waiting.is_empty() {
                    waiting.remove(&handled.recv().await.unwrap().id);
                }
            };
            tokio::time::timeout(PATIENCE, all)
                .await
                .expect("what was confirmed is handled");
        }
        stop.send(()).unwrap();
        consuming.await.unwrap().unwrap();
    };
    guarded(body, delete_queues(&url, &prefix)).await;
}

/// NOTIF-02: what nobody can read is put aside, and the handler that breaks down loses nothing.
#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_puts_unreadable_jobs_aside() {
    let Some(url) = server("rabbitmq_puts_unreadable_jobs_aside", VARIABLE) else {
        return;
    };
    let prefix = unique("test-");
    let options = RabbitOptions {
        login: None,
        url: url.clone(),
        prefix: prefix.clone(),
    };
    let stores = connect(&options).await.unwrap();
    let body = {
        let (url, prefix) = (url.clone(), prefix.clone());
        async move {
            let connection = Connection::connect(&url, ConnectionProperties::default())
                .await
                .unwrap();
            let channel = connection.create_channel().await.unwrap();
            let queue = format!("{prefix}.push");
            channel
                .basic_publish(
                    "".into(),
                    queue.as_str().into(),
                    BasicPublishOptions::default(),
                    b"not a job",
                    BasicProperties::default(),
                )
                .await
                .unwrap();
            let (sender, mut handled) = mpsc::unbounded_channel();
            let (stop, stopped) = oneshot::channel::<()>();
            let consuming = tokio::spawn({
                let queue = stores.push_queue.clone();
                async move {
                    let stopped = Box::pin(async {
                        let _ = stopped.await;
                    });
                    queue.consume(Arc::new(Forward(sender)), 1, stopped).await
                }
            });
            let good = job();
            stores.push_queue.publish(&good).await.unwrap();
            let next = tokio::time::timeout(PATIENCE, handled.recv()).await;
            assert!(next.expect("the next job comes through") == Some(good));
            let aside = async {
                while stores.push_queue.depth().await.unwrap() != (0, 1) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(PATIENCE, aside)
                .await
                .expect("the unreadable one is put aside");
            stop.send(()).unwrap();
            consuming.await.unwrap().unwrap();
        }
    };
    guarded(body, delete_queues(&url, &prefix)).await;
}

/// NOTIF-02: a publish that no queue took is an error although the broker acknowledges it, and the queue comes back.
#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_notices_a_missing_queue() {
    let Some(url) = server("rabbitmq_notices_a_missing_queue", VARIABLE) else {
        return;
    };
    let prefix = unique("test-");
    let options = RabbitOptions {
        login: None,
        url: url.clone(),
        prefix: prefix.clone(),
    };
    let stores = connect(&options).await.unwrap();
    delete_queues(&url, &prefix).await;
    let error = stores.push_queue.publish(&job()).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
    let body = async move {
        let publish = async { while stores.push_queue.publish(&job()).await.is_err() {} };
        tokio::time::timeout(PATIENCE, publish)
            .await
            .expect("the queue is declared again");
        assert_eq!(stores.push_queue.depth().await.unwrap(), (1, 0));
    };
    guarded(body, delete_queues(&url, &prefix)).await;
}

/// A queue that somebody made otherwise is an error that says so, not a queue without its guarantees.
#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_refuses_queues_made_otherwise() {
    let Some(url) = server("rabbitmq_refuses_queues_made_otherwise", VARIABLE) else {
        return;
    };
    let prefix = unique("test-");
    let connection = Connection::connect(&url, ConnectionProperties::default())
        .await
        .unwrap();
    let channel = connection.create_channel().await.unwrap();
    let queue = format!("{prefix}.push");
    channel
        .queue_declare(
            queue.as_str().into(),
            QueueDeclareOptions::durable(),
            FieldTable::default(),
        )
        .await
        .unwrap();
    let options = RabbitOptions {
        login: None,
        url: url.clone(),
        prefix: prefix.clone(),
    };
    let body = async move {
        let Err(error) = connect(&options).await else {
            panic!("the queue is no quorum queue")
        };
        assert_eq!(error.code, ErrorCode::FailedPrecondition);
        assert!(error.detail.contains(&queue), "{}", error.detail);
    };
    guarded(body, delete_queues(&url, &prefix)).await;
}

/// Promise 8: a broker that isn't there is named, without the password.
#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_rabbitmq_is_named() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let options = RabbitOptions::new(format!("amqp://user:secret@{nobody}/%2f"));
    let Err(error) = connect(&options).await else {
        panic!("nobody listens there")
    };
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert!(
        error.detail.contains(&nobody.to_string()),
        "{}",
        error.detail
    );
    assert!(!format!("{error} {error:?} {options:?}").contains("secret"));
    let Err(error) = connect(&RabbitOptions::new("no url")).await else {
        panic!("that is no URL")
    };
    assert_eq!(error.code, ErrorCode::InvalidRequest);
}
