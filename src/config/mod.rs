//! The configuration: one TOML file, every key also as `GATEPOST_…` environment variable.
//!
//! Every key is declared once, in `Config::take`: its name, its parser, its default. `config/gatepost.toml`
//! explains them to the operator, and a test holds the two together. What is unknown or impossible is
//! refused in words that name file, line and key, all of it in one go.
//!
//! Never here: anything that opens a file, a socket or a database. A `Config` is what the operator said.

mod budgets;
mod guard;
pub mod limits;
mod receive;
mod relay;
mod settings;
mod trust;
mod urls;
mod values;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use budgets::{Budgets, Loops, Warmup};
pub use guard::{FreeDisk, Guard, SmtpLimits};
pub use receive::{DmarcHandling, ListsMatch, Receive, Spoofed, Unauthenticated};
pub use relay::{Choice, Family, Relay, RouteRule, SiteLimits, SiteRule, Source};
pub use settings::{Origin, Problem};
pub use trust::{Dane, Trust};
pub use urls::{DatabaseUrl, Login, Smarthost, StorageUrl};
pub use values::Network;

use settings::{Settings, Value};

/// What the operator wants, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// What we call ourselves in EHLO, Received and Authentication-Results. Lower-case A-labels.
    pub hostname: String,
    /// The operator's own domains, never empty; the first is the default for new inboxes.
    pub domains: Vec<String>,
    pub data_dir: PathBuf,
    pub database: Database,
    pub storage: Storage,
    pub secrets: SecretsConfig,
    pub smtp: Smtp,
    pub receive: Receive,
    pub submission: Mail,
    pub imap: Mail,
    pub http: Http,
    pub metrics: Metrics,
    pub dns: Dns,
    pub verify: Verify,
    pub relay: Relay,
    /// `[relay]` too: what other domains promise about TLS.
    pub trust: Trust,
    pub reports: Reports,
    pub budgets: Budgets,
    pub loops: Loops,
    pub tls: TlsConfig,
    pub log: Log,
}

#[derive(Debug, Clone)]
pub struct Database {
    pub url: DatabaseUrl,
}

#[derive(Debug, Clone)]
pub struct Storage {
    pub url: StorageUrl,
}

#[derive(Debug, Clone)]
pub struct SecretsConfig {
    pub master_key_file: PathBuf,
}

/// Strangers' mail.
#[derive(Debug, Clone)]
pub struct Smtp {
    pub listen: Vec<SocketAddr>,
    /// TLS from the first octet.
    pub listen_tls: Vec<SocketAddr>,
    /// Who must begin with a PROXY protocol header, and is believed.
    pub proxy_from: Vec<Network>,
    /// Octets, RFC 1870.
    pub max_message_size: u64,
    /// What our own MTA-STS policy says.
    pub mta_sts: MtaStsMode,
    pub guard: Guard,
}

/// RFC 8461 §3.2: what others do when they cannot encrypt to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MtaStsMode {
    /// No policy is served.
    None,
    /// They deliver, and report it.
    Testing,
    /// They do not deliver.
    Enforce,
}

const STS_MODES: [(&str, MtaStsMode); 3] =
    [("none", MtaStsMode::None), ("testing", MtaStsMode::Testing), ("enforce", MtaStsMode::Enforce)];

/// A protocol that has one port for STARTTLS and one for TLS from the first byte.
#[derive(Debug, Clone)]
pub struct Mail {
    pub listen: Vec<SocketAddr>,
    pub listen_tls: Vec<SocketAddr>,
}

#[derive(Debug, Clone)]
pub struct Http {
    pub listen: Vec<SocketAddr>,
    pub listen_tls: Vec<SocketAddr>,
    /// Without a slash at its end.
    pub public_url: String,
    /// Who may say `X-Forwarded-For`.
    pub trusted_proxies: Vec<Network>,
}

#[derive(Debug, Clone)]
pub struct Metrics {
    /// Empty: `/metrics` on `[http]`, for admin keys only.
    pub listen: Vec<SocketAddr>,
}

#[derive(Debug, Clone)]
pub struct Dns {
    /// Empty: the system's.
    pub servers: Vec<SocketAddr>,
}

/// What strangers' mail is believed.
#[derive(Debug, Clone)]
pub struct Verify {
    /// Domains whose ARC seals may turn a DMARC policy off; what is below them is theirs too.
    pub arc_forwarders: Vec<String>,
}

/// What we report to domains that ask for it.
#[derive(Debug, Clone)]
pub struct Reports {
    /// Aggregate reports about mail in their name, RFC 9990.
    pub dmarc: bool,
    /// Reports about sessions with their hosts, RFC 8460.
    pub tls: bool,
    /// What we call ourselves in them; `None`: the first of our domains.
    pub organization: Option<String>,
    /// Whom to ask about them; `None`: postmaster at that domain.
    pub contact: Option<String>,
}

#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// Certificate chain and key, PEM; both or neither.
    pub files: Option<TlsFiles>,
}

#[derive(Debug, Clone)]
pub struct TlsFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

#[derive(Debug, Clone)]
pub struct Log {
    /// A level, or directives such as `info,gatepost::smtp=debug`.
    pub level: String,
    pub format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// Why there is no configuration: everything that is wrong with it, one line each.
#[derive(Debug)]
pub struct ConfigError {
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.problems.iter().map(Problem::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads the file and lays the process's environment over it.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
            problems: vec![Problem {
                place: path.display().to_string(),
                key: "configuration".to_owned(),
                words: format!("cannot be read ({error}); `gatepost init DOMAIN` writes one"),
            }],
        })?;
        Config::parse(path, &text, environment())
    }

    /// A configuration from its text; `environment` wins over the file.
    pub fn parse(
        path: &Path,
        text: &str,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Config, ConfigError> {
        let mut settings = Settings::from_file(path, text);
        // With a file that is not TOML, nothing else that could be said is certain.
        if let broken @ [_, ..] = settings.problems() {
            return Err(ConfigError { problems: broken.to_vec() });
        }
        settings.add_environment(environment);
        Config::from_settings(settings)
    }

    /// The configuration of `gatepost dev`: loopback, a domain that exists nowhere, data in one folder.
    /// The environment wins over what is built in, and `flags` over both.
    pub fn dev(
        data_dir: &Path,
        flags: &[(&'static str, &'static str, String)],
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Config, ConfigError> {
        let mut settings = Settings::built_in("gatepost dev");
        for (key, value) in DEV {
            settings.set_text(key, *value, Origin::BuiltIn);
        }
        settings.set_text("data_dir", data_dir.to_string_lossy(), Origin::Flag("--data"));
        settings.add_environment(environment);
        for (flag, key, value) in flags {
            settings.set_text(key, value, Origin::Flag(flag));
        }
        Config::from_settings(settings)
    }

    fn from_settings(mut settings: Settings) -> Result<Config, ConfigError> {
        let config = Config::take(&mut settings);
        check_listeners(&config, &mut settings);
        let problems = settings.finish();
        match problems.is_empty() {
            true => Ok(config),
            false => Err(ConfigError { problems }),
        }
    }

    /// Every key there is, as `section.key`.
    pub fn keys() -> Vec<&'static str> {
        let mut settings = Settings::built_in("");
        Config::take(&mut settings);
        settings.taken().to_vec()
    }

    fn take(s: &mut Settings) -> Config {
        let hostname = s.require("hostname", values::hostname, "the name that this server's MX record has");
        let domains = s.require("domains", values::domains, "the domains that this server has mail for");
        let data_dir = s.take("data_dir", path_required, || "/var/lib/gatepost".into());
        Config {
            database: Database { url: take_database(s, &data_dir) },
            storage: Storage {
                url: s
                    .take("storage.url", |v| optional(v, StorageUrl::parse), || None)
                    .unwrap_or_else(|| StorageUrl::Folder(data_dir.join("blobs"))),
            },
            secrets: SecretsConfig {
                master_key_file: s
                    .take("secrets.master_key_file", path_optional, || None)
                    .unwrap_or_else(|| data_dir.join("master.key")),
            },
            smtp: Smtp {
                listen: s.take("smtp.listen", values::listen, || any_interface(25)),
                listen_tls: s.take("smtp.listen_tls", values::listen, Vec::new),
                proxy_from: s.take("smtp.proxy_from", values::networks, Vec::new),
                max_message_size: s
                    .take("smtp.max_message_size", message_size, || limits::DEFAULT_MAX_MESSAGE_SIZE),
                mta_sts: s.take("smtp.mta_sts", |v| values::word(v, &STS_MODES), || MtaStsMode::Testing),
                guard: guard::take(s),
            },
            receive: take_receive(s),
            submission: Mail {
                listen: s.take("submission.listen", values::listen, || any_interface(587)),
                listen_tls: s.take("submission.listen_tls", values::listen, || any_interface(465)),
            },
            imap: Mail {
                listen: s.take("imap.listen", values::listen, || any_interface(143)),
                listen_tls: s.take("imap.listen_tls", values::listen, || any_interface(993)),
            },
            http: Http {
                listen: s
                    .take("http.listen", values::listen, || vec![SocketAddr::from(([127, 0, 0, 1], 8025))]),
                listen_tls: s.take("http.listen_tls", values::listen, Vec::new),
                public_url: s.take("http.public_url", values::public_url, || format!("https://{hostname}")),
                trusted_proxies: s.take("http.trusted_proxies", values::networks, Vec::new),
            },
            metrics: Metrics { listen: s.take("metrics.listen", values::listen, Vec::new) },
            dns: Dns { servers: s.take("dns.servers", values::name_servers, Vec::new) },
            verify: Verify {
                arc_forwarders: s.take("verify.arc_forwarders", values::optional_domains, Vec::new),
            },
            relay: relay::take(s),
            trust: trust::take(s),
            reports: take_reports(s),
            budgets: budgets::take_budgets(s),
            loops: budgets::take_loops(s),
            tls: TlsConfig { files: take_tls(s) },
            log: Log {
                level: s.take("log.level", log_level, || "info".to_owned()),
                format: s.take("log.format", log_format, || LogFormat::Text),
            },
            hostname,
            domains,
            data_dir,
        }
    }
}

/// What `gatepost dev` has instead of a file.
const DEV: &[(&str, &str)] = &[
    ("hostname", "mx.agents.test"),
    ("domains", "agents.test"),
    ("smtp.listen", "127.0.0.1:2525"),
    ("submission.listen", "127.0.0.1:2587"),
    ("submission.listen_tls", ""),
    ("imap.listen", "127.0.0.1:2143"),
    ("imap.listen_tls", ""),
    ("http.listen", "127.0.0.1:8025"),
    ("http.public_url", "http://127.0.0.1:8025"),
];

/// The process's environment, without what is not UTF-8: none of our keys could be meant.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

fn take_database(s: &mut Settings, data_dir: &Path) -> DatabaseUrl {
    let parse = |value: &Value| value.text()?.parse();
    s.take("database.url", parse, || DatabaseUrl::Sqlite(data_dir.join("gatepost.db")))
}

fn take_receive(s: &mut Settings) -> Receive {
    let dmarc = [
        ("enforce", DmarcHandling::Enforce),
        ("quarantine", DmarcHandling::Quarantine),
        ("tag", DmarcHandling::Tag),
    ];
    let unauthenticated = [
        ("accept", Unauthenticated::Accept),
        ("tag", Unauthenticated::Tag),
        ("hold", Unauthenticated::Hold),
        ("refuse", Unauthenticated::Refuse),
    ];
    let spoofed = [("refuse", Spoofed::Refuse), ("hold", Spoofed::Hold), ("tag", Spoofed::Tag)];
    let lists_match = [("verified", ListsMatch::Verified), ("claimed", ListsMatch::Claimed)];
    Receive {
        dmarc: s.take("receive.dmarc", |v| values::word(v, &dmarc), || DmarcHandling::Enforce),
        unauthenticated: s.take(
            "receive.unauthenticated",
            |v| values::word(v, &unauthenticated),
            || Unauthenticated::Accept,
        ),
        spoofed: s.take("receive.spoofed", |v| values::word(v, &spoofed), || Spoofed::Refuse),
        lists_match: s.take(
            "receive.lists_match",
            |v| values::word(v, &lists_match),
            || ListsMatch::Verified,
        ),
    }
}

fn take_tls(s: &mut Settings) -> Option<TlsFiles> {
    let cert = s.take("tls.cert", path_optional, || None);
    let key = s.take("tls.key", path_optional, || None);
    let acme = s.take("tls.acme", values::boolean, || false);
    s.take("tls.acme_email", values::address, || None);
    s.take("tls.acme_directory", |v| optional(v, values::https), || None);
    if acme {
        s.problem("tls.acme", "is not built yet: set tls.cert and tls.key to files that certbot, lego or acme.sh renew, and reload with SIGHUP");
    }
    match (cert, key) {
        (Some(cert), Some(key)) => Some(TlsFiles { cert, key }),
        (Some(_), None) => {
            s.problem("tls.cert", "has no tls.key beside it");
            None
        }
        (None, Some(_)) => {
            s.problem("tls.key", "has no tls.cert beside it");
            None
        }
        (None, None) => None,
    }
}

/// Two sections cannot share an address: the second bind would fail, and which one is second is chance.
fn check_listeners(config: &Config, s: &mut Settings) {
    let sections = [
        ("smtp.listen", &config.smtp.listen),
        ("smtp.listen_tls", &config.smtp.listen_tls),
        ("submission.listen", &config.submission.listen),
        ("submission.listen_tls", &config.submission.listen_tls),
        ("imap.listen", &config.imap.listen),
        ("imap.listen_tls", &config.imap.listen_tls),
        ("http.listen", &config.http.listen),
        ("http.listen_tls", &config.http.listen_tls),
        ("metrics.listen", &config.metrics.listen),
    ];
    let mut seen: Vec<(&str, SocketAddr)> = vec![];
    for (key, addresses) in sections {
        for address in addresses.iter().filter(|a| a.port() != 0) {
            let same = |(other, there): &&(&str, SocketAddr)| *other != key && collide(*address, *there);
            if let Some((other, _)) = seen.iter().find(same) {
                s.problem(key, format!("{address} is taken by {other} already"));
            }
            seen.push((key, *address));
        }
    }
}

/// The same port on the same address, or on one address and on all of them.
fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let everywhere = |ip: IpAddr| ip.is_unspecified();
    a.port() == b.port() && (a.ip() == b.ip() || everywhere(a.ip()) || everywhere(b.ip()))
}

fn take_reports(s: &mut Settings) -> Reports {
    Reports {
        dmarc: s.take("reports.dmarc", values::boolean, || false),
        tls: s.take("reports.tls", values::boolean, || false),
        organization: s.take("reports.organization", organization, || None),
        contact: s.take("reports.contact", values::address, || None),
    }
}

/// A name in reports that strangers read: one short line; empty is none.
fn organization(value: &Value) -> Result<Option<String>, String> {
    let name = value.text()?.trim();
    if name.chars().count() > 100 || name.contains(char::is_control) {
        return Err("takes a name of one line, at most 100 characters".to_owned());
    }
    Ok((!name.is_empty()).then(|| name.to_owned()))
}

/// `[::]` takes IPv4 as well (unless the system says otherwise).
fn any_interface(port: u16) -> Vec<SocketAddr> {
    vec![SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), port)]
}

fn optional<T>(value: &Value, parse: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, String> {
    match value.text()? {
        "" => Ok(None),
        text => parse(text).map(Some),
    }
}

fn path_required(value: &Value) -> Result<PathBuf, String> {
    path_optional(value)?.ok_or_else(|| "is empty; it takes a path".to_owned())
}

fn path_optional(value: &Value) -> Result<Option<PathBuf>, String> {
    match value {
        Value::Text(text) if text.contains('\0') => Err("has a NUL in it".into()),
        Value::Text(text) if text.is_empty() => Ok(None),
        Value::Text(text) => Ok(Some(PathBuf::from(text))),
        _ => Err("takes a path in quotes".into()),
    }
}

fn message_size(value: &Value) -> Result<u64, String> {
    let size = values::size(value)?;
    if size < limits::SMALLEST_MAX_MESSAGE_SIZE {
        return Err("is below 64KiB, which RFC 5321 §4.5.3.1.7 wants every server to take".into());
    }
    if size > limits::LARGEST_MAX_MESSAGE_SIZE {
        return Err("is above 256MiB; other servers take 150 MB at most".into());
    }
    Ok(size)
}

fn retry(value: &Value) -> Result<Vec<Duration>, String> {
    let waits = values::durations(value)?;
    if waits.is_empty() {
        return Err("is empty; mail that cannot be delivered at once would be given up at once".into());
    }
    if waits.iter().any(|wait| *wait < limits::SHORTEST_RETRY) {
        return Err("has a wait below 50ms".into());
    }
    Ok(waits)
}

fn expire(value: &Value) -> Result<Duration, String> {
    let expire = values::duration(value)?;
    match expire > limits::LONGEST_EXPIRE {
        true => Err("is longer than 30d; nobody remembers that mail".into()),
        false => Ok(expire),
    }
}

fn log_level(value: &Value) -> Result<String, String> {
    let text = values::text(value)?;
    // A word that is no level would be read as the name of a target, at its most talkative.
    let level = |part: &str| part.parse::<tracing::level_filters::LevelFilter>().is_ok();
    let directive = |part: &str| match part.split_once('=') {
        Some((target, part)) => !target.is_empty() && level(part),
        None => level(part),
    };
    match text.split(',').all(|part| directive(part.trim())) {
        true => Ok(text),
        false => Err(format!(
            "`{text}` is no log level; it takes error, warn, info, debug or trace, or info,gatepost::smtp=debug"
        )),
    }
}

fn log_format(value: &Value) -> Result<LogFormat, String> {
    match value.text()? {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        other => Err(format!("`{other}` is no log format; it takes text or json")),
    }
}

#[cfg(test)]
mod tests;
