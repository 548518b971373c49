//! `/v1`: what Gatepost adds: work items, limits, events, waiting for mail.

use utoipa_axum::router::OpenApiRouter;

use super::App;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
}
