//! What became of mail after a remote took it: it comes back, somebody complains, somebody unsubscribes; and what
//! strangers claim about it does nothing.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::world::{
    dns::Dns,
    eventually,
    postgres::Database,
    scripted::{Act, Scripted},
    server::{Setup, TestServer},
    sink::{Sink, Taken},
};

const SEND: &str = "/v0/inboxes/ada@agents.example/messages/send";

struct Sent {
    server: TestServer,
    sink: Sink,
    sent: Value,
    taken: Taken,
    _dns: Dns,
}

/// Ada wrote to Bob, and Bob's server took it.
async fn sent(setup: Setup, more: Value) -> Sent {
    let sink = Sink::start().await;
    let dns = Dns::start(&sink.zone("remote.example")).await;
    let public = ("GATEPOST_HTTP__PUBLIC_URL", "https://mail.agents.example");
    let server = setup.inbox("ada").dns(&dns).env(public.0, public.1).start().await;
    let mut body = json!({"to": "bob@remote.example", "subject": "Offer", "text": "t"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let sent = server.api.post(SEND, body).await.ok();
    let taken = eventually("the remote has it", async || sink.taken().pop()).await;
    let it = Sent { server, sink, sent, taken, _dns: dns };
    it.events("message.delivered", 1).await;
    it
}

impl Sent {
    async fn events(&self, kind: &str, count: usize) -> Vec<Value> {
        let path = format!("/v1/events?event_types={kind}&limit=1000");
        eventually(&format!("{count} of {kind}"), async || {
            let events = self.server.api.get(&path).await.ok();
            events["events"].as_array().filter(|events| events.len() >= count).cloned()
        })
        .await
    }

    async fn none_of(&self, kind: &str) {
        let events = self.server.api.get(&format!("/v1/events?event_types={kind}&limit=1000")).await.ok();
        assert_eq!(events["count"], 0, "{events}");
    }

    async fn suppressed(&self) -> Vec<(String, String)> {
        let all = self.server.api.all("/v1/suppressions", "suppressions").await;
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        all.iter().map(|s| (text(&s["address"]), text(&s["reason"]))).collect()
    }

    async fn claim(&self) -> Vec<Value> {
        let claimed = self.server.api.post("/v1/work-items/claim", json!({"limit": 10})).await.ok();
        claimed["work_items"].as_array().unwrap().clone()
    }

    /// A report comes from outside, with the null sender.
    async fn report(&self, to: &str, message: &str) {
        self.server.receive("", to, message.as_bytes()).await;
    }
}

fn dsn(to: &str, id: &str, status: &str) -> String {
    format!(
        "From: MAILER-DAEMON@remote.example\r\nTo: {to}\r\nSubject: Undelivered {id}\r\nMessage-ID: <{id}@remote.example>\r\n\
         MIME-Version: 1.0\r\nAuto-Submitted: auto-replied\r\n\
         Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n\
         --b\r\nContent-Type: text/plain\r\n\r\nIt could not be delivered.\r\n\
         --b\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx.remote.example\r\n\r\n\
         Final-Recipient: rfc822; bob@remote.example\r\nAction: failed\r\nStatus: {status}\r\n\r\n--b--\r\n"
    )
}

fn arf(to: &str, returned: &str) -> String {
    format!(
        "From: fbl@provider.example\r\nTo: {to}\r\nSubject: complaint\r\nMessage-ID: <c@provider.example>\r\nMIME-Version: 1.0\r\n\
         Content-Type: multipart/report; report-type=feedback-report; boundary=b\r\n\r\n\
         --b\r\nContent-Type: text/plain\r\n\r\nThis is an abuse report.\r\n\
         --b\r\nContent-Type: message/feedback-report\r\n\r\nFeedback-Type: abuse\r\nVersion: 1\r\n\
         Original-Rcpt-To: bob@remote.example\r\n\r\n\
         --b\r\nContent-Type: message/rfc822\r\n\r\n{returned}\r\n--b--\r\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_that_comes_back_is_an_event_a_suppression_and_work_once_on_sqlite() {
    comes_back(TestServer::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_that_comes_back_is_an_event_a_suppression_and_work_once_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    comes_back(TestServer::new().on(&database)).await;
}

async fn comes_back(setup: Setup) {
    let it = sent(setup, json!({})).await;
    // A forged return path is nobody's, and a bounce to where our own bounces come from is for the operator to see.
    let mut smtp = it.server.dial().await;
    smtp.expect("EHLO client.example", 250).await;
    smtp.expect("MAIL FROM:<>", 250).await;
    let local = it.taken.from.split('@').next().unwrap();
    let forged = format!("{}0@agents.example", &local[..local.len() - 1]);
    let other = format!("{}1@agents.example", &local[..local.len() - 1]);
    let wrong = if forged == it.taken.from { other } else { forged };
    assert_eq!(smtp.command(&format!("RCPT TO:<{wrong}>")).await.unwrap().code, 550);
    it.report("mailer-daemon@agents.example", &dsn("mailer-daemon@agents.example", "loop", "5.1.1")).await;
    it.none_of("message.bounced").await;
    assert!(it.suppressed().await.is_empty());

    it.report(&it.taken.from, &dsn(&it.taken.from, "first", "5.1.1")).await;
    let bounced = it.events("message.bounced", 1).await.remove(0);
    let bounce = &bounced["bounce"];
    assert_eq!(bounce["message_id"], it.sent["message_id"], "{bounced}");
    assert_eq!(
        bounce["recipients"],
        json!([{"address": "bob@remote.example", "status": "5.1.1"}]),
        "{bounced}"
    );
    assert_eq!(
        (&bounce["class"], &bounce["type"], &bounce["sub_type"]),
        (&json!("hard"), &json!("Permanent"), &json!("NoEmail"))
    );
    assert_eq!(it.suppressed().await, [("bob@remote.example".to_owned(), "bounce".to_owned())]);
    assert_eq!(it.events("suppression.added", 1).await[0]["data"]["reason"], "bounce");
    let items = it.claim().await;
    assert_eq!(items.len(), 1, "{items:?}");
    assert_eq!((&items[0]["reason"], &items[0]["thread_id"]), (&json!("bounced"), &it.sent["thread_id"]));
    let id = items[0]["work_item_id"].as_str().unwrap();
    let done = json!({"fence": items[0]["lease"]["fence"]});
    it.server.api.post(&format!("/v1/work-items/{id}/complete"), done).await.ok();

    // The same news from another host: kept in the thread, and nobody is called again.
    it.report(&it.taken.from, &dsn(&it.taken.from, "second", "5.1.1")).await;
    it.server.message("ada@agents.example", "Undelivered second").await;
    assert!(it.claim().await.is_empty());
    assert_eq!(it.events("message.bounced", 1).await.len(), 1);
    // Nothing of this was answered.
    assert_eq!(it.sink.taken().len(), 1);
    // One call undoes it.
    let path = "/v1/suppressions/bob@remote.example";
    assert_eq!(it.server.api.ask("DELETE", path, &[], None).await.unwrap().status, 204);
    it.server.api.post(SEND, json!({"to": "bob@remote.example", "subject": "Again", "text": "t"})).await.ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_mailbox_is_told_and_not_suppressed() {
    let it = sent(TestServer::new(), json!({})).await;
    it.report(&it.taken.from, &dsn(&it.taken.from, "full", "5.2.2")).await;
    let bounced = it.events("message.bounced", 1).await.remove(0);
    assert_eq!(bounced["bounce"]["class"], "mailbox_full", "{bounced}");
    assert!(it.suppressed().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_complaint_to_the_operator_is_known_by_the_return_path_that_it_quotes_on_sqlite() {
    complained(TestServer::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_complaint_to_the_operator_is_known_by_the_return_path_that_it_quotes_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    complained(TestServer::new().on(&database)).await;
}

async fn complained(setup: Setup) {
    let it = sent(setup, json!({})).await;
    let head = String::from_utf8_lossy(&it.taken.message).into_owned();
    // Whoever saw the Message-ID may say anything: this one proves nothing, not even who says it.
    it.report("abuse@agents.example", &arf("abuse@agents.example", &head)).await;
    it.none_of("message.complained").await;
    assert!(it.suppressed().await.is_empty());
    let returned = format!("Return-Path: <{}>\r\n{head}", it.taken.from);
    let report = arf("abuse@agents.example", &returned).replace("<c@provider", "<d@provider");
    it.report("abuse@agents.example", &report).await;
    let complained = it.events("message.complained", 1).await.remove(0);
    let complaint = &complained["complaint"];
    assert_eq!(complaint["recipients"], json!(["bob@remote.example"]), "{complained}");
    assert_eq!((&complaint["type"], &complaint["message_id"]), (&json!("abuse"), &it.sent["message_id"]));
    assert_eq!(it.suppressed().await, [("bob@remote.example".to_owned(), "complaint".to_owned())]);
    let refused = json!({"to": "bob@remote.example", "subject": "Again", "text": "t"});
    it.server.api.post(SEND, refused).await.refused(403, "message_rejected");
    let rejected = it.events("message.rejected", 1).await.remove(0);
    for name in ["inbox_id", "thread_id", "message_id", "timestamp", "reason"] {
        assert!(rejected["reject"][name].is_string(), "{name}: {rejected}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_click_unsubscribes_and_a_look_does_not_on_sqlite() {
    one_click(TestServer::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_click_unsubscribes_and_a_look_does_not_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    one_click(TestServer::new().on(&database)).await;
}

async fn one_click(setup: Setup) {
    let it = sent(setup, json!({"bulk": true})).await;
    let field = it.taken.header("List-Unsubscribe").expect("List-Unsubscribe");
    assert_eq!(it.taken.header("List-Unsubscribe-Post").as_deref(), Some("List-Unsubscribe=One-Click"));
    // RFC 8058 §4: both are signed.
    let signature = it.taken.header("DKIM-Signature").unwrap().to_lowercase();
    for name in ["list-unsubscribe", "list-unsubscribe-post"] {
        assert!(signature.split([':', '=', ';', ' ']).any(|n| n.trim() == name), "{name} in {signature}");
    }
    let link = field.split(['<', '>']).nth(1).unwrap();
    let path = link.strip_prefix("https://mail.agents.example").expect("an https link under public_url");
    let open = it.server.api.with_key("");
    let page = open.get(path).await;
    assert_eq!(page.status, 200);
    assert!(page.body.to_string().contains("method=\\\"post\\\""), "{}", page.body);
    assert!(it.suppressed().await.is_empty(), "a scanner that follows every link unsubscribes nobody");
    let form = ("application/x-www-form-urlencoded", b"List-Unsubscribe=One-Click".to_vec());
    let last = path.len() - 1;
    let forged = format!("{}{}", &path[..last], if path.ends_with('0') { "4" } else { "0" });
    let refused = open.ask_bytes("POST", &forged, &[], Some(form.clone())).await.unwrap();
    assert_eq!(refused.status, 404);
    assert!(it.suppressed().await.is_empty());
    for _ in 0..2 {
        assert_eq!(open.ask_bytes("POST", path, &[], Some(form.clone())).await.unwrap().status, 200);
    }
    assert_eq!(it.suppressed().await, [("bob@remote.example".to_owned(), "unsubscribe".to_owned())]);
    let added = it.events("suppression.added", 1).await;
    assert_eq!((added.len(), &added[0]["data"]["reason"]), (1, &json!("unsubscribe")), "{added:?}");
    it.server
        .api
        .post(SEND, json!({"to": "bob@remote.example", "text": "t"}))
        .await
        .refused(403, "message_rejected");
    let two = json!({"to": ["a@remote.example", "b@remote.example"], "text": "t", "bulk": true});
    assert_eq!(it.server.api.post(SEND, two).await.status, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_to_the_address_in_list_unsubscribe_unsubscribes() {
    let it = sent(TestServer::new(), json!({"bulk": true})).await;
    let field = it.taken.header("List-Unsubscribe").unwrap();
    let to = field.split("<mailto:").nth(1).and_then(|rest| rest.split('?').next()).unwrap().to_owned();
    let mail = format!("From: bob@remote.example\r\nTo: {to}\r\nSubject: unsubscribe\r\n\r\n\r\n");
    it.server.receive("bob@remote.example", &to, mail.as_bytes()).await;
    assert_eq!(it.events("suppression.added", 1).await[0]["data"]["reason"], "unsubscribe");
    assert_eq!(it.suppressed().await, [("bob@remote.example".to_owned(), "unsubscribe".to_owned())]);
    assert!(it.claim().await.is_empty(), "it is nobody's work");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bounce_that_is_faster_than_our_note_of_the_250_counts_on_sqlite() {
    overtaken(TestServer::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bounce_that_is_faster_than_our_note_of_the_250_counts_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    overtaken(TestServer::new().on(&database)).await;
}

/// The remote's bounce is here while its 250 is still on the way. Not believed, it would leave a message that looks
/// delivered.
async fn overtaken(setup: Setup) {
    let go_on = Arc::new(Notify::new());
    let waits = go_on.clone();
    let remote = Scripted::start(move |at, _| match at {
        "DOT" => Act::Await(waits.clone()),
        _ => Act::Well,
    })
    .await;
    let zone =
        format!("remote.example MX 10 mx.remote.example\nmx.remote.example A {}\n", remote.address.ip());
    let dns = Dns::start(&zone).await;
    let server = setup.inbox("ada").dns(&dns).start().await;
    let sent =
        server.api.post(SEND, json!({"to": "bob@remote.example", "subject": "s", "text": "t"})).await.ok();
    let from = eventually("the message is there", async || {
        let heard = String::from_utf8_lossy(&remote.heard()).into_owned();
        let from = heard.split("MAIL FROM:<").nth(1)?.split('>').next()?.to_owned();
        heard.ends_with("\r\n.\r\n").then_some(from)
    })
    .await;
    server.receive("", &from, dsn(&from, "fast", "5.1.1").as_bytes()).await;
    go_on.notify_one();
    let id = crate::world::api::path_escape(sent["message_id"].as_str().unwrap());
    let path = format!("/v1/inboxes/ada@agents.example/messages/{id}/deliveries");
    let row = eventually("both are written", async || {
        let row = server.api.get(&path).await.ok()["deliveries"][0].clone();
        row["log"][0]["outcome"].is_string().then_some(row)
    })
    .await;
    assert_eq!((&row["state"], &row["class"]), (&json!("failed"), &json!("hard")), "{row}");
    assert_eq!(row["log"][0]["outcome"], "delivered", "what it said is kept: {row}");
    let events = server.api.get("/v1/events?event_types=message.bounced&limit=10").await.ok();
    assert_eq!(events["count"], 1, "{events}");
}

/// Everybody at a message's other domains sees its recipients: a report by one return path is about one domain's alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_reports_for_a_recipient_at_another_domain() {
    let sink = Sink::start().await;
    let zone = format!("{}{}", sink.zone("remote.example"), sink.zone("hostile.example"));
    let dns = Dns::start(&zone).await;
    let server = TestServer::new().inbox("ada").dns(&dns).start().await;
    let to = json!(["bob@remote.example", "eve@hostile.example"]);
    let sent = server.api.post(SEND, json!({"to": to, "subject": "Offer", "text": "t"})).await.ok();
    let both = eventually("both have it", async || Some(sink.taken()).filter(|all| all.len() == 2)).await;
    let path_of = |name: &str| {
        let mail = both.iter().find(|mail| mail.to[0].starts_with(name)).unwrap();
        (mail.from.clone(), mail.clone())
    };
    let ((eves, taken), (bobs, _)) = (path_of("eve"), path_of("bob"));
    let it = Sent { server, sink, sent, taken, _dns: dns };
    it.events("message.delivered", 2).await;
    it.report(&eves, &dsn(&eves, "forged", "5.1.1")).await;
    it.server.message("ada@agents.example", "Undelivered forged").await;
    it.none_of("message.bounced").await;
    let quoted = format!("Return-Path: <{eves}>\r\n{}", String::from_utf8_lossy(&it.taken.message));
    let complaint = arf("abuse@agents.example", &quoted);
    it.report("abuse@agents.example", &complaint).await;
    it.server.message("postmaster@agents.example", "complaint").await;
    it.none_of("message.complained").await;
    assert!(it.suppressed().await.is_empty());
    it.report(&bobs, &dsn(&bobs, "true", "5.1.1")).await;
    let bounced = it.events("message.bounced", 1).await.remove(0);
    assert_eq!(bounced["bounce"]["recipients"][0]["address"], "bob@remote.example");
    assert_eq!(it.suppressed().await, [("bob@remote.example".to_owned(), "bounce".to_owned())]);
}

/// Two mailboxes of one provider have the same return path: one of them cannot end the other's message before it was
/// taken, nor have the other's address suppressed after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_shares_a_return_path_ends_nobody_elses_message() {
    let sink = Sink::start().await;
    let dns = Dns::start(&sink.zone("remote.example")).await;
    sink.refuse("bob@remote.example", "451 4.7.1 come back later");
    let server = TestServer::new().inbox("ada").dns(&dns).start().await;
    let to = json!(["bob@remote.example", "eve@remote.example"]);
    let sent = server.api.post(SEND, json!({"to": to, "subject": "Offer", "text": "t"})).await.ok();
    let taken = eventually("Eve has it", async || sink.taken().pop()).await;
    let it = Sent { server, sink, sent, taken, _dns: dns };
    it.events("message.delivered", 1).await;
    let eves = it.taken.from.clone();
    let quoted = format!("Return-Path: <{eves}>\r\n{}", String::from_utf8_lossy(&it.taken.message));
    let complaint =
        |id: &str| arf("abuse@agents.example", &quoted).replace("<c@provider", &format!("<{id}@provider"));
    for n in 0..4 {
        // While it is under way the report is put off, and else it is nobody's.
        let mut smtp = it.server.dial().await;
        let id = format!("forged{n}");
        let reply = smtp.deliver("", &[&eves], dsn(&eves, &id, "5.1.1").as_bytes()).await.unwrap();
        assert!([250, 451].contains(&reply.code), "{reply:?}");
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
    it.report("abuse@agents.example", &complaint("early")).await;
    it.sink.accept("bob@remote.example");
    it.events("message.delivered", 2).await;
    it.none_of("message.bounced").await;
    it.report(&eves, &dsn(&eves, "late", "5.1.1")).await;
    it.events("message.bounced", 1).await;
    it.report("abuse@agents.example", &complaint("after")).await;
    it.server.message("postmaster@agents.example", "complaint").await;
    assert!(it.suppressed().await.is_empty(), "nobody is suppressed by a word that may be another's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sent_what_is_late_is_told_once_on_sqlite() {
    late(TestServer::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sent_what_is_late_is_told_once_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    late(TestServer::new().on(&database)).await;
}

/// After `relay.delay_notice` (four hours) the agent finds a notification beside its message, and its work wakes.
async fn late(setup: Setup) {
    let sink = Sink::start().await;
    let dns = Dns::start(&sink.zone("remote.example")).await;
    sink.refuse("bob@remote.example", "451 4.7.1 come back later");
    let setup = setup.inbox("ada").dns(&dns).env("GATEPOST_RELAY__DELAY_NOTICE", "2s");
    let server = setup.start().await;
    let sent = server
        .api
        .post(SEND, json!({"to": "bob@remote.example", "subject": "Offer", "text": "t"}))
        .await
        .ok();
    let it = Sent { server, sink, sent, taken: Taken::default(), _dns: dns };
    let delayed = it.events("delivery.delayed", 1).await.remove(0);
    assert_eq!(delayed["data"]["status"], "4.7.1", "{delayed}");
    let notice = it.server.message("ada@agents.example", "Delayed: Offer").await;
    assert_eq!(notice["thread_id"], it.sent["thread_id"], "{notice}");
    let text = notice["text"].as_str().unwrap();
    assert!(text.contains("come back later") && text.contains("tried again until"), "{text}");
    let items = it.claim().await;
    assert_eq!(items.len(), 1, "{items:?}");
    assert_eq!((&items[0]["reason"], &items[0]["thread_id"]), (&json!("delayed"), &it.sent["thread_id"]));
    // It goes on being tried, and nobody is told again.
    let tries = it.events("delivery.deferred", 1).await.len();
    it.events("delivery.deferred", tries + 2).await;
    it.sink.accept("bob@remote.example");
    it.events("message.delivered", 1).await;
    assert_eq!(it.events("delivery.delayed", 1).await.len(), 1);
    let all = it.server.api.all("/v0/inboxes/ada@agents.example/messages", "messages").await;
    assert_eq!(all.len(), 2, "the message and one notification: {all:?}");
    assert!(it.suppressed().await.is_empty());
}
