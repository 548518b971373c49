//! AgentMail's published Python SDK (PyPI `agentmail` 2.0.18), unchanged, against the running server.

use std::process::Command;

use crate::world::{
    dns::Dns,
    eventually, needs,
    postgres::Database,
    server::{ADMIN_KEY, Setup, TestServer},
    sink::Sink,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_published_python_sdk_works_unchanged_on_sqlite() {
    the_sdk(TestServer::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_published_python_sdk_works_unchanged_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    the_sdk(TestServer::new().on(&database)).await;
}

async fn the_sdk(setup: Setup) -> Option<()> {
    let python = needs::python()?;
    let sink = Sink::start().await;
    let dns = Dns::start(&sink.zone("remote.example")).await;
    let server = setup.dns(&dns).start().await;
    let mut agent = Command::new(python);
    agent.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/agent.py")).arg(server.api.base());
    agent.args([server.smtp.ip().to_string(), server.smtp.port().to_string(), ADMIN_KEY.to_owned()]);
    let output = tokio::task::spawn_blocking(move || agent.output()).await.unwrap().expect("python");
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(said.contains("all good"), "{said}");

    // What the SDK was told was sent has arrived, and what was sent twice with one key has arrived once.
    let subjects = || sink.taken().iter().filter_map(|mail| mail.header("Subject")).collect::<Vec<_>>();
    eventually("all five are at the remote", async || {
        let there = subjects();
        ["Once", "Friend", "Now", "Re: First", "Re: Slashes"]
            .iter()
            .all(|s| there.iter().any(|t| t == s))
            .then_some(())
    })
    .await;
    let there = subjects();
    assert_eq!(there.iter().filter(|subject| *subject == "Once").count(), 1, "{there:?}");
    Some(())
}
