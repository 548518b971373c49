//! What came of attempts, written in groups: many results share one commit.
//!
//! At each result the crash is harmless: before the commit the row is still `attempting`, and whoever starts
//! next tries again with the same Message-ID, marked `maybe_duplicate`. A bounce is filed before the row says
//! `failed`, and filing it twice makes one (`inbox::deliver_bounce`).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::clock::Millis;
use crate::deliver::outcome::{Fate, Outcome};
use crate::floor::Floor;
use crate::gate::{self, Ended};
use crate::screen::bounce;
use crate::store::attempt::{self, Attempt};
use crate::store::delivery::{self, Delivery, Settled};
use crate::store::outcome::{self, Proof};
use crate::store::{StoreError, Tx};

/// Results in one transaction.
const GROUP: usize = 200;
/// Between two tries to write while the database is away: doubled each time, up to the second.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// One recipient's result, decided and ready to be written.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) delivery: Delivery,
    pub(super) outcome: Outcome,
    pub(super) settled: Settled,
    /// `gatepost dev` plays a recipient who complains.
    pub(super) complains: bool,
}

/// What the ledger is told.
pub(super) enum Note {
    Result(Box<Entry>),
    /// Answered once everything told before is written.
    Written(oneshot::Sender<()>),
}

/// Writes results until every sender is gone; `true` when all of them are written. A result is tried until it is
/// written: only a store that is closed ends it before, and then the queue ends too.
pub(super) async fn keep(floor: Arc<Floor>, node: Arc<str>, mut notes: mpsc::Receiver<Note>) -> bool {
    let mut group = Vec::with_capacity(GROUP);
    while notes.recv_many(&mut group, GROUP).await > 0 {
        let (mut batch, mut asked) = (Vec::with_capacity(group.len()), Vec::new());
        for note in group.drain(..) {
            match note {
                Note::Result(entry) => batch.push(entry),
                Note::Written(answer) => asked.push(answer),
            }
        }
        let batch = Arc::new(batch);
        let mut pause = PAUSE;
        while !batch.is_empty() {
            let (batch, node) = (batch.clone(), node.clone());
            let written: Result<(), StoreError> = floor
                .store
                .write(move |tx| {
                    let (batch, node) = (batch.clone(), node.clone());
                    Box::pin(async move {
                        let mut ends = Vec::with_capacity(batch.len());
                        for entry in batch.iter() {
                            if write(tx, &node, entry).await? {
                                ends.extend(ended(entry));
                            }
                        }
                        gate::note_outcomes(tx, &ends).await
                    })
                })
                .await;
            match written {
                Ok(()) => break,
                Err(StoreError::Closed) => return false,
                Err(error) => {
                    if pause == PAUSE || !error.is_temporary() {
                        tracing::error!(%error, "results of deliveries cannot be written; trying on");
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
        for answer in asked {
            // Who asked and is gone does not need to know.
            let _ = answer.send(());
        }
    }
    true
}

/// What `worker::decide` says of a deferral that outlived its message.
const EXPIRED: &str = "5.4.7";

/// What the sender's name has of it. That nobody could be reached until it expired is no refusal.
fn ended(entry: &Entry) -> Vec<(&Delivery, Ended)> {
    let mut ends = Vec::new();
    match (entry.settled.state, entry.outcome.fate) {
        ("delivered", _) => ends.push((&entry.delivery, Ended::Delivered)),
        ("failed", Fate::Failed) if entry.outcome.status != EXPIRED => {
            ends.push((&entry.delivery, Ended::Bounced));
        }
        _ => {}
    }
    if entry.complains && entry.outcome.fate == Fate::Delivered {
        ends.push((&entry.delivery, Ended::Complained));
    }
    ends
}

/// `false` where the result came too late to count.
async fn write(tx: &mut Tx, node: &str, entry: &Entry) -> Result<bool, StoreError> {
    let Entry { delivery, outcome, settled, complains } = entry;
    if !delivery::settle(tx, node, delivery, settled).await? {
        // Another node took the row over while we were thought dead: its result counts.
        tracing::warn!(delivery.id = delivery.id(), "the result of a delivery came too late");
        return Ok(false);
    }
    attempt::record(tx, delivery.inbox, delivery.delivery_key, &attempt_of(node, entry, tx.now())).await?;
    let (status, reply) = (settled.status.as_deref(), settled.reply.as_deref());
    if settled.state == "deferred" && delivery::is_late(tx, delivery).await? {
        delivery::announce(tx, delivery, "delivery.delayed", status, reply, settled.next_attempt_at).await?;
    }
    if settled.state == "failed" {
        let (status, reply) = (status.unwrap_or_default(), reply.unwrap_or_default());
        // What was deferred until it expired: the last answer's words are about a day, not about the recipient.
        let class = match outcome.fate {
            Fate::Failed => bounce::reason_of(status, reply).class_text(),
            _ => "expired",
        };
        outcome::bounced(tx, delivery, class, status, reply).await?;
    } else {
        let event_type = if settled.state == "delivered" { "message.delivered" } else { "delivery.deferred" };
        delivery::announce(tx, delivery, event_type, status, reply, settled.next_attempt_at).await?;
    }
    if outcome.suppresses() {
        outcome::suppress(tx, delivery, "bounce", Some(&outcome.text)).await?;
    }
    if *complains && outcome.fate == Fate::Delivered {
        outcome::complained(tx, delivery, "abuse", "simulated", Proof::Token).await?;
        outcome::suppress(tx, delivery, "complaint", Some("simulated")).await?;
    }
    Ok(true)
}

/// The time is counted from the claim, the wait for the destination included.
fn attempt_of(node: &str, entry: &Entry, now: Millis) -> Attempt {
    let via = entry.outcome.via.as_ref();
    Attempt {
        attempt: entry.delivery.attempts,
        node: node.to_owned(),
        host: via.map(|via| via.host.clone()),
        address: via.map(|via| via.address.to_string()),
        tls: via.and_then(|via| via.tls.clone()),
        outcome: entry.settled.state.to_owned(),
        status: entry.settled.status.clone(),
        reply: Some(entry.outcome.text.clone()),
        began_at: entry.delivery.updated_at,
        ended_at: now,
    }
}
