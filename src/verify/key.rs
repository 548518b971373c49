//! The public key of a signature, from `selector._domainkey.domain` (RFC 6376 §3.6.1).

use mail_auth::common::crypto::Algorithm;
use mail_auth::common::parse::TxtRecordParser;
use mail_auth::common::verify::DomainKey;
use mail_auth::dkim::Canonicalization;

use super::lookups::{Lookups, NoAnswer};
use super::tags::{EmptyTags, Tags};

/// RFC 8301 §3.2: "Verifiers MUST NOT consider signatures using RSA keys of less than 1024 bits as valid".
const SMALLEST_RSA: usize = 1024;

pub(crate) struct Key {
    inner: DomainKey,
    /// `t=y`: the domain tries DKIM out; mail is to be treated as if it were not signed.
    pub testing: bool,
    /// `t=s`: the identity may not be below the domain.
    pub exact: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KeyError {
    Temporary(String),
    /// Nobody could ever verify with it.
    Permanent(&'static str),
    /// It is not good enough for us.
    Weak(&'static str),
    /// The message has had its questions.
    Spent,
}

/// Asks for a key. Of several records the first that is one.
pub(crate) async fn fetch(lookups: &Lookups<'_>, selector: &str, domain: &str) -> Result<Key, KeyError> {
    match lookups.txt(&format!("{selector}._domainkey.{domain}")).await {
        Ok(records) => {
            let mut flaw = KeyError::Permanent("no key");
            for record in &records {
                match read(record) {
                    Ok(key) => return Ok(key),
                    Err(error) => flaw = error,
                }
            }
            Err(flaw)
        }
        Err(NoAnswer::NotFound | NoAnswer::Empty) => Err(KeyError::Permanent("no key")),
        Err(NoAnswer::Temporary(why)) => Err(KeyError::Temporary(why)),
        Err(NoAnswer::Spent) => Err(KeyError::Spent),
    }
}

fn read(record: &str) -> Result<Key, KeyError> {
    let permanent = |why| Err(KeyError::Permanent(why));
    let Ok(tags) = Tags::parse(record, EmptyTags::Skipped) else { return permanent("a malformed key") };
    if tags.get("v").is_some_and(|version| version != "DKIM1" || tags.first() != Some("v")) {
        return permanent("a key of an unknown version");
    }
    let lists = |name: &str, wanted: &[&str]| {
        let values = tags.get(name).map(|list| list.split(':').any(|item| wanted.contains(&item.trim())));
        values.unwrap_or(true)
    };
    let rsa = match tags.get("k") {
        None | Some("rsa") => true,
        Some("ed25519") => false,
        Some(_) => return permanent("a key of an unknown kind"),
    };
    match tags.get("p") {
        None => return permanent("a key without a key"),
        Some("") => return permanent("the key was revoked"),
        Some(_) => {}
    }
    if !lists("h", &["sha256"]) {
        return permanent("a key for other hashes");
    }
    if !lists("s", &["*", "email"]) {
        return permanent("a key for other services");
    }
    let Ok(inner) = DomainKey::parse(record.as_bytes()) else { return permanent("a malformed key") };
    if rsa && inner.p.public_key_bits() < SMALLEST_RSA {
        return Err(KeyError::Weak("an RSA key below 1,024 bits"));
    }
    let flag = |flag: &str| tags.get("t").is_some_and(|list| list.split(':').any(|f| f.trim() == flag));
    Ok(Key { inner, testing: flag("y"), exact: flag("s") })
}

impl Key {
    pub fn verify<'h>(
        &self,
        fields: &mut dyn Iterator<Item = (&'h [u8], &'h [u8])>,
        signature: &[u8],
        how: Canonicalization,
        algorithm: Algorithm,
    ) -> Result<(), &'static str> {
        use mail_auth::Error;
        use mail_auth::common::crypto::CryptoError;
        self.inner.p.verify(fields, signature, how, algorithm).map_err(|error| match error {
            Error::Crypto(CryptoError::IncompatibleAlgorithms) => "the key is for another algorithm",
            _ => "the signature does not verify",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED: &str = "p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";
    #[test]
    fn keys_are_read_strictly() {
        for good in
            ["v=DKIM1; k=ed25519; ", "k=ed25519; t=y:s; s=email; h=sha1:sha256; ", "k=ed25519;; n=x; s=*; "]
        {
            assert!(read(&format!("{good}{ED}")).is_ok(), "{good}");
        }
        let flags = read(&format!("k=ed25519; t=s : y;{ED}")).unwrap();
        assert!(flags.testing && flags.exact);
        for bad in [
            "k=ed25519; v=DKIM1; ",
            "v=DKIM2; k=ed25519; ",
            "k=dsa; ",
            "k=ed25519; h=sha1; ",
            "k=ed25519; s=tlsrpt; ",
            "k=ed25519; p=; ",
        ] {
            assert!(matches!(read(&format!("{bad}{ED}")), Err(KeyError::Permanent(_))), "{bad}");
        }
        assert_eq!(read("v=DKIM1; p=").err(), Some(KeyError::Permanent("the key was revoked")));
        assert_eq!(read("v=DKIM1; k=rsa").err(), Some(KeyError::Permanent("a key without a key")));
    }

    #[test]
    fn an_rsa_key_below_1024_bits_is_none() {
        use base64::Engine;
        for (octets, good) in [(64_u8, false), (120, false), (128, true)] {
            let modulus = [&[2, 0x81, octets + 1, 0][..], &vec![0xab; octets.into()]].concat();
            let inner = [&modulus[..], &[2, 3, 1, 0, 1]].concat();
            let der = [&[0x30, 0x81, inner.len() as u8][..], &inner].concat();
            let key = base64::engine::general_purpose::STANDARD.encode(der);
            let read = read(&format!("v=DKIM1; p={key}"));
            assert_eq!(read.is_ok(), good, "{octets}");
            assert!(good || matches!(read, Err(KeyError::Weak(_))), "{octets}");
        }
    }
}
