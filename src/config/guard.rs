//! What `[smtp]` says about strangers who want too much: limits, the floor of free disk, lists, greylisting.

use std::time::Duration;

use super::limits;
use super::settings::{Settings, Value};
use super::values::{self, Network};

/// How much strangers may have of us.
#[derive(Debug, Clone)]
pub struct Guard {
    pub limits: SmtpLimits,
    /// Below it, mail is deferred.
    pub min_free_disk: FreeDisk,
    /// Zones of DNS block lists (RFC 5782), in A-labels.
    pub dnsbl: Vec<String>,
    pub greylist: bool,
    pub greylist_delay: Duration,
}

/// `[smtp.limits]`. Those for an address (IPv4, or IPv6 /64) hold three times over for its network (/24 or
/// /48) and nine times for the one around it (/20 or /32).
#[derive(Debug, Clone)]
pub struct SmtpLimits {
    /// Connections served at once, all listeners together.
    pub sessions: usize,
    /// Connections at once.
    pub sessions_per_address: u32,
    pub connections_per_minute: u32,
    /// Transactions begun.
    pub messages_per_minute: u32,
    /// 5xx replies earned.
    pub errors_per_hour: u32,
    /// Recipients asked for that do not exist.
    pub unknown_recipients_per_hour: u32,
    /// Who is not counted, delayed, listed or greylisted.
    pub exempt: Vec<Network>,
}

/// A floor of free disk; where both are given, the smaller one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FreeDisk {
    pub octets: Option<u64>,
    /// Of the size of the disk.
    pub percent: Option<u64>,
}

impl FreeDisk {
    /// The octets that must be free on a disk of `size` octets.
    pub fn of(&self, size: u64) -> u64 {
        let share = self.percent.map(|percent| size / 100 * percent);
        match (self.octets, share) {
            (Some(octets), Some(share)) => octets.min(share),
            (one, other) => one.or(other).unwrap_or(0),
        }
    }
}

pub(super) fn take(s: &mut Settings) -> Guard {
    let most = |most: u64| move |value: &Value| values::count(value, 1, most);
    let limits = SmtpLimits {
        sessions: s.take("smtp.limits.sessions", sessions, || limits::SMTP_SESSIONS),
        sessions_per_address: s
            .take("smtp.limits.sessions_per_address", most(100_000), || limits::SMTP_SESSIONS_PER_ADDRESS),
        connections_per_minute: s.take("smtp.limits.connections_per_minute", most(1_000_000), || {
            limits::SMTP_CONNECTIONS_PER_MINUTE
        }),
        messages_per_minute: s
            .take("smtp.limits.messages_per_minute", most(1_000_000), || limits::SMTP_MESSAGES_PER_MINUTE),
        errors_per_hour: s
            .take("smtp.limits.errors_per_hour", most(1_000_000), || limits::SMTP_ERRORS_PER_HOUR),
        unknown_recipients_per_hour: s.take(
            "smtp.limits.unknown_recipients_per_hour",
            most(1_000_000),
            || limits::SMTP_UNKNOWN_RECIPIENTS_PER_HOUR,
        ),
        exempt: s.take("smtp.limits.exempt", values::networks, values::loopback),
    };
    Guard {
        limits,
        min_free_disk: s.take("smtp.min_free_disk", free_disk, || limits::DEFAULT_MIN_FREE_DISK),
        dnsbl: s.take("smtp.dnsbl", values::zones, Vec::new),
        greylist: s.take("smtp.greylist", values::boolean, || false),
        greylist_delay: s.take("smtp.greylist_delay", greylist_delay, || limits::DEFAULT_GREYLIST_DELAY),
    }
}

fn sessions(value: &Value) -> Result<usize, String> {
    // Each is a socket, and sockets are counted by the system in its limit of open files.
    values::count(value, 10, 1_000_000).map(|sessions| sessions as usize)
}

fn free_disk(value: &Value) -> Result<FreeDisk, String> {
    let mut floor = FreeDisk { octets: None, percent: None };
    for text in value.list()? {
        let taken = match text.strip_suffix('%') {
            Some(percent) => {
                let percent = percent.trim().parse::<u64>().ok().filter(|percent| *percent < 100);
                let percent = percent.ok_or_else(|| format!("`{text}` is no share; it takes 0% to 99%"))?;
                floor.percent.replace(percent).is_some()
            }
            None => floor.octets.replace(values::size(&Value::Text(text))?).is_some(),
        };
        if taken {
            return Err("names two sizes or two shares; it takes one of each, and the smaller counts".into());
        }
    }
    Ok(floor)
}

fn greylist_delay(value: &Value) -> Result<Duration, String> {
    let delay = values::duration(value)?;
    match delay < limits::LONGEST_GREYLIST_DELAY {
        true => Ok(delay),
        false => Err("is an hour or more; senders that retry once an hour would need three attempts".into()),
    }
}
