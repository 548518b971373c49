//! A mailing list that changes a message breaks what its author proved. Where the operator has named the
//! list (`verify.arc_forwarders`), its ARC seal can turn the author's DMARC policy off for one message.
//!
//! Only when the chain passes, its newest set is by a named forwarder, and the oldest set of the unbroken row
//! of such sets at its end says that DMARC passed for this author domain (or that an aligned DKIM or SPF
//! did). What a stranger has sealed in between ends the row: he may have changed the message.
//!
//! Never: a verified sender. Who wrote it is known from hearsay, and the result stays `fail`.

use super::arc::Chain;
use super::verdict::AuthResult;
use crate::address::normalize_domain;

/// The forwarder whose word counts against the policy, if there is one.
pub(crate) fn by_forwarder(
    chain: &Chain<'_>,
    forwarders: &[String],
    aligned: impl Fn(&str) -> bool,
    author: &str,
) -> Option<String> {
    if chain.record.result != AuthResult::Pass || forwarders.is_empty() {
        return None;
    }
    let trusted = |domain: &str| forwarders.iter().any(|named| is_or_below(domain, named));
    let row = chain.newest_first().take_while(|(domains, _)| domains.iter().all(|domain| trusted(domain)));
    let ([sealer, _], results) = row.last()?;
    let text = std::str::from_utf8(results).ok()?;
    saw_pass(text, aligned, author).then(|| sealer.to_owned())
}

fn is_or_below(domain: &str, named: &str) -> bool {
    domain.strip_suffix(named).is_some_and(|head| head.is_empty() || head.ends_with('.'))
}

/// Whether results (RFC 8601 §2.2, behind `i=`) say that this author was authenticated.
fn saw_pass(text: &str, aligned: impl Fn(&str) -> bool, author: &str) -> bool {
    let text = without_comments(text);
    text.split(';').skip(2).any(|result| {
        let mut words = result.split_ascii_whitespace();
        let Some((method, "pass")) = words.next().and_then(|word| word.split_once('=')) else {
            return false;
        };
        let properties: Vec<(&str, String)> = words.filter_map(property).collect();
        let said = |name: &str| properties.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, d)| d);
        match method.to_ascii_lowercase().as_str() {
            "dmarc" => said("header.from").is_some_and(|from| from == author),
            "dkim" => said("header.d").or_else(|| said("header.i")).is_some_and(|domain| aligned(domain)),
            "spf" => said("smtp.mailfrom").is_some_and(|domain| aligned(domain)),
            _ => false,
        }
    })
}

/// `header.i=@lists.example` → its name and its domain.
fn property(word: &str) -> Option<(&str, String)> {
    let (name, value) = word.split_once('=')?;
    let value = value.trim_matches('"');
    let domain = value.rsplit_once('@').map_or(value, |(_, domain)| domain);
    Some((name, normalize_domain(domain).ok()?))
}

/// Comments become spaces (RFC 5322 §3.2.2), and white space around an equals sign goes.
fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    for c in text.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' if depth == 0 => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if depth > 0 => {
                depth -= 1;
                out.push(' ');
            }
            _ if depth > 0 => {}
            // Inside quotes nothing begins a result.
            ';' if quoted => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pass_for_this_author_counts() {
        let aligned = |domain: &str| domain == "a.example" || domain == "mail.a.example";
        for good in [
            "i=1; mx.lists.example; spf=fail smtp.mailfrom=x.example; dmarc=pass (p=NONE) header.from=A.example",
            "i=1; mx.lists.example; dkim=pass (2048-bit; key) header.i=@mail.a.example",
            "i=1; mx.lists.example;\r\n\tdkim=pass header.d=a.example header.s=s; dmarc=fail",
            "i=1; x; spf=pass smtp.mailfrom=\"eve@a.example\"",
        ] {
            assert!(saw_pass(good, aligned, "a.example"), "{good}");
        }
        for bad in [
            "i=1; mx.lists.example; dmarc=pass",
            "i=1; mx.lists.example; dmarc=pass header.from=b.example",
            "i=1; mx.lists.example; dmarc=fail header.from=a.example",
            "i=1; mx.lists.example; dmarc=fail (; dmarc=pass header.from=a.example)",
            "i=1; mx.lists.example; dmarc=fail reason=\"; dmarc=pass header.from=a.example\"",
            "i=1; dmarc=pass header.from=a.example",
            "i=1; x; dkim=pass header.d=b.example; spf=pass smtp.helo=a.example",
            "i=1; x; dkim=none header.d=a.example; arc=pass",
            "",
        ] {
            assert!(!saw_pass(bad, aligned, "a.example"), "{bad}");
        }
    }
}
