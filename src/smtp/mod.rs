//! Strangers' mail comes in here: a connection becomes a session, a session becomes messages.
//!
//! - `command` (octets → command) and `data` (octets → message) are pure; `session` says what each verb
//!   does; `dialogue` reads, writes and waits; `guard` limits what strangers may have; `reply` is all that is
//!   ever said.
//! - A 250 after DATA is made from a receipt, and only a committed message has one.
//! - Mail for other domains is never taken: there are no trusted networks and no AUTH on this port.
//! - What a peer can make us hold is bounded: connections, lines, recipients, messages, time.
//! - A stop ends idle sessions with 421 and lets a message that is under way finish.
//!
//! RFC 5321; 1870, 2034, 2920, 3030, 3207, 3461, 6152, 6531, 8689, 9422.

mod command;
mod data;
mod dialogue;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod guard;
mod intake;
mod parameter;
mod proxy;
mod reply;
mod session;
#[cfg(test)]
mod smuggling_tests;
#[cfg(test)]
mod transcript;
mod wire;

use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::address::Address;
use crate::config::{Network, limits};
use crate::envelope::Envelope;
use crate::floor::Floor;
use crate::ids;
use crate::inbox::{self, InboxError, Receipt, Recipient, Refusal, Route};
use crate::smtp::guard::{Full, Pass};
use crate::smtp::intake::{Budget, Room};
use crate::smtp::session::Caller;
use crate::spool::Octets;
use crate::tls::Tls;

/// How long to leave the listener alone after it failed: what fails here is almost always the limit of open
/// files, which only time cures.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Octets of randomness in a session's id: enough to find one session in a log.
const ID_OCTETS: usize = 5;

pub use guard::Guard;
pub(crate) use guard::dnsbl;

/// Serves one listener until `shutdown`; returns when the last session has ended.
pub async fn serve(
    floor: Arc<Floor>,
    guard: Arc<Guard>,
    entrance: Entrance,
    listener: TcpListener,
    shutdown: CancellationToken,
) {
    let config = &floor.config;
    let first_domain = config.domains.first().unwrap_or(&config.hostname);
    let largest = usize::try_from(config.smtp.max_message_size).unwrap_or(usize::MAX);
    let room = Room {
        spool: floor.spool.clone(),
        memory: Budget::new(limits::SMTP_DATA_BUDGET),
        disk: Budget::new(limits::SMTP_SPOOL_BUDGET.max(largest.saturating_mul(4 * intake::COPIES))),
        floor: floor.disk.clone(),
    };
    let house = House {
        hostname: config.hostname.clone(),
        first_domain: first_domain.clone(),
        max_message_size: config.smtp.max_message_size,
        guard,
        tls: floor.tls.clone(),
        room,
        entrance,
        proxies: config.smtp.proxy_from.clone(),
        backend: floor,
    };
    run(house, listener, shutdown).await;
}

/// How a listener begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entrance {
    /// In clear text, STARTTLS offered.
    Clear,
    /// With a TLS handshake.
    Tls,
}

/// What the sessions of one listener share.
pub(crate) struct House<B> {
    pub(crate) backend: B,
    /// What we call ourselves.
    pub(crate) hostname: String,
    /// Whose postmaster `<postmaster>` without a domain is: RFC 5321 §4.5.1.
    pub(crate) first_domain: String,
    /// Octets, announced as SIZE.
    pub(crate) max_message_size: u64,
    pub(crate) guard: Arc<Guard>,
    pub(crate) tls: Tls,
    pub(crate) room: Room,
    pub(crate) entrance: Entrance,
    /// Who speaks the PROXY protocol, and nothing before it.
    pub(crate) proxies: Vec<Network>,
}

impl<B> House<B> {
    fn is_proxy(&self, ip: IpAddr) -> bool {
        self.proxies.iter().any(|proxies| proxies.contains(ip))
    }
}

/// What a session needs from further down the road, so that it can be tested as a conversation. The floor
/// is the real one.
pub(crate) trait Backend: Send + Sync + 'static {
    /// An accepted recipient, as the inbox knows it.
    type Recipient: Send;
    /// The proof that a message is committed.
    type Receipt: Send;
    type Error: std::error::Error + Send;

    /// `size` is what MAIL declared, RFC 1870.
    fn route(
        &self,
        to: &Address,
        size: Option<u64>,
    ) -> impl Future<Output = Result<Routed<Self::Recipient>, Self::Error>> + Send;

    /// `turn` is asked when the message is about to be written, and what it gives is held until that is done.
    fn receive<T: Send>(
        &self,
        envelope: Envelope,
        recipients: Vec<Self::Recipient>,
        raw: Octets,
        turn: impl FnOnce() -> Result<T, Refusal> + Send,
    ) -> impl Future<Output = Result<Self::Receipt, Refusal>> + Send;

    /// What the committed message is called, in the 250 and in the log.
    fn name(receipt: &Self::Receipt) -> &str;

    /// Whether the guard's opinion of the sender's address must not keep mail from this recipient.
    fn is_always_reachable(recipient: &Self::Recipient) -> bool;
}

/// Who may be written to.
pub(crate) enum Routed<R> {
    Accepted(R),
    /// One of our domains, and nobody there by that name.
    Unknown,
    NotOurs,
    /// The inbox takes messages of so many octets at most.
    TooLarge(u64),
}

impl Backend for Arc<Floor> {
    type Recipient = Recipient;
    type Receipt = Receipt;
    type Error = InboxError;

    async fn route(&self, to: &Address, size: Option<u64>) -> Result<Routed<Recipient>, InboxError> {
        // Boxed, both: a session that waits for a command should not have room for what it may do later.
        Ok(match Box::pin(inbox::route(self, to)).await? {
            Route::Inbox(recipient) => match recipient.takes(size) {
                Ok(()) => Routed::Accepted(recipient),
                Err(limit) => Routed::TooLarge(limit),
            },
            Route::UnknownInbox => Routed::Unknown,
            Route::NotOurs => Routed::NotOurs,
        })
    }

    async fn receive<T: Send>(
        &self,
        envelope: Envelope,
        recipients: Vec<Recipient>,
        raw: Octets,
        turn: impl FnOnce() -> Result<T, Refusal> + Send,
    ) -> Result<Receipt, Refusal> {
        Box::pin(inbox::receive(self, envelope, recipients, raw, turn)).await
    }

    fn name(receipt: &Receipt) -> &str {
        receipt.id()
    }

    /// The operator, so that whoever is refused can ask why (RFC 2142), and answers to our own mail, which come
    /// to a return path that we made.
    fn is_always_reachable(recipient: &Recipient) -> bool {
        recipient.operator || recipient.answers.is_some()
    }
}

/// Accepts until `shutdown`, then waits for messages under way, `limits::STOP_GRACE` at most.
async fn run<B: Backend>(house: House<B>, listener: TcpListener, shutdown: CancellationToken) {
    let house = Arc::new(house);
    let mut sessions = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(ended) = sessions.join_next() => note(ended),
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    let ip = address.ip().to_canonical();
                    let admitted = house.guard.admit().and_then(|mut pass| {
                        // Whom a proxy calls for is known, and checked, when it has said so.
                        if !house.is_proxy(ip) {
                            house.guard.check(&mut pass, ip)?;
                        }
                        Ok(pass)
                    });
                    match admitted {
                        Ok(pass) => {
                            // Every reply is one write that the peer waits for: nothing is gained by holding
                            // it back.
                            let _ = stream.set_nodelay(true);
                            sessions.spawn(attend(Arc::clone(&house), stream, ip, pass, shutdown.clone()));
                        }
                        Err(full) => turn_away(&house.guard, stream, ip, full),
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    // New connections are refused from here on, so that another server can take them.
    drop(listener);
    let finish = async {
        while let Some(ended) = sessions.join_next().await {
            note(ended);
        }
    };
    if timeout(limits::STOP_GRACE, finish).await.is_err() {
        // What is cut off here has heard no 250: it stays with its sender.
        tracing::warn!(sessions = sessions.len(), "sessions cut off at the stop");
        sessions.shutdown().await;
    }
}

/// Serves one connection, which holds its pass as long as it lives. A proxy's says first whose it is.
async fn attend<B, S>(
    house: Arc<House<B>>,
    mut stream: S,
    mut ip: IpAddr,
    mut pass: Pass,
    shutdown: CancellationToken,
) where
    B: Backend,
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    if house.is_proxy(ip) {
        match proxy::caller(&mut stream, limits::SMTP_PROXY_TIME).await {
            Ok(caller) => ip = caller.unwrap_or(ip),
            Err(error) => {
                tracing::warn!(proxy = %ip, %error, "a proxy did not say who calls");
                return dialogue::refuse(stream, error.reply()).await;
            }
        }
        if let Err(full) = house.guard.check(&mut pass, ip) {
            house.guard.note_turned_away(ip, full);
            return dialogue::refuse(stream, Some(full.reply())).await;
        }
    }
    let caller = Caller { id: ids::random_token::<ID_OCTETS>(), ip };
    let span = tracing::info_span!("smtp", session = %caller.id, peer = %ip);
    async {
        tracing::debug!("connected");
        dialogue::converse(&house, &caller, &shutdown, stream).await;
        tracing::debug!("ended");
    }
    .instrument(span)
    .await;
}

/// RFC 5321 §3.8 and §4.2.2: 421 instead of a greeting. One attempt without waiting, because whoever fills
/// the house would fill the queue of refusals as well.
fn turn_away(guard: &Guard, stream: TcpStream, ip: IpAddr, full: Full) {
    guard.note_turned_away(ip, full);
    let mut line = Vec::new();
    full.reply().write_to(&mut line);
    // A fresh socket has an empty send buffer, so the line fits or the peer is gone.
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write(&line);
    }
}

/// A panic ends its session and no other; it is a bug and is logged as one.
fn note(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a session ended in a panic");
    }
}
