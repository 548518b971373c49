//! The database, behind one small face: SQLite through rusqlite, PostgreSQL through sqlx, one SQL text.
//!
//! `write` runs a closure in one transaction and returns once its effects are durable; only then may anybody
//! say 250 or 2xx. `read` runs one that changes nothing. Both closures await nothing but their transaction.
//! The SQL stands in the files beside this one, a file for each noun, with `$1` parameters, integers, text and
//! octets; where the databases differ, `Tx::either` takes both texts in the one place that needs them.
//!
//! Invariants: SQLite in WAL with `synchronous=FULL`, one writer, group commit (sqlite.rs). PostgreSQL with
//! `synchronous_commit=on`, one transaction a closure, an operation row that settles a lost COMMIT
//! (postgres.rs). Locks are taken in the order inbox (ascending), pod, domain, organization.

pub mod attempt;
pub mod audit;
pub mod body;
pub mod budget;
pub mod delivery;
mod directory;
pub mod dkim_key;
pub mod domain;
pub mod event;
pub(crate) mod greylist;
pub mod held;
pub mod hold_rule;
pub(crate) mod idempotency;
pub mod inbox;
pub mod key;
pub mod label;
pub mod list;
pub mod message;
mod migrate;
pub mod outcome;
pub mod page;
pub mod pod;
pub mod policy;
mod postgres;
pub(crate) mod rate;
pub(crate) mod recipient;
pub(crate) mod release;
pub mod report;
pub mod report_out;
pub mod retention;
mod sqlite;
pub mod stop;
pub mod suppression;
pub mod thread;
pub mod tls_result;
pub(crate) mod trust;
mod value;
mod wakeups;
pub mod work_item;

use futures_util::future::BoxFuture;

use crate::clock::{Clock, Millis};
use crate::config::DatabaseUrl;

#[cfg(test)]
pub(crate) use sqlite::spent;
pub use value::{FromValue, Row, Value};
pub use wakeups::{Topic, Wakeups};

/// Why the database did not do it. The peer hears "try again later" or "internal error"; the log has this.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    #[error("database: {0}")]
    Unavailable(String),
    /// The disk is full, or could not be written.
    #[error("database storage: {0}")]
    Storage(String),
    /// A unique constraint: somebody else was first.
    #[error("already there: {0}")]
    Conflict(String),
    /// The connection was lost during COMMIT and the outcome could not be learnt. Nothing may be acknowledged,
    /// and nothing may be called refused.
    #[error("the outcome of the transaction is unknown: {0}")]
    Unknown(String),
    /// A statement that the database would not run: our mistake.
    #[error("statement: {0}")]
    Statement(String),
    #[error("column {column} is missing or of another type")]
    Column { column: usize },
    #[error("stored data is damaged: {0}")]
    Damaged(String),
    #[error("the store is closed")]
    Closed,
    /// A setting under which nothing could be promised.
    #[error("{0}")]
    Unfit(String),
}

impl StoreError {
    /// Whether trying again later may help.
    pub fn is_temporary(&self) -> bool {
        matches!(
            self,
            StoreError::Unavailable(_) | StoreError::Storage(_) | StoreError::Unknown(_) | StoreError::Closed
        )
    }

    pub fn is_conflict(&self) -> bool {
        matches!(self, StoreError::Conflict(_))
    }
}

/// A handle on the database; cloning shares it.
#[derive(Clone)]
pub struct Store {
    backend: Backend,
    wakeups: Wakeups,
    directory: directory::Directory,
}

#[derive(Clone)]
enum Backend {
    Sqlite(sqlite::Sqlite),
    Postgres(postgres::Postgres),
}

/// One transaction.
pub struct Tx {
    connection: Connection,
    now: Millis,
    /// Set by a statement that failed because another transaction was in the way: worth another run.
    contended: bool,
    /// Set by a statement that failed because the connection broke.
    broken: bool,
    wakes: Vec<Topic>,
}

enum Connection {
    Sqlite(rusqlite::Connection),
    Postgres(Box<sqlx::pool::PoolConnection<sqlx::Postgres>>),
}

impl Store {
    /// Connects, brings the schema up to date, and refuses a database that cannot keep our promises.
    pub async fn open(url: &DatabaseUrl, clock: Clock) -> Result<Store, StoreError> {
        let wakeups = Wakeups::new();
        let backend = match url {
            DatabaseUrl::Sqlite(path) => {
                Backend::Sqlite(sqlite::Sqlite::open(path, clock, wakeups.clone()).await?)
            }
            DatabaseUrl::Postgres(url) => {
                Backend::Postgres(postgres::Postgres::open(url, wakeups.clone()).await?)
            }
        };
        Ok(Store { backend, wakeups, directory: directory::Directory::new() })
    }

    /// Runs `f` in one transaction; its effects are durable when this returns `Ok`, and undone when `f` fails.
    /// `f` may run more than once (contention, a broken connection before COMMIT), so it must have no effect
    /// outside its transaction.
    pub async fn write<T, E, F>(&self, f: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: for<'t> Fn(&'t mut Tx) -> BoxFuture<'t, Result<T, E>> + Send + Sync + 'static,
    {
        match &self.backend {
            Backend::Sqlite(sqlite) => sqlite.write(f).await,
            Backend::Postgres(postgres) => postgres.write(f).await,
        }
    }

    /// Runs `f` on a connection that only reads.
    pub async fn read<T, E, F>(&self, f: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T, E>> + Send + 'static,
    {
        match &self.backend {
            Backend::Sqlite(sqlite) => sqlite.read(f).await,
            Backend::Postgres(postgres) => postgres.read(f).await,
        }
    }

    /// What is told after a commit: new events, work, deliveries.
    pub fn wakeups(&self) -> &Wakeups {
        &self.wakeups
    }

    /// Whether several processes may share this database.
    pub fn is_shared(&self) -> bool {
        matches!(self.backend, Backend::Postgres(_))
    }

    /// Lets what is queued commit, then closes every connection.
    pub async fn close(&self) {
        match &self.backend {
            Backend::Sqlite(sqlite) => sqlite.close().await,
            Backend::Postgres(postgres) => postgres.close().await,
        }
    }
}

impl Tx {
    fn new(connection: Connection, now: Millis) -> Tx {
        Tx { connection, now, contended: false, broken: false, wakes: Vec::new() }
    }

    /// The database's clock, read once at the start of the transaction: what leases and limits go by.
    pub fn now(&self) -> Millis {
        self.now
    }

    /// Reads the clock again: after a wait for a lock, the start of the transaction may be long ago.
    pub async fn reread_clock(&mut self) -> Result<(), StoreError> {
        if self.is_postgres() {
            let sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint";
            if let Some(row) = self.row(sql, &[]).await? {
                self.now = row.get(0)?;
            }
        }
        Ok(())
    }

    pub fn is_postgres(&self) -> bool {
        matches!(self.connection, Connection::Postgres(_))
    }

    /// The text for this database, where the two differ.
    pub fn either(&self, sqlite: &'static str, postgres: &'static str) -> &'static str {
        if self.is_postgres() { postgres } else { sqlite }
    }

    /// Tells those who wait for `topic`, once this transaction is durable.
    pub fn wake(&mut self, topic: Topic) {
        if !self.wakes.contains(&topic) {
            self.wakes.push(topic);
        }
    }

    /// Runs a statement; the number of rows it changed.
    pub async fn execute(&mut self, sql: &'static str, args: &[Value]) -> Result<u64, StoreError> {
        let outcome = match &mut self.connection {
            Connection::Sqlite(connection) => return sqlite::execute(connection, sql, args),
            Connection::Postgres(connection) => postgres::execute(connection, sql, args).await,
        };
        outcome.map_err(|e| self.noted(e))
    }

    /// Every row of a query. Queries bound their own number of rows (`LIMIT`).
    pub async fn rows(&mut self, sql: &'static str, args: &[Value]) -> Result<Vec<Row>, StoreError> {
        let outcome = match &mut self.connection {
            Connection::Sqlite(connection) => return sqlite::rows(connection, sql, args),
            Connection::Postgres(connection) => postgres::rows(connection, sql, args).await,
        };
        outcome.map_err(|e| self.noted(e))
    }

    /// The same statement for many lists of arguments; every row that it gives. SQLite runs `sqlite` for one list after
    /// the other, which costs it nothing more. PostgreSQL would pay a round trip for each, so `postgres` is one
    /// statement that gets every column as an array, for `unnest($1, $2, …)`.
    pub async fn rows_of_each(
        &mut self,
        sqlite: &'static str,
        postgres: &'static str,
        lists: &[Vec<Value>],
    ) -> Result<Vec<Row>, StoreError> {
        if lists.is_empty() {
            return Ok(Vec::new());
        }
        let outcome = match &mut self.connection {
            Connection::Sqlite(connection) => {
                let mut found = Vec::new();
                for args in lists {
                    found.append(&mut sqlite::rows(connection, sqlite, args)?);
                }
                return Ok(found);
            }
            Connection::Postgres(connection) => postgres::rows_of_all(connection, postgres, lists).await,
        };
        outcome.map_err(|e| self.noted(e))
    }

    /// The first row of a query, if there is one.
    pub async fn row(&mut self, sql: &'static str, args: &[Value]) -> Result<Option<Row>, StoreError> {
        Ok(self.rows(sql, args).await?.into_iter().next())
    }

    fn noted(&mut self, failure: postgres::Failure) -> StoreError {
        self.contended |= failure.contended;
        self.broken |= failure.broken;
        failure.error
    }
}
