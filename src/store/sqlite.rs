//! SQLite: one writer thread that commits in groups, several readers, each with its own connection.
//!
//! The writer takes every job that waits (at most `SQLITE_GROUP`), runs them one after the other in one
//! transaction, commits once, and only then answers. A job that fails is undone alone. WAL with
//! `synchronous=FULL`: the fsync of that one COMMIT covers every job of the group (SQLite: "FULL … syncs the
//! WAL after each transaction commit"). A crash before it loses the group, of which nobody has heard yet.
//!
//! The log is folded into the database by a thread of its own, so that nobody waits for it (`Log`).
//!
//! A closure's future never waits on SQLite, because every statement completes at once; it is polled once on
//! the thread that owns the connection.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rusqlite::types::{ToSqlOutput, ValueRef};
use tokio::sync::oneshot;

use super::{Connection, Row, StoreError, Tx, Value, Wakeups, migrate};
use crate::clock::Clock;
use crate::config::limits;

/// Something to write, and who asked for it.
trait WriteJob: Send {
    /// Runs in the transaction, again where that was undone; whether its effects are to be kept.
    fn run(&mut self, tx: &mut Tx) -> bool;
    /// Called after the COMMIT, with its outcome. Dropped without it: the job was not run.
    fn answer(self: Box<Self>, committed: Result<(), StoreError>);
}

type ReadJob = Box<dyn FnOnce(&mut Tx) + Send>;

struct Job<T, E, F> {
    f: F,
    outcome: Option<Result<T, E>>,
    asker: oneshot::Sender<Result<T, E>>,
}

impl<T, E, F> WriteJob for Job<T, E, F>
where
    T: Send,
    E: From<StoreError> + Send,
    F: for<'t> Fn(&'t mut Tx) -> BoxFuture<'t, Result<T, E>> + Send,
{
    fn run(&mut self, tx: &mut Tx) -> bool {
        // Of a run that was undone.
        self.outcome = None;
        let outcome = poll_once((self.f)(tx));
        let keep = outcome.is_ok();
        self.outcome = Some(outcome);
        keep
    }

    fn answer(self: Box<Self>, committed: Result<(), StoreError>) {
        let Some(outcome) = self.outcome else { return };
        // The asker may be gone (its client hung up): then nobody is told, and nothing was promised.
        drop(self.asker.send(committed.map_err(E::from).and(outcome)));
    }
}

/// After a job failed, so many groups run each job in a savepoint: failures come in bursts, and each one in a
/// group without savepoints runs the group twice.
const CAREFUL: u32 = 16;

/// Pages of the log from which on it is folded into the database: 64 MiB. Pages that change all the time (the
/// ends of indexes) are written back once for many changes.
const CHECKPOINT_PAGES: u32 = 16_384;
/// Passes beside the writer until it takes the rest upon itself.
const CHECKPOINT_PASSES: usize = 3;
/// Pages that the writer folds in a few milliseconds.
const CHECKPOINT_REST: i64 = 1_000;

#[derive(Clone)]
pub(super) struct Sqlite {
    writer: async_channel::Sender<Box<dyn WriteJob>>,
    readers: async_channel::Sender<ReadJob>,
    stopped: async_channel::Receiver<()>,
}

impl Sqlite {
    pub(super) async fn open(path: &Path, clock: Clock, wakeups: Wakeups) -> Result<Sqlite, StoreError> {
        let (writer, write_jobs) = async_channel::bounded(limits::SQLITE_WRITE_QUEUE);
        let (readers, read_jobs) = async_channel::bounded(limits::SQLITE_READ_QUEUE);
        let (alive, stopped) = async_channel::bounded(1);
        let path = path.to_owned();
        let (opened, opening) = oneshot::channel();
        let reader_path = path.clone();
        let reader_clock = clock.clone();
        let (checkpoints, asked) = async_channel::bounded(1);
        let log = Arc::new(Log::default());
        let writer_log = Arc::clone(&log);
        spawn("store-writer", move || {
            let _alive = alive;
            match open_writer(&path, &clock, Arc::clone(&writer_log)) {
                Ok(tx) => {
                    if opened.send(Ok(())).is_ok() {
                        Writer { tx, clock, wakeups, careful: 0, log: writer_log, checkpoints, asked: false }
                            .run(&write_jobs);
                    }
                }
                Err(e) => drop(opened.send(Err(e))),
            }
        })?;
        opening.await.map_err(|_| StoreError::Closed)??;
        let connection = open_connection(&reader_path)?;
        spawn("store-checkpoint", move || checkpoint_loop(&connection, &log, &asked))?;
        for _ in 0..limits::SQLITE_READERS {
            let connection = open_connection(&reader_path)?;
            connection.execute_batch("PRAGMA query_only = 1").map_err(failure)?;
            let jobs: async_channel::Receiver<ReadJob> = read_jobs.clone();
            let clock = reader_clock.clone();
            spawn("store-reader", move || read_loop(connection, &clock, &jobs))?;
        }
        Ok(Sqlite { writer, readers, stopped })
    }

    pub(super) async fn write<T, E, F>(&self, f: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: for<'t> Fn(&'t mut Tx) -> BoxFuture<'t, Result<T, E>> + Send + Sync + 'static,
    {
        let (asker, answered) = oneshot::channel();
        let job: Box<dyn WriteJob> = Box::new(Job { f, outcome: None, asker });
        self.writer.send(job).await.map_err(|_| StoreError::Closed)?;
        // Dropped unanswered: its group could not begin, or was lost. Another time it may do.
        answered.await.map_err(|_| StoreError::Unavailable("the transaction was not run".to_owned()))?
    }

    pub(super) async fn read<T, E, F>(&self, f: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T, E>> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job: ReadJob = Box::new(move |tx| drop(answer.send(poll_once(f(tx)))));
        self.readers.send(job).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }

    pub(super) async fn close(&self) {
        self.writer.close();
        self.readers.close();
        // Ends when the writer thread has dropped its side, after the last commit.
        let _closed = self.stopped.recv().await;
    }
}

/// The outcome of a closure whose statements all complete at once. One that waits on anything else breaks the
/// rule that a closure awaits nothing but its transaction, and fails.
fn poll_once<T, E: From<StoreError>>(future: BoxFuture<'_, Result<T, E>>) -> Result<T, E> {
    std::panic::AssertUnwindSafe(future)
        .catch_unwind()
        .now_or_never()
        .unwrap_or_else(|| {
            Ok(Err(E::from(StoreError::Statement("a closure waited for something else".into()))))
        })
        .unwrap_or_else(|_| Err(E::from(StoreError::Statement("a closure panicked".into()))))
}

fn spawn(name: &str, f: impl FnOnce() + Send + 'static) -> Result<(), StoreError> {
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(f);
    spawned.map(drop).map_err(|e| StoreError::Unavailable(format!("cannot start a thread: {e}")))
}

fn open_connection(path: &PathBuf) -> Result<rusqlite::Connection, StoreError> {
    let connection = rusqlite::Connection::open(path)
        .map_err(|e| StoreError::Unavailable(format!("{}: {e}", path.display())))?;
    connection.busy_timeout(Duration::from_secs(10)).map_err(failure)?;
    connection.set_prepared_statement_cache_capacity(256);
    // A plan is made once and kept: without this SQLite plans a statement anew whenever a bound value might
    // let it use another partial index, which costs more than running it.
    connection
        .set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)
        .map_err(failure)?;
    connection
        .execute_batch(
            // A message changes some 25 pages, most of them the ends of its inbox's own indexes: what a commit
            // syncs is their number times their size. A log that grew beyond 128 MiB is cut when it begins anew.
            "PRAGMA page_size = 4096;
             PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;
             PRAGMA journal_size_limit = 134217728;
             PRAGMA cache_size = -32768;
             PRAGMA temp_store = MEMORY;",
        )
        .map_err(failure)?;
    Ok(connection)
}

fn open_writer(path: &PathBuf, clock: &Clock, log: Arc<Log>) -> Result<Tx, StoreError> {
    let mut connection = open_connection(path)?;
    connection.execute_batch("PRAGMA wal_autocheckpoint = 0").map_err(failure)?;
    let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).map_err(failure)?;
    if mode != "wal" {
        return Err(StoreError::Unfit(format!(
            "{}: SQLite refuses WAL here (it says {mode:?})",
            path.display()
        )));
    }
    migrate::sqlite(&connection, clock.now())?;
    let grown = move |_: &mut rusqlite::hooks::Wal, pages: std::ffi::c_int| {
        log.pages.store(pages.unsigned_abs(), Ordering::Relaxed);
        Ok(())
    };
    connection.wal_hook(Some(grown)).map_err(failure)?;
    Ok(Tx::new(Connection::Sqlite(connection), clock.now()))
}

/// What the writer and the checkpointer tell one another of the write-ahead log.
#[derive(Default)]
struct Log {
    /// Its pages after the last commit.
    pages: AtomicU32,
    /// Most of it was folded into the database just now.
    folded: AtomicBool,
}

/// Folds the log into the database beside the writer. A pass leaves what was committed during it; when little
/// is left, the writer folds the rest between two commits.
fn checkpoint_loop(connection: &rusqlite::Connection, log: &Log, asked: &async_channel::Receiver<()>) {
    while asked.recv_blocking().is_ok() {
        for _ in 0..CHECKPOINT_PASSES {
            let pass = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
                Ok((row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
            });
            let Ok((_, folded)) = pass else { break };
            if i64::from(log.pages.load(Ordering::Relaxed)) - folded < CHECKPOINT_REST {
                break;
            }
        }
        log.folded.store(true, Ordering::Release);
    }
}

struct Writer {
    tx: Tx,
    clock: Clock,
    wakeups: Wakeups,
    log: Arc<Log>,
    /// Asks for a checkpoint.
    checkpoints: async_channel::Sender<()>,
    /// One is asked for, and not done.
    asked: bool,
    /// Groups that are still run with a savepoint for each job, because one failed lately.
    careful: u32,
}

impl Writer {
    fn run(mut self, jobs: &async_channel::Receiver<Box<dyn WriteJob>>) {
        while let Ok(first) = jobs.recv_blocking() {
            let mut group = Vec::with_capacity(limits::SQLITE_GROUP);
            group.push(first);
            while group.len() < limits::SQLITE_GROUP {
                match jobs.try_recv() {
                    Ok(job) => group.push(job),
                    Err(_) => break,
                }
            }
            self.commit(group);
            self.fold();
        }
        // The last one out folds the WAL into the database, so that a stopped server is one file.
        drop(self.batch("PRAGMA wal_checkpoint(TRUNCATE)"));
    }

    /// One transaction for the whole group; every job hears the outcome of the COMMIT that covers it.
    ///
    /// A savepoint costs a copy of every page that its job touches, so there is none until a job fails: then
    /// the transaction is undone and the group runs again, each job in a savepoint of its own.
    fn commit(&mut self, mut group: Vec<Box<dyn WriteJob>>) {
        let whole = self.careful == 0 && self.together(&mut group);
        let outcome = if whole {
            Ok(())
        } else {
            self.careful = if self.careful == 0 { CAREFUL } else { self.careful - 1 };
            self.one_by_one(&mut group)
        };
        let outcome = outcome.and_then(|()| self.batch("COMMIT"));
        if outcome.is_err() {
            self.undo();
        }
        // Told before it is answered: whoever hears of a change finds nothing that was remembered from before.
        for topic in self.tx.wakes.drain(..) {
            self.wakeups.tell(topic);
        }
        for job in group {
            job.answer(outcome.clone());
        }
    }

    /// Has the log folded into the database, by the other thread as far as it can: what commits meanwhile it
    /// leaves behind, and the log begins anew only when nothing is left.
    fn fold(&mut self) {
        if self.log.folded.swap(false, Ordering::AcqRel) {
            drop(self.batch("PRAGMA wal_checkpoint(PASSIVE)"));
            self.asked = false;
        } else if !self.asked && self.log.pages.load(Ordering::Relaxed) >= CHECKPOINT_PAGES {
            // Once, or the other thread would begin again while the writer folds the rest.
            self.asked = self.checkpoints.try_send(()).is_ok();
        }
    }

    /// Runs the group as one; where a job fails, everything is undone and it is `false`.
    fn together(&mut self, group: &mut [Box<dyn WriteJob>]) -> bool {
        let mut fine = self.batch("BEGIN IMMEDIATE").is_ok();
        for job in group {
            // SQLite may have rolled back by itself (full disk); what ran after that would commit by itself.
            fine = fine && self.run_job(job.as_mut()) && self.in_transaction();
        }
        if !fine {
            self.undo();
        }
        fine
    }

    /// Runs each job in a savepoint, so that one that fails is undone alone.
    fn one_by_one(&mut self, group: &mut Vec<Box<dyn WriteJob>>) -> Result<(), StoreError> {
        let begun = self.batch("BEGIN IMMEDIATE");
        if begun.is_err() {
            // Not run at all: outside a transaction each statement would commit by itself.
            group.clear();
        }
        begun?;
        for (at, job) in group.iter_mut().enumerate() {
            let ended = self.cached("SAVEPOINT job").and_then(|()| {
                let keep = self.run_job(job.as_mut());
                if !keep && !self.in_transaction() {
                    // SQLite rolled the transaction back by itself (full disk, I/O error): with this job, all
                    // those before it are gone.
                    return Err(StoreError::Storage("the transaction was rolled back".into()));
                }
                if keep { self.cached("RELEASE job") } else { self.batch("ROLLBACK TO job; RELEASE job") }
            });
            if ended.is_err() {
                group.truncate(at + 1);
                return ended;
            }
        }
        Ok(())
    }

    fn run_job(&mut self, job: &mut dyn WriteJob) -> bool {
        self.tx.now = self.clock.now();
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job.run(&mut self.tx)));
        ran.unwrap_or(false)
    }

    fn undo(&mut self) {
        if self.in_transaction() {
            drop(self.batch("ROLLBACK"));
        }
        self.tx.wakes.clear();
    }

    fn in_transaction(&self) -> bool {
        matches!(&self.tx.connection, Connection::Sqlite(connection) if !connection.is_autocommit())
    }

    fn batch(&mut self, sql: &str) -> Result<(), StoreError> {
        match &self.tx.connection {
            Connection::Sqlite(connection) => connection.execute_batch(sql).map_err(failure),
            Connection::Postgres(_) => Ok(()),
        }
    }

    fn cached(&mut self, sql: &'static str) -> Result<(), StoreError> {
        match &self.tx.connection {
            Connection::Sqlite(connection) => execute(connection, sql, &[]).map(drop),
            Connection::Postgres(_) => Ok(()),
        }
    }
}

fn read_loop(connection: rusqlite::Connection, clock: &Clock, jobs: &async_channel::Receiver<ReadJob>) {
    let mut tx = Tx::new(Connection::Sqlite(connection), clock.now());
    while let Ok(job) = jobs.recv_blocking() {
        tx.now = clock.now();
        // One snapshot for the whole closure, so that a page and its count agree.
        let begun = matches!(&tx.connection, Connection::Sqlite(c) if execute(c, "BEGIN", &[]).is_ok());
        drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(&mut tx))));
        if begun && let Connection::Sqlite(c) = &tx.connection {
            drop(execute(c, "COMMIT", &[]));
        }
    }
}

pub(super) fn execute(
    connection: &rusqlite::Connection,
    sql: &str,
    args: &[Value],
) -> Result<u64, StoreError> {
    let mut statement = connection.prepare_cached(sql).map_err(failure)?;
    bind(&mut statement, args)?;
    let changed = statement.raw_execute().map_err(failure)?;
    #[cfg(test)]
    spent::note(&statement, args, &[]);
    Ok(changed as u64)
}

/// Gives `$3` the third argument, as PostgreSQL does. To SQLite `$3` is a name, and names are numbered in the
/// order in which they first appear: bound by position, `SET a = $3 WHERE b = $1` would get the first
/// argument into `a`.
fn bind(statement: &mut rusqlite::Statement<'_>, args: &[Value]) -> Result<(), StoreError> {
    for index in 1..=statement.parameter_count() {
        let name = statement.parameter_name(index).unwrap_or("?");
        let number = name.strip_prefix('$').and_then(|number| number.parse::<usize>().ok());
        let argument = number.and_then(|number| args.get(number.checked_sub(1)?));
        let argument = argument.ok_or_else(|| StoreError::Statement(format!("no argument for {name}")))?;
        statement.raw_bind_parameter(index, argument).map_err(failure)?;
    }
    Ok(())
}

pub(super) fn rows(
    connection: &rusqlite::Connection,
    sql: &str,
    args: &[Value],
) -> Result<Vec<Row>, StoreError> {
    let mut statement = connection.prepare_cached(sql).map_err(failure)?;
    let columns = statement.column_count();
    bind(&mut statement, args)?;
    let mut found = statement.raw_query();
    let mut rows = Vec::new();
    while let Some(row) = found.next().map_err(failure)? {
        let mut values = Vec::with_capacity(columns);
        for i in 0..columns {
            values.push(value(row.get_ref(i).map_err(failure)?)?);
        }
        rows.push(Row(values));
    }
    #[cfg(test)]
    {
        drop(found);
        spent::note(&statement, args, &rows);
    }
    Ok(rows)
}

/// What statements cost, counted for tests on the thread that runs them: work, which is the same on every
/// machine, where time is not.
#[cfg(test)]
pub(crate) mod spent {
    use std::cell::Cell;

    use rusqlite::StatementStatus;

    use super::{Row, Value};

    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub(crate) struct Spent {
        pub statements: u64,
        /// Instructions of SQLite's virtual machine: grows with the rows that are walked through.
        pub steps: u64,
        /// Octets of arguments and of rows that were fetched.
        pub octets: u64,
    }

    thread_local! {
        static SPENT: Cell<Spent> = const { Cell::new(Spent { statements: 0, steps: 0, octets: 0 }) };
    }

    pub(super) fn note(statement: &rusqlite::Statement<'_>, args: &[Value], rows: &[Row]) {
        let size = |value: &Value| match value {
            Value::Text(Some(text)) => text.len() as u64,
            Value::Bytes(Some(octets)) => octets.len() as u64,
            _ => 8,
        };
        let fetched = rows.iter().flat_map(|row| &row.0);
        let mut spent = SPENT.get();
        spent.statements += 1;
        spent.steps += statement.reset_status(StatementStatus::VmStep) as u64;
        spent.octets += args.iter().chain(fetched).map(size).sum::<u64>();
        SPENT.set(spent);
    }

    /// What was spent since the last time that it was asked; asked within the transaction.
    pub(crate) fn take() -> Spent {
        SPENT.take()
    }
}

fn value(value: ValueRef<'_>) -> Result<Value, StoreError> {
    Ok(match value {
        ValueRef::Null => Value::Int(None),
        ValueRef::Integer(n) => Value::Int(Some(n)),
        ValueRef::Text(text) => Value::Text(Some(String::from_utf8_lossy(text).into_owned())),
        ValueRef::Blob(octets) => Value::Bytes(Some(octets.to_vec())),
        ValueRef::Real(_) => {
            return Err(StoreError::Statement("a query gave a floating-point number".into()));
        }
    })
}

impl rusqlite::ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Value::Int(Some(n)) => ValueRef::Integer(*n),
            Value::Text(Some(text)) => ValueRef::Text(text.as_bytes()),
            Value::Bytes(Some(octets)) => ValueRef::Blob(octets),
            Value::Int(None) | Value::Text(None) | Value::Bytes(None) => ValueRef::Null,
        }))
    }
}

pub(super) fn failure(error: rusqlite::Error) -> StoreError {
    use rusqlite::ErrorCode;
    let text = error.to_string();
    match error.sqlite_error_code() {
        Some(ErrorCode::ConstraintViolation) => StoreError::Conflict(text),
        Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure | ErrorCode::ReadOnly) => {
            StoreError::Storage(text)
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::CannotOpen) => {
            StoreError::Unavailable(text)
        }
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Damaged(text),
        _ => StoreError::Statement(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SQLite numbers `$3` by where it first stands; the inbox's counter was never found because of it.
    #[test]
    fn a_parameter_is_the_argument_that_its_number_says() {
        let connection = rusqlite::Connection::open_in_memory().unwrap();
        execute(&connection, "CREATE TABLE t (a BIGINT, b BIGINT)", &[]).unwrap();
        execute(&connection, "INSERT INTO t (a, b) VALUES ($2, $1)", &[1i64.into(), 2i64.into()]).unwrap();
        let sql = "UPDATE t SET a = a + $3 WHERE b = $1 AND a = $2 RETURNING a, $1";
        let found = rows(&connection, sql, &[1i64.into(), 2i64.into(), 40i64.into()]).unwrap();
        assert_eq!(
            found.first().map(|row| (row.get::<i64>(0).unwrap(), row.get::<i64>(1).unwrap())),
            Some((42, 1))
        );
        assert!(
            execute(&connection, "UPDATE t SET a = $2", &[1i64.into()]).is_err(),
            "an argument is missing"
        );
    }
}
