//! Inboxes: the addresses of this server, each with its own counter, limits and mailboxes.

use std::collections::HashMap;

use super::policy::ReceivePolicy;
use super::{Row, StoreError, Topic, Tx};
use crate::clock::Millis;
use crate::ids::InboxKey;

/// The pod that always exists.
pub const DEFAULT_POD: i64 = 1;

/// IMAP's mailboxes of every inbox: key, name, special use (RFC 6154; Review is ours).
pub const MAILBOXES: [(i64, &str, Option<&str>); 7] = [
    (1, "INBOX", None),
    (2, "Sent", Some("\\Sent")),
    (3, "Drafts", Some("\\Drafts")),
    (4, "Trash", Some("\\Trash")),
    (5, "Junk", Some("\\Junk")),
    (6, "Archive", Some("\\Archive")),
    (7, "Review", None),
];
pub const MAILBOX_INBOX: i64 = 1;
pub const MAILBOX_SENT: i64 = 2;
pub const MAILBOX_TRASH: i64 = 4;
pub const MAILBOX_JUNK: i64 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InboxStatus {
    Active,
    /// Stores mail with its items held, and refuses to send.
    Paused,
}

impl InboxStatus {
    pub fn text(self) -> &'static str {
        match self {
            InboxStatus::Active => "active",
            InboxStatus::Paused => "paused",
        }
    }

    pub fn parse(text: &str) -> Option<InboxStatus> {
        match text {
            "active" => Some(InboxStatus::Active),
            "paused" => Some(InboxStatus::Paused),
            _ => None,
        }
    }
}

/// Recipients that may be released in any window of this length; `None` for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub per_minute: Option<i64>,
    pub per_hour: Option<i64>,
    pub per_day: Option<i64>,
    /// Addresses that the inbox has neither written to nor had verified mail from. As stored, `None` is as configured
    /// and `NO_LIMIT` is none; `gate::limits_of` settles it.
    pub new_recipients_per_day: Option<i64>,
    /// Messages to one address. As above.
    pub per_recipient_per_day: Option<i64>,
}

/// What is stored where an inbox is to have no limit, whatever is configured.
pub const NO_LIMIT: i64 = -1;

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            per_minute: None,
            per_hour: Some(200),
            per_day: Some(1_000),
            new_recipients_per_day: None,
            per_recipient_per_day: None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inbox {
    pub key: InboxKey,
    /// The `inbox_id`: lower case, domain in A-labels.
    pub address: String,
    pub domain: String,
    pub display_name: Option<String>,
    pub client_id: Option<String>,
    pub status: InboxStatus,
    /// The postmaster's: made by the server, seen by organization keys alone.
    pub operator: bool,
    /// JSON object.
    pub metadata: Option<String>,
    /// What is set about mail that comes in, here and for the domain.
    pub receive_policy: ReceivePolicy,
    pub domain_policy: ReceivePolicy,
    pub limits: Limits,
    pub created_at: Millis,
    pub updated_at: Millis,
}

/// What `create` needs; the rest has defaults.
#[derive(Debug, Clone)]
pub struct NewInbox {
    pub pod: i64,
    pub address: String,
    pub domain: String,
    pub display_name: Option<String>,
    pub client_id: Option<String>,
    pub status: InboxStatus,
    pub operator: bool,
    pub metadata: Option<String>,
}

/// Column list and order of `from_row`.
macro_rules! columns {
    () => {
        "pod_key, inbox_key, address, domain, display_name, client_id, status, operator, metadata,
         receive_policy, per_minute, per_hour, per_day, created_at, updated_at,
         (SELECT d.receive_policy FROM domain_policy AS d WHERE d.domain = inbox.domain), new_recipients_per_day,
         per_recipient_per_day"
    };
}

fn from_row(row: &Row) -> Result<Inbox, StoreError> {
    let status: String = row.get(6)?;
    Ok(Inbox {
        key: InboxKey { pod: row.get(0)?, inbox: row.get(1)? },
        address: row.get(2)?,
        domain: row.get(3)?,
        display_name: row.get(4)?,
        client_id: row.get(5)?,
        status: InboxStatus::parse(&status)
            .ok_or_else(|| StoreError::Damaged(format!("inbox status {status}")))?,
        operator: row.get(7)?,
        metadata: row.get(8)?,
        receive_policy: ReceivePolicy::read(row.get(9)?)?,
        domain_policy: ReceivePolicy::read(row.get(15)?)?,
        limits: Limits {
            per_minute: row.get(10)?,
            per_hour: row.get(11)?,
            per_day: row.get(12)?,
            new_recipients_per_day: row.get(16)?,
            per_recipient_per_day: row.get(17)?,
        },
        created_at: row.get(13)?,
        updated_at: row.get(14)?,
    })
}

/// Makes an inbox with its mailboxes. `Conflict` where the address or the client id is taken.
pub async fn create(tx: &mut Tx, new: &NewInbox) -> Result<Inbox, StoreError> {
    tx.wake(Topic::Inboxes);
    let now = tx.now();
    let limits = Limits::default();
    let rows = tx
        .rows(
            concat!(
                "INSERT INTO inbox (pod_key, address, domain, display_name, client_id, status, operator, metadata,
                                    per_minute, per_hour, per_day, created_at, updated_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12) RETURNING ",
                columns!()
            ),
            &[
                new.pod.into(),
                (&new.address).into(),
                (&new.domain).into(),
                new.display_name.clone().into(),
                new.client_id.clone().into(),
                new.status.text().into(),
                new.operator.into(),
                new.metadata.clone().into(),
                limits.per_minute.into(),
                limits.per_hour.into(),
                limits.per_day.into(),
                now.into(),
            ],
        )
        .await?;
    let inbox = rows.first().ok_or(StoreError::Closed).and_then(from_row)?;
    for (mailbox, name, special_use) in MAILBOXES {
        tx.execute(
            "INSERT INTO mailbox (pod_key, inbox_key, mailbox_key, name, special_use, uidvalidity)
             VALUES ($1, $2, $3, $4, $5, $6)",
            &[
                inbox.key.pod.into(),
                inbox.key.inbox.into(),
                mailbox.into(),
                name.into(),
                special_use.into(),
                // RFC 9051 §2.3.1.1: 32 bits, never smaller for a mailbox of the same name. Seconds do until 2106.
                (now / 1000).into(),
            ],
        )
        .await?;
    }
    Ok(inbox)
}

/// The inbox at this address (`Address::key`), if there is one now.
pub async fn by_address(tx: &mut Tx, address: &str) -> Result<Option<Inbox>, StoreError> {
    let sql = concat!("SELECT ", columns!(), " FROM inbox WHERE address = $1 AND deleted_at IS NULL");
    tx.row(sql, &[address.into()]).await?.as_ref().map(from_row).transpose()
}

pub async fn by_key(tx: &mut Tx, key: InboxKey) -> Result<Option<Inbox>, StoreError> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM inbox WHERE pod_key = $1 AND inbox_key = $2 AND deleted_at IS NULL"
    );
    tx.row(sql, &[key.pod.into(), key.inbox.into()]).await?.as_ref().map(from_row).transpose()
}

pub async fn by_client_id(tx: &mut Tx, pod: i64, client_id: &str) -> Result<Option<Inbox>, StoreError> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM inbox WHERE pod_key = $1 AND client_id = $2 AND deleted_at IS NULL"
    );
    tx.row(sql, &[pod.into(), client_id.into()]).await?.as_ref().map(from_row).transpose()
}

/// A page of inboxes, of one pod or of all, newest first; `before` is the key of the last one seen.
pub async fn page(tx: &mut Tx, pod: Option<i64>, before: i64, limit: i64) -> Result<Vec<Inbox>, StoreError> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM inbox WHERE ($1 = 0 OR pod_key = $1) AND inbox_key < $2 AND deleted_at IS NULL ORDER BY inbox_key DESC LIMIT $3"
    );
    tx.rows(sql, &[pod.unwrap_or(0).into(), before.into(), limit.into()])
        .await?
        .iter()
        .map(from_row)
        .collect()
}

/// The same, oldest first; `after` is the key of the last one seen.
pub async fn page_ascending(
    tx: &mut Tx,
    pod: Option<i64>,
    after: i64,
    limit: i64,
) -> Result<Vec<Inbox>, StoreError> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM inbox WHERE ($1 = 0 OR pod_key = $1) AND inbox_key > $2 AND deleted_at IS NULL ORDER BY inbox_key LIMIT $3"
    );
    tx.rows(sql, &[pod.unwrap_or(0).into(), after.into(), limit.into()]).await?.iter().map(from_row).collect()
}

/// The addresses of these inboxes, deleted ones included.
pub async fn addresses(tx: &mut Tx, inboxes: &[InboxKey]) -> Result<HashMap<InboxKey, String>, StoreError> {
    let mut found = HashMap::new();
    for key in inboxes {
        if found.contains_key(key) {
            continue;
        }
        let sql = "SELECT address FROM inbox WHERE pod_key = $1 AND inbox_key = $2";
        if let Some(row) = tx.row(sql, &[key.pod.into(), key.inbox.into()]).await? {
            found.insert(*key, row.get(0)?);
        }
    }
    Ok(found)
}

/// Writes what can be changed; the caller has read the rest in this transaction.
pub async fn update(tx: &mut Tx, inbox: &Inbox) -> Result<(), StoreError> {
    tx.wake(Topic::Inboxes);
    tx.execute(
        "UPDATE inbox SET display_name = $3, status = $4, metadata = $5, per_minute = $6, per_hour = $7,
                per_day = $8, updated_at = $9, new_recipients_per_day = $10, per_recipient_per_day = $11
         WHERE pod_key = $1 AND inbox_key = $2",
        &[
            inbox.key.pod.into(),
            inbox.key.inbox.into(),
            inbox.display_name.clone().into(),
            inbox.status.text().into(),
            inbox.metadata.clone().into(),
            inbox.limits.per_minute.into(),
            inbox.limits.per_hour.into(),
            inbox.limits.per_day.into(),
            tx.now().into(),
            inbox.limits.new_recipients_per_day.into(),
            inbox.limits.per_recipient_per_day.into(),
        ],
    )
    .await?;
    Ok(())
}

/// Frees the address at once. Nothing of the inbox can be reached any more; what waits to leave is canceled.
pub async fn delete(tx: &mut Tx, key: InboxKey) -> Result<(), StoreError> {
    tx.wake(Topic::Inboxes);
    let args = [key.pod.into(), key.inbox.into(), tx.now().into()];
    tx.execute(
        "UPDATE inbox SET deleted_at = $3, updated_at = $3 WHERE pod_key = $1 AND inbox_key = $2",
        &args,
    )
    .await?;
    tx.execute(
        "UPDATE delivery SET state = 'canceled', held_by = NULL, updated_at = $3
         WHERE pod_key = $1 AND inbox_key = $2 AND state IN ('due', 'deferred', 'scheduled', 'held')",
        &args,
    )
    .await?;
    tx.execute(
        "UPDATE work_item SET state = 'done', open = 0, reason = 'inbox_deleted', done_at = $3, updated_at = $3
         WHERE pod_key = $1 AND inbox_key = $2 AND open = 1",
        &args,
    )
    .await?;
    tx.execute("DELETE FROM api_key WHERE pod_key = $1 AND inbox_key = $2", &args[..2]).await?;
    tx.execute("DELETE FROM list_entry WHERE pod_key = $1 AND inbox_key = $2", &args[..2]).await?;
    Ok(())
}

/// What `reserve` learns of the inbox on its way.
#[derive(Debug, Clone)]
pub struct Reserved {
    /// The first of the numbers taken; the last is also the new MODSEQ.
    pub first: i64,
    pub modseq: i64,
    pub status: InboxStatus,
}

/// Takes `count` numbers from the inbox's counter, and with it the lock on the inbox: from here to the end of
/// the transaction nobody else delivers into it or sends from it. `None` where the inbox is gone.
pub async fn reserve(tx: &mut Tx, key: InboxKey, count: i64) -> Result<Option<Reserved>, StoreError> {
    let row = tx
        .row(
            "UPDATE inbox SET seq = seq + $3 WHERE pod_key = $1 AND inbox_key = $2 AND deleted_at IS NULL
             RETURNING seq, status",
            &[key.pod.into(), key.inbox.into(), count.into()],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    let modseq: i64 = row.get(0)?;
    let status: String = row.get(1)?;
    Ok(Some(Reserved {
        first: modseq - count + 1,
        modseq,
        status: InboxStatus::parse(&status)
            .ok_or_else(|| StoreError::Damaged(format!("inbox status {status}")))?,
    }))
}

/// Puts a message into a mailbox: its UID there.
pub async fn place(
    tx: &mut Tx,
    key: InboxKey,
    mailbox: i64,
    message_key: i64,
    modseq: i64,
) -> Result<i64, StoreError> {
    let (pod, inbox) = (key.pod.into(), key.inbox.into());
    let row = tx
        .row(
            "UPDATE mailbox SET uidnext = uidnext + 1, modseq = $4
             WHERE pod_key = $1 AND inbox_key = $2 AND mailbox_key = $3 RETURNING uidnext",
            &[pod, inbox, mailbox.into(), modseq.into()],
        )
        .await?;
    let uid =
        row.ok_or_else(|| StoreError::Damaged(format!("mailbox {mailbox} is missing")))?.get::<i64>(0)? - 1;
    tx.execute(
        "INSERT INTO placement (pod_key, inbox_key, mailbox_key, uid, message_key, modseq) VALUES ($1, $2, $3, $4, $5, $6)",
        &[key.pod.into(), key.inbox.into(), mailbox.into(), uid.into(), message_key.into(), modseq.into()],
    )
    .await?;
    Ok(uid)
}

/// The inbox, locked until the end of the transaction: nobody else sends from it or delivers into it.
pub async fn lock(tx: &mut Tx, key: InboxKey) -> Result<Option<Inbox>, StoreError> {
    let sql = tx.either(
        concat!(
            "SELECT ",
            columns!(),
            " FROM inbox WHERE pod_key = $1 AND inbox_key = $2 AND deleted_at IS NULL"
        ),
        concat!(
            "SELECT ",
            columns!(),
            " FROM inbox WHERE pod_key = $1 AND inbox_key = $2 AND deleted_at IS NULL FOR UPDATE"
        ),
    );
    tx.row(sql, &[key.pod.into(), key.inbox.into()]).await?.as_ref().map(from_row).transpose()
}

/// Those of `keys` that may not send: paused, or gone (`None`).
pub(crate) async fn not_sending(
    tx: &mut Tx,
    keys: &std::collections::BTreeSet<InboxKey>,
) -> Result<Vec<(InboxKey, Option<InboxStatus>)>, StoreError> {
    let list = super::message::to_json(&keys.iter().map(|key| key.inbox).collect::<Vec<_>>())?;
    let sql = tx.either(
        "SELECT i.pod_key, i.inbox_key, i.deleted_at IS NOT NULL FROM json_each($1) AS key CROSS JOIN inbox AS i
         WHERE i.inbox_key = key.value AND (i.status = 'paused' OR i.deleted_at IS NOT NULL) LIMIT 10000",
        "SELECT pod_key, inbox_key, (deleted_at IS NOT NULL)::int::bigint FROM inbox
         WHERE inbox_key = ANY (ARRAY(SELECT json_array_elements_text($1::json)::bigint))
           AND (status = 'paused' OR deleted_at IS NOT NULL) LIMIT 10000",
    );
    let rows = tx.rows(sql, &[list.into()]).await?;
    let found = |row: &Row| {
        let key = InboxKey { pod: row.get(0)?, inbox: row.get(1)? };
        Ok((key, (!row.get::<bool>(2)?).then_some(InboxStatus::Paused)))
    };
    rows.iter().map(found).collect()
}
