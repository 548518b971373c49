//! Paths under `/v0/inboxes/{inbox_id}/messages/`, where an id may hold slashes.
//!
//! A `message_id` is an RFC Message-ID, angle brackets and all, and GitHub's hold slashes. AgentMail's Python SDK
//! does not encode path parameters, so `<owner/repo/pull/1@github.com>` arrives as five segments; TypeScript
//! encodes every character. So a path is cut on its raw form, greedily from the right against the known
//! suffixes, and what remains is decoded as one id. A `%2F` in the id is therefore never a separator.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use percent_encoding::percent_decode_str;

use super::error::Problem;

/// What a path below `messages/` names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum MessagePath {
    Send,
    BatchGet,
    BatchUpdate,
    Message(String),
    Reply(String),
    ReplyAll(String),
    Raw(String),
    Attachment {
        message: String,
        attachment: String,
    },
    /// Known to AgentMail, not to us.
    Unknown,
}

impl MessagePath {
    /// `rest` is what follows `messages/`, still percent-encoded. `None` where it is not UTF-8.
    pub(crate) fn parse(rest: &str) -> Option<MessagePath> {
        match rest {
            "send" => return Some(MessagePath::Send),
            "batch-get" => return Some(MessagePath::BatchGet),
            "batch-update" => return Some(MessagePath::BatchUpdate),
            "search" | "" => return Some(MessagePath::Unknown),
            _ => {}
        }
        let segments: Vec<&str> = rest.split('/').collect();
        Some(match segments.as_slice() {
            [id @ .., "reply"] if !id.is_empty() => MessagePath::Reply(decode(&id.join("/"))?),
            [id @ .., "reply-all"] if !id.is_empty() => MessagePath::ReplyAll(decode(&id.join("/"))?),
            [id @ .., "raw"] if !id.is_empty() => MessagePath::Raw(decode(&id.join("/"))?),
            [id @ .., "attachments", attachment] if !id.is_empty() => {
                MessagePath::Attachment { message: decode(&id.join("/"))?, attachment: decode(attachment)? }
            }
            [id @ .., "forward"] | [id @ .., "agent-armor", _] if !id.is_empty() => MessagePath::Unknown,
            _ => MessagePath::Message(decode(rest)?),
        })
    }
}

/// One path parameter, its percent signs resolved. A `+` is a plus: this is no form.
pub(crate) fn decode(text: &str) -> Option<String> {
    percent_decode_str(text).decode_utf8().ok().map(|t| t.into_owned())
}

/// The raw path of the request, for what follows a fixed number of its segments.
pub(crate) struct RawPath(String);

impl<S: Send + Sync> FromRequestParts<S> for RawPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<RawPath, Problem> {
        Ok(RawPath(parts.uri.path().to_owned()))
    }
}

impl RawPath {
    /// Segment `i`, counted from 0, decoded; a path that is not UTF-8 names nothing.
    pub(crate) fn segment(&self, i: usize) -> Result<String, Problem> {
        let segment = self.segments().nth(i);
        segment.and_then(decode).ok_or_else(|| Problem::not_found("Path"))
    }

    /// Everything from segment `i` on, still encoded.
    pub(crate) fn tail(&self, i: usize) -> String {
        self.segments().skip(i).collect::<Vec<_>>().join("/")
    }

    fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.strip_prefix('/').unwrap_or(&self.0).split('/')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_github_message_id_arrives_in_five_segments() {
        let id = "<owner/repo/pull/1@github.com>".to_owned();
        for python in ["%3Cowner/repo/pull/1@github.com%3E", "<owner/repo/pull/1@github.com>"] {
            assert_eq!(MessagePath::parse(python), Some(MessagePath::Message(id.clone())));
            assert_eq!(MessagePath::parse(&format!("{python}/reply")), Some(MessagePath::Reply(id.clone())));
            assert_eq!(
                MessagePath::parse(&format!("{python}/reply-all")),
                Some(MessagePath::ReplyAll(id.clone()))
            );
            assert_eq!(
                MessagePath::parse(&format!("{python}/attachments/att_1")),
                Some(MessagePath::Attachment { message: id.clone(), attachment: "att_1".into() })
            );
        }
        let typescript = "%3Cowner%2Frepo%2Fpull%2F1%40github.com%3E";
        assert_eq!(MessagePath::parse(&format!("{typescript}/raw")), Some(MessagePath::Raw(id)));
    }

    #[test]
    fn an_id_that_ends_like_a_suffix_is_still_an_id() {
        assert_eq!(MessagePath::parse("a%2Freply"), Some(MessagePath::Message("a/reply".into())));
        assert_eq!(MessagePath::parse("a/reply/raw"), Some(MessagePath::Raw("a/reply".into())));
        assert_eq!(MessagePath::parse("reply"), Some(MessagePath::Message("reply".into())));
        assert_eq!(MessagePath::parse("a+b=c$@x"), Some(MessagePath::Message("a+b=c$@x".into())));
        assert_eq!(MessagePath::parse("%ff"), None);
    }
}
