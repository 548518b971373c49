//! Labels of a message change: the thread's union with them, and the mailbox where IMAP sees the message.
//! `trash` and `spam` are moves (DESIGN.md §3); every other label is a keyword.

use super::inbox::{MAILBOX_INBOX, MAILBOX_JUNK, MAILBOX_SENT, MAILBOX_TRASH};
use super::message::{Direction, Message, from_json, to_json};
use super::{StoreError, Tx, inbox, message};

/// Labels of what is kept back. A thread has them only while all of its messages are.
pub const KEPT_BACK: [&str; 3] = ["spam", "blocked", "unauthenticated"];

/// Sets labels on and off a message that was read in this transaction; what is to go wins. `None` where the inbox
/// is gone.
pub async fn change(
    tx: &mut Tx,
    message: &Message,
    add: &[String],
    remove: &[String],
) -> Result<Option<Vec<String>>, StoreError> {
    let mut labels = message.labels.clone();
    labels.extend(add.iter().filter(|l| !message.labels.contains(l)).cloned());
    labels.retain(|label| !remove.contains(label));
    let mut seen = std::collections::BTreeSet::new();
    labels.retain(|label| seen.insert(label.clone()));
    if labels == message.labels {
        return Ok(Some(labels));
    }
    let Some(reserved) = inbox::reserve(tx, message.inbox, 1).await? else { return Ok(None) };
    message::set_labels(tx, message.inbox, message.message_key, &labels, reserved.modseq).await?;
    let (was, is) = (mailbox_of(message.direction, &message.labels), mailbox_of(message.direction, &labels));
    if was != is {
        move_to(tx, message, is, reserved.modseq).await?;
    }
    unite(tx, message).await?;
    Ok(Some(labels))
}

fn mailbox_of(direction: Direction, labels: &[String]) -> i64 {
    let has = |label: &str| labels.iter().any(|l| l == label);
    match direction {
        _ if has("trash") => MAILBOX_TRASH,
        _ if has("spam") || has("blocked") => MAILBOX_JUNK,
        Direction::In => MAILBOX_INBOX,
        Direction::Out => MAILBOX_SENT,
    }
}

/// Out of every mailbox, each leaving a tombstone (RFC 7162 §3.2.10), and into one.
async fn move_to(tx: &mut Tx, message: &Message, mailbox: i64, modseq: i64) -> Result<(), StoreError> {
    let (pod, inbox) = (message.inbox.pod, message.inbox.inbox);
    let placed = tx
        .rows(
            "DELETE FROM placement WHERE pod_key = $1 AND inbox_key = $2 AND message_key = $3 RETURNING mailbox_key, uid",
            &[pod.into(), inbox.into(), message.message_key.into()],
        )
        .await?;
    for row in placed {
        let (from, uid): (i64, i64) = (row.get(0)?, row.get(1)?);
        tx.execute(
            "INSERT INTO tombstone (pod_key, inbox_key, mailbox_key, uid, modseq) VALUES ($1, $2, $3, $4, $5)",
            &[pod.into(), inbox.into(), from.into(), uid.into(), modseq.into()],
        )
        .await?;
        tx.execute(
            "UPDATE mailbox SET modseq = $4 WHERE pod_key = $1 AND inbox_key = $2 AND mailbox_key = $3",
            &[pod.into(), inbox.into(), from.into(), modseq.into()],
        )
        .await?;
    }
    inbox::place(tx, message.inbox, mailbox, message.message_key, modseq).await?;
    Ok(())
}

/// The thread has every label that one of its messages has, in order of appearance; those of what is kept back only
/// where each message has one, since they hide the thread.
async fn unite(tx: &mut Tx, message: &Message) -> Result<(), StoreError> {
    let thread = [message.inbox.pod.into(), message.inbox.inbox.into(), message.thread_key.into()];
    let rows = tx
        .rows(
            "SELECT labels FROM message WHERE pod_key = $1 AND inbox_key = $2 AND thread_key = $3
             GROUP BY labels ORDER BY min(message_key) LIMIT 10000",
            &thread,
        )
        .await?;
    let mut union: Vec<String> = Vec::new();
    let mut all_kept_back = true;
    for row in rows {
        let labels = from_json::<Vec<String>>(&row.get::<String>(0)?)?;
        all_kept_back &= labels.iter().any(|l| KEPT_BACK.contains(&l.as_str()));
        for label in labels {
            if !union.contains(&label) {
                union.push(label);
            }
        }
    }
    if !all_kept_back {
        union.retain(|label| !KEPT_BACK.contains(&label.as_str()));
    }
    let [pod, inbox, thread] = thread;
    tx.execute(
        "UPDATE thread SET labels = $4, updated_at = $5 WHERE pod_key = $1 AND inbox_key = $2 AND thread_key = $3",
        &[pod, inbox, thread, to_json(&union)?.into(), tx.now().into()],
    )
    .await?;
    Ok(())
}
