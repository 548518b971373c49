//! The commands, one file each. They parse arguments, call the rooms, and put the outcome in words.
//!
//! `dev` and `serve` run the server; `init`, `check`, `dns` and `key create --config` prepare one;
//! `inbox`, `domain`, `key`, `held`, `queue`, `work`, `suppression`, `stop`, `budget` and `report` talk to a running one over
//! HTTP (`GATEPOST_URL`, `GATEPOST_KEY`).
//!
//! This is the top: errors of every kind become one sentence on stderr and an exit code. 78 (EX_CONFIG of
//! sysexits.h) is a configuration that cannot work, which no restart will mend.

mod budget;
mod check;
mod client;
mod dev;
mod dns;
mod domain;
mod held;
mod inbox;
mod init;
mod key;
mod queue;
mod report;
mod serve;
mod stop;
mod suppression;
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
    /// Run the whole server on this machine, without configuration, and without sending anything
    Dev(dev::Dev),
    /// Write a configuration and keys for a domain, and print the DNS records to set
    Init(init::Init),
    /// Run the server
    Serve(serve::Serve),
    /// Say what is wrong or missing: configuration, database, disk, certificate, DNS, port 25, clock
    Check(check::Check),
    /// Print the DNS records of a domain, each with its state
    Dns(dns::Dns),
    /// See, make and delete inboxes of a running server
    Inbox(inbox::Inbox),
    /// See, add, verify and remove domains of a running server; change their DKIM keys
    Domain(domain::Domain),
    /// See, make and delete API keys; with --config, an admin key offline
    Key(key::Key),
    /// See and release what policy holds back
    Held(held::HeldMail),
    /// See what waits to leave, and hold, release, retry or drop it
    Queue(queue::Queue),
    /// See, claim and finish work items
    Work(work::Work),
    /// The kill switch: stop what an inbox, a pod, a domain or anybody sends, and let it go again
    Stop(stop::Stop),
    /// What a domain's or a pod's inboxes may send together, and how what is new begins
    Budget(budget::Budget),
    /// See, add and remove addresses that must not be written to
    Suppression(suppression::Suppression),
    /// See what others report about the domains: DMARC and TLS
    Report(report::Report),
}

pub async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    crate::tls::install_provider();
    match cli.command {
        Command::Dev(command) => command.run().await,
        Command::Init(command) => command.run().await,
        Command::Serve(command) => command.run().await,
        Command::Check(command) => command.run().await,
        Command::Dns(command) => command.run().await,
        Command::Inbox(command) => command.run().await,
        Command::Domain(command) => command.run().await,
        Command::Key(command) => command.run().await,
        Command::Held(command) => command.run().await,
        Command::Queue(command) => command.run().await,
        Command::Work(command) => command.run().await,
        Command::Suppression(command) => command.run().await,
        Command::Report(command) => command.run().await,
        Command::Stop(command) => command.run().await,
        Command::Budget(command) => command.run().await,
    }
}

/// Says on stderr what went wrong, with its causes, and gives the exit code for it.
pub fn explain(error: &anyhow::Error) -> ExitCode {
    if let Some(config) = error.downcast_ref::<ConfigError>() {
        eprintln!("{config}");
        return ExitCode::from(EX_CONFIG);
    }
    // Errors of the rooms quote their cause already.
    let mut words = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !words.contains(&cause) {
            words = if words.is_empty() { cause } else { format!("{words}: {cause}") };
        }
    }
    eprintln!("gatepost: {words}");
    ExitCode::FAILURE
}

/// sysexits.h: something was found in an unconfigured or misconfigured state.
const EX_CONFIG: u8 = 78;
