//! Pages: `limit`, `page_token`, `ascending` in; `count`, `limit`, `next_page_token` out.
//!
//! A token is where the page before ended, (time, key) of its last row, so that a page stays where it is while
//! mail arrives and costs the same however deep it lies. It is opaque and checked: what we did not write is a
//! 400, never a page from somewhere else. It is no secret: every page is filtered by what the key may see.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::error::Problem;
use super::query::Query;
use crate::store::page::{Page, Place};

/// Rows on a page where the caller does not say.
pub(crate) const DEFAULT_LIMIT: usize = 50;
/// Larger asks are clamped to this.
pub(crate) const MAX_LIMIT: usize = 100;

/// For `/openapi.json`.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code)] // read through `Query`
pub(crate) struct PageParams {
    /// Rows on a page: 50 unless given, at most 100.
    limit: Option<i64>,
    /// `next_page_token` of the page before.
    page_token: Option<String>,
    /// Oldest first.
    ascending: Option<bool>,
}

/// Listings write tokens of their own kind, so that one is not taken for another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listing {
    Inboxes,
    Messages,
    Threads,
    ThreadMessages,
    Keys,
    Lists,
    WorkItems,
    Suppressions,
    Reports,
    SentReports,
    Held,
    Pods,
    Domains,
    Queue,
}

impl Listing {
    fn tag(self) -> &'static str {
        match self {
            Listing::Inboxes => "in",
            Listing::Messages => "me",
            Listing::Threads => "th",
            Listing::ThreadMessages => "tm",
            Listing::Keys => "ke",
            Listing::Lists => "li",
            Listing::WorkItems => "wi",
            Listing::Suppressions => "su",
            Listing::Reports => "re",
            Listing::SentReports => "rs",
            Listing::Held => "he",
            Listing::Pods => "po",
            Listing::Domains => "do",
            Listing::Queue => "qu",
        }
    }

    /// Takes `limit`, `page_token` and `ascending` from the query.
    pub(crate) fn page(self, query: &mut Query) -> Result<Page, Problem> {
        let page = self.page_one_way(query)?;
        Ok(Page { ascending: query.flag("ascending"), ..page })
    }

    /// The same for a listing that has one order.
    pub(crate) fn page_one_way(self, query: &mut Query) -> Result<Page, Problem> {
        let limit = clamp(query, MAX_LIMIT)?;
        let after = match query.text("page_token") {
            Some(token) if !token.is_empty() => Some(self.read(&token)?),
            _ => None,
        };
        Ok(Page { limit, ascending: false, after })
    }

    pub(crate) fn token(self, place: &Place) -> String {
        let Place { at, key: [a, b, c], text } = place;
        URL_SAFE_NO_PAD.encode(format!("{}1.{at}.{a}.{b}.{c}.{text}", self.tag()))
    }

    fn read(self, token: &str) -> Result<Place, Problem> {
        let wrong = || Problem::field(&["query", "page_token"], "is not a token of this listing");
        let text =
            URL_SAFE_NO_PAD.decode(token).ok().and_then(|t| String::from_utf8(t).ok()).ok_or_else(wrong)?;
        let mut fields = text
            .strip_prefix(self.tag())
            .and_then(|t| t.strip_prefix("1."))
            .ok_or_else(wrong)?
            .splitn(5, '.');
        let mut number = || fields.next().and_then(|n| n.parse().ok()).ok_or_else(wrong);
        let (at, key) = (number()?, [number()?, number()?, number()?]);
        let text = fields.next().ok_or_else(wrong)?;
        // PostgreSQL takes no NUL in a text.
        if text.contains('\0') { Err(wrong()) } else { Ok(Place { at, key, text: text.to_owned() }) }
    }
}

/// `limit`, at least 1; larger asks than `most` are clamped.
pub(crate) fn clamp(query: &mut Query, most: usize) -> Result<usize, Problem> {
    match query.integer("limit") {
        None => Ok(DEFAULT_LIMIT),
        Some(n) if n < 1 => Err(Problem::field(&["query", "limit"], "takes a number from 1 on")),
        Some(n) => Ok(usize::try_from(n).unwrap_or(most).min(most)),
    }
}

/// Cuts the extra row off; the token of the next page where there is one.
pub(crate) fn cut<T>(
    page: &Page,
    listing: Listing,
    rows: &mut Vec<T>,
    place: impl Fn(&T) -> Place,
) -> Option<String> {
    if rows.len() <= page.limit {
        return None;
    }
    rows.truncate(page.limit);
    rows.last().map(|last| listing.token(&place(last)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn limits_are_clamped_and_nonsense_is_refused() {
        let page = |raw: &str| Listing::Inboxes.page(&mut Query::parse(raw).unwrap());
        assert_eq!(page("").unwrap().limit, 50);
        assert_eq!(page("limit=100000").unwrap().limit, 100);
        assert_eq!(page("limit=99999999999999999999").unwrap().limit, 50); // and finish() says what is wrong
        assert!(page("limit=0").is_err() && page("limit=-1").is_err());
        assert!(page("page_token=%00").is_err() && page("page_token=abc").is_err());
    }

    #[test]
    fn the_token_of_one_listing_is_not_one_of_another() {
        let token = Listing::Inboxes.token(&Place::new(5, 7));
        assert_eq!(Listing::Inboxes.read(&token).unwrap(), Place::new(5, 7));
        assert!(Listing::Messages.read(&token).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_a_token_or_a_400(text in ".{0,60}") {
            let _ = Listing::Threads.read(&text);
        }
    }
}
