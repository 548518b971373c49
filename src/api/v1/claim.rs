//! Claiming work over HTTP, waiting for it where there is none.
//!
//! A claim is made by a task of its own, and travels to the client inside a guard: when the client is gone
//! before the answer was handed to its connection, the guard gives the items back and no attempt is counted.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::work::{WorkItemView, lease_seconds, problem, text, views, wait_seconds};
use crate::api::App;
use crate::api::auth::Caller;
use crate::api::body::JsonBody;
use crate::api::error::{Answer, ErrorShape, Problem};
use crate::api::path::RawPath;
use crate::api::v0::load;
use crate::floor::Floor;
use crate::ids::InboxKey;
use crate::principal::Principal;
use crate::store::{StoreError, Topic};
use crate::work::{self, ClaimRequest, Claimed, WorkError};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(claim)).routes(routes!(claim_of_inbox))
}

/// Inboxes that one claim names.
const MAX_INBOXES: usize = 100;
/// How often a waiting claim looks by itself, in case a hint was lost.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Every field is optional.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClaimBody {
    /// Only these; every inbox that the key sees unless given.
    inbox_ids: Option<Vec<String>>,
    /// Items: 1 unless given, at most 100.
    limit: Option<i64>,
    /// 5 to 43,200; 300 unless given.
    lease_seconds: Option<i64>,
    /// 0 to 50: how long to wait for the first item.
    wait_seconds: Option<i64>,
    /// A name for who works, as shown in listings; items handed off to a name wait for it.
    worker: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct ClaimResponse {
    count: usize,
    work_items: Vec<WorkItemView>,
}

/// Claims work: each item is held by one worker alone, until its lease ends.
#[utoipa::path(
    post, path = "/v1/work-items/claim", tag = "work items", request_body = ClaimBody,
    responses((status = 200, body = ClaimResponse), (status = 400, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn claim(
    State(app): State<App>,
    caller: Caller,
    JsonBody(body): JsonBody<ClaimBody>,
) -> Answer<Response> {
    let inboxes = match &body.inbox_ids {
        None => None,
        Some(ids) if (1..=MAX_INBOXES).contains(&ids.len()) => {
            let mut inboxes = Vec::with_capacity(ids.len());
            for id in ids {
                inboxes.push(caller.inbox(&app.floor, id).await?.key);
            }
            Some(inboxes)
        }
        Some(_) => return Err(Problem::field(&["inbox_ids"], format!("takes 1 to {MAX_INBOXES} inboxes"))),
    };
    hand_out(app, caller, inboxes, body).await
}

/// Claims work of one inbox.
#[utoipa::path(
    post, path = "/v1/inboxes/{inbox_id}/work-items/claim", tag = "work items", params(("inbox_id" = String, Path)),
    request_body = ClaimBody,
    responses((status = 200, body = ClaimResponse), (status = 400, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn claim_of_inbox(
    State(app): State<App>,
    caller: Caller,
    path: RawPath,
    JsonBody(body): JsonBody<ClaimBody>,
) -> Answer<Response> {
    let inbox = caller.inbox(&app.floor, &path.segment(2)?).await?;
    if body.inbox_ids.is_some() {
        return Err(Problem::field(&["inbox_ids"], "is given by the path"));
    }
    hand_out(app, caller, Some(vec![inbox.key]), body).await
}

async fn hand_out(
    app: App,
    caller: Caller,
    inboxes: Option<Vec<InboxKey>>,
    body: ClaimBody,
) -> Answer<Response> {
    caller.require("message_read")?;
    let limit = match body.limit.unwrap_or(1) {
        n if n < 1 => return Err(Problem::field(&["limit"], "takes a number from 1 on")),
        n => n.min(work::MAX_CLAIM),
    };
    let request = ClaimRequest {
        inboxes,
        limit,
        lease_seconds: lease_seconds(body.lease_seconds)?.unwrap_or(work::DEFAULT_LEASE_SECONDS),
        worker: text("worker", body.worker)?,
        wait: Duration::ZERO,
    };
    let wait = wait_seconds(body.wait_seconds)?;
    let unheard = claim_or_wait(&app, caller.0, request, wait).await?;
    let answer = present(&app.floor, unheard.claimed()).await?;
    let bytes = serde_json::to_vec(&answer).map_err(|e| crate::api::error::internal(&e))?;
    Ok(unheard.into_response(bytes))
}

/// Looks, and looks again when there is a hint, until there is something or the time is over.
async fn claim_or_wait(app: &App, who: Principal, request: ClaimRequest, wait: Duration) -> Answer<Unheard> {
    let deadline = Instant::now() + wait;
    let mut told = app.floor.store.wakeups().subscribe(Topic::Work);
    loop {
        told.borrow_and_update();
        let (floor, who, request) = (app.floor.clone(), who.clone(), request.clone());
        // A task, so that a claim which commits while its client leaves is still given back, by the guard.
        let look = tokio::spawn(async move {
            let claimed = work::claim(&floor, &who, request).await?;
            Ok::<_, WorkError>(Unheard { floor, claimed })
        });
        let unheard = look.await.map_err(|e| crate::api::error::internal(&e))?.map_err(problem)?;
        if !unheard.claimed.is_empty() || Instant::now() >= deadline || app.stopping.is_cancelled() {
            return Ok(unheard);
        }
        let next_look = (Instant::now() + LOOK_AGAIN).min(deadline);
        tokio::select! {
            () = app.stopping.cancelled() => {}
            _ = tokio::time::timeout_at(next_look, told.changed()) => {}
        }
    }
}

async fn present(floor: &Arc<Floor>, claimed: &[Claimed]) -> Answer<ClaimResponse> {
    let rows: Vec<Claimed> = claimed.to_vec();
    let named = floor.store.read(move |tx| {
        Box::pin(async move {
            let (items, messages): (Vec<_>, Vec<_>) = rows.into_iter().map(|c| (c.item, c.messages)).unzip();
            let mut named = Vec::with_capacity(items.len());
            for (view, messages) in views(tx, items).await?.into_iter().zip(messages) {
                let messages = load::named(tx, &view.inbox_id, messages).await?;
                named.push((view, messages));
            }
            Ok::<_, StoreError>(named)
        })
    });
    let mut work_items = Vec::with_capacity(claimed.len());
    for (mut view, messages) in named.await? {
        view.messages = Some(load::whole(floor, messages).await?);
        work_items.push(view);
    }
    Ok(ClaimResponse { count: work_items.len(), work_items })
}

/// Claimed items of which the client has not heard yet. Dropped before that, they go back.
struct Unheard {
    floor: Arc<Floor>,
    claimed: Vec<Claimed>,
}

impl Unheard {
    fn claimed(&self) -> &[Claimed] {
        &self.claimed
    }

    /// The answer; once its bytes are taken by the connection, the claim counts as heard.
    fn into_response(mut self, bytes: Vec<u8>) -> Response {
        let length = HeaderValue::from(bytes.len());
        let body = Body::from_stream(futures_util::stream::once(async move {
            self.claimed.clear();
            Ok::<_, std::convert::Infallible>(Bytes::from(bytes))
        }));
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CONTENT_LENGTH, length);
        response
    }
}

impl Drop for Unheard {
    fn drop(&mut self) {
        let claimed = std::mem::take(&mut self.claimed);
        if claimed.is_empty() {
            return;
        }
        let floor = self.floor.clone();
        // Outside a runtime the server is stopping: the leases run out by themselves.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { work::unclaim(&floor, &claimed).await });
        }
    }
}
