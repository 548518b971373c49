//! Threading, duplicates and work, from the arrival of mail to what an agent is handed.

use super::*;
use crate::floor::testing::{START, TestFloor, agent};
use crate::gate::{self, SendError, SendKind, SendRequest, WorkRef};
use crate::ids::RowId;
use crate::store::message::Message;
use crate::store::thread::{self, Thread};
use crate::store::work_item::ItemState;
use crate::verify::verdict::{AuthResult, DmarcPolicy};
use crate::work::{self, Action, ClaimRequest, Claimed, WorkError};

/// A stranger's message, written as its headers that matter and a text.
struct Mail<'a> {
    from: &'a str,
    id: &'a str,
    subject: &'a str,
    cites: &'a [&'a str],
    text: &'a str,
}

impl Default for Mail<'_> {
    fn default() -> Self {
        Mail { from: "bob@stranger.example", id: "<1@x>", subject: "Invoice", cites: &[], text: "Hello" }
    }
}

impl Mail<'_> {
    fn raw(&self) -> Vec<u8> {
        let mut text =
            format!("From: {}\r\nTo: ada@agents.example\r\nSubject: {}\r\n", self.from, self.subject);
        text += &format!("Message-ID: {}\r\n", self.id);
        if let Some(parent) = self.cites.last() {
            text += &format!("In-Reply-To: {parent}\r\nReferences: {}\r\n", self.cites.join(" "));
        }
        format!("{text}\r\n{}\r\n", self.text).into_bytes()
    }
}

/// As SMTP would bring it, with a DMARC result of our choice.
async fn arrive_as(test: &TestFloor, mail: Mail<'_>, dmarc: AuthResult) -> Message {
    arrive_with(test, mail, dmarc, DmarcPolicy::None).await
}

async fn arrive_with(test: &TestFloor, mail: Mail<'_>, dmarc: AuthResult, policy: DmarcPolicy) -> Message {
    arrive_raw(test, &mail.raw(), mail.from, dmarc, policy).await
}

pub(super) async fn arrive_raw(
    test: &TestFloor,
    raw: &[u8],
    from: &str,
    dmarc: AuthResult,
    policy: DmarcPolicy,
) -> Message {
    let mut verdict = Verdict::local("x@stranger.example".parse().unwrap());
    verdict.source = crate::verify::verdict::Source::Smtp;
    verdict.dmarc.result = dmarc;
    verdict.dmarc.policy = policy;
    let author: Option<Address> = from.parse().ok();
    verdict.verified_sender = author.filter(|_| dmarc == AuthResult::Pass);
    arrive_judged(test, raw, verdict).await
}

pub(super) async fn arrive_judged(test: &TestFloor, raw: &[u8], verdict: Verdict) -> Message {
    let floor = &test.floor;
    let to = "ada@agents.example".parse().unwrap();
    let Route::Inbox(recipient) = route(floor, &to).await.unwrap() else { panic!("no inbox") };
    let structure = screen::structure(raw);
    // People write in their own name; what a machine gives back comes from nobody.
    let author = structure.from.first().filter(|_| !structure.ties.is_report);
    let reverse_path = author.and_then(|one| one.address.parse().ok());
    let incoming = incoming(floor, structure, verdict, reverse_path, raw);
    commit(floor, incoming, vec![recipient], raw, "test").await.unwrap().remove(0)
}

async fn arrive(test: &TestFloor, mail: Mail<'_>) -> Message {
    arrive_as(test, mail, AuthResult::None).await
}

pub(super) async fn thread_of(test: &TestFloor, message: &Message) -> Thread {
    let (inbox, thread_key) = (message.inbox, message.thread_key);
    let found: Result<_, StoreError> =
        test.floor.store.read(move |tx| Box::pin(thread::by_key(tx, inbox, thread_key))).await;
    found.unwrap().unwrap()
}

pub(super) async fn claim(test: &TestFloor, inbox: InboxKey, worker: &str) -> Vec<Claimed> {
    let request = ClaimRequest {
        inboxes: None,
        limit: 10,
        lease_seconds: 60,
        worker: Some(worker.to_owned()),
        wait: std::time::Duration::ZERO,
    };
    work::claim(&test.floor, &agent(1, inbox), request).await.unwrap()
}

pub(super) fn reply_to(message: &Message, text: &str) -> SendRequest {
    SendRequest {
        kind: SendKind::Reply { message_key: message.message_key, all: false },
        to: vec![],
        cc: vec![],
        bcc: vec![],
        reply_to: vec![],
        subject: None,
        text: Some(text.to_owned()),
        html: None,
        attachments: vec![],
        headers: vec![],
        labels: vec![],
        work: None,
        context_version: None,
        run_id: None,
        priority: crate::store::delivery::Priority::Ordinary,
        send_at: None,
        dry_run: false,
        idempotency: None,
        bulk: false,
        require_tls: None,
    }
}

pub(super) fn work_ref(claimed: &Claimed) -> WorkRef {
    let item = &claimed.item;
    WorkRef { item: RowId { at: item.created_at, inbox: item.inbox, seq: item.item_key }, fence: item.fence }
}

#[tokio::test]
async fn who_took_part_is_let_into_the_thread_and_a_forger_is_not() {
    let test = TestFloor::new().await;
    test.inbox("ada").await;
    let first = arrive(&test, Mail::default()).await;
    let second = arrive(&test, Mail { id: "<2@x>", cites: &["<1@x>"], ..Mail::default() }).await;
    assert_eq!(second.thread_key, first.thread_key);

    // Thread hijack (mail-servers.md §7): Mallory has seen a Message-ID, from a Cc or an archive.
    let forged = Mail { from: "mallory@evil.example", id: "<3@x>", cites: &["<1@x>"], ..Mail::default() };
    let forged = arrive(&test, forged).await;
    assert_ne!(forged.thread_key, first.thread_key);
    assert_eq!(thread_of(&test, &forged).await.claims_thread, Some(first.thread_key));

    // Bob's address, but DMARC says that it is not Bob.
    let spoofed = Mail { id: "<4@x>", cites: &["<1@x>"], ..Mail::default() };
    let spoofed = arrive_as(&test, spoofed, AuthResult::Fail).await;
    assert_ne!(spoofed.thread_key, first.thread_key);

    // Our own addresses never count from outside.
    for from in ["ada@agents.example", "boss@agents.example"] {
        let ours = Mail { from, id: "<5@x>", cites: &["<1@x>"], text: from, ..Mail::default() };
        assert_ne!(arrive(&test, ours).await.thread_key, first.thread_key, "{from}");
    }
}

#[tokio::test]
async fn citing_an_id_that_we_made_is_enough() {
    let test = TestFloor::new().await;
    let ada = test.inbox("ada").await;
    let asked = arrive(&test, Mail::default()).await;
    let sent = gate::send(&test.floor, &agent(1, ada.key), &ada, reply_to(&asked, "Yes")).await.unwrap();
    let colleague = Mail {
        from: "carol@stranger.example",
        id: "<9@x>",
        cites: &[&sent.message_id],
        subject: "other",
        ..Mail::default()
    };
    assert_eq!(arrive(&test, colleague).await.thread_key, asked.thread_key);
}

#[tokio::test]
async fn parents_that_arrive_late_and_clients_without_references() {
    let test = TestFloor::new().await;
    test.inbox("ada").await;
    let answer = arrive(&test, Mail { id: "<2@x>", cites: &["<1@x>"], ..Mail::default() }).await;
    let parent = arrive(&test, Mail::default()).await;
    assert_eq!(parent.thread_key, answer.thread_key);
    // Two answers to a parent that never comes.
    let one = arrive(&test, Mail { id: "<7@x>", cites: &["<gone@x>"], ..Mail::default() }).await;
    let two = arrive(&test, Mail { id: "<8@x>", cites: &["<gone@x>"], ..Mail::default() }).await;
    assert_eq!(one.thread_key, two.thread_key);
    // By subject: only an answer, only from who took part.
    let bare = arrive(&test, Mail { id: "<10@x>", subject: "AW: invoice", ..Mail::default() }).await;
    assert_eq!(bare.thread_key, two.thread_key, "the latest thread with that subject");
    let fresh = arrive(&test, Mail { id: "<11@x>", subject: "Invoice", ..Mail::default() }).await;
    assert_ne!(fresh.thread_key, bare.thread_key, "not an answer");
    let other = Mail { from: "eve@x.example", id: "<12@x>", subject: "Re: Invoice", ..Mail::default() };
    assert_ne!(arrive(&test, other).await.thread_key, bare.thread_key, "a stranger with the same subject");
}

#[tokio::test]
async fn a_duplicate_is_linked_and_makes_no_second_work() {
    let test = TestFloor::new().await;
    let ada = test.inbox("ada").await;
    let first = arrive(&test, Mail::default()).await;
    let again = arrive(&test, Mail::default()).await;
    assert_eq!(again.duplicate_of, Some(first.message_key));
    assert_eq!(again.thread_key, first.thread_key);
    assert_eq!(thread_of(&test, &first).await.context_version, 1);
    // Same Message-ID, another body: another message (Stalwart #632 lost such mail).
    let other = arrive(&test, Mail { text: "Something else", ..Mail::default() }).await;
    assert_eq!((other.duplicate_of, other.id_taken), (None, true));
    assert!(other.public_id().starts_with("msg_"));
    let claimed = claim(&test, ada.key, "w").await;
    assert_eq!(claimed.len(), 2, "one item for the first and its duplicate, one for the other");
}

#[tokio::test]
async fn a_worker_past_its_lease_cannot_act_any_more() {
    let test = TestFloor::new().await;
    let ada = test.inbox("ada").await;
    let asked = arrive(&test, Mail::default()).await;
    let slow = claim(&test, ada.key, "slow").await.remove(0);
    assert!(claim(&test, ada.key, "other").await.is_empty(), "held by one");
    test.hand.advance(61_000);
    // Swept or not: the lease is judged by the clock.
    let mut late = reply_to(&asked, "too late");
    late.work = Some(work_ref(&slow));
    let refused = gate::send(&test.floor, &agent(1, ada.key), &ada, late.clone()).await;
    assert!(matches!(refused, Err(SendError::LeaseLost)), "{refused:?}");

    let stop = tokio_util::sync::CancellationToken::new();
    let sweeper = tokio::spawn(work::sweep(test.floor.clone(), stop.clone()));
    let quick = loop {
        if let Some(claimed) = claim(&test, ada.key, "quick").await.pop() {
            break claimed;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    };
    stop.cancel();
    sweeper.await.unwrap();
    assert!(quick.item.fence > slow.item.fence);
    assert_eq!(quick.item.attempts, 1);
    let refused = gate::send(&test.floor, &agent(1, ada.key), &ada, late).await;
    assert!(matches!(refused, Err(SendError::LeaseLost)), "{refused:?}");
    let heartbeat = Action::Heartbeat { lease_seconds: 60 };
    let lost =
        work::act(&test.floor, &agent(1, ada.key), work_ref(&slow).item, slow.item.fence, heartbeat).await;
    assert!(matches!(lost, Err(WorkError::LeaseLost)));

    let mut in_time = reply_to(&asked, "in time");
    in_time.work = Some(work_ref(&quick));
    gate::send(&test.floor, &agent(1, ada.key), &ada, in_time).await.unwrap();
    let complete = Action::Complete { reason: None };
    let done =
        work::act(&test.floor, &agent(1, ada.key), work_ref(&quick).item, quick.item.fence, complete).await;
    assert_eq!(done.unwrap().state, ItemState::Done);
    // New mail on a done item opens a new one, which knows its parent.
    arrive(&test, Mail { id: "<2@x>", cites: &["<1@x>"], ..Mail::default() }).await;
    let next = claim(&test, ada.key, "quick").await.remove(0);
    assert_eq!(next.item.parent_key, Some(quick.item.item_key));
    assert_eq!(next.messages.len(), 1, "only what nobody has handled");
}

#[tokio::test]
async fn an_answer_to_a_thread_that_moved_on_is_stale() {
    let test = TestFloor::new().await;
    let ada = test.inbox("ada").await;
    let asked = arrive(&test, Mail::default()).await;
    let claimed = claim(&test, ada.key, "w").await.remove(0);
    arrive(&test, Mail { id: "<2@x>", cites: &["<1@x>"], text: "Never mind", ..Mail::default() }).await;
    let mut answer = reply_to(&asked, "On its way");
    answer.work = Some(work_ref(&claimed));
    answer.context_version = Some(claimed.thread.context_version);
    let refused = gate::send(&test.floor, &agent(1, ada.key), &ada, answer.clone()).await;
    assert!(matches!(refused, Err(SendError::ContextChanged { asked: 1, current: 2 })), "{refused:?}");
    answer.context_version = Some(2);
    let sent = gate::send(&test.floor, &agent(1, ada.key), &ada, answer).await.unwrap();
    assert_eq!(sent.context_version, 2, "what is sent under the lease is the holder's own");
    // Another key, without a fence, into a thread that is held.
    let meddling = gate::send(&test.floor, &agent(2, ada.key), &ada, reply_to(&asked, "Me too")).await;
    assert!(matches!(meddling, Err(SendError::LeaseHeld)), "{meddling:?}");
}

#[tokio::test]
async fn five_failed_attempts_are_enough() {
    let test = TestFloor::new().await;
    let ada = test.inbox("ada").await;
    arrive(&test, Mail::default()).await;
    for attempt in 1..=5 {
        let claimed = claim(&test, ada.key, "w").await.remove(0);
        let action = Action::Release { error: Some("cannot".to_owned()) };
        let item =
            work::act(&test.floor, &agent(1, ada.key), work_ref(&claimed).item, claimed.item.fence, action)
                .await
                .unwrap();
        assert_eq!(item.attempts, attempt);
        assert_eq!(item.state == ItemState::Dead, attempt == 5);
        assert!(claim(&test, ada.key, "w").await.is_empty(), "it rests");
        test.hand.advance(3_600_000);
    }
    // What is said anew may be worth another try.
    arrive(&test, Mail { id: "<2@x>", cites: &["<1@x>"], ..Mail::default() }).await;
    let revived = claim(&test, ada.key, "w").await.remove(0);
    assert_eq!(revived.item.attempts, 0);
}

#[tokio::test]
async fn tags_reach_their_user_and_the_operator_gets_postmaster() {
    let test = TestFloor::new().await;
    let ada = test.inbox("ada").await;
    let exact = test.inbox("ada+urgent").await;
    ensure_operator_inboxes(&test.floor).await.unwrap();
    let reached = |address: &str| {
        let address = address.parse().unwrap();
        let floor = test.floor.clone();
        async move {
            match route(&floor, &address).await.unwrap() {
                Route::Inbox(recipient) => Some(recipient),
                _ => None,
            }
        }
    };
    assert_eq!(reached("Ada+News@Agents.Example").await.unwrap().inbox, ada.key);
    assert_eq!(reached("ada+urgent@agents.example").await.unwrap().inbox, exact.key);
    assert!(reached("abuse+x@agents.example").await.unwrap().operator);
    assert!(reached("Postmaster@agents.example").await.unwrap().operator);
    assert!(reached("nobody@agents.example").await.is_none());
    assert!(reached("b-00000000000000000000000000000000000000@agents.example").await.is_none());
    let elsewhere = "ada@elsewhere.example".parse().unwrap();
    assert_eq!(route(&test.floor, &elsewhere).await.unwrap(), Route::NotOurs);
    assert_eq!(test.floor.clock.now(), START);
}

#[tokio::test]
async fn what_comes_while_a_worker_finishes_is_handed_out_again() {
    let test = TestFloor::new().await;
    let ada = test.inbox("ada").await;
    let who = agent(1, ada.key);
    arrive(&test, Mail::default()).await;
    let claimed = claim(&test, ada.key, "w").await.remove(0);
    // The stranger is quick: a second mail, before the worker completes what it saw.
    arrive(&test, Mail { id: "<2@x>", cites: &["<1@x>"], text: "One more thing", ..Mail::default() }).await;
    let complete = Action::Complete { reason: None };
    let id = work_ref(&claimed).item;
    let item = work::act(&test.floor, &who, id, claimed.item.fence, complete.clone()).await.unwrap();
    assert_eq!(item.state, ItemState::Available);
    let again = claim(&test, ada.key, "w").await.remove(0);
    assert_eq!(again.messages.len(), 1, "the second, not the first again");
    // Neither does waiting for a reply sleep through one that is already here.
    arrive(&test, Mail { id: "<3@x>", cites: &["<1@x>"], text: "And this", ..Mail::default() }).await;
    let wait = Action::Wait { for_reply: true, until: None };
    let item = work::act(&test.floor, &who, id, again.item.fence, wait).await.unwrap();
    assert_eq!(item.state, ItemState::Available);
    let last = claim(&test, ada.key, "w").await.remove(0);
    let item = work::act(&test.floor, &who, id, last.item.fence, complete).await.unwrap();
    assert_eq!(item.state, ItemState::Done);
}

#[tokio::test]
async fn a_spoofed_copy_neither_mutes_a_thread_nor_reaches_its_worker() {
    let test = TestFloor::new().await;
    let ada = test.inbox("ada").await;
    let asked = arrive(&test, Mail::default()).await;
    let sent = gate::send(&test.floor, &agent(1, ada.key), &ada, reply_to(&asked, "Yes")).await.unwrap();
    // It cites an id that we made, so it joins; DMARC failed under p=quarantine, so it is held.
    let mut spoofed =
        arrive_quarantined(&test, Mail { id: "<4@x>", cites: &[&sent.message_id], ..Mail::default() }).await;
    assert_eq!(spoofed.thread_key, asked.thread_key);
    assert!(spoofed.labels.contains(&"spam".to_owned()));
    assert!(claim(&test, ada.key, "w").await.is_empty(), "held");
    assert_eq!(
        thread_of(&test, &asked).await.context_version,
        sent.context_version,
        "no answer is made stale by it"
    );
    arrive(&test, Mail { id: "<5@x>", cites: &["<1@x>"], text: "Thanks", ..Mail::default() }).await;
    let claimed = claim(&test, ada.key, "w").await.remove(0);
    assert!(claimed.messages.iter().any(|m| m.rfc_message_id.as_deref() == Some("<5@x>")));
    // Another one beside a good one is not handed out.
    spoofed =
        arrive_quarantined(&test, Mail { id: "<6@x>", cites: &[&sent.message_id], ..Mail::default() }).await;
    let release = Action::Release { error: None };
    let id = work_ref(&claimed).item;
    work::act(&test.floor, &agent(1, ada.key), id, claimed.item.fence, release).await.unwrap();
    let claimed = claim(&test, ada.key, "w").await.remove(0);
    assert!(claimed.messages.iter().all(|m| m.message_key != spoofed.message_key));
}

async fn arrive_quarantined(test: &TestFloor, mail: Mail<'_>) -> Message {
    arrive_with(test, mail, AuthResult::Fail, DmarcPolicy::Quarantine).await
}

/// What takes too long to read is stored as it came and marked, never lost.
#[tokio::test]
async fn a_message_that_is_not_read_in_time_is_kept_unparsed() {
    let body = "--b\r\n\r\nwords\r\n".repeat(400_000);
    let raw =
        format!("From: bob@stranger.example\r\nSubject: Slow\r\nContent-Type: text/plain\r\n\r\n{body}");
    let (kept, structure) = read(raw.clone().into_bytes().into(), Duration::ZERO, "test").await.unwrap();
    assert_eq!(&kept[..], raw.as_bytes());
    assert!(structure.unparsed.is_some() && structure.parts.is_empty());
    assert_eq!((structure.subject.as_deref(), structure.from.len()), (Some("Slow"), 1));
    let (_, structure) = read(raw.into_bytes().into(), Duration::from_secs(3600), "test").await.unwrap();
    assert_eq!((structure.unparsed, structure.parts.len()), (None, 1));
}

/// A limit on strangers: who wrote and was verified may be answered, who only says that he is Bob stays a stranger.
#[tokio::test]
async fn a_verified_author_is_no_stranger_and_a_claimed_one_is() {
    let test = TestFloor::with("[budgets]\nnew_recipients_per_day = 1").await;
    let ada = test.inbox("ada").await;
    let verified = arrive_as(&test, Mail::default(), AuthResult::Pass).await;
    let claimed = Mail { from: "carol@stranger.example", id: "<2@x>", subject: "Hi", ..Mail::default() };
    let claimed = arrive(&test, claimed).await;
    let other = Mail { from: "dave@stranger.example", id: "<3@x>", subject: "Ho", ..Mail::default() };
    let other = arrive(&test, other).await;
    for _ in 0..2 {
        gate::send(&test.floor, &agent(1, ada.key), &ada, reply_to(&verified, "Yes")).await.unwrap();
    }
    gate::send(&test.floor, &agent(1, ada.key), &ada, reply_to(&claimed, "Yes")).await.unwrap();
    let refused =
        gate::send(&test.floor, &agent(1, ada.key), &ada, reply_to(&other, "Yes")).await.unwrap_err();
    let SendError::Refused(decision) = refused else { panic!("{refused}") };
    let rules: Vec<_> = decision.reasons().iter().map(|reason| reason.rule).collect();
    assert_eq!(rules, ["limit_new_recipients_per_day"]);
    // Once written to, she is known.
    gate::send(&test.floor, &agent(1, ada.key), &ada, reply_to(&claimed, "And")).await.unwrap();
}
