//! What remotes answered, counted by the hour for each inbox and each sending domain (and those of ours above it): what
//! the automatic slow-down and pause go by. Counting is cheap and decides nothing; who weighs the sums is `gate::watch`.
//! What was bad is also counted by the domain of those who said so: the registered one, since names below it cost nothing.

use std::collections::{BTreeMap, BTreeSet, HashSet};

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
    /// It came back before its 250 was noted.
    Reported,
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
    let ours = ours_above(tx, ends).await?;
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
            refusals: BTreeMap::new(),
        };
        let inbox =
            inboxes.entry(delivery.inbox).or_insert_with(|| count(format!("inbox:{}", delivery.inbox.inbox)));
        add(inbox, delivery, *ended);
        let domain = sending_domain(delivery);
        // What a tenant does under a domain of its own is not the doing of the domain above, and of all others below it.
        let of_tenant = ours.contains(&own(domain, delivery));
        for name in std::iter::once(domain).chain(above(domain)) {
            if name == domain
                || (!of_tenant && ours.contains(&(name.to_owned(), None)))
                || ours.contains(&own(name, delivery))
            {
                let domain = domains.entry(name).or_insert_with(|| count(format!("domain:{name}")));
                add(domain, delivery, *ended);
            }
        }
    }
    for count in inboxes.values().chain(domains.values()) {
        write(tx, count).await?;
    }
    Ok(())
}

fn sending_domain(delivery: &Delivery) -> &str {
    delivery.sender.rsplit_once('@').map_or("", |(_, domain)| domain)
}

/// The names above a domain, without those of one label.
fn above(domain: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(parent(domain), |name| parent(name))
}

fn parent(name: &str) -> Option<&str> {
    name.split_once('.').map(|(_, above)| above).filter(|above| above.contains('.'))
}

fn own(name: &str, delivery: &Delivery) -> (String, Option<i64>) {
    (name.to_owned(), Some(delivery.inbox.pod))
}

/// Of the senders' domains and the names above them those that are ours, each with the pod that has it; nothing where
/// there are none above.
async fn ours_above(
    tx: &mut Tx,
    ends: &[(&Delivery, Ended)],
) -> Result<HashSet<(String, Option<i64>)>, StoreError> {
    let senders: BTreeSet<&str> = ends.iter().map(|(delivery, _)| sending_domain(delivery)).collect();
    let mut names: BTreeSet<&str> = senders.iter().flat_map(|domain| above(domain)).collect();
    if names.is_empty() {
        return Ok(HashSet::new());
    }
    names.extend(senders);
    let sql = tx.either(
        "SELECT domain, pod_key FROM domain WHERE (configured = 1 OR status = 'VERIFIED')
           AND domain IN (SELECT value FROM json_each($1)) LIMIT 1000",
        "SELECT domain, pod_key FROM domain WHERE (configured = 1 OR status = 'VERIFIED')
           AND domain = ANY (ARRAY(SELECT json_array_elements_text($1::json))) LIMIT 1000",
    );
    let list = super::message::to_json(&names)?;
    tx.rows(sql, &[list.into()]).await?.iter().map(|row| Ok((row.get(0)?, row.get(1)?))).collect()
}

/// Whose refusal it is: the registered domain of the recipient, or its whole domain where there is none; behind `~` where
/// it came by mail, which whoever has an address there can write, and not from the domain's own server.
fn refuser(delivery: &Delivery, ended: Ended) -> String {
    let domain = psl::domain_str(&delivery.domain).unwrap_or(&delivery.domain);
    match ended {
        Ended::Delivered | Ended::Bounced => domain.to_owned(),
        Ended::BouncedLate | Ended::Reported | Ended::Complained => format!("~{domain}"),
    }
}

/// From the operator's inbox (`inbox::operator_address`) leave reports to strangers, who could ask for many and
/// refuse each of them until everybody's mail is stopped.
pub(crate) fn is_of_operator(delivery: &Delivery) -> bool {
    delivery.sender.starts_with("postmaster@")
}

fn add(count: &mut Count, delivery: &Delivery, ended: Ended) {
    match ended {
        Ended::Delivered => count.delivered += 1,
        Ended::Bounced | Ended::Reported => count.bounced += 1,
        Ended::BouncedLate => (count.delivered, count.bounced) = (count.delivered - 1, count.bounced + 1),
        Ended::Complained => count.complained += 1,
    }
    if ended != Ended::Delivered {
        (count.inbox, count.thread_key) = (delivery.inbox, delivery.thread_key);
        let of_domain = count.refusals.entry(refuser(delivery, ended)).or_default();
        match ended {
            Ended::Complained => of_domain.1 += 1,
            _ => of_domain.0 += 1,
        }
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
    /// By registered domain of the recipients: bounces, complaints.
    pub refusals: BTreeMap<String, (i64, i64)>,
}

/// The sums of a scope since some hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sums {
    pub delivered: i64,
    pub bounced: i64,
    pub complained: i64,
}

/// What one recipient domain has of the bad in the sums.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusals {
    /// The registered one.
    pub domain: String,
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
        for sql in [
            "DELETE FROM outcome_hour WHERE scope = $1 AND hour < $2",
            "DELETE FROM refusal_hour WHERE scope = $1 AND hour < $2",
        ] {
            tx.execute(sql, &[(&count.scope).into(), (hour - KEPT).into()]).await?;
        }
    }
    for (domain, (bounced, complained)) in &count.refusals {
        tx.execute(
            "INSERT INTO refusal_hour (scope, hour, domain, bounced, complained) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (scope, hour, domain) DO UPDATE SET bounced = refusal_hour.bounced + excluded.bounced,
                 complained = refusal_hour.complained + excluded.complained",
            &[
                (&count.scope).into(),
                hour.into(),
                domain.into(),
                (*bounced).into(),
                (*complained).into(),
            ],
        )
        .await?;
    }
    Ok(())
}

/// The bad in the sums by whose it is, in the same hours; the most first.
pub(crate) async fn refusals(tx: &mut Tx, scope: &str, window: Millis) -> Result<Vec<Refusals>, StoreError> {
    let since = (tx.now() - window).div_euclid(HOUR) + 1;
    let rows = tx
        .rows(
            "SELECT domain, CAST(sum(bounced) AS BIGINT) AS b, CAST(sum(complained) AS BIGINT) AS c
             FROM refusal_hour WHERE scope = $1 AND hour >= $2 GROUP BY domain ORDER BY b DESC, c DESC LIMIT 1000",
            &[scope.into(), since.into()],
        )
        .await?;
    let read = |row: &super::Row| {
        Ok(Refusals { domain: row.get(0)?, bounced: row.get(1)?, complained: row.get(2)? })
    };
    rows.iter().map(read).collect()
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
    tx.execute("DELETE FROM refusal_hour WHERE scope = $1", &[scope.into()]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::floor::testing::TestFloor;
    use crate::store::delivery::{Priority, TlsDemand};
    use crate::store::domain;

    fn to(sender: &str, recipient: &str) -> Delivery {
        let (_, domain) = recipient.rsplit_once('@').unwrap();
        Delivery {
            inbox: InboxKey { pod: 1, inbox: 2 },
            delivery_key: 3,
            message_key: 4,
            recipient: recipient.to_owned(),
            domain: domain.to_owned(),
            route: Route::Relay,
            state: "attempting".to_owned(),
            priority: Priority::Ordinary,
            held_by: None,
            via: None,
            tls: TlsDemand::Usual,
            next_attempt_at: 0,
            attempts: 1,
            maybe_duplicate: false,
            last_status: None,
            last_reply: None,
            expires_at: 0,
            created_at: 0,
            updated_at: 0,
            thread_key: 5,
            sender: sender.to_owned(),
            size: 6,
            notice_at: None,
            outcome_class: None,
            waits_for: None,
            charged: Vec::new(),
        }
    }

    /// A name further to the left hides nothing from the rate of the domain; who refuses is known by the registered name.
    #[tokio::test]
    async fn what_leaves_below_a_domain_of_ours_counts_for_it_too() {
        let test = TestFloor::new().await;
        let counted: Result<_, StoreError> = test
            .floor
            .store
            .write(|tx| {
                Box::pin(async move {
                    domain::sync_configured(tx, &["agents.example".to_owned()]).await?;
                    let ends = [
                        to("ada@agents.example", "a@one.example"),
                        to("ada@x.eu.agents.example", "b@mail.one.example"),
                        to("ada@x.eu.agents.example", "c@two.co.uk"),
                        to("ada@other.example", "d@two.co.uk"),
                    ];
                    let ends: Vec<_> = ends.iter().map(|delivery| (delivery, Ended::Bounced)).collect();
                    note_outcomes(tx, &ends).await?;
                    let mut bounced = Vec::new();
                    for name in
                        ["agents.example", "eu.agents.example", "x.eu.agents.example", "other.example"]
                    {
                        bounced.push(sums(tx, &format!("domain:{name}"), 24 * HOUR).await?.bounced);
                    }
                    Ok((bounced, refusals(tx, "domain:agents.example", 24 * HOUR).await?))
                })
            })
            .await;
        let (bounced, refusals) = counted.unwrap();
        // eu.agents.example is no domain of ours by itself.
        assert_eq!(bounced, [3, 0, 2, 1]);
        let whose: Vec<_> = refusals.iter().map(|one| (one.domain.as_str(), one.bounced)).collect();
        assert_eq!(whose, [("one.example", 2), ("two.co.uk", 1)]);
    }
}
