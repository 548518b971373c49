//! Where the link of bulk mail leads: a page that asks, and the POST that does it.
//!
//! RFC 8058 §3.2: only a POST unsubscribes, since scanners follow every link; it needs no key, no cookie and no
//! second step. The token in the path is all the proof there is, and only the message holds it (`return_path`).

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use super::error::Answer;
use crate::deliver::return_path;
use crate::floor::Floor;
use crate::inbox;
use crate::store::StoreError;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(ask, leave))
}

/// A page that asks whether to unsubscribe; nothing happens by looking at it.
#[utoipa::path(
    get, path = "/unsubscribe/{token}", tag = "unsubscribe", security(()), params(("token" = String, Path)),
    responses((status = 200, description = "A page with one button"), (status = 404, description = "No such link"))
)]
async fn ask(State(floor): State<Arc<Floor>>, Path(token): Path<String>) -> Response {
    match return_path::check_leave(&floor.secrets, &token) {
        Some(_) => page(
            StatusCode::OK,
            "Do you want no more mail from this sender?",
            "<form method=\"post\"><button name=\"List-Unsubscribe\" value=\"One-Click\">Unsubscribe</button></form>",
        ),
        None => unknown(),
    }
}

/// Unsubscribes the recipient of the message that the link was in.
#[utoipa::path(
    post, path = "/unsubscribe/{token}", tag = "unsubscribe", security(()), params(("token" = String, Path)),
    responses((status = 200, description = "No more mail goes there"), (status = 404, description = "No such link"))
)]
async fn leave(State(floor): State<Arc<Floor>>, Path(token): Path<String>) -> Answer<Response> {
    let Some((key, id)) = return_path::check_leave(&floor.secrets, &token) else { return Ok(unknown()) };
    let done = floor.store.write(move |tx| {
        let id = id.clone();
        Box::pin(async move { inbox::unsubscribe(tx, key, &id, "by one click").await })
    });
    let done: Result<Option<bool>, StoreError> = done.await;
    Ok(match done? {
        Some(_) => page(StatusCode::OK, "You will get no more mail from this sender.", ""),
        None => unknown(),
    })
}

fn unknown() -> Response {
    page(StatusCode::NOT_FOUND, "This link is not one of ours, or the mail that it was in is gone.", "")
}

/// Nothing from outside stands in it, so there is nothing to escape.
fn page(status: StatusCode, say: &str, more: &str) -> Response {
    let html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"robots\" content=\"noindex\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>Unsubscribe</title></head>\
         <body><p>{say}</p>{more}</body></html>"
    );
    let fields = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; form-action 'self'; frame-ancestors 'none'"),
    ];
    (status, fields, html).into_response()
}
