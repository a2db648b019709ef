//! [`PeopleIndex`]: a partition for all terms that begin with the same two characters.

use async_trait::async_trait;
use carillon_domain::{
    Error, Result, UserId,
    ports::{MIN_PREFIX_CHARS, PeopleIndex},
};
use scylla::statement::prepared::PreparedStatement;
use uuid::Uuid;

use super::{database::Database, rooms::row_limit};

pub(super) struct Index {
    database: Database,
    put: PreparedStatement,
    remove: PreparedStatement,
    find: PreparedStatement,
}

impl Index {
    pub(super) async fn new(database: &Database) -> Result<Self> {
        Ok(Self {
            put: database
                .prepare("INSERT INTO people_index (bucket, term, user) VALUES (?, ?, ?)")
                .await?,
            remove: database
                .prepare("DELETE FROM people_index WHERE bucket = ? AND term = ? AND user = ?")
                .await?,
            find: database
                .prepare("SELECT term, user FROM people_index WHERE bucket = ? AND (term, user) > (?, ?) AND (term) < (?) LIMIT ?")
                .await?,
            database: database.clone(),
        })
    }
}

fn bucket(term: &str) -> Result<&str> {
    let end = term.char_indices().nth(MIN_PREFIX_CHARS - 1);
    end.and_then(|(at, last)| term.get(..at + last.len_utf8()))
        .ok_or_else(|| Error::defect("a term of the people's index is too short"))
}

#[async_trait]
impl PeopleIndex for Index {
    async fn put(&self, term: &str, user: UserId) -> Result<()> {
        let values = (bucket(term)?, term, user.0);
        self.database.write("index_person", &self.put, values).await
    }

    async fn remove(&self, term: &str, user: UserId) -> Result<()> {
        let values = (bucket(term)?, term, user.0);
        self.database
            .write("unindex_person", &self.remove, values)
            .await
    }

    async fn find(
        &self,
        prefix: &str,
        after: Option<(&str, UserId)>,
        limit: usize,
    ) -> Result<Vec<(String, UserId)>> {
        // Nobody has the nil id, and it comes before all others.
        let (term, user) = after.map_or((prefix, Uuid::nil()), |(term, user)| (term, user.0));
        let end = format!("{prefix}\u{10ffff}");
        let values = (bucket(prefix)?, term, user, end, row_limit(limit));
        let rows: Vec<(String, Uuid)> = self
            .database
            .rows("find_people", &self.find, values)
            .await?;
        Ok(rows
            .into_iter()
            .map(|(term, user)| (term, UserId(user)))
            .collect())
    }
}
