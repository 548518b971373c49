//! What somebody wrote just now, without the history below it and the signature.
//!
//! Conservative: it cuts where a mail program left a mark, and keeps whatever it does not understand. Quotes
//! between answers stay (they say what is answered), forwarded mail stays (it is what is being said), and a
//! text of which nothing would be left stays whole. The full text is always there beside it.

/// Lines that one attribution ("On … wrote:") may be wrapped over.
const ATTRIBUTION_LINES: usize = 4;
/// Attributions looked at; a text with more is no reply.
const MAX_ATTRIBUTIONS: usize = 100;
/// A signature is short; a longer text below `--` is text.
const SIGNATURE_LINES: usize = 16;

/// How the line begins and ends by which mail programs introduce a quotation, in lower case.
const ATTRIBUTIONS: [(&str, &[&str]); 17] = [
    ("on ", &["wrote:", "wrote"]),
    ("am ", &["schrieb:"]),
    ("am ", &[">:"]),
    ("le ", &["a écrit :", "a écrit:", "écrit :"]),
    ("el ", &["escribió:", "escribió :"]),
    ("il ", &["ha scritto:", "scrisse:"]),
    ("op ", &["schreef:", ">:"]),
    ("em ", &["escreveu:"]),
    ("den ", &["skrev:", ">:"]),
    ("w dniu ", &["napisał:", "napisał(a):", "pisze:"]),
    ("dnia ", &["napisał:", "napisał(a):"]),
    ("dne ", &["napsal:", "napsal(a):"]),
    ("в ", &["писал:", "пишет:", "написал:", "написал(а):"]),
    ("", &["写道：", "写道:", "のメール:", "wrote:", "skrev:", "пише:", "пишет:", "написал:", "написала:"]),
    ("", &["schrieb:", "schreef:", "a écrit :", "escribió:", "ha scritto:"]),
    ("pada ", &["menulis:"]),
    ("tarihinde ", &["yazdı:"]),
];

/// What stands between the dashes of a separator.
const SEPARATORS: [&str; 12] = [
    "original message",
    "original-nachricht",
    "ursprüngliche nachricht",
    "originalnachricht",
    "message d'origine",
    "message original",
    "mensaje original",
    "messaggio originale",
    "oorspronkelijk bericht",
    "ursprungligt meddelande",
    "oprindelig meddelelse",
    "mensagem original",
];

/// The fields of the header that Outlook writes above what it quotes.
const HEADERS: [&str; 39] = [
    "from",
    "sent",
    "to",
    "cc",
    "subject",
    "date",
    "reply-to",
    "von",
    "gesendet",
    "an",
    "betreff",
    "datum",
    "de",
    "envoyé",
    "à",
    "objet",
    "enviado",
    "para",
    "asunto",
    "assunto",
    "da",
    "inviato",
    "a",
    "oggetto",
    "van",
    "verzonden",
    "aan",
    "onderwerp",
    "från",
    "skickat",
    "till",
    "ämne",
    "fra",
    "emne",
    "sendt",
    "til",
    "от",
    "кому",
    "тема",
];
/// Those that such a header begins with.
const FIRST_HEADERS: [&str; 9] = ["from", "date", "von", "de", "da", "van", "från", "fra", "от"];

/// What phones and their like add below.
const FOOTERS: [&str; 10] = [
    "sent from my ",
    "sent from mail for ",
    "sent from outlook",
    "get outlook for ",
    "von meinem ",
    "gesendet von ",
    "envoyé de mon ",
    "enviado desde mi ",
    "inviato da ",
    "verzonden vanaf ",
];

/// The new text of a reply.
pub fn extracted_text(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let lines = without_leading_quote(&lines);
    let mut kept = lines.get(..history_at(lines)).unwrap_or(lines);
    kept = trimmed(without_tail_quote(kept));
    kept = trimmed(without_signature(kept));
    kept = trimmed(without_footer(kept));
    if kept.is_empty() {
        return text.trim().to_owned();
    }
    kept.join("\n")
}

fn trimmed<'a, 't>(lines: &'a [&'t str]) -> &'a [&'t str] {
    let start = lines.iter().position(|line| !line.trim().is_empty()).unwrap_or(lines.len());
    let end = lines.iter().rposition(|line| !line.trim().is_empty()).map_or(start, |last| last + 1);
    lines.get(start..end).unwrap_or_default()
}

fn is_quoted(line: &str) -> bool {
    line.trim_start().starts_with('>')
}

/// Where the history begins: at the first mark of a mail program that is followed by nothing but it.
fn history_at(lines: &[&str]) -> usize {
    let mut attributions = 0;
    for at in 0..lines.len() {
        // Looking at what follows each of them would take quadratic time in a text made for that.
        if attributions > MAX_ATTRIBUTIONS {
            break;
        }
        if is_separator(lines, at) || is_header_block(lines, at) {
            return at;
        }
        if let Some(len) = attribution(lines, at) {
            attributions += 1;
            let rest = lines.get(at + len..).unwrap_or_default();
            // Quoted lines and then text: answers between quotes, or below one.
            let mut quotes = rest.iter().filter(|line| !line.trim().is_empty());
            let quoted = quotes.clone().next().is_some_and(|line| is_quoted(line));
            if !quoted || quotes.all(|line| is_quoted(line)) || only_signature_follows(rest) {
                return at;
            }
        }
    }
    lines.len()
}

/// After the quotation there is at most a signature.
fn only_signature_follows(lines: &[&str]) -> bool {
    let last = lines.iter().rposition(|line| is_quoted(line)).map_or(0, |last| last + 1);
    let rest = trimmed(lines.get(last..).unwrap_or_default());
    let contiguous =
        lines.get(..last).unwrap_or_default().iter().all(|line| is_quoted(line) || line.trim().is_empty());
    contiguous && rest.first().is_none_or(|line| is_signature_mark(line)) && rest.len() <= SIGNATURE_LINES
}

/// Bottom posting: the text begins with a quotation and its attribution, the answer stands below.
fn without_leading_quote<'a, 't>(lines: &'a [&'t str]) -> &'a [&'t str] {
    let lines = trimmed(lines);
    let intro = attribution(lines, 0).unwrap_or(0);
    let body = lines.get(intro..).unwrap_or_default();
    let quoted = body.iter().take_while(|line| is_quoted(line) || line.trim().is_empty()).count();
    let rest = body.get(quoted..).unwrap_or_default();
    let has_quote = body.iter().take(quoted).any(|line| is_quoted(line));
    let is_reply = rest.first().is_some_and(|line| !is_signature_mark(line));
    if has_quote && is_reply { rest } else { lines }
}

/// How many lines from `at` on are an attribution.
fn attribution(lines: &[&str], at: usize) -> Option<usize> {
    let first = lines.get(at)?.trim();
    if first.is_empty() || is_quoted(first) {
        return None;
    }
    let mut joined = String::new();
    for len in 1..=ATTRIBUTION_LINES {
        let line = lines.get(at + len - 1)?.trim().trim_matches('*');
        if line.is_empty() || is_quoted(line) || joined.len() + line.len() > 600 {
            return None;
        }
        if !joined.is_empty() {
            joined.push(' ');
        }
        joined.push_str(line);
        if !line.ends_with([':', '：', '>']) && !line.ends_with("wrote") {
            continue;
        }
        let joined = joined.to_lowercase().replace('\u{a0}', " ");
        let named = |start: &str, ends: &[&str]| {
            joined.starts_with(start)
                && ends.iter().any(|end| joined.ends_with(end))
                // Without an opening word only a whole line with a date or an address counts.
                && has_date_or_address(&joined)
                && (!start.is_empty() || len == 1 || (len == 2 && has_date_or_address(first)))
        };
        if ATTRIBUTIONS.iter().any(|(start, ends)| named(start, ends)) || is_dated_address(&joined) {
            return Some(len);
        }
    }
    None
}

/// "2016-03-03 17:21 GMT+01:00 Some One <one@x.example>:", which Gmail wrote in many languages; and
/// "One <one@x.example> schrieb am Fr., 28. Apr. 2017 um 11:53 Uhr:".
fn is_dated_address(line: &str) -> bool {
    let date = line.get(..5).is_some_and(|start| {
        start.bytes().take(4).all(|octet| octet.is_ascii_digit()) && start.ends_with(['-', '/'])
    });
    let address = line.contains('<') && line.contains('@');
    let verb = ["schrieb am ", "написал", "wrote on "].iter().any(|verb| line.contains(verb));
    address && ((date && line.ends_with([':', '>'])) || (verb && line.ends_with(':')))
}

fn has_date_or_address(text: &str) -> bool {
    text.contains('@') || text.bytes().filter(u8::is_ascii_digit).count() >= 3
}

/// `-----Original Message-----` and its translations; a line of underscores above a header block.
fn is_separator(lines: &[&str], at: usize) -> bool {
    let line = lines.get(at).map_or("", |line| line.trim());
    let inner = line.trim_matches(|c: char| matches!(c, '-' | '_' | '*') || c.is_whitespace());
    if inner.len() + 4 <= line.len() && SEPARATORS.contains(&inner.to_lowercase().as_str()) {
        return true;
    }
    let rule = line.len() >= 8 && line.bytes().all(|octet| octet == b'_');
    rule && (at + 1..at + 3).any(|next| is_header_block(lines, next))
}

/// `From:` and at least two more such fields right below.
fn is_header_block(lines: &[&str], at: usize) -> bool {
    let field = |line: &&str| {
        let line = line.trim().trim_start_matches('*');
        let (name, value) = line.split_once(':')?;
        // `*From:* Ada` and `Subject : x` occur.
        let name = name.trim().trim_matches('*').to_lowercase();
        let short = name.chars().count() <= 12 && !value.starts_with("//");
        (short && HEADERS.contains(&name.as_str())).then_some(name)
    };
    let Some(first) = lines.get(at).and_then(field) else { return false };
    if !FIRST_HEADERS.contains(&first.as_str()) {
        return false;
    }
    let below = lines.get(at + 1..).unwrap_or_default().iter().take(6);
    below.filter(|line| field(line).is_some()).count() >= 2
}

fn without_tail_quote<'a, 't>(lines: &'a [&'t str]) -> &'a [&'t str] {
    let end =
        lines.iter().rposition(|line| !is_quoted(line) && !line.trim().is_empty()).map_or(0, |last| last + 1);
    lines.get(..end).unwrap_or_default()
}

/// RFC 3676 §4.3: dash, dash, space; the space is often lost.
fn is_signature_mark(line: &str) -> bool {
    matches!(line.trim_end(), "--" | "—")
}

fn without_signature<'a, 't>(lines: &'a [&'t str]) -> &'a [&'t str] {
    match lines.iter().rposition(|line| is_signature_mark(line)) {
        Some(mark) if lines.len() - mark <= SIGNATURE_LINES => lines.get(..mark).unwrap_or_default(),
        _ => lines,
    }
}

fn without_footer<'a, 't>(lines: &'a [&'t str]) -> &'a [&'t str] {
    let Some((last, above)) = lines.split_last() else { return lines };
    let lower = last.trim().to_lowercase();
    if lower.chars().count() <= 60
        && !lower.contains(',')
        && FOOTERS.iter().any(|footer| lower.starts_with(footer))
    {
        above
    } else {
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::extracted_text;

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
            "FYI\n\n---------- Forwarded message ---------\nfrom somebody\n\nthe news",
            "> everything is a quote",
        ] {
            let kept = extracted_text(text);
            let want = text.strip_prefix("On 1 Jan 2026, Eve wrote:\n> Tea?\n").unwrap_or(text);
            assert_eq!(kept, want);
        }
        assert_eq!(extracted_text(""), "");
        assert_eq!(extracted_text("  \n"), "");
    }
}
