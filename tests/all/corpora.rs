//! Other people's mail, all of it, through the front door: stored byte for byte, and threaded as expected except where
//! the rule against forged references says otherwise.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::world::{api::path_escape, mail, needs, postgres::Database, server::TestServer, smtp::Smtp};

/// Name and content, with the line ends that the sending client makes.
struct Letter {
    name: String,
    bytes: Vec<u8>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_of_the_corpora_is_stored_byte_for_byte_on_sqlite() {
    stored_byte_for_byte(Database::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_of_the_corpora_is_stored_byte_for_byte_on_postgres() {
    let Some(database) = Database::postgres() else { return };
    stored_byte_for_byte(database).await;
}

async fn stored_byte_for_byte(database: Database) -> Option<()> {
    let corpora = needs::corpora()?;
    let server = TestServer::new().inbox("ada").on(&database).start().await;
    let mut letters = letters(&corpora.join("mime"));
    letters.extend(self::letters(&corpora.join("threading")));
    assert!(letters.len() > 250, "the corpora are not complete: {} messages", letters.len());
    let refused = deliver(&server, "ada@agents.example", &letters).await;
    for (name, reply) in &refused {
        eprintln!("refused: {name}: {reply}");
    }
    assert!(refused.is_empty(), "no rule that the README names refuses any of these");

    let stored = stored(&server, "ada@agents.example").await;
    for letter in &letters {
        assert!(stored.contains_key(&letter.bytes), "{} is not there as it was sent", letter.name);
    }
    let unparsed = stored.values().filter(|m| m["unparsed"] == true || has_label(m, "unparsed")).count();
    eprintln!("{} messages, {} different, {unparsed} marked unparsed", letters.len(), stored.len());
    assert!(server.alive());
    Some(())
}

/// REFS of Dovecot (by Message-IDs alone) is the expectation. We are stricter: a reply by somebody who never took part
/// opens a thread of its own, because References can be forged (the inbox is what is attacked, not a mailing list).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_threads_of_a_mailing_list_come_out_as_expected_or_say_why_not() {
    threads_of_a_list().await;
}

async fn threads_of_a_list() -> Option<()> {
    let folder = needs::corpora()?.join("threading/sa-exmh");
    let expected: Value =
        serde_json::from_slice(&std::fs::read(folder.join("threads.json")).unwrap()).unwrap();
    let server = TestServer::new().inbox("ada").start().await;
    let letters =
        strings(&expected["order"]).into_iter().map(|name| letter(&folder, &name)).collect::<Vec<_>>();
    assert!(deliver(&server, "ada@agents.example", &letters).await.is_empty());
    let stored = stored(&server, "ada@agents.example").await;
    let thread = |letter: &Letter| stored[&letter.bytes]["thread_id"].as_str().unwrap().to_owned();

    // Never more together than the most generous reading of the standard would put together.
    let mut group_of: HashMap<String, usize> = HashMap::new();
    for (n, group) in expected["imap_THREAD_REFERENCES"]["groups"].as_array().unwrap().iter().enumerate() {
        group_of.extend(strings(group).into_iter().map(|name| (name, n)));
    }
    let mut groups_of_thread: HashMap<String, HashSet<usize>> = HashMap::new();
    for letter in &letters {
        groups_of_thread.entry(thread(letter)).or_default().insert(group_of[&letter.name]);
    }
    assert!(groups_of_thread.values().all(|groups| groups.len() == 1), "strangers were put into one thread");

    // In the order of arrival: nobody is in a thread in which neither he nor his list took part, and who cites a thread
    // in which one of them did is not left outside. The rest are newcomers, listed.
    let mut thread_of_id: HashMap<String, String> = HashMap::new();
    let mut took_part: HashMap<String, HashSet<String>> = HashMap::new();
    let (mut joined, mut newcomers, mut unexplained) = (0, 0, Vec::new());
    for letter in &letters {
        let (own, parties) = (thread(letter), parties(&letter.bytes));
        let of = |thread: &str| took_part.get(thread).is_some_and(|people| !people.is_disjoint(&parties));
        let cited = cited(&letter.bytes)
            .iter()
            .filter_map(|id| thread_of_id.get(id).cloned())
            .collect::<HashSet<_>>();
        let allowed = cited.iter().filter(|thread| of(thread)).collect::<Vec<_>>();
        let name = &letter.name;
        match took_part.contains_key(&own) {
            // By a citation, or because both cite a parent that never came.
            true if of(&own) => joined += 1,
            true => unexplained.push(format!("{name} joined a thread in which {parties:?} took no part")),
            false if !allowed.is_empty() => {
                unexplained
                    .push(format!("{name} stays out of {allowed:?}, where one of {parties:?} took part"));
            }
            false if !cited.is_empty() => {
                newcomers += 1;
                eprintln!("{name}: newcomers, {parties:?}, cite a thread in which they took no part");
            }
            false => {}
        }
        if let Some(id) = mail::header(&letter.bytes, "Message-ID") {
            thread_of_id.insert(id.trim().to_owned(), own.clone());
        }
        took_part.entry(own).or_default().extend(parties);
    }
    let (threads, by_references) = (took_part.len(), expected["stats"]["threads_REFS"].as_u64().unwrap());
    eprintln!(
        "{} messages, {threads} threads ({by_references} by references alone); {joined} joined, {newcomers} newcomers stand alone",
        letters.len(),
    );
    assert!(unexplained.is_empty(), "{}", unexplained.join("\n"));
    assert!(threads as u64 <= by_references + 2, "{threads} threads of {by_references}");
    Some(())
}

/// Dovecot's own small cases, each mailbox in an inbox of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_small_threading_cases_lose_nothing() {
    small_cases().await;
}

async fn small_cases() -> Option<()> {
    let folder = needs::corpora()?.join("threading/imaptest");
    let server = TestServer::new().start().await;
    let mut files = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
    files.sort();
    for (n, file) in files.iter().filter(|f| f.extension().is_some_and(|e| e == "mbox")).enumerate() {
        let inbox = server.add_inbox(&format!("case{n}")).await;
        let letters = mailbox(file);
        assert!(deliver(&server, &inbox, &letters).await.is_empty(), "{}", file.display());
        let stored = stored(&server, &inbox).await;
        let threads =
            letters.iter().map(|letter| stored[&letter.bytes]["thread_id"].to_string()).collect::<Vec<_>>();
        let count = threads.iter().collect::<HashSet<_>>().len();
        eprintln!("{}: {} messages in {count} threads", file.file_name().unwrap().display(), letters.len());
    }
    Some(())
}

/// Everything below a folder that is a message; mailboxes are taken apart.
fn letters(folder: &Path) -> Vec<Letter> {
    let mut files = Vec::new();
    walk(folder, &mut files);
    files.sort();
    let mut all = Vec::new();
    for file in files {
        match file.extension().and_then(|e| e.to_str()) {
            Some("eml") => {
                all.push(letter(file.parent().unwrap(), &file.file_name().unwrap().to_string_lossy()))
            }
            Some("mbox") => all.extend(mailbox(&file)),
            _ => {}
        }
    }
    all
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() { walk(&path, files) } else { files.push(path) }
    }
}

fn letter(folder: &Path, name: &str) -> Letter {
    let bytes = std::fs::read(folder.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    Letter { name: name.to_owned(), bytes: mail::with_crlf(without_from_line(&bytes)) }
}

/// A leading `From ` line is the mailbox's, not the message's.
fn without_from_line(bytes: &[u8]) -> &[u8] {
    match bytes.strip_prefix(b"From ") {
        Some(rest) => rest.iter().position(|b| *b == b'\n').map_or(bytes, |end| &rest[end + 1..]),
        None => bytes,
    }
}

fn mailbox(file: &Path) -> Vec<Letter> {
    let bytes = std::fs::read(file).unwrap();
    let mut starts = vec![0];
    starts.extend((1..bytes.len()).filter(|&at| bytes[at..].starts_with(b"From ") && bytes[at - 1] == b'\n'));
    starts.push(bytes.len());
    let name = file.file_name().unwrap().to_string_lossy().into_owned();
    starts
        .windows(2)
        .enumerate()
        .map(|(n, ends)| Letter {
            name: format!("{name} #{}", n + 1),
            bytes: mail::with_crlf(without_from_line(&bytes[ends[0]..ends[1]])),
        })
        .collect()
}

/// Sends them all, in order, and gives those that were refused.
async fn deliver(server: &TestServer, inbox: &str, letters: &[Letter]) -> Vec<(String, String)> {
    let mut refused = Vec::new();
    let mut session: Option<Smtp> = None;
    for letter in letters {
        if session.is_none() {
            let mut fresh = server.dial().await;
            fresh.expect("EHLO client.example", 250).await;
            session = Some(fresh);
        }
        let open = session.as_mut().expect("session");
        open.transcript.clear();
        match open.transaction("corpus@remote.example", &[inbox], &letter.bytes).await {
            Ok(reply) if reply.code == 250 => {}
            Ok(reply) => {
                refused.push((letter.name.clone(), format!("{} {}", reply.code, reply.text)));
                session = None;
            }
            Err(error) => panic!("{}: {error}\n{}", letter.name, open.transcript),
        }
    }
    refused
}

/// What an inbox holds: the bytes below our trace headers → the message as the API gives it.
async fn stored(server: &TestServer, inbox: &str) -> HashMap<Vec<u8>, Value> {
    let path = format!("/v0/inboxes/{}/messages", path_escape(inbox));
    let list = server.api.all(&format!("{path}?include_spam=true&include_blocked=true"), "messages").await;
    let mut all = HashMap::new();
    for item in list {
        let id = item["message_id"].as_str().expect("message_id");
        let message = server.api.get(&format!("{path}/{}", path_escape(id))).await.ok();
        let raw = server.raw(inbox, id).await;
        let below = below_our_trace(&raw);
        if let Some(headless) = below.strip_prefix(b"\r\n") {
            // The empty line that keeps a body without any header from becoming one.
            all.insert(headless.to_vec(), message.clone());
        }
        all.insert(below.to_vec(), message);
    }
    all
}

/// The message without what we put on top of it: Return-Path, Received, Authentication-Results.
fn below_our_trace(mut raw: &[u8]) -> &[u8] {
    for name in ["Return-Path:", "Received:", "Authentication-Results: mx.agents.example"] {
        if raw.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name.as_bytes())) {
            let end = raw.windows(3).position(|w| w[..2] == *b"\r\n" && w[2] != b' ' && w[2] != b'\t');
            raw = &raw[end.map_or(raw.len(), |end| end + 2)..];
        }
    }
    raw
}

fn author(bytes: &[u8]) -> String {
    let from = mail::header(bytes, "From").unwrap_or_default();
    let inside = from.rsplit_once('<').and_then(|(_, rest)| rest.split_once('>')).map(|(address, _)| address);
    inside.unwrap_or_else(|| from.split('(').next().unwrap_or("").trim()).to_ascii_lowercase()
}

/// Who takes part by this message: its author, and the list that it came through.
fn parties(bytes: &[u8]) -> HashSet<String> {
    HashSet::from_iter(std::iter::once(author(bytes)).chain(mail::header(bytes, "List-Id")))
}

fn cited(bytes: &[u8]) -> Vec<String> {
    let both =
        ["References", "In-Reply-To"].map(|name| mail::header(bytes, name).unwrap_or_default()).join(" ");
    both.split('<').skip(1).filter_map(|part| part.split_once('>')).map(|(id, _)| format!("<{id}>")).collect()
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

fn has_label(message: &Value, label: &str) -> bool {
    message["labels"].as_array().is_some_and(|labels| labels.iter().any(|l| l == label))
}
