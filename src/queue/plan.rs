//! Which parcel leaves next: a lane for each destination, each with a window that opens while it goes well.
//!
//! Pure bookkeeping. A destination that hangs holds its window (small by then) and its waiting parcels, never
//! the whole queue; lanes take turns, so a long lane delays no short one. While parcels wait for a
//! destination, no more of its rows are claimed.

use std::collections::{HashMap, VecDeque};

/// Parcels under way at once, over all destinations.
pub(super) const MAX_RUNNING: usize = 256;
/// Rows that this process holds, waiting and under way.
pub(super) const MAX_HELD: usize = 2_000;
/// What a new destination may have under way: Postfix's `initial_destination_concurrency`.
const FIRST_WINDOW: usize = 5;
/// Beyond the 20 connections that one host may have, more parcels only keep them fed.
const LARGEST_WINDOW: usize = 64;
const SMALLEST_WINDOW: usize = 2;

pub(super) struct Plan<P> {
    lanes: HashMap<String, Lane<P>>,
    /// Lanes with waiting parcels, in the order of their turns.
    turns: VecDeque<String>,
    running: usize,
    held: usize,
}

struct Lane<P> {
    waiting: VecDeque<(P, usize)>,
    running: usize,
    window: usize,
}

impl<P> Plan<P> {
    pub(super) fn new() -> Plan<P> {
        Plan { lanes: HashMap::new(), turns: VecDeque::new(), running: 0, held: 0 }
    }

    /// A parcel of `rows` rows for `domain` waits for its turn.
    pub(super) fn add(&mut self, domain: &str, parcel: P, rows: usize) {
        let lane = self.lanes.entry(domain.to_owned()).or_insert_with(|| Lane {
            waiting: VecDeque::new(),
            running: 0,
            window: FIRST_WINDOW,
        });
        if lane.waiting.is_empty() {
            self.turns.push_back(domain.to_owned());
        }
        lane.waiting.push_back((parcel, rows));
        self.held += rows;
    }

    /// The next parcel that may leave, and the number of its rows.
    pub(super) fn next(&mut self) -> Option<(P, usize)> {
        if self.running >= MAX_RUNNING {
            return None;
        }
        for _ in 0..self.turns.len() {
            let domain = self.turns.pop_front()?;
            let Some(lane) = self.lanes.get_mut(&domain) else { continue };
            let parcel = if lane.running < lane.window { lane.waiting.pop_front() } else { None };
            if !lane.waiting.is_empty() {
                self.turns.push_back(domain);
            }
            if parcel.is_some() {
                lane.running += 1;
                self.running += 1;
                return parcel;
            }
        }
        None
    }

    /// A parcel is back. `reached`: its destination answered.
    pub(super) fn done(&mut self, domain: &str, rows: usize, reached: bool) {
        self.running = self.running.saturating_sub(1);
        self.held = self.held.saturating_sub(rows);
        if let Some(lane) = self.lanes.get_mut(domain) {
            lane.running = lane.running.saturating_sub(1);
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
            for (parcel, rows) in lane.waiting.drain(..) {
                self.held = self.held.saturating_sub(rows);
                all.push(parcel);
            }
        }
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
        (0..100).for_each(|i| plan.add("long.example", ("long", i), 1));
        plan.add("short.example", ("short", 0), 1);
        let first: Vec<_> = std::iter::from_fn(|| plan.next()).map(|((lane, _), _)| lane).take(2).collect();
        assert_eq!(first, ["long", "short"]);
    }

    #[test]
    fn a_hanging_destination_holds_its_window_and_no_more() {
        let mut plan = Plan::new();
        (0..1_000).for_each(|i| plan.add("hangs.example", i, 1));
        assert_eq!(std::iter::from_fn(|| plan.next()).count(), FIRST_WINDOW);
        (0..3).for_each(|i| plan.add("well.example", i, 1));
        assert_eq!(std::iter::from_fn(|| plan.next()).count(), 3);
        assert_eq!(plan.busy(), ["hangs.example"]);
        // Every failure makes it smaller.
        (0..FIRST_WINDOW).for_each(|_| plan.done("hangs.example", 1, false));
        assert_eq!(std::iter::from_fn(|| plan.next()).count(), SMALLEST_WINDOW);
    }

    #[test]
    fn a_window_opens_while_it_goes_well() {
        let mut plan = Plan::new();
        (0..500).for_each(|i| plan.add("well.example", i, 1));
        let mut sent = 0;
        while sent < 400 {
            let batch = std::iter::from_fn(|| plan.next()).count();
            assert!(batch <= LARGEST_WINDOW);
            (0..batch).for_each(|_| plan.done("well.example", 1, true));
            sent += batch;
        }
        assert_eq!(plan.room(), MAX_HELD - (500 - sent));
        assert_eq!(plan.take_waiting().len(), 500 - sent);
        assert!(plan.is_idle());
    }
}
