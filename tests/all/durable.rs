//! kill -9 leaves the page cache alive, so it proves nothing about power. Here strace watches: between the moment at
//! which the server heard the end of a message (or a request to send) and the moment at which it said 250 (or 2xx),
//! the database's log was written and a completed fsync or fdatasync covered what was written.
//!
//! The same check must fail when fsync is switched off, or it would prove nothing either.

use serde_json::json;

use crate::world::{
    dns::Dns,
    mail,
    postgres::Database,
    server::TestServer,
    sink::Sink,
    strace::{Happened, Strace},
};

const MESSAGES: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_fsync_covers_every_message_and_every_release_before_it_is_acknowledged_on_sqlite() {
    let Some(seen) = watched(&Database::Sqlite, &[]).await else { return };
    let uncovered = uncovered(&seen, "gatepost.db-wal");
    assert!(uncovered.is_empty(), "acknowledged before it was on disk:\n{}", uncovered.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_check_fails_when_sqlite_only_pretends_to_sync() {
    let pretend = ["inject=fsync,fdatasync,sync_file_range:retval=0"];
    let Some(seen) = watched(&Database::Sqlite, &pretend).await else { return };
    let uncovered = uncovered(&seen, "gatepost.db-wal");
    assert_eq!(uncovered.len(), 2 * MESSAGES + 1, "nothing was synced, so nothing was covered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_fsync_covers_every_message_and_every_release_before_it_is_acknowledged_on_postgres() {
    let Some(database) = Database::own_postgres() else { return };
    let Some(seen) = watched(&database, &[]).await else { return };
    let uncovered = uncovered(&seen, "/pg_wal/");
    assert!(uncovered.is_empty(), "acknowledged before it was on disk:\n{}", uncovered.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_check_fails_when_postgres_runs_without_fsync() {
    let Some(database) = Database::own_postgres() else { return };
    let Some(seen) = watched(&database, &["fsync = off"]).await else { return };
    let uncovered = uncovered(&seen, "/pg_wal/");
    assert_eq!(uncovered.len(), 2 * MESSAGES + 1, "nothing was synced, so nothing was covered");
}

/// Messages in and messages out, one after the other, under strace. For PostgreSQL its processes are watched in the
/// same log, because it is they who sync.
async fn watched(database: &Database, how: &[&str]) -> Option<Vec<Happened>> {
    let sink = Sink::start().await;
    let dns = Dns::start(&sink.zone("remote.example")).await;
    let server = TestServer::new().inbox("ada").on(database).dns(&dns).start().await;
    let mut pids = vec![server.pid()];
    let mut options = how.to_vec();
    if let Database::Postgres(cluster, name) = database {
        pids.push(cluster.pid());
        pids.extend(cluster.backends());
        if !how.is_empty() {
            cluster.sql(name, &format!("ALTER SYSTEM SET {}", how[0]));
            cluster.sql(name, "SELECT pg_reload_conf()");
            options.clear();
        }
    }
    // Warm, so that what is watched is the daily road and not the first time of everything.
    let letter =
        mail::letter("bob@remote.example", "ada@agents.example", "Warm", "w@remote.example", "", "up");
    server.receive("bob@remote.example", "ada@agents.example", &letter).await;

    let strace = Strace::watch(&pids, &options).await?;
    let mut smtp = server.dial().await;
    smtp.expect("EHLO client.example", 250).await;
    for n in 0..MESSAGES {
        let (subject, id) = (format!("In {n}"), format!("in-{n}@remote.example"));
        let letter = mail::letter("bob@remote.example", "ada@agents.example", &subject, &id, "", "body");
        let reply = smtp.transaction("bob@remote.example", &["ada@agents.example"], &letter).await.unwrap();
        assert_eq!(reply.code, 250, "{}", smtp.transcript);
        let send = json!({"to": "bob@remote.example", "subject": format!("Out {n}"), "text": "body"});
        server.api.post("/v0/inboxes/ada@agents.example/messages/send", send).await.ok();
    }
    // And one that is too large for the database's own pages: its file must be covered as well.
    let large = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n".repeat(40_000);
    let letter =
        mail::letter("bob@remote.example", "ada@agents.example", "Large", "l@remote.example", "", &large);
    let reply = smtp.transaction("bob@remote.example", &["ada@agents.example"], &letter).await.unwrap();
    assert_eq!(reply.code, 250, "{}", smtp.transcript);
    Some(strace.end().await)
}

/// Every acknowledgement that was not covered: a line each. `log` names the database's log file.
fn uncovered(seen: &[Happened], log: &str) -> Vec<String> {
    let mut bad = Vec::new();
    let mut count = 0;
    for (said_at, event) in seen.iter().enumerate() {
        let Happened::Said { socket, text } = event else { continue };
        let acknowledges = text.starts_with("250 2.0.0") || text.starts_with("HTTP/1.1 20");
        if !acknowledges || text.contains("5432->") {
            continue;
        }
        // The last thing heard on that socket is the end of the message, or of the request.
        let heard = seen[..said_at]
            .iter()
            .rposition(|earlier| matches!(earlier, Happened::Heard { socket: s, .. } if s == socket))
            .expect("an acknowledgement of nothing");
        count += 1;
        let window = &seen[heard..said_at];
        let wrote = window.iter().position(|e| matches!(e, Happened::Wrote { file } if file.contains(log)));
        let synced = wrote.is_some_and(|at| {
            window[at..].iter().any(|e| matches!(e, Happened::Synced { file } if file.contains(log)))
        });
        // Files of bodies that were written in this window must have been synced in it, each of them.
        let files = window.iter().enumerate().all(|(at, event)| match event {
            Happened::Wrote { file } if file.contains("/blobs/") => {
                window[at..].iter().any(|later| matches!(later, Happened::Synced { file: f } if f == file))
            }
            _ => true,
        });
        if !synced || !files {
            bad.push(format!(
                "{text:.60} (log written: {}, synced: {synced}, body files: {files})",
                wrote.is_some()
            ));
        }
    }
    assert_eq!(count, 2 * MESSAGES + 1, "strace saw another number of acknowledgements than there were");
    bad
}
