//! Counting mail for the DMARC reports that we send: one entry for messages that differ in nothing a report says.
//!
//! A message costs a map entry in memory, after it was answered for; a worker writes the map to the database once a
//! minute and at the end, in small transactions. A crash loses the counts of that minute and no mail: reports are
//! best effort, and a row a message would cost each of them a write. Bounded: so many entries for a domain and in
//! all; what finds no room is counted as left out, and the report says so (RFC 9990 §3.1.1, `error`).
//!
//! Never counted: what came to our report addresses or back to our reports, and what is a report itself. Two servers
//! that report to each other would otherwise report about their reports for ever.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use mail_auth::report::{
    ActionDisposition, AuthResult, DKIMAuthResult, DkimResult, DmarcResult, Identifier, PolicyEvaluated,
    PolicyOverride, PolicyOverrideReason, Record, Row, SPFAuthResult, SPFDomainScope, SpfResult,
};

use super::clip;
use crate::clock::{DAY, Millis};
use crate::config::limits::{DMARC_TALLIES, DMARC_TALLIES_A_DOMAIN};
use crate::verify::verdict::{self, AuthResult as Found, DmarcPolicy, Verdict};

/// Signatures of one row. RFC 9990 §3.1.3 allows 100, and asks for those that pass first.
const MAX_SIGNATURES: usize = 10;

/// What was done to a message because of its DMARC result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Disposition {
    None,
    Quarantine,
    Reject,
}

/// The counts of this process since they were last written.
#[derive(Clone, Default)]
pub struct Tally(Arc<Mutex<Counts>>);

#[derive(Default)]
struct Counts {
    entries: usize,
    /// By UTC day and policy domain.
    domains: BTreeMap<(i64, String), OfDomain>,
}

#[derive(Default)]
struct OfDomain {
    records: HashMap<Record, u32>,
    left_out: u32,
}

/// What a domain's day came to: rows with their counts, and the messages that found none.
pub(super) type Taken = (i64, String, Vec<(Record, u32)>, u32);

impl Tally {
    /// Counts a message that was answered for. Nothing where its author's domain asks for no reports.
    pub fn count(&self, now: Millis, ip: IpAddr, envelope_from: &str, verdict: &Verdict, done: Disposition) {
        let (true, Some(domain)) = (verdict.dmarc.reports_wanted, &verdict.dmarc.policy_domain) else {
            return;
        };
        let record = record(ip, envelope_from, verdict, done);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = &mut *counts;
        let full = counts.entries >= DMARC_TALLIES;
        let key = (now.div_euclid(DAY), domain.clone());
        if full && !counts.domains.contains_key(&key) {
            return;
        }
        let of_domain = counts.domains.entry(key).or_default();
        if let Some(count) = of_domain.records.get_mut(&record) {
            *count = count.saturating_add(1);
        } else if full || of_domain.records.len() >= DMARC_TALLIES_A_DOMAIN {
            of_domain.left_out = of_domain.left_out.saturating_add(1);
        } else {
            of_domain.records.insert(record, 1);
            counts.entries += 1;
        }
    }

    /// What was counted, to be written; the count begins anew. In the order of their keys, so that nodes which write
    /// at once take their locks in one order.
    pub(super) fn take(&self) -> Vec<Taken> {
        let counts = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let domains = counts.domains.into_iter();
        domains.map(|((day, name), of)| (day, name, of.records.into_iter().collect(), of.left_out)).collect()
    }
}

fn record(ip: IpAddr, envelope_from: &str, verdict: &Verdict, done: Disposition) -> Record {
    let dmarc = &verdict.dmarc;
    let aligned = |yes: bool| if yes { DmarcResult::Pass } else { DmarcResult::Fail };
    let disposition = match (dmarc.result, done) {
        // The schema's `pass`: DMARC passed under a policy that would have done something.
        (Found::Pass, _) if dmarc.policy > DmarcPolicy::None => ActionDisposition::Pass,
        (Found::Pass, _) | (_, Disposition::None) => ActionDisposition::None,
        (_, Disposition::Quarantine) => ActionDisposition::Quarantine,
        (_, Disposition::Reject) => ActionDisposition::Reject,
    };
    let mut dkim: Vec<&verdict::Dkim> = verdict.dkim.iter().collect();
    // RFC 9990 §3.1.3: what passes first, and of that what is the author's own.
    dkim.sort_by_key(|found| (found.result != Found::Pass, found.domain != dmarc.domain));
    let dkim = dkim.into_iter().take(MAX_SIGNATURES).map(|found| DKIMAuthResult {
        domain: clip(&found.domain),
        selector: clip(&found.selector),
        result: dkim_result(found.result),
        human_result: None,
    });
    Record {
        row: Row {
            source_ip: Some(ip.to_canonical()),
            count: 0,
            policy_evaluated: PolicyEvaluated {
                disposition,
                dkim: aligned(dmarc.dkim_aligned),
                spf: aligned(dmarc.spf_aligned),
                reason: reasons(dmarc, done),
            },
        },
        identifiers: Identifier {
            envelope_to: None,
            envelope_from: clip(envelope_from),
            header_from: clip(&dmarc.domain),
        },
        auth_results: AuthResult {
            dkim: dkim.collect(),
            spf: vec![SPFAuthResult {
                domain: clip(&verdict.spf.domain),
                scope: SPFDomainScope::MailFrom,
                result: spf_result(verdict.spf.result),
                human_result: None,
            }],
        },
        extensions: Vec::new(),
    }
}

/// RFC 9990 §3.1.1.9: where what was done is not what the domain publishes, it is said why.
fn reasons(dmarc: &verdict::Dmarc, done: Disposition) -> Vec<PolicyOverrideReason> {
    if dmarc.result == Found::Pass {
        return Vec::new();
    }
    let reason = |type_, comment: Option<String>| PolicyOverrideReason { type_, comment };
    if let Some(overridden) = &dmarc.overridden {
        return vec![reason(PolicyOverride::TrustedForwarder, Some(clip(&overridden.by)))];
    }
    let mut reasons = Vec::new();
    if dmarc.testing {
        reasons.push(reason(PolicyOverride::PolicyTestMode, None));
    }
    let asked = match dmarc.policy {
        DmarcPolicy::None => Disposition::None,
        DmarcPolicy::Quarantine => Disposition::Quarantine,
        DmarcPolicy::Reject => Disposition::Reject,
    };
    if dmarc.result != Found::Fail && done < asked {
        reasons.push(reason(PolicyOverride::Other, Some(dmarc.result.as_str().to_owned())));
    } else if done != asked {
        reasons.push(reason(PolicyOverride::LocalPolicy, None));
    }
    reasons
}

fn dkim_result(result: Found) -> DkimResult {
    match result {
        Found::Pass => DkimResult::Pass,
        Found::Fail | Found::SoftFail => DkimResult::Fail,
        Found::Policy => DkimResult::Policy,
        Found::Neutral => DkimResult::Neutral,
        Found::TempError => DkimResult::TempError,
        Found::PermError => DkimResult::PermError,
        Found::None => DkimResult::None,
    }
}

fn spf_result(result: Found) -> SpfResult {
    match result {
        Found::Pass => SpfResult::Pass,
        Found::Fail | Found::Policy => SpfResult::Fail,
        Found::SoftFail => SpfResult::SoftFail,
        Found::Neutral => SpfResult::Neutral,
        Found::TempError => SpfResult::TempError,
        Found::PermError => SpfResult::PermError,
        Found::None => SpfResult::None,
    }
}

/// Octets of a header that are looked at.
const HEADER: usize = 16 * 1024;

/// Whether a message is a report itself, by its header: RFC 9990 §3.5.2 and RFC 8460 §5.3 say how they begin.
pub fn is_report_itself(raw: &[u8]) -> bool {
    let header = raw.get(..HEADER).unwrap_or(raw);
    let end = memchr::memmem::find(header, b"\r\n\r\n").unwrap_or(header.len());
    let header = header.get(..end).unwrap_or_default().to_ascii_lowercase();
    let has = |words: &[u8]| memchr::memmem::find(&header, words).is_some();
    let subject = header.starts_with(b"subject: report domain:") || has(b"\nsubject: report domain:");
    subject || has(b"\ntls-report-domain:") || has(b"report-type=tlsrpt") || has(b"report-type=\"tlsrpt\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;

    fn verdict() -> Verdict {
        let address: Address = "a@sender.example".parse().unwrap();
        let mut verdict = Verdict::local(address);
        verdict.dmarc.result = Found::Fail;
        verdict.dmarc.policy = DmarcPolicy::Reject;
        verdict.dmarc.policy_domain = Some("sender.example".to_owned());
        verdict.dmarc.reports_wanted = true;
        verdict
    }

    /// Somebody forges mail from a million addresses to fill our disk with rows of his own domain's report.
    #[test]
    fn a_flood_of_sources_fills_nothing() {
        let (tally, verdict) = (Tally::default(), verdict());
        let flood = DMARC_TALLIES_A_DOMAIN as u32 * 2;
        for n in 0..flood {
            tally.count(0, IpAddr::V4(n.into()), "x.example", &verdict, Disposition::Reject);
        }
        let taken = tally.take();
        let [(0, domain, rows, left_out)] = taken.as_slice() else { panic!("{}", taken.len()) };
        assert_eq!((domain.as_str(), rows.len()), ("sender.example", DMARC_TALLIES_A_DOMAIN));
        assert_eq!(rows.iter().map(|(_, n)| n).sum::<u32>() + left_out, flood);
        assert!(tally.take().is_empty());
    }

    #[test]
    fn what_was_done_otherwise_has_its_reason() {
        let ip = IpAddr::from([192, 0, 2, 1]);
        let said = |verdict: &Verdict, done| {
            let evaluated = record(ip, "x.example", verdict, done).row.policy_evaluated;
            let reasons: Vec<String> = evaluated.reason.iter().map(|r| r.type_.to_string()).collect();
            format!("{} {}", evaluated.disposition, reasons.join(" "))
        };
        let mut verdict = verdict();
        assert_eq!(said(&verdict, Disposition::Reject), "reject ");
        assert_eq!(said(&verdict, Disposition::Quarantine), "quarantine local_policy");
        assert_eq!(said(&verdict, Disposition::None), "none local_policy");
        verdict.dmarc.testing = true;
        verdict.dmarc.policy = DmarcPolicy::Quarantine;
        assert_eq!(said(&verdict, Disposition::Quarantine), "quarantine policy_test_mode");
        verdict.dmarc.testing = false;
        verdict.dmarc.result = Found::Pass;
        assert_eq!(said(&verdict, Disposition::None), "pass ");
        verdict.dmarc.policy = DmarcPolicy::None;
        assert_eq!(said(&verdict, Disposition::None), "none ");
    }

    /// Two servers reported to each other about each other's reports, every day one more.
    #[test]
    fn dmarc_report_loop() {
        assert!(is_report_itself(
            b"From: a@b\r\nSubject: Report Domain: x.example Submitter: y\r\n\r\nSubject"
        ));
        assert!(is_report_itself(b"TLS-Required: No\r\nTLS-Report-Domain: x.example\r\n\r\n"));
        assert!(!is_report_itself(b"Subject: hello\r\n\r\nSubject: Report Domain: x"));
    }
}
