use std::{
    collections::HashMap,
    sync::{Arc, OnceLock, Weak},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use carillon_domain::{
    ClientMessageId, Clock, Error, ErrorCode, MessageId, ReplicaId, Result, RoomId, Sequence,
    UserId,
    event::{Draft, Message, Revision},
    policy::{self, Action, Who},
    ports::{
        AccountStore, Bus, PeopleStore, PersonKeys, PushQueue, Reached, ReadMark, Receipt,
        Restricted, RoomLog, RoomStore, SettingsStore,
    },
    privacy::{Audience, Fact},
    room::{Member, Role, Room, RoomKind, RoomRules, Standing},
    services::{
        EventPage, HistoryQuery, MessageService, NewRoom, PresenceService, ResolvedRoom,
        Restriction, RoomChange, RoomHead, RoomOverview, RoomSummary, RoomView, SendOutcome,
    },
    signal::{Activity, Signal},
    validate::{self, Problems},
    view::View,
};
use dashmap::DashMap;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::oneshot;

use crate::{
    audiences::Audiences,
    decide::{self, Intent, Outcome, Rules},
    erase, mentions,
    notify::{Notifier, PushPorts},
    partition::{self, Partitions, Request, Shared, Write},
    purge, reads,
    roster::Ownership,
    state::RoomHandle,
};

/// Rooms of one person that stores list at most.
const MAX_ROOMS: usize = 5000;
/// Events that are searched for a room's last message.
const LAST_MESSAGE_SEARCH: u64 = 100;
/// Rooms of a person that are looked at together for their list.
const LISTED_TOGETHER: usize = 100;
/// Rooms of a person that are looked at together for deleted ones.
const COUNTED_TOGETHER: usize = 1000;
/// Invitations that wait for one person's answer.
const MAX_INVITES: usize = 1000;
/// How often a send asks other rooms about its client message id before it gives up: each time only about places that came up
/// since, so that more than once means that the same id is being sent to several rooms right now.
const SETTLING_ROUNDS: usize = 3;
/// Rooms with a retention that are listed at once, and those of them that are purged at once.
const RETAINED: usize = 1000;
const PURGED_AT_ONCE: usize = 4;
/// Other rooms that are asked at once.
const ASKED_AT_ONCE: usize = 8;

/// What can be set.
#[derive(Clone, Copy, Debug)]
pub struct MessageOptions {
    /// How long after sending a message its sender may edit or delete it (MSG-08).
    pub edit_window: Duration,
    /// Rooms that one person may be in, 5,000 at most (direct rooms that others open with them count, but aren't refused).
    pub max_rooms: usize,
    /// For how long a list, or the refusal of a read, may be answered from memory after it was proven that this replica owns the
    /// room: after another one took over, those of an old owner are at most this old. Costs one read of the log per partition in use and this
    /// time. What is read of one room is always proven anew.
    pub proof_lasts: Duration,
    /// How often what retention leaves no more is removed from the store (MSG-21), two rounds after it was due. Readers don't wait
    /// for that: the first one after it is due finds out.
    pub purge_every: Duration,
    /// How often to look for people whose accounts were erased.
    pub erase_every: Duration,
}

impl Default for MessageOptions {
    fn default() -> Self {
        Self {
            edit_window: Duration::from_secs(180),
            max_rooms: MAX_ROOMS,
            proof_lasts: Duration::from_secs(1),
            purge_every: Duration::from_secs(30),
            erase_every: Duration::from_secs(5),
        }
    }
}

/// What the role needs.
pub struct MessagePorts {
    /// The logs.
    pub log: Arc<dyn RoomLog>,
    /// Rooms and projections.
    pub rooms: Arc<dyn RoomStore>,
    /// For whether a person exists, and how they are called.
    pub accounts: Arc<dyn AccountStore>,
    /// For who blocked whom.
    pub people: Arc<dyn PeopleStore>,
    /// For to whom people show their receipts.
    pub settings: Arc<dyn SettingsStore>,
    /// To gateways.
    pub bus: Arc<dyn Bus>,
    /// For who needs a push.
    pub presence: Arc<dyn PresenceService>,
    /// Where push jobs go.
    pub push_queue: Arc<dyn PushQueue>,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// Which partitions are ours.
    pub ownership: Arc<dyn Ownership>,
    /// For who is being erased.
    pub person_keys: Arc<dyn PersonKeys>,
}

/// The message role. See the crate's documentation.
pub struct MessageRole {
    pub(crate) shared: Arc<Shared>,
    partitions: Partitions,
    pub(crate) rooms: Arc<dyn RoomStore>,
    pub(crate) person_keys: Arc<dyn PersonKeys>,
    accounts: Arc<dyn AccountStore>,
    settings: Arc<dyn SettingsStore>,
    audiences: Audiences,
    max_rooms: usize,
    /// All replicas, this one included.
    peers: OnceLock<Arc<dyn MessageService>>,
    me: Weak<MessageRole>,
}

impl MessageRole {
    /// Starts the role; call it inside of a tokio runtime. `peers` reaches the owner of any room; without it this replica is
    /// the only one.
    pub fn start(
        options: MessageOptions,
        ports: MessagePorts,
        replica: ReplicaId,
        peers: Option<Arc<dyn MessageService>>,
    ) -> Arc<Self> {
        let push = PushPorts {
            accounts: ports.accounts.clone(),
            rooms: ports.rooms.clone(),
            presence: ports.presence,
            queue: ports.push_queue,
        };
        let notifier = Notifier::start(ports.bus, push);
        let rules = Rules {
            edit_window: options.edit_window,
        };
        let partitions = Partitions::new(Shared {
            log: ports.log,
            rooms: ports.rooms.clone(),
            people: ports.people,
            clock: ports.clock,
            ownership: ports.ownership,
            replica,
            notifier,
            rules,
            proof_lasts: options.proof_lasts,
            opened: DashMap::new(),
        });
        let role = Arc::new_cyclic(|me| Self {
            shared: partitions.shared.clone(),
            partitions,
            rooms: ports.rooms,
            person_keys: ports.person_keys,
            accounts: ports.accounts,
            audiences: Audiences::new(ports.settings.clone()),
            settings: ports.settings,
            max_rooms: options.max_rooms.min(MAX_ROOMS),
            peers: peers.map(OnceLock::from).unwrap_or_default(),
            me: me.clone(),
        });
        tokio::spawn(purge::run(Arc::downgrade(&role), options.purge_every));
        tokio::spawn(erase::run(Arc::downgrade(&role), options.erase_every));
        role
    }

    /// Removes what the retention of this replica's rooms leaves no more. A room that fails is tried again the next time.
    pub(crate) async fn purge(&self) -> Result<()> {
        let mut after = None;
        loop {
            let rooms = self.rooms.retained(after, RETAINED).await?;
            after = rooms.last().copied();
            let full = rooms.len() == RETAINED;
            let owned = rooms
                .into_iter()
                .filter(|room| self.shared.check_owner(*room).is_ok());
            stream::iter(owned)
                .for_each_concurrent(PURGED_AT_ONCE, |room| async move {
                    if let Err(error) = self.purge_room(room).await {
                        tracing::debug!(%error, cause = error.cause_chain(), %room, "a room keeps more than its retention for now");
                    }
                })
                .await;
            if !full {
                return Ok(());
            }
        }
    }

    async fn purge_room(&self, room: RoomId) -> Result<()> {
        let handle = self.open_now(room).await?;
        // Who reads now may still have the floor of before: what is below the last time's is read by nobody.
        let below = {
            let mut now = handle.now.lock();
            let floor = now.floor.first;
            std::mem::replace(&mut now.purgeable, floor)
        };
        while self.shared.log.purge(room, &handle.fences, below).await? {}
        Ok(())
    }

    fn peers(&self) -> Result<Arc<dyn MessageService>> {
        match self.peers.get() {
            Some(peers) => Ok(peers.clone()),
            None => {
                let me: Arc<dyn MessageService> = self
                    .me
                    .upgrade()
                    .ok_or_else(|| Error::new(ErrorCode::Unavailable, "shutting down"))?;
                Ok(me)
            }
        }
    }

    pub(crate) async fn write(
        &self,
        room: RoomId,
        actor: UserId,
        intent: Intent,
    ) -> Result<Outcome> {
        self.shared.check_owner(room)?;
        let (reply, answer) = oneshot::channel();
        let write = Write {
            room,
            actor,
            intent,
            reply,
            span: tracing::Span::current(),
            traceparent: carillon_telemetry::propagation::traceparent(),
        };
        self.partitions
            .enqueue(room, Request::Write(Box::new(write)))?;
        answer.await.map_err(|_| {
            Error::new(
                ErrorCode::Unavailable,
                "the message role is stopping, try again",
            )
        })?
    }

    /// The open room, whoever asks.
    async fn open(&self, room: RoomId) -> Result<RoomHandle> {
        self.shared.check_owner(room)?;
        if let Some(handle) = self.shared.open_room(room) {
            return Ok(handle);
        }
        let (reply, answer) = oneshot::channel();
        self.partitions
            .enqueue(room, Request::Open { room, reply })?;
        answer.await.map_err(|_| {
            Error::new(
                ErrorCode::Unavailable,
                "the message role is stopping, try again",
            )
        })?
    }

    /// The open room as it is now or later: nobody else took it over before this call, so that everything acknowledged before it
    /// is seen.
    async fn open_now(&self, room: RoomId) -> Result<RoomHandle> {
        let since = Instant::now();
        let now = self.shared.clock.now();
        let mut handle = self.open(room).await?;
        match self.shared.prove(&handle, since).await {
            // The proof that `open` went by was too old. Its tenure has ended with this, so it is opened under a new one.
            Err(error) if error.code == ErrorCode::NotOwner => {
                handle = self.open(room).await?;
                self.shared.prove(&handle, since).await?;
            }
            proven => proven?,
        }
        // By the time before the proof: what had to go then may go, whatever another owner's rules say later.
        reads::expire(self.shared.log.as_ref(), &handle, now).await?;
        Ok(handle)
    }

    /// The open room if the actor may do this in it, with their standing.
    async fn open_to(
        &self,
        actor: UserId,
        room: RoomId,
        action: Action,
    ) -> Result<(RoomHandle, Standing)> {
        let handle = self.open_now(room).await?;
        if handle.now.lock().deleted {
            return Err(Error::not_found("room"));
        }
        let standing = partition::standing_of(self.rooms.as_ref(), &handle, actor).await?;
        let who = Who {
            blocked: self.shared.is_blocked(&handle).await?,
            ..Who::of(&standing, self.shared.clock.now())
        };
        policy::require(handle.room.kind, who, action)?;
        Ok((handle, standing))
    }

    /// The open room if the actor may read it.
    async fn open_for(&self, actor: UserId, room: RoomId) -> Result<RoomHandle> {
        let (handle, _) = self.open_to(actor, room, Action::Read).await?;
        Ok(handle)
    }

    /// The open room if the actor is a member of it.
    async fn open_as_member(&self, actor: UserId, room: RoomId) -> Result<RoomHandle> {
        let (handle, standing) = self.open_to(actor, room, Action::Read).await?;
        if standing.member.is_none() {
            return Err(Error::denied("only members of the room may do this"));
        }
        Ok(handle)
    }

    /// Refuses a person who is in too many rooms already. Deleted ones don't count; those that are found are forgotten.
    async fn check_room_limit(&self, user: UserId) -> Result<()> {
        let ids = self.rooms.rooms_of(user, None, self.max_rooms).await?;
        if ids.len() < self.max_rooms {
            return Ok(());
        }
        let mut gone = 0;
        for ids in ids.chunks(COUNTED_TOGETHER) {
            let rooms = self.rooms.get_many(ids).await?;
            gone += self.forget_deleted(user, &rooms).await;
        }
        if gone == 0 {
            return Err(Error::new(
                ErrorCode::FailedPrecondition,
                format!("a person can be in at most {} rooms", self.max_rooms),
            ));
        }
        Ok(())
    }

    /// [`Self::check_room_limit`] of a person who is to come into a room, unless they are in it.
    async fn check_room_limit_for(&self, user: UserId, room: RoomId) -> Result<()> {
        match self.rooms.member(room, user).await? {
            Some(_) => Ok(()),
            None => self.check_room_limit(user).await,
        }
    }

    /// Refuses to bring somebody into a room with a block between them and who asks: a room of two would be a way around it
    /// (USER-05).
    async fn check_newcomer(&self, actor: UserId, room: RoomId, user: UserId) -> Result<()> {
        let people = &self.shared.people;
        let blocked = !people.blocked_between(actor, &[user]).await?.is_empty();
        if blocked && self.rooms.member(room, user).await?.is_none() {
            return Err(Error::denied("you can't bring this person into a room"));
        }
        Ok(())
    }

    /// Takes the deleted ones of these rooms from a person's list; says how many they are. Nobody can leave a deleted room, and
    /// its members may be too many to be visited when it is deleted: so it goes when its members are met.
    pub(crate) async fn forget_deleted(&self, user: UserId, rooms: &[Room]) -> usize {
        let deleted: Vec<RoomId> = rooms
            .iter()
            .filter(|room| room.deleted_at.is_some())
            .map(|room| room.id)
            .collect();
        if !deleted.is_empty()
            && let Err(error) = self.rooms.forget_deleted(user, &deleted).await
        {
            tracing::warn!(%error, cause = error.cause_chain(), "deleted rooms stay in somebody's list until it is read again");
        }
        deleted.len()
    }

    /// Whether a client message id stands at one of these places of other rooms: their owners know.
    async fn stands_at(
        &self,
        sender: UserId,
        id: &ClientMessageId,
        places: &[(RoomId, Sequence)],
    ) -> Result<bool> {
        let peers = self.peers()?;
        let asked = stream::iter(places.iter().copied()).map(|(room, place)| {
            let peers = &peers;
            async move {
                let after = Sequence(place.0.saturating_sub(1));
                match peers.tail(room, after, 1).await {
                    // A deleted message's content is left out of the tail, its ids are not.
                    Ok(page) => Ok(page.events.first().is_some_and(|event| {
                        event.sequence == place && partition::is_send(event, sender, id)
                    })),
                    Err(error) if error.code == ErrorCode::NotFound => Ok(false),
                    Err(error) => Err(error),
                }
            }
        });
        let found: Vec<bool> = asked
            .buffer_unordered(ASKED_AT_ONCE)
            .try_collect::<Vec<bool>>()
            .await?;
        Ok(found.contains(&true))
    }

    async fn view(&self, actor: UserId, room: Room) -> Result<RoomView> {
        let peers = self.peers()?;
        peers.join(actor, room.id).await?;
        peers.room(actor, room.id).await
    }

    /// An open room for a list; `None` if there is none.
    async fn open_to_list(&self, room: RoomId) -> Result<Option<RoomHandle>> {
        let handle = match self.open(room).await {
            Ok(handle) => handle,
            Err(error) if error.code == ErrorCode::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let expires = handle.now.lock().room.rules.retention().is_some();
        if expires {
            return self.open_now(room).await.map(Some);
        }
        Ok(Some(handle))
    }

    async fn overview(
        &self,
        reader: UserId,
        handle: RoomHandle,
        read: ReadMark,
    ) -> Result<Option<RoomOverview>> {
        let (head, kept, deleted) = {
            let now = handle.now.lock();
            (now.head, now.messages - now.floor.messages, now.deleted)
        };
        if deleted {
            return Ok(None);
        }
        let searched = Sequence(head.0.saturating_sub(LAST_MESSAGE_SEARCH));
        let query = HistoryQuery {
            limit: 1,
            before: Some(head.next()),
            after: Some(searched),
        };
        let log = self.shared.log.as_ref();
        let last_message = if kept == 0 {
            None
        } else {
            reads::history(log, &handle, query).await?.pop()
        };
        let unread = reads::unread(self.rooms.as_ref(), &handle, reader, read).await?;
        Ok(Some(RoomOverview {
            room: handle.id(),
            head,
            last_message,
            read: unread.mark,
            unread: unread.messages,
            mentions: unread.mentions,
        }))
    }
}

fn wrong(what: &str) -> Error {
    Error::defect(format!("a decision about {what} had another outcome"))
}

/// A room's shown name.
const NAME: &str = "1 to 80 characters, no control characters";
/// A room's description.
const DESCRIPTION: &str = "at most 1000 characters";

fn is_description(text: &str) -> bool {
    text.chars().count() <= 1000
}

fn check_rules(problems: &mut Problems, rules: &RoomRules) {
    let fits =
        |value: Option<u32>, least, most| value.is_none_or(|value| (least..=most).contains(&value));
    problems.check(
        fits(rules.edit_window_seconds, 0, RoomRules::MAX_EDIT_WINDOW),
        "rules.edit_window_seconds",
        "0 to 86400",
    );
    problems.check(
        fits(
            rules.retention_seconds,
            RoomRules::MIN_RETENTION,
            RoomRules::MAX_RETENTION,
        ),
        "rules.retention_seconds",
        "5 to 315360000, or null to keep everything",
    );
}

fn check_range(field: &str, value: usize, max: usize) -> Result<()> {
    if (1..=max).contains(&value) {
        Ok(())
    } else {
        Err(Error::invalid(field, format!("1 to {max}")))
    }
}

#[async_trait]
impl MessageService for MessageRole {
    async fn create_room(&self, actor: UserId, new: NewRoom) -> Result<RoomView> {
        let mut problems = Problems::default();
        problems.check(
            new.kind != RoomKind::Direct,
            "type",
            "public, private, group or channel; direct rooms are opened with POST /dm",
        );
        problems.check(validate::is_display_name(&new.name), "name", NAME);
        problems.check(is_description(&new.description), "description", DESCRIPTION);
        check_rules(&mut problems, &new.rules);
        problems.into_result()?;
        self.check_room_limit(actor).await?;
        let room = Room {
            id: RoomId::new(),
            kind: new.kind,
            name: new.name.trim().to_owned(),
            description: new.description.trim().to_owned(),
            created_by: actor,
            created_at: self.shared.clock.now(),
            pair: None,
            deleted_at: None,
            rules: RoomRules::default(),
        };
        let rules = new.rules;
        self.rooms.create(&room).await?;
        let id = room.id;
        let view = self.view(actor, room).await?;
        if rules == RoomRules::default() {
            return Ok(view);
        }
        // Rules are in the log, like every change of a room.
        let change = RoomChange {
            rules: Some(rules),
            ..RoomChange::default()
        };
        self.peers()?.change_room(actor, id, change).await
    }

    async fn open_direct(&self, actor: UserId, peer: UserId) -> Result<(RoomView, bool)> {
        if actor == peer {
            return Err(Error::invalid("recipient_id", "somebody else"));
        }
        if self.accounts.by_ids(&[peer]).await?.is_empty() {
            return Err(Error::not_found("user"));
        }
        let blocks = self.shared.people.blocked_between(actor, &[peer]).await?;
        let both = Who {
            role: Some(Role::Member),
            blocked: !blocks.is_empty(),
            ..Who::default()
        };
        policy::require(RoomKind::Direct, both, Action::Send)?;
        let candidate = RoomId::new();
        let id = self.rooms.direct_room(actor, peer, candidate).await?;
        let room = match self.rooms.get(id).await? {
            Some(room) => room,
            None => {
                // First, or somebody won the race (or crashed) before they stored it: what is stored is the same for all.
                let mut pair = [actor, peer];
                pair.sort();
                let room = Room {
                    id,
                    kind: RoomKind::Direct,
                    name: String::new(),
                    description: String::new(),
                    created_by: pair[0],
                    created_at: self.shared.clock.now(),
                    pair: Some(pair),
                    deleted_at: None,
                    rules: RoomRules::default(),
                };
                self.rooms.create(&room).await?;
                room
            }
        };
        Ok((self.view(actor, room).await?, id == candidate))
    }

    async fn public_rooms(&self, after: Option<RoomId>, limit: usize) -> Result<Vec<Room>> {
        check_range("limit", limit, 100)?;
        self.rooms.list_public(after, limit).await
    }

    async fn my_rooms(
        &self,
        actor: UserId,
        after: Option<RoomId>,
        limit: usize,
    ) -> Result<Vec<RoomSummary>> {
        check_range("limit", limit, 100)?;
        let peers = self.peers()?;
        let summary = |room: Room, overview: RoomOverview| RoomSummary {
            peer: room
                .pair
                .and_then(|pair| pair.into_iter().find(|user| *user != actor)),
            head: overview.head,
            last_message: overview.last_message,
            read: overview.read,
            unread: overview.unread,
            mentions: overview.mentions,
            room,
        };
        let mut after = after;
        let mut summaries = Vec::new();
        // A short page means that there are no more rooms, so it must be filled past those that aren't there any more.
        while summaries.len() < limit {
            let ids = self.rooms.rooms_of(actor, after, LISTED_TOGETHER).await?;
            let mut rooms = self.rooms.get_many(&ids).await?;
            self.forget_deleted(actor, &rooms).await;
            rooms.retain(|room| room.deleted_at.is_none());
            rooms.sort_by_key(|room| room.id);
            let mut rooms = rooms.into_iter();
            while summaries.len() < limit {
                let next: Vec<Room> = rooms.by_ref().take(limit - summaries.len()).collect();
                if next.is_empty() {
                    break;
                }
                let ids: Vec<RoomId> = next.iter().map(|room| room.id).collect();
                let mut overviews: HashMap<RoomId, RoomOverview> = peers
                    .overviews(actor, &ids)
                    .await?
                    .into_iter()
                    .map(|overview| (overview.room, overview))
                    .collect();
                summaries.extend(next.into_iter().filter_map(|room| {
                    let overview = overviews.remove(&room.id)?;
                    Some(summary(room, overview))
                }));
            }
            after = ids.last().copied();
            if ids.len() < LISTED_TOGETHER {
                break;
            }
        }
        Ok(summaries)
    }

    async fn room_ids(&self, actor: UserId) -> Result<Vec<RoomId>> {
        self.rooms.rooms_of(actor, None, MAX_ROOMS).await
    }

    async fn room(&self, actor: UserId, room: RoomId) -> Result<RoomView> {
        let (handle, standing) = self.open_to(actor, room, Action::Read).await?;
        let now = handle.now.lock();
        Ok(RoomView {
            room: Room::clone(&now.room),
            role: standing.member.map(|member| member.role),
            head: now.head,
        })
    }

    async fn delete_room(&self, actor: UserId, room: RoomId) -> Result<()> {
        self.write(room, actor, Intent::DeleteRoom)
            .await
            .map(|_| ())
    }

    async fn join(&self, actor: UserId, room: RoomId) -> Result<Sequence> {
        self.shared.check_owner(room)?;
        self.check_room_limit_for(actor, room).await?;
        match self.write(room, actor, Intent::Join).await? {
            Outcome::Joined(place) => Ok(place),
            _ => Err(wrong("a join")),
        }
    }

    async fn leave(&self, actor: UserId, room: RoomId) -> Result<()> {
        self.write(room, actor, Intent::Leave).await.map(|_| ())
    }

    async fn members(
        &self,
        actor: UserId,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Member>> {
        check_range("limit", limit, 1000)?;
        let handle = self.open_for(actor, room).await?;
        self.rooms.members(handle.id(), after, limit).await
    }

    async fn put_member(
        &self,
        actor: UserId,
        room: RoomId,
        user: UserId,
        role: Role,
    ) -> Result<Member> {
        self.shared.check_owner(room)?;
        if self.accounts.by_ids(&[user]).await?.is_empty() {
            return Err(Error::not_found("user"));
        }
        self.check_newcomer(actor, room, user).await?;
        self.check_room_limit_for(user, room).await?;
        match self
            .write(room, actor, Intent::PutMember { user, role })
            .await?
        {
            Outcome::Member(member) => Ok(member),
            _ => Err(wrong("a member")),
        }
    }

    async fn remove_member(&self, actor: UserId, room: RoomId, user: UserId) -> Result<()> {
        self.write(room, actor, Intent::RemoveMember { user })
            .await
            .map(|_| ())
    }

    async fn invite(&self, actor: UserId, room: RoomId, user: UserId) -> Result<()> {
        self.shared.check_owner(room)?;
        if self.accounts.by_ids(&[user]).await?.is_empty() {
            return Err(Error::not_found("user"));
        }
        self.check_newcomer(actor, room, user).await?;
        let open = self.rooms.invites_of(user, None, MAX_INVITES).await?;
        if open.len() == MAX_INVITES && !open.contains(&room) {
            return Err(Error::new(
                ErrorCode::FailedPrecondition,
                "this person has too many unanswered invitations",
            ));
        }
        self.write(room, actor, Intent::Invite { user })
            .await
            .map(|_| ())
    }

    async fn invites(
        &self,
        actor: UserId,
        after: Option<RoomId>,
        limit: usize,
    ) -> Result<Vec<Room>> {
        check_range("limit", limit, 100)?;
        let mut after = after;
        let mut invites = Vec::new();
        // A short page means that there are no more, so it must be filled past rooms that were deleted.
        while invites.len() < limit {
            let ids = self.rooms.invites_of(actor, after, LISTED_TOGETHER).await?;
            let mut rooms = self.rooms.get_many(&ids).await?;
            self.forget_deleted(actor, &rooms).await;
            rooms.retain(|room| room.deleted_at.is_none());
            rooms.sort_by_key(|room| room.id);
            rooms.truncate(limit - invites.len());
            invites.extend(rooms);
            after = ids.last().copied();
            if ids.len() < LISTED_TOGETHER {
                break;
            }
        }
        Ok(invites)
    }

    async fn restrict(
        &self,
        actor: UserId,
        room: RoomId,
        user: UserId,
        restriction: Restriction,
    ) -> Result<()> {
        self.shared.check_owner(room)?;
        if self.accounts.by_ids(&[user]).await?.is_empty() {
            return Err(Error::not_found("user"));
        }
        self.write(room, actor, Intent::Restrict { user, restriction })
            .await
            .map(|_| ())
    }

    async fn restrictions(
        &self,
        actor: UserId,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Restricted>> {
        check_range("limit", limit, 1000)?;
        self.open_to(actor, room, Action::ReadRestrictions).await?;
        let now = self.shared.clock.now();
        let mut after = after;
        let mut found: Vec<Restricted> = Vec::new();
        while found.len() < limit {
            let wanted = limit.max(LISTED_TOGETHER);
            let page = self.rooms.restricted(room, after, wanted).await?;
            let binding = page.iter().filter(|restricted| {
                restricted.restrictions.banned || restricted.restrictions.is_muted(now)
            });
            found.extend(binding.take(limit - found.len()).copied());
            after = page.last().map(|restricted| restricted.user);
            if page.len() < wanted {
                break;
            }
        }
        Ok(found)
    }

    async fn change_room(
        &self,
        actor: UserId,
        room: RoomId,
        change: RoomChange,
    ) -> Result<RoomView> {
        let mut problems = Problems::default();
        let name = change.name.as_deref();
        problems.check(name.is_none_or(validate::is_display_name), "name", NAME);
        let description = change.description.as_deref();
        problems.check(
            description.is_none_or(is_description),
            "description",
            DESCRIPTION,
        );
        if let Some(rules) = &change.rules {
            check_rules(&mut problems, rules);
        }
        problems.into_result()?;
        let trimmed = |text: String| text.trim().to_owned();
        let change = RoomChange {
            name: change.name.map(trimmed),
            description: change.description.map(trimmed),
            rules: change.rules,
        };
        self.write(room, actor, Intent::Change(change)).await?;
        self.room(actor, room).await
    }

    #[tracing::instrument(level = "debug", name = "message.send", skip_all, fields(otel.kind = "internal", room = %room))]
    async fn send(&self, actor: UserId, room: RoomId, draft: Draft) -> Result<SendOutcome> {
        validate::draft(&draft)?;
        if let Some(answered) = draft.reply_to {
            let found = self.shared.log.find_message(answered).await?;
            if found.is_none_or(|(found, _)| found != room) {
                return Err(Error::invalid("reply_to", "a message of the same room"));
            }
        }
        let mentions = mentions::of(&draft, self.accounts.as_ref()).await?;
        let mut void = Vec::new();
        for _ in 0..SETTLING_ROUNDS {
            let intent = Intent::Send {
                draft: draft.clone(),
                mentions: mentions.clone(),
                void: void.clone(),
            };
            match self.write(room, actor, intent).await? {
                Outcome::Sent(sent) => return Ok(sent),
                Outcome::Unsettled(places) => {
                    let id = &draft.client_message_id;
                    if self.stands_at(actor, id, &places).await? {
                        return Err(decide::other_content());
                    }
                    void.extend(places);
                }
                _ => return Err(wrong("a send")),
            }
        }
        Err(Error::new(
            ErrorCode::Unavailable,
            "this client message id is being sent to several rooms, try again",
        ))
    }

    async fn locate(&self, message: MessageId) -> Result<ResolvedRoom> {
        let found = self.shared.log.find_message(message).await?;
        let (room, sequence) = found.ok_or_else(|| Error::not_found("message"))?;
        Ok(ResolvedRoom { room, sequence })
    }

    async fn message(&self, actor: UserId, room: RoomId, message: MessageId) -> Result<Message> {
        let handle = self.open_for(actor, room).await?;
        let stored = partition::stored_message(self.shared.log.as_ref(), &handle, message).await?;
        stored
            .and_then(|stored| stored.fold())
            .ok_or_else(|| Error::not_found("message"))
    }

    async fn revisions(
        &self,
        actor: UserId,
        room: RoomId,
        message: MessageId,
    ) -> Result<Vec<Revision>> {
        let handle = self.open_for(actor, room).await?;
        let stored = partition::stored_message(self.shared.log.as_ref(), &handle, message).await?;
        Ok(stored
            .ok_or_else(|| Error::not_found("message"))?
            .revisions())
    }

    async fn edit(
        &self,
        actor: UserId,
        room: RoomId,
        message: MessageId,
        content: String,
    ) -> Result<Message> {
        match self
            .write(
                room,
                actor,
                Intent::Edit {
                    id: message,
                    content,
                },
            )
            .await?
        {
            Outcome::Message(message) => Ok(message),
            _ => Err(wrong("an edit")),
        }
    }

    async fn delete(&self, actor: UserId, room: RoomId, message: MessageId) -> Result<Message> {
        match self
            .write(room, actor, Intent::Delete { id: message })
            .await?
        {
            Outcome::Message(message) => Ok(message),
            _ => Err(wrong("a delete")),
        }
    }

    async fn history(
        &self,
        actor: UserId,
        room: RoomId,
        query: HistoryQuery,
    ) -> Result<Vec<Message>> {
        check_range("limit", query.limit, 100)?;
        let handle = self.open_for(actor, room).await?;
        reads::history(self.shared.log.as_ref(), &handle, query).await
    }

    async fn events(
        &self,
        actor: UserId,
        room: RoomId,
        after: Sequence,
        limit: usize,
    ) -> Result<EventPage> {
        check_range("limit", limit, 1000)?;
        let handle = self.open_for(actor, room).await?;
        reads::events(self.shared.log.as_ref(), &handle, after, limit).await
    }

    async fn heads(&self, rooms: &[RoomId]) -> Result<Vec<RoomHead>> {
        check_range("rooms", rooms.len().max(1), 1000)?;
        let heads = stream::iter(rooms.iter().copied()).map(|room| async move {
            match self.open(room).await {
                Ok(handle) => Ok(Some(RoomHead {
                    room,
                    head: handle.now.lock().head,
                })),
                Err(error) if error.code == ErrorCode::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        });
        heads
            .buffer_unordered(64)
            .try_filter_map(|head| async move { Ok(head) })
            .try_collect()
            .await
    }

    async fn overviews(&self, reader: UserId, rooms: &[RoomId]) -> Result<Vec<RoomOverview>> {
        check_range("rooms", rooms.len().max(1), 100)?;
        let handles: Vec<RoomHandle> = stream::iter(rooms.iter().copied())
            .map(|room| self.open_to_list(room))
            .buffer_unordered(16)
            .try_filter_map(|handle| async move { Ok(handle) })
            .try_collect()
            .await?;
        // After the rooms were opened: that people have read what they wrote under an owner before may be written only then.
        let marks = self.rooms.read_marks(reader, rooms).await?;
        let marks: HashMap<RoomId, ReadMark> = marks.into_iter().collect();
        let overviews = stream::iter(handles).map(|handle| {
            let read = marks.get(&handle.id()).copied().unwrap_or_default();
            self.overview(reader, handle, read)
        });
        overviews
            .buffer_unordered(16)
            .try_filter_map(|overview| async move { Ok(overview) })
            .try_collect()
            .await
    }

    async fn tail(&self, room: RoomId, after: Sequence, limit: usize) -> Result<EventPage> {
        check_range("limit", limit, 1000)?;
        let handle = self.open_now(room).await?;
        reads::events(self.shared.log.as_ref(), &handle, after, limit).await
    }

    async fn mark_read(&self, actor: UserId, room: RoomId, sequence: Sequence) -> Result<ReadMark> {
        let handle = self.open_as_member(actor, room).await?;
        let (head, messages, floor) = {
            let now = handle.now.lock();
            (now.head, now.messages, now.floor)
        };
        let sequence = sequence.min(head);
        if sequence == Sequence::ZERO {
            // Nothing to raise: the answer is what stands.
            let marks = self.rooms.read_marks(actor, &[room]).await?;
            let stands = marks.first().map(|(_, stands)| *stands);
            return Ok(handle.now.lock().read_by(actor, stands.unwrap_or_default()));
        }
        let messages = if sequence == head {
            messages
        } else if sequence < floor.first {
            // Of what isn't kept any more nothing is unread.
            floor.messages
        } else {
            let event = self
                .shared
                .log
                .events(room, &handle.fences, sequence, sequence)
                .await?
                .pop();
            event
                .ok_or_else(|| Error::defect("the log has a hole"))?
                .messages_after()
        };
        let mark = ReadMark {
            sequence,
            messages,
            time: self.shared.clock.now(),
        };
        let (stands, audience) = tokio::join!(
            self.rooms.mark_read(actor, room, mark),
            self.audiences.of_receipts(actor)
        );
        let stands = stands?;
        let stands = handle.now.lock().read_by(actor, stands);
        // A mark that stood already was told when it was set.
        if stands == mark {
            let signal = Signal::Read {
                room,
                user: actor,
                sequence,
                time: mark.time,
                audience,
            };
            self.shared.notifier.publish(room, signal);
        }
        Ok(stands)
    }

    async fn mark_delivered(
        &self,
        actor: UserId,
        room: RoomId,
        sequence: Sequence,
    ) -> Result<Reached> {
        let handle = self.open_as_member(actor, room).await?;
        let reached = Reached {
            sequence: sequence.min(handle.now.lock().head),
            time: self.shared.clock.now(),
        };
        // Reading implies it, as do writing and joining.
        let marks = self.rooms.read_marks(actor, &[room]).await?;
        let stored = marks.first().map(|(_, stands)| *stands).unwrap_or_default();
        let read = handle.now.lock().read_by(actor, stored);
        if reached.sequence <= read.sequence {
            return Ok(Reached {
                sequence: read.sequence,
                time: read.time,
            });
        }
        let (stands, audience) = tokio::join!(
            self.rooms.mark_delivered(actor, room, reached),
            self.audiences.of_receipts(actor)
        );
        let stands = stands?;
        // Nobody else is told who shows it to nobody; their own devices know what they have.
        if stands == reached && audience != Audience::Nobody {
            let signal = Signal::Delivered {
                room,
                user: actor,
                sequence: reached.sequence,
                time: reached.time,
                audience,
            };
            self.shared.notifier.publish(room, signal);
        }
        Ok(stands)
    }

    async fn receipts(
        &self,
        actor: UserId,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Receipt>> {
        check_range("limit", limit, 1000)?;
        self.open_as_member(actor, room).await?;
        let (mut shown, mut after) = (Vec::new(), after);
        // People who are hidden look like people without a mark: they aren't there.
        while shown.len() < limit {
            let wanted = limit - shown.len();
            let receipts = self.rooms.receipts(room, after, wanted).await?;
            let more = receipts.len() == wanted;
            after = receipts.last().map(|receipt| receipt.user);
            let people: Vec<UserId> = receipts.iter().map(|receipt| receipt.user).collect();
            let view = View::read(&*self.shared.people, &*self.settings, actor, &people).await?;
            let seen = |receipt: &Receipt| view.shows(Fact::Receipts, receipt.user);
            shown.extend(receipts.into_iter().filter(seen));
            if !more {
                break;
            }
        }
        Ok(shown)
    }

    async fn activity(
        &self,
        actor: UserId,
        room: RoomId,
        activity: Activity,
        active: bool,
    ) -> Result<()> {
        self.open_to(actor, room, Action::Send).await?;
        let signal = Signal::Activity {
            room,
            user: actor,
            activity,
            active,
        };
        self.shared.notifier.publish(room, signal);
        Ok(())
    }
}
