//! `gatepost check`: what is wrong or missing, in words, before a stranger finds out.
//!
//! Each probe looks at one thing and says `ok`, `advice` (it works, but) or `BAD` (it will not work), with
//! what to do. Probes are advisory and independent: each has its own deadline, none changes anything, and
//! a machine without DNS or network gets unknowns, not failures. Exit code 1 when something is BAD, 78 when
//! it is the configuration.

mod machine;
mod network;
mod storage;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::config::Config;

/// Patience with one probe. DNS asks several questions of at most 3 s each.
const PROBE_DEADLINE: Duration = Duration::from_secs(20);

#[derive(Debug, Args)]
pub(crate) struct Check {
    #[arg(long, default_value = "/etc/gatepost/gatepost.toml")]
    config: PathBuf,
    /// Only these probes
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Probe>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Probe {
    Configuration,
    Data,
    Database,
    Tls,
    Listeners,
    Dns,
    Port25,
    Clock,
}

/// What one probe found: a line for each thing it looked at.
#[derive(Debug, Default)]
pub(super) struct Findings(Vec<Finding>);

#[derive(Debug)]
struct Finding {
    severity: Severity,
    words: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Severity {
    Ok,
    Advice,
    Bad,
}

impl Findings {
    pub(super) fn ok(&mut self, words: impl Into<String>) {
        self.0.push(Finding { severity: Severity::Ok, words: words.into() });
    }

    pub(super) fn advice(&mut self, words: impl Into<String>) {
        self.0.push(Finding { severity: Severity::Advice, words: words.into() });
    }

    pub(super) fn bad(&mut self, words: impl Into<String>) {
        self.0.push(Finding { severity: Severity::Bad, words: words.into() });
    }
}

impl Check {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let config = Config::load(&self.config)?;
        let mut bad = false;
        for probe in Probe::value_variants() {
            if !self.only.is_empty() && !self.only.contains(probe) {
                continue;
            }
            let name = format!("{probe:?}").to_lowercase();
            let looked = tokio::time::timeout(PROBE_DEADLINE, probe.look(&config, &self.config)).await;
            let findings = looked.unwrap_or_else(|_| {
                let mut findings = Findings::default();
                findings.advice("took too long to find out");
                findings
            });
            for finding in findings.0 {
                let severity = match finding.severity {
                    Severity::Ok => "ok    ",
                    Severity::Advice => "advice",
                    Severity::Bad => "BAD   ",
                };
                println!("{severity} {name:<13} {}", finding.words);
                bad |= finding.severity == Severity::Bad;
            }
        }
        Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

impl Probe {
    async fn look(self, config: &Config, file: &std::path::Path) -> Findings {
        let mut findings = Findings::default();
        match self {
            Probe::Configuration => configuration(config, file, &mut findings),
            Probe::Data => machine::data(config, &mut findings),
            Probe::Database => storage::database(config, &mut findings).await,
            Probe::Tls => machine::tls(config, &mut findings),
            Probe::Listeners => network::listeners(config, &mut findings).await,
            Probe::Dns => network::dns(config, &mut findings).await,
            Probe::Port25 => network::port25(config, &mut findings).await,
            Probe::Clock => network::clock(config, &mut findings).await,
        }
        findings
    }
}

/// It was read, so it is valid; what is left is what may not be meant.
fn configuration(config: &Config, file: &std::path::Path, findings: &mut Findings) {
    findings.ok(format!("{} is valid", file.display()));
    if config.relay.port != 25 || config.relay.allow_private_addresses {
        findings.advice(
            "relay.port and relay.allow_private_addresses are for tests: mail may not leave, or go inside",
        );
    }
    if !config.http.listen_tls.is_empty() {
        findings.advice("http.listen_tls is not built yet: put a reverse proxy in front of http.listen");
    }
    for address in config.http.listen.iter().filter(|address| !address.ip().is_loopback()) {
        findings.advice(format!("http.listen {address} carries API keys in clear text beyond this machine"));
    }
}
