//! The one gate: every send passes `send`, whichever way it comes, and nothing else writes to the queue but what the
//! server itself has to say to those who asked for it (`send_by_server`).
//!
//! It asks, in one transaction under the inbox's lock: may this key, is the inbox paused, do the lists of both
//! scopes let every recipient through, is one suppressed, do the limits hold it, does the worker still hold the
//! work it answers, is the text still about the thread as it stands. Then it releases, in the same transaction:
//! message, thread, deliveries, the limit's sum, the answer under its Idempotency-Key, the events, the audit
//! row. So a crash leaves all of it or nothing, and two processes cannot both use the last of a limit.
//!
//! Budgets that inboxes share are no question here: they are asked at the first attempt (`budgets`), and delay only.
//!
//! A refusal carries every rule in the way and what would help. DESIGN.md §4 (3, 4, 5), §6.

mod budgets;
mod bulk;
mod by_server;
mod decision;
mod limits;
mod loops;
mod recheck;
mod release;
mod request;
mod stops;
mod watch;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::clock::{DAY, Millis};
use crate::floor::Floor;
use crate::ids::InboxKey;
use crate::principal::Principal;
use crate::screen::{self, structure::Structure};
use crate::store::audit;
use crate::store::body::Body;
use crate::store::delivery::TlsDemand;
use crate::store::event::{self, NewEvent};
use crate::store::inbox::{self, Inbox, InboxStatus};
use crate::store::list::{self, ListDirection, ListVerdict};
use crate::store::message::{self, Message};
use crate::store::thread::{self, Thread};
use crate::store::work_item::{self, ItemState, WorkItem};
use crate::store::{StoreError, Tx, idempotency, suppression};
use crate::work::{self, WorkError};

pub use crate::store::rate::{Ended, note_outcome, note_outcomes};
pub use budgets::{BudgetChange, BudgetStatus, WarmupStatus, budget_status, give_back_budgets, set_budget};
pub use by_server::{ServerLetter, ServerSent, prepare_by_server, send_by_server};
pub use decision::{Decision, Reason};
pub use limits::{Usage, limits_of, usage};
pub use recheck::{Recheck, let_go_on, recheck};
pub use stops::{StopError, Stopped, lift, resume, stop};
pub use watch::watch;

pub use request::{Idempotency, MAX_RECIPIENTS, SendKind, SendRequest, WorkRef};

use limits::Reservation;
use request::Prepared;

/// How long the answer to an Idempotency-Key is kept, reference/agentmail-api.md §1.10.
pub const IDEMPOTENCY_KEPT: Millis = DAY;

/// The answer to a send; stored as it is under its Idempotency-Key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    pub message_id: String,
    pub thread_id: String,
    /// `queued`; `dry_run` where nothing was to be done.
    pub status: String,
    /// The thread's, after this message.
    pub context_version: i64,
}

/// Why nothing was sent.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SendError {
    #[error("there is no such inbox, message or work item")]
    NotFound,
    #[error("this key may not send: it lacks the permission {0}")]
    MissingPermission(&'static str),
    #[error("the inbox is paused")]
    Paused,
    #[error("{field}: {message}")]
    Invalid { field: &'static str, message: String },
    #[error("there is no recipient")]
    NoRecipients,
    /// Rules of the gate said no.
    #[error("refused by {} rule(s)", .0.reasons().len())]
    Refused(Decision),
    #[error("the lease is lost")]
    LeaseLost,
    #[error("another key holds the work item of this thread")]
    LeaseHeld,
    #[error("the thread has changed since version {asked}: it is at {current} now")]
    ContextChanged { asked: i64, current: i64 },
    /// The Idempotency-Key was used for another request.
    #[error("this Idempotency-Key belongs to another request")]
    IdempotencyConflict,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<WorkError> for SendError {
    fn from(error: WorkError) -> SendError {
        match error {
            WorkError::NotFound => SendError::NotFound,
            WorkError::LeaseHeld => SendError::LeaseHeld,
            WorkError::LeaseLost | WorkError::WrongState { .. } => SendError::LeaseLost,
            WorkError::Store(e) => SendError::Store(e),
        }
    }
}

/// What the transaction works with: composed, compressed and parsed beforehand, since none of that may be done
/// under a lock.
struct Job {
    inbox: InboxKey,
    who: Principal,
    request: SendRequest,
    parent: Option<Message>,
    prepared: Prepared,
    structure: Structure,
    body: Body,
    body_hash: Vec<u8>,
    size: i64,
    tls: TlsDemand,
    floor: Arc<Floor>,
}

/// How the transaction ended, beside errors that undo it.
enum Outcome {
    Released(Sent),
    Refused(Decision),
}

/// RFC 8689 §5: what answers a message that was to stay in TLS is to stay in it too, unless its sender knows better.
fn tls_demand(request: &SendRequest, parent: Option<&Message>, raw: &[u8]) -> TlsDemand {
    let inherited = || parent.is_some_and(|parent| parent.require_tls);
    // §4.1: the field does not count beside the demand.
    if request.require_tls.unwrap_or_else(inherited) {
        TlsDemand::Required
    } else if crate::deliver::compose::tls_is_optional(raw) {
        TlsDemand::Optional
    } else {
        TlsDemand::Usual
    }
}

/// Sends, or says why not. `Ok` means that the message is released: committed and on disk. Of `inbox`, name and address
/// are written into the message; whether it may send is asked anew.
pub async fn send(
    floor: &Arc<Floor>,
    who: &Principal,
    inbox: &Inbox,
    request: SendRequest,
) -> Result<Sent, SendError> {
    let inbox_key = inbox.key;
    if !who.scope.reaches(inbox_key) {
        return Err(SendError::NotFound);
    }
    permit(who, &request)?;
    let parent = parent(floor, inbox_key, request.kind).await?;
    let mut prepared = request::prepare(inbox, &request, parent.as_ref(), floor.clock.now())?;
    if prepared.recipients.is_empty() {
        return Err(SendError::NoRecipients);
    }
    if request.bulk {
        bulk::add_headers(floor, inbox_key, &mut prepared)?;
    }
    let raw = crate::deliver::compose::compose(&prepared.composition);
    let limit = usize::try_from(floor.config.smtp.max_message_size).unwrap_or(usize::MAX);
    if raw.len() > limit {
        let message = format!("the message has {} octets, more than max_message_size ({limit})", raw.len());
        return Err(SendError::Invalid { field: "attachments", message });
    }
    let structure = screen::structure(&raw);
    let body = floor.bodies.prepare(inbox_key.pod, &raw).await?;
    let job = Arc::new(Job {
        inbox: inbox_key,
        who: who.clone(),
        body_hash: release::body_hash(&raw, &structure),
        size: raw.len() as i64,
        tls: tls_demand(&request, parent.as_ref(), &raw),
        request,
        parent,
        prepared,
        structure,
        body,
        floor: floor.clone(),
    });
    match transact(floor, job).await? {
        Outcome::Released(sent) => Ok(sent),
        Outcome::Refused(decision) => Err(SendError::Refused(decision)),
    }
}

async fn transact(floor: &Arc<Floor>, job: Arc<Job>) -> Result<Outcome, SendError> {
    let again = job.clone();
    let run = move |job: Arc<Job>| {
        floor.store.write(move |tx| {
            let job = job.clone();
            Box::pin(async move { pass(tx, &job).await })
        })
    };
    match run(job).await {
        // Somebody else committed under the same Idempotency-Key just now: the second look finds the answer.
        Err(SendError::Store(e)) if e.is_conflict() && again.request.idempotency.is_some() => {
            run(again).await
        }
        outcome => outcome,
    }
}

/// AgentMail's flags: `message_send` for everything, `message_reply` for answers alone.
fn permit(who: &Principal, request: &SendRequest) -> Result<(), SendError> {
    let reply = matches!(request.kind, SendKind::Reply { .. });
    if who.permissions.allow("message_send") || (reply && who.permissions.allow("message_reply")) {
        Ok(())
    } else {
        Err(SendError::MissingPermission(if reply { "message_reply" } else { "message_send" }))
    }
}

/// The message that is answered.
async fn parent(
    floor: &Arc<Floor>,
    inbox_key: InboxKey,
    kind: SendKind,
) -> Result<Option<Message>, SendError> {
    let SendKind::Reply { message_key, .. } = kind else { return Ok(None) };
    let found = floor.store.read(move |tx| Box::pin(message::by_key(tx, inbox_key, message_key))).await;
    found.map_err(SendError::Store)?.ok_or(SendError::NotFound).map(Some)
}

/// The transaction: asked again whenever it has to be run again.
async fn pass(tx: &mut Tx, job: &Job) -> Result<Outcome, SendError> {
    // The lock first: from here on nobody else changes the inbox, its threads or its limits.
    let inbox = inbox::lock(tx, job.inbox).await?.ok_or(SendError::NotFound)?;
    tx.reread_clock().await?;
    if let Some(answer) = answered_before(tx, job).await? {
        return Ok(Outcome::Released(answer));
    }
    if inbox.status == InboxStatus::Paused {
        return Err(SendError::Paused);
    }
    let thread = match &job.parent {
        Some(parent) => thread::by_key(tx, job.inbox, parent.thread_key).await?,
        None => None,
    };
    let item = check_work(tx, job, thread.as_ref()).await?;
    let (decision, reservation) = decide(tx, job, &inbox, thread.as_ref()).await?;
    if let Decision::Blocked { reasons } | Decision::Review { reasons } = &decision {
        if !job.request.dry_run {
            note_refusal(tx, job, reasons).await?;
            tell_human(tx, job, thread.as_ref(), reasons).await?;
        }
        return Ok(Outcome::Refused(decision));
    }
    if job.request.dry_run {
        return Ok(Outcome::Released(Sent {
            message_id: String::new(),
            thread_id: thread.as_ref().map(Thread::id).unwrap_or_default(),
            status: "dry_run".to_owned(),
            context_version: thread.map_or(0, |t| t.context_version),
        }));
    }
    release::release(tx, job, thread, item, reservation).await.map(Outcome::Released)
}

async fn answered_before(tx: &mut Tx, job: &Job) -> Result<Option<Sent>, SendError> {
    let Some(asked) = &job.request.idempotency else { return Ok(None) };
    let since = tx.now() - IDEMPOTENCY_KEPT;
    let Some(stored) = idempotency::find(tx, &asked.name, since).await? else { return Ok(None) };
    if stored.request_hash != asked.request_hash {
        return Err(SendError::IdempotencyConflict);
    }
    message::from_json(&stored.answer).map(Some).map_err(SendError::Store)
}

/// Does the caller still hold the work, and is the text about the thread as it is? The item of a thread that a
/// reply without a fence answers is returned, to be finished with it.
async fn check_work(tx: &mut Tx, job: &Job, thread: Option<&Thread>) -> Result<Option<WorkItem>, SendError> {
    if let (Some(asked), Some(thread)) = (job.request.context_version, thread)
        && asked != thread.context_version
    {
        return Err(SendError::ContextChanged { asked, current: thread.context_version });
    }
    if let Some(WorkRef { item, fence }) = &job.request.work {
        if item.inbox != job.inbox {
            return Err(SendError::NotFound);
        }
        let held = work::held(tx, *item, *fence).await?;
        if thread.is_some_and(|t| t.thread_key != held.thread_key) {
            let message =
                "the work item belongs to another thread than the message that is answered".to_owned();
            return Err(SendError::Invalid { field: "work_item_id", message });
        }
        let current = thread.filter(|_| job.request.context_version.is_some()).map(|t| t.last_message);
        if let Some(known) = current.or(job.parent.as_ref().map(|p| p.message_key)) {
            work::knows(tx, held, known).await?;
        }
        return Ok(None);
    }
    let Some(thread) = thread else { return Ok(None) };
    let Some(item) = work_item::latest_of_thread(tx, job.inbox, thread.thread_key).await? else {
        return Ok(None);
    };
    let alive = item.lease.as_ref().filter(|lease| lease.expires_at > tx.now());
    match (item.state, alive) {
        (ItemState::Claimed, Some(lease)) if lease.key_id != Some(job.who.key_id) => {
            Err(SendError::LeaseHeld)
        }
        (ItemState::Available, _) => Ok(Some(item)),
        _ => Ok(None),
    }
}

/// Every rule, so that a refusal names all that is in the way.
async fn decide(
    tx: &mut Tx,
    job: &Job,
    inbox: &Inbox,
    thread: Option<&Thread>,
) -> Result<(Decision, Reservation), SendError> {
    let recipients = &job.prepared.recipients;
    let mut reasons = stops::reasons(tx, job.inbox, &inbox.domain).await?;
    reasons.extend(loops::reasons(tx, job, thread).await?);
    // A domain that was lost may be somebody else's by now: nothing leaves in its name.
    if !job.floor.domains.find(&inbox.domain).is_some_and(|ours| ours.serves(inbox.key.pod)) {
        let say = format!("{} is not a verified domain of this server (any more).", inbox.domain);
        let fix = "GET /v0/domains/{domain_id} says which records to set; then POST /v0/domains/{domain_id}/verify.";
        reasons.push(Reason::new("domain_not_verified", say, fix).with([inbox.domain.clone()]));
    }
    if recipients.len() > MAX_RECIPIENTS {
        let say = format!(
            "{} recipients are more than the {MAX_RECIPIENTS} that one message may have.",
            recipients.len()
        );
        reasons.push(Reason::new("too_many_recipients", say, "Send several messages."));
    }
    let said = list::check(tx, job.inbox, ListDirection::Send, recipients).await?;
    for (address, verdict) in recipients.iter().zip(said) {
        reasons.extend(list_reason(address.to_string(), verdict));
    }
    let names: Vec<String> = recipients.iter().map(crate::address::Address::key).collect();
    for found in suppression::among(tx, job.inbox.pod, &names).await? {
        let say = format!(
            "{} is suppressed ({}): mail to it would hurt the domain's reputation.",
            found.address, found.reason
        );
        let fix = format!(
            "Use another address, or have an admin lift it: DELETE /v1/suppressions/{}",
            found.address
        );
        reasons.push(Reason::new("suppressed", say, fix).with([found.address, found.reason]));
    }
    let budgets = &job.floor.config.budgets;
    let own = limits::limits_of(inbox, budgets);
    let (limits, slowed) = watch::effective(tx, budgets, job.inbox, &inbox.domain, own).await?;
    let (mut reservation, mut over) = limits::reserve(tx, job.inbox, limits, recipients.len() as i64).await?;
    over.extend(limits::reserve_recipients(tx, inbox, limits, recipients, &mut reservation).await?);
    if slowed {
        for reason in &mut over {
            reason
                .say
                .push_str(" Limits are halved, since too much of what was sent bounced or was called spam.");
        }
    }
    reasons.extend(over);
    Ok((Decision::from_objections(reasons), reservation))
}

fn list_reason(address: String, verdict: ListVerdict) -> Option<Reason> {
    match verdict {
        ListVerdict::Allowed => None,
        ListVerdict::Blocked(entry) => {
            let at = list::scope_word(entry.scope);
            let say = format!("{address} is on the {at}'s send block list ({}).", entry.entry);
            let fix = "Write to somebody else, or have an admin remove the entry.";
            Some(Reason::new("send_list_block", say, fix).with([address, entry.entry]))
        }
        ListVerdict::NotAllowed { scope } => {
            let say = format!("{address} is not on the {}'s send allow list.", list::scope_word(scope));
            let fix = "Have an admin add the address or its domain to that list.";
            Some(Reason::new("send_list_allow", say, fix).with([address]))
        }
    }
}

/// A conversation that ended because nobody looked at it: now somebody does.
async fn tell_human(
    tx: &mut Tx,
    job: &Job,
    thread: Option<&Thread>,
    reasons: &[Reason],
) -> Result<(), SendError> {
    let turns = reasons.iter().find(|reason| reason.rule.starts_with("thread_turns"));
    if let (Some(reason), Some(thread)) = (turns, thread) {
        work::call_human(tx, job.inbox, thread.thread_key, reason.rule).await?;
    }
    Ok(())
}

/// A refusal is seen by those who watch: the event, and the audit row.
async fn note_refusal(tx: &mut Tx, job: &Job, reasons: &[Reason]) -> Result<(), SendError> {
    let rules: Vec<&str> = reasons.iter().map(|r| r.rule).collect();
    let sentences: Vec<&str> = reasons.iter().map(|r| r.say.as_str()).collect();
    let event = NewEvent {
        event_type: "message.rejected",
        thread_key: job.parent.as_ref().map(|p| p.thread_key),
        data: serde_json::json!({
            "reason": sentences.join(" "),
            "rules": rules,
            "message_id": job.prepared.composition.message_id,
        })
        .to_string(),
        ..NewEvent::default()
    };
    event::append(tx, job.inbox, event).await?;
    let entry = audit::Entry {
        actor: &job.who.actor(),
        run_id: job.request.run_id.as_deref(),
        action: "message.refused",
        inbox: Some(job.inbox),
        object: &job.prepared.composition.message_id,
        detail: serde_json::json!({ "rules": rules, "recipients": job.prepared.recipients.len() })
            .to_string(),
    };
    audit::record(tx, entry).await?;
    Ok(())
}
