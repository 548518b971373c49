//! One attempt: from a domain and its recipients to what each was answered.
//!
//! The way: hosts (`route`), a connection from the pool or a new one (`pool`, `client`), TLS where it is
//! offered, transactions of at most 100 recipients. A host that fails before it has the message is left for
//! the next one; what was answered is an answer. Opportunistic TLS (RFC 7435): when the handshake breaks, a
//! new connection goes in clear, because a message in clear is what everybody got before.
//!
//! RFC 5321 §5.1, §4.5.3.1.8 and .10, §4.5.4.1.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::address::Address;
use crate::config::{Config, Smarthost};
use crate::deliver::client::{self, Answer, Client, ClientError, Deadlines, Stage};
use crate::deliver::letter::Letter;
use crate::deliver::outcome::Outcome;
use crate::deliver::pool::{Pool, Slot};
use crate::deliver::route::{self, Network, RouteError};
use crate::deliver::wire::WireMessage;
use crate::dns::Resolver;
use crate::floor::Floor;
use crate::ids::random_bytes;

/// Addresses that one attempt dials before it is deferred: Postfix's `smtp_mx_session_limit` is 2, its address
/// limit 5.
const MAX_DIALS: usize = 5;
/// From the start of an attempt until a host has greeted and is ready for the message, over all that is dialled:
/// as long as RFC 5321 §4.5.3.2.1 gives a single greeting. Time with a host that was offered the message is not
/// counted.
const DIALLING: Duration = Duration::from_secs(300);
/// Transactions for the recipients of one message at one domain.
const MAX_TRANSACTIONS: usize = 50;

/// Everything that an attempt needs, shared by all.
pub(crate) struct Relay {
    dns: Resolver,
    network: Network,
    hostname: String,
    smarthost: Option<Smarthost>,
    opportunistic: Arc<rustls::ClientConfig>,
    verifying: Arc<rustls::ClientConfig>,
    pub(crate) pool: Pool,
    deadlines: Deadlines,
}

/// The recipients of one message at one domain.
pub(crate) struct Parcel<'a> {
    pub(crate) domain: &'a str,
    pub(crate) mail_from: Option<Address>,
    pub(crate) recipients: Vec<Address>,
}

/// A connection that may be used for one message.
struct Lease {
    slot: Slot,
    client: Client,
    host: String,
    /// It came from the pool, so the remote may have closed it meanwhile.
    used: bool,
}

impl Relay {
    pub(crate) fn new(floor: &Floor) -> Relay {
        Relay {
            dns: floor.dns.clone(),
            network: network(&floor.config),
            hostname: floor.config.hostname.clone(),
            smarthost: floor.config.relay.smarthost.clone(),
            opportunistic: floor.tls.opportunistic(),
            verifying: floor.tls.verifying(),
            pool: Pool::default(),
            deadlines: Deadlines::default(),
        }
    }

    /// What each recipient came to, in their order; `None` when the server stops before anything was sent.
    pub(crate) async fn attempt(
        &self,
        parcel: &Parcel<'_>,
        letter: &Letter,
        stop: &CancellationToken,
    ) -> Option<Vec<Outcome>> {
        let all = |outcome: Outcome| Some(vec![outcome; parcel.recipients.len()]);
        let mut failed: Vec<SocketAddr> = Vec::new();
        let mut last = None;
        let mut left = DIALLING;
        loop {
            let begun = Instant::now();
            let lease = tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                lease = self.connect(parcel.domain, &failed, begun + left) => lease,
            };
            left = left.saturating_sub(begun.elapsed());
            let lease = match lease {
                Ok(lease) => lease,
                Err(outcome) => return all(last.unwrap_or(outcome)),
            };
            let message = match letter.open().await {
                Ok(message) => message,
                Err(outcome) => {
                    self.pool.keep(lease.slot, lease.client);
                    return all(outcome);
                }
            };
            let address = lease.slot.address;
            match self.hand_over(lease, parcel, &message).await {
                Ok(outcomes) => return Some(outcomes),
                Err(outcome) => {
                    failed.push(address);
                    last = Some(outcome);
                }
            }
        }
    }

    /// A connection to the best host that can be reached by then. `failed` were tried in this attempt.
    async fn connect(
        &self,
        domain: &str,
        failed: &[SocketAddr],
        deadline: Instant,
    ) -> Result<Lease, Outcome> {
        let late = |_| Outcome::deferred("4.4.1", format!("no host of {domain} was ready in time"));
        let hosts = match &self.smarthost {
            Some(smarthost) => vec![smarthost.host.clone()],
            None => {
                let random = u64::from_le_bytes(random_bytes());
                let hosts = route::mx_hosts(&self.dns, &self.network, domain, random);
                timeout_at(deadline, hosts).await.map_err(late)?.map_err(Outcome::from_route)?
            }
        };
        let last_host = hosts.len().saturating_sub(1);
        let mut dials = failed.len();
        let (mut temporary, mut permanent) = (None, None);
        for (nth, host) in hosts.into_iter().enumerate() {
            let found = match timeout_at(deadline, self.addresses(&host)).await {
                Ok(found) => found,
                Err(late_by) => return Err(temporary.unwrap_or_else(|| late(late_by))),
            };
            let addresses: Vec<SocketAddr> = match found {
                Ok(addresses) => addresses.into_iter().filter(|a| !failed.contains(a)).collect(),
                Err(error @ RouteError::Temporary(_)) => {
                    temporary = Some(Outcome::from_route(error));
                    continue;
                }
                Err(error) => {
                    permanent = Some(Outcome::from_route(error));
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
                let silent = |_| Err(ClientError::Silent(Stage::Greeting));
                match timeout(share, self.lease(&host, address)).await.unwrap_or_else(silent) {
                    Ok(lease) => return Ok(lease),
                    Err(error) => temporary = Some(Outcome::from_error(&error, &host)),
                }
            }
        }
        // One host that may come back is hope for all; only when none can is it final.
        let nowhere = || Outcome::deferred("4.4.1", format!("no host of {domain} could be reached"));
        Err(temporary.or(permanent.filter(|_| failed.is_empty())).unwrap_or_else(nowhere))
    }

    async fn addresses(&self, host: &str) -> Result<Vec<SocketAddr>, RouteError> {
        match &self.smarthost {
            // The operator named the smarthost: it may be anywhere but here.
            Some(smarthost) => {
                let network =
                    Network { port: smarthost.port, allow_private_addresses: true, ..self.network.clone() };
                route::addresses(&self.dns, &network, host).await
            }
            None => route::addresses(&self.dns, &self.network, host).await,
        }
    }

    async fn lease(&self, host: &str, address: SocketAddr) -> Result<Lease, ClientError> {
        let closed = || ClientError::Closed(Stage::Connect);
        let (slot, idle) = self.pool.slot(address).await.ok_or_else(closed)?;
        let host = host.to_owned();
        match idle {
            Some(client) => Ok(Lease { slot, client, host, used: true }),
            None => {
                let client = self.dial(&host, address).await?;
                Ok(Lease { slot, client, host, used: false })
            }
        }
    }

    /// A new connection that knows our name: in TLS where it can be had.
    async fn dial(&self, host: &str, address: SocketAddr) -> Result<Client, ClientError> {
        if let Some(smarthost) = &self.smarthost {
            return self.dial_smarthost(smarthost, address).await;
        }
        let mut client = Client::connect(address, self.deadlines).await?;
        client.hello(&self.hostname).await?;
        if !client.offers.starttls {
            return Ok(client);
        }
        match client.start_tls(&self.hostname, host, self.opportunistic.clone()).await {
            Err(error) if error.stage() == Stage::StartTls => {
                tracing::info!(relay.host = host, relay.address = %address, %error, "TLS broke, sending in clear");
                let mut client = Client::connect(address, self.deadlines).await?;
                client.hello(&self.hostname).await?;
                Ok(client)
            }
            outcome => outcome,
        }
    }

    /// A smarthost gets our password, so its certificate must be good, and never in clear over a network.
    async fn dial_smarthost(
        &self,
        smarthost: &Smarthost,
        address: SocketAddr,
    ) -> Result<Client, ClientError> {
        let config = match smarthost.login {
            Some(_) => self.verifying.clone(),
            None => self.opportunistic.clone(),
        };
        let mut client = if smarthost.implicit_tls {
            let mut client = Client::connect_tls(address, &smarthost.host, config, self.deadlines).await?;
            client.hello(&self.hostname).await?;
            client
        } else {
            let mut client = Client::connect(address, self.deadlines).await?;
            client.hello(&self.hostname).await?;
            match client.offers.starttls {
                true => client.start_tls(&self.hostname, &smarthost.host, config).await?,
                false => client,
            }
        };
        if let Some(login) = &smarthost.login {
            if !client.encrypted && !address.ip().is_loopback() {
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
            match self.transact(&mut lease, parcel, &recipients, message).await {
                Ok(answers) => settle(&mut outcomes, &batch, &answers, &lease.host),
                Err(error) => {
                    let outcome = Outcome::from_error(&error, &lease.host);
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
        self.pool.keep(lease.slot, lease.client);
        let unfinished = || Outcome::deferred("4.5.3", "the remote takes too few recipients at once");
        Ok(outcomes.into_iter().map(|o| o.unwrap_or_else(unfinished)).collect())
    }

    /// One transaction; over a new connection when the kept one turns out to be gone.
    async fn transact(
        &self,
        lease: &mut Lease,
        parcel: &Parcel<'_>,
        recipients: &[&Address],
        message: &WireMessage,
    ) -> Result<Vec<Answer>, ClientError> {
        let from = parcel.mail_from.as_ref();
        let outcome = lease.client.send(from, recipients, message).await;
        let gone = match &outcome {
            Err(ClientError::Closed(Stage::Mail) | ClientError::Broken(Stage::Mail, _)) => true,
            // RFC 5321 §3.8: 421 is how a server says that it closes an idle connection.
            Ok(answers) => answers.iter().all(|answer| answer.reply.code == 421),
            Err(_) => false,
        };
        if !std::mem::take(&mut lease.used) || !gone {
            return outcome;
        }
        lease.client = timeout(DIALLING, self.dial(&lease.host, lease.slot.address))
            .await
            .map_err(|_| ClientError::Silent(Stage::Greeting))??;
        lease.client.send(from, recipients, message).await
    }
}

fn settle(outcomes: &mut [Option<Outcome>], batch: &[usize], answers: &[Answer], host: &str) {
    // "Enough recipients" is said only after some were taken, so a further transaction makes progress.
    for (i, answer) in batch.iter().zip(answers).filter(|(_, answer)| !answer.again) {
        if let Some(place) = outcomes.get_mut(*i) {
            let outcome = Outcome::from_reply(&answer.reply, host);
            *place = Some(Outcome { personal: answer.personal, ..outcome });
        }
    }
}

fn network(config: &Config) -> Network {
    Network {
        hostname: config.hostname.to_ascii_lowercase(),
        own_listeners: config.smtp.listen.clone(),
        port: config.relay.port,
        allow_private_addresses: config.relay.allow_private_addresses,
    }
}
