//! What a DKIM signature and its key may be, RFC 6376 and RFC 8301, by a table.

use super::super::*;
use super::{MESSAGE, NOW, ed25519, forwarded, sender, sign};
use crate::dns::zone::Zone;

/// Tags of the signature, tags of the key, and what comes of it.
#[tokio::test]
async fn signatures_and_keys_by_a_table() {
    let key = ed25519();
    let p = key.record.split_once("p=").unwrap().1;
    let (past, future) = (NOW / 1000 - 1, NOW / 1000 + 60);
    let rows = [
        ("", "v=DKIM1; k=ed25519; p=", "pass"),
        ("", "k=ed25519; p=", "pass"),
        ("", "v=DKIM1; k=ed25519; h=sha1:sha256; s=*; n=x; p=", "pass"),
        ("x=FUTURE", "k=ed25519; p=", "pass"),
        ("t=1; x=FUTURE", "k=ed25519; p=", "pass"),
        ("x=PAST", "k=ed25519; p=", "fail"),
        ("t=FUTURE; x=FUTURE", "k=ed25519; p=", "permerror"),
        ("x=never", "k=ed25519; p=", "permerror"),
        ("q=dns/txt", "k=ed25519; p=", "pass"),
        ("q=dns/tlsa", "k=ed25519; p=", "permerror"),
        ("i=@sender.example", "k=ed25519; p=", "pass"),
        ("i=eve@mail.sender.example", "k=ed25519; p=", "pass"),
        ("i=eve@example", "k=ed25519; p=", "permerror"),
        ("i=eve@notsender.example", "k=ed25519; p=", "permerror"),
        ("i=@sender.example", "k=ed25519; t=s; p=", "pass"),
        ("", "k=ed25519; t=s; p=", "pass"),
        ("i=eve@mail.sender.example", "k=ed25519; t=s; p=", "permerror"),
        ("", "k=ed25519; t=y; p=", "neutral"),
        ("", "k=ed25519; t=s:y; p=", "neutral"),
        ("l=5", "k=ed25519; p=", "policy"),
        ("l=0", "k=ed25519; p=", "policy"),
        ("d=sender.example", "k=ed25519; p=", "permerror"),
        ("no tag", "k=ed25519; p=", "permerror"),
        ("unknown=tag", "k=ed25519; p=", "pass"),
        ("", "k=ed25519; revoked=; p=", "permerror"),
        ("", "k=rsa; p=", "policy"),
        ("", "k=ecc; p=", "permerror"),
        ("", "v=DKIM2; k=ed25519; p=", "permerror"),
        ("", "k=ed25519; h=sha1; p=", "permerror"),
        ("", "k=ed25519; s=calendar; p=", "permerror"),
        ("", "not a key", "permerror"),
    ];
    for (more, record, want) in rows {
        let more = more.replace("PAST", &past.to_string()).replace("FUTURE", &future.to_string());
        let raw = sign::dkim(&key, "sender.example", &more, MESSAGE);
        let record = match record.contains("revoked=") {
            true => record.to_owned(),
            false => format!("{record}{p}"),
        };
        let zone = Zone::new()
            .txt("s._domainkey.sender.example", &[&record])
            .txt("_dmarc.sender.example", &["v=DMARC1; p=reject"])
            .start()
            .await;
        let seen = forwarded(&zone, &raw).await;
        assert_eq!(seen.dkim[0].result.as_str(), want, "{more} {record}: {seen:?}");
        assert_eq!(seen.dmarc.result == AuthResult::Pass, want == "pass", "{more} {record}: {seen:?}");
        assert_eq!(seen.verified_sender.is_some(), want == "pass");
    }
    println!("DKIM table: {} rows", rows.len());
}

/// RFC 6376 §3.6.1: a domain that tries DKIM out is treated as if it did not sign, when it goes wrong too.
#[tokio::test]
async fn a_broken_signature_of_a_test_key_is_no_failure() {
    let key = ed25519();
    let zone = Zone::new()
        .txt("s._domainkey.sender.example", &[&key.record.replace("v=DKIM1;", "v=DKIM1; t=y;")])
        .start()
        .await;
    let raw = sign::dkim(&key, "sender.example", "", MESSAGE).replace("Subject: hi", "Subject: ho");
    assert_eq!(forwarded(&zone, &raw).await.dkim[0].result, AuthResult::Neutral);
}

/// RFC 8301 §3.1: rsa-sha1 is not even asked for.
#[tokio::test]
async fn rsa_sha1_costs_no_lookup() {
    let key = ed25519();
    let zone = sender(&key).start().await;
    let raw = sign::dkim(&key, "sender.example", "", MESSAGE).replace("a=ed25519-sha256", "a=rsa-sha1");
    let seen = forwarded(&zone, &raw).await;
    assert_eq!(seen.dkim[0].result, AuthResult::Policy, "{seen:?}");
    assert_eq!((seen.dkim[0].domain.as_str(), seen.dmarc.result), ("sender.example", AuthResult::Fail));
}

/// A list of signed fields is looked up in the header name by name, whoever gives it.
#[test]
fn a_signature_of_too_many_fields_is_not_verified() {
    let tags = |fields: usize| {
        let names = "from:".repeat(fields);
        format!("a=rsa-sha256; d=a.example; s=s; b=AAAA; bh=AAAA; h={names}")
    };
    let chain = |fields: usize| {
        let raw = format!(
            "ARC-Seal: i=1; cv=none; a=rsa-sha256; d=a.example; s=s; b=AAAA\r\nDKIM-Signature: v=1; {0}\r\n\
             ARC-Message-Signature: i=1; {0}\r\nARC-Authentication-Results: i=1; x; spf=none\r\n\r\n",
            tags(fields)
        );
        let message = signed::Message::new(raw.as_bytes());
        let read = dkim::read(&message, &[], NOW);
        let refused = read.refused.first().map(|one| (one.result, one.detail.clone().unwrap()));
        let dns = NOBODY.get_or_init(|| Resolver::new(&["127.0.0.1:1".parse().unwrap()]).unwrap());
        let lookups = Lookups::new(dns);
        let none = lookups.share(0);
        let chain = arc::check(&none, &message, NOW).now_or_never().unwrap();
        (refused, chain.record.detail.unwrap())
    };
    assert_eq!(chain(200), (None, "the body was changed".to_owned()));
    let why = "too many signed fields".to_owned();
    assert_eq!(chain(20_000), (Some((AuthResult::Policy, why.clone())), why));
}

/// A resolver that has nobody to ask.
static NOBODY: std::sync::OnceLock<Resolver> = std::sync::OnceLock::new();

proptest::proptest! {
    /// A header field is a stranger's text.
    #[test]
    fn no_field_is_too_odd(
        tags in "([a-z]{1,2}[ \t]{0,2}=|;|[ -~é]){0,30}",
        value in "(i=1|a=rsa-sha256|b=AAAA|bh=AAAA|d=a.example|s=s|cv=none|h=from|v=1|l=1|; ?|[ -~é]){0,12}",
    ) {
        let raw = format!(
            "DKIM-Signature: {value}{tags}\r\nARC-Seal: {value}\r\nARC-Message-Signature: {tags}{value}\r\n\
             ARC-Authentication-Results: i=1; {value}\r\nDKIM-Signature:{tags}\r\n\r\n"
        );
        let message = signed::Message::new(raw.as_bytes());
        let read = dkim::read(&message, &["a.example".to_owned()], NOW);
        proptest::prop_assert_eq!(read.candidates.len() + read.refused.len(), 2);
        // A share of nothing: no key is asked for, and so nothing is waited for.
        let dns = NOBODY.get_or_init(|| Resolver::new(&["127.0.0.1:1".parse().unwrap()]).unwrap());
        let lookups = Lookups::new(dns);
        let none = lookups.share(0);
        let chain = arc::check(&none, &message, NOW).now_or_never().unwrap();
        proptest::prop_assert_ne!(chain.record.result, AuthResult::Pass);
    }
}
