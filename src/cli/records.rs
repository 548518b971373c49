//! The DNS records that a domain needs: what to set, why, and whether it is set already.
//!
//! `wanted` is a pure list, printed by `init` and `dns` in the form that zone files and most panels take;
//! `look` asks the resolver for the state of each. Both are advice: nothing is refused because of DNS.

use std::net::IpAddr;

use crate::config::Config;
use crate::deliver::dkim::DnsRecord;
use crate::dns::{DnsError, Resolver};
use crate::reports::{DMARC_ADDRESS, TLS_ADDRESS};

/// One record that should stand in somebody's zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Without the dot at the end; a placeholder for what only the operator knows.
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) value: String,
    pub(crate) why: &'static str,
    /// Mail works without it.
    pub(crate) optional: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Address,
    Mx,
    /// A TXT record that begins with this tag: others may stand beside it.
    Text(&'static str),
    Ptr,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Address => "A",
            Kind::Mx => "MX",
            Kind::Text(_) => "TXT",
            Kind::Ptr => "PTR",
        }
    }
}

/// What a question to the DNS found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    Set,
    Missing,
    Differs(String),
    Unknown(String),
}

const THIS_SERVER: &str = "<this server's public IPv4; and AAAA for IPv6>";

pub(crate) fn wanted(config: &Config, domain: &str, dkim: &[DnsRecord]) -> Vec<Wanted> {
    let host = &config.hostname;
    let record = |name: &str, kind, value: String, why| Wanted {
        name: name.to_owned(),
        kind,
        value,
        why,
        optional: false,
    };
    let optional = |name: String, kind, value: String, why| Wanted { name, kind, value, why, optional: true };
    let spf = match &config.relay.smarthost {
        None => "v=spf1 mx -all".to_owned(),
        Some(relay) => format!("v=spf1 mx a:{} -all", relay.host),
    };
    let mut records = vec![
        record(host, Kind::Address, THIS_SERVER.into(), "where the mail server is"),
        record(
            "<the address, in the provider's panel>",
            Kind::Ptr,
            host.clone(),
            "reverse DNS: many refuse mail from an address without its name",
        ),
        record(domain, Kind::Mx, format!("10 {host}."), "mail for the domain comes here"),
        record(domain, Kind::Text("v=spf1"), spf, "SPF: who may send for the domain"),
    ];
    if host != domain {
        // RFC 7208 §2.3: with a null reverse-path it is the name in EHLO that is checked.
        let why = "SPF of the server's own name, for bounces";
        records.push(record(host, Kind::Text("v=spf1"), "v=spf1 a -all".into(), why));
    }
    for key in dkim {
        let why = "DKIM: the key that our signatures are checked with";
        records.push(record(&key.name, Kind::Text("v=DKIM1"), unquoted(&key.value), why));
    }
    records.push(record(
        &format!("_dmarc.{domain}"),
        Kind::Text("v=DMARC1"),
        format!("v=DMARC1; p=reject; rua=mailto:{DMARC_ADDRESS}@{domain}"),
        "DMARC: mail in the domain's name that is not signed here is false",
    ));
    records.push(optional(
        format!("_smtp._tls.{domain}"),
        Kind::Text("v=TLSRPTv1"),
        format!("v=TLSRPTv1; rua=mailto:{TLS_ADDRESS}@{domain}"),
        "TLS-RPT: others report when they could not encrypt to us",
    ));
    records.push(optional(
        format!("_mta-sts.{domain}"),
        Kind::Text("v=STSv1"),
        "v=STSv1; id=1".into(),
        "MTA-STS: only with a verifiable certificate, and the policy file served by your web server",
    ));
    records
}

/// The text of a zone file's strings: what a resolver answers, and what is compared.
fn unquoted(strings: &str) -> String {
    strings.split('"').skip(1).step_by(2).collect()
}

impl Wanted {
    /// As it stands in a zone file, long texts in strings of 255 octets (RFC 1035 §3.3.14).
    pub(crate) fn line(&self) -> String {
        let dot = if self.name.starts_with('<') { "" } else { "." };
        let value = match self.kind {
            Kind::Text(_) => self
                .value
                .as_bytes()
                .chunks(255)
                .map(|part| format!("\"{}\"", String::from_utf8_lossy(part)))
                .collect::<Vec<_>>()
                .join(" "),
            Kind::Ptr => format!("{}.", self.value),
            Kind::Address | Kind::Mx => self.value.clone(),
        };
        format!("{}{dot} {} {value}", self.name, self.kind.name())
    }

    /// Asks whether the record is there.
    pub(crate) async fn look(&self, dns: &Resolver, config: &Config) -> State {
        match self.kind {
            Kind::Address => match dns.addresses(&self.name).await {
                Ok(found) => state(!found.is_empty(), vec![]),
                Err(error) => unanswered(error),
            },
            Kind::Mx => match dns.mx(&self.name).await {
                Ok(found) => {
                    let ours = found.iter().any(|mx| mx.exchange == config.hostname);
                    state(ours, found.into_iter().map(|mx| mx.exchange).collect())
                }
                Err(error) => unanswered(error),
            },
            Kind::Text(tag) => match dns.txt(&self.name).await {
                Ok(found) => {
                    let tagged: Vec<String> =
                        found.into_iter().filter(|text| text.starts_with(tag)).collect();
                    state(tagged.iter().any(|text| same_text(text, &self.value)), tagged)
                }
                Err(error) => unanswered(error),
            },
            Kind::Ptr => look_back(dns, &config.hostname).await,
        }
    }
}

/// Whether each public address of the server has the server's name.
async fn look_back(dns: &Resolver, hostname: &str) -> State {
    let addresses = match dns.addresses(hostname).await {
        Ok(addresses) => addresses,
        Err(_) => return State::Unknown("the server's name has no address yet".into()),
    };
    let mut wrong = vec![];
    for ip in addresses {
        match dns.ptr(ip).await {
            Ok(names) if names.iter().any(|name| name == hostname) => {}
            Ok(names) => wrong.push(format!("{ip} is {}", names.join(", "))),
            Err(error) if error.is_temporary() => return unanswered(error),
            Err(_) => wrong.push(nameless(ip)),
        }
    }
    state(wrong.is_empty(), wrong)
}

fn nameless(ip: IpAddr) -> String {
    format!("{ip} has no name")
}

fn state(set: bool, found: Vec<String>) -> State {
    match (set, found.is_empty()) {
        (true, _) => State::Set,
        (false, true) => State::Missing,
        (false, false) => State::Differs(found.join(" and ")),
    }
}

fn unanswered(error: DnsError) -> State {
    match error.is_temporary() {
        true => State::Unknown(error.to_string()),
        false => State::Missing,
    }
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
    use std::path::Path;

    use super::*;

    #[test]
    fn the_records_of_a_domain_are_complete_and_fit_a_zone_file() {
        let text = "hostname = \"mx.agents.example\"\ndomains = [\"agents.example\"]";
        let config = Config::parse(Path::new("gatepost.toml"), text, std::iter::empty()).unwrap();
        let dkim = [DnsRecord {
            name: "r1._domainkey.agents.example".into(),
            kind: "TXT",
            value: format!("\"v=DKIM1; k=rsa; p={}\" \"{}\"", "A".repeat(200), "A".repeat(192)),
        }];
        let lines: Vec<String> = wanted(&config, "agents.example", &dkim).iter().map(Wanted::line).collect();
        assert!(lines.contains(&"agents.example. MX 10 mx.agents.example.".to_owned()));
        assert!(lines.contains(&"agents.example. TXT \"v=spf1 mx -all\"".to_owned()));
        let dmarc =
            "_dmarc.agents.example. TXT \"v=DMARC1; p=reject; rua=mailto:dmarc-reports@agents.example\"";
        assert!(lines.contains(&dmarc.to_owned()));
        let key = lines.iter().find(|line| line.starts_with("r1._domainkey")).unwrap();
        assert!(key.split('"').all(|string| string.len() <= 255), "{key}");
        assert!(key.contains("\" \""), "{key}");
    }

    #[test]
    fn a_panel_that_moves_spaces_has_still_set_the_record() {
        assert!(same_text("v=DMARC1;p=reject;", "v=DMARC1; p=reject"));
        assert!(same_text("v=spf1  mx -all", "v=spf1 mx -all"));
        assert!(!same_text("v=spf1 mx ~all", "v=spf1 mx -all"));
    }
}
