//! A bad day stops by itself: where remotes refuse too much of what an inbox or a domain sends, or recipients call
//! it spam, its limits are halved, and then it is stopped until a person has looked.
//!
//! The thresholds are those at which senders are put under review elsewhere: 5 % bounces and 0.1 % complaints
//! (Amazon SES, "Sender review process FAQs"; Gmail's sender guidelines ask for less than 0.1 % spam reports).
//! SES weighs a "representative volume" instead of a period. Here it is a sliding day, in whole hours, and at
//! least `rate_minimum` ends (50), so that one bounce among the first three messages stops nobody, while a list of
//! bad addresses is stopped before it is through; complaints, which are rare and come late, need three.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::config::Budgets;
use crate::floor::Floor;
use crate::ids::InboxKey;
use crate::store::budget;
use crate::store::event::{self, NewEvent};
use crate::store::inbox::{self, Limits};
use crate::store::rate::{self, News, Sums};
use crate::store::stop::{self, NewStop, Queued, StopScope};
use crate::store::{StoreError, Tx};
use crate::work;

use super::budgets;
use super::stops::{self, StopError};

/// How often bad news is weighed.
const EVERY: Duration = Duration::from_secs(2);
/// Complaints below which no rate of them counts.
const FEWEST_COMPLAINTS: i64 = 3;

/// What sums lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Course {
    Steady,
    /// Half of every limit.
    Slow,
    Stop(&'static str),
}

/// Pure: where these sums lead.
pub(super) fn course(sums: Sums, budgets: &Budgets) -> Course {
    let ends = sums.delivered + sums.bounced;
    if ends < i64::from(budgets.rate_minimum) {
        return Course::Steady;
    }
    // In parts of ten thousand, so that half of a threshold is a whole number.
    let over =
        |count: i64, per_thousand: u32, part: i64| count * 1_000 * part > ends * i64::from(per_thousand);
    let enough = sums.complained >= FEWEST_COMPLAINTS;
    if over(sums.bounced, budgets.bounces_per_thousand, 1) {
        Course::Stop("bounce_rate")
    } else if enough && over(sums.complained, budgets.complaints_per_thousand, 1) {
        Course::Stop("complaint_rate")
    } else if over(sums.bounced, budgets.bounces_per_thousand, 2)
        || sums.complained > 0 && over(sums.complained, budgets.complaints_per_thousand, 2)
    {
        Course::Slow
    } else {
        Course::Steady
    }
}

/// An inbox's limits as they hold now: halved while it, or its domain, is slowed down.
pub(super) async fn effective(
    tx: &mut Tx,
    budgets: &Budgets,
    key: InboxKey,
    domain: &str,
    limits: Limits,
) -> Result<(Limits, bool), StoreError> {
    let window = i64::try_from(budgets.rate_window.as_millis()).unwrap_or(i64::MAX / 2);
    for scope in [format!("inbox:{}", key.inbox), format!("domain:{domain}")] {
        let sums = rate::sums(tx, &scope, window).await?;
        if course(sums, budgets) != Course::Steady {
            let half = |limit: Option<i64>| limit.map(|n| (n / 2).max(1).min(n));
            let halved = Limits {
                per_minute: half(limits.per_minute),
                per_hour: half(limits.per_hour),
                per_day: half(limits.per_day),
                new_recipients_per_day: half(limits.new_recipients_per_day),
                per_recipient_per_day: half(limits.per_recipient_per_day),
            };
            return Ok((halved, true));
        }
    }
    Ok((limits, false))
}

/// Weighs what came in, until the server stops. Two nodes may weigh the same news: one stop comes of it.
pub async fn watch(floor: Arc<Floor>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        if let Err(error) = look(&floor).await {
            tracing::warn!(%error, "bounces and complaints cannot be weighed");
        }
    }
}

async fn look(floor: &Arc<Floor>) -> Result<(), StopError> {
    // A read first: nothing is written on a quiet server.
    let any = floor.store.read(|tx| {
        Box::pin(async move {
            let any =
                rate::any_news(tx).await? || stop::any_held(tx).await? || budget::any_waiting(tx).await?;
            Ok((any, budget::any_set(tx).await?))
        })
    });
    let (any, set): (bool, bool) = any.await.map_err(|e: StoreError| StopError::from(e))?;
    floor.budgets_set.store(set, Ordering::Relaxed);
    if !any {
        return Ok(());
    }
    let config = floor.config.clone();
    floor
        .store
        .write(move |tx| {
            let config = config.clone();
            Box::pin(async move {
                stop::let_go(tx).await?;
                let mut news = rate::take_news(tx).await?;
                // Inboxes first, in order, then domains: the order of locks.
                news.sort_by_key(|n| (n.scope.starts_with("domain:"), n.inbox));
                for news in news {
                    weigh(tx, &config.budgets, &news).await?;
                }
                budgets::let_go(tx, &config.budgets).await?;
                Ok(())
            })
        })
        .await
}

async fn weigh(tx: &mut Tx, budgets: &Budgets, news: &News) -> Result<(), StopError> {
    let window = i64::try_from(budgets.rate_window.as_millis()).unwrap_or(i64::MAX / 2);
    let sums = rate::sums(tx, &news.scope, window).await?;
    let Course::Stop(rule) = course(sums, budgets) else { return Ok(()) };
    let ends = sums.delivered + sums.bounced;
    let (scope, name) = match news.scope.strip_prefix("domain:") {
        Some(domain) => (StopScope::Domain(domain.to_owned()), domain.to_owned()),
        None => {
            let Some(found) = inbox::by_key(tx, news.inbox).await? else { return Ok(()) };
            (StopScope::Inbox(news.inbox), found.address)
        }
    };
    let reason = match rule {
        "bounce_rate" => format!("{} of {ends} recipients bounced.", sums.bounced),
        _ => format!("{} of {ends} recipients complained.", sums.complained),
    };
    let new = NewStop {
        scope,
        name,
        rule,
        reason: reason.clone(),
        queued: Queued::Hold,
        made_by: "system".to_owned(),
    };
    let Some(stopped) = stops::stop(tx, &new).await? else { return Ok(()) };
    tracing::error!(stop.id = stopped.stop.stop_id, scope = news.scope, reason, "sending is stopped");
    let data = serde_json::json!({
        "stop_id": stopped.stop.stop_id, "scope": stopped.stop.scope.word(), "name": stopped.stop.name,
        "rule": rule, "reason": reason,
    });
    let event = NewEvent {
        event_type: "inbox.stopped",
        thread_key: Some(news.thread_key),
        data: data.to_string(),
        ..NewEvent::default()
    };
    event::append(tx, news.inbox, event).await?;
    work::call_human(tx, news.inbox, news.thread_key, rule).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::floor::testing::TestFloor;

    #[tokio::test]
    async fn bounces_slow_down_and_then_stop_and_a_few_of_the_first_do_not() {
        let test = TestFloor::new().await;
        let budgets = &test.floor.config.budgets;
        let at = |delivered, bounced, complained| course(Sums { delivered, bounced, complained }, budgets);
        assert_eq!(at(3, 3, 0), Course::Steady);
        assert_eq!(at(98, 2, 0), Course::Steady);
        assert_eq!(at(97, 3, 0), Course::Slow);
        assert_eq!(at(95, 5, 0), Course::Slow);
        assert_eq!(at(94, 6, 0), Course::Stop("bounce_rate"));
        assert_eq!(at(1_000, 0, 2), Course::Slow);
        assert_eq!(at(1_000, 0, 3), Course::Stop("complaint_rate"));
        assert_eq!(at(10_000, 0, 3), Course::Steady);
    }
}
