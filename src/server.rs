//! The server: opens what every stage stands on, starts listeners and workers, stops them in order.
//!
//! Start: lock, database, master key, admin key, DKIM keys, then every listener is bound, and only when all
//! of them are does anything accept. Stop (SIGTERM, SIGINT): listeners close and workers take nothing new;
//! what is in flight has 30 s; then the database commits what is queued and closes. Whatever is cut off was
//! not acknowledged, so it is still its sender's, or still in the queue.
//!
//! A task that ends before its time is a fault of ours: the process stops with an error, and whoever
//! supervises it starts it again.

use std::fmt;
use std::fs::{DirBuilder, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::limits::STOP_GRACE;
use crate::config::{Config, DatabaseUrl};
use crate::deliver::dkim::DkimError;
use crate::disk::Disk;
use crate::dns::{DnsError, Resolver};
use crate::domains;
use crate::floor::Floor;
use crate::inbox;
use crate::ours::Domains;
use crate::secrets::{Secrets, SecretsError};
use crate::smtp::{Entrance, Guard};
use crate::spool::Spool;
use crate::store::body::BodyStore;
use crate::store::{Store, StoreError, dkim_key};
use crate::tls::{Tls, TlsError};

mod admin_key;
mod files;

pub use admin_key::{ADMIN_KEY_FILE, AdminKeyError, ensure_admin_key, new_admin_key};

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("{path}: {source}")]
    DataDir { path: PathBuf, source: io::Error },
    #[error("{0} is in use by another Gatepost; SQLite serves one process (PostgreSQL serves many)")]
    Locked(PathBuf),
    #[error("database {url}: {source}")]
    Database { url: DatabaseUrl, source: StoreError },
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    #[error(
        "the database holds encrypted rows, and there is no master key at {0}: put it back from its backup, or name \
         it in secrets.master_key_file or GATEPOST_MASTER_KEY"
    )]
    NoMasterKey(PathBuf),
    #[error(transparent)]
    AdminKey(#[from] AdminKeyError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("DNS: {0}")]
    Dns(#[from] DnsError),
    #[error(transparent)]
    Dkim(#[from] DkimError),
    #[error("the operator's inboxes: {0}")]
    OperatorInboxes(StoreError),
    #[error("bodies: {0}")]
    Bodies(StoreError),
    #[error("{key} {address}: {source}")]
    Listen { key: &'static str, address: SocketAddr, source: io::Error },
    #[error("{0}")]
    Signals(io::Error),
    #[error("{0} ended before its time")]
    TaskEnded(&'static str),
}

/// A server whose listeners all accept.
pub struct Server {
    floor: Arc<Floor>,
    ready: Ready,
    shutdown: CancellationToken,
    tasks: JoinSet<&'static str>,
    signals: Signals,
    /// Held, not read: the lock goes with the process, however it ends.
    _lock: File,
}

/// Heard from before the `ready` line on: whoever waits for that may send one at once.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn listen() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }
}

/// Where the server listens, as the `ready` line says it.
#[derive(Debug, Clone, Default)]
pub struct Ready {
    pub smtp: Vec<SocketAddr>,
    pub http: Vec<SocketAddr>,
}

impl fmt::Display for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |addresses: &[SocketAddr]| match addresses {
            [] => "-".to_owned(),
            some => some.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(","),
        };
        write!(f, "ready smtp={} submission=- imap=- http={}", list(&self.smtp), list(&self.http))
    }
}

/// Opens the data folder, the database and everything else that a command needs, without starting anything.
pub async fn open_floor(config: Config, dev: bool) -> Result<Arc<Floor>, ServerError> {
    make_data_dir(&config.data_dir)?;
    if let DatabaseUrl::Sqlite(path) = &config.database.url
        && let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty())
    {
        make_data_dir(folder)?;
    }
    let clock = Clock::system();
    let url = &config.database.url;
    let store = Store::open(url, clock.clone())
        .await
        .map_err(|source| ServerError::Database { url: url.clone(), source })?;
    let secrets = open_secrets(&config, &store).await?;
    let tls = Tls::open(&config.hostname, &config.data_dir, config.tls.files.as_ref())?;
    let folder = config.data_dir.join("spool");
    let spool = Spool::open(&folder).map_err(|source| ServerError::DataDir { path: folder, source })?;
    let floor = Floor {
        bodies: BodyStore::open(&config.storage.url, spool.clone()).map_err(ServerError::Bodies)?,
        spool,
        dns: Resolver::new(&config.dns.servers)?,
        disk: Disk::watch(&config, &clock),
        domains: Domains::new(&config.domains),
        tally: Default::default(),
        // Until the first look: what an operator set before this start holds from its first claim on.
        budgets_set: true.into(),
        config: Arc::new(config),
        clock,
        store,
        tls,
        secrets,
        dev,
    };
    Ok(Arc::new(floor))
}

/// Readable by us alone: what is in it opens mail, keys and all.
fn make_data_dir(path: &Path) -> Result<(), ServerError> {
    let failed = |source| ServerError::DataDir { path: path.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)
}

/// The master key. A new one would make every sealed row unreadable without anybody noticing until mail
/// goes out unsigned, so it is made only for a database that holds none.
async fn open_secrets(config: &Config, store: &Store) -> Result<Secrets, ServerError> {
    let path = &config.secrets.master_key_file;
    let sealed: Result<bool, StoreError> = store.read(|tx| Box::pin(dkim_key::any(tx))).await;
    let sealed =
        sealed.map_err(|source| ServerError::Database { url: config.database.url.clone(), source })?;
    let given = std::env::var("GATEPOST_MASTER_KEY").ok().filter(|key| !key.is_empty());
    let secrets = match given {
        Some(key) => Secrets::from_text(&key, "GATEPOST_MASTER_KEY")?,
        None if sealed && !path.exists() => return Err(ServerError::NoMasterKey(path.clone())),
        None => Secrets::open_or_create(path)?,
    };
    Ok(secrets)
}

impl Server {
    pub async fn start(config: Config, dev: bool) -> Result<Server, ServerError> {
        files::raise_limit(config.smtp.guard.limits.sessions);
        let lock = lock(&config)?;
        let floor = open_floor(config, dev).await?;
        let folder = || floor.config.data_dir.join("spool");
        floor.spool.sweep().map_err(|source| ServerError::DataDir { path: folder(), source })?;
        ensure_admin_key(&floor).await?;
        domains::begin(&floor).await?;
        inbox::ensure_operator_inboxes(&floor).await.map_err(ServerError::OperatorInboxes)?;
        let smtp = bind("smtp.listen", &floor.config.smtp.listen).await?;
        let smtp_tls = bind("smtp.listen_tls", &floor.config.smtp.listen_tls).await?;
        let http = bind("http.listen", &floor.config.http.listen).await?;
        let mut server = Server {
            ready: Ready { smtp: addresses(smtp.iter().chain(&smtp_tls)), http: addresses(&http) },
            shutdown: CancellationToken::new(),
            tasks: JoinSet::new(),
            signals: Signals::listen().map_err(ServerError::Signals)?,
            floor,
            _lock: lock,
        };
        server.start_workers();
        let guard = Guard::open(&server.floor);
        let clear = smtp.into_iter().map(|listener| (Entrance::Clear, listener));
        for (entrance, listener) in clear.chain(smtp_tls.into_iter().map(|l| (Entrance::Tls, l))) {
            let (floor, shutdown) = server.for_task();
            let guard = Arc::clone(&guard);
            server.spawn("SMTP listener", crate::smtp::serve(floor, guard, entrance, listener, shutdown));
        }
        for listener in http {
            let (floor, shutdown) = server.for_task();
            server.spawn("HTTP listener", crate::api::serve(floor, listener, shutdown));
        }
        Ok(server)
    }

    fn start_workers(&mut self) {
        let (floor, shutdown) = self.for_task();
        self.spawn("domains", floor.domains.clone().keep(floor.store.clone(), shutdown));
        let (floor, shutdown) = self.for_task();
        self.spawn("domain checks", domains::watch(floor, shutdown));
        let (floor, shutdown) = self.for_task();
        self.spawn("work sweeper", crate::work::sweep(floor, shutdown));
        let (floor, shutdown) = self.for_task();
        self.spawn("rates", crate::gate::watch(floor, shutdown));
        let (floor, shutdown) = self.for_task();
        self.spawn("queue", crate::queue::run(floor, shutdown));
        let (floor, shutdown) = self.for_task();
        let (store, bodies, clock) = (floor.store.clone(), floor.bodies.clone(), floor.clock.clone());
        self.spawn("retention", crate::store::retention::run(store, bodies, clock, shutdown));
        if self.floor.config.reports.dmarc || self.floor.config.reports.tls {
            let (floor, shutdown) = self.for_task();
            self.spawn("reports", crate::reports::send(floor, shutdown));
        }
        // SQLite's events are numbered as they commit.
        if self.floor.store.is_shared() {
            let (floor, shutdown) = self.for_task();
            self.spawn("event stamper", crate::events::stamp(floor, shutdown));
        }
    }

    fn for_task(&self) -> (Arc<Floor>, CancellationToken) {
        (Arc::clone(&self.floor), self.shutdown.clone())
    }

    fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(async move {
            task.await;
            name
        });
    }

    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    pub fn floor(&self) -> &Arc<Floor> {
        &self.floor
    }

    /// Runs until SIGTERM or SIGINT, then stops in order. `hangup` is called at SIGHUP, beside reading the
    /// certificates again.
    pub async fn run(self, hangup: impl Fn()) -> Result<(), ServerError> {
        let Server { floor, shutdown, mut tasks, mut signals, _lock, .. } = self;
        let fault = loop {
            tokio::select! {
                _ = signals.terminate.recv() => break None,
                _ = signals.interrupt.recv() => break None,
                _ = signals.hang_up.recv() => {
                    match floor.tls.reload() {
                        Ok(()) => tracing::info!("certificates are read again"),
                        Err(error) => tracing::error!(%error, "the certificates are kept: the new ones do not work"),
                    }
                    hangup();
                }
                Some(ended) = tasks.join_next() => {
                    let name = ended.unwrap_or("a task that panicked");
                    tracing::error!(task = name, "ended before its time: stopping");
                    break Some(ServerError::TaskEnded(name));
                }
            }
        };
        tracing::info!("stopping: nothing new is accepted, what is in flight finishes");
        tokio::select! {
            () = stop(&floor, &shutdown, &mut tasks) => {}
            // Ctrl-C again: in a hurry. Nothing that was acknowledged can be lost by it. A second SIGTERM means
            // nothing: `timeout` and some supervisors send it to the process and to its group.
            _ = signals.interrupt.recv() => tracing::warn!("stopped at once"),
        }
        fault.map_or(Ok(()), Err)
    }
}

async fn stop(floor: &Floor, shutdown: &CancellationToken, tasks: &mut JoinSet<&'static str>) {
    shutdown.cancel();
    let finished = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(STOP_GRACE, finished).await.is_err() {
        tracing::warn!(tasks = tasks.len(), "still busy after the grace period: cut off");
        tasks.shutdown().await;
    }
    floor.store.close().await;
    tracing::info!("stopped");
}

/// One process on a SQLite file: a second would send the first one's mail again. PostgreSQL's nodes have a
/// data folder each, and this keeps it theirs.
fn lock(config: &Config) -> Result<File, ServerError> {
    make_data_dir(&config.data_dir)?;
    let path = config.data_dir.join("gatepost.lock");
    let failed = |source| ServerError::DataDir { path: path.clone(), source };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(ServerError::Locked(config.data_dir.clone())),
        Err(std::fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}

async fn bind(key: &'static str, wanted: &[SocketAddr]) -> Result<Vec<TcpListener>, ServerError> {
    let mut listeners = vec![];
    for address in wanted {
        let bound = match TcpListener::bind(address).await {
            // A machine without IPv6 has no [::]; every interface was meant, so take those there are.
            Err(_) if address.is_ipv6() && address.ip().is_unspecified() && !has_ipv6().await => {
                TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
            }
            bound => bound,
        };
        listeners.push(bound.map_err(|source| ServerError::Listen { key, address: *address, source })?);
    }
    Ok(listeners)
}

async fn has_ipv6() -> bool {
    TcpListener::bind((std::net::Ipv6Addr::LOCALHOST, 0)).await.is_ok()
}

fn addresses<'l>(listeners: impl IntoIterator<Item = &'l TcpListener>) -> Vec<SocketAddr> {
    listeners.into_iter().filter_map(|listener| listener.local_addr().ok()).collect()
}
