//! A composition becomes the bytes of a message: 7-bit on the wire, whatever it is made of.
//!
//! Promises: exactly the header fields that were asked for, each once; only CRLF ends a line; no line longer
//! than 998 octets; no octet above 127, except where an address has a local part that no encoding can carry
//! (RFC 6532 §3.2; such mail needs SMTPUTF8). Bcc has no place in `Composition`, so it can be in no header.
//! The same composition gives the same bytes: boundaries are derived from the Message-ID.
//!
//! RFC 5322 (message), RFC 2045-2047 and 2231 (MIME), RFC 2387 (related), RFC 3834 §5 (Auto-Submitted).

use mail_builder::headers::Header;
use mail_builder::headers::address::{Address as MailAddress, EmailAddress};
use mail_builder::headers::content_type::ContentType;
use mail_builder::headers::date::Date;
use mail_builder::headers::message_id::MessageId;
use mail_builder::headers::raw::Raw;
use mail_builder::mime::{BodyPart, MimePart};
use sha2::{Digest, Sha256};

use crate::address::Address;
use crate::clock::Millis;
use crate::deliver::header::{self, HeaderName, HeaderValue};

/// References kept beside the first: enough for every client to find the thread, RFC 5322 §3.6.4 sets no
/// bound, and a hostile list must not grow with every reply.
const LAST_REFERENCES: usize = 20;
/// Octets of a Message-ID that we repeat: it must fit on one line.
const MAX_MESSAGE_ID: usize = 900;
/// Octets in a row of base64, RFC 2045 §6.8.
const BASE64_ROW: usize = 57;

/// What an outgoing message is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Composition {
    pub from: (Option<String>, Address),
    pub to: Vec<(Option<String>, Address)>,
    pub cc: Vec<(Option<String>, Address)>,
    pub reply_to: Vec<(Option<String>, Address)>,
    pub subject: String,
    pub text: Option<String>,
    pub html: Option<String>,
    pub attachments: Vec<OutgoingAttachment>,
    /// Custom fields, in their order.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// With or without angle brackets.
    pub message_id: String,
    pub date: Millis,
    pub in_reply_to: Option<String>,
    /// Oldest first.
    pub references: Vec<String>,
    pub auto_submitted: Option<AutoSubmitted>,
}

/// RFC 3834 §5: what kind of machine speaks. Absent: a person does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AutoSubmitted {
    Generated,
    Replied,
}

/// How a part is meant to be shown, RFC 2183 §2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    Attachment,
    Inline,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutgoingAttachment {
    pub filename: Option<String>,
    /// `type/subtype`, parameters allowed; anything else is sent as application/octet-stream.
    pub content_type: String,
    pub disposition: Disposition,
    /// With or without angle brackets; the HTML refers to it as `cid:`.
    pub content_id: Option<String>,
    pub content: Vec<u8>,
}

/// The message as it is stored, signed and sent.
pub fn compose(composition: &Composition) -> Vec<u8> {
    let boundaries = Boundaries { seed: composition.message_id.clone() };
    write(composition, body(composition, &boundaries))
}

/// The header of `composition` over a body built elsewhere: bounces are multipart/report.
pub(crate) fn write(c: &Composition, body: MimePart<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.size() * 3 / 2 + 2048);
    let column = header::begin(&mut out, "Date");
    Date::new(c.date.div_euclid(1000)).write_header(&mut out, column);
    write_addresses(&mut out, "From", std::slice::from_ref(&c.from));
    write_addresses(&mut out, "To", &c.to);
    write_addresses(&mut out, "Cc", &c.cc);
    write_addresses(&mut out, "Reply-To", &c.reply_to);
    header::write_text(&mut out, "Subject", &HeaderValue::cleaned(&c.subject));
    write_ids(&mut out, "Message-ID", msg_id(&c.message_id).into_iter());
    write_ids(&mut out, "In-Reply-To", c.in_reply_to.as_deref().and_then(msg_id).into_iter());
    write_ids(&mut out, "References", trim_references(&c.references).into_iter());
    if let Some(kind) = c.auto_submitted {
        let word = match kind {
            AutoSubmitted::Generated => "auto-generated",
            AutoSubmitted::Replied => "auto-replied",
        };
        out.extend_from_slice(format!("Auto-Submitted: {word}\r\n").as_bytes());
    }
    for (name, value) in &c.headers {
        // The loop rules of other servers read this field: where we set it, an agent cannot talk it away.
        let ours = c.auto_submitted.is_some() && name.as_str().eq_ignore_ascii_case("Auto-Submitted");
        if !ours && !value.as_str().is_empty() {
            header::write_custom(&mut out, name, value);
        }
    }
    out.extend_from_slice(b"MIME-Version: 1.0\r\n");
    body.write_part(&mut out);
    if !out.ends_with(b"\r\n") {
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// RFC 8689 §4: `TLS-Required: No` asks that the message be delivered even where TLS is not as the recipient's domain
/// demands it.
pub fn tls_is_optional(raw: &[u8]) -> bool {
    header_of(raw).split(|octet| *octet == b'\n').any(|line| {
        let (name, value) = line.split_at(line.iter().position(|octet| *octet == b':').unwrap_or(line.len()));
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        name.eq_ignore_ascii_case(b"TLS-Required") && value.eq_ignore_ascii_case(b"no")
    })
}

fn header_of(raw: &[u8]) -> &[u8] {
    let end = raw.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or(raw.len());
    raw.get(..end).unwrap_or_default()
}

fn write_addresses(out: &mut Vec<u8>, name: &str, list: &[(Option<String>, Address)]) {
    if list.is_empty() {
        return;
    }
    let addresses = list.iter().map(|(name, address)| {
        let name = name.as_deref().map(HeaderValue::cleaned).filter(|name| !name.as_str().is_empty());
        MailAddress::Address(EmailAddress {
            name: name.map(|name| phrase(name.as_str()).into()),
            email: address.to_string().into(),
        })
    });
    let column = header::begin(out, name);
    MailAddress::new_list(addresses.collect()).write_header(out, column);
}

/// Display names are cut at what people can read; a longer one is an attack on somebody's screen.
fn phrase(name: &str) -> String {
    const MAX_NAME: usize = 256;
    name.chars().take(MAX_NAME).map(|c| if c == '\t' { ' ' } else { c }).collect()
}

fn write_ids<'a>(out: &mut Vec<u8>, name: &str, ids: impl Iterator<Item = &'a str>) {
    let ids: Vec<&str> = ids.collect();
    if ids.is_empty() {
        return;
    }
    let column = header::begin(out, name);
    MessageId::new_list(ids.into_iter()).write_header(out, column);
}

/// The inside of a Message-ID that can be repeated safely: RFC 5322 §3.6.4 in the form that the world uses,
/// which is printable ASCII without spaces or angle brackets. A parent whose id is anything else is left out.
pub fn msg_id(text: &str) -> Option<&str> {
    let text = text.trim();
    let inner = text.strip_prefix('<').and_then(|t| t.strip_suffix('>')).unwrap_or(text);
    let ok = |b: u8| (33..=126).contains(&b) && b != b'<' && b != b'>';
    (!inner.is_empty() && inner.len() <= MAX_MESSAGE_ID && inner.bytes().all(ok)).then_some(inner)
}

/// RFC 5322 §3.6.4 wants the whole chain; the first (which names the thread) and the last 20 are kept.
fn trim_references(references: &[String]) -> Vec<&str> {
    let mut ids: Vec<&str> = Vec::new();
    for id in references.iter().filter_map(|id| msg_id(id)) {
        if !ids.contains(&id) {
            ids.push(id);
        }
        // The list comes from strangers: once it is absurd, its middle cannot matter.
        if ids.len() > 1_000 {
            ids.drain(1..ids.len() - LAST_REFERENCES);
        }
    }
    if ids.len() > LAST_REFERENCES + 1 {
        ids.drain(1..ids.len() - LAST_REFERENCES);
    }
    ids
}

/// Boundaries that no text can guess, because the Message-ID is random, and that come out the same again.
pub(crate) struct Boundaries {
    pub(crate) seed: String,
}

impl Boundaries {
    pub(crate) fn multipart<'x>(&self, kind: &'static str, parts: Vec<MimePart<'x>>) -> MimePart<'x> {
        MimePart::new(self.content_type(kind), BodyPart::Multipart(parts))
    }

    /// RFC 6522 §3.
    pub(crate) fn report<'x>(&self, report_type: &'static str, parts: Vec<MimePart<'x>>) -> MimePart<'x> {
        let content_type = self.content_type("multipart/report").attribute("report-type", report_type);
        MimePart::new(content_type, BodyPart::Multipart(parts))
    }

    fn content_type(&self, kind: &'static str) -> ContentType<'static> {
        let digest = Sha256::digest(format!("gatepost boundary {kind} {}", self.seed));
        let hex: String = digest.iter().take(15).map(|b| format!("{b:02x}")).collect();
        // "=_" cannot occur in quoted-printable or base64 (RFC 2045 §6.7).
        ContentType::new(kind).attribute("boundary", format!("=_{hex}"))
    }
}

/// mixed( alternative( text, related( html, inline… ) ), attachment… ), each layer only where it is needed.
fn body<'x>(c: &'x Composition, boundaries: &Boundaries) -> MimePart<'x> {
    let refers = |a: &&OutgoingAttachment| a.disposition == Disposition::Inline && c.html.is_some();
    let related: Vec<MimePart<'x>> = c.attachments.iter().filter(refers).map(attachment).collect();
    let mixed: Vec<MimePart<'x>> = c.attachments.iter().filter(|a| !refers(a)).map(attachment).collect();
    let html = c.html.as_deref().map(|html| {
        let html = text_part("text/html", html);
        match related.is_empty() {
            true => html,
            false => {
                boundaries.multipart("multipart/related", std::iter::once(html).chain(related).collect())
            }
        }
    });
    let text = c.text.as_deref().map(|text| text_part("text/plain", text));
    let content = match (text, html) {
        (Some(text), Some(html)) => boundaries.multipart("multipart/alternative", vec![text, html]),
        (Some(part), None) | (None, Some(part)) => part,
        (None, None) => text_part("text/plain", ""),
    };
    match mixed.is_empty() {
        true => content,
        false => boundaries.multipart("multipart/mixed", std::iter::once(content).chain(mixed).collect()),
    }
}

/// A text part with CRLF line ends; mail-builder chooses 7bit, quoted-printable or base64.
pub(crate) fn text_part<'x>(kind: &'static str, text: &str) -> MimePart<'x> {
    MimePart::new(
        ContentType::new(kind).attribute("charset", "utf-8"),
        BodyPart::Text(wire_text(text).into()),
    )
}

/// Every line end becomes CRLF and the last line gets one. RFC 2045 §2.7: NUL has no place in 7bit text.
pub(crate) fn wire_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 32 + 2);
    let mut rest = text;
    while let Some((line, special, after)) =
        memchr::memchr3(b'\r', b'\n', 0, rest.as_bytes()).and_then(|at| split_around(rest, at))
    {
        out.push_str(line);
        rest = match special {
            b'\r' => after.strip_prefix('\n').unwrap_or(after),
            _ => after,
        };
        out.push_str(if special == 0 { "\u{fffd}" } else { "\r\n" });
    }
    out.push_str(rest);
    if !out.is_empty() && !out.ends_with("\r\n") {
        out.push_str("\r\n");
    }
    out
}

/// What is before the ASCII character at `at`, it, and what is behind it.
fn split_around(text: &str, at: usize) -> Option<(&str, u8, &str)> {
    Some((text.get(..at)?, *text.as_bytes().get(at)?, text.get(at + 1..)?))
}

fn attachment(a: &OutgoingAttachment) -> MimePart<'_> {
    let (kind, mut attributes) = content_type(&a.content_type);
    // RFC 2046 §5.2.1: message/rfc822 may be neither base64 nor quoted-printable.
    let whole_message = kind == "message/rfc822";
    let (kind, encoding, content) = match whole_message && is_wire_safe(&a.content) {
        true => (kind, "7bit", a.content.clone()),
        false if whole_message => ("application/octet-stream".to_owned(), "base64", base64_rows(&a.content)),
        false => (kind, "base64", base64_rows(&a.content)),
    };
    let filename = a.filename.as_deref().map(clean_filename).filter(|name| !name.is_empty());
    if let Some(name) = &filename {
        // Old clients read the name here, RFC 2231 encoded like the one below.
        attributes.retain(|(key, _)| key != "name");
        attributes.push(("name".to_owned(), name.clone()));
    }
    let mut content_type = ContentType::new(kind);
    for (key, value) in attributes {
        content_type = content_type.attribute(key, value);
    }
    let mut disposition = ContentType::new(match a.disposition {
        Disposition::Attachment => "attachment",
        Disposition::Inline => "inline",
    });
    if let Some(name) = filename {
        disposition = disposition.attribute("filename", name);
    }
    let mut part = MimePart::new(content_type, BodyPart::Binary(content.into()))
        .header("Content-Disposition", disposition)
        .header("Content-Transfer-Encoding", Raw::new(encoding));
    if let Some(id) = a.content_id.as_deref().and_then(msg_id) {
        part = part.cid(id);
    }
    part
}

/// A name without control characters or directories: what the receiver writes to disk is its own choice.
fn clean_filename(name: &str) -> String {
    const MAX_FILENAME: usize = 255;
    let name = name.rsplit(['/', '\\']).next().unwrap_or_default();
    name.chars().filter(|c| !c.is_control()).take(MAX_FILENAME).collect::<String>().trim().to_owned()
}

/// `type/subtype; key=value` taken apart; what is malformed, or would need a boundary, is octet-stream.
fn content_type(text: &str) -> (String, Vec<(String, String)>) {
    const MAX_TOKEN: usize = 127;
    // RFC 2045 §5.1: token
    let token = |t: &str| {
        !t.is_empty()
            && t.len() <= MAX_TOKEN
            && t.bytes().all(|b| b.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?=*'%".contains(&b))
    };
    let mut pieces = text.split(';');
    let kind = pieces.next().unwrap_or_default().trim().to_ascii_lowercase();
    let well_formed = kind.split_once('/').is_some_and(|(t, s)| token(t) && token(s));
    let composite =
        kind.starts_with("multipart/") || (kind.starts_with("message/") && kind != "message/rfc822");
    if !well_formed || composite {
        return ("application/octet-stream".to_owned(), Vec::new());
    }
    let attributes = pieces.filter_map(|piece| {
        let (key, value) = piece.split_once('=')?;
        let value = value.trim().trim_matches('"');
        let plain = !value.is_empty() && value.len() <= MAX_TOKEN && !value.contains(char::is_control);
        let key = key.trim().to_ascii_lowercase();
        (token(&key) && plain).then(|| (key, value.to_owned()))
    });
    let mut kept: Vec<(String, String)> = Vec::new();
    for (key, value) in attributes.take(8) {
        if !kept.iter().any(|(have, _)| *have == key) {
            kept.push((key, value));
        }
    }
    (kind, kept)
}

fn base64_rows(content: &[u8]) -> Vec<u8> {
    use base64::Engine as _;
    let mut out = String::with_capacity(content.len() * 3 / 2 + 4);
    for row in content.chunks(BASE64_ROW) {
        base64::engine::general_purpose::STANDARD.encode_string(row, &mut out);
        out.push_str("\r\n");
    }
    out.into_bytes()
}

/// 7-bit, only CRLF as line end, no NUL, no line above 998: may travel as it is.
pub(crate) fn is_wire_safe(raw: &[u8]) -> bool {
    let mut line = 0;
    let mut previous = b'\n';
    for &b in raw {
        let lone_cr = previous == b'\r' && b != b'\n';
        let lone_lf = b == b'\n' && previous != b'\r';
        line = if b == b'\n' { 0 } else { line + 1 };
        if b == 0 || b > 127 || lone_cr || lone_lf || line > 999 {
            return false;
        }
        previous = b;
    }
    previous != b'\r'
}

#[cfg(test)]
mod tests;
