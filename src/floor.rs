//! What every stage of the road stands on: one value, made once at start and shared.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::clock::Clock;
use crate::config::Config;
use crate::disk::Disk;
use crate::dns::Resolver;
use crate::ours::Domains;
use crate::reports::Tally;
use crate::secrets::Secrets;
use crate::spool::Spool;
use crate::store::Store;
use crate::store::body::BodyStore;
use crate::tls::Tls;

/// Shared by every room as `Arc<Floor>`.
pub struct Floor {
    pub config: Arc<Config>,
    pub clock: Clock,
    pub store: Store,
    pub bodies: BodyStore,
    pub spool: Spool,
    pub dns: Resolver,
    pub tls: Tls,
    pub disk: Disk,
    pub secrets: Secrets,
    /// Which domains are ours, now.
    pub domains: Domains,
    /// What mail is counted for the reports that we send.
    pub tally: Tally,
    /// An operator has set a budget beside the configuration's. Other nodes hear of the first within seconds; what it
    /// says is read under its lock whenever it is used.
    pub budgets_set: AtomicBool,
    /// `gatepost dev`: mail for other domains is captured, never sent.
    pub dev: bool,
}

impl Floor {
    /// Whether a domain (in lower-case A-labels) is one of ours: configured, or added and verified.
    pub fn is_ours(&self, domain: &str) -> bool {
        self.domains.find(domain).is_some()
    }

    /// Whether mail for a domain comes here and nowhere else.
    pub fn receives(&self, domain: &str) -> bool {
        self.domains.find(domain).is_some_and(|ours| ours.inbound)
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A floor for one test: SQLite in a temporary folder, a scripted clock, no network.

    use super::*;
    use crate::clock::ClockHand;
    use crate::ids::InboxKey;
    use crate::principal::{Permissions, Principal, Scope};
    use crate::store::StoreError;
    use crate::store::inbox::{self, DEFAULT_POD, Inbox, InboxStatus, NewInbox};

    pub(crate) struct TestFloor {
        pub floor: Arc<Floor>,
        pub hand: ClockHand,
        _folder: tempfile::TempDir,
    }

    /// 2026-11-21T00:00:00Z.
    pub(crate) const START: i64 = 1_795_219_200_000;

    impl TestFloor {
        pub(crate) async fn new() -> TestFloor {
            TestFloor::with("").await
        }

        /// With more of the configuration, as TOML.
        pub(crate) async fn with(more: &str) -> TestFloor {
            let folder = tempfile::tempdir().unwrap();
            let text = format!(
                "hostname = \"mx.agents.example\"\ndomains = [\"agents.example\"]\ndata_dir = {:?}\n{more}",
                folder.path()
            );
            let config = Config::parse(std::path::Path::new("test.toml"), &text, std::iter::empty()).unwrap();
            let (clock, hand) = Clock::scripted(START);
            let store = Store::open(&config.database.url, clock.clone()).await.unwrap();
            let spool = Spool::open(&folder.path().join("spool")).unwrap();
            let floor = Floor {
                bodies: BodyStore::open(&config.storage.url, spool.clone()).unwrap(),
                spool,
                dns: Resolver::new(&["127.0.0.1:9".parse().unwrap()]).unwrap(),
                tls: Tls::open(&config.hostname, folder.path(), None).unwrap(),
                secrets: Secrets::open_or_create(&folder.path().join("master.key")).unwrap(),
                disk: Disk::watch(&config, &clock),
                domains: Domains::new(&config.domains),
                tally: Default::default(),
                budgets_set: Default::default(),
                config: Arc::new(config),
                clock,
                store,
                dev: false,
            };
            TestFloor { floor: Arc::new(floor), hand, _folder: folder }
        }

        pub(crate) async fn inbox(&self, name: &str) -> Inbox {
            let new = NewInbox {
                pod: DEFAULT_POD,
                address: format!("{name}@agents.example"),
                domain: "agents.example".to_owned(),
                display_name: None,
                client_id: None,
                status: InboxStatus::Active,
                operator: false,
                metadata: None,
            };
            let made: Result<Inbox, StoreError> = self
                .floor
                .store
                .write(move |tx| {
                    let new = new.clone();
                    Box::pin(async move { inbox::create(tx, &new).await })
                })
                .await;
            made.unwrap()
        }
    }

    pub(crate) fn key(key_id: i64, scope: Scope) -> Principal {
        Principal { key_id, api_key_id: format!("key_{key_id}"), scope, permissions: Permissions::default() }
    }

    pub(crate) fn agent(key_id: i64, inbox: InboxKey) -> Principal {
        key(key_id, Scope::Inbox(inbox))
    }
}
