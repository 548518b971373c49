//! What is kept only for a while: answers under Idempotency-Keys, the greylist, reports, names of transactions,
//! everything of an inbox that was deleted, and large bodies whose transaction never came. Runs beside the mail, in
//! small steps, and starts over wherever it was stopped.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::body::BodyStore;
use super::budget::{self, BudgetScope};
use super::{Store, StoreError, Tx, attempt, greylist, idempotency, report, report_out};
use crate::clock::{Clock, DAY, HOUR};
use crate::config::limits::{ATTEMPTS_KEPT, REPORTS_KEPT};
use crate::ids::InboxKey;

/// Rows that one step deletes from one table: small enough that no mail waits for it.
const STEP: i64 = 200;

/// Sweeps until the server stops.
pub async fn run(store: Store, bodies: BodyStore, clock: Clock, shutdown: CancellationToken) {
    let mut next_orphans = clock.now() + HOUR;
    loop {
        if clock.now() >= next_orphans {
            next_orphans = clock.now() + HOUR;
            match bodies.sweep(&store, clock.now()).await {
                Ok(0) => {}
                Ok(swept) => tracing::info!(swept, "deleted bodies whose messages were never committed"),
                Err(e) => tracing::warn!(error = %e, "orphaned bodies could not be swept"),
            }
        }
        let pause = match store.write(|tx| Box::pin(sweep(tx))).await {
            Ok(true) => Duration::from_millis(50),
            Ok(false) => Duration::from_secs(60),
            Err(e) => {
                let e: StoreError = e;
                tracing::warn!(error = %e, "expired rows could not be swept");
                Duration::from_secs(60)
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// One step; whether there is more to do.
async fn sweep(tx: &mut Tx) -> Result<bool, StoreError> {
    idempotency::forget(tx, tx.now() - 2 * DAY).await?;
    if tx.is_postgres() {
        tx.execute("DELETE FROM operation WHERE at < $1", &[(tx.now() - HOUR).into()]).await?;
    }
    let forgotten = greylist::forget(tx, greylist::ROOM, STEP).await?;
    let forgotten = forgotten.max(report::forget(tx, tx.now() - REPORTS_KEPT, STEP).await?);
    let forgotten = forgotten.max(attempt::forget(tx, tx.now() - ATTEMPTS_KEPT, STEP).await?);
    let oldest = (tx.now() - REPORTS_KEPT).div_euclid(DAY);
    let forgotten = forgotten.max(report_out::forget(tx, oldest, STEP).await?);
    let gone = tx
        .row(
            "SELECT pod_key, inbox_key FROM inbox WHERE deleted_at IS NOT NULL AND status <> 'purged' LIMIT 1",
            &[],
        )
        .await?;
    let Some(row) = gone else { return Ok(forgotten >= STEP as u64) };
    let (pod, inbox): (i64, i64) = (row.get(0)?, row.get(1)?);
    let mut removed = 0;
    for sql in PURGE {
        removed += tx.execute(sql, &[pod.into(), inbox.into(), STEP.into()]).await?;
    }
    if removed == 0 {
        budget::forget(tx, &BudgetScope::Inbox(InboxKey { pod, inbox })).await?;
        // The row itself stays: its number is never used again.
        tx.execute(
            "UPDATE inbox SET status = 'purged', display_name = NULL, metadata = NULL, client_id = NULL
             WHERE pod_key = $1 AND inbox_key = $2",
            &[pod.into(), inbox.into()],
        )
        .await?;
    }
    Ok(true)
}

/// A step through every table of an inbox, by its key; both databases know row values.
const PURGE: [&str; 12] = [
    "DELETE FROM delivery_attempt WHERE pod_key = $1 AND inbox_key = $2 AND attempt_key IN
       (SELECT attempt_key FROM delivery_attempt WHERE pod_key = $1 AND inbox_key = $2 LIMIT $3)",
    "DELETE FROM body WHERE pod_key = $1 AND inbox_key = $2 AND message_key IN
       (SELECT message_key FROM body WHERE pod_key = $1 AND inbox_key = $2 LIMIT $3)",
    "DELETE FROM message WHERE pod_key = $1 AND inbox_key = $2 AND message_key IN
       (SELECT message_key FROM message WHERE pod_key = $1 AND inbox_key = $2 LIMIT $3)",
    "DELETE FROM thread WHERE pod_key = $1 AND inbox_key = $2 AND thread_key IN
       (SELECT thread_key FROM thread WHERE pod_key = $1 AND inbox_key = $2 LIMIT $3)",
    "DELETE FROM participant WHERE pod_key = $1 AND inbox_key = $2 AND thread_key IN
       (SELECT thread_key FROM participant WHERE pod_key = $1 AND inbox_key = $2 LIMIT $3)",
    "DELETE FROM thread_name WHERE pod_key = $1 AND inbox_key = $2 AND thread_key IN
       (SELECT thread_key FROM thread_name WHERE pod_key = $1 AND inbox_key = $2 LIMIT $3)",
    "DELETE FROM placement WHERE pod_key = $1 AND inbox_key = $2 AND message_key IN
       (SELECT message_key FROM placement WHERE pod_key = $1 AND inbox_key = $2 LIMIT $3)",
    "DELETE FROM mailbox WHERE pod_key = $1 AND inbox_key = $2 AND mailbox_key IN
       (SELECT mailbox_key FROM mailbox WHERE pod_key = $1 AND inbox_key = $2 LIMIT $3)",
    "DELETE FROM work_item WHERE pod_key = $1 AND inbox_key = $2 AND item_key IN
       (SELECT item_key FROM work_item WHERE pod_key = $1 AND inbox_key = $2 LIMIT $3)",
    "DELETE FROM report WHERE pod_key = $1 AND inbox_key = $2 AND message_key IN
       (SELECT message_key FROM report WHERE pod_key = $1 AND inbox_key = $2 LIMIT $3)",
    "DELETE FROM new_recipient WHERE pod_key = $1 AND inbox_key = $2 AND at IN
       (SELECT at FROM new_recipient WHERE pod_key = $1 AND inbox_key = $2 LIMIT $3)",
    "DELETE FROM delivery WHERE pod_key = $1 AND inbox_key = $2 AND state IN ('delivered', 'failed', 'canceled')
       AND delivery_key IN (SELECT delivery_key FROM delivery WHERE pod_key = $1 AND inbox_key = $2
       AND state IN ('delivered', 'failed', 'canceled') LIMIT $3)",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::floor::testing::TestFloor;
    use crate::reports::{Report, ReportKind};

    /// Reports come in every day, from everywhere, and would stay for ever.
    #[tokio::test]
    async fn reports_are_kept_for_a_while() {
        let test = TestFloor::new().await;
        let ada = test.inbox("ada").await;
        let file = async |n: i64| {
            let found = Report {
                kind: ReportKind::Tls,
                org: "Reporter".to_owned(),
                report_id: n.to_string(),
                domains: vec!["agents.example".to_owned()],
                begins_at: 0,
                ends_at: 0,
                total: 0,
                failed: 0,
                content: "{}".to_owned(),
            };
            let found = std::sync::Arc::new(found);
            let filed: Result<bool, StoreError> = test
                .floor
                .store
                .write(move |tx| {
                    let found = found.clone();
                    Box::pin(async move { report::insert(tx, ada.key, n, None, &found).await })
                })
                .await;
            assert!(filed.unwrap());
        };
        let sweep = async || {
            let swept: Result<bool, StoreError> = test.floor.store.write(|tx| Box::pin(sweep(tx))).await;
            swept.unwrap();
        };
        let left = async || {
            let count: Result<i64, StoreError> = test
                .floor
                .store
                .read(|tx| {
                    Box::pin(async move {
                        let row = tx.row("SELECT count(*) FROM report", &[]).await?;
                        row.map_or(Ok(0), |row| row.get(0))
                    })
                })
                .await;
            count.unwrap()
        };
        file(1).await;
        test.hand.advance(REPORTS_KEPT);
        file(2).await;
        sweep().await;
        assert_eq!(left().await, 2);
        test.hand.advance(1);
        sweep().await;
        assert_eq!(left().await, 1);
    }
}
