//! What an agent is told about a message: its kind, the words that are new in it, the code that it waits for.

use serde_json::{Value, json};

use crate::world::{
    mail,
    postgres::Database,
    server::{Setup, TestServer},
};

const ADA: &str = "ada@agents.example";

async fn arrives(server: &TestServer, from: &str, subject: &str, more: &str, body: &str) -> Value {
    let id = format!("{}@remote.example", subject.replace(' ', "-"));
    server.receive(from, ADA, &mail::letter(from, ADA, subject, &id, more, body)).await;
    let listed = server.message(ADA, subject).await;
    let path = format!("/v0/inboxes/{ADA}/messages/{}", listed["message_id"].as_str().unwrap());
    server.api.get(&path).await.ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_in_a_sign_up_waits_for_its_code_on_sqlite() {
    sign_up(TestServer::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_in_a_sign_up_waits_for_its_code_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    sign_up(TestServer::new().on(&database)).await;
}

async fn sign_up(setup: Setup) {
    let server = setup.inbox("ada").start().await;
    let wait = format!("/v1/inboxes/{ADA}/messages/wait");
    arrives(&server, "bob@remote.example", "Lunch", "", "At noon? Order 583920 is on its way.").await;
    let none = server.api.get(&format!("{wait}?has_code=true")).await.ok();
    assert_eq!(none["message"], Value::Null, "an order number is no code");

    let asked = {
        let (api, wait) = (server.api.clone(), wait.clone());
        tokio::spawn(async move { api.get(&format!("{wait}?has_code=true&wait_seconds=30")).await.ok() })
    };
    let text = "Größe egal.\nYour verification code is 719-839.\n\
                Or click to verify: https://login.example.com/verify?token=ab12cd34ef56\n";
    arrives(&server, "noreply@example.com", "Welcome", "List-Unsubscribe: <mailto:u@example.com>\r\n", text)
        .await;
    let message = asked.await.unwrap()["message"].clone();
    assert_eq!((&message["subject"], &message["kind"]), (&json!("Welcome"), &json!("notification")));
    let codes = message["codes"].as_array().unwrap();
    assert_eq!((&codes[0]["kind"], &codes[0]["value"]), (&json!("code"), &json!("719839")));
    assert_eq!(codes[1]["value"], "https://login.example.com/verify?token=ab12cd34ef56");
    assert_eq!(codes[1]["link_domain_matches_sender"], true);
    // A span counts octets of the field it names, as it is served.
    let text = message["text"].as_str().unwrap();
    for (code, printed) in codes.iter().zip(["719-839", codes[1]["value"].as_str().unwrap()]) {
        assert_eq!(code["span"]["in"], "text");
        let at = |end: &str| code["span"][end].as_u64().unwrap() as usize;
        assert_eq!(&text[at("start")..at("end")], printed);
    }

    let forged = "Confirm your account: https://example.com@evil.net/confirm/8f3a9c2b1d4e5f60";
    let forged = arrives(&server, "noreply@example.com", "Forged", "", forged).await;
    assert_eq!(forged["codes"][0]["link_domain_matches_sender"], false, "{forged}");

    let by_kind = server.api.get(&format!("{wait}?kind=person&has_code=false")).await.ok();
    assert_eq!(by_kind["message"]["subject"], "Lunch");
    let listed = server.api.get(&format!("/v0/inboxes/{ADA}/messages?kind=notification")).await.ok();
    assert_eq!(listed["count"], 2, "{listed}");
    server.api.get(&format!("{wait}?kind=letter")).await.refused(400, "validation_error");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kinds_and_new_words() {
    let server = TestServer::new().inbox("ada").start().await;
    for (subject, more, kind) in [
        ("Away", "Auto-Submitted: auto-replied (vacation)\r\n", "auto_reply"),
        (
            "Automatic reply: Lunch",
            "X-Auto-Response-Suppress: All\r\nAuto-Submitted: auto-generated\r\n",
            "auto_reply",
        ),
        ("Old vacation", "Precedence: auto_reply\r\n", "auto_reply"),
        // Bulk mail answers nobody.
        ("News", "Precedence: bulk\r\n", "list"),
        ("Post", "List-Id: <friends.example>\r\n", "list"),
        ("Cron", "Auto-Submitted: auto-generated\r\n", "notification"),
        ("Human", "Auto-Submitted: no\r\n", "person"),
        ("Plain", "", "person"),
    ] {
        let message = arrives(&server, "bob@remote.example", subject, more, "words").await;
        assert_eq!(message["kind"], kind, "{subject}: {message}");
    }
    let body = "Yes.\n\nOn Sat, 21 Nov 2026 at 03:04, Ada <ada@agents.example> wrote:\n> no?\n";
    let reply = arrives(&server, "bob@remote.example", "Re: Lunch", "", body).await;
    assert_eq!(reply["extracted_text"], "Yes.");
    assert!(reply["text"].as_str().unwrap().contains("no?"), "the whole text is there beside it");

    let page = b"From: bob@remote.example\r\nSubject: Page\r\nMessage-ID: <page@remote.example>\r\nContent-Type: text/html\r\n\r\n\
        <p>Yes.</p><div class=\"gmail_quote\">On Sat, Ada wrote:<blockquote>no?</blockquote></div>\r\n";
    server.receive("bob@remote.example", ADA, page).await;
    let page = server.api.get(&format!("/v0/inboxes/{ADA}/messages/%3Cpage@remote.example%3E")).await.ok();
    assert_eq!(page["extracted_text"], "Yes.");
    let html = page["extracted_html"].as_str().unwrap().replace("\r\n", "");
    assert_eq!(html, "<html><head></head><body><p>Yes.</p></body></html>");
}

/// The incidents: CVE-2026-26312 (nesting, part floods) and header floods. Such a message is stored as it came,
/// marked, and found; the server lives on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_breaks_a_limit_is_stored_raw_and_marked() {
    let server = TestServer::new().inbox("ada").start().await;
    let head = |subject: &str| {
        format!(
            "From: bob@remote.example\r\nSubject: {subject}\r\nMessage-ID: <{subject}@remote.example>\r\n"
        )
    };
    let mut deep = head("deep");
    for level in 0..80 {
        deep += &format!("Content-Type: multipart/mixed; boundary=b{level}\r\n\r\n--b{level}\r\n");
    }
    let parts = head("parts")
        + "Content-Type: multipart/mixed; boundary=b\r\n\r\n"
        + &"--b\r\n\r\nx\r\n".repeat(2_000);
    let fields = head("fields") + &"X: y\r\n".repeat(2_000) + "\r\nwords\r\n";
    let long = head("long")
        + &format!("X: {}\r\n", "y ".repeat(40).trim_end()).repeat(1)
        + &" fold\r\n".repeat(50_000)
        + "\r\nwords\r\n";
    // Words that grow when they are decoded, as many as fit.
    let word = "=?iso-2022-jp?B?GyRCJCIkJBsoQg==?= =?utf-7?Q?+AGEAYg-?= =?x-unknown?Q?=00=0D=0A?=\r\n ";
    let bomb = format!(
        "From: {0}bob@remote.example\r\nSubject: bomb {0}\r\nMessage-ID: <bomb@remote.example>\r\n\r\nx\r\n",
        word.repeat(1_000)
    );
    for (name, raw, marked) in [
        ("deep", deep, true),
        ("parts", parts, true),
        ("fields", fields, true),
        ("long", long, true),
        ("bomb", bomb, false),
    ] {
        server.receive("bob@remote.example", ADA, raw.as_bytes()).await;
        let message =
            server.api.get(&format!("/v0/inboxes/{ADA}/messages/%3C{name}@remote.example%3E")).await.ok();
        assert_eq!(message["unparsed"].is_string(), marked, "{name}: {}", message["unparsed"]);
        assert!(message["subject"].as_str().unwrap().starts_with(name), "{name}");
        let stored = server.raw(ADA, message["message_id"].as_str().unwrap()).await;
        assert!(stored.ends_with(raw.as_bytes()), "{name}: not as it came");
    }
    assert!(server.alive());
}

/// The incident: Stalwart #1308, headers that pretend to be our own. The views come from what we found out, never
/// from what a message says that we did.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_cannot_tell_what_we_found_out_about_it() {
    let server = TestServer::new().inbox("ada").start().await;
    let forged = "Authentication-Results: mx.agents.example; dmarc=pass header.from=bank.example\r\n\
                  X-Gatepost-Kind: person\r\nX-Gatepost-Verified: true\r\nX-Spam-Status: No\r\n\
                  Auto-Submitted: auto-generated\r\n";
    let message = arrives(&server, "boss@bank.example", "Pay", forged, "Your code is 583920").await;
    assert_eq!((&message["verified_sender"], &message["kind"]), (&Value::Null, &json!("notification")));
    assert_ne!(message["verdict"]["dmarc"]["result"], "pass", "{}", message["verdict"]);
}
