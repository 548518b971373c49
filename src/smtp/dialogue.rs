//! The conversation with one client, from the greeting to the farewell: it reads, asks the session what to
//! do, and does it. Everything that waits, waits here, and every wait has its deadline.
//!
//! - Nothing is read before the greeting is due, and who talks first is sent away (RFC 5321 §4.3.1).
//! - STARTTLS begins a new `Wire` and a new `Session`: no octet and no word of the clear text lives on.
//! - After a fault in a message nothing more is read as a command; we say why and hang up.
//! - A stop (SIGTERM) ends a session where it would wait for a command, not inside a message.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::config::limits;
use crate::smtp::data::{ChunkReader, DataReader, Fault, Progress};
use crate::smtp::guard::{Lifetime, Pace};
use crate::smtp::intake::{Intake, Lost, Taken};
use crate::smtp::reply::Reply;
use crate::smtp::session::{Caller, Session, Step};
use crate::smtp::wire::{Wire, WireError};
use crate::smtp::{Backend, Entrance, House};
use crate::tls;

/// How a part of the conversation ended.
enum End {
    /// Said what was to say: only the connection is left to close.
    Closed,
    /// 220 was said; the handshake is next.
    StartTls,
    /// The peer or the network is gone.
    Lost(WireError),
}

/// Talks with one client until one of the two hangs up.
pub(crate) async fn converse<B, S>(house: &House<B>, caller: &Caller, stop: &CancellationToken, stream: S)
where
    B: Backend,
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let life = Lifetime::begin();
    // Boxed, as is all that few sessions come to: those that wait should be small.
    if house.entrance == Entrance::Tls {
        let in_tls = async {
            let Some((mut wire, protection)) = secure(house, stream).await else { return };
            let end = match greet(house, &mut wire).await {
                Ok(()) => talk(house, caller, stop, Some(protection), life, &mut wire).await,
                Err(end) => end,
            };
            farewell(end, wire).await;
        };
        return Box::pin(in_tls).await;
    }
    let mut wire = Wire::new(stream);
    let end = match greet(house, &mut wire).await {
        Ok(()) => talk(house, caller, stop, None, life, &mut wire).await,
        Err(end) => end,
    };
    let End::StartTls = end else { return farewell(end, wire).await };
    let in_tls = async {
        let Some((mut wire, protection)) = secure(house, wire.into_stream()).await else { return };
        let end = talk(house, caller, stop, Some(protection), life, &mut wire).await;
        farewell(end, wire).await;
    };
    Box::pin(in_tls).await;
}

/// The same without the wait before the greeting, which a fuzzer cannot spend, and up to STARTTLS.
#[cfg(fuzzing)]
pub(crate) async fn converse_at_once<B: Backend>(
    house: &House<B>,
    caller: &Caller,
    stream: tokio::io::DuplexStream,
) {
    let mut wire = Wire::new(stream);
    wire.say(&Reply::bare(220, "fuzz"));
    let end = talk(house, caller, &CancellationToken::new(), None, Lifetime::begin(), &mut wire).await;
    farewell(end, wire).await;
}

/// The handshake, and how the connection is protected after it.
async fn secure<B, S>(house: &House<B>, stream: S) -> Option<(Wire<TlsStream<S>>, String)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = TlsAcceptor::from(house.tls.server()).accept(stream);
    match timeout(limits::SMTP_HANDSHAKE_TIME, handshake).await {
        Ok(Ok(stream)) => {
            let protection = tls::describe(stream.get_ref().1);
            return Some((Wire::new(stream), protection));
        }
        Ok(Err(error)) => tracing::info!(%error, "TLS handshake failed"),
        Err(_) => tracing::info!("TLS handshake took too long"),
    }
    None
}

/// Says one thing, if there is anything to say, and hangs up.
pub(crate) async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(stream: S, reply: Option<Reply>) {
    let mut wire = Wire::new(stream);
    if let Some(reply) = reply {
        wire.say(&reply);
        farewell(End::Closed, wire).await;
    }
}

async fn greet<B, S>(house: &House<B>, wire: &mut Wire<S>) -> Result<(), End>
where
    B: Backend,
    S: AsyncRead + AsyncWrite + Unpin,
{
    match timeout(limits::SMTP_GREETING_PAUSE, wire.fill()).await {
        // RFC 5321 §4.3.1: the client waits for the greeting. RFC 5321 §3.1: 554 instead of it.
        Ok(Ok(())) => {
            tracing::info!("client talks before the greeting");
            wire.say(&Reply::new(554, "5.0", "Wait for the greeting"));
            Err(End::Closed)
        }
        Ok(Err(error)) => Err(End::Lost(error)),
        Err(_) => {
            wire.say(&Reply::bare(220, format_args!("{} ESMTP Gatepost", house.hostname)));
            Ok(())
        }
    }
}

async fn talk<B, S>(
    house: &House<B>,
    caller: &Caller,
    stop: &CancellationToken,
    tls: Option<String>,
    life: Lifetime,
    wire: &mut Wire<S>,
) -> End
where
    B: Backend,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut session = Session::new(house, caller, tls);
    loop {
        let line = tokio::select! {
            biased;
            line = timeout(life.for_command(), wire.line()) => line,
            // RFC 5321 §3.8: 421 to any command, and to none, when the service must stop.
            () = stop.cancelled() => return close(wire, &Reply::new(421, "3.2", "Going down, come back soon")),
        };
        let line = match line {
            Ok(Ok(line)) => line,
            Ok(Err(error)) => return bad_line(wire, error),
            Err(_) if life.is_over() => {
                return close(
                    wire,
                    &Reply::new(421, "4.2", "This session has lasted long enough, call again"),
                );
            }
            Err(_) => return close(wire, &Reply::new(421, "4.2", "No command heard for too long")),
        };
        let more = !wire.received().is_empty();
        let step = session.follow(&line, more).await;
        if matches!(&step, Step::Say(reply) if reply.is_negative()) && !session.hold_up(stop).await {
            return close(wire, &Reply::new(421, "7.0", "Too many errors; come back with mail"));
        }
        match step {
            Step::Say(reply) => wire.say(&reply),
            Step::Close(reply) => return close(wire, &reply),
            Step::StartTls => return start_tls(wire).await,
            Step::TakeData => {
                // RFC 5321 §4.1.1.4
                wire.say(&Reply::bare(354, "Go ahead, end with <CRLF>.<CRLF>"));
                match Box::pin(take_message(house, &mut session, wire)).await {
                    Ok(reply) => wire.say(&reply),
                    Err(end) => return end,
                }
            }
            Step::TakeChunk { size, last } => match take_chunk(&mut session, size, last, wire).await {
                Ok(Step::Close(reply)) => return close(wire, &reply),
                Ok(Step::Say(reply)) => wire.say(&reply),
                Ok(_) => {}
                Err(end) => return end,
            },
            Step::SkipChunk { size, reply } => {
                match timeout(limits::SMTP_DATA_TIME, read_chunk(None, size, wire)).await {
                    Ok(Ok(())) => wire.say(&reply),
                    Ok(Err(Broken::Lost(error))) => return End::Lost(error),
                    Ok(Err(_)) | Err(_) => return close(wire, &late()),
                }
            }
        }
    }
}

/// Reads the message and has it received. `Err` when the connection cannot go on.
async fn take_message<B, S>(
    house: &House<B>,
    session: &mut Session<'_, B>,
    wire: &mut Wire<S>,
) -> Result<Reply, End>
where
    B: Backend,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let limit = house.max_message_size;
    let reader = DataReader::new(Intake::new(limit, &house.room));
    let intake = match timeout(limits::SMTP_DATA_TIME, read_data(reader, limit, wire)).await {
        Ok(Ok(intake)) => intake,
        Ok(Err(Broken::Fault(fault))) => {
            let reply = session.give_up(Reply::new(550, "6.0", fault));
            return Err(close(wire, &reply));
        }
        Ok(Err(Broken::Endless)) => {
            let reply = session.give_up(Lost::TooLarge(limit).reply());
            return Err(close(wire, &reply));
        }
        Ok(Err(Broken::Lost(error))) => return Err(End::Lost(error)),
        Ok(Err(Broken::Silent)) | Err(_) => {
            let reply = session.give_up(late());
            return Err(close(wire, &reply));
        }
    };
    Ok(match intake.finish().await {
        // The share of the budgets is held until the message is stored or refused.
        Ok(Taken { octets, held: _held }) => session.receive(octets).await,
        Err(lost) => session.give_up(lost.reply()),
    })
}

/// Why a message has no end that could be waited for.
enum Broken {
    Fault(Fault),
    /// Far over the limit and still coming.
    Endless,
    Silent,
    Lost(WireError),
}

async fn read_data<S>(mut reader: DataReader, limit: u64, wire: &mut Wire<S>) -> Result<Intake, Broken>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // Draining is a courtesy to clients that count differently, not to those that never end.
    let patience = limit.saturating_mul(limits::SMTP_DRAINED);
    let (mut seen, pace) = (0u64, Pace::begin());
    loop {
        match reader.push(wire.received()) {
            Progress::Done { used } => {
                wire.consume(used);
                return Ok(reader.finish());
            }
            Progress::Fault(fault) => return Err(Broken::Fault(fault)),
            Progress::More => {}
        }
        let octets = wire.received().len();
        wire.consume(octets);
        reader.intake().settle().await;
        seen = seen.saturating_add(octets as u64);
        if seen > patience {
            return Err(Broken::Endless);
        }
        match timeout(pace.patience(seen), wire.fill()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Broken::Lost(error)),
            Err(_) => return Err(Broken::Silent),
        }
    }
}

fn late() -> Reply {
    Reply::new(421, "4.2", "The message did not arrive in time")
}

/// Reads a chunk, and has the message received where it is the last. `Err` when the connection cannot go on.
async fn take_chunk<B, S>(
    session: &mut Session<'_, B>,
    size: u64,
    last: bool,
    wire: &mut Wire<S>,
) -> Result<Step, End>
where
    B: Backend,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut chunks = session.chunks();
    match timeout_at(chunks.until, read_chunk(Some(&mut chunks.reader), size, wire)).await {
        Ok(Ok(())) => {}
        Ok(Err(Broken::Lost(error))) => return Err(End::Lost(error)),
        Ok(Err(_)) | Err(_) => {
            let reply = session.give_up(late());
            return Err(close(wire, &reply));
        }
    }
    if !last {
        return Ok(session.keep(chunks, size));
    }
    let intake = match chunks.reader.finish() {
        Ok(intake) => intake,
        Err(fault) => return Ok(Step::Say(session.give_up(Reply::new(550, "6.0", fault)))),
    };
    Ok(Step::Say(match intake.finish().await {
        Ok(Taken { octets, held: _held }) => session.receive(octets).await,
        Err(lost) => session.give_up(lost.reply()),
    }))
}

/// Reads exactly so many octets. Their memory is taken as they come, never as they were announced.
async fn read_chunk<S>(
    mut reader: Option<&mut ChunkReader>,
    size: u64,
    wire: &mut Wire<S>,
) -> Result<(), Broken>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut left, pace) = (size, Pace::begin());
    loop {
        let here = wire.received().len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if let Some(reader) = &mut reader {
            reader.push(wire.received().get(..here).unwrap_or_default());
            reader.intake().settle().await;
        }
        wire.consume(here);
        left -= here as u64;
        if left == 0 {
            return Ok(());
        }
        match timeout(pace.patience(size - left), wire.fill()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Broken::Lost(error)),
            Err(_) => return Err(Broken::Silent),
        }
    }
}

/// RFC 3207 §4: after 220 the next octet is the client's handshake. The session made sure that none of
/// those received already are left; what comes from here on is read by TLS alone.
async fn start_tls<S: AsyncRead + AsyncWrite + Unpin>(wire: &mut Wire<S>) -> End {
    wire.say(&Reply::new(220, "0.0", "Ready to start TLS"));
    match timeout(limits::SMTP_HANDSHAKE_TIME, wire.flush()).await {
        Ok(Ok(())) => End::StartTls,
        Ok(Err(error)) => End::Lost(error),
        Err(_) => End::Lost(WireError::Closed),
    }
}

fn bad_line<S: AsyncRead + AsyncWrite + Unpin>(wire: &mut Wire<S>, error: WireError) -> End {
    let text = match error {
        WireError::Closed | WireError::Io(_) => return End::Lost(error),
        WireError::BareCr | WireError::BareLf => "Lines end with CRLF",
        WireError::TooLong => "Line too long",
    };
    tracing::info!(%error, "connection closed");
    close(wire, &Reply::new(500, "5.2", text))
}

fn close<S: AsyncRead + AsyncWrite + Unpin>(wire: &mut Wire<S>, reply: &Reply) -> End {
    tracing::debug!(%reply, "hanging up");
    wire.say(reply);
    End::Closed
}

async fn farewell<S: AsyncRead + AsyncWrite + Unpin>(end: End, mut wire: Wire<S>) {
    match end {
        End::Lost(error) => tracing::debug!(%error, "connection lost"),
        End::Closed | End::StartTls => {
            let leave = async {
                if wire.finish().await.is_ok() {
                    wire.drain().await;
                }
            };
            // A client that does not take its last reply within the time does not want it.
            let _ = timeout(limits::SMTP_FAREWELL_TIME, leave).await;
        }
    }
}
