//! The tree of parts: one walk over the lines of a message, in linear time whatever the message says.
//!
//! Invariants: parts come in the order of the message, a parent before its children; all offsets lie within
//! the message; a part ends before the line end that belongs to the delimiter below it (RFC 2046 §5.1.1).
//! Never: a part that starts at a boundary in the middle of a line, or at a longer boundary that merely
//! begins like the right one (both are ways to show one reader another message than the next).
//!
//! An encoded message/rfc822 (forbidden by RFC 2046 §5.2.1) is a leaf: its octets are not in the message.

use mail_parser::{ContentType, HeaderValue};

use super::decode;
use super::fields::{Excess, Field, Header, header_at, line_at};
use super::structure::{Encoding, Part};
use super::words;

/// Nested multiparts and messages. Honest mail stays below 10 (mail-servers' incident: CVE-2026-26312).
const MAX_DEPTH: usize = 64;
/// Parts of one message.
const MAX_PARTS: usize = 1000;
/// RFC 2046 §5.1.1 allows 70; some senders exceed it.
const MAX_BOUNDARY: usize = 256;

/// Octets of a Content-Type or Content-Disposition that are read. mail-parser compares each parameter with those
/// before it; the longest honest ones are file names in RFC 2231's encoding, below 3 KiB.
const MAX_PARAMETERS: usize = 8 * 1024;

/// Why the tree was not built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TreeError {
    #[error("parts nested more than {MAX_DEPTH} deep")]
    Depth,
    #[error("more than {MAX_PARTS} parts")]
    Parts,
    #[error("a part with {0}")]
    Header(Excess),
}

/// A multipart or a message that is being read.
struct Open {
    part: u32,
    /// `None` for a message, and for a multipart after its close delimiter.
    boundary: Option<Vec<u8>>,
    /// Children of multipart/digest are messages unless they say otherwise (RFC 2046 §5.1.5).
    digest: bool,
}

/// What stands on a line that begins with `--`.
enum Delimiter {
    Next,
    Close,
}

/// All parts of the message whose header was read already.
pub(crate) fn tree(raw: &[u8], root: &Header<'_>) -> Result<Vec<Part>, TreeError> {
    let mut walk = Walk { raw, parts: Vec::with_capacity(4), open: Vec::with_capacity(4), leaf: None };
    let mut pos = walk.entity(None, false, 0, root)?;
    while pos < raw.len() {
        let line = line_at(raw, pos);
        let next = pos + line.len();
        pos = match walk.delimiter(line) {
            Some((level, delimiter)) => {
                walk.close_above(level, before_line_end(raw, pos));
                walk.meet(level, delimiter, next)?
            }
            None => next,
        };
    }
    walk.close_all();
    Ok(walk.parts)
}

struct Walk<'a> {
    raw: &'a [u8],
    parts: Vec<Part>,
    open: Vec<Open>,
    /// The part whose body is being read, where it is neither multipart nor message.
    leaf: Option<u32>,
}

impl<'a> Walk<'a> {
    /// Takes in the part whose header is given, and its children's headers where it is a message; returns
    /// where its body's lines begin.
    fn entity(
        &mut self,
        parent: Option<u32>,
        in_digest: bool,
        header_start: usize,
        header: &Header<'_>,
    ) -> Result<usize, TreeError> {
        if let (Some(excess), Some(_)) = (header.excess, parent) {
            return Err(TreeError::Header(excess));
        }
        if self.parts.len() >= MAX_PARTS {
            return Err(TreeError::Parts);
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(TreeError::Depth);
        }
        let (part, boundary) = describe(header, parent, in_digest, header_start);
        let index = self.parts.len() as u32;
        let is_message = matches!(part.content_type.as_str(), "message/rfc822" | "message/global")
            && part.encoding == Encoding::Identity;
        let digest = part.content_type == "multipart/digest";
        self.parts.push(part);
        self.leaf = None;
        if let Some(boundary) = boundary {
            self.open.push(Open { part: index, boundary: Some(boundary), digest });
            return Ok(header.body_at);
        }
        if is_message {
            self.open.push(Open { part: index, boundary: None, digest: false });
            let nested = self.header(header.body_at);
            return self.entity(Some(index), false, header.body_at, &nested);
        }
        self.leaf = Some(index);
        Ok(header.body_at)
    }

    /// A header inside the message; it ends at the delimiter of any open multipart.
    fn header(&self, at: usize) -> Header<'a> {
        header_at(self.raw, at, |line| self.delimiter(line).is_some())
    }

    /// Whether the line is a delimiter of an open multipart, and of which; the innermost wins.
    fn delimiter(&self, line: &[u8]) -> Option<(usize, Delimiter)> {
        let rest = line.strip_prefix(b"--")?.trim_ascii_end();
        self.open.iter().enumerate().rev().find_map(|(level, open)| {
            let tail = rest.strip_prefix(open.boundary.as_deref()?)?;
            match tail {
                b"" => Some((level, Delimiter::Next)),
                b"--" => Some((level, Delimiter::Close)),
                _ => None,
            }
        })
    }

    /// The delimiter of `level` was met: what is open above it ends at `end`.
    fn close_above(&mut self, level: usize, end: usize) {
        if let Some(leaf) = self.leaf.take() {
            self.end_part(leaf, end);
        }
        while self.open.len() > level + 1 {
            if let Some(open) = self.open.pop() {
                self.end_part(open.part, end);
            }
        }
    }

    fn meet(&mut self, level: usize, delimiter: Delimiter, next: usize) -> Result<usize, TreeError> {
        let Some(open) = self.open.get_mut(level) else { return Ok(next) };
        match delimiter {
            Delimiter::Close => {
                // What follows is the epilogue; another close delimiter in it means nothing.
                open.boundary = None;
                Ok(next)
            }
            Delimiter::Next => {
                let (parent, digest) = (open.part, open.digest);
                let header = self.header(next);
                self.entity(Some(parent), digest, next, &header)
            }
        }
    }

    fn close_all(&mut self) {
        let end = self.raw.len();
        if let Some(leaf) = self.leaf.take() {
            self.end_part(leaf, end);
        }
        while let Some(open) = self.open.pop() {
            self.end_part(open.part, end);
        }
    }

    fn end_part(&mut self, index: u32, end: usize) {
        // A delimiter right below a header leaves an empty body, not a negative one; what holds that part reaches as far.
        // The last part is this one or the last inside it.
        let end = (end as u64).max(self.parts.last().map_or(0, |last| last.end));
        if let Some(part) = self.parts.get_mut(index as usize) {
            part.end = end;
            let body = self.raw.get(part.body_at as usize..end as usize).unwrap_or_default();
            part.size = decode::transfer_len(body, part.encoding) as u64;
        }
    }
}

/// The place before the line end that stands above `pos`.
fn before_line_end(raw: &[u8], pos: usize) -> usize {
    match raw.get(..pos) {
        Some([.., b'\r', b'\n']) => pos - 2,
        Some([.., b'\n']) => pos - 1,
        _ => pos,
    }
}

/// What the header says of the part, and its boundary where it is a multipart that has one.
fn describe(
    header: &Header<'_>,
    parent: Option<u32>,
    in_digest: bool,
    header_start: usize,
) -> (Part, Option<Vec<u8>>) {
    let content_type = header.first("Content-Type").and_then(parameterised);
    let disposition = header.first("Content-Disposition").and_then(parameterised);
    let encoding = header.first("Content-Transfer-Encoding").map_or(Encoding::Identity, encoding);
    let kind = match &content_type {
        Some(ct) => match (ct.ctype(), ct.subtype()) {
            (main, Some(sub)) if is_token(main) && is_token(sub) => {
                format!("{}/{}", main.to_ascii_lowercase(), sub.to_ascii_lowercase())
            }
            // RFC 2045 §5.2: what cannot be read is text/plain.
            _ => "text/plain".to_owned(),
        },
        None if in_digest => "message/rfc822".to_owned(),
        None => "text/plain".to_owned(),
    };
    let attribute = |of: &Option<ContentType<'_>>, name: &str| {
        of.as_ref().and_then(|ct| ct.attribute(name)).map(words::clean).filter(|v| !v.is_empty())
    };
    let boundary = content_type
        .as_ref()
        .filter(|_| kind.starts_with("multipart/"))
        .and_then(|ct| ct.attribute("boundary"))
        .map(|boundary| boundary.trim_end().as_bytes().to_vec())
        .filter(|boundary| !boundary.is_empty() && boundary.len() <= MAX_BOUNDARY);
    let part = Part {
        parent,
        charset: attribute(&content_type, "charset").map(|name| name.to_ascii_lowercase()),
        encoding: if boundary.is_some() { Encoding::Identity } else { encoding },
        disposition: disposition
            .as_ref()
            .map(|d| words::clean(d.ctype()).to_ascii_lowercase())
            .filter(|d| !d.is_empty()),
        filename: attribute(&disposition, "filename").or_else(|| attribute(&content_type, "name")),
        content_id: header.first("Content-ID").and_then(words::content_id),
        content_type: kind,
        header_at: header_start as u64,
        body_at: header.body_at as u64,
        end: header.body_at as u64,
        size: 0,
        attachment: false,
    };
    (part, boundary)
}

/// RFC 2045 §5.1: what types and subtypes are made of.
fn is_token(text: &str) -> bool {
    let special = |octet: u8| b"()<>@,;:\\\"/[]?=".contains(&octet);
    !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_graphic() && !special(octet))
}

/// A value with parameters, RFC 2045 §5.1, RFC 2231.
fn parameterised<'a>(field: &Field<'a>) -> Option<ContentType<'a>> {
    let value = field.value.get(..MAX_PARAMETERS).unwrap_or(field.value);
    match words::parse(&Field { value, ..*field }, |stream| stream.parse_content_type()) {
        HeaderValue::ContentType(value) => Some(value),
        _ => None,
    }
}

fn encoding(field: &Field<'_>) -> Encoding {
    let value = field.value.trim_ascii();
    // Comments and parameters after the token do occur.
    let end = value.iter().position(|o| matches!(o, b' ' | b'\t' | b';' | b'(')).unwrap_or(value.len());
    let token = value.get(..end).unwrap_or(value);
    if token.eq_ignore_ascii_case(b"base64") {
        Encoding::Base64
    } else if token.eq_ignore_ascii_case(b"quoted-printable") {
        Encoding::QuotedPrintable
    } else {
        Encoding::Identity
    }
}
