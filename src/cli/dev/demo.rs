//! The demo: an inbox, its key, and a conversation with it as commands to paste.
//!
//! The inbox and the key are made over the server's own API, as anybody would make them. The commands need
//! `sh` and `curl` alone; a machine without Python and jq is the rule in containers.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use crate::server::{ADMIN_KEY_FILE, Server};

const ATTEMPT: Duration = Duration::from_secs(10);

/// What `gatepost dev` shows beside the addresses.
pub(super) struct Keys {
    admin: String,
    inbox: String,
    inbox_id: String,
}

/// Makes the demo inbox and its key, or finds those of the last start.
pub(super) async fn prepare(server: &Server) -> anyhow::Result<Keys> {
    let config = &server.floor().config;
    let address = server.ready().http.first().context("http.listen is off")?;
    let admin = match std::env::var("GATEPOST_ADMIN_KEY") {
        Ok(key) if !key.is_empty() => key,
        _ => read_key(&config.data_dir.join(ADMIN_KEY_FILE)).context("no admin key")?,
    };
    let api = Api {
        base: format!("http://{}", reachable(address)),
        client: reqwest::Client::builder().timeout(ATTEMPT).build()?,
    };
    let wanted = json!({ "username": "ada", "display_name": "Ada", "client_id": "gatepost-dev-ada" });
    let inbox = api.post(&admin, "/v0/inboxes", wanted).await?;
    let inbox_id = text(&inbox, "inbox_id")?;
    let file = config.data_dir.join("ada.key");
    if let Some(key) = read_key(&file)
        && api.knows(&key).await?
    {
        return Ok(Keys { admin, inbox: key, inbox_id });
    }
    let path = format!("/v0/inboxes/{inbox_id}/api-keys");
    let key = text(&api.post(&admin, &path, json!({ "name": "gatepost dev" })).await?, "api_key")?;
    write_key(&file, &key).with_context(|| file.display().to_string())?;
    Ok(Keys { admin, inbox: key, inbox_id })
}

struct Api {
    base: String,
    client: reqwest::Client,
}

impl Api {
    async fn post(&self, key: &str, path: &str, body: Value) -> anyhow::Result<Value> {
        let request = self.client.post(format!("{}{path}", self.base)).bearer_auth(key).json(&body);
        let response = request.send().await?;
        let status = response.status();
        let text = response.text().await?;
        anyhow::ensure!(status.is_success(), "POST {path}: {status} {text}");
        Ok(serde_json::from_str(&text)?)
    }

    /// Whether the key is one of this database: the folder may have been emptied by half.
    async fn knows(&self, key: &str) -> anyhow::Result<bool> {
        let response = self.client.get(format!("{}/v0/auth/me", self.base)).bearer_auth(key).send().await?;
        Ok(response.status().is_success())
    }
}

fn text(answer: &Value, field: &str) -> anyhow::Result<String> {
    let value = answer.get(field).and_then(Value::as_str);
    Ok(value.with_context(|| format!("the answer has no {field}: {answer}"))?.to_owned())
}

fn read_key(path: &Path) -> Option<String> {
    let key = std::fs::read_to_string(path).ok()?.trim().to_owned();
    (!key.is_empty()).then_some(key)
}

fn write_key(path: &PathBuf, key: &str) -> std::io::Result<()> {
    let mut file = std::fs::File::options().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    writeln!(file, "{key}")
}

/// Every interface is reached by loopback from here.
fn reachable(address: &SocketAddr) -> SocketAddr {
    match (address.ip().is_unspecified(), address.is_ipv6()) {
        (false, _) => *address,
        (true, true) => SocketAddr::new(std::net::Ipv6Addr::LOCALHOST.into(), address.port()),
        (true, false) => SocketAddr::new(std::net::Ipv4Addr::LOCALHOST.into(), address.port()),
    }
}

/// What is printed once the server is ready.
pub(super) fn session(server: &Server, keys: &Keys) -> String {
    let first = |all: &[SocketAddr]| all.first().map(reachable).map_or("-".to_owned(), |a| a.to_string());
    let (smtp, http) = (first(&server.ready().smtp), first(&server.ready().http));
    let data = server.floor().config.data_dir.display();
    let place =
        Place { smtp: &smtp, http: &http, admin: &keys.admin, inbox: &keys.inbox, inbox_id: &keys.inbox_id };
    format!(
        "
Gatepost is running. API http://{http}, SMTP {smtp}, data in {data} (Ctrl-C stops it).
Mail to other domains is captured in {data}/captured, never sent.
  admin key        {admin}
  {inbox_id}  {inbox}

Paste this into another terminal: a stranger writes, Ada takes the work, answers, and the answer is shown.

{commands}",
        admin = keys.admin,
        inbox_id = keys.inbox_id,
        inbox = keys.inbox,
        commands = commands(&place),
    )
}

struct Place<'a> {
    smtp: &'a str,
    http: &'a str,
    admin: &'a str,
    inbox: &'a str,
    inbox_id: &'a str,
}

/// The conversation. `field` reads one value out of the claimed item, for want of a JSON parser. The stranger's
/// Message-ID differs each time, because a second mail with the same one would be a duplicate. No comments:
/// an interactive zsh would run them.
fn commands(place: &Place<'_>) -> String {
    let Place { smtp, http, admin, inbox, inbox_id } = place;
    format!(
        r#"ada='Authorization: Bearer {inbox}'
admin='Authorization: Bearer {admin}'
json='Content-Type: application/json'
api=http://{http}
field() {{ printf '%s' "$work" | grep -o "\"$1\":\"*[^\",}}]*" | head -n 1 | sed 's/^"[a-z_]*":"*//; s/</%3C/; s/>/%3E/'; }}
echo '== a stranger writes to ada, by SMTP'
printf '%s\n' "From: Sam <sam@stranger.example>" "To: {inbox_id}" "Subject: Opening hours" \
  "Message-ID: <$(date +%s)-$$@stranger.example>" "" "Are you open on Monday?" |
  curl -sS --crlf smtp://{smtp} --mail-from sam@stranger.example --mail-rcpt {inbox_id} -T -
echo '== ada claims the work item: hers alone until the lease ends'
work=$(curl -sS -X POST $api/v1/work-items/claim -H "$ada"); printf '%s\n' "$work"
item=$(field work_item_id) fence=$(field fence) message=$(field message_id)
echo '== she answers with the fence that says so, and completes the item'
curl -sS $api/v0/inboxes/{inbox_id}/messages/$message/reply -H "$ada" -H "$json" \
  -d '{{"text": "Yes, from nine to five.", "work_item_id": "'$item'", "fence": '$fence'}}'; echo
curl -sS -X POST $api/v1/work-items/$item/complete -H "$ada" -H "$json" -d '{{"fence": '$fence'}}'; echo
echo '== the answer, as it would have gone out'
sleep 1; curl -sS $api/v1/dev/captured -H "$admin"; echo"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_shows_what_dev_prints() {
        let place = Place {
            smtp: "127.0.0.1:2525",
            http: "127.0.0.1:8025",
            admin: "$(cat gatepost-dev/admin.key)",
            inbox: "$(cat gatepost-dev/ada.key)",
            inbox_id: "ada@agents.test",
        };
        // In the README the keys come from their files, so its quotes must let the shell see them.
        let commands =
            commands(&place).replace("'Authorization: Bearer $(cat ", "\"Authorization: Bearer $(cat ");
        let commands = commands.replace(".key)'", ".key)\"");
        let readme = include_str!("../../../README.md");
        assert!(readme.contains(&commands), "README.md should show:\n{commands}");
    }
}
