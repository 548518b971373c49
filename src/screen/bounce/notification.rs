//! A bounce as JSON: what Amazon SES makes of bounces, complaints and deliveries, sent on by mail through SNS.
//!
//! Shape: <https://docs.aws.amazon.com/ses/latest/dg/notification-contents.html>

use serde_json::Value;

use super::notice::Notice;
use super::reason::{self, Said};
use super::{Bounce, BounceClass, BounceKind, BouncedRecipient, MAX_RECIPIENTS, Reason, address, line};

/// The notification in a text; `None` where there is none.
pub(super) fn read(notice: &Notice) -> Option<Bounce> {
    let text = notice.prose.as_str();
    if !text.contains("otificationType") && !text.contains("eventType") {
        return None;
    }
    // Long lines were folded on the way, in the middle of texts.
    let json = text.get(text.find('{')?..)?.replace('\r', "").replace("\n ", "").replace('\n', "");
    let mut value = serde_json::Deserializer::from_str(&json).into_iter::<Value>().next()?.ok()?;
    // SNS wraps it once more, as a text.
    if let Some(inner) = value.get("Message").and_then(Value::as_str) {
        value = serde_json::from_str(inner).ok()?;
    }
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    let kind = match text("notificationType").or_else(|| text("eventType"))?.to_ascii_lowercase().as_str() {
        "bounce" => BounceKind::Failure,
        "deliverydelay" => BounceKind::Delay,
        "delivery" => BounceKind::Delivered,
        "complaint" => BounceKind::Complaint,
        _ => return None,
    };
    let list = [
        "/bounce/bouncedRecipients",
        "/complaint/complainedRecipients",
        "/delivery/recipients",
        "/deliveryDelay/delayedRecipients",
    ];
    let listed = list.iter().find_map(|pointer| value.pointer(pointer)?.as_array())?;
    let answer = value.pointer("/delivery/smtpResponse").and_then(Value::as_str).unwrap_or_default();
    let recipients: Vec<BouncedRecipient> =
        listed.iter().take(MAX_RECIPIENTS).map(|entry| recipient(kind, entry, answer)).collect();
    let feedback = (kind == BounceKind::Complaint).then(|| {
        let given = value.pointer("/complaint/complaintFeedbackType").and_then(Value::as_str);
        line(given.unwrap_or("other"))
    });
    (!recipients.is_empty()).then_some(Bounce { kind, recipients, feedback })
}

fn recipient(kind: BounceKind, entry: &Value, answer: &str) -> BouncedRecipient {
    let field = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
    let named = address(entry.as_str().unwrap_or_else(|| field("emailAddress")));
    if kind == BounceKind::Complaint {
        return BouncedRecipient {
            address: named,
            original: None,
            kind,
            class: BounceClass::Other,
            reason: Reason::Feedback,
            status: None,
            code: None,
            text: String::new(),
        };
    }
    let words = field("diagnosticCode");
    let words = words.split_once(';').map_or(words, |(_, words)| words);
    let words = if words.is_empty() { answer } else { words };
    let status = reason::status_in(field("status"));
    reason::weigh(Said { kind, status, words, beside: "", by: "smtp" })
        .recipient(kind, named, None, words, "")
}
