//! A platform to break: its processes, and what is around them.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{sync::Mutex, task::JoinSet};

use super::{
    crowd::{Crowd, Mishap},
    plan::{Breakable, Fault},
    redis::OwnRedis,
    victim::{TestbedStore, Victim},
};
use crate::world::{
    clock::{self, WallClock},
    disk::Disk,
    platform::{QUICK, RealCluster, RealOptions, Up},
    proxy::{Network, Proxy},
    servers::Servers,
};

/// Message replicas at most: so many there are in the beginning.
const MESSAGES: usize = 4;
/// How long a stopping gateway takes leave of its clients.
const DRAIN: &str = "drain: 3s";

/// Processes, networks, disks and clocks by the names that plans call them.
pub struct Town {
    /// Where the crowd is served.
    pub bases: Vec<String>,
    /// Unmounted before the folders that they are in are removed.
    disks: BTreeMap<String, Arc<Mutex<Arc<Disk>>>>,
    clocks: BTreeMap<String, WallClock>,
    victims: BTreeMap<String, Arc<Mutex<Victim>>>,
    networks: BTreeMap<String, Arc<Mutex<Proxy>>>,
    redis: Option<Arc<Mutex<OwnRedis>>>,
    lease: Duration,
    /// Holds what runs in the background, until the end.
    _cluster: Option<RealCluster>,
}

impl Town {
    /// One process on embedded stores.
    pub async fn embedded(test: &str) -> Result<Self> {
        let up = Up::start_on_a_disk(&drained()).await?;
        if up.disk.is_none() {
            println!("CARILLON-SKIPPED {test}: full disks, since this user may not mount");
        }
        let name = "carillon".to_owned();
        let clocks: BTreeMap<_, _> = (up.clock.clone().into_iter())
            .map(|clock| (name.clone(), clock))
            .collect();
        say_without_clocks(test, &clocks);
        let disks = (up.disk.clone().into_iter())
            .map(|disk| (name.clone(), Arc::new(Mutex::new(disk))))
            .collect();
        Ok(Self {
            bases: vec![up.base.clone()],
            disks,
            clocks,
            victims: BTreeMap::from([(name, Arc::new(Mutex::new(Victim::Up(Box::new(up)))))]),
            networks: BTreeMap::new(),
            redis: None,
            lease: Duration::from_secs(1),
            _cluster: None,
        })
    }

    /// A process for each role on the real stores, with two gateways and four message replicas.
    pub async fn real(test: &str, servers: &Servers) -> Result<Self> {
        let redis = OwnRedis::start().await?;
        let servers = Servers {
            redis: format!("redis://{}", redis.address()),
            ..servers.clone()
        };
        let (servers, networks) = servers.behind_proxies().await?;
        let options = RealOptions {
            gateways: 2,
            messages: MESSAGES,
            spec: drained(),
            clocks: true,
            ..Default::default()
        };
        let mut cluster = RealCluster::start(&servers, &options).await?;
        let directory = cluster.directory.path().to_owned();
        let bases = cluster.gateways.iter().map(|g| g.base.clone()).collect();
        let roles = std::mem::take(&mut cluster.gateways)
            .into_iter()
            .chain(std::mem::take(&mut cluster.messages))
            .chain(std::mem::take(&mut cluster.others));
        let (mut victims, mut clocks) = (BTreeMap::new(), BTreeMap::new());
        for role in roles {
            let name = role.name.clone();
            if let Some(clock) = role.clock.clone() {
                clocks.insert(name.clone(), clock);
            }
            let victim = Victim::Role(Box::new(role), directory.clone());
            victims.insert(name, Arc::new(Mutex::new(victim)));
        }
        say_without_clocks(test, &clocks);
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
            disks: BTreeMap::new(),
            clocks,
            victims,
            networks: networks
                .into_iter()
                .filter_map(|(name, proxy)| Some((name.to_owned(), Arc::new(Mutex::new(proxy?)))))
                .collect(),
            redis: Some(Arc::new(Mutex::new(redis))),
            lease: Duration::from_secs(3),
            _cluster: Some(cluster),
        })
    }

    /// What there is to break.
    pub fn breakable(&self) -> Breakable {
        let names =
            |names: std::collections::btree_map::Keys<'_, String, _>| names.cloned().collect();
        let processes: Vec<String> = self.victims.keys().cloned().collect();
        let is_one_of = |kind: &str| processes.iter().any(|name| name.starts_with(kind));
        let embedded = self.networks.is_empty();
        let only_if = |wanted: bool, names: &[&str]| -> Vec<String> {
            (names
                .iter()
                .filter(|_| wanted)
                .map(|name| (*name).to_owned()))
            .collect()
        };
        Breakable {
            stoppable: (processes.iter().filter(|name| !is_store(name)).cloned()).collect(),
            scalable: only_if(is_one_of("message-"), &["message"]),
            most: MESSAGES,
            rollable: only_if(is_one_of("message-"), &["gateway", "message"]),
            networks: names(self.networks.keys()),
            redis: only_if(self.redis.is_some(), &["redis"]),
            tearable: only_if(embedded, &["carillon"]),
            disks: self.disks.keys().cloned().collect(),
            clocks: self.clocks.keys().cloned().collect(),
            lease: self.lease,
            processes,
        }
    }

    fn victim(&self, name: &str) -> Result<Arc<Mutex<Victim>>> {
        let found = self.victims.get(name).cloned();
        found.with_context(|| format!("no process is called {name}"))
    }

    fn network(&self, name: &str) -> Result<Arc<Mutex<Proxy>>> {
        let found = self.networks.get(name).cloned();
        found.with_context(|| format!("no store is called {name}"))
    }

    /// Every replica of a role, in order.
    fn replicas(&self, role: &str) -> Vec<Arc<Mutex<Victim>>> {
        (0..)
            .map_while(|n| self.victims.get(&format!("{role}-{n}")).cloned())
            .collect()
    }

    /// Begins a fault; what it does later it does under way.
    pub fn inject(
        &self,
        crowd: &Crowd,
        fault: &Fault,
        under_way: &mut JoinSet<Result<()>>,
    ) -> Result<()> {
        match fault {
            Fault::Drop(person, device) => crowd.befall(*person, *device, Mishap::Drop),
            Fault::Lag(person, device, time) => crowd.befall(*person, *device, Mishap::Lag(*time)),
            Fault::Cut(name, time) => {
                under_way.spawn(disturb(self.network(name)?, Network::Cut, *time));
            }
            Fault::Stall(name, time) => {
                under_way.spawn(disturb(self.network(name)?, Network::Stalled, *time));
            }
            Fault::Slow(name, time) => {
                let slow = Network::Slow(Duration::from_millis(30));
                under_way.spawn(disturb(self.network(name)?, slow, *time));
            }
            Fault::Kill(name) => {
                let victim = self.victim(name)?;
                under_way.spawn(async move { victim.lock().await.kill().await });
            }
            Fault::Tear(name) => {
                let victim = self.victim(name)?;
                under_way.spawn(async move { victim.lock().await.tear().await });
            }
            Fault::Stop(name) => {
                let victim = self.victim(name)?;
                under_way.spawn(async move { victim.lock().await.stop().await });
            }
            Fault::Pause(name, time) => {
                let (victim, time) = (self.victim(name)?, *time);
                under_way.spawn(async move { victim.lock().await.pause(time).await });
            }
            Fault::Roll(role) => {
                let replicas = self.replicas(role);
                under_way.spawn(async move {
                    for replica in replicas {
                        replica.lock().await.stop().await?;
                    }
                    Ok(())
                });
            }
            Fault::Scale(role, wanted) => {
                // All at once, as a Deployment does it.
                for (n, replica) in self.replicas(role).into_iter().enumerate() {
                    let runs = n < *wanted;
                    under_way.spawn(async move { replica.lock().await.should_run(runs).await });
                }
            }
            Fault::Flush(_) => {
                let redis = self.redis.clone().context("no Redis to flush")?;
                under_way.spawn(async move { redis.lock().await.flush().await });
            }
            Fault::Failover(name) => {
                let redis = self.redis.clone().context("no Redis to fail over")?;
                let proxy = self.network(name)?;
                under_way.spawn(async move {
                    let proxy = proxy.lock().await;
                    redis.lock().await.fail_over(&proxy).await
                });
            }
            Fault::Jump(name, seconds, time) => {
                let clock = self.clocks.get(name).cloned();
                let clock = clock.with_context(|| format!("{name} has no clock of its own"))?;
                under_way.spawn(jump(clock, *seconds, *time));
            }
            Fault::Fill(name, time) => {
                let disk = self.disks.get(name).cloned();
                let disk = disk.with_context(|| format!("{name} has no disk of its own"))?;
                under_way.spawn(fill(disk, *time));
            }
        }
        Ok(())
    }
}

/// The quick settings, with a drain that a plan can wait for.
fn drained() -> String {
    QUICK.replacen("gateway:\n", &format!("gateway:\n    {DRAIN}\n"), 1)
}

fn is_store(name: &str) -> bool {
    name.starts_with("cassandra") || name == "rabbitmq"
}

fn say_without_clocks(test: &str, clocks: &BTreeMap<String, WallClock>) {
    if clocks.is_empty() {
        println!("CARILLON-SKIPPED {test}: clocks that jump, since libfaketime isn't installed");
    }
}

async fn disturb(proxy: Arc<Mutex<Proxy>>, state: Network, time: Duration) -> Result<()> {
    let proxy = proxy.lock().await;
    proxy.set(state);
    tokio::time::sleep(time).await;
    proxy.set(Network::Whole);
    Ok(())
}

/// The clock is wrong for a time; the process may be started meanwhile, and then begins with the wrong time.
async fn jump(clock: WallClock, seconds: i64, time: Duration) -> Result<()> {
    clock.set(seconds)?;
    tokio::time::sleep(clock::LATE + time).await;
    clock.set(0)?;
    tokio::time::sleep(clock::LATE).await;
    Ok(())
}

/// The disk is full for a time; the process may be killed and started meanwhile.
async fn fill(disk: Arc<Mutex<Arc<Disk>>>, time: Duration) -> Result<()> {
    let disk = disk.lock().await;
    tokio::task::block_in_place(|| disk.fill())?;
    tokio::time::sleep(time).await;
    disk.free()
}

/// The testbed's stores that a long run may break: none without several CQL nodes, or when others may be using them.
fn own_stores(servers: &Servers) -> Vec<TestbedStore> {
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
