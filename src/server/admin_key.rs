//! The organization's first key. `GATEPOST_ADMIN_KEY`, when set, is an admin key from that start on; without
//! it one is made at the first start and written to `data_dir/admin.key`, readable by us alone.
//!
//! A crash between the two steps loses nothing: the file is written and synced first, and a start that finds
//! the file but no key in the database enters the one in the file.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::floor::Floor;
use crate::principal::{Permissions, Scope};
use crate::store::StoreError;
use crate::store::key::{self, NewKey};

/// In the data folder.
pub const ADMIN_KEY_FILE: &str = "admin.key";
/// Characters. 160 bits in base 32 are 32; whoever chooses a key of their own shall not choose `secret`.
const SHORTEST_GIVEN_KEY: usize = 24;

#[derive(Debug, thiserror::Error)]
pub enum AdminKeyError {
    #[error("GATEPOST_ADMIN_KEY must be 24 to 256 visible ASCII characters without spaces")]
    Malformed,
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("the admin key: {0}")]
    Store(#[from] StoreError),
}

/// Sees to it that there is an admin key.
pub async fn ensure_admin_key(floor: &Floor) -> Result<(), AdminKeyError> {
    if let Ok(given) = std::env::var("GATEPOST_ADMIN_KEY")
        && !given.is_empty()
    {
        let fits =
            (SHORTEST_GIVEN_KEY..=256).contains(&given.len()) && given.bytes().all(|b| b.is_ascii_graphic());
        return match fits {
            true => enter(floor, given, "GATEPOST_ADMIN_KEY").await,
            false => Err(AdminKeyError::Malformed),
        };
    }
    if floor.store.read(|tx| Box::pin(key::any_of_organization(tx))).await? {
        return Ok(());
    }
    let path = floor.config.data_dir.join(ADMIN_KEY_FILE);
    let secret = match std::fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => text.trim().to_owned(),
        _ => {
            let secret = key::fresh_secret();
            write_private(&path, &secret).map_err(|source| AdminKeyError::File { path, source })?;
            secret
        }
    };
    enter(floor, secret, "the first admin key").await
}

/// A key of the organization that may do everything, made without asking a server. For whom has the database.
pub async fn new_admin_key(floor: &Floor, name: &str) -> Result<String, AdminKeyError> {
    let secret = key::fresh_secret();
    enter(floor, secret.clone(), name).await?;
    Ok(secret)
}

/// Enters the key unless it is there already.
async fn enter(floor: &Floor, secret: String, name: &str) -> Result<(), AdminKeyError> {
    let new = NewKey {
        secret,
        scope: Scope::Organization,
        name: name.to_owned(),
        permissions: Permissions(None),
        expires_at: None,
    };
    let entered: Result<_, StoreError> = floor
        .store
        .write(move |tx| {
            let new = new.clone();
            Box::pin(async move { key::ensure(tx, &new).await })
        })
        .await;
    entered?;
    Ok(())
}

/// To disk before anybody may rely on it: the file and the folder's entry for it.
fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
