//! Pods: tenants, each with inboxes, domains and keys that see nothing of another's.

use super::budget::{self, BudgetScope};
use super::page::Page;
use super::{Row, StoreError, Tx};
use crate::clock::Millis;
use crate::ids::random_token;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    pub pod_key: i64,
    pub pod_id: String,
    pub name: String,
    pub client_id: Option<String>,
    pub created_at: Millis,
    pub updated_at: Millis,
}

macro_rules! columns {
    () => {
        "pod_key, pod_id, name, client_id, created_at, updated_at"
    };
}

fn from_row(row: &Row) -> Result<Pod, StoreError> {
    Ok(Pod {
        pod_key: row.get(0)?,
        pod_id: row.get(1)?,
        name: row.get(2)?,
        client_id: row.get(3)?,
        created_at: row.get(4)?,
        updated_at: row.get(5)?,
    })
}

/// Makes a pod. `Conflict` where the client id is taken.
pub async fn insert(tx: &mut Tx, name: &str, client_id: Option<&str>) -> Result<Pod, StoreError> {
    // Its id says its key, which only the row gives.
    let sql = concat!(
        "INSERT INTO pod (pod_id, name, client_id, created_at, updated_at) VALUES ($1, $2, $3, $4, $4) RETURNING ",
        columns!()
    );
    let args = [random_token::<20>().into(), name.into(), client_id.into(), tx.now().into()];
    let made = tx.row(sql, &args).await?.as_ref().map(from_row).transpose()?.ok_or(StoreError::Closed)?;
    let pod_id = crate::ids::pod_id(made.pod_key);
    let args = [made.pod_key.into(), (&pod_id).into()];
    tx.execute("UPDATE pod SET pod_id = $2 WHERE pod_key = $1", &args).await?;
    Ok(Pod { pod_id, ..made })
}

pub async fn by_key(tx: &mut Tx, pod_key: i64) -> Result<Option<Pod>, StoreError> {
    let sql = concat!("SELECT ", columns!(), " FROM pod WHERE pod_key = $1");
    tx.row(sql, &[pod_key.into()]).await?.as_ref().map(from_row).transpose()
}

/// The pod, which nobody deletes before the end of the transaction; `alone`: and nobody else holds so.
pub async fn lock(tx: &mut Tx, pod_key: i64, alone: bool) -> Result<Option<Pod>, StoreError> {
    let sql = match (alone, tx.is_postgres()) {
        (_, false) => concat!("SELECT ", columns!(), " FROM pod WHERE pod_key = $1"),
        (true, true) => concat!("SELECT ", columns!(), " FROM pod WHERE pod_key = $1 FOR UPDATE"),
        (false, true) => concat!("SELECT ", columns!(), " FROM pod WHERE pod_key = $1 FOR SHARE"),
    };
    tx.row(sql, &[pod_key.into()]).await?.as_ref().map(from_row).transpose()
}

pub async fn by_client_id(tx: &mut Tx, client_id: &str) -> Result<Option<Pod>, StoreError> {
    let sql = concat!("SELECT ", columns!(), " FROM pod WHERE client_id = $1");
    tx.row(sql, &[client_id.into()]).await?.as_ref().map(from_row).transpose()
}

pub async fn page(tx: &mut Tx, page: &Page) -> Result<Vec<Pod>, StoreError> {
    let sql = match page.ascending {
        false => {
            concat!("SELECT ", columns!(), " FROM pod WHERE pod_key < $1 ORDER BY pod_key DESC LIMIT $2")
        }
        true => concat!("SELECT ", columns!(), " FROM pod WHERE pod_key > $1 ORDER BY pod_key LIMIT $2"),
    };
    let [_, _, start] = page.start().key;
    tx.rows(sql, &[start.into(), page.fetch().into()]).await?.iter().map(from_row).collect()
}

/// Whether the pod has inboxes or domains.
pub async fn is_in_use(tx: &mut Tx, pod_key: i64) -> Result<bool, StoreError> {
    let sql = "SELECT 1 FROM inbox WHERE pod_key = $1 AND deleted_at IS NULL
               UNION ALL SELECT 1 FROM domain WHERE pod_key = $1 LIMIT 1";
    Ok(tx.row(sql, &[pod_key.into()]).await?.is_some())
}

/// Removes the pod with its keys, lists and suppressions; the caller knows that nothing else is in it.
pub async fn delete(tx: &mut Tx, pod_key: i64) -> Result<(), StoreError> {
    let args = [pod_key.into()];
    tx.execute("DELETE FROM api_key WHERE pod_key = $1", &args).await?;
    tx.execute("DELETE FROM list_entry WHERE pod_key = $1", &args).await?;
    tx.execute("DELETE FROM suppression WHERE pod_key = $1", &args).await?;
    tx.execute("DELETE FROM pod WHERE pod_key = $1", &args).await?;
    budget::forget(tx, &BudgetScope::Pod(pod_key)).await?;
    Ok(())
}
