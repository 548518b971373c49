//! Codes in a text: something that looks like one, beside words that announce one.
//!
//! Order numbers, telephone numbers, dates, prices and years look like codes too; without a word that announces
//! a code next to it, or with one that announces something else, nothing is one.

use super::cues::Cue;

/// Things that look like codes, of which so many are looked at.
const MAX_CANDIDATES: usize = 2_000;
/// Codes given of one text.
const MAX_FOUND: usize = 50;
/// Octets of the longest thing that is looked at as a code.
const LONGEST: usize = 24;
/// Octets on one line between a code and the words that announce it.
const NEAR: usize = 80;
/// Lines with text between them, where the code has a line for itself.
const LINES_ABOVE: usize = 4;
const LINES_BELOW: usize = 2;

/// A code where it stands in the text.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Found {
    pub value: String,
    pub start: usize,
    pub end: usize,
    pub confidence: f64,
    /// `@example.com #123456`, the form that names the domain it is for.
    pub domain: Option<String>,
}

/// Something of the shape of a code.
#[derive(Debug, Clone)]
struct Candidate {
    value: String,
    start: usize,
    end: usize,
    shape: Shape,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Digits,
    /// Letters in capitals and digits.
    Mixed,
    /// Letters alone: a code only directly behind the words that announce it.
    Letters,
}

/// Codes of a text with these cues, each once, the surest first. `announced`: the subject speaks of a code.
pub(super) fn find(text: &str, cues: &[Cue], announced: bool) -> Vec<Found> {
    if cues.is_empty() && !announced {
        return Vec::new();
    }
    let lines = Lines::of(text);
    let mut found: Vec<Found> = Vec::new();
    for candidate in candidates(text, &lines, cues) {
        let domain = bound_domain(text, candidate.start);
        let judged =
            if domain.is_some() { Some(0.97) } else { judge(text, &lines, cues, &candidate, announced) };
        let Some(confidence) = judged else { continue };
        let Candidate { value, start, end, .. } = candidate;
        match found.iter_mut().find(|known| known.value == value) {
            Some(known) if known.confidence < confidence => {
                let domain = domain.or(known.domain.take());
                *known = Found { value, start, end, confidence, domain };
            }
            Some(known) => known.domain = known.domain.take().or(domain),
            None => found.push(Found { value, start, end, confidence, domain }),
        }
    }
    found.sort_by(|a, b| b.confidence.total_cmp(&a.confidence).then(a.start.cmp(&b.start)));
    // Where one is announced directly, others that merely stand near it are something else.
    let best = found.first().map_or(0.0, |best| best.confidence);
    found.retain(|one| one.confidence + 0.2 >= best);
    found.truncate(MAX_FOUND);
    found
}

/// Lines of the text, blank ones left out.
struct Lines(Vec<(usize, usize)>);

impl Lines {
    fn of(text: &str) -> Lines {
        let mut at = 0;
        let mut lines = Vec::new();
        for line in text.split_inclusive('\n') {
            if !line.trim().is_empty() {
                lines.push((at, at + line.len()));
            }
            at += line.len();
        }
        Lines(lines)
    }

    fn number(&self, at: usize) -> usize {
        self.0.partition_point(|(_, end)| *end <= at)
    }

    fn bounds(&self, at: usize) -> Option<(usize, usize)> {
        self.0.get(self.number(at)).copied()
    }

    fn line<'t>(&self, text: &'t str, at: usize) -> &'t str {
        self.bounds(at).and_then(|(start, end)| text.get(start..end)).unwrap_or_default()
    }
}

fn is_link_part(word: &str) -> bool {
    word.contains("://") || word.contains("www.") || word.contains('@')
}

/// Everything that has the shape of a code, on lines where there may be one; what stands in addresses has not.
fn candidates(text: &str, lines: &Lines, cues: &[Cue]) -> Vec<Candidate> {
    let mut found = Vec::new();
    for &(start, end) in &lines.0 {
        let line = text.get(start..end).unwrap_or_default();
        if may_hold_a_code(line, start, cues) {
            in_line(text, line, start, &mut found);
        }
        if found.len() >= MAX_CANDIDATES {
            break;
        }
    }
    found
}

/// Most lines of most mail are prose, and need not be taken apart: `judge` finds a code beside a cue on the same line,
/// or alone on its line, and `bound_domain` behind a `#`.
fn may_hold_a_code(line: &str, start: usize, cues: &[Cue]) -> bool {
    let ends_here = cues.partition_point(|cue| cue.end <= start);
    let cued = cues.get(ends_here).is_some_and(|cue| cue.start < start + line.len());
    cued || is_short(line) || memchr::memchr(b'#', line.as_bytes()).is_some()
}

/// Whether a code could be all that the line says: the longest has 24 octets (`spaced`), and what stands around it
/// is not counted.
fn is_short(line: &str) -> bool {
    let said = line.trim_matches(|c: char| !c.is_alphanumeric());
    said.len() <= LONGEST
}

fn in_line(text: &str, line: &str, line_at: usize, found: &mut Vec<Candidate>) {
    let mut at = line_at;
    for word in line.split_inclusive(|c: char| c.is_whitespace()) {
        let start = at;
        at += word.len();
        // `123 456` and `1 2 3 4 5 6` are more than one word.
        if let Some(spaced) = spaced(text, start) {
            found.push(spaced);
            continue;
        }
        if !is_link_part(word) {
            in_word(text, word, start, found);
        }
        if found.len() >= MAX_CANDIDATES {
            break;
        }
    }
}

/// Runs of ASCII letters, digits and inner hyphens of a word, other alphabets around them.
fn in_word(text: &str, word: &str, word_at: usize, found: &mut Vec<Candidate>) {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let mut rest = word;
    let mut at = word_at;
    while let Some(skip) = rest.find(|c: char| c.is_ascii_alphanumeric())
        && found.len() < MAX_CANDIDATES
    {
        let run = rest.get(skip..).unwrap_or_default();
        let len = run.find(|c: char| !is_part(c)).unwrap_or(run.len());
        let run = run.get(..len).unwrap_or_default().trim_end_matches('-');
        let start = at + skip;
        if let Some((value, shape)) = shape(run)
            && !continues(text, start, start + run.len())
            && (shape == Shape::Digits || is_whole_word(text, start, start + run.len()))
        {
            found.push(Candidate { value, start, end: start + run.len(), shape });
        }
        at = start + len;
        rest = rest.get(skip + len..).unwrap_or_default();
    }
}

/// Letters of another alphabet make it a part of a word: `Best` in `Bestätigung`.
fn is_whole_word(text: &str, start: usize, end: usize) -> bool {
    let before = text.get(..start).and_then(|text| text.chars().next_back());
    let after = text.get(end..).and_then(|text| text.chars().next());
    ![before, after].into_iter().flatten().any(|c| c.is_alphabetic() && c < '\u{2e80}')
}

fn shape(run: &str) -> Option<(String, Shape)> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_digit());
    if digits(run) {
        return (4..=8).contains(&run.len()).then(|| (run.to_owned(), Shape::Digits));
    }
    let parts: Vec<&str> = run.split('-').collect();
    if parts.len() > 1 {
        if parts.iter().all(|part| digits(part)) {
            let lens: Vec<usize> = parts.iter().map(|part| part.len()).collect();
            let grouped = matches!(lens.as_slice(), [3, 3] | [4, 4] | [2, 2, 2]);
            return grouped.then(|| (parts.concat(), Shape::Digits));
        }
        // `G-315643`: the letter is not typed in.
        if let [letter, number] = parts.as_slice()
            && letter.len() == 1
            && digits(number)
            && (4..=8).contains(&number.len())
        {
            return Some(((*number).to_owned(), Shape::Digits));
        }
        // `ABCD-1234`, `XK4-9QT`: typed in as it stands.
        let capital = |part: &&str| {
            (3..=5).contains(&part.len())
                && part.bytes().all(|o| o.is_ascii_uppercase() || o.is_ascii_digit())
        };
        let mixed = run.bytes().any(|o| o.is_ascii_digit()) || parts.len() == 2;
        return (parts.len() <= 3 && parts.iter().all(capital) && mixed)
            .then(|| (run.to_owned(), Shape::Mixed));
    }
    let letters = run.bytes().filter(u8::is_ascii_alphabetic).count();
    if letters == run.len() {
        return (5..=8).contains(&run.len()).then(|| (run.to_owned(), Shape::Letters));
    }
    (4..=10).contains(&run.len()).then(|| (run.to_owned(), Shape::Mixed))
}

/// `123 456`, `1 2 3 4 5 6`, alone on their line or before its end.
fn spaced(text: &str, at: usize) -> Option<Candidate> {
    let head = text.get(at..)?;
    // `**123 456**`
    let open = head.bytes().take(3).take_while(u8::is_ascii_punctuation).count();
    let (at, head) = (at + open, head.get(open..)?);
    if !head.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let line = head.get(..head.floor_char_boundary(LONGEST))?.split('\n').next()?;
    let end = line.find(|c: char| !(c.is_ascii_digit() || c == ' ')).unwrap_or(line.len());
    let run = line.get(..end)?.trim_end();
    let parts: Vec<&str> = run.split(' ').collect();
    let lens: Vec<usize> = parts.iter().map(|part| part.len()).collect();
    let grouped = matches!(lens.as_slice(), [3, 3] | [4, 4]);
    let single = (4..=8).contains(&lens.len()) && lens.iter().all(|len| *len == 1);
    if !grouped && !single {
        return None;
    }
    // However many spaces stand before it, they stand before this number alone.
    let before = text.get(..at).unwrap_or_default().trim_end_matches(' ').chars().next_back();
    let apart = !before.is_some_and(|c| c.is_ascii_digit() || c == '+');
    let end = at + run.len();
    (apart && !continues(text, at, end)).then(|| Candidate {
        value: parts.concat(),
        start: at,
        end,
        shape: Shape::Digits,
    })
}

/// Whether the number goes on before or after: `1,234.50`, `12:30`, `+49 123456`, `2026/11`, `12345%`.
fn continues(text: &str, start: usize, end: usize) -> bool {
    let mut before = text.get(..start).unwrap_or_default().chars().rev();
    let mut after = text.get(end..).unwrap_or_default().chars();
    let (last, next) = (before.next(), after.next());
    let money = |c: char| matches!(c, '$' | '€' | '£' | '¥' | '￥' | '₹' | '₽' | '₩' | '₺');
    let joins = |c: char| matches!(c, '.' | ',' | ':' | '/' | '-' | '\'' | '+' | '_' | '\\' | '=' | '&');
    let joined_before = last.is_some_and(|c| {
        c == '+' || money(c) || c == '_' || (joins(c) && before.next().is_some_and(|c| c.is_ascii_digit()))
    });
    let joined_after = next.is_some_and(|c| {
        money(c)
            || matches!(c, '%' | '_')
            || (joins(c) && after.next().is_some_and(|c| c.is_ascii_alphanumeric()))
    });
    let priced = last == Some(' ') && before.next().is_some_and(money);
    joined_before || joined_after || priced
}

/// Words behind a number that make it an amount.
const UNITS: [&str; 30] = [
    "usd", "eur", "gbp", "jpy", "chf", "cad", "aud", "inr", "rub", "kr", "dollars", "euros", "euro", "円",
    "元", "원", "руб", "zł", "minutes", "minuten", "min", "hours", "days", "people", "users", "points",
    "miles", "km", "kb", "mb",
];

/// Words before a number that make it another one.
const OTHER_NUMBERS: [&str; 43] = [
    "order",
    "invoice",
    "ticket",
    "case",
    "ref",
    "reference",
    "account",
    "acct",
    "customer",
    "tracking",
    "booking",
    "reservation",
    "ending in",
    "ending",
    "number",
    "no.",
    "nr.",
    "nr",
    "id",
    "phone",
    "tel",
    "call",
    "fax",
    "since",
    "copyright",
    "©",
    "(c)",
    "in",
    "page",
    "room",
    "flight",
    "bestellung",
    "rechnung",
    "commande",
    "facture",
    "pedido",
    "factura",
    "заказ",
    "订单",
    "注文番号",
    "注文",
    "version",
    "po box",
];

/// How sure it is that this is the code that is announced; `None` where it is none.
fn judge(text: &str, lines: &Lines, cues: &[Cue], candidate: &Candidate, announced: bool) -> Option<f64> {
    let next = cues.partition_point(|cue| cue.start < candidate.end);
    let above = next.checked_sub(1).and_then(|at| cues.get(at)).filter(|cue| cue.end <= candidate.start);
    let below = cues.get(next);
    let direct = above.and_then(|cue| directly_behind(text, cue, candidate));
    let before = below.and_then(|cue| directly_before(text, cue, candidate));
    let alone = alone_on_line(text, lines, candidate)
        .then(|| beside(lines, above, below, candidate, announced))
        .flatten();
    let near = above.and_then(|cue| near(text, cue, candidate));
    let confidence = [direct, before, alone, near].into_iter().flatten().fold(0.0, f64::max);
    if confidence < 0.5 {
        return None;
    }
    // What few words come to; the lists below are long.
    let behind =
        text.get(candidate.end..).unwrap_or_default().trim_start_matches([' ', '\u{a0}']).to_lowercase_head();
    if UNITS.iter().any(|unit| starts_with_word(&behind, unit)) {
        return None;
    }
    if direct.is_none() && is_other_number(text, candidate, above) {
        return None;
    }
    let year = candidate.shape == Shape::Digits
        && candidate.value.len() == 4
        && (candidate.value.starts_with("19") || candidate.value.starts_with("20"));
    let letters_where = match candidate.shape {
        Shape::Letters => is_code_of_letters(text, lines, above, candidate, before.is_some()),
        Shape::Mixed => is_capital(&candidate.value) || direct.is_some_and(|c| c >= 0.9),
        Shape::Digits => !year || direct.is_some_and(|c| c >= 0.9) || before.is_some(),
    };
    letters_where.then_some(confidence)
}

/// What is said of codes, and is none.
const SAID_OF_CODES: [&str; 24] = [
    "below",
    "above",
    "follows",
    "following",
    "valid",
    "invalid",
    "expired",
    "expires",
    "required",
    "enclosed",
    "attached",
    "inside",
    "shown",
    "changed",
    "reset",
    "updated",
    "request",
    "requested",
    "please",
    "hidden",
    "secret",
    "hello",
    "welcome",
    "thanks",
];

/// `PASSCODE: mifsuc`, `ABCDEF is your code`: a word that stands where a code would, and is none that is said of
/// codes.
fn is_code_of_letters(
    text: &str,
    lines: &Lines,
    above: Option<&Cue>,
    candidate: &Candidate,
    before: bool,
) -> bool {
    if SAID_OF_CODES.contains(&candidate.value.to_lowercase().as_str()) {
        return false;
    }
    let line = lines.line(text, candidate.start);
    let stands_out = is_capital(&candidate.value) && line.bytes().any(|octet| octet.is_ascii_lowercase());
    let gap = above.and_then(|cue| between(text, cue.end, candidate.start)).map(str::trim_end);
    let named = gap.is_some_and(|gap| gap.ends_with([':', '：'])) && above.is_some_and(|cue| cue.strong);
    let said = gap.is_some_and(|gap| gap.ends_with([':', '：']) || gap.trim() == "is");
    (stands_out && (before || said)) || (named && ends_line(text, candidate.end))
}

trait Head {
    fn to_lowercase_head(&self) -> String;
}

impl Head for str {
    /// The first words, in lower case.
    fn to_lowercase_head(&self) -> String {
        self.get(..self.floor_char_boundary(24)).unwrap_or_default().to_lowercase()
    }
}

fn starts_with_word(text: &str, word: &str) -> bool {
    text.strip_prefix(word).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
}

fn is_capital(value: &str) -> bool {
    value.bytes().all(|octet| !octet.is_ascii_lowercase())
}

fn ends_line(text: &str, at: usize) -> bool {
    let rest = text.get(at..).unwrap_or_default();
    rest.trim_start_matches([' ', '.', '!', '*', '\t', '\r']).starts_with('\n')
        || rest.trim_start_matches([' ', '.', '!', '*', '\r', '\n']).is_empty()
}

/// The end of what stands before it on its line: as much as a domain name can have.
fn line_before(text: &str, at: usize) -> &str {
    let from = text.ceil_char_boundary(at.saturating_sub(260));
    text.get(from..at).unwrap_or_default().rsplit('\n').next().unwrap_or_default()
}

/// `order 123456`: the words before it speak of another number, and none of a code stands between.
fn is_other_number(text: &str, candidate: &Candidate, above: Option<&Cue>) -> bool {
    let line = line_before(text, candidate.start);
    let from = line.ceil_char_boundary(line.len().saturating_sub(32));
    let before = line.get(from..).unwrap_or_default();
    let since_cue = above.map_or(usize::MAX, |cue| candidate.start - cue.end.min(candidate.start));
    let before =
        before.get(before.ceil_char_boundary(before.len().saturating_sub(since_cue))..).unwrap_or_default();
    let before = before.to_lowercase();
    let before = before.trim_end_matches([' ', '#', ':', '：', '\u{a0}']);
    let before = before.strip_suffix(" is").unwrap_or(before);
    OTHER_NUMBERS.iter().any(|word| {
        before.strip_suffix(word).is_some_and(|rest| !rest.ends_with(|c: char| c.is_ascii_alphanumeric()))
    })
}

/// What may stand last between the words and the code.
const LINKS: [&str; 26] = [
    "is",
    "are",
    "es",
    "est",
    "ist",
    "lautet",
    "è",
    "é",
    "jest",
    "to",
    "är",
    "er",
    "это",
    "は",
    "는",
    "은",
    "이",
    "是",
    "为",
    "為",
    "là",
    "adalah",
    "είναι",
    "هو",
    "הוא",
    "below",
];

/// The text between two places, where it is on one line and in one sentence.
fn between(text: &str, from: usize, to: usize) -> Option<&str> {
    let gap = text.get(from..to).filter(|gap| gap.len() <= NEAR && !gap.contains('\n'))?;
    let sentence = [". ", "! ", "? ", "。", "！", "？"].iter().any(|end| gap.contains(end));
    (!sentence).then_some(gap)
}

/// `code is 123456`, `验证码9316`, `code 123456`.
fn directly_behind(text: &str, cue: &Cue, candidate: &Candidate) -> Option<f64> {
    let gap = between(text, cue.end, candidate.start)?.to_lowercase();
    let bare = gap.trim_end_matches([
        ' ', '*', '"', '\'', '“', '”', '「', '『', '【', '[', '(', '<', '#', '\u{a0}', '_', '`',
    ]);
    let word = |word: &&&str| {
        bare.strip_suffix(**word).is_some_and(|rest| !rest.ends_with(|c: char| c.is_ascii_alphanumeric()))
    };
    let points = bare.ends_with([':', '：', '=', '-', '–', '—', '>']) || LINKS.iter().any(|link| word(&link));
    let sure = if cue.strong { 0.97 } else { 0.92 };
    if bare.is_empty() {
        return Some(if cue.strong { 0.95 } else { 0.85 });
    }
    points.then_some(sure)
}

/// `123456 is your code`.
fn directly_before(text: &str, cue: &Cue, candidate: &Candidate) -> Option<f64> {
    let gap = between(text, candidate.end, cue.start)?.to_lowercase();
    let bare = gap.trim_start_matches([' ', '*', '"', '\'', '”', '」', '】', ']', ')', '\u{a0}', '`']);
    let links =
        LINKS.iter().any(|link| starts_with_word(bare, link) || (!link.is_ascii() && bare.starts_with(link)));
    let pointed = bare.starts_with(['-', '–', '—', '=', ':']);
    let bare = bare.is_empty() && candidate.shape == Shape::Digits;
    (links || pointed || bare).then_some(if cue.strong { 0.95 } else { 0.9 })
}

fn near(text: &str, cue: &Cue, candidate: &Candidate) -> Option<f64> {
    let gap = between(text, cue.end, candidate.start)?;
    let plain = candidate.shape == Shape::Digits && candidate.value.len() >= 5;
    (plain && gap.len() <= NEAR / 2).then_some(if cue.strong { 0.7 } else { 0.5 })
}

/// Nothing but marks around it. Looked for from the code outwards: other codes on the line end the search.
fn alone_on_line(text: &str, lines: &Lines, candidate: &Candidate) -> bool {
    let Some((start, end)) = lines.bounds(candidate.start) else { return false };
    let (before, after) = (text.get(start..candidate.start), text.get(candidate.end..end));
    let (Some(before), Some(after)) = (before, after) else { return false };
    !before.chars().rev().any(char::is_alphanumeric) && !after.contains(char::is_alphanumeric)
}

/// A line for itself, the words in the lines around it or in the subject.
fn beside(
    lines: &Lines,
    above: Option<&Cue>,
    below: Option<&Cue>,
    candidate: &Candidate,
    announced: bool,
) -> Option<f64> {
    let own = lines.number(candidate.start);
    let close_above = above.filter(|cue| own.saturating_sub(lines.number(cue.start)) <= LINES_ABOVE);
    let close_below = below.filter(|cue| lines.number(cue.start).saturating_sub(own) <= LINES_BELOW);
    match (close_above, close_below) {
        (Some(cue), _) => Some(if cue.strong { 0.94 } else { 0.85 }),
        (None, Some(cue)) => Some(if cue.strong { 0.9 } else { 0.75 }),
        (None, None) => announced.then_some(0.75),
    }
}

/// The domain of `@example.com #123456`.
fn bound_domain(text: &str, at: usize) -> Option<String> {
    let line = line_before(text, at);
    let domain = line.strip_suffix('#')?.trim_end().strip_prefix('@')?;
    let whole = domain.contains('.') && domain.chars().all(|c| c.is_alphanumeric() || c == '.' || c == '-');
    whole.then(|| domain.to_lowercase())
}
