//! Limits hold exactly, whoever races: clients, nodes, and the one who kills a node in the middle.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::json;

use crate::world::{
    api::Api, dice, dns::Dns, eventually, mail, postgres::Database, server::TestServer, sink::Sink,
};

const LIMIT: usize = 100;
const CLIENTS: usize = 8;
const LIMITS: &str = "/v1/inboxes/ada@agents.example/limits";
const SEND: &str = "/v0/inboxes/ada@agents.example/messages/send";

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn eight_clients_at_two_nodes_never_release_more_than_the_limit_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    let (_sink, dns) = remote().await;
    let first = Arc::new(TestServer::new().inbox("ada").on(&database).dns(&dns).start().await);
    let second = Arc::new(TestServer::new().on(&database).dns(&dns).beside(&first).start().await);
    race_to_the_limit(&[first, second], &_sink).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn eight_clients_never_release_more_than_the_limit_on_sqlite() {
    let (sink, dns) = remote().await;
    let server = Arc::new(TestServer::new().inbox("ada").dns(&dns).start().await);
    race_to_the_limit(&[server], &sink).await;
}

async fn remote() -> (Sink, Dns) {
    let sink = Sink::start().await;
    let dns = Dns::start(&sink.zone("remote.example")).await;
    (sink, dns)
}

async fn race_to_the_limit(nodes: &[Arc<TestServer>], sink: &Sink) {
    let node = &nodes[0];
    node.api.put(LIMITS, json!({"per_hour": LIMIT, "per_day": null})).await.ok();
    let (sent, released) = (Arc::<Mutex<Vec<String>>>::default(), Arc::new(AtomicUsize::new(0)));
    let clients = (0..CLIENTS)
        .map(|n| {
            let api = nodes[n % nodes.len()].api.clone();
            tokio::spawn(client(n, api, sent.clone(), released.clone()))
        })
        .collect::<Vec<_>>();
    // The kill in the middle: of the node that the odd clients talk to.
    eventually("half of the limit is used", async || {
        (released.load(Ordering::Relaxed) >= LIMIT / 2).then_some(())
    })
    .await;
    let victim = nodes.last().expect("node");
    victim.kill9();
    victim.restart().await;
    for client in clients {
        client.await.unwrap();
    }

    let inbox = "/v0/inboxes/ada@agents.example/messages?labels=sent";
    let stored = node.api.all(inbox, "messages").await;
    let recipients = |m: &serde_json::Value| ["to", "cc", "bcc"].map(|k| m[k].as_array().map_or(0, Vec::len));
    let total = stored.iter().flat_map(recipients).sum::<usize>();
    assert!(total <= LIMIT, "{total} recipients were released against a limit of {LIMIT}");
    assert_eq!(total, LIMIT, "the clients stop only when not even one recipient is left");
    let ids = stored.iter().filter_map(|m| m["message_id"].as_str()).collect::<HashSet<_>>();
    for id in sent.lock().unwrap().iter() {
        assert!(ids.contains(id.as_str()), "{id} got a 2xx and is lost");
    }
    let used = node.api.get(LIMITS).await.ok();
    assert_eq!(used["used"]["last_hour"], LIMIT, "{used}");

    // What was released arrives, all of it, and nothing else. The kill may have made a second copy of a few, under
    // the same Message-ID, so messages are counted and not copies.
    let arrived = || sink.taken().iter().filter_map(|mail| mail.header("Message-ID")).collect::<HashSet<_>>();
    eventually("every message has arrived", async || (arrived().len() >= stored.len()).then_some(())).await;
    assert_eq!(arrived().len(), stored.len(), "the remote has seen messages that were never released");
}

/// Sends to one to three recipients until not even one is allowed any more; a broken connection is no answer.
async fn client(n: usize, api: Api, sent: Arc<Mutex<Vec<String>>>, released: Arc<AtomicUsize>) {
    let mut largest = 3;
    for round in 0.. {
        let count = 1 + dice(largest) as usize;
        let to = (0..count).map(|r| format!("c{n}-{round}-{r}@remote.example")).collect::<Vec<_>>();
        let (to, cc, bcc) = (&to[..1], to.get(1..2).unwrap_or(&[]), to.get(2..3).unwrap_or(&[]));
        let body =
            json!({"to": to, "cc": cc, "bcc": bcc, "subject": format!("c{n}-{round}"), "text": "race"});
        match api.ask("POST", SEND, &[], Some(body)).await {
            Ok(answer) if answer.status < 300 => {
                released.fetch_add(count, Ordering::Relaxed);
                sent.lock().unwrap().push(answer.body["message_id"].as_str().expect("message_id").to_owned());
            }
            Ok(answer) if answer.status < 500 => {
                let body = answer.refused(403, "limit_exceeded");
                assert!(body["retry_at"].is_string(), "it must say when: {body}");
                if count == 1 {
                    return;
                }
                largest = count as u64 - 1;
            }
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Recipients on this server count like all others, and a refused send counts nothing: whole or not at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_send_is_released_whole_or_not_at_all_and_local_recipients_count() {
    let (_sink, dns) = remote().await;
    let server = TestServer::new().inbox("ada").inbox("bea").dns(&dns).start().await;
    server.api.put(LIMITS, json!({"per_hour": 4, "per_day": null})).await.ok();
    let send = |to: &[&str]| json!({"to": to, "subject": "s", "text": "t"});
    let three = send(&["bea@agents.example", "a@remote.example", "b@remote.example"]);
    server.api.post(SEND, three.clone()).await.ok();
    server.api.post(SEND, three).await.refused(403, "limit_exceeded");
    server.api.post(SEND, send(&["bea@agents.example"])).await.ok();
    server.api.post(SEND, send(&["bea@agents.example"])).await.refused(403, "limit_exceeded");
    assert_eq!(server.api.get(LIMITS).await.ok()["used"]["last_hour"], 4);
    // An inbox's own key may not lift its limit.
    let agent = server.inbox_key("ada@agents.example").await;
    let lifted = agent.put(LIMITS, json!({"per_hour": null})).await;
    assert_eq!(lifted.status, 403, "{}", lifted.body);
}

/// Mail from one agent to another never leaves the machine, and arrives as work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_between_two_inboxes_is_delivered_here_with_a_local_verdict() {
    let server = TestServer::new().inbox("ada").inbox("bea").start().await;
    let send = json!({"to": "bea@agents.example", "subject": "Between us", "text": "psst"});
    server.api.post(SEND, send).await.ok();
    let seen = server.message("bea@agents.example", "Between us").await;
    assert_eq!(seen["verdict"]["source"], "local", "{seen}");
    assert_eq!(seen["verdict"]["verified_sender"], "ada@agents.example");
    let raw = server.raw("bea@agents.example", seen["message_id"].as_str().unwrap()).await;
    assert!(mail::header(&raw, "Bcc").is_none());
    let claimed = server.api.post("/v1/work-items/claim", json!({"wait_seconds": 20})).await.ok();
    assert_eq!(claimed["work_items"][0]["inbox_id"], "bea@agents.example", "{claimed}");
}
