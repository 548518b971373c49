//! Remote mail servers by the hundred, one for each domain, each at an address of its own, so that every one of them is
//! a site. They count what they take and keep nothing of it; some of them hang.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// Not the port of the tests' own remotes, which may run beside.
pub const PORT: u16 = 2628;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Answers,
    /// Accepts the connection and says nothing.
    NeverGreets,
    /// Greets, and has no answer to EHLO.
    HangsAtHello,
    /// Takes the message and does not say so.
    HangsAtDot,
}

/// What they took together.
#[derive(Default)]
struct Ledger {
    taken: HashSet<String>,
    twice: usize,
    last: Option<Instant>,
}

#[derive(Default)]
struct Shared {
    ledger: Mutex<Ledger>,
    /// From the final dot to the answer, in milliseconds.
    takes: AtomicU64,
}

/// They stop when this is dropped.
pub struct Remotes {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

pub fn domain(n: usize) -> String {
    format!("h{n}.example")
}

pub fn address(n: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 16, (n / 250) as u8, (1 + n % 250) as u8))
}

/// The records of the first `count` of them.
pub fn zone(count: usize) -> String {
    (0..count).map(|n| format!("{d} MX 10 mx.{d}\nmx.{d} A {}\n", address(n), d = domain(n))).collect()
}

impl Remotes {
    pub async fn start(count: usize, manner: impl Fn(usize) -> Manner) -> Remotes {
        let shared = Arc::new(Shared::default());
        let mut tasks = Vec::with_capacity(count);
        for n in 0..count {
            let listener = TcpListener::bind((address(n), PORT)).await.expect("a remote's address");
            tasks.push(tokio::spawn(listen(listener, manner(n), shared.clone())));
        }
        Remotes { shared, tasks }
    }

    /// Recipients whose message was taken.
    pub fn count(&self) -> usize {
        self.shared.ledger.lock().unwrap().taken.len()
    }

    /// When the last one was.
    pub fn last(&self) -> Option<Instant> {
        self.shared.ledger.lock().unwrap().last
    }

    /// Recipients that had theirs more than once.
    pub fn twice(&self) -> usize {
        self.shared.ledger.lock().unwrap().twice
    }

    pub fn forget(&self) {
        *self.shared.ledger.lock().unwrap() = Ledger::default();
    }

    /// How long each of them takes for a message from now on.
    pub fn take_for(&self, time: Duration) {
        self.shared.takes.store(time.as_millis() as u64, Ordering::Relaxed);
    }
}

impl Drop for Remotes {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn listen(listener: TcpListener, manner: Manner, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let shared = shared.clone();
        tokio::spawn(async move {
            let _ = session(stream, manner, &shared).await;
        });
    }
}

async fn session(stream: TcpStream, manner: Manner, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut wire = BufReader::new(stream);
    if manner == Manner::NeverGreets {
        return hang(wire).await;
    }
    let mut replies = b"220 remote.example ESMTP\r\n".to_vec();
    let (mut line, mut to) = (String::new(), Vec::new());
    loop {
        // Answers to commands that came together leave together.
        if wire.buffer().is_empty() {
            wire.write_all(&replies).await?;
            replies.clear();
        }
        line.clear();
        if wire.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        match line.get(..4).unwrap_or_default() {
            "EHLO" if manner == Manner::HangsAtHello => return hang(wire).await,
            "EHLO" => replies.extend_from_slice(b"250-remote.example\r\n250-PIPELINING\r\n250 8BITMIME\r\n"),
            "RCPT" => {
                let address = line.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
                to.push(address.map(|(address, _)| address.to_owned()).unwrap_or_default());
                replies.extend_from_slice(b"250 2.1.5 ok\r\n");
            }
            "DATA" => {
                replies.extend_from_slice(b"354 go on\r\n");
                wire.write_all(&replies).await?;
                replies.clear();
                skip_message(&mut wire).await?;
                if manner == Manner::HangsAtDot {
                    return hang(wire).await;
                }
                tokio::time::sleep(Duration::from_millis(shared.takes.load(Ordering::Relaxed))).await;
                let mut ledger = shared.ledger.lock().unwrap();
                for recipient in to.drain(..) {
                    ledger.twice += usize::from(!ledger.taken.insert(recipient));
                }
                ledger.last = Some(Instant::now());
                replies.extend_from_slice(b"250 2.0.0 taken\r\n");
            }
            "QUIT" => return wire.write_all(b"221 2.0.0 bye\r\n").await,
            _ => replies.extend_from_slice(b"250 2.0.0 ok\r\n"),
        }
    }
}

/// Until the other side has enough.
async fn hang(mut wire: BufReader<TcpStream>) -> io::Result<()> {
    tokio::io::copy(&mut wire, &mut tokio::io::sink()).await.map(drop)
}

async fn skip_message(wire: &mut BufReader<TcpStream>) -> io::Result<()> {
    let mut line = Vec::new();
    while line != b".\r\n" {
        line.clear();
        if wire.read_until(b'\n', &mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}
