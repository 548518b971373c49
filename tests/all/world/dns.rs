//! An authoritative DNS server in this process, with its zones given as text:
//!
//! ```text
//! agents.example      MX    10 mx.agents.example
//! mx.agents.example   A     127.64.1.1
//! agents.example      TXT   v=spf1 ip4:127.0.0.0/8 -all
//! dead.example        DEAD                  ; and everything below it: nobody ever answers
//! broken.example      SERVFAIL
//! slow.example        SLOW                  ; and everything below it: answers over UDP take a second
//! signed.example      SECURE                ; and everything below it: answers have the AD bit, as a validating resolver's
//! ```
//!
//! Records can be added while it runs. Answers may be cached for a second, or for as long as `ttl` says.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use hickory_server::proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, MX, PTR, SOA, TLSA, TXT},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    task::JoinHandle,
};

#[derive(Debug, Clone)]
enum Entry {
    Data(RData),
    Dead,
    ServFail,
    Slow,
    Secure,
}

#[derive(Default)]
struct Content {
    entries: Vec<(String, Entry)>,
    ttl: u32,
    /// Every name that was asked for.
    asked: Vec<String>,
}

type Zones = Arc<Mutex<Content>>;

/// Stops when it is dropped.
pub struct Dns {
    pub address: SocketAddr,
    zones: Zones,
    tasks: Vec<JoinHandle<()>>,
}

impl Dns {
    /// On an address of its own and a port that needs no privilege.
    pub async fn start(zone: &str) -> Dns {
        Dns::start_at(SocketAddr::new(super::own_address(), 5353), zone).await
    }

    /// Port 53, which a peer that only knows resolv.conf (Postfix) needs, and root.
    pub async fn start_at_53(zone: &str) -> Dns {
        Dns::start_at(SocketAddr::new(super::own_address(), 53), zone).await
    }

    async fn start_at(address: SocketAddr, zone: &str) -> Dns {
        let zones = Arc::new(Mutex::new(Content { entries: Vec::new(), ttl: 1, asked: Vec::new() }));
        let udp = Arc::new(UdpSocket::bind(address).await.expect("DNS over UDP"));
        let tcp = TcpListener::bind(address).await.expect("DNS over TCP");
        let tasks =
            vec![tokio::spawn(serve_udp(udp, zones.clone())), tokio::spawn(serve_tcp(tcp, zones.clone()))];
        let dns = Dns { address, zones, tasks };
        dns.add(zone);
        dns
    }

    /// More records, in the same words.
    pub fn add(&self, zone: &str) {
        let mut zones = self.zones.lock().unwrap();
        for line in
            zone.lines().map(|line| line.split(" ;").next().unwrap_or("").trim()).filter(|l| !l.is_empty())
        {
            let mut words = line.split_whitespace();
            let name = words.next().unwrap().trim_end_matches('.').to_ascii_lowercase();
            let kind = words.next().unwrap_or_else(|| panic!("no type: {line}"));
            zones.entries.push((name, entry(kind, &words.collect::<Vec<_>>().join(" "))));
        }
    }

    /// (Not for the bench.) Forgets every record of this name.
    #[allow(dead_code)]
    pub fn remove(&self, name: &str) {
        self.zones.lock().unwrap().entries.retain(|(of, _)| of != name);
    }

    /// (Not for the bench.) Whether somebody asked for this name.
    #[allow(dead_code)]
    pub fn was_asked(&self, name: &str) -> bool {
        self.zones.lock().unwrap().asked.iter().any(|asked| asked == name)
    }

    /// (For the bench.) For how many seconds answers may be cached from now on.
    #[allow(dead_code)]
    pub fn ttl(&self, seconds: u32) {
        self.zones.lock().unwrap().ttl = seconds;
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn entry(kind: &str, value: &str) -> Entry {
    let name = |text: &str| Name::from_ascii(format!("{}.", text.trim_end_matches('.'))).expect("name");
    Entry::Data(match kind {
        "A" => RData::A(A(value.parse().expect("A"))),
        "AAAA" => RData::AAAA(AAAA(value.parse().expect("AAAA"))),
        "CNAME" => RData::CNAME(CNAME(name(value))),
        "PTR" => RData::PTR(PTR(name(value))),
        "MX" => {
            let (preference, host) = value.split_once(' ').expect("MX");
            let host = if host == "." { Name::root() } else { name(host) };
            RData::MX(MX::new(preference.parse().expect("MX"), host))
        }
        // A TXT record is a list of strings of at most 255 bytes each; readers join them.
        "TXT" => {
            let text = value.trim_matches('"').as_bytes();
            RData::TXT(TXT::new(text.chunks(255).map(|c| String::from_utf8(c.to_vec()).unwrap()).collect()))
        }
        "DEAD" => return Entry::Dead,
        "SERVFAIL" => return Entry::ServFail,
        "SLOW" => return Entry::Slow,
        "SECURE" => return Entry::Secure,
        "TLSA" => {
            let words = value.split_whitespace().collect::<Vec<_>>();
            let octet = |i: usize| words[i].parse::<u8>().expect("TLSA");
            let hex = |i: usize| u8::from_str_radix(&words[3][i..i + 2], 16).expect("TLSA");
            let data = (0..words[3].len()).step_by(2).map(hex).collect();
            RData::TLSA(TLSA::new(octet(0).into(), octet(1).into(), octet(2).into(), data))
        }
        other => panic!("no such record type in the test DNS: {other}"),
    })
}

/// `None`: no answer at all.
fn answer(zones: &Zones, question: &[u8]) -> Option<Message> {
    let asked = Message::from_vec(question).ok()?;
    let query = asked.queries.first()?.clone();
    let mut zones = zones.lock().unwrap();
    zones.asked.push(query.name().to_ascii().trim_end_matches('.').to_ascii_lowercase());
    let mut reply = Message::response(asked.metadata.id, asked.metadata.op_code);
    reply.metadata.message_type = MessageType::Response;
    reply.metadata.authoritative = true;
    reply.metadata.recursion_desired = asked.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.add_query(query.clone());
    if let Some(edns) = &asked.edns {
        let mut ours = edns.clone();
        ours.set_max_payload(1232);
        reply.set_edns(ours);
    }
    let mut name = query.name().clone();
    for _ in 0..8 {
        let wanted = name.to_ascii().trim_end_matches('.').to_ascii_lowercase();
        for (zone, entry) in zones.entries.iter() {
            let inside = wanted.strip_suffix(zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
            match entry {
                Entry::Dead if inside => return None,
                Entry::ServFail if inside => {
                    reply.metadata.response_code = ResponseCode::ServFail;
                    return Some(reply);
                }
                Entry::Secure if inside => reply.metadata.authentic_data = asked.metadata.authentic_data,
                _ => {}
            }
        }
        let here = zones.entries.iter().filter(|(n, _)| *n == wanted).collect::<Vec<_>>();
        let is_below = |name: &str| name.strip_suffix(&wanted).is_some_and(|rest| rest.ends_with('.'));
        if here.is_empty() && !zones.entries.iter().any(|(name, _)| is_below(name)) {
            reply.metadata.response_code = ResponseCode::NXDomain;
        }
        let mut alias = None;
        for (_, entry) in here {
            if let Entry::Data(data) = entry {
                if data.record_type() == query.query_type() {
                    reply.add_answer(Record::from_rdata(name.clone(), zones.ttl, data.clone()));
                } else if let RData::CNAME(target) = data
                    && query.query_type() != RecordType::CNAME
                {
                    reply.add_answer(Record::from_rdata(name.clone(), zones.ttl, data.clone()));
                    alias = Some(target.0.clone());
                }
            }
        }
        match alias {
            Some(target) => name = target,
            None => break,
        }
    }
    if reply.answers.is_empty() {
        // RFC 2308 §3: without a SOA record a negative answer may not be cached, and some resolvers ask again.
        let soa = SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, 1);
        reply.add_authority(Record::from_rdata(Name::root(), zones.ttl, RData::SOA(soa)));
    }
    Some(reply)
}

async fn serve_udp(socket: Arc<UdpSocket>, zones: Zones) {
    let mut question = vec![0; 4096];
    while let Ok((n, peer)) = socket.recv_from(&mut question).await {
        if let Some(reply) = answer(&zones, &question[..n]) {
            let slow = is_slow(&zones, &reply);
            let mut bytes = reply.to_vec().expect("DNS reply");
            if bytes.len() > 1232 {
                bytes = reply.truncate().to_vec().expect("DNS reply");
            }
            let socket = socket.clone();
            let send = async move { socket.send_to(&bytes, peer).await };
            match slow {
                false => _ = send.await,
                true => {
                    tokio::spawn(async move {
                        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                        send.await
                    });
                }
            }
        }
    }
}

fn is_slow(zones: &Zones, reply: &Message) -> bool {
    let name = reply.queries[0].name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
    let zones = zones.lock().unwrap();
    zones.entries.iter().any(|(zone, entry)| {
        matches!(entry, Entry::Slow) && (name == *zone || name.ends_with(&format!(".{zone}")))
    })
}

async fn serve_tcp(listener: TcpListener, zones: Zones) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let zones = zones.clone();
        tokio::spawn(async move {
            while let Ok(n) = stream.read_u16().await {
                let mut question = vec![0; n as usize];
                if stream.read_exact(&mut question).await.is_err() {
                    return;
                }
                let Some(reply) = answer(&zones, &question) else { return };
                let bytes = reply.to_vec().expect("DNS reply");
                let mut framed = (bytes.len() as u16).to_be_bytes().to_vec();
                framed.extend(bytes);
                if stream.write_all(&framed).await.is_err() {
                    return;
                }
            }
        });
    }
}
