//! Scores over other people's mail: printed, and a failure where one falls below what was reached before.
//!
//! `GATEPOST_SHOW=1` prints every case that is read otherwise.

use std::path::Path;

use serde_json::Value;

use super::corpora_tests::{corpora, crlf};
use super::*;

fn cases(folder: &Path, topic: &str) -> Vec<Value> {
    let manifest = std::fs::read(folder.join(topic).join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    manifest["cases"].as_array().unwrap().clone()
}

fn show(text: impl FnOnce() -> String) {
    if std::env::var_os("GATEPOST_SHOW").is_some() {
        println!("{}", text());
    }
}

fn meaning_of(raw: &[u8]) -> Meaning {
    let read = structure(raw);
    let domain = read.from.first().and_then(|from| from.address.rsplit_once('@')).map(|(_, domain)| domain);
    meaning(raw, &read, Sender { domain, null: false })
}

/// The labels say which headers are there; which kind they make is defined in `kind`.
#[test]
fn kinds_of_real_mail() {
    let Some(folder) = corpora("kinds of mail") else { return };
    let (mut right, mut all) = (0, 0);
    let mut wanted = Vec::new();
    for case in cases(&folder, "autoreply_calendar_lists") {
        let (file, says) = (case["file"].as_str().unwrap(), &case["expected"]);
        let want: &[Kind] = match () {
            _ if says["is_invite"] == true => &[Kind::Calendar],
            _ if says["bounce"] == true => &[Kind::Bounce],
            _ if says["autoreply"] == true => &[Kind::AutoReply],
            _ if says["bulk"] == true => &[Kind::List],
            _ => &[Kind::Person, Kind::Notification],
        };
        wanted.push((folder.join("autoreply_calendar_lists").join(file), want));
    }
    for case in cases(&folder, "bounces") {
        let file = case["file"].as_str().unwrap();
        let want: &[Kind] = match () {
            _ if file.starts_with("arf-") => &[Kind::Report],
            _ if file.starts_with("rfc3834-") => &[Kind::AutoReply],
            _ => &[Kind::Bounce],
        };
        wanted.push((folder.join("bounces").join(file), want));
    }
    for (path, want) in wanted {
        let raw = crlf(&std::fs::read(&path).unwrap());
        let got = meaning_of(&raw).kind;
        all += 1;
        right += usize::from(want.contains(&got));
        if !want.contains(&got) {
            show(|| format!("{}: {got:?}, not {want:?}", path.display()));
        }
    }
    println!("kinds: {right} of {all}");
    assert!(right * 100 >= all * 75, "{right} of {all}");
}
