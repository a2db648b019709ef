//! [`PushQueue`] (NOTIF-02). Needs a queue of its own: a shared server gives each run another name.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use carillon_domain::{
    MessageId, Result, RoomId, Sequence, UserId,
    ports::{JobHandler, JobOutcome, PushQueue},
    push::PushJob,
};
use futures::FutureExt;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};

/// How long anything may take on a slow server. Waiting ends as soon as it happened.
const PATIENCE: Duration = Duration::from_secs(30);

/// Every clause. The queue must be empty and nobody else's.
pub async fn all(queue: Arc<dyn PushQueue>) {
    a_job_is_handled_as_it_was_published(queue.clone()).await;
    jobs_wait_for_a_consumer(queue.clone()).await;
    no_more_are_handled_at_once_than_allowed(queue.clone()).await;
    each_job_goes_to_one_consumer(queue.clone()).await;
    a_retry_comes_again_after_its_delay(queue.clone()).await;
    stopping_finishes_what_is_under_way(queue.clone()).await;
    a_consumer_that_vanishes_leaves_its_jobs(queue.clone()).await;
    a_job_that_never_succeeds_is_put_aside(queue).await;
}

fn job() -> PushJob {
    let message = MessageId::new();
    PushJob {
        id: format!("{message}/0"),
        room: RoomId::new(),
        message,
        sequence: Sequence(7),
        sender: UserId::new(),
        title: "Zoë 👋".into(),
        body: "first line\nsecond".into(),
        recipients: (0..PushJob::MAX_RECIPIENTS)
            .map(|_| UserId::new())
            .collect(),
        mentions: Default::default(),
        direct: false,
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
    }
}

/// Tells each job, and waits for its outcome.
struct Asking(mpsc::UnboundedSender<(PushJob, oneshot::Sender<JobOutcome>)>);

#[async_trait]
impl JobHandler for Asking {
    async fn handle(&self, job: PushJob) -> JobOutcome {
        let (answer, outcome) = oneshot::channel();
        if self.0.send((job, answer)).is_err() {
            return JobOutcome::Retry(Duration::ZERO);
        }
        outcome.await.unwrap_or(JobOutcome::Retry(Duration::ZERO))
    }
}

/// A running consumer.
struct Consumer {
    jobs: mpsc::UnboundedReceiver<(PushJob, oneshot::Sender<JobOutcome>)>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<()>>,
}

impl Consumer {
    fn start(queue: &Arc<dyn PushQueue>, concurrency: usize) -> Self {
        let (sender, jobs) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let queue = queue.clone();
        let task = tokio::spawn(async move {
            let stop = stopped.map(drop).boxed();
            queue
                .consume(Arc::new(Asking(sender)), concurrency, stop)
                .await
        });
        Self { jobs, stop, task }
    }

    async fn next(&mut self) -> (PushJob, oneshot::Sender<JobOutcome>) {
        timeout(PATIENCE, self.jobs.recv())
            .await
            .expect("a job comes in time")
            .expect("the consumer runs")
    }

    async fn stop(self) {
        let _ = self.stop.send(());
        timeout(PATIENCE, self.task)
            .await
            .expect("a consumer that was stopped returns")
            .unwrap()
            .unwrap();
    }
}

/// Waits until the queue is as deep as expected: brokers count a little late.
async fn until_depth(queue: &dyn PushQueue, expected: (u64, u64)) {
    let reached = async {
        while queue.depth().await.unwrap() != expected {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if timeout(PATIENCE, reached).await.is_err() {
        let depth = queue.depth().await.unwrap();
        assert_eq!(depth, expected, "jobs waiting, and put aside");
    }
}

/// NOTIF-02: a job arrives with everything in it, and is gone when it's done.
pub async fn a_job_is_handled_as_it_was_published(queue: Arc<dyn PushQueue>) {
    let published = job();
    queue.publish(&published).await.unwrap();
    let mut consumer = Consumer::start(&queue, 4);
    let (received, answer) = consumer.next().await;
    assert!(received == published, "a job arrives as it was published");
    answer.send(JobOutcome::Done).unwrap();
    consumer.stop().await;
    until_depth(&*queue, (0, 0)).await;
}

/// NOTIF-02: what was confirmed waits for a consumer.
pub async fn jobs_wait_for_a_consumer(queue: Arc<dyn PushQueue>) {
    let mut published: Vec<_> = (0..5).map(|_| job()).collect();
    for job in &published {
        queue.publish(job).await.unwrap();
    }
    until_depth(&*queue, (5, 0)).await;
    let mut consumer = Consumer::start(&queue, 5);
    let mut received = Vec::new();
    for _ in 0..5 {
        let (job, answer) = consumer.next().await;
        received.push(job);
        answer.send(JobOutcome::Done).unwrap();
    }
    consumer.stop().await;
    let id = |job: &PushJob| job.id.clone();
    published.sort_by_key(id);
    received.sort_by_key(id);
    assert!(received == published, "each waiting job is handled once");
    until_depth(&*queue, (0, 0)).await;
}

/// NOTIF-02: `concurrency` bounds what is under way.
pub async fn no_more_are_handled_at_once_than_allowed(queue: Arc<dyn PushQueue>) {
    struct Counting {
        now: AtomicUsize,
        most: AtomicUsize,
        done: mpsc::UnboundedSender<()>,
    }
    #[async_trait]
    impl JobHandler for Counting {
        async fn handle(&self, _job: PushJob) -> JobOutcome {
            let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            // Long enough that a queue without the bound would begin the next one.
            tokio::time::sleep(Duration::from_millis(20)).await;
            self.now.fetch_sub(1, Ordering::SeqCst);
            let _ = self.done.send(());
            JobOutcome::Done
        }
    }
    for _ in 0..20 {
        queue.publish(&job()).await.unwrap();
    }
    let (done, mut dones) = mpsc::unbounded_channel();
    let handler = Arc::new(Counting {
        now: AtomicUsize::new(0),
        most: AtomicUsize::new(0),
        done,
    });
    let (stop, stopped) = oneshot::channel::<()>();
    let consuming = tokio::spawn({
        let (queue, handler) = (queue.clone(), handler.clone());
        async move { queue.consume(handler, 3, stopped.map(drop).boxed()).await }
    });
    for _ in 0..20 {
        let next = timeout(PATIENCE, dones.recv()).await;
        next.expect("every job is handled").unwrap();
    }
    stop.send(()).unwrap();
    consuming.await.unwrap().unwrap();
    let most = handler.most.load(Ordering::SeqCst);
    assert!(
        (2..=3).contains(&most),
        "3 at once are allowed, {most} were"
    );
    until_depth(&*queue, (0, 0)).await;
}

/// NOTIF-02: two consumers share the jobs; none is handled by both.
pub async fn each_job_goes_to_one_consumer(queue: Arc<dyn PushQueue>) {
    let mut consumers = [Consumer::start(&queue, 2), Consumer::start(&queue, 2)];
    for _ in 0..30 {
        queue.publish(&job()).await.unwrap();
    }
    let mut times = HashMap::new();
    let [first, second] = &mut consumers;
    for _ in 0..30 {
        let (job, answer) = tokio::select! {
            next = first.next() => next,
            next = second.next() => next,
        };
        *times.entry(job.id).or_insert(0) += 1;
        answer.send(JobOutcome::Done).unwrap();
    }
    assert_eq!(times.len(), 30, "each job went to one consumer, once");
    for consumer in consumers {
        consumer.stop().await;
    }
    until_depth(&*queue, (0, 0)).await;
}

/// NOTIF-02: retry with back-off.
pub async fn a_retry_comes_again_after_its_delay(queue: Arc<dyn PushQueue>) {
    let published = job();
    queue.publish(&published).await.unwrap();
    let mut consumer = Consumer::start(&queue, 1);
    let (_, answer) = consumer.next().await;
    let delay = Duration::from_millis(500);
    let began = std::time::Instant::now();
    answer.send(JobOutcome::Retry(delay)).unwrap();
    let (again, answer) = consumer.next().await;
    assert!(again == published, "the same job comes again");
    // Clocks of milliseconds may cut one.
    assert!(
        began.elapsed() + Duration::from_millis(5) >= delay,
        "not before its delay is over, but after {:?}",
        began.elapsed()
    );
    answer.send(JobOutcome::Done).unwrap();
    consumer.stop().await;
    until_depth(&*queue, (0, 0)).await;
}

/// NOTIF-02, OPS-02: a stop waits for what is under way, and takes its outcome.
pub async fn stopping_finishes_what_is_under_way(queue: Arc<dyn PushQueue>) {
    queue.publish(&job()).await.unwrap();
    let mut consumer = Consumer::start(&queue, 1);
    let (_, answer) = consumer.next().await;
    consumer.stop.send(()).unwrap();
    tokio::task::yield_now().await;
    assert!(!consumer.task.is_finished(), "a job is still under way");
    answer.send(JobOutcome::Done).unwrap();
    let returned = timeout(PATIENCE, consumer.task).await;
    returned
        .expect("a stopped consumer returns")
        .unwrap()
        .unwrap();
    until_depth(&*queue, (0, 0)).await;
}

/// NOTIF-02: a job without an outcome isn't lost with its consumer.
pub async fn a_consumer_that_vanishes_leaves_its_jobs(queue: Arc<dyn PushQueue>) {
    let published = job();
    queue.publish(&published).await.unwrap();
    let mut first = Consumer::start(&queue, 1);
    let (_, _never_answered) = first.next().await;
    first.task.abort();
    let _ = first.task.await;
    let mut second = Consumer::start(&queue, 1);
    let (again, answer) = second.next().await;
    assert!(again == published, "the job goes to another consumer");
    answer.send(JobOutcome::Done).unwrap();
    second.stop().await;
    until_depth(&*queue, (0, 0)).await;
}

/// NOTIF-02: after too many tries a job is dead-lettered, and the others go on.
pub async fn a_job_that_never_succeeds_is_put_aside(queue: Arc<dyn PushQueue>) {
    let (bad, good) = (job(), job());
    queue.publish(&bad).await.unwrap();
    let mut consumer = Consumer::start(&queue, 2);
    let mut tries = 0;
    let put_aside = until_depth(&*queue, (0, 1));
    tokio::pin!(put_aside);
    loop {
        tokio::select! {
            () = &mut put_aside => break,
            (_, answer) = consumer.next() => {
                tries += 1;
                assert!(tries <= 100, "a job isn't tried for ever");
                answer.send(JobOutcome::Retry(Duration::from_millis(10))).unwrap();
            }
        }
    }
    assert!(tries >= 2, "a job is tried again before it is put aside");
    queue.publish(&good).await.unwrap();
    let (next, answer) = consumer.next().await;
    assert!(next == good, "the next job comes through");
    answer.send(JobOutcome::Done).unwrap();
    consumer.stop().await;
    until_depth(&*queue, (0, 1)).await;
}
