//! Questions whose answers must be secure: put to a validating resolver on this machine, whose AD bit says so, or
//! validated here (`validator`).
//!
//! The bit is one that anybody on the way could set, so only loopback is believed (RFC 7672 §2.1.1, RFC 6840
//! §5.7: AD in the question asks for AD in the answer). No cache of answers: the resolver has one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_resolver::proto::op::{Edns, Message, Query, ResponseCode};
use hickory_resolver::proto::rr::{DNSClass, Name, RData, RecordType};
use hickory_resolver::system_conf;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::validator::Validator;
use crate::dns::{DnsError, plain_name};

/// Resolvers that are asked: resolv.conf has at most three.
const MOST_SERVERS: usize = 3;
/// One try of two.
const TRY: Duration = Duration::from_millis(2500);
/// Without fragments (RFC 9715).
const UDP_PAYLOAD: u16 = 1232;
/// CNAMEs in one answer: resolvers give up at about as many.
const MOST_ALIASES: usize = 12;

pub(super) enum Validated {
    /// The resolver on this machine.
    NextDoor(SocketAddr),
    /// One for each resolver, asked in turn.
    Ourselves(Vec<Validator>),
}

#[derive(Debug)]
pub(super) struct Answer {
    /// The resolver validated it, or validated that there is nothing.
    pub(super) secure: bool,
    /// Of the type that was asked for; empty where there are none.
    pub(super) records: Vec<RData>,
    /// Where the CNAMEs led, lower case and without the dot at the end; the name that was asked for, without any.
    pub(super) name: String,
}

impl Validated {
    /// By ourselves, over the resolvers that everything is asked of.
    pub(super) fn ourselves(servers: &[SocketAddr], anchors: &str) -> Validated {
        let mut servers = servers.to_vec();
        if servers.is_empty()
            && let Ok((config, _)) = system_conf::read_system_conf()
        {
            servers.extend(config.name_servers().iter().map(|server| SocketAddr::new(server.ip, 53)));
        }
        servers.truncate(MOST_SERVERS);
        Validated::Ourselves(servers.into_iter().filter_map(|at| Validator::new(at, anchors)).collect())
    }

    /// The first resolver on loopback, of `servers` or, where that is empty, of the system.
    pub(super) fn find(servers: &[SocketAddr]) -> Option<Validated> {
        let system = || {
            let (config, _) = system_conf::read_system_conf().ok()?;
            config.name_servers().iter().map(|server| server.ip).find(IpAddr::is_loopback)
        };
        let server = match servers {
            [] => system().map(|ip| SocketAddr::new(ip, 53)),
            servers => servers.iter().copied().find(|server| server.ip().is_loopback()),
        };
        server.map(Validated::NextDoor)
    }

    pub(super) async fn ask(&self, name: &str, kind: RecordType) -> Result<Answer, DnsError> {
        let mut name = Name::from_ascii(name).map_err(|_| DnsError::NotFound)?;
        name.set_fqdn(true);
        let mut why = DnsError::Temporary("no resolver is known: name one in dns.servers".into());
        match self {
            Validated::NextDoor(server) => {
                for _ in 0..2 {
                    match timeout(TRY, exchange(*server, &name, kind)).await {
                        Ok(Ok(message)) => return read(&message, &name, kind),
                        Ok(Err(error)) => why = DnsError::Temporary(error.to_string()),
                        Err(_) => why = DnsError::Temporary("no answer in time".into()),
                    }
                }
            }
            // A resolver that is broken or lies can only make an answer bogus: another may do better.
            Validated::Ourselves(validators) => {
                for validator in validators {
                    let answer = validator.ask(&name, kind).await.map_err(DnsError::Temporary);
                    match answer.and_then(|message| read(&message, &name, kind)) {
                        Ok(answer) => return Ok(answer),
                        Err(error) => why = error,
                    }
                }
            }
        }
        Err(why)
    }
}

async fn exchange(server: SocketAddr, name: &Name, kind: RecordType) -> std::io::Result<Message> {
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.metadata.authentic_data = true;
    question.add_query(Query::query(name.clone(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD);
    question.set_edns(edns);
    let octets = question.to_vec().map_err(std::io::Error::other)?;
    let own: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let socket = UdpSocket::bind((own, 0)).await?;
    socket.connect(server).await?;
    socket.send(&octets).await?;
    let mut buffer = [0; UDP_PAYLOAD as usize];
    let answer = loop {
        let length = socket.recv(&mut buffer).await?;
        let message = Message::from_vec(buffer.get(..length).unwrap_or_default());
        if let Ok(message) = message
            && answers(&message, &question, name, kind)
        {
            break message;
        }
    };
    if !answer.metadata.truncation {
        return Ok(answer);
    }
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(octets.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], &octets].concat()).await?;
    let mut reply = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut reply).await?;
    let message = Message::from_vec(&reply).map_err(std::io::Error::other)?;
    match answers(&message, &question, name, kind) {
        true => Ok(message),
        false => Err(std::io::Error::other("an answer to something else")),
    }
}

fn answers(message: &Message, question: &Message, name: &Name, kind: RecordType) -> bool {
    let asked = |query: &Query| {
        query.name() == name && query.query_type() == kind && query.query_class() == DNSClass::IN
    };
    message.metadata.id == question.metadata.id && message.queries.first().is_some_and(asked)
}

fn read(message: &Message, asked: &Name, kind: RecordType) -> Result<Answer, DnsError> {
    match message.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => {}
        // A validating resolver answers SERVFAIL to what is bogus.
        code => return Err(DnsError::Temporary(code.to_string())),
    }
    let mut name = asked;
    for _ in 0..MOST_ALIASES {
        let alias = message.answers.iter().find_map(|record| match &record.data {
            RData::CNAME(alias) if record.name == *name && kind != RecordType::CNAME => Some(&alias.0),
            _ => None,
        });
        match alias {
            Some(next) => name = next,
            None => break,
        }
    }
    let records =
        message.answers.iter().filter(|record| record.record_type() == kind && record.name == *name);
    Ok(Answer {
        secure: message.metadata.authentic_data,
        records: records.map(|record| record.data.clone()).collect(),
        name: plain_name(name),
    })
}
