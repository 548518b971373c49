//! The smallest things: the server starts, takes a letter, shows it, stops.

use crate::world::{mail, postgres::Database, server::TestServer};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_comes_in_and_is_read_over_the_api_on_sqlite() {
    a_letter_comes_in(Database::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_comes_in_and_is_read_over_the_api_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    a_letter_comes_in(database).await;
}

async fn a_letter_comes_in(database: Database) {
    let server = TestServer::new().inbox("ada").on(&database).start().await;
    let letter =
        mail::letter("bob@remote.example", "ada@agents.example", "Hello", "1@remote.example", "", "Hi Ada");
    server.receive("bob@remote.example", "ada@agents.example", &letter).await;
    let message = server.message("ada@agents.example", "Hello").await;
    assert_eq!(message["from"], "bob@remote.example");
    assert_eq!(message["text"].as_str().map(str::trim_end), Some("Hi Ada"));
    assert!(server.stop().await.success(), "SIGTERM must end in exit 0");
    server.restart().await;
    let again = server.message("ada@agents.example", "Hello").await;
    assert_eq!(again["message_id"], message["message_id"], "a restart keeps what was there");
}
