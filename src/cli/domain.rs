//! `gatepost domain`: the domains of a running server.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Remote, field, segment, table};

#[derive(Debug, Args)]
pub(crate) struct Domain {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// All domains that the key sees
    List,
    /// Claims a domain, and prints the records that prove it
    Add {
        domain: String,
        /// The pod that it is for alone
        #[arg(long)]
        pod: Option<String>,
        /// Inboxes may be made on every name below it
        #[arg(long)]
        subdomains: bool,
    },
    /// Every record with its state, and what to change
    Show { domain: String },
    /// Looks at the DNS now, and shows what came of it
    Verify { domain: String },
    /// The records as a zone file
    ZoneFile { domain: String },
    /// Makes the next DKIM keys, which sign once their records are seen
    RotateKeys { domain: String },
    /// Removes a domain that has no inboxes
    Remove { domain: String },
}

impl Domain {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let remote = &self.remote;
        match self.action {
            Action::List => {
                let answer = remote.list("/v0/domains", "domains").await?;
                let columns = [("DOMAIN", "domain"), ("POD", "pod_id"), ("ADDED", "created_at")];
                remote.show(&answer, |answer| table(answer, "domains", &columns));
            }
            Action::Add { domain, pod, subdomains } => {
                let body = json!({ "domain": domain, "subdomains_enabled": subdomains });
                let path = match pod {
                    Some(pod) => format!("/v0/pods/{}/domains", segment(&pod)),
                    None => "/v0/domains".to_owned(),
                };
                let answer = remote.post(&path, body).await?;
                let columns =
                    [("TYPE", "type"), ("NAME", "name"), ("VALUE", "value"), ("PRIORITY", "priority")];
                remote.show(&answer, |answer| {
                    format!(
                        "Set these records, then: gatepost domain verify {}\n\n{}",
                        field(answer, "domain"),
                        table(answer, "records", &columns)
                    )
                });
            }
            Action::Show { domain } => return show(remote, &domain).await,
            Action::Verify { domain } => {
                remote.post(&format!("/v0/domains/{}/verify", segment(&domain)), json!({})).await?;
                return show(remote, &domain).await;
            }
            Action::ZoneFile { domain } => {
                let text = remote.text(&format!("/v0/domains/{}/zone-file", segment(&domain))).await?;
                match remote.json {
                    true => println!("{:#}", json!({ "domain": domain, "zone_file": text })),
                    false => print!("{text}"),
                }
            }
            Action::RotateKeys { domain } => {
                let path = format!("/v1/domains/{}/dkim/rotate", segment(&domain));
                let answer = remote.post(&path, json!({})).await?;
                remote.show(&answer, keys);
            }
            Action::Remove { domain } => {
                let answer = remote.delete(&format!("/v0/domains/{}", segment(&domain))).await?;
                remote.show(&answer, |_| format!("{domain} is removed; its records may go"));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Fails where a record that mail needs is not right, so that scripts can wait for it.
async fn show(remote: &Remote, domain: &str) -> anyhow::Result<ExitCode> {
    let answer = remote.get(&format!("/v1/domains/{}/dns", segment(domain))).await?;
    remote.show(&answer, |answer| {
        let mut lines = vec![format!("{}: {}", field(answer, "domain"), field(answer, "status"))];
        lines.extend(items(answer, "records").iter().map(|record| {
            let fix = field(record, "fix");
            let fix = if fix.is_empty() { fix } else { format!("\n         {fix}") };
            format!(
                "{:<8} {} {} ({}){fix}",
                field(record, "state"),
                field(record, "type"),
                field(record, "name"),
                field(record, "why")
            )
        }));
        lines.extend(
            items(answer, "removable")
                .iter()
                .map(|name| format!("may be removed: {}", name.as_str().unwrap_or_default())),
        );
        lines.join("\n")
    });
    let ready = answer.get("ready").and_then(Value::as_bool).unwrap_or(false);
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn items<'a>(answer: &'a Value, name: &str) -> &'a [Value] {
    answer.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn keys(answer: &Value) -> String {
    let line = |key: &Value| match field(key, "state").as_str() {
        "next" => format!("Set: {}. TXT {}", field(key, "name"), field(key, "value")),
        state => format!("{state}: {}", field(key, "name")),
    };
    let mut lines: Vec<String> = items(answer, "keys").iter().map(line).collect();
    lines.push("The next keys sign once their records are seen; leave the records of the others.".to_owned());
    lines.join("\n")
}
