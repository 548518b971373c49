//! What a remote server answers: bytes become a reply, bounded, without sockets.
//!
//! Promises: at most 2 KiB a line and 100 lines a reply, whatever the remote sends; the text that is kept is
//! printable ASCII, so that it can stand in a log, a bounce or an API answer.
//!
//! RFC 5321 §4.2 (replies), §4.5.3.1.5 (512 octets, which real servers exceed), RFC 2034/3463 (enhanced codes).

use std::fmt;

/// Octets of one line: four times what RFC 5321 §4.5.3.1.5 allows.
pub(crate) const MAX_LINE: usize = 2 * 1024;
/// Lines of one reply; the longest EHLO answers have about 20.
pub(crate) const MAX_LINES: usize = 100;
/// Characters of a reply that are kept for people to read.
const MAX_TEXT: usize = 1_000;

/// A complete reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) code: u16,
    /// Without codes and line ends.
    pub(crate) lines: Vec<String>,
}

/// Why what came is not a reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReplyError {
    #[error("the remote sent a line longer than 2 KiB")]
    LineTooLong,
    #[error("the remote sent a reply of more than 100 lines")]
    TooManyLines,
    #[error("the remote's replies are out of step: DATA was answered like a message that arrived")]
    OutOfStep,
    #[error("the remote did not answer in SMTP: {0:?}")]
    Malformed(String),
}

/// What the first digit says, RFC 5321 §4.2.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Done,
    Continue,
    Temporary,
    Permanent,
}

impl Reply {
    /// Takes the first complete reply off `buffer`, if there is one yet: the reply and the octets it took.
    pub(crate) fn parse(buffer: &[u8]) -> Result<Option<(Reply, usize)>, ReplyError> {
        let mut lines = Vec::new();
        let mut at = 0;
        loop {
            let rest = buffer.get(at..).unwrap_or_default();
            let Some(end) = rest.iter().position(|b| *b == b'\n') else {
                return if rest.len() > MAX_LINE { Err(ReplyError::LineTooLong) } else { Ok(None) };
            };
            if end > MAX_LINE {
                return Err(ReplyError::LineTooLong);
            }
            let line = rest.get(..end).unwrap_or_default();
            at += end + 1;
            let (code, last, text) = parse_line(line.strip_suffix(b"\r").unwrap_or(line))?;
            lines.push(text);
            if lines.len() > MAX_LINES {
                return Err(ReplyError::TooManyLines);
            }
            // RFC 5321 §4.2.1: the code of the last line is the one that counts.
            if last {
                return Ok(Some((Reply { code, lines }, at)));
            }
        }
    }

    pub(crate) fn class(&self) -> Class {
        match self.code {
            200..=299 => Class::Done,
            300..=399 => Class::Continue,
            400..=499 => Class::Temporary,
            _ => Class::Permanent,
        }
    }

    /// The enhanced status code at the begin of the text, if its class agrees with the code (RFC 2034 §4).
    pub(crate) fn enhanced(&self) -> Option<String> {
        let word = self.lines.first()?.split([' ', '\t']).next()?;
        let mut parts = word.split('.');
        let class: u8 = parts.next()?.parse().ok()?;
        let subject: u16 = parts.next()?.parse().ok()?;
        let detail: u16 = parts.next()?.parse().ok()?;
        let agrees = u16::from(class) == self.code / 100 && matches!(class, 2 | 4 | 5);
        let well_formed = parts.next().is_none() && subject < 1000 && detail < 1000;
        (agrees && well_formed).then(|| format!("{class}.{subject}.{detail}"))
    }
}

impl fmt::Display for Reply {
    /// `550 5.1.1 no such user`, on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text: String = self.lines.join(" ").chars().take(MAX_TEXT).collect();
        write!(f, "{} {}", self.code, text.trim())
    }
}

/// `250-text`, `250 text` or a bare `250`.
fn parse_line(line: &[u8]) -> Result<(u16, bool, String), ReplyError> {
    let malformed = || ReplyError::Malformed(printable(line.get(..80).unwrap_or(line)));
    let digits = line.get(..3).filter(|d| d.iter().all(u8::is_ascii_digit)).ok_or_else(malformed)?;
    let code = digits.iter().fold(0, |n, d| n * 10 + u16::from(d - b'0'));
    if !(200..=599).contains(&code) {
        return Err(malformed());
    }
    let last = match line.get(3) {
        None | Some(b' ') => true,
        Some(b'-') => false,
        Some(_) => return Err(malformed()),
    };
    Ok((code, last, printable(line.get(4..).unwrap_or_default())))
}

/// Remote words may end in a web page or a terminal: only printable ASCII is kept.
fn printable(text: &[u8]) -> String {
    text.iter().map(|b| if (b' '..=b'~').contains(b) { char::from(*b) } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(text: &str) -> Reply {
        Reply::parse(text.as_bytes()).unwrap().unwrap().0
    }

    #[test]
    fn replies_of_one_line_and_of_many() {
        assert_eq!(reply("250\r\n").code, 250);
        let ehlo = reply("250-mx.example\r\n250-SIZE 100\r\n250 PIPELINING\r\n");
        assert_eq!(ehlo.lines, ["mx.example", "SIZE 100", "PIPELINING"]);
        let no = reply("550-5.1.1 no such user\r\n550 5.1.1 sorry\r\n");
        assert_eq!((no.class(), no.enhanced().as_deref()), (Class::Permanent, Some("5.1.1")));
        assert_eq!(no.to_string(), "550 5.1.1 no such user 5.1.1 sorry");
        // A class that contradicts the code says nothing.
        assert_eq!(reply("450 5.1.1 later\r\n").enhanced(), None);
        assert_eq!(reply("550 1.2.3.4 is listed\r\n").enhanced(), None);
    }

    #[test]
    fn half_a_reply_is_none_yet() {
        for text in ["", "2", "250", "250-mx\r\n", "250-mx\r\n250 O"] {
            assert_eq!(Reply::parse(text.as_bytes()), Ok(None), "{text:?}");
        }
        assert_eq!(Reply::parse(b"250 a\r\n354 b\r\n").unwrap().unwrap().1, 7);
    }

    #[test]
    fn nonsense_is_an_error_and_never_held() {
        for text in
            ["HTTP/1.1 400 Bad Request\r\n", "2x0 ok\r\n", "250_ok\r\n", "999 x\r\n", "\r\n", "100 x\r\n"]
        {
            assert!(matches!(Reply::parse(text.as_bytes()), Err(ReplyError::Malformed(_))), "{text:?}");
        }
        assert_eq!(Reply::parse(&[b'2'; MAX_LINE + 1]), Err(ReplyError::LineTooLong));
        let endless = "250-x\r\n".repeat(MAX_LINES + 1);
        assert_eq!(Reply::parse(endless.as_bytes()), Err(ReplyError::TooManyLines));
    }

    #[test]
    fn escape_sequences_of_a_remote_reach_no_terminal() {
        assert_eq!(reply("550 \x1b[2J\u{e9}\r\n").to_string(), "550 ?[2J??");
    }
}
