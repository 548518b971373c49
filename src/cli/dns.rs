//! `gatepost dns DOMAIN`: the records that a domain needs, each with its state and what to change.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use crate::address::normalize_domain;
use crate::config::Config;
use crate::deliver::dkim;
use crate::domains::look::{Finding, State};
use crate::domains::records::{self, Subject, Wanted};
use crate::domains::verify;
use crate::floor::Floor;
use crate::server::open_floor;
use crate::store::StoreError;
use crate::store::dkim_key::{DkimKeyRow, KeyState};
use crate::store::domain::{Domain, Features};

#[derive(Debug, Args)]
pub(crate) struct Dns {
    domain: String,
    #[arg(long, default_value = "/etc/gatepost/gatepost.toml")]
    config: PathBuf,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

impl Dns {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let config = Config::load(&self.config)?;
        let name = normalize_domain(&self.domain)?;
        let configured = config.domains.contains(&name);
        let floor = open_floor(config, false).await?;
        let Some((domain, keys)) = read(&floor, &name, configured).await? else {
            bail!(
                "{name} is neither in `domains` of {} nor was it added (`gatepost domain add`)",
                self.config.display()
            );
        };
        let findings = verify::look(&floor, &domain, &keys).await;
        match self.json {
            true => println!("{:#}", serde_json::json!({ "domain": name, "records": findings })),
            false => findings.iter().for_each(|finding| println!("{}", in_words(finding))),
        }
        for key in keys.iter().filter(|key| key.state == KeyState::Retired && !self.json) {
            println!("; may be removed: {}", dkim::record(key).name);
        }
        floor.store.close().await;
        Ok(if findings.iter().any(Finding::is_bad) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

fn in_words(finding: &Finding) -> String {
    let state = match (finding.state, finding.optional) {
        (State::Ok, _) => "ok",
        (State::Missing, true) => "not set (optional)",
        (State::Missing, false) => "MISSING",
        (State::Wrong, _) => "WRONG",
        (State::Unknown, _) => "unknown",
    };
    let wanted = Wanted {
        purpose: finding.purpose,
        name: finding.name.clone(),
        value: finding.value.clone(),
        why: "",
        optional: finding.optional,
    };
    let found = match (finding.state, &finding.fix) {
        (State::Wrong | State::Unknown, Some(fix)) => {
            format!("\n;   {}", fix.split(" Set: ").next().unwrap_or(fix))
        }
        _ => String::new(),
    };
    format!("; {}: {state}{found}\n{}", finding.why, wanted.line())
}

/// A domain with its keys; those of a configured one are made where there are none.
async fn read(
    floor: &Floor,
    name: &str,
    configured: bool,
) -> anyhow::Result<Option<(Domain, Vec<DkimKeyRow>)>> {
    if configured {
        crate::domains::begin(floor).await?;
    }
    let name = name.to_owned();
    let found = floor.store.read(move |tx| Box::pin(async move { verify::with_keys(tx, &name).await })).await;
    let found: Option<_> = found.map_err(|error: StoreError| error)?;
    Ok(found)
}

/// The records of a domain of the configuration, its DKIM keys (made where there are none) among them.
pub(super) async fn for_domain(floor: &Floor, name: &str) -> anyhow::Result<Vec<Wanted>> {
    let keys = read(floor, name, true).await?.map(|(_, keys)| keys).unwrap_or_default();
    Ok(records::wanted(&floor.config, Subject { name, features: Features::default() }, &keys))
}
