//! The audit log: who did what, written in the transaction that did it. Rows hold ids and hashes, never
//! content, so that content can be erased without touching the log. Append only: there is no other function.

use super::{StoreError, Tx};
use crate::ids::InboxKey;

/// One line of the log.
pub struct Entry<'a> {
    /// `key:key_…`, `smtp`, `system`.
    pub actor: &'a str,
    pub run_id: Option<&'a str>,
    /// `inbox.created`, `message.released`, …
    pub action: &'a str,
    pub inbox: Option<InboxKey>,
    /// The id of what was acted on.
    pub object: &'a str,
    /// JSON.
    pub detail: String,
}

pub async fn record(tx: &mut Tx, entry: Entry<'_>) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO audit (at, actor, run_id, action, pod_key, inbox_key, object, detail)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        &[
            tx.now().into(),
            entry.actor.into(),
            entry.run_id.into(),
            entry.action.into(),
            entry.inbox.map(|i| i.pod).into(),
            entry.inbox.map(|i| i.inbox).into(),
            entry.object.into(),
            entry.detail.into(),
        ],
    )
    .await?;
    Ok(())
}
