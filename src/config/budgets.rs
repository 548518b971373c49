//! `[budgets]` and `[loops]`: what protects a domain's name, and what ends a conversation among machines.

use std::time::Duration;

use super::settings::{Settings, Value};
use super::values;

/// When sending slows down (at half of a rate) and stops (above it).
#[derive(Debug, Clone)]
pub struct Budgets {
    pub rate_window: Duration,
    /// Deliveries that ended in the window, below which no rate counts.
    pub rate_minimum: u32,
    pub bounces_per_thousand: u32,
    pub complaints_per_thousand: u32,
}

#[derive(Debug, Clone)]
pub struct Loops {
    /// Messages that an inbox may send in a thread without a human's turn; 0: any number.
    pub turns: u32,
    pub window: Duration,
    /// What may be answered all the same: `auto_reply`, `bounce`, `list`, `null_sender`.
    pub answer: Vec<String>,
}

const ANSWERABLE: [&str; 4] = ["auto_reply", "bounce", "list", "null_sender"];
const DAY: Duration = Duration::from_secs(86_400);

pub(super) fn take_budgets(s: &mut Settings) -> Budgets {
    Budgets {
        rate_window: s.take("budgets.rate_window", window, || DAY),
        rate_minimum: s.take("budgets.rate_minimum", |v| values::count(v, 1, 1_000_000), || 50),
        bounces_per_thousand: s.take("budgets.bounces_per_thousand", |v| values::count(v, 1, 1_000), || 50),
        complaints_per_thousand: s.take(
            "budgets.complaints_per_thousand",
            |v| values::count(v, 1, 1_000),
            || 1,
        ),
    }
}

pub(super) fn take_loops(s: &mut Settings) -> Loops {
    Loops {
        turns: s.take("loops.turns", |v| values::count(v, 0, 1_000), || 6),
        window: s.take("loops.window", window, || DAY),
        answer: s.take("loops.answer", answer, Vec::new),
    }
}

fn window(value: &Value) -> Result<Duration, String> {
    let found = values::duration(value)?;
    match found >= Duration::from_secs(3_600) && found <= DAY * 30 {
        true => Ok(found),
        false => Err("takes a time from 1h to 30d".to_owned()),
    }
}

fn answer(value: &Value) -> Result<Vec<String>, String> {
    let words = value.list()?;
    match words.iter().find(|word| !ANSWERABLE.contains(&word.as_str())) {
        None => Ok(words),
        Some(other) => Err(format!("`{other}` is none of {}", ANSWERABLE.join(", "))),
    }
}
