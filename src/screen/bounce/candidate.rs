//! Whether a message may be a bounce at all: asked for every message, so it is asked of the structure alone.

use std::sync::LazyLock;

use aho_corasick::AhoCorasick;

use crate::screen::structure::Structure;

/// How sure it is before the text is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Looks {
    /// It has parts for machines, or a mail system wrote it and its subject says so.
    Like,
    /// A mail system wrote it: only with words of failure beside an address.
    ByDaemon,
    /// Its subject alone says so, as that of a parcel service might, or nobody wrote it: only with an address and
    /// a reason that is known.
    BySubject,
}

/// In the subjects that mail systems give their bounces; in lower case.
const SUBJECTS: &[&str] = &[
    "[bounce]",
    "a message was not delivered",
    "address unknown",
    "aws notification message",
    "amazon ses",
    "benachrichtigung zum übermittlungsstatus",
    "cannot send message",
    "could not be delivered",
    "could not send message",
    "delayed mail",
    "delivery delayed",
    "delivery delay",
    "delivery error",
    "delivery fail",
    "delivery has failed",
    "delivery notification",
    "delivery problem",
    "delivery report",
    "delivery status",
    "delivery unsuccessful",
    "deliverystatus",
    "email delivery failure",
    "error sending",
    "failed delivery",
    "failed mail",
    "failed to deliver",
    "failure notice",
    "failure delivery",
    "mail could not be delivered",
    "mail delivery",
    "mail failed, returning",
    "mail failure",
    "mail not delivered",
    "mail system error",
    "message could not be delivered",
    "message delayed",
    "message delivery",
    "message not delivered",
    "message you sent",
    "nachricht unzustellbar",
    "non recapitabile",
    "non remis",
    "non-delivery",
    "nondeliverable",
    "not delivered",
    "no se puede entregar",
    "não entregue",
    "onbestelbaar",
    "ondeliverable",
    "permanent delivery",
    "postmaster notify",
    "problème de remise",
    "rejected mail",
    "returned mail",
    "returned message",
    "returned to sender",
    "returning message to sender",
    "returning to sender",
    "sending problem",
    "transient failure",
    "unable to deliver",
    "unbestellbar",
    "undeliver",
    "unzustellbar",
    "was not delivered",
    "warning: could not send",
    "warning: message ",
    "エラー通知",
    "エラーメール",
    "送信エラー",
    "配信不能",
    "配信エラー",
    "不達",
    "退信",
    "недоставлен",
    "не доставлен",
];

/// In the subjects of programs that write under other names.
const CERTAIN: [&str; 2] = ["loop alert: duplicated message-id", "are not member"];

/// Local parts of those who write bounces.
const DAEMONS: &[&str] = &[
    "daemon",
    "mail-daemon",
    "mail.daemon",
    "mailadm",
    "maildaemon",
    "mailer-daemon",
    "mailer_daemon",
    "mailerdaemon",
    "mdaemon",
    "mta",
    "post_master",
    "postmaster",
    "symantec_antivirus_for_smtp_gateways",
    "uucp",
];

/// In their display names.
const NAMES: [&str; 9] = [
    "delivery system",
    "delivery subsystem",
    "mail administrator",
    "mail delivery",
    "mailer-daemon",
    "mailer daemon",
    "mail system",
    "postmaster",
    "system administrator",
];

/// The beginnings of answers and forwards: a person sends those.
const ANSWERS: [&str; 8] = ["re:", "aw:", "fw:", "fwd:", "sv:", "wg:", "tr:", "antw:"];

static IN_SUBJECT: LazyLock<Option<AhoCorasick>> = LazyLock::new(|| AhoCorasick::new(SUBJECTS).ok());

pub(super) fn looks(structure: &Structure) -> Option<Looks> {
    let status = |content_type: &str| {
        matches!(
            content_type,
            "message/delivery-status" | "message/global-delivery-status" | "message/deliverystatus"
        )
    };
    let own = |part: &crate::screen::structure::Part| {
        // The bounce that somebody forwards is inside of a message.
        let parent = part.parent.and_then(|at| structure.parts.get(at as usize));
        parent.is_none_or(|parent| !parent.content_type.starts_with("message/"))
    };
    if structure.parts.iter().any(|part| status(&part.content_type) && own(part)) {
        return Some(Looks::Like);
    }
    let subject = structure.subject.as_deref().unwrap_or_default().trim().to_lowercase();
    if ANSWERS.iter().any(|answer| subject.starts_with(answer)) {
        return None;
    }
    let daemon = written_by_daemon(structure);
    if CERTAIN.iter().any(|words| subject.contains(words)) {
        return Some(Looks::Like);
    }
    let says_so = IN_SUBJECT.as_ref().is_some_and(|subjects| subjects.is_match(&subject));
    match (says_so, daemon) {
        (true, true) => Some(Looks::Like),
        (true, false) => Some(Looks::BySubject),
        (false, true) => Some(Looks::ByDaemon),
        // Some providers, and Amazon's notifications in JSON.
        (false, false) => written_by_nobody(structure).then_some(Looks::BySubject),
    }
}

fn written_by_nobody(structure: &Structure) -> bool {
    let local = |from: &crate::screen::structure::Mailbox| {
        from.address.split('@').next().unwrap_or_default().to_ascii_lowercase()
    };
    structure.from.iter().any(|from| ["no-reply", "noreply"].contains(&local(from).as_str()))
}

fn written_by_daemon(structure: &Structure) -> bool {
    let [from] = structure.from.as_slice() else { return structure.from.is_empty() };
    let address = from.address.to_lowercase();
    let local = address.split('@').next().unwrap_or_default();
    let name = from.name.as_deref().unwrap_or_default().to_lowercase();
    address.is_empty() || DAEMONS.contains(&local) || NAMES.iter().any(|daemon| name.contains(daemon))
}
