//! Scripts that the servers keep: called by their hash, loaded when a server doesn't know them (yet, or after a restart).

use carillon_domain::Result;
use fred::{
    interfaces::LuaInterface,
    prelude::Value,
    types::{FromValue, scripts},
};

use super::{Redis, failed};

/// Lua that every script may use: the server's clock in milliseconds, and numbers as Redis wants them.
const PRELUDE: &str = "
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
local function digits(number) return string.format('%.0f', number) end
";

/// A script and its hash.
pub(super) struct Script(scripts::Script);

impl Script {
    pub(super) fn new(body: &str) -> Self {
        Self(scripts::Script::from_lua(format!("{PRELUDE}{body}")))
    }

    /// Runs it. All keys lie in one hash slot.
    pub(super) async fn run<R: FromValue>(
        &self,
        redis: &Redis,
        operation: &'static str,
        keys: Vec<String>,
        arguments: Vec<Value>,
    ) -> Result<R> {
        crate::observe::timed("redis", operation, async {
            let client = redis.client();
            let hash = self.0.sha1().clone();
            match client.evalsha(hash, keys.clone(), arguments.clone()).await {
                // EVAL loads it on the very server that lacks it.
                Err(error) if error.details().starts_with("NOSCRIPT") => {
                    let body = self.0.lua().cloned().unwrap_or_default();
                    client.eval(body, keys, arguments).await
                }
                result => result,
            }
        })
        .await
        .map_err(failed)
    }
}
