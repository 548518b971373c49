//! `gatepost serve`: the server, as the configuration says.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::config::Config;
use crate::observe;
use crate::server::Server;

#[derive(Debug, Args)]
pub(crate) struct Serve {
    #[arg(long, default_value = "/etc/gatepost/gatepost.toml")]
    config: PathBuf,
}

impl Serve {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let config = Config::load(&self.config)?;
        let level = observe::start(&config.log);
        tracing::info!(version = env!("CARGO_PKG_VERSION"), database = %config.database.url, "starting");
        for (key, addresses) in
            [("http.listen_tls", &config.http.listen_tls), ("metrics.listen", &config.metrics.listen)]
        {
            if !addresses.is_empty() {
                tracing::warn!(key, "is not built yet: nothing listens there");
            }
        }
        let server = Server::start(config, false).await?;
        say(&server.ready().to_string());
        let hangup = || match Config::load(&self.config) {
            Ok(config) => level.set(&config.log.level),
            Err(error) => tracing::error!(%error, "the configuration is not read again: it has errors"),
        };
        server.run(hangup).await?;
        Ok(ExitCode::SUCCESS)
    }
}

/// To stdout at once. Whoever started us may have closed it; that is no reason to stop.
pub(super) fn say(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
}
