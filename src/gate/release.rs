//! The release: what passed the gate becomes a message in its thread and a delivery for each recipient.

use sha2::{Digest, Sha256};

use super::limits::Reservation;
use super::{IDEMPOTENCY_KEPT, Job, SendError, Sent};
use crate::address::Address;
use crate::floor::Floor;
use crate::inbox::{add_to_thread, new_thread};
use crate::screen::structure::Structure;
use crate::store::delivery::{self, NewDelivery, Route, TlsDemand};
use crate::store::event::{self, NewEvent};
use crate::store::inbox::{self, MAILBOX_SENT};
use crate::store::message::{self, Direction, Message};
use crate::store::thread::{self, Thread};
use crate::store::work_item::WorkItem;
use crate::store::{StoreError, Tx, audit, body, hold_rule, idempotency, recipient, release};
use crate::work;

use super::request::Named;

/// SHA-256 of the body, by which a message that comes back is known.
pub(super) fn body_hash(raw: &[u8], structure: &Structure) -> Vec<u8> {
    let body = usize::try_from(structure.body_at).ok().and_then(|at| raw.get(at..)).unwrap_or(raw);
    Sha256::digest(body).to_vec()
}

/// Crash argument: all of this is one transaction. Before its COMMIT nothing was released and the limit is
/// untouched; after it the queue has every recipient, and a repeat under the same key finds its answer.
pub(super) async fn release(
    tx: &mut Tx,
    job: &Job,
    thread: Option<Thread>,
    item: Option<WorkItem>,
    reservation: Reservation,
) -> Result<Sent, SendError> {
    let recipients = &job.prepared.recipients;
    // A number for the message, one for a thread, and one for each delivery.
    let numbers = 2 + recipients.len() as i64;
    let reserved = inbox::reserve(tx, job.inbox, numbers).await?.ok_or(SendError::NotFound)?;
    let thread_key = thread.as_ref().map_or(reserved.first + 1, |t| t.thread_key);
    let message = record_of(job, tx.now(), reserved.first, thread_key, reserved.modseq);
    let thread = grow_thread(tx, job, thread, &message).await?;
    // An invitation: its answer may come with nothing but the UID.
    let names: Vec<&str> = job.structure.ties.names.iter().map(String::as_str).collect();
    thread::add_names(tx, job.inbox, thread_key, message.message_key, &names).await?;
    message::insert(tx, &message).await?;
    body::insert(tx, job.inbox, message.message_key, &job.body).await?;
    inbox::place(tx, job.inbox, MAILBOX_SENT, message.message_key, message.modseq).await?;
    enqueue(tx, job, message.message_key, reserved.first + 2).await?;
    release::add(
        tx,
        job.inbox,
        message.message_key,
        reservation.at,
        reservation.recipients,
        reservation.total,
    )
    .await?;
    recipient::note_new(tx, job.inbox, message.message_key, reservation.at, &reservation.strangers).await?;
    if let Some(item) = item {
        work::answered(tx, item).await?;
    }
    announce(tx, job, &message).await?;
    let sent = Sent {
        message_id: message.public_id(),
        thread_id: thread.id(),
        status: if job.request.send_at.is_some_and(|at| at > tx.now()) { "scheduled" } else { "queued" }
            .to_owned(),
        context_version: thread.context_version,
    };
    if let Some(asked) = &job.request.idempotency {
        let answer = message::to_json(&sent)?;
        let since = tx.now() - IDEMPOTENCY_KEPT;
        idempotency::put(tx, &asked.name, &asked.request_hash, &answer, since).await?;
    }
    Ok(sent)
}

fn record_of(job: &Job, now: i64, message_key: i64, thread_key: i64, modseq: i64) -> Message {
    let text = |(name, address): &Named| match name {
        Some(name) => format!("{name} <{address}>"),
        None => address.to_string(),
    };
    let texts = |list: &[Named]| list.iter().map(text).collect::<Vec<_>>();
    let composition = &job.prepared.composition;
    let mut labels = vec!["sent".to_owned()];
    for label in &job.request.labels {
        if !labels.contains(label) {
            labels.push(label.clone());
        }
    }
    Message {
        inbox: job.inbox,
        message_key,
        thread_key,
        direction: Direction::Out,
        state: "queued".to_owned(),
        rfc_message_id: Some(composition.message_id.clone()),
        duplicate_of: None,
        id_taken: false,
        kind: None,
        codes: Vec::new(),
        body_hash: job.body_hash.clone(),
        reached_by: None,
        reverse_path: None,
        from_address: Some(composition.from.1.key()),
        from_text: text(&composition.from),
        to: texts(&job.prepared.to),
        cc: texts(&job.prepared.cc),
        bcc: texts(&job.prepared.bcc),
        reply_to: texts(&composition.reply_to),
        subject: Some(composition.subject.clone()),
        preview: job.structure.preview.clone(),
        labels,
        structure: job.structure.clone(),
        verdict: None,
        verified_sender: None,
        size: job.size,
        run_id: job.request.run_id.clone(),
        key_id: Some(job.who.key_id),
        held: None,
        policy: None,
        require_tls: job.tls == TlsDemand::Required,
        modseq,
        created_at: now,
        updated_at: now,
    }
}

/// Whom the inbox writes to takes part from now on. What is sent under a lease is the holder's own and does not
/// raise the context version; anything else does, so that a holder learns of it.
async fn grow_thread(
    tx: &mut Tx,
    job: &Job,
    thread: Option<Thread>,
    message: &Message,
) -> Result<Thread, StoreError> {
    let now = tx.now();
    let mut thread = thread.unwrap_or_else(|| new_thread(message, now));
    add_to_thread(&mut thread, message, now);
    thread.sent_at = Some(now);
    if job.request.work.is_none() {
        thread.context_version += 1;
    }
    thread::put(tx, &thread).await?;
    let own = job.prepared.composition.from.1.key();
    let others = job.prepared.recipients.iter().map(Address::key).filter(|address| *address != own);
    thread::add_participants(tx, job.inbox, thread.thread_key, &others.collect::<Vec<_>>(), false).await?;
    Ok(thread)
}

async fn enqueue(tx: &mut Tx, job: &Job, message_key: i64, first_key: i64) -> Result<(), StoreError> {
    let millis = |time: std::time::Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 2);
    let relay = &job.floor.config.relay;
    let (expire, notice) = (millis(relay.expire), millis(relay.delay_notice));
    let leaves = job.request.send_at.map_or(tx.now(), |at| at.max(tx.now()));
    let rules = hold_rule::all(tx).await?;
    for (n, address) in job.prepared.recipients.iter().enumerate() {
        let new = NewDelivery {
            inbox: job.inbox,
            delivery_key: first_key + n as i64,
            message_key,
            recipient: address.to_string(),
            domain: address.domain().to_owned(),
            route: route(&job.floor, address),
            expires_at: leaves + expire,
            priority: job.request.priority,
            tls: job.tls,
            not_before: job.request.send_at,
            notice_at: Some(leaves + notice),
            held_by: rules.iter().find(|r| r.holds(job.inbox, address.domain())).map(|r| r.name()),
        };
        delivery::insert(tx, &new).await?;
    }
    Ok(())
}

pub(super) fn route(floor: &Floor, address: &Address) -> Route {
    if floor.receives(address.domain()) {
        Route::Local
    } else if floor.dev {
        Route::Capture
    } else {
        Route::Relay
    }
}

async fn announce(tx: &mut Tx, job: &Job, message: &Message) -> Result<(), StoreError> {
    let recipients: Vec<String> = job.prepared.recipients.iter().map(ToString::to_string).collect();
    let event = NewEvent {
        event_type: "message.sent",
        thread_key: Some(message.thread_key),
        message_key: Some(message.message_key),
        data: serde_json::json!({ "recipients": recipients }).to_string(),
        ..NewEvent::default()
    };
    event::append(tx, job.inbox, event).await?;
    let detail = serde_json::json!({
        "recipients": recipients.len(),
        "body_sha256": crate::ids::base32(&job.body_hash),
    });
    let entry = audit::Entry {
        actor: &job.who.actor(),
        run_id: job.request.run_id.as_deref(),
        action: "message.released",
        inbox: Some(job.inbox),
        object: &message.id(),
        detail: detail.to_string(),
    };
    audit::record(tx, entry).await
}
