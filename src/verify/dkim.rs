//! DKIM, RFC 6376: did the domain that signed really sign this text?
//!
//! mail-auth verifies; this file decides what it is shown. At most `MAX_SIGNATURES`, those nearest to the
//! From domains first. Never: a signature over a part of the body (`l=`), with rsa-sha1 (RFC 8301 §3.1),
//! one that leaves From unsigned (§6.1.1) or whose list of fields is a denial of service. Keys below 1,024
//! bits fail in the cryptographic library (RFC 8301 §3.2).

use futures_util::future::join_all;
use mail_auth::common::crypto::Algorithm;
use mail_auth::common::headers::Header;
use mail_auth::dkim::{Canonicalization, DkimError, Signature};
use mail_auth::{AuthenticatedMessage, DkimOutput, DkimResult, DnsError as MailAuthDnsError, Error};

use super::verdict::{AuthResult, Dkim};
use crate::dns::{DnsError, Resolver};

/// OpenDKIM #271: signatures cost the verifier a DNS lookup and an RSA operation each.
const MAX_SIGNATURES: usize = 5;
/// Recorded of those that are not even looked at.
const MAX_REFUSED: usize = 5;
/// Field names in `h=`; honest signatures stay below 60, and verifying is quadratic in them.
const MAX_SIGNED_FIELDS: usize = 200;

/// Takes out what must not be verified, says why, and orders the rest by nearness to the From domains.
pub(crate) fn refuse(message: &mut AuthenticatedMessage<'_>, from_domains: &[String]) -> Vec<Dkim> {
    let mut refused: Vec<Dkim> = message
        .errors
        .iter()
        .filter(|header| header.name.trim_ascii().eq_ignore_ascii_case(b"DKIM-Signature"))
        .take(MAX_REFUSED)
        .map(|header| unreadable(header.value, &header.header))
        .collect();
    message.errors.clear();
    message.dkim_headers.retain(|header| {
        let verdict = objection(&header.header);
        if let Some((result, why)) = verdict
            && refused.len() < MAX_REFUSED
        {
            refused.push(entry(&header.header, result, Some(why.to_owned())));
        }
        verdict.is_none()
    });
    let nearness = |signature: &Signature| {
        from_domains.iter().map(|from| common_labels(from, &signature.d)).max().unwrap_or(0)
    };
    message.dkim_headers.sort_by_key(|header| std::cmp::Reverse(nearness(&header.header)));
    message.dkim_headers.truncate(MAX_SIGNATURES);
    refused
}

fn objection(signature: &Signature) -> Option<(AuthResult, &'static str)> {
    if !signature.h.iter().any(|name| name.trim().eq_ignore_ascii_case("from")) {
        return Some((AuthResult::PermError, "From is not signed"));
    }
    if signature.h.len() > MAX_SIGNED_FIELDS {
        return Some((AuthResult::Policy, "too many signed fields"));
    }
    if signature.a == Algorithm::RsaSha1 {
        return Some((AuthResult::Policy, "rsa-sha1 proves nothing"));
    }
    None
}

/// How many labels two domains share, counted from the right.
fn common_labels(a: &str, b: &str) -> usize {
    a.rsplit('.').zip(b.rsplit('.')).take_while(|(a, b)| a.eq_ignore_ascii_case(b)).count()
}

/// Asks for all keys at once; takes out the signatures whose key nobody could tell.
pub(crate) async fn without_key<'x>(
    dns: &Resolver,
    message: &mut AuthenticatedMessage<'x>,
) -> Vec<(Header<'x, Signature>, String)> {
    let asked = message.dkim_headers.iter().map(|header| {
        let signature = &header.header;
        let name = format!("{}._domainkey.{}", signature.s, signature.d);
        async move { dns.txt(&name).await }
    });
    let answers = join_all(asked).await;
    let headers = std::mem::take(&mut message.dkim_headers);
    let mut dead = Vec::new();
    for (header, answer) in headers.into_iter().zip(answers) {
        match answer {
            Err(DnsError::Temporary(why)) => dead.push((header, why)),
            _ => message.dkim_headers.push(header),
        }
    }
    dead
}

/// Verifies what is left; the keys are in the cache by now.
pub(crate) async fn check<'x>(
    dns: &Resolver,
    message: &'x AuthenticatedMessage<'x>,
    dead: &'x [(Header<'x, Signature>, String)],
) -> Vec<DkimOutput<'x>> {
    let mut outputs = dns.mail_auth().verify_dkim(message).await;
    again_without_tail(dns, message, &mut outputs).await;
    outputs.extend(dead.iter().map(|(header, why)| {
        DkimOutput::temp_err(Error::Dns(MailAuthDnsError::Resolver(why.clone())))
            .with_signature(&header.header)
    }));
    outputs
}

/// mail-auth issue #62 (fixed in 0.15.0): lines of white space at the end of the body give a wrong hash
/// under relaxed canonicalization. RFC 6376 §3.4.4 ignores them, so the body without them must verify.
async fn again_without_tail<'x>(
    dns: &Resolver,
    message: &'x AuthenticatedMessage<'x>,
    outputs: &mut [DkimOutput<'x>],
) {
    let hash_failed = |output: &DkimOutput<'_>| {
        matches!(output.result(), DkimResult::Neutral(Error::Dkim(DkimError::FailedBodyHashMatch)))
            && output.signature().is_some_and(|signature| signature.cb == Canonicalization::Relaxed)
    };
    if !outputs.iter().any(&hash_failed) {
        return;
    }
    let Some(copy) = without_tail(message.raw_message(), message.body_offset()) else { return };
    let Some(mut again) = AuthenticatedMessage::parse(&copy) else { return };
    again.errors.clear();
    for (header, output) in message.dkim_headers.iter().zip(outputs.iter_mut()) {
        if !hash_failed(output) {
            continue;
        }
        // One signature at a time, so that there is no question which result is whose.
        let mut one = again.clone();
        one.dkim_headers.retain(|candidate| candidate.value == header.value);
        one.dkim_headers.truncate(1);
        let result = dns.mail_auth().verify_dkim(&one).await;
        match result.first().map(DkimOutput::result) {
            Some(DkimResult::Pass) => *output = DkimOutput::pass().with_signature(&header.header),
            Some(DkimResult::Fail(error)) => {
                *output = DkimOutput::fail(error.clone()).with_signature(&header.header);
            }
            _ => {}
        }
    }
}

/// The message without the white space at its end, where that is more than line ends.
fn without_tail(raw: &[u8], body_at: usize) -> Option<Vec<u8>> {
    let body = raw.get(body_at..)?;
    let text = body.trim_ascii_end();
    let tail = body.get(text.len()..)?;
    if !tail.iter().any(|octet| matches!(octet, b' ' | b'\t')) {
        return None;
    }
    let mut copy = raw.get(..body_at + text.len())?.to_vec();
    if !text.is_empty() {
        copy.extend_from_slice(b"\r\n");
    }
    Some(copy)
}

/// The results as they are stored.
pub(crate) fn records(outputs: &[DkimOutput<'_>]) -> Vec<Dkim> {
    outputs
        .iter()
        .filter_map(|output| {
            let (result, detail) = word(output.result());
            Some(entry(output.signature()?, result, detail))
        })
        .collect()
}

/// RFC 8601 §2.7.1. mail-auth calls a wrong body hash and an expired signature neutral; they are signatures
/// that did not verify.
fn word(result: &DkimResult) -> (AuthResult, Option<String>) {
    match result {
        DkimResult::Pass => (AuthResult::Pass, None),
        DkimResult::None => (AuthResult::None, None),
        DkimResult::Fail(error) => (AuthResult::Fail, Some(error.to_string())),
        DkimResult::TempError(error) => (AuthResult::TempError, Some(error.to_string())),
        DkimResult::PermError(error) => (AuthResult::PermError, Some(error.to_string())),
        DkimResult::Neutral(error) => {
            let failed =
                matches!(error, Error::Dkim(DkimError::FailedBodyHashMatch | DkimError::SignatureExpired));
            let result = if failed { AuthResult::Fail } else { AuthResult::Neutral };
            (result, Some(error.to_string()))
        }
    }
}

fn entry(signature: &Signature, result: AuthResult, detail: Option<String>) -> Dkim {
    let algorithm = match signature.a {
        Algorithm::RsaSha1 => "rsa-sha1",
        Algorithm::RsaSha256 => "rsa-sha256",
        Algorithm::Ed25519Sha256 => "ed25519-sha256",
    };
    Dkim {
        result,
        domain: shown(&signature.d),
        selector: shown(&signature.s),
        algorithm: algorithm.to_owned(),
        detail,
    }
}

/// A signature that mail-auth did not parse, named as far as its tags can be read.
fn unreadable(value: &[u8], error: &Error) -> Dkim {
    let result = match error {
        Error::Dkim(DkimError::SignatureLength) => AuthResult::Policy,
        _ => AuthResult::PermError,
    };
    let text = String::from_utf8_lossy(value);
    let tag = |name: &str| {
        let mut tags = text.split(';').filter_map(|tag| tag.split_once('='));
        let value = tags.find(|(key, _)| key.trim() == name).map(|(_, value)| value);
        value.map(shown).unwrap_or_default()
    };
    Dkim {
        result,
        domain: tag("d"),
        selector: tag("s"),
        algorithm: tag("a"),
        detail: Some(error.to_string()),
    }
}

/// What a peer wrote, fit to be stored: a name is no longer than a domain may be, and has no white space.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() && !c.is_whitespace()).take(255).collect()
}
