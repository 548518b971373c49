//! Whether a message is one that is here already, come by another way.
//!
//! Same Message-ID and same body: a duplicate, whoever sends it. Same Message-ID and another body: another
//! message, or mail would be lost (Stalwart #632), with one exception. A mailing list sends its own copy of
//! what came directly, with a footer below it: those are one message where both claim one author, one of the
//! two went through a list, and the shorter text is the beginning of the longer. So nothing can hide behind a
//! link but a footer: the words that a worker gets are in both. A forged "list copy" with words of its own is
//! another message.
//!
//! Without Message-ID a message is known by its print: author, Date, subject and body.

use sha2::{Digest, Sha256};

use super::{Incoming, subject};
use crate::ids::InboxKey;
use crate::screen::{self, structure::Structure};
use crate::store::body::{self, Body};
use crate::store::thread::Relative;
use crate::store::{StoreError, Tx};

/// Octets of a message that is compared: this runs in the transaction, and lists are not for large mail.
const LARGEST_COMPARED: i64 = 128 * 1024;
/// Characters that a list may put below. The longest footers seen (Google Groups, universities) have some 800.
const MAX_FOOTER: usize = 2_000;

/// What a message without Message-ID is known by. A sender that gives no Date either may mean to say the same
/// thing again.
pub(super) fn print(incoming: &Incoming) -> Option<String> {
    let structure = &incoming.structure;
    if structure.message_id.is_some() || structure.from.is_empty() {
        return None;
    }
    let mut hash = Sha256::new();
    hash.update(structure.date?.to_be_bytes());
    for text in structure.from.iter().map(|from| &from.address).chain(&structure.subject) {
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
    let (by_list, direct) = match (incoming.structure.ties.by_list, structure.ties.by_list) {
        (true, false) => ((&later, &incoming.structure), (&earlier, &structure)),
        (false, true) => ((&earlier, &structure), (&later, &incoming.structure)),
        _ => return Ok(false),
    };
    if !same_author(by_list.1, direct.1) || attachments(by_list.1) != attachments(direct.1) {
        return Ok(false);
    }
    let base = |of: &Structure| subject::take_apart(of.subject.as_deref().unwrap_or_default()).base;
    if base(by_list.1) != base(direct.1) {
        return Ok(false);
    }
    let text = |(raw, of): (&Vec<u8>, &Structure)| {
        let text = screen::body_text(raw, of);
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let (by_list, direct) = (text(by_list), text(direct));
    let footer = by_list.strip_prefix(direct.as_str());
    Ok(!direct.is_empty() && footer.is_some_and(|footer| footer.chars().count() <= MAX_FOOTER))
}

/// One author in both. A list that rewrites From because of DMARC puts the author into Reply-To.
fn same_author(by_list: &Structure, direct: &Structure) -> bool {
    let [author] = direct.from.as_slice() else { return false };
    let mut claimed = by_list.from.iter().chain(&by_list.reply_to);
    claimed.any(|claimed| claimed.address.eq_ignore_ascii_case(&author.address))
}

fn attachments(of: &Structure) -> Vec<(&str, u64)> {
    of.parts
        .iter()
        .filter(|part| part.attachment)
        .map(|part| (part.content_type.as_str(), part.size))
        .collect()
}
