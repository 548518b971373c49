//! SMTP smuggling from its other end: what we send. Every form of a false line end that an agent can put into a
//! message is written to a real socket, and what arrives there is looked at octet by octet. (What we accept:
//! `src/smtp/smuggling_tests.rs`, the same forms against a listener of ours.)

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::world::{dns::Dns, eventually, needs, own_address, server::TestServer};

/// What a remote heard on one connection after the other, as it came.
struct Recorder {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Recorder {
    async fn start() -> Recorder {
        let listener = TcpListener::bind((own_address(), 2526)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let all = heard.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let index = {
                    let mut all = all.lock().unwrap();
                    all.push(Vec::new());
                    all.len() - 1
                };
                let all = all.clone();
                tokio::spawn(async move { answer(stream, &all, index).await });
            }
        });
        Recorder { address, heard }
    }

    fn heard(&self) -> Vec<Vec<u8>> {
        self.heard.lock().unwrap().clone()
    }

    /// Ends of messages heard, on all connections.
    fn messages(&self) -> usize {
        let ends = |heard: &Vec<u8>| heard.windows(5).filter(|end| end == b"\r\n.\r\n").count();
        self.heard().iter().map(ends).sum()
    }
}

/// Answers each line, and each message at the only end there is.
async fn answer(mut stream: TcpStream, all: &Mutex<Vec<Vec<u8>>>, index: usize) {
    let (mut buffer, mut in_data) = (Vec::new(), false);
    let mut say = "220 recorder.example ESMTP\r\n".to_owned();
    loop {
        if stream.write_all(say.as_bytes()).await.is_err() {
            return;
        }
        say.clear();
        let mut piece = vec![0; 65_536];
        let Ok(n @ 1..) = stream.read(&mut piece).await else { return };
        all.lock().unwrap()[index].extend_from_slice(&piece[..n]);
        buffer.extend_from_slice(&piece[..n]);
        loop {
            let end: &[u8] = if in_data { b"\r\n.\r\n" } else { b"\r\n" };
            let Some(at) = buffer.windows(end.len()).position(|w| w == end) else { break };
            let line: Vec<u8> = buffer.drain(..at + end.len()).collect();
            if std::mem::take(&mut in_data) {
                say += "250 2.0.0 taken\r\n";
                continue;
            }
            in_data = line == b"DATA\r\n";
            say += match line.get(..4) {
                Some(b"EHLO") => "250-recorder.example\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 PIPELINING\r\n",
                Some(b"DATA") => "354 go on\r\n",
                _ => "250 2.0.0 ok\r\n",
            };
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_we_send_holds_no_line_end_but_crlf_whatever_the_message() {
    let Some(corpora) = needs::corpora() else { return };
    let manifest = std::fs::read(corpora.join("smtp/manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let hex = |text: &str| -> String {
        let pairs = text.as_bytes().chunks(2).map(|pair| str::from_utf8(pair).unwrap());
        pairs.map(|pair| char::from(u8::from_str_radix(pair, 16).unwrap())).collect()
    };
    let cases = manifest["cases"].as_array().unwrap();
    let mut forms: Vec<String> =
        cases.iter().filter_map(|case| case["bytes_hex"].as_str()).map(hex).collect();
    assert!(forms.len() >= 5, "the corpus has lost its cases");
    forms.extend(
        ["\r\n.\r\n", "\n.\n", "\r\n..\r\n", "\r\n.", "\n.\r\nQUIT\r\n", "\u{2028}.\u{2028}"]
            .map(String::from),
    );

    let remote = Recorder::start().await;
    let zone =
        format!("remote.example MX 10 mx.remote.example\nmx.remote.example A {}\n", remote.address.ip());
    let dns = Dns::start(&zone).await;
    let server = TestServer::new().inbox("ada").dns(&dns).start().await;
    let send = "/v0/inboxes/ada@agents.example/messages/send";
    let mut sent = 0;
    for form in &forms {
        let evil =
            format!("body{form}MAIL FROM:<eve@evil.example>\r\nRCPT TO:<x@remote.example>\r\nDATA\r\n");
        let packed = base64::engine::general_purpose::STANDARD.encode(&evil);
        for fields in [
            json!({"text": evil}),
            json!({"html": format!("<p>{evil}</p>")}),
            json!({"text": "see", "attachments": [{"content": packed, "filename": "a.txt", "content_type": "text/plain"}]}),
            json!({"text": "see", "attachments": [{"content": packed, "filename": "a.eml", "content_type": "message/rfc822"}]}),
            json!({"text": format!(".{form}"), "subject": format!("s{form}.")}),
        ] {
            let mut body = json!({"to": "bob@remote.example", "subject": "s"});
            body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            let answer = server.api.post(send, body.clone()).await;
            match answer.status {
                200..=299 => sent += 1,
                400 => {}
                other => panic!("{body}: {other} {}", answer.body),
            }
        }
    }
    assert!(sent >= 4 * forms.len(), "only {sent} were taken");
    eventually("all that was taken is sent", async || (remote.messages() >= sent).then_some(())).await;
    assert_eq!(remote.messages(), sent, "one end for each message");
    for heard in remote.heard() {
        for (at, &octet) in heard.iter().enumerate() {
            match octet {
                b'\r' => assert_eq!(heard.get(at + 1), Some(&b'\n'), "a bare CR at {at}"),
                b'\n' => assert_eq!(heard[at - 1], b'\r', "a bare LF at {at}"),
                0 => panic!("a NUL at {at}"),
                _ => {}
            }
        }
        // Outside messages, that is at the begin of a batch, nobody but us speaks for a sender.
        let text = String::from_utf8_lossy(&heard).into_owned();
        let mut in_data = false;
        for line in text.split("\r\n") {
            match (in_data, line) {
                (false, "DATA") => in_data = true,
                (true, ".") => in_data = false,
                (false, line) => assert!(!line.contains("evil.example"), "smuggled: {line}"),
                (true, _) => {}
            }
        }
    }
    println!("{sent} messages with {} forms", forms.len());
}
