//! The store keeps its promises on both databases: a job that fails is undone alone, a cursor never skips, an
//! item has one holder, and a COMMIT whose answer is lost is neither lost nor done twice.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use gatepost::clock::Clock;
use gatepost::config::DatabaseUrl;
use gatepost::ids::InboxKey;
use gatepost::store::event::{self, NewEvent};
use gatepost::store::{Store, StoreError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::world::postgres::Database;

const INBOX: InboxKey = InboxKey { pod: 1, inbox: 1 };

/// Runs a test on a fresh SQLite file, and on a database of one's own where there is a PostgreSQL.
async fn on_both<F: Future<Output = ()>>(test: impl Fn(DatabaseUrl) -> F) {
    let folder = tempfile::tempdir().unwrap();
    test(DatabaseUrl::Sqlite(folder.path().join("gatepost.db"))).await;
    if let Some(database) = Database::postgres() {
        test(DatabaseUrl::Postgres(database.url().unwrap())).await;
    }
}

async fn open(url: &DatabaseUrl) -> Store {
    Store::open(url, Clock::system()).await.unwrap()
}

async fn set(store: &Store, name: String, fail: bool) -> Result<(), StoreError> {
    store
        .write(move |tx| {
            let name = name.clone();
            Box::pin(async move {
                tx.execute("INSERT INTO setting (name, value) VALUES ($1, 'x')", &[name.into()]).await?;
                if fail { Err(StoreError::Damaged("on purpose".to_owned())) } else { Ok(()) }
            })
        })
        .await
}

async fn count(store: &Store) -> i64 {
    let counted: Result<i64, StoreError> = store
        .read(|tx| {
            Box::pin(async move {
                tx.row("SELECT count(*) FROM setting", &[]).await?.ok_or(StoreError::Closed)?.get(0)
            })
        })
        .await;
    counted.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_fails_is_undone_alone() {
    on_both(|url| async move {
        let store = open(&url).await;
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..32 {
            let store = store.clone();
            tasks.spawn(async move {
                for n in 0..40 {
                    let outcome = set(&store, format!("{task}-{n}"), n % 5 == 0).await;
                    assert_eq!(outcome.is_err(), n % 5 == 0);
                    if n == 7 {
                        // A statement that fails inside the group: a name that is taken.
                        assert!(set(&store, format!("{task}-{n}"), false).await.unwrap_err().is_conflict());
                    }
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        assert_eq!(count(&store).await, 32 * 32);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_never_skips_an_event_that_was_still_on_its_way() {
    on_both(|url| async move {
        // Two handles, as two processes would have.
        let stores = [open(&url).await, open(&url).await];
        let writing = Arc::new(AtomicBool::new(true));
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..8usize {
            let store = stores[if matches!(url, DatabaseUrl::Sqlite(_)) { 0 } else { writer % 2 }].clone();
            writers.spawn(async move {
                for n in 0..50 {
                    let data = format!("{{\"n\":\"{writer}-{n}\"}}");
                    let appended: Result<(), StoreError> = store
                        .write(move |tx| {
                            let data = data.clone();
                            Box::pin(async move {
                                let event = NewEvent { event_type: "test", data, ..NewEvent::default() };
                                event::append(tx, INBOX, event).await
                            })
                        })
                        .await;
                    appended.unwrap();
                }
            });
        }
        let stampers = stores.clone().map(|store| {
            let writing = writing.clone();
            tokio::spawn(async move {
                loop {
                    let more = writing.load(Ordering::SeqCst);
                    let stamped: Result<u64, StoreError> = store.write(|tx| Box::pin(event::stamp(tx))).await;
                    if stamped.unwrap() == 0 && !more {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
            })
        });
        let reader = stores[1].clone();
        let reading = tokio::spawn(async move {
            let (mut seen, mut cursor) = (HashSet::new(), 0);
            while seen.len() < 400 {
                let page: Result<_, StoreError> = reader
                    .read(move |tx| {
                        Box::pin(event::after(tx, gatepost::principal::Scope::Organization, cursor, &[], 7))
                    })
                    .await;
                for event in page.unwrap() {
                    assert!(event.cursor > cursor, "in order");
                    cursor = event.cursor;
                    assert!(seen.insert(event.data.clone()), "once");
                }
            }
        });
        while let Some(done) = writers.join_next().await {
            done.unwrap();
        }
        writing.store(false, Ordering::SeqCst);
        tokio::time::timeout(Duration::from_secs(60), reading)
            .await
            .expect("the reader missed events")
            .unwrap();
        for stamper in stampers {
            stamper.await.unwrap();
        }
    })
    .await;
}

/// What the proxy does to a COMMIT.
#[derive(Clone, Copy, PartialEq)]
enum Cut {
    /// Lets it through, and loses the answer.
    After,
    /// Loses it.
    Before,
}

/// Between the store and PostgreSQL: cuts the connection at the next COMMIT when armed.
struct Proxy {
    port: u16,
    armed: Arc<AtomicI64>,
}

impl Proxy {
    async fn start(target: String, cut: Cut) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let armed = Arc::new(AtomicI64::new(0));
        let arming = armed.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&target).await.unwrap();
                tokio::spawn(relay(client, server, cut, arming.clone()));
            }
        });
        Proxy { port, armed }
    }
}

async fn relay(client: TcpStream, server: TcpStream, cut: Cut, armed: Arc<AtomicI64>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let back = tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from_client.read(&mut buffer).await {
        let commit = buffer[..n].windows(7).any(|w| w == b"COMMIT\0");
        if commit && armed.fetch_sub(1, Ordering::SeqCst) > 0 {
            back.abort();
            if cut == Cut::After {
                to_server.write_all(&buffer[..n]).await.unwrap();
                // The server takes its time with it: the look-up has to wait, not to guess.
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            return;
        }
        if to_server.write_all(&buffer[..n]).await.is_err() {
            break;
        }
    }
    back.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_is_lost_is_neither_lost_nor_done_twice() {
    for cut in [Cut::After, Cut::Before] {
        let Some(database) = Database::postgres() else { return };
        let url = database.url().unwrap();
        let (address, name) = url.strip_prefix("postgres://postgres@").unwrap().split_once('/').unwrap();
        let proxy = Proxy::start(address.to_owned(), cut).await;
        let through = DatabaseUrl::Postgres(format!("postgres://postgres@127.0.0.1:{}/{name}", proxy.port));
        let store = open(&through).await;
        set(&store, "before".to_owned(), false).await.unwrap();
        for n in 0..5 {
            proxy.armed.store(1, Ordering::SeqCst);
            // Done once, and acknowledged: neither an error for what happened nor a second row for it (which the
            // primary key would refuse, so a blind repeat would show as a conflict).
            set(&store, format!("cut-{n}"), false).await.unwrap();
        }
        proxy.armed.store(0, Ordering::SeqCst);
        assert_eq!(count(&store).await, 6);
    }
}

#[tokio::test]
async fn a_newer_schema_and_a_server_without_fsync_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let url = DatabaseUrl::Sqlite(folder.path().join("gatepost.db"));
    let store = open(&url).await;
    let raised: Result<u64, StoreError> = store
        .write(|tx| {
            Box::pin(async move { tx.execute("INSERT INTO schema_version VALUES (999, 0)", &[]).await })
        })
        .await;
    raised.unwrap();
    store.close().await;
    let refused = Store::open(&url, Clock::system()).await.err().expect("refused").to_string();
    assert!(refused.contains("999"), "{refused}");

    let Some(database) = Database::own_postgres() else { return };
    database.cluster().sql("postgres", "ALTER SYSTEM SET fsync = off");
    database.cluster().sql("postgres", "SELECT pg_reload_conf()");
    let url = DatabaseUrl::Postgres(database.url().unwrap());
    for _ in 0..100 {
        if let Err(refused) = Store::open(&url, Clock::system()).await {
            assert!(refused.to_string().contains("fsync=off"), "{refused}");
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("a server with fsync=off was accepted");
}
