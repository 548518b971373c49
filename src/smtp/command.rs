//! The grammar of SMTP commands: octets in, a command or the reason why it is none out. Pure: it knows no
//! socket, no clock, no session.
//!
//! Strict where laxness can hurt (control characters, what follows a path, unknown parameters), lenient
//! where real senders are sloppy and nothing is at stake: white space around a path and at the end of a
//! line, paths without angle brackets, source routes (dropped, RFC 5321 §4.1.1.3 and appendix C).
//!
//! RFC 5321 §4.1.1 and §4.1.2, RFC 3030 (BDAT), RFC 3207 (STARTTLS); parameters are `parameter.rs`.

use crate::address::Address;
use crate::envelope::{DsnRecipient, ReversePath};
use crate::smtp::parameter::{self, MailParameters};
use crate::smtp::reply::Reply;

/// Octets in the name that a client gives itself: a domain, RFC 5321 §4.5.3.1.2.
const MAX_HELLO: usize = 255;

/// A command as the session understands it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    Ehlo(String),
    Helo(String),
    Mail(Mail),
    Rcpt(ForwardPath, DsnRecipient),
    Data,
    Rset,
    Noop,
    Quit,
    Vrfy,
    Help,
    StartTls,
    /// Known to SMTP and its extensions, not offered here.
    NotOffered(&'static str),
    /// BDAT, and so many octets follow that are no commands (RFC 3030 §2).
    Bdat {
        size: u64,
        last: bool,
    },
}

/// MAIL FROM with the parameters that we announce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mail {
    pub(crate) from: ReversePath,
    pub(crate) parameters: MailParameters,
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
    #[error("Unknown parameter; MAIL takes those that EHLO shows, RCPT takes NOTIFY and ORCPT")]
    UnknownParameter,
    #[error("{0}")]
    Parameter(&'static str),
    /// What follows such a BDAT cannot be told from commands.
    #[error("Use BDAT octets [LAST]; I cannot tell where these end")]
    Chunk,
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
            CommandError::Parameter(_) | CommandError::Chunk => (501, "5.4"),
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
        "RCPT" => rcpt(after_word(rest, "TO:", "Use RCPT TO:<address>")?),
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
        "BDAT" => bdat(rest).ok_or(CommandError::Chunk),
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
    let parameters = MailParameters::read(parameters)?;
    if path.is_empty() {
        return Ok(Mail { from: None, parameters });
    }
    if !path.is_ascii() && !parameters.smtputf8 {
        return Err(CommandError::NeedsSmtpUtf8);
    }
    let from = path.parse().map_err(|_| CommandError::SenderAddress)?;
    Ok(Mail { from: Some(from), parameters })
}

fn rcpt(rest: &str) -> Result<Command, CommandError> {
    let (path, parameters) = split_path(rest).ok_or(CommandError::RecipientAddress)?;
    let dsn = parameter::rcpt(parameters)?;
    if path.eq_ignore_ascii_case("postmaster") {
        return Ok(Command::Rcpt(ForwardPath::Postmaster, dsn));
    }
    let address = path.parse().map_err(|_| CommandError::RecipientAddress)?;
    Ok(Command::Rcpt(ForwardPath::Mailbox { address, needs_smtputf8: !path.is_ascii() }, dsn))
}

/// RFC 3030 §2: a size, and LAST or nothing.
fn bdat(rest: &str) -> Option<Command> {
    let mut words = rest.split([' ', '\t']).filter(|word| !word.is_empty());
    let size = parameter::octets(words.next()?)?;
    let last = match words.next() {
        None => false,
        Some(word) if word.eq_ignore_ascii_case("LAST") => true,
        Some(_) => return None,
    };
    words.next().is_none().then_some(Command::Bdat { size, last })
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::envelope::{Notify, NotifyOn, Ret};

    fn mail(from: &str, parameters: MailParameters) -> Command {
        let from = (!from.is_empty()).then(|| from.parse().unwrap());
        Command::Mail(Mail { from, parameters })
    }

    fn none() -> MailParameters {
        MailParameters::default()
    }

    fn rcpt(address: &str, dsn: DsnRecipient) -> Command {
        let needs_smtputf8 = !address.is_ascii();
        Command::Rcpt(ForwardPath::Mailbox { address: address.parse().unwrap(), needs_smtputf8 }, dsn)
    }

    fn mailbox(address: &str) -> Command {
        rcpt(address, DsnRecipient::default())
    }

    fn notify(on: &[NotifyOn]) -> DsnRecipient {
        DsnRecipient { notify: Some(Notify::On(on.to_vec())), orcpt: None }
    }

    #[test]
    fn good_commands() {
        let table: &[(&str, Command)] = &[
            ("EHLO mx.friend.example", Command::Ehlo("mx.friend.example".into())),
            ("ehlo [192.0.2.1]", Command::Ehlo("[192.0.2.1]".into())),
            ("Helo  [IPv6:2001:db8::1] \t", Command::Helo("[IPv6:2001:db8::1]".into())),
            ("MAIL FROM:<>", mail("", none())),
            ("MAIL FROM: <>", mail("", none())),
            ("mail from:<Ann@friend.example>", mail("Ann@friend.example", none())),
            ("MAIL FROM:ann@friend.example", mail("ann@friend.example", none())),
            ("MAIL FROM:<@a.example,@b.example:ann@friend.example>", mail("ann@friend.example", none())),
            ("MAIL FROM:<\"a>b\"@friend.example>", mail("\"a>b\"@friend.example", none())),
            (
                "MAIL FROM:<a@b.example> SIZE=12",
                mail("a@b.example", MailParameters { size: Some(12), ..none() }),
            ),
            (
                "MAIL FROM:<a@b.example>  size=99999999999999999999 body=8bitmime",
                mail("a@b.example", MailParameters { size: Some(u64::MAX), ..none() }),
            ),
            (
                "MAIL FROM:<åsa@friend.example> BODY=8BITMIME SMTPUTF8",
                mail("åsa@friend.example", MailParameters { smtputf8: true, ..none() }),
            ),
            (
                "MAIL FROM:<a@b.example> RET=hdrs ENVID=QQ+2B1 REQUIRETLS",
                mail(
                    "a@b.example",
                    MailParameters {
                        ret: Some(Ret::Hdrs),
                        envid: Some("QQ+1".into()),
                        require_tls: true,
                        ..none()
                    },
                ),
            ),
            ("RCPT TO:<ada@agents.example>", mailbox("ada@agents.example")),
            ("RCPT TO: ada+news@agents.example", mailbox("ada+news@agents.example")),
            ("RCPT TO:<åsa@agents.example>", mailbox("åsa@agents.example")),
            ("RCPT TO:<@relay.example:ada@agents.example>", mailbox("ada@agents.example")),
            ("RCPT TO:<PostMaster>", Command::Rcpt(ForwardPath::Postmaster, DsnRecipient::default())),
            (
                "RCPT TO:<ada@agents.example> NOTIFY=success,DELAY",
                rcpt("ada@agents.example", notify(&[NotifyOn::Success, NotifyOn::Delay])),
            ),
            (
                "RCPT TO:<ada@agents.example> notify=never orcpt=rfc822;Bob+2Bx@b.example",
                rcpt(
                    "ada@agents.example",
                    DsnRecipient {
                        notify: Some(Notify::Never),
                        orcpt: Some("rfc822;Bob+x@b.example".into()),
                    },
                ),
            ),
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
            ("BDAT 12 LAST", Command::Bdat { size: 12, last: true }),
            ("bdat  0 last ", Command::Bdat { size: 0, last: true }),
            ("BDAT 99999999999999999999999", Command::Bdat { size: u64::MAX, last: false }),
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
            (b"MAIL FROM:<a@b.example> RET=ALL", "501 5.5.4"),
            (b"MAIL FROM:<a@b.example> RET=FULL RET=HDRS", "501 5.5.4"),
            (b"MAIL FROM:<a@b.example> ENVID", "501 5.5.4"),
            (b"MAIL FROM:<a@b.example> ENVID=a+0D+0Ab", "501 5.5.4"),
            (b"MAIL FROM:<a@b.example> REQUIRETLS=yes", "501 5.5.4"),
            (b"MAIL FROM:<a@b.example> NOTIFY=NEVER", "555 5.5.4"),
            ("MAIL FROM:<åsa@b.example>".as_bytes(), "553 5.6.7"),
            ("MAIL FROM:<a@mün.example>".as_bytes(), "553 5.6.7"),
            (b"RCPT", "501 5.5.2"),
            (b"RCPT TO:<>", "501 5.1.3"),
            (b"RCPT TO:<ada>", "501 5.1.3"),
            (b"RCPT TO:<ada@agents.example", "501 5.1.3"),
            (b"RCPT TO:<ada@agents..example>", "501 5.1.3"),
            (b"RCPT TO:<ada@agents.example> NOTIFY=NEVER,SUCCESS", "501 5.5.4"),
            (b"RCPT TO:<ada@agents.example> NOTIFY=SUCCESS,SUCCESS", "501 5.5.4"),
            (b"RCPT TO:<ada@agents.example> NOTIFY=", "501 5.5.4"),
            (b"RCPT TO:<ada@agents.example> NOTIFY=ALWAYS", "501 5.5.4"),
            (b"RCPT TO:<ada@agents.example> NOTIFY=NEVER NOTIFY=DELAY", "501 5.5.4"),
            (b"RCPT TO:<ada@agents.example> ORCPT=bob@b.example", "501 5.5.4"),
            (b"RCPT TO:<ada@agents.example> SIZE=1", "555 5.5.4"),
            (b"BDAT", "501 5.5.4"),
            (b"BDAT -1", "501 5.5.4"),
            (b"BDAT 0x10 LAST", "501 5.5.4"),
            (b"BDAT 10 FIRST", "501 5.5.4"),
            (b"BDAT 10 LAST LAST", "501 5.5.4"),
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
            line in "(?i)(MAIL FROM:|RCPT TO:) ?[<@,:\"\\\\>a.é+ =]{0,12}>?( (SIZE|BODY|SMTPUTF8|RET|ENVID|NOTIFY|ORCPT|X)?=?[0-9a\"=+;]{0,22}){0,3}",
        ) {
            match parse(line.as_bytes()) {
                Ok(Command::Mail(mail)) => {
                    let utf8 = mail.from.is_some_and(|from| from.needs_smtputf8());
                    prop_assert!(!utf8 || mail.parameters.smtputf8);
                }
                Ok(Command::Rcpt(..)) | Err(_) => {}
                Ok(other) => prop_assert!(false, "{other:?}"),
            }
        }
    }
}
