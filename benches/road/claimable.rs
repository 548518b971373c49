//! How long a message takes from the end of DATA until a worker that waits has its item in hand, at half of full load.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{
    io::{AsyncWriteExt, BufReader},
    net::TcpStream,
    sync::mpsc,
};

use crate::{
    DOMAINS, INBOXES, Options, SINK_PORT, all_at_once, corpus, expect, key, quantiles, start,
    world::{api::Api, dns::Dns, postgres::Database},
};

const WORKERS: usize = 16;
/// An empty claim after so long ends a worker.
const IDLE_SECONDS: u64 = 5;

/// When the final dot of each message left.
type Sent = Arc<Mutex<Vec<Option<Instant>>>>;

pub async fn run(options: &Options, database: &Database) {
    let dns = Dns::start("").await;
    dns.ttl(3600);
    let keys = (0..DOMAINS).map(|n| key(&dns, &format!("s{n}.example"))).collect::<Vec<_>>();
    let server = start(database, &dns, SINK_PORT).await;
    let full = {
        let messages = Arc::new(corpus(&keys, options.messages));
        let begun = Instant::now();
        all_at_once(server.smtp, messages, options.connections).await;
        options.messages as f64 / begun.elapsed().as_secs_f64()
    };
    // The items of the first load are out of the way before the clock starts.
    let all = json!({"limit": 10, "lease_seconds": 3600});
    while server.api.post("/v1/work-items/claim", all.clone()).await.ok()["count"] != 0 {}
    let rate = full / 2.0;
    println!(
        "full load: {full:.0} messages/s; {} at {rate:.0}/s, {WORKERS} workers waiting",
        options.messages
    );

    let messages = Arc::new(corpus(&keys, options.messages));
    let sent: Sent = Arc::new(Mutex::new(vec![None; messages.len()]));
    let workers =
        (0..WORKERS).map(|_| tokio::spawn(work(server.api.clone(), sent.clone()))).collect::<Vec<_>>();
    let (give, take) = mpsc::channel::<usize>(options.messages);
    let take = Arc::new(tokio::sync::Mutex::new(take));
    let senders = (0..options.connections)
        .map(|_| tokio::spawn(send(server.smtp, take.clone(), messages.clone(), sent.clone())))
        .collect::<Vec<_>>();
    let begun = Instant::now();
    for n in 0..messages.len() {
        tokio::time::sleep_until((begun + Duration::from_secs_f64(n as f64 / rate)).into()).await;
        give.send(n).await.expect("a sender");
    }
    drop(give);
    for sender in senders {
        sender.await.expect("sender");
    }
    let mut waits = Vec::new();
    for worker in workers {
        waits.extend(worker.await.expect("worker"));
    }
    assert!(
        waits.len() * 100 >= messages.len() * 99,
        "only {} of {} were claimed",
        waits.len(),
        messages.len()
    );
    println!("end of DATA → item in a worker's hands: {} ({} items)", quantiles(&mut waits), waits.len());
}

/// Claims until nothing comes any more; the time from each message's final dot to the answer that held its item.
async fn work(api: Api, sent: Sent) -> Vec<Duration> {
    let mut waits = Vec::new();
    loop {
        let body = json!({"limit": 2, "lease_seconds": 3600, "wait_seconds": IDLE_SECONDS});
        let answer = api.post("/v1/work-items/claim", body).await.ok();
        let now = Instant::now();
        let items = answer["work_items"].as_array().cloned().unwrap_or_default();
        if items.is_empty() {
            return waits;
        }
        let sent = sent.lock().expect("lock");
        for item in items {
            // "Order 17"
            let subject = item["messages"][0]["subject"].as_str().unwrap_or_default();
            let number = subject.rsplit(' ').next().and_then(|n| n.parse::<usize>().ok());
            let end = number.and_then(|n| sent.get(n).copied().flatten());
            waits.extend(end.map(|end| now.duration_since(end)));
        }
    }
}

async fn send(
    to: SocketAddr,
    take: Arc<tokio::sync::Mutex<mpsc::Receiver<usize>>>,
    messages: Arc<Vec<Vec<u8>>>,
    sent: Sent,
) {
    let stream = TcpStream::connect(to).await.expect("connect");
    stream.set_nodelay(true).expect("nodelay");
    let mut wire = BufReader::new(stream);
    expect(&mut wire, "220").await;
    wire.write_all(b"EHLO client.example\r\n").await.expect("EHLO");
    expect(&mut wire, "250").await;
    loop {
        let next = take.lock().await.recv().await;
        let Some(n) = next else { return };
        let (from, rcpt) = (n % DOMAINS, n % INBOXES);
        let envelope =
            format!("MAIL FROM:<bounces@s{from}.example>\r\nRCPT TO:<u{rcpt}@agents.example>\r\nDATA\r\n");
        wire.write_all(envelope.as_bytes()).await.expect("envelope");
        for code in ["250", "250", "354"] {
            expect(&mut wire, code).await;
        }
        // Before the write returns, so that an answer can never be older than its message.
        sent.lock().expect("lock")[n] = Some(Instant::now());
        wire.write_all(&messages[n]).await.expect("message");
        expect(&mut wire, "250").await;
    }
}
