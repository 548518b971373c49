//! Allow and block lists, at organization, pod and inbox scope, for what is sent, received, and received as a reply.

use super::message::to_json;
use super::{Row, StoreError, Tx};
use crate::address::Address;
use crate::clock::Millis;
use crate::ids::InboxKey;

/// The key of entries that hold for the whole organization.
pub const ORGANIZATION: InboxKey = InboxKey { pod: 0, inbox: 0 };

/// The key of entries that hold for every inbox of a pod.
pub fn pod(pod: i64) -> InboxKey {
    InboxKey { pod, inbox: 0 }
}

/// What a scope is called.
pub fn scope_word(scope: InboxKey) -> &'static str {
    match scope {
        ORGANIZATION => "organization",
        InboxKey { inbox: 0, .. } => "pod",
        _ => "inbox",
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListDirection {
    Send,
    Receive,
    /// Inbound mail that answers ours.
    Reply,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListType {
    Allow,
    Block,
}

impl ListDirection {
    pub fn text(self) -> &'static str {
        match self {
            ListDirection::Send => "send",
            ListDirection::Receive => "receive",
            ListDirection::Reply => "reply",
        }
    }

    pub fn parse(text: &str) -> Option<ListDirection> {
        [ListDirection::Send, ListDirection::Receive, ListDirection::Reply]
            .into_iter()
            .find(|d| d.text() == text)
    }
}

impl ListType {
    pub fn text(self) -> &'static str {
        match self {
            ListType::Allow => "allow",
            ListType::Block => "block",
        }
    }

    pub fn parse(text: &str) -> Option<ListType> {
        [ListType::Allow, ListType::Block].into_iter().find(|t| t.text() == text)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListEntry {
    /// `ORGANIZATION`, a `pod`, or the inbox.
    pub scope: InboxKey,
    pub direction: ListDirection,
    pub list_type: ListType,
    /// An address (`Address::key`) or a domain in A-labels.
    pub entry: String,
    pub is_domain: bool,
    pub reason: Option<String>,
    pub created_at: Millis,
}

fn from_row(row: &Row) -> Result<ListEntry, StoreError> {
    let (direction, list_type): (String, String) = (row.get(2)?, row.get(3)?);
    let damaged = || StoreError::Damaged(format!("list entry {direction}/{list_type}"));
    Ok(ListEntry {
        scope: InboxKey { pod: row.get(0)?, inbox: row.get(1)? },
        direction: ListDirection::parse(&direction).ok_or_else(damaged)?,
        list_type: ListType::parse(&list_type).ok_or_else(damaged)?,
        entry: row.get(4)?,
        is_domain: row.get::<String>(5)? == "domain",
        reason: row.get(6)?,
        created_at: row.get(7)?,
    })
}

/// Adds an entry; one that is there already stays, with the newer reason.
pub async fn put(tx: &mut Tx, entry: &ListEntry) -> Result<ListEntry, StoreError> {
    let row = tx
        .row(
            "INSERT INTO list_entry (pod_key, inbox_key, direction, list_type, entry, entry_type, reason, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
             ON CONFLICT (pod_key, inbox_key, direction, list_type, entry) DO UPDATE SET reason = excluded.reason
             RETURNING pod_key, inbox_key, direction, list_type, entry, entry_type, reason, created_at",
            &[
                entry.scope.pod.into(),
                entry.scope.inbox.into(),
                entry.direction.text().into(),
                entry.list_type.text().into(),
                (&entry.entry).into(),
                (if entry.is_domain { "domain" } else { "email" }).into(),
                entry.reason.clone().into(),
                entry.created_at.into(),
            ],
        )
        .await?;
    row.as_ref().ok_or(StoreError::Closed).and_then(from_row)
}

pub async fn get(
    tx: &mut Tx,
    scope: InboxKey,
    direction: ListDirection,
    list_type: ListType,
    entry: &str,
) -> Result<Option<ListEntry>, StoreError> {
    let row = tx
        .row(
            "SELECT pod_key, inbox_key, direction, list_type, entry, entry_type, reason, created_at FROM list_entry
             WHERE pod_key = $1 AND inbox_key = $2 AND direction = $3 AND list_type = $4 AND entry = $5",
            &[
                scope.pod.into(),
                scope.inbox.into(),
                direction.text().into(),
                list_type.text().into(),
                entry.into(),
            ],
        )
        .await?;
    row.as_ref().map(from_row).transpose()
}

/// Whether there was such an entry.
pub async fn remove(
    tx: &mut Tx,
    scope: InboxKey,
    direction: ListDirection,
    list_type: ListType,
    entry: &str,
) -> Result<bool, StoreError> {
    let removed = tx
        .execute(
            "DELETE FROM list_entry
             WHERE pod_key = $1 AND inbox_key = $2 AND direction = $3 AND list_type = $4 AND entry = $5",
            &[
                scope.pod.into(),
                scope.inbox.into(),
                direction.text().into(),
                list_type.text().into(),
                entry.into(),
            ],
        )
        .await?;
    Ok(removed > 0)
}

/// A page in the order of the entries' text; `after` is the last one seen.
pub async fn page(
    tx: &mut Tx,
    scope: InboxKey,
    direction: ListDirection,
    list_type: ListType,
    after: &str,
    limit: i64,
) -> Result<Vec<ListEntry>, StoreError> {
    let rows = tx
        .rows(
            "SELECT pod_key, inbox_key, direction, list_type, entry, entry_type, reason, created_at FROM list_entry
             WHERE pod_key = $1 AND inbox_key = $2 AND direction = $3 AND list_type = $4 AND entry > $5
             ORDER BY entry LIMIT $6",
            &[
                scope.pod.into(),
                scope.inbox.into(),
                direction.text().into(),
                list_type.text().into(),
                after.into(),
                limit.into(),
            ],
        )
        .await?;
    rows.iter().map(from_row).collect()
}

/// What the lists say of one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListVerdict {
    Allowed,
    /// A block entry at any scope wins.
    Blocked(ListEntry),
    /// The scope has allow entries, and none of them matches: every scope that has some must allow.
    NotAllowed {
        scope: InboxKey,
    },
}

/// Asks every scope about each address, in one statement for all of them.
pub async fn check(
    tx: &mut Tx,
    inbox: InboxKey,
    direction: ListDirection,
    addresses: &[Address],
) -> Result<Vec<ListVerdict>, StoreError> {
    let found = match any(tx, inbox, direction).await? {
        true => about(tx, inbox, direction, addresses).await?,
        false => Vec::new(),
    };
    Ok(addresses.iter().map(|address| judge(&found, address)).collect())
}

/// Whether a scope of the inbox has a list at all: most have none, and finding that out costs little.
async fn any(tx: &mut Tx, inbox: InboxKey, direction: ListDirection) -> Result<bool, StoreError> {
    let row = tx
        .row(
            "SELECT 1 WHERE EXISTS (SELECT 1 FROM list_entry
                            WHERE pod_key = 0 AND inbox_key = 0 AND direction = $3)
                         OR EXISTS (SELECT 1 FROM list_entry
                            WHERE pod_key = $1 AND inbox_key = 0 AND direction = $3)
                         OR EXISTS (SELECT 1 FROM list_entry
                            WHERE pod_key = $1 AND inbox_key = $2 AND direction = $3)",
            &[inbox.pod.into(), inbox.inbox.into(), direction.text().into()],
        )
        .await?;
    Ok(row.is_some())
}

/// What the lists of every scope have to say about these addresses, for `judge`.
pub async fn about(
    tx: &mut Tx,
    inbox: InboxKey,
    direction: ListDirection,
    addresses: &[Address],
) -> Result<Vec<ListEntry>, StoreError> {
    let mut names: Vec<String> = Vec::new();
    for address in addresses {
        names.push(address.key());
        names.extend(domains_above(address.domain()).map(str::to_owned));
    }
    // What matches, and one allow entry of each scope, which shows that the scope has any. SQLite is told to go
    // by the names: by itself it walks the list, which may be long, for every message.
    let sql = tx.either(
        "SELECT l.pod_key, l.inbox_key, l.direction, l.list_type, l.entry, l.entry_type, l.reason, l.created_at
         FROM json_each($4) AS name CROSS JOIN list_entry AS l
         WHERE ((l.pod_key = 0 AND l.inbox_key = 0) OR (l.pod_key = $1 AND l.inbox_key IN (0, $2)))
           AND l.direction = $3 AND l.list_type IN ('allow', 'block') AND l.entry = name.value
         UNION ALL SELECT * FROM (SELECT pod_key, inbox_key, direction, list_type, '', entry_type, NULL, 0 FROM list_entry
           WHERE pod_key = 0 AND inbox_key = 0 AND direction = $3 AND list_type = 'allow' LIMIT 1)
         UNION ALL SELECT * FROM (SELECT pod_key, inbox_key, direction, list_type, '', entry_type, NULL, 0 FROM list_entry
           WHERE pod_key = $1 AND inbox_key = 0 AND direction = $3 AND list_type = 'allow' LIMIT 1)
         UNION ALL SELECT * FROM (SELECT pod_key, inbox_key, direction, list_type, '', entry_type, NULL, 0 FROM list_entry
           WHERE pod_key = $1 AND inbox_key = $2 AND direction = $3 AND list_type = 'allow' LIMIT 1)",
        "SELECT pod_key, inbox_key, direction, list_type, entry, entry_type, reason, created_at FROM list_entry
         WHERE ((pod_key = 0 AND inbox_key = 0) OR (pod_key = $1 AND inbox_key IN (0, $2))) AND direction = $3
           AND list_type IN ('allow', 'block') AND entry = ANY (ARRAY(SELECT json_array_elements_text($4::json)))
         UNION ALL (SELECT pod_key, inbox_key, direction, list_type, ''::text, entry_type, NULL::text, 0::bigint FROM list_entry
           WHERE pod_key = 0 AND inbox_key = 0 AND direction = $3 AND list_type = 'allow' LIMIT 1)
         UNION ALL (SELECT pod_key, inbox_key, direction, list_type, ''::text, entry_type, NULL::text, 0::bigint FROM list_entry
           WHERE pod_key = $1 AND inbox_key = 0 AND direction = $3 AND list_type = 'allow' LIMIT 1)
         UNION ALL (SELECT pod_key, inbox_key, direction, list_type, ''::text, entry_type, NULL::text, 0::bigint FROM list_entry
           WHERE pod_key = $1 AND inbox_key = $2 AND direction = $3 AND list_type = 'allow' LIMIT 1)",
    );
    let args = [inbox.pod.into(), inbox.inbox.into(), direction.text().into(), to_json(&names)?.into()];
    tx.rows(sql, &args).await?.iter().map(from_row).collect()
}

/// `mail.partner.example`, `partner.example`, `example`: an entry for a domain covers its subdomains.
fn domains_above(domain: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(domain), |d| d.split_once('.').map(|(_, rest)| rest))
}

/// Every entry that blocks sending to one of the addresses, at any scope: for the mail of many inboxes at once.
pub(crate) async fn send_blocks(tx: &mut Tx, addresses: &[Address]) -> Result<Vec<ListEntry>, StoreError> {
    let mut names = std::collections::BTreeSet::new();
    for address in addresses {
        names.insert(address.key());
        names.extend(domains_above(address.domain()).map(str::to_owned));
    }
    let sql = tx.either(
        "SELECT l.pod_key, l.inbox_key, l.direction, l.list_type, l.entry, l.entry_type, l.reason, l.created_at
         FROM json_each($1) AS name CROSS JOIN list_entry AS l
         WHERE l.entry = name.value AND l.direction = 'send' AND l.list_type = 'block' LIMIT 10000",
        "SELECT pod_key, inbox_key, direction, list_type, entry, entry_type, reason, created_at FROM list_entry
         WHERE entry = ANY (ARRAY(SELECT json_array_elements_text($1::json))) AND direction = 'send'
           AND list_type = 'block' LIMIT 10000",
    );
    tx.rows(sql, &[to_json(&names)?.into()]).await?.iter().map(from_row).collect()
}

/// Whether entries of a scope hold for an inbox.
pub(crate) fn reaches(scope: InboxKey, inbox: InboxKey) -> bool {
    scope == ORGANIZATION || scope == pod(inbox.pod) || scope == inbox
}

/// What the entries that `about` found mean for one of the addresses that it was asked about.
pub fn judge(found: &[ListEntry], address: &Address) -> ListVerdict {
    let key = address.key();
    let matches = |entry: &ListEntry| {
        if entry.is_domain {
            domains_above(address.domain()).any(|d| d == entry.entry)
        } else {
            entry.entry == key
        }
    };
    let blocked = found.iter().find(|e| e.list_type == ListType::Block && matches(e));
    if let Some(entry) = blocked {
        return ListVerdict::Blocked(entry.clone());
    }
    let mut allows = found.iter().filter(|e| e.list_type == ListType::Allow);
    let unmet = allows.find(|some| {
        let scope = some.scope;
        !found.iter().any(|e| e.list_type == ListType::Allow && e.scope == scope && matches(e))
    });
    match unmet {
        Some(entry) => ListVerdict::NotAllowed { scope: entry.scope },
        None => ListVerdict::Allowed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(scope: InboxKey, list_type: ListType, entry: &str) -> ListEntry {
        ListEntry {
            scope,
            direction: ListDirection::Send,
            list_type,
            entry: entry.to_owned(),
            is_domain: !entry.contains('@'),
            reason: None,
            created_at: 0,
        }
    }

    #[test]
    fn a_block_at_any_scope_wins_and_every_scope_with_allows_must_allow() {
        let inbox = InboxKey { pod: 1, inbox: 7 };
        let bob: Address = "Bob@mail.partner.example".parse().unwrap();
        let org = |t, e| entry(ORGANIZATION, t, e);
        let own = |t, e| entry(inbox, t, e);
        assert_eq!(judge(&[], &bob), ListVerdict::Allowed);
        assert_eq!(judge(&[org(ListType::Allow, "partner.example")], &bob), ListVerdict::Allowed);
        let both = [org(ListType::Allow, "partner.example"), own(ListType::Allow, "carol@other.example")];
        assert_eq!(judge(&both, &bob), ListVerdict::NotAllowed { scope: inbox });
        let blocked =
            [own(ListType::Allow, "bob@mail.partner.example"), org(ListType::Block, "partner.example")];
        assert!(matches!(judge(&blocked, &bob), ListVerdict::Blocked(_)));
        let of_pod = [entry(pod(1), ListType::Allow, "carol@other.example")];
        assert_eq!(judge(&of_pod, &bob), ListVerdict::NotAllowed { scope: pod(1) });
        let evil: Address = "bob@evilpartner.example".parse().unwrap();
        assert_eq!(
            judge(&[org(ListType::Allow, "partner.example")], &evil),
            ListVerdict::NotAllowed { scope: ORGANIZATION }
        );
    }
}
