//! The parsed structure of a message: written once at delivery, so that no later room parses it again.
//!
//! Offsets are octets into the stored message (after our trace headers were put on top), so that a part can
//! be cut out and decoded alone. A message that breaks a limit or cannot be read has `unparsed` set, with
//! the reason; it is stored and handed out all the same.

use serde::{Deserialize, Serialize};

use super::ties::Ties;

/// A display name and an address, as the header gives them. The address is not validated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mailbox {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    pub address: String,
}

impl std::fmt::Display for Mailbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} <{}>", self.address),
            None => f.write_str(&self.address),
        }
    }
}

/// How a part is encoded for transfer, RFC 2045 §6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// 7bit, 8bit, binary or unknown: the octets as they stand.
    Identity,
    QuotedPrintable,
    Base64,
}

/// One MIME part, the message itself being part 0. Multiparts name their children by `parent`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Index of the enclosing part; `None` for the message itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub parent: Option<u32>,
    /// `text/plain`, in lower case.
    pub content_type: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub charset: Option<String>,
    pub encoding: Encoding,
    /// `inline` or `attachment`, in lower case, where the part says so.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub disposition: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub filename: Option<String>,
    /// Without angle brackets.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub content_id: Option<String>,
    /// First octet of the part's header.
    pub header_at: u64,
    /// First octet of the part's body.
    pub body_at: u64,
    /// One past the last octet of the part's body.
    pub end: u64,
    /// Octets after transfer decoding.
    pub size: u64,
    /// Whether an agent is shown this part as an attachment.
    pub attachment: bool,
}

/// What every later room needs to know of a message.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Structure {
    /// Why the message could not be parsed, or was not to be (a limit); its parts are then empty.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub unparsed: Option<String>,
    /// With angle brackets and without white space.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub message_id: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub in_reply_to: Vec<String>,
    /// Oldest first, as in the header.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub references: Vec<String>,
    /// Milliseconds since 1970, from `Date`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub date: Option<i64>,
    /// Every address of every From header: more than one makes the sender unverifiable.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub from: Vec<Mailbox>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub sender: Vec<Mailbox>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub reply_to: Vec<Mailbox>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub to: Vec<Mailbox>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub cc: Vec<Mailbox>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub bcc: Vec<Mailbox>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub subject: Option<String>,
    /// The first words of the text, white space folded, at most 200 characters.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub preview: Option<String>,
    /// First octet of the body of the whole message.
    pub body_at: u64,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub parts: Vec<Part>,
    /// Index into `parts` of the text an agent reads first; `None` where the body begins with HTML alone.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub text: Option<u32>,
    /// The parts that make up the body in their order, each text/plain, or text/html where that is all
    /// there is: mail that goes on after a picture, or below which a list put its footer, has several.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub body: Vec<u32>,
    /// Index into `parts` of the HTML body.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub html: Option<u32>,
    /// What ties it to other messages, beside its identifiers. Known at delivery alone.
    #[serde(skip)]
    pub ties: Ties,
}
