//! SPF, RFC 7208: may this address send for that domain?
//!
//! mail-auth evaluates; this file asks for the record first, because that tells apart what mail-auth does
//! not: two records are a permanent error (§4.5), and a dead DNS need not be asked twice.

use mail_auth::spf::verify::SpfParameters;
use mail_auth::{SpfOutput, SpfResult};

use super::verdict::{AuthResult, Spf};
use crate::address::{Address, normalize_domain};
use crate::dns::{DnsError, Resolver};
use crate::envelope::Peer;

/// The verdict, and mail-auth's form of it for DMARC.
pub(crate) struct SpfCheck {
    pub record: Spf,
    pub output: SpfOutput,
}

impl SpfCheck {
    pub fn new(domain: &str, result: SpfResult, detail: Option<&str>) -> SpfCheck {
        SpfCheck {
            record: Spf {
                result: word(result),
                domain: domain.to_owned(),
                detail: detail.map(str::to_owned),
            },
            output: SpfOutput::new(domain.to_owned()).with_result(result),
        }
    }
}

/// The domain that is asked: of MAIL FROM, or of the greeting for the null reverse-path (§2.4). `None` for
/// an address literal or nonsense.
pub(crate) fn identity(peer: &Peer, mail_from: Option<&Address>) -> Option<String> {
    let domain = match mail_from {
        Some(address) => Some(address.domain().to_owned()),
        None => normalize_domain(&peer.helo).ok(),
    };
    domain.filter(|domain| !domain.starts_with('[') && domain.contains('.'))
}

pub(crate) async fn check(
    dns: &Resolver,
    peer: &Peer,
    mail_from: Option<&Address>,
    hostname: &str,
) -> SpfCheck {
    let Some(domain) = identity(peer, mail_from) else {
        let asked = mail_from.map_or(peer.helo.as_str(), Address::domain);
        return SpfCheck::new(asked, SpfResult::None, Some("no domain to ask about"));
    };
    let none = || SpfCheck::new(&domain, SpfResult::None, Some("no SPF record"));
    match dns.txt(&domain).await {
        Ok(records) => {
            let mut records = records.iter().filter(|record| is_spf(record));
            let error = match (records.next(), records.next()) {
                (None, _) => return none(),
                (Some(one), None) if is_printable(one) => None,
                // RFC 7208 §3.1: US-ASCII; mail-auth reads over what is not.
                (Some(_), None) => Some("an SPF record that is not US-ASCII"),
                // RFC 7208 §4.5
                (Some(_), Some(_)) => Some("more than one SPF record"),
            };
            if error.is_some() {
                return SpfCheck::new(&domain, SpfResult::PermError, error);
            }
        }
        Err(DnsError::NotFound | DnsError::Empty) => return none(),
        Err(DnsError::Temporary(why)) => {
            return SpfCheck::new(&domain, SpfResult::TempError, Some(&why));
        }
    }
    let ip = peer.ip.to_canonical();
    let sender = mail_from.map(ToString::to_string);
    let parameters = match &sender {
        Some(sender) => SpfParameters::verify_mail_from(ip, &peer.helo, hostname, sender),
        None => SpfParameters::verify_ehlo(ip, &domain, hostname),
    };
    let output = dns.mail_auth().verify_spf(parameters).await;
    let record = Spf { result: word(output.result()), domain, detail: None };
    SpfCheck { record, output }
}

/// RFC 7208 §4.5: the version, then a space or the end.
fn is_spf(record: &str) -> bool {
    record.get(..6).is_some_and(|version| version.eq_ignore_ascii_case("v=spf1"))
        && record.get(6..).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
}

fn is_printable(record: &str) -> bool {
    record.bytes().all(|octet| octet.is_ascii_graphic() || octet == b' ')
}

fn word(result: SpfResult) -> AuthResult {
    match result {
        SpfResult::Pass => AuthResult::Pass,
        SpfResult::Fail => AuthResult::Fail,
        SpfResult::SoftFail => AuthResult::SoftFail,
        SpfResult::Neutral => AuthResult::Neutral,
        SpfResult::TempError => AuthResult::TempError,
        SpfResult::PermError => AuthResult::PermError,
        SpfResult::None => AuthResult::None,
    }
}
