//! kill -9 at any moment: nothing that was acknowledged is lost, nothing is handed out twice.
//!
//! Every client keeps a ledger: the senders of what got a 250, the workers (processes of their own, so that SIGSTOP
//! means something) of what they held and did, the remote of what it took. Once the dust has settled the ledgers are
//! compared with the store. `GATEPOST_CRASH_MESSAGES` and `GATEPOST_CRASH_SECONDS` make it longer.

mod ledger;
mod worker;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::world::{
    PATIENCE, api::path_escape, dice, dns::Dns, eventually, mail, postgres::Database, server::TestServer,
    signal, sink::Sink, smtp::Smtp,
};
use worker::Worker;

const INBOXES: [&str; 4] = ["ada", "bea", "cyd", "dee"];
const CONNECTIONS: usize = 32;
const WORKERS: usize = 4;
/// Fewer kills than this prove little.
const KILLS: usize = 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn kill_9_at_random_moments_loses_nothing_that_got_a_250_on_sqlite() {
    kill_9_at_random_moments(Database::Sqlite).await;
}

/// With PostgreSQL itself stopped in `immediate` mode in between, under the running server and together with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn kill_9_at_random_moments_loses_nothing_that_got_a_250_on_postgres() {
    let Some(database) = Database::own_postgres() else { return };
    kill_9_at_random_moments(database).await;
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// What the senders know: message number → the inboxes for which it got a 250.
type Acknowledged = Arc<Mutex<BTreeMap<usize, Vec<String>>>>;

async fn kill_9_at_random_moments(database: Database) {
    let messages = setting("GATEPOST_CRASH_MESSAGES", 2000) as usize;
    let longest = Duration::from_secs(setting("GATEPOST_CRASH_SECONDS", 240));
    let sink = Sink::start().await;
    let dns = Dns::start(&sink.zone("remote.example")).await;
    let mut setup = TestServer::new().on(&database).dns(&dns);
    for name in INBOXES {
        setup = setup.inbox(name);
    }
    let server = Arc::new(setup.start().await);
    for name in INBOXES {
        let none = json!({"per_hour": null, "per_day": null});
        server.api.put(&format!("/v1/inboxes/{name}@agents.example/limits"), none).await.ok();
    }

    let acknowledged = Acknowledged::default();
    let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let senders = (0..CONNECTIONS)
        .map(|_| tokio::spawn(sender(server.smtp, acknowledged.clone(), next.clone(), stop.clone())))
        .collect::<Vec<_>>();
    let workers =
        (0..WORKERS).map(|n| Worker::start(&server, &format!("worker-{n}"), "work")).collect::<Vec<_>>();

    let begun = Instant::now();
    let mut kills = 0;
    while kills < KILLS || acknowledged.lock().unwrap().len() < messages {
        let got = acknowledged.lock().unwrap().len();
        assert!(
            begun.elapsed() < longest,
            "only {got} of {messages} messages acknowledged after {kills} kills"
        );
        // A random moment is a random number of messages later, or a few seconds where the database is slow to rise.
        let moment = got + dice((2 * messages / KILLS) as u64) as usize;
        let patience = Instant::now() + Duration::from_secs(10);
        while acknowledged.lock().unwrap().len() < moment && Instant::now() < patience {
            sleep(Duration::from_millis(1 + dice(20))).await;
        }
        match (&database, kills % 3) {
            (Database::Postgres(cluster, _), 1) => {
                // The database goes, the server stays: 451 and 503 until it is back.
                cluster.stop_immediate();
                sleep(Duration::from_millis(dice(500))).await;
                cluster.start();
            }
            (Database::Postgres(cluster, _), 2) => {
                cluster.stop_immediate();
                server.kill9();
                cluster.start();
                server.restart().await;
            }
            _ => {
                server.kill9();
                server.restart().await;
            }
        }
        assert!(server.alive(), "the server died of something else than kill -9");
        kills += 1;
        if kills == 2 || kills == 4 {
            // A worker sleeps past its lease and goes on as if nothing had happened.
            let pid = workers[kills % WORKERS].pid();
            signal(pid, "STOP");
            tokio::spawn(async move {
                sleep(Duration::from_secs(7)).await;
                signal(pid, "CONT");
            });
        }
    }
    stop.store(true, Ordering::Relaxed);
    for sender in senders {
        timeout(Duration::from_secs(120), sender).await.expect("a sender hangs").unwrap();
    }

    settle(&server, &workers).await;
    let mut ledgers = Vec::new();
    for worker in workers {
        ledgers.push(worker.stop().await);
    }

    let acknowledged = std::mem::take(&mut *acknowledged.lock().unwrap());
    let replied = ledger::compare(&ledgers);
    compare_with_the_store(&server, &acknowledged).await;
    let took = || sink.taken().iter().filter_map(|mail| mail.header("Message-ID")).collect::<HashSet<_>>();
    eventually("every reply that got a 2xx is at the remote", async || {
        let there = took();
        replied.iter().all(|id| there.contains(id)).then_some(())
    })
    .await;
    eprintln!(
        "{} messages acknowledged, {} replies, {kills} kills in {:?}",
        acknowledged.len(),
        replied.len(),
        begun.elapsed()
    );
}

/// The dust settles: the workers finish everything. As long as they get on, it may take its time.
async fn settle(server: &TestServer, workers: &[Worker]) {
    let (mut written, mut since) = (0, Instant::now());
    loop {
        let mut open = 0;
        for name in INBOXES {
            for state in ["available", "claimed", "waiting"] {
                let path = format!("/v1/work-items?inbox_id={name}@agents.example&state={state}&limit=1");
                open += server.api.get(&path).await.ok()["count"].as_u64().unwrap();
            }
        }
        if open == 0 {
            return;
        }
        let now = workers.iter().map(|worker| worker.ledger().len()).sum();
        if now > written {
            (written, since) = (now, Instant::now());
        }
        assert!(since.elapsed() < PATIENCE, "nobody works any more, and there is work");
        sleep(Duration::from_millis(200)).await;
    }
}

/// One connection after the other; every message is sent again until it gets its 250, as every mail server does.
async fn sender(
    address: std::net::SocketAddr,
    acknowledged: Acknowledged,
    next: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
) {
    let mut session: Option<Smtp> = None;
    while !stop.load(Ordering::Relaxed) {
        let n = next.fetch_add(1, Ordering::Relaxed);
        let to = recipients(n);
        let to = to.iter().map(String::as_str).collect::<Vec<_>>();
        let from = format!("s{n}@remote.example");
        let body = format!("message {n}\n").repeat(20 + n % 50);
        let letter = mail::letter(&from, to[0], &format!("m{n}"), &format!("m{n}@remote.example"), "", &body);
        // Without a 250 there is no promise, and the message is given up only at the very end.
        loop {
            if session.is_none()
                && let Ok(mut fresh) = Smtp::connect(address).await
                && fresh.command("EHLO client.example").await.is_ok_and(|r| r.code == 250)
            {
                session = Some(fresh);
            }
            let Some(open) = session.as_mut() else {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                sleep(Duration::from_millis(50)).await;
                continue;
            };
            open.transcript.clear();
            match open.transaction(&from, &to, &letter).await {
                Ok(reply) if reply.code == 250 => {
                    acknowledged.lock().unwrap().insert(n, to.iter().map(|to| to.to_string()).collect());
                    break;
                }
                Ok(reply) => {
                    assert!(reply.code / 100 == 4, "m{n}: a final refusal {reply:?}\n{}", open.transcript);
                    sleep(Duration::from_millis(50)).await;
                    session = None;
                }
                Err(_) => session = None,
            }
            if stop.load(Ordering::Relaxed) {
                return;
            }
        }
    }
}

/// Every seventh message goes to two inboxes in one transaction: both or none.
fn recipients(n: usize) -> Vec<String> {
    let inbox = |n: usize| format!("{}@agents.example", INBOXES[n % INBOXES.len()]);
    if n % 7 == 3 { vec![inbox(n), inbox(n + 1)] } else { vec![inbox(n)] }
}

/// Every message that got a 250 is there, in one thread, with one work item.
async fn compare_with_the_store(server: &TestServer, acknowledged: &BTreeMap<usize, Vec<String>>) {
    for name in INBOXES {
        let inbox = format!("{name}@agents.example");
        let path = format!("/v0/inboxes/{}/messages", path_escape(&inbox));
        let stored = server.api.all(&format!("{path}?labels=received"), "messages").await;
        let items =
            server.api.all(&format!("/v1/work-items?inbox_id={}", path_escape(&inbox)), "work_items").await;
        let mut threads: HashMap<&str, HashSet<&str>> = HashMap::new();
        for message in &stored {
            let subject = message["subject"].as_str().expect("subject");
            threads.entry(subject).or_default().insert(message["thread_id"].as_str().expect("thread_id"));
        }
        let mut work: HashMap<&str, Vec<&Value>> = HashMap::new();
        for item in &items {
            work.entry(item["thread_id"].as_str().expect("thread_id")).or_default().push(item);
        }
        let mine = acknowledged.iter().filter(|(_, to)| to.contains(&inbox)).map(|(n, _)| format!("m{n}"));
        for subject in mine {
            let threads =
                threads.get(subject.as_str()).unwrap_or_else(|| panic!("{subject} got a 250 and is lost"));
            assert_eq!(threads.len(), 1, "{subject} is in {threads:?}");
            let thread = threads.iter().next().expect("thread");
            let work = work.get(thread).unwrap_or_else(|| panic!("{subject}: nobody is told of it"));
            assert_eq!(work.len(), 1, "{subject} has more than one work item: {work:?}");
        }
        // Byte for byte, where one looks.
        for message in stored.iter().step_by(stored.len() / 10 + 1) {
            let raw = server.raw(&inbox, message["message_id"].as_str().expect("message_id")).await;
            let n = message["subject"].as_str().expect("subject").trim_start_matches('m');
            assert!(
                String::from_utf8_lossy(&raw).ends_with(&format!("message {n}\r\n\r\n")),
                "m{n} is damaged"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_was_stopped_past_its_lease_cannot_answer_any_more_on_sqlite() {
    stopped_past_its_lease(Database::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_was_stopped_past_its_lease_cannot_answer_any_more_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    stopped_past_its_lease(database).await;
}

async fn stopped_past_its_lease(database: Database) {
    let sink = Sink::start().await;
    let dns = Dns::start(&sink.zone("remote.example")).await;
    let server = TestServer::new().on(&database).dns(&dns).inbox("ada").start().await;
    let question =
        mail::letter("bob@remote.example", "ada@agents.example", "Q", "q@remote.example", "", "Which?");
    server.receive("bob@remote.example", "ada@agents.example", &question).await;

    let sleeper = Worker::start(&server, "sleeper", "hold");
    let held = eventually("the sleeper holds the item", async || sleeper.ledger().into_iter().next()).await;
    signal(sleeper.pid(), "STOP");
    // Nobody else gets it while the lease runs; then somebody does, with a higher fence.
    let early = server.api.post("/v1/work-items/claim", json!({})).await.ok();
    assert_eq!(early["count"], 0, "held by two: {early}");
    let claim = json!({"wait_seconds": 50, "lease_seconds": 300});
    let second = server.api.post("/v1/work-items/claim", claim).await.ok();
    let item = &second["work_items"][0];
    assert_eq!(item["work_item_id"], held["item"]);
    let fence = item["lease"]["fence"].as_i64().unwrap();
    assert!(fence > held["fence"].as_i64().unwrap(), "{item} after {held}");
    let reply = "/v0/inboxes/ada@agents.example/messages/%3Cq@remote.example%3E/reply";
    let right = json!({"text": "the right answer", "work_item_id": item["work_item_id"], "fence": fence});
    server.api.post(reply, right).await.ok();
    let done = format!("/v1/work-items/{}/complete", item["work_item_id"].as_str().unwrap());
    server.api.post(&done, json!({"fence": fence})).await.ok();

    signal(sleeper.pid(), "CONT");
    let ledger = sleeper.go_on().await;
    let tried = ledger.iter().filter(|line| line["did"].is_string()).collect::<Vec<_>>();
    assert_eq!(tried.len(), 3, "reply, heartbeat, complete: {ledger:?}");
    for attempt in tried {
        assert_eq!(attempt["status"], 412, "{attempt}");
        assert_eq!(attempt["code"], "lease_lost", "{attempt}");
    }

    // What is sent after it has arrived, so what the sleeper said would have arrived too.
    let last = json!({"to": "bob@remote.example", "subject": "last", "text": "last"});
    server.api.post("/v0/inboxes/ada@agents.example/messages/send", last).await.ok();
    eventually("the last message is at the remote", async || {
        sink.taken().iter().any(|mail| mail.header("Subject").as_deref() == Some("last")).then_some(())
    })
    .await;
    let taken = sink.taken();
    assert!(taken.iter().any(|mail| mail.text().contains("the right answer")));
    assert!(!taken.iter().any(|mail| mail.text().contains("too late")), "the remote saw the late reply");
}
