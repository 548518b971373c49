//! `gatepost dev`: the whole server on this machine, without configuration, privileges or a network.
//!
//! Loopback ports, data in one folder, a demo inbox with a key of its own (the same at the next start), and a
//! conversation to paste. Mail to other domains is captured, never sent.

mod demo;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use super::serve::say;
use crate::config::{Config, environment};
use crate::observe;
use crate::server::{Server, ServerError};

#[derive(Debug, Args)]
pub(crate) struct Dev {
    /// Where everything is kept; delete it to begin anew
    #[arg(long, value_name = "DIR", default_value = "gatepost-dev")]
    data: PathBuf,
    /// Address or port to listen on [default: 127.0.0.1:2525]
    #[arg(long)]
    smtp: Option<String>,
    /// Not built yet [default: 127.0.0.1:2587]
    #[arg(long)]
    submission: Option<String>,
    /// Not built yet [default: 127.0.0.1:2143]
    #[arg(long)]
    imap: Option<String>,
    /// Address or port to listen on [default: 127.0.0.1:8025]
    #[arg(long)]
    http: Option<String>,
}

impl Dev {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let config = Config::dev(&self.data, &self.flags(), environment())?;
        observe::start(&config.log);
        let server = Server::start(config, true).await.map_err(hint)?;
        say(&server.ready().to_string());
        let keys = demo::prepare(&server).await.context("the demo inbox cannot be made")?;
        say(&demo::session(&server, &keys));
        server.run(|| {}).await?;
        Ok(ExitCode::SUCCESS)
    }

    fn flags(&self) -> Vec<(&'static str, &'static str, String)> {
        let given = [
            ("--smtp", "smtp.listen", &self.smtp),
            ("--submission", "submission.listen", &self.submission),
            ("--imap", "imap.listen", &self.imap),
            ("--http", "http.listen", &self.http),
        ];
        let mut flags: Vec<_> = given
            .into_iter()
            .filter_map(|(flag, key, value)| Some((flag, key, loopback(value.as_deref()?))))
            .collect();
        if let Some(http) = &self.http {
            flags.push(("--http", "http.public_url", format!("http://{}", loopback(http))));
        }
        flags
    }
}

/// A port alone is one on loopback.
fn loopback(text: &str) -> String {
    match text.parse::<u16>() {
        Ok(port) => format!("127.0.0.1:{port}"),
        Err(_) => text.to_owned(),
    }
}

/// What to do about the two things that usually go wrong.
fn hint(error: ServerError) -> anyhow::Error {
    let hint = match &error {
        ServerError::Listen { key: "smtp.listen", .. } => "choose another port with --smtp",
        ServerError::Listen { .. } => "choose another port with --http",
        ServerError::Locked(_) => {
            "another `gatepost dev` is running; --data DIR gives this one a folder of its own"
        }
        _ => return error.into(),
    };
    anyhow::Error::new(error).context(hint)
}
