//! Whether a message is one that is here already, come by another way.
//!
//! Who knows a Message-ID can send a message under it before the real one comes. So what is here stands for what
//! comes only where it names the same author, sends answers nowhere else, and is as well verified; and has the
//! same body. Anything else is another message, or mail would be lost (Stalwart #632), with one exception. A
//! mailing list sends its own copy of what came directly, with a footer: one message where the words are the
//! same, with the attachments, and below them stands a line that is a rule and less than was above it.
//!
//! Without Message-ID a message is known by its print: author, where answers go, Date, subject and body.

use sha2::{Digest, Sha256};

use super::{Incoming, subject, threading};
use crate::address::Address;
use crate::ids::InboxKey;
use crate::screen::{self, structure::Mailbox, structure::Structure};
use crate::store::body::{self, Body};
use crate::store::thread::Relative;
use crate::store::{StoreError, Tx};

/// Octets of a message that is compared: this runs in the transaction, and lists are not for large mail.
const LARGEST_COMPARED: i64 = 128 * 1024;
/// Characters that a list may put below. The longest footers seen (Google Groups, universities) have some 800.
const MAX_FOOTER: usize = 2_000;
/// Addresses to which an honest message asks answers to go.
const MAX_ANSWERED: usize = 10;

/// What a message without Message-ID is known by. A sender that gives no Date either may mean to say the same
/// thing again.
pub(super) fn print(incoming: &Incoming) -> Option<String> {
    let structure = &incoming.structure;
    if structure.message_id.is_some() || structure.from.is_empty() {
        return None;
    }
    let mut hash = Sha256::new();
    hash.update(structure.date?.to_be_bytes());
    let addresses = structure.from.iter().chain(&structure.reply_to).map(|from| &from.address);
    let verified = incoming.verdict.verified_sender.as_ref().map(Address::key).unwrap_or_default();
    for text in addresses.chain(&structure.subject).chain([&verified]) {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text.as_bytes());
    }
    hash.update(&incoming.body_hash);
    let octets: [u8; 32] = hash.finalize().into();
    Some(format!("print:{}", octets.iter().take(16).map(|octet| format!("{octet:02x}")).collect::<String>()))
}

/// Whether the message and `other`, which has the same Message-ID and another body, are one message that came
/// directly and by a list.
pub(super) async fn is_list_copy(
    tx: &mut Tx,
    inbox: InboxKey,
    incoming: &Incoming,
    body: &Body,
    other: &Relative,
) -> Result<bool, StoreError> {
    let (Some(known), Some(message_key)) = (&other.known, other.message_key) else { return Ok(false) };
    if incoming.size > LARGEST_COMPARED || known.size > LARGEST_COMPARED || known.ours {
        return Ok(false);
    }
    let Some(earlier) = body::in_row(tx, inbox, message_key).await? else { return Ok(false) };
    let Some(later) = body.octets() else { return Ok(false) };
    let structure = screen::structure(&earlier);
    let earlier = Copy { raw: &earlier, of: &structure };
    let later = Copy { raw: &later, of: &incoming.structure };
    let stands_for = match (earlier.of.ties.by_list, later.of.ties.by_list) {
        // Verified, the direct one is its author's, whoever the list says that it is.
        (false, true) => known.verified_sender.is_some() || incoming.verdict.verified_sender.is_none(),
        (true, false) => threading::is_vouched_for(known, incoming) && same_from(earlier.of, later.of),
        _ => false,
    };
    if !stands_for || !answers_reach(earlier.of, later.of) {
        return Ok(false);
    }
    let (by_list, direct) = if later.of.ties.by_list { (later, earlier) } else { (earlier, later) };
    Ok(is_author_of(direct.of, by_list.of) && same_but_for_a_footer(&by_list, &direct))
}

/// A message that is compared.
struct Copy<'a> {
    raw: &'a [u8],
    of: &'a Structure,
}

fn has(people: &[Mailbox], one: &Mailbox) -> bool {
    people.iter().any(|other| other.address.eq_ignore_ascii_case(&one.address))
}

fn same_from(a: &Structure, b: &Structure) -> bool {
    matches!((a.from.as_slice(), b.from.as_slice()), ([a], [b]) if a.address.eq_ignore_ascii_case(&b.address))
}

/// Whether an answer to the first goes to nobody whom the second does not name.
fn answers_reach(first: &Structure, second: &Structure) -> bool {
    first.reply_to.len() <= MAX_ANSWERED
        && first.reply_to.iter().all(|one| has(&second.reply_to, one) || has(&second.from, one))
}

/// A list that rewrites From because of DMARC puts the author into Reply-To.
fn is_author_of(direct: &Structure, by_list: &Structure) -> bool {
    matches!(direct.from.as_slice(), [author] if has(&by_list.from, author) || has(&by_list.reply_to, author))
}

fn same_but_for_a_footer(by_list: &Copy<'_>, direct: &Copy<'_>) -> bool {
    let base = |of: &Structure| subject::take_apart(of.subject.as_deref().unwrap_or_default()).base;
    if base(by_list.of) != base(direct.of) || !same_attachments(by_list, direct) {
        return false;
    }
    let page = |copy: &Copy<'_>| {
        copy.of.html.map(|part| screen::html_to_text(&screen::decode_text(copy.raw, copy.of, part)))
    };
    let same_page = match (page(by_list), page(direct)) {
        (Some(by_list), Some(direct)) => only_a_footer_below(&by_list, &direct),
        (None, None) => true,
        _ => false,
    };
    let text = |copy: &Copy<'_>| screen::body_text(copy.raw, copy.of);
    same_page && only_a_footer_below(&text(by_list), &text(direct))
}

/// Whether `longer` has the words of `text`, then at most a footer: less than the text, below a line that is a rule.
/// A first message that is but the beginning of a second must not hide the rest of it.
fn only_a_footer_below(longer: &str, text: &str) -> bool {
    let mut words = text.split_whitespace().peekable();
    let mut lines = longer.lines();
    if words.peek().is_none() {
        return false;
    }
    while words.peek().is_some() {
        let Some(line) = lines.next() else { return false };
        if line.split_whitespace().any(|word| words.next() != Some(word)) {
            return false;
        }
    }
    let footer: Vec<&str> = lines.skip_while(|line| line.trim().is_empty()).collect();
    let characters: usize = footer.iter().map(|line| line.chars().count()).sum();
    footer.first().is_none_or(|first| is_rule(first)) && characters < text.chars().count().min(MAX_FOOTER)
}

/// `-- `, `_____`, `-=-=-`: what lists put between text and footer.
fn is_rule(line: &str) -> bool {
    let line = line.trim();
    line.len() > 1 && line.bytes().all(|octet| b"-_=*~#+".contains(&octet))
}

/// The same files, by their octets.
fn same_attachments(a: &Copy<'_>, b: &Copy<'_>) -> bool {
    let files = |copy: &Copy<'_>| -> Vec<_> {
        let parts = copy.of.parts.iter().enumerate().filter(|(_, part)| part.attachment);
        parts
            .map(|(index, part)| {
                let octets = screen::decode_part(copy.raw, copy.of, index as u32);
                (part.content_type.clone(), Sha256::digest(octets))
            })
            .collect()
    };
    files(a) == files(b)
}
