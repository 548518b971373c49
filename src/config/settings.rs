//! Settings before they mean anything: every key with its text and the place that it stands in.
//!
//! The file, the environment and the flags of a command are laid over each other here, the later ones
//! winning; `Config` then takes each key once, with its parser and its default. What nobody took is an
//! unknown key. Problems are collected, not thrown, so that one run names all of them, each with file,
//! line and key.
//!
//! `GATEPOST_SMTP__LISTEN` is `smtp.listen`. A name without `__` that is no key of ours is left alone:
//! container platforms set such variables on their own (`GATEPOST_PORT`, `GATEPOST_SERVICE_HOST`).

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

/// Where a setting was written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    File {
        path: PathBuf,
        line: usize,
    },
    Environment(String),
    Flag(&'static str),
    /// A value of `gatepost dev`, which has no file.
    BuiltIn,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Environment(name) => write!(f, "environment variable {name}"),
            Origin::Flag(name) => write!(f, "{name}"),
            Origin::BuiltIn => write!(f, "built-in value"),
        }
    }
}

/// One thing that is wrong, in words for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `gatepost.toml:12`, `environment variable GATEPOST_HOSTNAME`, or the file alone for what is missing.
    pub place: String,
    pub key: String,
    pub words: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.place, self.key, self.words)
    }
}

/// A value as written. Numbers keep their digits, so that an error can quote them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Text(String),
    Number(String),
    Boolean(bool),
    List(Vec<Value>),
    /// In a list of tables; the keys as they stand.
    Table(Vec<(String, Value)>),
    /// A date: no key of ours takes one.
    Other(&'static str),
}

impl Value {
    /// The value as one text; `Err` says what stands there instead.
    pub(crate) fn text(&self) -> Result<&str, String> {
        match self {
            Value::Text(text) | Value::Number(text) => Ok(text),
            Value::Boolean(_) => Err("is true or false here, but takes a text in quotes".into()),
            Value::List(_) => Err("is a list here, but takes one value".into()),
            Value::Table(_) => Err("is a table here, but takes a text in quotes".into()),
            Value::Other(what) => Err(format!("is {what} here, but takes a text in quotes")),
        }
    }

    /// A string stands for itself or, with commas, for a list: `"a"`, `"a, b"` and `["a", "b"]`.
    pub(crate) fn list(&self) -> Result<Vec<String>, String> {
        match self {
            Value::List(items) => items.iter().map(|item| item.text().map(str::to_owned)).collect(),
            other => {
                let parts = other.text()?.split(',').map(|part| part.trim().to_owned());
                Ok(parts.filter(|part| !part.is_empty()).collect())
            }
        }
    }
}

struct Setting {
    value: Value,
    origin: Origin,
}

/// Everything that was set, and what was found wrong so far.
pub(crate) struct Settings {
    /// What a problem without a line is blamed on: the file, or the command.
    source: String,
    set: BTreeMap<String, Setting>,
    taken: Vec<&'static str>,
    problems: Vec<Problem>,
}

impl Settings {
    /// Settings of a command that has no file.
    pub(crate) fn built_in(source: &str) -> Settings {
        Settings { source: source.to_owned(), set: BTreeMap::new(), taken: vec![], problems: vec![] }
    }

    pub(crate) fn from_file(path: &Path, text: &str) -> Settings {
        let mut settings = Settings::built_in(&path.display().to_string());
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let at = error.span().map_or(0, |span| span.start);
            settings.problems.push(Problem {
                place: format!("{}:{}", path.display(), line_of(text, at)),
                key: key_on_line(text, at),
                words: error.message().trim().replace('\n', ", "),
            });
        }
        let place = |at: usize| Origin::File { path: path.to_owned(), line: line_of(text, at) };
        if settings.problems.is_empty() {
            settings.add_table("", table.get_ref(), &place);
        }
        settings
    }

    fn add_table(&mut self, prefix: &str, table: &DeTable<'_>, place: &dyn Fn(usize) -> Origin) {
        for (key, value) in table {
            let name = format!("{prefix}{}", key.get_ref());
            match value.get_ref() {
                DeValue::Table(inner) => self.add_table(&format!("{name}."), inner, place),
                other => self.set(&name, value_of(other), place(key.span().start)),
            }
        }
    }

    pub(crate) fn set(&mut self, key: &str, value: Value, origin: Origin) {
        self.set.insert(key.to_owned(), Setting { value, origin });
    }

    pub(crate) fn set_text(&mut self, key: &str, text: impl Into<String>, origin: Origin) {
        self.set(key, Value::Text(text.into()), origin);
    }

    /// Lays `GATEPOST_…` variables over what is there.
    pub(crate) fn add_environment(&mut self, variables: impl Iterator<Item = (String, String)>) {
        for (name, value) in variables {
            let Some(rest) = name.strip_prefix("GATEPOST_") else { continue };
            if rest.contains("__") || TOP_LEVEL.contains(&rest) {
                let key = rest.to_lowercase().replace("__", ".");
                self.set_text(&key, value, Origin::Environment(name));
            }
        }
    }

    /// The value of a key, or its default where it is not set or (with a problem noted) not valid.
    pub(crate) fn take<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&Value) -> Result<T, String>,
        default: impl FnOnce() -> T,
    ) -> T {
        self.take_set(key, parse).unwrap_or_else(default)
    }

    /// The value of a key that has no default.
    pub(crate) fn require<T: Default>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&Value) -> Result<T, String>,
        why: &str,
    ) -> T {
        let missing = !self.set.contains_key(key);
        if missing {
            self.taken.push(key);
            let name = environment_name(key);
            let words = format!("is missing: {why} (or set {name})");
            self.problems.push(Problem { place: self.source.clone(), key: key.to_owned(), words });
            return T::default();
        }
        self.take_set(key, parse).unwrap_or_default()
    }

    fn take_set<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Option<T> {
        self.taken.push(key);
        let setting = self.set.get(key)?;
        match parse(&setting.value) {
            Ok(value) => Some(value),
            Err(words) => {
                self.problem(key, words);
                None
            }
        }
    }

    /// Notes that a key has an impossible value; `words` follow its name.
    pub(crate) fn problem(&mut self, key: &str, words: impl Into<String>) {
        let place = self.set.get(key).map_or_else(|| self.source.clone(), |s| s.origin.to_string());
        self.problems.push(Problem { place, key: key.to_owned(), words: words.into() });
    }

    pub(crate) fn problems(&self) -> &[Problem] {
        &self.problems
    }

    pub(crate) fn is_set(&self, key: &str) -> bool {
        self.set.contains_key(key)
    }

    /// Every key that was asked for, in that order.
    pub(crate) fn taken(&self) -> &[&'static str] {
        &self.taken
    }

    /// The problems, with what nobody took added as unknown. Sorted as a reader meets them.
    pub(crate) fn finish(self) -> Vec<Problem> {
        let mut problems = self.problems;
        for (key, setting) in &self.set {
            if self.taken.contains(&key.as_str()) {
                continue;
            }
            let section = format!("{key}.");
            let words = if self.taken.iter().any(|known| known.starts_with(&section)) {
                format!("is a section: write [{key}] with keys below it")
            } else {
                match nearest(key, &self.taken) {
                    Some(near) => format!("is not a known key; did you mean {near}?"),
                    None => "is not a known key; config/gatepost.toml shows them all".to_owned(),
                }
            };
            problems.push(Problem { place: setting.origin.to_string(), key: key.clone(), words });
        }
        problems.sort_by_key(|p| (line_in(&p.place), p.key.clone()));
        problems
    }
}

/// Keys outside any section, as the environment spells them.
const TOP_LEVEL: [&str; 3] = ["HOSTNAME", "DOMAINS", "DATA_DIR"];

/// `smtp.listen` is `GATEPOST_SMTP__LISTEN`.
pub(crate) fn environment_name(key: &str) -> String {
    format!("GATEPOST_{}", key.to_uppercase().replace('.', "__"))
}

fn value_of(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => Value::Number(number.as_str().to_owned()),
        DeValue::Float(number) => Value::Number(number.as_str().to_owned()),
        DeValue::Boolean(yes) => Value::Boolean(*yes),
        DeValue::Array(items) => Value::List(items.iter().map(|item| value_of(item.get_ref())).collect()),
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Table(table) => Value::Table(
            table.iter().map(|(key, value)| (key.get_ref().to_string(), value_of(value.get_ref()))).collect(),
        ),
    }
}

fn line_of(text: &str, at: usize) -> usize {
    let before = text.as_bytes().get(..at).unwrap_or(text.as_bytes());
    before.iter().filter(|b| **b == b'\n').count() + 1
}

/// The line number at the end of `file:12`; what has none comes last.
fn line_in(place: &str) -> usize {
    place.rsplit_once(':').and_then(|(_, line)| line.parse().ok()).unwrap_or(usize::MAX)
}

/// What a broken line seems to set, with the section above it: `smtp.listen`.
fn key_on_line(text: &str, at: usize) -> String {
    let line = line_of(text, at);
    let lines: Vec<&str> = text.lines().take(line).map(str::trim).collect();
    let here = lines.last().copied().unwrap_or_default();
    let key = here.split(['=', ' ']).next().unwrap_or_default().trim_matches(['"', '\'']);
    let section = lines.iter().rev().skip(1).find_map(|l| l.strip_prefix('[')).unwrap_or_default();
    let section = section.split(']').next().unwrap_or_default().trim();
    match (section, key) {
        (_, "") => "TOML".to_owned(),
        (_, key) if key.starts_with('[') => key.trim_matches(['[', ']']).to_owned(),
        ("", key) => key.to_owned(),
        (section, key) => format!("{section}.{key}"),
    }
}

/// The known key that was probably meant: a few letters away, or the same name in another section.
fn nearest(key: &str, known: &[&'static str]) -> Option<&'static str> {
    let close = known.iter().map(|k| (distance(key, k), *k)).min()?;
    if close.0 <= (key.len() / 4).max(2) {
        return Some(close.1);
    }
    let last = |k: &str| k.rsplit('.').next().unwrap_or_default().to_owned();
    let mut same_name = known.iter().filter(|k| last(k) == last(key));
    let only = same_name.next().copied();
    only.filter(|_| same_name.next().is_none())
}

/// Levenshtein: how many letters must be inserted, dropped or changed.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        for ((cb, diagonal), above) in b.iter().zip(&row).zip(row.iter().skip(1)) {
            let left = next.last().copied().unwrap_or_default();
            next.push((diagonal + usize::from(ca != *cb)).min(above + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}
