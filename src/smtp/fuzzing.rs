//! The fuzz targets of the front door: the grammar, the readers of a message, and a whole session. Compiled under
//! `cfg(fuzzing)` alone; see `crate::fuzzing`.

use std::net::Ipv4Addr;
use std::sync::{LazyLock, Mutex, PoisonError};

use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::command::{self, Command, ForwardPath, Mail};
use super::data::{ChunkReader, DataReader, Fault, Progress};
use super::intake::Intake;
use super::*;
use crate::clock::Clock;
use crate::config::SmtpLimits;
use crate::disk::Disk;
use crate::envelope::{DsnRecipient, Notify, NotifyOn, Ret};
use crate::spool::Spool;

/// An octet that is in no command and in no honest message: it divides the input into what is sent at once.
const DIVIDER: u8 = 0xfe;

/// One line. What is written out of a command that was read is read as the same.
pub fn command(line: &[u8]) {
    let Ok(first) = command::parse(line) else { return };
    let Some(written) = write(&first) else { return };
    let again = command::parse(written.as_bytes());
    let again = again.unwrap_or_else(|error| panic!("{first:?} was written as {written:?}: {error}"));
    assert_eq!(write(&again).as_ref(), Some(&written), "{first:?} and {again:?}");
    assert!(!written.contains(['\r', '\n', '\0']), "{written:?}");
}

fn write(command: &Command) -> Option<String> {
    Some(match command {
        Command::Ehlo(name) => format!("EHLO {name}"),
        Command::Helo(name) => format!("HELO {name}"),
        Command::Mail(mail) => write_mail(mail),
        Command::Rcpt(path, dsn) => write_rcpt(path, dsn),
        Command::Data => "DATA".to_owned(),
        Command::Rset => "RSET".to_owned(),
        Command::Noop => "NOOP".to_owned(),
        Command::Quit => "QUIT".to_owned(),
        Command::Vrfy => "VRFY somebody".to_owned(),
        Command::Help => "HELP".to_owned(),
        Command::StartTls => "STARTTLS".to_owned(),
        Command::Bdat { size, last } => format!("BDAT {size}{}", if *last { " LAST" } else { "" }),
        Command::NotOffered(_) => return None,
    })
}

fn write_mail(mail: &Mail) -> String {
    let from = mail.from.as_ref().map(ToString::to_string).unwrap_or_default();
    let mut line = format!("MAIL FROM:<{from}>");
    let asked = &mail.parameters;
    if let Some(size) = asked.size {
        line += &format!(" SIZE={size}");
    }
    if let Some(ret) = asked.ret {
        line += if ret == Ret::Full { " RET=FULL" } else { " RET=HDRS" };
    }
    if let Some(envid) = &asked.envid {
        line += &format!(" ENVID={}", xtext(envid));
    }
    line += if asked.smtputf8 { " SMTPUTF8" } else { "" };
    line += if asked.require_tls { " REQUIRETLS" } else { "" };
    line
}

fn write_rcpt(path: &ForwardPath, dsn: &DsnRecipient) -> String {
    let mut line = match path {
        ForwardPath::Postmaster => "RCPT TO:<postmaster>".to_owned(),
        ForwardPath::Mailbox { address, .. } => format!("RCPT TO:<{address}>"),
    };
    match &dsn.notify {
        Some(Notify::Never) => line += " NOTIFY=NEVER",
        Some(Notify::On(occasions)) => {
            let word = |on: &NotifyOn| match on {
                NotifyOn::Success => "SUCCESS",
                NotifyOn::Failure => "FAILURE",
                NotifyOn::Delay => "DELAY",
            };
            line += &format!(" NOTIFY={}", occasions.iter().map(word).collect::<Vec<_>>().join(","));
        }
        None => {}
    }
    if let Some((kind, address)) = dsn.orcpt.as_deref().and_then(|orcpt| orcpt.split_once(';')) {
        let hidden = |c: char| match c {
            '\\' | '=' | ' ' => format!("\\x{{{:02X}}}", u32::from(c)),
            c => c.to_string(),
        };
        let address = if kind == "utf-8" { address.chars().map(hidden).collect() } else { xtext(address) };
        line += &format!(" ORCPT={kind};{address}");
    }
    line
}

fn xtext(text: &str) -> String {
    let hidden = |octet: u8| match octet {
        b'+' | b'=' | b' ' => format!("+{octet:02X}"),
        octet => char::from(octet).to_string(),
    };
    text.bytes().map(hidden).collect()
}

/// What follows DATA, and the same as a chunk of BDAT. The first octets say where it is cut.
pub fn data(octets: &[u8]) {
    let (cuts, octets) = octets.split_at(octets.len().min(4));
    let pieces = pieces(octets, cuts);
    let mut reader = DataReader::new(Intake::new(LARGEST, room()));
    let (mut before, mut came) = (0, Progress::More);
    for piece in &pieces {
        came = match reader.push(piece) {
            Progress::More => {
                before += piece.len();
                continue;
            }
            Progress::Done { used } => Progress::Done { used: before + used },
            fault => fault,
        };
        break;
    }
    let expected = slowly(octets);
    match (came, &expected) {
        (Progress::More, Slow::More) => {}
        (Progress::Fault(fault), Slow::Fault(expected)) => assert_eq!(fault, *expected),
        (Progress::Done { used }, Slow::Done { message, used: expected }) => {
            assert_eq!(used, *expected);
            let taken = reader.finish().finish().now_or_never().expect("nothing to wait for").expect("taken");
            assert_eq!(taken.octets.to_vec(), *message);
        }
        _ => panic!("{came:?}, expected {expected:?}"),
    }

    let mut reader = ChunkReader::new(Intake::new(LARGEST, room()));
    pieces.iter().for_each(|piece| reader.push(piece));
    match reader.finish() {
        Ok(intake) => {
            assert!(is_clean(octets), "a fault was overlooked");
            let taken = intake.finish().now_or_never().expect("nothing to wait for").expect("taken");
            assert_eq!(taken.octets.to_vec(), octets);
        }
        Err(fault) => assert!(!is_clean(octets), "{fault}"),
    }
}

/// Every CR and LF in a pair, and no NUL.
fn is_clean(octets: &[u8]) -> bool {
    let mut rest = octets.to_vec();
    while let Some(at) = rest.windows(2).position(|pair| pair == b"\r\n") {
        rest.splice(at..at + 2, *b"..");
    }
    !rest.iter().any(|octet| matches!(octet, b'\r' | b'\n' | 0))
}

fn pieces<'a>(octets: &'a [u8], cuts: &[u8]) -> Vec<&'a [u8]> {
    let (mut rest, mut pieces) = (octets, Vec::new());
    for n in cuts.iter().cycle() {
        if rest.is_empty() || pieces.len() > 64 {
            break;
        }
        let (piece, after) = rest.split_at(rest.len().min(usize::from(*n % 32)));
        pieces.push(piece);
        rest = after;
    }
    pieces.push(rest);
    pieces
}

#[derive(Debug)]
enum Slow {
    More,
    Done { message: Vec<u8>, used: usize },
    Fault(Fault),
}

/// What RFC 5321 says, without regard to speed: the first end and the first fault, whichever comes first.
fn slowly(octets: &[u8]) -> Slow {
    let ends = |at: &usize| {
        let upto = &octets[..*at];
        upto == b".\r\n" || upto.ends_with(b"\r\n.\r\n")
    };
    let end = (0..=octets.len()).find(ends);
    let fault = (0..octets.len()).find_map(|at| {
        let before = at.checked_sub(1).map(|at| octets[at]);
        match (before, octets[at]) {
            (_, 0) => Some((at, Fault::Nul)),
            (Some(b'\r'), octet) if octet != b'\n' => Some((at, Fault::BareCr)),
            (before, b'\n') if before != Some(b'\r') => Some((at, Fault::BareLf)),
            _ => None,
        }
    });
    match (end, fault) {
        (Some(end), fault) if fault.is_none_or(|(at, _)| at >= end) => {
            let text = &octets[..end - b".\r\n".len()];
            let mut message = Vec::new();
            let mut line_start = true;
            for (at, octet) in text.iter().enumerate() {
                if !(line_start && *octet == b'.') {
                    message.push(*octet);
                }
                line_start = text[..=at].ends_with(b"\r\n");
            }
            Slow::Done { message, used: end }
        }
        (_, Some((_, fault))) => Slow::Fault(fault),
        _ => Slow::More,
    }
}

const LARGEST: u64 = 1 << 16;

fn room() -> &'static Room {
    static ROOM: LazyLock<Room> = LazyLock::new(|| {
        let folder = std::env::temp_dir().join(format!("gatepost-fuzz-{}", std::process::id()));
        let spool = Spool::open(&folder).expect("a folder for the spool");
        Room { spool, memory: Budget::new(1 << 26), disk: Budget::new(1 << 26), floor: Disk::endless() }
    });
    &ROOM
}

/// Takes everything for agents.example, and remembers it.
#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<Vec<Vec<u8>>>>);

#[derive(Debug, thiserror::Error)]
#[error("no database")]
struct NoDatabase;

impl Backend for Ledger {
    type Recipient = Address;
    type Receipt = ();
    type Error = NoDatabase;

    async fn route(&self, to: &Address, _size: Option<u64>) -> Result<Routed<Address>, NoDatabase> {
        Ok(match (to.local(), to.domain()) {
            ("fire", _) => return Err(NoDatabase),
            ("nobody", "agents.example") => Routed::Unknown,
            ("small", "agents.example") => Routed::TooLarge(100),
            (_, "agents.example") => Routed::Accepted(to.clone()),
            _ => Routed::NotOurs,
        })
    }

    async fn receive<T: Send>(
        &self,
        envelope: Envelope,
        recipients: Vec<Address>,
        raw: Octets,
        turn: impl FnOnce() -> Result<T, Refusal> + Send,
    ) -> Result<(), Refusal> {
        assert_eq!(envelope.recipients.len(), recipients.len());
        assert!(!recipients.is_empty(), "a message for nobody");
        if raw.starts_with(b"Subject: forged") {
            return Err(Refusal { code: 550, enhanced: "5.7.1", text: "No".into() });
        }
        let _turn = turn()?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(raw.to_vec());
        Ok(())
    }

    fn name((): &()) -> &str {
        "receipt"
    }

    fn is_always_reachable(recipient: &Address) -> bool {
        recipient.local() == "postmaster"
    }
}

fn house(ledger: &Ledger) -> House<Ledger> {
    static TLS: LazyLock<Tls> = LazyLock::new(|| {
        let folder = std::env::temp_dir().join(format!("gatepost-fuzz-tls-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        Tls::open("mx.agents.example", &folder, None).expect("a certificate")
    });
    let many = u32::MAX;
    let limits = SmtpLimits {
        sessions: 100,
        sessions_per_address: 100,
        connections_per_minute: many,
        messages_per_minute: many,
        errors_per_hour: many,
        unknown_recipients_per_hour: many,
        exempt: Vec::new(),
    };
    House {
        backend: ledger.clone(),
        hostname: "mx.agents.example".into(),
        first_domain: "agents.example".into(),
        max_message_size: LARGEST,
        guard: Arc::new(Guard::new(limits, Disk::endless(), Clock::system(), Duration::ZERO)),
        tls: TLS.clone(),
        room: room().clone(),
        entrance: Entrance::Clear,
        proxies: Vec::new(),
    }
}

/// A whole session; `DIVIDER` stands where the client waits for the server.
pub fn session(octets: &[u8]) {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    }
    let ledger = Ledger::default();
    let said = RUNTIME.with(|runtime| runtime.block_on(talk(&ledger, octets)));
    let received = ledger.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let sent: Vec<u8> = octets.iter().copied().filter(|octet| *octet != DIVIDER).collect();
    replies_are_replies(&said, received.len());
    every_message_was_sent(&sent, &received);
}

async fn talk(ledger: &Ledger, octets: &[u8]) -> Vec<u8> {
    let (near, mut far) = tokio::io::duplex(1 << 20);
    let house = house(ledger);
    let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let server = tokio::spawn(async move {
        let caller = Caller { id: "fuzz".into(), ip };
        dialogue::converse_at_once(&house, &caller, near).await;
    });
    let mut said = Vec::new();
    hear(&mut far, &mut said).await;
    for piece in octets.split(|octet| *octet == DIVIDER) {
        if far.write_all(piece).await.is_err() {
            break;
        }
        hear(&mut far, &mut said).await;
    }
    drop(far.shutdown().await);
    // The last of what is said comes with the end of the connection.
    let _rest = far.read_to_end(&mut said).await;
    server.await.expect("the session panicked");
    said
}

/// Lets the server run until it has nothing more to say.
async fn hear(far: &mut DuplexStream, said: &mut Vec<u8>) {
    let mut quiet = 0;
    while quiet < 16 {
        tokio::task::yield_now().await;
        let mut buffer = [0; 4096];
        match far.read(&mut buffer).now_or_never() {
            Some(Ok(n @ 1..)) => {
                said.extend_from_slice(&buffer[..n]);
                quiet = 0;
            }
            Some(_) => return,
            None => quiet += 1,
        }
    }
}

/// Lines of the form that RFC 5321 §4.2 asks for, and a 250 for a message exactly where there is a receipt.
fn replies_are_replies(said: &[u8], receipts: usize) {
    if said.windows(4).any(|start| start == b"220 2" || start == b"\x16\x03\x01\x00") {
        return;
    }
    let text = std::str::from_utf8(said).expect("replies are text");
    let mut accepted = 0;
    for line in text.split_inclusive('\n') {
        let line = line.strip_suffix("\r\n").unwrap_or_else(|| panic!("{line:?} has no CRLF"));
        let code = line.get(..3).and_then(|code| code.parse::<u16>().ok());
        assert!(code.is_some_and(|code| (200..600).contains(&code)), "{line:?}");
        assert!(matches!(line.as_bytes().get(3), Some(b' ' | b'-')), "{line:?}");
        assert!(!line.contains(['\r', '\n']) && line.len() <= 510, "{line:?}");
        accepted += usize::from(line.ends_with("Accepted: receipt"));
        // After this the rest is TLS.
        if line.starts_with("220 2.0.0") {
            return;
        }
    }
    assert_eq!(accepted, receipts, "a 250 without a receipt, or the other way round: {text}");
}

/// What was received was sent as a message, once: after DATA up to the first end that RFC 5321 knows, or in chunks.
fn every_message_was_sent(sent: &[u8], received: &[Vec<u8>]) {
    let chunked = sent.windows(4).any(|verb| verb.eq_ignore_ascii_case(b"BDAT"));
    let mut at = 0;
    for message in received {
        assert!(is_clean(message), "a bare CR or LF or a NUL came through: {message:?}");
        let starts = (at..sent.len()).filter(|&start| start == 0 || sent.get(start - 1) == Some(&b'\n'));
        match starts.into_iter().find_map(|start| Some(start + length_as_data(&sent[start..], message)?)) {
            Some(end) => at = end,
            None => assert!(chunked, "{message:?} was never sent as a message"),
        }
    }
}

/// The octets, its end included, in which `sent` begins with this message as DATA has it: line by line, a dot taken
/// from the beginning of each, up to the first line that is a dot (RFC 5321 §4.5.2).
fn length_as_data(sent: &[u8], message: &[u8]) -> Option<usize> {
    let (mut at, mut rest) = (0, message);
    loop {
        let length = sent[at..].windows(2).position(|end| end == b"\r\n")? + 2;
        let line = &sent[at..at + length];
        at += length;
        if line == b".\r\n" {
            return rest.is_empty().then_some(at);
        }
        rest = rest.strip_prefix(line.strip_prefix(b".").unwrap_or(line))?;
    }
}
