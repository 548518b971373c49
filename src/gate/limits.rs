//! Limits are exact: in any window of a minute, an hour or a day, at most N recipients are released.
//!
//! Read and written under the inbox's lock, by the database's clock, in the transaction that releases. The
//! time of a release never falls (`at`), so whichever release is the last in a window was checked against all
//! the others in it, and clocks of several processes need not agree.

use super::decision::Reason;
use crate::clock::{DAY, HOUR, MINUTE, Millis, rfc3339};
use crate::ids::InboxKey;
use crate::store::inbox::Limits;
use crate::store::{StoreError, Tx, release};

/// How much of the limits is used now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub last_minute: i64,
    pub last_hour: i64,
    pub last_day: i64,
}

/// What a release will be written with, once it passes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reservation {
    pub at: Millis,
    pub recipients: i64,
    pub total: i64,
}

pub async fn usage(tx: &mut Tx, inbox: InboxKey) -> Result<Usage, StoreError> {
    let latest = release::latest(tx, inbox).await?;
    let now = tx.now().max(latest.released_at);
    let mut used = [0; 3];
    for (slot, window) in used.iter_mut().zip([MINUTE, HOUR, DAY]) {
        *slot = latest.total - release::total_until(tx, inbox, now - window).await?;
    }
    let [last_minute, last_hour, last_day] = used;
    Ok(Usage { last_minute, last_hour, last_day })
}

/// Whether `recipients` more fit into every window: the reservation, and a reason for each limit in the way.
pub(super) async fn reserve(
    tx: &mut Tx,
    inbox: InboxKey,
    limits: Limits,
    recipients: i64,
) -> Result<(Reservation, Vec<Reason>), StoreError> {
    let latest = release::latest(tx, inbox).await?;
    let at = tx.now().max(latest.released_at);
    let mut reasons = Vec::new();
    let windows = [
        ("limit_per_minute", "minute", MINUTE, limits.per_minute),
        ("limit_per_hour", "hour", HOUR, limits.per_hour),
        ("limit_per_day", "day", DAY, limits.per_day),
    ];
    for (rule, name, window, limit) in windows {
        let Some(limit) = limit else { continue };
        let used = latest.total - release::total_until(tx, inbox, at - window).await?;
        if used + recipients <= limit {
            continue;
        }
        // Room comes when the release that brought the sum this far leaves the window.
        let leaves = latest.total + recipients - limit;
        let retry_at = match recipients <= limit {
            true => {
                release::reached(tx, inbox, leaves, at - window).await?.map(|released| released + window + 1)
            }
            false => None,
        };
        let say = format!(
            "{used} of {limit} recipients were released in the last {name}; {recipients} more do not fit."
        );
        let fix = match retry_at {
            Some(at) => format!("Send again at {}, or have an admin raise the limit.", rfc3339(at)),
            None => format!("Send to at most {limit} recipients at once, or have an admin raise the limit."),
        };
        let mut reason = Reason::new(rule, say, fix).with([format!("used {used}"), format!("limit {limit}")]);
        reason.retry_at = retry_at;
        reasons.push(reason);
    }
    Ok((Reservation { at, recipients, total: latest.total + recipients }, reasons))
}

#[cfg(test)]
mod tests;
