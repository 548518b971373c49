//! The DNS records that a domain needs: what to set and why. A pure list; `look` says what is there.

use serde::{Deserialize, Serialize};

use super::sts;
use crate::config::Config;
use crate::deliver::dkim;
use crate::reports::{DMARC_ADDRESS, TLS_ADDRESS};
use crate::store::dkim_key::{DkimKeyRow, KeyState};
use crate::store::domain::Features;

/// One record that should stand in somebody's zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) purpose: Purpose,
    /// Without the dot at the end; a placeholder for what only the operator knows.
    pub(crate) name: String,
    /// As in a zone file, but for the quotes of a text; names without the dot at the end.
    pub(crate) value: String,
    pub(crate) why: &'static str,
    /// Mail works without it.
    pub(crate) optional: bool,
}

/// What a record is for; how it is compared follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Purpose {
    Address,
    ReverseDns,
    Mx,
    SubdomainsMx,
    Spf,
    SubdomainsSpf,
    HostSpf,
    Dkim,
    /// A key that does not sign yet.
    DkimNext,
    /// A key that signs no more, and whose mail is still on its way.
    DkimRetiring,
    Dmarc,
    TlsRpt,
    MtaSts,
    MtaStsHost,
}

/// The preference of our MX records.
pub(crate) const PREFERENCE: u16 = 10;

impl Purpose {
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Purpose::Address => "A",
            Purpose::ReverseDns => "PTR",
            Purpose::Mx | Purpose::SubdomainsMx => "MX",
            Purpose::MtaStsHost => "CNAME",
            _ => "TXT",
        }
    }

    /// What proves a claim and has to stand before mail leaves: AgentMail's `records`.
    pub(crate) fn is_of_domain(self) -> bool {
        use Purpose::*;
        matches!(self, Mx | SubdomainsMx | Spf | SubdomainsSpf | Dkim | DkimNext | Dmarc)
    }
}

const THIS_SERVER: &str = "<this server's public IPv4; and AAAA for IPv6>";

/// What is known of the domain itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'s> {
    pub(crate) name: &'s str,
    pub(crate) features: Features,
}

pub(crate) fn wanted(config: &Config, subject: Subject<'_>, keys: &[DkimKeyRow]) -> Vec<Wanted> {
    let mut records = of_server(config, subject.name);
    records.extend(of_domain(config, subject, keys));
    records
}

/// What the server's own name needs, once for all domains.
fn of_server(config: &Config, domain: &str) -> Vec<Wanted> {
    let host = config.hostname.as_str();
    let mut records = vec![
        wants(Purpose::Address, host, THIS_SERVER, "where the mail server is"),
        wants(
            Purpose::ReverseDns,
            "<the address, in the provider's panel>",
            host,
            "reverse DNS: many refuse mail from an address without its name",
        ),
    ];
    if host != domain {
        // RFC 7208 §2.3: with a null reverse-path it is the name in EHLO that is checked.
        let why = "SPF of the server's own name, for bounces";
        records.push(wants(Purpose::HostSpf, host, "v=spf1 a -all", why));
    }
    records
}

fn of_domain(config: &Config, Subject { name, features }: Subject<'_>, keys: &[DkimKeyRow]) -> Vec<Wanted> {
    let host = config.hostname.as_str();
    let below = format!("*.{name}");
    let mx = format!("{PREFERENCE} {host}");
    let spf = spf(config, features.inbound);
    let mut records = vec![];
    if features.inbound {
        records.push(wants(Purpose::Mx, name, &mx, "mail for the domain comes here"));
    }
    if features.inbound && features.subdomains {
        records.push(wants(Purpose::SubdomainsMx, &below, &mx, "mail for the names below it comes here"));
    }
    records.push(wants(Purpose::Spf, name, &spf, "SPF: who may send for the domain"));
    if features.subdomains {
        records.push(wants(Purpose::SubdomainsSpf, &below, &spf, "SPF of the names below it"));
    }
    records.extend(keys.iter().filter_map(of_key));
    let dmarc = format!("v=DMARC1; p=reject; rua=mailto:{DMARC_ADDRESS}@{name}");
    let why = "DMARC: mail in the domain's name that is not signed here is false";
    records.push(wants(Purpose::Dmarc, &format!("_dmarc.{name}"), &dmarc, why));
    if features.inbound {
        let rua = format!("v=TLSRPTv1; rua=mailto:{TLS_ADDRESS}@{name}");
        let why = "TLS-RPT: others report when they could not encrypt to us";
        records.push(optional(Purpose::TlsRpt, &format!("_smtp._tls.{name}"), &rua, why));
    }
    if let Some(policy) = sts::policy(config).filter(|_| features.inbound) {
        let why = "MTA-STS: others then encrypt to us, and to nobody else";
        let id = format!("v=STSv1; id={}", sts::id(&policy));
        records.push(optional(Purpose::MtaSts, &format!("_mta-sts.{name}"), &id, why));
        let why = "MTA-STS: where the policy is served, over HTTPS with a certificate for this name";
        records.push(optional(Purpose::MtaStsHost, &sts::host(name), host, why));
    }
    records
}

fn of_key(key: &DkimKeyRow) -> Option<Wanted> {
    let record = dkim::record(key);
    let (purpose, why) = match key.state {
        KeyState::Active => (Purpose::Dkim, "DKIM: the key that our signatures are checked with"),
        KeyState::Next => (Purpose::DkimNext, "DKIM: the next key, which signs once this record is seen"),
        KeyState::Retiring => {
            (Purpose::DkimRetiring, "DKIM: the key before; mail it signed is still on its way")
        }
        KeyState::Retired => return None,
    };
    let value = unquoted(&record.value);
    Some(Wanted { optional: key.state != KeyState::Active, ..wants(purpose, &record.name, &value, why) })
}

fn spf(config: &Config, inbound: bool) -> String {
    // Where MX points elsewhere, `mx` would let others send: our name instead.
    let ours = if inbound { "mx".to_owned() } else { format!("a:{}", config.hostname) };
    match &config.relay.smarthost {
        None => format!("v=spf1 {ours} -all"),
        Some(relay) => format!("v=spf1 {ours} a:{} -all", relay.host),
    }
}

fn wants(purpose: Purpose, name: &str, value: &str, why: &'static str) -> Wanted {
    Wanted { purpose, name: name.to_owned(), value: value.to_owned(), why, optional: false }
}

fn optional(purpose: Purpose, name: &str, value: &str, why: &'static str) -> Wanted {
    Wanted { optional: true, ..wants(purpose, name, value, why) }
}

/// The text of a zone file's strings: what a resolver answers, and what is compared.
fn unquoted(strings: &str) -> String {
    strings.split('"').skip(1).step_by(2).collect()
}

impl Wanted {
    /// As it stands in a zone file, long texts in strings of 255 octets (RFC 1035 §3.3.14).
    pub(crate) fn line(&self) -> String {
        let dot = if self.name.starts_with('<') { "" } else { "." };
        let value = match self.purpose.kind() {
            "TXT" => self
                .value
                .as_bytes()
                .chunks(255)
                .map(|part| format!("\"{}\"", String::from_utf8_lossy(part)))
                .collect::<Vec<_>>()
                .join(" "),
            "A" => self.value.clone(),
            _ => format!("{}.", self.value),
        };
        format!("{}{dot} {} {value}", self.name, self.purpose.kind())
    }
}

/// A BIND zone file of what the domain's own zone needs; the server's name and its reverse zone are elsewhere.
pub(crate) fn zone_file(config: &Config, subject: Subject<'_>, keys: &[DkimKeyRow]) -> String {
    let name = subject.name;
    let mut file =
        format!("; {name}: records for Gatepost at {}\n$ORIGIN {name}.\n$TTL 3600\n", config.hostname);
    for record in of_domain(config, subject, keys) {
        let may = if record.optional { " (optional)" } else { "" };
        let line = record.line().replacen(". ", ". IN ", 1);
        file.push_str(&format!("; {}{may}\n{line}\n", record.why));
    }
    file
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config() -> Config {
        let text = "hostname = \"mx.agents.example\"\ndomains = [\"agents.example\"]";
        Config::parse(Path::new("gatepost.toml"), text, std::iter::empty()).unwrap()
    }

    fn key(selector: &str, state: KeyState) -> DkimKeyRow {
        DkimKeyRow {
            domain: "agents.example".into(),
            selector: selector.into(),
            algorithm: "rsa-sha256".into(),
            private_key: vec![],
            public_key: "A".repeat(392),
            state,
            state_at: 0,
            created_at: 0,
        }
    }

    #[test]
    fn the_records_of_a_domain_are_complete_and_fit_a_zone_file() {
        let keys = [key("r1", KeyState::Active), key("r2", KeyState::Next), key("r0", KeyState::Retired)];
        let subject = Subject { name: "agents.example", features: Features::default() };
        let records = wanted(&config(), subject, &keys);
        let lines: Vec<String> = records.iter().map(Wanted::line).collect();
        assert!(lines.contains(&"agents.example. MX 10 mx.agents.example.".to_owned()));
        assert!(lines.contains(&"agents.example. TXT \"v=spf1 mx -all\"".to_owned()));
        let dmarc =
            "_dmarc.agents.example. TXT \"v=DMARC1; p=reject; rua=mailto:dmarc-reports@agents.example\"";
        assert!(lines.contains(&dmarc.to_owned()));
        let key = lines.iter().find(|line| line.starts_with("r1._domainkey")).unwrap();
        assert!(key.split('"').all(|string| string.len() <= 255), "{key}");
        assert!(key.contains("\" \""), "{key}");
        assert!(lines.iter().any(|line| line.starts_with("r2._domainkey")));
        assert!(!lines.iter().any(|line| line.starts_with("r0._domainkey")), "a retired key is asked for");
        let required = |prefix: &str| records.iter().any(|r| r.name.starts_with(prefix) && !r.optional);
        assert!(required("r1.") && !required("r2."));
    }

    #[test]
    fn a_domain_that_only_sends_wants_no_mx_and_names_below_want_their_own_records() {
        let features = Features { inbound: false, subdomains: true, ..Features::default() };
        let file = zone_file(&config(), Subject { name: "agents.example", features }, &[]);
        assert!(!file.contains(" MX ") && !file.contains("STSv1"), "{file}");
        assert!(file.contains("*.agents.example. IN TXT \"v=spf1 a:mx.agents.example -all\""), "{file}");
    }
}
