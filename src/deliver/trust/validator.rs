//! DNSSEC, validated by ourselves from a trust anchor down: NLnet Labs' `domain` does the proofs (RFC 4035, RFC 5155,
//! RFC 6840), over any resolver that passes DNSSEC records on. It need not be trusted.
//!
//! The answer comes as a validating resolver's would: AD where it is secure, SERVFAIL where it is bogus. Bounded: one
//! deadline for the question and all that its proof needs; the caches of keys and of checked signatures hold some
//! thousands. What panics in there is contained in a task of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use domain::base::iana::Class;
use domain::base::{MessageBuilder, Name as DomainName, Rtype};
use domain::dnssec::validator::anchor::TrustAnchors;
use domain::dnssec::validator::context::{Config, ValidationContext};
use domain::net::client::protocol::{TcpConnect, UdpConnect};
use domain::net::client::request::{RequestMessage, SendRequest};
use domain::net::client::{dgram, dgram_stream, validator};
use hickory_resolver::proto::op::Message;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::proto::serialize::binary::BinEncodable as _;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

/// A question with its proof: some ten questions where nothing is known yet, to a resolver that knows nothing either.
const DEADLINE: Duration = Duration::from_secs(15);
/// One of these questions, and how often it is repeated.
const READ: Duration = Duration::from_secs(3);
const REPEATS: u8 = 2;
/// Without fragments (RFC 9715).
const UDP_PAYLOAD: u16 = 1232;
/// Names whose keys, and signatures whose verdict, are remembered: a busy server writes to some thousands of domains.
const KEYS: u64 = 4096;
const SIGNATURES: u64 = 16_384;
/// However long a zone wants its keys kept.
const LONGEST: Duration = Duration::from_secs(3600);

type Sender = dyn SendRequest<RequestMessage<Vec<u8>>> + Send + Sync;

/// A validator over one resolver.
pub(super) struct Validator {
    inner: Arc<Sender>,
    transport: AbortHandle,
}

impl Validator {
    /// `None` where the anchors are no records; the configuration has checked them.
    pub(super) fn new(server: SocketAddr, anchors: &str) -> Option<Validator> {
        let anchors = TrustAnchors::from_u8(anchors.as_bytes()).ok()?;
        let mut datagrams = dgram::Config::new();
        datagrams.set_read_timeout(READ);
        datagrams.set_max_retries(REPEATS);
        datagrams.set_udp_payload_size(Some(UDP_PAYLOAD));
        let mut transport = dgram_stream::Config::new();
        transport.set_dgram(datagrams);
        let (udp, tcp) = (UdpConnect::new(server), TcpConnect::new(server));
        let (connection, transport) = dgram_stream::Connection::with_config(udp, tcp, transport);
        let transport = tokio::spawn(transport.run()).abort_handle();
        let mut config = Config::new();
        config.set_max_node_cache(KEYS);
        config.set_max_isig_cache(SIGNATURES);
        config.set_max_usig_cache(SIGNATURES);
        config.set_max_validity(LONGEST);
        let context = ValidationContext::with_config(anchors, connection.clone(), config);
        Some(Validator {
            inner: Arc::new(validator::Connection::new(connection, Arc::new(context))),
            transport,
        })
    }

    /// The answer; an error, in words, where there is none. Bogus answers are SERVFAIL.
    pub(super) async fn ask(&self, name: &Name, kind: RecordType) -> Result<Message, String> {
        let question = question(name, kind)?;
        let inner = Arc::clone(&self.inner);
        // Dropped with this future, which ends what is under way.
        let mut task = JoinSet::new();
        task.spawn(async move { inner.send_request(question).get_response().await });
        match timeout(DEADLINE, task.join_next()).await {
            Ok(Some(Ok(Ok(answer)))) => {
                Message::from_vec(answer.as_slice()).map_err(|error| format!("no answer in DNS: {error}"))
            }
            Ok(Some(Ok(Err(error)))) => Err(error.to_string()),
            Ok(Some(Err(_)) | None) => Err("the answer could not be judged".into()),
            Err(_) => Err("no answer in time".into()),
        }
    }
}

impl Drop for Validator {
    fn drop(&mut self) {
        self.transport.abort();
    }
}

fn question(name: &Name, kind: RecordType) -> Result<RequestMessage<Vec<u8>>, String> {
    let octets = name.to_bytes().map_err(|error| error.to_string())?;
    let name = DomainName::from_octets(octets).map_err(|error| error.to_string())?;
    let mut message = MessageBuilder::new_vec();
    message.header_mut().set_rd(true);
    message.header_mut().set_ad(true);
    let mut message = message.question();
    let kind = Rtype::from_int(u16::from(kind));
    message.push((name, kind, Class::IN)).map_err(|error| error.to_string())?;
    RequestMessage::new(message).map_err(|error| error.to_string())
}
