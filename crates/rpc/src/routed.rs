//! Finds the message replica that owns a room.
//!
//! The view of live replicas is a hint: an owner that isn't one any more answers `NotOwner`, and the call is routed again by a
//! fresh view until a total deadline. Owning is decided elsewhere (epochs in the store); nothing is decided here.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use carillon_domain::{
    Error, ErrorCode, MessageId, ReplicaId, Result, RoomId, Sequence, UserId,
    event::{Draft, Message, Revision},
    partition::{Partition, preferred_owner},
    ports::{Reached, ReadMark, Receipt, Replica, ReplicaRegistry, Restricted},
    room::{Member, Role, Room},
    services::{
        EventPage, HistoryQuery, MessageService, NewRoom, ResolvedRoom, Restriction, RoomChange,
        RoomHead, RoomOverview, RoomSummary, RoomView, SendOutcome,
    },
    signal::Activity,
};
use carillon_telemetry::metrics::{self, IntCounterVec};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    Credentials, MessageClient,
    status::{deadline_exceeded, is_transport, is_unsent},
    values::CALL_DEADLINE,
};

/// Least time between two looks at the registry: many calls fail at once when a replica goes.
const MIN_REFRESH_GAP: Duration = Duration::from_millis(20);
/// How long an answer is waited for after its replica has gone: one that withdrew ends what it began.
const GONE_PATIENCE: Duration = Duration::from_millis(500);
/// First and longest pause between two tries.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

static REROUTES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    metrics::int_counter(
        "carillon_rpc_reroutes_total",
        "Calls to message replicas that were routed again, by why.",
        &["reason"],
    )
});

/// How calls are routed.
#[derive(Clone, Debug)]
pub struct RoutedOptions {
    /// The role under which message replicas announce themselves. Default `message`.
    pub role: String,
    /// How often the registry is asked. Default 500 ms.
    pub refresh: Duration,
    /// How long one try may take. Default 5 s.
    pub call_deadline: Duration,
    /// How long all tries together may take. Default 8 s.
    pub total_deadline: Duration,
}

impl Default for RoutedOptions {
    fn default() -> Self {
        Self {
            role: "message".into(),
            refresh: Duration::from_millis(500),
            call_deadline: CALL_DEADLINE,
            total_deadline: Duration::from_secs(8),
        }
    }
}

/// A `MessageService` over the live message replicas. Calls about a room go to the replica that should own it, others to any in turn.
/// After `NotOwner`, a failure of the connection, or the end of a silent replica's lease the call is tried again, with a pause of 20 ms doubling to 500 ms, until
/// the total deadline: then `Unavailable`. That is safe because every call of a `MessageService` may be repeated, but for the making
/// of a room: that is tried again only while nothing was sent.
pub struct RoutedMessages {
    view: watch::Receiver<Arc<View>>,
    wanted: Arc<Notify>,
    total_deadline: Duration,
    turn: AtomicUsize,
    /// Keeps the view fresh; ends with this.
    _refresher: AbortOnDropHandle<()>,
}

/// The live replicas, as last seen.
#[derive(Default)]
struct View {
    replicas: BTreeMap<ReplicaId, Peer>,
}

#[derive(Clone)]
struct Peer {
    address: String,
    client: MessageClient,
}

/// Which replica a call goes to.
#[derive(Clone, Copy)]
enum To {
    Owner(RoomId),
    Any,
}

impl RoutedMessages {
    /// Starts with an empty view that fills at once in the background: the first calls wait for it. Must be called within a
    /// runtime.
    pub fn new(
        registry: Arc<dyn ReplicaRegistry>,
        credentials: Credentials,
        options: RoutedOptions,
    ) -> Self {
        for code in [ErrorCode::NotOwner, ErrorCode::Unavailable] {
            REROUTES.with_label_values(&[code.as_str()]);
        }
        let (publish, view) = watch::channel(Arc::new(View::default()));
        let wanted = Arc::new(Notify::new());
        let total_deadline = options.total_deadline;
        let refresher = Refresher {
            registry,
            credentials,
            options,
            publish,
            wanted: wanted.clone(),
        };
        Self {
            view,
            wanted,
            total_deadline,
            turn: AtomicUsize::new(0),
            _refresher: AbortOnDropHandle::new(tokio::spawn(refresher.run())),
        }
    }

    /// Makes a call until it gets through.
    async fn route<T, F, Fut>(&self, to: To, call: F) -> Result<T>
    where
        F: Fn(MessageClient) -> Fut + Send + Sync,
        Fut: Future<Output = Result<T>> + Send,
        T: Send,
    {
        self.route_while(is_rerouted, to, call).await
    }

    /// Makes a call until it gets through or ends with an error that is not to be tried again.
    async fn route_while<T, F, Fut>(
        &self,
        is_rerouted: fn(&Error) -> bool,
        to: To,
        call: F,
    ) -> Result<T>
    where
        F: Fn(MessageClient) -> Fut + Send + Sync,
        Fut: Future<Output = Result<T>> + Send,
        T: Send,
    {
        let mut tries = Tries::new(self.total_deadline);
        loop {
            let outcome = match self.pick(to) {
                Some(peer) => {
                    let answer = self.unless_gone(&peer, call(peer.client.clone()));
                    tries.within(answer).await?
                }
                None => Err(no_replica()),
            };
            match outcome {
                Err(error) if is_rerouted(&error) => tries.pause(error, &self.wanted).await?,
                outcome => return outcome,
            }
        }
    }

    /// Makes a call about many rooms: each owner gets its own, and the answers are put together. Rooms whose owner didn't answer are
    /// asked again, by a fresh view.
    async fn gather<T, F, Fut>(&self, rooms: &[RoomId], call: F) -> Result<Vec<T>>
    where
        F: Fn(MessageClient, Vec<RoomId>) -> Fut + Send + Sync,
        Fut: Future<Output = Result<Vec<T>>> + Send,
        T: Send,
    {
        let mut tries = Tries::new(self.total_deadline);
        let mut answers = Vec::with_capacity(rooms.len());
        let mut open = rooms.to_vec();
        while !open.is_empty() {
            let groups = self.by_owner(&open);
            let mut failed = None;
            if groups.is_empty() {
                failed = Some(no_replica());
            } else {
                let asked = groups.into_values().map(|(peer, rooms)| {
                    let answer = call(peer.client.clone(), rooms.clone());
                    async move { (rooms, self.unless_gone(&peer, answer).await) }
                });
                open.clear();
                for (rooms, outcome) in tries.within(futures::future::join_all(asked)).await? {
                    match outcome {
                        Ok(some) => answers.extend(some),
                        Err(error) if is_rerouted(&error) => {
                            open.extend(rooms);
                            failed = Some(error);
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
            if let Some(error) = failed {
                tries.pause(error, &self.wanted).await?;
            }
        }
        Ok(answers)
    }

    /// Waits for an answer of a replica, but not of one whose lease has ended: a process that was stopped, or a machine that is off,
    /// never says that it won't answer.
    async fn unless_gone<T>(
        &self,
        peer: &Peer,
        answer: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let mut view = self.view.clone();
        let is_live = |view: &Arc<View>| {
            let mut replicas = view.replicas.values();
            replicas.any(|live| live.address == peer.address)
        };
        let gone = async {
            loop {
                if view.wait_for(|view| !is_live(view)).await.is_err() {
                    // The refresher ended with us.
                    std::future::pending::<()>().await;
                }
                let back = tokio::time::timeout(GONE_PATIENCE, view.wait_for(is_live));
                if back.await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            answer = answer => answer,
            () = gone => Err(deadline_exceeded()),
        }
    }

    fn pick(&self, to: To) -> Option<Peer> {
        let view = self.view.borrow().clone();
        match to {
            To::Owner(room) => {
                let owner = preferred_owner(Partition::of_room(room), view.replicas.keys())?;
                view.replicas.get(owner).cloned()
            }
            To::Any => {
                let turn = self.turn.fetch_add(1, Ordering::Relaxed);
                let place = turn.checked_rem(view.replicas.len())?;
                view.replicas.values().nth(place).cloned()
            }
        }
    }

    /// Rooms by the replica that should own them; empty when there is no replica.
    fn by_owner(&self, rooms: &[RoomId]) -> BTreeMap<ReplicaId, (Peer, Vec<RoomId>)> {
        let view = self.view.borrow().clone();
        let mut groups: BTreeMap<ReplicaId, (Peer, Vec<RoomId>)> = BTreeMap::new();
        for room in rooms {
            let owner = preferred_owner(Partition::of_room(*room), view.replicas.keys());
            if let Some((owner, peer)) = owner.and_then(|owner| view.replicas.get_key_value(owner))
            {
                let group = groups.entry(owner.clone());
                group
                    .or_insert_with(|| (peer.clone(), Vec::new()))
                    .1
                    .push(*room);
            }
        }
        groups
    }
}

/// Whether another try, perhaps at another replica, can help. What a service itself calls unavailable is left to the caller.
fn is_rerouted(error: &Error) -> bool {
    error.code == ErrorCode::NotOwner || is_transport(error)
}

/// The same for a call that does its work again when it is repeated: nothing may have been done yet.
fn is_rerouted_once(error: &Error) -> bool {
    error.code == ErrorCode::NotOwner || is_unsent(error)
}

fn no_replica() -> Error {
    Error::new(ErrorCode::NotOwner, "no message replica is alive")
}

fn given_up(last: Option<Error>) -> Error {
    let error = Error::new(
        ErrorCode::Unavailable,
        "the message service is not available, try again",
    );
    match last {
        Some(last) => error.caused_by(last),
        None => error,
    }
}

// === tries ===

/// The time that a call has left, and the pauses between its tries.
struct Tries {
    deadline: Instant,
    pause: Duration,
    last: Option<Error>,
}

impl Tries {
    fn new(total: Duration) -> Self {
        Self {
            deadline: Instant::now() + total,
            pause: FIRST_PAUSE,
            last: None,
        }
    }

    async fn within<T>(&mut self, call: impl Future<Output = T>) -> Result<T> {
        tokio::time::timeout_at(self.deadline, call)
            .await
            .map_err(|_elapsed| given_up(self.last.take()))
    }

    /// Has the view refreshed and waits for half to all of the pause.
    async fn pause(&mut self, why: Error, wanted: &Notify) -> Result<()> {
        REROUTES.with_label_values(&[why.code.as_str()]).inc();
        let pause = self.pause.mul_f64(rand::random_range(0.5..=1.0));
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        if Instant::now() + pause >= self.deadline {
            return Err(given_up(Some(why)));
        }
        self.last = Some(why);
        wanted.notify_one();
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

// === the view ===

struct Refresher {
    registry: Arc<dyn ReplicaRegistry>,
    credentials: Credentials,
    options: RoutedOptions,
    publish: watch::Sender<Arc<View>>,
    wanted: Arc<Notify>,
}

impl Refresher {
    async fn run(self) {
        let mut reachable = true;
        loop {
            match self.registry.live(&self.options.role).await {
                Ok(live) => {
                    let view = self.view_of(live);
                    self.publish.send_replace(Arc::new(view));
                    reachable = true;
                }
                // The last view stands: replicas don't go because the registry does.
                Err(error) => {
                    if reachable {
                        tracing::warn!(
                            cause = error.cause_chain(),
                            "the replica registry can't be read: {error}"
                        );
                    }
                    reachable = false;
                }
            }
            let refreshed = Instant::now();
            tokio::select! {
                () = tokio::time::sleep(self.options.refresh) => {}
                () = self.wanted.notified() => {
                    tokio::time::sleep_until(refreshed + MIN_REFRESH_GAP).await;
                }
            }
        }
    }

    /// Keeps the channels of replicas that are still where they were.
    fn view_of(&self, live: Vec<Replica>) -> View {
        let before = self.publish.borrow().clone();
        let mut replicas = BTreeMap::new();
        for replica in live {
            let known = before.replicas.get(&replica.id);
            if let Some(peer) = known.filter(|peer| peer.address == replica.address) {
                replicas.insert(replica.id, peer.clone());
                continue;
            }
            let client = MessageClient::with_deadline(
                &replica.address,
                self.credentials.clone(),
                self.options.call_deadline,
            );
            match client {
                Ok(client) => {
                    let address = replica.address;
                    replicas.insert(replica.id, Peer { address, client });
                }
                Err(error) => {
                    tracing::warn!(replica = %replica.id, "a replica is left out: {error}")
                }
            }
        }
        View { replicas }
    }
}

// === the service ===

#[async_trait]
impl MessageService for RoutedMessages {
    async fn create_room(&self, actor: UserId, room: NewRoom) -> Result<RoomView> {
        // A replica that didn't answer in time may have made the room all the same.
        self.route_while(is_rerouted_once, To::Any, |c| {
            let room = room.clone();
            async move { c.create_room(actor, room).await }
        })
        .await
    }

    async fn open_direct(&self, actor: UserId, peer: UserId) -> Result<(RoomView, bool)> {
        self.route(To::Any, |c| async move { c.open_direct(actor, peer).await })
            .await
    }

    async fn public_rooms(&self, after: Option<RoomId>, limit: usize) -> Result<Vec<Room>> {
        self.route(
            To::Any,
            |c| async move { c.public_rooms(after, limit).await },
        )
        .await
    }

    async fn my_rooms(
        &self,
        actor: UserId,
        after: Option<RoomId>,
        limit: usize,
    ) -> Result<Vec<RoomSummary>> {
        self.route(
            To::Any,
            |c| async move { c.my_rooms(actor, after, limit).await },
        )
        .await
    }

    async fn room_ids(&self, actor: UserId) -> Result<Vec<RoomId>> {
        self.route(To::Any, |c| async move { c.room_ids(actor).await })
            .await
    }

    async fn room(&self, actor: UserId, room: RoomId) -> Result<RoomView> {
        self.route(
            To::Owner(room),
            |c| async move { c.room(actor, room).await },
        )
        .await
    }

    async fn delete_room(&self, actor: UserId, room: RoomId) -> Result<()> {
        self.route(To::Owner(room), |c| async move {
            c.delete_room(actor, room).await
        })
        .await
    }

    async fn join(&self, actor: UserId, room: RoomId) -> Result<Sequence> {
        self.route(
            To::Owner(room),
            |c| async move { c.join(actor, room).await },
        )
        .await
    }

    async fn leave(&self, actor: UserId, room: RoomId) -> Result<()> {
        self.route(
            To::Owner(room),
            |c| async move { c.leave(actor, room).await },
        )
        .await
    }

    async fn members(
        &self,
        actor: UserId,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Member>> {
        self.route(To::Owner(room), |c| async move {
            c.members(actor, room, after, limit).await
        })
        .await
    }

    async fn put_member(
        &self,
        actor: UserId,
        room: RoomId,
        user: UserId,
        role: Role,
    ) -> Result<Member> {
        self.route(To::Owner(room), |c| async move {
            c.put_member(actor, room, user, role).await
        })
        .await
    }

    async fn remove_member(&self, actor: UserId, room: RoomId, user: UserId) -> Result<()> {
        self.route(To::Owner(room), |c| async move {
            c.remove_member(actor, room, user).await
        })
        .await
    }

    async fn invite(&self, actor: UserId, room: RoomId, user: UserId) -> Result<()> {
        self.route(To::Owner(room), |c| async move {
            c.invite(actor, room, user).await
        })
        .await
    }

    async fn invites(
        &self,
        actor: UserId,
        after: Option<RoomId>,
        limit: usize,
    ) -> Result<Vec<Room>> {
        self.route(
            To::Any,
            |c| async move { c.invites(actor, after, limit).await },
        )
        .await
    }

    async fn restrict(
        &self,
        actor: UserId,
        room: RoomId,
        user: UserId,
        restriction: Restriction,
    ) -> Result<()> {
        self.route(To::Owner(room), |c| async move {
            c.restrict(actor, room, user, restriction).await
        })
        .await
    }

    async fn restrictions(
        &self,
        actor: UserId,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Restricted>> {
        self.route(To::Owner(room), |c| async move {
            c.restrictions(actor, room, after, limit).await
        })
        .await
    }

    async fn change_room(
        &self,
        actor: UserId,
        room: RoomId,
        change: RoomChange,
    ) -> Result<RoomView> {
        self.route(To::Owner(room), |c| {
            let change = change.clone();
            async move { c.change_room(actor, room, change).await }
        })
        .await
    }

    async fn mark_delivered(
        &self,
        actor: UserId,
        room: RoomId,
        sequence: Sequence,
    ) -> Result<Reached> {
        self.route(To::Owner(room), |c| async move {
            c.mark_delivered(actor, room, sequence).await
        })
        .await
    }

    async fn receipts(
        &self,
        actor: UserId,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Receipt>> {
        self.route(To::Owner(room), |c| async move {
            c.receipts(actor, room, after, limit).await
        })
        .await
    }

    async fn send(&self, actor: UserId, room: RoomId, draft: Draft) -> Result<SendOutcome> {
        self.route(To::Owner(room), |c| {
            let draft = draft.clone();
            async move { c.send(actor, room, draft).await }
        })
        .await
    }

    async fn locate(&self, message: MessageId) -> Result<ResolvedRoom> {
        self.route(To::Any, |c| async move { c.locate(message).await })
            .await
    }

    async fn message(&self, actor: UserId, room: RoomId, message: MessageId) -> Result<Message> {
        self.route(To::Owner(room), |c| async move {
            c.message(actor, room, message).await
        })
        .await
    }

    async fn revisions(
        &self,
        actor: UserId,
        room: RoomId,
        message: MessageId,
    ) -> Result<Vec<Revision>> {
        self.route(To::Owner(room), |c| async move {
            c.revisions(actor, room, message).await
        })
        .await
    }

    async fn edit(
        &self,
        actor: UserId,
        room: RoomId,
        message: MessageId,
        content: String,
    ) -> Result<Message> {
        self.route(To::Owner(room), |c| {
            let content = content.clone();
            async move { c.edit(actor, room, message, content).await }
        })
        .await
    }

    async fn delete(&self, actor: UserId, room: RoomId, message: MessageId) -> Result<Message> {
        self.route(To::Owner(room), |c| async move {
            c.delete(actor, room, message).await
        })
        .await
    }

    async fn history(
        &self,
        actor: UserId,
        room: RoomId,
        query: HistoryQuery,
    ) -> Result<Vec<Message>> {
        self.route(To::Owner(room), |c| async move {
            c.history(actor, room, query).await
        })
        .await
    }

    async fn events(
        &self,
        actor: UserId,
        room: RoomId,
        after: Sequence,
        limit: usize,
    ) -> Result<EventPage> {
        self.route(To::Owner(room), |c| async move {
            c.events(actor, room, after, limit).await
        })
        .await
    }

    async fn heads(&self, rooms: &[RoomId]) -> Result<Vec<RoomHead>> {
        self.gather(rooms, |c, rooms| async move { c.heads(&rooms).await })
            .await
    }

    async fn overviews(&self, reader: UserId, rooms: &[RoomId]) -> Result<Vec<RoomOverview>> {
        self.gather(rooms, |c, rooms| async move {
            c.overviews(reader, &rooms).await
        })
        .await
    }

    async fn tail(&self, room: RoomId, after: Sequence, limit: usize) -> Result<EventPage> {
        self.route(To::Owner(room), |c| async move {
            c.tail(room, after, limit).await
        })
        .await
    }

    async fn mark_read(&self, actor: UserId, room: RoomId, sequence: Sequence) -> Result<ReadMark> {
        self.route(To::Owner(room), |c| async move {
            c.mark_read(actor, room, sequence).await
        })
        .await
    }

    async fn activity(
        &self,
        actor: UserId,
        room: RoomId,
        activity: Activity,
        active: bool,
    ) -> Result<()> {
        self.route(To::Owner(room), |c| async move {
            c.activity(actor, room, activity, active).await
        })
        .await
    }
}
