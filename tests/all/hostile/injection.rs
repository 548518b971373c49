//! A line end in any field of a send must not become a header: refused, or harmless.

use serde_json::json;

use super::ADA;
use crate::world::{dns::Dns, eventually, mail, server::TestServer, sink::Sink};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_field_of_a_send_can_inject_a_header() {
    let sink = Sink::start().await;
    let dns = Dns::start(&sink.zone("remote.example")).await;
    let server = TestServer::new().inbox("ada").dns(&dns).start().await;
    let send = format!("/v0/inboxes/{ADA}/messages/send");
    let good = "bob@remote.example";
    let mut accepted = 0;
    for line_end in ["\r\n", "\n", "\r", "\0\r\n", "\u{2028}\r\n", "\u{85}\r\n"] {
        let evil = format!("x{line_end}X-Evil: yes{line_end}{line_end}and a body");
        let address = format!("a@remote.example{line_end}X-Evil: yes");
        for fields in [
            json!({"subject": evil}),
            json!({"to": address}),
            json!({"to": format!("\"{evil}\" <{good}>")}),
            json!({"cc": [address]}),
            json!({"bcc": [address]}),
            json!({"reply_to": address}),
            json!({"reply_to": format!("{evil} <{good}>")}),
            json!({"headers": {"X-Good": evil}}),
            json!({"headers": {evil.clone(): "x"}}),
            json!({"headers": {"Subject": evil}}),
            json!({"attachments": [{"content": "QQ==", "filename": evil}]}),
            json!({"attachments": [{"content": "QQ==", "content_type": format!("text/plain{line_end}X-Evil: yes")}]}),
            json!({"attachments": [{"content": "QQ==", "content_id": evil}]}),
            json!({"attachments": [{"content": "QQ==", "content_disposition": evil}]}),
            json!({"labels": [evil]}),
        ] {
            let mut body = json!({"to": good, "subject": "s", "text": "t"});
            for (name, value) in fields.as_object().unwrap() {
                body[name] = value.clone();
            }
            let answer = server.api.post(&send, body.clone()).await;
            match answer.status {
                200..=299 => accepted += 1,
                400 | 422 => assert!(answer.body["message"].is_string(), "{body}: {}", answer.body),
                403 => assert_eq!(answer.body["code"], "message_rejected", "{body}: {}", answer.body),
                other => panic!("{body}: {other} {}", answer.body),
            }
        }
    }
    // The display name of the inbox stands in From.
    let name = json!({"display_name": "x\r\nX-Evil: yes"});
    let renamed = server.api.patch(&format!("/v0/inboxes/{ADA}"), name).await;
    assert!(renamed.status < 500, "{}", renamed.body);
    server.api.post(&send, json!({"to": good, "subject": "last", "text": "t"})).await.ok();
    accepted += 1;

    eventually("what was accepted has arrived", async || (sink.taken().len() >= accepted).then_some(()))
        .await;
    for taken in sink.taken() {
        let evil =
            mail::headers(&taken.message).into_iter().any(|(name, _)| name.eq_ignore_ascii_case("X-Evil"));
        let anywhere = taken.text().lines().any(|line| line.to_ascii_lowercase().starts_with("x-evil"));
        assert!(!evil && !anywhere, "a header was injected:\n{}", taken.text());
        assert!(mail::header(&taken.message, "Bcc").is_none());
        assert!(taken.message.is_ascii(), "what we compose is 7-bit on the wire");
    }
}

/// The headers that say who wrote what to whom are ours (DESIGN §6).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn custom_headers_cannot_replace_ours() {
    let server = TestServer::new().inbox("ada").start().await;
    for name in [
        "From",
        "to",
        "CC",
        "Bcc",
        "Sender",
        "Message-ID",
        "Date",
        "In-Reply-To",
        "References",
        "Return-Path",
        "Received",
        "DKIM-Signature",
        "ARC-Seal",
        "Authentication-Results",
        "MIME-Version",
        "Content-Type",
    ] {
        let body = json!({"to": "bob@remote.example", "text": "t", "headers": {name: "x"}});
        let answer = server.api.post(&format!("/v0/inboxes/{ADA}/messages/send"), body).await;
        answer.refused(400, "validation_error");
    }
}
