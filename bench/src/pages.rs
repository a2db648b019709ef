//! Pages of a room's history, over whichever wire the server has for them.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::Value;

use crate::frames::{self, Kind};
use crate::rest::Connection;
use crate::town::Town;
use crate::websocket::{Socket, Turn};
use crate::wire::{Wire, nats};

/// How long a page may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection that reads pages; one at a time.
pub enum Pages {
    /// `GET …/messages`.
    Rest(Connection),
    /// A batch of stored messages of a stream.
    Nats(Box<Socket>),
}

/// A page as the server sent it.
pub struct Page {
    bytes: Bytes,
    sequences: Sequences,
}

enum Sequences {
    /// In the JSON.
    InBytes,
    Known(Vec<u64>),
}

// === impl Pages ===

impl Pages {
    /// Opens it. `token` is what a wire without a token per request is told.
    pub async fn open(town: &Town, token: &str) -> Result<Self> {
        Ok(match town.wire() {
            Wire::Carillon | Wire::SocketIo => Self::Rest(Connection::open(town.address()).await?),
            Wire::Nats => Self::Nats(Box::new(town.connect(0, token, None).await?)),
            Wire::Bare => bail!("a bare server keeps no history"),
        })
    }

    /// Reads the newest `limit` messages, or those before a place.
    pub async fn read(
        &mut self,
        room_id: &str,
        token: &str,
        before: Option<u64>,
        limit: u64,
    ) -> Result<Page> {
        match self {
            Self::Rest(connection) => {
                let mut path = format!("/api/v1/rooms/{room_id}/messages?limit={limit}");
                if let Some(before) = before {
                    path.push_str(&format!("&before={before}"));
                }
                let (status, bytes) = connection
                    .request(Method::GET, &path, Some(token), None)
                    .await?;
                ensure!(
                    status == StatusCode::OK,
                    "answered {status}: {}",
                    frames::excerpt(&bytes)
                );
                Ok(Page {
                    bytes,
                    sequences: Sequences::InBytes,
                })
            }
            Self::Nats(socket) => {
                let request = match before {
                    Some(before) => {
                        nats::read_from(room_id, before.saturating_sub(limit).max(1), limit)
                    }
                    None => nats::read_last(room_id),
                };
                let reading = read_stored(socket, &request, before.is_some());
                tokio::time::timeout(PATIENCE, reading)
                    .await
                    .map_err(|_| anyhow!("no whole page within {PATIENCE:?}"))?
            }
        }
    }
}

/// Reads stored messages; of a batch, until the server says that it is whole.
async fn read_stored(socket: &mut Socket, request: &str, is_batch: bool) -> Result<Page> {
    socket.writer().send(request).await?;
    let (mut bytes, mut sequences) = (Vec::new(), Vec::new());
    let mut outcome = None;
    while outcome.is_none() {
        let turn = socket
            .read(|frame| match (frames::kind(frame), nats::status(frame)) {
                (Kind::Error, _) => outcome = Some(Err(frames::excerpt(frame))),
                (_, Some(_)) => outcome = Some(Ok(())),
                _ if frame.starts_with(b"HMSG ") => {
                    bytes.extend_from_slice(frame);
                    sequences.extend(frames::sequence(frame));
                    if !is_batch {
                        outcome = Some(Ok(()));
                    }
                }
                _ => {}
            })
            .await?;
        if let (Turn::Closed(reason), None) = (turn, &outcome) {
            bail!("the server closed a connection that reads pages: {reason}");
        }
    }
    match outcome {
        Some(Err(refusal)) => bail!("the server answered {refusal}"),
        _ => Ok(Page {
            bytes: bytes.into(),
            sequences: Sequences::Known(sequences),
        }),
    }
}

// === impl Page ===

impl Page {
    /// All that it holds.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The places of its messages, in the server's order.
    pub fn sequences(&self) -> Result<Vec<u64>> {
        if let Sequences::Known(sequences) = &self.sequences {
            return Ok(sequences.clone());
        }
        let page: Value = serde_json::from_slice(&self.bytes).context("the page is no JSON")?;
        let items = page["items"].as_array().context("the page has no items")?;
        Ok(items
            .iter()
            .filter_map(|item| item["sequence"].as_u64())
            .collect())
    }
}
