//! [`Ephemeral`]: one key per value, ended by Redis.

use std::time::Duration;

use async_trait::async_trait;
use carillon_domain::{Error, Result, ports::Ephemeral};
use fred::{
    interfaces::KeysInterface,
    prelude::{Expiration, SetOptions, Value},
};

use super::{Redis, failed, script::Script};
use crate::observe::timed;

const MAX_KEY: usize = 256;
const MAX_VALUE: usize = 4096;

/// Counts up; the first count sets the end.
const INCREMENT: &str = "
local count = redis.call('INCR', KEYS[1])
if redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return count";

/// Counts down what is there; DECR keeps the end.
const DECREMENT: &str = "
local count = tonumber(redis.call('GET', KEYS[1]) or '0')
if count > 0 then redis.call('DECR', KEYS[1]) end
return 0";

pub(super) struct EphemeralValues {
    redis: Redis,
    increment: Script,
    decrement: Script,
}

impl EphemeralValues {
    pub(super) fn new(redis: Redis) -> Self {
        Self {
            redis,
            increment: Script::new(INCREMENT),
            decrement: Script::new(DECREMENT),
        }
    }

    fn key(&self, key: &str) -> Result<String> {
        if key.len() > MAX_KEY {
            return Err(Error::defect("an ephemeral key is too long"));
        }
        Ok(self.redis.key(format_args!("ephemeral:{key}")))
    }
}

/// At least a millisecond: Redis refuses less.
pub(super) fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis())
        .unwrap_or(i64::MAX)
        .max(1)
}

#[async_trait]
impl Ephemeral for EphemeralValues {
    async fn put(&self, key: &str, value: &[u8], ttl: Duration) -> Result<()> {
        if value.len() > MAX_VALUE {
            return Err(Error::defect("an ephemeral value is too long"));
        }
        let end = Some(Expiration::PX(milliseconds(ttl)));
        let set = self
            .redis
            .client()
            .set::<(), _, _>(self.key(key)?, value, end, None, false);
        timed("redis", "put", set).await.map_err(failed)
    }

    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let get = self.redis.client().get(self.key(key)?);
        timed("redis", "get", get).await.map_err(failed)
    }

    async fn take(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let take = self.redis.client().getdel(self.key(key)?);
        timed("redis", "take", take).await.map_err(failed)
    }

    async fn increment(&self, key: &str, window: Duration) -> Result<u64> {
        let arguments = vec![Value::from(milliseconds(window))];
        self.increment
            .run(&self.redis, "increment", vec![self.key(key)?], arguments)
            .await
    }

    async fn decrement(&self, key: &str) -> Result<()> {
        self.decrement
            .run::<i64>(&self.redis, "decrement", vec![self.key(key)?], Vec::new())
            .await
            .map(drop)
    }

    async fn claim(&self, key: &str, ttl: Duration) -> Result<bool> {
        let end = Some(Expiration::PX(milliseconds(ttl)));
        let set = self.redis.client().set::<Option<String>, _, _>(
            self.key(key)?,
            "",
            end,
            Some(SetOptions::NX),
            false,
        );
        Ok(timed("redis", "claim", set)
            .await
            .map_err(failed)?
            .is_some())
    }

    async fn remove(&self, key: &str) -> Result<()> {
        let remove = self.redis.client().del::<(), _>(self.key(key)?);
        timed("redis", "remove", remove).await.map_err(failed)
    }
}
