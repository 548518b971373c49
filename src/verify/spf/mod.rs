//! SPF, RFC 7208: may this address send for that domain?
//!
//! `record` reads, `macros` expands, this file asks. Ours and not mail-auth's, which takes records that are
//! malformed, two records for one, and an AAAA record where A is asked for (§3.1, §4.5, §5.7).
//!
//! Bounded by §4.6.4: 10 terms that ask the DNS, 2 of them in vain, 10 names each; and by what the message
//! may ask as a whole. A limit that is passed is a permanent error.

mod macros;
mod record;

use std::net::IpAddr;
use std::pin::Pin;

use super::lookups::{Lookups, NoAnswer, SPENT};
use super::verdict::{AuthResult, Spf};
use crate::address::{Address, normalize_domain};
use crate::clock::Millis;
use crate::envelope::Peer;
use macros::MacroString;
use record::{Mechanism, Prefixes, Record};

/// RFC 7208 §4.6.4: terms that cause DNS queries, over all included records.
const MAX_TERMS: usize = 10;
/// RFC 7208 §4.6.4: queries without an answer.
const MAX_VOID: usize = 2;
/// RFC 7208 §4.6.4: names of one `mx` or `ptr`.
const MAX_NAMES: usize = 10;
/// Characters kept of a domain's own words about a failure.
const MAX_EXPLANATION: usize = 300;

/// Who is asked about.
pub(crate) struct Question<'q> {
    pub ip: IpAddr,
    pub helo: &'q str,
    /// The sender's local part; `postmaster` where there is none (§4.3).
    pub local: &'q str,
    pub domain: &'q str,
    /// Our own name.
    pub hostname: &'q str,
    pub now: Millis,
}

/// The domain that is asked: of MAIL FROM, or of the greeting for the null reverse-path (§2.4). `None` for
/// an address literal or nonsense.
pub(crate) fn identity(peer: &Peer, mail_from: Option<&Address>) -> Option<String> {
    let domain = match mail_from {
        Some(address) => Some(address.domain().to_owned()),
        None => normalize_domain(&peer.helo).ok(),
    };
    domain.filter(|domain| can_be_asked(domain))
}

/// §4.3: a name of several labels that the DNS can hold.
fn can_be_asked(domain: &str) -> bool {
    let labels = |label: &str| !label.is_empty() && label.len() <= 63;
    domain.contains('.') && domain.len() <= 253 && !domain.starts_with('[') && domain.split('.').all(labels)
}

/// `check_host()` of §4.
pub(crate) async fn check(lookups: &Lookups<'_>, question: &Question<'_>) -> Spf {
    let mut run = Run { lookups, question, terms: 0, void: 0, names: None };
    let domain = question.domain.to_owned();
    let outcome = run.check_host(domain.clone()).await;
    let plain = |result, detail: Option<String>| Spf { result, domain, detail, explanation: None };
    match outcome {
        Ok(answer) if answer.result == AuthResult::None => {
            plain(AuthResult::None, Some("no SPF record".into()))
        }
        Ok(answer) => {
            let explanation = match answer.explanation {
                Some((text, domain)) => run.explain(&text, &domain).await,
                None => None,
            };
            Spf { explanation, ..plain(answer.result, None) }
        }
        Err(Stop::Temporary(why)) => plain(AuthResult::TempError, Some(why)),
        Err(Stop::Permanent(why)) => plain(AuthResult::PermError, Some(why.to_owned())),
    }
}

/// What ends the evaluation.
enum Stop {
    Temporary(String),
    Permanent(&'static str),
}

/// What a record says: `None` where there is none.
struct Answer {
    result: AuthResult,
    /// Of a `fail`: the text that the domain has for it, and whose record that was.
    explanation: Option<(MacroString, String)>,
}

impl Answer {
    fn plain(result: AuthResult) -> Answer {
        Answer { result, explanation: None }
    }
}

type Boxed<'s, T> = Pin<Box<dyn Future<Output = T> + Send + 's>>;

struct Run<'q> {
    lookups: &'q Lookups<'q>,
    question: &'q Question<'q>,
    terms: usize,
    void: usize,
    /// The names that the reverse zone has for the client.
    names: Option<Vec<String>>,
}

impl<'q> Run<'q> {
    /// Boxed, since records include records; the limit on terms bounds the depth.
    fn check_host<'s>(&'s mut self, domain: String) -> Boxed<'s, Result<Answer, Stop>> {
        Box::pin(async move {
            if !can_be_asked(&domain) {
                return Ok(Answer::plain(AuthResult::None));
            }
            let Some(record) = self.record(&domain).await? else {
                return Ok(Answer::plain(AuthResult::None));
            };
            for (result, mechanism) in &record.directives {
                if self.matches(mechanism, &domain).await? {
                    let failed = *result == AuthResult::Fail;
                    let explanation = record.explanation.clone().filter(|_| failed);
                    return Ok(Answer { result: *result, explanation: explanation.map(|e| (e, domain)) });
                }
            }
            let Some(redirect) = &record.redirect else { return Ok(Answer::plain(AuthResult::Neutral)) };
            // §6.1: its result is ours, except that a record must be there.
            self.count()?;
            let target = self.target(redirect, &domain).await;
            match self.check_host(target).await? {
                Answer { result: AuthResult::None, .. } => {
                    Err(Stop::Permanent("redirect leads to no record"))
                }
                answer => Ok(answer),
            }
        })
    }

    /// §4.4, §4.5: the one record of a domain.
    async fn record(&mut self, domain: &str) -> Result<Option<Record>, Stop> {
        let records = match self.lookups.txt(domain).await {
            Ok(records) => records,
            Err(NoAnswer::NotFound | NoAnswer::Empty) => return Ok(None),
            Err(error) => return Err(stop(error)),
        };
        let mut records = records.iter().filter(|record| record::is_spf(record));
        match (records.next(), records.next()) {
            (None, _) => Ok(None),
            (Some(one), None) => Record::parse(one).map(Some).map_err(Stop::Permanent),
            (Some(_), Some(_)) => Err(Stop::Permanent("more than one SPF record")),
        }
    }

    async fn matches(&mut self, mechanism: &Mechanism, domain: &str) -> Result<bool, Stop> {
        let ip = self.question.ip;
        match mechanism {
            Mechanism::All => Ok(true),
            Mechanism::Ip4(network, bits) => Ok(within(ip, IpAddr::V4(*network), *bits)),
            Mechanism::Ip6(network, bits) => Ok(within(ip, IpAddr::V6(*network), *bits)),
            Mechanism::Include(target) => {
                self.count()?;
                let target = self.target(target, domain).await;
                match self.check_host(target).await?.result {
                    AuthResult::Pass => Ok(true),
                    AuthResult::None => Err(Stop::Permanent("include leads to no record")),
                    _ => Ok(false),
                }
            }
            Mechanism::A(target, prefixes) => {
                self.count()?;
                let host = self.target_or(target.as_ref(), domain).await;
                self.host_matches(&host, *prefixes).await
            }
            Mechanism::Mx(target, prefixes) => {
                self.count()?;
                let target = self.target_or(target.as_ref(), domain).await;
                self.mx_matches(&target, *prefixes).await
            }
            Mechanism::Ptr(target) => {
                self.count()?;
                let target = self.target_or(target.as_ref(), domain).await;
                self.ptr_matches(&target).await
            }
            Mechanism::Exists(target) => {
                self.count()?;
                let target = self.target(target, domain).await;
                // §5.7: A, also where the client has an IPv6 address.
                Ok(!self.addresses(&target, IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)).await?.is_empty())
            }
        }
    }

    /// §4.6.4
    fn count(&mut self) -> Result<(), Stop> {
        self.terms += 1;
        if self.terms > MAX_TERMS {
            return Err(Stop::Permanent("more than 10 terms that ask the DNS"));
        }
        Ok(())
    }

    /// Addresses of the family of `like`; none is counted, and not an error until there are too many.
    async fn addresses(&mut self, host: &str, like: IpAddr) -> Result<Vec<IpAddr>, Stop> {
        if !holdable(host) {
            return Ok(Vec::new());
        }
        match self.lookups.addresses(host, like).await {
            Ok(addresses) => Ok(addresses),
            Err(NoAnswer::NotFound | NoAnswer::Empty) => self.in_vain().map(|()| Vec::new()),
            Err(error) => Err(stop(error)),
        }
    }

    fn in_vain(&mut self) -> Result<(), Stop> {
        self.void += 1;
        if self.void > MAX_VOID {
            return Err(Stop::Permanent("more than 2 questions that had no answer"));
        }
        Ok(())
    }

    async fn host_matches(&mut self, host: &str, prefixes: Prefixes) -> Result<bool, Stop> {
        let ip = self.question.ip;
        let bits = if ip.is_ipv4() { prefixes.v4 } else { prefixes.v6 };
        Ok(self.addresses(host, ip).await?.into_iter().any(|address| within(ip, address, bits)))
    }

    async fn mx_matches(&mut self, target: &str, prefixes: Prefixes) -> Result<bool, Stop> {
        if !holdable(target) {
            return Ok(false);
        }
        let exchangers = match self.lookups.mx(target).await {
            Ok(exchangers) => exchangers,
            Err(NoAnswer::NotFound | NoAnswer::Empty) => return self.in_vain().map(|()| false),
            Err(error) => return Err(stop(error)),
        };
        if exchangers.len() > MAX_NAMES {
            return Err(Stop::Permanent("more than 10 mail exchangers"));
        }
        for mx in exchangers.iter().filter(|mx| mx.exchange != ".") {
            if self.host_matches(&mx.exchange, prefixes).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// §5.5: names that cannot be found out are passed over.
    async fn ptr_matches(&mut self, target: &str) -> Result<bool, Stop> {
        for name in self.reverse_names().await? {
            if is_or_below(&name, target) && self.validates(&name).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn reverse_names(&mut self) -> Result<Vec<String>, Stop> {
        if let Some(names) = &self.names {
            return Ok(names.clone());
        }
        let mut names = match self.lookups.ptr(self.question.ip).await {
            Ok(names) => names,
            Err(NoAnswer::NotFound | NoAnswer::Empty) => {
                self.in_vain()?;
                Vec::new()
            }
            Err(NoAnswer::Temporary(_)) => Vec::new(),
            Err(NoAnswer::Spent) => return Err(stop(NoAnswer::Spent)),
        };
        names.truncate(MAX_NAMES);
        self.names = Some(names.clone());
        Ok(names)
    }

    /// Whether a name leads back to the client.
    async fn validates(&self, name: &str) -> Result<bool, Stop> {
        match self.lookups.addresses(name, self.question.ip).await {
            Ok(addresses) => Ok(addresses.contains(&self.question.ip)),
            Err(NoAnswer::Spent) => Err(stop(NoAnswer::Spent)),
            Err(_) => Ok(false),
        }
    }

    /// §7.2, the letter p: the domain itself, then a name below it, then any; `unknown` without one.
    async fn validated_name(&mut self, domain: &str) -> String {
        let mut names = self.reverse_names().await.unwrap_or_default();
        names.sort_by_key(|name| match is_or_below(name, domain) {
            true if name.len() == domain.len() => 0,
            true => 1,
            false => 2,
        });
        for name in names {
            if self.validates(&name).await.unwrap_or(false) {
                return name;
            }
        }
        "unknown".to_owned()
    }

    async fn target_or(&mut self, target: Option<&MacroString>, domain: &str) -> String {
        match target {
            Some(target) => self.target(target, domain).await,
            None => domain.to_owned(),
        }
    }

    async fn target(&mut self, target: &MacroString, domain: &str) -> String {
        macros::name(&self.expand(target, domain).await).to_owned()
    }

    async fn expand(&mut self, text: &MacroString, domain: &str) -> String {
        let name = if text.needs_name() { self.validated_name(domain).await } else { String::new() };
        let question = self.question;
        let local = if question.local.is_empty() { "postmaster" } else { question.local };
        text.expand(|letter| match letter {
            's' => format!("{local}@{}", question.domain),
            'l' => local.to_owned(),
            'o' => question.domain.to_owned(),
            'd' => domain.to_owned(),
            'i' => dotted(question.ip),
            'p' => name.clone(),
            'v' => if question.ip.is_ipv4() { "in-addr" } else { "ip6" }.to_owned(),
            'h' => question.helo.to_owned(),
            'c' => question.ip.to_string(),
            'r' => question.hostname.to_owned(),
            't' => question.now.div_euclid(1000).to_string(),
            _ => String::new(),
        })
    }

    /// §6.2: whatever is wrong with an explanation, the result stands without it.
    async fn explain(&mut self, text: &MacroString, domain: &str) -> Option<String> {
        let target = self.target(text, domain).await;
        if !holdable(&target) {
            return None;
        }
        let records = self.lookups.txt(&target).await.ok()?;
        let [one] = records.as_slice() else { return None };
        let text = MacroString::explanation(one).ok()?;
        Some(self.expand(&text, domain).await.chars().take(MAX_EXPLANATION).collect())
    }
}

fn stop(error: NoAnswer) -> Stop {
    match error {
        NoAnswer::Spent => Stop::Permanent(SPENT),
        NoAnswer::Temporary(why) => Stop::Temporary(why),
        NoAnswer::NotFound | NoAnswer::Empty => Stop::Permanent("no such name"),
    }
}

/// A name that can be asked for; of others it is known that they do not exist.
fn holdable(name: &str) -> bool {
    !name.is_empty() && name.len() <= 253 && name.split('.').all(|label| (1..=63).contains(&label.len()))
}

fn is_or_below(name: &str, domain: &str) -> bool {
    let Some(at) = name.len().checked_sub(domain.len()) else { return false };
    name.get(at..).is_some_and(|tail| tail.eq_ignore_ascii_case(domain))
        && (at == 0 || name.get(..at).is_some_and(|head| head.ends_with('.')))
}

/// Whether the first `bits` are the same; never across families.
fn within(ip: IpAddr, network: IpAddr, bits: u8) -> bool {
    let shift = |width: u32| width.saturating_sub(u32::from(bits));
    match (ip, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            (a.to_bits() ^ b.to_bits()).checked_shr(shift(32)).unwrap_or(0) == 0
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            (a.to_bits() ^ b.to_bits()).checked_shr(shift(128)).unwrap_or(0) == 0
        }
        _ => false,
    }
}

/// §7.3: dotted quad, or the nibbles of an IPv6 address.
fn dotted(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => {
            let digits = format!("{:032X}", v6.to_bits());
            digits.chars().map(String::from).collect::<Vec<_>>().join(".")
        }
    }
}
