//! What came of an attempt, for one recipient: delivered, try again, or never; with the words that say why.
//!
//! RFC 5321 §4.2.1 (what a class of reply means), RFC 3463 (enhanced status codes).

use std::net::SocketAddr;

use crate::deliver::client::{ClientError, Stage};
use crate::deliver::reply::{Class, Reply};
use crate::deliver::route::RouteError;

/// Characters of an explanation: it has to fit on a line of 998 octets with what stands before it.
const MAX_TEXT: usize = 900;

/// The three ends of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Delivered,
    Deferred,
    Failed,
}

/// The host that an attempt ended at, and how the way to it was secured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Via {
    pub host: String,
    pub address: SocketAddr,
    /// `TLSv1.3 TLS13_AES_256_GCM_SHA384`; where the host proved itself, then `, verified by DANE`, `MTA-STS` or `DNSSEC and
    /// an authority`. `None` in clear, or where it did not come to that.
    pub tls: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub fate: Fate,
    /// RFC 3463, the remote's where it gave one.
    pub status: String,
    /// The remote's words, or ours where it had none; printable.
    pub text: String,
    /// What was reached, or dialled; `None` where nobody was.
    pub via: Option<Via>,
    /// The answer was to this recipient, not to the message as a whole.
    pub personal: bool,
    /// The message was sent and its answer was not heard: the remote may have it.
    pub unheard: bool,
}

impl Outcome {
    fn new(fate: Fate, status: impl Into<String>, text: impl Into<String>) -> Outcome {
        // It may end in a bounce, an event or a terminal: one line, and bounded.
        let text = text.into().chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_TEXT).collect();
        Outcome { fate, status: status.into(), text, via: None, personal: false, unheard: false }
    }

    pub fn delivered(status: &str, text: impl Into<String>) -> Outcome {
        Outcome::new(Fate::Delivered, status, text)
    }

    pub fn deferred(status: &str, text: impl Into<String>) -> Outcome {
        Outcome::new(Fate::Deferred, status, text)
    }

    pub fn failed(status: &str, text: impl Into<String>) -> Outcome {
        Outcome::new(Fate::Failed, status, text)
    }

    pub(crate) fn from_reply(reply: &Reply, via: &Via) -> Outcome {
        let (fate, class) = match reply.class() {
            Class::Done => (Fate::Delivered, 2),
            Class::Permanent => (Fate::Failed, 5),
            // A 3xx where none belongs: the remote is confused, and may be less so later.
            Class::Temporary | Class::Continue => (Fate::Deferred, 4),
        };
        let status = reply.enhanced().unwrap_or_else(|| format!("{class}.0.0"));
        Outcome { via: Some(via.clone()), ..Outcome::new(fate, status, reply.to_string()) }
    }

    /// Trouble with the connection: the message may go later, unless the remote cannot take it at all.
    pub(crate) fn from_error(error: &ClientError, via: &Via) -> Outcome {
        let status = match error {
            ClientError::Unable(status, _) => status.to_string(),
            ClientError::Connect(_) => "4.4.1".to_owned(),
            ClientError::Refused(_, reply) => {
                reply.enhanced().filter(|s| s.starts_with('4')).unwrap_or_else(|| "4.3.0".to_owned())
            }
            ClientError::Tls(_) => "4.7.5".to_owned(),
            ClientError::Nonsense(..) => "4.5.0".to_owned(),
            _ => "4.4.2".to_owned(),
        };
        let fate = if status.starts_with('5') { Fate::Failed } else { Fate::Deferred };
        Outcome {
            via: Some(via.clone()),
            unheard: error.stage() == Stage::Dot,
            ..Outcome::new(fate, status, error.to_string())
        }
    }

    pub(crate) fn from_route(error: RouteError) -> Outcome {
        match error {
            RouteError::Permanent { status, text } => Outcome::failed(status, text),
            RouteError::Temporary(text) => Outcome::deferred("4.4.3", text),
        }
    }

    /// The name of the host that was reached.
    pub fn host(&self) -> Option<&str> {
        self.via.as_ref().map(|via| via.host.as_str())
    }

    /// Whether the address must not be written to again. An answer to the whole message names nobody.
    pub fn suppresses(&self) -> bool {
        self.fate == Fate::Failed && self.personal && is_dead_address(&self.status)
    }
}

/// Whether a status says that the address itself is no good: no such mailbox (5.1.1), bad syntax or gone (5.1.3,
/// 5.1.6), a domain that takes no mail (5.1.10), disabled (5.2.1). mox suppresses on 5.1.2 and 5.7.1 too: 5.1.2
/// is what a resolver's bad day looks like, and 5.7.1 is about us, so neither is taken here.
fn is_dead_address(status: &str) -> bool {
    ["5.1.1", "5.1.3", "5.1.6", "5.1.10", "5.2.1"].contains(&status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mx() -> Via {
        Via { host: "mx".into(), address: ([192, 0, 2, 1], 25).into(), tls: None }
    }

    fn reply(text: &str) -> Reply {
        Reply::parse(text.as_bytes()).unwrap().unwrap().0
    }

    #[test]
    fn only_a_dead_address_is_suppressed() {
        let said = |text: &str| Outcome { personal: true, ..Outcome::from_reply(&reply(text), &mx()) };
        assert!(said("550 5.1.1 no such user\r\n").suppresses());
        assert!(said("550 5.2.1 disabled\r\n").suppresses());
        for text in [
            "550 no\r\n",
            "550 5.7.1 blocked\r\n",
            "552 5.2.2 full\r\n",
            "450 4.1.1 later\r\n",
            "250 2.1.5 ok\r\n",
            "550 5.1.2 bad system\r\n",
        ] {
            assert!(!said(text).suppresses(), "{text}");
        }
        let to_all = Outcome { personal: false, ..said("550 5.1.1 one of you\r\n") };
        assert!(!to_all.suppresses());
    }

    #[test]
    fn a_refusal_at_the_door_is_never_final() {
        let refused = ClientError::Refused(Stage::Greeting, reply("554 5.7.1 go away\r\n"));
        let outcome = Outcome::from_error(&refused, &mx());
        assert_eq!((outcome.fate, outcome.status.as_str()), (Fate::Deferred, "4.3.0"));
        let silent = Outcome::from_error(&ClientError::Silent(Stage::Dot), &mx());
        assert!(silent.unheard && silent.fate == Fate::Deferred);
    }
}
