//! A message becomes understood: its structure, its texts, the words somebody wrote just now.
//!
//! Promises: nothing here fails or panics, whatever the message; the work is linear in its size; what
//! breaks a limit is `unparsed` with the reason, and still says from whom it claims to be.
//! Offsets are octets into exactly the bytes that were given.
//!
//! RFC 5322 (header), RFC 2045 to 2049 (MIME), RFC 2183 (disposition), RFC 2387 (related).

mod body;
pub mod bounce;
pub mod codes;
mod decode;
pub(crate) mod fields;
mod html;
pub mod kind;
mod mime;
mod reply;
pub mod structure;
pub(crate) mod ties;
mod words;

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use codes::{Code, CodeKind};
use kind::Kind;
use structure::{Mailbox, Part, Structure};

/// Characters of the preview.
const PREVIEW: usize = 200;
/// Octets of HTML read for it; style sheets in front of the text take tens of KiB.
const PREVIEW_HTML: usize = 256 * 1024;

/// Reads a message. What cannot be read is `unparsed`, and handed out raw.
pub fn structure(raw: &[u8]) -> Structure {
    contain(|| read(raw)).unwrap_or_else(|| Structure {
        // The last containment: a bug in a parser costs the structure, never the message or the server.
        unparsed: Some("the parser failed on this message".to_owned()),
        ..Structure::default()
    })
}

/// What a message is, and what it holds for its reader.
#[derive(Debug, Clone, PartialEq)]
pub struct Meaning {
    pub kind: Kind,
    pub codes: Vec<Code>,
}

/// What the envelope adds to what the message says of itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sender<'a> {
    /// The domain of the one From address.
    pub domain: Option<&'a str>,
    /// MAIL FROM:<>, which nobody may answer (RFC 5321 §4.5.5).
    pub null: bool,
}

/// Worked out once at delivery: bounded, whatever the size of the message.
pub fn meaning(raw: &[u8], structure: &Structure, sender: Sender<'_>) -> Meaning {
    let header = fields::header(raw);
    let kind = contain(|| kind::kind(raw, structure, &header, sender.null)).unwrap_or(Kind::Person);
    let codes = contain(|| codes_of(raw, structure, sender)).unwrap_or_default();
    let told = codes.iter().any(|code| code.kind == CodeKind::Code && code.confidence > 0.8);
    // Who sends a code to its reader adds the fields of a list all the same.
    let kind = if kind == Kind::List && told { Kind::Notification } else { kind };
    Meaning { kind, codes }
}

fn codes_of(raw: &[u8], structure: &Structure, sender: Sender<'_>) -> Vec<Code> {
    let page = structure.html.map(|part| text_head(raw, structure, part, codes::PAGE_HEAD));
    let first = structure.body.first().copied();
    let is_page = first.is_some() && first == structure.html;
    let text = match (&page, is_page) {
        (Some(page), true) => {
            html_to_text(page.get(..page.floor_char_boundary(codes::TEXT_HEAD)).unwrap_or(page))
        }
        _ => first.map(|part| text_head(raw, structure, part, codes::TEXT_HEAD)).unwrap_or_default(),
    };
    // As the API serves it.
    let text = if text.contains('\r') { text.replace("\r\n", "\n") } else { text };
    let subject = structure.subject.as_deref().unwrap_or_default();
    codes::codes(codes::Texts {
        subject: subject.get(..subject.floor_char_boundary(codes::SUBJECT_HEAD)).unwrap_or_default(),
        text: &text,
        page: page.as_deref(),
        is_page,
        sender: sender.domain,
    })
}

/// Every address of every From field, before anything else is known of the message.
pub fn from_mailboxes(raw: &[u8]) -> Vec<Mailbox> {
    contain(|| words::mailboxes(&fields::header(raw), "From")).unwrap_or_default()
}

/// The octets of a part after transfer decoding; none where there is no such part.
pub fn decode_part(raw: &[u8], structure: &Structure, part: u32) -> Vec<u8> {
    part_octets(raw, structure, part).map(|(octets, _)| octets.into_owned()).unwrap_or_default()
}

/// The text of a part in Unicode, as it stands: HTML stays HTML.
pub fn decode_text(raw: &[u8], structure: &Structure, part: u32) -> String {
    part_octets(raw, structure, part)
        .and_then(|(octets, part)| contain(|| decode::charset(&octets, part.charset.as_deref())))
        .unwrap_or_default()
}

/// The body as text: all its parts in their order, HTML turned into text where there is no other.
pub fn body_text(raw: &[u8], structure: &Structure) -> String {
    let mut whole = String::new();
    for &index in &structure.body {
        let text = readable_text(raw, structure, index, usize::MAX);
        if !whole.is_empty() && !whole.ends_with('\n') && !text.is_empty() {
            whole.push('\n');
        }
        whole.push_str(&text);
    }
    whole
}

/// The text that an HTML page shows.
pub fn html_to_text(html: &str) -> String {
    contain(|| html::to_text(html)).unwrap_or_default()
}

/// The text of `body_text` without quoted history and signature. HTML is cut where its marks say so, before it
/// is turned into text.
pub fn extracted_body(raw: &[u8], structure: &Structure) -> String {
    let mut whole = String::new();
    let mut is_page = true;
    for &index in &structure.body {
        let text = decode_text(raw, structure, index);
        let page = structure.parts.get(index as usize).is_some_and(|part| part.content_type == "text/html");
        let text = match page.then(|| contain(|| reply::extracted_page(&text))).flatten().flatten() {
            Some((_, text)) => text,
            None if page => html_to_text(&text),
            None => text,
        };
        is_page &= page;
        if !whole.is_empty() && !whole.ends_with('\n') && !text.is_empty() {
            whole.push('\n');
        }
        whole.push_str(&text);
    }
    if is_page { whole } else { extracted_text(&whole) }
}

/// The HTML body without quoted history and signature, as a whole document.
pub fn extracted_html(raw: &[u8], structure: &Structure) -> Option<String> {
    let html = decode_text(raw, structure, structure.html?);
    let page = contain(|| reply::extracted_page(&html)).flatten();
    Some(page.map_or(html, |(html, _)| html))
}

/// The new text of a reply, without quoted history and signature.
pub fn extracted_text(text: &str) -> String {
    contain(|| reply::extracted_text(text)).unwrap_or_else(|| text.to_owned())
}

/// The header fields of a message in their order, unfolded and decoded for reading.
pub fn headers(raw: &[u8]) -> Vec<(String, String)> {
    let header = fields::header(raw);
    let shown = |field: &fields::Field<'_>| {
        let name = String::from_utf8_lossy(field.name).into_owned();
        (name, decoded(field).unwrap_or_default())
    };
    header.fields.iter().map(shown).collect()
}

/// One field's value, unfolded and decoded.
pub(crate) fn decoded(field: &fields::Field<'_>) -> Option<String> {
    contain(|| words::text(field)).flatten()
}

fn contain<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

/// The beginning of a part's text, of about `limit` octets.
fn text_head(raw: &[u8], structure: &Structure, part: u32, limit: usize) -> String {
    let Some(octets) = octets_head(raw, structure, part, limit) else { return String::new() };
    let charset = structure.parts.get(part as usize).and_then(|part| part.charset.as_deref());
    contain(|| decode::charset(&octets, charset)).unwrap_or_default()
}

/// The beginning of a part after transfer decoding, at most `limit` octets; all that it costs is bounded by them.
fn octets_head<'a>(raw: &'a [u8], structure: &Structure, part: u32, limit: usize) -> Option<Cow<'a, [u8]>> {
    let part = structure.parts.get(part as usize)?;
    let (start, end) = (usize::try_from(part.body_at).ok()?, usize::try_from(part.end).ok()?);
    // Transfer encodings take up to three octets for one.
    let body = raw.get(start..end.min(start.saturating_add(limit.saturating_mul(3))))?;
    let mut octets = decode::transfer(body, part.encoding);
    if octets.len() > limit {
        // At the end of a line where there is one: half a character would make another charset of the text.
        let line = octets.get(..limit).and_then(|head| head.iter().rposition(|&octet| octet == b'\n'));
        let kept = line.unwrap_or(limit);
        octets = match octets {
            Cow::Borrowed(octets) => Cow::Borrowed(octets.get(..kept).unwrap_or(octets)),
            Cow::Owned(mut octets) => {
                octets.truncate(kept);
                Cow::Owned(octets)
            }
        };
    }
    Some(octets)
}

fn part_octets<'a, 's>(
    raw: &'a [u8],
    structure: &'s Structure,
    part: u32,
) -> Option<(Cow<'a, [u8]>, &'s Part)> {
    let part = structure.parts.get(part as usize)?;
    let body = raw.get(usize::try_from(part.body_at).ok()?..usize::try_from(part.end).ok()?)?;
    Some((decode::transfer(body, part.encoding), part))
}

/// The text of a part, or of about its first `limit` octets; of HTML, what they show.
fn readable_text(raw: &[u8], structure: &Structure, index: u32, limit: usize) -> String {
    let text = match limit {
        usize::MAX => decode_text(raw, structure, index),
        limit => text_head(raw, structure, index, limit),
    };
    match structure.parts.get(index as usize) {
        Some(part) if part.content_type == "text/html" => {
            let end = text.floor_char_boundary(limit);
            html_to_text(text.get(..end).unwrap_or(&text))
        }
        _ => text,
    }
}

/// What the header alone says of a message that is not to be read further.
pub(crate) fn unread(raw: &[u8], why: &str) -> Structure {
    let heading = contain(|| heading(&fields::header(raw))).unwrap_or_default();
    Structure { unparsed: Some(why.to_owned()), ..heading }
}

fn heading(header: &fields::Header<'_>) -> Structure {
    Structure {
        message_id: words::message_id(header),
        in_reply_to: words::in_reply_to(header),
        references: words::message_ids(header, "References"),
        date: header.first("Date").and_then(words::date),
        from: words::mailboxes(header, "From"),
        sender: words::mailboxes(header, "Sender"),
        reply_to: words::mailboxes(header, "Reply-To"),
        to: words::mailboxes(header, "To"),
        cc: words::mailboxes(header, "Cc"),
        bcc: words::mailboxes(header, "Bcc"),
        subject: header.first("Subject").and_then(words::text),
        body_at: header.body_at as u64,
        ..Structure::default()
    }
}

fn read(raw: &[u8]) -> Structure {
    let header = fields::header(raw);
    let mut structure = heading(&header);
    if let Some(excess) = header.excess {
        structure.unparsed = Some(excess.to_string());
        return structure;
    }
    match mime::tree(raw, &header) {
        Ok(parts) => structure.parts = parts,
        Err(error) => {
            structure.unparsed = Some(error.to_string());
            return structure;
        }
    }
    body::choose(&mut structure);
    structure.preview = preview(raw, &structure);
    structure.ties = ties::of(raw, &header, &structure);
    structure
}

/// The first words of the body, white space folded.
fn preview(raw: &[u8], structure: &Structure) -> Option<String> {
    let mut preview = String::new();
    let mut room = PREVIEW;
    for &index in &structure.body {
        let text = readable_text(raw, structure, index, PREVIEW_HTML);
        for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()) {
            let space = usize::from(!preview.is_empty());
            if room <= space {
                return Some(preview);
            }
            if space == 1 {
                preview.push(' ');
            }
            room -= space;
            let fitting = word.chars().take(room);
            preview.extend(fitting);
            room -= word.chars().take(room).count();
        }
    }
    (!preview.is_empty()).then_some(preview)
}

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) mod corpora_tests;

#[cfg(test)]
mod score_tests;
