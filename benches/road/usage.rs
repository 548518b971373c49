//! What a process holds: memory as proc(5) has it, and sockets.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::task::JoinHandle;

/// KiB.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    pub rss: u64,
    pub pss: u64,
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RSS {:.1} MiB, PSS {:.1} MiB", self.rss as f64 / 1024.0, self.pss as f64 / 1024.0)
    }
}

pub fn memory(pid: u32) -> Memory {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps_rollup");
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a line of smaps_rollup");
        line.split_whitespace().next().and_then(|kib| kib.parse().ok()).expect("KiB")
    };
    Memory { rss: of("Rss:"), pss: of("Pss:") }
}

pub fn sockets(pid: u32) -> u64 {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let is_socket = |path| {
        std::fs::read_link(path).is_ok_and(|to| to.as_os_str().as_encoded_bytes().starts_with(b"socket:"))
    };
    files.filter(|file| is_socket(file.path())).count() as u64
}

/// Looks a few times a second until it is asked.
pub struct Peak {
    most: Arc<[AtomicU64; 3]>,
    task: JoinHandle<()>,
}

impl Peak {
    pub fn watch(pid: u32) -> Peak {
        let most = Arc::<[AtomicU64; 3]>::default();
        let shared = most.clone();
        let task = tokio::spawn(async move {
            loop {
                let memory = memory(pid);
                for (at, now) in [memory.rss, memory.pss, sockets(pid)].into_iter().enumerate() {
                    shared[at].fetch_max(now, Ordering::Relaxed);
                }
                tokio::time::sleep(Duration::from_millis(150)).await;
            }
        });
        Peak { most, task }
    }

    /// The most memory and the most sockets.
    pub fn end(self) -> (Memory, u64) {
        self.task.abort();
        let [rss, pss, sockets] = [0, 1, 2].map(|at: usize| self.most[at].load(Ordering::Relaxed));
        (Memory { rss, pss }, sockets)
    }
}
