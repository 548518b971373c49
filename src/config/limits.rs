//! Every limit that is not the operator's to set, with its unit, its source and its reason.
//!
//! Limits that belong to one formula stand beside it (the 64 octets of a local part, for instance); what
//! bounds memory, time or patience stands here, so that one reading shows what a stranger can make us
//! hold.

use std::time::Duration;

use crate::clock::{Millis, SECOND};

/// Octets. RFC 5321 §4.5.3.1.7: at least 64K octets of message content must be accepted.
pub const SMALLEST_MAX_MESSAGE_SIZE: u64 = 64 * 1024;

/// Octets. Larger than what the largest providers take (150 MB), and still a body that is read in one piece.
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

// ── SMTP, as a server (src/smtp) ─────────────────────────────────────────────────────────────────────────

/// Connections served at once, unless `smtp.limits.sessions` says otherwise: about 5 MiB of memory when all
/// of them are idle.
pub(crate) const SMTP_SESSIONS: usize = 1_000;

/// Connections at once from one IPv4 address or one IPv6 /64. Large senders open a few dozen from each
/// address; mox allows 30.
pub(crate) const SMTP_SESSIONS_PER_ADDRESS: u32 = 50;

/// Connections from one address. mox: 300.
pub(crate) const SMTP_CONNECTIONS_PER_MINUTE: u32 = 300;

/// Transactions from one address. mox: 500.
pub(crate) const SMTP_MESSAGES_PER_MINUTE: u32 = 500;

/// 5xx replies to one address: 15 sessions' worth of `SMTP_ERRORS`. A large sender with stale addresses stays
/// below it, and a guesser gets nowhere.
pub(crate) const SMTP_ERRORS_PER_HOUR: u32 = 300;

/// Recipients that do not exist, from one address. A list of harvested or guessed names is spent by then, and
/// honest forwarders with stale addresses send a handful.
pub(crate) const SMTP_UNKNOWN_RECIPIENTS_PER_HOUR: u32 = 200;

/// Addresses, networks and networks around them whose counts are remembered, each: about 140 octets for each,
/// 10 MiB when all three are full. Beyond it the one heard of least recently is forgotten.
pub(crate) const SMTP_COUNTED: usize = 24_576;

/// Sessions that are being kept waiting on purpose, at most (and never more than a quarter of all sessions):
/// a delay costs us a connection, so beyond it we hang up instead.
pub(crate) const SMTP_TARPIT: usize = 100;

/// The delay grows by `SMTP_ERROR_PAUSE` with each error up to this. RFC 5321 §4.5.3.2: clients wait five
/// minutes for a reply, honest ones that met a few stale addresses must not be lost.
pub(crate) const SMTP_LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Free disk below which mail is deferred. The database's log, a few large messages and the operator's own
/// programs need room to end in order; 5 % is what file systems commonly keep for root.
pub(crate) const DEFAULT_MIN_FREE_DISK: super::FreeDisk =
    super::FreeDisk { octets: Some(1 << 30), percent: Some(5) };

/// How often the disk is looked at, at most.
pub(crate) const DISK_GLANCE: Millis = SECOND;

/// A session, however well it behaves: whoever has more mail calls again. NOOP every few minutes would
/// otherwise hold one for eight hours. chasquid: 20 min.
pub(crate) const SMTP_SESSION_TIME: Duration = Duration::from_secs(30 * 60);

/// Octets a second that a message must make, beyond the first `SMTP_DATA_BLOCK_TIME`: a tenth of what a
/// modem of 1995 did.
pub(crate) const SMTP_SLOWEST: u64 = 256;

/// How long a question to a DNS block list may take; without an answer, mail is let in.
pub(crate) const DNSBL_TIME: Duration = Duration::from_secs(5);

/// How long a stranger's first attempt is told to come again. Postgrey: 5 min; most servers retry within 1 to
/// 15 min, and mail to agents is often waited for.
pub(crate) const DEFAULT_GREYLIST_DELAY: Duration = Duration::from_secs(60);
/// RFC 5321 §4.5.4.1: retries come at least 30 min apart in the worst case that is allowed.
pub(crate) const LONGEST_GREYLIST_DELAY: Duration = Duration::from_secs(3600);

/// Octets of memory that the messages of all sessions of a listener together hold while they are received and
/// committed, none of them more than 2 MiB: what is larger is in the spool. Beyond it, a message is answered
/// 452 and comes again later. Reading and storing a message takes up to three times its share for a moment.
pub(crate) const SMTP_DATA_BUDGET: usize = 256 * 1024 * 1024;

/// Octets of disk that messages above 1 MiB together hold of a listener, each counted three times: as it came,
/// stamped, and stored. At least twelve times the largest message that the operator allows.
pub(crate) const SMTP_SPOOL_BUDGET: usize = 4 * 1024 * 1024 * 1024;

/// Octets of a PROXY protocol header. Addresses take at most 232 (UNIX sockets), what proxies add about a
/// client's TLS a few hundred.
pub(crate) const SMTP_PROXY_HEADER: usize = 4096;

/// How long a proxy may take to say who calls; it knows before it connects.
pub(crate) const SMTP_PROXY_TIME: Duration = Duration::from_secs(10);

/// Octets of a command line with its CRLF. RFC 5321 §4.5.3.1.4 says 512, plus what extensions add: to RCPT
/// ORCPT and NOTIFY 528 (RFC 3461 §4), to MAIL less than half of that; and as much again for those that a
/// client tries without being offered them, so that it hears 555 and not 500.
pub(crate) const SMTP_COMMAND_LINE: usize = 1536;

/// How many times the size limit is read and dropped of a message that is over it, so that the client hears
/// why; then the connection ends.
pub(crate) const SMTP_DRAINED: u64 = 4;

/// Octets after which we stop looking for the end of a line and hang up.
pub(crate) const SMTP_LONGEST_LINE: usize = 4096;

/// RFC 5321 §4.5.3.1.8: at least 100 recipients. Clients send the rest in another transaction (§4.5.3.1.10).
pub(crate) const SMTP_RECIPIENTS: usize = 100;

/// RFC 5321 §4.5.3.2.7: a server should wait at least five minutes for the next command.
pub(crate) const SMTP_COMMAND_TIME: Duration = Duration::from_secs(5 * 60);

/// RFC 5321 §4.5.3.2.5: a client allows three minutes for a block of data to leave; silence for longer than
/// that is a dead peer.
pub(crate) const SMTP_DATA_BLOCK_TIME: Duration = Duration::from_secs(3 * 60);

/// From 354 to the final dot: 25 MiB over 350 kbit/s.
pub(crate) const SMTP_DATA_TIME: Duration = Duration::from_secs(10 * 60);

/// From the final dot to our reply. The client waits ten minutes (RFC 5321 §4.5.3.2.6); who answers 250
/// later than that gets the message twice.
pub(crate) const SMTP_RECEIVE_TIME: Duration = Duration::from_secs(5 * 60);

/// One look-up of a recipient. RFC 5321 §4.5.3.2.3: the client waits five minutes for RCPT.
pub(crate) const SMTP_ROUTE_TIME: Duration = Duration::from_secs(30);

/// A TLS handshake is two round trips.
pub(crate) const SMTP_HANDSHAKE_TIME: Duration = Duration::from_secs(30);

/// How long a client has to take our last reply, and we read on so that the reply is not lost in a reset.
pub(crate) const SMTP_FAREWELL_TIME: Duration = Duration::from_secs(5);

/// How long we listen for a client that talks before our greeting (RFC 5321 §4.3.1). It costs every
/// connection its length once, so it is short: what comes later shows as pipelining after EHLO.
pub(crate) const SMTP_GREETING_PAUSE: Duration = Duration::from_millis(3);

/// Errors (5xx) without a delivered message in between before we hang up: Postfix's hard error limit.
pub(crate) const SMTP_ERRORS: u32 = 20;

/// Errors that are answered at once; each later one waits `SMTP_ERROR_PAUSE` longer, so that guessing
/// addresses is slow. Postfix and mox wait as well.
pub(crate) const SMTP_ERRORS_AT_ONCE: u32 = 3;
pub(crate) const SMTP_ERROR_PAUSE: Duration = Duration::from_secs(1);

/// NOOP, RSET, VRFY, HELP, EHLO and repeated RCPT without a delivered message in between: Postfix's junk
/// command limit.
pub(crate) const SMTP_IDLE_COMMANDS: u32 = 100;

/// RFC 5321 §6.3: at least 100 `Received` lines before a message is taken for a loop.
pub(crate) const SMTP_HOPS: usize = 100;

// ── Receive policy (src/inbox/policy.rs) ────────────────────────────────────────────────────────────────

/// Octets: what an inbox may be limited to at least. A header alone takes a few KiB.
pub const SMALLEST_INBOX_MESSAGE_SIZE: u64 = 4 * 1024;

/// Reading the structure of one message. It takes a second for 256 MiB (linear, src/screen); what takes longer is
/// stored unparsed. The peer waits for our 250 meanwhile, ten minutes at most (RFC 5321 §4.5.3.2.6).
pub(crate) const MESSAGE_READ_TIME: Duration = Duration::from_secs(10);

// ── HTTP (src/api) ──────────────────────────────────────────────────────────────────────────────────────

/// Parameters in a query string. The longest documented list of filters has 15.
pub const MAX_QUERY_PARAMETERS: usize = 128;

/// Octets in one query value; a Message-ID is at most 998 (RFC 5322 §2.1.1).
pub const MAX_QUERY_VALUE: usize = 1_024;

/// Values in one list-valued filter; each is compared with every row.
pub const MAX_QUERY_LIST: usize = 100;

/// Octets of a JSON body that carries no attachments: batch-get asks for 500 Message-IDs of up to 998 octets.
pub const MAX_JSON_BODY: usize = 1024 * 1024;

/// Octets of the head of an HTTP request, and of what is read ahead of its body.
pub const MAX_HTTP_HEAD: usize = 64 * 1024;

/// Octets of messages whose texts one answer holds: a thread of large mails is read a message at a time.
pub const MAX_TEXTS_IN_ANSWER: i64 = 32 * 1024 * 1024;

/// How long the body of an HTTP request may take to arrive.
pub const HTTP_BODY_DEADLINE: Duration = Duration::from_secs(60);

/// How long the head of an HTTP request may take, an idle keep-alive connection included.
pub const HTTP_HEAD_DEADLINE: Duration = Duration::from_secs(75);

/// How long a read may take. Beyond it the SDKs' own 60 s are over as well.
pub const HTTP_READ_DEADLINE: Duration = Duration::from_secs(60);

/// HTTP connections at a time; more wait in the kernel's queue.
pub const MAX_HTTP_CONNECTIONS: usize = 4_096;

/// Octets of request bodies held at a time, over all connections.
pub const MAX_HTTP_BODIES_IN_FLIGHT: usize = 512 * 1024 * 1024;

/// Seconds a request may wait for something to happen. Proxies commonly cut at 60.
pub const MAX_WAIT_SECONDS: i64 = 50;

/// How long a signed download link is good.
pub const DOWNLOAD_LINK_LIFETIME: Duration = Duration::from_secs(3_600);

/// How exactly `used_at` of a key is kept: one write a minute instead of one a request.
pub const KEY_USE_RESOLUTION: Duration = Duration::from_secs(60);

// ── Reports that others send us (src/reports) ───────────────────────────────────────────────────────────

/// Octets of a DMARC report unpacked: the largest honest ones (a big provider's day) have a few MiB.
pub const MAX_REPORT: usize = 25 * 1024 * 1024;

/// How many times its size a report may unpack to: XML of reports shrinks to a tenth or a thirtieth, deflate
/// of zeros to a thousandth. What stays below `REPORT_RATIO_FLOOR` octets is not asked.
pub const MAX_REPORT_RATIO: usize = 200;
pub const REPORT_RATIO_FLOOR: usize = 1024 * 1024;

/// Elements of a DMARC report, opened and closed: one row has about 40, and each takes memory to read.
pub const MAX_REPORT_ELEMENTS: usize = 1_000_000;

/// Rows of a report that are kept; the totals count all.
pub const MAX_REPORT_ROWS: usize = 5_000;

/// Octets of JSON that are kept of a report, about 600 rows of an honest one: a few KiB of mail can unpack to
/// thousands of rows of long texts.
pub const MAX_REPORT_CONTENT: usize = 256 * 1024;

/// How long each attempt to deliver is kept: a complaint about mail that did not come takes weeks to be made.
pub const ATTEMPTS_KEPT: Millis = 30 * crate::clock::DAY;

/// How far ahead a send may be planned.
pub const LONGEST_PLAN: Millis = 90 * crate::clock::DAY;

/// How long a report is kept: the same month of the year before can be compared. Its mail stays.
pub const REPORTS_KEPT: Millis = 400 * crate::clock::DAY;

/// Octets of a TLS report unpacked: it has a few policies, and its JSON takes twenty times the memory.
pub const MAX_TLS_REPORT: usize = 5 * 1024 * 1024;

/// Kinds of messages (source, domains, results) that one process counts for DMARC reports between two writes a minute
/// apart, for one domain and in all: some 600 octets each.
pub const DMARC_TALLIES_A_DOMAIN: usize = 2_000;
pub const DMARC_TALLIES: usize = 20_000;

/// Rows that are kept of a domain's day, and of a day: 40 MiB of the database at worst, for the day until it is reported.
pub const DMARC_ROWS_A_DOMAIN: i64 = 5_000;
pub const DMARC_ROWS_A_DAY: i64 = 100_000;

/// For how long one node has a report to itself.
pub const REPORT_LEASE: Duration = Duration::from_secs(600);
/// The first wait before a report is tried again; it doubles, and the last repeats. RFC 8460 §4.1: for 24 hours.
pub const REPORT_RETRY: Millis = 15 * 60_000;
pub const REPORT_ATTEMPTS: i64 = 9;

/// Parts of one message that are tried.
pub const REPORT_PARTS: usize = 4;

/// Characters of one text in a report: a domain has 253 (RFC 1035), an explanation no need of more.
pub const REPORT_TEXT: usize = 300;

/// How long a message may wait for its report to be read before it is filed as ordinary mail. Senders wait ten
/// minutes after the final dot (RFC 5321 §4.5.3.2.6).
pub const REPORT_DEADLINE: Duration = Duration::from_secs(20);
