//! Transfer encodings and character sets: from the octets of a part to what somebody meant.
//!
//! Decoding never fails: what is malformed is kept or skipped as RFC 2045 §6.7 and §6.8 say, because half a
//! text is worth more to a reader than none.

use std::borrow::Cow;

use mail_parser::decoders::base64::base64_decode;
use mail_parser::decoders::charsets::map::charset_decoder;

use super::structure::Encoding;

/// The octets of a body after transfer decoding.
pub(crate) fn transfer(body: &[u8], encoding: Encoding) -> Cow<'_, [u8]> {
    match encoding {
        Encoding::Identity => Cow::Borrowed(body),
        Encoding::QuotedPrintable => {
            let mut out = Vec::with_capacity(body.len());
            quoted_printable(body, |octets| out.extend_from_slice(octets));
            Cow::Owned(out)
        }
        Encoding::Base64 => Cow::Owned(base64(body)),
    }
}

/// How many octets `transfer` would give; counted, so that it takes no memory.
pub(crate) fn transfer_len(body: &[u8], encoding: Encoding) -> usize {
    match encoding {
        Encoding::Identity => body.len(),
        Encoding::QuotedPrintable => {
            let mut len = 0;
            quoted_printable(body, |octets| len += octets.len());
            len
        }
        Encoding::Base64 => base64_len(body),
    }
}

/// RFC 2045 §6.8: "Any characters outside of the base64 alphabet are to be ignored".
fn base64(body: &[u8]) -> Vec<u8> {
    let body = before_foreign_text(body);
    // mail-parser stops at 0xff without a word, and gives up on every other stranger.
    let clean = if memchr::memchr(0xff, body).is_none() { base64_decode(body) } else { None };
    clean.unwrap_or_else(|| {
        let known: Vec<u8> = body.iter().copied().filter(|&o| is_base64(o) || o == b'=').collect();
        base64_decode(&known).unwrap_or_default()
    })
}

/// Padding ends the data. What follows it is ignored where it is not base64 itself, such as the footer that
/// a list put below.
fn before_foreign_text(body: &[u8]) -> &[u8] {
    let Some(padding) = memchr::memchr(b'=', body) else { return body };
    let (data, tail) = body.split_at(padding);
    let known = |octet: &u8| is_base64(*octet) || *octet == b'=' || octet.is_ascii_whitespace();
    if tail.iter().all(known) { body } else { data }
}

fn is_base64(octet: u8) -> bool {
    octet.is_ascii_alphanumeric() || octet == b'+' || octet == b'/'
}

fn base64_len(body: &[u8]) -> usize {
    let group = |digits: usize| digits / 4 * 3 + [0, 0, 1, 2][digits % 4];
    let mut len = 0;
    let mut digits = 0;
    for &octet in before_foreign_text(body) {
        if is_base64(octet) {
            digits += 1;
        } else if octet == b'=' {
            len += group(digits);
            digits = 0;
        }
    }
    len + group(digits)
}

/// RFC 2045 §6.7, read with its advice for malformed input: an `=` that is no escape stands for itself, and
/// white space at the end of a line was added on the way.
fn quoted_printable(body: &[u8], mut give: impl FnMut(&[u8])) {
    for line in body.split_inclusive(|&octet| octet == b'\n') {
        let (text, end) = match line {
            [text @ .., b'\r', b'\n'] => (text, &b"\r\n"[..]),
            [text @ .., b'\n'] => (text, &b"\n"[..]),
            text => (text, &b""[..]),
        };
        let text = text.trim_ascii_end();
        let (text, end) = match text {
            [text @ .., b'='] => (text, &b""[..]),
            text => (text, end),
        };
        let mut rest = text;
        while let Some(escape) = memchr::memchr(b'=', rest) {
            let (plain, after) = rest.split_at(escape);
            give(plain);
            match after {
                [b'=', high, low, tail @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                    give(&[hex(*high) << 4 | hex(*low)]);
                    rest = tail;
                }
                _ => {
                    give(b"=");
                    rest = after.get(1..).unwrap_or_default();
                }
            }
        }
        give(rest);
        give(end);
    }
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit.wrapping_sub(b'A').wrapping_add(10) & 0x0f,
    }
}

/// Text in Unicode. A charset that is missing, unknown or plain ASCII says little about what was sent: UTF-8
/// where the octets are that, else windows-1252, which is what such senders mean.
///
/// NUL becomes U+FFFD: PostgreSQL cannot store it, and no text means it.
pub(crate) fn charset(octets: &[u8], charset: Option<&str>) -> String {
    let vague = |name: &&str| !matches!(*name, "us-ascii" | "ascii" | "utf-8" | "utf8" | "unknown-8bit");
    let decoder = charset.filter(vague).and_then(|name| charset_decoder(name.as_bytes()));
    let text = match decoder {
        Some(decode) => decode(octets),
        None => match std::str::from_utf8(octets) {
            Ok(text) => text.to_owned(),
            Err(_) if charset.is_some_and(|name| name.starts_with("utf")) => {
                String::from_utf8_lossy(octets).into_owned()
            }
            Err(_) => match charset_decoder(b"windows-1252") {
                Some(decode) => decode(octets),
                None => String::from_utf8_lossy(octets).into_owned(),
            },
        },
    };
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quoted_printable_in_the_wild() {
        for (coded, text) in [
            ("a=3Db=\r\nc  \r\nd", "a=bc\r\nd"),
            ("caf=C3=A9 =\nund =e2=82=ac", "café und €"),
            ("50=% off = now=", "50=% off = now"),
            ("=", ""),
            ("a=2", "a=2"),
        ] {
            let read = transfer(coded.as_bytes(), Encoding::QuotedPrintable);
            assert_eq!(String::from_utf8_lossy(&read), text, "{coded:?}");
        }
    }

    #[test]
    fn base64_with_a_list_footer_below() {
        assert_eq!(base64(b"aGVs\r\nbG8=\r\n"), b"hello");
        assert_eq!(base64(b"aGVsbG8=\r\n-- \r\n(unsubscribe)"), b"hello");
        assert_eq!(base64(b"aGVs*bG8"), b"hello");
    }

    #[test]
    fn text_of_a_vague_charset() {
        assert_eq!(charset("né".as_bytes(), Some("us-ascii")), "né");
        assert_eq!(charset(b"n\xe9", None), "né");
        assert_eq!(charset(b"n\xe9", Some("iso-8859-1")), "né");
        assert_eq!(charset(b"n\xe9", Some("utf-8")), "n\u{fffd}");
        assert_eq!(charset(b"a\0b", Some("no-such-charset")), "a\u{fffd}b");
    }

    proptest! {
        #[test]
        fn the_length_is_known_without_decoding(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            for encoding in [Encoding::Identity, Encoding::QuotedPrintable, Encoding::Base64] {
                prop_assert_eq!(transfer_len(&body, encoding), transfer(&body, encoding).len());
            }
        }
    }
}
