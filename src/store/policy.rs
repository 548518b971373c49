//! What a domain or an inbox has set about mail that comes in; what it has not set comes from further out.

use serde::{Deserialize, Serialize};

use super::message::{from_json, to_json};
use super::{StoreError, Topic, Tx};
use crate::config::{DmarcHandling, Spoofed, Unauthenticated};
use crate::ids::InboxKey;

/// Set at one scope; `None` leaves it to the wider one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ReceivePolicy {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dmarc: Option<DmarcHandling>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unauthenticated: Option<Unauthenticated>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spoofed: Option<Spoofed>,
    /// Octets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_message_size: Option<u64>,
}

impl ReceivePolicy {
    /// From a column that is NULL where nothing was ever set.
    pub(super) fn read(column: Option<String>) -> Result<ReceivePolicy, StoreError> {
        column.as_deref().map_or(Ok(ReceivePolicy::default()), from_json)
    }
}

pub async fn of_domain(tx: &mut Tx, domain: &str) -> Result<ReceivePolicy, StoreError> {
    let sql = "SELECT receive_policy FROM domain_policy WHERE domain = $1";
    let row = tx.row(sql, &[domain.into()]).await?;
    ReceivePolicy::read(row.map(|row| row.get(0)).transpose()?)
}

pub async fn put_domain(tx: &mut Tx, domain: &str, policy: &ReceivePolicy) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO domain_policy (domain, receive_policy, updated_at) VALUES ($1, $2, $3)
         ON CONFLICT (domain) DO UPDATE SET receive_policy = excluded.receive_policy, updated_at = excluded.updated_at",
        &[domain.into(), to_json(policy)?.into(), tx.now().into()],
    )
    .await?;
    tx.wake(Topic::Inboxes);
    Ok(())
}

pub async fn put_inbox(tx: &mut Tx, key: InboxKey, policy: &ReceivePolicy) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE inbox SET receive_policy = $3, updated_at = $4 WHERE pod_key = $1 AND inbox_key = $2",
        &[key.pod.into(), key.inbox.into(), to_json(policy)?.into(), tx.now().into()],
    )
    .await?;
    tx.wake(Topic::Inboxes);
    Ok(())
}
