//! Who is online: leases of connected devices, and telling the rooms that a person shares with others and those who have them as a
//! contact (PRES-01, PRES-03).
//!
//! [`PresenceRole`] implements [`carillon_domain::services::PresenceService`] over ports. Gateways renew leases for their
//! sockets; a crashed gateway's leases end by themselves, and [`PresenceRole::run`] notices. What is told is a hint that may be
//! shed under load: [`PresenceService::get`] is the truth. Typing is no business of this crate, and neither is who in a room may not see
//! whom: it is told to whom a person shows their presence, and gateways know what that and blocks mean to each of their users.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, LazyLock},
    time::Duration,
};

use async_trait::async_trait;
use carillon_domain::{
    Clock, DeviceId, Error, Result, RoomId, UserId,
    people::Relation,
    ports::{Bus, PeopleStore, PresenceStore, RoomStore, SettingsStore},
    presence::{Lease, Presence, PresenceState},
    privacy::{Audience, Fact},
    services::PresenceService,
    signal::{Signal, Topic},
    view::View,
};
use carillon_telemetry::metrics::{IntCounterVec, int_counter};
use futures::{StreamExt, TryStreamExt};
use tokio::{
    sync::{Mutex, mpsc},
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;

static CHANGES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    int_counter(
        "carillon_presence_changes_total",
        "Changes of people's presence, by the new state.",
        &["state"],
    )
});
static TOLD: LazyLock<IntCounterVec> = LazyLock::new(|| {
    int_counter(
        "carillon_presence_told_total",
        "Changes that rooms and contacts were to be told, by outcome: told, shed, error.",
        &["outcome"],
    )
});

/// Leases, and people asked about, per call.
const MAX_BATCH: usize = 1000;
/// People that one person asks about, per call.
const MAX_SEEN: usize = 100;
/// People whose rooms are compared with the asker's at once.
const SEEN_AT_ONCE: usize = 8;
/// Changes that wait to be told; more are shed.
const WAITING: usize = 8192;
/// People told about at once.
const TOLD_AT_ONCE: usize = 16;
/// Signals to contacts of one person under way at once.
const SIGNALS_AT_ONCE: usize = 16;
/// Rooms looked at per question to the store.
const ROOMS_PER_READ: usize = 256;
/// Rooms of one person that are considered at all.
const MAX_ROOMS: usize = 5000;

/// What the presence role can be told.
#[derive(Clone, Debug)]
pub struct PresenceOptions {
    /// How long a device counts as connected after its last renewal. Gateways renew at a third of it.
    pub lease: Duration,
    /// How often leases that ran out are looked for.
    pub sweep_interval: Duration,
    /// At most so many rooms of a person are told about a change: the newest that aren't listed.
    pub max_rooms_told: usize,
    /// At most so many people who have a person as a contact are told about a change, up to 1,000.
    pub max_contacts_told: usize,
}

impl Default for PresenceOptions {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(45),
            sweep_interval: Duration::from_secs(5),
            max_rooms_told: 64,
            max_contacts_told: MAX_BATCH,
        }
    }
}

/// The presence role.
pub struct PresenceRole {
    store: Arc<dyn PresenceStore>,
    rooms: Arc<dyn RoomStore>,
    people: Arc<dyn PeopleStore>,
    settings: Arc<dyn SettingsStore>,
    bus: Arc<dyn Bus>,
    clock: Arc<dyn Clock>,
    options: PresenceOptions,
    changed: mpsc::Sender<UserId>,
    /// Taken by `run`, once.
    to_tell: Mutex<Option<mpsc::Receiver<UserId>>>,
}

// === impl PresenceRole ===

impl PresenceRole {
    /// Does nothing by itself: [`PresenceRole::run`] must run in every process that serves this role.
    pub fn new(
        store: Arc<dyn PresenceStore>,
        rooms: Arc<dyn RoomStore>,
        people: Arc<dyn PeopleStore>,
        settings: Arc<dyn SettingsStore>,
        bus: Arc<dyn Bus>,
        clock: Arc<dyn Clock>,
        options: PresenceOptions,
    ) -> Self {
        let (changed, to_tell) = mpsc::channel(WAITING);
        Self {
            store,
            rooms,
            people,
            settings,
            bus,
            clock,
            options,
            changed,
            to_tell: Mutex::new(Some(to_tell)),
        }
    }

    /// Tells rooms and contacts of changes, and ends the leases of crashed gateways, until `stop`; then tells what is left and returns.
    /// A second call returns an error at once.
    pub async fn run(&self, stop: CancellationToken) -> Result<()> {
        let Some(to_tell) = self.to_tell.lock().await.take() else {
            return Err(Error::defect("the presence role runs already"));
        };
        tokio::join!(
            self.run_teller(to_tell, stop.clone()),
            self.run_sweeper(stop)
        );
        Ok(())
    }

    async fn run_sweeper(&self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(self.options.sweep_interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            if let Err(error) = self.sweep().await {
                tracing::warn!(%error, cause = error.cause_chain(), "leases not swept");
            }
        }
    }

    /// Ends the leases that ran out; how many people's state changed.
    pub async fn sweep(&self) -> Result<usize> {
        let mut count = 0;
        loop {
            let changes = self.store.expire(self.clock.now(), MAX_BATCH).await?;
            if changes.is_empty() {
                return Ok(count);
            }
            count += changes.len();
            self.note(&changes);
        }
    }

    /// Counts changes and queues the people. What is told later is their state at that time, so that a room never ends up with
    /// an older one because two changes overtook each other.
    fn note(&self, changes: &[Presence]) {
        for change in changes {
            CHANGES.with_label_values(&[change.state.as_str()]).inc();
            if self.changed.try_send(change.user).is_err() {
                TOLD.with_label_values(&["shed"]).inc();
            }
        }
    }

    async fn run_teller(&self, mut to_tell: mpsc::Receiver<UserId>, stop: CancellationToken) {
        let mut batch = Vec::new();
        loop {
            let count = stop
                .run_until_cancelled(to_tell.recv_many(&mut batch, MAX_BATCH))
                .await;
            if count.is_none() {
                break;
            }
            self.tell_all(&mut batch).await;
        }
        while let Ok(user) = to_tell.try_recv() {
            batch.push(user);
            if batch.len() == MAX_BATCH {
                self.tell_all(&mut batch).await;
            }
        }
        self.tell_all(&mut batch).await;
    }

    async fn tell_all(&self, batch: &mut Vec<UserId>) {
        let users: Vec<UserId> = batch
            .drain(..)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        if users.is_empty() {
            return;
        }
        let read = futures::try_join!(
            self.store.get(&users, self.clock.now()),
            self.settings.of(&users)
        );
        let (states, settings) = match read {
            Ok(read) => read,
            Err(error) => {
                tracing::warn!(%error, cause = error.cause_chain(), "presence not told");
                TOLD.with_label_values(&["error"])
                    .inc_by(users.len() as u64);
                return;
            }
        };
        let audiences: HashMap<UserId, Audience> = settings
            .into_iter()
            .map(|(user, settings)| (user, settings.privacy.audience(Fact::Presence)))
            .collect();
        let states = states.into_iter().map(|presence| {
            let audience = audiences.get(&presence.user).copied();
            (presence, audience.unwrap_or_default())
        });
        futures::stream::iter(states)
            .for_each_concurrent(TOLD_AT_ONCE, |(presence, audience)| async move {
                let outcome = match self.tell(presence, audience).await {
                    Ok(()) => "told",
                    Err(error) => {
                        tracing::debug!(%error, cause = error.cause_chain(), "presence not told");
                        "error"
                    }
                };
                TOLD.with_label_values(&[outcome]).inc();
            })
            .await;
    }

    /// Rooms and contacts don't wait for each other, and what fails for the ones doesn't keep it from the others.
    async fn tell(&self, presence: Presence, audience: Audience) -> Result<()> {
        let (rooms, contacts) = futures::join!(
            self.tell_rooms(presence, audience),
            self.tell_contacts(presence, audience)
        );
        rooms.and(contacts)
    }

    /// Also what nobody else is shown: it is for the person's own devices then.
    async fn tell_rooms(&self, presence: Presence, audience: Audience) -> Result<()> {
        for room in self.rooms_to_tell(presence.user).await? {
            let signal = Signal::Presence {
                room,
                user: presence.user,
                state: presence.state,
                last_seen: presence.last_seen,
                audience,
            };
            self.bus
                .publish(Topic::of_room(room), signal.encode()?)
                .await?;
        }
        Ok(())
    }

    /// Tells people who have the person as a contact, unless it isn't shown to them.
    async fn tell_contacts(&self, presence: Presence, audience: Audience) -> Result<()> {
        if audience == Audience::Nobody {
            return Ok(());
        }
        let user = presence.user;
        let most = self.options.max_contacts_told.clamp(1, MAX_BATCH);
        let mut told = self
            .people
            .list_reverse(Relation::Contact, user, None, most)
            .await?;
        if told.is_empty() {
            return Ok(());
        }
        // The decision is the same from both sides.
        let view = View::read(&*self.people, &*self.settings, user, &told).await?;
        told.retain(|contact| view.shows(Fact::Presence, *contact));
        let mut by_topic: BTreeMap<Topic, Vec<UserId>> = BTreeMap::new();
        for contact in told {
            let topic = Topic::of_user(contact);
            by_topic.entry(topic).or_default().push(contact);
        }
        futures::stream::iter(by_topic)
            .map(Ok)
            .try_for_each_concurrent(SIGNALS_AT_ONCE, |(topic, to)| async move {
                let signal = Signal::ContactPresence {
                    to,
                    user,
                    state: presence.state,
                    last_seen: presence.last_seen,
                    audience,
                };
                self.bus.publish(topic, signal.encode()?).await
            })
            .await
    }

    /// Those of these people whom a person has as a contact.
    async fn contacts(&self, user: UserId, others: &[UserId]) -> Result<HashSet<UserId>> {
        let between = self
            .people
            .between(Relation::Contact, user, others)
            .await?
            .into_iter()
            .filter(|between| between.by_user);
        Ok(between.map(|between| between.other).collect())
    }

    /// The rooms of a person that aren't listed: those whose members know each other.
    async fn unlisted_rooms(&self, user: UserId) -> Result<HashSet<RoomId>> {
        let all = self.rooms.rooms_of(user, None, MAX_ROOMS).await?;
        let mut unlisted = HashSet::new();
        for ids in all.chunks(ROOMS_PER_READ) {
            let rooms = self.rooms.get_many(ids).await?;
            let known = rooms
                .iter()
                .filter(|room| !room.kind.is_listed() && room.deleted_at.is_none());
            unlisted.extend(known.map(|room| room.id));
        }
        Ok(unlisted)
    }

    /// The newest rooms of a person, without listed ones: anybody may be in those, and presence isn't told to strangers.
    async fn rooms_to_tell(&self, user: UserId) -> Result<Vec<RoomId>> {
        let all = self.rooms.rooms_of(user, None, MAX_ROOMS).await?;
        let mut told = Vec::new();
        // Ids are UUIDv7: the last ones are the newest.
        for ids in all.rchunks(ROOMS_PER_READ) {
            let mut rooms = self.rooms.get_many(ids).await?;
            rooms.sort_by_key(|room| std::cmp::Reverse(room.id));
            for room in rooms {
                if told.len() == self.options.max_rooms_told {
                    return Ok(told);
                }
                if !room.kind.is_listed() && room.deleted_at.is_none() {
                    told.push(room.id);
                }
            }
        }
        Ok(told)
    }
}

#[async_trait]
impl PresenceService for PresenceRole {
    #[tracing::instrument(name = "presence.renew", skip_all, fields(leases = leases.len()))]
    async fn renew(&self, leases: &[Lease]) -> Result<()> {
        if leases.len() > MAX_BATCH {
            return Err(Error::invalid("leases", "at most 1000"));
        }
        if leases
            .iter()
            .any(|lease| lease.state == PresenceState::Offline)
        {
            return Err(Error::invalid("state", "online or away"));
        }
        let now = self.clock.now();
        let changes = self.store.renew(leases, now, self.options.lease).await?;
        self.note(&changes);
        Ok(())
    }

    #[tracing::instrument(name = "presence.release", skip_all)]
    async fn release(&self, user: UserId, device: DeviceId) -> Result<()> {
        let now = self.clock.now();
        if let Some(change) = self.store.release(user, device, now).await? {
            self.note(&[change]);
        }
        Ok(())
    }

    async fn get(&self, users: &[UserId]) -> Result<Vec<Presence>> {
        if users.len() > MAX_BATCH {
            return Err(Error::invalid("users", "at most 1000"));
        }
        self.store.get(users, self.clock.now()).await
    }

    async fn visible(&self, viewer: UserId, users: &[UserId]) -> Result<Vec<Presence>> {
        if users.len() > MAX_SEEN {
            return Err(Error::invalid("users", "at most 100"));
        }
        let (shared, contacts, view) = futures::try_join!(
            self.unlisted_rooms(viewer),
            self.contacts(viewer, users),
            View::read(&*self.people, &*self.settings, viewer, users)
        )?;
        let seen: Vec<Option<UserId>> = futures::stream::iter(users.iter().copied())
            .map(|user| {
                let (shared, contacts, view) = (&shared, &contacts, &view);
                async move {
                    if !view.shows(Fact::Presence, user) {
                        return Ok(None);
                    }
                    if user == viewer || contacts.contains(&user) {
                        return Ok(Some(user));
                    }
                    if shared.is_empty() {
                        return Ok(None);
                    }
                    let rooms = self.rooms.rooms_of(user, None, MAX_ROOMS).await?;
                    Ok(rooms
                        .iter()
                        .any(|room| shared.contains(room))
                        .then_some(user))
                }
            })
            .buffered(SEEN_AT_ONCE)
            .try_collect()
            .await?;
        let seen: Vec<UserId> = seen.into_iter().flatten().collect();
        self.store.get(&seen, self.clock.now()).await
    }
}
