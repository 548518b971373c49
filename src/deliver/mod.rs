//! One attempt to deliver: compose and sign, find the way, speak SMTP, and say what came of it.

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
pub(crate) mod report;
pub mod return_path;
mod route;
pub mod schedule;
mod wire;
