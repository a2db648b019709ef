//! Counters that bound guessing: failed logins, sent codes, tried codes.
//!
//! Keys hold hashes, so that the store of counters holds no address, name or number.

use std::time::Duration;

use carillon_domain::{Error, ErrorCode, Result, ports::Ephemeral};
use sha2::{Digest, Sha256};

/// So many within so long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Limit {
    pub count: u64,
    pub window: Duration,
}

/// Counts one more, before the thing is tried: of many tries at once no more than the limit get through.
pub(crate) async fn count(
    ephemeral: &dyn Ephemeral,
    key: &str,
    limit: Limit,
    detail: &'static str,
) -> Result<()> {
    if ephemeral.increment(key, limit.window).await? > limit.count {
        return Err(refused(detail, limit.window));
    }
    Ok(())
}

/// Failed tries that are counted before they are known to fail, under several keys; and taken back when they didn't.
pub(crate) struct Tries<'a> {
    ephemeral: &'a dyn Ephemeral,
    window: Duration,
    counted: Vec<String>,
}

impl<'a> Tries<'a> {
    pub fn new(ephemeral: &'a dyn Ephemeral, window: Duration) -> Self {
        Self {
            ephemeral,
            window,
            counted: Vec::new(),
        }
    }

    /// Counts one more. One that is refused isn't tried, and still counts: refusals don't make room for guesses.
    pub async fn count(&mut self, key: String, most: u64) -> Result<()> {
        let limit = Limit {
            count: most,
            window: self.window,
        };
        let detail = "too many failed logins, try again later";
        count(self.ephemeral, &key, limit, detail).await?;
        self.counted.push(key);
        Ok(())
    }

    /// It was no failed try. What can't be taken back ends with its window.
    pub async fn take_back(self) {
        for key in self.counted {
            if let Err(error) = self.ephemeral.decrement(&key).await {
                tracing::warn!(%error, cause = error.cause_chain(), "a try was not taken back");
            }
        }
    }
}

/// `RateLimited`, with the longest time that it may last.
pub(crate) fn refused(detail: &'static str, after: Duration) -> Error {
    Error::new(ErrorCode::RateLimited, detail).retry_after(after)
}

/// A key for a counter about these values.
pub(crate) fn key(what: &str, values: &[&str]) -> String {
    let mut hash = Sha256::new();
    for value in values {
        hash.update((value.len() as u64).to_be_bytes());
        hash.update(value);
    }
    format!("auth:{what}:{}", hex::encode(hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::key;

    #[test]
    fn keys_differ_by_value_and_by_where_values_end() {
        assert_ne!(key("a", &["x", "y"]), key("b", &["x", "y"]));
        assert_ne!(key("a", &["xy", ""]), key("a", &["x", "y"]));
        assert!(!key("a", &["ann@example.com"]).contains("ann"));
    }
}
