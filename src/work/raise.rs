//! A message arrives in a thread: what becomes of the thread's work item.

use super::{finish, make_available, record};
use crate::clock::Millis;
use crate::ids::InboxKey;
use crate::store::work_item::{self, ItemState, WorkItem};
use crate::store::{StoreError, Tx, held, message};

/// What arrived, as far as work is concerned.
pub(crate) struct Arrived {
    pub inbox: InboxKey,
    pub thread_key: i64,
    /// The number for a new item, taken with the message's.
    pub item_key: i64,
    /// `new_message`, `reply`, `bounced`, `complained`; why it is held, where it is.
    pub reason: &'static str,
    pub to: HandedTo,
    /// The message opened the thread, which can have no item then.
    pub new_thread: bool,
}

/// Who gets to see the item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandedTo {
    Workers,
    /// Nobody yet: a suspect sender, or a paused inbox.
    Held,
    /// The operator's mail is not for agents.
    Human,
}

/// Why items of a paused inbox are held; resuming the inbox lets these go, and no others.
const INBOX_PAUSED: &str = "inbox_paused";
pub(crate) const PAUSED: (HandedTo, &str) = (HandedTo::Held, INBOX_PAUSED);

/// Opens an item, or lets the open one know. At most one is open a thread.
pub(crate) async fn raise(tx: &mut Tx, arrived: Arrived) -> Result<WorkItem, StoreError> {
    let now = tx.now();
    let last = match arrived.new_thread {
        true => None,
        false => work_item::latest_of_thread(tx, arrived.inbox, arrived.thread_key).await?,
    };
    let mut item = match last {
        Some(item) if item.state != ItemState::Done => item,
        last => {
            let mut item = open(&arrived, now);
            item.parent_key = last.map(|i| i.item_key);
            record(tx, &mut item).await?;
            return Ok(item);
        }
    };
    match item.state {
        // New words from outside answer the wait; and what failed before may go now that there is more to read.
        ItemState::Waiting
            if item.waiting_for.as_deref() != Some("review") && arrived.to == HandedTo::Workers =>
        {
            make_available(&mut item, now, arrived.reason);
            record(tx, &mut item).await?;
        }
        // One suspect copy does not mute what is good; the pause of an inbox ends by itself.
        ItemState::Held if arrived.to == HandedTo::Workers && item.reason != INBOX_PAUSED => {
            make_available(&mut item, now, arrived.reason);
            record(tx, &mut item).await?;
        }
        ItemState::Held if arrived.to == HandedTo::Human => {
            item.state = ItemState::NeedsHuman;
            item.reason = arrived.reason.to_owned();
            record(tx, &mut item).await?;
        }
        // Good mail in a paused inbox: the end of the pause lets it go, whatever the item stood still for.
        ItemState::Held | ItemState::Dead | ItemState::Waiting
            if arrived.reason == INBOX_PAUSED
                && item.reason != INBOX_PAUSED
                && item.waiting_for.as_deref() != Some("review") =>
        {
            item.state = ItemState::Held;
            item.reason = INBOX_PAUSED.to_owned();
            item.attempts = 0;
            item.waiting_for = None;
            record(tx, &mut item).await?;
        }
        ItemState::Dead if arrived.to == HandedTo::Workers => {
            item.attempts = 0;
            make_available(&mut item, now, arrived.reason);
            record(tx, &mut item).await?;
        }
        // Whoever holds it, or will, learns of it by the thread's context version.
        _ => {}
    }
    Ok(item)
}

fn open(arrived: &Arrived, now: Millis) -> WorkItem {
    WorkItem {
        inbox: arrived.inbox,
        item_key: arrived.item_key,
        thread_key: arrived.thread_key,
        state: match arrived.to {
            HandedTo::Workers => ItemState::Available,
            HandedTo::Held => ItemState::Held,
            HandedTo::Human => ItemState::NeedsHuman,
        },
        reason: arrived.reason.to_owned(),
        priority: 0,
        attempts: 0,
        last_error: None,
        fence: 0,
        lease: None,
        available_at: now,
        waiting_for: None,
        for_worker: None,
        parent_key: None,
        seen_message: None,
        created_at: now,
        updated_at: now,
        done_at: None,
    }
}

/// A reply without a fence into a thread whose item nobody holds: the item is done (`answered`).
pub(crate) async fn answered(tx: &mut Tx, mut item: WorkItem) -> Result<(), StoreError> {
    item.seen_message = None;
    finish(tx, &mut item, "answered").await?;
    record(tx, &mut item).await
}

/// The holder answers `message_key`, or writes against the thread as it is: it knows what came until then.
pub(crate) async fn knows(tx: &mut Tx, mut item: WorkItem, message_key: i64) -> Result<(), StoreError> {
    if item.seen_message.is_some_and(|seen| seen < message_key) {
        item.seen_message = Some(message_key);
        work_item::put(tx, &item).await?;
    }
    Ok(())
}

/// What a held item was held for is decided: with nothing left in it to look at, it is done.
pub(crate) async fn undo_hold(tx: &mut Tx, inbox: InboxKey, thread_key: i64) -> Result<(), StoreError> {
    let item = work_item::latest_of_thread(tx, inbox, thread_key).await?;
    let Some(mut item) = item.filter(|item| item.state == ItemState::Held) else { return Ok(()) };
    let waits = held::any_of_thread(tx, inbox, thread_key).await?
        || !message::unhandled(tx, inbox, thread_key, 1).await?.is_empty();
    if waits {
        return Ok(());
    }
    finish(tx, &mut item, "discarded").await?;
    record(tx, &mut item).await
}

/// The inbox is active again: what was held because it was not is handed out.
pub async fn resume(tx: &mut Tx, inbox: InboxKey) -> Result<(), StoreError> {
    for mut item in work_item::held_for(tx, inbox, INBOX_PAUSED).await? {
        let now = tx.now();
        make_available(&mut item, now, "inbox_resumed");
        record(tx, &mut item).await?;
    }
    Ok(())
}

/// A thread needs a human, whoever works on it: its item, or a new one, says so. A lease on it ends. The caller has
/// locked the inbox, or is about to write nothing else of it.
pub(crate) async fn call_human(
    tx: &mut Tx,
    inbox: InboxKey,
    thread_key: i64,
    reason: &'static str,
) -> Result<(), StoreError> {
    let Some(thread) = crate::store::thread::by_key(tx, inbox, thread_key).await? else { return Ok(()) };
    let last = work_item::latest_of_thread(tx, inbox, thread_key).await?;
    let mut item = match last {
        Some(item) if item.state == ItemState::NeedsHuman => return Ok(()),
        Some(item) if item.state != ItemState::Done => item,
        last => {
            let Some(reserved) = crate::store::inbox::reserve(tx, inbox, 1).await? else { return Ok(()) };
            let (item_key, to) = (reserved.first, HandedTo::Human);
            let new =
                Arrived { inbox, thread_key: thread.thread_key, item_key, reason, to, new_thread: false };
            let mut item = open(&new, tx.now());
            item.parent_key = last.map(|i| i.item_key);
            return record(tx, &mut item).await;
        }
    };
    item.state = ItemState::NeedsHuman;
    item.reason = reason.to_owned();
    item.lease = None;
    item.waiting_for = None;
    record(tx, &mut item).await
}
