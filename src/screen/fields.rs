//! The header of a message or of a MIME part, cut into fields without copying.
//!
//! One reader for everybody: the sender check, our own stamp and the structure all see the same fields, so
//! that no two of them can be told different things by one message. It never fails: lines that are no field
//! are skipped, a limit that is passed is reported beside what was read until then.
//!
//! RFC 5322 §2.2 (fields, folding), §4.5.8 (obsolete white space before the colon).

use memchr::memchr;

/// Octets of one header block. Postfix keeps 100 KiB; the largest honest ones (long DKIM and ARC chains)
/// stay below 100 KiB.
pub(crate) const MAX_HEADER_OCTETS: usize = 256 * 1024;
/// Fields of one header block.
pub(crate) const MAX_FIELDS: usize = 1000;

/// One field, as it stands in the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Field<'a> {
    /// Without the white space that may stand before the colon.
    pub name: &'a [u8],
    /// All after the colon: folds and the line end at its end included.
    pub value: &'a [u8],
    /// Where the field begins, in the message.
    pub start: usize,
    /// One past its last line end.
    pub end: usize,
}

impl Field<'_> {
    /// Field names are compared without case (RFC 5322 §1.2.2).
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }
}

/// Why a header was not read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Excess {
    Octets,
    Fields,
}

impl std::fmt::Display for Excess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Excess::Octets => write!(f, "a header of more than {} KiB", MAX_HEADER_OCTETS / 1024),
            Excess::Fields => write!(f, "a header of more than {MAX_FIELDS} fields"),
        }
    }
}

/// A header and where it ends.
#[derive(Debug, Clone)]
pub(crate) struct Header<'a> {
    pub fields: Vec<Field<'a>>,
    /// First octet of the body: after the empty line, or where the header was left.
    pub body_at: usize,
    pub excess: Option<Excess>,
}

impl<'a> Header<'a> {
    /// The first field of this name.
    pub fn first(&self, name: &str) -> Option<&Field<'a>> {
        self.fields.iter().find(|field| field.is(name))
    }

    /// Every field of this name.
    pub fn all<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'s Field<'a>> {
        self.fields.iter().filter(move |field| field.is(name))
    }
}

/// The header of the message.
pub(crate) fn header(raw: &[u8]) -> Header<'_> {
    if starts_with_body(raw) {
        return Header { fields: Vec::new(), body_at: 0, excess: None };
    }
    header_at(raw, 0, |_| false)
}

/// Whether the message has no header at all: its first line is neither a field, nor empty, nor the
/// separator of an mbox file that somebody left on top.
pub(crate) fn starts_with_body(raw: &[u8]) -> bool {
    let line = line_at(raw, 0);
    let is_separator = line.starts_with(b"From ") || line.starts_with(b">From ");
    !raw.is_empty() && !is_empty_line(line) && !is_separator && split_name(line).is_none()
}

/// The header that begins at `at`; a line for which `is_boundary` holds ends it without being part of it.
pub(crate) fn header_at<'a>(raw: &'a [u8], at: usize, is_boundary: impl Fn(&[u8]) -> bool) -> Header<'a> {
    let mut header = Header { fields: Vec::with_capacity(24), body_at: at, excess: None };
    let mut fields = Fields { raw, pos: at, is_boundary };
    for field in fields.by_ref() {
        if field.end - at > MAX_HEADER_OCTETS {
            header.excess = Some(Excess::Octets);
            break;
        }
        if header.fields.len() == MAX_FIELDS {
            header.excess = Some(Excess::Fields);
            break;
        }
        header.fields.push(field);
    }
    header.body_at = fields.pos;
    if header.excess.is_none() && fields.pos - at > MAX_HEADER_OCTETS {
        header.excess = Some(Excess::Octets);
    }
    header
}

/// The fields of the message's header one by one, without limits and without keeping any.
pub(crate) fn every_field<'a>(raw: &'a [u8]) -> impl Iterator<Item = Field<'a>> {
    Fields { raw, pos: 0, is_boundary: |_: &[u8]| false }
}

struct Fields<'a, F> {
    raw: &'a [u8],
    pos: usize,
    is_boundary: F,
}

impl<'a, F: Fn(&[u8]) -> bool> Iterator for Fields<'a, F> {
    type Item = Field<'a>;

    /// Leaves `pos` at the body once there is no further field.
    fn next(&mut self) -> Option<Field<'a>> {
        while self.pos < self.raw.len() {
            let start = self.pos;
            let line = line_at(self.raw, start);
            if is_empty_line(line) {
                // The body begins here, and so it does for every further call.
                self.raw = self.raw.get(..start + line.len()).unwrap_or_default();
                self.pos = self.raw.len();
                return None;
            }
            if line.starts_with(b"--") && (self.is_boundary)(line) {
                return None;
            }
            let mut end = start + line.len();
            while matches!(self.raw.get(end), Some(b' ' | b'\t')) {
                end += line_at(self.raw, end).len();
            }
            self.pos = end;
            if let Some((name, colon)) = split_name(line) {
                let value = self.raw.get(start + colon + 1..end).unwrap_or_default();
                return Some(Field { name, value, start, end });
            }
        }
        None
    }
}

/// The line at `pos` with its line end; empty at the end of the text.
pub(crate) fn line_at(raw: &[u8], pos: usize) -> &[u8] {
    let rest = raw.get(pos..).unwrap_or_default();
    match memchr(b'\n', rest) {
        Some(newline) => rest.get(..=newline).unwrap_or(rest),
        None => rest,
    }
}

fn is_empty_line(line: &[u8]) -> bool {
    matches!(line, b"\n" | b"\r\n")
}

/// The name and the place of the colon, where the line begins a field. RFC 5322 §3.6.8: printable US-ASCII
/// without the colon; RFC 6532 adds nothing to names.
fn split_name(line: &[u8]) -> Option<(&[u8], usize)> {
    let colon = memchr(b':', line)?;
    let name = line.get(..colon)?.trim_ascii_end();
    let printable = !name.is_empty() && name.iter().all(|octet| (0x21..=0x7e).contains(octet));
    printable.then_some((name, colon))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_cut_with_their_folds() {
        let raw = b"Subject: a\r\n b\r\nnonsense\r\nX :\r\nTo:\tc\r\n\r\nbody";
        let header = header(raw);
        let shown: Vec<_> = header.fields.iter().map(|f| (f.name, f.value)).collect();
        assert_eq!(shown, [(&b"Subject"[..], &b" a\r\n b\r\n"[..]), (b"X", b"\r\n"), (b"To", b"\tc\r\n")]);
        assert_eq!(&raw[header.body_at..], b"body");
    }

    #[test]
    fn a_message_without_a_header_is_all_body() {
        for raw in ["hello\r\n\r\nworld", " folded: x\r\n\r\n", "\tx", "a b: c\r\n"] {
            assert!(starts_with_body(raw.as_bytes()), "{raw:?}");
            assert_eq!(header(raw.as_bytes()).body_at, 0);
        }
        for raw in ["", "\r\nbody", "A: b", "From ada Sat Nov 21\r\nA: b\r\n\r\n"] {
            assert!(!starts_with_body(raw.as_bytes()), "{raw:?}");
        }
    }

    #[test]
    fn limits_hold_and_say_which() {
        let many = "A: b\r\n".repeat(MAX_FIELDS + 1);
        let read = header(many.as_bytes());
        assert_eq!((read.fields.len(), read.excess), (MAX_FIELDS, Some(Excess::Fields)));
        let long = format!("From: a@b.example\r\nA: {}\r\n\r\n", "x".repeat(MAX_HEADER_OCTETS));
        let read = header(long.as_bytes());
        assert_eq!((read.fields.len(), read.excess), (1, Some(Excess::Octets)));
    }
}
