//! The task of one partition: takes requests in order, decides them in batches, and appends each batch in one write.
//!
//! While a batch is being written the next one gathers, so that the write's cost is shared (group commit). After any failed
//! append the outcome is unknown: everything remembered of the partition is dropped and it is acquired anew.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, LazyLock},
};

use carillon_domain::{
    ClientMessageId, Clock, Error, ErrorCode, MessageId, ReplicaId, Result, RoomId, Sequence,
    UserId,
    event::{EventBody, RoomEvent, StoredMessage},
    partition::Partition,
    ports::{Epoch, RoomLog, RoomStore},
    room::Member,
    services::MessageService,
};
use carillon_telemetry::metrics::{self, HistogramVec, IntCounterVec};
use dashmap::DashMap;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument as _;

use crate::{
    decide::{self, Earlier, Facts, Intent, Outcome, Rules, Work},
    notify::Notifier,
    roster::Ownership,
    state::{OpenedRoom, RoomHandle},
};

static EVENTS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    metrics::int_counter(
        "carillon_message_events_total",
        "Events committed to room logs.",
        &["kind"],
    )
});
static FLUSHES: LazyLock<HistogramVec> = LazyLock::new(|| {
    metrics::histogram(
        "carillon_message_append_duration_seconds",
        "Time of one append of a batch to the log.",
        &["outcome"],
    )
});
static TAKEOVERS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    metrics::int_counter(
        "carillon_message_partition_acquisitions_total",
        "Partitions acquired by this replica.",
        &["outcome"],
    )
});

/// Requests that may wait for one partition.
const WAITING: usize = 2048;
/// Requests decided and written together.
/// (an event log takes at most 512 events of one room at once, and a request makes two at most).
const BATCH: usize = 256;
/// Store reads under way at once for one batch.
const READS_AT_ONCE: usize = 64;
/// Rooms remembered per partition before all are forgotten (and opened again when needed).
const ROOMS_REMEMBERED: usize = 4096;

/// A request for a room.
pub enum Request {
    /// Change it.
    Write(Write),
    /// Only open it, for a reader.
    Open {
        /// Which.
        room: RoomId,
        /// The open room.
        reply: oneshot::Sender<Result<RoomHandle>>,
    },
}

/// A change that somebody wants.
pub struct Write {
    /// Which room.
    pub room: RoomId,
    /// Who.
    pub actor: UserId,
    /// What.
    pub intent: Intent,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Result<Outcome>>,
    /// The request's span: its trace goes on through the write to the push.
    pub span: tracing::Span,
    /// The same as text, for the queue.
    pub traceparent: Option<String>,
}

/// What partition tasks share.
pub struct Shared {
    /// The log.
    pub log: Arc<dyn RoomLog>,
    /// Rooms and projections.
    pub rooms: Arc<dyn RoomStore>,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// Which partitions are ours.
    pub ownership: Arc<dyn Ownership>,
    /// Who we are.
    pub replica: ReplicaId,
    /// Hints after commits.
    pub notifier: Notifier,
    /// Rules of editing.
    pub rules: Rules,
    /// Open rooms of all partitions, for readers.
    pub opened: DashMap<RoomId, RoomHandle>,
}

impl Shared {
    /// `NotOwner` unless the room's partition is ours.
    pub fn check_owner(&self, room: RoomId) -> Result<()> {
        if self.ownership.owns(Partition::of_room(room)) {
            Ok(())
        } else {
            Err(Error::new(
                ErrorCode::NotOwner,
                "another replica owns this room, try again",
            ))
        }
    }
}

/// The tasks of this replica's partitions, each started when it is first needed. They end when this is dropped.
pub struct Partitions {
    /// What they share.
    pub shared: Arc<Shared>,
    tasks: DashMap<Partition, mpsc::Sender<Request>>,
}

impl Partitions {
    /// Without any task yet.
    pub fn new(shared: Shared) -> Self {
        Self {
            shared: Arc::new(shared),
            tasks: DashMap::new(),
        }
    }

    /// Hands a request to the room's partition. `Unavailable` when too many wait there.
    pub fn enqueue(
        &self,
        room: RoomId,
        peers: &Arc<dyn MessageService>,
        request: Request,
    ) -> Result<()> {
        let partition = Partition::of_room(room);
        let sender = self
            .tasks
            .entry(partition)
            .or_insert_with(|| {
                let (sender, requests) = mpsc::channel(WAITING);
                // Weak, since the peers may be the very service that holds this task's sender.
                let peers = Arc::downgrade(peers);
                let task = Task {
                    partition,
                    shared: self.shared.clone(),
                    peers,
                    epoch: None,
                    rooms: HashMap::new(),
                };
                tokio::spawn(task.run(requests));
                sender
            })
            .clone();
        sender.try_send(request).map_err(|_| {
            Error::new(
                ErrorCode::Unavailable,
                "too many requests wait for this room, try again",
            )
            .retry_after(std::time::Duration::from_secs(1))
        })
    }
}

struct Task {
    partition: Partition,
    shared: Arc<Shared>,
    peers: std::sync::Weak<dyn MessageService>,
    epoch: Option<Epoch>,
    rooms: HashMap<RoomId, RoomHandle>,
}

impl Task {
    async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut batch = Vec::with_capacity(BATCH);
        while requests.recv_many(&mut batch, BATCH).await > 0 {
            if !self.shared.ownership.owns(self.partition) {
                self.forget();
                let error = Error::new(
                    ErrorCode::NotOwner,
                    "another replica owns this room, try again",
                );
                for request in batch.drain(..) {
                    refuse(request, error.clone());
                }
                continue;
            }
            let span = batch.iter().find_map(|request| match request {
                Request::Write(write) => Some(tracing::info_span!(parent: &write.span, "message.flush", batch = tracing::field::Empty)),
                Request::Open { .. } => None,
            });
            let work = self.process(std::mem::take(&mut batch));
            match span {
                Some(span) => work.instrument(span).await,
                None => work.await,
            }
        }
    }

    /// Drops everything remembered; the next batch acquires the partition anew.
    fn forget(&mut self) {
        self.epoch = None;
        for room in self.rooms.drain() {
            self.shared.opened.remove(&room.0);
        }
    }

    async fn process(&mut self, batch: Vec<Request>) {
        let mut writes = Vec::with_capacity(batch.len());
        let mut opens = Vec::new();
        for request in batch {
            match request {
                Request::Write(write) => writes.push(write),
                Request::Open { room, reply } => opens.push((room, reply)),
            }
        }
        let wanted: HashSet<RoomId> = writes
            .iter()
            .map(|write| write.room)
            .chain(opens.iter().map(|open| open.0))
            .collect();
        let failed = match self.open_rooms(wanted).await {
            Ok(failed) => failed,
            Err(error) => {
                for write in writes {
                    let _ = write.reply.send(Err(error.clone()));
                }
                for (_, reply) in opens {
                    let _ = reply.send(Err(error.clone()));
                }
                return;
            }
        };
        let room_or_error =
            |rooms: &HashMap<RoomId, RoomHandle>, room: &RoomId| match rooms.get(room) {
                Some(handle) => Ok(handle.clone()),
                None => Err(failed
                    .get(room)
                    .cloned()
                    .unwrap_or_else(|| Error::not_found("room"))),
            };
        for (room, reply) in opens {
            let _ = reply.send(room_or_error(&self.rooms, &room));
        }
        let mut ready = Vec::with_capacity(writes.len());
        for write in writes {
            match room_or_error(&self.rooms, &write.room) {
                Ok(room) => ready.push((room, write)),
                Err(error) => {
                    let _ = write.reply.send(Err(error));
                }
            }
        }
        if !ready.is_empty() {
            self.write(ready).await;
        }
        if self.rooms.len() > ROOMS_REMEMBERED {
            for room in self.rooms.drain() {
                self.shared.opened.remove(&room.0);
            }
        }
    }

    /// Opens the rooms that aren't open; answers the errors of those that can't be.
    async fn open_rooms(&mut self, wanted: HashSet<RoomId>) -> Result<HashMap<RoomId, Error>> {
        let missing: Vec<RoomId> = wanted
            .into_iter()
            .filter(|room| !self.rooms.contains_key(room))
            .collect();
        if missing.is_empty() && self.epoch.is_some() {
            return Ok(HashMap::new());
        }
        let epoch = match self.epoch {
            Some(epoch) => epoch,
            None => {
                let acquired = self
                    .shared
                    .log
                    .acquire(self.partition, &self.shared.replica)
                    .await;
                TAKEOVERS
                    .with_label_values(&[outcome_label(&acquired)])
                    .inc();
                *self.epoch.insert(acquired?)
            }
        };
        let shared = &self.shared;
        let opened: Vec<(RoomId, Result<Option<OpenedRoom>>)> = stream::iter(missing)
            .map(|room| async move {
                let open = async {
                    match shared.rooms.get(room).await? {
                        Some(fixed) => Ok(Some(OpenedRoom::new(
                            fixed,
                            shared.log.open(room, epoch).await?,
                        ))),
                        None => Ok(None),
                    }
                };
                (room, open.await)
            })
            .buffer_unordered(READS_AT_ONCE)
            .collect()
            .await;
        let mut failed = HashMap::new();
        for (room, opened) in opened {
            match opened {
                Ok(Some(opened)) => {
                    let handle = Arc::new(opened);
                    self.rooms.insert(room, handle.clone());
                    self.shared.opened.insert(room, handle);
                }
                Ok(None) => {
                    failed.insert(room, Error::not_found("room"));
                }
                Err(error) => {
                    failed.insert(room, error);
                }
            }
        }
        Ok(failed)
    }

    async fn write(&mut self, writes: Vec<(RoomHandle, Write)>) {
        tracing::Span::current().record("batch", writes.len());
        let (mut works, mut facts) = match self.gather(&writes).await {
            Ok(gathered) => gathered,
            Err(error) => {
                for (_, write) in writes {
                    let _ = write.reply.send(Err(error.clone()));
                }
                return;
            }
        };
        let now = self.shared.clock.now();
        let mut events: Vec<RoomEvent> = Vec::with_capacity(writes.len());
        let mut waiting = Vec::with_capacity(writes.len());
        for (room, write) in writes {
            let Some(work) = works.get_mut(&write.room) else {
                continue;
            };
            let decided = decide::decide(
                work,
                &mut facts,
                self.shared.rules,
                write.actor,
                &write.intent,
                now,
                MessageId::new(),
            );
            match decided {
                Ok(decision) => {
                    let first = events.len();
                    events.extend(decision.events);
                    waiting.push((room, write, first..events.len(), decision.outcome));
                }
                Err(error) => {
                    let _ = write.reply.send(Err(error));
                }
            }
        }
        if !events.is_empty()
            && let Err(error) = self.append(&events).await
        {
            for (_, write, _, _) in waiting {
                let _ = write.reply.send(Err(error.clone()));
            }
            return;
        }
        // Readers see the events before anybody is told of them.
        let mut pairs = HashMap::new();
        for (room, _, range, _) in &waiting {
            let mut now = room.now.lock();
            for event in &events[range.clone()] {
                now.apply(event);
                EVENTS.with_label_values(&[kind_label(&event.body)]).inc();
            }
            pairs.insert(room.id(), room.room.pair);
        }
        for (room, write, range, outcome) in waiting {
            if let Outcome::Sent(sent) = &outcome
                && !sent.duplicate
                && let Some(event) = events[range].first()
            {
                self.shared
                    .notifier
                    .push(room, event.clone(), write.traceparent, write.span);
            }
            // The caller may have gone; its retry will find the result.
            let _ = write.reply.send(Ok(outcome));
        }
        for room in events
            .iter()
            .filter(|e| matches!(e.body, EventBody::RoomDeleted))
            .map(|e| e.room)
        {
            if let Err(error) = self.shared.rooms.mark_deleted(room, now).await {
                tracing::warn!(%error, cause = error.cause_chain(), "a deleted room stays in the public list until it is deleted again");
            }
        }
        if !events.is_empty() {
            self.shared
                .notifier
                .committed(self.partition, events, |room| {
                    pairs.get(&room).copied().flatten()
                })
                .await;
        }
    }

    async fn append(&mut self, events: &[RoomEvent]) -> Result<()> {
        let epoch = self
            .epoch
            .ok_or_else(|| Error::defect("an append without an epoch"))?;
        let started = std::time::Instant::now();
        let span = tracing::info_span!(
            "room_log.append",
            otel.kind = "internal",
            events = events.len()
        );
        let appended = self
            .shared
            .log
            .append(self.partition, epoch, events)
            .instrument(span)
            .await;
        FLUSHES
            .with_label_values(&[outcome_label(&appended)])
            .observe(started.elapsed().as_secs_f64());
        if let Err(error) = &appended {
            tracing::warn!(%error, cause = error.cause_chain(), partition = self.partition.0, "an append failed; acquiring the partition anew");
            self.forget();
        }
        // Whatever the log says, nothing was acknowledged: the client may retry with the same ids.
        appended.map_err(|error| match error.code {
            ErrorCode::NotOwner | ErrorCode::Internal => error,
            _ => Error::new(
                ErrorCode::Unavailable,
                "the message store did not answer in time, try again with the same ids",
            )
            .caused_by(error),
        })
    }

    /// Reads what the batch's decisions need.
    async fn gather(
        &self,
        writes: &[(RoomHandle, Write)],
    ) -> Result<(HashMap<RoomId, Work>, Facts)> {
        let mut rooms: HashMap<RoomId, RoomHandle> = HashMap::new();
        let mut people: HashSet<(RoomId, UserId)> = HashSet::new();
        let mut ids: HashMap<(UserId, ClientMessageId), RoomId> = HashMap::new();
        let mut targets: HashSet<(RoomId, MessageId)> = HashSet::new();
        for (room, write) in writes {
            rooms.entry(write.room).or_insert_with(|| room.clone());
            people.extend(
                decide::people(&room.room, write.actor, &write.intent)
                    .into_iter()
                    .map(|user| (write.room, user)),
            );
            match &write.intent {
                Intent::Send(draft) => {
                    ids.insert((write.actor, draft.client_message_id.clone()), write.room);
                }
                Intent::Edit { id, .. } | Intent::Delete { id } => {
                    targets.insert((write.room, *id));
                }
                _ => {}
            }
        }
        let members = async {
            stream::iter(people)
                .map(|(room, user)| {
                    let handle = rooms.get(&room).cloned();
                    async move {
                        let member = match &handle {
                            Some(handle) => {
                                member_of(self.shared.rooms.as_ref(), handle, user).await?
                            }
                            None => None,
                        };
                        Ok::<_, Error>((room, user, member))
                    }
                })
                .buffer_unordered(READS_AT_ONCE)
                .try_collect::<Vec<_>>()
                .await
        };
        let sent = async {
            stream::iter(ids)
                .map(|((sender, id), room)| {
                    let handle = rooms.get(&room).cloned();
                    async move {
                        let earlier = self.earlier(handle, sender, &id).await?;
                        Ok::<_, Error>(((sender, id), earlier))
                    }
                })
                .buffer_unordered(READS_AT_ONCE)
                .try_filter_map(|(key, earlier)| async move {
                    Ok(earlier.map(|earlier| (key, earlier)))
                })
                .try_collect::<HashMap<_, _>>()
                .await
        };
        let targets = async {
            stream::iter(targets)
                .map(|(room, id)| {
                    let handle = rooms.get(&room).cloned();
                    async move {
                        let stored = match &handle {
                            Some(handle) => {
                                stored_message(self.shared.log.as_ref(), handle, id).await?
                            }
                            None => None,
                        };
                        Ok::<_, Error>(((room, id), stored))
                    }
                })
                .buffer_unordered(READS_AT_ONCE)
                .try_filter_map(
                    |(key, stored)| async move { Ok(stored.map(|stored| (key, stored))) },
                )
                .try_collect::<HashMap<_, _>>()
                .await
        };
        let (members, sent, targets) = futures::try_join!(members, sent, targets)?;
        let mut by_room: HashMap<RoomId, HashMap<UserId, Option<Member>>> = HashMap::new();
        for (room, user, member) in members {
            by_room.entry(room).or_default().insert(user, member);
        }
        let works = rooms
            .into_iter()
            .map(|(id, handle)| {
                let members = by_room.remove(&id).unwrap_or_default();
                let now = handle.now.lock();
                (
                    id,
                    Work::new(
                        handle.room.clone(),
                        now.head,
                        now.messages,
                        now.deleted,
                        members,
                    ),
                )
            })
            .collect();
        Ok((works, Facts { sent, targets }))
    }

    /// What the log holds under a client message id. Entries of the index are candidates: one may belong to a write that never
    /// became part of any room.
    async fn earlier(
        &self,
        here: Option<RoomHandle>,
        sender: UserId,
        id: &ClientMessageId,
    ) -> Result<Option<Earlier>> {
        let Some(here) = here else { return Ok(None) };
        let matches = |event: &RoomEvent| {
            event.actor == sender
                && matches!(&event.body, EventBody::Message { draft, .. } if draft.client_message_id == *id)
        };
        let mut elsewhere = false;
        for (room, place) in self.shared.log.find_sent(sender, id).await? {
            if room == here.id() {
                let head = here.now.lock().head;
                if place > head {
                    continue;
                }
                let stored = self
                    .shared
                    .log
                    .messages(room, &here.fences, place, place)
                    .await?
                    .pop();
                if let Some(stored) = stored.filter(|stored| matches(&stored.sent)) {
                    return Ok(Some(Earlier::Here(stored)));
                }
            } else if !elsewhere {
                let peers = self
                    .peers
                    .upgrade()
                    .ok_or_else(|| Error::new(ErrorCode::Unavailable, "shutting down"))?;
                let after = Sequence(place.0.saturating_sub(1));
                match peers.tail(room, after, 1).await {
                    // A deleted message's content is left out of the tail, its ids are not.
                    Ok(page) => {
                        elsewhere = page
                            .events
                            .first()
                            .is_some_and(|event| event.sequence == place && matches(event))
                    }
                    Err(error) if error.code == ErrorCode::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(elsewhere.then_some(Earlier::Elsewhere))
    }
}

/// A membership, remembered or read.
pub async fn member_of(
    rooms: &dyn RoomStore,
    room: &OpenedRoom,
    user: UserId,
) -> Result<Option<Member>> {
    if let Some(member) = room.now.lock().member(user) {
        return Ok(member);
    }
    let member = rooms.member(room.id(), user).await?;
    let mut now = room.now.lock();
    now.learn_member(user, member);
    Ok(now.member(user).flatten())
}

/// A message of an open room with its changes.
pub async fn stored_message(
    log: &dyn RoomLog,
    room: &OpenedRoom,
    id: MessageId,
) -> Result<Option<StoredMessage>> {
    let Some((found, place)) = log.find_message(id).await? else {
        return Ok(None);
    };
    let head = room.now.lock().head;
    if found != room.id() || place > head {
        return Ok(None);
    }
    let stored = log.messages(found, &room.fences, place, place).await?.pop();
    Ok(stored
        .filter(|stored| matches!(stored.sent.body, EventBody::Message { id: stored, .. } if stored == id))
        .map(|stored| stored.up_to(head)))
}

fn refuse(request: Request, error: Error) {
    match request {
        Request::Write(write) => {
            let _ = write.reply.send(Err(error));
        }
        Request::Open { reply, .. } => {
            let _ = reply.send(Err(error));
        }
    }
}

fn outcome_label<T>(result: &Result<T>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(error) => error.code.as_str(),
    }
}

fn kind_label(body: &EventBody) -> &'static str {
    match body {
        EventBody::Message { .. } => "message",
        EventBody::Edited { .. } => "edited",
        EventBody::Deleted { .. } => "deleted",
        EventBody::Joined { .. } => "joined",
        EventBody::Left { .. } => "left",
        EventBody::RoomDeleted => "room_deleted",
    }
}
