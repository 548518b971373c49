//! Pages of a listing: after the row where the last page ended, never by counting rows.

/// The place of a row in a listing: its time, the numbers that break ties, or its name where it is sorted by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    pub at: i64,
    pub key: [i64; 3],
    pub text: String,
}

impl Place {
    pub fn new(at: i64, key: i64) -> Place {
        Place { at, key: [0, 0, key], text: String::new() }
    }

    pub fn named(text: impl Into<String>) -> Place {
        Place { text: text.into(), ..Place::default() }
    }
}

/// The page that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    pub limit: usize,
    pub ascending: bool,
    /// The last row of the page before.
    pub after: Option<Place>,
}

impl Page {
    /// How many rows to fetch: one more than fits says whether there is another page.
    pub fn fetch(&self) -> i64 {
        i64::try_from(self.limit).unwrap_or(i64::MAX).saturating_add(1)
    }

    /// The place after which the page begins; the end of the world where it is the first page.
    pub fn start(&self) -> Place {
        let edge = if self.ascending { i64::MIN } else { i64::MAX };
        self.after.clone().unwrap_or(Place { at: edge, key: [edge; 3], text: String::new() })
    }
}
