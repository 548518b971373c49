//! The parameters of MAIL and RCPT that we announce: octets in, values or the reason why not out. Pure.
//!
//! A parameter that is repeated, lacks its value or has one too many is refused and never guessed at; so are
//! combinations that contradict themselves. What xtext hides (RFC 3461 §4) is held to the same characters as
//! what stands in the open, since it is kept and may be written down again.
//!
//! RFC 1870 (SIZE), RFC 3461 (RET, ENVID, NOTIFY, ORCPT), RFC 6152 (BODY), RFC 6531 (SMTPUTF8), RFC 6533
//! (utf-8 addresses in ORCPT), RFC 8689 (REQUIRETLS).

use crate::envelope::{DsnRecipient, Notify, NotifyOn, Ret};
use crate::smtp::command::CommandError;

/// Octets of an ENVID as sent: RFC 3461 §4.4.
const MAX_ENVID: usize = 100;
/// Octets of an ORCPT as sent: RFC 3461 §4.2.
const MAX_ORCPT: usize = 500;

/// What may follow the path of MAIL.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct MailParameters {
    /// What the client says the message will measure (RFC 1870 §6); a number too large for 64 bits is the
    /// largest one.
    pub(crate) size: Option<u64>,
    pub(crate) smtputf8: bool,
    pub(crate) ret: Option<Ret>,
    pub(crate) require_tls: bool,
    pub(crate) envid: Option<String>,
}

impl MailParameters {
    pub(crate) fn read<'a>(parameters: impl Iterator<Item = &'a str>) -> Result<Self, CommandError> {
        let mut mail = MailParameters::default();
        let mut body = false;
        for parameter in parameters {
            let (keyword, value) = cut(parameter)?;
            match (keyword.as_str(), value) {
                ("SIZE", Some(value)) if mail.size.is_none() => mail.size = Some(size(value)?),
                ("BODY", Some(value)) if !body => {
                    // RFC 6152 §2. BINARYMIME (RFC 3030 §3) is not offered: what is stored here has lines.
                    body = ["7BIT", "8BITMIME"].iter().any(|known| known.eq_ignore_ascii_case(value));
                    if !body {
                        return Err(CommandError::Parameter("BODY is 7BIT or 8BITMIME"));
                    }
                }
                // RFC 6531 §3.4: the parameter has no value.
                ("SMTPUTF8", None) if !mail.smtputf8 => mail.smtputf8 = true,
                // RFC 8689 §3
                ("REQUIRETLS", None) if !mail.require_tls => mail.require_tls = true,
                ("RET", Some(value)) if mail.ret.is_none() => {
                    mail.ret = Some(match value.to_ascii_uppercase().as_str() {
                        "FULL" => Ret::Full,
                        "HDRS" => Ret::Hdrs,
                        _ => return Err(CommandError::Parameter("RET is FULL or HDRS")),
                    });
                }
                ("ENVID", Some(value)) if mail.envid.is_none() => {
                    let envid = (value.len() <= MAX_ENVID).then(|| xtext(value)).flatten();
                    mail.envid =
                        Some(envid.ok_or(CommandError::Parameter("ENVID is at most 100 octets of xtext"))?);
                }
                ("SIZE" | "BODY" | "RET" | "ENVID", _) => {
                    return Err(CommandError::Parameter("SIZE, BODY, RET and ENVID take a value, each once"));
                }
                ("SMTPUTF8" | "REQUIRETLS", _) => {
                    return Err(CommandError::Parameter("SMTPUTF8 and REQUIRETLS take no value, each once"));
                }
                // RFC 5321 §4.1.1.11. AUTH= among them: it belongs to servers that announce AUTH (RFC 4954 §5).
                _ => return Err(CommandError::UnknownParameter),
            }
        }
        Ok(mail)
    }
}

/// What may follow the path of RCPT.
pub(crate) fn rcpt<'a>(parameters: impl Iterator<Item = &'a str>) -> Result<DsnRecipient, CommandError> {
    let mut rcpt = DsnRecipient::default();
    for parameter in parameters {
        let (keyword, value) = cut(parameter)?;
        match (keyword.as_str(), value) {
            ("NOTIFY", Some(value)) if rcpt.notify.is_none() => rcpt.notify = Some(notify(value)?),
            ("ORCPT", Some(value)) if rcpt.orcpt.is_none() => {
                rcpt.orcpt =
                    Some(orcpt(value).ok_or(CommandError::Parameter("ORCPT is type;address in xtext"))?);
            }
            ("NOTIFY" | "ORCPT", _) => {
                return Err(CommandError::Parameter("NOTIFY and ORCPT take a value, each once"));
            }
            _ => return Err(CommandError::UnknownParameter),
        }
    }
    Ok(rcpt)
}

/// RFC 5321 §4.1.2: esmtp-keyword ["=" esmtp-value]. The keyword comes in upper case.
fn cut(parameter: &str) -> Result<(String, Option<&str>), CommandError> {
    let (keyword, value) = match parameter.split_once('=') {
        Some((keyword, value)) => (keyword, Some(value)),
        None => (parameter, None),
    };
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    let keyword_ok = !keyword.is_empty() && !keyword.starts_with('-') && keyword.bytes().all(word);
    // RFC 6531 §3.4 widens a value to UTF-8; its end and white space are cut off before.
    let value_ok = value.is_none_or(|value| !value.is_empty() && !value.contains('='));
    if keyword_ok && value_ok {
        Ok((keyword.to_ascii_uppercase(), value))
    } else {
        Err(CommandError::Parameter("A parameter is KEYWORD or KEYWORD=value"))
    }
}

/// RFC 1870 §3: up to twenty digits.
fn size(value: &str) -> Result<u64, CommandError> {
    if value.len() > 20 {
        return Err(CommandError::Parameter("SIZE is a number of octets"));
    }
    octets(value).ok_or(CommandError::Parameter("SIZE is a number of octets"))
}

/// A number of octets; one too large for 64 bits is the largest one.
pub(crate) fn octets(digits: &str) -> Option<u64> {
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().unwrap_or(u64::MAX))
}

/// RFC 3461 §4.1: NEVER stands alone.
fn notify(value: &str) -> Result<Notify, CommandError> {
    if value.eq_ignore_ascii_case("NEVER") {
        return Ok(Notify::Never);
    }
    let mut on = Vec::new();
    for word in value.split(',') {
        let occasion = match word.to_ascii_uppercase().as_str() {
            "SUCCESS" => NotifyOn::Success,
            "FAILURE" => NotifyOn::Failure,
            "DELAY" => NotifyOn::Delay,
            _ => {
                return Err(CommandError::Parameter(
                    "NOTIFY is NEVER alone, or of SUCCESS, FAILURE and DELAY",
                ));
            }
        };
        if on.contains(&occasion) {
            return Err(CommandError::Parameter("NOTIFY names an occasion twice"));
        }
        on.push(occasion);
    }
    Ok(Notify::On(on))
}

/// RFC 3461 §4.2: addr-type ";" xtext, decoded.
fn orcpt(value: &str) -> Option<String> {
    let (kind, address) = value.split_once(';')?;
    let atom = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    if value.len() > MAX_ORCPT || kind.is_empty() || address.is_empty() || !kind.bytes().all(atom) {
        return None;
    }
    let address = if kind.eq_ignore_ascii_case("utf-8") { utf8_address(address) } else { xtext(address) }?;
    Some(format!("{};{address}", kind.to_ascii_lowercase()))
}

/// RFC 3461 §4: `+` and two hexadecimal digits for what may not stand as it is. Only printable ASCII may come
/// out (§4.2, §4.4): nothing that could end a line where it is written down again.
fn xtext(value: &str) -> Option<String> {
    let mut out = String::with_capacity(value.len());
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        let decoded = match byte {
            b'+' => (hex_digit(bytes.next()?)? << 4) | hex_digit(bytes.next()?)?,
            b'!'..=b'~' if byte != b'=' => byte,
            _ => return None,
        };
        if !(b' '..=b'~').contains(&decoded) {
            return None;
        }
        out.push(char::from(decoded));
    }
    Some(out)
}

/// In upper case, as RFC 3461 §4 has them.
fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

/// RFC 6533 §3: characters as they are, or `\x{…}` with two to six hexadecimal digits.
fn utf8_address(value: &str) -> Option<String> {
    let mut out = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(at) = rest.find('\\') {
        let (plain, escape) = rest.split_at(at);
        let (digits, after) = escape.strip_prefix("\\x{")?.split_once('}')?;
        let hex = (2..=6).contains(&digits.len()) && digits.bytes().all(|b| hex_digit(b).is_some());
        let decoded = u32::from_str_radix(digits, 16).ok().and_then(char::from_u32);
        out.push_str(plain);
        out.push(decoded.filter(|c| hex && !c.is_control())?);
        rest = after;
    }
    out.push_str(rest);
    (!value.chars().any(char::is_control)).then_some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn xtext_is_undone_and_held_to_printable_ascii() {
        assert_eq!(xtext("QQ314159").as_deref(), Some("QQ314159"));
        assert_eq!(xtext("a+2Bb+3Dc+20d").as_deref(), Some("a+b=c d"));
        for bad in ["a+", "a+2", "a+2b", "a+GG", "a=b", "a b", "a+0D+0A", "a+00", "a+7F", "a+FF", "é"] {
            assert_eq!(xtext(bad), None, "{bad}");
        }
        assert_eq!(orcpt("RFC822;ada+2Bnews@x.example").as_deref(), Some("rfc822;ada+news@x.example"));
        assert_eq!(orcpt("utf-8;\\x{E5}sa@x.example").as_deref(), Some("utf-8;åsa@x.example"));
        assert_eq!(orcpt("utf-8;åsa@x.example").as_deref(), Some("utf-8;åsa@x.example"));
        for bad in [
            "ada@x",
            ";a",
            "rfc822;",
            "r c;a",
            "utf-8;\\x{0A}",
            "utf-8;\\x{D800}",
            "utf-8;\\x{1}",
            "utf-8;\\y",
        ] {
            assert_eq!(orcpt(bad), None, "{bad}");
        }
    }

    proptest! {
        /// What comes out of hostile xtext can be written into one line of a report.
        #[test]
        fn nothing_decoded_can_end_a_line(value in "[!-~+0-9A-F;x{}\\\\é]{0,40}") {
            for decoded in [xtext(&value), orcpt(&format!("utf-8;{value}"))].into_iter().flatten() {
                prop_assert!(!decoded.chars().any(char::is_control));
                prop_assert!(decoded.len() <= 4 * value.len() + 6);
            }
        }
    }
}
