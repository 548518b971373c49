//! Sending reports to domains that ask for them: once for each domain and UTC day, at a time of the next day that is
//! spread by the domain's name.
//!
//! A worker on every node writes the counts down and takes what is due, one report at a time. It is made and put into
//! the queue in one transaction with the note that it was sent, so a crash at any point sends it once; what cannot be
//! found out yet is tried again for a day. RFC 9990 §3.5.

use std::sync::Arc;
use std::time::Duration;

use mail_auth::report::Record;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::destination::{self, Destination};
use super::letterhead::{Letterhead, Period, gzip};
use super::{ReportKind, aggregate, tls_out};
use crate::clock::{DAY, HOUR, Millis};
use crate::config::limits::{REPORT_ATTEMPTS, REPORT_LEASE, REPORT_RETRY};
use crate::dns::DnsError;
use crate::floor::Floor;
use crate::gate::{self, ServerLetter, ServerSent};
use crate::store::StoreError;
use crate::store::report_out::{self, Counted, Due};

/// How often counts are written and what is due is looked for.
const TICK: Duration = Duration::from_secs(60);
/// After midnight UTC: every node has written its counts of the day by then.
const SETTLED: Millis = HOUR / 4;
/// Reports are spread over so much of the day after.
const SPREAD: Millis = 12 * HOUR;
/// Rows that one transaction writes.
const BATCH: usize = 200;

/// Works until `shutdown`, and writes down what was counted before it ends.
pub async fn run(floor: Arc<Floor>, shutdown: CancellationToken) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut scheduled = None;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            _ = tick.tick() => {}
        }
        write_counts(&floor).await;
        // The last day of which every node has written its counts.
        let day = (floor.clock.now() - SETTLED).div_euclid(DAY) - 1;
        if floor.config.reports.tls && scheduled != Some(day) {
            match tls_out::schedule(&floor, day).await {
                Ok(()) => scheduled = Some(day),
                Err(error) => {
                    tracing::warn!(%error, "TLS reports wait: the database cannot be reached");
                }
            }
        }
        if let Err(error) = send_due(&floor, &shutdown).await {
            tracing::warn!(%error, "reports wait: the database cannot be reached");
        }
    }
    write_counts(&floor).await;
}

/// Writes the counts of this process down. What cannot be written is lost, with a word in the log.
async fn write_counts(floor: &Floor) {
    for (day, domain, rows, left_out) in floor.tally.take() {
        let due_at = due_at(day, &domain);
        let mut left_out = Some(i64::from(left_out));
        let rows: Vec<(String, i64)> = rows
            .into_iter()
            .filter_map(|(record, n)| Some((serde_json::to_string(&record).ok()?, i64::from(n))))
            .collect();
        let batches = rows.chunks(BATCH).map(<[_]>::to_vec);
        // A domain with nothing but what was left out still has its row.
        for rows in batches.chain(rows.is_empty().then(Vec::new)) {
            let left_out = left_out.take().unwrap_or(0);
            let counted = Arc::new(Counted { day, domain: domain.clone(), due_at, rows, left_out });
            let written: Result<(), StoreError> = floor
                .store
                .write(move |tx| {
                    let counted = counted.clone();
                    Box::pin(async move { report_out::count(tx, &counted).await })
                })
                .await;
            if let Err(error) = written {
                tracing::warn!(%error, domain, "counts for a report are lost");
            }
        }
    }
}

/// When the report of a domain's day is due: each domain has its time, so that not all leave at midnight.
pub(super) fn due_at(day: i64, domain: &str) -> Millis {
    let digest = Sha256::digest(domain);
    let spread = digest.iter().take(4).fold(0_i64, |n, octet| (n << 8) | i64::from(*octet));
    (day + 1) * DAY + SETTLED + spread % SPREAD
}

/// Everything that is due, one after the other.
async fn send_due(floor: &Arc<Floor>, shutdown: &CancellationToken) -> Result<(), StoreError> {
    while !shutdown.is_cancelled() {
        let lease = i64::try_from(REPORT_LEASE.as_millis()).unwrap_or(i64::MAX / 2);
        let due = floor.store.write(move |tx| Box::pin(report_out::claim(tx, lease)));
        let due: Option<Due> = due.await?;
        let Some(due) = due else { break };
        let (kind, domain) = (due.kind.clone(), due.domain.clone());
        // Whatever happens, the claim ends by itself, and the attempt is counted.
        let outcome = match kind == ReportKind::Tls.text() {
            true => tokio::time::timeout(REPORT_LEASE / 2, tls_out::send(floor, &due)).await,
            false => tokio::time::timeout(REPORT_LEASE / 2, send_dmarc(floor, &due)).await,
        };
        match outcome {
            Ok(Ok(state)) => tracing::info!(kind, domain, day = due.day, state, "a report"),
            Ok(Err(SendError::Store(error))) => return Err(error),
            Ok(Err(SendError::Later(why))) => later(floor, due, &why).await?,
            Err(_) => later(floor, due, "it took too long").await?,
        }
    }
    Ok(())
}

#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something is not known now.
    #[error("{0}")]
    Later(String),
}

impl From<DnsError> for SendError {
    fn from(error: DnsError) -> SendError {
        SendError::Later(error.to_string())
    }
}

/// RFC 8460 §4.1: tried again for a day, at rising intervals.
async fn later(floor: &Arc<Floor>, due: Due, why: &str) -> Result<(), StoreError> {
    tracing::info!(kind = due.kind, domain = due.domain, why, "a report waits");
    let detail = json!([{ "why": super::clip(why) }]);
    if due.attempts >= REPORT_ATTEMPTS {
        let total = due.total;
        return finish(floor, due, "failed", total, detail, Vec::new()).await.map(drop);
    }
    let due = Arc::new((due, detail));
    floor
        .store
        .write(move |tx| {
            let due = due.clone();
            Box::pin(async move {
                let wait = REPORT_RETRY << due.0.attempts.clamp(0, 4);
                report_out::postpone(tx, &due.0, tx.now() + wait, &due.1).await
            })
        })
        .await
}

async fn send_dmarc(floor: &Arc<Floor>, due: &Due) -> Result<&'static str, SendError> {
    let unwanted = |why: &str| (json!([{ "why": why }]), Vec::new());
    if !floor.config.reports.dmarc {
        let (detail, letters) = unwanted("reports.dmarc is off");
        return Ok(finish(floor, due.clone(), "unwanted", due.total, detail, letters).await?);
    }
    let dns = &floor.dns;
    // As it stands now: a record that changed in between is what its owner wants (RFC 9990 §3.2, the final one).
    let tags = destination::record(dns, &format!("_dmarc.{}", due.domain), "DMARC1").await?;
    let wanted = tags.as_deref().and_then(|tags| destination::value(tags, "rua")).map(destination::parse);
    let (Some(tags), Some(wanted)) = (tags, wanted) else {
        let (detail, letters) = unwanted("its DMARC record asks for no reports");
        return Ok(finish(floor, due.clone(), "unwanted", due.total, detail, letters).await?);
    };
    let (day, domain) = (due.day, due.domain.clone());
    let rows = floor.store.read(move |tx| {
        let domain = domain.clone();
        Box::pin(async move { report_out::rows(tx, day, &domain).await })
    });
    let rows: Vec<(String, i64)> = rows.await?;
    let rows: Vec<Record> = rows.iter().filter_map(|(record, count)| row(record, *count)).collect();
    if rows.is_empty() {
        let (detail, letters) = unwanted("nothing was counted");
        return Ok(finish(floor, due.clone(), "unwanted", due.total, detail, letters).await?);
    }
    let head = Letterhead::new(floor, due);
    let period = Period::new(due);
    let xml = aggregate::xml(&head, &period, &tags, rows, due.left_out);
    let packed = tokio::task::spawn_blocking(move || gzip(xml.as_bytes()));
    let packed = packed.await.map_err(|error| SendError::Later(error.to_string()))?;
    let (mut details, mut letters) = (Vec::new(), Vec::new());
    for (n, asked) in wanted.into_iter().enumerate() {
        let shown = shown(&asked);
        let Some(Destination::Mail { to, most }) = destination::permitted(dns, &due.domain, asked).await?
        else {
            details.push(json!({ "to": shown, "state": "refused", "why": "it does not permit reports about this domain" }));
            continue;
        };
        let head = head.to(to.clone(), n);
        let raw = aggregate::mail(&head, &period, packed.clone());
        // RFC 9990 §3.5: after compression and encoding.
        if most.is_some_and(|most| raw.len() as u64 > most) {
            details.push(json!({ "to": to.to_string(), "state": "refused", "why": "larger than it takes" }));
            continue;
        }
        match gate::prepare_by_server(floor, head.from.clone(), to, &raw, "dmarc_report").await? {
            Some(letter) => letters.push(letter),
            None => return Err(SendError::Later("there is no operator's inbox to send from".to_owned())),
        }
    }
    let state = if letters.is_empty() { "unwanted" } else { "sent" };
    Ok(finish(floor, due.clone(), state, due.total, Value::Array(details), letters).await?)
}

fn row(record: &str, count: i64) -> Option<Record> {
    let mut record: Record = serde_json::from_str(record).ok()?;
    record.row.count = u32::try_from(count).unwrap_or(u32::MAX);
    Some(record)
}

pub(super) fn shown(destination: &Destination) -> String {
    match destination {
        Destination::Mail { to, .. } => to.to_string(),
        Destination::Https(url) => super::clip(url),
    }
}

/// The last step, in one transaction: the letters are in the queue and the report is done.
///
/// Crash argument: before its COMMIT nothing left and the report is due again; after it the queue has every letter.
/// Where the attempt is another node's by now, nothing of this is kept.
pub(super) async fn finish(
    floor: &Arc<Floor>,
    due: Due,
    state: &'static str,
    total: i64,
    detail: Value,
    letters: Vec<ServerLetter>,
) -> Result<&'static str, StoreError> {
    let job = Arc::new((due, detail, letters));
    let done: Result<(), Finish> = floor
        .store
        .write(move |tx| {
            let job = job.clone();
            Box::pin(async move {
                let (due, detail, letters) = &*job;
                let mut details = detail.as_array().cloned().unwrap_or_default();
                for letter in letters {
                    let to = letter.to().to_string();
                    details.push(match gate::send_by_server(tx, letter).await? {
                        ServerSent::Queued(id) => json!({ "to": to, "state": "queued", "message_id": id }),
                        ServerSent::Suppressed => {
                            json!({ "to": to, "state": "refused", "why": "suppressed" })
                        }
                    });
                }
                let done = report_out::finish(tx, due, state, total, &Value::Array(details)).await?;
                if done { Ok(()) } else { Err(Finish::Lost) }
            })
        })
        .await;
    match done {
        Ok(()) => Ok(state),
        Err(Finish::Lost) => Ok("left to another node"),
        Err(Finish::Store(error)) => Err(error),
    }
}

enum Finish {
    Store(StoreError),
    /// Another node has it: undo.
    Lost,
}

impl From<StoreError> for Finish {
    fn from(error: StoreError) -> Finish {
        Finish::Store(error)
    }
}
