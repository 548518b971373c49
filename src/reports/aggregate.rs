//! A DMARC aggregate report as a mail: the policy that was found, a row for each kind of message, gzip, subject and file
//! name as RFC 9990 §3.5.2 has them. mail-auth writes the XML.

use mail_auth::report::{
    Alignment, DateRange, Discovery, Disposition, PolicyPublished, Record, Report as Feedback, ReportMetadata,
};

use super::destination::value;
use super::letterhead::{Letterhead, Period};
use crate::deliver::compose::{self, Composition, OutgoingAttachment};

/// The XML of a report.
pub(super) fn xml(
    head: &Letterhead,
    period: &Period,
    tags: &[(String, String)],
    rows: Vec<Record>,
    left_out: i64,
) -> String {
    let policy = |name: &str| match value(tags, name).map(str::to_ascii_lowercase).as_deref() {
        Some("none") => Disposition::None,
        Some("quarantine") => Disposition::Quarantine,
        Some("reject") => Disposition::Reject,
        _ => Disposition::Unspecified,
    };
    let alignment = |name: &str| match value(tags, name) {
        Some("s" | "S") => Alignment::Strict,
        _ => Alignment::Relaxed,
    };
    let error = (left_out > 0).then(|| format!("{left_out} messages of too many kinds are in no record"));
    let report = Feedback {
        version: 1.0,
        report_metadata: ReportMetadata {
            org_name: head.organization.clone(),
            email: head.contact.clone(),
            extra_contact_info: None,
            report_id: head.report_id.clone(),
            date_range: DateRange { begin: period.begin, end: period.end },
            error: error.into_iter().collect(),
            generator: Some(concat!("Gatepost ", env!("CARGO_PKG_VERSION")).to_owned()),
        },
        policy_published: PolicyPublished {
            domain: period.domain.clone(),
            version_published: None,
            adkim: alignment("adkim"),
            aspf: alignment("aspf"),
            p: policy("p"),
            sp: policy("sp"),
            np: policy("np"),
            testing: value(tags, "t").is_some_and(|t| t.eq_ignore_ascii_case("y")),
            discovery_method: Discovery::Treewalk,
            fo: value(tags, "fo").map(super::clip),
        },
        record: rows,
        extensions: Vec::new(),
    };
    report.to_xml()
}

/// The mail around the packed XML.
pub(super) fn mail(head: &Letterhead, period: &Period, packed: Vec<u8>) -> Vec<u8> {
    let Period { domain, begin, end } = period;
    let composition = Composition {
        text: Some(head.explanation("DMARC aggregate report (RFC 9990)", period)),
        attachments: vec![OutgoingAttachment {
            filename: Some(format!("{}!{domain}!{begin}!{end}.xml.gz", head.submitter)),
            content_type: "application/gzip".to_owned(),
            disposition: compose::Disposition::Attachment,
            content_id: None,
            content: packed,
        }],
        ..head.composition(period)
    };
    compose::compose(&composition)
}
