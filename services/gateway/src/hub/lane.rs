//! The loop over a share of the topics.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use carillon_domain::{
    UserId,
    ports::{BusItem, Subscriptions},
    privacy::{Audience, Fact},
    signal::Signal,
};
use futures::{FutureExt, StreamExt, stream::BoxStream};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use super::{
    Inner, back_off,
    rooms::{About, Own, RoomTable},
    socket::Socket,
    topics::{Command, Topics},
    writers::Writers,
};
use crate::wire;

/// Least pause between two comparisons: a lane that falls behind says so again and again, and must not be slowed further.
const BETWEEN_COMPARISONS: Duration = Duration::from_secs(1);

/// Rooms and users of the lane's partitions.
pub struct Lane {
    pub rooms: RoomTable,
    pub users: Mutex<HashMap<UserId, Vec<Arc<Socket>>>>,
    pub topics: Topics,
    subscriptions: Arc<dyn Subscriptions>,
    /// The bus may have lost something, for heads and for users. However often it says so, at most one comparison waits behind the
    /// one that runs.
    lost: [Notify; 2],
}

impl Lane {
    pub fn new(subscriptions: Arc<dyn Subscriptions>) -> (Self, mpsc::Receiver<Command>) {
        let (topics, commands) = Topics::new();
        let lane = Self {
            rooms: RoomTable::default(),
            users: Mutex::default(),
            topics,
            subscriptions,
            lost: [Notify::new(), Notify::new()],
        };
        (lane, commands)
    }

    /// Those that the lane began with.
    pub fn first_subscriptions(&self) -> Arc<dyn Subscriptions> {
        self.subscriptions.clone()
    }

    /// Something may have been lost: what depends on it is compared with the stores soon.
    pub fn lost(&self) {
        for what in &self.lost {
            what.notify_one();
        }
    }
}

/// Works on what the bus delivers until the hub stops. What is there already is handed out before the sockets are woken, so that
/// frames for one socket leave in one write; and while waking them takes much of the time, a little more is gathered first.
pub async fn run(inner: Arc<Inner>, lane: usize, mut items: BoxStream<'static, BusItem>) {
    let mut delivery = Delivery {
        at_once: inner.events_at_once(),
        events: 0,
        writers: Writers::default(),
        pace: Pace::default(),
    };
    while !inner.stop.is_cancelled() {
        let next = match items.next().now_or_never() {
            Some(item) => item,
            None => match delivery.pause() {
                Some(pause) => tokio::select! {
                    item = items.next() => item,
                    () = tokio::time::sleep(pause) => {
                        delivery.wake().await;
                        continue;
                    }
                    () = inner.stop.cancelled() => return,
                },
                None => {
                    delivery.wake().await;
                    tokio::select! {
                        item = items.next() => item,
                        () = inner.stop.cancelled() => return,
                    }
                }
            },
        };
        match next {
            Some(BusItem::Message { payload, .. }) => match Signal::decode(&payload) {
                Ok(signal) => handle(&inner, signal, &mut delivery).await,
                // From a newer version: what it hints at is found by the sweep.
                Err(error) => tracing::debug!(cause = error.cause_chain(), "unknown signal"),
            },
            Some(BusItem::Lost) => inner.lanes[lane].lost(),
            None => {
                delivery.wake().await;
                let Some(next) = receive_again(&inner, lane).await else {
                    return;
                };
                items = next;
                inner.lanes[lane].lost();
            }
        }
    }
}

/// What was handed out since the sockets were woken last.
struct Delivery {
    at_once: usize,
    events: usize,
    writers: Writers,
    pace: Pace,
}

impl Delivery {
    /// One more was handed out: now and then the sockets need their turn, before their queues are full.
    async fn went_on(&mut self) {
        self.events += 1;
        if self.events >= self.at_once {
            self.wake().await;
            tokio::task::yield_now().await;
        }
    }

    /// How long to gather more before the sockets that wait are woken.
    fn pause(&mut self) -> Option<Duration> {
        if self.writers.is_empty() {
            return None;
        }
        self.pace.pause(Instant::now())
    }

    async fn wake(&mut self) {
        self.events = 0;
        if self.writers.is_empty() {
            return;
        }
        let began = Instant::now();
        self.writers.wake().await;
        self.pace.spent(began, Instant::now());
    }
}

/// Keeps a lane from spending its time on waking sockets for a frame each, when a few frames later each could be told of all of
/// them with the same effort: half a saturated gateway's load would otherwise keep it as busy as the whole.
#[derive(Default)]
struct Pace {
    /// Time spent, less what was earned since. Waking takes turns with whatever else the process does, so that this grows while
    /// it is busy, and hardly while it isn't.
    debt: Duration,
    settled: Option<Instant>,
}

impl Pace {
    /// Debt that nobody waits for.
    const FREE: Duration = Duration::from_millis(1);
    /// The longest wait.
    const LONGEST: Duration = Duration::from_millis(5);
    /// Waking may take one moment for this many of everything else.
    const OTHERS: u32 = 2;

    fn pause(&mut self, now: Instant) -> Option<Duration> {
        self.settle(now);
        (self.debt > Self::FREE).then(|| (self.debt * Self::OTHERS).min(Self::LONGEST))
    }

    fn spent(&mut self, began: Instant, ended: Instant) {
        self.settle(began);
        self.debt = (self.debt + ended.duration_since(began)).min(Self::LONGEST);
        self.settled = Some(ended);
    }

    fn settle(&mut self, now: Instant) {
        let since = self
            .settled
            .map_or(Duration::ZERO, |settled| now.duration_since(settled));
        self.debt = self.debt.saturating_sub(since / Self::OTHERS);
        self.settled = Some(now);
    }
}

async fn handle(inner: &Arc<Inner>, signal: Signal, delivery: &mut Delivery) {
    match signal {
        Signal::Events { events } => {
            for event in &events {
                let rooms = inner.rooms_of(event.room);
                if rooms.offer(event, &mut delivery.writers) {
                    inner.start_pull(event.room);
                }
                delivery.went_on().await;
            }
            return;
        }
        Signal::Activity { room, user, .. } => {
            let about = about(Fact::Activity, user, Audience::Everyone);
            broadcast(inner, room, &signal, about, Own::Left);
        }
        Signal::Presence {
            room,
            user,
            audience,
            ..
        } => {
            let about = about(Fact::Presence, user, audience);
            broadcast(inner, room, &signal, about, Own::Same);
        }
        // A mark only ever rises, and is fetched again on resume: whoever is behind can do without this one. The reader's own
        // devices take their unread counts from it.
        Signal::Read {
            room,
            user,
            audience,
            ..
        } => {
            let about = about(Fact::Receipts, user, audience);
            broadcast(inner, room, &signal, about, Own::Sure);
        }
        // The same, but for the reader's own devices, which know what they have.
        Signal::Delivered {
            room,
            user,
            audience,
            ..
        } => {
            let about = about(Fact::Receipts, user, audience);
            broadcast(inner, room, &signal, about, Own::Left);
        }
        Signal::Invited { user, room, by } => inner.invited(user, room, by),
        Signal::ContactPresence {
            ref to,
            user,
            audience,
            ..
        } => {
            let about = about(Fact::Presence, user, audience);
            inner.contact_presence(to, about, &signal);
        }
        Signal::BlocksChanged { user } => inner.blocks_changed(user),
        Signal::RoomAdded {
            user,
            room,
            direct_with,
        } => inner.room_added(user, room, direct_with),
        Signal::RoomRemoved { user, room } => inner.room_removed(user, room),
        Signal::SessionRevoked {
            user,
            device,
            token_id,
        } => inner.session_revoked(user, device, token_id),
        Signal::Security {
            user,
            id,
            kind,
            device,
            time,
        } => inner.security_event(user, id, kind, device, time),
        Signal::PresenceChosen {
            user,
            device,
            state,
        } => inner.presence_chosen(user, device, state),
    }
    delivery.went_on().await;
}

fn about(fact: Fact, person: UserId, audience: Audience) -> About {
    About {
        fact,
        person,
        audience,
    }
}

fn broadcast(
    inner: &Inner,
    room: carillon_domain::RoomId,
    signal: &Signal,
    about: About,
    own: Own,
) {
    let rooms = inner.rooms_of(room);
    if rooms.has_followers(room)
        && let Some(frame) = wire::signal(signal)
    {
        rooms.broadcast(room, &frame, about, own);
    }
}

/// When something may have been lost: compares every room's head, and every user's rooms and sessions. These don't wait for each
/// other: heads are a few calls, users are many, and events are what people see missing.
pub async fn recover(inner: Arc<Inner>, lane: usize) {
    let [heads, users] = &inner.lanes[lane].lost;
    let compare_heads = async {
        loop {
            heads.notified().await;
            tracing::info!(
                lane,
                "the bus may have lost signals: comparing with the stores"
            );
            inner.check_heads(lane).await;
            tokio::time::sleep(BETWEEN_COMPARISONS).await;
        }
    };
    let compare_users = async {
        loop {
            users.notified().await;
            inner.recheck_users(inner.users_in(lane)).await;
            tokio::time::sleep(BETWEEN_COMPARISONS).await;
        }
    };
    tokio::select! {
        () = async { tokio::join!(compare_heads, compare_users); } => {}
        () = inner.stop.cancelled() => {}
    }
}

/// The stream ended: takes a new receiver. `None` when the hub stops.
async fn receive_again(inner: &Arc<Inner>, lane: usize) -> Option<BoxStream<'static, BusItem>> {
    for attempt in 0.. {
        match inner.bus.receiver().await {
            Ok((subscriptions, items)) => {
                inner.lanes[lane].topics.replace(subscriptions).await;
                return Some(items);
            }
            Err(error) => tracing::warn!(%error, "no receiver of the bus"),
        }
        tokio::select! {
            () = back_off(attempt) => {}
            () = inner.stop.cancelled() => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RT-06: a lane gathers frames only while waking takes much of its time, and never for long.
    #[test]
    fn waking_takes_a_share_of_the_time() {
        let start = Instant::now();
        let at = |micros| start + Duration::from_micros(micros);
        let mut idle = Pace::default();
        for n in 0..1_000 {
            assert_eq!(idle.pause(at(n * 1_000)), None);
            idle.spent(at(n * 1_000), at(n * 1_000 + 300));
        }
        let mut busy = Pace::default();
        let (mut now, mut woken, mut paused) = (0, 0, 0);
        while now < 1_000_000 {
            match busy.pause(at(now)) {
                Some(pause) => {
                    assert!(pause <= Pace::LONGEST);
                    paused += 1;
                    now += pause.as_micros() as u64;
                }
                None => {
                    busy.spent(at(now), at(now + 400));
                    woken += 400;
                    now += 410;
                }
            }
        }
        assert!(paused > 0);
        assert!((300_000..370_000).contains(&woken), "{woken} of {now} µs");
    }
}
