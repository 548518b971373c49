//! The envelope: what the SMTP dialogue says about a message, as opposed to what its header claims.
//!
//! RFC 5321 §2.3.1. The envelope decides where mail goes; the header never does.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::address::Address;

/// The reverse-path of MAIL FROM: where a bounce would go. `None` is the null path `<>` (RFC 5321 §4.5.5).
pub type ReversePath = Option<Address>;

/// Who is on the other end of the connection and what it said of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub ip: IpAddr,
    /// The argument of EHLO or HELO, as given.
    pub helo: String,
    /// Whether EHLO was used (ESMTP) or HELO (SMTP): RFC 5321 §4.4 wants it in `Received`.
    pub extended: bool,
    /// `TLSv1.3 TLS13_AES_256_GCM_SHA384` and so on; `None` in clear text.
    pub tls: Option<String>,
}

/// One SMTP transaction: MAIL FROM and what RCPT TO accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    pub peer: Peer,
    pub mail_from: ReversePath,
    /// The forward-paths as given, in their order, each once.
    pub recipients: Vec<Address>,
    /// SMTPUTF8 was asked for in MAIL FROM (RFC 6531 §3.4).
    pub smtputf8: bool,
}
