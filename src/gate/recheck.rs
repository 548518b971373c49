//! Asked again right before sending, in the transaction in which the queue claims: what was allowed when it was
//! released may not be any more. A stop, a pause, a deleted inbox, a suppression, a blocked recipient.
//!
//! A claim has up to hundreds of rows, so each question is asked once for all of them: four short queries, and
//! on a quiet server each finds nothing. The inbox's limits are no question here: they were settled by the release. The
//! budgets that inboxes share are (`budgets`): what they have no room for waits.

use std::collections::{BTreeSet, HashMap};

use super::budgets;
use crate::address::Address;
use crate::floor::Floor;
use crate::ids::InboxKey;
use crate::store::delivery::Delivery;
use crate::store::inbox::InboxStatus;
use crate::store::list::ListVerdict;
use crate::store::stop::{self, Queued, Stop};
use crate::store::{StoreError, Tx, delivery, hold_rule, inbox, list, release, suppression};

/// What becomes of a delivery that was about to be tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recheck {
    Go,
    /// Waits until what holds it is gone; `by` is what `delivery.held_by` is to say.
    Hold {
        by: String,
        say: String,
    },
    /// Never leaves.
    Cancel {
        reason: String,
    },
}

/// What holds the mail of an inbox that was paused after its release.
const HELD_BY_PAUSE: &str = "gate:inbox_paused";

/// One answer for each delivery, in their order.
pub async fn recheck(tx: &mut Tx, deliveries: &[Delivery]) -> Result<Vec<Recheck>, StoreError> {
    if deliveries.is_empty() {
        return Ok(Vec::new());
    }
    let stops = stop::active(tx).await?;
    let inboxes: BTreeSet<InboxKey> = deliveries.iter().map(|d| d.inbox).collect();
    let silent: HashMap<InboxKey, Option<InboxStatus>> =
        inbox::not_sending(tx, &inboxes).await?.into_iter().collect();
    let addresses: Vec<Option<Address>> = deliveries.iter().map(|d| d.recipient.parse().ok()).collect();
    let known: Vec<Address> = addresses.iter().flatten().cloned().collect();
    let mut suppressed = HashMap::new();
    for pod in inboxes.iter().map(|key| key.pod).collect::<BTreeSet<_>>() {
        let names: Vec<String> = known.iter().map(Address::key).collect();
        for found in suppression::among(tx, pod, &names).await? {
            suppressed.insert((pod, found.address), found.reason);
        }
    }
    let blocks = list::send_blocks(tx, &known).await?;
    let mut answers = Vec::with_capacity(deliveries.len());
    for (delivery, address) in deliveries.iter().zip(&addresses) {
        if let Some(answer) = by_inbox(&silent, delivery).or_else(|| by_stop(&stops, delivery)) {
            answers.push(answer);
            continue;
        }
        let Some(address) = address else {
            answers.push(Recheck::Go);
            continue;
        };
        if let Some(reason) = suppressed.get(&(delivery.inbox.pod, address.key())) {
            let reason = format!("{address} was suppressed ({reason}) after this was released.");
            answers.push(Recheck::Cancel { reason });
            continue;
        }
        let mine: Vec<_> =
            blocks.iter().filter(|e| list::reaches(e.scope, delivery.inbox)).cloned().collect();
        answers.push(match list::judge(&mine, address) {
            ListVerdict::Blocked(entry) => Recheck::Cancel {
                reason: format!(
                    "{address} was put on the {}'s send block list ({}) after this was released.",
                    list::scope_word(entry.scope),
                    entry.entry
                ),
            },
            _ => Recheck::Go,
        });
    }
    Ok(answers)
}

/// Those of the claimed rows that may be tried; the others are held, canceled or planned for later in this
/// transaction, and their attempt does not count.
pub async fn let_go_on(
    tx: &mut Tx,
    floor: &Floor,
    claimed: Vec<Delivery>,
) -> Result<Vec<Delivery>, StoreError> {
    let answers = recheck(tx, &claimed).await?;
    let mut free = Vec::with_capacity(claimed.len());
    for (row, answer) in claimed.into_iter().zip(answers) {
        match answer {
            Recheck::Go => free.push(row),
            Recheck::Hold { by, .. } => hold_rule::hold_claimed(tx, &row, &by).await?,
            Recheck::Cancel { reason } => {
                delivery::cancel_claimed(tx, &row, &reason).await?;
                delivery::announce(tx, &row, "delivery.canceled", None, Some(&reason), None).await?;
                if row.attempts <= 1 {
                    release::give_back_some(tx, row.inbox, row.message_key, 1).await?;
                }
            }
        }
    }
    budgets::charge(tx, floor, free).await
}

fn by_inbox(silent: &HashMap<InboxKey, Option<InboxStatus>>, delivery: &Delivery) -> Option<Recheck> {
    match silent.get(&delivery.inbox)? {
        None => Some(Recheck::Cancel { reason: "The inbox that sent this was deleted.".to_owned() }),
        Some(_) => Some(Recheck::Hold {
            by: HELD_BY_PAUSE.to_owned(),
            say: "The inbox was paused after this was released; it goes on when the inbox is active again."
                .to_owned(),
        }),
    }
}

/// A stop that cancels is stronger than one that holds.
fn by_stop(stops: &[Stop], delivery: &Delivery) -> Option<Recheck> {
    let domain = delivery.sender.rsplit_once('@').map_or("", |(_, domain)| domain);
    let mine = || stops.iter().filter(|stop| stop.scope.covers(delivery.inbox, domain));
    if let Some(stop) = mine().find(|stop| stop.queued == Queued::Cancel) {
        return Some(Recheck::Cancel { reason: say(stop) });
    }
    let stop = mine().next()?;
    Some(Recheck::Hold { by: stop::held_by(&stop.stop_id), say: say(stop) })
}

/// The sentence of a stop, for an agent and its human.
pub(super) fn say(stop: &Stop) -> String {
    let whose = match stop.scope.word() {
        "organization" => "Nothing is sent by anybody".to_owned(),
        word => format!("Nothing of the {word} {} is sent", stop.name),
    };
    format!("{whose}: {}", stop.reason)
}
