//! The floor of free disk: below it strangers' mail is deferred, so that the database never meets a full disk
//! in the middle of something, and the operator and the agents can still work.
//!
//! Looked at when somebody asks, at most once a second, wherever the server writes: data folder, database file,
//! body folder. Said once in the log when it falls below, and once when there is room again (a twentieth more
//! than the floor, so that it does not flicker). A disk that cannot be asked counts as roomy.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::clock::{Clock, Millis};
use crate::config::limits::DISK_GLANCE;
use crate::config::{Config, DatabaseUrl, FreeDisk, StorageUrl};

/// Octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// For us; what is kept for root is not.
    pub free: u64,
    pub size: u64,
}

/// What a disk has under a path.
pub fn space(path: &Path) -> io::Result<Space> {
    let disk = rustix::fs::statvfs(path)?;
    let octets = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
    Ok(Space { free: octets(disk.f_bavail), size: octets(disk.f_blocks) })
}

/// Too little is free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Low {
    pub path: PathBuf,
    pub free: u64,
    pub wanted: u64,
}

impl fmt::Display for Low {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |octets: u64| octets >> 20;
        let Low { path, free, wanted } = self;
        write!(f, "{} MiB free on the disk of {}, {} wanted", mib(*free), path.display(), mib(*wanted))
    }
}

/// Watches over the disks. Cloning shares it.
#[derive(Clone)]
pub struct Disk(Arc<Watch>);

struct Watch {
    places: Vec<PathBuf>,
    floor: FreeDisk,
    measure: fn(&Path) -> io::Result<Space>,
    clock: Clock,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    at: Option<Millis>,
    low: Option<Low>,
}

/// Where the server writes.
pub fn places(config: &Config) -> Vec<PathBuf> {
    let mut places = vec![config.data_dir.clone()];
    if let DatabaseUrl::Sqlite(path) = &config.database.url
        && let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty())
    {
        places.push(folder.to_owned());
    }
    if let StorageUrl::Folder(folder) = &config.storage.url {
        places.push(folder.clone());
    }
    places.dedup();
    places
}

impl Disk {
    pub fn watch(config: &Config, clock: &Clock) -> Disk {
        Disk::new(places(config), config.smtp.guard.min_free_disk, space, clock)
    }

    fn new(
        places: Vec<PathBuf>,
        floor: FreeDisk,
        measure: fn(&Path) -> io::Result<Space>,
        clock: &Clock,
    ) -> Disk {
        Disk(Arc::new(Watch { places, floor, measure, clock: clock.clone(), seen: Mutex::default() }))
    }

    /// A disk that is never full.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn endless() -> Disk {
        Disk::new(Vec::new(), FreeDisk { octets: None, percent: None }, space, &Clock::system())
    }

    /// A disk that is always full.
    #[cfg(test)]
    pub(crate) fn full() -> Disk {
        let floor = FreeDisk { octets: Some(1 << 60), percent: None };
        Disk::new(vec!["/".into()], floor, space, &Clock::system())
    }

    /// Whether there is room for mail.
    pub fn room(&self) -> Result<(), Low> {
        // Nothing panics while it is held.
        let mut seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.0.clock.now();
        // A clock that was set back is no reason to look away.
        if seen.at.is_none_or(|at| (now - at).abs() >= DISK_GLANCE) {
            seen.at = Some(now);
            let low = self.0.look(seen.low.is_some());
            match (&seen.low, &low) {
                (None, Some(low)) => tracing::error!(%low, "too little room: mail is deferred"),
                (Some(_), None) => tracing::info!("there is room again: mail is taken"),
                _ => {}
            }
            seen.low = low;
        }
        seen.low.clone().map_or(Ok(()), Err)
    }
}

impl Watch {
    fn look(&self, was_low: bool) -> Option<Low> {
        self.places.iter().find_map(|path| {
            let space = match (self.measure)(path) {
                Ok(space) => space,
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "the free space could not be found out");
                    return None;
                }
            };
            let floor = self.floor.of(space.size);
            let wanted = if was_low { floor + floor / 20 } else { floor };
            (space.free < wanted).then(|| Low { path: path.clone(), free: space.free, wanted })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_smaller_floor_counts() {
        let both = FreeDisk { octets: Some(GIB), percent: Some(5) };
        assert_eq!(both.of(1000 * GIB), GIB);
        // A volume of one GiB is not full from the start.
        assert!(both.of(GIB) < GIB / 10);
        assert_eq!(FreeDisk { octets: None, percent: None }.of(GIB), 0);
        assert_eq!(FreeDisk { octets: None, percent: Some(10) }.of(GIB), GIB / 100 * 10);
    }

    #[test]
    fn the_floor_is_noticed_within_a_second_and_left_with_a_margin() {
        thread_local!(static FREE: std::cell::Cell<u64> = const { std::cell::Cell::new(0) });
        let measure = |_: &Path| Ok(Space { free: FREE.get(), size: 100 * GIB });
        let floor = FreeDisk { octets: Some(GIB), percent: None };
        let (clock, hand) = Clock::scripted(0);
        let disk = Disk::new(vec!["/somewhere".into()], floor, measure, &clock);
        let room_after = |free: u64| {
            FREE.set(free);
            hand.advance(DISK_GLANCE);
            disk.room().is_ok()
        };
        assert!(room_after(GIB));
        assert!(!room_after(GIB - 1));
        assert!(!room_after(GIB + 1), "not yet: it would flicker");
        assert!(room_after(GIB + GIB / 20));
        FREE.set(0);
        assert!(disk.room().is_ok(), "asked once a second, not for each message");
    }

    #[test]
    fn this_disk_can_be_asked() {
        let here = space(Path::new("/")).unwrap();
        assert!(here.size > 0 && here.free <= here.size);
        let broken = Disk::new(
            vec!["/nowhere/at/all".into()],
            FreeDisk { octets: Some(u64::MAX), percent: None },
            space,
            &Clock::system(),
        );
        assert!(broken.room().is_ok());
    }
}
