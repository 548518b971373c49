//! DNS block lists: is this address on one of the operator's lists?
//!
//! - An address in 127.0.0.0/8 says yes, except 127.0.0.1 (RFC 5782 §2.1 forbids it; some lists mean "query
//!   refused" by it) and 127.255.255.0/24 (Spamhaus's error codes: wrong name, public resolver, too many
//!   questions). Anything else is somebody's wildcard. What says neither yes nor no is said in the log, once an hour.
//! - Lists are asked side by side, within a deadline. A list that does not answer lets mail in.
//!
//! RFC 5782 §2.1 (IPv4), §2.3 (TXT), §2.4 (IPv6), §5 (test entries).

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicI64, Ordering};

use futures_util::future::join_all;
use tokio::time::timeout;

use crate::clock::{Clock, HOUR, Millis};
use crate::config::limits::DNSBL_TIME;
use crate::dns::{DnsError, Resolver};

pub(super) struct Dnsbl {
    dns: Resolver,
    clock: Clock,
    lists: Vec<List>,
}

struct List {
    zone: String,
    /// When it was last complained of.
    complained: AtomicI64,
}

/// An entry that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listing {
    pub(crate) zone: String,
    /// What the list says of it, often an address to read on.
    pub(crate) reason: Option<String>,
}

/// What the A records of an entry mean.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Listed,
    /// The list is broken, or does not talk to us.
    Nonsense(Ipv4Addr),
    NotListed,
}

impl Dnsbl {
    pub(super) fn new(zones: &[String], dns: Resolver, clock: Clock) -> Dnsbl {
        let list = |zone: &String| List { zone: zone.clone(), complained: AtomicI64::new(Millis::MIN) };
        Dnsbl { dns, clock, lists: zones.iter().map(list).collect() }
    }

    /// The first of the lists that has this address.
    pub(super) async fn look(&self, ip: IpAddr) -> Option<Listing> {
        let answers = join_all(self.lists.iter().map(|list| timeout(DNSBL_TIME, self.ask(list, ip)))).await;
        answers.into_iter().zip(&self.lists).find_map(|(answer, list)| {
            answer.unwrap_or_else(|_| {
                self.complain(list, "no answer in time");
                None
            })
        })
    }

    async fn ask(&self, list: &List, ip: IpAddr) -> Option<Listing> {
        let name = entry(ip, &list.zone);
        match self.dns.ipv4(&name).await.map(|addresses| judge(&addresses)) {
            Ok(Answer::Listed) => {
                let reason = self.dns.txt(&name).await.ok().and_then(|texts| texts.into_iter().next());
                Some(Listing { zone: list.zone.clone(), reason })
            }
            Ok(Answer::NotListed) | Err(DnsError::NotFound | DnsError::Empty) => None,
            Ok(Answer::Nonsense(address)) => {
                self.complain(list, &format!("answered {address}, which is no listing"));
                None
            }
            Err(error) => {
                self.complain(list, &error.to_string());
                None
            }
        }
    }

    fn complain(&self, list: &List, what: &str) {
        let now = self.clock.now();
        if now.saturating_sub(list.complained.load(Ordering::Relaxed)) >= HOUR {
            list.complained.store(now, Ordering::Relaxed);
            tracing::warn!(
                zone = list.zone,
                what,
                "a DNS block list is of no use at the moment: mail is let in"
            );
        }
    }
}

/// The name that a list has, or has not, for an address: its octets (IPv4) or nibbles (IPv6), reversed.
pub(crate) fn entry(ip: IpAddr, zone: &str) -> String {
    let mut name = String::new();
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.octets().iter().rev().for_each(|octet| {
            let _ = write!(name, "{octet}.");
        }),
        IpAddr::V6(ip) => ip.octets().iter().rev().for_each(|octet| {
            let _ = write!(name, "{:x}.{:x}.", octet & 15, octet >> 4);
        }),
    }
    name + zone
}

fn judge(addresses: &[Ipv4Addr]) -> Answer {
    let nonsense = |ip: &&Ipv4Addr| {
        !ip.is_loopback() || **ip == Ipv4Addr::LOCALHOST || ip.octets().starts_with(&[127, 255, 255])
    };
    match (addresses.iter().find(nonsense), addresses) {
        (Some(address), _) => Answer::Nonsense(*address),
        (None, []) => Answer::NotListed,
        (None, _) => Answer::Listed,
    }
}

/// What is wrong with a list, by its test entries: RFC 5782 §5.
pub(crate) async fn test(dns: &Resolver, zone: &str) -> Result<(), String> {
    let ask = async |ip: [u8; 4]| match dns.ipv4(&entry(IpAddr::from(ip), zone)).await {
        Ok(addresses) => Ok(judge(&addresses)),
        Err(DnsError::NotFound | DnsError::Empty) => Ok(Answer::NotListed),
        Err(error) => Err(error.to_string()),
    };
    match (ask([127, 0, 0, 2]).await?, ask([127, 0, 0, 1]).await?) {
        (Answer::Nonsense(address), _) => Err(format!(
            "answers {address}: it does not talk to this resolver (many lists refuse public ones), or is gone"
        )),
        (Answer::NotListed, _) => {
            Err("has no entry for 127.0.0.2: it is not a block list, or is gone".into())
        }
        (Answer::Listed, Answer::NotListed) => Ok(()),
        (Answer::Listed, _) => Err("lists 127.0.0.1, and so probably everybody: it is gone".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::zone::Zone;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn names_are_reversed() {
        assert_eq!(entry(ip("192.0.2.99"), "bl.example"), "99.2.0.192.bl.example");
        assert_eq!(entry(ip("::ffff:192.0.2.99"), "bl.example"), "99.2.0.192.bl.example");
        // RFC 5782 §2.4, its own example.
        assert_eq!(
            entry(ip("2001:db8:1:2:3:4:567:89ab"), "ugly.example.com"),
            "b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2.ugly.example.com"
        );
    }

    /// Incidents: lists that ended by listing everybody (a wildcard to a web server), Spamhaus answering public
    /// resolvers with error codes, a list that says no to all questions. None of them may refuse mail.
    #[tokio::test]
    async fn a_list_that_is_broken_lets_mail_in() {
        let zone = Zone::new()
            .a("9.2.0.192.good.example", "127.0.0.4")
            .txt("9.2.0.192.good.example", &["see https://good.example/", "192.0.2.9"])
            .a("9.2.0.192.refusing.example", "127.255.255.254")
            .a("9.2.0.192.web.example", "198.51.100.80")
            .a("9.2.0.192.denied.example", "127.0.0.1")
            .broken("9.2.0.192.broken.example")
            .a("8.2.0.192.six.example", "127.0.0.2")
            .a(&entry(ip("2001:db8::1"), "six.example"), "127.0.0.2")
            .start()
            .await;
        let lists = |zones: &[&str]| {
            let zones: Vec<String> = zones.iter().map(|zone| (*zone).to_owned()).collect();
            Dnsbl::new(&zones, zone.resolver(), Clock::system())
        };
        let bad = ["refusing.example", "web.example", "denied.example", "broken.example", "none.example"];
        assert_eq!(lists(&bad).look(ip("192.0.2.9")).await, None);
        let all = [bad.as_slice(), &["six.example", "good.example"]].concat();
        let found = lists(&all).look(ip("192.0.2.9")).await.unwrap();
        assert_eq!(found.zone, "good.example");
        assert_eq!(found.reason.as_deref(), Some("see https://good.example/192.0.2.9"));
        let found = lists(&all).look(ip("2001:db8::1")).await.unwrap();
        assert_eq!((found.zone.as_str(), found.reason), ("six.example", None));
        assert_eq!(lists(&all).look(ip("192.0.2.10")).await, None);
    }

    #[tokio::test]
    async fn test_entries_tell_a_list_from_its_ruins() {
        let zone = Zone::new()
            .a("2.0.0.127.good.example", "127.0.0.2")
            .a("2.0.0.127.everybody.example", "127.0.0.2")
            .a("1.0.0.127.everybody.example", "127.0.0.2")
            .a("2.0.0.127.refusing.example", "127.255.255.254")
            .start()
            .await;
        let dns = zone.resolver();
        assert_eq!(test(&dns, "good.example").await, Ok(()));
        for (zone, words) in
            [("everybody.example", "everybody"), ("refusing.example", "public"), ("gone.example", "no entry")]
        {
            assert!(test(&dns, zone).await.unwrap_err().contains(words), "{zone}");
        }
    }
}
