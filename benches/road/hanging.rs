//! Mail for 500 domains of which one in twenty hangs: whether the others wait for it.
//!
//! Every domain has an MX name and an address of its own, so that there are 500 sites. Of the 25 that hang, 15 accept
//! the connection and say nothing, 5 have no answer to EHLO, and 5 none to the final dot. They are silent for longer than
//! the bench runs: the deadlines are those of RFC 5321 §4.5.3.2.
//!
//! All is held by rules (one for each inbox) until it is complete, and timed from their removal to the last 250 of a
//! remote that answers: the queue is what is measured, not the way in. Each run does it without those that hang first,
//! on a server of its own.
//!
//! `--postfix`: nothing is held, the time begins with the first submission, and a Postfix with opendkim
//! (`compare/hanging.sh`) gets the same for the same remotes. It is given up after `PATIENCE`.

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{
    io::{AsyncWriteExt, BufReader},
    net::TcpStream,
};

use crate::{
    INBOXES, Options, TEXT_LINES, expect,
    remotes::{self, Manner, Remotes},
    send_all, start,
    usage::Peak,
    world::{dns::Dns, postgres::Database, server::TestServer},
};

pub const DOMAINS: usize = 500;
const PATIENCE: Duration = Duration::from_secs(120);
const POSTFIX: &str = "127.0.0.1:2570";

fn manner(n: usize) -> Manner {
    match (n % 20, n / 20 % 5) {
        (0, 0..=2) => Manner::NeverGreets,
        (0, 3) => Manner::HangsAtHello,
        (0, _) => Manner::HangsAtDot,
        _ => Manner::Answers,
    }
}

fn answers(domain: usize) -> bool {
    manner(domain) == Manner::Answers
}

/// What is sent, in which order: one message for each domain after the other.
fn plan(messages: usize, hanging: bool) -> Arc<Vec<usize>> {
    Arc::new((0..messages).filter(|n| hanging || answers(n % DOMAINS)).collect())
}

pub async fn bench(options: &Options, database: &Database) {
    let remotes = Remotes::start(DOMAINS, manner).await;
    let dns = Dns::start(&remotes::zone(DOMAINS)).await;
    dns.ttl(3600);
    println!(
        "{} messages of 4 KiB to {DOMAINS} domains, {} of which hang; {}",
        options.messages,
        (0..DOMAINS).filter(|n| !answers(*n)).count(),
        if options.postfix { "submitted while they leave" } else { "held until all are queued" },
    );
    let mut ratios = Vec::new();
    for run in 1..=options.runs {
        println!("run {run}, without those that hang:");
        let alone = gatepost(options, database, &dns, &remotes, false).await;
        println!("run {run}, with them:");
        let beside = gatepost(options, database, &dns, &remotes, true).await;
        println!("run {run}: those that answer get {:.2} of what they get alone", beside / alone);
        if options.postfix {
            println!("run {run}, Postfix with opendkim, without those that hang:");
            let theirs = postfix(options, &remotes, false).await;
            println!("run {run}, Postfix with opendkim, with them:");
            let theirs_beside = postfix(options, &remotes, true).await;
            println!("run {run}: {:.1} and {:.1} times Postfix", alone / theirs, beside / theirs_beside);
            ratios.push(beside / theirs_beside);
        }
    }
    if !ratios.is_empty() {
        println!("beside those that hang: {ratios:.1?} times Postfix");
    }
}

/// Messages a second to remotes that answer.
async fn gatepost(
    options: &Options,
    database: &Database,
    dns: &Dns,
    remotes: &Remotes,
    hanging: bool,
) -> f64 {
    remotes.forget();
    let plan = plan(options.messages, hanging);
    let healthy = plan.iter().filter(|n| answers(**n % DOMAINS)).count();
    let server = start(database, dns, remotes::PORT).await;
    let rules = if options.postfix { Vec::new() } else { hold(&server).await };
    let mut begun = Instant::now();
    let peak = Peak::watch(server.pid());
    let all = plan.clone();
    let text = "A line of forty characters, more or less.\r\n".repeat(TEXT_LINES);
    let sent = send_all(&server.api, plan.len(), options.connections, move |at| {
        let n = all[at];
        let to = format!("x{n}@{}", remotes::domain(n % DOMAINS));
        let inbox = format!("u{}@agents.example", n / DOMAINS % INBOXES);
        (inbox, json!({"to": to, "subject": format!("Message {n}"), "text": text}))
    });
    sent.await;
    if !options.postfix {
        println!("  queued in {:.1} s, {} gone", begun.elapsed().as_secs_f64(), remotes.count());
        begun = Instant::now();
        release(&server, rules).await;
    }
    let rate = arrived(remotes, healthy, begun).await;
    let (memory, sockets) = peak.end();
    let summary = server.api.get("/v1/queue?limit=1").await.ok()["summary"].take();
    println!("  at most {sockets} sockets, {memory}; then in the queue: {summary}");
    let left =
        ["due", "attempting", "deferred"].iter().filter_map(|state| summary[*state].as_u64()).sum::<u64>();
    // What the remotes took may not be written yet.
    assert!(left as usize >= plan.len() - healthy, "mail to those that hang is lost");
    rate
}

async fn hold(server: &TestServer) -> Vec<i64> {
    let mut rules = Vec::new();
    for n in 0..INBOXES {
        let rule = json!({"inbox_id": format!("u{n}@agents.example")});
        let made = server.api.post("/v1/queue/rules", rule).await.ok();
        rules.push(made["rule_id"].as_i64().expect("rule_id"));
    }
    rules
}

async fn release(server: &TestServer, rules: Vec<i64>) {
    let removed = rules.into_iter().map(|rule| {
        let api = server.api.clone();
        tokio::spawn(async move {
            api.ask("DELETE", &format!("/v1/queue/rules/{rule}"), &[], None).await.expect("DELETE").ok()
        })
    });
    for removed in removed.collect::<Vec<_>>() {
        removed.await.expect("DELETE");
    }
}

/// Waits for the last message to a remote that answers, or until it takes too long.
async fn arrived(remotes: &Remotes, healthy: usize, begun: Instant) -> f64 {
    while remotes.count() < healthy && begun.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // What comes twice comes a little later.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let count = remotes.count();
    let took = match count == healthy {
        true => remotes.last().map_or(PATIENCE, |last| last.duration_since(begun)),
        false => PATIENCE,
    };
    let rate = count as f64 / took.as_secs_f64();
    println!(
        "  {count} of {healthy} arrived within {:.2} s: {rate:.0}/s, {} twice",
        took.as_secs_f64(),
        remotes.twice()
    );
    rate
}

async fn postfix(options: &Options, remotes: &Remotes, hanging: bool) -> f64 {
    remotes.forget();
    let plan = plan(options.messages, hanging);
    let healthy = plan.iter().filter(|n| answers(**n % DOMAINS)).count();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/compare/hanging.sh");
    let map = (0..DOMAINS)
        .map(|n| format!("{} smtp:[{}]:{}\n", remotes::domain(n), remotes::address(n), remotes::PORT))
        .collect::<String>();
    let file = std::env::temp_dir().join(format!("transport-{}", std::process::id()));
    std::fs::write(&file, map).expect("transport map");
    shell(Command::new(&script).arg("start").arg(&file));
    let begun = Instant::now();
    let (next, mut clients) = (Arc::new(AtomicUsize::new(0)), Vec::new());
    for _ in 0..options.connections {
        clients.push(tokio::spawn(submit(plan.clone(), next.clone())));
    }
    for client in clients {
        client.await.expect("client");
    }
    println!("  submitted in {:.1} s", begun.elapsed().as_secs_f64());
    let rate = arrived(remotes, healthy, begun).await;
    shell(Command::new(&script).arg("stop"));
    let _ = std::fs::remove_file(&file);
    rate
}

/// Its output goes nowhere: what it starts would hold a pipe open.
fn shell(command: &mut Command) {
    let null = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(null.status().expect("a shell").success(), "{command:?}");
}

/// Ten messages a connection, as the harness' own generator.
async fn submit(plan: Arc<Vec<usize>>, next: Arc<AtomicUsize>) {
    let body = "A line of forty characters, more or less.\r\n".repeat(TEXT_LINES);
    loop {
        let mut wire: Option<BufReader<TcpStream>> = None;
        for _ in 0..10 {
            let Some(n) = plan.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
            if wire.is_none() {
                let stream = TcpStream::connect(POSTFIX).await.expect("Postfix");
                stream.set_nodelay(true).expect("nodelay");
                let mut new = BufReader::new(stream);
                expect(&mut new, "220").await;
                new.write_all(b"EHLO client.example\r\n").await.expect("EHLO");
                expect(&mut new, "250").await;
                wire = Some(new);
            }
            let Some(wire) = wire.as_mut() else { return };
            let to = format!("x{n}@{}", remotes::domain(n % DOMAINS));
            let envelope = format!("MAIL FROM:<a@s0.example>\r\nRCPT TO:<{to}>\r\nDATA\r\n");
            wire.write_all(envelope.as_bytes()).await.expect("envelope");
            for code in ["250", "250", "354"] {
                expect(wire, code).await;
            }
            let message = format!(
                "From: a@s0.example\r\nTo: {to}\r\nSubject: Message {n}\r\nDate: Sun, 29 Nov 2026 03:04:05 +0000\r\n\
                 Message-ID: <{n}@s0.example>\r\n\r\n{body}.\r\n"
            );
            wire.write_all(message.as_bytes()).await.expect("message");
            expect(wire, "250").await;
        }
    }
}
