//! The octets of a report out of what they are packed in: gzip, the first entry of a zip, or nothing.
//!
//! Bounded as they come out, never by what a header claims: octets, and their ratio to what was sent.
//! A zip's directory is not read: with the first entry's own header nothing has to be counted or trusted.
//!
//! RFC 1952 (gzip), RFC 1951 (deflate), APPNOTE.TXT 6.3 §4.3.7 (zip local file header).

use std::io::Read;

use flate2::read::{DeflateDecoder, MultiGzDecoder};

use crate::config::limits::{MAX_REPORT, MAX_REPORT_RATIO, REPORT_RATIO_FLOOR};

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnpackError {
    #[error("more than {} MiB unpacked", MAX_REPORT / (1024 * 1024))]
    TooLarge,
    #[error("unpacks to more than {MAX_REPORT_RATIO} times its size")]
    Bomb,
    #[error("is not what its first octets say")]
    Damaged,
}

pub(super) fn unpack(packed: &[u8]) -> Result<Vec<u8>, UnpackError> {
    match packed {
        [0x1f, 0x8b, ..] => inflate(MultiGzDecoder::new(packed), packed.len()),
        [b'P', b'K', 3, 4, ..] => unzip(packed),
        plain if plain.len() > MAX_REPORT => Err(UnpackError::TooLarge),
        plain => Ok(plain.to_vec()),
    }
}

fn unzip(packed: &[u8]) -> Result<Vec<u8>, UnpackError> {
    let number = |at: usize, octets: usize| -> Option<usize> {
        let field = packed.get(at..at + octets)?;
        Some(field.iter().rev().fold(0, |number, octet| number << 8 | usize::from(*octet)))
    };
    let header = || Some((number(8, 2)?, number(18, 4)?, number(26, 2)?, number(28, 2)?));
    let (method, size, name, extra) = header().ok_or(UnpackError::Damaged)?;
    let data = packed.get(30 + name + extra..).ok_or(UnpackError::Damaged)?;
    match method {
        0 if size > MAX_REPORT => Err(UnpackError::TooLarge),
        0 => data.get(..size).map(<[u8]>::to_vec).ok_or(UnpackError::Damaged),
        // The end of a deflate stream is in the stream; sizes may be left to a descriptor behind it.
        8 => inflate(DeflateDecoder::new(data), data.len()),
        _ => Err(UnpackError::Damaged),
    }
}

fn inflate(mut packed: impl Read, size: usize) -> Result<Vec<u8>, UnpackError> {
    let most = size.saturating_mul(MAX_REPORT_RATIO).max(REPORT_RATIO_FLOOR);
    let mut out = Vec::new();
    let mut room = vec![0; 64 * 1024];
    loop {
        let read = packed.read(&mut room).map_err(|_| UnpackError::Damaged)?;
        out.extend_from_slice(room.get(..read).unwrap_or_default());
        match out.len() {
            _ if read == 0 => return Ok(out),
            length if length > MAX_REPORT => return Err(UnpackError::TooLarge),
            length if length > most => return Err(UnpackError::Bomb),
            _ => {}
        }
    }
}
