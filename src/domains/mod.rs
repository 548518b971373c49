//! The domains that mail leaves from and comes to: what their DNS has to say, and whether it does.
//!
//! `records` is the pure list of what to set; `look` asks the DNS for each and puts what is wrong into words;
//! `verify` makes an added domain usable once its owner has published the keys that were made for this claim,
//! and changes keys with overlap; `watch` does both again by itself. Which domains are ours, now, is `ours`.
//!
//! Promises: a name belongs to one claim at a time, and only who can publish that claim's DKIM keys in the DNS
//! gets it verified. Everything is decided under the lock of the domain's row, from what was looked up before it.

pub(crate) mod look;
pub(crate) mod records;
pub(crate) mod sts;
pub(crate) mod verify;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::deliver::dkim::{self, DkimError};
use crate::floor::Floor;
use crate::principal::Principal;
use crate::store::dkim_key::{self, DkimKeyRow, KeyState};
use crate::store::domain::{self, Domain};
use crate::store::{StoreError, Tx};
use verify::{Occasion, recorded};

/// How often it is asked whose time has come.
const ROUND: Duration = Duration::from_secs(20);
/// Domains of one round; the others wait for the next.
const A_ROUND: i64 = 20;

/// What has to be there before anything starts: rows and keys of the configuration's domains, and a set of our
/// domains that is current. A key that does not open is found here, not when mail goes out unsigned.
pub async fn begin(floor: &Floor) -> Result<(), DkimError> {
    let configured = floor.config.domains.clone();
    let synced: Result<(), StoreError> = floor
        .store
        .write(move |tx| {
            let configured = configured.clone();
            Box::pin(async move { domain::sync_configured(tx, &configured).await })
        })
        .await;
    synced?;
    dkim::make_missing(&floor.store, &floor.secrets, &floor.config.domains).await?;
    dkim::Signers::new(&floor.store, &floor.secrets).refresh().await?;
    Ok(floor.domains.refresh(&floor.store).await?)
}

/// Looks at the domains whose time has come, until `shutdown`. `gatepost dev` has no DNS to look at.
pub async fn watch(floor: Arc<Floor>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(ROUND) => {}
        }
        if floor.dev {
            continue;
        }
        let due = floor.store.read(|tx| Box::pin(domain::due(tx, A_ROUND)));
        let due: Result<Vec<Domain>, StoreError> = due.await;
        let due = match due {
            Ok(due) => due,
            Err(error) => {
                tracing::warn!(%error, "the domains that are due cannot be read");
                continue;
            }
        };
        for domain in due {
            if shutdown.is_cancelled() {
                return;
            }
            if let Err(error) = verify::check(&floor, &domain.name, Occasion::Routine).await {
                tracing::warn!(%error, domain.name, "a domain could not be looked at");
            }
        }
    }
}

/// Makes the next keys of a domain, which sign once they are seen in the DNS. Where there are some that wait for
/// that already, those are the answer: asking twice, or on two nodes, begins one change. `None`: no such domain.
pub(crate) async fn rotate(
    floor: &Floor,
    name: &str,
    who: &Principal,
) -> Result<Option<Vec<DkimKeyRow>>, DkimError> {
    let pair = Arc::new(dkim::fresh_pair(&floor.secrets, name, KeyState::Next).await?);
    let (name, actor) = (name.to_owned(), who.actor());
    let begun = floor.store.write(move |tx| {
        let (pair, name, actor) = (pair.clone(), name.clone(), actor.clone());
        Box::pin(async move { begin_rotation(tx, &name, &pair, &actor).await })
    });
    let begun: Result<_, StoreError> = begun.await;
    Ok(begun?)
}

async fn begin_rotation(
    tx: &mut Tx,
    name: &str,
    pair: &[DkimKeyRow],
    actor: &str,
) -> Result<Option<Vec<DkimKeyRow>>, StoreError> {
    let Some(mut domain) = domain::lock(tx, name).await? else { return Ok(None) };
    let keys = dkim_key::all_of_domain(tx, name).await?;
    if !keys.iter().any(|key| key.state == KeyState::Next) {
        dkim_key::forget_retired(tx, name).await?;
        for key in pair {
            dkim_key::insert(tx, key).await?;
        }
        let selectors: Vec<&str> = pair.iter().map(|key| key.selector.as_str()).collect();
        let detail = serde_json::json!({ "selectors": selectors });
        recorded(tx, &domain, actor, "domain.dkim_rotation_begun", detail).await?;
        domain.next_check_at = Some(domain.next_check_at.map_or(tx.now(), |at| at.min(tx.now())));
        domain::update(tx, &domain).await?;
    }
    dkim_key::all_of_domain(tx, name).await.map(Some)
}
