//! ARC: a list that changes a message, and whose word counts.

use super::super::*;
use super::{HOST, Key, MESSAGE, NOW, ed25519, sender, sign};
use crate::dns::zone::{Server, Zone};
use crate::screen::from_mailboxes;

const SAW_PASS: &str = "dmarc=pass (p=REJECT) header.from=sender.example";
const SAW_FAIL: &str = "dmarc=fail header.from=sender.example";

async fn zone(key: &Key) -> Server {
    let mut zone: Zone = sender(key);
    for domain in ["lists.example", "sub.lists.example", "evil.example", "notlists.example"] {
        zone = zone.txt(&format!("s._domainkey.{domain}"), &[&key.record]);
    }
    zone.start().await
}

async fn seen(zone: &Server, forwarders: &[&str], raw: &str) -> Verdict {
    let peer = Peer { ip: [198, 51, 100, 1].into(), helo: "x.example".into(), extended: true, tls: None };
    let forwarders: Vec<String> = forwarders.iter().map(|name| (*name).to_owned()).collect();
    let from = from_mailboxes(raw.as_bytes());
    let question = Question {
        peer: &peer,
        mail_from: &None,
        hostname: HOST,
        forwarders: &forwarders,
        now: NOW,
        raw: raw.as_bytes(),
        from: &from,
    };
    verify(&zone.resolver(), question).await
}

/// What the author signed, with the list's footer under it.
fn changed(key: &Key) -> String {
    format!("{}-- \r\nto unsubscribe\r\n", sign::dkim(key, "sender.example", "", MESSAGE))
}

#[tokio::test]
async fn a_named_forwarder_turns_the_policy_off_and_nothing_else() {
    let key = ed25519();
    let zone = zone(&key).await;
    let raw = sign::arc(&key, "lists.example", SAW_PASS, "none", &changed(&key));
    for (forwarders, rescued) in [
        (&["lists.example"][..], true),
        (&["other.example", "lists.example"], true),
        (&[], false),
        (&["sender.example"], false),
        (&["sub.lists.example"], false),
        (&["ists.example"], false),
    ] {
        let seen = seen(&zone, forwarders, &raw).await;
        assert_eq!(seen.arc.result, AuthResult::Pass, "{seen:?}");
        assert_eq!(seen.arc.chain[0].sealer, "lists.example");
        assert_eq!(seen.arc.chain[0].cv, "none");
        // Hearsay makes nobody known.
        assert_eq!((seen.dmarc.result, &seen.verified_sender), (AuthResult::Fail, &None));
        let policy = if rescued { DmarcPolicy::None } else { DmarcPolicy::Reject };
        assert_eq!(seen.dmarc.policy, policy, "{forwarders:?}: {seen:?}");
        let overridden = seen.dmarc.overridden.map(|o| (o.by, o.policy));
        assert_eq!(overridden, rescued.then(|| ("lists.example".to_owned(), DmarcPolicy::Reject)));
    }
}

/// Each row: the sets that were added, oldest first; whether `lists.example`, which is named, rescues.
#[tokio::test]
async fn whose_word_counts_in_a_longer_chain() {
    let key = ed25519();
    let zone = zone(&key).await;
    let rows: &[(&[(&str, &str)], bool)] = &[
        (&[("lists.example", SAW_FAIL)], false),
        (&[("lists.example", "dmarc=pass header.from=other.example")], false),
        (&[("lists.example", "dkim=pass header.d=sender.example")], true),
        (&[("lists.example", "spf=pass smtp.mailfrom=eve@mail.sender.example")], true),
        (&[("sub.lists.example", SAW_PASS)], true),
        (&[("notlists.example", SAW_PASS)], false),
        (&[("evil.example", SAW_PASS)], false),
        // A stranger lied to the list, and the list saw it.
        (&[("evil.example", SAW_PASS), ("lists.example", SAW_FAIL)], false),
        (&[("evil.example", SAW_FAIL), ("lists.example", SAW_PASS)], true),
        // The list passed it through two of its own hosts: the first saw the message as it was.
        (&[("lists.example", SAW_PASS), ("sub.lists.example", SAW_FAIL)], true),
        (&[("lists.example", SAW_FAIL), ("sub.lists.example", SAW_PASS)], false),
        // A stranger may have changed what the list had seen before.
        (&[("lists.example", SAW_PASS), ("evil.example", SAW_PASS), ("lists.example", SAW_FAIL)], false),
        (&[("lists.example", SAW_PASS), ("evil.example", SAW_PASS)], false),
    ];
    for (sets, rescued) in rows {
        let mut raw = changed(&key);
        for (n, (domain, saw)) in sets.iter().enumerate() {
            raw = sign::arc(&key, domain, saw, if n == 0 { "none" } else { "pass" }, &raw);
        }
        let seen = seen(&zone, &["lists.example"], &raw).await;
        assert_eq!(seen.arc.result, AuthResult::Pass, "{sets:?}: {seen:?}");
        assert_eq!(seen.arc.chain.len(), sets.len());
        assert_eq!(seen.dmarc.policy == DmarcPolicy::None, *rescued, "{sets:?}: {seen:?}");
    }
}

#[tokio::test]
async fn a_chain_that_does_not_hold_rescues_nothing() {
    let key = ed25519();
    let zone = zone(&key).await;
    let good = sign::arc(&key, "lists.example", SAW_PASS, "none", &changed(&key));
    for (what, raw) in [
        ("another body", format!("{good}more\r\n")),
        ("another subject", good.replace("Subject: hi", "Subject: ho")),
        ("other results", good.replace("(p=REJECT)", "(p=NONE)")),
        ("a set too many", sign::arc(&key, "lists.example", SAW_PASS, "none", &good)),
        ("a broken chain", sign::arc(&key, "lists.example", SAW_PASS, "fail", &good)),
        ("a key that there is not", sign::arc(&key, "nowhere.example", SAW_PASS, "pass", &good)),
        ("a second author", format!("From: boss@sender.example\r\n{good}")),
    ] {
        let seen = seen(&zone, &["lists.example", "nowhere.example"], &raw).await;
        assert_eq!(seen.arc.result == AuthResult::Pass, what == "a second author", "{what}: {seen:?}");
        assert_eq!(seen.dmarc.policy, DmarcPolicy::Reject, "{what}: {seen:?}");
    }
    let mut long = good;
    for _ in 0..10 {
        long = sign::arc(&key, "lists.example", SAW_PASS, "pass", &long);
    }
    let seen = seen(&zone, &["lists.example"], &long).await;
    assert_eq!((seen.arc.result, seen.dmarc.policy), (AuthResult::Policy, DmarcPolicy::Reject));
}

/// A pass needs nobody's word, and a policy that nobody set needs no override.
#[tokio::test]
async fn what_passes_is_not_rescued() {
    let key = ed25519();
    let zone = zone(&key).await;
    let raw =
        sign::arc(&key, "lists.example", SAW_PASS, "none", &sign::dkim(&key, "sender.example", "", MESSAGE));
    let seen = seen(&zone, &["lists.example"], &raw).await;
    assert_eq!((seen.dmarc.result, seen.dmarc.overridden), (AuthResult::Pass, None));
    assert!(seen.verified_sender.is_some());
}
