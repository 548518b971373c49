//! Verification codes and links, for an agent in a sign-up flow.

use serde::{Deserialize, Serialize};

/// A code to type in, or a link to follow, that the message holds for its reader.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = VerificationCode)]
pub struct Code {
    pub kind: CodeKind,
    /// The code without the separators it was printed with (`719-839` is `719839`), or the link.
    pub value: String,
    /// 0 to 1: how sure we are that it is what the reader is to use. Below 0.5 nothing is given.
    pub confidence: f64,
    /// Where it stands; absent where it stands nowhere as it is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub span: Option<Span>,
    /// Of a link, and of a code that names its domain: whether that is the organisational domain (by the
    /// public suffix list) of the one From address, which is the one that `verified_sender` vouches for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub link_domain_matches_sender: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CodeKind {
    Code,
    Link,
}

/// Octets of the UTF-8 of one of the message's fields as the API serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = CodeSpan)]
pub struct Span {
    #[serde(rename = "in")]
    pub place: CodePlace,
    pub start: u64,
    /// One past the last.
    pub end: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CodePlace {
    Text,
    Html,
    Subject,
}
