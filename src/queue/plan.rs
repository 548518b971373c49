//! Which parcel leaves next: a lane for each destination, each with a window that opens while it goes well.
//!
//! Pure bookkeeping. A destination that hangs holds its window (small by then) and its waiting parcels, never
//! the whole queue; lanes take turns, so a long lane delays no short one. While parcels wait for a
//! destination, no more of its rows are claimed, and one that did not answer gets few. What needs no network
//! never waits for what does.

use std::collections::{HashMap, HashSet, VecDeque};

/// Parcels under way over the network at once, over all destinations.
pub(super) const MAX_RUNNING: usize = 256;
/// Rows that this process holds, waiting and under way.
pub(super) const MAX_HELD: usize = 8_000;
/// Rows that wait for a destination that does not answer; and for one of which nothing is known yet.
const MAX_SILENT: usize = 32;
const MAX_UNKNOWN: usize = 128;
/// Destinations remembered because they did not answer.
const MAX_REMEMBERED: usize = 10_000;
/// What a new destination may have under way: Postfix's `initial_destination_concurrency`.
const FIRST_WINDOW: usize = 5;
/// Beyond the 20 connections that one host may have, more parcels only keep them fed.
const LARGEST_WINDOW: usize = 64;
const SMALLEST_WINDOW: usize = 2;

pub(super) struct Plan<P> {
    lanes: HashMap<String, Lane<P>>,
    /// Lanes with waiting parcels, in the order of their turns.
    turns: VecDeque<String>,
    /// Those that did not answer when they were last tried.
    silent: HashSet<String>,
    /// Over the network.
    running: usize,
    held: usize,
    /// Parcels waiting that need no network.
    near: usize,
}

struct Lane<P> {
    waiting: VecDeque<Waiting<P>>,
    waiting_rows: usize,
    running: usize,
    window: usize,
    answered: bool,
}

struct Waiting<P> {
    parcel: P,
    rows: usize,
    reach: Reach,
}

/// Whether a parcel needs the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    Near,
    Far,
}

impl<P> Lane<P> {
    /// How many rows may wait.
    fn limit(&self) -> usize {
        match (self.window <= SMALLEST_WINDOW, self.answered) {
            (true, _) => MAX_SILENT,
            (false, false) => MAX_UNKNOWN,
            (false, true) => usize::MAX,
        }
    }
}

impl<P> Plan<P> {
    pub(super) fn new() -> Plan<P> {
        Plan {
            lanes: HashMap::new(),
            turns: VecDeque::new(),
            silent: HashSet::new(),
            running: 0,
            held: 0,
            near: 0,
        }
    }

    /// A parcel of `rows` rows for `domain` waits for its turn.
    pub(super) fn add(&mut self, domain: &str, parcel: P, rows: usize, reach: Reach) {
        let window = if self.silent.contains(domain) { SMALLEST_WINDOW } else { FIRST_WINDOW };
        let lane = self.lanes.entry(domain.to_owned()).or_insert_with(|| Lane {
            waiting: VecDeque::new(),
            waiting_rows: 0,
            running: 0,
            window,
            answered: reach == Reach::Near,
        });
        if lane.waiting.is_empty() {
            self.turns.push_back(domain.to_owned());
        }
        lane.waiting.push_back(Waiting { parcel, rows, reach });
        lane.waiting_rows += rows;
        self.held += rows;
        self.near += usize::from(reach == Reach::Near);
    }

    /// What waits for `domain` beyond what it may hold, the last first; one parcel always stays.
    pub(super) fn trim(&mut self, domain: &str) -> Vec<P> {
        let mut over = Vec::new();
        let Some(lane) = self.lanes.get_mut(domain) else { return over };
        while lane.waiting_rows > lane.limit() && lane.waiting.len() > 1 {
            let Some(last) = lane.waiting.pop_back() else { break };
            lane.waiting_rows = lane.waiting_rows.saturating_sub(last.rows);
            self.held = self.held.saturating_sub(last.rows);
            self.near = self.near.saturating_sub(usize::from(last.reach == Reach::Near));
            over.push(last.parcel);
        }
        over
    }

    /// The next parcel that may leave.
    pub(super) fn next(&mut self) -> Option<P> {
        let full = self.running >= MAX_RUNNING;
        if full && self.near == 0 {
            return None;
        }
        for _ in 0..self.turns.len() {
            let domain = self.turns.pop_front()?;
            let Some(lane) = self.lanes.get_mut(&domain) else { continue };
            let may_leave = |first: &mut Waiting<P>| !full || first.reach == Reach::Near;
            let first = match lane.running < lane.window {
                true => lane.waiting.pop_front_if(may_leave),
                false => None,
            };
            if !lane.waiting.is_empty() {
                self.turns.push_back(domain);
            }
            if let Some(first) = first {
                lane.running += 1;
                lane.waiting_rows = lane.waiting_rows.saturating_sub(first.rows);
                match first.reach {
                    Reach::Near => self.near = self.near.saturating_sub(1),
                    Reach::Far => self.running += 1,
                }
                return Some(first.parcel);
            }
        }
        None
    }

    /// A parcel is back. `reached`: its destination answered.
    pub(super) fn done(&mut self, domain: &str, rows: usize, reach: Reach, reached: bool) {
        if reach == Reach::Far {
            self.running = self.running.saturating_sub(1);
        }
        self.held = self.held.saturating_sub(rows);
        if reached {
            self.silent.remove(domain);
        } else {
            if self.silent.len() >= MAX_REMEMBERED {
                self.silent.clear();
            }
            self.silent.insert(domain.to_owned());
        }
        if let Some(lane) = self.lanes.get_mut(domain) {
            lane.running = lane.running.saturating_sub(1);
            lane.answered = reached;
            lane.window = match reached {
                true => (lane.window + 1).min(LARGEST_WINDOW),
                false => (lane.window / 2).max(SMALLEST_WINDOW),
            };
            if lane.running == 0 && lane.waiting.is_empty() {
                self.lanes.remove(domain);
            }
        }
    }

    /// Destinations that have parcels waiting.
    pub(super) fn busy(&self) -> Vec<&str> {
        self.turns.iter().map(String::as_str).collect()
    }

    /// How many more rows may be claimed.
    pub(super) fn room(&self) -> usize {
        MAX_HELD.saturating_sub(self.held)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.held == 0
    }

    /// Everything that waits and has not left.
    pub(super) fn take_waiting(&mut self) -> Vec<P> {
        self.turns.clear();
        let mut all = Vec::new();
        for lane in self.lanes.values_mut() {
            lane.waiting_rows = 0;
            for waiting in lane.waiting.drain(..) {
                self.held = self.held.saturating_sub(waiting.rows);
                all.push(waiting.parcel);
            }
        }
        self.near = 0;
        self.lanes.retain(|_, lane| lane.running > 0);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_take_turns() {
        let mut plan = Plan::new();
        (0..100).for_each(|i| plan.add("long.example", ("long", i), 1, Reach::Far));
        plan.add("short.example", ("short", 0), 1, Reach::Far);
        let first: Vec<_> = std::iter::from_fn(|| plan.next()).map(|(lane, _)| lane).take(2).collect();
        assert_eq!(first, ["long", "short"]);
    }

    #[test]
    fn a_hanging_destination_holds_its_window_and_no_more() {
        let mut plan = Plan::new();
        (0..1_000).for_each(|i| plan.add("hangs.example", i, 1, Reach::Far));
        assert_eq!(std::iter::from_fn(|| plan.next()).count(), FIRST_WINDOW);
        (0..3).for_each(|i| plan.add("well.example", i, 1, Reach::Far));
        assert_eq!(std::iter::from_fn(|| plan.next()).count(), 3);
        assert_eq!(plan.busy(), ["hangs.example"]);
        // Every failure makes it smaller.
        (0..FIRST_WINDOW).for_each(|_| plan.done("hangs.example", 1, Reach::Far, false));
        assert_eq!(std::iter::from_fn(|| plan.next()).count(), SMALLEST_WINDOW);
    }

    #[test]
    fn a_window_opens_while_it_goes_well() {
        let mut plan = Plan::new();
        (0..500).for_each(|i| plan.add("well.example", i, 1, Reach::Far));
        let mut sent = 0;
        while sent < 400 {
            let batch = std::iter::from_fn(|| plan.next()).count();
            assert!(batch <= LARGEST_WINDOW);
            (0..batch).for_each(|_| plan.done("well.example", 1, Reach::Far, true));
            sent += batch;
        }
        assert_eq!(plan.room(), MAX_HELD - (500 - sent));
        assert_eq!(plan.take_waiting().len(), 500 - sent);
        assert!(plan.is_idle());
    }

    #[test]
    fn who_does_not_answer_holds_few_rows_and_delays_nothing_near() {
        let mut plan = Plan::new();
        (0..256).for_each(|i| plan.add("hangs.example", i, 1, Reach::Far));
        assert_eq!(plan.trim("hangs.example").first(), Some(&255), "the last are given back");
        assert_eq!(plan.room(), MAX_HELD - MAX_UNKNOWN);
        (0..FIRST_WINDOW).for_each(|_| assert!(plan.next().is_some()));
        (0..FIRST_WINDOW).for_each(|_| plan.done("hangs.example", 1, Reach::Far, false));
        plan.trim("hangs.example");
        assert_eq!(plan.room(), MAX_HELD - MAX_SILENT);
        // It is remembered after its lane is gone; a single large parcel stays all the same.
        plan.take_waiting();
        plan.add("hangs.example", 1, 1_000, Reach::Far);
        assert!(plan.trim("hangs.example").is_empty());
        (0..300).for_each(|i| plan.add(&format!("{i}.example"), i, 1, Reach::Far));
        plan.add("agents.example", 0, 1, Reach::Near);
        assert_eq!(std::iter::from_fn(|| plan.next()).count(), MAX_RUNNING + 1);
    }
}
