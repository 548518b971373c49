//! Addresses that must not be written to: seen and lifted by the organization's keys.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::address::Address;
use crate::api::App;
use crate::api::auth::Caller;
use crate::api::body::JsonBody;
use crate::api::error::{Answer, ErrorShape, Problem};
use crate::api::paging::{self, Listing};
use crate::api::path::{self, RawPath};
use crate::api::query::Query;
use crate::clock::rfc3339;
use crate::floor::Floor;
use crate::store::page::Place;
use crate::store::suppression::{self, Suppression};
use crate::store::{StoreError, audit};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list, add)).routes(routes!(delete))
}

#[derive(Serialize, ToSchema)]
#[schema(as = Suppression)]
pub(crate) struct SuppressionView {
    address: String,
    /// `bounce`, `complaint`, `unsubscribe` or `manual`
    reason: String,
    /// What found it: a delivery's id, a key.
    source: String,
    /// The remote's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    created_at: String,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct ListSuppressionsResponse {
    count: usize,
    limit: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
    suppressions: Vec<SuppressionView>,
}

/// Suppressed addresses of a pod, in alphabetical order. A key of the organization names the pod, or sees the default one.
#[utoipa::path(
    get, path = "/v1/suppressions", tag = "suppressions",
    params(("pod_id" = Option<String>, Query), ("limit" = Option<i64>, Query), ("page_token" = Option<String>, Query)),
    responses((status = 200, body = ListSuppressionsResponse), (status = 403, body = ErrorShape))
)]
async fn list(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    mut query: Query,
) -> Answer<Json<ListSuppressionsResponse>> {
    caller.require_admin("Suppressions can be seen and")?;
    caller.require("list_entry_read")?;
    let page = Listing::Suppressions.page_one_way(&mut query)?;
    let pod = caller.asked_pod(&floor, &mut query).await?;
    query.finish()?;
    let asked = page.clone();
    let found = floor.store.read(move |tx| {
        Box::pin(async move { suppression::page(tx, pod, &asked.start().text, asked.fetch()).await })
    });
    let mut found: Vec<Suppression> = found.await.map_err(|e: StoreError| Problem::from(e))?;
    let place = |s: &Suppression| Place::named(s.address.clone());
    let next_page_token = paging::cut(&page, Listing::Suppressions, &mut found, place);
    let suppressions: Vec<SuppressionView> = found.into_iter().map(view).collect();
    Ok(Json(ListSuppressionsResponse {
        count: suppressions.len(),
        limit: page.limit,
        next_page_token,
        suppressions,
    }))
}

fn view(suppression: Suppression) -> SuppressionView {
    let Suppression { address, reason, source, detail, created_at } = suppression;
    SuppressionView { address, reason, source, detail, created_at: rfc3339(created_at) }
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SuppressionBody {
    address: String,
    /// Why, for whoever reads the list.
    detail: Option<String>,
}

/// The address is not written to any more; the first reason that was given for it stays.
#[utoipa::path(
    post, path = "/v1/suppressions", tag = "suppressions", request_body = SuppressionBody,
    params(("pod_id" = Option<String>, Query)),
    responses((status = 200, body = SuppressionView), (status = 400, body = ErrorShape), (status = 403, body = ErrorShape))
)]
async fn add(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    mut query: Query,
    JsonBody(body): JsonBody<SuppressionBody>,
) -> Answer<Json<SuppressionView>> {
    caller.require_admin("Suppressions")?;
    caller.require("list_entry_create")?;
    let pod = caller.asked_pod(&floor, &mut query).await?;
    query.finish()?;
    let address: Address =
        body.address.parse().map_err(|e| Problem::field(&["address"], format!("is no address: {e}")))?;
    let detail = body.detail.filter(|detail| !detail.is_empty());
    if detail.as_deref().is_some_and(|detail| detail.len() > 1_000 || detail.chars().any(char::is_control)) {
        return Err(Problem::field(&["detail"], "takes one line of at most 1,000 octets"));
    }
    let (key, actor, source) = (address.key(), caller.0.actor(), caller.0.actor());
    let found = floor.store.write(move |tx| {
        let (address, actor, source, detail) = (key.clone(), actor.clone(), source.clone(), detail.clone());
        Box::pin(async move {
            let added = suppression::add(tx, pod, &address, "manual", &source, detail.as_deref()).await?;
            if added {
                let (actor, object, action) = (actor.as_str(), address.as_str(), "suppression.added");
                let entry = audit::Entry {
                    actor,
                    run_id: None,
                    action,
                    inbox: None,
                    object,
                    detail: "{}".to_owned(),
                };
                audit::record(tx, entry).await?;
            }
            let stands = suppression::among(tx, pod, &[address]).await?;
            Ok::<_, StoreError>(stands.into_iter().next())
        })
    });
    found.await?.map(|found| Json(view(found))).ok_or_else(|| Problem::not_found("Suppression"))
}

/// The address may be written to again.
#[utoipa::path(
    delete, path = "/v1/suppressions/{*address}", tag = "suppressions",
    params(("address" = String, Path), ("pod_id" = Option<String>, Query)),
    responses((status = 204), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn delete(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    mut query: Query,
    path: RawPath,
) -> Answer<StatusCode> {
    caller.require_admin("Suppressions")?;
    caller.require("list_entry_delete")?;
    let pod = caller.asked_pod(&floor, &mut query).await?;
    query.finish()?;
    let none = || Problem::not_found("Suppression");
    let address = path::decode(&path.tail(2)).and_then(|a| a.parse::<Address>().ok()).ok_or_else(none)?.key();
    let actor = caller.0.actor();
    let removed = floor.store.write(move |tx| {
        let (address, actor) = (address.clone(), actor.clone());
        Box::pin(async move {
            let removed = suppression::remove(tx, pod, &address).await?;
            if removed {
                let (actor, object) = (actor.as_str(), address.as_str());
                let action = "suppression.deleted";
                let detail = "{}".to_owned();
                audit::record(tx, audit::Entry { actor, run_id: None, action, inbox: None, object, detail })
                    .await?;
            }
            Ok::<_, StoreError>(removed)
        })
    });
    if removed.await? { Ok(StatusCode::NO_CONTENT) } else { Err(none()) }
}
