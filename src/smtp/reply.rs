//! Replies: what the server says, in the only shape that may reach the wire.
//!
//! - A text cannot hold CR, LF or any other control character, so that nothing a peer, a database or a
//!   resolver said can become a second reply.
//! - A line is at most 512 octets with its CRLF (RFC 5321 §4.5.3.1.5) and ASCII (RFC 5321 §2.4).
//! - The class of the enhanced code is that of the reply code (RFC 2034 §4).
//! - The 250 after DATA is made by `Reply::accepted` and nothing else, from a receipt that only a committed
//!   message has.
//!
//! RFC 5321 §4.2, RFC 2034, RFC 3463, RFC 5248.

use std::borrow::Cow;
use std::fmt::Display;

use crate::smtp::Backend;

/// Octets of text that still fit a reply line: 512 less the code, a separator, an enhanced code and CRLF.
const MAX_TEXT: usize = 480;

/// One reply, of one line or several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    code: u16,
    /// Subject and detail of RFC 3463, such as `1.1`: the class is always the code's first digit.
    detail: Option<Cow<'static, str>>,
    lines: Vec<String>,
}

impl Reply {
    /// A reply with an enhanced code, given without its class: `(550, "1.1", …)` is `550 5.1.1 …`.
    pub(crate) fn new(code: u16, detail: &'static str, text: impl Display) -> Reply {
        Reply { code, detail: Some(Cow::Borrowed(detail)), lines: vec![clean(&text.to_string())] }
    }

    /// A reply that carries no enhanced code: the greeting, EHLO and 354 (RFC 2034 §4).
    pub(crate) fn bare(code: u16, text: impl Display) -> Reply {
        Reply { code, detail: None, lines: vec![clean(&text.to_string())] }
    }

    pub(crate) fn and(mut self, text: impl Display) -> Reply {
        self.lines.push(clean(&text.to_string()));
        self
    }

    /// A refusal from further down the road, whose code and enhanced code are not ours. What is not a
    /// negative reply becomes a temporary error: only `accepted` may say yes.
    pub(crate) fn refusal(code: u16, enhanced: &str, text: impl Display) -> Reply {
        let code = if (400..=599).contains(&code) { code } else { 451 };
        let detail = match enhanced.split_once('.') {
            Some((_class, detail)) if is_detail(detail) => Cow::Owned(detail.to_owned()),
            _ => Cow::Borrowed("0.0"),
        };
        Reply { code, detail: Some(detail), lines: vec![clean(&text.to_string())] }
    }

    /// The 250 that takes responsibility for a message. RFC 5321 §4.2.5: said only once it is safe.
    pub(crate) fn accepted<B: Backend>(receipt: &B::Receipt) -> Reply {
        Reply::new(250, "0.0", format_args!("Accepted: {}", B::name(receipt)))
    }

    pub(crate) fn code(&self) -> u16 {
        self.code
    }

    /// Whether it says no, now or for good.
    pub(crate) fn is_negative(&self) -> bool {
        self.code >= 400
    }

    pub(crate) fn write_to(&self, out: &mut Vec<u8>) {
        let last = self.lines.len().saturating_sub(1);
        for (i, line) in self.lines.iter().enumerate() {
            out.extend_from_slice(self.code.to_string().as_bytes());
            out.push(if i == last { b' ' } else { b'-' });
            if let Some(detail) = &self.detail {
                out.extend_from_slice(format!("{}.{detail} ", self.code / 100).as_bytes());
            }
            out.extend_from_slice(line.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
}

impl Display for Reply {
    /// For the log: the last line.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some(detail) = &self.detail {
            write!(f, " {}.{detail}", self.code / 100)?;
        }
        write!(f, " {}", self.lines.last().map_or("", String::as_str))
    }
}

/// RFC 3463 §2: one to three digits, a dot, one to three digits.
fn is_detail(text: &str) -> bool {
    let number = |n: &str| (1..=3).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit());
    text.split_once('.').is_some_and(|(subject, detail)| number(subject) && number(detail))
}

fn clean(text: &str) -> String {
    let printable = |c: char| match c {
        ' '..='~' => c,
        c if c.is_control() || c.is_whitespace() => ' ',
        _ => '?',
    };
    text.chars().take(MAX_TEXT).map(printable).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wire(reply: &Reply) -> String {
        let mut out = Vec::new();
        reply.write_to(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn one_line_and_several() {
        assert_eq!(wire(&Reply::new(550, "1.1", "No such inbox")), "550 5.1.1 No such inbox\r\n");
        let hello = Reply::bare(250, "mx.agents.example").and("PIPELINING").and("HELP");
        assert_eq!(wire(&hello), "250-mx.agents.example\r\n250-PIPELINING\r\n250 HELP\r\n");
    }

    #[test]
    fn a_refusal_never_says_yes() {
        assert_eq!(wire(&Reply::refusal(250, "2.0.0", "fine")), "451 4.0.0 fine\r\n");
        assert_eq!(wire(&Reply::refusal(550, "5.7.1", "DMARC")), "550 5.7.1 DMARC\r\n");
        assert_eq!(
            wire(&Reply::refusal(451, "5.7.1", "class is the code's")),
            "451 4.7.1 class is the code's\r\n"
        );
        assert_eq!(wire(&Reply::refusal(0, "x\r\n250 ok", "?")), "451 4.0.0 ?\r\n");
    }

    proptest! {
        /// Whatever a refusal quotes, it stays one line of at most 512 octets (RFC 5321 §4.5.3.1.5).
        #[test]
        fn no_text_can_forge_a_second_reply(code: u16, enhanced: String, text: String) {
            let line = wire(&Reply::refusal(code, &enhanced, &text));
            prop_assert!(line.len() <= 512);
            prop_assert!(line.ends_with("\r\n"));
            prop_assert!(line[..line.len() - 2].bytes().all(|b| (b' '..=b'~').contains(&b)));
            prop_assert!(line.starts_with('4') || line.starts_with('5'));
        }
    }
}
