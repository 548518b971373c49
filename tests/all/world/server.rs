//! The server under test: the real binary, as a child process, in a folder of its own.
//!
//! `TestServer::new().inbox("ada").start().await` is a running Gatepost for `agents.example`, on loopback ports that
//! are its own and the same after every restart. When a test fails, the end of the server's log is printed.

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Mutex,
};

use serde_json::json;
use tempfile::TempDir;
use tokio::{sync::oneshot, time::timeout};

use super::{
    PATIENCE, api::Api, api::path_escape, dns::Dns, eventually, own_address, postgres::Database, signal,
    smtp::Smtp,
};

pub const DOMAIN: &str = "agents.example";
/// What a listing leaves out unless it is asked for.
pub const HIDDEN: &str = "include_spam=true&include_blocked=true&include_unauthenticated=true";
pub const ADMIN_KEY: &str = "gp_test_admin_key_0123456789abcdefghijklmnopqrstuvwxyz";

/// A server that is being described.
#[derive(Default)]
pub struct Setup {
    inboxes: Vec<String>,
    database: Option<String>,
    dns: Option<SocketAddr>,
    relay_port: Option<u16>,
    more: String,
    beside: Option<PathBuf>,
    env: Vec<(String, String)>,
}

/// A server that has been started. Killed when it is dropped.
pub struct TestServer {
    pub api: Api,
    pub smtp: SocketAddr,
    pub http: SocketAddr,
    /// The configuration, data and log; gone when the server is dropped.
    pub dir: PathBuf,
    child: Mutex<Option<Child>>,
    env: Vec<(String, String)>,
    _own_dns: Option<Dns>,
    _folder: TempDir,
}

impl TestServer {
    #[allow(clippy::new_ret_no_self)]
    pub fn new() -> Setup {
        Setup::default()
    }
}

impl Setup {
    /// An inbox that is there from the start.
    pub fn inbox(mut self, name: &str) -> Setup {
        self.inboxes.push(name.to_owned());
        self
    }

    /// On this database instead of a SQLite file.
    pub fn on(mut self, database: &Database) -> Setup {
        self.database = database.url();
        self
    }

    /// With this DNS server; without one, no name exists.
    pub fn dns(mut self, dns: &Dns) -> Setup {
        self.dns = Some(dns.address);
        self
    }

    /// With this resolver.
    pub fn resolver(mut self, address: SocketAddr) -> Setup {
        self.dns = Some(address);
        self
    }

    /// The port dialled at MX hosts.
    pub fn relay_port(mut self, port: u16) -> Setup {
        self.relay_port = Some(port);
        self
    }

    /// More of the configuration, as TOML with whole sections that are not set here.
    pub fn config(mut self, toml: &str) -> Setup {
        self.more.push_str(toml);
        self.more.push('\n');
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Setup {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A second node of the same installation: same database, same master key.
    pub fn beside(mut self, first: &TestServer) -> Setup {
        self.beside = Some(first.dir.clone());
        self
    }

    pub async fn start(self) -> TestServer {
        let folder = tempfile::Builder::new().prefix("gatepost-test-").tempdir().expect("folder");
        let dir = folder.path().to_owned();
        let address = own_address();
        let (smtp, http) = (SocketAddr::new(address, 2525), SocketAddr::new(address, 8025));
        let own_dns = match self.dns {
            Some(_) => None,
            None => Some(Dns::start("").await),
        };
        let dns = self.dns.or(own_dns.as_ref().map(|dns| dns.address)).expect("dns");
        let url = self.database.unwrap_or_else(|| format!("sqlite:{}/data/gatepost.db", dir.display()));
        let key_file = self.beside.map(|first| first.join("data/master.key").display().to_string());
        std::fs::create_dir_all(dir.join("data")).expect("folder");
        let config = format!(
            r#"hostname = "mx.{DOMAIN}"
domains = ["{DOMAIN}"]
data_dir = "{data}"
[database]
url = "{url}"
[secrets]
master_key_file = "{key_file}"
[smtp]
listen = ["{smtp}"]
[submission]
listen = []
listen_tls = []
[imap]
listen = []
listen_tls = []
[http]
listen = ["{http}"]
public_url = "http://{http}"
[dns]
servers = ["{dns}"]
[relay]
port = {relay_port}
allow_private_addresses = true
retry = ["1s", "1s", "2s", "2s", "5s"]
expire = "10m"
[relay.limits]
hold = "2s"
{more}"#,
            data = dir.join("data").display(),
            key_file = key_file.unwrap_or_default(),
            relay_port = self.relay_port.unwrap_or(2526),
            more = self.more,
        );
        std::fs::write(dir.join("gatepost.toml"), config).expect("configuration");
        let server = TestServer {
            api: Api::new(format_args!("http://{http}"), ADMIN_KEY),
            smtp,
            http,
            dir,
            child: Mutex::new(None),
            env: self.env,
            _own_dns: own_dns,
            _folder: folder,
        };
        server.restart().await;
        for name in &self.inboxes {
            server.add_inbox(name).await;
        }
        server
    }
}

impl TestServer {
    /// Starts it on the same data and the same ports, and waits for its `ready` line.
    pub async fn restart(&self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_file()).expect("log");
        let mut child = Command::new(env!("CARGO_BIN_EXE_gatepost"))
            .args(["serve", "--config"])
            .arg(self.dir.join("gatepost.toml"))
            .env("GATEPOST_ADMIN_KEY", ADMIN_KEY)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::from(log))
            .spawn()
            .expect("gatepost");
        let stdout = child.stdout.take().expect("stdout");
        *self.child.lock().unwrap() = Some(child);
        let (said, heard) = oneshot::channel();
        // Its stdout is read to the end, so that it never stands before a full pipe.
        std::thread::spawn(move || {
            let mut said = Some(said);
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if line.starts_with("ready ")
                    && let Some(said) = said.take()
                {
                    let _ = said.send(line);
                }
            }
        });
        let ready =
            timeout(PATIENCE, heard).await.expect("the server was not ready in time").unwrap_or_default();
        assert!(
            ready.contains(&format!("smtp={}", self.smtp)) && ready.contains(&format!("http={}", self.http)),
            "the server is not ready: {ready:?}"
        );
    }

    pub fn pid(&self) -> u32 {
        self.child.lock().unwrap().as_ref().map(Child::id).expect("the server is not running")
    }

    /// Is it still the process that was started?
    pub fn alive(&self) -> bool {
        matches!(self.child.lock().unwrap().as_mut().map(Child::try_wait), Some(Ok(None)))
    }

    /// kill -9: nothing of the process runs again, the page cache stays.
    pub fn kill9(&self) {
        let child = self.child.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(mut child) = child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM: what is in flight is finished, then it exits.
    pub async fn stop(&self) -> ExitStatus {
        signal(self.pid(), "TERM");
        let mut child = self.child.lock().unwrap().take().expect("running");
        eventually("the server stops after SIGTERM", async || child.try_wait().expect("wait")).await
    }

    pub async fn add_inbox(&self, name: &str) -> String {
        let made = self.api.post("/v0/inboxes", json!({"username": name, "domain": DOMAIN})).await.ok();
        assert_eq!(made["inbox_id"], format!("{name}@{DOMAIN}"));
        format!("{name}@{DOMAIN}")
    }

    /// A key that belongs to one inbox, as an agent would hold it.
    pub async fn inbox_key(&self, inbox: &str) -> Api {
        let path = format!("/v0/inboxes/{}/api-keys", path_escape(inbox));
        let made = self.api.post(&path, json!({"name": "agent"})).await.ok();
        self.api.with_key(made["api_key"].as_str().expect("api_key"))
    }

    pub async fn dial(&self) -> Smtp {
        Smtp::connect(self.smtp).await.expect("SMTP connection")
    }

    /// One message in, by plain SMTP, as a stranger on loopback would send it.
    pub async fn receive(&self, from: &str, to: &str, message: &[u8]) {
        let mut smtp = self.dial().await;
        let reply = smtp.deliver(from, &[to], message).await.expect("SMTP");
        assert_eq!(reply.code, 250, "{reply:?}\n{}", smtp.transcript);
        let _ = smtp.command("QUIT").await;
    }

    /// The one message of an inbox whose subject is this, in full, once it is there.
    pub async fn message(&self, inbox: &str, subject: &str) -> serde_json::Value {
        let path = format!("/v0/inboxes/{}/messages", path_escape(inbox));
        let item = eventually(&format!("a message {subject:?} in {inbox}"), async || {
            let all = self.api.all(&format!("{path}?{HIDDEN}"), "messages").await;
            all.into_iter().find(|m| m["subject"] == subject)
        })
        .await;
        let id = item["message_id"].as_str().expect("message_id");
        self.api.get(&format!("{path}/{}", path_escape(id))).await.ok()
    }

    /// The bytes of a message, as stored.
    pub async fn raw(&self, inbox: &str, message_id: &str) -> Vec<u8> {
        let path = format!("/v0/inboxes/{}/messages/{}/raw", path_escape(inbox), path_escape(message_id));
        let raw = self.api.get(&path).await.ok();
        let bytes = self.api.download(raw["download_url"].as_str().expect("download_url")).await;
        assert_eq!(raw["size"], bytes.len(), "{path}");
        bytes
    }

    pub fn log_file(&self) -> PathBuf {
        self.dir.join("gatepost.log")
    }

    /// Of SQLite, where that is what it has.
    pub fn database_file(&self) -> PathBuf {
        self.dir.join("data/gatepost.db")
    }

    pub fn config_file(&self) -> PathBuf {
        self.dir.join("gatepost.toml")
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            eprintln!("--- the end of {}:\n{}---", self.log_file().display(), tail(&self.log_file(), 60));
        }
    }
}

/// The last lines of a file.
pub fn tail(file: &Path, lines: usize) -> String {
    let text = String::from_utf8_lossy(&std::fs::read(file).unwrap_or_default()).into_owned();
    let all = text.lines().collect::<Vec<_>>();
    all[all.len().saturating_sub(lines)..].iter().fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "{line}");
        text
    })
}
