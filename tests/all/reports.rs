//! Reports that others send about our domains: read, shown with who sent them, and no work for anybody.

use std::io::Write;
use std::process::Command;

use serde_json::{Value, json};

use crate::world::{
    dns::Dns,
    postgres::Database,
    server::{ADMIN_KEY, Setup, TestServer},
};

const REPORTS: &str = "dmarc-reports@agents.example";
const WORK: &str = "/v1/work-items?inbox_id=postmaster%40agents.example";

fn aggregate(org: &str, count: u32) -> Vec<u8> {
    aggregate_about("agents.example", org, count)
}

fn aggregate_about(domain: &str, org: &str, count: u32) -> Vec<u8> {
    let xml = format!(
        "<?xml version=\"1.0\"?><feedback><report_metadata><org_name>{org}</org_name><email>r@reporter.example</email>\
         <report_id>day-1</report_id><date_range><begin>1700000000</begin><end>1700086399</end></date_range>\
         </report_metadata><policy_published><domain>{domain}</domain><p>reject</p></policy_published>\
         <record><row><source_ip>192.0.2.7</source_ip><count>{count}</count><policy_evaluated>\
         <disposition>reject</disposition><dkim>fail</dkim><spf>fail</spf></policy_evaluated></row><identifiers>\
         <header_from>agents.example</header_from></identifiers><auth_results><spf><domain>evil.example</domain>\
         <result>pass</result></spf></auth_results></record></feedback>"
    );
    gzip(xml.as_bytes())
}

const TLS: &str = r#"{"organization-name": "Reporter", "date-range": {"start-datetime": "2026-11-20T00:00:00Z",
    "end-datetime": "2026-11-20T23:59:59Z"}, "contact-info": "tls@reporter.example", "report-id": "tls-1",
    "policies": [{"policy": {"policy-type": "sts", "policy-domain": "agents.example", "mx-host": ["mx.agents.example"]},
    "summary": {"total-successful-session-count": 40, "total-failure-session-count": 2}, "failure-details": [
    {"result-type": "certificate-expired", "failed-session-count": 2, "sending-mta-ip": "192.0.2.9"}]}]}"#;

fn gzip(octets: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(octets).unwrap();
    packed.finish().unwrap()
}

fn letter(from: &str, id: &str, kind: &str, name: &str, packed: &[u8]) -> Vec<u8> {
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD.encode(packed);
    let lines: Vec<&str> = encoded.as_bytes().chunks(76).map(|l| std::str::from_utf8(l).unwrap()).collect();
    format!(
        "From: {from}\r\nTo: {REPORTS}\r\nSubject: Report Domain: agents.example {id}\r\nMessage-ID: <{id}@x>\r\n\
         MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\n\
         A report.\r\n--b\r\nContent-Type: {kind}\r\nContent-Disposition: attachment; filename=\"{name}\"\r\n\
         Content-Transfer-Encoding: base64\r\n\r\n{}\r\n--b--\r\n",
        lines.join("\r\n")
    )
    .into_bytes()
}

async fn listed(server: &TestServer, query: &str) -> Vec<Value> {
    server.api.get(&format!("/v1/reports{query}")).await.ok()["reports"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_are_read_shown_with_their_sender_and_make_no_work_on_sqlite() {
    read_and_shown(TestServer::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_are_read_shown_with_their_sender_and_make_no_work_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    read_and_shown(TestServer::new().on(&database)).await;
}

async fn read_and_shown(setup: Setup) {
    let dns = Dns::start(
        "reporter.example TXT v=spf1 ip4:127.0.0.1 -all\n_dmarc.reporter.example TXT v=DMARC1; p=none\n\
         other.example A 127.0.0.9\n",
    )
    .await;
    let server = setup.inbox("ada").dns(&dns).start().await;
    let (honest, forger) = ("r@reporter.example", "r@other.example");
    // The forged one comes first: it must not stand in the place of the true one, sent later and twice.
    let forged = letter(forger, "forged", "application/gzip", "r.xml.gz", &aggregate("Reporter", 1));
    server.receive(forger, REPORTS, &forged).await;
    for id in ["true-1", "true-2"] {
        let sent = letter(honest, id, "application/gzip", "r.xml.gz", &aggregate("Reporter", 9));
        server.receive(honest, REPORTS, &sent).await;
    }
    let tls = letter(honest, "tls", "application/tlsrpt+gzip", "r.json.gz", &gzip(TLS.as_bytes()));
    server.receive(honest, "tls-reports+x@agents.example", &tls).await;
    // To an agent, the same is mail.
    let mail = letter(honest, "to-ada", "application/gzip", "r.xml.gz", &aggregate("Mail", 1));
    server.receive(honest, "ada@agents.example", &mail).await;
    server.kill9();
    server.restart().await;

    let all = listed(&server, "").await;
    let said = |r: &Value| (r["kind"].clone(), r["verified_sender"].clone(), r["total"].clone());
    assert_eq!(
        all.iter().map(said).collect::<Vec<_>>(),
        [
            (json!("tls"), json!(honest), json!(42)),
            (json!("dmarc"), json!(honest), json!(9)),
            (json!("dmarc"), Value::Null, json!(1)),
        ]
    );
    assert_eq!(listed(&server, "?kind=dmarc&domain=agents.example").await, all[1..]);
    assert!(listed(&server, "?domain=agents.exampl").await.is_empty());
    let id = all[1]["report_id"].as_str().unwrap();
    let shown = server.api.get(&format!("/v1/reports/{id}")).await.ok();
    let row = &shown["content"]["rows"][0];
    assert_eq!(
        (&row["source_ip"], &row["count"], &row["spf"]),
        (&json!("192.0.2.7"), &json!(9), &json!("fail"))
    );
    let id = all[0]["report_id"].as_str().unwrap();
    let shown = server.api.get(&format!("/v1/reports/{id}")).await.ok();
    assert_eq!(
        shown["content"]["policies"][0]["details"][0]["result_type"], "certificate-expired",
        "{shown}"
    );

    let message = server.message("postmaster@agents.example", "Report Domain: agents.example true-1").await;
    assert!(message["labels"].as_array().unwrap().contains(&json!("report")), "{}", message["labels"]);
    assert_eq!(server.api.get(WORK).await.ok()["count"], 0, "nobody has to look at a report");
    let claimed = server.api.post("/v1/work-items/claim", json!({})).await.ok();
    assert_eq!(claimed["count"], 1, "what an agent gets is its to read: {claimed}");
    let agent = server.inbox_key("ada@agents.example").await;
    agent.get("/v1/reports").await.refused(403, "forbidden");
    agent.get(&format!("/v1/reports/{id}")).await.refused(403, "forbidden");

    let said = Command::new(env!("CARGO_BIN_EXE_gatepost"))
        .args(["report", "list", "--kind", "dmarc", "--url", server.api.base(), "--key", ADMIN_KEY])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert_eq!(said.lines().count(), 3, "{said}");
    assert!(said.contains(honest), "{said}");
}

/// Anybody can write to the report address. What is about others' domains, or from whom a policy keeps out, is mail and
/// stored once; what is for people as well is shown to them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_report_of_ours_is_mail_for_the_operator() {
    let dns = Dns::start(
        "reporter.example TXT v=spf1 ip4:127.0.0.1 -all\n_dmarc.reporter.example TXT v=DMARC1; p=none\n\
         forged.example TXT v=spf1 -all\n_dmarc.forged.example TXT v=DMARC1; p=quarantine\n",
    )
    .await;
    let server = TestServer::new().inbox("ada").dns(&dns).start().await;
    let honest = "r@reporter.example";
    let report = |from: &str, id: &str, about: &str| {
        letter(from, id, "application/gzip", "r.xml.gz", &aggregate_about(about, id, 3))
    };
    server.receive(honest, REPORTS, &report(honest, "others", "victim.example")).await;
    server.receive(honest, REPORTS, &report(honest, "near", "notagents.example")).await;
    let forged = "r@forged.example";
    server.receive(forged, REPORTS, &report(forged, "held", "agents.example")).await;
    let mut smtp = server.dial().await;
    let both = [REPORTS, "abuse@agents.example"];
    let reply = smtp.deliver(honest, &both, &report(honest, "both", "agents.example")).await.unwrap();
    assert_eq!(reply.code, 250, "{reply:?}");
    assert_eq!(listed(&server, "").await, Vec::<Value>::new());
    assert_eq!(server.api.get(WORK).await.ok()["count"], 4);
    server.receive(honest, REPORTS, &report(honest, "below", "sub.agents.example")).await;
    assert_eq!(listed(&server, "").await.len(), 1);
}

/// A report of a few KiB that unpacks to gigabytes: it is kept as mail for the operator, in bounded memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn report_bomb() {
    let server = TestServer::new().inbox("ada").start().await;
    let spaces = gzip(&vec![b' '; 64 * 1024 * 1024]);
    let bomb: Vec<u8> = std::iter::repeat_n(spaces, 16).flatten().collect();
    let peak = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    };
    let before = peak();
    for name in ["r.xml.gz", "r.json.gz"] {
        let letter = letter("r@reporter.example", name, "application/gzip", name, &bomb);
        server.receive("r@reporter.example", REPORTS, &letter).await;
    }
    assert!(peak() < before + 150, "{before} MiB before, {} MiB at the peak", peak());
    assert!(listed(&server, "").await.is_empty());
    assert_eq!(server.api.get(WORK).await.ok()["count"], 2, "the operator sees what could not be read");
}
