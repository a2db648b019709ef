//! [`RateLimiter`]: one small string per policy and subject, changed by one script per algorithm, ended by Redis.
//!
//! The decisions are those of `carillon_domain::limit`, by the clock of Redis, so that gateways need not agree on the time. A take
//! is one script on one key: of takers at once, on any number of gateways, no more get a permit than there are.

use std::time::Duration;

use async_trait::async_trait;
use carillon_domain::{
    Result,
    limit::{Algorithm, Grant, MOST_OVERDRAWN, Policy, Subject},
    ports::RateLimiter,
};
use fred::prelude::Value;
use sha2::{Digest, Sha256};

use super::{Redis, script::Script};

/// What the scripts share: arguments, the clock in microseconds, and how a usage is written.
const COMMON: &str = "
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local limit, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local wanted, owed, overdrawn = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local epsilon = 1e-6
local function read()
  local text = redis.call('GET', KEYS[1])
  if not text then return 0, 0, 0 end
  local at, used, before = string.match(text, '^(%S+) (%S+) (%S+)$')
  return tonumber(at), tonumber(used), tonumber(before)
end
local function book(used) return math.min(used + owed, math.max(used, limit * overdrawn)) end
local function grant(free) return math.max(0, math.min(wanted, math.floor(free + epsilon))) end
local function keep(granted, at, used, before, life)
  if granted + owed == 0 then return end
  local text = string.format('%.0f %.17g %.17g', at, used, before)
  redis.call('SET', KEYS[1], text, 'PX', digits(math.floor(life / 1000) + 1))
end
local function answer(granted, free, reset, retry)
  local remaining = math.max(0, math.floor(free + epsilon))
  if remaining > 0 then retry = 0 end
  return {granted, remaining, math.ceil(math.max(0, reset)), math.ceil(math.max(0, retry))}
end
";

const FIXED_WINDOW: &str = "
local at, used = read()
if used == 0 or now < at or now - at >= window then at, used = now, 0 end
used = book(used)
local granted = grant(limit - used)
used = used + granted
local left = window - (now - at)
keep(granted, at, used, 0, left)
return answer(granted, limit - used, used > 0 and left or 0, left)";

const SLIDING_WINDOW: &str = "
local at, used, before = read()
local began = now - now % window
if began ~= at then
  before = began == at + window and used or 0
  at, used = began, 0
end
used = book(used)
local gone = now - at
local free = limit - used - before * (1 - gone / window)
local granted = grant(free)
used, free = used + granted, free - granted
keep(granted, at, used, before, 2 * window - gone)
local room, retry, reset = limit - 1, 0, 0
if used <= room and before > 0 then retry = window * (1 - (room - used) / before) - gone
elseif used > room then retry = window - gone + window * (1 - room / used) end
if used > 0 then reset = 2 * window - gone elseif before > 0 then reset = window - gone end
return answer(granted, free, reset, retry)";

const TOKEN_BUCKET: &str = "
local at, used = read()
local rate = limit / window
used = book(math.max(0, used - math.max(0, now - at) * rate))
local granted = grant(limit - used)
used = used + granted
keep(granted, now, used, 0, used / rate)
return answer(granted, limit - used, used / rate, (used - limit + 1) / rate)";

pub(super) struct Limiter {
    redis: Redis,
    fixed_window: Script,
    sliding_window: Script,
    token_bucket: Script,
}

impl Limiter {
    pub(super) fn new(redis: Redis) -> Self {
        let script = |body| Script::new(&format!("{COMMON}{body}"));
        Self {
            redis,
            fixed_window: script(FIXED_WINDOW),
            sliding_window: script(SLIDING_WINDOW),
            token_bucket: script(TOKEN_BUCKET),
        }
    }

    /// A hash, so that the store of counters holds no address and no person. Algorithms write different things under it.
    fn key(&self, policy: &Policy, subject: Subject) -> String {
        let mut hash = Sha256::new();
        hash.update([policy.algorithm as u8, policy.name.len() as u8]);
        hash.update(policy.name);
        match subject {
            Subject::Network(address) => {
                hash.update("network");
                hash.update(address.to_string());
            }
            Subject::User(user) => {
                hash.update("user");
                hash.update(user.0.as_bytes());
            }
        }
        let hash = u128::from_be_bytes(std::array::from_fn({
            let digest = hash.finalize();
            move |place| digest[place]
        }));
        self.redis.key(format_args!("limit:{{{hash:032x}}}"))
    }
}

#[async_trait]
impl RateLimiter for Limiter {
    async fn take(
        &self,
        policy: &Policy,
        subject: Subject,
        wanted: u32,
        owed: u32,
    ) -> Result<Grant> {
        let (script, operation) = match policy.algorithm {
            Algorithm::FixedWindow => (&self.fixed_window, "take_fixed_window"),
            Algorithm::SlidingWindow => (&self.sliding_window, "take_sliding_window"),
            Algorithm::TokenBucket => (&self.token_bucket, "take_token_bucket"),
        };
        let limit = policy.limit.get();
        let window = i64::try_from(policy.window.as_micros()).unwrap_or(i64::MAX);
        let arguments = [
            i64::from(limit),
            window.max(1),
            i64::from(wanted),
            i64::from(owed),
            i64::from(MOST_OVERDRAWN),
        ]
        .map(Value::from)
        .to_vec();
        let keys = vec![self.key(policy, subject)];
        let (granted, remaining, reset, retry_after): (u32, u32, u64, u64) =
            script.run(&self.redis, operation, keys, arguments).await?;
        Ok(Grant {
            granted,
            limit,
            remaining,
            reset: Duration::from_micros(reset),
            retry_after: Duration::from_micros(retry_after),
        })
    }

    fn take_now(&self, _: &Policy, _: Subject, _: u32) -> Option<Grant> {
        None
    }
}
