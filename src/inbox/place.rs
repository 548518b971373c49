//! A message finds its place: the delivery transaction, one inbox after the other.
//!
//! Everything that makes a message visible is written here, in the transaction that its 250 stands on: the
//! message with its structure, its octets, its placement with a UID, the thread, who took part, the work item,
//! the events. A crash before the COMMIT leaves nothing, and the sender still has it; after it, all is there.

use super::policy::{self, Author, Fate, Objection};
use super::threading::{self, Found};
use super::{Answered, Incoming, Recipient, subject, takes_reports};
use crate::address::Address;
use crate::ids::InboxKey;
use crate::screen::kind::Kind;
use crate::screen::structure::Mailbox;
use crate::store::body::{self, Body};
use crate::store::event::{self, NewEvent};
use crate::store::held::{Held, PolicyNote};
use crate::store::inbox::{self, InboxStatus, MAILBOX_INBOX, MAILBOX_JUNK, Reserved};
use crate::store::label;
use crate::store::list::{self, ListDirection};
use crate::store::message::{self, Direction, Message};
use crate::store::outcome::{self, Heard, Proof};
use crate::store::report;
use crate::store::thread::{self, ListedAttachment, MAX_LISTED, MAX_LISTED_OCTETS, Thread};
use crate::store::{StoreError, Tx};
use crate::verify::verdict::Source;
use crate::work::{self, HandedTo};

/// What one inbox made of the message.
#[derive(Debug, Clone)]
pub(super) enum Placed {
    Stored(Box<Message>),
    /// The inbox was deleted since RCPT.
    Gone,
}

/// From addresses that the lists are asked about. No honest message has as many.
const MAX_AUTHORS: usize = 5;

/// What the inbox's settings and the verdict make of a message.
struct Treatment {
    labels: Vec<String>,
    event_type: &'static str,
    mailbox: i64,
    /// Who is to see the work that it makes, and why it is made or held; `None`: no work item.
    work: Option<(HandedTo, &'static str)>,
    held: Option<Held>,
    note: Option<PolicyNote>,
}

pub(super) async fn place(
    tx: &mut Tx,
    incoming: &Incoming,
    body: &Body,
    recipient: &Recipient,
) -> Result<Placed, StoreError> {
    let key = recipient.inbox;
    // Three numbers: the message, a thread and a work item, should they be new.
    let Some(reserved) = inbox::reserve(tx, key, 3).await? else { return Ok(Placed::Gone) };
    let mut found = threading::find(tx, key, &recipient.inbox_address, incoming, body).await?;
    let mut of_server = false;
    if let Some(Answered { message_key: of_message, .. }) = recipient.answers {
        // Mail to a return path that we made: it belongs to what it answers, whatever it cites.
        if let Some(sent) = message::by_key(tx, key, of_message).await? {
            of_server = sent.is_by_server();
            found.join = Some(sent.thread_key);
            found.claims = None;
            found.answers_ours = true;
        }
    }
    let mut treatment = treat(tx, incoming, &reserved, recipient, &mut found).await?;
    if of_server {
        // What comes back to mail of the server's own is seen in its thread; nobody is woken, and nothing answers it.
        treatment.work = None;
    }
    let message = record_of(incoming, recipient, &reserved, &found, &treatment, tx.now());
    let thread = grow_thread(tx, &message, &found, &treatment).await?;
    message::insert(tx, &message).await?;
    body::insert(tx, key, message.message_key, body).await?;
    inbox::place(tx, key, treatment.mailbox, message.message_key, message.modseq).await?;
    threading::remember(tx, &recipient.inbox_address, incoming, &message, &found).await?;
    announce(tx, &message, &treatment).await?;
    let news = hear(tx, incoming, recipient).await?;
    if let Some(found) = incoming.domain_report.as_ref().filter(|_| is_report(recipient, &treatment)) {
        let sender = message.verified_sender.as_deref();
        report::insert(tx, key, message.message_key, sender, found).await?;
    }
    // A bounce that is heard again wakes nobody: whoever acted on the first has nothing to do.
    if let Some((to, reason)) = treatment.work.filter(|_| news) {
        let item_key = reserved.first + 2;
        let arrived = work::Arrived {
            inbox: key,
            thread_key: thread.thread_key,
            item_key,
            reason,
            to,
            new_thread: found.join.is_none(),
        };
        work::raise(tx, arrived).await?;
    } else if message.held.is_none() {
        message::set_aside(tx, key, message.message_key).await?;
    }
    Ok(Placed::Stored(Box::new(message)))
}

/// What the message reports about mail of ours, written to its deliveries; `false` where all of it was known.
async fn hear(tx: &mut Tx, incoming: &Incoming, recipient: &Recipient) -> Result<bool, StoreError> {
    let mut known = 0;
    if let Some(Answered { message_key, delivery_key: Some(delivery_key) }) = recipient.answers {
        let proof = Proof::Token { delivery_key };
        for report in &incoming.reports {
            let heard = outcome::returned(tx, recipient.inbox, message_key, report, proof).await?;
            known += usize::from(heard == Heard::Known);
        }
    }
    // Another inbox's rows, and no lock of that inbox: events and suppressions need none.
    if let Some(found) = incoming.complaint.as_ref().filter(|_| recipient.operator) {
        for report in &found.reports {
            outcome::returned(tx, found.inbox, found.message_key, report, found.proof).await?;
        }
    }
    if let Some(id) = &recipient.unsubscribes {
        super::unsubscribe(tx, recipient.inbox, id, "by mail").await?;
    }
    Ok(known == 0 || known < incoming.reports.len())
}

async fn treat(
    tx: &mut Tx,
    incoming: &Incoming,
    reserved: &Reserved,
    recipient: &Recipient,
    found: &mut Found,
) -> Result<Treatment, StoreError> {
    let mut objections = policy::objections(incoming.arrival(), recipient);
    objections.extend(by_lists(tx, incoming, recipient, found).await?);
    let reports = recipient.answers.is_some() || found.reports_ours;
    let reason = match (reports, found.join) {
        (true, _) if incoming.reports.iter().any(|report| report.what == outcome::Told::Complained) => {
            "complained"
        }
        // Ordinary mail to a return path is an answer like any other.
        // Worth a look by whoever waits for an answer; nothing has failed.
        (true, _) if !incoming.reports.is_empty() && incoming.reports.iter().all(is_delay) => "delayed",
        (true, Some(_)) if incoming.reports.is_empty() && incoming.meaning.kind == Kind::Person => "reply",
        (true, _) => "bounced",
        (false, Some(_)) => "reply",
        (false, None) => "new_message",
    };
    let mut treatment = Treatment {
        labels: vec!["received".to_owned(), "unread".to_owned()],
        event_type: "message.received",
        mailbox: MAILBOX_INBOX,
        work: Some(match reserved.status {
            _ if recipient.operator => (HandedTo::Human, reason),
            InboxStatus::Paused => work::PAUSED,
            InboxStatus::Active => (HandedTo::Workers, reason),
        }),
        held: None,
        note: None,
    };
    obey(&mut treatment, &objections, recipient);
    if found.first_is_held && treatment.held.is_none() {
        // The first of two that are the same was kept back, a forgery perhaps: this one is the message.
        found.duplicate_of = None;
    }
    // A report is read by the server and looked up when somebody wants to know: no work for people.
    if incoming.domain_report.is_some() && is_report(recipient, &treatment) {
        treatment.labels.push("report".to_owned());
        treatment.work = None;
    }
    // A duplicate is linked to its first, and our own message come back is no news: neither makes work.
    if found.duplicate_of.is_some() || found.echo || recipient.unsubscribes.is_some() {
        treatment.work = None;
    }
    Ok(treatment)
}

fn is_delay(report: &outcome::Returned) -> bool {
    report.what == outcome::Told::Late
}

/// Whether a report in the message counts as one: where it was asked for, and not from whom nothing is believed.
fn is_report(recipient: &Recipient, treatment: &Treatment) -> bool {
    takes_reports(recipient) && treatment.held.is_none()
}

/// What the worst of the objections makes of the message; all of them are noted.
fn obey(treatment: &mut Treatment, objections: &[Objection], recipient: &Recipient) {
    let Some(worst) = objections.iter().map(|objection| objection.fate).max() else { return };
    let at_worst = || objections.iter().filter(|objection| objection.fate == worst);
    // That the sender is unknown says less than that the From address is forged: it stays where IMAP shows it.
    let forged = at_worst().find(|objection| objection.rule != "unauthenticated");
    let (label, event_type) = match worst {
        Fate::Blocked => ("blocked", "message.received.blocked"),
        Fate::Held if forged.is_some() => ("spam", "message.received.spam"),
        Fate::Held | Fate::Labelled => ("unauthenticated", "message.received.unauthenticated"),
    };
    treatment.labels.push(label.to_owned());
    treatment.event_type = event_type;
    if label != "unauthenticated" {
        treatment.mailbox = MAILBOX_JUNK;
    }
    let rule = forged.or_else(|| at_worst().next()).map_or("policy", |objection| objection.rule);
    match worst {
        Fate::Labelled => {}
        Fate::Blocked => {
            treatment.held = Some(Held::Blocked);
            treatment.work = None;
        }
        Fate::Held => {
            treatment.held = Some(Held::Held);
            // Mail for people is shown to them, suspect or not: nothing for the operator is out of sight.
            if !recipient.operator {
                treatment.work = Some((HandedTo::Held, rule));
            }
        }
    }
    treatment.note = Some(PolicyNote {
        reasons: objections.iter().map(Objection::reason).collect(),
        refused: objections.iter().any(|objection| objection.refusal.is_some()),
        decided: None,
    });
}

/// What the receive lists say, or the reply lists for mail that answers ours.
async fn by_lists(
    tx: &mut Tx,
    incoming: &Incoming,
    recipient: &Recipient,
    found: &Found,
) -> Result<Option<Objection>, StoreError> {
    if recipient.operator || incoming.verdict.source == Source::Local && recipient.answers.is_some() {
        return Ok(None);
    }
    let direction = if found.answers_ours { ListDirection::Reply } else { ListDirection::Receive };
    let from = incoming.structure.from.iter().take(MAX_AUTHORS);
    let claimed: Vec<Address> = from.filter_map(|mailbox| mailbox.address.parse().ok()).collect();
    let entries = list::about(tx, recipient.inbox, direction, &claimed).await?;
    let author = Author {
        claimed: &claimed,
        verified: incoming.verdict.verified_sender.as_ref(),
        is_bounce: (recipient.answers.is_some() || found.reports_ours) && incoming.reverse_path.is_none(),
    };
    Ok(policy::of_lists(&entries, found.answers_ours, &author, recipient.policy.lists_match))
}

/// Names and addresses as a message's row has them.
pub(super) fn texts(list: &[Mailbox]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

fn record_of(
    incoming: &Incoming,
    recipient: &Recipient,
    reserved: &Reserved,
    found: &Found,
    treatment: &Treatment,
    now: i64,
) -> Message {
    let structure = &incoming.structure;
    Message {
        inbox: recipient.inbox,
        message_key: reserved.first,
        thread_key: found.join.unwrap_or(reserved.first + 1),
        direction: Direction::In,
        state: "received".to_owned(),
        rfc_message_id: structure.message_id.clone(),
        duplicate_of: found.duplicate_of,
        id_taken: found.id_taken,
        body_hash: incoming.body_hash.clone(),
        reached_by: Some(recipient.address.to_string()),
        reverse_path: incoming.reverse_path.as_ref().map(ToString::to_string),
        from_address: incoming.author.as_ref().map(Address::key),
        from_text: structure.from.first().map(ToString::to_string).unwrap_or_default(),
        to: texts(&structure.to),
        cc: texts(&structure.cc),
        bcc: Vec::new(),
        reply_to: texts(&structure.reply_to),
        subject: structure.subject.clone(),
        preview: structure.preview.clone(),
        labels: treatment.labels.clone(),
        structure: structure.clone(),
        kind: Some(incoming.meaning.kind),
        codes: incoming.meaning.codes.clone(),
        verdict: Some(incoming.verdict.clone()),
        verified_sender: incoming.verdict.verified_sender.as_ref().map(Address::key),
        size: incoming.size,
        run_id: None,
        key_id: None,
        held: treatment.held,
        policy: treatment.note.clone(),
        require_tls: incoming.require_tls,
        modseq: reserved.modseq,
        created_at: now,
        updated_at: now,
    }
}

/// The thread with the message in it.
async fn grow_thread(
    tx: &mut Tx,
    message: &Message,
    found: &Found,
    treatment: &Treatment,
) -> Result<Thread, StoreError> {
    let now = tx.now();
    let mut thread = match found.join {
        Some(thread_key) => thread::by_key(tx, message.inbox, thread_key)
            .await?
            .ok_or_else(|| StoreError::Damaged(format!("thread {thread_key} is missing")))?,
        None => new_thread(message, now),
    };
    if thread.message_count == 0 {
        thread.claims_thread = found.claims;
    }
    add_to_thread(&mut thread, message, now);
    thread.received_at = Some(now);
    // Raised by what somebody else says anew, DESIGN.md §3; not by whom a list or DMARC keeps out, who could
    // otherwise make every answer to the thread stale.
    if treatment.held.is_none() && treatment.work.is_some() {
        thread.context_version += 1;
    }
    thread::put(tx, &thread).await?;
    Ok(thread)
}

pub(crate) fn new_thread(message: &Message, now: i64) -> Thread {
    Thread {
        inbox: message.inbox,
        thread_key: message.thread_key,
        subject: message.subject.clone(),
        base_subject: subject::take_apart(message.subject.as_deref().unwrap_or_default()).base,
        preview: None,
        labels: Vec::new(),
        senders: Vec::new(),
        recipients: Vec::new(),
        attachments: Vec::new(),
        message_count: 0,
        size: 0,
        last_message: message.message_key,
        context_version: 0,
        claims_thread: None,
        last_at: now,
        received_at: None,
        sent_at: None,
        created_at: now,
        updated_at: now,
    }
}

/// A text as a thread lists it: what one sender writes is written again with every message of the thread.
fn listed(text: &str) -> String {
    text.get(..text.floor_char_boundary(MAX_LISTED_OCTETS)).unwrap_or(text).to_owned()
}

/// Adds a message's figures to its thread's; lists stay bounded. What is held back says nothing for a thread that
/// has others: its labels would hide them from every listing, its words would stand for theirs.
pub(crate) fn add_to_thread(thread: &mut Thread, message: &Message, now: i64) {
    let alone = thread.message_count == 0;
    thread.message_count += 1;
    thread.size += message.size;
    thread.last_message = message.message_key;
    thread.last_at = now;
    thread.updated_at = now;
    if message.held.is_some() && !alone {
        return;
    }
    let kept_back = |label: &String| label::KEPT_BACK.contains(&label.as_str());
    let all_were = alone || thread.labels.iter().any(kept_back);
    show_in_thread(thread, message);
    if !all_were || !message.labels.iter().any(kept_back) {
        thread.labels.retain(|label| !kept_back(label));
    }
}

/// What a listing shows of a thread by this message.
pub(super) fn show_in_thread(thread: &mut Thread, message: &Message) {
    let add = |list: &mut Vec<String>, text: &String| {
        let text = listed(text);
        if !text.is_empty() && list.len() < MAX_LISTED && !list.contains(&text) {
            list.push(text);
        }
    };
    add(&mut thread.senders, &message.from_text);
    for text in message.to.iter().chain(&message.cc) {
        add(&mut thread.recipients, text);
    }
    for label in &message.labels {
        add(&mut thread.labels, label);
    }
    for (index, part) in message.structure.parts.iter().enumerate().filter(|(_, p)| p.attachment) {
        if thread.attachments.len() < MAX_LISTED {
            thread.attachments.push(ListedAttachment {
                message_key: message.message_key,
                at: message.created_at,
                part: index as u32,
                filename: part.filename.as_deref().map(listed),
                content_type: listed(&part.content_type),
                disposition: part.disposition.as_deref().map(listed),
                content_id: part.content_id.as_deref().map(listed),
                size: part.size,
            });
        }
    }
    thread.preview = message.preview.clone();
}

async fn announce(tx: &mut Tx, message: &Message, treatment: &Treatment) -> Result<(), StoreError> {
    let event = NewEvent {
        event_type: treatment.event_type,
        thread_key: Some(message.thread_key),
        message_key: Some(message.message_key),
        ..NewEvent::default()
    };
    event::append(tx, message.inbox, event).await
}

/// The inbox key of a recipient list's entries, ascending and once each: the order in which locks are taken. Of two
/// that lead to one inbox, one that is no report address counts: what is written to people as well is for them.
pub(super) fn in_lock_order(recipients: &[Recipient]) -> Vec<&Recipient> {
    let mut sorted: Vec<&Recipient> = recipients.iter().collect();
    sorted.sort_by_key(|r| (r.inbox, takes_reports(r)));
    sorted.dedup_by_key(|r| r.inbox);
    sorted
}

/// Names an inbox in a log line.
pub(super) fn log_name(key: InboxKey) -> String {
    format!("{}/{}", key.pod, key.inbox)
}
