//! What happens after a commit: signals to gateways, and push jobs for members without a live device.
//!
//! Both are hints that may be lost with this process; the log is the truth. They are handed to tasks through bounded queues, so
//! that neither a sender nor a partition waits for the bus or the push queue; what doesn't fit is counted and dropped. All
//! signals of one partition go through one task, so that they keep their order.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
    time::Duration,
};

use carillon_domain::{
    Error, ErrorCode, Result, RoomId, UserId,
    event::{EventBody, MessageType, RoomEvent},
    partition::Partition,
    ports::{AccountStore, Bus, PushQueue, RoomStore},
    presence::PresenceState,
    push::PushJob,
    services::PresenceService,
    signal::{Signal, Topic},
};
use carillon_telemetry::metrics::{self, IntCounterVec};
use tokio::sync::mpsc;
use tracing::Instrument as _;

use crate::state::{Everybody, FEW_MEMBERS, RoomHandle};

static DROPPED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    metrics::int_counter(
        "carillon_message_hints_dropped_total",
        "Signals and push jobs that were dropped.",
        &["kind", "reason"],
    )
});
static JOBS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    metrics::int_counter(
        "carillon_message_push_jobs_total",
        "Push jobs of committed messages, by outcome: queued, unneeded as nobody was offline, or an error's code.",
        &["outcome"],
    )
});

/// Commits that may wait for their push jobs.
const WAITING: usize = 4096;
/// Commits looked at together: those of one room ask once who is there.
const TOGETHER: usize = 256;
/// Tasks that publish, each for its share of the partitions: one alone would wait for each answer of the bus in turn.
const LANES: u16 = 16;
/// Commits of one lane that may wait for the bus.
const SIGNALS_WAITING: usize = 256;
/// How long a push job is tried again while the queue, or a store, is away.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pauses between the tries: doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Characters of a message that a push shows.
const PREVIEW_CHARS: usize = 160;

/// A committed message that somebody may have to be told of.
struct Committed {
    room: RoomHandle,
    event: RoomEvent,
    traceparent: Option<String>,
    span: tracing::Span,
}

/// Signals that follow each other on the bus, and the span that they belong to.
struct Told {
    signals: Vec<(Topic, Signal)>,
    span: tracing::Span,
}

/// Where hints go.
#[derive(Clone)]
pub struct Notifier {
    lanes: Arc<[mpsc::Sender<Told>]>,
    pushes: mpsc::Sender<Committed>,
}

/// What the push side needs.
pub struct PushPorts {
    /// For the sender's shown name.
    pub accounts: Arc<dyn AccountStore>,
    /// For the members.
    pub rooms: Arc<dyn RoomStore>,
    /// For who is offline.
    pub presence: Arc<dyn PresenceService>,
    /// Where jobs go.
    pub queue: Arc<dyn PushQueue>,
}

impl Notifier {
    /// Starts the tasks that publish signals and make push jobs; they end with the last handle.
    pub fn start(bus: Arc<dyn Bus>, ports: PushPorts) -> Self {
        for kind in ["signal", "push"] {
            DROPPED.with_label_values(&[kind, "full"]);
        }
        for outcome in ["queued", "unneeded", ErrorCode::Unavailable.as_str()] {
            JOBS.with_label_values(&[outcome]);
        }
        let (pushes, waiting) = mpsc::channel(WAITING);
        tokio::spawn(make_jobs(waiting, Arc::new(ports)));
        let lane = |_| {
            let (lane, waiting) = mpsc::channel(SIGNALS_WAITING);
            tokio::spawn(publish_all(waiting, bus.clone()));
            lane
        };
        Self {
            lanes: (0..LANES).map(lane).collect(),
            pushes,
        }
    }

    /// Tells gateways of committed events of one partition: each with the two people of its room, if it is a direct one.
    pub fn committed(
        &self,
        partition: Partition,
        events: Vec<RoomEvent>,
        pair_of: impl Fn(&RoomEvent) -> Option<[UserId; 2]>,
    ) {
        let mut addressed = Vec::new();
        for event in &events {
            if let Some(user) = event.body.removes() {
                let signal = Signal::RoomRemoved {
                    user,
                    room: event.room,
                };
                addressed.push((Topic::of_user(user), signal));
            }
            match event.body {
                EventBody::Joined { user, .. } => {
                    let peer = pair_of(event)
                        .and_then(|pair| pair.into_iter().find(|other| *other != user));
                    let signal = Signal::RoomAdded {
                        user,
                        room: event.room,
                        direct_with: peer,
                    };
                    addressed.push((Topic::of_user(user), signal));
                }
                EventBody::Invited { user } => {
                    let signal = Signal::Invited {
                        user,
                        room: event.room,
                        by: event.actor,
                    };
                    addressed.push((Topic::of_user(user), signal));
                }
                _ => {}
            }
        }
        let mut signals = vec![(Topic::Rooms(partition), Signal::Events { events })];
        signals.append(&mut addressed);
        self.tell(partition, signals);
    }

    /// Sends one signal about a room, after those of its partition that were sent before.
    pub fn publish(&self, room: RoomId, signal: Signal) {
        let partition = Partition::of_room(room);
        self.tell(partition, vec![(Topic::Rooms(partition), signal)]);
    }

    fn tell(&self, partition: Partition, signals: Vec<(Topic, Signal)>) {
        let count = signals.len();
        let told = Told {
            signals,
            span: tracing::Span::current(),
        };
        let lane = self.lanes.get(usize::from(partition.0 % LANES));
        if lane.is_none_or(|lane| lane.try_send(told).is_err()) {
            DROPPED
                .with_label_values(&["signal", "full"])
                .inc_by(count as u64);
        }
    }

    /// Queues the push jobs of a committed message.
    pub fn push(
        &self,
        room: RoomHandle,
        event: RoomEvent,
        traceparent: Option<String>,
        span: tracing::Span,
    ) {
        if self
            .pushes
            .try_send(Committed {
                room,
                event,
                traceparent,
                span,
            })
            .is_err()
        {
            DROPPED.with_label_values(&["push", "full"]).inc();
        }
    }
}

async fn publish_all(mut waiting: mpsc::Receiver<Told>, bus: Arc<dyn Bus>) {
    while let Some(told) = waiting.recv().await {
        let publish = async {
            for (topic, signal) in &told.signals {
                let sent = match signal.encode() {
                    Ok(payload) => bus.publish(*topic, payload).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = sent {
                    DROPPED
                        .with_label_values(&["signal", error.code.as_str()])
                        .inc();
                    tracing::debug!(%error, cause = error.cause_chain(), "a signal was not published");
                }
            }
        };
        publish.instrument(told.span.clone()).await;
    }
}

async fn make_jobs(mut waiting: mpsc::Receiver<Committed>, ports: Arc<PushPorts>) {
    // Several at once, since each waits for presence and the queue's confirmation.
    let slots = Arc::new(tokio::sync::Semaphore::new(64));
    let mut batch = Vec::with_capacity(TOGETHER);
    while waiting.recv_many(&mut batch, TOGETHER).await > 0 {
        for (_, commits) in by_room(batch.drain(..)) {
            let Ok(slot) = slots.clone().acquire_owned().await else {
                return;
            };
            let ports = ports.clone();
            tokio::spawn(async move {
                make_jobs_of(&ports, commits).await;
                drop(slot);
            });
        }
    }
}

/// In each room in their order.
fn by_room(commits: impl Iterator<Item = Committed>) -> HashMap<RoomId, Vec<Committed>> {
    let mut rooms: HashMap<RoomId, Vec<Committed>> = HashMap::new();
    for committed in commits {
        rooms
            .entry(committed.room.id())
            .or_default()
            .push(committed);
    }
    rooms
}

/// Jobs of commits of one room.
async fn make_jobs_of(ports: &PushPorts, commits: Vec<Committed>) {
    let Some(first) = commits.first() else {
        return;
    };
    let offline = offline_members(ports, &first.room)
        .instrument(first.span.clone())
        .await;
    let failed = |error: Error| {
        JOBS.with_label_values(&[error.code.as_str()]).inc();
        tracing::warn!(%error, cause = error.cause_chain(), "a push job was not queued");
    };
    let offline = match offline {
        Ok(Some(offline)) => offline,
        Ok(None) => return,
        Err(error) => {
            for committed in &commits {
                committed.span.in_scope(|| failed(Error::clone(&error)));
            }
            return;
        }
    };
    // At once: while the queue is away each waits for its minute, and not for the minutes of those before it.
    let pushes = commits.into_iter().map(|committed| {
        let span = committed.span.clone();
        async {
            if let Err(error) = push(ports, committed, &offline).await {
                failed(error);
            }
        }
        .instrument(span)
    });
    futures::future::join_all(pushes).await;
}

/// Members without a live device, as of now; `None` if a message is no reason to push in this room.
async fn offline_members(ports: &PushPorts, room: &RoomHandle) -> Result<Option<Vec<UserId>>> {
    let members = match patiently(|| everybody(ports, room)).await? {
        Everybody::Few(members) => members,
        Everybody::Many => return Ok(None),
    };
    // Without an answer everybody counts as offline: a needless push is better than a missing one.
    match ports.presence.get(&members).await {
        Ok(states) => Ok(Some(
            states
                .into_iter()
                .filter(|p| p.state == PresenceState::Offline)
                .map(|p| p.user)
                .collect(),
        )),
        Err(error) => {
            tracing::debug!(%error, "presence does not answer; pushing to every member");
            Ok(Some(members.to_vec()))
        }
    }
}

async fn push(ports: &PushPorts, committed: Committed, offline: &[UserId]) -> Result<()> {
    let EventBody::Message {
        id,
        draft,
        mentions,
    } = &committed.event.body
    else {
        return Ok(());
    };
    let sender = committed.event.actor;
    let offline: Vec<UserId> = offline
        .iter()
        .copied()
        .filter(|user| *user != sender)
        .collect();
    if offline.is_empty() {
        JOBS.with_label_values(&["unneeded"]).inc();
        return Ok(());
    }
    // A push without a name is better than none.
    let title = match ports.accounts.by_ids(&[sender]).await {
        Ok(mut accounts) => accounts.pop().map(|account| account.user.display_name),
        Err(error) => {
            tracing::debug!(%error, "the sender's name can't be read");
            None
        }
    }
    .unwrap_or_default();
    let body = match draft.message_type {
        MessageType::Text | MessageType::System => {
            draft.content.chars().take(PREVIEW_CHARS).collect()
        }
        other => format!("[{}]", other.as_str()),
    };
    for (chunk, recipients) in offline.chunks(PushJob::MAX_RECIPIENTS).enumerate() {
        let job = PushJob {
            id: format!("{id}/{chunk}"),
            room: committed.event.room,
            message: *id,
            sequence: committed.event.sequence,
            sender,
            title: title.clone(),
            body: String::clone(&body),
            recipients: recipients.to_vec(),
            mentions: mentions.clone(),
            direct: committed.room.room.pair.is_some(),
            traceparent: committed.traceparent.clone(),
        };
        patiently(|| ports.queue.publish(&job)).await?;
        JOBS.with_label_values(&["queued"]).inc();
    }
    Ok(())
}

/// Tries again while a store or the queue is away: restarts and elections take seconds. The caller keeps its slot meanwhile, so what
/// waits is bounded as ever.
async fn patiently<T, F: Future<Output = Result<T>>>(mut step: impl FnMut() -> F) -> Result<T> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut pause = FIRST_PAUSE;
    loop {
        match step().await {
            Err(error)
                if matches!(
                    error.code,
                    ErrorCode::Unavailable | ErrorCode::DeadlineExceeded
                ) && tokio::time::Instant::now() + pause < deadline =>
            {
                tracing::debug!(%error, cause = error.cause_chain(), "a push job waits");
            }
            outcome => return outcome,
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Everybody in the room, unless they are too many to be pushed for every message.
async fn everybody(ports: &PushPorts, room: &RoomHandle) -> Result<Everybody> {
    let head = {
        let now = room.now.lock();
        if let Some(everybody) = now.everybody() {
            return Ok(everybody);
        }
        now.head
    };
    let members = ports.rooms.members(room.id(), None, FEW_MEMBERS).await?;
    let everybody = if members.len() == FEW_MEMBERS {
        Everybody::Many
    } else {
        Everybody::Few(Arc::new(
            members.into_iter().map(|member| member.user).collect(),
        ))
    };
    room.now.lock().learn_everybody(head, everybody.clone());
    Ok(everybody)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NOTIF-02: a queue that is away for a moment costs no push; what can't succeed isn't tried again.
    #[tokio::test]
    async fn a_push_job_waits_for_the_queue() {
        let mut tries = 0;
        let outcome = patiently(|| {
            tries += 1;
            let away = tries < 3;
            async move {
                if away {
                    return Err(Error::new(ErrorCode::Unavailable, "rabbitmq"));
                }
                Ok(())
            }
        });
        outcome.await.unwrap();
        assert_eq!(tries, 3);
        let mut tries = 0;
        let outcome: Result<()> = patiently(|| {
            tries += 1;
            async { Err(Error::defect("broken")) }
        })
        .await;
        assert_eq!(outcome.unwrap_err().code, ErrorCode::Internal);
        assert_eq!(tries, 1);
    }
}
