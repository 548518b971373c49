//! A message of 50 MiB costs the disk 50 MiB, and memory next to nothing; it arrives whole by DATA and by BDAT,
//! and a kill in its middle leaves nothing behind.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::world::{eventually, server::TestServer, smtp::Smtp};

const ADA: &str = "ada@agents.example";
const MIB: usize = 1 << 20;
const END: &str = "--b--\r\n";

/// Lines of base64 that do not compress to nothing: about `octets` of them.
fn attachment(octets: usize) -> String {
    let mut out = String::with_capacity(octets + 78);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    while out.len() < octets {
        for _ in 0..76 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            out.push(char::from(alphabet[(state >> 58) as usize]));
        }
        out.push_str("\r\n");
    }
    out
}

fn head(subject: &str) -> String {
    let mut head = format!("From: bob@remote.example\r\nTo: {ADA}\r\nSubject: {subject}\r\n");
    let _ = write!(head, "Message-ID: <{subject}@remote.example>\r\nMIME-Version: 1.0\r\n");
    head += "Content-Type: multipart/mixed; boundary=\"b\"\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\nSee below.\r\n";
    head += "--b\r\nContent-Type: application/octet-stream; name=\"big.bin\"\r\nContent-Transfer-Encoding: base64\r\n\r\n";
    head
}

/// A bounce of nothing but words, of which all that looks at messages looks at something.
fn letter(subject: &str) -> String {
    let mut head = format!("From: mailer-daemon@remote.example\r\nTo: {ADA}\r\nSubject: {subject}\r\n");
    let _ = write!(head, "Message-ID: <{subject}@remote.example>\r\nMIME-Version: 1.0\r\n");
    head + "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
}

/// A line of /proc/PID/status, in KiB.
fn status(pid: u32, name: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split_whitespace().nth(1)).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Looks at the anonymous memory of a process until it is told to stop; the most that it saw.
fn watch(pid: u32) -> (Arc<AtomicBool>, std::thread::JoinHandle<usize>) {
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    let watcher = std::thread::spawn(move || {
        let mut most = 0;
        while !told.load(Ordering::Relaxed) {
            most = most.max(status(pid, "RssAnon:"));
            std::thread::yield_now();
        }
        most
    });
    (stop, watcher)
}

async fn envelope(smtp: &mut Smtp, from: &str) {
    smtp.expect("EHLO client.example", 250).await;
    smtp.expect(&format!("MAIL FROM:<{from}>"), 250).await;
    smtp.expect(&format!("RCPT TO:<{ADA}>"), 250).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_mebibytes_cost_no_fifty_mebibytes_of_memory() {
    let server = TestServer::new().inbox("ada").env("GATEPOST_SMTP__MAX_MESSAGE_SIZE", "64MiB").start().await;
    let block = attachment(MIB);
    // What any message costs once: caches, pages of the allocator.
    for n in 0..8 {
        let small = format!("{}{}--b--\r\n", head(&format!("small{n}")), &block[..78 * 4000]);
        server.receive("bob@remote.example", ADA, small.as_bytes()).await;
    }
    let blocks = 50 * MIB / block.len() + 1;
    let sent =
        |subject: &str| if subject == "all-text" { (letter(subject), "") } else { (head(subject), END) };
    for (subject, chunked) in [("by-data", false), ("by-bdat", true), ("all-text", true)] {
        let mut smtp = server.dial().await;
        envelope(&mut smtp, if subject == "all-text" { "" } else { "bob@remote.example" }).await;
        let (head, end) = sent(subject);
        let before = status(server.pid(), "RssAnon:");
        let (stop, watcher) = watch(server.pid());
        let size = head.len() + blocks * block.len() + end.len();
        let reply = if chunked {
            smtp.expect_bytes(format!("BDAT {}\r\n{head}", head.len()).as_bytes(), 250).await;
            for _ in 0..blocks {
                smtp.expect_bytes(format!("BDAT {}\r\n{block}", block.len()).as_bytes(), 250).await;
            }
            smtp.write(format!("BDAT {} LAST\r\n{end}", end.len()).as_bytes()).await.unwrap();
            smtp.reply().await.unwrap()
        } else {
            smtp.expect("DATA", 354).await;
            smtp.write(head.as_bytes()).await.unwrap();
            for _ in 0..blocks {
                smtp.write(block.as_bytes()).await.unwrap();
            }
            smtp.write(format!("{end}.\r\n").as_bytes()).await.unwrap();
            smtp.reply().await.unwrap()
        };
        assert_eq!(reply.code, 250, "{reply:?}");
        stop.store(true, Ordering::Relaxed);
        let most = watcher.join().unwrap();
        let grown = most.saturating_sub(before);
        println!(
            "{subject}: {size} octets, anonymous memory from {before} KiB to {most} KiB: {grown} KiB more (VmHWM {} KiB)",
            status(server.pid(), "VmHWM:")
        );
        assert!(grown < 16 * 1024, "{subject}: {grown} KiB more for {} KiB", size / 1024);
    }
    // Reading them back costs memory, so it comes last.
    for subject in ["by-data", "by-bdat"] {
        let message = server.message(ADA, subject).await;
        let raw = server.raw(ADA, message["message_id"].as_str().unwrap()).await;
        let (head, end) = sent(subject);
        let trace = raw.len() - (head.len() + blocks * block.len() + end.len());
        assert!(raw.ends_with(format!("{block}{end}").as_bytes()) && trace < 4096, "{subject} is whole");
        assert_eq!(spooled(&server), 0);
    }
}

fn spooled(server: &TestServer) -> usize {
    std::fs::read_dir(server.dir.join("data/spool")).unwrap().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_in_the_middle_of_a_large_message_leaves_nothing() {
    let server = TestServer::new().inbox("ada").start().await;
    let mut smtp = server.dial().await;
    envelope(&mut smtp, "bob@remote.example").await;
    smtp.expect("DATA", 354).await;
    smtp.write(format!("{}{}", head("half"), attachment(4 * MIB)).as_bytes()).await.unwrap();
    let open = format!("/proc/{}/fd", server.pid());
    eventually("it is spooled", async || {
        let files = std::fs::read_dir(&open).unwrap().flatten();
        let names = files.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        names.into_iter().any(|name| name.to_string_lossy().contains("/data/spool/")).then_some(())
    })
    .await;
    assert_eq!(spooled(&server), 0, "its file has no name");
    // As if the kernel or the file system had left one.
    std::fs::write(server.dir.join("data/spool/.tmpLeft"), b"half a message").unwrap();
    server.kill9();
    server.restart().await;
    assert_eq!(spooled(&server), 0, "swept at the start");
    let all = server.api.all(&format!("/v0/inboxes/{ADA}/messages"), "messages").await;
    assert!(all.is_empty(), "{all:?}");
}
