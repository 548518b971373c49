//! Which thread a message belongs to.
//!
//! References can be forged by anybody who has seen a Message-ID, so citing is not enough. A message joins a
//! thread only if it cites a Message-ID that we made (128 random bits: only those who got the mail know it),
//! or if its author already took part and did not fail DMARC. The inbox itself and our own domains do not
//! count, unless the sender is verified; nor does whom a newcomer puts into Cc. A mailing list takes part as
//! such: who writes through it joins its conversations. A stranger who forwards our mail begins one of his
//! own. Everything else opens a thread that says what it claims to belong to (mail-servers.md §7, hijack).
//!
//! Asked in this order, each only where the one before said nothing: References, what a report sends back,
//! what threads wait for, an Outlook conversation, an invitation, the subject. RFC 5322 §3.6.4. A thread
//! belongs to one inbox, and threads are never merged.

use std::collections::HashSet;

use super::subject::Prefix;
use super::{Incoming, copies, place};
use crate::address::Address;
use crate::clock::{DAY, Millis};
use crate::ids::InboxKey;
use crate::screen::structure::Structure;
use crate::store::body::Body;
use crate::store::message::Message;
use crate::store::thread::{Asker, Known, Relative};
use crate::store::{StoreError, Tx, thread};
use crate::verify::verdict::AuthResult;

/// Message-IDs that are looked at: the nearest, and the root. RFC 5322 sets no bound; senders are hostile.
const MAX_CITED: usize = 30;
/// Missing parents that are remembered for each message.
const MAX_MISSING: usize = 10;
/// An answer whose References lead nowhere is matched by its subject for this long.
const SUBJECT_WINDOW: Millis = 30 * DAY;
/// Authors to whom a list says that answers go.
const MAX_BEHIND_A_LIST: usize = 3;

/// Where a message goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// The thread that it joins; `None` opens one.
    pub join: Option<i64>,
    /// The thread that it cites but may not join.
    pub claims: Option<i64>,
    /// The first message that is the same.
    pub duplicate_of: Option<i64>,
    /// And policy keeps that one back.
    pub first_is_held: bool,
    /// The Message-ID is taken in this inbox, by a message with another body.
    pub id_taken: bool,
    /// Our own message, come back to the inbox that sent it.
    pub echo: bool,
    /// It cites a message that this inbox sent.
    pub answers_ours: bool,
    /// It is a report on a message that this inbox sent.
    pub reports_ours: bool,
    /// Names that the thread does not have yet.
    pub new_names: Vec<String>,
    /// Others were waiting for this very message.
    pub awaited: bool,
}

/// All that is known here by the names that a message names.
struct Kin(Vec<Relative>);

impl Kin {
    /// Messages with this Message-ID.
    fn messages<'a>(&'a self, id: &'a str) -> impl Iterator<Item = (&'a Relative, &'a Known)> {
        self.0.iter().filter_map(move |r| r.known.as_ref().filter(|_| r.name == id).map(|known| (r, known)))
    }

    /// Threads that have this name.
    fn threads<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Relative> {
        self.0.iter().filter(move |r| r.known.is_none() && r.name == name)
    }
}

pub(super) async fn find(
    tx: &mut Tx,
    inbox: InboxKey,
    own_address: &str,
    incoming: &Incoming,
    body: &Body,
) -> Result<Found, StoreError> {
    let structure = &incoming.structure;
    let cited: Vec<String> =
        incoming.cited.iter().filter(|id| !is_address(id, own_address)).cloned().collect();
    let print = copies::print(incoming);
    let author = credible_author(own_address, incoming);
    let also = structure.message_id.iter().chain(&print).chain(&structure.ties.names);
    let asked: Vec<String> = cited.iter().chain(also).chain(&structure.ties.returned).cloned().collect();
    let list = credible_list(own_address, incoming);
    let cites_as = author.as_deref().map(behind);
    let asker = Asker {
        author: author.as_deref(),
        list: list.as_deref(),
        cites_as: cites_as.as_deref(),
        named: &named(incoming),
        reply_to: &place::texts(&structure.reply_to),
    };
    let kin = Kin(thread::relatives(tx, inbox, &asked, asker).await?);
    let mut found = Found::default();
    if settle_own_id(tx, inbox, own_address, incoming, body, &kin, &mut found).await? {
        return Ok(found);
    }
    if let Some(first) = print.as_deref().and_then(|print| kin.threads(print).next()) {
        found.duplicate_of = first.message_key;
        found.join = Some(first.thread_key);
        return Ok(found);
    }
    let missing = by_references(&mut found, &kin, &cited, incoming);
    by_report(&mut found, &kin, incoming);
    by_name(&mut found, &kin, &missing, incoming);
    if found.join.is_none() && found.claims.is_none() && missing.len() == cited.len() {
        found.join = by_subject(tx, inbox, incoming, author.as_deref()).await?;
    }
    if found.join.is_some() {
        found.claims = None;
    }
    let kept = missing.into_iter().take(MAX_MISSING).chain(structure.ties.names.iter().cloned()).chain(print);
    let is_new = |name: &String| kin.threads(name).all(|known| Some(known.thread_key) != found.join);
    found.new_names = kept.filter(is_new).collect();
    Ok(found)
}

/// In-Reply-To, then References from the last to the first: the nearest relative decides. Bounded before anything is
/// compared with a message's thousands of addresses.
pub(super) fn cited(structure: &Structure) -> Vec<String> {
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
    ids.retain(|id| !is_correspondent(structure, id));
    ids
}

/// `In-Reply-To: <bob@b>'s message of Sat`: an address, under which all his threads would become one.
fn is_correspondent(structure: &Structure, id: &str) -> bool {
    let mut people =
        structure.from.iter().chain(&structure.reply_to).chain(&structure.to).chain(&structure.cc);
    people.any(|one| is_address(id, &one.address))
}

fn is_address(id: &str, address: &str) -> bool {
    id.trim_start_matches('<').trim_end_matches('>').eq_ignore_ascii_case(address)
}

/// The author that it names, as `Message` has it, believed or not.
fn named(incoming: &Incoming) -> String {
    let first = || incoming.structure.from.first().map(ToString::to_string).unwrap_or_default();
    incoming.author.as_ref().map_or_else(first, Address::key)
}

/// Messages that are here under the same Message-ID. True where that settles the thread.
async fn settle_own_id(
    tx: &mut Tx,
    inbox: InboxKey,
    own_address: &str,
    incoming: &Incoming,
    body: &Body,
    kin: &Kin,
    found: &mut Found,
) -> Result<bool, StoreError> {
    let Some(own) = &incoming.structure.message_id else { return Ok(false) };
    let from_ourselves = incoming.author.as_ref().is_some_and(|a| a.key() == own_address);
    // What is kept back comes last: the message itself is the first of its copies.
    let mut same: Vec<(&Relative, &Known)> = kin.messages(own).collect();
    same.sort_by_key(|(_, known)| known.held);
    for (same, known) in same {
        found.id_taken = true;
        let same_body = known.body_hash == incoming.body_hash;
        if known.ours && (same_body || from_ourselves) {
            found.echo = true;
        } else if same_body && !known.ours && known.same_author && is_vouched_for(known, incoming) {
            found.duplicate_of = known.duplicate_of.or(same.message_key);
            found.first_is_held = known.held;
        } else {
            continue;
        }
        found.join = Some(same.thread_key);
        return Ok(true);
    }
    // One comparison: the first is what a list sent on, and a flood under one identifier costs no more.
    let first = kin.messages(own).next().map(|(first, _)| first);
    if let Some(first) = first
        && copies::is_list_copy(tx, inbox, incoming, body, first).await?
    {
        found.duplicate_of = first.message_key;
        found.first_is_held = first.known.as_ref().is_some_and(|known| known.held);
        found.join = Some(first.thread_key);
        return Ok(true);
    }
    Ok(false)
}

/// Whether a message that is here is as sure to be its author's as the one that came. What is less sure takes no
/// work from it: whoever got a copy, and is quicker, could send it on in the author's name.
pub(super) fn is_vouched_for(known: &Known, incoming: &Incoming) -> bool {
    let verified = incoming.verdict.verified_sender.as_ref();
    verified.is_none_or(|sender| known.verified_sender.as_ref() == Some(&sender.key()))
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

/// The list that it came through, as one who takes part. A List-Id can be forged; so a list whose mail
/// authenticates (SPF or DKIM of a domain that the List-Id lies in) and one whose mail does not are two, and
/// what joins is as authentic as what was there.
fn credible_list(own_address: &str, incoming: &Incoming) -> Option<String> {
    let list_id = incoming.structure.ties.list_id.as_ref()?;
    credible_author(own_address, incoming)?;
    let verdict = &incoming.verdict;
    let spf = std::iter::once((verdict.spf.result, &verdict.spf.domain));
    let dkim = verdict.dkim.iter().map(|signature| (signature.result, &signature.domain));
    let vouches = |domain: &str| {
        let below = list_id.strip_suffix(&domain.to_ascii_lowercase());
        domain.contains('.') && below.is_some_and(|below| below.is_empty() || below.ends_with('.'))
    };
    let authentic = spf.chain(dkim).any(|(result, domain)| result == AuthResult::Pass && vouches(domain));
    Some(format!("list:{}{list_id}", if authentic { "" } else { "?" }))
}

/// What is cited and not here.
fn by_references(found: &mut Found, kin: &Kin, cited: &[String], incoming: &Incoming) -> Vec<String> {
    // A forward cites what it forwards: that shows that the mail reached somebody, not that he was asked.
    let forwards = !incoming.structure.ties.is_report && incoming.subject.kind == Prefix::Forward;
    let mut missing = Vec::new();
    for id in cited {
        let mut is_here = false;
        for (cited, known) in kin.messages(id) {
            is_here = true;
            if cited.took_part || (known.ours && !forwards) {
                found.answers_ours |= known.ours;
                found.join = found.join.or(Some(cited.thread_key));
            } else {
                found.claims = found.claims.or(Some(cited.thread_key));
            }
        }
        if !is_here {
            missing.push(id.clone());
        }
    }
    missing
}

/// A bounce that came to the inbox itself, not to the return path that we gave the message. It joins its
/// message, and says nothing for its recipients: only a return path does (DESIGN.md §5). One that only cites our
/// mail, and sends none of it back, is an answer like others: lists are asked about it.
fn by_report(found: &mut Found, kin: &Kin, incoming: &Incoming) {
    let ties = &incoming.structure.ties;
    let returned = ties.returned.iter().flat_map(|id| kin.messages(id)).find(|(_, known)| known.ours);
    if let Some((returned, _)) = returned {
        found.answers_ours = true;
        found.join = found.join.or(Some(returned.thread_key));
    }
    found.reports_ours = ties.is_report && returned.is_some();
}

/// A parent that arrives after its answers, or a second answer to a parent that never came; an Outlook
/// conversation without References; an answer to an invitation.
fn by_name(found: &mut Found, kin: &Kin, missing: &[String], incoming: &Incoming) {
    if found.join.is_some() {
        return;
    }
    let own = incoming.structure.message_id.as_ref();
    for name in own.into_iter().chain(missing).chain(&incoming.structure.ties.names) {
        for named in kin.threads(name) {
            if named.took_part {
                found.awaited = own == Some(name);
                found.join = Some(named.thread_key);
                return;
            }
            if own != Some(name) {
                found.claims = found.claims.or(Some(named.thread_key));
            }
        }
    }
}

/// Clients that send no References, and relays and lists that gave our message another Message-ID than we know:
/// an answer by its subject, from somebody who took part lately, and proves to be he where he could before.
async fn by_subject(
    tx: &mut Tx,
    inbox: InboxKey,
    incoming: &Incoming,
    author: Option<&str>,
) -> Result<Option<i64>, StoreError> {
    let subject = &incoming.subject;
    let Some(author) = author.filter(|_| subject.kind == Prefix::Reply && !subject.base.is_empty()) else {
        return Ok(None);
    };
    let since = tx.now() - SUBJECT_WINDOW;
    let verified = incoming.verdict.verified_sender.is_some();
    thread::by_subject(tx, inbox, (author, verified), &subject.base, since).await
}

/// Notes who took part, what the thread is known by, and that nobody waits for this one any more.
pub(super) async fn remember(
    tx: &mut Tx,
    own_address: &str,
    incoming: &Incoming,
    message: &Message,
    found: &Found,
) -> Result<(), StoreError> {
    let (inbox, thread_key) = (message.inbox, message.thread_key);
    if let Some(author) = credible_author(own_address, incoming)
        && author != own_address
    {
        let mut who = behind_a_list(incoming, &author);
        who.extend(credible_list(own_address, incoming));
        who.push(author);
        let verified = incoming.verdict.verified_sender.is_some();
        thread::add_participants(tx, inbox, thread_key, &who, verified).await?;
    }
    // A print makes the next one a duplicate: not that of a message that nobody gets to see.
    let names = found.new_names.iter().map(String::as_str);
    let names: Vec<&str> =
        names.filter(|name| message.held.is_none() || !name.starts_with("print:")).collect();
    thread::add_names(tx, inbox, thread_key, message.message_key, &names).await?;
    if found.awaited
        && let Some(id) = &incoming.structure.message_id
    {
        thread::forget_name(tx, inbox, id).await?;
    }
    Ok(())
}

/// A list that puts itself into From (DMARC would fail otherwise) names the author in Reply-To: he wrote it,
/// and his next answer may come directly. Only one that cites a message of the thread: anybody can say that he is a
/// list, and name somebody whose own mail would then come into his thread by a subject or a name.
fn behind_a_list(incoming: &Incoming, author: &str) -> Vec<String> {
    let address = |text: &String| text.parse::<Address>().ok().map(|address| address.key());
    let list = incoming.structure.ties.list_post.as_ref().and_then(address);
    if list.as_deref() != Some(author) {
        return Vec::new();
    }
    let named = incoming.structure.reply_to.iter().take(MAX_BEHIND_A_LIST);
    named
        .filter_map(|one| address(&one.address))
        .filter(|one| one != author)
        .map(|one| behind(&one))
        .collect()
}

/// As whom somebody takes part whom a list names.
fn behind(address: &str) -> String {
    format!("behind:{address}")
}
