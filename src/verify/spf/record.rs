//! An SPF record, read whole before anything is asked: an error anywhere in it is a permanent error
//! (RFC 7208 §4.6). Pure; the grammar is that of RFC 7208 §12.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::macros::MacroString;
use crate::verify::verdict::AuthResult;

/// Mechanisms in the order in which they are tried, and the two modifiers that mean something.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Record {
    pub directives: Vec<(AuthResult, Mechanism)>,
    pub redirect: Option<MacroString>,
    pub explanation: Option<MacroString>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Mechanism {
    All,
    Include(MacroString),
    A(Option<MacroString>, Prefixes),
    Mx(Option<MacroString>, Prefixes),
    Ptr(Option<MacroString>),
    Ip4(Ipv4Addr, u8),
    Ip6(Ipv6Addr, u8),
    Exists(MacroString),
}

/// Lengths of network prefixes, in bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Prefixes {
    pub v4: u8,
    pub v6: u8,
}

/// What is wrong with a record, in a few words.
pub(crate) type Flaw = &'static str;

/// RFC 7208 §4.5: the version, then a space or the end. Its letters may be of either case.
pub(crate) fn is_spf(record: &str) -> bool {
    record.get(..6).is_some_and(|version| version.eq_ignore_ascii_case("v=spf1"))
        && record.get(6..).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
}

impl Record {
    /// Reads what `is_spf` has accepted.
    pub fn parse(text: &str) -> Result<Record, Flaw> {
        // RFC 7208 §3.1: US-ASCII; §12: only spaces between the terms.
        if !text.bytes().all(|octet| octet.is_ascii_graphic() || octet == b' ') {
            return Err("a character that is not printable US-ASCII");
        }
        let mut record = Record::default();
        for term in text.get(6..).unwrap_or_default().split(' ').filter(|term| !term.is_empty()) {
            match term.find([':', '/', '=']).and_then(|at| term.get(at..)) {
                Some(rest) if rest.starts_with('=') => record.modifier(term)?,
                _ => record.directive(term)?,
            }
        }
        Ok(record)
    }

    fn modifier(&mut self, term: &str) -> Result<(), Flaw> {
        let (name, value) = term.split_once('=').unwrap_or_default();
        let first = name.starts_with(|c: char| c.is_ascii_alphabetic());
        if !first || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
            return Err("a modifier without a proper name");
        }
        // RFC 7208 §6: each at most once.
        let slot = match name.to_ascii_lowercase().as_str() {
            "redirect" => &mut self.redirect,
            "exp" => &mut self.explanation,
            _ => return MacroString::parse(value).map(drop),
        };
        if slot.replace(MacroString::domain(value)?).is_some() {
            return Err("a modifier that stands twice");
        }
        Ok(())
    }

    fn directive(&mut self, term: &str) -> Result<(), Flaw> {
        let (result, text) = match term.as_bytes().first() {
            Some(b'+') => (AuthResult::Pass, term.get(1..)),
            Some(b'-') => (AuthResult::Fail, term.get(1..)),
            Some(b'~') => (AuthResult::SoftFail, term.get(1..)),
            Some(b'?') => (AuthResult::Neutral, term.get(1..)),
            _ => (AuthResult::Pass, Some(term)),
        };
        let text = text.unwrap_or_default();
        let (name, rest) = text.split_at(text.find([':', '/']).unwrap_or(text.len()));
        let mechanism = match name.to_ascii_lowercase().as_str() {
            "all" if rest.is_empty() => Mechanism::All,
            "include" => Mechanism::Include(argument(rest)?),
            "exists" => Mechanism::Exists(argument(rest)?),
            "a" => {
                let (domain, prefixes) = host(rest)?;
                Mechanism::A(domain, prefixes)
            }
            "mx" => {
                let (domain, prefixes) = host(rest)?;
                Mechanism::Mx(domain, prefixes)
            }
            "ptr" if rest.is_empty() => Mechanism::Ptr(None),
            "ptr" => Mechanism::Ptr(Some(argument(rest)?)),
            "ip4" => {
                let (address, bits) = network(rest, 32)?;
                Mechanism::Ip4(address.parse().map_err(|_| "not an IPv4 network")?, bits)
            }
            "ip6" => {
                let (address, bits) = network(rest, 128)?;
                Mechanism::Ip6(address.parse().map_err(|_| "not an IPv6 network")?, bits)
            }
            _ => return Err("an unknown mechanism"),
        };
        self.directives.push((result, mechanism));
        Ok(())
    }
}

/// `":" domain-spec`.
fn argument(rest: &str) -> Result<MacroString, Flaw> {
    MacroString::domain(rest.strip_prefix(':').ok_or("a mechanism without its domain")?)
}

/// `[ ":" domain-spec ] [ dual-cidr-length ]`. A slash may be part of the name as well: what looks like a
/// length at the end is one.
fn host(rest: &str) -> Result<(Option<MacroString>, Prefixes), Flaw> {
    let mut prefixes = Prefixes { v4: 32, v6: 128 };
    let mut left = rest;
    if let Some((before, digits)) = trailing(left, "//") {
        prefixes.v6 = length(digits, 128)?;
        left = before;
    }
    if let Some((before, digits)) = trailing(left, "/") {
        prefixes.v4 = length(digits, 32)?;
        left = before;
    }
    match left.strip_prefix(':') {
        Some(domain) => Ok((Some(MacroString::domain(domain)?), prefixes)),
        None if left.is_empty() => Ok((None, prefixes)),
        None => Err("a mechanism with something behind it"),
    }
}

/// What stands before `mark` and the digits at the end, and the digits.
fn trailing<'t>(text: &'t str, mark: &str) -> Option<(&'t str, &'t str)> {
    let kept = text.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = text.get(kept.len()..).filter(|digits| !digits.is_empty())?;
    kept.strip_suffix(mark).map(|before| (before, digits))
}

/// Bits of a prefix: no leading zeros, as in the addresses before it.
fn length(digits: &str, most: u8) -> Result<u8, Flaw> {
    let bits = digits.parse::<u8>().ok().filter(|bits| *bits <= most);
    bits.filter(|_| digits == "0" || !digits.starts_with('0')).ok_or("a prefix length that there is not")
}

/// `":" address [ "/" length ]`.
fn network(rest: &str, most: u8) -> Result<(&str, u8), Flaw> {
    let text = rest.strip_prefix(':').ok_or("a mechanism without its network")?;
    match text.split_once('/') {
        Some((address, digits)) => Ok((address, length(digits, most)?)),
        None => Ok((text, most)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_and_bad_records() {
        for good in [
            "v=spf1",
            "v=spf1 +a/24 ?mx//64 ~a:a.example/24//64 -all",
            "V=SPF1 IP4:192.0.2.0/0 ip6:2001:db8::/32 EXISTS:%{ir}.%{v}.x.example ptr:p.example",
            "v=spf1 redirect=_spf.example.com exp=%{l1r-}.e.example x-y.z_1=%{s}/=:",
            "v=spf1 include:a_b-c.example.com. a:%{h} ",
        ] {
            assert!(is_spf(good), "{good}");
            assert!(Record::parse(good).is_ok(), "{good}: {:?}", Record::parse(good));
        }
        for bad in [
            "v=spf1 all:x.example",
            "v=spf1 all/8",
            "v=spf1 -",
            "v=spf1 +-all",
            "v=spf1 a:",
            "v=spf1 a:/24",
            "v=spf1 a/",
            "v=spf1 a//",
            "v=spf1 a/24/64",
            "v=spf1 a/24//129",
            "v=spf1 a24",
            "v=spf1 mx/01",
            "v=spf1 ip4:192.0.2.1/",
            "v=spf1 ip4:192.0.2",
            "v=spf1 ip4:2001:db8::1",
            "v=spf1 ip6:192.0.2.1",
            "v=spf1 ip6:::1//64",
            "v=spf1 include:example",
            "v=spf1 include:example.123",
            "v=spf1 include:x.-example",
            "v=spf1 include:a.example/24",
            "v=spf1 exists:%{d0}",
            "v=spf1 exists:%{d",
            "v=spf1 exists:%{t}.example.com",
            "v=spf1 exists:%{d*}.example.com",
            "v=spf1 a\tmx",
            "v=spf1 redirect=a.example redirect=a.example",
        ] {
            assert!(Record::parse(bad).is_err(), "{bad}: {:?}", Record::parse(bad));
        }
        assert!(!is_spf("v=spf10") && !is_spf("v=spf") && !is_spf(" v=spf1"));
    }

    proptest::proptest! {
        /// What a zone holds is a stranger's text.
        #[test]
        fn no_record_is_too_odd(terms in "[ -~é\0]{0,40}", macros in "(%|[{}a-zA-Z0-9.+/,_=-]|é){0,20}") {
            let _ = Record::parse(&format!("v=spf1 {terms}"));
            if let Ok(text) = MacroString::explanation(&macros) {
                text.expand(|letter| letter.to_string().repeat(3));
            }
            let _ = Record::parse(&format!("v=spf1 exists:{macros} a:{macros}/1 redirect={macros}"));
        }
    }
}
