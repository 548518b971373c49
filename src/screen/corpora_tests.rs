//! Other people's mail, read in place: `GATEPOST_CORPORA`, or `../shared/corpora` beside the project.

use std::path::{Path, PathBuf};

use mail_parser::{MessageParser, MimeHeaders};
use serde_json::Value;

use super::*;

/// The folder, or nothing with a word about it.
pub(crate) fn corpora(what: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("GATEPOST_CORPORA")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpora"));
    if folder.is_dir() {
        return Some(folder);
    }
    println!("SKIPPED: {what}: no corpora at {}", folder.display());
    None
}

fn messages(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            messages(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "eml") {
            found.push(path);
        }
    }
}

/// As a client would send it: CRLF everywhere.
pub(crate) fn crlf(raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len() + raw.len() / 40);
    for line in raw.split_inclusive(|octet| *octet == b'\n') {
        match line {
            [text @ .., b'\r', b'\n'] | [text @ .., b'\n'] => {
                out.extend_from_slice(text);
                out.extend_from_slice(b"\r\n");
            }
            text => out.extend_from_slice(text),
        }
    }
    out
}

pub(super) fn check_invariants(raw: &[u8], read: &Structure, name: &str) {
    for (index, part) in read.parts.iter().enumerate() {
        assert!(part.header_at <= part.body_at && part.body_at <= part.end, "{name}: part {index}");
        assert!(part.end <= raw.len() as u64, "{name}: part {index}");
        if let Some(parent) = part.parent {
            assert!((parent as usize) < index, "{name}: part {index}");
            let parent = &read.parts[parent as usize];
            assert!(parent.body_at <= part.header_at && part.end <= parent.end, "{name}: part {index}");
        }
        let octets = decode_part(raw, read, index as u32);
        assert_eq!(octets.len() as u64, part.size, "{name}: part {index}");
        assert!(!decode_text(raw, read, index as u32).contains('\0'));
    }
    assert!(read.preview.as_ref().is_none_or(|text| text.chars().count() <= 200));
    let text = body_text(raw, read);
    extracted_text(&text);
    headers(raw);
}

#[test]
fn every_message_of_the_corpora_is_read() {
    let Some(folder) = corpora("structure of real mail") else { return };
    let mut all = Vec::new();
    messages(&folder, &mut all);
    assert!(all.len() > 1000, "{} messages", all.len());
    let mut unparsed = Vec::new();
    for path in &all {
        let stored = std::fs::read(path).unwrap();
        for raw in [crlf(&stored), stored] {
            let read = structure(&raw);
            check_invariants(&raw, &read, &path.display().to_string());
            if let Some(why) = &read.unparsed {
                unparsed.push((path.clone(), why.clone()));
            }
        }
    }
    println!("{} messages read, {} unparsed: {unparsed:?}", all.len(), unparsed.len() / 2);
    assert!(unparsed.is_empty());
}

/// The hard rule of the MIME corpus: all leaf parts are reachable.
#[test]
fn the_leaves_that_others_see() {
    let Some(folder) = corpora("leaf parts of the MIME corpus") else { return };
    let manifest = std::fs::read(folder.join("mime/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let (mut same, mut cases) = (0, 0);
    for case in manifest["cases"].as_array().unwrap() {
        let Some(leaves) = case["expected"]["python_email"]["leaf_types"].as_array() else { continue };
        let leaves: Vec<&str> = leaves.iter().filter_map(Value::as_str).collect();
        let file = case["file"].as_str().unwrap();
        let raw = crlf(&std::fs::read(folder.join("mime").join(file)).unwrap());
        let read = structure(&raw);
        let has_child = |index: usize| read.parts.iter().any(|part| part.parent == Some(index as u32));
        let ours: Vec<&str> = read
            .parts
            .iter()
            .enumerate()
            .filter(|(index, _)| !has_child(*index))
            .map(|(_, part)| part.content_type.as_str())
            .collect();
        cases += 1;
        if ours == leaves {
            same += 1;
        } else {
            println!("{file}:\n  ours   {ours:?}\n  python {leaves:?}");
        }
    }
    println!("leaf parts as Python sees them: {same} of {cases}");
    assert!(same * 100 >= cases * 90, "{same} of {cases}");
}

/// Where mail-parser finds a part at the same place, it must decode to the same octets.
#[test]
fn parts_decode_as_mail_parser_decodes_them() {
    let Some(folder) = corpora("decoding compared with mail-parser") else { return };
    let mut all = Vec::new();
    messages(&folder, &mut all);
    let (mut same, mut compared) = (0, 0);
    for path in &all {
        let raw = crlf(&std::fs::read(path).unwrap());
        let read = structure(&raw);
        let Some(theirs) = MessageParser::default().parse(&raw) else { continue };
        for part in &theirs.parts {
            let same_place = |ours: &&Part| {
                ours.body_at == u64::from(part.offset_body) && ours.end == u64::from(part.offset_end)
            };
            let leaf = !part.is_multipart() && part.message().is_none();
            let Some(ours) = read.parts.iter().find(same_place).filter(|_| leaf) else { continue };
            let index = read.parts.iter().position(|p| std::ptr::eq(p, ours)).unwrap() as u32;
            let equal = if part.is_text() {
                decode_text(&raw, &read, index) == part.text_contents().unwrap_or_default()
            } else {
                decode_part(&raw, &read, index) == part.contents()
            };
            compared += 1;
            same += usize::from(equal);
            if !equal {
                println!("{}: part {index} {:?}", path.display(), part.content_type().map(|c| c.ctype()));
            }
        }
    }
    println!("decoded as mail-parser does: {same} of {compared}");
    assert!(compared > 500 && same * 100 >= compared * 97, "{same} of {compared}");
}
