//! The client's side of a call: a channel made on first use, the credentials and identity as metadata, a span, and a deadline.

use std::time::Duration;

use carillon_domain::{Error, ErrorCode, Result, UserId, account::Identity};
use carillon_telemetry::propagation;
use tonic::{
    Request, Response, Status,
    metadata::{Ascii, MetadataMap, MetadataValue},
    transport::{Channel, Endpoint, Uri},
};
use tracing::{Instrument, field};

use crate::{
    gate, status,
    tls::{PeerRole, Tls},
};

/// What a role shows to others to be let in.
#[derive(Clone)]
pub struct Credentials(Kind);

#[derive(Clone)]
enum Kind {
    /// A secret in each call's metadata.
    Token(MetadataValue<Ascii>),
    /// A certificate on each connection.
    Certificate(Tls),
}

impl Credentials {
    /// `internal_token` is the secret that the cluster's roles share, at least 16 visible ASCII characters. `InvalidRequest` for
    /// an unfit one.
    pub fn internal(internal_token: &str) -> Result<Self> {
        gate::check_internal_token(internal_token)?;
        let mut token: MetadataValue<Ascii> = internal_token.parse().map_err(|error| {
            Error::invalid("internal_token", "must be visible ASCII").caused_by(error)
        })?;
        // Kept out of debug output and of header compression tables.
        token.set_sensitive(true);
        Ok(Self(Kind::Token(token)))
    }

    /// The process's certificate; servers must prove that they are the role that is called.
    pub fn mutual_tls(tls: Tls) -> Self {
        Self(Kind::Certificate(tls))
    }

    fn scheme(&self) -> &'static str {
        match self.0 {
            Kind::Token(_) => "http",
            Kind::Certificate(_) => "https",
        }
    }
}

/// In whose name a call is made.
#[derive(Clone, Copy)]
pub(crate) enum For<'a> {
    /// The role itself.
    Nobody,
    /// A user.
    User(UserId),
    /// A user with the verified token.
    Identity(&'a Identity),
}

/// A generated client with what every call needs.
#[derive(Clone)]
pub(crate) struct Connection<C> {
    client: C,
    service: &'static str,
    credentials: Credentials,
    deadline: Duration,
}

/// A channel to one address of `role`, connected on first use and again whenever it breaks. Must be called within a runtime.
pub(crate) fn channel(
    endpoint: &str,
    role: PeerRole,
    credentials: &Credentials,
) -> Result<Channel> {
    let scheme = credentials.scheme();
    let unfit = || {
        Error::invalid(
            "endpoint",
            format!(
                "`{endpoint}` is no address of a gRPC server; one looks like {scheme}://auth:50051"
            ),
        )
    };
    let made =
        Endpoint::from_shared(endpoint.to_owned()).map_err(|error| unfit().caused_by(error))?;
    if made.uri().scheme_str() != Some(scheme) || made.uri().host().is_none() {
        return Err(unfit());
    }
    let made = made
        .connect_timeout(Duration::from_secs(2))
        .tcp_nodelay(true)
        // A peer that vanished without a word is noticed before callers' deadlines pile up.
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true);
    Ok(match &credentials.0 {
        Kind::Token(_) => made.connect_lazy(),
        Kind::Certificate(tls) => {
            let tls = tls.clone();
            made.connect_with_connector_lazy(tower::service_fn(move |uri: Uri| {
                let tls = tls.clone();
                async move {
                    // In a URI an IPv6 address stands in brackets.
                    let host = uri.host().unwrap_or_default();
                    let host = host.trim_start_matches('[').trim_end_matches(']');
                    let port = uri.port_u16().unwrap_or(443);
                    let stream = tls.connect(host, port, role).await;
                    stream.map(hyper_util::rt::TokioIo::new)
                }
            }))
        }
    })
}

impl<C: Clone> Connection<C> {
    pub(crate) fn new(
        service: &'static str,
        client: C,
        credentials: Credentials,
        deadline: Duration,
    ) -> Self {
        Self {
            client,
            service,
            credentials,
            deadline,
        }
    }

    /// Makes a call with the default deadline.
    pub(crate) async fn call<Req, Res, F, Fut>(
        &self,
        method: &'static str,
        caller: For<'_>,
        message: Req,
        send: F,
    ) -> Result<Res>
    where
        F: FnOnce(C, Request<Req>) -> Fut,
        Fut: Future<Output = Result<Response<Res>, Status>>,
    {
        let span = tracing::info_span!(
            "rpc",
            otel.name = format!("{}/{method}", self.service),
            otel.kind = "client",
            otel.status_code = field::Empty,
            rpc.system = "grpc",
            rpc.service = self.service,
            rpc.method = method,
            rpc.grpc.status_code = field::Empty,
        );
        async {
            let mut request = Request::new(message);
            request.set_timeout(self.deadline);
            self.credentials.write(caller, request.metadata_mut())?;
            // The channel ends calls at their deadline, but not while they wait for it to connect.
            let answer =
                tokio::time::timeout(self.deadline, send(self.client.clone(), request)).await;
            let span = tracing::Span::current();
            let failed = match answer {
                Ok(Ok(response)) => {
                    span.record("rpc.grpc.status_code", tonic::Code::Ok as i64);
                    return Ok(response.into_inner());
                }
                Ok(Err(status)) => {
                    span.record("rpc.grpc.status_code", status.code() as i64);
                    status::error_from_status(status)
                }
                Err(_elapsed) => {
                    span.record("rpc.grpc.status_code", tonic::Code::DeadlineExceeded as i64);
                    status::deadline_exceeded()
                }
            };
            span.record("otel.status_code", "ERROR");
            Err(failed)
        }
        .instrument(span)
        .await
    }
}

impl Credentials {
    fn write(&self, caller: For<'_>, metadata: &mut MetadataMap) -> Result<()> {
        if let Kind::Token(token) = &self.0 {
            metadata.insert(gate::INTERNAL_TOKEN, token.clone());
        }
        match caller {
            For::Nobody => {}
            For::User(user) => {
                metadata.insert(gate::USER_ID, text(user)?);
            }
            For::Identity(identity) => {
                metadata.insert(gate::USER_ID, text(identity.user)?);
                metadata.insert(gate::DEVICE_ID, text(identity.device)?);
                metadata.insert(gate::TOKEN_ID, text(identity.token_id)?);
                metadata.insert(gate::TOKEN_EXPIRES, text(identity.expires_at.0)?);
            }
        }
        if let Some(parent) = propagation::traceparent() {
            metadata.insert(gate::TRACEPARENT, text(parent)?);
        }
        Ok(())
    }
}

fn text(value: impl ToString) -> Result<MetadataValue<Ascii>> {
    MetadataValue::try_from(value.to_string())
        .map_err(|error| Error::new(ErrorCode::Internal, "internal error").caused_by(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Credentials {
        Credentials::internal("0123456789abcdef").unwrap()
    }

    #[tokio::test]
    async fn unfit_addresses_are_refused_with_an_example() {
        for bad in [
            "",
            "auth:50051",
            "https://auth:50051",
            "http://",
            "not a uri",
        ] {
            let error = channel(bad, PeerRole::Auth, &token()).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidRequest, "{bad}");
            assert!(
                error.fields[0].detail.contains("http://auth:50051"),
                "{bad}"
            );
        }
        assert!(channel("http://[::1]:50051", PeerRole::Auth, &token()).is_ok());
    }

    #[test]
    fn unfit_secrets_are_refused() {
        for bad in ["", "short", "with a blank in the middle", "ünïcödë-ünïcödë"] {
            assert!(Credentials::internal(bad).is_err(), "{bad}");
        }
    }
}
