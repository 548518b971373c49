//! A message on its way out: read, signed and put into wire form once, whoever of its recipients is first.
//!
//! Signing takes a third of a millisecond of CPU, so it happens on a blocking thread, in one hop with the dot
//! stuffing. What is held in memory is bounded: a letter is opened only when a connection waits for it, all
//! open letters share a budget, and one that nobody is sending just now is closed again.
//!
//! RFC 6376 §3.5 (the signature fields are put on top).

use std::ops::Deref;
use std::sync::{Arc, Weak};

use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use crate::deliver::dkim::Signers;
use crate::deliver::outcome::Outcome;
use crate::deliver::wire::WireMessage;
use crate::floor::Floor;
use crate::ids::InboxKey;

/// Octets of opened letters in all: ten of the largest default size.
const BUDGET: usize = 256 * 1024 * 1024;
/// What one permit of the budget stands for.
const UNIT: usize = 16 * 1024;

/// What every letter needs to be opened.
pub(crate) struct Desk {
    floor: Arc<Floor>,
    signers: Signers,
    budget: Arc<Semaphore>,
    /// As many signatures at once as there are processors: more would only stretch each.
    signing: Semaphore,
}

impl Desk {
    pub(crate) fn new(floor: Arc<Floor>, signers: Signers) -> Desk {
        let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Desk {
            floor,
            signers,
            budget: Arc::new(Semaphore::new(BUDGET / UNIT)),
            signing: Semaphore::new(processors),
        }
    }
}

/// One message, shared by all parcels that carry it.
pub(crate) struct Letter {
    desk: Arc<Desk>,
    inbox: InboxKey,
    message_key: i64,
    /// Who signs: the domain of From.
    from_domain: String,
    opened: Mutex<Weak<Opened>>,
}

/// A letter in memory, for as long as somebody holds it.
pub(crate) struct Opened {
    message: WireMessage,
    _budget: OwnedSemaphorePermit,
}

impl Deref for Opened {
    type Target = WireMessage;

    fn deref(&self) -> &WireMessage {
        &self.message
    }
}

impl Letter {
    pub(crate) fn new(desk: Arc<Desk>, inbox: InboxKey, message_key: i64, from_domain: String) -> Letter {
        Letter { desk, inbox, message_key, from_domain, opened: Mutex::default() }
    }

    /// The message, signed and ready to send; an `Outcome` says why it cannot be.
    pub(crate) async fn open(&self) -> Result<Arc<Opened>, Outcome> {
        // Whoever comes second waits for the first one's signature instead of making another.
        let mut opened = self.opened.lock().await;
        if let Some(open) = opened.upgrade() {
            return Ok(open);
        }
        let open = Arc::new(self.read_and_sign().await?);
        *opened = Arc::downgrade(&open);
        Ok(open)
    }

    async fn read_and_sign(&self) -> Result<Opened, Outcome> {
        let Desk { floor, signers, budget, signing } = &*self.desk;
        let later = |what: String| {
            tracing::error!(
                error = what,
                inbox.key = self.inbox.inbox,
                "a message cannot be read for sending"
            );
            Outcome::deferred("4.3.0", "the message cannot be read just now")
        };
        let raw = floor.bodies.load(&floor.store, self.inbox, self.message_key).await;
        let raw = raw.map_err(|error| later(error.to_string()))?;
        let raw = raw.ok_or_else(|| Outcome::failed("5.3.0", "the message is gone from the store"))?;
        let units = u32::try_from((raw.len() / UNIT + 1).min(BUDGET / UNIT)).unwrap_or(1);
        let closed = |_| later("stopping".to_owned());
        let budget = budget.clone().acquire_many_owned(units).await.map_err(closed)?;
        let _turn = signing.acquire().await.map_err(closed)?;
        let (signers, domain) = (signers.clone(), self.from_domain.clone());
        let work = move || -> Result<WireMessage, String> {
            let fields = signers.sign(&domain, &raw)?;
            WireMessage::new(&[&fields, &raw]).map_err(|error| error.to_string())
        };
        let message = tokio::task::spawn_blocking(work).await.map_err(|error| later(error.to_string()))?;
        match message {
            Ok(message) => Ok(Opened { message, _budget: budget }),
            Err(why) => {
                tracing::error!(why, "a message cannot be sent as it is");
                Err(Outcome::failed("5.6.0", format!("the message cannot be sent as it is: {why}")))
            }
        }
    }
}
