//! Field values in words: decoded text, mailboxes, message identifiers, dates.
//!
//! mail-parser reads the grammar; this file makes its results safe to store and show: no control characters
//! (an encoded word may hide a line break in a subject), no NUL (PostgreSQL cannot store it).

use std::borrow::Cow;
use std::collections::HashSet;

use mail_parser::parsers::MessageStream;
use mail_parser::{Address as AddressList, HeaderValue};
use memchr::memmem;

use super::fields::{Field, Header};
use super::structure::Mailbox;

/// Identifiers kept of a References field: the first ones name the root, the last ones the parents.
const MAX_REFERENCES: usize = 100;
const FIRST_REFERENCES: usize = 10;
/// A line of a header cannot be longer (RFC 5322 §2.1.1), so an identifier that is was never made by anyone.
const MAX_MESSAGE_ID: usize = 998;

/// Addresses kept of all fields of one name. More fit into a header, and nobody answers to them.
const MAX_MAILBOXES: usize = 1000;

/// How often each octet of a field may be looked at in search of the ends of encoded words. Honest fields come to
/// two.
const MAX_WORD_SEARCHES: usize = 16;

/// Lets mail-parser read one field's value. A header that was cut off gets the line end it lacks.
pub(crate) fn parse<'a>(
    field: &Field<'a>,
    read: impl for<'s> Fn(&mut MessageStream<'s>) -> HeaderValue<'s>,
) -> HeaderValue<'a> {
    let is_flood = word_search(field.value) > MAX_WORD_SEARCHES * field.value.len();
    if field.value.ends_with(b"\n") && !is_flood {
        return read(&mut MessageStream::new(field.value));
    }
    let mut whole = field.value.to_vec();
    whole.push(b'\n');
    if is_flood {
        // None of them is a word then; everything else in the field is read all the same.
        let begins: Vec<usize> = memmem::find_iter(field.value, b"=?").collect();
        for at in begins {
            if let Some(octet) = whole.get_mut(at + 1) {
                *octet = b'_';
            }
        }
    }
    read(&mut MessageStream::new(&whole)).into_owned()
}

/// How far mail-parser would look. From each place where an encoded word may begin it looks for the end, which is
/// the second `?=` at the latest, over folds as well: quadratic in a field that has beginnings alone.
fn word_search(value: &[u8]) -> usize {
    let (mut searched, mut at, mut begun) = (0usize, 0, 0);
    if memmem::find(value, b"=?").is_none() {
        return 0;
    }
    for end in memmem::find_iter(value, b"?=").chain([value.len()]) {
        let stretch = value.get(at..end).unwrap_or_default();
        let here = memmem::find_iter(stretch, b"=?").count();
        searched = searched.saturating_add((begun + here).saturating_mul(stretch.len()));
        (at, begun) = (end, here);
    }
    searched
}

/// One line, without control characters; runs of them become one space.
pub(crate) fn clean(text: &str) -> String {
    if !text.chars().any(char::is_control) {
        return text.trim().to_owned();
    }
    let words: Vec<&str> = text.split(char::is_control).filter(|word| !word.is_empty()).collect();
    words.join(" ").trim().to_owned()
}

/// Unstructured text, encoded words decoded (RFC 2047).
pub(crate) fn text(field: &Field<'_>) -> Option<String> {
    match parse(field, |stream| stream.parse_unstructured()) {
        HeaderValue::Text(text) => Some(clean(&text)).filter(|text| !text.is_empty()),
        _ => None,
    }
}

/// Every address of every field of this name, groups dissolved (RFC 5322 §3.4).
pub(crate) fn mailboxes(header: &Header<'_>, name: &str) -> Vec<Mailbox> {
    let mut all = Vec::new();
    for field in header.all(name) {
        if let HeaderValue::Address(list) = parse(field, |stream| stream.parse_address()) {
            collect(&list, &mut all);
        }
        all.truncate(MAX_MAILBOXES);
    }
    all
}

fn collect(list: &AddressList<'_>, all: &mut Vec<Mailbox>) {
    for one in list.iter() {
        let Some(address) = one.address.as_deref().map(clean).filter(|a| !a.is_empty()) else { continue };
        let name = one.name.as_deref().map(clean).filter(|name| !name.is_empty());
        all.push(whole(name, address));
    }
}

/// Puts right what mail-parser leaves of old forms: `"a b"@c`, whose quoted part it takes for a name, the
/// route in `<@x:a@b>` (RFC 5322 §4.4), white space around the @.
fn whole(name: Option<String>, address: String) -> Mailbox {
    let address = match address.rsplit_once(':') {
        Some((route, address)) if route.starts_with('@') => address.to_owned(),
        _ => address,
    };
    match (name, address.strip_prefix('@')) {
        (Some(local), Some(domain)) => {
            let escaped = local.replace('\\', "\\\\").replace('"', "\\\"");
            Mailbox { name: None, address: format!("\"{escaped}\"@{domain}") }
        }
        (name, _) => {
            let halves: Vec<&str> = address.split('@').map(str::trim).collect();
            Mailbox { name, address: halves.join("@") }
        }
    }
}

/// Milliseconds since 1970 (RFC 5322 §3.3).
pub(crate) fn date(field: &Field<'_>) -> Option<i64> {
    match parse(field, |stream| stream.parse_date()) {
        HeaderValue::DateTime(date) if date.is_valid() => date.to_timestamp().checked_mul(1000),
        _ => None,
    }
}

/// The identifier of the message: the first that its Message-ID field gives.
pub(crate) fn message_id(header: &Header<'_>) -> Option<String> {
    header.all("Message-ID").find_map(|field| first_identifier(&decoded_ids(field)))
}

/// The first identifier of a Message-ID field's value.
pub(crate) fn first_identifier(value: &[u8]) -> Option<String> {
    let mut found = Vec::new();
    identifiers(value, true, &mut found);
    found.into_iter().next()
}

/// The identifiers of all fields of this name, each once, in their order.
pub(crate) fn message_ids(header: &Header<'_>, name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for field in header.all(name) {
        identifiers(&decoded_ids(field), false, &mut found);
    }
    let mut seen = HashSet::with_capacity(found.len());
    found.retain(|id| seen.insert(id.clone()));
    if found.len() > MAX_REFERENCES {
        let last = found.split_off(found.len() - (MAX_REFERENCES - FIRST_REFERENCES));
        found.truncate(FIRST_REFERENCES);
        found.extend(last);
    }
    found
}

/// The parents. `Message from Bob <bob@b> of "Sat, 21 Nov" <id@b>` (MH, exmh; RFC 822 §4.6.2 allowed phrases)
/// names a person first: what is followed by words and then by another identifier is none.
pub(crate) fn in_reply_to(header: &Header<'_>) -> Vec<String> {
    let all = message_ids(header, "In-Reply-To");
    if all.len() < 2 {
        return all;
    }
    let mut people = HashSet::new();
    for field in header.all("In-Reply-To") {
        let mut brackets = field.value.split(|octet| *octet == b'<').skip(1).peekable();
        while let Some(bracket) = brackets.next() {
            let Some(close) = memchr::memchr(b'>', bracket) else { continue };
            let (inner, after) = bracket.split_at(close);
            if brackets.peek().is_some() && after.iter().any(u8::is_ascii_alphabetic) {
                people.extend(identifier(inner));
            }
        }
    }
    all.into_iter().filter(|id| !people.contains(id)).collect()
}

/// Python's email package folds a long identifier into encoded words (bpo-35805), which RFC 2047 §5 forbids.
fn decoded_ids<'a>(field: &Field<'a>) -> Cow<'a, [u8]> {
    let is_encoded = field.value.trim_ascii_start().starts_with(b"=?");
    match is_encoded.then(|| text(field)).flatten() {
        Some(text) => Cow::Owned(text.into_bytes()),
        None => Cow::Borrowed(field.value),
    }
}

/// RFC 5322 §3.6.4 `msg-id`, read with what is really sent: several in one field, text around them (RFC 822
/// allowed phrases in In-Reply-To), white space from folds inside, no brackets at all.
fn identifiers(value: &[u8], is_own: bool, found: &mut Vec<String>) {
    let before = found.len();
    let mut rest = value;
    while let Some(open) = memchr::memchr(b'<', rest) {
        rest = rest.get(open + 1..).unwrap_or_default();
        // The innermost pair counts, so that `<<a@b>>` is `<a@b>`.
        let Some(end) = rest.iter().position(|octet| matches!(octet, b'<' | b'>')) else { break };
        if rest.get(end) == Some(&b'>') {
            found.extend(rest.get(..end).and_then(identifier));
            rest = rest.get(end + 1..).unwrap_or_default();
        } else {
            rest = rest.get(end..).unwrap_or_default();
        }
    }
    if found.len() > before {
        return;
    }
    let bare = |octet: &u8| matches!(octet, b'<' | b'>' | b'"' | b'\'' | b',' | b';' | b'(' | b')');
    let is_space = |octet: &u8| octet.is_ascii_whitespace();
    let visible = value.trim_ascii().len();
    for word in value.split(|octet| is_space(octet) || bare(octet)).filter(|word| !word.is_empty()) {
        // A bare word is an identifier where it can be nothing else.
        let only_word = is_own && visible == word.len();
        if word.contains(&b'@') || only_word {
            found.extend(identifier(word));
        }
    }
}

fn identifier(inner: &[u8]) -> Option<String> {
    let visible: Vec<u8> = inner.iter().copied().filter(|&octet| octet > b' ' && octet != 0x7f).collect();
    if visible.is_empty() || visible.len() + 2 > MAX_MESSAGE_ID {
        return None;
    }
    let text = String::from_utf8_lossy(&visible);
    // C1 controls survive the filter above as UTF-8.
    Some(format!("<{}>", text.replace(char::is_control, "")))
}

/// Without its brackets (RFC 2045 §7).
pub(crate) fn content_id(field: &Field<'_>) -> Option<String> {
    let id = first_identifier(field.value)?;
    id.strip_prefix('<').and_then(|id| id.strip_suffix('>')).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::screen::fields::header;

    fn ids(value: &str) -> Vec<String> {
        in_reply_to(&header(format!("In-Reply-To:{value}\r\n\r\n").as_bytes()))
    }

    #[test]
    fn identifiers_as_they_are_really_sent() {
        assert_eq!(ids(" <a@b>"), ["<a@b>"]);
        assert_eq!(ids(" <a@b> <c@d>\r\n\t<a@b>"), ["<a@b>", "<c@d>"]);
        assert_eq!(ids(" Your message of Sat, 21 Nov 2026 <a@b>"), ["<a@b>"]);
        assert_eq!(ids(" Message from Bob <bob@b> of \"Sat, 21 Nov\" <a@b>"), ["<a@b>"]);
        assert_eq!(ids(" Message from B <b@b>\r\n of Mon <a@b>\r\n <c@d>"), ["<a@b>", "<c@d>"]);
        assert_eq!(ids(" <a@b> from \"Bob\" at Nov 21, 26 10:00:00 am"), ["<a@b>"]);
        assert_eq!(ids(" =?utf-8?q?=3Ca=2E1?=\r\n =?utf-8?q?=40b=3E?="), ["<a.1@b>"]);
        assert_eq!(ids(" a@b"), ["<a@b>"]);
        assert_eq!(ids(" <a\r\n @b >"), ["<a@b>"]);
        assert_eq!(ids(" <<a@b>>"), ["<a@b>"]);
        assert_eq!(ids(" <a@b\r\n\t<c@d>"), ["<c@d>"]);
        assert_eq!(ids(" hello there"), Vec::<String>::new());
        assert_eq!(ids(" <>"), Vec::<String>::new());
        assert_eq!(ids(&format!(" <{}@b>", "x".repeat(1000))), Vec::<String>::new());
        let own = |value: &str| message_id(&header(format!("Message-Id: {value}\r\n").as_bytes()));
        assert_eq!(own("20261121.1").as_deref(), Some("<20261121.1>"));
        assert_eq!(own("two words"), None);
    }

    #[test]
    fn a_long_thread_keeps_its_root_and_its_parents() {
        let all: String = (0..500).map(|n| format!(" <{n}@x>\r\n")).collect();
        let kept = ids(&all);
        assert_eq!(kept.len(), MAX_REFERENCES);
        assert_eq!((kept[0].as_str(), kept[99].as_str()), ("<0@x>", "<499@x>"));
    }

    /// Each of them would be looked for to the end of the field: 28,000 times 256 KiB.
    #[test]
    fn beginnings_of_encoded_words_hide_no_address() {
        let raw = format!("From: {}, bob@b.example\r\n\r\n", "=?ab?Q?a ".repeat(25_000));
        let all = mailboxes(&header(raw.as_bytes()), "From");
        assert!(all.iter().any(|from| from.address == "bob@b.example"), "{}", all.len());
        // Many words that end are words.
        let raw = format!("Subject: {}\r\n\r\n", "=?utf-8?Q?=C3=BC?= ".repeat(10_000));
        let subject = header(raw.as_bytes()).first("Subject").and_then(text).unwrap();
        assert_eq!(subject.chars().filter(|c| *c == 'ü').count(), 10_000);
    }

    #[test]
    fn a_message_id_of_many_words_is_none() {
        let value = format!("{}{}", " ".repeat(120_000), "a ".repeat(60_000));
        assert_eq!(first_identifier(value.as_bytes()), None);
    }

    #[test]
    fn every_from_address_is_seen() {
        let raw = b"From: Ada <ada@a.example>\r\nfrom : bob@b.example, x: c@c.example;\r\n\r\n";
        let all = mailboxes(&header(raw), "From");
        let addresses: Vec<_> = all.iter().map(|m| m.address.as_str()).collect();
        assert!(addresses.starts_with(&["ada@a.example", "bob@b.example"]), "{addresses:?}");
    }

    #[test]
    fn addresses_in_old_and_tricky_forms() {
        for (value, want) in [
            ("\"boss@bank.example\" <eve@x.example>", "eve@x.example"),
            ("boss@bank.example <eve@x.example>", "eve@x.example"),
            ("=?utf-8?Q?boss=40bank.example=2C?= <eve@x.example>", "eve@x.example"),
            ("eve@x.example (boss@bank.example)", "eve@x.example"),
            ("\"a b\"@x.example", "\"a b\"@x.example"),
            ("<@bank.example:eve@x.example>", "eve@x.example"),
            ("eve @ x.example", "eve@x.example"),
            ("boss@bank.example, <eve@x.example>", "boss@bank.example eve@x.example"),
            ("boss@bank.example; eve@x.example", "boss@bank.example eve@x.example"),
        ] {
            let raw = format!("From: {value}\r\n\r\n");
            let all: Vec<_> =
                mailboxes(&header(raw.as_bytes()), "From").into_iter().map(|m| m.address).collect();
            assert_eq!(all.join(" "), want, "{value}");
        }
    }

    #[test]
    fn an_encoded_word_hides_no_line_break() {
        let raw = b"Subject: =?utf-8?Q?Hi=0D=0ABcc:_eve@x.example=00?=\r\n\r\n";
        let subject = header(raw).first("Subject").and_then(text).unwrap();
        assert_eq!(subject, "Hi Bcc: eve@x.example");
    }
}
