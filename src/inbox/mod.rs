//! A message finds its place: who it is for, which thread it joins, the transaction that makes it ours.
//!
//! `route` answers RCPT. `receive` takes a whole transaction from the session: verify, stamp, read, commit;
//! it alone makes a `Receipt`, and a 250 can be made of nothing else. One DATA for many inboxes commits as one.
//! `deliver_local` is the same road for mail that never leaves the server, `deliver_bounce` for what we tell
//! an agent about its own mail.
//!
//! Nothing is dropped: a duplicate is linked, what is filtered is labelled, what cannot be parsed is stored
//! raw and handed out. RFC 5321 §4.5.1 (postmaster), §6.1 (responsibility after 250).

mod copies;
mod counted;
mod place;
pub mod policy;
mod release;
mod returned;
mod subject;
mod threading;
mod unsubscribe;

use std::iter::successors;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::address::Address;
use crate::clock::Millis;
use crate::config::limits;
use crate::deliver::return_path;
use crate::envelope::{Envelope, Peer, ReversePath};
use crate::floor::Floor;
use crate::ids::{InboxKey, random_token};
use crate::reports::{self, Report};
use crate::screen::structure::{Mailbox, Structure};
use crate::screen::{self, Meaning};
use crate::spool::{self, Octets};
use crate::store::delivery::Delivery;
use crate::store::event::{self, NewEvent};
use crate::store::inbox::{self, DEFAULT_POD, InboxStatus, NewInbox};
use crate::store::outcome::Returned;
use crate::store::policy as stored_policy;
use crate::store::{StoreError, Tx};
use crate::verify;
use crate::verify::verdict::Verdict;

use place::{Placed, in_lock_order, log_name, place};
use policy::{Arrival, Policy, SetBy, Setting, Spoof};
use subject::Subject;

pub(crate) use place::{add_to_thread, new_thread};
pub(crate) use release::{Decision, decide};
pub(crate) use unsubscribe::unsubscribe;

pub(crate) use subject::is_answer;
#[cfg(fuzzing)]
pub(crate) use subject::take_apart;

/// Octets. Reading is linear in them: so much takes a millisecond or two at worst, which is less than waiting
/// for another thread costs under load.
const PARSE_INLINE: usize = 256 * 1024;

/// A mailbox of ours that RCPT accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipient {
    pub inbox: InboxKey,
    /// The forward-path, tag included.
    pub address: Address,
    /// The inbox's own address.
    pub inbox_address: String,
    /// The operator's inbox: lists and settings of agents do not apply.
    pub operator: bool,
    /// What counts for mail that comes to it.
    pub policy: Policy,
    /// It came by a return path that we made.
    pub answers: Option<Answered>,
    /// It came by the address at which the recipient of this message (its Message-ID's left side) takes leave.
    pub unsubscribes: Option<String>,
}

/// What mail to a return path is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answered {
    pub message_key: i64,
    /// The delivery whose return path it is: its domain's recipients are those of whom it may report. `None` for a
    /// notification of our own.
    pub delivery_key: Option<i64>,
}

impl Recipient {
    /// Whether a message of this declared size may come; else how many octets may. The operator's inbox takes what
    /// the server takes.
    pub fn takes(&self, size: Option<u64>) -> Result<(), u64> {
        let limit = self.policy.max_message_size.value;
        if self.operator || size.is_none_or(|size| size <= limit) { Ok(()) } else { Err(limit) }
    }
}

/// Where a forward-path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    Inbox(Recipient),
    /// Our domain, but nobody there: 550 5.1.1.
    UnknownInbox,
    /// Not our domain: relaying is denied.
    NotOurs,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum InboxError {
    #[error("there is no such inbox")]
    UnknownInbox,
    #[error("the message to deliver is gone")]
    NoMessage,
    /// Larger than the inbox takes, in octets.
    #[error("larger than the {0} octets that the inbox takes")]
    TooLarge(u64),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Proof that a message is committed: what a 250 is made from. There is no other way to get one.
#[derive(Debug)]
pub struct Receipt {
    id: String,
}

impl Receipt {
    /// The id that the reply, the Received header and the log lines share.
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// Why a message was not taken: the reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub code: u16,
    pub enhanced: &'static str,
    pub text: String,
}

impl Refusal {
    fn new(code: u16, enhanced: &'static str, text: impl Into<String>) -> Refusal {
        Refusal { code, enhanced, text: text.into() }
    }

    /// A failure of ours is never the sender's fault: 4xx, so that the mail stays with them.
    fn ours(error: &StoreError, id: &str) -> Refusal {
        match error {
            StoreError::Storage(_) => Refusal::new(452, "4.3.1", format!("Insufficient storage ({id})")),
            _ => Refusal::new(451, "4.3.0", format!("Try again later ({id})")),
        }
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Refusal {
        Refusal::ours(&error, "-")
    }
}

/// A message on its way into inboxes: read, verified, stamped.
pub(crate) struct Incoming {
    structure: Structure,
    /// Of `structure`, taken apart.
    subject: Subject,
    /// The Message-IDs that it cites, nearest first.
    cited: Vec<String>,
    meaning: Meaning,
    verdict: Verdict,
    reverse_path: ReversePath,
    /// It came with REQUIRETLS.
    require_tls: bool,
    /// The one From address; `None` where there is none, or more than one, or it is no address.
    author: Option<Address>,
    author_is_ours: bool,
    body_hash: Vec<u8>,
    size: i64,
    /// As they came, without our trace.
    octets: u64,
    /// The domain of ours that it claims without proof.
    spoof: Option<Spoof>,
    /// What it reports about mail of ours, if it came by a return path that we made.
    reports: Vec<Returned>,
    /// What it complains of, if it came to the operator.
    complaint: Option<returned::Complaint>,
    /// The DMARC or TLS report in it, if it came to an address that we ask for those at.
    domain_report: Option<Report>,
}

/// Local parts that cannot be inboxes and reach the operator: RFC 5321 §4.5.1, RFC 2142, and the addresses
/// that our own mail comes from or asks reports to be sent to.
const RESERVED: [&str; 7] = [
    "postmaster",
    "abuse",
    "mailer-daemon",
    "hostmaster",
    "security",
    reports::DMARC_ADDRESS,
    reports::TLS_ADDRESS,
];

/// Who gets mail for `address`, asked at RCPT.
pub async fn route(floor: &Floor, address: &Address) -> Result<Route, InboxError> {
    let Some(ours) = floor.domains.find(address.domain()).filter(|ours| ours.inbound) else {
        return Ok(Route::NotOurs);
    };
    let key = address.key();
    let answered = return_path::check(&floor.secrets, address.local());
    let leave = return_path::check_leave_address(&floor.secrets, address.local());
    let bare = address.without_tag().map(|a| a.key());
    let local = bare.as_deref().unwrap_or(&key).split('@').next().unwrap_or_default().to_owned();
    // Of a domain that was added, the operator is who runs this server: his inbox is the first domain's.
    let reserved = RESERVED.contains(&local.as_str());
    let operator = reserved.then(|| operator_address(&ours.name));
    let first = floor.config.domains.first().filter(|_| reserved && !ours.configured);
    let first = first.map(|domain| operator_address(domain));
    let names: Vec<String> = [Some(key), operator, first, bare].into_iter().flatten().collect();
    let found = match (answered, &leave) {
        (Some(of), _) => {
            let found = floor.store.read(move |tx| Box::pin(inbox::by_key(tx, of.inbox))).await?;
            let answered = Answered { message_key: of.message_key, delivery_key: Some(of.delivery_key) };
            found.map(|inbox| (inbox, Some(answered)))
        }
        (None, Some((key, _))) => {
            let key = *key;
            floor.store.read(move |tx| Box::pin(inbox::by_key(tx, key))).await?.map(|inbox| (inbox, None))
        }
        // An exact address beats a tag.
        (None, None) => floor.store.inbox_at(names).await?.map(|inbox| (inbox, None)),
    };
    Ok(match found {
        Some((inbox, answers)) => Route::Inbox(Recipient {
            policy: Policy::new(&floor.config, &inbox),
            inbox: inbox.key,
            address: address.clone(),
            inbox_address: inbox.address,
            operator: inbox.operator,
            answers,
            unsubscribes: leave.map(|(_, message_id)| message_id),
        }),
        None => Route::UnknownInbox,
    })
}

/// The address of a domain's operator's inbox.
pub(crate) fn operator_address(domain: &str) -> String {
    format!("postmaster@{domain}")
}

/// Makes the operator's inbox of every domain, where it is missing.
pub async fn ensure_operator_inboxes(floor: &Floor) -> Result<(), StoreError> {
    for domain in floor.config.domains.clone() {
        floor
            .store
            .write(move |tx| {
                let domain = domain.clone();
                Box::pin(async move {
                    let address = operator_address(&domain);
                    if inbox::by_address(tx, &address).await?.is_none() {
                        let new = NewInbox {
                            pod: DEFAULT_POD,
                            address,
                            domain,
                            display_name: Some("Postmaster".to_owned()),
                            client_id: None,
                            status: InboxStatus::Active,
                            operator: true,
                            metadata: None,
                        };
                        inbox::create(tx, &new).await?;
                    }
                    Ok::<(), StoreError>(())
                })
            })
            .await
            // Two processes that start at once both see it missing; one of them makes it.
            .or_else(|e| if e.is_conflict() { Ok(()) } else { Err(e) })?;
    }
    Ok(())
}

/// Takes a message from a session. `Ok` means that it is committed and on disk in every inbox. `turn` gives leave to
/// wait for the database, held while the message is written and not while others are waited for.
pub async fn receive<T>(
    floor: &Arc<Floor>,
    envelope: Envelope,
    recipients: Vec<Recipient>,
    raw: Octets,
    turn: impl FnOnce() -> Result<T, Refusal>,
) -> Result<Receipt, Refusal> {
    let id = random_token::<10>();
    let received_at = floor.clock.now();
    let hostname = &floor.config.hostname;
    let from = screen::from_mailboxes(&raw);
    let question = verify::Question {
        peer: &envelope.peer,
        mail_from: &envelope.mail_from,
        hostname,
        forwarders: &floor.config.verify.arc_forwarders,
        now: received_at,
        raw: &raw,
        from: &from,
    };
    let verdict = verify::verify(&floor.dns, question).await;
    let spoof = spoof_of_ours(floor, &from, &envelope.mail_from, &verdict).await?;
    let octets = raw.len() as u64;
    let arrival = Arrival { verdict: &verdict, octets, spoof: spoof.as_ref() };
    // After DATA there is one answer for all: a refusal only where every recipient refuses (DESIGN.md §5). Asked
    // before anything is written, and of the policy that came with each recipient.
    let counted = counted::note(floor, &envelope, &verdict, &recipients, &raw);
    if let Some(refusal) = policy::refusal_of_all(arrival, &recipients) {
        if let Some(counted) = counted.filter(|_| refusal.code >= 500) {
            counted.refused(floor);
        }
        tracing::info!(id, domain = verdict.dmarc.domain, why = refusal.text, "refused by policy");
        return Err(refusal);
    }
    let stamped = stamp(floor, &envelope, &id, received_at, &verdict, raw)?;
    let (stamped, structure) = read(stamped, limits::MESSAGE_READ_TIME, &id).await?;
    let mut incoming = incoming(floor, structure, verdict, envelope.mail_from, &stamped);
    incoming.require_tls = envelope.require_tls;
    (incoming.octets, incoming.spoof) = (octets, spoof);
    if recipients.iter().any(|recipient| recipient.answers.is_some()) {
        incoming.reports = returned::reports(&stamped, &incoming.structure);
    }
    if recipients.iter().any(|recipient| recipient.operator) {
        let verified = incoming.verdict.verified_sender.is_some();
        incoming.complaint = returned::complaint(floor, &stamped, &incoming.structure, verified).await?;
    }
    if recipients.iter().any(takes_reports) {
        incoming.domain_report = reports::read_in_time(&stamped, &incoming.structure, &id).await;
        incoming.domain_report = incoming.domain_report.and_then(|report| about_ours(floor, report));
    }
    let _turn = turn()?;
    let placed = commit(floor, incoming, recipients, &stamped, &id).await?;
    if let Some(counted) = counted {
        counted.taken(floor);
    }
    for message in &placed {
        tracing::debug!(id, message_id = message.id(), inbox = log_name(message.inbox), "filed");
    }
    Ok(Receipt { id })
}

/// The message as it is stored: in memory or in the spool, as it came.
fn stamp(
    floor: &Floor,
    envelope: &Envelope,
    id: &str,
    received_at: Millis,
    verdict: &Verdict,
    raw: Octets,
) -> Result<Octets, Refusal> {
    let hostname = &floor.config.hostname;
    if let Octets::Memory(raw) = raw {
        return Ok(verify::stamp(hostname, envelope, id, received_at, verdict, &raw).into());
    }
    let copy = || {
        let mut draft = floor.spool.begin()?;
        verify::stamp_into(&mut draft, hostname, envelope, id, received_at, verdict, &raw)?;
        draft.finish()
    };
    spool::aside(raw.len(), copy).map_err(|error| {
        tracing::error!(id, %error, "a message could not be spooled; its sender keeps it");
        Refusal::ours(&StoreError::Storage(error.to_string()), id)
    })
}

/// The report as far as it is about domains of ours: anybody can send one about any domain.
fn about_ours(floor: &Floor, mut report: Report) -> Option<Report> {
    report.domains.retain(|domain| {
        let mut parents = successors(Some(domain.as_str()), |d| Some(d.split_once('.')?.1));
        parents.any(|domain| floor.is_ours(domain))
    });
    (!report.domains.is_empty()).then_some(report)
}

fn takes_reports(recipient: &Recipient) -> bool {
    let local = recipient.address.local().to_lowercase();
    recipient.operator && reports::is_report_address(local.split('+').next().unwrap_or_default())
}

/// The domain of ours that the message claims without proof, with what is set for that domain. Rare enough to ask
/// the database by itself.
async fn spoof_of_ours(
    floor: &Floor,
    from: &[Mailbox],
    mail_from: &ReversePath,
    verdict: &Verdict,
) -> Result<Option<Spoof>, StoreError> {
    let Some(mut spoof) = policy::claims_ours(floor, from, mail_from, verdict) else { return Ok(None) };
    let domain = spoof.domain.clone();
    let set = floor
        .store
        .read(move |tx| Box::pin(async move { stored_policy::of_domain(tx, &domain).await }))
        .await?;
    if let Some(value) = set.spoofed {
        spoof.handling = Setting { value, by: SetBy::Domain };
    }
    Ok(Some(spoof))
}

/// Reads a message, off the async threads where it is large, and not for longer than `within`: what takes longer
/// is stored as it came and marked, never lost.
async fn read(raw: Octets, within: Duration, id: &str) -> Result<(Arc<Octets>, Structure), Refusal> {
    let raw = Arc::new(raw);
    if raw.len() <= PARSE_INLINE {
        let structure = screen::structure(&raw);
        return Ok((raw, structure));
    }
    let read = tokio::task::spawn_blocking({
        let raw = Arc::clone(&raw);
        move || screen::structure(&raw)
    });
    match tokio::time::timeout(within, read).await {
        Ok(read) => read.map(|read| (raw, read)).map_err(|_| Refusal::ours(&StoreError::Closed, id)),
        Err(_) => {
            tracing::warn!(id, octets = raw.len(), "reading a message took too long; it is stored unparsed");
            let structure = screen::unread(&raw, "reading it took too long");
            Ok((raw, structure))
        }
    }
}

impl Incoming {
    fn arrival(&self) -> Arrival<'_> {
        Arrival { verdict: &self.verdict, octets: self.octets, spoof: self.spoof.as_ref() }
    }
}

fn incoming(
    floor: &Floor,
    structure: Structure,
    verdict: Verdict,
    reverse_path: ReversePath,
    stamped: &[u8],
) -> Incoming {
    let author = match structure.from.as_slice() {
        [one] => one.address.parse::<Address>().ok(),
        _ => None,
    };
    let body = usize::try_from(structure.body_at).ok().and_then(|at| stamped.get(at..)).unwrap_or(stamped);
    let sender =
        screen::Sender { domain: author.as_ref().map(Address::domain), null: reverse_path.is_none() };
    Incoming {
        meaning: spool::aside(stamped.len(), || screen::meaning(stamped, &structure, sender)),
        author_is_ours: author.as_ref().is_some_and(|a| floor.is_ours(a.domain())),
        author,
        body_hash: spool::aside(body.len(), || Sha256::digest(body).to_vec()),
        size: stamped.len() as i64,
        octets: stamped.len() as u64,
        spoof: None,
        subject: subject::take_apart(structure.subject.as_deref().unwrap_or_default()),
        cited: threading::cited(&structure),
        structure,
        verdict,
        reverse_path,
        require_tls: false,
        reports: Vec::new(),
        complaint: None,
        domain_report: None,
    }
}

/// One transaction for every inbox, in the order of their keys.
async fn commit(
    floor: &Arc<Floor>,
    incoming: Incoming,
    recipients: Vec<Recipient>,
    stamped: &[u8],
    id: &str,
) -> Result<Vec<crate::store::message::Message>, Refusal> {
    let failed = |e: StoreError| {
        tracing::error!(id, error = %e, "a message could not be stored; its sender keeps it");
        Refusal::ours(&e, id)
    };
    let pod = recipients.first().map_or(DEFAULT_POD, |r| r.inbox.pod);
    let body = floor.bodies.prepare(pod, stamped).await.map_err(failed)?;
    let job = Arc::new((incoming, recipients, body));
    let outcome: Result<_, CommitError> = floor
        .store
        .write(move |tx| {
            let job = job.clone();
            Box::pin(async move {
                let (incoming, recipients, body) = &*job;
                let recipients = in_lock_order(recipients);
                let mut stored = Vec::with_capacity(recipients.len());
                for recipient in recipients {
                    if let Placed::Stored(message) = place(tx, incoming, body, recipient).await? {
                        stored.push(*message);
                    }
                }
                if stored.is_empty() { Err(CommitError::Gone) } else { Ok(stored) }
            })
        })
        .await;
    outcome.map_err(|e| match e {
        CommitError::Store(e) => failed(e),
        CommitError::Gone => Refusal::new(550, "5.1.1", "The inbox was deleted"),
    })
}

enum CommitError {
    Store(StoreError),
    /// Every inbox was deleted since RCPT.
    Gone,
}

impl From<StoreError> for CommitError {
    fn from(error: StoreError) -> CommitError {
        CommitError::Store(error)
    }
}

/// Delivers to an inbox of this server: placed and marked delivered in one transaction, so a crash repeats
/// neither or both. Idempotent by the delivery row.
pub async fn deliver_local(floor: &Arc<Floor>, delivery: &Delivery) -> Result<(), InboxError> {
    let address: Address = delivery.recipient.parse().map_err(|_| InboxError::UnknownInbox)?;
    let Route::Inbox(recipient) = route(floor, &address).await? else { return Err(InboxError::UnknownInbox) };
    recipient.takes(u64::try_from(delivery.size).ok()).map_err(InboxError::TooLarge)?;
    let (from_inbox, message_key) = (delivery.inbox, delivery.message_key);
    let raw = floor.bodies.load(&floor.store, from_inbox, message_key).await?.ok_or(InboxError::NoMessage)?;
    let sender = floor
        .store
        .read(move |tx| Box::pin(inbox::by_key(tx, from_inbox)))
        .await?
        .and_then(|i| i.address.parse::<Address>().ok())
        .ok_or(InboxError::NoMessage)?;
    let verdict = Verdict::local(sender.clone());
    let stamped = stamp_local(floor, &sender, &recipient, &verdict, &raw);
    let structure = screen::structure(&stamped);
    let mut incoming = incoming(floor, structure, verdict, Some(sender), &stamped);
    incoming.octets = raw.len() as u64;
    let body = floor.bodies.prepare(recipient.inbox.pod, &stamped).await?;
    let job = Arc::new((incoming, recipient, body, delivery.clone()));
    floor
        .store
        .write(move |tx| {
            let job = job.clone();
            Box::pin(async move {
                let (incoming, recipient, body, delivery) = &*job;
                if !crate::store::delivery::delivered_locally(tx, delivery).await? {
                    return Ok(());
                }
                match place(tx, incoming, body, recipient).await? {
                    Placed::Stored(_) => Ok(()),
                    Placed::Gone => Err(InboxError::UnknownInbox),
                }
            })
        })
        .await
}

/// Mail between inboxes gets a Received line too: it is what loops are counted by (RFC 5321 §6.3).
fn stamp_local(
    floor: &Floor,
    sender: &Address,
    recipient: &Recipient,
    verdict: &Verdict,
    raw: &[u8],
) -> Vec<u8> {
    let envelope = Envelope {
        peer: Peer {
            ip: std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
            helo: floor.config.hostname.clone(),
            extended: true,
            tls: None,
        },
        mail_from: Some(sender.clone()),
        recipients: vec![recipient.address.clone()],
        smtputf8: false,
        dsn: None,
        require_tls: false,
    };
    verify::stamp(&floor.config.hostname, &envelope, &random_token::<10>(), floor.clock.now(), verdict, raw)
}

/// Files what we have to tell an agent about its own mail into the thread of that mail. A repeat (the same
/// Message-ID and body) is linked as a duplicate and makes no second work item.
pub async fn deliver_bounce(
    floor: &Arc<Floor>,
    inbox: InboxKey,
    message_key: i64,
    raw: Vec<u8>,
) -> Result<(), InboxError> {
    let found = floor.store.read(move |tx| Box::pin(inbox::by_key(tx, inbox))).await?;
    let found: inbox::Inbox = found.ok_or(InboxError::UnknownInbox)?;
    let address: Address = found.address.parse().map_err(|_| InboxError::UnknownInbox)?;
    let structure = screen::structure(&raw);
    let daemon = structure.from.first().and_then(|f| f.address.parse().ok()).unwrap_or_else(Address::nobody);
    let mut incoming = incoming(floor, structure, Verdict::local(daemon), None, &raw);
    // What we have to say is not too long for anybody.
    incoming.octets = 0;
    incoming.reports = returned::reports(&raw, &incoming.structure);
    let body = floor.bodies.prepare(inbox.pod, &raw).await?;
    let recipient = Recipient {
        policy: Policy::new(&floor.config, &found),
        inbox,
        inbox_address: found.address,
        address,
        operator: found.operator,
        answers: Some(Answered { message_key, delivery_key: None }),
        unsubscribes: None,
    };
    let job = Arc::new((incoming, recipient, body));
    floor
        .store
        .write(move |tx| {
            let job = job.clone();
            Box::pin(
                async move { place(tx, &job.0, &job.2, &job.1).await.map(drop).map_err(InboxError::from) },
            )
        })
        .await
}

/// Tells the log that an inbox changed: `inbox.created`, `inbox.deleted`, `inbox.paused`, …
pub async fn announce(tx: &mut Tx, inbox: InboxKey, event_type: &str) -> Result<(), StoreError> {
    event::append(tx, inbox, NewEvent { event_type, ..NewEvent::default() }).await
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod threading_tests;
