//! The probe of the database: is it there, and does it keep what it says it has written?

use std::path::Path;
use std::str::FromStr;

use rusqlite::OpenFlags;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Row};

use super::Findings;
use crate::config::{Config, DatabaseUrl};

/// What older ones lack is not looked for (PostgreSQL's own support ends after five years).
const OLDEST_POSTGRES: i32 = 130_000;

pub(super) async fn database(config: &Config, findings: &mut Findings) {
    match &config.database.url {
        DatabaseUrl::Sqlite(path) => sqlite(path, findings),
        DatabaseUrl::Postgres(url) => {
            if let Err(error) = postgres(url, findings).await {
                findings.bad(format!("{}: {error}", config.database.url));
            }
        }
    }
}

fn sqlite(path: &Path, findings: &mut Findings) {
    if !path.exists() {
        return findings.ok(format!("{} will be made at the first start", path.display()));
    }
    let opened = rusqlite::Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY);
    let tables =
        opened.and_then(|db| db.query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0)));
    match tables {
        Ok(0i64) => findings.ok(format!("{} is empty", path.display())),
        Ok(_) => findings.ok(format!("{} opens", path.display())),
        Err(error) => findings.bad(format!("{}: {error}", path.display())),
    }
}

async fn postgres(url: &str, findings: &mut Findings) -> Result<(), sqlx::Error> {
    let mut db = PgConnectOptions::from_str(url)?.connect().await?;
    let mut setting = async |name: &'static str| -> Result<String, sqlx::Error> {
        sqlx::query("SELECT current_setting($1)").bind(name).fetch_one(&mut db).await?.try_get(0)
    };
    let version = setting("server_version_num").await?;
    findings.ok(format!("PostgreSQL {} answers", setting("server_version").await?));
    if version.parse().unwrap_or(0) < OLDEST_POSTGRES {
        findings.bad("PostgreSQL 13 or newer is needed");
    }
    if setting("fsync").await? == "off" {
        findings.bad("fsync=off: a power cut loses or corrupts mail that was acknowledged; set fsync=on");
    }
    if setting("full_page_writes").await? == "off" {
        findings.advice("full_page_writes=off: a power cut can corrupt the database, unless the file system forbids torn pages");
    }
    if setting("server_encoding").await? != "UTF8" {
        findings.bad("the database is not in UTF8: create it with ENCODING 'UTF8'");
    }
    db.close().await
}
