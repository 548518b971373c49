//! Links that finish a sign-up, a sign-in or a reset: by their address, and by the words they stand under.

use url::{Host, Url};

use super::cues::{LINK_WORDS, OTHER_LINKS, names_link};
use crate::screen::html;

/// Links looked at in one message.
const MAX_LINKS: usize = 200;
/// Octets of a link. Browsers take more; nobody signs anybody up with more.
const MAX_LINK: usize = 2048;
/// Octets of words before and in a link that are looked at.
const CONTEXT: usize = 120;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct FoundLink {
    pub value: String,
    pub start: usize,
    pub end: usize,
    pub confidence: f64,
    pub host: Option<String>,
}

/// Links written out in a text.
pub(super) fn in_text(text: &str) -> Vec<FoundLink> {
    let mut found = Vec::new();
    for (scheme, _) in text.match_indices("://").take(MAX_LINKS) {
        let head = text.get(..scheme).unwrap_or_default();
        let Some(start) = ["https", "http"].iter().find_map(|name| {
            let start = head.len().checked_sub(name.len())?;
            head.get(start..).filter(|found| found.eq_ignore_ascii_case(name)).map(|_| start)
        }) else {
            continue;
        };
        let most = text.floor_char_boundary(start.saturating_add(2 * MAX_LINK));
        let rest = text.get(start..most).unwrap_or_default();
        let end = rest.find(|c: char| c.is_whitespace() || c.is_control() || "<>\"'`|{}）】」".contains(c));
        let link = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
        let link = link.trim_end_matches(['.', ',', ';', ':', '!', '?', ')', ']', '*', '_', '。', '，']);
        let from = start.saturating_sub(CONTEXT);
        let before = text.get(text.ceil_char_boundary(from)..start).unwrap_or_default();
        found.extend(judge(link, before, (start, start + link.len())));
    }
    found
}

/// Links that a page has, which need not be what it shows.
pub(super) fn in_page(page: &str) -> Vec<FoundLink> {
    let mut found = Vec::new();
    let mut seen = 0;
    let mut at = 0;
    while let Some(open) = page.get(at..).and_then(|rest| rest.find('<')) {
        let start = at + open + 1;
        let rest = page.get(start..).unwrap_or_default();
        let anchor = rest.as_bytes().first().is_some_and(|octet| octet.eq_ignore_ascii_case(&b'a'))
            && rest.as_bytes().get(1).is_some_and(u8::is_ascii_whitespace);
        at = start;
        if !anchor {
            continue;
        }
        let len = html::tag_end(rest);
        at = start + len;
        let tag = rest.get(..len).unwrap_or_default();
        let Some((from, to)) = href(tag) else { continue };
        let value = html::resolved(tag.get(from..to).unwrap_or_default());
        // Browsers ignore line breaks and tabs in an address.
        let value: String = value.trim().chars().filter(|c| !matches!(c, '\t' | '\n' | '\r')).collect();
        let inner = page.get(at..).unwrap_or_default();
        let inner = inner
            .get(..inner.find("</a").or_else(|| inner.find("</A")).unwrap_or(0).min(1024))
            .unwrap_or_default();
        let before = page
            .get(page.ceil_char_boundary(start.saturating_sub(3 * CONTEXT))..start - 1)
            .unwrap_or_default();
        let words = format!("{} {}", html::to_text(after_tag(before)), html::to_text(inner));
        found.extend(judge(&value, &words, (start + from, start + to)));
        seen += 1;
        if seen >= MAX_LINKS {
            break;
        }
    }
    found
}

/// What is cut in the middle of a tag begins behind it.
fn after_tag(text: &str) -> &str {
    match (text.find('>'), text.find('<')) {
        (Some(end), open) if open.is_none_or(|open| end < open) => text.get(end + 1..).unwrap_or_default(),
        _ => text,
    }
}

/// Where the value of `href` stands in the tag.
fn href(tag: &str) -> Option<(usize, usize)> {
    let lower = tag.to_ascii_lowercase();
    let (name, _) = lower.match_indices("href").find(|(at, _)| {
        lower
            .as_bytes()
            .get(at.wrapping_sub(1))
            .is_some_and(|o| o.is_ascii_whitespace() || matches!(o, b'"' | b'\''))
    })?;
    let after = lower.get(name + 4..)?;
    let equals = after
        .find(|c: char| !c.is_whitespace())
        .filter(|at| after.get(*at..).is_some_and(|a| a.starts_with('=')))?;
    let value = after.get(equals + 1..)?;
    let skip = value.find(|c: char| !c.is_whitespace())?;
    let start = name + 4 + equals + 1 + skip;
    let rest = tag.get(start..)?;
    let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''));
    match quote {
        Some(quote) => {
            let inner = rest.get(1..)?;
            Some((start + 1, start + 1 + inner.find(quote)?))
        }
        None => {
            Some((start, start + rest.find(|c: char| c.is_whitespace() || c == '>').unwrap_or(rest.len())))
        }
    }
}

fn judge(link: &str, words: &str, (start, end): (usize, usize)) -> Option<FoundLink> {
    if link.len() > MAX_LINK || !(link.starts_with("http") || link.starts_with("HTTP")) {
        return None;
    }
    let lower = link.to_lowercase();
    if OTHER_LINKS.iter().any(|other| lower.contains(other)) {
        return None;
    }
    let url = Url::parse(link).ok().filter(|url| matches!(url.scheme(), "http" | "https"))?;
    let words = words.to_lowercase();
    let told = LINK_WORDS.iter().any(|word| words.contains(word));
    let path = lower.get(lower.find("://").map_or(0, |at| at + 3)..).unwrap_or_default();
    let path = path.get(path.find(['/', '?', '#']).unwrap_or(path.len())..).unwrap_or_default();
    let named = names_link(path);
    let token = has_token(&url);
    let confidence = match (named, told, token) {
        (true, true, true) => 0.95,
        (true, true, false) if !is_sign_in(path) => 0.8,
        (true, false, true) if !is_sign_in(path) => 0.7,
        (false, true, true) => 0.6,
        _ => return None,
    };
    let host = url.host().map(|host| match host {
        Host::Domain(domain) => domain.to_owned(),
        address => address.to_string(),
    });
    Some(FoundLink { value: link.to_owned(), start, end, confidence, host })
}

/// `…/login` stands in many mails; alone it finishes nothing.
fn is_sign_in(path: &str) -> bool {
    let paths =
        ["verif", "confirm", "activat", "validat", "reset", "magic", "recover", "password", "email-change"];
    !paths.iter().any(|word| path.contains(word))
}

/// A value in the query or a piece of the path that nobody would write by hand.
fn has_token(url: &Url) -> bool {
    let named = |name: &str| {
        ["token", "code", "key", "otp", "ticket", "hash", "signature", "sig", "nonce", "t", "c", "k"]
            .contains(&name)
            || name.ends_with("token")
            || name.ends_with("_code")
    };
    let random = |text: &str| {
        let digits = text.bytes().filter(u8::is_ascii_digit).count();
        text.len() >= 16
            && digits >= 2
            && text.bytes().any(|o| o.is_ascii_alphabetic())
            && !text.contains('/')
    };
    let in_query = url
        .query_pairs()
        .take(20)
        .any(|(name, value)| (named(&name.to_ascii_lowercase()) && value.len() >= 4) || random(&value));
    let in_path = url.path_segments().is_some_and(|mut parts| {
        parts.any(|part| {
            random(part)
                || (part.len() >= 6
                    && part.bytes().any(|o| o.is_ascii_digit())
                    && part.bytes().any(|o| o.is_ascii_alphabetic()))
        })
    });
    in_query || in_path || url.fragment().is_some_and(random)
}

/// Whether two names belong to one organisation, by the public suffix list.
pub(super) fn same_organisation(host: &str, sender: &str) -> bool {
    let plain = |name: &str| name.trim_end_matches('.').to_ascii_lowercase();
    let (Ok(host), Ok(sender)) = (idna::domain_to_ascii(&plain(host)), idna::domain_to_ascii(&plain(sender)))
    else {
        return false;
    };
    match (psl::domain(host.as_bytes()), psl::domain(sender.as_bytes())) {
        (Some(host), Some(sender)) => host.as_bytes() == sender.as_bytes(),
        // A public suffix itself, or a name inside a network.
        _ => host == sender,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn organisations_are_compared_not_strings() {
        for (host, sender, same) in [
            ("login.example.com", "mail.example.com", true),
            ("example.com", "EXAMPLE.com.", true),
            ("a.example.co.uk", "b.other.co.uk", false),
            ("eve.github.io", "ada.github.io", false),
            ("bücher.example", "xn--bcher-kva.example", true),
            ("example.com.evil.net", "example.com", false),
            ("192.0.2.1", "example.com", false),
        ] {
            assert_eq!(same_organisation(host, sender), same, "{host} {sender}");
        }
    }

    /// What a browser opens counts, not what the address looks like.
    #[test]
    fn a_link_belongs_to_the_host_that_a_browser_asks() {
        for (link, host) in [
            ("https://bank.example@evil.example/verify?token=abc123", "evil.example"),
            ("https://evil.example\\@bank.example/verify?token=abc123", "evil.example"),
            ("https://bank.example:443@evil.example:8443/verify?token=abc123", "evil.example"),
            ("HTTPS://BANK.example/verify?token=abc123", "bank.example"),
        ] {
            let found = judge(link, "verify", (0, 0)).unwrap();
            assert_eq!(found.host.as_deref(), Some(host), "{link}");
        }
        let page = "<a\nclass='x' href = 'https://ev\nil.example/verify?a=1&amp;token=abc123'>https://bank.example/verify</a>";
        let found = in_page(page);
        assert_eq!(found[0].value, "https://evil.example/verify?a=1&token=abc123");
        assert_eq!(&page[found[0].start..found[0].end], "https://ev\nil.example/verify?a=1&amp;token=abc123");
        assert_eq!(in_page("<a href='javascript:verify(token)'>verify</a><a href=x>verify</a>"), []);
    }
}
