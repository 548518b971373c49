//! Counts what each address has had of late: connections and messages in a minute, errors and unknown
//! recipients in an hour, against an allowance. What it may do wrong grows with the mail it brings.
//!
//! - An address is an IPv4 address or an IPv6 /64, which is what one host is given. Its network and the one
//!   around that are counted as well, with larger allowances, so that neighbours cannot take turns.
//! - A window slides: what was counted in the one before weighs by how much of it is still in sight.
//! - Memory is fixed: at most `limits::SMTP_COUNTED` entries a level, the one heard of least recently goes. Who
//!   has that many addresses to push others out is held by the levels above, of which there are fewer.
//!
//! Pure: time comes in as milliseconds.

use std::collections::hash_map::RandomState;
use std::net::IpAddr;

use lru::LruCache;

use crate::config::SmtpLimits;

/// Prefix lengths of IPv4 and IPv6, and how many times the allowance of one address. mox has three levels and
/// the same factors.
pub(super) const LEVELS: [Level; 3] = [
    Level { v4: 32, v6: 64, times: 1 },
    Level { v4: 24, v6: 48, times: 3 },
    Level { v4: 20, v6: 32, times: 9 },
];

pub(super) struct Level {
    v4: u32,
    v6: u32,
    pub(super) times: u32,
}

impl Level {
    /// The network of an address at this level.
    pub(super) fn of(&self, ip: IpAddr) -> IpAddr {
        match ip.to_canonical() {
            IpAddr::V4(ip) => IpAddr::V4((ip.to_bits() & (u32::MAX << (32 - self.v4))).into()),
            IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() & (u128::MAX << (128 - self.v6))).into()),
        }
    }
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Connection,
    Message,
    Error,
    UnknownRecipient,
    /// Messages that were taken; they have no allowance, they make that of others larger.
    Accepted,
}

/// Accepted messages of an hour for which one more error and one more unknown recipient are allowed: of honest
/// mail less than a twentieth goes to stale addresses.
const ACCEPTED_FOR_ONE: u32 = 5;

impl Kind {
    const ALL: [Kind; 5] =
        [Kind::Connection, Kind::Message, Kind::Error, Kind::UnknownRecipient, Kind::Accepted];

    /// Milliseconds.
    fn window(self) -> u64 {
        match self {
            Kind::Connection | Kind::Message => 60_000,
            Kind::Error | Kind::UnknownRecipient | Kind::Accepted => 3_600_000,
        }
    }

    fn allowance(self, limits: &SmtpLimits) -> u32 {
        match self {
            Kind::Connection => limits.connections_per_minute,
            Kind::Message => limits.messages_per_minute,
            Kind::Error => limits.errors_per_hour,
            Kind::UnknownRecipient => limits.unknown_recipients_per_hour,
            Kind::Accepted => u32::MAX,
        }
    }

    /// Whether mail that was taken speaks for whoever brought it.
    fn is_forgiven(self) -> bool {
        matches!(self, Kind::Error | Kind::UnknownRecipient)
    }
}

/// The counts of one network at one level.
#[derive(Debug, Default, Clone, Copy)]
struct Counts([Count; Kind::ALL.len()]);

/// A sliding window out of two fixed ones.
#[derive(Debug, Default, Clone, Copy)]
struct Count {
    /// Which window `here` counts.
    window: u32,
    here: u32,
    before: u32,
}

impl Count {
    fn roll(&mut self, length: u64, now: u64) {
        let window = u32::try_from(now / length).unwrap_or(u32::MAX);
        match window.saturating_sub(self.window) {
            0 => return,
            1 => self.before = self.here,
            _ => self.before = 0,
        }
        (self.window, self.here) = (window, 0);
    }

    /// How many in the last `length` milliseconds, taking those before for evenly spread.
    fn sum(&self, length: u64, now: u64) -> u32 {
        let unseen = length - now % length;
        let before = (u64::from(self.before) * unseen).div_ceil(length);
        self.here.saturating_add(u32::try_from(before).unwrap_or(u32::MAX))
    }
}

pub(super) struct Rates {
    levels: [LruCache<IpAddr, Counts, RandomState>; LEVELS.len()],
    room: usize,
}

impl Rates {
    /// `room`: entries a level.
    pub(super) fn new(room: usize) -> Rates {
        // Unbounded to the cache, which would take all its memory at once; `count` keeps to `room`.
        Rates { levels: std::array::from_fn(|_| LruCache::unbounded_with_hasher(RandomState::new())), room }
    }

    /// Counts one more, unless that is more than is allowed at any level.
    pub(super) fn allow(&mut self, kind: Kind, ip: IpAddr, limits: &SmtpLimits, now: u64) -> bool {
        let allowed = !self.is_over(kind, ip, limits, now);
        if allowed {
            self.note(kind, ip, now);
        }
        allowed
    }

    /// Whether there is nothing left of the allowance, at any level.
    pub(super) fn is_over(&mut self, kind: Kind, ip: IpAddr, limits: &SmtpLimits, now: u64) -> bool {
        let allowance = kind.allowance(limits);
        LEVELS.iter().zip(&mut self.levels).any(|(level, cache)| {
            let counts = cache.peek_mut(&level.of(ip));
            counts.is_some_and(|counts| {
                let earned =
                    if kind.is_forgiven() { counts.sum(Kind::Accepted, now) / ACCEPTED_FOR_ONE } else { 0 };
                counts.sum(kind, now) >= allowance.saturating_mul(level.times).saturating_add(earned)
            })
        })
    }

    /// Counts one more; how many that makes for the address.
    pub(super) fn note(&mut self, kind: Kind, ip: IpAddr, now: u64) -> u32 {
        let mut sums = [0; LEVELS.len()];
        for ((level, cache), sum) in LEVELS.iter().zip(&mut self.levels).zip(&mut sums) {
            let counts = cache.get_or_insert_mut(level.of(ip), Counts::default);
            *sum = counts.add(kind, now);
            if cache.len() > self.room {
                cache.pop_lru();
            }
        }
        sums[0]
    }
}

impl Counts {
    fn sum(&mut self, kind: Kind, now: u64) -> u32 {
        self.0.get_mut(kind as usize).map_or(0, |count| {
            count.roll(kind.window(), now);
            count.sum(kind.window(), now)
        })
    }

    fn add(&mut self, kind: Kind, now: u64) -> u32 {
        let sum = self.sum(kind, now);
        if let Some(count) = self.0.get_mut(kind as usize) {
            count.here = count.here.saturating_add(1);
        }
        sum.saturating_add(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smtp::guard::testing;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_minute_slides() {
        let mut rates = Rates::new(100);
        let limits = SmtpLimits { messages_per_minute: 10, ..testing::limits() };
        let mut taken = |from: u64, times: usize| {
            let mut one = |n: u64| rates.allow(Kind::Message, ip("192.0.2.1"), &limits, from + n);
            (0..times as u64).filter(|n| one(*n)).count()
        };
        // All ten at the end of a window do not make room for ten more at the start of the next.
        assert_eq!(taken(59_000, 20), 10);
        assert_eq!(taken(61_000, 20), 0);
        assert_eq!(taken(90_000, 20), 5);
        assert_eq!(taken(240_000, 20), 10);
    }

    #[test]
    fn neighbours_cannot_take_turns() {
        let limits = SmtpLimits { connections_per_minute: 10, ..testing::limits() };
        let mut rates = Rates::new(1000);
        let mut let_in = |address: String| rates.allow(Kind::Connection, ip(&address), &limits, 0);
        let four = (0..=255).flat_map(|host| (0..20).map(move |_| format!("198.51.100.{host}")));
        assert_eq!(
            four.filter(|address| let_in(address.clone())).count(),
            30,
            "a /24 has three times as much"
        );
        let six = (0..=255).map(|net| format!("2001:db8:1:{net:x}::1"));
        assert_eq!(six.filter(|address| let_in(address.clone())).count(), 30, "and a /48");
        let six = (2..=255).map(|net| format!("2001:db8:{net:x}::1"));
        assert_eq!(
            six.filter(|address| let_in(address.clone())).count(),
            60,
            "a /32 nine times, with the above"
        );
        assert!(let_in("203.0.113.1".into()) && let_in("::ffff:203.0.113.1".into()));
    }

    #[test]
    fn an_address_is_a_host() {
        let mut rates = Rates::new(100);
        assert_eq!(rates.note(Kind::Error, ip("2001:db8::1"), 0), 1);
        assert_eq!(rates.note(Kind::Error, ip("2001:db8::ffff:2"), 0), 2);
        assert_eq!(rates.note(Kind::Error, ip("2001:db8:0:1::1"), 0), 1);
        assert_eq!(rates.note(Kind::Error, ip("192.0.2.1"), 0), 1);
        assert_eq!(rates.note(Kind::Error, ip("::ffff:192.0.2.1"), 0), 2);
        assert_eq!(rates.note(Kind::UnknownRecipient, ip("192.0.2.1"), 0), 1);
    }

    /// A flood from all over the address space takes no more memory than was set aside, and whoever keeps
    /// coming back is not forgotten in it.
    #[test]
    fn memory_is_bounded() {
        let mut rates = Rates::new(500);
        let limits = SmtpLimits { errors_per_hour: 5, ..testing::limits() };
        for n in 0..20_000u32 {
            rates.note(Kind::Error, IpAddr::V4((n.wrapping_mul(2_654_435_761)).into()), 0);
            if n % 100 == 0 {
                rates.note(Kind::Error, ip("203.0.113.9"), 0);
            }
        }
        assert!(rates.levels.iter().all(|cache| cache.len() <= 500));
        assert!(rates.is_over(Kind::Error, ip("203.0.113.9"), &limits, 0));
    }
}
