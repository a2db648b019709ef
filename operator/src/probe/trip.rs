//! One probe message's way: sent through one gateway, received through another, and read back.
//!
//! It is an ordinary message to an ordinary room, over the public API. The room is private and its one member is the probe's own
//! person, who has no account: nobody can find, see or meet either. The room keeps its messages for an hour. Whether and when
//! to send one isn't decided here.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::StreamExt;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, header};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};

/// Longest a whole trip may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer or frame that is read, bytes.
const MAX_ANSWER: usize = 64 * 1024;
/// Name of the probe's room.
const ROOM: &str = "probe";
/// How long the room keeps a message, seconds.
const RETENTION_SECONDS: u32 = 3600;

/// A gateway pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gateway {
    /// Name of the pod.
    pub pod: String,
    /// Where its public port is.
    pub address: SocketAddr,
}

impl Gateway {
    /// A gateway at an address as a pod's status has it; `None` when that is none.
    pub fn at(pod: &str, address: &str, port: u16) -> Option<Self> {
        let address: IpAddr = address.parse().ok()?;
        Some(Gateway {
            pod: pod.to_owned(),
            address: SocketAddr::new(address, port),
        })
    }
}

/// A trip that didn't end: at which step, and why, in words that don't change from one try to the next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{step}: {detail}")]
pub struct ProbeFailure {
    /// `token`, `room`, `connect`, `send`, `receive` or `read`.
    pub step: &'static str,
    /// Which gateway, and what it said or didn't say.
    pub detail: String,
}

/// Sends a message with the access token `token` through `from`, and waits until it came back through `to`.
pub async fn round_trip(
    token: &str,
    from: &Gateway,
    to: &Gateway,
    message_id: &str,
) -> Result<(), ProbeFailure> {
    let mut trip = Trip::new(token);
    match tokio::time::timeout(TIMEOUT, trip.run(from, to, message_id)).await {
        Ok(result) => result,
        Err(_) => Err(ProbeFailure {
            step: trip.step,
            detail: format!(
                "gateway {}: no answer within {} s",
                if trip.at_sender { &from.pod } else { &to.pod },
                TIMEOUT.as_secs()
            ),
        }),
    }
}

struct Trip<'a> {
    token: &'a str,
    client: Client<HttpConnector, Full<Bytes>>,
    step: &'static str,
    /// Whether the gateway that is waited for is the sending one.
    at_sender: bool,
}

impl<'a> Trip<'a> {
    fn new(token: &'a str) -> Self {
        Trip {
            token,
            client: Client::builder(TokioExecutor::new())
                .pool_max_idle_per_host(0)
                .build(HttpConnector::new()),
            step: "room",
            at_sender: true,
        }
    }

    async fn run(
        &mut self,
        from: &Gateway,
        to: &Gateway,
        message_id: &str,
    ) -> Result<(), ProbeFailure> {
        let room = self.room(from).await?;
        (self.step, self.at_sender) = ("connect", false);
        let mut socket = self.connect(to).await?;
        (self.step, self.at_sender) = ("send", true);
        let messages = format!("rooms/{room}/messages");
        let message = json!({ "client_message_id": message_id, "content": "probe" });
        self.ask(from, "POST", &messages, Some(message)).await?;
        (self.step, self.at_sender) = ("receive", false);
        self.receive(to, &mut socket, message_id).await?;
        self.step = "read";
        let page = self
            .ask(to, "GET", &format!("{messages}?limit=20"), None)
            .await?;
        if !is_in(&page, message_id) {
            return Err(self.failure(to, "the message is not in its room"));
        }
        // Whoever leaves like this is known to be gone at once.
        let _ = socket.close(None).await;
        Ok(())
    }

    /// The probe's room, made when there is none yet.
    async fn room(&self, from: &Gateway) -> Result<String, ProbeFailure> {
        let id = |room: &Value| room["id"].as_str().map(str::to_owned);
        let rooms = self.ask(from, "GET", "rooms/me?limit=20", None).await?;
        let known = rooms["items"].as_array().into_iter().flatten();
        if let Some(room) = known.filter(|room| room["name"] == ROOM).find_map(id) {
            return Ok(room);
        }
        let room = json!({
            "name": ROOM,
            "type": "private",
            "rules": { "retention_seconds": RETENTION_SECONDS },
        });
        let made = self.ask(from, "POST", "rooms", Some(room)).await?;
        id(&made).ok_or_else(|| self.failure(from, "a room without id"))
    }

    async fn connect(&self, to: &Gateway) -> Result<WebSocketStream<TcpStream>, ProbeFailure> {
        let url = format!("ws://{}/api/v1/ws", to.address);
        let mut request = url
            .into_client_request()
            .map_err(|_| self.failure(to, "the address is unusable"))?;
        request
            .headers_mut()
            .insert(header::AUTHORIZATION, self.authorization(to)?);
        let stream = TcpStream::connect(to.address)
            .await
            .map_err(|error| self.failure(to, &error.kind().to_string()))?;
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_ANSWER))
            .max_frame_size(Some(MAX_ANSWER));
        let (mut socket, _) =
            tokio_tungstenite::client_async_with_config(request, stream, Some(config))
                .await
                .map_err(|error| match error {
                    tungstenite::Error::Http(response) => {
                        self.failure(to, &format!("HTTP {}", response.status().as_u16()))
                    }
                    _ => self.failure(to, "no WebSocket"),
                })?;
        // From now on it follows its rooms.
        loop {
            let frame = self.frame(to, &mut socket).await?;
            if frame["type"] == "connection_ack" {
                return Ok(socket);
            }
        }
    }

    async fn receive(
        &self,
        to: &Gateway,
        socket: &mut WebSocketStream<TcpStream>,
        message_id: &str,
    ) -> Result<(), ProbeFailure> {
        loop {
            let frame = self.frame(to, socket).await?;
            if frame["type"] == "new_message" && frame["payload"]["client_message_id"] == message_id
            {
                return Ok(());
            }
        }
    }

    async fn frame(
        &self,
        to: &Gateway,
        socket: &mut WebSocketStream<TcpStream>,
    ) -> Result<Value, ProbeFailure> {
        loop {
            match socket.next().await {
                Some(Ok(Message::Text(text))) => {
                    return serde_json::from_str(&text)
                        .map_err(|_| self.failure(to, "a frame that is not JSON"));
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(Some(close)))) => {
                    let code = u16::from(close.code);
                    return Err(self.failure(to, &format!("closed with {code}")));
                }
                Some(_) | None => return Err(self.failure(to, "the connection was lost")),
            }
        }
    }

    /// The JSON that a gateway answers to a request under `/api/v1/`.
    async fn ask(
        &self,
        gateway: &Gateway,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value, ProbeFailure> {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}/api/v1/{path}", gateway.address))
            .header(header::AUTHORIZATION, self.authorization(gateway)?)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(
                body.map(|body| body.to_string()).unwrap_or_default(),
            ))
            .map_err(|_| self.failure(gateway, "the address is unusable"))?;
        let response = self
            .client
            .request(request)
            .await
            .map_err(|_| self.failure(gateway, "can't be reached"))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|_| self.failure(gateway, "an answer that was cut off or is too long"))?;
        let answer: Option<Value> = serde_json::from_slice(&body.to_bytes()).ok();
        match answer {
            Some(answer) if matches!(status, StatusCode::OK | StatusCode::CREATED) => Ok(answer),
            answer => {
                let code = answer.as_ref().and_then(|answer| answer["code"].as_str());
                let said = format!("HTTP {} {}", status.as_u16(), code.unwrap_or_default());
                Err(self.failure(gateway, said.trim()))
            }
        }
    }

    fn authorization(&self, gateway: &Gateway) -> Result<header::HeaderValue, ProbeFailure> {
        header::HeaderValue::from_str(&format!("Bearer {}", self.token))
            .map_err(|_| self.failure(gateway, "the token is no header"))
    }

    fn failure(&self, gateway: &Gateway, what: &str) -> ProbeFailure {
        ProbeFailure {
            step: self.step,
            detail: format!("gateway {}: {what}", gateway.pod),
        }
    }
}

fn is_in(page: &Value, message_id: &str) -> bool {
    page["items"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|message| message["client_message_id"] == message_id)
}
