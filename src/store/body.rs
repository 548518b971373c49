//! The octets of messages, as they arrived or were composed.
//!
//! Up to 1 MiB they stand in the database, so that one commit covers message and index, and a backup is one
//! thing. Larger ones go to the object store (a local folder with fsync, or S3) before the row that names
//! them; an object without a row is an orphan of a crash, swept after a day. Compression (zstd 1) happens
//! before the transaction, never in it.

use std::sync::Arc;

use object_store::ObjectStoreExt;
use object_store::path::Path as ObjectPath;
use sha2::{Digest, Sha256};

use super::{Store, StoreError, Tx};
use crate::config::StorageUrl;
use crate::ids::{InboxKey, base32};

/// Octets up to which a body stands in the database. Proposed by reference/stack.md §4: a durable file costs
/// two fsyncs of its own, which group commit cannot share; far beyond 1 MiB the WAL would carry it twice.
const LARGEST_ROW: usize = 1 << 20;
/// Octets below which compression is not worth its header.
const SMALLEST_COMPRESSED: usize = 1024;

/// A body that is ready for its row; where it is large, it is in the object store already.
#[derive(Clone)]
pub struct Body {
    codec: &'static str,
    size: i64,
    bytes: Option<Arc<Vec<u8>>>,
    object: Option<String>,
}

/// Where large bodies are kept.
#[derive(Clone)]
pub struct BodyStore {
    objects: Arc<dyn object_store::ObjectStore>,
}

impl BodyStore {
    /// S3 takes its credentials from the environment, as AWS's own tools do.
    pub fn open(url: &StorageUrl) -> Result<BodyStore, StoreError> {
        let failed = |e: object_store::Error| StoreError::Unavailable(format!("object store: {e}"));
        match url {
            StorageUrl::Folder(folder) => {
                std::fs::create_dir_all(folder)
                    .map_err(|e| StoreError::Unavailable(format!("{}: {e}", folder.display())))?;
                let local = object_store::local::LocalFileSystem::new_with_prefix(folder).map_err(failed)?;
                Ok(BodyStore { objects: Arc::new(local.with_fsync(true)) })
            }
            StorageUrl::S3 { bucket, prefix } => {
                let s3 = object_store::aws::AmazonS3Builder::from_env()
                    .with_bucket_name(bucket)
                    .build()
                    .map_err(failed)?;
                Ok(BodyStore {
                    objects: Arc::new(object_store::prefix::PrefixStore::new(s3, prefix.as_str())),
                })
            }
        }
    }

    /// Compresses `raw`, and writes it to the object store where it is large.
    pub async fn prepare(&self, pod: i64, raw: &[u8]) -> Result<Body, StoreError> {
        let size = raw.len() as i64;
        if raw.len() < SMALLEST_COMPRESSED {
            return Ok(Body { codec: "raw", size, bytes: Some(Arc::new(raw.to_vec())), object: None });
        }
        let packed = zstd::bulk::compress(raw, 1)
            .map_err(|e| StoreError::Storage(format!("compressing a message: {e}")))?;
        if raw.len() > LARGEST_ROW {
            let name = format!("{pod}/{}", base32(&Sha256::digest(raw)));
            let path = ObjectPath::from(name.as_str());
            self.objects
                .put(&path, packed.into())
                .await
                .map_err(|e| StoreError::Storage(format!("object store: {e}")))?;
            return Ok(Body { codec: "object", size, bytes: None, object: Some(name) });
        }
        // Attachments are compressed mostly: below a tenth of gain the plain octets are read faster.
        if packed.len() * 10 > raw.len() * 9 {
            return Ok(Body { codec: "raw", size, bytes: Some(Arc::new(raw.to_vec())), object: None });
        }
        Ok(Body { codec: "zstd", size, bytes: Some(Arc::new(packed)), object: None })
    }

    /// The octets of a message; `None` where there is no such message.
    pub async fn load(
        &self,
        store: &Store,
        inbox: InboxKey,
        message_key: i64,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let found = store.read(move |tx| Box::pin(fetch(tx, inbox, message_key))).await?;
        let Some((codec, size, bytes, object)) = found else { return Ok(None) };
        let size =
            usize::try_from(size).map_err(|_| StoreError::Damaged("a body of negative size".into()))?;
        let packed = match (codec.as_str(), bytes, object) {
            ("raw", Some(bytes), _) => return Ok(Some(bytes)),
            ("zstd", Some(bytes), _) => bytes,
            ("object", _, Some(name)) => {
                let failed = |e: object_store::Error| StoreError::Unavailable(format!("object store: {e}"));
                let found = self.objects.get(&ObjectPath::from(name.as_str())).await.map_err(failed)?;
                found.bytes().await.map_err(failed)?.to_vec()
            }
            _ => return Err(StoreError::Damaged(format!("a body with codec {codec:?} and no octets"))),
        };
        zstd::bulk::decompress(&packed, size)
            .map(Some)
            .map_err(|e| StoreError::Damaged(format!("a body does not decompress: {e}")))
    }
}

type Fetched = (String, i64, Option<Vec<u8>>, Option<String>);

async fn fetch(tx: &mut Tx, inbox: InboxKey, message_key: i64) -> Result<Option<Fetched>, StoreError> {
    let row = tx
        .row(
            "SELECT codec, size, bytes, object FROM body WHERE pod_key = $1 AND inbox_key = $2 AND message_key = $3",
            &[inbox.pod.into(), inbox.inbox.into(), message_key.into()],
        )
        .await?;
    row.map(|row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))).transpose()
}

pub(crate) async fn insert(
    tx: &mut Tx,
    inbox: InboxKey,
    message_key: i64,
    body: &Body,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO body (pod_key, inbox_key, message_key, codec, size, bytes, object)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        &[
            inbox.pod.into(),
            inbox.inbox.into(),
            message_key.into(),
            body.codec.into(),
            body.size.into(),
            super::Value::Bytes(body.bytes.as_deref().cloned()),
            body.object.clone().into(),
        ],
    )
    .await?;
    Ok(())
}
