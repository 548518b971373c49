//! DMARC, RFC 9989: does the domain that the reader sees stand behind this message?
//!
//! Exactly one From address can be verified. With more, or none, the result is `fail` whatever passed, and
//! the strictest policy of all the named domains counts: a second From must gain a forger nothing.
//!
//! Ours and not mail-auth's: each question is counted, what is wrong in a record falls back to its default
//! (§4.7), and the policy domain, the test mode and the alignment of each method are kept for reports.

mod record;
mod tree;

use super::lookups::{Lookups, NoAnswer};
use super::verdict::{AuthResult, Dkim, Dmarc, DmarcPolicy, Spf};
use crate::address::normalize_domain;
use crate::dns::DnsError;
use crate::screen::structure::Mailbox;
use record::{Record, Strict};
use tree::Walk;

/// Author domains whose policy is looked up. No honest message has as many.
const MAX_DOMAINS: usize = 5;

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

/// What the policies of these authors may cost: a walk each, and a look whether the domain exists.
pub(crate) fn cost(authors: &[String]) -> usize {
    authors
        .iter()
        .take(MAX_DOMAINS)
        .map(|author| tree::cost(author) + 1)
        .sum::<usize>()
        .min(tree::MOST_QUESTIONS + 1)
}

/// The policies of the authors, found before anybody knows what has passed.
#[derive(Default)]
pub(crate) struct Policies<'d> {
    /// One for each author domain, in their order.
    found: Vec<Result<Policy<'d>, NoAnswer>>,
}

struct Policy<'d> {
    walk: Walk<'d>,
    /// The policy that applies, and the domain whose record says so. None: no record.
    applies: Option<Applies<'d>>,
}

#[derive(Clone)]
struct Applies<'d> {
    policy: DmarcPolicy,
    record: Record,
    at: &'d str,
}

/// What passed before, and for whom.
pub(crate) struct Evidence<'x> {
    pub spf: &'x Spf,
    pub dkim: &'x [Dkim],
}

/// Finds the policies of the authors.
pub(crate) async fn policies<'d>(lookups: &Lookups<'_>, authors: &'d [String]) -> Policies<'d> {
    let mut found = Vec::with_capacity(authors.len());
    for author in authors.iter().take(MAX_DOMAINS) {
        found.push(policy(lookups, author).await);
    }
    Policies { found }
}

/// The organization that a domain belongs to, by a walk of its own.
pub(crate) async fn organization(lookups: &Lookups<'_>, domain: &str) -> Result<String, DnsError> {
    let mut walk = Walk::new(domain);
    match walk.finish(lookups).await {
        Err(NoAnswer::Temporary(why)) => return Err(DnsError::Temporary(why)),
        Err(_) => return Err(DnsError::Temporary(super::lookups::SPENT.to_owned())),
        Ok(()) => {}
    }
    Ok(walk.organization().to_owned())
}

async fn policy<'d>(lookups: &Lookups<'_>, author: &'d str) -> Result<Policy<'d>, NoAnswer> {
    let mut walk = Walk::new(author);
    walk.begin(lookups).await?;
    if walk.own().is_none() {
        walk.finish(lookups).await?;
    }
    let applies = match walk.policy_record() {
        // §4.10.1: no DMARC processing.
        Some((_, record)) if record.useless => None,
        None => None,
        Some((at, record)) => {
            let policy = if at == author {
                record.own()
            } else if record.non_existent() != record.below() && !exists(lookups, author).await {
                record.non_existent()
            } else {
                record.below()
            };
            Some(Applies { policy: tested(policy, record.testing), record: record.clone(), at })
        }
    };
    Ok(Policy { walk, applies })
}

/// §3.2.13, RFC 8020: a domain that answers NXDOMAIN does not exist, nor anything below it.
async fn exists(lookups: &Lookups<'_>, domain: &str) -> bool {
    lookups.addresses(domain, std::net::Ipv4Addr::UNSPECIFIED.into()).await != Err(NoAnswer::NotFound)
}

/// §4.7, `t=y`: one step softer.
fn tested(policy: DmarcPolicy, testing: bool) -> DmarcPolicy {
    match policy {
        DmarcPolicy::Reject if testing => DmarcPolicy::Quarantine,
        DmarcPolicy::Quarantine if testing => DmarcPolicy::None,
        policy => policy,
    }
}

impl Policies<'_> {
    /// What there is when nobody answered.
    pub fn unknown(authors: &[String], why: &str) -> Self {
        let unknown = || Err(NoAnswer::Temporary(why.to_owned()));
        Policies { found: authors.iter().take(MAX_DOMAINS).map(|_| unknown()).collect() }
    }

    /// The verdict on a message from these addresses.
    pub async fn check(&mut self, lookups: &Lookups<'_>, from: &[Mailbox], evidence: &Evidence<'_>) -> Dmarc {
        let named = from.first().and_then(domain).unwrap_or_default();
        match (from, self.found.as_mut_slice()) {
            ([], _) => Dmarc::failed(named, DmarcPolicy::None, "no From address"),
            ([_], [one]) => judge(lookups, &named, one, evidence).await,
            ([_], _) => Dmarc::failed(named, DmarcPolicy::None, "the From address is not valid"),
            _ => {
                let policy = self.strictest(lookups, from, evidence).await;
                Dmarc::failed(named, policy, "more than one From address")
            }
        }
    }

    /// The strictest policy of the domains that did not pass by themselves.
    async fn strictest(
        &mut self,
        lookups: &Lookups<'_>,
        from: &[Mailbox],
        evidence: &Evidence<'_>,
    ) -> DmarcPolicy {
        if domains(from).len() > self.found.len() {
            return DmarcPolicy::Reject;
        }
        let mut strictest = DmarcPolicy::None;
        for policy in &mut self.found {
            if matches!(policy, Err(NoAnswer::Spent)) {
                return DmarcPolicy::Reject;
            }
            let dmarc = judge(lookups, "", policy, evidence).await;
            if dmarc.result != AuthResult::Pass {
                strictest = strictest.max(dmarc.policy);
            }
        }
        strictest
    }

    /// Whether a domain is the author's or of its organization, as far as that is known without asking.
    pub fn aligned(&self, domain: &str) -> bool {
        matches!(self.found.as_slice(), [Ok(policy)] if policy.walk.seems_to_own(domain))
    }
}

async fn judge(
    lookups: &Lookups<'_>,
    author: &str,
    policy: &mut Result<Policy<'_>, NoAnswer>,
    evidence: &Evidence<'_>,
) -> Dmarc {
    let author = author.to_owned();
    let policy = match policy {
        Ok(policy) => policy,
        Err(NoAnswer::Temporary(why)) => return Dmarc::temporary(author, why),
        Err(_) => return Dmarc::temporary(author, "the policy could not be looked up"),
    };
    let Some(applies) = policy.applies.clone() else {
        let none = Dmarc::failed(author, DmarcPolicy::None, "no DMARC record");
        return Dmarc { result: AuthResult::None, ..none };
    };
    let (strict_dkim, strict_spf) = (applies.record.strict_dkim, applies.record.strict_spf);
    let signatures = evidence.dkim.iter().map(Dkim::identifier);
    let dkim = align(lookups, &mut policy.walk, strict_dkim, signatures).await;
    // What is only for the report is not worth a question.
    let spf = match evidence.spf.identifier() {
        (AuthResult::Pass, domain, _) if dkim == Alignment::Passes => {
            let same = domain == policy.walk.domain || !strict_spf.0 && policy.walk.seems_to_own(domain);
            if same { Alignment::Passes } else { Alignment::Fails }
        }
        identifier => align(lookups, &mut policy.walk, strict_spf, [identifier]).await,
    };
    let (result, detail) = match (&dkim, &spf) {
        (Alignment::Passes, _) => (AuthResult::Pass, "aligned DKIM".to_owned()),
        (_, Alignment::Passes) => (AuthResult::Pass, "aligned SPF".to_owned()),
        (Alignment::Unknown(why), _) | (_, Alignment::Unknown(why)) => (AuthResult::TempError, why.clone()),
        _ => (AuthResult::Fail, "no aligned SPF or DKIM pass".to_owned()),
    };
    Dmarc {
        result,
        domain: author,
        policy: applies.policy,
        detail: Some(detail),
        policy_domain: Some(applies.at.to_owned()),
        testing: applies.record.testing,
        dkim_aligned: dkim == Alignment::Passes,
        spf_aligned: spf == Alignment::Passes,
        reports_wanted: applies.record.reports_wanted,
        overridden: None,
    }
}

/// A domain that a method speaks of: what it found, and the reason where nothing could be found out.
type Identifier<'x> = (AuthResult, &'x str, Option<&'x str>);

impl Spf {
    fn identifier(&self) -> Identifier<'_> {
        (self.result, &self.domain, self.detail.as_deref())
    }
}

impl Dkim {
    fn identifier(&self) -> Identifier<'_> {
        (self.result, &self.domain, self.detail.as_deref())
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Alignment {
    Passes,
    /// Something aligned might have passed (§5.3.6).
    Unknown(String),
    Fails,
}

/// §4.10.2: the same domain, or in relaxed mode the same organization. What needs no question comes first.
async fn align<'x>(
    lookups: &Lookups<'_>,
    walk: &mut Walk<'_>,
    strict: Strict,
    identifiers: impl IntoIterator<Item = Identifier<'x>>,
) -> Alignment {
    let relevant = |(result, ..): &Identifier<'_>| matches!(result, AuthResult::Pass | AuthResult::TempError);
    let mut all: Vec<Identifier<'x>> = identifiers.into_iter().filter(relevant).collect();
    all.sort_by_key(|(result, domain, _)| (*result != AuthResult::Pass, *domain != walk.domain));
    let mut unknown = None;
    for (result, domain, why) in all {
        let aligned = match domain == walk.domain {
            true => Ok(true),
            false if strict.0 || !shares_top(domain, walk.domain) => Ok(false),
            false => organization_owns(lookups, walk, domain).await,
        };
        match (aligned, result) {
            (Ok(true), AuthResult::Pass) => return Alignment::Passes,
            (Ok(true), _) => unknown = unknown.or(why.map(str::to_owned)),
            (Err(NoAnswer::Temporary(why)), _) => unknown = unknown.or(Some(why)),
            // Not known to be aligned is not aligned: else a message could buy that with useless questions.
            _ => {}
        }
    }
    unknown.map_or(Alignment::Fails, Alignment::Unknown)
}

async fn organization_owns(
    lookups: &Lookups<'_>,
    walk: &mut Walk<'_>,
    domain: &str,
) -> Result<bool, NoAnswer> {
    walk.finish(lookups).await?;
    walk.owns(lookups, domain).await
}

/// Domains without a common label at their end belong to no common organization.
fn shares_top(a: &str, b: &str) -> bool {
    a.rsplit('.').next() == b.rsplit('.').next()
}

impl Dmarc {
    pub(crate) fn failed(domain: String, policy: DmarcPolicy, why: &str) -> Dmarc {
        Dmarc { result: AuthResult::Fail, policy, detail: Some(why.to_owned()), ..Dmarc::none(domain) }
    }

    pub(crate) fn temporary(domain: String, why: &str) -> Dmarc {
        Dmarc { result: AuthResult::TempError, ..Dmarc::failed(domain, DmarcPolicy::None, why) }
    }
}

/// Whether a text is a DMARC record that says something.
pub(crate) fn is_record(text: &str) -> bool {
    record::Record::parse(text).is_some_and(|record| !record.useless)
}

/// Whether a record stands at the domain, or above it where it counts for it.
pub(crate) async fn covered(lookups: &Lookups<'_>, domain: &str) -> Result<bool, String> {
    let mut walk = Walk::new(domain);
    match walk.finish(lookups).await {
        Ok(()) => Ok(walk.policy_record().is_some()),
        Err(NoAnswer::Temporary(why)) => Err(why),
        Err(_) => Err("the DNS did not answer".into()),
    }
}
