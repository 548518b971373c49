//! A reply in HTML: what is history by the marks of mail programs is left out, and what is left is read line by
//! line like a text, quotations being known.

use super::lines::kept;
use super::page::{Line, Page, RULE, Role};

/// The new part of a reply, in both forms.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub html: String,
    pub text: String,
}

/// `None` where the page is too large, or nothing would be left.
pub(super) fn cut(html: &str) -> Option<Reply> {
    let mut page = Page::read(html)?;
    let shown = page.lines();
    if !has_text(&shown) {
        return None;
    }
    drop_marked(&mut page);
    let lines = page.lines();
    if !has_text(&lines) {
        return None;
    }
    let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
    let kept = kept(&texts);
    let text: Vec<&str> =
        kept.spans.iter().flat_map(|span| texts.get(span.clone()).unwrap_or_default()).copied().collect();
    let text: Vec<&str> = text.into_iter().map(|line| if line == RULE { "" } else { line }).collect();
    if text.iter().all(|line| line.trim().is_empty()) {
        return None;
    }
    let mut from = 0;
    for span in &kept.spans {
        drop_lines(&mut page, &lines, from, span.start);
        from = span.end;
    }
    drop_lines(&mut page, &lines, from, lines.len());
    page.prune();
    Some(Reply { html: page.html().trim().to_owned(), text: text.join("\n").trim().to_owned() })
}

fn has_text(lines: &[Line]) -> bool {
    lines.iter().any(|line| line.at.is_some() && !line.text.trim_matches(['>', ' ', '═']).is_empty())
}

/// Leaves out elements that are history or signature by their marks, as long as some text is left.
fn drop_marked(page: &mut Page<'_>) {
    let marked: Vec<(usize, Role)> = page
        .nodes
        .iter()
        .map(|node| node.role)
        .enumerate()
        .filter(|(_, role)| *role != Role::Plain)
        .collect();
    let texts: Vec<usize> =
        page.lines().iter().filter(|line| line.text != RULE).filter_map(|line| line.at).collect();
    let mut texts = texts.into_iter().peekable();
    let mut covered = 0;
    let mut is_first = true;
    for (index, role) in marked {
        // What is below an element that was left out is gone already.
        let Some((first, last)) = page.nodes.get(index).map(|node| (node.first, node.last)) else { continue };
        if first < covered {
            continue;
        }
        while let Some(text) = texts.next_if(|text| *text < first) {
            is_first &= text < covered;
        }
        match role {
            Role::History | Role::Signature if role == Role::History || !is_first => {
                page.drop_node(index);
                covered = last + 1;
            }
            Role::HistoryBelow if !is_first => {
                page.drop_from_node(index);
                return;
            }
            _ => {}
        }
    }
    // Where a page quotes once and says not whom, that is what it answers; several are answered one by one.
    if let [only] = page.outer_quotes().as_slice() {
        let only = *only;
        let first = page.nodes.get(only).map_or(0, |node| node.first);
        if shows_text_before(page, first) {
            let attributed = is_attributed(page, first);
            if !attributed {
                page.drop_node(only);
            }
        }
    }
}

fn shows_text_before(page: &Page<'_>, event: usize) -> bool {
    page.lines().iter().any(|line| line.at.is_some_and(|at| at < event) && line.text != RULE)
}

/// Whether the line above is an attribution, which the lines are then read for.
fn is_attributed(page: &Page<'_>, event: usize) -> bool {
    let lines = page.lines();
    let above: Vec<&str> = lines
        .iter()
        .filter(|line| line.at.is_some_and(|at| at < event))
        .map(|line| line.text.as_str())
        .collect();
    (above.len().saturating_sub(3)..above.len()).any(|at| {
        super::marks::attribution(&above, at).is_some()
            || super::marks::introduces(above.get(at).unwrap_or(&""))
    })
}

/// Leaves out the lines `from..to`, with the tags that belong to nothing else.
fn drop_lines(page: &mut Page<'_>, lines: &[Line], from: usize, to: usize) {
    let at = |index: usize| lines.get(index..)?.iter().find_map(|line| line.at.map(|at| (at, &line.text)));
    let dropped = lines.get(from..to).unwrap_or_default();
    let Some(first) = dropped.iter().find(|line| line.at.is_some()) else { return };
    let mut start = first.at.unwrap_or_default();
    // A rule that stands in another element than the header below it belongs to the page.
    if first.text == RULE && !page.rule_is_beside(start) {
        start += 1;
    }
    let end = at(to).map_or(page.events(), |(at, _)| at);
    page.drop_events(start, end);
}
