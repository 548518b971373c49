//! Connections that are kept for the next message.
//!
//! Invariants: at most `IDLE` idle ones in all; none idle longer than `IDLE_FOR`, none used for more messages
//! than its site allows; before a new one is made to a site, an idle one of that site is closed where there is
//! one (`make_room`), so that idle ones and those in use together stay within the limit that `site` keeps.
//! A connection serves only mail that would have dialled it the same way (`Door`).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::deliver::client::Client;

/// Idle connections in all.
const IDLE: usize = 200;
/// Receivers close idle connections after one to five minutes (RFC 5321 §4.5.3.2.7); we leave before.
const IDLE_FOR: Duration = Duration::from_secs(20);

/// What a connection leads to, and how: mail that leaves from another address or under another name has its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Door {
    pub(crate) address: SocketAddr,
    /// The name that its certificate was, or would have been, checked against.
    pub(crate) host: String,
    pub(crate) from: Option<IpAddr>,
    pub(crate) hello: String,
    pub(crate) role: Role,
}

/// What the host is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    /// An MX host, which each message has its own needs of.
    Mx,
    /// The operator's; it has our password, where there is one.
    Smarthost,
    /// The same, and its certificate is good whether or not there is a password.
    ProvenSmarthost,
}

#[derive(Default)]
pub(crate) struct Pool {
    idle: Mutex<HashMap<Door, Vec<Idle>>>,
}

struct Idle {
    client: Client,
    site: String,
    since: Instant,
}

impl Idle {
    fn is_fresh(&self) -> bool {
        self.since.elapsed() < IDLE_FOR
    }
}

impl Pool {
    /// The most recently used one: the others grow old and are swept.
    pub(crate) fn take(&self, door: &Door) -> Option<Client> {
        let mut idle = self.lock();
        let list = idle.get_mut(door)?;
        let found = loop {
            match list.pop() {
                Some(kept) if kept.is_fresh() => break Some(kept.client),
                Some(old) => farewell(old.client),
                None => break None,
            }
        };
        if list.is_empty() {
            idle.remove(door);
        }
        found
    }

    /// Whether a connection to the site is kept.
    pub(crate) fn has_idle(&self, site: &str) -> bool {
        self.lock().values().flatten().any(|kept| kept.site == site && kept.is_fresh())
    }

    /// Closes one that is kept to the site, before another is made.
    pub(crate) fn make_room(&self, site: &str) {
        for list in self.lock().values_mut() {
            if let Some(at) = list.iter().position(|kept| kept.site == site) {
                return farewell(list.swap_remove(at).client);
            }
        }
    }

    /// Keeps a connection for the next message to its host, where it is still good for one.
    pub(crate) fn keep(&self, door: Door, site: &str, messages: u32, client: Client) {
        if !client.is_reusable(messages) {
            return farewell(client);
        }
        let mut idle = self.lock();
        if idle.values().map(Vec::len).sum::<usize>() >= IDLE {
            return farewell(client);
        }
        idle.entry(door).or_default().push(Idle { client, site: site.to_owned(), since: Instant::now() });
    }

    /// Leaves hosts that were idle for long; called every few seconds.
    pub(crate) fn sweep(&self) {
        let mut idle = self.lock();
        for list in idle.values_mut() {
            let (fresh, old): (Vec<Idle>, Vec<Idle>) =
                std::mem::take(list).into_iter().partition(Idle::is_fresh);
            *list = fresh;
            old.into_iter().for_each(|kept| farewell(kept.client));
        }
        idle.retain(|_, list| !list.is_empty());
    }

    /// QUIT everywhere.
    pub(crate) fn close(&self) {
        for (_, list) in self.lock().drain() {
            list.into_iter().for_each(|kept| farewell(kept.client));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Door, Vec<Idle>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// QUIT in the background, within its own deadline: nobody waits for good manners.
pub(crate) fn farewell(client: Client) {
    tokio::spawn(client.quit());
}
