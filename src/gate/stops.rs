//! The kill switch: one call stops what is new, what is queued and what is scheduled, for an inbox, a pod, a
//! sending domain or everybody, and writes one audit row. New sends are refused by `decide`; queued mail is asked
//! about again before each attempt (`recheck`), so a stop that holds touches no row of the queue.
//!
//! Crash argument: stop, cancelations and audit row are one transaction. A send that is under way is either
//! committed before it, and then found by `recheck`, or sees the stop.

use super::Reason;
use crate::ids::InboxKey;
use crate::store::stop::{self, MOST, NewStop, Queued, Stop};
use crate::store::{StoreError, Tx, audit, rate};

/// What a stop found waiting.
#[derive(Debug, Clone)]
pub struct Stopped {
    pub stop: Stop,
    /// Deliveries that wait, and go on when it is lifted.
    pub held: i64,
    pub canceled: i64,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum StopError {
    #[error("there are {MOST} stops in force already")]
    TooMany,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes a stop. `None` where the server itself made this one before and it is still in force.
pub async fn stop(tx: &mut Tx, new: &NewStop) -> Result<Option<Stopped>, StopError> {
    stop::lock_inboxes(tx, &new.scope).await?;
    tx.reread_clock().await?;
    if stop::active(tx).await?.len() as i64 >= MOST {
        return Err(StopError::TooMany);
    }
    let Some(made) = stop::insert(tx, new).await? else { return Ok(None) };
    let (mut held, mut canceled) = (0, 0);
    if made.queued == Queued::Cancel {
        canceled = i64::try_from(stop::cancel_waiting(tx, &made).await?).unwrap_or(i64::MAX);
        stop::give_back(tx, &made).await?;
    } else {
        held = stop::waiting(tx, &made.scope).await?;
    }
    let detail = serde_json::json!({
        "scope": made.scope.word(), "name": made.name, "rule": made.rule, "queued": made.queued.text(),
        "held": held, "canceled": canceled,
    });
    note(tx, &made.made_by, "stop.made", &made, detail).await?;
    Ok(Some(Stopped { stop: made, held, canceled }))
}

/// Lifts a stop; what it held goes on. `false` where it was lifted before.
pub async fn lift(tx: &mut Tx, found: &Stop, actor: &str) -> Result<bool, StoreError> {
    if !stop::lift(tx, &found.stop_id, actor).await? {
        return Ok(false);
    }
    let released = stop::let_go(tx).await?;
    if found.rule != "kill_switch" {
        // An admin looked into it: the rate starts anew, or the next bounce would stop it again.
        rate::forget(tx, &rate_scope(found)).await?;
    }
    note(tx, actor, "stop.lifted", found, serde_json::json!({ "released": released })).await?;
    Ok(true)
}

/// The inbox is active again: what was held because it was not goes on.
pub async fn resume(tx: &mut Tx) -> Result<(), StoreError> {
    stop::let_go(tx).await.map(drop)
}

fn rate_scope(stop: &Stop) -> String {
    match &stop.scope {
        stop::StopScope::Inbox(key) => format!("inbox:{}", key.inbox),
        _ => format!("domain:{}", stop.name),
    }
}

/// The stops in the way of a send.
pub(super) async fn reasons(tx: &mut Tx, inbox: InboxKey, domain: &str) -> Result<Vec<Reason>, StoreError> {
    let stops = stop::active(tx).await?;
    let mine = stops.iter().filter(|stop| stop.scope.covers(inbox, domain));
    Ok(mine
        .map(|stop| {
            let rule = match stop.rule.as_str() {
                "bounce_rate" => "stopped_bounce_rate",
                "complaint_rate" => "stopped_complaint_rate",
                _ => "stopped",
            };
            let fix = format!("An admin can lift it: DELETE /v1/stops/{}", stop.stop_id);
            Reason::new(rule, super::recheck::say(stop), fix).with([stop.stop_id.clone()])
        })
        .collect())
}

async fn note(
    tx: &mut Tx,
    actor: &str,
    action: &str,
    stop: &Stop,
    detail: serde_json::Value,
) -> Result<(), StoreError> {
    let inbox = match stop.scope {
        stop::StopScope::Inbox(key) => Some(key),
        _ => None,
    };
    let object = stop.stop_id.as_str();
    audit::record(tx, audit::Entry { actor, run_id: None, action, inbox, object, detail: detail.to_string() })
        .await
}
