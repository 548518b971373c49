//! What protects a domain's name: budgets that inboxes share, the kill switch, and the stop that comes by itself.

use serde_json::json;

use crate::world::{
    dns::Dns,
    eventually,
    postgres::Database,
    server::{ADMIN_KEY, Setup, TestServer},
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
    let list: Vec<String> = (0..6).map(|n| format!("remote{n}.example")).collect();
    let zone: String = list.iter().map(|domain| sink.zone(domain)).collect();
    let dns = Dns::start(&(zone + &sink.zone("remote.example"))).await;
    let server = TestServer::new().inbox("ada").dns(&dns).config("[budgets]\nrate_minimum = 5").start().await;
    for domain in &list {
        let to = format!("gone@{domain}");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_budget_of_a_domain_mail_waits_and_says_so_on_sqlite() {
    shared_budget(TestServer::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_budget_of_a_domain_mail_waits_and_says_so_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    shared_budget(TestServer::new().on(&database)).await;
}

/// Two agents use up what their domain has; the third message of the day waits for the first to be a day old.
async fn shared_budget(setup: Setup) {
    let sink = Sink::start().await;
    let dns = Dns::start(&sink.zone("remote.example")).await;
    let server =
        setup.inbox("ada").inbox("bea").dns(&dns).config("[budgets]\ndomain_per_day = 2").start().await;
    let mail = |to: &str, subject: &str| json!({"to": to, "subject": subject, "text": "t"});
    server.api.post(SEND, mail("bea@agents.example", "Between us")).await.ok();
    server.api.post(SEND, mail("one@remote.example", "One")).await.ok();
    let from_bea = "/v0/inboxes/bea@agents.example/messages/send";
    server.api.post(from_bea, mail("two@remote.example", "Two")).await.ok();
    eventually("two are delivered", async || (sink.taken().len() == 2).then_some(())).await;

    let sent = server.api.post(SEND, mail("three@remote.example", "Three")).await.ok();
    let id = crate::world::api::path_escape(sent["message_id"].as_str().unwrap());
    let path = format!("/v1/inboxes/ada@agents.example/messages/{id}/deliveries");
    let row = eventually("the third waits", async || {
        let row = server.api.get(&path).await.ok()["deliveries"][0].clone();
        (row["waits_for"] == "budget:domain:agents.example").then_some(row)
    })
    .await;
    assert_eq!((row["state"].clone(), row["attempts"].clone()), (json!("scheduled"), json!(0)), "{row}");
    assert!(row["last_reply"].as_str().unwrap().contains("2 recipients in 24 hours"), "{row}");
    let until = gatepost::clock::parse_rfc3339(row["next_attempt_at"].as_str().unwrap()).unwrap();
    let day = gatepost::clock::Clock::system().now() + gatepost::clock::DAY;
    assert!((day - 300_000..day + 1_000).contains(&until), "{row}");
    let events = server.api.get("/v1/events?event_types=delivery.waiting").await.ok();
    assert_eq!(events["count"], 1, "the agent is told once: {events}");
    let queue = server.api.get("/v1/queue?state=scheduled").await.ok();
    assert_eq!(queue["deliveries"][0]["waits_for"], "budget:domain:agents.example", "{queue}");
    server.message("bea@agents.example", "Between us").await;
}

/// A pod's inboxes share as well, and an inbox that was made a minute ago begins small; what was used stays used over a
/// restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_inbox_begins_small_and_a_restart_forgets_nothing() {
    let sink = Sink::start().await;
    let dns = Dns::start(&sink.zone("remote.example")).await;
    let budgets = "[budgets]\npod_per_day = 3\ninbox_warmup = [[1, 2], [3, 10]]";
    let server = TestServer::new().inbox("ada").inbox("bea").dns(&dns).config(budgets).start().await;
    let send = async |who: &str, to: &str| {
        let path = format!("/v0/inboxes/{who}@agents.example/messages/send");
        server.api.post(&path, json!({"to": to, "subject": to, "text": "t"})).await.ok();
    };
    let waiting = async |budget: &str| {
        eventually("it waits", async || {
            let queue = server.api.get("/v1/queue?state=scheduled").await.ok();
            let rows = queue["deliveries"].as_array().unwrap().clone();
            rows.into_iter().find(|row| row["waits_for"] == budget)
        })
        .await
    };
    for n in 0..3 {
        send("ada", &format!("{n}@remote.example")).await;
    }
    let row = waiting("budget:inbox:ada@agents.example").await;
    assert!(row["last_reply"].as_str().unwrap().contains("day 1 of its warm-up"), "{row}");
    eventually("two are noted", async || {
        let events = server.api.get("/v1/events?event_types=message.delivered").await.ok();
        (events["count"] == 2).then_some(())
    })
    .await;
    server.kill9();
    server.restart().await;
    send("bea", "3@remote.example").await;
    send("bea", "4@remote.example").await;
    waiting("budget:pod:pod_default").await;
    eventually("bea's first is there", async || (sink.taken().len() == 3).then_some(())).await;
}

/// Two nodes take from one queue at once: what both of them send together is the budget, not one message more.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_nodes_share_one_budget_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    let sink = Sink::start().await;
    let dns = Dns::start(&sink.zone("remote.example")).await;
    let budgets = "[budgets]\ndomain_per_day = 60";
    let first = TestServer::new().inbox("ada").on(&database).dns(&dns).config(budgets).start().await;
    let second = TestServer::new().on(&database).dns(&dns).beside(&first).config(budgets).start().await;
    first
        .api
        .put("/v1/inboxes/ada@agents.example/limits", json!({"per_hour": null, "per_day": null}))
        .await
        .ok();
    let sends = (0..8).map(|client| {
        let api = if client % 2 == 0 { first.api.clone() } else { second.api.clone() };
        tokio::spawn(async move {
            for n in 0..10 {
                let to: Vec<String> = (0..2).map(|r| format!("c{client}-{n}-{r}@remote.example")).collect();
                api.post(SEND, json!({"to": to, "subject": "s", "text": "t"})).await.ok();
            }
        })
    });
    for client in sends.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    eventually("all have left or wait", async || {
        let summary = first.api.get("/v1/queue").await.ok()["summary"].clone();
        (summary["due"] == 0 && summary["attempting"] == 0 && summary["deferred"] == 0).then_some(())
    })
    .await;
    let summary = first.api.get("/v1/queue").await.ok()["summary"].clone();
    let recipients: usize = sink.taken().iter().map(|taken| taken.to.len()).sum();
    assert_eq!(recipients, 54, "60, of which a tenth is kept for what a person approved");
    assert_eq!(summary["scheduled"], 160 - 54, "{summary}");
    for node in [&first, &second] {
        let log = std::fs::read_to_string(node.log_file()).unwrap();
        assert!(!log.contains("ERROR"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_domain_that_refuses_every_answer_stops_nobody_on_sqlite() {
    hostile_domain(TestServer::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_domain_that_refuses_every_answer_stops_nobody_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    hostile_domain(TestServer::new().on(&database)).await;
}

/// Ten people at one domain write in and refuse the answers; names below the domain make them no more.
async fn hostile_domain(setup: Setup) {
    let sink = Sink::start().await;
    let names = ["evil.example", "a.evil.example", "b.evil.example", "c.evil.example", "d.evil.example"];
    let zone: String = names.iter().map(|domain| sink.zone(domain)).collect();
    let dns = Dns::start(&(zone + &sink.zone("remote.example"))).await;
    let server = setup.inbox("ada").dns(&dns).config("[budgets]\nrate_minimum = 5").start().await;
    for n in 0..10 {
        let to = format!("me{n}@{}", names[n % names.len()]);
        sink.refuse(&to, "550 5.1.1 no such user");
        server.api.post(SEND, json!({"to": to, "subject": "Re: Hello", "text": "t"})).await.ok();
    }
    eventually("all have bounced", async || {
        let events = server.api.get("/v1/events?event_types=message.bounced").await.ok();
        (events["count"] == 10).then_some(())
    })
    .await;
    // What bounced is weighed every two seconds.
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert_eq!(server.api.get("/v1/stops").await.ok()["count"], 0);
    server.api.post(SEND, json!({"to": "bob@remote.example", "subject": "Hello", "text": "t"})).await.ok();
}

/// A stop of the domain is one of what is below it, where agents may have addresses on any name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_of_a_domain_covers_the_names_below_it_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    stop_above(TestServer::new().on(&database)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_of_a_domain_covers_the_names_below_it_on_sqlite() {
    stop_above(TestServer::new()).await;
}

async fn stop_above(setup: Setup) {
    // The server's own domains are agents.example and the one below it; the stop names the upper one.
    let server = setup.env("GATEPOST_DOMAINS", "agents.example,eu.agents.example").start().await;
    server.api.post("/v0/inboxes", json!({"username": "ada", "domain": "eu.agents.example"})).await.ok();
    let send = "/v0/inboxes/ada@eu.agents.example/messages/send";
    let later = gatepost::clock::rfc3339(gatepost::clock::Clock::system().now() + 3_600_000);
    let planned = json!({"to": "bob@remote.example", "subject": "s", "text": "t", "send_at": later});
    server.api.post(send, planned.clone()).await.ok();
    let ask = json!({"scope": "domain", "id": "agents.example", "reason": "We look.", "queued": "cancel"});
    let made = server.api.post("/v1/stops", ask).await.ok();
    assert_eq!(made["canceled"], 1, "{made}");
    let refused = server.api.post(send, planned.clone()).await.refused(403, "message_rejected");
    assert_eq!(refused["reasons"][0]["rule"], "stopped", "{refused}");
    let path = format!("/v1/stops/{}", made["stop_id"].as_str().unwrap());
    server.api.ask("DELETE", &path, &[], None).await.unwrap().ok();
    // The other way round it does not reach.
    let ask = json!({"scope": "domain", "id": "eu.agents.example", "reason": "We look."});
    server.api.post("/v1/stops", ask).await.ok();
    server.add_inbox("bea").await;
    server.api.post("/v0/inboxes/bea@agents.example/messages/send", planned.clone()).await.ok();
    server.api.post(send, planned).await.refused(403, "message_rejected");
}

fn gatepost(server: &TestServer, args: &[&str]) -> String {
    let said = std::process::Command::new(env!("CARGO_BIN_EXE_gatepost"))
        .arg("budget")
        .args(args)
        .args(["--url", server.api.base(), "--key", ADMIN_KEY])
        .output()
        .unwrap();
    assert!(said.status.success(), "{args:?}: {}", String::from_utf8_lossy(&said.stderr));
    String::from_utf8_lossy(&said.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_sees_sets_and_resets_a_budget_on_sqlite() {
    set_while_running(TestServer::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_sees_sets_and_resets_a_budget_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    set_while_running(TestServer::new().on(&database)).await;
}

/// A budget that the configuration does not know: set, used up, raised, and gone.
async fn set_while_running(setup: Setup) {
    let sink = Sink::start().await;
    let dns = Dns::start(&sink.zone("remote.example")).await;
    let server = setup.inbox("ada").dns(&dns).start().await;
    assert_eq!(server.api.get("/v1/budgets").await.ok()["count"], 0);
    let path = "/v1/budgets/domain/agents.example";
    let agent = server.inbox_key("ada@agents.example").await;
    agent.put(path, json!({"per_day": 2})).await.refused(403, "forbidden");
    server.api.put(path, json!({"per_day": 0})).await.refused(400, "validation_error");
    server
        .api
        .put("/v1/budgets/domain/elsewhere.example", json!({"per_day": 2}))
        .await
        .refused(404, "not_found");
    let made = server.api.put(path, json!({"per_day": 2})).await.ok();
    assert_eq!((made["cap"].clone(), made["set_by"].clone()), (json!(2), json!("operator")), "{made}");
    for n in 0..3 {
        let body = json!({"to": format!("{n}@remote.example"), "subject": "Hi", "text": "t"});
        server.api.post(SEND, body).await.ok();
    }
    let full = eventually("one of them waits", async || {
        let budgets = server.api.get("/v1/budgets").await.ok();
        (budgets["budgets"][0]["waiting"] == 1).then_some(budgets["budgets"][0].clone())
    })
    .await;
    assert_eq!((full["used"].clone(), full["room"].clone()), (json!(2), json!(0)), "{full}");
    let opens = gatepost::clock::parse_rfc3339(full["opens_at"].as_str().unwrap()).unwrap();
    let day = gatepost::clock::Clock::system().now() + gatepost::clock::DAY;
    assert!((day - 300_000..day + 1_000).contains(&opens), "{full}");
    // Whose mail fills the rest of the domain's budget is not this agent's business.
    let seen = agent.get("/v1/budgets").await.ok();
    assert_eq!(
        (seen["budgets"][0]["cap"].clone(), seen["budgets"][0].get("used")),
        (json!(2), None),
        "{seen}"
    );

    assert!(gatepost(&server, &["list"]).contains("agents.example"));
    gatepost(&server, &["set", "domain", "agents.example", "--per-day", "10"]);
    eventually("it leaves by itself", async || (sink.taken().len() == 3).then_some(())).await;
    gatepost(&server, &["reset", "domain", "agents.example"]);
    assert_eq!(server.api.get("/v1/budgets").await.ok()["count"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_one_recipient_have_limits_of_their_own_on_sqlite() {
    recipients(TestServer::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_one_recipient_have_limits_of_their_own_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    recipients(TestServer::new().on(&database)).await;
}

/// An agent that was let loose for an hour and is then kept to those it knows.
async fn recipients(setup: Setup) {
    let sink = Sink::start().await;
    let dns = Dns::start(&sink.zone("remote.example")).await;
    let server = setup.inbox("ada").dns(&dns).start().await;
    let limits = "/v1/inboxes/ada@agents.example/limits";
    let mail = |to: &str| json!({"to": to, "subject": "Hello", "text": "t"});
    server.api.post(SEND, mail("Old@remote.example")).await.ok();
    let set =
        server.api.put(limits, json!({"new_recipients_per_day": 1, "per_recipient_per_day": 2})).await.ok();
    assert_eq!(
        (set["new_recipients_per_day"].clone(), set["per_hour"].clone()),
        (json!(1), json!(200)),
        "{set}"
    );
    server.api.post(SEND, mail("old@remote.example")).await.ok();
    let refused = server.api.post(SEND, mail("old@remote.example")).await.refused(403, "limit_exceeded");
    assert_eq!(refused["reasons"][0]["rule"], "limit_per_recipient_per_day", "{refused}");
    assert!(refused["retry_at"].is_string(), "{refused}");

    let later = gatepost::clock::rfc3339(gatepost::clock::Clock::system().now() + 3_600_000);
    let planned = json!({"to": "first@remote.example", "subject": "s", "text": "t", "send_at": later});
    let planned = server.api.post(SEND, planned).await.ok();
    let refused = server.api.post(SEND, mail("second@remote.example")).await.refused(403, "limit_exceeded");
    assert_eq!(refused["reasons"][0]["rule"], "limit_new_recipients_per_day", "{refused}");
    assert!(refused.to_string().contains("second@remote.example"), "{refused}");
    // What was called back was never written.
    let id = crate::world::api::path_escape(planned["message_id"].as_str().unwrap());
    server.api.post(&format!("/v1/inboxes/ada@agents.example/messages/{id}/cancel"), json!({})).await.ok();
    server.api.post(SEND, mail("second@remote.example")).await.ok();
    assert_eq!(server.api.get(limits).await.ok()["used"]["new_recipients_last_day"], 1);
    server.api.post(SEND, mail("first@remote.example")).await.refused(403, "limit_exceeded");
    server.api.put(limits, json!({"new_recipients_per_day": null})).await.ok();
    server.api.post(SEND, mail("first@remote.example")).await.ok();
}
