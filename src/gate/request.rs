//! A request to send becomes a composition: addresses parsed, the thread's headers found, the header types
//! made that cannot hold a line break. What is wrong with a request is said with the name of its field.

use super::SendError;
use crate::address::Address;
use crate::clock::Millis;
use crate::config::limits::LONGEST_PLAN;
use crate::deliver::compose::{AutoSubmitted, Composition, OutgoingAttachment};
use crate::deliver::header::{HeaderName, HeaderValue};
use crate::ids::{RowId, random_token};
use crate::inbox::is_answer;
use crate::store::delivery::Priority;
use crate::store::inbox::Inbox;
use crate::store::message::{Direction, Message};

/// Recipients of one message over To, Cc and Bcc.
pub const MAX_RECIPIENTS: usize = 50;
/// Octets of a subject: eight lines of a header.
const MAX_SUBJECT: usize = 998 * 8;
/// Custom header fields of one message.
const MAX_CUSTOM_HEADERS: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendKind {
    New,
    /// Answers the message with this key, its sender alone or everybody.
    Reply {
        message_key: i64,
        all: bool,
    },
}

/// The work that a send belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkRef {
    pub item: RowId,
    pub fence: i64,
}

/// A name under which a send is done once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    pub name: String,
    /// SHA-256 over what makes two requests the same.
    pub request_hash: Vec<u8>,
}

/// What an agent asks to be sent, whichever way it came.
#[derive(Debug, Clone)]
pub struct SendRequest {
    pub kind: SendKind,
    /// `user@domain` or `Name <user@domain>`. Empty lists of a reply mean: whoever wrote.
    pub to: Vec<String>,
    pub cc: Vec<String>,
    pub bcc: Vec<String>,
    pub reply_to: Vec<String>,
    /// A reply takes its parent's where there is none.
    pub subject: Option<String>,
    pub text: Option<String>,
    pub html: Option<String>,
    pub attachments: Vec<OutgoingAttachment>,
    pub headers: Vec<(String, String)>,
    pub labels: Vec<String>,
    pub work: Option<WorkRef>,
    /// The thread's version that the text was written against.
    pub context_version: Option<i64>,
    pub run_id: Option<String>,
    /// To many, and in no hurry.
    pub priority: Priority,
    /// Not before this time.
    pub send_at: Option<Millis>,
    /// Only say what would become of it.
    pub dry_run: bool,
    pub idempotency: Option<Idempotency>,
    /// One of many alike: it says how to unsubscribe.
    pub bulk: bool,
    /// Only over hosts that prove themselves and keep it in TLS (RFC 8689); `None`: as what it answers.
    pub require_tls: Option<bool>,
}

/// A request that can be sent: what to write, to whom.
pub(super) struct Prepared {
    pub composition: Composition,
    pub to: Vec<Named>,
    pub cc: Vec<Named>,
    pub bcc: Vec<Named>,
    /// Everybody once, in the order To, Cc, Bcc.
    pub recipients: Vec<Address>,
}

pub(super) type Named = (Option<String>, Address);

pub(super) fn prepare(
    inbox: &Inbox,
    request: &SendRequest,
    parent: Option<&Message>,
    date: Millis,
) -> Result<Prepared, SendError> {
    if request.send_at.is_some_and(|at| at > date.saturating_add(LONGEST_PLAN)) {
        let message = "is at most 90 days ahead".to_owned();
        return Err(SendError::Invalid { field: "send_at", message });
    }
    let own: Address = inbox.address.parse().map_err(|_| SendError::NotFound)?;
    let (mut to, mut cc) = (parse_list("to", &request.to)?, parse_list("cc", &request.cc)?);
    let bcc = parse_list("bcc", &request.bcc)?;
    if let (SendKind::Reply { all, .. }, Some(parent)) = (request.kind, parent)
        && to.is_empty()
        && cc.is_empty()
        && bcc.is_empty()
    {
        (to, cc) = answer_to(parent, all, &own);
    }
    let recipients = everybody(&to, &cc, &bcc);
    let message_id = format!("<{}@{}>", random_token::<16>(), own.domain());
    let composition = Composition {
        from: (inbox.display_name.clone(), own),
        to: to.clone(),
        cc: cc.clone(),
        reply_to: parse_list("reply_to", &request.reply_to)?,
        subject: subject(request, parent)?,
        text: request.text.clone(),
        html: request.html.clone(),
        attachments: request.attachments.clone(),
        headers: custom_headers(&request.headers)?,
        message_id,
        // What is planned is dated when it leaves: its reader would take it for late otherwise.
        date: request.send_at.map_or(date, |at| at.max(date)),
        in_reply_to: parent.and_then(|p| p.rfc_message_id.clone()),
        references: parent.map(references).unwrap_or_default(),
        // RFC 3834 §5: what an agent answers by itself says so; what a person let go does not.
        auto_submitted: match request.kind {
            SendKind::Reply { .. } if request.priority != Priority::Approved => Some(AutoSubmitted::Replied),
            _ => None,
        },
    };
    Ok(Prepared { composition, to, cc, bcc, recipients })
}

fn parse_list(field: &'static str, texts: &[String]) -> Result<Vec<Named>, SendError> {
    texts.iter().map(|text| parse_named(field, text)).collect()
}

/// `user@domain` or `Name <user@domain>`; the name may be quoted.
fn parse_named(field: &'static str, text: &str) -> Result<Named, SendError> {
    let invalid = |why: String| SendError::Invalid { field, message: format!("{text:?}: {why}") };
    if text.chars().any(char::is_control) {
        return Err(invalid("an address cannot hold line breaks or control characters".to_owned()));
    }
    let text = text.trim();
    let (name, address) = match text.strip_suffix('>').and_then(|t| t.rsplit_once('<')) {
        Some((name, address)) => (name.trim().trim_matches('"').trim(), address.trim()),
        None => ("", text),
    };
    let address: Address = address.parse().map_err(|e| invalid(format!("{e}")))?;
    Ok(((!name.is_empty()).then(|| name.to_owned()), address))
}

/// RFC 5322 §3.6.2: a reply goes to Reply-To, or to From; to all, also to To and Cc, without ourselves. What
/// answers our own message goes to whom that one went to.
fn answer_to(parent: &Message, all: bool, own: &Address) -> (Vec<Named>, Vec<Named>) {
    let parse = |texts: &[String]| -> Vec<Named> {
        texts
            .iter()
            .filter_map(|text| parse_named("to", text).ok())
            .filter(|(_, a)| a.key() != own.key())
            .collect()
    };
    let mut to = match parent.direction {
        Direction::Out => parse(&parent.to),
        Direction::In if !parent.reply_to.is_empty() => parse(&parent.reply_to),
        Direction::In => parse(std::slice::from_ref(&parent.from_text)),
    };
    let mut cc = Vec::new();
    if all {
        cc = parse(&parent.cc);
        if parent.direction == Direction::In {
            to.extend(parse(&parent.to));
        }
        // Each once, and who is in To is not in Cc.
        let mut seen = std::collections::HashSet::new();
        to.retain(|(_, a)| seen.insert(a.key()));
        cc.retain(|(_, a)| seen.insert(a.key()));
    }
    (to, cc)
}

fn everybody(to: &[Named], cc: &[Named], bcc: &[Named]) -> Vec<Address> {
    let mut seen = std::collections::HashSet::new();
    let all = to.iter().chain(cc).chain(bcc).map(|(_, address)| address);
    all.filter(|address| seen.insert(address.key())).cloned().collect()
}

fn subject(request: &SendRequest, parent: Option<&Message>) -> Result<String, SendError> {
    let subject = match (&request.subject, parent) {
        (Some(subject), _) => subject.clone(),
        (None, Some(parent)) => {
            let theirs = parent.subject.as_deref().unwrap_or_default();
            if is_answer(theirs) { theirs.to_owned() } else { format!("Re: {theirs}") }
        }
        (None, None) => String::new(),
    };
    let invalid = |message: &str| SendError::Invalid { field: "subject", message: message.to_owned() };
    if subject.len() > MAX_SUBJECT {
        return Err(invalid("a subject is at most 7,984 octets long"));
    }
    // What a stranger wrote into theirs is cleaned when it is composed; what the agent wrote is refused.
    if request.subject.is_some() && subject.chars().any(char::is_control) {
        return Err(invalid("a subject cannot hold line breaks or control characters"));
    }
    Ok(subject)
}

/// The parent's References and the parent, RFC 5322 §3.6.4.
fn references(parent: &Message) -> Vec<String> {
    let structure = &parent.structure;
    let older = if structure.references.is_empty() {
        structure.in_reply_to.get(..1).unwrap_or_default()
    } else {
        &structure.references
    };
    older.iter().cloned().chain(parent.rfc_message_id.clone()).collect()
}

fn custom_headers(headers: &[(String, String)]) -> Result<Vec<(HeaderName, HeaderValue)>, SendError> {
    let invalid = |message: String| SendError::Invalid { field: "headers", message };
    if headers.len() > MAX_CUSTOM_HEADERS {
        return Err(invalid(format!("at most {MAX_CUSTOM_HEADERS} custom headers")));
    }
    headers
        .iter()
        .map(|(name, value)| {
            let name = HeaderName::new(name).map_err(|e| invalid(e.to_string()))?;
            let value = HeaderValue::new(value).map_err(|e| invalid(format!("{}: {e}", name.as_str())))?;
            Ok((name, value))
        })
        .collect()
}
