//! What every stage of the road stands on: one value, made once at start and shared.

use std::sync::Arc;

use crate::clock::Clock;
use crate::config::Config;
use crate::dns::Resolver;
use crate::secrets::Secrets;
use crate::store::Store;
use crate::store::body::BodyStore;
use crate::tls::Tls;

/// Shared by every room as `Arc<Floor>`.
pub struct Floor {
    pub config: Arc<Config>,
    pub clock: Clock,
    pub store: Store,
    pub bodies: BodyStore,
    pub dns: Resolver,
    pub tls: Tls,
    pub secrets: Secrets,
    /// `gatepost dev`: mail for other domains is captured, never sent.
    pub dev: bool,
}

impl Floor {
    /// Whether a domain (in lower-case A-labels) is one of ours.
    pub fn is_ours(&self, domain: &str) -> bool {
        self.config.domains.iter().any(|d| d == domain)
    }
}
