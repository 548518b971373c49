//! REQUIRETLS on the way out (RFC 8689): a message that demands it goes to hosts that are vouched for, prove themselves
//! and pass the demand on, or comes back with the reason. It never goes in clear.

use serde_json::{Value, json};

use crate::{
    dane::secured,
    trust::{deferred, send, taken},
    world::{
        api::path_escape,
        dns::Dns,
        eventually,
        server::TestServer,
        trusted::{Authority, MailHost, PolicyHost},
    },
};

const INBOX: &str = "/v0/inboxes/ada@agents.example/messages";

/// Domains with a policy, each with the hosts of its name.
const DOMAINS: [&str; 5] = ["keeps", "drops", "clear", "pair", "untrusted"];

async fn send_secret(server: &TestServer, to: &str) {
    let body = json!({"to": to, "subject": to, "text": "a secret", "require_tls": true});
    server.api.post(&format!("{INBOX}/send"), body).await.ok();
}

/// The event of the bounce, which must have these words; and the bounce itself, without the secret.
async fn bounced(server: &TestServer, to: &str, words: &str) {
    eventually(&format!("mail to {to} bounces with {words:?}"), async || {
        let events = server.api.get("/v1/events?event_types=message.bounced&limit=1000").await.ok();
        let fits = |event: &&Value| {
            let text = event.to_string();
            text.contains(to) && text.contains("5.7.30")
        };
        events["events"].as_array()?.iter().find(fits).map(|_| ())
    })
    .await;
    let bounce = server.message("ada@agents.example", &format!("Undelivered: {to}")).await;
    let text = bounce["text"].as_str().expect("text");
    assert!(text.contains(words) && text.contains("5.7.30"), "{text}");
    let raw = server.raw("ada@agents.example", bounce["message_id"].as_str().unwrap()).await;
    // RFC 8689 §5: as if RET=HDRS.
    assert!(!String::from_utf8_lossy(&raw).contains("a secret"), "the bounce repeats the text");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_must_stay_in_tls_does_or_comes_back() {
    let authority = Authority::new();
    let names = DOMAINS.iter().flat_map(|d| [format!("mx.{d}.example"), format!("mx2.{d}.example")]);
    let shown = authority.sign_all(names.collect());
    let keeps = MailHost::start(Some(&shown)).await;
    keeps.keep_tls();
    let drops = MailHost::start(Some(&shown)).await;
    let clear = MailHost::start(None).await;
    let untrusted = MailHost::start(Some(&Authority::new().sign("mx.untrusted.example"))).await;
    untrusted.keep_tls();
    let mut policy = "version: STSv1\nmode: testing\nmax_age: 86400\n".to_owned();
    let hosts = [&keeps, &drops, &clear, &drops, &untrusted];
    let web_names = DOMAINS.iter().map(|d| format!("mta-sts.{d}.example")).collect();
    let web = PolicyHost::start(&authority.sign_all(web_names), "").await;
    let dns = Dns::start("").await;
    for (domain, host) in DOMAINS.iter().zip(hosts) {
        policy.push_str(&format!("mx: mx.{domain}.example\nmx: mx2.{domain}.example\n"));
        dns.add(&format!(
            "{domain}.example MX 10 mx.{domain}.example\nmx.{domain}.example A {}\nmta-sts.{domain}.example A {}\n\
             _mta-sts.{domain}.example TXT v=STSv1; id=1;\n",
            host.address.ip(),
            web.address.ip()
        ));
    }
    web.serve(&policy);
    dns.add(&format!("pair.example MX 20 mx2.pair.example\nmx2.pair.example A {}\n", keeps.address.ip()));
    // Nobody vouches for the MX of the first; DNSSEC does for that of the second.
    for domain in ["stranger", "signed"] {
        dns.add(&format!("{domain}.example MX 10 mx.keeps.example\n"));
    }
    dns.add("signed.example SECURE\n");
    let folder = tempfile::tempdir().unwrap();
    let roots = folder.path().join("roots.pem");
    std::fs::write(&roots, &authority.pem).unwrap();
    let server = TestServer::new()
        .inbox("ada")
        .dns(&dns)
        .env("GATEPOST_RELAY__STS_PORT", "8443")
        .env("GATEPOST_RELAY__EXTRA_ROOTS", &roots.display().to_string())
        .env("GATEPOST_RELAY__DANE", "trust_ad")
        .start()
        .await;

    for domain in ["keeps", "drops", "clear", "pair", "untrusted", "stranger", "signed"] {
        send_secret(&server, &format!("bob@{domain}.example")).await;
    }
    for (domain, by) in [("keeps", "MTA-STS"), ("pair", "MTA-STS"), ("signed", "DNSSEC and an authority")] {
        let to = format!("bob@{domain}.example");
        assert_eq!(taken(&keeps, &to).await, [true], "{to}");
        let mail = keeps.mail_command(&to).unwrap();
        assert!(mail.ends_with(" REQUIRETLS"), "{mail}");
        let how = secured(&server, &to).await;
        assert!(how.ends_with(&format!(", verified by {by}")), "{to}: {how}");
    }
    bounced(&server, "bob@drops.example", "mx.drops.example does not promise to keep the message in TLS")
        .await;
    bounced(&server, "bob@clear.example", "mx.clear.example does not promise to keep the message in TLS")
        .await;
    bounced(&server, "bob@stranger.example", "does not say by DNSSEC or by an MTA-STS policy").await;
    deferred(&server, "bob@untrusted.example", "4.7.5").await;
    for host in [&drops, &clear, &untrusted] {
        for domain in DOMAINS {
            assert!(host.taken(&format!("bob@{domain}.example")).is_empty(), "{domain}: it was sent");
        }
    }
    // Others go where they went, and say nothing of it.
    for (host, to) in
        [(&keeps, "eve@keeps.example"), (&drops, "eve@drops.example"), (&clear, "eve@clear.example")]
    {
        send(&server, to).await;
        taken(host, to).await;
        assert!(!host.mail_command(to).unwrap().contains("REQUIRETLS"));
    }
}

/// RFC 8689 §5: what answers a message that came under the demand goes under it, unless its sender knows better.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_keeps_the_demand_of_what_it_answers() {
    let dns = Dns::start("away.example SERVFAIL").await;
    let server = TestServer::new().inbox("ada").dns(&dns).start().await;
    let mut smtp = server.dial().await;
    smtp.expect("EHLO mx.keeps.example", 250).await;
    let mut smtp = smtp.starttls().await;
    smtp.expect("EHLO mx.keeps.example", 250).await;
    smtp.expect("MAIL FROM:<eve@keeps.example> REQUIRETLS", 250).await;
    smtp.expect("RCPT TO:<ada@agents.example>", 250).await;
    smtp.expect("DATA", 354).await;
    smtp.expect("From: eve@keeps.example\r\nTo: ada@agents.example\r\nSubject: secret\r\n\r\nHi\r\n.", 250)
        .await;
    let message = server.message("ada@agents.example", "secret").await;
    let id = path_escape(message["message_id"].as_str().unwrap());
    let reply = format!("{INBOX}/{id}/reply");
    let no_header: &[(&str, &str)] = &[];
    let cases = [
        ("kept", json!({}), no_header, "required"),
        ("waived", json!({"require_tls": false}), no_header, "usual"),
        ("waived-by-header", json!({}), &[("Gatepost-Require-TLS", "false")], "usual"),
        ("optional", json!({"require_tls": false, "headers": {"TLS-Required": "No"}}), no_header, "optional"),
        // RFC 8689 §4.1: the field does not count beside the demand.
        ("both", json!({"headers": {"TLS-Required": "No"}}), no_header, "required"),
    ];
    for (name, body, headers, tls) in cases {
        let to = format!("{name}@away.example");
        let mut body = body;
        (body["text"], body["to"]) = ("Hi".into(), json!([to]));
        server.api.ask("POST", &reply, headers, Some(body)).await.unwrap().ok();
        let rows = server.api.all("/v1/queue?inbox_id=ada@agents.example", "deliveries").await;
        let row = rows.iter().find(|row| row["recipient"] == to.as_str()).expect("a delivery");
        assert_eq!(row["tls"], tls, "{name}");
    }
    let body = json!({"to": "x@away.example", "text": "t"});
    let misspelt = [("Gatepost-Require-TLS", "yes")];
    let refused = server.api.ask("POST", &format!("{INBOX}/send"), &misspelt, Some(body)).await.unwrap();
    assert_eq!(refused.status, 400, "{}", refused.body);
}

/// A smarthost is the next hop: it has to prove itself and to pass the demand on, as an MX host would.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_smarthost_keeps_it_in_tls_or_does_not_get_it() {
    let authority = Authority::new();
    let keeps = MailHost::start(Some(&authority.sign("keeps.smart.example"))).await;
    keeps.keep_tls();
    let drops = MailHost::start(Some(&authority.sign("drops.smart.example"))).await;
    let untrusted = MailHost::start(Some(&Authority::new().sign("untrusted.smart.example"))).await;
    untrusted.keep_tls();
    let dns = Dns::start("").await;
    let mut routes = String::new();
    for (name, host) in [("keeps", &keeps), ("drops", &drops), ("untrusted", &untrusted)] {
        dns.add(&format!("{name}.smart.example A {}\n", host.address.ip()));
        routes.push_str(&format!(
            "[[relay.route]]\ndomains = [\"{name}.example\"]\nsmarthost = \"smtp://{name}.smart.example:2526\"\n"
        ));
    }
    let folder = tempfile::tempdir().unwrap();
    let roots = folder.path().join("roots.pem");
    std::fs::write(&roots, &authority.pem).unwrap();
    let server = TestServer::new()
        .inbox("ada")
        .dns(&dns)
        .config(&routes)
        .env("GATEPOST_RELAY__EXTRA_ROOTS", &roots.display().to_string())
        .start()
        .await;
    for name in ["keeps", "drops", "untrusted"] {
        send_secret(&server, &format!("bob@{name}.example")).await;
    }
    assert_eq!(taken(&keeps, "bob@keeps.example").await, [true]);
    assert!(keeps.mail_command("bob@keeps.example").unwrap().ends_with(" REQUIRETLS"));
    bounced(&server, "bob@drops.example", "drops.smart.example does not promise to keep the message in TLS")
        .await;
    deferred(&server, "bob@untrusted.example", "4.7.5").await;
    // What does not demand it may go to whoever is there, and still not what does.
    send(&server, "eve@untrusted.example").await;
    assert_eq!(taken(&untrusted, "eve@untrusted.example").await, [true]);
    assert!(untrusted.taken("bob@untrusted.example").is_empty());
}
