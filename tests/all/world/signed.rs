//! Really signed zones behind a real validating resolver: ldnsutils makes the keys and the signatures, unbound
//! holds the zones, validates what it finds in them under a trust anchor of their own, and answers as the resolver
//! next door does. Nothing here says what is secure: the signatures do.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use hickory_server::proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RecordType},
};
use tempfile::TempDir;
use tokio::{net::UdpSocket, task::JoinHandle};

use super::{eventually, needs, own_address, run};

/// How a zone is signed, and what is wrong with it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Signing {
    /// Denial by NSEC.
    Nsec,
    /// Denial by NSEC3.
    Nsec3,
    /// No keys, and no DS in the zone above.
    None,
    /// Signatures that ended in 2020.
    Expired,
    /// The records of this type were changed after they were signed.
    Forged(&'static str),
}

pub struct Zone {
    name: String,
    signing: Signing,
    records: String,
}

/// A zone in the words of a master file, names relative to it.
pub fn zone(name: &str, signing: Signing, records: &str) -> Zone {
    Zone { name: name.to_owned(), signing, records: records.to_owned() }
}

/// The resolver. Stops when it is dropped.
pub struct Signed {
    pub address: SocketAddr,
    /// The key of the top zone as a DNSKEY or DS record in a file, which is all that is trusted.
    pub anchor: PathBuf,
    child: Child,
    _folder: TempDir,
}

impl Signed {
    /// The first zone is the top, the others hang below it. `None` where the tools are missing.
    pub async fn start(mut zones: Vec<Zone>) -> Option<Signed> {
        let tools = ["unbound", "ldns-keygen", "ldns-signzone", "ldns-key2ds"].map(needs::program);
        let [Some(unbound), Some(keygen), Some(signzone), Some(key2ds)] = tools else {
            return needs::missing("unbound and ldnsutils");
        };
        let folder = tempfile::Builder::new().prefix("gatepost-signed-").tempdir().expect("folder");
        let dir = folder.path();
        let address = SocketAddr::new(own_address(), 5353);
        // The zones below are signed first: the one above holds the digests of their keys.
        let mut delegations = String::new();
        let mut parts = String::new();
        let mut anchor = PathBuf::new();
        zones.reverse();
        let last = zones.len() - 1;
        for (nth, zone) in zones.iter().enumerate() {
            let below = if nth == last { delegations.as_str() } else { "" };
            let file = dir.join(&zone.name);
            let text = format!(
                "$ORIGIN {name}.\n$TTL 1\n@ IN SOA ns op 1 3600 600 86400 1\n@ IN NS ns\nns IN A 127.0.0.1\n{}\n{below}",
                zone.records,
                name = zone.name
            );
            std::fs::write(&file, text).expect("zone");
            let mut served = file.clone();
            let _ = write!(delegations, "{0}. IN NS ns.{0}.\nns.{0}. IN A 127.0.0.1\n", zone.name);
            if zone.signing != Signing::None {
                let key = run(Command::new(&keygen)
                    .current_dir(dir)
                    .args(["-k", "-r", "/dev/urandom", "-a", "ECDSAP256SHA256"])
                    .arg(&zone.name));
                let key = dir.join(key.lines().last().expect("a key's name"));
                served = sign(&signzone, zone, &file, &key);
                let public = with_ending(&key, "key");
                delegations.push_str(&run(Command::new(&key2ds).args(["-n", "-2"]).arg(&public)));
                anchor = public;
            }
            let _ = write!(
                parts,
                "auth-zone:\n  name: \"{}\"\n  zonefile: \"{}\"\n  for-downstream: no\n  for-upstream: yes\n  \
                 fallback-enabled: no\n",
                zone.name,
                served.display()
            );
        }
        let config = dir.join("unbound.conf");
        let text = format!(
            "server:\n  interface: {ip}@{port}\n  port: {port}\n  access-control: 127.0.0.0/8 allow\n  \
             chroot: \"\"\n  username: \"\"\n  directory: \"{dir}\"\n  pidfile: \"\"\n  use-syslog: no\n  \
             logfile: \"\"\n  do-daemonize: no\n  num-threads: 1\n  do-ip6: no\n  \
             module-config: \"validator iterator\"\n  trust-anchor-file: \"{anchor}\"\n  cache-max-ttl: 1\n  \
             cache-max-negative-ttl: 1\nremote-control:\n  control-enable: no\n{parts}",
            ip = address.ip(),
            port = address.port(),
            dir = dir.display(),
            anchor = anchor.display(),
        );
        std::fs::write(&config, text).expect("unbound.conf");
        let log = std::fs::File::create(dir.join("unbound.log")).expect("log");
        let child = Command::new(unbound)
            .args(["-d", "-c"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::from(log))
            .spawn()
            .expect("unbound");
        let mut signed = Signed { address, anchor, child, _folder: folder };
        eventually("unbound answers", async || {
            if let Ok(Some(status)) = signed.child.try_wait() {
                let log = std::fs::read_to_string(config.with_file_name("unbound.log")).unwrap_or_default();
                panic!("unbound ended ({status}):\n{log}");
            }
            tokio::net::TcpStream::connect(address).await.ok()
        })
        .await;
        Some(signed)
    }
}

impl Drop for Signed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The signed file.
fn sign(signzone: &Path, zone: &Zone, file: &Path, key: &Path) -> PathBuf {
    let mut command = Command::new(signzone);
    command.current_dir(file.parent().expect("folder")).arg("-o").arg(&zone.name);
    match zone.signing {
        Signing::Nsec3 => _ = command.arg("-n"),
        Signing::Expired => _ = command.args(["-i", "20200101000000", "-e", "20200201000000"]),
        _ => {}
    }
    run(command.arg(file).arg(key));
    let signed = with_ending(file, "signed");
    if let Signing::Forged(kind) = zone.signing {
        let text = std::fs::read_to_string(&signed).expect("zone");
        let forged = text.lines().map(|line| {
            let of_kind = line.split_whitespace().nth(3) == Some(kind);
            // The last octet is another one.
            let (start, last) = line.split_at(line.len().saturating_sub(1));
            if of_kind {
                format!("{start}{}\n", if last == "7" { "8" } else { "7" })
            } else {
                format!("{line}\n")
            }
        });
        let forged: String = forged.collect();
        assert_ne!(forged, text, "nothing was forged");
        std::fs::write(&signed, forged).expect("zone");
    }
    signed
}

fn with_ending(file: &Path, ending: &str) -> PathBuf {
    PathBuf::from(format!("{}.{ending}", file.display()))
}

/// What a resolver in between does to an answer.
#[derive(Clone)]
pub enum Lie {
    /// Takes the signatures and proofs away, and says that all is well.
    Strip,
    /// Says that there is nothing, without a proof.
    Deny,
    /// Answers with what another name's answer says and proves.
    Replay(&'static str),
}

/// A resolver that asks another one and lies about some names. UDP only: nothing here is so long.
pub struct Liar {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Liar {
    /// The first lie whose name (and what is below it) and type fit; `ANY` fits all types.
    pub async fn before(signed: &Signed, lies: Vec<(&'static str, RecordType, Lie)>) -> Liar {
        let socket = UdpSocket::bind((own_address(), 5353)).await.expect("liar");
        let address = socket.local_addr().expect("liar");
        let (socket, honest, lies) = (Arc::new(socket), signed.address, Arc::new(lies));
        let task = tokio::spawn(async move {
            let mut question = vec![0; 4096];
            while let Ok((n, peer)) = socket.recv_from(&mut question).await {
                let (socket, lies, question) = (socket.clone(), lies.clone(), question[..n].to_vec());
                tokio::spawn(async move {
                    let asked = Message::from_vec(&question).ok()?;
                    let answer = lied(&asked, &lies, honest).await?;
                    socket.send_to(&answer.to_vec().ok()?, peer).await.ok()
                });
            }
        });
        Liar { address, task }
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn lied(asked: &Message, lies: &[(&str, RecordType, Lie)], honest: SocketAddr) -> Option<Message> {
    let query = asked.queries.first()?;
    let name = query.name().to_ascii().to_ascii_lowercase();
    let name = name.trim_end_matches('.');
    let fits = |(of, kind, _): &&(&str, RecordType, Lie)| {
        (name == *of || name.ends_with(&format!(".{of}")))
            && (*kind == RecordType::ANY || *kind == query.query_type())
    };
    let lie = lies.iter().find(fits).map(|(.., lie)| lie);
    let mut put = asked.clone();
    if let Some(Lie::Replay(other)) = lie {
        let other = Name::from_ascii(format!("{other}.")).expect("name");
        put.queries = vec![Query::query(other, query.query_type())];
    }
    let socket = UdpSocket::bind((own_address(), 0)).await.ok()?;
    socket.send_to(&put.to_vec().ok()?, honest).await.ok()?;
    let mut buffer = vec![0; 4096];
    let n = socket.recv(&mut buffer).await.ok()?;
    let mut answer = Message::from_vec(&buffer[..n]).ok()?;
    answer.queries = asked.queries.clone();
    let proofs = [RecordType::RRSIG, RecordType::NSEC, RecordType::NSEC3];
    match lie {
        Some(Lie::Strip) => {
            for section in [&mut answer.answers, &mut answer.authorities] {
                section.retain(|record| !proofs.contains(&record.record_type()));
            }
            answer.metadata.authentic_data = true;
        }
        Some(Lie::Deny) => {
            answer.answers.clear();
            answer.authorities.clear();
            answer.metadata.response_code = ResponseCode::NXDomain;
            answer.metadata.authentic_data = true;
        }
        Some(Lie::Replay(_)) | None => {}
    }
    Some(answer)
}
