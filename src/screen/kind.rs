//! What kind of message it is, so that an agent knows whom it would answer.
//!
//! Read from what the message says of itself: whoever sends it can say anything, so a kind opens no door and
//! grants nothing. The first of these that fits:
//!
//! `bounce` a mail system about mail of ours (RFC 3464) · `report` for the operator: MDN (RFC 8098), complaint
//! (RFC 5965), DMARC (RFC 9990), TLS (RFC 8460) · `calendar` an invitation or an answer to one (RFC 6047) ·
//! `auto_reply` a machine answers for somebody (RFC 3834) · `list` sent to many (RFC 2919, RFC 2369) ·
//! `notification` a machine writes to this reader · `person` all else.

use serde::{Deserialize, Serialize};

use super::bounce::{self, BounceKind};
use super::fields::Header;
use super::structure::Structure;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = MessageKind)]
pub enum Kind {
    Person,
    AutoReply,
    Bounce,
    List,
    Calendar,
    Notification,
    Report,
}

impl Kind {
    /// As they are stored and served.
    pub const WORDS: [(&str, Kind); 7] = [
        ("person", Kind::Person),
        ("auto_reply", Kind::AutoReply),
        ("bounce", Kind::Bounce),
        ("list", Kind::List),
        ("calendar", Kind::Calendar),
        ("notification", Kind::Notification),
        ("report", Kind::Report),
    ];

    pub fn word(self) -> &'static str {
        Kind::WORDS.iter().find(|(_, kind)| *kind == self).map_or("person", |(word, _)| word)
    }

    pub fn parse(word: &str) -> Option<Kind> {
        Kind::WORDS.iter().find(|(known, _)| *known == word).map(|(_, kind)| *kind)
    }
}

/// Octets of a calendar part looked at for its method, which stands at its beginning (RFC 5545 §3.6).
const CALENDAR_HEAD: usize = 4096;

/// iTIP methods that belong to a conversation about a meeting (RFC 5546 §1.4). PUBLISH is a ticket to keep.
const SCHEDULING: [&str; 7] = ["request", "reply", "cancel", "counter", "declinecounter", "refresh", "add"];

/// How out-of-office answers begin their subject, in lower case. Exchange marks them as `auto-generated`, like
/// every other machine's mail, and tells them apart here alone.
const AUTO_REPLY_SUBJECTS: [&str; 22] = [
    "automatic reply",
    "auto reply",
    "auto-reply",
    "autoreply",
    "out of office",
    "automatische antwort",
    "abwesenheit",
    "automatisch antwoord",
    "réponse automatique",
    "reponse automatique",
    "respuesta automática",
    "risposta automatica",
    "resposta automática",
    "automatiskt svar",
    "automatisk svar",
    "automaattinen vastaus",
    "automatická odpověď",
    "odpowiedź automatyczna",
    "автоматический ответ",
    "自動応答",
    "自动回复",
    "자동 회신",
];

/// Local parts, or their beginnings, that nobody reads behind.
const MACHINES: [&str; 16] = [
    "noreply",
    "no-reply",
    "no_reply",
    "no.reply",
    "donotreply",
    "do-not-reply",
    "do_not_reply",
    "notification",
    "notify",
    "mailer-daemon",
    "postmaster",
    "automated",
    "auto-confirm",
    "bounce",
    "account-security",
    "nepasrepondre",
];

pub(super) fn kind(raw: &[u8], structure: &Structure, header: &Header<'_>, null_sender: bool) -> Kind {
    let machine = Machine::of(header);
    if let Some(kind) = by_parts(raw, structure, header) {
        return kind;
    }
    match bounce::read(raw, structure).map(|bounce| bounce.kind) {
        Some(BounceKind::Complaint) => return Kind::Report,
        Some(_) => return Kind::Bounce,
        None => {}
    }
    if machine.replied || (machine.hushed && has_auto_reply_subject(structure)) {
        return Kind::AutoReply;
    }
    let to_many =
        ["List-Id", "List-Post", "List-Unsubscribe"].iter().any(|name| header.first(name).is_some());
    let precedence = token(header, "Precedence");
    if to_many || matches!(precedence.as_deref(), Some("list" | "bulk" | "junk")) {
        return Kind::List;
    }
    if machine.generated || machine.hushed || null_sender || header.first("Feedback-ID").is_some() {
        return Kind::Notification;
    }
    let local = |address: &str| address.split('@').next().unwrap_or_default().to_ascii_lowercase();
    let by_machine = |address: &str| MACHINES.iter().any(|start| local(address).starts_with(start));
    if structure.from.iter().any(|from| by_machine(&from.address)) {
        return Kind::Notification;
    }
    Kind::Person
}

/// What the header says about machines.
struct Machine {
    replied: bool,
    generated: bool,
    /// Asks not to be answered by machines, as Exchange's and other machines' mail does.
    hushed: bool,
}

impl Machine {
    fn of(header: &Header<'_>) -> Machine {
        let submitted = token(header, "Auto-Submitted");
        // What vacation programs wrote before RFC 3834, and some still write.
        let old = ["X-Autoreply", "X-Autorespond", "X-Autoreply-From", "X-Auto-Reply"];
        let said_yes =
            |name: &&str| token(header, name).is_some_and(|value| !matches!(value.as_str(), "no" | "false"));
        let precedence = token(header, "Precedence");
        Machine {
            // RFC 3834 §5: `auto-replied` answers a message, whatever parameters follow.
            replied: submitted.as_deref() == Some("auto-replied")
                || matches!(precedence.as_deref(), Some("auto_reply" | "auto-reply" | "autoreply"))
                || old.iter().any(said_yes),
            generated: submitted.as_deref().is_some_and(|value| value != "no"),
            hushed: header.first("X-Auto-Response-Suppress").is_some()
                || header.first("X-MS-Exchange-Inbox-Rules-Loop").is_some()
                || submitted.as_deref() == Some("auto-generated"),
        }
    }
}

/// The first word of a field, in lower case.
fn token(header: &Header<'_>, name: &str) -> Option<String> {
    let value = header.first(name)?.value.trim_ascii();
    let end = value.iter().position(|octet| b" \t\r\n;(,".contains(octet)).unwrap_or(value.len());
    let word = value.get(..end).filter(|word| !word.is_empty())?;
    Some(String::from_utf8_lossy(word).to_ascii_lowercase())
}

fn has_auto_reply_subject(structure: &Structure) -> bool {
    let subject = structure.subject.as_deref().unwrap_or_default().trim_start().to_lowercase();
    AUTO_REPLY_SUBJECTS.iter().any(|start| subject.starts_with(start))
}

/// Reports and calendars say what they are by the types of their parts.
fn by_parts(raw: &[u8], structure: &Structure, header: &Header<'_>) -> Option<Kind> {
    // A part of a message that is attached says nothing about the one it came in.
    let mut inside = vec![false; structure.parts.len()];
    let mut found = None;
    for (index, part) in structure.parts.iter().enumerate() {
        let above = part.parent.map(|parent| parent as usize);
        let enclosed = above.is_some_and(|above| {
            inside.get(above).copied().unwrap_or_default()
                || structure.parts.get(above).is_some_and(|p| p.content_type.starts_with("message/"))
        });
        if let Some(slot) = inside.get_mut(index) {
            *slot = enclosed;
        }
        if enclosed {
            continue;
        }
        match part.content_type.as_str() {
            "message/delivery-status" | "message/global-delivery-status" => return Some(Kind::Bounce),
            "message/disposition-notification"
            | "message/global-disposition-notification"
            | "message/feedback-report"
            | "application/tlsrpt+gzip"
            | "application/tlsrpt+json" => found = Some(Kind::Report),
            "text/calendar" if found.is_none() && is_scheduling(raw, structure, index as u32) => {
                found = Some(Kind::Calendar);
            }
            _ if found.is_none() && part.filename.as_deref().is_some_and(is_dmarc_report) => {
                found = Some(Kind::Report);
            }
            _ => {}
        }
    }
    found.or_else(|| header.first("TLS-Report-Domain").is_some().then_some(Kind::Report))
}

/// RFC 7489 §7.2.1.1, kept by RFC 9990: `receiver!domain!begin!end[!id].xml[.gz|.zip]`.
fn is_dmarc_report(filename: &str) -> bool {
    let mut parts = filename.split('!').skip(2);
    let is_time = |text: &str| text.len() >= 9 && text.bytes().all(|octet| octet.is_ascii_digit());
    let begins = parts.next().is_some_and(is_time);
    let ends = parts.next().and_then(|end| end.split('.').next()).is_some_and(is_time);
    begins && ends
}

fn is_scheduling(raw: &[u8], structure: &Structure, index: u32) -> bool {
    let head = super::text_head(raw, structure, index, CALENDAR_HEAD);
    let method = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("METHOD").then(|| value.trim().to_ascii_lowercase())
    });
    method.is_some_and(|method| SCHEDULING.contains(&method.as_str()))
}
