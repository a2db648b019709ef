//! Load generator for Carillon. It speaks only the public API, so that it measures what a client gets, and can measure anything that speaks it.
//!
//! `all` runs every scenario on the platform and, where it can, on a bare server of the same WebSocket library, and sets them side
//! by side. Exits with 1 when a scenario fails or a sanity check does not hold, with 2 when the command line makes no sense.
//!
//! It does not: test correctness beyond what makes its figures trustworthy, speak TLS, or spread over several machines.

mod bare;
mod checks;
mod frames;
mod machine;
mod pace;
mod pages;
mod peers;
mod progress;
mod report;
mod resident;
mod rest;
mod scenarios;
mod server;
mod town;
mod websocket;
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};

use bare::WriteMode;
use machine::Cores;
use progress::Progress;
use report::{Measurement, Report};
use scenarios::{Setting, answers, big, fanout, history, idle, sends, slow, storm};
use server::{Server, Subject};
use town::Town;

/// Load generator for Carillon
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Common {
    /// Keep started servers on the first core and this program on the others
    #[arg(long, global = true)]
    pin: bool,
    /// Threads of this program
    #[arg(long, global = true, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    client_threads: u16,
    /// Write the results to this file, as JSON
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Hold the lock (flock) of this file while figures are taken, where filling takes long: storm, slow, big, answers
    #[arg(long, global = true, value_name = "FILE")]
    lock: Option<PathBuf>,
    /// Show no progress
    #[arg(long, global = true)]
    quiet: bool,
    /// Seconds to wait for something that does not move, before giving up
    #[arg(long, global = true, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    patience: u64,
}

/// A platform to load.
#[derive(Args, Clone)]
struct PlatformArguments {
    /// A server that runs: http://host:port (its rate limits must be out of the way)
    #[arg(
        long,
        value_name = "URL",
        required_unless_present = "server",
        conflicts_with = "server"
    )]
    target: Option<String>,
    #[command(flatten)]
    details: PlatformDetails,
    /// A `carillon` binary to start for each scenario
    #[arg(long, value_name = "BINARY")]
    server: Option<PathBuf>,
}

/// A platform or the bare server.
#[derive(Args, Clone)]
struct SubjectArguments {
    /// A server that runs: http://host:port (its rate limits must be out of the way)
    #[arg(long, value_name = "URL", required_unless_present_any = ["server", "bare"], conflicts_with_all = ["server", "bare"])]
    target: Option<String>,
    #[command(flatten)]
    details: PlatformDetails,
    /// A `carillon` binary to start for the scenario
    #[arg(long, value_name = "BINARY", conflicts_with = "bare")]
    server: Option<PathBuf>,
    /// The bare server of this program
    #[arg(long, value_name = "MODE")]
    bare: Option<WriteMode>,
}

#[derive(Args, Clone)]
struct PlatformDetails {
    /// Process id of the running server, for its memory and CPU time; repeat for several
    #[arg(long, conflicts_with = "server")]
    pid: Vec<u32>,
    /// Where a started server keeps its data; a disk, if fsync shall mean something
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "target")]
    scratch: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Idle authenticated sockets: connect rate, memory per socket
    Idle {
        #[command(flatten)]
        subject: SubjectArguments,
        #[command(flatten)]
        options: idle::Options,
    },
    /// One room, many members: deliveries/s, latency at half load
    Fanout {
        #[command(flatten)]
        subject: SubjectArguments,
        #[command(flatten)]
        options: fanout::Options,
    },
    /// Persisted 1:1 sends of many pairs: acks/s, latency at half load
    Sends {
        #[command(flatten)]
        subject: SubjectArguments,
        #[command(flatten)]
        options: sends::Options,
    },
    /// Pages of 50 at random places of filled rooms
    History {
        #[command(flatten)]
        platform: PlatformArguments,
        #[command(flatten)]
        options: history::Options,
    },
    /// All sockets gone at once: time until everybody is back and caught up, latency of sends meanwhile
    Storm {
        #[command(flatten)]
        platform: PlatformArguments,
        #[command(flatten)]
        options: storm::Options,
    },
    /// Fan-out with members that read more slowly than they are sent to: what the others notice
    Slow {
        #[command(flatten)]
        platform: PlatformArguments,
        #[command(flatten)]
        options: slow::Options,
    },
    /// Long rooms, rooms of many members, people in many rooms: what they cost more than small ones
    Big {
        #[command(flatten)]
        platform: PlatformArguments,
        #[command(flatten)]
        options: big::Options,
    },
    /// A mix of requests at a fixed rate: latency per kind
    Answers {
        #[command(flatten)]
        platform: PlatformArguments,
        #[command(flatten)]
        options: answers::Options,
    },
    /// Idle and fan-out on a bare server, in both modes of writing
    Ceiling(SuiteArguments),
    /// Everything, on the platform and (idle and fan-out) on the bare server
    All {
        #[command(flatten)]
        platform: PlatformArguments,
        #[command(flatten)]
        suite: SuiteArguments,
        #[command(flatten)]
        store: StoreArguments,
    },
    /// Everything, on Carillon and on other chat servers
    Peers(peers::Arguments),
    /// Run the bare server until it is killed
    BareServer {
        /// Port on 127.0.0.1; 0 for any, which is printed
        #[arg(long, default_value_t = 0)]
        port: u16,
        /// How waiting frames are written
        #[arg(long, default_value = "joined")]
        mode: WriteMode,
    },
}

#[derive(Args, Clone)]
struct SuiteArguments {
    /// Idle sockets
    #[arg(long, default_value_t = 10_000)]
    sockets: usize,
    /// Seconds that they stay idle before memory is read
    #[arg(long, default_value_t = 20)]
    hold: u64,
    /// Members of the rooms
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1000])]
    members: Vec<usize>,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 8)]
    seconds: u64,
}

#[derive(Args, Clone)]
struct StoreArguments {
    /// Pairs of 1:1 sends
    #[arg(long, default_value_t = 100)]
    pairs: usize,
    /// Rooms that are filled with history
    #[arg(long, default_value_t = 4)]
    rooms: usize,
    /// Messages in each of them
    #[arg(long, default_value_t = 25_000)]
    history_messages: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.command {
        Command::BareServer { port, mode } => run_bare_server(port, mode).map(|()| true),
        command => measure(&arguments.common, command),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn runtime(threads: u16) -> Result<tokio::runtime::Runtime> {
    let mut builder = if threads == 1 {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    if threads > 1 {
        builder.worker_threads(usize::from(threads));
    }
    builder
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

fn run_bare_server(port: u16, mode: WriteMode) -> Result<()> {
    machine::raise_open_files();
    runtime(1)?.block_on(async {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port))
            .await
            .with_context(|| format!("cannot listen at 127.0.0.1:{port}"))?;
        println!("listening on {}", listener.local_addr()?);
        bare::serve(listener, mode).await
    })
}

/// Runs a command that measures; whether every check held.
fn measure(common: &Common, command: Command) -> Result<bool> {
    machine::raise_open_files();
    let plan = plan(command)?;
    let mut report = Report::new(notes(common, &plan));
    let cores = if common.pin {
        Cores::apart()?
    } else {
        Cores::shared()?
    };
    let progress = Progress::new(common.quiet);
    let outcome = runtime(common.client_threads)?.block_on(async {
        for step in &plan {
            // Dropping a step that is interrupted stops the servers that it started.
            let measurements = tokio::select! {
                measurements = run_step(step, common, &cores, &progress) => measurements?,
                interrupted = machine::interrupted() => return interrupted,
            };
            report.measurements.extend(measurements);
        }
        anyhow::Ok(())
    });
    progress.say("");
    // What was measured before a failure is worth showing.
    if !report.measurements.is_empty() {
        print!("{}", report.table());
    }
    if let Some(path) = &common.json {
        let json = serde_json::to_string_pretty(&report).context("cannot write JSON")?;
        std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    outcome?;
    Ok(report.failed_checks().is_empty())
}

/// A scenario on a server.
struct Step {
    subject: Subject,
    scenario: Scenario,
}

#[derive(Clone)]
enum Scenario {
    Idle(idle::Options),
    Fanout(fanout::Options),
    Sends(sends::Options),
    History(history::Options),
    Storm(storm::Options),
    Slow(slow::Options),
    Big(big::Options),
    Answers(answers::Options),
}

fn plan(command: Command) -> Result<Vec<Step>> {
    let one = |subject, scenario| Ok(vec![Step { subject, scenario }]);
    match command {
        Command::Idle { subject, options } => one(subject.subject()?, Scenario::Idle(options)),
        Command::Fanout { subject, options } => one(subject.subject()?, Scenario::Fanout(options)),
        Command::Sends { subject, options } => one(subject.subject()?, Scenario::Sends(options)),
        Command::History { platform, options } => {
            one(platform.subject()?, Scenario::History(options))
        }
        Command::Storm { platform, options } => one(platform.subject()?, Scenario::Storm(options)),
        Command::Slow { platform, options } => one(platform.subject()?, Scenario::Slow(options)),
        Command::Big { platform, options } => one(platform.subject()?, Scenario::Big(options)),
        Command::Answers { platform, options } => {
            one(platform.subject()?, Scenario::Answers(options))
        }
        Command::Ceiling(suite) => Ok(suite.on_each(&bare_servers())),
        Command::All {
            platform,
            suite,
            store,
        } => {
            let platform = platform.subject()?;
            let mut subjects = vec![platform.clone()];
            subjects.extend(bare_servers());
            let mut steps = suite.on_each(&subjects);
            steps.extend(store.scenarios(suite.seconds).map(|scenario| Step {
                subject: platform.clone(),
                scenario,
            }));
            Ok(steps)
        }
        Command::Peers(arguments) => arguments.plan(),
        Command::BareServer { .. } => Ok(Vec::new()),
    }
}

const CONTENT_BYTES: usize = 100;

fn bare_servers() -> [Subject; 2] {
    [
        Subject::Bare(WriteMode::PerMessage),
        Subject::Bare(WriteMode::Joined),
    ]
}

/// Runs a scenario on a server of its own (unless it runs already) and stops the server.
async fn run_step(
    step: &Step,
    common: &Common,
    cores: &Cores,
    progress: &Progress,
) -> Result<Vec<Measurement>> {
    let name = step.subject.name();
    progress.say(&format!("{}: {}", step.scenario.name(), name));
    let mut server = step.subject.start(cores).await?;
    let town = Arc::new(Town::new(&server, Duration::from_secs(common.patience)));
    let mut tokens = Vec::new();
    if let Scenario::Idle(options) = &step.scenario {
        let prepared = idle::prepare(&town, progress, options).await;
        tokens = prepared.with_context(|| explain(step, &server))?;
        server.restart(cores).await?;
    }
    let pids = server.all_pids();
    let memory_pids = server.pids.clone();
    let setting = Setting {
        subject: &name,
        pids: &pids,
        memory_pids: &memory_pids,
        progress,
        lock: common.lock.as_deref(),
    };
    let outcome = match &step.scenario {
        Scenario::Storm(options) => storm::run(town, &setting, options, &mut server, cores)
            .await
            .map(|measurement| vec![measurement]),
        scenario => run_scenario(scenario, town, &setting, tokens).await,
    };
    let measurements = outcome.with_context(|| explain(step, &server))?;
    server.stop().await?;
    Ok(measurements)
}

fn explain(step: &Step, server: &Server) -> String {
    let (scenario, subject) = (step.scenario.name(), step.subject.name());
    format!("{scenario} on {subject} failed{}", server.log())
}

/// `tokens`: of the idle scenario.
async fn run_scenario(
    scenario: &Scenario,
    town: Arc<Town>,
    setting: &Setting<'_>,
    tokens: Vec<String>,
) -> Result<Vec<Measurement>> {
    Ok(match scenario {
        Scenario::Idle(options) => vec![idle::run(town, setting, options, tokens).await?],
        Scenario::Sends(options) => vec![sends::run(town, setting, options).await?],
        Scenario::History(options) => vec![history::run(town, setting, options).await?],
        Scenario::Fanout(options) => {
            let mut measurements = Vec::new();
            for members in &options.members {
                measurements.push(fanout::run(town.clone(), setting, options, *members).await?);
            }
            measurements
        }
        Scenario::Slow(options) => vec![slow::run(town, setting, options).await?],
        Scenario::Big(options) => big::run(town, setting, options).await?,
        Scenario::Answers(options) => vec![answers::run(town, setting, options).await?],
        Scenario::Storm(_) => bail!("a storm needs the server itself"),
    })
}

/// What a reader of the figures must know. Looks at the cores before any pinning.
fn notes(common: &Common, plan: &[Step]) -> Vec<String> {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let placement = if common.pin {
        "started servers on the first core, client on the others"
    } else {
        "client and server share all cores"
    };
    let mut notes = vec![format!(
        "client on the same machine: {cores} cores, {placement}, {} client thread(s)",
        common.client_threads
    )];
    for step in plan {
        let mut more = Vec::new();
        match &step.subject {
            Subject::Started { scratch, .. } => {
                more.push(format!("carillon: {}", server::CHAT_CLUSTER_NOTE));
                if machine::is_in_memory(scratch) {
                    more.push(format!(
                        "carillon: {} is in memory, so fsync costs nothing: sends/s are too good",
                        scratch.display()
                    ));
                }
            }
            Subject::Running { pids, .. } if pids.is_empty() => {
                more.push("carillon: no --pid, so no figures for memory and CPU".to_owned());
            }
            Subject::Running { .. } if matches!(step.scenario, Scenario::Idle(_)) => more.push(
                "carillon: not started here, so memory freed after earlier work may hide a part of the KiB per socket"
                    .to_owned(),
            ),
            Subject::Peer(peer, _) => more.extend(peer.notes()),
            _ => {}
        }
        for note in more {
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
    }
    notes
}

// === impl Scenario ===

impl Scenario {
    fn name(&self) -> &'static str {
        match self {
            Self::Idle(_) => "idle",
            Self::Fanout(_) => "fanout",
            Self::Sends(_) => "sends",
            Self::History(_) => "history",
            Self::Storm(_) => "storm",
            Self::Slow(_) => "slow",
            Self::Big(_) => "big",
            Self::Answers(_) => "answers",
        }
    }
}

// === impl SuiteArguments ===

impl SuiteArguments {
    /// Idle and fan-out.
    fn scenarios(&self) -> [Scenario; 2] {
        [
            Scenario::Idle(idle::Options {
                sockets: self.sockets,
                devices_per_user: 10,
                hold: self.hold,
            }),
            Scenario::Fanout(fanout::Options {
                members: self.members.clone(),
                senders: 4,
                windows: vec![16, 64, 128],
                seconds: self.seconds,
                same_load: fanout::SAME_LOAD,
                content_bytes: CONTENT_BYTES,
                messages: None,
            }),
        ]
    }

    /// Idle and fan-out on each of the servers.
    fn on_each(&self, subjects: &[Subject]) -> Vec<Step> {
        self.scenarios()
            .iter()
            .flat_map(|scenario| {
                subjects.iter().map(|subject| Step {
                    subject: subject.clone(),
                    scenario: scenario.clone(),
                })
            })
            .collect()
    }
}

// === impl StoreArguments ===

impl StoreArguments {
    /// Sends and history.
    fn scenarios(&self, seconds: u64) -> [Scenario; 2] {
        [
            Scenario::Sends(sends::Options {
                pairs: self.pairs,
                windows: vec![1, 8],
                seconds,
                same_load: sends::SAME_LOAD,
                content_bytes: CONTENT_BYTES,
            }),
            Scenario::History(history::Options {
                rooms: self.rooms,
                messages: self.history_messages,
                connections: 32,
                rate: 1_000.0,
                seconds,
                content_bytes: CONTENT_BYTES,
            }),
        ]
    }
}

// === impl PlatformArguments, SubjectArguments ===

impl PlatformArguments {
    fn subject(self) -> Result<Subject> {
        SubjectArguments {
            target: self.target,
            details: self.details,
            server: self.server,
            bare: None,
        }
        .subject()
    }
}

impl SubjectArguments {
    fn subject(self) -> Result<Subject> {
        ensure!(
            self.bare.is_none() || (self.details.pid.is_empty() && self.details.scratch.is_none()),
            "--pid and --scratch mean nothing to a bare server"
        );
        match (self.target, self.server, self.bare) {
            (Some(target), _, _) => Subject::running(&target, self.details.pid),
            (_, Some(binary), _) => Ok(Subject::Started {
                binary,
                scratch: self.details.scratch.unwrap_or_else(std::env::temp_dir),
            }),
            (_, _, mode) => Ok(Subject::Bare(mode.context("no server was named")?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_says_one_server_and_its_details() {
        let accepts = |line: &str| {
            let words = std::iter::once("carillon-bench").chain(line.split(' '));
            Arguments::try_parse_from(words).is_ok()
        };
        for line in [
            "idle --bare joined",
            "idle --target http://127.0.0.1:1 --pid 1 --pid 2",
            "sends --server carillon --scratch /tmp --pin",
            "history --target http://127.0.0.1:1",
            "all --server carillon --json out",
            "fanout --bare per-message --members 1,2",
            "ceiling",
            "peers --server carillon --peers nats,go-hub --scenarios idle,sends --pin",
        ] {
            assert!(accepts(line), "{line}");
        }
        for line in [
            "idle",
            "all",
            "idle --target http://127.0.0.1:1 --bare joined",
            "idle --target http://127.0.0.1:1 --server carillon",
            "idle --bare joined --server carillon",
            "idle --server carillon --pid 1",
            "history --bare joined",
            "fanout --bare sideways",
            "peers",
            "peers --server carillon --peers nobody",
        ] {
            assert!(!accepts(line), "{line}");
        }
    }
}
