//! Everything that the network can say wrongly gets a clear answer, in the documented shape, and the process lives on.

mod configuration;
mod injection;

use serde_json::json;

use crate::world::{mail, server::TestServer};

const ADA: &str = "ada@agents.example";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_smtp_gets_enhanced_codes_and_harms_nobody() {
    let server = TestServer::new().inbox("ada").config("").start().await;
    let mut smtp = server.dial().await;
    smtp.expect("MAIL FROM:<a@b.example>", 503).await;
    smtp.expect("FROB", 500).await;
    smtp.expect("EHLO", 501).await;
    let hello = smtp.expect("EHLO client.example", 250).await;
    for extension in ["PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "STARTTLS"] {
        assert!(hello.text.contains(extension), "{extension} is not offered: {}", hello.text);
    }
    smtp.expect("RCPT TO:<ada@agents.example>", 503).await;
    smtp.expect("DATA", 503).await;
    smtp.expect("MAIL FROM:<a@b.example", 501).await;
    smtp.expect("MAIL FROM:<a b@c.example>", 501).await;
    smtp.expect("MAIL FROM:<a@b.example> NOSUCH=1", 555).await;
    smtp.expect("MAIL FROM:<a@b.example> SIZE=99999999999", 552).await;
    smtp.expect("MAIL FROM:<a@b.example> BODY=8BITMIME", 250).await;
    smtp.expect("MAIL FROM:<a@b.example>", 503).await;
    let unknown = smtp.expect("RCPT TO:<nobody@agents.example>", 550).await;
    assert!(unknown.text.starts_with("5.1.1"), "{unknown:?}");
    let relay = smtp.command("RCPT TO:<victim@remote.example>").await.unwrap();
    assert!(relay.code / 10 == 55 && relay.text.starts_with("5.7.1"), "an open relay? {relay:?}");
    smtp.expect("RCPT TO:<@agents.example>", 501).await;
    smtp.expect("RCPT TO:<ada+any.tag@agents.example>", 250).await;
    smtp.expect("NOOP", 250).await;
    smtp.expect("VRFY ada", 252).await;
    smtp.expect("HELP", 214).await;
    smtp.expect("RSET", 250).await;
    smtp.expect("DATA", 503).await;
    for line in ["\0\0\0", "MAIL FROM:<\u{1}@x>", "ЕHLO я", &"A".repeat(5000)] {
        let reply = smtp.command(line).await.unwrap();
        assert_eq!(reply.code / 100, 5, "{line:.20}: {reply:?}");
        assert!(reply.text.starts_with("5."), "no enhanced code: {reply:?}");
    }
    assert_eq!(server.api.get("/v0/inboxes/ada@agents.example/messages").await.ok()["count"], 0);
    assert!(server.alive());
}

/// The incident: SMTP smuggling (CVE-2023-51764 and its kind). Only CRLF.CRLF ends a message; whoever sends a bare CR
/// or LF is cut off, and nothing of what followed is taken for a command or a message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_message_cannot_be_smuggled_behind_a_false_end_of_data() {
    let server = TestServer::new().inbox("ada").start().await;
    for end in ["\n.\n", "\n.\r\n", "\r\n.\n", "\r.\r", "\r\n.\r", "\r.\r\n"] {
        let mut smtp = server.dial().await;
        smtp.expect("EHLO client.example", 250).await;
        smtp.expect("MAIL FROM:<a@remote.example>", 250).await;
        smtp.expect("RCPT TO:<ada@agents.example>", 250).await;
        smtp.expect("DATA", 354).await;
        let inner = "MAIL FROM:<boss@agents.example>\r\nRCPT TO:<ada@agents.example>\r\nDATA\r\n\
                     Subject: smuggled\r\n\r\nobey\r\n.\r\n";
        smtp.write(format!("Subject: outer\r\n\r\nhello{end}{inner}").as_bytes()).await.unwrap();
        if let Ok(reply) = smtp.reply().await {
            assert_eq!(reply.code / 100, 5, "{end:?}: {reply:?}");
        }
        assert!(smtp.closed().await, "{end:?}: the connection goes on");
    }
    let stored = server.api.get("/v0/inboxes/ada@agents.example/messages?include_spam=true").await.ok();
    assert_eq!(stored["count"], 0, "{stored}");
}

/// The incident: STARTTLS command injection (CVE-2011-0411). What was said in clear is forgotten with the handshake.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starttls_forgets_what_was_said_in_clear() {
    let server = TestServer::new().inbox("ada").start().await;
    let mut smtp = server.dial().await.starttls().await;
    smtp.expect("MAIL FROM:<a@remote.example>", 503).await;
    let hello = smtp.expect("EHLO client.example", 250).await;
    assert!(!hello.text.contains("STARTTLS"), "{hello:?}");
    smtp.expect("STARTTLS", 503).await;
    let letter = mail::letter("a@remote.example", ADA, "Over TLS", "tls@remote.example", "", "t");
    assert_eq!(smtp.transaction("a@remote.example", &[ADA], &letter).await.unwrap().code, 250);

    let mut rude = server.dial().await;
    rude.expect("EHLO client.example", 250).await;
    rude.write(b"STARTTLS\r\nMAIL FROM:<evil@remote.example>\r\n").await.unwrap();
    let first = rude.reply().await.unwrap();
    if first.code == 220 {
        assert!(rude.reply().await.is_err(), "a command from before the handshake was answered");
    } else {
        assert_eq!(first.code / 100, 5, "{first:?}");
    }
}

/// A message that cannot be understood is mail all the same: stored raw, handed out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_parsed_is_stored_and_handed_out() {
    let server = TestServer::new().inbox("ada").start().await;
    let deep = (0..2000).fold(String::new(), |text, n| {
        text + &format!("--b{n}\r\nContent-Type: multipart/mixed; boundary=b{}\r\n\r\n", n + 1)
    });
    let nested = format!(
        "Subject: deep\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b0\r\n\r\n{deep}"
    );
    let many = format!("Subject: many\r\n{}\r\nbody\r\n", "X-Header: y\r\n".repeat(4000));
    let cases: [(&str, Vec<u8>); 5] = [
        ("nothing", b"\r\n".to_vec()),
        ("binary", b"\xff\xfe\x80\r\n\x01\x02\r\n".to_vec()),
        ("no end of header", b"Subject: no end of header".to_vec()),
        ("deep", nested.into_bytes()),
        ("many", many.into_bytes()),
    ];
    for (n, (name, bytes)) in cases.iter().enumerate() {
        server.receive("a@remote.example", ADA, bytes).await;
        let list = server.api.get("/v0/inboxes/ada@agents.example/messages?include_spam=true").await.ok();
        assert_eq!(list["count"], n + 1, "{name}: {list}");
    }
    let claimed = server.api.post("/v1/work-items/claim", json!({"limit": 20})).await.ok();
    assert_eq!(claimed["count"], cases.len(), "{claimed}");
    // RFC 5321 §2.3.8 and RFC 3030: NUL has no place in mail, and half of the world's readers stop at it.
    let reply =
        server.dial().await.deliver("a@remote.example", &[ADA], b"Subject: n\r\n\r\nul\0\r\n").await.unwrap();
    assert_eq!(reply.code, 550, "{reply:?}");
    assert!(server.alive());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_http_gets_errors_of_the_documented_shape() {
    let server = TestServer::new().inbox("ada").start().await;
    let api = &server.api;
    let base = "/v0/inboxes/ada@agents.example";
    api.with_key("").get("/v0/inboxes").await.refused(401, "missing_authorization");
    api.with_key("nonsense").get("/v0/inboxes").await.refused(401, "unknown_api_key");
    for path in [
        "/v0/inboxes/nobody@agents.example",
        "/v0/inboxes/%00",
        "/v0/inboxes/..%2f..%2fetc%2fpasswd",
        &format!("{base}/messages/msg_nonsense"),
        &format!("{base}/messages/%3Cnone@remote.example%3E"),
        &format!("{base}/messages/%FF%FE"),
        &format!("{base}/threads/thr_0000"),
        &format!("{base}/messages/%3Cnone@remote.example%3E/attachments/att_x"),
        "/v0/threads/'%20OR%201=1",
        "/v1/work-items/wi_zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz",
        "/v0/nothing/here",
        "/nothing",
    ] {
        api.get(path).await.refused(404, "not_found");
    }
    for query in ["limit=abc", "limit=-1", "page_token=garbage", "before=yesterday", "ascending=maybe"] {
        let body = api.get(&format!("{base}/messages?{query}")).await.refused(400, "validation_error");
        assert!(body["errors"][0]["path"].is_array(), "{query}: {body}");
    }
    assert_eq!(
        api.get(&format!("{base}/messages?limit=100000")).await.ok()["limit"],
        100,
        "larger asks are clamped"
    );

    let send = format!("{base}/messages/send");
    let wrong: [(&str, &[u8]); 6] = [
        ("not JSON", b"{\"to\": "),
        ("no object", b"[1,2,3]"),
        ("bad UTF-8", b"{\"subject\": \"\xff\xfe\"}"),
        ("wrong type", b"{\"to\": 17}"),
        ("bad base64", b"{\"to\":\"a@b.example\",\"text\":\"x\",\"attachments\":[{\"content\":\"***\"}]}"),
        (
            "a URL to fetch",
            b"{\"to\":\"a@b.example\",\"text\":\"x\",\"attachments\":[{\"url\":\"http://127.0.0.1/\"}]}",
        ),
    ];
    for (name, bytes) in wrong {
        let body = Some(("application/json", bytes.to_vec()));
        let answer = api.ask_bytes("POST", &send, &[], body).await.unwrap();
        eprintln!("{name}: {}", answer.body);
        answer.refused(400, "validation_error");
    }
    let deep = Some(("application/json", "[".repeat(100_000).into_bytes()));
    api.ask_bytes("POST", &send, &[], deep).await.unwrap().refused(400, "validation_error");
    let nobody = api.post(&send, json!({"subject": "s", "text": "t"})).await;
    assert_eq!(nobody.status, 422, "no recipient at all: {}", nobody.body);
    let many = (0..51).map(|n| format!("r{n}@remote.example")).collect::<Vec<_>>();
    let many = api.post(&send, json!({"to": many, "text": "t"})).await;
    assert!(
        matches!(many.status, 400 | 403) && many.body["code"].is_string(),
        "51 recipients: {}",
        many.body
    );
    let empty = [("Idempotency-Key", "")];
    let body = json!({"to": "a@remote.example", "text": "t"});
    let answer = api.ask("POST", &send, &empty, Some(body)).await.unwrap();
    answer.refused(400, "validation_error");
    let wrong = [("DELETE", "/v0/inboxes"), ("PUT", "/v1/events"), ("PATCH", "/healthz")];
    for (method, path) in wrong {
        let answer = api.ask(method, path, &[], None).await.unwrap();
        assert!(
            matches!(answer.status, 404 | 405) && answer.body["message"].is_string(),
            "{method} {path}: {answer:?}"
        );
    }
    for path in ["/healthz", "/readyz", "/openapi.json"] {
        api.with_key("").get(path).await.ok();
    }
    assert_eq!(sent(&server).await, 0, "something wrong was sent");
    assert!(server.alive());
}

/// A key of one inbox learns nothing of another: not even that it exists.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_sees_its_own_inbox_and_can_change_no_rule() {
    let server = TestServer::new().inbox("ada").inbox("bea").start().await;
    let letter =
        mail::letter("bob@remote.example", "bea@agents.example", "Secret", "s@remote.example", "", "shh");
    server.receive("bob@remote.example", "bea@agents.example", &letter).await;
    let secret = server.message("bea@agents.example", "Secret").await;
    let ada = server.inbox_key(ADA).await;
    for path in [
        "/v0/inboxes/bea@agents.example".to_owned(),
        "/v0/inboxes/bea@agents.example/messages".to_owned(),
        "/v0/inboxes/bea@agents.example/messages/%3Cs@remote.example%3E".to_owned(),
        format!("/v0/threads/{}", secret["thread_id"].as_str().unwrap()),
        format!("/v0/inboxes/{ADA}/threads/{}", secret["thread_id"].as_str().unwrap()),
        format!("/v0/inboxes/{ADA}/messages/%3Cs@remote.example%3E"),
    ] {
        ada.get(&path).await.refused(404, "not_found");
    }
    assert_eq!(ada.get("/v0/inboxes").await.ok()["count"], 1);
    assert_eq!(ada.post("/v1/work-items/claim", json!({})).await.ok()["count"], 0, "another inbox's work");
    let claimed = server.api.post("/v1/work-items/claim", json!({})).await.ok();
    let item = format!("/v1/work-items/{}", claimed["work_items"][0]["work_item_id"].as_str().unwrap());
    ada.get(&item).await.refused(404, "not_found");
    let fence = &claimed["work_items"][0]["lease"]["fence"];
    ada.post(&format!("{item}/complete"), json!({"fence": fence})).await.refused(404, "not_found");
    let events = ada.get("/v1/events").await.ok();
    assert!(!events.to_string().contains("bea@"), "{events}");
    for (method, path, body) in [
        ("POST", format!("/v0/inboxes/{ADA}/lists/send/allow"), json!({"entry": "evil.example"})),
        ("POST", "/v0/lists/send/allow".to_owned(), json!({"entry": "evil.example"})),
        ("PUT", format!("/v1/inboxes/{ADA}/limits"), json!({"per_hour": null})),
        ("POST", "/v0/inboxes".to_owned(), json!({"username": "mine"})),
        ("POST", "/v0/api-keys".to_owned(), json!({"name": "wider"})),
    ] {
        let answer = ada.ask(method, &path, &[], Some(body)).await.unwrap();
        assert!(matches!(answer.status, 403 | 404), "{method} {path}: {} {}", answer.status, answer.body);
    }
}

async fn sent(server: &TestServer) -> usize {
    server.api.all("/v0/inboxes/ada@agents.example/messages?labels=sent", "messages").await.len()
}
