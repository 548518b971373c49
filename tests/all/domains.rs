//! Domains that are added while the server runs: claimed with the published SDK, verified by their records, used by
//! their pod alone, signed with their own keys, and the keys changed without a message that does not verify.

use std::process::Command;

use serde_json::{Value, json};

use crate::world::{
    api::Api,
    dns::Dns,
    eventually, mail, needs,
    postgres::Database,
    server::{ADMIN_KEY, Setup, TestServer},
    sink::{Sink, Taken},
};

const NAME: &str = "tenant.example";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_claims_a_domain_and_only_its_records_make_it_usable_on_sqlite() {
    a_claim(TestServer::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_claims_a_domain_and_only_its_records_make_it_usable_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    a_claim(TestServer::new().on(&database)).await;
}

async fn a_claim(setup: Setup) -> Option<()> {
    needs::python()?;
    let sink = Sink::start().await;
    let dns = Dns::start(&format!("{}{NAME} MX 5 elsewhere.example\n", sink.zone("remote.example"))).await;
    let server = setup.inbox("bob").dns(&dns).start().await;
    // What everybody's server has: a name with an address.
    dns.add(&format!("mx.agents.example A {}\n", server.smtp.ip()));

    let said = sdk("add", &server).await;
    let zone = said.split("zone-file:\n").nth(1).expect(&said);
    load(&dns, zone);
    let said = sdk("verify", &server).await;
    assert!(said.contains("all good"), "{said}");
    let verified = server.api.all_events().await.into_iter().find(|e| e["event_type"] == "domain.verified");
    let verified = verified.expect("an event says that it is verified");
    assert_eq!(verified["domain"]["status"], "VERIFIED", "{verified}");
    assert_eq!(verified["domain"]["domain"], NAME, "{verified}");

    // Mail comes in, and goes out with the domain's own signatures and return path.
    let letter =
        mail::letter("ann@remote.example", "ada@tenant.example", "Hello", "<in@remote.example>", "", "x");
    server.receive("ann@remote.example", "ada@tenant.example", &letter).await;
    server.message("ada@tenant.example", "Hello").await;
    let taken = sent(&server, &sink, "Signed").await;
    assert!(taken.from.ends_with("@tenant.example"), "{}", taken.from);
    assert_eq!(checked(&taken, zone), [("rsa-sha256".into(), true), ("ed25519-sha256".into(), true)]);

    // The operator is reached on it, though nobody made him an inbox there.
    let letter = mail::letter(
        "ann@remote.example",
        "postmaster@tenant.example",
        "Help",
        "<pm@remote.example>",
        "",
        "x",
    );
    server.receive("ann@remote.example", "postmaster@tenant.example", &letter).await;
    server.message("postmaster@agents.example", "Help").await;
    Some(())
}

/// A key leaks, or is old: the next ones are published first, sign once they are seen, and the old records stand
/// for a week. A message that was signed before the change verifies after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_change_with_overlap_and_no_message_fails_on_sqlite() {
    keys_change(TestServer::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_change_with_overlap_and_no_message_fails_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    keys_change(TestServer::new().on(&database)).await;
}

async fn keys_change(setup: Setup) -> Option<()> {
    needs::python()?;
    let sink = Sink::start().await;
    let dns = Dns::start(&sink.zone("remote.example")).await;
    let server = setup.dns(&dns).start().await;
    dns.add(&format!("mx.agents.example A {}\nmx.agents.example TXT v=spf1 a -all\n", server.smtp.ip()));
    server.api.post("/v0/domains", json!({"domain": NAME})).await.ok();
    let zone_file = format!("/v0/domains/{NAME}/zone-file");
    let before_zone = server.api.get(&zone_file).await.ok().as_str().unwrap().to_owned();
    load(&dns, &before_zone);
    let verify = format!("/v0/domains/{NAME}/verify");
    server.api.post(&verify, json!({})).await.ok();
    server.api.post("/v0/inboxes", json!({"username": "ada", "domain": NAME})).await.ok();
    let before = sent(&server, &sink, "Before").await;

    // Asked twice, as two people would: one change begins. Nothing signs with it yet.
    let rotate = format!("/v1/domains/{NAME}/dkim/rotate");
    let first = server.api.post(&rotate, json!({})).await.ok();
    assert_eq!(states(&first), ["active", "active", "next", "next"], "{first}");
    assert_eq!(server.api.post(&rotate, json!({})).await.ok(), first);
    server.api.post(&verify, json!({})).await.ok();
    let dkim = format!("/v1/domains/{NAME}/dkim");
    assert_eq!(states(&server.api.get(&dkim).await.ok()), ["active", "active", "next", "next"]);
    let between = sent(&server, &sink, "Between").await;
    assert_eq!(checked(&between, &before_zone).iter().filter(|(_, good)| *good).count(), 2);

    // A crash in the middle forgets nothing.
    server.kill9();
    server.restart().await;
    let both_zone = server.api.get(&zone_file).await.ok().as_str().unwrap().to_owned();
    let new_lines: Vec<&str> = both_zone.lines().filter(|line| !before_zone.contains(line)).collect();
    load(&dns, &new_lines.join("\n"));
    server.api.post(&verify, json!({})).await.ok();
    let after_keys = server.api.get(&dkim).await.ok();
    assert_eq!(states(&after_keys), ["active", "active", "retiring", "retiring"], "{after_keys}");
    assert!(after_keys.to_string().contains("removable_at"), "{after_keys}");
    let after = sent(&server, &sink, "After").await;
    assert_ne!(selectors(&before), selectors(&after));
    for taken in [&before, &between, &after] {
        assert_eq!(
            checked(taken, &both_zone),
            [("rsa-sha256".into(), true), ("ed25519-sha256".into(), true)]
        );
    }
    let shown = server.api.get(&format!("/v1/domains/{NAME}/dns")).await.ok();
    // (Nobody can set the reverse DNS of loopback, or serves a policy there.)
    let bad = |r: &&Value| match r["purpose"].as_str() {
        Some("reverse_dns") => r["state"] == "missing",
        Some("mta_sts_host") => r["state"] != "unknown",
        _ => r["state"] != "ok",
    };
    let wrong: Vec<&Value> = shown["records"].as_array().unwrap().iter().filter(bad).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    Some(())
}

/// Two nodes share the database: what one of them verified is ours on the other, and mail leaves signed from both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_domain_that_one_node_verified_is_ours_on_the_other() {
    let Some(database) = Database::postgres() else { return };
    let dns = Dns::start("").await;
    let first = TestServer::new().on(&database).dns(&dns).start().await;
    let second = TestServer::new().on(&database).dns(&dns).beside(&first).start().await;
    dns.add(&format!("mx.agents.example A {}\n", first.smtp.ip()));
    first.api.post("/v0/domains", json!({"domain": NAME})).await.ok();
    let zone = first.api.get(&format!("/v0/domains/{NAME}/zone-file")).await.ok();
    load(&dns, zone.as_str().unwrap());
    first.api.post(&format!("/v0/domains/{NAME}/verify"), json!({})).await.ok();
    let made = eventually("the other node has heard", async || {
        let made = second.api.post("/v0/inboxes", json!({"username": "ada", "domain": NAME})).await;
        (made.status == 200).then_some(made.body)
    })
    .await;
    assert_eq!(made["inbox_id"], "ada@tenant.example");
    let letter =
        mail::letter("ann@remote.example", "ada@tenant.example", "Hello", "<two@remote.example>", "", "x");
    second.receive("ann@remote.example", "ada@tenant.example", &letter).await;
    first.message("ada@tenant.example", "Hello").await;
}

/// RFC 8461 §3.3: the policy is there for the hosts of our own domains, and for no others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_mta_sts_policy_is_served_for_our_domains_alone() {
    let server = TestServer::new().start().await;
    let nobody = server.api.with_key("");
    let policy = async |host: &str| {
        let path = "/.well-known/mta-sts.txt";
        nobody.ask("GET", path, &[("Host", host)], None).await.unwrap()
    };
    let text = policy("mta-sts.agents.example").await.ok();
    assert_eq!(text, "version: STSv1\r\nmode: testing\r\nmx: mx.agents.example\r\nmax_age: 86400\r\n");
    policy("mta-sts.elsewhere.example").await.refused(404, "not_found");
    policy("agents.example").await.refused(404, "not_found");
}

/// A key of one pod asks for everything that another pod has, by every way there is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pods_key_sees_its_pod_and_nothing_else() {
    let server = TestServer::new().inbox("bob").start().await;
    let letter =
        mail::letter("ann@remote.example", "bob@agents.example", "Secret", "<s@remote.example>", "", "x");
    server.receive("ann@remote.example", "bob@agents.example", &letter).await;
    let thread = server.message("bob@agents.example", "Secret").await["thread_id"].clone();
    let pod = server.api.post("/v0/pods", json!({"name": "Other"})).await.ok()["pod_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let key = server.api.post(&format!("/v0/pods/{pod}/api-keys"), json!({"name": "k"})).await.ok();
    let other: Api = server.api.with_key(key["api_key"].as_str().unwrap());
    for (path, list) in [
        ("/v0/inboxes", "inboxes"),
        ("/v0/threads", "threads"),
        ("/v1/work-items", "work_items"),
        ("/v1/events", "events"),
        ("/v1/held", "messages"),
        ("/v1/suppressions", "suppressions"),
        ("/v0/domains", "domains"),
    ] {
        let answer = other.get(path).await.ok();
        assert_eq!(answer[list], json!([]), "{path}: {answer}");
    }
    let keys = other.get("/v0/api-keys").await.ok();
    assert_eq!(keys["count"], 1, "its own: {keys}");
    let claimed = other.post("/v1/work-items/claim", json!({})).await.ok();
    assert_eq!(claimed["count"], 0, "{claimed}");
    for path in [
        format!("/v0/threads/{}", thread.as_str().unwrap()),
        "/v0/inboxes/bob@agents.example".to_owned(),
        "/v0/inboxes/postmaster@agents.example".to_owned(),
        "/v0/pods/pod_default".to_owned(),
        "/v0/pods/pod_default/inboxes".to_owned(),
        "/v1/domains/agents.example/dns".to_owned(),
    ] {
        other.get(&path).await.refused(404, "not_found");
    }
    for path in ["/v0/pods", "/v0/api-keys"] {
        let answer = other.post(path, json!({"name": "mine"})).await;
        assert_eq!(answer.status, 403, "{path}: {}", answer.body);
    }
    // Its own inbox, on a domain of the operator's, beside all that.
    let made = other.post("/v0/inboxes", json!({"username": "carol"})).await.ok();
    assert_eq!((&made["pod_id"], &made["inbox_id"]), (&json!(pod), &json!("carol@agents.example")));
    // Its suppressions are its own, and a key of the organization sees them by naming the pod.
    other.post("/v1/suppressions", json!({"address": "dan@remote.example"})).await.ok();
    assert_eq!(server.api.get("/v1/suppressions").await.ok()["count"], 0);
    let of_pod = server.api.get(&format!("/v1/suppressions?pod_id={pod}")).await.ok();
    assert_eq!(of_pod["suppressions"][0]["address"], "dan@remote.example");
    other.get("/v1/suppressions?pod_id=pod_default").await.refused(404, "not_found");
    // What it plans is its own to hold and let go; what the operator holds is not, nor is the way that mail takes.
    let later = gatepost::clock::rfc3339(gatepost::clock::Clock::system().now() + 3_600_000);
    let planned = json!({"to": "ann@remote.example", "subject": "Later", "text": "t", "send_at": later});
    other.post("/v0/inboxes/carol@agents.example/messages/send", planned).await.ok();
    let row = other.get("/v1/queue").await.ok()["deliveries"][0].clone();
    let on = |action: &str| format!("/v1/queue/{}/{action}", row["delivery_id"].as_str().unwrap());
    assert_eq!(other.post(&on("hold"), json!({})).await.ok()["held_by"], "pod");
    assert_eq!(other.post(&on("release"), json!({})).await.ok()["state"], "scheduled");
    assert_eq!(server.api.post(&on("hold"), json!({})).await.ok()["held_by"], "operator");
    other.post(&on("release"), json!({})).await.refused(403, "forbidden");
    other.post(&on("route"), json!({"via": "direct"})).await.refused(403, "forbidden");
    assert_eq!(server.api.post(&on("release"), json!({})).await.ok()["state"], "scheduled");
}

/// Whoever was given DKIM records for sending must not have the domain's mail, which every pod's would be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_domain_that_only_sends_receives_once_its_mx_leads_here() {
    let dns = Dns::start(&format!("{NAME} MX 5 elsewhere.example\n")).await;
    let server = TestServer::new().dns(&dns).start().await;
    dns.add(&format!("mx.agents.example A {}\n", server.smtp.ip()));
    server.api.post("/v0/domains", json!({"domain": NAME, "inbound_enabled": false})).await.ok();
    let domain = format!("/v0/domains/{NAME}");
    load(&dns, server.api.get(&format!("{domain}/zone-file")).await.ok().as_str().unwrap());
    server.api.post(&format!("{domain}/verify"), json!({})).await.ok();
    assert_eq!(server.api.get(&domain).await.ok()["status"], "VERIFIED");
    let receive = json!({"inbound_enabled": true});
    let said = server.api.patch(&domain, receive.clone()).await.refused(403, "domain_not_verified");
    assert!(said["fix"].as_str().unwrap().contains("elsewhere.example"), "{said}");
    assert_eq!(server.api.get(&domain).await.ok()["inbound_enabled"], false);
    dns.add(&format!("{NAME} MX 10 mx.agents.example\n"));
    assert_eq!(server.api.patch(&domain, receive).await.ok()["inbound_enabled"], true);
}

/// `gatepost domain` for people: what to set, and what is wrong, in words and an exit code.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_says_what_to_change() {
    let dns = Dns::start("words.example MX 5 old.example\n").await;
    let server = TestServer::new().dns(&dns).start().await;
    let command = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gatepost"));
        command.args(["domain"]).args(arguments);
        command.env("GATEPOST_URL", server.api.base()).env("GATEPOST_KEY", ADMIN_KEY);
        let output = command.output().expect("gatepost");
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (good, said) = command(&["add", "words.example"]);
    assert!(good && said.contains("gatepost domain verify words.example"), "{said}");
    let (good, said) = command(&["verify", "words.example"]);
    assert!(!good, "a script can wait for it: {said}");
    assert!(
        said.contains("INVALID") && said.contains("Found: 5 old.example. Set: words.example. MX 10"),
        "{said}"
    );
    let (good, said) = command(&["zone-file", "words.example"]);
    assert!(good && said.contains("_domainkey.words.example. IN TXT"), "{said}");
    let (good, said) = command(&["list"]);
    assert!(good && said.contains("agents.example") && said.contains("words.example"), "{said}");
    let (good, said) = command(&["remove", "words.example"]);
    assert!(good && said.contains("removed"), "{said}");
}

async fn sdk(phase: &str, server: &TestServer) -> String {
    let mut agent = Command::new(needs::python().expect("python"));
    agent.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/domains.py")).arg(phase);
    agent.arg(server.api.base()).arg(ADMIN_KEY);
    let output = tokio::task::spawn_blocking(move || agent.output()).await.unwrap().expect("python");
    let said = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned()).concat();
    assert!(said.contains("all good"), "{said}");
    said
}

/// Puts a BIND zone file into the test DNS, as its owner would.
fn load(dns: &Dns, zone: &str) {
    for line in zone.lines() {
        let Some((name, rest)) = line.split_once(" IN ") else { continue };
        let (kind, value) = rest.split_once(' ').expect(line);
        let value = match kind {
            "TXT" => value.split('"').skip(1).step_by(2).collect::<String>(),
            _ => value.to_owned(),
        };
        dns.add(&format!("{name} {kind} {value}\n"));
    }
}

/// A message from the tenant's inbox, as the remote took it.
async fn sent(server: &TestServer, sink: &Sink, subject: &str) -> Taken {
    let body = json!({"to": "ann@remote.example", "subject": subject, "text": "Grüße 😀"});
    server.api.post("/v0/inboxes/ada@tenant.example/messages/send", body).await.ok();
    eventually(&format!("{subject} is at the remote"), async || {
        sink.taken().into_iter().find(|mail| mail.header("Subject").as_deref() == Some(subject))
    })
    .await
}

/// What an independent verifier says to each signature, the zone file being the DNS.
fn checked(taken: &Taken, zone: &str) -> Vec<(String, bool)> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mail.eml"), &taken.message).unwrap();
    std::fs::write(folder.path().join("records.txt"), zone).unwrap();
    let mut verifier = Command::new(needs::python().expect("python"));
    verifier.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/verify_dkim.py")).arg(folder.path());
    let said = crate::world::run(&mut verifier);
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words.get(1), Some(&NAME), "{said}");
        (words[0].to_owned(), words[2] == "pass")
    };
    let mut all: Vec<(String, bool)> = said.lines().map(line).collect();
    all.sort_by(|a, b| b.0.cmp(&a.0));
    all
}

fn selectors(taken: &Taken) -> Vec<String> {
    let text = taken.text().replace("\r\n\t", "").replace("\r\n ", "");
    let mut all: Vec<String> = text
        .split("DKIM-Signature:")
        .skip(1)
        .filter_map(|field| field.split("s=").nth(1)?.split(';').next().map(|s| s.trim().to_owned()))
        .collect();
    all.sort();
    all
}

fn states(answer: &Value) -> Vec<String> {
    let keys = answer["keys"].as_array().expect("keys");
    let mut all: Vec<String> = keys.iter().map(|key| key["state"].as_str().unwrap().to_owned()).collect();
    all.sort();
    all
}
