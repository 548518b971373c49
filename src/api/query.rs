//! The query string, decoded by hand because of how AgentMail's SDKs write it.
//!
//! A list arrives as ONE parameter holding a JSON array (`labels=["unread", "x y"]`); curl users repeat the
//! parameter or give one plain value. Booleans are `true` and `false`, instants RFC 3339 (Python sends a naive
//! one with `Z`). A parameter that is unknown, given twice or malformed is a 400: a filter that is silently
//! ignored would answer another question than the one that was asked.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use percent_encoding::percent_decode_str;

use super::error::{FieldError, Problem};
use crate::clock::{Millis, parse_rfc3339};
use crate::config::limits;

/// The parameters of a request. Take each by its name, then `finish`.
#[derive(Debug, Default)]
pub(crate) struct Query {
    pairs: Vec<(String, String)>,
    errors: Vec<FieldError>,
}

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Query, Problem> {
        Query::parse(parts.uri.query().unwrap_or_default())
    }
}

impl Query {
    pub(crate) fn parse(raw: &str) -> Result<Query, Problem> {
        let mut query = Query::default();
        for pair in raw.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match (decode(name), decode(value)) {
                (Some(name), Some(value)) => query.pairs.push((name, value)),
                _ => query
                    .errors
                    .push(FieldError::new(&["query"], "is not UTF-8 once its percent signs are resolved")),
            }
            if query.pairs.len() > limits::MAX_QUERY_PARAMETERS {
                return Err(Problem::field(&["query"], "has too many parameters"));
            }
        }
        Ok(query)
    }

    fn take(&mut self, name: &str) -> Vec<String> {
        let (taken, rest) = std::mem::take(&mut self.pairs).into_iter().partition(|(n, _)| n == name);
        self.pairs = rest;
        let taken: Vec<(String, String)> = taken;
        taken.into_iter().map(|(_, value)| value).collect()
    }

    fn wrong(&mut self, name: &str, message: impl Into<String>) {
        self.errors.push(FieldError::new(&["query", name], message));
    }

    /// A value that may be given once.
    pub(crate) fn text(&mut self, name: &str) -> Option<String> {
        let mut values = self.take(name);
        if values.len() > 1 {
            self.wrong(name, "is given more than once");
        }
        let value = values.pop()?;
        if value.len() > limits::MAX_QUERY_VALUE {
            self.wrong(name, format!("is longer than {} octets", limits::MAX_QUERY_VALUE));
            return None;
        }
        Some(value)
    }

    pub(crate) fn integer(&mut self, name: &str) -> Option<i64> {
        let text = self.text(name)?;
        let number = text.parse().ok();
        if number.is_none() {
            self.wrong(name, "takes a whole number");
        }
        number
    }

    pub(crate) fn boolean(&mut self, name: &str) -> Option<bool> {
        match self.text(name)?.as_str() {
            "true" => Some(true),
            "false" => Some(false),
            _ => {
                self.wrong(name, "takes true or false");
                None
            }
        }
    }

    pub(crate) fn flag(&mut self, name: &str) -> bool {
        self.boolean(name).unwrap_or(false)
    }

    pub(crate) fn instant(&mut self, name: &str) -> Option<Millis> {
        let text = self.text(name)?;
        // A `+` that was not encoded is a space by now: `2026-01-01T00:00:00 01:00`.
        let at = parse_rfc3339(&text).or_else(|| parse_rfc3339(&text.replacen(' ', "+", 1)));
        if at.is_none() {
            self.wrong(name, "takes an instant such as 2026-01-31T12:00:00Z");
        }
        at
    }

    /// A list: one JSON array, or the parameter repeated, or one plain value.
    pub(crate) fn list(&mut self, name: &str) -> Vec<String> {
        let mut values = Vec::new();
        for text in self.take(name) {
            // A plain subject may begin with a bracket (`[ticket 7]`); a JSON array of strings begins so.
            if text.starts_with("[\"") || text.trim() == "[]" {
                match serde_json::from_str::<Vec<String>>(&text) {
                    Ok(list) => values.extend(list),
                    Err(_) => self.wrong(name, "begins like a JSON array of strings and is none"),
                }
            } else {
                values.push(text);
            }
        }
        if values.len() > limits::MAX_QUERY_LIST || values.iter().any(|v| v.len() > limits::MAX_QUERY_VALUE) {
            self.wrong(
                name,
                format!(
                    "takes at most {} values of {} octets",
                    limits::MAX_QUERY_LIST,
                    limits::MAX_QUERY_VALUE
                ),
            );
        }
        values
    }

    /// Several of a few words.
    pub(crate) fn words<T: Copy>(&mut self, name: &str, words: &[(&str, T)]) -> Vec<T> {
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let mut found = Vec::new();
        for text in self.list(name) {
            match words.iter().find(|(word, _)| *word == text) {
                Some((_, value)) => found.push(*value),
                None => self.wrong(name, format!("takes {}", known.join(", "))),
            }
        }
        found
    }

    /// One of a few words.
    pub(crate) fn word<T: Copy>(&mut self, name: &str, words: &[(&str, T)]) -> Option<T> {
        let text = self.text(name)?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.wrong(name, format!("takes one of {}", known.join(", ")));
        }
        found
    }

    /// Says what was wrong, unknown parameters included.
    pub(crate) fn finish(mut self) -> Result<(), Problem> {
        for (name, _) in std::mem::take(&mut self.pairs) {
            self.wrong(&name, "is not a parameter of this route");
        }
        if self.errors.is_empty() { Ok(()) } else { Err(Problem::invalid(self.errors)) }
    }
}

/// `application/x-www-form-urlencoded`: `+` is a space.
fn decode(text: &str) -> Option<String> {
    let spaced = text.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8().ok().map(|t| t.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_as_every_client_writes_it() {
        for raw in [
            "labels=%5B%22unread%22%2C+%22x+y%22%5D", // both SDKs
            "labels=unread&labels=x%20y",             // curl
        ] {
            let mut query = Query::parse(raw).unwrap();
            assert_eq!(query.list("labels"), ["unread", "x y"], "{raw}");
            query.finish().unwrap();
        }
        let mut query = Query::parse("subject=%5Bticket+7%5D&labels=%5B%5D&from=a@b").unwrap();
        assert_eq!(query.list("subject"), ["[ticket 7]"]);
        assert!(query.list("labels").is_empty() && query.list("to").is_empty());
        assert_eq!(query.list("from"), ["a@b"]);
    }

    #[test]
    fn instants_of_both_sdks_and_of_a_careless_curl() {
        let at = parse_rfc3339("2026-01-01T00:00:00Z");
        for raw in ["2026-01-01T00:00:00Z", "2026-01-01T00%3A00%3A00.000Z", "2026-01-01T01:00:00+01:00"] {
            assert_eq!(Query::parse(&format!("before={raw}")).unwrap().instant("before"), at, "{raw}");
        }
    }

    #[test]
    fn what_is_malformed_or_unknown_is_refused_by_name() {
        let mut query =
            Query::parse("limit=ten&ascending=yes&before=tomorrow&labels=[\"a&q=1&limit=%ff").unwrap();
        query.integer("limit");
        query.flag("ascending");
        query.instant("before");
        query.list("labels");
        let problem = format!("{:?}", query.finish().unwrap_err());
        for name in ["limit", "ascending", "before", "labels", "\"q\""] {
            assert!(problem.contains(name), "{name} is missing in {problem}");
        }
        let mut twice = Query::parse("limit=1&limit=2").unwrap();
        twice.integer("limit");
        assert!(twice.finish().is_err());
    }
}
