//! Header fields that cannot be injected: the only values a message that we compose is made from.
//!
//! A `HeaderName` or `HeaderValue` that exists holds no CR, LF or NUL; there is no other way to put a field
//! into an outgoing message, so a subject, a display name or a custom header can never begin a second field
//! or a second message. `new` refuses (what an agent asks for), `cleaned` repairs (what a stranger wrote and
//! we quote back), both end in the same type.
//!
//! RFC 5322 §2.2 (fields), RFC 2047 (encoded words); mail-servers.md §7 "Header injection".

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use mail_builder::headers::{Header, raw::Raw, text::Text};

/// Octets of a field name: long enough for every registered name, short enough to leave room on its line.
const MAX_NAME: usize = 76;
/// Octets of one value before encoding: 1,000 references of a long thread, or a page of text.
const MAX_VALUE: usize = 64 * 1024;
/// A word longer than this is encoded, since it can be folded in no other way. RFC 5322 §2.1.1 ends lines at 998.
const MAX_RAW_WORD: usize = 800;

/// Fields that the server writes itself: an agent that could set them could forge or misdirect. DESIGN §6,
/// with Subject and Reply-To, which have parameters of their own and may stand once (RFC 5322 §3.6).
const OURS: [&str; 14] = [
    "from",
    "to",
    "cc",
    "bcc",
    "sender",
    "message-id",
    "date",
    "in-reply-to",
    "references",
    "return-path",
    "received",
    "authentication-results",
    "subject",
    "reply-to",
];
const OUR_FAMILIES: [&str; 4] = ["dkim-", "arc-", "content-", "mime-"];

/// Why a header field was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error(
        "{0:?} is not the name of a header field (RFC 5322 §2.2: printable ASCII without colon or space)"
    )]
    Name(String),
    #[error("the header {0} is written by the server and cannot be set")]
    Reserved(String),
    #[error("a header value cannot hold line breaks or control characters")]
    Control,
    #[error("a header value cannot be longer than 64 KiB")]
    TooLong,
}

/// The name of a field that an agent may set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderName(String);

impl HeaderName {
    pub fn new(name: &str) -> Result<HeaderName, HeaderError> {
        let shown = || name.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect::<String>();
        // RFC 5322 §3.6.8: ftext is printable ASCII except the colon.
        let ftext = |b: u8| (33..=126).contains(&b) && b != b':';
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(ftext) {
            return Err(HeaderError::Name(shown()));
        }
        let lower = name.to_ascii_lowercase();
        if OURS.contains(&lower.as_str()) || OUR_FAMILIES.iter().any(|family| lower.starts_with(family)) {
            return Err(HeaderError::Reserved(shown()));
        }
        Ok(HeaderName(name.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The value of a field, before encoding: one line of text without control characters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderValue(String);

impl HeaderValue {
    /// Refuses what does not belong into a header. Space around the value is dropped, since no reader keeps it.
    pub fn new(value: &str) -> Result<HeaderValue, HeaderError> {
        if value.len() > MAX_VALUE {
            return Err(HeaderError::TooLong);
        }
        if value.chars().any(|c| c.is_control() && c != '\t') {
            return Err(HeaderError::Control);
        }
        Ok(HeaderValue(value.trim_matches([' ', '\t']).to_owned()))
    }

    /// Makes a value of any text: control characters become spaces, and what is too long is cut.
    pub fn cleaned(text: &str) -> HeaderValue {
        let mut end = text.len().min(MAX_VALUE);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let text: String = text
            .get(..end)
            .unwrap_or_default()
            .chars()
            .map(|c| if c.is_control() && c != '\t' { ' ' } else { c })
            .collect();
        HeaderValue(text.trim_matches([' ', '\t']).to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the text may stand in a header as it is, to be folded at its single spaces.
    fn is_plain(&self) -> bool {
        let words_fit = self.0.split(' ').all(|word| !word.is_empty() && word.len() <= MAX_RAW_WORD);
        // Text that looks like an encoded word would be read as one: it is encoded to stay what it is.
        (words_fit || self.0.is_empty())
            && self.0.bytes().all(|b| (0x20..0x7f).contains(&b))
            && !self.0.contains("=?")
    }
}

/// Writes `Name: value` with its line end; text that is not plain goes as encoded words (RFC 2047), folded.
pub(crate) fn write_text(out: &mut Vec<u8>, name: &str, value: &HeaderValue) {
    let column = begin(out, name);
    if value.is_plain() {
        Raw::new(value.as_str()).write_header(out, column);
    } else {
        write_encoded(out, column, value);
    }
}

/// As `write_text`, but leaves encoded words alone that the value brings itself: custom headers have their
/// own grammar, which only their author knows.
pub(crate) fn write_custom(out: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    let column = begin(out, name.as_str());
    let fits = value.as_str().split(' ').all(|word| !word.is_empty() && word.len() <= MAX_RAW_WORD);
    if fits && value.as_str().bytes().all(|b| (0x20..0x7f).contains(&b)) {
        Raw::new(value.as_str()).write_header(out, column);
    } else {
        write_encoded(out, column, value);
    }
}

/// Writes the name, colon and space; answers the column where the value begins.
pub(crate) fn begin(out: &mut Vec<u8>, name: &str) -> usize {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    name.len() + 2
}

fn write_encoded(out: &mut Vec<u8>, column: usize, value: &HeaderValue) {
    let needs_words = !value.as_str().is_ascii() || value.as_str().len() > 77;
    if needs_words && !value.as_str().contains("=?") {
        // Readable where most of the text is ASCII, base64 otherwise.
        return Text::new(value.as_str()).write_header(out, column);
    }
    Raw::new(encoded_words(value.as_str())).write_header(out, column);
}

/// Base64 encoded words, separated by the spaces at which they may be folded. RFC 2047 §2: at most 75
/// octets each, and no character is split between two.
pub(crate) fn encoded_words(text: &str) -> String {
    const PER_WORD: usize = 45;
    let mut words = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let mut end = rest.len().min(PER_WORD);
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        let (head, tail) = rest.split_at(end);
        words.push(format!("=?utf-8?B?{}?=", BASE64.encode(head)));
        rest = tail;
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_writes_cannot_be_set() {
        for name in
            ["From", "bcc", "MESSAGE-ID", "DKIM-Signature", "arc-seal", "Content-Type", "MIME-Version"]
        {
            let refused = HeaderName::new(name).unwrap_err();
            assert_eq!(refused, HeaderError::Reserved(name.to_owned()));
            assert!(refused.to_string().contains(name));
        }
        for name in ["", "X Y", "X:", "X\r\nBcc", "Überschrift", "X\0"] {
            assert!(matches!(HeaderName::new(name), Err(HeaderError::Name(_))), "{name:?} was taken");
        }
        for name in ["List-Unsubscribe", "X-Run", "Auto-Submitted", "Precedence"] {
            assert!(HeaderName::new(name).is_ok());
        }
    }

    #[test]
    fn a_value_holds_no_line_break_whatever_made_it() {
        for text in ["a\r\nBcc: eve@x.example", "a\nb", "a\rb", "a\0b", "\u{85}"] {
            assert_eq!(HeaderValue::new(text), Err(HeaderError::Control));
            assert!(!HeaderValue::cleaned(text).as_str().contains(char::is_control));
        }
    }
}
