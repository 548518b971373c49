//! The one ordered log, and those who wait for it.
//!
//! Whatever happens is appended in the transaction that makes it so (`store::event`). Readers come with a
//! cursor and get what follows, in order, resumable: a cursor never skips, since on PostgreSQL rows are
//! numbered by one stamper after they committed. Waiting is a look, a hint, and another look; a lost hint costs
//! two seconds, never an event.
//!
//! DESIGN.md §5 (events), §6 (events, waiting for a message).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Millis;
use crate::floor::Floor;
use crate::ids::InboxKey;
use crate::principal::Scope;
use crate::screen::kind::Kind;
use crate::store::event::{self, Event};
use crate::store::inbox;
use crate::store::message::{self, Message};
use crate::store::thread::{self, Thread};
use crate::store::work_item::{self, WorkItem};
use crate::store::{StoreError, Topic, Tx};

/// How often a waiter looks by itself.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Messages that one look at an inbox considers.
const MESSAGES_A_LOOK: i64 = 200;

#[derive(Debug, Clone, thiserror::Error)]
pub enum EventsError {
    /// The cursor is older than what is kept: the reader has to start over.
    #[error("events before cursor {oldest} are no longer kept")]
    Gone { oldest: i64 },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Which events.
#[derive(Debug, Clone)]
pub struct EventFilter {
    /// Of one inbox, of a pod, or of all of the organization.
    pub within: Scope,
    /// Of these types; empty for every one.
    pub types: Vec<String>,
}

/// An event with the rows that it names, as they are now.
#[derive(Debug, Clone)]
pub struct Logged {
    pub event: Event,
    /// The inbox's address; `None` once it is deleted.
    pub inbox_id: Option<String>,
    pub message: Option<Message>,
    pub thread: Option<Thread>,
    pub item: Option<WorkItem>,
}

#[derive(Debug, Clone)]
pub struct EventPage {
    pub events: Vec<Logged>,
    /// Where the next page begins; the cursor asked with where there was nothing.
    pub next_cursor: i64,
}

/// Events after `after` (`None`: from the oldest kept), waiting for the first if there is none.
pub async fn page(
    floor: &Arc<Floor>,
    filter: EventFilter,
    after: Option<i64>,
    limit: i64,
    wait: Duration,
) -> Result<EventPage, EventsError> {
    let deadline = Instant::now() + wait;
    let mut told = floor.store.wakeups().subscribe(Topic::Events);
    let mut after = after;
    loop {
        told.borrow_and_update();
        let filter = filter.clone();
        let page: EventPage =
            floor.store.read(move |tx| Box::pin(page_now(tx, filter, after, limit))).await?;
        if !page.events.is_empty() || Instant::now() >= deadline {
            return Ok(page);
        }
        after = Some(page.next_cursor);
        let next_look = (Instant::now() + LOOK_AGAIN).min(deadline);
        let _woken = tokio::time::timeout_at(next_look, told.changed()).await;
    }
}

async fn page_now(
    tx: &mut Tx,
    filter: EventFilter,
    after: Option<i64>,
    limit: i64,
) -> Result<EventPage, EventsError> {
    // Read before the events, so that none between the two is passed over.
    let (oldest, newest) = event::bounds(tx).await?.unwrap_or((1, 0));
    let after = after.unwrap_or(oldest - 1);
    if after < oldest - 1 {
        return Err(EventsError::Gone { oldest });
    }
    let found = event::after(tx, filter.within, after, &filter.types, limit).await?;
    // A page that is not full has looked at everything there was: the next look begins behind it.
    let seen = if (found.len() as i64) < limit { newest } else { 0 };
    let next_cursor = found.last().map_or(after, |e| e.cursor).max(seen);
    let mut events = Vec::with_capacity(found.len());
    for event in found {
        events.push(resolve(tx, event).await?);
    }
    Ok(EventPage { events, next_cursor })
}

async fn resolve(tx: &mut Tx, event: Event) -> Result<Logged, StoreError> {
    let key = event.inbox;
    let inbox_id = inbox::by_key(tx, key).await?.map(|i| i.address);
    let message = match event.message_key {
        Some(message_key) => message::by_key(tx, key, message_key).await?,
        None => None,
    };
    let thread = match event.thread_key {
        Some(thread_key) => thread::by_key(tx, key, thread_key).await?,
        None => None,
    };
    let item = match event.item_key {
        Some(item_key) => work_item::by_key(tx, key, item_key).await?,
        None => None,
    };
    Ok(Logged { event, inbox_id, message, thread, item })
}

/// Which message somebody waits for.
#[derive(Debug, Clone, Default)]
pub struct MessageFilter {
    /// An exact address, or a domain.
    pub from: Option<String>,
    pub subject_contains: Option<String>,
    /// One of them; empty for every kind.
    pub kinds: Vec<Kind>,
    pub has_code: Option<bool>,
    /// Only from a verified sender.
    pub verified: Option<bool>,
}

impl MessageFilter {
    fn matches(&self, message: &Message) -> bool {
        let from = message.from_address.as_deref().unwrap_or_default();
        let from_fits = self.from.as_ref().is_none_or(|wanted| {
            let wanted = wanted.to_lowercase();
            let domain = from.rsplit_once('@').map_or("", |(_, domain)| domain);
            from == wanted || domain == wanted
        });
        let subject = message.subject.as_deref().unwrap_or_default().to_lowercase();
        let subject_fits =
            self.subject_contains.as_ref().is_none_or(|part| subject.contains(&part.to_lowercase()));
        let verified_fits = self.verified.is_none_or(|wanted| message.verified_sender.is_some() == wanted);
        let kind_fits = self.kinds.is_empty() || message.kind.is_some_and(|k| self.kinds.contains(&k));
        let code_fits = self.has_code.is_none_or(|wanted| wanted != message.codes.is_empty());
        let shown = message.held.is_none() && !message.labels.iter().any(|l| l == "spam" || l == "blocked");
        from_fits
            && subject_fits
            && verified_fits
            && kind_fits
            && code_fits
            && shown
            && message.duplicate_of.is_none()
    }
}

/// The newest message that fits and arrived since `since`, or the first that comes; `None` when the wait ends.
pub async fn wait_for_message(
    floor: &Arc<Floor>,
    inbox: InboxKey,
    filter: MessageFilter,
    since: Millis,
    wait: Duration,
) -> Result<Option<Message>, StoreError> {
    let deadline = Instant::now() + wait;
    let mut told = floor.store.wakeups().subscribe(Topic::Events);
    loop {
        told.borrow_and_update();
        let look =
            floor.store.read(move |tx| Box::pin(message::received_since(tx, inbox, since, MESSAGES_A_LOOK)));
        let found: Vec<Message> = look.await?;
        if let Some(message) = found.into_iter().find(|m| filter.matches(m)) {
            return Ok(Some(message));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        let next_look = (Instant::now() + LOOK_AGAIN).min(deadline);
        let _woken = tokio::time::timeout_at(next_look, told.changed()).await;
    }
}

/// Numbers what has committed, on PostgreSQL; on SQLite there is nothing to do. Runs until the server stops.
pub async fn stamp(floor: Arc<Floor>, shutdown: CancellationToken) {
    if !floor.store.is_shared() {
        return;
    }
    let mut told = floor.store.wakeups().subscribe(Topic::Events);
    loop {
        told.borrow_and_update();
        let pause = match stamp_once(&floor).await {
            Ok(true) => continue,
            Ok(false) => Duration::from_millis(500),
            Err(e) => {
                tracing::warn!(error = %e, "events could not be numbered; readers wait");
                Duration::from_secs(2)
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = tokio::time::timeout(pause, told.changed()) => {}
        }
    }
}

/// Whether there may be more to number.
async fn stamp_once(floor: &Arc<Floor>) -> Result<bool, StoreError> {
    if !floor.store.read(|tx| Box::pin(event::any_unstamped(tx))).await? {
        return Ok(false);
    }
    floor.store.write(|tx| Box::pin(event::stamp(tx))).await.map(|stamped| stamped > 0)
}
