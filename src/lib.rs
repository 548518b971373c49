//! Gatepost: a self-hosted mail server for AI agents.
//!
//! # The map
//!
//! Rooms follow the road that mail takes; to find the place to change, ask where the mail is now.
//!
//! ```text
//!  a stranger writes to an agent                     an agent answers
//!  ─────────────────────────────                     ────────────────
//!  smtp     a connection becomes an envelope         api      a request, by key
//!    ▼      and bytes                                  ▼
//!  verify   SPF DKIM DMARC ARC iprev → Verdict       gate     may this be sent? → Decision, with reasons
//!    ▼                                                 ▼
//!  screen   bytes → Structure, texts                 queue    delivery rows, schedule, workers
//!    ▼                                                 ▼
//!  inbox    place, thread, one transaction           deliver  local, captured, or MX, TLS, DKIM, SMTP
//!    ▼                                                 ▼
//!  events   the one ordered log; wake who waits      inbox    a bounce, a copy for a local recipient
//!    ▼
//!  work     claim · lease · fence · complete
//!
//!  ──────────────────────────── the floor ────────────────────────────
//!  store · secrets · dns · tls · clock · ids · config · observe
//! ```
//!
//! Dependencies point along the road and down to the floor. Two go back and no others: `queue → gate` (asked
//! again right before sending) and `deliver → inbox` (local recipients and bounces). `server` starts it all,
//! `cli` is the way in for people, `api` the way in for programs.
pub mod address;
pub mod api;
pub mod cli;
pub mod clock;
pub mod config;
pub mod deliver;
pub mod dns;
pub mod envelope;
pub mod events;
pub mod floor;
pub mod gate;
pub mod ids;
pub mod inbox;
pub mod observe;
pub mod queue;
pub mod screen;
pub mod secrets;
pub mod server;
pub mod smtp;
pub mod store;
pub mod tls;
pub mod verify;
pub mod work;
