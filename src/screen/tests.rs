use proptest::prelude::*;

use super::*;
use crate::screen::structure::Encoding;

fn types(structure: &Structure) -> Vec<&str> {
    structure.parts.iter().map(|part| part.content_type.as_str()).collect()
}

const SHAPES: &str = "From: Ada <ada@a.example>\r\n\
Subject: =?utf-8?B?w5xiZXJzaWNodA==?=\r\n\
Date: Sat, 21 Nov 2026 03:04:05 +0000\r\n\
Message-ID: <1@a.example>\r\n\
Content-Type: multipart/mixed; boundary=\"b\"\r\n\
\r\n\
preamble\r\n\
--b\r\n\
Content-Type: multipart/alternative; boundary=\"bb\"\r\n\
\r\n\
--bb\r\n\
Content-Type: text/plain; charset=utf-8\r\n\
Content-Transfer-Encoding: quoted-printable\r\n\
\r\n\
Gr=C3=BC=C3=9Fe,\r\n\
Ada\r\n\
--bb\r\n\
Content-Type: text/html\r\n\
\r\n\
<p>Gruss</p>\r\n\
--bb\r\n\
Content-Type: text/calendar; method=REQUEST\r\n\
\r\n\
BEGIN:VCALENDAR\r\n\
--bb--\r\n\
\r\n\
--b\r\n\
Content-Type: application/pdf; name=\"a.pdf\"\r\n\
Content-Transfer-Encoding: base64\r\n\
\r\n\
aGVsbG8=\r\n\
--b\r\n\
Content-Type: message/rfc822\r\n\
\r\n\
Subject: inner\r\n\
\r\n\
inner text\r\n\
--b\r\n\
\r\n\
a list's footer\r\n\
--b--\r\n\
epilogue\r\n";

#[test]
fn every_part_is_found_where_it_stands() {
    let raw = SHAPES.as_bytes();
    let read = structure(raw);
    assert_eq!(read.unparsed, None);
    assert_eq!(read.subject.as_deref(), Some("Übersicht"));
    assert_eq!(read.date, Some(1_795_230_245_000));
    assert_eq!(
        types(&read),
        [
            "multipart/mixed",
            "multipart/alternative",
            "text/plain",
            "text/html",
            "text/calendar",
            "application/pdf",
            "message/rfc822",
            "text/plain",
            "text/plain"
        ]
    );
    let bodies: Vec<_> =
        [2, 3, 4, 5, 7, 8].map(|part| String::from_utf8(decode_part(raw, &read, part)).unwrap()).into();
    assert_eq!(
        bodies,
        ["Grüße,\r\nAda", "<p>Gruss</p>", "BEGIN:VCALENDAR", "hello", "inner text", "a list's footer"]
    );
    assert_eq!((read.text, read.html, read.body.as_slice()), (Some(2), Some(3), &[2, 8][..]));
    let attached: Vec<_> =
        read.parts.iter().enumerate().filter(|(_, part)| part.attachment).map(|(index, _)| index).collect();
    assert_eq!(attached, [4, 5, 6], "the invitation, the file and the forwarded message");
    assert_eq!(read.parts[5].size, 5);
    assert_eq!(read.parts[5].encoding, Encoding::Base64);
    assert_eq!(read.preview.as_deref(), Some("Grüße, Ada a list's footer"));
    assert_eq!(body_text(raw, &read), "Grüße,\r\nAda\na list's footer");
}

/// Two readers that disagree on a boundary see two different messages.
#[test]
fn a_boundary_is_a_whole_line() {
    let raw = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\none --b\r\n--bb\r\n --b\r\n--b \t\r\n\r\ntwo\r\n--b--\r\n--b\r\n\r\nno part\r\n";
    let read = structure(raw);
    assert_eq!(read.parts.len(), 3);
    assert_eq!(decode_text(raw, &read, 1), "one --b\r\n--bb\r\n --b");
    assert_eq!(decode_text(raw, &read, 2), "two");
}

#[test]
fn a_part_without_an_empty_line_does_not_swallow_the_next() {
    let raw = b"Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: text/html\n--b\n\ntwo\n";
    let read = structure(raw);
    assert_eq!(types(&read), ["multipart/mixed", "text/html", "text/plain"]);
    assert_eq!(read.parts[1].size, 0);
    assert_eq!(decode_text(raw, &read, 2), "two\n");
}

/// The outer delimiter right below an inner header: the inner multipart must not end before its child.
#[test]
fn a_part_that_is_all_header_lies_in_what_holds_it() {
    let raw = b"Content-Type: multipart/mixed; boundary=a\n\n--a\nContent-Type: multipart/alternative; boundary=b\n\n--b\nContent-Type: text/html\n--a\n\ntwo\n--a--\n";
    let read = structure(raw);
    assert_eq!(types(&read), ["multipart/mixed", "multipart/alternative", "text/html", "text/plain"]);
    corpora_tests::check_invariants(raw, &read, "all header");
    assert_eq!(decode_text(raw, &read, 3), "two");
}

/// CVE-2026-26312 and its kin: nesting and part floods. The message is handed out unparsed, and still says
/// who claims to have sent it.
#[test]
fn floods_are_unparsed_and_cheap() {
    let mut deep = String::from("From: a@b.example\r\n");
    for level in 0..100 {
        deep.push_str(&format!("Content-Type: multipart/mixed; boundary=b{level}\r\n\r\n--b{level}\r\n"));
    }
    let messages = format!("From: a@b.example\r\n{}", "Content-Type: message/rfc822\r\n\r\n".repeat(100));
    let parts = format!(
        "From: a@b.example\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n{}",
        "--b\r\n\r\nx\r\n".repeat(2000)
    );
    let fields = format!("From: a@b.example\r\n{}\r\n", "A: b\r\n".repeat(2000));
    for (raw, why) in [(deep, "nested"), (messages, "nested"), (parts, "1000 parts"), (fields, "1000 fields")]
    {
        let read = structure(raw.as_bytes());
        assert!(read.unparsed.as_deref().is_some_and(|reason| reason.contains(why)), "{:?}", read.unparsed);
        assert!(read.parts.is_empty());
        assert_eq!(read.from[0].address, "a@b.example");
    }
}

/// RFC 2046 §5.2.1 forbids it and some programs do it: one attachment, whose octets are the message.
#[test]
fn an_encoded_message_stays_one_attachment() {
    let raw = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nsee below\r\n--b\r\nContent-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\nU3ViamVjdDogaW5uZXINCg0KaW5uZXIgdGV4dA==\r\n--b--\r\n";
    let read = structure(raw);
    assert_eq!(types(&read), ["multipart/mixed", "text/plain", "message/rfc822"]);
    assert!(read.parts[2].attachment);
    assert_eq!(decode_part(raw, &read, 2), b"Subject: inner\r\n\r\ninner text");
    assert_eq!(body_text(raw, &read), "see below");
}

/// Words and charsets that grow when they are decoded, and a header made of nothing else, grow by a factor.
#[test]
fn encoded_words_and_charsets_are_no_bombs() {
    for word in [
        "=?iso-2022-jp?B?GyRCJCIkJBsoQg==?= ",
        "=?utf-7?Q?+AGEAYg-?= ",
        "=?x?Q?=00=0D=0A?= ",
        "=?utf-8?Q?",
        "=?",
        "\"",
        "(",
        "<",
        ", ",
        "a@b, ",
    ] {
        let words = word.repeat(200 * 1024 / word.len());
        let folded =
            words.as_bytes().chunks(70).map(String::from_utf8_lossy).collect::<Vec<_>>().join("\r\n ");
        for name in ["Subject", "From", "To", "References", "Content-Type", "Date"] {
            let raw = format!("{name}: {folded}\r\n\r\nwords\r\n");
            let read = structure(raw.as_bytes());
            assert_eq!((read.unparsed, read.parts.len()), (None, 1), "{name}: {word}");
            assert!(read.subject.is_none_or(|subject| subject.len() <= 4 * raw.len()));
        }
    }
    for charset in ["utf-7", "iso-2022-jp", "utf-16", "gb18030", "no-such-charset"] {
        let raw = format!(
            "Content-Type: text/plain; charset={charset}\r\n\r\n{}",
            "+AGEAYg-\u{1b}$B$\"".repeat(50_000)
        );
        let text = body_text(raw.as_bytes(), &structure(raw.as_bytes()));
        assert!(text.len() <= 4 * raw.len(), "{charset}");
    }
}

/// Parameters are compared with those before them; so many parts would take minutes.
#[test]
fn parts_made_of_parameters_are_bounded() {
    let parameters: String = (0..15_000).map(|n| format!(";\r\n a{n}*1=x")).collect();
    let part = format!("--b\r\nContent-Type: text/plain; name=a{parameters}; charset=utf-7\r\n\r\nx\r\n");
    let raw = format!("Content-Type: multipart/mixed; boundary=b\r\n\r\n{}", part.repeat(60));
    let read = structure(raw.as_bytes());
    assert_eq!(read.parts.len(), 61);
    let first = &read.parts[1];
    assert_eq!((first.filename.as_deref(), first.charset.as_deref()), (Some("a"), None), "what stands first");
}

/// What is looked at of a report is its beginning, whatever its parts are in.
#[test]
fn a_report_is_looked_at_from_its_beginning() {
    let daemon = "Return-Path: <>\r\nFrom: MAILER-DAEMON@x\r\n";
    let words = "It failed.\r\n".repeat(8_000);
    let near = format!("{daemon}\r\nMessage-ID: <a@b>\r\n{words}");
    let far = format!("{daemon}\r\n{words}Message-ID: <a@b>\r\n");
    assert_eq!(structure(near.as_bytes()).ties.returned, ["<a@b>"]);
    assert_eq!(structure(far.as_bytes()).ties.returned, Vec::<String>::new());
    let part = "--b\r\nContent-Type: message/delivery-status\r\n\r\nAction: failed\r\n";
    let empty = "--b\r\nContent-Type: text/rfc822-headers\r\n\r\nSubject: x\r\n".repeat(900);
    let last = "--b\r\nContent-Type: text/rfc822-headers\r\n\r\nMessage-ID: <a@b>\r\n";
    let many = format!("Content-Type: multipart/report; boundary=b\r\n\r\n{part}{empty}{last}--b--\r\n");
    assert_eq!(structure(many.as_bytes()).ties.returned, Vec::<String>::new());
}

#[test]
fn html_alone_is_read_as_text() {
    let raw = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/html\r\n\r\n<div>Your code</div><div>123456</div>\r\n--b\r\n\r\nlist footer\r\n--b--\r\n";
    let read = structure(raw);
    assert_eq!((read.text, read.html), (None, Some(1)));
    assert_eq!(body_text(raw, &read), "Your code\n123456\nlist footer");
    assert_eq!(read.preview.as_deref(), Some("Your code 123456 list footer"));
}

#[test]
fn pictures_of_a_page_are_attachments_and_its_other_forms_are_not() {
    let raw = b"Content-Type: multipart/related; boundary=r\r\n\r\n--r\r\nContent-Type: multipart/alternative; boundary=a\r\n\r\n--a\r\n\r\nplain\r\n--a\r\nContent-Type: text/x-amp-html\r\n\r\namp\r\n--a\r\nContent-Type: text/html\r\n\r\n<img src=cid:i>\r\n--a--\r\n--r\r\nContent-Type: image/png\r\nContent-ID: <i>\r\nContent-Disposition: inline; filename=i.png\r\n\r\npng\r\n--r--\r\n";
    let read = structure(raw);
    assert_eq!((read.text, read.html), (Some(2), Some(4)));
    let attached: Vec<_> = read.parts.iter().filter(|part| part.attachment).collect();
    assert_eq!(attached.len(), 1);
    assert_eq!(attached[0].content_id.as_deref(), Some("i"));
    assert_eq!(attached[0].filename.as_deref(), Some("i.png"));
}

#[test]
fn headers_are_shown_in_order_and_on_one_line() {
    let raw = b"B: =?utf-8?Q?=C3=BC?=\r\n x\r\nA: 1\r\nA: 2\r\n\r\n";
    let shown = headers(raw);
    let pairs: Vec<_> = shown.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(pairs, [("B", "ü x"), ("A", "1"), ("A", "2")]);
}

/// Pieces that matter to a reader of MIME, in any order.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let pieces = proptest::sample::select(vec![
        "Content-Type: multipart/mixed; boundary=b\r\n",
        "Content-Type: multipart/alternative; boundary=\"b b\"\r\n",
        "Content-Type: multipart/mixed; boundary*0=b; boundary*1=b\r\n",
        "Content-Type: message/rfc822\r\n",
        "Content-Type: text/html; charset=utf-7\r\n",
        "Content-Transfer-Encoding: base64\r\n",
        "Content-Transfer-Encoding: quoted-printable\r\n",
        "Content-Disposition: attachment; filename*=utf-8''%ff%00\r\n",
        "Subject: =?utf-8?B?////?= =?x?Q?=00?=\r\n",
        "From: \"a <b@c>, (d\r\n",
        "References: <<>> <a@b\r\n",
        "--b\r\n",
        "--b--\r\n",
        "--b b\r\n",
        "--b b\r\nContent-Type: text/plain\r\n--b\r\n",
        "\r\n",
        "\n",
        "\r",
        " ",
        "--",
        "=",
        "<",
        "&#",
        "=3",
        "\0",
        "\u{e9}",
    ]);
    let piece = prop_oneof![
        8 => pieces.prop_map(|piece| piece.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..12),
    ];
    proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn whatever_comes_is_read_within_its_bounds(raw in hostile()) {
        let structure = read(&raw);
        corpora_tests::check_invariants(&raw, &structure, "generated");
        let mut moved = b"A: b\r\n".to_vec();
        moved.extend_from_slice(&raw);
        // What stands on top moves every offset and changes nothing else.
        if !fields::starts_with_body(&raw) && !raw.starts_with(b"\r") {
            let below = read(&moved);
            prop_assert_eq!(below.parts.len(), structure.parts.len());
            for (below, part) in below.parts.iter().zip(&structure.parts).skip(1) {
                prop_assert_eq!((below.body_at, below.end), (part.body_at + 6, part.end + 6));
                prop_assert_eq!(&below.content_type, &part.content_type);
            }
        }
    }
}
