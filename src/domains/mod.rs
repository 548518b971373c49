//! The domains that mail leaves from and comes to: what their DNS has to say, and whether it does.
//!
//! `records` is the pure list of what to set; `look` asks the DNS for each and puts what is wrong into words;
//! `verify` makes an added domain usable once its owner has published the keys that were made for this claim;
//! `rotate` changes keys with overlap; `watch` does both again by itself. Which domains are ours is `ours`.
//!
//! Promises: a name belongs to one claim at a time, and only who can publish that claim's DKIM keys in the DNS
//! gets it verified. Everything is decided under the lock of the domain's row, from what was looked up before it.

use crate::deliver::dkim::{self, DkimError};
use crate::floor::Floor;
use crate::store::{StoreError, domain};

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
