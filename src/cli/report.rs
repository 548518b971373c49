//! `gatepost report`: what others report about our domains, and what we report about theirs.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::client::{Remote, field, segment, table};

#[derive(Debug, Args)]
pub(crate) struct Report {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Reports, newest first
    List {
        /// dmarc or tls
        #[arg(long)]
        kind: Option<String>,
        /// About this domain
        #[arg(long)]
        domain: Option<String>,
    },
    /// Reports that this server sends to others, newest day first
    Sent {
        /// To this domain
        #[arg(long)]
        domain: Option<String>,
    },
    /// One report with its rows
    Show { report_id: String },
}

impl Report {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        match self.action {
            Action::List { kind, domain } => list(&self.remote, kind, domain).await?,
            Action::Sent { domain } => sent(&self.remote, domain).await?,
            Action::Show { report_id } => {
                let answer = self.remote.get(&format!("/v1/reports/{}", segment(&report_id))).await?;
                self.remote.show(&answer, shown);
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn list(remote: &Remote, kind: Option<String>, domain: Option<String>) -> anyhow::Result<()> {
    let given = [("kind", kind), ("domain", domain)];
    let query: Vec<String> =
        given.iter().filter_map(|(n, v)| Some(format!("{n}={}", segment(v.as_deref()?)))).collect();
    let answer = remote.list(&format!("/v1/reports?{}", query.join("&")), "reports").await?;
    let columns = [
        ("REPORT", "report_id"),
        ("KIND", "kind"),
        ("DOMAIN", "domains/0"),
        ("BY", "org"),
        ("SENT BY", "verified_sender"),
        ("UNTIL", "ends_at"),
        ("TOTAL", "total"),
        ("FAILED", "failed"),
    ];
    remote.show(&answer, |answer| table(answer, "reports", &columns));
    Ok(())
}

async fn sent(remote: &Remote, domain: Option<String>) -> anyhow::Result<()> {
    let query = domain.map(|domain| format!("domain={}", segment(&domain))).unwrap_or_default();
    let answer = remote.list(&format!("/v1/reports/sent?{query}"), "reports").await?;
    let columns = [
        ("DAY", "begins_at"),
        ("KIND", "kind"),
        ("DOMAIN", "domain"),
        ("STATE", "state"),
        ("TOTAL", "total"),
        ("TO", "destinations/0/to"),
        ("MESSAGE", "destinations/0/message_id"),
        ("WHY", "destinations/0/why"),
    ];
    remote.show(&answer, |answer| table(answer, "reports", &columns));
    Ok(())
}

fn shown(report: &Value) -> String {
    let head = format!(
        "{} {} by {} ({}), {} to {}: {} of {} failed\n",
        field(report, "domains/0"),
        field(report, "kind"),
        field(report, "org"),
        match field(report, "verified_sender") {
            unknown if unknown.is_empty() => "sender not verified".to_owned(),
            sender => format!("sent by {sender}"),
        },
        field(report, "begins_at"),
        field(report, "ends_at"),
        field(report, "failed"),
        field(report, "total"),
    );
    let content = report.get("content").unwrap_or(&Value::Null);
    let rows = match content.get("rows") {
        Some(_) => table(
            content,
            "rows",
            &[
                ("SOURCE", "source_ip"),
                ("COUNT", "count"),
                ("DISPOSITION", "disposition"),
                ("DKIM", "dkim"),
                ("SPF", "spf"),
                ("FROM", "header_from"),
            ],
        ),
        None => table(
            content,
            "policies",
            &[
                ("DOMAIN", "domain"),
                ("POLICY", "type"),
                ("SUCCEEDED", "succeeded"),
                ("FAILED", "failed"),
                ("FIRST FAILURE", "details/0/result_type"),
            ],
        ),
    };
    head + &rows
}
