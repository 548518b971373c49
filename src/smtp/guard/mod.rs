//! What a stranger may have of us: connections, messages, patience. One guard stands at all listeners.
//!
//! - `door` counts who is inside, `rates` what each address had of late, `pace` how long things take; `dnsbl`
//!   and `greylist` look at who writes, where the operator wants that.
//! - Whoever asks for too much is told so at once and in words: 421 instead of a greeting, 45x at MAIL. Nothing
//!   here makes anybody wait except the delay after errors, and few sessions are delayed at a time.
//! - Errors and unknown recipients close no door, for many people share a provider's addresses: beyond the
//!   allowance, which grows with accepted mail, RCPT is deferred, known recipient or not.
//! - A database or disk that does not keep up is seen here first: sessions that wait for it are counted, and
//!   what comes beyond them is sent away before it costs anything.
//! - Exempt networks (`smtp.limits.exempt`) share the number of all sessions and nothing else.
//!
//! RFC 5321 §3.8 and §4.2.2 (421), RFC 5321 §7.8 (resistance to attacks), RFC 3463 §3.8 (x.7.0, x.7.1).

pub(crate) mod dnsbl;
mod door;
mod greylist;
mod pace;
mod rates;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use dnsbl::Listing;
pub(crate) use door::Pass;
pub(crate) use pace::{Lifetime, Pace};

use crate::address::Address;
use crate::clock::{Clock, Millis, SECOND};
use crate::config::{SmtpLimits, limits};
use crate::disk::Disk;
use crate::envelope::ReversePath;
use crate::floor::Floor;
use crate::inbox::Refusal;
use crate::smtp::reply::Reply;
use dnsbl::Dnsbl;
use door::Door;
use greylist::Greylist;
use rates::{Kind, Rates};

/// Errors of an address in an hour that delay nothing yet, and how many more make the delay grow by a step:
/// many people send through a large provider's addresses.
const ERRORS_OF_MANY: u32 = 20;
const ERRORS_A_STEP: u32 = 10;

/// Shared by all listeners and sessions.
pub struct Guard {
    limits: SmtpLimits,
    door: Arc<Door>,
    rates: Mutex<Rates>,
    /// Sessions that wait for the database, each with a message or a question.
    waiting: Arc<Semaphore>,
    tarpit: Semaphore,
    /// One step of the delay after errors.
    pause: Duration,
    disk: Disk,
    clock: Clock,
    dnsbl: Option<Dnsbl>,
    greylist: Option<Greylist>,
    turned_away: Mutex<TurnedAway>,
}

/// For the log: a flood is one line a second, not one a connection.
struct TurnedAway {
    since: Millis,
    count: u64,
}

/// Why a connection is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    #[error("Too many connections, come back soon")]
    All,
    #[error("Too much mail is waiting to be stored, come back soon")]
    Busy,
    #[error("Too many connections from your network at once")]
    Sessions,
    #[error("Too many connections from your network within a minute")]
    Connections,
}

impl Full {
    pub(crate) fn reply(self) -> Reply {
        match self {
            Full::All | Full::Busy => Reply::new(421, "3.2", self),
            Full::Sessions | Full::Connections => Reply::new(421, "7.0", self),
        }
    }
}

impl Guard {
    pub fn open(floor: &Floor) -> Arc<Guard> {
        let config = &floor.config.smtp.guard;
        let clock = || floor.clock.clone();
        let mut guard =
            Guard::new(config.limits.clone(), floor.disk.clone(), clock(), limits::SMTP_ERROR_PAUSE);
        guard.dnsbl =
            (!config.dnsbl.is_empty()).then(|| Dnsbl::new(&config.dnsbl, floor.dns.clone(), clock()));
        guard.greylist =
            config.greylist.then(|| Greylist::new(floor.store.clone(), clock(), config.greylist_delay));
        Arc::new(guard)
    }

    pub(crate) fn new(limits: SmtpLimits, disk: Disk, clock: Clock, pause: Duration) -> Guard {
        Guard {
            door: Door::new(limits.sessions, limits.sessions_per_address),
            rates: Mutex::new(Rates::new(limits::SMTP_COUNTED)),
            // Half of the sessions may stand still and the others go on: NOOP, QUIT, 451.
            waiting: Arc::new(Semaphore::new((limits.sessions / 2).max(1))),
            tarpit: Semaphore::new(limits::SMTP_TARPIT.min(limits.sessions / 4)),
            pause,
            disk,
            clock,
            dnsbl: None,
            greylist: None,
            turned_away: Mutex::new(TurnedAway { since: 0, count: 0 }),
            limits,
        }
    }

    /// Leave to be inside for a connection whose peer is not known yet.
    pub(crate) fn admit(&self) -> Result<Pass, Full> {
        if self.waiting.available_permits() == 0 {
            return Err(Full::Busy);
        }
        self.door.enter().ok_or(Full::All)
    }

    /// Whether this peer may be served, counted from here on.
    pub(crate) fn check(&self, pass: &mut Pass, ip: IpAddr) -> Result<(), Full> {
        if self.is_exempt(ip) {
            return Ok(());
        }
        if !self.rates(|rates, now| rates.allow(Kind::Connection, ip, &self.limits, now)) {
            return Err(Full::Connections);
        }
        if pass.bear(ip) { Ok(()) } else { Err(Full::Sessions) }
    }

    /// A line in the log for those who were sent away, at most one a second.
    pub(crate) fn note_turned_away(&self, ip: IpAddr, full: Full) {
        tracing::debug!(peer = %ip, %full, "connection turned away");
        let mut turned_away = self.turned_away.lock().unwrap_or_else(PoisonError::into_inner);
        turned_away.count += 1;
        let now = self.clock.now();
        if now - turned_away.since >= SECOND {
            tracing::info!(peer = %ip, %full, count = turned_away.count, "connections turned away, the last of them");
            *turned_away = TurnedAway { since: now, count: 0 };
        }
    }

    fn is_exempt(&self, ip: IpAddr) -> bool {
        self.limits.exempt.iter().any(|network| network.contains(ip))
    }

    fn is_over(&self, kind: Kind, ip: IpAddr) -> bool {
        self.rates(|rates, now| rates.is_over(kind, ip, &self.limits, now))
    }

    /// A panic elsewhere cannot leave the counters half changed: nothing panics while they are held.
    fn rates<T>(&self, with: impl FnOnce(&mut Rates, u64) -> T) -> T {
        let now = u64::try_from(self.clock.now()).unwrap_or_default();
        with(&mut self.rates.lock().unwrap_or_else(PoisonError::into_inner), now)
    }
}

/// What the guard knows of one session.
pub(crate) struct Visit<'h> {
    guard: &'h Guard,
    ip: IpAddr,
    exempt: bool,
    /// Errors of the address within the hour, as of the last one.
    errors: u32,
    /// What the block lists say, once they were asked.
    listed: Option<Option<Box<Listing>>>,
}

impl<'h> Visit<'h> {
    pub(crate) fn new(guard: &'h Guard, ip: IpAddr) -> Visit<'h> {
        Visit { guard, ip, exempt: guard.is_exempt(ip), errors: 0, listed: None }
    }

    /// Whether a message may be begun.
    pub(crate) fn mail(&self) -> Result<(), Reply> {
        if self.guard.disk.room().is_err() {
            return Err(Reply::new(452, "3.1", "Too little room on the disk, try again later"));
        }
        if self.guard.waiting.available_permits() == 0 {
            return Err(busy());
        }
        let allow = |rates: &mut Rates, now| rates.allow(Kind::Message, self.ip, &self.guard.limits, now);
        if !self.exempt && !self.guard.rates(allow) {
            return Err(Reply::new(
                451,
                "7.1",
                "Too many messages from your network within a minute, wait a little",
            ));
        }
        Ok(())
    }

    /// Whether this peer may write to a recipient: what it did wrong of late, block lists, then the greylist.
    pub(crate) async fn recipient(&mut self, from: &ReversePath, to: &Address) -> Result<(), Reply> {
        if self.exempt {
            return Ok(());
        }
        if let Some(reply) = self.unwelcome() {
            return Err(reply);
        }
        let ip = self.ip;
        if let Some(listing) = self.listed().await {
            let Listing { zone, reason } = listing;
            let reason = reason.as_deref().unwrap_or("write to postmaster about it");
            return Err(Reply::new(554, "7.1", format_args!("{} is listed by {zone}: {reason}", ip)));
        }
        if let Some(greylist) = &self.guard.greylist
            && !greylist.admits(self.ip, from, to).await
        {
            return Err(Reply::new(
                451,
                "7.1",
                "Your network is new here: greylisted, try again in a few minutes",
            ));
        }
        Ok(())
    }

    async fn listed(&mut self) -> Option<&Listing> {
        let dnsbl = self.guard.dnsbl.as_ref()?;
        if self.listed.is_none() {
            self.listed = Some(dnsbl.look(self.ip).await.map(Box::new));
        }
        self.listed.as_ref()?.as_deref()
    }

    /// Room to wait for the database, or the reply that there is none.
    pub(crate) fn wait(&self) -> Result<SemaphorePermit<'h>, Reply> {
        self.guard.waiting.try_acquire().map_err(|_| busy())
    }

    /// The same for a message, to be asked for when it is about to be written: until then it waits for DNS that
    /// its sender may run, and holds no room that others need.
    pub(crate) fn turn(&self) -> impl FnOnce() -> Result<OwnedSemaphorePermit, Refusal> + Send + use<> {
        let waiting = Arc::clone(&self.guard.waiting);
        move || {
            let refusal = |_| Refusal { code: 451, enhanced: "4.3.2", text: BUSY.to_owned() };
            waiting.try_acquire_owned().map_err(refusal)
        }
    }

    /// Counts a 5xx.
    pub(crate) fn error(&mut self) {
        if !self.exempt {
            self.errors = self.guard.rates(|rates, now| rates.note(Kind::Error, self.ip, now));
        }
    }

    pub(crate) fn unknown_recipient(&self) {
        if !self.exempt {
            self.guard.rates(|rates, now| rates.note(Kind::UnknownRecipient, self.ip, now));
        }
    }

    /// Counts a message that was taken.
    pub(crate) fn accepted(&self) {
        if !self.exempt {
            self.guard.rates(|rates, now| rates.note(Kind::Accepted, self.ip, now));
        }
    }

    /// The answer to RCPT once the peer's address has used up what it may do wrong. The same for recipients that
    /// exist and for those that do not, or it would tell them apart.
    pub(crate) fn unwelcome(&self) -> Option<Reply> {
        let over = !self.exempt
            && (self.guard.is_over(Kind::Error, self.ip)
                || self.guard.is_over(Kind::UnknownRecipient, self.ip));
        over.then(|| Reply::new(450, "7.1", "Too many errors from your network, try again later"))
    }

    /// Keeps a client waiting that has made `errors` in this session. `false` when too many are being kept
    /// waiting already: then it is better to hang up.
    pub(crate) async fn hold_up(&self, errors: u32, stop: &CancellationToken) -> bool {
        let length = self.delay(errors);
        if length.is_zero() {
            return true;
        }
        let Ok(_kept) = self.guard.tarpit.try_acquire() else { return false };
        tokio::select! {
            () = tokio::time::sleep(length) => {}
            () = stop.cancelled() => {}
        }
        true
    }

    fn delay(&self, errors: u32) -> Duration {
        let here = errors.saturating_sub(limits::SMTP_ERRORS_AT_ONCE);
        let of_address = self.errors.saturating_sub(ERRORS_OF_MANY).div_ceil(ERRORS_A_STEP);
        self.guard.pause.saturating_mul(here.max(of_address)).min(limits::SMTP_LONGEST_PAUSE)
    }
}

fn busy() -> Reply {
    Reply::new(451, "3.2", BUSY)
}

const BUSY: &str = "Too much mail is waiting to be stored, try again soon";

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::clock::ClockHand;
    use crate::floor::testing::START;

    /// The limits as shipped, for everybody.
    pub(crate) fn limits() -> SmtpLimits {
        SmtpLimits {
            sessions: limits::SMTP_SESSIONS,
            sessions_per_address: limits::SMTP_SESSIONS_PER_ADDRESS,
            connections_per_minute: limits::SMTP_CONNECTIONS_PER_MINUTE,
            messages_per_minute: limits::SMTP_MESSAGES_PER_MINUTE,
            errors_per_hour: limits::SMTP_ERRORS_PER_HOUR,
            unknown_recipients_per_hour: limits::SMTP_UNKNOWN_RECIPIENTS_PER_HOUR,
            exempt: Vec::new(),
        }
    }

    /// A guard with these limits, delays of a millisecond a step and a disk without end.
    pub(crate) fn guard(limits: SmtpLimits) -> Arc<Guard> {
        timed(limits).0
    }

    /// The same, with the hand of its clock.
    pub(crate) fn timed(limits: SmtpLimits) -> (Arc<Guard>, ClockHand) {
        let (clock, hand) = Clock::scripted(START);
        (Arc::new(Guard::new(limits, Disk::endless(), clock, Duration::from_millis(1))), hand)
    }
}

#[cfg(test)]
mod tests;
