//! Which thread a message belongs to.
//!
//! References can be forged by anybody who has seen a Message-ID, so citing is not enough. A message joins a
//! thread only if it cites a Message-ID that we made (128 random bits: only those who got the mail know it),
//! or if its author already took part and did not fail DMARC. The inbox itself and our own domains do not
//! count, unless the sender is verified; nor does whom a newcomer puts into Cc. Everything else opens a thread
//! of its own, which says what it claims to belong to (mail-servers.md §7, thread hijack).
//!
//! RFC 5322 §3.6.4 (References, In-Reply-To). A thread belongs to one inbox, and threads are never merged.

use std::collections::HashSet;

use super::{Incoming, subject};
use crate::clock::{DAY, Millis};
use crate::ids::InboxKey;
use crate::store::message::{self, Cited};
use crate::store::{StoreError, Tx, thread};

/// Message-IDs that are looked at: the nearest, and the root. RFC 5322 sets no bound; senders are hostile.
const MAX_CITED: usize = 30;
/// Missing parents that are remembered for each message.
const MAX_MISSING: usize = 10;
/// A reply without References is matched by its subject for this long.
const SUBJECT_WINDOW: Millis = 30 * DAY;

/// Where a message goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// The thread that it joins; `None` opens one.
    pub join: Option<i64>,
    /// The thread that it cites but may not join.
    pub claims: Option<i64>,
    /// The first message with this Message-ID and body.
    pub duplicate_of: Option<i64>,
    /// The Message-ID is taken in this inbox, by a message with another body.
    pub id_taken: bool,
    /// Our own message, come back to the inbox that sent it.
    pub echo: bool,
    /// It cites a message that this inbox sent.
    pub answers_ours: bool,
    /// Cited, and not here (yet).
    pub missing: Vec<String>,
    /// Others were waiting for this very message.
    pub awaited: bool,
}

pub(super) async fn find(
    tx: &mut Tx,
    inbox: InboxKey,
    own_address: &str,
    incoming: &Incoming,
) -> Result<Found, StoreError> {
    let nearest_first = nearest_first(incoming);
    let mut asked = nearest_first.clone();
    asked.extend(incoming.structure.message_id.clone());
    let known = message::cited(tx, inbox, &asked).await?;
    let mut found = Found::default();
    if settle_own_id(&mut found, &known, own_address, incoming) {
        return Ok(found);
    }
    let author = credible_author(own_address, incoming);
    for id in &nearest_first {
        let here: Vec<&Cited> = known.iter().filter(|c| c.rfc_message_id == *id).collect();
        if here.is_empty() && found.missing.len() < MAX_MISSING {
            found.missing.push(id.clone());
        }
        for cited in here {
            found.answers_ours |= cited.ours;
            if found.join.is_none() {
                let admitted =
                    cited.ours || took_part(tx, inbox, cited.thread_key, author.as_deref()).await?;
                if admitted {
                    found.join = Some(cited.thread_key);
                } else {
                    found.claims = found.claims.or(Some(cited.thread_key));
                }
            }
        }
    }
    if found.join.is_none() {
        join_those_who_wait(tx, inbox, incoming, author.as_deref(), &mut found).await?;
    }
    if found.join.is_none() && nearest_first.is_empty() {
        found.join = by_subject(tx, inbox, incoming, author.as_deref()).await?;
    }
    if found.join.is_some() {
        found.claims = None;
    }
    Ok(found)
}

/// In-Reply-To, then References from the last to the first: the nearest relative decides.
fn nearest_first(incoming: &Incoming) -> Vec<String> {
    let structure = &incoming.structure;
    let mut seen = HashSet::new();
    let mut ids: Vec<String> = structure
        .in_reply_to
        .iter()
        .chain(structure.references.iter().rev())
        .filter(|id| structure.message_id.as_ref() != Some(*id) && seen.insert(*id))
        .cloned()
        .collect();
    if ids.len() > MAX_CITED
        && let Some(root) = ids.pop()
    {
        ids.truncate(MAX_CITED - 1);
        ids.push(root);
    }
    ids
}

/// Messages that are here under the same Message-ID. True where that settles the thread.
fn settle_own_id(found: &mut Found, known: &[Cited], own_address: &str, incoming: &Incoming) -> bool {
    let Some(own) = &incoming.structure.message_id else { return false };
    let same_id = known.iter().filter(|c| c.rfc_message_id == *own);
    for same in same_id {
        found.id_taken = true;
        let same_body = same.body_hash == incoming.body_hash;
        let from_ourselves = incoming.author.as_ref().is_some_and(|a| a.key() == own_address);
        if same.ours && (same_body || from_ourselves) {
            found.echo = true;
        } else if same_body && !same.ours {
            found.duplicate_of = Some(same.duplicate_of.unwrap_or(same.message_key));
        } else {
            continue;
        }
        found.join = Some(same.thread_key);
        return true;
    }
    false
}

/// The author, where the claim to be that author may let a message into a thread.
fn credible_author(own_address: &str, incoming: &Incoming) -> Option<String> {
    let author = incoming.author.as_ref()?;
    let verified = incoming.verdict.verified_sender.as_ref().is_some_and(|v| v.key() == author.key());
    let ours = author.key() == own_address || incoming.author_is_ours;
    if incoming.verdict.dmarc_failed() || (ours && !verified) {
        return None;
    }
    Some(author.key())
}

async fn took_part(
    tx: &mut Tx,
    inbox: InboxKey,
    thread_key: i64,
    author: Option<&str>,
) -> Result<bool, StoreError> {
    match author {
        Some(author) => thread::took_part(tx, inbox, thread_key, author).await,
        None => Ok(false),
    }
}

/// A parent that arrives after its answers, or a second answer to a parent that never came.
async fn join_those_who_wait(
    tx: &mut Tx,
    inbox: InboxKey,
    incoming: &Incoming,
    author: Option<&str>,
    found: &mut Found,
) -> Result<(), StoreError> {
    let mut ids = found.missing.clone();
    ids.extend(incoming.structure.message_id.clone());
    for (id, thread_key) in thread::waiting_for(tx, inbox, &ids).await? {
        if took_part(tx, inbox, thread_key, author).await? {
            found.awaited = incoming.structure.message_id.as_ref() == Some(&id);
            found.join = Some(thread_key);
            return Ok(());
        }
        if incoming.structure.message_id.as_ref() != Some(&id) {
            found.claims = found.claims.or(Some(thread_key));
        }
    }
    Ok(())
}

/// Clients that send no References: an answer by its subject, from somebody who took part lately.
async fn by_subject(
    tx: &mut Tx,
    inbox: InboxKey,
    incoming: &Incoming,
    author: Option<&str>,
) -> Result<Option<i64>, StoreError> {
    let (Some(author), Some(text)) = (author, &incoming.structure.subject) else { return Ok(None) };
    let subject = subject::take_apart(text);
    if !subject.is_reply || subject.base.is_empty() {
        return Ok(None);
    }
    let since = tx.now() - SUBJECT_WINDOW;
    thread::by_subject(tx, inbox, author, &subject.base, since).await
}

/// Notes who took part, what is missing, and that nobody waits for this one any more.
pub(super) async fn remember(
    tx: &mut Tx,
    inbox: InboxKey,
    own_address: &str,
    incoming: &Incoming,
    thread_key: i64,
    found: &Found,
) -> Result<(), StoreError> {
    if let Some(author) = credible_author(own_address, incoming)
        && author != own_address
    {
        thread::add_participant(tx, inbox, thread_key, &author).await?;
    }
    for id in &found.missing {
        thread::add_missing_parent(tx, inbox, id, thread_key).await?;
    }
    if found.awaited
        && let Some(id) = &incoming.structure.message_id
    {
        thread::remove_missing_parent(tx, inbox, id).await?;
    }
    Ok(())
}
