//! A message becomes a verdict: SPF (RFC 7208), DKIM (RFC 6376), DMARC (RFC 9989), ARC (RFC 8617, recorded
//! only: it is on its way to historic) and iprev (RFC 8601 §3).
//!
//! Promises: always an answer, within `DEADLINE`, whatever the message and the DNS do; what could not be
//! found out is `temperror`; `verified_sender` only for exactly one From address and an aligned pass.
//! The work per message is bounded: 5 signatures, 10 ARC sets, SPF's own limits (RFC 7208 §4.6.4).
//!
//! Never: a decision. What a verdict leads to is decided where mail is received.

mod dkim;
mod dmarc;
mod fold;
mod spf;
mod stamp;
pub mod verdict;

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use mail_auth::{ArcOutput, AuthenticatedMessage, DkimResult, IprevResult, SpfResult};
use tokio::time::{Instant, timeout, timeout_at};

use crate::address::Address;
use crate::dns::{DnsError, Resolver};
use crate::envelope::{Peer, ReversePath};
use crate::screen::fields;
use crate::screen::structure::Mailbox;
use spf::SpfCheck;

pub use stamp::{stamp, stamp_into};
pub use verdict::Verdict;

use verdict::{AuthResult, Dkim, Dmarc, DmarcPolicy, Method, Source, Spf};

/// The whole check. The client waits for our reply to DATA meanwhile, and is not obliged to wait longer than
/// ten minutes (RFC 5321 §4.5.3.2.6).
const DEADLINE: Duration = Duration::from_secs(10);
/// SPF, DKIM and iprev, which run side by side; the rest is for DMARC.
const METHODS: Duration = Duration::from_secs(7);
/// ARC decides nothing, so nobody waits long for it.
const ARC: Duration = Duration::from_secs(3);
/// RFC 8617 §4.2.1 allows 50; each set costs two DNS lookups.
const MAX_ARC_SETS: usize = 10;
/// From this size on, hashing is worth telling the runtime about.
const LARGE: usize = 512 * 1024;

/// Checks where a message came from. `from` are its From addresses, all of them.
pub async fn verify(
    dns: &Resolver,
    peer: &Peer,
    mail_from: &ReversePath,
    hostname: &str,
    raw: &[u8],
    from: &[Mailbox],
) -> Verdict {
    let check = Check { dns, peer, mail_from: mail_from.as_ref(), hostname, raw, from };
    let started = Instant::now();
    // A bug in a parser of hostile text costs the verdict of that text, not the session.
    match AssertUnwindSafe(check.run(started)).catch_unwind().await {
        Ok(verdict) => verdict,
        Err(_) => check.unknown("the verifier failed on this message"),
    }
}

struct Check<'a> {
    dns: &'a Resolver,
    peer: &'a Peer,
    mail_from: Option<&'a Address>,
    hostname: &'a str,
    raw: &'a [u8],
    from: &'a [Mailbox],
}

impl Check<'_> {
    async fn run(&self, started: Instant) -> Verdict {
        let authors = dmarc::domains(self.from);
        let mut message = self.parse();
        let mut signatures = dkim::refuse(&mut message, &authors);
        let (spf, dead, iprev, policy) = tokio::join!(
            self.spf(),
            timeout(METHODS, dkim::without_key(self.dns, &mut message)),
            self.iprev(),
            self.policy_record(&authors),
        );
        // A key that did not come within all that time is a key that is not there now.
        let dead = dead.unwrap_or_default();
        let left = started + DEADLINE;
        let (outputs, arc) = tokio::join!(
            timeout_at(left, dkim::check(self.dns, &message, &dead)),
            timeout(ARC, self.arc(&message)),
        );
        let outputs = outputs.unwrap_or_default();
        signatures.splice(..0, dkim::records(&outputs));
        let evidence = dmarc::Evidence { spf: &spf.output, spf_domain: &spf.record.domain, dkim: &outputs };
        let dmarc = match policy {
            Some(DnsError::Temporary(why)) if self.from.len() == 1 => temporary(&authors, &why),
            _ => timeout_at(left, dmarc::check(self.dns, self.from, &evidence))
                .await
                .unwrap_or_else(|_| temporary(&authors, "no answer in time")),
        };
        Verdict {
            source: Source::Smtp,
            spf: spf.record,
            verified_sender: self.verified(&dmarc),
            dkim: signatures,
            dmarc,
            arc: arc.unwrap_or_else(|_| method(AuthResult::TempError, Some("no answer in time".into()))),
            iprev,
        }
    }

    /// The signed view of the message; empty where its header is beyond what we verify.
    fn parse(&self) -> AuthenticatedMessage<'_> {
        if fields::header(self.raw).excess.is_some() {
            return AuthenticatedMessage::default();
        }
        let parse = || AuthenticatedMessage::parse(self.raw).unwrap_or_default();
        let threads = tokio::runtime::Handle::try_current()
            .is_ok_and(|h| h.runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread);
        if self.raw.len() > LARGE && threads {
            // The hash of a large body takes tens of milliseconds; others must not wait behind it.
            tokio::task::block_in_place(parse)
        } else {
            parse()
        }
    }

    async fn spf(&self) -> SpfCheck {
        let check = spf::check(self.dns, self.peer, self.mail_from, self.hostname);
        timeout(METHODS, check).await.unwrap_or_else(|_| {
            let domain = spf::identity(self.peer, self.mail_from).unwrap_or_default();
            SpfCheck::new(&domain, SpfResult::TempError, Some("no answer in time"))
        })
    }

    /// Asks for the author's DMARC record early: it is in the cache when its turn comes, and a DNS that is
    /// dead is known to be.
    async fn policy_record(&self, authors: &[String]) -> Option<DnsError> {
        let author = authors.first()?;
        self.dns.txt(&format!("_dmarc.{author}")).await.err()
    }

    /// RFC 8601 §3: the name of the address leads back to the address.
    async fn iprev(&self) -> Method {
        let ip = self.peer.ip.to_canonical();
        if ip.is_loopback() {
            return method(AuthResult::None, Some("loopback".into()));
        }
        let Ok(output) = timeout(METHODS, self.dns.mail_auth().verify_iprev(ip)).await else {
            return method(AuthResult::TempError, Some("no answer in time".into()));
        };
        let name = || output.ptr.as_ref().and_then(|names| names.first()).map(|name| plain(name));
        match &output.result {
            IprevResult::Pass => method(AuthResult::Pass, name()),
            IprevResult::None => method(AuthResult::None, None),
            IprevResult::Fail(_) => method(AuthResult::Fail, name()),
            IprevResult::TempError(error) => method(AuthResult::TempError, Some(error.to_string())),
            IprevResult::PermError(error) => method(AuthResult::PermError, Some(error.to_string())),
        }
    }

    async fn arc(&self, message: &AuthenticatedMessage<'_>) -> Method {
        if message.as_headers.len().max(message.ams_headers.len()) > MAX_ARC_SETS {
            return method(AuthResult::Policy, Some(format!("more than {MAX_ARC_SETS} sets")));
        }
        if message.has_arc_errors {
            return method(AuthResult::Fail, Some("malformed ARC header".into()));
        }
        if message.ams_headers.is_empty() && message.as_headers.is_empty() {
            return method(AuthResult::None, None);
        }
        let output: ArcOutput<'_> = self.dns.mail_auth().verify_arc(message).await;
        match output.result() {
            DkimResult::Pass => method(AuthResult::Pass, None),
            DkimResult::None => method(AuthResult::None, None),
            DkimResult::TempError(error) => method(AuthResult::TempError, Some(error.to_string())),
            DkimResult::Neutral(error) | DkimResult::Fail(error) | DkimResult::PermError(error) => {
                method(AuthResult::Fail, Some(error.to_string()))
            }
        }
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
        let domain = spf::identity(self.peer, self.mail_from).unwrap_or_default();
        Verdict {
            source: Source::Smtp,
            spf: Spf { result: AuthResult::PermError, domain, detail: detail() },
            dkim: Vec::<Dkim>::new(),
            dmarc: Dmarc {
                result: AuthResult::Fail,
                domain: dmarc::domains(self.from).into_iter().next().unwrap_or_default(),
                policy: DmarcPolicy::None,
                detail: detail(),
            },
            arc: method(AuthResult::None, None),
            iprev: method(AuthResult::None, None),
            verified_sender: None,
        }
    }
}

fn method(result: AuthResult, detail: Option<String>) -> Method {
    Method { result, detail }
}

fn temporary(authors: &[String], why: &str) -> Dmarc {
    Dmarc {
        result: AuthResult::TempError,
        domain: authors.first().cloned().unwrap_or_default(),
        policy: DmarcPolicy::None,
        detail: Some(why.to_owned()),
    }
}

/// A host name without the dot at its end.
fn plain(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests;
