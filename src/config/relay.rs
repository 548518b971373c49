//! `[relay]`: how mail leaves, what one MX site is asked to bear, and who goes another way.

use std::net::IpAddr;
use std::time::Duration;

use super::settings::{Settings, Value};
use super::{Smarthost, expire, limits, optional, retry, values};
use crate::ids::parse_pod_id;

/// How mail leaves.
#[derive(Debug, Clone)]
pub struct Relay {
    /// The port dialled at MX hosts; not 25 only in tests.
    pub port: u16,
    /// MX hosts on loopback and private ranges; only in tests.
    pub allow_private_addresses: bool,
    pub smarthost: Option<Smarthost>,
    /// The waits between attempts; the last repeats until `expire`. Never empty.
    pub retry: Vec<Duration>,
    pub expire: Duration,
    /// After this long without delivery an event says that it is late.
    pub delay_notice: Duration,
    /// Tried first, where a host has both.
    pub prefer: Family,
    /// No answer of a remote is waited for longer than this; `None`: RFC 5321 §4.5.3.2 alone decides.
    pub longest_wait: Option<Duration>,
    pub limits: SiteLimits,
    pub sites: Vec<SiteRule>,
    pub routes: Vec<RouteRule>,
    pub sources: Vec<Source>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Ipv4,
    Ipv6,
}

/// What this node asks of one MX site. A number of zero: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SiteLimits {
    /// At once; never zero.
    pub connections: u32,
    pub connections_per_minute: u32,
    pub messages_per_minute: u32,
    /// Never zero.
    pub messages_per_connection: u32,
    /// Attempts in a row that reached no host, after which the site is left alone for `hold`.
    pub failures: u32,
    pub hold: Duration,
}

impl Default for SiteLimits {
    fn default() -> SiteLimits {
        SiteLimits {
            // Postfix's `default_destination_concurrency_limit`, which receivers expect.
            connections: 20,
            connections_per_minute: 6_000,
            messages_per_minute: 0,
            // KumoMTA's `max_deliveries_per_connection`.
            messages_per_connection: 100,
            failures: 10,
            hold: Duration::from_secs(300),
        }
    }
}

/// Other limits for the site whose hosts all have this name or are below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteRule {
    pub name: String,
    pub limits: SiteLimits,
}

/// Another way for mail to these domains: `None` is the MX hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteRule {
    pub domains: Vec<String>,
    pub smarthost: Option<Smarthost>,
}

/// The way that an operator chose for one delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// To the MX hosts of its domain.
    Direct,
    /// By the smarthost for all mail; where there is none, as the domain's entry says.
    Smarthost,
}

impl Choice {
    /// As it stands in a delivery's row.
    pub fn text(self) -> &'static str {
        match self {
            Choice::Direct => "direct",
            Choice::Smarthost => "smarthost",
        }
    }

    pub fn parse(text: &str) -> Option<Choice> {
        match text {
            "direct" => Some(Choice::Direct),
            "smarthost" => Some(Choice::Smarthost),
            _ => None,
        }
    }
}

/// Where mail from these domains, or of these pods, is dialled from, and under which name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Source {
    /// Empty: every domain, of the pods.
    pub domains: Vec<String>,
    /// Keys of pods; empty: every pod.
    pub pods: Vec<i64>,
    pub ipv4: Option<IpAddr>,
    pub ipv6: Option<IpAddr>,
    pub hello: Option<String>,
}

impl Default for Relay {
    fn default() -> Relay {
        let minutes = |m: u64| Duration::from_secs(m * 60);
        Relay {
            port: 25,
            allow_private_addresses: false,
            smarthost: None,
            retry: [1, 5, 15, 30, 60, 120, 240].map(minutes).to_vec(),
            expire: limits::DEFAULT_EXPIRE,
            delay_notice: Duration::from_secs(4 * 3_600),
            prefer: Family::Ipv4,
            longest_wait: None,
            limits: SiteLimits::default(),
            sites: Vec::new(),
            routes: Vec::new(),
            sources: Vec::new(),
        }
    }
}

impl Relay {
    /// The smarthost for mail to a domain, if it takes one.
    pub fn smarthost_for(&self, domain: &str, chosen: Option<Choice>) -> Option<&Smarthost> {
        match chosen {
            Some(Choice::Direct) => return None,
            Some(Choice::Smarthost) if self.smarthost.is_some() => return self.smarthost.as_ref(),
            _ => {}
        }
        let rule = self.routes.iter().find(|rule| rule.domains.iter().any(|p| matches(p, domain)));
        rule.map_or(self.smarthost.as_ref(), |rule| rule.smarthost.as_ref())
    }

    /// Where mail of a pod from a domain is dialled from, and as whom: the first entry that fits.
    pub fn source_of(&self, pod: i64, domain: &str) -> Option<&Source> {
        let from = |source: &Source| {
            source.domains.is_empty() || source.domains.iter().any(|pattern| matches(pattern, domain))
        };
        self.sources.iter().find(|s| (s.pods.is_empty() || s.pods.contains(&pod)) && from(s))
    }
}

/// `a.example` is that domain, `*.a.example` what is below it, `*` all.
fn matches(pattern: &str, domain: &str) -> bool {
    let domain = domain.to_ascii_lowercase();
    match pattern.strip_prefix('*') {
        Some("") => true,
        Some(below) => domain.len() > below.len() && domain.ends_with(below),
        None => pattern == domain,
    }
}

pub(super) fn take(s: &mut Settings) -> Relay {
    let standard = Relay::default();
    let families = [("ipv4", Family::Ipv4), ("ipv6", Family::Ipv6)];
    let wait = |v: &Value| optional(v, |_| values::duration(v));
    let mut relay = Relay {
        port: s.take("relay.port", values::port, || 25),
        allow_private_addresses: s.take("relay.allow_private_addresses", values::boolean, || false),
        smarthost: s.take("relay.smarthost", |v| optional(v, str::parse), || None),
        retry: s.take("relay.retry", retry, || standard.retry.clone()),
        expire: s.take("relay.expire", expire, || limits::DEFAULT_EXPIRE),
        delay_notice: s.take("relay.delay_notice", expire, || Duration::from_secs(4 * 3_600)),
        prefer: s.take("relay.prefer", |v| values::word(v, &families), || Family::Ipv4),
        longest_wait: s.take("relay.longest_wait", wait, || None),
        limits: take_limits(s),
        ..standard
    };
    let limits = relay.limits;
    relay.sites = s.take("relay.site", |v| rows(v, SITE, |row| site(row, limits)), Vec::new);
    relay.routes = s.take("relay.route", |v| rows(v, &["domains", "smarthost"], route), Vec::new);
    relay.sources =
        s.take("relay.source", |v| rows(v, &["domains", "pods", "ipv4", "ipv6", "hello"], source), Vec::new);
    if relay.retry.first().is_some_and(|first| relay.expire <= *first) {
        let key = if s.is_set("relay.expire") { "relay.expire" } else { "relay.retry" };
        s.problem(key, "leaves no time for a second attempt: expire must be longer than the first retry");
    }
    relay
}

fn at_least_one(value: &Value) -> Result<u32, String> {
    values::count(value, 1, 10_000)
}

fn or_none(value: &Value) -> Result<u32, String> {
    values::count(value, 0, 10_000_000)
}

fn take_limits(s: &mut Settings) -> SiteLimits {
    let standard = SiteLimits::default();
    SiteLimits {
        connections: s.take("relay.limits.connections", at_least_one, || standard.connections),
        connections_per_minute: s
            .take("relay.limits.connections_per_minute", or_none, || standard.connections_per_minute),
        messages_per_minute: s
            .take("relay.limits.messages_per_minute", or_none, || standard.messages_per_minute),
        messages_per_connection: s
            .take("relay.limits.messages_per_connection", at_least_one, || standard.messages_per_connection),
        failures: s.take("relay.limits.failures", at_least_one, || standard.failures),
        hold: s.take("relay.limits.hold", values::duration, || standard.hold),
    }
}

const SITE: &[&str] = &[
    "name",
    "connections",
    "connections_per_minute",
    "messages_per_minute",
    "messages_per_connection",
    "failures",
    "hold",
];

fn site(row: &Row<'_>, standard: SiteLimits) -> Result<SiteRule, String> {
    let name = row.require("name", |v| Ok(v.text()?.trim_matches('.').to_ascii_lowercase()))?;
    Ok(SiteRule {
        name,
        limits: SiteLimits {
            connections: row.get("connections", at_least_one)?.unwrap_or(standard.connections),
            connections_per_minute: row
                .get("connections_per_minute", or_none)?
                .unwrap_or(standard.connections_per_minute),
            messages_per_minute: row
                .get("messages_per_minute", or_none)?
                .unwrap_or(standard.messages_per_minute),
            messages_per_connection: row
                .get("messages_per_connection", at_least_one)?
                .unwrap_or(standard.messages_per_connection),
            failures: row.get("failures", at_least_one)?.unwrap_or(standard.failures),
            hold: row.get("hold", values::duration)?.unwrap_or(standard.hold),
        },
    })
}

fn route(row: &Row<'_>) -> Result<RouteRule, String> {
    let smarthost = |v: &Value| match v.text()? {
        "" | "direct" => Ok(None),
        url => url.parse().map(Some),
    };
    Ok(RouteRule {
        domains: row.require("domains", patterns)?,
        smarthost: row.require("smarthost", smarthost)?,
    })
}

fn source(row: &Row<'_>) -> Result<Source, String> {
    let ip = |v: &Value| v.text()?.parse::<IpAddr>().map_err(|_| "is no IP address".to_owned());
    let source = Source {
        domains: row.get("domains", patterns)?.unwrap_or_default(),
        pods: row.get("pods", pods)?.unwrap_or_default(),
        ipv4: row.get("ipv4", ip)?,
        ipv6: row.get("ipv6", ip)?,
        hello: row.get("hello", values::hostname)?,
    };
    if source.ipv4.is_some_and(|ip| !ip.is_ipv4()) || source.ipv6.is_some_and(|ip| !ip.is_ipv6()) {
        return Err(format!("entry {}: an address is of the other family", row.nth));
    }
    if source.ipv4.is_none() && source.ipv6.is_none() && source.hello.is_none() {
        return Err(format!("entry {}: names no ipv4, no ipv6 and no hello", row.nth));
    }
    if source.domains.is_empty() && source.pods.is_empty() {
        return Err(format!("entry {}: names no domains and no pods", row.nth));
    }
    Ok(source)
}

/// Pods, by their `pod_id`.
fn pods(value: &Value) -> Result<Vec<i64>, String> {
    let pod = |text: &String| {
        parse_pod_id(text).ok_or_else(|| format!("`{text}` is no pod_id (GET /v0/pods lists them)"))
    };
    value.list()?.iter().map(pod).collect()
}

/// Domains, with `*.` for what is below one and `*` for all.
fn patterns(value: &Value) -> Result<Vec<String>, String> {
    let list: Vec<String> = value.list()?.into_iter().map(|p| p.to_ascii_lowercase()).collect();
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let fits = |p: &String| {
        let name = p.strip_prefix("*.").unwrap_or(p);
        p == "*" || (!name.is_empty() && name.chars().all(is_name))
    };
    match list.iter().find(|p| !fits(p)) {
        Some(bad) => Err(format!("`{bad}` is no domain; it takes a.example, *.a.example or *")),
        None if list.is_empty() => Err("names no domain".into()),
        None => Ok(list),
    }
}

/// One table of a list of tables.
struct Row<'a> {
    nth: usize,
    entries: &'a [(String, Value)],
}

impl Row<'_> {
    fn get<T>(
        &self,
        key: &str,
        parse: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Result<Option<T>, String> {
        let Some((_, value)) = self.entries.iter().find(|(name, _)| name == key) else { return Ok(None) };
        parse(value).map(Some).map_err(|words| format!("entry {}: {key}: {words}", self.nth))
    }

    fn require<T>(&self, key: &str, parse: impl FnOnce(&Value) -> Result<T, String>) -> Result<T, String> {
        self.get(key, parse)?.ok_or_else(|| format!("entry {}: {key} is missing", self.nth))
    }
}

fn rows<T>(
    value: &Value,
    known: &[&str],
    read: impl Fn(&Row<'_>) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    let Value::List(items) = value else {
        return match value {
            Value::Text(text) if text.is_empty() => Ok(Vec::new()),
            _ => Err("takes a list of tables: write it in double brackets, once for each".into()),
        };
    };
    let row = |(i, item): (usize, &Value)| {
        let Value::Table(entries) = item else {
            return Err("takes a list of tables: write it in double brackets, once for each".into());
        };
        let row = Row { nth: i + 1, entries };
        match entries.iter().find(|(key, _)| !known.contains(&key.as_str())) {
            Some((key, _)) => {
                Err(format!("entry {}: `{key}` is not a known key; there are {}", row.nth, known.join(", ")))
            }
            None => read(&row),
        }
    };
    items.iter().enumerate().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_operator_chose_goes_before_what_holds_for_the_domain() {
        let smarthost =
            |host: &str| Smarthost { host: host.to_owned(), port: 587, implicit_tls: false, login: None };
        let rule = RouteRule { domains: vec!["*.corp.example".into()], smarthost: Some(smarthost("inner")) };
        let mut relay = Relay { routes: vec![rule], ..Relay::default() };
        let way = |relay: &Relay, domain: &str, chosen: Option<&str>| {
            let found = relay.smarthost_for(domain, chosen.and_then(Choice::parse));
            found.map(|smarthost| smarthost.host.clone())
        };
        assert_eq!(way(&relay, "a.corp.example", None).as_deref(), Some("inner"));
        assert_eq!(way(&relay, "a.corp.example", Some("direct")), None);
        assert_eq!(way(&relay, "a.corp.example", Some("smarthost")).as_deref(), Some("inner"));
        assert_eq!(way(&relay, "b.example", Some("smarthost")), None);
        relay.smarthost = Some(smarthost("outer"));
        assert_eq!(way(&relay, "b.example", None).as_deref(), Some("outer"));
        assert_eq!(way(&relay, "b.example", Some("direct")), None);
        assert_eq!(way(&relay, "a.corp.example", Some("smarthost")).as_deref(), Some("outer"));
    }
}
