//! `gatepost work`: what an agent would do, by hand.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Remote, field, segment, table};

#[derive(Debug, Args)]
pub(crate) struct Work {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Work items, of one inbox or in one state
    List {
        #[arg(long)]
        inbox: Option<String>,
        /// available, claimed, waiting, needs_human, held, done or dead
        #[arg(long)]
        state: Option<String>,
    },
    /// Takes the next item; its fence is what the other commands want
    Claim {
        #[arg(long)]
        inbox: Option<String>,
        /// How long the item is yours without a heartbeat
        #[arg(long, default_value_t = 300)]
        lease_seconds: u32,
        /// How long to wait for an item when there is none
        #[arg(long, default_value_t = 0)]
        wait_seconds: u32,
    },
    /// Makes the lease longer
    Heartbeat(Held),
    /// The item is done
    Complete(Held),
    /// Gives the item back
    Release(Held),
}

/// An item that the caller holds.
#[derive(Debug, Args)]
struct Held {
    work_item_id: String,
    #[arg(long)]
    fence: i64,
}

impl Work {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let remote = &self.remote;
        match self.action {
            Action::List { inbox, state } => list(remote, inbox, state).await?,
            Action::Claim { inbox, lease_seconds, wait_seconds } => {
                let path = match &inbox {
                    Some(inbox) => format!("/v1/inboxes/{}/work-items/claim", segment(inbox)),
                    None => "/v1/work-items/claim".to_owned(),
                };
                let body = json!({ "lease_seconds": lease_seconds, "wait_seconds": wait_seconds });
                let answer = remote.post(&path, body).await?;
                remote.show(&answer, claimed);
            }
            Action::Heartbeat(held) => act(remote, held, "heartbeat").await?,
            Action::Complete(held) => act(remote, held, "complete").await?,
            Action::Release(held) => act(remote, held, "release").await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn list(remote: &Remote, inbox: Option<String>, state: Option<String>) -> anyhow::Result<()> {
    let given = [("inbox_id", inbox), ("state", state)];
    let query: Vec<String> =
        given.iter().filter_map(|(n, v)| Some(format!("{n}={}", segment(v.as_deref()?)))).collect();
    let answer = remote.list(&format!("/v1/work-items?{}", query.join("&")), "work_items").await?;
    let columns = [
        ("ITEM", "work_item_id"),
        ("STATE", "state"),
        ("INBOX", "inbox_id"),
        ("SUBJECT", "thread/subject"),
        ("WORKER", "lease/worker"),
        ("UNTIL", "lease/expires_at"),
    ];
    remote.show(&answer, |answer| table(answer, "work_items", &columns));
    Ok(())
}

async fn act(remote: &Remote, held: Held, action: &str) -> anyhow::Result<()> {
    let path = format!("/v1/work-items/{}/{action}", segment(&held.work_item_id));
    let answer = remote.post(&path, json!({ "fence": held.fence })).await?;
    remote.show(&answer, |answer| format!("{} {}", field(answer, "work_item_id"), field(answer, "state")));
    Ok(())
}

/// What was claimed, with what an answer needs: the fence, and the message to reply to.
fn claimed(answer: &Value) -> String {
    let lines = answer.get("work_items").and_then(Value::as_array).into_iter().flatten().map(|item| {
        format!(
            "{} fence {} until {}\n  inbox    {}\n  subject  {}\n  from     {}\n  message  {}",
            field(item, "work_item_id"),
            field(item, "lease/fence"),
            field(item, "lease/expires_at"),
            field(item, "inbox_id"),
            field(item, "thread/subject"),
            field(item, "messages/0/from"),
            field(item, "messages/0/message_id"),
        )
    });
    match lines.collect::<Vec<_>>() {
        none if none.is_empty() => "nothing to do".to_owned(),
        some => some.join("\n"),
    }
}
