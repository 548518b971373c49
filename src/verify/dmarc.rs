//! DMARC, RFC 9989: does the domain that the reader sees stand behind this message?
//!
//! Exactly one From address can be verified. With more, or none, the result is `fail` whatever passed, and
//! the strictest policy of all the named domains counts: a second From must gain a forger nothing.

use futures_util::future::join_all;
use mail_auth::dmarc::Policy;
use mail_auth::dmarc::verify::DmarcParameters;
use mail_auth::{AuthenticatedMessage, DkimOutput, DmarcResult, SpfOutput};

use super::verdict::{AuthResult, Dmarc, DmarcPolicy};
use crate::address::normalize_domain;
use crate::dns::Resolver;
use crate::screen::structure::Mailbox;

/// Author domains whose policy is looked up. No honest message has as many.
const MAX_DOMAINS: usize = 5;

/// What passed before, and for whom.
pub(crate) struct Evidence<'x> {
    pub spf: &'x SpfOutput,
    /// The domain that SPF spoke of.
    pub spf_domain: &'x str,
    pub dkim: &'x [DkimOutput<'x>],
}

/// The domain of an address, as DMARC compares it. None of two addresses that ran into each other, as in
/// `<a@x> b@y`: readers disagree on which of them it is.
pub(crate) fn domain(mailbox: &Mailbox) -> Option<String> {
    let (local, domain) = mailbox.address.rsplit_once('@')?;
    if local.is_empty() || (local.contains(['@', '<', '>']) && !local.starts_with('"')) {
        return None;
    }
    normalize_domain(domain).ok().filter(|domain| !domain.starts_with('['))
}

/// Every author domain once.
pub(crate) fn domains(from: &[Mailbox]) -> Vec<String> {
    let mut all: Vec<String> = from.iter().filter_map(domain).collect();
    all.sort_unstable();
    all.dedup();
    all
}

pub(crate) async fn check(dns: &Resolver, from: &[Mailbox], evidence: &Evidence<'_>) -> Dmarc {
    let named = from.first().and_then(domain);
    match (from, named) {
        ([], _) => failed(String::new(), DmarcPolicy::None, "no From address"),
        ([_], None) => failed(String::new(), DmarcPolicy::None, "the From address is not valid"),
        ([_], Some(domain)) => one(dns, domain, evidence).await,
        (_, named) => {
            let policy = strictest(dns, &domains(from), evidence).await;
            failed(named.unwrap_or_default(), policy, "more than one From address")
        }
    }
}

fn failed(domain: String, policy: DmarcPolicy, why: &str) -> Dmarc {
    Dmarc { result: AuthResult::Fail, domain, policy, detail: Some(why.to_owned()) }
}

/// The strictest policy of the domains that did not pass by themselves.
async fn strictest(dns: &Resolver, domains: &[String], evidence: &Evidence<'_>) -> DmarcPolicy {
    if domains.len() > MAX_DOMAINS {
        return DmarcPolicy::Reject;
    }
    let each = join_all(domains.iter().map(|domain| one(dns, domain.clone(), evidence))).await;
    let failing = each.iter().filter(|dmarc| dmarc.result != AuthResult::Pass);
    failing.map(|dmarc| dmarc.policy).max().unwrap_or(DmarcPolicy::None)
}

async fn one(dns: &Resolver, domain: String, evidence: &Evidence<'_>) -> Dmarc {
    // mail-auth reads nothing of the message but its author domain, and must see the one that we saw.
    let author = AuthenticatedMessage { from: vec![format!("from@{domain}")], ..Default::default() };
    let parameters = DmarcParameters::new(&author, evidence.dkim, evidence.spf_domain, evidence.spf);
    let output = dns.mail_auth().verify_dmarc(parameters).await;
    let policy = match output.policy() {
        Policy::Reject => DmarcPolicy::Reject,
        Policy::Quarantine => DmarcPolicy::Quarantine,
        Policy::None | Policy::Unspecified => DmarcPolicy::None,
    };
    let (result, detail) = match output.result() {
        DmarcResult::Pass if *output.dkim_result() == DmarcResult::Pass => {
            (AuthResult::Pass, Some("aligned DKIM".to_owned()))
        }
        DmarcResult::Pass => (AuthResult::Pass, Some("aligned SPF".to_owned())),
        DmarcResult::Fail(_) => (AuthResult::Fail, Some("no aligned SPF or DKIM pass".to_owned())),
        DmarcResult::TempError(error) => (AuthResult::TempError, Some(error.to_string())),
        DmarcResult::PermError(error) => (AuthResult::PermError, Some(error.to_string())),
        DmarcResult::None => (AuthResult::None, Some("no DMARC record".to_owned())),
    };
    Dmarc { result, domain, policy, detail }
}
