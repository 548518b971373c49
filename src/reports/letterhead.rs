//! What our reports have in common: whose day, who reports, under which name, and the mail around it.
//!
//! A report that is made again, after a crash or on another node, has the same names.

use std::io::Write as _;

use sha2::{Digest, Sha256};

use super::{DMARC_ADDRESS, ReportKind, TLS_ADDRESS};
use crate::address::Address;
use crate::clock::{DAY, Millis};
use crate::deliver::compose::{AutoSubmitted, Composition};
use crate::floor::Floor;
use crate::store::report_out::Due;

/// The day that a report is about, in seconds since 1970, and whose.
pub(super) struct Period {
    pub domain: String,
    pub begin: u64,
    pub end: u64,
}

impl Period {
    pub(super) fn new(due: &Due) -> Period {
        let begin = u64::try_from(due.day * DAY / 1000).unwrap_or(0);
        Period { domain: due.domain.clone(), begin, end: begin + 86_399 }
    }
}

/// What every report of ours begins with.
#[derive(Clone)]
pub(super) struct Letterhead {
    pub from: Address,
    pub to: Address,
    /// The domain that sends and signs.
    pub submitter: String,
    pub organization: String,
    pub contact: String,
    /// The same whenever the same report is made again.
    pub report_id: String,
    message_id: String,
    date: Millis,
}

impl Letterhead {
    pub(super) fn new(floor: &Floor, due: &Due) -> Letterhead {
        let config = &floor.config;
        let submitter = config.domains.first().cloned().unwrap_or_else(|| config.hostname.clone());
        let local = if due.kind == ReportKind::Tls.text() { TLS_ADDRESS } else { DMARC_ADDRESS };
        let from = format!("{local}@{submitter}").parse().unwrap_or_else(|_| Address::nobody());
        let name = Sha256::digest(format!("{} {} {}", due.kind, due.day, due.domain));
        let name = crate::ids::base32(name.get(..10).unwrap_or_default()).to_lowercase();
        let report_id = format!("{}.{name}@{submitter}", due.day);
        let reports = &config.reports;
        Letterhead {
            to: from.clone(),
            organization: reports.organization.clone().unwrap_or_else(|| submitter.clone()),
            contact: reports.contact.clone().unwrap_or_else(|| format!("postmaster@{submitter}")),
            message_id: report_id.clone(),
            date: floor.clock.now(),
            from,
            submitter,
            report_id,
        }
    }

    /// For the n-th destination: a Message-ID each.
    pub(super) fn to(&self, to: Address, n: usize) -> Letterhead {
        let message_id = match n {
            0 => self.report_id.clone(),
            n => format!("{n}.{}", self.report_id),
        };
        Letterhead { to, message_id, ..self.clone() }
    }

    pub(super) fn explanation(&self, what: &str, period: &Period) -> String {
        let day = crate::clock::rfc3339(i64::try_from(period.begin).unwrap_or(0) * 1000);
        format!(
            "This is a {what}\nabout {}, for the day that began at {day},\nby {}. Contact: {}\n",
            period.domain, self.organization, self.contact
        )
    }

    /// RFC 9990 §3.5.2, RFC 8460 §5.3: both have the same subject.
    pub(super) fn composition(&self, period: &Period) -> Composition {
        Composition {
            from: (None, self.from.clone()),
            to: vec![(None, self.to.clone())],
            cc: vec![],
            reply_to: vec![],
            subject: format!(
                "Report Domain: {} Submitter: {} Report-ID: <{}>",
                period.domain, self.submitter, self.report_id
            ),
            text: None,
            html: None,
            attachments: vec![],
            headers: vec![],
            message_id: self.message_id.clone(),
            date: self.date,
            in_reply_to: None,
            references: vec![],
            // RFC 3834 §2: nobody answers it.
            auto_submitted: Some(AutoSubmitted::Generated),
        }
    }
}

pub(super) fn gzip(octets: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    // Into memory: there is nothing that could fail.
    let _ = packed.write_all(octets);
    packed.finish().unwrap_or_default()
}
