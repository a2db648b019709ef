//! [`PeopleStore`]: an entry by who said it, one by whom it is about, and how many there are. A change writes all of them as one.

use std::sync::Arc;

use async_trait::async_trait;
use carillon_domain::{
    Result, Timestamp, UserId,
    people::{Between, Related, Relation},
    ports::PeopleStore,
};
use fjall::Slice;
use uuid::Uuid;

use super::{
    at_most,
    codec::{numbers, pair, read_numbers, second_of_pair, tagged},
    engine::{Durability, Engine},
    tables::Table,
};

/// Contacts and blocks.
pub(super) struct People(pub(super) Arc<Engine>);

/// Tags of a relation's rows: by who said it, by whom it is about, and how many somebody has.
struct Tags {
    said: u8,
    about: u8,
    count: u8,
}

fn tags(relation: Relation) -> Tags {
    match relation {
        Relation::Contact => Tags {
            said: b'c',
            about: b'C',
            count: b'n',
        },
        Relation::Block => Tags {
            said: b'b',
            about: b'B',
            count: b'm',
        },
    }
}

fn key(tag: u8, first: UserId, second: UserId) -> Vec<u8> {
    tagged(tag, &pair(first.0, second.0))
}

fn since(row: &Slice) -> Result<Timestamp> {
    let [millis] = read_numbers(row)?;
    Ok(Timestamp(millis.cast_signed()))
}

fn count(row: Option<Slice>) -> Result<u64> {
    row.map_or(Ok(0), |row| read_numbers(&row).map(|[count]| count))
}

impl People {
    /// The second people of a person's rows with a tag, with the rows.
    async fn rows(
        &self,
        tag: u8,
        user: UserId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<(UserId, Slice)>> {
        at_most(limit, 5_001)?;
        self.0
            .read(limit, move |view| {
                let prefix = tagged(tag, user.0.as_bytes());
                let after = after.as_ref().map(|user| &user.0.as_bytes()[..]);
                view.after(Table::People, &prefix, after)
                    .take(limit)
                    .map(|row| {
                        let (key, row) = row?;
                        let second: Uuid = second_of_pair(&key[1..])?;
                        Ok((UserId(second), row))
                    })
                    .collect()
            })
            .await
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
        let tags = tags(relation);
        let said = key(tags.said, user, other);
        let about = key(tags.about, other, user);
        let counted = tagged(tags.count, user.0.as_bytes());
        self.0
            .commit(Durability::Synced, move |transaction| {
                if transaction.get(Table::People, said.as_slice())?.is_some() {
                    return Ok(false);
                }
                let before = count(transaction.get(Table::People, counted.as_slice())?)?;
                if before >= most as u64 {
                    return Err(relation.full(most));
                }
                transaction.put(Table::People, said, numbers([since.0.cast_unsigned()]));
                transaction.put(Table::People, about, *b"");
                transaction.put(Table::People, counted, numbers([before + 1]));
                Ok(true)
            })
            .await
    }

    async fn remove(&self, relation: Relation, user: UserId, other: UserId) -> Result<bool> {
        let tags = tags(relation);
        let said = key(tags.said, user, other);
        let about = key(tags.about, other, user);
        let counted = tagged(tags.count, user.0.as_bytes());
        self.0
            .commit(Durability::Synced, move |transaction| {
                if transaction.get(Table::People, said.as_slice())?.is_none() {
                    return Ok(false);
                }
                let before = count(transaction.get(Table::People, counted.as_slice())?)?;
                transaction.remove(Table::People, said);
                transaction.remove(Table::People, about);
                match before.saturating_sub(1) {
                    0 => transaction.remove(Table::People, counted),
                    left => transaction.put(Table::People, counted, numbers([left])),
                }
                Ok(true)
            })
            .await
    }

    async fn get(
        &self,
        relation: Relation,
        user: UserId,
        other: UserId,
    ) -> Result<Option<Related>> {
        let row = self
            .0
            .view()
            .get(Table::People, key(tags(relation).said, user, other))?;
        row.map(|row| {
            Ok(Related {
                user: other,
                since: since(&row)?,
            })
        })
        .transpose()
    }

    async fn list(
        &self,
        relation: Relation,
        user: UserId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Related>> {
        let rows = self.rows(tags(relation).said, user, after, limit).await?;
        rows.into_iter()
            .map(|(user, row)| {
                Ok(Related {
                    user,
                    since: since(&row)?,
                })
            })
            .collect()
    }

    async fn list_reverse(
        &self,
        relation: Relation,
        user: UserId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<UserId>> {
        let rows = self.rows(tags(relation).about, user, after, limit).await?;
        Ok(rows.into_iter().map(|(user, _)| user).collect())
    }

    async fn between(
        &self,
        relation: Relation,
        user: UserId,
        others: &[UserId],
    ) -> Result<Vec<Between>> {
        at_most(others.len(), 1_000)?;
        let others = others.to_vec();
        self.0
            .read(2 * others.len(), move |view| {
                let tags = tags(relation);
                let mut found = Vec::new();
                for other in others {
                    let has = |tag| view.get(Table::People, key(tag, user, other));
                    let (by_user, by_other) =
                        (has(tags.said)?.is_some(), has(tags.about)?.is_some());
                    if by_user || by_other {
                        found.push(Between {
                            other,
                            by_user,
                            by_other,
                        });
                    }
                }
                Ok(found)
            })
            .await
    }
}
