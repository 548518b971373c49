//! The URLs of the configuration: the database, the object store, the smarthost.
//!
//! What can hold a password never shows it: `Display` and `Debug` print `***` in its place, so that a
//! URL can be logged and quoted in an error. A malformed URL is refused in words that do not quote it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use reqwest::Url;

/// `sqlite:/path/to/file.db` or `postgres://user:password@host/database`.
#[derive(Clone, PartialEq, Eq)]
pub enum DatabaseUrl {
    Sqlite(PathBuf),
    /// The URL as written, password and all: only for the one that connects.
    Postgres(String),
}

impl FromStr for DatabaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<DatabaseUrl, String> {
        let Some((scheme, rest)) = text.split_once(':') else {
            return Err(match text.is_empty() {
                true => format!("is empty; {DATABASE_FORMS}"),
                false => format!("names no kind of database; {DATABASE_FORMS}"),
            });
        };
        match scheme {
            "sqlite" => sqlite(rest),
            "postgres" | "postgresql" => postgres(text),
            "sqlite3" | "file" => {
                Err("is spelled `sqlite:` here, as in sqlite:/var/lib/gatepost/gatepost.db".into())
            }
            "mysql" | "mariadb" | "mssql" | "mongodb" => {
                Err(format!("`{scheme}` is not supported; {DATABASE_FORMS}"))
            }
            _ => Err(format!("begins with an unknown scheme; {DATABASE_FORMS}")),
        }
    }
}

const DATABASE_FORMS: &str =
    "it takes sqlite:/path/to/gatepost.db or postgres://user:password@host:5432/database";

fn sqlite(rest: &str) -> Result<DatabaseUrl, String> {
    // sqlite:path, sqlite:/path and sqlite:///path are all in use out there.
    let path = match rest.strip_prefix("//") {
        Some(path) if path.starts_with('/') => path,
        Some(_) => return Err("has a host in it; it takes sqlite:/path with one slash".into()),
        None => rest,
    };
    if path.is_empty() {
        return Err("names no file; it takes sqlite:/path/to/gatepost.db".into());
    }
    if path == ":memory:" || path.contains("mode=memory") {
        return Err("is in memory and would lose every accepted message; name a file".into());
    }
    if path.contains(['?', '#', '\0']) {
        return Err("has options behind the path; a path alone is wanted (durability is not optional)".into());
    }
    if path.ends_with('/') {
        return Err("is a directory; it takes the path of a file".into());
    }
    Ok(DatabaseUrl::Sqlite(PathBuf::from(path)))
}

fn postgres(text: &str) -> Result<DatabaseUrl, String> {
    const FORM: &str = "it takes postgres://user:password@host:5432/database";
    let url = Url::parse(text).map_err(|error| {
        format!("is no valid URL ({error}); {FORM}, with @ / : # and % in a password percent-encoded")
    })?;
    if !text.contains("://") {
        return Err(format!("lacks the `//`; {FORM}"));
    }
    if url.fragment().is_some() {
        return Err("has a `#` in it; in a password it is written %23".into());
    }
    let has = |name: &str| url.query_pairs().any(|(key, _)| key == name);
    if matches!(url.path(), "" | "/") && !has("dbname") {
        return Err(format!("names no database; {FORM}"));
    }
    if url.path().trim_start_matches('/').contains('/') {
        return Err("has a second `/` in the database's name; in a password it is written %2F".into());
    }
    sqlx::postgres::PgConnectOptions::from_str(text).map_err(|error| format!("is not accepted: {error}"))?;
    Ok(DatabaseUrl::Postgres(text.to_owned()))
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DatabaseUrl::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            DatabaseUrl::Postgres(url) => f.write_str(&without_password(url)),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

/// The URL with its password, and anything that libpq takes as one in the query, left out.
fn without_password(text: &str) -> String {
    let Ok(mut url) = Url::parse(text) else { return "postgres://***".to_owned() };
    if url.password().is_some() && url.set_password(Some("***")).is_err() {
        return "postgres://***".to_owned();
    }
    if url.query().is_some_and(|query| query.contains("password")) {
        url.set_query(Some("***"));
    }
    url.into()
}

/// Where large bodies are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorageUrl {
    Folder(PathBuf),
    S3 { bucket: String, prefix: String },
}

impl StorageUrl {
    /// `s3://bucket/prefix`, `file:///path` or a path.
    pub(super) fn parse(text: &str) -> Result<StorageUrl, String> {
        const FORMS: &str = "it takes s3://bucket/prefix, or an absolute path, or nothing for data_dir/blobs";
        if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_');
            return match !bucket.is_empty() && bucket.chars().all(fits) && !prefix.contains(['?', '#']) {
                true => Ok(StorageUrl::S3 {
                    bucket: bucket.to_owned(),
                    prefix: prefix.trim_end_matches('/').to_owned(),
                }),
                false => Err(format!("`{text}` names no bucket; {FORMS}")),
            };
        }
        let path = text.strip_prefix("file://").unwrap_or(text);
        match path.starts_with('/') {
            true => Ok(StorageUrl::Folder(PathBuf::from(path))),
            false => Err(format!("`{text}` is no place for files; {FORMS}")),
        }
    }
}

/// One server that all outgoing mail is handed to, instead of the recipients' MX hosts.
#[derive(Clone, PartialEq, Eq)]
pub struct Smarthost {
    pub host: String,
    pub port: u16,
    /// `smtps://`: TLS from the first byte; `smtp://` begins in clear text and uses STARTTLS.
    pub implicit_tls: bool,
    pub login: Option<Login>,
}

#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    pub user: String,
    pub password: String,
}

impl FromStr for Smarthost {
    type Err = String;

    fn from_str(text: &str) -> Result<Smarthost, String> {
        const FORM: &str = "it takes smtp://user:password@host:587";
        let url = Url::parse(text).map_err(|error| format!("is no valid URL ({error}); {FORM}"))?;
        let (implicit_tls, default_port) = match url.scheme() {
            "smtp" => (false, 587),
            "smtps" => (true, 465),
            _ => return Err(format!("begins with an unknown scheme; {FORM}")),
        };
        let host = url.host_str().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| format!("names no host; {FORM}"))?.to_owned();
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(format!("has more behind the host than a port; {FORM}"));
        }
        let decode = |part: &str| {
            percent_encoding::percent_decode_str(part)
                .decode_utf8()
                .map(|text| text.into_owned())
                .map_err(|_| "has a user or password that is not UTF-8".to_owned())
        };
        let login = match (url.username(), url.password()) {
            ("", None) => None,
            (user, Some(password)) if !user.is_empty() => {
                Some(Login { user: decode(user)?, password: decode(password)? })
            }
            _ => return Err(format!("has a user without a password or the reverse; {FORM}")),
        };
        Ok(Smarthost { host, port: url.port().unwrap_or(default_port), implicit_tls, login })
    }
}

impl fmt::Display for Smarthost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.implicit_tls { "smtps" } else { "smtp" };
        let login = self.login.as_ref().map_or(String::new(), |login| format!("{}:***@", login.user));
        write!(f, "{scheme}://{login}{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for Smarthost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Smarthost({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_never_shows() {
        let url: DatabaseUrl = "postgres://mail:s3cret@db.example/gatepost".parse().unwrap();
        assert_eq!(url.to_string(), "postgres://mail:***@db.example/gatepost");
        let url: DatabaseUrl = "postgres://db.example/gatepost?user=mail&password=s3cret".parse().unwrap();
        assert!(!format!("{url} {url:?}").contains("s3cret"));
        let relay: Smarthost = "smtp://me:s3cret@relay.example".parse().unwrap();
        assert_eq!(format!("{relay:?}"), "Smarthost(smtp://me:***@relay.example:587)");
    }

    #[test]
    fn database_urls_that_cannot_work_are_refused_in_words() {
        let cases = [
            ("", "is empty"),
            ("/var/lib/gatepost.db", "names no kind of database"),
            ("gatepost", "names no kind of database"),
            ("sqlite3:/x.db", "spelled `sqlite:`"),
            ("sqlite:", "names no file"),
            ("sqlite::memory:", "in memory"),
            ("sqlite:/x.db?mode=memory", "in memory"),
            ("sqlite:/x.db?synchronous=off", "has options"),
            ("sqlite://host/x.db", "has a host"),
            ("sqlite:/var/lib/gatepost/", "is a directory"),
            ("mysql://root@localhost/mail", "`mysql` is not supported"),
            ("redis://localhost", "unknown scheme"),
            ("postgres:gatepost", "//"),
            ("postgres://localhost", "names no database"),
            ("postgres://localhost/", "names no database"),
            ("postgres://localhost:70000/mail", "no valid URL"),
            ("postgres://localhost:port/mail", "no valid URL"),
            ("postgres://user:pa/ss@localhost/mail", "no valid URL"),
            ("postgres://user:pa#ss@localhost/mail", "percent-encoded"),
            ("postgres://localhost/mail?sslmode=maybe", "is not accepted"),
        ];
        for (url, words) in cases {
            let error = url.parse::<DatabaseUrl>().unwrap_err();
            assert!(error.contains(words), "{url}: {error}");
        }
    }
}
