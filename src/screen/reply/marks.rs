//! Marks that mail programs leave: what each says about the lines it stands on.
//!
//! All of them look at a bounded number of lines of bounded length, so that a text is read in linear time.

use super::words::{
    DATE, FORWARDED, FROM, FROM_SENT, ON, ORIGINAL, OTHER_FIELDS, SENT_FROM, WROTE, WROTE_INSIDE,
};

/// Lines that one attribution ("On … wrote:") may be wrapped over.
const ATTRIBUTION_LINES: usize = 5;
/// Octets of an attribution; a longer line is somebody's sentence.
const ATTRIBUTION_OCTETS: usize = 500;
/// Characters after `On ` in which a date begins: `On Wednesday, September 25`.
const DATE_WITHIN: usize = 26;
/// Lines below the first field of a quoted header that may hold the others.
const HEADER_LINES: usize = 10;
/// Characters of a line that a phone adds.
const FOOTER_CHARS: usize = 100;

pub(super) fn is_blank(line: &str) -> bool {
    line.chars().all(|c| c.is_whitespace() || is_invisible(c))
}

/// Marks of direction and width, which Outlook and Gmail put into dates and headers.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{ad}')
}

pub(super) fn is_quoted(line: &str) -> bool {
    line.trim_start().starts_with('>')
}

/// `Ada> text` and `A> text`: quoted under the author's name or initials.
pub(super) fn is_quoted_by_name(line: &str) -> bool {
    let Some((name, rest)) = line.trim_start().split_once('>') else { return false };
    let named = (1..=12).contains(&name.len()) && name.bytes().all(|octet| octet.is_ascii_alphabetic());
    named && (rest.is_empty() || rest.starts_with([' ', '>']))
}

/// In one form to compare: lower case, one space between words.
fn folded(text: &str) -> String {
    let visible: String = text.chars().filter(|c| !is_invisible(*c)).collect();
    visible.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn digits(text: &str) -> usize {
    text.chars().filter(|c| c.is_numeric()).count()
}

/// How many lines from `at` on are an attribution.
pub(super) fn attribution(lines: &[&str], at: usize) -> Option<usize> {
    let first = lines.get(at)?;
    if is_blank(first) || is_quoted(first) {
        return None;
    }
    // What is wrapped begins on its first line: with a date, an address, or the word before them.
    let wraps = first.len() <= ATTRIBUTION_OCTETS && {
        let first = folded(first);
        let first = first.trim_start_matches(['-', '<', '*', '_', ' ']);
        first.contains(['@', '<'])
            || dated_from_the_start(first)
            || ON.iter().any(|on| first.starts_with(on.trim_end()))
    };
    let mut joined = String::new();
    for (nth, line) in lines.get(at..)?.iter().take(ATTRIBUTION_LINES).enumerate() {
        // What continues an attribution may be quoted: some programs quote before they wrap.
        let line = line.trim();
        let line = if nth > 0 { line.trim_start_matches('>').trim_start() } else { line };
        if line.is_empty() || joined.len() + line.len() > ATTRIBUTION_OCTETS {
            return None;
        }
        if nth > 0 {
            joined.push(' ');
        }
        joined.push_str(line);
        if may_end_attribution(line) && is_attribution(&folded(&joined), nth == 0) {
            return Some(nth + 1);
        }
        if !wraps {
            return None;
        }
    }
    None
}

/// Where an attribution begins in the middle of a line: `Yes. On 1 Jan 2026, Eve <eve@x.example> wrote:`
pub(super) fn attribution_inside(line: &str) -> Option<usize> {
    if line.len() > ATTRIBUTION_OCTETS || !line.contains('@') || !may_end_attribution(line) {
        return None;
    }
    let at = line.match_indices(" On ").map(|(at, _)| at).last()?;
    let tail = line.get(at + 1..)?;
    (digits(tail) >= 5 && is_attribution(&folded(tail), true)).then_some(at)
}

fn may_end_attribution(line: &str) -> bool {
    let line = line.trim_end_matches(['-', '*', ' ', '_']);
    line.ends_with([':', '：', '>', ')']) || {
        let end = line.char_indices().rev().nth(24).map_or(0, |(at, _)| at);
        let end = folded(line.get(end..).unwrap_or(line));
        WROTE.iter().any(|verb| end.trim_end_matches('.').ends_with(verb)) || iso_date(&folded(line))
    }
}

fn is_attribution(line: &str, on_one_line: bool) -> bool {
    let line = line.trim_start_matches(['-', '<', '*', '_', ' ']);
    let body = line.trim_end_matches(['-', '*', '_', ' ', '.', ':', '：', '>', ',']);
    let address = line.contains('@');
    let dated = dated_from_the_start(line);
    let on = ON.iter().find_map(|on| line.strip_prefix(on));
    let on_date = on.is_some_and(|rest| {
        let near: String = rest.chars().take(DATE_WITHIN).collect();
        (digits(&near) > 0 && digits(line) >= 3) || (address && digits(line) >= 3)
    });
    let colon = line.ends_with([':', '：']) || line.ends_with(":*");
    if let Some(before) = WROTE.iter().find_map(|verb| body.strip_suffix(verb)) {
        let word_ends = before.ends_with([' ', '>', '"', ')', '-', ',', '）'])
            || before.chars().last().is_some_and(|c| !c.is_ascii());
        let via = before.contains(" via ") && on_one_line;
        let strong = on_date || dated || (colon && on_one_line && year(line));
        return word_ends && (strong || (address && (colon || on_one_line)) || (via && colon));
    }
    let inside = WROTE_INSIDE.iter().any(|verb| line.contains(verb));
    if inside && colon && (on_date || dated || (address && digits(line) >= 3)) {
        return true;
    }
    if iso_date(line) {
        return true;
    }
    // "2016-03-03 17:21 GMT+01:00 Eve <eve@x.example>:", which Gmail wrote in many languages.
    let in_brackets = address && line.contains('<') && (line.ends_with('>') || line.ends_with(">:"));
    in_brackets && dated
}

/// "2016-03-03 17:21 GMT+01:00 Some One", with no more behind it.
fn iso_date(line: &str) -> bool {
    let Some((date, rest)) = line.split_once(" gmt") else { return false };
    let shape: String = date.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    let zone =
        rest.trim_start_matches(['+', '-', ':']).trim_start_matches(|c: char| c.is_ascii_digit() || c == ':');
    matches!(shape.as_str(), "0000-00-00 00:00" | "0000-00-00 0:00")
        && !zone.contains(|c: char| c.is_ascii_digit())
        && zone.split_whitespace().count() <= 5
}

/// A date near the beginning: five digits or more among the first words, one of them very early.
fn dated_from_the_start(line: &str) -> bool {
    let near: String = line.chars().take(45).collect();
    let first: String = line.chars().take(14).collect();
    let name = near.find(['<', '"', '@']).unwrap_or(near.len());
    digits(&first) > 0 && digits(near.get(..name).unwrap_or(&near)) >= 5
}

fn year(line: &str) -> bool {
    let mut run = String::new();
    line.chars().chain([' ']).any(|c| {
        if c.is_ascii_digit() {
            run.push(c);
            false
        } else {
            let found = run.len() == 4 && (run.starts_with("19") || run.starts_with("20"));
            run.clear();
            found
        }
    })
}

/// A line directly above a quotation introduces it in any language: it ends with a colon, and gives a date or
/// an address.
pub(super) fn introduces(line: &str) -> bool {
    let line = line.trim();
    line.len() <= ATTRIBUTION_OCTETS
        && line.ends_with([':', '：'])
        && !is_quoted(line)
        && (digits(line) >= 5 || (line.contains('@') && line.contains('<')))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Separator {
    Original,
    Forwarded,
}

/// `-----Original Message-----`, `Begin forwarded message:` and their translations.
pub(super) fn separator(line: &str) -> Option<Separator> {
    let line = line.trim().trim_start_matches(['>', ' ']);
    if line.len() > 200 {
        return None;
    }
    let inner =
        line.trim_matches(|c: char| matches!(c, '-' | '_' | '*' | '=' | '—' | '–') || c.is_whitespace());
    let dashed = inner.len() + 4 <= line.len();
    let word = folded(inner.trim_end_matches([':', '：', ' ']));
    if dashed && ORIGINAL.contains(&word.as_str()) {
        return Some(Separator::Original);
    }
    let alone = inner.ends_with([':', '：']);
    if (dashed || alone) && FORWARDED.contains(&word.as_str()) {
        return Some(Separator::Forwarded);
    }
    // `---- Forwarded by Eve on 1.1.2026 ----`, Lotus Notes.
    (dashed && word.starts_with("forwarded by ")).then_some(Separator::Forwarded)
}

/// What stands above a header.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Above {
    Text,
    Rule,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    From,
    Date,
    Other,
}

fn field(line: &str) -> Option<(Field, &str)> {
    let line = line.trim().trim_start_matches(['*', '|', ' ']);
    let (name, value) = line.split_once([':', '：'])?;
    // `*From:* Ada` and `Subject : x` occur.
    let name = folded(name.trim_matches(['*', '_', ' ', '\u{a0}']));
    if name.is_empty() || name.chars().count() > 20 || value.starts_with("//") {
        return None;
    }
    let value = value.trim_matches(['*', ' ', '\u{a0}']);
    match name.as_str() {
        name if FROM.contains(&name) => Some((Field::From, value)),
        name if DATE.contains(&name) => Some((Field::Date, value)),
        name if OTHER_FIELDS.contains(&name) => Some((Field::Other, value)),
        _ => None,
    }
}

/// A header as Outlook writes it above what it quotes: `From:` or a date, and two more fields below; one is
/// enough where the two are an address and a date, or a rule stands above.
pub(super) fn header_block(lines: &[&str], at: usize, above: Above) -> bool {
    let Some((first, value)) = lines.get(at).and_then(|line| field(line)) else { return false };
    if first == Field::Other || value.is_empty() {
        return false;
    }
    let dated = |kind: Field, value: &str| kind == Field::Date && digits(value) >= 3;
    let addressed = |kind: Field, value: &str| kind == Field::From && value.contains('@');
    let (mut date, mut address) = (dated(first, value), addressed(first, value));
    let mut fields = 1;
    let below = lines.get(at + 1..).unwrap_or_default().iter().take(HEADER_LINES);
    for (nth, line) in below.filter(|line| !is_blank(line)).enumerate() {
        if let Some((kind, value)) = field(line) {
            fields += 1;
            date |= dated(kind, value) && nth == 0;
            address |= addressed(kind, value) && nth == 0;
        } else if nth > fields {
            // Two lines that are no field: a value is wrapped over one at most.
            break;
        }
    }
    fields >= 3 || (date && address) || (above == Above::Rule && fields >= 2)
}

/// A whole header on one line, as HTML without line breaks gives it: `From: a@b.example Date: …`.
pub(super) fn header_line(line: &str) -> bool {
    let Some((Field::From | Field::Date, _)) = field(line) else { return false };
    let line = folded(line);
    line.len() <= ATTRIBUTION_OCTETS
        && line.contains('@')
        && digits(&line) >= 5
        && [" date:", " sent:", " from:", " to:", " subject:"].iter().any(|name| line.contains(name))
}

/// A line of underscores or dashes that stands right above a quoted header.
pub(super) fn is_rule(line: &str) -> bool {
    let line = line.trim();
    line.len() >= 5 && line.chars().all(|c| matches!(c, '_' | '-' | '=' | '*' | '—' | '–' | '═'))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delimiter {
    /// RFC 3676 §4.3: dash, dash, space (the space is often lost).
    Signature,
    /// Underscores, which lists put above their footer.
    Footer,
    /// Any other rule across the text.
    Rule,
}

pub(super) fn delimiter(line: &str) -> Option<Delimiter> {
    let line = line.trim();
    if line.is_empty() || !line.chars().all(|c| "-_,=+~#*ᐧ—–".contains(c)) {
        return None;
    }
    let underscores = line.len() >= 2 && line.bytes().all(|octet| octet == b'_');
    match line {
        "--" | "—" | "––" | "ᐧ" => Some(Delimiter::Signature),
        _ if underscores => Some(Delimiter::Footer),
        _ if line.chars().count() >= 3 => Some(Delimiter::Rule),
        _ => None,
    }
}

/// `-Ada` and `-Ada Lovelace`: a name in place of a signature. Dashes of lists have a space behind them.
pub(super) fn is_signed(line: &str) -> bool {
    let Some(name) = line.trim().strip_prefix('-') else { return false };
    let words: Vec<&str> = name.split_whitespace().collect();
    let is_name = |word: &&str| {
        word.starts_with(char::is_uppercase) && word.chars().all(|c| c.is_alphabetic() || c == '.')
    };
    (1..=3).contains(&words.len()) && name.starts_with(char::is_uppercase) && words.iter().all(is_name)
}

/// "Sent from my …" and the like.
pub(super) fn is_footer(line: &str) -> bool {
    let shown = without_links(line);
    let line = folded(shown.trim_matches(['(', ')', '<', '>', '*', '_', '[', ']', ' ']));
    if line.is_empty() || line.chars().count() > FOOTER_CHARS {
        return false;
    }
    let words = line.split_whitespace().count();
    let says = SENT_FROM.iter().any(|start| line.starts_with(start))
        || FROM_SENT
            .iter()
            .any(|end| line.trim_end_matches(['.', '。']).ends_with(end) && line.len() > end.len());
    // A sentence that begins so goes on after a comma, or runs long.
    let sentence = line.contains(", ") || line.trim_end_matches('.').contains(". ");
    says && !sentence && words <= 10
}

/// `Outlook<https://…>`, `Outlook <https://…>` and `[Outlook](https://…)` as they are shown.
fn without_links(line: &str) -> String {
    let mut shown = String::with_capacity(line.len().min(512));
    let mut rest = line.get(..line.floor_char_boundary(512)).unwrap_or_default();
    while let Some(at) = rest.find(['<', '(', '[', ']']) {
        let (text, link) = rest.split_at(at);
        shown.push_str(text);
        let body = link.get(1..).unwrap_or_default();
        let is_link = ["http://", "https://", "mailto:"].iter().any(|scheme| body.starts_with(scheme));
        let end = if is_link { body.find(['>', ')']).map(|end| end + 1) } else { None };
        rest = body.get(end.unwrap_or(0)..).unwrap_or_default();
        if !is_link && !link.starts_with(['[', ']']) {
            shown.push_str(link.get(..1).unwrap_or_default());
        }
    }
    shown.push_str(rest);
    shown
}
