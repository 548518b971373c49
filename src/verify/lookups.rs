//! What one message may ask the DNS: 20 questions, counted over all methods, so that no message is a way to
//! make us ask a thousand.
//!
//! Shares are set apart before anything is asked: the keys of the signatures, the policy of the author and
//! the name of the client cannot be crowded out by an SPF record. What a share leaves goes back to all, and
//! who finds nothing left waits until the last share is back: what comes out never depends on which answer
//! was the faster one.

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::dns::{DnsError, Mx, Resolver};

/// Questions per message. An SPF record may cost 11 (RFC 7208 §4.6.4), two signatures 2, DMARC 1 to 3, the
/// reverse name 2.
pub(crate) const PER_MESSAGE: usize = 20;

/// What is said where they are used up.
pub(crate) const SPENT: &str = "more DNS lookups than one message may cost";

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// No such name, and none below it (RFC 8020).
    NotFound,
    /// The name is there, without such records.
    Empty,
    Temporary(String),
    /// The message has had its questions.
    Spent,
}

impl From<DnsError> for NoAnswer {
    fn from(error: DnsError) -> NoAnswer {
        match error {
            DnsError::NotFound => NoAnswer::NotFound,
            DnsError::Empty => NoAnswer::Empty,
            DnsError::Temporary(why) => NoAnswer::Temporary(why),
        }
    }
}

/// The questions that are left, of a message or of a share.
pub(crate) struct Lookups<'a> {
    dns: &'a Resolver,
    left: AtomicUsize,
    /// Where what is left goes back to.
    whole: Option<&'a Lookups<'a>>,
    shares: AtomicUsize,
    returned: Notify,
}

impl<'a> Lookups<'a> {
    pub fn new(dns: &'a Resolver) -> Lookups<'a> {
        Lookups::with(dns, PER_MESSAGE, None)
    }

    fn with(dns: &'a Resolver, left: usize, whole: Option<&'a Lookups<'a>>) -> Lookups<'a> {
        let (left, shares) = (AtomicUsize::new(left), AtomicUsize::new(0));
        Lookups { dns, left, whole, shares, returned: Notify::new() }
    }

    /// Sets up to `wanted` questions apart, until the share is dropped.
    pub fn share(&'a self, wanted: usize) -> Lookups<'a> {
        let before = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(wanted)));
        self.shares.fetch_add(1, Ordering::Relaxed);
        Lookups::with(self.dns, before.unwrap_or(0).min(wanted), Some(self))
    }

    async fn spend(&self) -> Result<(), NoAnswer> {
        loop {
            let returned = self.returned.notified();
            let taken =
                self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            if taken.is_ok() {
                return Ok(());
            }
            if self.shares.load(Ordering::Acquire) == 0 {
                return Err(NoAnswer::Spent);
            }
            returned.await;
        }
    }

    pub async fn txt(&self, name: &str) -> Result<Vec<String>, NoAnswer> {
        self.spend().await?;
        Ok(self.dns.txt(name).await?)
    }

    pub async fn mx(&self, name: &str) -> Result<Vec<Mx>, NoAnswer> {
        self.spend().await?;
        Ok(self.dns.mx(name).await?)
    }

    pub async fn ptr(&self, ip: IpAddr) -> Result<Vec<String>, NoAnswer> {
        self.spend().await?;
        Ok(self.dns.ptr(ip).await?)
    }

    /// The addresses of a host that are of the same family as `like`.
    pub async fn addresses(&self, host: &str, like: IpAddr) -> Result<Vec<IpAddr>, NoAnswer> {
        self.spend().await?;
        Ok(self.dns.addresses_like(host, like).await?)
    }
}

impl Drop for Lookups<'_> {
    fn drop(&mut self) {
        if let Some(whole) = self.whole {
            whole.left.fetch_add(*self.left.get_mut(), Ordering::Relaxed);
            whole.shares.fetch_sub(1, Ordering::Release);
            whole.returned.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::zone::Zone;

    #[tokio::test]
    async fn questions_are_counted_and_shares_go_back() {
        let zone = Zone::new().txt("t.example", &["x"]).start().await;
        let dns = zone.resolver();
        let whole = Lookups::new(&dns);
        let share = whole.share(15);
        for _ in 0..5 {
            assert!(whole.txt("t.example").await.is_ok());
        }
        assert!(share.txt("t.example").await.is_ok());
        // Nothing is left: the sixth waits for the share, which leaves fourteen.
        let (sixth, ()) = tokio::join!(whole.txt("t.example"), async { drop(share) });
        assert!(sixth.is_ok());
        for _ in 0..13 {
            assert!(whole.txt("t.example").await.is_ok());
        }
        assert_eq!(whole.txt("t.example").await, Err(NoAnswer::Spent));
        assert_eq!(zone.questions(), 1, "the others came from the cache, and count");
    }
}
