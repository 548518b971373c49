//! Where reports about a domain go: the `rua` of its record, and whether each destination wants them.
//!
//! The URI syntax and the records are parsed purely; `dmarc` and `tls` ask the DNS. At most `MAX_DESTINATIONS`, `mailto`
//! for DMARC, `mailto` and `https` for TLS.
//!
//! RFC 9989 §4.7 (`rua`), RFC 9990 §3.5 (size limits), §4 (external destinations), RFC 8460 §3.

use percent_encoding::percent_decode_str;

use crate::address::Address;
use crate::dns::{DnsError, Resolver};
use crate::verify;

/// Destinations of one report that are served; RFC 9989 §4.7 asks for two at least.
const MAX_DESTINATIONS: usize = 4;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Destination {
    Mail { to: Address, most: Option<u64> },
    Https(String),
}

/// One `rua` value, in its order; what is no destination is left out.
pub(super) fn parse(list: &str) -> Vec<Destination> {
    list.split(',').filter_map(|uri| one(uri.trim())).take(MAX_DESTINATIONS).collect()
}

fn one(uri: &str) -> Option<Destination> {
    let is = |scheme: &str| uri.get(..scheme.len()).is_some_and(|head| head.eq_ignore_ascii_case(scheme));
    if is("https://") {
        return Some(Destination::Https(uri.to_owned()));
    }
    if !is("mailto:") {
        return None;
    }
    let rest = uri.get("mailto:".len()..)?;
    // A `!` in an address is written `%21`, so that this one begins the size.
    let (address, most) = match rest.split_once('!') {
        Some((address, size)) => (address, Some(octets(size)?)),
        None => (rest, None),
    };
    let address = address.split('?').next().unwrap_or_default();
    let to = percent_decode_str(address).decode_utf8().ok()?.parse().ok()?;
    Some(Destination::Mail { to, most })
}

/// `10m`: k, m, g and t are powers of 1,024.
fn octets(size: &str) -> Option<u64> {
    let digits = size.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let power = match size.get(digits.len()..)?.to_ascii_lowercase().as_str() {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1024_u64.checked_pow(power)?)
}

/// The tags of a record, lower-case names first seen; `None` unless it begins with `v=` that version.
pub(super) fn tags(record: &str, version: &str) -> Option<Vec<(String, String)>> {
    let mut tags = record
        .split(';')
        .filter_map(|tag| tag.split_once('='))
        .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()));
    tags.next().filter(|(name, value)| name == "v" && value == version)?;
    Some(tags.collect())
}

pub(super) fn value<'t>(tags: &'t [(String, String)], name: &str) -> Option<&'t str> {
    tags.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

/// The one record of that version at a name.
pub(super) async fn record(
    dns: &Resolver,
    name: &str,
    version: &str,
) -> Result<Option<Vec<(String, String)>>, DnsError> {
    let texts = match dns.txt(name).await {
        Ok(texts) => texts,
        Err(error) if error.is_temporary() => return Err(error),
        Err(_) => return Ok(None),
    };
    let mut records = texts.iter().filter_map(|text| tags(text, version));
    let first = records.next();
    // RFC 9989 §4.10, RFC 8460 §3: several are none.
    Ok(first.filter(|_| records.next().is_none()))
}

/// Whether the holder of `host` wants DMARC reports about `domain`, and where: RFC 9990 §4. `Err` where that cannot
/// be found out now, `Ok(None)` where it does not.
pub(super) async fn permitted(
    dns: &Resolver,
    domain: &str,
    destination: Destination,
) -> Result<Option<Destination>, DnsError> {
    let Destination::Mail { to, .. } = &destination else { return Ok(None) };
    let host = to.domain();
    if host == domain {
        return Ok(Some(destination));
    }
    let ours = verify::organization(dns, domain).await?;
    if ours == verify::organization(dns, host).await? {
        return Ok(Some(destination));
    }
    let name = format!("{domain}._report._dmarc.{host}");
    // §4, step 4: longer than a name can be.
    if name.len() > 253 {
        return Ok(None);
    }
    let texts = match dns.txt(&name).await {
        Ok(texts) => texts,
        Err(error) if error.is_temporary() => return Err(error),
        Err(_) => return Ok(None),
    };
    let records: Vec<_> = texts.iter().filter_map(|text| tags(text, "DMARC1")).collect();
    if records.is_empty() {
        return Ok(None);
    }
    let Some(instead) = records.iter().find_map(|tags| value(tags, "rua")) else {
        return Ok(Some(destination));
    };
    // §4, step 9: the overriding address must be at the same host, or nothing is sent to either.
    let same_host =
        |found: &Destination| matches!(found, Destination::Mail { to, .. } if to.domain() == host);
    Ok(parse(instead).into_iter().next().filter(same_host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rua_may_hold() {
        let mail = |to: &str, most| Destination::Mail { to: to.parse().unwrap(), most };
        assert_eq!(
            parse(
                "mailto:a@b.example!10m, MAILTO:c%21d@b.example?subject=x ,ftp://x, mailto:nobody,mailto:e@f.example!9z"
            ),
            [mail("a@b.example", Some(10 * 1024 * 1024)), mail("c!d@b.example", None)]
        );
        assert_eq!(parse("https://b.example/r"), [Destination::Https("https://b.example/r".to_owned())]);
        assert_eq!(octets("99999999999t"), None);
        assert_eq!(parse(&"mailto:a@b.example,".repeat(50)).len(), MAX_DESTINATIONS);
    }

    #[test]
    fn a_record_begins_with_its_version() {
        assert!(tags("v=DMARC1", "DMARC1").is_some() && tags("v=DMARC1;", "DMARC1").is_some());
        assert!(tags("p=none; v=DMARC1", "DMARC1").is_none() && tags("v=DMARC2", "DMARC1").is_none());
        let found = tags(" v = TLSRPTv1 ; RUA = mailto:a@b ; rua=x", "TLSRPTv1").unwrap();
        assert_eq!(value(&found, "rua"), Some("mailto:a@b"));
    }
}
