//! A gateway as far as the operator's probe sees it: a room, its messages, and a socket that hears of them. It can be told to
//! fail at a step. That the real ones take what the operator sends is tested with the real ones (`tests/it/cluster.rs`).

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use futures::SinkExt;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

/// Messages on a page: the newest.
const PAGE: usize = 50;

/// A server on this machine; it goes with this value.
pub struct Edge {
    pub address: SocketAddr,
    state: Arc<State>,
    _serving: JoinSet<()>,
}

struct State {
    /// The step that fails.
    broken: Mutex<Option<String>>,
    rooms: Mutex<Vec<Value>>,
    messages: Mutex<Vec<Value>>,
    told: broadcast::Sender<Value>,
}

impl Edge {
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            broken: Mutex::default(),
            rooms: Mutex::default(),
            messages: Mutex::default(),
            told: broadcast::channel(16).0,
        });
        let mut serving = JoinSet::new();
        let shared = state.clone();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let state = shared.clone();
                connections.spawn(async move {
                    let service = service_fn(|request| answer(state.clone(), request));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades()
                        .await;
                });
            }
        });
        Ok(Edge {
            address,
            state,
            _serving: serving,
        })
    }

    /// From now on `step` fails, and no other one.
    pub fn break_at(&self, step: Option<&str>) {
        *self.state.broken.lock().unwrap() = step.map(str::to_owned);
    }

    /// How many messages came.
    pub fn messages(&self) -> usize {
        self.state.messages.lock().unwrap().len()
    }
}

async fn answer(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let broken = state.broken.lock().unwrap().clone();
    let is_broken = |step: &str| broken.as_deref() == Some(step);
    let path = request.uri().path().to_owned();
    let is_known = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.starts_with("Bearer ") && value.split('.').count() == 3);
    let problem = |status: StatusCode, code: &str| reply(status, &json!({ "code": code }));
    if !is_known {
        return Ok(problem(StatusCode::UNAUTHORIZED, "unauthenticated"));
    }
    let away = || problem(StatusCode::SERVICE_UNAVAILABLE, "unavailable");
    let is_post = request.method() == hyper::Method::POST;
    Ok(match path.as_str() {
        "/api/v1/ws" if is_broken("connect") => away(),
        "/api/v1/ws" => upgrade(state, request, is_broken("receive")),
        "/api/v1/rooms/me" if is_broken("room") => away(),
        "/api/v1/rooms/me" => {
            let rooms = state.rooms.lock().unwrap().clone();
            reply(StatusCode::OK, &json!({ "items": rooms, "next": null }))
        }
        "/api/v1/rooms" if is_post => {
            let mut room = body(request).await;
            let mut rooms = state.rooms.lock().unwrap();
            room["id"] = json!(format!("room-{}", rooms.len()));
            rooms.push(room.clone());
            reply(StatusCode::CREATED, &room)
        }
        "/api/v1/rooms/room-0/messages" if is_post && is_broken("send") => away(),
        "/api/v1/rooms/room-0/messages" if is_post => {
            let message = body(request).await;
            state.messages.lock().unwrap().push(message.clone());
            // Nobody may listen.
            let _ = state.told.send(message.clone());
            reply(StatusCode::CREATED, &message)
        }
        "/api/v1/rooms/room-0/messages" => {
            let items = match is_broken("read") {
                true => Vec::new(),
                // Pages as long as the real one's; all clusters of a test share the room.
                false => {
                    let messages = state.messages.lock().unwrap();
                    messages[messages.len().saturating_sub(PAGE)..].to_vec()
                }
            };
            reply(StatusCode::OK, &json!({ "items": items, "next": null }))
        }
        _ => problem(StatusCode::NOT_FOUND, "not_found"),
    })
}

fn reply(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = status;
    response
}

async fn body(request: Request<Incoming>) -> Value {
    let bytes = request
        .into_body()
        .collect()
        .await
        .map(|body| body.to_bytes());
    bytes
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default()
}

fn upgrade(
    state: Arc<State>,
    mut request: Request<Incoming>,
    is_deaf: bool,
) -> Response<Full<Bytes>> {
    let key = request.headers()[header::SEC_WEBSOCKET_KEY].clone();
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgraded.await else { return };
        let mut told = state.told.subscribe();
        let mut socket =
            WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        let ack = json!({ "type": "connection_ack", "payload": {} });
        if socket.send(Message::text(ack.to_string())).await.is_err() {
            return;
        }
        while let Ok(message) = told.recv().await {
            let frame = json!({ "type": "new_message", "payload": message });
            if !is_deaf && socket.send(Message::text(frame.to_string())).await.is_err() {
                return;
            }
        }
    });
    let mut response = reply(StatusCode::SWITCHING_PROTOCOLS, &Value::Null);
    *response.body_mut() = Full::default();
    let headers = response.headers_mut();
    headers.insert(
        header::CONNECTION,
        header::HeaderValue::from_static("upgrade"),
    );
    headers.insert(
        header::UPGRADE,
        header::HeaderValue::from_static("websocket"),
    );
    if let Ok(accept) = derive_accept_key(key.as_bytes()).parse() {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}
