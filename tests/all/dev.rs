//! `gatepost dev`: what it prints is run as printed.

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
};

use serde_json::json;

use crate::world::{PATIENCE, api::Api, eventually, needs, own_address, signal};

/// A running `gatepost dev` and what it printed.
struct Dev {
    child: Child,
    http: SocketAddr,
    printed: String,
}

impl Dev {
    fn start(data: &Path) -> Dev {
        let address = own_address();
        let (smtp, http) = (SocketAddr::new(address, 2525), SocketAddr::new(address, 8025));
        let mut child = Command::new(env!("CARGO_BIN_EXE_gatepost"))
            .args(["dev", "--smtp", &smtp.to_string(), "--http", &http.to_string(), "--data"])
            .arg(data)
            .env_remove("GATEPOST_ADMIN_KEY")
            .stdout(Stdio::piped())
            .spawn()
            .expect("gatepost dev");
        let stdout = child.stdout.take().expect("stdout");
        let (said, heard) = mpsc::sync_channel(1000);
        std::thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).for_each(|line| {
                let _ = said.send(line);
            });
        });
        let mut printed = String::new();
        // The last of the commands shows what was captured.
        while !printed.lines().last().is_some_and(|line| line.contains("/v1/dev/captured")) {
            let line =
                heard.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("it stopped talking:\n{printed}"));
            printed.push_str(&line);
            printed.push('\n');
        }
        Dev { child, http, printed }
    }

    /// The commands: all that follows the sentence that says to paste them.
    fn commands(&self) -> String {
        let after = self.printed.split_once("Paste this").expect("it says what to paste").1;
        after.split_once("\n\n").expect("an empty line before the commands").1.to_owned()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_that_dev_prints_work_as_they_are() {
    the_commands().await;
}

async fn the_commands() -> Option<()> {
    needs::program("curl").or_else(|| needs::missing("curl"))?;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("dev");
    let mut dev = Dev::start(&data);
    let commands = dev.commands();
    let mut shell = Command::new("sh")
        .arg("-e")
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("sh");
    shell.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    let output = tokio::task::spawn_blocking(|| shell.wait_with_output()).await.unwrap().unwrap();
    let said =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat();
    assert!(output.status.success(), "{commands}\n{said}");
    let last = said.lines().rfind(|line| !line.trim().is_empty()).expect("an answer");
    assert!(last.contains("Yes, from nine to five."), "the captured answer is not shown:\n{said}");
    assert!(last.contains("Re: Opening hours") && last.contains("sam@stranger.example"), "{last}");
    assert!(said.contains("\"state\":\"done\""), "the work item is not done:\n{said}");
    let captured = std::fs::read_dir(data.join("captured")).expect("captured").count();
    assert_eq!(captured, 1, "one .eml file for one answer");

    // The same keys at the next start; and Ctrl-C is an orderly end.
    signal(dev.child.id(), "INT");
    let ended = eventually("dev ends", async || dev.child.try_wait().expect("wait")).await;
    assert!(ended.success(), "{ended}");
    let keys = |dev: &Dev| {
        let lines = dev.printed.lines().filter(|l| l.contains("admin key") || l.contains("ada@")).take(2);
        lines.map(|line| line.split_whitespace().last().unwrap_or("").to_owned()).collect::<Vec<_>>()
    };
    let again = Dev::start(&data);
    assert_eq!(keys(&dev), keys(&again));
    Some(())
}

/// Mail to the simulators fares as their names say, and the agent hears of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_simulators_bounce_and_defer() {
    let folder = tempfile::tempdir().unwrap();
    let dev = Dev::start(&folder.path().join("dev"));
    let key = std::fs::read_to_string(folder.path().join("dev/admin.key")).expect("admin.key");
    let api = Api::new(format_args!("http://{}", dev.http), key.trim());
    let inbox = api.get("/v0/inboxes").await.ok()["inboxes"][0]["inbox_id"].as_str().unwrap().to_owned();
    let send = format!("/v0/inboxes/{inbox}/messages/send");
    let bounced = json!({"to": "bounce@simulator.test", "subject": "To nobody", "text": "t"});
    let bounced = api.post(&send, bounced).await.ok();
    let event = eventually("the bounce is an event", async || {
        let events = api.get("/v1/events?event_types=message.bounced").await.ok();
        events["events"].as_array().and_then(|all| all.first().cloned())
    })
    .await;
    assert_eq!(event["bounce"]["message_id"], bounced["message_id"], "{event}");
    assert_eq!(event["bounce"]["recipients"][0]["address"], "bounce@simulator.test", "{event}");
    // An address that does not exist is not written to again.
    let again = json!({"to": "bounce@simulator.test", "subject": "Again", "text": "t"});
    api.post(&send, again).await.refused(403, "message_rejected");
    let deferred = json!({"to": "defer@simulator.test", "subject": "Later", "text": "t"});
    api.post(&send, deferred).await.ok();
    eventually("the deferral is an event for those who name it", async || {
        let events = api.get("/v1/events?event_types=delivery.deferred").await.ok();
        (events["count"].as_u64() > Some(0)).then_some(())
    })
    .await;
}
