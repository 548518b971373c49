//! API keys. Only their SHA-256 is stored: a key has 160 random bits, so there is nothing to guess and no salt
//! to keep. The key itself is shown once, when it is made.

use sha2::{Digest, Sha256};

use super::message::{from_json, to_json};
use super::page::Page;
use super::{Row, StoreError, Tx, Value};
use crate::clock::Millis;
use crate::ids::{InboxKey, random_token};
use crate::principal::{Permissions, Scope};

/// Characters of a key that a listing shows: enough to tell one's keys apart, far from enough to use one.
const PREFIX_LENGTH: usize = 8;

#[derive(Debug, Clone)]
pub struct ApiKey {
    pub key_id: i64,
    /// `key_…`
    pub api_key_id: String,
    pub scope: Scope,
    pub prefix: String,
    pub name: String,
    pub permissions: Permissions,
    pub created_at: Millis,
    pub updated_at: Millis,
    pub expires_at: Option<Millis>,
    pub used_at: Option<Millis>,
}

/// A key to be made.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// What the caller will send as bearer token.
    pub secret: String,
    pub scope: Scope,
    pub name: String,
    pub permissions: Permissions,
    pub expires_at: Option<Millis>,
}

/// A new key: `gp_` and 160 random bits.
pub fn fresh_secret() -> String {
    format!("gp_{}", random_token::<20>())
}

pub fn hash(secret: &str) -> Vec<u8> {
    Sha256::digest(secret.as_bytes()).to_vec()
}

macro_rules! columns {
    () => {
        "key_id, api_key_id, pod_key, inbox_key, prefix, name, permissions, created_at, updated_at, expires_at, used_at"
    };
}

fn from_row(row: &Row) -> Result<ApiKey, StoreError> {
    let scope = match (row.get::<Option<i64>>(2)?, row.get::<Option<i64>>(3)?) {
        (None, _) => Scope::Organization,
        (Some(pod), None) => Scope::Pod(pod),
        (Some(pod), Some(inbox)) => Scope::Inbox(InboxKey { pod, inbox }),
    };
    let permissions: Option<String> = row.get(6)?;
    Ok(ApiKey {
        key_id: row.get(0)?,
        api_key_id: row.get(1)?,
        scope,
        prefix: row.get(4)?,
        name: row.get(5)?,
        permissions: Permissions(permissions.as_deref().map(from_json).transpose()?),
        created_at: row.get(7)?,
        updated_at: row.get(8)?,
        expires_at: row.get(9)?,
        used_at: row.get(10)?,
    })
}

/// Pod and inbox of a scope, as they stand in the row.
fn columns_of(scope: Scope) -> [Value; 2] {
    match scope {
        Scope::Organization => [Value::Int(None), Value::Int(None)],
        Scope::Pod(pod) => [pod.into(), Value::Int(None)],
        Scope::Inbox(inbox) => [inbox.pod.into(), inbox.inbox.into()],
    }
}

pub async fn insert(tx: &mut Tx, new: &NewKey) -> Result<ApiKey, StoreError> {
    let [pod, inbox] = columns_of(new.scope);
    let prefix: String = new.secret.chars().take(PREFIX_LENGTH).collect();
    let sql = concat!(
        "INSERT INTO api_key (api_key_id, pod_key, inbox_key, hash, prefix, name, permissions, created_at, updated_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8, $9) RETURNING ",
        columns!()
    );
    let args = [
        format!("key_{}", random_token::<10>()).into(),
        pod,
        inbox,
        hash(&new.secret).into(),
        prefix.into(),
        (&new.name).into(),
        Value::Text(new.permissions.0.as_ref().map(to_json).transpose()?),
        tx.now().into(),
        new.expires_at.into(),
    ];
    tx.row(sql, &args).await?.as_ref().map(from_row).transpose()?.ok_or(StoreError::Closed)
}

/// The key of this secret, made where it is missing: for the keys that the operator or `gatepost dev` names.
pub async fn ensure(tx: &mut Tx, new: &NewKey) -> Result<ApiKey, StoreError> {
    match by_hash(tx, &hash(&new.secret)).await? {
        Some(key) => Ok(key),
        None => insert(tx, new).await,
    }
}

pub async fn by_hash(tx: &mut Tx, hash: &[u8]) -> Result<Option<ApiKey>, StoreError> {
    let sql = concat!("SELECT ", columns!(), " FROM api_key WHERE hash = $1");
    tx.row(sql, &[hash.into()]).await?.as_ref().map(from_row).transpose()
}

pub async fn by_id(tx: &mut Tx, api_key_id: &str) -> Result<Option<ApiKey>, StoreError> {
    let sql = concat!("SELECT ", columns!(), " FROM api_key WHERE api_key_id = $1");
    tx.row(sql, &[api_key_id.into()]).await?.as_ref().map(from_row).transpose()
}

/// A page of keys: of one inbox, of a pod and its inboxes, or every key that there is.
pub async fn page(tx: &mut Tx, within: Scope, page: &Page) -> Result<Vec<ApiKey>, StoreError> {
    let sql = match page.ascending {
        false => concat!(
            "SELECT ",
            columns!(),
            " FROM api_key WHERE key_id < $1 AND ($3 = 0 OR pod_key = $3) AND ($4 = 0 OR inbox_key = $4)
              ORDER BY key_id DESC LIMIT $2"
        ),
        true => concat!(
            "SELECT ",
            columns!(),
            " FROM api_key WHERE key_id > $1 AND ($3 = 0 OR pod_key = $3) AND ($4 = 0 OR inbox_key = $4)
              ORDER BY key_id LIMIT $2"
        ),
    };
    let [_, _, start] = page.start().key;
    let (pod, inbox) = within.numbers();
    tx.rows(sql, &[start.into(), page.fetch().into(), pod.into(), inbox.into()])
        .await?
        .iter()
        .map(from_row)
        .collect()
}

/// Whether an inbox has keys of its own.
pub async fn any_of_inbox(tx: &mut Tx, inbox: InboxKey) -> Result<bool, StoreError> {
    let sql = "SELECT key_id FROM api_key WHERE pod_key = $1 AND inbox_key = $2 LIMIT 1";
    Ok(tx.row(sql, &[inbox.pod.into(), inbox.inbox.into()]).await?.is_some())
}

/// Whether the organization has a key: where it has none, nobody could make the first.
pub async fn any_of_organization(tx: &mut Tx) -> Result<bool, StoreError> {
    let sql = "SELECT key_id FROM api_key WHERE pod_key IS NULL AND inbox_key IS NULL LIMIT 1";
    Ok(tx.row(sql, &[]).await?.is_some())
}

/// Writes name and permissions.
pub async fn update(tx: &mut Tx, key: &ApiKey) -> Result<(), StoreError> {
    let args = [
        key.key_id.into(),
        (&key.name).into(),
        Value::Text(key.permissions.0.as_ref().map(to_json).transpose()?),
        tx.now().into(),
    ];
    tx.execute("UPDATE api_key SET name = $2, permissions = $3, updated_at = $4 WHERE key_id = $1", &args)
        .await?;
    Ok(())
}

pub async fn delete(tx: &mut Tx, key_id: i64) -> Result<(), StoreError> {
    tx.execute("DELETE FROM api_key WHERE key_id = $1", &[key_id.into()]).await?;
    Ok(())
}

/// The key was used now. Never backwards, since several processes may say so.
pub async fn touch(tx: &mut Tx, key_id: i64) -> Result<(), StoreError> {
    let args = [key_id.into(), tx.now().into()];
    tx.execute(
        "UPDATE api_key SET used_at = $2 WHERE key_id = $1 AND (used_at IS NULL OR used_at < $2)",
        &args,
    )
    .await?;
    Ok(())
}
