//! A message on its way out: read, signed and put into wire form once, whoever of its recipients is first.
//!
//! Signing takes a third of a millisecond of CPU, so it happens on a blocking thread, in one hop with the dot
//! stuffing. What is held in memory is bounded: a letter is opened only when a connection waits for it, all
//! messages that the queue has in memory share a budget, which is asked before the first octet is read, and a
//! letter that nobody is sending just now is closed again.
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
use crate::store::delivery::Delivery;

/// Octets of messages in memory, in all: ten of the largest default size.
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

    /// Waits until a message of `size` octets may be read into memory, for as long as the answer is kept. Nobody
    /// asks for a second while holding one: two that wait for each other would wait for ever.
    pub(crate) async fn room(&self, size: i64) -> Option<OwnedSemaphorePermit> {
        let units = usize::try_from(size).unwrap_or(0) / UNIT + 1;
        let units = u32::try_from(units.min(BUDGET / UNIT)).unwrap_or(1);
        self.budget.clone().acquire_many_owned(units).await.ok()
    }
}

/// One message, shared by all parcels that carry it.
pub(crate) struct Letter {
    desk: Arc<Desk>,
    inbox: InboxKey,
    message_key: i64,
    /// Who signs: the domain of From.
    from_domain: String,
    /// Octets, as stored.
    size: i64,
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
    /// The letter of this delivery's message.
    pub(crate) fn new(desk: Arc<Desk>, delivery: &Delivery) -> Letter {
        let from_domain = delivery.sender.rsplit_once('@').map_or("", |(_, domain)| domain).to_owned();
        let Delivery { inbox, message_key, size, .. } = *delivery;
        Letter { desk, inbox, message_key, from_domain, size, opened: Mutex::default() }
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
        let Desk { floor, signers, signing, .. } = &*self.desk;
        let later = |what: String| {
            tracing::error!(
                error = what,
                inbox.key = self.inbox.inbox,
                "a message cannot be read for sending"
            );
            Outcome::deferred("4.3.0", "the message cannot be read just now")
        };
        let stopping = || later("stopping".to_owned());
        let budget = self.desk.room(self.size).await.ok_or_else(stopping)?;
        let raw = floor.bodies.load(&floor.store, self.inbox, self.message_key).await;
        let raw = raw.map_err(|error| later(error.to_string()))?;
        let raw = raw.ok_or_else(|| Outcome::failed("5.3.0", "the message is gone from the store"))?;
        let _turn = signing.acquire().await.map_err(|_| stopping())?;
        // What was planned or deferred may find its domain lost, or another pod's: nobody's keys sign for that.
        let domain = match floor.domains.find(&self.from_domain).filter(|ours| ours.serves(self.inbox.pod)) {
            Some(ours) => ours.name.clone(),
            None => {
                let text = format!("{} is not a verified domain of its sender now", self.from_domain);
                return Err(Outcome::deferred("4.7.0", text));
            }
        };
        // A domain that was verified a moment ago may have keys that were not read yet: never unsigned for that.
        if !signers.can_sign(&domain) {
            signers.refresh().await.map_err(|error| later(error.to_string()))?;
        }
        let signers = signers.clone();
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
