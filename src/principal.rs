//! Who asks: an API key, with its scope and what it may do. A key sees its inbox, its pod or the organization,
//! and nothing else.

use std::collections::BTreeSet;

use crate::ids::InboxKey;

/// What a key reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Organization,
    Pod(i64),
    Inbox(InboxKey),
}

impl Scope {
    /// Pod and inbox, as queries take them: 0 for all of them.
    pub fn numbers(self) -> (i64, i64) {
        match self {
            Scope::Organization => (0, 0),
            Scope::Pod(pod) => (pod, 0),
            Scope::Inbox(inbox) => (inbox.pod, inbox.inbox),
        }
    }

    pub fn reaches(self, inbox: InboxKey) -> bool {
        match self {
            Scope::Organization => true,
            Scope::Pod(pod) => pod == inbox.pod,
            Scope::Inbox(own) => own == inbox,
        }
    }
}

/// Permission flags by their AgentMail names (`message_send`, …). No list: everything in the key's scope.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Permissions(pub Option<BTreeSet<String>>);

impl Permissions {
    pub fn allow(&self, flag: &str) -> bool {
        self.0.as_ref().is_none_or(|flags| flags.contains(flag))
    }

    /// Whether a key with these may grant `other`.
    pub fn cover(&self, other: &Permissions) -> bool {
        match (&self.0, &other.0) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(own), Some(asked)) => asked.is_subset(own),
        }
    }
}

/// The authenticated caller.
#[derive(Debug, Clone)]
pub struct Principal {
    pub key_id: i64,
    /// `key_…`, as shown in listings and in the audit log.
    pub api_key_id: String,
    pub scope: Scope,
    pub permissions: Permissions,
}

impl Principal {
    /// The actor of an audit row.
    pub fn actor(&self) -> String {
        format!("key:{}", self.api_key_id)
    }

    /// Limits, lists, policy and suppression belong to people and admin keys, never to an inbox's own key.
    pub fn is_admin(&self) -> bool {
        !matches!(self.scope, Scope::Inbox(_))
    }
}
