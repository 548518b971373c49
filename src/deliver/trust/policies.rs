//! MTA-STS policies of other domains: which one holds, and fetching a new one (RFC 8461 §3.3, §5.1).

use std::sync::Arc;

use rustls::RootCertStore;
use tokio::time::Instant;

use super::sts::{self, Policy};
use super::{AFTER_FAILURE, Need, Trust};
use crate::deliver::outcome::Outcome;
use crate::deliver::route::{self, Network};
use crate::dns::{DnsError, Resolver};
use crate::fetch::{self, FetchError};
use crate::store::StoreError;
use crate::store::tls_result::{PolicyType, ResultType, TlsResult};
use crate::store::trust::{self as memory, StoredPolicy};

impl Trust {
    /// The MTA-STS policy of a domain: the one that is kept, or a new one where the record's id is another.
    pub(super) async fn policy(&self, domain: &str) -> Result<Option<Arc<Policy>>, StoreError> {
        let records = self.dns.txt(&format!("_mta-sts.{domain}")).await;
        let id = records.as_ref().ok().and_then(|records| sts::record_id(records)).map(str::to_owned);
        let known = self.known(domain).await?;
        let now = self.clock.now();
        // RFC 8461 §3.1, §5.1: a policy that is kept holds until it expires, whatever the record says meanwhile.
        let held = known.policy.filter(|(kept, _)| kept.expires_at > now);
        let Some(id) = id else { return Ok(held.map(|(_, policy)| policy)) };
        let is_fresh = |kept: &StoredPolicy| {
            // RFC 8461 §5.1: refreshed before it ends, so that nobody gains by blocking the fetch once.
            kept.policy_id == id && now < kept.fetched_at + (kept.expires_at - kept.fetched_at) / 4 * 3
        };
        let failed = known.failed.is_some_and(|(of, at)| of == id && at.elapsed() < AFTER_FAILURE);
        if failed || held.as_ref().is_some_and(|(kept, _)| is_fresh(kept)) {
            return Ok(held.map(|(_, policy)| policy));
        }
        Ok(match self.fetch(domain, &id).await {
            Ok(policy) => Some(policy),
            Err((result, why)) => {
                tracing::info!(relay.domain = domain, why, kept = held.is_some(), "no MTA-STS policy");
                let need = Need::nothing(domain, "");
                let result = TlsResult { policy_type: PolicyType::Sts, ..need.result(result, None, None) };
                self.note(result);
                if let Some(known) = self.lock().get_mut(domain) {
                    known.failed = Some((id, Instant::now()));
                }
                held.map(|(_, policy)| policy)
            }
        })
    }

    /// What becomes of a message that must stay in TLS where nobody vouches for the host: `why`, for good, unless the
    /// domain may have an MTA-STS policy that could not be had just now.
    pub(crate) async fn unvouched(&self, domain: &str, why: String) -> Outcome {
        let in_doubt = match self.dns.txt(&format!("_mta-sts.{domain}")).await {
            // One is announced: it could not be fetched, or does not name this host.
            Ok(records) if sts::record_id(&records).is_some() => {
                !matches!(self.policy(domain).await, Ok(Some(_)))
            }
            Ok(_) | Err(DnsError::NotFound) => false,
            Err(_) => true,
        };
        match in_doubt {
            true => Outcome::deferred(
                "4.7.0",
                format!("{why}; whether it has such a policy cannot be known just now"),
            ),
            false => Outcome::failed("5.7.30", why),
        }
    }

    async fn fetch(&self, domain: &str, id: &str) -> Result<Arc<Policy>, (ResultType, String)> {
        let (text, policy) = served(&self.dns, &self.network, &self.roots, domain).await?;
        let now = self.clock.now();
        let age = i64::try_from(policy.max_age.saturating_mul(1000)).unwrap_or(0);
        let kept =
            StoredPolicy { policy_id: id.to_owned(), policy: text, fetched_at: now, expires_at: now + age };
        let policy = Arc::new(policy);
        if let Some(known) = self.lock().get_mut(domain) {
            known.policy = Some((kept.without_text(), Arc::clone(&policy)));
            known.failed = None;
        }
        let name = domain.to_owned();
        let written: Result<(), StoreError> = self
            .store
            .write(move |tx| {
                let (name, kept) = (name.clone(), kept.clone());
                Box::pin(async move { memory::keep_policy(tx, &name, &kept).await })
            })
            .await;
        if let Err(error) = written {
            tracing::warn!(%error, "an MTA-STS policy could not be kept");
        }
        Ok(policy)
    }
}

/// The MTA-STS policy that the host of a domain serves just now: its text, and what it says (RFC 8461 §3.3).
pub(crate) async fn served(
    dns: &Resolver,
    network: &Network,
    roots: &Arc<RootCertStore>,
    domain: &str,
) -> Result<(String, Policy), (ResultType, String)> {
    let host = format!("mta-sts.{domain}");
    let addresses = route::addresses(dns, network, &host)
        .await
        .map_err(|error| (ResultType::StsPolicyFetchError, error.to_string()))?;
    let tls = crate::tls::verifying_by(Arc::clone(roots))
        .map_err(|error| (ResultType::StsPolicyFetchError, error.to_string()))?;
    let text = fetch::text(&host, &addresses, "/.well-known/mta-sts.txt", tls).await;
    let text = text.map_err(|error| match error {
        FetchError::Certificate(why) => (ResultType::StsWebpkiInvalid, why),
        FetchError::Failed(why) => (ResultType::StsPolicyFetchError, why),
    })?;
    let policy = Policy::parse(&text).map_err(|why| (ResultType::StsPolicyInvalid, why))?;
    Ok((text, policy))
}
