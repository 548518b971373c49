//! A name server for tests, in the process: it answers from a list, fails where it is told to, and counts.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME, MX, PTR, TXT};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::net::UdpSocket;

use super::Resolver;

/// What the server will say.
#[derive(Default)]
pub(crate) struct Zone {
    records: HashMap<String, Vec<RData>>,
    broken: HashSet<String>,
}

/// A running server; it stops with its task when the test's runtime ends.
pub(crate) struct Server {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

fn name(text: &str) -> Name {
    if text == "." { Name::root() } else { super::fqdn(text).unwrap() }
}

fn key(name: &Name) -> String {
    let labels: Vec<_> = name.iter().map(|label| String::from_utf8_lossy(label).to_lowercase()).collect();
    labels.join(".")
}

impl Zone {
    pub fn new() -> Zone {
        Zone::default()
    }

    fn add(mut self, owner: &str, data: RData) -> Zone {
        self.records.entry(key(&name(owner))).or_default().push(data);
        self
    }

    pub fn mx(self, owner: &str, preference: u16, exchange: &str) -> Zone {
        self.add(owner, RData::MX(MX::new(preference, name(exchange))))
    }

    pub fn a(self, owner: &str, address: &str) -> Zone {
        self.add(owner, RData::A(A(address.parse().unwrap())))
    }

    pub fn aaaa(self, owner: &str, address: &str) -> Zone {
        self.add(owner, RData::AAAA(AAAA(address.parse().unwrap())))
    }

    pub fn cname(self, owner: &str, target: &str) -> Zone {
        self.add(owner, RData::CNAME(CNAME(name(target))))
    }

    pub fn txt(self, owner: &str, strings: &[&str]) -> Zone {
        let strings = strings.iter().map(|s| (*s).to_owned()).collect();
        self.add(owner, RData::TXT(TXT::new(strings)))
    }

    pub fn ptr(self, address: &str, host: &str) -> Zone {
        let owner = Name::from(address.parse::<IpAddr>().unwrap()).to_ascii();
        self.add(&owner, RData::PTR(PTR(name(host))))
    }

    /// The same with the owner already in the reverse zone.
    pub fn alias_ptr(self, owner: &str, host: &str) -> Zone {
        self.add(owner, RData::PTR(PTR(name(host))))
    }

    /// SERVFAIL for everything about this name.
    pub fn broken(mut self, owner: &str) -> Zone {
        self.broken.insert(key(&name(owner)));
        self
    }

    pub async fn start(self) -> Server {
        self.serve(true).await
    }

    /// A server that hears and never answers.
    pub async fn start_silent(self) -> Server {
        self.serve(false).await
    }

    async fn serve(self, answers: bool) -> Server {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((len, peer)) = socket.recv_from(&mut buffer).await {
                count.fetch_add(1, Ordering::Relaxed);
                if answers && let Ok(request) = Message::from_vec(&buffer[..len]) {
                    let _ = socket.send_to(&self.answer(request).to_vec().unwrap(), peer).await;
                }
            }
        });
        Server { address, asked }
    }

    fn answer(&self, request: Message) -> Message {
        let query = request.queries[0].clone();
        let mut response = request.into_response();
        response.metadata.recursion_available = true;
        let mut owner = key(query.name());
        if self.broken.contains(&owner) {
            response.metadata.response_code = ResponseCode::ServFail;
            return response;
        }
        let below = |owner: &str| self.records.keys().any(|name| name.ends_with(&format!(".{owner}")));
        if !self.records.contains_key(&owner) && !below(&owner) {
            response.metadata.response_code = ResponseCode::NXDomain;
            return response;
        }
        while let Some(found) = self.records.get(&owner) {
            let mut next = None;
            for data in found {
                if data.record_type() == query.query_type() {
                    response.add_answer(Record::from_rdata(name(&owner), 300, data.clone()));
                } else if let RData::CNAME(target) = data
                    && query.query_type() != RecordType::CNAME
                {
                    response.add_answer(Record::from_rdata(name(&owner), 300, data.clone()));
                    next = Some(key(&target.0));
                }
            }
            match next {
                Some(target) => owner = target,
                None => break,
            }
        }
        response
    }
}

impl Server {
    /// A resolver with an empty cache that asks this server.
    pub fn resolver(&self) -> Resolver {
        Resolver::new(&[self.address]).unwrap()
    }

    /// Where it is asked.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Datagrams that came.
    pub fn questions(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}
