//! What attempts noticed, gathered off their way: TLS results and deliveries in TLS, written every few seconds.
//!
//! Bounded: `WAITING` notes wait, `GATHERED` different ones are gathered; what is beyond is not counted. A crash
//! loses a few seconds of counts, and nothing else.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::clock::Clock;
use crate::store::tls_result::{self, TlsResult};
use crate::store::{Store, StoreError, trust};

const WAITING: usize = 4096;
const GATHERED: usize = 10_000;
const EVERY: Duration = Duration::from_secs(2);
/// Between two looks for what is too old.
const SWEEP: u32 = 1800;

pub(super) enum Note {
    Session(Box<TlsResult>),
    /// A message was taken over TLS by a host of this domain.
    InTls(String),
}

#[derive(Default)]
struct Gathered {
    sessions: HashMap<TlsResult, i64>,
    in_tls: HashMap<String, i64>,
}

/// The writer; it ends when the last sender is gone.
pub(super) fn start(store: Store, clock: Clock) -> mpsc::Sender<Note> {
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(write(store, clock, receiver));
    sender
}

async fn write(store: Store, clock: Clock, mut notes: mpsc::Receiver<Note>) {
    let mut gathered = Gathered::default();
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut turns = 1u32;
    loop {
        tokio::select! {
            note = notes.recv() => match note {
                Some(note) => gathered.add(note),
                None => return flush(&store, &clock, &mut gathered).await,
            },
            _ = tick.tick() => {
                flush(&store, &clock, &mut gathered).await;
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
            Note::Session(result) => add(&mut self.sessions, *result),
            Note::InTls(domain) => add(&mut self.in_tls, domain),
        }
    }
}

fn add<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, i64>, key: K) {
    if counts.len() < GATHERED || counts.contains_key(&key) {
        *counts.entry(key).or_default() += 1;
    }
}

async fn flush(store: &Store, clock: &Clock, gathered: &mut Gathered) {
    let Gathered { sessions, in_tls } = std::mem::take(gathered);
    if sessions.is_empty() && in_tls.is_empty() {
        return;
    }
    let day = tls_result::day(clock.now());
    // In order, so that two nodes that write the same rows wait for each other in the same direction.
    let mut sessions: Vec<(TlsResult, i64)> = sessions.into_iter().collect();
    sessions.sort();
    let mut in_tls: Vec<(String, i64)> = in_tls.into_iter().collect();
    in_tls.sort();
    let batch = Arc::new((sessions, in_tls));
    let written: Result<u64, StoreError> = store
        .write(move |tx| {
            let batch = Arc::clone(&batch);
            Box::pin(async move {
                for (domain, deliveries) in &batch.1 {
                    trust::saw_tls(tx, domain, *deliveries).await?;
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
