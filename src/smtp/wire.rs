//! The connection as the session sees it: lines in, replies out, both bounded.
//!
//! - Replies are gathered and written at once when the client's pipeline is used up (RFC 2920 §3.2), so that
//!   a batch of commands costs one write, and one reply is never cut in two.
//! - `line` and `fill` can be dropped while they wait: no octet is lost, in or out.
//! - Deadlines are the caller's: nothing here waits by a clock.

use std::io;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::config::limits;
use crate::smtp::reply::Reply;

/// Octets read at once where a command is awaited: a connection that waits holds no more than this.
const READ_LINE: usize = 1024;

/// Octets read at once inside a message; a buffer that holds no whole line is never longer than this and one line.
const READ: usize = 16 * 1024;

/// Why no further line comes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("the peer closed the connection")]
    Closed,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("CR without LF in a command")]
    BareCr,
    #[error("LF without CR in a command")]
    BareLf,
    #[error("a line without an end")]
    TooLong,
}

pub(crate) struct Wire<S> {
    stream: S,
    input: BytesMut,
    output: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(crate) fn new(stream: S) -> Wire<S> {
        Wire { stream, input: BytesMut::new(), output: BytesMut::new() }
    }

    /// Octets that were received and not yet looked at.
    pub(crate) fn received(&self) -> &[u8] {
        &self.input
    }

    /// Marks octets of `received` as used.
    pub(crate) fn consume(&mut self, octets: usize) {
        self.input.advance(octets.min(self.input.len()));
    }

    pub(crate) fn say(&mut self, reply: &Reply) {
        let mut line = Vec::with_capacity(128);
        reply.write_to(&mut line);
        self.output.extend_from_slice(&line);
    }

    /// The next line without its CRLF.
    pub(crate) async fn line(&mut self) -> Result<Vec<u8>, WireError> {
        loop {
            if let Some(length) = find_line(&self.input)? {
                let line = self.input.get(..length).unwrap_or_default().to_vec();
                self.consume(length + 2);
                return Ok(line);
            }
            if self.input.is_empty() {
                // What a message needed is given back before the next wait.
                self.input = BytesMut::with_capacity(READ_LINE);
            }
            self.read(READ_LINE).await?;
        }
    }

    /// Waits for more octets. What we have to say is said first: the client may be waiting for it.
    pub(crate) async fn fill(&mut self) -> Result<(), WireError> {
        self.read(READ).await
    }

    async fn read(&mut self, most: usize) -> Result<(), WireError> {
        self.flush().await?;
        self.input.reserve(most);
        match (&mut self.stream).take(most as u64).read_buf(&mut self.input).await? {
            0 => Err(WireError::Closed),
            _ => Ok(()),
        }
    }

    pub(crate) async fn flush(&mut self) -> Result<(), WireError> {
        while !self.output.is_empty() {
            if self.stream.write_buf(&mut self.output).await? == 0 {
                return Err(WireError::Closed);
            }
        }
        self.output = BytesMut::new();
        // TLS keeps records of its own until it is told.
        Ok(self.stream.flush().await?)
    }

    /// Says what is left to say and closes our direction.
    pub(crate) async fn finish(&mut self) -> Result<(), WireError> {
        self.flush().await?;
        Ok(self.stream.shutdown().await?)
    }

    /// Reads on and throws away, until the peer closes: a socket closed over unread octets sends a reset,
    /// and the reset can overtake the reply that says what was wrong. The caller limits the time.
    pub(crate) async fn drain(&mut self) {
        loop {
            self.input.clear();
            self.input.reserve(READ);
            if !matches!((&mut self.stream).take(READ as u64).read_buf(&mut self.input).await, Ok(1..)) {
                return;
            }
        }
    }

    pub(crate) fn into_stream(self) -> S {
        self.stream
    }
}

/// Where the first line ends, if it does. Only CRLF ends a line (RFC 5321 §2.3.8).
fn find_line(input: &[u8]) -> Result<Option<usize>, WireError> {
    let end = input.iter().position(|&b| b == b'\r' || b == b'\n');
    match end {
        Some(at) if at + 2 > limits::SMTP_LONGEST_LINE => Err(WireError::TooLong),
        None if input.len() >= limits::SMTP_LONGEST_LINE => Err(WireError::TooLong),
        None => Ok(None),
        Some(at) if input.get(at) == Some(&b'\n') => Err(WireError::BareLf),
        Some(at) => match input.get(at + 1) {
            Some(b'\n') => Ok(Some(at)),
            Some(_) => Err(WireError::BareCr),
            None => Ok(None),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(mut input: &[u8]) -> (Vec<Vec<u8>>, String) {
        let mut lines = Vec::new();
        loop {
            match find_line(input) {
                Ok(Some(length)) => {
                    lines.push(input[..length].to_vec());
                    input = &input[length + 2..];
                }
                Ok(None) => return (lines, String::new()),
                Err(error) => return (lines, error.to_string()),
            }
        }
    }

    #[test]
    fn only_crlf_ends_a_line() {
        assert_eq!(lines(b"NOOP\r\nQUIT\r\nHE"), (vec![b"NOOP".to_vec(), b"QUIT".to_vec()], String::new()));
        assert_eq!(lines(b"NOOP\r"), (vec![], String::new()));
        assert_eq!(lines(b"NOOP\nQUIT\r\n").1, "LF without CR in a command");
        assert_eq!(lines(b"NOOP\rQUIT\r\n").1, "CR without LF in a command");
        assert_eq!(lines(b"NOOP\r\r\n").1, "CR without LF in a command");
        assert_eq!(lines(&b"x".repeat(limits::SMTP_LONGEST_LINE)).1, "a line without an end");
    }

    proptest! {
        /// What is found in the whole is found in any beginning of it that is long enough, and no earlier.
        #[test]
        fn a_cut_changes_nothing(input in "[ab\r\n]{0,30}", cut in 0usize..30) {
            let input = input.into_bytes();
            let head = &input[..cut.min(input.len())];
            let whole = format!("{:?}", find_line(&input));
            let early = format!("{:?}", find_line(head));
            prop_assert!(early == whole || early == "Ok(None)", "{early} then {whole}");
        }
    }
}
