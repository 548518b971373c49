//! What a message, a thread and an attachment look like from outside: AgentMail's field names, ours beside them.
//!
//! Absent optionals are left out, not null (the TypeScript SDK warns of nulls); instants are
//! `YYYY-MM-DDTHH:MM:SS.mmmZ`. One `MessageView` serves lists and single messages: a list leaves the texts out.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use crate::clock::rfc3339;
use crate::ids::{InboxKey, Prefix, RowId};
use crate::screen;
use crate::screen::codes::Code;
use crate::screen::kind::Kind;
use crate::screen::structure::Part;
use crate::store::delivery::Delivery;
use crate::store::held::{PolicyNote, PolicyReason};
use crate::store::message::{Direction, Message};
use crate::store::thread::{ListedAttachment, Thread};
use crate::verify::verdict::Verdict;

/// An attachment, without its bytes.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Attachment)]
pub(crate) struct AttachmentView {
    pub attachment_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filename: Option<String>,
    /// Octets, decoded.
    pub size: u64,
    pub content_type: String,
    /// `inline` or `attachment`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_disposition: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_id: Option<String>,
}

/// Names a part of a message: `att_`, the digits of the message's id, `_`, the part's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AttachmentId {
    pub message: RowId,
    pub part: u32,
}

impl AttachmentId {
    pub(crate) fn text(&self) -> String {
        let message = self.message.text(Prefix::Message);
        format!("att_{}_{}", message.trim_start_matches("msg_"), self.part)
    }

    pub(crate) fn parse(text: &str) -> Option<AttachmentId> {
        let (message, part) = text.strip_prefix("att_")?.rsplit_once('_')?;
        let message = RowId::parse(Prefix::Message, &format!("msg_{message}"))?;
        let id = AttachmentId { message, part: part.parse().ok()? };
        (id.text() == text).then_some(id)
    }
}

impl AttachmentView {
    pub(crate) fn of_part(message: &Message, index: u32, part: &Part) -> AttachmentView {
        let message = RowId { at: message.created_at, inbox: message.inbox, seq: message.message_key };
        AttachmentView {
            attachment_id: AttachmentId { message, part: index }.text(),
            filename: part.filename.clone(),
            size: part.size,
            content_type: part.content_type.clone(),
            content_disposition: disposition(part.disposition.as_deref()),
            content_id: part.content_id.clone(),
        }
    }

    fn of_thread(inbox: InboxKey, listed: &ListedAttachment) -> AttachmentView {
        let message = RowId { at: listed.at, inbox, seq: listed.message_key };
        AttachmentView {
            attachment_id: AttachmentId { message, part: listed.part }.text(),
            filename: listed.filename.clone(),
            size: listed.size,
            content_type: listed.content_type.clone(),
            content_disposition: disposition(listed.disposition.as_deref()),
            content_id: listed.content_id.clone(),
        }
    }
}

/// RFC 2183 §2.8: an unknown disposition is treated as `attachment`.
fn disposition(given: Option<&str>) -> Option<String> {
    given.map(|d| if d == "inline" { "inline" } else { "attachment" }.to_owned())
}

/// The state of one recipient of an outbound message.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = DeliveryState)]
pub(crate) struct DeliveryView {
    pub recipient: String,
    /// `due`, `attempting`, `delivered`, `deferred`, `failed` or `canceled`
    pub state: String,
    pub attempts: i64,
    /// The last enhanced status code (RFC 3463).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<String>,
    /// A crash fell into an attempt: the recipient may have it twice, with one Message-ID.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub maybe_duplicate: bool,
}

impl From<Delivery> for DeliveryView {
    fn from(delivery: Delivery) -> DeliveryView {
        let waits = matches!(delivery.state.as_str(), "due" | "deferred");
        DeliveryView {
            recipient: delivery.recipient,
            next_attempt_at: waits.then(|| rfc3339(delivery.next_attempt_at)),
            state: delivery.state,
            attempts: delivery.attempts,
            status: delivery.last_status,
            reply: delivery.last_reply,
            maybe_duplicate: delivery.maybe_duplicate,
        }
    }
}

/// What policy made of a message.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = MessagePolicy)]
pub(crate) struct PolicyView {
    /// `labelled`, `held`, `blocked`, `released` or `discarded`
    pub state: String,
    pub reasons: Vec<PolicyReasonView>,
    /// The inbox would have refused the message, but another recipient took it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub would_refuse: bool,
    /// Who released or discarded it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided_at: Option<String>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = MessagePolicyReason)]
pub(crate) struct PolicyReasonView {
    /// `dmarc_failed`, `spoofed`, `unauthenticated`, `too_large`, `receive_list_block`, `receive_list_allow`,
    /// `reply_list_block` or `reply_list_allow`
    pub rule: String,
    /// A sentence.
    pub text: String,
    /// Whose setting it is: `organization`, `domain`, `pod` or `inbox`
    pub set_by: String,
}

impl PolicyView {
    fn of(message: &Message) -> Option<PolicyView> {
        let note = message.policy.clone().or_else(|| message.held.map(|_| PolicyNote::default()))?;
        let state = match (message.held, &note.decided) {
            (Some(held), _) => held.text().to_owned(),
            (None, Some(decided)) => decided.action.clone(),
            (None, None) => "labelled".to_owned(),
        };
        let reason = |r: PolicyReason| PolicyReasonView { rule: r.rule, text: r.text, set_by: r.set_by };
        Some(PolicyView {
            state,
            reasons: note.reasons.into_iter().map(reason).collect(),
            would_refuse: note.refused,
            decided_by: note.decided.as_ref().map(|d| d.by.clone()),
            decided_at: note.decided.map(|d| rfc3339(d.at)),
        })
    }
}

/// A message.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Message)]
pub(crate) struct MessageView {
    pub inbox_id: String,
    pub thread_id: String,
    /// The RFC Message-ID with its angle brackets where that is safe in a path, else an id of ours; both find it.
    pub message_id: String,
    pub labels: Vec<String>,
    pub timestamp: String,
    pub from: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reply_to: Vec<String>,
    pub to: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cc: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bcc: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preview: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub html: Option<String>,
    /// The text without quoted history and signature.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extracted_text: Option<String>,
    /// The HTML without quoted history and signature, as a whole document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extracted_html: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<AttachmentView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_reply_to: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    pub size: i64,
    pub updated_at: String,
    pub created_at: String,
    /// Ours: `in` or `out`.
    pub direction: &'static str,
    /// Ours: `received`, or what became of it on its way out.
    pub state: String,
    /// Ours: the author's address where DMARC passed for exactly one, or the inbox of this server that sent it.
    pub verified_sender: Option<String>,
    /// Ours: SPF, DKIM, DMARC, ARC and iprev, as checked when it arrived.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub verdict: Option<Verdict>,
    /// Ours: what kind of message it is, by what it says of itself; absent on what this server sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// Ours: verification codes and links in it, the surest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub codes: Vec<Code>,
    /// Ours: why it is labelled, held or blocked, and what somebody decided since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyView>,
    /// Ours: the address it came by, tag included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reached_by: Option<String>,
    /// Ours: the first message with the same Message-ID and body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duplicate_of: Option<String>,
    /// Ours: why the message could not be parsed; its raw form is there all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unparsed: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    /// Ours: the answer would have been too large with this message's texts; get the message by itself.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub texts_omitted: bool,
    /// Ours, on a single outbound message: what became of it, recipient by recipient.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deliveries: Vec<DeliveryView>,
}

/// Names that a message's row holds as numbers.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    pub inbox_id: String,
    pub thread_id: String,
    pub duplicate_of: Option<String>,
}

impl MessageView {
    /// As a list shows it: without texts.
    pub(crate) fn item(message: Message, names: Names) -> MessageView {
        let message_id = message.public_id();
        let policy = PolicyView::of(&message);
        let mut headers = BTreeMap::new();
        // Where our own id stands in for it, the RFC Message-ID is found here.
        if let Some(id) = message.rfc_message_id.as_ref().filter(|id| **id != message_id) {
            headers.insert("Message-ID".to_owned(), id.clone());
        }
        MessageView {
            inbox_id: names.inbox_id,
            thread_id: names.thread_id,
            attachments: attachments(&message),
            message_id,
            labels: message.labels,
            timestamp: rfc3339(message.created_at),
            from: message.from_text,
            reply_to: message.reply_to,
            to: message.to,
            cc: message.cc,
            bcc: message.bcc,
            subject: message.subject,
            preview: message.preview,
            text: None,
            html: None,
            extracted_text: None,
            extracted_html: None,
            in_reply_to: message.structure.in_reply_to.first().cloned(),
            references: message.structure.references,
            headers,
            size: message.size,
            updated_at: rfc3339(message.updated_at),
            created_at: rfc3339(message.created_at),
            direction: if message.direction == Direction::Out { "out" } else { "in" },
            state: message.state,
            verified_sender: message.verified_sender,
            verdict: message.verdict,
            kind: message.kind,
            codes: message.codes,
            policy,
            reached_by: message.reached_by,
            duplicate_of: names.duplicate_of,
            unparsed: message.structure.unparsed,
            run_id: message.run_id,
            texts_omitted: false,
            deliveries: Vec::new(),
        }
    }

    /// With its texts and header fields, read from its octets.
    pub(crate) fn whole(message: Message, names: Names, raw: &[u8]) -> MessageView {
        let structure = message.structure.clone();
        let mut view = MessageView::item(message, names);
        // Line ends are the wire's business (RFC 5322 §2.1): texts are given with the newlines that programs know.
        let newlines = |text: String| if text.contains('\r') { text.replace("\r\n", "\n") } else { text };
        let text = newlines(screen::body_text(raw, &structure));
        let extracted = newlines(screen::extracted_body(raw, &structure));
        view.extracted_html = screen::extracted_html(raw, &structure).filter(|t| !t.is_empty());
        view.text = Some(text).filter(|t| !t.is_empty());
        view.extracted_text = Some(extracted).filter(|t| !t.is_empty());
        view.html =
            structure.html.map(|part| screen::decode_text(raw, &structure, part)).filter(|t| !t.is_empty());
        for (name, value) in screen::headers(raw) {
            // Of several with one name, the topmost: the one that the last host put there.
            view.headers.entry(name).or_insert(value);
        }
        view
    }
}

fn attachments(message: &Message) -> Vec<AttachmentView> {
    let parts = message.structure.parts.iter().zip(0u32..).filter(|(part, _)| part.attachment);
    parts.map(|(part, index)| AttachmentView::of_part(message, index, part)).collect()
}

/// A thread, as a list shows it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = ThreadItem)]
pub(crate) struct ThreadView {
    pub inbox_id: String,
    pub thread_id: String,
    pub labels: Vec<String>,
    pub timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub received_timestamp: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent_timestamp: Option<String>,
    pub senders: Vec<String>,
    pub recipients: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preview: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<AttachmentView>,
    pub last_message_id: String,
    pub message_count: i64,
    pub size: i64,
    pub updated_at: String,
    pub created_at: String,
    /// Ours: raised by every message from somebody else; a reply written against an older one is stale.
    pub context_version: i64,
    /// Ours: the thread that this one cites without having been let in: its references may be forged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claims_thread_id: Option<String>,
}

/// Names that a thread's row holds as numbers.
#[derive(Debug, Clone)]
pub(crate) struct ThreadNames {
    pub inbox_id: String,
    pub last_message_id: String,
    pub claims_thread_id: Option<String>,
}

impl ThreadView {
    pub(crate) fn new(thread: Thread, names: ThreadNames) -> ThreadView {
        ThreadView {
            inbox_id: names.inbox_id,
            thread_id: thread.id(),
            attachments: thread
                .attachments
                .iter()
                .map(|a| AttachmentView::of_thread(thread.inbox, a))
                .collect(),
            labels: thread.labels,
            timestamp: rfc3339(thread.last_at),
            received_timestamp: thread.received_at.map(rfc3339),
            sent_timestamp: thread.sent_at.map(rfc3339),
            senders: thread.senders,
            recipients: thread.recipients,
            subject: thread.subject,
            preview: thread.preview,
            last_message_id: names.last_message_id,
            message_count: thread.message_count,
            size: thread.size,
            updated_at: rfc3339(thread.updated_at),
            created_at: rfc3339(thread.created_at),
            context_version: thread.context_version,
            claims_thread_id: names.claims_thread_id,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attachment_id_names_its_message_and_part() {
        let message = RowId { at: 1_795_230_245_678, inbox: InboxKey { pod: 1, inbox: 7 }, seq: 42 };
        let id = AttachmentId { message, part: 3 };
        assert_eq!(AttachmentId::parse(&id.text()), Some(id));
        for wrong in [
            "",
            "att_",
            "att__3",
            "att_zz_3",
            &id.text().replace("_3", "_03"),
            &id.text().replace("_3", "_-3"),
        ] {
            assert_eq!(AttachmentId::parse(wrong), None, "{wrong}");
        }
    }
}
