//! Threads: the conversations of an inbox, with the figures that a listing shows kept up to date.

use std::collections::HashMap;

use super::message::{from_json, to_json};
use super::page::Place;
use super::{Row, StoreError, Tx};
use crate::clock::Millis;
use crate::ids::{InboxKey, Prefix, RowId};

/// Senders, recipients and attachments that a thread lists; a thread of 10,000 messages costs no more to
/// update than one of ten.
pub(crate) const MAX_LISTED: usize = 50;

/// An attachment as a thread lists it: which message, which part, what it is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ListedAttachment {
    pub message_key: i64,
    /// When the message was stored, which its id needs.
    pub at: Millis,
    pub part: u32,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub filename: Option<String>,
    pub content_type: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub disposition: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub content_id: Option<String>,
    pub size: u64,
}

#[derive(Debug, Clone)]
pub struct Thread {
    pub inbox: InboxKey,
    pub thread_key: i64,
    pub subject: Option<String>,
    /// Without reply prefixes, in lower case: what clients that send no References are matched by.
    pub base_subject: String,
    pub preview: Option<String>,
    pub labels: Vec<String>,
    pub senders: Vec<String>,
    pub recipients: Vec<String>,
    pub attachments: Vec<ListedAttachment>,
    pub message_count: i64,
    pub size: i64,
    pub last_message: i64,
    /// Raised by every message from somebody else; a reply written against an older one is stale.
    pub context_version: i64,
    /// The thread that the first message cites, without having been let in.
    pub claims_thread: Option<i64>,
    pub last_at: Millis,
    pub received_at: Option<Millis>,
    pub sent_at: Option<Millis>,
    pub created_at: Millis,
    pub updated_at: Millis,
}

impl Thread {
    pub fn id(&self) -> String {
        RowId { at: self.created_at, inbox: self.inbox, seq: self.thread_key }.text(Prefix::Thread)
    }
}

macro_rules! columns {
    () => {
        "pod_key, inbox_key, thread_key, subject, base_subject, preview, labels, senders, recipients, attachments,
         message_count, size, last_message, context_version, claims_thread, last_at, received_at, sent_at,
         created_at, updated_at"
    };
}

pub(crate) fn from_row(row: &Row) -> Result<Thread, StoreError> {
    Ok(Thread {
        inbox: InboxKey { pod: row.get(0)?, inbox: row.get(1)? },
        thread_key: row.get(2)?,
        subject: row.get(3)?,
        base_subject: row.get(4)?,
        preview: row.get(5)?,
        labels: from_json(&row.get::<String>(6)?)?,
        senders: from_json(&row.get::<String>(7)?)?,
        recipients: from_json(&row.get::<String>(8)?)?,
        attachments: from_json(&row.get::<String>(9)?)?,
        message_count: row.get(10)?,
        size: row.get(11)?,
        last_message: row.get(12)?,
        context_version: row.get(13)?,
        claims_thread: row.get(14)?,
        last_at: row.get(15)?,
        received_at: row.get(16)?,
        sent_at: row.get(17)?,
        created_at: row.get(18)?,
        updated_at: row.get(19)?,
    })
}

/// Writes the thread, whether it is new or has grown.
pub async fn put(tx: &mut Tx, thread: &Thread) -> Result<(), StoreError> {
    tx.execute(
        concat!(
            "INSERT INTO thread (",
            columns!(),
            ") VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)
             ON CONFLICT (pod_key, inbox_key, thread_key) DO UPDATE SET
                 preview = excluded.preview, labels = excluded.labels, senders = excluded.senders,
                 recipients = excluded.recipients, attachments = excluded.attachments,
                 message_count = excluded.message_count, size = excluded.size, last_message = excluded.last_message,
                 context_version = excluded.context_version, last_at = excluded.last_at,
                 received_at = excluded.received_at, sent_at = excluded.sent_at, updated_at = excluded.updated_at"
        ),
        &[
            thread.inbox.pod.into(),
            thread.inbox.inbox.into(),
            thread.thread_key.into(),
            thread.subject.clone().into(),
            (&thread.base_subject).into(),
            thread.preview.clone().into(),
            to_json(&thread.labels)?.into(),
            to_json(&thread.senders)?.into(),
            to_json(&thread.recipients)?.into(),
            to_json(&thread.attachments)?.into(),
            thread.message_count.into(),
            thread.size.into(),
            thread.last_message.into(),
            thread.context_version.into(),
            thread.claims_thread.into(),
            thread.last_at.into(),
            thread.received_at.into(),
            thread.sent_at.into(),
            thread.created_at.into(),
            thread.updated_at.into(),
        ],
    )
    .await?;
    Ok(())
}

pub async fn by_key(tx: &mut Tx, inbox: InboxKey, thread_key: i64) -> Result<Option<Thread>, StoreError> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM thread WHERE pod_key = $1 AND inbox_key = $2 AND thread_key = $3"
    );
    let args = [inbox.pod.into(), inbox.inbox.into(), thread_key.into()];
    tx.row(sql, &args).await?.as_ref().map(from_row).transpose()
}

/// Ids of the threads of these keys.
pub async fn ids(tx: &mut Tx, inbox: InboxKey, keys: &[i64]) -> Result<HashMap<i64, String>, StoreError> {
    if keys.is_empty() {
        return Ok(HashMap::new());
    }
    let sql = tx.either(
        "SELECT thread_key, created_at FROM thread
         WHERE pod_key = $1 AND inbox_key = $2 AND thread_key IN (SELECT value FROM json_each($3))",
        "SELECT thread_key, created_at FROM thread WHERE pod_key = $1 AND inbox_key = $2
           AND thread_key = ANY (ARRAY(SELECT json_array_elements_text($3::json)::bigint))",
    );
    let args = [inbox.pod.into(), inbox.inbox.into(), to_json(&keys)?.into()];
    let rows = tx.rows(sql, &args).await?;
    rows.iter()
        .map(|row| {
            let seq: i64 = row.get(0)?;
            Ok((seq, RowId { at: row.get(1)?, inbox, seq }.text(Prefix::Thread)))
        })
        .collect()
}

/// A page of threads whose last message fell into `[since, until)`, by that time: of one inbox or of all.
pub async fn page(
    tx: &mut Tx,
    inbox: Option<InboxKey>,
    start: &Place,
    ascending: bool,
    (since, until): (Millis, Millis),
    limit: i64,
) -> Result<Vec<Thread>, StoreError> {
    let sql = match (inbox.is_some(), ascending) {
        (true, false) => concat!(
            "SELECT ",
            columns!(),
            " FROM thread WHERE pod_key = $4 AND inbox_key = $5 AND (last_at, thread_key) < ($1, $6)
                AND last_at >= $2 AND last_at < $3 ORDER BY last_at DESC, thread_key DESC LIMIT $7"
        ),
        (true, true) => concat!(
            "SELECT ",
            columns!(),
            " FROM thread WHERE pod_key = $4 AND inbox_key = $5 AND (last_at, thread_key) > ($1, $6)
                AND last_at >= $2 AND last_at < $3 ORDER BY last_at, thread_key LIMIT $7"
        ),
        (false, false) => concat!(
            "SELECT ",
            columns!(),
            " FROM thread WHERE (last_at, pod_key, inbox_key, thread_key) < ($1, $4, $5, $6)
                AND last_at >= $2 AND last_at < $3
              ORDER BY last_at DESC, pod_key DESC, inbox_key DESC, thread_key DESC LIMIT $7"
        ),
        (false, true) => concat!(
            "SELECT ",
            columns!(),
            " FROM thread WHERE (last_at, pod_key, inbox_key, thread_key) > ($1, $4, $5, $6)
                AND last_at >= $2 AND last_at < $3 ORDER BY last_at, pod_key, inbox_key, thread_key LIMIT $7"
        ),
    };
    let [pod, inbox_key, thread] = start.key;
    let (pod, inbox_key) = inbox.map_or((pod, inbox_key), |i| (i.pod, i.inbox));
    let args = [
        start.at.into(),
        since.into(),
        until.into(),
        pod.into(),
        inbox_key.into(),
        thread.into(),
        limit.into(),
    ];
    tx.rows(sql, &args).await?.iter().map(from_row).collect()
}

/// Where a thread stands in `page`'s order.
pub fn place(thread: &Thread) -> Place {
    Place {
        at: thread.last_at,
        key: [thread.inbox.pod, thread.inbox.inbox, thread.thread_key],
        text: String::new(),
    }
}

/// Notes that `address` took part.
pub(crate) async fn add_participant(
    tx: &mut Tx,
    inbox: InboxKey,
    thread_key: i64,
    address: &str,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO participant (pod_key, inbox_key, thread_key, address, last_at) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (pod_key, inbox_key, thread_key, address) DO UPDATE SET last_at = excluded.last_at",
        &[inbox.pod.into(), inbox.inbox.into(), thread_key.into(), address.into(), tx.now().into()],
    )
    .await?;
    Ok(())
}

pub(crate) async fn took_part(
    tx: &mut Tx,
    inbox: InboxKey,
    thread_key: i64,
    address: &str,
) -> Result<bool, StoreError> {
    let row = tx
        .row(
            "SELECT 1 FROM participant WHERE pod_key = $1 AND inbox_key = $2 AND thread_key = $3 AND address = $4",
            &[inbox.pod.into(), inbox.inbox.into(), thread_key.into(), address.into()],
        )
        .await?;
    Ok(row.is_some())
}

/// The latest thread with this base subject in which `address` took part since `since`.
pub(crate) async fn by_subject(
    tx: &mut Tx,
    inbox: InboxKey,
    address: &str,
    base_subject: &str,
    since: Millis,
) -> Result<Option<i64>, StoreError> {
    let row = tx
        .row(
            "SELECT p.thread_key FROM (
                 SELECT thread_key, last_at FROM participant
                 WHERE pod_key = $1 AND inbox_key = $2 AND address = $3 AND last_at >= $4
                 ORDER BY last_at DESC LIMIT 200) AS p
             JOIN thread t ON t.pod_key = $1 AND t.inbox_key = $2 AND t.thread_key = p.thread_key
             WHERE t.base_subject = $5 ORDER BY p.last_at DESC LIMIT 1",
            &[inbox.pod.into(), inbox.inbox.into(), address.into(), since.into(), base_subject.into()],
        )
        .await?;
    row.map(|row| row.get(0)).transpose()
}

/// Threads that wait for any of these Message-IDs, as (id, thread).
pub(crate) async fn waiting_for(
    tx: &mut Tx,
    inbox: InboxKey,
    ids: &[String],
) -> Result<Vec<(String, i64)>, StoreError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let sql = tx.either(
        "SELECT rfc_message_id, thread_key FROM missing_parent WHERE pod_key = $1 AND inbox_key = $2
           AND rfc_message_id IN (SELECT value FROM json_each($3)) ORDER BY thread_key LIMIT 100",
        "SELECT rfc_message_id, thread_key FROM missing_parent WHERE pod_key = $1 AND inbox_key = $2
           AND rfc_message_id = ANY (ARRAY(SELECT json_array_elements_text($3::json))) ORDER BY thread_key LIMIT 100",
    );
    let rows = tx.rows(sql, &[inbox.pod.into(), inbox.inbox.into(), to_json(&ids)?.into()]).await?;
    rows.iter().map(|row| Ok((row.get(0)?, row.get(1)?))).collect()
}

pub(crate) async fn add_missing_parent(
    tx: &mut Tx,
    inbox: InboxKey,
    rfc_message_id: &str,
    thread_key: i64,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO missing_parent (pod_key, inbox_key, rfc_message_id, thread_key) VALUES ($1, $2, $3, $4)
         ON CONFLICT DO NOTHING",
        &[inbox.pod.into(), inbox.inbox.into(), rfc_message_id.into(), thread_key.into()],
    )
    .await?;
    Ok(())
}

pub(crate) async fn remove_missing_parent(
    tx: &mut Tx,
    inbox: InboxKey,
    rfc_message_id: &str,
) -> Result<(), StoreError> {
    tx.execute(
        "DELETE FROM missing_parent WHERE pod_key = $1 AND inbox_key = $2 AND rfc_message_id = $3",
        &[inbox.pod.into(), inbox.inbox.into(), rfc_message_id.into()],
    )
    .await?;
    Ok(())
}
