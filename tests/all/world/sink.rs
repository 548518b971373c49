//! A scripted remote mail server: takes what it is given, keeps a ledger of it, and refuses whom it is told to.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// What a remote got, in the order in which it said 250.
#[derive(Debug, Clone, Default)]
pub struct Taken {
    pub from: String,
    pub to: Vec<String>,
    pub message: Vec<u8>,
}

#[derive(Default)]
struct Ledger {
    taken: Vec<Taken>,
    refuse: HashMap<String, String>,
    connections: usize,
}

pub struct Sink {
    pub address: SocketAddr,
    ledger: Arc<Mutex<Ledger>>,
    task: JoinHandle<()>,
}

impl Sink {
    pub async fn start() -> Sink {
        Sink::start_at(super::own_address(), 2526).await
    }

    pub async fn start_at(address: IpAddr, port: u16) -> Sink {
        let listener = TcpListener::bind((address, port)).await.expect("sink");
        let address = listener.local_addr().expect("sink");
        let ledger = Arc::<Mutex<Ledger>>::default();
        let shared = ledger.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                shared.lock().unwrap().connections += 1;
                let ledger = shared.clone();
                tokio::spawn(async move {
                    let _ = session(stream, &ledger).await;
                });
            }
        });
        Sink { address, ledger, task }
    }

    /// The records that make it the mail server of a domain.
    pub fn zone(&self, domain: &str) -> String {
        format!("{domain} MX 10 mx.{domain}\nmx.{domain} A {}\n", self.address.ip())
    }

    /// From now on, this recipient gets this reply.
    pub fn refuse(&self, recipient: &str, reply: &str) {
        self.ledger.lock().unwrap().refuse.insert(recipient.to_owned(), reply.to_owned());
    }

    pub fn accept(&self, recipient: &str) {
        self.ledger.lock().unwrap().refuse.remove(recipient);
    }

    pub fn taken(&self) -> Vec<Taken> {
        self.ledger.lock().unwrap().taken.clone()
    }

    /// (For the bench.)
    #[allow(dead_code)]
    pub fn count(&self) -> usize {
        self.ledger.lock().unwrap().taken.len()
    }

    pub fn connections(&self) -> usize {
        self.ledger.lock().unwrap().connections
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Taken {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.message).into_owned()
    }

    /// A header, unfolded.
    pub fn header(&self, name: &str) -> Option<String> {
        super::mail::header(&self.message, name)
    }
}

async fn session(stream: TcpStream, ledger: &Mutex<Ledger>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut wire = BufReader::new(stream);
    wire.write_all(b"220 sink.example ESMTP\r\n").await?;
    let (mut from, mut to) = (String::new(), Vec::new());
    loop {
        let mut line = String::new();
        if wire.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let verb = line.get(..4).unwrap_or("").to_ascii_uppercase();
        let address = || {
            let inside = line.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
            inside.map(|(address, _)| address.to_owned()).unwrap_or_default()
        };
        let reply = match verb.as_str() {
            "EHLO" => "250-sink.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 50000000".to_owned(),
            "MAIL" => {
                from = address();
                to.clear();
                "250 2.1.0 ok".to_owned()
            }
            "RCPT" => match ledger.lock().unwrap().refuse.get(&address()) {
                Some(reply) => reply.clone(),
                None => {
                    to.push(address());
                    "250 2.1.5 ok".to_owned()
                }
            },
            "DATA" if to.is_empty() => "554 5.5.1 no valid recipients".to_owned(),
            "DATA" => {
                wire.write_all(b"354 go on\r\n").await?;
                let message = data(&mut wire).await?;
                let taken = Taken { from: std::mem::take(&mut from), to: std::mem::take(&mut to), message };
                ledger.lock().unwrap().taken.push(taken);
                "250 2.0.0 taken".to_owned()
            }
            "RSET" => {
                to.clear();
                "250 2.0.0 ok".to_owned()
            }
            "HELO" | "NOOP" => "250 2.0.0 ok".to_owned(),
            "QUIT" => {
                wire.write_all(b"221 2.0.0 bye\r\n").await?;
                return Ok(());
            }
            _ => "502 5.5.1 no such command".to_owned(),
        };
        wire.write_all(format!("{reply}\r\n").as_bytes()).await?;
    }
}

async fn data(wire: &mut BufReader<TcpStream>) -> io::Result<Vec<u8>> {
    let mut message = Vec::new();
    loop {
        let start = message.len();
        if wire.read_until(b'\n', &mut message).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match &message[start..] {
            b".\r\n" => {
                message.truncate(start);
                return Ok(message);
            }
            line if line.starts_with(b".") => {
                message.remove(start);
            }
            _ => {}
        }
    }
}
