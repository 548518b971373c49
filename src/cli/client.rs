//! How the commands speak with a running server: its own HTTP API, with a key, like everybody else.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Method;
use serde_json::Value;

/// Longer than the longest wait that the API offers (50 s).
const DEADLINE: Duration = Duration::from_secs(70);
/// What the API gives at most in one page.
const PAGE: usize = 100;

/// Which server, as whom, and how the answer is shown.
#[derive(Debug, Args)]
pub(crate) struct Remote {
    /// The server's address
    #[arg(long, env = "GATEPOST_URL", default_value = "http://127.0.0.1:8025", global = true)]
    url: String,
    /// An API key
    #[arg(long, env = "GATEPOST_KEY", hide_env_values = true, global = true)]
    key: Option<String>,
    /// Print the server's answer as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

impl Remote {
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.call(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> anyhow::Result<Value> {
        self.call(Method::POST, path, Some(body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> anyhow::Result<Value> {
        self.call(Method::PUT, path, Some(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> anyhow::Result<Value> {
        self.call(Method::DELETE, path, None).await
    }

    /// Every page of a list, as one answer: `{"count": …, "<name>": […]}`.
    pub(crate) async fn list(&self, path: &str, name: &str) -> anyhow::Result<Value> {
        let mut all = vec![];
        let mut page = String::new();
        loop {
            let joint = if path.contains('?') { '&' } else { '?' };
            let mut answer = self.get(&format!("{path}{joint}limit={PAGE}{page}")).await?;
            if let Some(items) = answer.get_mut(name).and_then(Value::as_array_mut) {
                all.append(items);
            }
            match answer.get("next_page_token").and_then(Value::as_str) {
                Some(token) => page = format!("&page_token={}", segment(token)),
                None => return Ok(serde_json::json!({ "count": all.len(), name: all })),
            }
        }
    }

    /// An answer that is no JSON.
    pub(crate) async fn text(&self, path: &str) -> anyhow::Result<String> {
        self.send(Method::GET, path, None).await
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<Value> {
        let text = self.send(method, path, body).await?;
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    async fn send(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<String> {
        let Some(key) = &self.key else {
            bail!("no key: set GATEPOST_KEY or give --key (the first one is in data_dir/admin.key)");
        };
        let client = reqwest::Client::builder().timeout(DEADLINE).build()?;
        let url = format!("{}{path}", self.url.trim_end_matches('/'));
        let mut request = client.request(method, &url).bearer_auth(key);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.with_context(|| format!("no answer from {}", self.url))?;
        let status = response.status();
        let text = response.text().await.with_context(|| format!("half an answer from {}", self.url))?;
        if !status.is_success() {
            let answer: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
            let message = field(&answer, "message");
            let fix = field(&answer, "fix");
            bail!("{} {message} {fix}", status.as_u16());
        }
        Ok(text)
    }

    /// The answer as JSON if that was asked for, else as the words that `human` makes of it.
    pub(crate) fn show(&self, answer: &Value, human: impl Fn(&Value) -> String) {
        match self.json {
            true => println!("{answer:#}"),
            false => println!("{}", human(answer)),
        }
    }
}

/// A value as one segment of a path or of a query.
pub(crate) fn segment(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// A field as text: empty where it is missing or null.
pub(crate) fn field(value: &Value, pointer: &str) -> String {
    match value.pointer(&format!("/{pointer}")) {
        None | Some(Value::Null) => String::new(),
        // Terminals act on control characters, and some of this was written by strangers.
        Some(Value::String(text)) => text.chars().filter(|c| !c.is_control()).collect(),
        Some(other) => other.to_string(),
    }
}

/// A list as a table: one line each, columns under their names.
pub(crate) fn table(answer: &Value, list: &str, columns: &[(&str, &str)]) -> String {
    let empty = vec![];
    let items = answer.get(list).and_then(Value::as_array).unwrap_or(&empty);
    let mut rows = vec![columns.iter().map(|(title, _)| title.to_string()).collect::<Vec<_>>()];
    rows.extend(items.iter().map(|item| columns.iter().map(|(_, pointer)| field(item, pointer)).collect()));
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..columns.len()).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}
