//! A bounce that comes back by mail, read: which recipients it speaks of, what became of them, and why.
//!
//! Pure, bounded, linear, and believed by nobody but those who know the return path it came by: anybody can
//! write a message that looks like a bounce. Fields are read where there are any (`fields`), prose where there are
//! none (`prose`); `reason` weighs what was said, by the phrases in `phrases.txt`.
//!
//! An answer of a person or a vacation program is no bounce, whoever it quotes.
//!
//! RFC 3464 (delivery status), RFC 6533 (addresses that are not ASCII), RFC 5965 (complaints), RFC 3463 (codes).

mod candidate;
mod complaint;
mod fields;
mod notice;
mod notification;
mod phrases;
mod prose;
mod reason;
#[cfg(test)]
mod score_tests;
#[cfg(test)]
mod tests;

use crate::address::Address;
use crate::screen::structure::Structure;

pub(crate) use complaint::origin;
pub use reason::Reason;

/// Recipients read from one report: as many as one transaction can have.
const MAX_RECIPIENTS: usize = 100;
/// With more of them the prose is not searched for each: long lists of recipients say why in their fields.
const MAX_SEARCHED_FOR: usize = 20;
/// Characters of the words that are kept for one recipient.
const MAX_TEXT: usize = 900;

/// What a report says, as a whole: the worst of what it says about its recipients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BounceKind {
    /// Not delivered, and nobody tries any more.
    Failure,
    /// Not delivered yet.
    Delay,
    /// Delivered, relayed or expanded: a receipt.
    Delivered,
    /// A recipient called it spam or wants no more of it (RFC 5965), or it failed authentication (RFC 6591).
    Complaint,
}

/// How long the trouble will last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BounceClass {
    /// The address or its host does not exist, takes no mail, or has moved.
    Hard,
    /// Anything else that stood in the way: another day or another message may pass.
    Soft,
    /// No trouble with the delivery: a receipt, a complaint.
    Other,
}

/// A report about mail of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounce {
    pub kind: BounceKind,
    /// Never empty.
    pub recipients: Vec<BouncedRecipient>,
    /// Of a complaint, `Feedback-Type`: `abuse`, `opt-out`, `not-spam`, `auth-failure`, …
    pub feedback: Option<String>,
}

/// One recipient of the message that came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BouncedRecipient {
    /// Where it was delivered in the end, as `Address::key()`; `None` where the report gives none that is one.
    pub address: Option<String>,
    /// The address as the sender wrote it, where the report gives it.
    pub original: Option<String>,
    /// What became of it for this recipient.
    pub kind: BounceKind,
    pub class: BounceClass,
    pub reason: Reason,
    /// Enhanced status code, RFC 3463, where the report gives one.
    pub status: Option<String>,
    /// The code of the SMTP reply, where the report gives one.
    pub code: Option<u16>,
    /// The remote's words, one printable line.
    pub text: String,
}

/// What a message reports about mail that was sent before; `None` for any other message.
pub fn read(raw: &[u8], structure: &Structure) -> Option<Bounce> {
    if let Some(complaint) = complaint::read(raw, structure) {
        return Some(complaint);
    }
    let looks = candidate::looks(structure)?;
    let notice = notice::read(raw, structure);
    if let Some(notification) = notification::read(&notice) {
        return Some(notification);
    }
    let mut recipients = fields::recipients(&notice);
    if recipients.is_empty() {
        recipients = prose::recipients(&notice, looks);
    }
    let kinds: Vec<BounceKind> = recipients.iter().map(|recipient| recipient.kind).collect();
    let worst = [BounceKind::Failure, BounceKind::Delay].into_iter().find(|kind| kinds.contains(kind));
    let kind = worst.or(kinds.first().copied())?;
    Some(Bounce { kind, recipients, feedback: None })
}

/// The reason of a final refusal that we heard ourselves, by its status and the remote's words.
pub(crate) fn reason_of(status: &str, words: &str) -> Reason {
    let status = Some(status.to_owned()).filter(|status| !status.is_empty());
    let said = reason::Said { kind: BounceKind::Failure, status, words, beside: "", by: "smtp" };
    reason::weigh(said).reason
}

/// The first address in a text that somebody typed: `rfc822; <bob@remote.example>`, in the form of `Address::key()`.
fn address(typed: &str) -> Option<String> {
    let (kind, text) = typed.split_once(';').unwrap_or(("", typed));
    let text = text.trim();
    let text = match text.split_once('<') {
        Some((_, inner)) => inner.split('>').next().unwrap_or_default(),
        None => text.split_whitespace().next().unwrap_or_default(),
    };
    // RFC 5321 Appendix C: a source route is to be ignored.
    let text = if text.starts_with('@') { text.rsplit(':').next().unwrap_or_default() } else { text };
    let text = text.trim_matches(|c: char| matches!(c, '"' | '\'' | '(' | ')' | ',' | ':' | ';'));
    let text = match kind.trim().eq_ignore_ascii_case("utf-8") {
        true => fields::utf8_address(text),
        false => text.to_owned(),
    };
    text.parse::<Address>().ok().map(|address| address.key())
}

/// A stranger's words as they are kept: one line, printable, bounded.
fn line(words: &str) -> String {
    let mut line = String::new();
    for word in words.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if line.len() > MAX_TEXT * 4 {
            break;
        }
    }
    line.chars().take(MAX_TEXT).collect()
}
