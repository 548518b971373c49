//! Limits are exact: in any window of a minute, an hour or a day, at most N recipients are released.
//!
//! Read and written under the inbox's lock, by the database's clock, in the transaction that releases. The
//! time of a release never falls (`at`), so whichever release is the last in a window was checked against all
//! the others in it, and clocks of several processes need not agree.

use std::collections::BTreeMap;

use super::decision::Reason;
use crate::address::Address;
use crate::clock::{DAY, HOUR, MINUTE, Millis, rfc3339};
use crate::config::Budgets;
use crate::ids::InboxKey;
use crate::store::inbox::{Inbox, Limits};
use crate::store::{StoreError, Tx, recipient, release};

/// How much of the limits is used now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub last_minute: i64,
    pub last_hour: i64,
    pub last_day: i64,
    /// As far as they were counted: while there is a limit.
    pub new_recipients_last_day: i64,
}

/// The limits of an inbox, with what is configured where it says nothing: `None` is none.
pub fn limits_of(inbox: &Inbox, budgets: &Budgets) -> Limits {
    let settled = |own: Option<i64>, configured| own.or(configured).filter(|n| *n >= 0);
    Limits {
        new_recipients_per_day: settled(inbox.limits.new_recipients_per_day, budgets.new_recipients_per_day),
        per_recipient_per_day: settled(inbox.limits.per_recipient_per_day, budgets.per_recipient_per_day),
        ..inbox.limits
    }
}

/// What a release will be written with, once it passes.
#[derive(Debug, Clone)]
pub(super) struct Reservation {
    pub at: Millis,
    pub recipients: i64,
    pub total: i64,
    /// Addresses that are written to for the first time, where that is limited.
    pub strangers: Vec<String>,
}

pub async fn usage(tx: &mut Tx, inbox: InboxKey) -> Result<Usage, StoreError> {
    let latest = release::latest(tx, inbox).await?;
    let now = tx.now().max(latest.released_at);
    let mut used = [0; 3];
    for (slot, window) in used.iter_mut().zip([MINUTE, HOUR, DAY]) {
        *slot = latest.total - release::total_until(tx, inbox, now - window).await?;
    }
    let [last_minute, last_hour, last_day] = used;
    let new_recipients_last_day = recipient::new_since(tx, inbox, now - DAY).await?.len() as i64;
    Ok(Usage { last_minute, last_hour, last_day, new_recipients_last_day })
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
    let total = latest.total + recipients;
    Ok((Reservation { at, recipients, total, strangers: Vec::new() }, reasons))
}

/// Whether strangers and each recipient may be written to: a reason for each limit in the way. Nothing is asked where
/// there is no limit.
pub(super) async fn reserve_recipients(
    tx: &mut Tx,
    inbox: &Inbox,
    limits: Limits,
    recipients: &[Address],
    reservation: &mut Reservation,
) -> Result<Vec<Reason>, StoreError> {
    let others = recipients.iter().map(Address::key).filter(|address| *address != inbox.address);
    let others: Vec<String> = others.collect();
    let since = reservation.at - DAY;
    let mut reasons = Vec::new();
    if let Some(limit) = limits.new_recipients_per_day {
        let known = recipient::known(tx, inbox.key, &others).await?;
        let strangers: Vec<String> = others.iter().filter(|to| !known.contains(*to)).cloned().collect();
        if !strangers.is_empty() {
            let before = recipient::new_since(tx, inbox.key, since).await?;
            reasons.extend(new_recipients(limit, &before, &strangers));
        }
        reservation.strangers = strangers;
    }
    if let Some(limit) = limits.per_recipient_per_day {
        let mut written: BTreeMap<String, Vec<Millis>> = BTreeMap::new();
        for (address, at) in recipient::written_since(tx, inbox.key, &others, since).await? {
            written.entry(address).or_default().push(at);
        }
        for to in &others {
            let before = written.get(to).map_or(&[][..], Vec::as_slice);
            reasons.extend(one_recipient(limit, before, to));
        }
    }
    Ok(reasons)
}

/// `before`: when strangers were written to in the day that ends now, the first first.
fn new_recipients(limit: i64, before: &[Millis], strangers: &[String]) -> Option<Reason> {
    let (used, more) = (before.len() as i64, strangers.len() as i64);
    let retry_at = leaves(limit, before, more)?;
    let say = format!(
        "{used} of {limit} new recipients were written to in the last day; {more} more do not fit. New is who was \
         neither written to from this inbox nor has sent it verified mail."
    );
    let fix = match retry_at {
        Some(at) => format!("Send again at {}, or have an admin raise the limit.", rfc3339(at)),
        None => format!("Write to at most {limit} new recipients at once, or have an admin raise the limit."),
    };
    let evidence =
        [format!("used {used}"), format!("limit {limit}")].into_iter().chain(strangers.iter().cloned());
    let mut reason = Reason::new("limit_new_recipients_per_day", say, fix).with(evidence);
    reason.retry_at = retry_at;
    Some(reason)
}

/// `before`: when this recipient was written to in the day that ends now, the first first.
fn one_recipient(limit: i64, before: &[Millis], to: &str) -> Option<Reason> {
    let retry_at = leaves(limit, before, 1)?;
    let say = format!("{} of {limit} messages in the last day went to {to}.", before.len());
    let fix = match retry_at {
        Some(at) => format!("Send again at {}, or have an admin raise the limit.", rfc3339(at)),
        None => "Have an admin raise the limit.".to_owned(),
    };
    let evidence = [to.to_owned(), format!("used {}", before.len()), format!("limit {limit}")];
    let mut reason = Reason::new("limit_per_recipient_per_day", say, fix).with(evidence);
    reason.retry_at = retry_at;
    Some(reason)
}

/// `None` where `more` fit beside what was written `before`; otherwise when they will, if ever.
fn leaves(limit: i64, before: &[Millis], more: i64) -> Option<Option<Millis>> {
    let over = before.len() as i64 + more - limit;
    if over <= 0 {
        return None;
    }
    let last_to_leave = usize::try_from(over - 1).ok().and_then(|n| before.get(n)).filter(|_| more <= limit);
    Some(last_to_leave.map(|at| at + DAY))
}

#[cfg(test)]
mod recipient_tests;
#[cfg(test)]
mod tests;
