//! An SMTP client of our own: scriptable, in clear or after STARTTLS, and free to be rude. It keeps the dialogue, so
//! that a failing test can show it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

pub struct Smtp {
    wire: BufReader<Box<dyn Wire>>,
    /// `c -> …` and `c <- …`, as it went.
    pub transcript: String,
    patience: Duration,
}

/// A reply, all its lines.
#[derive(Debug, Clone)]
pub struct Reply {
    pub code: u16,
    pub text: String,
}

impl Smtp {
    /// Connects and reads the greeting.
    pub async fn connect(address: SocketAddr) -> io::Result<Smtp> {
        Smtp::over(timeout(Duration::from_secs(60), TcpStream::connect(address)).await??).await
    }

    /// Connects from an address of this machine and says something before it reads the greeting.
    pub async fn connect_from(from: IpAddr, address: SocketAddr, first: &[u8]) -> io::Result<Smtp> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(from, 0))?;
        let mut stream = timeout(Duration::from_secs(60), socket.connect(address)).await??;
        stream.write_all(first).await?;
        Smtp::over(stream).await
    }

    /// Reads the greeting on a connection that is there.
    pub async fn over(stream: TcpStream) -> io::Result<Smtp> {
        stream.set_nodelay(true)?;
        let mut smtp = Smtp {
            wire: BufReader::new(Box::new(stream)),
            transcript: String::new(),
            patience: Duration::from_secs(60),
        };
        let greeting = smtp.reply().await?;
        if greeting.code != 220 {
            return Err(io::Error::other(format!("greeted with {greeting:?}")));
        }
        Ok(smtp)
    }

    /// One line, one reply.
    pub async fn command(&mut self, line: &str) -> io::Result<Reply> {
        self.write(format!("{line}\r\n").as_bytes()).await?;
        self.reply().await
    }

    /// A command whose reply must have this code.
    #[track_caller]
    pub fn expect<'a>(&'a mut self, line: &'a str, code: u16) -> impl Future<Output = Reply> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let reply = self.command(line).await;
            match reply {
                Ok(reply) if reply.code == code => reply,
                other => panic!("{caller}: {line:?} should give {code}, gave {other:?}\n{}", self.transcript),
            }
        }
    }

    /// Bytes as they are, whose reply must have this code.
    pub async fn expect_bytes(&mut self, bytes: &[u8], code: u16) {
        self.write(bytes).await.expect("the connection holds");
        let reply = self.reply().await;
        assert!(
            matches!(&reply, Ok(reply) if reply.code == code),
            "{code}, not {reply:?}\n{}",
            self.transcript
        );
    }

    /// Bytes as they are.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned();
        self.transcript.push_str(&format!("c -> {}\n", shown.trim_end()));
        timeout(self.patience, async {
            self.wire.get_mut().write_all(bytes).await?;
            self.wire.get_mut().flush().await
        })
        .await?
    }

    /// The next reply; an error when the server has closed the connection.
    pub async fn reply(&mut self) -> io::Result<Reply> {
        let mut text = String::new();
        loop {
            let mut line = Vec::new();
            timeout(self.patience, (&mut self.wire).take(4096).read_until(b'\n', &mut line)).await??;
            let line = String::from_utf8_lossy(&line).into_owned();
            self.transcript.push_str(&format!("c <- {line}"));
            if line.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if !line.ends_with("\r\n") {
                return Err(io::Error::other(format!("a reply line without CRLF: {line:?}")));
            }
            text.push_str(line.get(4..).unwrap_or("").trim_end());
            if line.as_bytes().get(3) != Some(&b'-') {
                let code = line.get(..3).and_then(|code| code.parse().ok());
                return Ok(Reply { code: code.ok_or_else(|| io::Error::other(line.clone()))?, text });
            }
            text.push('\n');
        }
    }

    /// Has the server hung up? Reads until it has.
    pub async fn closed(&mut self) -> bool {
        let mut rest = Vec::new();
        matches!(timeout(self.patience, self.wire.read_to_end(&mut rest)).await, Ok(Ok(_) | Err(_)))
    }

    /// STARTTLS without looking at the certificate, as opportunistic TLS does.
    pub async fn starttls(mut self) -> Smtp {
        self.expect("EHLO client.example", 250).await;
        self.expect("STARTTLS", 220).await;
        assert!(self.wire.buffer().is_empty(), "something was said in clear after 220");
        let connector = tokio_rustls::TlsConnector::from(Arc::new(trusting(rustls::ALL_VERSIONS)));
        let name = rustls::pki_types::ServerName::try_from("mx.agents.example").expect("name");
        let tls = connector.connect(name, self.wire.into_inner()).await.expect("TLS");
        Smtp { wire: BufReader::new(Box::new(tls)), transcript: self.transcript, patience: self.patience }
    }

    /// EHLO, one transaction, and the reply to the final dot (or the first refusal).
    pub async fn deliver(&mut self, from: &str, to: &[&str], message: &[u8]) -> io::Result<Reply> {
        let hello = self.command("EHLO client.example").await?;
        if hello.code != 250 {
            return Ok(hello);
        }
        self.transaction(from, to, message).await
    }

    /// One transaction in a session that has said EHLO.
    pub async fn transaction(&mut self, from: &str, to: &[&str], message: &[u8]) -> io::Result<Reply> {
        let reply = self.command(&format!("MAIL FROM:<{from}>")).await?;
        if reply.code != 250 {
            return Ok(reply);
        }
        for to in to {
            let reply = self.command(&format!("RCPT TO:<{to}>")).await?;
            if reply.code / 10 != 25 {
                return Ok(reply);
            }
        }
        let reply = self.command("DATA").await?;
        if reply.code != 354 {
            return Ok(reply);
        }
        self.write(&stuffed(message)).await?;
        self.reply().await
    }
}

/// RFC 5321 §4.5.2, with the final dot. The message must be in CRLF lines.
pub fn stuffed(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + 64);
    for line in message.split_inclusive(|b| *b == b'\n') {
        if line.starts_with(b".") {
            out.push(b'.');
        }
        out.extend_from_slice(line);
    }
    if !out.ends_with(b"\r\n") {
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b".\r\n");
    out
}

/// TLS that takes any certificate.
pub fn trusting(versions: &[&'static rustls::SupportedProtocolVersion]) -> rustls::ClientConfig {
    #[derive(Debug)]
    struct Anything;
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    impl ServerCertVerifier for Anything {
        fn verify_server_cert(
            &self,
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &[rustls::pki_types::CertificateDer<'_>],
            _: &rustls::pki_types::ServerName<'_>,
            _: &[u8],
            _: rustls::pki_types::UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            Ok(ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &rustls::pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            rustls::crypto::aws_lc_rs::default_provider()
                .signature_verification_algorithms
                .supported_schemes()
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("TLS versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anything))
        .with_no_client_auth()
}
