//! Sending: what AgentMail's clients write becomes one request to the gate, and the gate's word an answer.
//!
//! Whatever the gate said no to took no effect, so nothing here answers 409, 429 or 5xx after a release (error.rs).
//! `Idempotency-Key` names a send: the same key with another request is a 409, an empty one a 400.

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use utoipa::ToSchema;

use super::filter;
use super::inboxes::is_client_id;
use super::messages::{OneOrMany, find};
use crate::api::App;
use crate::api::auth::Caller;
use crate::api::body::{self, Upload};
use crate::api::error::{Answer, ErrorShape, FieldError, Problem};
use crate::clock::{Millis, parse_rfc3339, rfc3339};
use crate::deliver::compose::{Disposition, OutgoingAttachment};
use crate::gate::{self, Decision, Idempotency, Reason, SendError, SendKind, SendRequest, Sent, WorkRef};
use crate::ids::{Prefix, RowId};
use crate::store::delivery::Priority;
use crate::store::inbox::Inbox;

/// The body of send, reply and reply-all. The fields below `track_opens` are ours, and may be given as headers
/// (`Gatepost-Work-Item`, `Gatepost-Fence`, `Gatepost-Context-Version`, `Gatepost-Run`) by clients that cannot
/// add fields.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct SendMessageRequest {
    labels: Option<Vec<String>>,
    /// An address or a list of them, each `user@domain` or `Name <user@domain>`.
    #[schema(value_type = Option<Vec<String>>)]
    reply_to: Option<OneOrMany>,
    #[schema(value_type = Option<Vec<String>>)]
    to: Option<OneOrMany>,
    #[schema(value_type = Option<Vec<String>>)]
    cc: Option<OneOrMany>,
    #[schema(value_type = Option<Vec<String>>)]
    bcc: Option<OneOrMany>,
    /// A reply's answer goes to everybody; then `to`, `cc` and `bcc` must be absent.
    reply_all: Option<bool>,
    subject: Option<String>,
    text: Option<String>,
    html: Option<String>,
    attachments: Option<Vec<SendAttachment>>,
    headers: Option<BTreeMap<String, String>>,
    /// Accepted for compatibility; opens are not tracked.
    #[allow(dead_code)]
    track_opens: Option<bool>,
    /// The work item that this answers, with the `fence` of its lease.
    work_item_id: Option<String>,
    fence: Option<i64>,
    /// The thread's version that the text was written against; a newer one answers 412.
    context_version: Option<i64>,
    run_id: Option<String>,
    /// How sure the agent is, 0 to 1.
    confidence: Option<f64>,
    /// Why the agent sends it.
    reason: Option<String>,
    /// Not before this time (RFC 3339, at most 90 days ahead).
    send_at: Option<String>,
    /// Only says what would become of it.
    dry_run: Option<bool>,
    /// To many, and in no hurry: it leaves after everything else (the label `bulk` does that alone), and carries
    /// List-Unsubscribe with its form of one click, so it has one recipient. Also as the header `Gatepost-Bulk: true`.
    bulk: Option<bool>,
    /// It goes only to hosts that prove who they are and keep it in TLS (REQUIRETLS, RFC 8689); where there are none it
    /// bounces. Without it an answer does as what it answers. Also as the header `Gatepost-Require-TLS: true`.
    require_tls: Option<bool>,
}

#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct SendAttachment {
    filename: Option<String>,
    content_type: Option<String>,
    /// `inline` or `attachment`
    content_disposition: Option<String>,
    content_id: Option<String>,
    /// The bytes in base64.
    content: Option<String>,
    /// Not supported yet: 400.
    url: Option<String>,
}

/// What became of a send.
#[derive(Serialize, ToSchema)]
pub(crate) struct SendMessageResponse {
    message_id: String,
    thread_id: String,
    /// `queued`, `scheduled`, or `dry_run`.
    status: String,
    /// The thread's, after this message.
    context_version: i64,
}

/// Which of the three routes was called.
enum Route {
    Send,
    Reply(String),
    ReplyAll(String),
}

/// Sends a new message.
#[utoipa::path(
    post, path = "/v0/inboxes/{inbox_id}/messages/send", tag = "messages",
    params(("inbox_id" = String, Path), ("Idempotency-Key" = Option<String>, Header)), request_body = SendMessageRequest,
    responses(
        (status = 200, body = SendMessageResponse), (status = 400, body = ErrorShape),
        (status = 403, description = "The gate refused: `reasons` says why", body = ErrorShape),
        (status = 409, description = "The Idempotency-Key belongs to another request", body = ErrorShape),
        (status = 412, description = "The lease or the context is not what it was", body = ErrorShape)
    )
)]
pub(super) async fn send(app: &App, caller: &Caller, inbox: Inbox, request: Request) -> Answer<Response> {
    pass(app, caller, inbox, Route::Send, request).await
}

/// Answers whoever wrote, or whom `to`, `cc` and `bcc` name.
#[utoipa::path(
    post, path = "/v0/inboxes/{inbox_id}/messages/{message_id}/reply", tag = "messages",
    params(("inbox_id" = String, Path), ("message_id" = String, Path), ("Idempotency-Key" = Option<String>, Header)),
    request_body = SendMessageRequest,
    responses(
        (status = 200, body = SendMessageResponse), (status = 400, body = ErrorShape), (status = 403, body = ErrorShape),
        (status = 409, body = ErrorShape), (status = 412, body = ErrorShape)
    )
)]
pub(super) async fn reply(
    app: &App,
    caller: &Caller,
    inbox: Inbox,
    id: &str,
    request: Request,
) -> Answer<Response> {
    pass(app, caller, inbox, Route::Reply(id.to_owned()), request).await
}

/// Answers everybody.
#[utoipa::path(
    post, path = "/v0/inboxes/{inbox_id}/messages/{message_id}/reply-all", tag = "messages",
    params(("inbox_id" = String, Path), ("message_id" = String, Path), ("Idempotency-Key" = Option<String>, Header)),
    request_body = SendMessageRequest,
    responses(
        (status = 200, body = SendMessageResponse), (status = 400, body = ErrorShape), (status = 403, body = ErrorShape),
        (status = 409, body = ErrorShape), (status = 412, body = ErrorShape)
    )
)]
pub(super) async fn reply_all(
    app: &App,
    caller: &Caller,
    inbox: Inbox,
    id: &str,
    request: Request,
) -> Answer<Response> {
    pass(app, caller, inbox, Route::ReplyAll(id.to_owned()), request).await
}

async fn pass(app: &App, caller: &Caller, inbox: Inbox, route: Route, request: Request) -> Answer<Response> {
    // Said before the body is read: a stranger to sending need not upload 25 MiB to hear it.
    let replies = !matches!(route, Route::Send) && caller.0.permissions.allow("message_reply");
    if !replies {
        caller.require("message_send")?;
    }
    let headers = request.headers().clone();
    let idempotency_key = idempotency_key(&headers)?;
    let limit = usize::try_from(app.floor.config.smtp.max_message_size).unwrap_or(usize::MAX);
    // Base64 in JSON is as large as base64 in MIME.
    let upload = body::read(app, request, limit.saturating_add(crate::config::limits::MAX_JSON_BODY)).await?;
    let asked: SendMessageRequest = body::parse(&upload.bytes)?;
    let (kind, named) = match &route {
        Route::Send => (SendKind::New, "send"),
        Route::Reply(id) | Route::ReplyAll(id) => {
            let all = matches!(route, Route::ReplyAll(_)) || asked.reply_all == Some(true);
            let parent = find(&app.floor, caller, inbox.key, id).await?;
            (
                SendKind::Reply { message_key: parent.message_key, all },
                if all { "reply-all" } else { "reply" },
            )
        }
    };
    let idempotency = idempotency_key
        .map(|name| Idempotency { name, request_hash: request_hash(&inbox, kind, named, &headers, &upload) });
    let request = build(asked, kind, &headers, idempotency)?;
    drop(upload);
    match gate::send(&app.floor, &caller.0, &inbox, request).await {
        Ok(sent) => Ok(answer(sent).into_response()),
        Err(error) => Err(refusal(error, app.floor.clock.now())),
    }
}

fn answer(sent: Sent) -> Json<SendMessageResponse> {
    let Sent { message_id, thread_id, status, context_version } = sent;
    Json(SendMessageResponse { message_id, thread_id, status, context_version })
}

/// `None` where the header is absent.
fn idempotency_key(headers: &HeaderMap) -> Answer<Option<String>> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    if values.next().is_some() || !is_client_id(text) {
        return Err(Problem::field(
            &["header", "Idempotency-Key"],
            "takes 1 to 256 of A-Z a-z 0-9 - . _ ~, once",
        ));
    }
    Ok(Some(text.to_owned()))
}

/// What makes two sends the same request: from where, in answer to what, with which words and conditions.
fn request_hash(inbox: &Inbox, kind: SendKind, named: &str, headers: &HeaderMap, upload: &Upload) -> Vec<u8> {
    let mut hash = Sha256::new();
    let parent = match kind {
        SendKind::New => 0,
        SendKind::Reply { message_key, .. } => message_key,
    };
    for number in [inbox.key.pod, inbox.key.inbox, parent] {
        hash.update(number.to_be_bytes());
    }
    hash.update(named.as_bytes());
    for name in OUR_HEADERS {
        let value = headers.get(name).map_or(b"".as_slice(), |v| v.as_bytes());
        hash.update((value.len() as u64).to_be_bytes());
        hash.update(value);
    }
    hash.update(&upload.bytes);
    hash.finalize().to_vec()
}

const OUR_HEADERS: [&str; 6] = [
    "gatepost-work-item",
    "gatepost-fence",
    "gatepost-context-version",
    "gatepost-run",
    "gatepost-bulk",
    "gatepost-require-tls",
];

fn build(
    asked: SendMessageRequest,
    kind: SendKind,
    headers: &HeaderMap,
    idempotency: Option<Idempotency>,
) -> Answer<SendRequest> {
    let reply_all = asked.reply_all == Some(true);
    let list = |given: Option<OneOrMany>| -> Vec<String> { given.map(Into::into).unwrap_or_default() };
    let (to, cc, bcc) = (list(asked.to), list(asked.cc), list(asked.bcc));
    if reply_all && !(to.is_empty() && cc.is_empty() && bcc.is_empty()) {
        return Err(Problem::field(&["reply_all"], "goes to everybody: leave to, cc and bcc out"));
    }
    if asked.confidence.is_some_and(|c| !(0.0..=1.0).contains(&c)) {
        return Err(Problem::field(&["confidence"], "takes a number from 0 to 1"));
    }
    for (field, text) in [("run_id", &asked.run_id), ("reason", &asked.reason)] {
        if text.as_deref().is_some_and(|t| t.len() > 1_000 || t.contains('\0')) {
            return Err(Problem::field(&[field], "takes at most 1,000 octets"));
        }
    }
    let labels = asked.labels.unwrap_or_default();
    for label in &labels {
        filter::check_label("labels", label)?;
    }
    let send_at = match &asked.send_at {
        Some(text) => {
            let wrong =
                || Problem::field(&["send_at"], "takes a time as RFC 3339 has it: 2026-01-31T09:00:00Z");
            Some(parse_rfc3339(text).ok_or_else(wrong)?)
        }
        None => None,
    };
    let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let bulk =
        asked.bulk.unwrap_or_else(|| header("gatepost-bulk").is_some_and(|said| said.trim() == "true"));
    let require_tls = match header("gatepost-require-tls").as_deref().map(str::trim) {
        _ if asked.require_tls.is_some() => asked.require_tls,
        None => None,
        Some("true") => Some(true),
        Some("false") => Some(false),
        // A wish for secrecy that is misspelt must not be taken for none.
        Some(_) => return Err(Problem::field(&["header", "Gatepost-Require-TLS"], "takes true or false")),
    };
    let last = bulk || labels.iter().any(|label| label == "bulk");
    let number = |name: &str| -> Answer<Option<i64>> {
        let wrong = || Problem::field(&["header", name], "takes a whole number");
        header(name).map(|text| text.trim().parse().map_err(|_| wrong())).transpose()
    };
    let work_item = asked.work_item_id.or_else(|| header("gatepost-work-item"));
    let fence = asked.fence.map_or_else(|| number("gatepost-fence"), |n| Ok(Some(n)))?;
    let context_version =
        asked.context_version.map_or_else(|| number("gatepost-context-version"), |n| Ok(Some(n)))?;
    let attachments = asked.attachments.unwrap_or_default();
    Ok(SendRequest {
        kind,
        to,
        cc,
        bcc,
        reply_to: list(asked.reply_to),
        subject: asked.subject,
        text: asked.text,
        html: asked.html,
        attachments: attachments.into_iter().enumerate().map(|(i, a)| a.decode(i)).collect::<Answer<_>>()?,
        headers: asked.headers.unwrap_or_default().into_iter().collect(),
        labels,
        work: work_ref(work_item, fence)?,
        context_version,
        run_id: asked.run_id.or_else(|| header("gatepost-run")),
        priority: if last { Priority::Bulk } else { Priority::Ordinary },
        send_at,
        dry_run: asked.dry_run == Some(true),
        idempotency,
        bulk,
        require_tls,
    })
}

fn work_ref(work_item: Option<String>, fence: Option<i64>) -> Answer<Option<WorkRef>> {
    match (work_item, fence) {
        (None, None) => Ok(None),
        (Some(_), None) => {
            Err(Problem::field(&["fence"], "is needed beside work_item_id: the claim's lease has it"))
        }
        (None, Some(_)) => Err(Problem::field(&["work_item_id"], "is needed beside fence")),
        (Some(id), Some(fence)) => {
            let item = RowId::parse(Prefix::WorkItem, &id);
            let item = item.ok_or_else(|| Problem::not_found("Work item"))?;
            Ok(Some(WorkRef { item, fence }))
        }
    }
}

impl SendAttachment {
    fn decode(self, index: usize) -> Answer<OutgoingAttachment> {
        let wrong = |field: &str, message: &str| {
            let path = vec!["attachments".into(), index.into(), field.into()];
            Err(Problem::invalid(vec![FieldError { path, message: message.to_owned() }]))
        };
        if self.url.is_some() {
            return wrong("url", "is not supported yet: send the bytes as `content`");
        }
        let Some(content) = self.content else { return wrong("content", "is needed: the bytes in base64") };
        let content = content.trim_end_matches(['\r', '\n']);
        let octets = match STANDARD.decode(content).or_else(|_| STANDARD_NO_PAD.decode(content)) {
            Ok(octets) => octets,
            Err(_) => return wrong("content", "is not base64 (RFC 4648 §4)"),
        };
        let disposition = match self.content_disposition.as_deref() {
            None | Some("attachment") => Disposition::Attachment,
            Some("inline") => Disposition::Inline,
            Some(_) => return wrong("content_disposition", "takes inline or attachment"),
        };
        let named = [
            ("filename", &self.filename),
            ("content_type", &self.content_type),
            ("content_id", &self.content_id),
        ];
        for (field, text) in named {
            if text.as_deref().is_some_and(|t| t.len() > 998 || t.chars().any(char::is_control)) {
                return wrong(field, "takes one line of at most 998 octets");
            }
        }
        let content_type = self.content_type.unwrap_or_else(|| "application/octet-stream".to_owned());
        let (filename, content_id) = (self.filename, self.content_id);
        Ok(OutgoingAttachment { filename, content_type, disposition, content_id, content: octets })
    }
}

/// The gate's no, as AgentMail's clients understand it.
fn refusal(error: SendError, now: Millis) -> Problem {
    match error {
        SendError::NotFound => Problem::not_found("Inbox, message or work item"),
        SendError::MissingPermission(flag) => {
            Problem::forbidden("missing_permission", format!("This API key lacks the permission `{flag}`."))
                .fix(format!("Use a key with `{flag}`."))
        }
        SendError::Paused => Problem::forbidden("inbox_paused", "The inbox is paused: nothing was sent.")
            .fix("An admin can set its status to active: PATCH /v0/inboxes/{inbox_id}."),
        SendError::Invalid { field, message } => Problem::field(&[field], message),
        SendError::NoRecipients => Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "unprocessable",
            "There is no recipient in to, cc or bcc.",
        )
        .fix("Name at least one address."),
        SendError::Refused(decision) => refused(&decision, now),
        SendError::LeaseLost => precondition(
            "lease_lost",
            "The work item is not held under this fence any more: nothing was sent.",
        )
        .fix("Claim again, and look at what changed before you answer."),
        SendError::LeaseHeld => {
            precondition("lease_held", "Another worker holds this thread's work item: nothing was sent.")
                .fix("Claim the work item, and send with its work_item_id and fence.")
        }
        SendError::ContextChanged { asked, current } => precondition(
            "context_changed",
            format!("The thread has changed since version {asked}: nothing was sent."),
        )
        .fix("Read the thread again, and send with its context_version.")
        .with("current_context_version", current)
        .with("current_revision", current),
        SendError::IdempotencyConflict => Problem::new(
            StatusCode::CONFLICT,
            "conflict",
            "This Idempotency-Key was used for another request.",
        )
        .fix("Use a new key for a new message, or repeat the first request exactly."),
        SendError::Store(error) => error.into(),
    }
}

fn precondition(code: &str, message: impl Into<String>) -> Problem {
    Problem::new(StatusCode::PRECONDITION_FAILED, code, message)
}

/// DESIGN.md §6: 429 only where waiting ten seconds or less helps, since the SDKs block their caller for it.
const SHORT_WAIT: Millis = 10_000;

fn refused(decision: &Decision, now: Millis) -> Problem {
    let reasons = decision.reasons();
    let say: Vec<&str> = reasons.iter().map(|r| r.say.as_str()).collect();
    let fix: Vec<&str> = reasons.iter().map(|r| r.fix.as_str()).filter(|f| !f.is_empty()).collect();
    // Waiting helps where every rule in the way says until when.
    let retry_at: Option<Millis> = reasons
        .iter()
        .map(|r: &Reason| r.retry_at)
        .collect::<Option<Vec<_>>>()
        .and_then(|all| all.into_iter().max());
    let message = format!("Not sent. {}", say.join(" "));
    let limited = !reasons.is_empty() && reasons.iter().all(|r| r.rule.starts_with("limit_"));
    let problem = match retry_at {
        Some(at) if limited && at.saturating_sub(now) <= SHORT_WAIT => {
            let seconds = at.saturating_sub(now).max(0).div_euclid(1_000) + 1;
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message)
                .retry_after(u64::try_from(seconds).unwrap_or(1))
        }
        _ if limited => Problem::forbidden("limit_exceeded", message),
        _ => Problem::forbidden("message_rejected", message).named("MessageRejectedError"),
    };
    let problem = match retry_at {
        Some(at) => problem.with("retry_at", rfc3339(at)),
        None => problem,
    };
    problem.fix(fix.join(" ")).with("reasons", reasons)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn parsed(json: &str) -> Answer<SendRequest> {
        build(body::parse(json.as_bytes())?, SendKind::New, &HeaderMap::new(), None)
    }

    #[test]
    fn addresses_come_as_a_text_or_a_list() {
        let request =
            parsed(r#"{"to": "a@b.example", "cc": ["c@d.example", "E <e@f.example>"], "track_opens": true}"#);
        let request = request.unwrap();
        assert_eq!(
            (request.to, request.cc),
            (vec!["a@b.example".to_owned()], vec!["c@d.example".into(), "E <e@f.example>".into()])
        );
    }

    #[test]
    fn an_attachment_by_url_or_without_bytes_is_refused_by_its_place() {
        for (json, field) in [
            (r#"{"attachments": [{"url": "https://x.example/"}]}"#, "url"),
            (r#"{"attachments": [{"filename": "a"}]}"#, "content"),
            (r#"{"attachments": [{"content": "%%%"}]}"#, "content"),
            (
                r#"{"attachments": [{"content": "YQ==", "content_disposition": "form-data"}]}"#,
                "content_disposition",
            ),
            (r#"{"to": 7}"#, "to"),
            (r#"{"work_item_id": "wi_x"}"#, "fence"),
            (r#"{"confidence": 2}"#, "confidence"),
        ] {
            let problem = format!("{:?}", parsed(json).unwrap_err());
            assert!(problem.contains(&format!("String(\"{field}\")")), "{json}: {problem}");
        }
    }

    #[test]
    fn an_idempotency_key_is_a_name_or_a_400() {
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("idempotency-key", HeaderValue::from_str(value).unwrap());
            idempotency_key(&headers).map_err(|p| p.status().as_u16())
        };
        assert_eq!(with("order-7_a.b~c"), Ok(Some("order-7_a.b~c".to_owned())));
        assert_eq!(idempotency_key(&HeaderMap::new()).unwrap(), None);
        for wrong in ["", "a b", "a@b", "ключ", &"x".repeat(257)] {
            assert_eq!(with(wrong), Err(400), "{wrong}");
        }
    }

    #[test]
    fn waiting_is_asked_for_only_where_ten_seconds_help() {
        let reason = |rule, retry_at| Reason {
            rule,
            say: "No.".into(),
            fix: String::new(),
            evidence: vec![],
            retry_at,
        };
        let code = |reasons: Vec<Reason>| {
            let problem = refused(&Decision::Blocked { reasons }, 1_000_000);
            (problem.status().as_u16(), problem.code().to_owned())
        };
        assert_eq!(
            code(vec![reason("limit_per_minute", Some(1_009_000))]),
            (429, "rate_limit_exceeded".into())
        );
        assert_eq!(code(vec![reason("limit_per_hour", Some(1_011_000))]), (403, "limit_exceeded".into()));
        assert_eq!(code(vec![reason("limit_per_hour", None)]), (403, "limit_exceeded".into()));
        let both = vec![reason("limit_per_minute", Some(1_001_000)), reason("suppressed", None)];
        assert_eq!(code(both), (403, "message_rejected".into()));
    }
}
