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
