//! What a bounce consists of: the fields for machines, the words for people, and the message that came back.

use crate::screen::{self, structure::Structure};

/// Octets of prose that are read: what a bounce says for itself stands at its beginning.
const MAX_PROSE: usize = 64 * 1024;
/// Octets of status fields: a hundred recipients with long diagnostics.
pub(super) const MAX_FIELDS: usize = 256 * 1024;
/// Octets of the returned message in which its recipient is looked for.
const MAX_RETURNED: usize = 16 * 1024;

/// A bounce, taken apart.
pub(super) struct Notice {
    /// Delivery status, all such parts.
    pub status: String,
    /// The words for people, up to where the returned message begins.
    pub prose: String,
    /// The beginning of the returned message.
    pub returned: String,
    /// Addresses that the header names as those that failed.
    pub failed: Vec<String>,
    /// Whom the bounce is written to, and who writes it: not who failed.
    pub parties: Vec<String>,
    pub subject: String,
}

/// Where the returned message begins, in lower case, at the beginning of a line or after its decoration.
const BEGINS: &[&str] = &[
    "a copy of the original message",
    "begin original message",
    "begin returned message",
    "below is a copy of the",
    "below this line is a copy",
    "below this line is the original",
    "content-type: message/rfc822",
    "content-type: text/rfc822",
    "copy of the original message",
    "copy of your message",
    "enclosed is a copy of the message",
    "failed message follows",
    "header of the original message",
    "here is a copy of the",
    "included is a copy of the message header",
    "message header follows",
    "message headers follow",
    "message text follows",
    "original message",
    "original mail as follows",
    "original text follows",
    "received:",
    "return-path:",
    "returned message",
    "rest of message",
    "the body of the message is",
    "the header of the original",
    "the header page of the message",
    "the message contained",
    "the original message follows",
    "the original message was as follows",
    "the text of your message",
    "the unsent message",
    "this is a copy of the message",
    "this is a copy of your message",
    "this is the header",
    "undelivered message follows",
    "unsent message",
    "your message is enclosed",
    "your message reads",
    "your original message",
    "元のメール",
];

pub(super) fn read(raw: &[u8], structure: &Structure) -> Notice {
    let (mut status, mut plain, mut html, mut returned) = Default::default();
    for (index, part) in structure.parts.iter().enumerate() {
        let Ok(at) = u32::try_from(index) else { break };
        if inside_message(structure, index) {
            continue;
        }
        let (into, limit): (&mut String, usize) = match part.content_type.as_str() {
            "message/rfc822"
            | "message/global"
            | "text/rfc822-headers"
            | "text/rfc822-header"
            | "message/rfc822-headers"
            | "message/global-headers" => (&mut returned, MAX_RETURNED),
            "text/html" => (&mut html, MAX_PROSE * 4),
            kind if kind.contains("delivery-status") || kind.contains("deliverystatus") => {
                (&mut status, MAX_FIELDS)
            }
            // After the returned message come footers and scanners' notes.
            kind if kind.starts_with("text/") && returned.is_empty() => (&mut plain, MAX_PROSE),
            _ => continue,
        };
        if into.len() < limit {
            let room = limit - into.len();
            append(into, &screen::text_head(raw, structure, at, room), limit);
        }
    }
    if plain.trim().is_empty() && !html.is_empty() {
        plain = screen::html_to_text(&html);
    }
    if structure.parts.iter().all(|part| part.content_type.starts_with("multipart/")) {
        // Boundaries that are not there, or a message that is not to be parsed: what remains is text.
        let body = usize::try_from(structure.body_at).ok().and_then(|at| raw.get(at..)).unwrap_or_default();
        let body = body.get(..MAX_PROSE.min(body.len())).unwrap_or_default();
        append(&mut plain, &String::from_utf8_lossy(body), MAX_PROSE);
    }
    let (prose, after) = cut(&plain);
    if returned.is_empty() {
        append(&mut returned, after, MAX_RETURNED);
    }
    let people = structure.to.iter().chain(&structure.from).chain(&structure.cc).chain(&structure.reply_to);
    Notice {
        prose: prose.to_owned(),
        status,
        returned,
        failed: failed(raw),
        parties: people.filter_map(|party| super::address(&party.address)).collect(),
        subject: structure.subject.clone().unwrap_or_default(),
    }
}

fn append(into: &mut String, text: &str, limit: usize) {
    let room = limit.saturating_sub(into.len());
    into.push_str(text.get(..text.floor_char_boundary(room)).unwrap_or_default());
    into.push_str("\n\n");
}

/// Whether the part belongs to a message that is attached.
pub(super) fn inside_message(structure: &Structure, index: usize) -> bool {
    let mut at = structure.parts.get(index).and_then(|part| part.parent);
    // A tree: every parent stands before its children.
    while let Some(part) = at.and_then(|at| structure.parts.get(at as usize)) {
        if part.content_type.starts_with("message/") {
            return true;
        }
        at = part.parent.filter(|parent| Some(*parent) < at);
    }
    false
}

/// The words of the bounce, and what follows them.
fn cut(text: &str) -> (&str, &str) {
    let mut at = 0;
    for raw_line in text.split_inclusive('\n') {
        let start = raw_line.trim_start_matches(|c: char| "-=|*#_~ \t>+\u{2500}".contains(c));
        let head: String = start.chars().take(48).collect::<String>().to_lowercase();
        if at > 0 && BEGINS.iter().any(|begin| head.starts_with(begin)) {
            return text.split_at(at);
        }
        at += raw_line.len();
    }
    (text, "")
}

/// Exim and its like: `X-Failed-Recipients: a@b, c@d`.
fn failed(raw: &[u8]) -> Vec<String> {
    let header = screen::fields::header(raw);
    let values =
        header.all("X-Failed-Recipients").map(|field| String::from_utf8_lossy(field.value).into_owned());
    let all = values.collect::<Vec<_>>().join(",");
    all.split(',').filter_map(super::address).take(super::MAX_RECIPIENTS).collect()
}
