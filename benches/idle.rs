//! What a connection costs that says EHLO and then nothing: `cargo bench --bench idle [-- options]`.
//!
//! The server is a process of its own; its memory (proportional set size, /proc/PID/smaps_rollup) is read before, with
//! all connections open and idle, and after they have gone. The kernel's share, about 5 KiB for each end of a socket,
//! is not in it. Options: `--connections N` (5000), `--tls` (after STARTTLS). The server and this process each need as
//! many open files.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, clippy::panic, dead_code)]

#[path = "../tests/all/world/mod.rs"]
mod world;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use world::{server::TestServer, smtp::Smtp};

const AT_ONCE: usize = 50;

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let number =
        args.iter().position(|arg| arg == "--connections").and_then(|at| args.get(at + 1)?.parse().ok());
    let (wanted, tls) = (number.unwrap_or(5_000), args.iter().any(|arg| arg == "--tls"));
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let all = rustix::process::Rlimit { current: files.maximum, maximum: files.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, all).expect("open files");
    let server = TestServer::new()
        .inbox("ada")
        .config(&format!("[smtp.limits]\nsessions = {}\n[log]\nlevel = \"warn\"", wanted + 100))
        .start()
        .await;
    // What the first connections make for all that follow is not theirs.
    drop(join_all((0..AT_ONCE).map(|_| idle(&server, tls))).await);
    settle(&server, 0).await;
    let before = pss_kib(server.pid());
    let begun = Instant::now();
    let mut open = Vec::new();
    while open.len() < wanted {
        let batch = AT_ONCE.min(wanted - open.len());
        open.extend(join_all((0..batch).map(|_| idle(&server, tls))).await);
    }
    let took = begun.elapsed();
    settle(&server, 1).await;
    let with = pss_kib(server.pid());
    println!(
        "idle: {wanted} connections{} in {:.1} s: {before} KiB before, {with} KiB with them, {:.2} KiB each",
        if tls { " over TLS" } else { "" },
        took.as_secs_f64(),
        with.saturating_sub(before) as f64 / wanted as f64,
    );
    let begun = Instant::now();
    server
        .receive("bob@remote.example", "ada@agents.example", b"Subject: beside them\r\n\r\nHello\r\n")
        .await;
    println!("a message beside them: {:.1} ms", begun.elapsed().as_secs_f64() * 1000.0);
    drop(open);
    settle(&server, 5).await;
    println!("{} KiB after they have gone", pss_kib(server.pid()));
}

async fn idle(server: &TestServer, tls: bool) -> Smtp {
    let mut smtp = server.dial().await;
    if tls {
        smtp = smtp.starttls().await;
    }
    smtp.expect("EHLO client.example", 250).await;
    smtp
}

/// Gives the server some seconds to put things in order, which nobody announces.
async fn settle(server: &TestServer, seconds: u64) {
    tokio::time::sleep(Duration::from_secs(1 + seconds)).await;
    assert!(server.alive());
}

/// KiB that the process has to itself, and its share of what it does not.
fn pss_kib(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps_rollup");
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).expect("Pss");
    line.split_whitespace().next().unwrap().parse().unwrap()
}
