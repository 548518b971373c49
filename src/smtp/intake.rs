//! The octets of one message while it comes in: in memory up to 1 MiB, then in the spool.
//!
//! - Memory is taken as octets come, never because a peer announces some, and out of a budget that all
//!   sessions share; so is the room on disk.
//! - What is over the limit, or finds no room, is dropped as it comes: the peer is read to the end of the
//!   message and answered there.
//! - `keep` is for the readers (`data.rs`), and waits for nothing; `settle` moves what has piled up to disk.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::disk::Disk;
use crate::smtp::reply::Reply;
use crate::spool::{Draft, LARGEST_IN_MEMORY, Octets, Spool};

/// First piece of memory for a message; most fit in it.
const FIRST_PIECE: usize = 16 * 1024;

/// Octets that are written to the spool at once.
const SPOOL_PIECE: usize = 256 * 1024;

/// Octets of memory up to which a message is small: nearly all mail without attachments.
const SMALL: usize = 256 * 1024;

/// Where messages may stand while they come in. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Room {
    pub(crate) spool: Spool,
    pub(crate) memory: Arc<Budget>,
    pub(crate) disk: Arc<Budget>,
    /// What must stay free of the disk, whatever the budget says.
    pub(crate) floor: Disk,
}

/// How often a message stands on disk before it is stored: as it came, with our trace, and as it is kept.
pub(crate) const COPIES: usize = 3;

/// Why a message that came to its end is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lost {
    /// RFC 1870 §6.3 counts as we do: CRLFs yes, dots of transparency and the final one no.
    #[error("Larger than the {0} octets taken here")]
    TooLarge(u64),
    #[error("Too much mail at the moment, try again")]
    NoRoom,
    #[error("Insufficient storage, try again later")]
    Disk(#[source] io::Error),
}

impl Lost {
    pub(crate) fn reply(&self) -> Reply {
        match self {
            Lost::TooLarge(_) => Reply::new(552, "3.4", self),
            Lost::NoRoom => Reply::new(452, "3.1", self),
            Lost::Disk(error) => {
                tracing::error!(%error, "a message could not be spooled; its sender keeps it");
                Reply::new(452, "3.1", self)
            }
        }
    }
}

/// A whole message, and its share of the budgets, to be held as long as it is.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) octets: Octets,
    pub(crate) held: Held,
}

#[derive(Debug)]
pub(crate) struct Held {
    memory: Share,
    disk: Share,
}

pub(crate) struct Intake {
    room: Room,
    limit: u64,
    length: u64,
    memory: Vec<u8>,
    draft: Option<Draft>,
    held: Held,
    lost: Option<Lost>,
}

impl Intake {
    pub(crate) fn new(limit: u64, room: &Room) -> Intake {
        let share = |budget: &Arc<Budget>| Share { budget: Arc::clone(budget), held: 0 };
        Intake {
            room: room.clone(),
            limit,
            length: 0,
            memory: Vec::new(),
            draft: None,
            held: Held { memory: share(&room.memory), disk: share(&room.disk) },
            lost: None,
        }
    }

    /// Octets so far, kept or not.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Why nothing is kept any more, if so; said once.
    pub(crate) fn lost(&mut self) -> Option<Lost> {
        self.lost.take()
    }

    pub(crate) fn keep(&mut self, octets: &[u8]) {
        self.length = self.length.saturating_add(octets.len() as u64);
        if self.lost.is_some() {
            return;
        }
        if self.length > self.limit {
            return self.lose(Lost::TooLarge(self.limit));
        }
        let length = self.memory.len() + octets.len();
        if length > self.memory.capacity() {
            // Doubling, so that copying stays linear, and counted as what it really takes.
            let limit = usize::try_from(self.limit).unwrap_or(usize::MAX).max(length);
            let capacity = length.max(FIRST_PIECE).max(self.memory.capacity() * 2).min(limit);
            let more = capacity - self.memory.len();
            if !self.held.memory.set(capacity) || self.memory.try_reserve_exact(more).is_err() {
                return self.lose(Lost::NoRoom);
            }
        }
        self.memory.extend_from_slice(octets);
    }

    /// Moves what is too much for memory to disk. Who drops this while it waits drops the message.
    pub(crate) async fn settle(&mut self) {
        let most = if self.draft.is_some() { SPOOL_PIECE } else { LARGEST_IN_MEMORY };
        if self.memory.len() > most
            && let Err(lost) = self.unload().await
        {
            self.lose(lost);
        }
    }

    async fn unload(&mut self) -> Result<(), Lost> {
        let length = usize::try_from(self.length).unwrap_or(usize::MAX);
        if self.room.floor.room().is_err() || !self.held.disk.set(length.saturating_mul(COPIES)) {
            return Err(Lost::NoRoom);
        }
        if self.draft.is_none() {
            self.draft = Some(Draft::begin(&self.room.spool).await.map_err(Lost::Disk)?);
        }
        let piece = std::mem::take(&mut self.memory);
        if let Some(draft) = &mut self.draft {
            self.memory = draft.append(piece).await.map_err(Lost::Disk)?;
        }
        self.memory.shrink_to(2 * SPOOL_PIECE);
        self.held.memory.set(self.memory.capacity());
        Ok(())
    }

    /// Keeps nothing, whatever comes.
    pub(crate) fn lose(&mut self, lost: Lost) {
        (self.memory, self.draft, self.lost) = (Vec::new(), None, Some(lost));
        self.held.memory.set(0);
        self.held.disk.set(0);
    }

    pub(crate) async fn finish(mut self) -> Result<Taken, Lost> {
        if self.draft.is_some()
            && self.lost.is_none()
            && let Err(lost) = self.unload().await
        {
            self.lose(lost);
        }
        match (self.lost, self.draft) {
            (Some(lost), _) => Err(lost),
            (None, Some(draft)) => Ok(Taken { octets: draft.finish().map_err(Lost::Disk)?, held: self.held }),
            (None, None) => Ok(Taken { octets: self.memory.into(), held: self.held }),
        }
    }
}

/// The octets that all sessions together may hold.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: usize,
    held: AtomicUsize,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Arc<Budget> {
        Arc::new(Budget { limit, held: AtomicUsize::new(0) })
    }
}

/// What one message holds of a budget, given back when it is dropped.
#[derive(Debug)]
struct Share {
    budget: Arc<Budget>,
    held: usize,
}

impl Share {
    /// Takes or gives back until this much is held. Large messages together get half of the budget, so that
    /// a few of them, sent slowly, cannot keep everybody's small ones out.
    fn set(&mut self, total: usize) -> bool {
        let Some(more) = total.checked_sub(self.held) else {
            self.budget.held.fetch_sub(self.held - total, Ordering::Relaxed);
            self.held = total;
            return true;
        };
        let limit = if total > SMALL { self.budget.limit / 2 } else { self.budget.limit };
        let fits = |held: usize| held.checked_add(more).filter(|&sum| sum <= limit);
        let grown = self.budget.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok();
        if grown {
            self.held = total;
        }
        grown
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.held, Ordering::Relaxed);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// Room for so many octets in memory and on disk, in a folder that is gone with the last of its files.
    pub(crate) fn room(memory: usize, disk: usize) -> Room {
        let folder = std::env::temp_dir().join(format!("gatepost-spool-{}", std::process::id()));
        let (memory, disk) = (Budget::new(memory), Budget::new(disk));
        Room { spool: Spool::open(&folder).unwrap(), memory, disk, floor: Disk::endless() }
    }

    fn held(budget: &Budget) -> usize {
        budget.held.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn all_sessions_share_one_budget() {
        let room = room(3 * FIRST_PIECE, 0);
        let piece = b"x".repeat(FIRST_PIECE);
        let mut intakes: Vec<_> = (0..4).map(|_| Intake::new(1 << 20, &room)).collect();
        for intake in &mut intakes {
            intake.keep(&piece);
        }
        assert!(matches!(intakes.pop().unwrap().finish().await, Err(Lost::NoRoom)));
        assert_eq!(held(&room.memory), 3 * FIRST_PIECE);
        let taken = intakes.pop().unwrap().finish().await.unwrap();
        drop(intakes);
        assert_eq!(held(&room.memory), FIRST_PIECE, "as long as the message is");
        drop(taken);
        assert_eq!(held(&room.memory), 0);
    }

    /// A few senders of large messages who take their time do not keep small ones out.
    #[test]
    fn large_messages_leave_room_for_small_ones() {
        let room = room(8 * SMALL, 0);
        let large = b"x".repeat(3 * SMALL);
        let mut intakes: Vec<_> = (0..5).map(|_| Intake::new(1 << 30, &room)).collect();
        for intake in &mut intakes {
            intake.keep(&large);
        }
        assert_eq!(intakes.iter().filter(|intake| intake.lost.is_none()).count(), 1);
        let mut small = Intake::new(1 << 30, &room);
        small.keep(b"hello");
        assert!(small.lost.is_none());
    }

    /// What is large goes to disk as it comes, whole, and holds little memory meanwhile.
    #[tokio::test]
    async fn a_large_message_is_no_burden_on_memory() {
        let room = room(4 * MIB, 64 * MIB);
        let mut intake = Intake::new(16 << 20, &room);
        let mut expected = Vec::new();
        for n in 0..600_u32 {
            let piece = n.to_le_bytes().repeat(4096);
            intake.keep(&piece);
            intake.settle().await;
            expected.extend_from_slice(&piece);
            assert!(held(&room.memory) <= 2 * MIB, "{} octets held", held(&room.memory));
        }
        assert_eq!(intake.length(), expected.len() as u64);
        let taken = intake.finish().await.unwrap();
        assert!(matches!(taken.octets, Octets::Spooled(_)));
        assert!(*taken.octets == *expected);
        assert_eq!(held(&room.disk), COPIES * expected.len(), "as often as it will stand there");
        drop(taken);
        assert_eq!((held(&room.memory), held(&room.disk)), (0, 0));
    }

    /// A full disk is our trouble and not the sender's: 452, and nothing is kept of the message.
    #[tokio::test]
    async fn no_room_on_disk() {
        let narrow = room(64 * MIB, 2 * MIB);
        let mut gone = room(64 * MIB, 64 * MIB);
        gone.spool = Spool::open(&std::env::temp_dir().join("gatepost-spool-gone")).unwrap();
        std::fs::remove_dir(std::env::temp_dir().join("gatepost-spool-gone")).unwrap();
        let mut full = room(64 * MIB, 64 * MIB);
        full.floor = Disk::full();
        for room in [narrow, gone, full] {
            let mut intake = Intake::new(16 << 20, &room);
            for _ in 0..4 {
                intake.keep(&b"x".repeat(MIB));
                intake.settle().await;
            }
            assert_eq!((held(&room.memory), held(&room.disk)), (0, 0));
            let lost = intake.finish().await.unwrap_err();
            assert!(lost.reply().to_string().starts_with("452 4.3.1"), "{lost:?}");
        }
    }
}
