//! DANE over really signed zones: what is secure is known from signatures alone, by whoever is asked to know it.
//! Each row is a domain, what its zone says, and what becomes of mail to it (RFC 7672).

use std::fmt::Write as _;

use hickory_server::proto::rr::RecordType;
use serde_json::Value;
use sha2::{Digest, Sha256, Sha512};

use crate::{
    trust::{deferred, recorded_of, send, taken},
    world::{
        api::path_escape,
        eventually,
        server::{Setup, TestServer},
        signed::{Liar, Lie, Signed, Signing, Zone, zone},
        trusted::{Authority, MailHost, Shown},
    },
};

/// What becomes of mail.
#[derive(Clone, Copy)]
enum Fate {
    /// Taken over TLS, verified by the records.
    Verified,
    /// Taken over TLS from whoever is there.
    Encrypted,
    /// Not sent, with these words, and nothing in clear.
    Waits(&'static str),
}
use Fate::{Encrypted, Verified, Waits};

/// A certificate, with its key apart.
struct Seen<'a> {
    certificate: &'a [u8],
    spki: &'a [u8],
}

impl Seen<'_> {
    /// The data of a record about it.
    fn data(&self, usage: u8, selector: u8, matching: u8) -> String {
        let octets = if selector == 0 { self.certificate } else { self.spki };
        let data = match matching {
            0 => octets.to_vec(),
            1 => Sha256::digest(octets).to_vec(),
            _ => Sha512::digest(octets).to_vec(),
        };
        let hex = data.iter().fold(String::new(), |mut text, octet| {
            let _ = write!(text, "{octet:02x}");
            text
        });
        format!("{usage} {selector} {matching} {hex}")
    }
}

const WRONG: &str = "3 1 1 0000000000000000000000000000000000000000000000000000000000000001";

/// The hosts, each with the name that the certificate is for or is not.
struct World {
    good: MailHost,
    clear: MailHost,
    other: MailHost,
    zones: Vec<Zone>,
    rows: Vec<(&'static str, Fate)>,
}

/// A domain with one host, `mx.NAME`, and its TLSA records.
fn plain(name: &str, host: &MailHost, tlsa: &[String]) -> String {
    let mut text = format!("{name} MX 10 mx.{name}\nmx.{name} A {}\n", host.address.ip());
    tlsa.iter().for_each(|data| text.push_str(&format!("_2526._tcp.mx.{name} TLSA {data}\n")));
    text
}

async fn world() -> World {
    let authority = Authority::new();
    let own = ["ee-spki", "ee-512", "ee-exact", "ee-cert", "ta-spki", "ta-cert", "ta-512", "ta-exact"];
    let more = ["rollover", "unusable", "too-short", "mismatch", "absent", "implicit", "alias", "own-alias"];
    let name = |name: &str| [format!("mx.{name}.example"), format!("{name}.example")];
    let names = own.iter().chain(&more).flat_map(|n| name(n)).collect();
    let shown: Shown = authority.sign_all(names);
    let good = MailHost::start(Some(&shown)).await;
    let clear = MailHost::start(None).await;
    let other = MailHost::start(Some(&authority.sign("ta-domain.example"))).await;
    let leaf = Seen { certificate: &shown.chain[0], spki: &shown.spki };
    let root = Seen { certificate: &authority.certificate, spki: &authority.spki };
    let one = |data: String| vec![data];
    let wrong = || one(WRONG.to_owned());
    let at = good.address.ip();

    let mut top = String::new();
    let mut rows: Vec<(&'static str, Fate)> = Vec::new();
    let mut row = |domain, fate, text: String| {
        top.push_str(&text);
        rows.push((domain, fate));
    };
    for (name, tlsa) in [
        ("ee-spki", leaf.data(3, 1, 1)),
        ("ee-512", leaf.data(3, 1, 2)),
        ("ee-exact", leaf.data(3, 1, 0)),
        ("ee-cert", leaf.data(3, 0, 1)),
        ("ta-spki", root.data(2, 1, 1)),
        ("ta-cert", root.data(2, 0, 1)),
        ("ta-512", root.data(2, 0, 2)),
        ("ta-exact", root.data(2, 0, 0)),
    ] {
        row(name, Verified, plain(name, &good, &one(tlsa)));
    }
    // RFC 7671 §8.1: the old key and the new one, side by side.
    row("rollover", Verified, plain("rollover", &good, &[WRONG.to_owned(), leaf.data(3, 1, 1)]));
    row("mismatch", Waits("4.7.5"), plain("mismatch", &good, &wrong()));
    // Usage 2 minds the name, usage 3 does not; the domain's own name will do (RFC 7672 §3.2.2, §3.1.1).
    row("ta-name", Waits("4.7.5"), plain("ta-name", &good, &one(root.data(2, 1, 1))));
    row("ee-name", Verified, plain("ee-name", &good, &one(leaf.data(3, 1, 1))));
    row("ta-domain", Verified, plain("ta-domain", &other, &one(root.data(2, 1, 1))));
    // RFC 7672 §2.2: records of which none is usable ask for TLS all the same.
    let unusable = "1 1 1 0000000000000000000000000000000000000000000000000000000000000001".to_owned();
    row("unusable", Encrypted, plain("unusable", &good, &one(unusable.clone())));
    row("too-short", Encrypted, plain("too-short", &good, &one("3 1 1 0011".into())));
    row("clear-unusable", Waits("4.7.10"), plain("clear-unusable", &clear, &one(unusable)));
    row("clear", Waits("4.7.10"), plain("clear", &clear, &one(leaf.data(3, 1, 1))));
    // Proven by NSEC that there are none.
    row("absent", Encrypted, plain("absent", &good, &[]));
    // RFC 5321 §5.1: without an MX the domain is the host.
    let tlsa = format!("implicit A {at}\n_2526._tcp.implicit TLSA {}\n", leaf.data(3, 1, 1));
    row("implicit", Verified, tlsa);
    // RFC 7672 §2.2.3: where the CNAMEs lead comes first, then the name in the MX.
    let target = format!("target A {at}\n_2526._tcp.target TLSA {}\nbare A {at}\n", leaf.data(3, 1, 1));
    let first =
        format!("{target}alias MX 10 mx.alias\nmx.alias CNAME target\n_2526._tcp.mx.alias TLSA {WRONG}\n");
    row("alias", Verified, first);
    let tlsa = leaf.data(3, 1, 1);
    let second = format!(
        "own-alias MX 10 mx.own-alias\nmx.own-alias CNAME bare\n_2526._tcp.mx.own-alias TLSA {tlsa}\n"
    );
    row("own-alias", Verified, second);
    // RFC 7672 §2.2.2: the alias is secure, its target is not: the alias vouches for itself.
    let half = |name: &str, tlsa: &str| {
        format!("{name} MX 10 mx.{name}\nmx.{name} CNAME mx.unsigned\n_2526._tcp.mx.{name} TLSA {tlsa}\n")
    };
    row("half", Verified, half("half", &tlsa));
    row("half-wrong", Waits("4.7.5"), half("half-wrong", WRONG));
    // The domain itself is an alias, and the records are one too.
    row("cname", Verified, "cname CNAME ee-spki\n".into());
    let shared =
        format!("shared MX 10 mx.shared\nmx.shared A {at}\n_2526._tcp.mx.shared CNAME _2526._tcp.target\n");
    row("shared", Verified, shared);
    // A secure MX that names a host whose zone is not signed: its records count for nothing.
    row("abroad", Encrypted, "abroad MX 10 mx.unsigned\n".into());

    let inner = |tlsa: &str| {
        let absent = plain("absent", &good, &[]);
        format!("@ MX 10 mx\nmx A {at}\n_2526._tcp.mx TLSA {tlsa}\n{absent}")
    };
    let zones = vec![
        zone("example", Signing::Nsec, &top),
        zone("nsec3.example", Signing::Nsec3, &inner(&tlsa)),
        zone("unsigned.example", Signing::None, &inner(WRONG)),
        zone("forged.example", Signing::Forged("TLSA"), &inner(WRONG)),
        zone("misled.example", Signing::Forged("MX"), "@ MX 7 mx\nmx A 127.0.0.9\n"),
        zone("expired.example", Signing::Expired, &inner(&tlsa)),
    ];
    rows.extend([
        ("nsec3", Verified),
        ("absent.nsec3", Encrypted),
        ("unsigned", Encrypted),
        ("absent.unsigned", Encrypted),
        ("forged", Waits("the TLSA of mx.forged.example cannot be validated")),
        ("misled", Waits("")),
        ("expired", Waits("")),
        ("absent.expired", Waits("")),
    ]);
    World { good, clear, other, zones, rows }
}

/// How the delivery to this recipient was secured, in the words of its attempts.
pub(crate) async fn secured(server: &TestServer, to: &str) -> String {
    let listed = "/v1/queue?inbox_id=ada@agents.example&state=delivered";
    let id = eventually(&format!("the delivery to {to}"), async || {
        let rows = server.api.all(listed, "deliveries").await;
        let row = rows.into_iter().find(|row| row["recipient"] == to)?;
        row["delivery_id"].as_str().map(str::to_owned)
    })
    .await;
    let row: Value = server.api.get(&format!("/v1/queue/{}", path_escape(&id))).await.ok();
    let log = row["log"].as_array().expect("log");
    log.last().expect("an attempt")["tls"].as_str().unwrap_or("in clear").to_owned()
}

/// RFC 7672, row by row: who is verified, who is merely encrypted, who waits; and nothing that may not goes in clear.
async fn fates(mode: &str, more: impl FnOnce(Setup, &Signed) -> Setup) {
    let World { good, clear, other, zones, rows } = world().await;
    let Some(dns) = Signed::start(zones).await else { return };
    let setup = TestServer::new().inbox("ada").resolver(dns.address).env("GATEPOST_RELAY__DANE", mode);
    let server = more(setup, &dns).start().await;
    for (name, _) in &rows {
        send(&server, &format!("bob@{name}.example")).await;
    }
    let hosts = [&good, &clear, &other];
    for (name, fate) in &rows {
        let to = format!("bob@{name}.example");
        match fate {
            Verified | Encrypted => {
                let host = if *name == "ta-domain" { &other } else { &good };
                assert_eq!(taken(host, &to).await, [true], "{to}");
                let how = secured(&server, &to).await;
                assert!(how.starts_with("TLSv1.3 "), "{to}: {how}");
                assert_eq!(how.ends_with(", verified by DANE"), matches!(fate, Verified), "{to}: {how}");
            }
            Waits(words) => {
                deferred(&server, &to, words).await;
                assert!(hosts.iter().all(|host| host.taken(&to).is_empty()), "{to} was sent");
            }
        }
    }
    for (domain, result) in [
        ("ee-spki.example", "tlsa success"),
        ("mismatch.example", "tlsa validation-failure"),
        ("ta-name.example", "tlsa certificate-host-mismatch"),
        ("clear.example", "tlsa starttls-not-supported"),
        ("forged.example", "no-policy-found dnssec-invalid"),
        ("absent.example", "no-policy-found success"),
    ] {
        recorded_of(&server, domain, result).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_signed_zone_has_its_fate_by_the_resolver_next_door() {
    fates("trust_ad", |setup, _| setup).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_signed_zone_has_its_fate_by_ourselves() {
    fates("validate", trusting).await;
}

/// The zone's own key instead of the root's.
fn trusting(setup: Setup, dns: &Signed) -> Setup {
    setup.env("GATEPOST_RELAY__DNSSEC_ANCHORS", &dns.anchor.display().to_string())
}

/// Who validates needs not trust its resolver: one that takes signatures away, denies what is there, or answers with
/// another name's proof gets nothing sent. The hosts offer no TLS, so a lie that is believed is mail in clear.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resolver_that_lies_gets_no_mail() {
    let authority = Authority::new();
    let shown = authority.sign("mx.honest.example");
    let (good, clear) = (MailHost::start(Some(&shown)).await, MailHost::start(None).await);
    let right = [Seen { certificate: &shown.chain[0], spki: &shown.spki }.data(3, 1, 1)];
    let mut top = plain("honest", &good, &right);
    for name in ["stripped", "denied", "replayed", "alien"] {
        top.push_str(&plain(name, &clear, &right));
    }
    top.push_str(&plain("absent", &clear, &[]));
    let child = format!("@ MX 10 mx\nmx A {}\n_2526._tcp.mx TLSA {}\n", clear.address.ip(), right[0]);
    let zones = vec![
        zone("example", Signing::Nsec, &top),
        zone("unsigned.example", Signing::None, ""),
        zone("below.example", Signing::Nsec3, &child),
        zone("cut.example", Signing::Nsec3, &child),
    ];
    let Some(dns) = Signed::start(zones).await else { return };
    let any = RecordType::ANY;
    let lies = vec![
        ("stripped.example", any, Lie::Strip),
        ("_tcp.mx.denied.example", any, Lie::Deny),
        // A proof that holds, of another name.
        ("_tcp.mx.replayed.example", any, Lie::Replay("_2526._tcp.mx.absent.example")),
        // Records that hold, of another name.
        ("_tcp.mx.alien.example", any, Lie::Replay("_2526._tcp.mx.honest.example")),
        // A signed zone that is made to look like an unsigned one.
        ("below.example", RecordType::DS, Lie::Replay("unsigned.example")),
        ("below.example", any, Lie::Strip),
        ("cut.example", RecordType::DS, Lie::Deny),
        ("cut.example", any, Lie::Strip),
    ];
    let liar = Liar::before(&dns, lies).await;
    let setup = TestServer::new().inbox("ada").resolver(liar.address).env("GATEPOST_RELAY__DANE", "validate");
    let server = trusting(setup, &dns).start().await;
    let lied = ["stripped", "denied", "replayed", "alien", "below", "cut"];
    for name in lied.iter().chain(&["honest", "absent"]) {
        send(&server, &format!("bob@{name}.example")).await;
    }
    assert_eq!(taken(&good, "bob@honest.example").await, [true]);
    assert!(secured(&server, "bob@honest.example").await.ends_with(", verified by DANE"));
    assert_eq!(taken(&clear, "bob@absent.example").await, [false]);
    for name in lied {
        let to = format!("bob@{name}.example");
        deferred(&server, &to, "cannot be validated").await;
        assert!(clear.taken(&to).is_empty(), "{to} was sent");
    }
}
