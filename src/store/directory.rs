//! Inboxes by address, remembered: RCPT asks for the same few over and over.
//!
//! What is remembered is dropped when an inbox or a policy changes: a change is told after its COMMIT and before
//! anybody hears of it. That is exact where one process has the database; where several share it (PostgreSQL),
//! every question goes to the database. Only what exists is remembered, and the delivery transaction looks again.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;

use super::inbox::{self, Inbox};
use super::{Store, StoreError, Topic};

/// Addresses, of some 500 octets each.
const REMEMBERED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);

/// What was found, and the state of the inboxes it was found in.
struct Entry {
    changes: u64,
    inbox: Inbox,
}

/// Cloning shares it.
#[derive(Clone)]
pub(super) struct Directory(Arc<Mutex<LruCache<String, Entry>>>);

impl Directory {
    pub(super) fn new() -> Directory {
        Directory(Arc::new(Mutex::new(LruCache::new(REMEMBERED))))
    }

    fn recall(&self, address: &str, changes: u64) -> Option<Inbox> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(address).filter(|entry| entry.changes == changes).map(|entry| entry.inbox.clone())
    }

    fn remember(&self, address: String, entry: Entry) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).put(address, entry);
    }
}

impl Store {
    /// The inbox that the first of these addresses has which has one.
    pub async fn inbox_at(&self, addresses: Vec<String>) -> Result<Option<Inbox>, StoreError> {
        let Some(asked) = addresses.first().cloned() else { return Ok(None) };
        // Before the database is read: what changes from here on makes the answer old.
        let changes = self.wakeups.count(Topic::Inboxes);
        if !self.is_shared()
            && let Some(inbox) = self.directory.recall(&asked, changes)
        {
            return Ok(Some(inbox));
        }
        let found = self
            .read(move |tx| {
                Box::pin(async move {
                    for address in &addresses {
                        if let Some(found) = inbox::by_address(tx, address).await? {
                            return Ok::<_, StoreError>(Some(found));
                        }
                    }
                    Ok(None)
                })
            })
            .await?;
        if let Some(inbox) = &found {
            self.directory.remember(asked, Entry { changes, inbox: inbox.clone() });
        }
        Ok(found)
    }
}
