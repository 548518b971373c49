//! Mail addresses: parsed strictly, compared in one form.
//!
//! The domain is kept as lower-case A-labels (IDNA, UTS #46), so that `ada@münchen.example` and
//! `ada@xn--mnchen-3ya.example` are one address everywhere behind the edge. The local part keeps its
//! spelling, because only its owner may say what case means (RFC 5321 §2.4); our own inboxes compare it
//! in lower case, which is what `key()` gives. Its characters are composed (NFC) and its quotes gone where it
//! needs none.
//!
//! RFC 5321 §4.1.2 (Mailbox), RFC 6531 §3.3 (UTF-8 local parts), RFC 5891 (A-labels).

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use icu_normalizer::ComposingNormalizerBorrowed;

/// Octets in a local part: RFC 5321 §4.5.3.1.1.
const MAX_LOCAL_PART: usize = 64;
/// Octets in a domain: RFC 5321 §4.5.3.1.2.
const MAX_DOMAIN: usize = 255;

/// A mailbox `local-part@domain`, its domain normalised.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    local: String,
    domain: String,
}

/// Why a text is no mail address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("an address needs one @ between local part and domain")]
    NoAt,
    #[error("the local part is empty, longer than 64 octets, or holds a character that needs quoting")]
    LocalPart,
    #[error("the domain is not a valid host name")]
    Domain,
}

impl Address {
    /// `nobody@invalid`, which is nobody's address (RFC 2606 §2): what to ask a list about whom it cannot name.
    pub(crate) fn nobody() -> Address {
        Address { local: "nobody".to_owned(), domain: "invalid".to_owned() }
    }

    /// The part before the @, in quotes only where it needs them.
    pub fn local(&self) -> &str {
        &self.local
    }

    /// The domain in lower-case A-labels, or an address literal in brackets.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The form in which two addresses are the same inbox: everything in lower case.
    pub fn key(&self) -> String {
        if self.local.is_ascii() {
            return format!("{}@{}", self.local.to_ascii_lowercase(), self.domain);
        }
        // A lower-case letter may be another sequence than its capital, so composing comes last.
        let lower = self.local.to_lowercase();
        format!("{}@{}", ComposingNormalizerBorrowed::new_nfc().normalize(&lower), self.domain)
    }

    /// `user+tag@` without its tag, where there is one: `ada+news@x` gives `ada@x`.
    pub fn without_tag(&self) -> Option<Address> {
        let (user, _tag) = self.local.split_once('+')?;
        if user.is_empty() || self.local.starts_with('"') {
            return None;
        }
        Some(Address { local: user.to_owned(), domain: self.domain.clone() })
    }

    /// Whether the local part needs SMTPUTF8 to travel (RFC 6531 §3.3); the domain never does.
    pub fn needs_smtputf8(&self) -> bool {
        !self.local.is_ascii()
    }
}

/// A domain as it is compared and looked up: lower-case A-labels, no dot at the end.
pub fn normalize_domain(domain: &str) -> Result<String, AddressError> {
    let domain = domain.strip_suffix('.').unwrap_or(domain);
    if domain.is_empty() || domain.len() > MAX_DOMAIN * 4 {
        return Err(AddressError::Domain);
    }
    if domain.starts_with('[') {
        return normalize_literal(domain);
    }
    let ascii = idna::domain_to_ascii(domain).map_err(|_| AddressError::Domain)?;
    let label_ok = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if ascii.is_empty() || ascii.len() > MAX_DOMAIN || !ascii.split('.').all(label_ok) {
        return Err(AddressError::Domain);
    }
    Ok(ascii)
}

/// An address literal, RFC 5321 §4.1.3: `[192.0.2.1]` or `[IPv6:2001:db8::1]`.
fn normalize_literal(domain: &str) -> Result<String, AddressError> {
    let inner = domain.strip_prefix('[').and_then(|d| d.strip_suffix(']')).ok_or(AddressError::Domain)?;
    if let Ok(v4) = inner.parse::<std::net::Ipv4Addr>() {
        return Ok(format!("[{v4}]"));
    }
    let v6 = inner.get(..5).filter(|p| p.eq_ignore_ascii_case("IPv6:")).and_then(|_| inner.get(5..));
    match v6.and_then(|t| t.parse::<std::net::Ipv6Addr>().ok()) {
        Some(v6) => Ok(format!("[IPv6:{v6}]")),
        None => Err(AddressError::Domain),
    }
}

/// RFC 5321 §4.1.2: a Dot-string or a Quoted-string, with RFC 6531's non-ASCII characters.
fn check_local(local: &str) -> Result<(), AddressError> {
    if local.is_empty() || local.len() > MAX_LOCAL_PART {
        return Err(AddressError::LocalPart);
    }
    if let Some(inner) = local.strip_prefix('"') {
        let inner = inner.strip_suffix('"').ok_or(AddressError::LocalPart)?;
        let mut chars = inner.chars();
        while let Some(c) = chars.next() {
            let ok = match c {
                '\\' => chars.next().is_some_and(|c| (' '..='~').contains(&c)),
                '"' => false,
                c => c >= ' ' && c != '\u{7f}',
            };
            if !ok {
                return Err(AddressError::LocalPart);
            }
        }
        return Ok(());
    }
    if is_dot_string(local) { Ok(()) } else { Err(AddressError::LocalPart) }
}

fn is_dot_string(local: &str) -> bool {
    let atext = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c) || !c.is_ascii();
    let plain = |c: char| atext(c) && !c.is_control() && !c.is_whitespace();
    local.split('.').all(|atom| !atom.is_empty() && atom.chars().all(plain))
}

/// The local part in one form. RFC 6532 §3.1 and RFC 6530 §10.1: NFC, since the same name typed on two
/// keyboards may come in two forms. RFC 5321 §4.1.2: a quoted string that needs no quotes is what is in it.
fn normalize_local(local: &str) -> String {
    let composed = if local.is_ascii() {
        Cow::Borrowed(local)
    } else {
        ComposingNormalizerBorrowed::new_nfc().normalize(local)
    };
    let Some(inner) = composed.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return composed.into_owned();
    };
    let (mut bare, mut chars) = (String::with_capacity(inner.len()), inner.chars());
    while let Some(c) = chars.next() {
        bare.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    if is_dot_string(&bare) {
        return bare;
    }
    let escaped = bare.replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{escaped}\"")
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (local, domain) = text.rsplit_once('@').ok_or(AddressError::NoAt)?;
        check_local(local)?;
        let local = normalize_local(local);
        // What is composed is shorter, but nobody promises that.
        if local.len() > MAX_LOCAL_PART {
            return Err(AddressError::LocalPart);
        }
        Ok(Address { local, domain: normalize_domain(domain)? })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.local, self.domain)
    }
}

impl serde::Serialize for Address {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Address {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_form_for_a_label_and_u_label() {
        let u: Address = "Ada@MÜNCHEN.example".parse().unwrap();
        let a: Address = "Ada@xn--mnchen-3ya.example.".parse().unwrap();
        assert_eq!(u, a);
        assert_eq!(u.key(), "ada@xn--mnchen-3ya.example");
    }

    /// The same name in two forms is one inbox: composed or not, quoted or not.
    #[test]
    fn one_form_for_a_local_part() {
        let forms = ["åsa@x.example", "a\u{30a}sa@x.example", "\"åsa\"@x.example", "\u{212b}sa@x.example"];
        for form in forms {
            let address: Address = form.parse().unwrap();
            assert_eq!(address.key(), "åsa@x.example", "{form}");
        }
        let quoted = |text: &str| text.parse::<Address>().unwrap().to_string();
        assert_eq!(quoted("\"ada.b\"@x.example"), "ada.b@x.example");
        assert_eq!(quoted("\"a\\d\\a\"@x.example"), "ada@x.example");
        assert_eq!(quoted("\"ada lo\\ve\"@x.example"), "\"ada love\"@x.example");
        assert_eq!(quoted("\"a\\\"b\\\\\"@x.example"), "\"a\\\"b\\\\\"@x.example");
        assert_eq!(quoted("\".a\"@x.example"), "\".a\"@x.example");
    }

    #[test]
    fn hostile_addresses_are_refused() {
        for text in [
            "",
            "@",
            "a@",
            "@b",
            "a b@c",
            "a@b c",
            "a\r\n@b",
            "a@b\r\nRCPT",
            "a@-b",
            "a@b..c",
            ".a@b",
            "a.@b",
            "a..b@c",
            "<a@b",
            "\"a@b",
            "\"a\"b\"@c",
            "a@[1.2.3]",
            "a@[IPv6:zz]",
            "a\0@b",
            "a@b\0",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn a_tag_reaches_its_user() {
        let tagged: Address = "ada+news@x.example".parse().unwrap();
        assert_eq!(tagged.without_tag().unwrap().to_string(), "ada@x.example");
        assert!("+news@x.example".parse::<Address>().unwrap().without_tag().is_none());
    }
}
