//! Names for rows that leave the house, and the one door to randomness.
//!
//! A `RowId` says where its row is kept (pod, inbox) and when it was made, so that an id alone in a path finds
//! its row without an index over all inboxes, and ids sort by time as text. They are names, not secrets:
//! what a key may see is decided by its scope.

use serde::{Deserialize, Serialize};

use crate::clock::Millis;

/// Where everything of an inbox is kept. An inbox number is never used again, so an address that is created
/// anew sees nothing of the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InboxKey {
    pub pod: i64,
    pub inbox: i64,
}

/// The row `seq` of an inbox (numbered from the inbox's own counter), made at `at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RowId {
    pub at: Millis,
    pub inbox: InboxKey,
    pub seq: i64,
}

/// What kind of row an id names; part of its text, so that one kind is never taken for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefix {
    Thread,
    Message,
    WorkItem,
    Event,
    Delivery,
    Report,
}

impl Prefix {
    fn text(self) -> &'static str {
        match self {
            Prefix::Thread => "thr_",
            Prefix::Message => "msg_",
            Prefix::WorkItem => "wi_",
            Prefix::Event => "evt_",
            Prefix::Delivery => "dlv_",
            Prefix::Report => "rep_",
        }
    }
}

/// Octets of an encoded id: 6 of time, 4 of pod, 5 of inbox, 5 of row. 160 bits are 32 base-32 digits.
const ID_OCTETS: usize = 20;

impl RowId {
    /// `thr_0cq4…`: prefix and 32 digits, sortable by time.
    pub fn text(&self, prefix: Prefix) -> String {
        let mut octets = [0u8; ID_OCTETS];
        octets[..6].copy_from_slice(&self.at.to_be_bytes()[2..]);
        octets[6..10].copy_from_slice(&self.inbox.pod.to_be_bytes()[4..]);
        octets[10..15].copy_from_slice(&self.inbox.inbox.to_be_bytes()[3..]);
        octets[15..].copy_from_slice(&self.seq.to_be_bytes()[3..]);
        format!("{}{}", prefix.text(), base32(&octets))
    }

    /// The reverse of `text`; `None` for anything that it never wrote.
    pub fn parse(prefix: Prefix, text: &str) -> Option<RowId> {
        let octets: [u8; ID_OCTETS] = unbase32(text.strip_prefix(prefix.text())?)?.try_into().ok()?;
        let number =
            |range: std::ops::Range<usize>| octets[range].iter().fold(0i64, |n, b| (n << 8) | i64::from(*b));
        Some(RowId {
            at: number(0..6),
            inbox: InboxKey { pod: number(6..10), inbox: number(10..15) },
            seq: number(15..20),
        })
    }
}

/// How a pod is called: its id says its key, so that no name has to be looked up.
pub fn pod_id(pod: i64) -> String {
    // The pod that always exists (store::inbox::DEFAULT_POD).
    if pod == 1 { "pod_default".to_owned() } else { format!("pod_{}", base32(&pod.to_be_bytes()[3..])) }
}

/// The reverse of `pod_id`; `None` for what it never wrote.
pub fn parse_pod_id(text: &str) -> Option<i64> {
    let digits = text.strip_prefix("pod_")?;
    if digits == "default" {
        return Some(1);
    }
    let pod = unbase32(digits)?.iter().fold(0i64, |n, b| (n << 8) | i64::from(*b));
    (pod > 1 && pod_id(pod) == text).then_some(pod)
}

/// Crockford's digits in lower case: no i, l, o, u; in the order of their values, so that text sorts as bytes do.
const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// Base 32 without padding.
pub fn base32(octets: &[u8]) -> String {
    let mut text = String::with_capacity(octets.len().div_ceil(5) * 8);
    let (mut bits, mut count) = (0u32, 0u32);
    for octet in octets {
        bits = (bits << 8) | u32::from(*octet);
        count += 8;
        while count >= 5 {
            count -= 5;
            text.push(char::from(DIGITS[(bits >> count & 31) as usize]));
        }
        bits &= (1 << count) - 1;
    }
    if count > 0 {
        text.push(char::from(DIGITS[(bits << (5 - count) & 31) as usize]));
    }
    text
}

/// The reverse of `base32`; `None` where the text is not exactly what `base32` writes.
pub fn unbase32(text: &str) -> Option<Vec<u8>> {
    let mut octets = Vec::with_capacity(text.len() * 5 / 8);
    let (mut bits, mut count) = (0u32, 0u32);
    for digit in text.bytes() {
        let value = DIGITS.iter().position(|d| *d == digit)? as u32;
        bits = (bits << 5) | value;
        count += 5;
        if count >= 8 {
            count -= 8;
            octets.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    (bits == 0 && count < 5).then_some(octets)
}

/// Octets from the operating system's generator.
#[allow(clippy::disallowed_methods)] // the one door
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut octets = [0u8; N];
    rand::Rng::fill_bytes(&mut rand::rng(), &mut octets);
    octets
}

/// A secret or unguessable name of `N` random octets, in base 32.
pub fn random_token<const N: usize>() -> String {
    base32(&random_bytes::<N>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ids_come_back_as_they_went(at in 0i64..1 << 47, pod in 0i64..1 << 31, inbox in 0i64..1 << 39, seq in 0i64..1 << 39) {
            let id = RowId { at, inbox: InboxKey { pod, inbox }, seq };
            prop_assert_eq!(RowId::parse(Prefix::Thread, &id.text(Prefix::Thread)), Some(id));
            prop_assert_eq!(RowId::parse(Prefix::Message, &id.text(Prefix::Thread)), None);
        }

        #[test]
        fn any_text_is_an_id_or_none(text in ".*") {
            if let Some(id) = RowId::parse(Prefix::Thread, &text) {
                prop_assert_eq!(id.text(Prefix::Thread), text);
            }
        }
    }
}
