//! Rules that hold what leaves: everything from an inbox, to a domain, or from one to the other. Asked when mail
//! is released, and again when it is claimed, so that a rule binds what was queued before it.

use super::delivery::Delivery;
use super::{StoreError, Topic, Tx};
use crate::clock::Millis;
use crate::ids::InboxKey;

/// Rules that there may be: each claim reads all of them.
pub const MOST: i64 = 500;
/// Rows let go in one transaction.
const STEP: i64 = 1_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldRule {
    pub rule_key: i64,
    /// `None`: from everybody.
    pub inbox: Option<InboxKey>,
    /// In A-labels; `None`: to everywhere.
    pub domain: Option<String>,
    pub reason: Option<String>,
    pub actor: String,
    pub created_at: Millis,
}

impl HoldRule {
    pub fn holds(&self, inbox: InboxKey, domain: &str) -> bool {
        self.inbox.is_none_or(|of| of == inbox) && self.domain.as_deref().is_none_or(|to| to == domain)
    }

    /// As it stands in `held_by`.
    pub fn name(&self) -> String {
        format!("rule:{}", self.rule_key)
    }
}

pub async fn all(tx: &mut Tx) -> Result<Vec<HoldRule>, StoreError> {
    let rows = tx
        .rows(
            "SELECT rule_key, pod_key, inbox_key, domain, reason, actor, created_at FROM hold_rule
             ORDER BY rule_key LIMIT $1",
            &[MOST.into()],
        )
        .await?;
    rows.iter()
        .map(|row| {
            let (pod, inbox): (Option<i64>, Option<i64>) = (row.get(1)?, row.get(2)?);
            Ok(HoldRule {
                rule_key: row.get(0)?,
                inbox: pod.zip(inbox).map(|(pod, inbox)| InboxKey { pod, inbox }),
                domain: row.get(3)?,
                reason: row.get(4)?,
                actor: row.get(5)?,
                created_at: row.get(6)?,
            })
        })
        .collect()
}

/// `None`: there are as many as there may be.
pub async fn add(
    tx: &mut Tx,
    inbox: Option<InboxKey>,
    domain: Option<&str>,
    reason: Option<&str>,
    actor: &str,
) -> Result<Option<HoldRule>, StoreError> {
    let count = tx.row("SELECT count(*) FROM hold_rule", &[]).await?;
    if count.map_or(Ok(0i64), |row| row.get(0))? >= MOST {
        return Ok(None);
    }
    let row = tx
        .row(
            "INSERT INTO hold_rule (pod_key, inbox_key, domain, reason, actor, created_at)
             VALUES ($1, $2, $3, $4, $5, $6) RETURNING rule_key",
            &[
                inbox.map(|of| of.pod).into(),
                inbox.map(|of| of.inbox).into(),
                domain.into(),
                reason.into(),
                actor.into(),
                tx.now().into(),
            ],
        )
        .await?;
    let rule_key = row.map_or(Ok(0), |row| row.get(0))?;
    Ok(Some(HoldRule {
        rule_key,
        inbox,
        domain: domain.map(str::to_owned),
        reason: reason.map(str::to_owned),
        actor: actor.to_owned(),
        created_at: tx.now(),
    }))
}

/// Whether there was one.
pub async fn remove(tx: &mut Tx, rule_key: i64) -> Result<bool, StoreError> {
    Ok(tx.execute("DELETE FROM hold_rule WHERE rule_key = $1", &[rule_key.into()]).await? > 0)
}

/// Holds a row that was claimed and not tried; the attempt is not counted.
pub(crate) async fn hold_claimed(tx: &mut Tx, row: &Delivery, held_by: &str) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE delivery SET state = 'held', held_by = $4, attempts = attempts - 1, node = NULL,
                attempting_since = NULL
         WHERE pod_key = $1 AND inbox_key = $2 AND delivery_key = $3 AND state = 'attempting'",
        &[row.inbox.pod.into(), row.inbox.inbox.into(), row.delivery_key.into(), held_by.into()],
    )
    .await?;
    Ok(())
}

/// Lets go of rows whose rule is gone, a step of them; whether there may be more. A claim that read the rule before
/// it was removed may hold rows after it, so the queue asks again now and then.
pub(crate) async fn let_go(tx: &mut Tx) -> Result<bool, StoreError> {
    let mut after = "rule:".to_owned();
    loop {
        let row = tx
            .row(
                "SELECT min(held_by) FROM delivery WHERE state = 'held' AND held_by > $1",
                &[(&after).into()],
            )
            .await?;
        let name: Option<String> = row.map(|row| row.get(0)).transpose()?.flatten();
        let Some(name) = name.filter(|name| name.starts_with("rule:")) else { return Ok(false) };
        let key: i64 = name.trim_start_matches("rule:").parse().unwrap_or(0);
        if tx.row("SELECT 1 FROM hold_rule WHERE rule_key = $1", &[key.into()]).await?.is_none() {
            let released = tx
                .execute(
                    "UPDATE delivery SET state = CASE WHEN attempts = 0 AND next_attempt_at > $2 THEN 'scheduled'
                                                      ELSE 'due' END, held_by = NULL, updated_at = $2
                     WHERE (pod_key, inbox_key, delivery_key) IN (
                         SELECT pod_key, inbox_key, delivery_key FROM delivery
                         WHERE state = 'held' AND held_by = $1 LIMIT $3)",
                    &[(&name).into(), tx.now().into(), STEP.into()],
                )
                .await?;
            if released > 0 {
                tx.wake(Topic::Queue);
            }
            return Ok(true);
        }
        after = name;
    }
}
