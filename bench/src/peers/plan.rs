//! The command `peers`: which peers, which scenarios, in which order.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use super::{Peer, Place};
use crate::server::Subject;
use crate::{Scenario, Step, StoreArguments, SuiteArguments};

/// Carillon and other chat servers, side by side.
#[derive(clap::Args, Clone)]
pub struct Arguments {
    /// A `carillon` binary to start for each scenario
    #[arg(long, value_name = "BINARY")]
    server: PathBuf,
    /// Where started servers keep their data; a disk, if fsync shall mean something
    #[arg(long, value_name = "DIRECTORY")]
    scratch: Option<PathBuf>,
    /// The peers to measure
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Peer::value_variants().to_vec())]
    peers: Vec<Peer>,
    /// Where `bench/peers/install` put them [default: peers in the cache folder]
    #[arg(long, value_name = "DIRECTORY")]
    installed: Option<PathBuf>,
    /// The scenarios to run
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Kind::value_variants().to_vec())]
    scenarios: Vec<Kind>,
    #[command(flatten)]
    suite: SuiteArguments,
    #[command(flatten)]
    store: StoreArguments,
}

/// A scenario that peers can run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Kind {
    Idle,
    Fanout,
    Sends,
    History,
}

// === impl Arguments ===

impl Arguments {
    /// Every scenario on Carillon, then on each peer. A peer that was asked for and is not installed is an error.
    pub fn plan(self) -> Result<Vec<Step>> {
        let place = Place {
            installed: match self.installed {
                Some(directory) => directory,
                None => default_place()?,
            },
            scratch: self.scratch.unwrap_or_else(std::env::temp_dir),
        };
        ensure!(!self.peers.is_empty(), "--peers names no peer");
        let mut missing = Vec::new();
        for peer in &self.peers {
            if let Some(path) = peer.missing(&place.installed) {
                missing.push(format!("{} ({} is not there)", peer.name(), path.display()));
            }
        }
        if !missing.is_empty() {
            bail!(
                "not installed: {}; run bench/peers/install, or leave them out with --peers",
                missing.join(", ")
            );
        }
        let mut steps = Vec::new();
        let scenarios = self.suite.scenarios().into_iter();
        for scenario in scenarios.chain(self.store.scenarios(self.suite.seconds)) {
            let Some(kind) = Kind::of(&scenario).filter(|kind| self.scenarios.contains(kind))
            else {
                continue;
            };
            steps.push(Step {
                subject: Subject::Started {
                    binary: self.server.clone(),
                    scratch: place.scratch.clone(),
                },
                scenario: scenario.clone(),
            });
            for peer in self.peers.iter().filter(|peer| kind.suits(**peer)) {
                steps.push(Step {
                    subject: Subject::Peer(*peer, place.clone()),
                    scenario: scenario.clone(),
                });
            }
        }
        Ok(steps)
    }
}

/// As in the testbed's scripts: `$CARILLON_CACHE`, else `carillon` in the user's cache folder.
fn default_place() -> Result<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = folder("CARILLON_CACHE")
        .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("carillon")))
        .or_else(|| folder("HOME").map(|home| home.join(".cache/carillon")))
        .context("HOME is not set: say with --installed where the peers are")?;
    Ok(cache.join("peers"))
}

// === impl Kind ===

impl Kind {
    /// None for what peers have no counterpart of: resuming, lists of rooms, read marks.
    fn of(scenario: &Scenario) -> Option<Self> {
        match scenario {
            Scenario::Idle(_) => Some(Self::Idle),
            Scenario::Fanout(_) => Some(Self::Fanout),
            Scenario::Sends(_) => Some(Self::Sends),
            Scenario::History(_) => Some(Self::History),
            Scenario::Storm(_) | Scenario::Slow(_) | Scenario::Big(_) | Scenario::Answers(_) => {
                None
            }
        }
    }

    /// The careful hub idles and reads as the plain one does.
    fn suits(self, peer: Peer) -> bool {
        peer != Peer::GoHubCareful || matches!(self, Self::Fanout | Self::Sends)
    }
}
