//! The router as a client meets it, on SQLite, without a socket.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use axum::response::Response;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::clock::Clock;
use crate::config::Config;
use crate::dns::Resolver;
use crate::envelope::{Envelope, Peer};
use crate::floor::Floor;
use crate::inbox::{self, Route};
use crate::principal::{Permissions, Scope};
use crate::secrets::Secrets;
use crate::spool::Spool;
use crate::store::body::BodyStore;
use crate::store::key::{self, NewKey};
use crate::store::{Store, StoreError};
use crate::tls::Tls;

const ADMIN: &str = "gp_admin";

async fn floor(folder: &Path) -> Arc<Floor> {
    crate::tls::install_provider();
    let text = format!(
        "hostname = \"mx.agents.example\"\ndomains = [\"agents.example\"]\ndata_dir = \"{}\"\n\
         [dns]\nservers = [\"127.0.0.1:1\"]\n",
        folder.display()
    );
    let config = Config::parse(&folder.join("gatepost.toml"), &text, std::iter::empty()).unwrap();
    let store = Store::open(&config.database.url, Clock::system()).await.unwrap();
    let made: Result<_, StoreError> = store
        .write(|tx| {
            let new = NewKey {
                secret: ADMIN.into(),
                scope: Scope::Organization,
                name: "admin".into(),
                permissions: Permissions(None),
                expires_at: None,
            };
            Box::pin(async move { key::ensure(tx, &new).await })
        })
        .await;
    made.unwrap();
    let spool = Spool::open(&folder.join("spool")).unwrap();
    Arc::new(Floor {
        clock: Clock::system(),
        dns: Resolver::new(&config.dns.servers).unwrap(),
        bodies: BodyStore::open(&config.storage.url, spool.clone()).unwrap(),
        spool,
        tls: Tls::open(&config.hostname, &config.data_dir, None).unwrap(),
        secrets: Secrets::open_or_create(&folder.join("master.key")).unwrap(),
        disk: crate::disk::Disk::watch(&config, &Clock::system()),
        domains: crate::ours::Domains::new(&config.domains),
        tally: Default::default(),
        budgets_set: Default::default(),
        config: Arc::new(config),
        store,
        dev: false,
    })
}

/// A client of the router, with one key.
#[derive(Clone)]
struct Client {
    router: Router,
    key: String,
}

struct Heard {
    status: u16,
    body: Value,
}

impl Client {
    fn new(floor: &Arc<Floor>) -> Client {
        Client { router: super::router(floor.clone(), CancellationToken::new()), key: ADMIN.to_owned() }
    }

    fn with_key(&self, key: &Value) -> Client {
        Client { key: key.as_str().unwrap().to_owned(), ..self.clone() }
    }

    /// The answer before anybody reads its body.
    async fn ask(&self, method: &str, path: &str, body: Value) -> Response {
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {}", self.key))
            .body(body)
            .unwrap();
        self.router.clone().oneshot(request).await.unwrap()
    }

    async fn call(&self, method: &str, path: &str, body: Value) -> Heard {
        let response = self.ask(method, path, body).await;
        let status = response.status().as_u16();
        let octets = axum::body::to_bytes(response.into_body(), 1 << 24).await.unwrap();
        Heard { status, body: serde_json::from_slice(&octets).unwrap_or(Value::Null) }
    }

    async fn get(&self, path: &str) -> Heard {
        self.call("GET", path, Value::Null).await
    }

    async fn inbox(&self, name: &str) {
        assert_eq!(self.call("POST", "/v0/inboxes", json!({ "username": name })).await.status, 200);
    }
}

/// A stranger's mail to all of `inboxes`, as one DATA.
async fn deliver(floor: &Arc<Floor>, inboxes: &[&str]) {
    let mut recipients = Vec::new();
    let mut addresses = Vec::new();
    for name in inboxes {
        let address = format!("{name}@agents.example").parse().unwrap();
        let Route::Inbox(recipient) = inbox::route(floor, &address).await.unwrap() else {
            panic!("no {name}")
        };
        recipients.push(recipient);
        addresses.push(address);
    }
    let envelope = Envelope {
        peer: Peer { ip: [127, 0, 0, 1].into(), helo: "remote.example".into(), extended: true, tls: None },
        mail_from: Some("bob@remote.example".parse().unwrap()),
        recipients: addresses,
        smtputf8: false,
        dsn: None,
        require_tls: false,
    };
    let raw =
        b"From: Bob <bob@remote.example>\r\nSubject: Hello\r\nMessage-ID: <1@remote.example>\r\n\r\nHi.\r\n";
    inbox::receive(floor, envelope, recipients, raw.to_vec().into(), || Ok(())).await.unwrap();
}

#[tokio::test]
async fn a_key_sees_its_inbox_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let floor = floor(folder.path()).await;
    let admin = Client::new(&floor);
    admin.inbox("ada").await;
    admin.inbox("eve").await;
    deliver(&floor, &["ada"]).await;
    let made = admin.call("POST", "/v0/inboxes/eve@agents.example/api-keys", Value::Null).await.body;
    let eve = admin.with_key(&made["api_key"]);
    assert_eq!(eve.get("/v0/inboxes").await.body["count"], 1);
    let ada = "/v0/inboxes/ada@agents.example";
    let item = admin.get("/v1/work-items").await.body["work_items"][0].clone();
    let thread = item["thread_id"].as_str().unwrap();
    let (id, key) = (item["work_item_id"].as_str().unwrap(), admin.get("/v0/auth/me").await.body);
    for (method, path) in [
        ("GET", ada.to_owned()),
        ("PATCH", ada.to_owned()),
        ("DELETE", ada.to_owned()),
        ("GET", format!("{ada}/messages")),
        ("GET", format!("{ada}/messages/%3C1@remote.example%3E")),
        ("GET", format!("{ada}/messages/%3C1@remote.example%3E/raw")),
        ("POST", format!("{ada}/messages/send")),
        ("POST", format!("{ada}/messages/%3C1@remote.example%3E/reply")),
        ("GET", format!("{ada}/threads")),
        ("GET", format!("{ada}/api-keys")),
        ("POST", format!("{ada}/api-keys")),
        ("GET", format!("{ada}/lists/send/allow")),
        ("GET", "/v0/lists/send/allow".to_owned()),
        ("GET", "/v1/inboxes/ada@agents.example/limits".to_owned()),
        ("GET", "/v1/inboxes/ada@agents.example/messages/wait".to_owned()),
        ("POST", "/v1/inboxes/ada@agents.example/work-items/claim".to_owned()),
        ("GET", "/v1/work-items?inbox_id=ada@agents.example".to_owned()),
        ("GET", "/v1/events?inbox_id=ada@agents.example".to_owned()),
        ("GET", format!("/v0/threads/{thread}")),
        ("GET", format!("/v0/inboxes/eve@agents.example/threads/{thread}")),
        ("GET", format!("/v1/work-items/{id}")),
        ("POST", format!("/v1/work-items/{id}/discard")),
        ("GET", format!("/v0/api-keys/{}", key["api_key_id"].as_str().unwrap())),
    ] {
        let body = if method == "PATCH" { json!({ "display_name": "Eve" }) } else { json!({}) };
        let heard = eve.call(method, &path, body).await;
        assert_eq!(
            (heard.status, &heard.body["code"]),
            (404, &json!("not_found")),
            "{method} {path}: {}",
            heard.body
        );
    }
    for listing in ["/v0/threads", "/v1/work-items", "/v1/events?event_types=message.received"] {
        assert_eq!(eve.get(listing).await.body["count"], 0, "{listing}");
    }
    assert_eq!(eve.call("POST", "/v1/work-items/claim", Value::Null).await.body["count"], 0);
    for (method, path) in [
        ("PUT", "/v1/inboxes/eve@agents.example/limits"),
        ("POST", "/v0/inboxes/eve@agents.example/lists/send/allow"),
        ("GET", "/v1/suppressions"),
        ("POST", "/v0/inboxes"),
    ] {
        let heard = eve
            .call(method, path, if method == "PUT" { json!({}) } else { json!({ "entry": "x.example" }) })
            .await;
        assert_eq!(heard.status, 403, "{method} {path}: {}", heard.body);
    }
}

#[tokio::test]
async fn a_key_cannot_mint_or_change_a_wider_one() {
    let folder = tempfile::tempdir().unwrap();
    let admin = Client::new(&floor(folder.path()).await);
    admin.inbox("ada").await;
    let keys = "/v0/inboxes/ada@agents.example/api-keys";
    let flags = json!({ "api_key_create": true, "api_key_update": true, "api_key_delete": true, "message_read": true });
    let asked = json!({ "permissions": flags, "expires_at": "2100-01-01T00:00:00Z" });
    let narrow = admin.with_key(&admin.call("POST", keys, asked).await.body["api_key"]);
    let wide = admin.call("POST", keys, Value::Null).await.body["api_key_id"].clone();
    let wide = format!("{keys}/{}", wide.as_str().unwrap());
    let life = "2099-01-01T00:00:00Z";
    for (method, path, body) in [
        ("POST", "/v0/api-keys", json!({ "permissions": { "message_read": true }, "expires_at": life })),
        ("POST", keys, json!({ "expires_at": life })),
        ("POST", keys, json!({ "permissions": { "message_send": true }, "expires_at": life })),
        ("POST", keys, json!({ "permissions": { "message_read": true } })),
        ("PATCH", &wide, json!({ "permissions": { "message_read": true } })),
        ("DELETE", &wide, Value::Null),
    ] {
        let heard = narrow.call(method, path, body.clone()).await;
        let code = &heard.body["code"];
        assert_eq!((heard.status, code), (403, &json!("permission_escalation")), "{method} {path} {body}");
    }
    let allowed = json!({ "permissions": { "message_read": true }, "expires_at": life });
    let made = narrow.call("POST", keys, allowed).await;
    assert_eq!(made.status, 200, "{}", made.body);
    let own = format!("{keys}/{}", made.body["api_key_id"].as_str().unwrap());
    assert_eq!(narrow.call("PATCH", &own, json!({ "permissions": null })).await.status, 403);
    assert_eq!(narrow.call("DELETE", &own, Value::Null).await.status, 204);
}

#[tokio::test]
async fn what_is_not_built_is_not_found_and_never_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let client = Client::new(&floor(folder.path()).await);
    client.inbox("ada").await;
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/v0/webhooks"),
        ("POST", "/v0/agent/sign-up"),
        ("POST", "/v0/inboxes/ada@agents.example/drafts"),
        ("POST", "/v0/inboxes/ada@agents.example/messages/%3Ca@b%3E/forward"),
        ("DELETE", "/v0/inboxes/ada@agents.example/messages/%3Ca@b%3E"),
        ("GET", "/v0/inboxes/ada@agents.example/messages/search?q=x"),
        ("PUT", "/healthz"),
        ("GET", "/v1/dev/captured"),
    ] {
        let heard = client.call(method, path, Value::Null).await;
        assert_eq!((heard.status, &heard.body["code"]), (404, &json!("not_found")), "{method} {path}");
        assert!(heard.body["fix"].is_string() && heard.body["docs"].is_string(), "{}", heard.body);
    }
}

/// The client of a long poll vanished between the claim and its answer, and the item lay there for five minutes.
#[tokio::test]
async fn a_claim_that_nobody_heard_of_goes_back_without_an_attempt() {
    let folder = tempfile::tempdir().unwrap();
    let floor = floor(folder.path()).await;
    let client = Client::new(&floor);
    client.inbox("ada").await;
    deliver(&floor, &["ada"]).await;
    let unheard = client.ask("POST", "/v1/work-items/claim", Value::Null).await;
    assert_eq!(client.get("/v1/work-items?state=claimed").await.body["count"], 1);
    drop(unheard);
    let mut tries = 0;
    let item = loop {
        let available = client.get("/v1/work-items?state=available").await.body;
        if available["count"] == 1 {
            break available["work_items"][0].clone();
        }
        tries += 1;
        assert!(tries < 200, "the item did not come back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(item["attempts"], 0, "{item}");
    let claimed = client.call("POST", "/v1/work-items/claim", Value::Null).await.body;
    assert_eq!(claimed["work_items"][0]["lease"]["fence"], 2, "{claimed}");
    assert_eq!(claimed["work_items"][0]["messages"][0]["text"], "Hi.\n");
    assert_eq!(client.get("/v1/work-items?state=claimed").await.body["count"], 1);
}

/// One DATA to many inboxes makes items with the same time and the same number: a page must not end between them
/// and lose the rest.
#[tokio::test]
async fn rows_made_in_one_instant_are_each_on_one_page() {
    let folder = tempfile::tempdir().unwrap();
    let floor = floor(folder.path()).await;
    let client = Client::new(&floor);
    let names = ["a", "b", "c", "d", "e"];
    for name in names {
        client.inbox(name).await;
    }
    deliver(&floor, &names).await;
    for (path, listed) in [("/v1/work-items?limit=2", "work_items"), ("/v0/threads?limit=2", "threads")] {
        let (mut seen, mut token) = (Vec::new(), String::new());
        loop {
            let page = client.get(&format!("{path}{token}")).await.body;
            let rows = page[listed].as_array().unwrap();
            seen.extend(rows.iter().map(|row| row["inbox_id"].as_str().unwrap().to_owned()));
            let Some(next) = page["next_page_token"].as_str() else { break };
            token = format!("&page_token={next}");
        }
        seen.sort();
        assert_eq!(seen, names.map(|name| format!("{name}@agents.example")), "{path}");
    }
}
