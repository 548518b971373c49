//! The client against scripted remotes: dialogues as text, one line a step.
//!
//! `S:` says, `C:` reads a line that begins so, `C.` reads a message to its final dot, `hang` keeps the
//! connection and says nothing, `close` closes it, `tls` shakes hands.

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;

const MESSAGE: &[u8] = b"Subject: hi\r\n\r\n.dot\r\n";

fn short() -> Deadlines {
    let ms = Duration::from_millis(250);
    Deadlines {
        connect: ms,
        greeting: ms,
        command: ms,
        tls: ms,
        mail: ms,
        rcpt: ms,
        data: ms,
        block: ms,
        dot: ms,
        quit: ms,
    }
}

/// Plays `script` on one connection; the handle gives what the client said.
async fn remote(script: &str) -> (SocketAddr, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let script = script.to_owned();
    let task = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut heard = String::new();
        match script.split_once("tls\n") {
            None => drop(play(stream, &script, &mut heard).await),
            Some((clear, secret)) => {
                if let Some(stream) = play(stream, clear, &mut heard).await {
                    let acceptor = tokio_rustls::TlsAcceptor::from(certificate().1);
                    match acceptor.accept(stream).await {
                        Ok(stream) => drop(play(stream, secret, &mut heard).await),
                        Err(_) => heard.push_str("no tls\n"),
                    }
                }
            }
        }
        heard
    });
    (address, task)
}

async fn play<S: AsyncRead + AsyncWrite + Unpin>(stream: S, script: &str, heard: &mut String) -> Option<S> {
    let mut stream = BufReader::new(stream);
    for step in script.lines().map(str::trim).filter(|s| !s.is_empty()) {
        if let Some(text) = step.strip_prefix("S: ") {
            let bytes = text.replace("\\r", "\r").replace("\\n", "\n");
            if stream.write_all(format!("{bytes}\r\n").as_bytes()).await.is_err() {
                return None;
            }
        } else if let Some(prefix) = step.strip_prefix("C: ") {
            let mut line = String::new();
            stream.read_line(&mut line).await.ok()?;
            assert!(line.starts_with(prefix), "the script wants {prefix:?} and heard {line:?}");
            heard.push_str(&line);
        } else if step == "C." {
            loop {
                let mut line = String::new();
                if stream.read_line(&mut line).await.ok()? == 0 {
                    return None;
                }
                heard.push_str(&line);
                if line == ".\r\n" {
                    break;
                }
            }
        } else if step == "flood" {
            let _ = stream.write_all(&vec![b'2'; 1 << 20]).await;
        } else if step == "hang" {
            tokio::time::sleep(Duration::from_secs(1)).await;
        } else if step == "close" {
            return None;
        } else {
            panic!("unknown step {step:?}");
        }
    }
    Some(stream.into_inner())
}

/// A certificate for mx.test: a client that trusts it, and the server's side.
fn certificate() -> (Arc<rustls::ClientConfig>, Arc<rustls::ServerConfig>) {
    static CONFIGS: std::sync::OnceLock<(Arc<rustls::ClientConfig>, Arc<rustls::ServerConfig>)> =
        std::sync::OnceLock::new();
    CONFIGS
        .get_or_init(|| {
            let made = rcgen::generate_simple_self_signed(vec!["mx.test".to_owned()]).unwrap();
            let provider = || Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let mut roots = rustls::RootCertStore::empty();
            roots.add(made.cert.der().clone()).unwrap();
            let client = rustls::ClientConfig::builder_with_provider(provider())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
            let server = rustls::ServerConfig::builder_with_provider(provider())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![made.cert.der().clone()], key)
                .unwrap();
            (Arc::new(client), Arc::new(server))
        })
        .clone()
}

fn to(text: &str) -> Address {
    text.parse().unwrap()
}

/// RFC 8689 §2: an offer in clear is none, and without one nothing is said of the message.
#[tokio::test]
async fn what_must_stay_in_tls_is_not_offered_in_clear() {
    let script = "S: 220 mx.test\nC: EHLO\nS: 250-mx.test\nS: 250 REQUIRETLS\nclose\n";
    let (address, task) = remote(script).await;
    let mut client = Client::connect(address, None, short()).await.unwrap();
    client.hello("mx.agents.example").await.unwrap();
    assert!(client.offers.require_tls && !client.keeps_tls());
    let message = WireMessage::new(&[MESSAGE]).unwrap();
    let sent = client.send(None, &[&to("a@remote.example")], &message, TlsDemand::Required).await;
    assert!(matches!(sent, Err(ClientError::Unable("5.7.30", _))), "{sent:?}");
    drop(client);
    let heard = task.await.unwrap();
    assert!(!heard.contains("MAIL"), "{heard}");
}

/// A whole delivery in clear: what each of the three recipients was answered, and what the remote heard.
async fn deliver(script: &str) -> (Result<Vec<u16>, ClientError>, String) {
    let (address, task) = remote(script).await;
    let recipients = [to("a@remote.example"), to("b@remote.example"), to("c@remote.example")];
    let outcome = async {
        let mut client = Client::connect(address, None, short()).await?;
        client.hello("mx.agents.example").await?;
        let message = WireMessage::new(&[MESSAGE]).unwrap();
        let from = to("b-token@agents.example");
        let answers =
            client.send(Some(&from), &recipients.each_ref()[..], &message, TlsDemand::Usual).await?;
        Ok(answers.into_iter().map(|a| a.reply.code).collect())
    }
    .await;
    (outcome, task.await.unwrap())
}

const HELLO: &str = "S: 220 mx.test\nC: EHLO mx.agents.example\nS: 250-mx.test\n";

#[tokio::test]
async fn one_message_to_three_recipients_pipelined() {
    let script = format!(
        "{HELLO}S: 250-PIPELINING\nS: 250-SIZE 1000\nS: 250 8BITMIME\nC: MAIL\nC: RCPT\nC: RCPT\nC: RCPT\n\
         S: 250 ok\nS: 250 ok\nS: 550 5.1.1 no such user\nS: 451 4.7.1 greylisted\nC: DATA\nS: 354 go\nC.\nS: 250 2.0.0 taken"
    );
    let (codes, heard) = deliver(&script).await;
    assert_eq!(codes.unwrap(), [250, 550, 451]);
    assert_eq!(
        heard,
        "EHLO mx.agents.example\r\nMAIL FROM:<b-token@agents.example> SIZE=21\r\nRCPT TO:<a@remote.example>\r\n\
         RCPT TO:<b@remote.example>\r\nRCPT TO:<c@remote.example>\r\nDATA\r\nSubject: hi\r\n\r\n..dot\r\n.\r\n"
    );
}

/// RFC 2920 §3.1: DATA leaves with the recipients, and a server that says 354 although it took none gets a lone dot.
#[tokio::test]
async fn data_that_was_pipelined_for_nobody_is_taken_back() {
    let refused = "S: 250 a\nS: 550 no\nS: 550 no\nS: 450 later\n";
    for tail in [
        "S: 554 no valid recipients\nC: RSET\nS: 250 a",
        "S: 354 go\nC: .\nS: 554 nobody\nC: RSET\nS: 250 a",
        "S: 354 go\nC: .\nS: 250 thrown away",
        "close",
    ] {
        let script =
            format!("{HELLO}S: 250 PIPELINING\nC: MAIL\nC: RCPT\nC: RCPT\nC: RCPT\nC: DATA\n{refused}{tail}");
        let (codes, heard) = deliver(&script).await;
        assert_eq!(codes.expect(tail), [550, 550, 450], "{tail}");
        assert!(!heard.contains("Subject"), "{heard}");
    }
    let script =
        format!("{HELLO}S: 250 PIPELINING\nC: MAIL\nC: RCPT\nC: RCPT\nC: RCPT\nC: DATA\nS: 421 going down");
    assert_eq!(deliver(&script).await.0.unwrap(), [421; 3]);
}

#[tokio::test]
async fn without_pipelining_each_command_waits_for_its_answer() {
    let script = "S: 220 old\nC: EHLO\nS: 502 unknown\nC: HELO mx.agents.example\nS: 250 old\nC: MAIL FROM:<b-token@agents.example>\n\
         S: 250 ok\nC: RCPT\nS: 250 ok\nC: RCPT\nS: 251 will forward\nC: RCPT\nS: 550 no\nC: DATA\nS: 354 go\nC.\nS: 250 taken";
    assert_eq!(deliver(script).await.0.unwrap(), [250, 250, 550]);
}

#[tokio::test]
async fn refusals_at_each_stage_are_heard_as_they_are() {
    let tail = |after: &str| format!("{HELLO}S: 250 SIZE\n{after}");
    let cases = [
        ("C: MAIL\nS: 451 later\nC: RSET\nS: 250 ok", [451, 451, 451]),
        ("C: MAIL\nS: 550 5.7.1 not you\nC: RSET\nS: 250 ok", [550, 550, 550]),
        ("C: MAIL\nS: 421 going down", [421, 421, 421]),
        (
            "C: MAIL\nS: 250 ok\nC: RCPT\nS: 550 no\nC: RCPT\nS: 550-no\\r\\n550 way\nC: RCPT\nS: 450 later\nC: RSET\nS: 250 ok",
            [550, 550, 450],
        ),
        (
            "C: MAIL\nS: 250 a\nC: RCPT\nS: 250 a\nC: RCPT\nS: 250 a\nC: RCPT\nS: 550 a\nC: DATA\nS: 554 no\nC: RSET\nS: 250 a",
            [554, 554, 550],
        ),
        (
            "C: MAIL\nS: 250 a\nC: RCPT\nS: 250 a\nC: RCPT\nS: 250 a\nC: RCPT\nS: 250 a\nC: DATA\nS: 354 a\nC.\nS: 554 spam\nC: RSET\nS: 250 a",
            [554; 3],
        ),
        (
            "C: MAIL\nS: 250 a\nC: RCPT\nS: 250 a\nC: RCPT\nS: 250 a\nC: RCPT\nS: 250 a\nC: DATA\nS: 354 a\nC.\nS: 452 full\nC: RSET\nS: 250 a",
            [452; 3],
        ),
    ];
    for (script, codes) in cases {
        let (answered, _) = deliver(&tail(script)).await;
        assert_eq!(answered.expect(script), codes, "{script}");
    }
    for (script, stage) in [
        ("S: 554 no mail here", Stage::Greeting),
        ("S: 220 mx\nC: EHLO\nS: 421 busy", Stage::Hello),
        ("S: 220 mx\nC: EHLO\nS: 550 no\nC: HELO\nS: 550 no", Stage::Hello),
    ] {
        let refused = deliver(script).await.0.unwrap_err();
        assert!(matches!(refused, ClientError::Refused(..)) && refused.stage() == stage, "{refused:?}");
    }
}

#[tokio::test]
async fn a_remote_that_hangs_or_closes_is_left_at_each_stage() {
    let stages: [(&str, Stage); 8] = [
        ("", Stage::Greeting),
        ("S: 220 mx\nC: EHLO\n", Stage::Hello),
        ("C: MAIL\n", Stage::Mail),
        ("C: MAIL\nS: 250 a\nC: RCPT\n", Stage::Rcpt),
        ("C: MAIL\nS: 250 a\nC: RCPT\nS: 250 a\nC: RCPT\nS: 250-a\\r\\n250", Stage::Rcpt),
        (
            "C: MAIL\nS: 250 a\nC: RCPT\nS: 250 a\nC: RCPT\nS: 250 a\nC: RCPT\nS: 250 a\nC: DATA\n",
            Stage::Data,
        ),
        (
            "C: MAIL\nS: 250 a\nC: RCPT\nS: 250 a\nC: RCPT\nS: 250 a\nC: RCPT\nS: 250 a\nC: DATA\nS: 354 a\nC.\n",
            Stage::Dot,
        ),
        (
            "C: MAIL\nS: 250 a\nC: RCPT\nS: 250 a\nC: RCPT\nS: 250 a\nC: RCPT\nS: 250 a\nC: DATA\nS: 354 a\nC.\nS: 250-mid",
            Stage::Dot,
        ),
    ];
    for (script, stage) in stages {
        let head =
            if script.starts_with("C: MAIL") { format!("{HELLO}S: 250 HELP\n") } else { String::new() };
        // A half-said reply of the script ends in a line; the test wants it cut off there.
        for end in ["hang", "close"] {
            let (address, _remote) = remote(&format!("{head}{script}\n{end}")).await;
            let recipients = [to("a@r.example"), to("b@r.example"), to("c@r.example")];
            let message = WireMessage::new(&[MESSAGE]).unwrap();
            let error = async {
                let mut client = Client::connect(address, None, short()).await?;
                client.hello("mx.agents.example").await?;
                client.send(None, &recipients.each_ref()[..], &message, TlsDemand::Usual).await
            }
            .await
            .unwrap_err();
            assert_eq!(error.stage(), stage, "{script} {end}: {error:?}");
        }
    }
}

#[tokio::test]
async fn nonsense_and_floods_end_the_connection_and_are_not_held() {
    let (error, _) = deliver("flood\nhang").await;
    assert!(
        matches!(error, Err(ClientError::Nonsense(Stage::Greeting, ReplyError::LineTooLong))),
        "{error:?}"
    );
    let lines = "S: 250-line\n".repeat(300);
    let (error, _) = deliver(&format!("S: 220 mx\nC: EHLO\n{lines}S: 250 end\nhang")).await;
    assert!(matches!(error, Err(ClientError::Nonsense(Stage::Hello, ReplyError::TooManyLines))), "{error:?}");
    let (error, _) = deliver("S: HTTP/1.1 200 OK\nhang").await;
    assert!(
        matches!(error, Err(ClientError::Nonsense(Stage::Greeting, ReplyError::Malformed(_)))),
        "{error:?}"
    );
}

/// CVE-2011-0411 from the client's side (nodemailer PR #1835): what is said in clear behind the 220 of
/// STARTTLS, and what was offered before it, counts for nothing.
#[tokio::test]
async fn what_was_said_before_tls_is_forgotten() {
    let script = "S: 220 mx\nC: EHLO\nS: 250-mx\nS: 250-SMTPUTF8\nS: 250 STARTTLS\nC: STARTTLS\n\
                  S: 220 go\\r\\n250-injected\\r\\n250 SMTPUTF8\ntls\nC: EHLO\nS: 250-mx\nS: 250 PIPELINING\n";
    let (address, _task) = remote(script).await;
    let mut client = Client::connect(address, None, short()).await.unwrap();
    client.hello("mx.agents.example").await.unwrap();
    assert!(client.offers.smtputf8 && client.offers.starttls);
    let client = client.start_tls("mx.agents.example", "mx.test", certificate().0).await.unwrap();
    assert!(
        client.encrypted && client.offers.pipelining && !client.offers.smtputf8 && !client.offers.starttls
    );
}

#[tokio::test]
async fn tls_that_breaks_is_told_apart_from_tls_that_is_declined() {
    let offer = "S: 220 mx\nC: EHLO\nS: 250-mx\nS: 250 STARTTLS\nC: STARTTLS\n";
    let (address, _task) = remote(&format!("{offer}S: 454 not now\n")).await;
    let mut client = Client::connect(address, None, short()).await.unwrap();
    client.hello("x").await.unwrap();
    assert!(!client.start_tls("x", "mx.test", certificate().0).await.unwrap().encrypted);
    for broken in ["S: 220 go\nS: what is a ClientHello?\nclose", "S: 220 go\nclose", "S: 220 go\nhang"] {
        let (address, _task) = remote(&format!("{offer}{broken}")).await;
        let mut client = Client::connect(address, None, short()).await.unwrap();
        client.hello("x").await.unwrap();
        let error = client.start_tls("x", "mx.test", certificate().0).await.err().expect(broken);
        assert!(matches!(error, ClientError::Tls(_)), "{error:?}");
    }
}

#[tokio::test]
async fn what_the_remote_lacks_is_found_before_it_is_sent() {
    let offers = "S: 220 mx\nC: EHLO\nS: 250-mx\nS: 250 SIZE 30\nhang";
    let cases: [(&str, &[u8], &str); 4] = [
        ("jürgen@remote.example", b"A: b\r\n\r\nx\r\n", "5.6.7"),
        ("a@remote.example", "A: ü\r\n\r\nx\r\n".as_bytes(), "5.6.7"),
        ("a@remote.example", "A: b\r\n\r\nü\r\n".as_bytes(), "5.6.3"),
        ("a@remote.example", b"A: b\r\n\r\nlonger than thirty octets\r\n", "5.3.4"),
    ];
    for (recipient, raw, status) in cases {
        let (address, _task) = remote(offers).await;
        let mut client = Client::connect(address, None, short()).await.unwrap();
        client.hello("x").await.unwrap();
        let message = WireMessage::new(&[raw]).unwrap();
        let error = client.send(None, &[&to(recipient)], &message, TlsDemand::Usual).await.unwrap_err();
        assert!(matches!(error, ClientError::Unable(s, _) if s == status), "{error:?}");
    }
}

#[tokio::test]
async fn too_many_recipients_is_no_refusal_of_the_rest() {
    let script = format!(
        "{HELLO}S: 250 PIPELINING\nC: MAIL\nC: RCPT\nC: RCPT\nC: RCPT\nS: 250 a\nS: 250 a\nS: 452 4.5.3 enough\nS: 452 4.5.3 enough\n\
         C: DATA\nS: 354 a\nC.\nS: 250 a"
    );
    let (address, _task) = remote(&script).await;
    let mut client = Client::connect(address, None, short()).await.unwrap();
    client.hello("mx.agents.example").await.unwrap();
    let recipients = [to("a@r.example"), to("b@r.example"), to("c@r.example")];
    let message = WireMessage::new(&[MESSAGE]).unwrap();
    let answers = client.send(None, &recipients.each_ref()[..], &message, TlsDemand::Usual).await.unwrap();
    assert_eq!(answers.iter().map(|a| a.again).collect::<Vec<_>>(), [false, true, true]);
    assert!(client.is_reusable(100));
}
