//! DKIM: an RSA-2048 and an Ed25519 key for each domain, made at the first start, and signatures by both.
//!
//! Promises: relaxed/relaxed, never `l=`; the fields that people see are oversigned, so that a second From or
//! Subject added on the way breaks the signature. Private keys are sealed in the database and parsed once.
//! RSA stays beside Ed25519 because large receivers verify nothing else (stalwart #3193).
//!
//! RFC 6376 (DKIM), RFC 8301 (RSA sizes), RFC 8463 (Ed25519); §8.15 of RFC 6376 on oversigning.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use mail_auth::common::crypto::{DkimKey, Ed25519Key, RsaKey, Sha256};
use mail_auth::common::headers::HeaderWriter;
use mail_auth::dkim::{Canonicalization, DkimSigner, Done};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::ids::random_token;
use crate::secrets::{Secrets, SecretsError};
use crate::store::dkim_key::{self, DkimKeyRow, KeyState};
use crate::store::{Store, StoreError, Topic};

/// The purpose under which private keys are sealed.
const SEALED_FOR: &str = "dkim private key";
const RSA: &str = "rsa-sha256";
const ED25519: &str = "ed25519-sha256";
/// Octets in one string of a TXT record, RFC 1035 §3.3.14.
const TXT_STRING: usize = 255;
/// A hint that keys changed may be lost.
const READ_AGAIN: Duration = Duration::from_secs(30);

/// Signed where they are present, and once more than they are present: RFC 6376 §8.15.
const OVERSIGNED: [&str; 12] = [
    "From",
    "To",
    "Cc",
    "Subject",
    "Date",
    "Reply-To",
    "Message-ID",
    "In-Reply-To",
    "References",
    "MIME-Version",
    "Content-Type",
    "Content-Transfer-Encoding",
];
/// Signed where they are present; a list may add its own.
const SIGNED: [&str; 4] = ["Auto-Submitted", "List-Unsubscribe", "List-Unsubscribe-Post", "List-Id"];

#[derive(Debug, thiserror::Error)]
pub enum DkimError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("DKIM key of {0}: {1}")]
    Sealed(String, SecretsError),
    #[error("DKIM key of {0}: {1}")]
    Key(String, String),
}

/// A record to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsRecord {
    /// Without a dot at its end.
    pub name: String,
    pub kind: &'static str,
    /// As it stands in a zone file: for TXT, quoted strings of at most 255 octets.
    pub value: String,
}

/// The keys that sign, of every domain, ready to use. Cloning shares them, and what `refresh` reads.
#[derive(Clone)]
pub struct Signers {
    store: Store,
    secrets: Secrets,
    domains: Arc<RwLock<Arc<Keyring>>>,
}

/// The active keys of each domain.
type Keyring = HashMap<String, Vec<Arc<Signer>>>;

/// One key, in the two forms that differ in how the body is read.
struct Signer {
    selector: String,
    public_key: String,
    relaxed: DkimSigner<DkimKey, Done>,
    simple_body: DkimSigner<DkimKey, Done>,
}

/// Makes the keys that are missing for `domains`.
pub async fn make_missing(store: &Store, secrets: &Secrets, domains: &[String]) -> Result<(), DkimError> {
    for domain in domains {
        let have = keys(store, domain).await?;
        for algorithm in [RSA, ED25519] {
            if have.iter().any(|key| key.algorithm == algorithm) {
                continue;
            }
            let row = fresh(secrets, domain, algorithm, "gp1", KeyState::Active).await?;
            store
                .write(move |tx| {
                    let row = row.clone();
                    Box::pin(async move { dkim_key::insert(tx, &row).await })
                })
                .await?;
            tracing::info!(dkim.domain = %domain, dkim.algorithm = algorithm, "made a DKIM key");
        }
    }
    Ok(())
}

/// A pair of keys, RSA and Ed25519, under selectors that nobody had before; not stored yet.
pub(crate) async fn fresh_pair(
    secrets: &Secrets,
    domain: &str,
    state: KeyState,
) -> Result<Vec<DkimKeyRow>, DkimError> {
    let series = format!("gp{}", random_token::<5>());
    let rsa = fresh(secrets, domain, RSA, &series, state).await?;
    Ok(vec![rsa, fresh(secrets, domain, ED25519, &series, state).await?])
}

async fn fresh(
    secrets: &Secrets,
    domain: &str,
    algorithm: &'static str,
    series: &str,
    state: KeyState,
) -> Result<DkimKeyRow, DkimError> {
    let (private, public) = generate(algorithm).await.map_err(|e| DkimError::Key(domain.to_owned(), e))?;
    let sealed = secrets.seal(SEALED_FOR, &private);
    Ok(DkimKeyRow {
        domain: domain.to_owned(),
        selector: format!("{series}-{}", if algorithm == RSA { "rsa" } else { "ed25519" }),
        algorithm: algorithm.to_owned(),
        private_key: sealed.map_err(|e| DkimError::Sealed(domain.to_owned(), e))?,
        public_key: BASE64.encode(&public),
        state,
        state_at: 0,
        created_at: 0,
    })
}

/// The record that a key is published with.
pub fn record(key: &DkimKeyRow) -> DnsRecord {
    let kind = if key.algorithm == RSA { "rsa" } else { "ed25519" };
    let text = format!("v=DKIM1; k={kind}; p={}", key.public_key);
    let strings: Vec<String> = text
        .as_bytes()
        .chunks(TXT_STRING)
        .map(|chunk| format!("\"{}\"", String::from_utf8_lossy(chunk)))
        .collect();
    DnsRecord {
        name: format!("{}._domainkey.{}", key.selector, key.domain),
        kind: "TXT",
        value: strings.join(" "),
    }
}

/// The TXT records of a domain's keys, as they are to be published.
pub async fn records(store: &Store, domain: &str) -> Result<Vec<DnsRecord>, DkimError> {
    Ok(keys(store, domain).await?.iter().map(record).collect())
}

async fn keys(store: &Store, domain: &str) -> Result<Vec<DkimKeyRow>, StoreError> {
    let domain = domain.to_owned();
    store.read(move |tx| Box::pin(async move { dkim_key::of_domain(tx, &domain).await })).await
}

/// PKCS #8 and what goes into `p=`: a SubjectPublicKeyInfo for RSA, the bare 32 octets for Ed25519 (RFC 8463 §4).
async fn generate(algorithm: &'static str) -> Result<(Vec<u8>, Vec<u8>), String> {
    // One at a time: whoever claims names without end has one processor at most.
    static MAKING: Semaphore = Semaphore::const_new(1);
    let _turn = MAKING.acquire().await.map_err(|e| e.to_string())?;
    // An RSA key takes a tenth of a second or more: not on a thread that serves connections.
    tokio::task::spawn_blocking(move || match algorithm {
        RSA => {
            let pair = RsaKeyPair::generate(KeySize::Rsa2048).map_err(|e| e.to_string())?;
            let private = pair.as_der().map_err(|e| e.to_string())?;
            let public = pair.public_key().as_der().map_err(|e| e.to_string())?;
            Ok((private.as_ref().to_vec(), public.as_ref().to_vec()))
        }
        _ => {
            let pair = Ed25519KeyPair::generate().map_err(|e| e.to_string())?;
            let private = pair.to_pkcs8().map_err(|e| e.to_string())?;
            Ok((private.as_ref().to_vec(), pair.public_key().as_ref().to_vec()))
        }
    })
    .await
    .map_err(|e| e.to_string())?
}

impl Signers {
    /// No key yet: `refresh` reads them.
    pub fn new(store: &Store, secrets: &Secrets) -> Signers {
        let (store, secrets) = (store.clone(), secrets.clone());
        Signers { store, secrets, domains: Arc::default() }
    }

    /// Reads and opens the keys that sign; a key that does not open is an error, which at the start stops it
    /// (DESIGN §6). What was opened before is kept.
    pub async fn refresh(&self) -> Result<(), DkimError> {
        let rows: Vec<DkimKeyRow> = self.store.read(|tx| Box::pin(dkim_key::active(tx))).await?;
        let before = self.current();
        let mut all = Keyring::new();
        for key in rows {
            let known = before.get(&key.domain).into_iter().flatten();
            let known = known
                .into_iter()
                .find(|s| s.selector == key.selector && s.public_key == key.public_key)
                .cloned();
            let signer = match known {
                Some(signer) => signer,
                None => Arc::new(self.open(&key)?),
            };
            all.entry(key.domain).or_default().push(signer);
        }
        *self.domains.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(all);
        Ok(())
    }

    fn open(&self, key: &DkimKeyRow) -> Result<Signer, DkimError> {
        let private = self
            .secrets
            .unseal(SEALED_FOR, &key.private_key)
            .map_err(|e| DkimError::Sealed(key.domain.clone(), e))?;
        let signer = |body| signer(key, &private, body);
        let both = signer(Canonicalization::Relaxed)
            .and_then(|relaxed| Ok((relaxed, signer(Canonicalization::Simple)?)));
        let (relaxed, simple_body) = both.map_err(|e| DkimError::Key(key.domain.clone(), e))?;
        let (selector, public_key) = (key.selector.clone(), key.public_key.clone());
        Ok(Signer { selector, public_key, relaxed, simple_body })
    }

    /// Follows the keys as they change, until `shutdown`.
    pub async fn keep(self, shutdown: CancellationToken) {
        let mut told = self.store.wakeups().subscribe(Topic::Domains);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = tokio::time::timeout(READ_AGAIN, told.changed()) => {}
            }
            told.borrow_and_update();
            if let Err(error) = self.refresh().await {
                tracing::error!(%error, "the DKIM keys cannot be read; those from before sign");
            }
        }
    }

    fn current(&self) -> Arc<Keyring> {
        Arc::clone(&self.domains.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether there are keys for mail from this domain.
    pub fn can_sign(&self, domain: &str) -> bool {
        self.current().contains_key(domain)
    }

    /// The signature fields to put before `raw`; empty where `domain` has no keys. Takes about 0.35 ms of CPU.
    pub fn sign(&self, domain: &str, raw: &[u8]) -> Result<Vec<u8>, String> {
        let mut fields = Vec::new();
        for signer in self.current().get(domain).into_iter().flatten() {
            let signer = if has_blank_tail(raw) { &signer.simple_body } else { &signer.relaxed };
            signer.sign(raw).map_err(|e| e.to_string())?.write_header(&mut fields);
        }
        Ok(fields)
    }
}

fn signer(
    key: &DkimKeyRow,
    private: &[u8],
    body: Canonicalization,
) -> Result<DkimSigner<DkimKey, Done>, String> {
    let parsed = if key.algorithm == RSA {
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(private));
        RsaKey::<Sha256>::from_key_der(der).map(DkimKey::from)
    } else {
        Ed25519Key::from_pkcs8_maybe_unchecked_der(private).map(DkimKey::from)
    };
    // mail-auth signs each name once for every field it finds, and a repeated name once more.
    let names = OVERSIGNED.iter().flat_map(|name| [*name, *name]).chain(SIGNED);
    Ok(DkimSigner::from_key(parsed.map_err(|e| e.to_string())?)
        .domain(&key.domain)
        .selector(&key.selector)
        .headers(names)
        .header_canonicalization(Canonicalization::Relaxed)
        .body_canonicalization(body))
}

/// mail-auth issue #62, fixed in 0.15: relaxed canonicalization of a body that ends in lines of white space
/// gives a hash that others do not get. Our own bodies never do (the encoder hides trailing space), but mail
/// that a client composed may; its body is signed with simple canonicalization.
fn has_blank_tail(raw: &[u8]) -> bool {
    let end = raw.iter().rposition(|b| !matches!(b, b'\r' | b'\n' | b' ' | b'\t')).map_or(0, |at| at + 1);
    raw.get(end..).unwrap_or_default().iter().any(|b| matches!(b, b' ' | b'\t'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::config::DatabaseUrl;

    async fn signers(folder: &std::path::Path) -> (Store, Secrets, Signers) {
        let store = Store::open(&DatabaseUrl::Sqlite(folder.join("db")), Clock::system()).await.unwrap();
        let secrets = Secrets::open_or_create(&folder.join("key")).unwrap();
        let domains = ["agents.example".to_owned()];
        make_missing(&store, &secrets, &domains).await.unwrap();
        let signers = Signers::new(&store, &secrets);
        signers.refresh().await.unwrap();
        (store, secrets, signers)
    }

    #[tokio::test]
    async fn keys_are_made_once_and_published_in_short_strings() {
        let folder = tempfile::tempdir().unwrap();
        let (store, secrets, _) = signers(folder.path()).await;
        let first = records(&store, "agents.example").await.unwrap();
        make_missing(&store, &secrets, &["agents.example".to_owned()]).await.unwrap();
        assert_eq!(records(&store, "agents.example").await.unwrap(), first);
        assert_eq!(first.len(), 2);
        for record in &first {
            assert!(record.name.ends_with("._domainkey.agents.example"));
            assert!(record.value.split('"').all(|s| s.len() <= TXT_STRING));
        }
        // RFC 8463 §4: 32 octets; RFC 6376 §3.6.1: a SubjectPublicKeyInfo of 294 octets for RSA-2048.
        let ed = first.iter().find(|r| r.value.contains("k=ed25519")).unwrap();
        assert!(ed.value.ends_with("=\"") && ed.value.len() < 100, "{}", ed.value);
        let other = Secrets::open_or_create(&folder.path().join("other")).unwrap();
        assert!(matches!(Signers::new(&store, &other).refresh().await, Err(DkimError::Sealed(..))));
    }

    #[tokio::test]
    async fn both_signatures_cover_what_people_see_and_one_more_of_each() {
        let folder = tempfile::tempdir().unwrap();
        let (_, _, signers) = signers(folder.path()).await;
        let raw = b"From: a@agents.example\r\nTo: b@remote.example\r\nSubject: x\r\n\r\nhello\r\n";
        let fields = signers.sign("agents.example", raw).unwrap();
        let text = String::from_utf8(fields).unwrap();
        let starts = text.split("\r\n").filter(|line| !line.starts_with('\t') && !line.is_empty());
        assert!(
            starts.clone().all(|line| line.starts_with("DKIM-Signature: ")) && starts.count() == 2,
            "{text}"
        );
        for signature in text.split("DKIM-Signature: ").skip(1) {
            let folded: String = signature.chars().filter(|c| !c.is_whitespace()).collect();
            let h = folded.split(";h=").nth(1).and_then(|t| t.split(';').next()).unwrap().to_lowercase();
            for name in ["from", "to", "subject"] {
                assert_eq!(h.split(':').filter(|n| *n == name).count(), 2, "{name} in {h}");
            }
            assert!(folded.contains("c=relaxed/relaxed") && !folded.contains(";l="), "{folded}");
        }
        assert!(signers.sign("elsewhere.example", raw).unwrap().is_empty());
    }

    #[test]
    fn a_tail_of_white_space_is_signed_with_a_simple_body() {
        for (tail, blank) in
            [("x\r\n", false), ("x\r\n\r\n\r\n", false), ("x\r\n \t\r\n", true), ("x  \r\n", true)]
        {
            assert_eq!(has_blank_tail(format!("A: b\r\n\r\n{tail}").as_bytes()), blank, "{tail:?}");
        }
    }
}
