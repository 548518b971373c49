//! Where mail for a domain goes: MX hosts in order, and the addresses that may be dialled.
//!
//! Decisions are pure (`hosts`, `refusal`); only `mx_hosts` and `addresses` ask the DNS. Agents choose
//! recipients, so a domain is hostile input: its MX may not lead to this machine or into the network
//! around it (mail-servers.md §7 "SMTP as SSRF").
//!
//! RFC 5321 §5.1 (MX, implicit MX, loops), §4.1.3 (literals), RFC 7505 (null MX), RFC 6890 (special addresses).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::Config;
use crate::dns::{DnsError, Mx, Resolver};

/// Hosts and addresses that one attempt looks at: a hostile domain may list hundreds.
const MAX_HOSTS: usize = 5;
const MAX_ADDRESSES: usize = 5;

/// Why there is no way to a domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("{text}")]
    Permanent { status: &'static str, text: String },
    #[error("{0}")]
    Temporary(String),
}

impl RouteError {
    fn permanent(status: &'static str, text: impl Into<String>) -> RouteError {
        RouteError::Permanent { status, text: text.into() }
    }
}

/// What is ours to refuse and to dial, from the configuration.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    /// Our own name: an MX that names us is the end of the list.
    pub(crate) hostname: String,
    pub(crate) own_listeners: Vec<SocketAddr>,
    pub(crate) port: u16,
    pub(crate) allow_private_addresses: bool,
}

impl Network {
    pub(crate) fn new(config: &Config) -> Network {
        Network {
            hostname: config.hostname.to_ascii_lowercase(),
            own_listeners: config.smtp.listen.clone(),
            port: config.relay.port,
            allow_private_addresses: config.relay.allow_private_addresses,
        }
    }
}

/// The hosts to try for `domain`, best first. `shuffle` orders hosts of one preference.
pub(crate) async fn mx_hosts(
    dns: &Resolver,
    network: &Network,
    domain: &str,
    random: u64,
) -> Result<Vec<String>, RouteError> {
    // RFC 5321 §4.1.3: a literal is the host itself.
    if domain.starts_with('[') {
        return Ok(vec![domain.to_owned()]);
    }
    hosts(domain, dns.mx(domain).await, &network.hostname, random)
}

/// The order in which hosts are tried, from the answer to the MX question. A CNAME is followed by the resolver.
fn hosts(
    domain: &str,
    answer: Result<Vec<Mx>, DnsError>,
    hostname: &str,
    random: u64,
) -> Result<Vec<String>, RouteError> {
    let mut list = match answer {
        Ok(list) => list,
        // RFC 5321 §5.1: no MX record: the domain itself is the host, with preference 0.
        Err(DnsError::Empty) => return Ok(vec![domain.to_owned()]),
        Err(DnsError::NotFound) => {
            return Err(RouteError::permanent("5.1.2", format!("the domain {domain} does not exist")));
        }
        Err(DnsError::Temporary(why)) => {
            return Err(RouteError::Temporary(format!("MX of {domain} cannot be looked up: {why}")));
        }
    };
    // RFC 7505 §3: a single "." says that the domain takes no mail.
    if list.iter().all(|mx| mx.exchange.is_empty() || mx.exchange == ".") {
        return Err(RouteError::permanent("5.1.10", format!("the domain {domain} takes no mail (null MX)")));
    }
    list.retain(|mx| !mx.exchange.is_empty() && mx.exchange != ".");
    // RFC 5321 §5.1: hosts of one preference are tried in random order, to spread the load.
    let mut state = random | 1;
    list.sort_by_cached_key(|mx| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (mx.preference, state >> 33)
    });
    // RFC 5321 §5.1: if we are in the list, we and everything behind us must be left out, else mail loops.
    let ours = |mx: &Mx| mx.exchange.eq_ignore_ascii_case(hostname);
    if let Some(own) = list.iter().find(|mx| ours(mx)).map(|mx| mx.preference) {
        list.retain(|mx| mx.preference < own);
        if list.is_empty() {
            return Err(RouteError::permanent("5.4.6", format!("the MX of {domain} is this server itself")));
        }
    }
    list.truncate(MAX_HOSTS);
    Ok(list.into_iter().map(|mx| mx.exchange).collect())
}

/// Where `host` can be dialled. Forbidden addresses are left out; when nothing else is there, that is final.
pub(crate) async fn addresses(
    dns: &Resolver,
    network: &Network,
    host: &str,
) -> Result<Vec<SocketAddr>, RouteError> {
    let answer = match literal(host) {
        Some(ip) => Ok(vec![ip]),
        None => dns.addresses(host).await,
    };
    vetted(host, answer, network)
}

/// The preferred family first, then the families in turns, so that an attempt that has few dials tries both
/// (RFC 8305 §4).
pub(crate) fn by_family(addresses: Vec<SocketAddr>, ipv6_first: bool) -> Vec<SocketAddr> {
    let (first, second): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|a| a.is_ipv6() == ipv6_first);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut order = Vec::new();
    loop {
        let before = order.len();
        order.extend(first.next());
        order.extend(second.next());
        if order.len() == before {
            return order;
        }
    }
}

fn vetted(
    host: &str,
    answer: Result<Vec<IpAddr>, DnsError>,
    network: &Network,
) -> Result<Vec<SocketAddr>, RouteError> {
    let ips = answer.map_err(|error| match error {
        DnsError::Temporary(why) => {
            RouteError::Temporary(format!("the address of {host} cannot be looked up: {why}"))
        }
        // RFC 5321 §5.1: MX records of which none is usable are an error, not an implicit MX.
        DnsError::NotFound | DnsError::Empty => {
            RouteError::permanent("5.4.4", format!("the host {host} has no address"))
        }
    })?;
    let (mut good, mut why) = (Vec::new(), None);
    for ip in ips {
        let address = SocketAddr::new(ip, network.port);
        match refusal(address, network) {
            None => good.push(address),
            Some(reason) => why = Some(reason),
        }
    }
    let good: Vec<SocketAddr> = by_family(good, false).into_iter().take(MAX_ADDRESSES).collect();
    match (good.is_empty(), why) {
        (true, Some(reason)) => {
            Err(RouteError::permanent("5.4.4", format!("{host} is {reason}, where no mail is sent")))
        }
        (true, None) => Err(RouteError::permanent("5.4.4", format!("the host {host} has no address"))),
        (false, _) => Ok(good),
    }
}

/// `[192.0.2.1]`, `[IPv6:2001:db8::1]`, and bare addresses as a smarthost is configured with.
fn literal(host: &str) -> Option<IpAddr> {
    let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let inner = inner.strip_prefix("IPv6:").or_else(|| inner.strip_prefix("ipv6:")).unwrap_or(inner);
    inner.parse().ok()
}

/// Why an address must not be dialled, if so.
fn refusal(address: SocketAddr, network: &Network) -> Option<&'static str> {
    let ip = address.ip().to_canonical();
    let own = |listener: &SocketAddr| {
        listener.port() == address.port()
            && (listener.ip().to_canonical() == ip || (listener.ip().is_unspecified() && ip.is_loopback()))
    };
    if network.own_listeners.iter().any(own) {
        return Some("this server itself");
    }
    if network.allow_private_addresses {
        return None;
    }
    match ip {
        IpAddr::V4(v4) => special_v4(v4),
        IpAddr::V6(v6) => special_v6(v6),
    }
}

/// RFC 6890 and the IANA registry of special-purpose addresses that follows from it.
fn special_v4(ip: Ipv4Addr) -> Option<&'static str> {
    match ip.octets() {
        [0, ..] => Some("an address of this network"),
        [127, ..] => Some("a loopback address"),
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Some("a private address"),
        [169, 254, ..] => Some("a link-local address"),
        [100, 64..=127, ..] => Some("a carrier-grade NAT address"),
        [192, 0, 0, _] | [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] | [198, 18..=19, ..] => {
            Some("an address for documentation or tests")
        }
        [224..=239, ..] => Some("a multicast address"),
        [240..=255, ..] => Some("a reserved address"),
        _ => None,
    }
}

fn special_v6(ip: Ipv6Addr) -> Option<&'static str> {
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        special_v4(Ipv4Addr::new(a, b, c, d))
    };
    match ip.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("an address of this network"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("a loopback address"),
        // RFC 4291 §2.5.5.1: IPv4-compatible, long deprecated.
        [0, 0, 0, 0, 0, 0, _, _] => Some("a reserved address"),
        // RFC 6052, RFC 8215: NAT64 leads to the IPv4 address that it holds.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x64, 0xff9b, 1, ..] => Some("a private NAT64 address"),
        // RFC 3056: 6to4 holds its IPv4 address after the prefix.
        [0x2002, high, low, ..] => embedded(high, low),
        [0x2001, 0, ..] => Some("a Teredo address"),
        [0x2001, 0xdb8, ..] | [0x100, 0, 0, 0, ..] => Some("an address for documentation or tests"),
        [0xfc00..=0xfdff, ..] => Some("a private address"),
        [0xfe80..=0xfebf, ..] => Some("a link-local address"),
        [0xfec0..=0xfeff, ..] => Some("a private address"),
        [0xff00..=0xffff, ..] => Some("a multicast address"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> Network {
        Network {
            hostname: "mx.agents.example".into(),
            own_listeners: vec!["[::]:25".parse().unwrap(), "198.41.0.4:25".parse().unwrap()],
            port: 25,
            allow_private_addresses: false,
        }
    }

    fn mx(list: &[(u16, &str)]) -> Result<Vec<Mx>, DnsError> {
        Ok(list.iter().map(|(p, e)| Mx { preference: *p, exchange: (*e).to_owned() }).collect())
    }

    fn route(answer: Result<Vec<Mx>, DnsError>) -> Result<Vec<String>, RouteError> {
        hosts("remote.example", answer, "mx.agents.example", 7)
    }

    fn status<T: std::fmt::Debug>(result: Result<T, RouteError>) -> &'static str {
        match result {
            Err(RouteError::Permanent { status, .. }) => status,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn preference_decides_and_chance_only_inside_one() {
        let answer = || mx(&[(20, "c"), (10, "a"), (10, "b"), (30, "d")]);
        let orders: std::collections::BTreeSet<Vec<String>> =
            (0..64).map(|seed| hosts("remote.example", answer(), "x", seed << 20).unwrap()).collect();
        assert_eq!(orders.len(), 2, "{orders:?}");
        assert!(orders.iter().all(|o| o[2..] == ["c", "d"]));
    }

    #[test]
    fn no_mx_null_mx_and_no_domain() {
        assert_eq!(route(Err(DnsError::Empty)).unwrap(), ["remote.example"]);
        assert_eq!(status(route(mx(&[(0, ".")]))), "5.1.10");
        assert_eq!(status(route(Err(DnsError::NotFound))), "5.1.2");
        assert!(matches!(route(Err(DnsError::Temporary("SERVFAIL".into()))), Err(RouteError::Temporary(_))));
        // A null MX beside real ones is a mistake, not a refusal.
        assert_eq!(route(mx(&[(0, "."), (10, "a")])).unwrap(), ["a"]);
    }

    #[test]
    fn an_mx_that_names_us_ends_the_list() {
        let list = mx(&[(10, "first"), (20, "MX.agents.example"), (20, "peer"), (30, "backup")]);
        assert_eq!(route(list).unwrap(), ["first"]);
        assert_eq!(status(route(mx(&[(10, "mx.agents.example"), (20, "backup")]))), "5.4.6");
    }

    /// Stalwart #1377 (MX `localhost`), and agents that choose recipients whose MX points into our network.
    #[test]
    fn no_mail_into_this_machine_or_its_network() {
        for ip in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "fe80::1",
            "fd00::1",
            "fec0::1",
            "ff02::1",
            "2002:7f00:1::",
            "2001::1",
            "::127.0.0.1",
            "198.41.0.4",
            "::ffff:198.41.0.4",
        ] {
            let answer = Ok(vec![ip.parse().unwrap()]);
            assert_eq!(status(vetted("h", answer, &network())), "5.4.4", "{ip}");
        }
        for ip in ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2a00:1450::1", "64:ff9b::808:808"] {
            assert!(vetted("h", Ok(vec![ip.parse().unwrap()]), &network()).is_ok(), "{ip}");
        }
    }

    #[test]
    fn tests_may_dial_loopback_but_never_themselves() {
        let network = Network { allow_private_addresses: true, ..network() };
        let elsewhere = Network { port: 2525, ..network.clone() };
        assert!(vetted("h", Ok(vec!["127.0.0.1".parse().unwrap()]), &elsewhere).is_ok());
        assert_eq!(status(vetted("h", Ok(vec!["127.0.0.1".parse().unwrap()]), &network)), "5.4.4");
    }

    #[test]
    fn one_good_address_is_enough_and_none_is_final() {
        let both = Ok(vec!["10.0.0.1".parse().unwrap(), "8.8.8.8".parse().unwrap()]);
        assert_eq!(vetted("h", both, &network()).unwrap(), ["8.8.8.8:25".parse().unwrap()]);
        assert_eq!(status(vetted("h", Err(DnsError::Empty), &network())), "5.4.4");
        assert!(matches!(
            vetted("h", Err(DnsError::Temporary("x".into())), &network()),
            Err(RouteError::Temporary(_))
        ));
    }

    #[test]
    fn both_families_are_among_the_first_two() {
        let list = |text: &[&str]| text.iter().map(|a| a.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let found = list(&["8.8.8.8:25", "8.8.4.4:25", "[2a00::1]:25"]);
        assert_eq!(by_family(found.clone(), true), list(&["[2a00::1]:25", "8.8.8.8:25", "8.8.4.4:25"]));
        assert_eq!(by_family(found, false), list(&["8.8.8.8:25", "[2a00::1]:25", "8.8.4.4:25"]));
    }

    #[test]
    fn literals_are_hosts() {
        assert_eq!(literal("[192.0.2.1]"), Some("192.0.2.1".parse().unwrap()));
        assert_eq!(literal("[IPv6:2001:db8::1]"), Some("2001:db8::1".parse().unwrap()));
        assert_eq!(literal("mx.example"), None);
    }
}
