//! Bytes of files that are in this process's memory at once: a slow or stuck client holds what it transfers, so the sum is bounded,
//! and a single user's share of it too.

use std::{collections::HashMap, sync::Arc};

use carillon_domain::{Error, ErrorCode, UserId};
use parking_lot::Mutex;
use std::time::Duration;

use crate::metrics;

/// When to ask again: most transfers take less.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// One user's share of the whole.
const SHARE: usize = 4;

/// Transfers of one direction under way.
pub struct Transfers {
    most: usize,
    held: Arc<Mutex<Held>>,
}

#[derive(Default)]
struct Held {
    bytes: usize,
    by_user: HashMap<UserId, usize>,
}

/// Memory that a transfer may use; given back when it is dropped.
pub struct Transfer {
    user: UserId,
    bytes: usize,
    held: Arc<Mutex<Held>>,
}

impl Transfers {
    /// At most `most` bytes at once, and a quarter of them for one user.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            held: Arc::default(),
        }
    }

    /// Reserves memory. A transfer that is larger than its share passes when nothing else is under way. `RateLimited` when the user
    /// has too many transfers under way, `Unavailable` when all users together have.
    pub fn begin(&self, user: UserId, bytes: usize) -> Result<Transfer, Error> {
        let mut held = self.held.lock();
        let own = held.by_user.get(&user).copied().unwrap_or(0);
        if own > 0 && own + bytes > self.most / SHARE {
            return Err(refused(
                "user_transfers",
                ErrorCode::RateLimited,
                "too many files at once, wait for one to end",
            ));
        }
        if held.bytes > 0 && held.bytes + bytes > self.most {
            return Err(refused(
                "transfers",
                ErrorCode::Unavailable,
                "too many files are on their way, try again",
            ));
        }
        held.bytes += bytes;
        held.by_user.insert(user, own + bytes);
        Ok(Transfer {
            user,
            bytes,
            held: self.held.clone(),
        })
    }
}

fn refused(limit: &str, code: ErrorCode, detail: &'static str) -> Error {
    metrics::RATE_LIMITED.with_label_values(&[limit]).inc();
    Error::new(code, detail).retry_after(RETRY_AFTER)
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let mut held = self.held.lock();
        held.bytes -= self.bytes;
        if let Some(own) = held.by_user.get_mut(&self.user) {
            *own -= self.bytes;
            if *own == 0 {
                held.by_user.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise 7: one user can't take everything, all together neither, and what ends makes room.
    #[test]
    fn memory_for_files_is_bounded() {
        let transfers = Transfers::new(400);
        let users: Vec<UserId> = (0..5).map(|_| UserId::new()).collect();
        let code = |result: Result<Transfer, Error>| result.err().map(|error| error.code);
        let first = transfers.begin(users[0], 60).unwrap();
        assert_eq!(
            code(transfers.begin(users[0], 60)),
            Some(ErrorCode::RateLimited)
        );
        let others: Vec<Transfer> = users[1..4]
            .iter()
            .map(|user| transfers.begin(*user, 100).unwrap())
            .collect();
        assert_eq!(
            code(transfers.begin(users[4], 60)),
            Some(ErrorCode::Unavailable)
        );
        drop(first);
        let last = transfers.begin(users[4], 60).unwrap();
        drop((others, last));
        assert!(transfers.begin(users[0], 1000).is_ok(), "alone, any size");
        assert!(transfers.held.lock().by_user.is_empty());
    }
}
