//! Signing by hand: any tags, any fields, so that tests can make what no honest signer makes.

use mail_auth::common::crypto::{Ed25519Key, HashAlgorithm, SigningKey};
use mail_auth::dkim::Canonicalization::Relaxed;

use super::super::signed::Message;
use super::{Key, base64};

/// A field of signature tags, as `DKIM-Signature: v=1; …`, signed over the named fields and `covered`.
pub(super) fn field(key: &Key, name: &str, tags: &str, over: &[(Vec<u8>, Vec<u8>)]) -> String {
    let value = format!(" {tags}; b=");
    let mut all: Vec<(&[u8], &[u8])> = over.iter().map(|(n, v)| (n.as_slice(), v.as_slice())).collect();
    all.push((name.as_bytes(), value.as_bytes()));
    let mut input = Vec::new();
    Relaxed.canonicalize_headers(all.into_iter(), &mut input);
    let key = Ed25519Key::from_pkcs8_der(&key.pkcs8).unwrap();
    format!("{name}:{value}{}\r\n", base64(&key.sign(input.as_slice()).unwrap()))
}

fn pairs(message: &Message<'_>, names: &[&str]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    message.named(&names).into_iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect()
}

fn body_hash(raw: &str) -> String {
    let (_, body) = raw.split_once("\r\n\r\n").unwrap();
    base64(HashAlgorithm::Sha256.hash(Relaxed.canonical_body(body.as_bytes(), 0)).as_ref())
}

/// The message with a DKIM signature that has these tags too.
pub(super) fn dkim(key: &Key, domain: &str, more: &str, raw: &str) -> String {
    let bh = body_hash(raw);
    let tags =
        format!("v=1; a=ed25519-sha256; c=relaxed/relaxed; d={domain}; s=s; h=from:subject; bh={bh}; {more}");
    let tags = tags.trim_end_matches([' ', ';']);
    let over = pairs(&Message::new(raw.as_bytes()), &["from", "subject"]);
    format!("{}{raw}", field(key, "DKIM-Signature", tags, &over))
}

/// The message with a further ARC set: what `domain` claims to have seen.
pub(super) fn arc(key: &Key, domain: &str, saw: &str, cv: &str, raw: &str) -> String {
    let message = Message::new(raw.as_bytes());
    let n = message.all("ARC-Seal").count() + 1;
    let bh = body_hash(raw);
    let results = format!("ARC-Authentication-Results: i={n}; mx.{domain}; {saw}\r\n");
    let tags =
        format!("i={n}; a=ed25519-sha256; c=relaxed/relaxed; d={domain}; s=s; h=from:subject; bh={bh}");
    let signature = field(key, "ARC-Message-Signature", &tags, &pairs(&message, &["from", "subject"]));
    // The sets before this one stand above each other, the newest first, each as made below.
    let names = ["ARC-Authentication-Results", "ARC-Message-Signature", "ARC-Seal"];
    let mut over = Vec::new();
    let before = names.map(|name| message.all(name).map(|f| message.pair(f)).collect::<Vec<_>>());
    for at in (0..n - 1).rev() {
        over.extend(before.iter().map(|kind| (kind[at].0.to_vec(), kind[at].1.to_vec())));
    }
    for own in [&results, &signature] {
        let (name, value) = own.split_once(':').unwrap();
        over.push((name.as_bytes().to_vec(), value.as_bytes().to_vec()));
    }
    let seal = field(key, "ARC-Seal", &format!("i={n}; a=ed25519-sha256; d={domain}; s=s; cv={cv}"), &over);
    format!("{seal}{signature}{results}{raw}")
}
