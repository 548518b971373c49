//! Questions to the DNS: one resolver for everybody, with a cache and deadlines.
//!
//! Promises: an answer or an error within `QUESTION` (3 s), whatever the name servers do; a bounded cache;
//! errors that say which of three things happened, because mail treats them differently: the name does not
//! exist (`NotFound`), it exists without such records (`Empty`), or nobody could tell (`Temporary`).
//! UDP first, TCP when an answer is truncated. CNAMEs are followed by the resolver (RFC 5321 §5.1).
//!
//! Never: the search list of resolv.conf. Mail domains are always fully qualified (RFC 5321 §2.3.5).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError as HickoryDnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::{TokioResolver, system_conf};

/// One question, retries and TCP included.
const QUESTION: Duration = Duration::from_secs(3);
/// One round of it; hickory makes two.
const ROUND: Duration = Duration::from_millis(1400);
/// Answers kept, positive and negative together.
const CACHED_ANSWERS: u64 = 4096;
/// However long the zone wants its answer kept: keys and policies are revoked sooner than that.
const LONGEST_POSITIVE: Duration = Duration::from_secs(3600);
/// RFC 2308 §5 allows up to three hours; a record that was just added should be seen sooner.
const LONGEST_NEGATIVE: Duration = Duration::from_secs(300);
/// Some servers send no SOA with "no": without this each message would ask them again.
const SHORTEST_NEGATIVE: Duration = Duration::from_secs(5);
/// The largest UDP answer asked for: it avoids fragments (RFC 9715; the figure is DNS Flag Day 2020's).
const UDP_PAYLOAD: u16 = 1232;
/// Octets of a name as text: 255 on the wire (RFC 1035 §2.3.4).
const LONGEST_NAME: usize = 253;
/// Requests under way on one connection; each inbound session asks a handful at once.
const ACTIVE_REQUESTS: usize = 1024;

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DnsError {
    /// NXDOMAIN: there is no such name, nor any below it (RFC 8020).
    #[error("no such domain")]
    NotFound,
    /// NODATA: the name exists, without records of this kind.
    #[error("no such record")]
    Empty,
    /// SERVFAIL, a timeout, no name server: ask again later.
    #[error("DNS failure: {0}")]
    Temporary(String),
}

impl DnsError {
    /// Whether asking again later may help.
    pub fn is_temporary(&self) -> bool {
        matches!(self, DnsError::Temporary(_))
    }
}

/// A mail exchanger, RFC 5321 §5.1. An exchange of `.` is the null MX of RFC 7505.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mx {
    pub preference: u16,
    /// Lower case, without the dot at the end (the null MX is `.`).
    pub exchange: String,
}

/// The resolver. Cloning shares cache and connections.
#[derive(Clone)]
pub struct Resolver {
    inner: TokioResolver,
}

impl Resolver {
    /// A resolver that asks `servers`, or those of the system where the list is empty.
    ///
    /// A system without name servers still gets a resolver: each question is then a temporary failure.
    pub fn new(servers: &[SocketAddr]) -> Result<Resolver, DnsError> {
        let mut options = ResolverOpts::default();
        let config = if servers.is_empty() {
            options.use_hosts_file = ResolveHosts::Always;
            match system_conf::read_system_conf() {
                Ok((config, _)) => {
                    ResolverConfig::from_parts(None, Vec::new(), config.name_servers().to_vec())
                }
                Err(error) => {
                    tracing::warn!(%error, "the system names no DNS servers: every lookup will fail");
                    ResolverConfig::from_name_servers(Vec::new())
                }
            }
        } else {
            // Tests and closed networks: what the configuration says, and nothing beside it.
            options.use_hosts_file = ResolveHosts::Never;
            ResolverConfig::from_name_servers(servers.iter().map(name_server).collect())
        };
        options.timeout = ROUND;
        options.attempts = 1;
        options.cache_size = CACHED_ANSWERS;
        options.positive_max_ttl = Some(LONGEST_POSITIVE);
        options.negative_max_ttl = Some(LONGEST_NEGATIVE);
        options.negative_min_ttl = Some(SHORTEST_NEGATIVE);
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.edns_payload_len = UDP_PAYLOAD;
        options.max_active_requests = ACTIVE_REQUESTS;
        // A lying or broken path shows at once on TCP; waiting for UDP twice would use up the deadline.
        options.try_tcp_on_error = true;
        let resolver = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            .with_options(options)
            .build()
            .map_err(|error| DnsError::Temporary(error.to_string()))?;
        Ok(Resolver { inner: resolver })
    }

    /// The mail exchangers of `domain`, best first. The order among equals is the answer's.
    pub async fn mx(&self, domain: &str) -> Result<Vec<Mx>, DnsError> {
        let lookup = self.ask(fqdn(domain)?, RecordType::MX).await?;
        let mut all: Vec<Mx> = records(&lookup, |data| match data {
            RData::MX(mx) => Some(Mx { preference: mx.preference, exchange: plain_name(&mx.exchange) }),
            _ => None,
        })?;
        all.sort_by_key(|mx| mx.preference);
        Ok(all)
    }

    /// The addresses of `host`, IPv4 and IPv6. One family's failure does not hide the other's answer.
    pub async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, DnsError> {
        let name = fqdn(host)?;
        let (v4, v6) = tokio::join!(self.ask(name.clone(), RecordType::A), self.ask(name, RecordType::AAAA));
        let address = |data: &RData| match data {
            RData::A(a) => Some(IpAddr::V4(a.0)),
            RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
            _ => None,
        };
        let v4 = v4.and_then(|lookup| records(&lookup, address));
        let v6 = v6.and_then(|lookup| records(&lookup, address));
        match (v4, v6) {
            (Ok(mut v4), Ok(v6)) => {
                v4.extend(v6);
                Ok(v4)
            }
            (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(one),
            (Err(v4), Err(v6)) => Err(match (v4, v6) {
                (DnsError::Temporary(why), _) | (_, DnsError::Temporary(why)) => DnsError::Temporary(why),
                (DnsError::Empty, _) | (_, DnsError::Empty) => DnsError::Empty,
                (DnsError::NotFound, DnsError::NotFound) => DnsError::NotFound,
            }),
        }
    }

    /// The addresses of `host` of one family, that of `like`.
    pub async fn addresses_like(&self, host: &str, like: IpAddr) -> Result<Vec<IpAddr>, DnsError> {
        let kind = if like.is_ipv4() { RecordType::A } else { RecordType::AAAA };
        let lookup = self.ask(fqdn(host)?, kind).await?;
        records(&lookup, |data| match data {
            RData::A(a) => Some(IpAddr::V4(a.0)),
            RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
            _ => None,
        })
    }

    /// The IPv4 addresses of a name, as DNS block lists answer with (RFC 5782).
    pub async fn ipv4(&self, name: &str) -> Result<Vec<Ipv4Addr>, DnsError> {
        let lookup = self.ask(fqdn(name)?, RecordType::A).await?;
        records(&lookup, |data| match data {
            RData::A(a) => Some(a.0),
            _ => None,
        })
    }

    /// The TXT records of `name`, the strings of each joined without a space (RFC 7208 §3.3, RFC 6376
    /// §3.6.2.2).
    pub async fn txt(&self, name: &str) -> Result<Vec<String>, DnsError> {
        let lookup = self.ask(fqdn(name)?, RecordType::TXT).await?;
        records(&lookup, |data| match data {
            RData::TXT(txt) => Some(String::from_utf8_lossy(&txt.txt_data.concat()).into_owned()),
            _ => None,
        })
    }

    /// The host names of an address, from the reverse zone.
    pub async fn ptr(&self, ip: IpAddr) -> Result<Vec<String>, DnsError> {
        let lookup = self.ask(Name::from(ip), RecordType::PTR).await?;
        records(&lookup, |data| match data {
            RData::PTR(name) => Some(plain_name(name)),
            _ => None,
        })
    }

    async fn ask(&self, name: Name, kind: RecordType) -> Result<Lookup, DnsError> {
        match tokio::time::timeout(QUESTION, self.inner.lookup(name, kind)).await {
            Ok(Ok(lookup)) => Ok(lookup),
            Ok(Err(error)) => Err(DnsError::from(error)),
            Err(_) => Err(DnsError::Temporary("no answer in time".into())),
        }
    }
}

/// UDP and TCP on the port that was given.
fn name_server(address: &SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()]
        .into_iter()
        .map(|mut connection| {
            connection.port = address.port();
            connection
        })
        .collect();
    NameServerConfig::new(address.ip(), true, connections)
}

/// A name that no search list is tried on. What is no name cannot exist.
///
/// ASCII goes as it stands: a label may hold anything (RFC 2181 §11), and nothing in it is an escape.
fn fqdn(name: &str) -> Result<Name, DnsError> {
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.len() > LONGEST_NAME {
        return Err(DnsError::NotFound);
    }
    let labels = || Name::from_labels(name.split('.').map(str::as_bytes));
    let name = if name.is_ascii() { labels() } else { Name::from_str_relaxed(name) };
    let mut name = name.map_err(|_| DnsError::NotFound)?;
    name.set_fqdn(true);
    Ok(name)
}

/// Lower case and without the dot at the end; the root stays `.`. A label that is no text is written with
/// escapes, and so is not the name of anything that is asked for.
pub(crate) fn plain_name(name: &Name) -> String {
    let plain = |octet: &u8| octet.is_ascii_graphic() && !matches!(octet, b'.' | b'\\');
    if !name.iter().flatten().all(plain) {
        return name.to_lowercase().to_ascii();
    }
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|octet| char::from(octet.to_ascii_lowercase())));
    }
    if text.is_empty() { ".".to_owned() } else { text }
}

/// The wanted records of an answer. A CNAME alone is no answer (NODATA at its target).
fn records<T>(lookup: &Lookup, pick: impl Fn(&RData) -> Option<T>) -> Result<Vec<T>, DnsError> {
    let all: Vec<T> = lookup.answers().iter().filter_map(|record| pick(&record.data)).collect();
    if all.is_empty() { Err(DnsError::Empty) } else { Ok(all) }
}

impl From<NetError> for DnsError {
    fn from(error: NetError) -> Self {
        match &error {
            NetError::Dns(HickoryDnsError::NoRecordsFound(none)) => match none.response_code {
                ResponseCode::NXDomain => DnsError::NotFound,
                ResponseCode::NoError => DnsError::Empty,
                code => DnsError::Temporary(code.to_string()),
            },
            _ => DnsError::Temporary(error.to_string()),
        }
    }
}

#[cfg(test)]
#[path = "dns_zone.rs"]
pub(crate) mod zone;

#[cfg(test)]
mod tests {
    use super::zone::Zone;
    use super::*;

    #[tokio::test]
    async fn three_kinds_of_no_answer() {
        let zone = Zone::new().mx("a.example", 10, "mx.a.example").broken("broken.example").start().await;
        let dns = zone.resolver();
        assert_eq!(dns.mx("nowhere.example").await, Err(DnsError::NotFound));
        assert_eq!(dns.txt("a.example").await, Err(DnsError::Empty));
        assert!(dns.mx("broken.example").await.unwrap_err().is_temporary());
        assert_eq!(dns.mx("no name at all..").await, Err(DnsError::NotFound));
    }

    #[tokio::test]
    async fn what_delivery_asks() {
        let zone = Zone::new()
            .mx("a.example", 20, "Backup.A.example")
            .mx("a.example", 10, "mx.a.example")
            .mx("null.example", 0, ".")
            .a("mx.a.example", "192.0.2.1")
            .aaaa("mx.a.example", "2001:db8::1")
            .a("four.example", "192.0.2.4")
            .cname("alias.example", "four.example")
            .txt("t.example", &["v=spf1 ", "-all"])
            .ptr("192.0.2.1", "mx.a.example")
            .start()
            .await;
        let dns = zone.resolver();
        let mx = |preference, exchange: &str| Mx { preference, exchange: exchange.into() };
        let all = dns.mx("A.example").await.unwrap();
        assert_eq!(all, [mx(10, "mx.a.example"), mx(20, "backup.a.example")]);
        assert_eq!(dns.mx("null.example").await.unwrap(), [mx(0, ".")]);
        let both = dns.addresses("mx.a.example").await.unwrap();
        assert_eq!(both, ["192.0.2.1".parse::<IpAddr>().unwrap(), "2001:db8::1".parse().unwrap()]);
        assert_eq!(dns.addresses("alias.example").await.unwrap().len(), 1);
        assert_eq!(dns.addresses("a.example").await, Err(DnsError::Empty));
        assert_eq!(dns.txt("t.example").await.unwrap(), ["v=spf1 -all"]);
        assert_eq!(dns.ptr("192.0.2.1".parse().unwrap()).await.unwrap(), ["mx.a.example"]);
    }

    #[tokio::test]
    async fn answers_are_remembered_yes_and_no() {
        let zone = Zone::new().txt("t.example", &["x"]).start().await;
        let dns = zone.resolver();
        for _ in 0..3 {
            assert!(dns.txt("t.example").await.is_ok());
            assert_eq!(dns.txt("gone.example").await, Err(DnsError::NotFound));
        }
        assert_eq!(zone.questions(), 2);
    }

    /// A name server that never answers must not hold anybody longer than the deadline.
    #[tokio::test]
    async fn silence_is_temporary_and_bounded() {
        let dns = Zone::new().start_silent().await;
        let before = tokio::time::Instant::now();
        assert!(dns.resolver().mx("a.example").await.unwrap_err().is_temporary());
        assert!(before.elapsed() <= QUESTION + Duration::from_millis(500));
    }
}
