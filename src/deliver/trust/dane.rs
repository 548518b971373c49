//! DANE for SMTP: which TLSA records count, and whether a certificate is what they say (RFC 7672, RFC 6698).

use hickory_resolver::proto::rr::rdata::TLSA;
use rustls::pki_types::CertificateDer;
use rustls::server::ParsedCertificate;
use sha2::{Digest, Sha256, Sha512};

/// Records that one host may have: more are left unread.
const MOST_RECORDS: usize = 50;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Usage {
    /// 2: a certificate above the host's own.
    Anchor,
    /// 3: the host's own.
    Host,
}

/// A usable TLSA record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Association {
    pub(crate) usage: Usage,
    /// 0: the certificate; 1: its key.
    pub(crate) selector: u8,
    /// 0: as it is; 1: SHA-256; 2: SHA-512.
    pub(crate) matching: u8,
    pub(crate) data: Vec<u8>,
}

/// The usable TLSA records of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Associations {
    /// The name that has them, which is the one in the certificate and in SNI too (RFC 7672 §2.2.3, §8.1).
    pub(crate) base: String,
    pub(crate) records: Vec<Association>,
}

/// RFC 7672 §3.1.3: usages 0 and 1 are not for SMTP; and what we do not know is not usable.
pub(crate) fn usable(records: &[TLSA]) -> Vec<Association> {
    let read = |record: &TLSA| {
        let usage = match u8::from(record.cert_usage) {
            2 => Usage::Anchor,
            3 => Usage::Host,
            _ => return None,
        };
        let (selector, matching) = (u8::from(record.selector), u8::from(record.matching));
        let length = record.cert_data.len();
        let fits = selector <= 1
            && match matching {
                0 => length > 0,
                1 => length == 32,
                2 => length == 64,
                _ => false,
            };
        fits.then(|| Association { usage, selector, matching, data: record.cert_data.clone() })
    };
    records.iter().take(MOST_RECORDS).filter_map(read).collect()
}

impl Association {
    pub(crate) fn matches(&self, certificate: &CertificateDer<'_>) -> bool {
        let key;
        let octets: &[u8] = if self.selector == 0 {
            certificate.as_ref()
        } else {
            let Ok(parsed) = ParsedCertificate::try_from(certificate) else { return false };
            key = parsed.subject_public_key_info();
            key.as_ref()
        };
        match self.matching {
            0 => octets == self.data,
            1 => Sha256::digest(octets).as_slice() == self.data,
            2 => Sha512::digest(octets).as_slice() == self.data,
            _ => false,
        }
    }

    /// As in a zone file and in reports: `3 1 1 0123…`.
    pub(crate) fn text(&self) -> String {
        use std::fmt::Write as _;
        let usage = if self.usage == Usage::Host { 3 } else { 2 };
        let start = format!("{usage} {} {} ", self.selector, self.matching);
        self.data.iter().take(128).fold(start, |mut text, octet| {
            let _ = write!(text, "{octet:02x}");
            text
        })
    }
}
