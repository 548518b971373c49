//! Difficult letters, composed and signed as they leave, before people who owe us nothing: dkimpy verifies each under
//! both algorithms, and Python's email package reads back what was written.

use std::process::Command;

use gatepost::clock::Clock;
use gatepost::config::DatabaseUrl;
use gatepost::deliver::compose::{AutoSubmitted, Composition, Disposition, OutgoingAttachment, compose};
use gatepost::deliver::dkim;
use gatepost::deliver::header::{HeaderName, HeaderValue};
use gatepost::secrets::Secrets;
use gatepost::store::Store;
use serde_json::{Value, json};

use crate::world::{needs, run};

const DOMAIN: &str = "agents.example";

struct Letter {
    name: &'static str,
    c: Composition,
    /// What a reader sees, where it is not what was given.
    seen_subject: Option<&'static str>,
    seen_text: Option<&'static str>,
}

fn letter(name: &'static str, subject: &str, text: &str) -> Letter {
    let c = Composition {
        from: (Some("Ada".into()), "ada@agents.example".parse().unwrap()),
        to: vec![(None, "bob@remote.example".parse().unwrap())],
        cc: vec![],
        reply_to: vec![],
        subject: subject.into(),
        text: Some(text.into()),
        html: None,
        attachments: vec![],
        headers: vec![],
        message_id: format!("<{}@{DOMAIN}>", name.replace(' ', "-")),
        date: 1_795_230_245_000,
        in_reply_to: None,
        references: vec![],
        auto_submitted: None,
    };
    Letter { name, c, seen_subject: None, seen_text: None }
}

impl Letter {
    fn with(mut self, change: impl FnOnce(&mut Composition)) -> Letter {
        change(&mut self.c);
        self
    }

    fn expected(&self) -> Value {
        let people = |list: &[(Option<String>, gatepost::address::Address)]| -> Vec<Value> {
            list.iter().map(|(name, a)| json!([name.clone().unwrap_or_default(), a.to_string()])).collect()
        };
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        // Inline parts stand inside of the text, before what is attached.
        let ordered = [Disposition::Inline, Disposition::Attachment];
        let files =
            ordered.iter().flat_map(|d| self.c.attachments.iter().filter(move |a| a.disposition == *d));
        json!({
            "name": self.name,
            "subject": self.seen_subject.unwrap_or(&self.c.subject),
            "from": people(std::slice::from_ref(&self.c.from)),
            "to": people(&self.c.to),
            "cc": people(&self.c.cc),
            "plain": self.c.text.as_deref().map(|text| self.seen_text.unwrap_or(text)),
            "html": self.c.html,
            "files": files.map(|a| json!([a.filename, hex(&a.content)])).collect::<Vec<_>>(),
            "references": if self.c.references.len() > 21 {
                let last = &self.c.references[self.c.references.len() - 20..];
                std::iter::once(&self.c.references[0]).chain(last).cloned().collect::<Vec<_>>()
            } else {
                self.c.references.clone()
            },
        })
    }
}

fn file(name: &str, kind: &str, content: &[u8], inline: Option<&str>) -> OutgoingAttachment {
    OutgoingAttachment {
        filename: Some(name.into()),
        content_type: kind.into(),
        disposition: if inline.is_some() { Disposition::Inline } else { Disposition::Attachment },
        content_id: inline.map(str::to_owned),
        content: content.to_vec(),
    }
}

fn languages() -> Vec<Letter> {
    vec![
        letter("plain", "Hello", "Hello Bob,\n\nall is well.\n"),
        letter("german", "Grüße aus Köln", "Übergrößenträger, ß und €.\n"),
        letter("japanese", "ご注文の確認", "お世話になっております。\n改行\n"),
        letter("chinese", "订单确认", &"汉字".repeat(400)),
        letter("korean", "주문 확인", "안녕하세요.\n"),
        letter("arabic from right to left", "تأكيد الطلب", "مرحبا بالعالم\u{200f} 123\n"),
        letter("hebrew with marks of direction", "אישור הזמנה \u{202b}x\u{202c}", "שלום עולם\n"),
        letter("russian", "Подтверждение заказа", "Здравствуйте!\n"),
        letter("hindi", "आदेश की पुष्टि", "नमस्ते दुनिया\n"),
        letter("emoji and joiners", "👩‍👩‍👧‍👦 🏳️‍🌈 ok", "👍🏽 \u{1f468}\u{200d}\u{1f4bb}\n"),
        letter("combining marks", "e\u{301} Z\u{0351}\u{036b}algo", "a\u{308}\n"),
        letter("eight bits in latin", "naïve café", "señor, ça va ?\n"),
    ]
}

fn texts() -> Vec<Letter> {
    let mut nul = letter("nul in the text", "NUL", "a\0b\n");
    nul.seen_text = Some("a\u{fffd}b");
    let mut bare = letter("bare line ends", "Line ends", "one\rtwo\nthree\r\nfour");
    bare.seen_text = Some("one\ntwo\nthree\nfour");
    vec![
        letter("long lines", "Long lines", &"x".repeat(5_000)),
        letter("long lines of words", "Words", &"word ".repeat(2_000)),
        letter("lines of dots", "Dots", ".\n..\n.hidden\n...\n.\n"),
        letter("trailing spaces", "Spaces", "one   \ntwo \t\n three\n"),
        letter("trailing tabs", "Tabs", "a\t\t\nb\t\n"),
        letter("empty body", "Empty", ""),
        letter("only white space", "White", " \n\t\n \n"),
        letter("white space at the end", "White end", "text\n \n\t \n"),
        letter("many empty lines at the end", "Ends", "text\n\n\n\n"),
        letter("from at the beginning", "From", "From here on\n>From quoted\n"),
        letter("equals signs and soft breaks", "Equals", "a=b=3D c=\n=\n= \n"),
        letter("a boundary in the text", "Boundary", "--=_boundary\n--=_boundary--\n"),
        letter("lines of exactly 998", "998", &format!("{}\n{}\n", "y".repeat(998), "z".repeat(999))),
        nul,
        bare,
    ]
}

fn headers() -> Vec<Letter> {
    let long = "a very long subject that goes on ".repeat(40);
    let chain = |n: usize| (0..n).map(|i| format!("<{i}.reference@remote.example>")).collect::<Vec<_>>();
    let mut injected = letter("a line break in the subject", "Hi\r\nBcc: eve@remote.example", "x\n");
    injected.seen_subject = Some("Hi  Bcc: eve@remote.example");
    vec![
        letter("a very long subject", long.trim(), "x\n"),
        letter("a very long subject in japanese", &"注文の確認".repeat(60), "x\n"),
        letter("a subject of one long word", &"w".repeat(1_500), "x\n"),
        letter("a subject like an encoded word", "=?utf-8?Q?no?= is text", "x\n"),
        letter("an empty subject", "", "x\n"),
        letter("a subject with two spaces", "two  spaces,  here", "x\n"),
        injected,
        letter("names", "Names", "x\n").with(|c| {
            c.from.0 = Some("Ådá Lövelace".into());
            c.to = vec![
                (Some("Weiß, Jürgen".into()), "j@remote.example".parse().unwrap()),
                (Some("O'Brien \"Bob\" (x)".into()), "bob@remote.example".parse().unwrap()),
                (Some("山田太郎".into()), "yamada@remote.example".parse().unwrap()),
                (Some("Semi; colon: <angle>".into()), "s@remote.example".parse().unwrap()),
            ];
            c.cc = vec![(Some("😀 Team".into()), "team@remote.example".parse().unwrap())];
        }),
        letter("an address at a domain that is not ascii", "IDN", "x\n")
            .with(|c| c.to = vec![(None, "kontakt@bücher.example".parse().unwrap())]),
        letter("many recipients", "Many", "x\n").with(|c| {
            let to = |i: usize| {
                (Some(format!("Person number {i}")), format!("p{i}@remote.example").parse().unwrap())
            };
            c.to = (0..50).map(to).collect();
        }),
        letter("a hundred references", "Re: thread", "x\n").with(|c| {
            c.references = chain(100);
            c.in_reply_to = c.references.last().cloned();
            c.auto_submitted = Some(AutoSubmitted::Replied);
        }),
        letter("custom fields", "Custom", "x\n").with(|c| {
            for (name, value) in [
                ("X-Long", "word ".repeat(300).trim().to_owned()),
                ("X-Emoji", "🚀 geht".to_owned()),
                (
                    "List-Unsubscribe",
                    "<https://mail.agents.example/unsubscribe/abc>, <mailto:b-abc@agents.example>".to_owned(),
                ),
                ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click".to_owned()),
            ] {
                c.headers.push((HeaderName::new(name).unwrap(), HeaderValue::new(&value).unwrap()));
            }
        }),
    ]
}

fn parts() -> Vec<Letter> {
    let all: Vec<u8> = (0..=255).collect();
    vec![
        letter("html only", "HTML", "").with(|c| {
            c.text = None;
            c.html = Some("<p>Grüße &amp; <b>Küsse</b></p>\n".into());
        }),
        letter("text and html", "Both", "plain\n")
            .with(|c| c.html = Some(format!("<p>{}</p>", "long ".repeat(500).trim_end()))),
        letter("an attachment of every octet", "Octets", "see file\n")
            .with(|c| c.attachments = vec![file("all.bin", "application/octet-stream", &all, None)]),
        letter("an empty attachment", "Empty file", "see file\n")
            .with(|c| c.attachments = vec![file("empty.txt", "text/plain", b"", None)]),
        letter("file names", "File names", "see files\n").with(|c| {
            c.attachments = vec![
                file("Übersicht für März.pdf", "application/pdf", b"%PDF", None),
                file("請求書.pdf", "application/pdf", b"%PDF", None),
                file("a \"quoted\"; name.txt", "text/plain", b"x\n", None),
                file(&format!("{}.txt", "long".repeat(50)), "text/plain", b"y", None),
            ];
        }),
        letter("an inline image", "Image", "see image\n").with(|c| {
            c.html = Some("<p><img src=\"cid:logo@agents.example\"></p>\n".into());
            c.attachments = vec![
                file("logo.png", "image/png", b"\x89PNG\r\n\x1a\n", Some("logo@agents.example")),
                file("terms.txt", "text/plain", b"terms \n \n", None),
            ];
        }),
        letter("a large attachment", "Large", "see file\n")
            .with(|c| c.attachments = vec![file("large.bin", "application/zip", &all.repeat(2_000), None)]),
    ]
}

/// An outside verifier refused mail whose body ended in white space, and mail with an emoji in a name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn difficult_letters_are_verified_and_read_by_others() {
    let Some(python) = needs::python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&DatabaseUrl::Sqlite(folder.path().join("db")), Clock::system()).await.unwrap();
    let secrets = Secrets::open_or_create(&folder.path().join("key")).unwrap();
    let domains = [DOMAIN.to_owned()];
    dkim::make_missing(&store, &secrets, &domains).await.unwrap();
    let signers = dkim::Signers::new(&store, &secrets);
    signers.refresh().await.unwrap();
    let records = dkim::records(&store, DOMAIN).await.unwrap();
    let records: Vec<String> = records.iter().map(|r| format!("{} {}", r.name, r.value)).collect();
    std::fs::write(folder.path().join("records.txt"), records.join("\n")).unwrap();
    let letters: Vec<Letter> = [languages(), texts(), headers(), parts()].into_iter().flatten().collect();
    assert!(letters.len() >= 40, "{}", letters.len());
    for (n, letter) in letters.iter().enumerate() {
        let raw = compose(&letter.c);
        let signed = [signers.sign(DOMAIN, &raw).unwrap(), raw].concat();
        std::fs::write(folder.path().join(format!("{n:02}.eml")), signed).unwrap();
        std::fs::write(folder.path().join(format!("{n:02}.json")), letter.expected().to_string()).unwrap();
    }
    // What a mail client composed, and we only sign: white space at the end of every kind.
    for (n, tail) in ["x \r\n", "x\r\n \r\n", "x\r\n\t \r\n\r\n", " \r\n", "", "\r\n\r\n"].iter().enumerate()
    {
        let raw = format!("From: ada@{DOMAIN}\r\nTo: bob@remote.example\r\nSubject: tail\r\n\r\n{tail}");
        let signed = [signers.sign(DOMAIN, raw.as_bytes()).unwrap(), raw.into_bytes()].concat();
        let said = json!({"name": format!("tail {tail:?}"), "subject": "tail", "from": [["", format!("ada@{DOMAIN}")]],
            "to": [["", "bob@remote.example"]], "cc": [], "plain": null, "html": null, "files": [], "references": []});
        std::fs::write(folder.path().join(format!("t{n}.eml")), signed).unwrap();
        std::fs::write(folder.path().join(format!("t{n}.json")), said.to_string()).unwrap();
    }
    let mut verifier = Command::new(python);
    verifier.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/verify_letters.py")).arg(folder.path());
    let said = tokio::task::spawn_blocking(move || run(&mut verifier)).await.unwrap();
    println!("{said}");
    assert!(said.contains("all good"), "{said}");
}
