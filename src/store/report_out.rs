//! Reports that we send: the counts that they are made of, and what became of each.
//!
//! One row for each kind, day and domain, `due` until it is `sent`, `unwanted` (nobody asks for it any more) or
//! `failed`. A node claims it for a while and counts the attempt; what it comes to is written only while the row is
//! still in that attempt, so that of several nodes one sends. Bounded: rows per domain and day, rows per day.

use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use super::page::{Page, Place};
use super::{Row, StoreError, Tx};
use crate::clock::Millis;
use crate::config::limits::{DMARC_ROWS_A_DAY, DMARC_ROWS_A_DOMAIN};
use crate::reports::ReportKind;

/// Messages counted for one domain on one day.
#[derive(Debug, Clone)]
pub struct Counted {
    pub day: i64,
    pub domain: String,
    /// When its report will be due.
    pub due_at: Millis,
    /// Rows of the report as JSON, each with its number of messages.
    pub rows: Vec<(String, i64)>,
    /// Messages that found no room before they came here.
    pub left_out: i64,
}

/// Adds counts to what the database has of that day.
pub async fn count(tx: &mut Tx, counted: &Counted) -> Result<(), StoreError> {
    let Counted { day, domain, .. } = counted;
    let key = [(*day).into(), domain.into()];
    // PostgreSQL sums to a decimal.
    let sql = "SELECT CAST(coalesce(sum(row_count), 0) AS BIGINT), count(*) FROM report_out
               WHERE day = $1 AND kind = 'dmarc'";
    let (all, domains): (i64, i64) = match tx.row(sql, &[(*day).into()]).await? {
        Some(row) => (row.get(0)?, row.get(1)?),
        None => (0, 0),
    };
    // A domain costs a row here, too.
    let room = DMARC_ROWS_A_DAY - all - domains;
    if room > 0 {
        schedule(tx, ReportKind::Dmarc, *day, domain, counted.due_at).await?;
    }
    let sql = tx.either(
        "SELECT row_count FROM report_out WHERE day = $1 AND kind = 'dmarc' AND domain = $2 AND state = 'due'",
        "SELECT row_count FROM report_out WHERE day = $1 AND kind = 'dmarc' AND domain = $2 AND state = 'due'
         FOR UPDATE",
    );
    // Too many domains, or the report has left already: best effort ends here.
    let Some(row) = tx.row(sql, &key).await? else { return Ok(()) };
    let before: i64 = row.get(0)?;
    let most = DMARC_ROWS_A_DOMAIN.min(before.saturating_add(room));
    let (mut rows, mut left_out, mut total) = (before, counted.left_out, counted.left_out);
    for (record, messages) in &counted.rows {
        total += messages;
        let hash = Sha256::digest(record).to_vec();
        let args = [(*day).into(), domain.into(), hash.into(), (*messages).into()];
        let more = "UPDATE dmarc_tally SET count = count + $4 WHERE day = $1 AND domain = $2 AND hash = $3";
        if tx.execute(more, &args).await? > 0 {
            continue;
        }
        if rows >= most {
            left_out += messages;
            continue;
        }
        rows += 1;
        let [a, b, c, d] = args;
        let new = "INSERT INTO dmarc_tally (day, domain, hash, count, record) VALUES ($1, $2, $3, $4, $5)";
        tx.execute(new, &[a, b, c, d, record.into()]).await?;
    }
    tx.execute(
        "UPDATE report_out SET row_count = $3, total = total + $4, left_out = left_out + $5, updated_at = $6
         WHERE day = $1 AND kind = 'dmarc' AND domain = $2",
        &[(*day).into(), domain.into(), rows.into(), total.into(), left_out.into(), tx.now().into()],
    )
    .await?;
    Ok(())
}

/// A report will be due; nothing where that is known.
pub async fn schedule(
    tx: &mut Tx,
    kind: ReportKind,
    day: i64,
    domain: &str,
    due_at: Millis,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO report_out (kind, day, domain, state, due_at, updated_at) VALUES ($1, $2, $3, 'due', $4, $5)
         ON CONFLICT DO NOTHING",
        &[kind.text().into(), day.into(), domain.into(), due_at.into(), tx.now().into()],
    )
    .await?;
    Ok(())
}

/// A report that this node makes now.
#[derive(Debug, Clone)]
pub struct Due {
    pub kind: String,
    pub day: i64,
    pub domain: String,
    /// This one included.
    pub attempts: i64,
    pub total: i64,
    pub left_out: i64,
}

/// Takes the report that is due the longest, for `lease` milliseconds.
pub async fn claim(tx: &mut Tx, lease: Millis) -> Result<Option<Due>, StoreError> {
    let sql = tx.either(
        "UPDATE report_out SET attempts = attempts + 1, claimed_until = $2, updated_at = $1
         WHERE (day, kind, domain) IN (SELECT day, kind, domain FROM report_out
             WHERE state = 'due' AND due_at <= $1 AND claimed_until <= $1 ORDER BY due_at LIMIT 1)
         RETURNING kind, day, domain, attempts, total, left_out",
        "WITH picked AS MATERIALIZED (SELECT day, kind, domain FROM report_out
             WHERE state = 'due' AND due_at <= $1 AND claimed_until <= $1
             ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED)
         UPDATE report_out SET attempts = attempts + 1, claimed_until = $2, updated_at = $1
         WHERE (day, kind, domain) IN (SELECT day, kind, domain FROM picked)
         RETURNING kind, day, domain, attempts, total, left_out",
    );
    let row = tx.row(sql, &[tx.now().into(), (tx.now() + lease).into()]).await?;
    row.map(|row| {
        Ok(Due {
            kind: row.get(0)?,
            day: row.get(1)?,
            domain: row.get(2)?,
            attempts: row.get(3)?,
            total: row.get(4)?,
            left_out: row.get(5)?,
        })
    })
    .transpose()
}

/// The rows of a domain's day, with their numbers of messages.
pub async fn rows(tx: &mut Tx, day: i64, domain: &str) -> Result<Vec<(String, i64)>, StoreError> {
    let sql = "SELECT record, count FROM dmarc_tally WHERE day = $1 AND domain = $2 ORDER BY hash LIMIT $3";
    let rows = tx.rows(sql, &[day.into(), domain.into(), DMARC_ROWS_A_DOMAIN.into()]).await?;
    rows.iter().map(|row| Ok((row.get(0)?, row.get(1)?))).collect()
}

/// It is over: `sent`, `unwanted` or `failed`, and its counts are gone. `false` where the attempt is another's by
/// now: then the caller must undo what it did in this transaction.
pub async fn finish(
    tx: &mut Tx,
    due: &Due,
    state: &str,
    total: i64,
    detail: &Json,
) -> Result<bool, StoreError> {
    let done = tx
        .execute(
            "UPDATE report_out SET state = $5, detail = $6, total = $7, updated_at = $8
             WHERE day = $1 AND kind = $2 AND domain = $3 AND attempts = $4 AND state = 'due'",
            &[
                due.day.into(),
                (&due.kind).into(),
                (&due.domain).into(),
                due.attempts.into(),
                state.into(),
                detail.to_string().into(),
                total.into(),
                tx.now().into(),
            ],
        )
        .await?;
    if done == 1 && due.kind == ReportKind::Dmarc.text() {
        let sql = "DELETE FROM dmarc_tally WHERE day = $1 AND domain = $2";
        tx.execute(sql, &[due.day.into(), (&due.domain).into()]).await?;
    }
    Ok(done == 1)
}

/// Tried again later.
pub async fn postpone(tx: &mut Tx, due: &Due, due_at: Millis, detail: &Json) -> Result<(), StoreError> {
    tx.execute(
        "UPDATE report_out SET due_at = $5, claimed_until = 0, detail = $6, updated_at = $7
         WHERE day = $1 AND kind = $2 AND domain = $3 AND attempts = $4 AND state = 'due'",
        &[
            due.day.into(),
            (&due.kind).into(),
            (&due.domain).into(),
            due.attempts.into(),
            due_at.into(),
            detail.to_string().into(),
            tx.now().into(),
        ],
    )
    .await?;
    Ok(())
}

/// A report that was, or will be, sent, as a listing shows it.
#[derive(Debug, Clone)]
pub struct SentReport {
    pub kind: String,
    pub day: i64,
    pub domain: String,
    pub state: String,
    pub due_at: Millis,
    pub attempts: i64,
    pub total: i64,
    pub left_out: i64,
    pub detail: String,
    pub updated_at: Millis,
}

impl SentReport {
    pub fn place(&self) -> Place {
        Place { at: self.day, key: [0; 3], text: format!("{}/{}", self.kind, self.domain) }
    }
}

/// Days newest first; of one day, DMARC before TLS, by the domain's name.
pub async fn page(tx: &mut Tx, domain: Option<&str>, page: &Page) -> Result<Vec<SentReport>, StoreError> {
    let start = page.start();
    let (kind, name) = start.text.split_once('/').unwrap_or(("", ""));
    let sql = "SELECT kind, day, domain, state, due_at, attempts, total, left_out, detail, updated_at FROM report_out
         WHERE (day < $1 OR (day = $1 AND (kind > $2 OR (kind = $2 AND domain > $3)))) AND ($4 = '' OR domain = $4)
         ORDER BY day DESC, kind, domain LIMIT $5";
    let asked = [start.at.into(), kind.into(), name.into(), domain.unwrap_or("").into(), page.fetch().into()];
    tx.rows(sql, &asked).await?.iter().map(from_row).collect()
}

fn from_row(row: &Row) -> Result<SentReport, StoreError> {
    Ok(SentReport {
        kind: row.get(0)?,
        day: row.get(1)?,
        domain: row.get(2)?,
        state: row.get(3)?,
        due_at: row.get(4)?,
        attempts: row.get(5)?,
        total: row.get(6)?,
        left_out: row.get(7)?,
        detail: row.get(8)?,
        updated_at: row.get(9)?,
    })
}

/// Deletes some of the days before `day`, counts that nobody sent among them; how many rows.
pub async fn forget(tx: &mut Tx, day: i64, most: i64) -> Result<u64, StoreError> {
    let sql = "DELETE FROM report_out WHERE (day, kind, domain) IN
                 (SELECT day, kind, domain FROM report_out WHERE day < $1 LIMIT $2)";
    let reports = tx.execute(sql, &[day.into(), most.into()]).await?;
    let sql = "DELETE FROM dmarc_tally WHERE (day, domain, hash) IN
                 (SELECT day, domain, hash FROM dmarc_tally WHERE day < $1 LIMIT $2)";
    Ok(reports + tx.execute(sql, &[day.into(), most.into()]).await?)
}
