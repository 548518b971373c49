//! The base subject: what stays the same when people answer and forward. RFC 5256 §2.1 in spirit, with the
//! reply prefixes of other languages, since clients that send no References often speak one of them.

/// Reply and forward prefixes, in lower case: English, German, Scandinavian, French, Dutch, Italian, Spanish,
/// Portuguese, Polish, Turkish, Chinese.
const REPLY: [&str; 14] =
    ["re", "aw", "antw", "antwort", "sv", "vs", "réf", "rif", "odp", "ynt", "回复", "答复", "回覆", "res"];
const FORWARD: [&str; 11] = ["fw", "fwd", "wg", "tr", "rv", "enc", "doorst", "vb", "i", "转发", "轉寄"];

/// Subjects longer than this are compared by their beginning.
const MAX_BASE: usize = 300;

/// A subject taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subject {
    /// In lower case, white space folded, without prefixes, `(fwd)` and list tags.
    pub base: String,
    /// Whether it had a reply prefix.
    pub is_reply: bool,
}

pub(crate) fn take_apart(subject: &str) -> Subject {
    let folded = subject.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
    let mut rest = folded.as_str();
    let mut is_reply = false;
    loop {
        rest = rest.trim();
        if let Some(shorter) = rest.strip_suffix("(fwd)") {
            rest = shorter;
        } else if let Some((prefix, after)) = prefix(rest) {
            is_reply |= REPLY.contains(&prefix);
            rest = after;
        } else if let Some(after) = list_tag(rest) {
            rest = after;
        } else {
            break;
        }
    }
    Subject { base: rest.chars().take(MAX_BASE).collect(), is_reply }
}

/// `re:`, `re[2]:`, `aw :`, `回复：`.
fn prefix(text: &str) -> Option<(&str, &str)> {
    let colon = text.find([':', '：'])?;
    let (head, after) = (text.get(..colon)?, text.get(colon..)?);
    let word = head.split(['[', '(', '^']).next()?.trim();
    let counted = head.get(word.len()..)?.trim();
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
        assert!(take_apart("Re: x").is_reply);
        assert!(!take_apart("Fwd: x").is_reply);
        assert!(!take_apart("Result: x").is_reply);
        assert_eq!(take_apart("[only a tag]").base, "[only a tag]");
        assert_eq!(take_apart("Re:").base, "");
        assert_eq!(take_apart("Note: ä:").base, "note: ä:");
    }
}
