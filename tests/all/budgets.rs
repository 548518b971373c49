//! What protects a domain's name: the kill switch, and the stop that comes by itself.

use serde_json::json;

use crate::world::{
    dns::Dns,
    eventually,
    postgres::Database,
    server::{Setup, TestServer},
    sink::Sink,
};

const SEND: &str = "/v0/inboxes/ada@agents.example/messages/send";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_refuses_what_is_new_and_cancels_what_is_queued_on_sqlite() {
    kill_switch(TestServer::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_refuses_what_is_new_and_cancels_what_is_queued_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    kill_switch(TestServer::new().on(&database)).await;
}

async fn kill_switch(setup: Setup) {
    let sink = Sink::start().await;
    let dns = Dns::start(&sink.zone("remote.example")).await;
    let server = setup.inbox("ada").dns(&dns).start().await;
    sink.refuse("slow@remote.example", "451 4.2.1 later");
    let body = json!({"to": "slow@remote.example", "subject": "Hi", "text": "t"});
    server.api.post(SEND, body.clone()).await.ok();
    eventually("it is deferred", async || {
        let events = server.api.get("/v1/events?event_types=delivery.deferred").await.ok();
        (events["count"] != 0).then_some(())
    })
    .await;

    // An inbox's own key has no say in it.
    let own = server.inbox_key("ada@agents.example").await;
    let ask =
        json!({"scope": "inbox", "id": "ada@agents.example", "reason": "It went mad.", "queued": "cancel"});
    own.post("/v1/stops", ask.clone()).await.refused(403, "forbidden");

    let made = eventually("the stop finds it between two attempts", async || {
        let made = server.api.post("/v1/stops", ask.clone()).await.ok();
        if made["canceled"] == 1 {
            return Some(made);
        }
        let path = format!("/v1/stops/{}", made["stop_id"].as_str().unwrap());
        server.api.ask("DELETE", &path, &[], None).await.unwrap().ok();
        None
    })
    .await;
    let refused = server.api.post(SEND, body.clone()).await.refused(403, "message_rejected");
    assert_eq!(refused["reasons"][0]["rule"], "stopped", "{refused}");
    assert!(refused.to_string().contains("It went mad."), "{refused}");
    let stops = server.api.get("/v1/stops").await.ok();
    assert_eq!(
        (stops["count"].clone(), stops["stops"][0]["stop_id"].clone()),
        (json!(1), made["stop_id"].clone())
    );

    sink.accept("slow@remote.example");
    let path = format!("/v1/stops/{}", made["stop_id"].as_str().unwrap());
    server.api.ask("DELETE", &path, &[], None).await.unwrap().ok();
    server.api.post(SEND, json!({"to": "slow@remote.example", "subject": "After", "text": "t"})).await.ok();
    eventually("what comes after it leaves", async || {
        sink.taken().iter().any(|t| t.header("Subject").as_deref() == Some("After")).then_some(())
    })
    .await;
    assert_eq!(sink.taken().len(), 1, "what was canceled never leaves");
}

/// What was planned or deferred waits for the end of the stop, and then goes on by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_stop_holds_goes_on_when_it_is_lifted() {
    let sink = Sink::start().await;
    let dns = Dns::start(&sink.zone("remote.example")).await;
    let server = TestServer::new().inbox("ada").dns(&dns).start().await;
    sink.refuse("slow@remote.example", "451 4.2.1 later");
    let body = json!({"to": "slow@remote.example", "subject": "Hi", "text": "t"});
    server.api.post(SEND, body).await.ok();
    let ask = json!({"scope": "domain", "id": "agents.example", "reason": "We look into it."});
    let made = server.api.post("/v1/stops", ask).await.ok();
    eventually("the queue holds it", async || {
        let held = server.api.get("/v1/queue?state=held").await.ok();
        held.to_string().contains(made["stop_id"].as_str().unwrap()).then_some(())
    })
    .await;
    sink.accept("slow@remote.example");
    let path = format!("/v1/stops/{}", made["stop_id"].as_str().unwrap());
    server.api.ask("DELETE", &path, &[], None).await.unwrap().ok();
    eventually("it arrives", async || (sink.taken().len() == 1).then_some(())).await;
}

/// An agent with a bad list: it is stopped before it is through, and a human is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inbox_whose_mail_bounces_is_stopped_and_an_admin_lets_it_go() {
    let sink = Sink::start().await;
    let dns = Dns::start(&sink.zone("remote.example")).await;
    let server = TestServer::new().inbox("ada").dns(&dns).config("[budgets]\nrate_minimum = 5").start().await;
    for n in 0..6 {
        let to = format!("gone{n}@remote.example");
        sink.refuse(&to, "550 5.1.1 no such user");
        server.api.post(SEND, json!({"to": to, "subject": "Hello", "text": "t"})).await.ok();
    }
    let stops = eventually("inbox and domain are stopped", async || {
        let stops = server.api.get("/v1/stops").await.ok();
        (stops["count"] == 2).then_some(stops)
    })
    .await;
    assert_eq!(stops["stops"][0]["rule"], "bounce_rate", "{stops}");
    let body = json!({"to": "bob@remote.example", "subject": "Hello", "text": "t"});
    let refused = server.api.post(SEND, body.clone()).await.refused(403, "message_rejected");
    assert_eq!(refused["reasons"][0]["rule"], "stopped_bounce_rate", "{refused}");
    let items = server.api.get("/v1/work-items?state=needs_human").await.ok();
    assert!(items.to_string().contains("bounce_rate"), "{items}");
    for stop in stops["stops"].as_array().unwrap() {
        let path = format!("/v1/stops/{}", stop["stop_id"].as_str().unwrap());
        server.api.ask("DELETE", &path, &[], None).await.unwrap().ok();
    }
    server.api.post(SEND, body).await.ok();
}
