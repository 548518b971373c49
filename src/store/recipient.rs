//! Whom an inbox knows, and how often it wrote to whom: asked at a release where that is limited, under the inbox's
//! lock, of rows that are there in any case. An inbox that was never limited has nothing to catch up on.
//!
//! Every release makes its recipients participants of the thread, and every author who did not fail DMARC is one, so
//! an address without such a row is a stranger: one look into `participant_address`. Of another, the threads that it is
//! in say whether it was written to or wrote, verified: one match ends the search, and only somebody whom nobody ever
//! answered and nothing verifies has all of them looked through. What was called off before its first attempt was not
//! written.

use std::collections::HashSet;

use super::message::to_json;
use super::{StoreError, Tx};
use crate::clock::{HOUR, Millis};
use crate::ids::InboxKey;

/// Those of `addresses` (`Address::key`) that the inbox has written to, or had verified mail from.
pub(crate) async fn known(
    tx: &mut Tx,
    inbox: InboxKey,
    addresses: &[String],
) -> Result<HashSet<String>, StoreError> {
    let list = to_json(&addresses)?;
    let args = [inbox.pod.into(), inbox.inbox.into(), list.into()];
    // In this order of tables, whatever the planner thinks: one inbox may have millions of messages.
    let sql = tx.either(
        "SELECT value FROM json_each($3) AS a WHERE EXISTS (
             SELECT 1 FROM participant p CROSS JOIN message m ON m.pod_key = p.pod_key AND m.inbox_key = p.inbox_key
               AND m.thread_key = p.thread_key
             WHERE p.pod_key = $1 AND p.inbox_key = $2 AND p.address = a.value
               AND (m.direction = 'in' AND m.verified_sender = a.value
                    OR m.direction = 'out' AND EXISTS (
                        SELECT 1 FROM delivery d WHERE d.pod_key = m.pod_key AND d.inbox_key = m.inbox_key
                          AND d.message_key = m.message_key AND lower(d.recipient) = a.value
                          AND NOT (d.state = 'canceled' AND d.attempts = 0))))
         LIMIT 1000",
        "SELECT value FROM json_array_elements_text($3::json) AS a (value) WHERE EXISTS (
             SELECT 1 FROM participant p JOIN message m ON m.pod_key = p.pod_key AND m.inbox_key = p.inbox_key
               AND m.thread_key = p.thread_key
             WHERE p.pod_key = $1 AND p.inbox_key = $2 AND p.address = a.value
               AND (m.direction = 'in' AND m.verified_sender = a.value
                    OR m.direction = 'out' AND EXISTS (
                        SELECT 1 FROM delivery d WHERE d.pod_key = m.pod_key AND d.inbox_key = m.inbox_key
                          AND d.message_key = m.message_key AND lower(d.recipient) = a.value
                          AND NOT (d.state = 'canceled' AND d.attempts = 0))))
         LIMIT 1000",
    );
    tx.rows(sql, &args).await?.iter().map(|row| row.get(0)).collect()
}

/// Strangers that a message was released to, while they are limited.
pub(crate) async fn note_new(
    tx: &mut Tx,
    inbox: InboxKey,
    message_key: i64,
    at: Millis,
    addresses: &[String],
) -> Result<(), StoreError> {
    if addresses.is_empty() {
        return Ok(());
    }
    for address in addresses {
        tx.execute(
            "INSERT INTO new_recipient (pod_key, inbox_key, at, message_key, address) VALUES ($1, $2, $3, $4, $5)",
            &[inbox.pod.into(), inbox.inbox.into(), at.into(), message_key.into(), address.into()],
        )
        .await?;
    }
    // No window reaches further; an entry is only looked for by its time.
    let sql = "DELETE FROM new_recipient WHERE pod_key = $1 AND inbox_key = $2 AND at < $3";
    tx.execute(sql, &[inbox.pod.into(), inbox.inbox.into(), (at - 48 * HOUR).into()]).await?;
    Ok(())
}

/// When strangers were written to after `since`, the first first: a time for each.
pub(crate) async fn new_since(
    tx: &mut Tx,
    inbox: InboxKey,
    since: Millis,
) -> Result<Vec<Millis>, StoreError> {
    let rows = tx
        .rows(
            "SELECT n.at FROM new_recipient n
             WHERE n.pod_key = $1 AND n.inbox_key = $2 AND n.at > $3 AND NOT EXISTS (
                 SELECT 1 FROM delivery d WHERE d.pod_key = $1 AND d.inbox_key = $2
                   AND d.message_key = n.message_key AND lower(d.recipient) = n.address
                   AND d.state = 'canceled' AND d.attempts = 0)
             ORDER BY n.at LIMIT 1000000",
            &[inbox.pod.into(), inbox.inbox.into(), since.into()],
        )
        .await?;
    rows.iter().map(|row| row.get(0)).collect()
}

/// When messages to each of `addresses` were released after `since`: (address, time), the first first.
pub(crate) async fn written_since(
    tx: &mut Tx,
    inbox: InboxKey,
    addresses: &[String],
    since: Millis,
) -> Result<Vec<(String, Millis)>, StoreError> {
    // Keys rise with releases: what was released before the window has lower ones.
    let first = tx
        .row(
            "SELECT release_key FROM release WHERE pod_key = $1 AND inbox_key = $2 AND released_at > $3
             ORDER BY released_at, release_key LIMIT 1",
            &[inbox.pod.into(), inbox.inbox.into(), since.into()],
        )
        .await?;
    let Some(first) = first else { return Ok(Vec::new()) };
    let first: i64 = first.get(0)?;
    // The plus keeps SQLite from looking deliveries up by what it knows of `m.message_key`, all of the day's for each.
    let sql = tx.either(
        "SELECT a.value, r.released_at FROM json_each($3) AS a
         CROSS JOIN participant p ON p.pod_key = $1 AND p.inbox_key = $2 AND p.address = a.value AND p.last_at > $5
         CROSS JOIN message m ON m.pod_key = $1 AND m.inbox_key = $2 AND m.thread_key = p.thread_key
              AND m.message_key >= $6 AND m.direction = 'out'
         CROSS JOIN delivery d ON d.pod_key = $1 AND d.inbox_key = $2 AND d.message_key = +m.message_key
              AND lower(d.recipient) = a.value AND NOT (d.state = 'canceled' AND d.attempts = 0)
         CROSS JOIN release r ON r.pod_key = $1 AND r.inbox_key = $2 AND r.release_key = m.message_key
              AND r.released_at > $4
         ORDER BY r.released_at LIMIT 1000000",
        "SELECT a.value, r.released_at FROM json_array_elements_text($3::json) AS a (value)
         JOIN participant p ON p.pod_key = $1 AND p.inbox_key = $2 AND p.address = a.value AND p.last_at > $5
         JOIN message m ON m.pod_key = $1 AND m.inbox_key = $2 AND m.thread_key = p.thread_key
              AND m.message_key >= $6 AND m.direction = 'out'
         JOIN delivery d ON d.pod_key = $1 AND d.inbox_key = $2 AND d.message_key = m.message_key
              AND lower(d.recipient) = a.value AND NOT (d.state = 'canceled' AND d.attempts = 0)
         JOIN release r ON r.pod_key = $1 AND r.inbox_key = $2 AND r.release_key = m.message_key
              AND r.released_at > $4
         ORDER BY r.released_at LIMIT 1000000",
    );
    let args = [
        inbox.pod.into(),
        inbox.inbox.into(),
        to_json(&addresses)?.into(),
        since.into(),
        // A thread's last time goes by the clock, a release by one that never falls: an hour for the difference.
        (since - HOUR).into(),
        first.into(),
    ];
    tx.rows(sql, &args).await?.iter().map(|row| Ok((row.get(0)?, row.get(1)?))).collect()
}
