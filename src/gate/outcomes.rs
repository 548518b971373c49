//! What remotes answered, noted where it becomes known: by the queue's ledger, and where bounces and complaints
//! are read. Weighed by `watch`.

use std::collections::BTreeMap;

use crate::store::delivery::{Delivery, Route};
use crate::store::rate::{self, Count};
use crate::store::{StoreError, Tx};

/// How a delivery ended, as far as the sender's name is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Delivered,
    /// The remote will never take it for this recipient, at the first asking or by a report later.
    Bounced,
    /// The recipient calls it spam.
    Complained,
}

/// One delivery's end.
pub async fn note_outcome(tx: &mut Tx, delivery: &Delivery, ended: Ended) -> Result<(), StoreError> {
    note_outcomes(tx, &[(delivery, ended)]).await
}

/// Many ends in one transaction: one statement for each inbox and each domain, in one order, so that two nodes
/// that write at once wait for each other instead of standing in each other's way.
pub async fn note_outcomes(tx: &mut Tx, ends: &[(&Delivery, Ended)]) -> Result<(), StoreError> {
    let mut inboxes = BTreeMap::new();
    let mut domains = BTreeMap::new();
    // Mail between our own agents says nothing of our name elsewhere, and would only dilute the rate.
    for (delivery, ended) in ends.iter().filter(|(delivery, _)| delivery.route != Route::Local) {
        let count = |scope: String| Count {
            scope,
            inbox: delivery.inbox,
            thread_key: delivery.thread_key,
            delivered: 0,
            bounced: 0,
            complained: 0,
        };
        let inbox =
            inboxes.entry(delivery.inbox).or_insert_with(|| count(format!("inbox:{}", delivery.inbox.inbox)));
        add(inbox, delivery, *ended);
        let domain = delivery.sender.rsplit_once('@').map_or("", |(_, domain)| domain);
        let domain = domains.entry(domain).or_insert_with(|| count(format!("domain:{domain}")));
        add(domain, delivery, *ended);
    }
    for count in inboxes.values().chain(domains.values()) {
        rate::add(tx, count).await?;
    }
    Ok(())
}

fn add(count: &mut Count, delivery: &Delivery, ended: Ended) {
    match ended {
        Ended::Delivered => count.delivered += 1,
        Ended::Bounced => count.bounced += 1,
        Ended::Complained => count.complained += 1,
    }
    if ended != Ended::Delivered {
        (count.inbox, count.thread_key) = (delivery.inbox, delivery.thread_key);
    }
}
