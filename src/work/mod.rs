//! Threads become work: at most one open item a thread, and one holder an item.
//!
//! A claim raises the item's fence and gives a lease. Every action for the item carries the fence and is
//! checked in the transaction that acts (`held`), by the database's clock: a worker that was stopped past its
//! lease and goes on finds 412, whatever it believes. An expired lease counts an attempt; after five the item
//! is dead and says so. Several processes claim at once: SQLite has one writer, PostgreSQL skips locked rows.
//!
//! DESIGN.md §6 (work items), reference/governance.md §2.

mod claim;
mod raise;

use std::sync::Arc;

use crate::clock::{HOUR, Millis, SECOND};
use crate::floor::Floor;
use crate::ids::RowId;
use crate::principal::Principal;
use crate::store::event::{self, NewEvent};
use crate::store::message;
use crate::store::work_item::{self, ItemState, Lease, WorkItem};
use crate::store::{StoreError, Tx};

pub use claim::{ClaimRequest, Claimed, MAX_CLAIM, claim, unclaim};

pub use raise::resume;
pub(crate) use raise::{Arrived, HandedTo, PAUSED, answered, call_human, knows, raise, undo_hold};

/// Lease lengths in seconds, DESIGN.md §6; 12 hours is SQS's cap as well.
pub const LEASE_SECONDS: std::ops::RangeInclusive<i64> = 5..=43_200;
pub const DEFAULT_LEASE_SECONDS: i64 = 300;
/// A lease can be extended until this long after its claim.
const LONGEST_HOLD: Millis = 12 * HOUR;
/// Failed attempts until an item is dead.
const MAX_ATTEMPTS: i64 = 5;
/// The first pause after a failed attempt; it doubles with each (governance.md §2: 30 s · 2^n).
const FIRST_BACKOFF: Millis = 30 * SECOND;

#[derive(Debug, Clone, thiserror::Error)]
pub enum WorkError {
    #[error("there is no such work item")]
    NotFound,
    /// The fence is old, or the lease has run out.
    #[error("the lease is lost: the item was claimed again, released or finished since")]
    LeaseLost,
    /// Somebody else holds the item.
    #[error("the work item is held by another worker")]
    LeaseHeld,
    #[error("a work item that is {state} cannot be {verb}")]
    WrongState { state: &'static str, verb: &'static str },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a worker asks to be done with the item that it holds.
#[derive(Debug, Clone)]
pub enum Action {
    /// Extends the lease to `lease_seconds` from now.
    Heartbeat { lease_seconds: i64 },
    /// Finished. `reason` is kept: `answered`, `no_reply_needed`, …
    Complete { reason: Option<String> },
    /// Back to the queue; with an error, an attempt is counted and the item rests.
    Release { error: Option<String> },
    /// Set aside until a reply comes, or until `until` (then it is available again with reason `no_reply`).
    Wait { for_reply: bool, until: Option<Millis> },
    /// A human has to look.
    Escalate { reason: Option<String> },
    /// To one worker by name, or to any.
    Handoff { worker: Option<String>, reason: Option<String> },
}

/// What an admin or a person asks to be done with an item that nobody has to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Override {
    /// `dead`, `held`, `needs_human` or `waiting` → `available`, attempts from 0.
    Requeue,
    /// Finished without an answer.
    Discard,
}

/// Acts for the item `id` under `fence`.
pub async fn act(
    floor: &Arc<Floor>,
    who: &Principal,
    id: RowId,
    fence: i64,
    action: Action,
) -> Result<WorkItem, WorkError> {
    if !who.scope.reaches(id.inbox) {
        return Err(WorkError::NotFound);
    }
    floor
        .store
        .write(move |tx| {
            let action = action.clone();
            Box::pin(async move {
                let item = held(tx, id, fence).await?;
                apply(tx, item, action).await
            })
        })
        .await
}

/// The item, locked, if `fence` still holds it. The check that every action and every send makes in its own
/// transaction; by the database's clock.
pub(crate) async fn held(tx: &mut Tx, id: RowId, fence: i64) -> Result<WorkItem, WorkError> {
    let item = work_item::lock(tx, id.inbox, id.seq).await?.ok_or(WorkError::NotFound)?;
    if item.created_at != id.at {
        return Err(WorkError::NotFound);
    }
    let alive = item.lease.as_ref().is_some_and(|lease| lease.expires_at > tx.now());
    if item.state == ItemState::Claimed && item.fence == fence && alive {
        Ok(item)
    } else {
        Err(WorkError::LeaseLost)
    }
}

async fn apply(tx: &mut Tx, mut item: WorkItem, action: Action) -> Result<WorkItem, WorkError> {
    let now = tx.now();
    match action {
        Action::Heartbeat { lease_seconds } => {
            if let Some(lease) = &mut item.lease {
                let wanted = now + lease_seconds * SECOND;
                lease.expires_at = wanted.min(lease.since + LONGEST_HOLD).max(lease.expires_at.min(wanted));
            }
            item.updated_at = now;
            work_item::put(tx, &item).await?;
            return Ok(item);
        }
        Action::Complete { reason } => {
            finish(tx, &mut item, reason.as_deref().unwrap_or("completed")).await?
        }
        Action::Release { error: None } => make_available(&mut item, now, "released"),
        Action::Release { error: Some(error) } => fail(&mut item, now, error),
        Action::Wait { for_reply, until } => {
            if !leaves_news(tx, &mut item).await? {
                item.state = ItemState::Waiting;
                item.waiting_for = Some(if for_reply { "reply" } else { "time" }.to_owned());
                item.available_at = until.unwrap_or(Millis::MAX);
                item.lease = None;
            }
        }
        Action::Escalate { reason } => {
            item.state = ItemState::NeedsHuman;
            item.reason = reason.unwrap_or_else(|| "escalated".to_owned());
            item.lease = None;
        }
        Action::Handoff { worker, reason } => {
            make_available(&mut item, now, reason.as_deref().unwrap_or("handoff"));
            item.for_worker = worker;
        }
    }
    record(tx, &mut item).await?;
    Ok(item)
}

/// Done, and new mail opens a new item; unless mail came that the holder has not seen.
pub(crate) async fn finish(tx: &mut Tx, item: &mut WorkItem, reason: &str) -> Result<(), StoreError> {
    if leaves_news(tx, item).await? {
        return Ok(());
    }
    item.state = ItemState::Done;
    item.reason = reason.to_owned();
    item.lease = None;
    item.done_at = Some(tx.now());
    Ok(())
}

/// Marks what the holder has seen as handled. True where something came meanwhile: then the item is available
/// again, whatever the holder thinks of it, since nobody has looked at that yet.
async fn leaves_news(tx: &mut Tx, item: &mut WorkItem) -> Result<bool, StoreError> {
    let until = item.seen_message.unwrap_or(i64::MAX);
    message::mark_handled(tx, item.inbox, item.thread_key, until).await?;
    let news = !message::unhandled(tx, item.inbox, item.thread_key, 1).await?.is_empty();
    if news {
        let now = tx.now();
        make_available(item, now, "reply");
    }
    Ok(news)
}

/// Writes a changed item and tells the log.
pub(crate) async fn record(tx: &mut Tx, item: &mut WorkItem) -> Result<(), StoreError> {
    item.updated_at = tx.now();
    work_item::put(tx, item).await?;
    let event_type = match item.state {
        ItemState::Available => "work_item.available",
        ItemState::Claimed => "work_item.claimed",
        ItemState::Waiting => "work_item.waiting",
        ItemState::NeedsHuman => "work_item.needs_human",
        ItemState::Held => "work_item.held",
        ItemState::Dead => "work_item.dead",
        ItemState::Done => "work_item.done",
    };
    let data = serde_json::json!({ "reason": item.reason, "attempts": item.attempts, "fence": item.fence });
    let event = NewEvent {
        event_type,
        thread_key: Some(item.thread_key),
        item_key: Some(item.item_key),
        data: data.to_string(),
        ..NewEvent::default()
    };
    event::append(tx, item.inbox, event).await
}

fn make_available(item: &mut WorkItem, at: Millis, reason: &str) {
    item.state = ItemState::Available;
    item.reason = reason.to_owned();
    item.lease = None;
    item.waiting_for = None;
    item.available_at = at;
}

/// A failed attempt: the item rests, longer each time, until it is dead.
fn fail(item: &mut WorkItem, now: Millis, error: String) {
    item.attempts += 1;
    item.last_error = Some(error);
    if item.attempts >= MAX_ATTEMPTS {
        item.state = ItemState::Dead;
        item.reason = "too_many_attempts".to_owned();
        item.lease = None;
    } else {
        let pause = FIRST_BACKOFF << (item.attempts - 1).clamp(0, 10);
        make_available(item, now + pause, "retry");
    }
}

/// An admin's decision on an item, whoever holds it.
pub async fn override_item(
    floor: &Arc<Floor>,
    who: &Principal,
    id: RowId,
    what: Override,
) -> Result<WorkItem, WorkError> {
    if !who.scope.reaches(id.inbox) {
        return Err(WorkError::NotFound);
    }
    floor
        .store
        .write(move |tx| {
            Box::pin(async move {
                let mut item = work_item::lock(tx, id.inbox, id.seq).await?.ok_or(WorkError::NotFound)?;
                if item.created_at != id.at {
                    return Err(WorkError::NotFound);
                }
                let now = tx.now();
                match (what, item.state) {
                    (_, ItemState::Done) => {
                        return Err(WorkError::WrongState { state: "done", verb: "changed" });
                    }
                    (Override::Requeue, ItemState::Claimed) => {
                        return Err(WorkError::WrongState { state: "claimed", verb: "requeued" });
                    }
                    // Nothing would be handed out with it.
                    (Override::Requeue, ItemState::Held)
                        if message::unhandled(tx, item.inbox, item.thread_key, 1).await?.is_empty() =>
                    {
                        let verb = "requeued; its messages can be released (GET /v1/held)";
                        return Err(WorkError::WrongState { state: "held", verb });
                    }
                    (Override::Requeue, _) => {
                        item.attempts = 0;
                        make_available(&mut item, now, "requeued");
                    }
                    (Override::Discard, _) => {
                        item.seen_message = None;
                        finish(tx, &mut item, "discarded").await?;
                    }
                }
                record(tx, &mut item).await?;
                Ok(item)
            })
        })
        .await
}

/// The item; `NotFound` where the caller may not see it.
pub async fn get(floor: &Arc<Floor>, who: &Principal, id: RowId) -> Result<WorkItem, WorkError> {
    if !who.scope.reaches(id.inbox) {
        return Err(WorkError::NotFound);
    }
    let found = floor.store.read(move |tx| Box::pin(work_item::by_key(tx, id.inbox, id.seq))).await?;
    let found: Option<WorkItem> = found;
    found.filter(|item| item.created_at == id.at).ok_or(WorkError::NotFound)
}

/// Takes back what nobody holds any more: expired leases count an attempt, waiting items whose time has come
/// are available again. Runs until the server stops.
pub async fn sweep(floor: Arc<Floor>, shutdown: tokio_util::sync::CancellationToken) {
    loop {
        let swept = floor.store.write(|tx| Box::pin(sweep_once(tx))).await;
        let pause = match swept {
            Ok(n) if n >= SWEEP_BATCH => std::time::Duration::ZERO,
            Ok(_) => std::time::Duration::from_millis(500),
            Err(e) => {
                let e: StoreError = e;
                tracing::warn!(error = %e, "expired leases could not be swept");
                std::time::Duration::from_secs(5)
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

const SWEEP_BATCH: usize = 100;

async fn sweep_once(tx: &mut Tx) -> Result<usize, StoreError> {
    let overdue = work_item::overdue(tx, SWEEP_BATCH as i64).await?;
    let count = overdue.len();
    for mut item in overdue {
        let now = tx.now();
        if item.state == ItemState::Claimed {
            fail(&mut item, now, "the lease expired".to_owned());
            // Nobody failed at it, somebody vanished: the next worker may try at once.
            if item.state == ItemState::Available {
                item.available_at = now;
                item.reason = "lease_expired".to_owned();
            }
        } else {
            let reason = if item.waiting_for.as_deref() == Some("reply") { "no_reply" } else { "time" };
            make_available(&mut item, now, reason);
        }
        record(tx, &mut item).await?;
    }
    Ok(count)
}

/// Marks the item as claimed by `who`, raising its fence.
fn grant(item: &mut WorkItem, now: Millis, lease: Lease) {
    item.state = ItemState::Claimed;
    item.fence += 1;
    item.lease = Some(lease);
    item.waiting_for = None;
    item.for_worker = None;
    item.updated_at = now;
}
