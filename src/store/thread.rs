//! Threads: the conversations of an inbox, with the figures that a listing shows kept up to date.

use std::collections::HashMap;

use super::message::{from_json, to_json};
use super::page::Place;
use super::{Row, StoreError, Tx};
use crate::clock::Millis;
use crate::ids::{InboxKey, Prefix, RowId};
use crate::principal::Scope;

/// Senders, recipients and attachments that a thread lists; a thread of 10,000 messages costs no more to
/// update than one of ten.
pub(crate) const MAX_LISTED: usize = 50;
/// Octets of each of them: an address has at most 254 (RFC 5321 §4.5.3.1), and a name stands before it.
pub(crate) const MAX_LISTED_OCTETS: usize = 400;

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
    within: Scope,
    start: &Place,
    ascending: bool,
    (since, until): (Millis, Millis),
    limit: i64,
) -> Result<Vec<Thread>, StoreError> {
    let one = matches!(within, Scope::Inbox(_));
    let sql = match (one, ascending) {
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
                AND last_at >= $2 AND last_at < $3 AND ($8 = 0 OR pod_key = $8)
              ORDER BY last_at DESC, pod_key DESC, inbox_key DESC, thread_key DESC LIMIT $7"
        ),
        (false, true) => concat!(
            "SELECT ",
            columns!(),
            " FROM thread WHERE (last_at, pod_key, inbox_key, thread_key) > ($1, $4, $5, $6)
                AND last_at >= $2 AND last_at < $3 AND ($8 = 0 OR pod_key = $8) ORDER BY last_at, pod_key, inbox_key, thread_key LIMIT $7"
        ),
    };
    let [pod, inbox_key, thread] = start.key;
    let (pod, inbox_key) = if one { within.numbers() } else { (pod, inbox_key) };
    let mut args = vec![
        start.at.into(),
        since.into(),
        until.into(),
        pod.into(),
        inbox_key.into(),
        thread.into(),
        limit.into(),
    ];
    if !one {
        args.push(within.numbers().0.into());
    }
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

/// Notes that these took part: addresses, and lists under the name that threading gives them. `verified`: the mail
/// that says so is.
pub(crate) async fn add_participants(
    tx: &mut Tx,
    inbox: InboxKey,
    thread_key: i64,
    who: &[String],
    verified: bool,
) -> Result<(), StoreError> {
    if who.is_empty() {
        return Ok(());
    }
    let sql = tx.either(
        "INSERT INTO participant (pod_key, inbox_key, thread_key, address, last_at, verified)
         SELECT $1, $2, $3, value, $5, $6 FROM json_each($4) WHERE true
         ON CONFLICT (pod_key, inbox_key, thread_key, address) DO UPDATE SET last_at = excluded.last_at,
             verified = CASE WHEN excluded.verified = 1 THEN 1 ELSE participant.verified END",
        "INSERT INTO participant (pod_key, inbox_key, thread_key, address, last_at, verified)
         SELECT $1::bigint, $2::bigint, $3::bigint, value, $5::bigint, $6::bigint
         FROM (SELECT DISTINCT value FROM json_array_elements_text($4::json)) AS who
         ON CONFLICT (pod_key, inbox_key, thread_key, address) DO UPDATE SET last_at = excluded.last_at,
             verified = CASE WHEN excluded.verified = 1 THEN 1 ELSE participant.verified END",
    );
    let args = [
        inbox.pod.into(),
        inbox.inbox.into(),
        thread_key.into(),
        to_json(&who)?.into(),
        tx.now().into(),
        i64::from(verified).into(),
    ];
    tx.execute(sql, &args).await?;
    Ok(())
}

/// A message of the inbox, or a thread's name, that a new message has named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Relative {
    /// A Message-ID in angle brackets, or one of the other names that threads have.
    pub name: String,
    pub thread_key: i64,
    /// Whether the asker took part in the thread.
    pub took_part: bool,
    /// The message that has this Message-ID; of a name, the message that brought it.
    pub message_key: Option<i64>,
    /// `None`: the thread only has this name, a Message-ID that it waits for among others.
    pub known: Option<Known>,
}

/// What threading asks of a message that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    /// Made by this server, with an id of 128 random bits.
    pub ours: bool,
    pub body_hash: Vec<u8>,
    pub duplicate_of: Option<i64>,
    /// Policy keeps it back.
    pub held: bool,
    pub size: i64,
    pub verified_sender: Option<String>,
    /// It names the author that the asker names, and sends answers nowhere else.
    pub same_author: bool,
}

/// Who asks what is known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asker<'a> {
    /// As whom it may have taken part.
    pub author: Option<&'a str>,
    pub list: Option<&'a str>,
    /// As whom it took part in what it cites, and in nothing else.
    pub cites_as: Option<&'a str>,
    /// The author that it names, believed or not: as `message.from_address`, or else `from_text`.
    pub named: &'a str,
    /// As `message.reply_to_text`.
    pub reply_to: &'a [String],
}

/// Everything that is known here by any of these names, in one statement: messages by their Message-ID, threads
/// by their names, and whether the asker took part. Of many with one name the ten oldest and the ten newest, so
/// that a flood under one name costs nobody anything.
pub(crate) async fn relatives(
    tx: &mut Tx,
    inbox: InboxKey,
    names: &[String],
    asker: Asker<'_>,
) -> Result<Vec<Relative>, StoreError> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let sql = tx.either(
        "SELECT j.value, m.thread_key, m.message_key, m.direction, m.body_hash, m.duplicate_of, m.held, m.size,
                m.verified_sender,
                CASE WHEN COALESCE(m.from_address, m.from_text) = $7 AND m.reply_to_text IN ('[]', $8)
                     THEN 1 ELSE 0 END,
                (SELECT count(*) FROM participant p WHERE p.pod_key = $1 AND p.inbox_key = $2
                    AND p.thread_key = m.thread_key AND p.address IN ($4, $5, $6))
         FROM json_each($3) j CROSS JOIN message m
         WHERE m.pod_key = $1 AND m.inbox_key = $2 AND m.message_key IN (
             SELECT * FROM (SELECT message_key FROM message WHERE pod_key = $1 AND inbox_key = $2
                            AND rfc_message_id = j.value ORDER BY message_key LIMIT 10)
             UNION SELECT * FROM (SELECT message_key FROM message WHERE pod_key = $1 AND inbox_key = $2
                            AND rfc_message_id = j.value ORDER BY message_key DESC LIMIT 10))
         UNION ALL
         SELECT j.value, n.thread_key, n.message_key, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
                (SELECT count(*) FROM participant p WHERE p.pod_key = $1 AND p.inbox_key = $2
                    AND p.thread_key = n.thread_key AND p.address IN ($4, $5))
         FROM json_each($3) j CROSS JOIN thread_name n
         WHERE n.pod_key = $1 AND n.inbox_key = $2 AND n.name = j.value AND n.thread_key IN (
             SELECT * FROM (SELECT thread_key FROM thread_name WHERE pod_key = $1 AND inbox_key = $2
                            AND name = j.value ORDER BY thread_key LIMIT 10)
             UNION SELECT * FROM (SELECT thread_key FROM thread_name WHERE pod_key = $1 AND inbox_key = $2
                            AND name = j.value ORDER BY thread_key DESC LIMIT 10))",
        // Each name is looked up by itself: for all at once the planner likes to walk the whole inbox.
        "SELECT j.name, m.thread_key, m.message_key, m.direction, m.body_hash, m.duplicate_of, m.held, m.size,
                m.verified_sender, m.same_author,
                (SELECT count(*) FROM participant p WHERE p.pod_key = $1 AND p.inbox_key = $2
                    AND p.thread_key = m.thread_key AND p.address IN ($4, $5, $6))
         FROM json_array_elements_text($3::json) AS j(name) CROSS JOIN LATERAL (
             (SELECT thread_key, message_key, direction, body_hash, duplicate_of, held, size, verified_sender,
                     CAST(CASE WHEN COALESCE(from_address, from_text) = $7 AND reply_to_text IN ('[]', $8)
                               THEN 1 ELSE 0 END AS BIGINT) AS same_author FROM message
              WHERE pod_key = $1 AND inbox_key = $2 AND rfc_message_id = j.name
              ORDER BY rfc_message_id, message_key LIMIT 10)
             UNION (SELECT thread_key, message_key, direction, body_hash, duplicate_of, held, size, verified_sender,
                     CAST(CASE WHEN COALESCE(from_address, from_text) = $7 AND reply_to_text IN ('[]', $8)
                               THEN 1 ELSE 0 END AS BIGINT) AS same_author FROM message
              WHERE pod_key = $1 AND inbox_key = $2 AND rfc_message_id = j.name
              ORDER BY rfc_message_id DESC, message_key DESC LIMIT 10)) AS m
         UNION ALL
         SELECT j.name, n.thread_key, n.message_key, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
                (SELECT count(*) FROM participant p WHERE p.pod_key = $1 AND p.inbox_key = $2
                    AND p.thread_key = n.thread_key AND p.address IN ($4, $5))
         FROM json_array_elements_text($3::json) AS j(name) CROSS JOIN LATERAL (
             (SELECT thread_key, message_key FROM thread_name
              WHERE pod_key = $1 AND inbox_key = $2 AND name = j.name ORDER BY name, thread_key LIMIT 10)
             UNION (SELECT thread_key, message_key FROM thread_name
              WHERE pod_key = $1 AND inbox_key = $2 AND name = j.name
              ORDER BY name DESC, thread_key DESC LIMIT 10)) AS n",
    );
    let args = [
        inbox.pod.into(),
        inbox.inbox.into(),
        to_json(&names)?.into(),
        asker.author.map(str::to_owned).into(),
        asker.list.map(str::to_owned).into(),
        asker.cites_as.map(str::to_owned).into(),
        asker.named.into(),
        to_json(&asker.reply_to)?.into(),
    ];
    let mut found: Vec<Relative> =
        tx.rows(sql, &args).await?.iter().map(relative).collect::<Result<_, StoreError>>()?;
    found.sort_by_key(|relative| (relative.known.is_none(), relative.message_key, relative.thread_key));
    Ok(found)
}

fn relative(row: &Row) -> Result<Relative, StoreError> {
    let direction: Option<String> = row.get(3)?;
    let known = match direction {
        Some(direction) => Some(Known {
            ours: direction == "out",
            body_hash: row.get(4)?,
            duplicate_of: row.get(5)?,
            held: row.get::<Option<String>>(6)?.is_some(),
            size: row.get(7)?,
            verified_sender: row.get(8)?,
            same_author: row.get(9)?,
        }),
        None => None,
    };
    Ok(Relative {
        name: row.get(0)?,
        thread_key: row.get(1)?,
        message_key: row.get(2)?,
        took_part: row.get(10)?,
        known,
    })
}

/// The latest thread with this base subject in which `address` took part since `since`. Where its mail was verified
/// since then, in whatever thread, mail that is not leads nowhere.
pub(crate) async fn by_subject(
    tx: &mut Tx,
    inbox: InboxKey,
    (address, verified): (&str, bool),
    base_subject: &str,
    since: Millis,
) -> Result<Option<i64>, StoreError> {
    let row = tx
        .row(
            "WITH p AS (
                 SELECT thread_key, last_at, verified FROM participant
                 WHERE pod_key = $1 AND inbox_key = $2 AND address = $3 AND last_at >= $4
                 ORDER BY last_at DESC LIMIT 200)
             SELECT p.thread_key FROM p
             JOIN thread t ON t.pod_key = $1 AND t.inbox_key = $2 AND t.thread_key = p.thread_key
             WHERE t.base_subject = $5 AND NOT EXISTS (SELECT 1 FROM p AS q WHERE q.verified > $6)
             ORDER BY p.last_at DESC LIMIT 1",
            &[
                inbox.pod.into(),
                inbox.inbox.into(),
                address.into(),
                since.into(),
                base_subject.into(),
                i64::from(verified).into(),
            ],
        )
        .await?;
    row.map(|row| row.get(0)).transpose()
}

/// Gives the thread these names, for who will use them later.
pub(crate) async fn add_names(
    tx: &mut Tx,
    inbox: InboxKey,
    thread_key: i64,
    message_key: i64,
    names: &[&str],
) -> Result<(), StoreError> {
    if names.is_empty() {
        return Ok(());
    }
    let sql = tx.either(
        "INSERT INTO thread_name (pod_key, inbox_key, name, thread_key, message_key)
         SELECT $1, $2, value, $4, $5 FROM json_each($3) WHERE true ON CONFLICT DO NOTHING",
        "INSERT INTO thread_name (pod_key, inbox_key, name, thread_key, message_key)
         SELECT $1::bigint, $2::bigint, value, $4::bigint, $5::bigint FROM json_array_elements_text($3::json)
         ON CONFLICT DO NOTHING",
    );
    let args = [
        inbox.pod.into(),
        inbox.inbox.into(),
        to_json(&names)?.into(),
        thread_key.into(),
        message_key.into(),
    ];
    tx.execute(sql, &args).await?;
    Ok(())
}

/// The message of this Message-ID has come: nobody waits for it any more.
pub(crate) async fn forget_name(tx: &mut Tx, inbox: InboxKey, name: &str) -> Result<(), StoreError> {
    tx.execute(
        "DELETE FROM thread_name WHERE pod_key = $1 AND inbox_key = $2 AND name = $3",
        &[inbox.pod.into(), inbox.inbox.into(), name.into()],
    )
    .await?;
    Ok(())
}

/// One message of a conversation, as far as loops are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turn {
    pub at: Millis,
    /// The inbox sent it.
    pub ours: bool,
    /// From outside, by a person as far as it says, and handed out.
    pub by_person: bool,
}

/// The messages of a thread since then, newest first, among its `newest` last ones: a long thread costs no more.
pub(crate) async fn turns(
    tx: &mut Tx,
    inbox: InboxKey,
    thread_key: i64,
    since: Millis,
    newest: i64,
) -> Result<Vec<Turn>, StoreError> {
    let rows = tx
        .rows(
            "SELECT created_at, CASE WHEN direction = 'out' THEN 1 ELSE 0 END,
                    CASE WHEN direction = 'in' AND coalesce(kind, 'person') = 'person' AND held IS NULL
                          AND duplicate_of IS NULL AND reverse_path IS NOT NULL
                          AND coalesce(verdict, '') NOT LIKE '%\"source\":\"local\"%' THEN 1 ELSE 0 END
             FROM (SELECT message_key, created_at, direction, kind, held, duplicate_of, reverse_path, verdict
                   FROM message WHERE pod_key = $1 AND inbox_key = $2 AND thread_key = $3
                   ORDER BY message_key DESC LIMIT $5) newest
             WHERE created_at > $4 ORDER BY message_key DESC",
            &[inbox.pod.into(), inbox.inbox.into(), thread_key.into(), since.into(), newest.into()],
        )
        .await?;
    let turn = |row: &Row| Ok(Turn { at: row.get(0)?, ours: row.get(1)?, by_person: row.get(2)? });
    rows.iter().map(turn).collect()
}
