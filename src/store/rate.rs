//! What remotes answered, counted by the hour for each inbox and each sending domain: what the automatic
//! slow-down and pause go by. Counting is cheap and decides nothing; who weighs the sums is `gate::watch`.

use std::collections::BTreeMap;

use super::delivery::{Delivery, Route};
use super::{StoreError, Tx};
use crate::clock::{HOUR, Millis};
use crate::ids::InboxKey;

/// Hours that are kept: the longest `budgets.rate_window` has 30 days.
const KEPT: i64 = 31 * 24;

/// How a delivery ended, as far as the sender's name is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Delivered,
    /// The remote will never take it for this recipient, at the first asking or by a report later.
    Bounced,
    /// It had been taken, and came back after all.
    BouncedLate,
    /// The recipient calls it spam.
    Complained,
}

/// One delivery's end.
pub async fn note_outcome(tx: &mut Tx, delivery: &Delivery, ended: Ended) -> Result<(), StoreError> {
    note_outcomes(tx, &[(delivery, ended)]).await
}

/// Many ends in one transaction: one statement for each inbox and each domain, in one order, so that two nodes
/// that write at once wait for each other instead of standing in each other's way.
pub async fn note_outcomes(tx: &mut Tx, ends: &[(&Delivery, Ended)]) -> Result<(), StoreError> {
    let mut inboxes = BTreeMap::new();
    let mut domains = BTreeMap::new();
    // Mail between our own agents says nothing of our name elsewhere, and would only dilute the rate.
    let counts = |delivery: &Delivery| delivery.route != Route::Local && !is_of_operator(delivery);
    for (delivery, ended) in ends.iter().filter(|(delivery, _)| counts(delivery)) {
        let count = |scope: String| Count {
            scope,
            inbox: delivery.inbox,
            thread_key: delivery.thread_key,
            delivered: 0,
            bounced: 0,
            complained: 0,
        };
        let inbox =
            inboxes.entry(delivery.inbox).or_insert_with(|| count(format!("inbox:{}", delivery.inbox.inbox)));
        add(inbox, delivery, *ended);
        let domain = delivery.sender.rsplit_once('@').map_or("", |(_, domain)| domain);
        let domain = domains.entry(domain).or_insert_with(|| count(format!("domain:{domain}")));
        add(domain, delivery, *ended);
    }
    for count in inboxes.values().chain(domains.values()) {
        write(tx, count).await?;
    }
    Ok(())
}

/// From the operator's inbox (`inbox::operator_address`) leave reports to strangers, who could ask for many and
/// refuse each of them until everybody's mail is stopped.
pub(crate) fn is_of_operator(delivery: &Delivery) -> bool {
    delivery.sender.starts_with("postmaster@")
}

fn add(count: &mut Count, delivery: &Delivery, ended: Ended) {
    match ended {
        Ended::Delivered => count.delivered += 1,
        Ended::Bounced => count.bounced += 1,
        Ended::BouncedLate => (count.delivered, count.bounced) = (count.delivered - 1, count.bounced + 1),
        Ended::Complained => count.complained += 1,
    }
    if ended != Ended::Delivered {
        (count.inbox, count.thread_key) = (delivery.inbox, delivery.thread_key);
    }
}

/// Counts to be added, of one scope.
#[derive(Debug, Clone)]
struct Count {
    /// `inbox:<key>` or `domain:<name>`.
    pub scope: String,
    pub inbox: InboxKey,
    pub thread_key: i64,
    pub delivered: i64,
    pub bounced: i64,
    pub complained: i64,
}

/// The sums of a scope since some hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sums {
    pub delivered: i64,
    pub bounced: i64,
    pub complained: i64,
}

/// A scope of which something bad came in that nobody weighed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct News {
    pub scope: String,
    pub inbox: InboxKey,
    pub thread_key: i64,
}

async fn write(tx: &mut Tx, count: &Count) -> Result<(), StoreError> {
    let looked = count.bounced == 0 && count.complained == 0;
    let hour = tx.now().div_euclid(HOUR);
    let sql =
        "INSERT INTO outcome_hour (scope, hour, pod_key, inbox_key, thread_key, delivered, bounced, complained, looked)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
         ON CONFLICT (scope, hour) DO UPDATE SET
             delivered = outcome_hour.delivered + excluded.delivered,
             bounced = outcome_hour.bounced + excluded.bounced,
             complained = outcome_hour.complained + excluded.complained,
             pod_key = CASE WHEN excluded.looked = 0 THEN excluded.pod_key ELSE outcome_hour.pod_key END,
             inbox_key = CASE WHEN excluded.looked = 0 THEN excluded.inbox_key ELSE outcome_hour.inbox_key END,
             thread_key = CASE WHEN excluded.looked = 0 THEN excluded.thread_key ELSE outcome_hour.thread_key END,
             looked = CASE WHEN excluded.looked = 0 THEN 0 ELSE outcome_hour.looked END
         RETURNING delivered + bounced + complained";
    let args = [
        (&count.scope).into(),
        hour.into(),
        count.inbox.pod.into(),
        count.inbox.inbox.into(),
        count.thread_key.into(),
        count.delivered.into(),
        count.bounced.into(),
        count.complained.into(),
        looked.into(),
    ];
    let sum: i64 = tx.row(sql, &args).await?.map_or(Ok(0), |row| row.get(0))?;
    // The first of an hour takes away what no window reaches any more.
    if sum == count.delivered + count.bounced + count.complained {
        let sql = "DELETE FROM outcome_hour WHERE scope = $1 AND hour < $2";
        tx.execute(sql, &[(&count.scope).into(), (hour - KEPT).into()]).await?;
    }
    Ok(())
}

/// The sums in the whole hours that touch the `window` that ends now.
pub(crate) async fn sums(tx: &mut Tx, scope: &str, window: Millis) -> Result<Sums, StoreError> {
    let since = (tx.now() - window).div_euclid(HOUR) + 1;
    let row = tx
        .row(
            "SELECT CAST(coalesce(sum(delivered), 0) AS BIGINT), CAST(coalesce(sum(bounced), 0) AS BIGINT),
                    CAST(coalesce(sum(complained), 0) AS BIGINT)
             FROM outcome_hour WHERE scope = $1 AND hour >= $2",
            &[scope.into(), since.into()],
        )
        .await?;
    let Some(row) = row else { return Ok(Sums::default()) };
    Ok(Sums { delivered: row.get(0)?, bounced: row.get(1)?, complained: row.get(2)? })
}

/// Scopes with bad news, which are weighed from now on.
pub(crate) async fn take_news(tx: &mut Tx) -> Result<Vec<News>, StoreError> {
    let rows = tx
        .rows(
            "UPDATE outcome_hour SET looked = 1 WHERE (scope, hour) IN (
                 SELECT scope, hour FROM outcome_hour WHERE looked = 0 ORDER BY scope, hour LIMIT 100)
             RETURNING scope, pod_key, inbox_key, thread_key",
            &[],
        )
        .await?;
    let news = |row: &super::Row| {
        Ok(News {
            scope: row.get(0)?,
            inbox: InboxKey { pod: row.get(1)?, inbox: row.get(2)? },
            thread_key: row.get(3)?,
        })
    };
    rows.iter().map(news).collect()
}

pub(crate) async fn any_news(tx: &mut Tx) -> Result<bool, StoreError> {
    Ok(tx.row("SELECT 1 FROM outcome_hour WHERE looked = 0 LIMIT 1", &[]).await?.is_some())
}

/// The scope starts anew: an admin has looked into it.
pub(crate) async fn forget(tx: &mut Tx, scope: &str) -> Result<(), StoreError> {
    tx.execute("DELETE FROM outcome_hour WHERE scope = $1", &[scope.into()]).await?;
    Ok(())
}
