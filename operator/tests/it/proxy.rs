//! What stands between an operator and the API server: it forwards everything, and keeps a record.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::Result;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use kube::Client;
use kube::client::Body;
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// One request that was answered.
#[derive(Clone, Debug)]
pub struct Record {
    /// Who asked.
    pub who: String,
    pub verb: &'static str,
    /// API group; empty for the core.
    pub group: String,
    /// With the subresource: `chatclusters/status`.
    pub resource: String,
    pub name: Option<String>,
    pub status: u16,
}

impl Record {
    /// Whether it changes something, other than who leads.
    pub fn is_write(&self) -> bool {
        !matches!(self.verb, "get" | "list" | "watch") && self.resource != "leases"
    }

    /// `patch services town-auth`.
    pub fn describe(&self) -> String {
        let name = self.name.as_deref().unwrap_or("");
        format!("{} {} {name}", self.verb, self.resource)
    }
}

/// The record of all proxies that share it, in the order of the answers.
pub type Log = Arc<Mutex<Vec<Record>>>;

/// What is done when a write was answered, and before the operator hears of it; given how many there were.
pub type OnWrite = Box<dyn Fn(usize) + Send + Sync>;

/// Holds back the answer to one request.
#[derive(Default)]
pub struct Hold {
    /// The request's description begins with this.
    pub prefix: String,
    /// Somebody asks.
    pub reached: Notify,
    /// The answer may go.
    pub release: Notify,
}

/// A proxy for one operator.
pub struct Proxy {
    pub url: String,
    pub log: Log,
    shared: Arc<Shared>,
}

struct Shared {
    who: String,
    upstream: Client,
    log: Log,
    writes: AtomicUsize,
    on_write: Mutex<Option<OnWrite>>,
    hold: Mutex<Option<Arc<Hold>>>,
    unknown: Mutex<Option<&'static str>>,
}

impl Proxy {
    /// A proxy for `who`, on a port of its own, for as long as the test's runtime lives.
    pub async fn start(who: &str, upstream: Client, log: Log) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let shared = Arc::new(Shared {
            who: who.to_owned(),
            upstream,
            log: Arc::clone(&log),
            writes: AtomicUsize::new(0),
            on_write: Mutex::new(None),
            hold: Mutex::new(None),
            unknown: Mutex::new(None),
        });
        let serving = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&serving);
                tokio::spawn(async move {
                    let service = service_fn(move |request| forward(Arc::clone(&shared), request));
                    // An operator that was killed leaves broken connections.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Ok(Proxy { url, log, shared })
    }

    /// From now on: counts writes from one, and does this at each.
    pub fn on_write(&self, action: Option<OnWrite>) {
        *self.shared.on_write.lock().unwrap() = action;
        self.shared.writes.store(0, Ordering::SeqCst);
    }

    /// Writes since the last [`Proxy::on_write`].
    pub fn writes(&self) -> usize {
        self.shared.writes.load(Ordering::SeqCst)
    }

    /// Holds back the answer to the next request whose description begins with `prefix`.
    pub fn hold(&self, prefix: &str) -> Arc<Hold> {
        let hold = Arc::new(Hold {
            prefix: prefix.to_owned(),
            ..Hold::default()
        });
        *self.shared.hold.lock().unwrap() = Some(Arc::clone(&hold));
        hold
    }

    /// From now on the API server knows nothing of an API group: it is asked for another one, which it doesn't know.
    pub fn forget_group(&self, group: Option<&'static str>) {
        *self.shared.unknown.lock().unwrap() = group;
    }

    /// The record from its `start`-th entry on.
    pub fn since(&self, start: usize) -> Vec<Record> {
        self.log.lock().unwrap()[start..].to_vec()
    }

    /// How long the record is.
    pub fn mark(&self) -> usize {
        self.log.lock().unwrap().len()
    }
}

type Answer = Response<Either<Body, Full<Bytes>>>;

async fn forward(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Answer, Infallible> {
    let (mut parts, body) = request.into_parts();
    let mut record = record_of(&shared.who, &parts.method, &parts.uri);
    let unknown = *shared.unknown.lock().unwrap();
    if let Some(group) = unknown.filter(|group| parts.uri.path().contains(group)) {
        let uri = parts.uri.to_string().replace(group, "unknown.example.com");
        parts.uri = uri.parse().expect("a URI with another name in it");
    }
    // They are about the connection to this proxy.
    for header in ["host", "connection", "content-length"] {
        parts.headers.remove(header);
    }
    let sent = async {
        let body = body.collect().await?.to_bytes();
        anyhow::Ok(
            shared
                .upstream
                .send(Request::from_parts(parts, Body::from(body)))
                .await?,
        )
    };
    let response = match sent.await {
        Ok(response) => response,
        Err(error) => {
            let text = Bytes::from(format!("{error:#}"));
            let mut response = Response::new(Either::Right(Full::new(text)));
            *response.status_mut() = StatusCode::BAD_GATEWAY;
            return Ok(response);
        }
    };
    record.status = response.status().as_u16();
    let held = {
        let mut hold = shared.hold.lock().unwrap();
        if hold
            .as_ref()
            .is_some_and(|hold| record.describe().starts_with(&hold.prefix))
        {
            hold.take()
        } else {
            None
        }
    };
    let is_write = record.is_write();
    shared.log.lock().unwrap().push(record);
    if is_write {
        let count = shared.writes.fetch_add(1, Ordering::SeqCst) + 1;
        if let Some(action) = shared.on_write.lock().unwrap().as_ref() {
            action(count);
        }
    }
    if let Some(hold) = held {
        hold.reached.notify_one();
        hold.release.notified().await;
    }
    let (mut parts, body) = response.into_parts();
    parts.headers.remove("connection");
    parts.headers.remove("transfer-encoding");
    parts.version = hyper::Version::HTTP_11;
    Ok(Response::from_parts(parts, Either::Left(body)))
}

/// What a request asks for, as the API server's authorizer sees it.
fn record_of(who: &str, method: &Method, uri: &hyper::Uri) -> Record {
    let parts: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
    let (group, rest) = match parts.as_slice() {
        ["api", _, rest @ ..] => ("", rest),
        ["apis", group, _, rest @ ..] => (*group, rest),
        rest => ("", rest),
    };
    let rest = match rest {
        ["namespaces", _, rest @ ..] if !rest.is_empty() => rest,
        rest => rest,
    };
    let name = rest.get(1).map(|name| (*name).to_owned());
    let resource = match rest {
        [resource, _, subresource] => format!("{resource}/{subresource}"),
        [resource, ..] => (*resource).to_owned(),
        [] => String::new(),
    };
    let watching = uri.query().is_some_and(|query| {
        query
            .split('&')
            .any(|part| part == "watch=true" || part == "watch=1")
    });
    let verb = match (method.as_str(), &name) {
        ("GET", _) if watching => "watch",
        ("GET", Some(_)) => "get",
        ("GET", None) => "list",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", Some(_)) => "delete",
        _ => "deletecollection",
    };
    Record {
        who: who.to_owned(),
        verb,
        group: group.to_owned(),
        resource,
        name,
        status: 0,
    }
}

/// How often each thing was asked for, to say what went wrong.
pub fn summary(records: &[Record]) -> BTreeMap<String, usize> {
    let mut summary = BTreeMap::new();
    for record in records {
        *summary.entry(record.describe()).or_default() += 1;
    }
    summary
}
