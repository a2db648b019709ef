//! [`SecurityLog`]: a partition per person and trail, newest first; rows have a time to live, and what is beyond the newest ones is
//! removed as one range.

use async_trait::async_trait;
use carillon_domain::{
    DeviceId, Error, Result, Timestamp, UserId,
    ports::SecurityLog,
    security::{SecurityEvent, SecurityEventKind, Trail},
    time::{Clock, SystemClock},
};
use scylla::{
    statement::prepared::PreparedStatement,
    value::{CqlTimestamp, MaybeUnset},
};
use uuid::Uuid;

use super::{
    database::{Database, cql_time},
    rooms::row_limit,
};

/// The longest time to live that the database takes: 20 years.
const LONGEST: i64 = 20 * 365 * 24 * 3600;

pub(super) struct Security {
    database: Database,
    append: PreparedStatement,
    ids: PreparedStatement,
    trim: PreparedStatement,
    first: PreparedStatement,
    before: PreparedStatement,
    forget: PreparedStatement,
}

/// A row of `security_events`, without its key.
type Columns = (Uuid, CqlTimestamp, String, Option<Uuid>, String);

impl Security {
    pub(super) async fn new(database: &Database) -> Result<Self> {
        let read = "SELECT id, time, kind, device, client FROM security_events WHERE user = ? AND trail = ?";
        Ok(Self {
            append: database
                .prepare("INSERT INTO security_events (user, trail, id, time, kind, device, client) VALUES (?, ?, ?, ?, ?, ?, ?) USING TTL ?")
                .await?,
            ids: database
                .prepare("SELECT id FROM security_events WHERE user = ? AND trail = ? LIMIT ?")
                .await?,
            trim: database
                .prepare("DELETE FROM security_events WHERE user = ? AND trail = ? AND id <= ?")
                .await?,
            first: database.prepare(&format!("{read} LIMIT ?")).await?,
            before: database
                .prepare(&format!("{read} AND id < ? LIMIT ?"))
                .await?,
            forget: database
                .prepare("DELETE FROM security_events WHERE user = ? AND trail = ?")
                .await?,
            database: database.clone(),
        })
    }
}

#[async_trait]
impl SecurityLog for Security {
    async fn append(
        &self,
        trail: Trail,
        user: UserId,
        event: &SecurityEvent,
        until: Timestamp,
        keep: usize,
    ) -> Result<()> {
        let seconds = (until.0 - SystemClock.now().0).div_euclid(1000);
        if seconds < 1 {
            return Ok(());
        }
        let seconds = i32::try_from(seconds.min(LONGEST)).unwrap_or(i32::MAX);
        let client = serde_json::to_string(&event.client).map_err(Error::internal)?;
        let values = (
            user.0,
            trail.as_str(),
            event.id,
            cql_time(event.time),
            event.kind.as_str(),
            MaybeUnset::from_option(event.device.map(|device| device.0)),
            client,
            seconds,
        );
        self.database
            .write("append_security_event", &self.append, values)
            .await?;
        let values = (user.0, trail.as_str(), row_limit(keep + 1));
        let ids: Vec<(Uuid,)> = self
            .database
            .rows("security_event_ids", &self.ids, values)
            .await?;
        let Some((oldest,)) = ids.get(keep) else {
            return Ok(());
        };
        self.database
            .write(
                "trim_security_events",
                &self.trim,
                (user.0, trail.as_str(), *oldest),
            )
            .await
    }

    async fn list(
        &self,
        trail: Trail,
        user: UserId,
        before: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<SecurityEvent>> {
        let (trail, limit) = (trail.as_str(), row_limit(limit));
        let rows: Vec<Columns> = match before {
            None => {
                let values = (user.0, trail, limit);
                self.database
                    .rows("list_security_events", &self.first, values)
                    .await?
            }
            Some(before) => {
                let values = (user.0, trail, before, limit);
                self.database
                    .rows("list_security_events", &self.before, values)
                    .await?
            }
        };
        rows.into_iter().map(event).collect()
    }

    async fn forget(&self, user: UserId) -> Result<()> {
        for trail in Trail::ALL {
            self.database
                .write(
                    "forget_security_events",
                    &self.forget,
                    (user.0, trail.as_str()),
                )
                .await?;
        }
        Ok(())
    }
}

fn event((id, time, kind, device, client): Columns) -> Result<SecurityEvent> {
    Ok(SecurityEvent {
        id,
        time: Timestamp(time.0),
        kind: SecurityEventKind::parse(&kind)
            .ok_or_else(|| Error::defect("a stored security event is of an unknown kind"))?,
        device: device.map(DeviceId),
        client: serde_json::from_str(&client).map_err(Error::internal)?,
    })
}
