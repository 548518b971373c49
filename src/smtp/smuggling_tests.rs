//! SMTP smuggling over real sockets: every form of a line end, in two TCP segments cut at every octet, against a
//! listener of ours. Whatever comes of it, the second message must not (CVE-2023-51764, CVE-2023-51765,
//! CVE-2023-51766, CVE-2023-52354).

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::transcript::{Ledger, corpus, house};
use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// Connections at a time.
const AT_ONCE: usize = 32;

const EVIL: &[u8] = b"MAIL FROM:<eve@evil.example>\r\nRCPT TO:<bob@agents.example>\r\nDATA\r\nSubject: two\r\n\r\nsmuggled\r\n.\r\nQUIT\r\n";

/// What some server was once told to take for the end of a line, or of a message.
const FORMS: &[&[u8]] = &[
    b"\n.\n",
    b"\n.\r\n",
    b"\n.\r",
    b"\n\n.\r\n",
    b"\n.\n\n",
    b"\r.\r",
    b"\r.\n",
    b"\r.\r\n",
    b"\r\r.\r\n",
    b"\r\n.\n",
    b"\r\n.\r",
    b"\r\n.\r\r\n",
    b"\r\n.\r\0\n",
    b"\r\n.\0\r\n",
    b"\r\n\0.\r\n",
    b"\r\n\n.\r\n",
    b"\r\r\n.\r\r\n",
    b"\0.\0",
    b"\r\n.\x0b\r\n.\n",
    b"\n\r.\n\r",
];

fn forms() -> Vec<Vec<u8>> {
    let mut forms: Vec<Vec<u8>> = FORMS.iter().map(|form| form.to_vec()).collect();
    if let Some(folder) = corpus("smtp") {
        let manifest = std::fs::read(folder.join("manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        for hex in manifest["cases"].as_array().unwrap().iter().filter_map(|case| case["bytes_hex"].as_str())
        {
            let form: Vec<u8> = hex
                .as_bytes()
                .chunks(2)
                .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
                .collect();
            if !forms.contains(&form) {
                forms.push(form);
            }
        }
    }
    forms
}

/// A listener of ours, and what came in through it.
struct Listening {
    ledger: Ledger,
    address: std::net::SocketAddr,
    stop: CancellationToken,
}

impl Listening {
    async fn begin() -> Listening {
        let (ledger, stop) = (Ledger::default(), CancellationToken::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut house = house(&ledger);
        // Thousands of connections and errors a minute are the test's and not an attack.
        let exempt = Network::parse("127.0.0.0/8").into_iter().collect();
        house.guard = guard::testing::guard(crate::config::SmtpLimits { exempt, ..guard::testing::limits() });
        tokio::spawn(run(house, listener, stop.clone()));
        Listening { ledger, address, stop }
    }

    /// Says `before` and waits for `until`, then says `octets` in two segments; all that was answered to them.
    async fn talk(&self, before: &[u8], until: &str, octets: &[u8], cut: usize) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut heard = Vec::new();
        for (say, wait) in [(&b""[..], "220 "), (b"EHLO friend.example\r\n", "250 HELP"), (before, until)] {
            stream.write_all(say).await.unwrap();
            heard.clear();
            while !String::from_utf8_lossy(&heard).contains(wait) {
                let read = tokio::time::timeout(PATIENCE, stream.read_buf(&mut heard)).await;
                assert_ne!(read.expect("the server says nothing").unwrap(), 0, "{heard:?}");
            }
        }
        let (head, tail) = octets.split_at(cut);
        let mut answers = Vec::new();
        // The server may have hung up after the first segment, and the end may come as a reset.
        let _ = stream.write_all(head).await;
        tokio::task::yield_now().await;
        let _ = stream.write_all(tail).await;
        let _ = stream.shutdown().await;
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answers)).await.expect("no end");
        String::from_utf8_lossy(&answers).into_owned()
    }
}

/// Runs a check for every form and every cut, many at once.
async fn everywhere<F>(
    octets: impl Fn(&[u8]) -> Vec<u8>,
    check: impl Fn(Arc<Listening>, Vec<u8>, Vec<u8>, usize) -> F,
) -> usize
where
    F: Future<Output = ()> + Send + 'static,
{
    let listening = Arc::new(Listening::begin().await);
    let (mut tasks, mut seen) = (JoinSet::new(), 0);
    for form in forms() {
        let octets = octets(&form);
        for cut in 0..=octets.len() {
            if tasks.len() >= AT_ONCE {
                tasks.join_next().await.unwrap().unwrap();
            }
            tasks.spawn(check(Arc::clone(&listening), form.clone(), octets.clone(), cut));
            seen += 1;
        }
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    for (envelope, raw) in listening.ledger.received.lock().unwrap().iter() {
        let from = envelope.mail_from.as_ref().map(ToString::to_string).unwrap_or_default();
        assert_eq!(from, "ann@friend.example", "smuggled: {:?}", String::from_utf8_lossy(raw));
    }
    listening.stop.cancel();
    seen
}

const ENVELOPE: &[u8] = b"MAIL FROM:<ann@friend.example>\r\nRCPT TO:<ada@agents.example>\r\nDATA\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_in_two_segments_cut_at_every_octet() {
    let octets = |form: &[u8]| [b"Subject: one\r\n\r\nbody", form, EVIL].concat();
    let seen = everywhere(octets, |listening, form, octets, cut| async move {
        let answers = listening.talk(ENVELOPE, "354 ", &octets, cut).await;
        // A reset may have swallowed the answer; another one than this there cannot be.
        assert!(
            answers.is_empty() || answers.starts_with("550 5.6.0") && answers.lines().count() == 1,
            "{form:?} cut at {cut}: {answers}"
        );
        assert!(listening.ledger.received.lock().unwrap().is_empty(), "{form:?} cut at {cut}");
    });
    println!("{} connections", seen.await);
}

/// In a chunk nothing ends a message but its length: what is in it is refused or stored, never obeyed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_in_two_segments_cut_at_every_octet() {
    let envelope = &ENVELOPE[..ENVELOPE.len() - b"DATA\r\n".len()];
    let octets = |form: &[u8]| {
        let content = [b"Subject: one\r\n\r\nbody", form, EVIL].concat();
        [format!("BDAT {} LAST\r\n", content.len()).as_bytes(), &content, b"NOOP\r\nQUIT\r\n"].concat()
    };
    let seen = everywhere(octets, |listening, form, octets, cut| async move {
        let answers = listening.talk(envelope, "250 2.1.5", &octets, cut).await;
        let codes: Vec<&str> = answers.lines().filter_map(|line| line.get(..3)).collect();
        assert_eq!(codes, ["550", "250", "221"], "{form:?} cut at {cut}: {answers}");
    });
    println!("{} connections", seen.await);
}

/// No command ends but by CRLF, and nothing behind a false end is a command.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_in_two_segments_cut_at_every_octet() {
    let listening = Arc::new(Listening::begin().await);
    for end in [&b"\n"[..], b"\r", b"\n\r", b"\r\r\n", b"\r\0\n"] {
        let octets = [b"NOOP", end, b"MAIL FROM:<eve@evil.example>\r\nQUIT\r\n"].concat();
        for cut in 0..=octets.len() {
            let answers = listening.talk(b"RSET\r\n", "250 2.0.0", &octets, cut).await;
            assert!(
                answers.is_empty() || answers.starts_with("500 5.5.2"),
                "{end:?} cut at {cut}: {answers}"
            );
            assert!(answers.lines().count() <= 1, "{end:?} cut at {cut}: {answers}");
        }
    }
    let octets = b"NOOP\r\nMAIL FROM:<ann@friend.example>\r\nQUIT\r\n";
    for cut in 0..=octets.len() {
        let answers = listening.talk(b"RSET\r\n", "250 2.0.0", octets, cut).await;
        let codes: Vec<&str> = answers.lines().filter_map(|line| line.get(..3)).collect();
        assert_eq!(codes, ["250", "250", "221"], "cut at {cut}: {answers}");
    }
    listening.stop.cancel();
}
