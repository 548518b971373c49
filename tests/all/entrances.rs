//! Ways into the SMTP server beside port 25 in clear: TLS from the first octet, a load balancer in front.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::HandshakeKind;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::smtp::{Smtp, trusting};
use crate::world::{PATIENCE, mail, own_address, server::TestServer};

const ADA: &str = "ada@agents.example";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_says_who_calls_and_is_believed_only_from_its_network() {
    let proxy = own_address();
    let server =
        TestServer::new().inbox("ada").env("GATEPOST_SMTP__PROXY_FROM", &proxy.to_string()).start().await;
    let letter = |subject: &str| {
        mail::letter("bob@remote.example", ADA, subject, &format!("{subject}@remote.example"), "", "Hi Ada")
    };
    let header =
        [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".as_slice(), &[192, 0, 2, 7, 10, 0, 0, 1, 48, 57, 0, 25]]
            .concat();
    let mut smtp = Smtp::connect_from(proxy, server.smtp, &header).await.unwrap();
    assert_eq!(smtp.deliver("bob@remote.example", &[ADA], &letter("through")).await.unwrap().code, 250);
    let message = server.message(ADA, "through").await;
    let raw = server.raw(ADA, message["message_id"].as_str().unwrap()).await;
    assert!(
        mail::header(&raw, "Received").unwrap().contains("[192.0.2.7]"),
        "{}",
        String::from_utf8_lossy(&raw)
    );

    let refused = Smtp::connect_from(proxy, server.smtp, b"EHLO client.example\r\n").await.err().unwrap();
    assert!(refused.to_string().contains("554"), "{refused}");
    let refused = Smtp::connect_from(proxy, server.smtp, b"PROXY TCP4 192.0.2.7 10.0.0.1 1 25\r\n")
        .await
        .err()
        .unwrap();
    assert!(refused.to_string().contains("version 1"), "{refused}");
    // From anywhere else there is no such header, and there need not be one.
    server.receive("bob@remote.example", ADA, &letter("direct")).await;
    let stranger = Smtp::connect_from(own_address(), server.smtp, &header).await;
    assert!(
        stranger.is_err()
            || stranger.unwrap().command("EHLO a.example").await.map_or(true, |r| r.code >= 500)
    );
}

/// mox #237, chasquid #64, maddy #730: TLS tickets on port 25 lost all mail from one large sender. None are given,
/// and nothing is resumed, in either version of TLS and on either port.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_tickets_and_no_resumption_on_any_port() {
    let tls = std::net::SocketAddr::new(own_address(), 2465);
    let server =
        TestServer::new().inbox("ada").env("GATEPOST_SMTP__LISTEN_TLS", &tls.to_string()).start().await;
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let config = Arc::new(trusting(&[version]));
        for address in [server.smtp, tls, server.smtp, tls] {
            let seen = through_tls(address, address == tls, config.clone()).await;
            assert_eq!(seen, (Some(HandshakeKind::Full), 0), "{version:?} on {address}");
        }
    }
}

/// A conversation inside TLS: the kind of its handshake, and how many tickets came with it.
async fn through_tls(
    address: SocketAddr,
    implicit: bool,
    config: Arc<rustls::ClientConfig>,
) -> (Option<HandshakeKind>, u32) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    if !implicit {
        say(&mut stream, "", "220 ").await;
        say(&mut stream, "EHLO client.example\r\n", "250 HELP").await;
        say(&mut stream, "STARTTLS\r\n", "220 ").await;
    }
    let name = rustls::pki_types::ServerName::try_from("mx.agents.example").unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.unwrap();
    if implicit {
        say(&mut stream, "", "220 ").await;
    }
    say(&mut stream, "EHLO client.example\r\n", "250 HELP").await;
    say(&mut stream, "QUIT\r\n", "221 ").await;
    let connection = stream.get_ref().1;
    (connection.handshake_kind(), connection.tls13_tickets_received())
}

async fn say(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), line: &str, wait: &str) {
    stream.write_all(line.as_bytes()).await.unwrap();
    let mut heard = Vec::new();
    while !String::from_utf8_lossy(&heard).contains(wait) {
        let read = tokio::time::timeout(PATIENCE, stream.read_buf(&mut heard)).await;
        assert_ne!(read.expect("the server says nothing").unwrap(), 0, "{line}: {heard:?}");
    }
}
