//! The octets of a message on its way: in memory while it is small, in a file when it is not, so that a
//! message of 50 MiB costs no 50 MiB of memory.
//!
//! - A spool file has no name (`O_TMPFILE`, or unlinked at once where the file system lacks that): whatever
//!   happens to the process, the kernel takes it back. What a crash between the two steps leaves is swept.
//! - It is no place of rest: nothing is acknowledged for being spooled, so nothing here is synced.
//! - Whoever reads sees a slice either way (`Octets`); the pages of a mapped file are the kernel's to drop.
//! - Files are written off the async threads.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::ops::Deref;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::{block_in_place, spawn_blocking};

/// Octets of a message up to which it stays in memory; beyond, its body is an object and no row
/// (`store::body`), so that it is read and written as a file anyway.
pub const LARGEST_IN_MEMORY: usize = 1 << 20;

/// Octets from which work on a message is worth telling the runtime about: a hash of so much takes a
/// fraction of a millisecond.
const NOTICEABLE: usize = 512 * 1024;

/// The octets of a message, wherever they are.
#[derive(Debug)]
pub enum Octets {
    Memory(Vec<u8>),
    Spooled(Mmap),
}

impl Deref for Octets {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Octets::Memory(octets) => octets,
            Octets::Spooled(map) => map,
        }
    }
}

impl AsRef<[u8]> for Octets {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Vec<u8>> for Octets {
    fn from(octets: Vec<u8>) -> Octets {
        Octets::Memory(octets)
    }
}

impl Octets {
    /// The same octets, owned by whoever holds the last part of them; nothing is copied.
    pub fn into_bytes(self) -> bytes::Bytes {
        match self {
            Octets::Memory(octets) => octets.into(),
            spooled => bytes::Bytes::from_owner(spooled),
        }
    }
}

/// The folder of the files. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Spool {
    folder: Arc<Path>,
}

impl Spool {
    /// Makes the folder where it is missing, readable by us alone.
    pub fn open(folder: &Path) -> io::Result<Spool> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        Ok(Spool { folder: folder.into() })
    }

    /// Removes what a crash left under a name; how many there were. Only for the one process that owns the
    /// data folder: a file of a living one could be caught between its two steps.
    pub fn sweep(&self) -> io::Result<usize> {
        let mut swept = 0;
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                fs::remove_file(entry.path())?;
                swept += 1;
            }
        }
        Ok(swept)
    }

    /// A file that is to be written.
    pub(crate) fn begin(&self) -> io::Result<Draft> {
        Ok(Draft { file: Arc::new(tempfile::tempfile_in(&self.folder)?) })
    }
}

/// A spool file that is being written.
#[derive(Debug)]
pub(crate) struct Draft {
    file: Arc<File>,
}

impl Draft {
    /// `begin`, off the async threads.
    pub(crate) async fn begin(spool: &Spool) -> io::Result<Draft> {
        let spool = spool.clone();
        spawn_blocking(move || spool.begin()).await?
    }

    /// Writes a piece at the end, off the async threads, and gives its memory back, empty. Who stops waiting
    /// has no file any more to care about.
    pub(crate) async fn append(&mut self, mut piece: Vec<u8>) -> io::Result<Vec<u8>> {
        let file = Arc::clone(&self.file);
        let write = move || {
            (&*file).write_all(&piece)?;
            piece.clear();
            Ok(piece)
        };
        spawn_blocking(write).await?
    }

    /// What was written, to be read.
    pub(crate) fn finish(self) -> io::Result<Octets> {
        // SAFETY: a map is unsound where its file changes under it. This file has no name, so no other process
        // can open it; its one descriptor is ours and is closed below, so nobody here can write to it or
        // shorten it, now or later. Its blocks were allocated by `write`, so a full disk cannot fault a page.
        // What is left is a disk that cannot give back what it took: then the process ends (SIGBUS) with the
        // message unacknowledged, and its sender keeps it.
        let map = unsafe { Mmap::map(&*self.file)? };
        Ok(Octets::Spooled(map))
    }
}

impl Write for Draft {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        (&*self.file).write(octets)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Does work that takes as long as `octets` are many; where that is noticeable, other tasks of this thread
/// are moved to another one first.
pub(crate) fn aside<T>(octets: usize, work: impl FnOnce() -> T) -> T {
    let threads = Handle::try_current().is_ok_and(|h| h.runtime_flavor() == RuntimeFlavor::MultiThread);
    if octets > NOTICEABLE && threads { block_in_place(work) } else { work() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_spooled_reads_as_it_was_written_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(&folder.path().join("spool")).unwrap();
        let mut draft = Draft::begin(&spool).await.unwrap();
        let piece = draft.append(b"one, ".to_vec()).await.unwrap();
        assert!(piece.is_empty() && piece.capacity() > 0);
        draft.write_all(b"two").unwrap();
        draft.append(b", three".to_vec()).await.unwrap();
        let octets = draft.finish().unwrap();
        assert_eq!(&octets[..], b"one, two, three");
        assert_eq!(fs::read_dir(folder.path().join("spool")).unwrap().count(), 0, "it has no name");
        let bytes = octets.into_bytes();
        assert_eq!(bytes.slice(5..8), "two");
    }

    #[test]
    fn what_a_crash_left_is_swept() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(folder.path()).unwrap();
        fs::write(folder.path().join(".tmpAbCdEf"), b"half a message").unwrap();
        assert_eq!(spool.sweep().unwrap(), 1);
        assert_eq!(spool.sweep().unwrap(), 0);
    }
}
