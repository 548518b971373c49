//! No loops: an agent does not answer machines, and a thread has a budget of agent turns without a human.
//!
//! A turn is a message that the inbox sent in the thread. It counts from the last human turn on: a message from
//! outside (not from an inbox of this server) that says of itself that a person wrote it, is not held, is no copy
//! of another, and did not come so fast after ours that nobody can have read it. Whether its sender is verified
//! does not matter: whoever forges one wins an answer, not an endless loop, for the limits hold. Another server's
//! agent that does not mark its answers is a person by its header alone; what gives it away is its speed, and what
//! that does not, the budget of all turns in the window stops (`MOST_TURNS` times the budget).

use super::{Job, Reason};
use crate::address::Address;
use crate::clock::{Millis, rfc3339};
use crate::config::Loops;
use crate::screen::kind::Kind;
use crate::store::message::{Direction, Message};
use crate::store::thread::{self, Thread, Turn};
use crate::store::{StoreError, Tx};

/// A person needs longer than this to read a message and answer it.
const TOO_FAST: Millis = 20_000;
/// Turns of any kind in the window, as a multiple of those without a human.
const MOST_TURNS: usize = 5;

/// Messages that are looked at, whatever the thread holds: in a loop at most every other one is not ours.
fn looked_at(loops: &Loops) -> i64 {
    i64::from(loops.turns).saturating_mul(2 * MOST_TURNS as i64).clamp(100, 10_000)
}

/// What the loop rules say of a send.
pub(super) async fn reasons(
    tx: &mut Tx,
    job: &Job,
    thread: Option<&Thread>,
) -> Result<Vec<Reason>, StoreError> {
    let loops = &job.floor.config.loops;
    let mut reasons = Vec::new();
    if let Some(parent) = &job.parent {
        reasons.extend(to_a_machine(loops, parent, &job.prepared.recipients));
    }
    if let Some(thread) = thread
        && loops.turns > 0
    {
        let window = i64::try_from(loops.window.as_millis()).unwrap_or(i64::MAX / 2);
        let since = tx.now() - window;
        let turns = thread::turns(tx, job.inbox, thread.thread_key, since, looked_at(loops)).await?;
        reasons.extend(by_turns(&turns, loops, window));
    }
    Ok(reasons)
}

/// RFC 3834 §2: automatic mail is not answered automatically; RFC 5321 §4.5.5: nor what comes from nobody.
fn to_a_machine(loops: &Loops, parent: &Message, recipients: &[Address]) -> Option<Reason> {
    if parent.direction == Direction::Out {
        return None;
    }
    let kind = parent.kind.unwrap_or(Kind::Person);
    let local = parent.verdict.as_ref().is_some_and(|v| v.source == crate::verify::verdict::Source::Local);
    let (rule, word, what) = match kind {
        Kind::Bounce => ("no_reply_to_bounce", "bounce", "is a bounce"),
        // Another agent of ours says so of its answers; the turns of the thread are counted.
        Kind::AutoReply if local => return None,
        Kind::AutoReply => ("no_reply_to_auto", "auto_reply", "is an automatic answer"),
        Kind::List => ("no_reply_to_list", "list", "was sent to a list"),
        _ if parent.reverse_path.is_none() && !local => {
            ("no_reply_to_null_sender", "null_sender", "has no sender to answer to (MAIL FROM:<>)")
        }
        _ => return None,
    };
    if loops.answer.iter().any(|allowed| allowed == word) {
        return None;
    }
    // Somebody else may be written to about it: whose mail bounced, a colleague.
    let mut theirs: Vec<String> = parent.from_address.iter().cloned().collect();
    theirs.extend(parent.reverse_path.iter().cloned());
    for text in parent.reply_to.iter().chain(&parent.to).chain(&parent.cc) {
        let bare = text.rsplit_once('<').map_or(text.as_str(), |(_, address)| address.trim_end_matches('>'));
        theirs.push(bare.to_owned());
    }
    let theirs: Vec<String> =
        theirs.iter().filter_map(|text| text.parse::<Address>().ok()).map(|a| a.key()).collect();
    let met: Vec<String> = recipients.iter().map(Address::key).filter(|key| theirs.contains(key)).collect();
    if met.is_empty() {
        return None;
    }
    let say = format!("The message that this answers {what}; answering it may start a loop.");
    let fix = format!(
        "Write to a person in a new message, or have the operator allow it: loops.answer = [\"{word}\"]."
    );
    Some(Reason::new(rule, say, fix).with(met))
}

/// `turns` newest first.
fn by_turns(turns: &[Turn], loops: &Loops, window: Millis) -> Option<Reason> {
    let budget = usize::try_from(loops.turns).unwrap_or(usize::MAX);
    let is_human = |(n, turn): (usize, &Turn)| {
        let ours = turns.get(n + 1..).unwrap_or_default().iter().find(|t| t.ours);
        !turn.ours && turn.by_person && ours.is_none_or(|ours| turn.at - ours.at >= TOO_FAST)
    };
    let alone: Vec<&Turn> = turns
        .iter()
        .enumerate()
        .take_while(|(n, turn)| !is_human((*n, turn)))
        .map(|(_, turn)| turn)
        .filter(|turn| turn.ours)
        .collect();
    let all: Vec<&Turn> = turns.iter().filter(|turn| turn.ours).collect();
    let (rule, say, counted, limit) = if alone.len() >= budget {
        let say =
            format!("{} messages were sent in this thread without a human's turn between them.", alone.len());
        ("thread_turns", say, alone, budget)
    } else if all.len() >= budget.saturating_mul(MOST_TURNS) {
        let say = format!("{} messages were sent in this thread in a short time.", all.len());
        let limit = budget.saturating_mul(MOST_TURNS);
        ("thread_turns_total", say, all, limit)
    } else {
        return None;
    };
    // There is room when the oldest of the last `limit` turns leaves the window.
    let retry_at = counted.get(limit.checked_sub(1)?).map(|turn| turn.at + window + 1);
    let fix = format!(
        "A human has to look at it; a person's answer in the thread makes room{}.",
        retry_at.map(|at| format!(", or wait until {}", rfc3339(at))).unwrap_or_default()
    );
    let evidence = [format!("turns {}", counted.len()), format!("budget {limit}")];
    let mut reason = Reason::new(rule, say, fix).with(evidence);
    reason.retry_at = retry_at;
    Some(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loops() -> Loops {
        Loops { turns: 3, window: std::time::Duration::from_secs(86_400), answer: Vec::new() }
    }

    fn turn(at: Millis, ours: bool, by_person: bool) -> Turn {
        Turn { at, ours, by_person }
    }

    /// Newest first, as the store has them.
    fn said(mut turns: Vec<Turn>) -> Option<&'static str> {
        turns.reverse();
        by_turns(&turns, &loops(), 86_400_000).map(|reason| reason.rule)
    }

    #[test]
    fn three_turns_alone_are_enough_and_a_person_makes_room() {
        let ours = |at| turn(at, true, false);
        assert_eq!(said(vec![turn(0, false, true), ours(1), ours(2)]), None);
        assert_eq!(said(vec![turn(0, false, true), ours(1), ours(2), ours(3)]), Some("thread_turns"));
        let answered = turn(3 + TOO_FAST, false, true);
        assert_eq!(said(vec![ours(1), ours(2), ours(3), answered]), None);
    }

    #[test]
    fn a_machine_that_calls_itself_a_person_is_known_by_its_speed() {
        let mut turns = Vec::new();
        for n in 0..3 {
            turns.push(turn(n * 100, true, false));
            turns.push(turn(n * 100 + 50, false, true));
        }
        assert_eq!(said(turns), Some("thread_turns"));
    }

    #[test]
    fn and_a_slow_one_by_the_budget_of_all_turns() {
        let mut turns = Vec::new();
        for n in 0..15 {
            turns.push(turn(n * 100_000, true, false));
            turns.push(turn(n * 100_000 + 50_000, false, true));
        }
        assert_eq!(said(turns), Some("thread_turns_total"));
    }
}
