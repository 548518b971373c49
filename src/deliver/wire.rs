//! The bytes under the client: a socket in clear or in TLS, and messages in the form that DATA wants.
//!
//! Promises: what we send holds CR and LF only as CRLF (SMTP smuggling has two ends: CVE-2023-51764 and its
//! kin need a sender that lets a lone LF through), and every line that begins with a dot has it doubled.
//!
//! RFC 5321 §2.3.8 (lines), §4.5.2 (transparency).

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// A connection in one of its two states.
pub(crate) enum Wire {
    Clear(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Wire {
    pub(crate) async fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Wire::Clear(stream) => stream.read(buffer).await,
            Wire::Tls(stream) => stream.read(buffer).await,
        }
    }

    pub(crate) async fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Wire::Clear(stream) => stream.write_all(bytes).await,
            Wire::Tls(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
        }
    }
}

/// A message that may be sent: only CRLF ends a line, dots are doubled, the final dot is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireMessage {
    stuffed: Vec<u8>,
    /// Octets of the message itself, for SIZE (RFC 1870 §5).
    pub(crate) size: usize,
    pub(crate) needs_8bit: bool,
    pub(crate) needs_smtputf8: bool,
}

/// The message holds a CR or LF that does not belong to a CRLF.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the message holds a bare CR or LF at octet {0}, which is never sent")]
pub struct BareLineEnd(pub usize);

impl WireMessage {
    /// The message from its parts (signatures, then the stored message), which are joined.
    pub fn new(parts: &[&[u8]]) -> Result<WireMessage, BareLineEnd> {
        let size: usize = parts.iter().map(|part| part.len()).sum();
        let mut stuffed = Vec::with_capacity(size + size / 64 + 16);
        let mut in_header = true;
        let mut message = WireMessage { stuffed: Vec::new(), size, needs_8bit: false, needs_smtputf8: false };
        let mut at = 0;
        let mut line_start = true;
        for part in parts {
            for line in part.split_inclusive(|b| *b == b'\n') {
                let text = line.strip_suffix(b"\r\n").unwrap_or(line);
                if let Some(bare) = text.iter().position(|b| *b == b'\r' || *b == b'\n') {
                    return Err(BareLineEnd(at + bare));
                }
                if line_start && text.first() == Some(&b'.') {
                    stuffed.push(b'.');
                }
                if line_start && text.is_empty() {
                    in_header = false;
                }
                if !text.is_ascii() {
                    message.needs_8bit = true;
                    // RFC 6532 §3: octets above 127 in a header are what SMTPUTF8 is for.
                    message.needs_smtputf8 |= in_header;
                }
                stuffed.extend_from_slice(line);
                line_start = line.ends_with(b"\r\n");
                at += line.len();
            }
        }
        if !line_start {
            stuffed.extend_from_slice(b"\r\n");
        }
        stuffed.extend_from_slice(b".\r\n");
        message.stuffed = stuffed;
        Ok(message)
    }

    /// What follows the 354, with the final dot.
    pub(crate) fn stuffed(&self) -> &[u8] {
        &self.stuffed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stuffed(text: &str) -> String {
        String::from_utf8(WireMessage::new(&[text.as_bytes()]).unwrap().stuffed).unwrap()
    }

    #[test]
    fn dots_at_the_begin_of_a_line_are_doubled() {
        assert_eq!(stuffed("A: b\r\n\r\n.\r\n..x\r\na.b\r\n"), "A: b\r\n\r\n..\r\n...x\r\na.b\r\n.\r\n");
        assert_eq!(stuffed("A: b\r\n\r\nno end"), "A: b\r\n\r\nno end\r\n.\r\n");
        // A dot at the seam of two parts is no begin of a line.
        let seam = WireMessage::new(&[b"A: b", b".c\r\n\r\n"]).unwrap();
        assert_eq!(seam.stuffed(), b"A: b.c\r\n\r\n.\r\n");
        assert_eq!(seam.size, 10);
    }

    /// SMTP smuggling, CVE-2023-51764/-51765/-51766: the sender's half.
    #[test]
    fn no_bare_line_end_is_ever_sent() {
        for text in ["a\nb", "a\rb", "a\r\n.\n", "a\n.\r\n", "\r\r\n.\r\r\n", "a\r", "a\r\r\n"] {
            assert!(WireMessage::new(&[text.as_bytes()]).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn what_the_next_hop_must_offer() {
        let of = |text: &str| {
            let m = WireMessage::new(&[text.as_bytes()]).unwrap();
            (m.needs_8bit, m.needs_smtputf8)
        };
        assert_eq!(of("A: b\r\n\r\nplain\r\n"), (false, false));
        assert_eq!(of("A: b\r\n\r\nGrüße\r\n"), (true, false));
        assert_eq!(of("To: <jürgen@x.example>\r\n\r\nplain\r\n"), (true, true));
    }
}
