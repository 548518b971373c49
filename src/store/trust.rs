//! What is remembered of other domains' TLS: MTA-STS policies until they expire, and how well mail was secured
//! on its last ways to a domain.
//!
//! Bounded: at most `ROOM` rows of each; the ones nearest to their end, or seen longest ago, go first.

use super::{StoreError, Tx};
use crate::clock::{DAY, Millis};

/// A busy server writes to some tens of thousands of domains; a policy has about 200 octets.
const ROOM: i64 = 100_000;
/// A domain that got no mail for so long is met anew.
const REMEMBERED: Millis = 180 * DAY;

/// An MTA-STS policy as it was served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredPolicy {
    pub(crate) policy_id: String,
    pub(crate) policy: String,
    pub(crate) fetched_at: Millis,
    pub(crate) expires_at: Millis,
}

impl StoredPolicy {
    /// What is remembered of it once it was read: the text may have 64 KiB.
    pub(crate) fn without_text(&self) -> StoredPolicy {
        StoredPolicy { policy_id: self.policy_id.clone(), policy: String::new(), ..*self }
    }
}

/// The policy of a domain, where it has not expired.
pub(crate) async fn policy(tx: &mut Tx, domain: &str) -> Result<Option<StoredPolicy>, StoreError> {
    let row = tx
        .row(
            "SELECT policy_id, policy, fetched_at, expires_at FROM mta_sts_policy
             WHERE domain = $1 AND expires_at > $2",
            &[domain.into(), tx.now().into()],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(StoredPolicy {
        policy_id: row.get(0)?,
        policy: row.get(1)?,
        fetched_at: row.get(2)?,
        expires_at: row.get(3)?,
    }))
}

/// From now on this is the domain's policy.
pub(crate) async fn keep_policy(tx: &mut Tx, domain: &str, new: &StoredPolicy) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO mta_sts_policy (domain, policy_id, policy, fetched_at, expires_at)
         VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (domain) DO UPDATE SET policy_id = excluded.policy_id, policy = excluded.policy,
             fetched_at = excluded.fetched_at, expires_at = excluded.expires_at
         WHERE mta_sts_policy.fetched_at <= excluded.fetched_at",
        &[
            domain.into(),
            (&new.policy_id).into(),
            (&new.policy).into(),
            new.fetched_at.into(),
            new.expires_at.into(),
        ],
    )
    .await?;
    Ok(())
}

/// How many deliveries to a domain were in TLS, one after the other.
pub(crate) async fn seen(tx: &mut Tx, domain: &str) -> Result<i64, StoreError> {
    let row = tx.row("SELECT deliveries FROM tls_seen WHERE domain = $1", &[domain.into()]).await?;
    row.map_or(Ok(0), |row| row.get(0))
}

/// `deliveries` more went there in TLS, `verified` of them to hosts that proved themselves: all is well with TLS, whatever
/// was before. Whether that is less than before: `habit` or more in a row were verified, and one now was not.
pub(crate) async fn saw_tls(
    tx: &mut Tx,
    domain: &str,
    deliveries: i64,
    verified: i64,
    habit: i64,
) -> Result<bool, StoreError> {
    let in_a_row = if verified == deliveries { verified } else { 0 };
    let mut weaker = false;
    if in_a_row == 0 {
        // Of several nodes one finds the row as it was.
        let sql = "UPDATE tls_seen SET verified = 0 WHERE domain = $1 AND verified >= $2";
        weaker = tx.execute(sql, &[domain.into(), habit.into()]).await? > 0;
    }
    tx.execute(
        "INSERT INTO tls_seen (domain, deliveries, seen_at, verified) VALUES ($1, $2, $3, $4)
         ON CONFLICT (domain) DO UPDATE SET deliveries = tls_seen.deliveries + excluded.deliveries,
             seen_at = excluded.seen_at, weaker_since = NULL,
             verified = CASE WHEN excluded.verified = 0 THEN 0 ELSE tls_seen.verified + excluded.verified END",
        &[domain.into(), deliveries.into(), tx.now().into(), in_a_row.into()],
    )
    .await?;
    Ok(weaker)
}

/// A host offers no TLS where there was some: since when, now included. The `deliveries` may not be written yet.
pub(crate) async fn saw_less(tx: &mut Tx, domain: &str, deliveries: i64) -> Result<Millis, StoreError> {
    let now = tx.now();
    let row = tx
        .row(
            "INSERT INTO tls_seen (domain, deliveries, seen_at, weaker_since) VALUES ($1, $2, $3, $3)
             ON CONFLICT (domain) DO UPDATE
                 SET weaker_since = coalesce(tls_seen.weaker_since, excluded.weaker_since)
             RETURNING weaker_since",
            &[domain.into(), deliveries.into(), now.into()],
        )
        .await?;
    Ok(row.map(|row| row.get::<Option<Millis>>(0)).transpose()?.flatten().unwrap_or(now))
}

/// The domain is without TLS for good; whether nobody knew yet. Since when stays, so that a node that learns it later does
/// not wait again.
pub(crate) async fn give_up(tx: &mut Tx, domain: &str) -> Result<bool, StoreError> {
    let sql = "UPDATE tls_seen SET deliveries = 0, verified = 0 WHERE domain = $1 AND deliveries > 0";
    Ok(tx.execute(sql, &[domain.into()]).await? > 0)
}

/// Forgets what has expired, and what is beyond the room; how many rows.
pub(crate) async fn forget(tx: &mut Tx) -> Result<u64, StoreError> {
    let now = tx.now();
    let mut gone = tx.execute("DELETE FROM mta_sts_policy WHERE expires_at <= $1", &[now.into()]).await?;
    gone += tx.execute("DELETE FROM tls_seen WHERE seen_at < $1", &[(now - REMEMBERED).into()]).await?;
    for sql in [
        "DELETE FROM mta_sts_policy WHERE domain IN
           (SELECT domain FROM mta_sts_policy ORDER BY expires_at DESC LIMIT 1000 OFFSET $1)",
        "DELETE FROM tls_seen WHERE domain IN
           (SELECT domain FROM tls_seen ORDER BY seen_at DESC LIMIT 1000 OFFSET $1)",
    ] {
        gone += tx.execute(sql, &[ROOM.into()]).await?;
    }
    Ok(gone)
}
