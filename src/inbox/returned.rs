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
    let dead = matches!(recipient.reason, Reason::UserUnknown | Reason::HostUnknown);
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
