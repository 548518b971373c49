//! `[receive]`: what is done with mail that is not what it says it is. These are the organization's answers; a
//! domain or an inbox may give its own over the API, and the narrowest one counts.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a DMARC failure leads to, RFC 9989 §5.3. `p=none` leads to nothing in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DmarcHandling {
    /// What the author's domain asks for: `p=reject` is refused, `p=quarantine` held as spam.
    Enforce,
    /// Nothing is refused; both are held as spam.
    Quarantine,
    /// Both are labelled and handed out.
    Tag,
}

/// What becomes of mail whose sender is not verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Unauthenticated {
    Accept,
    Tag,
    Hold,
    Refuse,
}

/// What becomes of mail from outside that claims to be from a domain of this server, and does not authenticate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Spoofed {
    Refuse,
    Hold,
    Tag,
}

/// Whom an allow entry of a receive or reply list lets in. A block holds for the claimed address in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListsMatch {
    Verified,
    Claimed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receive {
    pub dmarc: DmarcHandling,
    pub unauthenticated: Unauthenticated,
    pub spoofed: Spoofed,
    pub lists_match: ListsMatch,
}
