//! Which lines of a text somebody wrote just now.
//!
//! It cuts where a mail program left a mark, and keeps whatever it does not understand. Quotes between answers
//! stay (they say what is answered). Of a mail that is passed on with a word above it, the word stays.

use super::marks::{
    self, Above, Delimiter, attribution, attribution_inside, delimiter, header_block, header_line,
    introduces, is_blank, is_footer, is_rule, is_signed, separator,
};

/// Attributions looked at; a text with more is no reply.
const MAX_ATTRIBUTIONS: usize = 50;
/// A signature is short; a longer text below `--` is text. Counted without blank lines.
const SIGNATURE_LINES: usize = 16;
/// Below a rule that is no signature's mark, only this little is taken for one.
const RULED_LINES: usize = 5;
const RULED_CHARS: usize = 60;

/// A part of the lines, by their indexes.
pub(super) type Span = std::ops::Range<usize>;

/// What is kept: stretches of lines in their order, and where in the last line of the first one an attribution
/// begins. Empty where nothing would be left.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Kept {
    pub spans: Vec<Span>,
    /// The octet of that line at which it is cut.
    pub cut_last_at: Option<usize>,
}

impl Kept {
    pub(super) fn text(&self, lines: &[&str]) -> String {
        let mut kept: Vec<&str> = Vec::new();
        for span in &self.spans {
            let part = lines.get(span.clone()).unwrap_or_default();
            if !kept.is_empty() && kept.last().is_some_and(|line| !is_blank(line)) {
                kept.push("");
            }
            kept.extend(part);
        }
        if let (Some(at), Some(last)) = (self.cut_last_at, kept.last_mut()) {
            *last = last.get(..at).unwrap_or(last).trim_end();
        }
        kept.join("\n")
    }
}

pub(super) fn kept(lines: &[&str]) -> Kept {
    let text = Text { lines, fenced: fences(lines) };
    let whole = text.trimmed(0..lines.len());
    let start = text.below_leading_quote(whole.clone());
    let cut = text.history(start.clone());
    let mut kept = Kept { spans: Vec::new(), cut_last_at: cut.inside };
    let last = cut.spans.len().saturating_sub(1);
    let tail = Tail { reply: cut.attributed || start != whole, quotes: !cut.history };
    for (nth, span) in cut.spans.into_iter().enumerate() {
        let span = if nth == last { text.without_tail(span, tail) } else { text.trimmed(span) };
        if !span.is_empty() {
            kept.spans.push(span);
        }
    }
    kept
}

/// Lines between ``` and ```: somebody's example, whatever it looks like.
fn fences(lines: &[&str]) -> Vec<bool> {
    let mut fenced = vec![false; lines.len()];
    let marks: Vec<usize> = lines
        .iter()
        .enumerate()
        .filter(|(_, line)| line.trim_start().starts_with("```"))
        .map(|(at, _)| at)
        .collect();
    for pair in marks.chunks_exact(2) {
        if let [from, to] = pair
            && let Some(inner) = fenced.get_mut(*from..=*to)
        {
            inner.fill(true);
        }
    }
    fenced
}

struct Text<'a, 't> {
    lines: &'a [&'t str],
    fenced: Vec<bool>,
}

/// What is left above, between and below the history.
struct Cut {
    spans: Vec<Span>,
    /// Something was left out.
    history: bool,
    /// An attribution or a quoted header was met.
    attributed: bool,
    inside: Option<usize>,
}

/// What may be left out at the end.
#[derive(Clone, Copy)]
struct Tail {
    /// The text answers another: `Ada> …` is a quotation, and a short text below any rule a signature.
    reply: bool,
    /// Quotes. A quote above the history was put there by the author.
    quotes: bool,
}

impl Text<'_, '_> {
    fn line(&self, at: usize) -> &str {
        self.lines.get(at).copied().unwrap_or_default()
    }

    fn is_fenced(&self, at: usize) -> bool {
        self.fenced.get(at).copied().unwrap_or_default()
    }

    fn is_quoted(&self, at: usize) -> bool {
        marks::is_quoted(self.line(at)) && !self.is_fenced(at)
    }

    fn trimmed(&self, span: Span) -> Span {
        let start = span.clone().find(|&at| !is_blank(self.line(at))).unwrap_or(span.end);
        let end = (start..span.end).rev().find(|&at| !is_blank(self.line(at))).map_or(start, |last| last + 1);
        start..end
    }

    /// Bottom posting: the text begins with a quotation and its attribution, the answer stands below.
    fn below_leading_quote(&self, span: Span) -> Span {
        let intro = attribution(self.lines, span.start).unwrap_or_else(|| {
            usize::from(introduces(self.line(span.start)) && self.is_quoted(span.start + 1))
        });
        let below = span.start + intro;
        let is_quote = |at: usize| self.is_quoted(at) || is_blank(self.line(at));
        let end = (below..span.end).find(|&at| !is_quote(at)).unwrap_or(span.end);
        let has_quote = (below..end).any(|at| self.is_quoted(at));
        let is_reply = end < span.end && delimiter(self.line(end)) != Some(Delimiter::Signature);
        if has_quote && is_reply { self.trimmed(end..span.end) } else { span }
    }

    /// What is left without the history: at the first mark below some text that is followed by nothing else.
    fn history(&self, span: Span) -> Cut {
        let uncut = |attributed| Cut { spans: vec![span.clone()], history: false, attributed, inside: None };
        let mut attributions = 0;
        let mut has_text = false;
        for at in span.clone() {
            if is_blank(self.line(at)) || self.is_fenced(at) {
                has_text |= self.is_fenced(at);
                continue;
            }
            if has_text && self.starts_quoted_mail(at) {
                return Cut {
                    spans: std::iter::once(span.start..at).collect(),
                    history: true,
                    attributed: true,
                    inside: None,
                };
            }
            let len = attribution(self.lines, at).or_else(|| {
                let next = (at + 1..span.end).find(|&next| !is_blank(self.line(next)))?;
                (introduces(self.line(at)) && self.is_quoted(next) && next <= at + 2).then_some(1)
            });
            if let Some(len) = len.filter(|_| has_text) {
                attributions += 1;
                // Looking at what follows each of them would take quadratic time in a text made for that.
                if attributions > MAX_ATTRIBUTIONS {
                    return uncut(true);
                }
                if let Some(spans) = self.below_attribution(span.start..at, at + len..span.end) {
                    return Cut { spans, history: true, attributed: true, inside: None };
                }
            }
            if let Some(inside) = attribution_inside(self.line(at)) {
                return Cut {
                    spans: std::iter::once(span.start..at + 1).collect(),
                    history: true,
                    attributed: true,
                    inside: Some(inside),
                };
            }
            has_text |= len.is_none() && !self.is_quoted(at) && delimiter(self.line(at)).is_none();
        }
        uncut(attributions > 0)
    }

    /// A header block, `-----Original Message-----`, a forwarded mail: all below is somebody else's.
    fn starts_quoted_mail(&self, at: usize) -> bool {
        let line = self.line(at);
        let quoted = marks::is_quoted(line);
        let below_rule =
            |next: usize| header_block(self.lines, next, Above::Rule) || header_line(self.line(next));
        let ruled = is_rule(line) && (at + 1..at + 3).any(below_rule);
        !quoted && (ruled || header_block(self.lines, at, Above::Text) || separator(line).is_some())
    }

    /// What is left where an attribution stands between `above` and `below`.
    fn below_attribution(&self, above: Span, below: Span) -> Option<Vec<Span>> {
        let below = self.trimmed(below);
        if below.is_empty() || !self.is_quoted(below.start) {
            // Unquoted history.
            return Some(vec![above]);
        }
        let answer = self.quote_end(below.start, below.end);
        let rest = self.trimmed(answer..below.end);
        let signed =
            matches!(delimiter(self.line(rest.start)), Some(Delimiter::Signature | Delimiter::Footer));
        if signed && self.without_signature(rest.clone(), Tail { reply: true, quotes: true }).is_empty() {
            return Some(vec![above]);
        }
        let quoted = |at: usize| self.is_quoted(at) || marks::is_quoted_by_name(self.line(at));
        let more = rest.clone().any(quoted);
        let rest = self.without_tail(rest, Tail { reply: true, quotes: true });
        if rest.is_empty() {
            return Some(vec![above]);
        }
        if more {
            // Answers between quotes: what is answered stays, who wrote it goes.
            return Some(vec![above, below.start..rest.end]);
        }
        Some(vec![above, rest])
    }

    /// Where a quotation that begins at `at` ends. The wrapped end of a long link belongs to it.
    fn quote_end(&self, at: usize, end: usize) -> usize {
        let mut next = at;
        while next < end {
            let line = self.line(next);
            let wrapped = next > at
                && self.is_quoted(next - 1)
                && self.is_quoted(next + 1)
                && self.line(next - 1).contains("http")
                && line.split_whitespace().count() == 1;
            if !(self.is_quoted(next) || is_blank(line) || wrapped) {
                break;
            }
            next += 1;
        }
        next
    }

    /// Without quotes, signature and footers at its end, as long as something is left.
    fn without_tail(&self, span: Span, tail: Tail) -> Span {
        let mut span = self.trimmed(span);
        for _ in 0..4 {
            let before = span.clone();
            for shorter in [
                self.without_tail_quote(span.clone(), tail),
                self.without_signature(span.clone(), tail),
                self.without_footer(span.clone()),
            ] {
                let shorter = self.trimmed(shorter);
                if !shorter.is_empty() && shorter.len() < span.len() {
                    span = shorter;
                    break;
                }
            }
            if span == before {
                break;
            }
        }
        span
    }

    fn without_tail_quote(&self, span: Span, tail: Tail) -> Span {
        if !tail.quotes {
            return span;
        }
        let quoted = |at: usize| {
            self.is_quoted(at)
                || (tail.reply && !self.is_fenced(at) && marks::is_quoted_by_name(self.line(at)))
        };
        let last = span.clone().rev().find(|&at| !quoted(at) && !is_blank(self.line(at)));
        span.start..last.map_or(span.start, |last| last + 1)
    }

    fn without_signature(&self, span: Span, tail: Tail) -> Span {
        // Counted from the end, so that a rule high up in a long text is text.
        let mut below = 0;
        let mut longest = 0;
        let mut address = false;
        let mut cut = None;
        for at in span.clone().rev() {
            let line = self.line(at);
            if is_blank(line) {
                continue;
            }
            let mark = if self.is_fenced(at) { None } else { delimiter(line) };
            let apart = at == span.start || is_blank(self.line(at - 1)) || below == 0;
            match mark {
                Some(_) if below == 0 => cut = Some(at),
                Some(Delimiter::Signature) => cut = Some(at),
                // What a list puts below says where the list is.
                Some(Delimiter::Footer) if tail.reply || address => cut = Some(at),
                Some(_) if tail.reply && apart && below <= RULED_LINES && longest <= RULED_CHARS => {
                    cut = Some(at)
                }
                _ => {
                    below += 1;
                    address |= line.contains('@') || line.contains("://");
                    longest = longest.max(line.chars().count());
                }
            }
            if below > SIGNATURE_LINES {
                break;
            }
        }
        match cut {
            Some(at) => span.start..at,
            None => {
                let alone = span.end >= 2 && is_blank(self.line(span.end - 2));
                let signed = alone && is_signed(self.line(span.end - 1));
                span.start..span.end - usize::from(signed && span.len() > 2)
            }
        }
    }

    fn without_footer(&self, span: Span) -> Span {
        let last = span.end.saturating_sub(1);
        if !span.is_empty() && is_footer(self.line(last)) { span.start..last } else { span }
    }
}
