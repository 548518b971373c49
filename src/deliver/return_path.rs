//! The return path of what we send: `b-<token>@<From domain>`, so that SPF aligns with From, and a bounce finds
//! its message with certainty. The token names the message and carries a MAC: nobody else can make one, so only
//! mail that answers ours is let in by it.

use crate::ids::{InboxKey, base32, unbase32};
use crate::secrets::Secrets;

/// No inbox may begin like this.
pub const PREFIX: &str = "b-";
const PURPOSE: &str = "return-path";
/// Octets of the MAC: 80 bits, checked one guess a mail.
const TAG: usize = 10;
/// Octets that name the message: pod 4, inbox 5, message 5.
const NAME: usize = 14;

/// The local part for mail of this message: 42 characters.
pub fn make(secrets: &Secrets, inbox: InboxKey, message_key: i64) -> String {
    let mut token = Vec::with_capacity(NAME + TAG);
    token.extend_from_slice(&inbox.pod.to_be_bytes()[4..]);
    token.extend_from_slice(&inbox.inbox.to_be_bytes()[3..]);
    token.extend_from_slice(&message_key.to_be_bytes()[3..]);
    let tag = secrets.mac(PURPOSE, &token);
    token.extend_from_slice(&tag[..TAG]);
    format!("{PREFIX}{}", base32(&token))
}

/// The message that a local part stands for; `None` for anything that `make` did not write.
pub fn check(secrets: &Secrets, local: &str) -> Option<(InboxKey, i64)> {
    let token = unbase32(local.to_ascii_lowercase().strip_prefix(PREFIX)?)?;
    let (name, tag) = token.split_at_checked(NAME)?;
    if tag.len() != TAG || !secrets.mac_matches(PURPOSE, name, tag) {
        return None;
    }
    let number = |octets: &[u8]| octets.iter().fold(0i64, |n, b| (n << 8) | i64::from(*b));
    let (pod, rest) = name.split_at_checked(4)?;
    let (inbox, message) = rest.split_at_checked(5)?;
    Some((InboxKey { pod: number(pod), inbox: number(inbox) }, number(message)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_tokens_find_a_message() {
        let folder = tempfile::tempdir().unwrap();
        let secrets = Secrets::open_or_create(&folder.path().join("k")).unwrap();
        let inbox = InboxKey { pod: 1, inbox: 77 };
        let local = make(&secrets, inbox, 4_711);
        assert!(local.len() <= 64);
        assert_eq!(check(&secrets, &local), Some((inbox, 4_711)));
        assert_eq!(check(&secrets, &local.to_uppercase()), Some((inbox, 4_711)));
        let mut forged = local.clone();
        forged.replace_range(10..11, if &local[10..11] == "0" { "1" } else { "0" });
        for wrong in [forged.as_str(), "b-", "b-0000", "ada", &local[..local.len() - 2]] {
            assert_eq!(check(&secrets, wrong), None, "{wrong}");
        }
    }
}
