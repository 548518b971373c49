//! The room as a whole: messages in, verdicts out, with a test DNS. Suites and tables have files of their own.

mod budget;
mod forwarders;
mod policies;
mod sign;
mod signatures;
mod suites;

use std::net::IpAddr;

use mail_auth::common::crypto::{Ed25519Key, RsaKey, Sha256, SigningKey};
use mail_auth::common::headers::HeaderWriter;
use mail_auth::dkim::{Canonicalization, DkimSigner, Done};

use super::*;
use crate::dns::zone::{Server, Zone};
use crate::screen::from_mailboxes;

const HOST: &str = "mx.agents.example";
const MESSAGE: &str =
    "From: Eve <eve@sender.example>\r\nTo: ada@agents.example\r\nSubject: hi\r\n\r\nhello Ada\r\n";

struct Key {
    pkcs8: Vec<u8>,
    record: String,
}

fn ed25519() -> Key {
    let pkcs8 = Ed25519Key::generate_pkcs8().unwrap();
    let public = Ed25519Key::from_pkcs8_der(&pkcs8).unwrap().public_key();
    let record = format!("v=DKIM1; k=ed25519; p={}", base64(&public));
    Key { pkcs8, record }
}

fn base64(octets: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(octets)
}

impl Key {
    fn signer(&self, domain: &str) -> DkimSigner<Ed25519Key, Done> {
        DkimSigner::from_key(Ed25519Key::from_pkcs8_der(&self.pkcs8).unwrap())
            .domain(domain)
            .selector("s")
            .headers(["From", "Subject"])
    }

    fn sign(&self, domain: &str, message: &str) -> String {
        signed(&self.signer(domain), message)
    }
}

fn signed<T: SigningKey>(signer: &DkimSigner<T, Done>, message: &str) -> String {
    format!("{}{message}", signer.sign(message.as_bytes()).unwrap().to_header())
}

/// The sender's zone: a key, SPF for 192.0.2.7, a strict DMARC policy.
fn sender(key: &Key) -> Zone {
    Zone::new()
        .txt("s._domainkey.sender.example", &[&key.record])
        .txt("sender.example", &["v=spf1 ip4:192.0.2.7 -all"])
        .txt("_dmarc.sender.example", &["v=DMARC1; p=reject"])
        .txt("s._domainkey.other.example", &[&key.record])
        .txt("other.example", &["v=spf1 ip4:192.0.2.7 ip4:192.0.2.8 -all"])
        .ptr("192.0.2.7", "mail.sender.example")
        .a("mail.sender.example", "192.0.2.7")
}

/// Milliseconds: 2026-11-21.
pub(super) const NOW: Millis = 1_795_219_200_000;

/// What we know of a message, with nobody's word for it.
pub(super) async fn ask(dns: &Resolver, peer: &Peer, mail_from: &ReversePath, raw: &[u8]) -> Verdict {
    let from = from_mailboxes(raw);
    let question = Question { peer, mail_from, hostname: HOST, forwarders: &[], now: NOW, raw, from: &from };
    verify(dns, question).await
}

/// What we know of a message from `ip` with this reverse-path.
async fn verdict(zone: &Server, ip: &str, mail_from: &str, raw: &str) -> Verdict {
    let peer = Peer {
        ip: ip.parse::<IpAddr>().unwrap(),
        helo: "mail.sender.example".into(),
        extended: true,
        tls: None,
    };
    let mail_from: ReversePath = (!mail_from.is_empty()).then(|| mail_from.parse().unwrap());
    ask(&zone.resolver(), &peer, &mail_from, raw.as_bytes()).await
}

/// From a host that nobody authorised, so that DKIM alone decides.
async fn forwarded(zone: &Server, raw: &str) -> Verdict {
    verdict(zone, "198.51.100.1", "list@elsewhere.example", raw).await
}

fn results(verdict: &Verdict) -> (AuthResult, Vec<AuthResult>, AuthResult) {
    (verdict.spf.result, verdict.dkim.iter().map(|dkim| dkim.result).collect(), verdict.dmarc.result)
}

use AuthResult::{Fail, None as Nothing, Pass, PermError, Policy, TempError};

#[tokio::test]
async fn a_signed_message_passes_and_names_its_sender() {
    let key = ed25519();
    let zone = sender(&key).start().await;
    let seen = forwarded(&zone, &key.sign("sender.example", MESSAGE)).await;
    assert_eq!(results(&seen), (Nothing, vec![Pass], Pass), "{seen:?}");
    assert_eq!(seen.verified_sender.unwrap().to_string(), "eve@sender.example");
    assert_eq!(seen.dmarc.policy, DmarcPolicy::Reject);
    assert_eq!((seen.dkim[0].domain.as_str(), seen.dkim[0].selector.as_str()), ("sender.example", "s"));
}

#[tokio::test]
async fn spf_alone_passes_too_and_ipv4_in_ipv6_is_ipv4() {
    let zone = sender(&ed25519()).start().await;
    for ip in ["192.0.2.7", "::ffff:192.0.2.7"] {
        let seen = verdict(&zone, ip, "bounce@sender.example", MESSAGE).await;
        assert_eq!(results(&seen), (Pass, vec![], Pass), "{seen:?}");
        assert_eq!(seen.iprev.result, Pass);
        assert_eq!(seen.iprev.detail.as_deref(), Some("mail.sender.example"));
        assert!(seen.verified_sender.is_some());
    }
    // The null reverse-path: the greeting speaks (RFC 7208 §2.4).
    let seen = verdict(&zone, "192.0.2.7", "", MESSAGE).await;
    assert_eq!(seen.spf.domain, "mail.sender.example");
}

#[tokio::test]
async fn an_altered_message_fails() {
    let key = ed25519();
    let zone = sender(&key).start().await;
    let good = key.sign("sender.example", MESSAGE);
    for altered in [good.replace("hello Ada", "hello Bob"), good.replace("Subject: hi", "Subject: ho")] {
        let seen = forwarded(&zone, &altered).await;
        assert_eq!(results(&seen), (Nothing, vec![Fail], Fail), "{seen:?}");
        assert_eq!((seen.verified_sender, seen.dmarc.policy), (None, DmarcPolicy::Reject));
    }
}

#[tokio::test]
async fn a_stranger_s_signature_is_not_aligned() {
    let key = ed25519();
    let zone = sender(&key).start().await;
    let raw = key.sign("other.example", MESSAGE);
    let seen = verdict(&zone, "192.0.2.8", "x@other.example", &raw).await;
    assert_eq!(results(&seen), (Pass, vec![Pass], Fail), "{seen:?}");
    assert_eq!(seen.verified_sender, None);
}

/// Multi-From is exempt from DMARC in most verifiers, which is how it is used.
#[tokio::test]
async fn a_second_from_gains_a_forger_nothing() {
    let key = ed25519();
    let zone = sender(&key).start().await;
    let forged =
        MESSAGE.replace("From: Eve <eve@sender.example>", "From: eve@other.example, boss@sender.example");
    for raw in [
        key.sign("other.example", &forged),
        format!("From: boss@sender.example\r\n{}", key.sign("other.example", &forged)),
        format!("From: boss@sender.example\r\n{}", key.sign("sender.example", MESSAGE)),
    ] {
        let seen = verdict(&zone, "192.0.2.8", "x@other.example", &raw).await;
        assert_eq!(seen.dmarc.result, Fail, "{seen:?}");
        assert_eq!(seen.dmarc.detail.as_deref(), Some("more than one From address"));
        assert_eq!(seen.verified_sender, None);
    }
    let seen = verdict(&zone, "192.0.2.8", "x@other.example", &key.sign("other.example", &forged)).await;
    assert_eq!(seen.dmarc.policy, DmarcPolicy::Reject, "the strictest of both domains");
    let authors: Vec<String> = (0..6).map(|n| format!("a@{n}.example")).collect();
    let seen = forwarded(&zone, &format!("From: {}\r\n\r\n", authors.join(", "))).await;
    assert_eq!(seen.dmarc.policy, DmarcPolicy::Reject, "hidden behind five others");
}

#[tokio::test]
async fn no_from_at_all_is_a_failure() {
    let zone = Zone::new().start().await;
    for raw in [
        "Subject: hi\r\n\r\n",
        "From: nobody\r\n\r\n",
        "From: a@[192.0.2.1]\r\n\r\n",
        "From: <boss@bank.example> eve@x.example\r\n\r\n",
        "",
        "no header",
    ] {
        let seen = forwarded(&zone, raw).await;
        assert_eq!((seen.dmarc.result, seen.verified_sender), (Fail, None), "{raw:?}");
    }
}

/// A slow DNS must not hold the session, and is no reason to believe or refuse anything.
#[tokio::test]
async fn a_dead_dns_is_a_temporary_error_in_time() {
    let key = ed25519();
    let zone = Zone::new().start_silent().await;
    let started = Instant::now();
    let seen = verdict(&zone, "192.0.2.7", "eve@sender.example", &key.sign("sender.example", MESSAGE)).await;
    assert!(started.elapsed() < DEADLINE, "{:?}", started.elapsed());
    assert_eq!(results(&seen), (TempError, vec![TempError], TempError), "{seen:?}");
    assert_eq!((seen.iprev.result, seen.verified_sender), (TempError, None));
}

#[tokio::test]
async fn two_spf_records_are_an_error() {
    let zone = Zone::new()
        .txt("sender.example", &["v=spf1 +all"])
        .txt("sender.example", &["V=SPF1 -all"])
        .txt("sender.example", &["v=spf10 is something else"])
        .start()
        .await;
    let seen = verdict(&zone, "192.0.2.7", "eve@sender.example", MESSAGE).await;
    assert_eq!(seen.spf.result, PermError);
}

/// From the test suite of RFC 7208: terms are separated by spaces only.
#[tokio::test]
async fn an_spf_record_with_control_characters_is_an_error() {
    let zone =
        Zone::new().txt("sender.example", &["v=spf1 ip4:192.0.2.7\n include:x.example -all"]).start().await;
    let seen = verdict(&zone, "192.0.2.7", "eve@sender.example", MESSAGE).await;
    assert_eq!(seen.spf.result, PermError);
}

/// RFC 7208 §4.6.4: an SPF record is not a way to make us ask a thousand questions.
#[tokio::test]
async fn spf_lookups_are_limited() {
    let mut zone = Zone::new();
    for n in 0..30 {
        let next = format!("v=spf1 include:{}.sender.example -all", n + 1);
        zone = zone.txt(&format!("{n}.sender.example"), &[&next]);
    }
    let zone = zone.txt("sender.example", &["v=spf1 include:0.sender.example -all"]).start().await;
    let seen = verdict(&zone, "192.0.2.7", "eve@sender.example", MESSAGE).await;
    assert_eq!(seen.spf.result, PermError);
    assert!(zone.questions() < 30, "{}", zone.questions());
}

/// mail-auth issue #62: the signer left the empty lines of the tail out, as RFC 6376 §3.4.4 says.
#[tokio::test]
async fn white_space_at_the_end_of_a_relaxed_body_does_not_matter() {
    let key = ed25519();
    let zone = sender(&key).start().await;
    let signer = key.signer("sender.example").body_canonicalization(Canonicalization::Relaxed);
    let good = signed(&signer, MESSAGE);
    for tail in ["", "\r\n\r\n", " \t\r\n", "\r\n \r\n\t\r\n", "  "] {
        let seen = forwarded(&zone, &format!("{good}{tail}")).await;
        assert_eq!(results(&seen), (Nothing, vec![Pass], Pass), "{tail:?}: {seen:?}");
    }
    let seen = forwarded(&zone, &format!("{good} x\r\n")).await;
    assert_eq!(seen.dmarc.result, Fail);
}

/// Stalwart #442: whoever may append to a signed body may write the message.
#[tokio::test]
async fn weak_signatures_prove_nothing() {
    let key = ed25519();
    let zone = sender(&key).start().await;
    let signer = key.signer("sender.example");
    let length = signed(&signer.body_length(true), MESSAGE);
    let seen = forwarded(&zone, &format!("{length}more\r\n")).await;
    assert_eq!(results(&seen), (Nothing, vec![Policy], Fail), "{seen:?}");
    assert_eq!(seen.dkim[0].domain, "sender.example");

    let secret = Ed25519Key::from_pkcs8_der(&key.pkcs8).unwrap();
    let signer = DkimSigner::from_key(secret).domain("sender.example").selector("s").headers(["Subject"]);
    let seen = forwarded(&zone, &signed(&signer, MESSAGE)).await;
    assert_eq!(results(&seen), (Nothing, vec![PermError], Fail), "{seen:?}");
}

/// OpenDKIM #271.
#[tokio::test]
async fn many_signatures_are_cut_and_the_aligned_one_is_kept() {
    let key = ed25519();
    let mut zone = sender(&key);
    for n in 0..50 {
        zone = zone.txt(&format!("s._domainkey.d{n}.test"), &[&key.record]);
    }
    let zone = zone.start().await;
    let mut raw = key.sign("sender.example", MESSAGE);
    for n in 0..50 {
        let header = key.signer(&format!("d{n}.test")).sign(MESSAGE.as_bytes()).unwrap().to_header();
        raw = format!("{header}{raw}");
    }
    let seen = forwarded(&zone, &raw).await;
    assert_eq!((seen.dkim.len(), seen.dmarc.result), (5, Pass), "{seen:?}");
    assert_eq!(seen.dkim[0].domain, "sender.example");
    assert!(zone.questions() < 20);
}

/// What we put on top does not disturb what was signed below.
#[tokio::test]
async fn a_stamped_message_still_verifies() {
    let key = ed25519();
    let zone = sender(&key).start().await;
    let raw = key.sign("sender.example", MESSAGE);
    let seen = forwarded(&zone, &raw).await;
    let envelope = crate::envelope::Envelope {
        peer: Peer { ip: [192, 0, 2, 7].into(), helo: "x.example".into(), extended: true, tls: None },
        mail_from: None,
        recipients: vec!["ada@agents.example".parse().unwrap()],
        smtputf8: false,
        dsn: None,
        require_tls: false,
    };
    let stamped = stamp(HOST, &envelope, "1", 0, &seen, raw.as_bytes());
    let again = forwarded(&zone, std::str::from_utf8(&stamped).unwrap()).await;
    assert_eq!(again, seen);
}

#[tokio::test]
async fn an_rsa_signature_passes() {
    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::rsa::{KeyPair, KeySize};
    use aws_lc_rs::signature::KeyPair as _;
    let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let pkcs8: aws_lc_rs::encoding::Pkcs8V1Der<'_> = pair.as_der().unwrap();
    let der = rustls::pki_types::PrivatePkcs8KeyDer::from(pkcs8.as_ref().to_vec());
    let record = format!("v=DKIM1; k=rsa; p={}", base64(pair.public_key().as_ref()));
    let key = RsaKey::<Sha256>::from_key_der(der.into()).unwrap();
    let signer = DkimSigner::from_key(key).domain("sender.example").selector("r").headers(["From"]);
    let strings: Vec<&str> = record.as_bytes().chunks(200).map(|c| std::str::from_utf8(c).unwrap()).collect();
    let zone = sender(&ed25519()).txt("r._domainkey.sender.example", &strings).start().await;
    let seen = forwarded(&zone, &signed(&signer, MESSAGE)).await;
    assert_eq!((seen.dkim[0].result, seen.dkim[0].algorithm.as_str()), (Pass, "rsa-sha256"), "{seen:?}");
}
