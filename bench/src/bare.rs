//! A fan-out server with nothing in it but tokio and the WebSocket library that the gateway uses: the ceiling to compare with.
//!
//! It believes every token, forgets every message, and speaks just enough of the protocol for `idle`, `fanout` and `sends`:
//! `join_room`, `send_message`, `ping`. A delivery has the fields and the size that the platform's has. A socket that lets
//! [`WAITING_FRAMES`] frames wait is cut off.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use futures::{SinkExt, StreamExt};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

/// How many frames may wait for one socket.
const WAITING_FRAMES: usize = 1024;
const NOBODY: &str = "00000000-0000-7000-8000-000000000000";
const TIME: &str = "2026-01-01T00:00:00.000Z";

/// How frames that wait for one socket are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WriteMode {
    /// A write per message.
    PerMessage,
    /// Whatever waits, in one write.
    Joined,
}

impl WriteMode {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::PerMessage => "per-message",
            Self::Joined => "joined",
        }
    }
}

#[derive(Default)]
struct Hub {
    rooms: Mutex<HashMap<String, Room>>,
    next_message: AtomicU64,
}

#[derive(Default)]
struct Room {
    sequence: u64,
    members: Vec<mpsc::Sender<Utf8Bytes>>,
}

/// How rooms reach a socket. Only rooms keep it open: when the last one has dropped it, the socket's task ends.
struct Inbox {
    weak: mpsc::WeakSender<Utf8Bytes>,
    unused: Option<mpsc::Sender<Utf8Bytes>>,
}

impl Inbox {
    fn sender(&mut self) -> Option<mpsc::Sender<Utf8Bytes>> {
        self.unused.take().or_else(|| self.weak.upgrade())
    }
}

#[derive(Deserialize)]
struct ClientFrame<'a> {
    #[serde(rename = "type")]
    frame_type: &'a str,
    id: Option<&'a str>,
    #[serde(borrow, default)]
    payload: Payload<'a>,
}

#[derive(Deserialize, Default)]
struct Payload<'a> {
    room_id: Option<&'a str>,
    client_message_id: Option<&'a str>,
    content: Option<&'a str>,
}

/// Serves until the listener fails.
pub async fn serve(listener: TcpListener, mode: WriteMode) -> Result<()> {
    let hub = Arc::new(Hub::default());
    loop {
        let (stream, _) = listener.accept().await.context("cannot accept")?;
        let hub = hub.clone();
        // A socket that breaks is that client's affair; the client notices and reports it.
        tokio::spawn(async move {
            let _ = serve_socket(stream, hub, mode).await;
        });
    }
}

async fn serve_socket(stream: TcpStream, hub: Arc<Hub>, mode: WriteMode) -> Result<()> {
    stream.set_nodelay(true)?;
    let (write_buffer, most_at_once) = match mode {
        WriteMode::PerMessage => (0, 1),
        WriteMode::Joined => (64 * 1024, 256),
    };
    let config = WebSocketConfig::default()
        .read_buffer_size(4 * 1024)
        .write_buffer_size(write_buffer)
        .max_write_buffer_size(4 * 1024 * 1024);
    let mut socket = tokio_tungstenite::accept_async_with_config(stream, Some(config)).await?;
    let hello = format!(
        r#"{{"type":"connection_ack","payload":{{"user_id":"{NOBODY}","device_id":"{NOBODY}","heartbeat_ms":30000,"resume":{{}}}}}}"#
    );
    socket.send(Message::text(hello)).await?;
    let (sender, mut waiting) = mpsc::channel(WAITING_FRAMES);
    let mut inbox = Inbox {
        weak: sender.downgrade(),
        unused: Some(sender),
    };
    let mut frames = Vec::new();
    loop {
        tokio::select! {
            count = waiting.recv_many(&mut frames, most_at_once) => {
                if count == 0 {
                    return Ok(());
                }
                write_out(&mut socket, &mut frames).await?;
            }
            message = socket.next() => match message {
                Some(Ok(Message::Text(text))) => {
                    let answer = hub.handle(&text, &mut inbox);
                    socket.send(Message::text(answer)).await?;
                }
                Some(Ok(Message::Close(_))) | None => return Ok(()),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
            },
        }
    }
}

async fn write_out(
    socket: &mut WebSocketStream<TcpStream>,
    frames: &mut Vec<Utf8Bytes>,
) -> Result<()> {
    for frame in frames.drain(..) {
        socket.feed(Message::Text(frame)).await?;
    }
    socket.flush().await?;
    Ok(())
}

// === impl Hub ===

impl Hub {
    /// Does what a frame asks for; the answer to it.
    fn handle(&self, text: &str, inbox: &mut Inbox) -> String {
        let frame: ClientFrame = match serde_json::from_str(text) {
            Ok(frame) => frame,
            Err(_) => {
                return r#"{"type":"error","payload":{"code":"invalid_request"}}"#.to_owned();
            }
        };
        let id = frame.id.unwrap_or_default();
        match (frame.frame_type, frame.payload) {
            ("ping", _) => {
                format!(r#"{{"type":"pong","id":"{id}","payload":{{"time":"{TIME}"}}}}"#)
            }
            (
                "join_room",
                Payload {
                    room_id: Some(room),
                    ..
                },
            ) => {
                if let Some(sender) = inbox.sender() {
                    let mut rooms = self.rooms.lock();
                    rooms
                        .entry(room.to_owned())
                        .or_default()
                        .members
                        .push(sender);
                }
                format!(r#"{{"type":"ack","id":"{id}","payload":{{"room_id":"{room}"}}}}"#)
            }
            (
                "send_message",
                Payload {
                    room_id: Some(room),
                    client_message_id: Some(client_message_id),
                    content: Some(content),
                },
            ) => self.broadcast(id, room, client_message_id, content),
            _ => {
                format!(r#"{{"type":"error","id":"{id}","payload":{{"code":"invalid_request"}}}}"#)
            }
        }
    }

    fn broadcast(&self, id: &str, room_id: &str, client_message_id: &str, content: &str) -> String {
        let message = self.next_message.fetch_add(1, Ordering::Relaxed);
        let mut rooms = self.rooms.lock();
        let room = rooms.entry(room_id.to_owned()).or_default();
        room.sequence += 1;
        let sequence = room.sequence;
        let before = sequence - 1;
        let payload = format!(
            r#"{{"id":"00000000-0000-7000-8000-{message:012x}","room_id":"{room_id}","sequence":{sequence},"messages_before":{before},"sender_id":"{NOBODY}","time":"{TIME}","type":"text","content":"{content}","reply_to":null,"client_message_id":"{client_message_id}","edited_at":null,"deleted_at":null,"revision":{sequence}}}"#
        );
        let frame = Utf8Bytes::from(format!(r#"{{"type":"new_message","payload":{payload}}}"#));
        // A full queue cuts its reader off: the sender is dropped here, and the socket's task ends when it was the last one.
        room.members
            .retain(|member| member.try_send(frame.clone()).is_ok());
        format!(
            r#"{{"type":"ack","id":"{id}","payload":{{"sequence":{sequence},"message":{payload}}}}}"#
        )
    }
}
