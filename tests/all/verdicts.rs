//! What Gatepost knows of a sender, seen from outside: messages that were signed by another program (dkimpy, see
//! tests/data/verdicts/make.py) come in by SMTP, and the API says what they are worth.

use serde_json::{Value, json};

use crate::world::{
    dns::Dns,
    mail,
    postgres::Database,
    server::{Setup, TestServer},
};

const ADA: &str = "ada@agents.example";

/// The five that the field knows best: signed, altered on the way, signed by somebody else, with a second author for
/// the eyes of the reader, and from a domain whose DNS answers nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signed_altered_misaligned_two_from_and_dns_dead_are_told_apart_on_sqlite() {
    five_messages_five_verdicts(TestServer::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signed_altered_misaligned_two_from_and_dns_dead_are_told_apart_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    five_messages_five_verdicts(TestServer::new().on(&database)).await;
}

async fn five_messages_five_verdicts(setup: Setup) {
    let dns = Dns::start(include_str!("../data/verdicts/zone.txt")).await;
    let server = setup.inbox("ada").dns(&dns).start().await;
    let cases: [(&str, &[u8], &str, &str, Value); 5] = [
        ("signed", include_bytes!("../data/verdicts/signed.eml"), "pass", "pass", json!("news@shop.example")),
        ("altered", include_bytes!("../data/verdicts/altered.eml"), "fail", "fail", Value::Null),
        ("misaligned", include_bytes!("../data/verdicts/misaligned.eml"), "fail", "pass", Value::Null),
        ("two-from", include_bytes!("../data/verdicts/two-from.eml"), "fail", "pass", Value::Null),
        ("dns-dead", include_bytes!("../data/verdicts/dns-dead.eml"), "temperror", "temperror", Value::Null),
    ];
    for (name, message, dmarc, dkim, sender) in cases {
        server.receive("bounces@carrier.example", ADA, message).await;
        let seen = server.message(ADA, name).await;
        let verdict = &seen["verdict"];
        assert_eq!(verdict["dmarc"]["result"], dmarc, "{name}: {verdict}");
        assert_eq!(verdict["dkim"][0]["result"], dkim, "{name}: {verdict}");
        assert_eq!(verdict["source"], "smtp", "{name}: {verdict}");
        let believed = verdict["verified_sender"].clone();
        assert_eq!(believed, sender, "{name}: {verdict}");
        // Unverified mail is ordinary mail: it is handed out like any other (DESIGN §6).
        let claim = json!({"limit": 10, "lease_seconds": 5});
        let work = server.api.post("/v1/work-items/claim", claim).await.ok();
        assert_eq!(work["count"], 1, "{name}: {work}");
        let (id, fence) =
            (work["work_items"][0]["work_item_id"].as_str(), &work["work_items"][0]["lease"]["fence"]);
        server
            .api
            .post(&format!("/v1/work-items/{}/complete", id.unwrap()), json!({"fence": fence}))
            .await
            .ok();
    }
    assert!(server.alive());
}

/// The author domain's own policy is followed: `p=reject` is a 550 and nothing is kept, `p=quarantine` is kept with the
/// label `spam`, and makes no open work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgery_meets_the_policy_of_the_domain_that_it_abuses() {
    let dns = Dns::start(
        "bank.example A 127.0.0.9\n_dmarc.bank.example TXT v=DMARC1; p=reject\n\
         soft.example A 127.0.0.9\n_dmarc.soft.example TXT v=DMARC1; p=quarantine\n",
    )
    .await;
    let server = TestServer::new().inbox("ada").dns(&dns).start().await;
    let forged = mail::letter("ceo@bank.example", ADA, "Wire it", "w@bank.example", "", "now");
    let reply = server.dial().await.deliver("ceo@bank.example", &[ADA], &forged).await.unwrap();
    assert_eq!(reply.code, 550, "{reply:?}");
    assert!(reply.text.contains("5.7."), "an enhanced code says why: {reply:?}");

    let suspect = mail::letter("cfo@soft.example", ADA, "Maybe", "m@soft.example", "", "now");
    server.receive("cfo@soft.example", ADA, &suspect).await;
    let seen = server.message(ADA, "Maybe").await;
    assert!(seen["labels"].as_array().unwrap().contains(&json!("spam")), "{}", seen["labels"]);
    assert_eq!(
        server.api.get("/v0/inboxes/ada@agents.example/messages").await.ok()["count"],
        0,
        "spam is not listed"
    );
    assert_eq!(
        server.api.post("/v1/work-items/claim", json!({})).await.ok()["count"],
        0,
        "and makes no open work"
    );
}

/// RFC 8601 §5: a header that claims to be ours is a forgery and goes; one of another host stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_authentication_results_header_with_our_name_is_removed() {
    let server = TestServer::new().inbox("ada").start().await;
    let forged = "Authentication-Results: mx.agents.example; dmarc=pass header.from=bank.example\r\n\
                  Authentication-Results: mx.elsewhere.example; spf=pass\r\n";
    let letter = mail::letter("ceo@bank.example", ADA, "Trust me", "t@bank.example", forged, "really");
    server.receive("ceo@bank.example", ADA, &letter).await;
    let seen = server.message(ADA, "Trust me").await;
    let raw = server.raw(ADA, seen["message_id"].as_str().unwrap()).await;
    let results =
        mail::headers(&raw).into_iter().filter(|(n, _)| n.eq_ignore_ascii_case("Authentication-Results"));
    let results = results.map(|(_, value)| value).collect::<Vec<_>>();
    assert_eq!(results.len(), 2, "{results:?}");
    assert!(results[0].starts_with("mx.agents.example") && !results[0].contains("dmarc=pass"), "{results:?}");
    assert!(results[1].starts_with("mx.elsewhere.example"), "{results:?}");
}

/// A list changes a message whose author asks for `p=reject`, and seals (dkimpy's ARC) what it saw before. The message
/// is let in where the operator has named the list, and its author is still nobody who is known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_seal_of_a_named_list_lets_its_mail_in_and_verifies_nobody() {
    let dns = Dns::start(include_str!("../data/verdicts/zone.txt")).await;
    let message = include_bytes!("../data/verdicts/list.eml");
    let server = TestServer::new().inbox("ada").dns(&dns).start().await;
    let reply = server.dial().await.deliver("list-bounces@lists.example", &[ADA], message).await.unwrap();
    assert_eq!(reply.code, 550, "{reply:?}");

    let named = "[verify]\narc_forwarders = [\"lists.example\"]\n";
    let server = TestServer::new().inbox("ada").dns(&dns).config(named).start().await;
    server.receive("list-bounces@lists.example", ADA, message).await;
    let verdict = server.message(ADA, "list").await["verdict"].clone();
    assert_eq!(verdict["arc"]["result"], "pass", "{verdict}");
    assert_eq!(verdict["arc"]["chain"][0]["sealer"], "lists.example", "{verdict}");
    assert_eq!(verdict["dmarc"]["result"], "fail", "{verdict}");
    assert_eq!(verdict["dmarc"]["policy"], "none", "{verdict}");
    assert_eq!(verdict["dmarc"]["overridden"]["by"], "lists.example", "{verdict}");
    assert_eq!(verdict["dmarc"]["overridden"]["policy"], "reject", "{verdict}");
    assert_eq!(verdict["verified_sender"], Value::Null, "{verdict}");
}
