//! Out: a scripted remote defers, refuses, is not there. Every released message has a visible fate.

use serde_json::{Value, json};

use crate::world::{
    dns::Dns,
    eventually, mail,
    postgres::Database,
    server::{Setup, TestServer},
    sink::Sink,
};

const SEND: &str = "/v0/inboxes/ada@agents.example/messages/send";

async fn event(server: &TestServer, kind: &str, message_id: &Value) -> Value {
    let path = format!("/v1/events?event_types={kind}&limit=1000");
    eventually(&format!("an event {kind} for {message_id}"), async || {
        let events = server.api.get(&path).await.ok();
        events["events"].as_array()?.iter().find(|e| e.to_string().contains(&message_id.to_string())).cloned()
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_remote_that_defers_gets_the_same_message_later_on_sqlite() {
    deferred_then_delivered(TestServer::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_remote_that_defers_gets_the_same_message_later_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    deferred_then_delivered(TestServer::new().on(&database)).await;
}

async fn deferred_then_delivered(setup: Setup) {
    let sink = Sink::start().await;
    let dns = Dns::start(&sink.zone("remote.example")).await;
    let server = setup.inbox("ada").dns(&dns).start().await;
    sink.refuse("slow@remote.example", "451 4.2.1 come back later");
    let body = json!({"to": ["slow@remote.example", "quick@remote.example"], "subject": "Hi", "text": "t"});
    let sent = server.api.post(SEND, body).await.ok();
    event(&server, "delivery.deferred", &sent["message_id"]).await;
    // A restart in the middle forgets nothing.
    server.kill9();
    server.restart().await;
    sink.accept("slow@remote.example");
    eventually("both have it", async || {
        let to = sink.taken().into_iter().flat_map(|mail| mail.to).collect::<Vec<_>>();
        ["slow@remote.example", "quick@remote.example"]
            .iter()
            .all(|r| to.iter().any(|t| t == r))
            .then_some(())
    })
    .await;
    for taken in sink.taken() {
        assert_eq!(taken.header("Message-ID").as_deref(), sent["message_id"].as_str());
        assert!(taken.from.starts_with("b-") && taken.from.ends_with("@agents.example"), "{}", taken.from);
    }
    let delivered = event(&server, "message.delivered", &sent["message_id"]).await;
    assert_eq!(delivered["delivery"]["message_id"], sent["message_id"], "{delivered}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_final_refusal_is_an_event_a_message_in_the_thread_and_a_suppression() {
    let sink = Sink::start().await;
    let dns = Dns::start(&sink.zone("remote.example")).await;
    let server = TestServer::new().inbox("ada").dns(&dns).start().await;
    sink.refuse("gone@remote.example", "550 5.1.1 no such user here");
    let body = json!({"to": "gone@remote.example", "subject": "Hello?", "text": "t"});
    let sent = server.api.post(SEND, body.clone()).await.ok();
    let bounced = event(&server, "message.bounced", &sent["message_id"]).await;
    assert_eq!(bounced["bounce"]["recipients"][0]["address"], "gone@remote.example", "{bounced}");
    let thread = format!("/v0/inboxes/ada@agents.example/threads/{}", sent["thread_id"].as_str().unwrap());
    let report = eventually("the bounce is in the thread", async || {
        let thread = server.api.get(&thread).await.ok();
        thread["messages"].as_array()?.iter().find(|m| m["message_id"] != sent["message_id"]).cloned()
    })
    .await;
    assert!(report.to_string().contains("no such user here"), "the remote's own words are there: {report}");
    let refused = server.api.post(SEND, body).await.refused(403, "message_rejected");
    assert!(refused.to_string().contains("gone@remote.example"), "it says who and why: {refused}");
}

/// RFC 7505: a domain that says it takes no mail is believed, at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_domain_with_a_null_mx_or_no_name_bounces_at_once() {
    let dns = Dns::start("null.example MX 0 .\nnull.example A 127.0.0.1\n").await;
    let server = TestServer::new().inbox("ada").dns(&dns).start().await;
    for to in ["a@null.example", "a@nosuchdomain.example"] {
        let sent = server.api.post(SEND, json!({"to": to, "subject": "s", "text": "t"})).await.ok();
        event(&server, "message.bounced", &sent["message_id"]).await;
    }
}

/// RFC 5321 §5.1: implicit MX, preference order, an MX host that does not answer, CNAME.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_finds_its_way_by_preference_alias_and_implicit_mx() {
    let sink = Sink::start().await;
    let ip = sink.address.ip();
    let dns = Dns::start(&format!(
        "two.example MX 5 dead.two.example\ntwo.example MX 10 alive.two.example\ndead.two.example A 127.0.0.1\n\
         alive.two.example A {ip}\nimplicit.example A {ip}\nalias.example CNAME implicit.example\n"
    ))
    .await;
    let server = TestServer::new().inbox("ada").dns(&dns).start().await;
    let to = ["a@two.example", "b@implicit.example", "c@alias.example"];
    server.api.post(SEND, json!({"to": to, "subject": "s", "text": "t"})).await.ok();
    eventually("all three have it", async || {
        let got = sink.taken().into_iter().flat_map(|mail| mail.to).collect::<Vec<_>>();
        to.iter().all(|to| got.iter().any(|g| g == to)).then_some(())
    })
    .await;
}

/// A stranger's MX record must not make us talk to our own neighbours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_mx_on_a_private_address_is_not_dialled() {
    let sink = Sink::start().await;
    let dns = Dns::start(&sink.zone("remote.example")).await;
    let private = ("GATEPOST_RELAY__ALLOW_PRIVATE_ADDRESSES", "false");
    let server = TestServer::new().inbox("ada").dns(&dns).env(private.0, private.1).start().await;
    let sent =
        server.api.post(SEND, json!({"to": "a@remote.example", "subject": "s", "text": "t"})).await.ok();
    eventually("it failed or waits, and says so", async || {
        let events =
            server.api.get("/v1/events?event_types=message.bounced&event_types=delivery.deferred").await.ok();
        events.to_string().contains(sent["message_id"].as_str()?).then_some(())
    })
    .await;
    assert_eq!(sink.connections(), 0);
}

/// What comes back to the return path of a message finds its delivery, and the inbox that sent it; a return path that
/// was never made is nobody's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bounce_that_comes_back_by_mail_finds_its_delivery() {
    let sink = Sink::start().await;
    let dns = Dns::start(&sink.zone("remote.example")).await;
    let server = TestServer::new().inbox("ada").dns(&dns).start().await;
    let sent =
        server.api.post(SEND, json!({"to": "late@remote.example", "subject": "s", "text": "t"})).await.ok();
    let taken = eventually("the remote has it", async || sink.taken().pop()).await;
    let report = format!(
        "From: MAILER-DAEMON@remote.example\r\nTo: {to}\r\nSubject: Undelivered\r\nMIME-Version: 1.0\r\n\
         Auto-Submitted: auto-replied\r\n\
         Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n\
         --b\r\nContent-Type: text/plain\r\n\r\nThe mailbox has been closed.\r\n\
         --b\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx.remote.example\r\n\r\n\
         Final-Recipient: rfc822; late@remote.example\r\nAction: failed\r\nStatus: 5.1.1\r\n\r\n--b--\r\n",
        to = taken.from,
    );
    server.receive("", &taken.from, report.as_bytes()).await;
    let seen = server.message("ada@agents.example", "Undelivered").await;
    assert!(seen["text"].as_str().is_some_and(|text| text.contains("has been closed")), "{seen}");
    let bounced = event(&server, "message.bounced", &sent["message_id"]).await;
    assert_eq!(bounced["bounce"]["recipients"][0]["address"], "late@remote.example", "{bounced}");
    let mut smtp = server.dial().await;
    smtp.expect("EHLO client.example", 250).await;
    smtp.expect("MAIL FROM:<>", 250).await;
    let reply = smtp.command("RCPT TO:<b-forgedforgedforgedforged@agents.example>").await.unwrap();
    assert_eq!(reply.code, 550, "{reply:?}");
    assert!(mail::header(&taken.message, "DKIM-Signature").is_some());
}

/// Prose and complaints count like fields: each for its own recipient of that message, and for nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bounce_in_prose_and_a_complaint_suppress_whom_they_name() {
    let sink = Sink::start().await;
    let dns =
        Dns::start(&["one.example", "two.example", "three.example"].map(|d| sink.zone(d)).concat()).await;
    let server = TestServer::new().inbox("ada").dns(&dns).start().await;
    let to = ["gone@one.example", "tired@two.example", "happy@three.example"];
    let sent = server.api.post(SEND, json!({"to": to, "subject": "s", "text": "t"})).await.ok();
    eventually("all three have it", async || {
        let events = server.api.get("/v1/events?event_types=message.delivered&limit=1000").await.ok();
        (events["events"].as_array()?.len() == 3).then_some(())
    })
    .await;
    let path_of = |to: &str| sink.taken().into_iter().find(|mail| mail.to == [to]).unwrap().from;
    let path = path_of(to[0]);
    let prose = format!(
        "From: MAILER-DAEMON@one.example\r\nTo: {path}\r\nSubject: failure notice\r\n\r\n\
         Hi. This is the qmail-send program.\r\n\r\n<gone@one.example>:\r\nSorry, no mailbox here by that name.\r\n\r\n\
         <stranger@elsewhere.example>:\r\nSorry, no mailbox here by that name.\r\n"
    );
    server.receive("", &path, prose.as_bytes()).await;
    event(&server, "message.bounced", &sent["message_id"]).await;
    for kind in ["auth-failure", "abuse"] {
        let name = if kind == "abuse" { to[1] } else { to[2] };
        let path = path_of(name);
        let complaint = format!(
            "From: fbl@remote.example\r\nTo: {path}\r\nSubject: complaint\r\nMIME-Version: 1.0\r\n\
             Content-Type: multipart/report; report-type=feedback-report; boundary=b\r\n\r\n--b\r\n\
             Content-Type: message/feedback-report\r\n\r\nFeedback-Type: {kind}\r\n\
             Original-Rcpt-To: {name}\r\n\r\n--b--\r\n"
        );
        server.receive("", &path, complaint.as_bytes()).await;
    }
    event(&server, "message.complained", &sent["message_id"]).await;
    let suppressed = server.api.all("/v1/suppressions", "suppressions").await;
    let said: Vec<_> = suppressed.iter().map(|s| (s["address"].as_str(), s["reason"].as_str())).collect();
    assert_eq!(
        said,
        [(Some("gone@one.example"), Some("bounce")), (Some("tired@two.example"), Some("complaint"))]
    );
}
