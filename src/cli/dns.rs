//! `gatepost dns DOMAIN`: the records that a domain needs, each with its state.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use super::records::{self, State, Wanted};
use crate::address::normalize_domain;
use crate::config::Config;
use crate::deliver::dkim;
use crate::floor::Floor;
use crate::server::open_floor;

#[derive(Debug, Args)]
pub(crate) struct Dns {
    domain: String,
    #[arg(long, default_value = "/etc/gatepost/gatepost.toml")]
    config: PathBuf,
}

impl Dns {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let config = Config::load(&self.config)?;
        let domain = normalize_domain(&self.domain)?;
        if !config.domains.contains(&domain) {
            bail!("{domain} is not in `domains` of {}", self.config.display());
        }
        let floor = open_floor(config, false).await?;
        let mut missing = false;
        for record in for_domain(&floor, &domain).await? {
            let state = record.look(&floor.dns, &floor.config).await;
            missing |= !record.optional && state == State::Missing;
            let words = match state {
                State::Set => "set".to_owned(),
                State::Missing if record.optional => "optional".to_owned(),
                State::Missing => "MISSING".to_owned(),
                State::Differs(found) => format!("DIFFERS (found {found})"),
                State::Unknown(why) => format!("unknown ({why})"),
            };
            println!("; {}: {words}\n{}", record.why, record.line());
        }
        floor.store.close().await;
        Ok(if missing { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

/// The records of one domain, its DKIM keys (made where there are none) among them.
pub(super) async fn for_domain(floor: &Floor, domain: &str) -> anyhow::Result<Vec<Wanted>> {
    dkim::make_missing(&floor.store, &floor.secrets, &[domain.to_owned()]).await?;
    let keys = dkim::records(&floor.store, domain).await?;
    Ok(records::wanted(&floor.config, domain, &keys))
}
