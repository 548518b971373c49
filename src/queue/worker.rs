//! A parcel is delivered: the recipients of one message at one destination, by the way that their rows say.
//!
//! The rows were committed as `attempting` before this begins. Results go to the ledger; a local delivery
//! writes its own, in the transaction that files the message.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::address::Address;
use crate::clock::Millis;
use crate::config::{Choice, Relay as RelayConfig};
use crate::deliver::bounce::{self, Action};
use crate::deliver::capture::{self, Simulated};
use crate::deliver::letter::{Desk, Letter};
use crate::deliver::outcome::{Fate, Outcome};
use crate::deliver::relay::{self, Attempt, Relay};
use crate::deliver::site::NotNow;
use crate::deliver::{return_path, schedule};
use crate::floor::Floor;
use crate::ids::random_bytes;
use crate::inbox::{self, InboxError};
use crate::queue::ledger;
use crate::store::delivery::{Delivery, Route, Settled, TlsDemand};

/// Recipients of one message that travel together.
pub(super) struct Parcel {
    pub(super) domain: String,
    pub(super) route: Route,
    pub(super) deliveries: Vec<Delivery>,
    pub(super) letter: Arc<Letter>,
}

/// What every worker needs.
pub(super) struct Workshop {
    pub(super) floor: Arc<Floor>,
    pub(super) relay: Relay,
    pub(super) desk: Arc<Desk>,
    pub(super) results: mpsc::Sender<ledger::Note>,
    pub(super) stop: CancellationToken,
}

/// How a parcel came back.
pub(super) struct Back {
    /// The destination answered, whatever it said.
    pub(super) reached: bool,
    /// Rows that were not tried, because the server stops or it is not their time.
    pub(super) untried: Vec<Delivery>,
    /// When they may be: their destination has had its share for now.
    pub(super) not_before: Option<Millis>,
}

impl Workshop {
    pub(super) async fn deliver(&self, parcel: Parcel) -> Back {
        match parcel.route {
            Route::Relay => self.relay(parcel).await,
            Route::Local => {
                for delivery in parcel.deliveries {
                    if let Some(outcome) = self.local(&delivery).await {
                        self.report(delivery, outcome, false).await;
                    }
                }
                Back { reached: true, untried: Vec::new(), not_before: None }
            }
            Route::Capture => {
                for delivery in parcel.deliveries {
                    let complains = capture::simulated(&delivery.recipient) == Simulated::Complains;
                    let room = self.desk.room(delivery.size).await;
                    let outcome = capture::capture(&self.floor, &delivery).await;
                    drop(room);
                    self.report(delivery, outcome, complains).await;
                }
                Back { reached: true, untried: Vec::new(), not_before: None }
            }
        }
    }

    /// The task of these panicked, at a point that nobody knows: what has no result yet is tried again on schedule,
    /// and may be a duplicate.
    pub(super) async fn panicked(&self, deliveries: Vec<Delivery>) {
        for delivery in deliveries {
            let mut outcome = Outcome::deferred("4.3.0", "something went wrong here");
            outcome.unheard = delivery.route == Route::Relay;
            self.report(delivery, outcome, false).await;
        }
    }

    async fn relay(&self, parcel: Parcel) -> Back {
        let mut addresses = Vec::with_capacity(parcel.deliveries.len());
        let mut deliveries = Vec::with_capacity(parcel.deliveries.len());
        for delivery in parcel.deliveries {
            match delivery.recipient.parse::<Address>() {
                Ok(address) => {
                    addresses.push(address);
                    deliveries.push(delivery);
                }
                Err(error) => {
                    self.report(delivery, Outcome::failed("5.1.3", error.to_string()), false).await;
                }
            }
        }
        let mail_from = deliveries.first().and_then(|delivery| self.return_path(delivery));
        let chosen = deliveries.first().and_then(|row| row.via.as_deref()).and_then(Choice::parse);
        let tls = deliveries.first().map_or(TlsDemand::Usual, |delivery| delivery.tls);
        let pod = deliveries.first().map_or(0, |delivery| delivery.inbox.pod);
        let domain = parcel.domain.as_str();
        let sent = relay::Parcel { pod, domain, chosen, tls, mail_from, recipients: addresses };
        let outcomes = self.relay.attempt(&sent, &parcel.letter, &self.stop).await;
        let outcomes = match outcomes {
            Attempt::Ended(outcomes) => outcomes,
            Attempt::Stopped => return Back { reached: false, untried: deliveries, not_before: None },
            Attempt::NotNow(not_now) => return self.put_off(deliveries, &not_now).await,
        };
        let reached = outcomes.iter().any(|o| o.fate == Fate::Delivered || o.personal);
        let mut results: Vec<_> = deliveries.into_iter().zip(outcomes).collect();
        // A failure waits for its notification to be filed; what was taken is written before that.
        results.sort_by_key(|(_, outcome)| outcome.fate != Fate::Delivered);
        for (delivery, outcome) in results {
            self.report(delivery, outcome, false).await;
        }
        Back { reached, untried: Vec::new(), not_before: None }
    }

    /// Nothing was tried, and nothing is counted; what would expire meanwhile has come to its end.
    async fn put_off(&self, deliveries: Vec<Delivery>, not_now: &NotNow) -> Back {
        let wait = i64::try_from(not_now.wait.as_millis()).unwrap_or(i64::MAX);
        let until = self.floor.clock.now().saturating_add(wait.max(100));
        let (untried, over): (Vec<_>, Vec<_>) = deliveries.into_iter().partition(|d| d.expires_at > until);
        for delivery in over {
            self.report(delivery, Outcome::deferred("4.4.1", not_now.why.clone()), false).await;
        }
        Back { reached: false, untried, not_before: Some(until) }
    }

    /// RFC 5321 §4.4: where bounces of this message come back to. Without a valid one, none are wanted.
    fn return_path(&self, delivery: &Delivery) -> Option<Address> {
        let (_, domain) = delivery.sender.rsplit_once('@')?;
        // A domain that only sends has its bounces come to one that receives: the token says whose they are.
        let elsewhere = || self.floor.config.domains.first().map(String::as_str);
        let domain = if self.floor.receives(domain) { domain } else { elsewhere()? };
        let of = return_path::Returned {
            inbox: delivery.inbox,
            message_key: delivery.message_key,
            delivery_key: delivery.delivery_key,
        };
        let local = return_path::make(&self.floor.secrets, of);
        format!("{local}@{domain}").parse().ok()
    }

    /// `None`: delivered, and written as such.
    async fn local(&self, delivery: &Delivery) -> Option<Outcome> {
        let _room = self.desk.room(delivery.size).await;
        match inbox::deliver_local(&self.floor, delivery).await {
            Ok(()) => None,
            Err(InboxError::UnknownInbox) => {
                Some(Outcome::failed("5.1.1", format!("there is no inbox {}", delivery.recipient)))
            }
            Err(InboxError::NoMessage) => {
                Some(Outcome::failed("5.3.0", "the message is gone from the store"))
            }
            Err(error @ InboxError::TooLarge(_)) => Some(Outcome::failed("5.3.4", error.to_string())),
            Err(InboxError::Store(error)) => {
                tracing::error!(%error, delivery.id = delivery.id(), "a local delivery failed");
                Some(Outcome::deferred("4.3.0", "the inbox cannot be written just now"))
            }
        }
    }

    /// Decides what a result means, files the bounce where it is final, and hands it to the ledger.
    async fn report(&self, delivery: Delivery, outcome: Outcome, complains: bool) {
        let now = self.floor.clock.now();
        let jitter = f64::from(u16::from_le_bytes(random_bytes())) / f64::from(u16::MAX);
        let (mut settled, outcome) = decide(&delivery, outcome, now, &self.floor.config.relay, jitter);
        log(&delivery, &outcome, &settled);
        let is_late = delivery.notice_at.is_some_and(|at| at <= now);
        match settled.state {
            "failed" if !self.tell(Action::Failed, &delivery, &outcome, now).await => {
                // The failure is not final before its bounce is filed: one more attempt finds the same.
                settled = Settled {
                    state: "deferred",
                    next_attempt_at: Some(now.saturating_add(60_000)),
                    ..settled
                };
            }
            // What cannot be filed now is told after the next attempt.
            "deferred" if is_late => {
                settled.told_late = self.tell(Action::Delayed, &delivery, &outcome, now).await;
            }
            _ => {}
        }
        let entry = ledger::Entry { delivery, outcome, settled, complains };
        // The ledger ends after the last worker; if it is gone the row stays `attempting`, to be recovered.
        let _ = self.results.send(ledger::Note::Result(Box::new(entry))).await;
    }

    /// Files a notification beside the message that it is about; `false` where that must be tried again.
    async fn tell(&self, action: Action, delivery: &Delivery, outcome: &Outcome, now: Millis) -> bool {
        let floor = &self.floor;
        let _room = self.desk.room(delivery.size).await;
        let original = floor.bodies.load(&floor.store, delivery.inbox, delivery.message_key).await;
        let original = match original {
            Ok(original) => original.unwrap_or_default(),
            Err(error) => {
                tracing::error!(%error, delivery.id = delivery.id(), "a bounce cannot be written");
                return false;
            }
        };
        let Some(raw) = bounce::compose(&floor.config.hostname, action, delivery, outcome, &original, now)
        else {
            return true;
        };
        match inbox::deliver_bounce(floor, delivery.inbox, delivery.message_key, raw).await {
            // The inbox is deleted: nobody is left to be told.
            Ok(()) | Err(InboxError::UnknownInbox | InboxError::NoMessage | InboxError::TooLarge(_)) => true,
            Err(InboxError::Store(error)) => {
                tracing::error!(%error, delivery.id = delivery.id(), "a bounce cannot be filed");
                false
            }
        }
    }
}

/// What is written of an outcome: its state, and when the next attempt is due. A deferral that would outlive
/// the message is a failure.
fn decide(
    delivery: &Delivery,
    outcome: Outcome,
    now: Millis,
    config: &RelayConfig,
    jitter: f64,
) -> (Settled, Outcome) {
    let mut outcome = outcome;
    let mut next_attempt_at = None;
    if outcome.fate == Fate::Deferred {
        let attempts = u32::try_from(delivery.attempts).unwrap_or(u32::MAX);
        let lifetime = u64::try_from(delivery.expires_at - delivery.created_at).unwrap_or(0);
        let expire = std::time::Duration::from_millis(lifetime);
        next_attempt_at = schedule::next(attempts, delivery.created_at, now, &config.retry, expire, jitter);
        if next_attempt_at.is_none() {
            // RFC 3463 §3.5, X.4.7: delivery time expired.
            // The same words each time that it is found out: see `bounce`.
            let text = format!("given up; the last attempt: {}", outcome.text);
            outcome = Outcome { via: outcome.via, ..Outcome::failed("5.4.7", text) };
        }
    }
    let settled = Settled {
        state: match outcome.fate {
            Fate::Delivered => "delivered",
            Fate::Deferred => "deferred",
            Fate::Failed => "failed",
        },
        status: Some(outcome.status.clone()),
        reply: Some(match outcome.host() {
            Some(host) => format!("{host}: {}", outcome.text),
            None => outcome.text.clone(),
        }),
        next_attempt_at,
        maybe_duplicate: outcome.unheard && next_attempt_at.is_some(),
        told_late: false,
    };
    (settled, outcome)
}

fn log(delivery: &Delivery, outcome: &Outcome, settled: &Settled) {
    tracing::info!(
        delivery.id = delivery.id(),
        delivery.domain = delivery.domain,
        delivery.attempts = delivery.attempts,
        delivery.status = outcome.status,
        relay.host = outcome.host(),
        relay.reply = outcome.text,
        "{}",
        settled.state
    );
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ids::InboxKey;
    use crate::store::delivery::Priority;

    const DAY: Millis = 86_400_000;

    fn delivery(attempts: i64) -> Delivery {
        Delivery {
            inbox: InboxKey { pod: 1, inbox: 2 },
            delivery_key: 3,
            message_key: 4,
            recipient: "bob@remote.example".into(),
            domain: "remote.example".into(),
            route: Route::Relay,
            state: "attempting".into(),
            priority: Priority::Ordinary,
            held_by: None,
            via: None,
            tls: TlsDemand::Usual,
            next_attempt_at: 0,
            attempts,
            maybe_duplicate: false,
            last_status: None,
            last_reply: None,
            expires_at: 5 * DAY,
            created_at: 0,
            updated_at: 0,
            thread_key: 5,
            sender: "ada@agents.example".into(),
            size: 6,
            notice_at: None,
            outcome_class: None,
            waits_for: None,
            charged: Vec::new(),
        }
    }

    fn config() -> RelayConfig {
        RelayConfig {
            retry: vec![Duration::from_secs(60), Duration::from_secs(3_600)],
            expire: Duration::from_secs(5 * 86_400),
            ..RelayConfig::default()
        }
    }

    #[test]
    fn a_deferral_waits_and_an_expired_one_is_a_failure() {
        let deferred = || Outcome::deferred("4.7.1", "451 4.7.1 greylisted");
        let (settled, _) = decide(&delivery(1), deferred(), 1_000, &config(), 0.5);
        assert_eq!((settled.state, settled.next_attempt_at), ("deferred", Some(61_000)));
        let (settled, outcome) = decide(&delivery(99), deferred(), 5 * DAY - 1_000, &config(), 0.5);
        assert_eq!((settled.state, settled.status.as_deref()), ("failed", Some("5.4.7")));
        assert!(outcome.text.contains("greylisted") && !outcome.suppresses(), "{outcome:?}");
    }

    /// A remote that took the message and was not heard may get it twice: the second is marked.
    #[test]
    fn silence_after_the_dot_marks_the_next_attempt() {
        let mut outcome = Outcome::deferred("4.4.2", "silent");
        outcome.unheard = true;
        let (settled, _) = decide(&delivery(1), outcome, 0, &config(), 0.5);
        assert!(settled.maybe_duplicate);
    }
}
