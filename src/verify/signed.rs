//! A message as signatures see it: its fields from the bottom up, and the hash of its body. What DKIM
//! (RFC 6376) and ARC (RFC 8617) have in common; canonicalization and cryptography are mail-auth's.

use std::sync::OnceLock;

use mail_auth::common::crypto::{Algorithm, HashAlgorithm, HashOutput};
use mail_auth::dkim::Canonicalization;
use memchr::memchr;

use super::key::Key;
use super::tags::Tags;
use crate::address::normalize_domain;
use crate::screen::fields::{self, Field};

/// Field names in `h=`; honest signatures stay below 60, and verifying is quadratic in them.
const MAX_SIGNED_FIELDS: usize = 200;
pub(crate) const TOO_MANY_FIELDS: &str = "too many signed fields";

/// From this size on, hashing is worth telling the runtime about.
const LARGE: usize = 512 * 1024;

/// The message; without fields where its header is beyond what we verify.
pub(crate) struct Message<'x> {
    raw: &'x [u8],
    fields: Vec<Field<'x>>,
    body: &'x [u8],
    simple: OnceLock<HashOutput>,
    relaxed: OnceLock<HashOutput>,
}

impl<'x> Message<'x> {
    pub fn new(raw: &'x [u8]) -> Message<'x> {
        let header = fields::header(raw);
        let fields = if header.excess.is_some() { Vec::new() } else { header.fields };
        let body = raw.get(header.body_at..).unwrap_or_default();
        Message { raw, fields, body, simple: OnceLock::new(), relaxed: OnceLock::new() }
    }

    /// The fields of this name, top down.
    pub fn all<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'s Field<'x>> {
        self.fields.iter().filter(move |field| field.is(name))
    }

    /// SHA-256 of the body; computed once for each way to write it.
    pub fn body_hash(&self, how: Canonicalization) -> &HashOutput {
        let (place, body) = match how {
            Canonicalization::Simple => (&self.simple, self.body),
            Canonicalization::Relaxed => (&self.relaxed, without_blank_tail(self.body)),
        };
        place.get_or_init(|| {
            let hash = || HashAlgorithm::Sha256.hash(how.canonical_body(body, 0));
            let threads = tokio::runtime::Handle::try_current()
                .is_ok_and(|h| h.runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread);
            if body.len() > LARGE && threads {
                // The hash of a large body takes tens of milliseconds; others must not wait behind it.
                tokio::task::block_in_place(hash)
            } else {
                hash()
            }
        })
    }

    /// The fields that a list names: for each name the lowest that was not taken yet (RFC 6376 §5.4.2).
    pub fn named<'s>(&'s self, names: &'s [String]) -> Vec<(&'s [u8], &'s [u8])> {
        let mut taken: Vec<(&str, usize)> = Vec::with_capacity(names.len());
        let mut out = Vec::with_capacity(names.len());
        for name in names {
            let slot = taken.iter().position(|(known, _)| known.eq_ignore_ascii_case(name));
            let slot = slot.unwrap_or_else(|| {
                taken.push((name, self.fields.len()));
                taken.len() - 1
            });
            let Some((_, below)) = taken.get_mut(slot) else { continue };
            let above = self.fields.get(..*below).unwrap_or_default();
            match above.iter().rposition(|field| field.is(name)) {
                Some(at) => {
                    *below = at;
                    out.extend(above.get(at).map(|field| self.pair(field)));
                }
                None => *below = 0,
            }
        }
        out
    }

    /// Name and value of a field as they stand, the white space before the colon included.
    pub fn pair(&self, field: &Field<'x>) -> (&'x [u8], &'x [u8]) {
        let colon = field.end.saturating_sub(field.value.len() + 1);
        (self.raw.get(field.start..colon).unwrap_or(field.name), field.value)
    }
}

/// mail-auth issue #62 (fixed in 0.15.0): lines of white space at the end of the body give a wrong hash under
/// relaxed canonicalization. RFC 6376 §3.4.4 ignores them, so they are taken away before.
fn without_blank_tail(body: &[u8]) -> &[u8] {
    let text = body.iter().rposition(|octet| !matches!(octet, b' ' | b'\t' | b'\r' | b'\n'));
    let Some(last) = text else { return &[] };
    let rest = body.get(last..).unwrap_or_default();
    let end = memchr(b'\n', rest).map_or(body.len(), |newline| last + newline + 1);
    body.get(..end).unwrap_or(body)
}

/// What every signature has, read.
#[derive(Debug)]
pub(crate) struct Signature {
    pub algorithm: Algorithm,
    /// `d=` in A-labels.
    pub domain: String,
    pub selector: String,
    pub octets: Vec<u8>,
    /// The field itself as it is signed: `b=` empty, no line end.
    pub own: Vec<u8>,
}

/// What a signature of a body has beside it.
#[derive(Debug)]
pub(crate) struct Coverage {
    pub body_hash: Vec<u8>,
    pub header: Canonicalization,
    pub body: Canonicalization,
    pub fields: Vec<String>,
}

impl Signature {
    pub fn read(tags: &Tags<'_>) -> Result<Signature, &'static str> {
        let algorithm = match tags.get("a") {
            Some(name) => algorithm(name).ok_or("an unknown algorithm")?,
            None => return Err("no algorithm"),
        };
        let domain = tags.get("d").and_then(|d| normalize_domain(d).ok()).filter(|d| !d.starts_with('['));
        let selector = tags.get("s").and_then(|s| normalize_domain(s).ok());
        let mut own = tags.without_value("b");
        if own.ends_with(b"\n") {
            own.pop();
            if own.ends_with(b"\r") {
                own.pop();
            }
        }
        Ok(Signature {
            algorithm,
            domain: domain.ok_or("no valid domain")?,
            selector: selector.ok_or("no valid selector")?,
            octets: tags.octets("b").ok_or("no valid signature data")?,
            own,
        })
    }

    /// Whether the key has signed these fields and, last, the signature's own.
    pub fn verifies(
        &self,
        key: &Key,
        how: Canonicalization,
        fields: Vec<(&[u8], &[u8])>,
        name: &[u8],
    ) -> Result<(), &'static str> {
        let own = self.own.as_slice();
        let mut all = fields.into_iter().chain([(name, own)]);
        key.verify(&mut all, &self.octets, how, self.algorithm)
    }
}

impl Coverage {
    pub fn read(tags: &Tags<'_>) -> Result<Coverage, &'static str> {
        let (header, body) = canonicalizations(tags.get("c").unwrap_or("simple/simple"))
            .ok_or("an unknown canonicalization")?;
        let fields = tags.get("h").ok_or("no list of signed fields")?;
        let names = fields.split(':').map(str::trim).filter(|name| !name.is_empty());
        let fields: Vec<String> = names.take(MAX_SIGNED_FIELDS + 1).map(str::to_owned).collect();
        if fields.len() > MAX_SIGNED_FIELDS {
            return Err(TOO_MANY_FIELDS);
        }
        let body_hash = tags.octets("bh").ok_or("no valid body hash")?;
        Ok(Coverage { body_hash, header, body, fields })
    }

    pub fn body_matches(&self, message: &Message<'_>) -> bool {
        message.body_hash(self.body).as_ref() == self.body_hash
    }
}

fn algorithm(name: &str) -> Option<Algorithm> {
    match name {
        "rsa-sha256" => Some(Algorithm::RsaSha256),
        "ed25519-sha256" => Some(Algorithm::Ed25519Sha256),
        "rsa-sha1" => Some(Algorithm::RsaSha1),
        _ => None,
    }
}

/// RFC 6376 §3.5: `header/body`; the body's is `simple` where only one is named.
fn canonicalizations(text: &str) -> Option<(Canonicalization, Canonicalization)> {
    let one = |name: &str| match name {
        "simple" => Some(Canonicalization::Simple),
        "relaxed" => Some(Canonicalization::Relaxed),
        _ => None,
    };
    let (header, body) = text.split_once('/').unwrap_or((text, "simple"));
    Some((one(header)?, one(body)?))
}
