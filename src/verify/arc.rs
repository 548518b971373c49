//! ARC, RFC 8617: what forwarders say that they saw, sealed one after the other. It is on its way to
//! historic, so it is recorded, and believed only of forwarders that the operator has named (`rescue`).
//!
//! At most `MAX_SETS`; a chain passes where the newest signature covers the message and every seal verifies.

use futures_util::future::join_all;
use mail_auth::common::crypto::Algorithm;
use mail_auth::dkim::Canonicalization;

use super::key::{self, Key, KeyError};
use super::lookups::{Lookups, SPENT};
use super::signed::{Coverage, Message, Signature};
use super::tags::{EmptyTags, Tags};
use super::verdict::{ArcChain, ArcSet, AuthResult};
use crate::clock::Millis;
use crate::screen::fields::Field;

/// RFC 8617 §4.2.1 allows 50; each set costs two signatures and its keys.
const MAX_SETS: usize = 10;
const FIELDS: [&str; 3] = ["ARC-Authentication-Results", "ARC-Message-Signature", "ARC-Seal"];

/// A chain that can be looked at: its verdict, and what each forwarder saw.
pub(crate) struct Chain<'m> {
    pub record: ArcChain,
    sets: Vec<Set<'m>>,
}

struct Set<'m> {
    results: &'m Field<'m>,
    message_signature: (&'m Field<'m>, Signature, Coverage),
    seal: (&'m Field<'m>, Signature),
}

impl<'m> Chain<'m> {
    pub fn without_sets(result: AuthResult, detail: Option<&str>) -> Chain<'m> {
        let record = ArcChain { result, detail: detail.map(str::to_owned), chain: Vec::new() };
        Chain { record, sets: Vec::new() }
    }

    /// Sealer (`d=` of seal and signature) and results of each set, newest first.
    pub fn newest_first(&self) -> impl Iterator<Item = ([&str; 2], &'m [u8])> {
        self.sets.iter().rev().map(|set| {
            let domains = [set.seal.1.domain.as_str(), set.message_signature.1.domain.as_str()];
            (domains, set.results.value)
        })
    }
}

/// Reads and verifies the chain of a message.
pub(crate) async fn check<'m>(lookups: &Lookups<'_>, message: &'m Message<'m>, now: Millis) -> Chain<'m> {
    let [results, signatures, seals] = FIELDS.map(|name| message.all(name).collect::<Vec<_>>());
    let most = results.len().max(signatures.len()).max(seals.len());
    if most == 0 {
        return Chain::without_sets(AuthResult::None, None);
    }
    if most > MAX_SETS {
        let why = format!("more than {MAX_SETS} ARC sets");
        return Chain::without_sets(AuthResult::Policy, Some(&why));
    }
    let (sets, recorded) = match sets(&results, &signatures, &seals) {
        Ok(sets) => sets,
        Err(why) => return Chain::without_sets(AuthResult::Fail, Some(why)),
    };
    let (result, detail) = match verify(lookups, message, &sets, &recorded, now).await {
        Ok(()) => (AuthResult::Pass, None),
        Err(Broken::Fail(why)) => (AuthResult::Fail, Some(why.to_owned())),
        Err(Broken::Policy(why)) => (AuthResult::Policy, Some(why.to_owned())),
        Err(Broken::Temporary(why)) => (AuthResult::TempError, Some(why)),
    };
    Chain { record: ArcChain { result, detail, chain: recorded }, sets }
}

enum Broken {
    Fail(&'static str),
    Policy(&'static str),
    Temporary(String),
}

/// RFC 8617 §5.2 steps 1 and 3: sets 1 to n, each with one of every field.
fn sets<'m>(
    results: &[&'m Field<'m>],
    signatures: &[&'m Field<'m>],
    seals: &[&'m Field<'m>],
) -> Result<(Vec<Set<'m>>, Vec<ArcSet>), &'static str> {
    if results.len() != signatures.len() || results.len() != seals.len() {
        return Err("an incomplete ARC set");
    }
    let mut results = numbered(results, |field| instance_of_results(field.value).map(|n| (n, ())))?;
    let mut signatures = numbered(signatures, message_signature)?;
    let mut seals = numbered(seals, seal)?;
    let mut sets = Vec::with_capacity(seals.len());
    let mut recorded = Vec::with_capacity(seals.len());
    let all = results.drain(..).zip(signatures.drain(..)).zip(seals.drain(..));
    for (n, (((results, ()), signature), (seal_field, (seal, cv)))) in (1_u8..).zip(all) {
        recorded.push(ArcSet {
            instance: n,
            sealer: seal.domain.clone(),
            selector: seal.selector.clone(),
            cv: cv.to_owned(),
        });
        let (signature_field, (signature, coverage)) = signature;
        let message_signature = (signature_field, signature, coverage);
        sets.push(Set { results, message_signature, seal: (seal_field, seal) });
    }
    Ok((sets, recorded))
}

/// The fields of one kind in the order of their instances, which are 1 to n, each once.
fn numbered<'m, T>(
    fields: &[&'m Field<'m>],
    read: impl Fn(&Field<'m>) -> Result<(u64, T), &'static str>,
) -> Result<Vec<(&'m Field<'m>, T)>, &'static str> {
    let mut all = Vec::with_capacity(fields.len());
    for field in fields {
        let (instance, content) = read(field)?;
        all.push((instance, *field, content));
    }
    all.sort_by_key(|(instance, ..)| *instance);
    if all.iter().zip(1..).any(|((instance, ..), n)| *instance != n) {
        return Err("ARC sets that do not follow each other");
    }
    Ok(all.into_iter().map(|(_, field, content)| (field, content)).collect())
}

/// RFC 8617 §4.1.1: `i=1; authserv-id; results`.
fn instance_of_results(value: &[u8]) -> Result<u64, &'static str> {
    const BAD: &str = "ARC results without an instance";
    let text = std::str::from_utf8(value).map_err(|_| BAD)?;
    let (first, rest) = text.split_once(';').ok_or(BAD)?;
    let tags = Tags::parse(first, EmptyTags::Refused)?;
    if rest.trim().is_empty() {
        return Err(BAD);
    }
    tags.number("i")?.ok_or(BAD)
}

fn tags<'x>(field: &Field<'x>) -> Result<(u64, Tags<'x>), &'static str> {
    let text = std::str::from_utf8(field.value).map_err(|_| "an ARC field that is not UTF-8")?;
    let tags = Tags::parse(text, EmptyTags::Refused)?;
    tags.number("t")?;
    Ok((tags.number("i")?.ok_or("an ARC field without an instance")?, tags))
}

fn message_signature(field: &Field<'_>) -> Result<(u64, (Signature, Coverage)), &'static str> {
    let (instance, tags) = tags(field)?;
    if tags.get("l").is_some() {
        return Err("an ARC signature over a part of the body (l=)");
    }
    Ok((instance, (modern(Signature::read(&tags)?)?, Coverage::read(&tags)?)))
}

fn seal(field: &Field<'_>) -> Result<(u64, (Signature, &'static str)), &'static str> {
    let (instance, tags) = tags(field)?;
    // RFC 8617 §4.1.3: a seal covers the sets and nothing else.
    if tags.get("h").is_some() || tags.get("bh").is_some() {
        return Err("an ARC seal that signs fields");
    }
    let cv = match tags.get("cv") {
        Some("none") => "none",
        Some("pass") => "pass",
        Some("fail") => "fail",
        _ => return Err("an ARC seal without a chain validation"),
    };
    Ok((instance, (modern(Signature::read(&tags)?)?, cv)))
}

fn modern(signature: Signature) -> Result<Signature, &'static str> {
    match signature.algorithm {
        Algorithm::RsaSha1 => Err("rsa-sha1 proves nothing"),
        _ => Ok(signature),
    }
}

/// RFC 8617 §5.2 steps 2, 4 and 5.
async fn verify(
    lookups: &Lookups<'_>,
    message: &Message<'_>,
    sets: &[Set<'_>],
    recorded: &[ArcSet],
    now: Millis,
) -> Result<(), Broken> {
    let said = |n: usize| if n == 0 { "none" } else { "pass" };
    if recorded.iter().enumerate().any(|(n, set)| set.cv != said(n)) {
        return Err(Broken::Fail("a forwarder found the chain broken"));
    }
    let Some(newest) = sets.last() else { return Err(Broken::Fail("no ARC set")) };
    let (field, signature, coverage) = &newest.message_signature;
    let expires = std::str::from_utf8(field.value)
        .ok()
        .and_then(|text| Tags::parse(text, EmptyTags::Refused).ok()?.number("x").ok()?);
    if expires.is_some_and(|at| u64::try_from(now.div_euclid(1000)).unwrap_or(0) > at) {
        return Err(Broken::Fail("the ARC signature has expired"));
    }
    if !coverage.body_matches(message) {
        return Err(Broken::Fail("the body was changed"));
    }
    let keys = keys(lookups, sets).await?;
    let key_of = |signature: &Signature| {
        let wanted = (signature.selector.as_str(), signature.domain.as_str());
        keys.iter().find(|(names, _)| *names == wanted).map(|(_, key)| key).ok_or(Broken::Fail("no key"))
    };
    let (name, _) = message.pair(field);
    signature
        .verifies(key_of(signature)?, coverage.header, message.named(&coverage.fields), name)
        .map_err(Broken::Fail)?;
    for (n, set) in sets.iter().enumerate().rev() {
        let (field, seal) = &set.seal;
        // RFC 8617 §5.1.1: the sets in their order, relaxed, this seal's own field last.
        let mut covered = Vec::with_capacity(3 * sets.len());
        for set in sets.iter().take(n) {
            covered.extend([set.results, set.message_signature.0, set.seal.0].map(|f| message.pair(f)));
        }
        covered.extend([set.results, set.message_signature.0].map(|f| message.pair(f)));
        let (name, _) = message.pair(field);
        seal.verifies(key_of(seal)?, Canonicalization::Relaxed, covered, name).map_err(Broken::Fail)?;
    }
    Ok(())
}

/// The key of the newest signature and of every seal, each asked for once.
async fn keys<'s>(
    lookups: &Lookups<'_>,
    sets: &'s [Set<'_>],
) -> Result<Vec<((&'s str, &'s str), Key)>, Broken> {
    let newest = sets.last().map(|set| &set.message_signature.1);
    let mut names: Vec<(&str, &str)> = Vec::new();
    for signature in newest.into_iter().chain(sets.iter().map(|set| &set.seal.1)) {
        let name = (signature.selector.as_str(), signature.domain.as_str());
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let asked = names.iter().map(|(selector, domain)| key::fetch(lookups, selector, domain));
    let mut keys = Vec::with_capacity(names.len());
    for (name, answer) in names.iter().zip(join_all(asked).await) {
        match answer {
            Ok(key) => keys.push((*name, key)),
            Err(KeyError::Temporary(why)) => return Err(Broken::Temporary(why)),
            Err(KeyError::Permanent(why) | KeyError::Weak(why)) => return Err(Broken::Fail(why)),
            Err(KeyError::Spent) => return Err(Broken::Policy(SPENT)),
        }
    }
    Ok(keys)
}
