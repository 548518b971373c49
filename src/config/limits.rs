//! Every limit that is not the operator's to set, with its unit, its source and its reason.
//!
//! Limits that belong to one formula stand beside it (the 64 octets of a local part, for instance); what
//! bounds memory, time or patience stands here, so that one reading shows what a stranger can make us
//! hold.

use std::time::Duration;

/// Octets. RFC 5321 §4.5.3.1.7: at least 64K octets of message content must be accepted.
pub const SMALLEST_MAX_MESSAGE_SIZE: u64 = 64 * 1024;

/// Octets. A message is held in memory once while it is received; the largest providers take 150 MB.
pub const LARGEST_MAX_MESSAGE_SIZE: u64 = 256 * 1024 * 1024;

/// Octets. What Gmail sends at most, and what most servers take.
pub const DEFAULT_MAX_MESSAGE_SIZE: u64 = 25 * 1024 * 1024;

/// How long an undeliverable message is tried. RFC 5321 §4.5.4.1: "the give-up time generally needs to be
/// at least 4-5 days".
pub const DEFAULT_EXPIRE: Duration = Duration::from_secs(5 * 86_400);

/// Longer than this, a sender has long forgotten what they asked for (and RFC 5321 has a week in mind).
pub const LONGEST_EXPIRE: Duration = Duration::from_secs(30 * 86_400);

/// Shorter than this, a retry is a hammer. Tests run on 50 ms.
pub const SHORTEST_RETRY: Duration = Duration::from_millis(50);

/// How long a stop waits for what is in flight. systemd kills after 90 s, Kubernetes after 30 s.
pub const STOP_GRACE: Duration = Duration::from_secs(30);

/// Jobs that wait for the SQLite writer; more wait before they are queued. Each holds a message in memory.
pub(crate) const SQLITE_WRITE_QUEUE: usize = 256;
/// Reads that wait for a reader thread.
pub(crate) const SQLITE_READ_QUEUE: usize = 256;
/// Connections that read, each with a thread.
pub(crate) const SQLITE_READERS: usize = 4;
/// Jobs in one COMMIT: beyond 64 an fsync is shared enough (`benches/`), and latency grows.
pub(crate) const SQLITE_GROUP: usize = 64;
/// Connections of one process to PostgreSQL; its default `max_connections` is 100, to be shared by nodes.
pub(crate) const POSTGRES_CONNECTIONS: u32 = 16;
/// How long a transaction that met contention or a broken connection is run again.
pub(crate) const POSTGRES_RETRY_FOR: Duration = Duration::from_secs(5);
/// How long the outcome of an unanswered COMMIT is looked for before the peer hears 451 or 503.
pub(crate) const POSTGRES_SETTLE_FOR: Duration = Duration::from_secs(10);
