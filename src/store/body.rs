//! The octets of messages, as they arrived or were composed.
//!
//! Up to 1 MiB they stand in the database, so that one commit covers message and index, and a backup is one
//! thing. Larger ones go to the object store (a local folder with fsync, or S3) before the row that names
//! them; an object without a row is an orphan of a crash, swept after a day. Compression (zstd 1) happens
//! before the transaction, never in it.

use std::cell::RefCell;
use std::io::{self, Write};
use std::sync::Arc;

use futures_util::StreamExt;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStoreExt, PutPayload};

use super::{Store, StoreError, Tx};
use crate::clock::{DAY, Millis};
use crate::config::StorageUrl;
use crate::ids::{InboxKey, random_token};
use crate::spool::{self, Octets, Spool};

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
    spool: Spool,
}

impl Body {
    /// The octets, where they are at hand: not those in the object store.
    pub(crate) fn octets(&self) -> Option<Vec<u8>> {
        at_hand(self.codec, self.size, self.bytes.as_deref()?)
    }
}

fn at_hand(codec: &str, size: i64, bytes: &[u8]) -> Option<Vec<u8>> {
    match codec {
        "raw" => Some(bytes.to_vec()),
        "zstd" => unpack(bytes, usize::try_from(size).ok()?).ok(),
        _ => None,
    }
}

/// The octets of a message that stand in the database; `None` also for those in the object store.
pub(crate) async fn in_row(
    tx: &mut Tx,
    inbox: InboxKey,
    message_key: i64,
) -> Result<Option<Vec<u8>>, StoreError> {
    let found = fetch(tx, inbox, message_key).await?;
    Ok(found.and_then(|(codec, size, bytes, _)| at_hand(&codec, size, &bytes?)))
}

impl BodyStore {
    /// S3 takes its credentials from the environment, as AWS's own tools do.
    pub fn open(url: &StorageUrl, spool: Spool) -> Result<BodyStore, StoreError> {
        let failed = |e: object_store::Error| StoreError::Unavailable(format!("object store: {e}"));
        match url {
            StorageUrl::Folder(folder) => {
                std::fs::create_dir_all(folder)
                    .map_err(|e| StoreError::Unavailable(format!("{}: {e}", folder.display())))?;
                let local = object_store::local::LocalFileSystem::new_with_prefix(folder).map_err(failed)?;
                Ok(BodyStore { objects: Arc::new(local.with_fsync(true)), spool })
            }
            StorageUrl::S3 { bucket, prefix } => {
                let s3 = object_store::aws::AmazonS3Builder::from_env()
                    .with_bucket_name(bucket)
                    .build()
                    .map_err(failed)?;
                Ok(BodyStore {
                    objects: Arc::new(object_store::prefix::PrefixStore::new(s3, prefix.as_str())),
                    spool,
                })
            }
        }
    }

    /// Compresses `raw`, and writes it to the object store where it is large. Every object has a name of its
    /// own: one that is swept as an orphan can never be one that a new row is about to name.
    pub async fn prepare(&self, pod: i64, raw: &[u8]) -> Result<Body, StoreError> {
        let size = raw.len() as i64;
        let plain = || Body { codec: "raw", size, bytes: Some(Arc::new(raw.to_vec())), object: None };
        if raw.len() < SMALLEST_COMPRESSED {
            return Ok(plain());
        }
        if raw.len() > LARGEST_ROW {
            let packed = spool::aside(raw.len(), || self.pack_large(raw)).map_err(unpacked)?;
            let name = format!("{pod}/{}", random_token::<20>());
            let octets = PutPayload::from_bytes(packed.into_bytes());
            self.objects.put(&ObjectPath::from(name.as_str()), octets).await.map_err(unwritten)?;
            return Ok(Body { codec: "object", size, bytes: None, object: Some(name) });
        }
        let packed = pack(raw).map_err(unpacked)?;
        // Attachments are compressed mostly: below a tenth of gain the plain octets are read faster.
        if packed.len() * 10 > raw.len() * 9 {
            return Ok(plain());
        }
        Ok(Body { codec: "zstd", size, bytes: Some(Arc::new(packed)), object: None })
    }

    /// From the slice into a spool file, so that neither form of a large body stands in memory.
    fn pack_large(&self, raw: &[u8]) -> io::Result<Octets> {
        let mut draft = self.spool.begin()?;
        let mut encoder = zstd::Encoder::new(&mut draft, 1)?;
        encoder.set_pledged_src_size(Some(raw.len() as u64))?;
        encoder.write_all(raw)?;
        encoder.finish()?;
        draft.finish()
    }

    /// Deletes objects that no row names and that are older than a day: a crash came between object and row.
    /// How many there were.
    pub async fn sweep(&self, store: &Store, now: Millis) -> Result<u64, StoreError> {
        let mut swept = 0;
        let mut objects = self.objects.list(None);
        while let Some(object) = objects.next().await {
            let object = object.map_err(unread)?;
            if object.last_modified.timestamp_millis() > now - DAY {
                continue;
            }
            let name = object.location.to_string();
            let named: Result<bool, StoreError> = store
                .read(move |tx| {
                    Box::pin(async move {
                        let sql = "SELECT 1 FROM body WHERE object = $1 LIMIT 1";
                        Ok(tx.row(sql, &[name.into()]).await?.is_some())
                    })
                })
                .await;
            if !named? {
                self.objects.delete(&object.location).await.map_err(unread)?;
                swept += 1;
            }
        }
        Ok(swept)
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
                let found = self.objects.get(&ObjectPath::from(name.as_str())).await.map_err(unread)?;
                found.bytes().await.map_err(unread)?.to_vec()
            }
            _ => return Err(StoreError::Damaged(format!("a body with codec {codec:?} and no octets"))),
        };
        unpack(&packed, size)
            .map(Some)
            .map_err(|e| StoreError::Damaged(format!("a body does not decompress: {e}")))
    }
}

fn unpacked(e: io::Error) -> StoreError {
    StoreError::Storage(format!("compressing a message: {e}"))
}

thread_local! {
    /// Making a context costs as much as compressing a short message, so each thread keeps its own: some 600 KiB.
    static PACKER: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
    /// The same for reading: some 160 KiB.
    static UNPACKER: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

fn pack(raw: &[u8]) -> io::Result<Vec<u8>> {
    PACKER.with_borrow_mut(|packer| {
        let packer = match packer {
            Some(packer) => packer,
            none => none.insert(zstd::bulk::Compressor::new(1)?),
        };
        packer.compress(raw)
    })
}

fn unpack(packed: &[u8], size: usize) -> io::Result<Vec<u8>> {
    UNPACKER.with_borrow_mut(|unpacker| {
        let unpacker = match unpacker {
            Some(unpacker) => unpacker,
            none => none.insert(zstd::bulk::Decompressor::new()?),
        };
        unpacker.decompress(packed, size)
    })
}

fn unwritten(e: object_store::Error) -> StoreError {
    StoreError::Storage(format!("object store: {e}"))
}

fn unread(e: object_store::Error) -> StoreError {
    StoreError::Unavailable(format!("object store: {e}"))
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
