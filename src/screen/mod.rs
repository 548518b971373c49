//! A message becomes understood.

mod reply;
pub mod structure;

use structure::Structure;

pub use reply::extracted_text;

/// Reads a message. Never panics and never fails: what cannot be read is `unparsed`.
pub fn structure(raw: &[u8]) -> Structure {
    let _ = raw;
    Structure::default()
}

/// The octets of a part after transfer decoding; empty where there is no such part.
pub fn decode_part(_raw: &[u8], _structure: &Structure, _part: u32) -> Vec<u8> {
    Vec::new()
}

/// The text of a part, in Unicode.
pub fn decode_text(_raw: &[u8], _structure: &Structure, _part: u32) -> String {
    String::new()
}

/// The header fields of a message in their order, decoded.
pub fn headers(_raw: &[u8]) -> Vec<(String, String)> {
    Vec::new()
}
