//! What a long queue costs: `--messages N` (100,000) messages of 4 KiB to 500 sites, sent by HTTP and held by a rule.
//!
//! Memory of the server before, with all of them held, with all of them due to sites that take half a second for each
//! (the queue then holds as many rows as it ever does), and after the last has left; octets of disk for each; and one
//! claim while all are due, made by this process on the stopped server's database: of 256 rows with nothing in its
//! way, and with all sites but 25 left out because their mail already waits.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use gatepost::{
    clock::Clock,
    gate,
    store::{
        Store, StoreError,
        delivery::{self, Turn},
    },
};
use serde_json::json;

use crate::{
    INBOXES, Options, TEXT_LINES,
    hanging::DOMAINS,
    quantiles,
    remotes::{self, Manner, Remotes},
    send_all, start,
    usage::{Peak, memory},
    world::{dns::Dns, eventually, postgres::Database, server::TestServer},
};

const SLOW: Duration = Duration::from_millis(500);
/// As the queue claims.
const CLAIM: i64 = 256;
const CLAIMS: usize = 20;
const FREE: usize = 25;

pub async fn run(options: &Options, database: &Database) {
    let remotes = Remotes::start(DOMAINS, |_| Manner::Answers).await;
    let dns = Dns::start(&remotes::zone(DOMAINS)).await;
    dns.ttl(3600);
    let server = start(database, &dns, remotes::PORT).await;
    for n in 0..INBOXES {
        let rule = json!({"inbox_id": format!("u{n}@agents.example")});
        server.api.post("/v1/queue/rules", rule).await.ok();
    }
    println!("before: {}; {} MiB of disk", memory(server.pid()), folder(&server) >> 20);
    let before = folder(&server);
    let text = "A line of forty characters, more or less.\r\n".repeat(TEXT_LINES);
    let begun = Instant::now();
    let sent = send_all(&server.api, options.messages, options.connections, move |n| {
        let to = format!("x{n}@{}", remotes::domain(n % DOMAINS));
        let inbox = format!("u{}@agents.example", n / DOMAINS % INBOXES);
        (inbox, json!({"to": to, "subject": format!("Message {n}"), "text": text}))
    });
    let mut waits = sent.await;
    println!(
        "{} held after {:.1} s, POST → 200 {}: {}",
        options.messages,
        begun.elapsed().as_secs_f64(),
        quantiles(&mut waits),
        memory(server.pid())
    );
    tokio::time::sleep(Duration::from_secs(5)).await;
    println!("five seconds later: {}", memory(server.pid()));
    server.stop().await;
    println!("{} octets of disk for each", (folder(&server) - before) / options.messages as u64);

    let url = database.url().unwrap_or_else(|| format!("sqlite:{}/data/gatepost.db", server.dir.display()));
    claims(&url).await;

    remotes.take_for(SLOW);
    server.restart().await;
    let (begun, peak) = (Instant::now(), Peak::watch(server.pid()));
    let mut held = 0;
    while begun.elapsed() < Duration::from_secs(30) {
        let summary = server.api.get("/v1/queue?limit=1").await.ok();
        held = held.max(summary["summary"]["attempting"].as_u64().unwrap_or(0));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let (most, sockets) = peak.end();
    println!(
        "all due to slow sites, for 30 s ({} left): at most {held} rows in hand, {sockets} sockets, {most}",
        remotes.count()
    );
    remotes.take_for(Duration::ZERO);
    let (begun, left, peak) = (Instant::now(), remotes.count(), Peak::watch(server.pid()));
    while remotes.count() < options.messages {
        assert!(begun.elapsed() < Duration::from_secs(600), "only {} arrived", remotes.count());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let took = begun.elapsed().as_secs_f64();
    println!(
        "the other {} in {took:.1} s: {:.0}/s, {} twice, at most {}",
        options.messages - left,
        (options.messages - left) as f64 / took,
        remotes.twice(),
        peak.end().0
    );
    eventually("the queue is empty", async || {
        let summary = server.api.get("/v1/queue?limit=1").await.ok();
        (summary["summary"]["attempting"] == 0).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    println!("after: {}", memory(server.pid()));
}

/// Octets of the data folder.
fn folder(server: &TestServer) -> u64 {
    let files = std::fs::read_dir(server.dir.join("data")).expect("data folder");
    files.flatten().filter_map(|file| file.metadata().ok()).map(|data| data.len()).sum()
}

/// Makes everything due, and times claims as the queue makes them.
async fn claims(url: &str) {
    let store = Store::open(&url.parse().expect("URL"), Clock::system()).await.expect("store");
    let due: Result<u64, StoreError> = store
        .write(|tx| {
            Box::pin(async move {
                tx.execute("DELETE FROM hold_rule", &[]).await?;
                tx.execute("UPDATE delivery SET state = 'due', held_by = NULL WHERE state = 'held'", &[])
                    .await
            })
        })
        .await;
    let due = due.expect("all due");
    let all_but_some = (FREE..DOMAINS).map(remotes::domain).collect::<Vec<_>>();
    for (what, busy) in [("nothing in its way", Vec::new()), ("all sites but 25 busy", all_but_some)] {
        let busy: Arc<str> = serde_json::to_string(&busy).expect("JSON").into();
        let (mut turn, mut waits, mut rows) = (Turn::default(), Vec::new(), 0);
        for _ in 0..CLAIMS {
            let begun = Instant::now();
            let (place, busy) = (turn.clone(), busy.clone());
            let claimed = store.write(move |tx| {
                let (place, busy) = (place.clone(), busy.clone());
                Box::pin(async move {
                    let claimed = delivery::claim(tx, "bench", CLAIM, &busy, &place).await?;
                    gate::recheck(tx, &claimed.rows).await?;
                    if !claimed.more {
                        delivery::ahead(tx).await?;
                    }
                    Ok::<_, StoreError>(claimed)
                })
            });
            let claimed = claimed.await.expect("claim");
            waits.push(begun.elapsed());
            rows += claimed.rows.len();
            turn = claimed.turn.clone();
            let given_back = store.write(move |tx| {
                let rows = claimed.rows.clone();
                Box::pin(async move {
                    for row in &rows {
                        delivery::give_back(tx, "bench", row, None).await?;
                    }
                    Ok::<_, StoreError>(())
                })
            });
            given_back.await.expect("given back");
        }
        println!("a claim of {} of {due} due rows, {what}: {}", rows / CLAIMS, quantiles(&mut waits));
    }
    store.close().await;
}
