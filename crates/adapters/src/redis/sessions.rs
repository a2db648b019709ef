//! [`SessionStore`]: a hash of sessions per user, so that every operation on a user's sessions is atomic; a key per revoked
//! token.
//!
//! A session is stored as 20 digits (when it ends), 64 hex digits (the refresh hash) and its JSON: scripts compare the first two
//! and leave the third alone.

use async_trait::async_trait;
use carillon_domain::{
    DeviceId, Error, Result, Timestamp, UserId,
    account::Session,
    ports::{Rotation, SessionStore},
};
use fred::{
    interfaces::KeysInterface,
    prelude::{Expiration, Value},
};
use uuid::Uuid;

use super::{Redis, failed, script::Script};
use crate::observe::timed;

/// Year 9999: later ends count as this one.
const FAR_FUTURE: i64 = 253_402_300_799_000;
/// Where the JSON begins.
const HEADER: usize = 84;

/// Drops what has ended and lets the hash end with its last session.
const TIDY: &str = "
local function ends(value) return tonumber(string.sub(value, 1, 20)) end
local function hash_of(value) return string.sub(value, 21, 84) end
local function live(device)
  local value = redis.call('HGET', KEYS[1], device)
  if value and ends(value) > now_ms() then return value end
  return false
end
local function tidy()
  local now, last = now_ms(), 0
  local fields = redis.call('HGETALL', KEYS[1])
  for i = 1, #fields, 2 do
    local ending = ends(fields[i + 1])
    if ending <= now then redis.call('HDEL', KEYS[1], fields[i]) else last = math.max(last, ending) end
  end
  if last > 0 then redis.call('PEXPIREAT', KEYS[1], digits(last)) end
end
";
const PUT: &str = "
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
tidy()
return 1";
const GET: &str = "return live(ARGV[1])";
const ROTATE: &str = "
local value = live(ARGV[1])
if not value then return 'unknown' end
if hash_of(value) ~= ARGV[2] then return 'reused' end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
tidy()
return 'rotated'";
const REMOVE: &str = "
local value = live(ARGV[1])
redis.call('HDEL', KEYS[1], ARGV[1])
return value";
const LIST: &str = "
tidy()
return redis.call('HVALS', KEYS[1])";

pub(super) struct Sessions {
    redis: Redis,
    put: Script,
    get: Script,
    rotate: Script,
    remove: Script,
    list: Script,
}

impl Sessions {
    pub(super) fn new(redis: Redis) -> Self {
        let script = |body: &str| Script::new(&format!("{TIDY}{body}"));
        Self {
            redis,
            put: script(PUT),
            get: script(GET),
            rotate: script(ROTATE),
            remove: script(REMOVE),
            list: script(LIST),
        }
    }

    fn key(&self, user: UserId) -> Vec<String> {
        vec![self.redis.key(format_args!("{{user:{user}}}:sessions"))]
    }

    fn revoked_key(&self, token_id: Uuid) -> String {
        self.redis.key(format_args!("revoked:{token_id}"))
    }
}

#[async_trait]
impl SessionStore for Sessions {
    async fn put(&self, session: &Session) -> Result<()> {
        let arguments = vec![device(session.device), encode(session)?];
        self.put
            .run(
                &self.redis,
                "put_session",
                self.key(session.user),
                arguments,
            )
            .await
    }

    async fn get(&self, user: UserId, device_id: DeviceId) -> Result<Option<Session>> {
        let arguments = vec![device(device_id)];
        let stored: Option<String> = self
            .get
            .run(&self.redis, "get_session", self.key(user), arguments)
            .await?;
        stored.as_deref().map(decode).transpose()
    }

    async fn rotate(&self, old_hash: &[u8; 32], next: &Session) -> Result<Rotation> {
        let arguments = vec![device(next.device), hex(old_hash).into(), encode(next)?];
        let outcome: String = self
            .rotate
            .run(
                &self.redis,
                "rotate_session",
                self.key(next.user),
                arguments,
            )
            .await?;
        match outcome.as_str() {
            "rotated" => Ok(Rotation::Rotated),
            "reused" => Ok(Rotation::Reused),
            "unknown" => Ok(Rotation::Unknown),
            _ => Err(Error::defect(
                "the rotation of a session was answered with something else",
            )),
        }
    }

    async fn remove(&self, user: UserId, device_id: DeviceId) -> Result<Option<Session>> {
        let arguments = vec![device(device_id)];
        let stored: Option<String> = self
            .remove
            .run(&self.redis, "remove_session", self.key(user), arguments)
            .await?;
        stored.as_deref().map(decode).transpose()
    }

    async fn list(&self, user: UserId) -> Result<Vec<Session>> {
        let stored: Vec<String> = self
            .list
            .run(&self.redis, "list_sessions", self.key(user), Vec::new())
            .await?;
        let mut sessions: Vec<Session> = stored
            .iter()
            .map(|stored| decode(stored))
            .collect::<Result<_>>()?;
        sessions.sort_by_key(|session| (std::cmp::Reverse(session.created_at), session.device));
        Ok(sessions)
    }

    async fn revoke_token(&self, token_id: Uuid, until: Timestamp) -> Result<()> {
        // An end in the past makes Redis drop the key at once, which is what it should do.
        let end = Some(Expiration::PXAT(until.0.clamp(1, FAR_FUTURE)));
        let set =
            self.redis
                .client()
                .set::<(), _, _>(self.revoked_key(token_id), "", end, None, false);
        timed("redis", "revoke_token", set).await.map_err(failed)
    }

    async fn is_revoked(&self, token_id: Uuid) -> Result<bool> {
        let exists = self
            .redis
            .client()
            .exists::<i64, _>(self.revoked_key(token_id));
        Ok(timed("redis", "is_revoked", exists).await.map_err(failed)? > 0)
    }
}

fn device(device: DeviceId) -> Value {
    device.to_string().into()
}

fn encode(session: &Session) -> Result<Value> {
    let json = serde_json::to_string(session).map_err(Error::internal)?;
    let ends = session.expires_at.0.clamp(0, FAR_FUTURE);
    Ok(format!("{ends:020}{}{json}", hex(&session.refresh_hash)).into())
}

fn decode(stored: &str) -> Result<Session> {
    let json = stored
        .get(HEADER..)
        .ok_or_else(|| Error::defect("a stored session is too short"))?;
    serde_json::from_str(json).map_err(Error::internal)
}

fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
