//! `tag=value; tag=value`: the lists of DKIM (RFC 6376 §3.2), ARC (RFC 8617 §4) and DMARC (RFC 9989 §4.8).
//! Pure. A tag that stands twice makes a list invalid; names are compared as written.

use std::ops::Range;

/// White space that may stand around names and values, folds included.
const FWS: [char; 4] = [' ', '\t', '\r', '\n'];

/// Tags of a list. Honest ones have a dozen; each is compared with those before it.
const MAX_TAGS: usize = 64;

/// A list that was read.
#[derive(Debug)]
pub(crate) struct Tags<'x> {
    text: &'x str,
    tags: Vec<Tag<'x>>,
}

#[derive(Debug)]
struct Tag<'x> {
    name: &'x str,
    /// Without the white space around it.
    value: &'x str,
    /// All between the equals sign and the semicolon.
    place: Range<usize>,
}

/// Whether a semicolon may stand where no tag is. The grammar forbids it; many DKIM records have some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EmptyTags {
    Skipped,
    Refused,
}

impl<'x> Tags<'x> {
    pub fn parse(text: &'x str, empty: EmptyTags) -> Result<Tags<'x>, &'static str> {
        let mut tags: Vec<Tag<'x>> = Vec::with_capacity(12);
        let mut at = 0;
        for segment in text.split(';') {
            let (start, end) = (at, at + segment.len());
            at = end + 1;
            let Some((name, value)) = segment.split_once('=') else {
                let blank = segment.trim_matches(FWS).is_empty();
                if blank && (end == text.len() || empty == EmptyTags::Skipped) {
                    continue;
                }
                return Err("a tag without a value");
            };
            let place = start + name.len() + 1..end;
            let name = name.trim_matches(FWS);
            let first = name.starts_with(|c: char| c.is_ascii_alphabetic());
            if !first || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                return Err("a tag without a proper name");
            }
            if tags.iter().any(|tag| tag.name == name) {
                return Err("a tag that stands twice");
            }
            if tags.len() == MAX_TAGS {
                return Err("too many tags");
            }
            tags.push(Tag { name, value: value.trim_matches(FWS), place });
        }
        Ok(Tags { text, tags })
    }

    pub fn get(&self, name: &str) -> Option<&'x str> {
        self.tags.iter().find(|tag| tag.name == name).map(|tag| tag.value)
    }

    /// The name of the first tag.
    pub fn first(&self) -> Option<&'x str> {
        self.tags.first().map(|tag| tag.name)
    }

    /// A number, if the tag is there; `Err` where it is none.
    pub fn number(&self, name: &str) -> Result<Option<u64>, &'static str> {
        let Some(value) = self.get(name) else { return Ok(None) };
        if value.is_empty() || !value.bytes().all(|octet| octet.is_ascii_digit()) {
            return Err("a number that is none");
        }
        // RFC 6376 §3.5 allows up to 76 digits, which are all times that never come.
        Ok(Some(value.parse().unwrap_or(u64::MAX)))
    }

    /// Octets in base64, in which white space may stand.
    pub fn octets(&self, name: &str) -> Option<Vec<u8>> {
        decode_base64(self.get(name)?).filter(|octets| !octets.is_empty())
    }

    /// The whole list with this one value taken out, as it is signed (RFC 6376 §3.7).
    pub fn without_value(&self, name: &str) -> Vec<u8> {
        let place = self.tags.iter().find(|tag| tag.name == name).map(|tag| tag.place.clone());
        let place = place.unwrap_or(0..0);
        let mut out = Vec::with_capacity(self.text.len());
        out.extend_from_slice(self.text.get(..place.start).unwrap_or_default().as_bytes());
        out.extend_from_slice(self.text.get(place.end..).unwrap_or_default().as_bytes());
        out
    }
}

pub(crate) fn decode_base64(text: &str) -> Option<Vec<u8>> {
    use base64::Engine;
    use base64::alphabet::STANDARD;
    use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
    const ENGINE: GeneralPurpose = GeneralPurpose::new(
        &STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    if text.contains(FWS) {
        let text: String = text.chars().filter(|c| !FWS.contains(c)).collect();
        return ENGINE.decode(text).ok();
    }
    ENGINE.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_strictly() {
        let tags = Tags::parse("v=1; a = x ;\r\n b= ab\r\n cd ; d=e=f;", EmptyTags::Refused).unwrap();
        assert_eq!((tags.first(), tags.get("a"), tags.get("d")), (Some("v"), Some("x"), Some("e=f")));
        assert_eq!(tags.octets("b").unwrap(), [0x69, 0xb7, 0x1d]);
        assert_eq!(tags.without_value("b"), b"v=1; a = x ;\r\n b=; d=e=f;");
        assert!(tags.number("a").is_err() && tags.number("v") == Ok(Some(1)) && tags.number("z") == Ok(None));
        for bad in ["v=1; v=1", "v=1; nothing", "=1", "1a=b", "a b=c"] {
            assert!(Tags::parse(bad, EmptyTags::Skipped).is_err(), "{bad}");
        }
        assert!(Tags::parse("a=b;; c=d", EmptyTags::Refused).is_err());
        assert!(Tags::parse("a=b;; c=d", EmptyTags::Skipped).is_ok());
    }

    /// A field of 256 KiB has room for 43,000 names, each to be compared with all before it.
    #[test]
    fn a_list_of_nothing_but_tags_is_left_early() {
        let list = |tags: usize| (0..tags).map(|n| format!("t{n}=;")).collect::<String>();
        assert!(Tags::parse(&list(MAX_TAGS), EmptyTags::Refused).is_ok());
        assert_eq!(Tags::parse(&list(43_000), EmptyTags::Refused).unwrap_err(), "too many tags");
    }
}
