//! What the DNS says about each record that is wanted, and what to change, in words. Advice, but for those
//! that verify a claim.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use utoipa::ToSchema;

use super::records::{Purpose, Wanted};
use crate::config::Config;
use crate::deliver::Network;
use crate::deliver::trust;
use crate::dns::{DnsError, Resolver};
use crate::store::tls_result::ResultType;
use crate::verify::{self, verdict::AuthResult};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    Ok,
    Missing,
    Wrong,
    /// Nobody could tell.
    Unknown,
}

/// A record with what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = DnsFinding)]
pub(crate) struct Finding {
    pub(crate) purpose: Purpose,
    pub(crate) name: String,
    /// `A`, `MX`, `TXT`, `CNAME` or `PTR`
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) value: String,
    pub(crate) why: String,
    /// Mail works without it.
    pub(crate) optional: bool,
    /// `ok`, `missing`, `wrong` or `unknown`
    pub(crate) state: State,
    /// What is there instead.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) found: Option<String>,
    /// What to change.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) fix: Option<String>,
}

impl Finding {
    /// Whether mail suffers from it.
    pub(crate) fn is_bad(&self) -> bool {
        !self.optional && matches!(self.state, State::Missing | State::Wrong)
    }
}

/// What one look found, before it is put into words.
enum Seen {
    Ok,
    Missing,
    Wrong { found: String, because: Option<String> },
    Unknown(String),
}

/// Asks for every record, all at once: as long as the slowest question takes, which the resolver bounds, or the policy.
pub(crate) async fn look(dns: &Resolver, config: &Config, wanted: Vec<Wanted>) -> Vec<Finding> {
    join_all(wanted.into_iter().map(|record| one(dns, config, record))).await
}

async fn one(dns: &Resolver, config: &Config, wanted: Wanted) -> Finding {
    use Purpose::*;
    let (name, value) = (wanted.name.as_str(), wanted.value.as_str());
    let seen = match wanted.purpose {
        Address => match dns.addresses(name).await {
            Ok(_) => Seen::Ok,
            Err(error) => unanswered(error),
        },
        ReverseDns => reverse(dns, &config.hostname).await,
        Mx => mx(dns, config, name).await,
        // Any name below will do: the wildcard answers for those that have no records of their own.
        SubdomainsMx => mx(dns, config, &name.replacen('*', PROBE, 1)).await,
        Spf => spf(dns, config, name, value).await,
        SubdomainsSpf => spf(dns, config, &name.replacen('*', PROBE, 1), value).await,
        HostSpf => spf(dns, config, name, value).await,
        Dkim | DkimNext | DkimRetiring => dkim(dns, name, value).await,
        Dmarc => dmarc(dns, name, value).await,
        TlsRpt => tagged(dns, name, "v=TLSRPTv1", value).await,
        MtaSts => tagged(dns, name, "v=STSv1", value).await,
        MtaStsHost => host(dns, config, name).await,
    };
    in_words(wanted, seen)
}

/// For a policy over HTTPS: somebody may be waiting.
const FETCH: Duration = Duration::from_secs(8);
/// A name that nobody gives to anything.
const PROBE: &str = "gatepost-wildcard-check";

/// Characters of what stands in the DNS that are shown and kept: an answer may have 64 KiB.
const MOST_FOUND: usize = 500;

fn in_words(wanted: Wanted, seen: Seen) -> Finding {
    let line = wanted.line();
    let seen = match seen {
        Seen::Wrong { found, because } => Seen::Wrong {
            found: shortened(&found, MOST_FOUND),
            because: because.map(|b| shortened(&b, MOST_FOUND)),
        },
        seen => seen,
    };
    let (state, found, fix) = match seen {
        Seen::Ok => (State::Ok, None, None),
        Seen::Missing => (State::Missing, None, Some(format!("Set: {line}"))),
        Seen::Wrong { found, because } => {
            let because = because.map(|why| format!("{why}. ")).unwrap_or_default();
            let fix = format!("{because}Found: {found}. Set: {line}");
            (State::Wrong, Some(found), Some(fix))
        }
        Seen::Unknown(why) => (State::Unknown, None, Some(format!("Could not be asked ({why}); try again."))),
    };
    Finding {
        kind: wanted.purpose.kind().to_owned(),
        purpose: wanted.purpose,
        name: wanted.name,
        value: wanted.value,
        why: wanted.why.to_owned(),
        optional: wanted.optional,
        state,
        found,
        fix,
    }
}

fn unanswered(error: DnsError) -> Seen {
    match error.is_temporary() {
        true => Seen::Unknown(error.to_string()),
        false => Seen::Missing,
    }
}

fn wrong(found: String, because: &str) -> Seen {
    Seen::Wrong { found, because: Some(because.to_owned()) }
}

async fn mx(dns: &Resolver, config: &Config, name: &str) -> Seen {
    match dns.mx(name).await {
        Ok(found) if found.iter().any(|mx| mx.exchange == config.hostname) => Seen::Ok,
        Ok(found) => {
            let all: Vec<String> =
                found.iter().map(|mx| format!("{} {}", mx.preference, mx.exchange)).collect();
            wrong(all.join(", "), "Mail goes elsewhere")
        }
        Err(error) => unanswered(error),
    }
}

/// What is not ours of several records: RFC 7208 §3.2 and its like allow one.
async fn texts(dns: &Resolver, name: &str, tag: &str) -> Result<Vec<String>, Seen> {
    let mut found = dns.txt(name).await.map_err(unanswered)?;
    let starts = |text: &String| text.get(..tag.len()).is_some_and(|start| start.eq_ignore_ascii_case(tag));
    found.retain(starts);
    match found.len() {
        0 => Err(Seen::Missing),
        1 => Ok(found),
        _ => Err(wrong(found.join(" and "), "Two such records count as none")),
    }
}

/// RFC 7208: the record is right when it passes our addresses, however it says so.
async fn spf(dns: &Resolver, config: &Config, name: &str, value: &str) -> Seen {
    let found = match texts(dns, name, "v=spf1").await {
        Ok(found) => found.join(""),
        Err(seen) => return seen,
    };
    let sender = match &config.relay.smarthost {
        Some(relay) => relay.host.clone(),
        None => config.hostname.clone(),
    };
    let addresses = match sender.parse::<IpAddr>() {
        Ok(ip) => vec![ip],
        Err(_) => match dns.addresses(&sender).await {
            Ok(addresses) => addresses,
            // Without an address there is nothing to evaluate; the address's own line says so.
            Err(error) if !error.is_temporary() => {
                return if same_text(&found, value) { Seen::Ok } else { wrong(found, "It may not name us") };
            }
            Err(error) => return unanswered(error),
        },
    };
    for ip in addresses {
        let spf = verify::spf_of(dns, ip, name, &config.hostname).await;
        match spf.result {
            AuthResult::Pass => {}
            AuthResult::TempError => return Seen::Unknown(spf.detail.unwrap_or_default()),
            AuthResult::PermError => {
                let why = spf.detail.unwrap_or_default();
                return wrong(found, &format!("It cannot be evaluated ({why})"));
            }
            _ => return wrong(found, &format!("It does not let {ip} of {sender} send")),
        }
    }
    Seen::Ok
}

/// RFC 6376 §3.6.1: the tags may stand in any order and with any space; the key is what counts.
async fn dkim(dns: &Resolver, name: &str, value: &str) -> Seen {
    let found = match dns.txt(name).await {
        Ok(found) => found,
        Err(error) => return unanswered(error),
    };
    let key = |text: &str| {
        let tag = text.split(';').find_map(|part| part.trim().strip_prefix("p=").map(str::to_owned));
        tag.map(|key| key.split_whitespace().collect::<String>())
    };
    match found.as_slice() {
        [one] if key(one) == key(value) => Seen::Ok,
        [one] if key(one).is_none_or(|key| key.is_empty()) => wrong(shortened(one, 60), "It holds no key"),
        [one] => wrong(shortened(one, 60), "It is another key: mail would not verify"),
        several => wrong(format!("{} records", several.len()), "Only one may stand there"),
    }
}

fn shortened(text: &str, most: usize) -> String {
    let mut short: String = text.chars().take(most).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// RFC 9989: the domain's own record, or that of the organization's domain above it.
async fn dmarc(dns: &Resolver, name: &str, value: &str) -> Seen {
    let domain = name.strip_prefix("_dmarc.").unwrap_or(name);
    let own = match texts(dns, name, "v=DMARC1").await {
        Ok(found) => found.join(""),
        Err(Seen::Missing) => {
            return match verify::dmarc_above(dns, domain).await {
                Ok(true) => Seen::Ok,
                Ok(false) => Seen::Missing,
                Err(why) => Seen::Unknown(why),
            };
        }
        Err(seen) => return seen,
    };
    if !verify::is_dmarc(&own) {
        return wrong(own, "It is no valid DMARC record");
    }
    let tag = |text: &str, name: &str| {
        text.split(';').find_map(|part| part.trim().strip_prefix(name).map(|v| v.trim().to_lowercase()))
    };
    let ours = tag(value, "rua=").unwrap_or_default();
    match tag(&own, "rua=") {
        // Policies are the owner's; reports that nobody asks for only leave him blind.
        Some(_) => Seen::Ok,
        None => wrong(own, &format!("It asks for no reports (rua={ours})")),
    }
}

async fn tagged(dns: &Resolver, name: &str, tag: &str, value: &str) -> Seen {
    match texts(dns, name, tag).await {
        Ok(found) if found.iter().any(|text| same_text(text, value)) => Seen::Ok,
        Ok(found) if tag == "v=TLSRPTv1" && found.iter().any(|text| text.contains("rua=")) => Seen::Ok,
        Ok(found) if tag == "v=STSv1" => {
            wrong(found.join(""), "The id is not that of the policy which this server serves")
        }
        Ok(found) => Seen::Wrong { found: found.join(""), because: None },
        Err(seen) => seen,
    }
}

/// The policy host serves a policy that others will take, and that names this server.
async fn host(dns: &Resolver, config: &Config, name: &str) -> Seen {
    let found = match dns.addresses(name).await {
        Ok(found) => found,
        Err(error) => return unanswered(error),
    };
    let network = Network { port: config.trust.sts_port, ..Network::new(config) };
    let roots = Arc::new(crate::tls::roots(config.trust.extra_roots.as_deref()));
    let domain = name.strip_prefix("mta-sts.").unwrap_or(name);
    let served = trust::served(dns, &network, &roots, domain);
    let why = match timeout(FETCH, served).await {
        Ok(Ok((_, policy))) if policy.covers(&config.hostname) => return Seen::Ok,
        Ok(Ok((text, _))) => {
            let because = "Its policy does not name this server, so that others hold mail back from it";
            return wrong(text.split_whitespace().collect::<Vec<_>>().join(" "), because);
        }
        Ok(Err((ResultType::StsWebpkiInvalid, why))) => {
            return wrong(why, "Its certificate is not good for this name, so that nobody takes the policy");
        }
        Ok(Err((ResultType::StsPolicyInvalid, why))) => return wrong(why, "What it serves is no policy"),
        Ok(Err((_, why))) => why,
        Err(_) => "no answer in time".to_owned(),
    };
    // What cannot be fetched from here, others may be able to fetch.
    let ours: HashSet<IpAddr> = match dns.addresses(&config.hostname).await {
        Ok(ours) => ours.into_iter().collect(),
        Err(_) => return Seen::Unknown(why),
    };
    if found.iter().any(|ip| ours.contains(ip)) {
        return Seen::Unknown(why);
    }
    let found: Vec<String> = found.iter().map(IpAddr::to_string).collect();
    wrong(found.join(", "), &format!("It is another host, which has to serve the same policy ({why})"))
}

/// Whether each public address of the server has the server's name, which is what EHLO says.
async fn reverse(dns: &Resolver, hostname: &str) -> Seen {
    let addresses = match dns.addresses(hostname).await {
        Ok(addresses) => addresses,
        Err(_) => return Seen::Unknown("the server's name has no address yet".into()),
    };
    let mut off = vec![];
    for ip in addresses {
        match dns.ptr(ip).await {
            Ok(names) if names.iter().any(|name| name == hostname) => {}
            Ok(names) => off.push(format!("{ip} is {}", names.join(", "))),
            Err(error) if error.is_temporary() => return unanswered(error),
            Err(_) => off.push(format!("{ip} has no name")),
        }
    }
    if off.is_empty() { Seen::Ok } else { Seen::Wrong { found: off.join(" and "), because: None } }
}

/// Panels add and drop spaces and the last semicolon.
fn same_text(a: &str, b: &str) -> bool {
    let tags = |text: &str| -> Vec<String> {
        let parts = text.split(';').map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "));
        parts.filter(|part| !part.is_empty()).collect()
    };
    tags(a) == tags(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::zone::Zone;
    use crate::domains::records::{Subject, wanted};
    use crate::store::dkim_key::{DkimKeyRow, KeyState};
    use crate::store::domain::Features;

    #[test]
    fn a_panel_that_moves_spaces_has_still_set_the_record() {
        assert!(same_text("v=DMARC1;p=reject;", "v=DMARC1; p=reject"));
        assert!(same_text("v=spf1  mx -all", "v=spf1 mx -all"));
        assert!(!same_text("v=spf1 mx ~all", "v=spf1 mx -all"));
    }

    /// The words of each record's state, by what it is for.
    async fn words(zone: Zone) -> Vec<(Purpose, State, String)> {
        let text = "hostname = \"mx.agents.example\"\ndomains = [\"agents.example\"]";
        let config = Config::parse(std::path::Path::new("t"), text, std::iter::empty()).unwrap();
        let key = DkimKeyRow {
            domain: "agents.example".into(),
            selector: "s".into(),
            algorithm: "ed25519-sha256".into(),
            private_key: vec![],
            public_key: "KEY".into(),
            state: KeyState::Active,
            state_at: 0,
            created_at: 0,
        };
        let subject = Subject { name: "agents.example", features: Features::default() };
        let server = zone.start().await;
        let found = look(&server.resolver(), &config, wanted(&config, subject, &[key])).await;
        found.into_iter().map(|f| (f.purpose, f.state, f.fix.unwrap_or_default())).collect()
    }

    fn said(words: &[(Purpose, State, String)], purpose: Purpose) -> (State, &str) {
        let (_, state, fix) = words.iter().find(|(p, ..)| *p == purpose).unwrap();
        (*state, fix)
    }

    #[tokio::test]
    async fn each_wrong_record_says_what_is_there_and_what_to_set() {
        let zone = Zone::new()
            .a("mx.agents.example", "192.0.2.1")
            .ptr("192.0.2.1", "vps17.provider.example")
            .mx("agents.example", 5, "old.provider.example")
            .txt("agents.example", &["v=spf1 ip4:198.51.100.7 -all"])
            .txt("s._domainkey.agents.example", &["v=DKIM1; k=ed25519; p=OTHER"])
            .txt("_dmarc.agents.example", &["v=DMARC1; p=none"]);
        let words = words(zone).await;
        let says = |purpose, parts: &[&str]| {
            let (state, fix) = said(&words, purpose);
            assert_eq!(state, State::Wrong, "{purpose:?}: {fix}");
            parts.iter().for_each(|part| assert!(fix.contains(part), "{fix} has no {part}"));
        };
        says(Purpose::Mx, &["5 old.provider.example", "Set: agents.example. MX 10 mx.agents.example."]);
        says(Purpose::Spf, &["does not let 192.0.2.1", "ip4:198.51.100.7", "\"v=spf1 mx -all\""]);
        says(Purpose::Dkim, &["another key", "p=OTHER", "p=KEY"]);
        says(Purpose::Dmarc, &["asks for no reports", "rua=mailto:"]);
        says(Purpose::ReverseDns, &["192.0.2.1 is vps17.provider.example"]);
        assert_eq!(said(&words, Purpose::HostSpf).0, State::Missing);
        assert_eq!(said(&words, Purpose::Address).0, State::Ok);
    }

    #[tokio::test]
    async fn what_says_the_same_in_other_words_is_right() {
        let zone = Zone::new()
            .a("mx.agents.example", "192.0.2.1")
            .ptr("192.0.2.1", "mx.agents.example")
            .mx("agents.example", 5, "mx.agents.example")
            .mx("agents.example", 50, "backup.example")
            .txt("agents.example", &["v=spf1 ip4:192.0.2.0/24 ?all"])
            .txt("mx.agents.example", &["v=spf1 a -all"])
            .txt("s._domainkey.agents.example", &["p=K", "EY ; k=ed25519;v=DKIM1"])
            .txt("_dmarc.agents.example", &["v=DMARC1;p=quarantine;rua=mailto:me@else.example"]);
        for (purpose, state, fix) in words(zone).await {
            let may = matches!(purpose, Purpose::TlsRpt | Purpose::MtaSts | Purpose::MtaStsHost);
            assert!(state == State::Ok || may, "{purpose:?} {state:?} {fix}");
        }
    }

    #[tokio::test]
    async fn a_name_server_that_fails_is_no_missing_record() {
        let words = words(Zone::new().a("mx.agents.example", "192.0.2.1").broken("agents.example")).await;
        assert_eq!(said(&words, Purpose::Mx).0, State::Unknown);
        assert_eq!(said(&words, Purpose::Dmarc).0, State::Missing);
    }

    #[tokio::test]
    async fn a_zone_decides_not_how_much_is_kept_of_it() {
        let long = format!("v=spf1 {}-all", "ip4:192.0.2.9 ".repeat(70));
        // As much as the test's zone can answer over UDP.
        let strings: Vec<&str> =
            long.as_bytes().chunks(250).map(|c| std::str::from_utf8(c).unwrap()).collect();
        let words =
            words(Zone::new().a("mx.agents.example", "192.0.2.1").txt("agents.example", &strings)).await;
        let (state, fix) = said(&words, Purpose::Spf);
        assert!(state == State::Wrong && fix.chars().count() < 2 * MOST_FOUND, "{fix}");
    }

    #[tokio::test]
    async fn two_spf_records_count_as_none() {
        let zone =
            Zone::new().txt("agents.example", &["v=spf1 mx -all"]).txt("agents.example", &["v=spf1 -all"]);
        let words = words(zone).await;
        let (state, fix) = said(&words, Purpose::Spf);
        assert!(state == State::Wrong && fix.contains("Two such records count as none"), "{fix}");
    }
}
