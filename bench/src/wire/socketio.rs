//! socket.io (protocol 5) over Engine.IO (protocol 4), WebSocket only: events with an acknowledgement, as JSON texts.
//!
//! A packet begins with digits: `4` a message, then its type (`0` connect, `2` event, `3` acknowledgement, `4` refusal), then the number
//! that the acknowledgement repeats. Not here: binary packets, namespaces, long polling.

use super::Outgoing;
use crate::frames::Kind;

/// Where a socket is opened.
pub const PATH: &str = "/socket.io/?EIO=4&transport=websocket";
/// The server's heartbeat, and the answer to it.
pub const HEARTBEAT: (&[u8], &[u8]) = (b"2", b"3");
/// An event that the server answers with `pong`.
pub const PING: &str = r#"420["hello"]"#;

/// Connects to the main namespace with a token.
pub fn connect(token: &str) -> String {
    format!(r#"40{{"token":"{token}"}}"#)
}

/// Sends a message as an event.
pub fn send_message(outgoing: &Outgoing<'_>) -> String {
    let Outgoing {
        room_id,
        client_message_id,
        content,
        stamp,
    } = outgoing;
    format!(
        r#"42{}["send_message",{{"room_id":"{room_id}","client_message_id":"{client_message_id}","type":"text","content":"{content}"}}]"#,
        stamp.number
    )
}

/// What a packet is.
pub fn kind(packet: &[u8]) -> Kind {
    match packet {
        [b'4', b'0', ..] => Kind::ConnectionAck,
        [b'4', b'2', rest @ ..] if rest.starts_with(br#"["new_message","#) => Kind::NewMessage,
        [b'4', b'3', rest @ ..] => {
            let data = &rest[digits(rest)..];
            if data.starts_with(br#"[{"error""#) {
                Kind::Error
            } else if data.starts_with(br#"["pong""#) {
                Kind::Pong
            } else {
                Kind::Ack
            }
        }
        [b'4', b'4', ..] => Kind::Error,
        _ => Kind::Other,
    }
}

/// The number of the event that is acknowledged.
pub fn request_number(packet: &[u8]) -> Option<u64> {
    let rest = packet.strip_prefix(b"43")?;
    std::str::from_utf8(&rest[..digits(rest)])
        .ok()?
        .parse()
        .ok()
}

fn digits(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::{self, Stamp, Stamper};
    use crate::wire::Wire;

    #[test]
    fn packets_are_told_apart() {
        for (packet, expected) in [
            (
                r#"0{"sid":"a","upgrades":[],"pingInterval":25000}"#,
                Kind::Other,
            ),
            ("2", Kind::Other),
            (r#"40{"sid":"b"}"#, Kind::ConnectionAck),
            (r#"44{"message":"the token is wrong"}"#, Kind::Error),
            (
                r#"42["new_message",{"sequence":3,"content":"cb:r:1:2:x"}]"#,
                Kind::NewMessage,
            ),
            (r#"42["typing",{}]"#, Kind::Other),
            (r#"4317[{"sequence":3,"message":{}}]"#, Kind::Ack),
            (r#"4317[{"error":"no such room"}]"#, Kind::Error),
            (r#"430["pong"]"#, Kind::Pong),
        ] {
            assert_eq!(frames::kind(packet.as_bytes()), expected, "{packet}");
        }
        let ack = br#"4317[{"sequence":3,"message":{"sequence":3}}]"#;
        assert_eq!(
            (frames::request_number(ack), frames::sequence(ack)),
            (Some(17), Some(3))
        );
    }

    #[test]
    fn what_is_sent_is_an_event_that_asks_for_an_acknowledgement() {
        let stamper = Stamper::new("ab", 60).speaking(Wire::SocketIo);
        let text = stamper.send_message("room", Stamp { number: 12, due: 7 });
        let event: serde_json::Value =
            serde_json::from_str(text.strip_prefix("4212").unwrap()).unwrap();
        assert_eq!(event[0], "send_message");
        assert_eq!(event[1]["room_id"], "room");
        assert_eq!(event[1]["content"].as_str().unwrap().len(), 60);
    }
}
