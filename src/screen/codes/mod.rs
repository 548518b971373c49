//! Verification codes and links, for an agent in a sign-up flow: so that it need not guess, nor read a page.
//!
//! Found by their shape and by the words around them, in many languages. Precision comes first: a number that
//! nothing announces is none. Bounded: the first `TEXT_HEAD` octets of the text, `PAGE_HEAD` of the page and
//! `SUBJECT_HEAD` of the subject are looked at, and one pass over them tells most mail that it has none.
//!
//! What is found is what the message claims: before a link is followed, `link_domain_matches_sender` and the
//! message's `verified_sender` say whom it would be followed for.

mod cues;
mod find;
mod links;

use serde::{Deserialize, Serialize};

use links::same_organisation;

/// Octets of text and of HTML looked at. Sign-up mail says it in the first few; its pages begin with styles.
pub(super) const TEXT_HEAD: usize = 64 * 1024;
pub(super) const PAGE_HEAD: usize = 128 * 1024;
/// Octets of the subject: two lines (RFC 5322 §2.1.1), more than anybody is shown.
pub(super) const SUBJECT_HEAD: usize = 2 * 1024;
/// Codes and links kept of one message.
const MAX_CODES: usize = 5;

/// A code to type in, or a link to follow, that the message holds for its reader.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = VerificationCode)]
pub struct Code {
    pub kind: CodeKind,
    /// The code without the separators it was printed with (`719-839` is `719839`), or the link.
    pub value: String,
    /// 0 to 1: how sure we are that it is what the reader is to use. Below 0.5 nothing is given.
    pub confidence: f64,
    /// Where it stands; absent where it stands nowhere as it is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub span: Option<Span>,
    /// Of a link, and of a code that names its domain: whether that is the organisational domain (by the
    /// public suffix list) of the one From address, which is the one that `verified_sender` vouches for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub link_domain_matches_sender: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CodeKind {
    Code,
    Link,
}

/// Octets of the UTF-8 of one of the message's fields as the API serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = CodeSpan)]
pub struct Span {
    #[serde(rename = "in")]
    pub place: CodePlace,
    pub start: u64,
    /// One past the last.
    pub end: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CodePlace {
    Text,
    Html,
    Subject,
}

/// What is looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Texts<'a> {
    pub subject: &'a str,
    /// The beginning of the text as the API serves it.
    pub text: &'a str,
    /// The beginning of the HTML part, and whether the text was made from it.
    pub page: Option<&'a str>,
    pub is_page: bool,
    /// The domain of the one From address.
    pub sender: Option<&'a str>,
}

/// The codes and links of a message, the surest first.
pub(super) fn codes(texts: Texts<'_>) -> Vec<Code> {
    let scans = Scans {
        subject: cues::scan(texts.subject),
        text: cues::scan(texts.text),
        page: texts.page.map(cues::scan).unwrap_or_default(),
    };
    let mut found = numbers(texts, &scans);
    found.truncate(MAX_CODES - 1);
    let matches = |host: &Option<String>| {
        Some(
            texts
                .sender
                .is_some_and(|sender| host.as_deref().is_some_and(|host| same_organisation(host, sender))),
        )
    };
    let link = |place| {
        move |link: links::FoundLink| Code {
            kind: CodeKind::Link,
            link_domain_matches_sender: matches(&link.host),
            span: Some(Span { place, start: link.start as u64, end: link.end as u64 }),
            value: link.value,
            confidence: link.confidence,
        }
    };
    let in_page = texts.page.filter(|_| scans.page.link).map(links::in_page);
    let in_text = if scans.text.link { links::in_text(texts.text) } else { Vec::new() };
    let all = in_text.into_iter().map(link(CodePlace::Text));
    let mut followed: Vec<Code> =
        all.chain(in_page.unwrap_or_default().into_iter().map(link(CodePlace::Html))).collect();
    followed.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
    let best = followed.first().map_or(0.0, |best| best.confidence);
    let mut kept: Vec<Code> = Vec::new();
    for one in followed {
        if one.confidence + 0.2 >= best && kept.iter().all(|known| known.value != one.value) {
            kept.push(one);
        }
    }
    found.extend(kept);
    found.truncate(MAX_CODES);
    found.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
    found
}

/// What one pass over each found.
struct Scans {
    subject: cues::Scan,
    text: cues::Scan,
    page: cues::Scan,
}

/// Codes of the text; of the page where the text has none; of the subject.
fn numbers(texts: Texts<'_>, scans: &Scans) -> Vec<Code> {
    let announced = !scans.subject.cues.is_empty();
    let code = |place: CodePlace| {
        move |found: find::Found| Code {
            kind: CodeKind::Code,
            link_domain_matches_sender: found
                .domain
                .as_deref()
                .map(|domain| texts.sender.is_some_and(|sender| same_organisation(domain, sender))),
            span: Some(Span { place, start: found.start as u64, end: found.end as u64 }),
            value: found.value,
            confidence: found.confidence,
        }
    };
    let mut all: Vec<Code> =
        find::find(texts.text, &scans.text.cues, announced).into_iter().map(code(CodePlace::Text)).collect();
    if all.is_empty()
        && let Some(page) =
            texts.page.filter(|_| !texts.is_page && (announced || !scans.page.cues.is_empty()))
    {
        let shown = super::html_to_text(page);
        let found = find::find(&shown, &cues::scan(&shown).cues, announced);
        all = found.into_iter().map(code(CodePlace::Html)).collect();
        for one in &mut all {
            // The page may print it in pieces.
            let at = page.find(&one.value);
            one.span = at.map(|at| Span {
                place: CodePlace::Html,
                start: at as u64,
                end: (at + one.value.len()) as u64,
            });
        }
    }
    for one in find::find(texts.subject, &scans.subject.cues, false).into_iter().map(code(CodePlace::Subject))
    {
        match all.iter_mut().find(|known| known.value == one.value) {
            Some(known) => known.confidence = known.confidence.max(one.confidence),
            None => all.push(one),
        }
    }
    all.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
    all
}

#[cfg(test)]
mod tests;
