//! DMARC, RFC 9989, by a table: through the whole room, with a zone for each row.

use super::super::*;
use super::{HOST, Key, NOW, ed25519, sign};
use crate::dns::zone::Zone;
use crate::screen::from_mailboxes;

/// What the DNS has (`name text`, `name A`, or `!name` for a server that fails; `|` parts strings), the From
/// field, the domain of MAIL FROM for which SPF says something (`helo:` for the greeting of a null path), the
/// domains that signed, and what comes of it: result, policy, `t` in test mode.
type Row = (&'static [&'static str], &'static str, &'static str, &'static [&'static str], &'static str);

const REJECT: &[&str] = &["_dmarc.a.example v=DMARC1; p=reject"];
const A: &str = "x@a.example";

#[rustfmt::skip]
const RECORDS: &[Row] = &[
    (&[], A, "", &[], "none none"),
    (&["_dmarc.a.example v=DMARC1; p=none"], A, "", &[], "fail none"),
    (&["_dmarc.a.example v=DMARC1; p=quarantine"], A, "", &[], "fail quarantine"),
    (REJECT, A, "", &[], "fail reject"),
    (&["_dmarc.a.example V = DMARC1 ;\tp = reject ; "], A, "", &[], "fail reject"),
    (&["_dmarc.a.example v=DMARC1; P=Reject"], A, "", &[], "fail reject"),
    (&["_dmarc.a.example v=DMARC1;p=re|ject"], A, "", &[], "fail reject"),
    // The version decides whether it is a record.
    (&["_dmarc.a.example v=dmarc1; p=reject"], A, "", &[], "none none"),
    (&["_dmarc.a.example v=DMARC10; p=reject"], A, "", &[], "none none"),
    (&["_dmarc.a.example p=reject; v=DMARC1"], A, "", &[], "none none"),
    (&["_dmarc.a.example v=DMARC1, p=reject"], A, "", &[], "none none"),
    (&["_dmarc.a.example DMARC1; p=reject"], A, "", &[], "none none"),
    // Several are none.
    (&["_dmarc.a.example v=DMARC1; p=reject", "_dmarc.a.example v=DMARC1; p=reject"], A, "", &[], "none none"),
    (&["_dmarc.a.example v=DMARC1; p=reject", "_dmarc.a.example v=spf1 -all"], A, "", &[], "fail reject"),
    (&["_dmarc.b.a.example v=DMARC1; p=none", "_dmarc.b.a.example v=DMARC1; p=none", "_dmarc.a.example v=DMARC1; p=reject"],
        "x@b.a.example", "", &[], "fail reject"),
    // Policies that are absent or nonsense.
    (&["_dmarc.a.example v=DMARC1"], A, "", &[], "fail none"),
    (&["_dmarc.a.example v=DMARC1; rua=mailto:r@a.example"], A, "", &[], "fail none"),
    (&["_dmarc.a.example v=DMARC1; p=refuse; rua=mailto:r@a.example"], A, "", &[], "fail none"),
    (&["_dmarc.a.example v=DMARC1; p=refuse"], A, "", &[], "none none"),
    (&["_dmarc.a.example v=DMARC1; p=refuse; rua=nobody"], A, "", &[], "none none"),
    (&["_dmarc.a.example v=DMARC1; p=reject; sp=refuse; rua=mailto:r@a.example"], A, "", &[], "fail none"),
    (&["_dmarc.a.example v=DMARC1; p=reject; sp=refuse"], A, "", &[], "none none"),
    (&["_dmarc.a.example v=DMARC1; p=reject; np=refuse"], A, "", &[], "none none"),
    (&["_dmarc.a.example v=DMARC1; p="], A, "", &[], "none none"),
    // What is unknown, gone or wrong beside them does not matter.
    (&["_dmarc.a.example v=DMARC1; p=reject; pct=0"], A, "", &[], "fail reject"),
    (&["_dmarc.a.example v=DMARC1; pct=none; rf=afrf; ri=x; p=reject; z=1"], A, "", &[], "fail reject"),
    (&["_dmarc.a.example v=DMARC1; p=reject; rubbish; =x;; ;"], A, "", &[], "fail reject"),
    (&["_dmarc.a.example v=DMARC1; p=reject; fo=9; ruf=x; psd=maybe; t=perhaps"], A, "", &[], "fail reject"),
    (&["_dmarc.a.example v=DMARC1; p=reject; aspf=x"], A, "b.a.example", &[], "pass reject"),
];

#[rustfmt::skip]
const ALIGNMENT: &[Row] = &[
    (REJECT, A, "a.example", &[], "pass reject"),
    (REJECT, A, "bounce.a.example", &[], "pass reject"),
    (REJECT, "x@b.a.example", "a.example", &[], "pass reject"),
    (REJECT, "x@b.a.example", "c.a.example", &[], "pass reject"),
    (REJECT, A, "b.example", &[], "fail reject"),
    (REJECT, A, "nota.example", &[], "fail reject"),
    (REJECT, A, "example", &[], "fail reject"),
    (&["_dmarc.a.example v=DMARC1; p=reject; aspf=s"], A, "bounce.a.example", &[], "fail reject"),
    (&["_dmarc.a.example v=DMARC1; p=reject; aspf=s"], A, "a.example", &[], "pass reject"),
    (&["_dmarc.a.example v=DMARC1; p=reject; aspf=s"], A, "", &["bounce.a.example"], "pass reject"),
    (&["_dmarc.a.example v=DMARC1; p=reject; adkim=s"], A, "", &["bounce.a.example"], "fail reject"),
    (&["_dmarc.a.example v=DMARC1; p=reject; adkim=s"], A, "", &["a.example"], "pass reject"),
    (&["_dmarc.a.example v=DMARC1; p=reject; adkim=s"], A, "bounce.a.example", &[], "pass reject"),
    (REJECT, A, "helo:a.example", &[], "pass reject"),
    (REJECT, A, "helo:mail.a.example", &[], "pass reject"),
    (&["_dmarc.a.example v=DMARC1; p=reject", "a.example v=spf1 -all"], A, "a.example", &[], "fail reject"),
    (&["_dmarc.a.example v=DMARC1; p=reject", "a.example v=spf1 ~all"], A, "a.example", &[], "fail reject"),
    (&["_dmarc.a.example v=DMARC1; p=reject", "a.example v=spf1 nonsense"], A, "a.example", &[], "fail reject"),
    (&["_dmarc.a.example v=DMARC1; p=reject", "!a.example"], A, "a.example", &[], "temperror reject"),
    (&["_dmarc.a.example v=DMARC1; p=reject", "!b.example"], A, "b.example", &[], "fail reject"),
    (&["_dmarc.a.example v=DMARC1; p=reject", "!a.example"], A, "a.example", &["a.example"], "pass reject"),
    (REJECT, A, "", &["a.example"], "pass reject"),
    (REJECT, A, "", &["mail.a.example"], "pass reject"),
    (REJECT, "x@b.a.example", "", &["a.example"], "pass reject"),
    (REJECT, A, "", &["b.example"], "fail reject"),
    (REJECT, A, "", &["b.example", "a.example"], "pass reject"),
    (REJECT, A, "b.example", &["b.example", "c.example"], "fail reject"),
    (&["_dmarc.a.example v=DMARC1; p=reject", "!s._domainkey.a.example"], A, "", &["a.example"], "temperror reject"),
    (&["_dmarc.a.example v=DMARC1; p=reject", "!s._domainkey.b.example"], A, "", &["b.example"], "fail reject"),
    (&["_dmarc.a.example v=DMARC1; p=reject", "!s._domainkey.a.example"], A, "a.example", &["a.example"], "pass reject"),
    // One form of a name.
    (REJECT, "x@A.Example", "", &["a.example"], "pass reject"),
    (&["_dmarc.xn--mnchen-3ya.example v=DMARC1; p=reject"], "x@MÜNCHEN.example", "", &["xn--mnchen-3ya.example"], "pass reject"),
    (&["_dmarc.xn--mnchen-3ya.example v=DMARC1; p=reject"], "x@xn--mnchen-3ya.example", "", &["münchen.example"], "pass reject"),
    (&["_dmarc.xn--mnchen-3ya.example v=DMARC1; p=reject"], "x@münchen.example", "bücher.xn--mnchen-3ya.example", &[], "pass reject"),
    (&["_dmarc.xn--mnchen-3ya.example v=DMARC1; p=reject"], "x@münchen.example", "munchen.example", &[], "fail reject"),
];

#[rustfmt::skip]
const TREE: &[Row] = &[
    (REJECT, "x@b.a.example", "", &[], "fail reject"),
    (REJECT, "x@e.d.c.b.a.example", "", &[], "fail reject"),
    (&["_dmarc.a.example v=DMARC1; p=reject; sp=none", "b.a.example A"], "x@b.a.example", "", &[], "fail none"),
    (&["_dmarc.a.example v=DMARC1; p=none; sp=reject"], A, "", &[], "fail none"),
    (&["_dmarc.a.example v=DMARC1; sp=reject", "b.a.example A"], "x@b.a.example", "", &[], "fail reject"),
    (&["_dmarc.a.example v=DMARC1; p=none; sp=none; np=reject"], "x@b.a.example", "", &[], "fail reject"),
    (&["_dmarc.a.example v=DMARC1; p=none; sp=quarantine; np=reject", "b.a.example A"], "x@b.a.example", "", &[], "fail quarantine"),
    (&["_dmarc.a.example v=DMARC1; p=none; sp=quarantine; np=reject", "c.b.a.example A"], "x@b.a.example", "", &[], "fail quarantine"),
    (&["_dmarc.a.example v=DMARC1; p=none; sp=quarantine"], "x@b.a.example", "", &[], "fail quarantine"),
    (&["_dmarc.a.example v=DMARC1; p=none; np=reject"], "x@b.a.example", "", &[], "fail reject"),
    (&["_dmarc.a.example v=DMARC1; p=none; np=reject"], A, "", &[], "fail none"),
    (&["_dmarc.a.example v=DMARC1; p=none; np=reject", "!b.a.example"], "x@b.a.example", "", &[], "fail none"),
    // The author's own record wins; the one in between does not count.
    (&["_dmarc.b.a.example v=DMARC1; p=none; sp=reject", "_dmarc.a.example v=DMARC1; p=reject"], "x@b.a.example", "", &[], "fail none"),
    (&["_dmarc.b.a.example v=DMARC1; p=none; sp=none", "_dmarc.a.example v=DMARC1; p=reject"], "x@c.b.a.example", "", &[], "fail reject"),
    // A public suffix: `co.example`.
    (&["_dmarc.co.example v=DMARC1; p=reject; psd=y"], "x@shop.co.example", "", &[], "fail reject"),
    (&["_dmarc.co.example v=DMARC1; p=none; np=reject; psd=y"], "x@shop.co.example", "", &[], "fail reject"),
    (&["_dmarc.co.example v=DMARC1; p=none; sp=quarantine; psd=y", "shop.co.example A"], "x@b.shop.co.example", "", &[], "fail quarantine"),
    (&["_dmarc.co.example v=DMARC1; p=reject; psd=y"], "x@shop.co.example", "evil.co.example", &[], "fail reject"),
    (&["_dmarc.co.example v=DMARC1; p=reject; psd=y"], "x@shop.co.example", "", &["co.example"], "fail reject"),
    (&["_dmarc.co.example v=DMARC1; p=reject; psd=y"], "x@b.shop.co.example", "", &["shop.co.example"], "pass reject"),
    (&["_dmarc.co.example v=DMARC1; p=reject; psd=y"], "x@b.shop.co.example", "c.shop.co.example", &[], "pass reject"),
    (&["_dmarc.co.example v=DMARC1; p=reject; psd=y", "_dmarc.shop.co.example v=DMARC1; p=none"], "x@b.shop.co.example", "", &[], "fail none"),
    (&["_dmarc.co.example v=DMARC1; p=reject; psd=y"], "x@co.example", "co.example", &[], "pass reject"),
    (&["_dmarc.co.example v=DMARC1; p=reject; psd=y"], "x@co.example", "shop.co.example", &[], "fail reject"),
    // An organization of its own: `psd=n`.
    (&["_dmarc.team.a.example v=DMARC1; p=reject; psd=n", "_dmarc.a.example v=DMARC1; p=none"], "x@team.a.example", "a.example", &[], "fail reject"),
    (&["_dmarc.team.a.example v=DMARC1; p=reject; psd=n", "_dmarc.a.example v=DMARC1; p=none"], "x@team.a.example", "", &["b.team.a.example"], "pass reject"),
    (&["_dmarc.team.a.example v=DMARC1; p=reject; psd=n", "_dmarc.a.example v=DMARC1; p=none"], "x@b.team.a.example", "", &["team.a.example"], "pass reject"),
    (&["_dmarc.team.a.example v=DMARC1; p=none; psd=n", "_dmarc.a.example v=DMARC1; p=reject"], A, "team.a.example", &[], "fail reject"),
    (&["_dmarc.team.a.example v=DMARC1; p=none; psd=n", "_dmarc.a.example v=DMARC1; p=reject"], A, "", &["b.team.a.example"], "fail reject"),
    // A suffix that does not say so is an organization to all who can see.
    (&["_dmarc.example v=DMARC1; p=none", "_dmarc.a.example v=DMARC1; p=reject"], A, "b.example", &[], "pass reject"),
    // Eight questions: from nine labels on, the walk goes on at seven.
    (REJECT, "x@1.2.3.4.5.6.7.8.9.a.example", "", &[], "fail reject"),
    (&["_dmarc.3.4.5.6.7.8.9.a.example v=DMARC1; p=reject"], "x@1.2.3.4.5.6.7.8.9.a.example", "", &[], "none none"),
    (&["_dmarc.5.6.7.8.9.a.example v=DMARC1; p=reject"], "x@1.2.3.4.5.6.7.8.9.a.example", "", &[], "fail reject"),
    // Servers that fail.
    (&["!_dmarc.a.example"], A, "", &[], "temperror none"),
    (&["!_dmarc.a.example"], A, "a.example", &["a.example"], "temperror none"),
    (&["!_dmarc.a.example"], "x@b.a.example", "", &[], "temperror none"),
    (&["_dmarc.b.a.example v=DMARC1; p=reject", "!_dmarc.a.example"], "x@b.a.example", "", &["b.a.example"], "pass reject"),
    (&["_dmarc.b.a.example v=DMARC1; p=reject", "!_dmarc.a.example"], "x@b.a.example", "", &["a.example"], "temperror reject"),
    (&["_dmarc.b.a.example v=DMARC1; p=reject", "!_dmarc.a.example"], "x@b.a.example", "", &[], "fail reject"),
];

#[rustfmt::skip]
const TEST_MODE: &[Row] = &[
    (&["_dmarc.a.example v=DMARC1; p=reject; t=y"], A, "", &[], "fail quarantine t"),
    (&["_dmarc.a.example v=DMARC1; p=quarantine; t=y"], A, "", &[], "fail none t"),
    (&["_dmarc.a.example v=DMARC1; p=none; t=y"], A, "", &[], "fail none t"),
    (&["_dmarc.a.example v=DMARC1; p=reject; t=n"], A, "", &[], "fail reject"),
    (&["_dmarc.a.example v=DMARC1; p=reject; T = Y"], A, "", &[], "fail quarantine t"),
    (&["_dmarc.a.example v=DMARC1; p=reject; t=y"], A, "a.example", &[], "pass quarantine t"),
    (&["_dmarc.a.example v=DMARC1; p=none; sp=reject; t=y", "b.a.example A"], "x@b.a.example", "", &[], "fail quarantine t"),
    (&["_dmarc.a.example v=DMARC1; p=none; np=reject; t=y"], "x@b.a.example", "", &[], "fail quarantine t"),
];

#[rustfmt::skip]
const AUTHORS: &[Row] = &[
    (REJECT, "\"ceo@bank.example\" <x@a.example>", "a.example", &[], "pass reject"),
    (REJECT, "x@a.example, y@a.example", "", &[], "fail reject"),
    (REJECT, "x@a.example, y@a.example", "a.example", &["a.example"], "fail none"),
    (&["_dmarc.a.example v=DMARC1; p=reject", "_dmarc.b.example v=DMARC1; p=quarantine"], "x@a.example, y@b.example", "a.example", &[], "fail quarantine"),
    (&["_dmarc.a.example v=DMARC1; p=reject", "_dmarc.b.example v=DMARC1; p=quarantine"], "x@a.example, y@b.example", "b.example", &[], "fail reject"),
    (REJECT, "x@a.example, y@b.example, z@c.example, z@d.example, z@e.example, z@f.example", "", &[], "fail reject"),
    (REJECT, "x@a.example\r\nFrom: y@b.example", "b.example", &["b.example"], "fail reject"),
    (REJECT, "x@a.example\r\nfrom: x@a.example", "a.example", &["a.example"], "fail none"),
    (REJECT, "", "a.example", &[], "fail none"),
    (REJECT, "a.example", "a.example", &[], "fail none"),
    (REJECT, "x@[192.0.2.7]", "a.example", &[], "fail none"),
    (REJECT, "x@localhost", "a.example", &[], "none none"),
    (REJECT, "<x@a.example> y@b.example", "b.example", &[], "fail none"),
];

#[tokio::test]
async fn rfc_9989_by_a_table() {
    let key = ed25519();
    let mut wrong = Vec::new();
    let tables = [RECORDS, ALIGNMENT, TREE, TEST_MODE, AUTHORS];
    for row in tables.into_iter().flatten() {
        let (.., want) = row;
        let seen = seen(&key, row).await;
        let dmarc = &seen.dmarc;
        let testing = if dmarc.testing { " t" } else { "" };
        let got = format!("{} {}{testing}", dmarc.result.as_str(), dmarc.policy.as_str());
        let verified = seen.verified_sender.is_some() == (dmarc.result == AuthResult::Pass);
        if got != *want || !verified {
            wrong.push(format!("{row:?}: {seen:#?}"));
        }
    }
    let rows = tables.iter().map(|table| table.len()).sum::<usize>();
    println!("DMARC table: {} of {rows} rows", rows - wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(rows >= 60);
}

async fn seen(key: &Key, (dns, from, mail_from, signers, _): &Row) -> Verdict {
    let mut zone = Zone::new();
    for entry in *dns {
        zone = match entry.strip_prefix('!') {
            Some(name) => zone.broken(name),
            None => match entry.split_once(' ').unwrap() {
                (name, "A") => zone.a(name, "192.0.2.1"),
                (name, text) => zone.txt(name, &text.split('|').collect::<Vec<_>>()),
            },
        };
    }
    let (helo, sender) = match mail_from.strip_prefix("helo:") {
        Some(helo) => (helo, ""),
        None => ("mail.elsewhere.example", *mail_from),
    };
    let asked = if sender.is_empty() { helo } else { sender };
    if !mail_from.is_empty() && !dns.iter().any(|entry| entry.starts_with(&format!("{asked} v=spf1"))) {
        zone = zone.txt(asked, &["v=spf1 +all"]);
    }
    let author = if from.is_empty() { String::new() } else { format!("From: {from}\r\n") };
    let mut raw = format!("{author}Subject: hi\r\n\r\nhello Ada\r\n");
    for signer in *signers {
        let name = crate::address::normalize_domain(signer).unwrap();
        zone = zone.txt(&format!("s._domainkey.{name}"), &[&key.record]);
        raw = sign::dkim(key, signer, "", &raw);
    }
    let zone = zone.start().await;
    let peer = Peer { ip: [198, 51, 100, 1].into(), helo: helo.to_owned(), extended: true, tls: None };
    let mail_from: ReversePath = (!sender.is_empty()).then(|| format!("b@{sender}").parse().unwrap());
    let mailboxes = from_mailboxes(raw.as_bytes());
    let question = Question {
        peer: &peer,
        mail_from: &mail_from,
        hostname: HOST,
        forwarders: &[],
        now: NOW,
        raw: raw.as_bytes(),
        from: &mailboxes,
    };
    verify(&zone.resolver(), question).await
}
