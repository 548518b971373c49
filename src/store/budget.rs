//! Budgets that inboxes share: what was spent, second by second with a running sum, so that any sliding day is one
//! subtraction; what an operator set; and which deliveries wait.
//!
//! The row in `budget` is the lock: whoever spends, gives back or lets go holds it to the end of its transaction, by
//! the database's clock read after that. The second of an entry is rounded up and never falls, and the window ends at
//! the exact time: an entry counts for a day at least, and for a second more at most.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::delivery::Priority;
use super::message::to_json;
use super::{Row, StoreError, Topic, Tx};
use crate::clock::{DAY, HOUR, Millis, SECOND};
use crate::ids::InboxKey;

/// Inboxes that are let go in turn at once; the others are next.
const A_ROUND: usize = 50;
/// Waiting rows that are counted for a listing.
pub const COUNTED: i64 = 10_000;

/// Whose budget it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BudgetScope {
    Inbox(InboxKey),
    Pod(i64),
    /// A sending domain of ours, in lower-case A-labels; names below it that have no row of their own share it.
    Domain(String),
}

impl BudgetScope {
    /// As it is stored.
    pub fn text(&self) -> String {
        match self {
            BudgetScope::Inbox(key) => format!("inbox:{}", key.inbox),
            BudgetScope::Pod(pod) => format!("pod:{pod}"),
            BudgetScope::Domain(name) => format!("domain:{name}"),
        }
    }
}

/// A budget as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub scope: Arc<str>,
    /// Set by an operator: 0 is none, `None` as configured.
    pub per_day: Option<i64>,
    /// Set by an operator: `false` where no warm-up holds.
    pub warmup: bool,
    pub made_at: Millis,
    /// Recipients, ever.
    pub total: i64,
    pub latest_at: Millis,
    /// Up to when waiting rows are planned, by priority.
    pub planned: [Millis; 3],
    pub waiting: bool,
    pub turn: i64,
}

impl Head {
    /// The time that an entry made now has.
    pub fn entry_at(&self, now: Millis) -> Millis {
        now.div_euclid(SECOND)
            .saturating_add(i64::from(now.rem_euclid(SECOND) > 0))
            .saturating_mul(SECOND)
            .max(self.latest_at)
    }
}

macro_rules! columns {
    () => {
        "scope, per_day, warmup, made_at, total, latest_at, planned_bulk, planned_ordinary, planned_approved, waiting,
         turn"
    };
}

fn from_row(row: &Row) -> Result<Head, StoreError> {
    Ok(Head {
        scope: row.get::<String>(0)?.into(),
        per_day: row.get(1)?,
        warmup: row.get::<Option<bool>>(2)?.unwrap_or(true),
        made_at: row.get(3)?,
        total: row.get(4)?,
        latest_at: row.get(5)?,
        planned: [row.get(6)?, row.get(7)?, row.get(8)?],
        waiting: row.get(9)?,
        turn: row.get(10)?,
    })
}

/// Those of the budgets that there are, without a lock.
pub async fn read(tx: &mut Tx, scopes: &[String]) -> Result<HashMap<Arc<str>, Head>, StoreError> {
    let sql = tx.either(
        concat!(
            "SELECT ",
            columns!(),
            " FROM budget WHERE scope IN (SELECT value FROM json_each($1)) LIMIT 10000"
        ),
        concat!(
            "SELECT ",
            columns!(),
            " FROM budget WHERE scope = ANY (ARRAY(SELECT json_array_elements_text($1::json))) LIMIT 10000"
        ),
    );
    by_scope(&tx.rows(sql, &[to_json(&scopes)?.into()]).await?)
}

fn by_scope(rows: &[Row]) -> Result<HashMap<Arc<str>, Head>, StoreError> {
    rows.iter().map(|row| from_row(row).map(|head| (head.scope.clone(), head))).collect()
}

/// Locks the budgets, in one order, until the end of the transaction. Those of `needed` are made where there are none.
pub(crate) async fn lock(
    tx: &mut Tx,
    scopes: &[String],
    needed: &[BudgetScope],
) -> Result<HashMap<Arc<str>, Head>, StoreError> {
    let found = lock_found(tx, scopes).await?;
    let missing: Vec<&BudgetScope> =
        needed.iter().filter(|s| !found.contains_key(s.text().as_str())).collect();
    if missing.is_empty() {
        return Ok(found);
    }
    for scope in missing {
        make(tx, scope).await?;
    }
    lock_found(tx, scopes).await
}

async fn lock_found(tx: &mut Tx, scopes: &[String]) -> Result<HashMap<Arc<str>, Head>, StoreError> {
    if !tx.is_postgres() {
        return read(tx, scopes).await;
    }
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM budget WHERE scope = ANY (ARRAY(SELECT json_array_elements_text($1::json)))
         ORDER BY scope LIMIT 10000 FOR UPDATE"
    );
    by_scope(&tx.rows(sql, &[to_json(&scopes)?.into()]).await?)
}

/// A budget that nothing was spent of.
async fn make(tx: &mut Tx, scope: &BudgetScope) -> Result<(), StoreError> {
    let made_at = made_at(tx, scope).await?;
    let sql = "INSERT INTO budget (scope, made_at) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    tx.execute(sql, &[scope.text().into(), made_at.into()]).await?;
    Ok(())
}

/// The budget as it stands, without a lock: one that nothing was spent of where it has no row.
pub(crate) async fn read_one(tx: &mut Tx, scope: &BudgetScope) -> Result<Head, StoreError> {
    let text = scope.text();
    if let Some(found) = read(tx, std::slice::from_ref(&text)).await?.remove(text.as_str()) {
        return Ok(found);
    }
    Ok(Head {
        made_at: made_at(tx, scope).await?,
        scope: text.into(),
        per_day: None,
        warmup: true,
        total: 0,
        latest_at: 0,
        planned: [0; 3],
        waiting: false,
        turn: 0,
    })
}

/// Pods, the first thousand.
pub(crate) async fn pods(tx: &mut Tx) -> Result<Vec<i64>, StoreError> {
    let rows = tx.rows("SELECT pod_key FROM pod ORDER BY pod_key LIMIT 1000", &[]).await?;
    rows.iter().map(|row| row.get(0)).collect()
}

/// When what it is of was made here; the row keeps it, so a domain that is removed and added is no newer.
async fn made_at(tx: &mut Tx, scope: &BudgetScope) -> Result<Millis, StoreError> {
    let made = match scope {
        BudgetScope::Inbox(key) => {
            let sql = "SELECT created_at FROM inbox WHERE pod_key = $1 AND inbox_key = $2";
            tx.row(sql, &[key.pod.into(), key.inbox.into()]).await?
        }
        BudgetScope::Pod(pod) => {
            tx.row("SELECT created_at FROM pod WHERE pod_key = $1", &[(*pod).into()]).await?
        }
        BudgetScope::Domain(name) => {
            tx.row("SELECT created_at FROM domain WHERE domain = $1", &[name.into()]).await?
        }
    };
    made.map_or(Ok(tx.now()), |row| row.get(0))
}

/// What was spent of each budget after its time: one answer for each.
pub(crate) async fn spent_after(tx: &mut Tx, asked: &[(&Head, Millis)]) -> Result<Vec<i64>, StoreError> {
    let list: Vec<_> = asked
        .iter()
        .map(|(head, after)| serde_json::json!({"scope": &*head.scope, "after": after}))
        .collect();
    let sql = tx.either(
        "SELECT value->>'scope',
                (SELECT s.total - s.spent FROM budget_spent s WHERE s.scope = value->>'scope'
                   AND s.at > value->>'after' ORDER BY s.at LIMIT 1)
         FROM json_each($1)",
        "SELECT g.scope, (SELECT s.total - s.spent FROM budget_spent s WHERE s.scope = g.scope AND s.at > g.after
                          ORDER BY s.at LIMIT 1)
         FROM json_to_recordset($1::json) AS g (scope text, after bigint)",
    );
    let rows = tx.rows(sql, &[to_json(&list)?.into()]).await?;
    let mut before: HashMap<String, i64> = HashMap::new();
    for row in &rows {
        if let Some(total) = row.get::<Option<i64>>(1)? {
            before.insert(row.get(0)?, total);
        }
    }
    let spent = |(head, _): &(&Head, Millis)| before.get(&*head.scope).map_or(0, |until| head.total - until);
    Ok(asked.iter().map(spent).collect())
}

/// When the entry was made, after `since`, that brought the sum to `total`.
pub(crate) async fn reached(
    tx: &mut Tx,
    scope: &str,
    total: i64,
    since: Millis,
) -> Result<Option<Millis>, StoreError> {
    let sql = "SELECT at FROM budget_spent WHERE scope = $1 AND at > $2 AND total >= $3 ORDER BY at LIMIT 1";
    tx.row(sql, &[scope.into(), since.into(), total.into()]).await?.map(|row| row.get(0)).transpose()
}

/// Spends. The caller holds the lock and knows that it fits.
pub(crate) async fn spend(
    tx: &mut Tx,
    head: &mut Head,
    at: Millis,
    recipients: i64,
) -> Result<(), StoreError> {
    let first_of_hour = at.div_euclid(HOUR) != head.latest_at.div_euclid(HOUR);
    head.total += recipients;
    head.latest_at = at;
    tx.execute(
        "INSERT INTO budget_spent (scope, at, spent, total) VALUES ($1, $2, $3, $4)
         ON CONFLICT (scope, at) DO UPDATE SET spent = budget_spent.spent + excluded.spent, total = excluded.total",
        &[(&*head.scope).into(), at.into(), recipients.into(), head.total.into()],
    )
    .await?;
    if first_of_hour {
        let sql = "DELETE FROM budget_spent WHERE scope = $1 AND at <= $2";
        tx.execute(sql, &[(&*head.scope).into(), (at - 2 * DAY).into()]).await?;
    }
    Ok(())
}

/// Writes what a spender changed of the budget's row.
pub(crate) async fn save(tx: &mut Tx, head: &Head) -> Result<(), StoreError> {
    let [bulk, ordinary, approved] = head.planned;
    tx.execute(
        "UPDATE budget SET total = $2, latest_at = $3, planned_bulk = $4, planned_ordinary = $5,
                planned_approved = $6, waiting = $7, turn = $8
         WHERE scope = $1",
        &[
            (&*head.scope).into(),
            head.total.into(),
            head.latest_at.into(),
            bulk.into(),
            ordinary.into(),
            approved.into(),
            head.waiting.into(),
            head.turn.into(),
        ],
    )
    .await?;
    Ok(())
}

/// What was charged at `at` and never tried is spent no more: the sum is lowered from its entry on. An entry that
/// every window has left has nothing to give.
pub(crate) async fn give_back(
    tx: &mut Tx,
    scope: &str,
    at: Millis,
    recipients: i64,
) -> Result<(), StoreError> {
    let args = [scope.into(), at.into(), recipients.into()];
    // The lock first, as everywhere.
    lock_found(tx, &[scope.to_owned()]).await?;
    let sql = "UPDATE budget_spent SET spent = spent - $3 WHERE scope = $1 AND at = $2 AND spent >= $3";
    if tx.execute(sql, &args).await? == 0 {
        return Ok(());
    }
    tx.execute("UPDATE budget_spent SET total = total - $3 WHERE scope = $1 AND at >= $2", &args).await?;
    let sql = "UPDATE budget SET total = total - $2 WHERE scope = $1";
    tx.execute(sql, &[scope.into(), recipients.into()]).await?;
    Ok(())
}

/// Locks the budgets that rows may wait for.
pub(crate) async fn lock_waiting(tx: &mut Tx) -> Result<Vec<Head>, StoreError> {
    let sql = tx.either(
        concat!("SELECT ", columns!(), " FROM budget WHERE waiting = 1 ORDER BY scope LIMIT 1000"),
        concat!("SELECT ", columns!(), " FROM budget WHERE waiting = 1 ORDER BY scope LIMIT 1000 FOR UPDATE"),
    );
    tx.rows(sql, &[]).await?.iter().map(from_row).collect()
}

pub(crate) async fn any_waiting(tx: &mut Tx) -> Result<bool, StoreError> {
    Ok(tx.row("SELECT 1 FROM budget WHERE waiting = 1 LIMIT 1", &[]).await?.is_some())
}

/// Whether an operator has set anything.
pub(crate) async fn any_set(tx: &mut Tx) -> Result<bool, StoreError> {
    let sql = "SELECT 1 FROM budget WHERE per_day IS NOT NULL OR warmup IS NOT NULL LIMIT 1";
    Ok(tx.row(sql, &[]).await?.is_some())
}

/// Sets a budget; `None` is as configured. The caller holds its lock.
pub(crate) async fn set(
    tx: &mut Tx,
    scope: &str,
    per_day: Option<i64>,
    warmup: Option<bool>,
) -> Result<(), StoreError> {
    let warmup = warmup.map(i64::from);
    let sql = "UPDATE budget SET per_day = $2, warmup = $3 WHERE scope = $1";
    tx.execute(sql, &[scope.into(), per_day.into(), warmup.into()]).await?;
    Ok(())
}

/// What is of an inbox or a pod that is gone.
pub(crate) async fn forget(tx: &mut Tx, scope: &BudgetScope) -> Result<(), StoreError> {
    let scope = scope.text();
    tx.execute("DELETE FROM budget_spent WHERE scope = $1", &[(&scope).into()]).await?;
    tx.execute("DELETE FROM budget WHERE scope = $1", &[scope.into()]).await?;
    Ok(())
}

/// Whether any row waits for it.
pub(crate) async fn has_waiting(tx: &mut Tx, scope: &str) -> Result<bool, StoreError> {
    let sql = "SELECT 1 FROM delivery WHERE state = 'scheduled' AND waits_for = $1 LIMIT 1";
    Ok(tx.row(sql, &[scope.into()]).await?.is_some())
}

/// How many rows wait for it, up to `COUNTED`.
pub(crate) async fn waiting(tx: &mut Tx, scope: &str) -> Result<i64, StoreError> {
    let sql = "SELECT count(*) FROM (SELECT 1 FROM delivery WHERE state = 'scheduled' AND waits_for = $1 LIMIT $2) AS w";
    tx.row(sql, &[scope.into(), COUNTED.into()]).await?.map_or(Ok(0), |row| row.get(0))
}

/// Lets go of up to `limit` rows of a priority that wait for the budget; inboxes in turn, each its oldest first.
pub(crate) async fn let_go(
    tx: &mut Tx,
    head: &mut Head,
    priority: Priority,
    limit: i64,
) -> Result<i64, StoreError> {
    let mut left = limit;
    let mut seen = HashSet::new();
    let mut inboxes = Vec::new();
    while inboxes.len() < A_ROUND && (inboxes.len() as i64) < limit {
        let after = inboxes.last().copied().unwrap_or(head.turn);
        let Some(inbox) = next_inbox(tx, head, priority, after).await? else { break };
        if !seen.insert(inbox) {
            break;
        }
        inboxes.push(inbox);
    }
    for (nth, inbox) in inboxes.iter().enumerate() {
        let others = (inboxes.len() - nth) as i64;
        let gone = let_go_of(tx, head, priority, *inbox, (left + others - 1) / others).await?;
        left -= gone;
        head.turn = *inbox;
    }
    if left < limit {
        tx.wake(Topic::Queue);
    }
    Ok(limit - left)
}

/// The next inbox with waiting rows behind `after`, or the first of all.
async fn next_inbox(
    tx: &mut Tx,
    head: &Head,
    priority: Priority,
    after: i64,
) -> Result<Option<i64>, StoreError> {
    for after in [after, 0] {
        let row = tx
            .row(
                "SELECT inbox_key FROM delivery WHERE state = 'scheduled' AND waits_for = $1 AND priority = $2
                   AND inbox_key > $3 ORDER BY inbox_key LIMIT 1",
                &[(&*head.scope).into(), (priority as i64).into(), after.into()],
            )
            .await?;
        if let Some(row) = row {
            return row.get(0).map(Some);
        }
    }
    Ok(None)
}

async fn let_go_of(
    tx: &mut Tx,
    head: &Head,
    priority: Priority,
    inbox: i64,
    limit: i64,
) -> Result<i64, StoreError> {
    // A row that somebody else has locked is being claimed, held or canceled: who holds it may wait for this budget.
    let sql = tx.either(
        "UPDATE delivery SET state = 'due', next_attempt_at = $5, updated_at = $5 WHERE rowid IN (
             SELECT rowid FROM delivery WHERE state = 'scheduled' AND waits_for = $1 AND priority = $2
               AND inbox_key = $3 ORDER BY delivery_key LIMIT $4)",
        "WITH waiting AS MATERIALIZED (
             SELECT pod_key, inbox_key, delivery_key FROM delivery WHERE state = 'scheduled' AND waits_for = $1
               AND priority = $2 AND inbox_key = $3 ORDER BY delivery_key LIMIT $4 FOR UPDATE SKIP LOCKED)
         UPDATE delivery SET state = 'due', next_attempt_at = $5, updated_at = $5
         WHERE (pod_key, inbox_key, delivery_key) IN (SELECT pod_key, inbox_key, delivery_key FROM waiting)",
    );
    let args = [(&*head.scope).into(), (priority as i64).into(), inbox.into(), limit.into(), tx.now().into()];
    Ok(i64::try_from(tx.execute(sql, &args).await?).unwrap_or(i64::MAX))
}
