//! Reports that arrived at the operator's report addresses, one row each beside its message.
//!
//! Once for each reporter, name, domains and verified sender: a report that is sent again is kept as mail, and
//! one that somebody else sends under the same name stands beside it, and cannot take its place.

use sha2::{Digest, Sha256};

use super::page::{Page, Place};
use super::{Row, StoreError, Tx};
use crate::clock::Millis;
use crate::ids::{InboxKey, Prefix, RowId};
use crate::reports::{Report, ReportKind};

/// A report as it is stored, without its content.
#[derive(Debug, Clone)]
pub struct StoredReport {
    pub inbox: InboxKey,
    pub message_key: i64,
    pub kind: String,
    pub org: String,
    pub report_id: String,
    pub domains: Vec<String>,
    pub verified_sender: Option<String>,
    pub begins_at: Millis,
    pub ends_at: Millis,
    pub total: i64,
    pub failed: i64,
    pub received_at: Millis,
}

impl StoredReport {
    /// `rep_…`
    pub fn id(&self) -> String {
        RowId { at: self.received_at, inbox: self.inbox, seq: self.message_key }.text(Prefix::Report)
    }

    /// Where it stands in the listing.
    pub fn place(&self) -> Place {
        let key = [self.inbox.pod, self.inbox.inbox, self.message_key];
        Place { at: self.received_at, key, text: String::new() }
    }
}

/// Files the report that a message carried; `false` where the same one is there already.
pub async fn insert(
    tx: &mut Tx,
    inbox: InboxKey,
    message_key: i64,
    verified_sender: Option<&str>,
    report: &Report,
) -> Result<bool, StoreError> {
    // Between commas, so that one domain can be looked for; the reader leaves none in a domain.
    let domains = format!(",{},", report.domains.join(","));
    let mut identity = Sha256::new();
    for text in [report.kind.text(), &report.org, &report.report_id, &domains, verified_sender.unwrap_or("")]
    {
        identity.update((text.len() as u64).to_be_bytes());
        identity.update(text);
    }
    let inserted = tx
        .execute(
            "INSERT INTO report (pod_key, inbox_key, message_key, identity, kind, org, report_id, domains,
                                 verified_sender, begins_at, ends_at, total, failed, content, received_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) ON CONFLICT DO NOTHING",
            &[
                inbox.pod.into(),
                inbox.inbox.into(),
                message_key.into(),
                identity.finalize().to_vec().into(),
                report.kind.text().into(),
                (&report.org).into(),
                (&report.report_id).into(),
                (&domains).into(),
                verified_sender.into(),
                report.begins_at.into(),
                report.ends_at.into(),
                report.total.into(),
                report.failed.into(),
                (&report.content).into(),
                tx.now().into(),
            ],
        )
        .await?;
    Ok(inserted == 1)
}

/// Deletes some of those that came before; how many.
pub async fn forget(tx: &mut Tx, before: Millis, most: i64) -> Result<u64, StoreError> {
    tx.execute(
        "DELETE FROM report WHERE (pod_key, inbox_key, message_key) IN
           (SELECT pod_key, inbox_key, message_key FROM report WHERE received_at < $1 LIMIT $2)",
        &[before.into(), most.into()],
    )
    .await
}

macro_rules! columns {
    () => {
        "pod_key, inbox_key, message_key, kind, org, report_id, domains, verified_sender, begins_at, ends_at,
         total, failed, received_at"
    };
}

/// A page of reports, newest first, of one kind and about one domain where that is asked.
pub async fn page(
    tx: &mut Tx,
    kind: Option<ReportKind>,
    domain: Option<&str>,
    page: &Page,
) -> Result<Vec<StoredReport>, StoreError> {
    let start = page.start();
    let [pod, inbox, message] = start.key;
    let sql = tx.either(
        concat!(
            "SELECT ",
            columns!(),
            " FROM report
             WHERE (received_at, pod_key, inbox_key, message_key) < ($1, $2, $3, $4)
               AND ($5 = '' OR kind = $5) AND ($6 = '' OR instr(domains, $6) > 0)
             ORDER BY received_at DESC, pod_key DESC, inbox_key DESC, message_key DESC LIMIT $7"
        ),
        concat!(
            "SELECT ",
            columns!(),
            " FROM report
             WHERE (received_at, pod_key, inbox_key, message_key) < ($1, $2, $3, $4)
               AND ($5 = '' OR kind = $5) AND ($6 = '' OR strpos(domains, $6) > 0)
             ORDER BY received_at DESC, pod_key DESC, inbox_key DESC, message_key DESC LIMIT $7"
        ),
    );
    let domain = domain.map(|domain| format!(",{domain},")).unwrap_or_default();
    let kind = kind.map_or("", ReportKind::text);
    let asked = [
        start.at.into(),
        pod.into(),
        inbox.into(),
        message.into(),
        kind.into(),
        (&domain).into(),
        page.fetch().into(),
    ];
    tx.rows(sql, &asked).await?.iter().map(from_row).collect()
}

/// One report with its content, as JSON.
pub async fn by_key(
    tx: &mut Tx,
    inbox: InboxKey,
    message_key: i64,
) -> Result<Option<(StoredReport, String)>, StoreError> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        ", content FROM report WHERE pod_key = $1 AND inbox_key = $2 AND message_key = $3"
    );
    let row = tx.row(sql, &[inbox.pod.into(), inbox.inbox.into(), message_key.into()]).await?;
    row.map(|row| Ok((from_row(&row)?, row.get(13)?))).transpose()
}

fn from_row(row: &Row) -> Result<StoredReport, StoreError> {
    let domains: String = row.get(6)?;
    Ok(StoredReport {
        inbox: InboxKey { pod: row.get(0)?, inbox: row.get(1)? },
        message_key: row.get(2)?,
        kind: row.get(3)?,
        org: row.get(4)?,
        report_id: row.get(5)?,
        domains: domains.split(',').filter(|d| !d.is_empty()).map(str::to_owned).collect(),
        verified_sender: row.get(7)?,
        begins_at: row.get(8)?,
        ends_at: row.get(9)?,
        total: row.get(10)?,
        failed: row.get(11)?,
        received_at: row.get(12)?,
    })
}
