use super::*;

fn read(subject: &str, text: &str) -> Vec<Code> {
    codes(Texts { subject, text, page: None, is_page: false, sender: Some("example.com") })
}

fn values(text: &str) -> Vec<String> {
    read("", text).into_iter().map(|code| code.value).collect()
}

#[test]
fn codes_in_many_languages() {
    for (text, code) in [
        ("Your code: 4821", "4821"),
        ("Use verification code 551-203 to continue.", "551203"),
        ("Enter this code to sign in:\n\n  **902 114**\n\nIt expires in 10 minutes.", "902114"),
        ("Your one-time code\n\n4 7 2 9 1 0\n\nDo not share it.", "472910"),
        ("Ihr Bestätigungscode lautet 583920.", "583920"),
        ("Ihre mTAN / TAN: 583920", "583920"),
        ("Votre code de vérification est : 583920", "583920"),
        ("Tu código de verificación es 583920", "583920"),
        ("Seu código de verificação é 583920.", "583920"),
        ("Il tuo codice di verifica è: 583920", "583920"),
        ("Twój kod weryfikacyjny to 583920", "583920"),
        ("Ваш код подтверждения: 583920", "583920"),
        ("Код: 5839", "5839"),
        ("認証コード：583920 有効期限は10分です", "583920"),
        ("【サービス】確認コードは 583920 です。", "583920"),
        ("[서비스] 인증번호는 [583920] 입니다.", "583920"),
        ("您的驗證碼為 583920，請勿告訴他人", "583920"),
        ("Doğrulama kodu: 583920", "583920"),
        ("Din verifieringskod är 583920", "583920"),
        ("Mã xác minh của bạn là 583920", "583920"),
        ("رمز التحقق: 583920", "583920"),
        ("583920 ist dein Anmeldecode", "583920"),
        ("Confirmation code: XK4-9QT", "XK4-9QT"),
        ("Your security code is 7F3K9A.", "7F3K9A"),
    ] {
        assert_eq!(values(text), [code], "{text:?}");
    }
    assert_eq!(read("Your login code", "Hello Ada,\n\n583920\n\nThe team").len(), 1);
    assert_eq!(read("583920 is your login code", "Hello Ada")[0].span.unwrap().place, CodePlace::Subject);
}

/// A wrong code typed into a form locks an account; a missing one is asked for again.
#[test]
fn numbers_that_are_no_codes() {
    for text in [
        "Your order 583920 has shipped.",
        "Order code of conduct, page 1234.",
        "Use promo code SAVE2026 for 20% off.",
        "Call +1 555 123 4567 with your zip code, 90210.",
        "The code review is on 2026-11-21 at 14:30, room 4021.",
        "Copyright 2026 Example. The source code is on the site.",
        "Your invoice 20260001 over $1234.56 is due. Enter no code.",
        "Never tell anybody your password. Case number: 123456",
        "We fixed error code 1045 in version 2024.",
        "Pay 2500 EUR with your PIN.",
        "My pin board has 1024 pins.",
        "https://example.com/code/123456",
        "Your code is in the attached file 123456.pdf",
        "Ada 123456",
        "",
    ] {
        assert_eq!(values(text), Vec::<String>::new(), "{text:?}");
    }
}

#[test]
fn a_span_is_where_the_code_stands() {
    let text = "Größe: egal.\nIhr Code ist 583-920.\n\n@example.com #583920";
    let all = read("", text);
    let span = all[0].span.unwrap();
    let printed = &text[span.start as usize..span.end as usize];
    assert_eq!((printed.replace('-', ""), all[0].value.as_str()), ("583920".to_owned(), "583920"));
    assert_eq!((all.len(), all[0].link_domain_matches_sender), (1, Some(true)));
    assert_eq!(
        read("", "583920 is your code.\n@evil.net #583920")[0].link_domain_matches_sender,
        Some(false)
    );
}

#[test]
fn links_that_finish_something() {
    for (text, link, ours) in [
        (
            "Confirm your address: https://mail.example.com/confirm/8f3a9c2b1d4e5f60",
            Some("https://mail.example.com/confirm/8f3a9c2b1d4e5f60"),
            true,
        ),
        (
            "Reset your password (https://evil.net/reset?token=abcd1234).",
            Some("https://evil.net/reset?token=abcd1234"),
            false,
        ),
        (
            "Bitte bestätigen: <https://example.com/e/v1/9fK2mQ7xLp0aZs3d>",
            Some("https://example.com/e/v1/9fK2mQ7xLp0aZs3d"),
            true,
        ),
        ("Read more: https://example.com/blog/how-we-verify", None, false),
        ("Log in to see it: https://example.com/login", None, false),
        (
            "To confirm that you no longer want this: https://example.com/unsubscribe?token=abcd1234",
            None,
            false,
        ),
    ] {
        let all = read("", text);
        assert_eq!(all.first().map(|code| code.value.as_str()), link, "{text:?}");
        if let Some(code) = all.first() {
            let span = code.span.unwrap();
            assert_eq!(&text[span.start as usize..span.end as usize], code.value);
            assert_eq!(code.link_domain_matches_sender, Some(ours));
        }
    }
}

/// Half mebibytes that the search would go back and forth over once for each word or code: hours, not seconds.
#[test]
fn a_search_looks_at_each_place_once() {
    let spaces = " ".repeat(1 << 19);
    let marks = "-".repeat(1 << 19);
    for text in [
        format!("code{spaces}1234"),
        format!("code\n{marks}{}{marks}", "1234 ".repeat(2_000)),
        format!("code {}{marks}", "ABCDEF ".repeat(2_000)),
        format!("{}{spaces}", "passcode: abcdef ".repeat(300)),
        format!("code {}", "1234,".repeat(100_000)),
    ] {
        let found = find::find(&text, &cues::scan(&text).cues, true);
        assert!(found.len() <= 50, "{}", found.len());
    }
    assert_eq!(links::in_text(&"http://".repeat(2 << 20)), []);
    let subject = format!("{}Your code is 583920", " - ".repeat(1_000));
    let raw = format!("Subject: =?utf-8?Q?{}?=\r\n\r\nhello\r\n", subject.replace(' ', "_"));
    let meaning = |raw: &str| {
        let structure = crate::screen::structure(raw.as_bytes());
        crate::screen::meaning(raw.as_bytes(), &structure, crate::screen::Sender::default()).codes
    };
    assert_eq!(meaning(&raw), [], "beyond what anybody reads");
    assert_eq!(meaning("Subject: Your code is 583920\r\n\r\nhello\r\n").len(), 1);
}

/// CVE-2026-26312 and its kin: a text made of cues and numbers costs time in proportion to it.
#[test]
fn a_flood_of_codes_is_bounded() {
    for part in [
        "code 123456 ",
        "code: ",
        "123456\n",
        "https://example.com/verify?token=abcd1234 ",
        "1 2 3 4 ",
        "@a.b #123456\n",
    ] {
        let text = part.repeat(64 * 1024 / part.len());
        assert!(read("code", &text).len() <= MAX_CODES);
        let page = format!("<a href='https://example.com/verify?token={part}'>").repeat(500);
        let texts = Texts { subject: "", text: "", page: Some(&page), is_page: false, sender: None };
        assert!(codes(texts).len() <= MAX_CODES);
    }
}
