//! A remote that misbehaves as it is told, at the stage that it is told; it keeps what it was sent.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinHandle,
};

/// What it does when a stage comes: `GREETING`, `EHLO`, `STARTTLS`, `MAIL`, `RCPT`, `DATA`, `DOT`.
#[derive(Clone)]
pub enum Act {
    /// These bytes, with a CRLF behind them.
    Say(String),
    /// These, and then the connection is closed.
    Last(String),
    Hang,
    /// What a good server does, once it is told to go on.
    Await(Arc<Notify>),
    Close,
    /// What a good server does.
    Well,
}

type Script = Arc<dyn Fn(&str, &str) -> Act + Send + Sync>;

pub struct Scripted {
    pub address: SocketAddr,
    heard: Arc<Mutex<Vec<u8>>>,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Scripted {
    pub async fn start(script: impl Fn(&str, &str) -> Act + Send + Sync + 'static) -> Scripted {
        Scripted::start_at(super::own_address(), script).await
    }

    /// At this address, which must be nobody else's.
    pub async fn start_at(
        ip: IpAddr,
        script: impl Fn(&str, &str) -> Act + Send + Sync + 'static,
    ) -> Scripted {
        let listener = TcpListener::bind((ip, 2526)).await.expect("remote");
        let address = listener.local_addr().expect("remote");
        let script: Script = Arc::new(script);
        let heard = Arc::<Mutex<Vec<u8>>>::default();
        let shared = heard.clone();
        let connections = Arc::<AtomicUsize>::default();
        let counted = connections.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(session(stream, script.clone(), shared.clone()));
            }
        });
        Scripted { address, heard, connections, task }
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// All that came in, of all connections.
    pub fn heard(&self) -> Vec<u8> {
        self.heard.lock().unwrap().clone()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn session(stream: TcpStream, script: Script, heard: Arc<Mutex<Vec<u8>>>) -> Option<()> {
    let mut wire = BufReader::new(stream);
    act(&mut wire, &script, "GREETING", "", "220 mx.example ESMTP").await?;
    loop {
        let line = line(&mut wire, &heard).await?;
        let argument = String::from_utf8_lossy(&line).trim_end().to_owned();
        let verb = argument.split(' ').next().unwrap_or_default().to_ascii_uppercase();
        let well = match verb.as_str() {
            "EHLO" => "250-mx.example\r\n250 SIZE 50000000",
            "DATA" => "354 go on",
            "QUIT" => "221 bye",
            _ => "250 2.0.0 ok",
        };
        let said = act(&mut wire, &script, &verb, &argument, well).await?;
        if verb == "QUIT" {
            return None;
        }
        if verb == "DATA" && said.starts_with("354") {
            while self::line(&mut wire, &heard).await? != b".\r\n" {}
            act(&mut wire, &script, "DOT", "", "250 2.0.0 taken").await?;
        }
    }
}

async fn line(wire: &mut BufReader<TcpStream>, heard: &Mutex<Vec<u8>>) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    if wire.read_until(b'\n', &mut line).await.ok()? == 0 {
        return None;
    }
    heard.lock().unwrap().extend_from_slice(&line);
    Some(line)
}

async fn act(
    wire: &mut BufReader<TcpStream>,
    script: &Script,
    stage: &str,
    argument: &str,
    well: &str,
) -> Option<String> {
    let (text, last) = match script(stage, argument) {
        Act::Well => (well.to_owned(), false),
        Act::Say(text) => (text, false),
        Act::Last(text) => (text, true),
        Act::Close => return None,
        Act::Hang => std::future::pending().await,
        Act::Await(go_on) => {
            go_on.notified().await;
            (well.to_owned(), false)
        }
    };
    wire.write_all(format!("{text}\r\n").as_bytes()).await.ok()?;
    wire.flush().await.ok()?;
    (!last).then_some(text)
}
