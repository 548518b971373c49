//! Gatepost: a self-hosted mail server for AI agents. (The map comes here.)

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
