//! The guard as a session meets it.

use super::testing::{guard, limits, timed};
use super::*;
use crate::clock::{HOUR, MINUTE};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn enter(guard: &Guard, from: &str) -> Result<Pass, Full> {
    let mut pass = guard.admit()?;
    guard.check(&mut pass, ip(from))?;
    Ok(pass)
}

fn code(reply: &Reply) -> String {
    reply.to_string().chars().take(9).collect()
}

/// Harvesting addresses by RCPT: each guess is slower than the one before, and in the end none is answered, for a
/// while.
#[tokio::test]
async fn guessing_addresses_gets_slower_and_ends() {
    let (guard, hand) = timed(SmtpLimits { unknown_recipients_per_hour: 40, ..limits() });
    let mut delays = Vec::new();
    for n in 0.. {
        let mut visit = Visit::new(&guard, ip("192.0.2.1"));
        if visit.unwelcome().is_some() {
            break;
        }
        assert!(n < 10, "goes on forever");
        for errors in 1..=8 {
            visit.error();
            visit.unknown_recipient();
            delays.push(visit.delay(errors).as_millis());
        }
    }
    assert_eq!(delays.len(), 40);
    assert_eq!(delays[..8], [0, 0, 0, 1, 2, 3, 4, 5]);
    assert!(delays[32] > 0, "a new connection is no new start");
    assert!(enter(&guard, "192.0.2.1").is_ok(), "the door stays open for others at that address");
    let unwelcome = |from: &str| Visit::new(&guard, ip(from)).unwelcome();
    assert_eq!(code(&unwelcome("192.0.2.1").unwrap()), "450 4.7.1");
    assert!(unwelcome("203.0.113.1").is_none());
    hand.advance(2 * HOUR);
    assert!(unwelcome("192.0.2.1").is_none(), "forgiven after a while");
}

/// Two accounts at a provider who write to made-up names must not keep out everybody who shares its addresses.
#[tokio::test]
async fn a_provider_that_brings_mail_may_err_more() {
    let (guard, hand) =
        timed(SmtpLimits { unknown_recipients_per_hour: 40, errors_per_hour: 40, ..limits() });
    let mut visit = Visit::new(&guard, ip("192.0.2.1"));
    (0..1000).for_each(|_| visit.accepted());
    // From all over its network, too.
    let mut neighbour = Visit::new(&guard, ip("192.0.2.2"));
    for _ in 0..39 {
        neighbour.error();
        neighbour.unknown_recipient();
    }
    for n in 0..240 {
        assert!(visit.unwelcome().is_none(), "after {n}");
        visit.error();
        visit.unknown_recipient();
    }
    assert!(visit.unwelcome().is_some(), "mail buys no end of guesses");
    assert!(neighbour.unwelcome().is_none());
    hand.advance(3 * HOUR);
    for _ in 0..40 {
        assert!(visit.unwelcome().is_none());
        visit.unknown_recipient();
    }
    assert!(visit.unwelcome().is_some(), "mail of long ago buys nothing");
}

/// A tarpit that holds everybody is a denial of service by our own hand.
#[tokio::test]
async fn few_are_kept_waiting_at_a_time() {
    let guard = guard(SmtpLimits { sessions: 8, ..limits() });
    let stop = CancellationToken::new();
    let visits: Vec<_> = (0..4).map(|_| Visit::new(&guard, ip("192.0.2.1"))).collect();
    let held = futures_util::future::join_all(visits.iter().map(|visit| visit.hold_up(10, &stop))).await;
    assert_eq!(held.iter().filter(|held| **held).count(), 2, "a quarter of all sessions");
    assert!(visits[0].hold_up(10, &stop).await, "and their places are given back");
}

#[tokio::test]
async fn messages_a_minute() {
    let (guard, hand) = timed(SmtpLimits { messages_per_minute: 3, ..limits() });
    let visit = Visit::new(&guard, ip("192.0.2.1"));
    assert_eq!((0..10).filter(|_| visit.mail().is_ok()).count(), 3);
    assert_eq!(code(&visit.mail().unwrap_err()), "451 4.7.1");
    assert!(Visit::new(&guard, ip("203.0.113.1")).mail().is_ok());
    hand.advance(2 * MINUTE);
    assert!(visit.mail().is_ok());
}

#[tokio::test]
async fn connections_a_minute() {
    let (guard, hand) = timed(SmtpLimits { connections_per_minute: 5, ..limits() });
    let let_in = (0..20).filter(|_| enter(&guard, "192.0.2.1").is_ok()).count();
    assert_eq!(let_in, 5);
    assert_eq!(code(&enter(&guard, "192.0.2.1").unwrap_err().reply()), "421 4.7.0");
    hand.advance(2 * MINUTE);
    assert!(enter(&guard, "192.0.2.1").is_ok());
}

/// A database that stands still: sessions that wait for it are bounded, new ones hear 421 at once, those that
/// are inside 451, and all is well when it moves again.
#[tokio::test]
async fn a_stalled_database_is_overload_not_a_stall() {
    let guard = guard(SmtpLimits { sessions: 8, ..limits() });
    let visit = Visit::new(&guard, ip("192.0.2.1"));
    let waiting: Vec<_> = (0..4).map(|_| visit.wait().unwrap()).collect();
    assert_eq!(code(&visit.wait().unwrap_err()), "451 4.3.2");
    assert_eq!(code(&visit.mail().unwrap_err()), "451 4.3.2");
    assert_eq!(enter(&guard, "203.0.113.1").unwrap_err(), Full::Busy);
    assert_eq!(code(&Full::Busy.reply()), "421 4.3.2");
    drop(waiting);
    assert!(visit.mail().is_ok() && enter(&guard, "203.0.113.1").is_ok());
}

#[tokio::test]
async fn exempt_networks_share_the_house_and_nothing_else() {
    let exempt = crate::config::Config::dev(std::path::Path::new("d"), &[], std::iter::empty());
    let exempt = exempt.unwrap().smtp.guard.limits.exempt;
    let guard = guard(SmtpLimits {
        sessions: 8,
        sessions_per_address: 1,
        connections_per_minute: 1,
        messages_per_minute: 1,
        errors_per_hour: 1,
        exempt,
        ..limits()
    });
    let mut visit = Visit::new(&guard, ip("127.0.0.1"));
    (0..5).for_each(|_| visit.error());
    assert!((0..5).all(|_| visit.mail().is_ok()) && visit.unwelcome().is_none());
    let inside: Vec<_> = (0..20).map_while(|_| enter(&guard, "127.0.0.1").ok()).collect();
    assert_eq!(inside.len(), 8);
    assert_eq!(enter(&guard, "::1").unwrap_err(), Full::All);
}
