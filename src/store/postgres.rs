//! PostgreSQL: a transaction for each closure, from a pool that several processes may share.
//!
//! Each transaction begins by writing a row with a name of its own into `operation` (which also fetches the
//! database's clock). When the connection breaks during COMMIT, the outcome is unknown, and guessing either
//! way loses or doubles mail. So it is looked up: we write the same name again. If the lost transaction still
//! runs, the unique key makes us wait for it; if it committed, the name is taken; if our own row goes in, it
//! did not commit and never can. (`pg_xact_status` would not do: after a crash an xid can be given out again.)
//!
//! A statement that fails because others were in the way (40001, 40P01), or a connection that breaks before
//! COMMIT, is run again; the closure has no effects elsewhere.

use std::borrow::Cow;
use std::str::FromStr;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgListener, PgPool, PgPoolOptions, PgRow};
use sqlx::{Arguments, Column, Row as _, TypeInfo, ValueRef};
use tokio::time::Instant;

use super::{Connection, Row, StoreError, Topic, Tx, Value, Wakeups, migrate};
use crate::config::limits;
use crate::ids::random_bytes;

#[derive(Clone)]
pub(super) struct Postgres {
    pool: PgPool,
    wakeups: Wakeups,
    /// What to tell other processes; coalesced, because NOTIFY takes a lock on the whole cluster at COMMIT.
    tell_others: tokio::sync::mpsc::Sender<Topic>,
}

/// A failed statement, and whether running the transaction again may help.
pub(super) struct Failure {
    pub(super) error: StoreError,
    pub(super) contended: bool,
    pub(super) broken: bool,
}

/// How a COMMIT ended that did not say so.
enum Settled {
    Committed,
    NotCommitted,
}

const CHANNEL: &str = "gatepost";

impl Postgres {
    pub(super) async fn open(url: &str, wakeups: Wakeups) -> Result<Postgres, StoreError> {
        let options = PgConnectOptions::from_str(url)
            .map_err(|e| StoreError::Unavailable(format!("the database URL: {e}")))?
            .application_name("gatepost")
            .options([
                ("synchronous_commit", "on"),
                // A transaction of a process that was stopped must not hold an inbox for ever.
                ("statement_timeout", "30000"),
                ("idle_in_transaction_session_timeout", "30000"),
            ]);
        let pool = PgPoolOptions::new()
            .max_connections(limits::POSTGRES_CONNECTIONS)
            .acquire_timeout(Duration::from_secs(5))
            .test_before_acquire(false)
            .connect_with(options)
            .await
            .map_err(|e| StoreError::Unavailable(e.to_string()))?;
        refuse_without_fsync(&pool).await?;
        migrate::postgres(&pool).await?;
        let (tell_others, told) = tokio::sync::mpsc::channel(64);
        tokio::spawn(notify_others(pool.clone(), told));
        tokio::spawn(hear_others(pool.clone(), wakeups.clone()));
        Ok(Postgres { pool, wakeups, tell_others })
    }

    pub(super) async fn write<T, E, F>(&self, f: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: for<'t> Fn(&'t mut Tx) -> BoxFuture<'t, Result<T, E>> + Send + Sync + 'static,
    {
        // In a task of its own: a client that hangs up must not leave a transaction open on a pooled connection.
        let this = self.clone();
        let done = tokio::spawn(async move { this.run(f).await });
        done.await.map_err(|_| StoreError::Statement("a closure panicked".into()))?
    }

    async fn run<T, E, F>(&self, f: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: for<'t> Fn(&'t mut Tx) -> BoxFuture<'t, Result<T, E>> + Send + Sync + 'static,
    {
        let deadline = Instant::now() + limits::POSTGRES_RETRY_FOR;
        let mut pause = Duration::from_millis(5);
        loop {
            match self.attempt(&f).await {
                Attempt::Done(outcome) => return outcome,
                Attempt::Again(error) if Instant::now() + pause > deadline => return Err(error),
                Attempt::Again(_) => {}
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    async fn attempt<T, E, F>(&self, f: &F) -> Attempt<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: for<'t> Fn(&'t mut Tx) -> BoxFuture<'t, Result<T, E>> + Send + Sync + 'static,
    {
        let operation = random_bytes::<16>();
        let mut tx = match self.begin(&operation).await {
            Ok(tx) => tx,
            Err(failure) if failure.broken => return Attempt::Again(failure.error.into()),
            Err(failure) => return Attempt::Done(Err(failure.error.into())),
        };
        // A closure that panics must not give its open transaction back to the pool.
        let Ok(outcome) = std::panic::AssertUnwindSafe(f(&mut tx)).catch_unwind().await else {
            discard(tx);
            return Attempt::Done(Err(StoreError::Statement("a closure panicked".to_owned()).into()));
        };
        let value = match outcome {
            Ok(value) => value,
            Err(e) => {
                let again = tx.contended || tx.broken;
                roll_back(tx).await;
                return if again { Attempt::Again(e) } else { Attempt::Done(Err(e)) };
            }
        };
        let wakes = std::mem::take(&mut tx.wakes);
        match command(&mut tx, "COMMIT").await {
            Ok(()) => {}
            Err(failure) if failure.contended => {
                roll_back(tx).await;
                return Attempt::Again(failure.error.into());
            }
            Err(failure) if !failure.broken => {
                roll_back(tx).await;
                return Attempt::Done(Err(failure.error.into()));
            }
            Err(failure) => {
                discard(tx);
                match self.settle(&operation).await {
                    Some(Settled::Committed) => {}
                    Some(Settled::NotCommitted) => return Attempt::Again(failure.error.into()),
                    None => return Attempt::Done(Err(StoreError::Unknown(failure.error.to_string()).into())),
                }
            }
        }
        for topic in wakes {
            self.wakeups.tell(topic);
            // A full channel already holds a notice that will be sent.
            let _full = self.tell_others.try_send(topic);
        }
        Attempt::Done(Ok(value))
    }

    async fn begin(&self, operation: &[u8; 16]) -> Result<Tx, Failure> {
        let connection = self.pool.acquire().await.map_err(failure)?;
        let mut tx = Tx::new(Connection::Postgres(Box::new(connection)), 0);
        let begun = async {
            command(&mut tx, "BEGIN").await?;
            let Connection::Postgres(connection) = &mut tx.connection else {
                return Err(Failure::plain(StoreError::Closed));
            };
            let found = rows(
                connection,
                "INSERT INTO operation (operation, at)
                 VALUES ($1, (extract(epoch FROM clock_timestamp()) * 1000)::bigint) RETURNING at",
                &[operation.as_slice().into()],
            )
            .await?;
            found.first().ok_or(StoreError::Closed).and_then(|row| row.get::<i64>(0)).map_err(Failure::plain)
        }
        .await;
        match begun {
            Ok(now) => {
                tx.now = now;
                Ok(tx)
            }
            Err(failure) => {
                discard(tx);
                Err(failure)
            }
        }
    }

    /// What became of a transaction whose COMMIT was not answered; `None` where that cannot be learnt in time.
    async fn settle(&self, operation: &[u8; 16]) -> Option<Settled> {
        let deadline = Instant::now() + limits::POSTGRES_SETTLE_FOR;
        while Instant::now() < deadline {
            let asked = async {
                let mut connection = self.pool.acquire().await.map_err(failure)?;
                execute(
                    &mut connection,
                    "INSERT INTO operation (operation, at)
                     VALUES ($1, (extract(epoch FROM clock_timestamp()) * 1000)::bigint) ON CONFLICT DO NOTHING",
                    &[operation.as_slice().into()],
                )
                .await
            };
            match tokio::time::timeout_at(deadline, asked).await {
                Ok(Ok(0)) => return Some(Settled::Committed),
                Ok(Ok(_)) => return Some(Settled::NotCommitted),
                Ok(Err(_)) => tokio::time::sleep(Duration::from_millis(100)).await,
                Err(_) => break,
            }
        }
        tracing::error!("a COMMIT was not answered and its outcome could not be looked up");
        None
    }

    pub(super) async fn read<T, E, F>(&self, f: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T, E>> + Send + 'static,
    {
        let connection = self.acquire_to_read().await?;
        let mut tx = Tx::new(Connection::Postgres(Box::new(connection)), 0);
        let Connection::Postgres(connection) = &mut tx.connection else {
            return Err(StoreError::Closed.into());
        };
        let clock = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint";
        // A connection from the pool may have died since it was used: one fresh try.
        let found = match rows(connection, clock, &[]).await {
            Ok(found) => found,
            Err(failure) if failure.broken => {
                discard(tx);
                tx = Tx::new(Connection::Postgres(Box::new(self.acquire_to_read().await?)), 0);
                tx.rows(clock, &[]).await?
            }
            Err(failure) => return Err(failure.error.into()),
        };
        tx.now = found.first().ok_or(StoreError::Closed).and_then(|row| row.get(0))?;
        let outcome = f(&mut tx).await;
        if tx.broken {
            discard(tx);
        }
        outcome
    }

    async fn acquire_to_read(&self) -> Result<sqlx::pool::PoolConnection<sqlx::Postgres>, StoreError> {
        self.pool.acquire().await.map_err(|e| failure(e).error)
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }
}

enum Attempt<T, E> {
    Done(Result<T, E>),
    Again(E),
}

/// Without fsync a power cut takes back what was acknowledged: refuse to promise anything on such a server.
async fn refuse_without_fsync(pool: &PgPool) -> Result<(), StoreError> {
    let mut connection = pool.acquire().await.map_err(|e| failure(e).error)?;
    for (setting, sql) in [
        ("fsync", "SELECT current_setting('fsync')"),
        ("full_page_writes", "SELECT current_setting('full_page_writes')"),
    ] {
        let found = rows(&mut connection, sql, &[]).await.map_err(|f| f.error)?;
        let value: String = found.first().ok_or(StoreError::Closed)?.get(0)?;
        if value != "on" {
            return Err(StoreError::Unfit(format!(
                "the PostgreSQL server runs with {setting}={value}: a power cut would lose mail that was accepted; set {setting}=on"
            )));
        }
    }
    Ok(())
}

async fn notify_others(pool: PgPool, mut told: tokio::sync::mpsc::Receiver<Topic>) {
    while let Some(first) = told.recv().await {
        let mut topics = vec![first];
        tokio::time::sleep(Duration::from_millis(10)).await;
        while let Ok(topic) = told.try_recv() {
            if !topics.contains(&topic) {
                topics.push(topic);
            }
        }
        let text = topics.iter().map(|t| t.name()).collect::<Vec<_>>().join(" ");
        let notice = sqlx::query("SELECT pg_notify($1, $2)").bind(CHANNEL).bind(text);
        // A lost notice costs a waiter its next look at the clock, no more.
        if let Err(e) = notice.execute(&pool).await {
            tracing::debug!(error = %e, "other processes were not notified");
        }
    }
}

async fn hear_others(pool: PgPool, wakeups: Wakeups) {
    while !pool.is_closed() {
        if let Err(e) = hear(&pool, &wakeups).await {
            tracing::debug!(error = %e, "listening for other processes was interrupted");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn hear(pool: &PgPool, wakeups: &Wakeups) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(CHANNEL).await?;
    loop {
        let notice = listener.recv().await?;
        for topic in Topic::ALL {
            if notice.payload().split(' ').any(|name| name == topic.name()) {
                wakeups.tell(topic);
            }
        }
    }
}

async fn command(tx: &mut Tx, sql: &'static str) -> Result<(), Failure> {
    match &mut tx.connection {
        Connection::Postgres(connection) => {
            sqlx::raw_sql(sql).execute(&mut ***connection).await.map(drop).map_err(failure)
        }
        Connection::Sqlite(_) => Ok(()),
    }
}

async fn roll_back(mut tx: Tx) {
    if tx.broken || command(&mut tx, "ROLLBACK").await.is_err() {
        discard(tx);
    }
}

/// A connection in an unknown state must not go back to the pool.
fn discard(tx: Tx) {
    if let Connection::Postgres(connection) = tx.connection {
        drop(connection.detach());
    }
}

pub(super) async fn execute(
    connection: &mut sqlx::pool::PoolConnection<sqlx::Postgres>,
    sql: &'static str,
    args: &[Value],
) -> Result<u64, Failure> {
    let done = sqlx::query_with(sql, arguments(args)?).execute(&mut **connection).await.map_err(failure)?;
    Ok(done.rows_affected())
}

pub(super) async fn rows(
    connection: &mut sqlx::pool::PoolConnection<sqlx::Postgres>,
    sql: &'static str,
    args: &[Value],
) -> Result<Vec<Row>, Failure> {
    fetch(connection, sql, arguments(args)?).await
}

/// One statement for many lists: argument `n` is the array of what they have in place `n`.
pub(super) async fn rows_of_all(
    connection: &mut sqlx::pool::PoolConnection<sqlx::Postgres>,
    sql: &'static str,
    lists: &[Vec<Value>],
) -> Result<Vec<Row>, Failure> {
    let mut arguments = PgArguments::default();
    for (n, kind) in lists.first().into_iter().flatten().enumerate() {
        let column = lists.iter().map(|list| list.get(n));
        let added = match kind {
            Value::Int(_) => arguments.add(column.map(int).collect::<Result<Vec<_>, _>>()?),
            Value::Text(_) => arguments.add(column.map(text).collect::<Result<Vec<_>, _>>()?),
            Value::Bytes(_) => arguments.add(column.map(octets).collect::<Result<Vec<_>, _>>()?),
        };
        added.map_err(|e| Failure::plain(StoreError::Statement(e.to_string())))?;
    }
    fetch(connection, sql, arguments).await
}

async fn fetch(
    connection: &mut sqlx::pool::PoolConnection<sqlx::Postgres>,
    sql: &'static str,
    arguments: PgArguments,
) -> Result<Vec<Row>, Failure> {
    let found = sqlx::query_with(sql, arguments).fetch_all(&mut **connection).await.map_err(failure)?;
    found.iter().map(row).collect()
}

fn arguments(args: &[Value]) -> Result<PgArguments, Failure> {
    let mut arguments = PgArguments::default();
    for arg in args {
        let added = match arg {
            Value::Int(_) => arguments.add(int(Some(arg))?),
            Value::Text(_) => arguments.add(text(Some(arg))?),
            Value::Bytes(_) => arguments.add(octets(Some(arg))?),
        };
        added.map_err(|e| Failure::plain(StoreError::Statement(e.to_string())))?;
    }
    Ok(arguments)
}

fn int(value: Option<&Value>) -> Result<Option<i64>, Failure> {
    match value {
        Some(Value::Int(n)) => Ok(*n),
        other => Err(misplaced(other)),
    }
}

/// PostgreSQL's text holds every character but NUL, which no text of ours may need.
fn text(value: Option<&Value>) -> Result<Option<Cow<'_, str>>, Failure> {
    match value {
        Some(Value::Text(text)) => Ok(text.as_ref().map(|text| match text.contains('\0') {
            true => text.replace('\0', "\u{fffd}").into(),
            false => text.as_str().into(),
        })),
        other => Err(misplaced(other)),
    }
}

fn octets(value: Option<&Value>) -> Result<Option<&[u8]>, Failure> {
    match value {
        Some(Value::Bytes(octets)) => Ok(octets.as_deref()),
        other => Err(misplaced(other)),
    }
}

fn misplaced(value: Option<&Value>) -> Failure {
    Failure::plain(StoreError::Statement(format!("an argument of another type than its column's: {value:?}")))
}

fn row(row: &PgRow) -> Result<Row, Failure> {
    let mut values = Vec::with_capacity(row.len());
    for (i, column) in row.columns().iter().enumerate() {
        let raw = row.try_get_raw(i).map_err(failure)?;
        let value = match column.type_info().name() {
            _ if raw.is_null() => Value::Int(None),
            "INT8" => Value::Int(row.try_get(i).map_err(failure)?),
            "INT4" => Value::Int(row.try_get::<Option<i32>, _>(i).map_err(failure)?.map(i64::from)),
            "BOOL" => Value::Int(row.try_get::<Option<bool>, _>(i).map_err(failure)?.map(i64::from)),
            "TEXT" | "VARCHAR" | "NAME" => Value::Text(row.try_get(i).map_err(failure)?),
            "BYTEA" => Value::Bytes(row.try_get(i).map_err(failure)?),
            other => {
                let text = format!("a query gave a column of type {other}; cast it to bigint or text");
                return Err(Failure::plain(StoreError::Statement(text)));
            }
        };
        values.push(value);
    }
    Ok(Row(values))
}

impl Failure {
    fn plain(error: StoreError) -> Failure {
        Failure { error, contended: false, broken: false }
    }
}

/// Sorts an error by its SQLSTATE: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
fn failure(error: sqlx::Error) -> Failure {
    let text = error.to_string();
    let Some(database) = error.as_database_error() else {
        // Anything without a SQLSTATE is about the connection.
        let broken = !matches!(error, sqlx::Error::PoolClosed | sqlx::Error::ColumnDecode { .. });
        return Failure { error: StoreError::Unavailable(text), contended: false, broken };
    };
    let code = database.code().unwrap_or_default().into_owned();
    let (error, contended, broken) = match code.as_str() {
        "40001" | "40P01" => (StoreError::Unavailable(text), true, false),
        "23505" => (StoreError::Conflict(text), false, false),
        // 57P01…57P03: the server is going down or coming up; 25P03: our transaction idled too long.
        "57P01" | "57P02" | "57P03" | "57P05" | "25P03" => (StoreError::Unavailable(text), false, true),
        code if code.starts_with("08") => (StoreError::Unavailable(text), false, true),
        // Full disk, too many connections, an I/O error, a statement that took too long.
        code if code.starts_with("53") || code.starts_with("58") => (StoreError::Storage(text), false, false),
        "57014" => (StoreError::Unavailable(text), false, false),
        _ => (StoreError::Statement(text), false, false),
    };
    Failure { error, contended, broken }
}
