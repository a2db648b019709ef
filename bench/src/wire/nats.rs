//! The client protocol of NATS, and what JetStream answers: lines, and messages whose length is in the line before them.
//!
//! A room is a stream. Messages go to `send.<room>`; the stream stores them and publishes each again to `live.<room>`, so that a member sees it after
//! it is stored, with its place in a header. Acknowledgements go to an inbox of the connection. Not here: TLS, consumers, clusters.

use std::sync::LazyLock;

use anyhow::{Context, Result, ensure};
use memchr::memmem::Finder;

use super::Outgoing;
use crate::frames::Kind;
use crate::websocket::{CLOSE, LARGEST_FRAME, PING as PING_OPCODE, TEXT};

/// Asks for a `PONG`.
pub const PING: &str = "PING";

/// Introduces a client.
pub fn connect(token: &str) -> String {
    format!(
        r#"CONNECT {{"verbose":false,"pedantic":false,"tls_required":false,"lang":"rust","version":"1","protocol":1,"headers":true,"no_responders":true,"auth_token":"{token}"}}"#
    )
}

/// The subject of what this connection is answered, without the number of a request.
pub fn inbox(connection: u64) -> String {
    format!("_INBOX.{connection:016x}")
}

/// The name of a room's stream.
pub fn stream_of(room_id: &str) -> String {
    format!("room-{room_id}")
}

/// The request that makes a room's stream: on disk, and each stored message published again.
pub fn create_stream(room_id: &str) -> String {
    let stream = stream_of(room_id);
    request(
        &format!("$JS.API.STREAM.CREATE.{stream}"),
        0,
        &format!(
            r#"{{"name":"{stream}","subjects":["send.{room_id}"],"storage":"file","num_replicas":1,"allow_direct":true,"republish":{{"src":"send.{room_id}","dest":"live.{room_id}"}}}}"#
        ),
    )
}

/// The request for `limit` messages from a place on.
pub fn read_from(room_id: &str, sequence: u64, limit: u64) -> String {
    let subject = format!("$JS.API.DIRECT.GET.{}", stream_of(room_id));
    request(
        &subject,
        0,
        &format!(r#"{{"seq":{sequence},"batch":{limit}}}"#),
    )
}

/// The request for the newest message.
pub fn read_last(room_id: &str) -> String {
    let subject = format!("$JS.API.DIRECT.GET.{}", stream_of(room_id));
    request(
        &subject,
        0,
        &format!(r#"{{"last_by_subj":"send.{room_id}"}}"#),
    )
}

/// Sends a message. The payload has the fields that Carillon's has, except for those that a server adds.
pub fn send_message(outgoing: &Outgoing<'_>) -> String {
    let Outgoing {
        room_id,
        client_message_id,
        content,
        stamp,
    } = outgoing;
    let number = stamp.number;
    request(
        &format!("send.{room_id}"),
        number,
        &format!(
            r#"{{"id":"00000000-0000-7000-8000-{number:012x}","room_id":"{room_id}","sender_id":"00000000-0000-7000-8000-000000000000","time":"2026-01-01T00:00:00.000Z","type":"text","content":"{content}","reply_to":null,"client_message_id":"{client_message_id}","edited_at":null,"deleted_at":null}}"#
        ),
    )
}

/// A text for [`encode`]: where it goes, the number that the answer repeats, and on the next line what it says.
fn request(subject: &str, number: u64, payload: &str) -> String {
    format!("{subject} {number}\n{payload}")
}

/// Appends a text: a request as a `PUB` that is answered at this connection's inbox, anything else as a line.
pub fn encode(out: &mut Vec<u8>, connection: u64, text: &str) {
    match text.split_once('\n') {
        Some((head, payload)) => {
            let (subject, number) = head.split_once(' ').unwrap_or((head, "0"));
            let inbox = inbox(connection);
            let line = format!("PUB {subject} {inbox}.{number} {}\r\n", payload.len());
            out.extend_from_slice(line.as_bytes());
            out.extend_from_slice(payload.as_bytes());
        }
        None => out.extend_from_slice(text.as_bytes()),
    }
    out.extend_from_slice(b"\r\n");
}

/// Shows every whole line and message to `on_frame`, with the opcodes of WebSocket, and answers how many bytes they took.
pub fn decode(bytes: &[u8], on_frame: &mut impl FnMut(u8, &[u8])) -> Result<usize> {
    let mut at = 0;
    while let Some(length) = memchr::memchr(b'\n', &bytes[at..]) {
        let after_line = at + length + 1;
        let line = bytes[at..after_line].trim_ascii_end();
        match line {
            [b'M', b'S', b'G', ..] | [b'H', b'M', b'S', b'G', ..] => {
                let length = last_number(line)
                    .with_context(|| format!("no length in {}", crate::frames::excerpt(line)))?;
                ensure!(
                    length < LARGEST_FRAME / 2,
                    "the server sent a message of {length} bytes"
                );
                let end = after_line + length;
                if bytes.len() < end + 2 {
                    break;
                }
                on_frame(TEXT, &bytes[at..end]);
                at = end + 2;
            }
            _ => {
                match line {
                    b"PING" => on_frame(PING_OPCODE, b""),
                    [b'-', ..] => on_frame(CLOSE, line),
                    _ => on_frame(TEXT, line),
                }
                at = after_line;
            }
        }
    }
    Ok(at)
}

fn last_number(line: &[u8]) -> Option<usize> {
    let start = memchr::memrchr(b' ', line)? + 1;
    std::str::from_utf8(&line[start..]).ok()?.parse().ok()
}

/// What a frame of [`decode`] is.
pub fn kind(frame: &[u8]) -> Kind {
    static ERROR: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"error\":"));
    if frame.starts_with(b"PONG") {
        return Kind::Pong;
    }
    match frame.strip_prefix(b"H") {
        Some(message) if message.starts_with(b"MSG _INBOX.") => match status(frame) {
            None | Some(END_OF_BATCH) => Kind::Other,
            Some(_) => Kind::Error,
        },
        Some(message) if message.starts_with(b"MSG ") => Kind::NewMessage,
        _ if frame.starts_with(b"MSG _INBOX.") && ERROR.find(frame).is_some() => Kind::Error,
        _ if frame.starts_with(b"MSG _INBOX.") => Kind::Ack,
        _ => Kind::Other,
    }
}

/// The status that says that a batch of stored messages is whole.
pub const END_OF_BATCH: u64 = 204;

/// The status of an answer that holds no message.
pub fn status(frame: &[u8]) -> Option<u64> {
    static VERSION: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\r\nNATS/1.0 "));
    number_after(&VERSION, frame)
}

/// The place of a message that was stored: in a header of the message, or in the JSON of the acknowledgement.
pub fn sequence(frame: &[u8]) -> Option<u64> {
    static HEADER: LazyLock<Finder<'static>> =
        LazyLock::new(|| Finder::new(b"\r\nNats-Sequence: "));
    static FIELD: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"seq\":"));
    match frame.first() {
        Some(b'H') => number_after(&HEADER, frame),
        _ => number_after(&FIELD, frame),
    }
}

/// The number of the request that this answers: the end of the subject.
pub fn request_number(frame: &[u8]) -> Option<u64> {
    let subject = frame.split(|byte| *byte == b' ').nth(1)?;
    let start = memchr::memrchr(b'.', subject)? + 1;
    crate::frames::number(&subject[start..]).map(|(value, _)| value)
}

fn number_after(finder: &Finder<'_>, frame: &[u8]) -> Option<u64> {
    let at = finder.find(frame)? + finder.needle().len();
    crate::frames::number(&frame[at..]).map(|(value, _)| value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::{self, Stamp, Stamper};
    use crate::wire::Wire;

    const LIVE: &[u8] = b"HMSG live.r1 1 59 81\r\nNATS/1.0\r\nNats-Stream: room-r1\r\nNats-Sequence: 42\r\n\r\n\r\n{\"content\":\"cb:ab:7:9:\"";
    const ACK: &[u8] =
        b"MSG _INBOX.00000000000000ab.17 2 32\r\n{\"stream\":\"room-r1\", \"seq\":42   }";

    #[test]
    fn frames_are_told_apart() {
        for (frame, expected) in [
            (LIVE, Kind::NewMessage),
            (ACK, Kind::Ack),
            (
                b"MSG _INBOX.ab.17 2 1\r\n{\"error\":{\"code\":503}}".as_slice(),
                Kind::Error,
            ),
            (
                b"HMSG _INBOX.ab.17 2 16 16\r\nNATS/1.0 503\r\n\r\n".as_slice(),
                Kind::Error,
            ),
            (
                b"HMSG _INBOX.ab.17 2 16 16\r\nNATS/1.0 204 EOB\r\n\r\n".as_slice(),
                Kind::Other,
            ),
            (b"PONG".as_slice(), Kind::Pong),
            (b"INFO {}".as_slice(), Kind::Other),
        ] {
            assert_eq!(
                frames::kind(frame),
                expected,
                "{}",
                String::from_utf8_lossy(frame)
            );
        }
        assert_eq!(frames::sequence(LIVE), Some(42));
        assert_eq!(
            (frames::request_number(ACK), frames::sequence(ACK)),
            (Some(17), Some(42))
        );
        let stamper = Stamper::new("ab", 1);
        assert_eq!(stamper.read(LIVE), Some(Stamp { number: 7, due: 9 }));
    }

    /// However the bytes are cut, the same frames come out.
    #[test]
    fn frames_are_found_however_the_bytes_are_cut() {
        let bytes = b"INFO {\"a\":1}\r\nPING\r\nMSG live.a 1 5\r\na\r\nbc\r\nPONG\r\n-ERR 'no'\r\n";
        for cut in 0..=bytes.len() {
            let mut seen = Vec::new();
            let mut on_frame = |opcode: u8, frame: &[u8]| seen.push((opcode, frame.to_vec()));
            let consumed = decode(&bytes[..cut], &mut on_frame).unwrap();
            let rest = decode(&bytes[consumed..], &mut on_frame).unwrap();
            assert_eq!(consumed + rest, bytes.len(), "cut at {cut}");
            let expected: [(u8, &[u8]); 5] = [
                (TEXT, b"INFO {\"a\":1}"),
                (PING_OPCODE, b""),
                (TEXT, b"MSG live.a 1 5\r\na\r\nbc"),
                (TEXT, b"PONG"),
                (CLOSE, b"-ERR 'no'"),
            ];
            assert!(
                seen.iter()
                    .map(|(opcode, frame)| (*opcode, frame.as_slice()))
                    .eq(expected),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn what_is_sent_names_its_length_and_where_the_answer_goes() {
        let stamper = Stamper::new("ab", 60).speaking(Wire::Nats);
        let text = stamper.send_message("r1", Stamp { number: 12, due: 7 });
        let mut bytes = Vec::new();
        encode(&mut bytes, 0xab, &text);
        let sent = String::from_utf8(bytes).unwrap();
        let (line, rest) = sent.split_once("\r\n").unwrap();
        let payload = rest.strip_suffix("\r\n").unwrap();
        assert_eq!(
            line,
            format!("PUB send.r1 _INBOX.00000000000000ab.12 {}", payload.len())
        );
        let payload: serde_json::Value = serde_json::from_str(payload).unwrap();
        assert_eq!(payload["content"].as_str().unwrap().len(), 60);
        let mut bytes = Vec::new();
        encode(&mut bytes, 0xab, PING);
        assert_eq!(bytes, b"PING\r\n");
    }
}
