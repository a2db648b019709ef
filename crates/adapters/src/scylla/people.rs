//! [`PeopleStore`]: an entry in the partition of who said it, and one in that of whom it is about. Both are written and removed by one
//! logged batch, with one timestamp: neither stays without the other, and of two changes at once the same one wins in both. Which one
//! is later is told by the clocks of the processes that made them.

use async_trait::async_trait;
use carillon_domain::{
    Result, Timestamp, UserId,
    people::{Between, Related, Relation},
    ports::PeopleStore,
};
use futures::future::BoxFuture;
use scylla::{
    statement::prepared::PreparedStatement,
    value::{CqlTimestamp, CqlValue},
};
use uuid::Uuid;

use super::{
    database::{Database, cql_time, some_at_a_time},
    rooms::row_limit,
};

/// Keys of one read: ScyllaDB refuses more than 100.
const KEYS: usize = 100;

pub(super) struct People {
    database: Database,
    contacts: Statements,
    blocks: Statements,
}

/// What is done with a relation's two tables.
struct Statements {
    said: Table,
    about: Table,
    put: PreparedStatement,
    put_about: PreparedStatement,
    count: PreparedStatement,
    get: PreparedStatement,
}

/// What is done with either of them.
struct Table {
    remove: PreparedStatement,
    first: PreparedStatement,
    after: PreparedStatement,
    among: PreparedStatement,
}

impl Table {
    async fn new(database: &Database, name: &str, columns: &str) -> Result<Self> {
        let read = format!("SELECT {columns} FROM {name} WHERE user = ?");
        Ok(Self {
            remove: database
                .prepare(&format!("DELETE FROM {name} WHERE user = ? AND other = ?"))
                .await?,
            first: database.prepare(&format!("{read} LIMIT ?")).await?,
            after: database
                .prepare(&format!("{read} AND other > ? LIMIT ?"))
                .await?,
            among: database
                .prepare(&format!(
                    "SELECT other FROM {name} WHERE user = ? AND other IN ?"
                ))
                .await?,
        })
    }
}

impl Statements {
    async fn new(database: &Database, said: &str, about: &str) -> Result<Self> {
        Ok(Self {
            put: database
                .prepare(&format!(
                    "INSERT INTO {said} (user, other, since) VALUES (?, ?, ?)"
                ))
                .await?,
            put_about: database
                .prepare(&format!("INSERT INTO {about} (user, other) VALUES (?, ?)"))
                .await?,
            count: database
                .prepare(&format!("SELECT COUNT(*) FROM {said} WHERE user = ?"))
                .await?,
            get: database
                .prepare(&format!(
                    "SELECT since FROM {said} WHERE user = ? AND other = ?"
                ))
                .await?,
            said: Table::new(database, said, "other, since").await?,
            about: Table::new(database, about, "other").await?,
        })
    }
}

impl People {
    pub(super) async fn new(database: &Database) -> Result<Self> {
        Ok(Self {
            contacts: Statements::new(database, "contacts", "contacts_about").await?,
            blocks: Statements::new(database, "blocks", "blocks_about").await?,
            database: database.clone(),
        })
    }

    fn statements(&self, relation: Relation) -> &Statements {
        match relation {
            Relation::Contact => &self.contacts,
            Relation::Block => &self.blocks,
        }
    }

    async fn count(&self, statements: &Statements, user: UserId) -> Result<usize> {
        let row: Option<(i64,)> = self
            .database
            .row("count_people", &statements.count, (user.0,))
            .await?;
        Ok(row.map_or(0, |(count,)| usize::try_from(count).unwrap_or(usize::MAX)))
    }

    /// Those of `others` that have an entry in a person's partition.
    async fn among(&self, table: &Table, user: UserId, others: &[UserId]) -> Result<Vec<UserId>> {
        let mut reads: Vec<BoxFuture<'_, Result<Vec<(Uuid,)>>>> = Vec::new();
        for keys in others.chunks(KEYS) {
            let keys: Vec<Uuid> = keys.iter().map(|other| other.0).collect();
            let read = self
                .database
                .rows("people_among", &table.among, (user.0, keys));
            reads.push(Box::pin(read));
        }
        let found = some_at_a_time(reads).await?;
        Ok(found
            .into_iter()
            .flatten()
            .map(|(id,)| UserId(id))
            .collect())
    }
}

#[async_trait]
impl PeopleStore for People {
    async fn put(
        &self,
        relation: Relation,
        user: UserId,
        other: UserId,
        since: Timestamp,
        most: usize,
    ) -> Result<bool> {
        let statements = self.statements(relation);
        let stored = self.get(relation, user, other).await?;
        if stored.is_none() && self.count(statements, user).await? >= most {
            return Err(relation.full(most));
        }
        // Also when it is there: a removal whose outcome isn't known may come through later, and must not be the newer one.
        let since = stored.map_or(since, |related| related.since);
        let said = vec![
            CqlValue::Uuid(user.0),
            CqlValue::Uuid(other.0),
            CqlValue::Timestamp(cql_time(since)),
        ];
        let about = vec![CqlValue::Uuid(other.0), CqlValue::Uuid(user.0)];
        let writes = vec![(&statements.put, said), (&statements.put_about, about)];
        self.database.batch("put_person", writes).await?;
        Ok(stored.is_none())
    }

    async fn remove(&self, relation: Relation, user: UserId, other: UserId) -> Result<bool> {
        let statements = self.statements(relation);
        let was_there = self.get(relation, user, other).await?.is_some();
        // Also when it wasn't, for the same reason.
        let said = vec![CqlValue::Uuid(user.0), CqlValue::Uuid(other.0)];
        let about = vec![CqlValue::Uuid(other.0), CqlValue::Uuid(user.0)];
        let writes = vec![
            (&statements.said.remove, said),
            (&statements.about.remove, about),
        ];
        self.database.batch("remove_person", writes).await?;
        Ok(was_there)
    }

    async fn get(
        &self,
        relation: Relation,
        user: UserId,
        other: UserId,
    ) -> Result<Option<Related>> {
        let statement = &self.statements(relation).get;
        let row = self
            .database
            .row::<(CqlTimestamp,)>("get_person", statement, (user.0, other.0))
            .await?;
        Ok(row.map(|(since,)| Related {
            user: other,
            since: Timestamp(since.0),
        }))
    }

    async fn list(
        &self,
        relation: Relation,
        user: UserId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Related>> {
        let (table, limit) = (&self.statements(relation).said, row_limit(limit));
        let rows: Vec<(Uuid, CqlTimestamp)> = match after {
            None => {
                let values = (user.0, limit);
                self.database
                    .rows("list_people", &table.first, values)
                    .await?
            }
            Some(after) => {
                let values = (user.0, after.0, limit);
                self.database
                    .rows("list_people", &table.after, values)
                    .await?
            }
        };
        Ok(rows
            .into_iter()
            .map(|(user, since)| Related {
                user: UserId(user),
                since: Timestamp(since.0),
            })
            .collect())
    }

    async fn list_reverse(
        &self,
        relation: Relation,
        user: UserId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<UserId>> {
        let (table, limit) = (&self.statements(relation).about, row_limit(limit));
        let rows: Vec<(Uuid,)> = match after {
            None => {
                let values = (user.0, limit);
                self.database
                    .rows("list_people_about", &table.first, values)
                    .await?
            }
            Some(after) => {
                let values = (user.0, after.0, limit);
                self.database
                    .rows("list_people_about", &table.after, values)
                    .await?
            }
        };
        Ok(rows.into_iter().map(|(id,)| UserId(id)).collect())
    }

    async fn between(
        &self,
        relation: Relation,
        user: UserId,
        others: &[UserId],
    ) -> Result<Vec<Between>> {
        if others.is_empty() {
            return Ok(Vec::new());
        }
        let statements = self.statements(relation);
        let (by_user, by_other) = futures::try_join!(
            self.among(&statements.said, user, others),
            self.among(&statements.about, user, others)
        )?;
        let mut found: Vec<Between> = by_user
            .into_iter()
            .map(|other| Between {
                other,
                by_user: true,
                by_other: false,
            })
            .collect();
        for other in by_other {
            match found.iter_mut().find(|between| between.other == other) {
                Some(between) => between.by_other = true,
                None => found.push(Between {
                    other,
                    by_user: false,
                    by_other: true,
                }),
            }
        }
        Ok(found)
    }
}
