//! What a message costs when ten thousand are stored, and when a million are (`--stored N`).

use std::{sync::Arc, time::Instant};

use crate::{
    DOMAINS, INBOXES, Options, SINK_PORT, all_at_once, corpus, cpu_seconds, key, report, start,
    world::{self, dns::Dns, postgres::Database, smtp::stuffed},
};

const FIRST: usize = 10_000;

pub async fn run(options: &Options, database: &Database) {
    let dns = Dns::start("").await;
    dns.ttl(3600);
    let keys = (0..DOMAINS).map(|n| key(&dns, &format!("s{n}.example"))).collect::<Vec<_>>();
    // The corpus' own domains ask to reject what is not signed.
    dns.add("_dmarc.plain.example TXT v=DMARC1; p=none\n");
    let server = start(database, &dns, SINK_PORT).await;
    let mut stored = 0;
    for goal in [FIRST, options.stored] {
        while stored < goal {
            let batch = (goal - stored).min(20_000);
            let plain = Arc::new((0..batch).map(|n| plain(stored + n)).collect::<Vec<_>>());
            all_at_once(server.smtp, plain, 40).await;
            stored += batch;
        }
        println!("{stored} messages are stored; {} signed ones more:", options.messages);
        for run in 1..=options.runs {
            let messages = Arc::new(corpus(&keys, options.messages));
            let (cpu, begun) = (cpu_seconds(server.pid()), Instant::now());
            let waits = all_at_once(server.smtp, messages, options.connections).await;
            report(run, options.messages, begun.elapsed(), cpu_seconds(server.pid()) - cpu, waits);
            stored += options.messages;
        }
    }
    let files = std::fs::read_dir(server.dir.join("data")).expect("data folder");
    let size: u64 = files.flatten().filter_map(|file| file.metadata().ok()).map(|data| data.len()).sum();
    println!("the data folder holds {} MiB", size >> 20);
}

/// A short message that nobody signed.
fn plain(n: usize) -> Vec<u8> {
    stuffed(
        format!(
            "From: a@plain.example\r\nTo: u{}@agents.example\r\nSubject: Note {n}\r\n\
             Date: Sat, 21 Nov 2026 03:04:05 +0000\r\nMessage-ID: <p{n}.{}@plain.example>\r\n\r\nNote {n}.\r\n",
            n % INBOXES,
            world::dice(u64::MAX),
        )
        .as_bytes(),
    )
}
