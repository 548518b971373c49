//! Deliveries: one row for each recipient of a released message, with its own state and attempts.
//!
//! `due → attempting → delivered | deferred | failed | canceled`, and `deferred` is due again at its time. What is
//! planned, or waits for a budget, is `scheduled` before it is due; `held` waits for somebody (`held_by`). The attempt
//! is counted and committed before anybody dials; what comes of it is written only while the row is still in that
//! attempt of that node, so that a node that lost its rows cannot overwrite what another did.

mod claim;
mod operate;

use std::collections::HashSet;
use std::sync::Arc;

use super::attempt::{self, Attempt};
use super::event::{self, NewEvent};
use super::{Row, StoreError, Topic, Tx, Value};
use crate::clock::Millis;
use crate::ids::{InboxKey, Prefix, RowId};

pub use claim::{Claimed, Group, Turn, ahead, claim};
pub use operate::{Filter, Handling, Holder, State, cancel, handle, next_attempt, page, place, summary};

/// Who goes first, of what is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Priority {
    /// To many, and in no hurry.
    Bulk = 0,
    #[default]
    Ordinary = 1,
    /// A person looked at it and let it go: somebody waits for it.
    Approved = 2,
}

impl Priority {
    /// In the order in which they leave.
    pub const ALL: [Priority; 3] = [Priority::Approved, Priority::Ordinary, Priority::Bulk];

    pub fn text(self) -> &'static str {
        match self {
            Priority::Bulk => "bulk",
            Priority::Ordinary => "ordinary",
            Priority::Approved => "approved",
        }
    }

    fn parse(n: i64) -> Result<Priority, StoreError> {
        let found = Priority::ALL.into_iter().find(|p| *p as i64 == n);
        found.ok_or_else(|| StoreError::Damaged(format!("delivery priority {n}")))
    }
}

/// The way that a delivery takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Route {
    /// To an inbox of this server, without the network.
    Local,
    Relay,
    /// `gatepost dev`: into a file.
    Capture,
}

impl Route {
    pub fn text(self) -> &'static str {
        match self {
            Route::Local => "local",
            Route::Relay => "relay",
            Route::Capture => "capture",
        }
    }

    fn parse(text: &str) -> Result<Route, StoreError> {
        match text {
            "local" => Ok(Route::Local),
            "relay" => Ok(Route::Relay),
            "capture" => Ok(Route::Capture),
            other => Err(StoreError::Damaged(format!("delivery route {other:?}"))),
        }
    }
}

/// A delivery as it is stored, with what its message and inbox say that an attempt needs.
#[derive(Debug, Clone)]
pub struct Delivery {
    pub inbox: InboxKey,
    /// From the inbox's counter.
    pub delivery_key: i64,
    pub message_key: i64,
    pub recipient: String,
    /// Of the recipient, in lower-case A-labels.
    pub domain: String,
    pub route: Route,
    pub state: String,
    pub priority: Priority,
    /// Of a `held` row: `rule:<key>`, `operator`, `pod`, `gate:<reason>`. Of another: `released`, where a person let it go,
    /// so that no rule holds it again.
    pub held_by: Option<String>,
    /// `direct` or `smarthost`, where an operator chose the way.
    pub via: Option<String>,
    pub tls: TlsDemand,
    pub next_attempt_at: Millis,
    /// The one that runs included.
    pub attempts: i64,
    pub maybe_duplicate: bool,
    pub last_status: Option<String>,
    pub last_reply: Option<String>,
    pub expires_at: Millis,
    pub created_at: Millis,
    pub updated_at: Millis,
    pub thread_key: i64,
    /// The address of the inbox that sends.
    pub sender: String,
    /// Octets of the message.
    pub size: i64,
    /// When the sender is told that it is late; `None` once that was done.
    pub notice_at: Option<Millis>,
    /// Why it came back, or of which kind the complaint was.
    pub outcome_class: Option<String>,
    /// The budget that it waits for, or waited for last: `BudgetScope::text`.
    pub waits_for: Option<String>,
    /// The budgets that the claim charged it to, each with the time of the entry. Known to the process that claimed.
    pub charged: Vec<(Arc<str>, Millis)>,
}

/// What the sender wants of TLS, RFC 8689.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsDemand {
    /// What the recipient's domain demands, and what can be had.
    #[default]
    Usual,
    /// `TLS-Required: No` (§4): what the domain demands does not count.
    Optional,
    /// REQUIRETLS (§2): hosts that prove themselves and pass the demand on, or none. It counts more than the field (§4.1).
    Required,
}

impl TlsDemand {
    pub fn text(self) -> &'static str {
        match self {
            TlsDemand::Usual => "usual",
            TlsDemand::Optional => "optional",
            TlsDemand::Required => "required",
        }
    }
}

impl Delivery {
    /// `dlv_…`
    pub fn id(&self) -> String {
        RowId { at: self.created_at, inbox: self.inbox, seq: self.delivery_key }.text(Prefix::Delivery)
    }

    /// What names an attempt: the row's inbox and number, and which attempt it is.
    pub fn attempt_key(&self) -> (InboxKey, i64, i64) {
        (self.inbox, self.delivery_key, self.attempts)
    }

    /// `msg_…`: both were written by one transaction, at one time.
    pub fn message_id(&self) -> String {
        RowId { at: self.created_at, inbox: self.inbox, seq: self.message_key }.text(Prefix::Message)
    }
}

/// What `from_row` reads; the subqueries find message, inbox and body by their primary keys.
macro_rules! columns {
    () => {
        "pod_key, inbox_key, delivery_key, message_key, recipient, domain, route, state, next_attempt_at,
         attempts, maybe_duplicate, last_status, last_reply, expires_at, created_at, updated_at,
         coalesce((SELECT m.thread_key FROM message m WHERE m.pod_key = delivery.pod_key
                   AND m.inbox_key = delivery.inbox_key AND m.message_key = delivery.message_key), 0),
         coalesce((SELECT i.address FROM inbox i WHERE i.inbox_key = delivery.inbox_key), ''),
         coalesce((SELECT b.size FROM body b WHERE b.pod_key = delivery.pod_key
                   AND b.inbox_key = delivery.inbox_key AND b.message_key = delivery.message_key), 0),
         priority, held_by, via, tls_optional, notice_at, outcome_class, tls_required, waits_for"
    };
}
use columns;

fn from_row(row: &Row) -> Result<Delivery, StoreError> {
    Ok(Delivery {
        inbox: InboxKey { pod: row.get(0)?, inbox: row.get(1)? },
        delivery_key: row.get(2)?,
        message_key: row.get(3)?,
        recipient: row.get(4)?,
        domain: row.get(5)?,
        route: Route::parse(&row.get::<String>(6)?)?,
        state: row.get(7)?,
        next_attempt_at: row.get(8)?,
        attempts: row.get(9)?,
        maybe_duplicate: row.get(10)?,
        last_status: row.get(11)?,
        last_reply: row.get(12)?,
        expires_at: row.get(13)?,
        created_at: row.get(14)?,
        updated_at: row.get(15)?,
        thread_key: row.get(16)?,
        sender: row.get(17)?,
        size: row.get(18)?,
        priority: Priority::parse(row.get(19)?)?,
        held_by: row.get(20)?,
        via: row.get(21)?,
        tls: match (row.get(22)?, row.get(25)?) {
            (_, true) => TlsDemand::Required,
            (true, false) => TlsDemand::Optional,
            (false, false) => TlsDemand::Usual,
        },
        notice_at: row.get(23)?,
        outcome_class: row.get(24)?,
        waits_for: row.get(26)?,
        charged: Vec::new(),
    })
}

/// A recipient that is released to the queue.
#[derive(Debug, Clone)]
pub struct NewDelivery {
    pub inbox: InboxKey,
    pub delivery_key: i64,
    pub message_key: i64,
    pub recipient: String,
    pub domain: String,
    pub route: Route,
    pub expires_at: Millis,
    pub priority: Priority,
    pub tls: TlsDemand,
    /// Not before this time; `None`: at once.
    pub not_before: Option<Millis>,
    /// When the sender is told that it is late.
    pub notice_at: Option<Millis>,
    /// Held from the start, by what.
    pub held_by: Option<String>,
}

/// Due at once, unless it is held or has a time of its own.
pub async fn insert(tx: &mut Tx, new: &NewDelivery) -> Result<(), StoreError> {
    let later = new.not_before.is_some_and(|at| at > tx.now());
    let state = match (&new.held_by, later) {
        (Some(_), _) => "held",
        (None, true) => "scheduled",
        (None, false) => "due",
    };
    tx.execute(
        "INSERT INTO delivery (pod_key, inbox_key, delivery_key, message_key, recipient, domain, route, state,
                               next_attempt_at, expires_at, created_at, updated_at, priority, held_by, notice_at,
                               tls_optional, tls_required)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11, $12, $13, $14, $15, $16)",
        &[
            new.inbox.pod.into(),
            new.inbox.inbox.into(),
            new.delivery_key.into(),
            new.message_key.into(),
            (&new.recipient).into(),
            (&new.domain).into(),
            new.route.text().into(),
            state.into(),
            new.not_before.unwrap_or(tx.now()).into(),
            new.expires_at.into(),
            tx.now().into(),
            (new.priority as i64).into(),
            new.held_by.clone().into(),
            new.notice_at.into(),
            (new.tls == TlsDemand::Optional).into(),
            (new.tls == TlsDemand::Required).into(),
        ],
    )
    .await?;
    tx.wake(Topic::Queue);
    Ok(())
}

/// What an attempt came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// `delivered`, `deferred` or `failed`.
    pub state: &'static str,
    /// Enhanced status code.
    pub status: Option<String>,
    pub reply: Option<String>,
    /// Of the next attempt, where there is one.
    pub next_attempt_at: Option<Millis>,
    /// The next attempt may bring the message a second time.
    pub maybe_duplicate: bool,
    /// The sender was told that it is late.
    pub told_late: bool,
}

/// Writes what attempts came to. The rows that were written: not those that are no longer in that attempt, because another
/// node has them or because they are settled.
pub async fn settle(
    tx: &mut Tx,
    node: &str,
    results: &[(&Delivery, &Settled)],
) -> Result<HashSet<(InboxKey, i64, i64)>, StoreError> {
    let now = tx.now();
    let lists: Vec<Vec<Value>> = results
        .iter()
        .map(|(delivery, settled)| {
            vec![
                delivery.inbox.pod.into(),
                delivery.inbox.inbox.into(),
                delivery.delivery_key.into(),
                node.into(),
                delivery.attempts.into(),
                settled.state.into(),
                settled.status.clone().into(),
                settled.reply.clone().into(),
                settled.next_attempt_at.into(),
                settled.maybe_duplicate.into(),
                now.into(),
                settled.told_late.into(),
            ]
        })
        .collect();
    let written = tx
        .rows_of_each(
            "UPDATE delivery SET state = $6, last_status = $7, last_reply = $8,
                    next_attempt_at = coalesce($9, next_attempt_at), node = NULL, attempting_since = NULL,
                    maybe_duplicate = CASE WHEN $10 = 1 THEN 1 ELSE maybe_duplicate END, updated_at = $11,
                    notice_at = CASE WHEN $12 = 1 THEN NULL ELSE notice_at END
             WHERE pod_key = $1 AND inbox_key = $2 AND delivery_key = $3 AND state = 'attempting' AND node = $4
               AND attempts = $5
             RETURNING pod_key, inbox_key, delivery_key, attempts",
            "UPDATE delivery SET state = r.state, last_status = r.status, last_reply = r.reply,
                    next_attempt_at = coalesce(r.next, delivery.next_attempt_at), node = NULL, attempting_since = NULL,
                    maybe_duplicate = CASE WHEN r.twice = 1 THEN 1 ELSE maybe_duplicate END, updated_at = r.now,
                    notice_at = CASE WHEN r.told = 1 THEN NULL ELSE notice_at END
             FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[], $5::bigint[], $6::text[], $7::text[],
                         $8::text[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[])
                  AS r (pod, inbox, key, node, attempts, state, status, reply, next, twice, now, told)
             WHERE pod_key = r.pod AND inbox_key = r.inbox AND delivery_key = r.key AND delivery.state = 'attempting'
               AND delivery.node = r.node AND delivery.attempts = r.attempts
             RETURNING pod_key, inbox_key, delivery_key, delivery.attempts",
            &lists,
        )
        .await?;
    if results.iter().any(|(_, settled)| settled.next_attempt_at.is_some()) {
        // The queue sleeps until the next row is due: this may be the one.
        tx.wake(Topic::Queue);
    }
    let key = |row: &Row| Ok((InboxKey { pod: row.get(0)?, inbox: row.get(1)? }, row.get(2)?, row.get(3)?));
    written.iter().map(key).collect()
}

/// The row was claimed and must not be tried: it never is, and the claim's attempt does not count.
pub(crate) async fn cancel_claimed(tx: &mut Tx, delivery: &Delivery, words: &str) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE delivery SET state = 'canceled', last_reply = $4, attempts = attempts - 1, node = NULL,
                attempting_since = NULL, updated_at = $5
         WHERE pod_key = $1 AND inbox_key = $2 AND delivery_key = $3 AND state = 'attempting'",
        &[
            delivery.inbox.pod.into(),
            delivery.inbox.inbox.into(),
            delivery.delivery_key.into(),
            words.into(),
            tx.now().into(),
        ],
    )
    .await?;
    Ok(())
}

/// When a row that was claimed and not tried comes again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Later {
    pub at: Millis,
    /// Its time to be delivered begins then.
    pub expires_at: Millis,
    pub notice_at: Millis,
}

/// The row was claimed, and a budget has no room for it: planned for later, and the attempt is not counted.
pub(crate) async fn wait_claimed(
    tx: &mut Tx,
    delivery: &Delivery,
    later: Later,
    waits_for: &str,
    words: &str,
) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE delivery SET state = 'scheduled', attempts = attempts - 1, node = NULL, attempting_since = NULL,
                updated_at = $4, next_attempt_at = $5, waits_for = $6, last_reply = $7,
                expires_at = CASE WHEN expires_at < $8 THEN $8 ELSE expires_at END,
                notice_at = CASE WHEN notice_at < $9 THEN $9 ELSE notice_at END
         WHERE pod_key = $1 AND inbox_key = $2 AND delivery_key = $3 AND state = 'attempting'",
        &[
            delivery.inbox.pod.into(),
            delivery.inbox.inbox.into(),
            delivery.delivery_key.into(),
            tx.now().into(),
            later.at.into(),
            waits_for.into(),
            words.into(),
            later.expires_at.into(),
            later.notice_at.into(),
        ],
    )
    .await?;
    Ok(())
}

/// The row was claimed and nothing was sent: due as before, or not before a time; the attempt is not counted.
/// `false` where it is no longer in that attempt of that node.
pub async fn give_back(
    tx: &mut Tx,
    node: &str,
    delivery: &Delivery,
    not_before: Option<Millis>,
) -> Result<bool, StoreError> {
    let changed = tx.execute(
        "UPDATE delivery SET state = CASE WHEN $7 > $6 THEN 'deferred' ELSE 'due' END, attempts = attempts - 1,
                node = NULL, attempting_since = NULL, updated_at = $6, next_attempt_at = $7
         WHERE pod_key = $1 AND inbox_key = $2 AND delivery_key = $3 AND state = 'attempting' AND node = $4
           AND attempts = $5",
        &[
            delivery.inbox.pod.into(),
            delivery.inbox.inbox.into(),
            delivery.delivery_key.into(),
            node.into(),
            delivery.attempts.into(),
            tx.now().into(),
            not_before.unwrap_or(delivery.next_attempt_at).into(),
        ],
    )
    .await?;
    Ok(changed == 1)
}

/// Rows that a dead process left in the middle of an attempt are due again. Whether the remote has the message
/// is unknown, so the second attempt is marked. On SQLite there is one process, and this is its start: every
/// such row is an orphan. On PostgreSQL those of earlier processes of this node (`name`), of which its data
/// folder's lock says that they are gone, and, given `stale`, those whose node was not seen since.
pub async fn recover(tx: &mut Tx, node: &str, name: &str, stale: Option<Millis>) -> Result<u64, StoreError> {
    let log = tx.either(
        "INSERT INTO delivery_attempt (pod_key, inbox_key, delivery_key, attempt, node, outcome, reply, began_at, ended_at)
         SELECT pod_key, inbox_key, delivery_key, attempts, node, 'interrupted',
                'the process died during this attempt', coalesce(attempting_since, $2), $2
         FROM delivery WHERE state = 'attempting' AND node <> $1",
        "INSERT INTO delivery_attempt (pod_key, inbox_key, delivery_key, attempt, node, outcome, reply, began_at, ended_at)
         SELECT pod_key, inbox_key, delivery_key, attempts, node, 'interrupted',
                'the process died during this attempt', coalesce(attempting_since, $2), $2
         FROM delivery WHERE state = 'attempting' AND node <> $1
           AND (node LIKE $4 OR ($3 <> 0 AND node NOT IN (SELECT node FROM node WHERE seen_at >= $3)))",
    );
    let sql = tx.either(
        "UPDATE delivery SET state = 'due', node = NULL, attempting_since = NULL, next_attempt_at = $2, updated_at = $2,
                maybe_duplicate = CASE WHEN route = 'relay' THEN 1 ELSE maybe_duplicate END
         WHERE state = 'attempting' AND node <> $1",
        "UPDATE delivery SET state = 'due', node = NULL, attempting_since = NULL, next_attempt_at = $2, updated_at = $2,
                maybe_duplicate = CASE WHEN route = 'relay' THEN 1 ELSE maybe_duplicate END
         WHERE state = 'attempting' AND node <> $1
           AND (node LIKE $4 OR ($3 <> 0 AND node NOT IN (SELECT node FROM node WHERE seen_at >= $3)))",
    );
    let mut args = vec![node.into(), tx.now().into()];
    if tx.is_postgres() {
        args.extend([stale.unwrap_or(0).into(), format!("{name}-%").into()]);
    }
    tx.execute(log, &args).await?;
    let recovered = tx.execute(sql, &args).await?;
    if recovered > 0 {
        tx.wake(Topic::Queue);
    }
    Ok(recovered)
}

/// Rows that this process claimed and does not know of. Called while nothing is under way and every result is
/// written, so that these are all of its rows. Those that were `dialled`, perhaps, are marked, and wait a while.
pub async fn take_back(tx: &mut Tx, node: &str, dialled: bool) -> Result<u64, StoreError> {
    let wait: Millis = if dialled { 15 * 60_000 } else { 0 };
    let taken = tx
        .execute(
            "UPDATE delivery SET state = CASE WHEN $4 = 1 THEN 'deferred' ELSE 'due' END, node = NULL,
                    attempting_since = NULL, next_attempt_at = $2, updated_at = $3,
                    maybe_duplicate = CASE WHEN route = 'relay' AND $4 = 1 THEN 1 ELSE maybe_duplicate END
             WHERE state = 'attempting' AND node = $1",
            &[node.into(), (tx.now() + wait).into(), tx.now().into(), dialled.into()],
        )
        .await?;
    if taken > 0 {
        tx.wake(Topic::Queue);
    }
    Ok(taken)
}

/// This node lives.
pub async fn beat(tx: &mut Tx, node: &str) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO node (node, seen_at) VALUES ($1, $2)
         ON CONFLICT (node) DO UPDATE SET seen_at = excluded.seen_at",
        &[node.into(), tx.now().into()],
    )
    .await?;
    Ok(())
}

/// This node stops; and nodes that were not seen since `stale` are forgotten.
pub async fn forget_nodes(tx: &mut Tx, node: Option<&str>, stale: Millis) -> Result<(), StoreError> {
    tx.execute(
        "DELETE FROM node WHERE node = $1 OR seen_at < $2",
        &[node.unwrap_or("").into(), stale.into()],
    )
    .await?;
    Ok(())
}

/// Every recipient of a message, in the order of their release.
pub async fn of_message(tx: &mut Tx, inbox: InboxKey, message_key: i64) -> Result<Vec<Delivery>, StoreError> {
    let rows = tx
        .rows(
            concat!(
                "SELECT ",
                columns!(),
                " FROM delivery WHERE pod_key = $1 AND inbox_key = $2 AND message_key = $3
                 ORDER BY delivery_key LIMIT 1000"
            ),
            &[inbox.pod.into(), inbox.inbox.into(), message_key.into()],
        )
        .await?;
    rows.iter().map(from_row).collect()
}

/// One row by its key.
pub async fn by_key(tx: &mut Tx, inbox: InboxKey, delivery_key: i64) -> Result<Option<Delivery>, StoreError> {
    let row = tx
        .row(
            concat!(
                "SELECT ",
                columns!(),
                " FROM delivery WHERE pod_key = $1 AND inbox_key = $2 AND delivery_key = $3"
            ),
            &[inbox.pod.into(), inbox.inbox.into(), delivery_key.into()],
        )
        .await?;
    row.as_ref().map(from_row).transpose()
}

/// Tells the log what came of a delivery: `message.delivered`, `delivery.deferred`, `message.bounced`, …
pub async fn announce(
    tx: &mut Tx,
    delivery: &Delivery,
    event_type: &str,
    status: Option<&str>,
    reply: Option<&str>,
    next_attempt_at: Option<Millis>,
) -> Result<(), StoreError> {
    announce_all(tx, &[News { delivery, event_type, status, reply, next_attempt_at }]).await
}

/// What the log is to say of a delivery.
#[derive(Debug, Clone, Copy)]
pub(crate) struct News<'a> {
    pub(crate) delivery: &'a Delivery,
    pub(crate) event_type: &'a str,
    pub(crate) status: Option<&'a str>,
    pub(crate) reply: Option<&'a str>,
    pub(crate) next_attempt_at: Option<Millis>,
}

/// In their order.
pub(crate) async fn announce_all(tx: &mut Tx, news: &[News<'_>]) -> Result<(), StoreError> {
    let events = news.iter().map(|news| {
        let delivery = news.delivery;
        let data = serde_json::json!({
            "delivery_id": delivery.id(),
            "recipient": delivery.recipient,
            "route": delivery.route.text(),
            "attempts": delivery.attempts,
            "status": news.status,
            "reply": news.reply,
            "next_attempt_at": news.next_attempt_at,
            "maybe_duplicate": delivery.maybe_duplicate,
        });
        let event = NewEvent {
            event_type: news.event_type,
            thread_key: Some(delivery.thread_key),
            message_key: Some(delivery.message_key),
            data: data.to_string(),
            ..NewEvent::default()
        };
        (delivery.inbox, event)
    });
    event::append_all(tx, events.collect()).await
}

/// A local delivery is done, in the transaction that files the message in its inbox. `false` when it was done
/// before: then nothing may be filed again.
pub async fn delivered_locally(tx: &mut Tx, delivery: &Delivery) -> Result<bool, StoreError> {
    let changed = tx
        .execute(
            "UPDATE delivery SET state = 'delivered', last_status = '2.1.5', node = NULL, attempting_since = NULL,
                    updated_at = $4
             WHERE pod_key = $1 AND inbox_key = $2 AND delivery_key = $3 AND state = 'attempting' AND attempts = $5",
            &[
                delivery.inbox.pod.into(),
                delivery.inbox.inbox.into(),
                delivery.delivery_key.into(),
                tx.now().into(),
                delivery.attempts.into(),
            ],
        )
        .await?;
    if changed == 1 {
        let attempt = Attempt {
            attempt: delivery.attempts,
            node: String::new(),
            host: None,
            address: None,
            tls: None,
            outcome: "delivered".to_owned(),
            status: Some("2.1.5".to_owned()),
            reply: None,
            began_at: delivery.updated_at,
            ended_at: tx.now(),
        };
        attempt::record(tx, &[(delivery, attempt)]).await?;
        announce(tx, delivery, "message.delivered", Some("2.1.5"), None, None).await?;
    }
    Ok(changed == 1)
}
