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
use crate::config::limits::MAX_JSON_BODY;
use crate::floor::Floor;
use crate::ids::{InboxKey, Prefix, RowId};
use crate::principal::Scope;
use crate::store::attempt::{self, Attempt};
use crate::store::delivery::{self, Delivery, Filter, Handling, State as RowState};
use crate::store::hold_rule::{self, HoldRule};
use crate::store::{StoreError, audit, inbox, message};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(rules))
        .routes(routes!(add_rule))
        .routes(routes!(remove_rule))
        .routes(routes!(show))
        .routes(routes!(hold))
        .routes(routes!(release))
        .routes(routes!(retry))
        .routes(routes!(drop_row))
        .routes(routes!(of_message))
        .routes(routes!(cancel))
}

/// A delivery in the queue.
#[derive(Serialize, ToSchema)]
pub(crate) struct QueueRow {
    delivery_id: String,
    inbox_id: String,
    /// Our own id of the message: `msg_…` is found by it.
    thread_key: i64,
    recipient: String,
    domain: String,
    /// `local`, `relay` or `capture`
    route: String,
    /// `due`, `attempting`, `deferred`, `scheduled`, `held`, `delivered`, `failed` or `canceled`
    state: String,
    /// `approved`, `ordinary` or `bulk`
    priority: String,
    /// `rule:<id>`, `operator` or `gate:<reason>`
    #[serde(skip_serializing_if = "Option::is_none")]
    held_by: Option<String>,
    attempts: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_attempt_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_reply: Option<String>,
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
        next_attempt_at: delivery::next_attempt(&row).map(rfc3339),
        inbox_id: row.sender,
        thread_key: row.thread_key,
        recipient: row.recipient,
        domain: row.domain,
        route: row.route.text().to_owned(),
        state: row.state,
        priority: row.priority.text().to_owned(),
        held_by: row.held_by,
        attempts: row.attempts,
        last_status: row.last_status,
        last_reply: row.last_reply,
        maybe_duplicate: row.maybe_duplicate,
        created_at: rfc3339(row.created_at),
        expires_at: rfc3339(row.expires_at),
        log: log.map(|log| log.into_iter().map(attempt_view).collect()),
    }
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
                return Ok(Some(Err(row.state)));
            }
            let action = match handling {
                Handling::Hold => "delivery.held",
                Handling::Release => "delivery.released",
                Handling::Retry => "delivery.hurried",
                Handling::Drop => "delivery.dropped",
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
        Some(Err(state)) => Err(Problem::new(
            StatusCode::PRECONDITION_FAILED,
            "wrong_state",
            format!("The delivery is {state}: nothing was changed."),
        )
        .fix("hold takes what is due, deferred or scheduled; release what is held; retry what is due or deferred; drop whatever is not under way or settled.")),
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
    handle(&floor, &caller, &path, Handling::Hold).await
}

/// Lets a held delivery go; a rule that still holds it holds it again.
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
    handle(&floor, &caller, &path, Handling::Release).await
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

/// A rule that holds what leaves.
#[derive(Serialize, ToSchema)]
#[schema(as = HoldRule)]
pub(crate) struct RuleView {
    rule_id: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    inbox_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    created_by: String,
    created_at: String,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct ListRulesResponse {
    count: usize,
    rules: Vec<RuleView>,
}

#[derive(Deserialize, ToSchema)]
#[schema(as = NewHoldRule)]
pub(crate) struct NewRule {
    /// From this inbox; from everybody unless given.
    inbox_id: Option<String>,
    /// To this domain; to everywhere unless given.
    domain: Option<String>,
    reason: Option<String>,
}

fn organization(caller: &Caller) -> Answer<()> {
    if caller.0.scope == Scope::Organization {
        return Ok(());
    }
    Err(Problem::forbidden("forbidden", "Hold rules belong to organization keys.")
        .fix("Ask the operator, or use an organization's key."))
}

async fn rule_view(floor: &Floor, rule: HoldRule) -> Answer<RuleView> {
    let inbox_id = match rule.inbox {
        Some(key) => {
            let found = floor.store.read(move |tx| Box::pin(inbox::by_key(tx, key))).await;
            found.map_err(|e: StoreError| Problem::from(e))?.map(|inbox| inbox.address)
        }
        None => None,
    };
    Ok(RuleView {
        rule_id: rule.rule_key,
        inbox_id,
        domain: rule.domain,
        reason: rule.reason,
        created_by: rule.actor,
        created_at: rfc3339(rule.created_at),
    })
}

/// Every hold rule.
#[utoipa::path(
    get, path = "/v1/queue/rules", tag = "queue",
    responses((status = 200, body = ListRulesResponse), (status = 403, body = ErrorShape))
)]
async fn rules(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    query: Query,
) -> Answer<Json<ListRulesResponse>> {
    query.finish()?;
    organization(&caller)?;
    let found: Result<Vec<HoldRule>, StoreError> = floor.store.read(|tx| Box::pin(hold_rule::all(tx))).await;
    let mut rules = Vec::new();
    for rule in found? {
        rules.push(rule_view(&floor, rule).await?);
    }
    Ok(Json(ListRulesResponse { count: rules.len(), rules }))
}

/// Holds everything from an inbox, to a domain, or both, from now on; what is under way finishes.
#[utoipa::path(
    post, path = "/v1/queue/rules", tag = "queue", request_body = NewRule,
    responses((status = 200, body = RuleView), (status = 400, body = ErrorShape), (status = 403, body = ErrorShape))
)]
async fn add_rule(State(app): State<App>, caller: Caller, request: Request) -> Answer<Json<RuleView>> {
    organization(&caller)?;
    caller.require("message_update")?;
    let upload = body::read(&app, request, MAX_JSON_BODY).await?;
    let asked: NewRule = body::parse(&upload.bytes)?;
    if asked.inbox_id.is_none() && asked.domain.is_none() {
        return Err(Problem::field(&["domain"], "is needed, or inbox_id: a rule for everything is a stop"));
    }
    let domain = match &asked.domain {
        Some(domain) => {
            let probe = format!("x@{}", domain.trim()).parse::<crate::address::Address>();
            let probe = probe.map_err(|e| Problem::field(&["domain"], e.to_string()))?;
            Some(probe.domain().to_owned())
        }
        None => None,
    };
    if asked.reason.as_deref().is_some_and(|text| text.len() > 1_000 || text.contains('\0')) {
        return Err(Problem::field(&["reason"], "takes at most 1,000 octets"));
    }
    let inbox = match &asked.inbox_id {
        Some(id) => Some(caller.inbox(&app.floor, id).await?.key),
        None => None,
    };
    let (actor, reason) = (caller.0.actor(), asked.reason);
    let added = app.floor.store.write(move |tx| {
        let (actor, reason, domain) = (actor.clone(), reason.clone(), domain.clone());
        Box::pin(async move {
            let rule = hold_rule::add(tx, inbox, domain.as_deref(), reason.as_deref(), &actor).await?;
            if let Some(rule) = &rule {
                let entry = audit::Entry {
                    actor: &actor,
                    run_id: None,
                    action: "hold_rule.added",
                    inbox,
                    object: &rule.name(),
                    detail: serde_json::json!({ "domain": domain }).to_string(),
                };
                audit::record(tx, entry).await?;
            }
            Ok::<_, StoreError>(rule)
        })
    });
    let rule = added.await?.ok_or_else(|| {
        Problem::forbidden("too_many_rules", format!("There are {} hold rules already.", hold_rule::MOST))
            .fix("Remove one: DELETE /v1/queue/rules/{rule_id}.")
    })?;
    Ok(Json(rule_view(&app.floor, rule).await?))
}

/// Removes a rule and lets go of what it held.
#[utoipa::path(
    delete, path = "/v1/queue/rules/{rule_id}", tag = "queue",
    params(("rule_id" = i64, Path)),
    responses((status = 204), (status = 403, body = ErrorShape), (status = 404, body = ErrorShape))
)]
async fn remove_rule(
    State(floor): State<Arc<Floor>>,
    caller: Caller,
    path: RawPath,
    query: Query,
) -> Answer<StatusCode> {
    query.finish()?;
    organization(&caller)?;
    caller.require("message_update")?;
    let missing = || Problem::not_found("Rule").fix("GET /v1/queue/rules lists them.");
    let key: i64 = path.segment(3)?.parse().map_err(|_| missing())?;
    let actor = caller.0.actor();
    let removed = floor.store.write(move |tx| {
        let actor = actor.clone();
        Box::pin(async move {
            if !hold_rule::remove(tx, key).await? {
                return Ok(false);
            }
            let entry = audit::Entry {
                actor: &actor,
                run_id: None,
                action: "hold_rule.removed",
                inbox: None,
                object: &format!("rule:{key}"),
                detail: "{}".to_owned(),
            };
            audit::record(tx, entry).await?;
            // The first rows at once; the queue lets go of the rest.
            hold_rule::let_go(tx).await?;
            Ok::<_, StoreError>(true)
        })
    });
    if removed.await? { Ok(StatusCode::NO_CONTENT) } else { Err(missing()) }
}
