//! Writing a header field: folded at 78 columns where its words allow it (RFC 5322 §2.1.1), and safe
//! whatever the words are.

/// Columns of a line, without its line end.
const WIDTH: usize = 78;
/// Characters of one word; with this no line comes near the 998 octets that end a conversation.
const LONGEST_WORD: usize = 330;

/// A field that is being written.
pub(crate) struct Line {
    text: String,
    /// Where the current line begins in `text`.
    line_at: usize,
}

impl Line {
    /// `name` with its colon.
    pub fn new(name: &str) -> Line {
        Line { text: name.to_owned(), line_at: 0 }
    }

    /// Appends a word after a space, or on the next line where it does not fit. The word must have gone
    /// through one of the functions below, or be ours.
    pub fn word(&mut self, word: &str) {
        let column = self.text.len() - self.line_at;
        if column > 1 && column + 1 + word.len() > WIDTH {
            self.fold();
        }
        if !self.text.ends_with("\r\n\t") {
            self.text.push(' ');
        }
        self.text.push_str(word);
    }

    /// Appends without a space.
    pub fn glue(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// The next word begins a line.
    pub fn fold(&mut self) {
        self.text.push_str("\r\n\t");
        self.line_at = self.text.len() - 1;
    }

    pub fn end(mut self, out: &mut Vec<u8>) {
        self.text.push_str("\r\n");
        out.extend_from_slice(self.text.as_bytes());
    }
}

/// Without control characters, and not endless.
pub(crate) fn printable(text: &str) -> String {
    text.chars().take(LONGEST_WORD).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// In parentheses (RFC 5322 §3.2.2), which it cannot leave.
pub(crate) fn comment(text: &str) -> String {
    let inner = |c: char| if c.is_ascii_graphic() && !r"()\".contains(c) || c == ' ' { c } else { '?' };
    format!("({})", text.chars().take(LONGEST_WORD).map(inner).collect::<String>())
}

/// A token as it is, everything else as a quoted-string of ASCII (RFC 2045 §5.1, RFC 5322 §3.2.4).
pub(crate) fn quoted(text: &str) -> String {
    let token = |c: char| c.is_ascii_alphanumeric() || "-._+@".contains(c);
    if !text.is_empty() && text.len() <= LONGEST_WORD && text.chars().all(token) {
        return text.to_owned();
    }
    let inner = |c: char| match c {
        '"' => '\'',
        '\\' => '/',
        c if c.is_ascii_graphic() || c == ' ' => c,
        _ => '?',
    };
    format!("\"{}\"", text.chars().take(LONGEST_WORD).map(inner).collect::<String>())
}
