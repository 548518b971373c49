//! Clients that break references, and people who forge them: one test each.

use super::tests::{arrive_judged, arrive_raw, claim, reply_to, thread_of, work_ref};
use super::*;
use crate::deliver::compose::{Disposition, OutgoingAttachment};
use crate::floor::testing::{TestFloor, agent};
use crate::gate::{self, SendRequest, Sent};
use crate::store::held::Held;
use crate::store::inbox::Inbox;
use crate::store::list::{self, ListDirection, ListEntry, ListType};
use crate::store::message::Message;
use crate::store::spent::{self, Spent};
use crate::verify::verdict::AuthResult;
use crate::verify::verdict::DmarcPolicy;
use crate::work::{self, Action};

const BOB: &str = "bob@stranger.example";
const MALLORY: &str = "mallory@evil.example";

/// An inbox and the mail that reaches it.
struct Desk {
    test: TestFloor,
    ada: Inbox,
}

impl Desk {
    async fn new() -> Desk {
        let test = TestFloor::new().await;
        let ada = test.inbox("ada").await;
        Desk { test, ada }
    }

    /// A message from `from` with these header lines (and body, below an empty line).
    async fn get(&self, from: &str, text: &str) -> Message {
        self.get_as(from, text, AuthResult::None).await
    }

    async fn get_as(&self, from: &str, text: &str, dmarc: AuthResult) -> Message {
        let text = if text.contains("\n\n") { text.to_owned() } else { format!("{text}\n\nHello\n") };
        let raw = format!("From: {from}\nTo: ada@agents.example\n{text}").replace('\n', "\r\n");
        arrive_raw(&self.test, raw.as_bytes(), from, dmarc, DmarcPolicy::None).await
    }

    async fn send(&self, request: SendRequest) -> Sent {
        gate::send(&self.test.floor, &agent(1, self.ada.key), &self.ada, request).await.unwrap()
    }

    /// The agent's answer to a message; its Message-ID.
    async fn answer(&self, message: &Message) -> String {
        self.send(reply_to(message, "Answer")).await.message_id
    }

    async fn items(&self) -> Vec<work::Claimed> {
        claim(&self.test, self.ada.key, "w").await
    }
}

#[tokio::test]
async fn outlook_keeps_its_thread_index_and_loses_the_references() {
    let desk = Desk::new().await;
    let index = "Thread-Index: AdZ3kq5Yw2dxZ0V4SmW0W4qC8Jb3Ug==";
    let child = "Thread-Index: AdZ3kq5Yw2dxZ0V4SmW0W4qC8Jb3UgAAAAAB";
    let first = desk.get(BOB, &format!("Message-ID: <1@x>\nSubject: Offer\n{index}")).await;
    let next = desk.get(BOB, &format!("Message-ID: <2@x>\nSubject: The other thing\n{child}")).await;
    assert_eq!(next.thread_key, first.thread_key);
    // Who did not take part has a thread of his own, which says what it claims; the name is then his too, and
    // costs the conversation nothing.
    let forged = desk.get(MALLORY, &format!("Message-ID: <3@x>\nSubject: Re: Offer\n{child}")).await;
    assert_ne!(forged.thread_key, first.thread_key);
    assert_eq!(thread_of(&desk.test, &forged).await.claims_thread, Some(first.thread_key));
    let spoofed = format!("Message-ID: <4@x>\nSubject: Re: Offer\n{child}");
    assert_ne!(desk.get_as(BOB, &spoofed, AuthResult::Fail).await.thread_key, first.thread_key);
    let last = desk.get(BOB, &format!("Message-ID: <5@x>\nSubject: And this\n{child}")).await;
    assert_eq!(last.thread_key, first.thread_key);
}

#[tokio::test]
async fn mh_writes_an_address_into_in_reply_to() {
    let desk = Desk::new().await;
    let first = desk.get(BOB, "Message-ID: <1@x>\nSubject: One").await;
    let ours = desk.answer(&first).await;
    let phrase = format!(
        "In-Reply-To: Message from Ada <ada@agents.example>\n of \"Sat, 21 Nov 2026\" {ours}\nMessage-ID: <2@x>"
    );
    assert_eq!(desk.get("carol@stranger.example", &phrase).await.thread_key, first.thread_key);
    // Where nothing but the address is there, it is no parent that two conversations could share.
    let other = "In-Reply-To: <ada@agents.example>'s message of Friday\nSubject:";
    let one = desk.get(BOB, &format!("Message-ID: <3@x>\n{other} Two")).await;
    let two = desk.get(BOB, &format!("Message-ID: <4@x>\n{other} Three")).await;
    assert_ne!(one.thread_key, two.thread_key);
}

#[tokio::test]
async fn in_reply_to_with_several_ids_and_identifiers_in_every_shape() {
    let desk = Desk::new().await;
    let first = desk.get(BOB, "Message-ID: <one\n .1@x >\nSubject: One").await;
    assert_eq!(first.rfc_message_id.as_deref(), Some("<one.1@x>"));
    for (n, cites) in [
        "In-Reply-To: <gone@x> <one.1@x>",
        "In-Reply-To: one.1@x",
        "References: <gone@x>\n\t<one.1@\n x>",
        "References: gone@x, one.1@x",
        "References: =?us-ascii?q?=3Cone=2E1?=\n =?us-ascii?q?=40x=3E?=",
        "In-Reply-To: \"<one.1@x>\" from Ada at Nov 21, 26",
    ]
    .iter()
    .enumerate()
    {
        let next = desk.get(BOB, &format!("Message-ID: n{n}@x\nSubject: n{n}\n{cites}")).await;
        assert_eq!(next.thread_key, first.thread_key, "{cites}");
        assert_eq!(next.rfc_message_id, Some(format!("<n{n}@x>")), "without brackets");
    }
}

#[tokio::test]
async fn a_message_without_message_id_that_comes_twice_is_one() {
    let desk = Desk::new().await;
    let printed = "Date: Sat, 21 Nov 2026 10:00:00 +0000\nSubject: Backup";
    let first = desk.get(BOB, printed).await;
    let again = desk.get(BOB, printed).await;
    assert_eq!((again.duplicate_of, again.thread_key), (Some(first.message_key), first.thread_key));
    let later = desk.get(BOB, "Date: Sun, 22 Nov 2026 10:00:00 +0000\nSubject: Backup").await;
    assert_eq!(later.duplicate_of, None, "the same words on another day");
    let other = desk.get(BOB, &format!("{printed}\n\nFailed\n")).await;
    assert_eq!(other.duplicate_of, None, "other words");
    // Its author has nothing to cite when he goes on.
    let more = desk.get(BOB, "Subject: Re: Backup\nDate: Mon, 23 Nov 2026 10:00:00 +0000").await;
    assert_eq!(more.thread_key, other.thread_key);
    assert_eq!(desk.items().await.len(), 3);
}

#[tokio::test]
async fn a_relay_that_gives_our_mail_another_message_id() {
    let desk = Desk::new().await;
    let first = desk.get(BOB, "Message-ID: <1@x>\nSubject: Invoice").await;
    desk.answer(&first).await;
    // Amazon SES and some Exchange set-ups write their own: Bob cites what we have never seen.
    let rewritten =
        "Message-ID: <2@x>\nIn-Reply-To: <0100018c@email.amazonses.example>\nSubject: Re: Invoice";
    assert_eq!(desk.get(BOB, rewritten).await.thread_key, first.thread_key);
    let stranger = "Message-ID: <3@x>\nIn-Reply-To: <0100018d@email.amazonses.example>\nSubject: Re: Invoice";
    assert_ne!(desk.get(MALLORY, stranger).await.thread_key, first.thread_key);
}

#[tokio::test]
async fn a_list_that_puts_itself_into_from() {
    let desk = Desk::new().await;
    let list = "list@lists.example";
    let through = format!(
        "Message-ID: <1@x>\nSubject: [club] Trip\nList-Id: Club <club.lists.example>\n\
         List-Post: <mailto:{list}>\nReply-To: Bob <{BOB}>"
    );
    let first = desk.get(list, &through).await;
    let direct = "Message-ID: <2@x>\nIn-Reply-To: <1@x>\nSubject: Re: [club] Trip";
    assert_eq!(desk.get(BOB, direct).await.thread_key, first.thread_key, "he wrote it");
    // A Reply-To alone invites nobody.
    let lure = format!("Message-ID: <3@x>\nIn-Reply-To: <2@x>\nSubject: Re: Trip\nReply-To: {MALLORY}");
    desk.get(BOB, &lure).await;
    let lured = desk.get(MALLORY, "Message-ID: <4@x>\nIn-Reply-To: <3@x>\nSubject: Re: Trip").await;
    assert_ne!(lured.thread_key, first.thread_key);
}

#[tokio::test]
async fn who_writes_through_a_list_joins_its_conversations() {
    let desk = Desk::new().await;
    let through = "List-Id: Club <club.lists.example>\nSubject: Trip";
    let first = desk.get(BOB, &format!("Message-ID: <1@x>\n{through}")).await;
    let carol =
        desk.get("carol@x.example", &format!("Message-ID: <2@x>\nIn-Reply-To: <1@x>\n{through}")).await;
    assert_eq!(carol.thread_key, first.thread_key);
    for (n, refused) in
        ["Subject: Re: Trip", "List-Id: <other.lists.example>\nSubject: Re: Trip"].iter().enumerate()
    {
        let cites = format!("Message-ID: <n{n}@x>\nIn-Reply-To: <1@x>\n{refused}");
        assert_ne!(desk.get(MALLORY, &cites).await.thread_key, first.thread_key, "{refused}");
    }
    let failed = format!("Message-ID: <3@x>\nIn-Reply-To: <1@x>\n{through}");
    assert_ne!(desk.get_as(MALLORY, &failed, AuthResult::Fail).await.thread_key, first.thread_key);
    let as_us = desk.get("boss@agents.example", &failed.replace("<3@x>", "<4@x>")).await;
    assert_ne!(as_us.thread_key, first.thread_key);
}

#[tokio::test]
async fn a_forged_list_id_joins_no_list_that_authenticates() {
    let desk = Desk::new().await;
    let through = |n: u32, cites: &str| {
        format!(
            "From: p{n}@x.example\r\nMessage-ID: <{n}@x>\r\n{cites}List-Id: <club.lists.example>\r\n\r\nHi\r\n"
        )
    };
    let arrive = async |raw: String, spf: Option<&str>| {
        let mut verdict = Verdict::local("x@x.example".parse().unwrap());
        (verdict.source, verdict.verified_sender) = (crate::verify::verdict::Source::Smtp, None);
        if let Some(domain) = spf {
            (verdict.spf.result, verdict.spf.domain) = (AuthResult::Pass, domain.to_owned());
        }
        arrive_judged(&desk.test, raw.as_bytes(), verdict).await
    };
    let cites = "In-Reply-To: <1@x>\r\n";
    let first = arrive(through(1, ""), Some("lists.example")).await;
    assert_ne!(arrive(through(2, cites), None).await.thread_key, first.thread_key);
    assert_ne!(arrive(through(3, cites), Some("evil.example")).await.thread_key, first.thread_key);
    assert_ne!(arrive(through(4, cites), Some("ts.example")).await.thread_key, first.thread_key);
    assert_eq!(arrive(through(5, cites), Some("Lists.example")).await.thread_key, first.thread_key);
}

#[tokio::test]
async fn a_forward_by_a_stranger_opens_its_own_and_one_by_a_participant_goes_where_it_says() {
    let desk = Desk::new().await;
    let first = desk.get(BOB, "Message-ID: <1@x>\nSubject: Contract").await;
    let ours = desk.answer(&first).await;
    let attached = format!(
        "Subject: WG: Re: Contract\nReferences: <1@x> {ours}\nContent-Type: message/rfc822\n\n\
         Message-ID: {ours}\nSubject: Re: Contract\n\nAnswer\n"
    );
    let stranger = desk.get(MALLORY, &format!("Message-ID: <2@x>\n{attached}")).await;
    assert_ne!(stranger.thread_key, first.thread_key);
    assert_eq!(thread_of(&desk.test, &stranger).await.claims_thread, Some(first.thread_key));
    let by_bob = desk.get(BOB, &format!("Message-ID: <3@x>\n{attached}")).await;
    assert_eq!(by_bob.thread_key, first.thread_key);
    let bare = desk.get(BOB, "Message-ID: <4@x>\nSubject: Fwd: Re: Contract").await;
    assert_ne!(bare.thread_key, first.thread_key, "no references, and no answer");
    // Who answers a forward of our mail is not forwarding it.
    let answer = format!("Message-ID: <5@x>\nSubject: Re: Fwd: Contract\nIn-Reply-To: {ours}");
    assert_eq!(desk.get("carol@x.example", &answer).await.thread_key, first.thread_key);
}

#[tokio::test]
async fn a_bounce_that_only_quotes_what_it_bounces() {
    let desk = Desk::new().await;
    let first = desk.get(BOB, "Message-ID: <1@x>\nSubject: Hi").await;
    let ours = desk.answer(&first).await;
    desk.items().await;
    let report = |part: &str| {
        format!(
            "Subject: Undelivered\nContent-Type: multipart/report; boundary=b\n\n--b\n\
             Content-Type: message/delivery-status\n\nReporting-MTA: dns; mx\n\n\
             Final-Recipient: rfc822; {BOB}\nAction: failed\nStatus: 5.1.1\n\n--b\n{part}\n--b--\n"
        )
    };
    let daemon = "mailer-daemon@remote.example";
    let headers =
        report(&format!("Content-Type: text/rfc822-headers\n\nMessage-ID: {ours}\nSubject: Re: Hi\n"));
    let bounce = desk.get(daemon, &format!("Message-ID: <b1@x>\n{headers}")).await;
    assert_eq!(bounce.thread_key, first.thread_key);
    assert_eq!(desk.items().await[0].item.reason, "bounced");
    let whole = report(&format!("Content-Type: message/rfc822\n\nMessage-ID: {ours}\n\nAnswer\n"));
    assert_eq!(desk.get(daemon, &whole).await.thread_key, first.thread_key);
    // Only what comes by the return path speaks for a recipient: the next answer goes out.
    desk.answer(&first).await;

    // One that quotes a stranger's mail (backscatter of forged mail) is about nothing of ours.
    let theirs = report("Content-Type: text/rfc822-headers\n\nMessage-ID: <1@x>\nSubject: Hi\n");
    assert_ne!(desk.get(daemon, &theirs).await.thread_key, first.thread_key);
    // qmail has no parts at all.
    let qmail = format!(
        "Subject: failure notice\n\nHi. This is the qmail-send program.\n\n<{BOB}>:\nno such user\n\n\
         --- Below this line is a copy of the message.\n\nMessage-ID: {ours}\nSubject: Re: Hi\n\nAnswer\n"
    );
    assert_ne!(desk.get(MALLORY, &qmail).await.thread_key, first.thread_key, "no daemon wrote it");
    let raw = format!("Return-Path: <>\nFrom: {daemon}\n{qmail}").replace('\n', "\r\n");
    let bounce = arrive_raw(&desk.test, raw.as_bytes(), daemon, AuthResult::None, DmarcPolicy::None).await;
    assert_eq!(bounce.thread_key, first.thread_key);
}

#[tokio::test]
async fn google_calendar_answers_an_invitation_with_its_uid_alone() {
    let desk = Desk::new().await;
    let first = desk.get(BOB, "Message-ID: <1@x>\nSubject: Meeting?").await;
    let calendar = |method: &str| {
        format!(
            "BEGIN:VCALENDAR\r\nMETHOD:{method}\r\nBEGIN:VEVENT\r\nUID:7-of-nine@agents.example\r\nEND:VEVENT\r\n"
        )
    };
    let mut invite = reply_to(&first, "Come");
    invite.attachments = vec![OutgoingAttachment {
        filename: Some("invite.ics".to_owned()),
        content_type: "text/calendar; method=REQUEST".to_owned(),
        disposition: Disposition::Attachment,
        content_id: None,
        content: calendar("REQUEST").into_bytes(),
    }];
    desk.send(invite).await;
    let accepted = |id: &str| {
        format!(
            "Message-ID: <{id}@x>\nSubject: Accepted: Meeting @ Sat Nov 21\nContent-Type: text/calendar; \
             method=REPLY\n\n{}",
            calendar("REPLY").replace("\r\n", "\n")
        )
    };
    assert_eq!(desk.get(BOB, &accepted("2")).await.thread_key, first.thread_key);
    assert_ne!(desk.get(MALLORY, &accepted("3")).await.thread_key, first.thread_key);
}

#[tokio::test]
async fn an_answer_to_what_the_agent_sent_in_another_thread_goes_there() {
    let desk = Desk::new().await;
    let one = desk.get(BOB, "Message-ID: <1@x>\nSubject: One").await;
    let two = desk.get(BOB, "Message-ID: <2@x>\nSubject: Two").await;
    let (in_one, in_two) = (desk.answer(&one).await, desk.answer(&two).await);
    // He answers the second with the history of the first below it: the nearest relative decides.
    let mixed = format!("Message-ID: <3@x>\nSubject: Re: One\nReferences: <1@x> {in_one} {in_two}");
    assert_eq!(desk.get(BOB, &mixed).await.thread_key, two.thread_key);
    let mixed =
        format!("Message-ID: <4@x>\nSubject: Re: Two\nIn-Reply-To: {in_one}\nReferences: <2@x> {in_two}");
    assert_eq!(desk.get(BOB, &mixed).await.thread_key, one.thread_key);
}

const TRIP: &str = "Shall we go on Sunday? The bus leaves at nine from the market square, and there is room for \
                    twelve. Who wants to come tells me by Friday, please, with the number of seats.\n";
const FOOTER: &str =
    "\n_______________________________________________\nClub mailing list\nhttps://lists.example\n";

#[tokio::test]
async fn the_copy_of_a_list_is_linked_and_other_words_never_are() {
    let desk = Desk::new().await;
    let text = format!("Message-ID: <1@x>\nSubject: Trip\n\n{TRIP}");
    let list = "List-Id: <club.lists.example>\n";
    let copy = format!("{list}{}", text.replace("Subject: ", "Subject: [club] ")) + FOOTER;
    let direct = desk.get(BOB, &text).await;
    let second = desk.get(BOB, &copy).await;
    assert_eq!((second.duplicate_of, second.thread_key), (Some(direct.message_key), direct.thread_key));
    assert_eq!(desk.items().await.len(), 1);
    // A forged copy cannot take the place of what it pretends to be: with words of its own it is a message.
    for forged in [
        copy.replace("Sunday", "Monday"),
        copy.replace(FOOTER, &"Send money. ".repeat(200)),
        copy.replace(list, "").replace("Club mailing", "Our mailing"),
        copy.replace("[club] Trip", "Urgent").replace("Club mailing", "Another"),
        copy.replace("Club mailing list", &"Send money. ".repeat(20)),
        copy.replace(FOOTER, "\nSend money.\n"),
    ] {
        let forged = desk.get(BOB, &forged).await;
        assert_eq!((forged.duplicate_of, forged.id_taken), (None, true), "{:?}", forged.subject);
    }
    let hers = desk.get(MALLORY, &copy.replace("Club mailing", "Her mailing")).await;
    assert_eq!(hers.duplicate_of, None, "another author");
    // The other way round.
    let first = desk.get(BOB, &copy.replace("<1@x>", "<2@x>")).await;
    let direct = desk.get(BOB, &text.replace("<1@x>", "<2@x>")).await;
    assert_eq!((direct.duplicate_of, direct.thread_key), (Some(first.message_key), first.thread_key));
}

/// Who knows a Message-ID sends something under it first. What comes then is a message of its own.
#[tokio::test]
async fn a_forged_copy_mutes_no_genuine_message() {
    let desk = Desk::new().await;
    let (list, pass, none) = ("List-Id: <club.lists.example>\n", AuthResult::Pass, AuthResult::None);
    let file = |octets: &str| {
        format!(
            "Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: text/plain\n\n{TRIP}\n--b\n\
             Content-Type: application/pdf\nContent-Disposition: attachment\n\n{octets}\n--b--\n"
        )
    };
    let page = |words: &str| {
        format!(
            "Content-Type: multipart/alternative; boundary=b\n\n--b\nContent-Type: text/plain\n\n{TRIP}\n--b\n\
             Content-Type: text/html\n\n<p>{words}</p>\n--b--\n"
        )
    };
    let half = TRIP.split_at(TRIP.find("Who").unwrap()).0;
    let (plain, by_list) = (format!("\n{TRIP}"), format!("\n{TRIP}{FOOTER}"));
    let reply_to = format!("Reply-To: {MALLORY}\n");
    for (n, (why, forged, genuine, verified)) in [
        ("the beginning of a word", (BOB, "", "\nS\n"), (BOB, list, &*by_list), none),
        ("the beginning of the text", (BOB, "", &*format!("\n{half}\n")), (BOB, list, &by_list), none),
        ("from nobody in particular", (BOB, "", &plain), (BOB, list, &by_list), pass),
        ("a list's, not verified", (BOB, list, &by_list), (BOB, "", &plain), pass),
        (
            "a list's, from another",
            (MALLORY, &*format!("{list}Reply-To: {BOB}\n"), &by_list),
            (BOB, "", &plain),
            none,
        ),
        ("answers go elsewhere", (BOB, &*format!("{list}{reply_to}"), &by_list), (BOB, "", &plain), none),
        ("answers of a direct one", (BOB, &*reply_to, &plain), (BOB, list, &by_list), none),
        ("another file", (BOB, "", &*file("AAAA")), (BOB, list, &*file("BBBB")), none),
        ("another page", (BOB, "", &*page("Pay")), (BOB, list, &*page("Come")), none),
        ("the same body, from another", (MALLORY, "", &plain), (BOB, "", &plain), none),
        ("the same body, not verified", (BOB, "", &plain), (BOB, "", &plain), pass),
        ("the same body, answers go elsewhere", (BOB, &*reply_to, &plain), (BOB, "", &plain), none),
    ]
    .into_iter()
    .enumerate()
    {
        let text = |more: &str, body: &str| format!("Message-ID: <{n}@x>\nSubject: Trip {n}\n{more}{body}");
        desk.get(forged.0, &text(forged.1, forged.2)).await;
        desk.items().await;
        let real = desk.get_as(genuine.0, &text(genuine.1, genuine.2), verified).await;
        assert_eq!((real.duplicate_of, real.id_taken), (None, true), "{why}");
        // Sent again by its own server, it is one.
        let again = desk.get_as(genuine.0, &text(genuine.1, genuine.2), verified).await;
        assert_eq!(again.duplicate_of, Some(real.message_key), "{why}");
    }
    // Nor does whoever sends on what he was sent come into the thread by it.
    let first = desk.get(BOB, &format!("Message-ID: <a@x>\nSubject: Offer\n\n{TRIP}")).await;
    let sent_on = desk.get(MALLORY, &format!("Message-ID: <a@x>\nSubject: Offer\n\n{TRIP}")).await;
    assert_ne!(sent_on.thread_key, first.thread_key);
    // Without Message-ID the same holds.
    let printed = "Date: Sat, 21 Nov 2026 10:00:00 +0000\nSubject: Backup";
    desk.get(BOB, printed).await;
    desk.get(BOB, &format!("{reply_to}{printed}")).await;
    assert_eq!(desk.get_as(BOB, printed, pass).await.duplicate_of, None);
}

#[tokio::test]
async fn a_subject_leads_in_only_who_proves_who_he_is_where_he_could_before() {
    let desk = Desk::new().await;
    let first = desk.get_as(BOB, "Message-ID: <1@x>\nSubject: Invoice", AuthResult::Pass).await;
    let forged = desk.get(BOB, "Message-ID: <2@x>\nSubject: Re: Invoice").await;
    assert_ne!(forged.thread_key, first.thread_key);
    let his = desk.get_as(BOB, "Message-ID: <3@x>\nSubject: Re: Invoice", AuthResult::Pass).await;
    assert!([first.thread_key, forged.thread_key].contains(&his.thread_key));
    // Also in a thread in which nothing is proven.
    desk.get(BOB, "Message-ID: <4@x>\nSubject: Offer").await;
    let forged = desk.get(BOB, "Message-ID: <5@x>\nSubject: Re: Offer").await;
    assert_eq!(thread_of(&desk.test, &forged).await.message_count, 1);
    // A sender who proves nothing is known by his address.
    let carol = desk.get("carol@x.example", "Message-ID: <6@x>\nSubject: Lunch").await;
    let again = desk.get("carol@x.example", "Message-ID: <7@x>\nSubject: Re: Lunch").await;
    assert_eq!(again.thread_key, carol.thread_key);
}

#[tokio::test]
async fn a_list_of_ones_own_draws_nobody_into_its_thread() {
    let desk = Desk::new().await;
    let lure = format!(
        "Message-ID: <1@x>\nSubject: Invoice\nIn-Reply-To: <gone@x>\nList-Post: <mailto:{MALLORY}>\nReply-To: {BOB}"
    );
    let trap = desk.get(MALLORY, &lure).await;
    let by_subject = desk.get(BOB, "Message-ID: <2@x>\nSubject: Re: Invoice").await;
    assert_ne!(by_subject.thread_key, trap.thread_key);
    let by_name = desk.get(BOB, "Message-ID: <3@x>\nSubject: Order\nIn-Reply-To: <gone@x>").await;
    assert_ne!(by_name.thread_key, trap.thread_key);
}

#[test]
fn cited_identifiers_are_few_before_they_are_compared() {
    let addresses: String = (0..60).map(|n| format!(" <p{n}@x>")).collect();
    let people: String = (0..60).map(|n| format!(",\r\n p{n}@x")).collect();
    let raw = format!("To: a@x{people}\r\nReferences: <root@x> <far@x>{addresses}\r\n\r\nHi\r\n");
    let structure = screen::structure(raw.as_bytes());
    assert_eq!((structure.references.len(), structure.to.len()), (62, 61));
    // <far@x> is beyond what is looked at, though nothing nearer is left.
    assert_eq!(threading::cited(&structure), ["<root@x>"]);
}

#[tokio::test]
async fn a_report_that_sends_nothing_back_is_no_way_past_the_reply_list() {
    let desk = Desk::new().await;
    let first = desk.get(BOB, "Message-ID: <1@x>\nSubject: Hi").await;
    let ours = desk.answer(&first).await;
    let key = desk.ada.key;
    let allowed: Result<_, StoreError> = (desk.test.floor.store)
        .write(move |tx| {
            Box::pin(async move {
                let entry = ListEntry {
                    scope: key,
                    direction: ListDirection::Reply,
                    list_type: ListType::Allow,
                    entry: BOB.to_owned(),
                    is_domain: false,
                    reason: None,
                    created_at: tx.now(),
                };
                list::put(tx, &entry).await
            })
        })
        .await;
    allowed.unwrap();
    for kind in ["message/feedback-report", "message/delivery-status"] {
        let report = |id: &str, part: &str| {
            format!(
                "Message-ID: <{id}@x>\nSubject: Read this\nIn-Reply-To: {ours}\n\
                 Content-Type: multipart/report; boundary=b\n\n--b\nContent-Type: {kind}\n\n\
                 Feedback-Type: abuse\n\n--b\n{part}\n--b--\n"
            )
        };
        let cites = desk.get(MALLORY, &report(kind, "Content-Type: text/plain\n\nSend money\n")).await;
        assert_eq!(cites.held, Some(Held::Blocked), "{kind}");
        let returned = format!("Content-Type: text/rfc822-headers\n\nMessage-ID: {ours}\n");
        let honest = desk.get("daemon@x.example", &report(&format!("h.{kind}"), &returned)).await;
        assert_eq!(honest.held, None, "{kind}");
    }
}

#[tokio::test]
async fn a_copy_that_is_held_does_not_mute_the_message_itself() {
    let desk = Desk::new().await;
    let text = format!("From: {BOB}\r\nMessage-ID: <1@x>\r\nSubject: Order\r\n\r\nTwo please\r\n");
    let raw = text.as_bytes();
    let forwarded = arrive_raw(&desk.test, raw, BOB, AuthResult::Fail, DmarcPolicy::Quarantine).await;
    assert!(desk.items().await.is_empty());
    let direct = arrive_raw(&desk.test, raw, BOB, AuthResult::Pass, DmarcPolicy::Quarantine).await;
    assert_eq!(direct.duplicate_of, None);
    let claimed = desk.items().await;
    assert!(claimed[0].messages.iter().any(|m| m.message_key == direct.message_key));
    // And the third is one of the second, not news.
    let third = arrive_raw(&desk.test, raw, BOB, AuthResult::Pass, DmarcPolicy::Quarantine).await;
    assert_eq!(third.duplicate_of, Some(direct.message_key), "not of {}", forwarded.message_key);
}

#[tokio::test]
async fn thousands_of_messages_under_one_id_hide_neither_parent_nor_duplicate() {
    let desk = Desk::new().await;
    let first = desk.get(BOB, "Message-ID: <1@x>\nSubject: One").await;
    let mut costs = Vec::new();
    for n in 0..300 {
        let flood = desk.get(MALLORY, &format!("Message-ID: <1@x>\nSubject: One\n\n{n}\n")).await;
        assert_eq!(flood.duplicate_of, None);
        costs.push(spent(&desk).await);
    }
    assert!(costs[299].steps < costs[40].steps * 5 / 4, "{:?} then {:?}", costs[40], costs[299]);
    let answer = desk.get(BOB, "Message-ID: <2@x>\nSubject: Re: One\nIn-Reply-To: <1@x>").await;
    assert_eq!(answer.thread_key, first.thread_key);
    let again = desk.get(MALLORY, "Message-ID: <1@x>\nSubject: One\n\n299\n").await;
    assert!(again.duplicate_of.is_some());
}

/// What the database did since this was asked last.
async fn spent(desk: &Desk) -> Spent {
    let taken: Result<Spent, StoreError> =
        desk.test.floor.store.write(|_| Box::pin(async { Ok(spent::take()) })).await;
    taken.unwrap()
}

/// Everything that a message may make a thread carry: other people, attachments, a long chain of references.
fn in_a_long_thread(n: usize) -> String {
    let chain: String = (n.saturating_sub(300)..n).map(|n| format!("\n <{n}@x>")).collect();
    format!(
        "Message-ID: <{n}@x>\nSubject: Re: Ticket\nCc: Person {n} <p{n}@x.example>\nReferences:{chain}\n\
         Content-Type: application/pdf; name=\"file {n}.pdf\"\nContent-Disposition: attachment\n\n{n}\n"
    )
}

/// Claims, answers under the lease, and completes.
async fn work_on(desk: &Desk, message: &Message) {
    let claimed = desk.items().await.remove(0);
    let mut answer = reply_to(message, "Noted");
    answer.work = Some(work_ref(&claimed));
    desk.send(answer).await;
    let (id, fence) = (work_ref(&claimed).item, claimed.item.fence);
    let complete = Action::Complete { reason: None };
    work::act(&desk.test.floor, &agent(1, desk.ada.key), id, fence, complete).await.unwrap();
}

/// Doubles the messages of the inbox, and who took part, by SQL: seven times make 100 into 12,800.
async fn double(desk: &Desk) {
    let doubled: Result<(), StoreError> = desk
        .test
        .floor
        .store
        .write(|tx| {
            Box::pin(async move {
                for sql in [
                    "CREATE TEMP TABLE m AS SELECT * FROM message",
                    "UPDATE m SET message_key = message_key + (SELECT seq FROM inbox), handled = 1,
                            rfc_message_id = rfc_message_id || (SELECT seq FROM inbox)",
                    "INSERT INTO message SELECT * FROM m",
                    "CREATE TEMP TABLE p AS SELECT * FROM participant",
                    "UPDATE p SET address = address || (SELECT seq FROM inbox)",
                    "INSERT INTO participant SELECT * FROM p",
                    "UPDATE thread SET message_count = 2 * message_count, size = 2 * size",
                    "UPDATE inbox SET seq = 2 * seq + 1",
                    "DROP TABLE m",
                    "DROP TABLE p",
                ] {
                    tx.execute(sql, &[]).await?;
                }
                Ok(())
            })
        })
        .await;
    doubled.unwrap();
}

#[tokio::test]
async fn the_ten_thousandth_message_of_a_thread_costs_what_the_hundredth_did() {
    let desk = Desk::new().await;
    let mut last = desk.get(BOB, &in_a_long_thread(0)).await;
    for n in 1..=100 {
        last = desk.get(BOB, &in_a_long_thread(n)).await;
    }
    work_on(&desk, &last).await;
    let mut costs = Vec::new();
    for (n, doublings) in [(101, 0), (102, 7)] {
        for _ in 0..doublings {
            double(&desk).await;
        }
        // Beyond the window in which an agent's turns without a human are counted.
        desk.test.hand.advance(2 * crate::clock::DAY);
        spent(&desk).await;
        let message = desk.get(BOB, &in_a_long_thread(n)).await;
        let arrival = spent(&desk).await;
        work_on(&desk, &message).await;
        costs.push((arrival, spent(&desk).await, thread_of(&desk.test, &message).await));
    }
    let [(early, early_work, young), (late, late_work, old)] = &costs[..] else { panic!("measured twice") };
    eprintln!("at {} messages: {early:?}, worked on: {early_work:?}", young.message_count);
    eprintln!("at {} messages: {late:?}, worked on: {late_work:?}", old.message_count);
    assert_eq!(young.thread_key, old.thread_key);
    assert!(old.message_count > 10_000, "{}", old.message_count);
    for (early, late) in [(early, late), (early_work, late_work)] {
        assert_eq!(early.statements, late.statements);
        assert!(late.steps * 10 <= early.steps * 11, "{early:?} then {late:?}");
        assert!(late.octets * 10 <= early.octets * 11, "{early:?} then {late:?}");
    }
}
