//! What somebody wrote now, without what they quote.

/// The new text of a reply.
pub fn extracted_text(text: &str) -> String {
    text.to_owned()
}
