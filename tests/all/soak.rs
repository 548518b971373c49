//! Slow, broken, flooding and honest clients together, against one server: all honest mail arrives, memory stays
//! bounded, and the numbers are printed (`cargo test --test all soak -- --nocapture`).
//!
//! It takes 20 s; `GATEPOST_SOAK_SECONDS=3600` soaks for an hour. Each sort of client has its own networks in 127/8,
//! and none is exempt. Honest clients behave as mail servers do: what is answered 4xx, or not at all, is sent again.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::world::{dice, mail, server::TestServer, smtp::Smtp};

const HONEST: u8 = 8;
const SLOW: u8 = 60;
/// KiB that the server may grow by while all this goes on. 500 sessions at 40 KiB, the messages under way and what
/// the allocator keeps.
const GROWTH: u64 = 192 * 1024;

struct World {
    server: SocketAddr,
    over: AtomicBool,
    /// Subjects that were answered 250, by client.
    accepted: Mutex<Vec<(u8, String)>>,
    slowest_ms: AtomicU64,
    again: AtomicU64,
    slow: AtomicU64,
    broken: AtomicU64,
    turned_away: AtomicU64,
    guesses: AtomicU64,
}

impl World {
    fn goes_on(&self) -> bool {
        !self.over.load(Relaxed)
    }

    async fn dial(&self, from: [u8; 4]) -> std::io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((Ipv4Addr::from(from), 0)))?;
        socket.connect(self.server).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn honest_mail_keeps_flowing_beside_slow_broken_and_flooding_clients() {
    let seconds = std::env::var("GATEPOST_SOAK_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(20);
    let mut setup = TestServer::new()
        .config("[smtp.limits]\nsessions = 600\nsessions_per_address = 4\nexempt = \"127.0.0.0/16\"");
    for n in 0..HONEST {
        setup = setup.inbox(&format!("agent{n}"));
    }
    let server = setup.start().await;
    let world = Arc::new(World {
        server: server.smtp,
        over: AtomicBool::new(false),
        accepted: Mutex::default(),
        slowest_ms: AtomicU64::new(0),
        again: AtomicU64::new(0),
        slow: AtomicU64::new(0),
        broken: AtomicU64::new(0),
        turned_away: AtomicU64::new(0),
        guesses: AtomicU64::new(0),
    });
    let mut clients = JoinSet::new();
    let before = rss_kib(server.pid());
    (0..HONEST).for_each(|n| drop(clients.spawn(honest(world.clone(), n))));
    (0..SLOW).for_each(|n| drop(clients.spawn(slow(world.clone(), n))));
    (0..6).for_each(|n| drop(clients.spawn(broken(world.clone(), n))));
    (0..4).for_each(|n| drop(clients.spawn(flooding(world.clone(), n))));
    (0..4).for_each(|n| drop(clients.spawn(guessing(world.clone(), n))));
    let (begun, mut peak) = (Instant::now(), before);
    while begun.elapsed() < Duration::from_secs(seconds) {
        sleep(Duration::from_millis(250)).await;
        peak = peak.max(rss_kib(server.pid()));
    }
    world.over.store(true, Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended.expect("a client");
    }
    assert!(server.alive(), "the server did not survive");
    let arrived = everything_arrived(&server, &world).await;
    let after = rss_kib(server.pid());
    println!(
        "soak: {seconds} s, {arrived} honest messages accepted and there, {} attempts made again, slowest {} ms; \
         {} octets from slow clients, {} broken connections, {} turned away, {} addresses guessed; \
         RSS {before} KiB before, {peak} at its peak, {after} after",
        world.again.load(Relaxed),
        world.slowest_ms.load(Relaxed),
        world.slow.load(Relaxed),
        world.broken.load(Relaxed),
        world.turned_away.load(Relaxed),
        world.guesses.load(Relaxed),
    );
    for (count, what) in [
        (&world.slow, "slow"),
        (&world.broken, "broken"),
        (&world.turned_away, "flooding"),
        (&world.guesses, "guessing"),
    ] {
        assert!(count.load(Relaxed) > 0, "there were no {what} clients");
    }
    assert!(peak - before < GROWTH, "{} KiB more than before", peak - before);
}

/// Every message that was answered 250 is in its inbox, and every client got some through; how many in all.
async fn everything_arrived(server: &TestServer, world: &World) -> usize {
    let accepted = world.accepted.lock().unwrap().clone();
    for n in 0..HONEST {
        let path = format!("/v0/inboxes/agent{n}@agents.example/messages");
        let there = server.api.all(&path, "messages").await;
        let there: HashSet<&str> = there.iter().filter_map(|message| message["subject"].as_str()).collect();
        let mine: Vec<_> = accepted.iter().filter(|(client, _)| *client == n).collect();
        assert!(!mine.is_empty(), "client {n} got nothing through");
        for (_, subject) in mine {
            assert!(there.contains(subject.as_str()), "{subject} was accepted and is not there");
        }
    }
    accepted.len()
}

/// A mail server with a message every now and then, one to five on a connection, half of them over TLS.
async fn honest(world: Arc<World>, n: u8) {
    let to = format!("agent{n}@agents.example");
    let mut sent = 0;
    while world.goes_on() {
        let Ok(stream) = world.dial([127, 2, n, 1]).await else { continue };
        let mut smtp = match Smtp::over(stream).await {
            Ok(smtp) => smtp,
            Err(_) => {
                world.again.fetch_add(1, Relaxed);
                sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        if n.is_multiple_of(2) {
            smtp = smtp.starttls().await;
        }
        let mut hello = smtp.command("EHLO friend.example").await.is_ok_and(|reply| reply.code == 250);
        for _ in 0..=dice(4) {
            let subject = format!("honest {n} {sent}");
            let from = format!("{n}@friend{n}.example");
            let letter = mail::letter(&from, &to, &subject, &format!("{n}.{sent}@friend.example"), "", "Hi");
            let begun = Instant::now();
            match smtp.transaction(&from, &[&to], &letter).await {
                Ok(reply) if reply.code == 250 => {
                    world.accepted.lock().unwrap().push((n, subject));
                    world.slowest_ms.fetch_max(begun.elapsed().as_millis() as u64, Relaxed);
                    sent += 1;
                }
                Ok(reply) => {
                    assert_eq!(reply.code / 100, 4, "honest mail was refused: {reply:?}");
                    world.again.fetch_add(1, Relaxed);
                    hello = false;
                }
                Err(_) => hello = false,
            }
            sleep(Duration::from_millis(150)).await;
            if !hello {
                break;
            }
        }
    }
}

/// One octet at a time, as commands or inside a message.
async fn slow(world: Arc<World>, n: u8) {
    let commands =
        b"EHLO slow.example\r\nMAIL FROM:<slow@slow.example>\r\nRCPT TO:<agent0@agents.example>\r\nDATA\r\n";
    while world.goes_on() {
        let Ok(mut stream) = world.dial([127, 3, n, 1]).await else { continue };
        let mut heard = [0; 512];
        let _ = timeout(Duration::from_secs(5), stream.read(&mut heard)).await;
        let mut octets = commands.iter().chain(b"Subject: slow".iter().cycle()).enumerate();
        // A third of them comes to DATA first, and is slow there.
        if n.is_multiple_of(3) {
            for line in commands.split_inclusive(|octet| *octet == b'\n') {
                let _ = stream.write_all(line).await;
                let _ = timeout(Duration::from_secs(5), stream.read(&mut heard)).await;
            }
            octets.nth(commands.len() - 1);
        }
        for (at, octet) in octets {
            if !world.goes_on() || stream.write_all(&[*octet]).await.is_err() {
                break;
            }
            world.slow.fetch_add(1, Relaxed);
            if at < commands.len() && *octet == b'\n' {
                let _ = timeout(Duration::from_secs(5), stream.read(&mut heard)).await;
            }
            sleep(Duration::from_millis(300)).await;
        }
    }
}

/// Garbage, half of a TLS handshake, a reset in the middle of a message, false line ends.
async fn broken(world: Arc<World>, n: u8) {
    let begin = b"EHLO broken.example\r\n".as_slice();
    let envelope = b"MAIL FROM:<a@broken.example>\r\nRCPT TO:<agent1@agents.example>\r\nDATA\r\n".as_slice();
    while world.goes_on() {
        let Ok(mut stream) = world.dial([127, 4, n, dice(200) as u8 + 1]).await else { continue };
        let mut heard = [0; 512];
        let early = dice(8) == 0;
        if !early {
            let _ = timeout(Duration::from_secs(5), stream.read(&mut heard)).await;
        }
        let noise: Vec<u8> = (0..dice(5000)).map(|_| dice(256) as u8).collect();
        let mut said: Vec<&[u8]> = vec![begin];
        match dice(5) {
            0 => said = vec![&noise],
            1 => said.extend([
                b"STARTTLS\r\n".as_slice(),
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
                &noise,
            ]),
            2 => said.extend([envelope, b"Subject: cut off\r\n\r\n", &noise]),
            3 => said.extend([envelope, b"Subject: false end\r\n\r\n\n.\nMAIL FROM:<x@y.example>\r\n"]),
            _ => said.extend([b"STARTTLS\r\nRSET\r\n".as_slice(), &noise]),
        }
        for octets in said {
            if stream.write_all(octets).await.is_err() {
                break;
            }
            let _ = timeout(Duration::from_millis(20), stream.read(&mut heard)).await;
        }
        if dice(2) == 0 {
            let _ = stream.set_zero_linger();
        }
        world.broken.fetch_add(1, Relaxed);
        drop(stream);
        sleep(Duration::from_millis(5)).await;
    }
}

/// As many connections as can be had from one address, each with a large message that never ends.
async fn flooding(world: Arc<World>, n: u8) {
    let envelope =
        b"EHLO flood.example\r\nMAIL FROM:<f@flood.example>\r\nRCPT TO:<agent2@agents.example>\r\nDATA\r\n";
    let line = [b"x".repeat(998), b"\r\n".to_vec()].concat().repeat(64);
    let mut held = Vec::new();
    while world.goes_on() {
        let Ok(mut stream) = world.dial([127, 5, 16 * n, 1]).await else { continue };
        let mut heard = [0; 512];
        let greeting = timeout(Duration::from_secs(5), stream.read(&mut heard)).await;
        if !matches!(greeting, Ok(Ok(octets)) if heard[..octets].starts_with(b"220")) {
            world.turned_away.fetch_add(1, Relaxed);
            sleep(Duration::from_millis(10)).await;
            continue;
        }
        for command in envelope.split_inclusive(|octet| *octet == b'\n') {
            let _ = stream.write_all(command).await;
            let _ = timeout(Duration::from_secs(5), stream.read(&mut heard)).await;
        }
        let _ = timeout(Duration::from_millis(50), stream.write_all(&line)).await;
        held.push(stream);
        if held.len() >= 100 {
            held.drain(..50);
        }
    }
}

/// RCPT for names that might exist.
async fn guessing(world: Arc<World>, n: u8) {
    while world.goes_on() {
        let Ok(stream) = world.dial([127, 6, n, 1]).await else { continue };
        let Ok(mut smtp) = Smtp::over(stream).await else {
            world.turned_away.fetch_add(1, Relaxed);
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let _ = smtp.command("EHLO guess.example").await;
        let _ = smtp.command("MAIL FROM:<g@guess.example>").await;
        while world.goes_on() {
            let to = format!("RCPT TO:<{:x}@agents.example>", dice(u64::MAX));
            match smtp.command(&to).await {
                Ok(reply) if reply.code == 550 => _ = world.guesses.fetch_add(1, Relaxed),
                _ => break,
            }
        }
    }
}

fn rss_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).expect("VmRSS")
}
