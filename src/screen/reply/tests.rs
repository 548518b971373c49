use super::*;

#[test]
fn what_mail_programs_quote_is_left_out() {
    for (text, new) in [
        ("Yes.\n\nOn Sat, 21 Nov 2026 at 03:04, Eve <eve@x.example> wrote:\n> no?\n> really\n", "Yes."),
        ("Yes.\r\n\r\nOn Sat, 21 Nov 2026 at 03:04, Eve\r\n<eve@x.example> wrote:\r\n\r\nno?", "Yes."),
        ("Ja.\n\nAm 21.11.2026 um 03:04 schrieb Eve <eve@x.example>:\n> nein?", "Ja."),
        ("Oui.\n\nLe 21/11/2026 à 03:04, Eve a écrit :\n> non ?", "Oui."),
        ("Yes.\n\n-----Original Message-----\nFrom: Eve\nno?", "Yes."),
        ("Yes.\n\n________________________________\nFrom: Eve\nSent: today\nTo: Ada\n\nno?", "Yes."),
        ("Yes.\n\n*From:* Eve\n*Date:* today\n*To:* Ada\n*Subject:* x\n\nno?", "Yes."),
        ("Yes.\n\nAda\n-- \nAda Lovelace\nAnalyst\n\nOn 1 Jan 2026, Eve wrote:\n> no?", "Yes.\n\nAda"),
        ("Yes.\n\nSent from my iPhone\n\n> On 1 Jan 2026, at 03:04, Eve wrote:\n> no?", "Yes."),
        ("On 1 Jan 2026, Eve wrote:\n> Coming?\n\nYes.\n\n-- \nAda", "Yes."),
    ] {
        assert_eq!(extracted_text(text), new, "{text:?}");
    }
}

#[test]
fn what_is_not_history_stays() {
    for text in [
        "On reflection, here is what I wrote:\nnothing much",
        "On 1 Jan 2026, Eve wrote:\n> Tea?\nYes.\n> Milk?\nNo.",
        "Hi\n> Tea?\nYes please.",
        "From: the cradle\nto the grave: all of it",
        "---------- Forwarded message ---------\nfrom somebody\n\nthe news",
        "> everything is a quote",
    ] {
        let kept = extracted_text(text);
        let want = text.strip_prefix("On 1 Jan 2026, Eve wrote:\n> Tea?\n").unwrap_or(text);
        assert_eq!(kept, want);
    }
    assert_eq!(extracted_text(""), "");
    assert_eq!(extracted_text("  \n"), "");
}

#[test]
fn languages_and_programs() {
    for history in [
        "On Wed, Sep 25, 2013, at 03:57 PM, Eve wrote:\n\nno?",
        "At 6/16/2016 08:32 PM, you wrote:\n>no?",
        "---- On Tue, 22 Dec 2015 14:17:36 +0530 Eve<eve@x.example> wrote ----\n> no?",
        "In message <1@x.example>, Eve writes:\n>no?",
        "Am 03.02.2016 3:35 nachm. schrieb Eve <eve@x.example>:\n\n> nein?",
        "Eve <eve@x.example> schrieb am Fr., 28.\nApr. 2017 um 11:53 Uhr:\n\n> nein?",
        "Le 4 janv. 2016 19:03, \"Eve\" <eve@x.example> a écrit :\n\nnon ?",
        "El jueves, 21 de noviembre de 2013, Eve escribió:\n> ¿no?",
        "Em seg, 27 de jul de 2015 17:13, Eve <eve@x.example> escreveu:\n> não?",
        "Il giorno 26 mar 2016, alle ore 13:16, Eve <eve@x.example> ha scritto:\n> no?",
        "Op 24 aug. 2013 om 16:48 heeft Eve <eve@x.example> het volgende geschreven:\n> nee?",
        "Den 15. jun. 2016 kl. 20.42 skrev Eve <eve@x.example>:\n> nei?",
        "søn. 30. apr. 2017 kl. 00.26 skrev Eve <eve@x.example>:\n> nei?",
        "Dnia 14 lip 2015 o godz. 00:25 Eve <eve@x.example> napisał(a):\n> nie?",
        "23 mar 2017 21:25 \"Eve\" <eve@x.example> napisał(a):\n> nie?",
        "ср, 1 апр. 2015, 18:29, Eve <eve@x.example>:\n> нет?",
        "суббота, 14 марта 2015 г. пользователь Eve написал:\n> нет?",
        "2026年1月1日(木) 3:04 Eve <eve@x.example>:\n> いいえ?",
        "在 2016年12月12日，下午8:45，Eve <eve@x.example> 写道：\n> 不?",
        "2026년 1월 1일 (목) 오전 3:04, Eve <eve@x.example>님이 작성:\n> 아니?",
        "Vào 14:24 8 tháng 6, 2017, Eve <eve@x.example> đã viết:\n> không?",
        "1 Oca 2026 Per 03:04 tarihinde Eve <eve@x.example> şunu yazdı:\n> hayır?",
        "Eve via Forum wrote:\n\nno?",
        "Eve (eve@x.example) wrote:\n\nno?",
        "De : Eve <eve@x.example>\nEnvoyé : jeudi 1 janvier 2026 03:04\nÀ : Ada\nObjet : x\n\nnon ?",
        "De: Eve\nEnviada em: 1 de janeiro\nPara: Ada\nAssunto: x\n\nnão?",
        "发件人: Eve\n发送时间: 2026年1月1日\n收件人: Ada\n主题: x\n\n不?",
        "差出人: Eve\n送信日時: 2026年1月1日\n宛先: Ada\n件名: x\n\nいいえ?",
        "From: eve@x.example\nDate: Wed, 16 May 2012 00:15:02 -0600\n\nno?",
        "------------------ 原始邮件 ------------------\n不?",
        "-------- Weitergeleitete Nachricht --------\nnein?",
        "-----Ursprüngliche Nachricht-----\nVon: Eve\n\nnein?",
        "________________________________\nVon: Eve\nGesendet: heute\n\nnein?",
    ] {
        assert_eq!(
            extracted_text(&format!("Yes, with pleasure.\n\n{history}\n")),
            "Yes, with pleasure.",
            "{history:?}"
        );
        let answered = format!("Yes, with pleasure.\nAda\n{history}\n");
        assert_eq!(extracted_text(&answered), "Yes, with pleasure.\nAda", "{history:?}");
    }
}

#[test]
fn signatures_and_what_phones_add() {
    for (below, kept) in [
        ("-- \nAda Lovelace\n+44 20 7946 0000", false),
        ("--\nAda", false),
        ("Sent from my iPhone", false),
        ("Sent from my Samsung Galaxy smartphone.", false),
        ("Get Outlook for iOS<https://aka.ms/o0ukef>", false),
        ("Sent from [Proton Mail](https://proton.me/) for iOS", false),
        ("Von meinem iPhone gesendet", false),
        ("Diese Nachricht wurde von meinem Android-Gerät mit K-9 Mail gesendet.", false),
        ("Envoyé de mon iPhone", false),
        ("Enviado desde mi iPhone", false),
        ("Enviado do meu iPhone", false),
        ("Inviato da iPhone", false),
        ("Verstuurd vanaf mijn iPhone", false),
        ("Отправлено с iPhone", false),
        ("发自我的iPhone", false),
        ("iPhoneから送信", false),
        ("나의 iPhone에서 보냄", false),
        ("-Ada Lovelace", false),
        ("_______________________________________________\nlist mailing list\nlist@x.example", false),
        ("Sent from my desk, where it is quiet.", true),
        ("- one more thing", true),
        ("---\nYour code: 123456\n---\nValid for ten minutes", true),
        ("________________________________\n\n123456\n\n________________________________\nthanks", true),
        ("Sent by post are the contracts. Please look for them.", true),
    ] {
        let text = format!("Here it is.\n\n{below}");
        assert_eq!(extracted_text(&text) == text, kept, "{below:?}: {:?}", extracted_text(&text));
    }
}

#[test]
fn an_answer_may_stand_anywhere() {
    for (text, new) in [
        // Below the quotation, with a word above it.
        ("Hello\n\nOn 04/19/2011 07:10 AM, Eve wrote:\n\n> no?\nRegards, Ada", "Hello\n\nRegards, Ada"),
        // Between quotations: what is answered stays.
        (
            "Hi,\nOn 1 Jan 2026, Eve wrote:\n> tea?\nyes\n> milk?\nno\n> E.\n",
            "Hi,\n\n> tea?\nyes\n> milk?\nno",
        ),
        // On one line with the attribution.
        ("Yes. On Sat, 21 Nov 2026 at 03:04, Eve <eve@x.example> wrote:\n> no?", "Yes."),
        // Somebody's example.
        (
            "Look:\n```\nOn 1 Jan 2026, Eve wrote:\n> no?\n```\nodd",
            "Look:\n```\nOn 1 Jan 2026, Eve wrote:\n> no?\n```\nodd",
        ),
    ] {
        assert_eq!(extracted_text(text), new);
    }
}

fn page(html: &str) -> (String, String) {
    extracted_page(html).unwrap_or_else(|| (html.to_owned(), "whole".to_owned()))
}

#[test]
fn pages_are_cut_where_programs_put_their_marks() {
    for history in [
        "<div class=\"gmail_quote\">On 1 Jan 2026, Eve wrote:<blockquote>no?</blockquote></div>",
        "<div class='yahoo_quoted' id=yahoo_quoted_1>On 1 Jan, Eve wrote:<div>no?</div></div>",
        "<div id=\"divRplyFwdMsg\"><b>From:</b> Eve<br></div><div>no?</div>",
        "<div style='border:none;border-top:solid #E1E1E1 1.0pt;padding:3.0pt 0in 0in 0in'><p><b>From:</b> Eve</p></div><p>no?</p>",
        "<div class=moz-cite-prefix>Am 1.1.2026 um 03:04 schrieb Eve:</div><blockquote type=cite><p>nein?</p></blockquote>",
        "<hr data-marker=\"__DIVIDER__\"><b>From: </b>Eve<br>no?",
        "<hr><b>From:</b> Eve<br><b>Sent:</b> 1 January 2026<br><b>To:</b> Ada<br><br>no?",
        "<p>On 1 Jan 2026, Eve &lt;eve@x.example&gt; wrote:</p><p>no?</p>",
        "<div>-----Original Message-----<br>From: Eve<br></div>no?",
        "<blockquote>no?</blockquote>",
        "<div class=gmail_signature>-- <br>Ada</div>",
        "<p>Sent from my iPhone</p><blockquote type=cite>On 1 Jan 2026, Eve wrote:<p>no?</blockquote>",
    ] {
        let (html, text) = page(&format!("<p>Yes, with <b>pleasure</b>.</p>{history}"));
        assert_eq!(text, "Yes, with pleasure.", "{history}");
        assert!(html.contains("<p>Yes, with <b>pleasure</b>.</p>"), "{html}");
        assert!(!html.contains("no?") && !html.contains("nein?") && !html.contains("Eve"), "{html}");
        assert!(html.starts_with("<html><head></head><body>") && html.ends_with("</body></html>"), "{html}");
    }
}

#[test]
fn a_page_without_history_stays() {
    for html in [
        "<div class=gmail_quote>---------- Forwarded message ---------<br>From: Eve</div>",
        "<p>one</p><blockquote style=\"margin:0 0 0 40px;border:none;padding:0px\">indented</blockquote><p>two</p>",
        "<p>tea?</p><p>yes</p><blockquote>milk?</blockquote><p>no</p><blockquote>sugar?</blockquote><p>two</p>",
        "<h1>Your code</h1><hr><p>123456</p><hr><p>Valid for ten minutes</p>",
        "",
    ] {
        let (kept, _) = page(html);
        let bare =
            kept.strip_prefix("<html><head></head><body>").and_then(|k| k.strip_suffix("</body></html>"));
        assert_eq!(bare.unwrap_or(&kept), html);
    }
}

/// CVE-2026-26312 and its kin, in HTML: nesting and floods cost time in proportion to the page, and no stack.
#[test]
fn nested_and_endless_pages_are_read() {
    let deep = format!("yes{}On 1 Jan 2026, Eve wrote:<blockquote>no?", "<div><blockquote>".repeat(50_000));
    let (html, _) = page(&deep);
    assert!(html.contains("yes"));
    for part in
        ["<p>", "<a href=\"", "&", "<!--", "<br>", "<blockquote>", "</div>", "<div class=gmail_signature>x"]
    {
        let flood = format!("yes{}", part.repeat(60_000));
        assert!(page(&flood).0.starts_with(['y', '<']));
    }
    let endless = "On 1 Jan 2026, Eve wrote:\n> x\ny\n".repeat(20_000);
    assert!(extracted_text(&endless).len() <= endless.len());
}
