//! Counts who is inside, so that nobody can take all the room: a limit for all connections together and one
//! for each address, its network and the one around it.
//!
//! The maps hold only who is inside, so they are never larger than the first limit.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::rates::LEVELS;

#[derive(Debug)]
pub(super) struct Door {
    all: usize,
    each: u32,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    all: usize,
    levels: [HashMap<IpAddr, u32>; LEVELS.len()],
}

/// Leave to be inside, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Pass {
    door: Arc<Door>,
    /// Who is counted; an exempt peer is not.
    counted: Option<IpAddr>,
}

impl Door {
    pub(super) fn new(all: usize, each: u32) -> Arc<Door> {
        Arc::new(Door { all, each, inside: Mutex::default() })
    }

    /// `None` when there is no room for anybody.
    pub(super) fn enter(self: &Arc<Door>) -> Option<Pass> {
        let mut inside = self.inside();
        (inside.all < self.all).then(|| {
            inside.all += 1;
            Pass { door: Arc::clone(self), counted: None }
        })
    }

    /// A panic elsewhere cannot leave the counters half changed: nothing panics while they are held.
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass {
    /// Counts the bearer under this address; `false` when its share is taken.
    pub(super) fn bear(&mut self, ip: IpAddr) -> bool {
        let mut inside = self.door.inside();
        inside.forget(self.counted.take());
        let full = LEVELS.iter().zip(&inside.levels).any(|(level, here)| {
            let limit = self.door.each.saturating_mul(level.times);
            here.get(&level.of(ip)).is_some_and(|here| *here >= limit)
        });
        if !full {
            for (level, here) in LEVELS.iter().zip(&mut inside.levels) {
                *here.entry(level.of(ip)).or_default() += 1;
            }
            self.counted = Some(ip);
        }
        !full
    }
}

impl Inside {
    fn forget(&mut self, counted: Option<IpAddr>) {
        let Some(ip) = counted else { return };
        for (level, here) in LEVELS.iter().zip(&mut self.levels) {
            let network = level.of(ip);
            if let Some(count) = here.get_mut(&network) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    here.remove(&network);
                }
            }
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut inside = self.door.inside();
        inside.all = inside.all.saturating_sub(1);
        inside.forget(self.counted.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(door: &Arc<Door>, ip: &str) -> Option<Pass> {
        let mut pass = door.enter()?;
        pass.bear(ip.parse().unwrap()).then_some(pass)
    }

    #[test]
    fn one_peer_cannot_take_all_the_room() {
        let door = Door::new(5, 2);
        let first = enter(&door, "192.0.2.1");
        let second = enter(&door, "::ffff:192.0.2.1");
        assert!(first.is_some() && second.is_some() && enter(&door, "192.0.2.1").is_none());
        let third = enter(&door, "2001:db8::1");
        let fourth = enter(&door, "2001:db8::2");
        assert!(third.is_some() && fourth.is_some() && enter(&door, "2001:db8::3").is_none());
        let fifth = door.enter();
        assert!(fifth.is_some() && door.enter().is_none(), "full for everybody");
        drop((first, fifth));
        assert!(enter(&door, "2001:db8:0:0:ffff::3").is_none());
        assert!(enter(&door, "192.0.2.1").is_some());
    }

    #[test]
    fn a_network_has_more_room_than_an_address_and_not_more_than_that() {
        let door = Door::new(100, 2);
        let inside: Vec<_> = (1..50).filter_map(|n| enter(&door, &format!("192.0.2.{n}"))).collect();
        assert_eq!(inside.len(), 6);
    }

    /// Behind a proxy the address is learnt later, and the proxy's place is given back.
    #[test]
    fn a_pass_changes_hands() {
        let door = Door::new(10, 1);
        let mut pass = enter(&door, "192.0.2.1").unwrap();
        assert!(pass.bear("198.51.100.1".parse().unwrap()));
        assert!(enter(&door, "192.0.2.1").is_some() && enter(&door, "198.51.100.1").is_none());
    }

    #[test]
    fn who_left_is_forgotten() {
        let door = Door::new(10, 2);
        drop((enter(&door, "192.0.2.1"), enter(&door, "::1"), enter(&door, "::1"), enter(&door, "::1")));
        assert!(door.inside().levels.iter().all(HashMap::is_empty));
        assert_eq!(door.inside().all, 0);
    }
}
