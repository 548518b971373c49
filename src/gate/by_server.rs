//! Mail that the server itself has to send: reports to domains that ask for them. The one other way into the queue.
//!
//! It leaves from the operator's inbox of the domain that its From names, with that inbox's return path and the
//! domain's signature. It counts against no limit and answers to nobody's policy, so it may only be written to an
//! address that asked for it; a suppressed one is left alone like by everybody else. What comes back to it is filed
//! in its thread and makes no work, so that it can start no loop. DESIGN.md §4 (4, 7).

use crate::address::Address;
use crate::deliver::compose::tls_is_optional;
use crate::floor::Floor;
use crate::inbox::{add_to_thread, new_thread, operator_address};
use crate::screen::{self, kind::Kind, structure::Structure};
use crate::store::body::{self, Body};
use crate::store::delivery::{self, NewDelivery, Priority, TlsDemand};
use crate::store::event::{self, NewEvent};
use crate::store::inbox::{self, Inbox, MAILBOX_SENT};
use crate::store::message::{self, Direction, Message};
use crate::store::{StoreError, Tx, audit, hold_rule, suppression, thread};

use super::release::{body_hash, route};

/// A message that is ready to be released, in a transaction of whoever has to remember that it was.
pub struct ServerLetter {
    inbox: Inbox,
    from: Address,
    to: Address,
    structure: Structure,
    body: Body,
    body_hash: Vec<u8>,
    size: i64,
    tls: TlsDemand,
    expire: i64,
    route: delivery::Route,
    /// For the audit log: `dmarc_report`, …
    purpose: &'static str,
}

impl ServerLetter {
    pub fn to(&self) -> &Address {
        &self.to
    }
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerSent {
    /// In the queue, under this id (`msg_…`).
    Queued(String),
    /// The address must not be written to.
    Suppressed,
}

/// Reads and packs a composed message; `None` where `from` is at no domain that has an operator's inbox.
pub async fn prepare_by_server(
    floor: &Floor,
    from: Address,
    to: Address,
    raw: &[u8],
    purpose: &'static str,
) -> Result<Option<ServerLetter>, StoreError> {
    let operator = operator_address(from.domain());
    let found = floor.store.read(move |tx| {
        let operator = operator.clone();
        Box::pin(async move { inbox::by_address(tx, &operator).await })
    });
    let found: Option<Inbox> = found.await?;
    let Some(inbox) = found.filter(|inbox| inbox.operator) else { return Ok(None) };
    let structure = screen::structure(raw);
    Ok(Some(ServerLetter {
        body: floor.bodies.prepare(inbox.key.pod, raw).await?,
        body_hash: body_hash(raw, &structure),
        size: raw.len() as i64,
        tls: if tls_is_optional(raw) { TlsDemand::Optional } else { TlsDemand::Usual },
        expire: i64::try_from(floor.config.relay.expire.as_millis()).unwrap_or(i64::MAX / 2),
        route: route(floor, &to),
        inbox,
        from,
        to,
        structure,
        purpose,
    }))
}

/// Puts it into the queue.
///
/// Crash argument: message, delivery, event and audit row are the caller's transaction, and so is the caller's note
/// that it was sent: after a crash there are all of them or none.
pub async fn send_by_server(tx: &mut Tx, letter: &ServerLetter) -> Result<ServerSent, StoreError> {
    let key = letter.inbox.key;
    if !suppression::among(tx, key.pod, &[letter.to.key()]).await?.is_empty() {
        return Ok(ServerSent::Suppressed);
    }
    // Message, thread, delivery.
    let Some(reserved) = inbox::reserve(tx, key, 3).await? else {
        return Err(StoreError::Damaged(format!("the operator's inbox {} is gone", letter.inbox.address)));
    };
    let message = record_of(letter, tx.now(), reserved.first, reserved.modseq);
    let mut thread = new_thread(&message, tx.now());
    add_to_thread(&mut thread, &message, tx.now());
    thread.sent_at = Some(tx.now());
    thread::put(tx, &thread).await?;
    message::insert(tx, &message).await?;
    body::insert(tx, key, message.message_key, &letter.body).await?;
    inbox::place(tx, key, MAILBOX_SENT, message.message_key, message.modseq).await?;
    // The operator's rules hold this, too.
    let rules = hold_rule::all(tx).await?;
    let new = NewDelivery {
        inbox: key,
        delivery_key: reserved.first + 2,
        message_key: message.message_key,
        recipient: letter.to.to_string(),
        domain: letter.to.domain().to_owned(),
        route: letter.route,
        expires_at: tx.now() + letter.expire,
        priority: Priority::Bulk,
        tls: letter.tls,
        not_before: None,
        // Nobody waits for it.
        notice_at: None,
        held_by: rules.iter().find(|rule| rule.holds(key, letter.to.domain())).map(|rule| rule.name()),
    };
    delivery::insert(tx, &new).await?;
    let event = NewEvent {
        event_type: "message.sent",
        thread_key: Some(message.thread_key),
        message_key: Some(message.message_key),
        data: serde_json::json!({ "recipients": [letter.to.to_string()] }).to_string(),
        ..NewEvent::default()
    };
    event::append(tx, key, event).await?;
    let detail = serde_json::json!({
        "purpose": letter.purpose,
        "recipients": 1,
        "body_sha256": crate::ids::base32(&letter.body_hash),
    });
    let entry = audit::Entry {
        actor: "system",
        run_id: None,
        action: "message.released",
        inbox: Some(key),
        object: &message.id(),
        detail: detail.to_string(),
    };
    audit::record(tx, entry).await?;
    Ok(ServerSent::Queued(message.id()))
}

fn record_of(letter: &ServerLetter, now: i64, first: i64, modseq: i64) -> Message {
    let structure = &letter.structure;
    Message {
        inbox: letter.inbox.key,
        message_key: first,
        thread_key: first + 1,
        direction: Direction::Out,
        state: "queued".to_owned(),
        rfc_message_id: structure.message_id.clone(),
        duplicate_of: None,
        id_taken: false,
        kind: Some(Kind::Report),
        codes: Vec::new(),
        body_hash: letter.body_hash.clone(),
        reached_by: None,
        reverse_path: None,
        from_address: Some(letter.from.key()),
        from_text: structure.from.first().map(ToString::to_string).unwrap_or_default(),
        to: vec![letter.to.to_string()],
        cc: Vec::new(),
        bcc: Vec::new(),
        reply_to: Vec::new(),
        subject: structure.subject.clone(),
        preview: structure.preview.clone(),
        labels: vec!["sent".to_owned(), "report".to_owned()],
        structure: structure.clone(),
        verdict: None,
        verified_sender: None,
        size: letter.size,
        run_id: None,
        // Nobody's key: that is how mail of the server's own is known.
        key_id: None,
        held: None,
        policy: None,
        require_tls: false,
        modseq,
        created_at: now,
        updated_at: now,
    }
}
