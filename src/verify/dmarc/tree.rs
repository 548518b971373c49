//! The tree walk, RFC 9989 §4.10: DMARC records from a domain upwards, one label at a time, and what they
//! say of the organization that the domain belongs to. At most eight questions, whatever the name.

use super::record::{Record, Suffix};
use crate::verify::lookups::{Lookups, NoAnswer};

/// §4.10: names of eight labels and more go on at seven.
const MOST_LABELS: usize = 7;
/// Questions of one walk.
pub(crate) const MOST_QUESTIONS: usize = 8;

/// A walk that has begun.
pub(crate) struct Walk<'d> {
    pub domain: &'d str,
    /// Found so far, the longest name first.
    found: Vec<(&'d str, Record)>,
    /// The name to ask next.
    next: Option<&'d str>,
}

/// How many questions a walk from this domain may cost.
pub(crate) fn cost(domain: &str) -> usize {
    domain.split('.').count().min(MOST_QUESTIONS)
}

impl<'d> Walk<'d> {
    pub fn new(domain: &'d str) -> Walk<'d> {
        Walk { domain, found: Vec::new(), next: Some(domain) }
    }

    /// Asks at the domain itself.
    pub async fn begin(&mut self, lookups: &Lookups<'_>) -> Result<(), NoAnswer> {
        if self.next == Some(self.domain) { self.step(lookups).await } else { Ok(()) }
    }

    /// Asks to the end.
    pub async fn finish(&mut self, lookups: &Lookups<'_>) -> Result<(), NoAnswer> {
        while self.next.is_some() {
            self.step(lookups).await?;
        }
        Ok(())
    }

    async fn step(&mut self, lookups: &Lookups<'_>) -> Result<(), NoAnswer> {
        let Some(name) = self.next else { return Ok(()) };
        let record = at(lookups, name).await?;
        let stop = record.as_ref().is_some_and(|record| record.suffix != Suffix::Unknown);
        self.found.extend(record.map(|record| (name, record)));
        self.next = if stop { None } else { parent(name) };
        Ok(())
    }

    /// The record of the domain itself.
    pub fn own(&self) -> Option<&Record> {
        self.at(self.domain)
    }

    fn at(&self, name: &str) -> Option<&Record> {
        self.found.iter().find(|(found, _)| *found == name).map(|(_, record)| record)
    }

    /// §4.10.2. Only after `finish`.
    pub fn organization(&self) -> &'d str {
        for (name, record) in &self.found {
            match record.suffix {
                Suffix::No => return name,
                Suffix::Yes if *name != self.domain => return one_below(self.domain, name),
                _ => {}
            }
        }
        self.found.last().map_or(self.domain, |(name, _)| name)
    }

    /// §4.10.1: the record that holds for the domain, which is its own, its organization's, or that of the
    /// suffix above. Only after `finish`, unless the domain has its own.
    pub fn policy_record(&self) -> Option<(&'d str, &Record)> {
        if let Some(own) = self.own() {
            return Some((self.domain, own));
        }
        let organization = self.organization();
        let of_organization = self.at(organization).map(|record| (organization, record));
        of_organization.or_else(|| self.found.last().map(|(name, record)| (*name, record)))
    }

    /// The same by what was found so far.
    pub fn seems_to_own(&self, domain: &str) -> bool {
        let below =
            |of: &str| domain.strip_suffix(of).is_some_and(|head| head.is_empty() || head.ends_with('.'));
        below(self.domain) || below(self.organization())
    }

    /// Whether a domain below the organization belongs to it, or stands for itself: no record in between may
    /// say that one of them is a suffix, or an organization of its own.
    pub async fn owns(&self, lookups: &Lookups<'_>, domain: &str) -> Result<bool, NoAnswer> {
        let organization = self.organization();
        if domain == organization {
            return Ok(true);
        }
        if !domain.strip_suffix(organization).is_some_and(|head| head.ends_with('.')) {
            return Ok(false);
        }
        // A suffix is the organization of nobody but itself.
        if self.at(organization).is_some_and(|record| record.suffix == Suffix::Yes) {
            return Ok(false);
        }
        let mut name = Some(domain);
        while let Some(asked) = name.filter(|name| name.len() > organization.len()) {
            let known = self.domain == asked || self.domain.ends_with(&format!(".{asked}"));
            let record = if known { self.at(asked).cloned() } else { at(lookups, asked).await? };
            if record.is_some_and(|record| record.suffix != Suffix::Unknown) {
                return Ok(false);
            }
            name = parent(asked);
        }
        Ok(true)
    }
}

/// The one DMARC record at a name (§4.10 step 2: several are none).
async fn at(lookups: &Lookups<'_>, name: &str) -> Result<Option<Record>, NoAnswer> {
    let records = match lookups.txt(&format!("_dmarc.{name}")).await {
        Ok(records) => records,
        Err(NoAnswer::NotFound | NoAnswer::Empty) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut records = records.iter().filter_map(|text| Record::parse(text));
    let first = records.next();
    Ok(first.filter(|_| records.next().is_none()))
}

/// The next name of a walk: one label less, and never more than seven.
fn parent(name: &str) -> Option<&str> {
    let labels = name.split('.').count();
    let drop = labels.saturating_sub(MOST_LABELS).max(1);
    name.splitn(drop + 1, '.').nth(drop)
}

/// The name that is one label longer than `above`, on the way to `domain`.
fn one_below<'d>(domain: &'d str, above: &str) -> &'d str {
    let head = domain.len().saturating_sub(above.len() + 1);
    let label = domain.get(..head).map_or(0, |head| head.rfind('.').map_or(0, |dot| dot + 1));
    domain.get(label..).unwrap_or(domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_walk() {
        let walk =
            |start: &'static str| std::iter::successors(Some(start), |name| parent(name)).collect::<Vec<_>>();
        assert_eq!(
            walk("a.mail.example.com"),
            ["a.mail.example.com", "mail.example.com", "example.com", "com"]
        );
        let long = walk("1.2.3.4.5.6.7.8.9.example.com");
        assert_eq!(long.len(), MOST_QUESTIONS);
        assert_eq!(long[1], "5.6.7.8.9.example.com");
        assert_eq!(walk("2.3.4.5.6.7.example.com").len(), MOST_QUESTIONS);
        assert_eq!(one_below("a.b.example.co.uk", "co.uk"), "example.co.uk");
        assert_eq!(one_below("example.com", "com"), "example.com");
        assert_eq!(cost("a.b.c.d.e.f.g.h.i.j"), 8);
    }
}
