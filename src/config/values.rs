//! The values that settings can have: sizes, durations, addresses to listen on, networks, names.
//!
//! Each parser takes the value as written and answers with the value or with words that can follow the
//! name of the key: "`smtp.max_message_size`: `25 potatoes` is no size; …".

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::settings::Value;
use crate::address::normalize_domain;

/// A network in CIDR form, such as `10.0.0.0/8`; a single address is a network of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// One of a list in the configuration.
    #[cfg(test)]
    pub(crate) fn parse(text: &str) -> Result<Network, String> {
        network(text)
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        // A dual-stack listener reports IPv4 peers as ::ffff:192.0.2.1.
        match (self.address, ip.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                let shift = 32u32.saturating_sub(self.prefix.into());
                u32::from(net).checked_shr(shift) == u32::from(ip).checked_shr(shift)
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => {
                let shift = 128u32.saturating_sub(self.prefix.into());
                u128::from(net).checked_shr(shift) == u128::from(ip).checked_shr(shift)
            }
            _ => false,
        }
    }
}

pub(super) fn text(value: &Value) -> Result<String, String> {
    value.text().map(str::to_owned)
}

pub(super) fn boolean(value: &Value) -> Result<bool, String> {
    match value {
        Value::Boolean(yes) => Ok(*yes),
        // The environment has only texts.
        Value::Text(text) if text == "true" => Ok(true),
        Value::Text(text) if text == "false" => Ok(false),
        _ => Err("takes true or false".into()),
    }
}

/// A host name with at least two labels: what RFC 5321 §4.1.1.1 wants in EHLO.
pub(super) fn hostname(value: &Value) -> Result<String, String> {
    let name = domain(value.text()?)?;
    if name.parse::<IpAddr>().is_ok() || name.starts_with('[') {
        return Err(format!("`{name}` is an address; other servers want a name here, like mx.example.org"));
    }
    Ok(name)
}

/// Domains, each once; none is fine.
pub(super) fn optional_domains(value: &Value) -> Result<Vec<String>, String> {
    let mut domains: Vec<String> = vec![];
    for name in value.list()? {
        let name = domain(&name)?;
        if domains.contains(&name) {
            return Err(format!("names {name} twice"));
        }
        domains.push(name);
    }
    Ok(domains)
}

pub(super) fn domains(value: &Value) -> Result<Vec<String>, String> {
    let domains = optional_domains(value)?;
    match domains.is_empty() {
        true => Err("is empty; at least one domain is needed, like [\"agents.example.org\"]".into()),
        false => Ok(domains),
    }
}

fn domain(name: &str) -> Result<String, String> {
    if name.contains('@') {
        return Err(format!("`{name}` is a mail address; only the part after the @ is wanted"));
    }
    if name.contains("//") || name.contains(':') {
        return Err(format!("`{name}` is no domain name; leave out the scheme and the port"));
    }
    let normal = normalize_domain(name)
        .map_err(|_| format!("`{name}` is no domain name; it takes something like agents.example.org"))?;
    match normal.contains('.') {
        true => Ok(normal),
        false => Err(format!("`{name}` is a single label; a full name with a dot is needed")),
    }
}

/// Addresses to listen on: one, or a list, or none (`""` or `[]`).
pub(super) fn listen(value: &Value) -> Result<Vec<SocketAddr>, String> {
    let mut addresses: Vec<SocketAddr> = vec![];
    for text in value.list()? {
        let address = socket_address(&text)?;
        if address.port() != 0 && addresses.contains(&address) {
            return Err(format!("names {address} twice"));
        }
        addresses.push(address);
    }
    Ok(addresses)
}

fn socket_address(text: &str) -> Result<SocketAddr, String> {
    if let Some(port) = text.strip_prefix("localhost:") {
        return socket_address(&format!("127.0.0.1:{port}"));
    }
    text.parse().map_err(|_| {
        format!("`{text}` is no address with a port; it takes 127.0.0.1:2525, or [::]:25 for every interface")
    })
}

/// Name servers: the port is 53 unless given.
pub(super) fn name_servers(value: &Value) -> Result<Vec<SocketAddr>, String> {
    let server = |text: &String| match text.parse::<IpAddr>() {
        Ok(ip) => Ok(SocketAddr::new(ip, 53)),
        Err(_) => text.parse::<SocketAddr>().map_err(|_| {
            format!("`{text}` is no name server; it takes an IP address such as 9.9.9.9 or 127.0.0.1:5353")
        }),
    };
    value.list()?.iter().map(server).collect()
}

pub(super) fn networks(value: &Value) -> Result<Vec<Network>, String> {
    value.list()?.iter().map(|text| network(text)).collect()
}

fn network(text: &str) -> Result<Network, String> {
    let no = || format!("`{text}` is no address or network; it takes 10.0.0.7 or 10.0.0.0/8");
    let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
    let address: IpAddr = address.parse().map_err(|_| no())?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        None => longest,
        Some(prefix) => prefix.parse().ok().filter(|p| *p <= longest).ok_or_else(no)?,
    };
    Ok(Network { address, prefix })
}

/// 127.0.0.0/8 and ::1.
pub(super) fn loopback() -> Vec<Network> {
    let network = |address: IpAddr, prefix| Network { address, prefix };
    vec![network([127, 0, 0, 0].into(), 8), network(std::net::Ipv6Addr::LOCALHOST.into(), 128)]
}

/// Names of DNS zones, each once.
pub(super) fn zones(value: &Value) -> Result<Vec<String>, String> {
    let mut zones: Vec<String> = vec![];
    for name in value.list()? {
        let zone = domain(name.trim_end_matches('.'))?;
        if !zones.contains(&zone) {
            zones.push(zone);
        }
    }
    Ok(zones)
}

/// A whole number from `least` to `most`.
pub(super) fn count(value: &Value, least: u64, most: u64) -> Result<u32, String> {
    let text = value.text()?;
    let number = text.replace('_', "").parse::<u64>().ok().filter(|n| (least..=most).contains(n));
    let number = number.and_then(|n| u32::try_from(n).ok());
    number.ok_or_else(|| format!("`{text}` is no number from {least} to {most}"))
}

/// One of some words.
pub(super) fn word<T: Copy>(value: &Value, words: &[(&str, T)]) -> Result<T, String> {
    let text = value.text()?;
    words.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning).ok_or_else(|| {
        let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        format!("`{text}` is none of {}", all.join(", "))
    })
}

pub(super) fn port(value: &Value) -> Result<u16, String> {
    let text = value.text()?;
    text.parse::<u16>()
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| format!("`{text}` is no port; it takes a number from 1 to 65535"))
}

/// `"25MiB"`, `"512 kB"`, or bytes as a number.
pub(super) fn size(value: &Value) -> Result<u64, String> {
    let text = value.text()?;
    let no = || format!("`{text}` is no size; it takes a number with B, KiB, MiB, GiB, kB, MB or GB");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        _ => return Err(no()),
    };
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).ok_or_else(no)
}

pub(super) fn duration(value: &Value) -> Result<Duration, String> {
    duration_text(value.text()?)
}

pub(super) fn durations(value: &Value) -> Result<Vec<Duration>, String> {
    value.list()?.iter().map(|text| duration_text(text)).collect()
}

/// `"5m"`, `"1h30m"`, `"500ms"`. A bare number is refused: is it seconds or minutes?
fn duration_text(text: &str) -> Result<Duration, String> {
    let no =
        || format!("`{text}` is no duration; it takes a number with ms, s, m, h or d, like 90s or 1h30m");
    let mut rest = text.trim();
    let mut total = 0u64;
    if rest.is_empty() {
        return Err(no());
    }
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, tail) = rest.split_at(digits);
        let letters = tail.len() - tail.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let (unit, tail) = tail.split_at(letters);
        let millis: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(no()),
        };
        let part = number.parse::<u64>().ok().and_then(|n| n.checked_mul(millis)).ok_or_else(no)?;
        total = total.checked_add(part).ok_or_else(no)?;
        rest = tail.trim_start();
    }
    Ok(Duration::from_millis(total))
}

/// An http or https address without a path, query or fragment, and without the slash at its end.
pub(super) fn public_url(value: &Value) -> Result<String, String> {
    let text = value.text()?;
    let no = |why: &str| format!("`{text}` {why}; it takes something like https://mail.example.org");
    let url = reqwest::Url::parse(text).map_err(|error| no(&format!("is no URL ({error})")))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(no("is no http or https URL"));
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
        return Err(no("has a path, a query or a user in it"));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// A mail address that must only look like one.
pub(super) fn address(value: &Value) -> Result<Option<String>, String> {
    let text = value.text()?;
    match text {
        "" => Ok(None),
        text => text
            .parse::<crate::address::Address>()
            .map(|address| Some(address.to_string()))
            .map_err(|error| format!("`{text}` is no mail address: {error}")),
    }
}

pub(super) fn https(text: &str) -> Result<String, String> {
    match reqwest::Url::parse(text) {
        Ok(url) if url.scheme() == "https" => Ok(url.into()),
        _ => Err(format!("`{text}` is no https URL")),
    }
}
