//! The queue: what waits to leave, and when each of it is tried.
//!
//! - A row is claimed (`attempting`, attempt counted, committed) before anybody dials; results are committed in
//!   groups. Rows of a dead process come back, marked `maybe_duplicate`: on SQLite at the start, on PostgreSQL
//!   when their node was not seen for a minute in which the database was there.
//! - Rows of one message for one domain travel together; destinations take turns (`plan.rs`); memory is bounded
//!   by rows held and by the octets of opened letters.
//! - It sleeps until a release wakes it or the next row is due; a lost wake-up costs seconds, never mail.
//! - A claim whose outcome is unknown may have left rows `attempting` that nobody tries: then nothing new is
//!   claimed until everything under way is written, and what is left is taken back (`mend`).
//! - Stopping: nothing new is claimed, what waits is given back untouched, what is under way finishes.
//!
//! RFC 5321 §4.5.4.1 (sending strategy).

mod ledger;
mod plan;
mod worker;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Millis;
use crate::deliver::dkim::Signers;
use crate::deliver::letter::{Desk, Letter};
use crate::deliver::relay::Relay;
use crate::floor::Floor;
use crate::gate;
use crate::ids::{InboxKey, random_token};
use crate::store::delivery::{self, Delivery, Route, Turn};
use crate::store::{StoreError, Topic, hold_rule};

use plan::{Plan, Reach};
use worker::{Back, Parcel, Workshop};

/// Rows claimed in one transaction.
const CLAIM: usize = 256;
/// While more is known to wait, claim only once this much room is free: not a commit for every row.
const WORTH_A_CLAIM: usize = 64;
/// Releases that come close together are claimed together, while something is under way; for longer while a
/// destination has more than it takes, since most of what is new may be for it.
const GATHER: Duration = Duration::from_millis(3);
const GATHER_LONGER: Duration = Duration::from_millis(20);
/// A claim walks past every destination that it leaves out: with thousands of them it takes long, and the next one
/// waits so many times as long (at most `LONGEST_GATHER`), so that claims do not keep the database busy.
const CLAIM_SHARE: u32 = 4;
const LONGEST_GATHER: Duration = Duration::from_secs(1);
/// The longest sleep: a wake-up of another process may be lost.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);
const AFTER_AN_ERROR: Duration = Duration::from_secs(1);
/// How often a node says that it lives, and after what silence it is taken for dead.
const BEAT: Duration = Duration::from_secs(10);
const DEAD_AFTER: Duration = Duration::from_secs(60);
/// Results on their way to the ledger.
const RESULTS: usize = 1_024;

/// Delivers until `shutdown`; returns early only when the DKIM keys cannot be opened, or when results can no
/// longer be written: then the server must stop, and whoever starts next takes back what was under way.
pub async fn run(floor: Arc<Floor>, shutdown: CancellationToken) {
    let signers = Signers::new(&floor.store, &floor.secrets);
    if let Err(error) = signers.refresh().await {
        tracing::error!(%error, "mail cannot be signed, so none is sent");
        return;
    }
    let current = tokio::spawn(signers.clone().keep(shutdown.clone()));
    let name = node_name(&floor.config.data_dir);
    // Each process of a node has a name of its own, so that an earlier one's results come too late.
    let node: Arc<str> = format!("{name}-{}", random_token::<5>()).into();
    let (results, received) = mpsc::channel(RESULTS);
    let ledger = tokio::spawn(ledger::keep(floor.clone(), node.clone(), received));
    let workshop = Workshop {
        relay: Relay::new(&floor),
        desk: Arc::new(Desk::new(floor.clone(), signers)),
        floor: floor.clone(),
        results,
        stop: shutdown.clone(),
    };
    let queue = Queue {
        workshop: Arc::new(workshop),
        plan: Plan::new(),
        tasks: JoinSet::new(),
        under_way: HashMap::new(),
        claiming: None,
        stranded: None,
        more: true,
        left_out: 0,
        claim_took: Duration::ZERO,
        next_due: None,
        turn: Turn::default(),
        pulse: None,
        floor: floor.clone(),
        name: name.into(),
        node: node.clone(),
    };
    queue.work(shutdown).await;
    current.abort();
    // The last sender of results went with the queue, so the ledger writes what it has and ends. Only then may
    // others take what this node still holds: before, they would take what is delivered and not yet written.
    if ledger.await.is_ok_and(|complete| complete) {
        forget(&floor, node).await;
    }
}

/// This node is gone, and nothing of it is still to be written.
async fn forget(floor: &Floor, node: Arc<str>) {
    let forgotten: Result<(), StoreError> = floor
        .store
        .write(move |tx| {
            let node = node.clone();
            Box::pin(async move { delivery::forget_nodes(tx, Some(&node), 0).await })
        })
        .await;
    if let Err(error) = forgotten {
        tracing::debug!(%error, "the node's row stays until it is stale");
    }
}

/// The node's name, kept in its data folder (which is locked: one process at a time has it). A node whose folder
/// cannot keep it has a new name each time, and its rows come back a minute later.
fn node_name(data_dir: &std::path::Path) -> String {
    let path = data_dir.join("node");
    let is_name = |text: &String| text.len() == 16 && text.bytes().all(|b| b.is_ascii_alphanumeric());
    if let Some(name) = std::fs::read_to_string(&path).ok().filter(is_name) {
        return name;
    }
    let name = random_token::<10>();
    if let Err(error) = std::fs::write(&path, &name) {
        tracing::warn!(%error, path = %path.display(), "the node's name cannot be kept");
    }
    name
}

/// For how long this node's own beats have succeeded: while the database is away every node falls silent, and
/// whoever is back first must not take the others for dead.
#[derive(Debug, Clone, Copy)]
struct Pulse {
    since: Instant,
    last: Instant,
}

impl Pulse {
    /// Whether a node that was not seen for `DEAD_AFTER` is dead, and not just as unable to say so as we were.
    fn is_proof(pulse: Option<Pulse>, now: Instant) -> bool {
        pulse.is_some_and(|pulse| {
            now.duration_since(pulse.since) >= DEAD_AFTER && now.duration_since(pulse.last) < BEAT * 3
        })
    }

    /// After a beat that succeeded. A gap (a beat that hung) is as good as a failure.
    fn after(pulse: Option<Pulse>, now: Instant) -> Pulse {
        let kept = pulse.filter(|pulse| now.duration_since(pulse.last) < BEAT * 3);
        Pulse { since: kept.map_or(now, |pulse| pulse.since), last: now }
    }
}

struct Queue {
    floor: Arc<Floor>,
    name: Arc<str>,
    node: Arc<str>,
    workshop: Arc<Workshop>,
    plan: Plan<Parcel>,
    tasks: JoinSet<Done>,
    /// The parcel of each task, so that one that panics frees its place.
    under_way: HashMap<Id, UnderWay>,
    /// The task that claims.
    claiming: Option<Id>,
    /// There may be rows `attempting` of which this process does not know.
    stranded: Option<Stranded>,
    /// There may be rows that are due and not claimed.
    more: bool,
    /// How many destinations the last claim left out, because their parcels still wait.
    left_out: usize,
    /// How long it took.
    claim_took: Duration,
    /// When the next row is due, as far as known.
    next_due: Option<Millis>,
    /// Whose turn it is.
    turn: Turn,
    pulse: Option<Pulse>,
}

/// A parcel that a task delivers.
struct UnderWay {
    domain: String,
    reach: Reach,
    rows: Vec<Delivery>,
}

/// Whether rows that nobody knows of may have been dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stranded {
    Untried,
    Dialled,
}

enum Done {
    Claimed(Result<Claimed, StoreError>),
    Back(Back),
    GivenBack(Result<(), StoreError>),
    /// The results of a parcel that panicked are with the ledger.
    Reported,
    TakenBack(Result<u64, StoreError>),
}

struct Claimed {
    claimed: delivery::Claimed,
    next_due: Option<Millis>,
    took: Duration,
}

impl Queue {
    async fn work(mut self, shutdown: CancellationToken) {
        let mut wakes = self.floor.store.wakeups().subscribe(Topic::Queue);
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut recovered = false;
        let results = self.workshop.results.clone();
        let complete = loop {
            self.mend();
            self.start_parcels();
            self.claim_if_worth_it(recovered);
            let sleep = self.sleep();
            tokio::select! {
                () = shutdown.cancelled() => break true,
                () = results.closed() => break false,
                Some(done) = self.tasks.join_next_with_id() => self.take(done),
                changed = wakes.changed(), if !self.more => {
                    self.more = true;
                    if changed.is_err() {
                        break true;
                    }
                }
                () = tokio::time::sleep(sleep), if !self.more && self.claiming.is_none() => self.more = true,
                _ = beat.tick() => {
                    recovered |= self.beat(recovered).await;
                    self.workshop.relay.pool.sweep();
                }
            }
        };
        drop(results);
        if !complete {
            tracing::error!("results of deliveries are not written any more: the queue stops");
            // What they come to could not be kept.
            self.tasks.abort_all();
        }
        self.stop().await;
    }

    /// Until the next row is due; short, because the database's clock is not ours to watch.
    fn sleep(&self) -> Duration {
        let due = self.next_due.map_or(i64::MAX, |due| due.saturating_sub(self.floor.clock.now()));
        // A row that is due already waits for its destination, or for a clock: look again soon, not at once.
        let least = if self.left_out > 0 { 500 } else { 20 };
        let due = u64::try_from(due).unwrap_or(0).max(least);
        Duration::from_millis(due).min(LONGEST_SLEEP)
    }

    /// Says that this node lives, and takes back what dead ones left. `true` once that was possible.
    async fn beat(&mut self, recovered: bool) -> bool {
        let shared = self.floor.store.is_shared();
        self.let_go().await;
        // On SQLite nobody else can have died.
        if recovered && !shared {
            return true;
        }
        let (node, name, pulse) = (self.node.clone(), self.name.clone(), self.pulse);
        let outcome = self
            .floor
            .store
            .write(move |tx| {
                let (node, name) = (node.clone(), name.clone());
                Box::pin(async move {
                    delivery::beat(tx, &node).await?;
                    let dead_after = i64::try_from(DEAD_AFTER.as_millis()).unwrap_or(60_000);
                    // Asked here, because a write may have waited for the database.
                    let stale = Pulse::is_proof(pulse, Instant::now()).then(|| tx.now() - dead_after);
                    let rows = delivery::recover(tx, &node, &name, stale).await?;
                    if let Some(stale) = stale {
                        delivery::forget_nodes(tx, None, stale - dead_after).await?;
                    }
                    Ok::<u64, StoreError>(rows)
                })
            })
            .await;
        self.pulse = outcome.is_ok().then(|| Pulse::after(self.pulse, Instant::now()));
        match outcome {
            Ok(0) => true,
            Ok(rows) => {
                tracing::warn!(rows, "deliveries of a process that died are tried again");
                true
            }
            Err(error) => {
                tracing::error!(%error, "the queue cannot reach the database");
                false
            }
        }
    }

    /// Rows whose hold rule is gone are due again.
    async fn let_go(&self) {
        loop {
            let more: Result<bool, StoreError> =
                self.floor.store.write(|tx| Box::pin(hold_rule::let_go(tx))).await;
            match more {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!(%error, "what no rule holds any more could not be let go");
                    return;
                }
            }
        }
    }

    fn start_parcels(&mut self) {
        while let Some(parcel) = self.plan.next() {
            let workshop = self.workshop.clone();
            let under_way = UnderWay {
                domain: parcel.domain.clone(),
                reach: reach(parcel.route),
                rows: parcel.deliveries.clone(),
            };
            let task = self.tasks.spawn(async move { Done::Back(workshop.deliver(parcel).await) });
            self.under_way.insert(task.id(), under_way);
        }
    }

    fn claim_if_worth_it(&mut self, recovered: bool) {
        let room = self.plan.room();
        let waits = self.claiming.is_some() || self.stranded.is_some();
        if !recovered || waits || !self.more || (room < WORTH_A_CLAIM && !self.plan.is_idle()) {
            return;
        }
        self.more = false;
        let limit = room.min(CLAIM);
        let busy = self.plan.busy();
        self.left_out = busy.len();
        let busy = serde_json::to_string(&busy).unwrap_or_else(|_| "[]".to_owned());
        let gather = match (self.under_way.is_empty(), self.left_out) {
            (true, _) => None,
            (false, 0) => Some(GATHER),
            (false, _) => Some((self.claim_took * CLAIM_SHARE).clamp(GATHER_LONGER, LONGEST_GATHER)),
        };
        let (floor, node, turn) = (self.floor.clone(), self.node.clone(), self.turn.clone());
        let task = self.tasks.spawn(async move {
            if let Some(gather) = gather {
                tokio::time::sleep(gather).await;
            }
            Done::Claimed(claim(&floor, &node, limit, busy, turn).await)
        });
        self.claiming = Some(task.id());
    }

    fn strand(&mut self, stranded: Stranded) {
        self.stranded = self.stranded.max(Some(stranded));
    }

    /// Takes back rows that this process has and does not know of: once nothing is under way, and every result
    /// is written, they are all that it has.
    fn mend(&mut self) {
        let Some(stranded) = self.stranded else { return };
        let waiting = self.plan.take_waiting();
        self.give_back(waiting.into_iter().flat_map(|parcel| parcel.deliveries).collect(), None);
        if !self.tasks.is_empty() {
            return;
        }
        let (floor, node, results) = (self.floor.clone(), self.node.clone(), self.workshop.results.clone());
        self.tasks.spawn(async move {
            let (answer, written) = oneshot::channel();
            if results.send(ledger::Note::Written(answer)).await.is_err() || written.await.is_err() {
                return Done::TakenBack(Err(StoreError::Closed));
            }
            let dialled = stranded == Stranded::Dialled;
            let taken = floor.store.write(move |tx| {
                let node = node.clone();
                Box::pin(async move { delivery::take_back(tx, &node, dialled).await })
            });
            let taken = taken.await;
            if taken.is_err() {
                tokio::time::sleep(AFTER_AN_ERROR).await;
            }
            Done::TakenBack(taken)
        });
    }

    fn take(&mut self, done: Result<(Id, Done), tokio::task::JoinError>) {
        match done {
            Ok((_, Done::Claimed(claimed))) => {
                self.claiming = None;
                self.take_claimed(claimed);
            }
            Ok((id, Done::Back(back))) => {
                self.parcel_is_back(id, back.reached);
                self.give_back(back.untried, back.not_before);
            }
            Ok((_, Done::GivenBack(Ok(())) | Done::Reported)) => self.more = true,
            Ok((_, Done::GivenBack(Err(error)))) => {
                tracing::warn!(%error, "rows could not be given back");
                self.strand(Stranded::Untried);
            }
            Ok((_, Done::TakenBack(Ok(rows)))) => {
                tracing::warn!(rows, "deliveries that were claimed and not known of are due again");
                self.stranded = None;
                self.more = true;
            }
            Ok((_, Done::TakenBack(Err(error)))) => {
                tracing::error!(%error, "deliveries that may be claimed and not known of cannot be taken back");
            }
            Err(error) => self.take_failed(&error),
        }
    }

    /// A task panicked.
    fn take_failed(&mut self, error: &tokio::task::JoinError) {
        tracing::error!(%error, "a task of the queue panicked");
        let id = error.id();
        if self.claiming == Some(id) {
            self.claiming = None;
            self.strand(Stranded::Untried);
        } else if let Some(under_way) = self.parcel_is_back(id, false) {
            let workshop = self.workshop.clone();
            self.tasks.spawn(async move {
                workshop.panicked(under_way.rows).await;
                Done::Reported
            });
        } else {
            self.strand(Stranded::Dialled);
        }
    }

    fn parcel_is_back(&mut self, id: Id, reached: bool) -> Option<UnderWay> {
        let under_way = self.under_way.remove(&id)?;
        self.plan.done(&under_way.domain, under_way.rows.len(), under_way.reach, reached);
        self.trim(std::iter::once(under_way.domain.as_str()));
        // A destination that was left out has nothing waiting any more: its other rows may come.
        self.more |= self.plan.busy().len() < self.left_out;
        Some(under_way)
    }

    fn take_claimed(&mut self, claimed: Result<Claimed, StoreError>) {
        let claimed = match claimed {
            Ok(claimed) => claimed,
            Err(error) => {
                tracing::error!(%error, "deliveries cannot be claimed");
                if matches!(error, StoreError::Unknown(_) | StoreError::Storage(_)) {
                    self.strand(Stranded::Untried);
                }
                let soon = i64::try_from(AFTER_AN_ERROR.as_millis()).unwrap_or(1_000);
                self.next_due = Some(self.floor.clock.now() + soon);
                return;
            }
        };
        let Claimed { claimed, next_due, took } = claimed;
        self.next_due = next_due;
        self.claim_took = took;
        self.turn = claimed.turn;
        self.more |= claimed.more;
        let mut domains = HashSet::new();
        for parcel in self.parcels(claimed.rows) {
            let (domain, rows, reach) = (parcel.domain.clone(), parcel.deliveries.len(), reach(parcel.route));
            self.plan.add(&domain, parcel, rows, reach);
            domains.insert(domain);
        }
        self.trim(domains.iter().map(String::as_str));
    }

    /// Gives back what waits for destinations beyond what they may hold.
    fn trim<'a>(&mut self, domains: impl Iterator<Item = &'a str>) {
        let over: Vec<Parcel> = domains.flat_map(|domain| self.plan.trim(domain)).collect();
        if !over.is_empty() {
            self.give_back(over.into_iter().flat_map(|parcel| parcel.deliveries).collect(), None);
            // They are due, and left out until what waits for their destinations has left.
            self.left_out = self.plan.busy().len();
        }
    }

    /// Rows of one message share a letter; those of one domain, by one way, travel together.
    fn parcels(&self, rows: Vec<Delivery>) -> Vec<Parcel> {
        let mut letters: HashMap<(InboxKey, i64), Arc<Letter>> = HashMap::new();
        let mut places: HashMap<(InboxKey, i64, String, Route, Option<String>), usize> = HashMap::new();
        let mut parcels: Vec<Parcel> = Vec::new();
        for row in rows {
            let message = (row.inbox, row.message_key);
            let place = (row.inbox, row.message_key, row.domain.clone(), row.route, row.via.clone());
            if let Some(parcel) = places.get(&place).and_then(|i| parcels.get_mut(*i)) {
                parcel.deliveries.push(row);
                continue;
            }
            let letter = letters
                .entry(message)
                .or_insert_with(|| Arc::new(Letter::new(self.workshop.desk.clone(), &row)));
            places.insert(place, parcels.len());
            parcels.push(Parcel {
                domain: row.domain.clone(),
                route: row.route,
                letter: letter.clone(),
                deliveries: vec![row],
            });
        }
        parcels
    }

    /// What waits is given back; what is under way may finish, as long as the server lets it.
    async fn stop(mut self) {
        let waiting = self.plan.take_waiting();
        self.give_back(waiting.into_iter().flat_map(|parcel| parcel.deliveries).collect(), None);
        while let Some(done) = self.tasks.join_next().await {
            match done {
                Ok(Done::Back(back)) => self.give_back(back.untried, back.not_before),
                // Claimed a moment before the stop.
                Ok(Done::Claimed(Ok(claimed))) => self.give_back(claimed.claimed.rows, None),
                Ok(Done::GivenBack(Err(error))) => {
                    tracing::warn!(%error, "rows could not be given back; the next start recovers them");
                }
                Ok(Done::Claimed(Err(_)) | Done::GivenBack(Ok(())) | Done::Reported | Done::TakenBack(_))
                | Err(_) => {}
            }
        }
        self.workshop.relay.pool.close();
    }

    /// In the background, as one of the queue's own tasks: they were not tried, so nothing is marked.
    fn give_back(&mut self, rows: Vec<Delivery>, not_before: Option<Millis>) {
        if rows.is_empty() {
            return;
        }
        let (floor, node, rows) = (self.floor.clone(), self.node.clone(), Arc::new(rows));
        self.tasks.spawn(async move {
            let outcome: Result<(), StoreError> = floor
                .store
                .write(move |tx| {
                    let (node, rows) = (node.clone(), rows.clone());
                    Box::pin(async move {
                        let mut untried = Vec::new();
                        for row in rows.iter() {
                            if delivery::give_back(tx, &node, row, not_before).await? {
                                untried.push(row);
                            }
                        }
                        gate::give_back_budgets(tx, &untried).await
                    })
                })
                .await;
            Done::GivenBack(outcome)
        });
    }
}

fn reach(route: Route) -> Reach {
    match route {
        Route::Relay => Reach::Far,
        Route::Local | Route::Capture => Reach::Near,
    }
}

async fn claim(
    floor: &Arc<Floor>,
    node: &Arc<str>,
    limit: usize,
    busy: String,
    turn: Turn,
) -> Result<Claimed, StoreError> {
    let shared = floor.clone();
    let (node, limit) = (node.clone(), i64::try_from(limit).unwrap_or(i64::MAX));
    floor
        .store
        .write(move |tx| {
            let (floor, node, busy, turn) = (shared.clone(), node.clone(), busy.clone(), turn.clone());
            Box::pin(async move {
                let begun = Instant::now();
                let mut claimed = delivery::claim(tx, &node, limit, &busy, &turn).await?;
                // DESIGN.md §4 (3): the gate is asked again right before sending.
                claimed.rows = gate::let_go_on(tx, &floor, claimed.rows).await?;
                let next_due = if claimed.more { None } else { delivery::ahead(tx).await? };
                Ok(Claimed { claimed, next_due, took: begun.elapsed() })
            })
        })
        .await
}

#[cfg(test)]
mod tests;
