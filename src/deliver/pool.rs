//! Connections that are kept for the next message, and how many one host may have.
//!
//! Invariants: at most `PER_HOST` connections to an address, idle ones included (an idle one is taken before
//! a new one is made); at most `IDLE` idle ones in all; none idle longer than `IDLE_FOR`, none used for more
//! than `MESSAGES` messages. A lease that is dropped without being kept closes its connection.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::deliver::client::Client;

/// Connections to one address: Postfix's default (`default_destination_concurrency_limit`), which receivers expect.
const PER_HOST: usize = 20;
/// Idle connections in all.
const IDLE: usize = 200;
/// Receivers close idle connections after one to five minutes (RFC 5321 §4.5.3.2.7); we leave before.
const IDLE_FOR: Duration = Duration::from_secs(20);
/// Messages over one connection: mail-servers.md §2, KumoMTA's `max_deliveries_per_connection`.
pub(crate) const MESSAGES: u32 = 100;

#[derive(Default)]
pub(crate) struct Pool {
    hosts: Mutex<HashMap<SocketAddr, Host>>,
}

struct Host {
    slots: Arc<Semaphore>,
    idle: Vec<(Client, Instant)>,
}

/// The right to one connection to `address`.
pub(crate) struct Slot {
    pub(crate) address: SocketAddr,
    _permit: OwnedSemaphorePermit,
}

impl Pool {
    /// Waits until another connection to `address` is allowed; with it comes an idle one, if there is one.
    pub(crate) async fn slot(&self, address: SocketAddr) -> Option<(Slot, Option<Client>)> {
        let slots = {
            let mut hosts = self.lock();
            let host = hosts
                .entry(address)
                .or_insert_with(|| Host { slots: Arc::new(Semaphore::new(PER_HOST)), idle: Vec::new() });
            host.slots.clone()
        };
        let permit = slots.acquire_owned().await.ok()?;
        let idle = self.lock().get_mut(&address).and_then(take_fresh);
        Some((Slot { address, _permit: permit }, idle))
    }

    /// Keeps a connection for the next message to its host, where it is still good for one.
    pub(crate) fn keep(&self, slot: Slot, client: Client) {
        if !client.is_reusable(MESSAGES) {
            return farewell(client);
        }
        let mut hosts = self.lock();
        let idle: usize = hosts.values().map(|host| host.idle.len()).sum();
        match hosts.get_mut(&slot.address) {
            Some(host) if idle < IDLE => host.idle.push((client, Instant::now())),
            _ => farewell(client),
        }
        // The slot is given back after the connection stands in the list: whoever gets it finds it there.
    }

    /// Leaves hosts that were idle for long; called every few seconds.
    pub(crate) fn sweep(&self) {
        let mut hosts = self.lock();
        for host in hosts.values_mut() {
            let (fresh, old) =
                std::mem::take(&mut host.idle).into_iter().partition(|(_, since)| is_fresh(*since));
            host.idle = fresh;
            let old: Vec<(Client, Instant)> = old;
            old.into_iter().for_each(|(client, _)| farewell(client));
        }
        hosts.retain(|_, host| !host.idle.is_empty() || Arc::strong_count(&host.slots) > 1);
    }

    /// QUIT everywhere.
    pub(crate) fn close(&self) {
        for (_, host) in self.lock().drain() {
            host.idle.into_iter().for_each(|(client, _)| farewell(client));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Host>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_fresh(since: Instant) -> bool {
    since.elapsed() < IDLE_FOR
}

/// The most recently used one: the others grow old and are swept.
fn take_fresh(host: &mut Host) -> Option<Client> {
    while let Some((client, since)) = host.idle.pop() {
        if is_fresh(since) {
            return Some(client);
        }
        farewell(client);
    }
    None
}

/// QUIT in the background, within its own deadline: nobody waits for good manners.
fn farewell(client: Client) {
    tokio::spawn(client.quit());
}
