//! The grammar of SMTP commands: octets in, a command or the reason why it is none out. Pure: it knows no
//! socket, no clock, no session.
//!
//! Strict where laxness can hurt (control characters, what follows a path, unknown parameters), lenient
//! where real senders are sloppy and nothing is at stake: white space around a path and at the end of a
//! line, paths without angle brackets, source routes (dropped, RFC 5321 §4.1.1.3 and appendix C).
//!
//! RFC 5321 §4.1.1 and §4.1.2, RFC 1870 (SIZE), RFC 6152 (8BITMIME), RFC 6531 (SMTPUTF8), RFC 3207.

use crate::address::Address;
use crate::envelope::ReversePath;
use crate::smtp::reply::Reply;

/// Octets in the name that a client gives itself: a domain, RFC 5321 §4.5.3.1.2.
const MAX_HELLO: usize = 255;

/// A command as the session understands it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    Ehlo(String),
    Helo(String),
    Mail(Mail),
    Rcpt(ForwardPath),
    Data,
    Rset,
    Noop,
    Quit,
    Vrfy,
    Help,
    StartTls,
    /// Known to SMTP and its extensions, not offered here.
    NotOffered(&'static str),
    /// BDAT, which raw octets follow that are no commands: nothing after it may be read as one.
    Bdat,
}

/// MAIL FROM with the parameters that we announce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mail {
    pub(crate) from: ReversePath,
    /// What the client says the message will measure (RFC 1870 §6); a number too large for 64 bits is the
    /// largest one.
    pub(crate) size: Option<u64>,
    pub(crate) smtputf8: bool,
}

/// RCPT TO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ForwardPath {
    /// `<postmaster>` without a domain, in any case: RFC 5321 §4.5.1.
    Postmaster,
    Mailbox {
        address: Address,
        /// Not ASCII as it was sent, so that it needs SMTPUTF8 (RFC 6531 §3.4).
        needs_smtputf8: bool,
    },
}

/// Why a line is not a command that we can follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CommandError {
    #[error("Command not recognized")]
    Unknown,
    #[error("A command is printable text in ASCII or UTF-8")]
    Octets,
    #[error("{0}")]
    Syntax(&'static str),
    #[error("Unknown parameter; supported with MAIL are SIZE, BODY and SMTPUTF8, with RCPT none")]
    UnknownParameter,
    #[error("{0}")]
    Parameter(&'static str),
    #[error("The sender's address is not valid")]
    SenderAddress,
    #[error("The recipient's address is not valid")]
    RecipientAddress,
    #[error("An address that is not ASCII needs SMTPUTF8")]
    NeedsSmtpUtf8,
}

impl CommandError {
    pub(crate) fn reply(self) -> Reply {
        let (code, detail) = match self {
            // RFC 5321 §4.2.2, RFC 5248 §2.4: 5.5.1 invalid command, 5.5.2 syntax, 5.5.4 arguments.
            CommandError::Unknown => (500, "5.1"),
            CommandError::Octets => (500, "5.2"),
            CommandError::Syntax(_) => (501, "5.2"),
            CommandError::UnknownParameter => (555, "5.4"),
            CommandError::Parameter(_) => (501, "5.4"),
            CommandError::SenderAddress => (501, "1.7"),
            CommandError::RecipientAddress => (501, "1.3"),
            // RFC 6531 §3.5
            CommandError::NeedsSmtpUtf8 => (553, "6.7"),
        };
        Reply::new(code, detail, self)
    }
}

/// Reads one line, without its CRLF.
pub(crate) fn parse(line: &[u8]) -> Result<Command, CommandError> {
    let line = std::str::from_utf8(line).map_err(|_| CommandError::Octets)?;
    if line.chars().any(|c| c.is_control() && c != '\t') {
        return Err(CommandError::Octets);
    }
    // RFC 5321 §4.1.1: tolerate white space at the end of a line.
    let line = line.trim_end_matches([' ', '\t']);
    let (verb, rest) = line.split_at(line.find([' ', '\t']).unwrap_or(line.len()));
    let rest = rest.trim_start_matches([' ', '\t']);
    match verb.to_ascii_uppercase().as_str() {
        "EHLO" => hello(rest).map(Command::Ehlo),
        "HELO" => hello(rest).map(Command::Helo),
        "MAIL" => mail(after_word(rest, "FROM:", "Use MAIL FROM:<address>")?).map(Command::Mail),
        "RCPT" => rcpt(after_word(rest, "TO:", "Use RCPT TO:<address>")?).map(Command::Rcpt),
        "DATA" => alone(rest, Command::Data),
        "RSET" => alone(rest, Command::Rset),
        "QUIT" => alone(rest, Command::Quit),
        // RFC 3207 §4: 501 when a parameter is given.
        "STARTTLS" => alone(rest, Command::StartTls),
        // RFC 5321 §4.1.1.9 and §4.1.1.8: the argument of NOOP and of HELP is ignored.
        "NOOP" => Ok(Command::Noop),
        "HELP" => Ok(Command::Help),
        "VRFY" if rest.is_empty() => Err(CommandError::Syntax("Use VRFY address")),
        "VRFY" => Ok(Command::Vrfy),
        "BDAT" => Ok(Command::Bdat),
        "EXPN" => Ok(Command::NotOffered("EXPN")),
        "AUTH" => Ok(Command::NotOffered("AUTH")),
        "ETRN" => Ok(Command::NotOffered("ETRN")),
        "TURN" => Ok(Command::NotOffered("TURN")),
        "SEND" | "SOML" | "SAML" => Ok(Command::NotOffered("Sending to terminals")),
        _ => Err(CommandError::Unknown),
    }
}

fn alone(rest: &str, command: Command) -> Result<Command, CommandError> {
    if rest.is_empty() { Ok(command) } else { Err(CommandError::Parameter("This command takes no argument")) }
}

/// What follows `FROM:` or `TO:`, in any case. Space around the colon is not in the grammar (RFC 5321
/// §3.3) but some clients send it, and it can mean nothing else.
fn after_word<'a>(rest: &'a str, word: &str, usage: &'static str) -> Result<&'a str, CommandError> {
    match rest.get(..word.len()) {
        Some(start) if start.eq_ignore_ascii_case(word) => {
            Ok(rest.get(word.len()..).unwrap_or("").trim_start_matches([' ', '\t']))
        }
        _ => Err(CommandError::Syntax(usage)),
    }
}

/// The name is written into `Received` and into the log: host names and address literals have only these
/// characters (RFC 5321 §4.1.2, §4.1.3; the underscore is common and harmless).
fn hello(rest: &str) -> Result<String, CommandError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
    if rest.is_empty() || rest.len() > MAX_HELLO || !rest.bytes().all(allowed) {
        return Err(CommandError::Parameter("Say EHLO or HELO with your host name or [address]"));
    }
    Ok(rest.to_owned())
}

fn mail(rest: &str) -> Result<Mail, CommandError> {
    let (path, parameters) = split_path(rest).ok_or(CommandError::SenderAddress)?;
    let mut mail = Mail { from: None, size: None, smtputf8: false };
    let mut body = false;
    for parameter in parameters {
        let (keyword, value) = parse_parameter(parameter)?;
        match (keyword.to_ascii_uppercase().as_str(), value) {
            ("SIZE", Some(value)) if mail.size.is_none() => mail.size = Some(parse_size(value)?),
            ("BODY", Some(value)) if !body => {
                // RFC 6152 §2. BINARYMIME needs BDAT (RFC 3030 §3), which is not offered.
                body = ["7BIT", "8BITMIME"].iter().any(|known| known.eq_ignore_ascii_case(value));
                if !body {
                    return Err(CommandError::Parameter("BODY is 7BIT or 8BITMIME"));
                }
            }
            // RFC 6531 §3.4: the parameter has no value.
            ("SMTPUTF8", None) if !mail.smtputf8 => mail.smtputf8 = true,
            ("SIZE" | "BODY" | "SMTPUTF8", _) => {
                return Err(CommandError::Parameter("SIZE and BODY take a value, SMTPUTF8 none, each once"));
            }
            // RFC 5321 §4.1.1.11. AUTH= among them: it belongs to servers that announce AUTH (RFC 4954 §5).
            _ => return Err(CommandError::UnknownParameter),
        }
    }
    if !path.is_empty() {
        if !path.is_ascii() && !mail.smtputf8 {
            return Err(CommandError::NeedsSmtpUtf8);
        }
        mail.from = Some(path.parse().map_err(|_| CommandError::SenderAddress)?);
    }
    Ok(mail)
}

fn rcpt(rest: &str) -> Result<ForwardPath, CommandError> {
    let (path, mut parameters) = split_path(rest).ok_or(CommandError::RecipientAddress)?;
    if let Some(parameter) = parameters.next() {
        parse_parameter(parameter)?;
        return Err(CommandError::UnknownParameter);
    }
    if path.eq_ignore_ascii_case("postmaster") {
        return Ok(ForwardPath::Postmaster);
    }
    let address = path.parse().map_err(|_| CommandError::RecipientAddress)?;
    Ok(ForwardPath::Mailbox { address, needs_smtputf8: !path.is_ascii() })
}

/// Cuts `<path> parameter parameter…`. The path comes without its brackets and its source route.
fn split_path(rest: &str) -> Option<(&str, impl Iterator<Item = &str>)> {
    let (path, parameters) = match rest.strip_prefix('<') {
        Some(inner) => {
            let end = end_of_path(inner)?;
            (inner.get(..end)?, inner.get(end + 1..)?)
        }
        None => rest.split_at(rest.find([' ', '\t']).unwrap_or(rest.len())),
    };
    // Without brackets there is no null path, and `<a@b>SIZE=1` is no path with a parameter.
    if (path.is_empty() && !rest.starts_with('<'))
        || !(parameters.is_empty() || parameters.starts_with([' ', '\t']))
    {
        return None;
    }
    let parameters = parameters.split([' ', '\t']).filter(|parameter| !parameter.is_empty());
    Some((without_route(path)?, parameters))
}

/// Where the closing bracket stands. A quoted local part may hold one that is not it (RFC 5321 §4.1.2).
fn end_of_path(inner: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in inner.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'>' if !quoted => return Some(at),
            b'<' if !quoted => return None,
            _ => {}
        }
    }
    None
}

/// RFC 5321 §4.1.1.3: a source route (`@relay,@relay:user@host`) must be accepted and should be ignored.
fn without_route(path: &str) -> Option<&str> {
    if !path.starts_with('@') {
        return Some(path);
    }
    let (route, path) = path.split_once(':')?;
    let hop = |hop: &str| hop.strip_prefix('@').is_some_and(|host| !host.is_empty() && !host.contains('@'));
    (route.split(',').all(hop) && !path.is_empty()).then_some(path)
}

/// RFC 5321 §4.1.2: esmtp-keyword ["=" esmtp-value].
fn parse_parameter(parameter: &str) -> Result<(&str, Option<&str>), CommandError> {
    let (keyword, value) = match parameter.split_once('=') {
        Some((keyword, value)) => (keyword, Some(value)),
        None => (parameter, None),
    };
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    let keyword_ok = !keyword.is_empty() && !keyword.starts_with('-') && keyword.bytes().all(word);
    // RFC 6531 §3.4 widens a value to UTF-8; its end and white space are cut off before.
    let value_ok = value.is_none_or(|value| !value.is_empty() && !value.contains('='));
    if keyword_ok && value_ok {
        Ok((keyword, value))
    } else {
        Err(CommandError::Parameter("A parameter is KEYWORD or KEYWORD=value"))
    }
}

/// RFC 1870 §3: up to twenty digits.
fn parse_size(value: &str) -> Result<u64, CommandError> {
    if value.len() > 20 || !value.bytes().all(|b| b.is_ascii_digit()) {
        return Err(CommandError::Parameter("SIZE is a number of octets"));
    }
    Ok(value.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mail(from: &str) -> Mail {
        let from = (!from.is_empty()).then(|| from.parse().unwrap());
        Mail { from, size: None, smtputf8: false }
    }

    fn mailbox(address: &str) -> Command {
        let needs_smtputf8 = !address.is_ascii();
        Command::Rcpt(ForwardPath::Mailbox { address: address.parse().unwrap(), needs_smtputf8 })
    }

    #[test]
    fn good_commands() {
        let table: &[(&str, Command)] = &[
            ("EHLO mx.friend.example", Command::Ehlo("mx.friend.example".into())),
            ("ehlo [192.0.2.1]", Command::Ehlo("[192.0.2.1]".into())),
            ("Helo  [IPv6:2001:db8::1] \t", Command::Helo("[IPv6:2001:db8::1]".into())),
            ("MAIL FROM:<>", Command::Mail(mail(""))),
            ("MAIL FROM: <>", Command::Mail(mail(""))),
            ("mail from:<Ann@friend.example>", Command::Mail(mail("Ann@friend.example"))),
            ("MAIL FROM:ann@friend.example", Command::Mail(mail("ann@friend.example"))),
            (
                "MAIL FROM:<@a.example,@b.example:ann@friend.example>",
                Command::Mail(mail("ann@friend.example")),
            ),
            ("MAIL FROM:<\"a>b\"@friend.example>", Command::Mail(mail("\"a>b\"@friend.example"))),
            (
                "MAIL FROM:<a@b.example> SIZE=12",
                Command::Mail(Mail { size: Some(12), ..mail("a@b.example") }),
            ),
            (
                "MAIL FROM:<a@b.example>  size=99999999999999999999 body=8bitmime",
                Command::Mail(Mail { size: Some(u64::MAX), ..mail("a@b.example") }),
            ),
            (
                "MAIL FROM:<åsa@friend.example> BODY=8BITMIME SMTPUTF8",
                Command::Mail(Mail { smtputf8: true, ..mail("åsa@friend.example") }),
            ),
            ("RCPT TO:<ada@agents.example>", mailbox("ada@agents.example")),
            ("RCPT TO: ada+news@agents.example", mailbox("ada+news@agents.example")),
            ("RCPT TO:<åsa@agents.example>", mailbox("åsa@agents.example")),
            ("RCPT TO:<@relay.example:ada@agents.example>", mailbox("ada@agents.example")),
            ("RCPT TO:<PostMaster>", Command::Rcpt(ForwardPath::Postmaster)),
            ("DATA", Command::Data),
            ("data  ", Command::Data),
            ("RSET", Command::Rset),
            ("NOOP", Command::Noop),
            ("NOOP with words", Command::Noop),
            ("QUIT", Command::Quit),
            ("VRFY ada", Command::Vrfy),
            ("HELP MAIL", Command::Help),
            ("STARTTLS", Command::StartTls),
            ("AUTH PLAIN AGFkYQBzZWNyZXQ=", Command::NotOffered("AUTH")),
            ("EXPN list", Command::NotOffered("EXPN")),
            ("BDAT 12 LAST", Command::Bdat),
        ];
        for (line, expected) in table {
            assert_eq!(parse(line.as_bytes()).as_ref(), Ok(expected), "{line}");
        }
    }

    #[test]
    fn bad_commands() {
        let table: &[(&[u8], &str)] = &[
            (b"", "500 5.5.1"),
            (b" EHLO x", "500 5.5.1"),
            (b"GET / HTTP/1.1", "500 5.5.1"),
            (b"\x16\x03\x01\x02\x00", "500 5.5.2"),
            (b"EHLO \xff\xfe", "500 5.5.2"),
            (b"NOOP \0", "500 5.5.2"),
            (b"NOOP \x1b[2J", "500 5.5.2"),
            (b"EHLO", "501 5.5.4"),
            (b"EHLO a b", "501 5.5.4"),
            (b"EHLO (evil)", "501 5.5.4"),
            ("EHLO mün.example".as_bytes(), "501 5.5.4"),
            (b"MAIL", "501 5.5.2"),
            (b"MAIL TO:<a@b.example>", "501 5.5.2"),
            (b"MAIL FROM:", "501 5.1.7"),
            (b"MAIL FROM:<a@b.example", "501 5.1.7"),
            (b"MAIL FROM:<<a@b.example>>", "501 5.1.7"),
            (b"MAIL FROM:<a@b.example>SIZE=1", "501 5.1.7"),
            (b"MAIL FROM:<a b@c.example>", "501 5.1.7"),
            (b"MAIL FROM:<ann>", "501 5.1.7"),
            (b"MAIL FROM:<@a.example>", "501 5.1.7"),
            (b"MAIL FROM:<@a.example:>", "501 5.1.7"),
            (b"MAIL FROM:<a@b.example> SIZE", "501 5.5.4"),
            (b"MAIL FROM:<a@b.example> SIZE=", "501 5.5.4"),
            (b"MAIL FROM:<a@b.example> SIZE=-1", "501 5.5.4"),
            (b"MAIL FROM:<a@b.example> SIZE=1 SIZE=1", "501 5.5.4"),
            (b"MAIL FROM:<a@b.example> SIZE=999999999999999999999", "501 5.5.4"),
            (b"MAIL FROM:<a@b.example> BODY=BINARYMIME", "501 5.5.4"),
            (b"MAIL FROM:<a@b.example> SMTPUTF8=yes", "501 5.5.4"),
            (b"MAIL FROM:<a@b.example> =1", "501 5.5.4"),
            (b"MAIL FROM:<a@b.example> AUTH=<>", "555 5.5.4"),
            (b"MAIL FROM:<a@b.example> RET=HDRS", "555 5.5.4"),
            ("MAIL FROM:<åsa@b.example>".as_bytes(), "553 5.6.7"),
            ("MAIL FROM:<a@mün.example>".as_bytes(), "553 5.6.7"),
            (b"RCPT", "501 5.5.2"),
            (b"RCPT TO:<>", "501 5.1.3"),
            (b"RCPT TO:<ada>", "501 5.1.3"),
            (b"RCPT TO:<ada@agents.example", "501 5.1.3"),
            (b"RCPT TO:<ada@agents..example>", "501 5.1.3"),
            (b"RCPT TO:<ada@agents.example> NOTIFY=NEVER", "555 5.5.4"),
            (b"RCPT TO:<ada@agents.example> \"", "501 5.5.4"),
            (b"DATA now", "501 5.5.4"),
            (b"QUIT now", "501 5.5.4"),
            (b"STARTTLS now", "501 5.5.4"),
            (b"VRFY", "501 5.5.2"),
        ];
        for (line, expected) in table {
            let shown = String::from_utf8_lossy(line);
            let error = parse(line).expect_err(&shown);
            assert!(error.reply().to_string().starts_with(expected), "{shown}: {}", error.reply());
        }
    }

    proptest! {
        #[test]
        fn any_octets_are_answered(line: Vec<u8>) {
            let _ = parse(&line);
        }

        /// Nearer to the grammar than random octets get.
        #[test]
        fn anything_like_mail_is_answered(
            line in "(?i)(MAIL FROM:|RCPT TO:) ?[<@,:\"\\\\>a.é+ =]{0,12}>?( (SIZE|BODY|SMTPUTF8|X)?=?[0-9a\"=]{0,22}){0,3}",
        ) {
            match parse(line.as_bytes()) {
                Ok(Command::Mail(mail)) => {
                    let utf8 = mail.from.is_some_and(|from| from.needs_smtputf8());
                    prop_assert!(!utf8 || mail.smtputf8);
                }
                Ok(Command::Rcpt(_)) | Err(_) => {}
                Ok(other) => prop_assert!(false, "{other:?}"),
            }
        }
    }
}
