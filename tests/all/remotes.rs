//! Remotes that hang, close, lie and babble, at every stage: each has a stated outcome, and none delays another.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
};

use crate::world::{
    dns::Dns,
    eventually, mail, needs,
    postfix::{self, Postfix},
    root,
    scripted::{Act, Scripted},
    server::{DOMAIN, TestServer},
    sink::Sink,
};

const SEND: &str = "/v0/inboxes/ada@agents.example/messages/send";
const DEFERRED: &str = "delivery.deferred";
const BOUNCED: &str = "message.bounced";
const DELIVERED: &str = "message.delivered";

/// Waits for what became of a recipient, with words that must be in it.
async fn became(server: &TestServer, recipient: &str, kind: &str, words: &str) -> Value {
    eventually(&format!("{kind} for {recipient} with {words:?}"), async || {
        let path = format!("/v1/events?event_types={kind}&limit=1000");
        let events = server.api.get(&path).await.ok();
        let fits = |event: &&Value| {
            let text = event.to_string();
            text.contains(recipient) && text.contains(words)
        };
        events["events"].as_array()?.iter().find(fits).cloned()
    })
    .await
}

async fn send(server: &TestServer, to: &[&str]) {
    let body = json!({"to": to, "subject": "Hi", "text": ".dot\nline\n\n."});
    server.api.post(SEND, body).await.ok();
}

fn zone(domain: &str, remote: &Scripted) -> String {
    format!("{domain} MX 10 mx.{domain}\nmx.{domain} A {}\n", remote.address.ip())
}

/// At one stage this, at all others as a good server would.
fn at(stage: &'static str, act: Act) -> impl Fn(&str, &str) -> Act + Send + Sync + 'static {
    move |now, _| if now == stage { act.clone() } else { Act::Well }
}

fn say(text: &str) -> Act {
    Act::Say(text.to_owned())
}

/// What the remote does, at which stage; what becomes of the message, and words of the reason.
fn table() -> Vec<(&'static str, &'static str, Act, &'static str, &'static str)> {
    vec![
        ("hang-greeting", "GREETING", Act::Hang, DEFERRED, "silent at Greeting"),
        ("hang-ehlo", "EHLO", Act::Hang, DEFERRED, "silent at Hello"),
        ("hang-mail", "MAIL", Act::Hang, DEFERRED, "silent at Mail"),
        ("hang-rcpt", "RCPT", Act::Hang, DEFERRED, "silent at Rcpt"),
        ("hang-data", "DATA", Act::Hang, DEFERRED, "silent at Data"),
        // The remote may have it: the next attempt is marked.
        ("hang-dot", "DOT", Act::Hang, DEFERRED, "silent at Dot"),
        ("close-greeting", "GREETING", Act::Close, DEFERRED, "Greeting"),
        ("close-ehlo", "EHLO", Act::Close, DEFERRED, "Hello"),
        ("close-mail", "MAIL", Act::Close, DEFERRED, "Mail"),
        ("close-rcpt", "RCPT", Act::Close, DEFERRED, "Rcpt"),
        ("close-data", "DATA", Act::Close, DEFERRED, "Data"),
        ("close-dot", "DOT", Act::Close, DEFERRED, "Dot"),
        ("web", "GREETING", say("HTTP/1.1 400 Bad Request"), DEFERRED, "did not answer in SMTP"),
        ("binary", "EHLO", say("\u{1}\u{2}\u{3}"), DEFERRED, "did not answer in SMTP"),
        ("lines", "RCPT", Act::Say("250-more\r\n".repeat(300) + "250 end"), DEFERRED, "more than 100 lines"),
        ("megabyte", "EHLO", Act::Say(format!("250 {}", "x".repeat(1 << 20))), DEFERRED, "longer than 2 KiB"),
        ("refuses-greeting", "GREETING", say("554 5.7.1 go away"), DEFERRED, "go away"),
        ("later-mail", "MAIL", say("451 4.3.0 later"), DEFERRED, "later"),
        ("later-rcpt", "RCPT", say("450 4.2.0 greylisted"), DEFERRED, "greylisted"),
        ("later-dot", "DOT", say("451 4.3.0 not now"), DEFERRED, "not now"),
        ("never-mail", "MAIL", say("550 5.7.1 not you"), BOUNCED, ""),
        ("never-rcpt", "RCPT", say("550 5.1.1 no such user"), BOUNCED, ""),
        ("never-data", "DATA", say("554 5.5.1 no"), BOUNCED, ""),
        // One reply ahead of itself: a message that was never sent would count as delivered.
        ("out-of-step", "DATA", say("250 2.1.5 ok"), DEFERRED, "out of step"),
        ("never-dot", "DOT", say("554 5.6.0 I do not like it"), BOUNCED, ""),
        // RFC 5321 §4.2.1: the code of the last line counts.
        ("two-codes", "RCPT", say("250-fine\r\n550 5.1.1 no"), BOUNCED, ""),
        ("says-421", "RCPT", Act::Last("421 4.3.2 closing".into()), DEFERRED, "closing"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_remote_does_the_message_has_its_stated_fate() {
    let dns = Dns::start("").await;
    let server =
        TestServer::new().inbox("ada").dns(&dns).env("GATEPOST_RELAY__LONGEST_WAIT", "2s").start().await;
    let mut remotes = Vec::new();
    for (name, stage, act, kind, words) in table() {
        let remote = Scripted::start(at(stage, act)).await;
        dns.add(&zone(&format!("{name}.example"), &remote));
        remotes.push((format!("bob@{name}.example"), kind, words, remote));
    }
    for (recipient, ..) in &remotes {
        send(&server, &[recipient]).await;
    }
    for (recipient, kind, words, remote) in &remotes {
        became(&server, recipient, kind, words).await;
        // SMTP smuggling has two ends: nothing but CRLF ends a line.
        let heard = remote.heard();
        let bare = |at: usize| match heard[at] {
            b'\n' => at == 0 || heard[at - 1] != b'\r',
            b'\r' => heard.get(at + 1) != Some(&b'\n'),
            _ => false,
        };
        assert!(!(0..heard.len()).any(bare), "{recipient}: a bare CR or LF was sent");
    }
}

/// A message to several is answered for each, and a broken STARTTLS is what everybody had before: mail in clear.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn some_recipients_are_taken_and_broken_tls_goes_in_clear() {
    let dns = Dns::start("").await;
    let server =
        TestServer::new().inbox("ada").dns(&dns).env("GATEPOST_RELAY__LONGEST_WAIT", "2s").start().await;
    let some = Scripted::start(|stage, line| match (stage, line.contains("<gone@")) {
        ("RCPT", true) => say("550 5.1.1 no such user"),
        _ => Act::Well,
    })
    .await;
    let broken = Scripted::start(|stage, _| match stage {
        "EHLO" => say("250-mx.example\r\n250 STARTTLS"),
        "STARTTLS" => Act::Last("220 go\r\nthis is no handshake".into()),
        _ => Act::Well,
    })
    .await;
    dns.add(&zone("some.example", &some));
    dns.add(&zone("broken.example", &broken));
    send(&server, &["here@some.example", "gone@some.example"]).await;
    send(&server, &["bob@broken.example"]).await;
    became(&server, "here@some.example", DELIVERED, "").await;
    became(&server, "gone@some.example", BOUNCED, "").await;
    became(&server, "bob@broken.example", DELIVERED, "").await;
}

/// DNS that fails, does not answer, or goes round in circles is a reason to wait; what does not exist is final.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dns_that_fails_defers_and_dns_that_says_no_is_final() {
    let dns = Dns::start(
        "fails.example SERVFAIL\nsilent.example DEAD\n\
         nohost.example MX 10 mx.nohost.example\nnohost.example TXT x\n",
    )
    .await;
    let server = TestServer::new().inbox("ada").dns(&dns).start().await;
    for domain in ["fails", "silent", "nohost", "nowhere"] {
        send(&server, &[&format!("bob@{domain}.example")]).await;
    }
    became(&server, "bob@fails.example", DEFERRED, "cannot be looked up").await;
    became(&server, "bob@silent.example", DEFERRED, "cannot be looked up").await;
    became(&server, "bob@nohost.example", BOUNCED, "").await;
    became(&server, "bob@nowhere.example", BOUNCED, "").await;
}

/// What the DNS of a stranger may say, and what becomes of mail: nothing of it keeps us busy or leads mail to ourselves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dns_that_loops_lies_or_is_slow_has_its_stated_fate() {
    let remote = Scripted::start(|_, _| Act::Well).await;
    let ip = remote.address.ip();
    let mut records = format!(
        "loop.example CNAME back.example\nback.example CNAME loop.example\n\
         host-loop.example MX 10 a.host-loop.example\na.host-loop.example CNAME b.host-loop.example\n\
         b.host-loop.example CNAME a.host-loop.example\n\
         ours.example MX 10 MX.{DOMAIN}\nnull.example MX 0 .\n\
         backup.example MX 10 mx.backup.example\nbackup.example MX 20 mx.{DOMAIN}\nmx.backup.example A {ip}\n\
         slow.example SLOW\nslow.example MX 10 mx.slow.example\nmx.slow.example A {ip}\n\
         alias.example CNAME hundreds.example\n\
         addresses.example MX 10 mx.addresses.example\n"
    );
    for n in 0..300 {
        records.push_str(&format!("hundreds.example MX {n} mx{n}.hundreds.example\n"));
        records.push_str(&format!("mx{n}.hundreds.example A {ip}\n"));
        records.push_str(&format!("mx.addresses.example A 127.9.{}.{}\n", n / 200, n % 200));
    }
    let dns = Dns::start(&records).await;
    let server = TestServer::new().inbox("ada").dns(&dns).start().await;
    let fates = [
        ("loop", BOUNCED, "5.4.4"),
        ("host-loop", BOUNCED, "5.4.4"),
        ("ours", BOUNCED, "5.4.6"),
        ("null", BOUNCED, "5.1.10"),
        ("backup", DELIVERED, ""),
        ("slow", DELIVERED, ""),
        ("hundreds", DELIVERED, ""),
        ("alias", DELIVERED, ""),
        ("addresses", DEFERRED, "no connection"),
    ];
    for (name, ..) in fates {
        send(&server, &[&format!("bob@{name}.example")]).await;
    }
    for (name, kind, words) in fates {
        became(&server, &format!("bob@{name}.example"), kind, words).await;
    }
    // An MX that leads to our own listener, whatever it is called.
    let own = TestServer::new().inbox("ada").dns(&dns).relay_port(2525).start().await;
    dns.add(&format!("itself.example MX 10 mx.itself.example\nmx.itself.example A {}\n", own.smtp.ip()));
    send(&own, &["bob@itself.example"]).await;
    became(&own, "bob@itself.example", BOUNCED, "5.4.4").await;
    let bounce = own.message("ada@agents.example", "Undelivered: Hi").await;
    assert!(bounce["text"].as_str().unwrap().contains("mx.itself.example is this server itself"), "{bounce}");
}

/// A remote that will have nothing from our address of one family is tried over the other in the same attempt; one that
/// refuses the message is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_is_refused_gives_way_to_one_of_the_other_family() {
    let six = Scripted::start_at("::1".parse().unwrap(), |stage, line| match stage {
        "RCPT" if line.contains("<unnamed@") => say(
            "550-5.7.1 [::1] does not meet the IPv6 sending guidelines\r\n550 5.7.1 regarding PTR records",
        ),
        "RCPT" if line.contains("<spam@") => say("550 5.7.1 we do not like what you say"),
        _ => Act::Well,
    })
    .await;
    let four = Scripted::start(|_, _| Act::Well).await;
    let dns = Dns::start(&format!(
        "both.example MX 10 mx.both.example\nmx.both.example A {}\nmx.both.example AAAA ::1\n\
         six.example MX 10 mx.six.example\nmx.six.example AAAA ::1\n",
        four.address.ip()
    ))
    .await;
    let server = TestServer::new().inbox("ada").dns(&dns).env("GATEPOST_RELAY__PREFER", "ipv6").start().await;
    send(&server, &["spam@both.example"]).await;
    became(&server, "spam@both.example", BOUNCED, "").await;
    assert_eq!(four.connections(), 0, "what was refused for itself was tried again");
    send(&server, &["unnamed@both.example"]).await;
    became(&server, "unnamed@both.example", DELIVERED, "").await;
    assert!(String::from_utf8_lossy(&four.heard()).contains("RCPT TO:<unnamed@"));
    assert!(String::from_utf8_lossy(&six.heard()).contains("RCPT TO:<unnamed@"));
    // Without another way the answer stands.
    send(&server, &["unnamed@six.example"]).await;
    became(&server, "unnamed@six.example", BOUNCED, "5.7.1").await;
}

/// Two domains of one provider are one site: what hangs at one of them has one connection, not one for each domain
/// and message, and mail to others flows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_that_hangs_has_one_connection_and_delays_nobody() {
    let hangs = Scripted::start(at("GREETING", Act::Hang)).await;
    let sink = Sink::start().await;
    let mut records = sink.zone("well.example");
    let ip = hangs.address.ip();
    records.push_str(&format!("mx.hangs.example A {ip}\n"));
    for n in 0..10 {
        records.push_str(&format!("d{n}.example MX 10 mx.hangs.example\n"));
    }
    let dns = Dns::start(&records).await;
    let server = TestServer::new().inbox("ada").dns(&dns).start().await;
    for n in 0..10 {
        send(&server, &[&format!("a@d{n}.example"), &format!("b@d{n}.example")]).await;
    }
    send(&server, &["bob@well.example"]).await;
    became(&server, "bob@well.example", DELIVERED, "").await;
    assert!(hangs.connections() <= 1, "{} connections to a site that never answered", hangs.connections());
}

/// Reputations stay apart: mail of a domain leaves from its own address, under its own name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_domain_has_a_name_and_a_way_of_its_own() {
    let smarthost = Scripted::start(|_, _| Act::Well).await;
    let direct = Scripted::start(|_, _| Act::Well).await;
    let dns = Dns::start(&format!(
        "{}smart.example A {}\n",
        zone("direct.example", &direct),
        smarthost.address.ip()
    ))
    .await;
    let config = format!(
        "[[relay.source]]\npods = [\"pod_00000002\"]\nhello = \"other.agents.example\"\n\
         [[relay.source]]\npods = [\"pod_default\"]\ndomains = [\"agents.example\"]\nhello = \"out-7.agents.example\"\n\
         [[relay.route]]\ndomains = [\"*.corp.example\"]\nsmarthost = \"smtp://smart.example:{}\"\n",
        smarthost.address.port()
    );
    let server = TestServer::new().inbox("ada").dns(&dns).config(&config).start().await;
    send(&server, &["bob@direct.example"]).await;
    send(&server, &["eve@branch.corp.example"]).await;
    became(&server, "bob@direct.example", DELIVERED, "").await;
    became(&server, "eve@branch.corp.example", DELIVERED, "").await;
    for (remote, recipient) in [(&direct, "RCPT TO:<bob@"), (&smarthost, "RCPT TO:<eve@")] {
        let heard = String::from_utf8_lossy(&remote.heard()).into_owned();
        assert!(heard.starts_with("EHLO out-7.agents.example\r\n"), "{heard}");
        assert!(heard.contains(recipient), "{heard}");
    }
}

/// Greylisting for Postfix (its policy delegation protocol): who writes to `slow@` for the first time comes again.
async fn greylist() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("greylist");
    let port = listener.local_addr().expect("greylist").port();
    let seen = Arc::<Mutex<HashSet<String>>>::default();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut lines = BufReader::new(stream).lines();
                let mut first = false;
                while let Ok(Some(line)) = lines.next_line().await {
                    if let Some(address) = line.strip_prefix("recipient=") {
                        first =
                            address.starts_with("slow@") && seen.lock().unwrap().insert(address.to_owned());
                    } else if line.is_empty() {
                        let action = if first { "450 4.2.0 greylisted, come again" } else { "dunno" };
                        let answer = format!("action={action}\n\n");
                        lines.get_mut().write_all(answer.as_bytes()).await.expect("Postfix");
                    }
                }
            });
        }
    });
    port
}

/// A real server that demands TLS, greylists, refuses, and takes mail that it then gives back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postfix_that_demands_tls_greylists_refuses_and_bounces_late() {
    let _ = demanding().await;
}

async fn demanding() -> Option<()> {
    if !root() {
        return needs::missing("root, which Postfix needs");
    }
    let dns = Dns::start_at_53("").await;
    let server = TestServer::new().inbox("ada").dns(&dns).relay_port(postfix::PORT).start().await;
    let more = format!(
        "smtpd_tls_security_level = encrypt\n\
         smtpd_recipient_restrictions = check_policy_service inet:127.0.0.1:{}\n",
        greylist().await
    );
    let boxes = ["quick", "slow", "late"];
    let remote = Postfix::start_with("remote.example", &boxes, &dns, server.smtp.port(), &more).await?;
    dns.add(&format!("{DOMAIN} MX 10 mx.{DOMAIN}\nmx.{DOMAIN} A {}\n", server.smtp.ip()));
    dns.add(&Postfix::zone("remote.example", remote.address.ip()));
    let to = ["quick", "slow", "gone", "late"].map(|name| format!("{name}@remote.example"));
    send(&server, &to.each_ref().map(String::as_str)).await;

    became(&server, "quick@remote.example", DELIVERED, "").await;
    became(&server, "gone@remote.example", BOUNCED, "").await;
    became(&server, "slow@remote.example", DEFERRED, "greylisted").await;
    became(&server, "slow@remote.example", DELIVERED, "").await;
    // RFC 3464: the answer was 250, and the mail comes back all the same, to the return path of that delivery.
    became(&server, "late@remote.example", BOUNCED, "").await;
    for name in ["quick", "slow"] {
        let arrived = remote.mailbox(name, 1).await;
        assert_eq!(arrived.len(), 1, "{name} has it once");
        assert!(mail::header(&arrived[0], "Received").is_some_and(|trace| trace.contains("TLS")));
    }
    Some(())
}
