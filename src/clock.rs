//! Time is an argument.
//!
//! Every room asks the `Clock` it was given, so that retries, leases, expiry and limits are tested by moving
//! a hand instead of waiting. Instants are milliseconds since 1970 (`Millis`), the form in which the database
//! keeps them. What several processes must agree on is asked of the database's clock (`Tx::now`).

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// Milliseconds since 1970-01-01T00:00:00Z.
pub type Millis = i64;

pub const SECOND: Millis = 1_000;
pub const MINUTE: Millis = 60 * SECOND;
pub const HOUR: Millis = 60 * MINUTE;
pub const DAY: Millis = 24 * HOUR;

/// Where "now" comes from. Cloning shares the source.
#[derive(Debug, Clone)]
pub struct Clock(Source);

#[derive(Debug, Clone)]
enum Source {
    System,
    Scripted(Arc<AtomicI64>),
}

/// Moves a scripted clock.
#[derive(Debug, Clone)]
pub struct ClockHand(Arc<AtomicI64>);

impl Clock {
    pub fn system() -> Clock {
        Clock(Source::System)
    }

    /// A clock that stands at `start` until its hand is moved.
    pub fn scripted(start: Millis) -> (Clock, ClockHand) {
        let time = Arc::new(AtomicI64::new(start));
        (Clock(Source::Scripted(time.clone())), ClockHand(time))
    }

    #[allow(clippy::disallowed_methods)] // the one place that asks the system
    pub fn now(&self) -> Millis {
        match &self.0 {
            Source::System => jiff::Timestamp::now().as_millisecond(),
            Source::Scripted(time) => time.load(Ordering::SeqCst),
        }
    }
}

impl ClockHand {
    pub fn advance(&self, by: Millis) {
        self.0.fetch_add(by, Ordering::SeqCst);
    }
}

/// `2026-11-21T03:04:05.678Z`, the form of every instant in the API.
pub fn rfc3339(at: Millis) -> String {
    let clamped = at.clamp(-62_135_596_800_000, 253_402_300_799_999); // years 1 to 9999
    match jiff::Timestamp::from_millisecond(clamped) {
        Ok(t) => t.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string(),
        Err(_) => "1970-01-01T00:00:00.000Z".to_owned(),
    }
}

/// Reads what `rfc3339` writes, and any other RFC 3339 instant.
pub fn parse_rfc3339(text: &str) -> Option<Millis> {
    text.trim().parse::<jiff::Timestamp>().ok().map(|t| t.as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_survive_the_api() {
        for at in [0, 1_795_230_245_678, 999] {
            assert_eq!(parse_rfc3339(&rfc3339(at)), Some(at));
        }
        assert_eq!(rfc3339(1_795_229_045_678), "2026-11-21T02:44:05.678Z");
        assert_eq!(parse_rfc3339("2026-01-01T00:00:00+01:00"), parse_rfc3339("2025-12-31T23:00:00Z"));
    }
}
