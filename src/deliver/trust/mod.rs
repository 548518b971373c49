//! Whom to trust with mail: what a recipient's domain demands of its hosts, and whether a connection meets it.
//!
//! An attempt asks for the `Plan` of its domain, then for the `Need` of each host; `secure` takes a greeted
//! connection into TLS and says whether the need is met. A kept connection is used again only where it meets the
//! need of the next message. In this order: DANE, where MX, address and TLSA are secure (RFC 7672; before MTA-STS
//! by RFC 8461 §2); MTA-STS of the recipients' domain (RFC 8461); else TLS where it is offered (RFC 7435).
//!
//! Never silently weaker than last time: a domain that took mail in TLS waits for it, for a while, then gets its
//! mail in clear; the operator hears of that, and of a domain whose hosts prove themselves no more, by the event
//! `tls.weaker`. What every session came to is counted for reports (RFC 8460).

mod dane;
mod judge;
mod notes;
mod policies;
mod sts;
mod validated;
mod validator;

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_resolver::proto::rr::{RData, RecordType};
use lru::LruCache;
use rustls::client::WebPkiServerVerifier;
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::dane::{Association, Associations};
use self::judge::{Judge, Measure};
use self::notes::{Note, Weaker};
pub(crate) use self::policies::served;
use self::sts::Mode;
pub(crate) use self::sts::Policy;
use self::validated::Validated;
use crate::clock::{Clock, Millis};
use crate::config::Dane;
use crate::deliver::client::{self, Client, ClientError, Stage};
use crate::deliver::outcome::Outcome;
use crate::deliver::pool;
use crate::deliver::route::Network;
use crate::dns::Resolver;
use crate::floor::Floor;
use crate::inbox::operator_address;
use crate::store::tls_result::{PolicyType, ResultType, TlsResult};
use crate::store::trust::{self as memory, StoredPolicy};
use crate::store::{Store, StoreError};

/// Domains of which this process remembers what the database says, and for how long.
const REMEMBERED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(9_999);
const REMEMBERED_FOR: Duration = Duration::from_secs(600);
/// RFC 8461 §3.3: after a failure, do not ask again at once.
const AFTER_FAILURE: Duration = Duration::from_secs(300);
/// Deliveries in TLS that make it a habit: one may have been an experiment.
const HABIT: i64 = 3;

pub(crate) struct Trust {
    dns: Resolver,
    store: Store,
    clock: Clock,
    validated: Option<Validated>,
    /// Where mail is taken, for the names of TLSA records.
    port: u16,
    /// For policies.
    network: Network,
    /// `None` where the system has no authorities: nothing is verified then.
    web: Option<Arc<WebPkiServerVerifier>>,
    roots: Arc<RootCertStore>,
    downgrade_wait: Millis,
    known: Mutex<LruCache<String, Known>>,
    notes: mpsc::Sender<Note>,
    /// The inbox that hears of what concerns the whole server.
    operator: Arc<str>,
}

/// What is known of a domain.
#[derive(Clone)]
struct Known {
    policy: Option<(StoredPolicy, Arc<Policy>)>,
    /// In TLS, one after the other.
    deliveries: i64,
    loaded: Instant,
    /// The id whose policy could not be had.
    failed: Option<(String, Instant)>,
}

/// What a domain demands.
pub(crate) struct Plan {
    domain: String,
    /// Where its CNAMEs led, if it has any: a name that a certificate may have too (RFC 7672 §3.2.2).
    expanded: Option<String>,
    sts: Option<Arc<Policy>>,
    /// The hosts of its secure MX; `None` where that is not secure.
    secure_hosts: Option<Vec<String>>,
    habit: bool,
    /// Sessions are told to the domain. Not those that ask for nothing: the delivery of a TLS report, which says
    /// `TLS-Required: No`, would be the next day's report (the loop of Stalwart 0.12.4).
    counted: bool,
}

/// What a host must be.
#[derive(Debug, Clone)]
pub(crate) struct Need {
    domain: String,
    expanded: Option<String>,
    host: String,
    level: Level,
    sts: Option<Arc<Policy>>,
    /// The domain has taken mail in TLS so far.
    habit: bool,
    counted: bool,
    /// The domain itself names this host, by a secure MX or by its MTA-STS policy.
    vouched: bool,
    /// The message must stay in TLS to its end (RFC 8689 §2).
    to_the_end: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Level {
    Opportunistic,
    /// TLS with whatever certificate: TLSA records, none of them usable (RFC 7672 §2.2).
    Encrypted,
    WebPki,
    Dane(Arc<Associations>),
}

/// What a connection has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proof {
    domain: String,
    host: String,
    level: Level,
}

/// Why a connection is not secure.
pub(crate) enum Refusal {
    /// It may go in clear, over a new connection.
    InClear(ClientError),
    Final(ClientError),
}

impl Plan {
    /// Nothing is demanded.
    pub(crate) fn none(domain: &str) -> Plan {
        Plan {
            domain: domain.to_owned(),
            expanded: None,
            sts: None,
            secure_hosts: None,
            habit: false,
            counted: false,
        }
    }
}

impl Need {
    /// Nothing is demanded of this host.
    pub(crate) fn nothing(domain: &str, host: &str) -> Need {
        Need {
            domain: domain.to_owned(),
            expanded: None,
            host: host.to_owned(),
            level: Level::Opportunistic,
            sts: None,
            habit: false,
            counted: false,
            vouched: false,
            to_the_end: false,
        }
    }

    /// For a message that must stay in TLS to its end: a host that the domain vouches for and that proves itself, by
    /// TLSA records or by an authority of the web (RFC 8689 §2, §4.2.1, §8.2). An error says why it is none.
    pub(crate) fn in_tls_to_the_end(self) -> Result<Need, String> {
        if !self.vouched {
            return Err(format!(
                "{} does not say by DNSSEC or by an MTA-STS policy that {} is its host, which a message that must stay \
                 in TLS (REQUIRETLS) needs",
                self.domain, self.host
            ));
        }
        let level = match self.level {
            Level::Dane(dane) => Level::Dane(dane),
            Level::Opportunistic | Level::Encrypted | Level::WebPki => Level::WebPki,
        };
        Ok(Need { level, to_the_end: true, ..self })
    }

    /// Whether a kept connection will do.
    pub(crate) fn is_met_by(&self, client: &Client) -> bool {
        if self.to_the_end && !client.keeps_tls() {
            return false;
        }
        match &self.level {
            Level::Opportunistic => client.encrypted || !self.habit,
            Level::Encrypted => client.encrypted,
            // Usage 3 proves the host for every domain; names of usage 2 are the domain's own.
            level => client.proof.as_ref().is_some_and(|proof| {
                proof.host == self.host
                    && proof.level == *level
                    && (proof.domain == self.domain || *level == Level::WebPki)
            }),
        }
    }

    fn measure(&self) -> (Measure, bool) {
        match &self.level {
            Level::Dane(dane) => {
                let domains =
                    [Some(self.domain.clone()), self.expanded.clone()].into_iter().flatten().collect();
                (Measure::Dane(Arc::clone(dane), domains), true)
            }
            Level::WebPki => (Measure::WebPki, true),
            // RFC 8461 §5: testing reports what enforce would have refused.
            Level::Opportunistic if self.sts.is_some() => (Measure::WebPki, false),
            Level::Opportunistic | Level::Encrypted => (Measure::Nothing, false),
        }
    }

    fn proof(&self) -> Proof {
        Proof { domain: self.domain.clone(), host: self.host.clone(), level: self.level.clone() }
    }

    fn result(&self, result: ResultType, address: Option<IpAddr>, from: Option<IpAddr>) -> TlsResult {
        let (policy_type, policy_strings, policy_mx) = match (&self.level, &self.sts) {
            (Level::Dane(dane), _) => {
                (PolicyType::Tlsa, dane.records.iter().map(Association::text).collect(), Vec::new())
            }
            (Level::Encrypted, _) => (PolicyType::Tlsa, Vec::new(), Vec::new()),
            (_, Some(policy)) => (PolicyType::Sts, policy.lines.clone(), policy.mx.clone()),
            (_, None) => (PolicyType::NoPolicyFound, Vec::new(), Vec::new()),
        };
        let ip = |ip: Option<IpAddr>| ip.map(|ip| ip.to_canonical().to_string()).unwrap_or_default();
        TlsResult {
            policy_domain: self.domain.clone(),
            policy_type,
            policy_strings,
            policy_mx,
            result,
            receiving_mx: self.host.clone(),
            receiving_ip: ip(address),
            sending_ip: ip(from),
        }
    }
}

impl Trust {
    pub(crate) fn new(floor: &Floor, network: &Network) -> Trust {
        let config = &floor.config.trust;
        let roots = Arc::new(crate::tls::roots(config.extra_roots.as_deref()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let validated = match config.dane {
            Dane::Off => None,
            Dane::TrustAd => Validated::find(&floor.config.dns.servers),
            Dane::Validate => Some(Validated::ourselves(&floor.config.dns.servers, &config.dnssec_anchors)),
        };
        if config.dane == Dane::TrustAd && validated.is_none() {
            tracing::warn!("relay.dane is \"trust_ad\" and no DNS server is on loopback: DANE is off");
        }
        let operator =
            floor.config.domains.first().map(|domain| operator_address(domain)).unwrap_or_default();
        let operator: Arc<str> = operator.into();
        Trust {
            dns: floor.dns.clone(),
            store: floor.store.clone(),
            clock: floor.clock.clone(),
            validated,
            port: network.port,
            network: Network { port: config.sts_port, ..network.clone() },
            web: WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), provider).build().ok(),
            roots,
            downgrade_wait: i64::try_from(config.downgrade_wait.as_millis()).unwrap_or(Millis::MAX),
            known: Mutex::new(LruCache::new(REMEMBERED)),
            notes: notes::start(floor.store.clone(), floor.clock.clone(), Arc::clone(&operator)),
            operator,
        }
    }

    /// Calling out where a certificate must be good, by the system's authorities and `relay.extra_roots`.
    pub(crate) fn verifying(&self) -> Result<ClientConfig, rustls::Error> {
        crate::tls::verifying_by(Arc::clone(&self.roots))
    }

    /// What `domain` demands, the one in the recipients' addresses (RFC 8461 §3).
    pub(crate) async fn plan(&self, domain: &str) -> Result<Plan, Outcome> {
        if domain.starts_with('[') {
            return Ok(Plan::none(domain));
        }
        // Not knowing is no licence to be careless.
        let unread = |error: StoreError| {
            tracing::warn!(%error, "what is known of a domain's TLS could not be read");
            Outcome::deferred("4.3.0", "it cannot be known just now what TLS is needed")
        };
        let sts = self.policy(domain).await.map_err(unread)?.filter(|policy| policy.mode != Mode::None);
        let habit = self.known(domain).await.map_err(unread)?.deliveries >= HABIT;
        let (mut secure_hosts, mut expanded) = (None, None);
        if let Some(dns) = &self.validated {
            match dns.ask(domain, RecordType::MX).await {
                Ok(answer) if answer.secure => {
                    secure_hosts = Some(hosts_of(domain, &answer.records));
                    expanded = Some(answer.name).filter(|name| name != domain);
                }
                Ok(_) => {}
                // RFC 7672 §2.1: what is bogus, or cannot be known, delays.
                Err(error) => {
                    let text = format!("the MX of {domain} cannot be validated: {error}");
                    return Err(Outcome::deferred("4.7.0", text));
                }
            }
        }
        Ok(Plan { domain: domain.to_owned(), expanded, sts, secure_hosts, habit, counted: true })
    }

    /// What this host of the domain must be; an outcome where it must not be used.
    pub(crate) async fn need(&self, plan: &Plan, host: &str) -> Result<Need, Outcome> {
        let mut need = Need {
            expanded: plan.expanded.clone(),
            sts: plan.sts.clone(),
            habit: plan.habit,
            counted: plan.counted,
            ..Need::nothing(&plan.domain, host)
        };
        if let Some(hosts) = &plan.secure_hosts {
            need.vouched = true;
            // The way was found by another question, which somebody may have answered for the domain.
            if !hosts.iter().any(|secure| secure == host) {
                let text = format!("the secure MX of {} does not name its host {host}", plan.domain);
                return Err(Outcome::deferred("4.7.0", text));
            }
            match self.tlsa(host).await {
                Ok(None) => {}
                Ok(Some(dane)) => {
                    // RFC 8461 §2: with both, DANE decides.
                    need.level = match dane.records.is_empty() {
                        true => Level::Encrypted,
                        false => Level::Dane(Arc::new(dane)),
                    };
                    return Ok(need);
                }
                Err(why) => {
                    need.sts = None;
                    self.note(need.result(ResultType::DnssecInvalid, None, None));
                    return Err(Outcome::deferred("4.7.0", why));
                }
            }
        }
        let Some(policy) = &plan.sts else { return Ok(need) };
        let covered = policy.covers(host);
        need.vouched |= covered;
        if !covered {
            self.note(need.result(ResultType::ValidationFailure, None, None));
        }
        match (policy.mode, covered) {
            (Mode::Enforce, false) => {
                let text = format!("the MTA-STS policy of {} does not name its host {host}", plan.domain);
                Err(Outcome::deferred("4.7.0", text))
            }
            (Mode::Enforce, true) => Ok(Need { level: Level::WebPki, ..need }),
            _ => Ok(need),
        }
    }

    /// The usable TLSA records of a host, at the name that has them; `None` where there are none.
    async fn tlsa(&self, host: &str) -> Result<Option<Associations>, String> {
        let Some(dns) = &self.validated else { return Ok(None) };
        let unknown = |what: &str, error| format!("the {what} of {host} cannot be validated: {error}");
        let mut address = dns.ask(host, RecordType::A).await.map_err(|error| unknown("address", error))?;
        if address.records.is_empty() {
            address = dns.ask(host, RecordType::AAAA).await.map_err(|error| unknown("address", error))?;
        }
        let is_alias = address.name != host;
        let mut bases = Vec::new();
        if address.secure {
            // RFC 7672 §2.2.3: where the CNAMEs led, then the name in the MX.
            bases.push(address.name);
            bases.extend(is_alias.then(|| host.to_owned()));
        } else if is_alias {
            // RFC 7672 §2.2.2: a CNAME that is secure, into a zone that is not, vouches for its own name alone.
            let alias = dns.ask(host, RecordType::CNAME).await.map_err(|error| unknown("CNAME", error))?;
            bases.extend((alias.secure && !alias.records.is_empty()).then(|| host.to_owned()));
        }
        // RFC 7672 §2.2.2: without a secure address no TLSA is asked for, as broken servers fail on that question.
        for base in bases {
            let name = format!("_{}._tcp.{base}", self.port);
            let answer = dns.ask(&name, RecordType::TLSA).await.map_err(|error| unknown("TLSA", error))?;
            if answer.secure && !answer.records.is_empty() {
                let read = |data| if let RData::TLSA(tlsa) = data { Some(tlsa) } else { None };
                let records: Vec<_> = answer.records.into_iter().filter_map(read).collect();
                return Ok(Some(Associations { base, records: dane::usable(&records) }));
            }
        }
        Ok(None)
    }

    /// Takes a greeted connection into TLS, as far as it is needed and can be had.
    pub(crate) async fn secure(
        &self,
        client: Client,
        name: &str,
        need: &Need,
        address: SocketAddr,
    ) -> Result<Client, Refusal> {
        let (to, from) = (Some(address.ip()), client.local_ip());
        if !client.offers.starttls {
            return self.without_tls(client, need, to, from).await;
        }
        let (measure, strict) = need.measure();
        let judge = Judge::new(measure, strict, self.web.clone());
        let config = judge.config().map_err(|error| Refusal::Final(ClientError::Tls(error.to_string())))?;
        let host = match &need.level {
            Level::Dane(dane) => &dane.base,
            _ => &need.host,
        };
        match client.start_tls(name, host, config).await {
            Ok(mut client) if client.encrypted => {
                self.session(need, judge.result().unwrap_or(ResultType::Success), to, from);
                if need.to_the_end && !client.keeps_tls() {
                    pool::farewell(client);
                    return Err(Refusal::Final(client::keeps_no_tls(&need.host)));
                }
                client.proof = Some(need.proof());
                Ok(client)
            }
            Ok(client) => self.without_tls(client, need, to, from).await,
            Err(error) if error.stage() == Stage::StartTls => {
                let result = judge.result().filter(|result| *result != ResultType::Success);
                self.session(need, result.unwrap_or(ResultType::ValidationFailure), to, from);
                if need.level != Level::Opportunistic {
                    let text = format!("{error}; {} demands a good one", need.because());
                    return Err(Refusal::Final(ClientError::Unable("4.7.5", text)));
                }
                self.may_weaken(need).await.map_err(Refusal::Final)?;
                Err(Refusal::InClear(error))
            }
            Err(error) => Err(Refusal::Final(error)),
        }
    }

    async fn without_tls(
        &self,
        client: Client,
        need: &Need,
        to: Option<IpAddr>,
        from: Option<IpAddr>,
    ) -> Result<Client, Refusal> {
        self.session(need, ResultType::StarttlsNotSupported, to, from);
        if need.to_the_end && client.offers.starttls {
            let text = format!("{} offers TLS and cannot begin it just now", need.host);
            return Err(Refusal::Final(ClientError::Unable("4.7.0", text)));
        }
        if need.to_the_end {
            return Err(Refusal::Final(client::keeps_no_tls(&need.host)));
        }
        if need.level != Level::Opportunistic {
            let text = format!("{} offers no TLS, and {} demands it", need.host, need.because());
            return Err(Refusal::Final(ClientError::Unable("4.7.10", text)));
        }
        self.may_weaken(need).await.map_err(Refusal::Final)?;
        Ok(client)
    }

    /// Whether mail to a domain that took it in TLS may now go in clear: after it has waited for a while, because
    /// somebody in the way who cuts TLS off looks just the same, and because most that break it mend it in a day.
    async fn may_weaken(&self, need: &Need) -> Result<(), ClientError> {
        if !need.habit || self.downgrade_wait == 0 {
            return Ok(());
        }
        let (domain, wait, operator) = (need.domain.clone(), self.downgrade_wait, Arc::clone(&self.operator));
        let waits: Result<bool, StoreError> = self
            .store
            .write(move |tx| {
                let (domain, operator) = (domain.clone(), Arc::clone(&operator));
                Box::pin(async move {
                    let since = memory::saw_less(tx, &domain, HABIT).await?;
                    let waits = tx.now() - since < wait;
                    if !waits && memory::give_up(tx, &domain).await? {
                        notes::tell(tx, &operator, &Weaker { domain: &domain, was: "tls", is: "clear" })
                            .await?;
                    }
                    Ok(waits)
                })
            })
            .await;
        match waits {
            Ok(true) => {
                let text = format!(
                    "{} offers no working TLS, and {} took mail in TLS until now: waiting for it to come back",
                    need.host, need.domain
                );
                Err(ClientError::Unable("4.7.4", text))
            }
            Ok(false) => {
                tracing::warn!(
                    relay.domain = need.domain,
                    relay.host = need.host,
                    "TLS did not come back in time: mail goes in clear from now on"
                );
                if let Some(known) = self.lock().get_mut(&need.domain) {
                    known.deliveries = 0;
                }
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%error, "what is known of a domain's TLS could not be read");
                Err(ClientError::Unable("4.3.0", "it cannot be known just now whether TLS is needed".into()))
            }
        }
    }

    /// A host of the domain took a message in TLS.
    pub(crate) fn delivered(&self, need: &Need) {
        if let Some(known) = self.lock().get_mut(&need.domain) {
            known.deliveries = known.deliveries.saturating_add(1);
        }
        let verified = need.verified_by().is_some();
        let _ = self.notes.try_send(Note::InTls { domain: need.domain.clone(), verified });
    }

    /// Counts are not worth waiting for.
    fn session(&self, need: &Need, result: ResultType, to: Option<IpAddr>, from: Option<IpAddr>) {
        if need.counted {
            self.note(need.result(result, to, from));
        }
    }

    fn note(&self, result: TlsResult) {
        let _ = self.notes.try_send(Note::Session(Box::new(result)));
    }

    /// What the database says, or this process remembers of it.
    async fn known(&self, domain: &str) -> Result<Known, StoreError> {
        let remembered = self.lock().get(domain).cloned();
        if let Some(known) = &remembered
            && known.loaded.elapsed() < REMEMBERED_FOR
        {
            return Ok(known.clone());
        }
        let name = domain.to_owned();
        let read: Result<(Option<StoredPolicy>, i64), StoreError> = self
            .store
            .read(move |tx| {
                Box::pin(
                    async move { Ok((memory::policy(tx, &name).await?, memory::seen(tx, &name).await?)) },
                )
            })
            .await;
        let (policy, deliveries) = match read {
            Ok(read) => read,
            Err(error) => return remembered.ok_or(error),
        };
        let policy = policy.and_then(|kept| {
            let parsed = Policy::parse(&kept.policy).ok()?;
            Some((kept.without_text(), Arc::new(parsed)))
        });
        let known = Known { policy, deliveries, loaded: Instant::now(), failed: None };
        self.lock().put(domain.to_owned(), known.clone());
        Ok(known)
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The hosts that an answer about the MX of a domain names: the domain itself, where there is none (RFC 5321 §5.1).
fn hosts_of(domain: &str, records: &[RData]) -> Vec<String> {
    if records.is_empty() {
        return vec![domain.to_owned()];
    }
    let host = |data: &RData| match data {
        RData::MX(mx) => Some(mx.exchange.to_lowercase().to_ascii().trim_end_matches('.').to_owned()),
        _ => None,
    };
    records.iter().filter_map(host).collect()
}

impl Need {
    /// What a host that meets it has proved itself by, in words; `None` where it is merely encrypted.
    pub(crate) fn verified_by(&self) -> Option<&'static str> {
        match self.level {
            Level::Dane(_) => Some("DANE"),
            Level::WebPki if self.sts.is_some() => Some("MTA-STS"),
            Level::WebPki => Some("DNSSEC and an authority"),
            Level::Opportunistic | Level::Encrypted => None,
        }
    }

    /// Who demands it, in words.
    fn because(&self) -> String {
        match self.level {
            Level::Dane(_) | Level::Encrypted => format!("DANE of {}", self.host),
            _ if self.sts.is_some() => format!("the MTA-STS policy of {}", self.domain),
            _ => "the message".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::rr::Name;
    use hickory_resolver::proto::rr::rdata::MX;

    use super::*;

    /// Whoever answers the other question for a domain must not lead its mail past its TLSA records.
    #[test]
    fn only_the_hosts_of_the_secure_answer_are_the_domains() {
        let mx = |name: &str| RData::MX(MX::new(10, Name::from_ascii(name).unwrap()));
        assert_eq!(
            hosts_of("a.example", &[mx("MX1.a.example."), mx("mx2.a.example.")]),
            ["mx1.a.example", "mx2.a.example"]
        );
        assert_eq!(hosts_of("a.example", &[]), ["a.example"]);
    }
}
