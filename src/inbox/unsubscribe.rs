//! A recipient of bulk mail takes leave: with one click (RFC 8058), or by a mail to the address in List-Unsubscribe.
//!
//! Either carries a token that only the message itself holds. What follows is a suppression of that message's
//! recipient in the pod, an event, and no work for anybody.

use crate::ids::InboxKey;
use crate::store::message::{self, Direction};
use crate::store::{StoreError, Tx, inbox, outcome};

/// Suppresses the recipient of the message whose Message-ID begins with `id`; `None` where there is no such message.
pub(crate) async fn unsubscribe(
    tx: &mut Tx,
    key: InboxKey,
    id: &str,
    way: &str,
) -> Result<Option<bool>, StoreError> {
    let Some(inbox) = inbox::by_key(tx, key).await? else { return Ok(None) };
    let Some((_, domain)) = inbox.address.rsplit_once('@') else { return Ok(None) };
    let sent = message::by_public_id(tx, key, &format!("<{id}@{domain}>")).await?;
    match sent.filter(|sent| sent.direction == Direction::Out) {
        Some(sent) => outcome::unsubscribed(tx, key, sent.message_key, way).await.map(Some),
        None => Ok(None),
    }
}
