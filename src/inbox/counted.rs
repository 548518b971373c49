//! What a message adds to the DMARC report about its author's domain: noted before it is filed, counted once it has
//! its answer, so that what is put off and comes again counts once.

use std::net::IpAddr;

use super::Recipient;
use crate::config::DmarcHandling;
use crate::envelope::Envelope;
use crate::floor::Floor;
use crate::reports::{self, Disposition};
use crate::verify::verdict::{DmarcPolicy, Verdict};

/// A message that will be counted.
pub(super) struct Note {
    ip: IpAddr,
    envelope_from: String,
    verdict: Verdict,
    /// What is made of it where it is not refused.
    accepted: Disposition,
}

/// `None` for what is not counted: nobody asks, or it has to do with reports (`reports::tally` says why).
pub(super) fn note(
    floor: &Floor,
    envelope: &Envelope,
    verdict: &Verdict,
    recipients: &[Recipient],
    raw: &[u8],
) -> Option<Note> {
    if !floor.config.reports.dmarc || !verdict.dmarc.reports_wanted {
        return None;
    }
    // The operator's inbox sends nothing but reports: what comes back to it is about them.
    let of_reports = |r: &Recipient| super::takes_reports(r) || r.operator && r.answers.is_some();
    if recipients.iter().any(of_reports) || reports::is_report_itself(raw) {
        return None;
    }
    Some(Note {
        ip: envelope.peer.ip,
        envelope_from: envelope.mail_from.as_ref().map_or_else(String::new, |from| from.domain().to_owned()),
        accepted: accepted(verdict, recipients),
        verdict: verdict.clone(),
    })
}

/// The most that one of the recipients makes of it. An enforced reject that is not said aloud, since others take the
/// message, keeps it out of sight: to the domain that is a quarantine.
fn accepted(verdict: &Verdict, recipients: &[Recipient]) -> Disposition {
    let filtered = |r: &Recipient| r.policy.dmarc.value != DmarcHandling::Tag;
    if verdict.dmarc_failed() && verdict.dmarc.policy > DmarcPolicy::None && recipients.iter().any(filtered) {
        Disposition::Quarantine
    } else {
        Disposition::None
    }
}

impl Note {
    /// It was taken.
    pub(super) fn taken(&self, floor: &Floor) {
        self.count(floor, self.accepted);
    }

    /// It was refused for good, for this or another reason: what DMARC had to do with it is what its policy asks.
    pub(super) fn refused(&self, floor: &Floor) {
        let rejects = self.verdict.dmarc_failed() && self.verdict.dmarc.policy == DmarcPolicy::Reject;
        self.count(floor, if rejects { Disposition::Reject } else { self.accepted });
    }

    fn count(&self, floor: &Floor, done: Disposition) {
        floor.tally.count(floor.clock.now(), self.ip, &self.envelope_from, &self.verdict, done);
    }
}
