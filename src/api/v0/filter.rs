//! Which messages and threads a listing shows: labels, substrings, and what is hidden unless it is asked for.
//!
//! AgentMail hides `spam`, `blocked`, `unauthenticated` and `trash` unless `include_…` says otherwise, and a key
//! whose permissions lack `label_…_read` never sees them. Every label that is asked for must be there; of
//! several senders, recipients or subjects one must match, as a substring, without regard to case.
//!
//! A filter is applied here and not in SQL, so that it means the same on both databases, in every alphabet.

use crate::api::error::Problem;
use crate::api::query::Query;
use crate::clock::Millis;
use crate::principal::Permissions;
use crate::screen::kind::Kind;
use crate::store::message::Heading;
use crate::store::thread::Thread;

/// Hidden labels, the query parameter that shows them, and the permission that allows it.
const HIDDEN: [(&str, &str, &str); 4] = [
    ("spam", "include_spam", "label_spam_read"),
    ("blocked", "include_blocked", "label_blocked_read"),
    ("unauthenticated", "include_unauthenticated", "label_unauthenticated_read"),
    ("trash", "include_trash", "label_trash_read"),
];

/// Labels that say what happened; only the server sets and removes them.
const SYSTEM_LABELS: [&str; 11] = [
    "received",
    "sent",
    "delivered",
    "bounced",
    "complained",
    "rejected",
    "opened",
    "blocked",
    "unauthenticated",
    "scheduled",
    "pending-review",
];
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    labels: Vec<String>,
    senders: Vec<String>,
    recipients: Vec<String>,
    subject: Vec<String>,
    /// Of messages: one of them.
    kinds: Vec<Kind>,
    /// Labels that keep a row out.
    without: Vec<&'static str>,
    since: Option<Millis>,
    until: Option<Millis>,
}

/// What senders and recipients are called: `from` and `to` of messages, `senders` and `recipients` of threads.
pub(crate) struct Parameters {
    pub senders: &'static str,
    pub recipients: &'static str,
}

impl Filter {
    pub(crate) fn take(query: &mut Query, names: &Parameters, permissions: &Permissions) -> Filter {
        let lower = |values: Vec<String>| values.into_iter().map(|v| v.to_lowercase()).collect();
        let labels = query.list("labels");
        let mut without = Vec::new();
        for (label, include, permission) in HIDDEN {
            // Who names the label asks for it as well.
            let asked = query.flag(include) || labels.iter().any(|l| l == label);
            if !asked || !permissions.allow(permission) {
                without.push(label);
            }
        }
        Filter {
            labels,
            senders: lower(query.list(names.senders)),
            recipients: lower(query.list(names.recipients)),
            subject: lower(query.list("subject")),
            kinds: Vec::new(),
            without,
            since: query.instant("after").map(|at| at.saturating_add(1)),
            until: query.instant("before"),
        }
    }

    /// Messages alone have a kind.
    pub(crate) fn of_kind(self, query: &mut Query) -> Filter {
        Filter { kinds: query.words("kind", &Kind::WORDS), ..self }
    }

    /// `after` and `before` both leave their own instant out.
    pub(crate) fn range(&self) -> (Millis, Millis) {
        (self.since.unwrap_or(Millis::MIN), self.until.unwrap_or(Millis::MAX))
    }

    pub(crate) fn takes_message(&self, message: &Heading) -> bool {
        let [to, cc, bcc] = &message.recipients;
        self.takes_labels(&message.labels)
            && any(&self.senders, [message.from.as_str()])
            && any(&self.recipients, [to.as_str(), cc, bcc])
            && any(&self.subject, message.subject.as_deref())
            && (self.kinds.is_empty() || message.kind.is_some_and(|kind| self.kinds.contains(&kind)))
    }

    pub(crate) fn takes_thread(&self, thread: &Thread) -> bool {
        // A thread in which nobody has written to us yet is of interest to those who ask for what was sent.
        let ours_alone = thread.received_at.is_none() && !self.labels.iter().any(|l| l == "sent");
        !ours_alone
            && self.takes_labels(&thread.labels)
            && any(&self.senders, thread.senders.iter().map(String::as_str))
            && any(&self.recipients, thread.recipients.iter().map(String::as_str))
            && any(&self.subject, thread.subject.as_deref())
    }

    fn takes_labels(&self, labels: &[String]) -> bool {
        let has = |label: &str| labels.iter().any(|l| l == label);
        self.labels.iter().all(|label| has(label)) && !self.without.iter().any(|label| has(label))
    }
}

/// Whether one of `texts` holds one of `needles`; no needles ask for nothing.
fn any<'a>(needles: &[String], texts: impl IntoIterator<Item = &'a str>) -> bool {
    needles.is_empty()
        || texts.into_iter().any(|text| {
            let text = text.to_lowercase();
            needles.iter().any(|needle| text.contains(needle.as_str()))
        })
}

/// Whether a key with these permissions may see a message or thread with these labels at all.
pub(crate) fn may_read(permissions: &Permissions, labels: &[String]) -> bool {
    HIDDEN
        .iter()
        .all(|(label, _, permission)| permissions.allow(permission) || !labels.iter().any(|l| l == label))
}

/// 400 for what can be no label, or is none that a client may set or remove.
pub(crate) fn check_label(path: &str, label: &str) -> Result<(), Problem> {
    if SYSTEM_LABELS.contains(&label) {
        return Err(Problem::field(&[path], format!("`{label}` is set and removed by the server alone")));
    }
    if !(1..=256).contains(&label.chars().count()) || label.chars().any(char::is_control) {
        let message = "a label has 1 to 256 characters, none of them control characters";
        return Err(Problem::field(&[path], message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(raw: &str, permissions: &Permissions) -> Filter {
        let mut query = Query::parse(raw).unwrap();
        let filter = Filter::take(&mut query, &Parameters { senders: "from", recipients: "to" }, permissions)
            .of_kind(&mut query);
        query.finish().unwrap();
        filter
    }

    fn message(labels: &[&str]) -> Heading {
        Heading {
            message_key: 1,
            labels: labels.iter().map(|l| (*l).to_owned()).collect(),
            from: "Bob Ärger <bob@remote.example>".into(),
            recipients: [
                r#"["ada@agents.example"]"#.into(),
                r#"["Carol <c@x.example>"]"#.into(),
                "[]".into(),
            ],
            subject: Some("Where is my order?".into()),
            kind: Some(Kind::Person),
        }
    }

    #[test]
    fn a_message_is_found_by_any_part_of_what_it_says() {
        let all = Permissions::default();
        let takes = |raw: &str| filter(raw, &all).takes_message(&message(&["received", "unread"]));
        for raw in [
            "",
            "labels=unread&labels=received",
            "from=%C3%A4rger",
            "from=nobody&from=BOB@",
            "to=carol",
            "subject=ORDER",
            "kind=person&kind=list",
        ] {
            assert!(takes(raw), "{raw}");
        }
        for raw in ["labels=unread&labels=urgent", "from=ada@", "to=bob@", "subject=invoice", "kind=list"] {
            assert!(!takes(raw), "{raw}");
        }
    }

    #[test]
    fn spam_shows_itself_to_who_asks_and_may() {
        let all = Permissions::default();
        let reader = Permissions(Some(["message_read".to_owned()].into()));
        let spam = message(&["received", "spam"]);
        assert!(!filter("", &all).takes_message(&spam));
        assert!(filter("include_spam=true", &all).takes_message(&spam));
        assert!(!filter("include_trash=true", &all).takes_message(&spam));
        assert!(filter("labels=spam", &all).takes_message(&spam));
        assert!(!filter("include_spam=true", &reader).takes_message(&spam));
        assert!(!filter("labels=spam", &reader).takes_message(&spam));
        assert!(!may_read(&reader, &spam.labels) && may_read(&all, &spam.labels));
    }
}
