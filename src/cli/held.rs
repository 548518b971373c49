//! `gatepost held`: what policy holds back, and the decision about it.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::client::{Remote, field, segment, table};

#[derive(Debug, Args)]
pub(crate) struct HeldMail {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Messages that are held or blocked, with the reason
    List {
        #[arg(long)]
        inbox: Option<String>,
    },
    /// Hands a message to its inbox, and to whoever works for it
    Release {
        /// As `list` shows it: msg_…
        message_id: String,
    },
    /// Leaves a message where it is, as decided
    Discard { message_id: String },
}

impl HeldMail {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let remote = &self.remote;
        match self.action {
            Action::List { inbox } => {
                let query = inbox.map(|inbox| format!("?inbox_id={}", segment(&inbox))).unwrap_or_default();
                let answer = remote.list(&format!("/v1/held{query}"), "messages").await?;
                let columns = [
                    ("MESSAGE", "message_id"),
                    ("STATE", "policy/state"),
                    ("INBOX", "inbox_id"),
                    ("FROM", "from"),
                    ("SUBJECT", "subject"),
                    ("WHY", "policy/reasons/0/text"),
                ];
                remote.show(&answer, |answer| table(answer, "messages", &columns));
            }
            Action::Release { message_id } => decide(remote, &message_id, "release").await?,
            Action::Discard { message_id } => decide(remote, &message_id, "discard").await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn decide(remote: &Remote, message_id: &str, decision: &str) -> anyhow::Result<()> {
    let answer = remote.post(&format!("/v1/messages/{}/{decision}", segment(message_id)), json!({})).await?;
    remote
        .show(&answer, |answer| format!("{} {}", field(answer, "message_id"), field(answer, "policy/state")));
    Ok(())
}
