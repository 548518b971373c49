//! The base subject: what stays the same when people answer and forward. RFC 5256 §2.1 in spirit, with the
//! reply prefixes of other languages, since clients that send no References often speak one of them.

/// Reply prefixes, in lower case: English, German, Scandinavian, Finnish, French, Dutch, Italian, Spanish,
/// Portuguese, Polish, Czech, Hungarian, Turkish, Greek, Lithuanian, Icelandic, Welsh, Malay, Russian,
/// Chinese, Japanese, Korean, Hebrew.
const REPLY: [&str; 30] = [
    "re",
    "aw",
    "antw",
    "antwort",
    "sv",
    "vs",
    "réf",
    "rif",
    "r",
    "odp",
    "ynt",
    "yan",
    "res",
    "vá",
    "ats",
    "atb",
    "bls",
    "απ",
    "σχετ",
    "отв",
    "ответ",
    "回复",
    "答复",
    "回覆",
    "返信",
    "회신",
    "답장",
    "תגובה",
    "השב",
    "رد",
];
/// Forward prefixes of the same.
const FORWARD: [&str; 25] = [
    "fw",
    "fwd",
    "wg",
    "wtr",
    "tr",
    "rv",
    "enc",
    "doorst",
    "vb",
    "vl",
    "vidarebefordrat",
    "i",
    "pd",
    "továbbítás",
    "ilt",
    "i̇lt",
    "πρθ",
    "fs",
    "trs",
    "пересл",
    "转发",
    "轉寄",
    "転送",
    "전달",
    "הועבר",
];

/// Subjects longer than this are compared by their beginning.
const MAX_BASE: usize = 300;
/// Octets of a subject that are looked at: prefixes and as much as is compared. A header line has at most 998
/// (RFC 5322 §2.1.1); what a stranger folds may have megabytes.
const MAX_READ: usize = 1_000;
/// Octets within which a prefix has its colon: the longest word, its counter and white space.
const MAX_PREFIX: usize = 60;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prefix {
    None,
    Reply,
    Forward,
}

/// A subject taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subject {
    /// In lower case, white space folded, without prefixes, `(fwd)` and list tags.
    pub base: String,
    /// What its outermost prefix says; `Fwd: Re: x` forwards an answer.
    pub kind: Prefix,
}

pub(crate) fn take_apart(subject: &str) -> Subject {
    let folded = head(subject, MAX_READ).split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
    let mut rest = folded.as_str();
    let mut kind = Prefix::None;
    loop {
        rest = rest.trim();
        if let Some(shorter) = rest.strip_suffix("(fwd)") {
            rest = shorter;
        } else if let Some((prefix, after)) = prefix(rest) {
            if kind == Prefix::None {
                kind = if REPLY.contains(&prefix) { Prefix::Reply } else { Prefix::Forward };
            }
            rest = after;
        } else if let Some(after) = list_tag(rest) {
            rest = after;
        } else {
            break;
        }
    }
    Subject { base: rest.chars().take(MAX_BASE).collect(), kind }
}

/// Whether the subject is that of an answer already.
pub(crate) fn is_answer(subject: &str) -> bool {
    take_apart(subject).kind == Prefix::Reply
}

/// The first `octets` of a text, without half a character.
fn head(text: &str, octets: usize) -> &str {
    text.get(..text.floor_char_boundary(octets)).unwrap_or(text)
}

/// `re:`, `re[2]:`, `aw :`, `回复：`.
fn prefix(text: &str) -> Option<(&str, &str)> {
    let colon = head(text, MAX_PREFIX).find([':', '：'])?;
    let (before, after) = (text.get(..colon)?, text.get(colon..)?);
    let word = before.split(['[', '(', '^']).next()?.trim();
    let counted = before.get(word.len()..)?.trim();
    let is_counter = counted.is_empty()
        || counted.trim_matches(['[', ']', '(', ')', '^']).bytes().all(|b| b.is_ascii_digit());
    let known = REPLY.contains(&word) || FORWARD.contains(&word);
    (known && is_counter).then(|| (word, after.trim_start_matches([':', '：'])))
}

/// `[list] rest`, unless nothing would be left.
fn list_tag(text: &str) -> Option<&str> {
    let (tag, after) = text.strip_prefix('[')?.split_once(']')?;
    (tag.len() <= 60 && !tag.contains('[') && !after.trim().is_empty()).then_some(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_forwards_have_one_base() {
        for text in [
            "Invoice 7",
            "Re: Invoice 7",
            "AW: RE: [billing] invoice  7",
            "Re[2]: Invoice 7 (fwd)",
            "回复：Invoice 7",
        ] {
            assert_eq!(take_apart(text).base, "invoice 7", "{text}");
        }
        for (text, kind) in [
            ("Re: x", Prefix::Reply),
            ("[list] AW: Fwd: x", Prefix::Reply),
            ("Fwd: x", Prefix::Forward),
            ("WG: Re: x", Prefix::Forward),
            ("Пересл: x", Prefix::Forward),
            ("Result: x", Prefix::None),
        ] {
            assert_eq!(take_apart(text).kind, kind, "{text}");
        }
        assert_eq!(take_apart("[only a tag]").base, "[only a tag]");
        assert_eq!(take_apart("Re:").base, "");
        assert_eq!(take_apart("Note: ä:").base, "note: ä:");
    }

    #[test]
    fn a_subject_of_250_kib_is_read_by_its_beginning() {
        for piece in ["[a]", "Re: ", "Re ", "[", "(fwd)", "ä", "： "] {
            let long = piece.repeat(250 * 1024 / piece.len());
            assert_eq!(take_apart(&long), take_apart(head(&long, MAX_READ)), "{piece}");
        }
        let long = "[a]".repeat(80_000);
        assert_eq!(take_apart(&format!("{long}Re: it")).base, "[", "what stands behind is not read");
    }
}
