//! Every attempt to deliver, with the remote's words: what an operator asks for first. Kept for a month.

use super::delivery::Delivery;
use super::{StoreError, Tx, Value};
use crate::clock::Millis;
use crate::ids::InboxKey;

/// Characters of the remote's words that are kept.
const MAX_REPLY: usize = 900;
/// Attempts of one delivery that are shown: five days of retries are fewer.
const SHOWN: i64 = 100;

/// One attempt at one recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    pub attempt: i64,
    pub node: String,
    pub host: Option<String>,
    pub address: Option<String>,
    /// As `deliver::outcome::Via` has it; `None` in clear.
    pub tls: Option<String>,
    /// `delivered`, `deferred`, `failed`, or `interrupted` where the process died.
    pub outcome: String,
    pub status: Option<String>,
    pub reply: Option<String>,
    /// When it was claimed.
    pub began_at: Millis,
    pub ended_at: Millis,
}

/// In the transaction that says what they came to.
pub(crate) async fn record(tx: &mut Tx, attempts: &[(&Delivery, Attempt)]) -> Result<(), StoreError> {
    let lists: Vec<Vec<Value>> = attempts
        .iter()
        .map(|(delivery, attempt)| {
            let cut = |text: &String| text.chars().take(MAX_REPLY).collect::<String>();
            vec![
                delivery.inbox.pod.into(),
                delivery.inbox.inbox.into(),
                delivery.delivery_key.into(),
                attempt.attempt.into(),
                (&attempt.node).into(),
                attempt.host.clone().into(),
                attempt.address.clone().into(),
                attempt.tls.clone().into(),
                (&attempt.outcome).into(),
                attempt.status.clone().into(),
                attempt.reply.as_ref().map(cut).into(),
                attempt.began_at.into(),
                attempt.ended_at.into(),
            ]
        })
        .collect();
    tx.rows_of_each(
        "INSERT INTO delivery_attempt (pod_key, inbox_key, delivery_key, attempt, node, host, address, tls, outcome,
                                       status, reply, began_at, ended_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
        "INSERT INTO delivery_attempt (pod_key, inbox_key, delivery_key, attempt, node, host, address, tls, outcome,
                                       status, reply, began_at, ended_at)
         SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[], $6::text[], $7::text[],
                              $8::text[], $9::text[], $10::text[], $11::text[], $12::bigint[], $13::bigint[])",
        &lists,
    )
    .await?;
    Ok(())
}

/// Of one delivery, the first first.
pub async fn of_delivery(
    tx: &mut Tx,
    inbox: InboxKey,
    delivery_key: i64,
) -> Result<Vec<Attempt>, StoreError> {
    let rows = tx
        .rows(
            "SELECT attempt, node, host, address, tls, outcome, status, reply, began_at, ended_at
             FROM delivery_attempt WHERE pod_key = $1 AND inbox_key = $2 AND delivery_key = $3
             ORDER BY attempt_key LIMIT $4",
            &[inbox.pod.into(), inbox.inbox.into(), delivery_key.into(), SHOWN.into()],
        )
        .await?;
    rows.iter()
        .map(|row| {
            Ok(Attempt {
                attempt: row.get(0)?,
                node: row.get(1)?,
                host: row.get(2)?,
                address: row.get(3)?,
                tls: row.get(4)?,
                outcome: row.get(5)?,
                status: row.get(6)?,
                reply: row.get(7)?,
                began_at: row.get(8)?,
                ended_at: row.get(9)?,
            })
        })
        .collect()
}

/// Forgets up to `limit` of those that ended before `cutoff`; how many. They were written in the order of their
/// ends, as nearly as it matters here, so the oldest have the smallest keys.
pub(crate) async fn forget(tx: &mut Tx, cutoff: Millis, limit: i64) -> Result<u64, StoreError> {
    tx.execute(
        "DELETE FROM delivery_attempt WHERE attempt_key IN (
             SELECT attempt_key FROM (
                 SELECT attempt_key, ended_at FROM delivery_attempt ORDER BY attempt_key LIMIT $2) oldest
             WHERE ended_at < $1)",
        &[cutoff.into(), limit.into()],
    )
    .await
}
