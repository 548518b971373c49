//! `gatepost budget`: what a domain's or a pod's inboxes may send together, and how what is new begins.

use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use super::client::{Remote, field, segment, table};

#[derive(Debug, Args)]
pub(crate) struct Budget {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Each budget, what is used of it and when there is room again
    List {
        /// Those of one inbox, its warm-up included
        #[arg(long)]
        inbox: Option<String>,
    },
    /// Sets a budget beside the configuration
    Set {
        /// Whose budget
        scope: Scope,
        /// The domain, the pod's id or the inbox's address
        id: String,
        /// Recipients elsewhere in any 24 hours, or none
        #[arg(long, value_name = "N|none")]
        per_day: Option<String>,
        /// Whether the configured warm-up holds: off for a domain or an inbox that is known elsewhere
        #[arg(long)]
        warm_up: Option<Switch>,
    },
    /// Back to what is configured
    Reset {
        /// Whose budget
        scope: Scope,
        /// The domain, the pod's id or the inbox's address
        id: String,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Scope {
    Domain,
    Pod,
    Inbox,
}

impl Scope {
    fn word(self) -> &'static str {
        match self {
            Scope::Domain => "domain",
            Scope::Pod => "pod",
            Scope::Inbox => "inbox",
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Switch {
    On,
    Off,
}

impl Budget {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let remote = &self.remote;
        match self.action {
            Action::List { inbox } => {
                let query = inbox.map_or(String::new(), |inbox| format!("?inbox_id={}", segment(&inbox)));
                let answer = remote.get(&format!("/v1/budgets{query}")).await?;
                let columns = [
                    ("SCOPE", "scope"),
                    ("OF", "id"),
                    ("CAP", "cap"),
                    ("USED", "used"),
                    ("ROOM", "room"),
                    ("KEPT", "reserved"),
                    ("OPENS", "opens_at"),
                    ("WAITING", "waiting"),
                    ("WARM-UP DAY", "warm_up/day"),
                    ("SET BY", "set_by"),
                ];
                remote.show(&answer, |answer| table(answer, "budgets", &columns));
            }
            Action::Set { scope, id, per_day, warm_up } => {
                let mut body = Map::new();
                if let Some(per_day) = per_day {
                    body.insert("per_day".to_owned(), number_or_none(&per_day)?);
                }
                if let Some(warm_up) = warm_up {
                    body.insert("warm_up".to_owned(), matches!(warm_up, Switch::On).into());
                }
                if body.is_empty() {
                    bail!("nothing to set: give --per-day or --warm-up");
                }
                let path = format!("/v1/budgets/{}/{}", scope.word(), segment(&id));
                let answer = remote.put(&path, Value::Object(body)).await?;
                remote.show(&answer, |answer| {
                    let part = |name: &str| field(answer, name);
                    format!("{} {} cap {} used {}", part("scope"), part("id"), part("cap"), part("used"))
                });
            }
            Action::Reset { scope, id } => {
                remote.delete(&format!("/v1/budgets/{}/{}", scope.word(), segment(&id))).await?;
                let answer = json!({ "scope": scope.word(), "id": id });
                remote.show(&answer, |_| format!("{} {id} is as configured", scope.word()));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn number_or_none(text: &str) -> anyhow::Result<Value> {
    match (text, text.parse::<i64>()) {
        ("none", _) => Ok(Value::Null),
        (_, Ok(n)) => Ok(n.into()),
        _ => bail!("--per-day takes a number, or none"),
    }
}
