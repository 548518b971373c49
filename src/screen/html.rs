//! HTML as text, for reading and for previews: block elements break lines, what is not shown is left out.
//!
//! One pass, no tree, no recursion: it reads any bytes in linear time. It is no sanitizer and what it gives
//! must never be used as HTML again.

use mail_parser::decoders::html::add_html_token;

/// Elements whose content is not text of the page.
const UNSEEN: [&str; 6] = ["head", "style", "script", "template", "title", "noframes"];
/// Elements that stand on lines of their own.
const BLOCKS: [&str; 28] = [
    "address",
    "article",
    "aside",
    "blockquote",
    "body",
    "center",
    "dd",
    "div",
    "dl",
    "dt",
    "fieldset",
    "figure",
    "footer",
    "form",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "header",
    "hr",
    "li",
    "main",
    "ol",
    "p",
    "section",
    "table",
];

/// The text that a page shows.
pub(crate) fn to_text(html: &str) -> String {
    let mut page = Page { out: String::with_capacity(html.len() / 2), space: false };
    let mut rest = html;
    while let Some(open) = rest.find('<') {
        let (text, tag) = rest.split_at(open);
        page.text(text);
        rest = page.tag(tag);
    }
    page.text(rest);
    page.out.truncate(page.out.trim_end().len());
    page.out
}

/// Text with its character references resolved.
pub(crate) fn resolved(text: &str) -> String {
    let mut page = Page { out: String::with_capacity(text.len()), space: false };
    page.word(text);
    page.out
}

struct Page {
    out: String,
    /// White space was seen since the last word.
    space: bool,
}

impl Page {
    fn text(&mut self, text: &str) {
        if text.starts_with(|c: char| c.is_ascii_whitespace()) {
            self.space = true;
        }
        for word in text.split_ascii_whitespace() {
            if self.space && !self.out.is_empty() && !self.out.ends_with('\n') {
                self.out.push(' ');
            }
            self.word(word);
            self.space = true;
        }
        self.space = text.ends_with(|c: char| c.is_ascii_whitespace()) || (self.space && text.is_empty());
    }

    /// A word, its character references resolved.
    fn word(&mut self, word: &str) {
        let mut rest = word;
        while let Some(start) = rest.find('&') {
            let (plain, reference) = rest.split_at(start);
            self.out.push_str(plain);
            // The longest named reference has 32 characters.
            let end = reference.bytes().take(34).position(|octet| octet == b';');
            match end.and_then(|end| reference.split_at_checked(end + 1)) {
                Some((reference, after)) => {
                    self.reference(reference);
                    rest = after;
                }
                None => {
                    self.out.push('&');
                    rest = reference.get(1..).unwrap_or_default();
                }
            }
        }
        self.out.push_str(rest);
    }

    fn reference(&mut self, reference: &str) {
        let mut character = String::new();
        add_html_token(&mut character, reference.as_bytes(), false);
        match character.as_str() {
            "\u{a0}" => self.out.push(' '),
            known => self.out.push_str(known),
        }
    }

    fn line(&mut self) {
        self.out.truncate(self.out.trim_end_matches([' ', '\t']).len());
        if !self.out.is_empty() {
            self.out.push('\n');
        }
        self.space = false;
    }

    /// At most one empty line between two paragraphs.
    fn block(&mut self, paragraph: bool) {
        let wanted = if paragraph { "\n\n" } else { "\n" };
        self.out.truncate(self.out.trim_end_matches([' ', '\t']).len());
        if !self.out.is_empty() && !self.out.ends_with(wanted) {
            let have = usize::from(self.out.ends_with('\n'));
            self.out.push_str(wanted.get(have..).unwrap_or_default());
        }
        self.space = false;
    }

    /// Reads the tag that `rest` begins with; returns what follows it.
    fn tag<'a>(&mut self, rest: &'a str) -> &'a str {
        if let Some(comment) = rest.strip_prefix("<!--") {
            return comment.find("-->").and_then(|end| comment.get(end + 3..)).unwrap_or_default();
        }
        let closing = rest.starts_with("</");
        let name_at = if closing { 2 } else { 1 };
        let after = rest.get(name_at..).unwrap_or_default();
        let is_tag = after.starts_with(|c: char| c.is_ascii_alphabetic() || c == '!' || c == '?');
        if !is_tag {
            // A lone `<`, as in "a < b".
            self.text("<");
            return rest.get(1..).unwrap_or_default();
        }
        let end = tag_end(after);
        let name_len = after.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(after.len()).min(end);
        let name = after.get(..name_len).unwrap_or_default().to_ascii_lowercase();
        let rest = after.get(end..).unwrap_or_default();
        if !closing && UNSEEN.contains(&name.as_str()) {
            return skip_element(rest, &name);
        }
        match name.as_str() {
            "br" => self.line(),
            "p" | "h1" | "h2" | "h3" | "h4" | "h5" | "h6" | "table" | "blockquote" => self.block(true),
            "tr" | "ul" => self.block(false),
            "td" | "th" => self.space = true,
            name if BLOCKS.contains(&name) => self.block(false),
            _ => {}
        }
        if name == "li" && !closing {
            self.out.push_str("- ");
        }
        rest
    }
}

/// One past the `>` of a tag; quoted attribute values may hold one. A quote that does not close before the
/// next `<` is taken for a slip of the pen: that keeps the whole walk linear.
pub(crate) fn tag_end(tag: &str) -> usize {
    let mut quote = None;
    let mut first = None;
    for (at, octet) in tag.bytes().enumerate() {
        match (octet, quote) {
            (b'>', None) => return at + 1,
            (b'<', _) => return first.unwrap_or(at),
            (b'>', Some(_)) => first = first.or(Some(at + 1)),
            (b'"' | b'\'', None) => quote = Some(octet),
            (octet, Some(open)) if octet == open => quote = None,
            _ => {}
        }
    }
    first.unwrap_or(tag.len())
}

/// What follows the end tag of `name`; the rest of the page where there is none.
fn skip_element<'a>(rest: &'a str, name: &str) -> &'a str {
    let mut at = 0;
    while let Some(found) = rest.get(at..).and_then(|text| text.find("</")) {
        let after = at + found + 2;
        let matches = rest.as_bytes().get(after..after + name.len());
        if matches.is_some_and(|text| text.eq_ignore_ascii_case(name.as_bytes())) {
            let tail = rest.get(after..).unwrap_or_default();
            return tail.get(tag_end(tail)..).unwrap_or_default();
        }
        at = after;
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::to_text;

    #[test]
    fn a_page_reads_like_its_text() {
        for (html, text) in [
            ("<div>Your code</div><div>123456</div>", "Your code\n123456"),
            ("<p>Hello <b>Ada</b>,</p><p>how&nbsp;are  you?</p>", "Hello Ada,\n\nhow are you?"),
            ("<style>p{color:red}</style><title>x</title>a<br>b<br/>c", "a\nb\nc"),
            ("<ul><li>one</li><li>two</li></ul>", "- one\n- two"),
            ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>", "a b\nc"),
            ("<a href=\"x>y\">link</a><!-- <b>no</b> -->!", "link!"),
            ("a < b &amp; c &lt;d&gt; &copy; &bogus; &#x20ac; & &", "a < b & c <d> © &bogus; € & &"),
            ("no<b>gap</b>here", "nogaphere"),
            ("<script>never closed", ""),
        ] {
            assert_eq!(to_text(html), text, "{html:?}");
        }
    }
}
