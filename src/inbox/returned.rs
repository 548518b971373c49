//! What a bounce or a complaint means for the deliveries of the message that it answers.
//!
//! Believed only as far as the return path it came by: that names the message, so the worst that a forged
//! report can do is to speak for recipients of that one message. It is read before the transaction.

use crate::screen::bounce::{self, BounceClass, BounceKind, BouncedRecipient, Reason};
use crate::screen::structure::Structure;
use crate::store::delivery::{Returned, Told};

/// Complaints of people, by their `Feedback-Type`; the others are about authentication, or say that all is well.
const OF_PEOPLE: [&str; 5] = ["abuse", "complaint", "fraud", "opt-out", "opt-out-list"];

/// What a message reports; empty for any message that is no bounce and no complaint.
pub(super) fn reports(raw: &[u8], structure: &Structure) -> Vec<Returned> {
    let Some(bounce) = bounce::read(raw, structure) else { return Vec::new() };
    let of_people = bounce.feedback.as_deref().is_some_and(|kind| OF_PEOPLE.contains(&kind));
    bounce.recipients.into_iter().filter_map(|recipient| returned(recipient, of_people)).collect()
}

fn returned(recipient: BouncedRecipient, of_people: bool) -> Option<Returned> {
    // Not where the host is unknown: that is what a resolver's bad day looks like, and says nothing of the address.
    let dead = recipient.reason == Reason::UserUnknown;
    let what = match recipient.kind {
        BounceKind::Failure if dead && recipient.class == BounceClass::Hard => Told::DeadAddress,
        BounceKind::Failure => Told::Failed,
        BounceKind::Complaint if of_people => Told::Complained,
        _ => return None,
    };
    Some(Returned {
        recipients: [recipient.address, recipient.original].into_iter().flatten().collect(),
        status: recipient.status.unwrap_or_else(|| "5.0.0".to_owned()),
        text: recipient.text,
        what,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_user_that_is_unknown_is_never_written_to_again() {
        for (status, what) in [
            ("5.1.1", Told::DeadAddress),
            ("5.1.2", Told::Failed),
            ("5.4.4", Told::Failed),
            ("5.2.2", Told::Failed),
            ("5.7.1", Told::Failed),
        ] {
            let raw = format!(
                "From: mailer-daemon@remote.example\r\nSubject: Undelivered\r\n\
                 Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n--b\r\n\
                 Content-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx\r\n\r\n\
                 Final-Recipient: rfc822; bob@remote.example\r\nAction: failed\r\nStatus: {status}\r\n\r\n--b--\r\n"
            );
            let told = reports(raw.as_bytes(), &crate::screen::structure(raw.as_bytes()));
            assert_eq!(told.iter().map(|told| told.what).collect::<Vec<_>>(), [what], "{status}");
        }
    }
}
