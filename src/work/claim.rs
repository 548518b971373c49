//! Handing out work: claim, wait for something to claim, and take back a claim that nobody heard of.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Lease, WorkError, grant, held, make_available, record};
use crate::clock::SECOND;
use crate::floor::Floor;
use crate::ids::{InboxKey, RowId};
use crate::principal::{Principal, Scope};
use crate::store::message::{self, Message};
use crate::store::thread::{self, Thread};
use crate::store::work_item::{self, WorkItem};
use crate::store::{StoreError, Topic, Tx};

/// Messages handed out with an item, DESIGN.md §6.
const MESSAGES_WITH_ITEM: i64 = 10;
/// Items in one claim: each is a message or more in the answer.
pub const MAX_CLAIM: i64 = 100;
/// How often a waiting claim looks by itself, in case a hint was lost.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
pub struct ClaimRequest {
    /// Only these; `None` for every inbox that the key reaches.
    pub inboxes: Option<Vec<InboxKey>>,
    pub limit: i64,
    pub lease_seconds: i64,
    pub worker: Option<String>,
    /// How long to wait for the first item.
    pub wait: Duration,
}

/// An item with what its worker needs to begin.
#[derive(Debug, Clone)]
pub struct Claimed {
    pub item: WorkItem,
    pub thread: Thread,
    pub messages: Vec<Message>,
}

/// Claims up to `limit` items, waiting for the first if there is none; an empty list when the wait ends.
pub async fn claim(
    floor: &Arc<Floor>,
    who: &Principal,
    request: ClaimRequest,
) -> Result<Vec<Claimed>, WorkError> {
    let deadline = Instant::now() + request.wait;
    let mut told = floor.store.wakeups().subscribe(Topic::Work);
    let inboxes = reached(who, &request);
    let request = Arc::new(request);
    let key_id = who.key_id;
    loop {
        told.borrow_and_update();
        let (request, inboxes) = (request.clone(), inboxes.clone());
        let claimed = floor
            .store
            .write(move |tx| {
                let (request, inboxes) = (request.clone(), inboxes.clone());
                Box::pin(async move { claim_now(tx, key_id, &inboxes, &request).await })
            })
            .await?;
        if !claimed.is_empty() || Instant::now() >= deadline {
            return Ok(claimed);
        }
        let next_look = (Instant::now() + LOOK_AGAIN).min(deadline);
        // Either a hint, or the time to look without one.
        let _woken = tokio::time::timeout_at(next_look, told.changed()).await;
    }
}

/// Where work is looked for, one after the other.
fn reached(who: &Principal, request: &ClaimRequest) -> Vec<Scope> {
    match (&request.inboxes, who.scope) {
        (Some(asked), scope) => {
            asked.iter().filter(|i| scope.reaches(**i)).map(|i| Scope::Inbox(*i)).collect()
        }
        (None, scope) => vec![scope],
    }
}

async fn claim_now(
    tx: &mut Tx,
    key_id: i64,
    inboxes: &[Scope],
    request: &ClaimRequest,
) -> Result<Vec<Claimed>, StoreError> {
    let mut claimed = Vec::new();
    for inbox in inboxes {
        while (claimed.len() as i64) < request.limit {
            let Some(mut item) = work_item::next_available(tx, *inbox, request.worker.as_deref()).await?
            else {
                break;
            };
            let now = tx.now();
            let lease = Lease {
                key_id: Some(key_id),
                worker: request.worker.clone(),
                expires_at: now + request.lease_seconds * SECOND,
                since: now,
            };
            let (thread, messages) = context(tx, &item).await?;
            // Beyond a handful, the rest is handed out with the next claim.
            let all = (messages.len() as i64) < MESSAGES_WITH_ITEM;
            let last = messages.last().map_or(thread.last_message, |m| m.message_key);
            item.seen_message = Some(if all { last.max(thread.last_message) } else { last });
            grant(&mut item, now, lease);
            record(tx, &mut item).await?;
            claimed.push(Claimed { item, thread, messages });
        }
    }
    Ok(claimed)
}

async fn context(tx: &mut Tx, item: &WorkItem) -> Result<(Thread, Vec<Message>), StoreError> {
    let thread = thread::by_key(tx, item.inbox, item.thread_key)
        .await?
        .ok_or_else(|| StoreError::Damaged(format!("work item {} without its thread", item.id())))?;
    let messages = message::unhandled(tx, item.inbox, item.thread_key, MESSAGES_WITH_ITEM).await?;
    Ok((thread, messages))
}

/// The client was gone before it heard of its claim: the item is as it was, and no attempt is counted.
pub async fn unclaim(floor: &Arc<Floor>, claimed: &[Claimed]) {
    for Claimed { item, .. } in claimed {
        let id = RowId { at: item.created_at, inbox: item.inbox, seq: item.item_key };
        let fence = item.fence;
        let undone: Result<(), WorkError> = floor
            .store
            .write(move |tx| {
                Box::pin(async move {
                    let mut item = held(tx, id, fence).await?;
                    let now = tx.now();
                    make_available(&mut item, now, "released");
                    record(tx, &mut item).await?;
                    Ok(())
                })
            })
            .await;
        if let Err(e) = undone {
            // Its lease will run out.
            tracing::debug!(error = %e, "a claim that was not heard could not be taken back");
        }
    }
}
