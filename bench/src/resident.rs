//! A client that stays with one room, as a well-behaved one does: it authenticates by its first message, keeps the place that it has seen,
//! and after every end of its socket comes back with `resume`, after a pause with jitter. Told to `resync`, it reads what it missed through REST.
//!
//! It doesn't send by itself: who watches it gets its writer. What its frames mean for a figure is known in the scenarios.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use http::Method;
use rand::Rng;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};

use crate::frames::{self, Kind};
use crate::town::Town;
use crate::websocket::{Turn, Writer};

/// How long a socket may take from the connection to `connection_ack`.
const OPENING: Duration = Duration::from_secs(20);
/// Longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Events read at once through REST.
const PAGE: u64 = 1_000;

/// Who is told what a resident sees. Called on the one task of the resident; must not block.
pub trait Watch: Send + 'static {
    /// It is authenticated, and what came after `last` follows.
    fn connected(&mut self, writer: &Writer, last: u64);
    /// A message of the room, in order: each sequence comes once.
    fn event(&mut self, sequence: u64, frame: &[u8]);
    /// An ack, an error, or what else is no event.
    fn other(&mut self, kind: Kind, frame: &[u8]);
    /// Its socket ended, or could not be opened; it will try again.
    fn gone(&mut self, reason: Gone);
}

/// Why a resident has no socket.
#[derive(Clone, Debug)]
pub enum Gone {
    /// It was told to let go of it.
    Cut,
    /// The server closed it: close code and reason.
    Closed(String),
    /// It could not be opened, or the connection broke.
    Failed(String),
}

/// What residents obey, all at once.
pub struct Orders {
    /// Raised by one: everybody drops their socket without a word.
    pub cuts: watch::Sender<u64>,
    /// How many may open their first socket at the same time; how many come back at once is for the jitter.
    pub first: Semaphore,
    /// Before try n (from 0 on) a pause of at most this times 2^n and 10 s, at least nothing, all equally likely.
    pub back_off: Duration,
    /// Events per second that each reads from its socket, at most; 0 for as many as come.
    pub reading: AtomicU64,
    /// Bytes that the operating system keeps for a reader, if it matters.
    pub receive_buffer: Option<u32>,
}

/// See the module's documentation.
pub struct Resident {
    /// Where.
    pub town: Arc<Town>,
    /// Its number, for the source address.
    pub index: usize,
    /// Its access token.
    pub token: String,
    /// Its one room.
    pub room_id: String,
    /// What it obeys.
    pub orders: Arc<Orders>,
}

/// What a resident knows beyond its socket.
#[derive(Default)]
struct Place {
    /// The last event seen; `None` before the first socket.
    last: Option<u64>,
    /// Live events up to here were read through REST already.
    read_up_to: u64,
    /// The server sent `resync`: everything after [`Place::last`] must be read.
    resync: bool,
    is_connected: bool,
    /// Events of this turn of reading.
    events: u32,
    error: Option<String>,
}

// === impl Resident ===

impl Resident {
    /// Stays until the task is aborted.
    pub async fn stay(self, mut watch: impl Watch) {
        let mut place = Place::default();
        let mut cuts = self.orders.cuts.subscribe();
        let mut tries = 0;
        loop {
            let first = match place.last {
                None => self.orders.first.acquire().await.ok(),
                Some(_) => None,
            };
            place.is_connected = false;
            let gone = match self.visit(&mut place, &mut cuts, &mut watch, first).await {
                Ok(gone) => gone,
                Err(error) => Gone::Failed(format!("{error:#}")),
            };
            tries = if place.is_connected { 0 } else { tries + 1 };
            watch.gone(gone);
            let most = (self.orders.back_off * (1 << tries.min(10))).min(LONGEST_PAUSE);
            let pause = most.mul_f64(rand::rng().random_range(0.0..1.0));
            tokio::time::sleep(pause).await;
        }
    }

    /// A socket from its opening to its end.
    async fn visit(
        &self,
        place: &mut Place,
        cuts: &mut watch::Receiver<u64>,
        watch: &mut impl Watch,
        mut first: Option<tokio::sync::SemaphorePermit<'_>>,
    ) -> Result<Gone> {
        let opening = tokio::time::sleep(OPENING);
        tokio::pin!(opening);
        let connecting = self
            .town
            .open_socket(self.index, self.orders.receive_buffer);
        let mut socket = tokio::select! {
            socket = connecting => socket?,
            () = &mut opening => bail!("no socket within {OPENING:?}"),
        };
        let writer = socket.writer();
        let mut auth = json!({"token": self.token});
        if let Some(last) = place.last {
            auth["resume"] = json!({ self.room_id.as_str(): last });
        }
        let auth = json!({"type": "auth", "payload": auth});
        writer.send(&auth.to_string()).await?;
        loop {
            place.events = 0;
            let turn = tokio::select! {
                turn = socket.read(|frame| self.see(frame, place, watch, &writer)) => turn?,
                _ = cuts.changed() => return Ok(Gone::Cut),
                () = &mut opening, if !place.is_connected => bail!("not authenticated within {OPENING:?}"),
            };
            if let Turn::Closed(reason) = turn {
                return Ok(Gone::Closed(reason));
            }
            if let Some(error) = place.error.take() {
                bail!("{error}");
            }
            if place.is_connected {
                first.take();
            }
            if std::mem::take(&mut place.resync) {
                self.read_missed(place, watch).await?;
            }
            let rate = self.orders.reading.load(Relaxed);
            if rate > 0 && place.events > 0 {
                let pause = f64::from(place.events) / rate as f64;
                tokio::time::sleep(Duration::from_secs_f64(pause)).await;
            }
        }
    }

    fn see(&self, frame: &[u8], place: &mut Place, watch: &mut impl Watch, writer: &Writer) {
        match frames::kind(frame) {
            Kind::ConnectionAck => {
                let last = match place.last.map_or_else(|| self.start(frame), Ok) {
                    Ok(last) => last,
                    Err(error) => return place.error = Some(format!("{error:#}")),
                };
                place.last = Some(last);
                place.is_connected = true;
                watch.connected(writer, last);
            }
            // Refused before it was authenticated: there is nothing else that this could answer.
            Kind::Error if !place.is_connected => place.error = Some(frames::excerpt(frame)),
            Kind::Resync => {
                place.resync = true;
                watch.other(Kind::Resync, frame);
            }
            // Live events after `resync` are read with everything before them.
            Kind::NewMessage if place.resync => {}
            Kind::NewMessage => match frames::sequence(frame) {
                Some(sequence) if sequence <= place.read_up_to => {}
                Some(sequence) => {
                    place.last = Some(sequence);
                    place.events += 1;
                    watch.event(sequence, frame);
                }
                None => place.error = Some(frames::excerpt(frame)),
            },
            kind => watch.other(kind, frame),
        }
    }

    /// The place after which events follow, as `connection_ack` says it.
    fn start(&self, frame: &[u8]) -> Result<u64> {
        let ack: Value = serde_json::from_slice(frame).context("connection_ack is no JSON")?;
        ack["payload"]["resume"][&self.room_id]
            .as_u64()
            .ok_or_else(|| anyhow!("connection_ack does not name the room"))
    }

    /// Reads everything after the last place through REST.
    async fn read_missed(&self, place: &mut Place, watch: &mut impl Watch) -> Result<()> {
        loop {
            let after = place.last.unwrap_or(0);
            let path = format!(
                "/api/v1/rooms/{}/events?after={after}&limit={PAGE}",
                self.room_id
            );
            let rest = self.town.rest();
            let page = rest
                .call(Method::GET, &path, Some(&self.token), None)
                .await?;
            let items = page["items"]
                .as_array()
                .context("a page of events has no items")?;
            for item in items {
                let text = item.to_string();
                let sequence = frames::sequence(text.as_bytes())
                    .with_context(|| format!("an event without sequence: {text:.300}"))?;
                place.last = Some(sequence);
                watch.event(sequence, text.as_bytes());
            }
            if page["next"].is_null() {
                place.read_up_to = place.last.unwrap_or(0);
                return Ok(());
            }
            ensure!(!items.is_empty(), "an empty page of events has a next one");
        }
    }
}
