//! What attempts noticed, gathered off their way: TLS results and deliveries in TLS, written every few seconds.
//!
//! Bounded: `WAITING` notes wait, `GATHERED` different ones are gathered; what is beyond is not counted. A crash
//! loses a few seconds of counts, and nothing else.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::HABIT;
use crate::clock::Clock;
use crate::store::event::{self, NewEvent};
use crate::store::tls_result::{self, TlsResult};
use crate::store::{Store, StoreError, Tx, inbox, trust};

const WAITING: usize = 4096;
const GATHERED: usize = 10_000;
const EVERY: Duration = Duration::from_secs(2);
/// Between two looks for what is too old.
const SWEEP: u32 = 1800;

pub(super) enum Note {
    Session(Box<TlsResult>),
    /// A message was taken over TLS by a host of this domain, which proved itself or did not.
    InTls {
        domain: String,
        verified: bool,
    },
}

/// A domain takes its mail in a weaker way than last time.
pub(super) struct Weaker<'a> {
    pub(super) domain: &'a str,
    /// `verified` or `tls`
    pub(super) was: &'static str,
    /// `tls` or `clear`
    pub(super) is: &'static str,
}

/// Tells the operator, in the log and as an event of its inbox.
pub(super) async fn tell(tx: &mut Tx, operator: &str, weaker: &Weaker<'_>) -> Result<(), StoreError> {
    let Weaker { domain, was, is } = weaker;
    tracing::warn!(relay.domain = domain, was, is, "mail to a domain goes in a weaker way than last time");
    let Some(inbox) = inbox::by_address(tx, operator).await? else { return Ok(()) };
    let data = serde_json::json!({ "domain": domain, "was": was, "is": is }).to_string();
    event::append(tx, inbox.key, NewEvent { event_type: "tls.weaker", data, ..NewEvent::default() }).await
}

#[derive(Default)]
struct Gathered {
    sessions: HashMap<TlsResult, i64>,
    /// Messages, and those of them to hosts that proved themselves.
    in_tls: HashMap<String, (i64, i64)>,
}

/// The writer; it ends when the last sender is gone.
pub(super) fn start(store: Store, clock: Clock, operator: Arc<str>) -> mpsc::Sender<Note> {
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(write(store, clock, operator, receiver));
    sender
}

async fn write(store: Store, clock: Clock, operator: Arc<str>, mut notes: mpsc::Receiver<Note>) {
    let mut gathered = Gathered::default();
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut turns = 1u32;
    loop {
        tokio::select! {
            note = notes.recv() => match note {
                Some(note) => gathered.add(note),
                None => return flush(&store, &clock, &operator, &mut gathered).await,
            },
            _ = tick.tick() => {
                flush(&store, &clock, &operator, &mut gathered).await;
                if turns.is_multiple_of(SWEEP) {
                    sweep(&store).await;
                }
                turns = turns.wrapping_add(1);
            }
        }
    }
}

impl Gathered {
    fn add(&mut self, note: Note) {
        match note {
            Note::Session(result) => {
                if let Some(count) = counter(&mut self.sessions, *result) {
                    *count += 1;
                }
            }
            Note::InTls { domain, verified } => {
                if let Some((all, good)) = counter(&mut self.in_tls, domain) {
                    *all += 1;
                    *good += i64::from(verified);
                }
            }
        }
    }
}

/// `None` where there is no room for another.
fn counter<K: std::hash::Hash + Eq, C: Default>(counts: &mut HashMap<K, C>, key: K) -> Option<&mut C> {
    (counts.len() < GATHERED || counts.contains_key(&key)).then(|| counts.entry(key).or_default())
}

async fn flush(store: &Store, clock: &Clock, operator: &Arc<str>, gathered: &mut Gathered) {
    let Gathered { sessions, in_tls } = std::mem::take(gathered);
    if sessions.is_empty() && in_tls.is_empty() {
        return;
    }
    let day = tls_result::day(clock.now());
    // In order, so that two nodes that write the same rows wait for each other in the same direction.
    let mut sessions: Vec<(TlsResult, i64)> = sessions.into_iter().collect();
    sessions.sort();
    let mut in_tls: Vec<(String, (i64, i64))> = in_tls.into_iter().collect();
    in_tls.sort();
    let (batch, operator) = (Arc::new((sessions, in_tls)), Arc::clone(operator));
    let written: Result<u64, StoreError> = store
        .write(move |tx| {
            let (batch, operator) = (Arc::clone(&batch), Arc::clone(&operator));
            Box::pin(async move {
                for (domain, (deliveries, verified)) in &batch.1 {
                    if trust::saw_tls(tx, domain, *deliveries, *verified, HABIT).await? {
                        tell(tx, &operator, &Weaker { domain, was: "verified", is: "tls" }).await?;
                    }
                }
                tls_result::record(tx, day, &batch.0).await
            })
        })
        .await;
    match written {
        Ok(0) => {}
        Ok(refused) => tracing::warn!(refused, "more TLS results than a day has room for"),
        Err(error) => tracing::warn!(%error, "TLS results could not be written"),
    }
}

async fn sweep(store: &Store) {
    let gone: Result<u64, StoreError> = store
        .write(|tx| Box::pin(async move { Ok(tls_result::forget(tx).await? + trust::forget(tx).await?) }))
        .await;
    if let Err(error) = gone {
        tracing::warn!(%error, "old TLS results and policies could not be swept");
    }
}
