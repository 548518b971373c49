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

/// Keys of a domain whose records have to stand at once. With as many no change begins until some are retired, so
/// that what is read of a domain's keys is always all of them.
pub(crate) const MOST_STANDING: usize = 40;

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
    let standing = keys.iter().filter(|key| key.state != KeyState::Retired).count();
    if standing < MOST_STANDING && !keys.iter().any(|key| key.state == KeyState::Next) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::dns::zone::{Server, Zone};
    use crate::floor::testing::{TestFloor, key};
    use crate::principal::Scope;
    use crate::store::domain::{DomainStatus, Features};

    const NAME: &str = "tenant.example";
    const DAY: i64 = 24 * 3_600_000;

    /// The floor asks another name server from now on.
    fn ask(floor: &mut TestFloor, server: &Server) {
        let shared = Arc::get_mut(&mut floor.floor).unwrap();
        let mut config: Config = (*shared.config).clone();
        config.dns.servers = vec![server.address()];
        shared.config = Arc::new(config);
    }

    /// Everything that the domain needs, with the records of these keys.
    async fn zone(keys: &[DkimKeyRow]) -> Server {
        let mut zone = Zone::new()
            .a("mx.agents.example", "192.0.2.1")
            .mx(NAME, 10, "mx.agents.example")
            .txt(NAME, &["v=spf1 mx -all"])
            .txt("_dmarc.tenant.example", &["v=DMARC1; p=reject; rua=mailto:d@tenant.example"]);
        for key in keys {
            let record = dkim::record(key);
            let strings: Vec<&str> = record.value.split('"').skip(1).step_by(2).collect();
            zone = zone.txt(&record.name, &strings);
        }
        zone.start().await
    }

    async fn keys(floor: &Floor) -> Vec<DkimKeyRow> {
        let keys = floor.store.read(|tx| Box::pin(dkim_key::all_of_domain(tx, NAME)));
        let keys: Result<_, StoreError> = keys.await;
        keys.unwrap()
    }

    fn states(keys: &[DkimKeyRow]) -> Vec<KeyState> {
        let mut all: Vec<KeyState> = keys.iter().map(|key| key.state).collect();
        all.sort_by_key(|state| state.text());
        all
    }

    async fn claimed(floor: &Floor) {
        let pair = Arc::new(dkim::fresh_pair(&floor.secrets, NAME, KeyState::Active).await.unwrap());
        let made = floor.store.write(move |tx| {
            let pair = pair.clone();
            Box::pin(async move {
                domain::insert(tx, NAME, None, Features::default(), 0).await?;
                for key in pair.iter() {
                    dkim_key::insert(tx, key).await?;
                }
                Ok::<_, StoreError>(())
            })
        });
        made.await.unwrap();
    }

    async fn look(floor: &Floor) -> Domain {
        verify::check(floor, NAME, Occasion::Routine).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn old_keys_are_published_for_a_week_and_then_forgotten() {
        let mut test = TestFloor::new().await;
        claimed(&test.floor).await;
        let server = zone(&keys(&test.floor).await).await;
        ask(&mut test, &server);
        assert_eq!(look(&test.floor).await.status, DomainStatus::Verified);
        assert!(test.floor.is_ours(NAME), "the set is current when the look returns");
        let who = key(1, Scope::Organization);
        let first = rotate(&test.floor, NAME, &who).await.unwrap().unwrap();
        assert_eq!(rotate(&test.floor, NAME, &who).await.unwrap().unwrap(), first);
        look(&test.floor).await;
        assert_eq!(
            states(&keys(&test.floor).await),
            [KeyState::Active, KeyState::Active, KeyState::Next, KeyState::Next]
        );

        // One of the two new records is there: nothing moves, since a message is signed by both.
        let part: Vec<DkimKeyRow> = first
            .iter()
            .filter(|k| k.state == KeyState::Active || k.algorithm.starts_with("rsa"))
            .cloned()
            .collect();
        let server = zone(&part).await;
        ask(&mut test, &server);
        look(&test.floor).await;
        assert_eq!(keys(&test.floor).await.iter().filter(|k| k.state == KeyState::Next).count(), 2);

        let server = zone(&first).await;
        ask(&mut test, &server);
        look(&test.floor).await;
        let turned = keys(&test.floor).await;
        assert_eq!(
            states(&turned),
            [KeyState::Active, KeyState::Active, KeyState::Retiring, KeyState::Retiring]
        );
        test.hand.advance(7 * DAY - 1);
        look(&test.floor).await;
        assert_eq!(states(&keys(&test.floor).await), states(&turned));
        test.hand.advance(1);
        look(&test.floor).await;
        let over = keys(&test.floor).await;
        assert_eq!(states(&over), [KeyState::Active, KeyState::Active, KeyState::Retired, KeyState::Retired]);
        let erased = |k: &DkimKeyRow| (k.state == KeyState::Retired) == k.private_key.is_empty();
        assert!(over.iter().all(erased), "a retired key keeps no private half, and no other loses it");
    }

    /// A tenant left, its zone is somebody else's: nobody may go on writing in its name.
    #[tokio::test]
    async fn a_domain_whose_keys_are_gone_for_three_days_is_ours_no_more() {
        let mut test = TestFloor::new().await;
        claimed(&test.floor).await;
        let server = zone(&keys(&test.floor).await).await;
        ask(&mut test, &server);
        look(&test.floor).await;
        let empty = zone(&[]).await;
        ask(&mut test, &empty);
        for _ in 0..3 {
            assert_eq!(look(&test.floor).await.status, DomainStatus::Verified);
            assert!(test.floor.is_ours(NAME));
            test.hand.advance(DAY);
        }
        let lost = look(&test.floor).await;
        assert_eq!((lost.status, lost.next_check_at), (DomainStatus::Failed, None));
        assert!(lost.reason.unwrap().contains("_domainkey"));
        assert!(!test.floor.is_ours(NAME));
    }
}
