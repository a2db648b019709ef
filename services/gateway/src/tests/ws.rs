use std::{net::SocketAddr, sync::Arc, time::Duration};

use ::http::{HeaderValue, StatusCode};
use carillon_domain::{DeviceId, Timestamp, UserId, account::Identity, services::AuthService};
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{self, Message, client::IntoClientRequest},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Gateway, GatewayOptions,
    gateway::App,
    testing::{SOON, Town, options, published, somebody, token},
};

struct Server {
    town: Arc<Town>,
    app: App,
    address: SocketAddr,
    stop: CancellationToken,
    running: JoinHandle<std::io::Result<()>>,
}

async fn serve(options: GatewayOptions) -> Server {
    let town = Town::new();
    let gateway = Gateway::new(options, town.services(), published(""));
    let app = gateway.app().clone();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(gateway.run(listener, stop.clone()));
    Server {
        town,
        app,
        address,
        stop,
        running,
    }
}

struct Client(WebSocketStream<TcpStream>);

impl Server {
    async fn open(
        &self,
        query: &str,
        headers: &[(&'static str, String)],
    ) -> Result<Client, tungstenite::Error> {
        let url = format!("ws://{}/api/v1/ws{query}", self.address);
        let mut request = url.into_client_request()?;
        for (name, value) in headers {
            request
                .headers_mut()
                .insert(*name, HeaderValue::from_str(value).unwrap());
        }
        let stream = TcpStream::connect(self.address).await.unwrap();
        client_async(request, stream)
            .await
            .map(|(ws, _)| Client(ws))
    }

    /// The status of a refused handshake.
    async fn refused(&self, query: &str, headers: &[(&'static str, String)]) -> StatusCode {
        match self.open(query, headers).await {
            Err(tungstenite::Error::Http(response)) => response.status(),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("the handshake succeeded"),
        }
    }

    /// An authenticated client, after its `connection_ack`.
    async fn client(&self, who: &Identity) -> Client {
        let header = ("authorization", format!("Bearer {}", token(who)));
        let mut client = self.open("", &[header]).await.unwrap();
        assert_eq!(client.next().await["type"], "connection_ack");
        client
    }
}

impl Client {
    async fn send(&mut self, frame: Value) {
        self.send_text(&frame.to_string()).await;
    }

    async fn send_text(&mut self, text: &str) {
        self.0.send(Message::text(text)).await.unwrap();
    }

    async fn next(&mut self) -> Value {
        loop {
            let message = tokio::time::timeout(SOON, self.0.next())
                .await
                .expect("a frame")
                .expect("the socket is open")
                .unwrap();
            match message {
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                Message::Close(frame) => panic!("closed: {frame:?}"),
                _ => {}
            }
        }
    }

    /// The next frame of a type; others are skipped.
    async fn next_of(&mut self, wanted: &str) -> Value {
        loop {
            let frame = self.next().await;
            if frame["type"] == wanted {
                return frame;
            }
        }
    }

    /// The code of the close frame, after whatever came before it.
    async fn closed(&mut self) -> u16 {
        loop {
            match tokio::time::timeout(SOON, self.0.next())
                .await
                .expect("an end")
            {
                Some(Ok(Message::Close(Some(frame)))) => return frame.code.into(),
                Some(Ok(_)) => {}
                other => panic!("ended without a code: {other:?}"),
            }
        }
    }
}

/// RT-01: the first message authenticates; before that only pings are answered, and the id comes back.
#[tokio::test]
async fn the_first_message_authenticates() {
    let server = serve(options()).await;
    let ann = somebody();
    let room = server.town.room(&[ann.user]);
    let mut client = server.open("", &[]).await.unwrap();
    assert_eq!(client.next().await["type"], "auth_required");
    client.send(json!({"type": "ping", "id": 1})).await;
    assert_eq!(client.next().await["id"], 1);
    client
        .send(json!({"type": "join_room", "id": "x", "payload": {"room_id": room}}))
        .await;
    let refused = client.next().await;
    assert_eq!(
        (refused["type"].as_str(), refused["id"].as_str()),
        (Some("error"), Some("x"))
    );
    assert_eq!(refused["payload"]["code"], "unauthenticated");
    assert_eq!(client.closed().await, 4001);

    let mut client = server.open("", &[]).await.unwrap();
    client.next().await;
    client
        .send(json!({"type": "auth", "id": "a", "payload": {"token": token(&ann)}}))
        .await;
    let ack = client.next().await;
    assert_eq!(ack["type"], "connection_ack");
    assert_eq!(ack["id"], "a");
    assert_eq!(ack["payload"]["user_id"], ann.user.to_string());
    assert_eq!(ack["payload"]["heartbeat_ms"], 30_000);
    assert_eq!(ack["payload"]["resume"][room.to_string()], 1);
}

/// RT-01: silence, and forged, expired or revoked tokens.
#[tokio::test]
async fn without_a_valid_token_there_is_no_session() {
    let server = serve(GatewayOptions {
        auth_timeout: Duration::from_millis(100),
        ..options()
    })
    .await;
    let mut silent = server.open("", &[]).await.unwrap();
    assert_eq!(silent.closed().await, 4001);
    let expired = Identity {
        expires_at: Timestamp(0),
        ..somebody()
    };
    for bad in ["abc".to_owned(), token(&expired)] {
        let mut client = server.open("", &[]).await.unwrap();
        client.next().await;
        client
            .send(json!({"type": "auth", "payload": {"token": bad}}))
            .await;
        assert_eq!(client.next().await["payload"]["code"], "unauthenticated");
        assert_eq!(client.closed().await, 4001);
        let header = ("authorization", format!("Bearer {bad}"));
        assert_eq!(
            server.refused("", &[header]).await,
            StatusCode::UNAUTHORIZED
        );
    }
}

/// RT-01: header, cookie of our own page, single-use ticket; never a token in the URL.
#[tokio::test]
async fn other_ways_to_authenticate() {
    let server = serve(options()).await;
    let ann = somebody();
    server.client(&ann).await;

    let ticket = server.town.issue_ticket(&ann).await.unwrap();
    let query = format!("?ticket={ticket}");
    let mut client = server.open(&query, &[]).await.unwrap();
    assert_eq!(client.next().await["type"], "connection_ack");
    assert_eq!(server.refused(&query, &[]).await, StatusCode::UNAUTHORIZED);

    let cookie = ("cookie", format!("jwt={}", token(&ann)));
    let own = ("origin", format!("http://{}", server.address));
    let mut client = server.open("", &[cookie.clone(), own]).await.unwrap();
    assert_eq!(client.next().await["type"], "connection_ack");
    let evil = ("origin", "https://evil.example".to_owned());
    assert_eq!(
        server.refused("", &[cookie, evil]).await,
        StatusCode::FORBIDDEN
    );

    for name in ["token", "access_token", "jwt"] {
        let query = format!("?{name}={}", token(&ann));
        assert_eq!(server.refused(&query, &[]).await, StatusCode::BAD_REQUEST);
    }
}

/// RT-02 to RT-05: a message is acknowledged with its place and reaches everybody, the sender's other devices too.
#[tokio::test]
async fn a_message_reaches_everybody() {
    let server = serve(options()).await;
    let (ann, bob) = (somebody(), somebody());
    let anns_laptop = Identity {
        device: DeviceId::new(),
        ..ann
    };
    let room = server.town.room(&[ann.user, bob.user]);
    let mut a = server.client(&ann).await;
    let mut laptop = server.client(&anns_laptop).await;
    let mut b = server.client(&bob).await;
    a.send(json!({"type": "send_message", "id": "s1", "payload": {
        "room_id": room, "client_message_id": "c1", "content": "hi"}}))
        .await;
    let ack = a.next_of("ack").await;
    assert_eq!(ack["id"], "s1");
    assert_eq!(ack["payload"]["sequence"], 3);
    assert_eq!(ack["payload"]["message"]["client_message_id"], "c1");
    for client in [&mut laptop, &mut b] {
        let got = client.next().await;
        assert_eq!(got["type"], "new_message");
        assert_eq!(got["payload"]["sequence"], 3);
        assert_eq!(got["payload"]["content"], "hi");
    }
    b.send(json!({"type": "typing", "payload": {"room_id": room}}))
        .await;
    assert_eq!(
        a.next_of("typing").await["payload"]["user_id"],
        bob.user.to_string()
    );
    b.send(json!({"type": "read", "id": 5, "payload": {"room_id": room, "sequence": 3}}))
        .await;
    assert_eq!(b.next_of("ack").await["id"], 5);
}

/// MSG-20: messages of one socket keep their order although none waits for the one before; also to a person whose room must be
/// made first.
#[tokio::test]
async fn pipelined_sends_keep_their_order() {
    let server = serve(options()).await;
    let (ann, bob) = (somebody(), somebody());
    let room = server.town.room(&[ann.user, bob.user]);
    *server.town.direct_delay.lock() = Duration::from_millis(30);
    let mut a = server.client(&ann).await;
    for (key, to) in [
        ("room_id", room.to_string()),
        ("recipient_id", bob.user.to_string()),
    ] {
        for n in 0..100 {
            a.send(json!({"type": "send_message", "id": n, "payload": {
                key: to, "client_message_id": format!("{key}-{n}"), "content": n.to_string()}}))
                .await;
        }
        let mut places = vec![0; 100];
        for _ in 0..100 {
            let ack = a.next_of("ack").await;
            places[ack["id"].as_u64().unwrap() as usize] =
                ack["payload"]["sequence"].as_u64().unwrap();
        }
        assert!(places.is_sorted(), "{key}: {places:?}");
    }
}

/// RT-02: joining follows the room from the joining on; leaving ends it.
#[tokio::test]
async fn joining_and_leaving() {
    let server = serve(options()).await;
    let (ann, bob) = (somebody(), somebody());
    let room = server.town.room(&[ann.user]);
    let mut b = server.client(&bob).await;
    b.send(json!({"type": "join_room", "id": 1, "payload": {"room_id": room}}))
        .await;
    let (mut acked, mut joined) = (false, false);
    while !(acked && joined) {
        let frame = b.next().await;
        match frame["type"].as_str().unwrap() {
            "ack" => acked = frame["payload"]["sequence"] == 2,
            "user_joined" => joined = frame["payload"]["sequence"] == 2,
            other => panic!("{other}"),
        }
    }
    server.town.say(room, ann.user, "welcome");
    assert_eq!(b.next().await["payload"]["content"], "welcome");
    b.send(json!({"type": "leave_room", "id": 2, "payload": {"room_id": room}}))
        .await;
    assert_eq!(b.next_of("ack").await["id"], 2);
    server.town.say(room, ann.user, "among us");
    b.send(json!({"type": "ping", "id": 3})).await;
    loop {
        let frame = b.next().await;
        assert_ne!(frame["payload"]["content"], "among us");
        if frame["id"] == 3 {
            break;
        }
    }
}

/// MSG-18: `resume` brings what was missed, then live events.
#[tokio::test]
async fn resuming_over_the_socket() {
    let server = serve(options()).await;
    let ann = somebody();
    let room = server.town.room(&[ann.user]);
    for n in 2..=9 {
        server.town.say(room, ann.user, &n.to_string());
    }
    let mut client = server.open("", &[]).await.unwrap();
    client.next().await;
    let auth =
        json!({"type": "auth", "payload": {"token": token(&ann), "resume": {room.to_string(): 4}}});
    client.send(auth).await;
    let ack = client.next().await;
    assert_eq!(ack["payload"]["resume"][room.to_string()], 4);
    for n in 5..=9 {
        assert_eq!(client.next().await["payload"]["sequence"], n);
    }
    server.town.say(room, ann.user, "live");
    assert_eq!(client.next().await["payload"]["sequence"], 10);
}

/// RT-04, bad input on the socket: a typed error with the id where it can be known; the socket stays open for a slip.
#[tokio::test]
async fn bad_frames_are_answered() {
    let server = serve(options()).await;
    let ann = somebody();
    let room = server.town.room(&[]);
    let mut client = server.client(&ann).await;
    let cases = [
        ("{\"type\":", Value::Null, "invalid_request"),
        ("[]", Value::Null, "invalid_request"),
        (
            "{\"type\":\"ping\",\"x\":1}",
            Value::Null,
            "invalid_request",
        ),
        (
            "{\"type\":\"dance\",\"id\":\"d\"}",
            json!("d"),
            "invalid_request",
        ),
        (
            "{\"type\":\"join_room\",\"id\":7,\"payload\":{\"room_id\":\"general\"}}",
            json!(7),
            "invalid_request",
        ),
        (
            "{\"type\":\"join_room\",\"id\":8}",
            json!(8),
            "invalid_request",
        ),
    ];
    for (frame, id, code) in cases {
        client.send_text(frame).await;
        let answer = client.next().await;
        assert_eq!(answer["type"], "error", "{frame}");
        assert_eq!(answer["id"], id, "{frame}");
        assert_eq!(answer["payload"]["code"], code, "{frame}");
    }
    // Another's room and an unknown one look the same.
    for room in [room.to_string(), ann.user.to_string()] {
        client
            .send(json!({"type": "send_message", "id": 9, "payload": {
                "room_id": room, "client_message_id": "c", "content": "hi"}}))
            .await;
        let answer = client.next().await;
        assert_eq!(
            (answer["id"].as_u64(), answer["payload"]["code"].as_str()),
            (Some(9), Some("not_found"))
        );
    }
    client.send(json!({"type": "ping", "id": 10})).await;
    assert_eq!(client.next().await["type"], "pong");
}

/// Protocol violations end the socket with a reason and a code.
#[tokio::test]
async fn violations_end_the_socket() {
    let server = serve(GatewayOptions {
        max_frame_bytes: 4096,
        ..options()
    })
    .await;
    let ann = somebody();

    let mut binary = server.client(&ann).await;
    binary.0.send(Message::binary(vec![1, 2, 3])).await.unwrap();
    assert_eq!(binary.next().await["type"], "error");
    assert_eq!(binary.closed().await, 4003);

    // RT-07
    let mut large = server.client(&ann).await;
    large.send_text(&"x".repeat(100_000)).await;
    assert_eq!(large.next().await["payload"]["code"], "payload_too_large");
    assert_eq!(large.closed().await, 4003);

    let mut stubborn = server.client(&ann).await;
    for _ in 0..10 {
        stubborn.send_text("nonsense").await;
    }
    assert_eq!(stubborn.closed().await, 4003);
}

/// Promise 7: of many that come at once only some are worked on; who waits too long is sent elsewhere, and nobody is refused for it.
#[tokio::test]
async fn sockets_are_established_a_few_at_a_time() {
    let server = serve(GatewayOptions {
        auth_timeout: Duration::from_millis(300),
        ..options()
    })
    .await;
    let ann = somebody();
    let all = server.app.establishing.available_permits() as u32;
    let others = server.app.establishing.acquire_many(all).await.unwrap();
    let mut late = server.open("", &[]).await.unwrap();
    assert_eq!(late.next().await["type"], "auth_required");
    let auth = json!({"type": "auth", "payload": {"token": token(&ann)}});
    late.send(auth.clone()).await;
    assert_eq!(late.closed().await, 4000);

    let mut patient = server.open("", &[]).await.unwrap();
    assert_eq!(patient.next().await["type"], "auth_required");
    patient.send(auth).await;
    drop(others);
    assert_eq!(patient.next().await["type"], "connection_ack");
    assert_eq!(
        server.app.establishing.available_permits() as u32,
        all,
        "whoever is established needs no turn any more"
    );
}

/// RT-09: beyond the burst messages are refused with the time to wait; going on all the same ends the socket.
#[tokio::test]
async fn too_many_messages_are_refused() {
    let server = serve(GatewayOptions {
        messages_per_second: 1,
        message_burst: 3,
        ..options()
    })
    .await;
    let ann = somebody();
    let room = server.town.room(&[ann.user]);
    let mut client = server.client(&ann).await;
    let message = |n: u32| {
        json!({"type": "send_message", "id": n, "payload": {
        "room_id": room, "client_message_id": n.to_string(), "content": "hi"}})
    };
    for n in 0..4 {
        client.send(message(n)).await;
    }
    let refused = client.next_of("error").await;
    assert_eq!(refused["id"], 3);
    assert_eq!(refused["payload"]["code"], "rate_limited");
    assert!(refused["payload"]["retry_after_ms"].as_u64().unwrap() > 0);
    for n in 4..110 {
        client.send(message(n)).await;
    }
    assert_eq!(client.closed().await, 4009);
}

/// AUTH-07: logging out closes the device's sockets.
#[tokio::test]
async fn logging_out_closes_the_socket() {
    let server = serve(options()).await;
    let ann = somebody();
    let mut client = server.client(&ann).await;
    server.town.logout(&ann).await.unwrap();
    assert_eq!(client.closed().await, 4002);
}

/// RT-01: at the end of its token a session ends, unless it was given another one of the same device.
#[tokio::test]
async fn a_session_lasts_as_long_as_its_token() {
    let server = serve(options()).await;
    let now = carillon_domain::Clock::now(&carillon_domain::time::SystemClock);
    let short = Identity {
        expires_at: now.plus(Duration::from_millis(700)),
        ..somebody()
    };
    let longer = Identity {
        expires_at: now.plus(Duration::from_secs(900)),
        ..short
    };
    let mut ends = server.client(&short).await;
    let mut goes_on = server.client(&short).await;
    goes_on
        .send(json!({"type": "auth", "id": 1, "payload": {"token": token(&somebody())}}))
        .await;
    assert_eq!(goes_on.next().await["payload"]["code"], "permission_denied");
    goes_on
        .send(json!({"type": "auth", "id": 2, "payload": {"token": token(&longer)}}))
        .await;
    let ack = goes_on.next().await;
    assert_eq!(
        (ack["type"].as_str(), ack["id"].as_u64()),
        (Some("ack"), Some(2))
    );
    assert_eq!(ends.closed().await, 4001);
    goes_on.send(json!({"type": "ping", "id": 3})).await;
    assert_eq!(goes_on.next().await["type"], "pong");
}

/// RT-06: the server pings; who answers lives, who is silent is dropped, and its presence lease is left to end by itself.
#[tokio::test]
async fn silence_is_death() {
    let server = serve(GatewayOptions {
        heartbeat: Duration::from_millis(100),
        dead_after: Duration::from_millis(500),
        ..options()
    })
    .await;
    let (ann, bob) = (somebody(), somebody());
    let mut alive = server.client(&ann).await;
    // Its library would answer pings when read: it is not read.
    let silent = server.client(&bob).await;
    let mut pings = 0;
    while pings < 12 {
        match tokio::time::timeout(SOON, alive.0.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
        {
            Message::Ping(_) => pings += 1,
            other => panic!("{other:?}"),
        }
    }
    let mut stream = silent.0.into_inner();
    let mut rest = Vec::new();
    tokio::time::timeout(
        SOON,
        tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest),
    )
    .await
    .expect("the server ended the silent connection")
    .ok();
    assert!(server.town.released.lock().is_empty());
    alive.0.close(None).await.unwrap();
    while server.town.released.lock().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let lease = server.town.lease_of(&ann);
    assert_eq!(*server.town.released.lock(), [lease.device]);
}

/// PRES-01: whoever is sent away because their token ended comes back at once: their lease runs on.
#[tokio::test]
async fn the_end_of_a_token_is_not_the_end_of_a_device() {
    let server = serve(options()).await;
    let now = carillon_domain::Clock::now(&carillon_domain::time::SystemClock);
    let short = Identity {
        expires_at: now.plus(Duration::from_millis(300)),
        ..somebody()
    };
    let ann = somebody();
    let mut ends = server.client(&short).await;
    assert_eq!(ends.closed().await, 4001);
    drop(ends);
    let mut leaves = server.client(&ann).await;
    leaves.0.close(None).await.unwrap();
    while server.town.released.lock().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let lease = server.town.lease_of(&ann);
    assert_eq!(*server.town.released.lock(), [lease.device]);
}

/// EDGE-03: a socket is a connection like any other: it counts until it ends.
#[tokio::test]
async fn sockets_count_as_connections() {
    let server = serve(GatewayOptions {
        max_connections: 2,
        ..options()
    })
    .await;
    let first = server.client(&somebody()).await;
    let _second = server.client(&somebody()).await;
    for _ in 0..3 {
        assert!(server.open("", &[]).await.is_err(), "a third connection");
    }
    drop(first);
    let opened = async {
        while server.open("", &[]).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, opened)
        .await
        .expect("a place is free again");
}

/// RT-06, promise 7: a client that reads nothing is cut off with bounded memory; its room mates notice nothing.
#[tokio::test]
async fn a_client_that_reads_nothing_is_cut_off() {
    let server = serve(GatewayOptions {
        send_buffer: 16,
        ..options()
    })
    .await;
    let (ann, bob) = (somebody(), somebody());
    let room = server.town.room(&[ann.user, bob.user]);
    let mut quick = server.client(&ann).await;
    let slow = server.client(&bob).await;
    let text = "x".repeat(16_000);
    // Far more than the kernel buffers of a connection.
    for n in 3..2000 {
        server.town.say(room, ann.user, &text);
        assert_eq!(quick.next().await["payload"]["sequence"], n);
    }
    let mut stream = slow.0.into_inner();
    let mut received = 0;
    let mut buffer = vec![0; 65536];
    while let Ok(Ok(read @ 1..)) = tokio::time::timeout(
        SOON,
        tokio::io::AsyncReadExt::read(&mut stream, &mut buffer),
    )
    .await
    {
        received += read;
    }
    assert!(
        received < 1997 * 16_000,
        "it can't have got everything: {received}"
    );
}

/// RT-06: whoever was cut off because they read too slowly learns it, however late they get to it: behind what they were sent before
/// comes the code that tells them to resume.
#[tokio::test]
async fn a_slow_client_is_told_to_resume() {
    let server = serve(GatewayOptions {
        send_buffer: 16,
        ..options()
    })
    .await;
    let (ann, bob) = (somebody(), somebody());
    let room = server.town.room(&[ann.user, bob.user]);
    let mut quick = server.client(&ann).await;
    let mut slow = server.client(&bob).await;
    let text = "x".repeat(16_000);
    for n in 3..2000 {
        server.town.say(room, ann.user, &text);
        assert_eq!(quick.next().await["payload"]["sequence"], n);
    }
    // Longer than a closing handshake with anybody else may take.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(slow.closed().await, 4008);
}

/// OPS-02: on stop every socket is told to resume elsewhere, new ones are refused, and `run` returns in time.
#[tokio::test]
async fn stopping_drains() {
    let server = serve(options()).await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(server.client(&somebody()).await);
    }
    server.stop.cancel();
    for client in &mut clients {
        assert_eq!(client.closed().await, 4000);
    }
    tokio::time::timeout(SOON, server.running)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}

/// OPS-02: the stop is said before the port closes, sockets that have not authenticated are told too, and no new ones are made.
#[tokio::test]
async fn a_stop_is_said_before_the_port_closes() {
    let server = serve(GatewayOptions {
        drain: Duration::from_secs(9),
        ..options()
    })
    .await;
    let mut unauthenticated = server.open("", &[]).await.unwrap();
    assert_eq!(unauthenticated.next().await["type"], "auth_required");
    server.stop.cancel();
    assert_eq!(unauthenticated.closed().await, 4000);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    // Ends, because the answer closes the connection.
    tokio::time::timeout(
        SOON,
        tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer),
    )
    .await
    .expect("the connection is closed")
    .unwrap();
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("\"draining\""), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    assert_eq!(
        server.refused("", &[]).await,
        StatusCode::SERVICE_UNAVAILABLE
    );
}

/// Promise 8: while the store is away a socket is told to come back, and succeeds when it's there again.
#[tokio::test]
async fn connecting_without_a_store_is_refused_politely() {
    let server = serve(options()).await;
    let ann = somebody();
    let mut client = server.open("", &[]).await.unwrap();
    client.next().await;
    server
        .town
        .store_down
        .store(true, std::sync::atomic::Ordering::Relaxed);
    client
        .send(json!({"type": "auth", "id": 1, "payload": {"token": token(&ann)}}))
        .await;
    let answer = client.next().await;
    assert_eq!(answer["payload"]["code"], "unavailable");
    assert_eq!(answer["payload"]["retryable"], true);
    server
        .town
        .store_down
        .store(false, std::sync::atomic::Ordering::Relaxed);
    client
        .send(json!({"type": "auth", "id": 2, "payload": {"token": token(&ann)}}))
        .await;
    assert_eq!(client.next().await["type"], "connection_ack");
}

/// EDGE-01: the socket of the operator's probe hears its room, and takes no request.
#[tokio::test]
async fn the_probe_only_listens() {
    let server = serve(options()).await;
    let probe = Identity {
        user: UserId::PROBE,
        ..somebody()
    };
    let room = server.town.room(&[probe.user]);
    let mut client = server.client(&probe).await;
    client
        .send(json!({ "type": "join_room", "id": 1, "payload": { "room_id": room } }))
        .await;
    let answer = client.next_of("error").await;
    assert_eq!(answer["payload"]["code"], "permission_denied");
    server.town.say(room, probe.user, "probe");
    let heard = client.next_of("new_message").await;
    assert_eq!(heard["payload"]["content"], "probe");
}
