//! Domains: those of the configuration, and those that were added while the server runs.
//!
//! A name has one row, so it belongs to one pod. Whoever changes a domain or its keys locks its row first, so
//! that two nodes never rotate or verify past each other.

use super::page::Page;
use super::{Row, StoreError, Topic, Tx, Value};
use crate::clock::Millis;

/// AgentMail's states of a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DomainStatus {
    /// Nobody has looked yet.
    NotStarted,
    /// Records are missing.
    Pending,
    /// A record says something else.
    Invalid,
    /// Not verified in time, or no longer what it was: not looked at by itself any more.
    Failed,
    /// The DNS could not be asked; it will be.
    Verifying,
    Verified,
}

impl DomainStatus {
    const ALL: [DomainStatus; 6] = [
        DomainStatus::NotStarted,
        DomainStatus::Pending,
        DomainStatus::Invalid,
        DomainStatus::Failed,
        DomainStatus::Verifying,
        DomainStatus::Verified,
    ];

    pub fn text(self) -> &'static str {
        match self {
            DomainStatus::NotStarted => "NOT_STARTED",
            DomainStatus::Pending => "PENDING",
            DomainStatus::Invalid => "INVALID",
            DomainStatus::Failed => "FAILED",
            DomainStatus::Verifying => "VERIFYING",
            DomainStatus::Verified => "VERIFIED",
        }
    }

    fn parse(text: &str) -> Option<DomainStatus> {
        DomainStatus::ALL.into_iter().find(|status| status.text() == text)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    pub domain_key: i64,
    /// Lower case, A-labels: the `domain_id`.
    pub name: String,
    /// `None`: the organization's, for the inboxes of every pod.
    pub pod: Option<i64>,
    /// One of the configuration's: usable at once, and not removed over the API.
    pub configured: bool,
    pub status: DomainStatus,
    pub reason: Option<String>,
    pub features: Features,
    /// JSON: each record as the last check found it.
    pub findings: String,
    pub checked_at: Option<Millis>,
    pub next_check_at: Option<Millis>,
    pub failing_since: Option<Millis>,
    pub verified_at: Option<Millis>,
    pub created_at: Millis,
    pub updated_at: Millis,
}

/// What a domain is asked to do, by AgentMail's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    pub feedback: bool,
    /// Mail to the domain comes here.
    pub inbound: bool,
    /// Inboxes may be made on any name below the domain.
    pub subdomains: bool,
    pub tracking: bool,
}

impl Default for Features {
    fn default() -> Features {
        Features { feedback: false, inbound: true, subdomains: false, tracking: false }
    }
}

impl Domain {
    /// Whether inboxes may be made on it and mail leaves with its signature.
    pub fn is_usable(&self) -> bool {
        self.configured || self.status == DomainStatus::Verified
    }
}

macro_rules! columns {
    () => {
        columns!("findings")
    };
    ($findings:literal) => {
        concat!(
            "domain_key, domain, pod_key, configured, status, reason, feedback_enabled, inbound_enabled,
             subdomains_enabled, tracking_enabled, ",
            $findings,
            ", checked_at, next_check_at, failing_since, verified_at, created_at, updated_at"
        )
    };
}

fn from_row(row: &Row) -> Result<Domain, StoreError> {
    let status: String = row.get(4)?;
    Ok(Domain {
        domain_key: row.get(0)?,
        name: row.get(1)?,
        pod: row.get(2)?,
        configured: row.get(3)?,
        status: DomainStatus::parse(&status)
            .ok_or_else(|| StoreError::Damaged(format!("domain status {status}")))?,
        reason: row.get(5)?,
        features: Features {
            feedback: row.get(6)?,
            inbound: row.get(7)?,
            subdomains: row.get(8)?,
            tracking: row.get(9)?,
        },
        findings: row.get(10)?,
        checked_at: row.get(11)?,
        next_check_at: row.get(12)?,
        failing_since: row.get(13)?,
        verified_at: row.get(14)?,
        created_at: row.get(15)?,
        updated_at: row.get(16)?,
    })
}

/// Enters a domain. `Conflict` where its name is taken.
pub async fn insert(
    tx: &mut Tx,
    name: &str,
    pod: Option<i64>,
    features: Features,
    next_check_at: Millis,
) -> Result<Domain, StoreError> {
    let sql = concat!(
        "INSERT INTO domain (domain, pod_key, status, feedback_enabled, inbound_enabled, subdomains_enabled,
                             tracking_enabled, next_check_at, created_at, updated_at)
         VALUES ($1, $2, 'NOT_STARTED', $3, $4, $5, $6, $7, $8, $8) RETURNING ",
        columns!()
    );
    let args = [
        name.into(),
        pod.into(),
        features.feedback.into(),
        features.inbound.into(),
        features.subdomains.into(),
        features.tracking.into(),
        next_check_at.into(),
        tx.now().into(),
    ];
    tx.row(sql, &args).await?.as_ref().map(from_row).transpose()?.ok_or(StoreError::Closed)
}

/// Makes the rows of the configuration's domains, and turns those that left it into ordinary ones, which have
/// to be verified before they are used again. A name that a pod had added becomes the operator's.
pub async fn sync_configured(tx: &mut Tx, configured: &[String]) -> Result<(), StoreError> {
    tx.wake(Topic::Domains);
    let list = super::message::to_json(&configured)?;
    let sql = tx.either(
        "UPDATE domain SET configured = 0, status = 'NOT_STARTED', next_check_at = $2, updated_at = $2
         WHERE configured = 1 AND domain NOT IN (SELECT value FROM json_each($1))",
        "UPDATE domain SET configured = 0, status = 'NOT_STARTED', next_check_at = $2, updated_at = $2
         WHERE configured = 1 AND domain <> ALL (ARRAY(SELECT json_array_elements_text($1::json)))",
    );
    tx.execute(sql, &[list.into(), tx.now().into()]).await?;
    for name in configured {
        tx.execute(
            "INSERT INTO domain (domain, configured, status, next_check_at, created_at, updated_at)
             VALUES ($1, 1, 'VERIFIED', $2 + 60000, $2, $2)
             ON CONFLICT (domain) DO UPDATE SET configured = 1, pod_key = NULL, status = 'VERIFIED'",
            &[name.into(), tx.now().into()],
        )
        .await?;
    }
    Ok(())
}

pub async fn by_name(tx: &mut Tx, name: &str) -> Result<Option<Domain>, StoreError> {
    let sql = concat!("SELECT ", columns!(), " FROM domain WHERE domain = $1");
    tx.row(sql, &[name.into()]).await?.as_ref().map(from_row).transpose()
}

/// The domain, locked until the end of the transaction.
pub async fn lock(tx: &mut Tx, name: &str) -> Result<Option<Domain>, StoreError> {
    let sql = tx.either(
        concat!("SELECT ", columns!(), " FROM domain WHERE domain = $1"),
        concat!("SELECT ", columns!(), " FROM domain WHERE domain = $1 FOR UPDATE"),
    );
    tx.row(sql, &[name.into()]).await?.as_ref().map(from_row).transpose()
}

/// Whether the domain may be used; if so, that stays until the end of the transaction.
pub async fn hold_usable(tx: &mut Tx, name: &str) -> Result<bool, StoreError> {
    let sql = tx.either(
        "SELECT 1 FROM domain WHERE domain = $1 AND (configured = 1 OR status = 'VERIFIED')",
        "SELECT 1::bigint FROM domain WHERE domain = $1 AND (configured = 1 OR status = 'VERIFIED') FOR SHARE",
    );
    Ok(tx.row(sql, &[name.into()]).await?.is_some())
}

/// Domains that are above or below `name` in the tree of names.
pub async fn relatives(tx: &mut Tx, name: &str) -> Result<Vec<Domain>, StoreError> {
    // Labels hold no wild-card of LIKE but the underscore, which only makes the list longer.
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM domain WHERE domain LIKE '%.' || $1 OR $1 LIKE '%.' || domain ORDER BY domain_key LIMIT 1000"
    );
    let found: Vec<Domain> =
        tx.rows(sql, &[name.into()]).await?.iter().map(from_row).collect::<Result<_, _>>()?;
    let below = |inner: &str, outer: &str| inner.strip_suffix(outer).is_some_and(|rest| rest.ends_with('.'));
    Ok(found.into_iter().filter(|d| below(&d.name, name) || below(name, &d.name)).collect())
}

/// How many domains of a pod are not verified, counted up to `most`.
pub async fn unverified_of_pod(tx: &mut Tx, pod: i64, most: i64) -> Result<i64, StoreError> {
    let sql = "SELECT count(*) FROM (SELECT 1 FROM domain WHERE pod_key = $1 AND configured = 0
                   AND status <> 'VERIFIED' LIMIT $2) AS unverified";
    let row = tx.row(sql, &[pod.into(), most.into()]).await?;
    row.map_or(Ok(0), |row| row.get(0))
}

/// How many domains may be usable at once: what every node keeps in memory.
const MOST: i64 = 100_000;

/// Every domain that may be used, without its findings: nobody asks all of them at once for those.
pub async fn usable(tx: &mut Tx) -> Result<Vec<Domain>, StoreError> {
    let sql = concat!(
        "SELECT ",
        columns!("CAST('[]' AS TEXT)"),
        " FROM domain WHERE configured = 1 OR status = 'VERIFIED' ORDER BY domain_key LIMIT $1"
    );
    tx.rows(sql, &[MOST.into()]).await?.iter().map(from_row).collect()
}

/// A page of domains: of one pod, or of all.
pub async fn page(tx: &mut Tx, pod: Option<i64>, page: &Page) -> Result<Vec<Domain>, StoreError> {
    let sql = match page.ascending {
        false => concat!(
            "SELECT ",
            columns!(),
            " FROM domain WHERE domain_key < $1 AND ($3 = 0 OR pod_key = $3) ORDER BY domain_key DESC LIMIT $2"
        ),
        true => concat!(
            "SELECT ",
            columns!(),
            " FROM domain WHERE domain_key > $1 AND ($3 = 0 OR pod_key = $3) ORDER BY domain_key LIMIT $2"
        ),
    };
    let [_, _, start] = page.start().key;
    let args = [start.into(), page.fetch().into(), pod.unwrap_or(0).into()];
    tx.rows(sql, &args).await?.iter().map(from_row).collect()
}

/// Domains whose time to be looked at has come.
pub async fn due(tx: &mut Tx, limit: i64) -> Result<Vec<Domain>, StoreError> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM domain WHERE next_check_at <= $1 ORDER BY next_check_at LIMIT $2"
    );
    tx.rows(sql, &[tx.now().into(), limit.into()]).await?.iter().map(from_row).collect()
}

/// Writes what can change; the caller holds the row's lock.
pub async fn update(tx: &mut Tx, domain: &Domain) -> Result<(), StoreError> {
    tx.wake(Topic::Domains);
    let args = [
        domain.domain_key.into(),
        domain.status.text().into(),
        Value::Text(domain.reason.clone()),
        domain.features.feedback.into(),
        domain.features.inbound.into(),
        domain.features.subdomains.into(),
        domain.features.tracking.into(),
        (&domain.findings).into(),
        domain.checked_at.into(),
        domain.next_check_at.into(),
        domain.failing_since.into(),
        domain.verified_at.into(),
        tx.now().into(),
    ];
    tx.execute(
        "UPDATE domain SET status = $2, reason = $3, feedback_enabled = $4, inbound_enabled = $5,
                subdomains_enabled = $6, tracking_enabled = $7, findings = $8, checked_at = $9,
                next_check_at = $10, failing_since = $11, verified_at = $12, updated_at = $13
         WHERE domain_key = $1",
        &args,
    )
    .await?;
    Ok(())
}

/// Removes the domain with its keys: whoever claims the name next gets others, so that records that were left
/// in the DNS prove nothing.
pub async fn delete(tx: &mut Tx, domain: &Domain) -> Result<(), StoreError> {
    tx.wake(Topic::Domains);
    tx.execute("DELETE FROM dkim_key WHERE domain = $1", &[(&domain.name).into()]).await?;
    tx.execute("DELETE FROM domain_policy WHERE domain = $1", &[(&domain.name).into()]).await?;
    tx.execute("DELETE FROM domain WHERE domain_key = $1", &[domain.domain_key.into()]).await?;
    Ok(())
}

/// Whether inboxes (the operator's aside) have addresses on the domain, or below it.
pub async fn has_inboxes(tx: &mut Tx, name: &str) -> Result<bool, StoreError> {
    let sql = "SELECT 1 FROM inbox WHERE deleted_at IS NULL AND operator = 0
                 AND (domain = $1 OR domain LIKE '%.' || $1) LIMIT 1";
    Ok(tx.row(sql, &[name.into()]).await?.is_some())
}
