//! Suppressions: addresses that a pod must not write to, with the reason and where it came from.

use super::{StoreError, Tx};
use crate::clock::Millis;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suppression {
    /// `Address::key()`.
    pub address: String,
    /// `bounce`, `complaint`, `unsubscribe` or `manual`.
    pub reason: String,
    /// What found it: a delivery's id, a key, a person.
    pub source: String,
    /// The remote's words.
    pub detail: Option<String>,
    pub created_at: Millis,
}

/// Adds an address; the first reason stays.
pub async fn add(
    tx: &mut Tx,
    pod: i64,
    address: &str,
    reason: &str,
    source: &str,
    detail: Option<&str>,
) -> Result<bool, StoreError> {
    let added = tx
        .execute(
            "INSERT INTO suppression (pod_key, address, reason, source, detail, created_at)
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (pod_key, address) DO NOTHING",
            &[pod.into(), address.into(), reason.into(), source.into(), detail.into(), tx.now().into()],
        )
        .await?;
    Ok(added == 1)
}

/// Those of `addresses` (in the form of `Address::key()`) that must not be written to.
pub async fn among(tx: &mut Tx, pod: i64, addresses: &[String]) -> Result<Vec<Suppression>, StoreError> {
    let list = super::message::to_json(&addresses)?;
    // A join: for an IN, SQLite would copy the list into a table of its own, which costs more than the rest.
    let sql = tx.either(
        "SELECT s.address, s.reason, s.source, s.detail, s.created_at
         FROM json_each($2) AS name CROSS JOIN suppression AS s
         WHERE s.pod_key = $1 AND s.address = name.value LIMIT 1000",
        "SELECT address, reason, source, detail, created_at FROM suppression
         WHERE pod_key = $1 AND address = ANY (ARRAY(SELECT json_array_elements_text($2::json)))
         ORDER BY address LIMIT 1000",
    );
    tx.rows(sql, &[pod.into(), list.into()]).await?.iter().map(from_row).collect()
}

/// A page of a pod's suppressions, by address.
pub async fn page(tx: &mut Tx, pod: i64, after: &str, limit: i64) -> Result<Vec<Suppression>, StoreError> {
    let rows = tx
        .rows(
            "SELECT address, reason, source, detail, created_at FROM suppression
             WHERE pod_key = $1 AND address > $2 ORDER BY address LIMIT $3",
            &[pod.into(), after.into(), limit.into()],
        )
        .await?;
    rows.iter().map(from_row).collect()
}

/// The address may be written to again; `false` where it was not suppressed.
pub async fn remove(tx: &mut Tx, pod: i64, address: &str) -> Result<bool, StoreError> {
    let removed = tx
        .execute("DELETE FROM suppression WHERE pod_key = $1 AND address = $2", &[pod.into(), address.into()])
        .await?;
    Ok(removed == 1)
}

fn from_row(row: &super::Row) -> Result<Suppression, StoreError> {
    Ok(Suppression {
        address: row.get(0)?,
        reason: row.get(1)?,
        source: row.get(2)?,
        detail: row.get(3)?,
        created_at: row.get(4)?,
    })
}
