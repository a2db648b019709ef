//! What the load generator asks of the operating system: file descriptors, cores, memory and CPU time of a process.
//!
//! Not here: anything about a container or another machine. A server elsewhere has no figures for memory and CPU.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Raises the soft limit of open files to the hard one, and answers it.
pub fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let granted = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    granted.unwrap_or(u64::MAX)
}

/// Fails with what to do when `sockets` do not fit into the limit of open files.
pub fn ensure_open_files(sockets: usize) -> Result<()> {
    let granted = raise_open_files();
    let wanted = sockets as u64 + 200;
    ensure!(
        wanted <= granted,
        "{sockets} sockets need about {wanted} open files, the hard limit is {granted}: raise it (ulimit -Hn), for the server too"
    );
    Ok(())
}

/// Waits until this process is asked to end, and says so as an error.
pub async fn interrupted() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    anyhow::bail!("interrupted")
}

/// Which cores the two sides use.
#[derive(Clone, Copy, Debug)]
pub struct Cores {
    server: CpuSet,
    client: CpuSet,
    /// Whether the sides are kept apart.
    pub pinned: bool,
}

impl Cores {
    /// Both sides wherever the system puts them.
    pub fn shared() -> Result<Self> {
        let all = sched_getaffinity(None).context("cannot read this process's CPU affinity")?;
        Ok(Self {
            server: all,
            client: all,
            pinned: false,
        })
    }

    /// The server on the first core allowed to this process, the client on the others; pins the calling thread, and with it
    /// every thread made later, to the client's.
    pub fn apart() -> Result<Self> {
        let all = sched_getaffinity(None).context("cannot read this process's CPU affinity")?;
        ensure!(
            all.count() >= 2,
            "--pin needs two cores, this process may use {}",
            all.count()
        );
        let mut allowed = (0..CpuSet::MAX_CPU).filter(|core| all.is_set(*core));
        let (mut server, mut client) = (CpuSet::new(), CpuSet::new());
        allowed.by_ref().take(1).for_each(|core| server.set(core));
        allowed.for_each(|core| client.set(core));
        sched_setaffinity(None, &client).context("cannot set the CPU affinity")?;
        Ok(Self {
            server,
            client,
            pinned: true,
        })
    }

    /// Runs `start` (which must not await) on the server's cores, so that a process started by it stays there.
    pub fn as_server<T>(&self, start: impl FnOnce() -> T) -> Result<T> {
        if !self.pinned {
            return Ok(start());
        }
        sched_setaffinity(None, &self.server).context("cannot set the CPU affinity")?;
        let started = start();
        sched_setaffinity(None, &self.client).context("cannot set the CPU affinity")?;
        Ok(started)
    }
}

/// Resident memory of the processes together, in KiB.
pub fn resident_kib(pids: &[u32]) -> Result<u64> {
    let mut total = 0;
    for pid in pids {
        let path = format!("/proc/{pid}/status");
        let status = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {path}: is the server's pid right?"))?;
        total += status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok())
            .with_context(|| format!("{path} has no VmRSS"))?;
    }
    Ok(total)
}

/// CPU time that the processes have used together, user and system, in seconds.
pub fn cpu_seconds(pids: &[u32]) -> Result<f64> {
    let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
    let mut ticks = 0;
    for pid in pids {
        ticks += Stat::of(*pid)?.own_ticks;
    }
    Ok(ticks as f64 / ticks_per_second)
}

/// The same with all that these processes started, ended ones included, and so on down: a database server is a process per connection.
pub fn cpu_seconds_with_children(pids: &[u32]) -> Result<f64> {
    let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
    let mut ticks = 0;
    let mut wanted: Vec<u32> = pids.to_vec();
    for pid in pids {
        let stat = Stat::of(*pid)?;
        ticks += stat.own_ticks + stat.ended_ticks;
    }
    let mut others: Vec<(u32, Stat)> = std::fs::read_dir("/proc")
        .context("cannot read /proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| !pids.contains(pid))
        // One that has ended meanwhile is counted at its parent.
        .filter_map(|pid| Some((pid, Stat::of(pid).ok()?)))
        .collect();
    while let Some(parent) = wanted.pop() {
        others.retain(|(pid, stat)| {
            let is_child = stat.parent == parent;
            if is_child {
                ticks += stat.own_ticks + stat.ended_ticks;
                wanted.push(*pid);
            }
            !is_child
        });
    }
    Ok(ticks as f64 / ticks_per_second)
}

/// What `/proc/<pid>/stat` says, times in clock ticks.
struct Stat {
    parent: u32,
    own_ticks: u64,
    /// Of children that have ended.
    ended_ticks: u64,
}

impl Stat {
    fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/stat");
        let stat = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {path}: is the server's pid right?"))?;
        // The name in parentheses may hold blanks: fields are counted after it. The 4th of all is the parent, the 14th to 17th are
        // utime, stime, cutime and cstime.
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        let field = |index: usize| fields.get(index).and_then(|text| text.parse::<u64>().ok());
        let read = || {
            Some(Self {
                parent: field(1)? as u32,
                own_ticks: field(11)? + field(12)?,
                ended_ticks: field(13)? + field(14)?,
            })
        };
        read().with_context(|| format!("{path} is not as expected"))
    }
}

/// Whether files under `path` live in memory, so that fsync costs nothing.
pub fn is_in_memory(path: &std::path::Path) -> bool {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type as u64 == TMPFS_MAGIC)
}

/// From where the `index`-th socket to a loopback address connects: a source address has about 28,000 ports to one destination.
pub fn source_address(index: usize) -> Option<Ipv4Addr> {
    const SOCKETS_PER_ADDRESS: usize = 20_000;
    let address = index / SOCKETS_PER_ADDRESS;
    (address > 0).then(|| Ipv4Addr::new(127, 0, 0, 1 + (address % 250) as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_cpu_time() {
        let own = [std::process::id()];
        assert!(resident_kib(&own).unwrap() > 100);
        assert!(cpu_seconds(&own).unwrap() >= 0.0);
        assert!(resident_kib(&[u32::MAX]).is_err());
    }

    #[test]
    fn cpu_time_of_children_counts_while_they_live_and_after() {
        let own = [std::process::id()];
        let mut child = std::process::Command::new("sh")
            .args([
                "-c",
                "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; cat",
            ])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // The loop is over once `cat` has taken its place or waits as its child: either way its time is in the tree.
        while cpu_seconds_with_children(&[child.id()]).unwrap() < 0.02 {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let of_child = cpu_seconds_with_children(&[child.id()]).unwrap();
        let live = cpu_seconds_with_children(&own).unwrap();
        assert!(live >= of_child);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(cpu_seconds_with_children(&own).unwrap() >= live);
        assert!(cpu_seconds_with_children(&[u32::MAX]).is_err());
    }

    #[test]
    fn many_sockets_come_from_several_addresses() {
        assert_eq!(source_address(19_999), None);
        assert_eq!(source_address(20_000), Some(Ipv4Addr::new(127, 0, 0, 2)));
    }
}
