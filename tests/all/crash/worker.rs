//! A worker as a process of its own: this test binary, run again for one "test" that is a worker's life.

use std::{
    io::{Read, Write},
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::world::{
    api::{Answer, Api, path_escape},
    dice, eventually,
    server::{ADMIN_KEY, TestServer},
};

/// A running worker, seen from the test. It ends when its stdin is closed, so it never outlives the test.
pub struct Worker {
    child: Child,
    leash: Option<ChildStdin>,
    ledger: PathBuf,
}

impl Worker {
    /// `life` is `work` (claim, reply now and then, complete, until told to stop) or `hold` (see `hold`).
    pub fn start(server: &TestServer, name: &str, life: &str) -> Worker {
        let ledger = server.dir.join(format!("{name}.ledger"));
        std::fs::write(&ledger, "").expect("ledger");
        let mut child = Command::new(std::env::current_exe().expect("exe"))
            .args(["crash::worker::a_worker", "--exact", "--nocapture"])
            .env("GATEPOST_TEST_WORKER", name)
            .env("GATEPOST_TEST_LIFE", life)
            .env("GATEPOST_TEST_SERVER", server.api.base())
            .env("GATEPOST_TEST_LEDGER", &ledger)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("worker");
        let leash = child.stdin.take();
        Worker { child, leash, ledger }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn ledger(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.ledger).expect("ledger");
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Tells a holder to go on, and waits for its end.
    pub async fn go_on(mut self) -> Vec<Value> {
        self.leash.as_mut().expect("leash").write_all(b"g").expect("worker");
        self.end().await
    }

    /// Lets it finish what it holds, and gives its ledger.
    pub async fn stop(self) -> Vec<Value> {
        self.end().await
    }

    async fn end(mut self) -> Vec<Value> {
        drop(self.leash.take());
        let status = eventually("the worker ends", async || self.child.try_wait().expect("wait")).await;
        assert!(status.success(), "a worker failed: {status}");
        self.ledger()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test: the worker process. It does nothing in an ordinary run of the tests.
#[tokio::test]
async fn a_worker() {
    let Ok(name) = std::env::var("GATEPOST_TEST_WORKER") else { return };
    let setting = |name: &str| std::env::var(name).expect("set by Worker::start");
    let mut ledger =
        std::fs::File::options().append(true).open(setting("GATEPOST_TEST_LEDGER")).expect("ledger");
    let api = Api::new(setting("GATEPOST_TEST_SERVER"), ADMIN_KEY);
    let note = move |line: Value| writeln!(ledger, "{line}").expect("ledger");
    match setting("GATEPOST_TEST_LIFE").as_str() {
        "hold" => hold(&api, &name, note).await,
        _ => work(&api, &name, note).await,
    }
}

/// Claims one item for five seconds, waits for the word to go on, and acts as if no time had passed.
async fn hold(api: &Api, name: &str, mut note: impl FnMut(Value)) {
    let claim = json!({"worker": name, "lease_seconds": 5, "wait_seconds": 50});
    let claimed = api.post("/v1/work-items/claim", claim).await.ok();
    let item = &claimed["work_items"][0];
    let (id, fence) = (item["work_item_id"].clone(), item["lease"]["fence"].clone());
    note(json!({"claimed": true, "item": id, "fence": fence}));
    let _ = std::io::stdin().read(&mut [0]);
    let message = item["messages"][0]["message_id"].as_str().expect("message_id");
    let inbox = item["inbox_id"].as_str().expect("inbox_id");
    let reply = format!("/v0/inboxes/{}/messages/{}/reply", path_escape(inbox), path_escape(message));
    let late = json!({"text": "too late", "work_item_id": id, "fence": fence});
    let item = format!("/v1/work-items/{}", id.as_str().expect("id"));
    for (path, body) in [
        (reply, late),
        (format!("{item}/heartbeat"), json!({"fence": fence, "lease_seconds": 60})),
        (format!("{item}/complete"), json!({"fence": fence})),
    ] {
        let answer = api.post(&path, body).await;
        note(json!({"did": path, "status": answer.status, "code": answer.body["code"]}));
    }
}

/// Claims, looks, sometimes replies, completes; through every crash of the server, until stdin is closed.
async fn work(api: &Api, name: &str, mut note: impl FnMut(Value)) {
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let told = stop.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        told.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        let claim = json!({"worker": name, "lease_seconds": 5, "wait_seconds": 1, "limit": 5});
        let Some(claimed) = success(api.ask("POST", "/v1/work-items/claim", &[], Some(claim)).await) else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let at = now();
        let items = claimed["work_items"].as_array().expect("work_items").clone();
        for item in &items {
            note(json!({"claimed": at, "item": item["work_item_id"], "fence": item["lease"]["fence"]}));
        }
        for item in &items {
            let (id, fence) = (item["work_item_id"].as_str().expect("id"), &item["lease"]["fence"]);
            if dice(4) == 0 {
                let message = item["messages"][0]["message_id"].as_str().expect("message_id");
                let inbox = item["inbox_id"].as_str().expect("inbox_id");
                let path =
                    format!("/v0/inboxes/{}/messages/{}/reply", path_escape(inbox), path_escape(message));
                let body = json!({"text": format!("{name} answers"), "work_item_id": id, "fence": fence});
                act(api, &path, body, id, fence, &mut note).await;
            }
            act(api, &format!("/v1/work-items/{id}/complete"), json!({"fence": fence}), id, fence, &mut note)
                .await;
        }
    }
}

async fn act(api: &Api, path: &str, body: Value, id: &str, fence: &Value, note: &mut impl FnMut(Value)) {
    let begun = now();
    if let Ok(answer) = api.ask("POST", path, &[], Some(body)).await {
        let fits = matches!(answer.status, 200..=299 | 412 | 500..=599);
        assert!(fits, "{path}: {} {}", answer.status, answer.body);
        note(json!({
            "did": path, "item": id, "fence": fence, "begun": begun, "ended": now(),
            "status": answer.status, "message_id": answer.body["message_id"],
        }));
    }
}

fn success(answer: Result<Answer, reqwest::Error>) -> Option<Value> {
    let answer = answer.ok()?;
    assert!(
        answer.status < 300 || answer.status >= 500,
        "{}: {} {}",
        answer.asked,
        answer.status,
        answer.body
    );
    (answer.status < 300).then_some(answer.body)
}

/// Milliseconds by the machine's clock, the same for all processes.
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("clock").as_millis() as u64
}
