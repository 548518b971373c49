//! How long a client may take: every wait has a deadline, and all waits together have one.
//!
//! A command has five minutes as a whole (RFC 5321 §4.5.3.2.7), however it is dribbled; a message buys time by
//! its octets, so that one a minute ends it after three; the session ends after half an hour wherever it
//! would wait for a command.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::limits;

/// The time of a session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lifetime {
    begun: Instant,
}

impl Lifetime {
    pub(crate) fn begin() -> Lifetime {
        Lifetime { begun: Instant::now() }
    }

    /// How long to wait for the next command.
    pub(crate) fn for_command(&self) -> Duration {
        for_command(self.begun.elapsed())
    }

    pub(crate) fn is_over(&self) -> bool {
        self.for_command().is_zero()
    }
}

fn for_command(elapsed: Duration) -> Duration {
    limits::SMTP_SESSION_TIME.saturating_sub(elapsed).min(limits::SMTP_COMMAND_TIME)
}

/// The pace of one message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    begun: Instant,
}

impl Pace {
    pub(crate) fn begin() -> Pace {
        Pace { begun: Instant::now() }
    }

    /// How long to wait for the next octets, when this many have come.
    pub(crate) fn patience(&self, octets: u64) -> Duration {
        patience(octets, self.begun.elapsed())
    }
}

fn patience(octets: u64, elapsed: Duration) -> Duration {
    let bought = Duration::from_secs(octets / limits::SMTP_SLOWEST);
    let due = limits::SMTP_DATA_BLOCK_TIME.saturating_add(bought).min(limits::SMTP_DATA_TIME);
    due.saturating_sub(elapsed).min(limits::SMTP_DATA_BLOCK_TIME)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long a message goes on that sends so many octets every so many seconds.
    fn lasts(octets: u64, every: u64) -> u64 {
        let (mut sent, mut elapsed) = (0, Duration::ZERO);
        loop {
            let patience = patience(sent, elapsed);
            if Duration::from_secs(every) > patience {
                return (elapsed + patience).as_secs();
            }
            elapsed += Duration::from_secs(every);
            sent += octets;
        }
    }

    #[test]
    fn octets_buy_time() {
        assert_eq!(lasts(1, 60), 180, "an octet a minute");
        assert_eq!(lasts(0, 1000), 180, "silence");
        assert_eq!(lasts(100_000, 170), limits::SMTP_DATA_TIME.as_secs(), "slow but honest, up to the end");
    }

    /// One NOOP every four minutes is followed, and not forever.
    #[test]
    fn a_session_ends() {
        let mut elapsed = Duration::ZERO;
        while elapsed < limits::SMTP_SESSION_TIME {
            let patience = for_command(elapsed);
            assert!(patience > Duration::ZERO && patience <= limits::SMTP_COMMAND_TIME);
            elapsed += patience.min(Duration::from_secs(240));
        }
        assert_eq!(elapsed, limits::SMTP_SESSION_TIME);
        assert_eq!(for_command(elapsed), Duration::ZERO);
    }
}
