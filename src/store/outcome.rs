//! What became of a message after a remote had its word: bounces, complaints and unsubscriptions, with the events
//! and the suppressions that follow from them.
//!
//! Every function writes in the transaction of whatever found it out (an attempt's result, a report that is filed,
//! a click), so that a crash leaves both or neither. A late bounce changes a delivery once; hearing of it again
//! changes nothing.

use super::delivery::{self, Delivery, Route};
use super::event::{self, NewEvent};
use super::rate::{self, Ended};
use super::{StoreError, Tx, suppression};
use crate::address::Address;
use crate::ids::InboxKey;

/// What a report says of a recipient whose message a remote had taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Returned {
    /// `Address::key()` of the final and of the original recipient, where they are given.
    pub recipients: Vec<String>,
    /// Enhanced status code.
    pub status: String,
    /// The remote's words, printable.
    pub text: String,
    pub what: Told,
    /// `hard`, `mailbox_full`, `policy`, `content`, `expired` or `soft`; of a complaint, its `Feedback-Type`.
    pub class: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It was not delivered after all.
    Failed,
    /// And the address itself is no good, so it must not be written to again.
    DeadAddress,
    /// It was delivered, and the recipient wants no more of it.
    Complained,
    /// It is late, and goes on being tried.
    Late,
    Arrived,
}

/// What names the message that a report is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// The return path that we made for one domain's recipients: nobody who did not get the message there can know it.
    /// One of their deliveries.
    Token { delivery_key: i64 },
    /// Its Message-ID, which everybody repeats who answers: enough to be told, not to act.
    MessageId,
}

impl Proof {
    fn text(self) -> &'static str {
        match self {
            Proof::Token { .. } => "return_path",
            Proof::MessageId => "message_id",
        }
    }
}

/// What a report came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    News,
    /// It was known, or asks for nothing.
    Known,
    /// It names no recipient of that message.
    Nobody,
}

/// A remote that took a message said what became of it: the delivery failed after all, or its recipient complains.
/// Only a recipient of that message can be named, and each counts once.
pub(crate) async fn returned(
    tx: &mut Tx,
    inbox: InboxKey,
    message_key: i64,
    report: &Returned,
    proof: Proof,
) -> Result<Heard, StoreError> {
    match report.what {
        Told::Late => return Ok(Heard::News),
        Told::Arrived => return Ok(Heard::Known),
        Told::Failed | Told::DeadAddress | Told::Complained => {}
    }
    let all = delivery::of_message(tx, inbox, message_key).await?;
    let named = |row: &&Delivery| key(row).is_some_and(|key| report.recipients.contains(&key));
    let domain = match proof {
        Proof::Token { delivery_key } => {
            let row = all.iter().find(|row| row.delivery_key == delivery_key);
            row.map(|row| row.domain.as_str())
        }
        Proof::MessageId => None,
    };
    let whose = |row: &&Delivery| proof == Proof::MessageId || domain == Some(row.domain.as_str());
    let told: Vec<&Delivery> = all.iter().filter(whose).collect();
    // A forwarder reports the address it forwarded to; with one recipient there is no doubt whose it was.
    let alone = told.len() == 1;
    let forwarded = alone && !all.iter().any(|row| named(&row));
    let found = told.iter().find(|row| named(row)).or(told.first().filter(|_| forwarded));
    let Some(&row) = found.filter(|row| row.route == Route::Relay) else { return Ok(Heard::Nobody) };
    if report.what == Told::Complained {
        return if row.state == "delivered" {
            complaint(tx, row, report, proof, alone).await
        } else {
            Ok(Heard::Nobody)
        };
    }
    if row.state == "failed" {
        return Ok(Heard::Known);
    }
    // Who reports a failure took the message: its report may be faster than our own note of its 250, or come where the
    // 250 was not heard. A row that was put off has not been taken, and waits for its own answer. Where the return path
    // is shared, one recipient could end another's before it was taken: the report is asked to come again.
    let taken = match row.state.as_str() {
        "delivered" => true,
        "attempting" if !alone && proof != Proof::MessageId => {
            return Err(StoreError::Conflict("the delivery that this reports on is under way".to_owned()));
        }
        "attempting" => true,
        "deferred" | "due" => row.maybe_duplicate && alone,
        _ => false,
    };
    if !taken || proof == Proof::MessageId {
        return Ok(Heard::Nobody);
    }
    let changed = tx
        .execute(
            "UPDATE delivery SET state = 'failed', last_status = $4, last_reply = $5, updated_at = $6, node = NULL,
                    attempting_since = NULL
             WHERE pod_key = $1 AND inbox_key = $2 AND delivery_key = $3 AND state = $7",
            &[
                inbox.pod.into(),
                inbox.inbox.into(),
                row.delivery_key.into(),
                (&report.status).into(),
                (&report.text).into(),
                tx.now().into(),
                (&row.state).into(),
            ],
        )
        .await?;
    if changed == 0 {
        return Err(StoreError::Conflict("the delivery has just changed".to_owned()));
    }
    bounced(tx, row, &report.class, &report.status, &report.text).await?;
    let ended = if row.state == "delivered" { Ended::BouncedLate } else { Ended::Reported };
    rate::note_outcome(tx, row, ended).await?;
    // Not for good on the word of somebody else at the same domain, who has the same return path.
    if report.what == Told::DeadAddress && alone {
        suppress(tx, row, "bounce", Some(&report.text)).await?;
    }
    Ok(Heard::News)
}

async fn complaint(
    tx: &mut Tx,
    row: &Delivery,
    report: &Returned,
    proof: Proof,
    alone: bool,
) -> Result<Heard, StoreError> {
    let mut news = mark(tx, row, "complaint").await?;
    if news {
        complained(tx, row, &report.class, &report.text, proof).await?;
    }
    // Whoever got an answer to the message knows its Message-ID, and could silence the others that it went to; nor
    // does such a word, come first, take away from one that is proved. A return path that several recipients share proves
    // who of them it was as little.
    if proof != Proof::MessageId && alone {
        // Somebody who complains of every message counts once, or he alone would stop everybody's mail.
        if suppress(tx, row, "complaint", Some(&report.text)).await? {
            rate::note_outcome(tx, row, Ended::Complained).await?;
            news = true;
        }
    }
    Ok(if news { Heard::News } else { Heard::Known })
}

/// A recipient did not get the message and will not: the row says of which kind, the log tells it.
pub(crate) async fn bounced(
    tx: &mut Tx,
    row: &Delivery,
    class: &str,
    status: &str,
    reply: &str,
) -> Result<(), StoreError> {
    mark(tx, row, class).await?;
    let data = serde_json::json!({
        "delivery_id": row.id(),
        "recipient": row.recipient,
        "route": row.route.text(),
        "attempts": row.attempts,
        "class": class,
        "status": status,
        "reply": reply,
        "maybe_duplicate": row.maybe_duplicate,
    });
    tell(tx, row, "message.bounced", &data).await
}

/// A recipient got it and wants no more.
pub(crate) async fn complained(
    tx: &mut Tx,
    row: &Delivery,
    feedback: &str,
    words: &str,
    proof: Proof,
) -> Result<(), StoreError> {
    let data = serde_json::json!({
        "delivery_id": row.id(),
        "recipient": row.recipient,
        "feedback_type": feedback,
        "reply": words,
        "proof": proof.text(),
    });
    tell(tx, row, "message.complained", &data).await
}

/// The recipient of a message is not written to again by this pod; `false` where that was so before.
pub(crate) async fn suppress(
    tx: &mut Tx,
    row: &Delivery,
    reason: &str,
    detail: Option<&str>,
) -> Result<bool, StoreError> {
    let Some(address) = key(row) else { return Ok(false) };
    let source = row.id();
    let added = suppression::add(tx, row.inbox.pod, &address, reason, &source, detail).await?;
    if added {
        let data = serde_json::json!({ "address": address, "reason": reason, "source": source });
        tell(tx, row, "suppression.added", &data).await?;
    }
    Ok(added)
}

/// Everybody whom a message went to wants no more of it (RFC 8058); whether anything is new.
pub(crate) async fn unsubscribed(
    tx: &mut Tx,
    inbox: InboxKey,
    message_key: i64,
    way: &str,
) -> Result<bool, StoreError> {
    let mut news = false;
    for row in delivery::of_message(tx, inbox, message_key).await? {
        news |= suppress(tx, &row, "unsubscribe", Some(way)).await?;
    }
    Ok(news)
}

/// Writes the class of an outcome, once; `false` where it stands already.
async fn mark(tx: &mut Tx, row: &Delivery, class: &str) -> Result<bool, StoreError> {
    let changed = tx
        .execute(
            "UPDATE delivery SET outcome_class = $4
             WHERE pod_key = $1 AND inbox_key = $2 AND delivery_key = $3
               AND (outcome_class IS NULL OR outcome_class <> $4)",
            &[row.inbox.pod.into(), row.inbox.inbox.into(), row.delivery_key.into(), class.into()],
        )
        .await?;
    Ok(changed == 1)
}

async fn tell(
    tx: &mut Tx,
    row: &Delivery,
    event_type: &str,
    data: &serde_json::Value,
) -> Result<(), StoreError> {
    let event = NewEvent {
        event_type,
        thread_key: Some(row.thread_key),
        message_key: Some(row.message_key),
        data: data.to_string(),
        ..NewEvent::default()
    };
    event::append(tx, row.inbox, event).await
}

fn key(row: &Delivery) -> Option<String> {
    row.recipient.parse::<Address>().ok().map(|address| address.key())
}
