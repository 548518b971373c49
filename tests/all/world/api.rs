//! A small HTTP client that speaks as one key, and answers that can be asserted in one word.

use std::{fmt, time::Duration};

use serde_json::Value;

/// One key at one server. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    base: String,
    key: String,
    http: reqwest::Client,
}

/// What came back. `body` is JSON where it was JSON, otherwise a string.
#[derive(Debug, Clone)]
pub struct Answer {
    pub asked: String,
    pub status: u16,
    pub body: Value,
}

impl Api {
    pub fn new(base: impl fmt::Display, key: &str) -> Api {
        // Plain HTTP on loopback, but reqwest wants a provider to be there all the same.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let http =
            reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(80)).build().expect("client");
        Api { base: base.to_string(), key: key.to_owned(), http }
    }

    pub fn with_key(&self, key: &str) -> Api {
        Api { key: key.to_owned(), ..self.clone() }
    }

    pub fn base(&self) -> &str {
        &self.base
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], None).await.expect("GET")
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.ask("POST", path, &[], Some(body)).await.expect("POST")
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.ask("PUT", path, &[], Some(body)).await.expect("PUT")
    }

    pub async fn patch(&self, path: &str, body: Value) -> Answer {
        self.ask("PATCH", path, &[], Some(body)).await.expect("PATCH")
    }

    /// Everything else; an `Err` is a connection that broke, which some tests provoke.
    pub async fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Result<Answer, reqwest::Error> {
        let bytes = body.map(|body| ("application/json", body.to_string().into_bytes()));
        self.ask_bytes(method, path, headers, bytes).await
    }

    /// A body that need not be JSON at all.
    pub async fn ask_bytes(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<(&str, Vec<u8>)>,
    ) -> Result<Answer, reqwest::Error> {
        let method: reqwest::Method = method.parse().expect("method");
        let asked = format!("{method} {path}");
        let url = if path.starts_with("http") { path.to_owned() } else { format!("{}{path}", self.base) };
        let mut request = self.http.request(method, url);
        if !self.key.is_empty() {
            request = request.header("Authorization", format!("Bearer {}", self.key));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some((kind, bytes)) = body {
            request = request.header("Content-Type", kind).body(bytes);
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        let bytes = response.bytes().await?;
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Ok(Answer { asked, status, body })
    }

    /// The bytes behind a `download_url`, with no key: the URL itself must be enough.
    pub async fn download(&self, url: &str) -> Vec<u8> {
        let response = self.http.get(url).send().await.expect("download");
        assert_eq!(response.status().as_u16(), 200, "GET {url}");
        response.bytes().await.expect("download").to_vec()
    }

    /// The whole event log.
    pub async fn all_events(&self) -> Vec<Value> {
        let page = self.get("/v1/events?limit=1000").await.ok();
        page["events"].as_array().expect("events").clone()
    }

    /// All pages of a list, as one.
    pub async fn all(&self, path: &str, name: &str) -> Vec<Value> {
        let mut found = Vec::new();
        let mut token = String::new();
        loop {
            let mark = if path.contains('?') { '&' } else { '?' };
            let page = self.get(&format!("{path}{mark}limit=100{token}")).await.ok();
            found.extend(
                page[name].as_array().unwrap_or_else(|| panic!("{path} has no {name}: {page}")).clone(),
            );
            match page["next_page_token"].as_str() {
                Some(next) => token = format!("&page_token={}", path_escape(next)),
                None => return found,
            }
        }
    }
}

impl Answer {
    /// The body of a success.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert!((200..300).contains(&self.status), "{} answered {}: {}", self.asked, self.status, self.body);
        self.body
    }

    /// The body of a refusal, which must have the documented shape: `{name, code, message, …}` (DESIGN §6).
    #[track_caller]
    pub fn refused(self, status: u16, code: &str) -> Value {
        let Answer { asked, status: got, body, .. } = self;
        assert_eq!((got, body["code"].as_str()), (status, Some(code)), "{asked}: {body}");
        assert!(
            body["name"].is_string() && body["message"].is_string(),
            "{asked}: not the shape of an error: {body}"
        );
        body
    }
}

/// Percent-encodes one path segment or query value.
pub fn path_escape(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}
