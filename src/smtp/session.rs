//! The session: what has been said so far, and what each verb does to it.
//!
//! - Every verb is a method that returns a `Step`; the conversation (dialogue.rs) carries steps out.
//! - A session knows its connection only as "more octets are waiting"; TLS begins a new session, so that
//!   nothing said in clear text survives it (RFC 3207 §4.2).
//! - One function decides who may be written to: the backend's `route`. There are no trusted networks.
//! - Only the backend's receipt makes the 250 after DATA and after the last BDAT.
//!
//! RFC 5321 §3 and §4.1.4 (order of commands), RFC 2920 (PIPELINING), RFC 3030 (CHUNKING), RFC 3461 (DSN),
//! RFC 6531 (SMTPUTF8), RFC 8689 (REQUIRETLS), RFC 9422 (LIMITS).

use std::fmt::Display;
use std::net::IpAddr;

use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::address::Address;
use crate::config::limits;
use crate::envelope::{Dsn, DsnRecipient, Envelope, Peer, ReversePath};
use crate::smtp::command::{self, Command, CommandError, ForwardPath, Mail};
use crate::smtp::data::ChunkReader;
use crate::smtp::guard::Visit;
use crate::smtp::intake::{Intake, Lost};
use crate::smtp::parameter::MailParameters;
use crate::smtp::reply::Reply;
use crate::smtp::{Backend, House, Routed};
use crate::spool::Octets;

/// What the conversation does next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Say(Reply),
    /// Say it and hang up.
    Close(Reply),
    /// Say 354 and read a message.
    TakeData,
    /// Read so many octets of a message in chunks.
    TakeChunk {
        size: u64,
        last: bool,
    },
    /// Read so many octets, drop them, and say why.
    SkipChunk {
        size: u64,
        reply: Reply,
    },
    /// Say 220 and begin the handshake.
    StartTls,
}

/// Who is calling.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// Short and random; stands in the log and in replies about trouble on our side.
    pub(crate) id: String,
    pub(crate) ip: IpAddr,
}

pub(crate) struct Session<'h, B: Backend> {
    house: &'h House<B>,
    caller: &'h Caller,
    /// How the connection is protected, once it is.
    tls: Option<String>,
    hello: Option<Hello>,
    transaction: Option<Transaction<B::Recipient>>,
    /// Whether anything was SMTP so far: a web browser's first line is not.
    spoke_smtp: bool,
    /// 5xx since the last message.
    errors: u32,
    visit: Visit<'h>,
    /// Commands that lead nowhere since the last message.
    idle: u32,
}

struct Hello {
    name: String,
    extended: bool,
}

struct Transaction<R> {
    from: ReversePath,
    parameters: MailParameters,
    /// In order, each once.
    paths: Vec<Address>,
    /// What was asked with each of them.
    dsn: Vec<DsnRecipient>,
    recipients: Vec<R>,
    /// What BDAT brought so far.
    chunks: Option<Chunks>,
}

/// A message that comes in chunks.
pub(crate) struct Chunks {
    pub(crate) reader: ChunkReader,
    /// By when all of it must be here.
    pub(crate) until: Instant,
}

impl<'h, B: Backend> Session<'h, B> {
    pub(crate) fn new(house: &'h House<B>, caller: &'h Caller, tls: Option<String>) -> Session<'h, B> {
        let visit = Visit::new(&house.guard, caller.ip);
        let (hello, transaction) = (None, None);
        Session { house, caller, tls, hello, transaction, spoke_smtp: false, errors: 0, visit, idle: 0 }
    }

    /// Follows one line. `more` says that the client had sent more before this line was answered.
    pub(crate) async fn follow(&mut self, line: &[u8], more: bool) -> Step {
        let command = match self.read(line) {
            Ok(command) => command,
            Err(step) => return self.count(step),
        };
        self.spoke_smtp = true;
        let step = match command {
            // RFC 2920 §3.1: these end a batch, because what may follow depends on the answer. Whoever does
            // not wait is no mail server, or is being made to carry somebody else's commands.
            Command::Ehlo(_) | Command::Helo(_) | Command::Data if more => unsynchronized(),
            Command::Ehlo(name) => self.hello(name, true),
            Command::Helo(name) => self.hello(name, false),
            Command::Mail(mail) => self.mail(mail),
            // Boxed: most of what a session could ever wait for is in it.
            Command::Rcpt(path, dsn) => Box::pin(self.rcpt(path, dsn)).await,
            Command::Data => self.data(),
            Command::Rset => self.rset(),
            Command::Noop => self.idle(Reply::new(250, "0.0", "OK")),
            Command::Vrfy => self.vrfy(),
            Command::Help => self.help(),
            Command::Quit => Step::Close(Reply::new(221, "0.0", "Goodbye")),
            Command::StartTls => self.starttls(more),
            Command::NotOffered(what) => not_offered(what),
            Command::Bdat { size, last } => self.bdat(size, last),
        };
        self.count(step)
    }

    fn read(&self, line: &[u8]) -> Result<Command, Step> {
        if line.len() + 2 > limits::SMTP_COMMAND_LINE {
            return Err(Step::Say(Reply::new(500, "5.2", "Line too long")));
        }
        command::parse(line).map_err(|error| match error {
            // Not a mail client at all: a browser, a TLS handshake, a scanner. Its further lines are no
            // commands either, and somebody may have written them into a form to have us obey.
            CommandError::Unknown | CommandError::Octets if !self.spoke_smtp => {
                Step::Close(Reply::new(500, "5.1", "This is a mail server, and that was not SMTP"))
            }
            // RFC 3030 §2: its octets follow at once, and read as commands they would be somebody's
            // smuggled mail.
            CommandError::Chunk => Step::Close(error.reply()),
            error => Step::Say(error.reply()),
        })
    }

    /// Counts what a client must not do forever.
    fn count(&mut self, step: Step) -> Step {
        if let Step::Say(reply) | Step::SkipChunk { reply, .. } = &step
            && reply.code() >= 500
        {
            self.error();
        }
        if self.errors >= limits::SMTP_ERRORS {
            return Step::Close(Reply::new(421, "7.0", "Too many errors; come back with mail"));
        }
        if self.idle >= limits::SMTP_IDLE_COMMANDS {
            return Step::Close(Reply::new(421, "7.0", "Too much talk without mail"));
        }
        step
    }

    fn error(&mut self) {
        self.errors += 1;
        self.visit.error();
    }

    /// Keeps a client waiting that makes errors; `false` when it is better to hang up.
    pub(crate) async fn hold_up(&mut self, stop: &CancellationToken) -> bool {
        self.visit.hold_up(self.errors, stop).await
    }

    fn idle(&mut self, reply: Reply) -> Step {
        self.idle += 1;
        Step::Say(reply)
    }

    fn hello(&mut self, name: String, extended: bool) -> Step {
        // RFC 5321 §4.1.4: a second EHLO is also RSET.
        self.transaction = None;
        self.hello = Some(Hello { name, extended });
        let mut reply = Reply::bare(250, &self.house.hostname);
        if extended {
            reply = reply
                .and("PIPELINING")
                .and(format_args!("SIZE {}", self.house.max_message_size))
                .and("8BITMIME")
                .and("SMTPUTF8")
                .and("ENHANCEDSTATUSCODES")
                .and("CHUNKING")
                .and("DSN")
                // RFC 9422 §4: the largest number of recipients of one message.
                .and(format_args!("LIMITS RCPTMAX={}", limits::SMTP_RECIPIENTS));
            // RFC 3207 §4.2: STARTTLS not after TLS has begun. RFC 8689 §2: REQUIRETLS not before.
            reply = reply.and(if self.tls.is_none() { "STARTTLS" } else { "REQUIRETLS" }).and("HELP");
        }
        self.idle(reply)
    }

    fn mail(&mut self, mail: Mail) -> Step {
        if self.hello.is_none() {
            return out_of_order("Say EHLO or HELO first");
        }
        // RFC 5321 §4.1.4: no MAIL inside a transaction.
        if self.transaction.is_some() {
            return out_of_order("A message is under way: RSET ends it");
        }
        // RFC 1870 §6.1
        if mail.parameters.size.is_some_and(|size| size > self.house.max_message_size) {
            return Step::Say(Lost::TooLarge(self.house.max_message_size).reply());
        }
        // RFC 8689 §2: what must not travel in clear text is not taken in clear text.
        if mail.parameters.require_tls && self.tls.is_none() {
            return Step::Say(Reply::new(530, "7.0", "REQUIRETLS needs STARTTLS first"));
        }
        if let Err(reply) = self.visit.mail() {
            return Step::Say(reply);
        }
        self.transaction = Some(Transaction {
            from: mail.from,
            parameters: mail.parameters,
            paths: Vec::new(),
            dsn: Vec::new(),
            recipients: Vec::new(),
            chunks: None,
        });
        Step::Say(Reply::new(250, "1.0", "Sender OK"))
    }

    async fn rcpt(&mut self, path: ForwardPath, dsn: DsnRecipient) -> Step {
        let Some(transaction) = &mut self.transaction else {
            return out_of_order("MAIL comes before RCPT");
        };
        if transaction.chunks.is_some() {
            return out_of_order("The message is under way: RCPT comes before BDAT");
        }
        let address = match path {
            ForwardPath::Mailbox { needs_smtputf8: true, .. } if !transaction.parameters.smtputf8 => {
                return Step::Say(CommandError::NeedsSmtpUtf8.reply());
            }
            ForwardPath::Mailbox { address, .. } => address,
            // RFC 5321 §4.5.1: must be accepted, as if it were of our first domain.
            ForwardPath::Postmaster => match format!("postmaster@{}", self.house.first_domain).parse() {
                Ok(address) => address,
                Err(_) => return Step::Say(CommandError::RecipientAddress.reply()),
            },
        };
        let key = address.key();
        if transaction.paths.iter().any(|path| path.key() == key) {
            return self.idle(recipient_ok());
        }
        // RFC 5321 §4.5.3.1.10: 452, and the client comes again with the rest.
        if transaction.paths.len() >= limits::SMTP_RECIPIENTS {
            return Step::Say(Reply::new(
                452,
                "5.3",
                "Too many recipients for one message: send the rest next",
            ));
        }
        let waiting = match self.visit.wait() {
            Ok(waiting) => waiting,
            Err(reply) => return Step::Say(reply),
        };
        let routed = self.house.backend.route(&address, transaction.parameters.size);
        let routed = timeout(limits::SMTP_ROUTE_TIME, routed).await;
        drop(waiting);
        let reply = match routed {
            Ok(Ok(Routed::Accepted(recipient))) => {
                if !B::is_always_reachable(&recipient)
                    && let Err(reply) = self.visit.recipient(&transaction.from, &address).await
                {
                    // A deferral costs the client nothing: many of them are talk without mail.
                    return if reply.code() < 500 { self.idle(reply) } else { Step::Say(reply) };
                }
                transaction.paths.push(address);
                transaction.dsn.push(dsn);
                transaction.recipients.push(recipient);
                return Step::Say(recipient_ok());
            }
            Ok(Ok(Routed::Unknown)) => {
                if let Some(reply) = self.visit.unwelcome() {
                    return self.idle(reply);
                }
                self.visit.unknown_recipient();
                Reply::new(550, "1.1", "No such address here")
            }
            Ok(Ok(Routed::NotOurs)) => Reply::new(550, "7.1", "Relaying denied: not a domain of ours"),
            // RFC 1870 §6.1: a limit of one recipient is an answer to RCPT.
            Ok(Ok(Routed::TooLarge(limit))) => {
                Reply::new(552, "3.4", format_args!("Larger than the {limit} octets that this inbox takes"))
            }
            Ok(Err(error)) => {
                tracing::error!(%address, error = %error, "recipient cannot be looked up");
                self.trouble()
            }
            Err(_) => {
                tracing::error!(%address, limit_s = limits::SMTP_ROUTE_TIME.as_secs(), "recipient look-up takes too long");
                self.trouble()
            }
        };
        if reply.code() >= 500 {
            tracing::info!(%address, %reply, "recipient refused");
        }
        Step::Say(reply)
    }

    fn data(&mut self) -> Step {
        match &self.transaction {
            None => out_of_order("MAIL and RCPT come before DATA"),
            // RFC 5321 §3.3: 554 when every RCPT was refused.
            Some(transaction) if transaction.recipients.is_empty() => {
                Step::Say(Reply::new(554, "5.1", "No valid recipients"))
            }
            // RFC 3030 §2: DATA and BDAT do not mix.
            Some(transaction) if transaction.chunks.is_some() => {
                out_of_order("This message comes by BDAT: BDAT 0 LAST ends it, RSET drops it")
            }
            Some(_) => Step::TakeData,
        }
    }

    /// RFC 3030 §2. The size is summed and compared before an octet of it is looked at; whatever the answer, the
    /// octets are read as octets, and where they are too many for that, the connection ends.
    fn bdat(&mut self, size: u64, last: bool) -> Step {
        let limit = self.house.max_message_size;
        let refusal = match &mut self.transaction {
            None => Reply::new(503, "5.1", "MAIL and RCPT come before BDAT"),
            Some(transaction) if transaction.recipients.is_empty() => {
                Reply::new(503, "5.1", "No valid recipients")
            }
            Some(transaction) => {
                let before = transaction.chunks.as_mut().map_or(0, |chunks| chunks.reader.intake().length());
                match before.checked_add(size) {
                    Some(sum) if sum <= limit => return Step::TakeChunk { size, last },
                    _ => Lost::TooLarge(limit).reply(),
                }
            }
        };
        // RFC 3030 §2 leaves the state open after an error and asks for RSET; nothing is what RSET leaves too.
        self.transaction = None;
        // As for DATA: draining is a courtesy to clients that count differently.
        if size > limit.saturating_mul(limits::SMTP_DRAINED) {
            Step::Close(refusal)
        } else {
            Step::SkipChunk { size, reply: refusal }
        }
    }

    /// What BDAT brought so far, taken out of the transaction while more is read; new with the first chunk.
    pub(crate) fn chunks(&mut self) -> Chunks {
        let begun = self.transaction.as_mut().and_then(|transaction| transaction.chunks.take());
        begun.unwrap_or_else(|| Chunks {
            reader: ChunkReader::new(Intake::new(self.house.max_message_size, &self.house.room)),
            until: Instant::now() + limits::SMTP_DATA_TIME,
        })
    }

    /// A chunk that is not the last is here.
    pub(crate) fn keep(&mut self, mut chunks: Chunks, size: u64) -> Step {
        if let Some(lost) = chunks.reader.intake().lost() {
            return Step::Say(self.give_up(lost.reply()));
        }
        let reply = Reply::new(250, "0.0", format_args!("{size} octets received"));
        if let Some(transaction) = &mut self.transaction {
            transaction.chunks = Some(chunks);
        }
        // An empty chunk leads nowhere, and many of them nowhere again.
        let step = if size == 0 { self.idle(reply) } else { Step::Say(reply) };
        self.count(step)
    }

    /// The message is here: hand it on. Whatever comes of it, the transaction is over.
    pub(crate) async fn receive(&mut self, raw: Octets) -> Reply {
        let Some((hello, transaction)) = self.hello.as_ref().zip(self.transaction.take()) else {
            return Reply::new(503, "5.1", "No message is under way");
        };
        // RFC 5321 §6.3
        if hops(&raw) > limits::SMTP_HOPS {
            tracing::warn!(from = %path(&transaction.from), "message goes round in circles");
            return Reply::new(554, "4.6", "Too many hops: this message goes round in circles");
        }
        let MailParameters { smtputf8, ret, require_tls, envid, .. } = transaction.parameters;
        let asked = ret.is_some()
            || envid.is_some()
            || transaction.dsn.iter().any(|one| *one != DsnRecipient::default());
        let dsn = asked.then(|| Box::new(Dsn { ret, envid, recipients: transaction.dsn }));
        let envelope = Envelope {
            peer: Peer {
                ip: self.caller.ip,
                helo: hello.name.clone(),
                extended: hello.extended,
                tls: self.tls.clone(),
            },
            mail_from: transaction.from,
            recipients: transaction.paths,
            smtputf8,
            dsn,
            require_tls,
        };
        let (from, size_octets, recipients) =
            (path(&envelope.mail_from), raw.len(), envelope.recipients.len());
        let received = self.house.backend.receive(envelope, transaction.recipients, raw, self.visit.turn());
        // Past this time the client has given up and will send again: a commit that still comes is a
        // duplicate, which the inbox links to its first, and nothing is lost.
        match timeout(limits::SMTP_RECEIVE_TIME, received).await {
            Ok(Ok(receipt)) => {
                tracing::info!(%from, recipients, size_octets, receipt = B::name(&receipt), "message accepted");
                (self.errors, self.idle) = (0, 0);
                self.visit.accepted();
                Reply::accepted::<B>(&receipt)
            }
            Ok(Err(refusal)) => {
                let reply = match refusal.code {
                    // The sender's postmaster will ask ours about it, with the bounce in hand.
                    500.. => Reply::refusal(
                        refusal.code,
                        refusal.enhanced,
                        format_args!("{} ({})", refusal.text, self.caller.id),
                    ),
                    code => Reply::refusal(code, refusal.enhanced, refusal.text),
                };
                tracing::info!(%from, recipients, size_octets, %reply, "message refused");
                if reply.code() >= 500 {
                    self.error();
                }
                reply
            }
            Err(_) => {
                tracing::error!(%from, size_octets, limit_s = limits::SMTP_RECEIVE_TIME.as_secs(), "message takes too long");
                self.trouble()
            }
        }
    }

    /// DATA ended without a message that could be handed on.
    pub(crate) fn give_up(&mut self, reply: Reply) -> Reply {
        self.transaction = None;
        if reply.code() >= 500 {
            self.error();
        }
        tracing::info!(%reply, "message refused");
        reply
    }

    fn rset(&mut self) -> Step {
        self.transaction = None;
        self.idle(Reply::new(250, "0.0", "OK"))
    }

    fn vrfy(&mut self) -> Step {
        // RFC 5321 §3.5.3: 252 neither confirms nor denies, which a server facing strangers should not.
        self.idle(Reply::new(252, "5.0", "Send some mail, and RCPT will tell"))
    }

    fn help(&mut self) -> Step {
        let text = "EHLO HELO MAIL RCPT DATA BDAT RSET NOOP QUIT VRFY STARTTLS: see RFC 5321";
        self.idle(Reply::new(214, "0.0", text))
    }

    fn starttls(&mut self, more: bool) -> Step {
        if self.tls.is_some() {
            return out_of_order("TLS is on already");
        }
        // RFC 3207 §4.2 and CVE-2011-0411: what came in clear text must not be taken for protected.
        if more {
            return unsynchronized();
        }
        Step::StartTls
    }

    /// Something of ours failed. The log has the detail under the same id.
    fn trouble(&self) -> Reply {
        Reply::new(451, "3.0", format_args!("Temporary trouble on our side, try again ({})", self.caller.id))
    }
}

fn unsynchronized() -> Step {
    Step::Close(Reply::new(554, "5.0", "Wait for the answer to this command (RFC 2920 section 3.1)"))
}

fn out_of_order(text: &'static str) -> Step {
    Step::Say(Reply::new(503, "5.1", text))
}

fn not_offered(what: &str) -> Step {
    Step::Say(match what {
        "AUTH" => Reply::new(502, "5.1", "No AUTH on this port: submission is where to log in"),
        what => Reply::new(502, "5.1", format_args!("{what} is not offered here")),
    })
}

fn recipient_ok() -> Reply {
    Reply::new(250, "1.5", "Recipient OK")
}

fn path(path: &ReversePath) -> impl Display + use<> {
    match path {
        Some(address) => format!("<{address}>"),
        None => "<>".to_owned(),
    }
}

/// How many servers a message has passed: the `Received` lines of its header.
fn hops(raw: &[u8]) -> usize {
    let name = b"received:";
    raw.split(|&b| b == b'\n')
        .take_while(|line| !matches!(line, [] | [b'\r']))
        .filter(|line| line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name)))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hops_are_counted_in_the_header_only() {
        let raw =
            b"Received: a\r\n\tReceived: folded\r\nRECEIVED: b\r\nSubject: x\r\n\r\nReceived: quoted\r\n";
        assert_eq!(hops(raw), 2);
        assert_eq!(hops(b""), 0);
    }
}
