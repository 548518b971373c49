//! `gatepost stop`: the kill switch.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::client::{Remote, field, segment, table};

#[derive(Debug, Args)]
pub(crate) struct Stop {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Stops in force
    List,
    /// Nothing more of an inbox leaves
    Inbox {
        inbox: String,
        #[command(flatten)]
        how: How,
    },
    /// Nothing more of a pod leaves
    Pod {
        pod: String,
        #[command(flatten)]
        how: How,
    },
    /// Nothing more from addresses at a domain leaves
    Domain {
        domain: String,
        #[command(flatten)]
        how: How,
    },
    /// Nothing more leaves
    All {
        #[command(flatten)]
        how: How,
    },
    /// Lets mail go again; what was held goes on
    Lift {
        /// As `list` shows it: stp_…
        stop_id: String,
    },
}

#[derive(Debug, Args)]
struct How {
    /// Why, for the agents that are refused
    #[arg(long)]
    reason: String,
    /// Cancel what is queued and scheduled instead of holding it
    #[arg(long)]
    cancel: bool,
}

impl Stop {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let remote = &self.remote;
        match self.action {
            Action::List => {
                let answer = remote.get("/v1/stops").await?;
                let columns = [
                    ("STOP", "stop_id"),
                    ("SCOPE", "scope"),
                    ("OF", "id"),
                    ("RULE", "rule"),
                    ("QUEUED", "queued"),
                    ("BY", "made_by"),
                    ("WHY", "reason"),
                ];
                remote.show(&answer, |answer| table(answer, "stops", &columns));
            }
            Action::Inbox { inbox, how } => make(remote, "inbox", Some(inbox), how).await?,
            Action::Pod { pod, how } => make(remote, "pod", Some(pod), how).await?,
            Action::Domain { domain, how } => make(remote, "domain", Some(domain), how).await?,
            Action::All { how } => make(remote, "organization", None, how).await?,
            Action::Lift { stop_id } => {
                let answer = remote.delete(&format!("/v1/stops/{}", segment(&stop_id))).await?;
                remote.show(&answer, |_| format!("{stop_id} is lifted"));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn make(remote: &Remote, scope: &str, id: Option<String>, how: How) -> anyhow::Result<()> {
    let queued = if how.cancel { "cancel" } else { "hold" };
    let body = json!({ "scope": scope, "id": id, "reason": how.reason, "queued": queued });
    let answer = remote.post("/v1/stops", body).await?;
    remote.show(&answer, |answer| {
        let part = |name: &str| field(answer, name);
        format!("{} held {} canceled {}", part("stop_id"), part("held"), part("canceled"))
    });
    Ok(())
}
