//! Work items over HTTP: look, and act under a fence. Claims are in claim.rs.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::App;
use crate::api::auth::Caller;
use crate::api::body::JsonBody;
use crate::api::error::{Answer, ErrorShape, Problem};
use crate::api::paging::{self, Listing};
use crate::api::path::RawPath;
use crate::api::query::Query;
use crate::api::v0::load;
use crate::api::v0::view::{MessageView, ThreadView};
use crate::clock::{parse_rfc3339, rfc3339};
use crate::config::limits;
use crate::floor::Floor;
use crate::ids::{Prefix, RowId};
use crate::principal::Scope;
use crate::store::thread::Thread;
use crate::store::work_item::{self, ItemState, WorkItem};
use crate::store::{StoreError, Tx, thread};
use crate::work::{self, Action, Override, WorkError};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(get))
        .routes(routes!(heartbeat))
        .routes(routes!(complete))
        .routes(routes!(release))
        .routes(routes!(wait))
        .routes(routes!(escalate))
        .routes(routes!(handoff))
        .routes(routes!(requeue))
        .routes(routes!(discard))
}

/// Octets of a worker's name, a reason or an error text.
const MAX_TEXT: usize = 2_000;

#[derive(Serialize, ToSchema)]
#[schema(as = Lease)]
pub(crate) struct LeaseView {
    /// Goes with every action and send for the item; an older one is refused.
    fence: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<String>,
    expires_at: String,
}

#[derive(Serialize, ToSchema)]
#[schema(as = WorkItem)]
pub(crate) struct WorkItemView {
    work_item_id: String,
    pub inbox_id: String,
    thread_id: String,
    /// `available`, `claimed`, `waiting`, `needs_human`, `held`, `dead` or `done`
    state: &'static str,
    reason: String,
    priority: i64,
    /// Failed ones: expired leases and releases with an error.
    attempts: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<String>,
    /// The thread's: a reply written against an older one is stale.
    context_version: i64,
    /// While it is claimed.
    #[serde(skip_serializing_if = "Option::is_none")]
    lease: Option<LeaseView>,
    /// `reply`, `review` or `time`
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting_for: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    for_worker: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    available_at: Option<String>,
    /// The finished item of the same thread before this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_id: Option<String>,
    created_at: String,
    updated_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    done_at: Option<String>,
    thread: ThreadView,
    /// In a claim: what no finished item covers yet, oldest first, at most 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<Vec<MessageView>>,
}

/// Items with their threads, in their order.
pub(crate) async fn views(tx: &mut Tx, items: Vec<WorkItem>) -> Result<Vec<WorkItemView>, StoreError> {
    let mut threads: Vec<Thread> = Vec::with_capacity(items.len());
    let mut parents = Vec::with_capacity(items.len());
    for item in &items {
        let found = thread::by_key(tx, item.inbox, item.thread_key).await?;
        threads.push(found.ok_or_else(|| StoreError::Damaged(format!("{} without its thread", item.id())))?);
        parents.push(match item.parent_key {
            Some(key) => work_item::by_key(tx, item.inbox, key).await?.map(|parent| parent.id()),
            None => None,
        });
    }
    let threads = load::threads(tx, threads).await?;
    let rows = items.into_iter().zip(threads).zip(parents);
    Ok(rows.map(|((item, thread), parent_id)| view(item, thread, parent_id)).collect())
}

fn view(item: WorkItem, thread: ThreadView, parent_id: Option<String>) -> WorkItemView {
    let lease = item.lease.as_ref().filter(|_| item.state == ItemState::Claimed);
    let rests =
        matches!(item.state, ItemState::Available | ItemState::Waiting) && item.available_at < i64::MAX;
    WorkItemView {
        work_item_id: item.id(),
        inbox_id: thread.inbox_id.clone(),
        thread_id: thread.thread_id.clone(),
        state: item.state.text(),
        priority: item.priority,
        attempts: item.attempts,
        context_version: thread.context_version,
        lease: lease.map(|lease| LeaseView {
            fence: item.fence,
            worker: lease.worker.clone(),
            expires_at: rfc3339(lease.expires_at),
        }),
        available_at: rests.then(|| rfc3339(item.available_at)),
        reason: item.reason,
        last_error: item.last_error,
        waiting_for: item.waiting_for,
        for_worker: item.for_worker,
        parent_id,
        created_at: rfc3339(item.created_at),
        updated_at: rfc3339(item.updated_at),
        done_at: item.done_at.map(rfc3339),
        thread,
        messages: None,
    }
}

#[derive(Serialize, ToSchema)]
pub(crate) struct ListWorkItemsResponse {
    count: usize,
    limit: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
    work_items: Vec<WorkItemView>,
}

/// Work items, newest first.
#[utoipa::path(
    get, path = "/v1/work-items", tag = "work items",
    params(
        ("inbox_id" = Option<String>, Query), ("state" = Option<String>, Query),
        ("limit" = Option<i64>, Query), ("page_token" = Option<String>, Query)
    ),
    responses((status = 200, body = ListWorkItemsResponse), (status = 400, body = ErrorShape))
)]
async fn list(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    mut query: Query,
) -> Answer<Json<ListWorkItemsResponse>> {
    caller.require("message_read")?;
    let page = Listing::WorkItems.page_one_way(&mut query)?;
    use ItemState::*;
    let states = [Available, Claimed, Waiting, NeedsHuman, Held, Dead, Done].map(|s| (s.text(), s));
    let state = query.word("state", &states).map_or("", ItemState::text);
    let inbox_id = query.text("inbox_id");
    query.finish()?;
    let within = match inbox_id {
        Some(id) => Scope::Inbox(caller.inbox(&floor, &id).await?.key),
        None => caller.0.scope,
    };
    let limit = page.limit;
    let found = floor.store.read(move |tx| {
        Box::pin(async move {
            let mut items = work_item::page(tx, within, state, &page.start(), page.fetch()).await?;
            let next = paging::cut(&page, Listing::WorkItems, &mut items, work_item::place);
            Ok::<_, StoreError>((views(tx, items).await?, next))
        })
    });
    let (work_items, next_page_token) = found.await?;
    Ok(Json(ListWorkItemsResponse { count: work_items.len(), limit, next_page_token, work_items }))
}

/// One work item.
#[utoipa::path(
    get, path = "/v1/work-items/{work_item_id}", tag = "work items", params(("work_item_id" = String, Path)),
    responses((status = 200, body = WorkItemView), (status = 404, body = ErrorShape))
)]
async fn get(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<WorkItemView>> {
    query.finish()?;
    let id = item_id(&floor, &caller, &path).await?;
    show(&floor, work::get(&floor, &caller.0, id).await.map_err(problem)?).await
}

/// The id of the path, if the caller sees its inbox.
async fn item_id(floor: &Floor, caller: &Caller, path: &RawPath) -> Answer<RowId> {
    caller.require("message_read")?;
    let none = || Problem::not_found("Work item");
    let id = RowId::parse(Prefix::WorkItem, &path.segment(2)?).ok_or_else(none)?;
    caller.inbox_by_key(floor, id.inbox).await?.ok_or_else(none)?;
    Ok(id)
}

async fn show(floor: &Floor, item: WorkItem) -> Answer<Json<WorkItemView>> {
    let shown = floor
        .store
        .read(move |tx| Box::pin(async move { Ok::<_, StoreError>(views(tx, vec![item]).await?.pop()) }));
    shown.await?.map(Json).ok_or_else(|| Problem::not_found("Work item"))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HeartbeatBody {
    fence: i64,
    /// From now; 300 unless given.
    lease_seconds: Option<i64>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReasonBody {
    fence: i64,
    reason: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReleaseBody {
    fence: i64,
    /// What went wrong: then an attempt is counted, and the item rests before it is handed out again.
    error: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WaitBody {
    fence: i64,
    /// `reply` (unless given) or `time`
    #[serde(rename = "for")]
    waiting_for: Option<String>,
    /// When it is available again; needed for `time`.
    until: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HandoffBody {
    fence: i64,
    /// The name of the worker it is for; any other than the caller's unless given.
    worker: Option<String>,
    reason: Option<String>,
}

async fn act(
    floor: &Arc<Floor>,
    caller: &Caller,
    path: &RawPath,
    fence: i64,
    action: Action,
) -> Answer<Json<WorkItemView>> {
    let id = item_id(floor, caller, path).await?;
    let item = work::act(floor, &caller.0, id, fence, action).await.map_err(problem)?;
    show(floor, item).await
}

/// Extends the lease.
#[utoipa::path(
    post, path = "/v1/work-items/{work_item_id}/heartbeat", tag = "work items",
    params(("work_item_id" = String, Path)), request_body = HeartbeatBody,
    responses((status = 200, body = WorkItemView), (status = 404, body = ErrorShape), (status = 412, body = ErrorShape))
)]
async fn heartbeat(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    JsonBody(body): JsonBody<HeartbeatBody>,
) -> Answer<Json<WorkItemView>> {
    let lease_seconds = lease_seconds(body.lease_seconds)?.unwrap_or(work::DEFAULT_LEASE_SECONDS);
    act(&floor, &caller, &path, body.fence, Action::Heartbeat { lease_seconds }).await
}

/// Done; unless mail came that the holder was not handed and did not answer: then the item is `available` again.
#[utoipa::path(
    post, path = "/v1/work-items/{work_item_id}/complete", tag = "work items",
    params(("work_item_id" = String, Path)), request_body = ReasonBody,
    responses((status = 200, body = WorkItemView), (status = 404, body = ErrorShape), (status = 412, body = ErrorShape))
)]
async fn complete(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    JsonBody(body): JsonBody<ReasonBody>,
) -> Answer<Json<WorkItemView>> {
    let reason = text("reason", body.reason)?;
    act(&floor, &caller, &path, body.fence, Action::Complete { reason }).await
}

/// Back to the queue.
#[utoipa::path(
    post, path = "/v1/work-items/{work_item_id}/release", tag = "work items",
    params(("work_item_id" = String, Path)), request_body = ReleaseBody,
    responses((status = 200, body = WorkItemView), (status = 404, body = ErrorShape), (status = 412, body = ErrorShape))
)]
async fn release(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    JsonBody(body): JsonBody<ReleaseBody>,
) -> Answer<Json<WorkItemView>> {
    let error = text("error", body.error)?;
    act(&floor, &caller, &path, body.fence, Action::Release { error }).await
}

/// Set aside until somebody writes again, or until a time. Where they already have, the item is `available`.
#[utoipa::path(
    post, path = "/v1/work-items/{work_item_id}/wait", tag = "work items",
    params(("work_item_id" = String, Path)), request_body = WaitBody,
    responses((status = 200, body = WorkItemView), (status = 404, body = ErrorShape), (status = 412, body = ErrorShape))
)]
async fn wait(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    JsonBody(body): JsonBody<WaitBody>,
) -> Answer<Json<WorkItemView>> {
    let until = match body.until.as_deref().map(parse_rfc3339) {
        None => None,
        Some(Some(at)) => Some(at),
        Some(None) => {
            return Err(Problem::field(&["until"], "takes an instant such as 2026-01-31T12:00:00Z"));
        }
    };
    let for_reply = match (body.waiting_for.as_deref(), until) {
        (Some("reply"), _) => true,
        (Some("time"), Some(_)) => false,
        (Some("time"), None) => return Err(Problem::field(&["until"], "is needed to wait for a time")),
        (None, until) => until.is_none(),
        (Some(_), _) => return Err(Problem::field(&["for"], "takes reply or time")),
    };
    act(&floor, &caller, &path, body.fence, Action::Wait { for_reply, until }).await
}

/// A human has to look.
#[utoipa::path(
    post, path = "/v1/work-items/{work_item_id}/escalate", tag = "work items",
    params(("work_item_id" = String, Path)), request_body = ReasonBody,
    responses((status = 200, body = WorkItemView), (status = 404, body = ErrorShape), (status = 412, body = ErrorShape))
)]
async fn escalate(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    JsonBody(body): JsonBody<ReasonBody>,
) -> Answer<Json<WorkItemView>> {
    let reason = text("reason", body.reason)?;
    act(&floor, &caller, &path, body.fence, Action::Escalate { reason }).await
}

/// To another worker.
#[utoipa::path(
    post, path = "/v1/work-items/{work_item_id}/handoff", tag = "work items",
    params(("work_item_id" = String, Path)), request_body = HandoffBody,
    responses((status = 200, body = WorkItemView), (status = 404, body = ErrorShape), (status = 412, body = ErrorShape))
)]
async fn handoff(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    JsonBody(body): JsonBody<HandoffBody>,
) -> Answer<Json<WorkItemView>> {
    let action =
        Action::Handoff { worker: text("worker", body.worker)?, reason: text("reason", body.reason)? };
    act(&floor, &caller, &path, body.fence, action).await
}

/// An admin gives a `dead`, `held`, `needs_human` or waiting item back to the queue, its attempts forgotten.
#[utoipa::path(
    post, path = "/v1/work-items/{work_item_id}/requeue", tag = "work items", params(("work_item_id" = String, Path)),
    responses((status = 200, body = WorkItemView), (status = 403, body = ErrorShape), (status = 412, body = ErrorShape))
)]
async fn requeue(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
) -> Answer<Json<WorkItemView>> {
    decide(&floor, &caller, &path, Override::Requeue).await
}

/// An admin finishes an item without an answer.
#[utoipa::path(
    post, path = "/v1/work-items/{work_item_id}/discard", tag = "work items", params(("work_item_id" = String, Path)),
    responses((status = 200, body = WorkItemView), (status = 403, body = ErrorShape), (status = 412, body = ErrorShape))
)]
async fn discard(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
) -> Answer<Json<WorkItemView>> {
    decide(&floor, &caller, &path, Override::Discard).await
}

async fn decide(
    floor: &Arc<Floor>,
    caller: &Caller,
    path: &RawPath,
    what: Override,
) -> Answer<Json<WorkItemView>> {
    let id = item_id(floor, caller, path).await?;
    caller.require_admin("What nobody holds")?;
    let item = work::override_item(floor, &caller.0, id, what).await.map_err(problem)?;
    show(floor, item).await
}

pub(super) fn problem(error: WorkError) -> Problem {
    let precondition = |code, message: String| Problem::new(StatusCode::PRECONDITION_FAILED, code, message);
    match error {
        WorkError::NotFound => Problem::not_found("Work item"),
        WorkError::LeaseLost => {
            precondition("lease_lost", "The item is not held under this fence any more.".into())
                .fix("Stop working on it: it was claimed again, released or finished. Claim anew.")
        }
        WorkError::LeaseHeld => precondition("lease_held", "Another worker holds the item.".into())
            .fix("Claim it once its lease has ended."),
        wrong @ WorkError::WrongState { .. } => precondition("wrong_state", format!("{wrong}."))
            .fix("Look at the item: GET /v1/work-items/{work_item_id}."),
        WorkError::Store(error) => error.into(),
    }
}

pub(super) fn lease_seconds(given: Option<i64>) -> Answer<Option<i64>> {
    match given {
        Some(n) if !work::LEASE_SECONDS.contains(&n) => {
            Err(Problem::field(&["lease_seconds"], "takes a number from 5 to 43200"))
        }
        given => Ok(given),
    }
}

/// How long a request may wait.
pub(super) fn wait_seconds(given: Option<i64>) -> Answer<Duration> {
    match given.unwrap_or(0) {
        n if (0..=limits::MAX_WAIT_SECONDS).contains(&n) => Ok(Duration::from_secs(n.unsigned_abs())),
        _ => Err(Problem::field(
            &["wait_seconds"],
            format!("takes a number from 0 to {}", limits::MAX_WAIT_SECONDS),
        )),
    }
}

pub(super) fn text(field: &str, given: Option<String>) -> Answer<Option<String>> {
    match given {
        Some(text) if text.len() > MAX_TEXT || text.contains('\0') => {
            Err(Problem::field(&[field], format!("takes at most {MAX_TEXT} octets, without NUL")))
        }
        given => Ok(given.filter(|text| !text.is_empty())),
    }
}
