//! The JSON of the public API, as far as a load generator must know it: frames are built as text and read by scanning bytes,
//! because parsing every delivery would cost more than the server spends on sending it.
//!
//! A message's content carries the run it belongs to, its number and when it was due: `cb:<run>:<number>:<nanoseconds>:` and
//! padding. Nothing here knows sockets.

use std::sync::LazyLock;
use std::time::Instant;

use memchr::memmem::Finder;
use serde_json::{Value, json};

use crate::wire::{Outgoing, Wire, nats, socketio};

/// Nanoseconds since this process's first look at the clock; the one clock of every latency.
pub fn now_nanos() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_nanos() as u64
}

/// What a server's frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Authenticated.
    ConnectionAck,
    /// A request was carried out.
    Ack,
    /// A request was refused.
    Error,
    /// A message of a room.
    NewMessage,
    /// Answer to a ping.
    Pong,
    /// Events may be missing: the client would have to pull.
    Resync,
    /// Presence, typing, marks and whatever else does not count here.
    Other,
}

/// What is known of a server's frame from its type alone. The first byte tells whose wire it is of.
pub fn kind(frame: &[u8]) -> Kind {
    match frame.first() {
        Some(b'{') | None => own_kind(frame),
        Some(b'0'..=b'9') => socketio::kind(frame),
        Some(_) => nats::kind(frame),
    }
}

fn own_kind(frame: &[u8]) -> Kind {
    static TYPE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"type\":\""));
    // A message's payload has a `type` too ("text"), and the order of keys is not promised.
    for at in TYPE.find_iter(frame) {
        let rest = &frame[at + 8..];
        let word = &rest[..memchr::memchr(b'"', rest).unwrap_or(0)];
        let known = match word {
            b"new_message" => Kind::NewMessage,
            b"ack" => Kind::Ack,
            b"error" => Kind::Error,
            b"connection_ack" => Kind::ConnectionAck,
            b"pong" => Kind::Pong,
            b"resync" => Kind::Resync,
            _ => continue,
        };
        return known;
    }
    Kind::Other
}

/// The place of a room event, or of the message that an ack is about.
pub fn sequence(frame: &[u8]) -> Option<u64> {
    static SEQUENCE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"sequence\":"));
    if is_nats(frame) {
        return nats::sequence(frame);
    }
    let at = SEQUENCE.find(frame)? + 11;
    number(&frame[at..]).map(|(value, _)| value)
}

/// The number of the request that an ack or error answers, as [`send_message`] gave it.
pub fn request_number(frame: &[u8]) -> Option<u64> {
    static ID: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"id\":\"cb"));
    if is_nats(frame) {
        return nats::request_number(frame);
    }
    if frame.first().is_some_and(u8::is_ascii_digit) {
        return socketio::request_number(frame);
    }
    let at = ID.find(frame)? + 8;
    number(&frame[at..]).map(|(value, _)| value)
}

fn is_nats(frame: &[u8]) -> bool {
    matches!(frame.first(), Some(b'M' | b'H'))
}

/// Whether an error says that the same may be tried again.
pub fn is_retryable(frame: &[u8]) -> bool {
    let has = |code: &[u8]| memchr::memmem::find(frame, code).is_some();
    has(b"\"code\":\"unavailable\"") || has(b"\"code\":\"deadline_exceeded\"")
}

/// The number at the beginning, and how many digits it has.
pub fn number(text: &[u8]) -> Option<(u64, usize)> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let value = std::str::from_utf8(&text[..digits]).ok()?.parse().ok()?;
    Some((value, digits))
}

/// What a message of ours says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// Its number within the run.
    pub number: u64,
    /// When it was due to be sent, by [`now_nanos`].
    pub due: u64,
}

/// Makes and recognises the messages of one run.
pub struct Stamper {
    run: String,
    content_bytes: usize,
    wire: Wire,
    finder: Finder<'static>,
}

impl Stamper {
    /// For contents of `content_bytes` (more if the stamp does not fit). Every client message id begins with `run`, so the same people
    /// need another one for their next measurement.
    pub fn new(run: &str, content_bytes: usize) -> Self {
        Self {
            run: run.to_owned(),
            content_bytes,
            wire: Wire::Carillon,
            finder: Finder::new(&format!("cb:{run}:")).into_owned(),
        }
    }

    /// The same for a server that speaks another wire.
    pub fn speaking(mut self, wire: Wire) -> Self {
        self.wire = wire;
        self
    }

    /// How many messages of this run the bytes hold.
    pub fn count(&self, bytes: &[u8]) -> usize {
        self.finder.find_iter(bytes).count()
    }

    /// The stamp of a message, if it is one of this run.
    pub fn read(&self, frame: &[u8]) -> Option<Stamp> {
        let rest = &frame[self.finder.find(frame)? + self.finder.needle().len()..];
        let (number_, digits) = number(rest)?;
        let (due, _) = number(rest.get(digits + 1..)?)?;
        Some(Stamp {
            number: number_,
            due,
        })
    }

    /// The text that sends a message. Its request number and its client message id are made of the message's number.
    pub fn send_message(&self, room_id: &str, stamp: Stamp) -> String {
        let (number, run) = (stamp.number, &self.run);
        self.wire.send_message(&Outgoing {
            room_id,
            client_message_id: &format!("{run}-{number}"),
            content: &self.content(stamp),
            stamp,
        })
    }

    /// The body of a message that is sent through Carillon's REST.
    pub fn message(&self, stamp: Stamp) -> Value {
        let (number, run) = (stamp.number, &self.run);
        let content = self.content(stamp);
        json!({"client_message_id": format!("{run}-{number}"), "type": "text", "content": content})
    }

    fn content(&self, Stamp { number, due }: Stamp) -> String {
        let mut content = format!("cb:{}:{number}:{due}:", self.run);
        let padding = self.content_bytes.saturating_sub(content.len());
        content.extend(std::iter::repeat_n('x', padding));
        content
    }
}

/// Any other request on Carillon's wire, whose number its ack names.
pub fn request(kind: &str, number: u64, payload: &Value) -> String {
    json!({"type": kind, "id": format!("cb{number}"), "payload": payload}).to_string()
}

/// A `ping` frame.
pub const PING: &str = r#"{"type":"ping","id":"cb0","payload":{}}"#;

/// A frame's beginning, for an error text.
pub fn excerpt(frame: &[u8]) -> String {
    String::from_utf8_lossy(&frame[..frame.len().min(300)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_is_read_whatever_the_order_of_its_keys() {
        let stamper = Stamper::new("r1", 64);
        for frame in [
            r#"{"type":"new_message","room_id":"a","sequence":42,"time":"t","payload":{"id":"m","type":"text","content":"cb:r1:7:123456:xxx"}}"#,
            r#"{"payload":{"content":"cb:r1:7:123456:xxx","type":"text"},"sequence":42,"type":"new_message"}"#,
        ] {
            assert_eq!(kind(frame.as_bytes()), Kind::NewMessage);
            assert_eq!(sequence(frame.as_bytes()), Some(42));
            assert_eq!(
                stamper.read(frame.as_bytes()),
                Some(Stamp {
                    number: 7,
                    due: 123_456
                })
            );
        }
    }

    #[test]
    fn other_frames_are_told_apart() {
        for (frame, expected) in [
            (
                r#"{"type":"ack","id":"cb9","payload":{"type":"text","sequence":3}}"#,
                Kind::Ack,
            ),
            (
                r#"{"type":"error","id":"cb9","payload":{"code":"rate_limited"}}"#,
                Kind::Error,
            ),
            (r#"{"type":"user_online","payload":{}}"#, Kind::Other),
            (r#"{"type":"pong","id":"cb0"}"#, Kind::Pong),
            ("{}", Kind::Other),
        ] {
            assert_eq!(kind(frame.as_bytes()), expected, "{frame}");
        }
        let ack = br#"{"type":"ack","payload":{"id":"0190","sequence":3},"id":"cb9"}"#;
        assert_eq!((request_number(ack), sequence(ack)), (Some(9), Some(3)));
    }

    #[test]
    fn what_is_sent_is_json_and_is_recognised() {
        let stamper = Stamper::new("ab12", 100);
        let stamp = Stamp { number: 5, due: 77 };
        let frame = stamper.send_message("room", stamp);
        let value: serde_json::Value = serde_json::from_str(&frame).unwrap();
        assert_eq!(value["payload"]["content"].as_str().unwrap().len(), 100);
        assert_eq!(value["payload"]["client_message_id"], "ab12-5");
        assert_eq!(stamper.read(frame.as_bytes()), Some(stamp));
        assert_eq!(Stamper::new("other", 1).read(frame.as_bytes()), None);
        assert_eq!(request_number(frame.as_bytes()), Some(5));
    }
}
