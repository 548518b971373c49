//! How many messages a second come in, and how many go out: `cargo bench --bench road -- in|out [options]`.
//!
//! The server is a process of its own (release build) with its data on the disk of TMPDIR; the load generator, the DNS
//! server and the remote mail server are this process, on the same cores. What is timed:
//!
//! * `in`: from the first connection to the last 250, for messages signed by 20 domains (RSA-2048, mean 9 KB): SPF,
//!   DKIM and DMARC verified against the DNS server here, threaded, with a work item, durable.
//! * `out`: from the first request to the remote's last 250: released by the API, signed twice, delivered by MX.
//! * `claimable`: from the end of DATA until a waiting worker holds the item, at half of full load.
//! * `stored`: the same as `in`, with 10 thousand and with `--stored N` (1,000,000) messages stored before.
//! * `threads`: what a message costs around the 100th, the 1,000th and the 10,000th of one thread.
//! * `hanging`: 10,000 messages to 500 domains of which 5 % hang: whether the others wait for them.
//! * `queued`: memory, disk and the time of a claim with 100,000 messages in the queue.
//!
//! Options: `--postgres`, `--messages N` (4000), `--connections N` (20), `--runs N` (3). Figures are in README.md.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, clippy::panic, dead_code)]

#[path = "road/claimable.rs"]
mod claimable;
#[path = "road/hanging.rs"]
mod hanging;
#[path = "road/queued.rs"]
mod queued;
#[path = "road/remotes.rs"]
mod remotes;
#[path = "road/stored.rs"]
mod stored;
#[path = "road/threads.rs"]
mod threads;
#[path = "road/usage.rs"]
mod usage;
#[path = "../tests/all/world/mod.rs"]
mod world;

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use mail_auth::{
    common::crypto::{RsaKey, Sha256},
    common::headers::HeaderWriter,
    dkim::{Canonicalization, DkimSigner},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};
use world::{api::Api, dns::Dns, postgres::Database, server::TestServer, sink::Sink, smtp::stuffed};

const INBOXES: usize = 20;
const DOMAINS: usize = 20;
/// Of the `Sink`.
const SINK_PORT: u16 = 2526;
/// Of the text of a message that is sent: 4 KiB.
const TEXT_LINES: usize = 96;

struct Options {
    mode: String,
    postgres: bool,
    postfix: bool,
    messages: usize,
    connections: usize,
    runs: usize,
    stored: usize,
}

fn options() -> Options {
    let args = std::env::args().skip(1).filter(|arg| arg != "--bench").collect::<Vec<_>>();
    let number = |name: &str, default| {
        let at = args.iter().position(|arg| arg == name);
        at.and_then(|at| args.get(at + 1)).and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let mode = args.first().cloned().unwrap_or_default();
    let messages = match mode.as_str() {
        "hanging" => 10_000,
        "queued" => 100_000,
        _ => 4_000,
    };
    Options {
        mode,
        postgres: args.iter().any(|arg| arg == "--postgres"),
        postfix: args.iter().any(|arg| arg == "--postfix"),
        messages: number("--messages", messages),
        connections: number("--connections", 20),
        runs: number("--runs", 3),
        stored: number("--stored", 1_000_000),
    }
}

#[tokio::main]
async fn main() {
    let options = options();
    let database =
        if options.postgres { Database::own_postgres().expect("PostgreSQL") } else { Database::Sqlite };
    match options.mode.as_str() {
        "in" => inbound(&options, &database).await,
        "out" => outbound(&options, &database).await,
        "claimable" => claimable::run(&options, &database).await,
        "stored" => stored::run(&options, &database).await,
        "threads" => threads::run(&options, &database).await,
        "hanging" => hanging::bench(&options, &database).await,
        "queued" => queued::run(&options, &database).await,
        _ => {
            eprintln!(
                "cargo bench --bench road -- in|out|claimable|stored|threads|hanging|queued [--postgres] [--messages N] [--connections N] [--runs N]"
            )
        }
    }
}

async fn inbound(options: &Options, database: &Database) {
    let dns = Dns::start("").await;
    dns.ttl(3600);
    let keys = (0..DOMAINS).map(|n| key(&dns, &format!("s{n}.example"))).collect::<Vec<_>>();
    let server = start(database, &dns, SINK_PORT).await;
    for run in 1..=options.runs {
        let corpus = Arc::new(corpus(&keys, options.messages));
        let mean = corpus.iter().map(Vec::len).sum::<usize>() / corpus.len();
        println!("in: {} messages of {mean} bytes, {} connections", options.messages, options.connections);
        let cpu = cpu_seconds(server.pid());
        let begun = Instant::now();
        let waits = all_at_once(server.smtp, corpus, options.connections).await;
        report(run, options.messages, begun.elapsed(), cpu_seconds(server.pid()) - cpu, waits);
    }
    let message = server.api.get("/v0/inboxes/u0@agents.example/messages?limit=1").await.ok();
    let id = world::api::path_escape(message["messages"][0]["message_id"].as_str().unwrap());
    let full = server.api.get(&format!("/v0/inboxes/u0@agents.example/messages/{id}")).await.ok();
    println!("the last of them: {}", full["verdict"]);
}

/// Every message, over so many connections; the times from the final dot to the 250.
async fn all_at_once(
    address: std::net::SocketAddr,
    corpus: Arc<Vec<Vec<u8>>>,
    connections: usize,
) -> Vec<Duration> {
    let next = Arc::new(AtomicUsize::new(0));
    let tasks = (0..connections)
        .map(|_| tokio::spawn(connection(address, corpus.clone(), next.clone())))
        .collect::<Vec<_>>();
    let mut waits = Vec::new();
    for task in tasks {
        waits.extend(task.await.expect("connection"));
    }
    waits
}

/// Messages one after the other on one connection; gives the times from the final dot to the 250.
async fn connection(
    address: std::net::SocketAddr,
    corpus: Arc<Vec<Vec<u8>>>,
    next: Arc<AtomicUsize>,
) -> Vec<Duration> {
    let stream = TcpStream::connect(address).await.expect("connect");
    stream.set_nodelay(true).expect("nodelay");
    let mut wire = BufReader::new(stream);
    let mut waits = Vec::new();
    expect(&mut wire, "220").await;
    wire.write_all(b"EHLO client.example\r\n").await.expect("EHLO");
    expect(&mut wire, "250").await;
    loop {
        let n = next.fetch_add(1, Ordering::Relaxed);
        let Some(message) = corpus.get(n) else { return waits };
        let to = n % INBOXES;
        let envelope = format!(
            "MAIL FROM:<bounces@s{}.example>\r\nRCPT TO:<u{to}@agents.example>\r\nDATA\r\n",
            n % DOMAINS
        );
        wire.write_all(envelope.as_bytes()).await.expect("envelope");
        expect(&mut wire, "250").await;
        expect(&mut wire, "250").await;
        expect(&mut wire, "354").await;
        let begun = Instant::now();
        wire.write_all(message).await.expect("message");
        expect(&mut wire, "250").await;
        waits.push(begun.elapsed());
    }
}

async fn expect(wire: &mut BufReader<TcpStream>, code: &str) {
    loop {
        let mut line = String::new();
        wire.read_line(&mut line).await.expect("reply");
        assert!(line.starts_with(code), "expected {code}, got {line:?}");
        if line.as_bytes().get(3) == Some(&b' ') {
            return;
        }
    }
}

/// Signed messages, ready for the wire, no two alike.
fn corpus(keys: &[Pkcs8], count: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|n| {
            let domain = format!("s{}.example", n % DOMAINS);
            let signer = DkimSigner::from_key(keys[n % DOMAINS].key())
                .domain(&domain)
                .selector("k1")
                .headers(["From", "To", "Subject", "Date", "Message-ID"])
                .header_canonicalization(Canonicalization::Relaxed)
                .body_canonicalization(Canonicalization::Relaxed);
            let mut body = String::new();
            while body.len() < 2000 + (n * 7919) % 14000 {
                let _ = write!(body, "Line {} of message {n}: {:016x}{:016x}\r\n", body.len(), n * 31, body.len() * 7);
            }
            let message = format!(
                "From: Sender <a@{domain}>\r\nTo: u{}@agents.example\r\nSubject: Order {n}\r\n\
                 Date: Sat, 21 Nov 2026 03:04:05 +0000\r\nMessage-ID: <{n}.{}@{domain}>\r\nMIME-Version: 1.0\r\n\
                 Content-Type: text/plain; charset=utf-8\r\n\r\n{body}",
                n % INBOXES,
                world::dice(u64::MAX),
            );
            let signature = signer.sign(message.as_bytes()).expect("sign").to_header();
            stuffed(format!("{signature}{message}").as_bytes())
        })
        .collect()
}

struct Pkcs8(Vec<u8>);

impl Pkcs8 {
    fn key(&self) -> RsaKey<Sha256> {
        let der = rustls::pki_types::PrivatePkcs8KeyDer::from(self.0.clone());
        RsaKey::<Sha256>::from_key_der(der.into()).expect("key")
    }
}

/// A key for a domain, published with its SPF and DMARC records.
fn key(dns: &Dns, domain: &str) -> Pkcs8 {
    use aws_lc_rs::{
        encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der},
        rsa::{KeyPair, KeySize},
        signature::KeyPair as _,
    };
    use base64::{Engine, engine::general_purpose::STANDARD};
    let pair = KeyPair::generate(KeySize::Rsa2048).expect("RSA key");
    let public: PublicKeyX509Der<'_> = pair.public_key().as_der().expect("public key");
    let private: Pkcs8V1Der<'_> = pair.as_der().expect("private key");
    dns.add(&format!(
        "k1._domainkey.{domain} TXT v=DKIM1; k=rsa; p={}\n{domain} TXT v=spf1 ip4:127.0.0.0/8 -all\n\
         _dmarc.{domain} TXT v=DMARC1; p=reject\n{domain} MX 10 mx.{domain}\n",
        STANDARD.encode(public.as_ref()),
    ));
    Pkcs8(private.as_ref().to_vec())
}

async fn outbound(options: &Options, database: &Database) {
    let sink = Sink::start().await;
    let dns = Dns::start("").await;
    dns.ttl(3600);
    (0..DOMAINS).for_each(|n| dns.add(&sink.zone(&format!("r{n}.example"))));
    let server = start(database, &dns, SINK_PORT).await;
    println!(
        "out: {} messages of 4 KiB to {DOMAINS} domains, {} clients",
        options.messages, options.connections
    );
    for run in 1..=options.runs {
        let before = sink.count();
        let cpu = cpu_seconds(server.pid());
        let begun = Instant::now();
        let text = "A line of forty characters, more or less.\r\n".repeat(TEXT_LINES);
        let waits = send_all(&server.api, options.messages, options.connections, move |n| {
            let to = format!("x{n}@r{}.example", n % DOMAINS);
            let inbox = format!("u{}@agents.example", n % INBOXES);
            (inbox, json!({"to": to, "subject": format!("Run {run}, {n}"), "text": text}))
        });
        let waits = waits.await;
        let released = begun.elapsed();
        while sink.count() < before + options.messages {
            assert!(begun.elapsed() < Duration::from_secs(300), "only {} arrived", sink.count() - before);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        println!("run {run}: released {:.0}/s", options.messages as f64 / released.as_secs_f64());
        report(run, options.messages, begun.elapsed(), cpu_seconds(server.pid()) - cpu, waits);
    }
    let last = sink.taken().pop().expect("mail");
    let signatures =
        world::mail::headers(&last.message).iter().filter(|(n, _)| n == "DKIM-Signature").count();
    println!("the last of them has {signatures} DKIM signatures; {} connections in all", sink.connections());
}

/// Sends so many messages, each as `message` says from its number (inbox and body), over so many connections; the times
/// until they are released.
async fn send_all(
    api: &Api,
    total: usize,
    connections: usize,
    message: impl Fn(usize) -> (String, Value) + Send + Sync + 'static,
) -> Vec<Duration> {
    let (next, message) = (Arc::new(AtomicUsize::new(0)), Arc::new(message));
    let clients = (0..connections).map(|_| {
        let (api, next, message) = (api.clone(), next.clone(), message.clone());
        tokio::spawn(async move {
            let mut waits = Vec::new();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= total {
                    return waits;
                }
                let (inbox, body) = message(n);
                let begun = Instant::now();
                api.post(&format!("/v0/inboxes/{inbox}/messages/send"), body).await.ok();
                waits.push(begun.elapsed());
            }
        })
    });
    let mut waits = Vec::new();
    for client in clients.collect::<Vec<_>>() {
        waits.extend(client.await.expect("client"));
    }
    waits
}

/// A server for `INBOXES` agents without limits, whose mail leaves to this port.
async fn start(database: &Database, dns: &Dns, port: u16) -> TestServer {
    let mut setup = TestServer::new().on(database).dns(dns).relay_port(port);
    for n in 0..INBOXES {
        setup = setup.inbox(&format!("u{n}"));
    }
    let server = setup.config("[log]\nlevel = \"warn\"").start().await;
    for n in 0..INBOXES {
        let none = json!({"per_minute": null, "per_hour": null, "per_day": null});
        server.api.put(&format!("/v1/inboxes/u{n}@agents.example/limits"), none).await.ok();
    }
    server
}

fn report(run: usize, messages: usize, took: Duration, cpu: f64, mut waits: Vec<Duration>) {
    println!(
        "run {run}: {:.0} messages/s ({messages} in {:.2} s), {}, server CPU {:.0} us a message",
        messages as f64 / took.as_secs_f64(),
        took.as_secs_f64(),
        quantiles(&mut waits),
        cpu * 1e6 / messages as f64,
    );
}

fn quantiles(waits: &mut [Duration]) -> String {
    waits.sort();
    let at = |share: f64| {
        let wait = waits.get(((waits.len().max(1) - 1) as f64 * share) as usize);
        wait.map_or(f64::NAN, |wait| wait.as_secs_f64() * 1000.0)
    };
    format!("p50 {:.1} ms, p95 {:.1} ms, p99 {:.1} ms", at(0.5), at(0.95), at(0.99))
}

/// User and system time of a process (proc(5): fields 14 and 15, in ticks of 10 ms).
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = after.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<f64>().ok()).sum::<f64>();
    ticks / 100.0
}
