//! The master key: what must stay readable (DKIM keys, later webhook secrets) is sealed under it, and the
//! tokens that we hand out are signed with keys derived from it. It is never in the database, so a stolen
//! database opens nothing.
//!
//! AES-256-GCM with a random nonce; one key for each purpose, derived by HMAC-SHA-256 (the expand step of
//! RFC 5869 with a uniform key).

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::ids::{base32, random_bytes, unbase32};

/// Octets of the master key.
const KEY_OCTETS: usize = 32;

#[derive(Clone)]
pub struct Secrets(Arc<[u8; KEY_OCTETS]>);

#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    #[error("the master key file {path}: {source}")]
    File { path: String, source: std::io::Error },
    #[error("the master key in {0} is not 32 octets in base 32 (52 digits)")]
    Malformed(String),
    #[error("a sealed value does not open: it was sealed under another master key, or is damaged")]
    DoesNotOpen,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets(..)")
    }
}

impl Secrets {
    /// Reads the key file; makes it (mode 0600, synced) where it is missing.
    pub fn open_or_create(path: &Path) -> Result<Secrets, SecretsError> {
        let failed = |source| SecretsError::File { path: path.display().to_string(), source };
        match std::fs::File::open(path) {
            Ok(mut file) => {
                let mut text = String::new();
                file.read_to_string(&mut text).map_err(failed)?;
                Secrets::from_text(&text, &path.display().to_string())
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let key = random_bytes::<KEY_OCTETS>();
                let mut file = std::fs::OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(path)
                    .map_err(failed)?;
                file.write_all(base32(&key).as_bytes()).map_err(failed)?;
                file.sync_all().map_err(failed)?;
                if let Some(folder) = path.parent() {
                    std::fs::File::open(folder).and_then(|d| d.sync_all()).map_err(failed)?;
                }
                Ok(Secrets(Arc::new(key)))
            }
            Err(e) => Err(failed(e)),
        }
    }

    /// The key from its text, as it stands in the file or in `GATEPOST_MASTER_KEY`; `origin` is named in errors.
    pub fn from_text(text: &str, origin: &str) -> Result<Secrets, SecretsError> {
        let octets = unbase32(text.trim()).ok_or_else(|| SecretsError::Malformed(origin.to_owned()))?;
        let key = octets.try_into().map_err(|_| SecretsError::Malformed(origin.to_owned()))?;
        Ok(Secrets(Arc::new(key)))
    }

    /// A key of its own for each purpose, so that a token of one kind is never good as another.
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        hmac_sha256(self.0.as_slice(), purpose.as_bytes())
    }

    /// HMAC-SHA-256 over `data` under the key for `purpose`.
    pub fn mac(&self, purpose: &str, data: &[u8]) -> [u8; 32] {
        hmac_sha256(&self.derive(purpose), data)
    }

    /// Whether `tag` (a prefix of at least 10 octets of the MAC) belongs to `data`, in constant time.
    pub fn mac_matches(&self, purpose: &str, data: &[u8], tag: &[u8]) -> bool {
        let whole = self.mac(purpose, data);
        tag.len() >= 10
            && whole
                .get(..tag.len())
                .is_some_and(|w| aws_lc_rs::constant_time::verify_slices_are_equal(w, tag).is_ok())
    }

    /// Nonce, ciphertext and tag.
    pub fn seal(&self, purpose: &str, plain: &[u8]) -> Result<Vec<u8>, SecretsError> {
        let nonce = random_bytes::<NONCE_LEN>();
        let mut sealed = plain.to_vec();
        self.cipher(purpose)?
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(purpose), &mut sealed)
            .map_err(|_| SecretsError::DoesNotOpen)?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    pub fn unseal(&self, purpose: &str, sealed: &[u8]) -> Result<Vec<u8>, SecretsError> {
        let (nonce, body) = sealed.split_at_checked(NONCE_LEN).ok_or(SecretsError::DoesNotOpen)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SecretsError::DoesNotOpen)?;
        let mut body = body.to_vec();
        let plain = self
            .cipher(purpose)?
            .open_in_place(nonce, Aad::from(purpose), &mut body)
            .map_err(|_| SecretsError::DoesNotOpen)?;
        Ok(plain.to_vec())
    }

    fn cipher(&self, purpose: &str) -> Result<LessSafeKey, SecretsError> {
        UnboundKey::new(&AES_256_GCM, &self.derive(purpose))
            .map(LessSafeKey::new)
            .map_err(|_| SecretsError::DoesNotOpen)
    }
}

fn hmac_sha256(key: &[u8], data: &[u8]) -> [u8; 32] {
    // HMAC takes a key of any length, so this cannot fail; an empty MAC would match nothing.
    match Hmac::<Sha256>::new_from_slice(key) {
        Ok(mut mac) => {
            mac.update(data);
            mac.finalize().into_bytes().into()
        }
        Err(_) => [0; 32],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stolen_database_opens_nothing_without_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let ours = Secrets::open_or_create(&folder.path().join("master.key")).unwrap();
        let again = Secrets::open_or_create(&folder.path().join("master.key")).unwrap();
        let other = Secrets::open_or_create(&folder.path().join("other.key")).unwrap();
        let sealed = ours.seal("dkim", b"private").unwrap();
        assert_eq!(again.unseal("dkim", &sealed).unwrap(), b"private");
        assert!(other.unseal("dkim", &sealed).is_err());
        assert!(ours.unseal("webhook", &sealed).is_err());
        assert!(ours.unseal("dkim", b"short").is_err());
        assert!(ours.mac_matches("token", b"x", &ours.mac("token", b"x")[..16]));
        assert!(!ours.mac_matches("token", b"x", &[]));
    }
}
