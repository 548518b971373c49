//! `gatepost init DOMAIN`: a configuration file, the keys, and the DNS records to set.
//!
//! Nothing that exists is overwritten: an existing configuration file is refused before anything is made, and
//! keys in an existing data folder are kept.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;

use super::dns::for_domain;
use crate::address::normalize_domain;
use crate::config::Config;
use crate::server::{ADMIN_KEY_FILE, ensure_admin_key, open_floor};

/// The commented example, filled in.
const TEMPLATE: &str = include_str!("../../config/gatepost.toml");

#[derive(Debug, Args)]
pub(crate) struct Init {
    /// The domain that agents get addresses in, like agents.example.org
    domain: String,
    /// The name of this server [default: mx.DOMAIN]
    #[arg(long)]
    hostname: Option<String>,
    /// Where database and keys are kept
    #[arg(long, value_name = "DIR", default_value = "/var/lib/gatepost")]
    data: PathBuf,
    /// sqlite:… or postgres://… [default: a SQLite file in the data folder]
    #[arg(long)]
    database: Option<String>,
    /// The file to write
    #[arg(long, default_value = "gatepost.toml")]
    config: PathBuf,
}

impl Init {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        if self.config.exists() {
            bail!("{} exists already; `gatepost dns DOMAIN` prints the records again", self.config.display());
        }
        let domain = normalize_domain(&self.domain).with_context(|| format!("`{}`", self.domain))?;
        let text = self.fill_in(&domain)?;
        let config = Config::parse(&self.config, &text, std::iter::empty())?;
        let floor = open_floor(config, false).await?;
        ensure_admin_key(&floor).await?;
        let records = for_domain(&floor, &domain).await?;
        // A database URL may hold a password.
        let file = std::fs::File::options().create_new(true).write(true).mode(0o640).open(&self.config);
        let written =
            file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
        written.with_context(|| self.config.display().to_string())?;

        println!("Configuration  {}", self.config.display());
        println!("Data           {}", floor.config.data_dir.display());
        println!("Admin key      {}", floor.config.data_dir.join(ADMIN_KEY_FILE).display());
        println!(
            "Master key     {} (keep a copy apart from the database)\n",
            floor.config.secrets.master_key_file.display()
        );
        println!("Set these DNS records:\n");
        for record in records {
            let optional = if record.optional { " (optional)" } else { "" };
            println!("; {}{optional}\n{}\n", record.why, record.line());
        }
        let config = self.config.display();
        println!("Then `gatepost check --config {config}`, and `gatepost serve --config {config}`.");
        println!("The server must own {}, and nobody else may read it.", floor.config.data_dir.display());
        floor.store.close().await;
        Ok(ExitCode::SUCCESS)
    }

    /// The example with this domain's values.
    fn fill_in(&self, domain: &str) -> anyhow::Result<String> {
        let data = std::path::absolute(&self.data)?;
        let data = data.to_str().context("the data folder's name is not UTF-8")?;
        let hostname = self.hostname.clone().unwrap_or_else(|| format!("mx.{domain}"));
        let database = self.database.clone().unwrap_or_else(|| format!("sqlite:{data}/gatepost.db"));
        let values = [
            ("hostname = ", quoted(&hostname)),
            ("domains = ", format!("[{}]", quoted(domain))),
            ("data_dir = ", quoted(data)),
            ("url = \"sqlite:", quoted(&database)),
            ("public_url = ", quoted(&format!("https://{hostname}"))),
        ];
        let line = |line: &str| {
            let found = values.iter().find(|(begins, _)| line.starts_with(begins));
            match (found, line.split_once(" = ")) {
                (Some((_, value)), Some((key, _))) => format!("{key} = {value}"),
                _ => line.to_owned(),
            }
        };
        Ok(TEMPLATE.lines().map(line).collect::<Vec<_>>().join("\n") + "\n")
    }
}

/// A TOML string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::DatabaseUrl;

    #[test]
    fn what_init_writes_is_what_was_asked_for() {
        let init = Init {
            domain: "agents.example".into(),
            hostname: None,
            data: "/srv/gate \"post\"".into(),
            database: None,
            config: "gatepost.toml".into(),
        };
        let text = init.fill_in("agents.example").unwrap();
        let config = Config::parse(Path::new("gatepost.toml"), &text, std::iter::empty()).unwrap();
        assert_eq!(config.hostname, "mx.agents.example");
        assert_eq!(config.http.public_url, "https://mx.agents.example");
        assert_eq!(config.data_dir, Path::new("/srv/gate \"post\""));
        assert_eq!(config.database.url, DatabaseUrl::Sqlite("/srv/gate \"post\"/gatepost.db".into()));
    }
}
