//! What every call passes on its way in (AUTH-16, OPS-03, OPS-04): a span that joins the caller's trace, the question who calls,
//! and the count of its outcome.
//!
//! Two ways in. The cluster's roles prove themselves by their certificates, or on one machine by `carillon-internal-token`, a secret
//! that they share; and they send the identity that the gateway verified (EDGE-01). Everybody else sends
//! `authorization: Bearer <access token>`. Nothing else is believed: identity metadata of others is ignored.

use std::{
    net::SocketAddr,
    sync::{Arc, LazyLock},
    task::{Context, Poll},
    time::Instant,
};

use carillon_domain::{
    DeviceId, Error, ErrorCode, Result, Timestamp, UserId, account::Identity, limit::Policy,
    ports::RateLimiter, services::TokenVerifier,
};
use carillon_telemetry::{
    metrics::{self, HistogramVec, IntCounterVec},
    propagation,
};
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use subtle::ConstantTimeEq;
use tonic::{Code, Status, body::Body, transport::server::TcpConnectInfo};
use tower::{Layer, Service};
use tracing::{Instrument, field};

use crate::{
    methods::{self, Access, Method},
    status::status_from_error,
    strangers::Strangers,
    tls::{Peer, Proven},
    values,
};

/// Metadata: the secret that the cluster's roles share.
pub(crate) const INTERNAL_TOKEN: &str = "carillon-internal-token";
/// Metadata: the user for whom a role calls.
pub(crate) const USER_ID: &str = "carillon-user-id";
/// Metadata: that user's device.
pub(crate) const DEVICE_ID: &str = "carillon-device-id";
/// Metadata: the id (`jti`) of the access token that the gateway verified.
pub(crate) const TOKEN_ID: &str = "carillon-token-id";
/// Metadata: when that token ends, in milliseconds since the epoch.
pub(crate) const TOKEN_EXPIRES: &str = "carillon-token-expires";
/// Metadata: the W3C trace context.
pub(crate) const TRACEPARENT: &str = "traceparent";

/// The shortest internal token that is accepted, in characters.
pub(crate) const MIN_INTERNAL_TOKEN: usize = 16;

static REQUESTS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    metrics::int_counter(
        "carillon_rpc_requests_total",
        "gRPC calls answered, by method and gRPC code.",
        &["service", "method", "code"],
    )
});

static DURATION: LazyLock<HistogramVec> = LazyLock::new(|| {
    metrics::histogram(
        "carillon_rpc_request_duration_seconds",
        "Time to answer a gRPC call.",
        &["service", "method"],
    )
});

/// How servers learn who calls.
#[derive(Clone)]
pub struct InterceptorOptions {
    /// `None` where roles are known by their certificates.
    internal_token: Option<Arc<[u8]>>,
    verifier: Arc<dyn TokenVerifier>,
    strangers: Option<Strangers>,
}

impl InterceptorOptions {
    /// `internal_token` is the secret that the cluster's roles share, at least 16 visible ASCII characters; `verifier` checks the
    /// access tokens of everybody else. `InvalidRequest` for an unfit secret.
    pub fn new(internal_token: &str, verifier: Arc<dyn TokenVerifier>) -> Result<Self> {
        check_internal_token(internal_token)?;
        Ok(Self {
            internal_token: Some(internal_token.as_bytes().into()),
            verifier,
            strangers: None,
        })
    }

    /// Roles are known by the certificates of their connections ([`crate::ServeOptions::tls`]), each for what it has to do with the
    /// service; `verifier` checks the access tokens of everybody else.
    pub fn mutual_tls(verifier: Arc<dyn TokenVerifier>) -> Self {
        Self {
            internal_token: None,
            verifier,
            strangers: None,
        }
    }

    /// Limits how often one address may call the methods that need no credentials (logins, codes, refreshes); `None` is no limit. The
    /// cluster's roles aren't counted: the gateway counts its own clients.
    #[must_use]
    pub fn limiting_strangers(
        mut self,
        policy: Option<Policy>,
        limiter: Arc<dyn RateLimiter>,
    ) -> Self {
        self.strangers = policy.map(|policy| Strangers { policy, limiter });
        self
    }
}

/// Refuses secrets that can be guessed, or that metadata can't carry.
pub(crate) fn check_internal_token(token: &str) -> Result<()> {
    let fits = token.len() >= MIN_INTERNAL_TOKEN && token.bytes().all(|b| b.is_ascii_graphic());
    if !fits {
        return Err(Error::invalid(
            "internal_token",
            format!("at least {MIN_INTERNAL_TOKEN} visible ASCII characters"),
        ));
    }
    Ok(())
}

/// Who makes a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Caller {
    /// Unknown: a call of a public method.
    Nobody,
    /// One of the cluster's roles, perhaps for a user.
    Role {
        user: Option<UserId>,
        identity: Option<Identity>,
    },
    /// Somebody with an access token.
    Person(Identity),
}

impl Caller {
    /// Whether the call comes from outside the cluster.
    pub(crate) fn is_external(self) -> bool {
        !matches!(self, Self::Role { .. })
    }

    /// The user in whose name the call is made.
    pub(crate) fn actor(self) -> Result<UserId> {
        match self {
            Self::Person(identity) => Ok(identity.user),
            Self::Role { user, .. } => user.ok_or_else(|| missing(USER_ID)),
            Self::Nobody => Err(no_credentials()),
        }
    }

    /// The verified token's identity.
    pub(crate) fn identity(self) -> Result<Identity> {
        match self {
            Self::Person(identity) => Ok(identity),
            Self::Role { identity, .. } => identity.ok_or_else(|| missing(TOKEN_ID)),
            Self::Nobody => Err(no_credentials()),
        }
    }
}

fn no_credentials() -> Error {
    Error::unauthenticated(
        "no credentials: send the metadata `authorization: Bearer <access token>`",
    )
}

fn missing(name: &str) -> Error {
    Error::unauthenticated(format!("the metadata `{name}` is missing"))
}

// === the decision ===

async fn admit(
    options: &InterceptorOptions,
    method: Option<&Method>,
    headers: &HeaderMap,
    peer: Option<SocketAddr>,
    proven: Proven,
) -> Result<Caller> {
    let access = method.map_or(Access::Authenticated, |method| method.access);
    let callers = method.map_or(&[][..], |method| method.callers);
    if proven.is_one_of(callers) {
        return role(headers);
    }
    if proven.is_any() && access != Access::Public {
        return Err(Error::denied("this role has no business with this service"));
    }
    if let (Some(expected), Some(token)) = (&options.internal_token, headers.get(INTERNAL_TOKEN)) {
        if !bool::from(token.as_bytes().ct_eq(expected)) {
            return Err(Error::unauthenticated("the internal token is not valid"));
        }
        return role(headers);
    }
    if let Some(strangers) = &options.strangers
        && method.is_some_and(|method| method.guessable)
        && let Some(peer) = peer
    {
        strangers.admit(peer.ip()).await?;
    }
    if access == Access::Public {
        return Ok(Caller::Nobody);
    }
    let identity = options.verifier.verify_access(bearer(headers)?).await?;
    if identity.user == UserId::PROBE {
        return Err(Error::denied(
            "this token is for a probe message through a gateway only",
        ));
    }
    if access == Access::Internal {
        return Err(Error::denied("this method is for the cluster's own roles"));
    }
    Ok(Caller::Person(identity))
}

fn bearer(headers: &HeaderMap) -> Result<&str> {
    let value = headers
        .get(http::header::AUTHORIZATION)
        .ok_or_else(no_credentials)?;
    value
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
        .map(|(_, token)| token)
        .ok_or_else(|| Error::unauthenticated("`authorization` must be `Bearer <access token>`"))
}

fn role(headers: &HeaderMap) -> Result<Caller> {
    let user: Option<UserId> = identity_part(headers, USER_ID, |text| text.parse().ok())?;
    let device: Option<DeviceId> = identity_part(headers, DEVICE_ID, |text| text.parse().ok())?;
    let token_id = identity_part(headers, TOKEN_ID, |text| text.parse().ok())?;
    let expires = identity_part(headers, TOKEN_EXPIRES, |text| text.parse().ok())?;
    let identity = match (user, device, token_id, expires) {
        (Some(user), Some(device), Some(token_id), Some(expires)) => Some(Identity {
            user,
            device,
            token_id,
            expires_at: Timestamp(expires),
        }),
        _ => None,
    };
    Ok(Caller::Role { user, identity })
}

fn identity_part<T>(
    headers: &HeaderMap,
    name: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>> {
    let Some(value) = headers.get(name) else {
        return Ok(None);
    };
    match value.to_str().ok().and_then(parse) {
        Some(part) => Ok(Some(part)),
        None => Err(Error::unauthenticated(format!(
            "the metadata `{name}` is malformed"
        ))),
    }
}

// === the layer ===

/// Puts a [`Gate`] before every service of a server.
#[derive(Clone)]
pub(crate) struct GateLayer(pub(crate) InterceptorOptions);

impl<S> Layer<S> for GateLayer {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate {
            inner,
            options: self.0.clone(),
        }
    }
}

/// Lets a call in with its [`Caller`] (and [`Identity`], if there is one) among the request's extensions, or answers it.
#[derive(Clone)]
pub(crate) struct Gate<S> {
    inner: S,
    options: InterceptorOptions,
}

impl<S> Service<Request<Body>> for Gate<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // The clone that was polled ready is the one to call.
        let ready = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, ready);
        let options = self.options.clone();
        let method = methods::find(request.uri().path());
        let span = server_span(method);
        if let Some(parent) = request.headers().get(TRACEPARENT)
            && let Ok(parent) = parent.to_str()
        {
            propagation::set_parent(&span, parent);
        }
        let recorded = span.clone();
        let answer = async move {
            let started = Instant::now();
            let extensions = request.extensions();
            let peer = address_in(extensions);
            let proven = extensions.get::<Peer>().map(|peer| peer.roles);
            let proven = proven.unwrap_or_default();
            let headers = request.headers();
            let response = match admit(&options, method, headers, peer, proven).await {
                Ok(caller) => {
                    if let Ok(identity) = caller.identity() {
                        request.extensions_mut().insert(identity);
                    }
                    request.extensions_mut().insert(caller);
                    inner.call(request).await?
                }
                Err(error) => refusal(Caller::Nobody, &error).into_http(),
            };
            count(method, &response, started, &recorded);
            Ok(response)
        };
        Box::pin(answer.instrument(span))
    }
}

/// The address at the other end of a request's connection, with and without TLS.
pub(crate) fn address<T>(request: &tonic::Request<T>) -> Option<SocketAddr> {
    address_in(request.extensions())
}

fn address_in(extensions: &http::Extensions) -> Option<SocketAddr> {
    let secured = extensions.get::<Peer>().map(|peer| peer.address);
    secured.or_else(|| extensions.get::<TcpConnectInfo>()?.remote_addr())
}

fn server_span(method: Option<&'static Method>) -> tracing::Span {
    let (service, name) = labels(method);
    tracing::info_span!(
        "rpc",
        otel.name = format!("{service}/{name}"),
        otel.kind = "server",
        otel.status_code = field::Empty,
        rpc.system = "grpc",
        rpc.service = service,
        rpc.method = name,
        rpc.grpc.status_code = field::Empty,
    )
}

/// Unknown paths share one label: a stranger must not be able to make new ones.
fn labels(method: Option<&'static Method>) -> (&'static str, &'static str) {
    method.map_or(("unknown", "unknown"), |method| {
        (&method.service, &method.name)
    })
}

fn count(
    method: Option<&'static Method>,
    response: &Response<Body>,
    started: Instant,
    span: &tracing::Span,
) {
    let (service, name) = labels(method);
    // An error is all headers; the status of a success comes after its body.
    let code = response
        .headers()
        .get(Status::GRPC_STATUS)
        .map_or(Code::Ok, |status| Code::from_bytes(status.as_bytes()));
    REQUESTS
        .with_label_values(&[service, name, code_name(code)])
        .inc();
    DURATION
        .with_label_values(&[service, name])
        .observe(started.elapsed().as_secs_f64());
    record_code(span, code);
}

/// Notes the outcome of a call in its span. Codes that are the caller's own doing are no error of a server's span.
fn record_code(span: &tracing::Span, code: Code) {
    span.record("rpc.grpc.status_code", code as i64);
    if matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    ) {
        span.record("otel.status_code", "ERROR");
    }
}

/// A gRPC code's name as in its specification.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

// === what handlers use ===

/// Runs a handler with the caller that the gate found, and answers its error as a status.
pub(crate) async fn handle<Req, Res, F, Fut>(
    request: tonic::Request<Req>,
    handler: F,
) -> Result<tonic::Response<Res>, Status>
where
    F: FnOnce(Caller, Req) -> Fut,
    Fut: Future<Output = Result<Res>>,
{
    let caller = request
        .extensions()
        .get::<Caller>()
        .copied()
        .unwrap_or(Caller::Nobody);
    handler(caller, request.into_inner())
        .await
        .map(tonic::Response::new)
        .map_err(|error| refusal(caller, &error))
}

/// The status for an error; its cause is logged here, since it doesn't cross.
fn refusal(caller: Caller, error: &Error) -> Status {
    match error.code {
        ErrorCode::Internal => {
            tracing::error!(cause = error.cause_chain(), "a call failed: {error}");
        }
        ErrorCode::Unavailable | ErrorCode::DeadlineExceeded => {
            tracing::warn!(cause = error.cause_chain(), "a call failed: {error}");
        }
        _ => {}
    }
    if error.code == ErrorCode::NotOwner && caller.is_external() {
        // Which replica owns what is no concern of clients.
        return status_from_error(
            &Error::new(ErrorCode::Unavailable, "the room is moving, try again")
                .retry_after(values::RETRY_AFTER_MOVE),
        );
    }
    status_from_error(error)
}
