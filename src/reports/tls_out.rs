//! TLS reports that we send: what became of our sessions with a domain's hosts on a day, by mail or by HTTPS.
//!
//! Made of what deliveries left in `store::tls_result`. A mail says `TLS-Required: No`: a report about broken TLS must
//! not wait for that TLS (RFC 8460 §3). A POST goes to vetted addresses only, with a deadline, and its answer is not
//! read; its certificate is not held against it (RFC 8460 §3), for the same reason.
//!
//! RFC 8460 §3 (discovery), §4 (schema), §5 (transport).

use std::collections::BTreeMap;
use std::sync::Arc;

use mail_builder::headers::content_type::ContentType;
use mail_builder::mime::{BodyPart, MimePart};
use serde_json::{Value, json};

use super::destination::{self, Destination};
use super::letterhead::{Letterhead, Period, gzip};
use super::outgoing::{SendError, finish, shown};
use crate::clock::{DAY, rfc3339};
use crate::deliver::compose::{self, Boundaries, Composition};
use crate::deliver::header::{HeaderName, HeaderValue};
use crate::deliver::{Network, addresses};
use crate::fetch;
use crate::floor::Floor;
use crate::gate;
use crate::store::StoreError;
use crate::store::report_out::{self, Due};
use crate::store::tls_result::{self, PolicyType, ResultType, TlsResult};

/// Domains that one look puts on the list.
const DOMAINS: i64 = 500;

/// Puts the domains of a day on the list of what will be due; again is as good as once.
pub(super) async fn schedule(floor: &Arc<Floor>, day: i64) -> Result<(), StoreError> {
    let mut after = String::new();
    loop {
        let from = after.clone();
        let found = floor.store.read(move |tx| {
            let from = from.clone();
            Box::pin(async move { tls_result::domains(tx, day, &from, DOMAINS).await })
        });
        let found: Vec<String> = found.await?;
        let Some(last) = found.last().cloned() else { return Ok(()) };
        after = last;
        let found = Arc::new(found);
        let written: Result<(), StoreError> = floor
            .store
            .write(move |tx| {
                let found = found.clone();
                Box::pin(async move {
                    for domain in found.iter() {
                        let due_at = super::outgoing::due_at(day, domain);
                        report_out::schedule(tx, super::ReportKind::Tls, day, domain, due_at).await?;
                    }
                    Ok(())
                })
            })
            .await;
        written?;
    }
}

pub(super) async fn send(floor: &Arc<Floor>, due: &Due) -> Result<&'static str, SendError> {
    let over =
        |state, total, why: &str| finish(floor, due.clone(), state, total, json!([{ "why": why }]), vec![]);
    if !floor.config.reports.tls {
        return Ok(over("unwanted", 0, "reports.tls is off").await?);
    }
    let name = format!("_smtp._tls.{}", due.domain);
    let tags = destination::record(&floor.dns, &name, "TLSRPTv1").await?;
    let wanted = tags.as_deref().and_then(|tags| destination::value(tags, "rua")).map(destination::parse);
    let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) else {
        return Ok(over("unwanted", 0, "it asks for no TLS reports").await?);
    };
    let (day, domain) = (due.day, due.domain.clone());
    let results = floor.store.read(move |tx| {
        let domain = domain.clone();
        Box::pin(async move { tls_result::of_domain(tx, day, &domain).await })
    });
    let results: Vec<(TlsResult, i64)> = results.await?;
    if results.is_empty() {
        return Ok(over("unwanted", 0, "nothing was counted").await?);
    }
    let total = results.iter().fold(0_i64, |sum, (_, sessions)| sum.saturating_add(*sessions));
    let (head, period) = (Letterhead::new(floor, due), Period::new(due));
    let packed = gzip(document(&head, due, &results).to_string().as_bytes());
    let (mut details, mut letters, mut waits) = (Vec::new(), Vec::new(), None);
    for (n, to) in wanted.into_iter().enumerate() {
        let shown = shown(&to);
        match to {
            Destination::Mail { to, most } => {
                let head = head.to(to.clone(), n);
                let raw = mail(&head, &period, &packed);
                if most.is_some_and(|most| raw.len() as u64 > most) {
                    details.push(json!({ "to": shown, "state": "refused", "why": "larger than it takes" }));
                    continue;
                }
                let letter =
                    gate::prepare_by_server(floor, head.from.clone(), to, &raw, "tls_report").await?;
                let none = || SendError::Later("there is no operator's inbox to send from".to_owned());
                letters.push(letter.ok_or_else(none)?);
            }
            Destination::Https(url) => match post(floor, &url, packed.clone()).await {
                Ok(()) => details.push(json!({ "to": shown, "state": "sent" })),
                Err(why) => {
                    details.push(json!({ "to": shown, "state": "failed", "why": super::clip(&why) }));
                    waits = Some(why);
                }
            },
        }
    }
    let reached = letters.len() + details.iter().filter(|d| d["state"] == "sent").count();
    match waits {
        // RFC 8460 §4.1: a POST that failed is tried again; not once another destination has it.
        Some(why) if reached == 0 => Err(SendError::Later(why)),
        _ => {
            let state = if reached > 0 { "sent" } else { "unwanted" };
            Ok(finish(floor, due.clone(), state, total, Value::Array(details), letters).await?)
        }
    }
}

/// What was found of a domain's policy: its kind, its lines, the hosts that it names.
type Policy<'a> = (PolicyType, &'a [String], &'a [String]);

/// RFC 8460 §4.4: one policy for each that was found, with its sessions.
fn document(head: &Letterhead, due: &Due, results: &[(TlsResult, i64)]) -> Value {
    let mut policies: BTreeMap<Policy<'_>, Vec<&(TlsResult, i64)>> = BTreeMap::new();
    for found in results {
        let of = &found.0;
        policies.entry((of.policy_type, &of.policy_strings, &of.policy_mx)).or_default().push(found);
    }
    let policies = policies.into_iter().map(|((kind, strings, mx), results)| {
        let mut policy = json!({ "policy-type": kind.text(), "policy-domain": due.domain });
        if !strings.is_empty() {
            policy["policy-string"] = json!(strings);
        }
        if !mx.is_empty() {
            policy["mx-host"] = json!(mx);
        }
        let sum = |failed: bool| {
            let those = results.iter().filter(|(of, _)| (of.result != ResultType::Success) == failed);
            those.fold(0_i64, |sum, (_, sessions)| sum.saturating_add(*sessions))
        };
        let failures = results.iter().filter(|(of, _)| of.result != ResultType::Success);
        json!({
            "policy": policy,
            "summary": {
                "total-successful-session-count": sum(false),
                "total-failure-session-count": sum(true),
            },
            "failure-details": failures.map(|(of, sessions)| failure(of, *sessions)).collect::<Vec<_>>(),
        })
    });
    let begin = due.day * DAY;
    json!({
        "organization-name": head.organization,
        "date-range": { "start-datetime": rfc3339(begin), "end-datetime": rfc3339(begin + DAY - 1000) },
        "contact-info": head.contact,
        "report-id": head.report_id,
        "policies": policies.collect::<Vec<_>>(),
    })
}

fn failure(of: &TlsResult, sessions: i64) -> Value {
    let mut detail = json!({ "result-type": of.result.text(), "failed-session-count": sessions });
    let known = [
        ("sending-mta-ip", &of.sending_ip),
        ("receiving-mx-hostname", &of.receiving_mx),
        ("receiving-ip", &of.receiving_ip),
    ];
    for (name, value) in known.into_iter().filter(|(_, value)| !value.is_empty()) {
        detail[name] = json!(value);
    }
    detail
}

/// RFC 8460 §5.3.
fn mail(head: &Letterhead, period: &Period, packed: &[u8]) -> Vec<u8> {
    let Period { domain, begin, end } = period;
    let field = |name: &str, value: &str| Some((HeaderName::new(name).ok()?, HeaderValue::cleaned(value)));
    let headers = [
        field("TLS-Report-Domain", domain),
        field("TLS-Report-Submitter", &head.submitter),
        field("TLS-Required", "No"),
    ];
    let composition =
        Composition { headers: headers.into_iter().flatten().collect(), ..head.composition(period) };
    let file = format!("{}!{domain}!{begin}!{end}.json.gz", head.submitter);
    let parts = vec![
        compose::text_part("text/plain", &head.explanation("TLS report (RFC 8460)", period)),
        MimePart::new(ContentType::new("application/tlsrpt+gzip"), BodyPart::Binary(packed.into()))
            .attachment(file),
    ];
    let boundaries = Boundaries { seed: composition.message_id.clone() };
    compose::write(&composition, boundaries.report("tlsrpt", parts))
}

/// RFC 8460 §5.4. A stranger named the host: only vetted addresses are dialled, redirects are not followed.
async fn post(floor: &Floor, url: &str, packed: Vec<u8>) -> Result<(), String> {
    let url = reqwest::Url::parse(url).map_err(|error| error.to_string())?;
    let host = url.host_str().ok_or("no host")?.to_owned();
    let port = url.port_or_known_default().unwrap_or(443);
    // Other ports would let a stranger have us speak to any service; tests have no port 443.
    if url.scheme() != "https" || (port != 443 && !floor.config.relay.allow_private_addresses) {
        return Err("only https at port 443 is served".to_owned());
    }
    let network = Network { port, ..Network::new(&floor.config) };
    let addresses = addresses(&floor.dns, &network, &host).await.map_err(|error| error.to_string())?;
    let tls = floor.tls.opportunistic().as_ref().clone();
    fetch::post(url, &addresses, "application/tlsrpt+gzip", packed, tls)
        .await
        .map_err(|error| error.to_string())
}
