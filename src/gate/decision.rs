//! What the gate says: a decision is data that carries its reasons, and what would have made it another one.

use serde::Serialize;

use crate::clock::Millis;

/// May this be sent?
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Decision {
    Automatic { reasons: Vec<Reason> },
    Review { reasons: Vec<Reason> },
    Blocked { reasons: Vec<Reason> },
}

/// One rule that applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// `send_list_block`, `suppressed`, `limit_per_hour`, …
    pub rule: &'static str,
    /// A sentence for the agent and its human.
    pub say: String,
    /// What would help.
    pub fix: String,
    /// The addresses or figures that the rule went by.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<String>,
    /// When the same request would pass this rule, where waiting is all it takes.
    #[serde(skip)]
    pub retry_at: Option<Millis>,
}

impl Reason {
    pub(super) fn new(rule: &'static str, say: impl Into<String>, fix: impl Into<String>) -> Reason {
        Reason { rule, say: say.into(), fix: fix.into(), evidence: Vec::new(), retry_at: None }
    }

    pub(super) fn with(mut self, evidence: impl IntoIterator<Item = String>) -> Reason {
        self.evidence = evidence.into_iter().collect();
        self
    }
}

impl Decision {
    /// Blocked where there is any reason to, automatic otherwise: policy and review come later.
    pub(super) fn from_objections(reasons: Vec<Reason>) -> Decision {
        if reasons.is_empty() {
            let say = "Nothing stands against it, and no policy asks for a review.";
            Decision::Automatic { reasons: vec![Reason::new("default", say, "")] }
        } else {
            Decision::Blocked { reasons }
        }
    }

    pub fn reasons(&self) -> &[Reason] {
        match self {
            Decision::Automatic { reasons }
            | Decision::Review { reasons }
            | Decision::Blocked { reasons } => reasons,
        }
    }
}
