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
use crate::store::delivery::{self, Delivery, News, Settled};
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
                        let written = write(tx, &node, &batch).await?;
                        let ends: Vec<_> = written.into_iter().flat_map(ended).collect();
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

/// The entries whose results count: not those that came too late. The rows first, in as few statements as there are
/// kinds of them, since the longer this takes the more a crash makes others do twice.
async fn write<'a>(tx: &mut Tx, node: &str, batch: &'a [Box<Entry>]) -> Result<Vec<&'a Entry>, StoreError> {
    let results: Vec<_> = batch.iter().map(|entry| (&entry.delivery, &entry.settled)).collect();
    let rows = delivery::settle(tx, node, &results).await?;
    let (counts, late): (Vec<&Entry>, Vec<&Entry>) =
        batch.iter().map(AsRef::as_ref).partition(|entry| rows.contains(&entry.delivery.attempt_key()));
    for entry in late {
        // A report of its failure was faster, or another node took the row over while we were thought dead: that counts.
        tracing::warn!(delivery.id = entry.delivery.id(), "the result of a delivery came too late");
    }
    let now = tx.now();
    // What was said was said, whatever counts.
    let attempts: Vec<_> =
        batch.iter().map(|entry| (&entry.delivery, attempt_of(node, entry, now))).collect();
    attempt::record(tx, &attempts).await?;
    let news: Vec<_> = counts.iter().flat_map(|entry| news(entry)).collect();
    delivery::announce_all(tx, &news).await?;
    for entry in &counts {
        follow(tx, entry).await?;
    }
    Ok(counts)
}

/// What the log says of it, beside `message.bounced`.
fn news(entry: &Entry) -> Vec<News<'_>> {
    let Entry { delivery, settled, .. } = entry;
    let news = |event_type| News {
        delivery,
        event_type,
        status: settled.status.as_deref(),
        reply: settled.reply.as_deref(),
        next_attempt_at: settled.next_attempt_at,
    };
    match settled.state {
        "delivered" => vec![news("message.delivered")],
        "deferred" if settled.told_late => vec![news("delivery.delayed"), news("delivery.deferred")],
        "deferred" => vec![news("delivery.deferred")],
        _ => Vec::new(),
    }
}

/// What follows from a failure, or from a recipient who wants no more.
async fn follow(tx: &mut Tx, entry: &Entry) -> Result<(), StoreError> {
    let Entry { delivery, outcome, settled, complains } = entry;
    if settled.state == "failed" {
        let (status, reply) =
            (settled.status.as_deref().unwrap_or_default(), settled.reply.as_deref().unwrap_or_default());
        // What was deferred until it expired: the last answer's words are about a day, not about the recipient.
        let class = match outcome.fate {
            Fate::Failed => bounce::reason_of(status, reply).class_text(),
            _ => "expired",
        };
        outcome::bounced(tx, delivery, class, status, reply).await?;
    }
    if outcome.suppresses() {
        outcome::suppress(tx, delivery, "bounce", Some(&outcome.text)).await?;
    }
    if *complains && outcome.fate == Fate::Delivered {
        let proof = Proof::Token { delivery_key: delivery.delivery_key };
        outcome::complained(tx, delivery, "abuse", "simulated", proof).await?;
        outcome::suppress(tx, delivery, "complaint", Some("simulated")).await?;
    }
    Ok(())
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
