//! What we write on top of a message.

use super::verdict::Verdict;
use crate::envelope::Envelope;

/// The message as it is stored.
pub fn stamp(
    hostname: &str,
    envelope: &Envelope,
    id: &str,
    _received_at: i64,
    _verdict: &Verdict,
    raw: &[u8],
) -> Vec<u8> {
    let _ = (hostname, envelope, id);
    raw.to_vec()
}
