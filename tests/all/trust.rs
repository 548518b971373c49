//! Trust on the way out: what MTA-STS, DANE and the last time demand of a host, and what becomes of mail where it is
//! not met. Real sockets, certificates of an authority of our own, a DNS server that says what is signed.

use std::fmt::Write as _;

use gatepost::clock::Clock;
use gatepost::config::DatabaseUrl;
use gatepost::store::tls_result::{self, PolicyType, ResultType, TlsResult};
use gatepost::store::{Store, StoreError};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::world::{
    dns::Dns,
    eventually,
    postgres::Database,
    server::{Setup, TestServer},
    trusted::{Authority, MailHost, PolicyHost, document},
};

const SEND: &str = "/v0/inboxes/ada@agents.example/messages/send";
/// No further setting.
const NOTHING: (&str, &str) = ("GATEPOST_RELAY__DANE", "off");
const ENFORCE: &str = "version: STSv1\nmode: enforce\nmx: mx.remote.example\nmax_age: 86400\n";
const TESTING: &str = "version: STSv1\nmode: testing\nmx: other.remote.example\nmax_age: 86400\n";

/// The remote's zone: one MX, and where its policy is.
fn zone(mail: &MailHost, web: &PolicyHost) -> String {
    format!(
        "remote.example MX 10 mx.remote.example\nmx.remote.example A {}\nmta-sts.remote.example A {}\n",
        mail.address.ip(),
        web.address.ip()
    )
}

async fn serve(
    dns: &Dns,
    authority: &Authority,
    more: (&str, &str),
    setup: Setup,
) -> (TestServer, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let roots = folder.path().join("roots.pem");
    std::fs::write(&roots, &authority.pem).unwrap();
    let setup = setup
        .env("GATEPOST_RELAY__STS_PORT", "8443")
        .env("GATEPOST_RELAY__EXTRA_ROOTS", &roots.display().to_string())
        .env(more.0, more.1);
    (setup.inbox("ada").dns(dns).start().await, folder)
}

pub(crate) async fn send(server: &TestServer, to: &str) {
    server.api.post(SEND, json!({"to": to, "subject": "s", "text": "t"})).await.ok();
}

/// A deferral of mail to this recipient, with these words.
pub(crate) async fn deferred(server: &TestServer, to: &str, words: &str) {
    eventually(&format!("mail to {to} is deferred with {words:?}"), async || {
        let events = server.api.get("/v1/events?event_types=delivery.deferred&limit=1000").await.ok();
        let seen = |event: &&serde_json::Value| {
            let text = event.to_string();
            text.contains(to) && text.contains(words)
        };
        events["events"].as_array()?.iter().find(seen).map(|_| ())
    })
    .await;
}

pub(crate) async fn taken(mail: &MailHost, to: &str) -> Vec<bool> {
    eventually(&format!("mail for {to}"), async || Some(mail.taken(to)).filter(|all| !all.is_empty())).await
}

/// The results that were written, as `policy result`.
async fn recorded(server: &TestServer, wanted: &str) {
    recorded_of(server, "remote.example", wanted).await;
}

pub(crate) async fn recorded_of(server: &TestServer, domain: &str, wanted: &str) {
    eventually(&format!("a TLS result {wanted:?} of {domain}"), async || {
        let connection = rusqlite::Connection::open(server.dir.join("data/gatepost.db")).unwrap();
        let sql =
            "SELECT 1 FROM tls_result WHERE policy_domain = ?1 AND policy_type || ' ' || result_type = ?2";
        connection.query_row(sql, [domain, wanted], |_| Ok(())).ok()
    })
    .await;
}

/// RFC 8461 §5: enforce wants a listed host with a good certificate; what is not so waits, and nothing goes in clear.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mta_sts_enforced_is_met_or_mail_waits_on_sqlite() {
    enforced(TestServer::new(), true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mta_sts_enforced_is_met_or_mail_waits_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    enforced(TestServer::new().on(&database), false).await;
}

async fn enforced(setup: Setup, sqlite: bool) {
    let authority = Authority::new();
    let good = authority.sign("mx.remote.example");
    let mail = MailHost::start(Some(&good)).await;
    let web = PolicyHost::start(&authority.sign("mta-sts.remote.example"), ENFORCE).await;
    let dns = Dns::start(&zone(&mail, &web)).await;
    dns.add("_mta-sts.remote.example TXT v=STSv1; id=1;");
    let (server, _folder) = serve(&dns, &authority, NOTHING, setup).await;
    send(&server, "good@remote.example").await;
    assert_eq!(taken(&mail, "good@remote.example").await, [true]);

    mail.show(Some(&authority.sign("mx.elsewhere.example")));
    send(&server, "name@remote.example").await;
    deferred(&server, "name@remote.example", "4.7.5").await;
    mail.show(Some(&authority.sign_until("mx.remote.example", 2020)));
    send(&server, "expired@remote.example").await;
    deferred(&server, "expired@remote.example", "4.7.5").await;
    mail.show(None);
    send(&server, "clear@remote.example").await;
    deferred(&server, "clear@remote.example", "4.7.10").await;
    // RFC 8689 §4: whom a message is more urgent to than its secrecy says so.
    let urgent = json!({
        "to": "urgent@remote.example", "subject": "s", "text": "t", "headers": {"TLS-Required": "No"}
    });
    server.api.post(SEND, urgent).await.ok();
    assert_eq!(taken(&mail, "urgent@remote.example").await, [false]);
    for to in ["name@remote.example", "expired@remote.example", "clear@remote.example"] {
        assert!(mail.taken(to).is_empty(), "{to}");
    }
    // Mended: what waited arrives.
    mail.show(Some(&good));
    assert_eq!(taken(&mail, "clear@remote.example").await, [true]);
    if sqlite {
        for result in
            ["success", "certificate-host-mismatch", "certificate-expired", "starttls-not-supported"]
        {
            recorded(&server, &format!("sts {result}")).await;
        }
    }
}

/// RFC 8461 §5: testing fails nothing, and is counted. A policy that does not name the host, enforced, holds mail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn testing_delivers_and_counts_and_a_host_that_is_not_named_waits() {
    let authority = Authority::new();
    let mail = MailHost::start(Some(&Authority::new().sign("mx.remote.example"))).await;
    let web = PolicyHost::start(&authority.sign("mta-sts.remote.example"), TESTING).await;
    let dns = Dns::start(&zone(&mail, &web)).await;
    dns.add("_mta-sts.remote.example TXT v=STSv1; id=1;");
    let (server, _folder) = serve(&dns, &authority, NOTHING, TestServer::new()).await;
    send(&server, "testing@remote.example").await;
    assert_eq!(taken(&mail, "testing@remote.example").await, [true]);
    recorded(&server, "sts certificate-not-trusted").await;
    recorded(&server, "sts validation-failure").await;

    // Another id: the new policy is fetched.
    web.serve(&TESTING.replace("testing", "enforce"));
    dns.remove("_mta-sts.remote.example");
    dns.add("_mta-sts.remote.example TXT v=STSv1; id=2;");
    eventually("the new policy holds", async || {
        // Names may be cached for a second.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        send(&server, "unnamed@remote.example").await;
        let events = server.api.get("/v1/events?event_types=delivery.deferred&limit=1000").await.ok();
        events.to_string().contains("does not name its host").then_some(())
    })
    .await;
}

/// RFC 8461 §3.3, §5.1: without a policy that can be fetched mail goes as if there were none; a kept one holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_cannot_be_fetched_does_not_stop_mail_and_a_kept_one_holds() {
    let authority = Authority::new();
    let mail = MailHost::start(None).await;
    let web = PolicyHost::start(&authority.sign("mta-sts.remote.example"), "").await;
    let dns = Dns::start(&zone(&mail, &web)).await;
    dns.add("_mta-sts.remote.example TXT v=STSv1; id=1;");
    let (server, _folder) = serve(&dns, &authority, NOTHING, TestServer::new()).await;
    send(&server, "first@remote.example").await;
    assert_eq!(taken(&mail, "first@remote.example").await, [false]);
    recorded(&server, "sts sts-policy-fetch-error").await;

    web.serve(ENFORCE);
    dns.remove("_mta-sts.remote.example");
    dns.add("_mta-sts.remote.example TXT v=STSv1; id=2;");
    eventually("the policy holds", async || {
        // Names may be cached for a second.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        send(&server, "second@remote.example").await;
        let events = server.api.get("/v1/events?event_types=delivery.deferred&limit=1000").await.ok();
        events.to_string().contains("4.7.10").then_some(())
    })
    .await;
    // The policy's host and its record are gone, and so is the process that knew it: the kept one still holds.
    web.serve("");
    dns.remove("_mta-sts.remote.example");
    server.stop().await;
    server.restart().await;
    send(&server, "third@remote.example").await;
    deferred(&server, "third@remote.example", "4.7.10").await;
    assert!(mail.taken("third@remote.example").is_empty());
}

/// RFC 8461 §3.2, §3.3: what is served under a redirect, under another type or status, beyond 64 KiB or in another
/// version is no policy, and one of mode none asks for nothing. The host offers no TLS, so a policy holds mail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_policy_holds_no_mail() {
    let authority = Authority::new();
    let mail = MailHost::start(None).await;
    let enforce =
        |more: &str| format!("version: STSv1\nmode: enforce\nmx: *.example\nmax_age: 86400\n{more}");
    let elsewhere = "HTTP/1.1 302 Found\r\nLocation: https://mta-sts.redirect.example:8443/elsewhere\r\n\
                     Content-Length: 0\r\nConnection: close\r\n\r\n";
    let plain = |text: &str| document("text/plain", text);
    let cases = [
        ("redirect", elsewhere.to_owned(), "sts sts-policy-fetch-error"),
        ("html", document("text/html", &enforce("")), "sts sts-policy-fetch-error"),
        ("created", plain(&enforce("")).replace("200 OK", "201 Created"), "sts sts-policy-fetch-error"),
        ("large", plain(&enforce(&"x: y\n".repeat(14_000))), "sts sts-policy-fetch-error"),
        ("version", plain(&enforce("").replace("STSv1", "STSv2")), "sts sts-policy-invalid"),
        (
            "none",
            plain("version: STSv1\nmode: none\nmax_age: 86400\n"),
            "no-policy-found starttls-not-supported",
        ),
        ("enforced", plain(&enforce("")), "sts starttls-not-supported"),
    ];
    let dns = Dns::start("").await;
    let mut webs = Vec::new();
    for (name, answer, _) in &cases {
        let web = PolicyHost::start(&authority.sign(&format!("mta-sts.{name}.example")), "").await;
        web.answer(answer);
        dns.add(&format!(
            "{name}.example MX 10 mx-{name}.example\nmx-{name}.example A {}\nmta-sts.{name}.example A {}\n\
             _mta-sts.{name}.example TXT v=STSv1; id=1;\n",
            mail.address.ip(),
            web.address.ip()
        ));
        webs.push(web);
    }
    let (server, _folder) = serve(&dns, &authority, NOTHING, TestServer::new()).await;
    for ((name, _, result), web) in cases.iter().zip(&webs) {
        let to = format!("bob@{name}.example");
        send(&server, &to).await;
        if *name == "enforced" {
            deferred(&server, &to, "4.7.10").await;
            assert!(mail.taken(&to).is_empty());
        } else {
            assert_eq!(taken(&mail, &to).await, [false], "{to}");
        }
        recorded_of(&server, &format!("{name}.example"), result).await;
        let asked = web.asked();
        assert!(
            !asked.is_empty() && asked.iter().all(|path| path == "/.well-known/mta-sts.txt"),
            "{asked:?}"
        );
    }
    // While its record's id is the same, a policy that is kept is not fetched again.
    let web = webs.last().unwrap();
    web.serve("version: STSv1\nmode: none\nmax_age: 86400\n");
    send(&server, "eve@enforced.example").await;
    deferred(&server, "eve@enforced.example", "4.7.10").await;
    assert_eq!(web.asked().len(), 1);
}

/// RFC 8461 §3.3, §5.1: a policy holds to the end of its max_age, and no longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_has_expired_and_is_gone_holds_no_longer() {
    let authority = Authority::new();
    let mail = MailHost::start(None).await;
    let web = PolicyHost::start(&authority.sign("mta-sts.remote.example"), "").await;
    web.serve(&ENFORCE.replace("86400", "6"));
    let dns = Dns::start(&zone(&mail, &web)).await;
    dns.add("_mta-sts.remote.example TXT v=STSv1; id=1;");
    let (server, _folder) = serve(&dns, &authority, NOTHING, TestServer::new()).await;
    send(&server, "bob@remote.example").await;
    deferred(&server, "bob@remote.example", "4.7.10").await;
    web.serve("");
    assert!(mail.taken("bob@remote.example").is_empty());
    assert_eq!(taken(&mail, "bob@remote.example").await, [false]);
    recorded(&server, "sts sts-policy-fetch-error").await;
}

/// What we ask others to believe is looked at as they would: fetched, its certificate checked, its hosts read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_own_policy_is_fetched_and_read_as_others_do() {
    let authority = Authority::new();
    let good = "version: STSv1\nmode: testing\nmx: mx.agents.example\nmax_age: 86400\n";
    let web = PolicyHost::start(&authority.sign("mta-sts.agents.example"), good).await;
    let stranger = PolicyHost::start(&Authority::new().sign("mta-sts.agents.example"), good).await;
    let dns = Dns::start("").await;
    let host = "mta-sts.agents.example";
    dns.add(&format!("{host} A {}\nmx.agents.example A 127.0.0.9\n", web.address.ip()));
    let (server, _folder) = serve(&dns, &authority, NOTHING, TestServer::new()).await;
    let state = async || {
        let dns = server.api.get("/v1/domains/agents.example/dns").await.ok();
        let records = dns["records"].as_array().unwrap().clone();
        let record =
            records.into_iter().find(|record| record["purpose"] == "mta_sts_host").expect("the record");
        (record["state"].as_str().unwrap().to_owned(), record["fix"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(state().await, ("ok".to_owned(), String::new()));
    for (text, words) in [
        (good.replace("mx.agents", "mx.elsewhere"), "does not name this server"),
        ("hello".to_owned(), "is no policy"),
        // It is not ours, and nothing is to be had there.
        (String::new(), "another host"),
    ] {
        web.serve(&text);
        let (state, fix) = state().await;
        assert!(state == "wrong" && fix.contains(words), "{state}: {fix}");
    }
    // Ours, and not to be had from here.
    dns.remove("mx.agents.example");
    dns.add(&format!("mx.agents.example A {}\n", web.address.ip()));
    let (seen, fix) = state().await;
    assert!(seen == "unknown" && fix.contains("404"), "{seen}: {fix}");
    dns.remove(host);
    dns.add(&format!("{host} A {}\n", stranger.address.ip()));
    let (seen, fix) = state().await;
    assert!(seen == "wrong" && fix.contains("certificate is not good"), "{seen}: {fix}");
}

/// A web host with a certificate that nobody vouches for cannot give its domain a policy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_behind_a_bad_certificate_is_none() {
    let authority = Authority::new();
    let mail = MailHost::start(None).await;
    let web = PolicyHost::start(&Authority::new().sign("mta-sts.remote.example"), ENFORCE).await;
    let dns = Dns::start(&zone(&mail, &web)).await;
    dns.add("_mta-sts.remote.example TXT v=STSv1; id=1;");
    let (server, _folder) = serve(&dns, &authority, NOTHING, TestServer::new()).await;
    send(&server, "bob@remote.example").await;
    assert_eq!(taken(&mail, "bob@remote.example").await, [false]);
    recorded(&server, "sts sts-webpki-invalid").await;
}

fn tlsa(usage: u8, certificate: &[u8]) -> String {
    let hex = Sha256::digest(certificate).iter().fold(String::new(), |mut text, octet| {
        let _ = write!(text, "{octet:02x}");
        text
    });
    format!("_2526._tcp.mx.remote.example TLSA {usage} 0 1 {hex}")
}

/// RFC 7672: a match is delivered, a mismatch and an answer that cannot be validated wait, an unsigned zone counts for
/// nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dane_matches_or_mail_waits() {
    let authority = Authority::new();
    let shown = authority.sign("mx.remote.example");
    let mail = MailHost::start(Some(&shown)).await;
    let web = PolicyHost::start(&authority.sign("mta-sts.remote.example"), "").await;
    let dns = Dns::start(&zone(&mail, &web)).await;
    // Unsigned: the record matches nothing, and nobody minds.
    dns.add(&tlsa(3, b"another certificate"));
    // Nobody but the records vouches for the host.
    let (server, _folder) =
        serve(&dns, &Authority::new(), ("GATEPOST_RELAY__DANE", "trust_ad"), TestServer::new()).await;
    send(&server, "unsigned@remote.example").await;
    assert_eq!(taken(&mail, "unsigned@remote.example").await, [true]);

    dns.add("remote.example SECURE");
    send(&server, "mismatch@remote.example").await;
    deferred(&server, "mismatch@remote.example", "4.7.5").await;
    assert!(mail.taken("mismatch@remote.example").is_empty());

    for (to, usage, certificate) in
        [("host@remote.example", 3, &shown.chain[0]), ("anchor@remote.example", 2, &authority.certificate)]
    {
        dns.remove("_2526._tcp.mx.remote.example");
        dns.add(&tlsa(usage, certificate));
        send(&server, to).await;
        assert_eq!(taken(&mail, to).await, [true]);
    }
    // The right anchor, for another name: only usage 2 minds the name.
    mail.show(Some(&authority.sign("mx.elsewhere.example")));
    send(&server, "name@remote.example").await;
    deferred(&server, "name@remote.example", "4.7.5").await;
    mail.show(None);
    send(&server, "clear@remote.example").await;
    deferred(&server, "clear@remote.example", "4.7.10").await;

    dns.add("_2526._tcp.mx.remote.example SERVFAIL");
    send(&server, "bogus@remote.example").await;
    deferred(&server, "bogus@remote.example", "cannot be validated").await;
    for result in ["success", "certificate-host-mismatch", "starttls-not-supported"] {
        recorded(&server, &format!("tlsa {result}")).await;
    }
    recorded(&server, "no-policy-found dnssec-invalid").await;
}

/// Somebody who cuts STARTTLS out of the dialogue gets nothing from a domain that had it; one that has it no more
/// gets its mail in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_that_disappears_is_waited_for_and_then_given_up_aloud() {
    let authority = Authority::new();
    let mail = MailHost::start(Some(&authority.sign("mx.remote.example"))).await;
    let web = PolicyHost::start(&authority.sign("mta-sts.remote.example"), "").await;
    let dns = Dns::start(&zone(&mail, &web)).await;
    let (server, _folder) =
        serve(&dns, &authority, ("GATEPOST_RELAY__DOWNGRADE_WAIT", "4s"), TestServer::new()).await;
    for nth in 0..3 {
        let to = format!("tls{nth}@remote.example");
        send(&server, &to).await;
        assert_eq!(taken(&mail, &to).await, [true]);
    }
    mail.show(None);
    send(&server, "later@remote.example").await;
    deferred(&server, "later@remote.example", "waiting for it to come back").await;
    assert_eq!(taken(&mail, "later@remote.example").await, [false]);
    let log = std::fs::read_to_string(server.log_file()).unwrap();
    assert!(log.contains("TLS did not come back in time"), "{log}");
    assert_eq!(weaker(&server).await, [("tls".to_owned(), "clear".to_owned())]);
}

/// What the operator was told of remote.example: how it took mail, and how it does now.
async fn weaker(server: &TestServer) -> Vec<(String, String)> {
    eventually("the operator is told", async || {
        let events = server.api.get("/v1/events?event_types=tls.weaker").await.ok();
        let told = |event: &serde_json::Value| {
            let said = &event["data"];
            assert_eq!(said["domain"], "remote.example", "{event}");
            (said["was"].as_str().unwrap().to_owned(), said["is"].as_str().unwrap().to_owned())
        };
        let all: Vec<_> = events["events"].as_array()?.iter().map(told).collect();
        (!all.is_empty()).then_some(all)
    })
    .await
}

/// Hosts that proved themselves and do so no more, since their domain asks for it no more: mail goes, and once the
/// operator is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_prove_themselves_no_more_are_told_of() {
    let authority = Authority::new();
    let shown = authority.sign("mx.remote.example");
    let mail = MailHost::start(Some(&shown)).await;
    let web = PolicyHost::start(&authority.sign("mta-sts.remote.example"), "").await;
    let dns = Dns::start(&zone(&mail, &web)).await;
    dns.add(&format!("remote.example SECURE\n{}\n", tlsa(3, &shown.chain[0])));
    let (server, _folder) =
        serve(&dns, &authority, ("GATEPOST_RELAY__DANE", "trust_ad"), TestServer::new()).await;
    for nth in 0..3 {
        let to = format!("verified{nth}@remote.example");
        send(&server, &to).await;
        assert_eq!(taken(&mail, &to).await, [true]);
    }
    // Written, before what comes next is counted with it.
    eventually("three verified deliveries are known", async || {
        let connection = rusqlite::Connection::open(server.dir.join("data/gatepost.db")).unwrap();
        let sql = "SELECT 1 FROM tls_seen WHERE domain = 'remote.example' AND verified = 3";
        connection.query_row(sql, [], |_| Ok(())).ok()
    })
    .await;
    dns.remove("_2526._tcp.mx.remote.example");
    for to in ["encrypted@remote.example", "again@remote.example"] {
        send(&server, to).await;
        assert_eq!(taken(&mail, to).await, [true]);
    }
    assert_eq!(weaker(&server).await, [("verified".to_owned(), "tls".to_owned())]);
}

/// Counts add up over batches, and a day is forgotten alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_results_of_a_day_add_up() {
    let folder = tempfile::tempdir().unwrap();
    add_up(DatabaseUrl::Sqlite(folder.path().join("gatepost.db"))).await;
    if let Some(database) = Database::postgres() {
        add_up(DatabaseUrl::Postgres(database.url().unwrap())).await;
    }
}

async fn add_up(url: DatabaseUrl) {
    let store = Store::open(&url, Clock::system()).await.unwrap();
    let result = |result, mx: &str| TlsResult {
        policy_domain: "remote.example".into(),
        policy_type: PolicyType::Sts,
        policy_strings: vec!["version: STSv1".into(), "mode: enforce".into()],
        policy_mx: vec!["*.remote.example".into()],
        result,
        receiving_mx: mx.into(),
        receiving_ip: "192.0.2.1".into(),
        sending_ip: "192.0.2.2".into(),
    };
    let good = result(ResultType::Success, "mx1.remote.example");
    let bad = result(ResultType::CertificateExpired, "mx2.remote.example");
    let batch = vec![(good.clone(), 3), (bad.clone(), 1)];
    for day in [20_000, 20_000, 20_001] {
        let batch = batch.clone();
        let refused: Result<u64, StoreError> = store
            .write(move |tx| {
                let batch = batch.clone();
                Box::pin(async move { tls_result::record(tx, day, &batch).await })
            })
            .await;
        assert_eq!(refused.unwrap(), 0);
    }
    let seen: Result<_, StoreError> = store
        .write(|tx| {
            Box::pin(async move {
                let domains = tls_result::domains(tx, 20_000, "", 10).await?;
                let all = tls_result::of_domain(tx, 20_000, "remote.example").await?;
                tls_result::forget_domain(tx, 20_000, "remote.example").await?;
                let gone = tls_result::of_domain(tx, 20_000, "remote.example").await?;
                Ok((domains, all, gone, tls_result::of_domain(tx, 20_001, "remote.example").await?))
            })
        })
        .await;
    let (domains, mut all, gone, next) = seen.unwrap();
    all.sort();
    let mut wanted = [(good, 6), (bad, 2)];
    wanted.sort();
    assert_eq!((domains, all.as_slice()), (vec!["remote.example".to_owned()], wanted.as_slice()));
    assert_eq!((gone.len(), next.len()), (0, 2));
    store.close().await;
}
