//! Remotes that can be trusted, or not: a certificate authority of the test's own, a mail host with STARTTLS, and a
//! web host that serves an MTA-STS policy.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PublicKeyData as _};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub certificate: CertificateDer<'static>,
    /// Its SubjectPublicKeyInfo.
    pub spki: Vec<u8>,
    pub pem: String,
}

/// A certificate with its key, and the chain that is shown.
pub struct Shown {
    pub chain: Vec<CertificateDer<'static>>,
    pub spki: Vec<u8>,
    key: Vec<u8>,
}

impl Authority {
    pub fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("key");
        let made = params.self_signed(&key).expect("authority");
        let (certificate, pem) = (made.der().clone(), made.pem());
        let spki = key.subject_public_key_info();
        Authority { issuer: Issuer::new(params, key), certificate, spki, pem }
    }

    pub fn sign(&self, name: &str) -> Shown {
        self.sign_until(name, 2096)
    }

    /// For all these names.
    pub fn sign_all(&self, names: Vec<String>) -> Shown {
        self.issue(CertificateParams::new(names).expect("certificate"))
    }

    pub fn sign_until(&self, name: &str, year: i32) -> Shown {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("certificate");
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        self.issue(params)
    }

    fn issue(&self, params: CertificateParams) -> Shown {
        let key = KeyPair::generate().expect("key");
        let made = params.signed_by(&key, &self.issuer).expect("certificate");
        let chain = vec![made.der().clone(), self.certificate.clone()];
        Shown { chain, spki: key.subject_public_key_info(), key: key.serialize_der() }
    }
}

impl Shown {
    fn acceptor(&self) -> TlsAcceptor {
        gatepost::tls::install_provider();
        let key = PrivateKeyDer::try_from(self.key.clone()).expect("key");
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), key)
            .expect("certificate");
        TlsAcceptor::from(Arc::new(config))
    }
}

#[derive(Default)]
struct Ledger {
    /// Recipient, and whether it came in TLS.
    taken: Vec<(String, bool)>,
    /// The MAIL command of each message, with its first recipient.
    mails: Vec<(String, String)>,
    tls: Option<TlsAcceptor>,
    /// REQUIRETLS is offered inside TLS.
    keeps_tls: bool,
}

/// A mail host for everything, on port 2526.
pub struct MailHost {
    pub address: SocketAddr,
    ledger: Arc<Mutex<Ledger>>,
    task: JoinHandle<()>,
}

impl MailHost {
    pub async fn start(shown: Option<&Shown>) -> MailHost {
        let listener = TcpListener::bind((super::own_address(), 2526)).await.expect("mail host");
        let address = listener.local_addr().expect("mail host");
        let ledger = Arc::new(Mutex::new(Ledger { tls: shown.map(Shown::acceptor), ..Ledger::default() }));
        let shared = ledger.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let ledger = shared.clone();
                tokio::spawn(async move {
                    let tls = ledger.lock().unwrap().tls.clone();
                    let mut wire = BufReader::new(stream);
                    wire.write_all(b"220 host.example ESMTP\r\n").await.ok()?;
                    if converse(&mut wire, &ledger, tls.is_some(), false).await? {
                        let stream = tls?.accept(wire.into_inner()).await.ok()?;
                        converse(&mut BufReader::new(stream), &ledger, false, true).await?;
                    }
                    Some(())
                });
            }
        });
        MailHost { address, ledger, task }
    }

    /// New connections see this certificate, or no STARTTLS.
    pub fn show(&self, shown: Option<&Shown>) {
        self.ledger.lock().unwrap().tls = shown.map(Shown::acceptor);
    }

    /// From now on REQUIRETLS is offered inside TLS.
    pub fn keep_tls(&self) {
        self.ledger.lock().unwrap().keeps_tls = true;
    }

    /// The MAIL command of the one message that this recipient got first.
    pub fn mail_command(&self, recipient: &str) -> Option<String> {
        let ledger = self.ledger.lock().unwrap();
        ledger.mails.iter().find(|(to, _)| to == recipient).map(|(_, mail)| mail.clone())
    }

    /// What was taken by this recipient: whether in TLS, each time.
    pub fn taken(&self, recipient: &str) -> Vec<bool> {
        let ledger = self.ledger.lock().unwrap();
        ledger.taken.iter().filter(|(to, _)| to == recipient).map(|(_, tls)| *tls).collect()
    }
}

impl Drop for MailHost {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// `Some(true)`: TLS begins now. One message a connection, so that every message shows how the host is now.
async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut BufReader<S>,
    ledger: &Mutex<Ledger>,
    offer: bool,
    tls: bool,
) -> Option<bool> {
    let (mut to, mut body, mut mail) = (Vec::<String>::new(), false, String::new());
    let keeps_tls = ledger.lock().unwrap().keeps_tls;
    loop {
        let mut line = String::new();
        if wire.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        if body && line != ".\r\n" {
            continue;
        }
        let verb = line.get(..4).unwrap_or("").to_ascii_uppercase();
        let reply = match verb.as_str() {
            _ if body => {
                let all = std::mem::take(&mut to);
                let mails = all.first().map(|to| (to.clone(), std::mem::take(&mut mail)));
                ledger.lock().unwrap().mails.extend(mails);
                ledger.lock().unwrap().taken.extend(all.into_iter().map(|to| (to, tls)));
                wire.write_all(b"250 2.0.0 taken\r\n").await.ok()?;
                return None;
            }
            "EHLO" if offer => "250-host.example\r\n250-STARTTLS\r\n250 8BITMIME",
            "EHLO" if tls && keeps_tls => "250-host.example\r\n250-REQUIRETLS\r\n250 8BITMIME",
            "EHLO" => "250-host.example\r\n250 8BITMIME",
            "MAIL" => {
                mail = line.trim_end().to_owned();
                "250 2.1.0 ok"
            }
            "STAR" if offer => {
                wire.write_all(b"220 go on\r\n").await.ok()?;
                return Some(true);
            }
            "RCPT" => {
                let address = line.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
                to.push(address.map(|(address, _)| address.to_owned()).unwrap_or_default());
                "250 2.1.5 ok"
            }
            "DATA" => {
                body = true;
                "354 go on"
            }
            _ => "250 2.0.0 ok",
        };
        wire.write_all(format!("{reply}\r\n").as_bytes()).await.ok()?;
    }
}

/// Serves one text over HTTPS on port 8443.
pub struct PolicyHost {
    pub address: SocketAddr,
    /// What it answers, whole; and the paths that were asked for.
    answer: Arc<Mutex<String>>,
    asked: Arc<Mutex<Vec<String>>>,
    posted: Arc<Mutex<Vec<Vec<u8>>>>,
    task: JoinHandle<()>,
}

impl PolicyHost {
    pub async fn start(shown: &Shown, text: &str) -> PolicyHost {
        let listener = TcpListener::bind((super::own_address(), 8443)).await.expect("web host");
        let address = listener.local_addr().expect("web host");
        let answer = Arc::new(Mutex::new(plain_text(text)));
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let posted = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let (shared, paths) = (answer.clone(), asked.clone());
        let (heard, tls) = (posted.clone(), shown.acceptor());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, asked) = (shared.clone(), paths.clone());
                let (posted, tls) = (heard.clone(), tls.clone());
                tokio::spawn(async move {
                    let mut wire = BufReader::new(tls.accept(stream).await.ok()?);
                    let mut header = String::new();
                    while wire.read_line(&mut header).await.ok()? > 2 {}
                    if header.starts_with("POST ") {
                        let header = header.to_ascii_lowercase();
                        let length =
                            header.split("content-length:").nth(1)?.lines().next()?.trim().parse().ok()?;
                        let mut body = vec![0; length];
                        wire.read_exact(&mut body).await.ok()?;
                        posted.lock().unwrap().push(body);
                        let answer = "HTTP/1.1 201 Created\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                        wire.write_all(answer.as_bytes()).await.ok()?;
                        return wire.shutdown().await.ok();
                    }
                    let path = header.split(' ').nth(1).unwrap_or_default().to_owned();
                    asked.lock().unwrap().push(path);
                    let answer = answer.lock().unwrap().clone();
                    wire.write_all(answer.as_bytes()).await.ok()?;
                    wire.shutdown().await.ok()
                });
            }
        });
        PolicyHost { address, answer, asked, posted, task }
    }

    /// What was posted to it.
    pub fn posted(&self) -> Vec<Vec<u8>> {
        self.posted.lock().unwrap().clone()
    }

    /// From now on this; nothing is a 404.
    pub fn serve(&self, text: &str) {
        self.answer(&plain_text(text));
    }

    /// From now on this whole answer.
    pub fn answer(&self, answer: &str) {
        *self.answer.lock().unwrap() = answer.to_owned();
    }

    /// The paths that were asked for, each time.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for PolicyHost {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The answer with this text; nothing is a 404.
fn plain_text(text: &str) -> String {
    match text.is_empty() {
        true => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned(),
        false => document("text/plain; charset=utf-8", text),
    }
}

pub fn document(kind: &str, text: &str) -> String {
    let length = text.len();
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}"
    )
}
