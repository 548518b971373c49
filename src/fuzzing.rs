//! What the fuzz targets call (fuzz/README.md): hostile octets in, and what must hold whatever they are. Compiled
//! under `cfg(fuzzing)` alone. A claim that does not hold panics, and the fuzzer keeps the octets.

#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use crate::inbox::{is_answer, take_apart};
use crate::screen::structure::Structure;
use crate::screen::{self, bounce};

pub use crate::smtp::fuzzing::{command, data, session};

/// A message: everything that is read of it at delivery.
pub fn header(raw: &[u8]) {
    let structure = screen::structure(raw);
    assert_ne!(structure.unparsed.as_deref(), Some("the parser failed on this message"), "a parser panicked");
    assert_eq!(structure, screen::structure(raw), "the same twice");
    if structure.unparsed.is_none() {
        assert_eq!(structure.from, screen::from_mailboxes(raw), "the sender check sees the same authors");
    }
    the_tree_is_one(raw, &structure);
    what_is_stored_is_clean(&structure);
    let stored = serde_json::to_string(&structure).unwrap();
    let mut back: Structure = serde_json::from_str(&stored).unwrap();
    back.ties = structure.ties.clone();
    assert_eq!(back, structure, "what is stored is what was read");

    let text = screen::body_text(raw, &structure);
    screen::extracted_body(raw, &structure);
    screen::extracted_html(raw, &structure);
    screen::extracted_text(&text);
    screen::headers(raw);
    bounce::read(raw, &structure);
    if let Some(subject) = &structure.subject {
        let base = take_apart(subject).base;
        // A base that was cut off may end like one that was not.
        if !base.is_empty() && base.chars().count() < 300 {
            assert_eq!(take_apart(&format!("Re: {base}")).base, base, "an answer has the same base");
            assert!(is_answer(&format!("Re: {base}")));
        }
    }
}

/// Offsets lie in the message; children come after their parents and lie in them.
fn the_tree_is_one(raw: &[u8], structure: &Structure) {
    assert!(structure.body_at <= raw.len() as u64);
    for (index, part) in structure.parts.iter().enumerate() {
        assert!(part.header_at <= part.body_at && part.body_at <= part.end, "{part:?}");
        assert!(part.end <= raw.len() as u64, "{part:?}");
        assert_eq!(part.parent.is_none(), index == 0, "one root");
        if let Some(parent) = part.parent {
            let parent = &structure.parts[parent as usize..index][0];
            assert!(parent.body_at <= part.header_at && part.end <= parent.end, "{part:?} in {parent:?}");
        }
        screen::decode_text(raw, structure, index as u32);
        assert!(screen::decode_part(raw, structure, index as u32).len() as u64 <= part.end - part.body_at);
    }
    for index in structure.body.iter().chain(&structure.text).chain(&structure.html) {
        assert!((*index as usize) < structure.parts.len());
    }
}

/// No line break reaches a listing, no NUL PostgreSQL; identifiers are in one form and not too many.
fn what_is_stored_is_clean(structure: &Structure) {
    let ties = &structure.ties;
    let ids = structure.message_id.iter().chain(&structure.in_reply_to).chain(&structure.references);
    for id in ids.chain(&ties.returned) {
        assert!(id.starts_with('<') && id.ends_with('>') && id.len() > 2 && id.len() <= 2_994, "{id:?}");
        assert!(!id.chars().any(|c| c.is_control() || c == ' '), "{id:?}");
    }
    assert!(structure.references.len() <= 100 && structure.in_reply_to.len() <= 100);
    assert!(ties.names.len() <= 3 && ties.returned.len() <= 4, "{ties:?}");
    let people = [&structure.from, &structure.sender, &structure.reply_to, &structure.to, &structure.cc];
    let people = people.into_iter().flatten();
    let texts = people.flat_map(|one| one.name.iter().chain([&one.address]));
    let texts = texts.chain(&structure.subject).chain(&structure.preview).chain(&ties.names);
    for text in texts.chain(&ties.list_id).chain(&ties.list_post) {
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }
}
