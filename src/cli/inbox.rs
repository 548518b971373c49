//! `gatepost inbox`: the inboxes of a running server.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Map, Value};

use super::client::{Remote, field, segment, table};

#[derive(Debug, Args)]
pub(crate) struct Inbox {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// All inboxes that the key sees
    List,
    /// A new inbox: `ada`, `ada@agents.example`, or a name that is made up
    Create {
        address: Option<String>,
        #[arg(long)]
        display_name: Option<String>,
        /// Makes it safe to repeat: the same id gives the same inbox
        #[arg(long)]
        client_id: Option<String>,
    },
    /// One inbox
    Get { address: String },
    /// Deletes an inbox with its mail, for good
    Delete { address: String },
}

impl Inbox {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let remote = &self.remote;
        match self.action {
            Action::List => {
                let answer = remote.list("/v0/inboxes", "inboxes").await?;
                let columns = [("INBOX", "inbox_id"), ("NAME", "display_name"), ("CREATED", "created_at")];
                remote.show(&answer, |answer| table(answer, "inboxes", &columns));
            }
            Action::Create { address, display_name, client_id } => {
                let mut body = Map::new();
                if let Some(address) = address {
                    let (username, domain) = match address.rsplit_once('@') {
                        Some((username, domain)) => (username.to_owned(), Some(domain.to_owned())),
                        None => (address, None),
                    };
                    body.insert("username".into(), username.into());
                    body.extend(domain.map(|domain| ("domain".to_owned(), Value::from(domain))));
                }
                body.extend(display_name.map(|name| ("display_name".to_owned(), Value::from(name))));
                body.extend(client_id.map(|id| ("client_id".to_owned(), Value::from(id))));
                let answer = remote.post("/v0/inboxes", body.into()).await?;
                remote.show(&answer, |answer| field(answer, "inbox_id"));
            }
            Action::Get { address } => {
                let answer = remote.get(&format!("/v0/inboxes/{}", segment(&address))).await?;
                remote.show(&answer, |answer| format!("{answer:#}"));
            }
            Action::Delete { address } => {
                let answer = remote.delete(&format!("/v0/inboxes/{}", segment(&address))).await?;
                remote.show(&answer, |_| format!("{address} is deleted"));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
