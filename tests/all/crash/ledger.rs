//! What the workers wrote down, laid side by side.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

#[derive(Default)]
struct Item {
    /// Fence → (worker, when the claim was answered).
    claims: HashMap<i64, (usize, u64)>,
    /// Successful actions: fence, when they began, what they were.
    actions: Vec<(i64, u64, String)>,
}

/// No item was held by two: each fence was given once, and whoever acted with success acted before anybody else was
/// given a higher one; nothing that was completed was given out again. Gives the Message-IDs of successful replies.
pub fn compare(ledgers: &[Vec<Value>]) -> HashSet<String> {
    let mut items: HashMap<String, Item> = HashMap::new();
    let mut replied = HashSet::new();
    for (worker, ledger) in ledgers.iter().enumerate() {
        for line in ledger {
            let item = items.entry(line["item"].as_str().expect("item").to_owned()).or_default();
            let fence = line["fence"].as_i64().expect("fence");
            if let Some(at) = line["claimed"].as_u64() {
                let before = item.claims.insert(fence, (worker, at));
                assert!(
                    before.is_none(),
                    "fence {fence} was given to workers {before:?} and {worker}: {line}"
                );
            } else if line["status"].as_u64().is_some_and(|status| status < 300) {
                let did = line["did"].as_str().expect("did").to_owned();
                item.actions.push((fence, line["begun"].as_u64().expect("begun"), did));
                replied.extend(line["message_id"].as_str().map(str::to_owned));
            }
        }
    }
    assert!(!items.is_empty(), "the workers did nothing");
    for (id, item) in &items {
        for (fence, begun, did) in &item.actions {
            for (other, (worker, at)) in &item.claims {
                let taken_over = other > fence && (at < begun || did.ends_with("/complete"));
                assert!(
                    !taken_over,
                    "{id}: {did} with fence {fence} though worker {worker} held it with {other}"
                );
            }
        }
    }
    replied
}
