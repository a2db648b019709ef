//! A session with what every store needs of it: statements, pages, conditional writes, errors.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use carillon_domain::{Error, Result, Timestamp};
use futures::{StreamExt, TryStreamExt, future::BoxFuture, stream};
use scylla::{
    client::session::Session,
    deserialize::row::DeserializeRow,
    errors::{
        DbError, ExecutionError, NextPageError, NextRowError, PagerExecutionError, PrepareError,
        RequestAttemptError, WriteType,
    },
    response::query_result::QueryResult,
    serialize::row::SerializeRow,
    statement::{
        Consistency,
        batch::{Batch, BatchType},
        prepared::PreparedStatement,
    },
    value::{CqlTimestamp, CqlValue, Row},
};

use uuid::Uuid;

use crate::observe::timed;

/// Rows per page: bounds what one answer can hold.
const PAGE: i32 = 500;
/// How long one try of a conditional write may take: longer than servers let competing ones wait.
const CONDITIONAL_TIMEOUT: Duration = Duration::from_secs(7);
/// How long a conditional write goes on against others on its row.
const CONTENTION_PATIENCE: Duration = Duration::from_secs(5);
/// Statements of one operation that are under way at once.
const CONCURRENCY: usize = 64;

/// A session that uses the keyspace.
#[derive(Clone)]
pub(super) struct Database {
    session: Arc<Session>,
}

/// What a conditional write came to.
pub(super) enum Conditional {
    /// The condition held.
    Applied,
    /// It did not; this is the row that was there, by column name (empty if there was none).
    Refused(Vec<(String, CqlValue)>),
}

impl Database {
    pub(super) fn new(session: Session) -> Self {
        Self {
            session: Arc::new(session),
        }
    }

    /// A statement that may run twice with the same result, so that the driver may try it on another node.
    pub(super) async fn prepare(&self, cql: &str) -> Result<PreparedStatement> {
        let mut statement = self.session.prepare(cql).await.map_err(preparing)?;
        statement.set_is_idempotent(true);
        statement.set_page_size(PAGE);
        Ok(statement)
    }

    /// [`prepare_conditional`] on this session.
    pub(super) async fn prepare_once(&self, cql: &str) -> Result<PreparedStatement> {
        prepare_conditional(&self.session, cql).await
    }

    /// Runs a write.
    pub(super) async fn write(
        &self,
        operation: &'static str,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<()> {
        timed(
            "scylla",
            operation,
            self.session.execute_unpaged(statement, values),
        )
        .await
        .map(drop)
        .map_err(failed)
    }

    /// Runs writes of one partition together: a replica has all of them or none.
    pub(super) async fn batch(
        &self,
        operation: &'static str,
        writes: Vec<(&PreparedStatement, Vec<CqlValue>)>,
    ) -> Result<()> {
        let mut batch = Batch::new(BatchType::Logged);
        batch.set_is_idempotent(true);
        let mut values = Vec::with_capacity(writes.len());
        for (statement, row) in writes {
            batch.append_statement(statement.clone());
            values.push(row);
        }
        timed("scylla", operation, self.session.batch(&batch, values))
            .await
            .map(drop)
            .map_err(failed)
    }

    /// Runs a read of one row.
    pub(super) async fn row<R>(
        &self,
        operation: &'static str,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<Option<R>>
    where
        R: for<'frame, 'metadata> DeserializeRow<'frame, 'metadata>,
    {
        timed("scylla", operation, self.first_row(statement, values)).await
    }

    async fn first_row<R>(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<Option<R>>
    where
        R: for<'frame, 'metadata> DeserializeRow<'frame, 'metadata>,
    {
        self.session
            .execute_unpaged(statement, values)
            .await
            .map_err(failed)?
            .into_rows_result()
            .map_err(Error::internal)?
            .maybe_first_row::<R>()
            .map_err(Error::internal)
    }

    /// Runs a read of many rows, page by page. The caller's statement bounds how many.
    pub(super) async fn rows<R>(
        &self,
        operation: &'static str,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<Vec<R>>
    where
        R: for<'frame, 'metadata> DeserializeRow<'frame, 'metadata> + 'static,
    {
        timed("scylla", operation, async {
            self.session
                .execute_iter(statement.clone(), values)
                .await
                .map_err(paging)?
                .rows_stream::<R>()
                .map_err(Error::internal)?
                .map_err(next_row)
                .try_collect()
                .await
        })
        .await
    }

    /// Runs one read of one row per key, some at a time; keys without a row are left out.
    pub(super) async fn rows_by_key<R>(
        &self,
        operation: &'static str,
        statement: &PreparedStatement,
        keys: impl IntoIterator<Item = Uuid>,
    ) -> Result<Vec<R>>
    where
        R: for<'frame, 'metadata> DeserializeRow<'frame, 'metadata> + Send,
    {
        let mut reads: Vec<BoxFuture<'_, Result<Option<R>>>> = Vec::new();
        for key in keys {
            reads.push(Box::pin(self.first_row::<R>(statement, (key,))));
        }
        let rows = timed("scylla", operation, some_at_a_time(reads)).await?;
        Ok(rows.into_iter().flatten().collect())
    }

    /// [`conditional`] on this session.
    pub(super) async fn conditional(
        &self,
        operation: &'static str,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<Conditional> {
        timed(
            "scylla",
            operation,
            conditional(&self.session, statement, values),
        )
        .await
    }
}

/// A conditional write, prepared so that the driver sends it once.
pub(super) async fn prepare_conditional(session: &Session, cql: &str) -> Result<PreparedStatement> {
    let mut statement = session.prepare(cql).await.map_err(preparing)?;
    statement.set_request_timeout(Some(CONDITIONAL_TIMEOUT));
    Ok(statement)
}

/// Runs a conditional write. After an error its outcome is unknown.
///
/// Writers that compete for a row push each other aside, and one of them may time out without knowing what came of it: then it
/// is tried again. So it may be refused because an earlier try of the same call was applied: callers look whether the row that
/// is there is what they wanted to write.
pub(super) async fn conditional(
    session: &Session,
    statement: &PreparedStatement,
    values: impl SerializeRow,
) -> Result<Conditional> {
    let deadline = Instant::now() + CONTENTION_PATIENCE;
    loop {
        match session.execute_unpaged(statement, &values).await {
            Ok(answer) => return read_conditional(answer),
            Err(error) if is_contention(&error) && Instant::now() < deadline => {
                let pause = rand::random_range(10..=200);
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            Err(error) => return Err(failed(error)),
        }
    }
}

fn read_conditional(answer: QueryResult) -> Result<Conditional> {
    let rows = answer.into_rows_result().map_err(Error::internal)?;
    // Cassandra answers a success with `[applied]` alone, ScyllaDB with the row before too: only names can be relied on.
    let names: Vec<String> = rows
        .column_specs()
        .iter()
        .map(|column| column.name().to_owned())
        .collect();
    let row = rows.first_row::<Row>().map_err(Error::internal)?;
    let mut columns = Vec::new();
    let mut applied = None;
    for (name, value) in names.into_iter().zip(row.columns) {
        match value {
            Some(CqlValue::Boolean(value)) if name == "[applied]" => applied = Some(value),
            Some(value) => columns.push((name, value)),
            None => {}
        }
    }
    match applied {
        Some(true) => Ok(Conditional::Applied),
        Some(false) => Ok(Conditional::Refused(columns)),
        None => Err(Error::defect(
            "a conditional write was answered without [applied]",
        )),
    }
}

/// Whether a conditional write met too many others on its row.
fn is_contention(error: &ExecutionError) -> bool {
    let ExecutionError::LastAttemptError(RequestAttemptError::DbError(error, _)) = error else {
        return false;
    };
    match error {
        DbError::WriteTimeout { write_type, .. } => *write_type == WriteType::Cas,
        DbError::ReadTimeout { consistency, .. } => {
            matches!(consistency, Consistency::LocalSerial | Consistency::Serial)
        }
        _ => false,
    }
}

/// Waits for all, [`CONCURRENCY`] of them under way at once; answers in any order. The first error ends it.
pub(super) async fn some_at_a_time<T>(work: Vec<BoxFuture<'_, Result<T>>>) -> Result<Vec<T>> {
    stream::iter(work)
        .buffer_unordered(CONCURRENCY)
        .try_collect()
        .await
}

/// A column of a refused conditional write's row.
pub(super) fn column<'a>(row: &'a [(String, CqlValue)], name: &str) -> Option<&'a CqlValue> {
    row.iter()
        .find(|(column, _)| column == name)
        .map(|(_, value)| value)
}

/// CQL has no unsigned numbers. What is stored here never comes near the limit.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The reverse of [`signed`].
pub(super) fn unsigned(number: i64) -> Result<u64> {
    u64::try_from(number).map_err(|_| Error::defect("a stored number is negative"))
}

pub(super) fn cql_time(time: Timestamp) -> CqlTimestamp {
    CqlTimestamp(time.0)
}

pub(super) fn failed(error: ExecutionError) -> Error {
    match &error {
        ExecutionError::BadQuery(_) => Error::internal(error),
        ExecutionError::LastAttemptError(attempt) if is_defect(attempt) => Error::internal(error),
        _ => Error::unavailable("scylla", error),
    }
}

fn preparing(error: PrepareError) -> Error {
    match &error {
        PrepareError::AllAttemptsFailed { first_attempt } if is_defect(first_attempt) => {
            Error::internal(error)
        }
        _ => Error::unavailable("scylla", error),
    }
}

fn paging(error: PagerExecutionError) -> Error {
    match error {
        PagerExecutionError::NextPageError(NextPageError::RequestFailure(_))
        | PagerExecutionError::UseKeyspaceError(_) => Error::unavailable("scylla", error),
        _ => Error::internal(error),
    }
}

fn next_row(error: NextRowError) -> Error {
    match &error {
        NextRowError::NextPageError(NextPageError::RequestFailure(_)) => {
            Error::unavailable("scylla", error)
        }
        _ => Error::internal(error),
    }
}

/// Whether the database understood that we asked for something wrong, as opposed to being unable to answer now.
fn is_defect(error: &RequestAttemptError) -> bool {
    match error {
        RequestAttemptError::SerializationError(_)
        | RequestAttemptError::CqlRequestSerialization(_)
        | RequestAttemptError::CqlResultParseError(_)
        | RequestAttemptError::CqlErrorParseError(_)
        | RequestAttemptError::UnexpectedResponse(_) => true,
        RequestAttemptError::DbError(error, _) => matches!(
            error,
            DbError::SyntaxError
                | DbError::Invalid
                | DbError::AlreadyExists { .. }
                | DbError::FunctionFailure { .. }
                | DbError::Unauthorized
                | DbError::ConfigError
                | DbError::ProtocolError
        ),
        _ => false,
    }
}
