//! Who is next: rows that are due, taken in turns.
//!
//! A group is what one inbox has for one destination at one priority. Groups are found by skipping from one to
//! the next in the index (`delivery_turn`), never by walking over rows: a claim costs the same with ten rows due
//! and with a hundred thousand. Priorities come first, inboxes share what a priority gets, and a scan goes on
//! behind the inbox where the last one ended, so that nobody waits for more than one round.

use std::collections::HashSet;

use super::{Delivery, Priority, from_row};
use crate::clock::Millis;
use crate::ids::InboxKey;
use crate::store::{Row, StoreError, Tx, hold_rule};

/// Rows whose time has come that one claim makes due.
const PROMOTED: i64 = 1_000;

/// What one inbox has for one destination at one priority.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Group {
    pub priority: Priority,
    pub inbox: InboxKey,
    pub domain: String,
}

/// Where the last scan ended, for each priority.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Turn([Place; 3]);

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Place {
    pod: i64,
    inbox: i64,
    /// Empty: behind all of the inbox.
    domain: String,
    /// Inboxes that had something.
    inboxes: i64,
}

/// What a claim took, and what it knows of the rest.
#[derive(Debug, Default)]
pub struct Claimed {
    pub rows: Vec<Delivery>,
    /// There may be more that is due and not busy.
    pub more: bool,
    pub turn: Turn,
}

/// Takes about `limit` rows that are due, except those to `busy`: a JSON array of domains. They are `attempting` and
/// counted when this commits.
pub async fn claim(
    tx: &mut Tx,
    node: &str,
    limit: i64,
    busy: &str,
    turn: &Turn,
) -> Result<Claimed, StoreError> {
    let promoted = promote(tx).await?;
    let groups = scan(tx, limit, busy, turn).await?;
    let mut claimed = Claimed { more: promoted >= PROMOTED as u64, turn: turn.clone(), ..Claimed::default() };
    let mut left = limit;
    for priority in Priority::ALL {
        let of_it: Vec<&Group> = groups.iter().filter(|group| group.priority == priority).collect();
        if of_it.is_empty() || left <= 0 {
            claimed.more |= !of_it.is_empty();
            continue;
        }
        // What is below gets a share too, so that a busy day does not stop it.
        let below = groups.iter().any(|group| group.priority < priority);
        let shares = share(&of_it, if below { (left - limit / 8).max(1) } else { left });
        let taken = take(tx, node, &shares).await?;
        claimed.more |= shares.len() < of_it.len() || is_partial(&shares, &taken);
        claimed.turn.0[priority as usize] = place_after(&shares);
        left -= taken.len() as i64;
        claimed.rows.extend(taken);
    }
    hold(tx, &mut claimed.rows).await?;
    // RETURNING promises no order; a group's messages leave in the order in which they were released.
    claimed.rows.sort_by_key(|d| (std::cmp::Reverse(d.priority), d.inbox, d.delivery_key));
    Ok(claimed)
}

/// What waited for its time is due, once it has come.
async fn promote(tx: &mut Tx) -> Result<u64, StoreError> {
    // Asked first, since there is nothing most of the time, and the statement costs something all the same.
    let some = tx
        .row(
            "SELECT 1 WHERE EXISTS (SELECT 1 FROM delivery WHERE state = 'deferred' AND next_attempt_at <= $1)
                         OR EXISTS (SELECT 1 FROM delivery WHERE state = 'scheduled' AND next_attempt_at <= $1)",
            &[tx.now().into()],
        )
        .await?;
    if some.is_none() {
        return Ok(0);
    }
    let sql = tx.either(
        "UPDATE delivery SET state = 'due' WHERE rowid IN (
             SELECT rowid FROM delivery WHERE state = 'deferred' AND next_attempt_at <= $1
             ORDER BY next_attempt_at LIMIT $2)
            OR rowid IN (
             SELECT rowid FROM delivery WHERE state = 'scheduled' AND next_attempt_at <= $1
             ORDER BY next_attempt_at LIMIT $2)",
        "WITH deferred AS MATERIALIZED (
             SELECT pod_key, inbox_key, delivery_key FROM delivery
             WHERE state = 'deferred' AND next_attempt_at <= $1
             ORDER BY next_attempt_at LIMIT $2 FOR UPDATE SKIP LOCKED),
         scheduled AS MATERIALIZED (
             SELECT pod_key, inbox_key, delivery_key FROM delivery
             WHERE state = 'scheduled' AND next_attempt_at <= $1
             ORDER BY next_attempt_at LIMIT $2 FOR UPDATE SKIP LOCKED)
         UPDATE delivery SET state = 'due'
         WHERE (pod_key, inbox_key, delivery_key) IN (
             SELECT pod_key, inbox_key, delivery_key FROM deferred
             UNION ALL SELECT pod_key, inbox_key, delivery_key FROM scheduled)",
    );
    tx.execute(sql, &[tx.now().into(), PROMOTED.into()]).await
}

/// Groups that have rows due and are not busy, in the order of their turns: `limit` of each priority at most.
async fn scan(tx: &mut Tx, limit: i64, busy: &str, turn: &Turn) -> Result<Vec<Group>, StoreError> {
    // Two chains for each priority: from the place of the last turn to the end, then from the start to there.
    // A step finds the first group behind the place (pod, inbox, domain); domains are never empty, so '' is before
    // all of an inbox's. Once an inbox has `each` groups, the step goes to the next inbox. SQLite looks for `>=` where
    // rows are compared, and walks on from there: with the largest delivery key there is nothing to walk over. Nor may
    // it be asked to order by the priority too: it would sort all that is behind the place, at each step.
    let sql = tx.either(
        "WITH RECURSIVE chain (priority, part, each, end_pod, end_inbox, pod, inbox, domain, free, mine, total) AS (
             SELECT value->>0, value->>1, value->>2, value->>3, value->>4, value->>5, value->>6, value->>7, 0, 0, 0
             FROM json_each($1)
             UNION ALL
             SELECT c.priority, c.part, c.each, c.end_pod, c.end_inbox, d.pod_key, d.inbox_key, d.domain,
                    $2 = '[]' OR d.domain NOT IN (SELECT value FROM json_each($2)),
                    iif(d.inbox_key = c.inbox, c.mine + c.free, 0),
                    c.total + c.free
             FROM chain c JOIN delivery d ON d.rowid = (
                 SELECT x.rowid FROM delivery x INDEXED BY delivery_turn
                 WHERE x.state = 'due' AND x.priority = c.priority
                   AND (x.pod_key, x.inbox_key, x.domain, x.delivery_key) >
                       (c.pod, c.inbox + (c.mine + c.free >= c.each), iif(c.mine + c.free >= c.each, '', c.domain),
                        9223372036854775807)
                 ORDER BY x.pod_key, x.inbox_key, x.domain, x.delivery_key LIMIT 1)
             WHERE c.total + c.free < $3 AND (d.pod_key, d.inbox_key) <= (c.end_pod, c.end_inbox))
         SELECT priority, pod, inbox, domain FROM chain WHERE free = 1
         ORDER BY priority DESC, part, pod, inbox, domain LIMIT 2000",
        "WITH RECURSIVE chain (priority, part, each, end_pod, end_inbox, pod, inbox, domain, free, mine, total) AS (
             SELECT (value->>0)::bigint, (value->>1)::bigint, (value->>2)::bigint, (value->>3)::bigint,
                    (value->>4)::bigint, (value->>5)::bigint, (value->>6)::bigint, value->>7,
                    0::bigint, 0::bigint, 0::bigint
             FROM json_array_elements($1::json)
             UNION ALL
             SELECT c.priority, c.part, c.each, c.end_pod, c.end_inbox, d.pod_key, d.inbox_key, d.domain,
                    CASE WHEN d.domain NOT IN (SELECT json_array_elements_text($2::json))
                         THEN 1::bigint ELSE 0::bigint END,
                    CASE WHEN d.inbox_key = c.inbox THEN c.mine + c.free ELSE 0::bigint END,
                    c.total + c.free
             FROM chain c CROSS JOIN LATERAL (
                 SELECT x.pod_key, x.inbox_key, x.domain FROM delivery x
                 WHERE x.state = 'due' AND x.priority = c.priority
                   AND (x.pod_key, x.inbox_key, x.domain) >
                       (c.pod, c.inbox + CASE WHEN c.mine + c.free >= c.each THEN 1 ELSE 0 END,
                        CASE WHEN c.mine + c.free >= c.each THEN '' ELSE c.domain END)
                 ORDER BY x.priority, x.pod_key, x.inbox_key, x.domain LIMIT 1) d
             WHERE c.total + c.free < $3 AND (d.pod_key, d.inbox_key) <= (c.end_pod, c.end_inbox))
         SELECT priority, pod, inbox, domain FROM chain WHERE free = 1
         ORDER BY priority DESC, part, pod, inbox, domain LIMIT 2000",
    );
    let rows = tx.rows(sql, &[seeds(limit, turn).into(), busy.into(), limit.into()]).await?;
    let mut groups = rows.iter().map(group).collect::<Result<Vec<Group>, StoreError>>()?;
    // An inbox in which the last scan stopped is in both chains.
    let mut seen = HashSet::new();
    groups.retain(|group| seen.insert(group.clone()));
    Ok(groups)
}

fn seeds(limit: i64, turn: &Turn) -> String {
    let mut seeds = Vec::with_capacity(6);
    for priority in Priority::ALL {
        let place = &turn.0[priority as usize];
        let each = (limit / place.inboxes.max(1)).max(1);
        let behind = place.inbox + i64::from(place.domain.is_empty());
        let p = priority as i64;
        seeds.push(serde_json::json!([p, 0, each, i64::MAX, i64::MAX, place.pod, behind, place.domain]));
        seeds.push(serde_json::json!([p, 1, each, place.pod, place.inbox, 0, 0, ""]));
    }
    serde_json::Value::Array(seeds).to_string()
}

fn group(row: &Row) -> Result<Group, StoreError> {
    Ok(Group {
        priority: Priority::parse(row.get(0)?)?,
        inbox: InboxKey { pod: row.get(1)?, inbox: row.get(2)? },
        domain: row.get(3)?,
    })
}

/// How many rows each group of one priority may have: inboxes get the same, and each of their groups too. Those
/// for which nothing is left are left out.
fn share<'a>(groups: &[&'a Group], limit: i64) -> Vec<(&'a Group, i64)> {
    let mut counts: Vec<(i64, i64)> = Vec::new();
    for group in groups {
        match counts.last_mut() {
            Some((inbox, count)) if *inbox == group.inbox.inbox => *count += 1,
            _ => counts.push((group.inbox.inbox, 1)),
        }
    }
    let each = (limit / counts.len().max(1) as i64).max(1);
    let mut shares = Vec::with_capacity(groups.len());
    let mut groups = groups.iter();
    let mut given = 0;
    for (_, count) in counts {
        let quota = (each / count).max(1);
        for (nth, group) in groups.by_ref().take(usize::try_from(count).unwrap_or(0)).enumerate() {
            if given < limit && (nth as i64) < each {
                shares.push((*group, quota));
                given += quota;
            }
        }
    }
    shares
}

/// Whether a group had as many rows as it was given, so that it may have more.
fn is_partial(shares: &[(&Group, i64)], taken: &[Delivery]) -> bool {
    let mut counts = std::collections::HashMap::new();
    for row in taken {
        *counts.entry((row.inbox.inbox, row.domain.as_str())).or_insert(0i64) += 1;
    }
    shares.iter().any(|(group, quota)| counts.get(&(group.inbox.inbox, group.domain.as_str())) == Some(quota))
}

fn place_after(shares: &[(&Group, i64)]) -> Place {
    let Some((last, _)) = shares.last() else { return Place::default() };
    let inboxes: HashSet<i64> = shares.iter().map(|(group, _)| group.inbox.inbox).collect();
    // Alone, an inbox goes on behind its last destination; among others, the next inbox has its turn.
    let domain = if inboxes.len() == 1 { last.domain.clone() } else { String::new() };
    Place { pod: last.inbox.pod, inbox: last.inbox.inbox, domain, inboxes: inboxes.len() as i64 }
}

async fn take(tx: &mut Tx, node: &str, shares: &[(&Group, i64)]) -> Result<Vec<Delivery>, StoreError> {
    if tx.is_postgres() {
        return take_postgres(tx, node, shares).await;
    }
    let mut taken = Vec::new();
    for (group, quota) in shares {
        let rows = tx
            .rows(
                concat!(
                    "UPDATE delivery SET state = 'attempting', attempts = attempts + 1, node = $1,
                            attempting_since = $2, updated_at = $2
                     WHERE rowid IN (
                         SELECT rowid FROM delivery
                         WHERE state = 'due' AND priority = $3 AND pod_key = $4 AND inbox_key = $5 AND domain = $6
                         ORDER BY delivery_key LIMIT $7)
                     RETURNING ",
                    super::columns!()
                ),
                &[
                    node.into(),
                    tx.now().into(),
                    (group.priority as i64).into(),
                    group.inbox.pod.into(),
                    group.inbox.inbox.into(),
                    (&group.domain).into(),
                    (*quota).into(),
                ],
            )
            .await?;
        for row in &rows {
            taken.push(from_row(row)?);
        }
    }
    Ok(taken)
}

async fn take_postgres(
    tx: &mut Tx,
    node: &str,
    shares: &[(&Group, i64)],
) -> Result<Vec<Delivery>, StoreError> {
    let shares: Vec<serde_json::Value> = shares
        .iter()
        .map(|(group, quota)| {
            serde_json::json!({
                "priority": group.priority as i64, "pod": group.inbox.pod, "inbox": group.inbox.inbox,
                "domain": group.domain, "quota": quota,
            })
        })
        .collect();
    // Materialized: a planner that joined the LIMIT in a loop would take more rows than it locks.
    let rows = tx
        .rows(
            concat!(
                "WITH picked AS MATERIALIZED (
                     SELECT d.pod_key, d.inbox_key, d.delivery_key
                     FROM json_to_recordset($3::json)
                          AS g (priority bigint, pod bigint, inbox bigint, domain text, quota bigint)
                     CROSS JOIN LATERAL (
                         SELECT x.pod_key, x.inbox_key, x.delivery_key FROM delivery x
                         WHERE x.state = 'due' AND x.priority = g.priority AND x.pod_key = g.pod
                           AND x.inbox_key = g.inbox AND x.domain = g.domain
                         ORDER BY x.delivery_key LIMIT g.quota FOR UPDATE SKIP LOCKED) d)
                 UPDATE delivery SET state = 'attempting', attempts = attempts + 1, node = $1,
                        attempting_since = $2, updated_at = $2
                 WHERE (pod_key, inbox_key, delivery_key) IN (SELECT pod_key, inbox_key, delivery_key FROM picked)
                 RETURNING ",
                super::columns!()
            ),
            &[node.into(), tx.now().into(), serde_json::Value::Array(shares).to_string().into()],
        )
        .await?;
    rows.iter().map(from_row).collect()
}

/// What a rule holds does not leave, however it came to be due.
async fn hold(tx: &mut Tx, rows: &mut Vec<Delivery>) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let rules = hold_rule::all(tx).await?;
    if rules.is_empty() {
        return Ok(());
    }
    let mut free = Vec::with_capacity(rows.len());
    for row in rows.drain(..) {
        let by_hand = row.held_by.is_some();
        match rules.iter().find(|rule| !by_hand && rule.holds(row.inbox, &row.domain)) {
            Some(rule) => hold_rule::hold_claimed(tx, &row, &rule.name()).await?,
            None => free.push(row),
        }
    }
    *rows = free;
    Ok(())
}

/// When the next row is due: in the past where one is and was not taken; `None` with an empty queue.
pub async fn ahead(tx: &mut Tx) -> Result<Option<Millis>, StoreError> {
    let row = tx
        .row(
            "SELECT (SELECT 0 FROM delivery WHERE state = 'due' LIMIT 1),
                    (SELECT min(next_attempt_at) FROM delivery WHERE state = 'deferred'),
                    (SELECT min(next_attempt_at) FROM delivery WHERE state = 'scheduled')",
            &[],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    let times: [Option<Millis>; 3] = [row.get(0)?, row.get(1)?, row.get(2)?];
    Ok(times.into_iter().flatten().min())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(inbox: i64, domain: &str) -> Group {
        let inbox = InboxKey { pod: 1, inbox };
        Group { priority: Priority::Ordinary, inbox, domain: domain.to_owned() }
    }

    /// A campaign of one agent, to a hundred domains, is one inbox among two.
    #[test]
    fn inboxes_share_whatever_they_have() {
        let campaign: Vec<Group> = (0..100).map(|n| group(1, &format!("{n}.example"))).collect();
        let answer = group(2, "customer.example");
        let all: Vec<&Group> = campaign.iter().chain([&answer]).collect();
        let shares = share(&all, 64);
        let of = |inbox| -> i64 {
            shares.iter().filter(|(g, _)| g.inbox.inbox == inbox).map(|(_, quota)| quota).sum()
        };
        assert_eq!((of(1), of(2)), (32, 32));
        assert_eq!(share(&[&answer], 256), [(&answer, 256)]);
        assert!(share(&[], 256).is_empty());
        let many: Vec<Group> = (0..300).map(|n| group(n, "one.example")).collect();
        assert_eq!(share(&many.iter().collect::<Vec<_>>(), 256).len(), 256);
    }
}
