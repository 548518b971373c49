//! A page, cut into tags and texts whose places are known, so that parts can be left out and the rest stays as
//! its author wrote it.
//!
//! The tokenizer is WHATWG's (html5gum); the tree above it is flat and bounded, without recursion: what nests
//! deeper than `MAX_DEPTH` is text all the same, and a page with more than `MAX_EVENTS` is not cut at all.

use html5gum::{DefaultEmitter, StartTag, Token, Tokenizer};

/// Octets of a page that is cut. The largest honest mails have some hundred KiB of HTML.
const MAX_PAGE: usize = 2 * 1024 * 1024;
/// Tags and texts of a page: at 64 octets each, 16 MiB for the moment of reading.
const MAX_EVENTS: usize = 250_000;
/// Open elements looked at.
const MAX_DEPTH: usize = 256;

/// Elements without content and end tag.
const VOID: [&str; 14] = [
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track",
    "wbr",
];
/// Void elements that a reader sees.
const SEEN: [&str; 4] = ["hr", "img", "input", "embed"];
/// Elements whose content is not text of the page.
const UNSEEN: [&str; 7] = ["head", "style", "script", "template", "title", "noframes", "xml"];
/// Elements that stand on lines of their own, and those with an empty line around them.
const BLOCKS: [&str; 26] = [
    "address", "article", "aside", "body", "center", "dd", "div", "dl", "dt", "fieldset", "figure", "footer",
    "form", "header", "html", "li", "main", "nav", "ol", "pre", "section", "tbody", "tfoot", "thead", "tr",
    "ul",
];
const PARAGRAPHS: [&str; 9] = ["p", "h1", "h2", "h3", "h4", "h5", "h6", "table", "blockquote"];
/// Elements that keep their place when they lose their text.
const FRAME: [&str; 9] = ["html", "head", "body", "table", "tbody", "thead", "tr", "td", "th"];
/// A line of `═` stands for a rule, which no text draws so.
pub(super) const RULE: &str = "══════════";

/// What an element is known to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Plain,
    /// Nothing but history.
    History,
    /// With it the history begins, which goes on to the end of the page.
    HistoryBelow,
    Signature,
    /// A quotation; whose, the text around it says.
    Quote,
}

#[derive(Debug)]
pub(super) struct Node {
    pub name: String,
    pub role: Role,
    pub parent: Option<usize>,
    /// Events from its start tag to its end tag, both included.
    pub first: usize,
    pub last: usize,
}

#[derive(Debug)]
enum What {
    Open(usize),
    Close(usize),
    Text(String),
    /// Comments, the doctype, end tags of nothing.
    Other,
}

#[derive(Debug)]
struct Event {
    what: What,
    start: usize,
    end: usize,
    dropped: bool,
}

#[derive(Debug)]
pub(super) struct Page<'h> {
    html: &'h str,
    pub nodes: Vec<Node>,
    events: Vec<Event>,
}

/// A line that the page shows.
#[derive(Debug, Default)]
pub(super) struct Line {
    pub text: String,
    /// The event that it begins with; `None` of an empty line.
    pub at: Option<usize>,
}

impl<'h> Page<'h> {
    pub(super) fn read(html: &'h str) -> Option<Page<'h>> {
        if html.len() > MAX_PAGE {
            return None;
        }
        let mut emitter = DefaultEmitter::<usize>::new_with_span();
        emitter.naively_switch_states(true);
        let mut page = Page { html, nodes: Vec::new(), events: Vec::new() };
        let mut open: Vec<usize> = Vec::new();
        for token in Tokenizer::new_with_emitter(html, emitter) {
            let Ok(token) = token;
            match token {
                Token::StartTag(tag) => page.start(&tag, &mut open),
                Token::EndTag(tag) => page.end(&name(&tag.name), (tag.span.start, tag.span.end), &mut open),
                Token::String(text) => {
                    let shown = String::from_utf8_lossy(&text.value).into_owned();
                    page.push(What::Text(shown), text.span.start, text.span.end);
                }
                Token::Comment(comment) => page.push(What::Other, comment.span.start, comment.span.end),
                Token::Doctype(doctype) => page.push(What::Other, doctype.span.start, doctype.span.end),
                Token::Error(_) => {}
            }
            if page.events.len() > MAX_EVENTS {
                return None;
            }
        }
        let end = page.events.len().saturating_sub(1);
        for index in open {
            page.close(index, end);
        }
        Some(page)
    }

    fn push(&mut self, what: What, start: usize, end: usize) {
        self.events.push(Event { what, start, end, dropped: false });
    }

    fn start(&mut self, tag: &StartTag<usize>, open: &mut Vec<usize>) {
        let name = name(&tag.name);
        let at = self.events.len();
        // A paragraph ends where the next begins; nobody writes the end tag.
        let ends = |top: &str| {
            top == "p" && (PARAGRAPHS.contains(&name.as_str()) || BLOCKS.contains(&name.as_str()))
        };
        if open.last().and_then(|top| self.nodes.get(*top)).is_some_and(|top| ends(&top.name))
            && let Some(top) = open.pop()
        {
            self.close(top, at.saturating_sub(1));
        }
        let index = self.nodes.len();
        let void = VOID.contains(&name.as_str());
        let role = role(&name, tag);
        self.nodes.push(Node { name, role, parent: open.last().copied(), first: at, last: at });
        self.push(What::Open(index), tag.span.start, tag.span.end);
        if !void && open.len() < MAX_DEPTH {
            open.push(index);
        }
    }

    fn end(&mut self, name: &str, (start, end): (usize, usize), open: &mut Vec<usize>) {
        let at = self.events.len();
        let found =
            open.iter().rposition(|index| self.nodes.get(*index).is_some_and(|node| node.name == name));
        let Some(found) = found else { return self.push(What::Other, start, end) };
        for inner in open.split_off(found + 1) {
            self.close(inner, at.saturating_sub(1));
        }
        if let Some(index) = open.pop() {
            self.close(index, at);
            self.push(What::Close(index), start, end);
        }
    }

    fn close(&mut self, node: usize, last: usize) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.last = last.max(node.first);
        }
    }

    fn node(&self, index: usize) -> Option<&Node> {
        self.nodes.get(index)
    }

    /// Leaves an element out.
    pub(super) fn drop_node(&mut self, index: usize) {
        if let Some((first, last)) = self.node(index).map(|node| (node.first, node.last)) {
            self.drop_events(first, last + 1);
        }
    }

    /// Leaves out everything from this element on, but for the end tags of what was open before it.
    pub(super) fn drop_from_node(&mut self, index: usize) {
        if let Some(first) = self.node(index).map(|node| node.first) {
            self.drop_events(first, self.events.len());
        }
    }

    /// Leaves out events, but for the tags of elements that reach beyond them.
    pub(super) fn drop_events(&mut self, from: usize, to: usize) {
        let nodes = &self.nodes;
        for event in self.events.get_mut(from..to).unwrap_or_default() {
            let reaches_beyond = match event.what {
                What::Open(node) => nodes.get(node).is_some_and(|node| node.last >= to),
                What::Close(node) => nodes.get(node).is_some_and(|node| node.first < from),
                What::Text(_) | What::Other => false,
            };
            event.dropped |= !reaches_beyond;
        }
    }

    pub(super) fn events(&self) -> usize {
        self.events.len()
    }

    fn is_dropped(&self, event: usize) -> bool {
        self.events.get(event).is_some_and(|event| event.dropped)
    }

    /// Quotations that are not part of another, and still there.
    pub(super) fn outer_quotes(&self) -> Vec<usize> {
        let mut covered = 0;
        let mut found = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            if node.role == Role::Quote && node.first >= covered && !self.is_dropped(node.first) {
                found.push(index);
                covered = node.last + 1;
            }
        }
        found
    }

    /// The lines that the page shows as it is now, quotations marked with `> `.
    pub(super) fn lines(&self) -> Vec<Line> {
        let mut lines = Lines::default();
        let (mut quotes, mut unseen) = (0usize, 0usize);
        for (at, event) in self.events.iter().enumerate().filter(|(_, event)| !event.dropped) {
            match &event.what {
                What::Open(node) | What::Close(node) => {
                    let Some(node) = self.node(*node) else { continue };
                    let opens = node.first == at;
                    let has_end = node.last > node.first;
                    if UNSEEN.contains(&node.name.as_str()) && has_end {
                        unseen = if opens { unseen + 1 } else { unseen.saturating_sub(1) };
                    }
                    lines.tag(&node.name, opens, at, quotes);
                    if node.role == Role::Quote && has_end {
                        quotes = if opens { quotes + 1 } else { quotes.saturating_sub(1) };
                    }
                }
                What::Text(text) if unseen == 0 => lines.text(text, at, quotes),
                What::Text(_) | What::Other => {}
            }
        }
        lines.break_line();
        lines.done
    }

    /// Whether a rule stands in the same element as the text below it.
    pub(super) fn rule_is_beside(&self, rule: usize) -> bool {
        let mut next = self.events.iter().skip(rule + 1).filter(|event| !event.dropped);
        next.find_map(|event| match &event.what {
            What::Text(text) if text.trim().is_empty() => None,
            What::Text(_) => Some(true),
            _ => Some(false),
        })
        .unwrap_or_default()
    }

    /// Leaves out elements that lost all their text.
    pub(super) fn prune(&mut self) {
        // What each element shows: before anything was left out, and still.
        let mut had = vec![false; self.nodes.len()];
        let mut has = vec![false; self.nodes.len()];
        let mut owner: Vec<usize> = Vec::with_capacity(MAX_DEPTH);
        for (at, event) in self.events.iter().enumerate() {
            // What ended without an end tag, a void element among them, owns no further text.
            while owner.last().and_then(|top| self.node(*top)).is_some_and(|top| top.last < at) {
                owner.pop();
            }
            let shows = match &event.what {
                What::Open(node) => {
                    let seen = self.node(*node).is_some_and(|node| SEEN.contains(&node.name.as_str()));
                    let parent = self.node(*node).and_then(|node| node.parent);
                    while owner.last().is_some_and(|top| Some(*top) != parent) {
                        owner.pop();
                    }
                    owner.push(*node);
                    seen
                }
                What::Close(node) => {
                    while let Some(top) = owner.pop() {
                        if top == *node {
                            break;
                        }
                    }
                    false
                }
                What::Text(text) => !text.trim().is_empty(),
                What::Other => false,
            };
            if let (true, Some(top)) = (shows, owner.last()) {
                for (list, yes) in [(&mut had, true), (&mut has, !event.dropped)] {
                    if let Some(slot) = list.get_mut(*top) {
                        *slot |= yes;
                    }
                }
            }
        }
        for index in (0..self.nodes.len()).rev() {
            if let Some(parent) = self.node(index).and_then(|node| node.parent) {
                for list in [&mut had, &mut has] {
                    let shown = list.get(index).copied().unwrap_or_default();
                    if let Some(slot) = list.get_mut(parent) {
                        *slot |= shown;
                    }
                }
            }
        }
        for index in 0..self.nodes.len() {
            let emptied = had.get(index) == Some(&true) && has.get(index) == Some(&false);
            let frame = self.node(index).is_some_and(|node| FRAME.contains(&node.name.as_str()));
            if emptied && !frame {
                self.drop_node(index);
            }
        }
    }

    /// The page without what was left out: a whole document, whatever it was before.
    pub(super) fn html(&self) -> String {
        let mut out = String::with_capacity(self.html.len());
        let has = |name: &str| self.nodes.iter().any(|node| node.name == name);
        let (html, head, body) = (has("html"), has("head"), has("body"));
        let bare = !html && !head && !body;
        if bare {
            out.push_str("<html><head></head><body>");
        }
        for event in self.events.iter().filter(|event| !event.dropped) {
            let part = self.html.get(event.start..event.end).unwrap_or_default();
            match (&event.what, part.strip_suffix("/>")) {
                // `<br/>` is XHTML's.
                (What::Open(_), Some(tag)) => out.extend([tag.trim_end(), ">"]),
                _ => out.push_str(part),
            }
            if let What::Open(node) = event.what
                && html
                && !head
                && self.node(node).is_some_and(|node| node.name == "html")
            {
                out.push_str("<head></head>");
            }
        }
        if bare {
            out.push_str("</body></html>");
        }
        // Written out, so that it survives what trims white space.
        out.replace('\u{a0}', "&#160;")
    }
}

fn name(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).into_owned()
}

/// Marks that mail programs put on their elements.
fn role(name: &str, tag: &StartTag<usize>) -> Role {
    let attribute = |key: &str| {
        let value = tag.attributes.get(key.as_bytes()).map(|value| String::from_utf8_lossy(&value.value));
        value.unwrap_or_default().to_ascii_lowercase()
    };
    if tag.attributes.is_empty() {
        return if name == "blockquote" { Role::Quote } else { Role::Plain };
    }
    let (class, id) = (attribute("class"), attribute("id"));
    let classes = |known: &[&str]| class.split_ascii_whitespace().any(|one| known.contains(&one));
    // Gmail, Yahoo, Proton, Tuta, Zoho; Outlook for Mac; Outlook for phones.
    let history = [
        "gmail_quote",
        "gmail_quote_container",
        "yahoo_quoted",
        "protonmail_quote",
        "tutanota_quote",
        "zmail_extra",
    ];
    if classes(&history)
        || ["olk_src_body_section", "mail-editor-reference-message-container"].contains(&id.as_str())
        || id.starts_with("yahoo_quoted_")
    {
        return Role::History;
    }
    // Outlook, Zimbra.
    if id == "divrplyfwdmsg"
        || id == "appendonsend"
        || (name == "hr" && attribute("data-marker") == "__divider__")
    {
        return Role::HistoryBelow;
    }
    let style: String = attribute("style").chars().filter(|c| !c.is_whitespace()).collect();
    let outlook =
        ["border-top:solid#b5c4df", "border-top:solid#e1e1e1"].iter().any(|border| style.contains(border));
    let windows_mail =
        style.contains("border-top-color:rgb(229,229,229)") && style.contains("border-top-style:solid");
    if name == "div" && (outlook || windows_mail) {
        return Role::HistoryBelow;
    }
    let signature = [
        "gmail_signature",
        "moz-signature",
        "protonmail_signature_block",
        "yahoo-signature",
        "ymail_signature",
        "apple-mail-signature",
    ];
    if classes(&signature)
        || ["signature", "ms-outlook-mobile-signature", "applemailsignature"].contains(&id.as_str())
        || attribute("data-smartmail") == "gmail_signature"
        || attribute("data-signatureblock") == "true"
    {
        return Role::Signature;
    }
    // Gmail indents with a blockquote without a border.
    let indented = style.contains("border:none") && !style.contains("border-left");
    if name == "blockquote" && !indented { Role::Quote } else { Role::Plain }
}

/// Lines as they are laid out.
#[derive(Default)]
struct Lines {
    done: Vec<Line>,
    line: Line,
    /// White space was seen since the last word.
    space: bool,
}

impl Lines {
    fn text(&mut self, text: &str, at: usize, quotes: usize) {
        self.space |= text.starts_with(|c: char| c.is_ascii_whitespace());
        for word in text.split_ascii_whitespace() {
            if self.line.at.is_none() {
                self.line.at = Some(at);
                self.line.text = "> ".repeat(quotes.min(8));
            } else if self.space {
                self.line.text.push(' ');
            }
            self.line.text.push_str(word);
            self.space = true;
        }
        self.space = text.ends_with(|c: char| c.is_ascii_whitespace()) || (self.space && text.is_empty());
    }

    fn tag(&mut self, name: &str, opens: bool, at: usize, quotes: usize) {
        match name {
            "br" => {
                if self.line.at.is_none() {
                    self.blank();
                } else {
                    self.break_line();
                }
            }
            "hr" => {
                self.break_line();
                self.line = Line { text: format!("{}{RULE}", "> ".repeat(quotes.min(8))), at: Some(at) };
                self.break_line();
            }
            "td" | "th" => self.space = true,
            "li" if opens => {
                self.break_line();
                self.line = Line { text: format!("{}- ", "> ".repeat(quotes.min(8))), at: Some(at) };
                self.space = false;
            }
            name if PARAGRAPHS.contains(&name) => {
                self.break_line();
                self.blank();
            }
            name if BLOCKS.contains(&name) => self.break_line(),
            _ => {}
        }
    }

    fn break_line(&mut self) {
        if self.line.at.is_some() {
            let mut line = std::mem::take(&mut self.line);
            line.text.truncate(line.text.trim_end().len());
            self.done.push(line);
        }
        self.space = false;
    }

    /// At most one empty line between two paragraphs.
    fn blank(&mut self) {
        if self.done.last().is_some_and(|line| line.at.is_some()) {
            self.done.push(Line::default());
        }
    }
}
