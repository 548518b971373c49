//! When to try again: a pure function of what happened so far.
//!
//! RFC 5321 §4.5.4.1: retries with growing waits, give up after days. The waits come from `relay.retry`; the
//! last one repeats until the message expires.

use std::time::Duration;

use crate::clock::Millis;

/// How far one wait is moved, so that messages deferred together do not come back together.
const SPREAD: f64 = 0.1;

/// The time of the next attempt after `attempts` failed ones, or `None` when the message would expire first.
///
/// `jitter` is a random number in 0..1; the wait becomes 0.9 to 1.1 times what the schedule says.
pub fn next(
    attempts: u32,
    created_at: Millis,
    now: Millis,
    retry: &[Duration],
    expire: Duration,
    jitter: f64,
) -> Option<Millis> {
    let step = usize::try_from(attempts.saturating_sub(1)).unwrap_or(usize::MAX);
    let wait = retry.get(step).or(retry.last())?;
    let factor = 1.0 + SPREAD * (2.0 * jitter.clamp(0.0, 1.0) - 1.0);
    let wait = millis(wait.mul_f64(factor));
    let at = now.saturating_add(wait);
    (at < created_at.saturating_add(millis(expire))).then_some(at)
}

fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;

    #[test]
    fn waits_grow_and_the_last_repeats_until_five_days() {
        let retry: Vec<_> = [1, 5, 15, 30, 60, 120, 240].map(|m| Duration::from_secs(m * MINUTE)).to_vec();
        let expire = Duration::from_secs(5 * 24 * HOUR);
        let (created, mut now, mut waits) = (1_000_000, 1_000_000, vec![]);
        for attempts in 1.. {
            match next(attempts, created, now, &retry, expire, 0.5) {
                Some(at) => waits.push((at - std::mem::replace(&mut now, at)) / 60_000),
                None => break,
            }
        }
        assert_eq!(waits[..9], [1, 5, 15, 30, 60, 120, 240, 240, 240]);
        // The last attempt falls into the last four hours before expiry.
        let left = created + 5 * 24 * 3_600_000 - now;
        assert!(left > 0 && left <= 4 * 3_600_000, "{left}");
    }

    #[test]
    fn jitter_moves_a_wait_by_a_tenth_at_most() {
        let retry = [Duration::from_secs(100)];
        let at = |jitter| next(1, 0, 0, &retry, Duration::from_secs(HOUR), jitter).unwrap();
        assert_eq!((at(0.0), at(0.5), at(1.0), at(99.0)), (90_000, 100_000, 110_000, 110_000));
    }

    #[test]
    fn odd_numbers_neither_panic_nor_wait_forever() {
        let hour = Duration::from_secs(HOUR);
        assert_eq!(next(1, 0, 0, &[], hour, 0.5), None);
        assert_eq!(next(u32::MAX, 0, 0, &[hour], hour, 0.5), None);
        assert_eq!(next(0, 0, Millis::MAX, &[hour], hour, 0.5), None);
        assert!(next(1, 0, 0, &[Duration::from_secs(1)], Duration::MAX, 0.5).is_some());
    }
}
