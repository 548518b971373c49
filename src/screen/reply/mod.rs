//! What somebody wrote just now, without the history below it and the signature.
//!
//! Conservative: it cuts where a mail program left a mark, and keeps whatever it does not understand. A text of
//! which nothing would be left stays whole, a mail that is only passed on among them. The full text is always
//! there beside it. Linear in the size of the text, whatever it says; worked out on reading, not at delivery.
//!
//! RFC 3676 §4.3 (signatures), §4.5 (quoting).

mod cut;
mod lines;
mod marks;
mod page;
mod words;

/// The new text of a reply.
pub fn extracted_text(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let kept = lines::kept(&lines).text(&lines);
    if kept.trim().is_empty() { text.trim().to_owned() } else { kept }
}

/// The new part of a reply in HTML, as a whole document, and the text that it shows; `None` where there is
/// nothing to tell apart.
pub(super) fn extracted_page(html: &str) -> Option<(String, String)> {
    cut::cut(html).map(|reply| (reply.html, reply.text))
}

#[cfg(test)]
mod tests;
