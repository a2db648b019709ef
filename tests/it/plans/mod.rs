//! Random plans: a crowd of people chats while processes, stores and networks fail; then everything that they were told is
//! checked against the rooms.
//!
//! A short run with a few seeds is part of every suite. The environment asks for more:
//!
//! | variable | |
//! |---|---|
//! | `CARILLON_PLAN_SEEDS` | `FIRST..LAST`: these seeds instead of the suite's |
//! | `CARILLON_PLAN_FAULTS` | faults of each plan, instead of the suite's |
//! | `CARILLON_PLAN` | a saved plan to run instead of random ones |
//!
//! With several CQL nodes in `CARILLON_TEST_SCYLLA`, and seeds that were asked for, the plans also break single nodes and RabbitMQ,
//! through `testbed/stores`: nobody else may use those stores meanwhile.
//!
//! A plan that fails is saved under the target folder, and the error says where.

mod checker;
mod crowd;
mod plan;

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Mutex,
    task::JoinSet,
};

use self::{
    crowd::{Crowd, History, Mishap},
    plan::{Breakable, Fault, Plan},
};
use crate::world::{
    platform::{QUICK, RealCluster, RealOptions, Role, Up},
    process::free_port,
    proxy::{Network, Proxy},
    servers,
};

/// A process that a plan may break.
enum Victim {
    Up(Box<Up>),
    Role(Box<Role>, PathBuf),
    /// One of the testbed's stores.
    Store(TestbedStore),
}

/// A store that `testbed/stores` runs.
struct TestbedStore {
    script: PathBuf,
    name: String,
    /// Only one of the stores that share this is broken at a time: a minority.
    alone: Arc<Mutex<()>>,
}

impl TestbedStore {
    fn does(&self, verb: &str) -> Result<()> {
        let output = Command::new(&self.script)
            .args([verb, &self.name])
            .output()?;
        anyhow::ensure!(
            output.status.success(),
            "testbed/stores {verb} {}: {}",
            self.name,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

impl Victim {
    async fn pause(&self, time: Duration) -> Result<()> {
        match self {
            Self::Up(up) => {
                up.process.signal("STOP");
                tokio::time::sleep(time).await;
                up.process.signal("CONT");
            }
            Self::Role(role, _) => {
                role.process.signal("STOP");
                tokio::time::sleep(time).await;
                role.process.signal("CONT");
            }
            Self::Store(store) => {
                let _alone = store.alone.lock().await;
                store.does("pause")?;
                tokio::time::sleep(time).await;
                store.does("resume")?;
            }
        }
        Ok(())
    }

    async fn kill(&mut self) -> Result<()> {
        match self {
            Self::Up(up) => up.kill_and_restart().await,
            Self::Role(role, directory) => {
                role.process.kill();
                role.restart(directory).await
            }
            Self::Store(store) => {
                let _alone = store.alone.lock().await;
                tokio::task::block_in_place(|| store.does("restart"))
            }
        }
    }

    /// Killed in the middle of a write: half a record stands at the journal's end.
    async fn tear(&mut self) -> Result<()> {
        let Self::Up(up) = self else {
            bail!("only embedded stores have a journal");
        };
        up.process.kill();
        if let Some(journal) = newest_journal(&up.directory.path().join("data"))? {
            fs::File::options()
                .append(true)
                .open(journal)?
                .write_all(&[0xa5; 23])?;
        }
        up.restart().await
    }
}

fn newest_journal(directory: &Path) -> Result<Option<PathBuf>> {
    let mut newest = None;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let found = if entry.file_type()?.is_dir() {
            newest_journal(&entry.path())?
        } else if entry.path().extension().is_some_and(|e| e == "jnl") {
            Some(entry.path())
        } else {
            None
        };
        if let Some(found) = found {
            let changed = fs::metadata(&found)?.modified()?;
            if newest.as_ref().is_none_or(|(time, _)| changed > *time) {
                newest = Some((changed, found));
            }
        }
    }
    Ok(newest.map(|(_, path)| path))
}

/// A Redis of a plan's own, so that nobody else's is flushed.
struct OwnRedis {
    child: Child,
    address: String,
    _directory: tempfile::TempDir,
}

impl OwnRedis {
    fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let port = free_port();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(directory.path())
            .stdout(Stdio::null())
            .spawn()
            .context("starting redis-server; `testbed/install packages` brings it")?;
        Ok(Self {
            child,
            address: format!("127.0.0.1:{port}"),
            _directory: directory,
        })
    }
}

impl Drop for OwnRedis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn flush(address: &str) -> Result<()> {
    let mut redis = TcpStream::connect(address).await?;
    redis.write_all(b"FLUSHALL\r\n").await?;
    let mut answer = [0; 3];
    redis.read_exact(&mut answer).await?;
    anyhow::ensure!(&answer == b"+OK", "FLUSHALL was refused");
    Ok(())
}

/// A platform to break.
struct Town {
    bases: Vec<String>,
    victims: BTreeMap<String, Arc<Mutex<Victim>>>,
    networks: BTreeMap<String, Arc<Mutex<Proxy>>>,
    redis: Option<OwnRedis>,
    lease: Duration,
    /// Holds what runs in the background, until the end.
    _cluster: Option<RealCluster>,
}

impl Town {
    async fn embedded() -> Result<Self> {
        let up = Up::start(QUICK).await?;
        Ok(Self {
            bases: vec![up.base.clone()],
            victims: BTreeMap::from([(
                "carillon".to_owned(),
                Arc::new(Mutex::new(Victim::Up(Box::new(up)))),
            )]),
            networks: BTreeMap::new(),
            redis: None,
            lease: Duration::from_secs(1),
            _cluster: None,
        })
    }

    async fn real(servers: &servers::Servers) -> Result<Self> {
        let redis = OwnRedis::start()?;
        let servers = servers::Servers {
            redis: format!("redis://{}", redis.address),
            ..servers.clone()
        };
        let (servers, networks) = servers.behind_proxies().await?;
        let options = RealOptions {
            gateways: 2,
            messages: 3,
            spec: QUICK.into(),
            ..Default::default()
        };
        let mut cluster = RealCluster::start(&servers, &options).await?;
        let directory = cluster.directory.path().to_owned();
        let bases = cluster.gateways.iter().map(|g| g.base.clone()).collect();
        let mut victims = BTreeMap::new();
        for (kind, roles) in [
            ("gateway", std::mem::take(&mut cluster.gateways)),
            ("message", std::mem::take(&mut cluster.messages)),
        ] {
            for (n, role) in roles.into_iter().enumerate() {
                let victim = Victim::Role(Box::new(role), directory.clone());
                victims.insert(format!("{kind}-{n}"), Arc::new(Mutex::new(victim)));
            }
        }
        for store in own_stores(&servers) {
            let name = store.name.clone();
            victims.insert(name, Arc::new(Mutex::new(Victim::Store(store))));
        }
        let networks = [
            ("redis", Some(networks.redis)),
            ("scylla", networks.scylla),
            ("rabbitmq", Some(networks.rabbitmq)),
        ];
        Ok(Self {
            bases,
            victims,
            networks: networks
                .into_iter()
                .filter_map(|(name, proxy)| Some((name.to_owned(), Arc::new(Mutex::new(proxy?)))))
                .collect(),
            redis: Some(redis),
            lease: Duration::from_secs(3),
            _cluster: Some(cluster),
        })
    }

    fn breakable(&self) -> Breakable {
        let names = |names: std::collections::btree_map::Keys<String, _>| names.cloned().collect();
        let embedded = self.networks.is_empty();
        Breakable {
            processes: self.victims.keys().cloned().collect(),
            networks: names(self.networks.keys()),
            flushable: self.redis.iter().map(|_| "redis".to_owned()).collect(),
            tearable: match embedded {
                true => self.victims.keys().cloned().collect(),
                false => Vec::new(),
            },
            lease: self.lease,
        }
    }
}

/// What a plan showed.
struct Outcome {
    history: History,
    faults: usize,
}

/// Runs a plan against a platform, and checks everything.
async fn run(town: &Town, plan: &Plan) -> Result<Outcome> {
    let mut crowd = Crowd::start(plan, &town.bases).await?;
    let started = Instant::now();
    let mut under_way: JoinSet<Result<()>> = JoinSet::new();
    for step in &plan.steps {
        tokio::time::sleep_until((started + step.at).into()).await;
        crowd.first_failure()?;
        while let Some(done) = under_way.try_join_next() {
            done??;
        }
        inject(town, &crowd, &step.fault, &mut under_way)
            .with_context(|| step.fault.to_string())?;
    }
    while let Some(done) = under_way.join_next().await {
        done??;
    }
    // What was held up gets through before the end.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let rooms = crowd.rooms.clone();
    let (mut devices, history) = crowd.finish().await?;

    let base = &town.bases[0];
    let mut logs = Vec::new();
    for room in &rooms {
        logs.push(read_log_patiently(&devices[0].me, base, room).await?);
    }
    let heads: BTreeMap<String, u64> = rooms
        .iter()
        .zip(&logs)
        .map(|(room, log)| (room.clone(), log.len() as u64))
        .collect();
    for device in &mut devices {
        device.settle(&heads).await?;
    }
    checker::check(base, &rooms, &logs, &devices, &history).await?;
    Ok(Outcome {
        history,
        faults: plan.steps.len(),
    })
}

/// Right after the last fault a store may still be coming back.
async fn read_log_patiently(
    person: &crate::world::client::Person,
    base: &str,
    room: &str,
) -> Result<BTreeMap<u64, serde_json::Value>> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match checker::read_log(person, base, room).await {
            Ok(log) => return Ok(log),
            Err(error) if Instant::now() > deadline || error.to_string().contains("place") => {
                return Err(error);
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

fn inject(
    town: &Town,
    crowd: &Crowd,
    fault: &Fault,
    under_way: &mut JoinSet<Result<()>>,
) -> Result<()> {
    let victim = |name: &str| {
        let found = town.victims.get(name).cloned();
        found.with_context(|| format!("no process is called {name}"))
    };
    let mut network = |name: &str, state: Network, time: Duration| -> Result<()> {
        let proxy = town.networks.get(name).cloned();
        let proxy = proxy.with_context(|| format!("no store is called {name}"))?;
        under_way.spawn(async move {
            let proxy = proxy.lock().await;
            proxy.set(state);
            tokio::time::sleep(time).await;
            proxy.set(Network::Whole);
            Ok(())
        });
        Ok(())
    };
    match fault {
        Fault::Drop(person, device) => crowd.befall(*person, *device, Mishap::Drop),
        Fault::Lag(person, device, time) => crowd.befall(*person, *device, Mishap::Lag(*time)),
        Fault::Cut(name, time) => network(name, Network::Cut, *time)?,
        Fault::Stall(name, time) => network(name, Network::Stalled, *time)?,
        Fault::Slow(name, time) => network(name, Network::Slow(Duration::from_millis(30)), *time)?,
        Fault::Kill(name) => {
            let victim = victim(name)?;
            under_way.spawn(async move { victim.lock().await.kill().await });
        }
        Fault::Tear(name) => {
            let victim = victim(name)?;
            under_way.spawn(async move { victim.lock().await.tear().await });
        }
        Fault::Pause(name, time) => {
            let (victim, time) = (victim(name)?, *time);
            under_way.spawn(async move { victim.lock().await.pause(time).await });
        }
        Fault::Flush(_) => {
            let redis = town.redis.as_ref().context("no Redis to flush")?;
            let address = redis.address.clone();
            under_way.spawn(async move { flush(&address).await });
        }
    }
    Ok(())
}

/// The testbed's stores that a long run may break: none without several CQL nodes, or when others may be using them.
fn own_stores(servers: &servers::Servers) -> Vec<TestbedStore> {
    let asked = std::env::var_os("CARILLON_PLAN_SEEDS").is_some();
    let nodes = servers.nodes().len();
    let Some(testbed) = std::env::var_os("CARILLON_TEST_TESTBED").filter(|_| asked && nodes > 1)
    else {
        return Vec::new();
    };
    let script = PathBuf::from(testbed).join("stores");
    let store = |name: String, alone: &Arc<Mutex<()>>| TestbedStore {
        script: script.clone(),
        name,
        alone: alone.clone(),
    };
    let one_node = Arc::default();
    let mut stores: Vec<TestbedStore> = (1..=nodes)
        .map(|n| store(format!("cassandra-{n}"), &one_node))
        .collect();
    stores.push(store("rabbitmq".to_owned(), &Arc::default()));
    stores
}

/// Seeds and faults of each plan: the suite's, or what the environment asks for.
fn asked(seeds: std::ops::Range<u64>, faults: usize) -> Result<(std::ops::Range<u64>, usize)> {
    let seeds = match std::env::var("CARILLON_PLAN_SEEDS") {
        Ok(text) => {
            let (first, last) = text.split_once("..").context("CARILLON_PLAN_SEEDS=0..9")?;
            first.parse()?..last.parse()?
        }
        Err(_) => seeds,
    };
    let faults = match std::env::var("CARILLON_PLAN_FAULTS") {
        Ok(text) => text.parse()?,
        Err(_) => faults,
    };
    Ok((seeds, faults))
}

/// Runs plans one after the other on one platform; the rooms are new each time.
async fn run_all(
    name: &str,
    town: &Town,
    seeds: std::ops::Range<u64>,
    faults: usize,
) -> Result<()> {
    let (seeds, faults) = asked(seeds, faults)?;
    let mut plans: Vec<Plan> = seeds
        .map(|seed| Plan::random(seed, faults, &town.breakable()))
        .collect();
    if let Ok(path) = std::env::var("CARILLON_PLAN") {
        plans = vec![fs::read_to_string(&path).context(path)?.parse()?];
    }
    let (mut sends, mut injected, mut waits) = (0, 0, Vec::new());
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for plan in plans {
        for step in &plan.steps {
            let fault = step.fault.to_string();
            let kind = fault.split(' ').next().unwrap_or_default();
            *kinds.entry(kind.to_owned()).or_default() += 1;
        }
        let outcome = match run(town, &plan).await {
            Ok(outcome) => outcome,
            Err(error) => {
                let path = save(name, &plan)?;
                return Err(error.context(format!(
                    "seed {} on {name}; run it again with CARILLON_PLAN={}",
                    plan.seed,
                    path.display()
                )));
            }
        };
        let history = &outcome.history;
        let mut plan_waits: Vec<Duration> = history
            .sent
            .iter()
            .map(|sent| sent.answered - sent.started)
            .collect();
        plan_waits.sort();
        println!(
            "{name} seed {}: {} faults, {} sends acknowledged ({} after retries, longest wait {:.1} s), {} other contents refused, {} pages, {} marks, {} reconnects, {} resyncs",
            plan.seed,
            outcome.faults,
            history.sent.len(),
            history.sent.iter().filter(|sent| sent.retries > 0).count(),
            plan_waits.last().copied().unwrap_or_default().as_secs_f64(),
            history.conflicts,
            history.looked.len(),
            history.marked.len(),
            history.reconnects,
            history.resyncs,
        );
        anyhow::ensure!(!history.sent.is_empty(), "nobody could send anything");
        sends += history.sent.len();
        injected += outcome.faults;
        waits.extend(plan_waits);
    }
    waits.sort();
    let wait = |part: f64| {
        let at = ((waits.len().saturating_sub(1)) as f64 * part) as usize;
        waits.get(at).copied().unwrap_or_default().as_secs_f64()
    };
    println!(
        "{name}: {injected} faults {kinds:?}, {sends} acknowledged sends; wait for an answer p50 {:.3} s, p99 {:.3} s, longest {:.1} s",
        wait(0.5),
        wait(0.99),
        wait(1.0)
    );
    Ok(())
}

/// Saves a plan beside the test's own program.
fn save(name: &str, plan: &Plan) -> Result<PathBuf> {
    let directory = std::env::current_exe()?
        .ancestors()
        .nth(3)
        .context("target/<profile>/deps/it")?
        .join("plans");
    fs::create_dir_all(&directory)?;
    let path = directory.join(format!("{name}-{}.plan", plan.seed));
    fs::write(&path, plan.to_string())?;
    Ok(path)
}

/// Promises 1 to 6 on embedded stores. MSG-18, MSG-19, MSG-20, RT-05.
#[tokio::test(flavor = "multi_thread")]
async fn random_plans_on_embedded_stores() -> Result<()> {
    let town = Town::embedded().await?;
    run_all("embedded", &town, 1..4, 25).await
}

/// Promises 1 to 6 on the real stores, with two gateways and three message replicas. MSG-18, MSG-19, MSG-20, RT-05, RT-08.
#[tokio::test(flavor = "multi_thread")]
async fn random_plans_on_real_stores() -> Result<()> {
    let Some(servers) = servers::stores("plans::random_plans_on_real_stores") else {
        return Ok(());
    };
    let town = Town::real(&servers).await?;
    run_all("real", &town, 1..4, 25).await
}
