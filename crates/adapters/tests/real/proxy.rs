//! A TCP proxy that can cut its connections, as a network does.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

pub struct Proxy {
    address: SocketAddr,
    connections: Arc<Mutex<JoinSet<()>>>,
    frozen: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// In front of `host:port`.
    pub async fn start(target: String) -> Self {
        // At the target's own host: a driver takes a node's address from the node, and the port from where it dialled.
        let (host, _) = target.rsplit_once(':').expect("host:port");
        let listener = TcpListener::bind((host, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections: Arc<Mutex<JoinSet<()>>> = Arc::default();
        let (frozen, thaw) = watch::channel(false);
        let accepting = tokio::spawn({
            let connections = connections.clone();
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let (target, thaw) = (target.clone(), thaw.clone());
                    let connection = async move {
                        if let Ok(server) = TcpStream::connect(&target).await {
                            let (from_client, to_client) = client.into_split();
                            let (from_server, to_server) = server.into_split();
                            tokio::select! {
                                () = forward(from_client, to_server, thaw.clone()) => {}
                                () = forward(from_server, to_client, thaw) => {}
                            }
                        }
                    };
                    connections.lock().unwrap().spawn(connection);
                }
            }
        });
        Self {
            address,
            connections,
            frozen,
            accepting,
        }
    }

    /// The URL of a server with this proxy's address in place of its own, and the server's address.
    pub async fn before(url: &str) -> (Self, String) {
        let (scheme, rest) = url.split_once("://").unwrap();
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let (login, target) = match authority.rsplit_once('@') {
            Some((login, target)) => (format!("{login}@"), target),
            None => (String::new(), authority),
        };
        let proxy = Self::start(target.to_owned()).await;
        let url = format!("{scheme}://{login}{}{path}", proxy.address);
        (proxy, url)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends every connection; new ones are taken.
    pub fn cut(&self) {
        self.connections.lock().unwrap().abort_all();
    }

    /// Lets no byte through, and ends nothing.
    pub fn freeze(&self) {
        self.frozen.send_replace(true);
    }

    /// Goes on.
    pub fn thaw(&self) {
        self.frozen.send_replace(false);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn forward(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut frozen: watch::Receiver<bool>,
) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if frozen.wait_for(|frozen| !frozen).await.is_err()
            || to.write_all(&buffer[..count]).await.is_err()
        {
            return;
        }
    }
}
