//! What a message can make us ask.

use super::super::*;
use super::{MESSAGE, ed25519, sender, sign, verdict};
use crate::dns::zone::Zone;
use lookups::PER_MESSAGE;

/// The road that nearly all mail takes costs five questions: SPF, one key, one policy, the reverse name and
/// its address.
#[tokio::test]
async fn honest_mail_costs_five_questions() {
    let key = ed25519();
    let zone = sender(&key).start().await;
    let raw = sign::dkim(&key, "sender.example", "", MESSAGE);
    let seen = verdict(&zone, "192.0.2.7", "eve@sender.example", &raw).await;
    assert_eq!((seen.spf.result, seen.dmarc.result), (AuthResult::Pass, AuthResult::Pass), "{seen:?}");
    assert_eq!(seen.iprev.result, AuthResult::Pass);
    assert!(seen.dmarc.spf_aligned && seen.dmarc.dkim_aligned);
    assert_eq!(zone.questions(), 5);
}

/// Every method at its worst, in one message: an SPF record that asks for more than the RFC allows, five
/// keys, an author eight labels deep, a chain. The policy of the author is found all the same: whoever forges
/// him cannot ask it away.
#[tokio::test]
async fn no_message_costs_more_than_twenty_questions() {
    let key = ed25519();
    let mut zone = Zone::new().txt("_dmarc.victim.example", &["v=DMARC1; p=reject"]);
    let mut raw = MESSAGE.replace("eve@sender.example", "boss@a.b.c.d.e.f.g.h.victim.example");
    for n in 0..8 {
        raw = sign::dkim(&key, &format!("d{n}.test"), "", &raw);
        zone = zone.txt(&format!("s._domainkey.d{n}.test"), &[&key.record]);
    }
    for n in 0..6 {
        let cv = if n == 0 { "none" } else { "pass" };
        let domain = format!("f{n}.test");
        raw = sign::arc(&key, &domain, "dmarc=pass header.from=a.b.c.d.e.f.g.h.victim.example", cv, &raw);
        zone = zone.txt(&format!("s._domainkey.{domain}"), &[&key.record]);
    }
    for n in 0..10 {
        zone =
            zone.mx("evil.test", n, &format!("mx{n}.evil.test")).a(&format!("mx{n}.evil.test"), "192.0.2.9");
    }
    let zone = zone
        .txt("evil.test", &["v=spf1 mx mx:evil.test ptr a:mx1.evil.test exists:%{p}.test -all"])
        .ptr("192.0.2.7", "a.test")
        .ptr("192.0.2.7", "b.test")
        .ptr("192.0.2.7", "c.test")
        .start()
        .await;
    let seen = verdict(&zone, "192.0.2.7", "x@evil.test", &raw).await;
    assert!(zone.questions() <= PER_MESSAGE, "{} questions", zone.questions());
    assert_eq!(seen.dkim.iter().filter(|dkim| dkim.result == AuthResult::Pass).count(), 5, "{seen:?}");
    assert_eq!((seen.dmarc.result, seen.dmarc.policy), (AuthResult::Fail, DmarcPolicy::Reject), "{seen:?}");
    assert_eq!(seen.spf.result, AuthResult::PermError, "{seen:?}");
    assert_eq!(seen.arc.result, AuthResult::Policy, "{seen:?}");
}

/// What is set apart for a long author is there for SPF when the policy was found at once.
#[tokio::test]
async fn an_spf_record_of_ten_terms_is_honest() {
    let key = ed25519();
    let mut record = "v=spf1".to_owned();
    let mut zone = sender(&key);
    for n in 0..10 {
        record += &format!(" include:{n}.spf.example");
        zone = zone.txt(&format!("{n}.spf.example"), &["v=spf1 ip4:192.0.2.77 -all"]);
    }
    let raw = MESSAGE.replace("eve@sender.example", "eve@team.mail.many.example");
    let zone = zone
        .txt("many.example", &[&format!("{record} ip4:192.0.2.7 -all")])
        .txt("_dmarc.team.mail.many.example", &["v=DMARC1; p=reject"])
        .start()
        .await;
    let raw = sign::dkim(&key, "sender.example", "", &sign::dkim(&key, "other.example", "", &raw));
    for _ in 0..3 {
        let seen = verdict(&zone, "192.0.2.7", "eve@many.example", &raw).await;
        assert_eq!(seen.spf.result, AuthResult::Pass, "{seen:?}");
    }
}
