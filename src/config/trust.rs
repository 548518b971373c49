//! `[relay]`, the part about TLS: what is believed of other domains' promises.

use std::path::PathBuf;
use std::time::Duration;

use super::settings::Settings;
use super::values;

/// How DNSSEC is known to hold, RFC 7672.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dane {
    Off,
    /// The resolver on this machine validates, and says so with the AD bit.
    TrustAd,
}

#[derive(Debug, Clone)]
pub struct Trust {
    pub dane: Dane,
    /// How long mail waits for TLS to come back at a domain that had it; zero: not at all.
    pub downgrade_wait: Duration,
    /// Certificate authorities beside the system's, PEM.
    pub extra_roots: Option<PathBuf>,
    /// Where MTA-STS policies are fetched; not 443 only in tests.
    pub sts_port: u16,
}

pub(super) fn take(s: &mut Settings) -> Trust {
    let dane = [("off", Dane::Off), ("trust_ad", Dane::TrustAd)];
    Trust {
        dane: s.take("relay.dane", |v| values::word(v, &dane), || Dane::Off),
        downgrade_wait: s.take("relay.downgrade_wait", values::duration, || Duration::from_secs(24 * 3600)),
        extra_roots: s.take("relay.extra_roots", super::path_optional, || None),
        sts_port: s.take("relay.sts_port", values::port, || 443),
    }
}
