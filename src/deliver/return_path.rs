//! The return path of what we send: `b-<token>@<From domain>`, so that SPF aligns with From, and a bounce finds
//! its message with certainty. The token names one delivery of the message and carries a MAC: nobody else can make one,
//! so only mail that answers ours is let in by it. All recipients at one domain share a token, as they share a
//! transaction; who is at another domain gets another, so that he cannot report for them.

use crate::ids::{InboxKey, base32, unbase32};
use crate::secrets::Secrets;

/// No inbox may begin like this.
pub const PREFIX: &str = "b-";
const PURPOSE: &str = "return-path";
/// Octets of the MAC: 80 bits, checked one guess a mail.
const TAG: usize = 10;
/// Octets that name the delivery: pod 4, inbox 5, message 5, delivery 5.
const NAME: usize = 19;

/// What a return path stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Returned {
    pub inbox: InboxKey,
    pub message_key: i64,
    /// One of those that went to the same domain.
    pub delivery_key: i64,
}

/// The local part for mail of this message to the domain of this delivery: 49 characters.
pub fn make(secrets: &Secrets, of: Returned) -> String {
    let Returned { inbox, message_key, delivery_key } = of;
    let mut token = Vec::with_capacity(NAME + TAG);
    token.extend_from_slice(&inbox.pod.to_be_bytes()[4..]);
    token.extend_from_slice(&inbox.inbox.to_be_bytes()[3..]);
    token.extend_from_slice(&message_key.to_be_bytes()[3..]);
    token.extend_from_slice(&delivery_key.to_be_bytes()[3..]);
    let tag = secrets.mac(PURPOSE, &token);
    token.extend_from_slice(&tag[..TAG]);
    format!("{PREFIX}{}", base32(&token))
}

/// What a local part stands for; `None` for anything that `make` did not write.
pub fn check(secrets: &Secrets, local: &str) -> Option<Returned> {
    let token = unbase32(local.to_ascii_lowercase().strip_prefix(PREFIX)?)?;
    let (name, tag) = token.split_at_checked(NAME)?;
    if tag.len() != TAG || !secrets.mac_matches(PURPOSE, name, tag) {
        return None;
    }
    let number = |octets: &[u8]| octets.iter().fold(0i64, |n, b| (n << 8) | i64::from(*b));
    let (pod, rest) = name.split_at_checked(4)?;
    let (inbox, rest) = rest.split_at_checked(5)?;
    let (message, delivery) = rest.split_at_checked(5)?;
    Some(Returned {
        inbox: InboxKey { pod: number(pod), inbox: number(inbox) },
        message_key: number(message),
        delivery_key: number(delivery),
    })
}

const LEAVE: &str = "unsubscribe";
/// Octets of a token to take leave by: pod 4, inbox 5, the random part of the Message-ID 16.
const LEAVE_NAME: usize = 25;

/// The token by which the recipient of a message unsubscribes, RFC 8058 §3.1: it names the message by the left side of
/// its Message-ID, since that is known before the message has a row. `None` for a Message-ID that we did not make.
pub fn leave_token(secrets: &Secrets, inbox: InboxKey, message_id: &str) -> Option<String> {
    let mut token = Vec::with_capacity(LEAVE_NAME + TAG);
    token.extend_from_slice(&inbox.pod.to_be_bytes()[4..]);
    token.extend_from_slice(&inbox.inbox.to_be_bytes()[3..]);
    token.extend_from_slice(&unbase32(message_id)?);
    if token.len() != LEAVE_NAME {
        return None;
    }
    let tag = secrets.mac(LEAVE, &token);
    token.extend_from_slice(&tag[..TAG]);
    Some(base32(&token))
}

/// The local part at which a mail unsubscribes: 58 characters.
pub fn leave_address(token: &str) -> String {
    format!("{PREFIX}{token}")
}

/// The inbox and the left side of the Message-ID that a token stands for.
pub fn check_leave(secrets: &Secrets, token: &str) -> Option<(InboxKey, String)> {
    let token = unbase32(&token.to_ascii_lowercase())?;
    let (name, tag) = token.split_at_checked(LEAVE_NAME)?;
    if tag.len() != TAG || !secrets.mac_matches(LEAVE, name, tag) {
        return None;
    }
    let number = |octets: &[u8]| octets.iter().fold(0i64, |n, b| (n << 8) | i64::from(*b));
    let (pod, rest) = name.split_at_checked(4)?;
    let (inbox, message_id) = rest.split_at_checked(5)?;
    Some((InboxKey { pod: number(pod), inbox: number(inbox) }, base32(message_id)))
}

/// As `check_leave`, of a local part.
pub fn check_leave_address(secrets: &Secrets, local: &str) -> Option<(InboxKey, String)> {
    let local = local.to_ascii_lowercase();
    check_leave(secrets, local.strip_prefix(PREFIX)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_to_take_leave_by_is_no_return_path_and_the_other_way_round() {
        let folder = tempfile::tempdir().unwrap();
        let secrets = Secrets::open_or_create(&folder.path().join("k")).unwrap();
        let inbox = InboxKey { pod: 1, inbox: 77 };
        let id = crate::ids::random_token::<16>();
        let token = leave_token(&secrets, inbox, &id).unwrap();
        let local = leave_address(&token);
        assert!(local.len() <= 64, "{local}");
        assert_eq!(check_leave_address(&secrets, &local.to_uppercase()), Some((inbox, id.clone())));
        assert_eq!(check(&secrets, &local), None);
        assert_eq!(
            check_leave_address(
                &secrets,
                &make(&secrets, Returned { inbox, message_key: 5, delivery_key: 6 })
            ),
            None
        );
        let mut forged = token.clone();
        forged.replace_range(12..13, if &token[12..13] == "0" { "1" } else { "0" });
        assert_eq!(check_leave(&secrets, &forged), None);
        assert_eq!(leave_token(&secrets, inbox, "somebody-elses"), None);
    }

    #[test]
    fn only_our_own_tokens_find_a_message() {
        let folder = tempfile::tempdir().unwrap();
        let secrets = Secrets::open_or_create(&folder.path().join("k")).unwrap();
        let inbox = InboxKey { pod: 1, inbox: 77 };
        let of = Returned { inbox, message_key: 4_711, delivery_key: 4_713 };
        let local = make(&secrets, of);
        assert_eq!(local.len(), 49);
        assert_eq!(check(&secrets, &local), Some(of));
        assert_eq!(check(&secrets, &local.to_uppercase()), Some(of));
        let mut forged = local.clone();
        forged.replace_range(10..11, if &local[10..11] == "0" { "1" } else { "0" });
        for wrong in [forged.as_str(), "b-", "b-0000", "ada", &local[..local.len() - 2]] {
            assert_eq!(check(&secrets, wrong), None, "{wrong}");
        }
    }
}
