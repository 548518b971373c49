//! One attempt to deliver: compose and sign, find the way, speak SMTP, and say what came of it.

mod client;
pub mod compose;
pub mod dkim;
pub mod header;
mod reply;
pub mod return_path;
mod route;
pub mod schedule;
mod wire;
