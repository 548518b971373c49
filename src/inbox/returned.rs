//! What a bounce or a complaint means for the deliveries of the message that it answers.
//!
//! Believed only as far as the return path it came by: that names the message and the domain that it went to, so the
//! worst that a forged report can do is to speak for that domain's recipients of that one message. It is read before
//! the transaction.
//!
//! Providers send complaints to the address that is registered with them, which is the operator's. Such a report
//! names the message by what it quotes. Our return path in it proves as much as mail to it would. A Message-ID alone
//! stands in every answer and in every archive: with it a verified sender is heard (an event, for people to see),
//! and nobody is suppressed.

use crate::address::Address;
use crate::deliver::return_path;
use crate::floor::Floor;
use crate::ids::InboxKey;
use crate::screen::bounce::{self, BounceClass, BounceKind, BouncedRecipient, Reason};
use crate::screen::structure::Structure;
use crate::store::message::{self, Direction};
use crate::store::outcome::{Proof, Returned, Told};
use crate::store::{StoreError, inbox};

/// Complaints of people, by their `Feedback-Type`; the others are about authentication, or say that all is well.
const OF_PEOPLE: [&str; 5] = ["abuse", "complaint", "fraud", "opt-out", "opt-out-list"];

/// What a message reports; empty for any message that is no bounce and no complaint.
pub(super) fn reports(raw: &[u8], structure: &Structure) -> Vec<Returned> {
    let Some(bounce) = bounce::read(raw, structure) else { return Vec::new() };
    let of_people = bounce.feedback.as_deref().is_some_and(|kind| OF_PEOPLE.contains(&kind));
    let feedback = bounce.feedback.as_deref();
    bounce.recipients.into_iter().filter_map(|recipient| returned(recipient, of_people, feedback)).collect()
}

fn returned(recipient: BouncedRecipient, of_people: bool, feedback: Option<&str>) -> Option<Returned> {
    // Not where the host is unknown: that is what a resolver's bad day looks like, and says nothing of the address.
    let dead = recipient.reason == Reason::UserUnknown;
    let what = match recipient.kind {
        BounceKind::Failure if dead && recipient.class == BounceClass::Hard => Told::DeadAddress,
        BounceKind::Failure => Told::Failed,
        BounceKind::Complaint if of_people => Told::Complained,
        BounceKind::Complaint => return None,
        BounceKind::Delay => Told::Late,
        BounceKind::Delivered => Told::Arrived,
    };
    let class = match recipient.kind {
        BounceKind::Complaint => feedback.unwrap_or("abuse"),
        _ => recipient.reason.class_text(),
    };
    Some(Returned {
        recipients: [recipient.address, recipient.original].into_iter().flatten().collect(),
        status: recipient.status.unwrap_or_else(|| "5.0.0".to_owned()),
        text: recipient.text,
        what,
        class: class.to_owned(),
    })
}

/// A complaint about a message of ours that came to the operator.
pub(super) struct Complaint {
    pub inbox: InboxKey,
    pub message_key: i64,
    pub reports: Vec<Returned>,
    pub proof: Proof,
}

/// The message that a report to the operator complains of; `None` where it is none of ours, or is no complaint.
pub(super) async fn complaint(
    floor: &Floor,
    raw: &[u8],
    structure: &Structure,
    verified: bool,
) -> Result<Option<Complaint>, StoreError> {
    let Some(origin) = bounce::origin(raw, structure) else { return Ok(None) };
    let reports = reports(raw, structure);
    if reports.is_empty() {
        return Ok(None);
    }
    for sender in origin.mail_from.iter().filter_map(|sender| sender.parse::<Address>().ok()) {
        if let Some(of) = return_path::check(&floor.secrets, sender.local()) {
            let proof = Proof::Token { delivery_key: of.delivery_key };
            return Ok(Some(Complaint { inbox: of.inbox, message_key: of.message_key, reports, proof }));
        }
    }
    let (Some(id), Some(from), true) = (origin.message_id, origin.from, verified) else { return Ok(None) };
    let found = floor.store.read(move |tx| {
        let (id, from) = (id.clone(), from.clone());
        Box::pin(async move {
            let Some(inbox) = inbox::by_address(tx, &from).await? else { return Ok::<_, StoreError>(None) };
            let sent = message::by_public_id(tx, inbox.key, &id).await?;
            Ok(sent.filter(|sent| sent.direction == Direction::Out).map(|sent| (inbox.key, sent.message_key)))
        })
    });
    Ok(found.await?.map(|(inbox, message_key)| Complaint {
        inbox,
        message_key,
        reports,
        proof: Proof::MessageId,
    }))
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
