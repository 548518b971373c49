//! Runs written dialogues (tests/dialogues/*.smtp) against a session over an in-memory connection, with a
//! backend that is a few lines long. A test file reads like mail:
//!
//! ```text
//! C: EHLO friend.example      a line, sent with CRLF
//! C> NOOP\r\nQUIT\r\n         octets exactly as written (\r \n \0 \t \\), in one write
//! C* 90 text                  a line, so many times
//! S: 250-mx.agents.example    the next line begins so
//! S* 250 HELP                 some later line begins so
//! S.                          the server hangs up
//! M: 1 ada@agents.example     so many messages came in, the last for these recipients
//! E: ret hdrs                 the last one's envelope, in words, has this in it
//! B: Subject: x\r\n           and its octets are exactly these
//! T.                          the client's TLS handshake; what follows is inside
//! @ size 100000               before anything else: the limit; `tls`: TLS from the first octet; `proxy`: the
//!                             peer is a proxy; `early`: the client does not wait for the server to be there
//! X> 0d0a                     octets in hexadecimal
//! ```

use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};

use proptest::prelude::*;
use rustls::pki_types::ServerName;
use tokio::io::{
    AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufStream, DuplexStream,
};
use tokio_rustls::TlsConnector;

use super::*;
use crate::smtp::dialogue::converse;
use crate::smtp::session::Caller;

const PATIENCE: Duration = Duration::from_secs(20);

/// A folder of `../shared/corpora`, or a plain word that it is not there.
pub(super) fn corpus(name: &str) -> Option<PathBuf> {
    let folder = match std::env::var_os("GATEPOST_CORPORA") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpora"),
    }
    .join(name);
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("SKIPPED: no corpus at {}", folder.display());
    None
}

/// Knows `ada`, `bob` and `postmaster` at agents.example and @testserver's `user`; remembers what came.
#[derive(Clone, Default)]
pub(super) struct Ledger {
    pub(super) received: Arc<Mutex<Vec<Received>>>,
}

pub(super) type Received = (Envelope, Vec<u8>);

#[derive(Debug, thiserror::Error)]
#[error("the database is on fire")]
pub(super) struct OnFire;

impl Backend for Ledger {
    type Recipient = Address;
    type Receipt = String;
    type Error = OnFire;

    async fn route(&self, to: &Address, _size: Option<u64>) -> Result<Routed<Address>, OnFire> {
        let (local, domain) = (to.local().to_lowercase(), to.domain());
        Ok(match local.split('+').next().unwrap_or_default() {
            "fire" => return Err(OnFire),
            _ if !["agents.example", "testserver"].contains(&domain) => Routed::NotOurs,
            "ada" | "bob" | "postmaster" | "user" | "åsa" => Routed::Accepted(to.clone()),
            _ if local.starts_with("list") => Routed::Accepted(to.clone()),
            _ => Routed::Unknown,
        })
    }

    async fn receive<T: Send>(
        &self,
        envelope: Envelope,
        recipients: Vec<Address>,
        raw: Octets,
        turn: impl FnOnce() -> Result<T, Refusal> + Send,
    ) -> Result<String, Refusal> {
        assert_eq!(envelope.recipients, recipients);
        let text = String::from_utf8_lossy(&raw);
        if text.contains("Subject: forged") {
            return Err(Refusal { code: 550, enhanced: "5.7.1", text: "DMARC says no".into() });
        }
        if text.contains("Subject: fire") {
            return Err(Refusal { code: 451, enhanced: "4.3.0", text: "Try again".into() });
        }
        let _turn = turn()?;
        let mut received = self.received.lock().unwrap();
        received.push((envelope, raw.to_vec()));
        Ok(format!("message {}", received.len()))
    }

    fn name(receipt: &String) -> &str {
        receipt
    }

    fn is_always_reachable(recipient: &Address) -> bool {
        recipient.local() == "postmaster"
    }
}

/// One certificate for all tests.
static TLS: LazyLock<Tls> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    Tls::open("mx.agents.example", dir.path(), None).unwrap()
});

pub(super) fn house(ledger: &Ledger) -> House<Ledger> {
    House {
        backend: ledger.clone(),
        hostname: "mx.agents.example".into(),
        first_domain: "agents.example".into(),
        max_message_size: 64 * 1024,
        guard: guard::testing::guard(guard::testing::limits()),
        tls: TLS.clone(),
        room: intake::tests::room(1 << 20, 1 << 24),
        entrance: Entrance::Clear,
        proxies: Vec::new(),
    }
}

pub(super) fn caller() -> Caller {
    Caller { id: "k3j2".into(), ip: IpAddr::V4(Ipv4Addr::LOCALHOST) }
}

/// A client connected to a session that runs on its own.
pub(super) struct Client<S> {
    pub(super) stream: BufStream<S>,
}

pub(super) fn dial(ledger: &Ledger, stop: &CancellationToken) -> Client<DuplexStream> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (house, stop) = (house(ledger), stop.clone());
    tokio::spawn(async move { converse(&house, &caller(), &stop, near).await });
    Client { stream: BufStream::new(far) }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(super) async fn send(&mut self, octets: &[u8]) {
        // A server that has hung up is noticed by what it says, or does not.
        let _ = self.stream.write_all(octets).await;
        let _ = self.stream.flush().await;
    }

    /// The next line, `None` when the server hung up.
    pub(super) async fn hear(&mut self) -> Option<String> {
        self.listen().await.expect("the server says nothing")
    }

    /// The next line, or an error when there is none in time.
    async fn listen(&mut self) -> Result<Option<String>, String> {
        let mut line = String::new();
        match timeout(PATIENCE, self.stream.read_line(&mut line)).await.map_err(|_| "nothing".to_owned())? {
            Ok(1..) => Ok(Some(line.strip_suffix("\r\n").expect("a reply ends with CRLF").to_owned())),
            _ => Ok(None),
        }
    }

    pub(super) async fn expect(&mut self, start: &str) {
        let line = self.hear().await;
        assert!(
            line.as_deref().is_some_and(|line| line.starts_with(start)),
            "expected {start}, heard {line:?}"
        );
    }
}

fn unescape(text: &str) -> Vec<u8> {
    let text = text.replace("\\r", "\r").replace("\\n", "\n").replace("\\0", "\0").replace("\\t", "\t");
    text.into_bytes()
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// The envelope in words, for `E:`.
fn words(envelope: &Envelope) -> String {
    let Envelope { peer, mail_from, recipients: _, smtputf8, dsn, require_tls } = envelope;
    let from = mail_from.as_ref().map(ToString::to_string).unwrap_or_default();
    let mut words = format!("from <{from}> helo {} ip {}", peer.helo, peer.ip);
    let said = [
        (peer.extended, " extended"),
        (peer.tls.is_some(), " tls"),
        (*smtputf8, " smtputf8"),
        (*require_tls, " requiretls"),
    ];
    words.extend(said.iter().filter(|(is, _)| *is).map(|(_, word)| *word));
    if let Some(dsn) = dsn {
        assert_eq!(dsn.recipients.len(), envelope.recipients.len(), "one for each recipient");
        words += &format!(" dsn {}", serde_json::to_string(dsn).unwrap());
    }
    words
}

struct Player {
    ledger: Ledger,
    client: Option<Client<Box<dyn Stream>>>,
}

impl Player {
    /// Connects as the first lines of the script want it.
    async fn begin(script: &str) -> Player {
        let ledger = Ledger::default();
        let mut house = house(&ledger);
        let (near, far) = tokio::io::duplex(64 * 1024);
        let mut client = Client { stream: BufStream::new(Box::new(far) as Box<dyn Stream>) };
        let mut lines = script.lines().peekable();
        for wish in script.lines().filter_map(|line| line.strip_prefix("@ ")) {
            match wish.split_once(' ').unwrap_or((wish, "")) {
                ("tls", _) => house.entrance = Entrance::Tls,
                ("proxy", _) => {
                    house.proxies = crate::config::Network::parse("127.0.0.0/8").into_iter().collect()
                }
                ("size", octets) => house.max_message_size = octets.parse().unwrap(),
                ("early", _) => {
                    let first = lines.find(|line| line.starts_with("C")).unwrap();
                    client.send(format!("{}\r\n", &first[3..]).as_bytes()).await;
                }
                _ => panic!("what is {wish:?}?"),
            }
        }
        let pass = house.guard.admit().unwrap();
        tokio::spawn(attend(Arc::new(house), near, caller().ip, pass, CancellationToken::new()));
        Player { ledger, client: Some(client) }
    }

    fn client(&mut self) -> &mut Client<Box<dyn Stream>> {
        self.client.as_mut().unwrap()
    }

    fn last(&self) -> Option<Received> {
        self.ledger.received.lock().unwrap().last().cloned()
    }

    /// Plays one line; the error is what was heard instead.
    async fn line(&mut self, kind: &str, rest: &str) -> Result<(), String> {
        let failed = |heard: &dyn fmt::Debug| Err(format!("{heard:?}"));
        match kind {
            "C:" => self.client().send(format!("{rest}\r\n").as_bytes()).await,
            "C>" => self.client().send(&unescape(rest)).await,
            "X>" => self.client().send(&unhex(rest)).await,
            "C*" => {
                let (times, text) = rest.split_once(' ').unwrap();
                let times = times.parse().unwrap();
                self.client().send(format!("{text}\r\n").repeat(times).as_bytes()).await;
            }
            "S:" => match self.client().listen().await? {
                Some(heard) if heard.starts_with(rest) => {}
                heard => return failed(&heard),
            },
            "S*" => loop {
                match self.client().listen().await? {
                    Some(heard) if heard.starts_with(rest) => break,
                    Some(_) => {}
                    None => return failed(&"the end"),
                }
            },
            "S." => match self.client().listen().await? {
                None => {}
                heard => return failed(&heard),
            },
            "T." => {
                let stream = self.client.take().unwrap().stream.into_inner();
                let name = ServerName::try_from("mx.agents.example").unwrap();
                match TlsConnector::from(TLS.opportunistic()).connect(name, stream).await {
                    Ok(stream) => self.client = Some(Client { stream: BufStream::new(Box::new(stream)) }),
                    Err(error) => return failed(&error),
                }
            }
            "M:" => {
                let to = self.last().map(|(envelope, _)| {
                    envelope.recipients.iter().map(|to| format!(" {to}")).collect::<String>()
                });
                let heard =
                    format!("{}{}", self.ledger.received.lock().unwrap().len(), to.unwrap_or_default());
                if heard != rest {
                    return failed(&heard);
                }
            }
            "E:" => {
                let heard = self.last().map(|(envelope, _)| words(&envelope)).unwrap_or_default();
                if !heard.contains(rest) {
                    return failed(&heard);
                }
            }
            "B:" => {
                let heard = self.last().map(|(_, raw)| raw).unwrap_or_default();
                if heard != unescape(rest) {
                    return failed(&String::from_utf8_lossy(&heard));
                }
            }
            _ => return failed(&"a line of no kind"),
        }
        Ok(())
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect()
}

/// Plays a dialogue; the error names the line that did not happen.
async fn play(script: &str) -> Result<(), String> {
    let mut player = Player::begin(script).await;
    let mut early = script.lines().any(|line| line == "@ early");
    for (number, line) in script.lines().enumerate() {
        if line.is_empty() || line.starts_with(['#', '@']) {
            continue;
        }
        // What was said early has been said.
        if line.starts_with('C') && std::mem::take(&mut early) {
            continue;
        }
        let (kind, rest) = line.split_at(line.len().min(2));
        let rest = rest.strip_prefix(' ').unwrap_or(rest);
        let played = player.line(kind, rest).await;
        played.map_err(|heard| format!("line {}: {line}\n  heard {heard}", number + 1))?;
    }
    Ok(())
}

#[tokio::test]
async fn dialogues() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dialogues");
    let mut players = JoinSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let script = std::fs::read_to_string(&path).unwrap();
        players.spawn(async move {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            play(&script).await.map_err(|error| format!("{}: {error}", name.unwrap_or_default()))
        });
    }
    let played = players.len();
    let failed: Vec<String> = players.join_all().await.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{} of {played} failed:\n{}", failed.len(), failed.join("\n"));
    assert!(played >= 120, "only {played} dialogues found");
}

/// chasquid's dialogues, of which only the class of each reply can be compared: the texts are its own.
#[tokio::test]
async fn dialogues_of_chasquid() {
    let Some(folder) = corpus("smtp/chasquid-dialogs") else { return };
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        // It draws the line at 1 MiB; ours stands in too_large.smtp.
        if path.ends_with("bad_data_dot_on_message_too_big.txt") {
            continue;
        }
        let mut script = String::new();
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            let class = |reply: &str| reply.chars().take(1).collect::<String>();
            let ours = match line.split_at(line.len().min(4)) {
                ("c ->", text) => format!("C: {}", text.strip_prefix(' ').unwrap_or(text)),
                ("c ~>", text) => format!("C> {}", text.trim().trim_matches('\'')),
                ("c <-" | "c <~", reply) => format!("S: {}", class(reply.trim())),
                ("c <.", reply) => format!("S* {}", reply.trim_start_matches("..").trim()),
                _ => continue,
            };
            script.push_str(&ours);
            script.push('\n');
        }
        play(&script).await.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

/// Up to the handshake and through it.
async fn secure(mut client: Client<DuplexStream>) -> Client<tokio_rustls::client::TlsStream<DuplexStream>> {
    client.send(b"STARTTLS\r\n").await;
    client.expect("220 2.0.0").await;
    let name = ServerName::try_from("mx.agents.example").unwrap();
    let stream =
        TlsConnector::from(TLS.opportunistic()).connect(name, client.stream.into_inner()).await.unwrap();
    Client { stream: BufStream::new(stream) }
}

#[tokio::test]
async fn tls_begins_a_new_session() {
    let ledger = Ledger::default();
    let mut client = dial(&ledger, &CancellationToken::new());
    client.expect("220 ").await;
    client.send(b"EHLO friend.example\r\nMAIL FROM:<ann@friend.example>\r\n").await;
    client.expect("554 5.5.0").await;

    let mut client = dial(&ledger, &CancellationToken::new());
    client.expect("220 ").await;
    client.send(b"EHLO clear.example\r\n").await;
    while client.hear().await.unwrap() != "250 HELP" {}
    client.send(b"MAIL FROM:<ann@friend.example>\r\nRCPT TO:<ada@agents.example>\r\n").await;
    client.expect("250 2.1.0").await;
    client.expect("250 2.1.5").await;
    let mut client = secure(client).await;
    client.send(b"DATA\r\n").await;
    client.expect("503 5.5.1").await;
    client.send(b"MAIL FROM:<ann@friend.example>\r\n").await;
    client.expect("503 5.5.1").await;
    client.send(b"EHLO friend.example\r\n").await;
    loop {
        let line = client.hear().await.unwrap();
        assert!(!line.contains("STARTTLS"), "offered inside TLS");
        if line == "250 HELP" {
            break;
        }
    }
    client.send(b"STARTTLS\r\n").await;
    client.expect("503 5.5.1").await;
    client.send(b"MAIL FROM:<>\r\nRCPT TO:<ada@agents.example>\r\nDATA\r\n").await;
    client.expect("250").await;
    client.expect("250").await;
    client.expect("354").await;
    client.send(b"Subject: x\r\n\r\nhello\r\n.\r\nQUIT\r\n").await;
    client.expect("250 2.0.0 Accepted: message 1").await;
    client.expect("221").await;
    let (envelope, raw) = ledger.received.lock().unwrap()[0].clone();
    assert_eq!(raw, b"Subject: x\r\n\r\nhello\r\n");
    assert_eq!(envelope.peer.helo, "friend.example");
    assert_eq!(envelope.peer.tls.as_deref().map(|tls| &tls[..8]), Some("TLSv1.3 "));
}

/// CVE-2011-0411: commands in the same segment as STARTTLS must not be run inside TLS.
#[tokio::test]
async fn starttls_with_something_behind_it_is_an_attack() {
    let mut client = dial(&Ledger::default(), &CancellationToken::new());
    client.expect("220 ").await;
    client.send(b"EHLO friend.example\r\n").await;
    while client.hear().await.unwrap() != "250 HELP" {}
    client.send(b"STARTTLS\r\nRSET\r\n").await;
    client.expect("554 5.5.0").await;
    assert_eq!(client.hear().await, None);
}

/// RFC 5321 §4.3.1: who does not wait for the greeting is no mail server.
#[tokio::test]
async fn early_talkers_are_sent_away() {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let mut client = Client { stream: BufStream::new(far) };
    client.send(b"EHLO spam.example\r\n").await;
    tokio::spawn(async move {
        converse(&house(&Ledger::default()), &caller(), &CancellationToken::new(), near).await
    });
    client.expect("554 5.5.0").await;
    assert_eq!(client.hear().await, None);
}

/// SIGTERM: a message under way is finished, and then, or when nothing is under way, 421.
#[tokio::test]
async fn a_stop_waits_for_the_message() {
    let (ledger, stop) = (Ledger::default(), CancellationToken::new());
    let mut idle = dial(&ledger, &stop);
    idle.expect("220 ").await;
    let mut busy = dial(&ledger, &stop);
    busy.expect("220 ").await;
    busy.send(b"HELO friend.example\r\n").await;
    busy.expect("250 mx.agents.example").await;
    busy.send(b"MAIL FROM:<>\r\nRCPT TO:<ada@agents.example>\r\nDATA\r\n").await;
    for code in ["250", "250", "354"] {
        busy.expect(code).await;
    }
    busy.send(b"Subject: x\r\n").await;
    stop.cancel();
    idle.expect("421 4.3.2").await;
    assert_eq!(idle.hear().await, None);
    busy.send(b"\r\nstill here\r\n.\r\n").await;
    busy.expect("250 2.0.0").await;
    busy.expect("421 4.3.2").await;
    assert_eq!(ledger.received.lock().unwrap().len(), 1);
}

/// The reply to a batch comes in one piece, and the reply to a fault is not lost when the client goes on
/// sending.
#[tokio::test]
async fn a_fault_is_explained_even_to_a_client_that_goes_on() {
    let ledger = Ledger::default();
    let mut client = dial(&ledger, &CancellationToken::new());
    client.expect("220 ").await;
    client.send(b"EHLO friend.example\r\n").await;
    while client.hear().await.unwrap() != "250 HELP" {}
    client.send(b"MAIL FROM:<>\r\nRCPT TO:<ada@agents.example>\r\nDATA\r\n").await;
    let mut batch = [0; 1024];
    let n = client.stream.read(&mut batch).await.unwrap();
    assert_eq!(batch[..n].iter().filter(|&&b| b == b'\n').count(), 3, "one write for the batch");
    client.send(b"Subject: one\r\n\r\nbody\n.\nMAIL FROM:<evil@friend.example>\r\n").await;
    for _ in 0..100 {
        client.send(&b"and on it goes\r\n".repeat(100)).await;
    }
    client.send(b".\r\nQUIT\r\n").await;
    client.expect("550 5.6.0").await;
    drop(client.hear().await);
    assert!(ledger.received.lock().unwrap().is_empty());
}

/// Guessing addresses or talking without end is cut off; too many recipients are not.
#[tokio::test]
async fn patience_ends() {
    use crate::smtp::session::{Session, Step};
    let (house, caller) = (house(&Ledger::default()), caller());
    let begin = async || {
        let mut session = Session::new(&house, &caller, None);
        session.follow(b"EHLO friend.example", false).await;
        session.follow(b"MAIL FROM:<ann@friend.example>", false).await;
        session
    };
    let code = |step: Step| match step {
        Step::Say(reply) => (reply.code(), false),
        Step::Close(reply) => (reply.code(), true),
        other => panic!("{other:?}"),
    };

    let mut session = begin().await;
    for guess in 1..limits::SMTP_ERRORS {
        let line = format!("RCPT TO:<guess{guess}@agents.example>");
        assert_eq!(code(session.follow(line.as_bytes(), false).await), (550, false));
    }
    assert_eq!(code(session.follow(b"RCPT TO:<guess@agents.example>", false).await), (421, true));

    let mut session = begin().await;
    let mut last = (0, false);
    for _ in 0..limits::SMTP_IDLE_COMMANDS {
        last = code(session.follow(b"NOOP", false).await);
    }
    assert_eq!(last, (421, true));

    let mut session = begin().await;
    for n in 1..=3 * limits::SMTP_RECIPIENTS {
        let line = format!("RCPT TO:<list{n}@agents.example>");
        let expected = if n <= limits::SMTP_RECIPIENTS { 250 } else { 452 };
        assert_eq!(code(session.follow(line.as_bytes(), false).await), (expected, false));
    }
    assert_eq!(session.follow(b"DATA", false).await, Step::TakeData);
}

/// Over real sockets: a full house says 421, and a stop waits for nobody who is idle.
#[tokio::test]
async fn a_full_house_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let mut small = house(&Ledger::default());
    let three = crate::config::SmtpLimits { sessions: 3, ..guard::testing::limits() };
    small.guard = guard::testing::guard(three);
    let server = tokio::spawn(run(small, listener, stop.clone()));
    let mut inside = Vec::new();
    for _ in 0..3 {
        inside.push(TcpStream::connect(address).await.unwrap());
    }
    for stream in inside.iter_mut() {
        let mut greeting = [0; 64];
        let octets = timeout(PATIENCE, stream.read(&mut greeting)).await.unwrap().unwrap();
        assert!(greeting[..octets].starts_with(b"220 mx.agents.example"));
    }
    let mut late = Client { stream: BufStream::new(TcpStream::connect(address).await.unwrap()) };
    late.expect("421 4.3.2 Too many connections").await;
    drop(inside);
    stop.cancel();
    timeout(PATIENCE, server).await.expect("the stop takes too long").unwrap();
}

/// A connection that waits costs its socket, this and a kilobyte; 5,000 of them should be nothing.
#[tokio::test]
async fn a_waiting_session_is_small() {
    let test = crate::floor::testing::TestFloor::new().await;
    let (floor, like) = (test.floor.clone(), house(&Ledger::default()));
    let house = House {
        backend: floor,
        hostname: like.hostname,
        first_domain: like.first_domain,
        max_message_size: like.max_message_size,
        guard: like.guard,
        tls: like.tls,
        room: like.room,
        entrance: like.entrance,
        proxies: like.proxies,
    };
    let (stream, _far) = tokio::io::duplex(64);
    let (caller, stop) = (caller(), CancellationToken::new());
    let size = size_of_val(&converse(&house, &caller, &stop, stream));
    assert!(size < 8 * 1024, "{size} octets");
}

/// What a hostile client might say next.
fn utterance() -> impl Strategy<Value = Vec<u8>> {
    let word = |text: &'static str| Just(text.as_bytes().to_vec());
    prop_oneof![
        word("EHLO friend.example\r\n"),
        word("MAIL FROM:<ann@friend.example>\r\n"),
        word("RCPT TO:<ada@agents.example>\r\n"),
        word("RCPT TO:<fire@agents.example>\r\n"),
        word("DATA\r\n"),
        word("Subject: x\r\n\r\nbody\r\n"),
        word(".\r\n"),
        word("RSET\r\n"),
        word("\r\n"),
        word("\n.\r\n"),
        proptest::collection::vec(any::<u8>(), 0..40),
        "[A-Z]{4} [ -~]{0,40}\r\n".prop_map(String::into_bytes),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is said, in whatever pieces: every reply is a reply, the session ends when the client does,
    /// and no more messages come in than were ended by CRLF.CRLF.
    #[test]
    fn any_conversation_is_survived(said in proptest::collection::vec(utterance(), 0..24)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let ledger = Ledger::default();
            let mut client = dial(&ledger, &CancellationToken::new());
            client.expect("220 ").await;
            for octets in &said {
                client.send(octets).await;
                tokio::task::yield_now().await;
            }
            let _ = client.stream.shutdown().await;
            while let Some(line) = client.hear().await {
                let code = line.get(..3).and_then(|code| code.parse::<u16>().ok());
                assert!(code.is_some_and(|code| (200..560).contains(&code)), "{line:?}");
                assert!(line.len() <= 510 && line.bytes().all(|b| (b' '..=b'~').contains(&b)), "{line:?}");
            }
            let ends = said.concat().windows(5).filter(|end| end == b"\r\n.\r\n").count();
            assert!(ledger.received.lock().unwrap().len() <= ends);
        });
    }
}
