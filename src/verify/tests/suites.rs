//! Other people's suites, through our own room and a test DNS: SPF (RFC 7208), ARC (ValiMail) and signed
//! mail as dkimpy judges it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

use super::super::*;
use super::{NOW, ask};
use crate::dns::zone::Zone;
use crate::screen::corpora_tests::{corpora, crlf};

fn folder(what: &str) -> Option<PathBuf> {
    let folder = corpora(what).map(|folder| folder.join("auth"));
    assert!(
        folder.is_some() || std::env::var("GATEPOST_REQUIRE").as_deref() != Ok("all"),
        "GATEPOST_REQUIRE=all, and there is no {what}"
    );
    folder
}

#[derive(Deserialize)]
struct Scenario {
    description: String,
    tests: BTreeMap<String, SpfTest>,
    zonedata: BTreeMap<String, Vec<Value>>,
}

#[derive(Deserialize)]
struct SpfTest {
    helo: String,
    host: String,
    mailfrom: String,
    result: OneOrMore,
    explanation: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// The zone of a scenario. TIMEOUT is answered with SERVFAIL, which is as temporary and takes no time. A
/// domain with SPF-type records alone has them as TXT too, as the suite asks; that type itself is gone. A
/// TXT record of no strings (`null-text`) has one empty string: hickory takes RFC 1035 §3.3.14 at its word,
/// and neither writes nor reads the other.
fn zone_of(scenario: &Scenario) -> Zone {
    let mut zone = Zone::new();
    for (owner, records) in &scenario.zonedata {
        let has_txt = records.iter().any(|record| record.get("TXT").is_some());
        for record in records {
            if record.as_str() == Some("TIMEOUT") {
                zone = zone.broken(owner);
                continue;
            }
            let (kind, value) = record.as_object().unwrap().iter().next().unwrap();
            let text = value.as_str().unwrap_or_default();
            zone = match kind.as_str() {
                "A" => zone.a(owner, text),
                "AAAA" => zone.aaaa(owner, text),
                "PTR" => zone.alias_ptr(owner, text),
                "MX" => {
                    let exchange = value[1].as_str().unwrap();
                    zone.mx(owner, 0, if exchange.is_empty() { "." } else { exchange })
                }
                "SPF" if has_txt => zone,
                "SPF" | "TXT" => {
                    let strings: Vec<String> = match value {
                        Value::Array(list) if list.is_empty() => vec![String::new()],
                        Value::Array(list) => {
                            list.iter().map(|one| one.as_str().unwrap().to_owned()).collect()
                        }
                        _ => vec![text.to_owned()],
                    };
                    zone.txt(owner, &strings.iter().map(String::as_str).collect::<Vec<_>>())
                }
                other => panic!("a record of type {other}"),
            };
        }
    }
    zone
}

/// All 111. Senders that no SMTP session can have (an empty local part, a space in it, a label of 64
/// octets, an empty label, an address literal) are asked about where the room asks: in `spf`.
#[tokio::test]
async fn the_suite_of_rfc_7208() {
    let Some(folder) = folder("SPF suite") else { return };
    let text = std::fs::read_to_string(folder.join("spf/rfc7208-tests.give.yml")).unwrap();
    let (mut whole, mut inner, mut explained, mut wrong) = (0, 0, 0, Vec::new());
    for scenario in serde_saphyr::from_multiple::<Scenario>(&text).unwrap() {
        let zone = zone_of(&scenario).start().await;
        for (name, test) in &scenario.tests {
            let dns = zone.resolver();
            let ip = test.host.parse().unwrap();
            let peer = Peer { ip, helo: test.helo.clone(), extended: true, tls: None };
            let mail_from: Result<ReversePath, _> = match test.mailfrom.as_str() {
                "" => Ok(None),
                text => text.parse().map(Some),
            };
            let seen = match mail_from {
                Ok(mail_from) => {
                    whole += 1;
                    ask(&dns, &peer, &mail_from, b"").await.spf
                }
                Err(_) => {
                    inner += 1;
                    directly(&dns, &peer, &test.mailfrom).await
                }
            };
            let result = seen.result.as_str();
            let expected = match &test.result {
                OneOrMore::One(one) => result == one,
                OneOrMore::More(several) => several.iter().any(|one| one == result),
            };
            let explanation = match test.explanation.as_deref() {
                None => true,
                Some("DEFAULT") => seen.explanation.is_none(),
                Some(text) => {
                    explained += 1;
                    seen.explanation.as_deref() == Some(text)
                }
            };
            if !expected || !explanation {
                wrong.push(format!("{}/{name}: {seen:?}", scenario.description));
            }
        }
    }
    let all = whole + inner;
    println!(
        "SPF: {} of {all} ({whole} as messages, {inner} as questions, {explained} explanations)",
        all - wrong.len()
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(all, 111);
}

async fn directly(dns: &Resolver, peer: &Peer, mail_from: &str) -> Spf {
    let (local, domain) = mail_from.rsplit_once('@').unwrap();
    let question = spf::Question {
        ip: peer.ip.to_canonical(),
        helo: &peer.helo,
        local,
        domain,
        hostname: "mx.agents.example",
        now: NOW,
    };
    spf::check(&Lookups::new(dns), &question).await
}

fn keys(case: &Value) -> Option<Zone> {
    let mut zone = Zone::new();
    for (owner, record) in case["dns_txt"].as_object()? {
        let record = record.as_str().unwrap().as_bytes();
        let strings: Vec<_> = record.chunks(200).map(|c| std::str::from_utf8(c).unwrap()).collect();
        zone = zone.txt(owner, &strings);
    }
    Some(zone)
}

#[tokio::test]
async fn arc_chains_and_signatures_of_others() {
    let Some(folder) = folder("signed mail of others") else { return };
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(folder.join("manifest.json")).unwrap()).unwrap();
    let (mut chains, mut mails, mut signatures, mut wrong) = (0, 0, 0, Vec::new());
    for case in manifest["cases"].as_array().unwrap() {
        let Some(zone) = keys(case) else { continue };
        let zone = zone.start().await;
        let file = case["file"].as_str().unwrap();
        let raw = crlf(&std::fs::read(folder.join(file)).unwrap());
        let peer = Peer { ip: [198, 51, 100, 1].into(), helo: "x.example".into(), extended: true, tls: None };
        let seen = ask(&zone.resolver(), &peer, &None, &raw).await;
        if let Some(cv) = case["expected"]["cv"].as_str() {
            chains += 1;
            if !seen.arc.result.as_str().eq_ignore_ascii_case(cv) {
                wrong.push(format!("{file}: {cv} expected, {:?}", seen.arc));
            }
        }
        if let Some(each) = case["expected"]["dkim_per_signature_by_dkimpy"].as_array() {
            (mails, signatures) = (mails + 1, signatures + each.len());
            let passes = each.iter().filter(|result| result.as_str() == Some("pass")).count();
            let ours = seen.dkim.iter().filter(|dkim| dkim.result == AuthResult::Pass).count();
            if ours != passes {
                wrong.push(format!("{file}: dkimpy passes {passes}, we {:?}", seen.dkim));
            }
        }
    }
    println!(
        "ARC: {chains} chains; DKIM: {mails} mails, {signatures} signatures; {} judged differently",
        wrong.len()
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(chains >= 68 && mails >= 4, "{chains} chains, {mails} mails");
}
