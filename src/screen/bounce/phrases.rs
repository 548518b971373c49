//! What mail systems say when they do not deliver, by what they mean by it.
//!
//! The table is `phrases.txt`, built in, and searched for all at once.

use std::collections::HashMap;
use std::sync::LazyLock;

use aho_corasick::AhoCorasick;

use super::reason::Reason;

/// Octets of one text that are searched.
const MAX_SEARCHED: usize = 16 * 1024;

/// Which reasons a text speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Found {
    reasons: u64,
    surely_unknown: bool,
}

impl Found {
    pub fn has(self, reason: Reason) -> bool {
        self.reasons & bit(reason) != 0
    }

    /// The words can only mean that the address does not exist.
    pub fn surely_unknown(self) -> bool {
        self.surely_unknown
    }

    pub fn and(self, other: Found) -> Found {
        Found {
            reasons: self.reasons | other.reasons,
            surely_unknown: self.surely_unknown || other.surely_unknown,
        }
    }
}

fn bit(reason: Reason) -> u64 {
    1 << (reason as u64)
}

/// Lower case, white space folded, codes that a long reply repeats on each line taken out.
pub(super) fn squeezed(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(MAX_SEARCHED));
    let mut codes: Vec<String> = Vec::new();
    let mut last_was_code = false;
    let text = text.get(..text.floor_char_boundary(2 * MAX_SEARCHED)).unwrap_or_default();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        let word = word.to_lowercase().replace(['\u{2019}', '\u{2018}', '`', '\u{b4}'], "'");
        let code = is_code(&word);
        // The first code of a sentence stays; those that come back in the middle of it go.
        if code && codes.contains(&word) && !last_was_code {
            continue;
        }
        if code && codes.len() < 16 && !codes.contains(&word) {
            let whole = word.replace('-', " ");
            codes.extend(whole.split(' ').map(str::to_owned));
            codes.push(word.clone());
        }
        last_was_code = false;
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(&word);
        if out.len() > MAX_SEARCHED {
            break;
        }
    }
    out.truncate(out.floor_char_boundary(MAX_SEARCHED));
    out
}

/// `550`, `5.1.1`, `550-5.1.1`.
fn is_code(word: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let reply = |text: &str| text.len() == 3 && digits(text) && text.starts_with(['2', '4', '5']);
    let status = |text: &str| {
        text.starts_with(['2', '4', '5']) && text.split('.').count() == 3 && text.split('.').all(digits)
    };
    match word.split_once('-') {
        Some((code, rest)) => reply(code) && status(rest),
        None => reply(word) || status(word),
    }
}

struct Table {
    searcher: Option<AhoCorasick>,
    /// Each phrase: the atoms that have to come one after the other.
    phrases: Vec<(Meaning, Vec<usize>)>,
}

#[derive(Debug, Clone, Copy)]
enum Meaning {
    SurelyUnknown,
    Means(Reason),
}

/// The phrases with what each means; a heading that names no reason is left out (a test says which).
fn listed() -> impl Iterator<Item = (Option<Meaning>, String)> {
    let mut meaning = None;
    TEXT.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).filter_map(move |line| {
        let Some(heading) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) else {
            return Some((meaning, line.replace("\\s", " ")));
        };
        meaning = match heading {
            "unknown address" => Some(Meaning::SurelyUnknown),
            name => Reason::parse(name).map(Meaning::Means),
        };
        None
    })
}

const TEXT: &str = include_str!("phrases.txt");

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let mut atoms: Vec<String> = Vec::new();
    let mut known: HashMap<String, usize> = HashMap::new();
    let mut phrases = Vec::new();
    for (meaning, phrase) in listed() {
        let Some(meaning) = meaning else { continue };
        let parts = phrase.split('*').map(|part| {
            *known.entry(part.to_owned()).or_insert_with(|| {
                atoms.push(part.to_owned());
                atoms.len() - 1
            })
        });
        phrases.push((meaning, parts.collect()));
    }
    Table { searcher: AhoCorasick::new(&atoms).ok(), phrases }
});

/// What a squeezed text speaks of.
pub(super) fn find(text: &str) -> Found {
    let Some(searcher) = &TABLE.searcher else { return Found::default() };
    // First and last place of each atom: whether one comes after another is all that is asked.
    let mut places: HashMap<usize, (usize, usize)> = HashMap::new();
    for hit in searcher.find_overlapping_iter(text) {
        let place = places.entry(hit.pattern().as_usize()).or_insert((hit.end(), hit.start()));
        place.1 = hit.start();
    }
    let mut found = Found::default();
    if places.is_empty() {
        return found;
    }
    for (meaning, parts) in &TABLE.phrases {
        let mut at = 0;
        let told = parts.iter().all(|part| {
            let Some((first_end, last_start)) = places.get(part) else { return false };
            let fits = *last_start >= at;
            at = at.max(*first_end);
            fits
        });
        match meaning {
            _ if !told => {}
            Meaning::SurelyUnknown => found.surely_unknown = true,
            Meaning::Means(reason) => found.reasons |= bit(*reason),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phrase_can_be_found() {
        let all: Vec<_> = listed().collect();
        assert!(all.len() > 900, "{} phrases", all.len());
        for (meaning, phrase) in all {
            let meaning =
                meaning.unwrap_or_else(|| panic!("{phrase:?} stands under a heading that is no reason"));
            assert!(phrase.replace('*', "").trim().len() > 3, "{phrase:?} is found in anything");
            let text = squeezed(&format!("x {} x", phrase.replace('*', " y ")));
            let found = find(&text);
            let told = match meaning {
                Meaning::SurelyUnknown => found.surely_unknown(),
                Meaning::Means(reason) => found.has(reason),
            };
            assert!(told, "{phrase:?} is not found in {text:?}");
        }
    }
}
