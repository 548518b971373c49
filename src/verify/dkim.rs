//! DKIM, RFC 6376: did the domain that signed really sign this text?
//!
//! At most `MAX_SIGNATURES` are verified, those nearest to the From domains first. Never: a signature over a
//! part of the body (`l=`: whoever may append to a signed text may write the message), with rsa-sha1
//! (RFC 8301 §3.1), with an RSA key below 1,024 bits (§3.2), one that leaves From unsigned (§6.1.1) or whose
//! list of fields is a denial of service.
//!
//! A signature by a key in test mode (`t=y`) counts as none, whether it verifies or not (§3.6.1).

use futures_util::future::join_all;
use mail_auth::common::crypto::Algorithm;

use super::key::{self, KeyError};
use super::lookups::{Lookups, SPENT};
use super::signed::{Coverage, Message, Signature, TOO_MANY_FIELDS};
use super::tags::{EmptyTags, Tags};
use super::verdict::{AuthResult, Dkim};
use crate::address::normalize_domain;
use crate::clock::Millis;
use crate::screen::fields::Field;

/// OpenDKIM #271: signatures cost the verifier a DNS lookup and an RSA operation each.
pub(crate) const MAX_SIGNATURES: usize = 5;
/// Recorded of those that are not even looked at.
const MAX_REFUSED: usize = 5;

/// The signatures of a message: those that are worth a key, and those that are not.
pub(crate) struct Signatures<'m> {
    pub candidates: Vec<Candidate<'m>>,
    pub refused: Vec<Dkim>,
}

pub(crate) struct Candidate<'m> {
    field: Field<'m>,
    signature: Signature,
    coverage: Coverage,
    /// Domain of `i=`.
    identity: Option<String>,
}

/// What is wrong with a signature, before any key is asked for.
type Objection = (AuthResult, &'static str);

/// Reads the signatures, says what is wrong with them, and orders the rest by nearness to the authors.
pub(crate) fn read<'m>(message: &Message<'m>, authors: &[String], now: Millis) -> Signatures<'m> {
    let mut candidates: Vec<Candidate<'m>> = Vec::new();
    let mut refused = Vec::new();
    for field in message.all("DKIM-Signature") {
        let text = std::str::from_utf8(field.value).map_err(|_| "not UTF-8");
        match text.and_then(|text| Tags::parse(text, EmptyTags::Skipped)) {
            Ok(tags) => match candidate(field, &tags, now) {
                Ok(candidate) => candidates.push(candidate),
                Err((result, why)) if refused.len() < MAX_REFUSED => {
                    refused.push(named(&tags, result, why));
                }
                Err(_) => {}
            },
            Err(why) if refused.len() < MAX_REFUSED => {
                refused.push(record_of(["", "", ""], AuthResult::PermError, Some(why.to_owned())));
            }
            Err(_) => {}
        }
    }
    let nearness = |domain: &str| authors.iter().map(|from| common_labels(from, domain)).max().unwrap_or(0);
    candidates.sort_by_key(|candidate| std::cmp::Reverse(nearness(&candidate.signature.domain)));
    candidates.truncate(MAX_SIGNATURES);
    Signatures { candidates, refused }
}

fn candidate<'m>(field: &Field<'m>, tags: &Tags<'_>, now: Millis) -> Result<Candidate<'m>, Objection> {
    let permanent = |why| (AuthResult::PermError, why);
    if tags.get("v") != Some("1") {
        return Err(permanent("an unknown version"));
    }
    if tags.get("l").is_some() {
        return Err((AuthResult::Policy, "a signature over a part of the body (l=)"));
    }
    if tags.get("q").is_some_and(|list| !list.split(':').any(|way| way.trim() == "dns/txt")) {
        return Err(permanent("a key that is not in the DNS"));
    }
    let signature = Signature::read(tags).map_err(permanent)?;
    if signature.algorithm == Algorithm::RsaSha1 {
        return Err((AuthResult::Policy, "rsa-sha1 proves nothing"));
    }
    let coverage = Coverage::read(tags).map_err(|why| match why {
        TOO_MANY_FIELDS => (AuthResult::Policy, why),
        why => permanent(why),
    })?;
    if !coverage.fields.iter().any(|name| name.eq_ignore_ascii_case("from")) {
        return Err(permanent("From is not signed"));
    }
    let signed_at = tags.number("t").map_err(permanent)?;
    let expires = tags.number("x").map_err(permanent)?;
    if let Some(expires) = expires {
        if signed_at.is_some_and(|signed_at| expires <= signed_at) {
            return Err(permanent("it expired before it was signed"));
        }
        // RFC 6376 §3.5: "Signatures MAY be considered invalid" from then on.
        if u64::try_from(now.div_euclid(1000)).unwrap_or(0) > expires {
            return Err((AuthResult::Fail, "the signature has expired"));
        }
    }
    let identity = identity(tags, &signature.domain).map_err(permanent)?;
    Ok(Candidate { field: *field, signature, coverage, identity })
}

/// RFC 6376 §3.5: the domain of `i=` is that of `d=` or below it.
fn identity(tags: &Tags<'_>, domain: &str) -> Result<Option<String>, &'static str> {
    let Some(written) = tags.get("i") else { return Ok(None) };
    let identity = written.rsplit_once('@').and_then(|(_, domain)| normalize_domain(domain).ok());
    let below = |identity: &String| {
        identity == domain || identity.strip_suffix(domain).is_some_and(|head| head.ends_with('.'))
    };
    identity.filter(below).map(Some).ok_or("an identity outside the domain")
}

/// How many labels two domains share, counted from the right.
fn common_labels(a: &str, b: &str) -> usize {
    a.rsplit('.').zip(b.rsplit('.')).take_while(|(a, b)| a.eq_ignore_ascii_case(b)).count()
}

/// Verifies what `read` has left, all keys asked for at once.
pub(crate) async fn check(
    lookups: &Lookups<'_>,
    message: &Message<'_>,
    candidates: &[Candidate<'_>],
) -> Vec<Dkim> {
    join_all(candidates.iter().map(|candidate| candidate.check(lookups, message))).await
}

impl Candidate<'_> {
    async fn check(&self, lookups: &Lookups<'_>, message: &Message<'_>) -> Dkim {
        let Signature { domain, selector, .. } = &self.signature;
        // No key makes up for another body.
        if !self.coverage.body_matches(message) {
            return self.record(AuthResult::Fail, Some("the body was changed".to_owned()));
        }
        let key = match key::fetch(lookups, selector, domain).await {
            Ok(key) => key,
            Err(KeyError::Temporary(why)) => return self.record(AuthResult::TempError, Some(why)),
            Err(KeyError::Permanent(why)) => return self.record(AuthResult::PermError, Some(why.to_owned())),
            Err(KeyError::Weak(why)) => return self.record(AuthResult::Policy, Some(why.to_owned())),
            Err(KeyError::Spent) => return self.record(AuthResult::Policy, Some(SPENT.to_owned())),
        };
        if key.exact && self.identity.as_ref().is_some_and(|identity| identity != domain) {
            let why = "an identity below the domain, which its key forbids (t=s)";
            return self.record(AuthResult::PermError, Some(why.to_owned()));
        }
        let fields = message.named(&self.coverage.fields);
        let (name, _) = message.pair(&self.field);
        let verified = self.signature.verifies(&key, self.coverage.header, fields, name);
        match (verified, key.testing) {
            (Ok(()), false) => self.record(AuthResult::Pass, None),
            (Err(why), false) => self.record(AuthResult::Fail, Some(why.to_owned())),
            (Ok(()), true) => {
                self.record(AuthResult::Neutral, Some("verifies with a key in test mode (t=y)".to_owned()))
            }
            (Err(why), true) => {
                self.record(AuthResult::Neutral, Some(format!("{why}, by a key in test mode (t=y)")))
            }
        }
    }

    /// The verdict when no time is left to find one.
    pub fn late(&self) -> Dkim {
        self.record(AuthResult::TempError, Some("no answer in time".to_owned()))
    }

    fn record(&self, result: AuthResult, detail: Option<String>) -> Dkim {
        let Signature { domain, selector, algorithm, .. } = &self.signature;
        record_of([domain, selector, algorithm.name()], result, detail)
    }
}

/// A refused signature, named as far as its tags can be read.
fn named(tags: &Tags<'_>, result: AuthResult, why: &str) -> Dkim {
    let tag = |name| tags.get(name).unwrap_or_default();
    record_of([tag("d"), tag("s"), tag("a")], result, Some(why.to_owned()))
}

fn record_of(names: [&str; 3], result: AuthResult, detail: Option<String>) -> Dkim {
    let [domain, selector, algorithm] = names.map(shown);
    Dkim { result, domain, selector, algorithm, detail }
}

/// What a peer wrote, fit to be stored: a name is no longer than a domain may be, and has no white space.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() && !c.is_whitespace()).take(255).collect()
}
