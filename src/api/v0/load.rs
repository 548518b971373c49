//! Rows become views: the names that rows hold as numbers are looked up together, not one by one.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::view::{DeliveryView, MessageView, Names, ThreadNames, ThreadView};
use crate::config::limits;
use crate::floor::Floor;
use crate::ids::InboxKey;
use crate::store::message::{Direction, Message};
use crate::store::thread::Thread;
use crate::store::{StoreError, Tx, delivery, inbox, message, thread};

/// Messages of one inbox with the names that they need.
pub(crate) async fn named(
    tx: &mut Tx,
    inbox_id: &str,
    messages: Vec<Message>,
) -> Result<Vec<(Message, Names)>, StoreError> {
    let Some(inbox) = messages.first().map(|m| m.inbox) else { return Ok(Vec::new()) };
    let mut threads: Vec<i64> = messages.iter().map(|m| m.thread_key).collect();
    threads.sort_unstable();
    threads.dedup();
    let threads = thread::ids(tx, inbox, &threads).await?;
    let firsts: Vec<i64> = messages.iter().filter_map(|m| m.duplicate_of).collect();
    let firsts = message::public_ids(tx, inbox, &firsts).await?;
    let name = |message: Message| {
        let names = Names {
            inbox_id: inbox_id.to_owned(),
            thread_id: threads.get(&message.thread_key).cloned().unwrap_or_default(),
            duplicate_of: message.duplicate_of.and_then(|key| firsts.get(&key).cloned()),
        };
        (message, names)
    };
    Ok(messages.into_iter().map(name).collect())
}

/// Messages as a list shows them.
pub(crate) async fn items(
    tx: &mut Tx,
    inbox_id: &str,
    messages: Vec<Message>,
) -> Result<Vec<MessageView>, StoreError> {
    let named = named(tx, inbox_id, messages).await?;
    Ok(named.into_iter().map(|(message, names)| MessageView::item(message, names)).collect())
}

/// Messages with their texts, as far as `limits::MAX_TEXTS_IN_ANSWER` goes: from the newest back, and the newest
/// always. Their octets are read one after the other: a page holds one raw message at a time.
pub(crate) async fn whole(
    floor: &Arc<Floor>,
    named: Vec<(Message, Names)>,
) -> Result<Vec<MessageView>, StoreError> {
    let mut views = Vec::with_capacity(named.len());
    let mut octets = 0i64;
    for (message, names) in named.into_iter().rev() {
        octets = octets.saturating_add(message.size);
        if octets > limits::MAX_TEXTS_IN_ANSWER && !views.is_empty() {
            views.push(MessageView { texts_omitted: true, ..MessageView::item(message, names) });
            continue;
        }
        let (inbox, key) = (message.inbox, message.message_key);
        let raw = floor.bodies.load(&floor.store, inbox, key).await?.unwrap_or_default();
        views.push(read(message, names, raw).await?);
    }
    views.reverse();
    Ok(views)
}

/// Decoding a large message takes milliseconds, which the other connections should not wait for.
async fn read(message: Message, names: Names, raw: Vec<u8>) -> Result<MessageView, StoreError> {
    if raw.len() < 256 * 1024 {
        return Ok(MessageView::whole(message, names, &raw));
    }
    let work = tokio::task::spawn_blocking(move || MessageView::whole(message, names, &raw));
    work.await.map_err(|e| StoreError::Damaged(format!("decoding a message: {e}")))
}

/// One message with its texts and, where it is ours, what became of it.
pub(crate) async fn single(
    floor: &Arc<Floor>,
    inbox_id: &str,
    found: Message,
) -> Result<Option<MessageView>, StoreError> {
    let inbox_id = inbox_id.to_owned();
    let (named, deliveries) = floor
        .store
        .read(move |tx| {
            Box::pin(async move {
                let deliveries = match found.direction {
                    Direction::Out => delivery::of_message(tx, found.inbox, found.message_key).await?,
                    Direction::In => Vec::new(),
                };
                Ok::<_, StoreError>((named(tx, &inbox_id, vec![found]).await?, deliveries))
            })
        })
        .await?;
    let mut view = whole(floor, named).await?.pop();
    if let Some(view) = &mut view {
        view.deliveries = deliveries.into_iter().map(DeliveryView::from).collect();
    }
    Ok(view)
}

/// Threads, of any inboxes, as a list shows them, in their order.
pub(crate) async fn threads(tx: &mut Tx, threads: Vec<Thread>) -> Result<Vec<ThreadView>, StoreError> {
    let mut by_inbox: BTreeMap<InboxKey, (Vec<i64>, Vec<i64>)> = BTreeMap::new();
    for thread in &threads {
        let (messages, claims) = by_inbox.entry(thread.inbox).or_default();
        messages.push(thread.last_message);
        claims.extend(thread.claims_thread);
    }
    let inboxes: Vec<InboxKey> = by_inbox.keys().copied().collect();
    let addresses = inbox::addresses(tx, &inboxes).await?;
    let mut names = BTreeMap::new();
    for (inbox, (messages, claims)) in by_inbox {
        let messages = message::public_ids(tx, inbox, &messages).await?;
        names.insert(inbox, (messages, thread::ids(tx, inbox, &claims).await?));
    }
    let view = |thread: Thread| {
        let known = names.get(&thread.inbox);
        let last = known.and_then(|(messages, _)| messages.get(&thread.last_message).cloned());
        let claims = thread.claims_thread.and_then(|key| known.and_then(|(_, ids)| ids.get(&key).cloned()));
        let names = ThreadNames {
            inbox_id: addresses.get(&thread.inbox).cloned().unwrap_or_default(),
            last_message_id: last.unwrap_or_default(),
            claims_thread_id: claims,
        };
        ThreadView::new(thread, names)
    };
    Ok(threads.into_iter().map(view).collect())
}
