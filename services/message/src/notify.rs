//! What happens after a commit: signals to gateways, and push jobs for members without a live device.
//!
//! Both are hints that may be lost with this process; the log is the truth. They are handed to one task through a bounded
//! queue, so that no sender waits for the bus or the queue; what doesn't fit is counted and dropped.

use std::sync::{Arc, LazyLock};

use carillon_domain::{
    Result, RoomId, UserId,
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

use crate::state::{FEW_MEMBERS, RoomHandle};

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
        "Push jobs handed to the queue.",
        &["outcome"],
    )
});

/// Commits that may wait for their push jobs.
const WAITING: usize = 4096;
/// Characters of a message that a push shows.
const PREVIEW_CHARS: usize = 160;

/// A committed message that somebody may have to be told of.
struct Committed {
    room: RoomHandle,
    event: RoomEvent,
    traceparent: Option<String>,
    span: tracing::Span,
}

/// Where hints go.
#[derive(Clone)]
pub struct Notifier {
    bus: Arc<dyn Bus>,
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
    /// Starts the task that makes push jobs; it ends with the last handle.
    pub fn start(bus: Arc<dyn Bus>, ports: PushPorts) -> Self {
        let (pushes, waiting) = mpsc::channel(WAITING);
        tokio::spawn(make_jobs(waiting, Arc::new(ports)));
        Self { bus, pushes }
    }

    /// Tells gateways of committed events of one partition.
    pub async fn committed(
        &self,
        partition: Partition,
        events: Vec<RoomEvent>,
        pair_of: impl Fn(RoomId) -> Option<[UserId; 2]>,
    ) {
        let mut addressed = Vec::new();
        for event in &events {
            match event.body {
                EventBody::Joined { user, .. } => {
                    let peer = pair_of(event.room)
                        .and_then(|pair| pair.into_iter().find(|other| *other != user));
                    addressed.push((
                        user,
                        Signal::RoomAdded {
                            user,
                            room: event.room,
                            direct_with: peer,
                        },
                    ));
                }
                EventBody::Left { user } => addressed.push((
                    user,
                    Signal::RoomRemoved {
                        user,
                        room: event.room,
                    },
                )),
                _ => {}
            }
        }
        self.publish(Topic::Rooms(partition), &Signal::Events { events })
            .await;
        for (user, signal) in addressed {
            self.publish(Topic::of_user(user), &signal).await;
        }
    }

    /// Sends one signal; a failure is counted, not reported: it is a hint.
    pub async fn publish(&self, topic: Topic, signal: &Signal) {
        let sent = match signal.encode() {
            Ok(payload) => self.bus.publish(topic, payload).await,
            Err(error) => Err(error),
        };
        if let Err(error) = sent {
            DROPPED
                .with_label_values(&["signal", error.code.as_str()])
                .inc();
            tracing::debug!(%error, cause = error.cause_chain(), "a signal was not published");
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

async fn make_jobs(mut waiting: mpsc::Receiver<Committed>, ports: Arc<PushPorts>) {
    // Several at once, since each waits for presence and the queue's confirmation.
    let slots = Arc::new(tokio::sync::Semaphore::new(64));
    while let Some(committed) = waiting.recv().await {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let ports = ports.clone();
        let span = committed.span.clone();
        tokio::spawn(
            async move {
                if let Err(error) = make_jobs_of(&ports, committed).await {
                    JOBS.with_label_values(&[error.code.as_str()]).inc();
                    tracing::warn!(%error, cause = error.cause_chain(), "a push job was not queued");
                }
                drop(slot);
            }
            .instrument(span),
        );
    }
}

async fn make_jobs_of(ports: &PushPorts, committed: Committed) -> Result<()> {
    let EventBody::Message { id, draft } = &committed.event.body else {
        return Ok(());
    };
    let sender = committed.event.actor;
    let Some(members) = few_members(ports, &committed.room).await? else {
        return Ok(());
    };
    let others: Vec<UserId> = members
        .iter()
        .copied()
        .filter(|user| *user != sender)
        .collect();
    if others.is_empty() {
        return Ok(());
    }
    // Without an answer everybody counts as offline: a needless push is better than a missing one.
    let offline: Vec<UserId> = match ports.presence.get(&others).await {
        Ok(states) => states
            .into_iter()
            .filter(|p| p.state == PresenceState::Offline)
            .map(|p| p.user)
            .collect(),
        Err(error) => {
            tracing::debug!(%error, "presence does not answer; pushing to every member");
            others
        }
    };
    if offline.is_empty() {
        return Ok(());
    }
    let title = ports
        .accounts
        .by_ids(&[sender])
        .await?
        .pop()
        .map(|account| account.user.display_name)
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
            traceparent: committed.traceparent.clone(),
        };
        ports.queue.publish(&job).await?;
        JOBS.with_label_values(&["queued"]).inc();
    }
    Ok(())
}

/// Everybody in the room, or `None` if they are too many to be pushed for every message.
async fn few_members(ports: &PushPorts, room: &RoomHandle) -> Result<Option<Arc<Vec<UserId>>>> {
    let head = {
        let now = room.now.lock();
        if let Some(users) = now.everybody() {
            return Ok(Some(users));
        }
        now.head
    };
    let members = ports.rooms.members(room.id(), None, FEW_MEMBERS).await?;
    if members.len() == FEW_MEMBERS {
        return Ok(None);
    }
    let users: Arc<Vec<UserId>> = Arc::new(members.into_iter().map(|member| member.user).collect());
    room.now.lock().learn_everybody(head, users.clone());
    Ok(Some(users))
}
