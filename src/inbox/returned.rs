//! What a bounce means for the deliveries of the message that it answers.
//!
//! Believed only as far as the return path it came by: that names the message, so the worst that a forged
//! report can do is to speak for recipients of that one message. It is read before the transaction.

use crate::deliver::outcome;
use crate::screen::bounce::{self, BounceClass, BouncedRecipient};
use crate::screen::structure::Structure;
use crate::store::delivery::Returned;

/// The failures that a message reports; empty for any message that is no bounce.
pub(super) fn failures(raw: &[u8], structure: &Structure) -> Vec<Returned> {
    let recipients = bounce::read(raw, structure).map(|bounce| bounce.recipients).unwrap_or_default();
    recipients.into_iter().filter(|r| r.class != BounceClass::Other).map(returned).collect()
}

fn returned(recipient: BouncedRecipient) -> Returned {
    let status = recipient.status.unwrap_or_else(|| "5.0.0".to_owned());
    Returned {
        recipients: [recipient.address, recipient.original].into_iter().flatten().collect(),
        dead_address: outcome::is_dead_address(&status),
        status,
        text: recipient.text,
    }
}
