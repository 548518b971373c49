//! What ties a message to others beside its own References: the names of a whole conversation, the mail that a
//! report sends back, the list that it came through.
//!
//! Read once with the structure, bounded, and not stored with it. Nothing here is believed: whether a tie lets
//! a message into a thread is for `inbox::threading` to say.
//!
//! RFC 5546 §1.4, RFC 6047 §2.4 (invitations), RFC 3464 and RFC 3462 (reports), RFC 2919, RFC 2369 (lists),
//! [MS-OXOMSG] §2.2.1.3 (Thread-Index: 22 octets name the conversation, five more each answer).

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::fields::{self, Header};
use super::structure::Structure;
use super::{octets_head, text_head, words};

/// The octets of a Thread-Index that all messages of a conversation share: a time and a GUID.
const CONVERSATION: usize = 22;
/// Octets of an invitation's UID. RFC 7986 §5.3 suggests below 255.
const MAX_UID: usize = 255;
/// Octets of a calendar part that are read: invitations with a long description are some 20 KiB.
const MAX_CALENDAR: usize = 128 * 1024;
/// Octets of a bounce in free text in which the returned header is looked for.
const MAX_FREE_TEXT: usize = 64 * 1024;
/// Returned messages that are kept, and parts that are looked at for them.
const MAX_RETURNED: usize = 4;
const MAX_LOOKED_AT: usize = 32;

/// White space from folds is taken out before; padding is often missing.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ties {
    /// Names that all messages of a conversation share: `index:…` of Outlook, `event:…` of an invitation.
    pub names: Vec<String>,
    /// It reports on other mail: a bounce, a delay, a complaint.
    pub is_report: bool,
    /// The Message-IDs of the mail that the report sends back.
    pub returned: Vec<String>,
    /// It came through a mailing list.
    pub by_list: bool,
    /// Which one, in lower case.
    pub list_id: Option<String>,
    /// Where the list takes mail.
    pub list_post: Option<String>,
}

pub(super) fn of(raw: &[u8], header: &Header<'_>, structure: &Structure) -> Ties {
    let mut ties = Ties {
        by_list: header.first("List-Id").or_else(|| header.first("List-Post")).is_some(),
        list_id: header.first("List-Id").and_then(|field| list_id(field.value)),
        list_post: header.first("List-Post").and_then(|field| posting_address(field.value)),
        ..Ties::default()
    };
    ties.names.extend(header.first("Thread-Index").and_then(|field| conversation(field.value)));
    for (index, part) in structure.parts.iter().enumerate() {
        match part.content_type.as_str() {
            "text/calendar" if ties.names.len() < 2 && part.size <= MAX_CALENDAR as u64 => {
                ties.names.extend(invitation(&text_head(raw, structure, index as u32, MAX_CALENDAR)));
            }
            "message/delivery-status" | "message/global-delivery-status" | "message/feedback-report" => {
                ties.is_report = true;
            }
            _ => {}
        }
    }
    if ties.is_report {
        ties.returned = returned(raw, structure);
    } else if is_free_text_bounce(header, structure) {
        ties.is_report = true;
        ties.returned = returned(raw, structure);
        if ties.returned.is_empty() {
            ties.returned = quoted_in_text(raw, structure);
        }
    }
    ties
}

/// `Words <list.host>`, RFC 2919 §2.
fn list_id(value: &[u8]) -> Option<String> {
    let id = words::first_identifier(value)?.to_ascii_lowercase();
    let id = id.trim_start_matches('<').trim_end_matches('>');
    (id.contains('.') && id.len() <= MAX_UID).then(|| id.to_owned())
}

/// `<mailto:list@x>`, RFC 2369 §3.4.
fn posting_address(value: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(value);
    let (_, rest) = text.split_once("<mailto:")?;
    let address = rest.split(['>', '?']).next()?;
    Some(words::clean(address)).filter(|address| !address.is_empty())
}

/// `index:` and the conversation's octets.
fn conversation(value: &[u8]) -> Option<String> {
    let visible: Vec<u8> = value.iter().copied().filter(u8::is_ascii_graphic).collect();
    let octets = LENIENT.decode(visible).ok()?;
    Some(format!("index:{}", LENIENT.encode(octets.get(..CONVERSATION)?)))
}

/// The UID of the event that a calendar message (one with a METHOD) is about.
fn invitation(text: &str) -> Option<String> {
    // RFC 5545 §3.1: a line that begins with white space goes on from the one before.
    let unfolded = text.replace("\r\n", "\n").replace("\n ", "").replace("\n\t", "");
    let value = |name: &str| {
        unfolded.lines().find_map(|line| {
            let rest = line.get(name.len()..)?;
            let named = line.get(..name.len())?.eq_ignore_ascii_case(name);
            let (parameters, value) = rest.split_once(':')?;
            (named && (parameters.is_empty() || parameters.starts_with(';'))).then(|| words::clean(value))
        })
    };
    value("METHOD")?;
    value("UID").filter(|uid| !uid.is_empty() && uid.len() <= MAX_UID).map(|uid| format!("event:{uid}"))
}

/// The Message-IDs of what stands in message/rfc822 and text/rfc822-headers.
fn returned(raw: &[u8], structure: &Structure) -> Vec<String> {
    let is_mail = |kind: &str| {
        matches!(kind, "message/rfc822" | "message/global" | "text/rfc822-headers" | "message/global-headers")
    };
    let parts = structure.parts.iter().enumerate().filter(|(_, part)| is_mail(&part.content_type));
    parts
        .take(MAX_LOOKED_AT)
        .filter_map(|(index, _)| {
            let octets = octets_head(raw, structure, index as u32, fields::MAX_HEADER_OCTETS)?;
            words::message_id(&fields::header(&octets))
        })
        .take(MAX_RETURNED)
        .collect()
}

/// Bounces of qmail, Exim and their like: nothing but text, from nobody and a daemon (RFC 5321 §4.5.5).
fn is_free_text_bounce(header: &Header<'_>, structure: &Structure) -> bool {
    let from_nobody = header.first("Return-Path").is_some_and(|field| field.value.trim_ascii() == b"<>");
    let daemon = structure.from.first().is_some_and(|from| {
        let local = from.address.split('@').next().unwrap_or_default();
        ["mailer-daemon", "postmaster"].iter().any(|name| local.eq_ignore_ascii_case(name))
    });
    from_nobody && (daemon || header.first("X-Failed-Recipients").is_some())
}

/// `Message-ID: <…>` on a line of the text, quoted or not.
fn quoted_in_text(raw: &[u8], structure: &Structure) -> Vec<String> {
    let Some(&index) = structure.body.first() else { return Vec::new() };
    let text = text_head(raw, structure, index, MAX_FREE_TEXT);
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (n, line) in lines.iter().enumerate() {
        let line = line.trim_start_matches([' ', '\t', '>', '|']);
        let Some((name, value)) = line.split_once(':') else { continue };
        if !name.trim_end().eq_ignore_ascii_case("message-id") {
            continue;
        }
        // A folded identifier stands on the next line.
        let value =
            if value.trim().is_empty() { lines.get(n + 1).copied().unwrap_or_default() } else { value };
        found.extend(words::first_identifier(value.as_bytes()));
        if found.len() == MAX_RETURNED {
            break;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ties(raw: &str) -> Ties {
        crate::screen::structure(raw.replace('\n', "\r\n").as_bytes()).ties
    }

    #[test]
    fn an_outlook_conversation_has_one_name() {
        let root = [1u8; 22];
        let answer: Vec<u8> = root.iter().copied().chain([7; 5]).collect();
        let index = |octets: &[u8]| {
            ties(&format!(
                "Thread-Index: {}\n\nx\n",
                base64::engine::general_purpose::STANDARD.encode(octets)
            ))
        };
        assert_eq!(index(&root).names.len(), 1);
        assert_eq!(index(&root), index(&answer));
        assert_eq!(index(&[1u8; 21]).names, Vec::<String>::new(), "too short to name anything");
        assert_eq!(ties("Thread-Index: !!\n\nx\n"), Ties::default());
        // Folded, and without padding.
        assert_eq!(ties("Thread-Index: AQEBAQEBAQEBAQEB\n AQEBAQEBAQEBAQEBAQ\n\nx\n"), index(&root));
    }

    #[test]
    fn an_invitation_is_named_by_its_uid() {
        let calendar = |lines: &str| ties(&format!("Content-Type: text/calendar\n\n{lines}")).names;
        let reply = "BEGIN:VCALENDAR\nMETHOD:REPLY\nBEGIN:VEVENT\nUID;X-A=b:040000\n 8200@x\nEND:VEVENT\n";
        assert_eq!(calendar(reply), ["event:0400008200@x"]);
        assert_eq!(calendar("UID:1\n"), Vec::<String>::new(), "a calendar file, no invitation");
        assert_eq!(calendar(&format!("METHOD:REPLY\nUID:{}\n", "x".repeat(256))), Vec::<String>::new());
    }

    #[test]
    fn what_a_report_sends_back_is_found_in_every_form() {
        let report = |part: &str| {
            ties(&format!(
                "Content-Type: multipart/report; boundary=b\n\n--b\nContent-Type: message/delivery-status\n\n\
                 Action: failed\n\n--b\n{part}\n--b--\n"
            ))
        };
        for part in [
            "Content-Type: message/rfc822\n\nMessage-ID: <a@b>\nSubject: x\n\nbody\n",
            "Content-Type: text/rfc822-headers\n\nSubject: x\nMessage-ID:\n <a@b>\n",
            "Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\nTWVzc2FnZS1JRDogPGFAYj4KCng=\n",
        ] {
            assert_eq!(report(part).returned, ["<a@b>"], "{part}");
        }
        let qmail = "Return-Path: <>\nFrom: MAILER-DAEMON@x\n\nHi. This is the qmail-send program.\n\n\
                     --- Below this line is a copy of the message.\n\n> Message-Id:\n>  <a@b>\n";
        assert_eq!(ties(qmail).returned, ["<a@b>"]);
        // A message somebody attached is no report.
        let forward = "Content-Type: message/rfc822\n\nMessage-ID: <a@b>\n\nbody\n";
        assert_eq!(ties(forward), Ties::default());
        assert_eq!(ties(&qmail.replace("MAILER-DAEMON@x", "bob@x")), Ties::default());
    }
}
