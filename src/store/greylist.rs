//! Greylisting: attempts of networks that are new here, and networks that came again.
//!
//! An attempt has the hash of its sender and recipient, and the time it was first made; a known network has no
//! hash, and the time it was last renewed. Bounded: attempts of two days, networks of 36, and at most
//! `ROOM` of each.

use super::{StoreError, Tx};
use crate::clock::{DAY, Millis};

/// Whoever has not come again by then will not: RFC 6647 §5 wants at least a day.
const RETRY_WITHIN: Millis = 2 * DAY;
/// A little longer than a month, so that monthly mail finds its way: RFC 6647 §5 wants at least a week.
const KNOWN_FOR: Millis = 36 * DAY;
/// How often a known network is written down anew.
const RENEW: Millis = DAY;
/// Rows of each sort, about 150 octets each.
pub(super) const ROOM: i64 = 200_000;

/// What is known of an attempt.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// The network passes; `fresh` when nothing needs to be written for that.
    Known {
        fresh: bool,
    },
    /// Tried before, long enough ago.
    CameAgain,
    TooSoon,
    Never,
}

pub(crate) async fn seen(
    tx: &mut Tx,
    network: &str,
    triple: &str,
    delay: Millis,
) -> Result<Seen, StoreError> {
    let rows = tx
        .rows(
            "SELECT triple, at FROM greylist WHERE network = $1 AND triple IN ('', $2) LIMIT 2",
            &[network.into(), triple.into()],
        )
        .await?;
    let mut seen = Seen::Never;
    for row in rows {
        let (of, at): (String, Millis) = (row.get(0)?, row.get(1)?);
        let age = tx.now() - at;
        if of.is_empty() && age < KNOWN_FOR {
            return Ok(Seen::Known { fresh: age < RENEW });
        }
        if !of.is_empty() && age < RETRY_WITHIN {
            seen = if age >= delay { Seen::CameAgain } else { Seen::TooSoon };
        }
    }
    Ok(seen)
}

/// A first attempt. One that is too old to count begins anew; one that somebody else wrote meanwhile stays.
pub(crate) async fn write_down(tx: &mut Tx, network: &str, triple: &str) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO greylist (network, triple, at) VALUES ($1, $2, $3)
         ON CONFLICT (network, triple) DO UPDATE SET at = excluded.at WHERE greylist.at < $4",
        &[network.into(), triple.into(), tx.now().into(), (tx.now() - RETRY_WITHIN).into()],
    )
    .await?;
    Ok(())
}

/// From now on the network passes.
pub(crate) async fn make_known(tx: &mut Tx, network: &str) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO greylist (network, triple, at) VALUES ($1, '', $2)
         ON CONFLICT (network, triple) DO UPDATE SET at = excluded.at",
        &[network.into(), tx.now().into()],
    )
    .await?;
    Ok(())
}

/// Forgets what is too old, and the oldest beyond `room`, `step` of each at most; how many.
pub(crate) async fn forget(tx: &mut Tx, room: i64, step: i64) -> Result<u64, StoreError> {
    let now = tx.now();
    let mut gone = 0;
    for (old, beyond, age) in [
        (
            "DELETE FROM greylist WHERE (network, triple) IN
               (SELECT network, triple FROM greylist WHERE triple <> '' AND at < $1 LIMIT $2)",
            "DELETE FROM greylist WHERE (network, triple) IN
               (SELECT network, triple FROM greylist WHERE triple <> '' ORDER BY at DESC LIMIT $2 OFFSET $1)",
            RETRY_WITHIN,
        ),
        (
            "DELETE FROM greylist WHERE (network, triple) IN
               (SELECT network, triple FROM greylist WHERE triple = '' AND at < $1 LIMIT $2)",
            "DELETE FROM greylist WHERE (network, triple) IN
               (SELECT network, triple FROM greylist WHERE triple = '' ORDER BY at DESC LIMIT $2 OFFSET $1)",
            KNOWN_FOR,
        ),
    ] {
        gone += tx.execute(old, &[(now - age).into(), step.into()]).await?;
        gone += tx.execute(beyond, &[room.into(), step.into()]).await?;
    }
    Ok(gone)
}
