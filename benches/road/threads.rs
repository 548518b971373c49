//! What a message costs in a thread that grows to 10,000: processor time and the wait for the 250, around the 100th, the
//! 1,000th and the 10,000th message. Each cites the last hundred, has another reader in Cc and an attachment.

use std::{fmt::Write as _, time::Instant};

use tokio::{
    io::{AsyncWriteExt, BufReader},
    net::TcpStream,
};

use crate::{
    Options, SINK_PORT, cpu_seconds, expect, quantiles, start,
    world::{dns::Dns, postgres::Database},
};

/// Messages that are measured together, the last of them named.
const WINDOW: usize = 100;
const CITED: usize = 100;

pub async fn run(_options: &Options, database: &Database) {
    let dns = Dns::start("").await;
    let server = start(database, &dns, SINK_PORT).await;
    let mut wire = BufReader::new(TcpStream::connect(server.smtp).await.expect("connect"));
    wire.get_ref().set_nodelay(true).expect("nodelay");
    expect(&mut wire, "220").await;
    wire.write_all(b"EHLO client.example\r\n").await.expect("EHLO");
    expect(&mut wire, "250").await;
    let (mut cpu, mut waits) = (0.0, Vec::new());
    for n in 1..=10_000 {
        if [100, 1_000, 10_000].contains(&(n + WINDOW - 1)) {
            (cpu, waits) = (cpu_seconds(server.pid()), Vec::new());
        }
        let envelope = b"MAIL FROM:<bob@s0.example>\r\nRCPT TO:<u0@agents.example>\r\nDATA\r\n";
        wire.write_all(envelope).await.expect("envelope");
        for code in ["250", "250", "354"] {
            expect(&mut wire, code).await;
        }
        let begun = Instant::now();
        wire.write_all(message(n).as_bytes()).await.expect("message");
        expect(&mut wire, "250").await;
        waits.push(begun.elapsed());
        if [100, 1_000, 10_000].contains(&n) {
            let spent = (cpu_seconds(server.pid()) - cpu) * 1_000.0 / waits.len() as f64;
            println!("message {n}: {spent:.2} ms of CPU, {}", quantiles(&mut waits));
        }
    }
    let threads = server.api.get("/v0/inboxes/u0@agents.example/threads").await.ok();
    println!("{} thread of {} messages", threads["count"], threads["threads"][0]["message_count"]);
}

fn message(n: usize) -> String {
    let mut chain = String::new();
    for cited in n.saturating_sub(CITED)..n {
        write!(chain, "\r\n <{cited}@s0.example>").expect("text");
    }
    format!(
        "From: bob@s0.example\r\nTo: u0@agents.example\r\nCc: Reader {n} <r{n}@x.example>\r\nSubject: Re: Ticket\r\n\
         Message-ID: <{n}@s0.example>\r\nReferences:{chain}\r\nMIME-Version: 1.0\r\n\
         Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nMessage {n}\r\n{}--b\r\n\
         Content-Disposition: attachment; filename=\"{n}.txt\"\r\n\r\n{n}\r\n--b--\r\n.\r\n",
        "words of the message\r\n".repeat(100)
    )
}
