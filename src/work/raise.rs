//! A message arrives in a thread: what becomes of the thread's work item.

use super::{finish, make_available, record};
use crate::clock::Millis;
use crate::ids::InboxKey;
use crate::store::work_item::{self, ItemState, WorkItem};
use crate::store::{StoreError, Tx};

/// What arrived, as far as work is concerned.
pub(crate) struct Arrived {
    pub inbox: InboxKey,
    pub thread_key: i64,
    /// The number for a new item, taken with the message's.
    pub item_key: i64,
    /// `new_message`, `reply`, `bounce`.
    pub reason: &'static str,
    /// Not to be handed out: a suspect sender or a paused inbox.
    pub held: bool,
}

/// Opens an item, or lets the open one know. At most one is open a thread.
pub(crate) async fn raise(tx: &mut Tx, arrived: Arrived) -> Result<WorkItem, StoreError> {
    let now = tx.now();
    let last = work_item::latest_of_thread(tx, arrived.inbox, arrived.thread_key).await?;
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
        ItemState::Waiting if item.waiting_for.as_deref() != Some("review") && !arrived.held => {
            make_available(&mut item, now, arrived.reason);
            record(tx, &mut item).await?;
        }
        ItemState::Dead if !arrived.held => {
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
        state: if arrived.held { ItemState::Held } else { ItemState::Available },
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
        created_at: now,
        updated_at: now,
        done_at: None,
    }
}

/// A reply without a fence into a thread whose item nobody holds: the item is done (`answered`).
pub(crate) async fn answered(tx: &mut Tx, mut item: WorkItem) -> Result<(), StoreError> {
    finish(tx, &mut item, "answered").await?;
    record(tx, &mut item).await
}
