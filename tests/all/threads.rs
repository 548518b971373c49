//! Threads, work and waiting, as an agent sees them; and what a forger cannot do to them.

use serde_json::{Value, json};

use crate::world::{
    dns::Dns,
    eventually, mail,
    postgres::Database,
    server::{Setup, TestServer},
    sink::Sink,
};

const ADA: &str = "ada@agents.example";

async fn letter(server: &TestServer, from: &str, subject: &str, id: &str, links: &str) -> Value {
    let bytes = mail::letter(from, ADA, subject, id, links, "words");
    server.receive(from, ADA, &bytes).await;
    server.message(ADA, subject).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn references_join_only_who_took_part_or_cites_what_we_made_on_sqlite() {
    references(TestServer::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn references_join_only_who_took_part_or_cites_what_we_made_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    references(TestServer::new().on(&database)).await;
}

async fn references(setup: Setup) {
    let sink = Sink::start().await;
    let dns = Dns::start(&sink.zone("remote.example")).await;
    // What claims our own domain without proof is let in here, to see what else keeps it out of the thread.
    let server = setup.inbox("ada").dns(&dns).config("[receive]\nspoofed = \"tag\"").start().await;
    let first = letter(&server, "bob@remote.example", "Question", "q@remote.example", "").await;
    let cites = "References: <q@remote.example>\r\n";
    let more = letter(&server, "bob@remote.example", "Other subject", "q2@remote.example", cites).await;
    assert_eq!(more["thread_id"], first["thread_id"], "he took part, and the subject does not matter");

    // Mallory knows Bob's Message-ID, from a list or a log. She gets a thread of her own, which says what it claims.
    let forged = letter(&server, "mallory@evil.example", "Re: Question", "m@evil.example", cites).await;
    assert_ne!(forged["thread_id"], first["thread_id"], "a forged reference joined the thread");
    // Nor can she pretend to be the inbox itself.
    let as_ada = letter(&server, ADA, "Re: Re: Question", "m2@evil.example", cites).await;
    assert_ne!(as_ada["thread_id"], first["thread_id"], "the inbox itself does not count as taking part");

    // Whoever cites a Message-ID that we made has seen our mail: Carol got it forwarded.
    let path = format!("/v0/inboxes/{ADA}/messages/%3Cq@remote.example%3E/reply");
    let reply = server.api.post(&path, json!({"text": "Answer"})).await.ok();
    assert_eq!(reply["thread_id"], first["thread_id"]);
    let id = reply["message_id"].as_str().unwrap();
    let random = id.trim_start_matches('<').split('@').next().unwrap();
    assert!(random.len() >= 20, "at least 96 random bits in {id}");
    let carol = format!("In-Reply-To: {id}\r\n");
    let answer =
        letter(&server, "carol@remote.example", "Re: Fwd: Question", "c@remote.example", &carol).await;
    assert_eq!(answer["thread_id"], first["thread_id"]);
    // Dave forwards it on: that is a conversation of his own.
    let forward = letter(&server, "dave@remote.example", "WG: Question", "d@remote.example", &carol).await;
    assert_ne!(forward["thread_id"], first["thread_id"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ties_messages_beside_their_references_on_sqlite() {
    other_ties(TestServer::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ties_messages_beside_their_references_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    other_ties(TestServer::new().on(&database)).await;
}

/// Each kind of tie once, on both databases; who may use it is tested beside the code.
async fn other_ties(setup: Setup) {
    const BOB: &str = "bob@remote.example";
    let sink = Sink::start().await;
    let dns = Dns::start(&sink.zone("remote.example")).await;
    let server = setup.inbox("ada").dns(&dns).start().await;
    let outlook = "Thread-Index: AdZ3kq5Yw2dxZ0V4SmW0W4qC8Jb3Ug==\r\n";
    let first = letter(&server, BOB, "Offer", "o1@remote.example", outlook).await;
    let next = letter(&server, BOB, "About it", "o2@remote.example", outlook).await;
    assert_eq!(next["thread_id"], first["thread_id"], "Outlook");

    let gone = "In-Reply-To: <late@remote.example>\r\n";
    let answer = letter(&server, BOB, "Early", "e1@remote.example", gone).await;
    let second = letter(&server, BOB, "Early too", "e2@remote.example", gone).await;
    let late = letter(&server, BOB, "Late", "late@remote.example", "").await;
    assert_eq!(second["thread_id"], answer["thread_id"], "two answers to what is not here");
    assert_eq!(late["thread_id"], answer["thread_id"], "and it comes");
    let bare = letter(&server, BOB, "AW: Early too", "bare@remote.example", "").await;
    assert_ne!(bare["thread_id"], answer["thread_id"], "the subject of no thread");
    let bare = letter(&server, BOB, "AW: Early", "bare2@remote.example", "").await;
    assert_eq!(bare["thread_id"], answer["thread_id"], "the subject alone");

    let path = format!("/v0/inboxes/{ADA}/messages/%3Co1@remote.example%3E/reply");
    let reply = server.api.post(&path, json!({"text": "Answer"})).await.ok();
    let id = reply["message_id"].as_str().unwrap();
    let report = format!(
        "From: MAILER-DAEMON@mx.remote.example\r\nSubject: Undeliverable\r\nMIME-Version: 1.0\r\n\
         Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n--b\r\n\
         Content-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx.remote.example\r\n\r\n\
         Final-Recipient: rfc822; {BOB}\r\nAction: failed\r\nStatus: 5.1.1\r\n\r\n--b\r\n\
         Content-Type: text/rfc822-headers\r\n\r\nMessage-ID: {id}\r\n\r\n--b--\r\n"
    );
    server.receive("", ADA, report.as_bytes()).await;
    let bounce = server.message(ADA, "Undeliverable").await;
    assert_eq!(bounce["thread_id"], first["thread_id"], "a bounce that quotes");
    assert_eq!(server.api.get("/v1/suppressions").await.ok()["count"], 0, "it speaks for nobody");

    let unnamed = "From: cron@remote.example\r\nDate: Sat, 21 Nov 2026 10:00:00 +0000\r\nSubject: Backup\r\n\r\nDone\r\n";
    server.receive("cron@remote.example", ADA, unnamed.as_bytes()).await;
    server.receive("cron@remote.example", ADA, unnamed.as_bytes()).await;
    let list = server.api.get(&format!("/v0/inboxes/{ADA}/messages?subject=Backup")).await.ok();
    let duplicates = list["messages"].as_array().unwrap().iter().filter(|m| m["duplicate_of"].is_string());
    assert_eq!((list["count"].as_i64(), duplicates.count()), (Some(2), 1), "{list}");
}

/// A duplicate (same inbox, same Message-ID, same body) is linked to its first and makes no second work item; the same
/// Message-ID with another body is another message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_duplicate_makes_no_second_work_and_is_not_discarded() {
    let server = TestServer::new().inbox("ada").start().await;
    let once = mail::letter("bob@remote.example", ADA, "Twice", "d@remote.example", "", "the same");
    server.receive("bob@remote.example", ADA, &once).await;
    let claimed = server.api.post("/v1/work-items/claim", json!({})).await.ok();
    let item = &claimed["work_items"][0];
    server.receive("bob@remote.example", ADA, &once).await;
    let after =
        server.api.get(&format!("/v1/work-items/{}", item["work_item_id"].as_str().unwrap())).await.ok();
    assert_eq!(after["context_version"], item["context_version"], "a duplicate changes no context");
    assert_eq!(server.api.get(&format!("/v1/work-items?inbox_id={ADA}")).await.ok()["count"], 1);
    assert_eq!(server.api.post("/v1/work-items/claim", json!({})).await.ok()["count"], 0);
    let list = server.api.get(&format!("/v0/inboxes/{ADA}/messages")).await.ok();
    assert_eq!(list["count"], 2, "it can be found: {list}");
    let other = mail::letter("bob@remote.example", ADA, "Twice", "d@remote.example", "", "something else");
    server.receive("bob@remote.example", ADA, &other).await;
    let items = server.api.get(&format!("/v1/work-items?inbox_id={ADA}")).await.ok();
    assert_eq!(items["count"], 2, "another body is another message, and news: {items}");
}

/// A reply that was written before the newest message was read is stale.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_against_an_older_context_is_refused() {
    let server = TestServer::new().inbox("ada").start().await;
    letter(&server, "bob@remote.example", "Order two", "o1@remote.example", "").await;
    let claimed = server.api.post("/v1/work-items/claim", json!({})).await.ok();
    let item = &claimed["work_items"][0];
    letter(
        &server,
        "bob@remote.example",
        "No, three",
        "o2@remote.example",
        "References: <o1@remote.example>\r\n",
    )
    .await;
    let path = format!("/v0/inboxes/{ADA}/messages/%3Co1@remote.example%3E/reply");
    let mut reply = json!({
        "text": "Two it is.", "work_item_id": item["work_item_id"], "fence": item["lease"]["fence"],
        "context_version": item["context_version"],
    });
    server.api.post(&path, reply.clone()).await.refused(412, "context_changed");
    let now =
        server.api.get(&format!("/v1/work-items/{}", item["work_item_id"].as_str().unwrap())).await.ok();
    reply["context_version"] = now["context_version"].clone();
    reply["text"] = json!("Three it is.");
    server.api.post(&path, reply).await.ok();
    // Another key that answers into a thread that is held is told so.
    let other = server.inbox_key(ADA).await;
    other.post(&path, json!({"text": "Me too"})).await.refused(412, "lease_held");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_for_a_message_finds_what_is_there_and_what_comes() {
    let server = TestServer::new().inbox("ada").start().await;
    let path = format!("/v1/inboxes/{ADA}/messages/wait");
    let empty = server.api.get(&format!("{path}?wait_seconds=0")).await.ok();
    assert!(empty["message"].is_null(), "{empty}");
    let api = server.api.clone();
    let query = format!("{path}?from=shop.example&subject_contains=code&wait_seconds=50");
    let waiting = tokio::spawn(async move { api.get(&query).await.ok() });
    letter(&server, "other@remote.example", "Your code", "x1@remote.example", "").await;
    letter(&server, "noreply@shop.example", "Your code is 4711", "x2@shop.example", "").await;
    let found = waiting.await.unwrap();
    assert_eq!(found["message"]["message_id"], "<x2@shop.example>", "{found}");
    let again = server.api.get(&format!("{path}?from=noreply@shop.example&complete=true")).await.ok();
    assert_eq!(again["message"]["subject"], "Your code is 4711", "{again}");
    let items = server.api.get(&format!("/v1/work-items?inbox_id={ADA}&state=done")).await.ok();
    assert_eq!(items["count"], 1, "complete=true finishes its work item: {items}");
}

/// The log is ordered and resumable; a reader that starts where it stopped misses nothing and sees nothing twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_event_log_is_read_on_from_a_cursor() {
    let server = TestServer::new().inbox("ada").start().await;
    for n in 0..5 {
        letter(&server, "bob@remote.example", &format!("E{n}"), &format!("e{n}@remote.example"), "").await;
    }
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    eventually("all five are events", async || {
        let page =
            server.api.get(&format!("/v1/events?event_types=message.received&limit=2{cursor}")).await.ok();
        for event in page["events"].as_array().unwrap() {
            seen.push(event["message"]["subject"].as_str().unwrap().to_owned());
        }
        cursor = format!("&after={}", page["next_cursor"].as_str().unwrap());
        (seen.len() >= 5).then_some(())
    })
    .await;
    assert_eq!(seen, ["E0", "E1", "E2", "E3", "E4"]);
    let api = server.api.clone();
    let waiting = tokio::spawn(async move {
        api.get(&format!("/v1/events?event_types=message.received&wait_seconds=50{cursor}")).await.ok()
    });
    letter(&server, "bob@remote.example", "E5", "e5@remote.example", "").await;
    assert_eq!(waiting.await.unwrap()["events"][0]["message"]["subject"], "E5");
}
