//! What we write on top of a message, and the one thing that we take out.
//!
//! On top, newest first: `Return-Path` (this is the final delivery, RFC 5321 §4.4), `Received` (RFC 5321
//! §4.4), `Authentication-Results` (RFC 8601). Out: every `Authentication-Results` that claims to be ours
//! (RFC 8601 §5), however it is spelt. Everything else stays byte for byte: an older `Return-Path` too,
//! which RFC 5321 lets us keep; the topmost one is ours.
//!
//! Never: a control character, a line break or a line of more than 998 octets from a value that the peer
//! chose. Nothing reads these fields back: the API serves the verdict as data.

use std::io::{self, Write};

use super::fold::{Line, comment, printable, quoted};
use super::verdict::{AuthResult, Dkim, Source, Verdict};
use crate::clock::Millis;
use crate::envelope::{Envelope, Peer};
use crate::screen::fields::{self, Field};

/// The message as it is stored.
pub fn stamp(
    hostname: &str,
    envelope: &Envelope,
    id: &str,
    received_at: Millis,
    verdict: &Verdict,
    raw: &[u8],
) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len() + 1024);
    trace(&mut out, hostname, envelope, id, received_at, verdict);
    // Writing to memory cannot fail.
    let _ = keep(&mut out, hostname, raw);
    out
}

/// The same into a file, for a message that is not to stand in memory.
pub fn stamp_into(
    out: &mut impl Write,
    hostname: &str,
    envelope: &Envelope,
    id: &str,
    received_at: Millis,
    verdict: &Verdict,
    raw: &[u8],
) -> io::Result<()> {
    let mut top = Vec::with_capacity(1024);
    trace(&mut top, hostname, envelope, id, received_at, verdict);
    out.write_all(&top)?;
    keep(out, hostname, raw)
}

/// What we write on top.
fn trace(
    out: &mut Vec<u8>,
    hostname: &str,
    envelope: &Envelope,
    id: &str,
    received_at: Millis,
    verdict: &Verdict,
) {
    return_path(out, envelope);
    received(out, hostname, envelope, id, received_at, verdict);
    results(out, hostname, envelope, verdict);
}

/// The message below it, without the fields that claim to be ours.
fn keep(out: &mut impl Write, hostname: &str, raw: &[u8]) -> io::Result<()> {
    if fields::starts_with_body(raw) {
        // Its first line would become a field, or worse, the continuation of one of ours.
        out.write_all(b"\r\n")?;
        return out.write_all(raw);
    }
    let mut kept = 0;
    for field in fields::every_field(raw).filter(|field| claims_to_be(hostname, field)) {
        out.write_all(raw.get(kept..field.start).unwrap_or_default())?;
        kept = field.end;
    }
    out.write_all(raw.get(kept..).unwrap_or_default())
}

/// Whether this is an Authentication-Results field with our name as its authserv-id.
///
/// Broader than the grammar of RFC 8601 §2.2, since a reader may be as well: comments, quotes, folds and
/// encoded words are undone, and anything that is no part of a host name ends the identifier.
fn claims_to_be(hostname: &str, field: &Field<'_>) -> bool {
    if !field.is("Authentication-Results") {
        return false;
    }
    let value = String::from_utf8_lossy(field.value);
    if identifier_matches(&value, hostname) {
        return true;
    }
    value.contains("=?")
        && crate::screen::decoded(field).is_some_and(|decoded| identifier_matches(&decoded, hostname))
}

fn identifier_matches(value: &str, hostname: &str) -> bool {
    let mut depth = 0_usize;
    let mut escaped = false;
    let mut identifier = String::new();
    for c in value.chars() {
        match c {
            _ if escaped => {
                escaped = false;
                if depth == 0 {
                    identifier.push(c);
                }
            }
            '\\' => escaped = true,
            '(' => depth += 1,
            ')' if depth > 0 => {
                depth -= 1;
                identifier.push(' ');
            }
            _ if depth > 0 => {}
            c if c.is_whitespace() || c.is_control() || matches!(c, '"' | ')') => identifier.push(' '),
            '\u{ad}' | '\u{200b}'..='\u{200d}' | '\u{feff}' => {}
            ';' => break,
            c => identifier.push(c),
        }
    }
    let host = |text: &str| text.trim_end_matches('.').to_lowercase();
    let ours = host(hostname);
    let first = identifier.trim_start();
    let first = first.split(|c: char| !(c.is_alphanumeric() || "-._".contains(c))).next().unwrap_or("");
    let as_labels = crate::address::normalize_domain(first).unwrap_or_default();
    // Spaces may stand between the dots for a reader that joins what was folded.
    let joined: String = identifier.chars().filter(|c| *c != ' ').collect();
    let joined = host(&joined);
    host(first) == ours
        || as_labels == ours
        || joined.strip_prefix(&ours).is_some_and(|rest| {
            !rest.starts_with(|c: char| c.is_alphanumeric() || c == '-' || c == '_')
                && !rest.strip_prefix('.').is_some_and(|rest| rest.starts_with(|c: char| c.is_alphanumeric()))
        })
}

/// RFC 5321 §4.4: the reverse-path as it came with MAIL FROM.
fn return_path(out: &mut Vec<u8>, envelope: &Envelope) {
    let path = envelope.mail_from.as_ref().map(ToString::to_string).unwrap_or_default();
    let mut line = Line::new("Return-Path:");
    line.word(&format!("<{}>", printable(&path)));
    line.end(out);
}

/// RFC 5321 §4.4, the keywords of `with` from RFC 3848 and RFC 6531 §4.3.
fn received(
    out: &mut Vec<u8>,
    hostname: &str,
    envelope: &Envelope,
    id: &str,
    received_at: Millis,
    verdict: &Verdict,
) {
    let peer = &envelope.peer;
    let mut line = Line::new("Received:");
    line.word("from");
    line.word(&helo(peer));
    let literal = literal(peer);
    match verdict.iprev.detail.as_deref().filter(|_| verdict.iprev.result == AuthResult::Pass) {
        Some(name) => line.word(&comment(&format!("{name} {literal}"))),
        None => line.word(&comment(&literal)),
    }
    line.fold();
    line.word("by");
    line.word(&printable(hostname));
    line.word("(Gatepost)");
    line.word("with");
    line.word(protocol(envelope));
    if let Some(tls) = &peer.tls {
        line.word(&comment(tls));
    }
    line.word("id");
    line.word(&printable(id).replace(' ', ""));
    line.fold();
    // RFC 5321 §7.2: naming one of several recipients would tell each of the others.
    if let [only] = envelope.recipients.as_slice() {
        line.word("for");
        line.word(&format!("<{}>;", printable(&only.to_string())));
    } else {
        line.glue(";");
    }
    line.word(&date(received_at));
    line.end(out);
}

fn protocol(envelope: &Envelope) -> &'static str {
    let peer = &envelope.peer;
    match (peer.extended, envelope.smtputf8, peer.tls.is_some()) {
        (false, _, _) => "SMTP",
        (true, false, false) => "ESMTP",
        (true, false, true) => "ESMTPS",
        (true, true, false) => "UTF8SMTP",
        (true, true, true) => "UTF8SMTPS",
    }
}

/// What the peer called itself, where that is a host name or an address literal.
fn helo(peer: &Peer) -> String {
    crate::address::normalize_domain(&peer.helo).unwrap_or_else(|_| {
        let shown: String = printable(&peer.helo)
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || ".-_:[]".contains(c) { c } else { '?' })
            .take(64)
            .collect();
        if shown.is_empty() { "unknown".to_owned() } else { shown }
    })
}

/// RFC 5321 §4.1.3. An IPv4 peer on a dual-stack socket is an IPv4 peer.
fn literal(peer: &Peer) -> String {
    match peer.ip.to_canonical() {
        std::net::IpAddr::V4(v4) => format!("[{v4}]"),
        std::net::IpAddr::V6(v6) => format!("[IPv6:{v6}]"),
    }
}

/// RFC 5322 §3.3, in UTC.
fn date(at: Millis) -> String {
    mail_parser::DateTime::from_timestamp(at.div_euclid(1000)).to_rfc822()
}

/// RFC 8601 §2.2, §2.7.
fn results(out: &mut Vec<u8>, hostname: &str, envelope: &Envelope, verdict: &Verdict) {
    let mut line = Line::new("Authentication-Results:");
    line.word(&printable(hostname));
    if verdict.source == Source::Local {
        line.glue("; none");
        return line.end(out);
    }
    let spf_identity = if envelope.mail_from.is_some() { "smtp.mailfrom" } else { "smtp.helo" };
    let spf = &verdict.spf;
    method(&mut line, "spf", spf.result, spf.detail.as_deref(), &[(spf_identity, &spf.domain)]);
    for dkim in &verdict.dkim {
        let Dkim { result, domain, selector, algorithm, detail } = dkim;
        let properties = [("header.d", &**domain), ("header.s", selector), ("header.a", algorithm)];
        method(&mut line, "dkim", *result, detail.as_deref(), &properties);
    }
    if verdict.dkim.is_empty() {
        method(&mut line, "dkim", AuthResult::None, None, &[]);
    }
    let dmarc = &verdict.dmarc;
    // `policy.dmarc`, from IANA's registry for RFC 8601: the policy after `sp`, `np` and `t` were looked at.
    let properties = [("header.from", &*dmarc.domain), ("policy.dmarc", dmarc.policy.as_str())];
    method(&mut line, "dmarc", dmarc.result, dmarc.detail.as_deref(), &properties);
    if verdict.arc.result != AuthResult::None {
        method(&mut line, "arc", verdict.arc.result, verdict.arc.detail.as_deref(), &[]);
    }
    if verdict.iprev.result != AuthResult::None {
        let ip = envelope.peer.ip.to_canonical().to_string();
        let properties = [("policy.iprev", &*ip)];
        method(&mut line, "iprev", verdict.iprev.result, verdict.iprev.detail.as_deref(), &properties);
    }
    line.end(out);
}

/// `name=result reason="…" ptype.property=value`, on a line of its own.
fn method(line: &mut Line, name: &str, result: AuthResult, reason: Option<&str>, of: &[(&str, &str)]) {
    line.glue(";");
    line.fold();
    line.word(&format!("{name}={}", result.as_str()));
    if let Some(reason) = reason.filter(|_| result != AuthResult::Pass) {
        line.word(&format!("reason={}", quoted(reason)));
    }
    for (property, value) in of.iter().filter(|(_, value)| !value.is_empty()) {
        line.word(&format!("{property}={}", quoted(value)));
    }
}

#[cfg(test)]
#[path = "stamp_tests.rs"]
mod tests;
