//! `auth/me`: what a scoped agent asks first.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::App;
use crate::api::auth::Caller;
use crate::api::error::{Answer, ErrorShape, Problem};
use crate::api::query::Query;
use crate::floor::Floor;
use crate::ids::pod_id;
use crate::principal::Scope;

/// There is one organization on a server: its operator's.
pub(crate) const ORGANIZATION_ID: &str = "org_default";

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(me))
}

/// Who this key is.
#[derive(Serialize, ToSchema)]
pub(crate) struct Identity {
    /// `organization`, `pod` or `inbox`
    scope_type: &'static str,
    scope_id: String,
    organization_id: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inbox_id: Option<String>,
    api_key_id: String,
}

/// The scope of the key that asks.
#[utoipa::path(
    get, path = "/v0/auth/me", tag = "auth",
    responses((status = 200, body = Identity), (status = 401, body = ErrorShape))
)]
async fn me(State(floor): State<Arc<Floor>>, caller: Caller, query: Query) -> Answer<Json<Identity>> {
    query.finish()?;
    let (scope_type, scope_id, pod_id, inbox_id) = match caller.0.scope {
        Scope::Organization => ("organization", ORGANIZATION_ID.to_owned(), None, None),
        Scope::Pod(pod) => ("pod", pod_id(pod), Some(pod_id(pod)), None),
        Scope::Inbox(key) => {
            let inbox = caller.inbox_by_key(&floor, key).await?.ok_or_else(|| Problem::not_found("Inbox"))?;
            ("inbox", inbox.address.clone(), Some(pod_id(key.pod)), Some(inbox.address))
        }
    };
    let organization_id = ORGANIZATION_ID;
    let api_key_id = caller.0.api_key_id;
    Ok(Json(Identity { scope_type, scope_id, organization_id, pod_id, inbox_id, api_key_id }))
}
