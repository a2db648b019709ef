//! The task of one partition: takes requests in order, decides them in batches, and appends each batch in one write.
//!
//! While a batch is being written the next one gathers, so that the write's cost is shared (group commit). After any failed
//! append the outcome is unknown: everything remembered of the partition is dropped and it is acquired anew. The same after a
//! room couldn't be opened, and when the epoch turns out to be over: it is proven before each batch, and for readers, whenever the
//! last proof is older than [`Shared::proof_lasts`]; and after a batch that appended nothing, before it is answered. So nothing is answered from memory for longer than that after another
//! replica took over, even if this one never noticed that it lost the partition and has it back.
//!
//! The task waits for stores only, never for a task of another partition: two would wait for each other.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use carillon_domain::{
    ClientMessageId, Clock, Error, ErrorCode, MessageId, ReplicaId, Result, RoomId, Sequence,
    UserId,
    event::{EventBody, RoomEvent, StoredMessage},
    partition::Partition,
    ports::{PeopleStore, RoomLog, RoomStore},
    room::{Room, Standing},
};
use carillon_telemetry::metrics::{self, HistogramVec, IntCounterVec};
use dashmap::DashMap;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument as _;

use crate::{
    decide::{self, Earlier, Facts, Intent, Outcome, Rules, Work},
    notify::Notifier,
    roster::Ownership,
    state::{OpenedRoom, RoomHandle, Tenure},
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
/// For how long it is remembered whether two people blocked each other: each message would cost a question otherwise.
const BLOCKS_LAST: Duration = Duration::from_secs(1);
/// Read marks of a room that are looked through at once.
const RECEIPTS: usize = 1000;
/// How many times that at most: a batch waits for it.
const RECEIPT_PAGES: usize = 5;
/// Rooms remembered per partition before all are forgotten (and opened again when needed).
const ROOMS_REMEMBERED: usize = 4096;

/// A request for a room.
pub enum Request {
    /// Change it.
    Write(Box<Write>),
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
    /// Who blocked whom.
    pub people: Arc<dyn PeopleStore>,
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
    /// How old the proof of an epoch may be when something is answered from memory.
    pub proof_lasts: Duration,
    /// Open rooms of all partitions, for readers: see [`Shared::open_room`].
    pub opened: DashMap<RoomId, RoomHandle>,
}

impl Shared {
    /// A room that is open and whose partition was ours a moment ago.
    pub fn open_room(&self, room: RoomId) -> Option<RoomHandle> {
        let handle = self.opened.get(&room)?.clone();
        handle
            .tenure
            .is_proven_within(self.proof_lasts)
            .then_some(handle)
    }

    /// Proves that at `since` or later nobody else had taken the room over. What is then read of it is not older than that.
    pub async fn prove(&self, handle: &OpenedRoom, since: Instant) -> Result<()> {
        let partition = Partition::of_room(handle.id());
        let ask = |epoch| {
            let log = self.log.clone();
            async move { log.check(partition, epoch).await }.boxed()
        };
        handle.tenure.prove_since(since, ask).await
    }

    /// Whether one of the two people of a direct room blocked the other (USER-05): as it was at most [`BLOCKS_LAST`] ago.
    pub async fn is_blocked(&self, room: &OpenedRoom) -> Result<bool> {
        let Some([one, other]) = room.room.pair else {
            return Ok(false);
        };
        if let Some(blocked) = room.now.lock().is_blocked(BLOCKS_LAST) {
            return Ok(blocked);
        }
        let asked = Instant::now();
        let blocked = !self.people.blocked_between(one, &[other]).await?.is_empty();
        room.now.lock().learn_blocked(asked, blocked);
        Ok(blocked)
    }

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
    pub fn enqueue(&self, room: RoomId, request: Request) -> Result<()> {
        let partition = Partition::of_room(room);
        let sender = self
            .tasks
            .entry(partition)
            .or_insert_with(|| {
                let (sender, requests) = mpsc::channel(WAITING);
                let task = Task {
                    partition,
                    shared: self.shared.clone(),
                    tenure: None,
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
    tenure: Option<Arc<Tenure>>,
    rooms: HashMap<RoomId, RoomHandle>,
}

/// What came of opening the rooms of a batch.
#[derive(Default)]
struct Opening {
    /// Rooms that can't be used, and why.
    failed: HashMap<RoomId, Error>,
    /// The epoch is over, or was used up by a room whose opening failed halfway.
    over: bool,
    /// Some log said `NotOwner`.
    superseded: bool,
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
                Request::Write(write) => {
                    let span = tracing::debug_span!(parent: &write.span, "message.flush", batch = tracing::field::Empty);
                    // Log lines need a trace all the same.
                    Some(if span.is_disabled() { write.span.clone() } else { span })
                }
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
        if let Some(tenure) = self.tenure.take() {
            tenure.end();
        }
        for room in self.rooms.drain() {
            self.shared.opened.remove(&room.0);
        }
    }

    async fn process(&mut self, batch: Vec<Request>) {
        let mut writes = Vec::with_capacity(batch.len());
        let mut opens = Vec::new();
        for request in batch {
            match request {
                Request::Write(write) => writes.push(*write),
                Request::Open { room, reply } => opens.push((room, reply)),
            }
        }
        let wanted: HashSet<RoomId> = writes
            .iter()
            .map(|write| write.room)
            .chain(opens.iter().map(|open| open.0))
            .collect();
        let opening = match self.open_rooms(&wanted).await {
            Ok(opening) => opening,
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
                None => Err(opening
                    .failed
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
        if opening.over {
            self.forget();
        } else if self.rooms.len() > ROOMS_REMEMBERED {
            for room in self.rooms.drain() {
                self.shared.opened.remove(&room.0);
            }
        }
    }

    /// The epoch, proven to be the partition's a moment ago; acquired if there is none, or no longer.
    async fn tenure(&mut self) -> Result<Arc<Tenure>> {
        if let Some(tenure) = self.tenure.clone() {
            if tenure.is_proven_within(self.shared.proof_lasts) {
                return Ok(tenure);
            }
            let asked = Instant::now();
            match self.shared.log.check(self.partition, tenure.epoch).await {
                Ok(()) => {
                    tenure.prove(asked);
                    return Ok(tenure);
                }
                Err(error) if error.code == ErrorCode::NotOwner => self.forget(),
                Err(error) => return Err(error),
            }
        }
        let asked = Instant::now();
        let acquired = self
            .shared
            .log
            .acquire(self.partition, &self.shared.replica)
            .await;
        TAKEOVERS
            .with_label_values(&[outcome_label(&acquired)])
            .inc();
        let tenure = Arc::new(Tenure::new(acquired?, asked));
        self.tenure = Some(tenure.clone());
        Ok(tenure)
    }

    /// Opens the rooms that aren't open, under an epoch that is the partition's.
    async fn open_rooms(&mut self, wanted: &HashSet<RoomId>) -> Result<Opening> {
        let tenure = self.tenure().await?;
        let opening = self.open_under(&tenure, wanted).await;
        if !opening.superseded {
            return Ok(opening);
        }
        // Somebody had the partition since the last proof, but by now it is to be ours again.
        self.forget();
        let tenure = self.tenure().await?;
        Ok(self.open_under(&tenure, wanted).await)
    }

    async fn open_under(&mut self, tenure: &Arc<Tenure>, wanted: &HashSet<RoomId>) -> Opening {
        let missing = wanted
            .iter()
            .copied()
            .filter(|room| !self.rooms.contains_key(room));
        let missing: Vec<RoomId> = missing.collect();
        let shared = &self.shared;
        let fixed = stream::iter(missing)
            .map(|room| async move { (room, shared.rooms.get(room).await) })
            .buffer_unordered(READS_AT_ONCE)
            .collect::<Vec<_>>()
            .await;
        let mut opening = Opening::default();
        let mut stored = Vec::new();
        for (room, fixed) in fixed {
            match fixed {
                Ok(Some(fixed)) => stored.push(fixed),
                Ok(None) => {
                    opening.failed.insert(room, Error::not_found("room"));
                }
                Err(error) => {
                    opening.failed.insert(room, error);
                }
            }
        }
        let opened = stream::iter(stored)
            .map(|fixed| async move {
                let opened = shared.log.open(fixed.id, tenure.epoch).await;
                (fixed, opened)
            })
            .buffer_unordered(READS_AT_ONCE)
            .collect::<Vec<_>>()
            .await;
        for (fixed, opened) in opened {
            let room = fixed.id;
            match opened {
                Ok(open) => {
                    let handle = Arc::new(OpenedRoom::new(fixed, open, tenure.clone()));
                    self.rooms.insert(room, handle.clone());
                    self.shared.opened.insert(room, handle);
                }
                Err(error) => {
                    // What is broken in one room (`Internal`) doesn't become whole under another epoch, and must not take the
                    // other rooms of the partition down again and again.
                    opening.over |= error.code != ErrorCode::Internal;
                    opening.superseded |= error.code == ErrorCode::NotOwner;
                    opening.failed.insert(room, error);
                }
            }
        }
        opening
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
        let mut refused = Vec::new();
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
                Err(error) => refused.push((write, error)),
            }
        }
        // A refusal too must know what was acknowledged before it was asked for, by whichever replica.
        let proven = match events.as_slice() {
            [] => self.prove().await,
            events => self.append(events).await,
        };
        if let Err(error) = proven {
            let waiting = waiting.into_iter().map(|(_, write, _, _)| write);
            for write in waiting.chain(refused.into_iter().map(|(write, _)| write)) {
                let _ = write.reply.send(Err(error.clone()));
            }
            return;
        }
        for (write, error) in refused {
            let _ = write.reply.send(Err(error));
        }
        // Readers see the events before anybody is told of them.
        let mut pairs = HashMap::new();
        for (room, _, range, _) in &waiting {
            let mut now = room.now.lock();
            for event in &events[range.clone()] {
                now.apply(event);
                if event.actor != UserId::PROBE {
                    EVENTS.with_label_values(&[kind_label(&event.body)]).inc();
                }
            }
            pairs.insert(room.id(), room.room.pair);
        }
        let mut answers = Vec::with_capacity(waiting.len());
        for (room, write, range, outcome) in waiting {
            if let Outcome::Sent(sent) = &outcome
                && !sent.duplicate
                && let Some(event) = events[range].first()
            {
                self.shared
                    .notifier
                    .push(room, event.clone(), write.traceparent, write.span);
            }
            answers.push((write.reply, outcome));
        }
        // Gateways first: a sender's socket then has its answer and its event at the same moment, as a rule.
        if !events.is_empty() {
            self.shared
                .notifier
                .committed(self.partition, events, |event| {
                    pairs.get(&event.room).copied().flatten()
                });
        }
        for (reply, outcome) in answers {
            // The caller may have gone; its retry will find the result.
            let _ = reply.send(Ok(outcome));
        }
    }

    /// Proves that the epoch is the partition's still, when nothing is appended that would.
    async fn prove(&mut self) -> Result<()> {
        let tenure = self
            .tenure
            .clone()
            .ok_or_else(|| Error::defect("a batch without an epoch"))?;
        let asked = Instant::now();
        match self.shared.log.check(self.partition, tenure.epoch).await {
            Ok(()) => {
                tenure.prove(asked);
                Ok(())
            }
            Err(error) => {
                if error.code == ErrorCode::NotOwner {
                    self.forget();
                }
                Err(error)
            }
        }
    }

    async fn append(&mut self, events: &[RoomEvent]) -> Result<()> {
        let tenure = self
            .tenure
            .clone()
            .ok_or_else(|| Error::defect("an append without an epoch"))?;
        let started = Instant::now();
        let span = tracing::debug_span!(
            "room_log.append",
            otel.kind = "internal",
            events = events.len()
        );
        let appended = self
            .shared
            .log
            .append(self.partition, tenure.epoch, events)
            .instrument(span)
            .await;
        FLUSHES
            .with_label_values(&[outcome_label(&appended)])
            .observe(started.elapsed().as_secs_f64());
        match &appended {
            // The log looked after the write, and so after it began.
            Ok(()) => tenure.prove(started),
            Err(error) => {
                tracing::warn!(%error, cause = error.cause_chain(), partition = self.partition.0, "an append failed; acquiring the partition anew");
                self.forget();
            }
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
        let mut ids: HashMap<(RoomId, UserId, ClientMessageId), Vec<(RoomId, Sequence)>> =
            HashMap::new();
        let mut targets: HashSet<(RoomId, MessageId)> = HashSet::new();
        for (room, write) in writes {
            rooms.entry(write.room).or_insert_with(|| room.clone());
            people.extend(
                decide::people(&room.room, write.actor, &write.intent)
                    .into_iter()
                    .map(|user| (write.room, user)),
            );
            match &write.intent {
                Intent::Send { draft, void, .. } => {
                    let key = (write.room, write.actor, draft.client_message_id.clone());
                    ids.entry(key).or_default().extend(void);
                }
                Intent::Edit { id, .. } | Intent::Delete { id } => {
                    targets.insert((write.room, *id));
                }
                _ => {}
            }
        }
        let rooms_of = |room| rooms.get(&room).cloned();
        let standings = all(people, |(room, user)| {
            let handle = rooms_of(room);
            async move {
                let standing = match &handle {
                    Some(handle) => standing_of(self.shared.rooms.as_ref(), handle, user).await?,
                    None => Standing::default(),
                };
                Ok((room, user, standing))
            }
        });
        let sent = all(ids, |((room, sender, id), void)| {
            let handle = rooms_of(room);
            async move {
                let earlier = match &handle {
                    Some(handle) => self.earlier(handle, sender, &id, &void).await?,
                    None => None,
                };
                Ok(earlier.map(|earlier| ((room, sender, id), earlier)))
            }
        });
        let targets = all(targets, |(room, id)| {
            let handle = rooms_of(room);
            async move {
                let stored = match &handle {
                    Some(handle) => stored_message(self.shared.log.as_ref(), handle, id).await?,
                    None => None,
                };
                Ok(stored.map(|stored| ((room, id), stored)))
            }
        });
        let handles: Vec<RoomHandle> = rooms.values().cloned().collect();
        let blocked = all(handles, |handle| async move {
            let blocked = self.shared.is_blocked(&handle).await?;
            Ok(blocked.then_some(handle.id()))
        });
        let (standings, sent, targets, blocked) =
            futures::try_join!(standings, sent, targets, blocked)?;
        let sent: HashMap<_, _> = sent.into_iter().flatten().collect();
        let targets: HashMap<_, _> = targets.into_iter().flatten().collect();
        let blocked: HashSet<RoomId> = blocked.into_iter().flatten().collect();
        let mut read_by_others = HashMap::new();
        for ((room, _), stored) in &targets {
            let sender = stored.sent.actor;
            let Some(handle) = rooms.get(room) else {
                continue;
            };
            let key = (*room, sender);
            let changes =
                |(_, write): &(RoomHandle, Write)| write.room == *room && write.actor == sender;
            if handle.now.lock().room.rules.edit_unread_only
                && !read_by_others.contains_key(&key)
                && writes.iter().any(changes)
            {
                let read = self.read_by_others(handle, sender).await?;
                read_by_others.insert(key, read);
            }
        }
        let mut by_room: HashMap<RoomId, HashMap<UserId, Standing>> = HashMap::new();
        for (room, user, standing) in standings {
            by_room.entry(room).or_default().insert(user, standing);
        }
        let works = rooms
            .into_iter()
            .map(|(id, handle)| {
                let people = by_room.remove(&id).unwrap_or_default();
                let now = handle.now.lock();
                let room = Room::clone(&now.room);
                let blocked = blocked.contains(&id);
                let work = Work::new(room, now.head, now.messages, now.deleted, people, blocked);
                (id, work)
            })
            .collect();
        let facts = Facts {
            sent,
            decided: HashMap::new(),
            targets,
            read_by_others,
        };
        Ok((works, facts))
    }

    /// How far anybody but one person has read a room; in one with very many readers, as if somebody had read all.
    async fn read_by_others(&self, room: &OpenedRoom, person: UserId) -> Result<Sequence> {
        let (head, mut furthest) = {
            let now = room.now.lock();
            (now.head, now.wrote_besides(person))
        };
        let mut after = None;
        for _ in 0..RECEIPT_PAGES {
            if furthest >= head {
                return Ok(furthest);
            }
            let page = self
                .shared
                .rooms
                .receipts(room.id(), after, RECEIPTS)
                .await?;
            for receipt in &page {
                if let (true, Some(read)) = (receipt.user != person, receipt.read) {
                    furthest = furthest.max(read.sequence);
                }
            }
            match page.last() {
                Some(last) if page.len() == RECEIPTS => after = Some(last.user),
                _ => return Ok(furthest),
            }
        }
        Ok(head)
    }

    /// What the log holds under a client message id. Entries of the index are candidates: one may belong to a write that never
    /// became part of any room. Those of other rooms are for their owners to check, except the ones that were: `void`.
    async fn earlier(
        &self,
        here: &RoomHandle,
        sender: UserId,
        id: &ClientMessageId,
        void: &[(RoomId, Sequence)],
    ) -> Result<Option<Earlier>> {
        let mut elsewhere = Vec::new();
        for (room, place) in self.shared.log.find_sent(sender, id).await? {
            if room != here.id() {
                if !void.contains(&(room, place)) {
                    elsewhere.push((room, place));
                }
                continue;
            }
            let kept = {
                let now = here.now.lock();
                now.floor.first..=now.head
            };
            if !kept.contains(&place) {
                continue;
            }
            let stored = self
                .shared
                .log
                .messages(room, &here.fences, place, place)
                .await?
                .pop();
            if let Some(stored) = stored.filter(|stored| is_send(&stored.sent, sender, id)) {
                return Ok(Some(Earlier::Here(stored)));
            }
        }
        Ok((!elsewhere.is_empty()).then_some(Earlier::Unsettled(elsewhere)))
    }
}

/// Whether an event is the message that this sender gave this id.
pub fn is_send(event: &RoomEvent, sender: UserId, id: &ClientMessageId) -> bool {
    event.actor == sender
        && matches!(&event.body, EventBody::Message { draft, .. } if draft.client_message_id == *id)
}

/// A person's standing, remembered or read.
pub async fn standing_of(
    rooms: &dyn RoomStore,
    room: &OpenedRoom,
    user: UserId,
) -> Result<Standing> {
    let at = {
        let now = room.now.lock();
        if let Some(standing) = now.standing(user) {
            return Ok(standing);
        }
        now.head
    };
    let standing = rooms.standing(room.id(), user).await?;
    let mut now = room.now.lock();
    // An event may have told more since.
    if let Some(known) = now.standing(user) {
        return Ok(known);
    }
    now.learn_standing(at, user, standing);
    Ok(standing)
}

/// Reads for all of `items`, some at once; for one alone, as most batches have it, without the bookkeeping of many.
async fn all<T, R, F: Future<Output = Result<R>>>(
    items: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator>,
    read: impl Fn(T) -> F,
) -> Result<Vec<R>> {
    let mut items = items.into_iter();
    if items.len() > 1 {
        let reads = stream::iter(items).map(read);
        return reads.buffer_unordered(READS_AT_ONCE).try_collect().await;
    }
    match items.next() {
        Some(item) => Ok(vec![read(item).await?]),
        None => Ok(Vec::new()),
    }
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
    let (floor, head) = {
        let now = room.now.lock();
        (now.floor.first, now.head)
    };
    if found != room.id() || place > head || place < floor {
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
        EventBody::Invited { .. } => "invited",
        EventBody::Banned { .. } => "banned",
        EventBody::Unbanned { .. } => "unbanned",
        EventBody::Muted { .. } => "muted",
        EventBody::Unmuted { .. } => "unmuted",
        EventBody::Changed { .. } => "changed",
        EventBody::RoomDeleted => "room_deleted",
    }
}
