//! Why a message was not delivered, weighed from what was said: status, reply code, stage of the dialogue, words.
//!
//! The reasons are those that the field knows from libsisimai.org. A host that refuses a recipient by name, or says
//! so in a status, speaks of the address; the same words after the whole message was sent, or from nobody knows
//! where, are how filters speak, and do not condemn an address. What is temporary by its code is never hard.
//!
//! RFC 3463 §3 (what the codes mean), RFC 5321 §4.2 (replies), RFC 7504 (521, 556), RFC 7505 (null MX).

use std::ops::Range;

use super::phrases::{self, Found};
use super::{BounceClass, BounceKind, BouncedRecipient, line};

/// Why. `text()` is the word for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    UserUnknown,
    HostUnknown,
    HasMoved,
    /// The host takes no mail at all.
    NotAccept,
    MailboxFull,
    Suspended,
    Filtered,
    /// Because of the sender's address.
    Rejected,
    AuthFailure,
    BadReputation,
    Blocked,
    RequirePtr,
    SpamDetected,
    VirusDetected,
    PolicyViolation,
    SecurityError,
    ContentError,
    NoRelaying,
    TooBig,
    /// Too much, too fast.
    RateLimited,
    Expired,
    NetworkError,
    SystemError,
    SystemFull,
    MailerError,
    SyntaxError,
    /// Said, and not understood.
    OnHold,
    Undefined,
    Delivered,
    Feedback,
}

impl Reason {
    const ALL: [Reason; 30] = [
        Reason::UserUnknown,
        Reason::HostUnknown,
        Reason::HasMoved,
        Reason::NotAccept,
        Reason::MailboxFull,
        Reason::Suspended,
        Reason::Filtered,
        Reason::Rejected,
        Reason::AuthFailure,
        Reason::BadReputation,
        Reason::Blocked,
        Reason::RequirePtr,
        Reason::SpamDetected,
        Reason::VirusDetected,
        Reason::PolicyViolation,
        Reason::SecurityError,
        Reason::ContentError,
        Reason::NoRelaying,
        Reason::TooBig,
        Reason::RateLimited,
        Reason::Expired,
        Reason::NetworkError,
        Reason::SystemError,
        Reason::SystemFull,
        Reason::MailerError,
        Reason::SyntaxError,
        Reason::OnHold,
        Reason::Undefined,
        Reason::Delivered,
        Reason::Feedback,
    ];

    /// The reverse of `text`.
    pub(super) fn parse(text: &str) -> Option<Reason> {
        Reason::ALL.into_iter().find(|reason| reason.text() == text)
    }

    /// What kind of trouble it is, as events and deliveries say it: `hard`, `mailbox_full`, `policy`, `content`,
    /// `expired`, `soft`, or `complaint`.
    pub fn class_text(self) -> &'static str {
        use Reason::*;
        match self {
            UserUnknown | HostUnknown | HasMoved | NotAccept => "hard",
            MailboxFull => "mailbox_full",
            Rejected | AuthFailure | BadReputation | Blocked | RequirePtr | PolicyViolation
            | SecurityError | NoRelaying | RateLimited | Filtered => "policy",
            SpamDetected | VirusDetected | ContentError | TooBig => "content",
            Expired => "expired",
            Feedback => "complaint",
            Suspended | NetworkError | SystemError | SystemFull | MailerError | SyntaxError | OnHold
            | Undefined | Delivered => "soft",
        }
    }

    pub fn text(self) -> &'static str {
        match self {
            Reason::UserUnknown => "userunknown",
            Reason::HostUnknown => "hostunknown",
            Reason::HasMoved => "hasmoved",
            Reason::NotAccept => "notaccept",
            Reason::MailboxFull => "mailboxfull",
            Reason::Suspended => "suspend",
            Reason::Filtered => "filtered",
            Reason::Rejected => "rejected",
            Reason::AuthFailure => "authfailure",
            Reason::BadReputation => "badreputation",
            Reason::Blocked => "blocked",
            Reason::RequirePtr => "requireptr",
            Reason::SpamDetected => "spamdetected",
            Reason::VirusDetected => "virusdetected",
            Reason::PolicyViolation => "policyviolation",
            Reason::SecurityError => "securityerror",
            Reason::ContentError => "contenterror",
            Reason::NoRelaying => "norelaying",
            Reason::TooBig => "mesgtoobig",
            Reason::RateLimited => "ratelimited",
            Reason::Expired => "expired",
            Reason::NetworkError => "networkerror",
            Reason::SystemError => "systemerror",
            Reason::SystemFull => "systemfull",
            Reason::MailerError => "mailererror",
            Reason::SyntaxError => "syntaxerror",
            Reason::OnHold => "onhold",
            Reason::Undefined => "undefined",
            Reason::Delivered => "delivered",
            Reason::Feedback => "feedback",
        }
    }
}

/// What is known of one recipient's failure.
pub(super) struct Said<'a> {
    pub kind: BounceKind,
    /// From a field for machines.
    pub status: Option<String>,
    /// The remote's words, where they are known to be that.
    pub words: &'a str,
    /// What stands about the recipient in the prose.
    pub beside: &'a str,
    /// The type of Diagnostic-Code: `smtp`, `x-unix`, …
    pub by: &'a str,
}

/// What it comes to.
pub(super) struct Verdict {
    pub reason: Reason,
    pub class: BounceClass,
    pub status: Option<String>,
    pub code: Option<u16>,
}

impl Verdict {
    pub fn recipient(
        self,
        kind: BounceKind,
        address: Option<String>,
        original: Option<String>,
        words: &str,
        beside: &str,
    ) -> BouncedRecipient {
        let Verdict { reason, class, status, code } = self;
        let text = line(if words.trim().is_empty() { beside } else { words });
        BouncedRecipient { address, original, kind, class, reason, status, code, text }
    }
}

/// In which step of the dialogue the message was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Connect,
    Mail,
    Rcpt,
    Data,
}

pub(super) fn weigh(said: Said<'_>) -> Verdict {
    if said.kind == BounceKind::Delivered {
        let status = said.status.or_else(|| status_in(said.words));
        let code = code_in(said.words);
        return Verdict { reason: Reason::Delivered, class: BounceClass::Other, status, code };
    }
    let words = phrases::squeezed(said.words);
    let beside = phrases::squeezed(said.beside);
    // What the remote said itself is more exact than the summary of the system that reports it.
    let spoken = status_in(&words).or_else(|| if words.is_empty() { status_in(&beside) } else { None });
    let status = match (spoken, said.status) {
        (Some(spoken), Some(field)) if is_vague(&spoken) && !is_vague(&field) => Some(field),
        (Some(spoken), _) => Some(spoken),
        (None, Some(field)) if is_vague(&field) => {
            // The summary at least says whether it is final.
            let class = field.get(..1).unwrap_or_default().to_owned();
            let other = status_in(&beside).filter(|other| other.starts_with(&class));
            Some(other.unwrap_or(field))
        }
        (None, Some(field)) => Some(field),
        (None, None) => status_in(&beside),
    };
    let code = code_in(&words).or_else(|| code_in(&beside));
    let mut facts = Facts {
        temporary: is_temporary(status.as_deref(), code),
        status: status.as_deref().unwrap_or_default(),
        code,
        stage: stage(&words).or_else(|| stage(&beside)),
        found: phrases::find(&words),
        by_program: said.by == "x-unix",
    };
    let mut reason = facts.reason();
    if matches!(reason, None | Some(Reason::Filtered | Reason::OnHold)) && !beside.is_empty() {
        facts.found = facts.found.and(phrases::find(&beside));
        reason = facts.reason().or(reason);
    }
    let reason = reason.or_else(|| facts.by_status()).unwrap_or(match said.kind {
        BounceKind::Delay => Reason::Expired,
        _ if words.is_empty() && beside.is_empty() => Reason::Undefined,
        _ => Reason::OnHold,
    });
    let hard =
        matches!(reason, Reason::UserUnknown | Reason::HostUnknown | Reason::HasMoved | Reason::NotAccept)
            && !facts.temporary
            && said.kind == BounceKind::Failure;
    let class = if hard { BounceClass::Hard } else { BounceClass::Soft };
    Verdict { reason, class, status: status.clone(), code }
}

struct Facts<'a> {
    temporary: bool,
    status: &'a str,
    code: Option<u16>,
    stage: Option<Stage>,
    found: Found,
    by_program: bool,
}

impl Facts<'_> {
    /// The first that holds. `None` where the words say nothing that is known.
    fn reason(&self) -> Option<Reason> {
        let has = |reason| self.found.has(reason);
        if self.by_program {
            // A program that was to file it, on their own machine, speaks of itself.
            let of_the_box = [Reason::MailboxFull, Reason::SystemFull, Reason::Suspended];
            return of_the_box.into_iter().find(|reason| has(*reason)).or(match self.status {
                "5.3.0" => Some(Reason::SystemError),
                _ => Some(Reason::MailerError),
            });
        }
        let about_us =
            [Reason::MailboxFull, Reason::Blocked, Reason::HasMoved, Reason::NoRelaying, Reason::Rejected];
        let names_address = ["5.1.1", "5.1.3", "5.1.10"].contains(&self.status);
        let unknown = self.found.surely_unknown() || names_address && !about_us.into_iter().any(has);
        if unknown && (names_address || !has(Reason::Suspended)) {
            return Some(Reason::UserUnknown);
        }
        if has(Reason::NotAccept) || matches!(self.code, Some(521 | 556)) && !has(Reason::Blocked) {
            return Some(Reason::NotAccept);
        }
        if let Some(reason) = ORDER.into_iter().find(|reason| has(*reason)) {
            return Some(reason);
        }
        if self.stage == Some(Stage::Mail) && has(Reason::HostUnknown) {
            return Some(Reason::Rejected);
        }
        if has(Reason::HostUnknown) || matches!(self.status, "5.1.2" | "5.4.4") {
            return Some(Reason::HostUnknown);
        }
        if has(Reason::UserUnknown) {
            let refused_by_name = self.stage == Some(Stage::Rcpt);
            return Some(if refused_by_name { Reason::UserUnknown } else { Reason::Filtered });
        }
        LATER.into_iter().find(|reason| has(*reason)).or(match self.stage {
            Some(Stage::Connect) if self.code.is_some() => Some(Reason::Blocked),
            Some(Stage::Mail) if self.code.is_some() => Some(Reason::Rejected),
            _ => None,
        })
    }

    /// What the status says where the words say nothing: RFC 3463 §3.
    fn by_status(&self) -> Option<Reason> {
        let (_, detail) = self.status.split_once('.')?;
        Some(match detail {
            "1.0" | "1.1" | "1.3" | "1.4" | "1.10" => Reason::UserUnknown,
            "1.2" | "4.4" => Reason::HostUnknown,
            "1.6" => Reason::HasMoved,
            "1.7" | "1.8" | "1.9" => Reason::Rejected,
            "2.0" | "2.4" => Reason::Filtered,
            "2.1" => Reason::Suspended,
            "2.2" => Reason::MailboxFull,
            "2.3" | "3.4" => Reason::TooBig,
            "3.1" => Reason::SystemFull,
            "3.2" if !self.temporary => Reason::NotAccept,
            "3.0" | "3.2" | "3.3" | "3.5" | "4.3" | "4.5" => Reason::SystemError,
            "4.1" | "4.7" | "4.2" => Reason::Expired,
            "4.6" | "4.0" => Reason::NetworkError,
            "5.0" | "5.1" | "5.2" | "5.4" => Reason::SyntaxError,
            "5.3" => Reason::RateLimited,
            "7.1" | "7.2" | "7.0" | "7.3" => Reason::SecurityError,
            "7.13" | "7.14" => Reason::Suspended,
            "7.17" | "7.18" | "7.19" => Reason::HasMoved,
            "7.20" | "7.21" | "7.22" | "7.23" | "7.24" | "7.26" | "7.29" => Reason::AuthFailure,
            "7.25" | "7.27" => Reason::RequirePtr,
            "7.28" => Reason::RateLimited,
            _ if detail.starts_with("6.") => Reason::ContentError,
            _ if detail.starts_with("7.") => Reason::SecurityError,
            _ => return None,
        })
    }
}

/// Told apart from an unknown address by their words, whatever the code.
const ORDER: [Reason; 18] = [
    Reason::MailboxFull,
    Reason::TooBig,
    Reason::AuthFailure,
    Reason::RequirePtr,
    Reason::RateLimited,
    Reason::BadReputation,
    Reason::SpamDetected,
    Reason::VirusDetected,
    Reason::Suspended,
    Reason::HasMoved,
    Reason::NoRelaying,
    Reason::Rejected,
    Reason::PolicyViolation,
    Reason::ContentError,
    Reason::SecurityError,
    Reason::Filtered,
    Reason::Blocked,
    Reason::SystemFull,
];

/// Said of anything.
const LATER: [Reason; 5] =
    [Reason::NetworkError, Reason::Expired, Reason::MailerError, Reason::SyntaxError, Reason::SystemError];

fn is_vague(status: &str) -> bool {
    matches!(status.split_once('.'), Some((_, "0.0" | "5.0" | "3.0" | "2.0")) | None)
}

fn is_temporary(status: Option<&str>, code: Option<u16>) -> bool {
    match status {
        Some(status) => status.starts_with('4'),
        None => code.is_some_and(|code| code < 500),
    }
}

/// The first enhanced status code in a text: `5.1.1`, not the beginning of an address or a version.
pub(super) fn status_in(text: &str) -> Option<String> {
    let octets = text.as_bytes();
    let digits = |from: usize| octets.iter().skip(from).take_while(|b| b.is_ascii_digit()).count();
    let is = |at: usize, octet: u8| octets.get(at) == Some(&octet);
    let edge =
        |octet: Option<&u8>| octet.is_none_or(|b| !b.is_ascii_alphanumeric() && *b != b'.' && *b != b'-');
    for at in memchr::memchr3_iter(b'2', b'4', b'5', octets) {
        let before = at.checked_sub(1).and_then(|before| octets.get(before));
        // `550-5.7.1` is how a reply of several lines goes on.
        let begins = edge(before) || before == Some(&b'-') && at >= 4 && digits(at - 4) == 3;
        if !begins || !is(at + 1, b'.') {
            continue;
        }
        let subject = digits(at + 2);
        let detail = digits(at + 3 + subject);
        let fits = (1..=3).contains(&subject) && is(at + 2 + subject, b'.') && (1..=3).contains(&detail);
        let end = at + 3 + subject + detail;
        let after = octets.get(end);
        let ends = after.is_none_or(|b| !b.is_ascii_alphanumeric())
            && !(after == Some(&b'.') && octets.get(end + 1).is_some_and(u8::is_ascii_digit));
        if fits && ends {
            return text.get(at..end).map(str::to_owned);
        }
    }
    None
}

/// The first SMTP reply code in a text that stands where one can stand.
pub(super) fn code_in(text: &str) -> Option<u16> {
    let octets = text.as_bytes();
    let range = |from: usize, to: usize| -> Range<usize> { from..to };
    for at in memchr::memchr3_iter(b'4', b'5', b'2', octets) {
        let three = octets.get(range(at, at + 3)).filter(|d| d.iter().all(u8::is_ascii_digit));
        let Some(three) = three else { continue };
        let before = at.checked_sub(1).and_then(|before| octets.get(before));
        let begins = before.is_none_or(|b| b" \t\n(<[:>\"'=#".contains(b));
        let ends = octets.get(at + 3).is_none_or(|b| b" \t\n-:);,.#\"'".contains(b));
        let next_is_digit = octets.get(at + 4).is_some_and(u8::is_ascii_digit);
        let dotted = octets.get(at + 3).is_some_and(|b| b".,:".contains(b)) && next_is_digit;
        let code = three.iter().fold(0_u16, |code, digit| code * 10 + u16::from(digit - b'0'));
        if begins && ends && !dotted && matches!(code, 211..=252 | 400..=499 | 500..=577) {
            return Some(code);
        }
    }
    None
}

/// Where the dialogue was, by the words of those who report it.
fn stage(text: &str) -> Option<Stage> {
    const SIGNS: &[(Stage, &[&str])] = &[
        (
            Stage::Data,
            &[
                "after end of data",
                "in reply to end of data",
                "in reply to data",
                "after data",
                "after i sent the message",
                "after the message was sent",
                ">>> data",
                ">>> .",
                "after pipelined data",
                "[data]",
                "(state 17)",
                "(state 18)",
                "did not like our data",
                "end of message",
                "[bdat]",
            ],
        ),
        (
            Stage::Rcpt,
            &[
                "after rcpt to",
                "in reply to rcpt to",
                ">>> rcpt to",
                "[rcpt_to]",
                "rcpt to:<",
                "after rcpt command",
                "does not like recipient",
                "rejected recipient",
                "recipient address rejected",
                "during rcpt",
                "following rcpt",
                "sent <<< rcpt to",
                "(state 13)",
                "(state 14)",
                "did not like our rcpt",
                "rcpt command",
                "rcpt to command",
                "on rcpt",
                "recipient was rejected",
                "recipients was rejected by a remote",
                "after pipelined rcpt to",
            ],
        ),
        (
            Stage::Mail,
            &[
                "after mail from",
                "in reply to mail from",
                ">>> mail from",
                "sender was rejected",
                "does not like sender",
                "after pipelined mail from",
                "mail from command",
                "[mail_from]",
                "(state 9)",
                "did not like our mail",
            ],
        ),
        (
            Stage::Connect,
            &[
                "initial connection",
                "in reply to helo",
                "in reply to ehlo",
                "after ehlo",
                "after helo",
                ">>> helo",
                ">>> ehlo",
                "while talking to me",
                "refused to talk to me",
                "greeting",
                "connected to the server, but",
                "while performing the",
                "but connection died",
            ],
        ),
    ];
    // The step that is named last is the one that failed: a transcript holds those before it too.
    let last = SIGNS.iter().filter_map(|(stage, signs)| {
        signs.iter().filter_map(|sign| text.rfind(sign)).max().map(|at| (at, *stage))
    });
    last.max_by_key(|(at, _)| *at).map(|(_, stage)| stage)
}
