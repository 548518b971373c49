//! A DMARC policy record, RFC 9989 §4.7 and §4.8. Pure. What is wrong in it falls back to its default; only
//! the version decides whether it is a record at all. `pct`, `rf` and `ri` are gone, and ignored.

use crate::verify::tags::{EmptyTags, Tags};
use crate::verify::verdict::DmarcPolicy;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    policy: DmarcPolicy,
    subdomains: Option<DmarcPolicy>,
    non_existent: Option<DmarcPolicy>,
    pub strict_dkim: Strict,
    pub strict_spf: Strict,
    pub suffix: Suffix,
    /// `t=y`: the owner asks that the policy be not applied.
    pub testing: bool,
    /// `rua` names somebody that a report could be sent to.
    pub reports_wanted: bool,
    /// §4.10.1: one of the policies is not valid, and nobody asks for reports either.
    pub useless: bool,
}

/// Alignment: `s` asks for the same domain, `r` for the same organization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Strict(pub bool);

/// `psd=`: whether the domain is one under which others register theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Suffix {
    Unknown,
    Yes,
    No,
}

impl Record {
    /// `None` for what is no DMARC record.
    pub fn parse(text: &str) -> Option<Record> {
        let tags = lenient(text)?;
        let policy = |name| tags.iter().find(|(n, _)| n == name).map(|(_, value)| read_policy(value));
        let value = |name: &str| tags.iter().find(|(n, _)| n == name).map(|(_, value)| *value);
        let is = |name, wanted: &str| value(name).is_some_and(|value| value.eq_ignore_ascii_case(wanted));
        let stated = [policy("p"), policy("sp"), policy("np")];
        let invalid = stated.contains(&Some(None));
        let reports = value("rua").is_some_and(|list| list.split(',').any(is_report_address));
        let [own, subdomains, non_existent] = stated.map(|stated| stated.flatten().filter(|_| !invalid));
        Some(Record {
            // §4.7: without `p` the record is treated as if it had `p=none`.
            policy: own.unwrap_or(DmarcPolicy::None),
            subdomains,
            non_existent,
            strict_dkim: Strict(is("adkim", "s")),
            strict_spf: Strict(is("aspf", "s")),
            suffix: match value("psd") {
                Some("y" | "Y") => Suffix::Yes,
                Some("n" | "N") => Suffix::No,
                _ => Suffix::Unknown,
            },
            testing: is("t", "y"),
            reports_wanted: reports,
            useless: invalid && !reports,
        })
    }

    /// For the domain that the record stands at.
    pub fn own(&self) -> DmarcPolicy {
        self.policy
    }

    /// For existing domains below it.
    pub fn below(&self) -> DmarcPolicy {
        self.subdomains.unwrap_or(self.policy)
    }

    /// For domains below it that there are not.
    pub fn non_existent(&self) -> DmarcPolicy {
        self.non_existent.unwrap_or(self.below())
    }
}

/// The tags in lower case; the first of two of the same name. The version must come first, and be exact.
fn lenient(text: &str) -> Option<Vec<(String, &str)>> {
    let mut segments = text.split(';');
    let version = Tags::parse(segments.next()?, EmptyTags::Skipped).ok()?;
    if version.get("v").or(version.get("V")) != Some("DMARC1") {
        return None;
    }
    let mut tags: Vec<(String, &str)> = Vec::new();
    for (name, value) in segments.filter_map(|segment| segment.split_once('=')) {
        let name = name.trim().to_ascii_lowercase();
        if !tags.iter().any(|(known, _)| *known == name) {
            tags.push((name, value.trim()));
        }
    }
    Some(tags)
}

fn read_policy(text: &str) -> Option<DmarcPolicy> {
    let is = |word: &str| text.eq_ignore_ascii_case(word);
    [DmarcPolicy::None, DmarcPolicy::Quarantine, DmarcPolicy::Reject].into_iter().find(|p| is(p.as_str()))
}

/// A URI that a report could be sent to.
fn is_report_address(uri: &str) -> bool {
    let uri = uri.trim();
    uri.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("mailto:")) && uri.contains('@')
        || uri.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"))
}
