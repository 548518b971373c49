//! Messages, in and out, with everything a listing shows; their octets are in `body`.

use std::collections::HashMap;

use super::held::{Held, PolicyNote};
use super::{Row, StoreError, Tx, Value};
use crate::clock::Millis;
use crate::ids::{InboxKey, Prefix, RowId};
use crate::screen::codes::Code;
use crate::screen::kind::Kind;
use crate::screen::structure::Structure;
use crate::verify::verdict::Verdict;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    In,
    Out,
}

/// A message as it is stored.
#[derive(Debug, Clone)]
pub struct Message {
    pub inbox: InboxKey,
    pub message_key: i64,
    pub thread_key: i64,
    pub direction: Direction,
    /// `received`; of outbound messages the proposal's state: `queued`, …
    pub state: String,
    /// With angle brackets.
    pub rfc_message_id: Option<String>,
    pub duplicate_of: Option<i64>,
    /// An earlier message of the inbox has the same Message-ID.
    pub id_taken: bool,
    /// SHA-256 of the body.
    pub body_hash: Vec<u8>,
    /// The forward-path that it came by, tag included.
    pub reached_by: Option<String>,
    pub reverse_path: Option<String>,
    pub from_address: Option<String>,
    pub from_text: String,
    pub to: Vec<String>,
    pub cc: Vec<String>,
    pub bcc: Vec<String>,
    pub reply_to: Vec<String>,
    pub subject: Option<String>,
    pub preview: Option<String>,
    pub labels: Vec<String>,
    pub structure: Structure,
    /// `None` on what we send.
    pub kind: Option<Kind>,
    pub codes: Vec<Code>,
    pub verdict: Option<Verdict>,
    pub verified_sender: Option<String>,
    pub size: i64,
    pub run_id: Option<String>,
    pub key_id: Option<i64>,
    /// Why it is not handed out; `None` for ordinary mail.
    pub held: Option<Held>,
    /// What policy said of it, and what somebody decided since.
    pub policy: Option<PolicyNote>,
    /// It came, or is to go, with REQUIRETLS (RFC 8689).
    pub require_tls: bool,
    pub modseq: i64,
    pub created_at: Millis,
    pub updated_at: Millis,
}

impl Message {
    /// The id that is safe in every path: `msg_…`.
    pub fn id(&self) -> String {
        RowId { at: self.created_at, inbox: self.inbox, seq: self.message_key }.text(Prefix::Message)
    }

    /// The server wrote it by itself: nobody's key sent it.
    pub fn is_by_server(&self) -> bool {
        self.direction == Direction::Out && self.key_id.is_none()
    }

    /// The `message_id` of the API: the RFC Message-ID where it is unique here and survives a path unencoded
    /// (the Python SDK encodes nothing), else our own id.
    pub fn public_id(&self) -> String {
        let own = RowId { at: self.created_at, inbox: self.inbox, seq: self.message_key };
        public_id(self.rfc_message_id.as_deref(), self.id_taken, own)
    }
}

fn public_id(rfc_message_id: Option<&str>, id_taken: bool, own: RowId) -> String {
    match rfc_message_id {
        Some(id) if !id_taken && survives_a_path(id) => id.to_owned(),
        _ => own.text(Prefix::Message),
    }
}

/// reference/agentmail-api.md §1.4: `/` splits, `?` and `#` cut, `%` is ambiguous.
fn survives_a_path(id: &str) -> bool {
    id.len() <= 250
        && id.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b'?' | b'#' | b'%' | b'\\'))
}

/// Column list and order of `from_row`.
macro_rules! columns {
    () => {
        "pod_key, inbox_key, message_key, thread_key, direction, state, rfc_message_id, duplicate_of, body_hash,
         reached_by, reverse_path, from_address, from_text, to_text, cc_text, bcc_text, reply_to_text, subject,
         preview, labels, structure, verdict, verified_sender, size, run_id, key_id, modseq, created_at, updated_at, id_taken,
         kind, codes, held, policy, require_tls"
    };
}

pub(crate) fn from_row(row: &Row) -> Result<Message, StoreError> {
    let direction: String = row.get(4)?;
    let verdict: Option<String> = row.get(21)?;
    let kind: Option<String> = row.get(30)?;
    let codes: Option<String> = row.get(31)?;
    let (held, policy): (Option<String>, Option<String>) = (row.get(32)?, row.get(33)?);
    Ok(Message {
        inbox: InboxKey { pod: row.get(0)?, inbox: row.get(1)? },
        message_key: row.get(2)?,
        thread_key: row.get(3)?,
        direction: if direction == "out" { Direction::Out } else { Direction::In },
        state: row.get(5)?,
        rfc_message_id: row.get(6)?,
        duplicate_of: row.get(7)?,
        body_hash: row.get(8)?,
        reached_by: row.get(9)?,
        reverse_path: row.get(10)?,
        from_address: row.get(11)?,
        from_text: row.get(12)?,
        to: from_json(&row.get::<String>(13)?)?,
        cc: from_json(&row.get::<String>(14)?)?,
        bcc: from_json(&row.get::<String>(15)?)?,
        reply_to: from_json(&row.get::<String>(16)?)?,
        subject: row.get(17)?,
        preview: row.get(18)?,
        labels: from_json(&row.get::<String>(19)?)?,
        structure: from_json(&row.get::<String>(20)?)?,
        verdict: verdict.as_deref().map(from_json).transpose()?,
        verified_sender: row.get(22)?,
        size: row.get(23)?,
        run_id: row.get(24)?,
        key_id: row.get(25)?,
        held: held.as_deref().and_then(Held::parse),
        policy: policy.as_deref().map(from_json).transpose()?,
        require_tls: row.get(34)?,
        modseq: row.get(26)?,
        created_at: row.get(27)?,
        updated_at: row.get(28)?,
        id_taken: row.get(29)?,
        kind: kind.as_deref().and_then(Kind::parse),
        codes: codes.as_deref().map(from_json).transpose()?.unwrap_or_default(),
    })
}

pub(crate) fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|e| StoreError::Damaged(e.to_string()))
}

pub(crate) fn to_json<T: serde::Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|e| StoreError::Damaged(e.to_string()))
}

pub async fn insert(tx: &mut Tx, message: &Message) -> Result<(), StoreError> {
    tx.execute(
        concat!(
            "INSERT INTO message (",
            columns!(),
            ", dated_at, unparsed) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16,
             $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37)"
        ),
        &[
            message.inbox.pod.into(),
            message.inbox.inbox.into(),
            message.message_key.into(),
            message.thread_key.into(),
            (if message.direction == Direction::Out { "out" } else { "in" }).into(),
            (&message.state).into(),
            message.rfc_message_id.clone().into(),
            message.duplicate_of.into(),
            message.body_hash.clone().into(),
            message.reached_by.clone().into(),
            message.reverse_path.clone().into(),
            message.from_address.clone().into(),
            (&message.from_text).into(),
            to_json(&message.to)?.into(),
            to_json(&message.cc)?.into(),
            to_json(&message.bcc)?.into(),
            to_json(&message.reply_to)?.into(),
            message.subject.clone().into(),
            message.preview.clone().into(),
            to_json(&message.labels)?.into(),
            to_json(&message.structure)?.into(),
            Value::Text(message.verdict.as_ref().map(to_json).transpose()?),
            message.verified_sender.clone().into(),
            message.size.into(),
            message.run_id.clone().into(),
            message.key_id.into(),
            message.modseq.into(),
            message.created_at.into(),
            message.updated_at.into(),
            message.id_taken.into(),
            message.kind.map(Kind::word).into(),
            Value::Text(if message.codes.is_empty() { None } else { Some(to_json(&message.codes)?) }),
            message.held.map(Held::text).into(),
            Value::Text(message.policy.as_ref().map(to_json).transpose()?),
            message.require_tls.into(),
            message.structure.date.into(),
            message.structure.unparsed.is_some().into(),
        ],
    )
    .await?;
    Ok(())
}

pub async fn by_key(tx: &mut Tx, inbox: InboxKey, message_key: i64) -> Result<Option<Message>, StoreError> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM message WHERE pod_key = $1 AND inbox_key = $2 AND message_key = $3"
    );
    let args = [inbox.pod.into(), inbox.inbox.into(), message_key.into()];
    tx.row(sql, &args).await?.as_ref().map(from_row).transpose()
}

/// By any of its ids: `msg_…` or the RFC Message-ID, with or without angle brackets. Of several messages with
/// one Message-ID, the first.
pub async fn by_public_id(tx: &mut Tx, inbox: InboxKey, id: &str) -> Result<Option<Message>, StoreError> {
    if let Some(row) = RowId::parse(Prefix::Message, id) {
        let found = if row.inbox == inbox { by_key(tx, inbox, row.seq).await? } else { None };
        return Ok(found.filter(|m| m.created_at == row.at));
    }
    let bracketed = if id.starts_with('<') { id.to_owned() } else { format!("<{id}>") };
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM message WHERE pod_key = $1 AND inbox_key = $2 AND rfc_message_id = $3 ORDER BY message_key LIMIT 1"
    );
    let args = [inbox.pod.into(), inbox.inbox.into(), bracketed.into()];
    tx.row(sql, &args).await?.as_ref().map(from_row).transpose()
}

/// Messages of a thread, newest first, before `before` (a message key; `i64::MAX` for the newest).
pub async fn of_thread(
    tx: &mut Tx,
    inbox: InboxKey,
    thread_key: i64,
    before: i64,
    limit: i64,
) -> Result<Vec<Message>, StoreError> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM message WHERE pod_key = $1 AND inbox_key = $2 AND thread_key = $3 AND message_key < $4
          ORDER BY message_key DESC LIMIT $5"
    );
    let args = [inbox.pod.into(), inbox.inbox.into(), thread_key.into(), before.into(), limit.into()];
    tx.rows(sql, &args).await?.iter().map(from_row).collect()
}

/// What a filter looks at, without the rest of the row.
#[derive(Debug, Clone)]
pub struct Heading {
    pub message_key: i64,
    pub labels: Vec<String>,
    pub from: String,
    /// To, Cc and Bcc, each a JSON array.
    pub recipients: [String; 3],
    pub subject: Option<String>,
    pub kind: Option<Kind>,
}

/// Headings of an inbox's messages stored in `[since, until)`, in the order of their keys, which is the order
/// in which they were stored: newest first below `start`, or oldest first above it.
pub async fn headings(
    tx: &mut Tx,
    inbox: InboxKey,
    start: i64,
    ascending: bool,
    (since, until): (Millis, Millis),
    limit: i64,
) -> Result<Vec<Heading>, StoreError> {
    let sql = if ascending {
        "SELECT message_key, labels, from_text, to_text, cc_text, bcc_text, subject, kind FROM message
         WHERE pod_key = $1 AND inbox_key = $2 AND message_key > $3 AND created_at >= $4 AND created_at < $5
         ORDER BY message_key LIMIT $6"
    } else {
        "SELECT message_key, labels, from_text, to_text, cc_text, bcc_text, subject, kind FROM message
         WHERE pod_key = $1 AND inbox_key = $2 AND message_key < $3 AND created_at >= $4 AND created_at < $5
         ORDER BY message_key DESC LIMIT $6"
    };
    let args = [inbox.pod.into(), inbox.inbox.into(), start.into(), since.into(), until.into(), limit.into()];
    let rows = tx.rows(sql, &args).await?;
    rows.iter()
        .map(|row| {
            Ok(Heading {
                message_key: row.get(0)?,
                labels: from_json(&row.get::<String>(1)?)?,
                from: row.get(2)?,
                recipients: [row.get(3)?, row.get(4)?, row.get(5)?],
                subject: row.get(6)?,
                kind: row.get::<Option<String>>(7)?.as_deref().and_then(Kind::parse),
            })
        })
        .collect()
}

/// The messages of these keys, oldest first.
pub async fn by_keys(tx: &mut Tx, inbox: InboxKey, keys: &[i64]) -> Result<Vec<Message>, StoreError> {
    let sql = tx.either(
        concat!(
            "SELECT ",
            columns!(),
            " FROM message WHERE pod_key = $1 AND inbox_key = $2
                AND message_key IN (SELECT value FROM json_each($3)) ORDER BY message_key"
        ),
        concat!(
            "SELECT ",
            columns!(),
            " FROM message WHERE pod_key = $1 AND inbox_key = $2
                AND message_key = ANY (ARRAY(SELECT json_array_elements_text($3::json)::bigint)) ORDER BY message_key"
        ),
    );
    let args = [inbox.pod.into(), inbox.inbox.into(), to_json(&keys)?.into()];
    tx.rows(sql, &args).await?.iter().map(from_row).collect()
}

/// The public ids of the messages of these keys.
pub async fn public_ids(
    tx: &mut Tx,
    inbox: InboxKey,
    keys: &[i64],
) -> Result<HashMap<i64, String>, StoreError> {
    if keys.is_empty() {
        return Ok(HashMap::new());
    }
    let sql = tx.either(
        "SELECT message_key, rfc_message_id, id_taken, created_at FROM message
         WHERE pod_key = $1 AND inbox_key = $2 AND message_key IN (SELECT value FROM json_each($3))",
        "SELECT message_key, rfc_message_id, id_taken, created_at FROM message
         WHERE pod_key = $1 AND inbox_key = $2
           AND message_key = ANY (ARRAY(SELECT json_array_elements_text($3::json)::bigint))",
    );
    let args = [inbox.pod.into(), inbox.inbox.into(), to_json(&keys)?.into()];
    let rows = tx.rows(sql, &args).await?;
    rows.iter()
        .map(|row| {
            let seq: i64 = row.get(0)?;
            let rfc: Option<String> = row.get(1)?;
            let own = RowId { at: row.get(3)?, inbox, seq };
            Ok((seq, public_id(rfc.as_deref(), row.get(2)?, own)))
        })
        .collect()
}

/// What a work item asks its worker to look at: messages from others that no finished item covers and nobody
/// holds back, oldest first.
pub async fn unhandled(
    tx: &mut Tx,
    inbox: InboxKey,
    thread_key: i64,
    limit: i64,
) -> Result<Vec<Message>, StoreError> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM message WHERE pod_key = $1 AND inbox_key = $2 AND thread_key = $3 AND direction = 'in'
            AND handled <> 1 AND held IS NULL AND duplicate_of IS NULL ORDER BY message_key LIMIT $4"
    );
    let args = [inbox.pod.into(), inbox.inbox.into(), thread_key.into(), limit.into()];
    tx.rows(sql, &args).await?.iter().map(from_row).collect()
}

/// The work item of the thread is finished: what arrived until `until` needs no more attention. What was released
/// while the item was claimed (2) came before that and was never shown: it is news from here on (0).
pub(crate) async fn mark_handled(
    tx: &mut Tx,
    inbox: InboxKey,
    thread_key: i64,
    until: i64,
) -> Result<(), StoreError> {
    // SQLite would walk through all messages of the thread.
    let sql = tx.either(
        "UPDATE message INDEXED BY message_unhandled SET handled = CASE handled WHEN 0 THEN 1 ELSE 0 END
         WHERE pod_key = $1 AND inbox_key = $2 AND thread_key = $3 AND message_key <= $4 AND handled <> 1
           AND held IS NULL",
        "UPDATE message SET handled = CASE handled WHEN 0 THEN 1 ELSE 0 END
         WHERE pod_key = $1 AND inbox_key = $2 AND thread_key = $3 AND message_key <= $4 AND handled <> 1
           AND held IS NULL",
    );
    tx.execute(sql, &[inbox.pod.into(), inbox.inbox.into(), thread_key.into(), until.into()]).await?;
    Ok(())
}

/// A message that makes no work for anybody (a duplicate, an echo) is never handed out.
pub(crate) async fn set_aside(tx: &mut Tx, inbox: InboxKey, message_key: i64) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE message SET handled = 1 WHERE pod_key = $1 AND inbox_key = $2 AND message_key = $3",
        &[inbox.pod.into(), inbox.inbox.into(), message_key.into()],
    )
    .await?;
    Ok(())
}

/// Replaces the labels of a message; `modseq` is a number taken with `inbox::reserve`.
pub async fn set_labels(
    tx: &mut Tx,
    inbox: InboxKey,
    message_key: i64,
    labels: &[String],
    modseq: i64,
) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE message SET labels = $4, modseq = $5, updated_at = $6
         WHERE pod_key = $1 AND inbox_key = $2 AND message_key = $3",
        &[
            inbox.pod.into(),
            inbox.inbox.into(),
            message_key.into(),
            to_json(&labels)?.into(),
            modseq.into(),
            tx.now().into(),
        ],
    )
    .await?;
    Ok(())
}

/// What arrived since `since`, newest first.
pub async fn received_since(
    tx: &mut Tx,
    inbox: InboxKey,
    since: Millis,
    limit: i64,
) -> Result<Vec<Message>, StoreError> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM (SELECT * FROM message WHERE pod_key = $1 AND inbox_key = $2 ORDER BY message_key DESC LIMIT $4)
          AS latest WHERE created_at >= $3 AND direction = 'in' ORDER BY message_key DESC"
    );
    let args = [inbox.pod.into(), inbox.inbox.into(), since.into(), limit.into()];
    tx.rows(sql, &args).await?.iter().map(from_row).collect()
}

/// What waits to be looked at, newest first, before a place; `args` are `held::page`'s.
pub(super) async fn select_held(
    tx: &mut Tx,
    of_one_inbox: bool,
    args: &[Value],
) -> Result<Vec<Message>, StoreError> {
    // In the words of the partial indexes, or the planners do not see that these fit.
    let sql = if of_one_inbox {
        concat!(
            "SELECT ",
            columns!(),
            " FROM message WHERE (created_at, pod_key, inbox_key, message_key) < ($1, $2, $3, $4)
                AND held IN ('held', 'blocked') AND pod_key = $6 AND inbox_key = $7
              ORDER BY message_key DESC LIMIT $5"
        )
    } else {
        concat!(
            "SELECT ",
            columns!(),
            " FROM message WHERE (created_at, pod_key, inbox_key, message_key) < ($1, $2, $3, $4)
                AND held IN ('held', 'blocked') AND ($6 = 0 OR pod_key = $6)
              ORDER BY created_at DESC, pod_key DESC, inbox_key DESC, message_key DESC LIMIT $5"
        )
    };
    tx.rows(sql, args).await?.iter().map(from_row).collect()
}
