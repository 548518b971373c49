//! HTTP: `/v0` is AgentMail's wire format, `/v1` is ours. Handlers decode, ask a room, and encode; what is
//! decided is decided in `gate/`, `work/` and `inbox/`.
//!
//! A request is numbered and timed, its key becomes a `Principal` before its body is read, and every answer that
//! is no success has one shape (error.rs). `/openapi.json` comes from the same annotations as the routes. What
//! does not exist here is a 404, never a 5xx: AgentMail's SDKs would send it twice more.

mod auth;
mod body;
mod error;
mod health;
mod openapi;
mod paging;
mod path;
mod query;
mod serve;
#[cfg(test)]
mod tests;
mod unsubscribe;
mod v0;
mod v1;

use std::sync::Arc;

use axum::extract::{FromRef, Request};
use axum::http::Method;
use axum::middleware;
use axum::{Json, Router};
use tokio_util::sync::CancellationToken;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::floor::Floor;
use error::Problem;

pub use serve::serve;

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct App {
    pub floor: Arc<Floor>,
    pub uses: auth::KeyUses,
    pub bodies: body::BodyBudget,
    /// Requests that wait for something end when the server stops.
    pub stopping: CancellationToken,
}

impl FromRef<App> for Arc<Floor> {
    fn from_ref(app: &App) -> Arc<Floor> {
        app.floor.clone()
    }
}

/// Every route, and their description.
fn routes() -> (Router<App>, utoipa::openapi::OpenApi) {
    let (routes, mut description) = OpenApiRouter::with_openapi(openapi::Description::openapi())
        .merge(health::routes())
        .merge(v0::routes())
        .merge(v1::routes())
        .merge(unsubscribe::routes())
        .split_for_parts();
    openapi::complete(&mut description);
    (routes, description)
}

/// The whole HTTP interface; what waits ends when `stopping` is cancelled.
pub fn router(floor: Arc<Floor>, stopping: CancellationToken) -> Router {
    let (routes, description) = routes();
    let (uses, bodies) = (auth::KeyUses::default(), body::BodyBudget::default());
    let app = App { floor, uses, bodies, stopping };
    let description = Arc::new(description);
    routes
        .route("/openapi.json", axum::routing::get(move || async move { Json(description.as_ref().clone()) }))
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_route)
        .layer(middleware::from_fn(serve::read_deadline))
        .layer(tower_http::catch_panic::CatchPanicLayer::custom(serve::panicked))
        .layer(middleware::from_fn(serve::account))
        .with_state(app)
}

async fn no_such_route(method: Method, request: Request) -> Problem {
    Problem::not_found(&format!("Route {method} {}", request.uri().path()))
        .fix("/openapi.json lists every route that there is.")
}
