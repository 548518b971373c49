//! What `gatepost dev` does instead of sending: one `.eml` file for each delivery, and three addresses that
//! behave like the outside world on a bad day.
//!
//! Promises: the file is on disk (synced, and its name too) before the delivery counts as done; the same
//! delivery captured twice is one file. RFC 2606 §2 (`.test`).

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::clock::rfc3339;
use crate::deliver::outcome::Outcome;
use crate::floor::Floor;
use crate::store::delivery::Delivery;

/// Files that a listing reads, newest first.
const LISTED: usize = 100;
/// Octets of a file that a listing shows.
const SHOWN: usize = 256 * 1024;

/// A captured mail as `GET /v1/dev/captured` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Captured {
    pub delivery_id: String,
    pub file: String,
    pub recipient: String,
    pub from: String,
    pub subject: String,
    pub message_id: String,
    pub captured_at: String,
    /// The mail as it would have been sent, without signatures.
    pub raw: String,
}

/// How a simulated recipient behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Simulated {
    Ordinary,
    Bounces,
    Defers,
    Complains,
}

pub(crate) fn simulated(recipient: &str) -> Simulated {
    match recipient.to_ascii_lowercase().as_str() {
        "bounce@simulator.test" => Simulated::Bounces,
        "defer@simulator.test" => Simulated::Defers,
        "complain@simulator.test" => Simulated::Complains,
        _ => Simulated::Ordinary,
    }
}

/// Captures one delivery.
pub(crate) async fn capture(floor: &Floor, delivery: &Delivery) -> Outcome {
    match simulated(&delivery.recipient) {
        Simulated::Bounces => {
            let mut outcome = Outcome::failed("5.1.1", "550 5.1.1 No such user (simulated)");
            outcome.personal = true;
            return outcome;
        }
        Simulated::Defers => return Outcome::deferred("4.2.0", "451 4.2.0 Try again later (simulated)"),
        Simulated::Ordinary | Simulated::Complains => {}
    }
    let raw = match floor.bodies.load(&floor.store, delivery.inbox, delivery.message_key).await {
        Ok(Some(raw)) => raw,
        Ok(None) => return Outcome::failed("5.3.0", "the message is gone from the store"),
        Err(error) => return Outcome::deferred("4.3.0", error.to_string()),
    };
    let (folder, name) = (folder(floor), format!("{}.eml", delivery.id()));
    let top = format!(
        "X-Gatepost-Captured-For: {}\r\nX-Gatepost-Captured-At: {}\r\n",
        delivery.recipient,
        rfc3339(floor.clock.now())
    );
    let path = folder.join(&name);
    let written =
        tokio::task::spawn_blocking(move || write(&folder, &name, &[top.as_bytes(), &raw].concat())).await;
    match written.map_err(std::io::Error::other).and_then(|r| r) {
        Ok(()) => Outcome::delivered("2.0.0", format!("captured in {}", path.display())),
        Err(error) => {
            tracing::error!(%error, path = %path.display(), "a mail cannot be captured");
            Outcome::deferred("4.3.1", format!("cannot be captured: {error}"))
        }
    }
}

/// What was captured, newest first.
pub async fn list(floor: &Floor) -> std::io::Result<Vec<Captured>> {
    let folder = folder(floor);
    tokio::task::spawn_blocking(move || read(&folder)).await.map_err(std::io::Error::other)?
}

fn folder(floor: &Floor) -> PathBuf {
    floor.config.data_dir.join("captured")
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    std::fs::create_dir_all(folder)?;
    // Under its own name only when it is whole: a listing never shows half a mail.
    let (temporary, path) = (folder.join(format!("{name}.tmp")), folder.join(name));
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, &path)?;
    std::fs::File::open(folder)?.sync_all()
}

fn read(folder: &Path) -> std::io::Result<Vec<Captured>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    // The names are ids, which sort by time.
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".eml"))
        .collect();
    names.sort_unstable_by(|a, b| b.cmp(a));
    names.truncate(LISTED);
    Ok(names.iter().filter_map(|name| show(folder, name)).collect())
}

fn show(folder: &Path, name: &str) -> Option<Captured> {
    let path = folder.join(name);
    let bytes = std::fs::read(&path).ok()?;
    let message = mail_parser::MessageParser::new().parse_headers(&bytes)?;
    let ours = |name: &str| message.header_raw(name).unwrap_or_default().trim().to_owned();
    Some(Captured {
        delivery_id: name.trim_end_matches(".eml").to_owned(),
        file: path.display().to_string(),
        recipient: ours("X-Gatepost-Captured-For"),
        from: message.from().and_then(|a| a.first()).and_then(|a| a.address()).unwrap_or_default().to_owned(),
        subject: message.subject().unwrap_or_default().to_owned(),
        message_id: message.message_id().map(|id| format!("<{id}>")).unwrap_or_default(),
        captured_at: ours("X-Gatepost-Captured-At"),
        raw: String::from_utf8_lossy(bytes.get(..SHOWN).unwrap_or(&bytes)).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captured_mail_is_listed_newest_first_and_whole_files_only() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("captured");
        assert_eq!(read(&place).unwrap(), []);
        let mail =
            |n: u8| format!("X-Gatepost-Captured-For: bob@remote.example\r\nSubject: {n}\r\n\r\nhi\r\n");
        write(&place, "dlv_1.eml", mail(1).as_bytes()).unwrap();
        write(&place, "dlv_2.eml", mail(2).as_bytes()).unwrap();
        write(&place, "dlv_2.eml", mail(2).as_bytes()).unwrap();
        std::fs::write(place.join("dlv_3.eml.tmp"), "half").unwrap();
        let listed = read(&place).unwrap();
        assert_eq!(listed.iter().map(|c| c.subject.as_str()).collect::<Vec<_>>(), ["2", "1"]);
        assert_eq!(listed[0].recipient, "bob@remote.example");
    }
}
