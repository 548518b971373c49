//! Answers to sends by their Idempotency-Key, stored in the transaction that released: a repeat is answered
//! with what the first one heard, whatever crashed in between.

use super::{StoreError, Tx};
use crate::clock::Millis;

/// A stored answer and the request that it belongs to.
pub(crate) struct Stored {
    pub request_hash: Vec<u8>,
    /// JSON.
    pub answer: String,
}

/// The answer under `name`, unless it is older than `since`.
pub(crate) async fn find(tx: &mut Tx, name: &str, since: Millis) -> Result<Option<Stored>, StoreError> {
    let row = tx
        .row(
            "SELECT request_hash, answer FROM idempotency WHERE name = $1 AND created_at >= $2",
            &[name.into(), since.into()],
        )
        .await?;
    row.map(|row| Ok(Stored { request_hash: row.get(0)?, answer: row.get(1)? })).transpose()
}

/// `Conflict` where a send with this name committed meanwhile.
pub(crate) async fn put(
    tx: &mut Tx,
    name: &str,
    request_hash: &[u8],
    answer: &str,
    since: Millis,
) -> Result<(), StoreError> {
    tx.execute("DELETE FROM idempotency WHERE name = $1 AND created_at < $2", &[name.into(), since.into()])
        .await?;
    tx.execute(
        "INSERT INTO idempotency (name, request_hash, answer, created_at) VALUES ($1, $2, $3, $4)",
        &[name.into(), request_hash.into(), answer.into(), tx.now().into()],
    )
    .await?;
    Ok(())
}

/// Forgets answers older than `before`.
pub(crate) async fn forget(tx: &mut Tx, before: Millis) -> Result<u64, StoreError> {
    tx.execute("DELETE FROM idempotency WHERE created_at < $1", &[before.into()]).await
}
