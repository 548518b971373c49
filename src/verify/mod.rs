//! A message becomes a verdict.

mod fold;
mod stamp;
pub mod verdict;

use crate::dns::Resolver;
use crate::envelope::{Peer, ReversePath};
use crate::screen::structure::Mailbox;

pub use stamp::stamp;
pub use verdict::Verdict;

use verdict::{AuthResult, Dmarc, DmarcPolicy, Method, Source, Spf};

/// Checks where a message came from. Always answers, within ten seconds; what could not be found out is
/// recorded as `temperror`.
pub async fn verify(
    _dns: &Resolver,
    peer: &Peer,
    mail_from: &ReversePath,
    _hostname: &str,
    _raw: &[u8],
    from: &[Mailbox],
) -> Verdict {
    let none = || Method { result: AuthResult::None, detail: None };
    let spf_domain = mail_from.as_ref().map_or(peer.helo.as_str(), |a| a.domain()).to_owned();
    let from_domain = from.first().and_then(|m| m.address.rsplit_once('@')).map_or("", |(_, d)| d).to_owned();
    Verdict {
        source: Source::Smtp,
        spf: Spf { result: AuthResult::None, domain: spf_domain, detail: None },
        dkim: Vec::new(),
        dmarc: Dmarc {
            result: AuthResult::None,
            domain: from_domain,
            policy: DmarcPolicy::None,
            detail: None,
        },
        arc: none(),
        iprev: none(),
        verified_sender: None,
    }
}
