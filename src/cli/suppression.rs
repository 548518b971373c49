//! `gatepost suppression`: addresses that a running server does not write to.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::client::{Remote, field, segment, table};

#[derive(Debug, Args)]
pub(crate) struct Suppression {
    #[command(flatten)]
    remote: Remote,
    /// Of this pod, with a key of the organization; of the default pod unless given
    #[arg(long, global = true, value_name = "POD_ID")]
    pod: Option<String>,
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
        let of_pod = |path: String| match &self.pod {
            Some(pod) => format!("{path}?pod_id={}", segment(pod)),
            None => path,
        };
        match self.action {
            Action::List => {
                let answer = remote.list(&of_pod("/v1/suppressions".to_owned()), "suppressions").await?;
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
                let answer = remote.post(&of_pod("/v1/suppressions".to_owned()), body).await?;
                remote.show(&answer, |answer| {
                    format!("{} is suppressed ({})", field(answer, "address"), field(answer, "reason"))
                });
            }
            Action::Remove { address } => {
                let answer =
                    remote.delete(&of_pod(format!("/v1/suppressions/{}", segment(&address)))).await?;
                remote.show(&answer, |_| format!("{address} may be written to again"));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
