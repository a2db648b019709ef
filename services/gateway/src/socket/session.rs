//! A socket's conversation: one task that reads, works on requests, and writes, each as far as it can without waiting for the
//! others.

use std::{
    collections::HashMap,
    future::{Future, poll_fn},
    ops::ControlFlow,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use carillon_domain::{Error, ErrorCode, RoomId, Sequence, UserId, account::Identity};
use futures::{
    FutureExt, Sink, SinkExt, Stream, StreamExt, future::BoxFuture, stream::FuturesUnordered,
};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::{
    io::AsyncReadExt,
    sync::SemaphorePermit,
    time::{Instant, Sleep},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message, Utf8Bytes,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode as WireCode},
    },
};

use super::{
    joined::{self, Joined},
    requests::{self, Call, Context, Kind, Outcome, Resolving, SendTo},
};
use crate::{
    gateway::App,
    hub::{CloseCode, Connection, Socket},
    metrics, usecases,
    wire::{self, Ack, ClientFrame, Frame, RequestId},
};

/// Read buffer of a socket: it stays with an idle socket. Longer frames get their own memory while they arrive.
const READ_BUFFER: usize = 2 * 1024;
/// What the library writes is small: see [`Joined`] for the rest.
const WRITE_BUFFER: usize = 4 * 1024;
/// How long a closing handshake may take.
const CLOSING: Duration = Duration::from_millis(1500);
/// The same with a client that is too slow: what it was sent before is in the way, and it must learn that it should resume.
const CLOSING_SLOW: Duration = Duration::from_secs(15);
/// Rounds of reading and writing before the task lets others run.
const BUDGET: usize = 32;
/// Malformed or unknown frames in a row that are answered before the socket is closed.
const BAD_FRAMES: u8 = 10;
/// Frames refused by the limit in a row that are answered before the socket is closed.
const REFUSED_FRAMES: u16 = 100;

type Ws = WebSocketStream<Joined<TokioIo<Upgraded>>>;

/// How a socket ends.
struct End {
    /// The code that is sent, or that the client sent.
    code: u16,
    reason: &'static str,
    /// Whether there is anybody left to say goodbye to.
    say_goodbye: bool,
    /// Whether frames in the queue should still go out.
    flush: bool,
    /// Whether the device is gone, as opposed to silent or about to connect again: it closed its connection, or has no session
    /// any more. Whoever we send away for another reason, such as a token that ended, comes back at once.
    left_for_good: bool,
}

impl End {
    /// The server closes.
    fn with(code: CloseCode) -> Self {
        Self {
            code: code as u16,
            reason: code.reason(),
            say_goodbye: true,
            flush: code != CloseCode::TooSlow,
            left_for_good: matches!(code, CloseCode::Normal | CloseCode::SessionRevoked),
        }
    }

    /// The other side is gone; `code` is what it said, 0 for nothing.
    fn gone(code: u16) -> Self {
        Self {
            code,
            reason: "",
            say_goodbye: code != 0,
            flush: false,
            left_for_good: true,
        }
    }
}

/// Everything from the handshake to the end.
pub async fn run(app: App, upgraded: Upgraded, identity: Option<Identity>) {
    // Establishing needs much more memory than an idle session: it is given back before the long part begins.
    let established = Box::pin(establish(app, upgraded, identity)).await;
    let (mut session, code) = match established {
        Ok(mut session) => {
            let end = (&mut session).await;
            let code = end.code;
            Box::pin(session.finish(end)).await;
            (Some(session), code)
        }
        Err(code) => (None, code),
    };
    drop(session.take());
    metrics::SOCKETS_CLOSED
        .with_label_values(&[close_label(code)])
        .inc();
}

/// A fixed set of labels: clients can send any code.
fn close_label(code: u16) -> &'static str {
    match code {
        0 => "0",
        1000 => "1000",
        1001 => "1001",
        1002 => "1002",
        1005 => "1005",
        1006 => "1006",
        1007 => "1007",
        4000 => "4000",
        4001 => "4001",
        4002 => "4002",
        4003 => "4003",
        4008 => "4008",
        4009 => "4009",
        _ => "other",
    }
}

// === the beginning ===

async fn establish(
    app: App,
    upgraded: Upgraded,
    identity: Option<Identity>,
) -> Result<Box<Session>, u16> {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_message_size(Some(app.options.max_frame_bytes))
        .max_frame_size(Some(app.options.max_frame_bytes));
    let stream = Joined::new(TokioIo::new(upgraded));
    let mut ws = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;

    let first = async {
        match identity {
            Some(identity) => Ok((slot(&app).await?, identity, None, HashMap::new())),
            None => authenticate(&app, &mut ws).await,
        }
    };
    let first = tokio::select! {
        first = first => first,
        () = app.draining() => Err(CloseCode::Drain as u16),
    };
    let (slot, identity, id, resume) = match first {
        Ok(first) => first,
        Err(code) => {
            let reason = if code == CloseCode::Drain as u16 {
                CloseCode::Drain.reason()
            } else {
                CloseCode::Unauthenticated.reason()
            };
            goodbye(&mut ws, code, reason).await;
            return Err(code);
        }
    };

    let connected = match app.hub().await {
        Ok(hub) => hub.connect(identity, &resume).await,
        Err(error) => Err(error),
    };
    let mut connection = match connected {
        Ok(connection) => connection,
        Err(error) => {
            // Saying goodbye may take a while, and others wait for their turn.
            drop(slot);
            let error = usecases::shown(error);
            let frame = wire::error_frame(id.as_ref(), &error, None);
            let _ = tokio::time::timeout(CLOSING, ws.send(sent_alone(&frame))).await;
            let (code, reason) = match error.code {
                // Revoked since the token was checked.
                ErrorCode::Unauthenticated => {
                    let revoked = CloseCode::SessionRevoked;
                    (revoked as u16, revoked.reason())
                }
                _ => (CloseCode::Drain as u16, "try again"),
            };
            goodbye(&mut ws, code, reason).await;
            return Err(code);
        }
    };
    if app.is_draining() {
        // The hub may have told its sockets already.
        drop(slot);
        goodbye(&mut ws, CloseCode::Drain as u16, CloseCode::Drain.reason()).await;
        return Err(CloseCode::Drain as u16);
    }
    let socket = connection.socket().clone();
    socket.push_reply(wire::connection_ack(
        id.as_ref(),
        identity.user,
        identity.device,
        u64::try_from(app.options.heartbeat.as_millis()).unwrap_or(u64::MAX),
        connection.start(),
    ));
    connection.follow();
    drop(slot);
    Ok(Box::new(Session::new(
        app.clone(),
        ws,
        connection,
        identity,
    )))
}

/// A frame for the library, which makes a header of its own.
fn sent_alone(frame: &Frame) -> Message {
    Message::text(&**frame)
}

type First<'a> = (
    SemaphorePermit<'a>,
    Identity,
    Option<RequestId>,
    HashMap<RoomId, Sequence>,
);

/// A turn to be established. The error is the close code, when there are so many that another gateway may be quicker.
async fn slot(app: &App) -> Result<SemaphorePermit<'_>, u16> {
    match tokio::time::timeout(app.options.auth_timeout, app.establishing.acquire()).await {
        Ok(Ok(slot)) => Ok(slot),
        Ok(Err(_)) | Err(_) => Err(CloseCode::Drain as u16),
    }
}

/// Waits for a valid `auth` message. An error is the close code.
async fn authenticate<'a>(app: &'a App, ws: &mut Ws) -> Result<First<'a>, u16> {
    let gone = CloseCode::Unauthenticated as u16;
    let required = wire::reply("auth_required", None, serde_json::json!({}));
    ws.send(sent_alone(&required)).await.map_err(|_| 0u16)?;
    let mut bad = 0;
    let deadline = Instant::now() + app.options.auth_timeout;
    while let Some(message) = tokio::time::timeout_at(deadline, ws.next())
        .await
        .map_err(|_| gone)?
    {
        let text = match message {
            Ok(Message::Text(text)) => text,
            Ok(Message::Ping(_) | Message::Pong(_)) => continue,
            Ok(Message::Close(frame)) => {
                return Err(frame.map_or(1005, |frame| frame.code.into()));
            }
            Ok(Message::Binary(_) | Message::Frame(_)) => return Err(CloseCode::Protocol as u16),
            Err(tungstenite::Error::Capacity(_)) => return Err(CloseCode::Protocol as u16),
            Err(_) => return Err(0),
        };
        let (id, parsed) = understand(&text);
        let error = match parsed {
            Ok((_, Call::Ping)) => {
                let pong = wire::pong(id.as_ref(), app.services.clock.now());
                ws.send(sent_alone(&pong)).await.map_err(|_| 0u16)?;
                continue;
            }
            Ok((_, Call::Auth(auth))) => match auth.token {
                Some(token) => {
                    let slot = slot(app).await?;
                    match app.services.verifier.verify_access(&token).await {
                        Ok(identity) => return Ok((slot, identity, id, auth.resume)),
                        Err(error) => usecases::shown(error),
                    }
                }
                None => Error::invalid("payload.token", "is required"),
            },
            Ok(_) => Error::unauthenticated("send auth first"),
            Err(error) => error,
        };
        let frame = wire::error_frame(id.as_ref(), &error, None);
        ws.send(sent_alone(&frame)).await.map_err(|_| 0u16)?;
        // A refused token ends it; while the verifier's store is away, and after a slip, one may try again.
        bad += 1;
        if error.code == ErrorCode::Unauthenticated || bad >= BAD_FRAMES {
            return Err(gone);
        }
    }
    Err(0)
}

/// Parses a frame as far as possible: the id also when the rest is wrong.
fn understand(text: &str) -> (Option<RequestId>, Result<(Kind, Call), Error>) {
    let frame: ClientFrame<'_> = match serde_json::from_str(text) {
        Ok(frame) => frame,
        Err(error) => {
            metrics::FRAMES_RECEIVED
                .with_label_values(&["malformed"])
                .inc();
            return (None, Err(crate::edge::describe_json(&error, ".")));
        }
    };
    let kind = Kind::parse(&frame.frame_type);
    metrics::FRAMES_RECEIVED
        .with_label_values(&[kind.map_or("unknown", Kind::as_str)])
        .inc();
    if frame.id.as_ref().is_some_and(|id| !id.fits()) {
        return (
            None,
            Err(Error::invalid("id", "a number, or 1 to 64 bytes of text")),
        );
    }
    let parsed = match kind {
        Some(kind) => requests::parse(kind, frame.payload).map(|call| (kind, call)),
        None => Err(Error::invalid("type", "is not known")),
    };
    (frame.id, parsed)
}

// === the middle ===

/// The conversation with an authenticated client. As a future it lasts until the conversation ends.
struct Session {
    app: App,
    ws: Ws,
    connection: Connection,
    socket: Arc<Socket>,
    identity: Identity,
    /// Requests under way; made when the first one comes.
    running: Option<Box<FuturesUnordered<BoxFuture<'static, Outcome>>>>,
    /// Direct rooms being looked up, by person.
    resolving: HashMap<UserId, Resolving>,
    timer: Pin<Box<Sleep>>,
    next_ping: Instant,
    last_frame: Instant,
    expires: Instant,
    needs_flush: bool,
    /// Answers were held back for one turn: see [`Session::step`].
    held_back: bool,
    bad_frames: u8,
    refused_frames: u16,
}

impl Session {
    fn new(app: App, ws: Ws, connection: Connection, identity: Identity) -> Self {
        let now = Instant::now();
        let socket = connection.socket().clone();
        // Sockets that connected together should not be pinged together for ever.
        let phase = app.options.heartbeat.mul_f64(rand::random_range(0.5..1.0));
        let expires = expiry(&app, &identity);
        let first = (now + phase).min(expires);
        Self {
            ws,
            connection,
            socket,
            identity,
            running: None,
            resolving: HashMap::new(),
            timer: Box::pin(tokio::time::sleep_until(first)),
            next_ping: now + phase,
            last_frame: now,
            expires,
            needs_flush: false,
            held_back: false,
            bad_frames: 0,
            refused_frames: 0,
            app,
        }
    }

    fn under_way(&self) -> usize {
        self.running.as_ref().map_or(0, |running| running.len())
    }

    fn step(&mut self, cx: &mut TaskContext<'_>) -> Poll<End> {
        self.socket.set_writer(cx.waker());
        let mut budget = BUDGET;
        let mut answered = false;
        loop {
            let mut progress = false;
            if let Some(code) = self.socket.close_code() {
                return Poll::Ready(End::with(code));
            }
            match self.read(cx) {
                Poll::Ready(ControlFlow::Continue(())) => progress = true,
                Poll::Ready(ControlFlow::Break(end)) => return Poll::Ready(end),
                Poll::Pending => {}
            }
            if let Poll::Ready(flow) = self.advance_requests(cx) {
                match flow {
                    ControlFlow::Continue(()) => (progress, answered) = (true, true),
                    ControlFlow::Break(end) => return Poll::Ready(end),
                }
            }
            if answered && !self.held_back {
                // What was answered has an event, as a rule, which is on its way to this socket too: after one turn of the others
                // both leave in one write.
                self.held_back = true;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.held_back = false;
            match self.write(cx) {
                Ok(wrote) => progress |= wrote,
                Err(()) => return Poll::Ready(End::gone(0)),
            }
            if self.timer.as_mut().poll(cx).is_ready() {
                if let ControlFlow::Break(end) = self.on_timer(cx) {
                    return Poll::Ready(end);
                }
                progress = true;
            }
            if !progress {
                return Poll::Pending;
            }
            budget -= 1;
            if budget == 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }

    /// Writes what waits, joined, as far as the connection takes it.
    fn write(&mut self, cx: &mut TaskContext<'_>) -> Result<bool, ()> {
        // The library's frames and ours must not mix.
        if self.needs_flush {
            match Pin::new(&mut self.ws).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.needs_flush = false,
                Poll::Ready(Err(_)) => return Err(()),
                Poll::Pending => {
                    self.socket.set_takes(false);
                    return Ok(false);
                }
            }
        }
        let joined = self.ws.get_mut();
        // What the connection didn't take the last time.
        let mut written = joined.poll_frames(cx);
        let mut taken = 0;
        if written.is_ready() {
            taken = self.socket.take(joined.add(), joined::AT_ONCE);
            if taken > 0 {
                self.socket.frames_taken();
                written = joined.poll_frames(cx);
            }
        }
        match written {
            Poll::Ready(Ok(())) => self.socket.set_takes(true),
            Poll::Ready(Err(_)) => return Err(()),
            Poll::Pending => self.socket.set_takes(false),
        }
        Ok(taken > 0)
    }

    /// Reads one frame, unless the client should first take its answers.
    fn read(&mut self, cx: &mut TaskContext<'_>) -> Poll<ControlFlow<End>> {
        if self.under_way() >= self.app.options.requests_in_flight || self.socket.is_full() {
            return Poll::Pending;
        }
        let message = match Pin::new(&mut self.ws).poll_next(cx) {
            Poll::Ready(message) => message,
            Poll::Pending => return Poll::Pending,
        };
        self.last_frame = Instant::now();
        Poll::Ready(match message {
            Some(Ok(Message::Text(text))) => self.on_text(&text),
            // The library has queued the pong.
            Some(Ok(Message::Ping(_))) => {
                self.needs_flush = true;
                ControlFlow::Continue(())
            }
            Some(Ok(Message::Pong(_))) => ControlFlow::Continue(()),
            Some(Ok(Message::Binary(_) | Message::Frame(_))) => {
                metrics::FRAMES_RECEIVED
                    .with_label_values(&["binary"])
                    .inc();
                let error = Error::new(
                    ErrorCode::InvalidRequest,
                    "binary frames are not understood",
                );
                self.reply_error(None, &error);
                ControlFlow::Break(End::with(CloseCode::Protocol))
            }
            Some(Ok(Message::Close(frame))) => {
                ControlFlow::Break(End::gone(frame.map_or(1005, |frame| u16::from(frame.code))))
            }
            Some(Err(tungstenite::Error::Capacity(_))) => {
                let error = Error::new(
                    ErrorCode::PayloadTooLarge,
                    format!(
                        "at most {} bytes are accepted",
                        self.app.options.max_frame_bytes
                    ),
                );
                self.reply_error(None, &error);
                ControlFlow::Break(End::with(CloseCode::Protocol))
            }
            Some(Err(tungstenite::Error::Utf8(_))) => ControlFlow::Break(End {
                code: 1007,
                ..End::with(CloseCode::Protocol)
            }),
            Some(Err(tungstenite::Error::Protocol(error)))
                if !matches!(
                    error,
                    tungstenite::error::ProtocolError::ResetWithoutClosingHandshake
                ) =>
            {
                ControlFlow::Break(End {
                    code: 1002,
                    ..End::with(CloseCode::Protocol)
                })
            }
            Some(Err(_)) | None => ControlFlow::Break(End::gone(0)),
        })
    }

    fn on_text(&mut self, text: &Utf8Bytes) -> ControlFlow<End> {
        let (id, parsed) = understand(text);
        let (kind, call) = match parsed {
            Ok(understood) => understood,
            Err(error) => {
                self.reply_error(id.as_ref(), &error);
                self.bad_frames += 1;
                return if self.bad_frames >= BAD_FRAMES {
                    ControlFlow::Break(End::with(CloseCode::Protocol))
                } else {
                    ControlFlow::Continue(())
                };
            }
        };
        self.bad_frames = 0;
        if self.identity.user == UserId::PROBE {
            // It listens, and asks nothing here.
            let error = Error::denied("this token is for a probe message only");
            self.reply_error(id.as_ref(), &error);
            return ControlFlow::Continue(());
        }

        let limits = &self.app.limits;
        if let Err(error) = limits.take_frame(self.identity.user, kind.is_message()) {
            self.reply_error(id.as_ref(), &usecases::shown(error));
            self.refused_frames += 1;
            return if self.refused_frames >= REFUSED_FRAMES {
                ControlFlow::Break(End::with(CloseCode::RateLimited))
            } else {
                ControlFlow::Continue(())
            };
        }
        self.refused_frames = 0;

        let context = Context {
            app: self.app.clone(),
            hub: self.connection.hub().clone(),
            identity: self.identity,
        };
        let resolving = match &call {
            Call::Send(SendTo::Person(person), _) => self.resolving(&context, *person),
            _ => None,
        };
        let request = requests::work(context, kind, id, call, resolving);
        // Requests are first polled in the order in which they came, and a send takes its place in its room's queue when first
        // polled: messages of one socket to one room keep their order without waiting for each other.
        self.running.get_or_insert_default().push(request);
        ControlFlow::Continue(())
    }

    /// The look-up that a send to a person waits for, if its room isn't known yet. Sends share it, and go on in order.
    fn resolving(&mut self, context: &Context, person: UserId) -> Option<Resolving> {
        if let Some(under_way) = self.resolving.get(&person) {
            // An earlier send may not have gone on yet although the room is known by now: stay behind it.
            return Some(under_way.clone());
        }
        self.app
            .chat
            .known_direct(self.identity.user, person)
            .is_none()
            .then(|| {
                let resolving = requests::resolve(context, person);
                self.resolving.insert(person, resolving.clone());
                resolving
            })
    }

    fn advance_requests(&mut self, cx: &mut TaskContext<'_>) -> Poll<ControlFlow<End>> {
        let Some(running) = &mut self.running else {
            return Poll::Pending;
        };
        let outcome = match running.poll_next_unpin(cx) {
            Poll::Ready(Some(outcome)) => outcome,
            Poll::Ready(None) => {
                // Nothing is under way: an idle socket keeps nothing for requests.
                self.running = None;
                self.resolving = HashMap::new();
                return Poll::Pending;
            }
            Poll::Pending => return Poll::Pending,
        };
        match outcome {
            Outcome::Answer(Some(frame)) => self.socket.push_reply(frame),
            Outcome::Answer(None) => {}
            Outcome::Authenticated {
                id,
                identity,
                resume,
            } => return Poll::Ready(self.on_authenticated(id, identity, resume)),
        }
        Poll::Ready(ControlFlow::Continue(()))
    }

    /// Another token, of the same device: the session lasts as long as that one. And maybe places to resume from.
    fn on_authenticated(
        &mut self,
        id: Option<RequestId>,
        identity: Option<Identity>,
        resume: HashMap<RoomId, Sequence>,
    ) -> ControlFlow<End> {
        if let Some(identity) = identity {
            if (identity.user, identity.device) != (self.identity.user, self.identity.device) {
                let error = Error::denied("the token belongs to another session");
                self.reply_error(id.as_ref(), &error);
                return ControlFlow::Continue(());
            }
            self.identity = identity;
            self.expires = expiry(&self.app, &identity);
            self.connection.reauthenticated(identity);
            self.arm_timer();
        }
        if let Some(id) = &id {
            let ack = Ack::Authenticated {
                expires_at: self.identity.expires_at.into(),
            };
            self.socket.push_reply(wire::reply("ack", Some(id), ack));
        }
        if !resume.is_empty() {
            let resumed = self.connection.resume(resume);
            let socket = self.socket.clone();
            let work = async move {
                if let Err(error) = resumed.await {
                    tracing::debug!(%error, "could not resume: the client shall connect again");
                    socket.close(CloseCode::Drain);
                }
                Outcome::Answer(None)
            };
            self.running.get_or_insert_default().push(work.boxed());
        }
        ControlFlow::Continue(())
    }

    fn reply_error(&self, id: Option<&RequestId>, error: &Error) {
        self.socket.push_reply(wire::error_frame(id, error, None));
    }

    // === time ===

    fn on_timer(&mut self, cx: &mut TaskContext<'_>) -> ControlFlow<End> {
        let now = Instant::now();
        if now >= self.expires {
            return ControlFlow::Break(End::with(CloseCode::Unauthenticated));
        }
        if now >= self.last_frame + self.app.options.dead_after {
            // Silent is not gone for good: maybe a tunnel. The presence lease ends by itself.
            return ControlFlow::Break(End {
                left_for_good: false,
                ..End::gone(0)
            });
        }
        if now >= self.next_ping {
            self.next_ping = now + self.app.options.heartbeat;
            // A connection that takes nothing gets no pings on top; its silence is noticed above.
            let ready = Pin::new(&mut self.ws).poll_ready(cx);
            if ready.is_ready() {
                let ping = Message::Ping(bytes::Bytes::new());
                if Pin::new(&mut self.ws).start_send(ping).is_err() {
                    return ControlFlow::Break(End::gone(0));
                }
                self.needs_flush = true;
            }
        }
        self.arm_timer();
        ControlFlow::Continue(())
    }

    fn arm_timer(&mut self) {
        let dead = self.last_frame + self.app.options.dead_after;
        let next = self.next_ping.min(dead).min(self.expires);
        self.timer.as_mut().reset(next);
    }

    // === the end ===

    async fn finish(&mut self, end: End) {
        self.running = None;
        if end.left_for_good {
            self.connection.leave_for_good();
        }
        // No more deliveries; what is queued for a client that is told why may still go.
        self.socket.close(CloseCode::Normal);
        if end.flush {
            let rest = async {
                self.ws.flush().await?;
                loop {
                    let joined = self.ws.get_mut();
                    if self.socket.take(joined.add(), joined::AT_ONCE) == 0 {
                        return Ok::<(), tungstenite::Error>(());
                    }
                    poll_fn(|cx| joined.poll_frames(cx)).await?;
                }
            };
            let _ = tokio::time::timeout(CLOSING, rest).await;
        }
        // What nobody will write must not stay until the other side has taken our goodbye.
        self.socket.clear();
        self.ws.get_mut().forget();
        if end.say_goodbye {
            goodbye(&mut self.ws, end.code, end.reason).await;
        }
    }
}

impl Future for Session {
    type Output = End;

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<End> {
        self.step(cx)
    }
}

/// When the token ends, by our own steady clock.
fn expiry(app: &App, identity: &Identity) -> Instant {
    let left = identity.expires_at.since(app.services.clock.now());
    // Far enough for every token, near enough for the timer.
    Instant::now() + left.min(Duration::from_secs(400 * 24 * 3600))
}

/// The closing handshake: our code, then whatever the client still had to say is read and dropped, because data left unread
/// would make the connection end with a reset that overtakes our code.
async fn goodbye(ws: &mut Ws, code: u16, reason: &'static str) {
    let limit = if code == CloseCode::TooSlow as u16 {
        CLOSING_SLOW
    } else {
        CLOSING
    };
    let closing = async {
        let frame = CloseFrame {
            code: WireCode::from(code),
            reason: reason.into(),
        };
        // Fails if the client closed first: then the library has answered, and flushing sends that.
        if ws.close(Some(frame)).await.is_err() {
            let _ = ws.flush().await;
        }
        while let Some(Ok(_)) = ws.next().await {}
        let stream = ws.get_mut();
        let _ = tokio::io::AsyncWriteExt::shutdown(stream).await;
        let mut rest = [0u8; 1024];
        let mut left: usize = 4 * 1024 * 1024;
        while let Ok(read @ 1..) = stream.read(&mut rest).await {
            left = match left.checked_sub(read) {
                Some(left) => left,
                None => break,
            };
        }
    };
    let _ = tokio::time::timeout(limit, closing).await;
}
