//! Somebody has looked at a held message: it goes to its inbox as if it had just come, or stays where it is.
//!
//! Only people and admin keys decide (DESIGN.md §4.6); both decisions are idempotent, and a discarded message can
//! still be released. Labels, the mailbox that IMAP shows, the thread, the work item, the event and the audit row
//! change in one transaction.

use super::place::show_in_thread;
use crate::ids::InboxKey;
use crate::store::event::{self, NewEvent};
use crate::store::held::{self, Decided, Held};
use crate::store::inbox::{self, Inbox, InboxStatus};
use crate::store::message::{self, Message};
use crate::store::work_item::{self, ItemState};
use crate::store::{StoreError, Tx, audit, label, thread};
use crate::work::{self, HandedTo};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// To the inbox, and to whoever works for it.
    Release,
    /// Kept as it is, and no more to be decided.
    Discard,
}

impl Decision {
    fn done(self) -> &'static str {
        match self {
            Decision::Release => "released",
            Decision::Discard => "discarded",
        }
    }
}

/// Decides about a message. What is not held, or was decided so before, is left as it is. `None` where the inbox or
/// the message is gone.
pub(crate) async fn decide(
    tx: &mut Tx,
    key: InboxKey,
    message_key: i64,
    decision: Decision,
    actor: &str,
) -> Result<Option<Message>, StoreError> {
    let Some(inbox) = inbox::lock(tx, key).await? else { return Ok(None) };
    let Some(mut message) = message::by_key(tx, key, message_key).await? else { return Ok(None) };
    match (decision, message.held) {
        (_, None) | (Decision::Discard, Some(Held::Discarded)) => return Ok(Some(message)),
        _ => {}
    }
    let (action, by, at) = (decision.done().to_owned(), actor.to_owned(), tx.now());
    message.policy.get_or_insert_default().decided = Some(Decided { action, by, at });
    let event_type = match decision {
        Decision::Release => {
            release(tx, &inbox, &mut message).await?;
            // A delivery, for those who were not told of it when it came.
            "message.received"
        }
        Decision::Discard => {
            message.held = Some(Held::Discarded);
            held::decide(tx, &message, false).await?;
            work::undo_hold(tx, key, message.thread_key).await?;
            "message.discarded"
        }
    };
    let data = serde_json::json!({ "decision": decision.done(), "decided_by": actor }).to_string();
    let (thread_key, message_key) = (Some(message.thread_key), Some(message.message_key));
    event::append(tx, key, NewEvent { event_type, thread_key, message_key, data, ..NewEvent::default() })
        .await?;
    let action = format!("message.{}", decision.done());
    let rules = message.policy.iter().flat_map(|note| &note.reasons).map(|reason| reason.rule.as_str());
    let detail = serde_json::json!({ "rules": rules.collect::<Vec<_>>() }).to_string();
    let object = &message.id();
    let entry = audit::Entry { actor, run_id: None, action: &action, inbox: Some(key), object, detail };
    audit::record(tx, entry).await?;
    message::by_key(tx, key, message.message_key).await
}

async fn release(tx: &mut Tx, inbox: &Inbox, message: &mut Message) -> Result<(), StoreError> {
    let (key, thread_key) = (message.inbox, message.thread_key);
    message.held = None;
    if let Some(first) = message.duplicate_of
        && message::by_key(tx, key, first).await?.is_none_or(|first| first.held.is_some())
    {
        message.duplicate_of = None;
    }
    let item = work_item::latest_of_thread(tx, key, thread_key).await?;
    let claimed = item.is_some_and(|item| item.state == ItemState::Claimed);
    held::decide(tx, message, claimed).await?;
    let back: Vec<String> = label::KEPT_BACK.iter().map(ToString::to_string).collect();
    if let Some(labels) = label::change(tx, message, &[], &back).await? {
        message.labels = labels;
    }
    let mut thread = thread::by_key(tx, key, thread_key)
        .await?
        .ok_or_else(|| StoreError::Damaged(format!("thread {thread_key} is missing")))?;
    let preview = thread.preview.clone().filter(|_| thread.last_message != message.message_key);
    show_in_thread(&mut thread, message);
    thread.preview = preview.or(thread.preview);
    // Whoever writes into the thread has not read this.
    thread.context_version += 1;
    thread.updated_at = tx.now();
    thread::put(tx, &thread).await?;
    if message.duplicate_of.is_some() {
        return Ok(());
    }
    let (to, reason) = match inbox.status {
        _ if inbox.operator => (HandedTo::Human, "released"),
        InboxStatus::Paused => work::PAUSED,
        InboxStatus::Active => (HandedTo::Workers, "released"),
    };
    let Some(reserved) = inbox::reserve(tx, key, 1).await? else { return Ok(()) };
    let arrived =
        work::Arrived { inbox: key, thread_key, item_key: reserved.first, reason, to, new_thread: false };
    work::raise(tx, arrived).await?;
    Ok(())
}
