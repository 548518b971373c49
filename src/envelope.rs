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
    /// What the sender wants to hear of its delivery; `None` where it asked for nothing.
    pub dsn: Option<Box<Dsn>>,
    /// REQUIRETLS was asked for in MAIL FROM (RFC 8689): no hop in clear text.
    pub require_tls: bool,
}

/// The parameters of RFC 3461, decoded.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Dsn {
    /// Of the message, what a failure report returns (§4.3).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ret: Option<Ret>,
    /// The sender's name for the transaction (§4.4).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub envid: Option<String>,
    /// In the order of the envelope's recipients, each with its own; as long as that list.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub recipients: Vec<DsnRecipient>,
}

/// RFC 3461 §4.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ret {
    Full,
    Hdrs,
}

/// What was asked for with one RCPT.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DsnRecipient {
    /// RFC 3461 §4.1; `None` is the default: failures, and delays where the server likes to tell.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub notify: Option<Notify>,
    /// RFC 3461 §4.2: `rfc822;ada@agents.example`, xtext undone.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub orcpt: Option<String>,
}

/// RFC 3461 §4.1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Notify {
    Never,
    /// At least one, each once, in the order given.
    On(Vec<NotifyOn>),
}

/// An occasion for a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NotifyOn {
    Success,
    Failure,
    Delay,
}
