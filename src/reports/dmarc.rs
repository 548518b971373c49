//! A DMARC aggregate report: which hosts sent in a domain's name, how often, and what was made of it.
//!
//! RFC 9990 §3 (the format), and RFC 7489 Appendix C, which most senders still write. Entities are never
//! expanded and elements never nested beyond the format: the parser knows five levels and skips the rest.

use mail_auth::report::{DmarcResult, Record, Report as Feedback};
use memchr::memmem;
use serde_json::{Value, json};

use super::{Left, Report, ReportError, ReportKind, clip, clip_option, domain, millis, word};
use crate::config::limits::{MAX_REPORT_ELEMENTS, MAX_REPORT_ROWS};

pub(super) fn parse(xml: &[u8]) -> Result<Report, ReportError> {
    // Counted before anything is built: an element of seven octets can become a row of a hundred.
    if memmem::find_iter(xml, b"<").nth(MAX_REPORT_ELEMENTS).is_some() {
        return Err(ReportError::TooMany(MAX_REPORT_ELEMENTS));
    }
    let feedback = Feedback::parse_xml(xml).map_err(|error| ReportError::Malformed(clip(&error)))?;
    let counted = |failed: bool| {
        let rows = feedback.record.iter().filter(move |row| !failed || fails(row));
        rows.fold(0_i64, |sum, row| sum.saturating_add(i64::from(row.row.count)))
    };
    let (metadata, policy) = (&feedback.report_metadata, &feedback.policy_published);
    let mut left = Left::new();
    let rows = feedback.record.iter().take(MAX_REPORT_ROWS);
    let rows: Vec<Value> = rows.map_while(|record| left.take(row(record))).collect();
    let left_out = feedback.record.len() - rows.len();
    Ok(Report {
        kind: ReportKind::Dmarc,
        org: clip(&metadata.org_name),
        report_id: clip(&metadata.report_id),
        domains: vec![domain(&policy.domain)],
        begins_at: millis(metadata.date_range.begin.into()),
        ends_at: millis(metadata.date_range.end.into()),
        total: counted(false),
        failed: counted(true),
        content: json!({
            "contact": clip_option(Some(&metadata.email)),
            "policy": {
                "p": word(policy.p), "sp": word(policy.sp), "np": word(policy.np),
                "adkim": word(policy.adkim), "aspf": word(policy.aspf), "testing": policy.testing,
            },
            "rows": rows,
            "rows_left_out": left_out,
        })
        .to_string(),
    })
}

/// RFC 9989 §5.4: one of the two, aligned, is enough.
fn fails(record: &Record) -> bool {
    let evaluated = &record.row.policy_evaluated;
    evaluated.dkim != DmarcResult::Pass && evaluated.spf != DmarcResult::Pass
}

fn row(record: &Record) -> Value {
    let evaluated = &record.row.policy_evaluated;
    let few = 8;
    let dkim = record.auth_results.dkim.iter().take(few).map(|result| {
        json!({ "domain": clip(&result.domain), "selector": clip(&result.selector), "result": word(result.result) })
    });
    let spf = record.auth_results.spf.iter().take(few);
    let spf = spf.map(|result| json!({ "domain": clip(&result.domain), "result": word(result.result) }));
    let reasons = evaluated.reason.iter().take(few);
    let reasons = reasons.map(
        |reason| json!({ "type": word(reason.type_), "comment": clip_option(reason.comment.as_deref()) }),
    );
    json!({
        "source_ip": record.row.source_ip,
        "count": record.row.count,
        "disposition": word(evaluated.disposition),
        "dkim": word(evaluated.dkim),
        "spf": word(evaluated.spf),
        "reasons": reasons.collect::<Vec<_>>(),
        "header_from": clip(&record.identifiers.header_from),
        "envelope_from": clip(&record.identifiers.envelope_from),
        "envelope_to": clip_option(record.identifiers.envelope_to.as_deref()),
        "auth_results": { "dkim": dkim.collect::<Vec<_>>(), "spf": spf.collect::<Vec<_>>() },
    })
}
