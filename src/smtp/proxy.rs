//! The PROXY protocol, version 2: a load balancer in front says who really calls, before the client says
//! anything.
//!
//! - Only from the networks in `smtp.proxy_from`, and from them always: whoever could choose to leave it out
//!   could choose an address. From everybody else it is a line that is no command.
//! - Exactly the header's octets are read: what follows belongs to the client, and to TLS where that comes next.
//! - Version 1, a line of text whose end has to be looked for, is refused in words.
//!
//! https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt §2.2 and §5.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use proxy_header::{ParseConfig, ProxyHeader};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

use crate::config::limits;
use crate::smtp::reply::Reply;

/// What every header begins with: twelve octets of signature, version, family, and the length of the rest.
const SIGNATURE: usize = 12;
const START: usize = 16;

/// Why there is no telling who calls.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyError {
    #[error("PROXY protocol version 1 is not taken here: have the proxy send version 2")]
    Version1,
    #[error("A connection from a proxy begins with a PROXY protocol header, version 2")]
    NoHeader,
    #[error("The PROXY protocol header is longer than {} octets", limits::SMTP_PROXY_HEADER)]
    TooLong,
    #[error("The PROXY protocol header did not come in time")]
    Late,
    #[error("the proxy closed the connection: {0}")]
    Io(#[from] io::Error),
}

impl ProxyError {
    /// `None` where nobody is left to hear it.
    pub(crate) fn reply(&self) -> Option<Reply> {
        match self {
            ProxyError::Io(_) => None,
            ProxyError::Late => Some(Reply::new(421, "4.2", self)),
            _ => Some(Reply::new(554, "5.0", self)),
        }
    }
}

/// Who calls, by the word of the proxy; `None` where it calls for itself (a health check).
pub(crate) async fn caller<S: AsyncRead + Unpin>(
    stream: &mut S,
    patience: Duration,
) -> Result<Option<IpAddr>, ProxyError> {
    timeout(patience, read(stream)).await.unwrap_or(Err(ProxyError::Late))
}

async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Option<IpAddr>, ProxyError> {
    let mut header = vec![0; SIGNATURE];
    stream.read_exact(&mut header).await?;
    if header.starts_with(b"PROXY ") {
        return Err(ProxyError::Version1);
    }
    if header != b"\r\n\r\n\0\r\nQUIT\n" {
        return Err(ProxyError::NoHeader);
    }
    let mut start = [0; START - SIGNATURE];
    stream.read_exact(&mut start).await?;
    header.extend_from_slice(&start);
    let [_, _, high, low] = start;
    let length = START + usize::from(u16::from_be_bytes([high, low]));
    if length > limits::SMTP_PROXY_HEADER {
        return Err(ProxyError::TooLong);
    }
    header.resize(length, 0);
    stream.read_exact(header.get_mut(START..).unwrap_or_default()).await?;
    let config = ParseConfig { include_tlvs: false, allow_v1: false, allow_v2: true };
    let (header, _) = ProxyHeader::parse(&header, config).map_err(|_| ProxyError::NoHeader)?;
    Ok(header.proxied_address().map(|address| address.source.ip().to_canonical()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    async fn read_all(mut octets: &[u8]) -> (Result<Option<IpAddr>, ProxyError>, Vec<u8>) {
        let read = caller(&mut octets, limits::SMTP_PROXY_TIME).await;
        (read, octets.to_vec())
    }

    pub(super) fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = (rest.len() as u16).to_be_bytes();
        [b"\r\n\r\n\0\r\nQUIT\n".as_slice(), &[command, family], &length, rest].concat()
    }

    #[tokio::test]
    async fn the_header_and_not_an_octet_more() {
        let v4 = [192, 0, 2, 7, 10, 0, 0, 1, 0x30, 0x39, 0, 25];
        let v6 = [[0x20, 0x01, 0x0d, 0xb8].as_slice(), &[0; 28], &[0, 1, 0, 25]].concat();
        let with_tlv = [v4.as_slice(), &[4, 0, 3, 1, 2, 3]].concat();
        let table = [
            (header(0x21, 0x11, &v4), Some("192.0.2.7")),
            (header(0x21, 0x11, &with_tlv), Some("192.0.2.7")),
            (header(0x21, 0x21, &v6), Some("2001:db8::")),
            (header(0x20, 0x00, &[]), None),
            (header(0x21, 0x00, &[]), None),
        ];
        for (octets, expected) in table {
            let (read, left) = read_all(&[octets, b"EHLO x\r\n".to_vec()].concat()).await;
            assert_eq!(read.unwrap(), expected.map(|ip| ip.parse().unwrap()));
            assert_eq!(left, b"EHLO x\r\n");
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused_in_words() {
        let said = async |octets: &[u8]| {
            let (read, _) = read_all(octets).await;
            read.unwrap_err().reply().map(|reply| reply.to_string()).unwrap_or_default()
        };
        assert!(said(b"PROXY TCP4 192.0.2.7 10.0.0.1 1 25\r\n").await.contains("version 1"));
        assert!(said(b"EHLO friend.example\r\n").await.starts_with("554 5.5.0"));
        assert!(said(&header(0x11, 0x11, &[0; 12])).await.starts_with("554 5.5.0"), "no such version");
        assert!(said(&header(0x21, 0x11, &[0; 4])).await.starts_with("554 5.5.0"), "too short for addresses");
        assert!(said(&header(0x21, 0x11, &[0; 60_000])).await.contains("longer"));
        assert_eq!(said(b"\r\n\r\n\0\r\nQU").await, "");
    }

    /// A proxy that never says who calls is not waited for.
    #[tokio::test]
    async fn a_silent_proxy_is_not_waited_for() {
        let (mut near, _far) = tokio::io::duplex(64);
        assert!(matches!(caller(&mut near, Duration::ZERO).await, Err(ProxyError::Late)));
    }

    proptest! {
        #[test]
        fn any_octets_are_answered(rest: Vec<u8>, command: u8, family: u8) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async {
                let _ = read_all(&rest).await;
                let _ = read_all(&header(command, family, &rest)).await;
            });
        }
    }
}
