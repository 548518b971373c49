//! What one MX site is asked to bear, and what it may cost us: limits by the set of MX hosts, not by domain.
//!
//! A thousand domains may share a provider, and it counts us once. Promises, for each site and this node:
//! never more connections at once, new ones and messages a minute than its limits say; a site that has not
//! answered yet, or no longer does, has one attempt under way and no more; after several connections in a row
//! that came to nothing it is left alone for a while. Who may not go now hears when to come again, and is not
//! counted as tried. Waiting is short and bounded, so that no site fills the places that others need.
//!
//! The idea and the order of magnitude of the numbers are KumoMTA's (`mx_rollup`, `connection_limit`,
//! `max_connection_rate`, `consecutive_connection_failures_before_delay`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::config::{SiteLimits, SiteRule};

/// Sites remembered; beyond it those that nothing is known against are forgotten.
const MAX_SITES: usize = 10_000;
/// Attempts that wait for a connection to a site that answers, and to one that has not yet.
const MAX_WAITING: usize = 48;
const MAX_WAITING_UNKNOWN: usize = 2;
/// How long they wait, and when who may not wait comes again.
const PATIENCE: Duration = if cfg!(test) { Duration::from_millis(20) } else { Duration::from_secs(3) };
const SOON: Duration = Duration::from_secs(5);
/// A site that is merely new answers its first message within milliseconds: what came with it waits no longer than
/// that at first, then as long as the site has kept silent, up to `SOON`.
const AT_FIRST: Duration = Duration::from_millis(200);
/// The part of a minute's allowance that may be used at once.
const BURST: f64 = 6.0;

/// Providers whose hosts are one site, whichever names they have: the mail of many domains goes through one gate.
/// Only names below which nobody can rent a machine: a stranger's that hangs would hold up the provider's mail
/// (no `amazonaws.com`, no `secureserver.net`; of OVH the mail hosts alone).
const PROVIDERS: &[&str] = &[
    "google.com",
    "googlemail.com",
    "outlook.com",
    "mx.microsoft",
    "yahoodns.net",
    "icloud.com",
    "pphosted.com",
    "ppe-hosted.com",
    "mimecast.com",
    "iphmx.com",
    "barracudanetworks.com",
    "messagelabs.com",
    "messagingengine.com",
    "zoho.com",
    "gmx.net",
    "kundenserver.de",
    "mail.ovh.net",
    "protonmail.ch",
];

/// The name of the site that these hosts are: their set, with providers rolled up.
pub(crate) fn name(hosts: &[String]) -> String {
    let rolled = |host: &String| {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let of = |provider: &&&str| is_below(&host, provider);
        PROVIDERS.iter().find(of).map_or_else(|| host.clone(), |provider| (*provider).to_owned())
    };
    let set: std::collections::BTreeSet<String> = hosts.iter().map(rolled).collect();
    set.into_iter().collect::<Vec<_>>().join(",")
}

fn is_below(host: &str, domain: &str) -> bool {
    host.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// All sites, and their limits.
pub(crate) struct Sites {
    limits: SiteLimits,
    rules: Vec<SiteRule>,
    table: Mutex<HashMap<String, Site>>,
}

struct Site {
    limits: SiteLimits,
    connections: Arc<Semaphore>,
    /// One permit: who has it may try a site that has not answered.
    probe: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    answers: bool,
    /// Since when it has been waited for: it was first seen, or failed after it had answered.
    silent_since: Instant,
    failures: u32,
    held_until: Option<Instant>,
    dials: Bucket,
    messages: Bucket,
}

/// An allowance for each minute, refilled steadily.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Zero: no limit.
    per_minute: u32,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn new(per_minute: u32, now: Instant) -> Bucket {
        Bucket { per_minute, tokens: Bucket::most(per_minute), at: now }
    }

    fn most(per_minute: u32) -> f64 {
        (f64::from(per_minute) / BURST).max(1.0)
    }

    /// How long until there is one; `None`: now.
    fn wait(&mut self, now: Instant) -> Option<Duration> {
        if self.per_minute == 0 {
            return None;
        }
        let a_second = f64::from(self.per_minute) / 60.0;
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + since * a_second).min(Bucket::most(self.per_minute));
        self.at = now;
        (self.tokens < 1.0).then(|| Duration::from_secs_f64((1.0 - self.tokens) / a_second))
    }

    /// Takes one, into debt if need be: what was promised by `wait` is kept, and the next one pays.
    fn take(&mut self) {
        self.tokens -= 1.0;
    }
}

/// Not now: when to come again, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NotNow {
    pub(crate) wait: Duration,
    pub(crate) why: String,
}

/// The right to one connection to a site.
pub(crate) struct Pass {
    sites: Arc<Sites>,
    pub(crate) site: String,
    pub(crate) messages_per_connection: u32,
    _connection: OwnedSemaphorePermit,
    _probe: Option<OwnedSemaphorePermit>,
}

impl Site {
    fn new(limits: SiteLimits, now: Instant) -> Site {
        Site {
            connections: Arc::new(Semaphore::new(limits.connections as usize)),
            probe: Arc::new(Semaphore::new(1)),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
            answers: false,
            silent_since: now,
            failures: 0,
            held_until: None,
            dials: Bucket::new(limits.connections_per_minute, now),
            messages: Bucket::new(limits.messages_per_minute, now),
            limits,
        }
    }

    fn failed(&mut self, now: Instant) {
        if std::mem::take(&mut self.answers) {
            self.silent_since = now;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures >= self.limits.failures {
            self.held_until = Some(now + self.limits.hold);
        }
    }

    fn is_idle(&self) -> bool {
        self.connections.available_permits() >= self.limits.connections as usize
    }

    /// Whether it is on hold, or has had its share; `None`: it may be tried.
    fn refuses(&mut self, has_idle: bool, now: Instant) -> Option<(Duration, &'static str)> {
        self.held_until = self.held_until.filter(|until| *until > now);
        if let Some(until) = self.held_until {
            return Some((until - now, "is left alone after connections that came to nothing"));
        }
        if let Some(wait) = self.messages.wait(now) {
            return Some((wait, "has had its messages for now"));
        }
        let wait = if has_idle { None } else { self.dials.wait(now) };
        wait.map(|wait| (wait, "has had its new connections for now"))
    }
}

impl Sites {
    pub(crate) fn new(limits: SiteLimits, rules: Vec<SiteRule>) -> Arc<Sites> {
        Arc::new(Sites { limits, rules, table: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Site>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What holds at a site: the first rule that names all of its hosts.
    fn limits_of(&self, name: &str) -> SiteLimits {
        let fits = |rule: &&SiteRule| name.split(',').all(|host| is_below(host, &rule.name));
        self.rules.iter().find(fits).map_or(self.limits, |rule| rule.limits)
    }

    fn with<T>(&self, name: &str, now: Instant, look: impl FnOnce(&mut Site) -> T) -> T {
        let mut table = self.lock();
        if table.len() >= MAX_SITES && !table.contains_key(name) {
            table.retain(|_, site| !site.is_idle() || site.held_until.is_some_and(|until| until > now));
        }
        let new = || Site::new(self.limits_of(name), now);
        look(table.entry(name.to_owned()).or_insert_with(new))
    }

    /// Whether a message may go to the site now. `has_idle`: a connection is open that it can have.
    pub(crate) async fn enter(self: &Arc<Sites>, name: &str, has_idle: bool) -> Result<Pass, NotNow> {
        let now = Instant::now();
        let not_now = |(wait, why): (Duration, &str)| NotNow { wait, why: format!("{name} {why}") };
        let looked = |site: &mut Site| match site.refuses(has_idle, now) {
            Some(refused) => Err(refused),
            None => {
                let silent = now.saturating_duration_since(site.silent_since).clamp(AT_FIRST, SOON);
                let known = if site.answers { None } else { Some(silent) };
                Ok((site.connections.clone(), site.probe.clone(), site.waiting.clone(), known))
            }
        };
        let (connections, probe, waiting, silent) = self.with(name, now, looked).map_err(not_now)?;
        let busy = || not_now((SOON, "has as many connections as it may"));
        let until = now + PATIENCE;
        let probe = match silent {
            Some(silent) => {
                let probe = permit(probe, &waiting, MAX_WAITING_UNKNOWN, until).await;
                Some(probe.ok_or_else(|| not_now((silent, "has not answered yet")))?)
            }
            None => None,
        };
        let connection = permit(connections, &waiting, MAX_WAITING, until).await.ok_or_else(busy)?;
        let now = Instant::now();
        let taken = |site: &mut Site| match site.refuses(has_idle, now) {
            Some(refused) => Err(refused),
            None => {
                site.messages.take();
                // Who waited for the first answer and has it now stands in nobody's way.
                Ok((site.limits.messages_per_connection, !site.answers))
            }
        };
        let (messages_per_connection, probing) = self.with(name, now, taken).map_err(not_now)?;
        Ok(Pass {
            sites: self.clone(),
            site: name.to_owned(),
            messages_per_connection,
            _connection: connection,
            _probe: probe.filter(|_| probing),
        })
    }
}

/// A permit, at once or after a short wait in a bounded queue.
async fn permit(
    from: Arc<Semaphore>,
    waiting: &Arc<Semaphore>,
    most: usize,
    until: Instant,
) -> Option<OwnedSemaphorePermit> {
    if let Ok(permit) = from.clone().try_acquire_owned() {
        return Some(permit);
    }
    let place = waiting.clone().try_acquire_owned().ok()?;
    if waiting.available_permits() + most < MAX_WAITING {
        return None;
    }
    let permit = timeout_at(until, from.acquire_owned()).await.ok()?.ok();
    drop(place);
    permit
}

impl Pass {
    /// A new connection is about to be made.
    pub(crate) fn dials(&self) {
        self.sites.with(&self.site, Instant::now(), |site| site.dials.take());
    }

    /// The site answered for a message, whatever it said.
    pub(crate) fn answered(&self) {
        self.sites.with(&self.site, Instant::now(), |site| {
            site.answers = true;
            site.failures = 0;
        });
    }

    /// No host of the site got as far as taking a message.
    pub(crate) fn failed(&self) {
        let now = Instant::now();
        self.sites.with(&self.site, now, |site| site.failed(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> SiteLimits {
        SiteLimits {
            connections: 2,
            connections_per_minute: 0,
            messages_per_minute: 0,
            messages_per_connection: 100,
            failures: 2,
            hold: Duration::from_secs(300),
        }
    }

    fn names(list: &[&str]) -> String {
        name(&list.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn domains_of_one_provider_are_one_site() {
        assert_eq!(names(&["ASPMX.L.Google.com", "alt1.aspmx.l.google.com"]), "google.com");
        assert_eq!(names(&["a-example.mail.protection.outlook.com"]), "outlook.com");
        assert_eq!(names(&["mx2.a.example", "mx1.a.example."]), names(&["mx1.a.example", "MX2.a.example"]));
        assert_eq!(names(&["mx.notgoogle.com"]), "mx.notgoogle.com");
        // Anybody's virtual machine.
        let rented = "ec2-198-51-100-7.compute-1.amazonaws.com";
        assert_ne!(names(&[rented]), names(&["inbound-smtp.us-east-1.amazonaws.com"]));
    }

    #[tokio::test]
    async fn a_site_that_never_answered_has_one_attempt_under_way() {
        let sites = Sites::new(limits(), Vec::new());
        let first = sites.enter("hangs", false).await.unwrap();
        let refused = sites.enter("hangs", false).await.err().unwrap();
        assert!(refused.why.contains("not answered"));
        assert_eq!(refused.wait, AT_FIRST, "it may be merely new");
        sites.with("hangs", Instant::now(), |site| site.silent_since -= Duration::from_secs(60));
        assert_eq!(sites.enter("hangs", false).await.err().unwrap().wait, SOON);
        let _other = sites.enter("well", false).await.unwrap();
        first.answered();
        let _second = sites.enter("hangs", false).await.unwrap();
        assert!(sites.enter("hangs", false).await.err().unwrap().why.contains("as many connections"));
    }

    #[test]
    fn a_dead_site_is_left_alone_and_then_tried_once() {
        let now = Instant::now();
        let mut site = Site::new(limits(), now);
        site.failed(now);
        assert_eq!(site.refuses(false, now), None);
        site.failed(now);
        assert_eq!(site.refuses(true, now).unwrap().0, Duration::from_secs(300));
        let later = now + Duration::from_secs(301);
        assert_eq!(site.refuses(false, later), None);
        site.failed(later);
        assert!(site.refuses(false, later).is_some(), "one more failure, and it is left alone again");
    }

    #[tokio::test]
    async fn a_dead_site_is_not_entered() {
        let sites = Sites::new(limits(), Vec::new());
        sites.enter("dead", false).await.unwrap().failed();
        sites.enter("dead", false).await.unwrap().failed();
        assert!(sites.enter("dead", false).await.err().unwrap().why.contains("left alone"));
        assert!(sites.enter("well", false).await.is_ok());
    }

    #[test]
    fn a_minute_has_its_messages_and_its_connections() {
        let slow = SiteLimits { messages_per_minute: 60, connections_per_minute: 6, ..limits() };
        let rule = SiteRule { name: "slow.example".into(), limits: slow };
        let sites = Sites::new(limits(), vec![rule]);
        assert_eq!(sites.limits_of("mx1.slow.example,mx2.slow.example"), slow);
        assert_eq!(sites.limits_of("mx1.slow.example,mx.fast.example"), limits());
        let now = Instant::now();
        let mut site = Site::new(slow, now);
        for _ in 0..10 {
            assert_eq!(site.refuses(true, now), None);
            site.messages.take();
        }
        let (wait, why) = site.refuses(true, now).unwrap();
        assert!(why.contains("messages") && wait <= Duration::from_secs(1), "{wait:?} {why}");
        let now = now + Duration::from_secs(5);
        assert_eq!(site.refuses(false, now), None);
        site.dials.take();
        let (wait, why) = site.refuses(false, now).unwrap();
        assert!(why.contains("new connections") && wait <= Duration::from_secs(10), "{wait:?} {why}");
        assert_eq!(site.refuses(true, now), None, "an open one may be used");
    }
}
