//! One attempt: from a domain and its recipients to what each was answered.
//!
//! The way: hosts (`route`), leave to go there now (`site`), a connection from the pool or a new one (`pool`,
//! `client`), from the sender's own address and under its own name where it has them, TLS where it is
//! offered, transactions of at most 100 recipients. A host that fails before it has the message is left for
//! the next one; what was answered is an answer. Opportunistic TLS (RFC 7435): when the handshake breaks, a
//! new connection goes in clear, because a message in clear is what everybody got before.
//!
//! RFC 5321 §5.1, §4.5.3.1.8 and .10, §4.5.4.1.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::address::Address;
use crate::config::{Choice, Family, Relay as RelayConfig, Smarthost};
use crate::deliver::client::{self, Answer, Client, ClientError, Deadlines, Stage};
use crate::deliver::letter::Letter;
use crate::deliver::outcome::{Fate, Outcome, Via};
use crate::deliver::pool::{self, Door, Pool, Role};
use crate::deliver::route::{self, Network, RouteError};
use crate::deliver::site::{self, NotNow, Pass, Sites};
use crate::deliver::trust::{Need, Plan, Refusal, Trust};
use crate::deliver::wire::WireMessage;
use crate::dns::Resolver;
use crate::floor::Floor;
use crate::ids::random_bytes;
use crate::store::delivery::TlsDemand;

/// Addresses that one attempt dials before it is deferred: Postfix's `smtp_mx_session_limit` is 2, its address
/// limit 5.
const MAX_DIALS: usize = 5;
/// From the start of an attempt until a host has greeted and is ready for the message, over all that is dialled:
/// as long as RFC 5321 §4.5.3.2.1 gives a single greeting. Time with a host that was offered the message is not
/// counted.
const DIALLING: Duration = Duration::from_secs(300);
/// Transactions for the recipients of one message at one domain.
const MAX_TRANSACTIONS: usize = 50;
/// How long a host may take until it has greeted without being slow, and how many slow ones are waited for in all:
/// half of the parcels that may be under way, so that hosts that hang never hold the places of all others.
const PROMPT: Duration = Duration::from_secs(10);
const MAX_SLOW: usize = 128;
/// How long a host that was offered the message may take for it without being slow: time for large ones.
const UNHURRIED: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(60) };

/// Everything that an attempt needs, shared by all.
pub(crate) struct Relay {
    dns: Resolver,
    network: Network,
    hostname: String,
    config: RelayConfig,
    sites: Arc<Sites>,
    slow: Semaphore,
    opportunistic: Arc<rustls::ClientConfig>,
    verifying: Arc<rustls::ClientConfig>,
    pub(crate) pool: Pool,
    trust: Trust,
    deadlines: Deadlines,
}

/// The recipients of one message at one domain.
pub(crate) struct Parcel<'a> {
    /// The pod whose mail it is.
    pub(crate) pod: i64,
    pub(crate) domain: &'a str,
    /// The way that an operator chose for it, if one did.
    pub(crate) chosen: Option<Choice>,
    pub(crate) tls: TlsDemand,
    pub(crate) mail_from: Option<Address>,
    pub(crate) recipients: Vec<Address>,
}

/// What an attempt came to.
pub(crate) enum Attempt {
    /// What each recipient came to, in their order.
    Ended(Vec<Outcome>),
    /// The server stops, and nothing was sent.
    Stopped,
    /// The destination may not be tried now; nothing was dialled.
    NotNow(NotNow),
}

/// The way that mail of one sender takes to one domain.
struct Way<'a> {
    domain: &'a str,
    smarthost: Option<&'a Smarthost>,
    hosts: Vec<String>,
    hello: &'a str,
    tls: TlsDemand,
    ipv4: Option<IpAddr>,
    ipv6: Option<IpAddr>,
}

impl Way<'_> {
    fn door(&self, host: &str, address: SocketAddr) -> Door {
        Door {
            address,
            host: host.to_owned(),
            from: if address.is_ipv4() { self.ipv4 } else { self.ipv6 },
            hello: self.hello.to_owned(),
            role: match (self.smarthost.is_some(), self.tls) {
                (false, _) => Role::Mx,
                (true, TlsDemand::Required) => Role::ProvenSmarthost,
                (true, _) => Role::Smarthost,
            },
        }
    }
}

/// A connection that may be used for one message.
struct Lease {
    door: Door,
    need: Need,
    client: Client,
    /// It came from the pool, so the remote may have closed it meanwhile.
    used: bool,
}

impl Lease {
    fn via(&self) -> Via {
        let words = |tls| match self.need.verified_by() {
            Some(by) => format!("{tls}, verified by {by}"),
            None => tls,
        };
        Via {
            host: self.door.host.clone(),
            address: self.door.address,
            tls: self.client.protection().map(words),
        }
    }
}

impl Relay {
    pub(crate) fn new(floor: &Floor) -> Relay {
        let network = Network::new(&floor.config);
        let trust = Trust::new(floor, &network);
        Relay {
            dns: floor.dns.clone(),
            verifying: trust.verifying().map_or_else(|_| floor.tls.verifying(), Arc::new),
            trust,
            network,
            hostname: floor.config.hostname.clone(),
            sites: Sites::new(floor.config.relay.limits, floor.config.relay.sites.clone()),
            config: floor.config.relay.clone(),
            slow: Semaphore::new(MAX_SLOW),
            opportunistic: floor.tls.opportunistic(),
            pool: Pool::default(),
            deadlines: match floor.config.relay.longest_wait {
                Some(longest) => Deadlines::default().at_most(longest),
                None => Deadlines::default(),
            },
        }
    }

    /// One attempt, within the limits of the site that the domain's mail goes to.
    pub(crate) async fn attempt(
        &self,
        parcel: &Parcel<'_>,
        letter: &Letter,
        stop: &CancellationToken,
    ) -> Attempt {
        let all = |outcome: Outcome| Attempt::Ended(vec![outcome; parcel.recipients.len()]);
        let way = tokio::select! {
            biased;
            () = stop.cancelled() => return Attempt::Stopped,
            way = self.way(parcel) => way,
        };
        let way = match way {
            Ok(way) => way,
            Err(outcome) => return all(outcome),
        };
        let name = site::name(&way.hosts);
        let pass = tokio::select! {
            biased;
            () = stop.cancelled() => return Attempt::Stopped,
            pass = self.sites.enter(&name, self.pool.has_idle(&name)) => pass,
        };
        match pass {
            Ok(pass) => self.attempt_at(&way, &pass, parcel, letter, stop).await,
            Err(not_now) => Attempt::NotNow(not_now),
        }
    }

    /// Where the mail goes, from where, and as whom.
    async fn way<'a>(&'a self, parcel: &'a Parcel<'_>) -> Result<Way<'a>, Outcome> {
        let smarthost = self.config.smarthost_for(parcel.domain, parcel.chosen);
        let hosts = match smarthost {
            Some(smarthost) => vec![smarthost.host.clone()],
            None => {
                let random = u64::from_le_bytes(random_bytes());
                route::mx_hosts(&self.dns, &self.network, parcel.domain, random)
                    .await
                    .map_err(Outcome::from_route)?
            }
        };
        let sender = parcel.mail_from.as_ref().map(Address::domain);
        let source = sender.and_then(|domain| self.config.source_of(parcel.pod, domain));
        Ok(Way {
            domain: parcel.domain,
            smarthost,
            hosts,
            hello: source.and_then(|source| source.hello.as_deref()).unwrap_or(&self.hostname),
            tls: parcel.tls,
            ipv4: source.and_then(|source| source.ipv4),
            ipv6: source.and_then(|source| source.ipv6),
        })
    }

    async fn attempt_at(
        &self,
        way: &Way<'_>,
        pass: &Pass,
        parcel: &Parcel<'_>,
        letter: &Letter,
        stop: &CancellationToken,
    ) -> Attempt {
        let all = |outcome: Outcome| Attempt::Ended(vec![outcome; parcel.recipients.len()]);
        let mut failed: Vec<SocketAddr> = Vec::new();
        let mut last = None;
        // What was answered to our address of one family, and which.
        let mut refused: Option<(Family, Vec<Outcome>)> = None;
        let mut left = DIALLING;
        loop {
            let begun = Instant::now();
            let avoid = refused.as_ref().map(|(family, _)| *family);
            let lease = tokio::select! {
                biased;
                () = stop.cancelled() => return Attempt::Stopped,
                lease = self.connect(way, pass, &failed, avoid, begun + left) => lease,
            };
            left = left.saturating_sub(begun.elapsed());
            let lease = match lease {
                Ok(lease) => lease,
                // No other way: what was answered is the answer. A way that is only closed just now is waited for.
                Err(outcome) if refused.is_some() && outcome.fate == Fate::Failed => {
                    pass.answered();
                    return Attempt::Ended(refused.map(|(_, outcomes)| outcomes).unwrap_or_default());
                }
                Err(outcome) => {
                    // A host that is not trusted is there all the same.
                    match outcome.status.get(1..).is_some_and(|rest| rest.starts_with(".7.")) {
                        true => pass.answered(),
                        false => pass.failed(),
                    }
                    return all(last.unwrap_or(outcome));
                }
            };
            let message = match letter.open().await {
                Ok(message) => message,
                Err(outcome) => {
                    self.keep(pass, lease);
                    return all(outcome);
                }
            };
            let (address, encrypted) = (lease.door.address, lease.client.encrypted);
            let (need, own) = (lease.need.clone(), lease.client.local_ip());
            match self.hand_over(way, pass, lease, parcel, &message).await {
                Ok(outcomes) if refused.is_none() && way.smarthost.is_none() && dislikes(&outcomes, own) => {
                    let family = if address.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
                    tracing::info!(
                        relay.domain = way.domain,
                        relay.address = %address,
                        "our address is refused: trying the other family"
                    );
                    refused = Some((family, outcomes));
                }
                Ok(outcomes) => {
                    if outcomes.iter().any(|outcome| outcome.fate == Fate::Delivered) {
                        // What the message itself waives or demands says nothing of its domain.
                        if encrypted && way.smarthost.is_none() && way.tls == TlsDemand::Usual {
                            self.trust.delivered(&need);
                        }
                    }
                    // Silence in the middle of a transaction is no answer.
                    match outcomes.iter().any(|o| o.fate != Fate::Deferred || !o.status.starts_with("4.4.")) {
                        true => pass.answered(),
                        false => pass.failed(),
                    }
                    return Attempt::Ended(outcomes);
                }
                Err(outcome) => {
                    failed.push(address);
                    last = Some(outcome);
                }
            }
        }
    }

    fn keep(&self, pass: &Pass, lease: Lease) {
        self.pool.keep(lease.door, &pass.site, pass.messages_per_connection, lease.client);
    }

    /// A connection to the best host that can be reached by then. `failed` were tried in this attempt, and addresses of
    /// the family `avoid`, from which ours was refused, are not.
    async fn connect(
        &self,
        way: &Way<'_>,
        pass: &Pass,
        failed: &[SocketAddr],
        avoid: Option<Family>,
        deadline: Instant,
    ) -> Result<Lease, Outcome> {
        let domain = way.domain;
        let late = |()| Outcome::deferred("4.4.1", format!("no host of {domain} was ready in time"));
        let plan = match way.smarthost {
            // The operator answers for it, and `dial_smarthost` for its password.
            Some(_) => Plan::none(domain),
            // RFC 8689 §4.1: neither MTA-STS nor DANE holds it up; TLS is used where it can be had.
            None if way.tls == TlsDemand::Optional => Plan::none(domain),
            None => match self.known_by(deadline, self.trust.plan(domain)).await {
                Some(plan) => plan?,
                None => return Err(late(())),
            },
        };
        let last_host = way.hosts.len().saturating_sub(1);
        let mut dials = failed.len();
        let (mut temporary, mut permanent) = (None, None);
        for (nth, host) in way.hosts.iter().enumerate() {
            let found = match timeout_at(deadline, self.addresses(way, host)).await {
                Ok(found) => found,
                Err(_) => return Err(temporary.unwrap_or_else(|| late(()))),
            };
            let addresses: Vec<SocketAddr> = match found {
                Ok(addresses) => {
                    let is_of = |a: &SocketAddr, family| a.is_ipv4() == (family == Family::Ipv4);
                    let wanted =
                        |a: &SocketAddr| !failed.contains(a) && !avoid.is_some_and(|family| is_of(a, family));
                    addresses.into_iter().filter(wanted).collect()
                }
                Err(error @ RouteError::Temporary(_)) => {
                    temporary = Some(Outcome::from_route(error));
                    continue;
                }
                Err(error) => {
                    permanent = Some(Outcome::from_route(error));
                    continue;
                }
            };
            let need = match self.known_by(deadline, self.trust.need(&plan, host)).await {
                // The smarthost's name was not looked up by anybody but the operator.
                Some(Ok(need)) if way.tls == TlsDemand::Required && way.smarthost.is_none() => {
                    match need.in_tls_to_the_end() {
                        Ok(need) => Ok(need),
                        Err(why) => Err(self.trust.unvouched(domain, why).await),
                    }
                }
                Some(needed) => needed,
                None => return Err(temporary.unwrap_or_else(|| late(()))),
            };
            let need = match need {
                Ok(need) => need,
                Err(outcome) => {
                    note(outcome, &mut temporary, &mut permanent);
                    continue;
                }
            };
            let last_address = addresses.len().saturating_sub(1);
            for (i, address) in addresses.into_iter().enumerate() {
                dials += 1;
                if dials > MAX_DIALS {
                    break;
                }
                // Half of what is left, while there is another to try: one that hangs must not hide its backup.
                let left = deadline.saturating_duration_since(Instant::now());
                let is_last = nth == last_host && i == last_address || dials == MAX_DIALS;
                let share = if is_last { left } else { left / 2 };
                let door = way.door(host, address);
                match self.patiently(share, self.lease(way, pass, &need, door)).await {
                    Ok(lease) => return Ok(lease),
                    Err(error) => {
                        let via = Via { host: host.clone(), address, tls: None };
                        note(Outcome::from_error(&error, &via), &mut temporary, &mut permanent);
                    }
                }
            }
        }
        // One host that may come back is hope for all; only when none can is it final.
        let nowhere = || {
            let text = format!("no host of {domain} could be reached");
            // Nothing was dialled, since there is nothing of the other family.
            if avoid.is_some() { Outcome::failed("5.4.4", text) } else { Outcome::deferred("4.4.1", text) }
        };
        Err(temporary.or(permanent.filter(|_| failed.is_empty())).unwrap_or_else(nowhere))
    }

    /// What is asked of the domain's name servers and of its policy's host, by the deadline; they may be as slow as a host.
    async fn known_by<T>(&self, deadline: Instant, asked: impl Future<Output = T>) -> Option<T> {
        let mut asked = std::pin::pin!(asked);
        if let Ok(prompt) = timeout_at(deadline.min(Instant::now() + PROMPT), &mut asked).await {
            return Some(prompt);
        }
        let _place = self.slow.try_acquire().ok()?;
        timeout_at(deadline, asked).await.ok()
    }

    /// Waits for a host for its share of the time; beyond `PROMPT` only where not too many are waited for already.
    async fn patiently(
        &self,
        share: Duration,
        lease: impl Future<Output = Result<Lease, ClientError>>,
    ) -> Result<Lease, ClientError> {
        let silent = || ClientError::Silent(Stage::Greeting);
        let mut lease = std::pin::pin!(lease);
        if let Ok(prompt) = timeout(share.min(PROMPT), &mut lease).await {
            return prompt;
        }
        let Ok(_place) = self.slow.try_acquire() else { return Err(silent()) };
        timeout(share.saturating_sub(PROMPT), lease).await.unwrap_or_else(|_| Err(silent()))
    }

    /// The addresses of a host, in the order in which they are dialled.
    async fn addresses(&self, way: &Way<'_>, host: &str) -> Result<Vec<SocketAddr>, RouteError> {
        let network = match way.smarthost {
            // The operator named the smarthost: it may be anywhere but here.
            Some(smarthost) => {
                Network { port: smarthost.port, allow_private_addresses: true, ..self.network.clone() }
            }
            None => self.network.clone(),
        };
        let found = route::addresses(&self.dns, &network, host).await?;
        Ok(route::by_family(found, self.config.prefer == Family::Ipv6))
    }

    async fn lease(&self, way: &Way<'_>, pass: &Pass, need: &Need, door: Door) -> Result<Lease, ClientError> {
        let need = need.clone();
        match self.pool.take(&door) {
            Some(client) if need.is_met_by(&client) => {
                return Ok(Lease { door, need, client, used: true });
            }
            unfit => _ = unfit.map(pool::farewell),
        }
        self.pool.make_room(&pass.site);
        pass.dials();
        let client = self.dial(way, &need, &door).await?;
        Ok(Lease { door, need, client, used: false })
    }

    /// A new connection that knows our name: in TLS where it can be had.
    async fn dial(&self, way: &Way<'_>, need: &Need, door: &Door) -> Result<Client, ClientError> {
        if let Some(smarthost) = way.smarthost {
            return self.dial_smarthost(smarthost, door).await;
        }
        let client = self.greet(door).await?;
        match self.trust.secure(client, &door.hello, need, door.address).await {
            Err(Refusal::InClear(error)) => {
                tracing::info!(relay.host = door.host, relay.address = %door.address, %error, "TLS broke, sending in clear");
                self.greet(door).await
            }
            Err(Refusal::Final(error)) => Err(error),
            Ok(client) => Ok(client),
        }
    }

    /// Connected, greeted, and in clear.
    async fn greet(&self, door: &Door) -> Result<Client, ClientError> {
        let mut client = Client::connect(door.address, door.from, self.deadlines).await?;
        client.hello(&door.hello).await?;
        Ok(client)
    }

    /// A smarthost gets our password, so its certificate must be good, and never in clear over a network.
    async fn dial_smarthost(&self, smarthost: &Smarthost, door: &Door) -> Result<Client, ClientError> {
        let proven = door.role == Role::ProvenSmarthost;
        let config = match smarthost.login.is_some() || proven {
            true => self.verifying.clone(),
            false => self.opportunistic.clone(),
        };
        let mut client = if smarthost.implicit_tls {
            let dialled = Client::connect_tls(door.address, door.from, &door.host, config, self.deadlines);
            let mut client = dialled.await?;
            client.hello(&door.hello).await?;
            client
        } else {
            let client = self.greet(door).await?;
            match client.offers.starttls {
                true => client.start_tls(&door.hello, &door.host, config).await?,
                false => client,
            }
        };
        if proven && !client.keeps_tls() {
            pool::farewell(client);
            return Err(client::keeps_no_tls(&smarthost.host));
        }
        if let Some(login) = &smarthost.login {
            if !client.encrypted && !door.address.ip().is_loopback() {
                let text = "the smarthost offers no TLS, and the password is not sent in clear";
                return Err(ClientError::Unable("4.7.0", text.into()));
            }
            client.login(&login.user, &login.password).await?;
        }
        Ok(client)
    }

    /// The transactions. An error: the host took nothing, and another may.
    async fn hand_over(
        &self,
        way: &Way<'_>,
        pass: &Pass,
        mut lease: Lease,
        parcel: &Parcel<'_>,
        message: &WireMessage,
    ) -> Result<Vec<Outcome>, Outcome> {
        let mut outcomes: Vec<Option<Outcome>> = vec![None; parcel.recipients.len()];
        for _ in 0..MAX_TRANSACTIONS {
            let batch: Vec<usize> = (0..outcomes.len())
                .filter(|i| matches!(outcomes.get(*i), Some(None)))
                .take(client::MAX_RECIPIENTS)
                .collect();
            let recipients: Vec<&Address> = batch.iter().filter_map(|i| parcel.recipients.get(*i)).collect();
            if recipients.is_empty() {
                break;
            }
            match self.transact(way, &mut lease, parcel, &recipients, message).await {
                Ok(answers) => settle(&mut outcomes, &batch, &answers, &lease.via()),
                Err(error) => {
                    let outcome = Outcome::from_error(&error, &lease.via());
                    let took_nothing = outcomes.iter().all(Option::is_none)
                        && !matches!(error, ClientError::Unable(..))
                        && !matches!(error.stage(), Stage::Body | Stage::Dot);
                    if took_nothing {
                        return Err(outcome);
                    }
                    return Ok(outcomes.into_iter().map(|o| o.unwrap_or_else(|| outcome.clone())).collect());
                }
            }
        }
        self.keep(pass, lease);
        let unfinished = || Outcome::deferred("4.5.3", "the remote takes too few recipients at once");
        Ok(outcomes.into_iter().map(|o| o.unwrap_or_else(unfinished)).collect())
    }

    /// One transaction; over a new connection when the kept one turns out to be gone.
    async fn transact(
        &self,
        way: &Way<'_>,
        lease: &mut Lease,
        parcel: &Parcel<'_>,
        recipients: &[&Address],
        message: &WireMessage,
    ) -> Result<Vec<Answer>, ClientError> {
        let from = parcel.mail_from.as_ref();
        // The operator's own smarthost may take its time.
        let slow = way.smarthost.is_none().then_some(&self.slow);
        let outcome = unhurriedly(slow, lease.client.send(from, recipients, message, way.tls)).await;
        let gone = match &outcome {
            Err(ClientError::Closed(Stage::Mail) | ClientError::Broken(Stage::Mail, _)) => true,
            // RFC 5321 §3.8: 421 is how a server says that it closes an idle connection.
            Ok(answers) => answers.iter().all(|answer| answer.reply.code == 421),
            Err(_) => false,
        };
        if !std::mem::take(&mut lease.used) || !gone {
            return outcome;
        }
        lease.client = timeout(DIALLING, self.dial(way, &lease.need, &lease.door))
            .await
            .map_err(|_| ClientError::Silent(Stage::Greeting))??;
        unhurriedly(slow, lease.client.send(from, recipients, message, way.tls)).await
    }
}

/// Waits for a transaction; beyond `UNHURRIED` only where not too many are waited for already. Where it stood when
/// it was given up is not known, so the remote may have the message.
async fn unhurriedly(
    slow: Option<&Semaphore>,
    transaction: impl Future<Output = Result<Vec<Answer>, ClientError>>,
) -> Result<Vec<Answer>, ClientError> {
    let Some(slow) = slow else { return transaction.await };
    let mut transaction = std::pin::pin!(transaction);
    if let Ok(ended) = timeout(UNHURRIED, &mut transaction).await {
        return ended;
    }
    let Ok(_place) = slow.try_acquire() else { return Err(ClientError::Silent(Stage::Dot)) };
    transaction.await
}

/// Whether nobody was taken because the remote will have nothing from our address: a refusal for policy (RFC 3463 §3.8)
/// that names the address, its family or its reverse DNS. Gmail refuses IPv6 without a PTR so, and takes IPv4.
fn dislikes(outcomes: &[Outcome], own: Option<IpAddr>) -> bool {
    let own = own.map(|ip| ip.to_canonical().to_string()).unwrap_or_default();
    let about_us = |outcome: &Outcome| {
        let text = outcome.text.to_ascii_lowercase();
        let names = ["ipv6", "ipv4", "ptr record", "reverse dns"].iter().any(|word| text.contains(word));
        outcome.fate == Fate::Failed
            && outcome.status.starts_with("5.7.")
            && (names || !own.is_empty() && text.contains(&own))
    };
    !outcomes.is_empty() && outcomes.iter().all(about_us)
}

/// Keeps why a host was of no use: one that may come back, or one that never will be.
fn note(outcome: Outcome, temporary: &mut Option<Outcome>, permanent: &mut Option<Outcome>) {
    match outcome.fate {
        Fate::Failed => *permanent = Some(outcome),
        _ => *temporary = Some(outcome),
    }
}

fn settle(outcomes: &mut [Option<Outcome>], batch: &[usize], answers: &[Answer], via: &Via) {
    // "Enough recipients" is said only after some were taken, so a further transaction makes progress.
    for (i, answer) in batch.iter().zip(answers).filter(|(_, answer)| !answer.again) {
        if let Some(place) = outcomes.get_mut(*i) {
            let outcome = Outcome::from_reply(&answer.reply, via);
            *place = Some(Outcome { personal: answer.personal, ..outcome });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only a refusal of where we come from, of everybody, is worth a try from elsewhere.
    #[test]
    fn a_refusal_of_our_address_is_told_from_one_of_the_message() {
        let own = Some("2001:db8::7".parse().unwrap());
        let failed = |status: &str, text: &str| Outcome::failed(status, text);
        for text in [
            "550-5.7.1 [2001:db8::7] Our system has detected that this message does not meet IPv6 sending guidelines",
            "550 5.7.25 no PTR record for your address",
            "550 5.7.1 blocked: 2001:DB8::7",
        ] {
            assert!(dislikes(&[failed("5.7.1", text)], own), "{text}");
        }
        for (status, text) in [
            ("5.7.1", "550 5.7.1 message looks like spam"),
            ("5.1.1", "550 5.1.1 no such user at 2001:db8::7"),
            ("5.7.26", "550 5.7.26 the DMARC policy of the domain"),
        ] {
            assert!(!dislikes(&[failed(status, text)], own), "{text}");
        }
        let refused = failed("5.7.1", "IPv6");
        assert!(!dislikes(&[refused.clone(), Outcome::delivered("2.0.0", "ok")], own));
        assert!(!dislikes(&[], own) && dislikes(&[refused], None));
    }

    /// Remotes that greet, take the envelope and then hang must not hold the places of all others.
    #[tokio::test]
    async fn slow_transactions_are_waited_for_only_where_there_is_room() {
        let slow = Semaphore::new(1);
        let (answer, answered) = tokio::sync::oneshot::channel::<()>();
        let first = async {
            let _ = answered.await;
            Ok(Vec::new())
        };
        let others = async {
            while slow.available_permits() > 0 {
                tokio::task::yield_now().await;
            }
            let second = unhurriedly(Some(&slow), std::future::pending()).await;
            assert!(matches!(second, Err(ClientError::Silent(Stage::Dot))), "it may have the message");
            assert!(unhurriedly(Some(&slow), async { Ok(Vec::new()) }).await.is_ok(), "prompt ones go on");
            answer.send(()).unwrap();
        };
        let (first, ()) = tokio::join!(unhurriedly(Some(&slow), first), others);
        assert!(first.is_ok(), "who has a place may take its time");
        assert_eq!(slow.available_permits(), 1);
    }
}
