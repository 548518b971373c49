//! The SMTP client: one connection to one host, from the greeting to QUIT.
//!
//! Promises: every wait has a deadline (RFC 5321 §4.5.3.2); what the remote said before TLS is forgotten
//! after it; replies are bounded (`reply.rs`); nothing but CRLF lines leaves (`wire.rs`). It decides nothing
//! about routes or retries: it reports what each recipient was answered, and whether the final dot was sent.
//!
//! RFC 5321, RFC 2920 (PIPELINING), RFC 1870 (SIZE), RFC 3207 (STARTTLS), RFC 6152, RFC 6531, RFC 4954 (AUTH),
//! RFC 8689 (REQUIRETLS).

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::address::Address;
use crate::deliver::reply::{Class, Reply, ReplyError};
use crate::deliver::trust::Proof;
use crate::deliver::wire::{Wire, WireMessage};
use crate::store::delivery::TlsDemand;

/// How long a connection is worth waiting for, once every recipient has been refused.
const TAKEN_BACK: Duration = Duration::from_secs(10);
/// RFC 5321 §4.5.3.1.8: a server must take at least 100 recipients, so we never send more.
pub(crate) const MAX_RECIPIENTS: usize = 100;
/// Octets written under one deadline.
const BLOCK: usize = 64 * 1024;

/// How long each step may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadlines {
    /// RFC 5321 has no number; a TCP handshake that takes longer will not become a delivery.
    pub(crate) connect: Duration,
    /// RFC 5321 §4.5.3.2.1: initial 220, five minutes.
    pub(crate) greeting: Duration,
    /// EHLO, STARTTLS, AUTH, RSET: as for MAIL.
    pub(crate) command: Duration,
    pub(crate) tls: Duration,
    /// RFC 5321 §4.5.3.2.2: five minutes.
    pub(crate) mail: Duration,
    /// RFC 5321 §4.5.3.2.3: five minutes.
    pub(crate) rcpt: Duration,
    /// RFC 5321 §4.5.3.2.4: two minutes for the 354.
    pub(crate) data: Duration,
    /// RFC 5321 §4.5.3.2.5: three minutes for each block.
    pub(crate) block: Duration,
    /// RFC 5321 §4.5.3.2.6: ten minutes after the final dot.
    pub(crate) dot: Duration,
    pub(crate) quit: Duration,
}

impl Deadlines {
    /// None longer than this.
    pub(crate) fn at_most(self, longest: Duration) -> Deadlines {
        Deadlines {
            connect: self.connect.min(longest),
            greeting: self.greeting.min(longest),
            command: self.command.min(longest),
            tls: self.tls.min(longest),
            mail: self.mail.min(longest),
            rcpt: self.rcpt.min(longest),
            data: self.data.min(longest),
            block: self.block.min(longest),
            dot: self.dot.min(longest),
            quit: self.quit.min(longest),
        }
    }
}

impl Default for Deadlines {
    fn default() -> Self {
        let minutes = |m: u64| Duration::from_secs(60 * m);
        Deadlines {
            connect: Duration::from_secs(30),
            greeting: minutes(5),
            command: minutes(5),
            tls: minutes(1),
            mail: minutes(5),
            rcpt: minutes(5),
            data: minutes(2),
            block: minutes(3),
            dot: minutes(10),
            quit: Duration::from_secs(5),
        }
    }
}

/// Where in the dialogue something went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Connect,
    Greeting,
    Hello,
    StartTls,
    Auth,
    Mail,
    Rcpt,
    Data,
    Body,
    /// After the final dot: the remote may have the message although we do not know it.
    Dot,
    Reset,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("no connection: {0}")]
    Connect(std::io::Error),
    #[error("the connection broke at {0:?}: {1}")]
    Broken(Stage, std::io::Error),
    #[error("the remote closed the connection at {0:?}")]
    Closed(Stage),
    #[error("the remote was silent at {0:?}")]
    Silent(Stage),
    #[error("at {0:?}: {1}")]
    Nonsense(Stage, ReplyError),
    #[error("refused at {0:?}: {1}")]
    Refused(Stage, Reply),
    #[error("TLS failed: {0}")]
    Tls(String),
    /// The remote lacks what the message needs; the status is ours.
    #[error("{1}")]
    Unable(&'static str, String),
}

impl ClientError {
    pub(crate) fn stage(&self) -> Stage {
        match self {
            ClientError::Connect(_) => Stage::Connect,
            ClientError::Broken(stage, _)
            | ClientError::Closed(stage)
            | ClientError::Silent(stage)
            | ClientError::Nonsense(stage, _)
            | ClientError::Refused(stage, _) => *stage,
            ClientError::Tls(_) => Stage::StartTls,
            ClientError::Unable(..) => Stage::Mail,
        }
    }
}

/// What EHLO offered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Offers {
    pub(crate) pipelining: bool,
    pub(crate) starttls: bool,
    pub(crate) eight_bit: bool,
    pub(crate) smtputf8: bool,
    pub(crate) auth_plain: bool,
    /// RFC 8689 §2: offered inside TLS alone.
    pub(crate) require_tls: bool,
    /// Octets; `None` where SIZE was not offered or has no limit (RFC 1870 §4).
    pub(crate) size_limit: Option<u64>,
    size: bool,
}

impl Offers {
    fn read(ehlo: &Reply) -> Offers {
        let mut offers = Offers::default();
        for line in ehlo.lines.iter().skip(1) {
            let mut words = line.split([' ', '=']).filter(|w| !w.is_empty());
            match words.next().unwrap_or_default().to_ascii_uppercase().as_str() {
                "PIPELINING" => offers.pipelining = true,
                "STARTTLS" => offers.starttls = true,
                "8BITMIME" => offers.eight_bit = true,
                "SMTPUTF8" => offers.smtputf8 = true,
                "REQUIRETLS" => offers.require_tls = true,
                "AUTH" => offers.auth_plain |= words.any(|w| w.eq_ignore_ascii_case("PLAIN")),
                "SIZE" => {
                    offers.size = true;
                    offers.size_limit = words.next().and_then(|n| n.parse().ok()).filter(|n| *n > 0);
                }
                _ => {}
            }
        }
        offers
    }
}

/// What one recipient was answered; after the final dot, what all were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) reply: Reply,
    /// RFC 5321 §4.5.3.1.10: too many recipients, not this one: to be sent again at once.
    pub(crate) again: bool,
    /// It is about this recipient, not about the sender or the message.
    pub(crate) personal: bool,
}

/// A connection that greeted us and knows our name.
pub(crate) struct Client {
    wire: Wire,
    /// Read and not yet understood; at most one reply's worth (`reply.rs` bounds it).
    unread: Vec<u8>,
    pub(crate) offers: Offers,
    deadlines: Deadlines,
    pub(crate) encrypted: bool,
    /// What it has shown of itself.
    pub(crate) proof: Option<Proof>,
    /// Transactions so far.
    pub(crate) used: u32,
}

impl Client {
    /// Connects and reads the greeting.
    pub(crate) async fn connect(
        address: SocketAddr,
        from: Option<IpAddr>,
        deadlines: Deadlines,
    ) -> Result<Client, ClientError> {
        let stream = open(address, from, deadlines.connect).await?;
        let mut client = Client::over(Wire::Clear(stream), deadlines);
        let greeting = client.reply(Stage::Greeting, deadlines.greeting).await?;
        client.expect(Stage::Greeting, greeting, Class::Done)?;
        Ok(client)
    }

    fn over(wire: Wire, deadlines: Deadlines) -> Client {
        let offers = Offers::default();
        Client { wire, unread: Vec::new(), offers, deadlines, encrypted: false, proof: None, used: 0 }
    }

    /// TLS from the first byte (smarthosts on 465, RFC 8314 §3.3), then the greeting.
    pub(crate) async fn connect_tls(
        address: SocketAddr,
        from: Option<IpAddr>,
        host: &str,
        config: Arc<rustls::ClientConfig>,
        deadlines: Deadlines,
    ) -> Result<Client, ClientError> {
        let stream = open(address, from, deadlines.connect).await?;
        let wire = handshake(stream, host, config, deadlines.tls).await?;
        let mut client = Client::over(wire, deadlines);
        client.encrypted = true;
        let greeting = client.reply(Stage::Greeting, deadlines.greeting).await?;
        client.expect(Stage::Greeting, greeting, Class::Done)?;
        Ok(client)
    }

    /// EHLO, or HELO where EHLO is unknown (RFC 5321 §3.2).
    pub(crate) async fn hello(&mut self, name: &str) -> Result<(), ClientError> {
        let reply = self.command(Stage::Hello, &format!("EHLO {name}\r\n"), self.deadlines.command).await?;
        self.offers = Offers::default();
        match reply.class() {
            Class::Done => self.offers = Offers::read(&reply),
            Class::Permanent => {
                let reply =
                    self.command(Stage::Hello, &format!("HELO {name}\r\n"), self.deadlines.command).await?;
                self.expect(Stage::Hello, reply, Class::Done)?;
            }
            _ => return Err(ClientError::Refused(Stage::Hello, reply)),
        }
        Ok(())
    }

    /// STARTTLS and a second EHLO. A remote that offered it and then declines (RFC 3207 §4) leaves a clear
    /// connection that is as good as before.
    pub(crate) async fn start_tls(
        mut self,
        name: &str,
        host: &str,
        config: Arc<rustls::ClientConfig>,
    ) -> Result<Client, ClientError> {
        let reply = self.command(Stage::StartTls, "STARTTLS\r\n", self.deadlines.command).await?;
        if reply.class() != Class::Done {
            return Ok(self);
        }
        // CVE-2011-0411, the client's half: what was sent in clear behind the 220 is not from inside TLS.
        self.unread.clear();
        let Wire::Clear(stream) = self.wire else {
            return Err(ClientError::Tls("already encrypted".into()));
        };
        self.wire = handshake(stream, host, config, self.deadlines.tls).await?;
        self.encrypted = true;
        // RFC 3207 §4.2: everything learned before is discarded. With TLS 1.3 a remote that dislikes the handshake
        // says so only now (RFC 8446 §4.4.4).
        self.hello(name).await.map_err(|error| ClientError::Tls(error.to_string()))?;
        Ok(self)
    }

    /// AUTH PLAIN (RFC 4616), for smarthosts.
    pub(crate) async fn login(&mut self, user: &str, password: &str) -> Result<(), ClientError> {
        use base64::Engine as _;
        if !self.offers.auth_plain {
            return Err(ClientError::Unable("4.7.0", "the smarthost does not offer AUTH PLAIN".into()));
        }
        let token = base64::engine::general_purpose::STANDARD.encode(format!("\0{user}\0{password}"));
        let line = format!("AUTH PLAIN {token}\r\n");
        let reply = self.command(Stage::Auth, &line, self.deadlines.command).await?;
        self.expect(Stage::Auth, reply, Class::Done)
    }

    /// One transaction: the answer of each recipient, in their order.
    ///
    /// An error says that no recipient has a definite answer; after `Stage::Dot` the message may have arrived.
    pub(crate) async fn send(
        &mut self,
        mail_from: Option<&Address>,
        recipients: &[&Address],
        message: &WireMessage,
        tls: TlsDemand,
    ) -> Result<Vec<Answer>, ClientError> {
        self.used = self.used.saturating_add(1);
        let mail = self.mail_command(mail_from, recipients, message, tls)?;
        let answers = self.envelope(&mail, recipients).await?;
        let any = answers.iter().any(|answer| answer.reply.class() == Class::Done);
        let last = match self.offers.pipelining {
            true if any => {
                let reply = self.reply(Stage::Data, self.deadlines.data).await?;
                Some(self.body_after(reply, message).await?)
            }
            true => {
                self.take_back_data(&answers).await;
                None
            }
            false if any => {
                let reply = self.command(Stage::Data, "DATA\r\n", self.deadlines.data).await?;
                Some(self.body_after(reply, message).await?)
            }
            false => None,
        };
        let closing = |reply: &Reply| reply.code == 421;
        if answers.iter().any(|a| closing(&a.reply)) || last.as_ref().is_some_and(closing) {
            self.used = u32::MAX;
        } else if self.used < u32::MAX && last.as_ref().is_none_or(|reply| reply.class() != Class::Done) {
            self.reset().await;
        }
        let Some(last) = last else { return Ok(answers) };
        // RFC 5321 §4.1.1.4: what follows DATA is the answer for everyone who was accepted before.
        let alone = answers.iter().filter(|answer| answer.reply.class() == Class::Done).count() == 1;
        let settle = |answer: Answer| match answer.reply.class() {
            Class::Done => Answer { reply: last.clone(), again: false, personal: alone },
            _ => answer,
        };
        Ok(answers.into_iter().map(settle).collect())
    }

    /// RFC 5321 §4.1.1.2 with the parameters that were offered and are needed.
    fn mail_command(
        &self,
        mail_from: Option<&Address>,
        recipients: &[&Address],
        message: &WireMessage,
        tls: TlsDemand,
    ) -> Result<String, ClientError> {
        if tls == TlsDemand::Required && !self.keeps_tls() {
            return Err(keeps_no_tls("the remote"));
        }
        let local_utf8 = mail_from.into_iter().chain(recipients.iter().copied()).any(Address::needs_smtputf8);
        let smtputf8 = local_utf8 || message.needs_smtputf8;
        if smtputf8 && !self.offers.smtputf8 {
            let text = "an address is not ASCII and the remote does not offer SMTPUTF8";
            return Err(ClientError::Unable("5.6.7", text.into()));
        }
        if message.needs_8bit && !self.offers.eight_bit && !smtputf8 {
            let text = "the message is 8-bit and the remote does not offer 8BITMIME";
            return Err(ClientError::Unable("5.6.3", text.into()));
        }
        if self.offers.size_limit.is_some_and(|limit| message.size as u64 > limit) {
            let text = format!("the message has {} octets, more than the remote takes", message.size);
            return Err(ClientError::Unable("5.3.4", text));
        }
        let mut line = match mail_from {
            Some(address) => format!("MAIL FROM:<{address}>"),
            None => "MAIL FROM:<>".to_owned(),
        };
        if self.offers.size {
            line.push_str(&format!(" SIZE={}", message.size));
        }
        if message.needs_8bit && self.offers.eight_bit {
            line.push_str(" BODY=8BITMIME");
        }
        if smtputf8 {
            line.push_str(" SMTPUTF8");
        }
        if tls == TlsDemand::Required {
            line.push_str(" REQUIRETLS");
        }
        line.push_str("\r\n");
        Ok(line)
    }

    /// The message, where DATA was answered with 354; what it came to.
    async fn body_after(&mut self, reply: Reply, message: &WireMessage) -> Result<Reply, ClientError> {
        match reply.class() {
            Class::Continue => self.body(message).await,
            // Replies out of step: taken at its word, a message that was never sent would count as delivered.
            Class::Done => {
                self.used = u32::MAX;
                Err(ClientError::Nonsense(Stage::Data, ReplyError::OutOfStep))
            }
            Class::Temporary | Class::Permanent => Ok(reply),
        }
    }

    /// DATA went out with the recipients, and none was accepted. RFC 2920 §3.1: a server that says 354 all the same
    /// gets a lone dot. Whatever comes of it, the recipients have their answers.
    async fn take_back_data(&mut self, answers: &[Answer]) {
        if answers.iter().any(|answer| answer.reply.code == 421) {
            return;
        }
        let patience = self.deadlines.data.min(TAKEN_BACK);
        let mut reply = self.reply(Stage::Data, patience).await;
        if matches!(&reply, Ok(reply) if reply.class() == Class::Continue) {
            reply = self.command(Stage::Dot, ".\r\n", patience).await;
        }
        if !matches!(&reply, Ok(reply) if matches!(reply.class(), Class::Permanent | Class::Temporary)) {
            self.used = u32::MAX;
        }
    }

    /// MAIL and every RCPT, and DATA: in one write where PIPELINING was offered (RFC 2920 §3.1).
    async fn envelope(&mut self, mail: &str, recipients: &[&Address]) -> Result<Vec<Answer>, ClientError> {
        let rcpt = |address: &Address| format!("RCPT TO:<{address}>\r\n");
        if self.offers.pipelining {
            let mut block = mail.to_owned();
            recipients.iter().for_each(|address| block.push_str(&rcpt(address)));
            block.push_str("DATA\r\n");
            self.write(Stage::Mail, block.as_bytes(), self.deadlines.mail).await?;
        } else {
            self.write(Stage::Mail, mail.as_bytes(), self.deadlines.mail).await?;
        }
        let first = self.reply(Stage::Mail, self.deadlines.mail).await?;
        if first.class() != Class::Done && !self.offers.pipelining {
            return Ok(to_all(first, recipients.len()));
        }
        let mut answers: Vec<Answer> = Vec::with_capacity(recipients.len());
        for address in recipients {
            if !self.offers.pipelining {
                self.write(Stage::Rcpt, rcpt(address).as_bytes(), self.deadlines.rcpt).await?;
            }
            // A remote that says 421 closes: the other answers will not come.
            if first.code == 421 {
                break;
            }
            let reply = self.reply(Stage::Rcpt, self.deadlines.rcpt).await?;
            // RFC 5321 §4.5.3.1.10: 452 (and 552 from old servers) after some were taken means "enough".
            let some = answers.iter().any(|a| a.reply.class() == Class::Done);
            let again = some && (reply.code == 452 || reply.code == 552);
            answers.push(Answer { reply, again, personal: true });
        }
        if first.class() != Class::Done {
            // Refused at MAIL: whatever was said to the recipients followed from that.
            return Ok(to_all(first, recipients.len()));
        }
        Ok(answers)
    }

    async fn body(&mut self, message: &WireMessage) -> Result<Reply, ClientError> {
        let blocks = message.stuffed().chunks(BLOCK);
        let last = blocks.len().saturating_sub(1);
        for (i, block) in blocks.enumerate() {
            // Once the last block is on its way, the remote may have the message whatever we see.
            let stage = if i == last { Stage::Dot } else { Stage::Body };
            if let Err(error) = self.write(stage, block, self.deadlines.block).await {
                // A remote that refuses in the middle of the message says why before it closes.
                let spoken = self.reply(Stage::Body, Duration::from_secs(1)).await;
                return spoken.ok().filter(|r| r.class() != Class::Done).ok_or(error);
            }
        }
        self.reply(Stage::Dot, self.deadlines.dot).await
    }

    /// RSET: a clean slate for the next transaction. A failure only means that this connection is done for.
    async fn reset(&mut self) {
        let reply = self.command(Stage::Reset, "RSET\r\n", self.deadlines.command).await;
        if !matches!(&reply, Ok(reply) if reply.class() == Class::Done) {
            self.used = u32::MAX;
        }
    }

    /// Whether the host takes mail that must stay in TLS, RFC 8689 §2.
    pub(crate) fn keeps_tls(&self) -> bool {
        self.encrypted && self.offers.require_tls
    }

    /// How the connection is encrypted, in words; `None` in clear.
    pub(crate) fn protection(&self) -> Option<String> {
        self.wire.protection()
    }

    /// Our end of it.
    pub(crate) fn local_ip(&self) -> Option<std::net::IpAddr> {
        let stream = match &self.wire {
            Wire::Clear(stream) => stream,
            Wire::Tls(stream) => stream.get_ref().0,
        };
        stream.local_addr().ok().map(|address| address.ip())
    }

    /// Whether the connection may be used for another message.
    pub(crate) fn is_reusable(&self, limit: u32) -> bool {
        self.used < limit && self.unread.is_empty()
    }

    pub(crate) async fn quit(mut self) {
        let _ = self.write(Stage::Reset, b"QUIT\r\n", self.deadlines.quit).await;
        let _ = self.reply(Stage::Reset, self.deadlines.quit).await;
    }

    async fn command(&mut self, stage: Stage, line: &str, limit: Duration) -> Result<Reply, ClientError> {
        self.write(stage, line.as_bytes(), limit).await?;
        self.reply(stage, limit).await
    }

    fn expect(&mut self, stage: Stage, reply: Reply, class: Class) -> Result<(), ClientError> {
        if reply.class() == class { Ok(()) } else { Err(ClientError::Refused(stage, reply)) }
    }

    async fn write(&mut self, stage: Stage, bytes: &[u8], limit: Duration) -> Result<(), ClientError> {
        within(stage, limit, self.wire.write_all(bytes)).await
    }

    /// The next reply. The deadline holds for the whole reply, so that a drip of lines cannot stretch it.
    async fn reply(&mut self, stage: Stage, limit: Duration) -> Result<Reply, ClientError> {
        let Client { wire, unread, .. } = self;
        let read = async {
            let mut buffer = [0; 4096];
            loop {
                match Reply::parse(unread) {
                    Ok(Some((reply, taken))) => {
                        unread.drain(..taken);
                        return Ok(reply);
                    }
                    Ok(None) => {}
                    Err(error) => return Err(ClientError::Nonsense(stage, error)),
                }
                match wire.read(&mut buffer).await {
                    Ok(0) => return Err(ClientError::Closed(stage)),
                    Ok(n) => unread.extend_from_slice(buffer.get(..n).unwrap_or_default()),
                    Err(error) => return Err(ClientError::Broken(stage, error)),
                }
            }
        };
        timeout(limit, read).await.unwrap_or(Err(ClientError::Silent(stage)))
    }
}

/// RFC 8689 §4.2.1: without the offer it is not sent, here or ever. The status is that of RFC 8689 §6.
pub(crate) fn keeps_no_tls(host: &str) -> ClientError {
    let text =
        format!("{host} does not promise to keep the message in TLS (REQUIRETLS), which its sender demands");
    ClientError::Unable("5.7.30", text)
}

/// An answer to MAIL is everybody's.
fn to_all(reply: Reply, recipients: usize) -> Vec<Answer> {
    vec![Answer { reply, again: false, personal: false }; recipients]
}

/// A connection, from this address of ours where one is given.
async fn open(address: SocketAddr, from: Option<IpAddr>, limit: Duration) -> Result<TcpStream, ClientError> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(ClientError::Connect)?;
    if let Some(from) = from {
        socket.bind(SocketAddr::new(from, 0)).map_err(ClientError::Connect)?;
    }
    let stream = match timeout(limit, socket.connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(ClientError::Connect(error)),
        Err(_) => return Err(ClientError::Silent(Stage::Connect)),
    };
    // Commands are small and each waits for its answer: delayed by Nagle they would cost 40 ms apiece.
    stream.set_nodelay(true).map_err(ClientError::Connect)?;
    Ok(stream)
}

async fn within(
    stage: Stage,
    limit: Duration,
    write: impl Future<Output = std::io::Result<()>>,
) -> Result<(), ClientError> {
    match timeout(limit, write).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(ClientError::Broken(stage, error)),
        Err(_) => Err(ClientError::Silent(stage)),
    }
}

async fn handshake(
    stream: TcpStream,
    host: &str,
    config: Arc<rustls::ClientConfig>,
    limit: Duration,
) -> Result<Wire, ClientError> {
    let tls = |error: &dyn std::fmt::Display| ClientError::Tls(error.to_string());
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let bare = bare.strip_prefix("IPv6:").unwrap_or(bare).to_owned();
    let name = ServerName::try_from(bare).map_err(|error| tls(&error))?;
    let connector = tokio_rustls::TlsConnector::from(config);
    match timeout(limit, connector.connect(name, stream)).await {
        Ok(Ok(stream)) => Ok(Wire::Tls(Box::new(stream))),
        Ok(Err(error)) => Err(tls(&error)),
        Err(_) => Err(tls(&"no handshake in time")),
    }
}

#[cfg(test)]
mod tests;
