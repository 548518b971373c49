//! A bad day stops by itself: where remotes refuse too much of what an inbox or a domain sends, or recipients call
//! it spam, its limits are halved, and then it is stopped until a person has looked.
//!
//! The thresholds are those at which senders are put under review elsewhere: 5 % bounces and 0.1 % complaints
//! (Amazon SES, "Sender review process FAQs"; Gmail's sender guidelines ask for less than 0.1 % spam reports).
//! SES weighs a "representative volume" instead of a period. Here it is a sliding day, in whole hours, and at
//! least `rate_minimum` ends (50), so that one bounce among the first three messages stops nobody, while a list of
//! bad addresses is stopped before it is through; complaints, which are rare and come late, need three.
//!
//! The same loop lets go what waited for a stop or for a budget (`budgets::let_go`).
//!
//! No recipient domain carries a rate alone: whoever is answered could refuse, or complain, until everybody is stopped.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::config::Budgets;
use crate::floor::Floor;
use crate::ids::InboxKey;
use crate::store::budget;
use crate::store::domain;
use crate::store::event::{self, NewEvent};
use crate::store::inbox::{self, Limits};
use crate::store::rate::{self, News, Refusals, Sums};
use crate::store::stop::{self, NewStop, Queued, StopScope};
use crate::store::{StoreError, Tx};
use crate::work;

use super::budgets;
use super::stops::{self, StopError};

/// How often bad news is weighed, and what a stop or a budget keeps waiting is looked at.
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

/// Mailbox providers where anybody has an address and nobody who has one decides what the server answers: what is
/// refused there counts in full, or a list of dead addresses at one of them would stop nobody. By hand: those that most
/// consumer lists consist of.
const OPEN_TO_ALL: &[&str] = &[
    "163.com",
    "126.com",
    "aol.com",
    "comcast.net",
    "fastmail.com",
    "free.fr",
    "freenet.de",
    "gmail.com",
    "gmx.at",
    "gmx.ch",
    "gmx.com",
    "gmx.de",
    "gmx.net",
    "googlemail.com",
    "hotmail.co.uk",
    "hotmail.com",
    "hotmail.de",
    "hotmail.fr",
    "hotmail.it",
    "icloud.com",
    "laposte.net",
    "libero.it",
    "live.com",
    "mac.com",
    "mail.ru",
    "me.com",
    "msn.com",
    "naver.com",
    "orange.fr",
    "outlook.com",
    "proton.me",
    "protonmail.com",
    "qq.com",
    "seznam.cz",
    "t-online.de",
    "web.de",
    "wp.pl",
    "yahoo.co.jp",
    "yahoo.co.uk",
    "yahoo.com",
    "yahoo.de",
    "yahoo.fr",
    "yandex.com",
    "yandex.ru",
    "ymail.com",
];
/// What one recipient domain can add: a quarter of the bounces that a rate allows, so that five have to refuse before
/// anything stops (and three before it slows down).
const DOMAINS_BELOW_A_STOP: i64 = 4;
/// And a third of the complaints.
const COMPLAINING_DOMAINS: i64 = 3;
/// Parts of one bounce, so that shares are whole numbers.
const PARTS: i64 = 1_000 * DOMAINS_BELOW_A_STOP * COMPLAINING_DOMAINS;

/// What counts of what was refused, in `PARTS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Weight {
    ends: i64,
    bounced: i64,
    complained: i64,
}

impl Weight {
    fn of(sums: Sums) -> Weight {
        Weight {
            ends: sums.delivered + sums.bounced,
            bounced: sums.bounced * PARTS,
            complained: sums.complained * PARTS,
        }
    }

    /// Less what one domain has above its share. Whoever is answered and then refuses, or calls every answer spam, would
    /// otherwise stop an inbox, and on a shared domain everybody, by writing to it often enough. A bad list has its dead
    /// addresses at many domains, or at the large providers.
    fn without_what_one_domain_has_too_much(mut self, refusals: &[Refusals], budgets: &Budgets) -> Weight {
        let allowed = |per_thousand: u32| self.ends * i64::from(per_thousand) * (PARTS / 1_000);
        let bounces = allowed(budgets.bounces_per_thousand) / DOMAINS_BELOW_A_STOP;
        let fewest = FEWEST_COMPLAINTS * PARTS;
        let complaints = allowed(budgets.complaints_per_thousand).max(fewest) / COMPLAINING_DOMAINS;
        for one in refusals.iter().filter(|one| !OPEN_TO_ALL.contains(&one.domain.as_str())) {
            self.bounced -= (one.bounced * PARTS - bounces).max(0);
            self.complained -= (one.complained * PARTS - complaints).max(0);
        }
        self
    }
}

/// Where a scope stands. Who refused is looked up only where it may matter.
async fn standing(tx: &mut Tx, budgets: &Budgets, scope: &str) -> Result<(Sums, Course), StoreError> {
    let window = i64::try_from(budgets.rate_window.as_millis()).unwrap_or(i64::MAX / 2);
    let sums = rate::sums(tx, scope, window).await?;
    let raw = Weight::of(sums);
    if course(raw, budgets) == Course::Steady {
        return Ok((sums, Course::Steady));
    }
    let refusals = rate::refusals(tx, scope, window).await?;
    let weighed = raw.without_what_one_domain_has_too_much(&refusals, budgets);
    Ok((sums, course(weighed, budgets)))
}

/// Pure: where this leads.
fn course(weight: Weight, budgets: &Budgets) -> Course {
    let Weight { ends, bounced, complained } = weight;
    if ends < i64::from(budgets.rate_minimum) {
        return Course::Steady;
    }
    let over = |parts: i64, per_thousand: u32, part: i64| {
        parts * part > ends * i64::from(per_thousand) * (PARTS / 1_000)
    };
    let enough = complained >= FEWEST_COMPLAINTS * PARTS;
    if over(bounced, budgets.bounces_per_thousand, 1) {
        Course::Stop("bounce_rate")
    } else if enough && over(complained, budgets.complaints_per_thousand, 1) {
        Course::Stop("complaint_rate")
    } else if over(bounced, budgets.bounces_per_thousand, 2)
        || complained > 0 && over(complained, budgets.complaints_per_thousand, 2)
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
    for scope in [format!("inbox:{}", key.inbox), format!("domain:{domain}")] {
        if standing(tx, budgets, &scope).await?.1 != Course::Steady {
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
            tracing::warn!(%error, "bounces, complaints, stops and budgets cannot be looked at");
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
    let (sums, course) = standing(tx, budgets, &news.scope).await?;
    let Course::Stop(rule) = course else { return Ok(()) };
    let ends = sums.delivered + sums.bounced;
    let (scope, name) = match news.scope.strip_prefix("domain:") {
        Some(name) => {
            // A pod's domain stops that pod; one below it may be another's.
            let pod = domain::by_name(tx, name).await?.and_then(|domain| domain.pod);
            (StopScope::Domain { name: name.to_owned(), pod }, name.to_owned())
        }
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

    fn at(budgets: &Budgets, sums: (i64, i64, i64), refusals: &[(&str, i64, i64)]) -> Course {
        let sums = Sums { delivered: sums.0, bounced: sums.1, complained: sums.2 };
        let refusal = |&(domain, bounced, complained): &(&str, i64, i64)| Refusals {
            domain: domain.to_owned(),
            bounced,
            complained,
        };
        let refusals: Vec<Refusals> = refusals.iter().map(refusal).collect();
        course(Weight::of(sums).without_what_one_domain_has_too_much(&refusals, budgets), budgets)
    }

    #[tokio::test]
    async fn bounces_slow_down_and_then_stop_and_a_few_of_the_first_do_not() {
        let test = TestFloor::new().await;
        let budgets = &test.floor.config.budgets;
        let at = |delivered, bounced, complained| at(budgets, (delivered, bounced, complained), &[]);
        assert_eq!(at(3, 3, 0), Course::Steady);
        assert_eq!(at(98, 2, 0), Course::Steady);
        assert_eq!(at(97, 3, 0), Course::Slow);
        assert_eq!(at(95, 5, 0), Course::Slow);
        assert_eq!(at(94, 6, 0), Course::Stop("bounce_rate"));
        assert_eq!(at(1_000, 0, 2), Course::Slow);
        assert_eq!(at(1_000, 0, 3), Course::Stop("complaint_rate"));
        assert_eq!(at(10_000, 0, 3), Course::Steady);
    }

    /// Whoever is answered can refuse or complain: one domain stops nobody. Its complaints alone can slow down, its bounces
    /// cannot.
    #[tokio::test]
    async fn one_domain_alone_stops_nobody() {
        let test = TestFloor::new().await;
        let budgets = &test.floor.config.budgets;
        assert_eq!(at(budgets, (100, 900, 0), &[("evil.example", 900, 0)]), Course::Steady);
        assert_eq!(at(budgets, (1_000, 0, 500), &[("evil.example", 0, 500)]), Course::Slow);
        // Beside it, what others refuse counts as ever.
        let beside =
            [("evil.example", 900, 0), ("a.example", 6, 0), ("b.example", 6, 0), ("c.example", 6, 0)];
        assert_eq!(at(budgets, (100, 918, 0), &beside), Course::Slow);
        // Many domains: a bad list. At a provider, where nobody decides how it answers: a bad list, too.
        let list: Vec<String> = (0..60).map(|n| format!("{n}.example")).collect();
        let list: Vec<_> = list.iter().map(|domain| (domain.as_str(), 1, 0)).collect();
        assert_eq!(at(budgets, (940, 60, 0), &list), Course::Stop("bounce_rate"));
        assert_eq!(at(budgets, (940, 60, 0), &[("gmail.com", 60, 0)]), Course::Stop("bounce_rate"));
        let three = [("a.example", 0, 1), ("b.example", 0, 1), ("c.example", 0, 1)];
        assert_eq!(at(budgets, (1_000, 0, 3), &three), Course::Stop("complaint_rate"));
        assert_eq!(at(budgets, (1_000, 0, 3), &[("a.example", 0, 3)]), Course::Slow);
        // What was counted before it was known whose it was counts in full.
        assert_eq!(at(budgets, (94, 6, 0), &[]), Course::Stop("bounce_rate"));
    }
}
