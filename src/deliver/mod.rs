//! One attempt to deliver: compose and sign, find the way, speak SMTP, and say what came of it.
//!
//! - a message is made: `header`, `compose`; signed: `dkim`; opened for sending once: `letter`, `wire`
//! - an attempt is made: `relay` sequences `route` (where to), `site` (whether now), `trust` (what a host must be),
//!   `pool` (which connection), `client` and `reply` (the
//!   dialogue); `outcome` is what it comes to, for each recipient; `schedule` says when to try again
//! - what does not arrive: `bounce` tells the agent, `return_path` knows what others answer to (`screen::bounce` reads it)
//! - `gatepost dev` sends nothing: `capture`

pub(crate) mod bounce;
pub mod capture;
mod client;
pub mod compose;
pub mod dkim;
pub mod header;
pub(crate) mod letter;
pub(crate) mod outcome;
mod pool;
pub(crate) mod relay;
mod reply;
pub mod return_path;
mod route;
pub mod schedule;
pub(crate) mod site;
pub(crate) mod trust;
mod wire;

pub(crate) use route::{Network, addresses};
