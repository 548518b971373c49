//! A message becomes a verdict: SPF (RFC 7208), DKIM (RFC 6376), DMARC (RFC 9989), ARC (RFC 8617) and iprev
//! (RFC 8601 §3). Canonicalization and cryptography are mail-auth's, the rest is here.
//!
//! Promises: always an answer, within `DEADLINE`, whatever the message and the DNS do; what could not be
//! found out is `temperror`; `verified_sender` only for exactly one From address and an aligned pass.
//! The work per message is bounded: 20 DNS lookups over all methods (`lookups`), 5 signatures, 10 ARC sets,
//! SPF's own limits (RFC 7208 §4.6.4).
//!
//! Never: a decision. What a verdict leads to is decided where mail is received.

mod arc;
mod dkim;
mod dmarc;
mod fold;
mod iprev;
mod key;
mod lookups;
mod rescue;
mod signed;
mod spf;
mod stamp;
mod tags;
pub mod verdict;

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{Instant, timeout, timeout_at};

use crate::address::Address;
use crate::clock::Millis;
use crate::dns::{DnsError, Resolver};
use crate::envelope::{Peer, ReversePath};
use crate::screen::structure::Mailbox;
use arc::Chain;
use dmarc::{Evidence, Policies};
use lookups::Lookups;
use signed::Message;

pub use stamp::{stamp, stamp_into};
pub use verdict::Verdict;

use verdict::{ArcChain, AuthResult, Dkim, Dmarc, DmarcPolicy, Method, OverrideReason};
use verdict::{PolicyOverride, Source, Spf};

/// The whole check. The client waits for our reply to DATA meanwhile, and is not obliged to wait longer than
/// ten minutes (RFC 5321 §4.5.3.2.6).
const DEADLINE: Duration = Duration::from_secs(10);
/// SPF, DKIM, iprev and the authors' policies, which run side by side; the rest is for what they lead to.
const METHODS: Duration = Duration::from_secs(7);
const LATE: &str = "no answer in time";

/// What is asked: where did this message come from?
pub struct Question<'a> {
    pub peer: &'a Peer,
    pub mail_from: &'a ReversePath,
    /// Our own name.
    pub hostname: &'a str,
    /// Domains whose ARC seals may turn a DMARC policy off (`verify.arc_forwarders`).
    pub forwarders: &'a [String],
    pub now: Millis,
    pub raw: &'a [u8],
    /// The From addresses of the message, all of them.
    pub from: &'a [Mailbox],
}

/// The organizational domain of a domain (RFC 9989 §4.10.2), for who may ask for reports about whom.
pub(crate) async fn organization(dns: &Resolver, domain: &str) -> Result<String, DnsError> {
    dmarc::organization(&Lookups::new(dns), domain).await
}

/// Checks where a message came from.
pub async fn verify(dns: &Resolver, question: Question<'_>) -> Verdict {
    let started = Instant::now();
    // A bug in a parser of hostile text costs the verdict of that text, not the session.
    match AssertUnwindSafe(question.run(dns, started)).catch_unwind().await {
        Ok(verdict) => verdict,
        Err(_) => question.unknown("the verifier failed on this message"),
    }
}

impl Question<'_> {
    async fn run(&self, dns: &Resolver, started: Instant) -> Verdict {
        let message = Message::new(self.raw);
        let authors = dmarc::domains(self.from);
        let signatures = dkim::read(&message, &authors, self.now);
        let candidates = &signatures.candidates;
        let lookups = Lookups::new(dns);
        let keys = lookups.share(candidates.len());
        let reverse = lookups.share(iprev::COST);
        let policy = lookups.share(dmarc::cost(&authors));
        let (spf, mut dkim, iprev, policies) = tokio::join!(
            self.spf(&lookups),
            self.dkim(keys, &message, candidates),
            self.iprev(reverse),
            self.policies(policy, &authors),
        );
        dkim.extend(signatures.refused);
        let left = started + DEADLINE;
        let evidence = Evidence { spf: &spf, dkim: &dkim };
        // One after the other, since they share what lookups are left.
        let dmarc = timeout_at(left, self.dmarc(&lookups, policies, &evidence)).await;
        let chain = timeout_at(left, arc::check(&lookups, &message, self.now)).await;
        let author = || authors.first().cloned().unwrap_or_default();
        let (mut dmarc, policies) =
            dmarc.unwrap_or_else(|_| (Dmarc::temporary(author(), LATE), Policies::default()));
        let chain = chain.unwrap_or_else(|_| Chain::without_sets(AuthResult::TempError, Some(LATE)));
        self.rescue(&mut dmarc, &policies, &chain);
        Verdict {
            source: Source::Smtp,
            spf,
            verified_sender: self.verified(&dmarc),
            dkim,
            dmarc,
            arc: chain.record,
            iprev,
        }
    }

    async fn spf(&self, lookups: &Lookups<'_>) -> Spf {
        let mail_from = self.mail_from.as_ref();
        let plain = |result, domain: &str, detail: &str| Spf {
            result,
            domain: domain.to_owned(),
            detail: Some(detail.to_owned()),
            explanation: None,
        };
        let Some(domain) = spf::identity(self.peer, mail_from) else {
            let asked = mail_from.map_or(self.peer.helo.as_str(), Address::domain);
            return plain(AuthResult::None, asked, "no domain to ask about");
        };
        let question = spf::Question {
            ip: self.peer.ip.to_canonical(),
            helo: &self.peer.helo,
            local: mail_from.map_or("", Address::local),
            domain: &domain,
            hostname: self.hostname,
            now: self.now,
        };
        let check = timeout(METHODS, spf::check(lookups, &question)).await;
        check.unwrap_or_else(|_| plain(AuthResult::TempError, &domain, LATE))
    }

    // These own their share of the lookups, so that what is left of it goes back as soon as they are done.

    async fn dkim(
        &self,
        lookups: Lookups<'_>,
        message: &Message<'_>,
        candidates: &[dkim::Candidate<'_>],
    ) -> Vec<Dkim> {
        let check = timeout(METHODS, dkim::check(&lookups, message, candidates)).await;
        check.unwrap_or_else(|_| candidates.iter().map(dkim::Candidate::late).collect())
    }

    async fn iprev(&self, lookups: Lookups<'_>) -> Method {
        let check = timeout(METHODS, iprev::check(&lookups, self.peer.ip.to_canonical())).await;
        check.unwrap_or_else(|_| Method { result: AuthResult::TempError, detail: Some(LATE.to_owned()) })
    }

    async fn policies<'d>(&self, lookups: Lookups<'_>, authors: &'d [String]) -> Policies<'d> {
        let found = timeout(METHODS, dmarc::policies(&lookups, authors)).await;
        found.unwrap_or_else(|_| Policies::unknown(authors, LATE))
    }

    async fn dmarc<'d>(
        &self,
        lookups: &Lookups<'_>,
        mut policies: Policies<'d>,
        evidence: &Evidence<'_>,
    ) -> (Dmarc, Policies<'d>) {
        let dmarc = policies.check(lookups, self.from, evidence).await;
        (dmarc, policies)
    }

    /// What a named forwarder has sealed can turn the policy off, and nothing else.
    fn rescue(&self, dmarc: &mut Dmarc, policies: &Policies<'_>, chain: &Chain<'_>) {
        if dmarc.result != AuthResult::Fail || dmarc.policy == DmarcPolicy::None || self.from.len() != 1 {
            return;
        }
        let aligned = |domain: &str| policies.aligned(domain);
        let Some(by) = rescue::by_forwarder(chain, self.forwarders, aligned, &dmarc.domain) else { return };
        let policy = std::mem::replace(&mut dmarc.policy, DmarcPolicy::None);
        dmarc.detail =
            Some(format!("no aligned pass, but {by} saw one before it forwarded the message (ARC)"));
        dmarc.overridden = Some(PolicyOverride { reason: OverrideReason::TrustedForwarder, by, policy });
    }

    fn verified(&self, dmarc: &Dmarc) -> Option<Address> {
        match self.from {
            [only] if dmarc.result == AuthResult::Pass => only.address.parse().ok(),
            _ => None,
        }
    }

    /// The verdict when nothing could be found out.
    fn unknown(&self, why: &str) -> Verdict {
        let detail = || Some(why.to_owned());
        let domain = spf::identity(self.peer, self.mail_from.as_ref()).unwrap_or_default();
        let author = dmarc::domains(self.from).into_iter().next().unwrap_or_default();
        Verdict {
            source: Source::Smtp,
            spf: Spf { result: AuthResult::PermError, domain, detail: detail(), explanation: None },
            dkim: Vec::new(),
            dmarc: Dmarc::failed(author, DmarcPolicy::None, why),
            arc: ArcChain { result: AuthResult::None, detail: None, chain: Vec::new() },
            iprev: Method { result: AuthResult::None, detail: None },
            verified_sender: None,
        }
    }
}

/// What SPF says to mail of `domain` from `ip`: for those who check records of their own.
pub(crate) async fn spf_of(dns: &Resolver, ip: std::net::IpAddr, domain: &str, helo: &str) -> verdict::Spf {
    let lookups = Lookups::new(dns);
    let question = spf::Question { ip, helo, local: "postmaster", domain, hostname: helo, now: 0 };
    spf::check(&lookups, &question).await
}

/// Whether a text is a DMARC record that says something.
pub(crate) fn is_dmarc(text: &str) -> bool {
    dmarc::is_record(text)
}

/// Whether a domain that has no DMARC record of its own stands under one (RFC 9989 §4.10).
pub(crate) async fn dmarc_above(dns: &Resolver, domain: &str) -> Result<bool, String> {
    dmarc::covered(&Lookups::new(dns), domain).await
}

#[cfg(test)]
mod tests;
