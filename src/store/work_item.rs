//! Work items: threads that want attention. The rules of their states are in `work/`; here is their SQL.

use super::page::Place;
use super::{Row, StoreError, Topic, Tx};
use crate::clock::Millis;
use crate::ids::{InboxKey, Prefix, RowId};
use crate::principal::Scope;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ItemState {
    Available,
    Claimed,
    Waiting,
    NeedsHuman,
    /// Not to be handed out: the sender is suspect, or the inbox is paused.
    Held,
    /// Failed too often.
    Dead,
    Done,
}

impl ItemState {
    pub fn text(self) -> &'static str {
        match self {
            ItemState::Available => "available",
            ItemState::Claimed => "claimed",
            ItemState::Waiting => "waiting",
            ItemState::NeedsHuman => "needs_human",
            ItemState::Held => "held",
            ItemState::Dead => "dead",
            ItemState::Done => "done",
        }
    }

    pub fn parse(text: &str) -> Option<ItemState> {
        use ItemState::*;
        [Available, Claimed, Waiting, NeedsHuman, Held, Dead, Done].into_iter().find(|s| s.text() == text)
    }
}

/// Who holds an item, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub key_id: Option<i64>,
    pub worker: Option<String>,
    pub expires_at: Millis,
    /// When it was claimed: a lease is extended to 12 hours after this at most.
    pub since: Millis,
}

#[derive(Debug, Clone)]
pub struct WorkItem {
    pub inbox: InboxKey,
    pub item_key: i64,
    pub thread_key: i64,
    pub state: ItemState,
    pub reason: String,
    pub priority: i64,
    pub attempts: i64,
    pub last_error: Option<String>,
    /// Raised by every claim, never lowered: an action with an older one is refused.
    pub fence: i64,
    pub lease: Option<Lease>,
    pub available_at: Millis,
    /// `reply`, `review` or `time`, in state `waiting`.
    pub waiting_for: Option<String>,
    pub for_worker: Option<String>,
    pub parent_key: Option<i64>,
    /// The last message that the holder was handed, or showed to know; what came later is news.
    pub seen_message: Option<i64>,
    pub created_at: Millis,
    pub updated_at: Millis,
    pub done_at: Option<Millis>,
}

impl WorkItem {
    pub fn id(&self) -> String {
        RowId { at: self.created_at, inbox: self.inbox, seq: self.item_key }.text(Prefix::WorkItem)
    }
}

macro_rules! columns {
    () => {
        "pod_key, inbox_key, item_key, thread_key, state, reason, priority, attempts, last_error, fence, lease_key_id,
         worker, lease_expires_at, leased_at, available_at, waiting_for, for_worker, parent_key, created_at,
         updated_at, done_at, seen_message"
    };
}

fn from_row(row: &Row) -> Result<WorkItem, StoreError> {
    let state: String = row.get(4)?;
    let expires_at: Option<Millis> = row.get(12)?;
    let lease = match expires_at {
        Some(expires_at) => Some(Lease {
            key_id: row.get(10)?,
            worker: row.get(11)?,
            expires_at,
            since: row.get::<Option<Millis>>(13)?.unwrap_or(expires_at),
        }),
        None => None,
    };
    Ok(WorkItem {
        inbox: InboxKey { pod: row.get(0)?, inbox: row.get(1)? },
        item_key: row.get(2)?,
        thread_key: row.get(3)?,
        state: ItemState::parse(&state)
            .ok_or_else(|| StoreError::Damaged(format!("work item state {state}")))?,
        reason: row.get(5)?,
        priority: row.get(6)?,
        attempts: row.get(7)?,
        last_error: row.get(8)?,
        fence: row.get(9)?,
        lease,
        available_at: row.get(14)?,
        waiting_for: row.get(15)?,
        for_worker: row.get(16)?,
        parent_key: row.get(17)?,
        created_at: row.get(18)?,
        updated_at: row.get(19)?,
        done_at: row.get(20)?,
        seen_message: row.get(21)?,
    })
}

/// Writes the item, new or changed.
pub async fn put(tx: &mut Tx, item: &WorkItem) -> Result<(), StoreError> {
    let lease = item.lease.as_ref();
    tx.execute(
        concat!(
            "INSERT INTO work_item (",
            columns!(),
            ", open) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20,
                     $21, $22, $23)
             ON CONFLICT (pod_key, inbox_key, item_key) DO UPDATE SET
                 state = excluded.state, reason = excluded.reason, priority = excluded.priority,
                 attempts = excluded.attempts, last_error = excluded.last_error, fence = excluded.fence,
                 lease_key_id = excluded.lease_key_id, worker = excluded.worker,
                 lease_expires_at = excluded.lease_expires_at, leased_at = excluded.leased_at,
                 available_at = excluded.available_at, waiting_for = excluded.waiting_for,
                 for_worker = excluded.for_worker, seen_message = excluded.seen_message, updated_at = excluded.updated_at, done_at = excluded.done_at,
                 open = excluded.open"
        ),
        &[
            item.inbox.pod.into(),
            item.inbox.inbox.into(),
            item.item_key.into(),
            item.thread_key.into(),
            item.state.text().into(),
            (&item.reason).into(),
            item.priority.into(),
            item.attempts.into(),
            item.last_error.clone().into(),
            item.fence.into(),
            lease.and_then(|l| l.key_id).into(),
            lease.and_then(|l| l.worker.clone()).into(),
            lease.map(|l| l.expires_at).into(),
            lease.map(|l| l.since).into(),
            item.available_at.into(),
            item.waiting_for.clone().into(),
            item.for_worker.clone().into(),
            item.parent_key.into(),
            item.created_at.into(),
            item.updated_at.into(),
            item.done_at.into(),
            item.seen_message.into(),
            (item.state != ItemState::Done).into(),
        ],
    )
    .await?;
    if item.state == ItemState::Available {
        tx.wake(Topic::Work);
    }
    Ok(())
}

pub async fn by_key(tx: &mut Tx, inbox: InboxKey, item_key: i64) -> Result<Option<WorkItem>, StoreError> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM work_item WHERE pod_key = $1 AND inbox_key = $2 AND item_key = $3"
    );
    let args = [inbox.pod.into(), inbox.inbox.into(), item_key.into()];
    tx.row(sql, &args).await?.as_ref().map(from_row).transpose()
}

/// The same, locked until the end of the transaction (SQLite has one writer, which is lock enough).
pub(crate) async fn lock(
    tx: &mut Tx,
    inbox: InboxKey,
    item_key: i64,
) -> Result<Option<WorkItem>, StoreError> {
    let sql = tx.either(
        concat!(
            "SELECT ",
            columns!(),
            " FROM work_item WHERE pod_key = $1 AND inbox_key = $2 AND item_key = $3"
        ),
        concat!(
            "SELECT ",
            columns!(),
            " FROM work_item WHERE pod_key = $1 AND inbox_key = $2 AND item_key = $3 FOR UPDATE"
        ),
    );
    let args = [inbox.pod.into(), inbox.inbox.into(), item_key.into()];
    tx.row(sql, &args).await?.as_ref().map(from_row).transpose()
}

/// The open item of a thread, or its last one; locked.
pub(crate) async fn latest_of_thread(
    tx: &mut Tx,
    inbox: InboxKey,
    thread_key: i64,
) -> Result<Option<WorkItem>, StoreError> {
    let sql = tx.either(
        concat!(
            "SELECT ",
            columns!(),
            " FROM work_item WHERE pod_key = $1 AND inbox_key = $2 AND thread_key = $3 ORDER BY item_key DESC LIMIT 1"
        ),
        concat!(
            "SELECT ",
            columns!(),
            " FROM work_item WHERE pod_key = $1 AND inbox_key = $2 AND thread_key = $3 ORDER BY item_key DESC LIMIT 1
              FOR UPDATE"
        ),
    );
    let args = [inbox.pod.into(), inbox.inbox.into(), thread_key.into()];
    tx.row(sql, &args).await?.as_ref().map(from_row).transpose()
}

/// The next available item, of one inbox or of any, skipping what another claimer has locked.
pub(crate) async fn next_available(
    tx: &mut Tx,
    within: Scope,
    worker: Option<&str>,
) -> Result<Option<WorkItem>, StoreError> {
    let mut args = vec![tx.now().into(), worker.into()];
    let sql = match (within, tx.is_postgres()) {
        (Scope::Inbox(_), false) => concat!(
            "SELECT ",
            columns!(),
            " FROM work_item WHERE state = 'available' AND available_at <= $1
                AND (for_worker IS NULL OR for_worker = $2) AND pod_key = $3 AND inbox_key = $4
              ORDER BY priority DESC, available_at, item_key LIMIT 1"
        ),
        (Scope::Inbox(_), true) => concat!(
            "SELECT ",
            columns!(),
            " FROM work_item WHERE state = 'available' AND available_at <= $1
                AND (for_worker IS NULL OR for_worker = $2) AND pod_key = $3 AND inbox_key = $4
              ORDER BY priority DESC, available_at, item_key LIMIT 1 FOR UPDATE SKIP LOCKED"
        ),
        (Scope::Organization | Scope::Pod(_), false) => concat!(
            "SELECT ",
            columns!(),
            " FROM work_item WHERE state = 'available' AND available_at <= $1
                AND (for_worker IS NULL OR for_worker = $2) AND ($3 = 0 OR pod_key = $3)
              ORDER BY priority DESC, available_at, pod_key, inbox_key, item_key LIMIT 1"
        ),
        (Scope::Organization | Scope::Pod(_), true) => concat!(
            "SELECT ",
            columns!(),
            " FROM work_item WHERE state = 'available' AND available_at <= $1
                AND (for_worker IS NULL OR for_worker = $2) AND ($3 = 0 OR pod_key = $3)
              ORDER BY priority DESC, available_at, pod_key, inbox_key, item_key LIMIT 1 FOR UPDATE SKIP LOCKED"
        ),
    };
    let (pod, inbox) = within.numbers();
    args.push(pod.into());
    if matches!(within, Scope::Inbox(_)) {
        args.push(inbox.into());
    }
    tx.row(sql, &args).await?.as_ref().map(from_row).transpose()
}

/// Items whose lease has run out, and waiting ones whose time has come; locked.
pub(crate) async fn overdue(tx: &mut Tx, limit: i64) -> Result<Vec<WorkItem>, StoreError> {
    let sql = tx.either(
        concat!(
            "SELECT ",
            columns!(),
            " FROM work_item WHERE (state = 'claimed' AND lease_expires_at <= $1)
                OR (state = 'waiting' AND available_at <= $1) LIMIT $2"
        ),
        concat!(
            "SELECT ",
            columns!(),
            " FROM work_item WHERE (state = 'claimed' AND lease_expires_at <= $1)
                OR (state = 'waiting' AND available_at <= $1) LIMIT $2 FOR UPDATE SKIP LOCKED"
        ),
    );
    let args = [tx.now().into(), limit.into()];
    tx.rows(sql, &args).await?.iter().map(from_row).collect()
}

/// Items of an inbox that are held for this reason; locked by the inbox's lock, which the caller has.
pub(crate) async fn held_for(
    tx: &mut Tx,
    inbox: InboxKey,
    reason: &str,
) -> Result<Vec<WorkItem>, StoreError> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM work_item WHERE pod_key = $1 AND inbox_key = $2 AND state = 'held' AND reason = $3 ORDER BY item_key"
    );
    let args = [inbox.pod.into(), inbox.inbox.into(), reason.into()];
    tx.rows(sql, &args).await?.iter().map(from_row).collect()
}

/// A page of items, newest first, of one inbox or all; `state` is empty for every one.
pub async fn page(
    tx: &mut Tx,
    within: Scope,
    state: &str,
    below: &Place,
    limit: i64,
) -> Result<Vec<WorkItem>, StoreError> {
    let [pod, inbox_key, item] = below.key;
    let rows = match within {
        // Within an inbox, keys rise with time.
        Scope::Inbox(inbox) => {
            let sql = concat!(
                "SELECT ",
                columns!(),
                " FROM work_item WHERE pod_key = $2 AND inbox_key = $3 AND item_key < $4
                    AND ($1 = '' OR state = $1) ORDER BY item_key DESC LIMIT $5"
            );
            let args = [state.into(), inbox.pod.into(), inbox.inbox.into(), item.into(), limit.into()];
            tx.rows(sql, &args).await?
        }
        Scope::Pod(_) | Scope::Organization => {
            let sql = concat!(
                "SELECT ",
                columns!(),
                " FROM work_item WHERE (created_at, pod_key, inbox_key, item_key) < ($2, $3, $4, $5)
                    AND ($1 = '' OR state = $1) AND ($7 = 0 OR pod_key = $7)
                  ORDER BY created_at DESC, pod_key DESC, inbox_key DESC, item_key DESC LIMIT $6"
            );
            let at = below.at.into();
            let args = [
                state.into(),
                at,
                pod.into(),
                inbox_key.into(),
                item.into(),
                limit.into(),
                within.numbers().0.into(),
            ];
            tx.rows(sql, &args).await?
        }
    };
    rows.iter().map(from_row).collect()
}

/// Where an item stands in `page`'s order.
pub fn place(item: &WorkItem) -> Place {
    Place { at: item.created_at, key: [item.inbox.pod, item.inbox.inbox, item.item_key], text: String::new() }
}
