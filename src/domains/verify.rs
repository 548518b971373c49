//! Whether a domain is what its owner says: looked up, judged, and written under the lock of its row.
//!
//! An added domain is verified when everything that mail needs is there, its DKIM keys above all: they were made
//! for this claim, so only who writes the zone can publish them. It is looked at again every day, and loses what
//! it was given when its keys or its MX are gone for three days on end, as long as Amazon SES waits; a name
//! server that does not answer proves nothing.
//!
//! A crash between look and write costs the look; two nodes that look at once write the same.

use std::sync::Arc;

use tracing::{error, info};

use super::look::{self, Finding, State};
use super::records::{self, Purpose, Subject};
use crate::clock::Millis;
use crate::dns::Resolver;
use crate::floor::Floor;
use crate::ids::InboxKey;
use crate::store::dkim_key::{self, DkimKeyRow, KeyState};
use crate::store::domain::{self, Domain, DomainStatus};
use crate::store::event::{self, NewEvent};
use crate::store::{StoreError, Tx, audit};

const MINUTE: Millis = 60_000;
const HOUR: Millis = 60 * MINUTE;
const DAY: Millis = 24 * HOUR;
/// For how long an unverified domain is looked at by itself; `verify` looks at any time.
pub(crate) const TRIED_FOR: Millis = 7 * DAY;
/// How often a verified one is.
const KEPT_EVERY: Millis = DAY;
/// For how long keys or MX may be gone.
const LOST_AFTER: Millis = 3 * DAY;
/// For how long a key that signs no more is still to be published: mail is tried for five days, and verified
/// again where it is forwarded.
pub(crate) const OVERLAP: Millis = 7 * DAY;

/// Who asked for the look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Occasion {
    /// Somebody waits for the answer.
    Asked,
    /// Its time had come.
    Routine,
}

/// The domain with its keys, as they were read together.
pub(crate) async fn with_keys(
    tx: &mut Tx,
    name: &str,
) -> Result<Option<(Domain, Vec<DkimKeyRow>)>, StoreError> {
    let Some(domain) = domain::by_name(tx, name).await? else { return Ok(None) };
    let keys = dkim_key::all_of_domain(tx, name).await?;
    Ok(Some((domain, keys)))
}

/// What the DNS says about every record of the domain, from its name servers and no cache: whoever has just
/// mended a record wants to see that.
pub(crate) async fn look(floor: &Floor, domain: &Domain, keys: &[DkimKeyRow]) -> Vec<Finding> {
    let subject = Subject { name: &domain.name, features: domain.features };
    let wanted = records::wanted(&floor.config, subject, keys);
    match Resolver::new(&floor.config.dns.servers) {
        Ok(fresh) => look::look(&fresh, &floor.config, wanted).await,
        Err(_) => look::look(&floor.dns, &floor.config, wanted).await,
    }
}

/// Looks at a domain and writes what comes of it; `None` where there is no such domain (any more).
pub(crate) async fn check(
    floor: &Floor,
    name: &str,
    occasion: Occasion,
) -> Result<Option<Domain>, StoreError> {
    let asked = name.to_owned();
    let found = floor.store.read(move |tx| Box::pin(async move { with_keys(tx, &asked).await })).await?;
    let Some((seen, keys)) = found else { return Ok(None) };
    let findings = Arc::new(look(floor, &seen, &keys).await);
    let keys = Arc::new(keys);
    // By our own clock, as the look was: a script moves it in tests.
    let now = floor.clock.now();
    let written = floor.store.write(move |tx| {
        let (findings, keys, seen) = (findings.clone(), keys.clone(), seen.clone());
        Box::pin(async move {
            let Some(domain) = domain::lock(tx, &seen.name).await? else { return Ok(None) };
            if domain.domain_key != seen.domain_key {
                return Ok(None);
            }
            if domain.features != seen.features {
                // Other records are wanted than were looked up; the next look is about those.
                return Ok(Some(domain));
            }
            turn_keys(tx, &domain, &keys, &findings, now).await?;
            let mut judged = judge(&domain, &findings, occasion, now);
            judged.findings = super::super::store::message::to_json(&*findings)?;
            domain::update(tx, &judged).await?;
            announce(tx, &domain, &judged).await?;
            Ok::<_, StoreError>(Some(judged))
        })
    });
    let judged = written.await?;
    floor.domains.refresh(&floor.store).await?;
    Ok(judged)
}

/// Pure: what the domain is after this look.
fn judge(domain: &Domain, findings: &[Finding], occasion: Occasion, now: Millis) -> Domain {
    let required = || findings.iter().filter(|f| f.purpose.is_of_domain() && !f.optional);
    let any = |state| required().any(|f| f.state == state);
    let says = |f: &Finding| format!("{} {}: {}", f.kind, f.name, f.fix.as_deref().unwrap_or("is not right"));
    let mut after = domain.clone();
    after.checked_at = Some(now);
    after.reason =
        required().find(|f| f.is_bad()).or_else(|| required().find(|f| f.state == State::Unknown)).map(says);
    let whole = !any(State::Wrong) && !any(State::Missing) && !any(State::Unknown);
    let turning = findings.iter().any(|f| f.purpose == Purpose::DkimNext);
    if domain.is_usable() {
        // The configuration's are the operator's word; nobody else gives or takes them.
        let lost = required().any(|f| matches!(f.purpose, Purpose::Dkim | Purpose::Mx) && f.is_bad());
        let unknown =
            required().any(|f| matches!(f.purpose, Purpose::Dkim | Purpose::Mx) && f.state == State::Unknown);
        after.failing_since = match (lost, unknown) {
            (true, _) => domain.failing_since.or(Some(now)),
            (false, true) => domain.failing_since,
            (false, false) => None,
        };
        let gone = after.failing_since.is_some_and(|since| lost && now - since >= LOST_AFTER);
        after.next_check_at = Some(now + if after.failing_since.is_some() { HOUR } else { KEPT_EVERY });
        if gone && !domain.configured {
            after.status = DomainStatus::Failed;
            after.next_check_at = None;
        }
    } else if whole {
        after.status = DomainStatus::Verified;
        after.verified_at = Some(now);
        after.failing_since = None;
        after.next_check_at = Some(now + KEPT_EVERY);
    } else {
        let age = now - domain.created_at;
        // Asking does not begin the week anew: a name that nobody proves is free for the next who can.
        let over =
            age >= TRIED_FOR && (occasion == Occasion::Routine || domain.status == DomainStatus::Failed);
        after.status = if over {
            DomainStatus::Failed
        } else if any(State::Wrong) {
            DomainStatus::Invalid
        } else if any(State::Missing) {
            DomainStatus::Pending
        } else {
            DomainStatus::Verifying
        };
        // A record that was just set is seen soon; one that was not for days, in hours.
        let wait = (age / 10).clamp(MINUTE, 4 * HOUR);
        let planned = domain.next_check_at.filter(|_| occasion == Occasion::Asked).unwrap_or(now + wait);
        after.next_check_at = (after.status != DomainStatus::Failed).then_some(planned.min(now + wait));
    }
    if turning && after.next_check_at.is_some() {
        after.next_check_at = after.next_check_at.map(|at| at.min(now + 5 * MINUTE));
    }
    after
}

/// New keys sign once all of them are seen in the DNS; those before stay published for the overlap.
async fn turn_keys(
    tx: &mut Tx,
    domain: &Domain,
    seen: &[DkimKeyRow],
    findings: &[Finding],
    now: Millis,
) -> Result<(), StoreError> {
    let current = dkim_key::all_of_domain(tx, &domain.name).await?;
    let selectors = |keys: &[DkimKeyRow], state| -> Vec<String> {
        keys.iter().filter(|k| k.state == state).map(|k| k.selector.clone()).collect()
    };
    let next = selectors(&current, KeyState::Next);
    let published =
        || findings.iter().filter(|f| f.purpose == Purpose::DkimNext).all(|f| f.state == State::Ok);
    // What was looked up has to be what is there now: another node may have begun anew.
    if !next.is_empty() && next == selectors(seen, KeyState::Next) && published() {
        dkim_key::advance(tx, &domain.name, KeyState::Active, KeyState::Retiring).await?;
        dkim_key::advance(tx, &domain.name, KeyState::Next, KeyState::Active).await?;
        note(tx, domain, "domain.dkim_activated", serde_json::json!({ "selectors": next })).await?;
        info!(dkim.domain = %domain.name, dkim.selectors = ?next, "new DKIM keys sign");
    }
    let over: Vec<String> = current
        .iter()
        .filter(|k| k.state == KeyState::Retiring && k.state_at + OVERLAP <= now)
        .map(|k| k.selector.clone())
        .collect();
    for selector in &over {
        dkim_key::retire(tx, &domain.name, selector).await?;
    }
    if !over.is_empty() {
        note(tx, domain, "domain.dkim_retired", serde_json::json!({ "selectors": over })).await?;
        info!(dkim.domain = %domain.name, dkim.selectors = ?over, "DKIM records that may be removed now");
    }
    Ok(())
}

/// Where events and audit rows of a domain stand: with its pod, and no inbox.
fn place(domain: &Domain) -> InboxKey {
    InboxKey { pod: domain.pod.unwrap_or(0), inbox: 0 }
}

pub(crate) async fn note(
    tx: &mut Tx,
    domain: &Domain,
    action: &str,
    detail: serde_json::Value,
) -> Result<(), StoreError> {
    recorded(tx, domain, "system", action, detail.clone()).await?;
    let mut data = serde_json::json!({ "domain": domain.name, "domain_id": domain.name });
    if let (Some(data), Some(detail)) = (data.as_object_mut(), detail.as_object()) {
        data.extend(detail.clone());
    }
    event::append(
        tx,
        place(domain),
        NewEvent { event_type: action, data: data.to_string(), ..NewEvent::default() },
    )
    .await
}

pub(crate) async fn recorded(
    tx: &mut Tx,
    domain: &Domain,
    actor: &str,
    action: &str,
    detail: serde_json::Value,
) -> Result<(), StoreError> {
    let (inbox, object) = (Some(place(domain)), domain.name.as_str());
    audit::record(tx, audit::Entry { actor, run_id: None, action, inbox, object, detail: detail.to_string() })
        .await
}

async fn announce(tx: &mut Tx, before: &Domain, after: &Domain) -> Result<(), StoreError> {
    let detail = serde_json::json!({ "status": after.status.text(), "reason": after.reason });
    match (before.status, after.status) {
        (a, b) if a == b => Ok(()),
        (_, DomainStatus::Verified) => {
            info!(domain.name = %after.name, "a domain is verified");
            note(tx, after, "domain.verified", detail).await
        }
        (_, DomainStatus::Failed) => {
            error!(domain.name = %after.name, reason = after.reason, "a domain is not verified (any more)");
            note(tx, after, "domain.failed", detail).await
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::domain::Features;

    fn domain(status: DomainStatus) -> Domain {
        Domain {
            domain_key: 1,
            name: "a.example".into(),
            pod: Some(2),
            configured: false,
            status,
            reason: None,
            features: Features::default(),
            findings: String::new(),
            checked_at: None,
            next_check_at: Some(0),
            failing_since: None,
            verified_at: None,
            created_at: 0,
            updated_at: 0,
        }
    }

    fn finding(purpose: Purpose, state: State) -> Finding {
        Finding {
            purpose,
            name: "a.example".into(),
            kind: purpose.kind().into(),
            value: "x".into(),
            why: String::new(),
            optional: false,
            state,
            found: None,
            fix: None,
        }
    }

    fn after(domain: &Domain, states: &[(Purpose, State)], now: Millis) -> Domain {
        let findings: Vec<Finding> = states.iter().map(|(p, s)| finding(*p, *s)).collect();
        judge(domain, &findings, Occasion::Routine, now)
    }

    #[test]
    fn only_everything_verifies_and_trying_ends() {
        use Purpose::{Dkim, Mx, ReverseDns};
        let new = domain(DomainStatus::NotStarted);
        let status = |states: &[(Purpose, State)], now| after(&new, states, now).status;
        assert_eq!(
            status(&[(Mx, State::Ok), (Dkim, State::Ok), (ReverseDns, State::Missing)], 1),
            DomainStatus::Verified
        );
        assert_eq!(status(&[(Mx, State::Ok), (Dkim, State::Missing)], 1), DomainStatus::Pending);
        assert_eq!(status(&[(Mx, State::Wrong), (Dkim, State::Missing)], 1), DomainStatus::Invalid);
        assert_eq!(status(&[(Mx, State::Ok), (Dkim, State::Unknown)], 1), DomainStatus::Verifying);
        let late = after(&new, &[(Dkim, State::Missing)], TRIED_FOR);
        assert_eq!((late.status, late.next_check_at), (DomainStatus::Failed, None));
        let asked = |domain: &Domain, states: &[(Purpose, State)]| {
            let findings: Vec<Finding> = states.iter().map(|(p, s)| finding(*p, *s)).collect();
            judge(domain, &findings, Occasion::Asked, TRIED_FOR)
        };
        assert_eq!(asked(&late, &[(Dkim, State::Missing)]).status, DomainStatus::Failed);
        assert_eq!(asked(&late, &[(Dkim, State::Ok)]).status, DomainStatus::Verified);
        let waits = asked(&new, &[(Dkim, State::Missing)]);
        assert_eq!((waits.status, waits.next_check_at), (DomainStatus::Pending, new.next_check_at));
        let soon = after(&new, &[(Dkim, State::Missing)], MINUTE);
        assert_eq!(soon.next_check_at, Some(2 * MINUTE));
    }

    #[test]
    fn a_name_server_that_is_down_for_a_week_takes_nothing_away_and_missing_keys_do() {
        let mut kept = domain(DomainStatus::Verified);
        for day in 0..7 {
            kept = after(&kept, &[(Purpose::Dkim, State::Unknown)], day * DAY);
            assert_eq!(kept.status, DomainStatus::Verified);
        }
        let first = after(&kept, &[(Purpose::Dkim, State::Missing)], 8 * DAY);
        assert_eq!((first.status, first.failing_since), (DomainStatus::Verified, Some(8 * DAY)));
        let healed = after(&first, &[(Purpose::Dkim, State::Ok)], 9 * DAY);
        assert_eq!(healed.failing_since, None);
        let lost = after(&first, &[(Purpose::Dkim, State::Wrong)], 8 * DAY + LOST_AFTER);
        assert_eq!(lost.status, DomainStatus::Failed);
        let configured = Domain { configured: true, ..first };
        let stays = after(&configured, &[(Purpose::Dkim, State::Wrong)], 8 * DAY + LOST_AFTER);
        assert_eq!(stays.status, DomainStatus::Verified);
    }
}
