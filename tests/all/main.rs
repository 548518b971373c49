//! The integration tests: ONE binary, because each further one links the whole server again.
//!
//! `world/` is what stands around Gatepost in these tests: the server itself as a child process, a DNS server with
//! zones given as text, signed zones behind a real unbound, SMTP clients and scripted remotes, a private PostgreSQL
//! cluster, a real Postfix. The other modules are named after what they prove.
//!
//! What a machine lacks (PostgreSQL, Postfix, unbound, strace, the Python SDK, the corpora) is skipped with a line that says
//! so; `GATEPOST_REQUIRE=all` makes its absence a failure. All tests run side by side: every server has its own
//! loopback address out of 127/8, so no port is ever contested.

// The bans of clippy.toml are about the server: here we measure real time and block real threads on purpose.
#![allow(clippy::disallowed_methods)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod abuse;
mod budgets;
mod corpora;
mod crash;
mod dane;
mod dev;
mod domains;
mod door;
mod durable;
mod entrances;
mod hostile;
mod house;
mod large;
mod letters;
mod limits;
mod loops;
mod out;
mod outcomes;
mod policy;
mod queue;
mod reading;
mod remotes;
mod reporting;
mod reports;
mod requiretls;
mod road;
mod sdk;
mod smuggling;
mod soak;
mod store;
mod threads;
mod trust;
mod verdicts;
mod world;
