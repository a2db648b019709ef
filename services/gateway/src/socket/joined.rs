//! A connection that takes whole frames, many with one call of the system, beside what the WebSocket library writes.
//!
//! Frames for many sockets are encoded once, with their header: handing them to the library would copy each for every socket. It
//! still writes what is of one socket alone: the answers before authentication, pings, pongs and the close. [`Joined::add`] asks its caller
//! to have flushed the library first; then frames and what the library writes never mix, for the library's bytes wait for the
//! frames. It knows nothing of what the frames hold.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Frames that one call writes.
pub const AT_ONCE: usize = 64;

/// See the module's documentation.
pub struct Joined<S> {
    stream: S,
    /// What is to be written; of the first one only the rest may be left.
    frames: VecDeque<Bytes>,
    /// A part of the first one was written.
    begun: bool,
}

impl<S> Joined<S> {
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            frames: VecDeque::new(),
            begun: false,
        }
    }

    /// What waits, for frames to be added. Whatever the library had to write must be flushed.
    pub fn add(&mut self) -> &mut VecDeque<Bytes> {
        &mut self.frames
    }

    /// Forgets what waits, but for the rest of a frame of which the other side has the beginning.
    pub fn forget(&mut self) {
        self.frames.truncate(usize::from(self.begun));
    }

    fn wrote(&mut self, mut bytes: usize) {
        while let Some(first) = self.frames.front_mut() {
            if bytes < first.len() {
                self.begun |= bytes > 0;
                first.advance(bytes);
                return;
            }
            bytes -= first.len();
            self.begun = false;
            self.frames.pop_front();
        }
    }
}

impl<S: AsyncWrite + Unpin> Joined<S> {
    /// Writes all frames that wait.
    pub fn poll_frames(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.frames.is_empty() {
            let mut slices = [IoSlice::new(&[]); AT_ONCE];
            for (slice, frame) in slices.iter_mut().zip(&self.frames) {
                *slice = IoSlice::new(frame);
            }
            let slices = &slices[..self.frames.len().min(AT_ONCE)];
            let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, slices))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.wrote(written);
        }
        // A burst must not leave its memory with an idle socket.
        if self.frames.capacity() > 0 {
            self.frames = VecDeque::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Joined<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

/// What the library writes: behind the frames.
impl<S: AsyncWrite + Unpin> AsyncWrite for Joined<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_frames(cx))?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_frames(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_frames(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Promise 4: however little a connection takes at once, frames arrive whole and in order, and what the library writes
    /// comes behind them.
    #[tokio::test]
    async fn frames_arrive_whole_and_in_order() {
        for takes in [1, 7, 1 << 20] {
            let (ours, mut theirs) = tokio::io::duplex(takes);
            let reading = tokio::spawn(async move {
                let mut all = String::new();
                theirs.read_to_string(&mut all).await.unwrap();
                all
            });
            let mut joined = Joined::new(ours);
            let frames: Vec<String> = (0..3 * AT_ONCE).map(|n| format!("<{n}>")).collect();
            joined.add().extend(frames.iter().cloned().map(Bytes::from));
            joined.write_all(b"pong").await.unwrap();
            joined.add().push_back(Bytes::from_static(b"<last>"));
            poll_fn(|cx| joined.poll_frames(cx)).await.unwrap();
            drop(joined);
            assert_eq!(reading.await.unwrap(), frames.concat() + "pong<last>");
        }
    }

    /// A goodbye must not be read as a part of a frame that was begun.
    #[tokio::test]
    async fn a_frame_that_was_begun_is_finished() {
        let (ours, mut theirs) = tokio::io::duplex(3);
        let mut joined = Joined::new(ours);
        joined.add().extend([
            Bytes::from_static(b"<begun>"),
            Bytes::from_static(b"<never begun>"),
        ]);
        let stuck = futures::poll!(poll_fn(|cx| joined.poll_frames(cx)));
        assert!(stuck.is_pending());
        joined.forget();
        let reading = tokio::spawn(async move {
            let mut all = String::new();
            theirs.read_to_string(&mut all).await.unwrap();
            all
        });
        joined.write_all(b"goodbye").await.unwrap();
        drop(joined);
        assert_eq!(reading.await.unwrap(), "<begun>goodbye");
    }
}
