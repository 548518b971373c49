//! The queue against a remote on a socket, from a released row to what the remote heard and the log says.

use std::path::Path;
use std::sync::Mutex;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::clock::Clock;
use crate::config::Config;
use crate::deliver::compose::{Composition, compose};
use crate::deliver::dkim;
use crate::dns::Resolver;
use crate::secrets::Secrets;
use crate::spool::Spool;
use crate::store::body::{self, BodyStore};
use crate::store::delivery::{NewDelivery, Priority, TlsDemand};
use crate::store::event;
use crate::store::inbox::{self, DEFAULT_POD, InboxStatus, NewInbox};
use crate::store::suppression;
use crate::store::{Store, spent};
use crate::tls::Tls;

/// What the remote heard: the envelope and the message of each transaction.
#[derive(Default)]
struct Heard {
    connections: usize,
    mails: Vec<(String, Vec<String>, String)>,
}

/// What is odd about a remote.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Habit {
    None,
    /// Offers STARTTLS and answers the handshake with nonsense.
    BreaksTls,
    /// Closes after each message, without a word.
    Leaves,
}

/// A remote that answers `RCPT` by the local part: `c550.x` gives 550, `full.x` 452, `hang.x` nothing.
struct Remote {
    port: u16,
    heard: Arc<Mutex<Heard>>,
}

impl Remote {
    async fn start() -> Remote {
        Remote::with(Habit::None).await
    }

    async fn with(habit: Habit) -> Remote {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard: Arc<Mutex<Heard>> = Arc::default();
        let shared = heard.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                shared.lock().unwrap().connections += 1;
                tokio::spawn(serve(stream, shared.clone(), habit));
            }
        });
        Remote { port, heard }
    }

    fn mails(&self) -> Vec<(String, Vec<String>, String)> {
        self.heard.lock().unwrap().mails.clone()
    }
}

async fn serve(stream: TcpStream, heard: Arc<Mutex<Heard>>, habit: Habit) -> Option<()> {
    let mut stream = BufReader::new(stream);
    let (mut from, mut to) = (String::new(), Vec::new());
    stream.write_all(b"220 mx.remote.example\r\n").await.ok()?;
    let mut line = String::new();
    while stream.read_line(&mut line).await.ok()? > 0 {
        let verb = line.get(..4).unwrap_or_default().to_ascii_uppercase();
        let argument = line.trim_end().to_owned();
        line.clear();
        let answer = match verb.as_str() {
            "EHLO" if habit == Habit::BreaksTls => "250-mx\r\n250 STARTTLS".to_owned(),
            "STAR" => "220 go\r\nwhat is a ClientHello?".to_owned(),
            "EHLO" => "250-mx\r\n250 PIPELINING".to_owned(),
            "MAIL" => {
                (from, to) = (argument, Vec::new());
                "250 2.1.0 ok".to_owned()
            }
            "RCPT" if argument.contains("<c550.") => "550 5.1.1 no such user".to_owned(),
            "RCPT" if argument.contains("<full.") => "452 4.2.2 full".to_owned(),
            "RCPT" if argument.contains("<hang.") => std::future::pending().await,
            "RCPT" => {
                to.push(argument);
                "250 2.1.5 ok".to_owned()
            }
            "DATA" if to.is_empty() => "554 5.5.1 no valid recipients".to_owned(),
            "DATA" => {
                stream.write_all(b"354 go\r\n").await.ok()?;
                let mut message = String::new();
                while !message.ends_with("\r\n.\r\n") {
                    stream.read_line(&mut message).await.ok()?;
                }
                heard.lock().unwrap().mails.push((from.clone(), to.clone(), message));
                if habit == Habit::Leaves {
                    return stream.write_all(b"250 2.0.0 taken\r\n").await.ok();
                }
                "250 2.0.0 taken".to_owned()
            }
            "QUIT" => return None,
            _ => "250 ok".to_owned(),
        };
        stream.write_all(format!("{answer}\r\n").as_bytes()).await.ok()?;
    }
    Some(())
}

async fn floor(folder: &Path, port: u16) -> Arc<Floor> {
    crate::tls::install_provider();
    let text = format!(
        "hostname = \"mx.agents.example\"\ndomains = [\"agents.example\"]\ndata_dir = \"{}\"\n\
         [smtp]\nlisten = \"127.0.0.1:0\"\n[dns]\nservers = [\"127.0.0.1:1\"]\n\
         [relay]\nport = {port}\nallow_private_addresses = true\nretry = [\"100ms\"]\nexpire = \"1h\"\n",
        folder.display()
    );
    let config = Config::parse(&folder.join("gatepost.toml"), &text, std::iter::empty()).unwrap();
    let store = Store::open(&config.database.url, Clock::system()).await.unwrap();
    let secrets = Secrets::open_or_create(&folder.join("master.key")).unwrap();
    dkim::make_missing(&store, &secrets, &config.domains).await.unwrap();
    let spool = Spool::open(&folder.join("spool")).unwrap();
    Arc::new(Floor {
        clock: Clock::system(),
        dns: Resolver::new(&config.dns.servers).unwrap(),
        bodies: BodyStore::open(&config.storage.url, spool.clone()).unwrap(),
        spool,
        tls: Tls::open(&config.hostname, &config.data_dir, config.tls.files.as_ref()).unwrap(),
        disk: crate::disk::Disk::watch(&config, &Clock::system()),
        domains: crate::ours::Domains::new(&config.domains),
        tally: Default::default(),
        budgets_set: Default::default(),
        config: Arc::new(config),
        store,
        secrets,
        dev: false,
    })
}

async fn ada(floor: &Floor) -> InboxKey {
    let made: Result<_, StoreError> = floor
        .store
        .write(|tx| {
            Box::pin(async move {
                let new = NewInbox {
                    pod: DEFAULT_POD,
                    address: "ada@agents.example".into(),
                    domain: "agents.example".into(),
                    display_name: None,
                    client_id: None,
                    status: InboxStatus::Active,
                    operator: false,
                    metadata: None,
                };
                inbox::create(tx, &new).await
            })
        })
        .await;
    made.unwrap().key
}

/// Releases a message with these recipients, as the gate does; its number.
async fn release(floor: &Floor, inbox: InboxKey, route: Route, recipients: &[&str]) -> i64 {
    let raw = compose(&Composition {
        from: (None, "ada@agents.example".parse().unwrap()),
        to: recipients.iter().map(|r| (None, r.parse().unwrap())).collect(),
        cc: vec![],
        reply_to: vec![],
        subject: "the invoice".into(),
        text: Some("It is paid.".into()),
        html: None,
        attachments: vec![],
        headers: vec![],
        message_id: "<1.sent@agents.example>".into(),
        date: floor.clock.now(),
        in_reply_to: None,
        references: vec![],
        auto_submitted: None,
    });
    let body = floor.bodies.prepare(inbox.pod, &raw).await.unwrap();
    let recipients: Vec<String> = recipients.iter().map(|r| (*r).to_owned()).collect();
    let released: Result<i64, StoreError> = floor
        .store
        .write(move |tx| {
            let (body, recipients) = (body.clone(), recipients.clone());
            Box::pin(async move {
                let count = recipients.len() as i64 + 1;
                let first = inbox::reserve(tx, inbox, count).await?.unwrap().first;
                body::insert(tx, inbox, first, &body).await?;
                for (i, recipient) in recipients.iter().enumerate() {
                    let new = NewDelivery {
                        inbox,
                        delivery_key: first + 1 + i as i64,
                        message_key: first,
                        recipient: recipient.clone(),
                        domain: recipient.rsplit_once('@').unwrap().1.to_owned(),
                        route,
                        tls: TlsDemand::Usual,
                        expires_at: tx.now() + 3_600_000,
                        priority: Priority::Ordinary,
                        not_before: None,
                        notice_at: None,
                        held_by: None,
                    };
                    delivery::insert(tx, &new).await?;
                }
                Ok(first)
            })
        })
        .await;
    released.unwrap()
}

/// Looks until the rows are as wanted; what they are.
async fn until(floor: &Floor, inbox: InboxKey, message: i64, wanted: &str) -> Vec<Delivery> {
    let mut rows = Vec::new();
    for _ in 0..200 {
        let read: Result<Vec<Delivery>, StoreError> =
            floor.store.read(move |tx| Box::pin(delivery::of_message(tx, inbox, message))).await;
        rows = read.unwrap();
        if rows.iter().all(|row| row.state == wanted) {
            return rows;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("not {wanted} after five seconds: {rows:#?}");
}

async fn event_types(floor: &Floor) -> Vec<String> {
    let read: Result<Vec<event::Event>, StoreError> = floor
        .store
        .read(|tx| Box::pin(event::after(tx, crate::principal::Scope::Organization, 0, &[], 100)))
        .await;
    read.unwrap().into_iter().map(|e| e.event_type).collect()
}

struct Running {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    fn start(floor: &Arc<Floor>) -> Running {
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(floor.clone(), stop.clone()));
        Running { stop, task }
    }

    async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(5), self.task).await.expect("stops").unwrap();
    }
}

#[tokio::test]
async fn one_message_to_three_people_at_one_host_is_one_signed_transaction() {
    let folder = tempfile::tempdir().unwrap();
    let remote = Remote::start().await;
    let floor = floor(folder.path(), remote.port).await;
    let inbox = ada(&floor).await;
    let queue = Running::start(&floor);
    let to = ["bob@[127.0.0.1]", "c550.eve@[127.0.0.1]", "carol@[127.0.0.1]"];
    let message = release(&floor, inbox, Route::Relay, &to[..1]).await;
    until(&floor, inbox, message, "delivered").await;
    let message = release(&floor, inbox, Route::Relay, &to).await;
    for _ in 0..100 {
        if event_types(&floor).await.iter().filter(|t| *t == "message.bounced").count() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    let read: Result<Vec<Delivery>, StoreError> =
        floor.store.read(move |tx| Box::pin(delivery::of_message(tx, inbox, message))).await;
    let states: Vec<String> = read.unwrap().into_iter().map(|row| row.state).collect();
    assert_eq!(states, ["delivered", "failed", "delivered"]);

    let mails = remote.mails();
    assert_eq!(mails.len(), 2);
    assert_eq!(remote.heard.lock().unwrap().connections, 1, "the connection is used again");
    let (from, recipients, text) = &mails[1];
    assert!(from.starts_with("MAIL FROM:<b-") && from.contains("@agents.example>"), "{from}");
    assert_eq!(recipients, &["RCPT TO:<bob@[127.0.0.1]>", "RCPT TO:<carol@[127.0.0.1]>"]);
    assert_eq!(text.matches("DKIM-Signature: ").count(), 2, "{text}");

    // Who is not there is told to the agent, in its inbox, and not written to again.
    let suppressed: Result<_, StoreError> = floor
        .store
        .read(|tx| Box::pin(async move { suppression::page(tx, DEFAULT_POD, "", 10).await }))
        .await;
    let suppressed: Vec<suppression::Suppression> = suppressed.unwrap();
    assert_eq!(suppressed.len(), 1);
    assert_eq!(
        (suppressed[0].address.as_str(), suppressed[0].reason.as_str()),
        ("c550.eve@[127.0.0.1]", "bounce")
    );
    let types = event_types(&floor).await;
    assert_eq!(types.iter().filter(|t| *t == "message.delivered").count(), 3, "{types:?}");
    assert_eq!(types.iter().filter(|t| *t == "message.received").count(), 1, "the bounce: {types:?}");
    queue.stop().await;
}

#[tokio::test]
async fn tls_that_breaks_and_connections_that_are_gone_cost_no_mail() {
    for habit in [Habit::BreaksTls, Habit::Leaves] {
        let folder = tempfile::tempdir().unwrap();
        let remote = Remote::with(habit).await;
        let floor = floor(folder.path(), remote.port).await;
        let inbox = ada(&floor).await;
        let queue = Running::start(&floor);
        for _ in 0..3 {
            let message = release(&floor, inbox, Route::Relay, &["bob@[127.0.0.1]"]).await;
            let rows = until(&floor, inbox, message, "delivered").await;
            assert_eq!(rows[0].attempts, 1, "at the first attempt");
        }
        assert_eq!(remote.mails().len(), 3);
        queue.stop().await;
    }
}

#[tokio::test]
async fn what_is_deferred_is_tried_again_on_schedule() {
    let folder = tempfile::tempdir().unwrap();
    let remote = Remote::start().await;
    let floor = floor(folder.path(), remote.port).await;
    let inbox = ada(&floor).await;
    let queue = Running::start(&floor);
    let message = release(&floor, inbox, Route::Relay, &["full.mailbox@[127.0.0.1]"]).await;
    for _ in 0..200 {
        let rows: Result<Vec<Delivery>, StoreError> =
            floor.store.read(move |tx| Box::pin(delivery::of_message(tx, inbox, message))).await;
        if rows.unwrap()[0].attempts >= 3 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    let rows = until(&floor, inbox, message, "deferred").await;
    assert!(rows[0].attempts >= 3 && !rows[0].maybe_duplicate, "{rows:?}");
    assert_eq!(rows[0].last_status.as_deref(), Some("4.2.2"));
    assert!(event_types(&floor).await.iter().filter(|t| *t == "delivery.deferred").count() >= 2);
    queue.stop().await;
}

/// A process that died between the dial and its commit: the row is tried again, and says so.
#[tokio::test]
async fn what_a_dead_process_left_is_sent_again_and_marked() {
    let folder = tempfile::tempdir().unwrap();
    let remote = Remote::start().await;
    let floor = floor(folder.path(), remote.port).await;
    let inbox = ada(&floor).await;
    let message = release(&floor, inbox, Route::Relay, &["bob@[127.0.0.1]"]).await;
    let claimed: Result<delivery::Claimed, StoreError> = floor
        .store
        .write(|tx| {
            Box::pin(async move { delivery::claim(tx, "the dead one", 10, "[]", &Turn::default()).await })
        })
        .await;
    let dead = claimed.unwrap().rows;
    assert_eq!(dead.len(), 1);
    let queue = Running::start(&floor);
    let rows = until(&floor, inbox, message, "delivered").await;
    assert_eq!((rows[0].attempts, rows[0].maybe_duplicate), (2, true));
    // And when it was only thought dead, its result comes too late.
    let late = delivery::Settled {
        state: "failed",
        status: None,
        reply: None,
        next_attempt_at: None,
        maybe_duplicate: false,
        told_late: false,
    };
    let written: Result<bool, StoreError> = floor
        .store
        .write(move |tx| {
            let (row, late) = (dead[0].clone(), late.clone());
            Box::pin(
                async move { Ok(!delivery::settle(tx, "the dead one", &[(&row, &late)]).await?.is_empty()) },
            )
        })
        .await;
    assert!(!written.unwrap());
    queue.stop().await;
}

#[tokio::test]
async fn stopping_gives_back_what_was_not_tried() {
    let folder = tempfile::tempdir().unwrap();
    let remote = Remote::start().await;
    let floor = floor(folder.path(), remote.port).await;
    let inbox = ada(&floor).await;
    let mut messages = Vec::new();
    for _ in 0..30 {
        messages.push(release(&floor, inbox, Route::Relay, &["hang.on@[127.0.0.1]"]).await);
    }
    let queue = Running::start(&floor);
    tokio::time::sleep(Duration::from_millis(500)).await;
    queue.stop.cancel();
    // Those in the middle of a transaction are cut off by the server after its grace; the others are due again.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut states = HashMap::new();
    for message in messages {
        let rows: Result<Vec<Delivery>, StoreError> =
            floor.store.read(move |tx| Box::pin(delivery::of_message(tx, inbox, message))).await;
        let row = rows.unwrap().remove(0);
        *states.entry((row.state, row.attempts)).or_insert(0) += 1;
    }
    queue.task.abort();
    // Those for which the site had no room yet have a time before which they are not asked for again.
    let waiting = |state: &str| states.get(&(state.to_owned(), 0)).copied().unwrap_or(0);
    assert_eq!(waiting("due") + waiting("deferred"), 29, "{states:?}");
    assert_eq!(states.get(&("attempting".to_owned(), 1)), Some(&1), "{states:?}");
}

#[tokio::test]
async fn captured_mail_is_a_file_and_the_simulator_behaves_badly() {
    let folder = tempfile::tempdir().unwrap();
    let floor = floor(folder.path(), 1).await;
    let inbox = ada(&floor).await;
    let queue = Running::start(&floor);
    let captured =
        release(&floor, inbox, Route::Capture, &["bob@remote.example", "complain@simulator.test"]).await;
    let bounced = release(&floor, inbox, Route::Capture, &["bounce@simulator.test"]).await;
    let deferred = release(&floor, inbox, Route::Capture, &["defer@simulator.test"]).await;
    until(&floor, inbox, captured, "delivered").await;
    until(&floor, inbox, bounced, "failed").await;
    until(&floor, inbox, deferred, "deferred").await;
    let mails = crate::deliver::capture::list(&floor).await.unwrap();
    assert_eq!(mails.len(), 2);
    let bob = mails.iter().find(|m| m.recipient == "bob@remote.example").unwrap();
    assert_eq!((bob.subject.as_str(), bob.message_id.as_str()), ("the invoice", "<1.sent@agents.example>"));
    let types = event_types(&floor).await;
    for wanted in ["message.delivered", "message.bounced", "message.complained", "delivery.deferred"] {
        assert!(types.iter().any(|t| t == wanted), "no {wanted} in {types:?}");
    }
    queue.stop().await;
}

/// An agent with a campaign of 3,000 messages to 30 domains made another agent's one answer wait for all of it; and
/// a person's own release waited behind both.
#[tokio::test]
async fn a_busy_agent_delays_no_other_and_a_persons_answer_goes_first() {
    let folder = tempfile::tempdir().unwrap();
    let floor = floor(folder.path(), 1).await;
    let row = |inbox: i64, key: i64, domain: String, priority| NewDelivery {
        inbox: InboxKey { pod: 1, inbox },
        delivery_key: key,
        message_key: key,
        recipient: format!("bob@{domain}"),
        domain,
        route: Route::Relay,
        tls: TlsDemand::Usual,
        expires_at: i64::MAX,
        priority,
        not_before: None,
        notice_at: None,
        held_by: None,
    };
    let mut rows: Vec<NewDelivery> =
        (0..3_000).map(|n| row(50, n + 1, format!("{}.example", n % 30), Priority::Ordinary)).collect();
    rows.push(row(60, 1, "0.example".to_owned(), Priority::Ordinary));
    rows.push(row(70, 1, "0.example".to_owned(), Priority::Bulk));
    rows.push(row(50, 9_000, "0.example".to_owned(), Priority::Approved));
    let rows = Arc::new(rows);
    let inserted: Result<(), StoreError> = floor
        .store
        .write(move |tx| {
            let rows = rows.clone();
            Box::pin(async move {
                for row in rows.iter() {
                    delivery::insert(tx, row).await?;
                }
                Ok(())
            })
        })
        .await;
    inserted.unwrap();
    let take = async |busy: &'static str, turn: Turn| {
        let claimed: Result<delivery::Claimed, StoreError> = floor
            .store
            .write(move |tx| {
                let turn = turn.clone();
                Box::pin(async move { delivery::claim(tx, "a node", 128, busy, &turn).await })
            })
            .await;
        claimed.unwrap()
    };
    let first = take("[]", Turn::default()).await;
    let has = |claimed: &delivery::Claimed, inbox| claimed.rows.iter().any(|row| row.inbox.inbox == inbox);
    assert_eq!(first.rows[0].delivery_key, 9_000);
    let second = take("[]", first.turn.clone()).await;
    assert!(has(&first, 70), "bulk has its share");
    assert!(has(&first, 60) || has(&second, 60), "the answer waits for one round at most");
    assert!(first.more && second.more && first.rows.len() > 30, "{}", first.rows.len());
    // What waits for a busy destination is stepped over, whole.
    let busy = r#"["0.example","1.example"]"#;
    let third = take(busy, second.turn.clone()).await;
    assert!(!third.rows.is_empty());
    assert!(third.rows.iter().all(|row| row.domain != "0.example" && row.domain != "1.example"));
    // All of it is taken in the end, each row once.
    let mut taken: HashSet<(i64, i64)> = HashSet::new();
    let mut last = third.turn.clone();
    for claimed in [&first, &second, &third] {
        taken.extend(claimed.rows.iter().map(|row| (row.inbox.inbox, row.delivery_key)));
    }
    for _ in 0..200 {
        let claimed = take("[]", last).await;
        if claimed.rows.is_empty() {
            break;
        }
        for row in &claimed.rows {
            assert!(taken.insert((row.inbox.inbox, row.delivery_key)), "{row:?} twice");
        }
        last = claimed.turn;
    }
    assert_eq!(taken.len(), 3_003);
}

/// What one agent has for one destination is skipped as a whole: SQLite walked over every row of it.
#[tokio::test]
async fn a_claim_costs_the_same_with_three_rows_for_a_destination_and_with_three_thousand() {
    let mut costs = Vec::new();
    for count in [3, 3_000] {
        let folder = tempfile::tempdir().unwrap();
        let floor = floor(folder.path(), 1).await;
        let steps: Result<u64, StoreError> = floor
            .store
            .write(move |tx| {
                Box::pin(async move {
                    for key in 1..=count + 1 {
                        let domain = if key > count { "b.example" } else { "a.example" };
                        let row = NewDelivery {
                            inbox: InboxKey { pod: 1, inbox: 50 },
                            delivery_key: key,
                            message_key: key,
                            recipient: format!("bob@{domain}"),
                            domain: domain.to_owned(),
                            route: Route::Relay,
                            tls: TlsDemand::Usual,
                            expires_at: i64::MAX,
                            priority: Priority::Ordinary,
                            not_before: None,
                            notice_at: None,
                            held_by: None,
                        };
                        delivery::insert(tx, &row).await?;
                    }
                    spent::take();
                    let claimed = delivery::claim(tx, "a node", 4, "[]", &Turn::default()).await?;
                    assert_eq!(claimed.rows.len(), 3, "two of the one, and what there is of the other");
                    Ok(spent::take().steps)
                })
            })
            .await;
        costs.push(steps.unwrap());
    }
    assert!(costs[1] < costs[0] * 2, "{costs:?}");
}

/// A rule holds what was queued before it; without it everything leaves; each attempt is on record.
#[tokio::test]
async fn a_hold_rule_binds_what_is_queued_and_lets_it_go() {
    let folder = tempfile::tempdir().unwrap();
    let remote = Remote::start().await;
    let floor = floor(folder.path(), remote.port).await;
    let inbox = ada(&floor).await;
    let rule: Result<Option<hold_rule::HoldRule>, StoreError> = floor
        .store
        .write(move |tx| Box::pin(hold_rule::add(tx, Some(inbox), None, Some("wrong prices"), "key:x")))
        .await;
    let rule = rule.unwrap().unwrap();
    let message = release(&floor, inbox, Route::Relay, &["bob@[127.0.0.1]"]).await;
    let queue = Running::start(&floor);
    let rows = until(&floor, inbox, message, "held").await;
    assert_eq!((rows[0].attempts, rows[0].held_by.clone()), (0, Some(rule.name())));
    assert!(remote.mails().is_empty());
    let gone: Result<bool, StoreError> = floor
        .store
        .write(move |tx| {
            Box::pin(async move {
                hold_rule::remove(tx, rule.rule_key).await?;
                hold_rule::let_go(tx).await
            })
        })
        .await;
    assert!(gone.unwrap());
    let rows = until(&floor, inbox, message, "delivered").await;
    let key = rows[0].delivery_key;
    let log: Result<Vec<crate::store::attempt::Attempt>, StoreError> =
        floor.store.read(move |tx| Box::pin(crate::store::attempt::of_delivery(tx, inbox, key))).await;
    let log = log.unwrap();
    assert_eq!(log.len(), 1, "{log:?}");
    assert_eq!((log[0].outcome.as_str(), log[0].attempt), ("delivered", 1));
    assert!(log[0].reply.as_deref().unwrap().contains("taken"), "{log:?}");
    queue.stop().await;
}

/// Whoever deletes an inbox has stopped it, whatever its mail waits for.
#[tokio::test]
async fn what_is_held_is_canceled_with_its_inbox() {
    let folder = tempfile::tempdir().unwrap();
    let floor = floor(folder.path(), 25).await;
    let inbox = ada(&floor).await;
    let message = release(&floor, inbox, Route::Relay, &["bob@[127.0.0.1]", "eve@[127.0.0.1]"]).await;
    let rows = until(&floor, inbox, message, "due").await;
    let deleted: Result<(), StoreError> = floor
        .store
        .write(move |tx| {
            let row = rows[0].clone();
            Box::pin(async move {
                assert!(
                    delivery::handle(tx, &row, delivery::Handling::Hold(delivery::Holder::Operator), "x")
                        .await?
                );
                inbox::delete(tx, inbox).await
            })
        })
        .await;
    deleted.unwrap();
    until(&floor, inbox, message, "canceled").await;
}
