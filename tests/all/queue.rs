//! The queue as a whole: handled by the commands, planned, and killed at each step of an attempt.

use std::{
    collections::HashMap,
    path::PathBuf,
    process::Command,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::{Value, json};

use crate::world::{
    dns::Dns,
    eventually,
    postgres::Database,
    scripted::{Act, Scripted},
    server::{ADMIN_KEY, TestServer},
    sink::Sink,
};

const SEND: &str = "/v0/inboxes/ada@agents.example/messages/send";

fn gatepost(server: &TestServer, args: &[&str]) -> String {
    let said = Command::new(env!("CARGO_BIN_EXE_gatepost"))
        .arg("queue")
        .args(args)
        .args(["--url", server.api.base(), "--key", ADMIN_KEY])
        .output()
        .unwrap();
    assert!(said.status.success(), "{args:?}: {}", String::from_utf8_lossy(&said.stderr));
    String::from_utf8_lossy(&said.stdout).into_owned()
}

async fn row_of(server: &TestServer, sent: &Value) -> Value {
    let id = crate::world::api::path_escape(sent["message_id"].as_str().unwrap());
    let path = format!("/v1/inboxes/ada@agents.example/messages/{id}/deliveries");
    server.api.get(&path).await.ok()["deliveries"][0].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_holds_releases_and_drops_what_is_planned_on_sqlite() {
    handled(Database::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_holds_releases_and_drops_what_is_planned_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    handled(database).await;
}

async fn handled(database: Database) {
    let sink = Sink::start().await;
    let dns = Dns::start(&sink.zone("remote.example")).await;
    let server = TestServer::new().on(&database).inbox("ada").dns(&dns).start().await;
    let later = gatepost::clock::rfc3339(gatepost::clock::Clock::system().now() + 3_600_000);
    let body = json!({"to": "bob@remote.example", "subject": "s", "text": "t", "send_at": later});
    let sent = server.api.post(SEND, body).await.ok();
    let row = row_of(&server, &sent).await;
    let id = row["delivery_id"].as_str().unwrap();
    assert_eq!(row["state"], "scheduled", "{row}");
    assert!(gatepost(&server, &["list"]).contains(id));
    assert!(gatepost(&server, &["show", id]).contains("bob@remote.example"));
    assert!(gatepost(&server, &["hold", id]).contains("held"));
    assert!(gatepost(&server, &["release", id]).contains("scheduled"));
    assert!(gatepost(&server, &["drop", id]).contains("canceled"));
    assert_eq!(server.api.get("/v1/queue").await.ok()["count"], 0);
    assert_eq!(sink.connections(), 0, "what was planned and dropped was never dialled");
}

/// The steps of an attempt at which the server dies, and how many copies the remote may then have.
const STEPS: [(&str, usize); 5] = [
    // Claimed and committed; the resolver does not answer.
    ("LOOKUP", 1),
    ("GREETING", 1),
    ("DATA", 1),
    // The remote has all of it, and we have no answer.
    ("DOT", 2),
    // We have its 250, and the database takes no commit.
    ("COMMIT", 2),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_at_each_step_of_an_attempt_loses_nothing_and_marks_the_second_on_sqlite() {
    for (step, copies) in STEPS {
        killed_at(&Database::Sqlite, step, copies).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_at_each_step_of_an_attempt_loses_nothing_and_marks_the_second_on_postgres() {
    for (step, copies) in STEPS {
        let Some(database) = Database::postgres() else { return };
        killed_at(&database, step, copies).await;
    }
}

/// The attempt comes to a stop at `step`; the server dies there and starts again.
async fn killed_at(database: &Database, step: &'static str, copies: usize) {
    let (reached, well) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (frozen, file) = (Arc::new(Mutex::new(None)), Arc::new(OnceLock::<PathBuf>::new()));
    let (told, now, kept, place, base) =
        (reached.clone(), well.clone(), frozen.clone(), file.clone(), database.clone());
    let remote = Scripted::start(move |at, _| {
        if now.load(Ordering::SeqCst) {
            return Act::Well;
        }
        if step == "COMMIT" && at == "DOT" {
            *kept.lock().unwrap() = Some(base.freeze(place.get().unwrap()));
            return Act::Well;
        }
        if at != step {
            return Act::Well;
        }
        told.store(true, Ordering::SeqCst);
        Act::Hang
    })
    .await;
    let mx = "remote.example MX 10 mx.remote.example\n";
    let dns = Dns::start(&format!("mx.remote.example A {}\n", remote.address.ip())).await;
    dns.add(if step == "LOOKUP" { "remote.example DEAD" } else { mx });
    let server = TestServer::new().on(database).inbox("ada").dns(&dns).start().await;
    file.set(server.database_file()).unwrap();
    let body = json!({"to": "bob@remote.example", "subject": "s", "text": "t"});
    let sent = server.api.post(SEND, body).await.ok();
    eventually(&format!("the attempt is at {step}"), async || {
        let there = match step {
            "LOOKUP" => dns.was_asked("remote.example"),
            // Heard, and on its way into the ledger.
            "COMMIT" => std::fs::read_to_string(server.log_file()).unwrap().contains("250 2.0.0 taken"),
            _ => reached.load(Ordering::SeqCst),
        };
        there.then_some(())
    })
    .await;
    assert_eq!(row_of(&server, &sent).await["state"], "attempting", "{step}");
    server.kill9();
    drop(frozen.lock().unwrap().take());
    well.store(true, Ordering::SeqCst);
    dns.remove("remote.example");
    dns.add(mx);
    server.restart().await;
    let row = eventually("it is delivered", async || {
        let row = row_of(&server, &sent).await;
        (row["state"] == "delivered").then_some(row)
    })
    .await;
    assert_eq!(row["maybe_duplicate"], true, "{step}: {row}");
    assert_eq!(row["log"][0]["outcome"], "interrupted", "{step}: {row}");
    let heard = String::from_utf8_lossy(&remote.heard()).into_owned();
    let id = format!("Message-ID: {}", sent["message_id"].as_str().unwrap());
    assert_eq!(heard.matches(&id).count(), copies, "{step}: {heard}");
}

const HELD: usize = 1_000;

/// Two nodes share one queue, and one dies in the middle of it. KumoMTA and Postal lock rows by hand and sweep stale
/// locks after days; here the other node has them after a minute of silence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_queued_and_one_of_two_nodes_killed_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    let sink = Sink::start().await;
    let dns = Dns::start(&sink.zone("remote.example")).await;
    let first = Arc::new(TestServer::new().on(&database).inbox("ada").dns(&dns).start().await);
    let second = TestServer::new().on(&database).dns(&dns).beside(&first).start().await;
    first
        .api
        .put(
            "/v1/inboxes/ada@agents.example/limits",
            json!({"per_minute": null, "per_hour": null, "per_day": null}),
        )
        .await
        .ok();
    let rule = first.api.post("/v1/queue/rules", json!({"domain": "remote.example"})).await.ok();
    let senders = (0..8).map(|n| {
        let server = first.clone();
        tokio::spawn(async move {
            let mut released = Vec::new();
            for m in 0..HELD / 8 {
                let to = format!("r{n}-{m}@remote.example");
                let body = json!({"to": to, "subject": format!("{n}-{m}"), "text": "one of a thousand"});
                let sent = server.api.post(SEND, body).await.ok();
                released.push(sent["message_id"].as_str().unwrap().to_owned());
            }
            released
        })
    });
    let mut released = Vec::new();
    for sender in senders.collect::<Vec<_>>() {
        released.extend(sender.await.unwrap());
    }
    assert_eq!((released.len(), sink.count()), (HELD, 0), "all of it is held");
    let rule = &rule["rule_id"];
    first.api.ask("DELETE", &format!("/v1/queue/rules/{rule}"), &[], None).await.unwrap();
    eventually("a third has arrived", async || (sink.count() >= HELD / 3).then_some(())).await;
    second.kill9();
    let copies = || {
        let mut copies = HashMap::<String, usize>::new();
        for mail in sink.taken() {
            *copies.entry(mail.header("Message-ID").unwrap()).or_default() += 1;
        }
        copies
    };
    // What the dead node had comes back once it was not seen for a minute (`queue::DEAD_AFTER`).
    let mut before = 0;
    while copies().len() > before && before < HELD {
        before = copies().len();
        eventually("more of it arrives", async || {
            (copies().len() > before || copies().len() == HELD).then_some(())
        })
        .await;
    }
    let copies = copies();
    assert_eq!(copies.len(), HELD);
    assert!(released.iter().all(|id| copies.contains_key(id)), "what was released is what arrived");
    let twice: Vec<&String> = copies.iter().filter(|(_, n)| **n > 1).map(|(id, _)| id).collect();
    assert!(copies.values().all(|n| *n <= 2), "one kill makes one more copy at most");
    for id in &twice {
        let id = crate::world::api::path_escape(id);
        let path = format!("/v1/inboxes/ada@agents.example/messages/{id}/deliveries");
        let row = first.api.get(&path).await.ok()["deliveries"][0].clone();
        assert_eq!(row["maybe_duplicate"], true, "{row}");
    }
    println!("{} of {HELD} arrived twice", twice.len());
}

/// What one person lets go leaves, though the rule stands for everything else; and by the way that he chose.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_let_go_by_hand_is_not_held_again_and_takes_the_way_that_was_chosen() {
    let (sink, smarthost) = (Sink::start().await, Sink::start().await);
    let zone = format!("{}smart.example A {}\n", sink.zone("remote.example"), smarthost.address.ip());
    let dns = Dns::start(&zone).await;
    let route = format!(
        "[[relay.route]]\ndomains = [\"remote.example\"]\nsmarthost = \"smtp://smart.example:{}\"\n",
        smarthost.address.port()
    );
    let server = TestServer::new().inbox("ada").dns(&dns).config(&route).start().await;
    server.api.post("/v1/queue/rules", json!({"domain": "remote.example"})).await.ok();
    let mut rows = Vec::new();
    for to in ["direct@remote.example", "smart@remote.example", "stays@remote.example"] {
        let body = json!({"to": to, "subject": "s", "text": "t"});
        let sent = server.api.post(SEND, body).await.ok();
        let row = row_of(&server, &sent).await;
        assert_eq!(row["state"], "held", "{row}");
        let path = format!("/v0/inboxes/ada@agents.example/messages/{}", row["message_id"].as_str().unwrap());
        assert_eq!(server.api.get(&path).await.ok()["to"][0], to, "the row names its message");
        rows.push((sent, row["delivery_id"].as_str().unwrap().to_owned()));
    }
    assert!(gatepost(&server, &["route", &rows[0].1, "direct"]).contains("direct"));
    let nowhere = format!("/v1/queue/{}/route", rows[0].1);
    server
        .api
        .ask("POST", &nowhere, &[], Some(json!({"via": "pigeon"})))
        .await
        .unwrap()
        .refused(400, "validation_error");
    for (_, id) in &rows[..2] {
        // It may be under way before the answer is written.
        assert!(!gatepost(&server, &["release", id]).contains("held"));
    }
    for (sent, _) in &rows[..2] {
        eventually("it is delivered", async || {
            (row_of(&server, sent).await["state"] == "delivered").then_some(())
        })
        .await;
    }
    let to = |sink: &Sink| sink.taken().into_iter().flat_map(|mail| mail.to).collect::<Vec<_>>();
    assert_eq!(
        (to(&sink), to(&smarthost)),
        (vec!["direct@remote.example".to_owned()], vec!["smart@remote.example".to_owned()])
    );
    assert_eq!(row_of(&server, &rows[2].0).await["state"], "held");
}
