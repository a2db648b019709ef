//! A WebSocket client (RFC 6455) for one process with tens of thousands of sockets: all sockets of a thread read into one
//! buffer, and a delivery is looked at where it lies. The framing of NATS, which needs no WebSocket, is read the same way.
//!
//! It does not do: TLS, compression, fragmented messages, frames larger than [`LARGEST_FRAME`]; the server's heartbeats are answered.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Mutex;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::wire::{nats, socketio};

/// Largest frame that is understood, in bytes, header included.
pub const LARGEST_FRAME: usize = 256 * 1024;

/// Opcode of a text.
pub const TEXT: u8 = 0x1;
/// Opcode of the end.
pub const CLOSE: u8 = 0x8;
/// Opcode of a heartbeat.
pub const PING: u8 = 0x9;
const PONG: u8 = 0xA;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; LARGEST_FRAME]);
}

/// What became of a socket after a turn of reading.
#[derive(PartialEq, Eq, Debug)]
pub enum Turn {
    /// It is open.
    Open,
    /// The server closed it, with this close code and reason, or without.
    Closed(String),
}

/// The reading side of a socket, and a [`Writer`] to answer heartbeats with.
pub struct Socket {
    read: OwnedReadHalf,
    writer: Writer,
    /// The beginning of a frame whose rest has not come yet.
    carry: Vec<u8>,
    /// Whether `carry` may hold whole frames: right after the handshake.
    carry_is_fresh: bool,
}

/// The writing side of a socket; clones write to the same one.
#[derive(Clone)]
pub struct Writer {
    half: Arc<Mutex<OwnedWriteHalf>>,
    framing: Framing,
}

/// How bytes become frames.
#[derive(Clone, Copy)]
enum Framing {
    WebSocket,
    /// With the number of the connection, which names its inbox.
    Nats(u64),
}

// === impl Framing ===

impl Framing {
    fn text(self, out: &mut Vec<u8>, text: &str) {
        match self {
            Self::WebSocket => encode(out, TEXT, text.as_bytes()),
            Self::Nats(connection) => nats::encode(out, connection, text),
        }
    }

    fn pong(self, out: &mut Vec<u8>, payload: &[u8]) {
        match self {
            Self::WebSocket => encode(out, PONG, payload),
            Self::Nats(_) => out.extend_from_slice(b"PONG\r\n"),
        }
    }

    fn decode(self, bytes: &[u8], on_frame: &mut impl FnMut(u8, &[u8])) -> Result<usize> {
        match self {
            Self::WebSocket => decode(bytes, on_frame),
            Self::Nats(_) => nats::decode(bytes, on_frame),
        }
    }

    fn describe_close(self, payload: &[u8]) -> String {
        match self {
            Self::WebSocket => describe_close(payload),
            Self::Nats(_) => String::from_utf8_lossy(payload).into_owned(),
        }
    }
}

// === impl Writer ===

impl Writer {
    /// Sends the texts, a frame each, in one write.
    pub async fn send_all(&self, texts: &[String]) -> Result<()> {
        let mut bytes = Vec::with_capacity(texts.iter().map(|text| text.len() + 8).sum());
        for text in texts {
            self.framing.text(&mut bytes, text);
        }
        self.write(&bytes).await
    }

    /// Sends a text.
    pub async fn send(&self, text: &str) -> Result<()> {
        let mut bytes = Vec::with_capacity(text.len() + 8);
        self.framing.text(&mut bytes, text);
        self.write(&bytes).await
    }

    /// Says goodbye (code 1000; NATS has none). The server may be gone already, which is no error.
    pub async fn close(&self) {
        let mut bytes = Vec::new();
        if let Framing::WebSocket = self.framing {
            encode(&mut bytes, CLOSE, &1000_u16.to_be_bytes());
        }
        let _ = self.write(&bytes).await;
    }

    async fn write(&self, bytes: &[u8]) -> Result<()> {
        self.half
            .lock()
            .await
            .write_all(bytes)
            .await
            .context("cannot write to a socket")
    }
}

/// Appends a masked frame.
fn encode(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    out.push(0x80 | opcode);
    match payload.len() {
        length @ 0..=125 => out.push(0x80 | length as u8),
        length @ 126..=65_535 => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    let mask: [u8; 4] = rand::random();
    out.extend_from_slice(&mask);
    out.extend(
        payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, key)| byte ^ key),
    );
}

// === impl Socket ===

impl Socket {
    /// Opens a socket at `path`, with a bearer token if there is one; `source` is the local address and `receive_buffer` the bytes that
    /// the operating system keeps for a reader, if they matter.
    pub async fn connect(
        server: SocketAddr,
        source: Option<std::net::Ipv4Addr>,
        path: &str,
        token: Option<&str>,
        receive_buffer: Option<u32>,
    ) -> Result<Self> {
        let mut stream = open_stream(server, source, receive_buffer).await?;
        const KEY: &str = "Y2FyaWxsb24tYmVuY2gtMQ==";
        let authorization = token.map_or(String::new(), |token| {
            format!("Authorization: Bearer {token}\r\n")
        });
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: {KEY}\r\n{authorization}\r\n"
        );
        stream
            .write_all(request.as_bytes())
            .await
            .context("cannot ask for an upgrade")?;
        let carry = read_upgrade(&stream, KEY).await?;
        Ok(Self::over(stream, Framing::WebSocket, carry))
    }

    /// Connects to a NATS server. A refused token closes the socket; a `PONG` to the first ping means that it was taken.
    pub async fn connect_nats(
        server: SocketAddr,
        source: Option<std::net::Ipv4Addr>,
        token: &str,
    ) -> Result<Self> {
        let stream = open_stream(server, source, None).await?;
        let connection: u64 = rand::random();
        let socket = Self::over(stream, Framing::Nats(connection), Vec::new());
        let inbox = format!("SUB {}.> 0", nats::inbox(connection));
        let hello = [nats::connect(token), inbox];
        socket.writer.send_all(&hello).await?;
        Ok(socket)
    }

    fn over(stream: TcpStream, framing: Framing, carry: Vec<u8>) -> Self {
        let (read, write) = stream.into_split();
        Self {
            read,
            writer: Writer {
                half: Arc::new(Mutex::new(write)),
                framing,
            },
            carry_is_fresh: !carry.is_empty(),
            carry,
        }
    }

    /// The writing side.
    pub fn writer(&self) -> Writer {
        self.writer.clone()
    }

    /// Waits for bytes, then shows every whole text frame among them to `on_text`.
    pub async fn read(&mut self, mut on_text: impl FnMut(&[u8])) -> Result<Turn> {
        let mut pongs = Vec::new();
        let mut closed = None;
        let framing = self.writer.framing;
        let mut on_frame = |opcode: u8, payload: &[u8]| match opcode {
            TEXT if payload == socketio::HEARTBEAT.0 => {
                encode(&mut pongs, TEXT, socketio::HEARTBEAT.1);
            }
            TEXT => on_text(payload),
            PING => framing.pong(&mut pongs, payload),
            CLOSE => closed = Some(framing.describe_close(payload)),
            _ => {}
        };
        if std::mem::take(&mut self.carry_is_fresh) {
            let consumed = framing.decode(&self.carry, &mut on_frame)?;
            self.carry.drain(..consumed);
        } else {
            self.read.readable().await?;
            let carry = &mut self.carry;
            let read = &self.read;
            let end = SCRATCH.with_borrow_mut(|scratch| -> Result<bool> {
                scratch[..carry.len()].copy_from_slice(carry);
                let count = match read.try_read(&mut scratch[carry.len()..]) {
                    Ok(0) => return Ok(true),
                    Ok(count) => count,
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        return Ok(false);
                    }
                    Err(error) => return Err(error.into()),
                };
                let filled = &scratch[..carry.len() + count];
                let consumed = framing.decode(filled, &mut on_frame)?;
                carry.clear();
                carry.extend_from_slice(&filled[consumed..]);
                ensure!(
                    carry.len() < LARGEST_FRAME,
                    "the server sent a frame larger than {LARGEST_FRAME} bytes"
                );
                Ok(false)
            })?;
            if end {
                return Ok(Turn::Closed(
                    "connection ended without a close frame".into(),
                ));
            }
        }
        if !pongs.is_empty() {
            self.writer.write(&pongs).await?;
        }
        Ok(closed.map_or(Turn::Open, Turn::Closed))
    }
}

async fn open_stream(
    server: SocketAddr,
    source: Option<std::net::Ipv4Addr>,
    receive_buffer: Option<u32>,
) -> Result<TcpStream> {
    let socket = match server {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    if let Some(source) = source {
        socket
            .bind((source, 0).into())
            .with_context(|| format!("cannot connect from {source}"))?;
    }
    let stream = socket
        .connect(server)
        .await
        .with_context(|| format!("cannot connect to {server}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Reads the answer to the upgrade; the bytes after it belong to the first frames.
async fn read_upgrade(stream: &TcpStream, key: &str) -> Result<Vec<u8>> {
    let mut answer = Vec::with_capacity(1024);
    let head_end = loop {
        stream.readable().await?;
        match stream.try_read_buf(&mut answer) {
            Ok(0) => bail!("the server closed the connection instead of upgrading it"),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error).context("cannot read the answer to the upgrade"),
        }
        if let Some(at) = memchr::memmem::find(&answer, b"\r\n\r\n") {
            break at + 4;
        }
        ensure!(
            answer.len() < 64 * 1024,
            "the answer to the upgrade has no end"
        );
        answer.reserve(1024);
    };
    let head = String::from_utf8_lossy(&answer[..head_end]).into_owned();
    ensure!(
        head.starts_with("HTTP/1.1 101"),
        "the server refused the upgrade: {}",
        String::from_utf8_lossy(&answer[..answer.len().min(600)])
    );
    let accept = derive_accept_key(key.as_bytes());
    ensure!(
        head.lines()
            .any(|line| line.split_once(':').is_some_and(|(name, value)| name
                .eq_ignore_ascii_case("sec-websocket-accept")
                && value.trim() == accept)),
        "the answer to the upgrade has no valid Sec-WebSocket-Accept"
    );
    answer.drain(..head_end);
    answer.shrink_to_fit();
    Ok(answer)
}

/// Shows every whole frame to `on_frame` and answers how many bytes they took.
fn decode(bytes: &[u8], on_frame: &mut impl FnMut(u8, &[u8])) -> Result<usize> {
    let mut at = 0;
    while let Some(&[first, second]) = bytes.get(at..at + 2) {
        ensure!(second & 0x80 == 0, "the server sent a masked frame");
        ensure!(
            first & 0xF0 == 0x80,
            "the server sent a fragmented or compressed frame, which nobody asked for"
        );
        let (header, length) = match second & 0x7F {
            126 => match bytes.get(at + 2..at + 4) {
                Some(length) => (4, usize::from(u16::from_be_bytes([length[0], length[1]]))),
                None => break,
            },
            127 => match bytes.get(at + 2..at + 10) {
                Some(length) => {
                    let mut eight = [0; 8];
                    eight.copy_from_slice(length);
                    (10, u64::from_be_bytes(eight) as usize)
                }
                None => break,
            },
            length => (2, usize::from(length)),
        };
        ensure!(
            length < LARGEST_FRAME - header,
            "the server sent a frame of {length} bytes"
        );
        let Some(payload) = bytes.get(at + header..at + header + length) else {
            break;
        };
        on_frame(first & 0x0F, payload);
        at += header + length;
    }
    Ok(at)
}

fn describe_close(payload: &[u8]) -> String {
    match payload {
        [high, low, reason @ ..] => format!(
            "close code {} {}",
            u16::from_be_bytes([*high, *low]),
            String::from_utf8_lossy(reason)
        ),
        _ => "close frame without a code".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0x80 | opcode];
        match payload.len() {
            length @ 0..=125 => out.push(length as u8),
            length => {
                out.push(126);
                out.extend_from_slice(&(length as u16).to_be_bytes());
            }
        }
        out.extend_from_slice(payload);
        out
    }

    /// However the bytes are cut, the same frames come out.
    #[test]
    fn frames_are_found_however_the_bytes_are_cut() {
        let mut bytes = server_frame(TEXT, b"one");
        bytes.extend(server_frame(PING, b"p"));
        bytes.extend(server_frame(TEXT, &[b'y'; 300]));
        for cut in 0..=bytes.len() {
            let mut seen = Vec::new();
            let mut on_frame = |opcode: u8, payload: &[u8]| seen.push((opcode, payload.len()));
            let consumed = decode(&bytes[..cut], &mut on_frame).unwrap();
            let rest = decode(&bytes[consumed..], &mut on_frame).unwrap();
            assert_eq!(consumed + rest, bytes.len(), "cut at {cut}");
            assert_eq!(seen, [(TEXT, 3), (PING, 1), (TEXT, 300)], "cut at {cut}");
        }
    }

    #[test]
    fn frames_that_nobody_asked_for_are_errors() {
        let mut ignore = |_: u8, _: &[u8]| {};
        for bytes in [
            vec![0x01, 0x01, b'a'],
            vec![0xC1, 0x01, b'a'],
            vec![0x81, 0x81, 0, 0, 0, 0, b'a'],
            [vec![0x81, 127], u64::MAX.to_be_bytes().to_vec()].concat(),
        ] {
            assert!(decode(&bytes, &mut ignore).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn a_sent_frame_is_masked_and_unmasks_to_the_text() {
        for length in [5, 200, 70_000] {
            let text = vec![b'z'; length];
            let mut bytes = Vec::new();
            encode(&mut bytes, TEXT, &text);
            assert_eq!(bytes[1] & 0x80, 0x80);
            let mask_at = bytes.len() - length - 4;
            let mask: Vec<u8> = bytes[mask_at..mask_at + 4].to_vec();
            let unmasked: Vec<u8> = bytes[mask_at + 4..]
                .iter()
                .zip(mask.iter().cycle())
                .map(|(byte, key)| byte ^ key)
                .collect();
            assert_eq!(unmasked, text);
        }
    }
}
