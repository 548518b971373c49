//! The one ordered log. An event commits unnumbered with its change; readers see numbered rows only, so a
//! cursor never skips one that was still on its way (`stamp`).

use super::{Row, StoreError, Topic, Tx, Value};
use crate::clock::Millis;
use crate::ids::{InboxKey, Prefix, RowId};
use crate::principal::Scope;

/// A row of the log. It names rows instead of copying them; `events` renders it for a reader.
#[derive(Debug, Clone)]
pub struct Event {
    pub event_key: i64,
    pub cursor: i64,
    pub inbox: InboxKey,
    pub event_type: String,
    pub thread_key: Option<i64>,
    pub message_key: Option<i64>,
    pub item_key: Option<i64>,
    /// JSON object: what the event says beside the rows it names.
    pub data: String,
    pub created_at: Millis,
}

impl Event {
    pub fn id(&self) -> String {
        RowId { at: self.created_at, inbox: self.inbox, seq: self.event_key }.text(Prefix::Event)
    }
}

/// What happened; the rows that it concerns.
#[derive(Debug, Clone, Default)]
pub struct NewEvent<'a> {
    pub event_type: &'a str,
    pub thread_key: Option<i64>,
    pub message_key: Option<i64>,
    pub item_key: Option<i64>,
    /// JSON object; empty for `{}`.
    pub data: String,
}

pub async fn append(tx: &mut Tx, inbox: InboxKey, event: NewEvent<'_>) -> Result<(), StoreError> {
    append_all(tx, vec![(inbox, event)]).await
}

/// In their order.
pub(crate) async fn append_all(tx: &mut Tx, events: Vec<(InboxKey, NewEvent<'_>)>) -> Result<(), StoreError> {
    let now = tx.now();
    let lists: Vec<Vec<Value>> = events
        .into_iter()
        .map(|(inbox, event)| {
            vec![
                inbox.pod.into(),
                inbox.inbox.into(),
                event.event_type.into(),
                event.thread_key.into(),
                event.message_key.into(),
                event.item_key.into(),
                if event.data.is_empty() { "{}".into() } else { event.data.into() },
                now.into(),
            ]
        })
        .collect();
    tx.rows_of_each(
        "INSERT INTO event (pod_key, inbox_key, event_type, thread_key, message_key, item_key, data, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        "INSERT INTO event (pod_key, inbox_key, event_type, thread_key, message_key, item_key, data, created_at)
         SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[],
                              $7::text[], $8::bigint[])",
        &lists,
    )
    .await?;
    tx.wake(Topic::Events);
    Ok(())
}

/// Numbers committed rows, on PostgreSQL, where transactions commit in another order than they take their
/// keys. One process at a time: whoever holds the lock; the others' rows are numbered by it. The number of
/// rows that were stamped.
pub async fn stamp(tx: &mut Tx) -> Result<u64, StoreError> {
    if !tx.is_postgres() {
        return Ok(0);
    }
    let locked = tx.row("SELECT pg_try_advisory_xact_lock(7310868735422785140)", &[]).await?;
    if !locked.map(|row| row.get::<bool>(0)).transpose()?.unwrap_or(false) {
        return Ok(0);
    }
    let stamped = tx
        .execute(
            "UPDATE event SET cursor = numbered.cursor FROM (
                 SELECT event_key, (SELECT coalesce(max(cursor), 0) FROM event) + row_number() OVER (ORDER BY event_key)
                        AS cursor
                 FROM event WHERE cursor IS NULL ORDER BY event_key LIMIT 1000
             ) AS numbered WHERE event.event_key = numbered.event_key",
            &[],
        )
        .await?;
    if stamped > 0 {
        tx.wake(Topic::Events);
    }
    Ok(stamped)
}

/// Events after a cursor, oldest first, of one inbox, of a pod or of all of the organization.
pub async fn after(
    tx: &mut Tx,
    within: Scope,
    cursor: i64,
    types: &[String],
    limit: i64,
) -> Result<Vec<Event>, StoreError> {
    let types = if types.is_empty() { "[]".to_owned() } else { super::message::to_json(&types)? };
    let sql = match (matches!(within, Scope::Inbox(_)), tx.is_postgres()) {
        (true, false) => {
            "SELECT event_key, cursor, pod_key, inbox_key, event_type, thread_key, message_key, item_key, data, created_at
             FROM event WHERE cursor > $1 AND pod_key = $4 AND inbox_key = $5
               AND ($2 = '[]' OR event_type IN (SELECT value FROM json_each($2))) ORDER BY cursor LIMIT $3"
        }
        (false, false) => {
            "SELECT event_key, cursor, pod_key, inbox_key, event_type, thread_key, message_key, item_key, data, created_at
             FROM event WHERE cursor > $1 AND ($4 = 0 OR pod_key = $4)
               AND ($2 = '[]' OR event_type IN (SELECT value FROM json_each($2))) ORDER BY cursor LIMIT $3"
        }
        (true, true) => {
            "SELECT event_key, cursor, pod_key, inbox_key, event_type, thread_key, message_key, item_key, data, created_at
             FROM event WHERE cursor > $1 AND pod_key = $4 AND inbox_key = $5
               AND ($2 = '[]' OR event_type = ANY (ARRAY(SELECT json_array_elements_text($2::json)))) ORDER BY cursor LIMIT $3"
        }
        (false, true) => {
            "SELECT event_key, cursor, pod_key, inbox_key, event_type, thread_key, message_key, item_key, data, created_at
             FROM event WHERE cursor > $1 AND ($4 = 0 OR pod_key = $4)
               AND ($2 = '[]' OR event_type = ANY (ARRAY(SELECT json_array_elements_text($2::json)))) ORDER BY cursor LIMIT $3"
        }
    };
    let mut args = vec![cursor.into(), types.into(), limit.into()];
    let (pod, inbox) = within.numbers();
    args.push(pod.into());
    if matches!(within, Scope::Inbox(_)) {
        args.push(inbox.into());
    }
    tx.rows(sql, &args).await?.iter().map(from_row).collect()
}

fn from_row(row: &Row) -> Result<Event, StoreError> {
    Ok(Event {
        event_key: row.get(0)?,
        cursor: row.get(1)?,
        inbox: InboxKey { pod: row.get(2)?, inbox: row.get(3)? },
        event_type: row.get(4)?,
        thread_key: row.get(5)?,
        message_key: row.get(6)?,
        item_key: row.get(7)?,
        data: row.get(8)?,
        created_at: row.get(9)?,
    })
}

/// The first and the last cursor that are kept; `None` for an empty log. Two subqueries: SQLite reads the end of
/// an index for one min or max, and the whole of it for both at once.
pub async fn bounds(tx: &mut Tx) -> Result<Option<(i64, i64)>, StoreError> {
    let row = tx.row("SELECT (SELECT min(cursor) FROM event), (SELECT max(cursor) FROM event)", &[]).await?;
    let Some(row) = row else { return Ok(None) };
    Ok(row.get::<Option<i64>>(0)?.zip(row.get::<Option<i64>>(1)?))
}

/// Whether rows wait for their number.
pub(crate) async fn any_unstamped(tx: &mut Tx) -> Result<bool, StoreError> {
    Ok(tx.row("SELECT 1 FROM event WHERE cursor IS NULL LIMIT 1", &[]).await?.is_some())
}
