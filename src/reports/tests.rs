use std::io::Write;

use super::*;
use crate::screen::corpora_tests::corpora;

const XML: &str = r#"<?xml version="1.0"?><feedback><report_metadata><org_name>Reporter</org_name>
<email>r@reporter.example</email><report_id>one</report_id><date_range><begin>1700000000</begin><end>1700086400</end>
</date_range></report_metadata><policy_published><domain>Agents.example.</domain><p>reject</p></policy_published>
ROWS</feedback>"#;
const ROW: &str = "<record><row><source_ip>192.0.2.1</source_ip><count>2</count><policy_evaluated>\
<disposition>reject</disposition><dkim>fail</dkim><spf>fail</spf></policy_evaluated></row><identifiers>\
<header_from>agents.example</header_from></identifiers><auth_results><spf><domain>x.example</domain>\
<result>softfail</result></spf></auth_results></record>";

fn gzip(octets: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(octets).unwrap();
    packed.finish().unwrap()
}

/// A zip of one entry, whose header says `method` and `size`.
fn zip(method: u16, size: u32, data: &[u8]) -> Vec<u8> {
    let mut out = b"PK\x03\x04\x14\0\0\0".to_vec();
    out.extend(method.to_le_bytes());
    out.extend([0; 8]);
    out.extend(size.to_le_bytes());
    out.extend([0; 4]);
    out.extend([5, 0, 0, 0]);
    out.extend(b"r.xml");
    out.extend(data);
    out
}

fn deflate(octets: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(octets).unwrap();
    packed.finish().unwrap()
}

fn content(report: &Report) -> Value {
    serde_json::from_str(&report.content).unwrap()
}

fn opened(packed: &[u8]) -> Result<Report, ReportError> {
    parse(&unpack::unpack(packed)?)
}

#[test]
fn a_report_is_the_same_however_it_is_packed() {
    let xml = XML.replace("ROWS", ROW);
    let plain = opened(xml.as_bytes()).unwrap();
    assert_eq!(plain.domains, ["agents.example"]);
    assert_eq!((plain.total, plain.failed, plain.begins_at), (2, 2, 1_700_000_000_000));
    let row = &content(&plain)["rows"][0];
    assert_eq!((&row["source_ip"], &row["disposition"]), (&"192.0.2.1".into(), &"reject".into()));
    assert_eq!(row["auth_results"]["spf"][0]["result"], "softfail");
    let packed = deflate(xml.as_bytes());
    let size = u32::try_from(xml.len()).unwrap();
    for packed in [gzip(xml.as_bytes()), zip(8, 0, &packed), zip(8, 7, &packed), zip(0, size, xml.as_bytes())]
    {
        assert_eq!(opened(&packed).as_ref(), Ok(&plain));
    }
}

/// A few KiB that unpack to gigabytes, in every form that a report takes; and XML that would unfold by itself.
#[test]
fn report_bomb() {
    let zeros = vec![b' '; MAX + 1];
    const MAX: usize = crate::config::limits::MAX_REPORT;
    let bombs = [
        gzip(&zeros),
        gzip(&zeros[..4 * 1024 * 1024]),
        zip(8, 10, &deflate(&zeros)),
        zip(0, u32::MAX, b"x"),
        [gzip(&zeros[..500_000]), gzip(&zeros[..500_000]), gzip(&zeros[..500_000])].concat(),
    ];
    for (index, bomb) in bombs.iter().enumerate() {
        assert!(bomb.len() < 100_000);
        let answer = opened(bomb);
        assert!(
            matches!(answer, Err(ReportError::Unpack(UnpackError::Bomb | UnpackError::TooLarge))),
            "bomb {index}: {answer:?}"
        );
    }
    let laughs = XML
        .replace("<feedback>", "<!DOCTYPE f [<!ENTITY a \"ha\"><!ENTITY b \"&a;&a;&a;\">]><feedback>")
        .replace("Reporter", "&b;&b;");
    assert!(opened(laughs.as_bytes()).is_ok_and(|r| r.org.len() < 20) || opened(laughs.as_bytes()).is_err());
    let outside = XML
        .replace("<feedback>", "<!DOCTYPE f [<!ENTITY a SYSTEM \"file:///etc/passwd\">]><feedback>")
        .replace("Reporter", "&a;");
    assert!(!format!("{:?}", opened(outside.as_bytes())).contains("root:"));
    let many = XML.replace("ROWS", &"<record/>".repeat(1_000_001));
    assert_eq!(
        opened(many.as_bytes()),
        Err(ReportError::TooMany(crate::config::limits::MAX_REPORT_ELEMENTS))
    );
    let deep = XML.replace("ROWS", &format!("<record>{}", "<row>".repeat(900_000)));
    let _ = opened(deep.as_bytes());
    let nested = format!("{{\"policies\":{}", "[".repeat(1_000_000));
    assert!(opened(nested.as_bytes()).is_err());
}

#[test]
fn many_rows_are_counted_and_some_are_kept() {
    let report = opened(XML.replace("ROWS", &ROW.repeat(6_000)).as_bytes()).unwrap();
    assert_eq!((report.total, report.failed), (12_000, 12_000));
    let content = content(&report);
    let kept = content["rows"].as_array().unwrap().len();
    assert!((600..5_000).contains(&kept), "{kept}");
    assert_eq!(content["rows_left_out"], 6_000 - kept);
}

/// A few KiB of mail that would stand as megabytes of JSON in the database, for as long as reports are kept.
#[test]
fn what_is_kept_of_a_report_is_bounded() {
    let long = "\u{1F4A9}\\".repeat(150);
    let result = format!("<dkim><domain>{long}</domain><selector>{long}</selector></dkim>");
    let row = ROW.replace("<spf><domain>", &format!("{}<spf><domain>", result.repeat(8)));
    let policy = format!(
        r#"{{"policy":{{"policy-domain":"agents.example","mx-host":[{}]}},"failure-details":[{}]}}"#,
        vec![format!("{:?}", "m".repeat(200)); 50].join(","),
        vec![format!(r#"{{"failure-reason-code":{:?}}}"#, "r".repeat(300)); 200].join(","),
    );
    let reports = [
        XML.replace("ROWS", &row.repeat(500)),
        format!(r#"{{"policies":[{}]}}"#, vec![policy; 40].join(",")),
    ];
    for report in reports {
        let report = parse(report.as_bytes()).unwrap();
        let most = crate::config::limits::MAX_REPORT_CONTENT;
        assert!((most / 2..=most).contains(&report.content.len()), "{}", report.content.len());
        let content = content(&report);
        let left_out = content.get("rows_left_out").or_else(|| content.get("policies_left_out"));
        assert!(left_out.unwrap().as_u64().unwrap() > 0);
    }
}

/// Large messages that wait for the one reader stand in memory, or in the spool, once.
#[tokio::test]
async fn who_waits_for_the_reader_shares_the_message() {
    let raw: Arc<Octets> = Arc::new(b"Subject: x\r\n\r\n".to_vec().into());
    let structure = screen::structure(&raw);
    let busy = READING.acquire().await.unwrap();
    let waits = read_in_time(&raw, &structure, "x");
    let mut waits = std::pin::pin!(waits);
    assert!(futures_util::poll!(&mut waits).is_pending());
    assert_eq!(Arc::strong_count(&raw), 1);
    drop(busy);
    assert_eq!(waits.await, None);
}

#[test]
fn nonsense_is_no_report() {
    for octets in [
        &b""[..],
        b"{",
        b"{}",
        b"<",
        b"<html></html>",
        b"\x1f\x8b",
        b"PK\x03\x04",
        b"PK\x03\x04\0\0",
        b"%PDF",
    ] {
        assert!(opened(octets).is_err(), "{octets:?}");
    }
    let odd =
        br#"{"organization-name":7,"policies":[{"policy":{"policy-domain":"A.example,b","policy-string":"x"},
        "summary":{"total-successful-session-count":"many","total-failure-session-count":-3},
        "failure-details":[{"receiving-ip":"","failed-session-count":2,"result-type":"new\u0000thing"}]}]}"#;
    let odd = opened(odd).unwrap();
    assert_eq!((odd.domains[0].as_str(), odd.total), ("a.exampleb", 0));
    assert_eq!(content(&odd)["policies"][0]["details"][0]["result_type"], "newthing");
}

#[test]
fn the_reports_of_the_corpora_are_read() {
    let Some(folder) = corpora("DMARC and TLS reports") else { return };
    let folder = folder.join("auth/reports");
    let file = |name: &str| {
        let raw = std::fs::read(folder.join(name)).unwrap();
        let read = if name.ends_with(".eml") { read(&raw, &screen::structure(&raw)) } else { parse(&raw) };
        let report = read.unwrap_or_else(|e| panic!("{name}: {e}"));
        (report.org, report.domains.join(" "), report.total, report.failed)
    };
    let said = |org: &str, domain: &str, total, failed| (org.to_owned(), domain.to_owned(), total, failed);
    assert_eq!(file("dmarc-feedback/002.xml"), said("google.com", "example.org", 2, 0));
    assert_eq!(file("dmarc-feedback/005.xml"), said("Legacy Reporter", "example.com", 1, 0));
    assert_eq!(file("dmarc-feedback/104.eml"), said("AMAZON-SES", "stalw.art", 1, 1));
    assert_eq!(file("tlsrpt/rpt01.eml"), said("Company-X", "company-y.example", 5_629, 303));
}
