//! A TCP proxy between the roles and a store, whose network a test can cut, stall and slow down.
//!
//! It knows nothing of the protocols that pass through it, and keeps nothing.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp},
    sync::watch,
    task::JoinHandle,
};

/// What the network does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Passes everything on.
    Whole,
    /// Open connections end, new ones end at once: what a client sees of a store that is gone.
    Cut,
    /// Connections stay, nothing passes: what a client sees of a partition.
    Stalled,
    /// Each piece waits this long before it passes.
    Slow(Duration),
}

/// A proxy on a port of its own, until it is dropped.
pub struct Proxy {
    /// `host:port`, on the target's host.
    pub address: String,
    network: watch::Sender<Network>,
    target: watch::Sender<String>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Forwards to `target` (`host:port`).
    pub async fn start(target: &str) -> Result<Self> {
        // At the target's own host: a driver takes a node's address from the node, and the port from where it dialled.
        let (host, _) = target.rsplit_once(':').context("host:port")?;
        let listener = TcpListener::bind((host, 0)).await?;
        let address = listener.local_addr()?.to_string();
        let (network, state) = watch::channel(Network::Whole);
        let (target, targets) = watch::channel(target.to_owned());
        let task = tokio::spawn(async move {
            // Connections end with the proxy.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((client, _)) = accepted else { return };
                        let target = targets.borrow().clone();
                        connections.spawn(connect(client, target, state.clone()));
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Self {
            address,
            network,
            target,
            task,
        })
    }

    /// Changes the network, for open connections too.
    pub fn set(&self, network: Network) {
        self.network.send_replace(network);
    }

    /// Forwards new connections elsewhere; open ones end with the server that they reach.
    pub fn point_to(&self, target: &str) {
        self.target.send_replace(target.to_owned());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn connect(client: TcpStream, target: String, mut state: watch::Receiver<Network>) {
    if cut(&mut state).await.is_err() || client.set_nodelay(true).is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect(&target).await else {
        return;
    };
    let _ = server.set_nodelay(true);
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    // The first direction that ends ends both: half-closed connections mean nothing to these protocols.
    let _ = tokio::select! {
        ended = forward(client_reads, server_writes, state.clone()) => ended,
        ended = forward(server_reads, client_writes, state) => ended,
    };
}

/// Fails when the network is cut now.
async fn cut(state: &mut watch::Receiver<Network>) -> Result<()> {
    state
        .wait_for(|network| *network != Network::Stalled)
        .await
        .context("the proxy is gone")
        .and_then(|network| match *network {
            Network::Cut => anyhow::bail!("cut"),
            _ => Ok(()),
        })
}

async fn forward(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    mut state: watch::Receiver<Network>,
) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read?,
            cut = watch_for_cut(state.clone()) => return cut,
        };
        if read == 0 {
            return Ok(());
        }
        cut(&mut state).await?;
        let network = *state.borrow();
        if let Network::Slow(delay) = network {
            tokio::time::sleep(delay).await;
        }
        tokio::select! {
            written = to.write_all(&buffer[..read]) => written?,
            cut = watch_for_cut(state.clone()) => return cut,
        }
    }
}

/// Ends when the network is cut.
async fn watch_for_cut(mut state: watch::Receiver<Network>) -> Result<()> {
    let _ = state.wait_for(|network| *network == Network::Cut).await;
    anyhow::bail!("cut")
}
