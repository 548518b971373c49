use super::*;
use crate::screen::kind::Kind;
use crate::screen::structure;

fn report(fields: &str) -> Option<Bounce> {
    let raw = format!(
        "From: <>\r\nMIME-Version: 1.0\r\nContent-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n\
         --b\r\nContent-Type: text/plain\r\n\r\nSorry.\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\n\
         Reporting-MTA: dns; mx.remote.example\r\n\r\n{fields}\r\n--b--\r\n"
    );
    read(raw.as_bytes(), &structure(raw.as_bytes()))
}

#[test]
fn fields_say_who_failed_and_whether_it_is_final() {
    let read = report(
        "Final-Recipient: rfc822; Bob@Remote.example\r\nAction: failed\r\nStatus: 5.1.1\r\n\
         Diagnostic-Code: smtp; 550 5.1.1\r\n no such user\r\n\r\n\
         Original-Recipient: rfc822;<eve@remote.example>\r\nAction: Failed\r\n\r\n\
         Final-Recipient: rfc822; late@remote.example\r\nAction: delayed\r\nStatus: 4.4.1\r\n\r\n\
         Final-Recipient: utf-8; j\\x{F6}rg@remote.example\r\nAction: relayed\r\nStatus: 2.0.0\r\n",
    )
    .unwrap();
    assert_eq!(read.kind, BounceKind::Failure);
    let [bob, eve, late, relayed] = read.recipients.as_slice() else { panic!("{read:?}") };
    assert_eq!(bob.address.as_deref(), Some("bob@remote.example"));
    assert_eq!((bob.status.as_deref(), bob.code), (Some("5.1.1"), Some(550)));
    assert_eq!((bob.text.as_str(), bob.reason), ("550 5.1.1 no such user", Reason::UserUnknown));
    assert_eq!(bob.class, BounceClass::Hard);
    assert_eq!((eve.original.as_deref(), eve.class), (Some("eve@remote.example"), BounceClass::Soft));
    assert_eq!((late.kind, late.class), (BounceKind::Delay, BounceClass::Soft));
    assert_eq!((relayed.kind, relayed.class), (BounceKind::Delivered, BounceClass::Other));
    assert_eq!(relayed.address.as_deref(), Some("jörg@remote.example"));
}

/// Whoever forwards a complaint asks what to do about it; it is a person's mail.
#[test]
fn a_complaint_counts_where_it_is_the_message_and_no_further_than_it_is_read() {
    let report = |fields: &str| {
        format!(
            "Content-Type: multipart/report; boundary=b\r\n\r\n--b\r\n\r\nA complaint.\r\n\
             --b\r\nContent-Type: message/feedback-report\r\n\r\nFeedback-Type: abuse\r\n{fields}\r\n--b--\r\n"
        )
    };
    let kind = |raw: &str| {
        let structure = structure(raw.as_bytes());
        crate::screen::meaning(raw.as_bytes(), &structure, crate::screen::Sender::default()).kind
    };
    let read = |raw: &str| read(raw.as_bytes(), &structure(raw.as_bytes()));
    let own = format!("From: fbl@remote.example\r\n{}", report("Removal-Recipient: bob@remote.example\r\n"));
    assert_eq!((kind(&own), read(&own).unwrap().kind), (Kind::Report, BounceKind::Complaint));
    let forwarded = format!(
        "From: bob@remote.example\r\nContent-Type: multipart/mixed; boundary=o\r\n\r\n--o\r\n\r\nWhat is this?\r\n\
         --o\r\nContent-Type: message/rfc822\r\n\r\n{own}\r\n--o--\r\n"
    );
    assert_eq!((kind(&forwarded), read(&forwarded)), (Kind::Person, None));
    let many: String = (0..100_000).map(|n| format!("Removal-Recipient: n{n}@remote.example\r\n")).collect();
    assert_eq!(read(&report(&many)).unwrap().recipients.len(), MAX_RECIPIENTS);
    let late = format!("{}Removal-Recipient: bob@remote.example\r\n", "X-Filler: x\r\n".repeat(30_000));
    assert_eq!(read(&report(&late)).unwrap().recipients[0].address, None);
}

/// RFC 6533 §3 has six digits: a text of beginnings is not searched to its end from each of them.
#[test]
fn an_address_of_brackets_that_never_close() {
    let text = "\\x{".repeat(2 << 20);
    assert_eq!(fields::utf8_address(&text), text);
    assert_eq!(
        fields::utf8_address("j\\x{F6}rg\\x{10FFFF}\\x{}\\x{1234567}"),
        "jörg\u{10ffff}\\x{}\\x{1234567}"
    );
}

#[test]
fn nonsense_reports_nobody() {
    assert_eq!(report("Final-Recipient: rfc822; bob@remote.example\r\n"), None);
    assert_eq!(report(": : :\r\nAction\r\n\r\n\r\n\r\n"), None);
    let odd = report("Final-Recipient: x400; /S=bob/\r\nAction: failed\r\nStatus: 9.9.9\r\n").unwrap();
    assert_eq!((&odd.recipients[0].address, &odd.recipients[0].status), (&None, &None));
    let plain = b"Subject: x\r\n\r\nAction: failed\r\n";
    assert_eq!(read(plain, &structure(plain)), None);
}

fn letter(from: &str, subject: &str, body: &str) -> Option<Bounce> {
    let raw = format!(
        "From: {from}\r\nTo: ada@agents.example\r\nSubject: {subject}\r\n\r\n{}",
        body.replace('\n', "\r\n")
    );
    read(raw.as_bytes(), &structure(raw.as_bytes()))
}

/// From, subject, body, and what is to be read: addresses with class and reason.
type Prose = (&'static str, &'static str, &'static str, &'static [(&'static str, BounceClass, Reason)]);

/// Forms of systems that write no fields, in our words.
const PROSE: &[Prose] = &[
    (
        "MAILER-DAEMON@mx.example",
        "failure notice",
        "Hi. This is the qmail-send program.\n\n<bob@remote.example>:\n192.0.2.1 does not like recipient.\n\
         Remote host said: 550 no such user\nGiving up on 192.0.2.1.\n\n<eve@remote.example>:\nUser is over quota\n\n\
         --- Below this line is a copy of the message.\n\nTo: third@remote.example\n",
        &[
            ("bob@remote.example", BounceClass::Hard, Reason::UserUnknown),
            ("eve@remote.example", BounceClass::Soft, Reason::MailboxFull),
        ],
    ),
    (
        "System Administrator <sa@remote.example>",
        "Undeliverable: Hello",
        "Your message\n\n  To:      ada@agents.example\n  Subject: Hello\n\ndid not reach the following recipient(s):\n\n\
         bob@remote.example on Thu, 29 Apr 2010 16:51:51 -0500\n    The recipient name is not recognized\n",
        &[("bob@remote.example", BounceClass::Hard, Reason::UserUnknown)],
    ),
    (
        "postmaster@remote.example",
        "DELIVERY FAILURE: User bob not listed in Domino Directory",
        "Your message\n\n  Subject: Hello\n\nwas not delivered to:\n\n  bob@remote.example\n\nbecause:\n\n\
           User bob (bob@remote.example) not listed in Domino Directory\n",
        &[("bob@remote.example", BounceClass::Hard, Reason::UserUnknown)],
    ),
    (
        "postmaster@remote.example",
        "[BOUNCE]",
        "Error message below:\n550 - Requested action not taken: no such user here\n\nMessage details:\n\
         MAIL FROM: ada@agents.example\nRCPT TO: bob@remote.example\n",
        &[("bob@remote.example", BounceClass::Hard, Reason::UserUnknown)],
    ),
    (
        "Mailer-Daemon@remote.example",
        "Mail delivery failed: returning message to sender",
        "The following address(es) failed:\n\n  bob@gone.example\n    all relevant MX records point to non-existent hosts\n",
        &[("bob@gone.example", BounceClass::Hard, Reason::HostUnknown)],
    ),
    (
        "MAILER-DAEMON@remote.example",
        "Returned mail: Service unavailable",
        "   ----- The following addresses had permanent fatal errors -----\n<bob@remote.example>\n\n\
            ----- Transcript of session follows -----\n... while talking to mx.remote.example:\n>>> DATA\n\
         <<< 554 5.7.1 Message rejected, blocked using zen.spamhaus.org\n554 5.0.0 Service unavailable\n",
        &[("bob@remote.example", BounceClass::Soft, Reason::Blocked)],
    ),
    (
        "no-reply@sns.amazonaws.com",
        "AWS Notification Message",
        r#"{"notificationType":"Bounce","bounce":{"bouncedRecipients":[{"emailAddress":"bob@remote.example",
            "status":"5.1.1","diagnosticCode":"smtp; 550 5.1.1 user unknown"}]}}"#,
        &[("bob@remote.example", BounceClass::Hard, Reason::UserUnknown)],
    ),
];

#[test]
fn prose_says_who_failed_and_why() {
    for (from, subject, body, expected) in PROSE {
        let read = letter(from, subject, body).unwrap_or_else(|| panic!("{subject} is no bounce"));
        let said: Vec<_> = read
            .recipients
            .iter()
            .map(|r| (r.address.as_deref().unwrap_or_default(), r.class, r.reason))
            .collect();
        assert_eq!(said, *expected, "{subject}");
    }
}

/// A filter that says "user unknown" after it took the message knows less than a host that refuses the name.
#[test]
fn the_same_words_condemn_an_address_only_where_they_are_about_it() {
    let said = |diagnostic: &str, status: &str| {
        let fields = format!(
            "Final-Recipient: rfc822; bob@remote.example\r\nAction: failed\r\nStatus: {status}\r\nDiagnostic-Code: {diagnostic}\r\n"
        );
        report(&fields).unwrap().recipients[0].class
    };
    assert_eq!(said("smtp; 550 user unknown (in reply to RCPT TO command)", "5.0.0"), BounceClass::Hard);
    assert_eq!(said("smtp; 550 user unknown (in reply to end of DATA command)", "5.0.0"), BounceClass::Soft);
    assert_eq!(said("smtp; 550 5.1.1 user unknown", "5.0.0"), BounceClass::Hard);
    assert_eq!(
        said("smtp; 450 4.1.1 user unknown (in reply to RCPT TO command)", "4.1.1"),
        BounceClass::Soft
    );
    assert_eq!(said("smtp; 550 5.1.1 Relay access denied", "5.1.1"), BounceClass::Soft);
    assert_eq!(said("x-unix; procmail: user unknown", "5.1.1"), BounceClass::Soft);
    assert_eq!(said("smtp; 556 5.1.10 null MX", "5.1.10"), BounceClass::Hard);
}

#[test]
fn people_programs_and_parcels_are_no_bounces() {
    let bounced = "<bob@remote.example>:\n550 5.1.1 user unknown\n";
    for (from, subject, body) in [
        ("Bob <bob@remote.example>", "Re: Undelivered Mail Returned to Sender", bounced),
        ("Bob <bob@remote.example>", "Fwd: failure notice", bounced),
        (
            "Parcels <info@parcels.example>",
            "Your parcel could not be delivered",
            "We rang. Write to help@parcels.example.",
        ),
        ("postmaster@remote.example", "Out of office", "I am away until Monday. Ask bob@remote.example."),
        (
            "postmaster@remote.example",
            "Maintenance",
            "Our mail will be slow tonight. Questions: admin@remote.example",
        ),
        (
            "noreply@shop.example",
            "Your order",
            "It was sent to bob@remote.example. Error 550 is no part of it.",
        ),
    ] {
        assert_eq!(letter(from, subject, body), None, "{subject}");
    }
}

#[test]
fn a_complaint_names_its_kind_and_whom_it_can() {
    let complaint = |fields: &str| {
        let raw = format!(
            "From: fbl@provider.example\r\nMIME-Version: 1.0\r\nContent-Type: multipart/report; report-type=feedback-report; \
             boundary=b\r\n\r\n--b\r\nContent-Type: message/feedback-report\r\n\r\n{fields}\r\n--b--\r\n"
        );
        read(raw.as_bytes(), &structure(raw.as_bytes())).unwrap()
    };
    let read = complaint("Feedback-Type: Abuse\r\nOriginal-Rcpt-To: <Bob@remote.example>\r\n");
    assert_eq!((read.kind, read.feedback.as_deref()), (BounceKind::Complaint, Some("abuse")));
    assert_eq!(read.recipients[0].address.as_deref(), Some("bob@remote.example"));
    let redacted = complaint("Feedback-Type: opt-out\r\nOriginal-Rcpt-To: redacted\r\n");
    assert_eq!((redacted.recipients.len(), &redacted.recipients[0].address), (1, &None));
}

/// Bounces that were made to be slow to read: many groups, many addresses, long lines, no ends.
#[test]
fn a_bounce_bomb_is_read_within_bounds() {
    let group = "Final-Recipient: rfc822; bob@remote.example\r\nAction: failed\r\nStatus: 5.1.1\r\n\r\n";
    assert_eq!(report(&group.repeat(20_000)).unwrap().recipients.len(), MAX_RECIPIENTS);
    let many: String =
        (0..50_000).map(|n| format!("<bob{n}@remote.example>:\n550 user unknown\n\n")).collect();
    assert_eq!(
        letter("mailer-daemon@x.example", "failure notice", &many).unwrap().recipients.len(),
        MAX_RECIPIENTS
    );
    for body in [
        "@".repeat(1 << 20),
        "a@b.c ".repeat(1 << 18),
        "<".repeat(1 << 20),
        "5.1.".repeat(1 << 18),
        "{".repeat(1 << 20),
    ] {
        letter("mailer-daemon@x.example", "failure notice", &body);
        letter("no-reply@x.example", "notificationType", &format!("notificationType {body}"));
        report(&format!("Action: failed\r\nDiagnostic-Code: smtp; {body}\r\n"));
    }
}

proptest::proptest! {
    #[test]
    fn any_text_is_a_bounce_or_none(body in "(.|\\n){0,400}", fields in "([A-Za-z-]{1,18}: .{0,40}\\n|\\n){0,12}") {
        letter("mailer-daemon@x.example", "failure notice", &body);
        report(&fields);
    }
}
