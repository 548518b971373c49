//! What others report about our domains: DMARC aggregate reports and TLS reports, read. And ours about theirs:
//! counted in `tally` (mail) and by deliveries (sessions, `tls_out`), sent by `outgoing` once a day to where `destination`
//! says.
//!
//! Promises: pure, bounded in memory and time whatever arrives (a compressed bomb, a million rows, nested
//! entities), never a panic. What cannot be read is mail to the operator like any other. A report is evidence
//! that somebody sent, shown with who that was; nothing acts upon it.
//!
//! Read before the transaction that files its message and stored in it: after a crash there are both or neither,
//! and the sender, who had no 250, sends again. RFC 9990 (DMARC aggregate), RFC 8460 (TLS-RPT).

mod aggregate;
mod destination;
mod dmarc;
mod letterhead;
mod outgoing;
mod tally;
mod tls;
mod tls_out;
mod unpack;

use std::fmt::Debug;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::clock::Millis;
use crate::config::limits::{MAX_REPORT_CONTENT, REPORT_DEADLINE, REPORT_PARTS, REPORT_TEXT};
use crate::screen::{self, structure::Structure};
use crate::spool::Octets;

pub use outgoing::run as send;
pub use tally::{Disposition, Tally, is_report_itself};
pub use unpack::UnpackError;

/// Local parts that reports are asked to be sent to, in the DNS records that `gatepost dns` prints.
pub const DMARC_ADDRESS: &str = "dmarc-reports";
pub const TLS_ADDRESS: &str = "tls-reports";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReportKind {
    /// RFC 9990: who sent in our name, and did it authenticate.
    Dmarc,
    /// RFC 8460: could others encrypt to us.
    Tls,
}

impl ReportKind {
    pub fn text(self) -> &'static str {
        match self {
            ReportKind::Dmarc => "dmarc",
            ReportKind::Tls => "tls",
        }
    }
}

/// A report, as far as a listing shows it; `content` is the rest as JSON, as it is served and no longer
/// than `MAX_REPORT_CONTENT`.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    pub kind: ReportKind,
    /// Who reports, by its own word.
    pub org: String,
    /// The reporter's name for it.
    pub report_id: String,
    /// What it is about: our domain, or several, in lower case, each once.
    pub domains: Vec<String>,
    pub begins_at: Millis,
    pub ends_at: Millis,
    /// Messages (DMARC) or sessions (TLS).
    pub total: i64,
    /// Those of them that neither SPF nor DKIM vouched for, or that failed to encrypt.
    pub failed: i64,
    pub content: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    #[error("no part of the message is a report")]
    None,
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    #[error("more than {0} elements")]
    TooMany(usize),
    #[error("{0}")]
    Malformed(String),
}

/// Reports read at a time, in the whole process: one can take 200 MB of memory for a second.
static READING: Semaphore = Semaphore::const_new(1);

/// Whether mail for this local part (in lower case, without a tag) is expected to be a report.
pub fn is_report_address(local: &str) -> bool {
    [DMARC_ADDRESS, TLS_ADDRESS].contains(&local)
}

/// The report in a message, off the async threads and within its deadline; `None` where there is none, with the
/// reason in the log. What is too slow goes on alone until its bounds stop it, and the next one waits.
/// Those that wait for their turn share the message with whoever holds it.
pub async fn read_in_time(raw: &Arc<Octets>, structure: &Structure, id: &str) -> Option<Report> {
    let work = async {
        let turn = READING.acquire().await.ok();
        let (raw, structure) = (Arc::clone(raw), structure.clone());
        let reading = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            read(&raw, &structure)
        });
        reading.await.unwrap_or_else(|_| Err(ReportError::Malformed("the parser failed on it".to_owned())))
    };
    match tokio::time::timeout(REPORT_DEADLINE, work).await {
        Ok(Ok(report)) => Some(report),
        Ok(Err(error)) => {
            tracing::info!(id, %error, "mail to a report address holds no report that could be read");
            None
        }
        Err(_) => {
            tracing::warn!(id, "a report took too long to read; it is kept as mail");
            None
        }
    }
}

/// The first part of the message that is a report.
pub fn read(raw: &[u8], structure: &Structure) -> Result<Report, ReportError> {
    let mut last = ReportError::None;
    let may_be = |(_, part): &(usize, &screen::structure::Part)| {
        let named = part.filename.as_deref().unwrap_or_default().to_ascii_lowercase();
        !part.content_type.starts_with("multipart/")
            && (["gzip", "zip", "xml", "json", "tlsrpt", "octet-stream"]
                .iter()
                .any(|word| part.content_type.contains(word))
                || [".gz", ".zip", ".xml", ".json"].iter().any(|end| named.ends_with(end)))
    };
    for (index, _) in structure.parts.iter().enumerate().filter(may_be).take(REPORT_PARTS) {
        let packed = screen::decode_part(raw, structure, u32::try_from(index).unwrap_or(u32::MAX));
        match unpack::unpack(&packed).map_err(ReportError::from).and_then(|octets| parse(&octets)) {
            Ok(report) => return Ok(report),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A report by what it looks like: JSON is TLS-RPT, XML is DMARC.
pub fn parse(octets: &[u8]) -> Result<Report, ReportError> {
    let octets = octets.strip_prefix(b"\xef\xbb\xbf").unwrap_or(octets);
    match octets.iter().find(|octet| !octet.is_ascii_whitespace()) {
        Some(b'{') => tls::parse(octets),
        Some(b'<') => dmarc::parse(octets),
        _ => Err(ReportError::None),
    }
}

/// The octets of JSON that are left for a report.
struct Left(usize);

/// What names, counts and brackets around the rows take at most.
const FRAME: usize = 4 * 1024;

impl Left {
    fn new() -> Left {
        Left(MAX_REPORT_CONTENT - FRAME)
    }

    /// The value, where there is room for it; after the first that finds none, nothing is taken.
    fn take(&mut self, value: Value) -> Option<Value> {
        // With the comma after it.
        let left = self.0.checked_sub(value.to_string().len() + 1);
        self.0 = left.unwrap_or(0);
        left.map(|_| value)
    }
}

/// A stranger's text as we keep it: no control characters, bounded.
fn clip(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(REPORT_TEXT).collect()
}

fn clip_option(text: Option<&str>) -> Option<String> {
    text.map(clip).filter(|text| !text.is_empty())
}

/// A domain as it is compared, without what a domain cannot have.
fn domain(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_whitespace() && *c != ',').collect();
    clip(text.trim_end_matches('.')).to_lowercase()
}

/// The word that the RFCs have for a value: its name in lower case.
fn word(value: impl Debug) -> String {
    format!("{value:?}").to_lowercase()
}

/// Seconds since 1970 that somebody claims; what is no date before the year 10000 is 0.
fn millis(seconds: i128) -> Millis {
    if (0..253_402_300_800).contains(&seconds) { (seconds * 1000) as Millis } else { 0 }
}

#[cfg(test)]
mod tests;
