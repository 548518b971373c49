//! Macros, RFC 7208 §7: read first, expanded when the name is needed. Pure: whoever expands says what each
//! letter stands for.

use std::fmt::Write as _;

/// Labels, from the right, that a digit may keep: no name has more.
const MOST_PARTS: u8 = 127;
/// Octets of a name in the DNS (RFC 7208 §7.3): longer ones lose labels on their left.
const LONGEST_NAME: usize = 253;

/// A text with macros in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MacroString {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    /// `%%`, `%_` and `%-`, undone.
    Escaped(&'static str),
    Macro(Macro),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Macro {
    /// In lower case.
    letter: char,
    /// An upper-case letter: what it stands for is URL-escaped.
    escaped: bool,
    /// Parts that are kept, counted from the right.
    keep: Option<u8>,
    reversed: bool,
    delimiters: String,
}

impl MacroString {
    /// `macro-string`: any visible characters and macros.
    pub fn parse(text: &str) -> Result<MacroString, &'static str> {
        read(text, "slodiphv", |c| c.is_ascii_graphic())
    }

    /// `explain-string`: spaces too, and the letters c, r and t (RFC 7208 §6.2).
    pub fn explanation(text: &str) -> Result<MacroString, &'static str> {
        read(text, "slodiphvcrt", |c| c.is_ascii_graphic() || c == ' ')
    }

    /// `domain-spec`: ends in a macro, or in a dot and a label that can be a top-level domain.
    pub fn domain(text: &str) -> Result<MacroString, &'static str> {
        let parsed = MacroString::parse(text)?;
        let ends_well = match parsed.parts.last() {
            None => false,
            Some(Part::Macro(_) | Part::Escaped(_)) => true,
            Some(Part::Text(tail)) => {
                let tail = tail.strip_suffix('.').unwrap_or(tail);
                tail.rsplit_once('.').is_some_and(|(_, label)| is_top_label(label))
            }
        };
        if ends_well { Ok(parsed) } else { Err("a domain that there cannot be") }
    }

    /// Whether the validated name of the client is needed, which costs lookups.
    pub fn needs_name(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Macro(m) if m.letter == 'p'))
    }

    /// The text, with what `value` says in the place of each letter.
    pub fn expand(&self, value: impl Fn(char) -> String) -> String {
        let mut out = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Escaped(text) => out.push_str(text),
                Part::Macro(m) => m.expand(&value(m.letter), &mut out),
            }
        }
        out
    }
}

/// A name to look up: without the dot at its end, cut on the left to what the DNS can hold.
pub(crate) fn name(expanded: &str) -> &str {
    let mut name = expanded.strip_suffix('.').unwrap_or(expanded);
    while name.len() > LONGEST_NAME {
        match name.split_once('.') {
            Some((_, rest)) => name = rest,
            None => return "",
        }
    }
    name
}

impl Macro {
    /// RFC 7208 §7.3: split, reverse, keep the right-hand parts, join by dots, escape.
    fn expand(&self, value: &str, out: &mut String) {
        let delimiters = if self.delimiters.is_empty() { "." } else { &self.delimiters };
        let mut parts: Vec<&str> = value.split(|c| delimiters.contains(c)).collect();
        if self.reversed {
            parts.reverse();
        }
        let keep = self.keep.map_or(parts.len(), usize::from).min(parts.len());
        let kept = parts.split_off(parts.len() - keep).join(".");
        if !self.escaped {
            out.push_str(&kept);
            return;
        }
        for octet in kept.bytes() {
            // RFC 3986 §2.3: the unreserved characters.
            if octet.is_ascii_alphanumeric() || b"-._~".contains(&octet) {
                out.push(char::from(octet));
            } else {
                let _ = write!(out, "%{octet:02X}");
            }
        }
    }
}

fn is_top_label(label: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    ends(label.chars().next())
        && ends(label.chars().next_back())
        && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        && !label.chars().all(|c| c.is_ascii_digit())
}

fn read(text: &str, letters: &str, literal: impl Fn(char) -> bool) -> Result<MacroString, &'static str> {
    const BAD: &str = "a macro that there is not";
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if c != '%' {
            let run = rest.find('%').unwrap_or(rest.len());
            let (plain, after) = rest.split_at(run);
            if !plain.chars().all(&literal) {
                return Err("a character that is not US-ASCII");
            }
            parts.push(Part::Text(plain.to_owned()));
            rest = after;
            continue;
        }
        let mut chars = rest.chars();
        chars.next();
        let escape = match chars.next() {
            Some('%') => Some("%"),
            Some('_') => Some(" "),
            Some('-') => Some("%20"),
            Some('{') => None,
            _ => return Err(BAD),
        };
        rest = chars.as_str();
        if let Some(text) = escape {
            parts.push(Part::Escaped(text));
            continue;
        }
        let (inside, after) = rest.split_once('}').ok_or(BAD)?;
        parts.push(Part::Macro(read_macro(inside, letters).ok_or(BAD)?));
        rest = after;
    }
    Ok(MacroString { parts })
}

/// `macro-letter transformers *delimiter`.
fn read_macro(inside: &str, letters: &str) -> Option<Macro> {
    let mut chars = inside.chars();
    let written = chars.next()?;
    let letter = written.to_ascii_lowercase();
    if !letters.contains(letter) {
        return None;
    }
    let rest = chars.as_str();
    let after = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    let digits = rest.get(..rest.len() - after.len())?;
    let keep = match digits {
        "" => None,
        // RFC 7208 §7.3: "the DIGIT value MUST be nonzero".
        digits => match digits.parse::<u64>() {
            Ok(0) => return None,
            Ok(keep) => Some(u8::try_from(keep).unwrap_or(MOST_PARTS)),
            Err(_) => Some(MOST_PARTS),
        },
    };
    let (reversed, delimiters) = match after.strip_prefix(['r', 'R']) {
        Some(rest) => (true, rest),
        None => (false, after),
    };
    delimiters.chars().all(|c| ".-+,/_=".contains(c)).then(|| Macro {
        letter,
        escaped: written.is_ascii_uppercase(),
        keep,
        reversed,
        delimiters: delimiters.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> String {
        MacroString::explanation(text).unwrap().expand(|letter| match letter {
            's' => "strong-bad@email.example.com".into(),
            'l' => "strong-bad".into(),
            'o' | 'd' => "email.example.com".into(),
            'i' => "192.0.2.3".into(),
            'v' => "in-addr".into(),
            other => other.to_string(),
        })
    }

    /// The table of RFC 7208 §7.4.
    #[test]
    fn the_examples_of_the_rfc() {
        for (text, want) in [
            ("%{s}", "strong-bad@email.example.com"),
            ("%{o}", "email.example.com"),
            ("%{d4}", "email.example.com"),
            ("%{d2}", "example.com"),
            ("%{d1}", "com"),
            ("%{dr}", "com.example.email"),
            ("%{d2r}", "example.email"),
            ("%{l-}", "strong.bad"),
            ("%{lr-}", "bad.strong"),
            ("%{l1r-}", "strong"),
            ("%{ir}.%{v}._spf.%{d2}", "3.2.0.192.in-addr._spf.example.com"),
            ("%{d2}.trusted-domains.example.net", "example.com.trusted-domains.example.net"),
            ("%%%_%-%{S}", "% %20strong-bad%40email.example.com"),
            ("%{d99999999999999999999}", "email.example.com"),
        ] {
            assert_eq!(expanded(text), want, "{text}");
        }
    }

    #[test]
    fn long_names_lose_their_left() {
        let long = vec!["a23456789"; 30].join(".");
        assert_eq!(name(&long).len(), 249);
        assert_eq!(name("a.example."), "a.example");
        assert_eq!(name(&"x".repeat(300)), "");
    }
}
