//! Mutual TLS between the roles (RFC 8446): who a process is, whom it believes, and how both change while it runs.
//!
//! Each role has a certificate with its own name, and calls only a server that proves the name of the role that is meant. Whoever
//! presents no certificate is no role, and may still come in with a bearer token: that is how integrators call. Established
//! connections keep what they were made with; the next ones go by what [`Tls::replace`] was given last.
//!
//! Making certificates, reading files, and deciding when to rotate are not here.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use carillon_domain::{Error, Result};
use parking_lot::RwLock;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::{ParsedCertificate, WebPkiClientVerifier},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// Handshakes under way at once; further connections wait in the system's queue.
const HANDSHAKES: usize = 256;
/// Longest handshake: a stranger who says nothing must not keep its place.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// After the system refused to accept: out of file descriptors, for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A role of a cluster, as the other end of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerRole {
    /// REST and WebSocket.
    Gateway,
    /// Accounts and people.
    Auth,
    /// Rooms and messages.
    Message,
    /// Who is online.
    Presence,
    /// Files.
    Media,
    /// Push.
    Notification,
}

impl PeerRole {
    const ALL: [Self; 6] = [
        Self::Gateway,
        Self::Auth,
        Self::Message,
        Self::Presence,
        Self::Media,
        Self::Notification,
    ];
}

/// The name in each role's certificate (a DNS name among its subject alternative names, RFC 6125).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RoleNames {
    /// Of the gateway.
    pub gateway: String,
    /// Of auth.
    pub auth: String,
    /// Of message.
    pub message: String,
    /// Of presence.
    pub presence: String,
    /// Of media.
    pub media: String,
    /// Of notification.
    pub notification: String,
}

/// The roles that a peer has proved to be; a process may run several.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Proven(u8);

/// A process's own certificate and whom it believes. Clones are handles of the same thing.
#[derive(Clone)]
pub struct Tls {
    names: Arc<[(PeerRole, ServerName<'static>); 6]>,
    current: Arc<RwLock<Arc<Current>>>,
}

/// What one reading of the files gave: replaced as one.
struct Current {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

// === impl RoleNames ===

impl RoleNames {
    fn parsed(&self) -> Result<[(PeerRole, ServerName<'static>); 6]> {
        let parse = |role: PeerRole| {
            let name = match role {
                PeerRole::Gateway => &self.gateway,
                PeerRole::Auth => &self.auth,
                PeerRole::Message => &self.message,
                PeerRole::Presence => &self.presence,
                PeerRole::Media => &self.media,
                PeerRole::Notification => &self.notification,
            };
            match ServerName::try_from(name.clone()) {
                Ok(parsed @ ServerName::DnsName(_)) => Ok((role, parsed)),
                _ => Err(Error::invalid(
                    "tls.names",
                    format!("`{name}` is no DNS name"),
                )),
            }
        };
        let [a, b, c, d, e, f] = PeerRole::ALL.map(parse);
        Ok([a?, b?, c?, d?, e?, f?])
    }
}

// === impl Proven ===

impl Proven {
    fn add(&mut self, role: PeerRole) {
        self.0 |= 1 << role as u8;
    }

    /// Whether the peer is any role of the cluster.
    pub(crate) fn is_any(self) -> bool {
        self.0 != 0
    }

    /// Whether the peer is one of `roles`.
    pub(crate) fn is_one_of(self, roles: &[PeerRole]) -> bool {
        roles.iter().any(|role| self.0 & (1 << *role as u8) != 0)
    }
}

// === impl Tls ===

impl Tls {
    /// `certificates` is the process's own chain, leaf first; `key` its private key; `trust` the authorities whose certificates count:
    /// all PEM (RFC 7468). `InvalidRequest` names what can't be used.
    pub fn new(names: &RoleNames, certificates: &str, key: &str, trust: &str) -> Result<Self> {
        Ok(Self {
            names: Arc::new(names.parsed()?),
            current: Arc::new(RwLock::new(Arc::new(Current::read(
                certificates,
                key,
                trust,
            )?))),
        })
    }

    /// From the next connection on. What can't be used changes nothing.
    pub fn replace(&self, certificates: &str, key: &str, trust: &str) -> Result<()> {
        let current = Arc::new(Current::read(certificates, key, trust)?);
        *self.current.write() = current;
        Ok(())
    }

    fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.read().server.clone())
    }

    fn connector(&self) -> TlsConnector {
        TlsConnector::from(self.current.read().client.clone())
    }

    fn name_of(&self, role: PeerRole) -> ServerName<'static> {
        self.names[role as usize].1.clone()
    }

    /// The roles whose names are in a certificate that the handshake has verified.
    fn proven(&self, certificate: Option<&CertificateDer<'_>>) -> Proven {
        let mut proven = Proven::default();
        let Some(parsed) =
            certificate.and_then(|certificate| ParsedCertificate::try_from(certificate).ok())
        else {
            return proven;
        };
        for (role, name) in self.names.iter() {
            if rustls::client::verify_server_name(&parsed, name).is_ok() {
                proven.add(*role);
            }
        }
        proven
    }

    /// Connections to `listener`, each after its handshake. Ends when the stream is dropped.
    pub(crate) fn incoming(&self, listener: TcpListener) -> ReceiverStream<io::Result<Secured>> {
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(accept(self.clone(), listener, sender));
        ReceiverStream::new(receiver)
    }

    /// A connection to `address`, whose server has proved to be `role`.
    pub(crate) async fn connect(
        &self,
        host: &str,
        port: u16,
        role: PeerRole,
    ) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        let connected = self.connector().connect(self.name_of(role), stream).await?;
        Ok(connected.into())
    }
}

impl Current {
    fn read(certificates: &str, key: &str, trust: &str) -> Result<Self> {
        let chain: Vec<CertificateDer<'static>> = certificates_of(certificates, "tls.certificate")?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|_| Error::invalid("tls.key", "is no private key in PEM"))?;
        let mut roots = RootCertStore::empty();
        for authority in certificates_of(trust, "tls.trust")? {
            roots.add(authority).map_err(|error| {
                Error::invalid("tls.trust", "holds a certificate that is no authority's")
                    .caused_by(error)
            })?;
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(ring::default_provider());
        let unfit = |error: rustls::Error| {
            Error::invalid("tls.certificate", "doesn't fit its private key").caused_by(error)
        };
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(Error::internal)?
            .with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
                    .allow_unauthenticated()
                    .build()
                    .map_err(Error::internal)?,
            )
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(unfit)?;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(Error::internal)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(unfit)?;
        let h2 = vec![b"h2".to_vec()];
        server.alpn_protocols.clone_from(&h2);
        client.alpn_protocols = h2;
        // Every connection proves itself by what counts now: a resumed one would go by what counted then.
        server.send_tls13_tickets = 0;
        client.resumption = Resumption::disabled();
        Ok(Self {
            server: Arc::new(server),
            client: Arc::new(client),
        })
    }
}

fn certificates_of(pem: &str, field: &'static str) -> Result<Vec<CertificateDer<'static>>> {
    let found: std::result::Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(Error::invalid(field, "holds no certificates in PEM")),
    }
}

// === the server's side ===

async fn accept(tls: Tls, listener: TcpListener, sender: mpsc::Sender<io::Result<Secured>>) {
    let places = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            () = sender.closed() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "no connection could be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (tls, sender) = (tls.clone(), sender.clone());
        tokio::spawn(async move {
            let secured = tokio::time::timeout(HANDSHAKE_TIMEOUT, secure(&tls, stream, address));
            match secured.await {
                // Only a server that is stopping doesn't take it.
                Ok(Ok(secured)) => drop(sender.send(Ok(secured)).await),
                Ok(Err(error)) => {
                    tracing::debug!(%error, client.address = %address.ip(), "a TLS handshake failed");
                }
                Err(_elapsed) => {
                    tracing::debug!(client.address = %address.ip(), "a TLS handshake took too long");
                }
            }
            drop(place);
        });
    }
}

async fn secure(tls: &Tls, stream: TcpStream, address: SocketAddr) -> io::Result<Secured> {
    stream.set_nodelay(true)?;
    let stream = tls.acceptor().accept(stream).await?;
    let leaf = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(<[_]>::first);
    let peer = Peer {
        address,
        roles: tls.proven(leaf),
    };
    Ok(Secured { stream, peer })
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    pub(crate) roles: Proven,
}

/// A connection after its handshake.
pub(crate) struct Secured {
    stream: tokio_rustls::server::TlsStream<TcpStream>,
    peer: Peer,
}

impl Connected for Secured {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer
    }
}

impl AsyncRead for Secured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
