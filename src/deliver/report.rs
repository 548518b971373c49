//! A bounce that comes back by mail, read: which recipients failed, and why.
//!
//! Pure, and believed only as far as the return path it came by: that names the message, so the worst that a
//! forged report can do is to speak for recipients of that one message. Free-text bounces are left to people.
//!
//! RFC 3464 §2 (per-recipient fields), RFC 6533 (addresses that are not ASCII).

use crate::address::Address;
use crate::deliver::outcome;
use crate::screen::{self, structure::Structure};
use crate::store::delivery::Returned;

/// Recipients read from one report: as many as one transaction can have.
const MAX_RECIPIENTS: usize = 100;
const MAX_TEXT: usize = 900;

/// The failures that a delivery status notification reports; empty for any other message.
pub fn read(raw: &[u8], structure: &Structure) -> Vec<Returned> {
    let status = structure.parts.iter().position(|part| part.content_type == "message/delivery-status");
    let Some(part) = status.and_then(|at| u32::try_from(at).ok()) else { return Vec::new() };
    let text = String::from_utf8_lossy(&screen::decode_part(raw, structure, part)).into_owned();
    // RFC 3464 §2.1: groups of fields, divided by blank lines; the first group is about the whole message.
    let unfolded = text.replace("\r\n", "\n").replace("\n ", " ").replace("\n\t", " ");
    unfolded.split("\n\n").filter_map(failure).take(MAX_RECIPIENTS).collect()
}

fn failure(group: &str) -> Option<Returned> {
    let field = |name: &str| {
        group.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.trim().eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    // RFC 3464 §2.3.3: delayed, delivered, relayed and expanded are no failures.
    if !field("Action")?.eq_ignore_ascii_case("failed") {
        return None;
    }
    let recipients: Vec<String> =
        ["Final-Recipient", "Original-Recipient"].iter().filter_map(|name| address(&field(name)?)).collect();
    let status = field("Status").unwrap_or_default();
    let status = status.split_whitespace().next().filter(|s| is_status(s)).unwrap_or("5.0.0").to_owned();
    let words = field("Diagnostic-Code").unwrap_or_default();
    let words = words.split_once(';').map_or(words.as_str(), |(_, words)| words).trim();
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    let text = words.chars().map(printable).take(MAX_TEXT).collect();
    Some(Returned { recipients, dead_address: outcome::is_dead_address(&status), status, text })
}

/// `rfc822; bob@remote.example`, in the form that addresses are compared in.
fn address(typed: &str) -> Option<String> {
    let text = typed.split_once(';').map_or(typed, |(_, address)| address).trim();
    let text = text.trim_start_matches('<').trim_end_matches('>');
    text.parse::<Address>().ok().map(|address| address.key())
}

fn is_status(text: &str) -> bool {
    let parts: Vec<&str> = text.split('.').collect();
    let number =
        |part: &&str| !part.is_empty() && part.len() <= 3 && part.bytes().all(|b| b.is_ascii_digit());
    parts.len() == 3 && matches!(parts.first(), Some(&"4" | &"5")) && parts.iter().all(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(fields: &str) -> Vec<Returned> {
        let raw = format!(
            "From: <>\r\nMIME-Version: 1.0\r\nContent-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n\
             --b\r\nContent-Type: text/plain\r\n\r\nSorry.\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\n\
             Reporting-MTA: dns; mx.remote.example\r\n\r\n{fields}\r\n--b--\r\n"
        );
        read(raw.as_bytes(), &screen::structure(raw.as_bytes()))
    }

    #[test]
    fn failures_are_read_and_delays_are_none() {
        let read = report(
            "Final-Recipient: rfc822; Bob@Remote.example\r\nAction: failed\r\nStatus: 5.1.1\r\n\
             Diagnostic-Code: smtp; 550 5.1.1\r\n no such user\r\n\r\n\
             Original-Recipient: rfc822;<eve@remote.example>\r\nAction: Failed\r\n\r\n\
             Final-Recipient: rfc822; late@remote.example\r\nAction: delayed\r\nStatus: 4.4.1\r\n",
        );
        assert_eq!(read.len(), 2, "{read:?}");
        assert_eq!(read[0].recipients, ["bob@remote.example"]);
        assert_eq!((read[0].status.as_str(), read[0].text.as_str()), ("5.1.1", "550 5.1.1 no such user"));
        assert!(read[0].dead_address);
        assert_eq!(
            (read[1].recipients[0].as_str(), read[1].status.as_str()),
            ("eve@remote.example", "5.0.0")
        );
        assert!(!read[1].dead_address);
    }

    #[test]
    fn nonsense_reports_nobody() {
        assert_eq!(report("Final-Recipient: rfc822; bob@remote.example\r\n"), []);
        assert_eq!(report(": : :\r\nAction\r\n\r\n\r\n\r\n"), []);
        let odd = report("Final-Recipient: x400; /S=bob/\r\nAction: failed\r\nStatus: 9.9.9\r\n");
        assert_eq!((odd[0].recipients.len(), odd[0].status.as_str()), (0, "5.0.0"));
        let plain = b"Subject: x\r\n\r\nAction: failed\r\n";
        assert_eq!(read(plain, &screen::structure(plain)), []);
    }
}
