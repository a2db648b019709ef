//! [`PresenceStore`]: leases in memory, since the sockets that they stand for end with the process; when somebody was last seen
//! is stored, at most a minute late.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use carillon_domain::{
    DeviceId, Error, Result, Timestamp, UserId,
    ports::PresenceStore,
    presence::{Lease, Presence, PresenceState},
};
use parking_lot::Mutex;

use super::{
    at_most,
    engine::{Durability, Engine, View},
    tables::Table,
};

/// How far the stored time of somebody who stays connected may be behind.
const STORE_EVERY: Duration = Duration::from_secs(60);

/// Presence of everybody.
pub(super) struct LocalPresence {
    engine: Arc<Engine>,
    people: Mutex<People>,
}

/// As large as there are connected devices.
#[derive(Default)]
struct People {
    people: HashMap<UserId, Person>,
    ends: BTreeSet<(Timestamp, UserId, DeviceId)>,
}

struct Person {
    leases: HashMap<DeviceId, (PresenceState, Timestamp)>,
    /// What was answered last.
    told: PresenceState,
    last_seen: Timestamp,
    stored: Option<Timestamp>,
}

impl LocalPresence {
    pub(super) fn new(engine: Arc<Engine>) -> Self {
        Self {
            engine,
            people: Mutex::default(),
        }
    }

    async fn store(&self, seen: Vec<(UserId, Timestamp)>) -> Result<()> {
        if seen.is_empty() {
            return Ok(());
        }
        self.engine
            .commit(Durability::Buffered, move |transaction| {
                for (user, time) in seen {
                    transaction.put(Table::LastSeen, *user.0.as_bytes(), time.0.to_be_bytes());
                }
                Ok(())
            })
            .await
    }
}

#[async_trait]
impl PresenceStore for LocalPresence {
    async fn renew(
        &self,
        leases: &[Lease],
        now: Timestamp,
        ttl: Duration,
    ) -> Result<Vec<Presence>> {
        let mut changed = HashMap::new();
        let mut seen = Vec::new();
        {
            let mut people = self.people.lock();
            for lease in leases {
                people.put(lease, now.plus(ttl), now);
                if let Some(presence) = people.tell(lease.user, now) {
                    changed.insert(lease.user, presence);
                }
                if let Some(person) = people.people.get_mut(&lease.user)
                    && person
                        .stored
                        .is_none_or(|stored| now.since(stored) >= STORE_EVERY)
                {
                    person.stored = Some(now);
                    seen.push((lease.user, now));
                }
            }
        }
        self.store(seen).await?;
        Ok(changed.into_values().collect())
    }

    async fn release(
        &self,
        user: UserId,
        device: DeviceId,
        now: Timestamp,
    ) -> Result<Option<Presence>> {
        let (changed, seen) = {
            let mut people = self.people.lock();
            if !people.remove(user, device) {
                return Ok(None);
            }
            if let Some(person) = people.people.get_mut(&user) {
                person.last_seen = person.last_seen.max(now);
            }
            let changed = people.tell(user, now);
            (changed, people.forget(user))
        };
        self.store(seen.into_iter().collect()).await?;
        Ok(changed)
    }

    async fn expire(&self, now: Timestamp, limit: usize) -> Result<Vec<Presence>> {
        let mut changed = HashMap::new();
        let mut seen = Vec::new();
        {
            let mut people = self.people.lock();
            for _ in 0..limit {
                let Some((end, user, device)) = people.ends.first().copied() else {
                    break;
                };
                if end >= now {
                    break;
                }
                people.remove(user, device);
                if let Some(presence) = people.tell(user, now) {
                    changed.insert(user, presence);
                }
                seen.extend(people.forget(user));
            }
        }
        self.store(seen).await?;
        Ok(changed.into_values().collect())
    }

    async fn get(&self, users: &[UserId], now: Timestamp) -> Result<Vec<Presence>> {
        at_most(users.len(), 1_000)?;
        let live: Vec<Option<Presence>> = {
            let people = self.people.lock();
            users
                .iter()
                .map(|user| {
                    people.people.get(user).map(|person| Presence {
                        user: *user,
                        state: person.state(now),
                        last_seen: Some(person.last_seen),
                    })
                })
                .collect()
        };
        let users = users.to_vec();
        let unknown = live.iter().filter(|presence| presence.is_none()).count();
        self.engine
            .read(unknown, move |view| {
                users
                    .into_iter()
                    .zip(live)
                    .map(|(user, live)| live.map_or_else(|| offline(view, user), Ok))
                    .collect()
            })
            .await
    }
}

// === impl People ===

impl People {
    fn put(&mut self, lease: &Lease, end: Timestamp, now: Timestamp) {
        let person = self.people.entry(lease.user).or_insert_with(|| Person {
            leases: HashMap::new(),
            told: PresenceState::Offline,
            last_seen: now,
            stored: None,
        });
        person.last_seen = person.last_seen.max(now);
        if let Some((_, before)) = person.leases.insert(lease.device, (lease.state, end)) {
            self.ends.remove(&(before, lease.user, lease.device));
        }
        self.ends.insert((end, lease.user, lease.device));
    }

    /// Ends a lease; whether there was one.
    fn remove(&mut self, user: UserId, device: DeviceId) -> bool {
        let person = self.people.get_mut(&user);
        let lease = person.and_then(|person| person.leases.remove(&device));
        if let Some((_, end)) = lease {
            self.ends.remove(&(end, user, device));
        }
        lease.is_some()
    }

    /// The person's state if it isn't what was told last; from now on it is.
    fn tell(&mut self, user: UserId, now: Timestamp) -> Option<Presence> {
        let person = self.people.get_mut(&user)?;
        let state = person.state(now);
        if state == person.told {
            return None;
        }
        person.told = state;
        Some(Presence {
            user,
            state,
            last_seen: Some(person.last_seen),
        })
    }

    /// Takes a person without leases from memory; when they were last seen, to be stored.
    fn forget(&mut self, user: UserId) -> Option<(UserId, Timestamp)> {
        let person = self.people.get(&user)?;
        if !person.leases.is_empty() {
            return None;
        }
        let last_seen = person.last_seen;
        self.people.remove(&user);
        Some((user, last_seen))
    }
}

impl Person {
    fn state(&self, now: Timestamp) -> PresenceState {
        self.leases
            .values()
            .filter(|(_, end)| *end >= now)
            .map(|(state, _)| *state)
            .max()
            .unwrap_or(PresenceState::Offline)
    }
}

fn offline(view: &View<'_>, user: UserId) -> Result<Presence> {
    let row = view.get(Table::LastSeen, user.0.as_bytes())?;
    let last_seen = row.map(|row| {
        <[u8; 8]>::try_from(&*row)
            .map(|bytes| Timestamp(i64::from_be_bytes(bytes)))
            .map_err(|_| Error::defect("a time in the embedded store is unreadable"))
    });
    Ok(Presence {
        user,
        state: PresenceState::Offline,
        last_seen: last_seen.transpose()?,
    })
}
