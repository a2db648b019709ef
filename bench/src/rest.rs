//! REST over kept-alive HTTP/1.1 connections.
//!
//! It does not follow redirects, does not decompress, does not speak TLS, and never repeats a request.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::net::TcpStream;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// One connection; a request at a time.
pub struct Connection {
    server: SocketAddr,
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    /// Opens it.
    pub async fn open(server: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(server)
            .await
            .with_context(|| format!("cannot connect to {server}"))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Its error, if any, is also the error of the request under way.
        tokio::spawn(connection);
        Ok(Self { server, sender })
    }

    /// Sends a request and reads the whole answer.
    pub async fn request(
        &mut self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Bytes)> {
        let mut request = Request::builder()
            .method(method.clone())
            .uri(path)
            .header("host", self.server.to_string());
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = Full::new(Bytes::from(body.map(Value::to_string).unwrap_or_default()));
        let request = request.body(body).context("cannot make a request")?;
        let exchange = async {
            self.sender.ready().await?;
            let answer = self.sender.send_request(request).await?;
            let status = answer.status();
            let bytes = answer.into_body().collect().await?.to_bytes();
            anyhow::Ok((status, bytes))
        };
        match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(answer) => answer.with_context(|| format!("{method} {path} got no answer")),
            Err(_) => bail!("{method} {path} got no answer within {PATIENCE:?}"),
        }
    }
}

/// A pool of connections.
pub struct Rest {
    server: SocketAddr,
    idle: Mutex<Vec<Connection>>,
}

impl Rest {
    /// A pool that is empty yet.
    pub fn new(server: SocketAddr) -> Self {
        Self {
            server,
            idle: Mutex::new(Vec::new()),
        }
    }

    /// Sends a request; status and body of the answer.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Bytes)> {
        let kept = self.take_idle();
        let mut connection = match kept {
            Some(connection) => connection,
            None => Connection::open(self.server).await?,
        };
        let answer = connection.request(method, path, token, body).await?;
        self.idle.lock().push(connection);
        Ok(answer)
    }

    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock();
        while let Some(connection) = idle.pop() {
            if !connection.sender.is_closed() {
                return Some(connection);
            }
        }
        None
    }

    /// Sends a request that must succeed; the JSON of its answer (`null` for an empty one).
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<Value>,
    ) -> Result<Value> {
        let (status, bytes) = self
            .request(method.clone(), path, token, body.as_ref())
            .await?;
        ensure!(
            status.is_success(),
            "{method} {path} was answered {status}: {}",
            crate::frames::excerpt(&bytes)
        );
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes)
            .with_context(|| format!("the answer to {method} {path} is no JSON"))
    }
}
