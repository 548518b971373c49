//! The schema, version by version. Each step runs once, in a transaction with the row that says so; several
//! processes that start at once wait for one another.

use sqlx::postgres::PgPool;

use super::{StoreError, sqlite::failure};
use crate::clock::Millis;

/// One text for each database; the number is the version that it leads to.
struct Migration {
    version: i64,
    sqlite: &'static str,
    postgres: &'static str,
}

const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        sqlite: include_str!("../../migrations/sqlite/0001_the_road.sql"),
        postgres: include_str!("../../migrations/postgres/0001_the_road.sql"),
    },
    Migration {
        version: 2,
        sqlite: include_str!("../../migrations/sqlite/0002_the_front_door.sql"),
        postgres: include_str!("../../migrations/postgres/0002_the_front_door.sql"),
    },
    Migration {
        version: 3,
        sqlite: include_str!("../../migrations/sqlite/0003_queue.sql"),
        postgres: include_str!("../../migrations/postgres/0003_queue.sql"),
    },
    Migration {
        version: 4,
        sqlite: include_str!("../../migrations/sqlite/0004_trust.sql"),
        postgres: include_str!("../../migrations/postgres/0004_trust.sql"),
    },
    Migration {
        version: 5,
        sqlite: include_str!("../../migrations/sqlite/0005_budgets.sql"),
        postgres: include_str!("../../migrations/postgres/0005_budgets.sql"),
    },
    Migration {
        version: 6,
        sqlite: include_str!("../../migrations/sqlite/0006_outcomes.sql"),
        postgres: include_str!("../../migrations/postgres/0006_outcomes.sql"),
    },
    Migration {
        version: 7,
        sqlite: include_str!("../../migrations/sqlite/0007_domains.sql"),
        postgres: include_str!("../../migrations/postgres/0007_domains.sql"),
    },
    Migration {
        version: 8,
        sqlite: include_str!("../../migrations/sqlite/0008_reports.sql"),
        postgres: include_str!("../../migrations/postgres/0008_reports.sql"),
    },
    Migration {
        version: 9,
        sqlite: include_str!("../../migrations/sqlite/0009_tls_required.sql"),
        postgres: include_str!("../../migrations/postgres/0009_tls_required.sql"),
    },
    Migration {
        version: 10,
        sqlite: include_str!("../../migrations/sqlite/0010_budgets.sql"),
        postgres: include_str!("../../migrations/postgres/0010_budgets.sql"),
    },
    Migration {
        version: 11,
        sqlite: include_str!("../../migrations/sqlite/0011_require_tls.sql"),
        postgres: include_str!("../../migrations/postgres/0011_require_tls.sql"),
    },
];

const VERSION_TABLE: &str =
    "CREATE TABLE IF NOT EXISTS schema_version (version BIGINT PRIMARY KEY, applied_at BIGINT NOT NULL)";

/// Held while migrating; the number only has to differ from other uses of advisory locks in this database.
const LOCK: i64 = 0x6761_7465_706f_7374;

pub(super) fn sqlite(connection: &rusqlite::Connection, now: Millis) -> Result<(), StoreError> {
    connection.execute_batch("BEGIN EXCLUSIVE").map_err(failure)?;
    let done = (|| {
        connection.execute_batch(VERSION_TABLE).map_err(failure)?;
        let sql = "SELECT coalesce(max(version), 0) FROM schema_version";
        let current: i64 = connection.query_row(sql, [], |row| row.get(0)).map_err(failure)?;
        refuse_newer(current)?;
        for migration in MIGRATIONS.iter().filter(|m| m.version > current) {
            connection.execute_batch(migration.sqlite).map_err(failure)?;
            connection
                .execute("INSERT INTO schema_version VALUES (?1, ?2)", [migration.version, now])
                .map_err(failure)?;
        }
        Ok(())
    })();
    let end = if done.is_ok() { "COMMIT" } else { "ROLLBACK" };
    connection.execute_batch(end).map_err(failure)?;
    done
}

pub(super) async fn postgres(pool: &PgPool) -> Result<(), StoreError> {
    let failed = |e: sqlx::Error| StoreError::Unavailable(format!("migrating the schema: {e}"));
    let mut tx = pool.begin().await.map_err(failed)?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LOCK).execute(&mut *tx).await.map_err(failed)?;
    sqlx::query(VERSION_TABLE).execute(&mut *tx).await.map_err(failed)?;
    let sql = "SELECT coalesce(max(version), 0) FROM schema_version";
    let current: i64 = sqlx::query_scalar(sql).fetch_one(&mut *tx).await.map_err(failed)?;
    refuse_newer(current)?;
    for migration in MIGRATIONS.iter().filter(|m| m.version > current) {
        sqlx::raw_sql(migration.postgres).execute(&mut *tx).await.map_err(failed)?;
        let sql =
            "INSERT INTO schema_version VALUES ($1, (extract(epoch FROM clock_timestamp()) * 1000)::bigint)";
        sqlx::query(sql).bind(migration.version).execute(&mut *tx).await.map_err(failed)?;
    }
    tx.commit().await.map_err(failed)
}

/// An older program must not write into a schema that it does not know.
fn refuse_newer(current: i64) -> Result<(), StoreError> {
    let newest = MIGRATIONS.last().map_or(0, |m| m.version);
    if current > newest {
        return Err(StoreError::Unfit(format!(
            "the database has schema version {current}, this program knows {newest}: run the newer gatepost"
        )));
    }
    Ok(())
}
