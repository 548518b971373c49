//! Delivery status: fields in groups, the first about the message, each further one about a recipient.
//!
//! Read as widely as it is written: several status parts, fields in the prose of systems that forgot their MIME
//! boundary, groups without `Action`, `Status` with a comment, addresses with routes, in brackets or in UTF-8.
//!
//! RFC 3464 §2, RFC 6533 §3 (the utf-8 address type), RFC 3461 §4.2 (xtext is undone before).

use super::notice::Notice;
use super::reason::{self, Said};
use super::{BounceKind, BouncedRecipient, MAX_RECIPIENTS, MAX_SEARCHED_FOR, address};

pub(super) fn recipients(notice: &Notice) -> Vec<BouncedRecipient> {
    let mut found = groups(&notice.status, notice);
    if found.is_empty() && has_fields(&notice.prose) {
        found = groups(&notice.prose, notice);
    }
    found
}

fn has_fields(text: &str) -> bool {
    text.lines().any(|line| {
        let line = line.as_bytes();
        [&b"final-recipient:"[..], b"original-recipient:"]
            .iter()
            .any(|name| line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name)))
    })
}

fn groups(text: &str, notice: &Notice) -> Vec<BouncedRecipient> {
    let unfolded = unfolded(text);
    let mut groups: Vec<Group> = Vec::new();
    for paragraph in unfolded.split("\n\n") {
        let group = Group::read(paragraph);
        // RFC 3464 §2.1 wants an empty line between recipients; some leave it out, others put one too many.
        groups.extend(group);
        if groups.len() > MAX_RECIPIENTS {
            break;
        }
    }
    let mut merged: Vec<Group> = Vec::new();
    for group in groups {
        match merged.last_mut() {
            Some(last) if last.is_half() && group.continues(last) => last.absorb(group),
            _ => merged.push(group),
        }
    }
    merged.retain(Group::is_about_somebody);
    merged.truncate(MAX_RECIPIENTS);
    let together = merged.len();
    merged.into_iter().map(|group| group.recipient(notice, together)).collect()
}

#[derive(Default)]
struct Group {
    last: Option<String>,
    original: Option<String>,
    named: bool,
    action: Option<String>,
    status: Option<String>,
    /// The type and the words of Diagnostic-Code.
    diagnostic: Option<(String, String)>,
    /// What stands behind the code in `Status`.
    comment: String,
}

impl Group {
    fn read(paragraph: &str) -> Option<Group> {
        let mut group = Group::default();
        for (name, value) in named(paragraph) {
            match name.as_str() {
                "final-recipient" => {
                    group.named = true;
                    group.last = group.last.take().or_else(|| address(value));
                }
                "original-recipient" => {
                    group.named = true;
                    group.original = group.original.take().or_else(|| address(value));
                }
                "action" => {
                    let word = value.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
                    group.action = Some(word.to_ascii_lowercase());
                }
                "status" => {
                    group.status = reason::status_in(value);
                    let comment = value.split_once('(').map_or("", |(_, comment)| comment);
                    group.comment = comment.trim_end_matches(')').to_owned();
                }
                "x-powermta-bouncecategory" => {
                    group.comment.push_str(" bouncecategory ");
                    group.comment.push_str(value);
                }
                "diagnostic-code" => {
                    let (kind, words) = value.split_once(';').unwrap_or(("", value));
                    // A few leave the type out, and their words have a semicolon.
                    let typed = kind.trim().len() <= 24 && !kind.trim().contains(char::is_whitespace);
                    let (kind, words) = if typed { (kind, words) } else { ("", value) };
                    group.diagnostic = Some((kind.trim().to_ascii_lowercase(), words.trim().to_owned()));
                }
                _ => {}
            }
        }
        let something = group.named || group.action.is_some() || group.status.is_some();
        (something || group.diagnostic.is_some()).then_some(group)
    }

    /// Not all of a recipient.
    fn is_half(&self) -> bool {
        !(self.named && (self.action.is_some() || self.status.is_some()))
    }

    fn continues(&self, before: &Group) -> bool {
        !(self.named && before.named || self.action.is_some() && before.action.is_some())
    }

    fn absorb(&mut self, other: Group) {
        self.last = self.last.take().or(other.last);
        self.original = self.original.take().or(other.original);
        self.named |= other.named;
        self.action = self.action.take().or(other.action);
        self.status = self.status.take().or(other.status);
        self.diagnostic = self.diagnostic.take().or(other.diagnostic);
        self.comment.push_str(&other.comment);
    }

    fn is_about_somebody(&self) -> bool {
        let said = self.status.is_some() || self.diagnostic.is_some();
        self.action.is_some() || self.named && said
    }

    fn recipient(self, notice: &Notice, together: usize) -> BouncedRecipient {
        let (kind_of_words, words) = self.diagnostic.unwrap_or_default();
        let words = if words.is_empty() { self.comment.clone() } else { words };
        // RFC 3464 §2.3.3.
        let kind = match (self.action.as_deref(), self.status.as_deref()) {
            (Some("delayed"), _) => BounceKind::Delay,
            (Some("delivered" | "relayed" | "expanded" | "deliverable"), _) => BounceKind::Delivered,
            (None, Some(status)) if status.starts_with('2') => BounceKind::Delivered,
            _ => BounceKind::Failure,
        };
        let named = [self.last.as_deref(), self.original.as_deref()];
        let mut beside = match together {
            1 => notice.prose.clone(),
            2..=MAX_SEARCHED_FOR => super::prose::about(&notice.prose, &named),
            _ => String::new(),
        };
        beside.push_str(&self.comment);
        let said = Said { kind, status: self.status, words: &words, beside: &beside, by: &kind_of_words };
        let verdict = reason::weigh(said);
        let fallback = (together == 1 && self.last.is_none() && self.original.is_none())
            .then(|| super::prose::somebody(notice))
            .flatten();
        verdict.recipient(kind, self.last.or(fallback), self.original, &words, &beside)
    }
}

/// `Name: value` in each line that has one; the name in lower case.
pub(super) fn named(unfolded: &str) -> impl Iterator<Item = (String, &str)> {
    unfolded.lines().filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        let name = name.trim();
        let fits = !name.is_empty() && name.len() <= 40 && !name.contains(char::is_whitespace);
        fits.then(|| (name.to_ascii_lowercase(), value.trim()))
    })
}

/// Lines with their continuations, ended by LF.
pub(super) fn unfolded(text: &str) -> String {
    text.replace("\r\n", "\n").replace("\n ", " ").replace("\n\t", " ")
}

/// RFC 6533 §3: `\x{E9}` in an address that has to be ASCII.
pub(super) fn utf8_address(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\\x{") {
        out.push_str(before);
        // Six digits at most: looking further for the bracket would be quadratic in a text that has none.
        let bracket = after.bytes().take(7).position(|octet| octet == b'}');
        let decoded = bracket.and_then(|bracket| {
            let (digits, after) = (after.get(..bracket)?, after.get(bracket + 1..)?);
            Some((char::from_u32(u32::from_str_radix(digits, 16).ok()?)?, after))
        });
        match decoded {
            Some((c, after)) => {
                out.push(c);
                rest = after;
            }
            None => {
                out.push_str("\\x{");
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}
