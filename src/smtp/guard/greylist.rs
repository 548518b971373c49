//! Greylisting, where the operator wants it: a network that is new here hears 451 for each new pair of sender and
//! recipient, and is known once it came again for one, as mail servers do and much spam does not.
//!
//! - One look into the database for a network that is not in the small memory of known ones, one row for an
//!   attempt; known networks cost nothing. At most `NEW_A_MINUTE` rows a minute, and `store::greylist` keeps the
//!   table bounded.
//! - Trouble with the database lets mail in: what follows needs it more.
//!
//! RFC 6647.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use lru::LruCache;
use sha2::{Digest, Sha256};

use super::rates::LEVELS;
use crate::address::Address;
use crate::clock::{Clock, HOUR, MINUTE, Millis};
use crate::envelope::ReversePath;
use crate::store::greylist::{self, Seen};
use crate::store::{Store, StoreError};

/// Networks whose standing is remembered, and for how long.
const KNOWN: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);
const KNOWN_FOR: Millis = HOUR;
/// Attempts written down in a minute; more are deferred all the same, and written down when they come again.
const NEW_A_MINUTE: u32 = 5_000;
/// Octets of a triple's hash: enough that nobody meets another's by chance.
const HASH: usize = 16;

pub(super) struct Greylist {
    store: Store,
    clock: Clock,
    delay: Millis,
    memory: Mutex<Memory>,
}

struct Memory {
    /// Until when.
    known: LruCache<std::net::IpAddr, Millis>,
    minute: Millis,
    written: u32,
}

impl Greylist {
    pub(super) fn new(store: Store, clock: Clock, delay: std::time::Duration) -> Greylist {
        let delay = Millis::try_from(delay.as_millis()).unwrap_or(Millis::MAX);
        let memory = Memory { known: LruCache::new(KNOWN), minute: 0, written: 0 };
        Greylist { store, clock, delay, memory: Mutex::new(memory) }
    }

    /// Whether mail from here may come in; if not, it may a little later.
    pub(super) async fn admits(&self, ip: std::net::IpAddr, from: &ReversePath, to: &Address) -> bool {
        let network = LEVELS.get(1).map_or(ip, |level| level.of(ip));
        let now = self.clock.now();
        if self.memory(|memory| memory.known.get(&network).is_some_and(|until| now < *until)) {
            return true;
        }
        let (name, triple, delay) = (network.to_string(), triple(from, to), self.delay);
        let (key, hash) = (name.clone(), triple.clone());
        let seen: Result<Seen, StoreError> = self
            .store
            .read(move |tx| Box::pin(async move { greylist::seen(tx, &key, &hash, delay).await }))
            .await;
        let admitted = match seen {
            Ok(Seen::Known { fresh: true }) => Ok(true),
            Ok(Seen::Known { fresh: false } | Seen::CameAgain) => self.make_known(name).await.map(|()| true),
            Ok(Seen::TooSoon) => Ok(false),
            Ok(Seen::Never) if self.may_write(now) => self.write_down(name, triple).await.map(|()| false),
            Ok(Seen::Never) => Ok(false),
            Err(error) => Err(error),
        };
        match admitted {
            Ok(true) => {
                self.memory(|memory| memory.known.put(network, now + KNOWN_FOR));
                true
            }
            Ok(false) => false,
            Err(error) => {
                tracing::warn!(%error, "the greylist cannot be asked: mail is let in");
                true
            }
        }
    }

    async fn make_known(&self, network: String) -> Result<(), StoreError> {
        self.store
            .write(move |tx| {
                let network = network.clone();
                Box::pin(async move { greylist::make_known(tx, &network).await })
            })
            .await
    }

    async fn write_down(&self, network: String, triple: String) -> Result<(), StoreError> {
        self.store
            .write(move |tx| {
                let (network, triple) = (network.clone(), triple.clone());
                Box::pin(async move { greylist::write_down(tx, &network, &triple).await })
            })
            .await
    }

    fn may_write(&self, now: Millis) -> bool {
        self.memory(|memory| {
            if now / MINUTE != memory.minute {
                (memory.minute, memory.written) = (now / MINUTE, 0);
            }
            memory.written += 1;
            memory.written <= NEW_A_MINUTE
        })
    }

    /// Nothing panics while it is held.
    fn memory<T>(&self, with: impl FnOnce(&mut Memory) -> T) -> T {
        with(&mut self.memory.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Sender and recipient as a hash: who writes to whom is nobody's business before there is a message.
fn triple(from: &ReversePath, to: &Address) -> String {
    let from = from.as_ref().map(Address::key).unwrap_or_default();
    let hash = Sha256::digest(format!("{from}\0{}", to.key()));
    hash.iter().take(HASH).map(|octet| format!("{octet:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{DAY, SECOND};
    use crate::floor::testing::TestFloor;

    #[tokio::test]
    async fn who_comes_again_is_known() {
        let test = TestFloor::new().await;
        let open = || {
            let delay = std::time::Duration::from_secs(60);
            Greylist::new(test.floor.store.clone(), test.floor.clock.clone(), delay)
        };
        let (ann, ada): (ReversePath, Address) =
            (Some("ann@friend.example".parse().unwrap()), "ada@agents.example".parse().unwrap());
        let bob: Address = "bob@agents.example".parse().unwrap();
        let (here, neighbour) = ("192.0.2.1".parse().unwrap(), "192.0.2.77".parse().unwrap());
        let other = "203.0.113.1".parse().unwrap();
        let list = open();
        assert!(!list.admits(here, &ann, &ada).await);
        test.hand.advance(30 * SECOND);
        assert!(!list.admits(here, &ann, &ada).await, "too soon");
        test.hand.advance(30 * SECOND);
        assert!(!list.admits(here, &ann, &bob).await, "a first attempt as well");
        assert!(!list.admits(other, &ann, &ada).await, "another network");
        // Large senders retry from the next machine.
        assert!(list.admits(neighbour, &ann, &ada).await);
        assert!(list.admits(here, &None, &bob).await, "the network is known");
        // After a restart too, and for as long as it keeps coming.
        let list = open();
        for _ in 0..4 {
            test.hand.advance(30 * DAY);
            assert!(list.admits(here, &ann, &bob).await);
        }
        test.hand.advance(37 * DAY);
        assert!(!list.admits(here, &ann, &ada).await, "forgotten");
        test.hand.advance(3 * DAY);
        assert!(!list.admits(here, &ann, &ada).await, "an attempt days ago is a first attempt");
    }

    #[tokio::test]
    async fn the_table_is_swept_and_bounded() {
        let test = TestFloor::new().await;
        let store = &test.floor.store;
        let write = async |n: i64| {
            let written: Result<(), StoreError> = store
                .write(move |tx| {
                    Box::pin(async move { greylist::write_down(tx, "192.0.2.0", &format!("{n:032x}")).await })
                })
                .await;
            written.unwrap();
            test.hand.advance(1);
        };
        let sweep = async |room: i64| {
            let swept: Result<u64, StoreError> =
                store.write(move |tx| Box::pin(async move { greylist::forget(tx, room, 100).await })).await;
            swept.unwrap()
        };
        for n in 0..8 {
            write(n).await;
        }
        assert_eq!(sweep(5).await, 3, "the oldest go");
        assert_eq!(sweep(5).await, 0);
        test.hand.advance(3 * DAY);
        assert_eq!(sweep(5).await, 5);
    }
}
