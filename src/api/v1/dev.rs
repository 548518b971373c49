//! `gatepost dev` captures mail for other domains instead of sending it; here it is shown.

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
use crate::deliver::capture::{self, Captured};
use crate::floor::Floor;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(captured))
}

#[derive(Serialize, ToSchema)]
pub(crate) struct CapturedResponse {
    count: usize,
    #[schema(value_type = Vec<Object>)]
    captured: Vec<Captured>,
}

/// What would have been sent, newest first, at most 100. Only in `gatepost dev`.
#[utoipa::path(
    get, path = "/v1/dev/captured", tag = "dev",
    responses((status = 200, body = CapturedResponse), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn captured(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    query: Query,
) -> Answer<Json<CapturedResponse>> {
    query.finish()?;
    if !floor.dev {
        return Err(
            Problem::not_found("Route GET /v1/dev/captured").fix("Mail is captured by `gatepost dev` alone.")
        );
    }
    // It is everybody's mail.
    caller.require_organization("Captured mail is everybody's: it")?;
    let captured = capture::list(&floor).await.map_err(|e| crate::api::error::internal(&e))?;
    Ok(Json(CapturedResponse { count: captured.len(), captured }))
}
