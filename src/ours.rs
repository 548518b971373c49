//! Which domains are ours, now: asked at every RCPT, for every recipient of a send, and at every signature, so
//! it is a set in memory and no question to the database.
//!
//! It is read again when the store says that domains changed, by `keep` every half minute besides, and by
//! whoever changed one before it answers. A node that has not heard yet treats a domain as it was a moment ago;
//! whether an inbox exists is always the database's to say.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::store::domain::{self, Domain};
use crate::store::{Store, StoreError, Topic};

/// A hint may be lost.
const READ_AGAIN: Duration = Duration::from_secs(30);

/// A domain that is ours: configured, or added and verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OurDomain {
    pub name: String,
    /// The pod whose inboxes may use it; `None`: every pod's.
    pub pod: Option<i64>,
    pub configured: bool,
    /// Mail for it comes here, and does not leave for its MX.
    pub inbound: bool,
    /// What is below it is ours as well.
    pub subdomains: bool,
}

impl OurDomain {
    fn configured(name: &str) -> OurDomain {
        OurDomain { name: name.to_owned(), pod: None, configured: true, inbound: true, subdomains: false }
    }

    /// Whether inboxes of this pod may have addresses on it.
    pub fn serves(&self, pod: i64) -> bool {
        self.pod.is_none_or(|own| own == pod)
    }
}

impl From<Domain> for OurDomain {
    fn from(domain: Domain) -> OurDomain {
        OurDomain {
            name: domain.name,
            pod: domain.pod,
            configured: domain.configured,
            inbound: domain.features.inbound || domain.configured,
            subdomains: domain.features.subdomains,
        }
    }
}

type Set = HashMap<String, Arc<OurDomain>>;

/// The set; cloning shares it.
#[derive(Clone)]
pub struct Domains {
    configured: Arc<[String]>,
    set: Arc<RwLock<Arc<Set>>>,
}

impl Domains {
    /// The configuration's, which are ours whatever the database says.
    pub fn new(configured: &[String]) -> Domains {
        let set = configured.iter().map(|name| (name.clone(), Arc::new(OurDomain::configured(name))));
        let set = RwLock::new(Arc::new(set.collect()));
        Domains { configured: configured.into(), set: Arc::new(set) }
    }

    fn current(&self) -> Arc<Set> {
        Arc::clone(&self.set.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The domain of ours that `domain` (in lower-case A-labels) is, or is below where that counts.
    pub fn find(&self, domain: &str) -> Option<Arc<OurDomain>> {
        let set = self.current();
        if let Some(exact) = set.get(domain) {
            return Some(Arc::clone(exact));
        }
        let mut above = domain.split_once('.').map(|(_, above)| above);
        while let Some(name) = above {
            if let Some(found) = set.get(name).filter(|found| found.subdomains) {
                return Some(Arc::clone(found));
            }
            above = name.split_once('.').map(|(_, above)| above);
        }
        None
    }

    /// All of them, the configuration's first, in its order.
    pub fn all(&self) -> Vec<Arc<OurDomain>> {
        let set = self.current();
        let mut all: Vec<_> = set.values().cloned().collect();
        let place = |name: &str| self.configured.iter().position(|c| c == name).unwrap_or(usize::MAX);
        all.sort_by(|a, b| (place(&a.name), &a.name).cmp(&(place(&b.name), &b.name)));
        all
    }

    /// Reads the set again.
    pub async fn refresh(&self, store: &Store) -> Result<(), StoreError> {
        let usable = store.read(|tx| Box::pin(domain::usable(tx)));
        let usable: Vec<Domain> = usable.await?;
        let mut set: Set = usable.into_iter().map(|d| (d.name.clone(), Arc::new(d.into()))).collect();
        for name in self.configured.iter() {
            set.entry(name.clone()).or_insert_with(|| Arc::new(OurDomain::configured(name)));
        }
        *self.set.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(set);
        Ok(())
    }

    /// Keeps the set current until `shutdown`.
    pub async fn keep(self, store: Store, shutdown: CancellationToken) {
        let mut told = store.wakeups().subscribe(Topic::Domains);
        loop {
            told.borrow_and_update();
            if let Err(error) = self.refresh(&store).await {
                tracing::warn!(%error, "the domains cannot be read; what is known of them stays");
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = tokio::time::timeout(READ_AGAIN, told.changed()) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_below_is_ours_only_where_that_was_asked_for() {
        let domains = Domains::new(&["agents.example".to_owned()]);
        let below = OurDomain { subdomains: true, pod: Some(7), ..OurDomain::configured("wide.example") };
        Arc::make_mut(&mut domains.set.write().unwrap()).insert(below.name.clone(), Arc::new(below));
        let name = |domain: &str| domains.find(domain).map(|d| d.name.clone());
        assert_eq!(name("agents.example").as_deref(), Some("agents.example"));
        assert_eq!(name("x.agents.example"), None);
        assert_eq!(name("a.b.wide.example").as_deref(), Some("wide.example"));
        assert_eq!(name("notwide.example"), None);
        assert_eq!(name("example"), None);
        let wide = domains.find("wide.example").unwrap();
        assert!(wide.serves(7) && !wide.serves(8));
        assert_eq!(domains.all().first().map(|d| d.name.clone()).as_deref(), Some("agents.example"));
    }
}
