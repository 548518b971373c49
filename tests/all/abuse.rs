//! What a stranger can do to port 25 beside speaking badly: come too often, guess, ask for too much, arrive when the
//! disk is full or the database stands still. Each test is an incident. The clients come from 127.1/16, which is not
//! exempt here; the tests' own mail comes from 127.0/16, which is.

use std::net::{IpAddr, SocketAddr};

use serde_json::json;
use tokio::net::TcpSocket;

use crate::world::{
    dns::Dns,
    eventually, mail,
    postgres::Database,
    server::{Setup, TestServer},
    smtp::{Reply, Smtp, stuffed},
};

const ADA: &str = "ada@agents.example";

/// Only 127.0/16 is exempt.
fn limited(limits: &str) -> Setup {
    let limits = format!("[smtp.limits]\nexempt = [\"127.0.0.0/16\", \"::1\"]\n{limits}\n");
    TestServer::new().inbox("ada").config(&limits)
}

/// A connection from an address of ours; `Err` is what the server said instead of its greeting.
async fn dial_from(ip: &str, server: SocketAddr) -> Result<Smtp, String> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(ip.parse::<IpAddr>().unwrap(), 0)).unwrap();
    let stream = socket.connect(server).await.map_err(|error| error.to_string())?;
    Smtp::over(stream).await.map_err(|error| error.to_string())
}

fn letter(subject: &str) -> Vec<u8> {
    mail::letter("sam@remote.example", ADA, subject, &format!("{subject}@remote.example"), "", "Hello")
}

async fn try_rcpt(smtp: &mut Smtp, to: &str) -> Reply {
    smtp.expect("EHLO client.example", 250).await;
    smtp.expect("MAIL FROM:<sam@remote.example>", 250).await;
    smtp.command(&format!("RCPT TO:<{to}>")).await.unwrap()
}

/// Timing and enumeration: whoever guesses addresses is slowed and then told nothing, whether they exist or not; the
/// operator can still be reached from there, and nobody else is kept out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directory_harvest_by_rcpt_ends() {
    let server = limited("unknown_recipients_per_hour = 12").start().await;
    let mut guesses = 0;
    for _ in 0..4 {
        let mut smtp = dial_from("127.1.0.1", server.smtp).await.expect("the door stays open");
        smtp.expect("EHLO client.example", 250).await;
        smtp.expect("MAIL FROM:<sam@remote.example>", 250).await;
        for _ in 0..4 {
            guesses += 1;
            let code = if guesses <= 12 { 550 } else { 450 };
            smtp.expect(&format!("RCPT TO:<guess{guesses}@agents.example>"), code).await;
        }
    }
    let mut smtp = dial_from("127.1.0.1", server.smtp).await.unwrap();
    let reply = try_rcpt(&mut smtp, ADA).await;
    assert!(reply.code == 450 && reply.text.starts_with("4.7.1 "), "as if it did not exist: {reply:?}");
    smtp.expect("RCPT TO:<postmaster@agents.example>", 250).await;
    // The /24 has three times as much, and another network its own.
    for honest in ["127.1.0.2", "127.1.9.1"] {
        let mut smtp = dial_from(honest, server.smtp).await.unwrap();
        let reply = smtp.deliver("sam@remote.example", &[ADA], &letter(honest)).await.unwrap();
        assert_eq!(reply.code, 250, "{reply:?}");
    }
}

/// A provider's address from which much mail comes and somebody writes to made-up names: the mail goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_customer_does_not_lock_out_a_provider() {
    let server = limited("unknown_recipients_per_hour = 4").start().await;
    let mut smtp = dial_from("127.1.0.1", server.smtp).await.unwrap();
    smtp.expect("EHLO client.example", 250).await;
    for n in 0..30 {
        if n % 5 == 4 {
            smtp.expect("MAIL FROM:<bad@remote.example>", 250).await;
            smtp.expect(&format!("RCPT TO:<made-up{n}@agents.example>"), 550).await;
            smtp.expect("RSET", 250).await;
        }
        let reply = smtp.transaction("sam@remote.example", &[ADA], &letter(&format!("m{n}"))).await.unwrap();
        assert_eq!(reply.code, 250, "{n}: {reply:?}");
    }
}

/// Messages whose senders' DNS never answers take ten seconds each to verify. They wait for nobody's database, and
/// keep nobody from it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_dns_of_a_sender_is_no_overload() {
    let dns = Dns::start("slow.example DEAD").await;
    // Five may wait for the database at a time.
    let server = limited("sessions = 10").dns(&dns).start().await;
    let mut held = Vec::new();
    for n in 0..5 {
        let domain = format!("s{n}.slow.example");
        let mut slow = dial_from("127.1.0.1", server.smtp).await.unwrap();
        slow.expect("EHLO client.example", 250).await;
        slow.expect(&format!("MAIL FROM:<sam@{domain}>"), 250).await;
        slow.expect(&format!("RCPT TO:<{ADA}>"), 250).await;
        slow.expect("DATA", 354).await;
        slow.write(&stuffed(&letter(&domain))).await.unwrap();
        held.push((slow, domain));
    }
    for (_, domain) in &held {
        eventually("the sender's DNS is asked", async || dns.was_asked(domain).then_some(())).await;
    }
    let mut smtp = dial_from("127.1.9.1", server.smtp).await.expect("no overload");
    let reply = smtp.deliver("sam@remote.example", &[ADA], &letter("quick")).await.unwrap();
    assert_eq!(reply.code, 250, "{reply:?}");
    for (mut slow, domain) in held {
        assert_eq!(slow.reply().await.unwrap().code, 250, "{domain}");
    }
}

/// A peer that opens connections and holds them has its share, and its network three times that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_flood_from_one_network_leaves_room_for_others() {
    let server = limited("sessions = 40\nsessions_per_address = 4").start().await;
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(dial_from("127.1.0.1", server.smtp).await.unwrap());
    }
    let said = dial_from("127.1.0.1", server.smtp).await.err().expect("a fifth connection");
    assert!(said.contains("421") && said.contains("4.7.0"), "{said}");
    for host in 2..=9 {
        for _ in 0..4 {
            held.extend(dial_from(&format!("127.1.0.{host}"), server.smtp).await.ok());
        }
    }
    assert_eq!(held.len(), 12, "a /24 has three times as much as an address");
    let mut smtp = dial_from("127.1.200.1", server.smtp).await.unwrap();
    let reply = smtp.deliver("sam@remote.example", &[ADA], &letter("through")).await.unwrap();
    assert_eq!(reply.code, 250, "{reply:?}");
    drop(held);
    eventually("room again", async || dial_from("127.1.0.1", server.smtp).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_floods_is_told_to_wait_and_loses_nothing() {
    let server = limited("messages_per_minute = 5\nconnections_per_minute = 3").start().await;
    let mut smtp = dial_from("127.1.0.1", server.smtp).await.unwrap();
    smtp.expect("EHLO client.example", 250).await;
    for n in 0..5 {
        let reply = smtp.transaction("sam@remote.example", &[ADA], &letter(&format!("m{n}"))).await.unwrap();
        assert_eq!(reply.code, 250, "{reply:?}");
    }
    let reply = smtp.expect("MAIL FROM:<sam@remote.example>", 451).await;
    assert!(reply.text.starts_with("4.7.1 Too many messages"), "{reply:?}");
    // The session goes on; what was deferred is the sender's to send again.
    smtp.expect("NOOP", 250).await;
    for _ in 0..2 {
        dial_from("127.1.0.1", server.smtp).await.unwrap();
    }
    let said = dial_from("127.1.0.1", server.smtp).await.err().expect("a fourth connection in a minute");
    assert!(said.contains("421") && said.contains("minute"), "{said}");
    assert_eq!(server.api.all("/v0/inboxes/ada@agents.example/messages", "messages").await.len(), 5);
}

/// A full disk defers mail before anything breaks, says so where people look, and leaves the API alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_below_its_floor_defers_mail() {
    // More than any disk has.
    let server =
        TestServer::new().inbox("ada").env("GATEPOST_SMTP__MIN_FREE_DISK", "9000000GiB").start().await;
    let mut smtp = server.dial().await;
    smtp.expect("EHLO client.example", 250).await;
    let reply = smtp.expect("MAIL FROM:<sam@remote.example>", 452).await;
    assert!(reply.text.starts_with("4.3.1"), "{reply:?}");
    smtp.expect("MAIL FROM:<sam@remote.example>", 452).await;
    let ready = server.api.get("/readyz").await.ok();
    assert_eq!(ready["mail"], "deferred", "{ready}");
    assert!(ready["reason"].as_str().unwrap().contains("MiB free"), "{ready}");
    let sent = json!({"to": "ada@agents.example", "subject": "inside", "text": "still works"});
    server.api.post("/v0/inboxes/ada@agents.example/messages/send", sent).await.ok();
    let log = std::fs::read_to_string(server.log_file()).unwrap();
    assert_eq!(log.matches("too little room").count(), 1, "said once");
    let check = std::process::Command::new(env!("CARGO_BIN_EXE_gatepost"))
        .args(["check", "--only", "data", "--config"])
        .arg(server.config_file())
        .env("GATEPOST_SMTP__MIN_FREE_DISK", "9000000GiB")
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&check.stdout);
    assert!(!check.status.success() && words.contains("smtp.min_free_disk"), "{words}");
}

/// Who is on a list is refused by name, and can still reach the postmaster to ask why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_on_a_block_list_is_refused_and_can_ask_why() {
    let dns = Dns::start(
        "7.0.1.127.bl.example    A     127.0.0.2
         7.0.1.127.bl.example    TXT   see https://bl.example/127.1.0.7
         dead.example            DEAD",
    )
    .await;
    let server = limited("").dns(&dns).env("GATEPOST_SMTP__DNSBL", "dead.example, bl.example").start().await;
    let mut smtp = dial_from("127.1.0.7", server.smtp).await.unwrap();
    let reply = try_rcpt(&mut smtp, ADA).await;
    assert_eq!(reply.code, 554, "{reply:?}");
    assert_eq!(reply.text, "5.7.1 127.1.0.7 is listed by bl.example: see https://bl.example/127.1.0.7");
    smtp.expect("RCPT TO:<postmaster@agents.example>", 250).await;
    smtp.expect("RCPT TO:<abuse@agents.example>", 250).await;
    let mut smtp = dial_from("127.1.0.8", server.smtp).await.unwrap();
    assert_eq!(try_rcpt(&mut smtp, ADA).await.code, 250);
    let mut smtp = server.dial().await;
    assert_eq!(try_rcpt(&mut smtp, ADA).await.code, 250);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn greylisting_lets_in_who_comes_again_on_sqlite() {
    greylisting_lets_in_who_comes_again(Database::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn greylisting_lets_in_who_comes_again_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    greylisting_lets_in_who_comes_again(database).await;
}

async fn greylisting_lets_in_who_comes_again(database: Database) {
    let server = limited("")
        .on(&database)
        .env("GATEPOST_SMTP__GREYLIST", "true")
        .env("GATEPOST_SMTP__GREYLIST_DELAY", "200ms")
        .start()
        .await;
    let mut smtp = dial_from("127.1.0.1", server.smtp).await.unwrap();
    let reply = try_rcpt(&mut smtp, ADA).await;
    assert!(reply.code == 451 && reply.text.starts_with("4.7.1"), "{reply:?}");
    smtp.expect("RCPT TO:<postmaster@agents.example>", 250).await;
    // The same mail from the next machine of the same sender.
    eventually("the second attempt passes", async || {
        let mut smtp = dial_from("127.1.0.2", server.smtp).await.ok()?;
        (try_rcpt(&mut smtp, ADA).await.code == 250).then_some(())
    })
    .await;
    server.stop().await;
    server.restart().await;
    let mut smtp = dial_from("127.1.0.3", server.smtp).await.unwrap();
    smtp.expect("EHLO client.example", 250).await;
    smtp.expect("MAIL FROM:<>", 250).await;
    smtp.expect("RCPT TO:<ada+new@agents.example>", 250).await;
    let mut smtp = dial_from("127.1.77.1", server.smtp).await.unwrap();
    assert_eq!(try_rcpt(&mut smtp, ADA).await.code, 451, "another network is a stranger");
    let mut smtp = server.dial().await;
    assert_eq!(try_rcpt(&mut smtp, ADA).await.code, 250, "an exempt one is not");
}

/// A database that stands still: the sessions that wait for it are bounded, everybody else is told at once, and
/// when it moves again all is well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_stands_still_is_answered_with_421() {
    let Some(database) = Database::own_postgres() else { return };
    let server = limited("sessions = 20").on(&database).start().await;
    let mut inside = Vec::new();
    for n in 1..=10 {
        let mut smtp = dial_from(&format!("127.1.{n}.1"), server.smtp).await.unwrap();
        smtp.expect("EHLO client.example", 250).await;
        smtp.expect("MAIL FROM:<sam@remote.example>", 250).await;
        inside.push(smtp);
    }
    let mut beside = dial_from("127.1.100.1", server.smtp).await.unwrap();
    beside.expect("EHLO client.example", 250).await;
    let Database::Postgres(cluster, name) = &database else { panic!("PostgreSQL") };
    let standstill = std::thread::spawn({
        let (cluster, name) = (cluster.clone(), name.clone());
        let until = "DO $$ BEGIN LOCK TABLE inbox; LOOP
                     EXIT WHEN EXISTS (SELECT 1 FROM pg_class WHERE relname = 'go_on');
                     PERFORM pg_sleep(0.05); END LOOP; END $$";
        move || cluster.sql(&name, until)
    });
    eventually("nothing moves", async || {
        let locks = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted
                     AND relation = 'inbox'::regclass";
        (cluster.sql(name, locks).trim() == "1").then_some(())
    })
    .await;
    for smtp in &mut inside {
        smtp.write(format!("RCPT TO:<{ADA}>\r\n").as_bytes()).await.unwrap();
    }
    let said =
        eventually("new ones are sent away", async || dial_from("127.1.101.1", server.smtp).await.err())
            .await;
    assert!(said.contains("421") && said.contains("waiting to be stored"), "{said}");
    let reply = beside.expect("MAIL FROM:<sam@remote.example>", 451).await;
    assert!(reply.text.starts_with("4.3.2"), "{reply:?}");
    cluster.sql(name, "CREATE TABLE go_on ()");
    standstill.join().unwrap();
    for smtp in &mut inside {
        let reply = smtp.reply().await.unwrap();
        assert!([250, 451].contains(&reply.code), "{reply:?}");
    }
    eventually("mail comes in again", async || {
        let mut smtp = dial_from("127.1.102.1", server.smtp).await.ok()?;
        let reply = smtp.deliver("sam@remote.example", &[ADA], &letter("after")).await.ok()?;
        (reply.code == 250).then_some(())
    })
    .await;
}
