//! Out, beside Postfix with opendkim: `cargo bench --bench relay -- [--runs N] [--messages N] [--connections N] [--size N]`.
//!
//! Each run gives the same number of messages of the same size over as many connections to both, one after the other,
//! and the time ends when loadgen's sink has the last of them:
//!
//! * Postfix (`setup/postfix.sh start pf-sign 2560 sign` of the harness): `loadgen relay`, SMTP.
//! * Gatepost (`ours.sh start`): POST /v0/inboxes/…/messages/send, until there is submission by SMTP.
//!
//! Both send everything to 127.0.0.1:2599. `LG` names loadgen. What is not signed, or not delivered, ends the bench.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

const SINK: &str = "127.0.0.1:2599";
const POSTFIX: &str = "127.0.0.1:2560";
const GATEPOST: &str = "127.0.0.1:2702";
/// As `ours.sh` sets it.
const KEY: &str = "gp_bench_admin_key_0123456789abcdefghijklmnopqrstuvwxyz";
const DOMAINS: usize = 20;
const INBOXES: usize = 20;
/// Between two, so that neither works on what it still has to tidy up in the other's time.
const PAUSE: Duration = Duration::from_secs(2);

struct Options {
    runs: usize,
    messages: usize,
    connections: usize,
    size: usize,
}

// As loadgen: one thread.
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args = std::env::args().collect::<Vec<_>>();
    let number = |name: &str, default| {
        let at = args.iter().position(|arg| arg == name);
        at.and_then(|at| args.get(at + 1)).map_or(default, |text| text.parse().expect("a number"))
    };
    let options = Options {
        runs: number("--runs", 5),
        messages: number("--messages", 2000),
        connections: number("--connections", 20),
        size: number("--size", 4096),
    };
    println!(
        "{} messages of {} octets over {} connections to {DOMAINS} domains, until the sink has the last",
        options.messages, options.size, options.connections
    );
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    for run in 1..=options.runs {
        let postfix = postfix(&options);
        std::thread::sleep(PAUSE);
        let gatepost = gatepost(&options).await;
        std::thread::sleep(PAUSE);
        println!(
            "run {run}: Postfix + opendkim {postfix:.0}/s, Gatepost {gatepost:.0}/s: {:.2} times",
            gatepost / postfix
        );
        theirs.push(postfix);
        ours.push(gatepost);
    }
    let (theirs, ours) = (median(&mut theirs), median(&mut ours));
    println!("medians: {theirs:.0}/s, {ours:.0}/s: {:.2} times", ours / theirs);
}

fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn loadgen() -> Command {
    Command::new(std::env::var("LG").unwrap_or("/var/tmp/mailbench/target/release/loadgen".into()))
}

/// What loadgen says at its end.
fn said(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|_| panic!("loadgen: {text}"))
}

fn postfix(options: &Options) -> f64 {
    let (count, size) = (options.messages.to_string(), options.size.to_string());
    let connections = options.connections.to_string();
    let output = loadgen()
        .args(["relay", "--to", POSTFIX, "--rcpts", "x@r%d.example:20", "--listen", SINK, "--reuse", "10"])
        .args(["--count", &count, "--conns", &connections, "--size", &size])
        .output()
        .expect("loadgen");
    let result = said(&output);
    assert_eq!(result["delivered"], options.messages, "{result}");
    assert_eq!(result["sink_signed"], options.messages, "{result}");
    result["per_s"].as_f64().expect("a rate")
}

async fn gatepost(options: &Options) -> f64 {
    let sink = loadgen()
        .args(["sink", "--listen", SINK, "--expect", &options.messages.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .expect("loadgen");
    while TcpStream::connect(SINK).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The sink ends when it has them all.
    let sink = std::thread::spawn(move || {
        let output = sink.wait_with_output().expect("loadgen");
        (Instant::now(), output)
    });
    let requests: Arc<Vec<Vec<u8>>> =
        Arc::new((0..options.messages).map(|n| request(n, options.size)).collect());
    let (next, begun) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let clients = (0..options.connections)
        .map(|_| tokio::spawn(client(requests.clone(), next.clone())))
        .collect::<Vec<_>>();
    for client in clients {
        client.await.expect("client");
    }
    let (ended, output) = sink.join().expect("sink");
    let result = said(&output);
    assert_eq!(result["received"], options.messages, "{result}");
    assert_eq!(result["signed"], options.messages, "{result}");
    options.messages as f64 / ended.duration_since(begun).as_secs_f64()
}

/// One request after the other on one connection.
async fn client(requests: Arc<Vec<Vec<u8>>>, next: Arc<AtomicUsize>) {
    let stream = TcpStream::connect(GATEPOST).await.expect("connect");
    stream.set_nodelay(true).expect("nodelay");
    let mut wire = BufReader::new(stream);
    while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
        wire.write_all(request).await.expect("request");
        let (mut status, mut length) = (String::new(), 0);
        wire.read_line(&mut status).await.expect("status");
        loop {
            let mut line = String::new();
            wire.read_line(&mut line).await.expect("header");
            if line.trim().is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').expect("header");
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().expect("length");
            }
        }
        let mut body = vec![0; length];
        wire.read_exact(&mut body).await.expect("body");
        assert!(status.starts_with("HTTP/1.1 200"), "{status}{}", String::from_utf8_lossy(&body));
    }
}

fn request(n: usize, size: usize) -> Vec<u8> {
    let text = "agent mail report deploy status ticket invoice meeting result token\r\n".repeat(size / 69);
    let to = format!("x@r{}.example", n % DOMAINS);
    let body = json!({"to": to, "subject": format!("synthetic message {n}"), "text": text}).to_string();
    format!(
        "POST /v0/inboxes/u{}@bench.test/messages/send HTTP/1.1\r\nHost: {GATEPOST}\r\nAuthorization: Bearer {KEY}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        n % INBOXES,
        body.len()
    )
    .into_bytes()
}
