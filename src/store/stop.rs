//! Stops: nothing of an inbox, a pod, a sending domain or anybody leaves until they are lifted. They are few, so
//! those in force are read whole. Rows are never deleted: who stopped what, and who lifted it, stays.

use super::{Row, StoreError, Topic, Tx};
use crate::clock::Millis;
use crate::ids::{InboxKey, random_token};

/// Stops in force at once; more than this is refused.
pub const MOST: i64 = 1_000;

/// Whose mail is stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopScope {
    Inbox(InboxKey),
    Pod(i64),
    /// Of the sender, in lower-case A-labels, with what is below it: a name further to the left is no way around a stop.
    Domain {
        name: String,
        /// One pod's inboxes alone: another pod may have a domain of its own below.
        pod: Option<i64>,
    },
    Organization,
}

impl StopScope {
    pub fn word(&self) -> &'static str {
        match self {
            StopScope::Inbox(_) => "inbox",
            StopScope::Pod(_) => "pod",
            StopScope::Domain { .. } => "domain",
            StopScope::Organization => "organization",
        }
    }

    pub fn covers(&self, inbox: InboxKey, sender_domain: &str) -> bool {
        match self {
            StopScope::Inbox(key) => *key == inbox,
            StopScope::Pod(pod) => *pod == inbox.pod,
            StopScope::Domain { name, pod } => {
                let below = |rest: &str| rest.is_empty() || rest.ends_with('.');
                pod.is_none_or(|pod| pod == inbox.pod)
                    && sender_domain.strip_suffix(name.as_str()).is_some_and(below)
            }
            StopScope::Organization => true,
        }
    }

    /// pod, inbox, domain; 0 and empty where they do not matter.
    fn columns(&self) -> (i64, i64, &str) {
        match self {
            StopScope::Inbox(key) => (key.pod, key.inbox, ""),
            StopScope::Pod(pod) => (*pod, 0, ""),
            StopScope::Domain { name, pod } => (pod.unwrap_or(0), 0, name),
            StopScope::Organization => (0, 0, ""),
        }
    }
}

/// What becomes of mail that is queued or scheduled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queued {
    /// It waits, and goes on when the stop is lifted.
    Hold,
    Cancel,
}

impl Queued {
    pub fn text(self) -> &'static str {
        match self {
            Queued::Hold => "hold",
            Queued::Cancel => "cancel",
        }
    }

    pub fn parse(text: &str) -> Option<Queued> {
        [Queued::Hold, Queued::Cancel].into_iter().find(|q| q.text() == text)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// `stp_…`
    pub stop_id: String,
    pub scope: StopScope,
    /// As it was named: an address, a pod's id, a domain; empty for the organization.
    pub name: String,
    /// `kill_switch`, or what the server went by: `bounce_rate`, `complaint_rate`.
    pub rule: String,
    pub reason: String,
    pub queued: Queued,
    /// The actor, as in the audit log.
    pub made_by: String,
    pub created_at: Millis,
    pub lifted_at: Option<Millis>,
    pub lifted_by: Option<String>,
}

/// A stop to be made.
#[derive(Debug, Clone)]
pub struct NewStop {
    pub scope: StopScope,
    pub name: String,
    pub rule: &'static str,
    pub reason: String,
    pub queued: Queued,
    pub made_by: String,
}

macro_rules! columns {
    () => {
        "stop_id, scope, pod_key, inbox_key, domain, name, rule, reason, queued, made_by, created_at, lifted_at,
         lifted_by"
    };
}

fn from_row(row: &Row) -> Result<Stop, StoreError> {
    let (scope, pod, inbox, domain): (String, i64, i64, String) =
        (row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?);
    let scope = match scope.as_str() {
        "inbox" => StopScope::Inbox(InboxKey { pod, inbox }),
        "pod" => StopScope::Pod(pod),
        "domain" => StopScope::Domain { name: domain, pod: Some(pod).filter(|pod| *pod != 0) },
        "organization" => StopScope::Organization,
        other => return Err(StoreError::Damaged(format!("stop scope {other}"))),
    };
    let queued: String = row.get(8)?;
    Ok(Stop {
        stop_id: row.get(0)?,
        scope,
        name: row.get(5)?,
        rule: row.get(6)?,
        reason: row.get(7)?,
        queued: Queued::parse(&queued).ok_or_else(|| StoreError::Damaged(format!("stop {queued}")))?,
        made_by: row.get(9)?,
        created_at: row.get(10)?,
        lifted_at: row.get(11)?,
        lifted_by: row.get(12)?,
    })
}

/// Writes a stop. `None` where the server has this one in force already.
pub async fn insert(tx: &mut Tx, new: &NewStop) -> Result<Option<Stop>, StoreError> {
    let (pod, inbox, domain) = new.scope.columns();
    let row = tx
        .row(
            concat!(
                "INSERT INTO stop (stop_id, scope, pod_key, inbox_key, domain, name, rule, reason, queued, made_by,
                                   created_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT DO NOTHING RETURNING ",
                columns!()
            ),
            &[
                format!("stp_{}", random_token::<15>()).into(),
                new.scope.word().into(),
                pod.into(),
                inbox.into(),
                domain.into(),
                (&new.name).into(),
                new.rule.into(),
                (&new.reason).into(),
                new.queued.text().into(),
                (&new.made_by).into(),
                tx.now().into(),
            ],
        )
        .await?;
    row.as_ref().map(from_row).transpose()
}

/// Every stop in force, the oldest first.
pub async fn active(tx: &mut Tx) -> Result<Vec<Stop>, StoreError> {
    let sql =
        concat!("SELECT ", columns!(), " FROM stop WHERE lifted_at IS NULL ORDER BY stop_key LIMIT 1001");
    tx.rows(sql, &[]).await?.iter().map(from_row).collect()
}

pub async fn by_id(tx: &mut Tx, stop_id: &str) -> Result<Option<Stop>, StoreError> {
    let sql = concat!("SELECT ", columns!(), " FROM stop WHERE stop_id = $1");
    tx.row(sql, &[stop_id.into()]).await?.as_ref().map(from_row).transpose()
}

/// Not in force any more; `false` where it was not.
pub async fn lift(tx: &mut Tx, stop_id: &str, by: &str) -> Result<bool, StoreError> {
    let sql = "UPDATE stop SET lifted_at = $2, lifted_by = $3 WHERE stop_id = $1 AND lifted_at IS NULL";
    Ok(tx.execute(sql, &[stop_id.into(), tx.now().into(), by.into()]).await? == 1)
}

/// Locks every inbox of the scope, in order: whoever releases from one of them is either done, and what it
/// released is seen, or comes after the stop.
pub(crate) async fn lock_inboxes(tx: &mut Tx, scope: &StopScope) -> Result<(), StoreError> {
    if !tx.is_postgres() {
        return Ok(());
    }
    let (pod, inbox, domain) = scope.columns();
    tx.execute(
        "SELECT 1 FROM inbox WHERE ($1 = 0 OR pod_key = $1) AND ($2 = 0 OR inbox_key = $2)
           AND ($3 = '' OR domain = $3 OR substr(domain, length(domain) - length($3)) = '.' || $3) ORDER BY pod_key, inbox_key FOR UPDATE",
        &[pod.into(), inbox.into(), domain.into()],
    )
    .await?;
    Ok(())
}

/// How many deliveries of the scope wait to leave.
pub(crate) async fn waiting(tx: &mut Tx, scope: &StopScope) -> Result<i64, StoreError> {
    let (pod, inbox, domain) = scope.columns();
    let row = tx
        .row(
            "SELECT count(*) FROM delivery
             WHERE state IN ('due', 'deferred', 'scheduled', 'held') AND ($1 = 0 OR pod_key = $1)
               AND ($2 = 0 OR inbox_key = $2)
               AND ($3 = '' OR inbox_key IN (SELECT inbox_key FROM inbox WHERE domain = $3 OR substr(domain, length(domain) - length($3)) = '.' || $3))",
            &[pod.into(), inbox.into(), domain.into()],
        )
        .await?;
    row.map_or(Ok(0), |row| row.get(0))
}

/// Cancels what of the scope waits to leave, with the words why.
pub(crate) async fn cancel_waiting(tx: &mut Tx, stop: &Stop) -> Result<u64, StoreError> {
    let (pod, inbox, domain) = stop.scope.columns();
    tx.execute(
        "UPDATE delivery SET state = 'canceled', last_reply = $4, updated_at = $5
         WHERE state IN ('due', 'deferred', 'scheduled', 'held') AND ($1 = 0 OR pod_key = $1)
           AND ($2 = 0 OR inbox_key = $2)
           AND ($3 = '' OR inbox_key IN (SELECT inbox_key FROM inbox WHERE domain = $3 OR substr(domain, length(domain) - length($3)) = '.' || $3))",
        &[pod.into(), inbox.into(), domain.into(), words(stop).into(), tx.now().into()],
    )
    .await
}

/// What a canceled row says; by it the rows of this stop are found.
fn words(stop: &Stop) -> String {
    format!("Canceled by {}: {}", stop.stop_id, stop.reason)
}

/// What was canceled before its first attempt is given back to the limits of its inbox. The caller has locked the
/// inboxes. Sums are made anew from the recipients: only their differences matter.
pub(crate) async fn give_back(tx: &mut Tx, stop: &Stop) -> Result<(), StoreError> {
    let words = words(stop);
    let changed = tx
        .execute(
            "UPDATE release SET recipients = recipients - (
                 SELECT count(*) FROM delivery d WHERE d.pod_key = release.pod_key AND d.inbox_key = release.inbox_key
                   AND d.message_key = release.release_key AND d.state = 'canceled' AND d.attempts = 0
                   AND d.last_reply = $1)
             WHERE (pod_key, inbox_key, release_key) IN (
                 SELECT pod_key, inbox_key, message_key FROM delivery
                 WHERE state = 'canceled' AND attempts = 0 AND last_reply = $1 AND updated_at = $2)",
            &[words.clone().into(), tx.now().into()],
        )
        .await?;
    if changed == 0 {
        return Ok(());
    }
    tx.execute(
        "UPDATE release SET total = CAST(s.running AS BIGINT)
         FROM (SELECT r.pod_key, r.inbox_key, r.release_key,
                      sum(r.recipients) OVER (PARTITION BY r.pod_key, r.inbox_key
                                              ORDER BY r.released_at, r.release_key) AS running
               FROM release r WHERE (r.pod_key, r.inbox_key) IN (
                   SELECT pod_key, inbox_key FROM delivery
                   WHERE state = 'canceled' AND attempts = 0 AND last_reply = $1 AND updated_at = $2)) AS s
         WHERE s.pod_key = release.pod_key AND s.inbox_key = release.inbox_key AND s.release_key = release.release_key",
        &[words.into(), tx.now().into()],
    )
    .await?;
    Ok(())
}

/// Rows that a stop or a pause held which is over go on: at once, or at their time. A claim that read the stop just
/// before it was lifted may hold rows after it, so this is asked again and again.
pub(crate) async fn let_go(tx: &mut Tx) -> Result<u64, StoreError> {
    let released = tx
        .execute(
            "UPDATE delivery SET held_by = NULL, updated_at = $1,
                    state = CASE WHEN next_attempt_at <= $1 THEN 'due' WHEN attempts > 0 THEN 'deferred'
                                 ELSE 'scheduled' END
             WHERE state = 'held' AND held_by LIKE 'gate:%'
               AND held_by NOT IN (SELECT 'gate:' || stop_id FROM stop WHERE lifted_at IS NULL)
               AND NOT (held_by = 'gate:inbox_paused' AND EXISTS (
                   SELECT 1 FROM inbox i WHERE i.inbox_key = delivery.inbox_key AND i.status = 'paused'))",
            &[tx.now().into()],
        )
        .await?;
    if released > 0 {
        tx.wake(Topic::Queue);
    }
    Ok(released)
}

/// Whether the gate holds anything.
pub(crate) async fn any_held(tx: &mut Tx) -> Result<bool, StoreError> {
    let sql = "SELECT 1 FROM delivery WHERE state = 'held' AND held_by LIKE 'gate:%' LIMIT 1";
    Ok(tx.row(sql, &[]).await?.is_some())
}

/// What `delivery.held_by` says of a row that this stop holds.
pub fn held_by(stop_id: &str) -> String {
    format!("gate:{stop_id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_of_a_domain_covers_what_is_below_it_and_nothing_beside_it() {
        let inbox = |pod| InboxKey { pod, inbox: 7 };
        let scope = |pod| StopScope::Domain { name: "example.com".to_owned(), pod };
        for domain in ["example.com", "sub.example.com", "a.b.example.com"] {
            assert!(
                scope(None).covers(inbox(1), domain) && scope(Some(1)).covers(inbox(1), domain),
                "{domain}"
            );
            assert!(
                scope(None).covers(inbox(2), domain) && !scope(Some(1)).covers(inbox(2), domain),
                "{domain}"
            );
        }
        for domain in ["badexample.com", "com", "example.com.evil.example", ""] {
            assert!(!scope(None).covers(inbox(1), domain), "{domain}");
        }
    }
}
