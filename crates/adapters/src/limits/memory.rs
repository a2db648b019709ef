//! [`RateLimiter`] in memory: exact, for one process, and forgotten with it.
//!
//! governor, which counted before, knows one of the three algorithms and no debts.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Instant,
};

use async_trait::async_trait;
use carillon_domain::{
    Result,
    limit::{Grant, Policy, Subject, Usage},
    ports::RateLimiter,
};
use parking_lot::{Mutex, RwLock};

/// Above this many subjects of a policy new ones share their usage until idle ones were forgotten: a stranger can't grow our
/// memory. Whoever is counted already is counted alone.
const MOST_SUBJECTS: usize = 200_000;
/// Usages that those share, in each part: enough that a few busy newcomers don't use up everybody's.
const SHARED: usize = 64;
/// Parts of a policy's subjects, each with a lock.
const PARTS: usize = 16;
/// Takes between two looks for idle subjects in one part, at least: a look costs no more than the takes since the last one.
const LOOK_EVERY: usize = 256;

/// See the module's documentation.
pub struct MemoryLimiter {
    most: usize,
    began: Instant,
    /// By the policy's name, of which there are few.
    tables: RwLock<HashMap<&'static str, Arc<Table>>>,
}

/// The subjects of one policy.
struct Table {
    parts: [Mutex<Part>; PARTS],
    /// Seeded at random: nobody can choose whom to share with.
    hasher: RandomState,
}

#[derive(Default)]
struct Part {
    usages: HashMap<Subject, Usage>,
    /// Made when the first one has to share.
    shared: Vec<Usage>,
    /// Takes until idle ones are looked for again.
    takes_left: usize,
}

impl MemoryLimiter {
    /// Nothing was used yet.
    pub fn new() -> Self {
        Self::with_most(MOST_SUBJECTS)
    }

    fn with_most(most: usize) -> Self {
        Self {
            most,
            began: Instant::now(),
            tables: RwLock::default(),
        }
    }

    fn table(&self, policy: &Policy) -> Arc<Table> {
        if let Some(table) = self.tables.read().get(policy.name) {
            return table.clone();
        }
        let mut tables = self.tables.write();
        let table = tables.entry(policy.name).or_insert_with(|| {
            Arc::new(Table {
                parts: Default::default(),
                hasher: RandomState::new(),
            })
        });
        table.clone()
    }

    fn count(&self, policy: &Policy, subject: Subject, wanted: u32, owed: u32) -> Grant {
        let table = self.table(policy);
        let hash = table.hasher.hash_one(subject);
        let mut part = table.parts[(hash % PARTS as u64) as usize].lock();
        // Under the lock: a subject's times never go back.
        let now = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        part.forget_idle(policy, now);
        part.usage(subject, hash, self.most / PARTS)
            .take(policy, now, wanted, owed)
    }
}

impl Default for MemoryLimiter {
    fn default() -> Self {
        Self::new()
    }
}

impl Part {
    fn usage(&mut self, subject: Subject, hash: u64, most: usize) -> &mut Usage {
        if self.usages.len() >= most && !self.usages.contains_key(&subject) {
            if self.shared.is_empty() {
                self.shared = vec![Usage::default(); SHARED];
            }
            let place = (hash / PARTS as u64) % SHARED as u64;
            return &mut self.shared[place as usize];
        }
        self.usages.entry(subject).or_default()
    }

    fn forget_idle(&mut self, policy: &Policy, now: u64) {
        if self.takes_left > 0 {
            self.takes_left -= 1;
            return;
        }
        self.usages
            .retain(|_, usage| !usage.is_nothing(policy, now));
        self.takes_left = LOOK_EVERY.max(self.usages.len());
        if self.usages.capacity() > 4 * self.usages.len().max(LOOK_EVERY) {
            self.usages.shrink_to_fit();
        }
    }
}

#[async_trait]
impl RateLimiter for MemoryLimiter {
    async fn take(
        &self,
        policy: &Policy,
        subject: Subject,
        wanted: u32,
        owed: u32,
    ) -> Result<Grant> {
        Ok(self.count(policy, subject, wanted, owed))
    }

    fn take_now(&self, policy: &Policy, subject: Subject, wanted: u32) -> Option<Grant> {
        Some(self.count(policy, subject, wanted, 0))
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, time::Duration};

    use carillon_domain::limit::Algorithm;

    use super::*;

    fn policy(limit: u32, window: Duration) -> Policy {
        Policy::new("test", Algorithm::default(), limit, window).unwrap()
    }

    fn subject(number: u32) -> Subject {
        Subject::at(IpAddr::from(number.to_be_bytes()))
    }

    fn subjects(limiter: &MemoryLimiter, policy: &Policy) -> usize {
        let table = limiter.table(policy);
        table
            .parts
            .iter()
            .map(|part| part.lock().usages.len())
            .sum()
    }

    /// EDGE-03: strangers that fill the table take nothing from those who are in it, and the table stays as large as it may be.
    #[test]
    fn a_full_table_is_for_those_who_are_in_it() {
        let limiter = MemoryLimiter::with_most(10 * PARTS);
        let policy = policy(2, Duration::from_secs(3600));
        let take = |number| limiter.take_now(&policy, subject(number), 1).unwrap();
        assert_eq!(take(0).remaining, 1);
        let passed = (1..20_000).filter(|&number| take(number).granted == 1);
        let passed = passed.count();
        assert!(
            passed <= 10 * PARTS + 2 * SHARED * PARTS,
            "newcomers share: {passed}"
        );
        assert_eq!(subjects(&limiter, &policy), 10 * PARTS);
        assert_eq!(take(0).remaining, 0);
        assert_eq!(take(0).granted, 0);
    }

    /// EDGE-03: whoever has everything again is forgotten.
    #[test]
    fn idle_subjects_are_forgotten() {
        let policy = policy(1, Duration::from_micros(5));
        let mut part = Part::default();
        for number in 0..100_000 {
            let now = u64::from(number);
            part.forget_idle(&policy, now);
            let usage = part.usage(subject(number), now, MOST_SUBJECTS);
            assert_eq!(usage.take(&policy, now, 1, 0).granted, 1);
            assert!(part.usages.len() <= 2 * LOOK_EVERY);
        }
    }
}
