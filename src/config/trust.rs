//! `[relay]`, the part about TLS: what is believed of other domains' promises.

use std::path::PathBuf;
use std::time::Duration;

use domain::dnssec::validator::anchor::TrustAnchors;

use super::settings::{Settings, Value};
use super::values;

/// How DNSSEC is known to hold, RFC 7672.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dane {
    Off,
    /// The resolver on this machine validates, and says so with the AD bit.
    TrustAd,
    /// We validate what any resolver says.
    Validate,
}

/// The DNSSEC root's keys, of 2017 and 2024 (IANA, https://data.iana.org/root-anchors/root-anchors.xml).
const ROOT: &str = "\
. IN DS 20326 8 2 E06D44B80B8F1D39A95C0B0D7C65D08458E880409BBC683457104237C7F8EC8D
. IN DS 38696 8 2 683D2D0ACB8C9B712A1948B27F741219298D0A450D612C483AF444A4C0FB2B16
";
/// Octets of a file of trust anchors: a key has a few hundred.
const LARGEST_ANCHORS: u64 = 64 * 1024;

#[derive(Debug, Clone)]
pub struct Trust {
    pub dane: Dane,
    /// What `validate` trusts: DS or DNSKEY records, as in a zone file.
    pub dnssec_anchors: String,
    /// How long mail waits for TLS to come back at a domain that had it; zero: not at all.
    pub downgrade_wait: Duration,
    /// Certificate authorities beside the system's, PEM.
    pub extra_roots: Option<PathBuf>,
    /// Where MTA-STS policies are fetched; not 443 only in tests.
    pub sts_port: u16,
}

pub(super) fn take(s: &mut Settings) -> Trust {
    let dane = [("off", Dane::Off), ("trust_ad", Dane::TrustAd), ("validate", Dane::Validate)];
    Trust {
        dane: s.take("relay.dane", |v| values::word(v, &dane), || Dane::Off),
        dnssec_anchors: s.take("relay.dnssec_anchors", anchors, || None).unwrap_or_else(|| ROOT.to_owned()),
        downgrade_wait: s.take("relay.downgrade_wait", values::duration, || Duration::from_secs(24 * 3600)),
        extra_roots: s.take("relay.extra_roots", super::path_optional, || None),
        sts_port: s.take("relay.sts_port", values::port, || 443),
    }
}

/// The records in a file, which must be such.
fn anchors(value: &Value) -> Result<Option<String>, String> {
    let Some(path) = super::path_optional(value)? else { return Ok(None) };
    let size = std::fs::metadata(&path).map_err(|error| format!("cannot be read: {error}"))?.len();
    if size > LARGEST_ANCHORS {
        return Err(format!("has {size} octets; trust anchors are a few lines"));
    }
    let text = std::fs::read_to_string(&path).map_err(|error| format!("cannot be read: {error}"))?;
    let no = || "holds no trust anchors; it takes DS or DNSKEY records, one on each line".to_owned();
    let is_anchor = |line: &str| {
        let line = line.split(';').next().unwrap_or_default();
        line.split_whitespace().skip(1).any(|word| matches!(word, "DS" | "DNSKEY"))
    };
    let records = |line: &&str| !line.trim_start().starts_with(';') && !line.trim().is_empty();
    let mut lines = text.lines().filter(records).peekable();
    if lines.peek().is_none() || !lines.all(is_anchor) || TrustAnchors::from_u8(text.as_bytes()).is_err() {
        return Err(no());
    }
    Ok(Some(text))
}
