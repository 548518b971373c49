//! A TLS report: how many sessions to our servers were encrypted as we ask for, and why others were not.
//!
//! Read as JSON rather than into fixed shapes: senders leave fields out, empty or of another type, and a report
//! with an odd address in one detail still says everything else.
//!
//! RFC 8460 §4 (the format).

use mail_parser::DateTime;
use serde_json::{Value, json};

use super::{Left, Report, ReportError, ReportKind, clip, clip_option, domain, millis};
use crate::clock::Millis;
use crate::config::limits::{MAX_REPORT_ROWS, MAX_TLS_REPORT};

pub(super) fn parse(octets: &[u8]) -> Result<Report, ReportError> {
    if octets.len() > MAX_TLS_REPORT {
        return Err(super::UnpackError::TooLarge.into());
    }
    let report: Value =
        serde_json::from_slice(octets).map_err(|error| ReportError::Malformed(clip(&error.to_string())))?;
    let listed = list(&report, "policies");
    if listed.is_empty() {
        return Err(ReportError::Malformed("a TLS report without policies".to_owned()));
    }
    let mut domains: Vec<String> =
        listed.iter().take(MAX_REPORT_ROWS).map(|p| domain(text(p, "/policy/policy-domain"))).collect();
    domains.sort_unstable();
    domains.dedup();
    let sum = |pointer: &str| listed.iter().fold(0_i64, |sum, p| sum.saturating_add(count(p, pointer)));
    let failed = sum(FAILED);
    let mut left = Left::new();
    let policies = listed.iter().take(MAX_REPORT_ROWS).map_while(|found| policy(found, &mut left));
    let policies: Vec<Value> = policies.collect();
    Ok(Report {
        kind: ReportKind::Tls,
        org: clip(text(&report, "/organization-name")),
        report_id: clip(text(&report, "/report-id")),
        domains,
        begins_at: time(text(&report, "/date-range/start-datetime")),
        ends_at: time(text(&report, "/date-range/end-datetime")),
        total: sum(SUCCEEDED).saturating_add(failed),
        failed,
        content: json!({
            "contact": clip_option(Some(text(&report, "/contact-info"))),
            "policies_left_out": listed.len() - policies.len(),
            "policies": policies,
        })
        .to_string(),
    })
}

const SUCCEEDED: &str = "/summary/total-successful-session-count";
const FAILED: &str = "/summary/total-failure-session-count";
/// Lines of a policy, hosts and failure details that are kept of one policy.
const KEPT: usize = 200;

fn policy(policy: &Value, left: &mut Left) -> Option<Value> {
    let mut kept = left.take(json!({
        "domain": domain(text(policy, "/policy/policy-domain")),
        "type": clip(text(policy, "/policy/policy-type")),
        "policy": texts(policy, "/policy/policy-string"),
        "mx": texts(policy, "/policy/mx-host"),
        "succeeded": count(policy, SUCCEEDED),
        "failed": count(policy, FAILED),
        "details": [],
    }))?;
    let details = list(policy, "failure-details").iter().take(KEPT).map_while(|detail| {
        left.take(json!({
            "result_type": clip(text(detail, "/result-type")),
            "count": count(detail, "/failed-session-count"),
            "sending_ip": clip_option(Some(text(detail, "/sending-mta-ip"))),
            "receiving_host": clip_option(Some(text(detail, "/receiving-mx-hostname"))),
            "receiving_ip": clip_option(Some(text(detail, "/receiving-ip"))),
            "reason": clip_option(Some(text(detail, "/failure-reason-code"))),
            "more": clip_option(Some(text(detail, "/additional-information"))),
        }))
    });
    let details = details.collect();
    if let Some(kept) = kept.get_mut("details") {
        *kept = Value::Array(details);
    }
    Some(kept)
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// One text or a list of them: RFC 8460 wants a list, senders write both.
fn texts(value: &Value, pointer: &str) -> Vec<String> {
    match value.pointer(pointer) {
        Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).take(KEPT).map(clip).collect(),
        Some(Value::String(one)) => vec![clip(one)],
        _ => Vec::new(),
    }
}

fn count(value: &Value, pointer: &str) -> i64 {
    value.pointer(pointer).and_then(Value::as_i64).unwrap_or(0).max(0)
}

fn time(text: &str) -> Millis {
    millis(DateTime::parse_rfc3339(text).map_or(0, |time| time.to_timestamp().into()))
}
