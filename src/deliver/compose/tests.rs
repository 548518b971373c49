use mail_parser::{MessageParser, MimeHeaders};
use proptest::prelude::*;

use super::*;

fn plain(subject: &str, text: &str) -> Composition {
    Composition {
        from: (Some("Ada".into()), "ada@agents.example".parse().unwrap()),
        to: vec![(None, "bob@remote.example".parse().unwrap())],
        cc: vec![],
        reply_to: vec![],
        subject: subject.into(),
        text: Some(text.into()),
        html: None,
        attachments: vec![],
        headers: vec![],
        message_id: "<1.abcdefgh@agents.example>".into(),
        date: 1_795_230_245_000,
        in_reply_to: None,
        references: vec![],
        auto_submitted: None,
    }
}

/// The names of the header fields of a raw message, read with nothing but RFC 5322 §2.2.
fn field_names(raw: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(raw);
    let (head, _) = text.split_once("\r\n\r\n").expect("a header and a body");
    head.split("\r\n")
        .filter(|line| !line.starts_with([' ', '\t']))
        .map(|line| line.split_once(':').expect("a field").0.to_owned())
        .collect()
}

fn assert_wire_safe(raw: &[u8]) {
    assert!(is_wire_safe(raw), "not 7-bit CRLF lines: {}", String::from_utf8_lossy(raw));
    assert!(raw.ends_with(b"\r\n"));
}

#[test]
fn a_reply_reads_like_mail() {
    let mut c = plain("Re: invoice", "Dear Bob,\n\nit is paid.\n");
    c.in_reply_to = Some("<q@remote.example>".into());
    c.references = vec!["<p@remote.example>".into(), "<q@remote.example>".into()];
    c.auto_submitted = Some(AutoSubmitted::Replied);
    c.headers = vec![
        (HeaderName::new("X-Run").unwrap(), HeaderValue::new("run 7").unwrap()),
        (HeaderName::new("Auto-Submitted").unwrap(), HeaderValue::new("no").unwrap()),
    ];
    assert_eq!(
        String::from_utf8(compose(&c)).unwrap(),
        "Date: Sat, 21 Nov 2026 03:04:05 +0000\r\n\
         From: \"Ada\" <ada@agents.example>\r\n\
         To: <bob@remote.example>\r\n\
         Subject: Re: invoice\r\n\
         Message-ID: <1.abcdefgh@agents.example>\r\n\
         In-Reply-To: <q@remote.example>\r\n\
         References: <p@remote.example> <q@remote.example>\r\n\
         Auto-Submitted: auto-replied\r\n\
         X-Run: run 7\r\n\
         MIME-Version: 1.0\r\n\
         Content-Type: text/plain; charset=\"utf-8\"\r\n\
         Content-Transfer-Encoding: 7bit\r\n\
         \r\n\
         Dear Bob,\r\n\r\nit is paid.\r\n"
    );
}

#[test]
fn a_subject_cannot_begin_a_second_field() {
    let mut c = plain("hello\r\nBcc: eve@x.example\r\n\r\n<script>", "x");
    c.from.0 = Some("Ada\r\nBcc: eve@x.example".into());
    c.message_id = "<a@b>\r\nBcc: eve@x.example".into();
    c.in_reply_to = Some("<a@b>\r\nBcc: <eve@x.example>".into());
    let raw = compose(&c);
    assert_wire_safe(&raw);
    // The broken ids are left out; what is a name or a subject is one line.
    let names =
        ["Date", "From", "To", "Subject", "MIME-Version", "Content-Type", "Content-Transfer-Encoding"];
    assert_eq!(field_names(&raw), names);
}

#[test]
fn a_long_thread_keeps_its_first_and_its_last_parents() {
    let mut c = plain("Re: x", "x");
    c.references = (0..5_000).map(|i| format!("<{i}@remote.example>")).collect();
    let raw = compose(&c);
    let parsed = MessageParser::new().parse(&raw).unwrap();
    let ids = parsed.references().as_text_list().unwrap();
    assert_eq!(ids.len(), 21);
    assert_eq!(
        (ids[0].as_ref(), ids[1].as_ref(), ids[20].as_ref()),
        ("0@remote.example", "4980@remote.example", "4999@remote.example")
    );
}

#[test]
fn every_layer_of_the_body_arrives() {
    let mut c = plain("Bericht – 報告", "Grüße\n.\nFrom here on\n");
    c.html = Some("<p>Grüße <img src=\"cid:logo\"></p>".into());
    c.attachments = vec![
        OutgoingAttachment {
            filename: Some("../../Übersicht \"2026\".pdf".into()),
            content_type: "application/pdf".into(),
            disposition: Disposition::Attachment,
            content_id: None,
            content: vec![0, 13, 10, 255, 13, 0],
        },
        OutgoingAttachment {
            filename: Some("logo.png".into()),
            content_type: "image/png\r\nBcc: eve@x.example".into(),
            disposition: Disposition::Inline,
            content_id: Some("<logo>".into()),
            content: vec![1; 4_000],
        },
        OutgoingAttachment {
            filename: Some("first.eml".into()),
            content_type: "message/rfc822".into(),
            disposition: Disposition::Attachment,
            content_id: None,
            content: b"Subject: inner\r\n\r\nhello\r\n".to_vec(),
        },
    ];
    let raw = compose(&c);
    assert_wire_safe(&raw);
    let m = MessageParser::new().parse(&raw).unwrap();
    assert_eq!(m.subject(), Some("Bericht – 報告"));
    assert_eq!(m.body_text(0).unwrap(), "Grüße\r\n.\r\nFrom here on\r\n");
    assert!(m.body_html(0).unwrap().contains("cid:logo"));
    let parts: Vec<_> = m.attachments().collect();
    let pdf = parts.iter().find(|p| p.attachment_name() == Some("Übersicht \"2026\".pdf")).unwrap();
    assert_eq!(pdf.contents(), [0, 13, 10, 255, 13, 0]);
    let logo = parts.iter().find(|p| p.content_id() == Some("logo")).unwrap();
    assert_eq!(logo.content_type().unwrap().subtype(), Some("octet-stream"));
    assert_eq!(parts.iter().find_map(|p| p.message()).unwrap().subject(), Some("inner"));
}

#[test]
fn the_same_composition_gives_the_same_bytes() {
    let mut c = plain("x", "x");
    c.html = Some("<p>x".into());
    assert_eq!(compose(&c), compose(&c));
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        "\\PC{0,200}",
        ".{0,60}",
        prop::collection::vec(
            prop_oneof![
                Just('\r'),
                Just('\n'),
                Just('\0'),
                Just('\t'),
                Just(' '),
                Just('='),
                Just('?'),
                Just('"'),
                Just('\\'),
                Just('é'),
                Just('日'),
                Just('\u{202e}'),
                Just('a'),
                Just('.'),
                Just('<'),
                Just(',')
            ],
            0..120
        )
        .prop_map(|c| c.into_iter().collect()),
        (1usize..3_000).prop_map(|n| "x".repeat(n)),
        (1usize..1_500).prop_map(|n| " ".repeat(n) + "end"),
        Just("=?utf-8?Q?=0D=0ABcc:_eve?=".to_owned()),
        Just("\r\n.\r\n".to_owned()),
    ]
}

fn any_composition() -> impl Strategy<Value = Composition> {
    let attachment =
        (any_text(), any_text(), any_text(), prop::collection::vec(any::<u8>(), 0..300), any::<bool>())
            .prop_map(|(filename, content_type, id, content, inline)| OutgoingAttachment {
                filename: Some(filename),
                content_type,
                disposition: if inline { Disposition::Inline } else { Disposition::Attachment },
                content_id: Some(id),
                content,
            });
    (
        (any_text(), any_text(), any_text(), prop::option::of(any_text()), prop::option::of(any_text())),
        prop::collection::vec(attachment, 0..3),
        prop::collection::vec(any_text(), 0..30),
        prop::collection::vec(any_text(), 0..3),
        prop::option::of(any_text()),
    )
        .prop_map(|((subject, from, to, text, html), attachments, references, values, parent)| {
            let mut c = plain(&subject, "");
            c.from.0 = Some(from);
            c.to = vec![(Some(to), "\"odd one\"@remote.example".parse().unwrap())];
            c.text = text;
            c.html = html;
            c.attachments = attachments;
            c.references = references;
            c.in_reply_to = parent;
            let custom = HeaderName::new("X-Custom").unwrap();
            c.headers = values.iter().map(|v| (custom.clone(), HeaderValue::cleaned(v))).collect();
            c
        })
}

/// White space is what folding may change (RFC 5322 §2.2.3): texts are compared without it.
fn squeezed(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Header injection (mail-servers.md §7): whatever the strings are, the message has the fields that were
    /// asked for and no other, and they say what they were given.
    #[test]
    fn no_input_adds_a_field(c in any_composition()) {
        let raw = compose(&c);
        assert_wire_safe(&raw);
        let mut expected = vec!["Date", "From", "To", "Subject", "Message-ID"];
        if c.in_reply_to.as_deref().and_then(msg_id).is_some() { expected.push("In-Reply-To"); }
        if !trim_references(&c.references).is_empty() { expected.push("References"); }
        expected.extend(c.headers.iter().filter(|(_, v)| !v.as_str().is_empty()).map(|_| "X-Custom"));
        expected.extend(["MIME-Version", "Content-Type"]);
        let mut names = field_names(&raw);
        names.retain(|n| n != "Content-Transfer-Encoding" && n != "Content-Disposition" && n != "Content-ID");
        prop_assert_eq!(names, expected);

        let m = MessageParser::new().parse(&raw).expect("parses");
        let subject = HeaderValue::cleaned(&c.subject);
        prop_assert_eq!(squeezed(m.subject().unwrap_or_default()), squeezed(subject.as_str()));
        let from = m.from().and_then(|a| a.first()).expect("one From");
        prop_assert_eq!(from.address(), Some("ada@agents.example"));
        prop_assert_eq!(m.from().map(|a| a.iter().count()), Some(1));
        prop_assert_eq!(m.to().map(|a| a.iter().count()), Some(1));
        if c.attachments.is_empty() && c.html.is_none() {
            let text = wire_text(c.text.as_deref().unwrap_or_default());
            prop_assert_eq!(m.body_text(0).unwrap_or_default().replace("\r\n", "\n"), text.replace("\r\n", "\n"));
        }
        for a in &c.attachments {
            prop_assert!(m.parts.iter().any(|p| p.contents() == a.content), "an attachment is missing");
        }
    }
}
