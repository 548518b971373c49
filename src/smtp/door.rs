//! Counts who is inside, so that nobody can take all the room: a limit for all connections together and
//! one for each peer (an IPv4 address, or an IPv6 /64, which is what one host is given).
//!
//! The map holds only peers that are inside, so it is never larger than the first limit.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Debug)]
pub(crate) struct Door {
    all: usize,
    each: usize,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    all: usize,
    each: HashMap<IpAddr, usize>,
}

/// Leave to be inside, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Pass {
    door: Arc<Door>,
    peer: IpAddr,
}

/// Which limit was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    #[error("Too many connections, come back soon")]
    All,
    #[error("Too many connections from your address")]
    Peer,
}

impl Door {
    pub(crate) fn new(all: usize, each: usize) -> Arc<Door> {
        Arc::new(Door { all, each, inside: Mutex::default() })
    }

    pub(crate) fn enter(self: &Arc<Door>, ip: IpAddr) -> Result<Pass, Full> {
        let peer = network(ip);
        let mut inside = self.inside();
        if inside.all >= self.all {
            return Err(Full::All);
        }
        let here = inside.each.get(&peer).copied().unwrap_or(0);
        if here >= self.each && !peer.is_loopback() {
            return Err(Full::Peer);
        }
        inside.all += 1;
        inside.each.insert(peer, here + 1);
        Ok(Pass { door: Arc::clone(self), peer })
    }

    /// A panic elsewhere cannot leave the counters half changed: nothing panics while they are held.
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut inside = self.door.inside();
        inside.all = inside.all.saturating_sub(1);
        if let Some(here) = inside.each.get_mut(&self.peer) {
            *here = here.saturating_sub(1);
            if *here == 0 {
                inside.each.remove(&self.peer);
            }
        }
    }
}

fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_peer_cannot_take_all_the_room() {
        let door = Door::new(4, 2);
        let first = door.enter(ip("192.0.2.1")).unwrap();
        let _second = door.enter(ip("::ffff:192.0.2.1")).unwrap();
        assert_eq!(door.enter(ip("192.0.2.1")).unwrap_err(), Full::Peer);
        let _third = door.enter(ip("2001:db8::1")).unwrap();
        let _fourth = door.enter(ip("2001:db8::2")).unwrap();
        assert_eq!(door.enter(ip("192.0.2.9")).unwrap_err(), Full::All);
        drop(first);
        assert_eq!(door.enter(ip("2001:db8:0:0:ffff::3")).unwrap_err(), Full::Peer);
        let _again = door.enter(ip("192.0.2.1")).unwrap();
    }

    #[test]
    fn who_left_is_forgotten() {
        let door = Door::new(10, 2);
        drop((
            door.enter(ip("192.0.2.1")),
            door.enter(ip("::1")),
            door.enter(ip("::1")),
            door.enter(ip("::1")),
        ));
        assert!(door.inside().each.is_empty());
        assert_eq!(door.inside().all, 0);
    }
}
