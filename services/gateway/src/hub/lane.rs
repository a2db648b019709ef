//! The loop over a share of the topics.

use std::{collections::HashMap, sync::Arc};

use carillon_domain::{
    UserId,
    ports::{BusItem, Subscriptions},
    signal::Signal,
};
use futures::{StreamExt, stream, stream::BoxStream};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::{
    Inner, back_off,
    rooms::RoomTable,
    socket::Socket,
    topics::{Command, Topics},
};
use crate::wire;

/// Users compared with the stores at once after the bus lost something.
const RECHECKS_AT_ONCE: usize = 16;

/// Rooms and users of the lane's partitions.
pub struct Lane {
    pub rooms: RoomTable,
    pub users: Mutex<HashMap<UserId, Vec<Arc<Socket>>>>,
    pub topics: Topics,
    subscriptions: Arc<dyn Subscriptions>,
}

impl Lane {
    pub fn new(subscriptions: Arc<dyn Subscriptions>) -> (Self, mpsc::Receiver<Command>) {
        let (topics, commands) = Topics::new();
        let lane = Self {
            rooms: RoomTable::default(),
            users: Mutex::default(),
            topics,
            subscriptions,
        };
        (lane, commands)
    }

    /// Those that the lane began with.
    pub fn first_subscriptions(&self) -> Arc<dyn Subscriptions> {
        self.subscriptions.clone()
    }
}

/// Works on what the bus delivers until the hub stops.
pub async fn run(inner: Arc<Inner>, lane: usize, mut items: BoxStream<'static, BusItem>) {
    loop {
        let item = tokio::select! {
            item = items.next() => item,
            () = inner.stop.cancelled() => return,
        };
        match item {
            Some(BusItem::Message { payload, .. }) => match Signal::decode(&payload) {
                Ok(signal) => handle(&inner, signal),
                // From a newer version: what it hints at is found by the sweep.
                Err(error) => tracing::debug!(cause = error.cause_chain(), "unknown signal"),
            },
            Some(BusItem::Lost) => recover(&inner, lane),
            None => {
                let Some(next) = receive_again(&inner, lane).await else {
                    return;
                };
                items = next;
                recover(&inner, lane);
            }
        }
    }
}

fn handle(inner: &Arc<Inner>, signal: Signal) {
    match signal {
        Signal::Events { events } => {
            for event in &events {
                if inner.rooms_of(event.room).offer(event) {
                    inner.start_pull(event.room);
                }
            }
        }
        Signal::Activity { room, user, .. } => broadcast(inner, room, &signal, Some(user)),
        Signal::Presence { room, .. } | Signal::Read { room, .. } => {
            broadcast(inner, room, &signal, None);
        }
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
        Signal::PresenceChosen {
            user,
            device,
            state,
        } => inner.presence_chosen(user, device, state),
    }
}

fn broadcast(
    inner: &Inner,
    room: carillon_domain::RoomId,
    signal: &Signal,
    except: Option<UserId>,
) {
    let rooms = inner.rooms_of(room);
    if rooms.has_followers(room)
        && let Some((frame, ephemeral)) = wire::signal(signal)
    {
        rooms.broadcast(room, &frame, ephemeral, except);
    }
}

/// Something may have been lost: compares every room's head, and every user's rooms and sessions, in the background.
fn recover(inner: &Arc<Inner>, lane: usize) {
    tracing::info!(
        lane,
        "the bus may have lost signals: comparing with the stores"
    );
    let inner = inner.clone();
    tokio::spawn(async move {
        inner.check_heads(lane).await;
        stream::iter(inner.users_in(lane))
            .for_each_concurrent(RECHECKS_AT_ONCE, |user| {
                let inner = inner.clone();
                async move { inner.recheck_user(user).await }
            })
            .await;
    });
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
