//! The queue: what waits to leave and why, every attempt with the remote's words, and what people do about it.
//! An inbox's key sees its own; what is changed is changed by admin keys (DESIGN.md §4.6), except that a message
//! can be called back by whoever may send.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::App;
use crate::api::auth::Caller;
use crate::api::body;
use crate::api::error::{Answer, ErrorShape, Problem};
use crate::api::paging::{self, Listing};
use crate::api::path::RawPath;
use crate::api::query::Query;
use crate::clock::rfc3339;
use crate::config::Choice;
use crate::config::limits::MAX_JSON_BODY;
use crate::floor::Floor;
use crate::ids::{InboxKey, Prefix, RowId, pod_id};
use crate::principal::Scope;
use crate::store::attempt::{self, Attempt};
use crate::store::delivery::{self, Delivery, Filter, Handling, Holder, State as RowState};
use crate::store::{StoreError, audit, inbox, message};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show))
        .routes(routes!(hold))
        .routes(routes!(release))
        .routes(routes!(retry))
        .routes(routes!(drop_row))
        .routes(routes!(route))
        .routes(routes!(of_message))
        .routes(routes!(cancel))
}

/// A delivery in the queue.
#[derive(Serialize, ToSchema)]
pub(crate) struct QueueRow {
    delivery_id: String,
    inbox_id: String,
    /// `msg_…`: the message that it is a recipient of.
    message_id: String,
    recipient: String,
    domain: String,
    /// `local`, `relay` or `capture`
    route: String,
    /// `due`, `attempting`, `deferred`, `scheduled`, `held`, `delivered`, `failed` or `canceled`
    state: String,
    /// `approved`, `ordinary` or `bulk`
    priority: String,
    /// `direct` or `smarthost`, where an operator chose the way
    #[serde(skip_serializing_if = "Option::is_none")]
    via: Option<String>,
    /// What its sender wants of TLS: `usual`, `optional` (`TLS-Required: No`) or `required` (REQUIRETLS)
    tls: &'static str,
    /// `rule:<id>`, `operator`, `pod` or `gate:<reason>`
    #[serde(skip_serializing_if = "Option::is_none")]
    held_by: Option<String>,
    /// `budget:domain:<name>`, `budget:pod:<id>` or `budget:inbox:<address>`: what has no room for it until about
    /// `next_attempt_at`; `last_reply` says it in words
    #[serde(skip_serializing_if = "Option::is_none")]
    waits_for: Option<String>,
    attempts: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_attempt_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_reply: Option<String>,
    /// Of what came back: `hard`, `mailbox_full`, `policy`, `content`, `expired` or `soft`; of a complaint its kind
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<String>,
    maybe_duplicate: bool,
    created_at: String,
    expires_at: String,
    /// Each attempt of the last 30 days; only where one delivery is shown, or those of one message.
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<Vec<AttemptView>>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct AttemptView {
    attempt: i64,
    node: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    /// Protocol and cipher, and `, verified by …` where the host proved itself; absent in clear
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<String>,
    /// `delivered`, `deferred`, `failed`, or `interrupted` where the process died
    outcome: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply: Option<String>,
    began_at: String,
    duration_ms: i64,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct QueueSummary {
    due: i64,
    attempting: i64,
    deferred: i64,
    scheduled: i64,
    held: i64,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct ListQueueResponse {
    count: usize,
    limit: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
    /// Over everything that the key sees, or the inbox that is asked for.
    summary: QueueSummary,
    deliveries: Vec<QueueRow>,
}

fn view(row: Delivery, log: Option<Vec<Attempt>>) -> QueueRow {
    QueueRow {
        delivery_id: row.id(),
        message_id: row.message_id(),
        next_attempt_at: delivery::next_attempt(&row).map(rfc3339),
        waits_for: waits_for(&row),
        inbox_id: row.sender,
        recipient: row.recipient,
        domain: row.domain,
        route: row.route.text().to_owned(),
        priority: row.priority.text().to_owned(),
        held_by: row.held_by.filter(|_| row.state == "held"),
        state: row.state,
        via: row.via,
        tls: row.tls.text(),
        attempts: row.attempts,
        last_status: row.last_status,
        last_reply: row.last_reply,
        class: row.outcome_class,
        maybe_duplicate: row.maybe_duplicate,
        created_at: rfc3339(row.created_at),
        expires_at: rfc3339(row.expires_at),
        log: log.map(|log| log.into_iter().map(attempt_view).collect()),
    }
}

/// The budget by the names that a caller knows.
fn waits_for(row: &Delivery) -> Option<String> {
    let scope = row.waits_for.as_deref().filter(|_| row.state == "scheduled")?;
    Some(match scope.split_once(':') {
        Some(("inbox", _)) => format!("budget:inbox:{}", row.sender),
        Some(("pod", _)) => format!("budget:pod:{}", pod_id(row.inbox.pod)),
        _ => format!("budget:{scope}"),
    })
}

fn attempt_view(attempt: Attempt) -> AttemptView {
    AttemptView {
        attempt: attempt.attempt,
        node: attempt.node,
        host: attempt.host,
        address: attempt.address,
        tls: attempt.tls,
        outcome: attempt.outcome,
        status: attempt.status,
        reply: attempt.reply,
        began_at: rfc3339(attempt.began_at),
        duration_ms: attempt.ended_at.saturating_sub(attempt.began_at).max(0),
    }
}

/// What waits to leave or is under way, by inbox and release; settled states in one inbox alone.
#[utoipa::path(
    get, path = "/v1/queue", tag = "queue",
    params(
        ("inbox_id" = Option<String>, Query), ("domain" = Option<String>, Query),
        ("state" = Option<String>, Query, description = "Several may be given."),
        ("limit" = Option<i64>, Query), ("page_token" = Option<String>, Query)
    ),
    responses((status = 200, body = ListQueueResponse), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn list(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    mut query: Query,
) -> Answer<Json<ListQueueResponse>> {
    caller.require("message_read")?;
    let page = Listing::Queue.page_one_way(&mut query)?;
    let (inbox_id, domain) = (query.text("inbox_id"), query.text("domain"));
    let states = query.words("state", &RowState::WORDS);
    query.finish()?;
    let inbox = match inbox_id {
        Some(id) => Some(caller.inbox(&floor, &id).await?.key),
        None => caller.own_inbox(),
    };
    if inbox.is_none() && states.iter().any(|state| !state.is_open()) {
        return Err(Problem::field(&["query", "state"], "delivered, failed and canceled need an inbox_id"));
    }
    let pod = match caller.0.scope {
        Scope::Organization => None,
        Scope::Pod(pod) => Some(pod),
        Scope::Inbox(own) => Some(own.pod),
    };
    let filter = Filter { pod, inbox, domain: domain.map(|d| d.to_ascii_lowercase()), states };
    let asked = page.clone();
    let found = floor.store.read(move |tx| {
        Box::pin(async move {
            let rows = delivery::page(tx, &filter, asked.after.as_ref(), asked.fetch()).await?;
            let counts = delivery::summary(tx, filter.pod, filter.inbox.map(|of| of.inbox)).await?;
            Ok::<_, StoreError>((rows, counts))
        })
    });
    let (mut rows, [due, attempting, deferred, scheduled, held]) = found.await?;
    let next_page_token = paging::cut(&page, Listing::Queue, &mut rows, delivery::place);
    let deliveries: Vec<QueueRow> = rows.into_iter().map(|row| view(row, None)).collect();
    Ok(Json(ListQueueResponse {
        count: deliveries.len(),
        limit: page.limit,
        next_page_token,
        summary: QueueSummary { due, attempting, deferred, scheduled, held },
        deliveries,
    }))
}

/// The row of an id, if this key sees it.
async fn find(floor: &Floor, caller: &Caller, id: &str) -> Answer<RowId> {
    let missing = || Problem::not_found("Delivery").fix("GET /v1/queue lists what is in the queue.");
    let row = RowId::parse(Prefix::Delivery, id).ok_or_else(missing)?;
    caller.inbox_by_key(floor, row.inbox).await?.map(|_| row).ok_or_else(missing)
}

async fn whole(floor: &Floor, id: RowId) -> Answer<Json<QueueRow>> {
    let found = floor.store.read(move |tx| {
        Box::pin(async move {
            let Some(row) = delivery::by_key(tx, id.inbox, id.seq).await? else { return Ok(None) };
            let log = attempt::of_delivery(tx, id.inbox, id.seq).await?;
            Ok::<_, StoreError>(Some((row, log)))
        })
    });
    let (row, log) = found.await?.ok_or_else(|| Problem::not_found("Delivery"))?;
    Ok(Json(view(row, Some(log))))
}

/// One delivery, with every attempt of the last 30 days.
#[utoipa::path(
    get, path = "/v1/queue/{delivery_id}", tag = "queue",
    params(("delivery_id" = String, Path)),
    responses((status = 200, body = QueueRow), (status = 404, body = ErrorShape))
)]
async fn show(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<QueueRow>> {
    query.finish()?;
    caller.require("message_read")?;
    let id = find(&floor, &caller, &path.segment(2)?).await?;
    whole(&floor, id).await
}

fn holder(caller: &Caller) -> Holder {
    match caller.0.scope {
        Scope::Organization => Holder::Operator,
        Scope::Pod(_) | Scope::Inbox(_) => Holder::Pod,
    }
}

async fn handle(
    floor: &Floor,
    caller: &Caller,
    path: &RawPath,
    handling: Handling,
) -> Answer<Json<QueueRow>> {
    caller.require_admin("What waits in the queue")?;
    caller.require("message_update")?;
    let id = find(floor, caller, &path.segment(2)?).await?;
    let actor = caller.0.actor();
    let changed = floor.store.write(move |tx| {
        let actor = actor.clone();
        Box::pin(async move {
            let Some(row) = delivery::by_key(tx, id.inbox, id.seq).await? else { return Ok(None) };
            let words = format!("dropped by {actor}");
            if !delivery::handle(tx, &row, handling, &words).await? {
                return Ok(Some(Err((row.state, row.held_by))));
            }
            let action = match handling {
                Handling::Hold(_) => "delivery.held",
                Handling::Release(_) => "delivery.released",
                Handling::Retry => "delivery.hurried",
                Handling::Drop => "delivery.dropped",
                Handling::Route(_) => "delivery.routed",
            };
            if handling == Handling::Drop {
                delivery::announce(tx, &row, action, None, Some(&words), None).await?;
            }
            let entry = audit::Entry {
                actor: &actor,
                run_id: None,
                action,
                inbox: Some(id.inbox),
                object: &row.id(),
                detail: "{}".to_owned(),
            };
            audit::record(tx, entry).await?;
            Ok::<_, StoreError>(Some(Ok(())))
        })
    });
    match changed.await? {
        None => Err(Problem::not_found("Delivery")),
        Some(Ok(())) => whole(floor, id).await,
        Some(Err((state, Some(by)))) if state == "held" && handling == Handling::Release(Holder::Pod) => {
            Err(Problem::forbidden("forbidden", format!("The delivery is held by {by}, not by a key of this pod."))
                .fix("Ask the operator, or use an organization's key."))
        }
        Some(Err((state, _))) => Err(Problem::new(
            StatusCode::PRECONDITION_FAILED,
            "wrong_state",
            format!("The delivery is {state}: nothing was changed."),
        )
        .fix("hold takes what is due, deferred or scheduled; release what is held; retry what is due or deferred; drop and route whatever is not under way or settled.")),
    }
}

/// Keeps a delivery from leaving until it is released.
#[utoipa::path(
    post, path = "/v1/queue/{delivery_id}/hold", tag = "queue",
    params(("delivery_id" = String, Path)),
    responses((status = 200, body = QueueRow), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape), (status = 412, body = ErrorShape))
)]
async fn hold(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<QueueRow>> {
    query.finish()?;
    handle(&floor, &caller, &path, Handling::Hold(holder(&caller))).await
}

/// Lets a held delivery go, though a rule still holds others like it. A stop, or a paused inbox, holds it again.
#[utoipa::path(
    post, path = "/v1/queue/{delivery_id}/release", tag = "queue",
    params(("delivery_id" = String, Path)),
    responses((status = 200, body = QueueRow), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape), (status = 412, body = ErrorShape))
)]
async fn release(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<QueueRow>> {
    query.finish()?;
    handle(&floor, &caller, &path, Handling::Release(holder(&caller))).await
}

/// Tries a delivery now, whatever the schedule says.
#[utoipa::path(
    post, path = "/v1/queue/{delivery_id}/retry", tag = "queue",
    params(("delivery_id" = String, Path)),
    responses((status = 200, body = QueueRow), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape), (status = 412, body = ErrorShape))
)]
async fn retry(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<QueueRow>> {
    query.finish()?;
    handle(&floor, &caller, &path, Handling::Retry).await
}

/// Never delivers it. No bounce is written; the delivery says `canceled`, and by whom.
#[utoipa::path(
    post, path = "/v1/queue/{delivery_id}/drop", tag = "queue",
    params(("delivery_id" = String, Path)),
    responses((status = 200, body = QueueRow), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape), (status = 412, body = ErrorShape))
)]
async fn drop_row(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<QueueRow>> {
    query.finish()?;
    handle(&floor, &caller, &path, Handling::Drop).await
}

#[derive(Deserialize, ToSchema)]
pub(crate) struct RouteRequest {
    /// `direct`: to the MX hosts of its domain. `smarthost`: by the one that is configured. Absent: as the
    /// configuration says.
    via: Option<String>,
}

/// Chooses the way that a delivery takes from its next attempt on.
#[utoipa::path(
    post, path = "/v1/queue/{delivery_id}/route", tag = "queue", request_body = RouteRequest,
    params(("delivery_id" = String, Path)),
    responses((status = 200, body = QueueRow), (status = 400, body = ErrorShape), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape), (status = 412, body = ErrorShape))
)]
async fn route(
    State(app): State<App>,
    caller: Caller,
    path: RawPath,
    request: Request,
) -> Answer<Json<QueueRow>> {
    // A tenant does not go round the operator's smarthost.
    caller.require_organization("The way that mail takes")?;
    let upload = body::read(&app, request, MAX_JSON_BODY).await?;
    let asked: RouteRequest = body::parse(&upload.bytes)?;
    let choice = match asked.via.as_deref().map(|via| Choice::parse(via).ok_or(via)) {
        None => None,
        Some(Ok(choice)) => Some(choice),
        Some(Err(_)) => return Err(Problem::field(&["via"], "takes \"direct\" or \"smarthost\"")),
    };
    let relay = &app.floor.config.relay;
    if choice == Some(Choice::Smarthost) && relay.smarthost.is_none() && relay.routes.is_empty() {
        return Err(Problem::field(
            &["via"],
            "no smarthost is configured (relay.smarthost, [[relay.route]])",
        ));
    }
    handle(&app.floor, &caller, &path, Handling::Route(choice)).await
}

#[derive(Serialize, ToSchema)]
pub(crate) struct MessageDeliveriesResponse {
    count: usize,
    deliveries: Vec<QueueRow>,
}

async fn message_of(floor: &Floor, caller: &Caller, path: &RawPath) -> Answer<(InboxKey, i64, String)> {
    let inbox = caller.inbox(floor, &path.segment(2)?).await?.key;
    let id = path.segment(4)?;
    let found =
        floor.store.read(move |tx| Box::pin(async move { message::by_public_id(tx, inbox, &id).await }));
    let found = found.await.map_err(|e: StoreError| Problem::from(e))?;
    let found = found.ok_or_else(|| Problem::not_found("Message"))?;
    Ok((inbox, found.message_key, found.id()))
}

/// What became of a message, recipient by recipient and attempt by attempt.
#[utoipa::path(
    get, path = "/v1/inboxes/{inbox_id}/messages/{message_id}/deliveries", tag = "queue",
    params(("inbox_id" = String, Path), ("message_id" = String, Path)),
    responses((status = 200, body = MessageDeliveriesResponse), (status = 404, body = ErrorShape))
)]
async fn of_message(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<MessageDeliveriesResponse>> {
    query.finish()?;
    caller.require("message_read")?;
    let (inbox, message_key, _) = message_of(&floor, &caller, &path).await?;
    let found = floor.store.read(move |tx| {
        Box::pin(async move {
            let mut views = Vec::new();
            for row in delivery::of_message(tx, inbox, message_key).await? {
                let log = attempt::of_delivery(tx, inbox, row.delivery_key).await?;
                views.push(view(row, Some(log)));
            }
            Ok::<_, StoreError>(views)
        })
    });
    let deliveries = found.await?;
    Ok(Json(MessageDeliveriesResponse { count: deliveries.len(), deliveries }))
}

/// Calls a message back before anything of it was tried: a planned one, or one that waits. Its recipients do not
/// count any more.
#[utoipa::path(
    post, path = "/v1/inboxes/{inbox_id}/messages/{message_id}/cancel", tag = "queue",
    params(("inbox_id" = String, Path), ("message_id" = String, Path)),
    responses((status = 200, body = MessageDeliveriesResponse), (status = 404, body = ErrorShape), (status = 412, body = ErrorShape))
)]
async fn cancel(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<Json<MessageDeliveriesResponse>> {
    query.finish()?;
    caller.require("message_send")?;
    let (inbox, message_key, message_id) = message_of(&floor, &caller, &path).await?;
    let actor = caller.0.actor();
    let canceled = floor.store.write(move |tx| {
        let (actor, message_id) = (actor.clone(), message_id.clone());
        Box::pin(async move {
            if inbox::lock(tx, inbox).await?.is_none() {
                return Ok(None);
            }
            let Some(rows) = delivery::cancel(tx, inbox, message_key).await? else { return Ok(None) };
            if let Some(first) = rows.first() {
                delivery::announce(tx, first, "delivery.canceled", None, Some("called back"), None).await?;
            }
            let entry = audit::Entry {
                actor: &actor,
                run_id: None,
                action: "message.canceled",
                inbox: Some(inbox),
                object: &message_id,
                detail: serde_json::json!({ "recipients": rows.len() }).to_string(),
            };
            audit::record(tx, entry).await?;
            let rows = delivery::of_message(tx, inbox, message_key).await?;
            Ok(Some(rows))
        })
    });
    let too_late = || {
        Problem::new(
            StatusCode::PRECONDITION_FAILED,
            "too_late",
            "The message was tried already, or is settled: nothing was changed.",
        )
        .fix("An operator can drop what is still in the queue: POST /v1/queue/{delivery_id}/drop.")
    };
    match canceled.await {
        Ok(Some(rows)) => {
            let deliveries: Vec<QueueRow> = rows.into_iter().map(|row| view(row, None)).collect();
            Ok(Json(MessageDeliveriesResponse { count: deliveries.len(), deliveries }))
        }
        Ok(None) | Err(StoreError::Conflict(_)) => Err(too_late()),
        Err(error) => Err(error.into()),
    }
}
