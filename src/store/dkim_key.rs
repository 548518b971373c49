//! DKIM keys: made for each domain, the private half sealed under the master key.
//!
//! A key goes from `next` (its record is to be published) over `active` (it signs) to `retiring` (it signs no
//! more; mail that it signed is still on its way) and `retired` (its record may go; the private half is erased).

use super::{Row, StoreError, Topic, Tx};
use crate::clock::Millis;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    Next,
    Active,
    Retiring,
    Retired,
}

impl KeyState {
    pub fn text(self) -> &'static str {
        match self {
            KeyState::Next => "next",
            KeyState::Active => "active",
            KeyState::Retiring => "retiring",
            KeyState::Retired => "retired",
        }
    }

    fn parse(text: &str) -> Option<KeyState> {
        [KeyState::Next, KeyState::Active, KeyState::Retiring, KeyState::Retired]
            .into_iter()
            .find(|state| state.text() == text)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DkimKeyRow {
    pub domain: String,
    pub selector: String,
    /// `rsa-sha256` or `ed25519-sha256`.
    pub algorithm: String,
    /// PKCS #8, sealed; empty once the key is retired.
    pub private_key: Vec<u8>,
    /// Base64, as in `p=` of the DNS record.
    pub public_key: String,
    pub state: KeyState,
    /// Since when it is in that state.
    pub state_at: Millis,
    pub created_at: Millis,
}

macro_rules! columns {
    () => {
        "domain, selector, algorithm, private_key, public_key, state, state_at, created_at"
    };
}

fn from_row(row: &Row) -> Result<DkimKeyRow, StoreError> {
    let state: String = row.get(5)?;
    Ok(DkimKeyRow {
        domain: row.get(0)?,
        selector: row.get(1)?,
        algorithm: row.get(2)?,
        private_key: row.get(3)?,
        public_key: row.get(4)?,
        state: KeyState::parse(&state)
            .ok_or_else(|| StoreError::Damaged(format!("DKIM key state {state}")))?,
        state_at: row.get(6)?,
        created_at: row.get(7)?,
    })
}

/// The keys of a domain that sign.
pub async fn of_domain(tx: &mut Tx, domain: &str) -> Result<Vec<DkimKeyRow>, StoreError> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM dkim_key WHERE domain = $1 AND state = 'active' ORDER BY algorithm, selector LIMIT 10"
    );
    tx.rows(sql, &[domain.into()]).await?.iter().map(from_row).collect()
}

/// Every key that signs, of every domain.
pub async fn active(tx: &mut Tx) -> Result<Vec<DkimKeyRow>, StoreError> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM dkim_key WHERE state = 'active' ORDER BY algorithm, selector LIMIT 200000"
    );
    tx.rows(sql, &[]).await?.iter().map(from_row).collect()
}

/// Keys of a domain that are read at most: more than there can be (`domains::MOST_STANDING`, and as many retired).
const MOST: i64 = 100;

/// Every key of a domain, the oldest first.
pub async fn all_of_domain(tx: &mut Tx, domain: &str) -> Result<Vec<DkimKeyRow>, StoreError> {
    let sql = concat!(
        "SELECT ",
        columns!(),
        " FROM dkim_key WHERE domain = $1 ORDER BY created_at, algorithm DESC, selector LIMIT $2"
    );
    tx.rows(sql, &[domain.into(), MOST.into()]).await?.iter().map(from_row).collect()
}

/// Whether there is any key at all: a master key that is made anew would open none of them.
pub async fn any(tx: &mut Tx) -> Result<bool, StoreError> {
    Ok(tx.row("SELECT domain FROM dkim_key LIMIT 1", &[]).await?.is_some())
}

/// Stores a key unless there is one under that selector: of two nodes that start at once, one makes the key.
pub async fn insert(tx: &mut Tx, key: &DkimKeyRow) -> Result<(), StoreError> {
    tx.wake(Topic::Domains);
    tx.execute(
        "INSERT INTO dkim_key (domain, selector, algorithm, private_key, public_key, state, state_at, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $7) ON CONFLICT (domain, selector) DO NOTHING",
        &[
            (&key.domain).into(),
            (&key.selector).into(),
            (&key.algorithm).into(),
            key.private_key.clone().into(),
            (&key.public_key).into(),
            key.state.text().into(),
            tx.now().into(),
        ],
    )
    .await?;
    Ok(())
}

/// Moves every key of a domain from one state to the next; how many there were. The caller holds the domain's
/// lock.
pub async fn advance(tx: &mut Tx, domain: &str, from: KeyState, to: KeyState) -> Result<u64, StoreError> {
    tx.wake(Topic::Domains);
    let sql = "UPDATE dkim_key SET state = $3, state_at = $4 WHERE domain = $1 AND state = $2";
    tx.execute(sql, &[domain.into(), from.text().into(), to.text().into(), tx.now().into()]).await
}

/// Erases the private half of a key that signs no more: its record may go.
pub async fn retire(tx: &mut Tx, domain: &str, selector: &str) -> Result<(), StoreError> {
    let nothing: Vec<u8> = Vec::new();
    let args = [domain.into(), selector.into(), tx.now().into(), nothing.into()];
    let sql = "UPDATE dkim_key SET state = 'retired', state_at = $3, private_key = $4
               WHERE domain = $1 AND selector = $2 AND state = 'retiring'";
    tx.execute(sql, &args).await?;
    Ok(())
}

/// Retired keys are only remembered to say that their records may go.
pub async fn forget_retired(tx: &mut Tx, domain: &str) -> Result<(), StoreError> {
    tx.execute("DELETE FROM dkim_key WHERE domain = $1 AND state = 'retired'", &[domain.into()]).await?;
    Ok(())
}
