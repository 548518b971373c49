//! A complaint: a recipient, or the provider in their name, about a message that was delivered.
//!
//! RFC 5965 (abuse reporting format), RFC 6591 (authentication failures), RFC 8058 and Apple's unsubscribe mail.

use super::notice::{MAX_FIELDS, inside_message};
use super::{Bounce, BounceClass, BounceKind, BouncedRecipient, MAX_RECIPIENTS, Reason, fields, line};
use crate::screen::{self, structure::Structure};

/// The word in front of every address that a report may name as the one who complains.
const NAMED: [&str; 3] = ["original-rcpt-to", "removal-recipient", "redacted-address"];

pub(super) fn read(raw: &[u8], structure: &Structure) -> Option<Bounce> {
    // A complaint that somebody forwards is inside of a message, and none about ours.
    let at = structure.parts.iter().enumerate().position(|(at, part)| {
        part.content_type == "message/feedback-report" && !inside_message(structure, at)
    });
    let Some(part) = at.and_then(|at| u32::try_from(at).ok()) else { return unsubscribed(structure) };
    let text = screen::text_head(raw, structure, part, MAX_FIELDS);
    let unfolded = fields::unfolded(&text);
    let mut feedback = None;
    let mut addresses = Vec::new();
    for (name, value) in fields::named(&unfolded) {
        match name.as_str() {
            "feedback-type" => feedback = feedback.or(Some(line(value).to_lowercase())),
            name if NAMED.contains(&name) && addresses.len() < MAX_RECIPIENTS => {
                addresses.extend(super::address(value));
            }
            _ => {}
        }
    }
    addresses.dedup();
    Some(complaint(feedback.unwrap_or_else(|| "other".to_owned()), addresses, structure))
}

/// Apple Mail's unsubscribe button answers by mail, with these words.
fn unsubscribed(structure: &Structure) -> Option<Bounce> {
    let subject = structure.subject.as_deref().unwrap_or_default().trim();
    let button = "apple mail sent this email to unsubscribe";
    let pressed = subject.eq_ignore_ascii_case("unsubscribe")
        && structure.preview.as_ref().is_some_and(|text| text.to_lowercase().starts_with(button));
    let from = structure.from.first().and_then(|from| super::address(&from.address));
    pressed.then(|| complaint("opt-out".to_owned(), from.into_iter().collect(), structure))
}

fn complaint(feedback: String, addresses: Vec<String>, structure: &Structure) -> Bounce {
    let text = line(structure.preview.as_deref().unwrap_or_default());
    let recipient = |address| BouncedRecipient {
        address,
        original: None,
        kind: BounceKind::Complaint,
        class: BounceClass::Other,
        reason: Reason::Feedback,
        status: None,
        code: None,
        text: text.clone(),
    };
    // Many are redacted: then the report is about a message, and nobody is named.
    let mut recipients: Vec<BouncedRecipient> = addresses.into_iter().map(|a| recipient(Some(a))).collect();
    if recipients.is_empty() {
        recipients.push(recipient(None));
    }
    Bounce { kind: BounceKind::Complaint, recipients, feedback: Some(feedback) }
}

/// What a complaint says of the message that it is about: by these words we may know it as ours.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Origin {
    /// The envelope's sender, as the report and the returned header give it.
    pub mail_from: Vec<String>,
    pub message_id: Option<String>,
    /// The author's address.
    pub from: Option<String>,
}

/// The origin that a report names; `None` where the message is no complaint.
pub(crate) fn origin(raw: &[u8], structure: &Structure) -> Option<Origin> {
    let is_report = |at: usize| {
        structure.parts.get(at).is_some_and(|part| part.content_type == "message/feedback-report")
            && !inside_message(structure, at)
    };
    let at = (0..structure.parts.len()).find(|at| is_report(*at))?;
    let mut origin = Origin::default();
    let fields = fields::unfolded(&screen::text_head(raw, structure, u32::try_from(at).ok()?, MAX_FIELDS));
    // RFC 5965 §3.2: Original-Mail-From is the envelope's.
    origin.mail_from.extend(
        fields::named(&fields)
            .filter(|(name, _)| name == "original-mail-from")
            .filter_map(|(_, v)| super::address(v)),
    );
    let returned = structure.parts.iter().enumerate().skip(at + 1).find(|(at, part)| {
        matches!(
            part.content_type.as_str(),
            "message/rfc822" | "text/rfc822-headers" | "message/rfc822-headers"
        ) && !inside_message(structure, *at)
    });
    let Some((_, part)) = returned else { return Some(origin) };
    let (start, end) = (usize::try_from(part.body_at).ok()?, usize::try_from(part.end).ok()?);
    let head = raw.get(start..end.min(start.saturating_add(MAX_ORIGIN))).unwrap_or_default();
    let head = fields::unfolded(&String::from_utf8_lossy(head));
    let head = head.trim_start_matches('\n');
    for (name, value) in fields::named(head.split("\n\n").next().unwrap_or_default()) {
        match name.as_str() {
            "return-path" => origin.mail_from.extend(super::address(value)),
            "message-id" => origin.message_id = origin.message_id.or_else(|| Some(line(value))),
            "from" => origin.from = origin.from.or_else(|| author(value)),
            _ => {}
        }
    }
    origin.mail_from.truncate(4);
    Some(origin)
}

/// Octets of the returned header that are read.
const MAX_ORIGIN: usize = 32 * 1024;

/// The address in a From field, with a name before it or alone.
fn author(value: &str) -> Option<String> {
    let inner = value.rsplit_once('<').map_or(value, |(_, inner)| inner);
    super::address(inner.split('>').next().unwrap_or_default())
}
