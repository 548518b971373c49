//! What the receive policy does with mail that is not what it says it is, and what becomes of what is held. The
//! incidents are those of mail-servers.md §7.

use serde_json::{Value, json};

use crate::world::{
    api::{Answer, path_escape},
    dns::Dns,
    mail,
    postgres::Database,
    server::{HIDDEN, Setup, TestServer},
    smtp::Reply,
};

const ADA: &str = "ada@agents.example";
const BEA: &str = "bea@agents.example";

/// The tests send from 127.0.0.1. `good` authenticates by SPF; the others fail DMARC with their policy; nothing says
/// anything about `plain`.
const ZONE: &str = "good.example MX 10 mx.good.example\nmx.good.example A 127.0.0.9\n\
    good.example TXT v=spf1 ip4:127.0.0.0/8 -all\n_dmarc.good.example TXT v=DMARC1; p=reject\n\
    bank.example TXT v=spf1 -all\n_dmarc.bank.example TXT v=DMARC1; p=reject\n\
    soft.example TXT v=spf1 -all\n_dmarc.soft.example TXT v=DMARC1; p=quarantine\n\
    none.example TXT v=spf1 -all\n_dmarc.none.example TXT v=DMARC1; p=none\n\
    plain.example A 127.0.0.9\n";

async fn send(server: &TestServer, from: &str, to: &[&str], subject: &str, more: &str) -> Reply {
    let letter =
        mail::letter(from, to[0], subject, &format!("{subject}@x.example"), more, "Please read this");
    server.dial().await.deliver(from, to, &letter).await.unwrap()
}

async fn set(server: &TestServer, path: &str, policy: Value) -> Value {
    server.api.put(&format!("/v1/{path}/receive-policy"), policy).await.ok()
}

async fn held(server: &TestServer) -> Vec<Value> {
    server.api.all("/v1/held", "messages").await
}

fn labels(message: &Value) -> Vec<&str> {
    message["labels"].as_array().unwrap().iter().map(|l| l.as_str().unwrap()).collect()
}

async fn claim(server: &TestServer) -> Value {
    server.api.post("/v1/work-items/claim", json!({"limit": 10})).await.ok()
}

async fn release(server: &TestServer, message: &Value) -> Answer {
    let id = path_escape(message["message_id"].as_str().unwrap());
    server.api.post(&format!("/v1/messages/{id}/release"), json!({})).await
}

/// The narrowest setting counts, at each scope; and none of them lets through what another one refuses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_narrowest_policy_counts_on_sqlite() {
    narrowest(TestServer::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_narrowest_policy_counts_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    narrowest(TestServer::new().on(&database)).await;
}

async fn narrowest(setup: Setup) {
    let dns = Dns::start(ZONE).await;
    let server = setup.inbox("ada").inbox("bea").dns(&dns).start().await;
    let inbox = format!("inboxes/{ADA}");
    assert_eq!(
        server.api.get(&format!("/v1/{inbox}/receive-policy")).await.ok()["dmarc"]["set_by"],
        "organization"
    );
    assert_eq!(send(&server, "ceo@bank.example", &[ADA], "refused", "").await.code, 550);
    assert!(held(&server).await.is_empty(), "what is refused leaves nothing behind");

    // One DATA, one answer: Bea takes it, so Ada, who would have refused, finds it blocked.
    set(&server, &format!("inboxes/{BEA}"), json!({"dmarc": "tag"})).await;
    assert_eq!(send(&server, "ceo@bank.example", &[ADA, BEA], "both", "").await.code, 250);
    let at_ada = server.message(ADA, "both").await;
    assert!(labels(&at_ada).contains(&"blocked"), "{at_ada}");
    assert_eq!(at_ada["policy"]["would_refuse"], true);
    assert_eq!(at_ada["policy"]["reasons"][0]["rule"], "dmarc_failed");
    let at_bea = server.message(BEA, "both").await;
    assert_eq!(at_bea["policy"]["state"], "labelled", "{at_bea}");
    assert!(labels(&at_bea).contains(&"unauthenticated"));
    assert_eq!(claim(&server).await["count"], 1, "Bea's alone");

    set(&server, "domains/agents.example", json!({"dmarc": "quarantine"})).await;
    assert_eq!(send(&server, "ceo@bank.example", &[ADA], "held", "").await.code, 250);
    let message = server.message(ADA, "held").await;
    assert_eq!(
        (&message["policy"]["state"], &message["policy"]["reasons"][0]["set_by"]),
        (&json!("held"), &json!("domain")),
        "{message}"
    );
    assert_eq!(send(&server, "x@none.example", &[ADA], "p-none", "").await.code, 250);
    assert!(server.message(ADA, "p-none").await["policy"].is_null(), "p=none holds nothing");

    let answer = set(&server, &inbox, json!({"dmarc": "tag", "unauthenticated": "hold"})).await;
    assert_eq!(answer["dmarc"], json!({"value": "tag", "set_by": "inbox"}), "{answer}");
    assert_eq!(send(&server, "sam@plain.example", &[ADA], "unknown", "").await.code, 250);
    let unknown = server.message(ADA, "unknown").await;
    assert_eq!(unknown["policy"]["reasons"][0]["rule"], "unauthenticated", "{unknown}");
    set(&server, &inbox, json!({"unauthenticated": "refuse"})).await;
    let reply = send(&server, "sam@plain.example", &[ADA], "unknown2", "").await;
    assert!(reply.code == 550 && reply.text.contains("5.7.26"), "{reply:?}");
    assert_eq!(send(&server, "pat@good.example", &[ADA], "known", "").await.code, 250);
    assert!(server.message(ADA, "known").await["policy"].is_null());
    let answer = set(&server, &inbox, json!({"dmarc": null, "unauthenticated": null})).await;
    assert_eq!(answer["dmarc"], json!({"value": "quarantine", "set_by": "domain"}), "{answer}");
    assert_eq!(held(&server).await.len(), 3, "both, held, unknown");

    // Nobody without an admin key changes what binds an inbox, or lets in what it keeps out.
    let agent = server.inbox_key(ADA).await;
    agent
        .put(&format!("/v1/{inbox}/receive-policy"), json!({"dmarc": "tag"}))
        .await
        .refused(403, "forbidden");
    let id = path_escape(message["message_id"].as_str().unwrap());
    agent.post(&format!("/v1/{inbox}/messages/{id}/release"), json!({})).await.refused(403, "forbidden");
    let unlabel = json!({"remove_labels": ["spam"]});
    agent.patch(&format!("/v0/{inbox}/messages/{id}"), unlabel).await.refused(403, "forbidden");
    let events = server.api.all_events().await;
    for kind in ["domain.receive_policy_changed", "inbox.receive_policy_changed"] {
        assert!(events.iter().any(|e| e["event_type"] == kind), "{kind}");
    }
}

/// Anybody can write our own address into From. No DMARC record of ours says that it is wrong, and still it is refused;
/// with SPF aligned it is ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_domain_spoofed_from_outside_is_refused() {
    let dns = Dns::start(ZONE).await;
    let server = TestServer::new().inbox("ada").inbox("bea").dns(&dns).start().await;
    let reply = send(&server, BEA, &[ADA], "spoof", "").await;
    assert!(reply.code == 550 && reply.text.contains("5.7.1"), "{reply:?}");
    // The reverse-path is somebody else's and passes SPF: that says nothing for From.
    let letter = mail::letter(BEA, ADA, "spoof2", "s2@x.example", "", "Wire it");
    let mut smtp = server.dial().await;
    assert_eq!(smtp.deliver("pat@good.example", &[ADA], &letter).await.unwrap().code, 550);
    // A second author does not help, nor does none.
    let both =
        mail::letter(&format!("pat@good.example, {BEA}"), ADA, "spoof3", "s3@x.example", "", "Wire it");
    assert_eq!(smtp.transaction("pat@good.example", &[ADA], &both).await.unwrap().code, 550);
    let none = b"Subject: spoof4\r\nMessage-ID: <s4@x.example>\r\n\r\nWire it\r\n";
    assert_eq!(smtp.transaction(BEA, &[ADA], none).await.unwrap().code, 550);
    // A forwarder keeps our reverse-path on mail that is its author's: RCPT and MAIL say nothing against it.
    let forwarded = mail::letter("sam@plain.example", ADA, "forwarded", "f@x.example", "", "Fwd");
    assert_eq!(smtp.transaction(BEA, &[ADA], &forwarded).await.unwrap().code, 250);

    // A domain with senders that prove nothing: its own setting counts, wherever the mail goes.
    set(&server, "domains/agents.example", json!({"spoofed": "hold"})).await;
    assert_eq!(send(&server, BEA, &[ADA], "machine", "").await.code, 250);
    let message = server.message(ADA, "machine").await;
    assert_eq!(message["policy"]["reasons"][0]["rule"], "spoofed", "{message}");
    assert_eq!(claim(&server).await["count"], 1, "the forwarded one alone");

    let dns = Dns::start("agents.example TXT v=spf1 ip4:127.0.0.0/8 -all\n").await;
    let server = TestServer::new().inbox("ada").dns(&dns).start().await;
    assert_eq!(send(&server, BEA, &[ADA], "ours", "").await.code, 250);
    let dns = Dns::start("agents.example DEAD x\n").await;
    let server = TestServer::new().inbox("ada").dns(&dns).start().await;
    assert_eq!(
        send(&server, BEA, &[ADA], "unsure", "").await.code,
        451,
        "the DNS is down, not the sender a liar"
    );
}

/// Backscatter: who stands in From of a forgery never hears of it. It is refused in the session, and nothing is sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_forgery_makes_no_backscatter() {
    let dns = Dns::start(ZONE).await;
    let server = TestServer::new().inbox("ada").dns(&dns).start().await;
    assert_eq!(send(&server, "victim@bank.example", &[ADA], "forged", "").await.code, 550);
    assert_eq!(send(&server, "victim@soft.example", &[ADA], "suspect", "").await.code, 250);
    let message = held(&server).await.remove(0);
    let id = path_escape(message["message_id"].as_str().unwrap());
    server.api.post(&format!("/v1/messages/{id}/discard"), json!({})).await.ok();
    assert!(held(&server).await.is_empty());
    let sent = server.api.all_events().await;
    let sent = sent.iter().filter(|e| e["event_type"] == "message.sent").count();
    assert_eq!(sent, 0);
    let all = server.api.all(&format!("/v0/inboxes/{ADA}/messages?{HIDDEN}"), "messages").await;
    assert!(all.iter().all(|m| m["direction"] == "in"), "{all:?}");
    let items = server.api.get("/v1/work-items?state=done").await.ok();
    assert_eq!(items["work_items"][0]["reason"], "discarded", "{items}");
}

/// GHSA-rxqh-5572-8m77: an allow list that believes From lets in whoever writes the right name there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trusting_from_a_forged_name_on_the_allow_list_is_kept_out_on_sqlite() {
    trusting_from(TestServer::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trusting_from_a_forged_name_on_the_allow_list_is_kept_out_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    trusting_from(TestServer::new().on(&database)).await;
}

async fn trusting_from(setup: Setup) {
    let dns = Dns::start(ZONE).await;
    let server = setup.inbox("ada").dns(&dns).start().await;
    let pod = "/v0/pods/pod_default/lists/receive";
    for entry in ["GOOD.example", "boss@none.example"] {
        server.api.post(&format!("{pod}/allow"), json!({"entry": entry})).await.ok();
    }
    let listed = server.api.get(&format!("{pod}/allow")).await.ok();
    assert_eq!(listed["entries"][1]["pod_id"], "pod_default", "{listed}");
    assert_eq!(
        send(&server, "pat@mail.good.example", &[ADA], "sub", "").await.code,
        550,
        "p=reject for subdomains"
    );
    assert_eq!(send(&server, "pat@good.example", &[ADA], "verified", "").await.code, 250);
    assert!(server.message(ADA, "verified").await["policy"].is_null());
    assert_eq!(send(&server, "boss@none.example", &[ADA], "forged", "").await.code, 250);
    let forged = server.message(ADA, "forged").await;
    assert_eq!(forged["policy"]["reasons"][0]["rule"], "receive_list_allow", "{forged}");
    assert_eq!(forged["policy"]["reasons"][0]["set_by"], "pod");
    // A block holds for whoever claims the address, and is stronger than any allow; also in its other spelling.
    server.api.post("/v0/lists/receive/block", json!({"entry": "pat@GOOD.example"})).await.ok();
    server.api.post("/v0/lists/receive/block", json!({"entry": "MÜNCHEN.example"})).await.ok();
    assert_eq!(send(&server, "pat@good.example", &[ADA], "blocked", "").await.code, 250);
    let blocked = server.message(ADA, "blocked").await;
    assert_eq!(blocked["policy"]["reasons"][0]["rule"], "receive_list_block", "{blocked}");
    assert_eq!(send(&server, "x@post.xn--mnchen-3ya.example", &[ADA], "idn", "").await.code, 250);
    assert_eq!(server.message(ADA, "idn").await["policy"]["reasons"][0]["rule"], "receive_list_block");
    assert_eq!(claim(&server).await["count"], 1, "blocked mail makes no work");
    server
        .api
        .post("/v0/pods/pod_other/lists/receive/allow", json!({"entry": "x.example"}))
        .await
        .refused(404, "not_found");
    let entry = format!("{pod}/allow/boss%40none.example");
    assert_eq!(server.api.ask("DELETE", &entry, &[], None).await.unwrap().status, 204);

    // Released, it is mail like any other.
    let waiting = held(&server).await;
    let forged = waiting.iter().find(|m| m["subject"] == "forged").unwrap();
    release(&server, forged).await.ok();
    let work = claim(&server).await;
    assert_eq!(work["work_items"][0]["messages"][0]["subject"], "forged", "{work}");
}

/// Held mail is never lost: it is listed with the reason, released with one call, and handed out as if it had just
/// come; a second call changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_silently_missing_what_is_held_is_seen_and_released_on_sqlite() {
    silently_missing(TestServer::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_silently_missing_what_is_held_is_seen_and_released_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    silently_missing(TestServer::new().on(&database)).await;
}

async fn silently_missing(setup: Setup) {
    let dns = Dns::start(ZONE).await;
    let server = setup.inbox("ada").dns(&dns).start().await;
    let inbox = format!("/v0/inboxes/{ADA}");
    // A forgery that answers our own mail lands in its thread, and so does the real answer.
    let sent = json!({"to": ["cfo@good.example"], "subject": "Figures", "text": "Please"});
    let sent = server.api.post(&format!("{inbox}/messages/send"), sent).await.ok();
    let cites = format!("In-Reply-To: {}\r\n", sent["message_id"].as_str().unwrap());
    assert_eq!(send(&server, "cfo@soft.example", &[ADA], "Forged", &cites).await.code, 250);
    let item = server.api.get("/v1/work-items").await.ok();
    assert_eq!(item["work_items"][0]["state"], "held", "{item}");
    let requeue =
        format!("/v1/work-items/{}/requeue", item["work_items"][0]["work_item_id"].as_str().unwrap());
    server.api.post(&requeue, json!({})).await.refused(412, "wrong_state");
    assert_eq!(send(&server, "cfo@good.example", &[ADA], "Real", &cites).await.code, 250);
    let real = server.message(ADA, "Real").await;
    assert_eq!(real["thread_id"], sent["thread_id"]);
    let work = claim(&server).await;
    let item = &work["work_items"][0];
    assert_eq!(item["messages"].as_array().unwrap().len(), 1, "the held one is not handed out: {work}");
    assert_eq!(item["messages"][0]["subject"], "Real");
    let threads = server.api.get(&format!("{inbox}/threads")).await.ok();
    assert_eq!(threads["count"], 1, "a held forgery does not hide the thread: {threads}");

    // Released while a worker holds the thread: it is news, and not covered by what the worker finishes.
    let waiting = held(&server).await;
    assert_eq!(waiting.len(), 1, "{waiting:?}");
    assert!(waiting[0]["policy"]["reasons"][0]["text"].as_str().unwrap().contains("soft.example"));
    let freed = release(&server, &waiting[0]).await.ok();
    assert_eq!(freed["policy"]["state"], "released", "{freed}");
    assert!(!labels(&freed).contains(&"spam"), "{freed}");
    let again = release(&server, &waiting[0]).await.ok();
    assert_eq!(again["policy"], freed["policy"]);
    let complete = format!("/v1/work-items/{}/complete", item["work_item_id"].as_str().unwrap());
    let done = server.api.post(&complete, json!({"fence": item["lease"]["fence"]})).await.ok();
    assert_eq!(done["state"], "available", "{done}");
    let work = claim(&server).await;
    assert_eq!(work["work_items"][0]["messages"][0]["subject"], "Forged", "{work}");
    assert_eq!(work["work_items"][0]["messages"].as_array().unwrap().len(), 1, "{work}");
    assert!(held(&server).await.is_empty());
    let events = server.api.all_events().await;
    let told = |kind: &str| {
        events.iter().filter(|e| e["event_type"] == kind && e["message"]["subject"] == "Forged").count()
    };
    assert_eq!((told("message.received.spam"), told("message.received")), (1, 1), "released once");

    // The genuine copy of a message whose forgery came first is no duplicate of what nobody was given.
    let same = |from: &str| mail::letter(from, ADA, "Same", "same@soft.example", "", "the same words");
    server.receive("a@soft.example", ADA, &same("a@soft.example")).await;
    server.receive("a@good.example", ADA, &same("a@good.example")).await;
    let work = claim(&server).await;
    assert_eq!(work["work_items"][0]["messages"][0]["from"], "a@good.example", "{work}");

    // Mail for the operator is refused to nobody and out of nobody's sight.
    assert_eq!(send(&server, "x@bank.example", &["postmaster@agents.example"], "Help", "").await.code, 250);
    let people = server.api.get("/v1/work-items?state=needs_human").await.ok();
    assert_eq!(people["work_items"][0]["inbox_id"], "postmaster@agents.example", "{people}");
    let waiting = held(&server).await;
    let for_operator = waiting.iter().find(|m| m["subject"] == "Help").expect("held for the operator");
    release(&server, for_operator).await.ok();
}

/// An inbox that takes little says so at RCPT where the client declares the size, after DATA where it does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_larger_than_the_inbox_takes_is_refused_before_it_is_sent() {
    let server = TestServer::new().inbox("ada").inbox("bea").start().await;
    let wrong = json!({"max_message_size": 1});
    server
        .api
        .put(&format!("/v1/inboxes/{ADA}/receive-policy"), wrong)
        .await
        .refused(400, "validation_error");
    set(&server, &format!("inboxes/{ADA}"), json!({"max_message_size": 10_000})).await;
    let mut smtp = server.dial().await;
    smtp.expect("EHLO client.example", 250).await;
    smtp.expect("MAIL FROM:<bob@plain.example> SIZE=20000", 250).await;
    let reply = smtp.expect(&format!("RCPT TO:<{ADA}>"), 552).await;
    assert!(reply.text.contains("5.3.4"), "{reply:?}");
    smtp.expect(&format!("RCPT TO:<{BEA}>"), 250).await;
    smtp.expect("RSET", 250).await;
    let line = format!("{}\r\n", "x".repeat(70)).repeat(300);
    let large = mail::letter("bob@plain.example", ADA, "Large", "l@x.example", "", &line);
    let reply = smtp.transaction("bob@plain.example", &[ADA], &large).await.unwrap();
    assert!(reply.code == 552 && reply.text.contains("5.3.4"), "{reply:?}");
    let reply = smtp.transaction("bob@plain.example", &[ADA, BEA], &large).await.unwrap();
    assert_eq!(reply.code, 250, "Bea takes it");
    let kept = server.message(ADA, "Large").await;
    assert_eq!(kept["policy"]["reasons"][0]["rule"], "too_large", "{kept}");
    assert!(server.message(BEA, "Large").await["policy"].is_null());
}
