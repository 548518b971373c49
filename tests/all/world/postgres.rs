//! A private PostgreSQL cluster, made by `initdb` in a temporary folder, as an unprivileged user where we are root.
//! Tests that run at the same time share it, each with a database of its own; the last one to end stops it. A shell
//! holds its leash: when the test process dies by whatever means, the cluster goes with it.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU32, Ordering},
    },
};

use tempfile::TempDir;

use super::{needs, own_address, root, run};

/// What a server under test stands on.
#[derive(Clone)]
pub enum Database {
    Sqlite,
    /// The name of a database in a cluster.
    Postgres(Arc<Cluster>, String),
}

/// A transaction that holds everybody else up.
pub struct Frozen {
    _file: Option<rusqlite::Connection>,
    session: Option<Child>,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Some(session) = &mut self.session {
            let _ = session.kill();
            let _ = session.wait();
        }
    }
}

impl Database {
    /// A database of one's own in the shared cluster; `None` where there is no PostgreSQL.
    pub fn postgres() -> Option<Database> {
        static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(|e| e.into_inner());
        let cluster = match shared.upgrade() {
            Some(cluster) => cluster,
            None => Arc::new(Cluster::new()?),
        };
        *shared = Arc::downgrade(&cluster);
        drop(shared);
        Some(cluster.database())
    }

    /// A cluster that nobody else uses, to be broken.
    pub fn own_postgres() -> Option<Database> {
        Some(Arc::new(Cluster::new()?).database())
    }

    pub fn url(&self) -> Option<String> {
        match self {
            Database::Sqlite => None,
            Database::Postgres(cluster, name) => Some(cluster.url(name)),
        }
    }

    /// Nobody changes a delivery until what this gives is dropped. `file`: of SQLite's database.
    pub fn freeze(&self, file: &std::path::Path) -> Frozen {
        match self {
            Database::Sqlite => {
                let connection = rusqlite::Connection::open(file).expect("SQLite");
                connection.busy_timeout(super::PATIENCE).expect("SQLite");
                connection.execute_batch("BEGIN IMMEDIATE").expect("SQLite's lock");
                Frozen { _file: Some(connection), session: None }
            }
            Database::Postgres(cluster, name) => {
                let mut session = cluster
                    .program("psql")
                    .args(["-XAtq", "-d", &cluster.url(name)])
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()
                    .expect("psql");
                let lock = "BEGIN; LOCK TABLE delivery IN SHARE ROW EXCLUSIVE MODE; SELECT 'frozen';\n";
                session.stdin.as_mut().unwrap().write_all(lock.as_bytes()).expect("psql");
                let mut said = String::new();
                BufReader::new(session.stdout.as_mut().unwrap()).read_line(&mut said).expect("psql");
                assert_eq!(said, "frozen\n");
                Frozen { _file: None, session: Some(session) }
            }
        }
    }

    pub fn cluster(&self) -> &Cluster {
        match self {
            Database::Sqlite => panic!("SQLite has no cluster"),
            Database::Postgres(cluster, _) => cluster,
        }
    }
}

pub struct Cluster {
    bin: PathBuf,
    dir: PathBuf,
    address: String,
    leash: Mutex<Option<Child>>,
    user: &'static str,
    next: AtomicU32,
    _folder: TempDir,
}

impl Cluster {
    fn new() -> Option<Cluster> {
        let Some(bin) = binaries() else { return needs::missing("PostgreSQL (initdb, postgres, pg_ctl)") };
        let user = if !root() {
            ""
        } else if Command::new("id").arg("postgres").output().is_ok_and(|o| o.status.success()) {
            "postgres"
        } else {
            "nobody"
        };
        let folder = tempfile::Builder::new().prefix("gatepost-pg-").tempdir().expect("folder");
        if !user.is_empty() {
            run(Command::new("chown").arg(user).arg(folder.path()));
        }
        let dir = folder.path().join("data");
        let cluster = Cluster {
            bin,
            address: own_address().to_string(),
            leash: Mutex::new(None),
            user,
            next: AtomicU32::new(1),
            dir,
            _folder: folder,
        };
        run(cluster
            .program("initdb")
            .args(["--no-sync", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C"])
            .arg("-D")
            .arg(&cluster.dir));
        let settings = format!(
            "listen_addresses = '{}'\nport = 5432\nunix_socket_directories = ''\nmax_connections = 300\n\
             shared_buffers = 64MB\nlogging_collector = off\nlog_checkpoints = off\n",
            cluster.address
        );
        let conf = cluster.dir.join("postgresql.conf");
        let text = std::fs::read_to_string(&conf).expect("postgresql.conf") + &settings;
        std::fs::write(conf, text).expect("postgresql.conf");
        cluster.start();
        Some(cluster)
    }

    /// A command of PostgreSQL, as the user that may run it.
    fn program(&self, name: &str) -> Command {
        let program = self.bin.join(name);
        let mut command = if self.user.is_empty() {
            Command::new(program)
        } else {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", self.user, "--regid", self.user, "--clear-groups"]).arg(program);
            command
        };
        command.current_dir("/tmp").env_remove("PGDATA").stdin(Stdio::null());
        command
    }

    fn database(self: Arc<Self>) -> Database {
        let name = format!("gatepost_{}", self.next.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        Database::Postgres(self, name)
    }

    fn url(&self, name: &str) -> String {
        format!("postgres://postgres@{}:5432/{name}", self.address)
    }

    /// One statement by psql.
    pub fn sql(&self, database: &str, statement: &str) -> String {
        run(self.program("psql").args(["-XAtq", "-d", &self.url(database), "-c", statement]))
    }

    /// The process that all its others descend from.
    pub fn pid(&self) -> u32 {
        let text = std::fs::read_to_string(self.dir.join("postmaster.pid")).expect("postmaster.pid");
        text.lines().next().and_then(|line| line.parse().ok()).expect("postmaster.pid")
    }

    /// The processes that serve it now; later ones are children of `pid`.
    pub fn backends(&self) -> Vec<u32> {
        let all = self.sql("postgres", "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()");
        all.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }

    /// Started, and ready for connections.
    pub fn start(&self) {
        // The leash: `read` ends when we close the pipe, or when we are no more.
        let server = self.program("postgres");
        let line = std::iter::once(server.get_program())
            .chain(server.get_args())
            .map(|word| format!("'{}'", word.to_string_lossy()))
            .collect::<Vec<_>>()
            .join(" ");
        let script = format!("{line} -D '{}' & p=$!; read x; kill -QUIT $p; wait $p", self.dir.display());
        let log = std::fs::File::options().create(true).append(true).open(self.log()).expect("log");
        let child = Command::new("sh")
            .args(["-c", &script])
            .current_dir("/tmp")
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .spawn()
            .expect("sh");
        *self.leash.lock().unwrap() = Some(child);
        let deadline = std::time::Instant::now() + super::PATIENCE;
        while !self
            .program("pg_isready")
            .args(["-q", "-h", &self.address, "-p", "5432"])
            .status()
            .is_ok_and(|s| s.success())
        {
            let log = std::fs::read_to_string(self.log()).unwrap_or_default();
            assert!(std::time::Instant::now() < deadline, "PostgreSQL did not start:\n{log}");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    /// `pg_ctl stop -m immediate`: as if it had crashed; recovery runs at the next start.
    pub fn stop_immediate(&self) {
        run(self.program("pg_ctl").args(["stop", "-m", "immediate", "-D"]).arg(&self.dir));
        self.let_go();
    }

    fn let_go(&self) {
        if let Some(mut child) = self.leash.lock().unwrap_or_else(|e| e.into_inner()).take() {
            drop(child.stdin.take());
            let _ = child.wait();
        }
    }

    fn log(&self) -> PathBuf {
        self._folder.path().join("postgres.log")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// The newest installation, wherever Debian, Fedora or PATH has it.
fn binaries() -> Option<PathBuf> {
    let mut places = Vec::new();
    for parent in ["/usr/lib/postgresql", "/usr/local/pgsql", "/usr/pgsql", "/opt/homebrew/opt"] {
        let mut found = std::fs::read_dir(parent)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path().join("bin"))
            .collect::<Vec<_>>();
        found.sort();
        places.extend(found.into_iter().rev());
    }
    places.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    places
        .into_iter()
        .find(|dir| ["initdb", "postgres", "pg_ctl"].iter().all(|name| Path::new(dir).join(name).is_file()))
}
