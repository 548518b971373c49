//! `[budgets]` and `[loops]`: what protects a domain's name, and what ends a conversation among machines.

use std::time::Duration;

use super::settings::{Settings, Value};
use super::values;

/// What inboxes share, how what is new begins, and when sending slows down (at half of a rate) and stops (above it).
#[derive(Debug, Clone)]
pub struct Budgets {
    /// Recipients elsewhere in any 24 hours, of all inboxes of a sending domain, or of a pod, together.
    pub domain_per_day: Option<i64>,
    pub pod_per_day: Option<i64>,
    pub domain_warmup: Warmup,
    pub inbox_warmup: Warmup,
    /// Limits of every inbox that has none of its own: strangers, and messages to one recipient, in any 24 hours.
    pub new_recipients_per_day: Option<i64>,
    pub per_recipient_per_day: Option<i64>,
    pub rate_window: Duration,
    /// Deliveries that ended in the window, below which no rate counts.
    pub rate_minimum: u32,
    pub bounces_per_thousand: u32,
    pub complaints_per_thousand: u32,
}

/// How what is new begins: from which day on how many recipients may be written to in any 24 hours. A step lasts until
/// the next, the last one as long as the one before it; a single one has a week.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Warmup(Vec<(i64, i64)>);

impl Warmup {
    pub fn is_off(&self) -> bool {
        self.0.is_empty()
    }

    /// What holds on that day, counted from 1; `None` where it is over.
    pub fn cap(&self, day: i64) -> Option<i64> {
        if day > self.last_day() {
            return None;
        }
        let step = self.0.iter().rev().find(|(from, _)| *from <= day).or(self.0.first());
        step.map(|(_, cap)| *cap)
    }

    /// 0 where there is none.
    pub fn last_day(&self) -> i64 {
        match self.0.as_slice() {
            [] => 0,
            [_] => 7,
            [.., (before, _), (last, _)] => last + (last - before) - 1,
        }
    }

    /// The first day after `day` on which something else holds.
    pub fn next_step(&self, day: i64) -> Option<i64> {
        let next = self.0.iter().map(|(from, _)| *from).find(|from| *from > day);
        next.or_else(|| (!self.is_off() && day <= self.last_day()).then(|| self.last_day() + 1))
    }
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
        domain_per_day: s.take("budgets.domain_per_day", per_day, || None),
        pod_per_day: s.take("budgets.pod_per_day", per_day, || None),
        domain_warmup: s.take("budgets.domain_warmup", warmup, Warmup::default),
        inbox_warmup: s.take("budgets.inbox_warmup", warmup, Warmup::default),
        new_recipients_per_day: s.take("budgets.new_recipients_per_day", per_day, || None),
        per_recipient_per_day: s.take("budgets.per_recipient_per_day", per_day, || None),
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

/// More than this is no budget.
const HIGHEST: u64 = 1_000_000_000;

/// 0: none.
fn per_day(value: &Value) -> Result<Option<i64>, String> {
    Ok(Some(values::count(value, 0, HIGHEST)?).filter(|n| *n > 0).map(i64::from))
}

/// `[[1, 20], [4, 50]]`; in the environment `1:20, 4:50`.
fn warmup(value: &Value) -> Result<Warmup, String> {
    const SHAPE: &str = "takes pairs of a day and a number of recipients, like [[1, 20], [4, 50], [8, 200]]";
    let pair = |day: &Value, cap: &Value| -> Result<(i64, i64), String> {
        Ok((values::count(day, 1, 3_650)?.into(), values::count(cap, 1, HIGHEST)?.into()))
    };
    let mut steps: Vec<(i64, i64)> = Vec::new();
    match value {
        Value::List(items) => {
            for item in items {
                let Value::List(both) = item else { return Err(SHAPE.to_owned()) };
                let [day, cap] = both.as_slice() else { return Err(SHAPE.to_owned()) };
                steps.push(pair(day, cap)?);
            }
        }
        other => {
            for item in other.list()? {
                let (day, cap) = item.split_once(':').ok_or(SHAPE)?;
                let text = |part: &str| Value::Text(part.trim().to_owned());
                steps.push(pair(&text(day), &text(cap))?);
            }
        }
    }
    if steps.len() > 100 {
        return Err("takes at most 100 steps".to_owned());
    }
    if steps.first().is_some_and(|(day, _)| *day != 1) {
        return Err("begins with day 1".to_owned());
    }
    match steps.iter().zip(steps.iter().skip(1)).find(|(before, after)| before.0 >= after.0) {
        None => Ok(Warmup(steps)),
        Some((before, after)) => {
            Err(format!("days must rise: day {} is followed by day {}", before.0, after.0))
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn number(n: i64) -> Value {
        Value::Number(n.to_string())
    }

    fn list(pairs: &[(i64, i64)]) -> Value {
        Value::List(pairs.iter().map(|(day, cap)| Value::List(vec![number(*day), number(*cap)])).collect())
    }

    #[test]
    fn a_warm_up_rises_by_its_steps_and_ends() {
        let plan = warmup(&list(&[(1, 20), (4, 50), (8, 200), (15, 500), (22, 1_000)])).unwrap();
        assert_eq!(warmup(&Value::Text("1:20, 4:50, 8:200, 15:500, 22:1000".into())), Ok(plan.clone()));
        let caps: Vec<_> = [1, 3, 4, 7, 8, 22, 28, 29].map(|day| plan.cap(day)).into();
        let expected = [20, 20, 50, 50, 200, 1_000, 1_000].map(Some);
        assert_eq!(caps, [expected.as_slice(), &[None]].concat());
        assert_eq!(
            [1, 4, 22, 28, 29].map(|day| plan.next_step(day)),
            [Some(4), Some(8), Some(29), Some(29), None]
        );
        let single = warmup(&list(&[(1, 5)])).unwrap();
        assert_eq!([single.cap(7), single.cap(8)], [Some(5), None]);
        assert!(Warmup::default().is_off() && Warmup::default().cap(1).is_none());
        assert_eq!(Warmup::default().next_step(1), None);
    }

    #[test]
    fn an_impossible_warm_up_is_refused_in_words() {
        let refused = |value: Value| warmup(&value).unwrap_err();
        assert_eq!(refused(list(&[(2, 20)])), "begins with day 1");
        assert_eq!(refused(list(&[(1, 20), (4, 50), (4, 60)])), "days must rise: day 4 is followed by day 4");
        assert!(refused(list(&[(1, 0)])).contains("no number from 1"));
        assert!(refused(Value::List(vec![number(20)])).contains("[[1, 20]"));
        assert!(refused(Value::Text("20".into())).contains("pairs"));
        assert_eq!(warmup(&Value::Text(String::new())), Ok(Warmup::default()));
    }
}
