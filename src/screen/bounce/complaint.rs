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
