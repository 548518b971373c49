//! `gatepost key`: API keys of a running server, and an admin key for one that nobody has a key to.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::client::{Remote, field, segment, table};
use crate::config::Config;
use crate::server::{new_admin_key, open_floor};

#[derive(Debug, Args)]
pub(crate) struct Key {
    #[command(flatten)]
    remote: Remote,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// The keys of the organization, or of one inbox (never the keys themselves)
    List {
        #[arg(long)]
        inbox: Option<String>,
    },
    /// A new key, printed once
    Create {
        #[arg(long, default_value = "gatepost key create")]
        name: String,
        /// A key for this inbox alone, as an agent should have
        #[arg(long)]
        inbox: Option<String>,
        /// An admin key, entered into the database of this configuration: the server need not run
        #[arg(long, value_name = "FILE", conflicts_with = "inbox")]
        config: Option<PathBuf>,
    },
    /// Deletes a key by its id; what uses it is refused from then on
    Delete {
        key_id: String,
        #[arg(long)]
        inbox: Option<String>,
    },
}

/// Keys stand under the organization or under an inbox.
fn path(inbox: &Option<String>) -> String {
    match inbox {
        Some(inbox) => format!("/v0/inboxes/{}/api-keys", segment(inbox)),
        None => "/v0/api-keys".to_owned(),
    }
}

impl Key {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let remote = &self.remote;
        match self.action {
            Action::List { inbox } => {
                let answer = remote.list(&path(&inbox), "api_keys").await?;
                let columns = [
                    ("ID", "api_key_id"),
                    ("BEGINS", "prefix"),
                    ("NAME", "name"),
                    ("INBOX", "inbox_id"),
                    ("CREATED", "created_at"),
                ];
                remote.show(&answer, |answer| table(answer, "api_keys", &columns));
            }
            Action::Create { name, config: Some(file), .. } => {
                let floor = open_floor(Config::load(&file)?, false).await?;
                println!("{}", new_admin_key(&floor, &name).await?);
                floor.store.close().await;
            }
            Action::Create { name, inbox, config: None } => {
                let answer = remote.post(&path(&inbox), json!({ "name": name })).await?;
                remote.show(&answer, |answer| field(answer, "api_key"));
            }
            Action::Delete { key_id, inbox } => {
                let answer = remote.delete(&format!("{}/{}", path(&inbox), segment(&key_id))).await?;
                remote.show(&answer, |_| format!("{key_id} is deleted"));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
