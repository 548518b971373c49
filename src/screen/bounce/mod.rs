//! A bounce that comes back by mail, read: which recipients it speaks of, what became of them, and why.
//!
//! Pure, bounded, and believed by nobody but those who know the return path it came by: anybody can write a
//! message that looks like a bounce.
//!
//! RFC 3464 §2 (per-recipient fields), RFC 6533 (addresses that are not ASCII).

use crate::address::Address;
use crate::screen::{self, structure::Structure};

/// Recipients read from one report: as many as one transaction can have.
const MAX_RECIPIENTS: usize = 100;
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
    /// A recipient called it spam, RFC 5965.
    Complaint,
}

/// How long the failure will last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BounceClass {
    /// The address or its host does not exist, or has moved.
    Hard,
    /// Anything else that failed: another day or another message may pass.
    Soft,
    /// No failure: a delay, a receipt, a complaint.
    Other,
}

/// A report about mail of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounce {
    pub kind: BounceKind,
    pub recipients: Vec<BouncedRecipient>,
}

/// One recipient of the message that came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BouncedRecipient {
    /// Where it was delivered in the end, as `Address::key()`; `None` where the report gives none that is one.
    pub address: Option<String>,
    /// The address as the sender wrote it, where the report gives it.
    pub original: Option<String>,
    pub class: BounceClass,
    /// Enhanced status code, RFC 3463, where the report gives one.
    pub status: Option<String>,
    /// The remote's words, one printable line.
    pub text: String,
}

/// What a message reports about mail that was sent before; `None` for any other message.
pub fn read(raw: &[u8], structure: &Structure) -> Option<Bounce> {
    let at = structure.parts.iter().position(|part| part.content_type == "message/delivery-status")?;
    let part = u32::try_from(at).ok()?;
    let text = String::from_utf8_lossy(&screen::decode_part(raw, structure, part)).into_owned();
    // RFC 3464 §2.1: groups of fields, divided by blank lines; the first group is about the whole message.
    let unfolded = text.replace("\r\n", "\n").replace("\n ", " ").replace("\n\t", " ");
    let groups = unfolded.split("\n\n").filter_map(recipient).take(MAX_RECIPIENTS);
    let (kinds, recipients): (Vec<BounceKind>, Vec<BouncedRecipient>) = groups.unzip();
    let worst = [BounceKind::Failure, BounceKind::Delay].into_iter().find(|kind| kinds.contains(kind));
    let kind = worst.or(kinds.first().copied())?;
    Some(Bounce { kind, recipients })
}

fn recipient(group: &str) -> Option<(BounceKind, BouncedRecipient)> {
    let field = |name: &str| {
        group.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.trim().eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    // RFC 3464 §2.3.3.
    let kind = match field("Action")?.to_ascii_lowercase().as_str() {
        "failed" => BounceKind::Failure,
        "delayed" => BounceKind::Delay,
        _ => BounceKind::Delivered,
    };
    let status = field("Status").unwrap_or_default();
    let status = status.split_whitespace().next().filter(|s| is_status(s)).map(str::to_owned);
    let dead = status.as_deref().is_some_and(|s| ["5.1.1", "5.1.3", "5.1.6", "5.1.10", "5.2.1"].contains(&s));
    let class = match kind {
        BounceKind::Failure if dead => BounceClass::Hard,
        BounceKind::Failure => BounceClass::Soft,
        _ => BounceClass::Other,
    };
    let words = field("Diagnostic-Code").unwrap_or_default();
    let words = words.split_once(';').map_or(words.as_str(), |(_, words)| words).trim();
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    let text = words.chars().map(printable).take(MAX_TEXT).collect();
    let address_in = |name: &str| address(&field(name)?);
    let (address, original) = (address_in("Final-Recipient"), address_in("Original-Recipient"));
    Some((kind, BouncedRecipient { address, original, class, status, text }))
}

/// `rfc822; bob@remote.example`, in the form that addresses are compared in.
fn address(typed: &str) -> Option<String> {
    let text = typed.split_once(';').map_or(typed, |(_, address)| address).trim();
    let text = text.trim_start_matches('<').trim_end_matches('>');
    text.parse::<Address>().ok().map(|address| address.key())
}

fn is_status(text: &str) -> bool {
    let parts: Vec<&str> = text.split('.').collect();
    let number =
        |part: &&str| !part.is_empty() && part.len() <= 3 && part.bytes().all(|b| b.is_ascii_digit());
    parts.len() == 3 && matches!(parts.first(), Some(&"2" | &"4" | &"5")) && parts.iter().all(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(fields: &str) -> Option<Bounce> {
        let raw = format!(
            "From: <>\r\nMIME-Version: 1.0\r\nContent-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n\
             --b\r\nContent-Type: text/plain\r\n\r\nSorry.\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\n\
             Reporting-MTA: dns; mx.remote.example\r\n\r\n{fields}\r\n--b--\r\n"
        );
        read(raw.as_bytes(), &screen::structure(raw.as_bytes()))
    }

    #[test]
    fn failures_are_read_and_delays_are_none() {
        let read = report(
            "Final-Recipient: rfc822; Bob@Remote.example\r\nAction: failed\r\nStatus: 5.1.1\r\n\
             Diagnostic-Code: smtp; 550 5.1.1\r\n no such user\r\n\r\n\
             Original-Recipient: rfc822;<eve@remote.example>\r\nAction: Failed\r\n\r\n\
             Final-Recipient: rfc822; late@remote.example\r\nAction: delayed\r\nStatus: 4.4.1\r\n",
        )
        .unwrap();
        assert_eq!(read.kind, BounceKind::Failure);
        let [bob, eve, late] = read.recipients.as_slice() else { panic!("{read:?}") };
        assert_eq!(bob.address.as_deref(), Some("bob@remote.example"));
        assert_eq!((bob.status.as_deref(), bob.text.as_str()), (Some("5.1.1"), "550 5.1.1 no such user"));
        assert_eq!(bob.class, BounceClass::Hard);
        assert_eq!((eve.original.as_deref(), eve.class), (Some("eve@remote.example"), BounceClass::Soft));
        assert_eq!(late.class, BounceClass::Other);
    }

    #[test]
    fn nonsense_reports_nobody() {
        assert_eq!(report("Final-Recipient: rfc822; bob@remote.example\r\n"), None);
        assert_eq!(report(": : :\r\nAction\r\n\r\n\r\n\r\n"), None);
        let odd = report("Final-Recipient: x400; /S=bob/\r\nAction: failed\r\nStatus: 9.9.9\r\n").unwrap();
        assert_eq!((&odd.recipients[0].address, &odd.recipients[0].status), (&None, &None));
        let plain = b"Subject: x\r\n\r\nAction: failed\r\n";
        assert_eq!(read(plain, &screen::structure(plain)), None);
    }
}
