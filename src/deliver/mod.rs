//! One attempt to deliver: compose and sign, find the way, speak SMTP, and say what came of it.

mod client;
pub mod compose;
pub mod return_path;
pub mod header;
mod reply;
mod route;
pub mod schedule;
mod wire;
