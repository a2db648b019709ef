//! Other chat servers, measured in the same run by the same scenarios. `bench/peers/install` puts them in place; each is started for a scenario
//! and stopped after it, in a temporary directory and on free ports.
//!
//! Not here: what they speak (see [`crate::wire`]), and what a scenario does.

mod plan;
pub mod postgres;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::machine::Cores;
use crate::server::{Server, free_addresses};
use crate::wire::Wire;
pub use plan::Arguments;
use postgres::Postgres;

/// A server that is not Carillon.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Peer {
    /// Go and PostgreSQL, as teams write it: a transaction per message, a write per delivery
    GoHub,
    /// The same with inserts that wait joined into one, and frames that wait joined into one write
    GoHubCareful,
    /// nats-server with JetStream
    Nats,
    /// socket.io on Node.js, and PostgreSQL
    #[value(name = "socketio")]
    SocketIo,
}

/// Where peers are installed, and where they keep their data.
#[derive(Clone, Debug)]
pub struct Place {
    /// A directory with an entry per peer.
    pub installed: PathBuf,
    /// Under which directory data goes.
    pub scratch: PathBuf,
}

// === impl Peer ===

impl Peer {
    /// The column in the result table.
    pub fn name(self) -> &'static str {
        match self {
            Self::GoHub => "go-hub",
            Self::GoHubCareful => "go-hub, careful",
            Self::Nats => "nats",
            Self::SocketIo => "socket.io",
        }
    }

    /// What a reader of the figures must know.
    pub fn notes(self) -> Vec<String> {
        let own = match self {
            Self::GoHub => {
                "a transaction per message, committed before the message is delivered or acknowledged; a write per delivery"
            }
            Self::GoHubCareful => {
                "as go-hub, but messages that wait are inserted together, and frames that wait for a socket are written together"
            }
            Self::Nats => {
                "a file stream per room, delivered after it is stored, without fsync per message (its default); one token for all, no members, no retries by id"
            }
            Self::SocketIo => {
                "a transaction per message, committed before the message is delivered or acknowledged"
            }
        };
        let mut notes = vec![format!("{}: {own}", self.name())];
        if self.programs().contains(&POSTGRES) {
            notes.push(postgres::NOTE.to_owned());
        }
        notes
    }

    /// What must be there, beside each other in [`Place::installed`].
    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::GoHub | Self::GoHubCareful => &["go-hub/go-hub", POSTGRES],
            Self::Nats => &["nats/nats-server"],
            Self::SocketIo => &["socketio/node_modules/socket.io/package.json", POSTGRES],
        }
    }

    /// What of it is missing.
    pub fn missing(self, installed: &Path) -> Option<PathBuf> {
        self.programs()
            .iter()
            .map(|program| installed.join(program))
            .find(|path| !path.exists())
    }

    /// Starts it.
    pub async fn start(self, place: &Place, cores: &Cores) -> Result<Server> {
        let directory = tempfile::Builder::new()
            .prefix("carillon-bench-")
            .tempdir_in(&place.scratch)
            .with_context(|| {
                format!("cannot make a directory under {}", place.scratch.display())
            })?;
        match self {
            Self::GoHub | Self::GoHubCareful => {
                let mut command = Command::new(place.installed.join("go-hub/go-hub"));
                if self == Self::GoHubCareful {
                    command.arg("-careful");
                }
                start_on_postgres(Wire::Carillon, command, place, directory, cores).await
            }
            Self::SocketIo => {
                let mut command = Command::new("node");
                command
                    .env("NODE_ENV", "production")
                    .arg(place.installed.join("socketio/main.js"));
                start_on_postgres(Wire::SocketIo, command, place, directory, cores).await
            }
            Self::Nats => start_nats(place, directory, cores).await,
        }
    }
}

const POSTGRES: &str = "postgresql/postgres";

/// Our own peers take the same environment: `LISTEN`, `DATABASE_URL`, `HUB_SECRET`.
async fn start_on_postgres(
    wire: Wire,
    mut command: Command,
    place: &Place,
    directory: TempDir,
    cores: &Cores,
) -> Result<Server> {
    // Its own user may not be allowed to enter the folder of the link.
    let programs = fs::canonicalize(place.installed.join("postgresql"))
        .context("cannot find PostgreSQL's programs")?;
    let store = Postgres::start(&programs, &place.scratch, cores).await?;
    let [address] = free_addresses()?;
    command
        .env("LISTEN", address.to_string())
        .env("DATABASE_URL", store.url())
        .env("HUB_SECRET", format!("{:032x}", rand::random::<u128>()));
    log_to(&mut command, &directory)?;
    Server::launch(wire, address, command, Some(directory), Some(store), cores).await
}

async fn start_nats(place: &Place, directory: TempDir, cores: &Cores) -> Result<Server> {
    let [address] = free_addresses()?;
    let token = format!("{:032x}", rand::random::<u128>());
    let data = directory.path().join("data");
    let file = directory.path().join("nats.conf");
    let configuration = format!(
        "listen: \"{address}\"\nauthorization {{ token: \"{token}\" }}\njetstream {{ store_dir: \"{}\", max_file_store: 20GB }}\n",
        data.display()
    );
    fs::write(&file, configuration).context("cannot write the configuration of NATS")?;
    let mut command = Command::new(place.installed.join("nats/nats-server"));
    command.arg("--config").arg(&file);
    log_to(&mut command, &directory)?;
    let mut server =
        Server::launch(Wire::Nats, address, command, Some(directory), None, cores).await?;
    server.shared_token = token;
    Ok(server)
}

fn log_to(command: &mut Command, directory: &TempDir) -> Result<()> {
    let log =
        fs::File::create(directory.path().join("log")).context("cannot make the server's log")?;
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("cannot share the server's log")?)
        .stderr(log);
    Ok(())
}
