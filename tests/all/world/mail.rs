//! Mail as text.

/// A plain message in CRLF lines. `more` are further header lines, each with its end.
pub fn letter(from: &str, to: &str, subject: &str, id: &str, more: &str, body: &str) -> Vec<u8> {
    format!(
        "From: {from}\r\nTo: {to}\r\nSubject: {subject}\r\nDate: Sat, 21 Nov 2026 03:04:05 +0000\r\n\
         Message-ID: <{id}>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n{more}\r\n{}\r\n",
        body.replace("\r\n", "\n").replace('\n', "\r\n")
    )
    .into_bytes()
}

/// The first header of this name, unfolded and trimmed.
pub fn header(message: &[u8], name: &str) -> Option<String> {
    headers(message).into_iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// All headers in order, unfolded and trimmed.
pub fn headers(message: &[u8]) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    for line in message.split(|b| *b == b'\n') {
        let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)).into_owned();
        if line.is_empty() {
            break;
        }
        if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = all.last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            all.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
    all
}

/// Line ends as SMTP wants them, as the corpora's sending client makes them.
pub fn with_crlf(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 40);
    let mut rest = bytes;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'\r' => {
                out.extend_from_slice(b"\r\n");
                rest = rest.strip_prefix(b"\n").unwrap_or(rest);
            }
            b'\n' => out.extend_from_slice(b"\r\n"),
            other => out.push(other),
        }
    }
    if !out.ends_with(b"\r\n") {
        out.extend_from_slice(b"\r\n");
    }
    out
}
