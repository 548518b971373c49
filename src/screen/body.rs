//! Which parts are the body, and which are attachments.
//!
//! Rule: every leaf is either in the body, an alternative form of something in the body, part of an attached
//! message, or an attachment. Nothing an agent might need can fall between.

use super::structure::{Part, Structure};

/// Fills `text`, `html`, `body` and the `attachment` marks from the tree of parts.
pub(crate) fn choose(structure: &mut Structure) {
    let mut children: Vec<Vec<u32>> = vec![Vec::new(); structure.parts.len()];
    for (index, part) in structure.parts.iter().enumerate() {
        if let Some(list) = part.parent.and_then(|parent| children.get_mut(parent as usize)) {
            list.push(index as u32);
        }
    }
    let mut choice =
        Choice { parts: &structure.parts, children: &children, blocks: Vec::new(), attachments: Vec::new() };
    if !structure.parts.is_empty() {
        choice.visit(0);
    }
    let Choice { blocks, attachments, .. } = choice;
    structure.text = blocks.first().and_then(|block| block.text);
    structure.html = blocks.iter().find_map(|block| block.html);
    structure.body = blocks.iter().filter_map(|block| block.text.or(block.html)).collect();
    for index in attachments {
        if let Some(part) = structure.parts.get_mut(index as usize) {
            part.attachment = true;
        }
    }
}

/// A stretch of the body: one text in one or two forms.
#[derive(Default, Clone, Copy)]
struct Block {
    text: Option<u32>,
    html: Option<u32>,
}

struct Choice<'a> {
    parts: &'a [Part],
    children: &'a [Vec<u32>],
    blocks: Vec<Block>,
    attachments: Vec<u32>,
}

impl Choice<'_> {
    fn visit(&mut self, index: u32) {
        let parts = self.parts;
        let Some(part) = parts.get(index as usize) else { return };
        let children = self.children.get(index as usize).map(Vec::as_slice).unwrap_or_default();
        match part.content_type.as_str() {
            "multipart/alternative" if !children.is_empty() => self.visit_alternative(children),
            "multipart/related" if !children.is_empty() => self.visit_related(children),
            kind if kind.starts_with("multipart/") && !children.is_empty() => {
                for &child in children {
                    self.visit(child);
                }
            }
            _ if self.is_body(index, part) => {
                let html = part.content_type == "text/html";
                let block = if html {
                    Block { text: None, html: Some(index) }
                } else {
                    Block { text: Some(index), html: None }
                };
                self.blocks.push(block);
            }
            _ => self.attachments.push(index),
        }
    }

    /// A text that is read with the body: shown inline and not a named file, unless it is the whole message.
    fn is_body(&self, index: u32, part: &Part) -> bool {
        // A multipart without parts, or of an unknown boundary, is read as text: it often is.
        let text = matches!(part.content_type.as_str(), "text/plain" | "text/html")
            || part.content_type.starts_with("multipart/");
        let attached = part.disposition.as_deref() == Some("attachment") || part.filename.is_some();
        text && (!attached || (index == 0 && part.disposition.as_deref() != Some("attachment")))
    }

    /// RFC 2046 §5.1.4: forms of one text, the richest last. One block; other text forms are left to those
    /// who ask for the part, everything else (an invitation, say) is an attachment.
    fn visit_alternative(&mut self, children: &[u32]) {
        let mut inner = Choice {
            parts: self.parts,
            children: self.children,
            blocks: Vec::new(),
            attachments: Vec::new(),
        };
        for &child in children {
            inner.visit(child);
        }
        let text = inner.blocks.iter().find_map(|block| block.text);
        let html = inner.blocks.iter().rev().find_map(|block| block.html);
        if text.is_some() || html.is_some() {
            self.blocks.push(Block { text, html });
        }
        let parts = self.parts;
        self.attachments.extend(inner.attachments.into_iter().filter(|&index| {
            let is_form = |part: &Part| {
                children.contains(&index)
                    && part.content_type.starts_with("text/")
                    && part.content_type != "text/calendar"
                    && part.disposition.as_deref() != Some("attachment")
                    && part.filename.is_none()
            };
            !parts.get(index as usize).is_some_and(is_form)
        }));
    }

    /// RFC 2387: the first part is what is read, the others are what it refers to. (`start` is not looked
    /// at: nobody sends another root than the first.)
    fn visit_related(&mut self, children: &[u32]) {
        let blocks = self.blocks.len();
        for (nth, &child) in children.iter().enumerate() {
            let is_root = nth == 0 || self.blocks.len() == blocks;
            if is_root { self.visit(child) } else { self.attach_all(child) }
        }
    }

    /// Everything below as attachments.
    fn attach_all(&mut self, index: u32) {
        let parts = self.parts;
        let children = self.children.get(index as usize).map(Vec::as_slice).unwrap_or_default();
        let multipart =
            parts.get(index as usize).is_some_and(|part| part.content_type.starts_with("multipart/"));
        if multipart && !children.is_empty() {
            for &child in children {
                self.attach_all(child);
            }
        } else {
            self.attachments.push(index);
        }
    }
}
