//! Loops end: two agents of one server, two servers that answer each other, and nobody answers a machine.

use serde_json::{Value, json};

use crate::world::{
    dns::Dns,
    eventually, mail,
    server::{DOMAIN, TestServer},
    sink::Sink,
};

const ADA: &str = "ada@agents.example";

async fn reply(server: &TestServer, inbox: &str, message_id: &str) -> crate::world::api::Answer {
    let id = crate::world::api::path_escape(message_id);
    server.api.post(&format!("/v0/inboxes/{inbox}/messages/{id}/reply"), json!({"text": "And you?"})).await
}

/// The newest message of an inbox that it did not send, beyond those seen.
async fn next(server: &TestServer, inbox: &str, seen: &mut Vec<String>) -> String {
    let path = format!("/v0/inboxes/{inbox}/messages?labels=received");
    let id = eventually(&format!("another message in {inbox}"), async || {
        let all = server.api.all(&path, "messages").await;
        let mut ids = all.iter().filter_map(|m| m["message_id"].as_str().map(str::to_owned));
        ids.find(|id| !seen.contains(id))
    })
    .await;
    seen.push(id.clone());
    id
}

async fn waits_for_a_human(server: &TestServer) -> Value {
    eventually("a human is told", async || {
        let items = server.api.get("/v1/work-items?state=needs_human").await.ok();
        items["work_items"].as_array()?.iter().find(|i| i["reason"] == "thread_turns").cloned()
    })
    .await
}

/// nanobot #3215: agents answered one another thousands of times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_agents_of_one_server_stop_and_a_human_is_told() {
    let server = TestServer::new().inbox("ada").inbox("bob").config("[loops]\nturns = 3").start().await;
    let bob = format!("bob@{DOMAIN}");
    let (mut of_ada, mut of_bob) = (Vec::new(), Vec::new());
    let body = json!({"to": bob, "subject": "Ping", "text": "Hello."});
    server.api.post(&format!("/v0/inboxes/{ADA}/messages/send"), body).await.ok();
    let mut turns = 1;
    let refused = loop {
        let id = next(&server, &bob, &mut of_bob).await;
        let answer = reply(&server, &bob, &id).await;
        if answer.status != 200 {
            break answer;
        }
        turns += 1;
        let id = next(&server, ADA, &mut of_ada).await;
        let answer = reply(&server, ADA, &id).await;
        if answer.status != 200 {
            break answer;
        }
        turns += 1;
        assert!(turns <= 6, "they go on");
    };
    let refused = refused.refused(403, "message_rejected");
    assert_eq!(refused["reasons"][0]["rule"], "thread_turns", "{refused}");
    assert_eq!(turns, 6, "three turns each");
    waits_for_a_human(&server).await;
}

/// The other server's agent does not say that it is one: it is known by its speed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_remote_that_answers_at_once_is_no_human_turn() {
    let sink = Sink::start().await;
    let dns = Dns::start(&sink.zone("remote.example")).await;
    let server = TestServer::new().inbox("ada").dns(&dns).config("[loops]\nturns = 3").start().await;
    let mut seen = Vec::new();
    let mut links = String::new();
    for turn in 0..4 {
        let id = format!("turn-{turn}@remote.example");
        let letter =
            mail::letter("eve@remote.example", ADA, "Re: Ping", &id, &links, &format!("Turn {turn}"));
        server.receive("eve@remote.example", ADA, &letter).await;
        let id = next(&server, ADA, &mut seen).await;
        let answer = reply(&server, ADA, &id).await;
        if turn < 3 {
            let sent = answer.ok();
            links = format!("In-Reply-To: {}\r\n", sent["message_id"].as_str().unwrap());
        } else {
            let refused = answer.refused(403, "message_rejected");
            assert_eq!(refused["reasons"][0]["rule"], "thread_turns", "{refused}");
        }
    }
    waits_for_a_human(&server).await;
}

/// Two servers whose operators let agents answer automatic mail: nobody's answer looks like a person's to the other, and the
/// budget of the thread ends it on both sides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_of_two_servers_stop_and_a_human_is_told() {
    let dns = Dns::start("").await;
    let loops = "[loops]\nturns = 3\nanswer = [\"auto_reply\"]";
    let setup = || TestServer::new().dns(&dns).relay_port(2525).config(loops);
    let here = setup().inbox("ada").start().await;
    let there = setup()
        .env("GATEPOST_HOSTNAME", "mx.other.example")
        .env("GATEPOST_DOMAINS", "other.example")
        .start()
        .await;
    for (domain, server) in [(DOMAIN, &here), ("other.example", &there)] {
        dns.add(&format!("{domain} MX 10 mx.{domain}\nmx.{domain} A {}\n", server.smtp.ip()));
    }
    let bob = "bob@other.example";
    there.api.post("/v0/inboxes", json!({"username": "bob", "domain": "other.example"})).await.ok();
    let (mut of_ada, mut of_bob) = (Vec::new(), Vec::new());
    let body = json!({"to": bob, "subject": "Ping", "text": "Hello."});
    here.api.post(&format!("/v0/inboxes/{ADA}/messages/send"), body).await.ok();
    let mut turns = 1;
    let (told, refused) = loop {
        let id = next(&there, bob, &mut of_bob).await;
        let answer = reply(&there, bob, &id).await;
        if answer.status != 200 {
            break (&there, answer);
        }
        turns += 1;
        let id = next(&here, ADA, &mut of_ada).await;
        let answer = reply(&here, ADA, &id).await;
        if answer.status != 200 {
            break (&here, answer);
        }
        turns += 1;
        assert!(turns <= 6, "they go on");
    };
    let refused = refused.refused(403, "message_rejected");
    assert_eq!(refused["reasons"][0]["rule"], "thread_turns", "{refused}");
    assert_eq!(turns, 6, "three turns each");
    waits_for_a_human(told).await;
}

/// Chatwoot #5131: an agent and a no-reply address wrote to each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_answers_a_machine() {
    let server = TestServer::new().inbox("ada").start().await;
    let machine = "Auto-Submitted: auto-replied\r\n";
    let letter =
        mail::letter("eve@remote.example", ADA, "Away", "away@remote.example", machine, "I am away.");
    server.receive("eve@remote.example", ADA, &letter).await;
    let id = next(&server, ADA, &mut Vec::new()).await;
    let refused = reply(&server, ADA, &id).await.refused(403, "message_rejected");
    assert_eq!(refused["reasons"][0]["rule"], "no_reply_to_auto", "{refused}");
}
