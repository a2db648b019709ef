//! [`ReplicaRegistry`]: per role a sorted set of lease ends by the server's clock, and a hash of addresses.

use std::time::Duration;

use async_trait::async_trait;
use carillon_domain::{
    ReplicaId, Result,
    ports::{Replica, ReplicaRegistry},
};
use fred::prelude::Value;

use super::{Redis, ephemeral::milliseconds, script::Script};

const ANNOUNCE: &str = "
local now = now_ms()
local ended = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', digits(now))
for _, id in ipairs(ended) do
  redis.call('ZREM', KEYS[1], id)
  redis.call('HDEL', KEYS[2], id)
end
redis.call('ZADD', KEYS[1], digits(now + ARGV[3]), ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return 1";
const WITHDRAW: &str = "
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
return 1";
const LIVE: &str = "
local answer = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. digits(now_ms()), '+inf')) do
  local address = redis.call('HGET', KEYS[2], id)
  if address then
    answer[#answer + 1] = id
    answer[#answer + 1] = address
  end
end
return answer";

pub(super) struct Registry {
    redis: Redis,
    announce: Script,
    withdraw: Script,
    live: Script,
}

impl Registry {
    pub(super) fn new(redis: Redis) -> Self {
        Self {
            redis,
            announce: Script::new(ANNOUNCE),
            withdraw: Script::new(WITHDRAW),
            live: Script::new(LIVE),
        }
    }

    fn keys(&self, role: &str) -> Vec<String> {
        vec![
            self.redis.key(format_args!("{{replicas:{role}}}:ends")),
            self.redis
                .key(format_args!("{{replicas:{role}}}:addresses")),
        ]
    }
}

#[async_trait]
impl ReplicaRegistry for Registry {
    async fn announce(&self, role: &str, replica: &Replica, ttl: Duration) -> Result<()> {
        let arguments = vec![
            Value::from(replica.id.0.as_str()),
            Value::from(replica.address.as_str()),
            Value::from(milliseconds(ttl)),
        ];
        self.announce
            .run(&self.redis, "announce", self.keys(role), arguments)
            .await
    }

    async fn withdraw(&self, role: &str, replica: &ReplicaId) -> Result<()> {
        let arguments = vec![Value::from(replica.0.as_str())];
        self.withdraw
            .run(&self.redis, "withdraw", self.keys(role), arguments)
            .await
    }

    async fn live(&self, role: &str) -> Result<Vec<Replica>> {
        let pairs: Vec<(String, String)> = self
            .live
            .run::<Vec<String>>(&self.redis, "live", self.keys(role), Vec::new())
            .await?
            .chunks_exact(2)
            .map(|pair| (pair[0].clone(), pair[1].clone()))
            .collect();
        let mut replicas: Vec<Replica> = pairs
            .into_iter()
            .map(|(id, address)| Replica {
                id: ReplicaId(id),
                address,
            })
            .collect();
        replicas.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(replicas)
    }
}
