//! The road, end to end, between real programs: a Postfix finds Gatepost by MX, writes over STARTTLS; an agent claims
//! the work, answers by the API; Gatepost finds that Postfix by MX, and its answer arrives signed, in the right thread.

use serde_json::json;

use crate::world::{
    api::path_escape,
    dns::Dns,
    mail, needs,
    postfix::{self, Postfix},
    postgres::Database,
    root, run,
    server::{DOMAIN, Setup, TestServer},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postfix_writes_an_agent_answers_and_postfix_has_it_signed_in_the_thread_on_sqlite() {
    there_and_back(TestServer::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postfix_writes_an_agent_answers_and_postfix_has_it_signed_in_the_thread_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    there_and_back(TestServer::new().on(&database)).await;
}

async fn there_and_back(setup: Setup) -> Option<()> {
    if !root() {
        return needs::missing("root, which Postfix needs");
    }
    let python = needs::python()?;
    let dns = Dns::start_at_53("").await;
    let server = setup.inbox("ada").dns(&dns).relay_port(postfix::PORT).start().await;
    let remote = Postfix::start("remote.example", &["bob"], &dns, server.smtp.port()).await?;
    dns.add(&format!("{DOMAIN} MX 10 mx.{DOMAIN}\nmx.{DOMAIN} A {}\n", server.smtp.ip()));
    dns.add(&Postfix::zone("remote.example", remote.address.ip()));
    dns.add("_dmarc.remote.example TXT v=DMARC1; p=reject\n");

    let question = mail::letter(
        "Bob <bob@remote.example>",
        "ada@agents.example",
        "Where is my order?",
        "question-1@remote.example",
        "References: <older@remote.example>\r\n",
        "It was due yesterday.\n-- \nBob",
    );
    remote.submit("bob@remote.example", "ada@agents.example", &question).await;

    let agent = server.inbox_key("ada@agents.example").await;
    let claim = json!({"wait_seconds": 50, "lease_seconds": 300, "worker": "road"});
    let claimed = agent.post("/v1/work-items/claim", claim).await.ok();
    assert_eq!(claimed["count"], 1, "{claimed}\n{}", remote.maillog());
    let item = &claimed["work_items"][0];
    let received = &item["messages"][0];
    assert_eq!(received["subject"], "Where is my order?");
    assert_eq!(received["message_id"], "<question-1@remote.example>");
    let id = path_escape(received["message_id"].as_str().unwrap());
    let messages = "/v0/inboxes/ada@agents.example/messages";
    let full = agent.get(&format!("{messages}/{id}")).await.ok();
    assert_eq!(full["verdict"]["spf"]["result"], "pass", "{}", full["verdict"]);
    assert_eq!(full["verdict"]["dmarc"]["result"], "pass", "{}", full["verdict"]);
    assert_eq!(full["verdict"]["verified_sender"], "bob@remote.example");
    let raw = server.raw("ada@agents.example", "<question-1@remote.example>").await;
    let trace = mail::header(&raw, "Received").unwrap();
    assert!(trace.contains("ESMTPS"), "RFC 3848: it came over TLS, and the trace says so: {trace}");

    let answer = json!({
        "text": "It is on its way.\nAda — the agent", "html": "<p>It is on its way.</p>",
        "work_item_id": item["work_item_id"], "fence": item["lease"]["fence"],
        "context_version": item["context_version"],
        "attachments": [{"filename": "label.txt", "content_type": "text/plain", "content": "cGFyY2VsIDE3Cg=="}],
    });
    let sent = agent.post(&format!("{messages}/{id}/reply"), answer).await.ok();
    assert_eq!(sent["thread_id"], item["thread_id"]);
    let done = json!({"fence": item["lease"]["fence"]});
    let path = format!("/v1/work-items/{}/complete", item["work_item_id"].as_str().unwrap());
    assert_eq!(agent.post(&path, done).await.ok()["state"], "done");

    let arrived = remote.mailbox("bob", 1).await.remove(0);
    assert_eq!(mail::header(&arrived, "In-Reply-To").as_deref(), Some("<question-1@remote.example>"));
    assert_eq!(
        mail::header(&arrived, "References").as_deref(),
        Some("<older@remote.example> <question-1@remote.example>")
    );
    assert_eq!(mail::header(&arrived, "Message-ID").as_deref(), sent["message_id"].as_str());
    assert_eq!(mail::header(&arrived, "Subject").as_deref(), Some("Re: Where is my order?"));
    assert!(mail::header(&arrived, "From").unwrap().contains("ada@agents.example"));
    let received = mail::headers(&arrived).into_iter().find(|(n, _)| n == "Received").unwrap().1;
    assert!(received.contains("TLS"), "the answer went over TLS: {received}");

    // The public halves, as an operator would set them.
    let mut records = std::process::Command::new(env!("CARGO_BIN_EXE_gatepost"));
    let records =
        records.args(["dns", DOMAIN, "--config"]).arg(server.config_file()).output().expect("gatepost dns");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mail.eml"), &arrived).unwrap();
    std::fs::write(folder.path().join("records.txt"), &records.stdout).unwrap();
    let mut verifier = std::process::Command::new(python);
    verifier.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/verify_dkim.py")).arg(folder.path());
    let verified = run(&mut verifier);
    assert!(verified.contains("rsa-sha256 agents.example pass"), "{verified}");
    assert!(verified.contains("ed25519-sha256 agents.example pass"), "{verified}");

    // And the thread goes on: Bob answers the answer, and it is the same thread.
    let sent_id = sent["message_id"].as_str().unwrap();
    let links = format!("In-Reply-To: {sent_id}\r\nReferences: <question-1@remote.example> {sent_id}\r\n");
    let thanks = mail::letter(
        "Bob <bob@remote.example>",
        "ada@agents.example",
        "Re: Where is my order?",
        "thanks-1@remote.example",
        &links,
        "Thanks!",
    );
    remote.submit("bob@remote.example", "ada@agents.example", &thanks).await;
    let next = agent.post("/v1/work-items/claim", json!({"wait_seconds": 50})).await.ok();
    assert_eq!(next["work_items"][0]["thread_id"], item["thread_id"], "{next}");
    assert_eq!(
        next["work_items"][0]["parent_id"], item["work_item_id"],
        "a done item has a successor: {next}"
    );
    Some(())
}
