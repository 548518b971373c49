//! `gatepost queue`: what waits to leave, why, and what is done about it.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::{Remote, field, segment, table};

#[derive(Debug, Args)]
pub(crate) struct Queue {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// What waits or is under way
    List {
        #[arg(long)]
        inbox: Option<String>,
        /// Of the recipient
        #[arg(long)]
        domain: Option<String>,
        /// due, attempting, deferred, scheduled or held; with --inbox also delivered, failed, canceled
        #[arg(long)]
        state: Vec<String>,
    },
    /// One delivery, with every attempt and the remote's words
    Show {
        /// As `list` shows it: dlv_…
        delivery_id: String,
    },
    /// Keeps a delivery from leaving
    Hold { delivery_id: String },
    /// Lets a held delivery go
    Release { delivery_id: String },
    /// Tries a delivery now
    Retry { delivery_id: String },
    /// Never delivers it, and writes no bounce
    Drop { delivery_id: String },
    /// Chooses its way: direct, smarthost, or none (as the configuration says)
    Route {
        delivery_id: String,
        #[arg(value_parser = ["direct", "smarthost", "none"])]
        via: String,
    },
    /// The rules that hold what leaves
    Rules,
    /// Holds everything from an inbox, to a domain, or from one to the other
    HoldRule {
        #[arg(long)]
        inbox: Option<String>,
        #[arg(long)]
        domain: Option<String>,
        #[arg(long)]
        reason: Option<String>,
    },
    /// Removes a rule and lets go of what it held
    RemoveRule { rule_id: i64 },
}

impl Queue {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let remote = &self.remote;
        match self.action {
            Action::List { inbox, domain, state } => {
                let mut query: Vec<String> =
                    state.iter().map(|state| format!("state={}", segment(state))).collect();
                query.extend(inbox.map(|inbox| format!("inbox_id={}", segment(&inbox))));
                query.extend(domain.map(|domain| format!("domain={}", segment(&domain))));
                let joint = if query.is_empty() { "" } else { "?" };
                let path = format!("/v1/queue{joint}{}", query.join("&"));
                let answer = remote.list(&path, "deliveries").await?;
                let columns = [
                    ("DELIVERY", "delivery_id"),
                    ("STATE", "state"),
                    ("FROM", "inbox_id"),
                    ("TO", "recipient"),
                    ("TRIED", "attempts"),
                    ("NEXT", "next_attempt_at"),
                    ("HELD BY", "held_by"),
                    ("WAITS FOR", "waits_for"),
                    ("LAST", "last_reply"),
                ];
                remote.show(&answer, |answer| table(answer, "deliveries", &columns));
            }
            Action::Show { delivery_id } => {
                let answer = remote.get(&format!("/v1/queue/{}", segment(&delivery_id))).await?;
                remote.show(&answer, shown);
            }
            Action::Hold { delivery_id } => handle(remote, &delivery_id, "hold").await?,
            Action::Release { delivery_id } => handle(remote, &delivery_id, "release").await?,
            Action::Retry { delivery_id } => handle(remote, &delivery_id, "retry").await?,
            Action::Drop { delivery_id } => handle(remote, &delivery_id, "drop").await?,
            Action::Route { delivery_id, via } => {
                let body = json!({ "via": (via != "none").then_some(&via) });
                let answer = remote.post(&format!("/v1/queue/{}/route", segment(&delivery_id)), body).await?;
                remote.show(&answer, |answer| format!("{} {via}", field(answer, "delivery_id")));
            }
            Action::Rules => {
                let answer = remote.get("/v1/queue/rules").await?;
                let columns = [
                    ("RULE", "rule_id"),
                    ("INBOX", "inbox_id"),
                    ("DOMAIN", "domain"),
                    ("WHY", "reason"),
                    ("BY", "created_by"),
                ];
                remote.show(&answer, |answer| table(answer, "rules", &columns));
            }
            Action::HoldRule { inbox, domain, reason } => {
                let body = json!({ "inbox_id": inbox, "domain": domain, "reason": reason });
                let answer = remote.post("/v1/queue/rules", body).await?;
                remote.show(&answer, |answer| format!("rule {}", field(answer, "rule_id")));
            }
            Action::RemoveRule { rule_id } => {
                remote.delete(&format!("/v1/queue/rules/{rule_id}")).await?;
                remote.show(&json!({ "rule_id": rule_id }), |_| format!("rule {rule_id} removed"));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn handle(remote: &Remote, delivery_id: &str, handling: &str) -> anyhow::Result<()> {
    let answer = remote.post(&format!("/v1/queue/{}/{handling}", segment(delivery_id)), json!({})).await?;
    remote.show(&answer, |answer| format!("{} {}", field(answer, "delivery_id"), field(answer, "state")));
    Ok(())
}

fn shown(answer: &Value) -> String {
    let head = format!(
        "{}  {}  {} to {}\n",
        field(answer, "delivery_id"),
        field(answer, "state"),
        field(answer, "inbox_id"),
        field(answer, "recipient")
    );
    let columns = [
        ("ATTEMPT", "attempt"),
        ("BEGAN", "began_at"),
        ("MS", "duration_ms"),
        ("HOST", "host"),
        ("OUTCOME", "outcome"),
        ("STATUS", "status"),
        ("WORDS", "reply"),
    ];
    head + &table(answer, "log", &columns)
}
