//! [`PresenceStore`]: per user a hash of leases with the state that was told last, and per shard of users a sorted set of when
//! each user's first lease ends. A shard is a hash slot, so that a script changes both at once: whoever's script sees the state
//! change is told, nobody else.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use carillon_domain::{
    DeviceId, Error, Result, Timestamp, UserId,
    partition::Partition,
    ports::PresenceStore,
    presence::{Lease, Presence, PresenceState},
};
use fred::{
    interfaces::{HashesInterface, SortedSetsInterface},
    prelude::Value,
};
use futures::{StreamExt, TryStreamExt, future::BoxFuture, stream};

use super::{Redis, failed, script::Script};
use crate::observe::timed;

/// Shards of users. Part of the stored format.
const SHARDS: u16 = 64;
/// Users per call of a script, so that no script holds the server for long.
const USERS_PER_CALL: usize = 100;
/// Commands of one operation that are under way at once.
const CONCURRENCY: usize = 128;

/// KEYS[1]: lease ends of the shard. A user's hash: a device's id (36 characters) -> state digit, blank, end; `s` -> the state told
/// last; `l` -> when last seen. States: 0 offline, 1 away, 2 online.
const SETTLE: &str = "
local answer = {}
local function seen(key, now)
  local last = tonumber(redis.call('HGET', key, 'l') or '0')
  if now > last then redis.call('HSET', key, 'l', digits(now)) end
end
-- Drops leases that ended before now, at most `budget`; notes when the next one ends; answers the state if it isn't the one told.
local function settle(key, user, now, budget)
  local highest, earliest, dropped = 0, nil, 0
  local fields = redis.call('HGETALL', key)
  for i = 1, #fields, 2 do
    if #fields[i] > 1 then
      local value = fields[i + 1]
      local state, ends = tonumber(string.sub(value, 1, 1)), tonumber(string.sub(value, 3))
      if ends >= now then
        highest = math.max(highest, state)
        earliest = math.min(earliest or ends, ends)
      elseif dropped < budget then
        redis.call('HDEL', key, fields[i])
        dropped = dropped + 1
      else
        earliest = math.min(earliest or ends, ends)
      end
    end
  end
  if earliest then
    redis.call('ZADD', KEYS[1], digits(earliest), user)
  else
    redis.call('ZREM', KEYS[1], user)
  end
  if tonumber(redis.call('HGET', key, 's') or '0') ~= highest then
    redis.call('HSET', key, 's', highest)
    answer[#answer + 1] = user
    answer[#answer + 1] = tostring(highest)
    answer[#answer + 1] = redis.call('HGET', key, 'l') or ''
  end
  return dropped
end
";
/// ARGV: now, end of the leases, then per key after the first: user, number of leases, and per lease device, state.
const RENEW: &str = "
local now, at = tonumber(ARGV[1]), 3
for i = 2, #KEYS do
  local user, count = ARGV[at], tonumber(ARGV[at + 1])
  at = at + 2
  for _ = 1, count do
    redis.call('HSET', KEYS[i], ARGV[at], ARGV[at + 1] .. ' ' .. ARGV[2])
    at = at + 2
  end
  seen(KEYS[i], now)
  settle(KEYS[i], user, now, math.huge)
end
return answer";
/// ARGV: now, user, device.
const RELEASE: &str = "
local now = tonumber(ARGV[1])
if redis.call('HDEL', KEYS[2], ARGV[3]) == 1 then seen(KEYS[2], now) end
settle(KEYS[2], ARGV[2], now, math.huge)
return answer";
/// ARGV: now, how many leases to drop at most, and a user per key after the first. Answers first how many were dropped.
const EXPIRE: &str = "
local now, budget, dropped = tonumber(ARGV[1]), tonumber(ARGV[2]), 0
for i = 2, #KEYS do
  if dropped < budget then dropped = dropped + settle(KEYS[i], ARGV[i + 1], now, budget - dropped) end
end
table.insert(answer, 1, tostring(dropped))
return answer";

pub(super) struct PresenceLeases {
    redis: Redis,
    renew: Script,
    release: Script,
    expire: Script,
    /// Where the next search for ended leases begins, so that a limit starves no shard.
    next_shard: AtomicUsize,
}

impl PresenceLeases {
    pub(super) fn new(redis: Redis) -> Self {
        let script = |body: &str| Script::new(&format!("{SETTLE}{body}"));
        Self {
            redis,
            renew: script(RENEW),
            release: script(RELEASE),
            expire: script(EXPIRE),
            next_shard: AtomicUsize::new(0),
        }
    }

    fn ends_key(&self, shard: u16) -> String {
        self.redis.key(format_args!("{{presence:{shard}}}:ends"))
    }

    fn user_key(&self, user: UserId) -> String {
        self.redis
            .key(format_args!("{{presence:{}}}:{user}", shard_of(user)))
    }

    async fn renew_users(
        &self,
        shard: u16,
        users: &[(UserId, Vec<Lease>)],
        now: Timestamp,
        ends: Timestamp,
    ) -> Result<Vec<Presence>> {
        let mut keys = vec![self.ends_key(shard)];
        let mut arguments = vec![Value::from(now.0), Value::from(ends.0)];
        for (user, leases) in users {
            keys.push(self.user_key(*user));
            arguments.push(user.to_string().into());
            arguments.push(Value::from(leases.len() as i64));
            for lease in leases {
                arguments.push(lease.device.to_string().into());
                arguments.push(Value::from(digit(lease.state)));
            }
        }
        let answer: Vec<String> = self
            .renew
            .run(&self.redis, "renew", keys, arguments)
            .await?;
        changes(&answer)
    }

    /// Users of a shard with a lease that ended before `now`.
    async fn ended(&self, shard: u16, now: Timestamp, limit: usize) -> Result<Vec<UserId>> {
        let end = format!("({}", now.0);
        let limit = Some((0, i64::try_from(limit).unwrap_or(i64::MAX)));
        let users: Vec<String> = self
            .redis
            .client()
            .zrangebyscore(self.ends_key(shard), "-inf", end, false, limit)
            .await
            .map_err(failed)?;
        users.iter().map(|user| read_user(user)).collect()
    }

    async fn expire_users(
        &self,
        shard: u16,
        users: &[UserId],
        now: Timestamp,
        budget: usize,
    ) -> Result<(usize, Vec<Presence>)> {
        let mut keys = vec![self.ends_key(shard)];
        let mut arguments = vec![Value::from(now.0), Value::from(budget as i64)];
        for user in users {
            keys.push(self.user_key(*user));
            arguments.push(user.to_string().into());
        }
        let answer: Vec<String> = self
            .expire
            .run(&self.redis, "expire", keys, arguments)
            .await?;
        let (dropped, changed) = answer.split_first().ok_or_else(impossible)?;
        Ok((dropped.parse().map_err(Error::internal)?, changes(changed)?))
    }

    async fn get_one(&self, user: UserId, now: Timestamp) -> Result<Presence> {
        let fields: BTreeMap<String, String> = self
            .redis
            .client()
            .hgetall(self.user_key(user))
            .await
            .map_err(failed)?;
        let mut state = PresenceState::Offline;
        let mut last_seen = None;
        for (field, value) in &fields {
            match field.as_str() {
                "s" => {}
                "l" => last_seen = Some(Timestamp(value.parse().map_err(Error::internal)?)),
                _ => {
                    let (lease_state, ends) = value.split_once(' ').ok_or_else(impossible)?;
                    if ends.parse::<i64>().map_err(Error::internal)? >= now.0 {
                        state = state.max(read_state(lease_state)?);
                    }
                }
            }
        }
        Ok(Presence {
            user,
            state,
            last_seen,
        })
    }
}

#[async_trait]
impl PresenceStore for PresenceLeases {
    async fn renew(
        &self,
        leases: &[Lease],
        now: Timestamp,
        ttl: Duration,
    ) -> Result<Vec<Presence>> {
        let mut shards: BTreeMap<u16, BTreeMap<UserId, Vec<Lease>>> = BTreeMap::new();
        for lease in leases {
            let users = shards.entry(shard_of(lease.user)).or_default();
            users.entry(lease.user).or_default().push(*lease);
        }
        let shards: Vec<(u16, Vec<(UserId, Vec<Lease>)>)> = shards
            .into_iter()
            .map(|(shard, users)| (shard, users.into_iter().collect()))
            .collect();
        let ends = now.plus(ttl);
        let mut calls: Vec<BoxFuture<'_, Result<Vec<Presence>>>> = Vec::new();
        for (shard, users) in &shards {
            for users in users.chunks(USERS_PER_CALL) {
                calls.push(Box::pin(self.renew_users(*shard, users, now, ends)));
            }
        }
        let changed: Vec<Vec<Presence>> = stream::iter(calls)
            .buffer_unordered(CONCURRENCY)
            .try_collect()
            .await?;
        Ok(changed.into_iter().flatten().collect())
    }

    async fn release(
        &self,
        user: UserId,
        device: DeviceId,
        now: Timestamp,
    ) -> Result<Option<Presence>> {
        let keys = vec![self.ends_key(shard_of(user)), self.user_key(user)];
        let arguments = vec![
            Value::from(now.0),
            user.to_string().into(),
            device.to_string().into(),
        ];
        let answer: Vec<String> = self
            .release
            .run(&self.redis, "release", keys, arguments)
            .await?;
        Ok(changes(&answer)?.pop())
    }

    async fn expire(&self, now: Timestamp, limit: usize) -> Result<Vec<Presence>> {
        let first = self.next_shard.fetch_add(1, Ordering::Relaxed);
        let shards: Vec<u16> = (0..usize::from(SHARDS))
            .map(|n| ((first + n) % usize::from(SHARDS)) as u16)
            .collect();
        let mut searches: Vec<BoxFuture<'_, Result<(u16, Vec<UserId>)>>> = Vec::new();
        for shard in shards {
            let per_shard = limit.min(USERS_PER_CALL);
            searches.push(Box::pin(async move {
                Ok((shard, self.ended(shard, now, per_shard).await?))
            }));
        }
        let found: Vec<(u16, Vec<UserId>)> = timed(
            "redis",
            "find_ended_leases",
            stream::iter(searches).buffered(CONCURRENCY).try_collect(),
        )
        .await?;
        let (mut changed, mut budget) = (Vec::new(), limit);
        for (shard, users) in found.into_iter().filter(|(_, users)| !users.is_empty()) {
            if budget == 0 {
                break;
            }
            let (dropped, changes) = self.expire_users(shard, &users, now, budget).await?;
            budget = budget.saturating_sub(dropped);
            changed.extend(changes);
        }
        Ok(changed)
    }

    async fn get(&self, users: &[UserId], now: Timestamp) -> Result<Vec<Presence>> {
        let mut reads: Vec<BoxFuture<'_, Result<Presence>>> = Vec::new();
        for user in users {
            reads.push(Box::pin(self.get_one(*user, now)));
        }
        let reads = stream::iter(reads).buffered(CONCURRENCY).try_collect();
        timed("redis", "get_presence", reads).await
    }
}

fn shard_of(user: UserId) -> u16 {
    Partition::of_user(user).0 % SHARDS
}

fn digit(state: PresenceState) -> &'static str {
    match state {
        PresenceState::Offline => "0",
        PresenceState::Away => "1",
        PresenceState::Online => "2",
    }
}

fn read_state(text: &str) -> Result<PresenceState> {
    match text {
        "0" => Ok(PresenceState::Offline),
        "1" => Ok(PresenceState::Away),
        "2" => Ok(PresenceState::Online),
        _ => Err(impossible()),
    }
}

fn read_user(text: &str) -> Result<UserId> {
    text.parse().map_err(Error::internal)
}

/// Triples of user, state, last seen.
fn changes(answer: &[String]) -> Result<Vec<Presence>> {
    answer
        .chunks(3)
        .map(|change| {
            let [user, state, last_seen] = change else {
                return Err(impossible());
            };
            let last_seen = match last_seen.as_str() {
                "" => None,
                text => Some(Timestamp(text.parse().map_err(Error::internal)?)),
            };
            Ok(Presence {
                user: read_user(user)?,
                state: read_state(state)?,
                last_seen,
            })
        })
        .collect()
}

fn impossible() -> Error {
    Error::defect("stored presence is malformed")
}
