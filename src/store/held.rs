//! What policy made of a message, and the messages that wait for somebody to look at them.

use serde::{Deserialize, Serialize};

use super::message::{Message, select_held, to_json};
use super::page::Place;
use super::{StoreError, Tx};
use crate::clock::Millis;
use crate::ids::InboxKey;
use crate::principal::Scope;

/// Why a message is not handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Suspect: its work item is held as well, if it is alone in its thread.
    Held,
    /// Kept out by a list, or refused by this inbox while another recipient took the message.
    Blocked,
    /// Looked at, and not to be handed out.
    Discarded,
}

impl Held {
    pub fn text(self) -> &'static str {
        match self {
            Held::Held => "held",
            Held::Blocked => "blocked",
            Held::Discarded => "discarded",
        }
    }

    pub fn parse(text: &str) -> Option<Held> {
        [Held::Held, Held::Blocked, Held::Discarded].into_iter().find(|h| h.text() == text)
    }
}

/// Stored with a message that policy had something to say about.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PolicyNote {
    pub reasons: Vec<PolicyReason>,
    /// Alone, this inbox would have refused the message; it is here because another recipient took it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refused: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided: Option<Decided>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyReason {
    /// `dmarc_failed`, `spoofed`, `unauthenticated`, `too_large`, `receive_list_block`, …
    pub rule: String,
    /// A sentence for people.
    pub text: String,
    /// Whose setting it is: `organization`, `domain`, `pod` or `inbox`.
    pub set_by: String,
}

/// What somebody made of a held message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// `released` or `discarded`
    pub action: String,
    /// The actor, as in the audit log.
    pub by: String,
    pub at: Millis,
}

/// Messages that wait to be looked at, newest first, of one inbox, of a pod or of all.
pub async fn page(tx: &mut Tx, within: Scope, below: &Place, limit: i64) -> Result<Vec<Message>, StoreError> {
    let [pod, inbox_key, message] = below.key;
    let mut args = vec![below.at.into(), pod.into(), inbox_key.into(), message.into(), limit.into()];
    let (pod, inbox_key) = within.numbers();
    args.push(pod.into());
    let one = matches!(within, Scope::Inbox(_));
    if one {
        args.push(inbox_key.into());
    }
    select_held(tx, one, &args).await
}

/// Where a message stands in `page`'s order.
pub fn place(message: &Message) -> Place {
    let key = [message.inbox.pod, message.inbox.inbox, message.message_key];
    Place { at: message.created_at, key, text: String::new() }
}

/// Whether a thread has messages that wait to be looked at.
pub async fn any_of_thread(tx: &mut Tx, inbox: InboxKey, thread_key: i64) -> Result<bool, StoreError> {
    let sql = "SELECT 1 FROM message WHERE pod_key = $1 AND inbox_key = $2 AND thread_key = $3
                 AND held IN ('held', 'blocked') LIMIT 1";
    let args = [inbox.pod.into(), inbox.inbox.into(), thread_key.into()];
    Ok(tx.row(sql, &args).await?.is_some())
}

/// Writes what was decided. A released message is news: also to a worker that holds the thread's item and has
/// seen what came later (`handled = 2`, see `message::mark_handled`).
pub(crate) async fn decide(tx: &mut Tx, message: &Message, while_claimed: bool) -> Result<(), StoreError> {
    let handled = if while_claimed { 2i64 } else { 0 };
    tx.execute(
        "UPDATE message SET held = $4, policy = $5, duplicate_of = $6, handled = $7, updated_at = $8
         WHERE pod_key = $1 AND inbox_key = $2 AND message_key = $3",
        &[
            message.inbox.pod.into(),
            message.inbox.inbox.into(),
            message.message_key.into(),
            message.held.map(Held::text).into(),
            message.policy.as_ref().map(to_json).transpose()?.into(),
            message.duplicate_of.into(),
            handled.into(),
            tx.now().into(),
        ],
    )
    .await?;
    Ok(())
}
