//! A plan: what goes wrong, and when. Made from a seed, saved as lines of text, replayed from them, and shrunk by deleting
//! lines by hand.
//!
//! ```text
//! seed 7                          what the people of the crowd choose
//! people 5                        each with `devices` devices
//! devices 2
//! rooms 3
//! at 400ms kill message-0         the process gets SIGKILL and is started again
//! at 900ms pause gateway-1 for 1500ms
//! at 1000ms stop message-1        SIGTERM, drained, and started again
//! at 1050ms roll gateway          the same for each replica, one after the other
//! at 1100ms scale message to 2    replicas are stopped or started, all at once
//! at 1200ms cut redis for 800ms   or stall, or slow
//! at 1500ms flush redis
//! at 1600ms failover redis        its replica is promoted, and the last writes are lost
//! at 1700ms jump auth by -180s for 900ms    its wall clock is wrong meanwhile
//! at 1750ms fill carillon for 900ms         its disk is full meanwhile
//! at 1800ms tear carillon         half a record at the end of the embedded store's journal, after a kill
//! at 2000ms drop 3/0              the socket of a device of a person
//! at 2100ms lag 2/1 for 700ms     the device reads nothing
//! ```
//! It does not say what people do meanwhile: that follows from the seed, and from what they see.

use std::{fmt, str::FromStr, time::Duration};

use anyhow::{Context as _, Result, bail};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};

/// One thing that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL, and started again at once.
    Kill(String),
    /// SIGSTOP, and SIGCONT after a time.
    Pause(String, Duration),
    /// SIGKILL, half a record at the end of the journal, and started again.
    Tear(String),
    /// Connections to a store end, and new ones fail, for a time.
    Cut(String, Duration),
    /// Nothing passes to or from a store for a time.
    Stall(String, Duration),
    /// Everything to and from a store comes 30 ms late for a time.
    Slow(String, Duration),
    /// The store forgets everything.
    Flush(String),
    /// The store's replica is promoted and takes over; the last writes are lost.
    Failover(String),
    /// SIGTERM, drained, and started again.
    Stop(String),
    /// The same for each replica of a role, one after the other.
    Roll(String),
    /// So many replicas of a role run from now on.
    Scale(String, usize),
    /// The process's wall clock is wrong by so many seconds for a time.
    Jump(String, i64, Duration),
    /// The process's disk is full for a time.
    Fill(String, Duration),
    /// A device loses its connection.
    Drop(usize, usize),
    /// A device reads nothing for a time.
    Lag(usize, usize, Duration),
}

/// When what goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub at: Duration,
    pub fault: Fault,
}

/// The whole plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub seed: u64,
    pub people: usize,
    pub devices: usize,
    pub rooms: usize,
    pub steps: Vec<Step>,
}

/// What a platform offers to break.
pub struct Breakable {
    /// Processes that may be killed and paused.
    pub processes: Vec<String>,
    /// Stores whose network may be cut, stalled and slowed down.
    pub networks: Vec<String>,
    /// Stores that may forget everything, and fail over.
    pub redis: Vec<String>,
    /// Processes with a journal of their own.
    pub tearable: Vec<String>,
    /// Processes that take a SIGTERM.
    pub stoppable: Vec<String>,
    /// Roles whose replicas may be restarted one after the other.
    pub rollable: Vec<String>,
    /// Roles whose replicas may be more or fewer, …
    pub scalable: Vec<String>,
    /// … and how many at most.
    pub most: usize,
    /// Processes with a clock of their own.
    pub clocks: Vec<String>,
    /// Processes with a disk of their own.
    pub disks: Vec<String>,
    /// How long a pause must be to outlive a lease.
    pub lease: Duration,
}

impl Plan {
    /// A plan of so many faults.
    pub fn random(seed: u64, faults: usize, what: &Breakable) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let (people, devices, rooms) = (
            random.random_range(3..=6),
            random.random_range(1..=3),
            random.random_range(1..=4),
        );
        // Each kind comes once, if there is room for all; then whatever comes.
        let mut first: Vec<Kind> = if faults >= WEIGHTS.len() {
            WEIGHTS.iter().map(|(kind, _)| *kind).collect()
        } else {
            Vec::new()
        };
        first.shuffle(&mut random);
        let mut at = Duration::from_millis(300);
        let mut steps = Vec::with_capacity(faults);
        while steps.len() < faults {
            at += Duration::from_millis(random.random_range(50..700));
            let kind = first.pop().unwrap_or_else(|| any_kind(&mut random));
            if let Some(fault) = random_fault(&mut random, kind, what, people, devices) {
                steps.push(Step { at, fault });
            }
        }
        Self {
            seed,
            people,
            devices,
            rooms,
            steps,
        }
    }

    /// Whether a clock is moved.
    pub fn jumps(&self) -> bool {
        self.steps
            .iter()
            .any(|step| matches!(step.fault, Fault::Jump(..)))
    }
}

/// What kinds of faults there are.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Kill,
    Pause,
    Tear,
    Stop,
    Roll,
    Scale,
    Cut,
    Stall,
    Slow,
    Flush,
    Failover,
    Jump,
    Fill,
    Drop,
    Lag,
}

/// How often each comes, of the sum of all.
const WEIGHTS: [(Kind, u32); 15] = [
    (Kind::Kill, 16),
    (Kind::Pause, 12),
    (Kind::Tear, 4),
    (Kind::Stop, 5),
    (Kind::Roll, 1),
    (Kind::Scale, 4),
    (Kind::Cut, 7),
    (Kind::Stall, 5),
    (Kind::Slow, 5),
    (Kind::Flush, 2),
    (Kind::Failover, 3),
    (Kind::Jump, 7),
    (Kind::Fill, 4),
    (Kind::Drop, 14),
    (Kind::Lag, 11),
];

fn any_kind(random: &mut StdRng) -> Kind {
    let sum = WEIGHTS.iter().map(|(_, weight)| weight).sum();
    let mut left = random.random_range(0..sum);
    for (kind, weight) in WEIGHTS {
        if left < weight {
            return kind;
        }
        left -= weight;
    }
    unreachable!("less than the sum")
}

/// `None` where this platform has nothing of that kind to break.
fn random_fault(
    random: &mut StdRng,
    kind: Kind,
    what: &Breakable,
    people: usize,
    devices: usize,
) -> Option<Fault> {
    let person = random.random_range(0..people);
    let device = random.random_range(0..devices);
    let brief = Duration::from_millis(random.random_range(50..1500));
    Some(match kind {
        Kind::Kill => Fault::Kill(one_of(random, &what.processes)?),
        Kind::Pause => {
            // A third of the pauses outlives a lease.
            let long = random.random_range(0..3) == 0;
            let time = if long { what.lease + brief } else { brief };
            Fault::Pause(one_of(random, &what.processes)?, time)
        }
        Kind::Tear => Fault::Tear(one_of(random, &what.tearable)?),
        Kind::Stop => Fault::Stop(one_of(random, &what.stoppable)?),
        Kind::Roll => Fault::Roll(one_of(random, &what.rollable)?),
        Kind::Scale => {
            let role = one_of(random, &what.scalable)?;
            Fault::Scale(role, random.random_range(1..=what.most))
        }
        Kind::Cut => Fault::Cut(one_of(random, &what.networks)?, brief),
        Kind::Stall => Fault::Stall(one_of(random, &what.networks)?, brief),
        Kind::Slow => Fault::Slow(one_of(random, &what.networks)?, brief),
        Kind::Flush => Fault::Flush(one_of(random, &what.redis)?),
        Kind::Failover => Fault::Failover(one_of(random, &what.redis)?),
        Kind::Jump => {
            // Tokens last a quarter of an hour: some jumps end them.
            let seconds = random.random_range(30..1800);
            let seconds = if random.random() { seconds } else { -seconds };
            Fault::Jump(one_of(random, &what.clocks)?, seconds, brief)
        }
        Kind::Fill => Fault::Fill(one_of(random, &what.disks)?, brief),
        Kind::Drop => Fault::Drop(person, device),
        Kind::Lag => Fault::Lag(person, device, brief),
    })
}

fn one_of(random: &mut StdRng, names: &[String]) -> Option<String> {
    (!names.is_empty()).then(|| names[random.random_range(0..names.len())].clone())
}

impl fmt::Display for Plan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "seed {}", self.seed)?;
        writeln!(formatter, "people {}", self.people)?;
        writeln!(formatter, "devices {}", self.devices)?;
        writeln!(formatter, "rooms {}", self.rooms)?;
        for step in &self.steps {
            writeln!(formatter, "at {}ms {}", step.at.as_millis(), step.fault)?;
        }
        Ok(())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = Duration::as_millis;
        match self {
            Self::Kill(name) => write!(formatter, "kill {name}"),
            Self::Pause(name, time) => write!(formatter, "pause {name} for {}ms", ms(time)),
            Self::Tear(name) => write!(formatter, "tear {name}"),
            Self::Cut(name, time) => write!(formatter, "cut {name} for {}ms", ms(time)),
            Self::Stall(name, time) => write!(formatter, "stall {name} for {}ms", ms(time)),
            Self::Slow(name, time) => write!(formatter, "slow {name} for {}ms", ms(time)),
            Self::Flush(name) => write!(formatter, "flush {name}"),
            Self::Failover(name) => write!(formatter, "failover {name}"),
            Self::Stop(name) => write!(formatter, "stop {name}"),
            Self::Roll(role) => write!(formatter, "roll {role}"),
            Self::Scale(role, wanted) => write!(formatter, "scale {role} to {wanted}"),
            Self::Jump(name, seconds, time) => {
                write!(formatter, "jump {name} by {seconds:+}s for {}ms", ms(time))
            }
            Self::Fill(name, time) => write!(formatter, "fill {name} for {}ms", ms(time)),
            Self::Drop(person, device) => write!(formatter, "drop {person}/{device}"),
            Self::Lag(person, device, time) => {
                write!(formatter, "lag {person}/{device} for {}ms", ms(time))
            }
        }
    }
}

impl FromStr for Plan {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut plan = Self {
            seed: 0,
            people: 3,
            devices: 1,
            rooms: 1,
            steps: Vec::new(),
        };
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                [] => {}
                [word, ..] if word.starts_with('#') => {}
                ["seed", n] => plan.seed = n.parse()?,
                ["people", n] => plan.people = n.parse()?,
                ["devices", n] => plan.devices = n.parse()?,
                ["rooms", n] => plan.rooms = n.parse()?,
                ["at", at, fault @ ..] => plan.steps.push(Step {
                    at: time(at)?,
                    fault: parse_fault(fault).with_context(|| line.to_owned())?,
                }),
                _ => bail!("not a line of a plan: {line}"),
            }
        }
        Ok(plan)
    }
}

fn parse_fault(words: &[&str]) -> Result<Fault> {
    let owned = |name: &&str| (*name).to_owned();
    Ok(match words {
        ["kill", name] => Fault::Kill(owned(name)),
        ["tear", name] => Fault::Tear(owned(name)),
        ["flush", name] => Fault::Flush(owned(name)),
        ["failover", name] => Fault::Failover(owned(name)),
        ["stop", name] => Fault::Stop(owned(name)),
        ["roll", role] => Fault::Roll(owned(role)),
        ["scale", role, "to", wanted] => Fault::Scale(owned(role), wanted.parse()?),
        ["jump", name, "by", seconds, "for", how_long] => {
            let seconds = seconds.strip_suffix('s').context("a jump is like -180s")?;
            Fault::Jump(owned(name), seconds.parse()?, time(how_long)?)
        }
        ["fill", name, "for", how_long] => Fault::Fill(owned(name), time(how_long)?),
        ["pause", name, "for", how_long] => Fault::Pause(owned(name), time(how_long)?),
        ["cut", name, "for", how_long] => Fault::Cut(owned(name), time(how_long)?),
        ["stall", name, "for", how_long] => Fault::Stall(owned(name), time(how_long)?),
        ["slow", name, "for", how_long] => Fault::Slow(owned(name), time(how_long)?),
        ["drop", device] => {
            let (person, device) = place(device)?;
            Fault::Drop(person, device)
        }
        ["lag", device, "for", how_long] => {
            let (person, device) = place(device)?;
            Fault::Lag(person, device, time(how_long)?)
        }
        _ => bail!("no such fault"),
    })
}

fn time(word: &str) -> Result<Duration> {
    let ms = word.strip_suffix("ms").context("a time is like 500ms")?;
    Ok(Duration::from_millis(ms.parse()?))
}

fn place(word: &str) -> Result<(usize, usize)> {
    let (person, device) = word.split_once('/').context("a device is like 0/1")?;
    Ok((person.parse()?, device.parse()?))
}

#[test]
fn a_plan_survives_being_written_and_read() {
    let what = Breakable {
        processes: vec!["message-0".into(), "gateway-1".into()],
        networks: vec!["redis".into(), "scylla".into()],
        redis: vec!["redis".into()],
        tearable: vec!["message-0".into()],
        stoppable: vec!["message-0".into()],
        rollable: vec!["message".into()],
        scalable: vec!["message".into()],
        most: 4,
        clocks: vec!["message-0".into()],
        disks: vec!["message-0".into()],
        lease: Duration::from_secs(3),
    };
    for seed in 0..50 {
        let plan = Plan::random(seed, 60, &what);
        assert_eq!(plan.steps.len(), 60);
        assert_eq!(plan.to_string().parse::<Plan>().unwrap(), plan);
        assert_eq!(Plan::random(seed, 60, &what), plan, "the seed decides");
        for kind in [
            "kill", "pause", "tear", "stop", "roll", "scale", "cut", "stall", "slow", "flush",
            "failover", "jump", "fill", "drop", "lag",
        ] {
            let text = plan.to_string();
            assert!(text.contains(&format!(" {kind} ")), "no {kind} in {text}");
        }
    }
}
