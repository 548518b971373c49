//! Is it alive, and may it be given work? Both without a key.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::error::{Answer, Problem};
use crate::floor::Floor;
use crate::store::StoreError;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(healthz)).routes(routes!(readyz))
}

/// How long the database may take to say that it is there.
const PATIENCE: Duration = Duration::from_secs(3);

/// The process answers.
#[utoipa::path(get, path = "/healthz", tag = "server", security(()), responses((status = 200, description = "Alive")))]
async fn healthz() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

/// The database answers too; `mail` is `deferred` while the disk is below `smtp.min_free_disk`.
#[utoipa::path(
    get, path = "/readyz", tag = "server", security(()),
    responses((status = 200, description = "Ready"), (status = 503, body = super::error::ErrorShape))
)]
async fn readyz(State(floor): State<Arc<Floor>>) -> Answer<Json<Value>> {
    let asked = floor.store.read(|tx| Box::pin(async move { tx.row("SELECT 1", &[]).await }));
    match tokio::time::timeout(PATIENCE, asked).await {
        // The API works on a full disk, and whoever makes room may need it: only strangers' mail waits.
        Ok(Ok::<_, StoreError>(_)) => Ok(Json(match floor.disk.room() {
            Ok(()) => json!({ "status": "ready", "mail": "accepted" }),
            Err(low) => json!({ "status": "ready", "mail": "deferred", "reason": low.to_string() }),
        })),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "service_unavailable",
            "The database does not answer.",
        )
        .fix("Try again in a few seconds.")),
    }
}
