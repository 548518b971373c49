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

    /// How it is encrypted, in words; `None` in clear.
    pub(crate) fn protection(&self) -> Option<String> {
        match self {
            Wire::Clear(_) => None,
            Wire::Tls(stream) => Some(crate::tls::describe(stream.get_ref().1)),
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
            let mut rest = *part;
            while !rest.is_empty() {
                let end = memchr::memchr(b'\n', rest).map_or(rest.len(), |at| at + 1);
                let (line, after) = rest.split_at(end);
                rest = after;
                let text = line.strip_suffix(b"\r\n").unwrap_or(line);
                if let Some(bare) = memchr::memchr2(b'\r', b'\n', text) {
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
    use proptest::prelude::*;

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

    /// Octets that are likely to matter, in parts cut anywhere.
    fn parts() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let chunk = prop_oneof![
            4 => Just(b"\r\n".to_vec()),
            2 => Just(b"\r\n.\r\n".to_vec()),
            2 => Just(b".".to_vec()),
            1 => Just(b"\n".to_vec()),
            1 => Just(b"\r".to_vec()),
            4 => "[a-z.]{0,9}".prop_map(String::into_bytes),
        ];
        let part = proptest::collection::vec(chunk, 0..12).prop_map(|chunks| chunks.concat());
        proptest::collection::vec(part, 1..4)
    }

    proptest! {
        /// Whatever the message: it is not sent, or its lines end with CRLF alone, it has one end, and a receiver
        /// that takes the dots off has what was to be sent.
        #[test]
        fn what_is_sent_has_one_end_and_arrives_as_it_was(parts in parts()) {
            let whole = parts.concat();
            let bare = |at: usize| match whole[at] {
                b'\r' => whole.get(at + 1) != Some(&b'\n'),
                b'\n' => at == 0 || whole[at - 1] != b'\r',
                _ => false,
            };
            let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            let Ok(message) = WireMessage::new(&slices) else {
                // A CRLF that two parts share is refused as well: nobody makes such parts.
                let split = parts.windows(2).any(|two| two[0].ends_with(b"\r"));
                prop_assert!(split || (0..whole.len()).any(bare));
                return Ok(());
            };
            prop_assert!(!(0..whole.len()).any(bare));
            let sent = [b"\r\n", message.stuffed()].concat();
            let ends: Vec<usize> = (0..sent.len() - 4).filter(|&at| sent[at..].starts_with(b"\r\n.\r\n")).collect();
            prop_assert_eq!(ends, vec![sent.len() - 5]);
            let lines = sent[2..sent.len() - 3].split_inclusive(|&b| b == b'\n');
            let received: Vec<u8> = lines.flat_map(|line| line.strip_prefix(b".").unwrap_or(line).to_vec()).collect();
            let complete = whole.is_empty() || whole.ends_with(b"\r\n");
            let expected = if complete { whole } else { [whole, b"\r\n".to_vec()].concat() };
            prop_assert_eq!(received, expected);
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
