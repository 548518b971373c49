//! What is done with mail that is not what it says it is: refused, kept out, held, labelled, or nothing.
//!
//! - The narrowest setting counts: inbox, domain, organization (`[receive]`). It comes with the recipient, from
//!   the row that RCPT reads anyway.
//! - A refusal is a reply in the session, never a message of ours to whoever stands in From (no backscatter).
//! - One DATA has one answer: it is refused only where every recipient refuses; an inbox that alone refuses
//!   keeps the message as `blocked`.
//! - The operator's inbox refuses nothing: who reports that mail fails must be able to (RFC 5321 §4.5.1).
//! - Everything here says why, in words, and by whose setting.
//!
//! RFC 9989 §5.3 (DMARC and the receiver), RFC 7372 (status codes).

use std::fmt;

use super::{Recipient, Refusal};
use crate::address::{Address, normalize_domain};
use crate::config::{Config, DmarcHandling, ListsMatch, Spoofed, Unauthenticated};
use crate::envelope::ReversePath;
use crate::floor::Floor;
use crate::screen::structure::Mailbox;
use crate::store::held::PolicyReason;
use crate::store::inbox::Inbox;
use crate::store::list::{self, ListEntry, ListVerdict};
use crate::store::policy::ReceivePolicy;
use crate::verify::verdict::{AuthResult, DmarcPolicy, Source, Verdict};

/// Whose setting it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetBy {
    Organization,
    Domain,
    Inbox,
}

impl SetBy {
    pub fn text(self) -> &'static str {
        match self {
            SetBy::Organization => "organization",
            SetBy::Domain => "domain",
            SetBy::Inbox => "inbox",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting<T> {
    pub value: T,
    pub by: SetBy,
}

/// What counts for one inbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    pub dmarc: Setting<DmarcHandling>,
    pub unauthenticated: Setting<Unauthenticated>,
    /// For mail that claims the inbox's own domain.
    pub spoofed: Setting<Spoofed>,
    /// Octets.
    pub max_message_size: Setting<u64>,
    pub lists_match: ListsMatch,
}

impl Policy {
    pub fn new(config: &Config, inbox: &Inbox) -> Policy {
        Policy::of(config, &inbox.domain_policy, &inbox.receive_policy)
    }

    pub fn of(config: &Config, domain: &ReceivePolicy, inbox: &ReceivePolicy) -> Policy {
        let receive = &config.receive;
        Policy {
            dmarc: narrowest(inbox.dmarc, domain.dmarc, receive.dmarc),
            unauthenticated: narrowest(
                inbox.unauthenticated,
                domain.unauthenticated,
                receive.unauthenticated,
            ),
            spoofed: narrowest(inbox.spoofed, domain.spoofed, receive.spoofed),
            max_message_size: narrowest(
                inbox.max_message_size,
                domain.max_message_size,
                config.smtp.max_message_size,
            ),
            lists_match: receive.lists_match,
        }
    }
}

fn narrowest<T>(inbox: Option<T>, domain: Option<T>, organization: T) -> Setting<T> {
    match (inbox, domain) {
        (Some(value), _) => Setting { value, by: SetBy::Inbox },
        (None, Some(value)) => Setting { value, by: SetBy::Domain },
        (None, None) => Setting { value: organization, by: SetBy::Organization },
    }
}

/// A message as far as policy looks at it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival<'a> {
    pub verdict: &'a Verdict,
    /// As they came, without our trace.
    pub octets: u64,
    pub spoof: Option<&'a Spoof>,
}

/// It says that it is from a domain of ours, and nothing proves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spoof {
    /// The domain that it claims.
    pub domain: String,
    /// What counts for that domain, unless the recipient's inbox has its own answer.
    pub handling: Setting<Spoofed>,
    /// The DNS did not answer: it may be genuine.
    pub unsure: bool,
}

/// How far a message gets, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fate {
    Labelled,
    /// Kept back, for somebody to look at.
    Held,
    /// Kept out: a list says so, or this inbox alone refuses.
    Blocked,
}

/// One reason why a message does not simply go to its inbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Objection {
    pub rule: &'static str,
    pub fate: Fate,
    /// What the sender would be told, where nobody takes the message.
    pub refusal: Option<Refusal>,
    pub text: String,
    pub set_by: &'static str,
}

impl Objection {
    fn new(rule: &'static str, fate: Fate, by: &'static str, text: impl fmt::Display) -> Objection {
        Objection { rule, fate, refusal: None, text: text.to_string(), set_by: by }
    }

    /// Refused, and kept out where somebody else takes it.
    fn or_refuse(mut self, code: u16, enhanced: &'static str, text: impl Into<String>) -> Objection {
        // What may be genuine is held and not kept out.
        self.fate = if code < 500 { Fate::Held } else { Fate::Blocked };
        self.refusal = Some(Refusal::new(code, enhanced, text));
        self
    }

    pub(super) fn reason(&self) -> PolicyReason {
        PolicyReason { rule: self.rule.to_owned(), text: self.text.clone(), set_by: self.set_by.to_owned() }
    }
}

/// The domain of ours that a message claims without proof. Not its reverse-path: forwarders keep that of mail that
/// is genuine, as its signature shows. Only where there is no From, the reverse-path is the author.
pub(super) fn claims_ours(
    floor: &Floor,
    from: &[Mailbox],
    mail_from: &ReversePath,
    verdict: &Verdict,
) -> Option<Spoof> {
    if verdict.source == Source::Local {
        return None;
    }
    let of_author = |mailbox: &Mailbox| normalize_domain(mailbox.address.rsplit_once('@')?.1).ok();
    let named: Vec<String> = match from {
        [] => mail_from.iter().map(|address| address.domain().to_owned()).collect(),
        from => from.iter().filter_map(of_author).collect(),
    };
    let domain = named.iter().find(|domain| floor.is_ours(domain))?.clone();
    if from.len() <= 1 && stands_behind(&domain, verdict) {
        return None;
    }
    let handling = Setting { value: floor.config.receive.spoofed, by: SetBy::Organization };
    let unsure = from.len() <= 1 && is_unsure(verdict);
    Some(Spoof { domain, handling, unsure })
}

/// Whether the domain proves that it sent the message: DMARC says so; or it has no DMARC record, and SPF or DKIM
/// passed for it.
fn stands_behind(domain: &str, verdict: &Verdict) -> bool {
    let dmarc = &verdict.dmarc;
    // A forwarder that the operator trusts saw DMARC pass (`overridden`): as good as seeing it.
    if dmarc.domain == domain && (dmarc.result == AuthResult::Pass || dmarc.overridden.is_some()) {
        return true;
    }
    let without_record = dmarc.domain != domain
        || matches!(dmarc.result, AuthResult::None | AuthResult::PermError | AuthResult::TempError);
    // RFC 9989 §4.4.1, relaxed: a subdomain of ours acts for us.
    let aligned = |of: &str| of == domain || of.strip_suffix(domain).is_some_and(|sub| sub.ends_with('.'));
    let signed = verdict.dkim.iter().any(|dkim| dkim.result == AuthResult::Pass && aligned(&dkim.domain));
    let permitted = verdict.spf.result == AuthResult::Pass && aligned(&verdict.spf.domain);
    without_record && (signed || permitted)
}

fn is_unsure(verdict: &Verdict) -> bool {
    let temporary = |result: AuthResult| result == AuthResult::TempError;
    temporary(verdict.dmarc.result)
        || temporary(verdict.spf.result)
        || verdict.dkim.iter().any(|dkim| temporary(dkim.result))
}

/// The reply to DATA where every recipient refuses.
pub(super) fn refusal_of_all(arrival: Arrival<'_>, recipients: &[Recipient]) -> Option<Refusal> {
    let mut answer: Option<Refusal> = None;
    for recipient in recipients {
        let refusal = objections(arrival, recipient).into_iter().find_map(|objection| objection.refusal)?;
        // One that may take it later is reason enough to come again.
        if answer.as_ref().is_none_or(|answer| answer.code >= 500 && refusal.code < 500) {
            answer = Some(refusal);
        }
    }
    answer
}

/// What this recipient's policy objects to; lists are asked in the transaction (`of_lists`).
pub(super) fn objections(arrival: Arrival<'_>, recipient: &Recipient) -> Vec<Objection> {
    let policy = &recipient.policy;
    let mut found = Vec::new();
    if arrival.verdict.source == Source::Smtp {
        found.extend(arrival.spoof.map(|spoof| spoofed(spoof, policy)));
        found.extend(dmarc(arrival.verdict, policy.dmarc));
        // What is of nobody's inbox in particular, settings for agents' inboxes do not keep from people.
        if !recipient.operator {
            found.extend(unauthenticated(arrival.verdict, policy.unauthenticated));
        }
    }
    if recipient.takes(Some(arrival.octets)).is_err() {
        found.push(too_large(arrival.octets, policy.max_message_size));
    }
    if recipient.operator {
        for objection in found.iter_mut().filter(|objection| objection.refusal.is_some()) {
            (objection.refusal, objection.fate) = (None, Fate::Held);
        }
    }
    found
}

fn spoofed(spoof: &Spoof, policy: &Policy) -> Objection {
    let handling = if policy.spoofed.by == SetBy::Inbox { policy.spoofed } else { spoof.handling };
    let domain = &spoof.domain;
    let found = |fate, text| Objection::new("spoofed", fate, handling.by.text(), text);
    let text = format!(
        "It came from outside and says that it is from {domain}, a domain of this server; nothing proves it."
    );
    match handling.value {
        Spoofed::Tag => found(Fate::Labelled, text),
        Spoofed::Hold => found(Fate::Held, text),
        Spoofed::Refuse if spoof.unsure => {
            let text = format!(
                "It came from outside and says that it is from {domain}; the DNS did not answer who may."
            );
            let say =
                format!("Whether this mail is from {domain} cannot be told while the DNS does not answer");
            found(Fate::Held, text).or_refuse(451, "4.7.1", say)
        }
        Spoofed::Refuse => {
            let say = format!(
                "Mail from {domain} is taken from outside only if SPF or DKIM passes for it, aligned"
            );
            found(Fate::Blocked, text).or_refuse(550, "5.7.1", say)
        }
    }
}

fn dmarc(verdict: &Verdict, handling: Setting<DmarcHandling>) -> Option<Objection> {
    if !verdict.dmarc_failed() {
        return None;
    }
    let asked = verdict.dmarc.policy;
    let domain = &verdict.dmarc.domain;
    let text = format!(
        "DMARC failed for {domain}, which asks for p={}: the From address is not to be believed.",
        asked.as_str()
    );
    let found = |fate| Objection::new("dmarc_failed", fate, handling.by.text(), &text);
    match (handling.value, asked) {
        (_, DmarcPolicy::None) => None,
        (DmarcHandling::Tag, _) => Some(found(Fate::Labelled)),
        (DmarcHandling::Quarantine, _) | (_, DmarcPolicy::Quarantine) => Some(found(Fate::Held)),
        (DmarcHandling::Enforce, DmarcPolicy::Reject) => {
            let say = format!("{domain} asks to reject mail that fails DMARC");
            Some(found(Fate::Blocked).or_refuse(550, "5.7.1", say))
        }
    }
}

fn unauthenticated(verdict: &Verdict, handling: Setting<Unauthenticated>) -> Option<Objection> {
    if verdict.verified_sender.is_some() {
        return None;
    }
    let text = "The sender is not verified: neither SPF nor DKIM passed for the From address (DMARC).";
    let found = |fate| Objection::new("unauthenticated", fate, handling.by.text(), text);
    match handling.value {
        Unauthenticated::Accept => None,
        Unauthenticated::Tag => Some(found(Fate::Labelled)),
        Unauthenticated::Hold => Some(found(Fate::Held)),
        Unauthenticated::Refuse => {
            let say = "This inbox takes mail from authenticated senders only: SPF or DKIM must pass, aligned (DMARC)";
            Some(found(Fate::Blocked).or_refuse(550, "5.7.26", say))
        }
    }
}

fn too_large(octets: u64, limit: Setting<u64>) -> Objection {
    let limit_octets = limit.value;
    let text = format!("Its {octets} octets are more than the {limit_octets} that the inbox takes.");
    let found = Objection::new("too_large", Fate::Blocked, limit.by.text(), text);
    let say = format!("Larger than the {limit_octets} octets that the inbox takes");
    found.or_refuse(552, "5.3.4", say)
}

/// Who a message says it is from, for the lists.
pub(super) struct Author<'a> {
    /// Every From address that can be read.
    pub claimed: &'a [Address],
    pub verified: Option<&'a Address>,
    /// A bounce comes from somebody's mail system, which no allow list names; a block holds for it too.
    pub is_bounce: bool,
}

/// What the lists say. A block holds for any address that From claims; an allow for a verified sender, since From
/// can be forged by anybody.
pub(super) fn of_lists(
    found: &[ListEntry],
    reply: bool,
    author: &Author<'_>,
    matched: ListsMatch,
) -> Option<Objection> {
    let (block, allow) = match reply {
        true => ("reply_list_block", "reply_list_allow"),
        false => ("receive_list_block", "receive_list_allow"),
    };
    let kind = if reply { "reply" } else { "receive" };
    for address in author.claimed {
        if let ListVerdict::Blocked(entry) = list::judge(found, address) {
            let by = list::scope_word(entry.scope);
            let text = format!("{address} is on the {by}'s {kind} block list ({}).", entry.entry);
            return Some(Objection::new(block, Fate::Blocked, by, text));
        }
    }
    if author.is_bounce {
        return None;
    }
    let believed = match (matched, author.claimed) {
        (ListsMatch::Claimed, [only]) => Some(only),
        _ => author.verified,
    };
    let nobody = Address::nobody();
    let ListVerdict::NotAllowed { scope } = list::judge(found, believed.unwrap_or(&nobody)) else {
        return None;
    };
    let by = list::scope_word(scope);
    let text = match (believed, author.claimed.first()) {
        (Some(address), _) => format!("{address} is not on the {by}'s {kind} allow list."),
        (None, Some(address)) => {
            format!(
                "The {by}'s {kind} allow list lets in verified senders only, and {address} is not verified."
            )
        }
        (None, None) => format!("It has no sender that the {by}'s {kind} allow list could let in."),
    };
    Some(Objection::new(allow, Fate::Blocked, by, text))
}
