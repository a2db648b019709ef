//! Fan-out: which socket follows which room, and how a room's events reach all of its followers.
//!
//! A bus message is a hint. For every followed room the hub knows the last event that it delivered; the next one is handed on,
//! an older one is dropped, a later one makes the hub read what is missing from the room's log (promise 4). A sweep compares
//! heads now and then, so that a lost last event is found too.
//!
//! - `socket`: a socket's bounded queue and the rooms it wants.
//! - `rooms`: followers and places of rooms; everything under a lock is short and never waits.
//! - `topics`: subscriptions of the bus, in one order.
//! - `lane`: the loop over a share of the topics.
//! - `catch_up`: reading from the log: gaps of rooms, and what one socket missed.
//! - `writers`: waking the sockets that an event went to.
//! - `leases`: presence of the connected devices.
//! - `hidden`: whose presence, typing and receipts a socket doesn't get.

mod catch_up;
mod hidden;
mod lane;
mod leases;
mod rooms;
mod socket;
mod topics;
mod writers;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use carillon_domain::{
    DeviceId, Error, ErrorCode, Result, RoomId, Sequence, Timestamp, UserId,
    account::Identity,
    partition::Partition,
    ports::Bus,
    presence::PresenceState,
    security::SecurityEventKind,
    services::{MessageService, PeopleService, PresenceService, TokenVerifier},
    signal::{Signal, Topic},
};
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use rand::seq::SliceRandom;
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::socket::{CloseCode, Socket};
use self::{
    catch_up::Start,
    hidden::Watched,
    lane::Lane,
    leases::Leases,
    rooms::{About, Attach, Hold, RoomTable},
};
use crate::{
    metrics,
    options::{GatewayOptions, Services},
};

/// Users compared with the stores at once after something was lost.
const RECHECKS_AT_ONCE: usize = 16;
/// Rooms that one socket may resume or follow.
pub const MAX_ROOMS: usize = 5_000;
/// Heads asked for at once: the bound of [`MessageService::heads`].
const HEADS_BATCH: usize = 1_000;
/// Reads of logs under way at once, so that a reconnect storm doesn't become a read storm.
const PULLS_AT_ONCE: usize = 32;

/// The fan-out of one gateway. Cheap to clone.
#[derive(Clone)]
pub struct Hub(Arc<Inner>);

struct Inner {
    lanes: Box<[Lane]>,
    messages: Arc<dyn MessageService>,
    people: Arc<dyn PeopleService>,
    verifier: Arc<dyn TokenVerifier>,
    bus: Arc<dyn Bus>,
    pulls: Semaphore,
    leases: Leases,
    watched: Watched,
    next_id: AtomicU64,
    send_buffer: usize,
    blocks_settle: Duration,
    connected: TaskTracker,
    stop: CancellationToken,
}

impl Hub {
    /// Connects to the bus and starts the hub's tasks; they end with [`Hub::stop`].
    pub async fn start(options: &GatewayOptions, services: &Services) -> Result<Self> {
        let lanes = std::thread::available_parallelism().map_or(1, |n| n.get().min(8));
        let stop = CancellationToken::new();
        let mut made = Vec::with_capacity(lanes);
        let mut streams = Vec::with_capacity(lanes);
        for _ in 0..lanes {
            let (subscriptions, stream) = services.bus.receiver().await?;
            let (lane, commands) = Lane::new(subscriptions);
            made.push(lane);
            streams.push((stream, commands));
        }
        let (leases, lease_commands) = Leases::new();
        let inner = Arc::new(Inner {
            lanes: made.into_boxed_slice(),
            messages: services.messages.clone(),
            people: services.people.clone(),
            verifier: services.verifier.clone(),
            bus: services.bus.clone(),
            pulls: Semaphore::new(PULLS_AT_ONCE),
            leases,
            watched: Watched::default(),
            next_id: AtomicU64::new(1),
            send_buffer: options.send_buffer,
            blocks_settle: options.blocks_settle,
            connected: TaskTracker::new(),
            stop: stop.clone(),
        });
        for (index, (stream, commands)) in streams.into_iter().enumerate() {
            tokio::spawn(lane::run(inner.clone(), index, stream));
            tokio::spawn(topics::run(inner.clone(), index, commands));
            tokio::spawn(lane::recover(inner.clone(), index));
        }
        tokio::spawn(sweep(inner.clone(), options.sweep));
        tokio::spawn(leases::run(
            inner.clone(),
            services.presence.clone() as Arc<dyn PresenceService>,
            lease_commands,
            options.presence_renewal,
        ));
        Ok(Self(inner))
    }

    /// Ends the hub's tasks.
    pub fn stop(&self) {
        self.0.stop.cancel();
    }

    /// Registers a socket and finds out which rooms it follows from where. Nothing is delivered before [`Connection::follow`].
    ///
    /// `resume` says for rooms up to where the client has seen events.
    pub async fn connect(
        &self,
        identity: Identity,
        resume: &HashMap<RoomId, Sequence>,
    ) -> Result<Connection> {
        let id = self.0.next_id.fetch_add(1, Ordering::Relaxed);
        let socket = Arc::new(Socket::new(id, identity, self.0.send_buffer));
        // From here on signals to the user reach the socket, and dropping the connection undoes everything.
        self.0.register(&socket);
        let mut connection = Connection {
            hub: self.clone(),
            socket,
            start: BTreeMap::new(),
            holds: Vec::new(),
            left_for_good: false,
            _tracked: self.0.connected.token(),
        };
        let user_topic = Topic::of_user(identity.user);
        self.0.subscribe(vec![user_topic]).await?;
        // A revocation between the token's check and this subscription was told to nobody here: ask once more.
        self.0.verifier.check_revocation(&identity).await?;

        let ((), listed) = tokio::join!(
            self.0.first_hidden(&connection.socket),
            self.0.messages.room_ids(identity.user)
        );
        let listed = listed?;
        let listing = connection.socket.finish_listing(listed);
        if listing.again {
            let inner = self.0.clone();
            tokio::spawn(async move { inner.recheck_user(identity.user).await });
        }
        let holds = self.0.open(listing.now).await?;
        for room in holds.iter().map(Hold::room) {
            let Some(last) = self.0.rooms_of(room).last(room) else {
                continue;
            };
            // A place beyond ours can be right (the bus is a little late) or not: following finds out.
            let start = resume.get(&room).copied().unwrap_or(last);
            connection.start.insert(room, start);
        }
        connection.holds = holds;
        self.0.leases.renew(&connection.socket);
        Ok(connection)
    }

    /// Tells every socket to resume elsewhere, spread over `over`, in random order.
    pub async fn drain(&self, over: Duration) {
        let mut sockets = self.0.sockets();
        let Ok(count) = u32::try_from(sockets.len()) else {
            return;
        };
        if count == 0 {
            return;
        }
        sockets.shuffle(&mut rand::rng());
        let started = tokio::time::Instant::now();
        for (index, socket) in (0u32..).zip(sockets) {
            let at = started + over.mul_f64(f64::from(index) / f64::from(count));
            tokio::time::sleep_until(at).await;
            socket.close(CloseCode::Drain);
        }
        // Whoever connected while we counted.
        for socket in self.0.sockets() {
            socket.close(CloseCode::Drain);
        }
    }

    /// Waits until every socket is gone.
    pub async fn all_closed(&self) {
        self.0.connected.close();
        self.0.connected.wait().await;
    }
}

/// Says which state a person chose for a device, to the gateway that holds its socket.
pub async fn tell_presence_choice(
    bus: &dyn Bus,
    user: UserId,
    device: DeviceId,
    state: PresenceState,
) -> Result<()> {
    let signal = Signal::PresenceChosen {
        user,
        device,
        state,
    };
    bus.publish(Topic::of_user(user), signal.encode()?).await
}

/// A registered socket. Dropping it takes it out of everything.
pub struct Connection {
    hub: Hub,
    socket: Arc<Socket>,
    /// Per room, the place after which its events follow; taken when following starts.
    start: BTreeMap<RoomId, Sequence>,
    holds: Vec<Hold>,
    /// The device is gone, not only this connection.
    left_for_good: bool,
    _tracked: tokio_util::task::task_tracker::TaskTrackerToken,
}

impl Connection {
    pub fn socket(&self) -> &Arc<Socket> {
        &self.socket
    }

    /// Per room, the place after which its events will follow.
    pub fn start(&self) -> &BTreeMap<RoomId, Sequence> {
        &self.start
    }

    /// Starts deliveries: rooms that are level are live at once, the others first get what they missed.
    pub fn follow(&mut self) {
        let start = std::mem::take(&mut self.start);
        let holds = std::mem::take(&mut self.holds);
        self.hub.0.follow(&self.socket, &start, holds);
    }

    /// The client says (again) up to where it has seen rooms: each goes on from there. What an earlier call has not done yet for
    /// these rooms is given up.
    pub fn resume(
        &self,
        resume: HashMap<RoomId, Sequence>,
    ) -> impl Future<Output = Result<()>> + Send + use<> {
        let inner = self.hub.0.clone();
        let socket = self.socket.clone();
        async move {
            let wanted = resume.keys().copied().filter(|room| socket.wants(*room));
            let holds = inner.open(wanted.collect()).await?;
            let starts = holds
                .into_iter()
                .map(|hold| (Start::Again(resume[&hold.room()]), hold))
                .collect();
            catch_up::start(&inner, &socket, starts);
            Ok(())
        }
    }

    /// A new token: from now on it is the one whose revocation matters. Also compares the rooms with what the store says, in
    /// case a signal was lost.
    pub fn reauthenticated(&self, identity: Identity) {
        self.socket.set_identity(identity);
        let inner = self.hub.0.clone();
        tokio::spawn(async move { inner.recheck_user(identity.user).await });
    }

    /// The device is gone: with its last connection here its lease ends at once. Without this it runs on, for it will come back.
    pub fn leave_for_good(&mut self) {
        self.left_for_good = true;
    }

    pub fn hub(&self) -> &Hub {
        &self.hub
    }
}

impl Hub {
    /// The user became a member by a request of their own: every socket of theirs here follows the room from the place where
    /// they joined. The signal that comes over the bus finds it done.
    pub fn joined(&self, user: UserId, room: RoomId) {
        self.0.room_added(user, room, None);
    }

    /// The user is no longer a member, by a request of their own.
    pub fn left(&self, user: UserId, room: RoomId) {
        self.0.room_removed(user, room);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.hub.0.unregister(&self.socket, self.left_for_good);
    }
}

// === impl Inner ===

impl Inner {
    /// Events that are handed out before the sockets get their turn to write them: only a part of what a queue holds.
    fn events_at_once(&self) -> usize {
        (self.send_buffer / 4).clamp(1, 64)
    }

    fn lane_of(&self, partition: Partition) -> &Lane {
        &self.lanes[usize::from(partition.0) % self.lanes.len()]
    }

    fn rooms_of(&self, room: RoomId) -> &RoomTable {
        &self.lane_of(Partition::of_room(room)).rooms
    }

    fn users_of(&self, user: UserId) -> &Mutex<HashMap<UserId, Vec<Arc<Socket>>>> {
        &self.lane_of(Partition::of_user(user)).users
    }

    fn sockets_of(&self, user: UserId) -> Vec<Arc<Socket>> {
        self.users_of(user)
            .lock()
            .get(&user)
            .cloned()
            .unwrap_or_default()
    }

    fn sockets(&self) -> Vec<Arc<Socket>> {
        self.lanes
            .iter()
            .flat_map(|lane| {
                let users = lane.users.lock();
                users.values().flatten().cloned().collect::<Vec<_>>()
            })
            .collect()
    }

    fn register(&self, socket: &Arc<Socket>) {
        let user = socket.identity().user;
        self.users_of(user)
            .lock()
            .entry(user)
            .or_default()
            .push(socket.clone());
        metrics::SOCKETS.with_label_values(&[] as &[&str]).inc();
    }

    fn unregister(&self, socket: &Arc<Socket>, release: bool) {
        let identity = socket.identity();
        socket.close(CloseCode::Normal);
        let last_of_device = {
            let mut users = self.users_of(identity.user).lock();
            let Some(sockets) = users.get_mut(&identity.user) else {
                return;
            };
            sockets.retain(|other| other.id() != socket.id());
            let last = !sockets
                .iter()
                .any(|other| other.identity().device == identity.device);
            if sockets.is_empty() {
                users.remove(&identity.user);
            }
            last
        };
        for room in socket.want_none() {
            self.rooms_of(room).detach(room, socket.id());
        }
        metrics::SOCKETS.with_label_values(&[] as &[&str]).dec();
        if last_of_device && release {
            self.leases.release(identity.user, identity.device);
        }
    }

    /// Makes sure that the bus delivers these topics.
    async fn subscribe(&self, topics: Vec<Topic>) -> Result<()> {
        let mut by_lane: Vec<Vec<Topic>> = vec![Vec::new(); self.lanes.len()];
        for topic in topics {
            let (Topic::Rooms(partition) | Topic::Users(partition)) = topic;
            by_lane[usize::from(partition.0) % self.lanes.len()].push(topic);
        }
        let asked = by_lane
            .into_iter()
            .zip(self.lanes.iter())
            .filter(|(topics, _)| !topics.is_empty())
            .map(|(topics, lane)| lane.topics.subscribe(topics));
        futures::future::try_join_all(asked).await.map(|_| ())
    }

    /// Makes rooms live: subscribed first, then their heads read, so that no event falls between. The rooms stay in the table
    /// while the answers are held.
    async fn open(self: &Arc<Self>, rooms: Vec<RoomId>) -> Result<Vec<Hold>> {
        let mut opening = Vec::new();
        let mut holds = Vec::with_capacity(rooms.len());
        for room in rooms {
            let (hold, must_open) = Hold::new(self.clone(), room);
            opening.extend(must_open.then_some(room));
            holds.push(hold);
        }
        if opening.is_empty() {
            return Ok(holds);
        }
        let mut topics: Vec<Topic> = opening.iter().map(|&room| Topic::of_room(room)).collect();
        topics.sort_unstable();
        topics.dedup();
        self.subscribe(topics).await?;
        for batch in opening.chunks(HEADS_BATCH) {
            let heads: HashMap<RoomId, Sequence> = self
                .messages
                .heads(batch)
                .await?
                .into_iter()
                .map(|head| (head.room, head.head))
                .collect();
            for &room in batch {
                let head = heads.get(&room).copied().unwrap_or_default();
                if self.rooms_of(room).opened(room, head) {
                    self.start_pull(room);
                }
            }
        }
        Ok(holds)
    }

    /// Attaches a socket to rooms, each from its place; those that aren't level are caught up with in the background.
    fn follow(
        self: &Arc<Self>,
        socket: &Arc<Socket>,
        start: &BTreeMap<RoomId, Sequence>,
        holds: Vec<Hold>,
    ) {
        let behind = holds.into_iter().filter_map(|hold| {
            let room = hold.room();
            let at = *start.get(&room)?;
            match self.rooms_of(room).attach(room, socket, at, false) {
                Attach::Behind(_) | Attach::Ahead(_) => Some((Start::After(at), hold)),
                Attach::Attached | Attach::Refused => None,
            }
        });
        catch_up::start(self, socket, behind.collect());
    }

    // === signals to users ===

    fn invited(&self, user: UserId, room: RoomId, by: UserId) {
        let frame = crate::wire::room_invited(room, by);
        for socket in self.sockets_of(user) {
            socket.push(frame.clone());
        }
    }

    fn security_event(
        &self,
        user: UserId,
        id: uuid::Uuid,
        kind: SecurityEventKind,
        device: Option<DeviceId>,
        time: Timestamp,
    ) {
        let frame = crate::wire::security_event(id, kind, device, time);
        for socket in self.sockets_of(user) {
            socket.push(frame.clone());
        }
    }

    fn room_added(self: &Arc<Self>, user: UserId, room: RoomId, direct_with: Option<UserId>) {
        let sockets: Vec<Arc<Socket>> = self
            .sockets_of(user)
            .into_iter()
            .filter(|socket| socket.want(room))
            .collect();
        if let Some(peer) = direct_with {
            let frame = crate::wire::direct_created(room, peer);
            for socket in &sockets {
                socket.push(frame.clone());
            }
        }
        if !sockets.is_empty() {
            tokio::spawn(catch_up::added(self.clone(), user, room, sockets));
        }
    }

    fn room_removed(self: &Arc<Self>, user: UserId, room: RoomId) {
        let mut cut_at = None;
        let mut cut = Vec::new();
        for socket in self.sockets_of(user) {
            socket.want_not(room);
            if let Some(last) = self.rooms_of(room).detach(room, socket.id()) {
                cut_at = Some(last);
                cut.push(socket);
            }
        }
        if let Some(last) = cut_at {
            tokio::spawn(catch_up::removed(self.clone(), user, room, last, cut));
        }
    }

    fn session_revoked(
        &self,
        user: UserId,
        device: Option<DeviceId>,
        token_id: Option<uuid::Uuid>,
    ) {
        for socket in self.sockets_of(user) {
            let identity = socket.identity();
            let all = device.is_none() && token_id.is_none();
            if all || device == Some(identity.device) || token_id == Some(identity.token_id) {
                socket.close(CloseCode::SessionRevoked);
            }
        }
    }

    fn presence_chosen(&self, user: UserId, device: DeviceId, state: PresenceState) {
        for socket in self.sockets_of(user) {
            if socket.identity().device == device {
                socket.set_presence(state);
                self.leases.renew(&socket);
            }
        }
    }

    /// Tells people that a contact's presence changed.
    fn contact_presence(&self, to: &[UserId], about: About, signal: &Signal) {
        let sockets = to.iter().flat_map(|user| self.sockets_of(*user));
        let mut frame = None;
        let is_shown =
            |socket: &Arc<Socket>| socket.shows(about.fact, about.person, about.audience);
        for socket in sockets.filter(is_shown) {
            let frame = frame.get_or_insert_with(|| crate::wire::signal(signal));
            if let Some(frame) = frame {
                socket.push_ephemeral(frame.clone());
            }
        }
    }

    /// [`Self::recheck_user`] of some users.
    async fn recheck_users(self: &Arc<Self>, users: impl IntoIterator<Item = UserId>) {
        stream::iter(users)
            .for_each_concurrent(RECHECKS_AT_ONCE, |user| {
                let inner = self.clone();
                async move { inner.recheck_user(user).await }
            })
            .await;
    }

    /// Compares a user's rooms, sessions and blocks with what the stores say: signals to the user may have been lost.
    async fn recheck_user(self: &Arc<Self>, user: UserId) {
        let rooms = async {
            loop {
                let sockets = self.sockets_of(user);
                if sockets.is_empty() || !self.recheck_rooms(user, &sockets).await {
                    return;
                }
            }
        };
        tokio::join!(
            rooms,
            self.recheck_sessions(user),
            self.recheck_hidden(user)
        );
    }

    /// The part about sessions. It goes on until the deny-list has answered or the user has no socket here: a revocation is told
    /// once, and the store that lost it may be away for a while.
    async fn recheck_sessions(&self, user: UserId) {
        for attempt in 0.. {
            let mut answered = true;
            for socket in self.sockets_of(user) {
                match self.verifier.check_revocation(&socket.identity()).await {
                    Ok(()) => {}
                    Err(error) if error.code == ErrorCode::Unauthenticated => {
                        socket.close(CloseCode::SessionRevoked);
                    }
                    Err(error) => {
                        tracing::debug!(%error, "could not compare a user's sessions yet");
                        answered = false;
                        break;
                    }
                }
            }
            if answered {
                return;
            }
            tokio::select! {
                () = back_off(attempt) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// The part about rooms; whether it must be done again.
    async fn recheck_rooms(self: &Arc<Self>, user: UserId, sockets: &[Arc<Socket>]) -> bool {
        let listing: Vec<&Arc<Socket>> = sockets
            .iter()
            .filter(|socket| socket.begin_listing())
            .collect();
        if listing.is_empty() {
            return false;
        }
        let listed = match self.messages.room_ids(user).await {
            Ok(listed) => listed,
            Err(error) => {
                tracing::warn!(%error, "could not compare a user's rooms");
                for socket in listing {
                    socket.abandon_listing();
                }
                return false;
            }
        };
        let mut again = false;
        for socket in listing {
            let changes = socket.finish_listing(listed.clone());
            again |= changes.again;
            for room in changes.removed {
                self.rooms_of(room).detach(room, socket.id());
            }
            for room in changes.added {
                tokio::spawn(catch_up::added(
                    self.clone(),
                    user,
                    room,
                    vec![socket.clone()],
                ));
            }
        }
        again
    }

    // === gaps ===

    fn start_pull(self: &Arc<Self>, room: RoomId) {
        tokio::spawn(catch_up::room(self.clone(), room));
    }

    /// Compares heads of a lane's rooms with what was delivered.
    async fn check_heads(self: &Arc<Self>, lane: usize) {
        let rooms = self.lanes[lane].rooms.live();
        for batch in rooms.chunks(HEADS_BATCH) {
            match self.messages.heads(batch).await {
                Ok(heads) => {
                    for head in heads {
                        if self.rooms_of(head.room).reached(head.room, head.head) {
                            self.start_pull(head.room);
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "could not compare heads of rooms; the next sweep will");
                    return;
                }
            }
        }
    }

    fn users_in(&self, lane: usize) -> Vec<UserId> {
        self.lanes[lane].users.lock().keys().copied().collect()
    }
}

/// Finds what the bus lost at the end of a room, where no later event shows it, and tidies subscriptions. A lost last event is late
/// by `every` and a quarter at most; the price is one call per thousand followed rooms and replica.
async fn sweep(inner: Arc<Inner>, every: Duration) {
    loop {
        // Jitter keeps the gateways of a cluster from asking at the same moment.
        let pause = every.mul_f64(rand::random_range(0.75..1.25));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = inner.stop.cancelled() => return,
        }
        // Side by side: rooms whose owner doesn't answer must not delay the others.
        let lanes = (0..inner.lanes.len()).map(|lane| inner.check_heads(lane));
        futures::future::join_all(lanes).await;
        for lane in &inner.lanes {
            lane.topics.tidy();
        }
    }
}

/// Retries after a failure: the pause before try `n`, doubling from 50 ms to 5 s, with jitter.
async fn back_off(attempt: u32) {
    let longest = Duration::from_millis(50 << attempt.min(7)).min(Duration::from_secs(5));
    tokio::time::sleep(longest.mul_f64(rand::random_range(0.5..1.0))).await;
}

fn gone() -> Error {
    Error::new(ErrorCode::Unavailable, "the gateway is stopping")
}
