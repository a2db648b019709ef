//! [`PersonKeys`]: a row per person, written by LWT only, and an entry for each part that still has to erase them. A destroyed key
//! leaves the disks of the database when it compacts, a day later at the earliest (`gc_grace_seconds`).

use async_trait::async_trait;
use carillon_domain::{
    Error, Result, Timestamp, UserId,
    ports::{ErasurePart, KeyState, PersonKey, PersonKeys},
};
use scylla::{statement::prepared::PreparedStatement, value::CqlTimestamp};
use uuid::Uuid;

use super::{
    database::{Conditional, Database, cql_time},
    rooms::row_limit,
};

pub(super) struct Keys {
    database: Database,
    of: PreparedStatement,
    put: PreparedStatement,
    destroy: PreparedStatement,
    destroy_first: PreparedStatement,
    begin: PreparedStatement,
    erasing: PreparedStatement,
    erased: PreparedStatement,
    first: PreparedStatement,
    after: PreparedStatement,
}

/// A row of `person_keys`.
type Columns = (Uuid, Option<Vec<u8>>, Option<CqlTimestamp>);

impl Keys {
    pub(super) async fn new(database: &Database) -> Result<Self> {
        let all = "SELECT user, key, destroyed_at FROM person_keys";
        Ok(Self {
            of: database.prepare(&format!("{all} WHERE user = ?")).await?,
            put: database
                .prepare_once("INSERT INTO person_keys (user, key) VALUES (?, ?) IF NOT EXISTS")
                .await?,
            destroy: database
                .prepare_once("UPDATE person_keys SET key = null, destroyed_at = ? WHERE user = ? IF destroyed_at = null AND key != null")
                .await?,
            destroy_first: database
                .prepare_once("INSERT INTO person_keys (user, destroyed_at) VALUES (?, ?) IF NOT EXISTS")
                .await?,
            begin: database
                .prepare("INSERT INTO erasures (part, user) VALUES (?, ?)")
                .await?,
            erasing: database
                .prepare("SELECT user FROM erasures WHERE part = ? LIMIT ?")
                .await?,
            erased: database
                .prepare("DELETE FROM erasures WHERE part = ? AND user = ?")
                .await?,
            first: database.prepare(&format!("{all} LIMIT ?")).await?,
            after: database
                .prepare(&format!("{all} WHERE token(user) > token(?) LIMIT ?"))
                .await?,
            database: database.clone(),
        })
    }

    async fn one(&self, user: UserId) -> Result<Option<KeyState>> {
        let row = self
            .database
            .row::<Columns>("person_key", &self.of, (user.0,))
            .await?;
        Ok(row.map(state).transpose()?.map(|(_, state)| state))
    }
}

#[async_trait]
impl PersonKeys for Keys {
    async fn of(&self, users: &[UserId]) -> Result<Vec<(UserId, KeyState)>> {
        let users = users.iter().map(|user| user.0);
        let rows = self
            .database
            .rows_by_key::<Columns>("person_keys", &self.of, users)
            .await?;
        rows.into_iter().map(state).collect()
    }

    async fn put_if_absent(&self, user: UserId, key: &PersonKey) -> Result<KeyState> {
        let values = (user.0, &key.0[..]);
        let put = self
            .database
            .conditional("put_person_key", &self.put, values)
            .await?;
        match put {
            Conditional::Applied => Ok(KeyState::Held(key.clone())),
            Conditional::Refused(_) => self
                .one(user)
                .await?
                .ok_or_else(|| Error::defect("a person's key was refused and isn't there")),
        }
    }

    async fn begin_erasing(&self, user: UserId, _at: Timestamp) -> Result<()> {
        // The account last: what goes on by itself after this was cut off has all the others.
        for part in ErasurePart::ALL.into_iter().rev() {
            self.database
                .write("begin_erasing", &self.begin, (part.as_str(), user.0))
                .await?;
        }
        Ok(())
    }

    async fn destroy(&self, user: UserId, at: Timestamp) -> Result<()> {
        // There was none, or there is one.
        let values = (user.0, cql_time(at));
        let first = self
            .database
            .conditional("destroy_person_key", &self.destroy_first, values)
            .await?;
        if matches!(first, Conditional::Refused(_)) {
            let values = (cql_time(at), user.0);
            self.database
                .conditional("destroy_person_key", &self.destroy, values)
                .await?;
        }
        Ok(())
    }

    async fn erasing(&self, part: ErasurePart, limit: usize) -> Result<Vec<UserId>> {
        let values = (part.as_str(), row_limit(limit));
        let rows: Vec<(Uuid,)> = self.database.rows("erasing", &self.erasing, values).await?;
        Ok(rows.into_iter().map(|(user,)| UserId(user)).collect())
    }

    async fn erased(&self, part: ErasurePart, user: UserId) -> Result<()> {
        self.database
            .write("erased", &self.erased, (part.as_str(), user.0))
            .await
    }

    async fn all(&self, after: Option<UserId>, limit: usize) -> Result<Vec<(UserId, KeyState)>> {
        let limit = row_limit(limit);
        let rows: Vec<Columns> = match after {
            None => {
                self.database
                    .rows("scan_person_keys", &self.first, (limit,))
                    .await?
            }
            Some(after) => {
                self.database
                    .rows("scan_person_keys", &self.after, (after.0, limit))
                    .await?
            }
        };
        rows.into_iter().map(state).collect()
    }
}

fn state((user, key, destroyed_at): Columns) -> Result<(UserId, KeyState)> {
    let state = match (key, destroyed_at) {
        (_, Some(at)) => KeyState::Destroyed(Timestamp(at.0)),
        (Some(key), None) => {
            KeyState::Held(PersonKey(key.try_into().map_err(|_| {
                Error::defect("a stored key of a person has another length")
            })?))
        }
        (None, None) => return Err(Error::defect("a stored key of a person is empty")),
    };
    Ok((UserId(user), state))
}
