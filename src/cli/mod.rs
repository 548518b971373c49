//! The commands, one file each. They parse arguments, call the rooms, and put the outcome in words.
//!
//! `dev` and `serve` run the server; `init`, `check`, `dns` and `key create --config` prepare one;
//! `inbox`, `key` and `work` talk to a running one over HTTP (`GATEPOST_URL`, `GATEPOST_KEY`).
//!
//! This is the top: errors of every kind become one sentence on stderr and an exit code. 78 (EX_CONFIG of
//! sysexits.h) is a configuration that cannot work, which no restart will mend.

mod client;
mod inbox;
mod key;
mod work;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::ConfigError;

/// A self-hosted mail server for AI agents.
#[derive(Debug, Parser)]
#[command(name = "gatepost", version, about, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// See, make and delete inboxes of a running server
    Inbox(inbox::Inbox),
    /// See, make and delete API keys; with --config, an admin key offline
    Key(key::Key),
    /// See, claim and finish work items
    Work(work::Work),
}

pub async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Inbox(command) => command.run().await,
        Command::Key(command) => command.run().await,
        Command::Work(command) => command.run().await,
    }
}

/// Says on stderr what went wrong, with its causes, and gives the exit code for it.
pub fn explain(error: &anyhow::Error) -> ExitCode {
    if let Some(config) = error.downcast_ref::<ConfigError>() {
        eprintln!("{config}");
        return ExitCode::from(EX_CONFIG);
    }
    eprintln!("gatepost: {error:#}");
    ExitCode::FAILURE
}

/// sysexits.h: something was found in an unconfigured or misconfigured state.
const EX_CONFIG: u8 = 78;
