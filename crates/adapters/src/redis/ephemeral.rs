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
if count == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return count";

pub(super) struct EphemeralValues {
    redis: Redis,
    increment: Script,
}

impl EphemeralValues {
    pub(super) fn new(redis: Redis) -> Self {
        Self {
            redis,
            increment: Script::new(INCREMENT),
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
