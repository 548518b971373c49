//! The queue as a person handles it: looked at, held, let go, hurried, dropped.
//!
//! Each change names the states that it starts from, so that one that comes too late changes nothing: a row that
//! is under way belongs to its attempt.

use super::{Delivery, from_row};
use crate::clock::Millis;
use crate::config::Choice;
use crate::ids::InboxKey;
use crate::store::page::Place;
use crate::store::{StoreError, Topic, Tx, release};

/// What a listing is narrowed to.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub pod: Option<i64>,
    pub inbox: Option<InboxKey>,
    pub domain: Option<String>,
    /// Empty: every state that waits or is under way.
    pub states: Vec<State>,
}

/// A state of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Due,
    Attempting,
    Deferred,
    Scheduled,
    Held,
    Delivered,
    Failed,
    Canceled,
}

impl State {
    pub const OPEN: [State; 5] =
        [State::Due, State::Attempting, State::Deferred, State::Scheduled, State::Held];
    pub const WORDS: [(&str, State); 8] = [
        ("due", State::Due),
        ("attempting", State::Attempting),
        ("deferred", State::Deferred),
        ("scheduled", State::Scheduled),
        ("held", State::Held),
        ("delivered", State::Delivered),
        ("failed", State::Failed),
        ("canceled", State::Canceled),
    ];

    pub fn is_open(self) -> bool {
        State::OPEN.contains(&self)
    }
}

/// The state stands in the text: the partial index of each is found by it.
macro_rules! of_state {
    ($state:literal) => {
        concat!(
            "SELECT ",
            super::columns!(),
            " FROM delivery WHERE state = '",
            $state,
            "' AND ($1 = 0 OR pod_key = $1) AND ($2 = 0 OR inbox_key = $2) AND ($3 = '' OR domain = $3)
             AND (pod_key, inbox_key, delivery_key) > ($4, $5, $6)
             ORDER BY pod_key, inbox_key, delivery_key LIMIT $7"
        )
    };
}

/// Rows in the order of their inboxes and releases. What is settled is looked for in one inbox alone.
pub async fn page(
    tx: &mut Tx,
    filter: &Filter,
    after: Option<&Place>,
    limit: i64,
) -> Result<Vec<Delivery>, StoreError> {
    let [pod, inbox, key] = after.map_or([0; 3], |place| place.key);
    let args = [
        filter.inbox.map(|of| of.pod).or(filter.pod).unwrap_or(0).into(),
        filter.inbox.map_or(0, |of| of.inbox).into(),
        filter.domain.clone().unwrap_or_default().into(),
        pod.into(),
        inbox.into(),
        key.into(),
        limit.into(),
    ];
    let states = if filter.states.is_empty() { &State::OPEN[..] } else { &filter.states };
    let mut found = Vec::new();
    for state in states.iter().filter(|state| state.is_open() || filter.inbox.is_some()) {
        let sql = match state {
            State::Due => of_state!("due"),
            State::Attempting => of_state!("attempting"),
            State::Deferred => of_state!("deferred"),
            State::Scheduled => of_state!("scheduled"),
            State::Held => of_state!("held"),
            State::Delivered => of_state!("delivered"),
            State::Failed => of_state!("failed"),
            State::Canceled => of_state!("canceled"),
        };
        for row in tx.rows(sql, &args).await? {
            found.push(from_row(&row)?);
        }
    }
    found.sort_by_key(|row| (row.inbox, row.delivery_key));
    found.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    Ok(found)
}

/// Where a row stands in `page`'s order.
pub fn place(row: &Delivery) -> Place {
    Place { at: 0, key: [row.inbox.pod, row.inbox.inbox, row.delivery_key], text: String::new() }
}

/// How many rows are in each state that waits or is under way.
pub async fn summary(tx: &mut Tx, pod: Option<i64>, inbox: Option<i64>) -> Result<[i64; 5], StoreError> {
    let row = tx
        .row(
            "SELECT (SELECT count(*) FROM delivery WHERE state = 'due' AND ($1 = 0 OR pod_key = $1)
                         AND ($2 = 0 OR inbox_key = $2)),
                    (SELECT count(*) FROM delivery WHERE state = 'attempting' AND ($1 = 0 OR pod_key = $1)
                         AND ($2 = 0 OR inbox_key = $2)),
                    (SELECT count(*) FROM delivery WHERE state = 'deferred' AND ($1 = 0 OR pod_key = $1)
                         AND ($2 = 0 OR inbox_key = $2)),
                    (SELECT count(*) FROM delivery WHERE state = 'scheduled' AND ($1 = 0 OR pod_key = $1)
                         AND ($2 = 0 OR inbox_key = $2)),
                    (SELECT count(*) FROM delivery WHERE state = 'held' AND ($1 = 0 OR pod_key = $1)
                         AND ($2 = 0 OR inbox_key = $2))",
            &[pod.unwrap_or(0).into(), inbox.unwrap_or(0).into()],
        )
        .await?;
    let Some(row) = row else { return Ok([0; 5]) };
    Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?])
}

/// Who holds a row, or lets it go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// A key of the organization.
    Operator,
    /// A key of the pod: it lets go what such a key held, and nothing else.
    Pod,
}

impl Holder {
    /// As it stands in `held_by`.
    pub fn text(self) -> &'static str {
        match self {
            Holder::Operator => "operator",
            Holder::Pod => "pod",
        }
    }
}

/// What a person does with a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handling {
    Hold(Holder),
    Release(Holder),
    /// Now, whatever the schedule says.
    Retry,
    /// Never; nobody is sent a bounce.
    Drop,
    /// By this way from now on; `None`: as the configuration says.
    Route(Option<Choice>),
}

/// Whether the row was in a state for it, and was changed.
pub async fn handle(
    tx: &mut Tx,
    row: &Delivery,
    handling: Handling,
    words: &str,
) -> Result<bool, StoreError> {
    let words = match handling {
        Handling::Route(choice) => choice.map_or("", Choice::text),
        Handling::Hold(holder) | Handling::Release(holder) => holder.text(),
        Handling::Retry | Handling::Drop => words,
    };
    let sql = match handling {
        Handling::Hold(_) => {
            "UPDATE delivery SET state = 'held', held_by = $5, updated_at = $4
             WHERE pod_key = $1 AND inbox_key = $2 AND delivery_key = $3 AND state IN ('due', 'deferred', 'scheduled')"
        }
        Handling::Release(_) => {
            "UPDATE delivery SET state = CASE WHEN attempts = 0 AND next_attempt_at > $4 THEN 'scheduled' ELSE 'due' END,
                    held_by = CASE WHEN $5 = 'operator' THEN 'released' END, updated_at = $4
             WHERE pod_key = $1 AND inbox_key = $2 AND delivery_key = $3 AND state = 'held'
               AND ($5 = 'operator' OR held_by = $5)"
        }
        Handling::Retry => {
            "UPDATE delivery SET state = 'due', next_attempt_at = $4, updated_at = $4
             WHERE pod_key = $1 AND inbox_key = $2 AND delivery_key = $3 AND state IN ('due', 'deferred') AND $5 <> ''"
        }
        Handling::Drop => {
            "UPDATE delivery SET state = 'canceled', held_by = NULL, last_reply = $5, updated_at = $4
             WHERE pod_key = $1 AND inbox_key = $2 AND delivery_key = $3
               AND state IN ('due', 'deferred', 'scheduled', 'held')"
        }
        Handling::Route(_) => {
            "UPDATE delivery SET via = CASE WHEN $5 = '' THEN NULL ELSE $5 END, updated_at = $4
             WHERE pod_key = $1 AND inbox_key = $2 AND delivery_key = $3
               AND state IN ('due', 'deferred', 'scheduled', 'held') AND route = 'relay'"
        }
    };
    let args = [
        row.inbox.pod.into(),
        row.inbox.inbox.into(),
        row.delivery_key.into(),
        tx.now().into(),
        words.into(),
    ];
    let changed = tx.execute(sql, &args).await? == 1;
    if changed {
        tx.wake(Topic::Queue);
    }
    Ok(changed)
}

/// Calls a message back before anything of it was tried, and gives its recipients back to the inbox's limits.
/// `None` when it is too late, and nothing was changed; otherwise what was called back. Under the inbox's lock.
pub async fn cancel(
    tx: &mut Tx,
    inbox: InboxKey,
    message_key: i64,
) -> Result<Option<Vec<Delivery>>, StoreError> {
    let rows = super::of_message(tx, inbox, message_key).await?;
    // Deferred and not attempted: its destination had had its share, and nobody dialled.
    let waits = ["due", "deferred", "scheduled", "held"];
    let untried = |row: &Delivery| row.attempts == 0 && waits.contains(&row.state.as_str());
    if rows.is_empty() || !rows.iter().all(untried) {
        return Ok(None);
    }
    let changed = tx
        .execute(
            "UPDATE delivery SET state = 'canceled', held_by = NULL, last_reply = 'called back', updated_at = $4
             WHERE pod_key = $1 AND inbox_key = $2 AND message_key = $3 AND attempts = 0
               AND state IN ('due', 'deferred', 'scheduled', 'held')",
            &[inbox.pod.into(), inbox.inbox.into(), message_key.into(), tx.now().into()],
        )
        .await?;
    if changed != rows.len() as u64 {
        // A claim came between on PostgreSQL: whoever called this undoes the transaction.
        return Err(StoreError::Conflict("the message has just left the queue".to_owned()));
    }
    release::give_back(tx, inbox, message_key).await?;
    Ok(Some(rows))
}

/// When a message is planned for, or due again: what a listing shows.
pub fn next_attempt(row: &Delivery) -> Option<Millis> {
    ["due", "deferred", "scheduled"].contains(&row.state.as_str()).then_some(row.next_attempt_at)
}
