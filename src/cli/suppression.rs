//! `gatepost suppression`: addresses that a running server does not write to.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::client::{Remote, field, segment, table};

#[derive(Debug, Args)]
pub(crate) struct Suppression {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// All suppressed addresses, with why and since when
    List,
    /// Write to an address no more
    Add {
        address: String,
        /// Why
        #[arg(long)]
        detail: Option<String>,
    },
    /// Allow an address again
    Remove { address: String },
}

impl Suppression {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let remote = &self.remote;
        match self.action {
            Action::List => {
                let answer = remote.list("/v1/suppressions", "suppressions").await?;
                let columns = [
                    ("ADDRESS", "address"),
                    ("REASON", "reason"),
                    ("SOURCE", "source"),
                    ("SINCE", "created_at"),
                    ("DETAIL", "detail"),
                ];
                remote.show(&answer, |answer| table(answer, "suppressions", &columns));
            }
            Action::Add { address, detail } => {
                let body = json!({ "address": address, "detail": detail });
                let answer = remote.post("/v1/suppressions", body).await?;
                remote.show(&answer, |answer| {
                    format!("{} is suppressed ({})", field(answer, "address"), field(answer, "reason"))
                });
            }
            Action::Remove { address } => {
                let answer = remote.delete(&format!("/v1/suppressions/{}", segment(&address))).await?;
                remote.show(&answer, |_| format!("{address} may be written to again"));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
