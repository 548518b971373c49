//! What the DNS says about a domain, record by record and in words; its DKIM keys, and their change.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::App;
use crate::api::auth::Caller;
use crate::api::error::{Answer, ErrorShape, Problem, internal};
use crate::api::path::RawPath;
use crate::api::query::Query;
use crate::api::v0::domains::find;
use crate::clock::rfc3339;
use crate::deliver::dkim;
use crate::domains::look::Finding;
use crate::domains::{sts, verify};
use crate::floor::Floor;
use crate::store::dkim_key::{DkimKeyRow, KeyState};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(dns))
        .routes(routes!(keys))
        .routes(routes!(rotate))
        .routes(routes!(mta_sts))
}

#[derive(Serialize, ToSchema)]
pub(crate) struct DomainDnsResponse {
    domain: String,
    /// `VERIFIED` and so on, as in `/v0/domains`.
    status: &'static str,
    /// Every required record is right.
    ready: bool,
    records: Vec<Finding>,
    /// DKIM records that nobody needs any more.
    removable: Vec<String>,
}

/// Asks the DNS for every record that the domain and this server need, now: each with its state, what was found
/// and what to change.
#[utoipa::path(
    get, path = "/v1/domains/{domain}/dns", tag = "domains", params(("domain" = String, Path)),
    responses((status = 200, body = DomainDnsResponse), (status = 404, body = ErrorShape))
)]
async fn dns(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<DomainDnsResponse>> {
    query.finish()?;
    caller.require("domain_read")?;
    let (domain, keys) = find(&floor, &caller, &path.segment(2)?).await?;
    let records = verify::look(&floor, &domain, &keys).await;
    let retired = keys.iter().filter(|key| key.state == KeyState::Retired);
    Ok(Json(DomainDnsResponse {
        ready: !records.iter().any(Finding::is_bad),
        status: domain.status.text(),
        records,
        removable: retired.map(|key| dkim::record(key).name).collect(),
        domain: domain.name,
    }))
}

#[derive(Serialize, ToSchema)]
pub(crate) struct DkimKeysResponse {
    domain: String,
    keys: Vec<DkimKeyView>,
}

#[derive(Serialize, ToSchema)]
struct DkimKeyView {
    selector: String,
    /// `rsa-sha256` or `ed25519-sha256`
    algorithm: String,
    /// `next` (signs once its record is seen), `active` (signs), `retiring` (its record still has to stand) or
    /// `retired` (its record may be removed)
    state: &'static str,
    /// Since when.
    since: String,
    /// Of a retiring key: when its record may be removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    removable_at: Option<String>,
    /// The TXT record.
    name: String,
    value: String,
}

fn view(key: &DkimKeyRow) -> DkimKeyView {
    let record = dkim::record(key);
    let retiring = key.state == KeyState::Retiring;
    DkimKeyView {
        selector: key.selector.clone(),
        algorithm: key.algorithm.clone(),
        state: key.state.text(),
        since: rfc3339(key.state_at.max(key.created_at)),
        removable_at: retiring.then(|| rfc3339(key.state_at + verify::OVERLAP)),
        name: record.name,
        value: record.value,
    }
}

/// The DKIM keys of a domain.
#[utoipa::path(
    get, path = "/v1/domains/{domain}/dkim", tag = "domains", params(("domain" = String, Path)),
    responses((status = 200, body = DkimKeysResponse), (status = 404, body = ErrorShape))
)]
async fn keys(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<DkimKeysResponse>> {
    query.finish()?;
    caller.require("domain_read")?;
    let (domain, keys) = find(&floor, &caller, &path.segment(2)?).await?;
    Ok(Json(DkimKeysResponse { domain: domain.name, keys: keys.iter().map(view).collect() }))
}

/// Makes the next DKIM keys of a domain. They sign once their records are seen in the DNS; those before stay to
/// be published for a week. Repeating it before that gives the same keys.
#[utoipa::path(
    post, path = "/v1/domains/{domain}/dkim/rotate", tag = "domains", params(("domain" = String, Path)),
    responses((status = 200, body = DkimKeysResponse), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn rotate(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<DkimKeysResponse>> {
    query.finish()?;
    let (domain, _) = find(&floor, &caller, &path.segment(2)?).await?;
    caller.require("domain_update")?;
    let keys =
        crate::domains::rotate(&floor, &domain.name, &caller.0).await.map_err(|error| internal(&error))?;
    let keys = keys.ok_or_else(|| Problem::not_found("Domain"))?;
    if !keys.iter().any(|key| key.state == KeyState::Next) {
        let say = "The keys were changed so often that the records of too many still have to stand.";
        return Err(Problem::forbidden("limit_exceeded", say)
            .fix("Wait until some may be removed: GET /v1/domains/{domain}/dkim says when."));
    }
    Ok(Json(DkimKeysResponse { domain: domain.name, keys: keys.iter().map(view).collect() }))
}

/// The MTA-STS policy of the domain whose `mta-sts.` host is asked (RFC 8461 §3.3).
#[utoipa::path(
    get, path = "/.well-known/mta-sts.txt", tag = "server", security(()),
    responses((status = 200, body = String, content_type = "text/plain"), (status = 404, body = ErrorShape))
)]
async fn mta_sts(State(floor): State<Arc<Floor>>, headers: HeaderMap) -> Answer<Response> {
    let host =
        headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default().to_lowercase();
    let receives = sts::domain_of(&host).is_some_and(|domain| floor.receives(domain));
    let policy = sts::policy(&floor.config).filter(|_| receives);
    let policy = policy.ok_or_else(|| {
        Problem::not_found("Policy")
            .fix("It is served for the host mta-sts.<domain>, unless smtp.mta_sts is none.")
    })?;
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], policy).into_response())
}
