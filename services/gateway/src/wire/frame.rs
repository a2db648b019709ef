//! A frame as it goes over the connection: encoded once, however many sockets it is for.

use std::{fmt, ops::Deref};

use bytes::Bytes;
use serde::Serialize;

/// The longest header of a frame that isn't masked: two bytes, and eight for the length.
const LONGEST_HEADER: usize = 10;

/// An unfragmented text frame of a server, with its header (RFC 6455 §5.2). Servers don't mask, so that every socket gets the same bytes.
/// A clone costs a reference. As a `str` it is the text without the header.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame(Bytes);

impl Frame {
    /// The text frame of `value` as JSON.
    pub fn json<T: Serialize>(value: &T) -> serde_json::Result<Self> {
        // Written behind the place for any header: the text isn't moved when its length is known.
        let mut bytes = Vec::with_capacity(512);
        bytes.resize(LONGEST_HEADER, 0);
        serde_json::to_writer(&mut bytes, value)?;
        Ok(Self::around(bytes))
    }

    /// The frame of a text.
    pub fn text(text: &str) -> Self {
        let mut bytes = Vec::with_capacity(LONGEST_HEADER + text.len());
        bytes.resize(LONGEST_HEADER, 0);
        bytes.extend_from_slice(text.as_bytes());
        Self::around(bytes)
    }

    /// Puts the header before a text that begins at [`LONGEST_HEADER`].
    fn around(mut bytes: Vec<u8>) -> Self {
        /// FIN and the opcode of text.
        const FINAL_TEXT: u8 = 0x81;
        let length = bytes.len() - LONGEST_HEADER;
        let start = match u16::try_from(length) {
            Ok(short @ 0..126) => {
                bytes[LONGEST_HEADER - 1] = short as u8;
                LONGEST_HEADER - 2
            }
            Ok(medium) => {
                bytes[LONGEST_HEADER - 3] = 126;
                bytes[LONGEST_HEADER - 2..LONGEST_HEADER].copy_from_slice(&medium.to_be_bytes());
                LONGEST_HEADER - 4
            }
            Err(_) => {
                bytes[1] = 127;
                bytes[2..LONGEST_HEADER].copy_from_slice(&(length as u64).to_be_bytes());
                0
            }
        };
        bytes[start] = FINAL_TEXT;
        Self(Bytes::from(bytes).slice(start..))
    }

    /// Header and text.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl Deref for Frame {
    type Target = str;

    fn deref(&self) -> &str {
        let header = match self.0.get(1) {
            Some(127) => 10,
            Some(126) => 4,
            _ => 2,
        };
        // Made of text only.
        std::str::from_utf8(self.0.get(header..).unwrap_or_default()).unwrap_or_default()
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use tokio_tungstenite::tungstenite::{
        Message,
        protocol::{Role, WebSocket},
    };

    use super::*;

    /// RFC 6455 §5.2: each way to write a length, read by another's code.
    #[test]
    fn a_client_reads_the_text() {
        for length in [0, 1, 125, 126, 127, 65_535, 65_536, 70_000] {
            let text = "x".repeat(length);
            let frame = Frame::text(&text);
            assert_eq!(*frame, *text);
            let wire = std::io::Cursor::new(frame.into_bytes().to_vec());
            let mut client = WebSocket::from_raw_socket(wire, Role::Client, None);
            let message = client.read().unwrap();
            assert_eq!(message, Message::text(text), "of {length} bytes");
        }
        let json = Frame::json(&serde_json::json!({"content": "grüß dich"})).unwrap();
        assert_eq!(&*json, r#"{"content":"grüß dich"}"#);
    }
}
