use std::net::IpAddr;

use proptest::prelude::*;

use super::super::verdict::{ArcChain, Dmarc, DmarcPolicy, Method, Spf};
use super::*;

const HOST: &str = "mx.agents.example";

fn envelope(recipients: &[&str]) -> Envelope {
    Envelope {
        peer: Peer {
            ip: IpAddr::from([192, 0, 2, 7]),
            helo: "mail.sender.example".into(),
            extended: true,
            tls: Some("TLSv1.3 TLS13_AES_256_GCM_SHA384".into()),
        },
        mail_from: Some("eve@sender.example".parse().unwrap()),
        recipients: recipients.iter().map(|r| r.parse().unwrap()).collect(),
        smtputf8: false,
        dsn: None,
        require_tls: false,
    }
}

fn verdict() -> Verdict {
    Verdict {
        source: Source::Smtp,
        spf: Spf {
            result: AuthResult::Pass,
            domain: "sender.example".into(),
            detail: None,
            explanation: None,
        },
        dkim: vec![Dkim {
            result: AuthResult::Fail,
            domain: "sender.example".into(),
            selector: "s\"1\r\nX: y".into(),
            algorithm: "rsa-sha256".into(),
            detail: Some("body hash did not verify".into()),
        }],
        dmarc: Dmarc {
            result: AuthResult::Pass,
            policy: DmarcPolicy::Reject,
            detail: None,
            ..Dmarc::none("sender.example".into())
        },
        arc: ArcChain { result: AuthResult::None, detail: None, chain: Vec::new() },
        iprev: Method { result: AuthResult::Pass, detail: Some("mail.sender.example".into()) },
        verified_sender: None,
    }
}

fn stamped(raw: &[u8]) -> Vec<u8> {
    stamp(HOST, &envelope(&["ada@agents.example"]), "01abc", 1_795_230_245_678, &verdict(), raw)
}

fn results_of(message: &[u8]) -> Vec<String> {
    fields::header(message)
        .all("Authentication-Results")
        .map(|field| String::from_utf8_lossy(field.value).into_owned())
        .collect()
}

#[test]
fn the_stamp_reads_like_a_stamp() {
    let text = String::from_utf8(stamped(b"Subject: hi\r\n\r\nbody\r\n")).unwrap();
    let expected = "Return-Path: <eve@sender.example>\r\n\
        Received: from mail.sender.example (mail.sender.example [192.0.2.7])\r\n\
        \tby mx.agents.example (Gatepost) with ESMTPS\r\n\
        \t(TLSv1.3 TLS13_AES_256_GCM_SHA384) id 01abc\r\n\
        \tfor <ada@agents.example>; Sat, 21 Nov 2026 03:04:05 +0000\r\n\
        Authentication-Results: mx.agents.example;\r\n\
        \tspf=pass smtp.mailfrom=sender.example;\r\n\
        \tdkim=fail reason=\"body hash did not verify\" header.d=sender.example\r\n\
        \theader.s=\"s'1??X: y\" header.a=rsa-sha256;\r\n\
        \tdmarc=pass header.from=sender.example policy.dmarc=reject;\r\n\
        \tiprev=pass policy.iprev=192.0.2.7\r\n\
        Subject: hi\r\n\r\nbody\r\n";
    assert_eq!(text, expected);
}

#[test]
fn several_recipients_do_not_learn_of_each_other() {
    let envelope = envelope(&["ada@agents.example", "bob@agents.example"]);
    let text = stamp(HOST, &envelope, "1", 0, &verdict(), b"\r\n");
    let text = String::from_utf8(text).unwrap();
    assert!(!text.contains("agents.example>"), "{text}");
    assert!(text.contains("id 1\r\n\t; Thu") || text.contains("id 1;"), "{text}");
}

#[test]
fn a_greeting_cannot_write_into_the_header() {
    let mut envelope = envelope(&["ada@agents.example"]);
    for helo in ["a\r\nX-Evil: 1", "a) (b", "", "ü.example", "[192.0.2.7]", &"x".repeat(2000)] {
        envelope.peer.helo = helo.into();
        let out = stamp(HOST, &envelope, "id", 0, &verdict(), b"\r\n");
        let header = fields::header(&out);
        let names: Vec<_> = header.fields.iter().map(|field| field.name).collect();
        assert_eq!(names, [&b"Return-Path"[..], b"Received", b"Authentication-Results"], "{helo:?}");
        assert!(out.split(|octet| *octet == b'\n').all(|line| line.len() < 500));
    }
}

/// RFC 8601 §5: whoever reads our name in such a field believes it.
#[test]
fn forged_results_with_our_name_do_not_survive() {
    for forged in [
        "mx.agents.example; dkim=pass",
        "MX.Agents.Example; dkim=pass",
        "mx.agents.example 1; dkim=pass",
        "mx.agents.example.; dkim=pass",
        "(hi (there)) mx.agents.example (c); dkim=pass",
        "\"mx.agents.example\"; dkim=pass",
        "\"mx\\.agents.example\"; dkim=pass",
        "\r\n\tmx.agents.example\r\n ; dkim=pass",
        "mx.agents.example",
        "mx.agents.example/1; dkim=pass",
        "mx.(x)agents.example; dkim=pass",
        "=?utf-8?Q?mx=2Eagents.example?=; dkim=pass",
        "\u{feff}mx.agents.example; dkim=pass",
        "ｍx.agents.example; dkim=pass",
    ] {
        for name in ["Authentication-Results", "authentication-results", "AUTHENTICATION-RESULTS \t"] {
            let raw = format!("A: b\r\n{name}: {forged}\r\nFrom: eve@sender.example\r\n\r\nbody");
            let out = stamped(raw.as_bytes());
            let left = results_of(&out);
            assert_eq!(left.len(), 1, "{forged:?} survived: {left:?}");
            assert!(left[0].contains("spf=pass"), "ours stands");
            assert!(out.ends_with(b"A: b\r\nFrom: eve@sender.example\r\n\r\nbody"));
        }
    }
}

#[test]
fn results_of_others_stay_byte_for_byte() {
    let raw = b"Authentication-Results: mx.agents.example.evil.test; dkim=pass\r\n\
        Authentication-Results: other.example;\r\n mx.agents.example\r\n\
        X: mx.agents.example\r\n\r\nAuthentication-Results: mx.agents.example; in=body\r\n";
    assert!(stamped(raw).ends_with(raw));
}

#[test]
fn a_forgery_beyond_the_limits_of_a_header_is_found_too() {
    let raw = format!(
        "{}Authentication-Results: {HOST}; dkim=pass\r\n\r\n",
        "A: b\r\n".repeat(fields::MAX_FIELDS * 2)
    );
    let out = String::from_utf8(stamped(raw.as_bytes())).unwrap();
    assert!(!out.contains("dkim=pass"));
}

/// Without the empty line, the first line of the body would be read as part of our own field.
#[test]
fn a_body_without_a_header_is_not_read_into_ours() {
    for raw in [&b" ; dmarc=pass\r\n\r\nx"[..], b"hello world\r\n\r\nmore"] {
        let out = stamped(raw);
        assert!(out.ends_with(raw));
        let header = fields::header(&out);
        assert_eq!(header.fields.len(), 3);
        assert_eq!(&out[header.body_at..], raw);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn one_result_field_names_us_whatever_came(
        before in "[\\x00-\\x7f]{0,40}",
        name in "(?i:authentication-results)[ \t]{0,2}",
        dress in "[ \t(]{0,4}\"?",
        tail in "[\"; .)\r\n\t=a-z]{0,20}",
    ) {
        let raw = format!("A: b\r\n{name}:{dress}{HOST}{tail}\r\nB: c\r\n{before}\r\n\r\nbody");
        let out = stamped(raw.as_bytes());
        let ours = results_of(&out).iter().filter(|v| v.trim_start().starts_with(HOST)).filter(|value| {
            let rest = &value.trim_start()[HOST.len()..];
            !rest.starts_with(|c: char| c.is_alphanumeric()) && !rest.starts_with('.')
        }).count();
        prop_assert_eq!(ours, 1);
    }

    #[test]
    fn whatever_the_message_the_stamp_is_three_fields(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
        let out = stamped(&raw);
        let header = fields::header(&out);
        prop_assert!(header.fields.len() >= 3);
        prop_assert!(header.fields[0].is("Return-Path") && header.fields[2].is("Authentication-Results"));
        prop_assert!(header.fields[2].value.ends_with(b"policy.iprev=192.0.2.7\r\n"));
    }
}
