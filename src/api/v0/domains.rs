//! Domains: added, shown with their records, verified, removed. What stands under a pod is in `pods`.
//!
//! A domain that was added is used only while it is verified, which takes records that only its owner can set:
//! its DKIM keys are made for this claim. A name has one claim; one that failed gives way to the next. What a
//! pod added is that pod's alone; what an organization's key added is there for the inboxes of every pod.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::address::normalize_domain;
use crate::api::App;
use crate::api::auth::Caller;
use crate::api::body::JsonBody;
use crate::api::error::{Answer, ErrorShape, Problem, internal};
use crate::api::paging::{self, Listing, PageParams};
use crate::api::path::RawPath;
use crate::api::query::Query;
use crate::clock::rfc3339;
use crate::config::Config;
use crate::deliver::dkim;
use crate::domains::look::{Finding, State as Seen};
use crate::domains::records::{self, PREFERENCE, Purpose, Subject};
use crate::domains::verify::{self, Occasion};
use crate::floor::Floor;
use crate::ids::pod_id;
use crate::principal::Scope;
use crate::store::dkim_key::{self, DkimKeyRow, KeyState};
use crate::store::domain::{self, Domain, DomainStatus, Features};
use crate::store::page::Place;
use crate::store::{StoreError, Tx, pod};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get, update, delete))
        .routes(routes!(zone_file))
        .routes(routes!(verify_one))
}

#[derive(Serialize, ToSchema)]
#[schema(as = Domain)]
pub(crate) struct DomainView {
    #[serde(flatten)]
    item: DomainItem,
    /// `NOT_STARTED`, `PENDING`, `INVALID`, `FAILED`, `VERIFYING` or `VERIFIED`
    status: &'static str,
    /// What is wrong, and what to set.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    records: Vec<VerificationRecord>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct DomainItem {
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_id: Option<String>,
    domain_id: String,
    domain: String,
    feedback_enabled: bool,
    inbound_enabled: bool,
    subdomains_enabled: bool,
    tracking_enabled: bool,
    /// One of the configuration's: usable at once, and not removed here.
    configured: bool,
    updated_at: String,
    created_at: String,
}

/// A record to set, and whether it is.
#[derive(Serialize, ToSchema)]
pub(crate) struct VerificationRecord {
    /// `TXT`, `CNAME` or `MX`
    #[serde(rename = "type")]
    kind: &'static str,
    name: String,
    value: String,
    /// `MISSING`, `INVALID` or `VALID`
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct CreateDomainRequest {
    domain: String,
    /// Of AgentMail's set-up links, which there are none of here.
    #[allow(dead_code)]
    allow_conflicting_provider: Option<bool>,
    #[serde(flatten)]
    features: UpdateDomainRequest,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
pub(crate) struct UpdateDomainRequest {
    /// Kept and shown; bounces and complaints are events in any case.
    feedback_enabled: Option<bool>,
    /// Mail to the domain comes here.
    inbound_enabled: Option<bool>,
    /// Inboxes may be made on every name below the domain.
    subdomains_enabled: Option<bool>,
    /// Not supported: mail is not tracked.
    tracking_enabled: Option<bool>,
}

impl UpdateDomainRequest {
    fn apply(self, mut features: Features) -> Answer<Features> {
        if self.tracking_enabled == Some(true) {
            return Err(Problem::field(&["tracking_enabled"], "is not supported: mail is not tracked"));
        }
        features.feedback = self.feedback_enabled.unwrap_or(features.feedback);
        features.inbound = self.inbound_enabled.unwrap_or(features.inbound);
        features.subdomains = self.subdomains_enabled.unwrap_or(features.subdomains);
        Ok(features)
    }
}

#[derive(Serialize, ToSchema)]
pub(crate) struct ListDomainsResponse {
    count: usize,
    limit: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
    domains: Vec<DomainItem>,
}

fn item(domain: &Domain) -> DomainItem {
    DomainItem {
        pod_id: domain.pod.map(pod_id),
        domain_id: domain.name.clone(),
        domain: domain.name.clone(),
        feedback_enabled: domain.features.feedback,
        inbound_enabled: domain.features.inbound,
        subdomains_enabled: domain.features.subdomains,
        tracking_enabled: domain.features.tracking,
        configured: domain.configured,
        updated_at: rfc3339(domain.updated_at),
        created_at: rfc3339(domain.created_at),
    }
}

fn view(config: &Config, domain: &Domain, keys: &[DkimKeyRow]) -> DomainView {
    let findings: Vec<Finding> = serde_json::from_str(&domain.findings).unwrap_or_default();
    let subject = Subject { name: &domain.name, features: domain.features };
    let records = records::wanted(config, subject, keys).into_iter().filter(|w| w.purpose.is_of_domain());
    let record = |wanted: records::Wanted| {
        let kind = wanted.purpose.kind();
        let found = findings
            .iter()
            .find(|f| f.purpose == wanted.purpose && f.name == wanted.name && f.value == wanted.value);
        let mx = matches!(wanted.purpose, Purpose::Mx | Purpose::SubdomainsMx);
        let value = if mx { config.hostname.clone() } else { wanted.value };
        VerificationRecord {
            kind,
            name: wanted.name,
            value,
            status: match found.map(|f| f.state) {
                Some(Seen::Ok) => "VALID",
                Some(Seen::Wrong) => "INVALID",
                Some(Seen::Missing | Seen::Unknown) | None => "MISSING",
            },
            priority: mx.then_some(PREFERENCE),
            reason: found.and_then(|f| f.fix.clone()),
        }
    };
    DomainView {
        item: item(domain),
        status: domain.status.text(),
        reason: domain.reason.clone(),
        records: records.map(record).collect(),
    }
}

/// The domain as an event of a pod (0: the organization) shows it; `None` once it is removed, or another pod's.
pub(crate) async fn shown(
    tx: &mut Tx,
    config: &Config,
    name: &str,
    pod: i64,
) -> Result<Option<Value>, StoreError> {
    let found = verify::with_keys(tx, name).await?;
    let found = found.filter(|(domain, _)| domain.pod.unwrap_or(0) == pod);
    let Some((domain, keys)) = found else { return Ok(None) };
    let view = serde_json::to_value(view(config, &domain, &keys));
    view.map(Some).map_err(|e| StoreError::Damaged(e.to_string()))
}

fn none() -> Problem {
    Problem::not_found("Domain")
}

/// Whether a caller sees the domain: the organization's keys all, a pod's key those of its pod.
fn sees(scope: Scope, domain: &Domain) -> bool {
    match scope {
        Scope::Organization => true,
        Scope::Pod(pod) => domain.pod == Some(pod),
        Scope::Inbox(_) => false,
    }
}

/// The domain of this id with its keys, if the caller sees it.
pub(crate) async fn find(floor: &Floor, caller: &Caller, id: &str) -> Answer<(Domain, Vec<DkimKeyRow>)> {
    let name = normalize_domain(id).map_err(|_| none())?;
    let found = floor.store.read(move |tx| Box::pin(async move { verify::with_keys(tx, &name).await }));
    let found: Option<(Domain, Vec<DkimKeyRow>)> = found.await.map_err(|e: StoreError| Problem::from(e))?;
    found.filter(|(domain, _)| sees(caller.0.scope, domain)).ok_or_else(none)
}

/// Every domain that the key sees, the configuration's among them.
#[utoipa::path(
    get, path = "/v0/domains", tag = "domains", params(PageParams),
    responses((status = 200, body = ListDomainsResponse), (status = 400, body = ErrorShape))
)]
async fn list(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    query: Query,
) -> Answer<Json<ListDomainsResponse>> {
    page_of(&floor, &caller, query).await
}

pub(super) async fn page_of(
    floor: &Floor,
    caller: &Caller,
    mut query: Query,
) -> Answer<Json<ListDomainsResponse>> {
    caller.require("domain_read")?;
    let page = Listing::Domains.page(&mut query)?;
    query.finish()?;
    let limit = page.limit;
    let scope = caller.0.scope;
    let found = floor.store.read(move |tx| {
        Box::pin(async move {
            let mut domains = match scope {
                Scope::Organization => domain::page(tx, None, &page).await?,
                Scope::Pod(pod) => domain::page(tx, Some(pod), &page).await?,
                Scope::Inbox(_) => Vec::new(),
            };
            let place = |d: &Domain| Place::new(0, d.domain_key);
            let next = paging::cut(&page, Listing::Domains, &mut domains, place);
            Ok::<_, StoreError>((domains, next))
        })
    });
    let (domains, next_page_token) = found.await?;
    let domains: Vec<DomainItem> = domains.iter().map(item).collect();
    Ok(Json(ListDomainsResponse { count: domains.len(), limit, next_page_token, domains }))
}

/// Adds a domain. Its `records` have to be set before it is used.
#[utoipa::path(
    post, path = "/v0/domains", tag = "domains", request_body = CreateDomainRequest,
    responses((status = 200, body = DomainView), (status = 400, body = ErrorShape), (status = 403, body = ErrorShape))
)]
async fn create(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    JsonBody(request): JsonBody<CreateDomainRequest>,
) -> Answer<Json<DomainView>> {
    add(&floor, &caller, request).await
}

/// Names that a pod may hold without having proved one of them: each is looked up for a week, and is nobody else's.
const MOST_UNVERIFIED: i64 = 100;

/// What somebody asks for when they claim a name.
struct Claim {
    name: String,
    /// `None`: for every pod.
    pod: Option<i64>,
    features: Features,
    keys: Vec<DkimKeyRow>,
    actor: String,
}

pub(super) async fn add(
    floor: &Floor,
    caller: &Caller,
    request: CreateDomainRequest,
) -> Answer<Json<DomainView>> {
    caller.require_admin("Domains")?;
    caller.require("domain_create")?;
    let wrong = || Problem::field(&["domain"], "takes a domain name such as agents.example.org");
    let name = normalize_domain(&request.domain).map_err(|_| wrong())?;
    if !name.contains('.') || name.starts_with('[') || name.len() > 200 {
        return Err(wrong());
    }
    let features = request.features.apply(Features::default())?;
    let keys = dkim::fresh_pair(&floor.secrets, &name, KeyState::Active).await;
    let pod = match caller.0.scope {
        Scope::Pod(pod) => Some(pod),
        _ => None,
    };
    let keys = keys.map_err(|error| internal(&error))?;
    let claim = Arc::new(Claim { name, pod, features, keys, actor: caller.0.actor() });
    let config = floor.config.clone();
    let made = floor.store.write(move |tx| {
        let (claim, config) = (claim.clone(), config.clone());
        Box::pin(async move {
            let domain = enter(tx, &claim).await?;
            let keys = dkim_key::all_of_domain(tx, &domain.name).await?;
            Ok::<_, Problem>(view(&config, &domain, &keys))
        })
    });
    made.await.map(Json)
}

async fn enter(tx: &mut Tx, claim: &Claim) -> Answer<Domain> {
    if let Some(pod) = claim.pod
        && pod::lock(tx, pod, false).await?.is_none()
    {
        return Err(Problem::not_found("Pod"));
    }
    // Two that claim the same name at once: the second waits here for the first one's row, or meets it below.
    if let Some(there) = domain::lock(tx, &claim.name).await? {
        let gives_way = there.status == DomainStatus::Failed && there.pod != claim.pod && !there.configured;
        if there.pod == claim.pod || there.configured && claim.pod.is_none() {
            return Err(Problem::forbidden("already_exists", format!("{} was added already.", there.name))
                .named("IsTakenError")
                .fix("GET /v0/domains/{domain_id} shows its records."));
        }
        if !gives_way || domain::has_inboxes(tx, &there.name).await? {
            return Err(taken());
        }
        domain::delete(tx, &there).await?;
        verify::recorded(tx, &there, &claim.actor, "domain.gave_way", Value::Null).await?;
    }
    if let Some(pod) = claim.pod
        && domain::unverified_of_pod(tx, pod, MOST_UNVERIFIED).await? >= MOST_UNVERIFIED
    {
        let say = format!("The pod has {MOST_UNVERIFIED} domains that are not verified.");
        return Err(Problem::forbidden("limit_exceeded", say)
            .fix("Set the records of some, or remove them: DELETE /v0/domains/{domain_id}."));
    }
    let relatives = domain::relatives(tx, &claim.name).await?;
    if relatives.iter().any(|r| r.pod != claim.pod && r.is_usable() && r.features.subdomains) {
        return Err(taken());
    }
    let made = domain::insert(tx, &claim.name, claim.pod, claim.features, tx.now() + 60_000).await;
    let made = made.map_err(|e| if e.is_conflict() { taken() } else { e.into() })?;
    for key in &claim.keys {
        dkim_key::insert(tx, key).await?;
    }
    verify::recorded(tx, &made, &claim.actor, "domain.created", serde_json::json!({})).await?;
    Ok(made)
}

/// Whose it is, is not for everybody to know.
fn taken() -> Problem {
    Problem::forbidden("resource_taken", "This domain is in use on this server, or one above or below it is.")
        .named("IsTakenError")
        .fix("Ask the operator whose it is; a claim that is not verified in time gives way after a week.")
}

/// One domain with its records.
#[utoipa::path(
    get, path = "/v0/domains/{domain_id}", tag = "domains", params(("domain_id" = String, Path)),
    responses((status = 200, body = DomainView), (status = 404, body = ErrorShape))
)]
async fn get(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<DomainView>> {
    query.finish()?;
    show(&floor, &caller, &path.segment(2)?).await
}

pub(super) async fn show(floor: &Floor, caller: &Caller, id: &str) -> Answer<Json<DomainView>> {
    caller.require("domain_read")?;
    let (domain, keys) = find(floor, caller, id).await?;
    Ok(Json(view(&floor.config, &domain, &keys)))
}

/// Changes what a domain does.
#[utoipa::path(
    patch, path = "/v0/domains/{domain_id}", tag = "domains", params(("domain_id" = String, Path)),
    request_body = UpdateDomainRequest,
    responses((status = 200, body = DomainView), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn update(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    JsonBody(request): JsonBody<UpdateDomainRequest>,
) -> Answer<Json<DomainView>> {
    change(&floor, &caller, &path.segment(2)?, request).await
}

pub(super) async fn change(
    floor: &Floor,
    caller: &Caller,
    id: &str,
    request: UpdateDomainRequest,
) -> Answer<Json<DomainView>> {
    let (found, _) = find(floor, caller, id).await?;
    caller.require("domain_update")?;
    if found.configured && request.inbound_enabled == Some(false) {
        return Err(Problem::field(&["inbound_enabled"], "stays on for a domain of the configuration"));
    }
    let asked = request.apply(found.features)?;
    if found.is_usable() && !found.configured && takes_more_mail(found.features, asked) {
        comes_here(floor, &found, asked).await?;
    }
    let (config, actor) = (floor.config.clone(), caller.0.actor());
    let changed = floor.store.write(move |tx| {
        let (found, config, actor) = (found.clone(), config.clone(), actor.clone());
        Box::pin(async move {
            let there = domain::lock(tx, &found.name).await?;
            let mut there = there.filter(|d| d.domain_key == found.domain_key).ok_or_else(none)?;
            if there.features != found.features || there.is_usable() != found.is_usable() {
                return Err(Problem::forbidden("domain_changed", "The domain was changed at the same time.")
                    .fix("Look at it again, and repeat the request if it is still wanted."));
            }
            there.features = asked;
            if asked.subdomains && !found.features.subdomains {
                let relatives = domain::relatives(tx, &there.name).await?;
                if relatives.iter().any(|r| r.pod != there.pod && r.is_usable()) {
                    return Err(taken());
                }
            }
            // Other records are wanted now.
            there.next_check_at = Some(tx.now());
            domain::update(tx, &there).await?;
            verify::recorded(tx, &there, &actor, "domain.updated", serde_json::json!({})).await?;
            let keys = dkim_key::all_of_domain(tx, &there.name).await?;
            Ok::<_, Problem>(view(&config, &there, &keys))
        })
    });
    let view = changed.await?;
    floor.domains.refresh(&floor.store).await?;
    Ok(Json(view))
}

/// Whether mail comes here that did not before.
fn takes_more_mail(before: Features, after: Features) -> bool {
    after.inbound && (!before.inbound || after.subdomains && !before.subdomains)
}

/// Refuses unless the MX records lead here: what is ours to receive is delivered here by every pod of this server,
/// so a claim that was verified for sending alone must not draw mail that its owner has go elsewhere.
async fn comes_here(floor: &Floor, domain: &Domain, features: Features) -> Answer<()> {
    let asked = Domain { features, ..domain.clone() };
    let findings = verify::look(floor, &asked, &[]).await;
    let wrong = findings.into_iter().find(|finding| {
        matches!(finding.purpose, Purpose::Mx | Purpose::SubdomainsMx) && finding.state != Seen::Ok
    });
    let Some(wrong) = wrong else { return Ok(()) };
    let say = format!("The MX of {} does not lead here, so its mail cannot come here.", wrong.name);
    Err(Problem::forbidden("domain_not_verified", say).fix(wrong.fix.unwrap_or_default()))
}

/// Removes a domain that has no inboxes, with its keys.
#[utoipa::path(
    delete, path = "/v0/domains/{domain_id}", tag = "domains", params(("domain_id" = String, Path)),
    responses((status = 204), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn delete(State(floor): State<Arc<Floor>>, caller: Caller, path: RawPath) -> Answer<StatusCode> {
    remove(&floor, &caller, &path.segment(2)?).await
}

pub(super) async fn remove(floor: &Floor, caller: &Caller, id: &str) -> Answer<StatusCode> {
    let (found, _) = find(floor, caller, id).await?;
    caller.require("domain_delete")?;
    if found.configured {
        return Err(Problem::forbidden("cannot_delete", "A domain of the configuration is removed there.")
            .fix("Take it out of `domains` in the server's configuration."));
    }
    let actor = caller.0.actor();
    let removed = floor.store.write(move |tx| {
        let (found, actor) = (found.clone(), actor.clone());
        Box::pin(async move {
            let there = domain::lock(tx, &found.name).await?;
            let there = there.filter(|d| d.domain_key == found.domain_key).ok_or_else(none)?;
            if domain::has_inboxes(tx, &there.name).await? {
                return Err(Problem::forbidden("cannot_delete", "The domain still has inboxes.")
                    .fix("Delete them first: DELETE /v0/inboxes/{inbox_id}."));
            }
            domain::delete(tx, &there).await?;
            verify::recorded(tx, &there, &actor, "domain.deleted", serde_json::json!({})).await?;
            Ok::<_, Problem>(())
        })
    });
    removed.await?;
    floor.domains.refresh(&floor.store).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The records as a BIND zone file.
#[utoipa::path(
    get, path = "/v0/domains/{domain_id}/zone-file", tag = "domains", params(("domain_id" = String, Path)),
    responses((status = 200, body = String, content_type = "text/dns"), (status = 404, body = ErrorShape))
)]
async fn zone_file(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Response> {
    query.finish()?;
    zone_of(&floor, &caller, &path.segment(2)?).await
}

pub(super) async fn zone_of(floor: &Floor, caller: &Caller, id: &str) -> Answer<Response> {
    caller.require("domain_read")?;
    let (domain, keys) = find(floor, caller, id).await?;
    let subject = Subject { name: &domain.name, features: domain.features };
    let text = records::zone_file(&floor.config, subject, &keys);
    // RFC 4027: the media type of a zone file.
    let file = format!("attachment; filename=\"{}.zone\"", domain.name);
    Ok(([(header::CONTENT_TYPE, "text/dns".to_owned()), (header::CONTENT_DISPOSITION, file)], text)
        .into_response())
}

/// Looks at the records now. What comes of it is in `GET /v0/domains/{domain_id}`.
#[utoipa::path(
    post, path = "/v0/domains/{domain_id}/verify", tag = "domains", params(("domain_id" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorShape))
)]
async fn verify_one(State(floor): State<Arc<Floor>>, caller: Caller, path: RawPath) -> Answer<StatusCode> {
    verified(&floor, &caller, &path.segment(2)?).await
}

pub(super) async fn verified(floor: &Floor, caller: &Caller, id: &str) -> Answer<StatusCode> {
    let (found, _) = find(floor, caller, id).await?;
    caller.require("domain_update")?;
    verify::check(floor, &found.name, Occasion::Asked).await?.ok_or_else(none)?;
    Ok(StatusCode::NO_CONTENT)
}
