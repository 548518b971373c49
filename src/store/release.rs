//! What was released to the queue, with a running sum: how many recipients any sliding window holds is one
//! subtraction, however many were sent. Read and written under the inbox's lock, so that it is exact.

use super::{StoreError, Tx};
use crate::clock::Millis;
use crate::ids::InboxKey;

/// The end of an inbox's sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Latest {
    pub released_at: Millis,
    pub total: i64,
}

pub(crate) async fn latest(tx: &mut Tx, inbox: InboxKey) -> Result<Latest, StoreError> {
    let row = tx
        .row(
            "SELECT released_at, total FROM release WHERE pod_key = $1 AND inbox_key = $2
             ORDER BY released_at DESC, release_key DESC LIMIT 1",
            &[inbox.pod.into(), inbox.inbox.into()],
        )
        .await?;
    let Some(row) = row else { return Ok(Latest::default()) };
    Ok(Latest { released_at: row.get(0)?, total: row.get(1)? })
}

/// The sum of everything released at `cutoff` or before.
pub(crate) async fn total_until(tx: &mut Tx, inbox: InboxKey, cutoff: Millis) -> Result<i64, StoreError> {
    let row = tx
        .row(
            "SELECT total FROM release WHERE pod_key = $1 AND inbox_key = $2 AND released_at <= $3
             ORDER BY released_at DESC, release_key DESC LIMIT 1",
            &[inbox.pod.into(), inbox.inbox.into(), cutoff.into()],
        )
        .await?;
    row.map_or(Ok(0), |row| row.get(0))
}

/// When the release was made, after `since`, that brought the sum to `total`.
pub(crate) async fn reached(
    tx: &mut Tx,
    inbox: InboxKey,
    total: i64,
    since: Millis,
) -> Result<Option<Millis>, StoreError> {
    let row = tx
        .row(
            "SELECT released_at FROM release WHERE pod_key = $1 AND inbox_key = $2 AND total >= $3
               AND released_at > $4 ORDER BY released_at, release_key LIMIT 1",
            &[inbox.pod.into(), inbox.inbox.into(), total.into(), since.into()],
        )
        .await?;
    row.map(|row| row.get(0)).transpose()
}

/// Recipients that never left, and of which nobody was dialled, are given back. Where the caller has not locked the
/// inbox, a release at the same moment may count them still: too much, never too little.
pub(crate) async fn give_back_some(
    tx: &mut Tx,
    inbox: InboxKey,
    message_key: i64,
    recipients: i64,
) -> Result<(), StoreError> {
    let args = [inbox.pod.into(), inbox.inbox.into(), message_key.into(), recipients.into()];
    tx.execute(
        "UPDATE release SET total = total - $4 WHERE pod_key = $1 AND inbox_key = $2 AND (released_at, release_key) >= (
             SELECT r.released_at, r.release_key FROM release r
             WHERE r.pod_key = $1 AND r.inbox_key = $2 AND r.release_key = $3)",
        &args,
    )
    .await?;
    tx.execute(
        "UPDATE release SET recipients = recipients - $4
         WHERE pod_key = $1 AND inbox_key = $2 AND release_key = $3",
        &args,
    )
    .await?;
    Ok(())
}

pub(crate) async fn add(
    tx: &mut Tx,
    inbox: InboxKey,
    message_key: i64,
    released_at: Millis,
    recipients: i64,
    total: i64,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO release (pod_key, inbox_key, release_key, released_at, recipients, total)
         VALUES ($1, $2, $3, $4, $5, $6)",
        &[
            inbox.pod.into(),
            inbox.inbox.into(),
            message_key.into(),
            released_at.into(),
            recipients.into(),
            total.into(),
        ],
    )
    .await?;
    Ok(())
}

/// The recipients of a message that was called back do not count any more: the sum is lowered from its release on,
/// so every window that held it has room again. One older than every window has nothing to give.
pub(crate) async fn give_back(tx: &mut Tx, inbox: InboxKey, message_key: i64) -> Result<(), StoreError> {
    let row = tx
        .row(
            "SELECT released_at, recipients FROM release
             WHERE pod_key = $1 AND inbox_key = $2 AND release_key = $3",
            &[inbox.pod.into(), inbox.inbox.into(), message_key.into()],
        )
        .await?;
    let Some(row) = row else { return Ok(()) };
    let (released_at, recipients): (Millis, i64) = (row.get(0)?, row.get(1)?);
    if recipients == 0 || released_at < tx.now() - 2 * crate::clock::DAY {
        return Ok(());
    }
    tx.execute(
        "UPDATE release SET total = total - $5,
                recipients = CASE WHEN release_key = $4 THEN 0 ELSE recipients END
         WHERE pod_key = $1 AND inbox_key = $2 AND (released_at, release_key) >= ($3, $4)",
        &[inbox.pod.into(), inbox.inbox.into(), released_at.into(), message_key.into(), recipients.into()],
    )
    .await?;
    Ok(())
}
