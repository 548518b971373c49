//! DKIM keys: made once for each domain, the private half sealed under the master key.

use super::{StoreError, Tx};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DkimKeyRow {
    pub domain: String,
    pub selector: String,
    /// `rsa-sha256` or `ed25519-sha256`.
    pub algorithm: String,
    /// PKCS #8, sealed.
    pub private_key: Vec<u8>,
    /// Base64, as in `p=` of the DNS record.
    pub public_key: String,
}

/// The active keys of a domain.
pub async fn of_domain(tx: &mut Tx, domain: &str) -> Result<Vec<DkimKeyRow>, StoreError> {
    let rows = tx
        .rows(
            "SELECT domain, selector, algorithm, private_key, public_key FROM dkim_key
             WHERE domain = $1 AND active = 1 ORDER BY algorithm, selector LIMIT 10",
            &[domain.into()],
        )
        .await?;
    rows.iter()
        .map(|row| {
            Ok(DkimKeyRow {
                domain: row.get(0)?,
                selector: row.get(1)?,
                algorithm: row.get(2)?,
                private_key: row.get(3)?,
                public_key: row.get(4)?,
            })
        })
        .collect()
}

/// Whether there is any key at all: a master key that is made anew would open none of them.
pub async fn any(tx: &mut Tx) -> Result<bool, StoreError> {
    Ok(tx.row("SELECT domain FROM dkim_key LIMIT 1", &[]).await?.is_some())
}

/// Stores a key unless there is one under that selector: of two nodes that start at once, one makes the key.
pub async fn insert(tx: &mut Tx, key: &DkimKeyRow) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO dkim_key (domain, selector, algorithm, private_key, public_key, active, created_at)
         VALUES ($1, $2, $3, $4, $5, 1, $6) ON CONFLICT (domain, selector) DO NOTHING",
        &[
            (&key.domain).into(),
            (&key.selector).into(),
            (&key.algorithm).into(),
            key.private_key.clone().into(),
            (&key.public_key).into(),
            tx.now().into(),
        ],
    )
    .await?;
    Ok(())
}
