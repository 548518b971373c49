//! One attempt to deliver: compose and sign, find the way, speak SMTP, and say what came of it.

pub mod compose;
pub mod header;
