//! TLS results: what became of sessions with the hosts of other domains, counted by UTC day, as TLS reports
//! (RFC 8460) tell it to those domains.
//!
//! Bounded: `ROOM` rows a day (what is new beyond that is not counted), `KEPT` days.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use super::message::to_json;
use super::{Row, StoreError, Tx};
use crate::clock::{DAY, Millis};

/// Rows of one day. A domain whose hosts behave has one for each host and address.
const ROOM: i64 = 50_000;
/// Days kept: RFC 8460 §5.3 lets a report be sent for a day after its own, and a failed one be tried again.
const KEPT: i64 = 7;

/// Where the policy came from, RFC 8460 §4.4 "policy-type".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PolicyType {
    Sts,
    Tlsa,
    NoPolicyFound,
}

impl PolicyType {
    pub fn text(self) -> &'static str {
        match self {
            PolicyType::Sts => "sts",
            PolicyType::Tlsa => "tlsa",
            PolicyType::NoPolicyFound => "no-policy-found",
        }
    }

    fn parse(text: &str) -> Result<PolicyType, StoreError> {
        match text {
            "sts" => Ok(PolicyType::Sts),
            "tlsa" => Ok(PolicyType::Tlsa),
            "no-policy-found" => Ok(PolicyType::NoPolicyFound),
            other => Err(StoreError::Damaged(format!("TLS policy type {other:?}"))),
        }
    }
}

/// What a session came to: `Success`, or a failure of RFC 8460 §4.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResultType {
    Success,
    StarttlsNotSupported,
    CertificateHostMismatch,
    CertificateExpired,
    CertificateNotTrusted,
    ValidationFailure,
    TlsaInvalid,
    DnssecInvalid,
    DaneRequired,
    StsPolicyFetchError,
    StsPolicyInvalid,
    StsWebpkiInvalid,
}

impl ResultType {
    pub const ALL: [ResultType; 12] = [
        ResultType::Success,
        ResultType::StarttlsNotSupported,
        ResultType::CertificateHostMismatch,
        ResultType::CertificateExpired,
        ResultType::CertificateNotTrusted,
        ResultType::ValidationFailure,
        ResultType::TlsaInvalid,
        ResultType::DnssecInvalid,
        ResultType::DaneRequired,
        ResultType::StsPolicyFetchError,
        ResultType::StsPolicyInvalid,
        ResultType::StsWebpkiInvalid,
    ];

    pub fn text(self) -> &'static str {
        match self {
            ResultType::Success => "success",
            ResultType::StarttlsNotSupported => "starttls-not-supported",
            ResultType::CertificateHostMismatch => "certificate-host-mismatch",
            ResultType::CertificateExpired => "certificate-expired",
            ResultType::CertificateNotTrusted => "certificate-not-trusted",
            ResultType::ValidationFailure => "validation-failure",
            ResultType::TlsaInvalid => "tlsa-invalid",
            ResultType::DnssecInvalid => "dnssec-invalid",
            ResultType::DaneRequired => "dane-required",
            ResultType::StsPolicyFetchError => "sts-policy-fetch-error",
            ResultType::StsPolicyInvalid => "sts-policy-invalid",
            ResultType::StsWebpkiInvalid => "sts-webpki-invalid",
        }
    }

    fn parse(text: &str) -> Result<ResultType, StoreError> {
        let found = ResultType::ALL.into_iter().find(|one| one.text() == text);
        found.ok_or_else(|| StoreError::Damaged(format!("TLS result {text:?}")))
    }
}

/// The sessions of one day that have everything but their number in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TlsResult {
    /// The recipients' domain (RFC 8460 §4.4), or for DANE the domain of its MX; in lower-case A-labels.
    pub policy_domain: String,
    pub policy_type: PolicyType,
    /// RFC 8460 §4.4 "policy-string": the lines of the MTA-STS policy, or the TLSA records.
    pub policy_strings: Vec<String>,
    /// "mx-host": the patterns of the MTA-STS policy.
    pub policy_mx: Vec<String>,
    pub result: ResultType,
    /// Empty where no host was reached, as when a policy cannot be fetched.
    pub receiving_mx: String,
    pub receiving_ip: String,
    pub sending_ip: String,
}

impl TlsResult {
    /// A hash over every field; each is closed by an octet that none of them holds.
    fn key(&self) -> String {
        let mut hash = Sha256::new();
        let mut field = |text: &str| {
            hash.update(text.as_bytes());
            hash.update([0]);
        };
        field(self.policy_type.text());
        self.policy_strings.iter().for_each(|text| field(text));
        field("mx");
        self.policy_mx.iter().for_each(|text| field(text));
        for text in [self.result.text(), &self.receiving_mx, &self.receiving_ip, &self.sending_ip] {
            field(text);
        }
        hash.finalize().iter().take(16).fold(String::new(), |mut text, octet| {
            let _ = write!(text, "{octet:02x}");
            text
        })
    }
}

/// The UTC day of an instant.
pub fn day(at: Millis) -> i64 {
    at.div_euclid(DAY)
}

/// Adds a batch to the sessions of `day`; how many results found no room.
pub async fn record(tx: &mut Tx, day: i64, batch: &[(TlsResult, i64)]) -> Result<u64, StoreError> {
    let row = tx.row("SELECT count(*) FROM tls_result WHERE day = $1", &[day.into()]).await?;
    let mut rows: i64 = row.map_or(Ok(0), |row| row.get(0))?;
    let mut refused = 0;
    for (result, sessions) in batch {
        let key = result.key();
        let more = "UPDATE tls_result SET sessions = sessions + $4
                    WHERE day = $1 AND policy_domain = $2 AND result_key = $3";
        let args = [day.into(), (&result.policy_domain).into(), (&key).into(), (*sessions).into()];
        if tx.execute(more, &args).await? > 0 {
            continue;
        }
        if rows >= ROOM {
            refused += 1;
            continue;
        }
        rows += 1;
        // Another node may have been first.
        tx.execute(
            "INSERT INTO tls_result (day, policy_domain, result_key, policy_type, policy_strings, policy_mx,
                                     result_type, receiving_mx, receiving_ip, sending_ip, sessions)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
             ON CONFLICT (day, policy_domain, result_key)
             DO UPDATE SET sessions = tls_result.sessions + excluded.sessions",
            &[
                day.into(),
                (&result.policy_domain).into(),
                (&key).into(),
                result.policy_type.text().into(),
                to_json(&result.policy_strings)?.into(),
                to_json(&result.policy_mx)?.into(),
                result.result.text().into(),
                (&result.receiving_mx).into(),
                (&result.receiving_ip).into(),
                (&result.sending_ip).into(),
                (*sessions).into(),
            ],
        )
        .await?;
    }
    Ok(refused)
}

/// The domains with results on a day, in order, after `after`.
pub async fn domains(tx: &mut Tx, day: i64, after: &str, limit: i64) -> Result<Vec<String>, StoreError> {
    let rows = tx
        .rows(
            "SELECT DISTINCT policy_domain FROM tls_result WHERE day = $1 AND policy_domain > $2
             ORDER BY policy_domain LIMIT $3",
            &[day.into(), after.into(), limit.into()],
        )
        .await?;
    rows.iter().map(|row| row.get(0)).collect()
}

/// What is known of a domain's sessions on a day, with their numbers.
pub async fn of_domain(tx: &mut Tx, day: i64, domain: &str) -> Result<Vec<(TlsResult, i64)>, StoreError> {
    let rows = tx
        .rows(
            "SELECT policy_domain, policy_type, policy_strings, policy_mx, result_type, receiving_mx,
                    receiving_ip, sending_ip, sessions
             FROM tls_result WHERE day = $1 AND policy_domain = $2 ORDER BY result_key LIMIT 1000",
            &[day.into(), domain.into()],
        )
        .await?;
    rows.iter().map(from_row).collect()
}

fn from_row(row: &Row) -> Result<(TlsResult, i64), StoreError> {
    let list = |i: usize| -> Result<Vec<String>, StoreError> {
        let text: String = row.get(i)?;
        serde_json::from_str(&text).map_err(|error| StoreError::Damaged(format!("TLS policy: {error}")))
    };
    let result = TlsResult {
        policy_domain: row.get(0)?,
        policy_type: PolicyType::parse(&row.get::<String>(1)?)?,
        policy_strings: list(2)?,
        policy_mx: list(3)?,
        result: ResultType::parse(&row.get::<String>(4)?)?,
        receiving_mx: row.get(5)?,
        receiving_ip: row.get(6)?,
        sending_ip: row.get(7)?,
    };
    Ok((result, row.get(8)?))
}

/// Forgets days that are too old to be reported; how many rows.
pub async fn forget(tx: &mut Tx) -> Result<u64, StoreError> {
    let oldest = day(tx.now()) - KEPT;
    tx.execute("DELETE FROM tls_result WHERE day < $1", &[oldest.into()]).await
}

/// Forgets what is known of a domain's day: it was reported.
pub async fn forget_domain(tx: &mut Tx, day: i64, domain: &str) -> Result<u64, StoreError> {
    let sql = "DELETE FROM tls_result WHERE day = $1 AND policy_domain = $2";
    tx.execute(sql, &[day.into(), domain.into()]).await
}
