//! What the server says about itself: one line per event on stderr, for people or as JSON.
//!
//! A line is readable alone, and carries its facts as fields with units (`duration_ms`, `size_bytes`) and
//! ids (`session`, `message_id`, `inbox_id`), so that a failure in a reply to a peer can be found here.
//! A failure is logged once, where it is handled.
//!
//! Never in a log: message bodies, subjects, passwords, keys. stdout belongs to the `ready` line.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::config::{Log, LogFormat};

/// Sets the level of a running server: what SIGHUP does.
#[derive(Clone)]
pub struct LogLevel(reload::Handle<Targets, Registry>);

impl LogLevel {
    pub fn set(&self, level: &str) {
        // The subscriber lives as long as the process, so this cannot fail.
        let _ = self.0.reload(targets(level));
    }
}

/// Starts logging for the process. A second call (in tests) changes nothing.
pub fn start(log: &Log) -> LogLevel {
    let (filter, handle) = reload::Layer::new(targets(&log.level));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let lines = match log.format {
        LogFormat::Text => lines.with_filter(filter).boxed(),
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .with_filter(filter)
            .boxed(),
    };
    let _ = tracing_subscriber::registry().with(lines).try_init();
    LogLevel(handle)
}

/// A bare level is about us; the libraries below speak up for warnings only. Directives are taken as given.
/// The configuration has checked the text.
fn targets(level: &str) -> Targets {
    match level.trim().parse::<LevelFilter>() {
        Ok(level) => Targets::new().with_default(level.min(LevelFilter::WARN)).with_target("gatepost", level),
        Err(_) => level.parse().unwrap_or_else(|_| Targets::new().with_default(LevelFilter::INFO)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn a_bare_level_leaves_the_libraries_quiet() {
        let debug = targets("debug");
        assert!(debug.would_enable("gatepost::smtp", &Level::DEBUG));
        assert!(!debug.would_enable("hickory_resolver", &Level::DEBUG));
        assert!(debug.would_enable("hickory_resolver", &Level::WARN));
        assert!(!targets("error").would_enable("sqlx", &Level::WARN));
        let directives = targets("warn,gatepost::smtp=trace");
        assert!(directives.would_enable("gatepost::smtp", &Level::TRACE));
        assert!(!directives.would_enable("gatepost::queue", &Level::INFO));
    }
}
