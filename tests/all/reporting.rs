//! Reports that we send to other domains: a day of mail is counted, told once to whom it may be told, and to nobody else.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::world::dns::Dns;
use crate::world::eventually;
use crate::world::postgres::Database;
use crate::world::server::{ADMIN_KEY, Setup, TestServer};
use crate::world::sink::{Sink, Taken};
use crate::world::trusted::{Authority, PolicyHost};

const CONFIG: &str =
    "[reports]\ndmarc = true\norganization = \"Agents & Co\"\ncontact = \"ops@agents.example\"\n";
const WORK: &str = "/v1/work-items?inbox_id=postmaster%40agents.example";

fn mail(from: &str, n: u32) -> Vec<u8> {
    format!("From: {from}\r\nTo: ada@agents.example\r\nSubject: mail {n}\r\nMessage-ID: <{n}@x>\r\n\r\nHello {n}\r\n")
        .into_bytes()
}

/// As if a day had passed: what was counted today was counted yesterday, and its reports are due.
fn next_day(server: &TestServer, database: &Database) {
    for statement in [
        "UPDATE dmarc_tally SET day = day - 1",
        "UPDATE report_out SET day = day - 1, due_at = 0 WHERE state = 'due'",
    ] {
        match database {
            Database::Sqlite => {
                let file = server.config_file().parent().unwrap().join("data/gatepost.db");
                rusqlite::Connection::open(file).unwrap().execute_batch(statement).unwrap();
            }
            Database::Postgres(cluster, name) => drop(cluster.sql(name, statement)),
        }
    }
}

fn reports(sink: &Sink) -> Vec<Taken> {
    let about = |mail: &Taken| mail.header("Subject").is_some_and(|s| s.starts_with("Report Domain: "));
    sink.taken().into_iter().filter(about).collect()
}

/// What an independent reader makes of it.
fn read_by_python(letter: &Taken) -> Value {
    let mut python = Command::new("python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/read_report.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    python.stdin.take().unwrap().write_all(&letter.message).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_of_mail_is_reported_once_to_those_who_may_ask_on_sqlite() {
    a_day(TestServer::new(), &Database::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_of_mail_is_reported_once_to_those_who_may_ask_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    a_day(TestServer::new().on(&database), &database).await;
}

async fn a_day(setup: Setup, database: &Database) {
    let sink = Sink::start().await;
    let zone = "sender.example TXT v=spf1 ip4:127.0.0.0/8 -all\nnews.sender.example TXT v=spf1 ip4:127.0.0.0/8 -all\n\
         _dmarc.sender.example TXT v=DMARC1; p=reject; rua=mailto:dmarc@sender.example!1m,mailto:ext@allowed.example,\
         mailto:ext@stranger.example,mailto:small@sender.example!1k\n\
         sender.example._report._dmarc.allowed.example TXT v=DMARC1\n\
         quiet.example TXT v=spf1 ip4:127.0.0.0/8 -all\n_dmarc.quiet.example TXT v=DMARC1; p=none\n";
    let hosts = ["sender.example", "allowed.example", "stranger.example", "quiet.example"];
    let hosts: String = hosts.iter().map(|domain| sink.zone(domain)).collect();
    let dns = Dns::start(&format!("{zone}{hosts}")).await;
    let port = sink.address.port();
    let server = setup.inbox("ada").dns(&dns).relay_port(port).config(CONFIG).start().await;
    let ada = "ada@agents.example";
    for n in 0..3 {
        server.receive("a@sender.example", ada, &mail("a@sender.example", n)).await;
    }
    server.receive("n@news.sender.example", ada, &mail("n@news.sender.example", 3)).await;
    server.receive("q@quiet.example", ada, &mail("q@quiet.example", 4)).await;
    for n in 5..7 {
        let mut smtp = server.dial().await;
        let reply = smtp.deliver("x@evil.example", &[ada], &mail("a@sender.example", n)).await.unwrap();
        assert_eq!(reply.code, 550, "{reply:?}");
    }
    // No report about reports: not to our address for them, and not to an agent.
    let report = "From: a@sender.example\r\nSubject: Report Domain: agents.example Submitter: x\r\n\r\n.\r\n";
    for to in ["dmarc-reports@agents.example", ada] {
        server.receive("a@sender.example", to, report.as_bytes()).await;
    }
    assert!(server.stop().await.success());
    next_day(&server, database);
    server.restart().await;
    // On PostgreSQL a second node asks for the same work.
    let _second = match database {
        Database::Sqlite => None,
        Database::Postgres(..) => {
            let second =
                TestServer::new().on(database).beside(&server).dns(&dns).relay_port(port).config(CONFIG);
            Some(second.start().await)
        }
    };
    let sent = eventually("the report is sent", async || {
        let all = server.api.get("/v1/reports/sent?domain=sender.example").await.ok();
        (all["reports"][0]["state"] == "sent").then(|| all["reports"][0].clone())
    })
    .await;
    assert_eq!((&sent["total"], &sent["left_out"], &sent["kind"]), (&json!(6), &json!(0), &json!("dmarc")));
    let said = |to: &str| {
        let all = sent["destinations"].as_array().unwrap();
        all.iter().find(|d| d["to"] == to).map(|d| d["state"].as_str().unwrap().to_owned())
    };
    assert_eq!(said("dmarc@sender.example").as_deref(), Some("queued"), "{sent}");
    assert_eq!(said("ext@allowed.example").as_deref(), Some("queued"), "{sent}");
    assert_eq!(said("ext@stranger.example").as_deref(), Some("refused"), "nobody there asked for it: {sent}");
    assert_eq!(said("small@sender.example").as_deref(), Some("refused"), "larger than it takes: {sent}");
    eventually("both have it", async || (reports(&sink).len() >= 2).then_some(())).await;
    let letters = reports(&sink);
    let mut to: Vec<String> = letters.iter().flat_map(|letter| letter.to.clone()).collect();
    to.sort();
    assert_eq!(to, ["dmarc@sender.example", "ext@allowed.example"]);

    let read = read_by_python(&letters[0]);
    let rows = json!([
        ["news.sender.example", "news.sender.example", "pass", "fail", "pass", 1],
        ["sender.example", "evil.example", "reject", "fail", "fail", 2],
        ["sender.example", "sender.example", "pass", "fail", "pass", 3],
    ]);
    assert_eq!(read["rows"], rows);
    assert_eq!(
        (&read["domain"], &read["p"], &read["org"], &read["email"], &read["seconds"], &read["auto"]),
        (
            &json!("sender.example"),
            &json!("reject"),
            &json!("Agents & Co"),
            &json!("ops@agents.example"),
            &json!(86399),
            &json!("auto-generated")
        )
    );
    let (file, id) = (read["file"].as_str().unwrap(), read["id"].as_str().unwrap());
    assert!(file.starts_with("agents.example!sender.example!") && file.ends_with(".xml.gz"), "{file}");
    let subject = format!("Report Domain: sender.example Submitter: agents.example Report-ID: <{id}>");
    assert_eq!(read["subject"], subject);
    let signed = letters[0].header("DKIM-Signature").unwrap_or_default();
    assert!(signed.contains("d=agents.example"), "{signed}");
    assert!(
        letters[0].from.starts_with("b-") && letters[0].from.ends_with("@agents.example"),
        "{}",
        letters[0].from
    );
    // And by the parser that reads what others send to us.
    let structure = gatepost::screen::structure(&letters[0].message);
    let own = gatepost::reports::read(&letters[0].message, &structure).unwrap();
    assert_eq!((own.total, own.failed, own.domains), (6, 2, vec!["sender.example".to_owned()]));

    // Once: not after a restart, nor by the other node.
    server.kill9();
    server.restart().await;
    let all = server.api.get("/v1/reports/sent").await.ok();
    assert_eq!(all["count"], 1, "nobody else asked: {all}");
    assert_eq!(all["reports"][0]["destinations"], sent["destinations"]);
    assert_eq!(reports(&sink).len(), 2);
    let said = Command::new(env!("CARGO_BIN_EXE_gatepost"))
        .args(["report", "sent", "--url", server.api.base(), "--key", ADMIN_KEY])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("sender.example") && said.contains("sent"), "{said}");
    let agent = server.inbox_key(ada).await;
    agent.get("/v1/reports/sent").await.refused(403, "forbidden");
}

/// mail-servers.md §6.11: a report that bounced made mail about which a report was due, every day again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dmarc_report_loop() {
    let sink = Sink::start().await;
    let dns = Dns::start(&format!(
        "sender.example TXT v=spf1 ip4:127.0.0.0/8 -all\n_dmarc.sender.example TXT v=DMARC1; p=none; \
         rua=mailto:dmarc@sender.example\n{}",
        sink.zone("sender.example")
    ))
    .await;
    let server =
        TestServer::new().inbox("ada").dns(&dns).relay_port(sink.address.port()).config(CONFIG).start().await;
    server.receive("a@sender.example", "ada@agents.example", &mail("a@sender.example", 1)).await;
    assert!(server.stop().await.success());
    next_day(&server, &Database::Sqlite);
    server.restart().await;
    let letter = eventually("the report", async || reports(&sink).into_iter().next()).await;
    // It bounces, late, to where bounces go, and with the DMARC pass of the domain that asks for reports.
    let bounce = "From: mailer-daemon@sender.example\r\nTo: postmaster@agents.example\r\nSubject: Undelivered\r\n\
         Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n--b\r\n\
         Content-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx\r\n\r\n\
         Final-Recipient: rfc822; dmarc@sender.example\r\nAction: failed\r\nStatus: 5.1.1\r\n\r\n--b--\r\n";
    server.receive("mailer-daemon@sender.example", &letter.from, bounce.as_bytes()).await;
    server.message("postmaster@agents.example", "Undelivered").await;
    assert_eq!(server.api.get(WORK).await.ok()["count"], 0, "nobody has to look at it");
    assert!(server.stop().await.success());
    next_day(&server, &Database::Sqlite);
    server.restart().await;
    let all = server.api.get("/v1/reports/sent").await.ok();
    assert_eq!(all["count"], 1, "the bounce is in no report: {all}");
}

/// As it is shipped: nobody is told anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_being_asked_to_the_server_reports_nothing() {
    let dns = Dns::start(
        "sender.example TXT v=spf1 ip4:127.0.0.0/8 -all\n_dmarc.sender.example TXT v=DMARC1; p=none; rua=mailto:d@sender.example\n",
    )
    .await;
    let server = TestServer::new().inbox("ada").dns(&dns).start().await;
    server.receive("a@sender.example", "ada@agents.example", &mail("a@sender.example", 1)).await;
    assert!(server.stop().await.success());
    server.restart().await;
    assert_eq!(server.api.get("/v1/reports/sent").await.ok()["count"], 0);
}

/// RFC 8460: what became of our sessions is told to who asks, by mail and by HTTPS, though their TLS is broken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_of_a_day_are_reported_by_mail_and_by_https() {
    let sink = Sink::start().await;
    let authority = Authority::new();
    let web = PolicyHost::start(&authority.sign("reports.web.example"), "").await;
    let zone = format!(
        "_smtp._tls.mail.example TXT v=TLSRPTv1; rua=mailto:tls@mail.example\n\
         _smtp._tls.web.example TXT v=TLSRPTv1; rua=https://reports.web.example:{}/tls\n\
         reports.web.example A {}\n",
        web.address.port(),
        web.address.ip()
    );
    let hosts = ["mail.example", "web.example", "quiet.example"];
    let hosts: String = hosts.iter().map(|domain| sink.zone(domain)).collect();
    let dns = Dns::start(&format!("{zone}{hosts}")).await;
    let port = sink.address.port();
    let server = TestServer::new()
        .inbox("ada")
        .dns(&dns)
        .relay_port(port)
        .config("[reports]\ntls = true\n")
        .start()
        .await;
    for to in ["a@mail.example", "a@web.example", "a@quiet.example"] {
        let body = json!({"to": to, "subject": "s", "text": "t"});
        server.api.post("/v0/inboxes/ada@agents.example/messages/send", body).await.ok();
    }
    eventually("all of it arrives", async || (sink.count() == 3).then_some(())).await;
    let sql = |statement: &str| {
        let file = server.config_file().parent().unwrap().join("data/gatepost.db");
        rusqlite::Connection::open(file).unwrap().execute_batch(statement).unwrap();
    };
    assert!(server.stop().await.success());
    sql("UPDATE tls_result SET day = day - 1");
    for domain in ["mail.example", "web.example", "quiet.example"] {
        sql(&format!(
            "INSERT INTO report_out (kind, day, domain, state, due_at, updated_at)
             SELECT 'tls', max(day), '{domain}', 'due', 0, 0 FROM tls_result"
        ));
    }
    server.restart().await;
    let state = async |domain: &str, wanted: &str| {
        eventually(&format!("the report for {domain} is {wanted}"), async || {
            let all = server.api.get(&format!("/v1/reports/sent?domain={domain}")).await.ok();
            (all["reports"][0]["state"] == wanted).then(|| all["reports"][0].clone())
        })
        .await
    };
    state("quiet.example", "unwanted").await;
    let by_mail = state("mail.example", "sent").await;
    assert_eq!((&by_mail["kind"], &by_mail["total"]), (&json!("tls"), &json!(1)), "{by_mail}");
    let letter = eventually("the letter", async || reports(&sink).into_iter().next()).await;
    assert_eq!(letter.to, ["tls@mail.example"]);
    for (name, value) in [
        ("TLS-Report-Domain", "mail.example"),
        ("TLS-Report-Submitter", "agents.example"),
        ("TLS-Required", "No"),
        ("Auto-Submitted", "auto-generated"),
    ] {
        assert_eq!(letter.header(name).as_deref(), Some(value), "{}", letter.text());
    }
    assert!(letter.header("Content-Type").unwrap().contains("report-type=\"tlsrpt\""), "{}", letter.text());
    assert!(letter.header("DKIM-Signature").is_some());
    let structure = gatepost::screen::structure(&letter.message);
    let own = gatepost::reports::read(&letter.message, &structure).unwrap();
    assert_eq!(
        (own.domains, own.total, own.failed),
        (vec!["mail.example".to_owned()], 1, 1),
        "nothing was encrypted"
    );

    // tls_report_loop (Stalwart 0.12.4): the delivery of a report is no session to report on.
    assert!(server.stop().await.success());
    let file = server.config_file().parent().unwrap().join("data/gatepost.db");
    let today = "SELECT count(*) FROM tls_result WHERE day = (SELECT max(day) + 1 FROM report_out)";
    let counted: i64 =
        rusqlite::Connection::open(file).unwrap().query_row(today, [], |row| row.get(0)).unwrap();
    assert_eq!(counted, 0);
    server.restart().await;
    let by_https = state("web.example", "sent").await;
    assert_eq!(by_https["destinations"][0]["state"], "sent", "{by_https}");
    let posted = web.posted();
    assert_eq!(posted.len(), 1, "once");
    let mut json_text = String::new();
    flate2::read::GzDecoder::new(&*posted[0]).read_to_string(&mut json_text).unwrap();
    let report: Value = serde_json::from_str(&json_text).unwrap();
    let policy = &report["policies"][0];
    assert_eq!(policy["policy"]["policy-type"], "no-policy-found", "{report}");
    assert_eq!(policy["failure-details"][0]["result-type"], "starttls-not-supported", "{report}");
    assert_eq!(policy["summary"]["total-failure-session-count"], 1, "{report}");
}
