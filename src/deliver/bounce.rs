//! What we tell an agent about mail of its own that will not arrive: a delivery status notification.
//!
//! It goes only to our own inboxes, from `<>`, never in answer to one, so it can start no loop and no
//! backscatter. It is the same to the octet when the same failure is reported twice (after a crash between
//! the report and the row that records it), except for its Date, so that the inbox links the second one.
//!
//! RFC 3464 (delivery-status), RFC 6522 (multipart/report), RFC 3834 §2 and RFC 5321 §4.5.5 (loops).

use mail_builder::headers::content_type::ContentType;
use mail_builder::mime::{BodyPart, MimePart};

use crate::address::Address;
use crate::clock::{Millis, rfc3339};
use crate::deliver::compose::{self, AutoSubmitted, Boundaries, Composition};
use crate::deliver::outcome::Outcome;
use crate::store::delivery::Delivery;

/// Octets of the original's header that are shown.
const MAX_HEADER: usize = 16 * 1024;

/// What an agent is told of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Failed,
    /// It goes on being tried, until the delivery's `expires_at`.
    Delayed,
}

impl Action {
    /// RFC 3464 §2.3.3.
    fn text(self) -> &'static str {
        match self {
            Action::Failed => "failed",
            Action::Delayed => "delayed",
        }
    }
}

/// The notification of one delivery, or `None` where an address of it cannot be one (which is our mistake).
pub(crate) fn compose(
    hostname: &str,
    action: Action,
    delivery: &Delivery,
    outcome: &Outcome,
    original: &[u8],
    now: Millis,
) -> Option<Vec<u8>> {
    let to: Address = delivery.sender.parse().ok()?;
    let from: Address = format!("mailer-daemon@{}", to.domain()).parse().ok()?;
    let header = original_header(original);
    let parsed = mail_parser::MessageParser::new().parse_headers(header.as_bytes());
    let subject = parsed.as_ref().and_then(|m| m.subject()).unwrap_or_default().to_owned();
    let original_id = parsed.as_ref().and_then(|m| m.message_id()).map(str::to_owned);
    let (name, title) = match action {
        Action::Failed => ("bounce", "Undelivered"),
        Action::Delayed => ("delay", "Delayed"),
    };
    let message_id = format!("{}.{name}@{}", delivery.id(), to.domain());
    let composition = Composition {
        from: (Some("Mail Delivery System".to_owned()), from),
        to: vec![(None, to)],
        cc: vec![],
        reply_to: vec![],
        subject: match subject.is_empty() {
            true => format!("{title} mail"),
            false => format!("{title}: {subject}"),
        },
        text: None,
        html: None,
        attachments: vec![],
        headers: vec![],
        message_id: message_id.clone(),
        date: now,
        references: original_id.iter().cloned().collect(),
        in_reply_to: original_id,
        auto_submitted: Some(AutoSubmitted::Replied),
    };
    let parts = vec![
        compose::text_part("text/plain", &explanation(action, delivery, outcome, &subject)),
        status_part(status_fields(hostname, action, delivery, outcome)),
        compose::text_part("text/rfc822-headers", &header),
    ];
    let boundaries = Boundaries { seed: message_id };
    let report = boundaries.report("delivery-status", parts);
    Some(compose::write(&composition, report))
}

/// What a person, or a model, should know first.
fn explanation(action: Action, delivery: &Delivery, outcome: &Outcome, subject: &str) -> String {
    let who = match outcome.host() {
        Some(host) => format!("The server {host} said"),
        None => "The reason".to_owned(),
    };
    let fate = match action {
        Action::Failed => "could not be delivered",
        Action::Delayed => "is not delivered yet",
    };
    let advice = match action {
        Action::Delayed => {
            let until = rfc3339(delivery.expires_at);
            format!("\nIt is tried again until {until}. Nothing has to be sent again.\n")
        }
        Action::Failed if outcome.suppresses() => {
            "\nThe address was added to the suppression list: further mail to it \
                                                   is refused until it is removed.\n"
                .to_owned()
        }
        Action::Failed => String::new(),
    };
    // Not how often it was tried: a crash between the report and its row raises the count.
    format!(
        "Your message \"{subject}\" {fate} to {} (sent {}).\n\n{who}:\n\n    {} (status {})\n{advice}",
        delivery.recipient,
        rfc3339(delivery.created_at),
        outcome.text,
        outcome.status
    )
}

/// RFC 3464 §2.2 and §2.3.
fn status_fields(hostname: &str, action: Action, delivery: &Delivery, outcome: &Outcome) -> String {
    let mut text = format!("Reporting-MTA: dns; {hostname}\r\n\r\n");
    text.push_str(&format!("Final-Recipient: {}\r\n", typed_address(&delivery.recipient)));
    text.push_str(&format!("Action: {}\r\n", action.text()));
    let status = match outcome.status.strip_prefix("4.") {
        // A delivery that expired was deferred until then; for the reader it is final (RFC 3463 §2: class 5).
        Some(rest) if action == Action::Failed => format!("5.{rest}"),
        _ => outcome.status.clone(),
    };
    text.push_str(&format!("Status: {status}\r\n"));
    if let Some(host) = outcome.host() {
        text.push_str(&format!("Remote-MTA: dns; {host}\r\n"));
        let words: String = outcome.text.chars().map(|c| if c.is_ascii() { c } else { '?' }).collect();
        text.push_str(&format!("Diagnostic-Code: smtp; {}\r\n", fold(&words)));
    }
    if action == Action::Delayed {
        let until = mail_builder::headers::date::Date::new(delivery.expires_at.div_euclid(1_000));
        text.push_str(&format!("Will-Retry-Until: {}\r\n", until.to_rfc822()));
    }
    text
}

/// RFC 6533 §3: an address that is not ASCII has its own type, and a form that is.
fn typed_address(address: &str) -> String {
    if address.is_ascii() {
        return format!("rfc822; {address}");
    }
    let escaped = |c: char| if c.is_ascii() { c.to_string() } else { format!("\\x{{{:X}}}", u32::from(c)) };
    format!("utf-8; {}", address.chars().map(escaped).collect::<String>())
}

/// A reply of up to 1,000 octets in lines below 998: RFC 5322 §2.2.3.
fn fold(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let mut column = 0;
    for word in text.split(' ') {
        if column > 60 {
            out.push_str("\r\n ");
            column = 0;
        } else if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
        column += word.len() + 1;
    }
    out
}

/// The header of the message that failed, as it was made.
fn original_header(raw: &[u8]) -> String {
    let end = raw.windows(4).position(|w| w == b"\r\n\r\n").map_or(raw.len(), |at| at + 2);
    String::from_utf8_lossy(raw.get(..end.min(MAX_HEADER)).unwrap_or_default()).into_owned()
}

/// RFC 2046 §5.2: a message/* part is not encoded, so it goes as the 7-bit text that it is.
fn status_part(fields: String) -> MimePart<'static> {
    MimePart::new(ContentType::new("message/delivery-status"), BodyPart::Binary(fields.into_bytes().into()))
        .transfer_encoding("7bit")
}

#[cfg(test)]
mod tests {
    use mail_parser::MessageParser;

    use super::*;
    use crate::deliver::outcome::Via;
    use crate::ids::InboxKey;
    use crate::store::delivery::{Priority, Route, TlsDemand};

    fn delivery() -> Delivery {
        Delivery {
            inbox: InboxKey { pod: 1, inbox: 2 },
            delivery_key: 3,
            message_key: 4,
            recipient: "nobody@remote.example".into(),
            domain: "remote.example".into(),
            route: Route::Relay,
            state: "attempting".into(),
            priority: Priority::Ordinary,
            held_by: None,
            via: None,
            tls: TlsDemand::Usual,
            next_attempt_at: 0,
            attempts: 1,
            maybe_duplicate: false,
            last_status: None,
            last_reply: None,
            expires_at: 0,
            created_at: 1_795_230_245_000,
            updated_at: 0,
            thread_key: 5,
            sender: "ada@agents.example".into(),
            size: 6,
            notice_at: None,
            outcome_class: None,
            waits_for: None,
            charged: Vec::new(),
        }
    }

    const ORIGINAL: &[u8] =
        b"Subject: =?utf-8?Q?Gr=C3=BC=C3=9Fe?=\r\nMessage-ID: <sent@agents.example>\r\n\r\nsecret body\r\n";

    #[test]
    fn a_bounce_says_who_did_not_get_what_and_why() {
        let mut outcome = Outcome::failed("5.1.1", "550 5.1.1 no such user\u{1b}[2J\r\nBcc: eve");
        outcome.via =
            Some(Via { host: "mx.remote.example".into(), address: ([192, 0, 2, 1], 25).into(), tls: None });
        outcome.personal = true;
        let raw =
            compose("mx.agents.example", Action::Failed, &delivery(), &outcome, ORIGINAL, 1_795_230_245_000)
                .unwrap();
        let m = MessageParser::new().parse(&raw).unwrap();
        assert_eq!(m.subject(), Some("Undelivered: Grüße"));
        assert_eq!(m.in_reply_to().as_text(), Some("sent@agents.example"));
        let text = String::from_utf8_lossy(&raw);
        assert!(
            text.contains("multipart/report") && text.contains("report-type=\"delivery-status\""),
            "{text}"
        );
        assert!(text.contains("Auto-Submitted: auto-replied\r\n"));
        assert!(text.contains(
            "Final-Recipient: rfc822; nobody@remote.example\r\nAction: failed\r\nStatus: 5.1.1\r\n"
        ));
        assert!(m.body_text(0).unwrap().contains("suppression list"));
        // Not the body: the agent has it, and a bounce may be quoted further.
        assert!(!text.contains("secret body") && !text.contains("\r\nBcc: eve"), "{text}");
    }

    /// What our own reader takes for a delay, a remote's reader does too: nothing is suppressed, nothing has failed.
    #[test]
    fn a_delay_is_no_failure() {
        let outcome = Outcome::deferred("4.4.1", "nobody answers");
        let late = Delivery { expires_at: 1_795_662_245_000, ..delivery() };
        let raw = compose("mx.agents.example", Action::Delayed, &late, &outcome, ORIGINAL, 0).unwrap();
        let read = crate::screen::bounce::read(&raw, &crate::screen::structure(&raw)).unwrap();
        assert_eq!(read.recipients[0].kind, crate::screen::bounce::BounceKind::Delay);
        assert_eq!(read.recipients[0].status.as_deref(), Some("4.4.1"));
        let text = String::from_utf8_lossy(&raw);
        assert_eq!(MessageParser::new().parse(&raw).unwrap().subject(), Some("Delayed: Grüße"));
        assert!(text.contains("Will-Retry-Until: Thu, 26 Nov 2026 "), "{text}");
        assert!(text.contains("tried again until 2026-11-26T"), "{text}");
    }

    #[test]
    fn the_same_failure_reported_twice_differs_in_its_date_alone() {
        let outcome = Outcome::failed("5.1.1", "no");
        let bounce = |now, attempts| {
            let delivery = Delivery { attempts, ..delivery() };
            let raw = compose("mx", Action::Failed, &delivery, &outcome, ORIGINAL, now).unwrap();
            let text = String::from_utf8(raw).unwrap();
            text.split_once("\r\n").map(|(date, rest)| (date.to_owned(), rest.to_owned())).unwrap()
        };
        let (first, second) = (bounce(0, 1), bounce(100_000_000, 2));
        assert_ne!(first.0, second.0);
        assert_eq!(first.1, second.1);
    }
}
