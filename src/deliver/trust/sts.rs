//! MTA-STS: what a policy says, and where it comes from (RFC 8461).
//!
//! `Policy::parse`, `Policy::covers` and `record_id` are pure. `testing` is looked up and recorded like `enforce`
//! and fails nothing.

/// RFC 8461 §3.2: about a year.
const LONGEST_AGE: u64 = 31_557_600;
/// Octets of a host's name.
const LONGEST_NAME: usize = 255;
/// A policy lists the hosts of one domain.
const MOST_HOSTS: usize = 100;
/// Octets of it that are repeated in reports, with each result: a stranger's document may have 64 KiB.
const MOST_SHOWN: usize = 8 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Enforce,
    Testing,
    None,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(crate) mode: Mode,
    /// Lower-case A-labels; `*.` at the start stands for one label.
    pub(crate) mx: Vec<String>,
    /// Seconds.
    pub(crate) max_age: u64,
    /// The lines as they were served, for reports.
    pub(crate) lines: Vec<String>,
}

impl Policy {
    /// RFC 8461 §3.2. Unknown fields are left alone, of a field that is given twice the first counts (`mx` aside).
    pub(crate) fn parse(text: &str) -> Result<Policy, String> {
        let lines: Vec<String> =
            text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect();
        let (mut version, mut mode, mut max_age, mut mx) = (None, None, None, Vec::new());
        for line in &lines {
            let (name, value) = line.split_once(':').ok_or_else(|| format!("no field: {line:.80}"))?;
            let value = value.trim();
            match name.trim() {
                "version" => _ = version.get_or_insert(value),
                "mode" => _ = mode.get_or_insert(value),
                "max_age" => _ = max_age.get_or_insert(value),
                "mx" if mx.len() < MOST_HOSTS && value.len() <= LONGEST_NAME => mx.push(a_labels(value)),
                _ => {}
            }
        }
        if version != Some("STSv1") {
            return Err("the version is not STSv1".into());
        }
        let mode = match mode {
            Some("enforce") => Mode::Enforce,
            Some("testing") => Mode::Testing,
            Some("none") => Mode::None,
            other => return Err(format!("no such mode: {:.80}", other.unwrap_or("(none)"))),
        };
        let max_age: u64 = max_age.and_then(|age| age.parse().ok()).ok_or("no max_age")?;
        if mx.is_empty() && mode != Mode::None {
            return Err("no mx".into());
        }
        let mut octets = 0;
        let shown = |line: &String| {
            octets += line.len();
            octets <= MOST_SHOWN
        };
        let lines = lines.iter().cloned().take_while(shown).collect();
        Ok(Policy { mode, mx, max_age: max_age.min(LONGEST_AGE), lines })
    }

    /// Whether the policy names this host, RFC 8461 §4.1.
    pub(crate) fn covers(&self, host: &str) -> bool {
        let host = a_labels(host);
        self.mx.iter().any(|pattern| match pattern.strip_prefix("*.") {
            // RFC 8461 §4.1: the wildcard is the left-most label, and exactly one.
            Some(parent) => {
                host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == parent)
            }
            None => *pattern == host,
        })
    }
}

fn a_labels(name: &str) -> String {
    let name = name.strip_suffix('.').unwrap_or(name);
    let (star, rest) = match name.strip_prefix("*.") {
        Some(rest) => ("*.", rest),
        None => ("", name),
    };
    let rest = idna::domain_to_ascii(rest).unwrap_or_else(|_| rest.to_ascii_lowercase());
    format!("{star}{rest}")
}

/// The id of the one valid record among `_mta-sts` TXT records, RFC 8461 §3.1: several are as good as none.
pub(crate) fn record_id(records: &[String]) -> Option<&str> {
    let version = |record: &&String| {
        record.split(';').next().is_some_and(|first| first.trim_end() == "v=STSv1") && record.contains(';')
    };
    let mut ours = records.iter().filter(version);
    let (Some(record), None) = (ours.next(), ours.next()) else { return None };
    let id = record.split(';').skip(1).find_map(|field| {
        let (name, value) = field.split_once('=')?;
        (name.trim() == "id").then(|| value.trim())
    })?;
    ((1..=32).contains(&id.len()) && id.bytes().all(|octet| octet.is_ascii_alphanumeric())).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENFORCE: &str = "version: STSv1\r\nmode: enforce\r\nmx: mx.remote.example\r\nmx: *.bücher.example\r\nmax_age: 604800\r\n";

    #[test]
    fn a_wildcard_stands_for_one_label_and_names_compare_in_a_labels() {
        let policy = Policy::parse(ENFORCE).unwrap();
        assert_eq!((policy.mode, policy.max_age), (Mode::Enforce, 604_800));
        for host in ["mx.remote.example", "MX.remote.example", "a.xn--bcher-kva.example", "a.bücher.example"]
        {
            assert!(policy.covers(host), "{host}");
        }
        for host in ["remote.example", "a.mx.remote.example", "a.b.bücher.example", "bücher.example", ""] {
            assert!(!policy.covers(host), "{host}");
        }
    }

    #[test]
    fn what_is_no_policy() {
        for text in [
            "",
            "mode: enforce\nmx: a.example\nmax_age: 1",
            "version: STSv2\nmode: enforce\nmx: a.example\nmax_age: 1",
            "version: STSv1\nmode: strict\nmx: a.example\nmax_age: 1",
            "version: STSv1\nmode: enforce\nmax_age: 1",
            "version: STSv1\nmode: enforce\nmx: a.example\nmax_age: soon",
            "<html>",
        ] {
            assert!(Policy::parse(text).is_err(), "{text}");
        }
        assert_eq!(Policy::parse("version: STSv1\nmode: none\nmax_age: 1").unwrap().mode, Mode::None);
    }

    #[test]
    fn a_stranger_decides_not_how_much_is_kept() {
        let policy = Policy::parse(&format!("{ENFORCE}{}", "x: y\r\n".repeat(12_000))).unwrap();
        assert!(policy.covers("mx.remote.example"));
        assert!(policy.lines.iter().map(String::len).sum::<usize>() <= MOST_SHOWN, "{}", policy.lines.len());
    }

    #[test]
    fn two_records_are_as_good_as_none() {
        let records = |list: &[&str]| list.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>();
        assert_eq!(record_id(&records(&["v=spf1 -all", "v=STSv1; id=20260101T0;"])), Some("20260101T0"));
        for bad in [
            &["v=STSv1; id=1;", "v=STSv1; id=2;"][..],
            &["v=STSv1; id=a-b"],
            &["v=STSv10; id=1"],
            &["v=STSv1"],
        ] {
            assert_eq!(record_id(&records(bad)), None, "{bad:?}");
        }
    }
}
