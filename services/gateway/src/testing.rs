//! A scripted town for tests: the hub's contract is about what a bus loses and a log answers late, which real adapters don't do
//! on command. Everything else is as small as the traits allow.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use carillon_adapters::limits::MemoryLimiter;
use carillon_domain::{
    ClientMessageId, Clock, DeviceId, Error, ErrorCode, MediaId, MessageId, Result, RoomId,
    Sequence, Timestamp, UserId,
    account::{ClientInfo, Identity, ProfileChange, Session, SessionView, Tokens, User},
    event::{Draft, EventBody, Mentions, Message, MessageType, Revision, RoomEvent, StoredMessage},
    media::Media,
    people::{Hidden, Related, Sight},
    ports::{Bus, BusItem, Reached, ReadMark, Receipt, Restricted, Subscriptions},
    presence::{Lease, Presence, PresenceState},
    privacy::Audience,
    room::{Member, Restrictions, Role, Room, RoomKind, RoomRules},
    security::{History, SecurityEvent, SecurityEventKind},
    services::{
        AccountService, AuthService, EventPage, FoundUsers, HistoryQuery, Login, MediaService,
        MessageService, NewAccount, NewMedia, NewPushTarget, NewRoom, NotificationService,
        PeopleService, PresenceService, ResolvedRoom, Restriction, RoomChange, RoomHead,
        RoomOverview, RoomSummary, RoomView, SendOutcome, TokenVerifier,
    },
    settings::{Settings, SettingsChange},
    signal::{Activity, Signal, Topic},
};
use futures::{StreamExt, channel::mpsc, stream::BoxStream};
use parking_lot::Mutex;
use uuid::Uuid;

use crate::{GatewayOptions, Services};

/// Longest wait of a test for something that must happen.
pub const SOON: Duration = Duration::from_secs(10);

/// Something that happens in the middle of something else.
type Interruption = Box<dyn FnOnce(&Town) + Send>;

/// The whole town.
#[derive(Default)]
pub struct Town {
    logs: Mutex<HashMap<RoomId, Log>>,
    pub bus: ScriptedBus,
    /// Runs in the middle of `heads`: after the heads were read, before they are answered.
    pub during_heads: Mutex<Option<Interruption>>,
    pub tails: AtomicUsize,
    /// How often somebody's rooms were listed.
    pub listings: AtomicUsize,
    pub store_down: AtomicBool,
    pub people_down: AtomicBool,
    /// How often it was asked what is hidden from somebody.
    pub hidden_reads: AtomicUsize,
    refusals: AtomicUsize,
    tickets: Mutex<HashMap<String, Identity>>,
    ended: Mutex<HashSet<DeviceId>>,
    pub leases: Mutex<Vec<Lease>>,
    pub released: Mutex<Vec<DeviceId>>,
    contacts: Mutex<BTreeSet<(UserId, UserId)>>,
    settings: Mutex<HashMap<UserId, Settings>>,
    /// Who blocked whom.
    pub blocks: Mutex<BTreeSet<(UserId, UserId)>>,
    pub uploads: Mutex<HashMap<MediaId, (Media, Bytes)>>,
    direct: Mutex<HashMap<(UserId, UserId), RoomId>>,
    /// How long a look-up of a direct room takes.
    pub direct_delay: Mutex<Duration>,
}

#[derive(Default)]
struct Log {
    events: Vec<RoomEvent>,
    members: BTreeSet<UserId>,
    first_available: u64,
}

impl Town {
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    pub fn services(self: &Arc<Self>) -> Services {
        Services {
            auth: self.clone(),
            accounts: self.clone(),
            verifier: self.clone(),
            people: self.clone(),
            messages: self.clone(),
            presence: self.clone(),
            media: self.clone(),
            notifications: self.clone(),
            bus: Arc::new(self.bus.clone()),
            limiter: Arc::new(MemoryLimiter::new()),
            own_limiter: Arc::new(MemoryLimiter::new()),
            clock: Arc::new(carillon_domain::time::SystemClock),
        }
    }

    /// A room whose first events are the joinings of its members.
    pub fn room(&self, members: &[UserId]) -> RoomId {
        let room = RoomId::new();
        self.logs.lock().insert(room, Log::default());
        for &user in members {
            let role = Role::Member;
            self.append(room, user, EventBody::Joined { user, role });
        }
        room
    }

    /// Stores an event without telling anybody.
    pub fn append(&self, room: RoomId, actor: UserId, body: EventBody) -> RoomEvent {
        let mut logs = self.logs.lock();
        let log = logs.entry(room).or_default();
        match &body {
            EventBody::Joined { user, .. } => {
                log.members.insert(*user);
            }
            body if body.removes().is_some() => {
                if let Some(user) = body.removes() {
                    log.members.remove(&user);
                }
            }
            _ => {}
        }
        let event = RoomEvent {
            room,
            sequence: Sequence(log.events.len() as u64 + 1),
            messages_before: 0,
            time: Timestamp(1_790_000_000_000),
            actor,
            body,
        };
        log.events.push(event.clone());
        event
    }

    pub fn publish(&self, topic: Topic, signal: &Signal) {
        self.bus.deliver(topic, &signal.encode().unwrap());
    }

    pub fn tell(&self, event: &RoomEvent) {
        let events = vec![event.clone()];
        self.publish(Topic::of_room(event.room), &Signal::Events { events });
    }

    /// Stores a message and tells the bus.
    pub fn say(&self, room: RoomId, actor: UserId, content: &str) -> RoomEvent {
        let event = self.store(room, actor, content);
        self.tell(&event);
        event
    }

    /// Stores a message; the bus loses it.
    pub fn store(&self, room: RoomId, actor: UserId, content: &str) -> RoomEvent {
        self.append(room, actor, message(content))
    }

    /// Forgets events before a place, as retention does.
    pub fn forget_before(&self, room: RoomId, first: u64) {
        self.logs.lock().get_mut(&room).unwrap().first_available = first;
    }

    /// The last lease that was granted to an identity's user.
    pub fn lease_of(&self, who: &Identity) -> Lease {
        let leases = self.leases.lock();
        *leases.iter().rfind(|l| l.user == who.user).unwrap()
    }

    fn page(&self, room: RoomId, after: Sequence, limit: usize) -> Result<EventPage> {
        let logs = self.logs.lock();
        let log = logs.get(&room).ok_or_else(|| Error::not_found("room"))?;
        let from = after.0.max(log.first_available.saturating_sub(1));
        Ok(EventPage {
            events: log
                .events
                .iter()
                .skip(from as usize)
                .take(limit)
                .cloned()
                .collect(),
            head: Sequence(log.events.len() as u64),
            first_available: Sequence(log.first_available.max(1)),
        })
    }

    fn up(&self) -> Result<()> {
        if self.store_down.load(Ordering::Relaxed) {
            self.refusals.fetch_add(1, Ordering::Relaxed);
            return Err(Error::new(ErrorCode::Unavailable, "store is not available"));
        }
        Ok(())
    }

    /// Questions that were not answered because the store was down.
    pub fn refusals(&self) -> usize {
        self.refusals.load(Ordering::Relaxed)
    }

    fn member(&self, room: RoomId, user: UserId) -> Result<()> {
        match self.logs.lock().get(&room) {
            Some(log) if log.members.contains(&user) => Ok(()),
            _ => Err(Error::not_found("room")),
        }
    }
}

pub fn message(content: &str) -> EventBody {
    EventBody::Message {
        id: MessageId::new(),
        draft: Draft {
            client_message_id: ClientMessageId(Uuid::now_v7().to_string()),
            message_type: MessageType::Text,
            content: content.into(),
            reply_to: None,
        },
        mentions: Mentions::default(),
    }
}

/// Somebody with a token that lasts.
pub fn somebody() -> Identity {
    Identity {
        user: UserId::new(),
        device: DeviceId::new(),
        token_id: Uuid::now_v7(),
        expires_at: carillon_domain::time::SystemClock
            .now()
            .plus(Duration::from_secs(900)),
    }
}

/// The token that [`Town`] takes for an identity: the identity itself.
pub fn token(identity: &Identity) -> String {
    serde_json::to_string(identity)
        .unwrap()
        .bytes()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn identity_of(token: &str) -> Option<Identity> {
    let bytes: Option<Vec<u8>> = (0..token.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(token.get(at..at + 2)?, 16).ok())
        .collect();
    serde_json::from_slice(&bytes?).ok()
}

/// Options without limits and with short times.
pub fn options() -> GatewayOptions {
    GatewayOptions {
        auth_per_minute: 0,
        requests_per_minute: 0,
        user_requests_per_minute: 0,
        messages_per_second: 0,
        // Long: a test that means the sweep says so.
        sweep: Duration::from_secs(3600),
        drain: Duration::from_millis(300),
        ..GatewayOptions::default()
    }
}

// === the bus ===

#[derive(Clone, Default)]
pub struct ScriptedBus(Arc<Mutex<Vec<Arc<Receiver>>>>, Arc<AtomicBool>);

struct Receiver {
    refuses: Arc<AtomicBool>,
    topics: Mutex<HashSet<Topic>>,
    items: mpsc::UnboundedSender<BusItem>,
}

impl ScriptedBus {
    pub fn deliver(&self, topic: Topic, payload: &[u8]) {
        for receiver in self.0.lock().iter() {
            if receiver.topics.lock().contains(&topic) {
                let payload = Bytes::copy_from_slice(payload);
                let _ = receiver
                    .items
                    .unbounded_send(BusItem::Message { topic, payload });
            }
        }
    }

    pub fn lose(&self) {
        for receiver in self.0.lock().iter() {
            let _ = receiver.items.unbounded_send(BusItem::Lost);
        }
    }

    /// Ends every stream, as a broken adapter would.
    pub fn end_streams(&self) {
        for receiver in self.0.lock().drain(..) {
            receiver.items.close_channel();
        }
    }

    pub fn receivers(&self) -> usize {
        self.0.lock().len()
    }

    pub fn refuse_subscriptions(&self, refuses: bool) {
        self.1.store(refuses, Ordering::Relaxed);
    }

    pub fn topics(&self) -> usize {
        self.0.lock().iter().map(|r| r.topics.lock().len()).sum()
    }
}

#[async_trait]
impl Bus for ScriptedBus {
    async fn publish(&self, topic: Topic, payload: Bytes) -> Result<()> {
        self.deliver(topic, &payload);
        Ok(())
    }

    async fn receiver(&self) -> Result<(Arc<dyn Subscriptions>, BoxStream<'static, BusItem>)> {
        let (items, stream) = mpsc::unbounded();
        let receiver = Arc::new(Receiver {
            refuses: self.1.clone(),
            topics: Mutex::default(),
            items,
        });
        self.0.lock().push(receiver.clone());
        Ok((receiver, stream.boxed()))
    }
}

#[async_trait]
impl Subscriptions for Receiver {
    async fn subscribe(&self, topic: Topic) -> Result<()> {
        if self.refuses.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorCode::Unavailable, "bus is not available"));
        }
        self.topics.lock().insert(topic);
        Ok(())
    }

    async fn unsubscribe(&self, topic: Topic) -> Result<()> {
        self.topics.lock().remove(&topic);
        Ok(())
    }
}

// === services ===

fn user(id: UserId) -> User {
    User {
        id,
        username: "ann".into(),
        display_name: "Ann".into(),
        created_at: Timestamp(0),
        about: Default::default(),
    }
}

fn tokens(who: &Identity) -> Tokens {
    Tokens {
        access_token: token(who),
        refresh_token: "refresh".into(),
        expires_in: 900,
        user: user(who.user),
        device: who.device,
    }
}

#[async_trait]
impl TokenVerifier for Town {
    async fn verify_access(&self, token: &str) -> Result<Identity> {
        self.up()?;
        let identity = identity_of(token)
            .ok_or_else(|| Error::unauthenticated("the access token is not valid"))?;
        let now = carillon_domain::time::SystemClock.now();
        if identity.expires_at <= now || self.ended.lock().contains(&identity.device) {
            return Err(Error::unauthenticated("the access token has ended"));
        }
        Ok(identity)
    }

    async fn check_revocation(&self, who: &Identity) -> Result<()> {
        self.up()?;
        if self.ended.lock().contains(&who.device) {
            return Err(Error::unauthenticated("the token was revoked"));
        }
        Ok(())
    }
}

#[async_trait]
impl AuthService for Town {
    async fn register(&self, account: NewAccount) -> Result<User> {
        match account.username.as_str() {
            "taken" => Err(Error::new(ErrorCode::AlreadyExists, "this name is taken")
                .with_field("username", "is taken")),
            "panic" => panic!("a secret of the handler"),
            "defect" => Err(Error::defect("a secret cause")),
            "slow" => std::future::pending().await,
            _ => Ok(user(UserId::new())),
        }
    }

    async fn login(&self, login: Login, _client: ClientInfo) -> Result<Tokens> {
        if login.password == "right password" {
            Ok(tokens(&somebody()))
        } else {
            Err(Error::unauthenticated("unknown login or wrong password"))
        }
    }

    async fn send_otp(&self, _phone_number: &str) -> Result<()> {
        Ok(())
    }

    async fn verify_otp(&self, _phone: &str, _code: &str, _client: ClientInfo) -> Result<Tokens> {
        Ok(tokens(&somebody()))
    }

    async fn refresh(&self, _refresh_token: &str, _client: ClientInfo) -> Result<Tokens> {
        Ok(tokens(&somebody()))
    }

    async fn logout(&self, who: &Identity) -> Result<()> {
        self.end_session(who, who.device).await
    }

    async fn logout_all(&self, _who: &Identity) -> Result<u64> {
        Ok(0)
    }

    async fn sessions(&self, who: &Identity) -> Result<Vec<SessionView>> {
        if self.ended.lock().contains(&who.device) {
            return Ok(Vec::new());
        }
        let session = Session {
            user: who.user,
            device: who.device,
            refresh_hash: [0; 32],
            access_token_id: who.token_id,
            access_expires_at: who.expires_at,
            expires_at: who.expires_at,
            created_at: Timestamp(0),
            last_seen_at: Timestamp(0),
            client: ClientInfo::default(),
        };
        Ok(vec![SessionView {
            session,
            has_push: false,
        }])
    }

    async fn end_session(&self, who: &Identity, device: DeviceId) -> Result<()> {
        self.ended.lock().insert(device);
        self.publish(
            Topic::of_user(who.user),
            &Signal::SessionRevoked {
                user: who.user,
                device: Some(device),
                token_id: None,
            },
        );
        Ok(())
    }

    async fn users(&self, viewer: Option<UserId>, ids: &[UserId]) -> Result<Vec<User>> {
        let blocks = self.blocks.lock();
        let seen = ids
            .iter()
            .filter(|&&id| viewer.is_none_or(|viewer| !blocks.contains(&(id, viewer))));
        Ok(seen.map(|&id| user(id)).collect())
    }

    async fn user_by_name(&self, _viewer: Option<UserId>, _username: &str) -> Result<Option<User>> {
        Ok(None)
    }

    async fn me(&self, who: &Identity) -> Result<(User, Option<String>)> {
        Ok((user(who.user), Some("ann@example.com".into())))
    }

    async fn issue_ticket(&self, who: &Identity) -> Result<String> {
        let ticket = Uuid::now_v7().to_string();
        self.tickets.lock().insert(ticket.clone(), *who);
        Ok(ticket)
    }

    async fn redeem_ticket(&self, ticket: &str) -> Result<Identity> {
        self.tickets
            .lock()
            .remove(ticket)
            .ok_or_else(|| Error::unauthenticated("the ticket is not valid"))
    }
}

#[async_trait]
impl AccountService for Town {
    async fn history(
        &self,
        who: &Identity,
        history: History,
        before: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<SecurityEvent>> {
        let kind = match history {
            History::Logins => SecurityEventKind::LoggedIn,
            History::Security => SecurityEventKind::TokenReused,
        };
        let last = before.map_or(3, |before| before.as_u128());
        let ids = (1..last).rev().take(limit);
        let events = ids.map(|id| SecurityEvent {
            id: Uuid::from_u128(id),
            time: Timestamp(0),
            kind,
            device: Some(who.device),
            client: ClientInfo::default(),
        });
        Ok(events.collect())
    }

    async fn change_profile(&self, who: &Identity, change: ProfileChange) -> Result<User> {
        let mut user = user(who.user);
        change.apply(&mut user);
        Ok(user)
    }

    async fn search(
        &self,
        _who: &Identity,
        query: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<FoundUsers> {
        let found = User {
            username: format!("{query} {after:?} {limit}"),
            ..user(UserId::new())
        };
        Ok(FoundUsers {
            users: vec![found],
            next: Some("further".into()),
        })
    }

    async fn change_username(
        &self,
        who: &Identity,
        username: &str,
        password: Option<String>,
    ) -> Result<User> {
        check_password(password, "password")?;
        Ok(User {
            username: username.to_owned(),
            ..user(who.user)
        })
    }

    async fn change_email(
        &self,
        _who: &Identity,
        _email: &str,
        password: Option<String>,
    ) -> Result<()> {
        check_password(password, "password")
    }

    async fn change_password(
        &self,
        _who: &Identity,
        current: Option<String>,
        _new: String,
    ) -> Result<()> {
        check_password(current, "current_password")
    }

    async fn erase(&self, _who: &Identity, password: Option<String>) -> Result<()> {
        check_password(password, "password")
    }

    async fn verify_email(&self, token: &str, _client: ClientInfo) -> Result<()> {
        check_mailed(token)
    }

    async fn forgot_password(&self, email: &str) -> Result<()> {
        match email.contains('@') {
            true => Ok(()),
            false => Err(Error::invalid("email", "an e-mail address")),
        }
    }

    async fn reset_password(&self, token: &str, _new: String, _client: ClientInfo) -> Result<()> {
        check_mailed(token)
    }
}

fn check_mailed(token: &str) -> Result<()> {
    match token {
        "right token" => Ok(()),
        _ => Err(Error::invalid("token", "is not valid")),
    }
}

fn check_password(password: Option<String>, field: &str) -> Result<()> {
    match password.as_deref() {
        Some("right password") => Ok(()),
        Some(_) => Err(
            Error::new(ErrorCode::PermissionDenied, "the password is wrong")
                .with_field(field, "is wrong"),
        ),
        None => Err(Error::invalid(field, "is required")),
    }
}

impl Town {
    fn view(&self, id: RoomId, kind: RoomKind) -> RoomView {
        RoomView {
            room: Room {
                id,
                kind,
                name: "town".into(),
                description: String::new(),
                created_by: UserId(Uuid::nil()),
                created_at: Timestamp(0),
                pair: None,
                deleted_at: None,
                rules: RoomRules::default(),
            },
            role: Some(Role::Member),
            head: Sequence(
                self.logs
                    .lock()
                    .get(&id)
                    .map_or(0, |l| l.events.len() as u64),
            ),
        }
    }
}

#[async_trait]
impl MessageService for Town {
    async fn create_room(&self, actor: UserId, room: NewRoom) -> Result<RoomView> {
        let id = self.room(&[actor]);
        Ok(self.view(id, room.kind))
    }

    async fn open_direct(&self, actor: UserId, peer: UserId) -> Result<(RoomView, bool)> {
        let delay = *self.direct_delay.lock();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let pair = (actor.min(peer), actor.max(peer));
        let known = self.direct.lock().get(&pair).copied();
        let id = known.unwrap_or_else(|| {
            let id = self.room(&[actor, peer]);
            self.direct.lock().insert(pair, id);
            id
        });
        Ok((self.view(id, RoomKind::Direct), known.is_none()))
    }

    async fn public_rooms(&self, _after: Option<RoomId>, _limit: usize) -> Result<Vec<Room>> {
        self.up()?;
        Ok(Vec::new())
    }

    async fn my_rooms(
        &self,
        _actor: UserId,
        _after: Option<RoomId>,
        _limit: usize,
    ) -> Result<Vec<RoomSummary>> {
        Ok(Vec::new())
    }

    async fn room_ids(&self, actor: UserId) -> Result<Vec<RoomId>> {
        self.up()?;
        self.listings.fetch_add(1, Ordering::Relaxed);
        let logs = self.logs.lock();
        Ok(logs
            .iter()
            .filter(|(_, log)| log.members.contains(&actor))
            .map(|(id, _)| *id)
            .collect())
    }

    async fn room(&self, actor: UserId, room: RoomId) -> Result<RoomView> {
        self.member(room, actor)?;
        Ok(self.view(room, RoomKind::Public))
    }

    async fn delete_room(&self, actor: UserId, room: RoomId) -> Result<()> {
        self.member(room, actor)
    }

    async fn join(&self, actor: UserId, room: RoomId) -> Result<Sequence> {
        let (user, role) = (actor, Role::Member);
        let event = self.append(room, actor, EventBody::Joined { user, role });
        self.tell(&event);
        let direct_with = None;
        self.publish(
            Topic::of_user(actor),
            &Signal::RoomAdded {
                user,
                room,
                direct_with,
            },
        );
        Ok(event.sequence)
    }

    async fn leave(&self, actor: UserId, room: RoomId) -> Result<()> {
        let event = self.append(room, actor, EventBody::left(actor));
        self.tell(&event);
        let user = actor;
        self.publish(Topic::of_user(actor), &Signal::RoomRemoved { user, room });
        Ok(())
    }

    async fn members(
        &self,
        actor: UserId,
        room: RoomId,
        _after: Option<UserId>,
        _limit: usize,
    ) -> Result<Vec<Member>> {
        self.member(room, actor)?;
        Ok(Vec::new())
    }

    async fn put_member(
        &self,
        actor: UserId,
        room: RoomId,
        user: UserId,
        role: Role,
    ) -> Result<Member> {
        self.member(room, actor)?;
        Ok(Member {
            user,
            role,
            since: Sequence(1),
            joined_at: Timestamp(0),
        })
    }

    async fn remove_member(&self, actor: UserId, room: RoomId, _user: UserId) -> Result<()> {
        self.member(room, actor)
    }

    async fn invite(&self, actor: UserId, room: RoomId, user: UserId) -> Result<()> {
        self.member(room, actor)?;
        let by = actor;
        self.publish(Topic::of_user(user), &Signal::Invited { user, room, by });
        Ok(())
    }

    async fn invites(
        &self,
        _actor: UserId,
        _after: Option<RoomId>,
        _limit: usize,
    ) -> Result<Vec<Room>> {
        Ok(Vec::new())
    }

    async fn restrict(
        &self,
        actor: UserId,
        room: RoomId,
        user: UserId,
        restriction: Restriction,
    ) -> Result<()> {
        self.member(room, actor)?;
        let body = match restriction {
            Restriction::Ban => EventBody::Banned { user },
            Restriction::Unban => EventBody::Unbanned { user },
            Restriction::Mute { until } => EventBody::Muted {
                user,
                until: until.unwrap_or(Restrictions::FOR_GOOD),
            },
            Restriction::Unmute => EventBody::Unmuted { user },
        };
        let event = self.append(room, actor, body);
        self.tell(&event);
        if event.body.removes().is_some() {
            self.publish(Topic::of_user(user), &Signal::RoomRemoved { user, room });
        }
        Ok(())
    }

    async fn restrictions(
        &self,
        actor: UserId,
        room: RoomId,
        _after: Option<UserId>,
        _limit: usize,
    ) -> Result<Vec<Restricted>> {
        self.member(room, actor)?;
        Ok(Vec::new())
    }

    async fn change_room(
        &self,
        actor: UserId,
        room: RoomId,
        change: RoomChange,
    ) -> Result<RoomView> {
        self.member(room, actor)?;
        let mut view = self.view(room, RoomKind::Public);
        view.room.name = change.name.unwrap_or(view.room.name);
        view.room.rules = change.rules.unwrap_or(view.room.rules);
        Ok(view)
    }

    async fn mark_delivered(
        &self,
        actor: UserId,
        room: RoomId,
        sequence: Sequence,
    ) -> Result<Reached> {
        self.member(room, actor)?;
        let (user, time) = (actor, Timestamp(0));
        self.publish(
            Topic::of_room(room),
            &Signal::Delivered {
                room,
                user,
                sequence,
                time,
                audience: Audience::Everyone,
            },
        );
        Ok(Reached { sequence, time })
    }

    async fn receipts(
        &self,
        actor: UserId,
        room: RoomId,
        _after: Option<UserId>,
        _limit: usize,
    ) -> Result<Vec<Receipt>> {
        self.member(room, actor)?;
        Ok(Vec::new())
    }

    async fn send(&self, actor: UserId, room: RoomId, draft: Draft) -> Result<SendOutcome> {
        self.member(room, actor)?;
        let body = EventBody::Message {
            id: MessageId::new(),
            draft,
            mentions: Mentions::default(),
        };
        let event = self.append(room, actor, body);
        self.tell(&event);
        // The place was taken when the call was first polled; the answer comes later, as from a store.
        tokio::task::yield_now().await;
        let stored = StoredMessage {
            sent: event,
            changes: Vec::new(),
        };
        Ok(SendOutcome {
            message: stored.fold().unwrap(),
            duplicate: false,
        })
    }

    async fn locate(&self, _message: MessageId) -> Result<ResolvedRoom> {
        Err(Error::not_found("message"))
    }

    async fn message(&self, _actor: UserId, _room: RoomId, _id: MessageId) -> Result<Message> {
        Err(Error::not_found("message"))
    }

    async fn revisions(
        &self,
        _actor: UserId,
        _room: RoomId,
        _id: MessageId,
    ) -> Result<Vec<Revision>> {
        Err(Error::not_found("message"))
    }

    async fn edit(
        &self,
        _actor: UserId,
        _room: RoomId,
        _id: MessageId,
        _content: String,
    ) -> Result<Message> {
        Err(Error::not_found("message"))
    }

    async fn delete(&self, _actor: UserId, _room: RoomId, _id: MessageId) -> Result<Message> {
        Err(Error::not_found("message"))
    }

    async fn history(
        &self,
        actor: UserId,
        room: RoomId,
        _query: HistoryQuery,
    ) -> Result<Vec<Message>> {
        self.member(room, actor)?;
        Ok(Vec::new())
    }

    async fn events(
        &self,
        actor: UserId,
        room: RoomId,
        after: Sequence,
        limit: usize,
    ) -> Result<EventPage> {
        self.member(room, actor)?;
        self.page(room, after, limit)
    }

    async fn heads(&self, rooms: &[RoomId]) -> Result<Vec<RoomHead>> {
        self.up()?;
        let heads = {
            let logs = self.logs.lock();
            rooms
                .iter()
                .filter_map(|room| {
                    let log = logs.get(room)?;
                    Some(RoomHead {
                        room: *room,
                        head: Sequence(log.events.len() as u64),
                    })
                })
                .collect()
        };
        let interruption = self.during_heads.lock().take();
        if let Some(interruption) = interruption {
            interruption(self);
        }
        Ok(heads)
    }

    async fn overviews(&self, _reader: UserId, _rooms: &[RoomId]) -> Result<Vec<RoomOverview>> {
        Ok(Vec::new())
    }

    async fn tail(&self, room: RoomId, after: Sequence, limit: usize) -> Result<EventPage> {
        self.up()?;
        self.tails.fetch_add(1, Ordering::Relaxed);
        tokio::task::yield_now().await;
        self.page(room, after, limit)
    }

    async fn mark_read(&self, actor: UserId, room: RoomId, sequence: Sequence) -> Result<ReadMark> {
        self.member(room, actor)?;
        Ok(ReadMark {
            sequence,
            messages: 0,
            time: Timestamp(0),
        })
    }

    async fn activity(
        &self,
        actor: UserId,
        room: RoomId,
        activity: Activity,
        active: bool,
    ) -> Result<()> {
        self.member(room, actor)?;
        let user = actor;
        self.publish(
            Topic::of_room(room),
            &Signal::Activity {
                room,
                user,
                activity,
                active,
            },
        );
        Ok(())
    }
}

impl Town {
    /// Says that blocks of these people have changed, or are about to.
    pub fn tell_blocks(&self, users: &[UserId]) {
        for &user in users {
            self.publish(Topic::of_user(user), &Signal::BlocksChanged { user });
        }
    }
}

fn related(
    pairs: &BTreeSet<(UserId, UserId)>,
    user: UserId,
    after: Option<UserId>,
    limit: usize,
) -> Vec<Related> {
    let mine = pairs.iter().filter(|(one, _)| *one == user);
    mine.map(|(_, other)| *other)
        .filter(|other| after.is_none_or(|after| *other > after))
        .take(limit)
        .map(|user| Related {
            user,
            since: Timestamp(0),
        })
        .collect()
}

#[async_trait]
impl PeopleService for Town {
    async fn put_contact(&self, user: UserId, other: UserId) -> Result<()> {
        self.contacts.lock().insert((user, other));
        Ok(())
    }

    async fn remove_contact(&self, user: UserId, other: UserId) -> Result<()> {
        self.contacts.lock().remove(&(user, other));
        Ok(())
    }

    async fn contact(&self, user: UserId, other: UserId) -> Result<Related> {
        let all = related(&self.contacts.lock(), user, None, usize::MAX);
        let found = all.into_iter().find(|contact| contact.user == other);
        found.ok_or_else(|| Error::not_found("contact"))
    }

    async fn contacts(
        &self,
        user: UserId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Related>> {
        Ok(related(&self.contacts.lock(), user, after, limit))
    }

    async fn block(&self, user: UserId, other: UserId) -> Result<()> {
        self.blocks.lock().insert((user, other));
        self.tell_blocks(&[user, other]);
        Ok(())
    }

    async fn unblock(&self, user: UserId, other: UserId) -> Result<()> {
        self.blocks.lock().remove(&(user, other));
        self.tell_blocks(&[user, other]);
        Ok(())
    }

    async fn blocks(
        &self,
        user: UserId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Related>> {
        Ok(related(&self.blocks.lock(), user, after, limit))
    }

    async fn sight(&self, user: UserId) -> Result<Sight> {
        self.hidden_reads.fetch_add(1, Ordering::Relaxed);
        if self.people_down.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorCode::Unavailable, "auth is not available"));
        }
        let blocks = self.blocks.lock();
        let hidden = blocks.iter().filter_map(|&(one, other)| match user {
            _ if user == one => Some(other),
            _ if user == other => Some(one),
            _ => None,
        });
        let contacts = self.contacts.lock();
        let of_user = contacts.iter().filter(|(one, _)| *one == user);
        let about_user = contacts.iter().filter(|(_, other)| *other == user);
        let settings = self.settings.lock().get(&user).cloned().unwrap_or_default();
        Ok(Sight {
            hidden: Hidden::People(hidden.collect()),
            privacy: settings.privacy,
            contacts: of_user.map(|(_, other)| *other).collect(),
            contact_of: about_user.map(|(one, _)| *one).collect(),
        })
    }

    async fn settings(&self, user: UserId) -> Result<Settings> {
        let settings = self.settings.lock();
        Ok(settings.get(&user).cloned().unwrap_or_default())
    }

    async fn change_settings(&self, user: UserId, change: SettingsChange) -> Result<Settings> {
        let changed = {
            let mut all = self.settings.lock();
            let settings = all.entry(user).or_default();
            change.apply(settings);
            settings.clone()
        };
        self.tell_blocks(&[user]);
        Ok(changed)
    }
}

#[async_trait]
impl PresenceService for Town {
    async fn renew(&self, leases: &[Lease]) -> Result<()> {
        self.leases.lock().extend_from_slice(leases);
        Ok(())
    }

    async fn release(&self, _user: UserId, device: DeviceId) -> Result<()> {
        self.released.lock().push(device);
        Ok(())
    }

    async fn get(&self, users: &[UserId]) -> Result<Vec<Presence>> {
        Ok(users
            .iter()
            .map(|&user| Presence {
                user,
                state: PresenceState::Offline,
                last_seen: None,
            })
            .collect())
    }

    async fn visible(&self, _viewer: UserId, users: &[UserId]) -> Result<Vec<Presence>> {
        self.get(users).await
    }
}

#[async_trait]
impl MediaService for Town {
    async fn upload(&self, actor: UserId, media: NewMedia) -> Result<Media> {
        let stored = Media {
            id: MediaId::new(),
            room: media.room,
            owner: actor,
            file_name: media.file_name,
            content_type: "image/png".into(),
            size: media.bytes.len() as u64,
            sha256: "5ha".into(),
            created_at: Timestamp(0),
        };
        self.uploads
            .lock()
            .insert(stored.id, (stored.clone(), media.bytes));
        Ok(stored)
    }

    async fn describe(&self, _actor: UserId, id: MediaId) -> Result<Media> {
        let uploads = self.uploads.lock();
        let (media, _) = uploads.get(&id).ok_or_else(|| Error::not_found("upload"))?;
        Ok(media.clone())
    }

    async fn download(
        &self,
        actor: UserId,
        id: MediaId,
        range: Option<std::ops::Range<u64>>,
    ) -> Result<(Media, Bytes)> {
        let media = self.describe(actor, id).await?;
        let bytes = self.uploads.lock()[&id].1.clone();
        let range = range.unwrap_or(0..media.size);
        Ok((media, bytes.slice(range.start as usize..range.end as usize)))
    }
}

#[async_trait]
impl NotificationService for Town {
    async fn register(&self, _who: &Identity, _target: NewPushTarget) -> Result<()> {
        Ok(())
    }

    async fn unregister(&self, _who: &Identity) -> Result<()> {
        Ok(())
    }
}

/// A key set that doesn't change.
pub fn published(jwks: &'static str) -> tokio::sync::watch::Receiver<bytes::Bytes> {
    tokio::sync::watch::channel(bytes::Bytes::from_static(jwks.as_bytes())).1
}
